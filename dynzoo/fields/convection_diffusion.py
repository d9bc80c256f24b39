r"""Convection-diffusion: $u_t = v \cdot \nabla u + \sigma^2 \Delta u$, along paths and on graphs.

Along paths (Feynman-Kac): $u(x, T) = E f(X_T)$ for $dX = v(X)\,dt + \sqrt2\,\sigma\,dB$. On a
graph with weights $w_{ij} \ge 0$ the diffusion is $u \leftarrow u - \sigma^2 L u$ with
$L = D - W$: an average with the weights of the matrix $P = I - \sigma^2 L$ as long as no entry of
P is negative. A self-loop $w_{ii}$ cancels in L; it matters to a normalisation only.
"""

from __future__ import annotations

import math

import numpy as np
from keras import ops

__all__ = [
    "averaging_matrix",
    "averaging_matrix_float64",
    "brownian_std",
    "diffused",
    "fixed_noise",
    "knn_gaussian",
    "knn_gaussian_float64",
    "mean_path",
    "mean_path_float64",
    "normalized",
    "normalized_float64",
    "velocity",
    "velocity_float64",
]

_TINY = 1e-12
# A squared distance that no float32 feature reaches, for neighbours that do not exist.
_FAR = 1e30
# Squared distances that are equal in float32: points closer than this share of their squared
# lengths are one point, and a neighbour this share closer than the k-th is closer than it.
_SAME, _TIE = 1e-6, 1e-4
# Weights of a graph beyond this are scaled back: a sum of them, times another, is a float32 number.
_LARGE = 1e15


def brownian_std(sigma: float, step_size: float) -> float:
    r"""Standard deviation of one Brownian increment, $\sigma\sqrt{2\,dt}$."""
    return sigma * math.sqrt(2.0 * step_size)


def fixed_noise(seed, steps: int, samples: int, shape) -> np.ndarray:
    """Standard normal float32 paths (steps, samples, *shape), the same on every backend.

    Paths come in pairs of opposite sign (the last is alone if their number is odd), so that the
    mean over an even number of paths has no error of odd order in the noise.
    """
    half = (samples + 1) // 2
    rng = np.random.default_rng(seed)
    draws = rng.standard_normal((steps, half, *shape), dtype=np.float32)
    return np.concatenate([draws, -draws], axis=1)[:, :samples]


def velocity(operator, activation, x, inner, bias, outer, scale=1.0):
    r"""$s\,B^T\sigma(Ax + b)$ over ``keras.ops``, for kernels ``inner`` of A and ``outer`` of B."""
    hidden = operator.apply(x, inner)
    if bias is not None:
        hidden = hidden + bias
    return operator.adjoint(activation(hidden), outer * scale)


def velocity_float64(operator, activation, x, inner, bias, outer, scale=1.0):
    r"""$s\,B^T\sigma(Ax + b)$ in NumPy."""
    hidden = operator.apply_float64(x, inner) + (0.0 if bias is None else bias)
    hidden = activation.reference(hidden)
    return scale * operator.adjoint_float64(hidden, outer)


def diffused(x, noise, std, scaled=False):
    """$x + s\\,n$ over ``keras.ops``, s also times the deviation of the whole x if ``scaled``."""
    if scaled:
        std = ops.cast(std * ops.std(ops.cast(x, "float32")), x.dtype)
    return x + std * noise


def mean_path(convect, x, steps, noise, std, scaled=False):
    """Mean over fixed paths of the state after ``convect(x, i)`` and diffusion in turn.

    ``noise`` is (steps - 1, paths, *shape), or ``None`` for the one path without noise. The last
    noise has mean zero and is left out.
    """
    if noise is None:
        for i in range(steps):
            x = convect(x, i)
        return x
    paths, shape = noise.shape[1], tuple(x.shape[1:])
    states = ops.expand_dims(convect(x, 0), 0)
    for i in range(1, steps):
        step = ops.expand_dims(ops.convert_to_tensor(noise[i - 1], dtype=x.dtype), 1)
        x = convect(ops.reshape(diffused(states, step, std, scaled), (-1, *shape)), i)
        states = ops.reshape(x, (paths, -1, *shape))
    return ops.mean(states, axis=0)


def mean_path_float64(convect, x, steps, noise, std, scaled=False) -> np.ndarray:
    """The same in NumPy."""
    states = x = np.asarray(x, dtype=np.float64)
    for i in range(steps):
        states = convect(states.reshape(-1, *x.shape[1:]), i)
        if noise is not None:
            states = states.reshape(-1, *x.shape)
            if i + 1 < steps:
                factor = std * (states.std() if scaled else 1.0)
                states = states + factor * noise[i].astype(np.float64)[:, None]
    return states if noise is None else states.mean(axis=0)


# --- graphs: weights (..., n, n), features (..., n, d) -----------------------------------------


def averaging_matrix(weights, sigma2: float):
    r"""$P = I - s(D - W)$ with the largest admissible $s \le \sigma^2$, of each graph.

    Negative weights count as 0, and $s \max_i \sum_{j \ne i} w_{ij} \le 1$, so that P has no
    negative entry and rows that sum to 1, whatever the graph.
    """
    identity = ops.eye(weights.shape[-1] or ops.shape(weights)[-1], dtype=weights.dtype)
    weights, size = _limited(ops.relu(weights), _LARGE)
    between = weights * (1.0 - identity)
    sigma2 = sigma2 * size
    degree = ops.sum(between, axis=-1, keepdims=True)
    largest = ops.max(degree, axis=-2, keepdims=True)
    step = ops.minimum(sigma2, 1.0 / ops.maximum(largest, _TINY))
    return step * between + identity * ops.relu(1.0 - step * degree)


def averaging_matrix_float64(weights, sigma2: float) -> np.ndarray:
    r"""The same in NumPy."""
    identity = np.eye(weights.shape[-1])
    between = np.maximum(np.asarray(weights, dtype=np.float64), 0.0) * (1.0 - identity)
    degree = between.sum(axis=-1, keepdims=True)
    step = np.minimum(sigma2, 1.0 / np.maximum(degree.max(axis=-2, keepdims=True), _TINY))
    return step * between + identity * np.maximum(1.0 - step * degree, 0.0)


def _limited(values, largest: float):
    """(values over s, s) with s above 1 only if one is beyond ``largest``: sums stay finite."""
    size = ops.max(ops.abs(values), axis=(-2, -1), keepdims=True)
    size = ops.maximum(size / largest, 1.0)
    return values / size, size


def normalized(weights):
    r"""$D^{-1/2} W D^{-1/2}$ with D the row sums of W; a node without neighbours stays alone."""
    weights, _ = _limited(weights, _LARGE)
    root = ops.rsqrt(ops.maximum(ops.sum(weights, axis=-1, keepdims=True), _TINY))
    return root * weights * ops.swapaxes(root, -1, -2)


def normalized_float64(weights) -> np.ndarray:
    """The same in NumPy."""
    root = np.maximum(weights.sum(axis=-1, keepdims=True), _TINY) ** -0.5
    return root * weights * np.swapaxes(root, -1, -2)


def knn_gaussian(features, neighbours: int, scale_neighbour: int):
    r"""Normalised symmetric weights of a graph between points, from their distances.

    $w_{ij} = \exp(-(d_{ij} / d_i^{(s)})^2)$ if $d_{ij} < d_i^{(k)}$, else 0, where $d_i^{(k)}$ is
    the k-th smallest distance from point i, itself counted first (distances that differ by less
    than 5e-5 are equal); then $D^{-1/2} W D^{-1/2}$ and the mean with the transpose. Squared
    distances throughout: a root has no slope at 0.
    """
    # Weights are those of distances over distances: features of any size may be made smaller.
    features, _ = _limited(features, 1e12)
    # Centred, so that less cancels in |a|^2 + |b|^2 - 2ab.
    features = features - ops.mean(features, axis=-2, keepdims=True)
    square = ops.sum(features * features, axis=-1, keepdims=True)
    gram = ops.matmul(features, ops.swapaxes(features, -1, -2))
    identity = ops.eye(features.shape[-2] or ops.shape(features)[-2], dtype=features.dtype)
    sums = square + ops.swapaxes(square, -1, -2)
    distance = (sums - 2.0 * gram) * (1.0 - identity)
    distance = ops.where(distance > _SAME * sums, distance, ops.zeros_like(distance))
    # Points at infinity stand in where there are fewer than k points.
    far = ops.ones_like(square) * ops.full((neighbours,), _FAR, dtype=features.dtype)
    nearest = -ops.top_k(-ops.concatenate([distance, far], axis=-1), neighbours)[0]
    scale = ops.maximum(nearest[..., scale_neighbour - 1 : scale_neighbour], _TINY)
    near = ops.cast(distance < (1.0 - _TIE) * nearest[..., -1:], features.dtype)
    weights = normalized(near * ops.exp(-distance / scale))
    return 0.5 * (weights + ops.swapaxes(weights, -1, -2))


def knn_gaussian_float64(features, neighbours: int, scale_neighbour: int) -> np.ndarray:
    """The same in NumPy."""
    features = np.asarray(features, dtype=np.float64)
    difference = features[..., :, None, :] - features[..., None, :, :]
    distance = (difference**2).sum(axis=-1)
    square = ((features - features.mean(axis=-2, keepdims=True)) ** 2).sum(axis=-1)
    sums = square[..., :, None] + square[..., None, :]
    distance = np.where(distance > _SAME * sums, distance, 0.0)
    far = np.full((*distance.shape[:-1], neighbours), _FAR)
    nearest = np.sort(np.concatenate([distance, far], axis=-1), axis=-1)
    scale = np.maximum(nearest[..., scale_neighbour - 1 : scale_neighbour], _TINY)
    near = distance < (1.0 - _TIE) * nearest[..., neighbours - 1 : neighbours]
    weights = normalized_float64(near * np.exp(-distance / scale))
    return 0.5 * (weights + np.swapaxes(weights, -1, -2))
