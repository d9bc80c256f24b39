"""Training that starts from a preset: what is taken over, what is refused, what is recorded."""

import copy
import json

import keras
import numpy as np
import pytest
from helpers import write_images

import dynzoo
from dynzoo import backend
from dynzoo.training import loop as training
from dynzoo.training.warm_start import transfer, warm_start
from dynzoo.zoo import files as preset_files

RECIPE = {
    "name": "second",
    "architecture": {
        "name": "isometric",
        "widths": [12],
        "steps": [2],
        "neck_units": 8,
        "dense_steps": 1,
    },
    "data": {"name": "none", "validation": 24, "crop_padding": 1},
    "training": {
        "epochs": 1,
        "batch_size": 24,
        "loss": {"name": "offset_crossentropy", "offset": 0.2},
        # too small to move anything: what a run ends with is what it started with
        "optimizer": {"name": "sgd", "learning_rate": 1e-12},
    },
}


def recipe(start="", **architecture):
    result = copy.deepcopy(RECIPE)
    result["architecture"].update(architecture)
    result["training"]["start"] = str(start)
    return result


def classifier(classes=3, seed=7, **architecture):
    config = recipe(**architecture)
    config["training"]["seed"] = seed
    return training.build_model(dynzoo.training.recipes.validate(config), classes, (8, 8, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data in three and in five classes, and a preset `first` for three."""
    path = tmp_path_factory.mktemp("start")
    for classes in (3, 5):
        write_images(path / f"{classes}.npz", classes)
    model = classifier()
    rng = np.random.default_rng(1)
    model.set_weights([w + 0.1 * rng.normal(size=w.shape) for w in model.get_weights()])
    dynzoo.project(model)
    dynzoo.save_to_preset(model, path / "first")
    return path


def run(folder, output, config, classes=3, **arguments):
    messages = []
    data = folder / f"{classes}.npz"
    model = training.train(config, data, output, verbose=0, log=messages.append, **arguments)
    return model, messages


def assert_same(one, other, atol=1e-5):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def test_all_weights_are_taken_over_and_the_start_is_recorded(folder, tmp_path):
    model, messages = run(folder, tmp_path, recipe(folder / "first"))
    assert "started from the weights of first" in messages
    start = dynzoo.from_preset(folder / "first")
    assert_same(model.get_weights(), start.get_weights())
    metadata = json.loads((tmp_path / "preset" / "metadata.json").read_text())
    sha = preset_files.sha256(folder / "first" / "model.weights.h5")
    expected = {"preset": "first", "sha256": {"model.weights.h5": sha}}
    assert metadata["training"]["start"] == expected
    assert sha in (tmp_path / "preset" / "README.md").read_text()


def test_another_number_of_classes_gets_a_fresh_head(folder, tmp_path):
    model, _ = run(folder, tmp_path, recipe(folder / "first"), classes=5)
    fresh = classifier(5, seed=0)  # the weights of a run that starts from nothing
    start = dynzoo.from_preset(folder / "first")
    head = len(model.layers[-1].weights)
    assert model.output_shape == (None, 5)
    assert_same(model.get_weights()[:-head], start.get_weights()[:-head])
    assert_same(model.get_weights()[-head:], fresh.get_weights()[-head:])


def test_a_checkpoint_goes_before_the_start(folder, tmp_path):
    config = recipe(folder / "first")
    config["training"]["optimizer"]["learning_rate"] = 0.05
    first, _ = run(folder, tmp_path / "run", config)
    config["training"]["epochs"] = 2
    config["training"]["optimizer"]["learning_rate"] = 1e-12
    again, messages = run(folder, tmp_path / "run", config, resume=True)
    assert any(m.startswith("resumed at epoch 1") for m in messages)
    assert not any(m.startswith("started") for m in messages)
    assert_same(again.get_weights(), first.get_weights())
    metadata = json.loads((tmp_path / "run" / "preset" / "metadata.json").read_text())
    assert metadata["training"]["start"]["preset"] == "first"
    with pytest.raises(ValueError, match="belongs to another recipe"):
        run(folder, tmp_path / "run", recipe(), resume=True)


def test_counters_in_names_do_not_matter(folder):
    # other layers were made in between: Keras counts them, a preset from another process does not
    for _ in range(3):
        keras.layers.Flatten(), dynzoo.layers.MaxMin(), classifier()
    source, target = dynzoo.from_preset(folder / "first"), classifier(seed=3)
    assert [a.name for a in source.layers] != [a.name for a in target.layers]
    transfer(source, target)
    assert_same(target.get_weights(), source.get_weights(), atol=0)


def test_statistics_of_batches_come_along():
    arguments = dict(input_shape=(8, 8, 3), widths=(4,), steps=(1,))
    source = dynzoo.models.resnet_classifier(seed=1, **arguments)
    for layer in source.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(layer.moving_mean + 0.5)
    target = dynzoo.models.resnet_classifier(seed=2, **arguments)
    transfer(source, target)
    x = np.random.default_rng(0).random((2, 8, 8, 3), dtype="float32")
    np.testing.assert_array_equal(backend.to_numpy(target(x)), backend.to_numpy(source(x)))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"widths": [16]}, r"layer 'position_offset\w*' of the model has weights of shapes.*16"),
        ({"steps": [3]}, r"layer 'gradient_flow\w*' of the model has weights of shapes"),
        ({"dense_steps": 2}, r"layer 'gradient_flow\w*' of the model is not in the start"),
        ({"dense_steps": 0}, r"layer 'gradient_flow\w*' of the start is not in the model"),
        ({"neck_units": 6}, "layer 'neck' of the model has weights of shapes"),
    ],
)
def test_what_does_not_match_is_named_and_nothing_is_changed(folder, architecture, message):
    model = classifier(**architecture)
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"^{message}"):
        transfer(dynzoo.from_preset(folder / "first"), model)
    assert_same(model.get_weights(), before, atol=0)


def test_the_message_names_the_key_and_the_start(folder):
    message = r"`training.start`: layer 'gradient_flow\w*' of the model .*the start is .*first"
    with pytest.raises(ValueError, match=message):
        warm_start(classifier(dense_steps=2), str(folder / "first"))


def test_a_head_of_as_many_classes_must_match():
    source = classifier(3)
    inputs = keras.Input((8, 8, 3))
    body = keras.Model(source.input, source.layers[-2].output)
    other = keras.Model(inputs, keras.layers.Dense(3, name="logits")(body(inputs)))
    with pytest.raises(ValueError, match="is not in the start"):
        transfer(source, other)


def test_an_unknown_start(folder, tmp_path):
    with pytest.raises(ValueError, match="no preset 'nowhere'"):
        run(folder, tmp_path / "run", recipe("nowhere"))
    assert not (tmp_path / "run" / "checkpoint.npz").exists()
