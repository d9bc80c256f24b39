"""Training as a job that may be killed, stopped, resumed, or go wrong, on a tiny data set."""

import copy
import csv
import itertools
import json
import os
import shutil
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import norm, slow_elsewhere
from keras import ops
from training_fixtures import RECIPE, killed_after

from dynzoo import backend
from dynzoo.augmentation import batches as augmentation
from dynzoo.training import builders as optimization
from dynzoo.training import callbacks as watching
from dynzoo.training import distribution, recipes
from dynzoo.training import epochs as training_loop
from dynzoo.training import loop as training
from dynzoo.training import run as runs
from dynzoo.training.checkpoints import CheckpointError
from dynzoo.zoo import preset_folder

BATCHES = 4
# By the clock below, the first batch of the second epoch passes it; the third may have begun, for
# the callback is told of an end while the next two are under way.
MOST_SECONDS = BATCHES + 2


def recipe(**training_settings):
    result = copy.deepcopy(RECIPE)
    result["training"].update(training_settings)
    return result


def write_data(path, poisoned=False):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)
    y = rng.integers(0, 3, 120)
    y[:3] = [0, 1, 2]
    x[np.arange(120), 0, 0, y] = 255  # something to learn
    x_test, y_test = x[:6], y[:6]
    if poisoned:
        x_test, y_test = np.full((30, 8, 8, 3), 255, np.uint8), np.zeros(30, int)
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return path


def run(output, data, config=None, **arguments):
    messages = []
    model = training.train(
        config or RECIPE, data, output, verbose=0, log=messages.append, **arguments
    )
    return model.get_weights(), messages


def state_of(output):
    with np.load(output / "checkpoint.npz") as file:
        return json.loads(file["state"].tobytes())


def ticking():
    """A clock that advances by one each time it is read: once a batch, and between epochs."""
    ticks = itertools.count()
    return types.SimpleNamespace(monotonic=lambda: float(next(ticks)))


def assert_same_weights(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "tiny.npz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """A run that nothing interrupts: its folder, weights and messages."""
    output = tmp_path_factory.mktemp("whole")
    return output, *run(output, data)


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory, data):
    """A run that the time limit stopped within its second epoch."""
    output = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        clock = ticking()
        for module in (training, training_loop, watching):
            patch.setattr(module, "time", clock)
        _, messages = run(output, data, max_seconds=MOST_SECONDS)
    assert "stopped at the time limit" in messages[-1]
    return output


@pytest.fixture
def stopped(stopped_run, tmp_path):
    return Path(shutil.copytree(stopped_run, tmp_path / "run"))


def test_a_whole_run_leaves_a_checkpoint_a_log_and_a_preset(whole):
    output, weights, messages = whole
    assert sorted(os.listdir(output)) == ["best.npz", "checkpoint.npz", "log.csv", "preset"]
    state = state_of(output)
    assert (state["epoch"], state["batch"]) == (3, 0)
    with open(output / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    columns = "epoch seconds learning_rate loss accuracy val_accuracy val_certified".split()
    assert all(list(row) == columns for row in rows)
    assert all(0 <= float(row[c]) <= 100 for row in rows for c in columns[4:])
    assert all(float(row["val_certified"]) <= float(row["val_accuracy"]) for row in rows)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert sum(message.startswith("epoch ") for message in messages) == 3
    preset = preset_folder.from_preset(output / "preset")
    for stored, trained in zip(preset.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(stored, trained)
    constrained = [v for v in preset.variables if v.constraint is not None]
    assert len(constrained) == 3
    for variable in constrained:
        assert norm(backend.to_numpy(variable.value)) <= 1 + 1e-5
    metadata = json.loads((output / "preset" / "metadata.json").read_text())
    assert metadata["training"]["epochs"] == 3 and "start" not in metadata["training"]
    assert metadata["recipe"]["training"]["optimizer"] == RECIPE["training"]["optimizer"]


def test_a_finished_run_may_be_resumed_and_stays_as_it_is(whole, data, tmp_path):
    output = Path(shutil.copytree(whole[0], tmp_path / "run"))
    weights, _ = run(output, data, resume=True)
    for now, then in zip(weights, whole[1], strict=True):
        np.testing.assert_array_equal(now, then)
    assert state_of(output)["epoch"] == 3


def test_a_killed_run_goes_on_where_its_last_epoch_ended(whole, data, tmp_path):
    output = tmp_path / "run"
    killed_after(
        BATCHES + 3,
        f"training.train({RECIPE!r}, {str(data)!r}, {str(output)!r}, verbose=0)",
    )
    killed = state_of(output)
    assert (killed["epoch"], killed["batch"], len(killed["history"])) == (1, 0, 1)
    # Resumed with another test set: what is not read changes nothing.
    poisoned = write_data(tmp_path / "poisoned.npz", poisoned=True)
    weights, messages = run(output, poisoned, resume=True)
    assert "resumed at epoch 1, batch 0" in messages
    state = state_of(output)
    assert state["epoch"] == 3 and len(state["history"]) == 3 and len(state["sessions"]) == 2
    assert_same_weights(weights, whole[1])


@slow_elsewhere
def test_held_out_images_may_be_looked_at_less_often(whole, data, tmp_path):
    config = recipe(validate_every=2, keep="best")
    output = tmp_path / "run"
    killed_after(
        2 * BATCHES + 3,
        f"training.train({config!r}, {str(data)!r}, {str(output)!r}, verbose=0)",
    )
    killed = state_of(output)
    assert (killed["epoch"], killed["batch"], len(killed["history"])) == (2, 0, 2)
    _, messages = run(output, data, config, resume=True)
    assert "resumed at epoch 2, batch 0" in messages
    rows, expected = state_of(output)["history"], state_of(whole[0])["history"]
    assert [row["val_accuracy"] is None for row in rows] == [True, False, False]
    assert rows[0]["val_certified"] is None
    for row, other in zip(rows[1:], expected[1:], strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert row["val_certified"] == other["val_certified"]
    logged = (output / "log.csv").read_text().splitlines()
    assert logged[1].endswith(",,") and not logged[2].endswith(",")
    chosen = json.loads((output / "preset" / "metadata.json").read_text())["training"]["chosen"]
    best = max(reversed(rows[1:]), key=lambda row: row["val_certified"])
    assert chosen.startswith(f"epoch {best['epoch']}, best held-out certified")


def test_of_equally_good_epochs_the_last_is_kept_and_named(tmp_path):
    record = runs.Run(recipes.validate(RECIPE), tmp_path)
    figures = [(70.0, 40.0), (None, None), (60.0, 50.0), (65.0, 50.0), (71.0, 49.0)]
    for epoch, (accuracy, certified) in enumerate(figures, 1):
        row = {"epoch": epoch, "val_accuracy": accuracy, "val_certified": certified}
        record.state["history"].append(row)
    assert record.best_row()["epoch"] == 4


def test_a_run_made_shorter_before_its_first_look_keeps_its_last_epoch(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        clock = ticking()
        for module in (training, training_loop, watching):
            patch.setattr(module, "time", clock)
        config = recipe(validate_every=3, keep="best")
        run(tmp_path / "run", data, config, max_seconds=MOST_SECONDS)
    state = state_of(tmp_path / "run")
    assert state["epoch"] == 1 and state["history"][0]["val_accuracy"] is None
    assert 0 < state["batch"] < BATCHES
    with np.load(tmp_path / "run" / "checkpoint.npz") as file:
        arrays = dict(file)
    arrays["state"] = np.frombuffer(json.dumps(state | {"batch": 0}).encode(), dtype=np.uint8)
    np.savez(tmp_path / "run" / "checkpoint.npz", **arrays)
    run(tmp_path / "run", data, recipe(validate_every=3, keep="best", epochs=1), resume=True)
    metadata = json.loads((tmp_path / "run" / "preset" / "metadata.json").read_text())
    assert metadata["training"]["chosen"] == "last epoch"


def rewritten(source, path, change):
    """A checkpoint with something changed in its state and its arrays, at another place."""
    with np.load(source) as file:
        arrays = dict(file)
    state = json.loads(arrays["state"].tobytes())
    change(state, arrays)
    arrays["state"] = np.frombuffer(json.dumps(state).encode(), dtype=np.uint8)
    np.savez(path, **arrays)
    return arrays


@pytest.mark.parametrize("there", [None, 1, 2])
def test_the_weights_that_a_card_names_are_those_of_the_preset(whole, data, tmp_path, there):
    """A finished run whose second epoch was the best, with no best weights or those of an epoch."""
    output = Path(shutil.copytree(whole[0], tmp_path / "run"))

    def second_is_best(state, arrays):
        for row, figure in zip(state["history"], (10.0, 50.0, 20.0), strict=True):
            row["val_certified"] = figure

    def other_weights(state, arrays):
        state["epoch"] = there
        arrays["weight_0000"] = arrays["weight_0000"][..., ::-1]  # as orthonormal as before

    rewritten(output / "checkpoint.npz", output / "checkpoint.npz", second_is_best)
    (output / "best.npz").unlink()
    if there:
        kept = rewritten(whole[0] / "best.npz", output / "best.npz", other_weights)
    before = {p.name: p.read_bytes() for p in output.glob("*.*")}
    if there != 2:
        what = "is missing" if there is None else "holds those after epoch 1"
        with pytest.raises(CheckpointError, match=f"weights after epoch 2, but .*best.npz {what}"):
            run(output, data, recipe(keep="best"), resume=True)
        assert {p.name: p.read_bytes() for p in output.glob("*.*")} == before
        return
    weights, _ = run(output, data, recipe(keep="best"), resume=True)
    assert_same_weights(weights, [kept[f"weight_{i:04}"] for i in range(len(weights))])
    metadata = json.loads((output / "preset" / "metadata.json").read_text())
    assert metadata["training"]["chosen"].startswith("epoch 2, best held-out")


def test_a_run_killed_before_its_best_weights_are_written_makes_them_again(data, tmp_path):
    config, output = recipe(keep="best", epochs=1), tmp_path / "run"
    expected, _ = run(output, data, config)
    (output / "best.npz").unlink()
    weights, _ = run(output, data, config, resume=True)
    assert_same_weights(weights, expected)
    assert (output / "best.npz").exists()


@slow_elsewhere
def test_no_epoch_without_a_look_leaves_a_checkpoint(data, tmp_path, monkeypatch):
    written = []
    write = training.checkpoints.write

    def noted(path, model, state):
        written.append((path.name, state["epoch"]))
        write(path, model, state)

    monkeypatch.setattr(training.checkpoints, "write", noted)
    _, messages = run(tmp_path / "run", data, recipe(validate_every=5, average=[1, 3]))
    # what is averaged is kept all the same, and the last epoch is always looked at
    averaged = ["epoch_1.npz", "epoch_3.npz"]
    # the checkpoint first: of a run that is killed after it the best weights can be had from it
    assert [name for name, _ in written] == [*averaged, "checkpoint.npz", "best.npz"]
    said = [line for line in messages if line.startswith("epoch ")]
    assert ["held-out" in line for line in said] == [False, False, True]


def test_a_stopped_run_goes_on_within_the_epoch(whole, stopped, data):
    state = state_of(stopped)
    assert state["epoch"] == 1 and 0 < state["batch"] < BATCHES
    assert not (stopped / "preset").exists()
    weights, messages = run(stopped, data, resume=True)
    assert f"resumed at epoch 1, batch {state['batch']}" in messages
    assert_same_weights(weights, whole[1])
    assert [row["epoch"] for row in state_of(stopped)["history"]] == [1, 2, 3]
    for now, then in zip(state_of(stopped)["history"], state_of(whole[0])["history"], strict=True):
        assert now["learning_rate"] == pytest.approx(then["learning_rate"], abs=1e-8)
        assert now["val_accuracy"] == then["val_accuracy"]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    stopped, data, monkeypatch
):
    before = (stopped / "checkpoint.npz").read_bytes()

    class Broken(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return ops.sum(y_pred, axis=-1) * float("nan")

    monkeypatch.setattr(optimization, "make_loss", lambda config: Broken())
    with pytest.raises(training.TrainingDivergedError, match="epoch 2.*checkpoint is kept"):
        run(stopped, data, resume=True)
    assert (stopped / "checkpoint.npz").read_bytes() == before


def test_weights_that_blow_up_after_a_good_loss_are_not_kept(data, tmp_path, monkeypatch):
    # one batch an epoch: its loss is finite, the weights after it are not
    monkeypatch.setattr(
        optimization, "make_optimizer", lambda *arguments: keras.optimizers.SGD(float("inf"))
    )
    with pytest.raises(training.TrainingDivergedError, match="weight was not finite in epoch 1"):
        run(tmp_path / "run", data, recipe(batch_size=96))
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


def test_a_run_is_not_overwritten_or_mixed_up(stopped, data):
    before = (stopped / "checkpoint.npz").read_bytes()
    with pytest.raises(CheckpointError, match="exists: pass --resume"):
        run(stopped, data)
    for other in (
        recipe(seed=1),
        recipe(batch_size=12),
        recipe(loss={"name": "multiclass_hinge"}),
        {**RECIPE, "data": {**RECIPE["data"], "flip": False}},
    ):
        with pytest.raises(CheckpointError, match="belongs to another recipe"):
            run(stopped, data, other, resume=True)
    optimizer = recipe(optimizer={"name": "adam", "learning_rate": 0.02, "amsgrad": True})
    with pytest.raises(CheckpointError, match="optimizer variables of another model or optimizer"):
        run(stopped, data, optimizer, resume=True)
    alike = recipe(optimizer={"name": "adamw", "learning_rate": 0.02})
    with pytest.raises(CheckpointError, match="trained with the optimizer 'adam', not 'adamw'"):
        run(stopped, data, alike, resume=True)
    assert (stopped / "checkpoint.npz").read_bytes() == before


def test_a_run_goes_on_with_the_same_images_only(stopped, data, tmp_path):
    output = stopped
    with np.load(data) as file:
        arrays = dict(file)
    # the same images as floats are the same
    floats = {k: v / np.float32(255) if k[0] == "x" else v for k, v in arrays.items()}
    np.savez(tmp_path / "floats.npz", **floats)
    arrays["x_train"] = arrays["x_train"][::-1]
    np.savez(tmp_path / "other.npz", **arrays)
    before = (output / "checkpoint.npz").read_bytes()
    with pytest.raises(CheckpointError, match="checkpoint.npz was trained on other images"):
        run(output, tmp_path / "other.npz", resume=True)
    assert (output / "checkpoint.npz").read_bytes() == before
    shutil.copytree(output, tmp_path / "copy")
    run(tmp_path / "copy", tmp_path / "floats.npz", resume=True, max_seconds=1e-9)


def test_held_out_images_are_judged_by_one_radius(stopped, data):
    """Else epochs at one radius would be compared with epochs at another, and logged as such."""
    for evaluation in ({"eps": ["72/255"]}, {"norm": "linf"}):
        with pytest.raises(CheckpointError, match=r"certified at 0.141176 in l2, the first of"):
            run(stopped, data, RECIPE | {"evaluation": evaluation}, resume=True)
    old = stopped / "checkpoint.npz"
    rewritten(old, old, lambda state, arrays: state.pop("judged"))  # from before it was written
    more = {"eps": ["36/255", "1/2"]}
    run(stopped, data, RECIPE | {"evaluation": more}, resume=True, max_seconds=1e-9)
    assert state_of(stopped)["judged"] == ["l2", 36 / 255]


def test_the_bar_counts_the_epochs_of_the_run(stopped, data, tmp_path, capsys):
    """Each epoch is a `fit` of its own, and so is what is left of one after a stop."""
    output = stopped
    shutil.copytree(output, tmp_path / "copy")
    config = {**RECIPE, "training": {**RECIPE["training"], "epochs": 4}}
    training.train(config, data, tmp_path / "copy", resume=True, verbose=2, log=lambda line: None)
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("Epoch ")] == [
        f"Epoch {n}/4" for n in (2, 3, 4)
    ]


def test_who_waits_is_told_at_once(whole, data):
    _, _, messages = whole
    assert messages[0] == f"tiny: reading {data}"
    assert messages[1].startswith("96 images of 8 x 8 x 3 to train on, 24 held out; ")
    assert " 3 epochs of 4 batches; compiling for " in messages[1]


def test_a_damaged_checkpoint_is_refused(stopped, data):
    path = stopped / "checkpoint.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="checkpoint.npz is damaged"):
        run(stopped, data, resume=True)


def test_mixed_precision_returns_a_float32_model_of_the_best_epoch(data, tmp_path):
    config = recipe(
        dtype="mixed_bfloat16",
        keep="best",
        epochs=1,
        optimizer={"name": "muon", "learning_rate": 0.05},
    )
    before = keras.config.dtype_policy().name
    model = training.train(config, data, tmp_path, verbose=0, log=lambda message: None)
    assert keras.config.dtype_policy().name == before
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    for variable in model.variables:
        if variable.constraint is not None:
            assert norm(backend.to_numpy(variable.value)) <= 1 + 1e-5
    metadata = json.loads((tmp_path / "preset" / "metadata.json").read_text())
    assert metadata["training"]["chosen"].startswith("epoch 1, best held-out")


def test_half_precision_trains_with_a_scaled_loss_and_goes_on(data, tmp_path):
    _, messages = run(tmp_path / "run", data, recipe(dtype="mixed_float16", epochs=1))
    assert messages[-1].startswith("preset written")
    config = recipe(dtype="mixed_float16", epochs=2)
    _, messages = run(tmp_path / "run", data, config, resume=True)
    assert any("resumed at epoch 1" in message for message in messages)
    with np.load(tmp_path / "run" / "checkpoint.npz") as file:
        sizes = [file[k].ndim for k in file.files if k.startswith("optimizer_")]
    assert sizes.count(0) >= 4  # updates and rate; steps since a loss was scaled, and its scale


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (RECIPE, {"max_seconds": 0}, "`max_seconds` must be positive"),
        (RECIPE, {"max_seconds": float("nan")}, "`max_seconds` must be positive"),
        (recipe(batch_size=97), {}, "`training.batch_size` must be at most 96"),
        ({**RECIPE, "data": {"name": "none", "validation": 120}}, {}, "`data.validation` must be"),
        (
            {**RECIPE, "architecture": {"name": "isometric", "width": 8}},
            {},
            "`architecture`.*width",
        ),
        (recipe(loss={"name": "multiclass_hinge", "margin": -1}), {}, "`training.loss`.*margin"),
        (recipe(loss={"name": "multiclass_hinge", "margi": 1}), {}, "`training.loss`.*margi"),
        (
            recipe(optimizer={"name": "sgd", "learning_rate": 0.1, "momentun": 0.9}),
            {},
            "`training.optimizer`.*momentun",
        ),
        (
            recipe(loss={"name": "offset_crossentropy", "offset": {1: 0.2}}),
            {},
            "`training.loss.offset` must map increasing epochs",
        ),
    ],
)
def test_bad_arguments(config, arguments, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", data, config, **arguments)
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


def test_the_loss_may_change_from_epoch_to_epoch(data, tmp_path):
    loss = {"name": "offset_crossentropy", "offset": {0: 0.0, 1: 5.0}}
    config = recipe(loss=loss, epochs=2, optimizer={"name": "sgd", "learning_rate": 1e-6})
    run(tmp_path, data, config)
    first, second = (row["loss"] for row in state_of(tmp_path)["history"])
    # the weights hardly move, so the loss grows by nearly the offset
    assert 3.5 < second - first < 5.0


@slow_elsewhere
def test_distortions_may_change_from_epoch_to_epoch(data, tmp_path, monkeypatch):
    given = []

    class Recording(augmentation.Augmented):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            given.append((self.rotation, self.zoom, self.color_jitter))

    monkeypatch.setattr(distribution, "Augmented", Recording)
    config = recipe(epochs=2)
    config["data"] |= {"rotation": {0: 5, 2: 15}, "color_jitter": {0: 0, 1: 0.2}}
    run(tmp_path, data, config)
    config["training"]["epochs"] = 3
    run(tmp_path, data, config, resume=True)
    assert given == [(5, 0, 0), (5, 0, 0.2), (15, 0, 0.2)]
    metadata = json.loads((tmp_path / "preset" / "metadata.json").read_text())
    assert metadata["recipe"]["data"]["rotation"] == {"0": 5, "2": 15}
    run(tmp_path, data, metadata["recipe"], resume=True)  # what the preset says is the same run


def test_a_built_model_is_that_of_the_recipe():
    config = recipes.validate(RECIPE)
    model = training.build_model(config, 5, (8, 8, 3), "mixed_bfloat16")
    assert model.name == "tiny" and model.output_shape == (None, 5)
    assert model.layers[1].compute_dtype == "bfloat16"
    one, other = (training.build_model(config, 3, (8, 8, 3)).get_weights() for _ in range(2))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.any_backend
@pytest.mark.parametrize(
    "flags, expected",
    [
        ("fpu avx avx2 avx512f avx512bw amx_tile", "Xeon, AMX"),
        ("fpu avx avx2 avx512f", "Xeon, AVX-512"),
        ("fpu avx avx2", "Xeon, AVX2"),
        ("fpu", "Xeon"),
    ],
)
def test_the_processor_is_named_with_its_widest_instructions(flags, expected):
    text = f"processor : 0\nmodel name : Xeon\nflags : {flags}\n\nmodel name : other\n"
    assert runs.processor(text) == expected
    assert (
        runs.processor(f"Features : {flags}") == ""
    )  # as on ARM, where platform knows the machine
