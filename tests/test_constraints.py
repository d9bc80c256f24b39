"""Constraints as functions of a kernel, and `project`: what they guarantee from any start."""

import keras
import numpy as np
import pytest
from helpers import conv_matrix, norm, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, constraints, spectral
from dynzoo.constraints import Orthonormal, SpectralNorm

SCALES = [0.0, 1e-20, 0.05, 1.0, 50.0, 1e4, 1e25]


def impose(constraint, kernel):
    return backend.to_numpy(constraint(ops.convert_to_tensor(kernel)))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 1, 3, 5)])
def test_spectral_norm_of_matrices(shape, scale):
    kernel = normal(shape, 1, scale)
    before = norm(kernel.reshape(-1, shape[-1]))
    for limit in (1.0, 0.7):
        after = impose(SpectralNorm(limit), kernel)
        size = norm(after.reshape(-1, shape[-1]))
        assert size <= limit * (1 + 1e-5)
        if before <= limit:
            np.testing.assert_array_equal(after, kernel)
        else:
            assert size >= limit * 0.999
            np.testing.assert_allclose(after / size, kernel / before, atol=1e-5)


@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("k", "spatial"), [(3, (4, 5)), (2, (4, 4)), (3, None)])
def test_spectral_norm_of_convolutions(k, spatial, scale, padding):
    kernel = normal((k, k, 2, 3), 2, scale)
    constraint = SpectralNorm(spatial=spatial, padding=padding)
    after = impose(constraint, kernel)
    sizes = [spatial] if spatial else [(2, 3), (5, 5), (8, 8)]
    for size in sizes:
        assert norm(conv_matrix(after, size, padding)) <= 1 + 1e-5
    exact = constraint.nearest(kernel)
    np.testing.assert_allclose(after, exact, atol=2e-2 * np.abs(exact).max())
    if scale in (0.0, 1e-20):
        np.testing.assert_array_equal(after, kernel)


def test_all_ones_kernel_is_scaled_by_the_norm_of_the_convolution():
    after = impose(SpectralNorm(spatial=(8, 8)), np.ones((3, 3, 1, 1), "float32"))
    assert 0.9 < norm(conv_matrix(after, (8, 8), "zero")) <= 1 + 1e-5
    assert after[0, 0, 0, 0] < 1 / 8  # the reshaped matrix would have allowed 1/3


@settings(max_examples=15)
@given(st.sampled_from([(5, 3), (3, 5)]), st.floats(0.01, 100.0), st.integers(0, 1000))
def test_idempotent(shape, scale, seed):
    for constraint, tolerance in ((SpectralNorm(), 1e-6), (Orthonormal(30), 1e-6)):
        once = impose(constraint, normal(shape, seed, scale))
        np.testing.assert_allclose(impose(constraint, once), once, atol=tolerance)


def test_feasible_convolution_is_untouched():
    kernel = normal((3, 3, 2, 2), 3)
    kernel *= np.float32(0.999 / spectral.conv_norm_float64(kernel, (5, 5)))
    np.testing.assert_array_equal(
        impose(SpectralNorm(spatial=(5, 5), iterations=14), kernel), kernel
    )
    assert SpectralNorm(spatial=(5, 5)).nearest(kernel) is not None
    np.testing.assert_array_equal(SpectralNorm(spatial=(5, 5)).nearest(kernel), kernel)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 1, 4, 3)])
def test_orthonormal_never_expands(shape, scale):
    for steps in (1, 2, 5):
        after = impose(Orthonormal(steps), normal(shape, 4, scale))
        assert after.shape == shape and np.isfinite(after).all()
        assert norm(after.reshape(-1, shape[-1])) <= 1 + 1e-5


@pytest.mark.parametrize("steps", [2, 5, 6, 40])
@pytest.mark.parametrize("values", [[1, 0, 0, 0], [2, 1, 0, 0], [1.0, 1e-2, 1e-4, 1e-6]])
def test_orthonormal_of_a_singular_kernel(values, steps):
    # Rounding turns a zero singular value into a tiny one, which the iteration then enlarges.
    u, _, vt = np.linalg.svd(normal((4, 9), 8), full_matrices=False)
    after = impose(Orthonormal(steps), ((u * values) @ vt).astype("float32"))
    assert norm(after) <= 1 + 1e-5


def with_values(shape, values, seed=8):
    u, _, vt = np.linalg.svd(normal(shape, seed), full_matrices=False)
    return ((u * values) @ vt).astype("float32")


def singular_values(kernel):
    return np.linalg.svd(np.asarray(kernel, dtype=np.float64), compute_uv=False)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (12, 12)])
def test_orthonormal_from_far(shape):
    # what large learning rates leave; as documented, from 1e-6 of the largest on
    count = min(shape)
    constraint = backend.jit(Orthonormal())
    for values in (
        np.linspace(0.3, 1.8, count),
        np.r_[np.ones(count - 1), 0.047],
        np.logspace(-6, 0, count),
        np.logspace(0, 6, count),
        1e25 * np.logspace(-3, 0, count),
        1e-25 * np.logspace(-3, 0, count),
        np.r_[1e3, np.ones(count - 1)],
    ):
        kernel = with_values(shape, values)
        after = backend.to_numpy(constraint(ops.convert_to_tensor(kernel)))
        assert np.abs(singular_values(after) - 1).max() <= 1e-5, values
        if values[0] / values[-1] > 1e-3:  # beyond that float32 does not hold the directions
            np.testing.assert_allclose(after, Orthonormal().nearest(kernel), atol=1e-3)


@pytest.mark.parametrize("kernel", [np.zeros((5, 3)), np.ones((5, 3)), np.eye(5, 3)[:, [0, 0, 1]]])
def test_orthonormal_leaves_an_exact_zero_and_project_does_not(kernel):
    kernel = kernel.astype("float32")
    rank = np.linalg.matrix_rank(kernel)
    after = singular_values(impose(Orthonormal(), kernel))
    assert after[0] <= 1 + 1e-5
    np.testing.assert_allclose(after[:rank], 1.0, atol=1e-5)
    np.testing.assert_allclose(singular_values(Orthonormal().nearest(kernel)), 1.0, atol=1e-9)


def test_orthonormal_takes_one_round_where_a_kernel_is_near():
    kernel = with_values((64, 16), np.linspace(0.95, 1.05, 16))
    _, left = spectral.ops._first_round(ops.convert_to_tensor(kernel))
    assert backend.to_numpy(left).max() <= spectral.ops._LAST_ROUND
    _, left = spectral.ops._first_round(ops.convert_to_tensor(kernel * np.float32(0.7)))
    assert backend.to_numpy(left).min() > spectral.ops._LAST_ROUND


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e18, 1e30, 1e37])
@pytest.mark.parametrize("kind", ["ones", "rank one", "ratios", "equal columns", "normal"])
def test_worst_kernels(kind, scale):
    rng = np.random.default_rng(3)
    kernel = {
        "ones": np.ones((9, 6)),
        "rank one": np.outer(rng.normal(size=9), rng.normal(size=6)) / 9,
        "ratios": rng.normal(size=(9, 6)) * 10.0 ** rng.uniform(-30, 0, size=(9, 6)),
        "equal columns": np.tile(rng.normal(size=(9, 1)), (1, 6)),
        "normal": rng.normal(size=(9, 6)),
    }[kind]
    kernel = (scale * kernel).astype("float32")
    for limit in (1e-3, 1.0, 1e3):
        assert norm(impose(SpectralNorm(limit), kernel)) <= limit * (1 + 1e-5)
    assert norm(impose(Orthonormal(), kernel)) <= 1 + 1e-5


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_orthonormal_two_steps_as_documented(shape):
    u, _, vt = np.linalg.svd(normal(shape, 5), full_matrices=False)
    kernel = (u * np.linspace(0.9, 1.1, min(shape))) @ vt
    values = np.linalg.svd(impose(Orthonormal(2), kernel), compute_uv=False)
    assert np.abs(values - 1).max() <= 1e-6
    exact = (u @ vt).astype("float32")
    np.testing.assert_allclose(impose(Orthonormal(), exact), exact, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpectralNorm(0.0), "`max_norm` must be in \\(0, inf"),
        (lambda: SpectralNorm(float("nan")), "`max_norm` must be in \\(0, inf"),
        (lambda: SpectralNorm(padding="same"), "`padding` must be"),
        (lambda: SpectralNorm(spatial=(4,)), "`spatial` must be"),
        (lambda: SpectralNorm(spatial=(0, 4)), "`spatial` must be"),
        (lambda: SpectralNorm(iterations=0), "`iterations` must be"),
        (lambda: Orthonormal(0), "`steps` must be a positive integer"),
        (lambda: Orthonormal()(normal((3, 3, 2, 2))), "applies to matrices"),
        (lambda: Orthonormal().nearest(normal((3, 2, 2))), "applies to matrices"),
        # the kernel of a Conv1D: as a matrix its norm would be too small
        (lambda: SpectralNorm()(normal((3, 2, 2))), "shape \\(3, 2, 2\\)"),
        (lambda: SpectralNorm().nearest(normal((3, 3, 3, 2, 2))), "shape \\(3, 3, 3, 2, 2\\)"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- project ----------------------------------------------------------------------------------


def small_model():
    inner = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.Conv2D(
                2, 3, padding="same", kernel_constraint=SpectralNorm(spatial=(4, 4))
            ),
            keras.layers.Flatten(),
        ]
    )
    return keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            inner,
            keras.layers.Dense(6, kernel_constraint=Orthonormal()),
            keras.layers.Dense(5, kernel_constraint=SpectralNorm(0.5)),
            keras.layers.Dense(3, kernel_constraint="non_neg"),
            keras.layers.Dense(2),
        ]
    )


def random_weights(model, seed=0, scale=3.0):
    return [normal(w.shape, seed + i, scale) for i, w in enumerate(model.get_weights())]


def test_project_imposes_every_constraint_of_a_nested_model():
    model = small_model()
    weights = random_weights(model)
    model.set_weights(weights)
    constraints.project(model)
    conv, conv_bias, frame, _, dense, _, non_negative, _, free, free_bias = model.get_weights()
    assert norm(conv_matrix(conv, (4, 4), "zero")) <= 1 + 1e-5
    np.testing.assert_allclose(frame.T @ frame, np.eye(6), atol=1e-5)
    assert 0.5 * (1 - 1e-5) <= norm(dense) <= 0.5 * (1 + 1e-5)
    np.testing.assert_array_equal(non_negative, np.maximum(weights[6], 0))
    for now, before in ((conv_bias, 1), (free, 8), (free_bias, 9)):
        np.testing.assert_array_equal(now, weights[before])
    once = model.get_weights()
    constraints.project(model)
    for first, second in zip(once, model.get_weights(), strict=True):
        np.testing.assert_allclose(second, first, atol=1e-6)


def test_project_covers_weights_that_are_frozen():
    # Keras constrains only what it trains; a frozen layer must hold its bound all the same.
    model = small_model()
    model.trainable = False
    model.set_weights(random_weights(model))
    constraints.project(model)
    assert norm(model.get_weights()[4]) <= 0.5 * (1 + 1e-5)


def test_project_takes_a_layer():
    layer = keras.layers.Dense(4, kernel_constraint=Orthonormal())
    layer.build((None, 3))
    layer.kernel.assign(normal((3, 4), 1, 10.0))
    constraints.project(layer)
    kernel = backend.to_numpy(layer.kernel.value)
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(3), atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_project_refuses_weights_that_are_not_finite_and_changes_nothing(bad):
    model = small_model()
    weights = random_weights(model)
    weights[4][0, 0] = bad
    model.set_weights(weights)
    with pytest.raises(ValueError, match="not finite: .*kernel"):
        constraints.project(model)
    for now, before in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, before)
