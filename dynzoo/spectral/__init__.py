"""Spectra of linear maps: upper bounds of the operator norm and projections.

Two kinds of function live here, and they are never mixed up.

* ``*_float64`` work on NumPy arrays in float64. They are what a certificate is made of: each
  returns a number that is not below the true operator norm.
* The others are pure functions over ``keras.ops``, traceable under jit on every backend, and are
  used by the constraints during training. Their norms are upper bounds as well (Gram iteration,
  never power iteration), up to float32 rounding.

Matrices are written ``(rows, columns)`` and act as ``A x``; convolution kernels have the Keras
layout ``(height, width, channels_in, channels_out)`` and stride 1.
"""

from dynzoo.spectral.convolutions import conv_all_sizes_norm_float64, conv_norm_float64
from dynzoo.spectral.ops import (
    conv_norm,
    dense_norm,
    newton_schulz,
    orthonormalize,
    polar_iteration,
)
from dynzoo.spectral.singular_values import (
    dense_min_singular_value_float64,
    dense_norm_float64,
    nearest_orthonormal_float64,
)

__all__ = [
    "conv_all_sizes_norm_float64",
    "conv_norm",
    "conv_norm_float64",
    "dense_min_singular_value_float64",
    "dense_norm",
    "dense_norm_float64",
    "nearest_orthonormal_float64",
    "newton_schulz",
    "orthonormalize",
    "polar_iteration",
]
