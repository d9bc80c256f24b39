"""Small rotations, zooms and changes of color, image by image.

Each function is written once for two libraries: NumPy, for batches that are made on the host, and
``keras.ops``, for a training step that is compiled (``dynzoo.augmentation.on_device``).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from dynzoo.augmentation.pixels import LUMINANCE, cast, sample

__all__ = ["color_jitter", "rotate_and_zoom"]


def rotate_and_zoom(x: Any, angle: Any, zoom: Any, xp: ModuleType = np) -> Any:
    r"""Turn every image about its middle and enlarge it, with bilinear interpolation.

    $$ y(p) = x\big(c + R(\theta)^T (p - c) / s\big) $$

    What comes from outside is the image reflected at its border (the border pixel is not repeated).

    Args:
        x: images (n, h, w, c), float32.
        angle: angles $\theta$ (n,) in radians, counterclockwise as the image is seen.
        zoom: factors s (n,), positive; above 1 enlarges.
        xp: ``numpy``, or ``keras.ops`` for tensors in float32.

    Returns:
        Images (n, h, w, c), float32, within the range of values of ``x``. An angle of 0 and a
        factor of 1 leave an image as it is, bit for bit.

    Example:

    >>> turned = rotate_and_zoom(images, np.full(len(images), 0.1), np.ones(len(images)))
    """
    height, width = x.shape[1:3]
    down = xp.arange(height, dtype="float32")[:, None] - (height - 1) / 2
    right = xp.arange(width, dtype="float32")[None, :] - (width - 1) / 2
    cosine = _per_image(xp.cos(angle) / zoom, 3, xp)
    sine = _per_image(xp.sin(angle) / zoom, 3, xp)
    rows = cosine * down + sine * right + (height - 1) / 2
    columns = cosine * right - sine * down + (width - 1) / 2
    return sample(x, rows, columns, "mirror", xp)


def _per_image(values: Any, rank: int, xp: ModuleType) -> Any:
    """Numbers (n,) in the shape that multiplies arrays of this rank, in float32."""
    return xp.reshape(cast(values, "float32", xp), (-1,) + (1,) * (rank - 1))


def color_jitter(
    x: Any, brightness: Any, contrast: Any, saturation: Any, xp: ModuleType = np
) -> Any:
    r"""Scale the brightness, the contrast and the saturation of every image.

    $$ y = b\, x, \qquad z = \bar y + c\,(y - \bar y), \qquad
       \mathrm{clip}\big(g(z) + s\,(z - g(z)),\; 0,\; 1\big) $$

    with the gray value g of each pixel and $\bar y$ its mean over the image. Images whose number of
    channels is not 3 keep their saturation.

    Args:
        x: images (n, h, w, c) in [0, 1], float32.
        brightness, contrast, saturation: factors b, c, s (n,), at least 0; 1 changes nothing.
        xp: ``numpy``, or ``keras.ops`` for tensors in float32.

    Returns:
        Images (n, h, w, c) in [0, 1], float32.

    Example:

    >>> darker = color_jitter(images, *np.full((3, len(images)), 0.9))
    """
    b, c, s = (_per_image(f, 4, xp) for f in (brightness, contrast, saturation))
    colored = x.shape[-1] == 3
    if colored:
        red, green, blue = (float(share) for share in LUMINANCE)
        # Not a matrix product: accelerators round those to fewer digits.
        gray = (x[..., 0] * red + x[..., 1] * green + x[..., 2] * blue)[..., None]
    else:
        gray = xp.mean(x, axis=-1, keepdims=True)
    mean = xp.mean(gray, axis=(1, 2, 3), keepdims=True)
    # The gray value is linear: that of the changed image follows from that of the given one.
    y = b * (mean + c * (x - mean))
    if colored:
        y_gray = b * (mean + c * (gray - mean))
        y = y_gray + s * (y - y_gray)
    return xp.clip(y, 0.0, 1.0)
