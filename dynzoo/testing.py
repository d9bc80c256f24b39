"""Checks for a layer of your own: the ones that every layer of dynzoo passes."""

from __future__ import annotations

import inspect
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from dynzoo import backend
from dynzoo.certificates import UncertifiableLayerError, certify
from dynzoo.constraints import project
from dynzoo.guarantee import Guarantee
from dynzoo.inference.model_layers import depends_on_batch, is_random
from dynzoo.utils.strict_json import short

__all__ = ["check_layer"]

_ROWS = 3  # as many as a certificate looks at, so that each operation is compiled for one shape
_FLOAT32 = 1e-4  # what float32 may be off, relative to the largest entry
_BFLOAT16 = 0.1  # the same in bfloat16
_FLOAT64 = 1e-6  # what a difference quotient in float64 may be off, relatively
_DENSE = 200  # entries of an input up to which the whole Jacobian is made
_DISTANCES = (1e-3, 0.1, 1.0, 10.0)


def check_layer(layer: keras.layers.Layer, input_shape: tuple[int, ...], seed: int = 0) -> list:
    """Checks a layer as every layer of dynzoo is checked, on the backend that runs.

    Checked are that

    * every argument of the constructor is a config key, and the config makes the layer again;
    * a model with it is saved and loaded, weights and constraints included;
    * ``compute_output_shape`` and the symbolic call agree with the call, whose output is of the
      layer's compute dtype (or float32) in mixed bfloat16 too, and is the same when compiled;
    * an example's output depends on no other example, unless ``depends_on_batch`` says so;
    * ``call_float64``, where there is one, is what ``call`` computes;
    * no two inputs that a search finds are moved apart by more than ``lipschitz_bound``, where
      there is one (it may raise an error that names the layer), with random weights and with
      those that the constraints leave;
    * ``guarantees``, where there are some, are data, and those whose meaning is known are kept:
      Lipschitz bounds, "norm kept", "invertible", "volume kept", "orthogonal Jacobian",
      "symplectic";
    * ``dynzoo.certify`` certifies a model with it, or refuses it by name. A layer that defines
      both ``lipschitz_bound`` and ``call_float64`` must be certified.

    It is a test, not a proof: it finds mistakes, and cannot show that there are none. The layer
    itself is left as it is; if it is built, its own weights are checked as well.

    Args:
        layer: the layer, built or not, with one input.
        input_shape: shape of one example, without the batch axis.
        seed: of the random weights and inputs.

    Returns:
        Names of the checks that were made, in order. What the layer does not state is not checked.

    Raises:
        AssertionError: with one line that says what is wrong, at the first check that fails.

    Example:

    >>> from dynzoo import layers
    >>> from dynzoo.testing import check_layer
    >>> "lipschitz bound" in check_layer(layers.MaxMin(), (4, 4, 6))
    True
    """
    if not isinstance(layer, keras.layers.Layer):
        raise ValueError(f"`layer` must be a Keras layer. Received: layer={layer!r}")
    case = _Case(layer, tuple(int(n) for n in input_shape), np.random.default_rng(seed))
    for name, check in _CHECKS.items():
        try:
            if check(case) is not False:
                case.made.append(name)
        except AssertionError:
            raise
        except Exception as error:  # of the layer's own code, of any kind
            raise case.wrong(
                f"the check of {name} ended in {type(error).__name__}: {short(error, 300)}"
            ) from error
    return case.made


@dataclass
class _Case:
    """A layer under test, and copies of it in float32."""

    layer: keras.layers.Layer
    shape: tuple[int, ...]
    rng: np.random.Generator
    made: list[str] = field(default_factory=list)
    copies: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.x = self.rng.normal(size=(_ROWS, *self.shape)).astype("float32")

    @property
    def fixed(self) -> bool:
        """Whether it is a fixed function of its input at inference."""
        return not is_random(self.layer)

    def wrong(self, what: str) -> AssertionError:
        return AssertionError(f"`{type(self.layer).__name__}`: {what}")

    def require(self, condition: Any, what: str) -> None:
        if not condition:
            raise self.wrong(what)

    def objects(self) -> dict[str, type]:
        return {type(self.layer).__name__: type(self.layer)}

    def again(self, dtype: str | None = "float32") -> Any:
        """A new layer from the config."""
        stored = json.loads(json.dumps(keras.saving.serialize_keras_object(self.layer)))
        if dtype is not None:
            stored["config"]["dtype"] = dtype
        return keras.saving.deserialize_keras_object(stored, custom_objects=self.objects())

    def copy(self, weights: str, dtype: str = "float32") -> Any:
        """A built copy with weights: "own", "random", or what constraints leave of these."""
        if (key := f"{weights} {dtype}") not in self.copies:
            made = self.again(dtype)
            made(keras.Input(self.shape))
            if weights == "own" and self.layer.built:
                made.set_weights(self.layer.get_weights())
            elif weights != "own":
                rng = np.random.default_rng(1)
                for weight in made.weights:
                    if np.issubdtype(backend.to_numpy(weight).dtype, np.floating):
                        weight.assign(0.7 * rng.normal(size=weight.shape))
            if weights == "projected":
                project(made)
            self.copies[key] = made
        return self.copies[key]

    def run(self, layer: Any, x: np.ndarray) -> np.ndarray:
        """The layer at inference, on the backend."""
        y = backend.without_grad(_at_inference(layer))(ops.convert_to_tensor(x))
        return backend.to_numpy(ops.cast(y, "float32"))

    def function(self, layer: Any) -> Callable[[np.ndarray], np.ndarray]:
        """The layer as a function of arrays, in float64 where it says how."""
        if hasattr(type(layer), "call_float64"):
            return layer.call_float64
        return lambda x: self.run(layer, x.astype("float32")).astype(np.float64)


def _at_inference(layer: Any) -> Callable[[Any], Any]:
    if "training" in inspect.signature(layer.call).parameters:
        return lambda x: layer(x, training=False)
    return lambda x: layer(x)


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, as a share of the largest entry or of 1, if that is larger."""
    size = max(1.0, float(np.max(np.abs(b), initial=0.0)))
    return float(np.max(np.abs(a.astype(np.float64) - b), initial=0.0)) / size


# --- what Keras asks of a layer ----------------------------------------------------------------


def _config(case: _Case) -> None:
    config, cls = case.layer.get_config(), type(case.layer)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [p.name for p in inspect.signature(cls).parameters.values() if p.kind in kinds]
    lost = [name for name in names if name not in config]
    case.require(not lost, f"`get_config` lacks `{lost[0] if lost else ''}`, an argument.")
    again = case.again(None)
    case.require(
        again.get_config() == config,
        f"the layer made from its config has another one: {again.get_config()} for {config}",
    )
    if config.get("seed") is not None:
        first, second = case.copy("own") if not case.layer.built else None, case.again()
        if first is not None:
            second(keras.Input(case.shape))
            for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
                case.require(np.array_equal(a, b), "its `seed` does not repeat its weights")


def _saving(case: _Case) -> None:
    model = keras.Sequential([keras.Input(case.shape), case.again()])
    model.set_weights(case.copy("random").get_weights())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        loaded = keras.saving.load_model(path, custom_objects=case.objects())
    for one, other in zip(model.weights, loaded.weights, strict=True):
        same = np.array_equal(backend.to_numpy(one), backend.to_numpy(other))
        case.require(same, f"weight `{one.name}` is another one in a saved and loaded model")
        kept = _constraint(one) == _constraint(other)
        case.require(kept, f"weight `{one.name}` has lost its constraint in a saved model")
    if case.fixed:
        gap = _gap(case.run(loaded, case.x), case.run(case.copy("random"), case.x))
        case.require(gap <= 1e-6, f"a saved and loaded model differs by {gap:.3g}")


def _constraint(weight: Any) -> Any:
    constraint = weight.constraint
    return None if constraint is None else (type(constraint), constraint.get_config())


def _shapes(case: _Case) -> None:
    layer = case.copy("random")
    y = case.run(layer, case.x)
    stated = layer.compute_output_shape((_ROWS, *case.shape))
    case.require(
        tuple(stated) == y.shape,
        f"`compute_output_shape` gives {tuple(stated)} for an output of shape {y.shape}",
    )
    symbolic = tuple(layer(keras.Input(case.shape)).shape)
    case.require(
        symbolic == (None, *y.shape[1:]),
        f"a symbolic call gives the shape {symbolic} for an output of shape {y.shape}",
    )
    case.require(np.isfinite(y).all(), "the output of finite inputs is not finite")


def _dtypes(case: _Case) -> None:
    layer, mixed = case.copy("own"), case.copy("own", "mixed_bfloat16")
    mixed.set_weights(layer.get_weights())
    # An output in float32 is what Keras' own layers give where they must not lose digits.
    allowed = {"float32": ("float32",), "mixed_bfloat16": ("bfloat16", "float32")}
    for one, (dtype, expected) in zip((layer, mixed), allowed.items(), strict=True):
        y = backend.without_grad(_at_inference(one))(ops.convert_to_tensor(case.x))
        found = keras.backend.standardize_dtype(y.dtype)
        case.require(found in expected, f"with dtype={dtype!r} the output is {found}")
    if case.fixed:
        gap = _gap(case.run(mixed, case.x), case.run(layer, case.x))
        case.require(gap <= _BFLOAT16, f"in mixed bfloat16 it is off by {gap:.3g}")


def _compilation(case: _Case) -> bool:
    if not case.fixed or not backend.compiles():
        return False
    layer = case.copy("random")
    y = backend.jit(_at_inference(layer))(ops.convert_to_tensor(case.x))
    gap = _gap(backend.to_numpy(y), case.run(layer, case.x))
    case.require(gap <= _FLOAT32, f"compiled, its output differs by {gap:.3g}")
    return True


def _batches(case: _Case) -> bool:
    if not case.fixed or depends_on_batch(case.copy("random")):
        return False
    layer = case.copy("random")
    together = case.run(layer, case.x)
    alone = case.run(layer, case.x[1:2])
    case.require(alone.shape == together[1:2].shape, "its output depends on the batch size")
    other = case.x.copy()
    other[[0, 2]] *= -3.0  # neighbours of another mean and size
    for found in (alone[0], case.run(layer, other)[1]):
        gap = _gap(found, together[1])
        case.require(
            gap <= _FLOAT32,
            f"an example's output changes by {gap:.3g} with the other examples of its batch",
        )
    return True


# --- what dynzoo asks of a layer ---------------------------------------------------------------


def _twin(case: _Case) -> bool:
    if not hasattr(type(case.layer), "call_float64") or not case.fixed:
        return False
    for weights in ("own", "random"):
        layer = case.copy(weights)
        for scale in (1.0, 30.0):
            x = np.float32(scale) * case.x
            y, twin = case.run(layer, x), layer.call_float64(x)
            case.require(
                isinstance(twin, np.ndarray) and twin.dtype == np.float64,
                f"`call_float64` gives {getattr(twin, 'dtype', type(twin).__name__)}, not float64",
            )
            case.require(
                twin.shape == y.shape,
                f"`call_float64` gives the shape {twin.shape}, `call` {y.shape}",
            )
            gap = _gap(y, twin)
            case.require(
                gap <= _FLOAT32,
                f"`call_float64` differs from `call` by {gap:.3g}, relative to the output",
            )
    return True


def _bound(case: _Case) -> bool:
    for weights in ("own", "random", "projected"):
        layer = case.copy(weights)
        bound = _stated_bound(case, layer)
        if bound is None:
            return False
        found = _slope(case, layer)
        case.require(
            found <= bound * (1 + _slack(layer)),
            f"`lipschitz_bound` is {bound:.6g}, and two inputs show a slope of {found:.6g}",
        )
    return True


def _stated_bound(case: _Case, layer: Any) -> float | None:
    """What `lipschitz_bound` says, if the layer as it is configured has a bound."""
    if not hasattr(type(layer), "lipschitz_bound") or not case.fixed:
        return None
    try:
        bound = layer.lipschitz_bound((None, *case.shape))
    except ValueError as error:
        case.require(layer.name in str(error), f"`lipschitz_bound`, without its name: {error}")
        return None
    case.require(
        isinstance(bound, float) and bound >= 0,
        f"`lipschitz_bound` gives {bound!r}, which is no number of at least 0",
    )
    return bound


def _slack(layer: Any) -> float:
    return _FLOAT64 if hasattr(type(layer), "call_float64") else 1e-3


def _slope(case: _Case, layer: Any, of: Callable[..., Any] | None = None) -> float:
    """Largest |f(x) - f(y)| / |x - y| over pairs that a search finds; f is the layer or `of`."""
    function, worst = of or case.function(layer), 0.0
    distances = _DISTANCES if hasattr(type(layer), "call_float64") else _DISTANCES[2:]
    for x in (case.x[0].astype(np.float64), 10.0 * case.x[1]):
        directions = case.rng.normal(size=(4, x.size))
        if x.size <= _DENSE:
            steepest = np.linalg.svd(_jacobian(function, x))[2][:2]
            directions = np.concatenate([steepest, directions])
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        moves = np.concatenate([d * directions for d in distances])
        ends = function(x + moves.reshape(-1, *x.shape)) - function(x[None])
        slopes = np.linalg.norm(ends.reshape(len(moves), -1), axis=1)
        worst = max(worst, float(np.max(slopes / np.linalg.norm(moves, axis=1))))
    return worst


def _jacobian(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """By central differences; (outputs, inputs)."""
    x = np.asarray(x, dtype=np.float64)
    step = np.eye(x.size).reshape(-1, *x.shape) * 1e-5
    return ((function(x + step) - function(x - step)).reshape(x.size, -1) / 2e-5).T


def _guarantees(case: _Case) -> bool:
    if not hasattr(type(case.layer), "guarantees"):
        return False
    layer = case.copy("projected")
    found = layer.guarantees()
    case.require(isinstance(found, list), "`guarantees` must give a list of `Guarantee`")
    for guarantee in found:
        case.require(
            isinstance(guarantee, Guarantee), f"`guarantees` gives {guarantee!r}, no `Guarantee`"
        )
        data = json.loads(json.dumps(guarantee.to_dict()))
        case.require(Guarantee(**data) == guarantee and str(guarantee), "a guarantee is not data")
        if not case.fixed:
            continue
        measure = _PROPERTIES.get(guarantee.property)
        if measure is not None and measure(case, layer, guarantee) is not False:
            case.made.append(f"guarantee: {guarantee.property}")
    return True


def _certificate(case: _Case) -> None:
    layer = case.again()
    model = keras.Sequential([keras.Input(case.shape), layer, keras.layers.Flatten()])
    model.add(keras.layers.Dense(3))
    layer.set_weights(case.copy("projected").get_weights())
    bound = _stated_bound(case, layer)
    finite = bound is not None and math.isfinite(bound) and hasattr(type(layer), "call_float64")
    try:
        certificate = certify(model)
    except ValueError as error:
        case.require(
            layer.name in str(error), f"`certify` refuses it without its name: {short(error, 300)}"
        )
        owed = finite and not depends_on_batch(layer)
        case.require(
            not owed or not isinstance(error, UncertifiableLayerError),
            f"`certify` refuses it though it states a bound: {short(error, 300)}",
        )
        return
    case.require(math.isfinite(certificate.lipschitz), "its certificate is not finite")


# --- guarantees whose meaning is known ---------------------------------------------------------


def _lipschitz(case: _Case, layer: Any, guarantee: Guarantee) -> bool:
    if guarantee.value is None:
        return False
    # What is said of every step of a flow is said of the flow to that power.
    limit = guarantee.value ** int(layer.get_config().get("steps", 1))
    found = _slope(case, layer)
    _hold(case, guarantee, found <= limit * (1 + 1e-4), f"a slope of {found:.6g}")
    return True


def _firm(case: _Case, layer: Any, guarantee: Guarantee) -> bool:
    # Of one step; a composition of several need not have it.
    if int(layer.get_config().get("steps", 1)) > 1 or not hasattr(type(layer), "call_float64"):
        return False
    found = _slope(case, layer, lambda x: 2.0 * layer.call_float64(x) - x)
    shown = f"a slope of {found:.6g} of its reflection"
    _hold(case, guarantee, found <= 1.0 + 1e-4, shown)
    return True


def _logits(case: _Case, layer: Any, guarantee: Guarantee) -> bool:
    if guarantee.value is None or math.prod(case.shape) > _DENSE:
        return False
    rows = np.linalg.norm(_jacobian(case.function(layer), case.x[0]), axis=1)
    _hold(case, guarantee, rows.max() <= guarantee.value * (1 + 1e-4), f"a slope of {rows.max():g}")
    return True


def _norm_kept(case: _Case, layer: Any, guarantee: Guarantee) -> None:
    before = np.linalg.norm(case.x.astype(np.float64), axis=-1)
    after = np.linalg.norm(case.run(layer, case.x).astype(np.float64), axis=-1)
    off = float(np.max(np.abs(after / before - 1)))
    _hold(case, guarantee, off <= (guarantee.value or 1e-5), f"a norm that changed by {off:.3g}")


def _invertible(case: _Case, layer: Any, guarantee: Guarantee) -> None:
    back = backend.to_numpy(layer.inverse(ops.convert_to_tensor(case.run(layer, case.x))))
    off = _gap(back, case.x)
    _hold(case, guarantee, off <= 1e-3, f"an input that comes back off by {off:.3g}")


def _matrix(test: Callable[[np.ndarray], float], what: str) -> Callable[..., bool]:
    """A check of the Jacobian of a layer with as many outputs as inputs."""

    def measure(case: _Case, layer: Any, guarantee: Guarantee) -> bool:
        if math.prod(case.shape) > _DENSE or not hasattr(type(layer), "call_float64"):
            return False
        off = max(test(_jacobian(layer.call_float64, x)) for x in case.x[:2])
        _hold(case, guarantee, off <= 1e-3, f"{what} off by {off:.3g}")
        return True

    return measure


def _volume(m: np.ndarray) -> float:
    return abs(float(np.linalg.det(m)) - 1.0)


def _orthogonal(m: np.ndarray) -> float:
    return float(np.max(np.abs(m.T @ m - np.eye(m.shape[1]))))


def _symplectic(case: _Case, layer: Any, guarantee: Guarantee) -> bool:
    # The halves of one vector; of an image each pixel has its own, and the form is larger.
    if guarantee.value is not None or len(case.shape) != 1:
        return False
    half = case.shape[0] // 2
    form = np.kron([[0.0, 1.0], [-1.0, 0.0]], np.eye(half))
    return _matrix(
        lambda m: float(np.max(np.abs(m.T @ form @ m - form))), "the form of the Jacobian"
    )(case, layer, guarantee)


def _hold(case: _Case, guarantee: Guarantee, kept: Any, shown: str) -> None:
    value = "" if guarantee.value is None else f" [{guarantee.value:.6g}]"
    case.require(kept, f"the guarantee '{guarantee.property}'{value} does not hold: {shown}")


_PROPERTIES: dict[str, Callable[..., Any]] = {
    "1-Lipschitz": _lipschitz,
    "Lipschitz": _lipschitz,
    "firmly non-expansive": _firm,
    "1-Lipschitz logits": _logits,
    "norm kept": _norm_kept,
    "invertible": _invertible,
    "volume kept": _matrix(_volume, "the determinant of the Jacobian is"),
    "orthogonal Jacobian": _matrix(_orthogonal, "the Jacobian is no rotation,"),
    "symplectic": _symplectic,
}

_CHECKS: dict[str, Callable[[_Case], Any]] = {
    "config": _config,
    "shapes": _shapes,
    "dtypes": _dtypes,
    "batch sizes": _batches,
    "compilation": _compilation,
    "saving": _saving,
    "float64 twin": _twin,
    "lipschitz bound": _bound,
    "guarantees": _guarantees,
    "certificate": _certificate,
}
