"""Ground truth for the property tests: dense matrices, float64 Jacobians, worst pairs of points."""

import importlib.util

import numpy as np
import pytest

from dynzoo import backend

# Of what takes long and asks little of the backend: quick tests do it on PyTorch alone.
SLOW_ELSEWHERE = [] if backend.name() == "torch" else [pytest.mark.slow]


def slow_elsewhere(test):
    """Marks a test as slow on TensorFlow and JAX."""
    for mark in SLOW_ELSEWHERE:
        test = mark(test)
    return test


def load_script(path):
    """The module of a script outside the package; skips where only the package is at hand."""
    if not path.is_file():
        pytest.skip(f"needs a checkout: {path.parent.name}/ is not part of a source distribution")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_images(path, classes=3, test=6):
    """An .npz data set of 96 random images of 8x8 pixels, of which the first are the test set."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (96, 8, 8, 3), dtype=np.uint8)
    y = np.arange(96) % classes
    np.savez(path, x_train=x, y_train=y, x_test=x[:test], y_test=y[:test])
    return path


def normal(shape, seed=0, scale=1.0):
    """Float32 normal numbers that depend on the seed alone."""
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype("float32")


def unrolled(linear, shape):
    """Dense float64 matrix of a linear (or affine) map of one example of this shape.

    The map takes batches; column i is the image of basis vector i.
    """
    size = int(np.prod(shape))
    basis = np.concatenate([np.zeros((1, size)), np.eye(size)]).astype("float32")
    images = linear(basis.reshape(size + 1, *shape))
    images = backend.to_numpy(images).astype(np.float64).reshape(size + 1, -1)
    return (images[1:] - images[0]).T


def norm(matrix):
    """Spectral norm, by a float64 SVD."""
    return float(np.linalg.norm(np.asarray(matrix, dtype=np.float64), 2))


def conv_matrix(kernel, spatial, padding):
    """Dense matrix of a stride-1 convolution with output as large as the input, entry by entry."""
    k_rows, k_columns, channels_in, channels_out = kernel.shape
    height, width = spatial
    matrix = np.zeros((height, width, channels_out, height, width, channels_in))
    for row in range(height):
        for column in range(width):
            for i in range(k_rows):
                for j in range(k_columns):
                    r, c = row + i - (k_rows - 1) // 2, column + j - (k_columns - 1) // 2
                    if padding == "circular":
                        r, c = r % height, c % width
                    elif not (0 <= r < height and 0 <= c < width):
                        continue
                    matrix[row, column, :, r, c, :] += kernel[i, j].T
    return matrix.reshape(height * width * channels_out, -1)


def jacobian(function, x, step=1e-6):
    """Jacobian of a float64 function of batches at one point, by central differences."""
    x = np.asarray(x, dtype=np.float64)
    basis = np.eye(x.size).reshape(-1, *x.shape) * step
    difference = function(x + basis) - function(x - basis)
    return difference.reshape(x.size, -1).T / (2 * step)


def worst_gain(function, shape, seed=0, points=3, scale=1.0):
    """Largest |f(x) - f(y)| / |x - y| over random pairs and along leading singular vectors."""
    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(points):
        x = scale * rng.normal(size=shape)
        _, _, vt = np.linalg.svd(jacobian(function, x))
        directions = np.concatenate([vt[:2], rng.normal(size=(2, x.size))]).reshape(-1, *shape)
        for distance in (1e-3, 0.1, 1.0, 10.0):
            y = x + distance * directions
            moved = (function(y) - function(x[None])).reshape(len(y), -1)
            before = (y - x).reshape(len(y), -1)
            gains.append(np.linalg.norm(moved, axis=1) / np.linalg.norm(before, axis=1))
    return float(np.max(gains))
