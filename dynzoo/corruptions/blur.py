"""Blur: out of focus, through frosted glass, by motion, by zooming."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from dynzoo.corruptions.streams import Streams

__all__ = ["TABLE", "defocus_blur", "glass_blur", "motion_blur", "smear", "zoom", "zoom_blur"]


def disk(radius: float, sigma: float) -> np.ndarray:
    """Indicator of a disk, smoothed by a Gaussian of three taps, of sum 1."""
    reach = int(np.ceil(radius)) + 1
    i = np.arange(-reach, reach + 1)
    kernel = (i[:, None] ** 2 + i[None, :] ** 2 <= radius**2).astype(np.float64)
    taps = np.exp(-0.5 * (np.arange(-1, 2) / sigma) ** 2)
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, taps, axis=axis, mode="constant")
    return kernel / kernel.sum()


def defocus_blur(x: np.ndarray, c: tuple[float, float], streams: Streams) -> np.ndarray:
    """Convolution with a disk of radius ``c[0]``, its edge smoothed with deviation ``c[1]``."""
    return ndimage.correlate(x, disk(*c)[None, :, :, None], mode="mirror")


def glass_blur(x: np.ndarray, c: tuple[float, int, int], streams: Streams) -> np.ndarray:
    r"""Gaussian blur, pixels that move at random, Gaussian blur.

    A pass sets each inner pixel to one of those up to $\delta$ above and left of it. The official
    program means to exchange the two pixels but does it on views of one array, which loses the
    second of the values; and as it goes from the last pixel to the first, none is read after it
    was written. So its pass is a gather, of the same distribution as here.

    Args:
        x: array of shape (n, h, w, channels).
        c: standard deviation of the Gaussian in pixels, reach $\delta$ in pixels, passes.
        streams: random numbers of the images.
    """
    sigma, reach, passes = c
    count, height, width = x.shape[:3]
    x = np.floor(255.0 * _gaussian(x, sigma) + 1e-3) / 255.0
    image = np.arange(count)[:, None, None]
    rows = np.arange(reach + 1, height - reach + 1)
    columns = np.arange(reach + 1, width - reach + 1)
    shape = (2, len(rows), len(columns))
    for _ in range(passes):
        shift = streams(lambda rng: rng.integers(-reach, reach, size=shape))
        source = x[image, rows[:, None] + shift[:, 0], columns + shift[:, 1]]
        x = x.copy()
        x[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = source
    return _gaussian(x, sigma)


def _gaussian(x: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


def smear(x: np.ndarray, radius: float, sigma: float, degrees: np.ndarray) -> np.ndarray:
    r"""One-sided Gaussian along a line: $x'_p = \sum_{k=0}^{2r} g_k\, x_{p + [k d]}$.

    $g_k \propto e^{-k^2/2\sigma^2}$, $d$ the direction, $[\cdot]$ the nearest pixel; beyond the
    border the outermost pixels repeat.

    Args:
        x: array of shape (n, h, w, channels).
        radius: $r$ in pixels.
        sigma: in pixels.
        degrees: direction of each image, shape (n,).
    """
    taps = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(taps**2) / (2.0 * sigma**2))
    taps, weights = taps[weights > 1e-5], weights[weights > 1e-5]
    weights /= weights.sum()
    height, width = x.shape[1:3]
    pad = len(taps)
    wide = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")
    angle = np.deg2rad(degrees)[:, None]
    down = pad + np.floor(taps * np.sin(angle) + 0.5).astype(int)
    right = pad + np.floor(taps * np.cos(angle) + 0.5).astype(int)
    result = np.zeros_like(x)
    for k in range(len(x)):
        for weight, i, j in zip(weights, down[k], right[k], strict=True):
            result[k] += weight * wide[k, i : i + height, j : j + width]
    return result


def motion_blur(x: np.ndarray, c: tuple[float, float], streams: Streams) -> np.ndarray:
    """``smear`` of radius ``c[0]`` and deviation ``c[1]``, within 45 degrees of level.

    The severities 3 and 4 differ by their radius alone, in taps of weight below 1e-5, and so give
    the same images for the same random numbers.
    """
    degrees = streams(lambda rng: rng.uniform(-45.0, 45.0))
    return np.rint(255.0 * smear(x, *c, degrees)) / 255.0


def zoom(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle of each image, enlarged by linear interpolation to at least the full size."""
    rows, columns = (_enlarge(size, factor) for size in x.shape[1:3])
    # (n, channels, h, w): one small product an image, hence the same sum in any batch
    result = rows @ x.transpose(0, 3, 1, 2) @ columns.T
    return result.transpose(0, 2, 3, 1)


def _enlarge(size: int, factor: float) -> np.ndarray:
    """Matrix (size, size) of the crop, the enlargement and the trim along one axis."""
    kept = int(np.ceil(size / factor))
    enlarged = int(np.floor(kept * factor + 0.5))
    start, trim = (size - kept) // 2, (enlarged - size) // 2
    position = (np.arange(size) + trim) * (kept - 1) / (enlarged - 1)
    distance = np.abs(position[:, None] - np.arange(kept))
    matrix = np.zeros((size, size))
    matrix[:, start : start + kept] = np.maximum(1.0 - distance, 0.0)
    return matrix


def zoom_blur(x: np.ndarray, count: int, streams: Streams) -> np.ndarray:
    """Mean of the image and of its enlargements by 1, 1.01, 1.02, ..., ``count`` of them."""
    total = x.copy()
    for k in range(count):
        total += zoom(x, 1.0 + 0.01 * k)
    return total / (count + 1)


TABLE = {
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
    "glass_blur": (
        glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": (motion_blur, ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))),
    "zoom_blur": (zoom_blur, (7, 12, 16, 21, 26)),
}
