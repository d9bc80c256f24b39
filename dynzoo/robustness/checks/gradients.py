"""Are a model's input gradients what a gradient attack takes them for? Known without an attack.

Three numbers for each loss: how often the gradient vanishes, how far the slope that it promises is
from a difference of the function, and how often a short step along it raises the loss.

Reference: Carlini et al., *On evaluating adversarial robustness* (2019), evaluation checklist;
Athalye, Carlini and Wagner, *Obfuscated gradients give a false sense of security* (2018).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from keras import ops

from dynzoo import backend
from dynzoo.attacks.losses import attack_loss
from dynzoo.inference.passes import compiled
from dynzoo.robustness.checks.warning import EvaluationWarning
from dynzoo.utils.formatting import percent

__all__ = ["GradientCheck", "check_gradients", "gradient_check"]

# Share of vanishing gradients and median relative error that are still fine, and the share of
# images whose loss must rise.
MAX_ZERO, MAX_ERROR, MIN_ASCENT = 0.01, 0.1, 0.9
# Lengths of the steps: the longer one is safe from rounding, the shorter one from curvature.
STEPS = (1e-2, 2e-3)


@dataclass(frozen=True)
class GradientCheck:
    """What `gradient_check` measured for one loss.

    Attributes:
        zero: Share of images at which the gradient is exactly zero.
        error: Median relative difference of the slope from a central difference, along the
            gradient or along a random direction, whichever is larger, and with the step length
            that suits the model better.
        ascent: Share of images whose loss rises by a step of length 0.01 along the gradient.
    """

    zero: float
    error: float
    ascent: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def gradient_check(model: Any, x: np.ndarray, y: np.ndarray, loss: str = "margin") -> GradientCheck:
    r"""Compare the input gradient g of a loss with the loss itself.

    $\langle g, r\rangle$ is compared with $(\ell(x + \delta r) - \ell(x - \delta r)) / 2\delta$
    for r along g and for a random r, both of unit length.

    Args:
        model: Built Keras model, images to logits.
        x: Images of shape (n, ...), better those that are classified right.
        y: Labels of shape (n,).
        loss: `"margin"` or `"ce"`.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> gradient_check(model, np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")).zero
    0.0
    """

    def make(infer: Any) -> Any:
        def gradients(weights: Any, x: Any, y: Any) -> Any:
            def objective(x: Any) -> Any:
                losses = attack_loss(loss, ops.cast(infer(weights, x), "float32"), y, y, False)
                return ops.sum(losses), losses

            (_, losses), gradient = backend.value_and_grad(objective)(x)
            return losses, gradient

        return gradients

    run = compiled(model, ("gradient-check", loss), make)
    target = ops.convert_to_tensor(y.astype("int32"))

    def at(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        losses, gradient = run(ops.convert_to_tensor(points, dtype="float32"), target)
        flat = backend.to_numpy(gradient).reshape(len(points), -1).astype(np.float64)
        return backend.to_numpy(losses).astype(np.float64), flat

    start, gradient = at(x)
    gradient = np.where(np.isfinite(gradient), gradient, 0.0)
    length = np.linalg.norm(gradient, axis=1, keepdims=True)
    steepest = gradient / np.maximum(length, 1e-300)
    random = np.random.default_rng(0).standard_normal(gradient.shape)
    random /= np.linalg.norm(random, axis=1, keepdims=True)

    def error(direction: np.ndarray, step: float) -> tuple[float, np.ndarray]:
        move = (step * direction).reshape(x.shape).astype(np.float32)
        ahead, behind = at(x + move)[0], at(x - move)[0]
        known = np.isfinite(ahead) & np.isfinite(behind)  # no slope where the model gives NaN
        if not known.any():
            return 0.0, ahead
        difference = (ahead[known] - behind[known]) / (2 * step)
        slope = (gradient * direction).sum(axis=1)[known]
        scale = np.maximum(np.maximum(np.abs(difference), np.abs(slope)), 1e-12)
        return float(np.median(np.abs(slope - difference) / scale)), ahead

    along = [error(steepest, step) for step in STEPS]
    across = [error(random, step)[0] for step in STEPS]
    return GradientCheck(
        zero=float((length[:, 0] == 0.0).mean()),
        error=max(min(e for e, _ in along), min(across)),
        ascent=float((along[0][1] > start).mean()),
    )


def check_gradients(model: Any, x: np.ndarray, y: np.ndarray) -> list[EvaluationWarning]:
    """Named warnings of what `gradient_check` finds for the margin and for cross-entropy."""
    warnings = []
    for loss, name in (("margin", "the margin"), ("ce", "cross-entropy")):
        found = gradient_check(model, x, y, loss)
        suffix = "" if loss == "margin" else "-ce"
        if found.zero > MAX_ZERO:
            warnings.append(
                EvaluationWarning(
                    f"zero-gradients{suffix}",
                    f"The gradient of {name} vanishes at {percent(found.zero, 0)} of the images: "
                    "attacks on it are blind there.",
                )
            )
        elif found.error > MAX_ERROR:
            warnings.append(
                EvaluationWarning(
                    f"gradient-mismatch{suffix}",
                    f"The gradient of {name} disagrees with finite differences (median relative "
                    f"error {found.error:.2f}): it is masked, noisy, or too imprecise in float32.",
                )
            )
        elif found.ascent < MIN_ASCENT:
            warnings.append(
                EvaluationWarning(
                    f"no-ascent{suffix}",
                    f"A short step along the gradient of {name} raises it at "
                    f"{percent(found.ascent, 0)} of the images only: gradient attacks go astray.",
                )
            )
    return warnings
