"""Distortions in the training step against those that are made on the host."""

import copy
import json
import math

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from helpers import slow_elsewhere
from hypothesis import given
from keras import ops
from training_fixtures import RECIPE
from tuning_fixtures import write_images

from dynzoo import backend, constraints
from dynzoo.augmentation import batches as augmentation
from dynzoo.augmentation.batches import Augmented
from dynzoo.augmentation.distortions import color_jitter, rotate_and_zoom
from dynzoo.augmentation.on_device import DRAWS, Distortion, distorted_model
from dynzoo.training import builders as optimization
from dynzoo.training import callbacks as watching
from dynzoo.training import distribution, recipes
from dynzoo.training import loop as training
from dynzoo.training import validation as held_out

NEUTRAL = list(DRAWS.values())
DISTORTED = {"rotation": 20.0, "zoom": 0.2, "color_jitter": 0.3}


def _images(n, h, w, c, seed=0):
    return np.random.default_rng(seed).random((n, h, w, c), dtype=np.float32)


@given(
    h=st.integers(1, 7),
    w=st.integers(2, 7),
    c=st.sampled_from([1, 3]),
    angle=st.floats(-3.2, 3.2),
    zoom=st.floats(0.1, 3.0),
    factors=st.tuples(*[st.floats(0.0, 2.0)] * 3),
)
def test_tensors_are_distorted_as_arrays_are(h, w, c, angle, zoom, factors):
    x = _images(2, h, w, c)
    draws = np.array([[angle, zoom, *factors], NEUTRAL], dtype=np.float32)
    columns = ops.convert_to_tensor(draws.T)
    tensor = ops.convert_to_tensor(x)
    turned = rotate_and_zoom(tensor, columns[0], columns[1], ops)
    np.testing.assert_allclose(
        backend.to_numpy(turned), rotate_and_zoom(x, *draws.T[:2]), atol=2e-4
    )
    np.testing.assert_array_equal(backend.to_numpy(turned)[1], x[1])
    colored = color_jitter(tensor, *(columns[i] for i in (2, 3, 4)), ops)
    np.testing.assert_allclose(backend.to_numpy(colored), color_jitter(x, *draws.T[2:]), atol=1e-5)


@pytest.mark.parametrize(
    "distortions",
    [DISTORTED, {"rotation": 20.0}, {"zoom": 0.2}, {"color_jitter": 0.3}, {}],
    ids=lambda d: "+".join(d) or "none",
)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_device_sees_the_batches_of_the_host(distortions, policy):
    x = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    settings = {"batch_size": 6, "seed": 3, "epoch": 2, "padding": 2, **distortions}
    host = Augmented(x, np.arange(20), **settings)
    device = Augmented(x, np.arange(20), distort=False, **settings)
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(policy)
        layer = Distortion(recolor="color_jitter" in distortions)
    finally:
        keras.config.set_dtype_policy(before)
    distort = backend.jit(lambda *inputs: layer(inputs))
    for i in range(3):
        expected, labels = host[i]
        (images, draws), same = device[i]
        np.testing.assert_array_equal(labels, same)
        assert images.dtype == draws.dtype == np.float32 and draws.shape == (6, 5)
        y = backend.to_numpy(distort(ops.convert_to_tensor(images), ops.convert_to_tensor(draws)))
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, expected, atol=1e-5)
        if distortions:
            assert np.abs(expected - images).max() > 0.01


def test_parts_that_are_off_are_not_computed():
    x, draws = _images(2, 5, 5, 3), np.array([[0.5, 1.2, 0.7, 0.8, 0.9]] * 2, dtype=np.float32)
    off = Distortion(turn=False, recolor=False)
    np.testing.assert_array_equal(backend.to_numpy(off([x, draws])), x)
    turned = backend.to_numpy(Distortion(recolor=False)([x, draws]))
    np.testing.assert_allclose(turned, rotate_and_zoom(x, *draws.T[:2]), atol=1e-5)
    colored = backend.to_numpy(Distortion(turn=False)([x, draws]))
    np.testing.assert_allclose(colored, color_jitter(x, *draws.T[2:]), atol=1e-5)


def test_the_layer_is_a_keras_citizen():
    layer = Distortion(turn=False, name="distortion")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    assert config["registered_name"] == "dynzoo>Distortion"
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config() and again.recolor and not again.turn
    outputs = again([keras.Input((8, 6, 3)), keras.Input((5,))])
    assert outputs.shape == (None, 8, 6, 3)


def test_the_weights_are_those_of_the_model():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(2, 3)(inputs))
    outputs = keras.layers.Dense(4)(keras.layers.Dropout(0.5)(keras.layers.Flatten()(x)))
    model = keras.Model(inputs, outputs)
    distorted = distorted_model(model)
    for group in ("variables", "weights", "trainable_variables"):
        ours, theirs = getattr(distorted, group), getattr(model, group)
        assert len(ours) == len(theirs) > 0
        assert all(a is b for a, b in zip(ours, theirs, strict=True))
    x = _images(3, 8, 8, 3)
    neutral = np.array([NEUTRAL] * 3, dtype=np.float32)
    np.testing.assert_allclose(
        distorted.predict([x, neutral], verbose=0), model.predict(x, verbose=0), atol=1e-5
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images.npz")


def _recipe(**settings):
    config = copy.deepcopy(RECIPE)
    config["data"] |= {"rotation": {0: 0, 1: 15}, "zoom": 0.1, "color_jitter": {0: 0, 2: 0.2}}
    config["training"] |= {"optimizer": {"name": "sgd", "learning_rate": 0.1}, **settings}
    return config


def _by_hand(config, images):
    """The same training with batches that are distorted on the host."""
    recipe = recipes.validate(config)
    ((x, y), _), classes = held_out.hold_out(recipe, images)
    settings = recipe["training"]
    keras.utils.set_random_seed(settings["seed"])
    model = training.build_model(recipe, classes, x.shape[1:])
    steps = len(x) // settings["batch_size"]
    arguments = (settings["optimizer"], 3 * steps, settings["schedule"], steps)
    optimizer = optimization.make_optimizer(*arguments)
    model.compile(optimizer, optimization.make_loss(settings["loss"]))
    angles, factors = (0, 15, 15), (0, 0, 0.2)
    for epoch, (rotation, jitter) in enumerate(zip(angles, factors, strict=True)):
        batches = Augmented(
            x,
            y,
            settings["batch_size"],
            epoch=epoch,
            padding=1,
            rotation=rotation,
            zoom=0.1,
            color_jitter=jitter,
        )
        for i in range(len(batches)):
            model.train_on_batch(*batches[i])
    constraints.project(model)
    return model


def test_a_training_is_that_on_batches_of_the_host(images, tmp_path):
    expected = _by_hand(_recipe(), images)
    model = training.train(_recipe(), images, tmp_path, verbose=0, log=lambda line: None)
    plain = training.train(RECIPE, images, tmp_path / "plain", verbose=0, log=lambda line: None)
    assert len(model.inputs) == 1  # what comes back takes images alone
    for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(*_weights(model, plain), strict=True))


def _weights(*models):
    return (m.get_weights() for m in models)


@slow_elsewhere
def test_a_stopped_training_goes_on_with_the_same_distortions(images, tmp_path, monkeypatch):
    def train(output, **arguments):
        config = _recipe(dtype="mixed_bfloat16")
        return training.train(config, images, output, verbose=0, log=lambda s: None, **arguments)

    whole = train(tmp_path / "whole")
    begun = []

    class StoppedInTheSecondEpoch(watching.Watch):
        def __init__(self, deadline):
            super().__init__(deadline)
            begun.append(self)

        def on_train_batch_end(self, batch, logs=None):
            if begun.index(self) == 1:
                self.deadline = -math.inf
            super().on_train_batch_end(batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(distribution, "Watch", StoppedInTheSecondEpoch)
        train(tmp_path / "stopped", max_seconds=1e6)
    assert not (tmp_path / "stopped" / "preset").exists()
    resumed = train(tmp_path / "stopped", resume=True)
    for a, b in zip(*_weights(resumed, whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@slow_elsewhere
def test_only_a_recipe_with_distortions_gets_a_distorted_model(images, tmp_path, monkeypatch):
    seen = []

    class Recording(augmentation.Augmented):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            seen.append(self.distort)

    monkeypatch.setattr(distribution, "Augmented", Recording)
    for name, config in {"plain": RECIPE, "distorted": _recipe()}.items():
        training.train(config, images, tmp_path / name, verbose=0, log=lambda line: None)
    assert seen == [True] * 3 + [False] * 3
