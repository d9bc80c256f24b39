r"""Noise: three corruptions of the benchmark, and noise of any level for accuracy curves."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynzoo.corruptions.streams import Streams
from dynzoo.utils.arguments import one_of

__all__ = ["KINDS", "TABLE", "add_noise", "gaussian_noise", "impulse_noise", "shot_noise"]


def gaussian_noise(x: np.ndarray, sigma: float, streams: Streams) -> np.ndarray:
    r"""$x + \sigma n$ with $n \sim N(0, I)$: electronic noise in low light."""
    return x + sigma * streams(lambda rng: rng.standard_normal(x.shape[1:]))


def shot_noise(x: np.ndarray, photons: float, streams: Streams) -> np.ndarray:
    r"""$\mathrm{Poisson}(c\,x)/c$: the count of photons, $c$ of them at a white pixel."""
    rows = iter(x)
    return streams(lambda rng: rng.poisson(photons * next(rows))) / photons


def impulse_noise(x: np.ndarray, share: float, streams: Streams) -> np.ndarray:
    """Salt and pepper: a share of the values (each channel by itself) becomes 0 or 1."""
    u = streams(lambda rng: rng.random(x.shape[1:]))
    return np.where(u < share / 2, 0.0, np.where(u >= 1.0 - share / 2, 1.0, x))


def _uniform_noise(x: np.ndarray, sigma: float, streams: Streams) -> np.ndarray:
    half = np.sqrt(3.0) * sigma
    return x + half * streams(lambda rng: rng.uniform(-1.0, 1.0, x.shape[1:]))


# What one level means: a standard deviation, or a share of the values.
KINDS = {"gaussian": gaussian_noise, "uniform": _uniform_noise, "salt_and_pepper": impulse_noise}


def add_noise(x: Any, kind: str, level: float, streams: Streams) -> np.ndarray:
    r"""Images with noise of any level, clipped to [0, 1] and not quantised.

    ``"gaussian"``: $x + \sigma n$, $n \sim N(0, I)$. ``"uniform"``: $x + u$, $u$ uniform in
    $[-\sqrt3\sigma, \sqrt3\sigma]$, which has the standard deviation $\sigma$ too.
    ``"salt_and_pepper"``: a share of the values becomes 0 or 1, one half each.

    Args:
        x: float array of shape (n, ...) with values in [0, 1].
        kind: ``"gaussian"``, ``"uniform"`` or ``"salt_and_pepper"``.
        level: standard deviation before the clip in units of the pixel range, >= 0, or share of
            the values in [0, 1].
        streams: random numbers of the images.

    Returns:
        Float32 array of the shape of ``x``.

    Raises:
        ValueError: if ``kind`` or ``level`` is not one of these.

    Example:

    >>> from dynzoo.corruptions import Streams, add_noise
    >>> import numpy as np
    >>> x = np.full((2, 8, 8, 3), 0.5, "float32")
    >>> add_noise(x, "uniform", 0.1, Streams(0, "uniform", np.arange(2))).shape
    (2, 8, 8, 3)
    """
    one_of("kind", kind, KINDS)
    high = 1.0 if kind == "salt_and_pepper" else np.inf
    if not (np.isfinite(level) and 0.0 <= level <= high):
        interval = "[0, 1]" if high == 1.0 else "[0, inf)"
        raise ValueError(f"`level` of {kind!r} must be in {interval}. Received: level={level}")
    noisy = KINDS[kind](np.asarray(x, dtype=np.float64), float(level), streams)
    return np.clip(noisy, 0.0, 1.0).astype(np.float32)


# Name -> function and its parameter at the severities 1 to 5.
TABLE = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
}
