"""Trials of a search with real networks: measured, cut short, infeasible, or gone on with."""

import csv
import json
from pathlib import Path

import keras
import keras_tuner
import pytest
from helpers import slow_elsewhere
from training_fixtures import killed_after
from tuning_fixtures import SEARCH, changed, write_images

from dynzoo import tuning
from dynzoo.cli import program as cli
from dynzoo.data import datasets as data
from dynzoo.training import loop as training
from dynzoo.training.checkpoints import CheckpointError
from dynzoo.training.epochs import TrainingLoop
from dynzoo.training.validation import hold_out
from dynzoo.tuning import driver
from dynzoo.tuning.hypermodel import measure
from dynzoo.zoo import preset_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:currentThread:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:getName:DeprecationWarning"),
]
# Only what the test is about; the first combination is the recipe.
OFFSETS = {"training.loss.offset": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("trials") / "images.npz")


@pytest.fixture
def run(images, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "save_figures", lambda *a: None)

    def search(config, name="out", **arguments):
        return tuning.search(config, images, tmp_path / name, log=lambda line: None, **arguments)

    return search


def log_of(folder):
    with open(folder / "main" / "log.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_trial_is_the_training_of_its_recipe_measured_on_held_out_images(run, images, tmp_path):
    config = changed(
        tuner="grid", max_trials=2, space=OFFSETS, attacks="fast", attack_images=10,
        objective="attacked",
    )  # fmt: skip
    result = run(config)
    plan = tuning.SearchConfig.load(config)
    for trial, offset in zip(result.trials, (0.2, 0.3), strict=True):
        assert trial["values"] == {"training.loss.offset": offset} and trial["epochs"] == 2
        folder = result.folder / "trials" / trial["trial"]
        last = log_of(folder)[-1]
        assert 100 * trial["clean"] == pytest.approx(float(last["val_accuracy"]), abs=1e-3)
        assert 100 * trial["certified"] == pytest.approx(float(last["val_certified"]), abs=1e-3)
        # ten images, of which some may be certified and others fooled
        assert 0 <= trial["attacked"] <= 1 and round(10 * trial["attacked"], 6).is_integer()
        model = preset_folder.from_preset(folder / "main" / "preset")
        assert model.count_params() == trial["parameters"]
        assert not list(folder.rglob("*.npz"))
    alone = training.train(
        plan.recipe_of(result.trials[1]["values"]), images, tmp_path / "alone", verbose=0,
        log=lambda line: None,
    )  # fmt: skip
    assert all(
        (w == v).all() for w, v in zip(model.get_weights(), alone.get_weights(), strict=True)
    )
    # the attack is no weaker than the certificate is strong
    (_, held_out), _ = hold_out(plan.recipe, data.load(str(images), dtype="uint8"))
    settings = {**plan.settings, "attack_images": 24}
    measured = tuning.hypermodel.measure(model, held_out, plan.recipe, settings)
    assert measured["certified"] <= measured["attacked"] <= measured["clean"]
    linf = {**plan.recipe, "evaluation": {"norm": "linf", "eps": plan.recipe["evaluation"]["eps"]}}
    settings |= {"objective": "clean", "attacks": "none"}
    weaker = tuning.hypermodel.measure(model, held_out, linf, settings)
    assert weaker["certified"] < measured["certified"] and weaker["attacked"] is None


@slow_elsewhere
def test_a_tuner_of_keras_tuners_own_searches_the_space(images, tmp_path):
    if keras.backend.backend() == "tensorflow":
        pytest.importorskip("tensorboard")  # which keras-tuner imports there, and does not declare
    space = {"training.loss.offset": {"min": 0.1, "max": 0.3, "step": 0.1}}
    hypermodel = tuning.HyperModel(changed(space=space, seconds_per_trial=60), images)
    tuner = keras_tuner.GridSearch(
        hypermodel,
        objective=keras_tuner.Objective("certified", "max"),
        max_trials=2,
        directory=tmp_path,
    )
    seen = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    tuner.search(callbacks=[note], verbose=0)
    offsets = [t.hyperparameters.values for t in tuner.oracle.get_best_trials(2)]
    assert sorted(v["training.loss.offset"] for v in offsets) == [0.1, 0.2]
    assert seen == [1, 1]  # the second and last epoch of each
    best = tuner.oracle.get_best_trials(1)[0]
    (_, held_out), _ = hold_out(hypermodel.config.recipe, hypermodel.splits)
    model = tuner.get_best_models(1)[0]
    assert measure(model, held_out, hypermodel.config.recipe, hypermodel.config.settings) == {
        "clean": best.metrics.get_last_value("clean"),
        "certified": best.score,
        "attacked": None,
    }
    with pytest.raises(ValueError, match="are those of the recipe. Received: 2 positional"):
        hypermodel.fit(best.hyperparameters, model, held_out[0], held_out[1])
    with pytest.raises(ValueError, match="Received: batch_size"):
        hypermodel.fit(best.hyperparameters, model, batch_size=8)


class Listed(keras_tuner.Oracle):
    """An oracle of one's own: the offsets of a list."""

    def populate_space(self, trial_id):
        left = {0.3, 0.2} - {
            t.hyperparameters.get("training.loss.offset") for t in self.trials.values()
        }
        if not left:
            return {"status": "STOPPED"}
        values = {**self.hyperparameters.values, "training.loss.offset": min(left)}
        return {"status": "RUNNING", "values": values}


def _own_tuner(hypermodel, objective, directory):
    oracle = Listed(objective=objective, max_trials=2)
    return keras_tuner.Tuner(oracle=oracle, hypermodel=hypermodel, directory=directory)


OTHERS = {
    "random": lambda *a, **k: keras_tuner.RandomSearch(*a, max_trials=2, seed=1, **k),
    "bayesian": lambda *a, **k: keras_tuner.BayesianOptimization(*a, max_trials=2, seed=1, **k),
    "hyperband": lambda *a, **k: keras_tuner.Hyperband(*a, max_epochs=2, factor=2, seed=1, **k),
    "own": _own_tuner,
}


@slow_elsewhere
@pytest.mark.parametrize("name", OTHERS)
def test_any_tuner_searches_the_space(name, images, tmp_path):
    if keras.backend.backend() == "tensorflow":
        pytest.importorskip("tensorboard")
    space = {"training.loss.offset": {"min": 0.1, "max": 0.3, "step": 0.1}}
    hypermodel = tuning.HyperModel(changed(space=space), images)
    objective = keras_tuner.Objective("certified", "max")
    tuner = OTHERS[name](hypermodel, objective=objective, directory=tmp_path)
    tuner.search(verbose=0)
    trials = list(tuner.oracle.trials.values())
    assert len(trials) >= 2 and all(t.status == "COMPLETED" for t in trials)
    assert {t.hyperparameters.get("training.loss.offset") for t in trials} <= {0.1, 0.2, 0.3}
    if name == "hyperband":
        assert {t.hyperparameters.values["tuner/epochs"] for t in trials} == {1, 2}
    best = tuner.oracle.get_best_trials(1)[0]
    recipe = hypermodel.config.recipe_of({"training.loss.offset": 0.1})
    (_, held_out), _ = hold_out(recipe, hypermodel.splits)
    found = measure(tuner.get_best_models(1)[0], held_out, recipe, hypermodel.config.settings)
    assert found["certified"] == best.score


def test_what_cannot_be_is_skipped_with_its_reason(run):
    space = {
        "architecture.widths": [[12], [16, 16], [64]],
        "training.optimizer": [
            SEARCH["recipe"]["training"]["optimizer"],
            {"name": "adam", "learning_rate": 1.0e30},
            {"name": "adam", "learning_rate": 0.02, "speed": 3},
        ],
        "architecture.between": ["maxmin", "minmax"],
    }
    result = run(changed(tuner="grid", max_trials=100, space=space, max_model_size=5000))
    assert len(result.trials) == 18
    for trial in result.trials:
        values, reason = trial["values"], trial["reason"]
        if values["architecture.widths"] == [16, 16]:
            assert reason.startswith("`steps` must have one entry for each of `widths`")
        elif values["architecture.between"] == "minmax":
            assert reason.startswith("`between` must be one of")
        elif values["architecture.widths"] == [64]:
            assert "too large: " in reason and "`search.max_model_size` is 5,000" in reason
        elif "speed" in values["training.optimizer"]:
            assert reason.startswith("`training.optimizer`: ") and trial["parameters"] == 1869
        elif values["training.optimizer"]["learning_rate"] > 1:
            assert "not finite" in reason
        else:
            assert trial["status"] == "completed" and reason == ""
            continue
        assert trial["status"] == "failed" and trial["certified"] is None and "\n" not in reason
    assert len(result.completed) == 1


def test_a_network_without_a_certificate_has_no_certified_accuracy(run):
    architecture = {
        "name": "convection_diffusion",
        "widths": [4],
        "steps": [1],
        "inference": "random",
    }
    config = changed(tuner="grid", max_trials=1, space=OFFSETS)
    config["recipe"]["architecture"] = architecture
    config["search"]["objective"] = "clean"
    assert run(config).trials[0]["certified"] is None
    config["search"]["objective"] = "certified"
    with pytest.raises(ValueError, match="the first: the network has no certificate"):
        run(config, "other")


def test_a_trial_stops_at_its_time_limit_and_is_measured_as_it_stands(run):
    config = changed(tuner="grid", max_trials=1, space=OFFSETS, seconds_per_trial=1)
    config["recipe"]["training"]["epochs"] = 100000
    result = run(config)
    trial = result.trials[0]
    assert trial["status"] == "completed" and 1 <= trial["seconds"]
    assert trial["reason"] == f"time limit in epoch {trial['epochs'] + 1} of 100000"


@slow_elsewhere
def test_hyperband_goes_on_where_the_short_training_ended(run, monkeypatch):
    config = changed(tuner="hyperband", max_trials=4)
    config["recipe"]["training"]["epochs"] = 3
    lengths = []
    by_epochs = TrainingLoop.by_epochs

    def watched(self):
        began = self.run.state["epoch"]
        finished = by_epochs(self)
        lengths.append((began, self.run.state["epoch"]))
        return finished

    monkeypatch.setattr(TrainingLoop, "by_epochs", watched)
    result = run(config)
    assert lengths == [(0, 1), (0, 1), (0, 1), (1, 3)]
    rows = log_of(result.folder / "trials" / result.trials[3]["trial"])
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and result.trials[3]["epochs"] == 3


@slow_elsewhere
def test_a_killed_search_goes_on_within_its_trial(run, images, tmp_path, monkeypatch):
    """By the command, killed in the second epoch of the second of two trials."""
    config = changed(tuner="grid", max_trials=2, space=OFFSETS)
    whole = run(config, "whole")
    file = tmp_path / "search.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")
    output = tmp_path / "out"
    arguments = ["search", str(file), "--data", str(images), "--output", str(output)]
    batches = 4  # of 24 in an epoch of 96 images
    process = killed_after(2 * batches + batches + 2, f"cli.main({arguments!r})")
    assert "trial 1 of 2, no. 0: certified " in process.stdout
    assert "begins trial 2 of 2, no. 1\n" in process.stdout  # and the one that is killed is seen
    first = output / "trials" / "0" / "result.json"
    before = first.stat().st_mtime_ns
    assert not (output / "trials" / "1" / "result.json").exists()

    trained = []
    train = training.train

    def watched(recipe, *a, **k):
        lines = []
        model = train(recipe, *a, **{**k, "log": lines.append})
        trained.append(lines[1].split(":")[0])
        return model

    monkeypatch.setattr(training, "train", watched)
    assert cli.main([*arguments, "--resume"]) == 0
    assert trained == ["resumed at epoch 1, batch 0"]
    assert first.stat().st_mtime_ns == before
    result = json.loads((output / "trials" / "1" / "result.json").read_text(encoding="utf-8"))
    assert result["certified"] == whole.trials[1]["certified"]
    assert result["clean"] == whole.trials[1]["clean"]


@pytest.mark.parametrize("name", ["checkpoint.npz", "log.csv"])
def test_a_damaged_run_of_a_trial_is_named_and_not_the_networks_fault(run, tmp_path, name):
    config = changed(tuner="grid", max_trials=1, space=OFFSETS, seconds_per_trial=60)
    run(config, "out")
    folder = tmp_path / "out"
    (folder / "trials/0/result.json").unlink()
    state = json.loads((folder / "oracle/oracle.json").read_text())
    state |= {"end_order": [], "retry_queue": ["0"], "start_order": ["0"]}
    (folder / "oracle/oracle.json").write_text(json.dumps(state))
    (path := folder / "trials/0/main" / name).write_text("epoch,seconds\n1,x\n")
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        run(config, "out", resume=True)
    assert path.exists() and not (folder / "trials/0/result.json").exists()


# The command


@slow_elsewhere
def test_the_command_searches_and_its_best_recipe_trains(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("search.yaml").write_text(json.dumps(changed(tuner="grid", space=OFFSETS)), "utf-8")
    common = ["--data", str(images)]
    assert cli.main(["search", "search.yaml", *common, "--max-trials", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"search around tiny: reading {images}"
    assert lines[1] == "begins trial 1 of 2, no. 0, the recipe itself"
    assert "96 images of 8 x 8 x 3" in lines[2] and "compiling" in lines[2]
    lines = [line for line in lines if line.startswith(("trial", "best", "table", "train it"))]
    assert lines[0].startswith("trial 1 of 2, no. 0: certified ") and lines[0].endswith(" s left")
    assert lines[2].startswith("best: no. ")
    folder = Path("runs/tiny_search")
    assert lines[4] == f"train it: dynzoo train {folder}/best.yaml"
    names = {path.name for path in folder.glob("*.*")}
    assert names >= {"trials.csv", "best.yaml", "parallel_coordinates.png", "pareto.png"}
    assert cli.main(["train", str(folder / "best.yaml"), *common, "--quiet"]) == 0
    assert Path("runs/tiny_best/preset/config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no search file 'nowhere'"),
        (["annealing.yaml"], "annealing.yaml: `search.tuner` must be one of"),
        (["search.yaml", "--output", "images.npz/out"], "Not a directory"),
        (["search.yaml", "--data", "nowhere.npz"], "There is no data file"),
        (["search.yaml", "--max-trials", "0"], "must be at least 1"),
        (["search.yaml", "--timeout", "0"], "`timeout` must be positive"),
        (["search.yaml", "--wait", "nan"], "`wait` must be positive"),
        (["search.yaml", "--chief", "127.0.0.1:1"], "`chief` needs a `role`"),
        (["search.yaml", "--role", "boss"], "invalid choice"),
        (["search.yaml", "--role", "chief", "--chief", "8470"], "`chief` must be HOST:PORT"),
        (["search.yaml", "--role", "worker", "--worker-id", "chief2"], "`worker_id` must be made"),
    ],
)
def test_wrong_input_gets_one_line(arguments, message, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("images.npz").write_bytes(images.read_bytes())
    Path("search.yaml").write_text(json.dumps(SEARCH), encoding="utf-8")
    Path("annealing.yaml").write_text(json.dumps(changed(tuner="annealing")), encoding="utf-8")
    if "--data" not in arguments:
        arguments = [*arguments, "--data", "images.npz"]
    assert cli.main(["search", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
