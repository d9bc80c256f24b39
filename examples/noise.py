"""Gaussian and salt-and-pepper noise on images in [0, 1], in the two units that are in use.

Pixel units: the noise is added to the image and the sum clipped to [0, 1].

Published units (experiments of arXiv 2203.11805): the noise of scikit-image's `random_noise` on
the *normalised* image (x - mean) / deviation. That function clips to [-1, 1] as soon as the image
has a negative value, and a normalised digit has: strokes at 2.8 fall to 1 before any noise is seen,
and "variance 0.2" is 0.2 times the squared deviation in pixel units. `CLIP` is that effect alone.
"""

from __future__ import annotations

import numpy as np

MEAN, DEVIATION = 0.1307, 0.3081

GAUSSIAN, SALT_AND_PEPPER, CLIP = "gaussian", "salt_and_pepper", "clip"


def random_noise(images, kind, level, rng):
    """What scikit-image's `random_noise` does, on a whole batch.

    Args:
        images: array of floats.
        kind: `GAUSSIAN`, `SALT_AND_PEPPER` or `CLIP` (no noise, only the clip that ends both).
        level: variance (Gaussian), or the share of pixels that become salt or pepper, one half
            each.
        rng: NumPy generator.

    Returns:
        Array like `images`, in [0, 1], or in [-1, 1] if `images` has a negative value.
    """
    low = -1.0 if images.min() < 0 else 0.0
    noisy = np.array(images)
    if kind == GAUSSIAN:
        noise = rng.standard_normal(images.shape, dtype=np.float32)
        noisy += np.float32(np.sqrt(level)) * noise
    elif kind == SALT_AND_PEPPER:
        hit = rng.random(images.shape, dtype=np.float32) < level
        salt = rng.random(images.shape, dtype=np.float32) < 0.5
        noisy[hit & salt] = 1.0
        noisy[hit & ~salt] = low
    elif kind != CLIP:
        raise ValueError(
            f"`kind` must be {GAUSSIAN!r}, {SALT_AND_PEPPER!r} or {CLIP!r}. Received: kind={kind!r}"
        )
    return np.clip(noisy, low, 1.0)


def pixel_noise(images, kind, level, seed):
    """Noise in pixel units on images in [0, 1]; the result is in [0, 1]."""
    return random_noise(images, kind, level, np.random.default_rng(seed))


def published_noise(images, kind, level, seed, mean=MEAN, deviation=DEVIATION):
    """Noise on the normalised image, as published, and back: the result may leave [0, 1]."""
    normalised = (np.asarray(images, dtype=np.float32) - np.float32(mean)) / np.float32(deviation)
    noisy = random_noise(normalised, kind, level, np.random.default_rng(seed))
    return noisy * np.float32(deviation) + np.float32(mean)


UNITS = {"published": published_noise, "pixel": pixel_noise}
