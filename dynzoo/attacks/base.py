"""What every attack shares: checked arguments, batches of fixed shape, restarts, and the proof
that what is returned lies in the ball and fools the model."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from dynzoo import backend
from dynzoo.attacks.geometry import NORMS, enclose

# Compiled functions of each model. Keys are weak, and `backend.inference` holds the model weakly,
# so that deleting a model frees what was compiled for it.
_COMPILED: weakref.WeakKeyDictionary[Any, dict[Any, Callable[..., Any]]] = (
    weakref.WeakKeyDictionary()
)


def compiled(model: Any, key: Any, make: Callable[[Callable[..., Any]], Any]) -> Callable[..., Any]:
    """Compiled `make(inference)` of a model, traced once per model, key and set of variables.

    `make` gets the pure function `(weights, x) -> outputs` and returns a function whose first
    argument is `weights`; the result takes the other arguments and passes the present weights.
    """
    key = (key, tuple(id(v) for v in model.variables))
    cache = _COMPILED.setdefault(model, {})
    if key not in cache:
        cache[key] = backend.without_grad(backend.jit(make(backend.inference(model))))
    weights = backend.weights_of(model)
    return lambda *args: cache[key](weights, *args)


def batches(count: int, batch_size: int) -> list[tuple[np.ndarray, int]]:
    """Row numbers of each batch, padded to a few fixed sizes, and how many of them are real.

    A compiled function is traced once for each shape, so the last batch is padded (by repeating
    its first row) to the smallest of `batch_size`, a quarter and a sixteenth of it that holds it.
    """
    sizes = sorted({max(1, batch_size // part) for part in (1, 4, 16)})
    result = []
    for start in range(0, count, batch_size):
        rows = np.arange(start, min(start + batch_size, count))
        real = len(rows)
        if backend.compiles():
            size = next(size for size in sizes if size >= real)
            rows = np.concatenate([rows, np.full(size - real, start)])
        result.append((rows, real))
    return result


def predict_logits(model: Any, x: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """Float32 logits of shape (n, classes) with `training=False`, compiled, in padded batches."""
    run = compiled(model, "logits", lambda f: lambda weights, x: ops.cast(f(weights, x), "float32"))
    parts = []
    for rows, real in batches(len(x), batch_size):
        logits = backend.to_numpy(run(ops.convert_to_tensor(x[rows], dtype="float32")))
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError(
                "The model must return logits of shape (n, classes) with at least 2 classes. "
                f"Received: outputs of shape {logits.shape}"
            )
        parts.append(logits[:real])
    return np.concatenate(parts)


def check_images(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """`x` and `y` as arrays, or a ValueError that says what is wrong with them."""
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim < 2 or not (np.issubdtype(x.dtype, np.floating) or x.dtype.kind in "iub"):
        raise ValueError(
            "`x` must be a numeric array of shape (n, ...) with values in [0, 1]. "
            f"Received: shape {x.shape}, dtype {x.dtype}"
        )
    if x.dtype != np.float64:
        x = x.astype(np.float32, copy=False)
    if not len(x):
        raise ValueError("`x` must hold at least one image. Received: an empty array")
    low, high = float(x.min()), float(x.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError("`x` must be finite. Received: an array with NaN or infinity")
    if low < 0.0 or high > 1.0:
        raise ValueError(f"`x` must lie in [0, 1]. Received: values from {low} to {high}")
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(
            f"`y` must be integer labels of shape (n,). Received: shape {y.shape}, dtype {y.dtype}"
        )
    if len(x) != len(y):
        raise ValueError(
            f"`x` and `y` must have the same length. Received: {len(x)} images, {len(y)} labels"
        )
    return x, y.astype(np.int64)


def check_labels(y: np.ndarray, classes: int) -> None:
    """Raise a ValueError if a label is not below the number of logits."""
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(
            f"`y` must hold labels from 0 to {classes - 1}, one for each of the {classes} logits. "
            f"Received: labels from {y.min()} to {y.max()}"
        )


def positive_int(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int, or a ValueError that names the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}. Received: {value!r}")
    return int(value)


def positive_float(name: str, value: Any) -> float:
    """`value` as a finite float above 0, or a ValueError that names the argument."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not (np.isfinite(number) and number > 0.0):
        raise ValueError(f"`{name}` must be a finite number above 0. Received: {name}={value!r}")
    return number


class Attack:
    r"""Search for $x'$ with $\|x' - x\| \le \varepsilon$, $x' \in [0, 1]^d$, that fools a model.

    A subclass implements `search`. Calling an attack returns float32 points of which each lies in
    the ball and in the box (checked in float64) and which are the best found: a point that fools
    the model in inference mode if there was one, else the one of the highest loss. Images that
    need no attack (already wrong, or already the target class) are returned unchanged. The result
    is a function of the arguments and of each image's index, not of the batch size.

    Args:
        norm: `"l2"` or `"linf"`.
        eps: Radius of the ball, in units of the pixel range [0, 1], > 0.
        seed: Non-negative seed of everything random.
        targeted: If true, `y` is the class to reach; else it is the true label.
        restarts: How often images that still resist are attacked, >= 1.
        batch_size: Images processed at once, >= 1.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        norm: str = "l2",
        eps: float = 0.5,
        seed: int = 0,
        targeted: bool = False,
        restarts: int = 1,
        batch_size: int = 256,
    ) -> None:
        if norm not in NORMS:
            raise ValueError(f"`norm` must be one of {NORMS}. Received: norm={norm!r}")
        self.norm = norm
        self.eps = positive_float("eps", eps)
        self.seed = positive_int("seed", seed, least=0)
        self.targeted = bool(targeted)
        self.restarts = positive_int("restarts", restarts)
        self.batch_size = positive_int("batch_size", batch_size)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able: `type(attack)(**attack.get_config())` is its copy."""
        names = [p for p in inspect.signature(type(self).__init__).parameters if p != "self"]
        return {name: getattr(self, name) for name in names}

    def at(self, eps: float) -> Attack:
        """Copy of the attack with another radius; a step size that was given scales with it."""
        config = {**self.get_config(), "eps": eps}
        if config.get("step_size") is not None:
            config["step_size"] = config["step_size"] * float(eps) / self.eps
        return type(self)(**config)

    def __repr__(self) -> str:
        config = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({config})"

    def search(
        self,
        model: Any,
        x: np.ndarray,
        y: np.ndarray,
        logits: np.ndarray,
        indices: np.ndarray,
        real: int,
        restart: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One run on one padded batch.

        Args:
            model: The attacked Keras model.
            x: Float32 array of shape (batch, ...).
            y: Int64 array of shape (batch,): labels or targets.
            logits: Float32 array of shape (batch, classes): logits of the clean images.
            indices: Int64 array of shape (batch,): key of each image's random numbers.
            real: Only the first `real` rows are images; the rest is padding.
            restart: Number of the run, from 0.

        Returns:
            Points of shape (batch, ...) and the loss of each, of shape (batch,).
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement `search`.")

    def check_classes(self, classes: int) -> None:
        """Raise a ValueError if the attack is not defined for this number of classes."""

    def fooled(self, logits: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Which rows of logits are a success of the attack. Shape (n,), bool."""
        hit = logits.argmax(axis=1) == y
        return hit if self.targeted else ~hit

    def __call__(self, model: Any, x: Any, y: Any, indices: np.ndarray | None = None) -> np.ndarray:
        """Attack images.

        Args:
            model: Built Keras model that maps a batch of images to logits.
            x: Array of shape (n, ...) with values in [0, 1].
            y: Integer array of shape (n,): true labels, or targets if `targeted`.
            indices: Integer array of shape (n,) that keys each image's random numbers; 0 to n-1
                by default. A caller that attacks a part of a data set passes positions in it.

        Returns:
            Float32 array of the shape of `x`.

        Raises:
            ValueError: If `x` is not finite or not in [0, 1], or `y` does not fit `x` or the model.
        """
        given, y = check_images(x, y)
        # The ball is around what the caller gave, float64 included; the model sees float32.
        x = given.astype(np.float32, copy=False)
        indices = np.arange(len(x)) if indices is None else np.asarray(indices)
        clean = predict_logits(model, x, self.batch_size)
        check_labels(y, clean.shape[1])
        self.check_classes(clean.shape[1])

        best = np.array(x, dtype=np.float32)
        best_loss = np.full(len(x), -np.inf)
        open_rows = np.flatnonzero(~self.fooled(clean, y))
        for restart in range(self.restarts):
            still = []
            for picks, real in batches(len(open_rows), self.batch_size):
                rows = open_rows[picks]
                points, loss = self.search(
                    model, x[rows], y[rows], clean[rows], indices[rows], real, restart
                )
                rows = rows[:real]
                points = enclose(points[:real], given[rows], self.eps, self.norm)
                # The point is judged again after it was drawn into the ball, by a plain forward
                # pass: success claimed by the search alone could be a rounding artefact.
                success = self.fooled(predict_logits(model, points, self.batch_size), y[rows])
                better = success | (loss[:real] > best_loss[rows])
                best[rows[better]] = points[better]
                best_loss[rows[better]] = loss[:real][better]
                still.append(rows[~success])
            if not still:
                break
            open_rows = np.concatenate(still)
        return best
