"""Bounds of rounding: above the true error in every layer, batch and order; tampered networks."""

import keras
import numpy as np
import pytest
from certificate_models import CLASSES, classifier, images, linear, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl
from keras import ops

from dynzoo import layers as dl
from dynzoo import operators
from dynzoo.activations import MonotoneActivation
from dynzoo.backend import to_numpy
from dynzoo.certificates import certify, forward_float64
from dynzoo.certificates.errors import ReferenceMismatchError, StaleCertificateError
from dynzoo.certificates.rounding.floating_point import Budget, arithmetic_of
from dynzoo.certificates.rounding.program import factor_unit
from dynzoo.certificates.rounding.rules import matrix_product

UNIT = 2.0**-24


def l2(x):
    return np.linalg.norm(np.asarray(x, np.float64).reshape(len(x), -1), axis=1)


def hard_images(shape, seed):
    """Constant, alternating, huge, tiny, mixed in scale, and random images."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(4, *shape))
    signs = np.sign(rng.normal(size=(2, *shape)))
    mixed = noise[:2] * 10.0 ** rng.uniform(-6, 4, size=(2, *shape))
    flat = np.stack([np.full(shape, v) for v in (0.1, 1.0 / 3.0, 77.7)])
    return np.concatenate(
        [
            flat,
            signs / 3,
            mixed,
            noise,
            1e6 * noise[:1],
            1e-6 * noise[:1],
            rng.uniform(size=shape)[None],
        ]
    ).astype("float32")


def errors(model, x):
    """Error of the logits however the model is asked: compiled, at once and one by one."""
    exact = forward_float64(model, x)
    answers = [
        model.predict(x, verbose=0, batch_size=len(x)),
        to_numpy(model(x)),
        np.concatenate([to_numpy(model(x[i : i + 1])) for i in range(len(x))]),
    ]
    return np.max([l2(np.asarray(a, np.float64) - exact) for a in answers], axis=0)


BODIES = {
    "dense": lambda: [kl.Flatten(), kl.Dense(40, "relu")],
    "gelu": lambda: [kl.Flatten(), kl.Dense(40, "gelu"), kl.Dense(30, "tanh")],
    "convolution": lambda: [kl.Conv2D(6, 3, 2, "same", activation="relu"), kl.Flatten()],
    "transposed": lambda: [kl.Conv2DTranspose(5, 3, 2, "same"), kl.Flatten()],
    "separable": lambda: [kl.SeparableConv2D(5, 3, activation="elu"), kl.Flatten()],
    "depthwise": lambda: [kl.DepthwiseConv2D(3, depth_multiplier=2), kl.Flatten()],
    "normalised": lambda: [kl.BatchNormalization(), kl.LeakyReLU(), kl.Flatten()],
    "rescaled": lambda: [kl.Rescaling(1 / 127.5, -1), kl.Conv2D(4, 3), kl.Flatten()],
    "einsum": lambda: [kl.EinsumDense("abcd,de->abce", (4, 4, 5), bias_axes="e"), kl.Flatten()],
    "resized": lambda: [
        kl.Resizing(7, 7),
        kl.UpSampling2D(2, interpolation="bilinear"),
        kl.Flatten(),
    ],
    "steps": lambda: [kl.TimeDistributed(kl.Dense(5, "sigmoid")), kl.Flatten()],
    "pooled": lambda: [
        kl.AveragePooling2D(2),
        kl.Activation("softplus"),
        kl.GlobalAveragePooling2D(),
    ],
    "isometric": lambda: [
        dl.MeanShift([0.4, 0.5]),
        dl.SpaceToDepth(2),
        dl.Resize(6, 4),
        dl.OrthonormalPointwise(8),
        dl.PositionOffset(),
        dl.SpatialShift(),
        dl.GradientFlow(operators.Pointwise(4), steps=3),
        dl.MaxMinShift(),
        dl.ScaledAveragePooling2D(2),
        kl.Flatten(),
        dl.OrthonormalDense(8),
    ],
    "norm_pooled": lambda: [
        dl.L2Pooling2D(2),
        dl.OrthonormalPointwise(2),
        dl.L2Pooling2D(),
        kl.Flatten(),
    ],
    "flows": lambda: [
        dl.GradientFlow(operators.Conv(3), constraint=None, step_size=0.3, activation="tanh"),
        dl.GradientFlow(
            operators.Conv(3), constraint=None, step_size=0.1, integrator="rk4", steps=2
        ),
        dl.LearnedScale(),
        kl.Flatten(),
    ],
    "implicit": lambda: [
        dl.ImplicitGradientFlow(operators.Conv(3), "tanh", 5.0, iterations=3, steps=2),
        dl.ImplicitGradientFlow(operators.Pointwise(3), step_size="learned", iterations=4),
        kl.Flatten(),
    ],
    "softmax": lambda: [
        dl.SoftmaxGradientFlow(5, beta=3.0, steps=2),
        dl.SoftmaxGradientFlow(4, step_size="learned", use_bias=False),
        kl.Flatten(),
    ],
    "switching": lambda: [
        dl.SwitchingFlow(operators.Conv(2), steps=2, activation="half_leaky_relu"),
        kl.Flatten(),
    ],
}


@pytest.mark.parametrize("name", BODIES)
@settings(max_examples=2)
@given(seed=st.integers(0, 10**6))
def test_no_layer_errs_more_than_its_bound(name, seed):
    head = dl.UnitRowDense(CLASSES) if name == "isometric" else kl.Dense(CLASSES)
    model = classifier(*BODIES[name](), head, seed=seed)
    x = hard_images((4, 4, 2), seed)
    certificate = certify(model)
    found = errors(model, x)
    assert np.all(found <= certificate.logit_error(x, "worst-case"))
    # The independent roundings of the model are what random weights have.
    assert np.all(found <= certificate.logit_error(x))
    named = certificate.rounding_bound.measured
    assert bool(named) == (name == "switching")


def operations(x):
    """A residual network as people write it, with bare operations."""
    ops = keras.ops
    h = kl.Dense(8)(kl.Flatten()(0.5 * (x - 0.25) / 1.5 + np.full(2, 0.1, "float32")))
    h = h + 0.3 * kl.Dense(8)(ops.relu(h)) - ops.tanh(h)
    h = ops.concatenate([ops.maximum(h, -h), ops.flip(ops.sort(h), axis=-1), ops.gelu(h)], axis=-1)
    h = ops.matmul(h, np.random.default_rng(0).normal(size=(24, 12)).astype("float32"))
    # Keras on TensorFlow would add these columns along another axis in a batch of twelve.
    return h - (-ops.mean(h, axis=-1, keepdims=True)) - (-ops.sum(h[:, :3], axis=-1, keepdims=True))


@settings(max_examples=3)
@given(seed=st.integers(0, 10**6))
def test_no_operation_errs_more_than_its_bound(seed):
    inputs = keras.Input((4, 4, 2))
    model = randomize(keras.Model(inputs, kl.Dense(CLASSES)(operations(inputs))), seed)
    x = hard_images((4, 4, 2), seed)
    certificate = certify(model)
    assert np.all(errors(model, x) <= certificate.logit_error(x, "worst-case"))
    assert np.all(errors(model, x) <= certificate.logit_error(x))
    assert certificate.rounding_bound.measured == ()


def test_the_bound_is_near_the_error_where_roundings_line_up():
    # a sum of equal terms: each addition rounds the same way, so nothing smaller would do
    model = classifier(kl.Dense(CLASSES), shape=(4096,))
    model.set_weights([np.full((4096, CLASSES), 0.1, "float32"), np.zeros(CLASSES, "float32")])
    x = np.full((3, 4096), [[0.7], [0.1], [1.3]], "float32")
    certificate = certify(model)
    found = errors(model, x)
    worst, probable = (certificate.logit_error(x, kind) for kind in ("worst-case", "probable"))
    assert np.all(found <= worst)
    np.testing.assert_allclose(worst, probable, rtol=1e-3)  # equal terms are not independent
    one_by_one = np.add.accumulate(np.full(4096, np.float32(0.1) * np.float32(0.7)))[-1]
    exact = 4096 * float(np.float32(0.1)) * float(np.float32(0.7))
    assert worst[0] / 10 < abs(one_by_one - exact) * np.sqrt(CLASSES) < worst[0]


@given(n=st.integers(1, 400), m=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_every_order_of_summation_is_covered(n, m, seed):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-3, 3, size=(n, 1))
    kernel, x = (scale * rng.normal(size=(n, m))).astype("float32"), rng.normal(size=n)
    x = x.astype("float32")
    start = Budget(np.array([[l2(x[None])[0]], [0.0]]), arithmetic_of("float32"))
    allowed = matrix_product(start, kernel.astype(np.float64)).worst[0, 0]
    exact = x.astype(np.float64) @ kernel.astype(np.float64)
    orders = [np.arange(n), np.argsort(-np.abs(x)), rng.permutation(n)]
    orders.append(np.argsort(x * kernel[:, 0]))  # all negative terms first
    for order in orders:
        total = np.zeros(m, np.float32)
        for k in order:
            total = total + x[k] * kernel[k]
        assert np.linalg.norm(total - exact) <= allowed


def test_a_radius_does_not_depend_on_what_comes_before_it():
    model = classifier(kl.Flatten(), kl.Dense(32, "relu"), kl.Dense(CLASSES), seed=3)
    small, large = images(8, seed=1), 1e6 * images(40, seed=2)
    together = certify(model).radii(np.concatenate([small, large]))
    alone = [certify(model).radii(image[None]) for image in large]
    np.testing.assert_array_equal(together[0][8:], np.concatenate([a[0] for a in alone]))
    np.testing.assert_allclose(
        together[1][8:], np.concatenate([a[1] for a in alone]), rtol=1e-3, atol=1.0
    )
    exact = forward_float64(model, large).argmax(axis=1)
    certified = together[1][8:] > 0
    np.testing.assert_array_equal(together[0][8:][certified], exact[certified])


def test_close_margins_of_large_images_are_not_certified():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(64, 3))
    model = linear(kernel, np.zeros(3))
    x = 1e6 * rng.normal(size=(400, 64))
    # on the boundary of the first two classes, but for what float32 can hold
    normal = kernel[:, 0] - kernel[:, 1]
    x -= np.outer(x @ normal / (normal @ normal), normal)
    x = x.astype("float32")
    labels, radii = certify(model).radii(np.concatenate([images(8, (64,)), x]))
    wrong = labels[8:] != forward_float64(model, x).argmax(axis=1)
    assert not np.any(radii[8:][wrong] > 0)


def test_pixels_up_to_255_have_an_error_of_their_own():
    model = classifier(kl.Rescaling(1 / 255), kl.Flatten(), kl.Dense(CLASSES), seed=2)
    x = 255 * images(64, seed=3)
    certificate = certify(model)
    assert np.all(errors(model, x) <= certificate.logit_error(x))
    assert certificate.logit_error(x).max() < 1e-3


def test_one_large_image_alone_is_covered():
    model = classifier(kl.Flatten(), kl.Dense(16), kl.Dense(CLASSES), shape=(96, 96, 3), seed=1)
    x = images(3, (96, 96, 3), seed=4)
    assert np.all(errors(model, x) <= certify(model).logit_error(x))


def test_a_vast_radius_holds_at_its_rim():
    kernel = np.array([[1e-3, -1e-3], [2e-3, 1e-3], [0.0, 1e-3]])
    model = linear(kernel, [1000.0, 0.0])
    x = images(4, (3,))
    labels, radii = certify(model).radii(x)
    assert np.all(radii > 2e5) and not labels.any()
    direction = (kernel[:, 1] - kernel[:, 0]) / np.linalg.norm(kernel[:, 1] - kernel[:, 0])
    for share in (0.99999, 1.0):
        moved = (x + share * radii[:, None] * direction).astype("float32")
        inside = np.linalg.norm(moved.astype(np.float64) - x, axis=1) <= radii
        answers = to_numpy(model(moved)).argmax(axis=1)
        assert np.all((answers == labels) | ~inside)


def test_images_beyond_the_numbers_have_radius_zero():
    model = classifier(kl.Flatten(), kl.Dense(CLASSES))
    x = np.concatenate([1e25 * images(2), images(2)])
    _, radii = certify(model).radii(x)
    assert not radii[:2].any() and radii[2:].all()


def test_a_float64_model_has_errors_of_float64():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("of the three backends TensorFlow computes in float64 throughout")
    keras.config.set_floatx("float64")
    try:
        model = keras.Sequential([keras.Input((6,)), kl.Dense(3)])
        certificate = certify(model)
        assert certificate.rounding < 1e-13
        assert certificate.rounding_bound.arithmetic.unit == 2.0**-53
    finally:
        keras.config.set_floatx("float32")


class Rotation(keras.layers.Layer):
    """A layer of a user's, who states a bound and a reference but no rounding."""

    def call(self, x):
        return keras.ops.concatenate([0.6 * x[:, :1] + 0.8 * x[:, 1:2], x[:, 2:]], axis=1)

    def call_float64(self, x):
        return np.concatenate([0.6 * x[:, :1] + 0.8 * x[:, 1:2], x[:, 2:]], axis=1)

    def lipschitz_bound(self, input_shape):
        return 1.0

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[1] - 1)


def test_a_layer_without_a_rule_is_measured_and_named():
    model = classifier(kl.Flatten(), Rotation(name="mine"), kl.Dense(CLASSES))
    certificate = certify(model)
    x = hard_images((4, 4, 2), 0)
    assert np.all(errors(model, x) <= certificate.logit_error(x))
    assert certificate.rounding_bound.measured == ("mine",)
    assert certificate.to_dict()["rounding"]["measured_layers"] == ["mine"]


def test_an_activation_of_ones_own_is_measured_and_named():
    """Large at zero and of many roundings, which no table knows."""
    own = MonotoneActivation(
        "mine",
        0.0,
        1.0,
        lambda x: 1000.0 + ops.tanh(x) ** 3 / 3,
        lambda x: 1000 + np.tanh(x) ** 3 / 3,
    )
    flow = dl.GradientFlow(operators.Dense(8), activation=own, name="flow")
    model = classifier(kl.Flatten(), flow, kl.Dense(CLASSES))
    certificate = certify(model)
    x = hard_images((4, 4, 2), 0)
    assert np.all(errors(model, x) <= certificate.logit_error(x))
    assert certificate.rounding_bound.measured == ("flow",)


def test_this_backend_multiplies_in_full_precision():
    assert factor_unit("float32") == 0.0


def test_products_of_matrices_in_bfloat16_are_noticed(monkeypatch):
    exact = ops.matmul

    def reduced(a, b):
        a, b = (ops.cast(ops.cast(m, "bfloat16"), "float32") for m in (a, b))
        return exact(a, b)

    monkeypatch.setattr(ops, "matmul", reduced)
    assert factor_unit("float32") == 2.0**-8


def test_products_that_become_coarser_are_measured_again(monkeypatch):
    """As TF32 or an autocast does that is switched on after the certificate was used."""
    model = classifier(kl.Flatten(), kl.Dense(16, "relu"), kl.Dense(CLASSES))
    x = hard_images((4, 4, 2), 0)
    certificate = certify(model)
    radii = certificate.radii(x)[1]
    assert certificate.rounding_bound.arithmetic.factor_unit == 0.0
    monkeypatch.setattr("dynzoo.certificates.certificate.factor_unit", lambda dtype: 2.0**-11)
    coarse = certificate.radii(x)[1]
    assert certificate.rounding_bound.arithmetic.factor_unit == 2.0**-11
    assert np.all(coarse <= radii) and np.any(coarse < radii)
    np.testing.assert_array_equal(coarse, certify(model).radii(x)[1])
    monkeypatch.undo()  # what was measured is more cautious than need be, and stays
    np.testing.assert_array_equal(certificate.radii(x)[1], coarse)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="an autocast is PyTorch's")
def test_radii_under_an_autocast_are_not_those_of_float32():
    import torch

    model = classifier(kl.Flatten(), kl.Dense(64, "relu"), kl.Dense(CLASSES))
    x = np.random.default_rng(0).random((64, 4, 4, 2)).astype("float32")
    certificate = certify(model)
    radii = certificate.radii(x)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        try:
            labels, coarse = certificate.radii(x)
        except ReferenceMismatchError:
            return
    assert certificate.rounding_bound.arithmetic.factor_unit == 2.0**-8
    assert np.all(coarse[radii < np.inf] < np.maximum(radii, 1e-12))
    right = forward_float64(model, x).argmax(axis=1)
    assert not np.any((labels != right) & (coarse > 0))


def test_bounds_of_rounding_are_refused_after_training():
    model = classifier(kl.Flatten(), kl.Dense(8), kl.Dense(CLASSES))
    certificate = certify(model)
    x = hard_images((4, 4, 2), 0)
    certificate.radii(x)
    model.layers[-1].kernel.assign(2 * model.layers[-1].kernel)
    for ask in (
        lambda: certificate.rounding_bound,
        lambda: certificate.rounding,
        lambda: certificate.logit_error(x),
        lambda: certificate.needed_margins(0.1),
        certificate.to_dict,
    ):
        with pytest.raises(StaleCertificateError, match="weights of the model changed"):
            ask()


def test_rounded_factors_are_counted():
    start = Budget(np.array([[1.0], [0.0]]), arithmetic_of("float32", 2.0**-11))
    kernel = np.random.default_rng(0).normal(size=(32, 32))
    x = np.random.default_rng(1).normal(size=32)
    x /= np.linalg.norm(x)

    def tf32(a):
        bits = np.asarray(a, "float32").view(np.uint32)
        return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view("float32").astype(np.float64)

    found = np.linalg.norm(tf32(x) @ tf32(kernel) - x @ kernel)
    assert 1e-5 < found <= matrix_product(start, kernel).worst[0, 0]


def test_rounding_must_be_named():
    with pytest.raises(ValueError, match="`rounding` must be 'probable' or 'worst-case'"):
        certify(linear(np.eye(3), np.zeros(3))).radii(images(1, (3,)), rounding="none")


# --- networks whose weights are chosen so that rounding changes the answer -------------------


def swallowed():
    """A number is added to 1e8 and taken off again: float32 has lost it, real numbers have not."""
    inputs = keras.Input((4,))
    h = kl.Dense(1, name="up")(inputs)
    h = kl.Dense(1, name="down")(h)
    model = keras.Model(inputs, kl.Dense(2, name="head")(h))
    model.get_layer("up").set_weights([np.full((4, 1), 0.25, "float32"), np.array([1e8], "f")])
    model.get_layer("down").set_weights([np.ones((1, 1), "float32"), np.array([-1e8], "f")])
    model.get_layer("head").set_weights([np.array([[1.0, -1.0]], "f"), np.array([0.0, 0.4], "f")])
    return model


def ordered():
    """A sum whose result depends on which terms come first: 2^25 + many small - 2^25."""
    model = linear(np.ones((66, 2)), [0.0, 30.0])
    kernel = np.zeros((66, 2), "float32")
    kernel[0, 0], kernel[-1, 0], kernel[1:-1, 0] = 2.0**26, -(2.0**26), 1.0
    model.set_weights([kernel, np.array([0.0, 30.0], "float32")])
    return model


def drifting():
    """Eight thousand equal terms against their exact sum: every addition rounds the same way."""
    inputs = keras.Input((4,))
    wide = kl.Dense(8192, name="copies")(inputs)
    model = keras.Model(inputs, kl.Dense(2, name="head")(wide))
    model.get_layer("copies").set_weights(
        [np.full((4, 8192), 0.1, "float32"), np.zeros(8192, "float32")]
    )
    sum_at_half = 8192 * 0.1 * 4 * 0.5
    kernel = np.zeros((8192, 2), "float32")
    kernel[:, 0] = 1.0
    model.get_layer("head").set_weights([kernel, np.array([-sum_at_half, -1e-4], "f")])
    return model


def spread():
    """Thirty factors of a third and of three in turn, with a margin of a few last places."""
    inputs = keras.Input((4,))
    h = inputs
    for i in range(30):
        h = kl.Dense(4, use_bias=False, name=f"d{i}")(h)
    model = keras.Model(inputs, kl.Dense(2, name="head")(h))
    for i in range(30):
        factor = np.float32(1 / 3) if i % 2 else np.float32(3.0)
        model.get_layer(f"d{i}").set_weights([np.eye(4, dtype="float32") * factor])
    kernel = np.array([[1, 1], [1, 1], [1, 1], [1, 1 + 3e-7]], "float32")
    model.get_layer("head").set_weights([kernel, np.zeros(2, "float32")])
    return model


@pytest.mark.parametrize("make", [swallowed, ordered, drifting, spread])
def test_a_tampered_network_is_not_certified(make):
    model = make()
    size = model.input_shape[1]
    x = np.concatenate([np.full((1, size), 0.5), images(20, (size,), seed=5)]).astype("float32")
    if make is ordered:
        x[:, 0] = x[:, -1] = 1.0
    certificate = certify(model)
    for rounding in ("probable", "worst-case"):
        _, radii = certificate.radii(x, rounding=rounding)
        if make is drifting:
            radii = radii[:1]  # the others are far from the boundary, and rightly certified
        assert not radii.any()
    # In real numbers there is a margin, as a certificate without rounding would see it.
    exact = forward_float64(model, x)
    assert np.all(np.abs(exact[:1, 0] - exact[:1, 1]) > 0)
