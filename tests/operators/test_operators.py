"""Linear operators: exact adjoints, their dense matrices, float64 twins, and norms."""

import json

import keras
import numpy as np
import pytest
from helpers import conv_matrix, norm, normal, unrolled
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, operators
from dynzoo.operators.shift import shift_float64

IMAGE = (4, 5, 8)
CASES = {
    "dense": (operators.Dense(5), (8,)),
    "dense_wide": (operators.Dense(11), (8,)),
    "pointwise": (operators.Pointwise(5), IMAGE),
    "shifted_circular": (operators.ShiftedPointwise(5, "circular"), IMAGE),
    "shifted_zero": (operators.ShiftedPointwise(5, "zero", fraction=1.0), IMAGE),
    "conv1": (operators.Conv(3, 1), IMAGE),
    "conv2_zero": (operators.Conv(3, 2, "zero"), IMAGE),
    "conv2_circular": (operators.Conv(3, 2, "circular"), IMAGE),
    "conv3_zero": (operators.Conv(3, 3, "zero"), IMAGE),
    "conv3_circular": (operators.Conv(3, 3, "circular"), IMAGE),
    "conv4_zero": (operators.Conv(2, 4, "zero"), IMAGE),
    "conv5_wider_than_the_image": (operators.Conv(2, 5, "circular"), (3, 2, 2)),
}
cases = pytest.mark.parametrize(("operator", "shape"), CASES.values(), ids=CASES.keys())


def kernel_of(operator, shape, seed=0):
    return normal(operator.kernel_shape((None, *shape)), seed)


def matrix_of(operator, shape, kernel):
    return unrolled(lambda x: operator.apply(ops.convert_to_tensor(x), kernel), shape)


@cases
def test_adjoint_identity(operator, shape):
    # exact: the matrix of the adjoint is the transposed matrix
    kernel = kernel_of(operator, shape)
    matrix = matrix_of(operator, shape, kernel)
    outputs = operator.apply(np.zeros((1, *shape), "float32"), kernel).shape[1:]
    adjoint = unrolled(lambda y: operator.adjoint(ops.convert_to_tensor(y), kernel), outputs)
    np.testing.assert_allclose(adjoint, matrix.T, rtol=1e-6, atol=1e-6)
    # and on random vectors
    x, y = normal((6, *shape), 1), normal((6, *outputs), 2)
    ax = backend.to_numpy(operator.apply(ops.convert_to_tensor(x), kernel)).astype(np.float64)
    aty = backend.to_numpy(operator.adjoint(ops.convert_to_tensor(y), kernel)).astype(np.float64)
    assert (ax * y).sum() == pytest.approx(
        (x * aty).sum(), abs=1e-5 * np.linalg.norm(ax) * np.linalg.norm(y)
    )


@cases
def test_float64_twins_agree(operator, shape):
    kernel = kernel_of(operator, shape)
    x = normal((3, *shape), 1)
    ax = operator.apply_float64(x.astype(np.float64), kernel)
    assert ax.dtype == np.float64
    np.testing.assert_allclose(
        backend.to_numpy(operator.apply(ops.convert_to_tensor(x), kernel)), ax, atol=1e-5
    )
    y = normal(ax.shape, 2)
    back = operator.adjoint_float64(y.astype(np.float64), kernel)
    np.testing.assert_allclose(
        backend.to_numpy(operator.adjoint(ops.convert_to_tensor(y), kernel)), back, atol=1e-5
    )
    assert (ax * y).sum() == pytest.approx((x * back).sum(), rel=1e-12)


@cases
def test_norms_enclose_the_truth(operator, shape):
    kernel = kernel_of(operator, shape, 3)
    values = np.linalg.svd(matrix_of(operator, shape, kernel), compute_uv=False)
    bound = operator.norm_float64(kernel, (None, *shape))
    assert bound >= values[0] * (1 - 1e-6)  # the matrix was unrolled in float32
    exact = not isinstance(operator, operators.Conv) or operator.padding == "circular"
    if getattr(operator, "padding", None) != "zero":
        assert exact and bound <= values[0] * (1 + 1e-6)
    smallest = operator.min_singular_value_float64(kernel, (None, *shape))
    columns = int(np.prod(shape))
    assert 0 <= smallest <= (values[-1] if len(values) == columns else 0.0) + 1e-6


def test_smallest_singular_value_of_an_injective_matrix():
    operator, shape = CASES["dense_wide"]
    kernel = kernel_of(operator, shape, 3)
    smallest = operator.min_singular_value_float64(kernel, (None, *shape))
    truth = np.linalg.svd(kernel.astype(np.float64), compute_uv=False)[-1]
    assert smallest == pytest.approx(truth, rel=1e-9) and smallest <= truth
    tall = kernel_of(operators.Dense(5), (8,))
    assert operators.Dense(5).min_singular_value_float64(tall, (None, 8)) == 0.0


@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_conv_is_the_convolution_written_out(size, padding):
    operator = operators.Conv(2, size, padding)
    kernel = kernel_of(operator, (4, 3, 2))
    truth = conv_matrix(kernel, (4, 3), padding)
    np.testing.assert_allclose(matrix_of(operator, (4, 3, 2), kernel), truth, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_conv_is_the_convolution_of_keras(size):
    layer = keras.layers.Conv2D(3, size, padding="same", use_bias=False)
    x = ops.convert_to_tensor(normal((2, 5, 6, 2)))
    expected = backend.to_numpy(layer(x))
    operator = operators.Conv(3, size, "zero")
    actual = backend.to_numpy(operator.apply(x, ops.convert_to_tensor(layer.kernel)))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@settings(max_examples=15)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from(["zero", "circular"]),
    st.floats(0.1, 1.0),
)
def test_shift_is_a_partial_permutation(height, width, channels, padding, fraction):
    x = normal((1, height, width, channels), 5)
    moved = shift_float64(x, False, padding, fraction)
    if padding == "circular":
        np.testing.assert_array_equal(np.sort(moved, axis=None), np.sort(x, axis=None))
        np.testing.assert_array_equal(shift_float64(moved, True, padding, fraction), x)
    else:
        assert np.linalg.norm(moved) <= np.linalg.norm(x)
        assert set(moved.ravel()) <= set(x.ravel()) | {0.0}
    y = normal(x.shape, 6)
    assert (moved * y).sum(dtype=np.float64) == pytest.approx(
        (x * shift_float64(y, True, padding, fraction)).sum(dtype=np.float64), abs=1e-5
    )


def test_shift_moves_the_four_groups_in_four_directions():
    x = np.zeros((1, 5, 5, 8), "float32")
    x[0, 2, 2, :] = 1.0
    for padding in ("zero", "circular"):
        moved = backend.to_numpy(operators.shift(ops.convert_to_tensor(x), padding=padding))
        places = [tuple(np.argwhere(moved[0, :, :, c])[0]) for c in range(8)]
        assert places == [(2, 2)] * 4 + [(3, 2), (1, 2), (2, 3), (2, 1)]
    edge = np.zeros((1, 2, 2, 4), "float32")
    edge[0, 1, 1] = 1.0
    kept = backend.to_numpy(operators.shift(ops.convert_to_tensor(edge), False, "zero", 1.0)).sum()
    assert kept == 2.0  # down and right leave the image


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_delta_orthonormal_start_has_norm_one(size):
    for c_in, c_out in ((2, 3), (3, 2)):
        kernel = backend.to_numpy(operators.DeltaOrthonormal(seed=1)((size, size, c_in, c_out)))
        values = np.linalg.svd(conv_matrix(kernel, (3, 4), "zero"), compute_uv=False)
        np.testing.assert_allclose(values[: 12 * min(c_in, c_out)], 1.0, atol=1e-6)


@cases
def test_config_round_trip(operator, shape):
    stored = json.loads(json.dumps(keras.saving.serialize_keras_object(operator)))
    again = operators.get(stored)
    assert type(again) is type(operator) and vars(again) == vars(operator)
    assert operators.get(operator) is operator


@cases
def test_constraints_hold_for_the_operator(operator, shape):
    kernel = ops.convert_to_tensor(4 * kernel_of(operator, shape, 4))
    found = [operator.spectral_norm_constraint(0.8, (None, *shape))]
    if isinstance(operator, operators.Conv):
        with pytest.raises(ValueError, match="constraint='orthonormal'"):
            operator.orthonormal_constraint(2)
    else:
        found.append(operator.orthonormal_constraint(3))
    for constraint, limit in zip(found, (0.8, 1.0), strict=False):
        size = norm(matrix_of(operator, shape, constraint(kernel)))
        assert 0.5 * limit < size <= limit * (1 + 1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: operators.Dense(0), "`units` must be a positive integer"),
        (lambda: operators.Dense(2.5), "`units` must be a positive integer"),
        (lambda: operators.Pointwise(True), "`units` must be a positive integer"),
        (lambda: operators.ShiftedPointwise(4, fraction=0.0), "`fraction` must be in"),
        (lambda: operators.ShiftedPointwise(4, fraction=1.5), "`fraction` must be in"),
        (lambda: operators.ShiftedPointwise(4, padding="same"), "`padding` must be"),
        (lambda: operators.Conv(0), "`filters` must be a positive integer"),
        (lambda: operators.Conv(2, kernel_size=0), "`kernel_size` must be a positive integer"),
        (lambda: operators.Conv(2, padding="valid"), "`padding` must be"),
        (lambda: operators.Pointwise(3).kernel_shape((None, 8)), "needs NHWC images"),
        (lambda: operators.Conv(3).kernel_shape((None, 8)), "needs NHWC images"),
        (lambda: operators.get("dense"), "`operator` must be a dynzoo operator"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
