"""What has no certificate is refused with a reason, and what states its bound is believed."""

import keras
import numpy as np
import pytest
from certificate_models import CLASSES, assert_sound, classifier, images, linear
from keras import layers as kl
from keras import ops

import dynzoo.layers as dl
from dynzoo.certificates import (
    ReferenceMismatchError,
    UncertifiableLayerError,
    certificate,
    certify,
)
from dynzoo.certificates.rounding import program as rounding


@keras.saving.register_keras_serializable(package="dynzoo_tests")
class Doubling(keras.layers.Layer):
    """States its own bound; `wrong` makes the float64 reference another function."""

    wrong = False

    def call(self, x):
        return 2.0 * x

    def call_float64(self, x):
        return 2.1 * x if self.wrong else 2.0 * x

    def lipschitz_bound(self, input_shape):
        return 2.0


class Tripling(Doubling):
    """Overrides what it computes, but not what it states."""

    def call(self, x):
        return 3.0 * x


class Silent(kl.Dense):
    """A subclass of a known layer."""


def test_a_layer_may_state_its_own_bound():
    model = classifier(Doubling(), kl.Flatten(), kl.Dense(CLASSES))
    assert certify(model).body_lipschitz == pytest.approx(2.0)
    assert_sound(model)


def test_a_reference_that_is_not_the_layer_is_caught(monkeypatch):
    model = classifier(Doubling(), kl.Flatten(), kl.Dense(CLASSES))
    monkeypatch.setattr(Doubling, "wrong", True)
    with pytest.raises(ReferenceMismatchError, match="call_float64"):
        certify(model).radii(images(4))


@pytest.mark.parametrize(
    "layer",
    [Tripling(name="odd"), Silent(3, name="odd"), kl.LayerNormalization(name="odd")],
    ids=["overridden", "subclass", "unknown"],
)
def test_an_unknown_layer_is_named(layer):
    with pytest.raises(UncertifiableLayerError, match="'odd'.*lipschitz_bound") as error:
        certify(classifier(layer, kl.Flatten(), kl.Dense(CLASSES)))
    assert error.value.class_name == type(layer).__name__
    assert isinstance(error.value, ValueError)


def functional(end, shape=(6,), **kwargs):
    inputs = keras.Input(shape, **kwargs)
    return keras.Model(inputs, end(inputs))


REFUSALS = {
    "unbuilt": (lambda: keras.Sequential([kl.Dense(3)]), "not built"),
    "not a model": (lambda: kl.Dense(3), "must be a keras.Model"),
    "softmax head": (lambda: functional(kl.Dense(3, activation="softmax")), "softmax"),
    "softmax layer": (lambda: functional(lambda x: kl.Softmax()(kl.Dense(3)(x))), "softmax"),
    "one logit": (lambda: functional(kl.Dense(1)), "K >= 2"),
    "pairs beyond memory": (lambda: functional(kl.Dense(30_000, use_bias=False), (2,)), "23,170"),
    "map of logits": (lambda: functional(kl.Dense(3), (4, 4, 3)), "logits of shape"),
    "two outputs": (lambda: functional(lambda x: [kl.Dense(3)(x), kl.Dense(2)(x)]), "one output"),
    "free size": (
        lambda: functional(lambda x: kl.GlobalMaxPooling2D()(kl.Conv2D(3, 3)(x)), (None, None, 3)),
        "fixed input shape",
    ),
    "bare operation": (lambda: functional(lambda x: kl.Dense(3)(x * x)), "product of two tensors"),
    "training dropout": (
        lambda: functional(lambda x: kl.Dense(3)(kl.Dropout(0.5)(x, training=True))),
        "training=True",
    ),
    "integer input": (
        lambda: functional(lambda x: kl.Dense(3)(kl.Rescaling(1 / 255)(x)), dtype="uint8"),
        "integer image",
    ),
    "bfloat16": (
        lambda: functional(lambda x: kl.Dense(3)(kl.Dense(4, dtype="mixed_bfloat16")(x))),
        "mixed_bfloat16.*certificate would not hold",
    ),
    "float16": (lambda: functional(kl.Dense(3, dtype="float16")), "float16"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_models_that_have_no_certificate_are_refused(name):
    make, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        certify(make())


def test_two_inputs_are_refused():
    a, b = keras.Input((3,)), keras.Input((3,))
    with pytest.raises(ValueError, match="one input"):
        certify(keras.Model([a, b], kl.Add()([a, b])))


def test_weights_that_are_not_finite_are_refused():
    model = linear(np.full((3, 3), np.nan), np.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        certify(model)


def test_a_forward_pass_outside_the_graph_is_refused():
    class Louder(keras.Model):
        def call(self, x, training=None):
            return 10.0 * super().call(x)

    inputs = keras.Input((3,))
    with pytest.raises(ValueError, match="hides its graph"):
        certify(Louder(inputs, kl.Dense(3)(inputs)))


def test_training_code_in_a_subclass_is_fine():
    class Trained(keras.Model):
        def train_step(self, *args):
            return super().train_step(*args)

    inputs = keras.Input((3,))
    assert certify(Trained(inputs, kl.Dense(3)(inputs))).lipschitz > 0


def test_a_stated_bound_must_be_a_number(monkeypatch):
    monkeypatch.setattr(Doubling, "lipschitz_bound", lambda self, shape: float("nan"))
    with pytest.raises(ValueError, match="not a finite number"):
        certify(classifier(Doubling(), kl.Flatten(), kl.Dense(CLASSES)))


def test_a_head_must_have_the_kernel_it_states(monkeypatch):
    model = classifier(kl.Flatten(), dl.UnitRowDense(CLASSES))
    true = dl.UnitRowDense.effective_kernel
    certify(model)
    monkeypatch.setattr(dl.UnitRowDense, "call_float64", lambda self, x: 2.0 * (x @ true(self)))
    with pytest.raises(ValueError, match="effective_kernel"):
        certify(model)


@pytest.mark.parametrize("factor", [1.0001, 1.01])
def test_reduced_precision_of_the_backend_is_noticed(monkeypatch, factor):
    model = classifier(kl.Flatten(), kl.Dense(CLASSES))
    run = certificate.run_batches
    monkeypatch.setattr(certificate, "run_batches", lambda *args: factor * run(*args))
    with pytest.raises(ReferenceMismatchError, match="TF32"):
        certify(model).radii(images(4))


def test_probe_images_are_in_range_and_always_the_same():
    first, second = (rounding.probe_images((5, 5, 3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.float32 and first.shape == (rounding.PROBES, 5, 5, 3)
    assert first.min() == 0.0 and first.max() == 1.0
    assert ops.shape(rounding.probe_images((512, 512, 8)))[0] == 3
