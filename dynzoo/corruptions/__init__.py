r"""The fifteen common corruptions of CIFAR-10-C, regenerated with a fixed seed.

Noise, blur, weather and digital artefacts at five severities each, with the parameters of the
benchmark's CIFAR variant. **Regenerated: not the official files.** The random numbers and some
libraries differ, and ``frost`` draws procedural ice instead of photographs, so that accuracies are
close to those on CIFAR-10-C but not the same. ``dynzoo.robustness.corruptions`` takes the official
files, where they are at hand.

The parameters are those for images of 32 x 32 pixels. Lengths in pixels are used as they are at
other sizes, which makes blur, snow and glass weaker on larger images; elastic transform, zoom and
pixelate are relative to the size.

Reference: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions
and perturbations" (ICLR 2019), section 4 and appendix A; parameters of the CIFAR variant:
https://github.com/hendrycks/robustness, make_cifar_c.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynzoo.corruptions import blur, digital, noise, weather
from dynzoo.corruptions.streams import Streams
from dynzoo.utils.arguments import integer, one_of

__all__ = ["CORRUPTIONS", "PROVENANCE", "SEVERITIES", "Streams", "add_noise", "corrupt"]

add_noise = noise.add_noise

# Name -> (function, its parameters at severity 1 to 5), in the order of the benchmark.
CORRUPTIONS: dict[str, tuple[Any, tuple]] = {
    **noise.TABLE,
    **blur.TABLE,
    **weather.TABLE,
    **digital.TABLE,
}
SEVERITIES = (1, 2, 3, 4, 5)
PROVENANCE = (
    "Corruptions regenerated with a fixed seed; not the official files; numbers are close to but "
    "not the same as those of CIFAR-10-C."
)

# Images at once: the arrays of a part stay in the processor's cache, and memory is bounded.
_PART = 64
_SMALLEST = 8


def corrupt(x: Any, name: str, severity: int, seed: int = 0, indices: Any = None) -> np.ndarray:
    r"""Images with one corruption of CIFAR-10-C, regenerated; not the official files.

    $x'_i = Q(\mathrm{corruption}(x_i; c_s, \omega_i))$ with the parameter $c_s$ of the severity,
    random numbers $\omega_i$ that depend on the seed, the corruption and the index of the image
    alone (the same at each severity), and $Q$ the clip to [0, 1] and the truncation to 8 bits.

    Guarantee: the result for an image does not depend on the other images, their number or order.
    Numbers are close to but not the same as those of CIFAR-10-C; see ``dynzoo.corruptions``.

    Args:
        x: array of shape (n, h, w, channels) with values in [0, 1]; 1 or 3 channels, sides of at
            least 8 pixels. It is rounded to 8 bits first.
        name: one of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: non-negative integer.
        indices: integer array of shape (n,), not negative, that keys the random numbers; 0 to
            n-1 by default. A caller that corrupts part of a data set passes positions in it.

    Returns:
        Float32 array of the shape of ``x``, multiples of 1/255 in [0, 1].

    Raises:
        ValueError: if an argument is not one of these.

    Example:

    >>> import numpy as np
    >>> from dynzoo.corruptions import corrupt
    >>> x = np.random.default_rng(0).random((2, 32, 32, 3))
    >>> corrupt(x, "fog", severity=3).shape
    (2, 32, 32, 3)

    Reference: Hendrycks and Dietterich, "Benchmarking neural network robustness to common
    corruptions and perturbations" (ICLR 2019).
    """
    x = check_pictures(x)
    one_of("name", name, CORRUPTIONS)
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"`severity` must be 1, 2, 3, 4 or 5. Received: severity={severity!r}")
    seed = integer("seed", seed, least=0)
    indices = np.arange(len(x)) if indices is None else np.asarray(indices)
    if indices.shape != (len(x),) or indices.dtype.kind not in "iu" or (indices < 0).any():
        raise ValueError(
            f"`indices` must be {len(x)} non-negative integers, one for each image. Received: "
            f"shape {indices.shape}, dtype {indices.dtype}"
        )
    function, parameters = CORRUPTIONS[name]
    result = np.empty(x.shape, dtype=np.float32)
    for start in range(0, len(x), _PART):
        rows = slice(start, start + _PART)
        clean = np.rint(255.0 * x[rows].astype(np.float64)) / 255.0
        streams = Streams(seed, name, indices[rows])
        changed = function(clean, parameters[int(severity) - 1], streams)
        # truncated as in the official files; what is a multiple of 1/255 up to rounding stays
        levels = np.floor(255.0 * np.clip(changed, 0.0, 1.0) + 1e-3)
        result[rows] = levels.astype(np.float32) / np.float32(255.0)
    return result


def check_pictures(x: Any) -> np.ndarray:
    """``x`` as an array of images, or a ValueError that says what is wrong with it."""
    x = np.asarray(x)
    if (
        x.ndim != 4
        or not np.issubdtype(x.dtype, np.floating)
        or x.shape[-1] not in (1, 3)
        or min(x.shape[1:3]) < _SMALLEST
        or not len(x)
    ):
        raise ValueError(
            "`x` must be a floating-point array of shape (n, height, width, channels), n >= 1, "
            f"with 1 or 3 channels and sides of at least {_SMALLEST} pixels. Received: shape "
            f"{x.shape}, dtype {x.dtype}"
        )
    low, high = float(x.min()), float(x.max())
    if not (low >= 0.0 and high <= 1.0):  # NaN fails both
        raise ValueError(
            f"`x` must be finite and lie in [0, 1]. Received: values from {low} to {high}"
        )
    return x
