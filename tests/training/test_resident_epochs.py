"""Steps on the device against Keras' own, what they compile, and runs by the clock."""

import copy
import csv
import json
import time

import keras
import numpy as np
import pytest
from keras import ops
from training_fixtures import RECIPE, in_new_process

from dynzoo import backend
from dynzoo.augmentation.batches import Augmented, random_crop_flip
from dynzoo.data import datasets as data
from dynzoo.training import builders as optimization
from dynzoo.training import loop as training
from dynzoo.training import recipes
from dynzoo.training.builders import GivenRate, PiecewiseLinear
from dynzoo.training.epoch_values import at_epoch
from dynzoo.training.loss_of_epoch import LossOfEpoch
from dynzoo.training.resident_epochs import ResidentEpochs, epoch_numbers
from dynzoo.zoo import preset_folder

on_jax = pytest.mark.skipif("keras.backend.backend() != 'jax'", reason="resident on JAX only")
MUON = {"name": "muon", "learning_rate": 0.02}
CHANGING = {"name": "offset_crossentropy", "offset": {0: 0.9, 1: 0.0}}
DISTORTED = {"rotation": 10.0, "zoom": 0.1, "color_jitter": 0.2}


def recipe(data_settings=(), **training_settings):
    result = copy.deepcopy(RECIPE)
    result["data"] |= dict(data_settings)
    result["training"] |= {"optimizer": MUON, "resident": True} | training_settings
    return result


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("resident") / "data.npz"
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8), rng.integers(0, 3, 120)
    y[:3] = [0, 1, 2]
    x[np.arange(120), 0, 0, y] = 255
    np.savez(path, x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    return path


def compiled(config, images, **arguments):
    """The compiled model of a recipe, with further arguments of its optimizer."""
    config = recipes.validate(config)
    keras.utils.set_random_seed(0)
    network = training.build_model(config, 3, images.shape[1:])
    model = training._with_distortions(network, config["data"])
    settings, batches = config["training"], len(images) // config["training"]["batch_size"]
    optimizer = optimization.make_optimizer(
        {**settings["optimizer"], **arguments},
        settings["epochs"] * batches,
        settings["schedule"],
        batches,
    )
    loss = LossOfEpoch(settings["loss"])
    loss.compile(model, optimizer)
    optimizer.build(model.trainable_variables)
    loss.start(0)
    return model


def engine_of(config, images, labels):
    model = compiled(config, images)
    model.optimizer.learning_rate = GivenRate(model.optimizer._learning_rate)
    return ResidentEpochs(model, images, labels, config["training"]["batch_size"], 0)


def rates_of(engine, count=4):
    return backend.to_numpy(engine.rate.schedule(ops.arange(count, dtype="float32")))


def rows_of(folder):
    return list(csv.DictReader((folder / "log.csv").read_text().splitlines()))


def section_of(config, epoch=0):
    return at_epoch(recipes.validate(config)["data"], epoch)


def batches_of(config, images, labels, epoch=0):
    section = at_epoch(recipes.validate(config)["data"], epoch)
    return Augmented(
        images,
        labels,
        batch_size=config["training"]["batch_size"],
        seed=0,
        epoch=epoch,
        padding=section["crop_padding"],
        distort=False,
        **{k: section[k] for k in ("flip", "rotation", "zoom", "color_jitter")},
    )


def images_of(data_file):
    with np.load(data_file) as file:
        return file["x_train"][:96], file["y_train"][:96]


def test_the_numbers_of_an_epoch_make_its_batches(data_file):
    images, labels = images_of(data_file)
    batches = batches_of(recipe(DISTORTED), images, labels, epoch=3)
    numbers = epoch_numbers(batches)
    table = data.to_float(np.arange(256, dtype=np.uint8))
    for i in range(len(batches)):
        chosen, dy, dx, mirror, draws = (part[i] for part in numbers)
        (x, given), y = batches[i]
        cut = random_crop_flip(images[chosen], dy, dx, mirror, batches.padding)
        np.testing.assert_array_equal(table[backend.to_numpy(cut)], x)
        np.testing.assert_array_equal(draws, given)
        np.testing.assert_array_equal(labels[chosen], y)


@on_jax
@pytest.mark.parametrize(
    ("settings", "distortions"),
    [
        ({"optimizer": {"name": "adam", "learning_rate": 0.01}}, {}),
        ({"dtype": "mixed_bfloat16", "loss": CHANGING}, DISTORTED),
    ],
)
def test_an_epoch_is_that_of_keras(data_file, settings, distortions):
    images, labels = images_of(data_file)
    config = recipe(distortions, **settings)
    one_by_one = {"stacked": False} if config["training"]["optimizer"] == MUON else {}
    reference = compiled(config, images, **one_by_one)
    batches = batches_of(config, images, labels)
    batches.distort = not distortions
    theirs = reference.fit(batches, verbose=0, shuffle=False).history
    engine = engine_of(config, images, labels)
    done = engine.run(0, section_of(config), 0, rates_of(engine))
    assert (done.steps, done.finite, done.out_of_time) == (4, True, False)
    assert done.loss == pytest.approx(theirs["loss"][0], rel=1e-5)
    assert done.accuracy == pytest.approx(theirs["accuracy"][0], rel=1e-5)
    for a, b in zip(engine.model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert int(backend.value_of(engine.model.optimizer.iterations)) == 4


@on_jax
def test_a_run_compiles_once(data_file):
    images, labels = images_of(data_file)
    config = recipe({"rotation": {0: 5, 1: 15}}, loss=CHANGING)
    engine = engine_of(config, images, labels)
    traced = []
    train_step = engine.model.train_step

    def counted(state, batch):
        traced.append(1)
        return train_step(state, batch)

    engine.model.train_step = counted
    losses = []
    for epoch in range(2):
        LossOfEpoch.start(engine.model.loss, epoch)
        for first, count in ((0, 1), (1, 3)):  # whole epochs and parts of them
            done = engine.run(epoch, section_of(config, epoch), first, rates_of(engine, count))
            losses.append(done.loss)
    assert len(traced) == 1
    assert losses[-1] < losses[0] - 0.1  # the offset did change


@on_jax
def test_a_step_that_is_not_finite_is_told(data_file):
    images, labels = images_of(data_file)
    config = recipe(optimizer={"name": "sgd", "learning_rate": 0.1})
    engine = engine_of(config, images, labels)
    before = engine.model.get_weights()
    good = engine.state()
    assert not engine.run(0, section_of(config), 0, np.full(4, np.inf, "float32")).finite
    engine.restore(good)
    for a, b in zip(engine.model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@on_jax
def test_a_resident_run_leaves_what_others_leave_and_they_go_on(data_file, tmp_path):
    config = recipe(epochs=1, schedule={"points": {0: 1.0, 2: 0.0}})
    model = training.train(config, data_file, tmp_path, verbose=0, log=lambda line: None)
    about = json.loads((tmp_path / "preset" / "metadata.json").read_text())["training"]
    assert about["epochs"] == 1 and about["chosen"] == "last epoch"
    assert set(about["held_out"]) >= {"val_accuracy", "val_certified"}
    loaded = preset_folder.from_preset(tmp_path / "preset")
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    config["training"] |= {"epochs": 2, "resident": False}
    training.train(config, data_file, tmp_path, resume=True, verbose=0, log=lambda line: None)
    rows = rows_of(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(row["val_accuracy"] and row["val_certified"] for row in rows)
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.01, 0.0])


@on_jax
def test_a_loss_of_another_formula_is_compiled_anew(data_file, tmp_path):
    """Annealing is no number in the step, as an offset is."""
    loss = {"name": "offset_crossentropy", "annealing": {0: 0.0, 1: 5.0}}
    found = []
    for resident in (True, False):
        config = recipe(epochs=2, resident=resident, loss=loss)
        output = tmp_path / str(resident)
        model = training.train(config, data_file, output, verbose=0, log=lambda line: None)
        found.append((model, rows_of(output)))
    (one, rows), (other, expected) = found
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    for row, same in zip(rows, expected, strict=True):
        assert float(row["loss"]) == pytest.approx(float(same["loss"]), rel=1e-4)


@on_jax
def test_rates_go_on_where_gradients_are_accumulated(data_file, tmp_path, monkeypatch):
    run, first = ResidentEpochs.run, []

    def noted(self, *arguments):
        first.append(float(arguments[3][0]))
        return run(self, *arguments)

    monkeypatch.setattr(ResidentEpochs, "run", noted)
    sgd = {"name": "sgd", "learning_rate": 0.1, "gradient_accumulation_steps": 2}
    config = recipe(epochs=2, optimizer=sgd, schedule={"points": {0: 1.0, 2: 0.0}})
    training.train(config, data_file, tmp_path, verbose=0, log=lambda line: None)
    assert first == pytest.approx([0.1, 0.05])


@on_jax
def test_by_the_clock_the_rate_ends_at_zero_in_time(data_file, tmp_path, monkeypatch):
    run, calls = ResidentEpochs.run, []

    def sometimes(self, *arguments):
        calls.append(float(arguments[3][0]))
        done = run(self, *arguments)
        return done._replace(finite=False) if len(calls) == 3 else done

    monkeypatch.setattr(ResidentEpochs, "run", sometimes)
    config = recipe(epochs=10, clock=True, schedule={"points": {0: 1.0, 10: 0.0}})
    began, messages = time.monotonic(), []
    training.train(
        config,
        data_file,
        tmp_path,
        max_seconds=20,
        verbose=0,
        log=messages.append,
        weights_dtype="float16",
    )
    assert time.monotonic() - began < 20
    # one epoch was taken back, and the rates are half as large from there on
    assert sum("not finite; back one epoch, rate halved" in line for line in messages) == 1
    assert calls[3] == pytest.approx(0.5 * calls[2], rel=0.1)
    rows = rows_of(tmp_path)
    assert len(rows) == len(calls) - 1
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.1 * rates[0]
    written = [line for line in messages if "written to" in line]
    assert len(written) == 3 and written[-1].startswith("preset")  # at 60, 80 and 100 %
    about = json.loads((tmp_path / "preset" / "metadata.json").read_text())["training"]
    assert (about["epochs"], about["chosen"]) == (int(rows[-1]["epoch"]), "last epoch")
    assert about["command"] == "dynzoo train tiny --max-seconds 20"
    preset_folder.from_preset(tmp_path / "preset")


@pytest.mark.parametrize("resident", [False, pytest.param(True, marks=on_jax)])
def test_a_pilot_tells_the_cost_and_writes_nothing(data_file, tmp_path, resident):
    messages = []
    training.train(
        recipe(resident=resident),
        data_file,
        tmp_path / "run",
        pilot=0.2,
        max_seconds=30 if resident else None,
        verbose=0,
        log=messages.append,
    )
    assert not (tmp_path / "run").exists()
    *_, line = messages
    assert "images/s" in line and ("for the update" in line) == resident
    assert ("epochs in 30 s" in line) if resident else ("3.0 epochs in" in line)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"clock": True}, {}, r"`training.clock` stretches .* Received: max_seconds=None"),
        (
            {"resident": False, "clock": True},
            {},
            "`training.clock` needs `training.resident: true`",
        ),
        ({"clock": True, "keep": "best"}, {}, "`training.clock` keeps the last weights"),
        ({"dtype": "mixed_float16"}, {}, "`training.dtype` must be float32 or mixed_bfloat16"),
        ({"resident": False}, {"pilot": 0}, "`pilot` must be a positive number"),
        ({"resident": False}, {"weights_dtype": "int8"}, "`weights_dtype` must be 'float32' or"),
        pytest.param({}, {"distribute": True}, "ways to use devices: give one", marks=on_jax),
    ],
)
def test_bad_arguments(data_file, tmp_path, settings, arguments, message):
    with pytest.raises(ValueError, match=message):
        training.train(recipe(**settings), data_file, tmp_path / "run", verbose=0, **arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif("keras.backend.backend() == 'jax'", reason="what other backends say")
def test_other_backends_say_what_to_use(data_file, tmp_path):
    with pytest.raises(ValueError, match="`training.resident` needs the JAX backend.*KERAS_BACK"):
        training.train(recipe(), data_file, tmp_path / "run", verbose=0)


def test_a_given_rate_stands_in_for_the_schedule():
    rate = GivenRate(PiecewiseLinear([0, 10], [0.0, 1.0]))
    with rate.given(0.25):
        assert float(rate(5)) == 0.25
    assert float(rate(5)) == 0.5
    again = GivenRate.from_config(rate.get_config())
    assert float(again(5)) == 0.5


@on_jax
def test_constraints_keep_full_precision_where_the_default_is_less():
    code = """
import jax, numpy as np
from dynzoo import constraints
jax.config.update("jax_default_matmul_precision", "bfloat16")
for constraint in (constraints.Orthonormal(), constraints.SpectralNorm()):
    text = str(jax.make_jaxpr(constraint)(np.eye(6, 8, dtype="float32")))
    products = text.count("dot_general[")
    assert products and text.count("Precision.HIGHEST") >= products, text
"""
    process = in_new_process(code)
    assert process.returncode == 0, process.stderr[-2000:]
