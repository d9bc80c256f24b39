"""Rounding where it is large: settings of extreme size, two types in a model, stale compilation."""

import keras
import numpy as np
import pytest
from certificate_models import linear
from keras import layers as kl

from dynzoo import layers as dl
from dynzoo.backend import has_float64, to_numpy
from dynzoo.certificates import certify, forward_float64
from dynzoo.certificates.errors import ReferenceMismatchError, UncertifiableLayerError

ops = keras.ops


def functional(function, shape=(2,), dtype=None):
    inputs = keras.Input(shape, dtype=dtype)
    return keras.Model(inputs, function(inputs))


def check(model, x):
    """The bound holds, however the model is asked."""
    exact = forward_float64(model, x)
    allowed = certify(model).logit_error(x, "worst-case")
    for answer in (model.predict(x, verbose=0), to_numpy(model(x))):
        found = np.linalg.norm(np.asarray(answer, np.float64) - exact, axis=1)
        assert np.all(found <= allowed)


def normal(scale=1.0, n=500):
    return (scale * np.random.default_rng(0).normal(size=(n, 2))).astype("float32")


@pytest.mark.parametrize(
    "function",
    [
        # the slope and the ceiling are rounded, too
        lambda x: kl.LeakyReLU(negative_slope=3.3)(x),
        lambda x: kl.ReLU(negative_slope=3.3)(x),
        lambda x: ops.leaky_relu(x, 3.3),
        lambda x: kl.ReLU(max_value=0.1)(1e3 * x),
        # functions that are not small at zero, or pass numbers that are not
        lambda x: ops.squareplus(x, 1e12),
        lambda x: kl.ELU(alpha=1e6)(1e-3 * x),
        lambda x: ops.elu(1e-3 * x, 1e6),
        lambda x: ops.celu(1e-3 * x, 1e6),
    ],
)
def test_settings_of_activations(function):
    check(functional(function), -np.abs(normal()))


def test_a_branch_that_only_some_images_reach_has_its_rounding():
    # on images in [0, 1] the function of large numbers is 0: no sample shows its rounding
    def function(x):
        return kl.ELU(alpha=1e6)(-1e-3 * ops.relu(x - 5.0))

    check(functional(function), 5.0 + np.abs(normal()))


@pytest.mark.parametrize("variance, epsilon", [(0.0, 1e-41), (1e-41, 0.0), (-0.5, 0.5 + 1e-8)])
def test_a_variance_that_rounding_loses_is_refused(variance, epsilon):
    model = functional(kl.BatchNormalization(epsilon=epsilon))
    model.set_weights([np.full(2, v, "float32") for v in (1e-20, 0.0, 0.0, variance)])
    with pytest.raises((UncertifiableLayerError, ReferenceMismatchError)):
        certify(model).radii(normal())


def test_a_variance_that_cancels_a_little():
    model = functional(kl.BatchNormalization(epsilon=1e-3))
    model.set_weights([np.full(2, v, "float32") for v in (1.0, 0.0, 0.3, -0.000999)])
    check(model, normal())


def test_images_below_the_smallest_normal_number():
    # JAX and TensorFlow read them as zero, which large weights make visible
    check(linear([[3e30, 1.0], [1.0, 3e30]], np.zeros(2)), normal(1e-39))


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e-20, 1e20])
def test_rows_of_extreme_length(scale):
    model = functional(lambda x: dl.UnitRowDense(3)(ops.relu(x - 5.0)))
    kernel = scale * np.random.default_rng(0).normal(size=(2, 3))
    model.layers[-1].kernel.assign(kernel.astype("float32"))
    try:
        check(model, 5.0 + np.abs(normal()))
    except (UncertifiableLayerError, ReferenceMismatchError):
        assert scale < 1e-30


@pytest.mark.skipif(not has_float64(), reason="JAX computes in float32")
def test_a_float32_layer_in_a_float64_model():
    # its rounding shows on no image in [0, 1]: the layer before it gives zeros
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        model = functional(
            lambda x: kl.Dense(2, dtype="float64")(
                kl.Dense(2, dtype="float32")(kl.Dense(2, activation="relu", dtype="float64")(x))
            ),
            dtype="float64",
        )
        matrices = [np.eye(2), [[1, 1 / 3], [1 / 7, 1]], [[1, 1], [1, 1 + 1e-9]]]
        biases = [np.full(2, -5.0), np.zeros(2), np.zeros(2)]
        model.set_weights(
            [np.array(a) for pair in zip(matrices, biases, strict=True) for a in pair]
        )
        check(model, np.random.default_rng(0).uniform(5, 20, size=(200, 2)))
    finally:
        keras.config.set_floatx(before)


def test_branches_of_different_widths_are_stacked():
    def function(x):
        return kl.Dense(2)(kl.Concatenate()([kl.Dense(4)(x), kl.Dense(7)(x)]))

    model = functional(function)
    check(model, normal())
    assert np.all(certify(model).radii(normal(n=5))[1] >= 0)


def test_an_activation_that_forgets_its_input():
    model = functional(lambda x: kl.Dense(2)(kl.Dense(1, activation="log_softmax")(x)))
    check(model, normal())


def test_a_bare_operation_that_underflows_is_named():
    model = functional(lambda x: x * 1e-42 * 1e38)
    try:
        check(model, normal(1e5))
    except ReferenceMismatchError:
        pass  # the backend takes the product for zero


def test_predictions_compiled_before_a_setting_was_changed():
    model = linear(np.eye(2), np.zeros(2))
    model = keras.Sequential([keras.Input((2,)), kl.ReLU(max_value=5.0), *model.layers])
    x = np.array([[100.0, 50.0], [1.0, 2.0]], "float32")
    model.predict(x, verbose=0)
    model.layers[0].max_value = 1000.0
    certificate = certify(model)
    first, second = certificate.radii(x), certificate.radii(x)
    np.testing.assert_array_equal(first[1], second[1])
    assert second[1][0] > 30


def chain(steps, share):
    """Adds many numbers of about a share of half a unit at 1, and takes them off at once."""

    def function(x):
        h, total = x, 0.0
        for k in range(steps):
            number = np.float32(share * 2.0**-24 * (1 + 0.01 * k / steps))
            h, total = h + number, total + float(number)
        return h - np.float32(total)

    return functional(function)


@pytest.mark.parametrize("steps, share", [(16, 0.5), (60, 0.98), (60, 1.01)])
def test_a_few_roundings_that_line_up_are_counted_in_full(steps, share):
    model = chain(steps, share)
    x = np.array([[1.0 + i * 2.0**-20, 1.0] for i in (1, 2, 64, 4096)], "float32")
    found = np.linalg.norm(to_numpy(model(x)) - forward_float64(model, x), axis=1)
    assert found.max() > steps * share * 2.0**-26  # they do line up
    assert np.all(found <= certify(model).logit_error(x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_that_a_zero_kernel_takes_away_are_read_all_the_same(dtype):
    """An image too large for float32 is infinite there, and infinity times zero is no number."""
    if dtype == "float64" and not has_float64():
        pytest.skip("JAX has no float64 unless it is switched on before anything runs")
    model = functional(lambda x: kl.Dense(2, dtype=dtype)(x), dtype=dtype)
    model.set_weights([np.zeros((2, 2)), np.array([0.0, 1.0])])
    _, radii = certify(model).radii(np.ones((1, 2), dtype))
    assert 1e17 < radii[0] < (1e20 if dtype == "float32" else np.inf)
