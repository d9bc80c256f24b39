"""Augmentation, crops and resizing inside a model, as `predict` and `training=False` run them."""

import keras
import numpy as np
import pytest
from certificate_models import randomize
from helpers import norm, unrolled
from keras import layers as kl

from dynzoo.backend import to_numpy
from dynzoo.certificates import UncertifiableLayerError, certify, forward_float64
from dynzoo.certificates.rules.image import AUGMENTATION, interpolation
from dynzoo.export.inference_graph import inference_graph

SHAPE = (6, 6, 3)
ARGUMENTS = {
    "RandomBrightness": dict(factor=0.5),
    "RandomColorDegeneration": dict(factor=0.5),
    "RandomContrast": dict(factor=0.5),
    "RandomHue": dict(factor=0.5),
    "RandomPosterization": dict(factor=4),
    "RandomRotation": dict(factor=0.2),
    "RandomSaturation": dict(factor=0.5),
    "RandomSharpness": dict(factor=0.5),
    "RandomTranslation": dict(height_factor=0.3, width_factor=0.3),
    "RandomZoom": dict(height_factor=0.3),
}


def pictures(n=4):
    """Numbers far outside of [0, 1] and [0, 255]: nothing may clip them."""
    return (300 * np.random.default_rng(0).normal(size=(n, *SHAPE))).astype("float32")


def sequential(layer):
    return keras.Sequential([keras.Input(SHAPE), layer, kl.Flatten(), kl.Dense(3)])


def functional(layer, **arguments):
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, kl.Dense(3)(kl.Flatten()(layer(inputs, **arguments))))


def nested(layer):
    inner_inputs, inputs = keras.Input(SHAPE), keras.Input(SHAPE)
    inner = keras.Model(inner_inputs, layer(inner_inputs))
    return keras.Model(inputs, kl.Dense(3)(kl.Flatten()(inner(inputs))))


def assert_right(model, gain):
    randomize(model)
    result = certify(model)
    assert result.body_lipschitz == pytest.approx(gain, rel=1e-6)
    x = pictures()
    for computed in (model.predict(x, verbose=0), to_numpy(model(x, training=False))):
        np.testing.assert_allclose(computed, forward_float64(model, x), rtol=1e-4, atol=1e-2)


# Keras' MixUp asks JAX for 64-bit integers.
@pytest.mark.filterwarnings("ignore:.*Explicitly requested dtype int64:UserWarning")
@pytest.mark.parametrize("cls", AUGMENTATION, ids=lambda cls: cls.__name__)
def test_augmentation_in_a_model_does_nothing_at_inference(cls):
    def layer():
        return cls(**ARGUMENTS.get(cls.__name__, {}))

    x = pictures()
    inputs = keras.Input(SHAPE)
    alone = keras.Model(inputs, layer()(inputs))
    np.testing.assert_array_equal(alone.predict(x, verbose=0), x)
    np.testing.assert_array_equal(to_numpy(alone(x, training=False)), x)
    assert_right(sequential(layer()), 1.0)


@pytest.mark.parametrize(
    "build",
    [
        functional,
        nested,
        lambda layer: functional(layer, training=True),
        lambda layer: functional(layer, training=False),
    ],
    ids=["functional", "nested", "given", "false"],
)
def test_the_recorded_default_of_training_is_no_argument(build):
    """Keras records it, and replaces it at inference, whether it was given or not."""
    assert_right(build(kl.RandomFlip()), 1.0)


def test_training_that_was_asked_for_is_refused_where_it_is_no_default():
    with pytest.raises(UncertifiableLayerError, match="training=True"):
        certify(functional(kl.GaussianNoise(0.1), training=True))

    class Flip(kl.RandomFlip):
        pass

    with pytest.raises(UncertifiableLayerError):
        certify(functional(Flip()))


def test_a_graph_to_export_has_no_augmentation():
    model = functional(kl.RandomFlip())
    x = pictures()
    graph = inference_graph(model)
    assert not any(isinstance(layer, kl.RandomFlip) for layer in graph.layers)
    np.testing.assert_allclose(
        to_numpy(graph(x)), model.predict(x, verbose=0), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize(
    "layer",
    [
        lambda: kl.Resizing(9, 4),
        lambda: kl.Resizing(3, 12, interpolation="nearest"),
        lambda: kl.CenterCrop(3, 4),
        lambda: kl.RandomCrop(6, 6),
    ],
    ids=["resizing", "nearest", "center_crop", "whole_crop"],
)
@pytest.mark.parametrize("build", [sequential, functional], ids=["sequential", "functional"])
def test_crops_and_resizing_in_a_model(layer, build):
    inputs = keras.Input(SHAPE)
    alone = keras.Model(inputs, layer()(inputs))
    matrix = unrolled(lambda x: alone.predict(x, batch_size=128, verbose=0), SHAPE)
    assert_right(build(layer()), norm(matrix))


@pytest.mark.parametrize("layer", [kl.AutoContrast, kl.RandomCrop], ids=lambda cls: cls.__name__)
def test_what_is_no_fixed_map_at_inference_is_refused(layer):
    layer = layer() if layer is kl.AutoContrast else layer(3, 4)
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, kl.Dense(3)(kl.GlobalAveragePooling2D()(layer(inputs))))
    with pytest.raises(UncertifiableLayerError, match="at inference"):
        certify(model)


@pytest.mark.parametrize("method", ["nearest", "bilinear"])
@pytest.mark.parametrize("sizes", [(5, 9), (9, 5), (4, 8), (12, 4), (1, 3), (7, 1), (6, 14)])
def test_interpolation_is_that_of_the_backend(method, sizes):
    old, new = sizes
    basis = np.eye(old, dtype="float32").reshape(old, old, 1, 1)
    computed = to_numpy(kl.Resizing(new, 1, interpolation=method)(basis)).reshape(old, new).T
    np.testing.assert_allclose(interpolation(method, old, new), computed, atol=1e-6)
