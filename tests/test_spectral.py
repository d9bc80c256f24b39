"""Norm bounds: never below the truth, tight, and what breaks if the padding is forgotten."""

import tracemalloc

import numpy as np
import pytest
from helpers import conv_matrix, norm, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, spectral
from dynzoo.spectral import convolutions, singular_values
from dynzoo.spectral.convolutions import Axis, padded_conv_norm_float64
from dynzoo.spectral.ops import _hermitian_gram, _hermitian_modulus, _hermitian_square

PADDINGS = ("zero", "circular")
seeds = st.integers(0, 10_000)


@pytest.mark.parametrize("exponent", [-900, 0, 900])
@pytest.mark.parametrize("shape", [(128, 512), (1600, 150), (330, 400)])
def test_norm_of_a_long_matrix_is_bounded_by_its_gram_matrix(monkeypatch, shape, exponent):
    rng = np.random.default_rng(sum(shape))
    side = min(shape)
    for values in (np.ones(side), rng.uniform(size=side), 2.0 ** -np.arange(side)):
        # Singular vectors are random, the singular values are known.
        u, v = (np.linalg.qr(rng.standard_normal((n, side)))[0] for n in shape)
        matrix = np.ldexp((u * values) @ v.T, exponent)
        bound = spectral.dense_norm_float64(matrix)
        largest = np.ldexp(np.linalg.norm(np.ldexp(matrix, -exponent), ord=2), exponent)
        assert largest * (1 + 1e-12) <= bound <= largest * (1 + 1e-8)
    length = np.linalg.norm
    monkeypatch.setattr(np.linalg, "norm", lambda v: length(v))  # without `ord`: the other way
    assert spectral.dense_norm_float64(matrix) == bound


@pytest.mark.parametrize("kind", [float, complex])
def test_a_guess_that_misses_the_largest_eigenvalue_is_not_believed(kind):
    side = 330
    start = np.random.default_rng(0).standard_normal(side)  # what the guess begins with
    away = np.random.default_rng(1).standard_normal(side)
    away -= start * (start @ away) / (start @ start)
    away /= np.linalg.norm(away)
    for above in (1e-12, 1e-9, 1e-6, 0.5):
        gram = np.eye(side, dtype=kind) + above * np.outer(away, away)
        largest = singular_values.largest_eigenvalue(gram[None], 0.0)
        bound = largest * singular_values.gram_slack(side, side)
        assert 1 + above <= bound <= (1 + above) * (1 + 1e-7)
    orthonormal = np.linalg.qr(np.random.default_rng(2).standard_normal((400, side)))[0]
    near = orthonormal.astype("float32").astype("float64")
    assert 0 < spectral.dense_norm_float64(near) / np.linalg.norm(near, ord=2) - 1 < 1e-9


@given(st.integers(1, 9), st.integers(1, 9), st.floats(-8, 8), seeds)
def test_dense_norms_enclose_the_singular_values(rows, columns, log_scale, seed):
    matrix = normal((rows, columns), seed).astype(np.float64) * 10**log_scale
    values = np.linalg.svd(matrix, compute_uv=False)
    largest = spectral.dense_norm_float64(matrix)
    assert values[0] <= largest <= values[0] * (1 + 1e-9)
    smallest = spectral.dense_min_singular_value_float64(matrix)
    assert smallest <= values[-1] and smallest == pytest.approx(values[-1], abs=1e-9 * values[0])


def test_empty_and_zero_matrices_have_norm_zero():
    assert spectral.dense_norm_float64(np.zeros((0, 3))) == 0.0
    assert spectral.dense_norm_float64(np.zeros((4, 3))) == 0.0
    assert spectral.conv_norm_float64(np.zeros((3, 3, 2, 2)), (4, 4)) == 0.0


@settings(max_examples=20)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seeds,
)
def test_conv_norm_bounds_the_unrolled_operator(k_rows, k_columns, c_in, c_out, spatial, seed):
    kernel = normal((k_rows, k_columns, c_in, c_out), seed)
    truth = norm(conv_matrix(kernel, spatial, "zero"))
    assert spectral.conv_norm_float64(kernel, spatial, "zero") >= truth
    truth = norm(conv_matrix(kernel, spatial, "circular"))
    bound = spectral.conv_norm_float64(kernel, spatial, "circular")
    assert truth * (1 - 1e-12) <= bound <= truth * (1 + 1e-9)


@pytest.mark.parametrize("size", [2, 3])
def test_zero_padding_bound_is_tight(size):
    for seed in range(3):
        kernel = normal((size, size, 2, 3), seed)
        truth = norm(conv_matrix(kernel, (14, 14), "zero"))
        assert truth <= spectral.conv_norm_float64(kernel, (14, 14), "zero") <= 1.05 * truth


def test_circular_norm_is_no_bound_for_zero_padding():
    # The symbol peaks at frequency pi, which a grid of three points does not have.
    alternating = np.outer([-1, 1, -1], [-1, 1, -1]).reshape(3, 3, 1, 1)
    truth = norm(conv_matrix(alternating, (3, 3), "zero"))
    circular = spectral.conv_norm_float64(alternating, (3, 3), "circular")
    assert truth == pytest.approx((1 + np.sqrt(2)) ** 2)
    assert circular == pytest.approx(4.0)
    assert spectral.conv_norm_float64(alternating, (3, 3), "zero") >= truth > 1.4 * circular


def test_all_ones_kernel():
    ones = np.ones((3, 3, 1, 1))
    truth = (1 + 2 * np.cos(np.pi / 9)) ** 2  # the zero-padded operator on 8 x 8
    assert norm(conv_matrix(ones, (8, 8), "zero")) == pytest.approx(truth)
    assert spectral.dense_norm_float64(ones.reshape(9, 1)) == pytest.approx(3.0)  # a third of it
    bound = spectral.conv_norm_float64(ones, (8, 8), "zero")
    assert truth <= bound <= 9 * (1 + 1e-9)
    assert spectral.conv_norm_float64(ones, (8, 8), "circular") == pytest.approx(9.0)
    assert 9.0 <= spectral.conv_all_sizes_norm_float64(ones) <= 9.05


@settings(max_examples=8)
@given(st.integers(1, 4), st.integers(1, 2), st.sampled_from(PADDINGS), seeds)
def test_all_sizes_bound_holds_at_every_size(k, channels, padding, seed):
    kernel = normal((k, k, channels, 2), seed)
    bound = spectral.conv_all_sizes_norm_float64(kernel)
    for spatial in ((1, 1), (2, 5), (4, 4), (7, 3), (9, 9)):
        assert norm(conv_matrix(kernel, spatial, padding)) <= bound
    # The circular operator of a fine odd grid, whose frequencies the bound did not sample.
    for n in (151, 179):
        fine = spectral.conv_norm_float64(kernel, (n, n), "circular")
        assert fine * (1 - 1e-10) <= bound <= fine * 1.02


def test_all_sizes_bound_with_a_coarse_grid():
    kernel = normal((3, 3, 1, 1), 1)
    fine = spectral.conv_norm_float64(kernel, (501, 501), "circular")
    for grid in (5, 6, 9, 16):
        assert spectral.conv_all_sizes_norm_float64(kernel, grid) >= fine
    with pytest.raises(ValueError, match="`grid` must be above 4"):
        spectral.conv_all_sizes_norm_float64(kernel, 4)


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="`padding` must be"):
        spectral.conv_norm_float64(np.ones((3, 3, 1, 1)), (4, 4), "same")


# --- numbers of any size ----------------------------------------------------------------------

FLOAT64_BOUNDS = {
    "dense": (lambda k: spectral.dense_norm_float64(k.reshape(k.shape[0], -1)), 1),
    "circular": (lambda k: spectral.conv_norm_float64(k, (5, 4), "circular"), 1),
    "zero": (lambda k: spectral.conv_norm_float64(k, (5, 4), "zero"), 1),
    "small": (lambda k: spectral.conv_norm_float64(k, (5, 4), "zero", small_images=True), 1),
    "all_sizes": (spectral.conv_all_sizes_norm_float64, 1),
    "strided": (lambda k: padded_conv_norm_float64(k, [Axis(7, 4, 2, 1, 1), Axis(6, 3, 2)]), 1),
    "smallest": (lambda k: spectral.dense_min_singular_value_float64(k.reshape(k.shape[0], -1)), 0),
}


@settings(max_examples=60)
@given(st.sampled_from(list(FLOAT64_BOUNDS)), st.integers(-300, 300), seeds)
def test_bounds_scale_with_the_kernel(name, exponent, seed):
    bound, _ = FLOAT64_BOUNDS[name]
    kernel = np.random.default_rng(seed).normal(size=(3, 3, 2, 3))
    scale = 10.0**exponent
    plain, scaled = bound(kernel), bound(kernel * scale)
    assert plain > 0
    assert scaled / scale == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("name", FLOAT64_BOUNDS)
@pytest.mark.parametrize("tiny", [5e-324, 1e-315, 1e-170])
def test_only_a_zero_kernel_has_norm_zero(name, tiny):
    bound, above = FLOAT64_BOUNDS[name]
    ones = np.ones((3, 3, 1, 1))
    if above:
        # Of denormals there are few: the bound is rounded up to the next one.
        assert bound(tiny * ones) >= bound(ones) * tiny > 0
    else:
        assert 0 <= bound(tiny * ones) <= bound(ones) * tiny
    assert bound(0 * ones) == 0.0


@pytest.mark.parametrize("name", FLOAT64_BOUNDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_kernels_that_are_not_finite_are_refused(name, value):
    kernel = np.ones((3, 3, 2, 2))
    kernel[1, 2, 0, 1] = value
    with pytest.raises(ValueError, match="must hold finite numbers"):
        FLOAT64_BOUNDS[name][0](kernel)


def test_a_norm_beyond_float64_is_infinite_and_a_least_value_is_not():
    huge = np.full((4, 4), 1.7e308)
    assert spectral.dense_norm_float64(huge) == np.inf
    assert spectral.conv_norm_float64(huge.reshape(2, 2, 2, 2), (4, 4)) == np.inf
    assert spectral.dense_min_singular_value_float64(1.7e308 * np.eye(3)) <= 1.7e308


def test_polar_factor_of_extreme_kernels():
    matrix = np.random.default_rng(0).normal(size=(4, 7))
    plain = spectral.nearest_orthonormal_float64(matrix)
    for scale in (1e-300, 1e300):
        after = spectral.nearest_orthonormal_float64(matrix * scale)
        np.testing.assert_allclose(after, plain, atol=1e-12)


# --- the ways to a convolution's norm ---------------------------------------------------------


def test_products_of_taps_give_the_same_norm_as_symbols(monkeypatch):
    for seed, (k, spatial) in enumerate([((3, 3), (9, 8)), ((1, 5), (7, 12)), ((2, 4), (6, 6))]):
        kernel = np.random.default_rng(seed).normal(size=(*k, 18, 20))
        products = spectral.conv_norm_float64(kernel, spatial)
        monkeypatch.setattr(convolutions, "_LARGE_SIDE", 10**9)
        symbols = spectral.conv_norm_float64(kernel, spatial)
        monkeypatch.undo()
        assert products == pytest.approx(symbols, rel=1e-10)


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seeds,
)
def test_twisted_rings_are_upper_bounds(k, size, strides, seed):
    kernel = np.random.default_rng(seed).normal(size=(*k, 2, 2))
    axes = [
        Axis(n, -(-n // s), s, 1, max((-(-n // s) - 1) * s + t - n, 0) // 2)
        for n, s, t in zip(size, strides, k, strict=True)
    ]
    exact = padded_conv_norm_float64(kernel, axes)
    rings = convolutions._twisted_bound(kernel, axes, np.inf, 0.0)
    plain = convolutions._ring_bound(kernel, axes, convolutions._rings(kernel.shape, axes))
    # At these sizes the first is the norm of the unrolled map itself.
    assert exact <= rings * (1 + 1e-9) and exact <= plain * (1 + 1e-9)


def test_norm_of_a_large_unrolled_map():
    # A Kronecker product: sums over three pixels along both axes, and a matrix over channels.
    channels = np.random.default_rng(2).normal(size=(16, 16))
    kernel = np.ones((3, 3, 1, 1)) * channels
    axes = [Axis(6, 6, before=1)] * 2
    exact = (1 + 2 * np.cos(np.pi / 7)) ** 2 * np.linalg.norm(channels, 2)
    assert 6 * 6 * 16 > convolutions._SMALL_UNROLLED
    assert exact <= padded_conv_norm_float64(kernel, axes) <= exact * (1 + 1e-8)
    assert spectral.conv_norm_float64(kernel, (6, 6)) > 1.1 * exact


def test_memory_does_not_grow_with_the_image():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 64, 64))
    peaks = []
    for size in (28, 84):
        tracemalloc.start()
        spectral.conv_norm_float64(kernel, (size, size))
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    # All symbols at 84x84 pixels are 231 MiB, and as much again their Gram matrices.
    assert max(peaks) < 80 and peaks[1] < 1.5 * peaks[0]


def test_what_is_too_large_is_refused_before_memory_is_taken():
    for shape, message in (((3, 3, 8192, 8192), "67108864"), ((3, 3, 2048, 2048), "e\\+")):
        kernel = np.broadcast_to(np.float64(1.0), shape)  # one number in memory
        tracemalloc.start()
        with pytest.raises(ValueError, match=f"512x512 pixels.*{message}"):
            spectral.conv_norm_float64(kernel, (512, 512))
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


# --- the training side: Gram iteration over keras.ops -----------------------------------------


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (1, 6)])
@pytest.mark.parametrize("log_scale", [-9, 0, 9, 25])
def test_gram_bound_of_a_matrix(shape, log_scale):
    for seed in range(3):
        matrix = (normal(shape, seed) * 10.0**log_scale).astype("float32")
        truth = norm(matrix)
        bound = float(backend.to_numpy(spectral.dense_norm(ops.convert_to_tensor(matrix))))
        assert truth * (1 - 1e-5) <= bound <= truth * 1.005


def test_gram_bound_of_close_singular_values():
    # The hardest case for an iteration: all values equal, or nearly.
    matrix = spectral.nearest_orthonormal_float64(normal((12, 12), 4)).astype("float32")
    matrix = matrix @ np.diag(np.linspace(0.999, 1, 12)).astype("float32")
    for iterations, excess in ((6, 0.03), (8, 0.006), (12, 1e-3)):
        bound = float(backend.to_numpy(spectral.dense_norm(matrix, iterations)))
        assert norm(matrix) * (1 - 1e-5) <= bound <= norm(matrix) * (1 + excess)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("k", "spatial"), [(3, (4, 5)), (2, (5, 4)), (3, (2, 2))])
def test_gram_bound_of_a_convolution(k, spatial, padding):
    for seed, scale in ((0, 1e-6), (1, 1.0), (2, 1e6)):
        kernel = normal((k, k, 2, 3), seed, scale)
        truth = norm(conv_matrix(kernel, spatial, padding))
        exact = spectral.conv_norm_float64(kernel, spatial, padding)
        bound = float(backend.to_numpy(spectral.conv_norm(kernel, spatial, padding, 10)))
        assert bound >= truth * (1 - 1e-5)
        assert exact * (1 - 1e-5) <= bound <= exact * 1.002


@pytest.mark.parametrize("shape", [(7, 4, 6), (7, 6, 4), (2, 5, 5)])
def test_a_hermitian_matrix_in_one_real_matrix(shape):
    symbols = normal(shape, 1) + 1j * normal(shape, 2)
    adjoint = symbols.conj().swapaxes(-1, -2)
    gram = adjoint @ symbols if shape[-2] > shape[-1] else symbols @ adjoint
    parts = (ops.convert_to_tensor(p.astype("float32")) for p in (symbols.real, symbols.imag))
    packed = _hermitian_gram(*parts)
    for expected, found in ((gram, packed), (gram @ gram, _hermitian_square(packed))):
        size = np.abs(expected).max()
        sum_of_parts = expected.real + expected.imag
        np.testing.assert_allclose(backend.to_numpy(found), sum_of_parts, atol=1e-5 * size)
        entries = backend.to_numpy(_hermitian_modulus(found))
        np.testing.assert_allclose(entries, np.abs(expected), atol=1e-5 * size)


def test_gram_bounds_compile():
    kernel = ops.convert_to_tensor(normal((3, 3, 2, 2), 7))
    matrix = ops.convert_to_tensor(normal((6, 4), 7))
    for function, argument in (
        (lambda k: spectral.conv_norm(k, (4, 4)), kernel),
        (spectral.dense_norm, matrix),
        (spectral.orthonormalize, matrix),
    ):
        eager = backend.to_numpy(function(argument))
        np.testing.assert_allclose(
            backend.to_numpy(backend.jit(function)(argument)), eager, rtol=1e-5, atol=1e-6
        )


def test_gram_bound_of_zero_is_harmless():
    assert 0 <= float(backend.to_numpy(spectral.dense_norm(np.zeros((3, 4), "float32")))) < 1e-12
    bound = spectral.conv_norm(np.zeros((3, 3, 2, 2), "float32"), (4, 4))
    assert 0 <= float(backend.to_numpy(bound)) < 1e-12


@pytest.mark.parametrize("shape", [(3, 7), (7, 3)])
def test_newton_schulz_maps_the_singular_values(shape):
    u, _, vt = np.linalg.svd(normal(shape, 3).astype(np.float64), full_matrices=False)
    values = np.array([0.0, 0.7, 1.7])
    matrix = ((u * values) @ vt).astype("float32")
    after = backend.to_numpy(spectral.newton_schulz(ops.convert_to_tensor(matrix), 1))
    np.testing.assert_allclose(after, (u * (1.5 * values - 0.5 * values**3)) @ vt, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)])
@pytest.mark.parametrize("scale", [1e-3, 0.5, 1.0, 1e4, 1e25])
def test_orthonormalize_contracts_and_converges(shape, scale):
    matrix = ops.convert_to_tensor(normal(shape, 2, scale))
    assert norm(backend.to_numpy(spectral.orthonormalize(matrix, 1))) <= 1 + 1e-5
    after = backend.to_numpy(spectral.orthonormalize(matrix, 40))
    np.testing.assert_allclose(after, spectral.nearest_orthonormal_float64(matrix), atol=1e-5)


def test_nearest_orthonormal_is_the_polar_factor():
    for shape in ((3, 6), (6, 3), (4, 4)):
        matrix = normal(shape, 5).astype(np.float64)
        nearest = spectral.nearest_orthonormal_float64(matrix)
        small = min(shape)
        gram = nearest @ nearest.T if shape[0] == small else nearest.T @ nearest
        np.testing.assert_allclose(gram, np.eye(small), atol=1e-12)
        # A = U P with P symmetric positive semi-definite characterises the polar factor.
        p = nearest.T @ matrix if shape[0] >= shape[1] else matrix @ nearest.T
        np.testing.assert_allclose(p, p.T, atol=1e-12)
        assert np.linalg.eigvalsh(p)[0] > 0
