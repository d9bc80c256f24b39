"""Digital: contrast, elastic deformation, coarse pixels, JPEG."""

from __future__ import annotations

import io

import numpy as np
from scipy import ndimage

from dynzoo.augmentation.pixels import sample
from dynzoo.corruptions.streams import Streams

__all__ = ["TABLE", "contrast", "elastic_transform", "jpeg_compression", "pixelate"]


def contrast(x: np.ndarray, c: float, streams: Streams) -> np.ndarray:
    r"""$\bar x + c\,(x - \bar x)$ with the mean $\bar x$ of each channel of each image."""
    mean = x.mean(axis=(1, 2), keepdims=True)
    return mean + c * (x - mean)


def elastic_transform(x: np.ndarray, c: tuple[float, ...], streams: Streams) -> np.ndarray:
    r"""A random affine map near the identity, then a random smooth displacement.

    Three points around the centre move by up to $a$ in each coordinate and the image with them;
    then the pixel at $p$ is read at $p + \alpha\, G_\sigma u(p)$ with $u$ uniform in $[-1, 1]^2$
    and $G_\sigma$ the Gaussian filter.

    Args:
        x: array of shape (n, h, w, channels).
        c: $\alpha$, $\sigma$ and $a$, as shares of the shorter side.
        streams: random numbers of the images.
    """
    count, height, width = x.shape[:3]
    size = min(height, width)
    alpha, sigma, jitter = (size * share for share in c)
    moves = streams(lambda rng: rng.uniform(-1.0, 1.0, (3, 2)))
    field = streams(lambda rng: rng.uniform(-1.0, 1.0, (2, height, width)))

    arm = size // 3
    corners = np.array([(arm, arm), (-arm, arm), (-arm, -arm)], dtype=np.float64)
    start = corners + (height // 2, width // 2)
    moved = np.concatenate([start + jitter * moves, np.ones((count, 3, 1))], axis=-1)
    # where each new pixel comes from: the affine map that takes the moved points back
    back = np.linalg.solve(moved, np.broadcast_to(start, (count, 3, 2)))
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
    rows, columns = np.einsum("dhw,nde->enhw", grid, back[:, :2]) + back[:, 2].T[:, :, None, None]
    x = sample(x, rows, columns, "mirror")

    shift = alpha * ndimage.gaussian_filter(
        field, (0, 0, sigma, sigma), mode="reflect", truncate=3.0
    )
    return sample(x, grid[0] + shift[:, 0], grid[1] + shift[:, 1], "reflect")


def pixelate(x: np.ndarray, share: float, streams: Streams) -> np.ndarray:
    """Fewer pixels, ``share`` of them along each side, and back to the size by repetition."""
    for axis in (1, 2):
        size = x.shape[axis]
        small = max(int(size * share), 1)
        x = np.moveaxis(
            _box(small, size) @ (_box(size, small) @ np.moveaxis(x, axis, -2)), -2, axis
        )
    return np.rint(255.0 * x) / 255.0


def _box(size: int, new: int) -> np.ndarray:
    """Matrix (new, size): mean of the pixels whose centres lie in the window of a new pixel."""
    scale = size / new
    window = max(scale, 1.0)
    offset = (np.arange(size) + 0.5 - (np.arange(new)[:, None] + 0.5) * scale) / window
    inside = ((offset > -0.5) & (offset <= 0.5)).astype(np.float64)
    return inside / inside.sum(axis=1, keepdims=True)


def jpeg_compression(x: np.ndarray, quality: int, streams: Streams) -> np.ndarray:
    """Encoded as JPEG of that quality and decoded, by Pillow."""
    from PIL import Image

    levels = np.rint(255.0 * x).astype(np.uint8)
    result = np.empty_like(levels)
    for k, image in enumerate(levels):
        file = io.BytesIO()
        grey = image.shape[-1] == 1
        Image.fromarray(image[..., 0] if grey else image).save(file, "JPEG", quality=quality)
        decoded = np.asarray(Image.open(file))
        result[k] = decoded[..., None] if grey else decoded
    return result / 255.0


TABLE = {
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        elastic_transform,
        (
            (0.0, 0.0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
    ),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (jpeg_compression, (80, 65, 58, 50, 40)),
}
