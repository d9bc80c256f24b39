"""Random points of the ball: the weakest attacks, which a gradient attack must beat."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynzoo.attacks.base import Attack
from dynzoo.attacks.losses import margins
from dynzoo.inference.passes import mean_logits
from dynzoo.utils.arguments import integer


class _Noise(Attack):
    """Tries random points of the ball and keeps the one of the largest margin."""

    black_box = True

    def __init__(
        self,
        norm: str = "l2",
        eps: float = 0.5,
        seed: int = 0,
        draws: int = 100,
        batch_size: int = 256,
    ) -> None:
        super().__init__(norm, eps, seed, False, 1, batch_size)
        self.draws = self.queries = integer("draws", draws)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """One random perturbation in the ball."""
        raise NotImplementedError

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
        best, best_gap = x.copy(), np.full(len(x), -np.inf)
        # One generator for each image: neither the batch nor the fate of others matters.
        generators = [np.random.default_rng([self.seed, int(i), restart]) for i in indices[:real]]
        rows = np.arange(real)
        for _ in range(self.draws):
            noise = np.stack([self.draw(generators[row], x.shape[1:]) for row in rows])
            points = np.clip(x[rows] + noise, 0.0, 1.0).astype(np.float32)
            gap = margins(mean_logits(model, points, self.batch_size), y[rows])
            better = gap > best_gap[rows]
            best[rows[better]], best_gap[rows[better]] = points[better], gap[better]
            rows = rows[best_gap[rows] <= 0.0]
            if not rows.size:
                break
        return best, best_gap


class GaussianNoise(_Noise):
    r"""Gaussian noise, rescaled to length eps; the worst of a number of draws by the margin.

    $x' = \mathrm{clip}(x + \varepsilon\,g/\|g\|)$ with $g \sim N(0, I)$ and the attack's norm: for
    L2 a uniform direction. A model that falls to this has no robustness worth the name, and an
    image that falls to this but not to a gradient attack exposes the latter.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        eps: radius of the ball, > 0.
        seed: seed of the noise.
        draws: points tried for each image, >= 1.
        batch_size: images processed at once.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> import keras, numpy as np
    >>> from dynzoo.attacks import GaussianNoise
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")
    >>> GaussianNoise(eps=0.1, draws=5)(model, x, y).shape
    (5, 4)

    Reference: Carlini et al., "On evaluating adversarial robustness" (2019), evaluation checklist.
    """

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        noise = rng.standard_normal(shape)
        length = np.abs(noise).max() if self.norm == "linf" else np.linalg.norm(noise)
        return noise * (self.eps / max(float(length), 1e-30))


class UniformNoise(_Noise):
    r"""Points drawn uniformly from the ball; the worst of a number of draws by the margin.

    For Linf every pixel is uniform in $[-\varepsilon, \varepsilon]$; for L2 the direction is
    uniform and the length is $\varepsilon\,u^{1/d}$ with $u$ uniform in $[0, 1]$. The box cuts what
    leaves it.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        eps: radius of the ball, > 0.
        seed: seed of the noise.
        draws: points tried for each image, >= 1.
        batch_size: images processed at once.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> import keras, numpy as np
    >>> from dynzoo.attacks import UniformNoise
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")
    >>> UniformNoise(norm="linf", eps=0.1, draws=5)(model, x, y).shape
    (5, 4)

    Reference: Carlini et al., "On evaluating adversarial robustness" (2019), evaluation checklist.
    """

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        if self.norm == "linf":
            return rng.uniform(-self.eps, self.eps, size=shape)
        noise = rng.standard_normal(shape)
        length = self.eps * rng.uniform() ** (1.0 / noise.size)
        return noise * (length / max(float(np.linalg.norm(noise)), 1e-30))
