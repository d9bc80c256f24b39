"""A certificate is for the settings of the layers too: a change of any makes it stale."""

import keras
import numpy as np
import pytest
from certificate_models import CLASSES, classifier, images, randomize
from keras import layers as kl
from keras import ops

import dynzoo
import dynzoo.layers as dl
from dynzoo.certificates import StaleCertificateError, audit, certify, certify_local
from dynzoo.certificates.graph import trace
from dynzoo.certificates.settings import difference, freeze_settings
from dynzoo.operators import Pointwise


@keras.saving.register_keras_serializable(package="dynzoo_tests")
class Holder(kl.Layer):
    """Keeps what it computes with in its own ways."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.numbers = {"scales": [1.0, np.array([2.0])]}
        self.calls = 0
        self._cache = None

    def call(self, x):
        if self._cache is None:
            self._cache = "made at the first call"
        return x * self.numbers["scales"][0] * ops.cast(self.numbers["scales"][1], x.dtype)

    def call_float64(self, x):
        return x * self.numbers["scales"][0] * self.numbers["scales"][1]

    def lipschitz_bound(self, input_shape):
        return float(abs(self.numbers["scales"][0] * self.numbers["scales"][1][0]))


LAYERS = {
    "Rescaling.scale": (lambda: kl.Rescaling(1.0), "scale", 200.0),
    "Rescaling.offset": (lambda: kl.Rescaling(1.0), "offset", 2.0),
    "LeakyReLU.negative_slope": (lambda: kl.LeakyReLU(0.1), "negative_slope", 9.0),
    "ReLU.negative_slope": (lambda: kl.ReLU(negative_slope=0.1), "negative_slope", 9.0),
    "ReLU.threshold": (kl.ReLU, "threshold", 0.5),
    "ReLU.max_value": (kl.ReLU, "max_value", 0.5),
    "ELU.alpha": (kl.ELU, "alpha", 9.0),
    "BatchNormalization.epsilon": (kl.BatchNormalization, "epsilon", 1e-9),
    "Activation.activation": (lambda: kl.Activation("tanh"), "activation", keras.activations.selu),
    "Dense.activation": (lambda: kl.Dense(2), "activation", keras.activations.gelu),
    "Dense.use_bias": (lambda: kl.Dense(2), "use_bias", False),
    "Conv2D.strides": (lambda: kl.Conv2D(2, 2), "strides", (2, 2)),
    "Conv2D.padding": (lambda: kl.Conv2D(2, 2), "padding", "same"),
    "Conv2D.dilation_rate": (lambda: kl.Conv2D(2, 2), "dilation_rate", (2, 2)),
    "MaxPooling2D.strides": (lambda: kl.MaxPooling2D(2), "strides", (1, 1)),
    "MaxPooling2D.pool_size": (lambda: kl.MaxPooling2D(2), "pool_size", (1, 1)),
    "Softmax.axis": (kl.Softmax, "axis", 1),
    "Concatenate.axis": (None, "axis", 1),
    "GradientFlow.step_size": (lambda: dl.GradientFlow(Pointwise(4)), "step_size", 2.0),
    "MeanShift.mean": (lambda: dl.MeanShift([0.1, 0.2]), "mean", [0.1, 0.3]),
    "dtype policy": (lambda: kl.Dense(2), "dtype_policy", "mixed_bfloat16"),
    "a new method": (lambda: kl.ReLU(), "call", lambda x: 7.0 * x),
    "a class": (lambda: kl.ReLU(), "__class__", type("Other", (kl.ReLU,), {})),
}


def build(make):
    inputs = keras.Input((4, 4, 2))
    # Named by hand, so that the message can be looked at.
    if make is None:
        layer = kl.Concatenate(name="odd")
        y = layer([inputs, kl.ReLU()(inputs)])
    else:
        layer = make()
        layer.name = "odd"
        y = layer(inputs)
    return randomize(keras.Model(inputs, kl.Dense(CLASSES)(kl.Flatten()(y)))), layer


@pytest.mark.parametrize("name", LAYERS)
def test_a_changed_setting_makes_the_certificate_stale(name):
    make, setting, value = LAYERS[name]
    model, layer = build(make)
    result, x = certify(model), images(2)
    result._check_current()
    setattr(layer, setting, value)
    for ask in (lambda: result.radii(x), lambda: result.topk_radii(x, np.zeros(2, int), k=1)):
        with pytest.raises(StaleCertificateError, match="'odd'.*Certify it again|can no longer be"):
            ask()
    with pytest.raises(StaleCertificateError):
        _ = result.rounding


def test_what_a_layer_holds_is_compared_to_its_depth():
    def fresh():
        layer = Holder(name="odd")
        model = randomize(keras.Sequential([keras.Input((4,)), layer, kl.Dense(CLASSES)]))
        result = certify(model)
        result.radii(images(2, (4,)))
        return layer, result

    def numbers(layer):
        layer.numbers["scales"][0] = 200.0

    def array(layer):
        layer.numbers["scales"][1][0] = 200.0

    def attribute(layer):
        layer.calls = 1

    def another(layer):
        layer.unheard_of = 1.0

    for change in (numbers, array, attribute, another):
        layer, result = fresh()
        change(layer)
        with pytest.raises(StaleCertificateError, match="'odd'"):
            result.radii(images(2, (4,)))


def test_an_activation_that_is_a_layer_is_compared():
    activation = kl.LeakyReLU(0.1)
    model = classifier(kl.Flatten(), kl.Dense(4, activation=activation), kl.Dense(CLASSES))
    result = certify(model)
    result.radii(images(2))
    activation.negative_slope = 200.0
    with pytest.raises(StaleCertificateError, match="`activation` of layer"):
        result.radii(images(2))


def test_layers_of_a_nested_model_are_compared():
    inner = keras.Sequential([keras.Input((4,)), kl.Rescaling(1.0, name="odd")], name="inner")
    inputs = keras.Input((4,))
    model = randomize(keras.Model(inputs, kl.Dense(CLASSES)(inner(inputs))))
    result = certify(model)
    inner.layers[0].scale = 200.0
    with pytest.raises(StaleCertificateError, match="'inner/odd'"):
        result.radii(images(2, (4,)))
    inner.layers[0].scale = 1.0
    result.radii(images(2, (4,)))
    inner.add(kl.Rescaling(200.0))
    with pytest.raises(StaleCertificateError, match="other layers or connections"):
        result.radii(images(2, (4,)))


def test_swapped_weights_of_one_layer_are_noticed():
    """The list of weights stays as it is; which is used where does not."""

    class Two(kl.Layer):
        def build(self, input_shape):
            self.first = self.add_weight(shape=(), initializer="ones", name="first")
            self.second = self.add_weight(shape=(), initializer="ones", name="second")

        def call(self, x):
            return x * self.first + 100.0 * x * self.second

        def call_float64(self, x):
            first, second = (ops.convert_to_numpy(w) for w in (self.first, self.second))
            return x * first + 100.0 * x * second

        def lipschitz_bound(self, input_shape):
            first, second = (float(ops.convert_to_numpy(w)) for w in (self.first, self.second))
            return abs(first) + 100.0 * abs(second) * (1 + 1e-12)

    layer = Two(name="odd")
    model = keras.Sequential([keras.Input((3,)), layer, kl.Dense(CLASSES)])
    layer.second.assign(0.001)
    result = certify(model)
    held = vars(layer) if "first" in vars(layer) else vars(layer)["_parameters"]
    held["first"], held["second"] = held["second"], held["first"]
    with pytest.raises(StaleCertificateError):
        result.radii(images(2, (3,)))


def test_the_smallest_variance_of_keras_is_compared():
    layer = kl.Normalization(mean=0.0, variance=1e-30)
    model = randomize(keras.Sequential([keras.Input((3,)), layer, kl.Dense(CLASSES)]))
    result, before = certify(model), keras.config.epsilon()
    try:
        keras.config.set_epsilon(1e-12)
        with pytest.raises(StaleCertificateError, match="epsilon"):
            result.radii(images(2, (3,)))
    finally:
        keras.config.set_epsilon(before)
    result.radii(images(2, (3,)))


def test_using_a_model_changes_no_setting():
    model = randomize(
        keras.Sequential(
            [
                keras.Input((4, 4, 2)),
                kl.GaussianNoise(0.1),
                kl.Conv2D(2, 2, activation=kl.LeakyReLU(0.1)),
                kl.BatchNormalization(),
                kl.Dropout(0.2),
                Holder(),
                dl.GradientFlow(Pointwise(4), activation="relu"),
                kl.Flatten(),
                kl.Dense(CLASSES),
            ]
        )
    )
    x = images(8)
    result = certify(model)
    labels, radii = result.radii(x)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    kept = model.get_weights()
    model.fit(x, labels, verbose=0)
    model.set_weights(kept)
    model.evaluate(x, labels, verbose=0)
    model.predict(x, verbose=0)
    model.trainable = False
    keras.Model(model.inputs, model.layers[-2].output)  # the layers in another graph as well
    np.testing.assert_allclose(result.radii(x)[1], radii, rtol=1e-4, atol=1e-6)


def test_certify_local_and_audit_refuse_what_changed():
    layer = kl.LeakyReLU(0.1)
    model = classifier(kl.Flatten(), kl.Dense(4), layer, kl.Dense(CLASSES))
    local, result = certify_local(model), certify(model)
    few = {"pairs": 4, "steps": 2, "restarts": 1}
    audit(model, certificate=result, **few)
    layer.negative_slope = 0.9
    for ask in (
        lambda: local.radii(images(2)),
        lambda: local.slopes(images(2), 0.1),
        lambda: audit(model, certificate=result, **few),
        lambda: audit(model, certificate=local, **few),
        lambda: type(local)(result, model, 2, 8),
    ):
        with pytest.raises(StaleCertificateError, match="negative_slope"):
            ask()
    assert certify_local(model).radii(images(2))[1].shape == (2,)


def test_a_model_is_certified_with_the_settings_that_it_runs_with():
    """What Keras compiled before a change must not answer for the model after it."""
    model = classifier(kl.Flatten(), kl.Rescaling(1.0), kl.Dense(CLASSES))
    x = images(4)
    certify(model).radii(x)
    model.layers[1].scale = 3.0
    labels, radii = certify(model).radii(x)
    plain = classifier(kl.Flatten(), kl.Rescaling(3.0), kl.Dense(CLASSES))
    plain.set_weights(model.get_weights())
    expected = certify(plain).radii(x)
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_allclose(radii, expected[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("count", [4, 40])
def test_what_was_compiled_under_other_settings_gives_no_radius(count):
    """A setting that was changed, used by `predict`, and changed back: the radii are the same."""
    model = classifier(kl.Flatten(), kl.Rescaling(1.0), kl.Dense(CLASSES))
    x = images(count)
    result = certify(model)
    expected = result.radii(x, batch_size=32)
    result = certify(model)
    model.layers[1].scale = -3.0
    model.compile("sgd", "mse")
    for n in (count, 16, 32):
        model.predict(images(n), batch_size=32, verbose=0)
    model.layers[1].scale = 1.0
    for found in (result, certify(model)):
        labels, radii = found.radii(x, batch_size=32)
        np.testing.assert_array_equal(labels, expected[0])
        np.testing.assert_allclose(radii, expected[1], rtol=1e-4, atol=1e-6)


def test_freezing_a_preset_is_cheap_and_finds_no_difference():
    model = dynzoo.from_preset("isometric_tiny_cifar10", load_weights=False)
    first = freeze_settings(trace(model), model)
    assert difference(first, freeze_settings(trace(model), model)) is None
    assert len(first.layers) == len({id(step.layer) for step in trace(model).steps})
