"""Weather: snow, frost, fog, bright light."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from dynzoo.augmentation.pixels import LUMINANCE
from dynzoo.corruptions.blur import smear, zoom
from dynzoo.corruptions.streams import Streams

__all__ = ["TABLE", "brightness", "fog", "frost", "frost_texture", "plasma", "snow"]


def snow(x: np.ndarray, c: tuple[float, ...], streams: Streams) -> np.ndarray:
    """Flakes: noise above a threshold, smeared downwards, on an image made paler.

    Args:
        x: array of shape (n, h, w, channels).
        c: mean and deviation of the noise, its enlargement, threshold, radius and deviation of
            the smear in pixels, weight of the original image against the paler one.
        streams: random numbers of the images.
    """
    mean, deviation, size, threshold, radius, sigma, keep = c
    height, width = x.shape[1:3]
    flakes = mean + deviation * streams(lambda rng: rng.standard_normal((height, width, 1)))
    degrees = streams(lambda rng: rng.uniform(-135.0, -45.0))
    flakes = zoom(flakes, size)
    flakes = np.clip(np.where(flakes < threshold, 0.0, flakes), 0.0, 1.0)
    flakes = np.rint(255.0 * smear(flakes, radius, sigma, degrees)) / 255.0
    pale = np.maximum(x, 1.5 * _luminance(x) + 0.5)
    # a second layer, the first one turned by half a circle
    return keep * x + (1.0 - keep) * pale + flakes + flakes[:, ::-1, ::-1]


def _luminance(x: np.ndarray) -> np.ndarray:
    if x.shape[-1] == 1:
        return x
    return (x @ LUMINANCE)[..., None]


# Mean colour and local contrast (standard deviation) of ice on a window: blue, white (twice, for
# it is the most frequent), grey-blue, dark.
_ICE = np.array(
    [
        (0.30, 0.58, 0.65, 0.06),
        (0.79, 0.81, 0.84, 0.075),
        (0.79, 0.81, 0.84, 0.075),
        (0.54, 0.60, 0.65, 0.10),
        (0.44, 0.48, 0.53, 0.125),
    ]
)


def frost_texture(shape: tuple[int, int], streams: Streams) -> np.ndarray:
    """Procedural ice, of shape (n, h, w, 3): a colour, clouds, needles in one direction, grain.

    The official files use crops of five photographs instead. The colours and contrasts are like
    those of the photographs, the shapes are not.
    """
    kind = streams(lambda rng: rng.integers(len(_ICE)))
    degrees = streams(lambda rng: rng.uniform(0.0, 180.0))
    noise = streams(lambda rng: rng.standard_normal((3, *shape)))
    clouds = ndimage.gaussian_filter(noise[:, 0], (0, 4.0, 4.0), mode="wrap")
    # only strong values become needles: cubing keeps their sign and thins out the rest
    needles = smear(noise[:, 1, :, :, None] ** 3, 5, 2.0, degrees)[..., 0]
    texture = sum(
        weight * part / (part.std(axis=(1, 2), keepdims=True) + 1e-12)
        for weight, part in ((0.45, clouds), (0.65, needles), (0.6, noise[:, 2]))
    )
    ice = _ICE[kind][:, None, None, :]
    return np.clip(ice[..., :3] + ice[..., 3:] * texture[..., None], 0.0, 1.0)


def frost(x: np.ndarray, c: tuple[float, float], streams: Streams) -> np.ndarray:
    """``c[0]`` times the image plus ``c[1]`` times ``frost_texture`` (its mean in a grey image)."""
    ice = frost_texture(x.shape[1:3], streams)
    if x.shape[-1] == 1:
        ice = ice.mean(axis=-1, keepdims=True)
    return c[0] * x + c[1] * ice


def plasma(noise: np.ndarray, decay: float) -> np.ndarray:
    r"""Fractal clouds in [0, 1] by the diamond-square method on a torus.

    Each level halves the spacing of the grid: the middles of squares, then those of edges, become
    the mean of their four neighbours plus noise of amplitude $d^{-2k}$ at level $k$.

    Args:
        noise: array of shape (n, s, s) in [-1, 1], s a power of two.
        decay: $d$ > 0; the larger, the smoother.
    """
    clouds = np.zeros_like(noise)
    step, amplitude = noise.shape[1], 1.0
    while step >= 2:
        half = step // 2
        on, off = slice(0, None, step), slice(half, None, step)
        corner = clouds[:, on, on]
        below, right = np.roll(corner, -1, 1), np.roll(corner, -1, 2)
        middle = (corner + below + right + np.roll(below, -1, 2)) / 4
        middle = middle + amplitude * noise[:, off, off]
        clouds[:, off, off] = middle
        level = (corner + right + middle + np.roll(middle, 1, 1)) / 4
        clouds[:, on, off] = level + amplitude * noise[:, on, off]
        upright = (corner + below + middle + np.roll(middle, 1, 2)) / 4
        clouds[:, off, on] = upright + amplitude * noise[:, off, on]
        step, amplitude = half, amplitude / decay**2
    clouds -= clouds.min(axis=(1, 2), keepdims=True)
    return clouds / clouds.max(axis=(1, 2), keepdims=True)


def fog(x: np.ndarray, c: tuple[float, float], streams: Streams) -> np.ndarray:
    r"""$(x + a f)\,m/(m + a)$: ``plasma`` clouds $f$ of strength $a$, $m$ the largest of $x$."""
    strength, decay = c
    height, width = x.shape[1:3]
    size = 1 << (max(height, width) - 1).bit_length()
    clouds = plasma(streams(lambda rng: rng.uniform(-1.0, 1.0, (size, size))), decay)
    largest = x.max(axis=(1, 2, 3), keepdims=True)
    foggy = x + strength * clouds[:, :height, :width, None]
    return foggy * largest / (largest + strength)


def brightness(x: np.ndarray, c: float, streams: Streams) -> np.ndarray:
    """``c`` more of the value V of HSV, at the same hue and saturation.

    V is the largest channel, and hue and saturation are ratios of channels: the pixel is scaled.
    """
    value = x.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + c, 1.0)
    return np.where(value > 0.0, x * (brighter / np.where(value > 0.0, value, 1.0)), brighter)


TABLE = {
    "snow": (
        snow,
        (
            (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
            (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
        ),
    ),
    "frost": (frost, ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (fog, ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
}
