"""The mean of the weights after several epochs, projected, as what a training keeps."""

import copy
import json

import keras
import numpy as np
import pytest
from helpers import norm, slow_elsewhere
from keras import ops
from training_fixtures import RECIPE, killed_after
from tuning_fixtures import SEARCH, write_images

from dynzoo import backend, constraints
from dynzoo.data import datasets as data
from dynzoo.training import checkpoints, recipes
from dynzoo.training import loop as training
from dynzoo.training import validation as held_out
from dynzoo.training.averaging import take_mean
from dynzoo.training.builders import make_optimizer
from dynzoo.training.callbacks import Watch
from dynzoo.training.checkpoints import CheckpointError
from dynzoo.training.distribution import OneDevice
from dynzoo.training.recipes import RecipeError
from dynzoo.tuning import SearchConfig
from dynzoo.zoo import preset_folder


def recipe(**settings):
    result = copy.deepcopy(RECIPE)
    result["training"] |= {"average": [1, 3], **settings}
    return result


def run(output, images, config, **arguments):
    return training.train(config, images, output, verbose=0, log=lambda message: None, **arguments)


def stored(path):
    with np.load(path) as file:
        return [file[k] for k in sorted(file.files) if k.startswith("weight_")]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images.npz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images):
    output = tmp_path_factory.mktemp("whole") / "run"
    return output, run(output, images, recipe())


def test_the_preset_is_the_projected_mean(whole, images):
    output, model = whole
    assert sorted(p.name for p in output.glob("epoch_*")) == ["epoch_1.npz", "epoch_3.npz"]
    settings = recipes.validate(recipe())
    expected = training.build_model(settings, model.output_shape[-1], model.input_shape[1:])
    one, other = (stored(output / f"epoch_{epoch}.npz") for epoch in (1, 3))
    mean = [(a.astype(np.float64) + b) / 2 for a, b in zip(one, other, strict=True)]
    for variable, value in zip(expected.variables, mean, strict=True):
        variable.assign(value.astype(np.float32))
    before = [norm(w) for w, v in zip(mean, expected.variables, strict=True) if v.constraint]
    assert max(abs(s - 1) for s in before) > 1e-4  # the mean alone is not orthonormal
    constraints.project(expected)
    preset = preset_folder.from_preset(output / "preset")
    for loaded in (model, preset):
        for a, b in zip(loaded.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    for variable in preset.variables:
        if variable.constraint is not None:
            assert norm(backend.to_numpy(variable.value)) <= 1 + 1e-5
    last = stored(output / "checkpoint.npz")  # goes on from its own weights, not from the mean
    assert all(np.array_equal(a, b) for a, b in zip(last, other, strict=True))


def test_what_is_said_of_the_preset_is_measured_on_it(whole, images):
    output, model = whole
    metadata = json.loads((output / "preset" / "metadata.json").read_text())["training"]
    assert metadata["chosen"] == "mean of the weights after epochs 1 and 3, projected"
    (_, held), _ = held_out.hold_out(
        recipes.validate(recipe()), data.load(str(images), dtype="uint8")
    )
    clean, certified = held_out.held_out_accuracy(model, held, 36 / 255)
    measured = {"val_accuracy": 100 * clean, "val_certified": 100 * certified}
    assert metadata["held_out"] == pytest.approx(measured, abs=1e-3)


@slow_elsewhere
def test_a_killed_run_ends_with_the_same_mean(whole, images, tmp_path):
    output = tmp_path / "run"
    killed_after(5, f"training.train({recipe()!r}, {str(images)!r}, {str(output)!r}, verbose=0)")
    assert (output / "epoch_1.npz").exists() and not (output / "epoch_3.npz").exists()
    model = run(output, images, recipe(), resume=True)
    for a, b in zip(model.get_weights(), whole[1].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_weights_that_were_not_kept_are_missed_before_anything_is_computed(images, tmp_path):
    output = tmp_path / "run"
    run(output, images, recipe(average=[], epochs=1))
    before = {p.name: p.read_bytes() for p in output.glob("*.*")}
    with pytest.raises(CheckpointError, match=r"has epoch 1, but .*epoch_1.npz is missing"):
        run(output, images, recipe(), resume=True)
    assert {p.name: p.read_bytes() for p in output.glob("*.*")} == before
    run(output, images, recipe(average=[2, 3]), resume=True)
    (output / "epoch_2.npz").write_bytes(b"damaged")
    preset = (output / "preset" / "metadata.json").read_bytes()
    with pytest.raises(CheckpointError, match="epoch_2.npz is damaged"):
        run(output, images, recipe(average=[2, 3]), resume=True)
    assert (output / "preset" / "metadata.json").read_bytes() == preset


def test_the_mean_of_one_network_is_that_network(whole):
    output, model = whole
    path = output / "epoch_3.npz"
    model.compile(optimizer="sgd", loss="mse")
    with pytest.raises(CheckpointError, match="optimizer variables of another model"):
        take_mean(model, [path])
    checkpoints.write(output / "same.npz", model, {})
    before = model.get_weights()
    take_mean(model, [output / "same.npz"] * 3)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "wrong", [[3], [3, 1], [1, 1], [0, 2], [1, 4], [1, 2.5], [True, 2], ["1", "2"], 2]
)
def test_other_than_increasing_epochs_is_refused(wrong):
    with pytest.raises(RecipeError, match="`training.average` must be"):
        recipes.validate(recipe(average=wrong))


def test_one_choice_of_weights():
    with pytest.raises(RecipeError, match="`training.average` and `training.keep: best` are two"):
        recipes.validate(recipe(keep="best"))


def test_a_tuner_that_decides_on_the_length_averages_nothing():
    config = copy.deepcopy(SEARCH)
    config["recipe"]["training"] |= {"average": [1, 2], "epochs": 2}
    config = SearchConfig.load(config)
    values = {d.key: d.default for d in config.space}
    assert config.recipe_of(values)["training"]["average"] == [1, 2]
    assert config.recipe_of(values, epochs=1)["training"]["average"] == []


@pytest.mark.parametrize("batches", [None, 3])
def test_an_average_and_a_schedule_over_accumulated_gradients(batches):
    """Keras counts batches: an average is one of updates, and the decay ends with the training."""
    config = {"name": "sgd", "learning_rate": 0.1, "use_ema": True, "ema_momentum": 0.9}
    if batches:
        config["gradient_accumulation_steps"] = batches
    calls = 5 * (batches or 1)
    optimizer = make_optimizer(config, calls, {"warmup": 0.0, "decay": 0.5})
    weight = keras.Variable([0.0], name="weight")
    optimizer.build([weight])
    average = optimizer._model_variables_moving_average[0]
    for i in range(calls):
        if i == calls // 5:  # the first update sets the average, four go on with it
            average.assign([1.0])
        rate = float(backend.to_numpy(optimizer.learning_rate))
        optimizer.apply([ops.zeros((1,))], [weight])
    np.testing.assert_allclose(backend.value_of(average), [0.9**4], rtol=1e-5)
    assert rate == pytest.approx(0.1 / (0.5 * calls))  # of the last batch; 0 comes after it


# --- averages of the optimizer ---


AVERAGES = {"name": "adam", "learning_rate": 0.02, "use_ema": True, "ema_momentum": 0.8}


@pytest.fixture(scope="module")
def averaged(tmp_path_factory, images):
    output = tmp_path_factory.mktemp("averaged") / "run"
    return output, run(output, images, recipe(average=[], optimizer=AVERAGES))


def test_a_recipe_with_use_ema_keeps_the_projected_averages(averaged, images):
    output, model = averaged
    raw = stored(output / "checkpoint.npz")
    settings = recipes.validate(recipe(average=[], optimizer=AVERAGES))
    shape, classes = model.input_shape[1:], model.output_shape[-1]
    twin, _ = training._compiled(settings, classes, shape, 4, OneDevice())
    checkpoints.read(output / "checkpoint.npz", twin.model)
    averages = twin.model.optimizer._model_variables_moving_average
    for variable, average in zip(twin.model.trainable_variables, averages, strict=True):
        variable.assign(average)
    constraints.project(twin.model)
    twin = twin.model
    for kept, expected in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(kept, expected, atol=1e-5)
    # the run goes on from the weights, which are others and on their constraints
    assert max(np.abs(a - b).max() for a, b in zip(raw, model.get_weights(), strict=True)) > 1e-3
    for value, variable in zip(raw, twin.variables, strict=True):
        if variable.constraint is not None:
            assert norm(value) <= 1 + 1e-5
    metadata = json.loads((output / "preset" / "metadata.json").read_text())["training"]
    assert metadata["chosen"] == "last epoch, the optimizer's averages of the weights, projected"


def test_what_the_log_says_of_averages_is_measured_on_them(averaged, images):
    output, model = averaged
    last = json.loads((output / "preset" / "metadata.json").read_text())["training"]["held_out"]
    (_, held), _ = held_out.hold_out(
        recipes.validate(recipe(average=[])), images, lambda message: None
    )
    accuracy, certified = held_out.held_out_accuracy(model, held, 36 / 255)
    assert last["val_accuracy"] == pytest.approx(100 * accuracy, abs=0.01)
    assert last["val_certified"] == pytest.approx(100 * certified, abs=0.01)


def test_a_stopped_training_with_use_ema_ends_as_one_that_was_not(
    averaged, images, tmp_path, monkeypatch
):
    stops = iter([2, 3])
    at = next(stops)
    monkeypatch.setattr(Watch, "_is_late", lambda self: at is not None and self.batches >= at)
    config = recipe(average=[], optimizer=AVERAGES)
    run(tmp_path / "run", images, config)
    at = next(stops)
    run(tmp_path / "run", images, config, resume=True)
    at = None
    model = run(tmp_path / "run", images, config, resume=True)
    for a, b in zip(model.get_weights(), averaged[1].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"average": [1, 3]}, "`training.average` and `training.optimizer.use_ema` are two"),
        ({"average": [], "resident": True}, "use_ema` must be left out with `training.resident`"),
    ],
)
def test_averages_beside_what_has_none(settings, message):
    with pytest.raises(RecipeError, match=message):
        recipes.validate(recipe(optimizer=AVERAGES, **settings))


def test_a_network_of_averages_can_be_fitted_on(images, tmp_path):
    model = run(tmp_path / "run", images, recipe(average=[], epochs=1, optimizer=AVERAGES))
    before = model.get_weights()
    x = np.random.default_rng(0).random((24, *model.input_shape[1:]), "float32")
    model.fit(x, np.arange(24) % model.output_shape[-1], batch_size=24, verbose=0)
    moved = [np.abs(a - b).max() for a, b in zip(before, model.get_weights(), strict=True)]
    assert np.isfinite(moved).all() and max(moved) > 0
