"""Is a model's answer to an example its own? Found out by changing who is in the batch with it.

A comparison of answers shows a mixture and never the absence of one: a model may look at its
companions only where they meet a condition that none of these meets, or from its thousandth call
on. What is compared leaves little room for accidents: where an example stays at its place in a
batch of the same length, its logits must not change *at all* but for the order of a sum, and among
the companions are NaN, which spreads through every sum, product, sort and maximum that it enters,
however small its weight there is.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from dynzoo.backend import name as backend_name
from dynzoo.backend import without_grad
from dynzoo.inference.model_layers import flat_layers
from dynzoo.inference.passes import predict_logits

__all__ = [
    "SAME",
    "Difference",
    "differs",
    "find_difference",
    "find_mixing",
    "rounding_of",
    "written_variables",
]

# Examples that are looked at, and the length of a batch with their companions: one that is compiled
# for the end of a data set in any case.
ROWS, BATCH = 3, 16
# Relative differences that are rounding: in the same place of the same compiled function, and
# between two functions, one of which may multiply in TensorFloat-32.
SAME, ROUNDING = 1e-5, 1e-3


class Difference(str):
    """What is wrong with a model, as the end of a sentence that starts with the model.

    Attributes:
        kind: `"mixes"`, `"random"` or `"size"`.
        layer: the layer or operation in whose output it shows first, `None` where not known.
    """

    kind: str
    layer: str | None

    def __new__(cls, text: str, kind: str, layer: str | None = None) -> Difference:
        self = super().__new__(cls, text)
        self.kind, self.layer = kind, layer
        return self


def rounding_of(model: Any) -> float:
    """Relative difference that rounding makes between two batch lengths, by the model's dtypes."""
    half = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
    used = {str(getattr(layer, "compute_dtype", "float32")) for layer in flat_layers(model)}
    return max([ROUNDING, *(16 * eps for dtype, eps in half.items() if dtype in used)])


def differs(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """Whether logits (n, K) differ by more than a share of their size; NaN must stand beside NaN.

    Args:
        a: array (n, K).
        b: array (n, K).
        tolerance: share of the largest finite logit of `a`.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(np.where(finite, 0.0, a), np.where(finite, 0.0, b), equal_nan=True):
        return True
    if not finite.any():
        return False
    gap = np.abs(a[finite] - b[finite]).max()
    return bool(gap > tolerance * np.abs(a[finite]).max())


def companions(rows: np.ndarray, count: int) -> list[tuple[str, np.ndarray]]:
    """Batches of `count` companions for the rows: likely ones first, then extreme ones."""
    rng = np.random.default_rng(0)
    own: np.ndarray = np.resize(rows, (count, *rows.shape[1:]))
    size = max(float(np.abs(rows).max()), 1e-3)
    noise = rng.standard_normal(own.shape, np.float32)

    def constant(value: float) -> np.ndarray:
        return np.full(own.shape, value, np.float32)

    with np.errstate(over="ignore"):
        return [
            ("copies of the examples", own),
            ("zeros", constant(0.0)),
            ("negatives", -own),
            ("noise", size * noise),
            ("images a hundred times as large", 100 * own),
            ("their negatives", -100 * own),
            ("noise a thousand times as large", 1000 * size * noise),
            ("large constants", constant(1e4 * size)),
            ("huge constants", constant(1e30)),
            ("infinity", constant(np.inf)),
            ("NaN", constant(np.nan)),
        ]


def find_difference(model: Any, x: np.ndarray) -> Difference | None:
    """Why the answers of a model to examples depend on more than the example, or `None`.

    Beside what `find_mixing` looks at, the model must assign no variable, such as the state of a
    generator or a counter, and give the same answers twice.

    Args:
        model: built Keras model, inputs to logits.
        x: array (n, ...), n >= 1, of which a few are looked at.

    Example:

    >>> inputs = keras.Input((3,))
    >>> model = keras.Model(inputs, inputs - ops.mean(inputs, axis=0))
    >>> find_difference(model, np.eye(3)).layer
    'mean'
    """
    rows = np.ascontiguousarray(x[:ROWS], dtype=np.float32)
    if written := written_variables(model, rows[:1]):
        return Difference(
            f"changes {written[0]!r} when it is called, so that an answer depends on the calls "
            "before it",
            "random",
        )
    return find_mixing(model, rows)


def find_mixing(model: Any, x: np.ndarray) -> Difference | None:
    """How the answers of a model to examples depend on their batch, or `None`.

    The first few examples are run alone, in a batch, twice, in another order and with other
    companions. Companions that a model refuses, as an embedding does large numbers, tell nothing.

    Args:
        model: built Keras model, inputs to logits.
        x: array (n, ...), n >= 1.
    """
    rows = np.ascontiguousarray(x[:ROWS], dtype=np.float32)
    n, tolerance = len(rows), rounding_of(model)
    (_, likely), *others = companions(rows, BATCH - n)

    def logits(images: np.ndarray) -> np.ndarray:
        return predict_logits(model, images, len(images))

    try:
        alone = np.concatenate([logits(row[None]) for row in rows])
        batch = np.concatenate([rows, likely])
        first = logits(batch)[:n]
    except ValueError as error:
        if "must return logits" in str(error):
            raise
        return _size(error)
    except Exception as error:  # each backend has its own
        return _size(error)
    if differs(first, logits(batch)[:n], SAME):
        return Difference("gives two answers to one example", "random")
    for what, companion in others:
        changed = np.concatenate([rows, companion])
        try:
            found = logits(changed)[:n]
        except Exception:  # refused, which is no answer
            continue
        if differs(first, found, SAME):
            layer = _first_layer(model, batch, changed, n)
            where = f" (first seen at {layer!r})" if layer else ""
            return Difference(
                f"mixes the examples of a batch{where}: an answer changes where its companions "
                f"are replaced by {what}",
                "mixes",
                layer,
            )
    if differs(alone, first, tolerance) or differs(
        alone, logits(np.concatenate([likely, rows])[::-1])[:n][::-1], tolerance
    ):
        return Difference(
            "mixes the examples of a batch: an answer depends on the length of the batch, or on "
            "the place in it",
            "mixes",
        )
    return None


def _size(error: Exception) -> Difference:
    line = str(error).strip().split("\n")[0][:200]
    return Difference(f"does not take batches of any size: {line}", "size")


def written_variables(model: Any, x: np.ndarray) -> list[str]:
    """Names of the variables that a pass at inference assigns, such as the state of a generator.

    Nothing is changed: the pass runs in a stateless scope, and on JAX without any computation.
    """
    variables = list(model.variables)
    values = [v.value for v in variables]
    seen: dict[str, Any] = {}

    def run(values: list[Any], x: Any) -> Any:
        before = dict(zip(map(id, variables), values, strict=True))
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            given = dict(scope.state_mapping)
            result = model(x, training=False)
            after = scope.state_mapping
        changed = [v.path for v in variables if after[id(v)] is not given[id(v)]]
        changed += ["a variable that is not the model's"] * (set(after) > set(before))
        seen["names"] = changed
        return result

    tensor = keras.ops.convert_to_tensor(x, dtype="float32")
    try:
        if backend_name() == "jax":
            import jax

            jax.eval_shape(run, values, tensor)
        else:
            without_grad(run)(values, tensor)
    except Exception:  # the passes themselves will say what is wrong
        return []
    return seen["names"]


def _first_layer(model: Any, batch: np.ndarray, changed: np.ndarray, n: int) -> str | None:
    """Name of the call of a model's graph in whose output the first `n` rows differ first."""
    try:
        calls = [layer for layer in model.operations if layer._inbound_nodes]
        outputs = [(c.name, t) for c in calls for t in keras.tree.flatten(c.output)]
    except Exception:  # no graph, or a layer that is called twice
        return None
    outputs = [(name, t) for name, t in outputs if t.shape and t.shape[0] is None]
    try:
        parts = keras.Model(model.inputs, [t for _, t in outputs])
        found = [parts(keras.ops.convert_to_tensor(x), training=False) for x in (batch, changed)]
        for (name, _), *pair in zip(outputs, *found, strict=True):
            a, b = (np.asarray(keras.ops.convert_to_numpy(t), np.float64)[:n] for t in pair)
            if differs(a.reshape(n, -1), b.reshape(n, -1), SAME):
                return name
    except Exception:  # it only helps to name a fault that is already found
        return None
    return None
