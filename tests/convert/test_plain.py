"""`to_plain`: the function of constrained layers in Keras' own."""

import keras
import numpy as np
import pytest

import dynzoo
from dynzoo import backend, operators
from dynzoo import layers as dl
from dynzoo.convert import to_plain
from dynzoo.convert.plain import PLAIN

kl = keras.layers
IMAGE, VECTOR = (4, 6, 4), (8,)


def network(layer, shape):
    """The layer between an input and logits, with weights that are not those of a start."""
    inputs = keras.Input(shape)
    x = layer(inputs)
    x = kl.Flatten()(x) if len(shape) > 1 else x
    model = keras.Model(inputs, kl.Dense(3)(x))
    random = np.random.default_rng(0)
    model.set_weights([w + 0.1 * random.normal(size=w.shape) for w in model.get_weights()])
    return model


def logits(model):
    x = np.random.default_rng(1).normal(size=(20, *model.input_shape[1:])).astype("float32")
    return backend.to_numpy(model(x, training=False))


def is_plain(model):
    return all(type(layer).__module__.startswith("keras.") for layer in model.layers)


MADE = {
    "OrthonormalDense": (dl.OrthonormalDense(6, use_bias=True), VECTOR),
    "OrthonormalPointwise": (dl.OrthonormalPointwise(6), IMAGE),
    "UnitRowDense": (dl.UnitRowDense(6), VECTOR),
    "MeanShift": (dl.MeanShift([0.1, 0.2, 0.3, 0.4]), IMAGE),
    "LearnedScale": (dl.LearnedScale(), IMAGE),
    "ScaledAveragePooling2D": (dl.ScaledAveragePooling2D(2), IMAGE),
    "PositionOffset": (dl.PositionOffset(), IMAGE),
    "SpaceToDepth": (dl.SpaceToDepth(2), IMAGE),
    "ChannelPadding": (dl.ChannelPadding(7), IMAGE),
    "ChannelPadding of vectors": (dl.ChannelPadding(11), VECTOR),
    "MaxMin": (dl.MaxMin(), IMAGE),
    "SpatialShift": (dl.SpatialShift(), IMAGE),
    "SpatialShift back over zeros": (dl.SpatialShift(True, "zero", 1.0), IMAGE),
    "MaxMinShift": (dl.MaxMinShift(reverse=True, fraction=1.0), IMAGE),
    "SwitchingFlow": (dl.SwitchingFlow(operators.Dense(8)), VECTOR),
    "SwitchingFlow of images": (
        dl.SwitchingFlow(operators.Conv(4), mode="flexible", expansion="generic"),
        IMAGE,
    ),
    "GradientFlow of shifted pixels": (
        dl.GradientFlow(operators.ShiftedPointwise(3, "zero", 1.0)),
        IMAGE,
    ),
    "GradientFlow": (dl.GradientFlow(operators.Dense(5), steps=2), VECTOR),
    "GradientFlow of pixels": (
        dl.GradientFlow(operators.Pointwise(3), "half_leaky_relu", 0.7, shared=True, steps=2),
        IMAGE,
    ),
    "GradientFlow of images": (
        dl.GradientFlow(operators.Conv(5), "tanh", "learned", direction="expansive"),
        IMAGE,
    ),
    "GradientFlow with an even kernel": (
        dl.GradientFlow(operators.Conv(5, 2), use_bias=False),
        IMAGE,
    ),
}
# Their certificate knows what single layers do not: that two summands, or a pair, belong together.
UNEQUAL = ("GradientFlow", "SwitchingFlow", "MaxMin", "SpatialShift")
SAME_BOUND = [name for name in MADE if not name.startswith(UNEQUAL)]


@pytest.mark.parametrize("name", MADE)
def test_layer(name):
    model = network(*MADE[name])
    plain = to_plain(model)
    assert is_plain(plain)
    np.testing.assert_allclose(logits(plain), logits(model), atol=1e-5)
    certified, honest = dynzoo.certify(model).lipschitz, dynzoo.certify(plain).lipschitz
    if name in SAME_BOUND:
        np.testing.assert_allclose(honest, certified, rtol=1e-6)
    else:
        assert np.isfinite(honest) and honest >= certified * (1 - 1e-6)


def test_every_form_is_tried():
    assert {name.split()[0] for name in MADE} == {cls.__name__ for cls in PLAIN}


def test_layers_without_a_form_stay():
    model = network(dl.GradientFlow(operators.Dense(5), integrator="heun"), VECTOR)
    plain = to_plain(model)
    assert [type(layer).__name__ for layer in plain.layers] == [
        "InputLayer",
        "GradientFlow",
        "Dense",
    ]
    np.testing.assert_allclose(logits(plain), logits(model), atol=1e-6)
    assert plain.layers[1].kernels[0] is not model.layers[1].kernels[0]


def test_classifier(tmp_path):
    """The shipped architecture, saved and loaded without classes of dynzoo."""
    model = dynzoo.models.isometric_classifier(
        input_shape=(8, 8, 3),
        num_classes=4,
        widths=(16, 24),
        steps=(1, 1),
        neck_units=16,
        dense_steps=1,
    )
    plain = to_plain(model)
    assert is_plain(plain)
    plain.save(tmp_path / "plain.keras")
    again = keras.saving.load_model(tmp_path / "plain.keras")
    np.testing.assert_allclose(logits(again), logits(model), atol=1e-5)


def test_shared_layers_and_operations():
    inputs = keras.Input((8,))
    twice = dl.OrthonormalDense(8)
    other = kl.Dense(8)
    x = kl.Dropout(0.5)(twice(inputs) + other(twice(inputs)))
    model = keras.Model(inputs, dl.UnitRowDense(3)(other(x)))
    plain = to_plain(model)
    assert is_plain(plain) and sum(layer.name == other.name for layer in plain.layers) == 1
    np.testing.assert_allclose(logits(plain), logits(model), atol=1e-5)


def test_mixed_precision_is_refused():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, dtype="mixed_bfloat16")])
    with pytest.raises(ValueError, match="runs in mixed precision"):
        to_plain(model)
