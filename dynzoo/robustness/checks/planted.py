r"""An active test: a point that fools a readout of the model is planted for an attack to find.

For one image x a direction u in logit space, $g(x') = \langle u, f(x')\rangle$ and many random
points of the ball are drawn. The threshold t lies between the largest value of g in the inner part
of the ball and its value at one point of the rim, the planted one. The readout
$(0,\; g(x') - t)$ then classifies x as class 0, and **has** an adversarial example: the planted
point, at the known distance. An attack that does not find one fails by itself, whatever the
robustness of the model.

Reference: Zimmermann et al., *Increasing confidence in adversarial robustness evaluations*
(NeurIPS 2022), section 4, with the logits as features.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from dynzoo.attacks.base import Attack
from dynzoo.attacks.geometry import enclose, random_points
from dynzoo.inference.passes import predict_logits
from dynzoo.robustness.checks.warning import EvaluationWarning
from dynzoo.utils.formatting import percent

__all__ = ["active_test", "check_active"]

IMAGES, POINTS = 10, 128
# Radius of the inner points, relative to the ball's, and how many directions u are tried.
_INNER, _DIRECTIONS = 0.8, 16
MIN_FOUND = 0.8


class _Readout(keras.layers.Layer):
    """(0, s (<u, z> - t)): u, t and s are weights, so that a compiled attack serves all images."""

    def build(self, input_shape: Any) -> None:
        self.direction = self.add_weight(shape=(input_shape[-1],), trainable=False, name="u")
        self.threshold = self.add_weight(shape=(), trainable=False, name="t")
        self.scale = self.add_weight(shape=(), trainable=False, name="s")

    def call(self, z: Any) -> Any:
        g = ops.sum(ops.cast(z, "float32") * self.direction, axis=-1)
        value = self.scale * (g - self.threshold)
        return ops.stack([ops.zeros_like(value), value], axis=-1)


def active_test(model: Any, x: np.ndarray, attack: Attack, seed: int = 0) -> np.ndarray:
    """Whether an attack finds an adversarial example that is known to exist.

    Args:
        model: Built Keras model, images to logits.
        x: Images of shape (n, ...) in [0, 1].
        attack: Untargeted attack; its norm and radius are those of the ball.
        seed: Seed of the planted points.

    Returns:
        Bool array of shape (m,), m <= n: images around which the model is flat, or too curved for
        a plant, are left out.

    Example:

    >>> from dynzoo.attacks import PGD
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> active_test(model, np.full((2, 4), 0.5, "float32"), PGD(eps=0.1)).tolist()
    [True, True]
    """
    readout = _Readout(name="readout")
    inputs = keras.Input(model.input_shape[1:], dtype=getattr(model.inputs[0], "dtype", None))
    planted = keras.Model(inputs, readout(model(inputs, training=False)))
    found = []
    for row, image in enumerate(x):
        rim, inner = _logits_around(model, image, attack, seed, row)
        u, outside, inside = _plant(rim, inner, np.random.default_rng([seed, row, 1]))
        if not outside > inside:
            continue
        readout.direction.assign(u.astype("float32"))
        readout.threshold.assign(np.float32((outside + inside) / 2))
        readout.scale.assign(np.float32(1.0 / (outside - inside)))
        batch, label = image[None], np.zeros(1, dtype=np.int64)
        labels = predict_logits(planted, attack(planted, batch, label), 1).argmax(axis=1)
        found.append(labels[0] == 1)
    return np.array(found, dtype=bool)


def _plant(
    rim: np.ndarray, inner: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float, float]:
    """Direction of the widest gap found, the largest value on the rim, and the largest inside."""
    best = np.zeros(rim.shape[1]), 0.0, 0.0
    for point in rng.permutation(len(rim))[:_DIRECTIONS]:
        # Along a way that the logits do move: across it, a gap would be mere rounding.
        u = rim[point] - inner[0]
        u = u / max(float(np.linalg.norm(u)), 1e-30)
        outside, inside = float((rim @ u).max()), float((inner @ u).max())
        if outside - inside > best[1] - best[2]:
            best = u, outside, inside
    return best


def _logits_around(
    model: Any, image: np.ndarray, attack: Attack, seed: int, row: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of random points on the rim of the ball, and of the image and inner points."""
    copies = np.repeat(image[None], POINTS, axis=0)
    keys = row * POINTS + np.arange(POINTS)
    around = []
    for radius, part in ((attack.eps, 0), (_INNER * attack.eps, 1)):
        points = random_points(copies, radius, attack.norm, seed, keys, part)
        if attack.norm == "linf":  # corners: inside a cube, nearly all points are close to its rim
            points = np.clip(copies + radius * np.sign(points - copies), 0, 1)
        points = enclose(points, copies, attack.eps, attack.norm)
        around.append(predict_logits(model, points, POINTS).astype(np.float64))
    clean = predict_logits(model, image[None], 1).astype(np.float64)
    return around[0], np.concatenate([clean, around[1]])


def check_active(
    model: Any, x: np.ndarray, attack: Attack, seed: int = 0
) -> list[EvaluationWarning]:
    """A named warning if an attack misses more than a few of the planted examples."""
    found = active_test(model, x[:IMAGES], attack, seed)
    if not len(found):
        return [
            EvaluationWarning(
                "active-test-impossible",
                "Random points of the ball do not move the logits apart, so that the attack could "
                "not be tested on a planted example: the model is flat or quantised here.",
            )
        ]
    share = float(found.mean())
    if share >= MIN_FOUND:
        return []
    return [
        EvaluationWarning(
            "active-test-failed",
            f"{type(attack).__name__} finds {percent(share, 0)} of {len(found)} adversarial "
            "examples that were planted in readouts of this model: its failures say nothing of "
            "robustness.",
        )
    ]
