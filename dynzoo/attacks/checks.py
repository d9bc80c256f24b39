"""Cheap checks that expose an evaluation whose robustness is only a failure of the attack.

Each looks at a few images and returns named warnings. They are diagnostics: silence proves
nothing, but a warning says why a robust accuracy must not be believed.

Reference: Carlini et al., *On evaluating adversarial robustness* (2019), evaluation checklist;
Athalye, Carlini and Wagner, *Obfuscated gradients give a false sense of security* (2018).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from keras import ops

from dynzoo import backend
from dynzoo.attacks.base import compiled, predict_logits
from dynzoo.attacks.losses import margin
from dynzoo.attacks.pgd import PGD
from dynzoo.random_layers import Draws, layers_with

# Images that a check looks at, and the share of them that may misbehave.
SAMPLE = 64
TOLERANCE = 0.02


@dataclass(frozen=True)
class EvaluationWarning:
    """A named reason to doubt a number of a report."""

    name: str
    text: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def check_layers(model: Any, x: np.ndarray) -> list[EvaluationWarning]:
    """Warn of layers that are random at inference, or mix the examples of a batch.

    Raises:
        ValueError: If the model takes batches of one size only, such as a graph whose nodes are
            the images: attacks go on with the images that still resist, hence with smaller ones.
    """
    warnings = []
    if names := layers_with(model, "random_at_inference"):
        warnings.append(EvaluationWarning("randomised-model", f"{_layers(names)}. {_RANDOM}"))
    if names := layers_with(model, "depends_on_batch"):
        warnings.append(EvaluationWarning("batch-dependent-model", f"{_layers(names)}. {_BATCH}"))
        try:
            for size in (1, 2):
                predict_logits(model, x[:2], size)
        except Exception as error:  # each backend has its own
            raise ValueError(
                "`model` must take batches of any size: attacks go on with the images that still "
                f"resist. {_layers(names)} does not: {error}"
            ) from error
    return warnings


_RANDOM = (
    "The model is random at inference, and each number is that of one draw. The attacks follow one "
    "draw at a time, without the expectation over the noise, so the attacked accuracy is too high: "
    "attack `inference='mean'` where the layer has it, or certify by randomised smoothing."
)
_BATCH = (
    "An output depends on the other images of its batch, so that the numbers hold for the batches "
    "seen here alone, and a change of one image changes the answers to others. The attacks do not "
    "hold a batch together, so the attacked accuracy is not a bound: use a model that treats each "
    "image by itself."
)


def _layers(names: list[str]) -> str:
    return ("Layer " if len(names) == 1 else "Layers ") + ", ".join(repr(n) for n in names)


def check_outputs(model: Any, x: np.ndarray, draws: Draws | None = None) -> list[EvaluationWarning]:
    """Warn of outputs that change between two passes or with the batch, and of probabilities.

    `draws` gives each pass noise of its own, also where a compiled pass would repeat its noise.
    """
    draws = draws or Draws(model, 0)
    key = (2**20,)  # apart from the numbers that are counted

    def logits(x: np.ndarray, *key: int) -> np.ndarray:
        draws.fresh(*key)
        return predict_logits(model, x, SAMPLE)

    first, second = logits(x, *key), logits(x)
    warnings = []
    scale = max(float(np.abs(first).max()), 1e-30)
    half = len(x) // 2
    others = logits(np.concatenate([x[:half], x[:1].repeat(len(x) - half, axis=0)]), *key)
    if not np.isfinite(first).all():
        warnings.append(
            EvaluationWarning("non-finite-logits", "The model returns NaN or infinite logits.")
        )
    elif float(np.abs(first - second).max()) / scale > 1e-4:
        warnings.append(
            EvaluationWarning(
                "randomised-model",
                f"Two passes over the same images give different logits. {_RANDOM}",
            )
        )
    elif float(np.abs(others - first)[:half].max(initial=0.0)) / scale > 1e-3:
        warnings.append(EvaluationWarning("batch-dependent-model", _BATCH))
    if first.min() >= 0.0 and np.allclose(first.sum(axis=1), 1.0, atol=1e-4):
        warnings.append(
            EvaluationWarning(
                "probabilities",
                "The outputs look like probabilities. Attacks and certificates need logits: "
                "remove the final softmax.",
            )
        )
    return warnings


def check_gradients(model: Any, x: np.ndarray, y: np.ndarray) -> list[EvaluationWarning]:
    """Warn if the margin's gradient vanishes at clean images, or contradicts a difference.

    The derivative along a random unit direction is compared with a central difference of step
    0.01; a median relative error above one half means that the gradient points elsewhere than
    the function goes.
    """

    def make(infer: Any) -> Any:
        def gradients(weights: Any, x: Any, y: Any) -> Any:
            def objective(x: Any) -> Any:
                losses = margin(ops.cast(infer(weights, x), "float32"), y)
                return ops.sum(losses), losses

            (_, losses), gradient = backend.value_and_grad(objective)(x)
            return losses, gradient

        return gradients

    run = compiled(model, "gradient-check", make)
    target = ops.convert_to_tensor(y.astype("int32"))

    def at(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        losses, gradient = run(ops.convert_to_tensor(points, dtype="float32"), target)
        flat = backend.to_numpy(gradient).reshape(len(points), -1).astype(np.float64)
        return backend.to_numpy(losses).astype(np.float64), flat

    _, gradient = at(x)
    warnings = []
    zero = float((np.abs(gradient).max(axis=1) == 0.0).mean())
    if zero > TOLERANCE:
        warnings.append(
            EvaluationWarning(
                "zero-gradients",
                f"The gradient of the margin vanishes at {zero:.0%} of the images: gradient "
                "attacks are blind there.",
            )
        )
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(gradient.shape)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    step = (1e-2 * direction).reshape(x.shape).astype(np.float32)
    difference = (at(x + step)[0] - at(x - step)[0]) / 2e-2
    slope = (gradient * direction).sum(axis=1)
    scale = np.maximum(np.maximum(np.abs(difference), np.abs(slope)), 1e-12)
    error = float(np.median(np.abs(slope - difference) / scale))
    if zero <= TOLERANCE and error > 0.5:
        warnings.append(
            EvaluationWarning(
                "gradient-mismatch",
                "The gradient of the margin disagrees with finite differences (median relative "
                f"error {error:.2f}): the model's gradients are masked, noisy or imprecise.",
            )
        )
    return warnings


def check_unbounded(
    model: Any, x: np.ndarray, y: np.ndarray, norm: str, seed: int
) -> list[EvaluationWarning]:
    """Warn if the attack fails even in a ball that holds the whole box.

    With no limit on the perturbation every image can become any other, so each correct image must
    fall; survivors mean that the attack does not find what exists.
    """
    eps = 1.0 if norm == "linf" else float(np.sqrt(x[0].size))
    attack = PGD(norm=norm, eps=eps, seed=seed, steps=50, random_start=False, batch_size=SAMPLE)
    labels = predict_logits(model, attack(model, x, y), SAMPLE).argmax(axis=1)
    left = float((labels == y).mean())
    if left <= TOLERANCE:
        return []
    return [
        EvaluationWarning(
            "unbounded-attack-fails",
            f"{left:.0%} of the tested images resist an attack without any limit on the "
            "perturbation, so the attack is broken by the model and not defeated by robustness.",
        )
    ]


def check_curve(clean: float, robust: dict[float, float], images: int) -> list[EvaluationWarning]:
    """Warn if the attacked accuracy does not fall although the radius at least doubles."""
    radii = sorted(robust)
    first, last = robust[radii[0]], robust[radii[-1]]
    # On a handful of images a flat curve is chance, and at accuracy 0 it is the end of the road.
    if images < 50 or radii[-1] < 2.0 * radii[0] or first == 0.0 or last < first:
        return []
    return [
        EvaluationWarning(
            "flat-curve",
            f"The attacked accuracy stays at {first:.1%} (clean {clean:.1%}) from eps "
            f"{radii[0]:.4g} to {radii[-1]:.4g}. Robustness must fall as the ball grows.",
        )
    ]
