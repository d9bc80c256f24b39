"""Small rotations, zooms and changes of color, image by image, in NumPy."""

from __future__ import annotations

import numpy as np

from dynzoo.pixels import LUMINANCE, sample

__all__ = ["color_jitter", "rotate_and_zoom"]

_LUMINANCE = LUMINANCE.astype(np.float32)


def rotate_and_zoom(x: np.ndarray, angle: np.ndarray, zoom: np.ndarray) -> np.ndarray:
    r"""Turn every image about its middle and enlarge it, with bilinear interpolation.

    $$ y(p) = x\big(c + R(\theta)^T (p - c) / s\big) $$

    What comes from outside is the image reflected at its border (the border pixel is not repeated).

    Args:
        x: images (n, h, w, c), float32.
        angle: angles $\theta$ (n,) in radians, counterclockwise as the image is seen.
        zoom: factors s (n,), positive; above 1 enlarges.

    Returns:
        Images (n, h, w, c), float32, within the range of values of `x`.

    Example:

    >>> turned = rotate_and_zoom(images, np.full(len(images), 0.1), np.ones(len(images)))
    """
    height, width = x.shape[1:3]
    down = np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2
    right = np.arange(width, dtype=np.float32)[None, :] - (width - 1) / 2
    cosine = (np.cos(angle) / zoom).astype(np.float32)[:, None, None]
    sine = (np.sin(angle) / zoom).astype(np.float32)[:, None, None]
    rows = cosine * down + sine * right + (height - 1) / 2
    columns = cosine * right - sine * down + (width - 1) / 2
    return sample(x, rows, columns, "mirror")


def color_jitter(
    x: np.ndarray, brightness: np.ndarray, contrast: np.ndarray, saturation: np.ndarray
) -> np.ndarray:
    r"""Scale the brightness, the contrast and the saturation of every image.

    $$ y = b\, x, \qquad z = \bar y + c\,(y - \bar y), \qquad
       \mathrm{clip}\big(g(z) + s\,(z - g(z)),\; 0,\; 1\big) $$

    with the gray value g of each pixel and $\bar y$ its mean over the image. Images whose number of
    channels is not 3 keep their saturation.

    Args:
        x: images (n, h, w, c) in [0, 1], float32.
        brightness, contrast, saturation: factors b, c, s (n,), at least 0; 1 changes nothing.

    Returns:
        Images (n, h, w, c) in [0, 1], float32.

    Example:

    >>> darker = color_jitter(images, *np.full((3, len(images)), 0.9))
    """
    b, c, s = (
        f.astype(np.float32)[:, None, None, None] for f in (brightness, contrast, saturation)
    )
    gray = x @ _LUMINANCE if x.shape[-1] == 3 else x.mean(axis=-1)
    mean = gray.mean(axis=(1, 2))[:, None, None, None]
    # The gray value is linear: that of the changed image follows from that of the given one.
    y = b * (mean + c * (x - mean))
    if x.shape[-1] == 3:
        y_gray = b * (mean + c * (gray[..., None] - mean))
        y = y_gray + s * (y - y_gray)
    return np.clip(y, 0.0, 1.0)
