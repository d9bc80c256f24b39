r"""How far a flow may expand after it has contracted: factors, step sizes, measured spectra.

A contractive step $x - hA^T\sigma(Ax+b)$, with slopes of $\sigma$ in [a, 1] and singular values of
A in [s, S], is written with the normalised step $\tau = hS^2$ and the ratio $\kappa = s^2/S^2$:

* paper: factor $\sqrt{1 - 2a\kappa\tau + \tau^2}$, by expanding the square;
* sharp: factor $\max(|1 - a\kappa\tau|, |1 - \tau|)$, from the spectrum of the symmetric Jacobian
  $I - hA^TDA$. It is attained, and never above the paper's.

An expansive step of normalised size e has a factor of at most 1 + e, so $e \le 1/F - 1$ after
contractions with product F. Every function takes the array module (``keras.ops`` or ``numpy``), so
that the float64 reference computes by the same lines.

Reference: E. Celledoni et al., arXiv 2210.02373; the general singular values, the sharp factor and
the bound for zero padding are ours.
"""

from __future__ import annotations

import keras
import numpy as np

from dynzoo.operators import Conv

__all__ = [
    "contraction_factor",
    "default_range",
    "expansion_limit",
    "interval",
    "limited",
    "signed_step",
    "singular_values_squared",
]

# The spectrum is measured in float32: this covers the rounding of a Gram matrix.
_ROUNDING = 1e-5
# Kernels that a constraint keeps are orthonormal to 1e-6 or better, which float32 cannot tell from
# its own rounding. What is below this counts as this, so that the step sizes which follow are the
# same in both precisions: a certificate pays for any difference.
_LEAST_DEFECT = 3e-5
_LARGEST = 1e6


def limited(kernel, xp):
    """The kernel, scaled back if an entry is above 1e6, so that fourth powers are numbers."""
    return kernel * (_LARGEST / xp.maximum(xp.max(xp.abs(kernel)), _LARGEST))


# --- step sizes ----------------------------------------------------------------------------


def contraction_factor(step, slope, ratio, bound, xp):
    """Lipschitz bound of one contractive step of normalised size ``step`` in [0, 2]."""
    if bound == "paper":
        # The square is 0 only for a linear activation at step 1, where the root has no slope.
        return xp.sqrt(xp.maximum(1.0 - 2.0 * slope * ratio * step + step * step, 1e-6))
    return xp.maximum(xp.abs(1.0 - slope * ratio * step), xp.abs(1.0 - step))


def expansion_limit(step, slope, ratio, bound, count, largest, xp):
    """Largest e with (1 + e) * factor ** count <= 1, in [0, largest]; 0 where there is no room."""
    factor = contraction_factor(step, slope, ratio, bound, xp) ** count
    return xp.maximum(1.0 / xp.maximum(factor, 1.0 / (1.0 + largest)) - 1.0, 0.0)


def interval(raw, low, high, xp):
    """A real number to [low, high], by the logistic function."""
    return low + (high - low) * 0.5 * (1.0 + xp.tanh(0.5 * raw))


def signed_step(raw, negative, positive, xp):
    """A real number to [-negative, positive], keeping its sign: never its absolute value."""
    return xp.tanh(raw) * xp.where(raw > 0, positive, negative)


def default_range(mode, bound, substeps, slope):
    """The paper's clips of h (at a = 1/2, S = 2) for every a and S; sharp: up to the best step."""
    low, high = (0.11, 1.89) if mode == "flexible" else (0.3, 1.0)
    scale = substeps * slope
    return low * scale, 2.0 * substeps / (1.0 + slope) if bound == "sharp" else high * scale


# --- spectra -------------------------------------------------------------------------------


def singular_values_squared(operator, kernel, xp):
    r"""Bounds (lower, upper) of the squared singular values of A, for every image size.

    The lower one is for the ``min(inputs, outputs)`` values of a full-rank A. Both come from
    $\delta \ge \|A^TA - I\|$ (or $\|AA^T - I\|$, whichever is smaller): for a matrix the norm of
    its Gram matrix minus I; for a convolution the sum of the norms of the taps of its
    autocorrelation minus the unit impulse, which bounds the Fourier symbols at all frequencies.

    Zero padding cuts off what a convolution C sends over the border. The centre tap sends
    nothing there, so with $C_o$ the convolution without it
    $|Ax|^2 \ge |Cx|^2 - \|C_o\|^2|x|^2 \ge (1 - \delta - \|C_o\|^2)|x|^2$.
    """
    if not isinstance(operator, Conv):
        gram = kernel if kernel.shape[0] <= kernel.shape[1] else xp.transpose(kernel)
        gram = xp.matmul(gram, xp.transpose(gram))
        defect = _symmetric_norm(gram - xp.eye(gram.shape[0], dtype=_dtype(gram)), xp)
        leak = 0.0
    else:
        defect = _autocorrelation_norm(kernel, xp, minus_impulse=True)
        leak = 0.0
        if operator.padding == "zero" and operator.kernel_size > 1:
            centre = (operator.kernel_size - 1) // 2
            mask = np.ones((*kernel.shape[:2], 1, 1), dtype=_dtype(kernel))
            mask[centre, centre] = 0.0
            leak = _autocorrelation_norm(kernel * xp.array(mask), xp, minus_impulse=False)
    defect = xp.maximum(defect, _LEAST_DEFECT)
    lower = xp.maximum(1.0 - defect - leak - _ROUNDING, 0.0)
    return lower, 1.0 + defect + _ROUNDING


def _dtype(tensor):
    """Its name: TensorFlow does not take a float64 tensor and a float32 one together."""
    return keras.backend.standardize_dtype(tensor.dtype)


def _symmetric_norm(matrix, xp):
    """Upper bound of a symmetric matrix's norm: the smaller of Frobenius and largest row sum."""
    frobenius = xp.sqrt(xp.sum(xp.square(matrix)))
    return xp.minimum(frobenius, xp.max(xp.sum(xp.abs(matrix), axis=-1)))


def _autocorrelation_norm(kernel, xp, minus_impulse):
    r"""Upper bound of $\sup_\omega \|\hat K^*\hat K\|$, or of its distance to I, tap by tap."""
    if kernel.shape[2] > kernel.shape[3]:
        kernel = xp.transpose(kernel, (0, 1, 3, 2))
    height, width, rows, columns = kernel.shape
    taps = xp.reshape(kernel, (height * width * rows, columns))
    products = xp.reshape(
        xp.matmul(taps, xp.transpose(taps)), (height * width, rows, height * width, rows)
    )
    products = xp.reshape(xp.transpose(products, (0, 2, 1, 3)), (-1, rows * rows))
    lags = _lags(height, width).astype(_dtype(products))
    sums = xp.matmul(xp.array(lags), products)
    lags = xp.reshape(sums, (-1, rows, rows))
    if minus_impulse:
        impulse = np.zeros(tuple(lags.shape), dtype=_dtype(lags))
        impulse[0] = np.eye(rows)
        lags = lags - xp.array(impulse)
    norms = _stacked_norms(lags, xp)
    # Lag -d has the transposed tap of lag d.
    return 2.0 * xp.sum(norms) - norms[0]


def _lags(height, width):
    """Which pairs of taps make each lag: 0/1, (lags, pairs); lag 0 first, then one of each +-d."""
    places = [(i, j) for i in range(height) for j in range(width)]
    differences = [(c - a, d - b) for a, b in places for c, d in places]
    lags = sorted({d for d in differences if d >= (0, 0)})
    return np.array([[float(d == lag) for d in differences] for lag in lags], dtype="float32")


def _stacked_norms(matrices, xp, iterations=3):
    """Upper bounds of the spectral norms of a stack of square matrices, by Gram iteration."""
    size = xp.maximum(xp.max(xp.abs(matrices)), 1e-30)
    power = matrices / size
    power = xp.matmul(power, xp.swapaxes(power, -1, -2))
    bound, exponent = size, 0.5
    for i in range(iterations + 1):
        frobenius = xp.sqrt(xp.sum(xp.square(power), axis=(-1, -2)))
        rows = xp.max(xp.sum(xp.abs(power), axis=-1), axis=-1)
        scale = xp.maximum(xp.minimum(frobenius, rows), 1e-30)
        bound = bound * scale**exponent
        if i < iterations:
            power = power / scale[:, None, None]
            power = xp.matmul(power, power)
            exponent *= 0.5
    return bound
