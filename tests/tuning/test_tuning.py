"""A search: its config, its trials, its folder, and what is left of it after a kill."""

import copy
import csv
import json
import os

import keras_tuner
import numpy as np
import pytest
import yaml
from tuning_fixtures import ALL_TUNERS, SEARCH, Trials, changed, write_images

from dynzoo import tuning
from dynzoo.augmentation.batches import DISTORTIONS
from dynzoo.training import recipes
from dynzoo.training.checkpoints import CheckpointError
from dynzoo.training.recipes import RecipeError
from dynzoo.tuning import SearchConfig, driver, figures, oracles, worker

# keras-tuner 1.4.8 on Python 3.11 and later
pytestmark = [
    pytest.mark.any_backend,
    pytest.mark.filterwarnings("ignore:currentThread:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:getName:DeprecationWarning"),
]


MODELLING = [tuner for tuner in ALL_TUNERS if tuner.values[0] in ("bayesian", "optuna")]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("tuning") / "images.npz")


@pytest.fixture
def trials(monkeypatch):
    """Trials without networks."""
    fake = Trials()
    monkeypatch.setattr(worker, "attempt", fake)
    return fake


@pytest.fixture
def run(images, tmp_path, monkeypatch):
    """A search into a folder, by its name; figures are drawn in tests of their own."""
    monkeypatch.setattr(driver, "save_figures", lambda *a: None)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    def search(name, config=SEARCH, **arguments):
        messages = []
        arguments.setdefault("log", messages.append)
        result = tuning.search(config, images, tmp_path / name, **arguments)
        return result, messages

    return search


def numbers(result):
    return [(t["trial"], t["status"], t["values"], t["certified"]) for t in result.trials]


# The config


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "`space` must map keys"),
        ({"architecture.depth": [1, 2]}, "`space.architecture.depth`: the recipe has no"),
        ({"data.validation": [24, 30]}, "`space.data.validation` cannot be searched"),
        ({"evaluation.norm": ["l2", "linf"]}, "`space.evaluation.norm` cannot be searched"),
        ({"training.loss.offset": [0.2]}, "at least two values"),
        ({"training.loss.offset": [0.2, 0.2]}, "all different"),
        ({"training.loss.offset": [0.3, 0.4]}, "must contain the recipe's own value"),
        ({"training.loss.offset": {"min": 0.3, "max": 1.0}}, "must contain the recipe's own"),
        ({"training.loss.offset": {"min": 1.0, "max": 0.1}}, "a `min` below its `max`"),
        ({"training.loss.offset": {"min": 0.1}}, "a `min` below its `max`"),
        ({"training.loss.offset": {"min": 0.1, "max": 1, "log": True}}, "may have `sampling`"),
        ({"training.loss.offset": {"min": 0, "max": 1, "sampling": "log"}}, "positive `min`"),
        ({"training.loss.offset": {"min": 0.1, "max": 1, "sampling": "lin"}}, "must be linear"),
        ({"training.epochs": {"min": 1, "max": 5, "step": 0.5}}, "space.training.epochs.step"),
        ({"training.epochs": {"min": 1, "max": 5, "step": 0}}, "space.training.epochs.step"),
        ({"training.epochs": {"min": 1, "max": 10**6, "step": 2}}, "at most 10,000 values"),
        ({"training.epochs": 7}, "must be a list of values or a range"),
        ({"training.epochs, data.flip": {"min": 1, "max": 3}}, "must be a list of values. Rec"),
        ({"training.epochs, data.flip": [[2, True], [3]]}, "choices of 2 values each"),
        (
            {"training.epochs, data.flip": [[2, True], [3, True]], "training.epochs": [2, 3]},
            "`space.training.epochs` contains `space.training.epochs`",
        ),
        ({"training.epochs": [0, 2]}, "`space.training.epochs`: `training.epochs` must be"),
        ({"training.loss.name": ["offset_crossentropy", "hinge"]}, "`training.loss.name` must be"),
        (
            {
                "training.loss.offset": [0.2, 0.3],
                "training.loss": [SEARCH["recipe"]["training"]["loss"], {"name": "crossentropy"}],
            },
            "`space.training.loss` contains `space.training.loss.offset`",
        ),
    ],
)
def test_a_wrong_space_is_refused_by_its_key(space, message):
    with pytest.raises(RecipeError, match=message.replace(".", r"\.")):
        SearchConfig.load(changed(space=space))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tuner": "annealing"}, "`search.tuner` must be one of bayesian, grid"),
        ({"objective": "loss"}, "`search.objective` must be one of"),
        ({"objective": "attacked"}, "`search.attacks` must say what attacks"),
        ({"max_trials": 0}, "`search.max_trials` must be at least 1"),
        ({"max_trials": 2.5}, "`search.max_trials` must be of type int"),
        ({"seconds_per_trial": -1}, "`search.seconds_per_trial` must be at least 0"),
        ({"trials": 3}, "`search.trials` is not a key of a search"),
    ],
)
def test_wrong_settings_are_refused_by_their_key(settings, message):
    with pytest.raises(RecipeError, match=message):
        SearchConfig.load(changed(**settings))


def test_other_mistakes_in_a_config():
    for missing in ("recipe", "space"):
        with pytest.raises(RecipeError, match=f"`{missing}` is missing"):
            SearchConfig.load({k: v for k, v in SEARCH.items() if k != missing})
    with pytest.raises(RecipeError, match="`sapce` is not a key of a search"):
        SearchConfig.load({**SEARCH, "sapce": {}})
    with pytest.raises(RecipeError, match="no search file 'nowhere'. Those that ship: .*digits"):
        SearchConfig.load("nowhere")
    with pytest.raises(RecipeError, match="what the hyperband tuner chooses itself"):
        SearchConfig.load(changed(tuner="hyperband", space={"training.epochs": [2, 3]}))


def test_the_searches_that_ship():
    folder = recipes.find("digits", kind="search").parent
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    assert len(names) >= 3
    for name in names:
        config = SearchConfig.load(name)
        assert config.objective == "certified"
        hp = keras_tuner.HyperParameters()
        for dimension in config.space:
            dimension.declare(hp)
        assert config.recipe_of(config.values(hp.values)) == config.recipe
        assert SearchConfig.load(config.to_dict()).to_dict() == config.to_dict()
        assert name not in {path.stem for path in folder.parent.glob("*.yaml")}


@pytest.mark.parametrize(
    ("key", "values", "default"),
    [
        ("architecture.widths", [[12], [16, 32]], [12]),
        ("architecture.mean", [None, [0.1, 0.2, 0.3]], None),
        ("data.flip", [True, False], True),
        ("data.rotation", {"min": 0, "max": 15}, 0.0),
        ("training.loss", [{"name": "crossentropy"}, {"name": "hinge"}], {"name": "hinge"}),
        ("architecture.step_size", [0.1, 1, "maximal"], 1),
        ("architecture.inner_ratio", [0.1, 0.3, 1.0], 0.3),
        ("training.epochs", [3, 5], 5),
        ("training.epochs", {"min": 2, "max": 9}, 3),
        ("training.loss.offset", {"min": 0.1, "max": 0.7, "sampling": "log"}, 0.2),
        ("training.loss.offset", {"min": 0.1, "max": 0.7, "step": 0.1}, 0.2),
    ],
)
def test_values_are_the_same_after_a_journey_to_a_worker(key, values, default):
    """keras-tuner sends numbers in single precision, and knows texts and numbers only."""
    recipe = copy.deepcopy(recipes.load(SEARCH["recipe"]))
    section, _, name = key.rpartition(".")
    node = recipe
    for part in section.split("."):
        node = node[part]
    node[name] = default
    dimension = tuning.space.Dimension(key, values, recipe)
    hp = keras_tuner.HyperParameters()
    dimension.declare(hp)
    assert dimension.decode(hp.values[key]) == default
    for seed in range(20):
        hp.values[key] = hp.space[0].random_sample(seed)
        chosen = dimension.decode(hp.values[key])
        assert chosen in values if isinstance(values, list) else values["min"] <= chosen
        sent = keras_tuner.HyperParameters.from_proto(hp.to_proto())
        assert dimension.decode(sent.values[key]) == chosen
        assert json.loads(json.dumps(chosen)) == chosen


# The trials


@pytest.mark.parametrize("tuner", ALL_TUNERS)
def test_first_the_recipe_itself_and_every_trial_in_the_table(tuner, run, trials):
    result, messages = run("out", changed(tuner=tuner, initial_points=5))
    first = result.trials[0]
    assert first["values"] == {
        "architecture.widths": [12],
        "architecture.step_size": 2.0,
        "training.loss.offset": 0.2,
    }
    assert trials.ran == [t["trial"] for t in result.trials] and len(result.trials) == 6
    different = {json.dumps(t["values"]) for t in result.trials}
    assert len(different) == 6
    with open(result.folder / "trials.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, trial in zip(rows, result.trials, strict=True):
        assert row["status"] == trial["status"] and row["reason"] == trial["reason"]
        assert row["certified"] == ("" if trial["certified"] is None else str(trial["certified"]))
        assert float(row["training.loss.offset"]) == trial["values"]["training.loss.offset"]
    # told at once what is read, and of every trial when it begins and when it ends
    assert messages[0].startswith("search around tiny: reading ")
    assert messages[1] == "begins trial 1 of 6, no. 0, the recipe itself"
    assert len([m for m in messages if m.startswith("begins trial ")]) == 6
    messages = [m for m in messages if m.startswith("trial ")]
    assert len(messages) == 6
    assert (
        "trial 6 of 6, no. 5: " in messages[5]
        and " left" in messages[4]
        and " left" not in messages[5]
    )


def test_the_best_trial_becomes_a_recipe(run, trials):
    result, messages = run("out")
    values = [t["certified"] for t in result.completed]
    assert result.best["certified"] == max(values) and len(set(values)) > 2
    text = result.best_recipe.read_text(encoding="utf-8")
    best = recipes.load(result.best_recipe)
    assert best["training"]["loss"]["offset"] == result.best["values"]["training.loss.offset"]
    assert best["architecture"]["widths"] == result.best["values"]["architecture.widths"]
    assert yaml.safe_load(text)["evaluation"]["eps"] == ["36/255", "72/255", "108/255"]
    assert f"certified {100 * max(values):.2f} %" in text.splitlines()[1]
    assert (
        f"best so far {100 * max(values):.2f} % (no. {int(result.best['trial'])})" in messages[12]
    )


@pytest.mark.parametrize("tuner", ALL_TUNERS)
def test_the_same_seed_gives_the_same_search(tuner, run, trials):
    config = changed(tuner=tuner, max_trials=4, initial_points=3)
    one, other = run("one", config)[0], run("other", config)[0]
    assert numbers(one) == numbers(other)
    if tuner != "grid":
        assert (
            numbers(run("third", changed(tuner=tuner, max_trials=3, seed=1))[0]) != numbers(one)[:3]
        )


def test_grid_takes_every_combination_once(run, trials):
    space = {k: v for k, v in SEARCH["space"].items() if isinstance(v, list)}
    space["training.loss.offset"] = [0.2, 0.4]
    result, _ = run("out", changed(tuner="grid", max_trials=100, space=space))
    assert len({json.dumps(t["values"]) for t in result.trials}) == len(result.trials) == 18


@pytest.mark.parametrize(
    ("key", "values", "default", "expected"),
    [
        ("loss.offset", {"min": 0, "max": 0.3, "step": 0.1}, 0.3, [0.0, 0.1, 0.2, 0.3]),
        ("loss.offset", {"min": 0.1, "max": 0.7, "step": 0.1}, 0.3, [i / 10 for i in range(1, 8)]),
        ("loss.offset", {"min": 0, "max": 1, "step": 0.3}, 0.25, [0.0, 0.25, 0.3, 0.6, 0.9]),
        ("loss.offset", {"min": 0.01, "max": 1, "step": 10, "sampling": "log"}, 1, [0.01, 0.1, 1]),
        ("epochs", {"min": 2, "max": 9, "step": 3}, 3, [2, 3, 5, 8]),
        ("epochs", {"min": 1, "max": 8, "step": 2, "sampling": "log"}, 2, [1, 2, 4, 8]),
    ],
)
def test_a_grid_takes_every_step_of_a_range(run, trials, key, values, default, expected):
    """keras-tuner counts steps in floats: 0 to 0.3 by 0.1 would end at 0.2."""
    config = changed(tuner="grid", max_trials=100, space={f"training.{key}": values})
    section, _, name = key.rpartition(".")
    training = config["recipe"]["training"]
    (training[section] if section else training)[name] = default
    result, _ = run("out", config)
    assert sorted(t["values"][f"training.{key}"] for t in result.trials) == expected


def test_a_grid_takes_the_recipe_and_ten_values_of_a_range_without_steps(run, trials):
    space = {"training.loss.offset": {"min": 0.1, "max": 1.0}}
    result, _ = run("out", changed(tuner="grid", max_trials=100, space=space))
    assert len({t["values"]["training.loss.offset"] for t in result.trials}) == 11


@pytest.mark.parametrize("tuner", MODELLING)
def test_a_search_with_a_model_uses_what_it_has_seen(run, trials, tuner):
    config = changed(tuner=tuner, max_trials=14, initial_points=8)
    guided, random = run("guided", config)[0], run("random", changed(max_trials=14))[0]
    late = [np.mean([t["certified"] for t in r.completed[-6:]]) for r in (guided, random)]
    assert late[0] > late[1] + 0.05


@pytest.mark.parametrize("tuner", MODELLING)
def test_a_search_with_a_model_does_not_insist_on_what_is_infeasible(run, monkeypatch, tuner):
    """keras-tuner's own forgets what failed: it would propose the same again to the end."""

    def attempt(hypermodel, hp, folder, worker, past):
        offset = hypermodel.config.values(hp.values)["training.loss.offset"]
        if offset > 0.6:
            return {"reason": "too large an offset"}
        return {"status": "completed", "clean": 0.9, "certified": offset, "parameters": 9}

    monkeypatch.setattr(worker, "attempt", lambda *a: {"seconds": 1.0, **attempt(*a)})
    space = {"training.loss.offset": {"min": 0.1, "max": 1.0}}
    # Without what failed, Optuna completes 6 of 24 here.
    count, enough = {"bayesian": (10, 7), "optuna": (24, 12)}[tuner]
    config = changed(tuner=tuner, max_trials=count, initial_points=count // 3, space=space)
    result, _ = run("out", config)
    assert len(result.completed) >= enough and result.best["certified"] > 0.5


def test_hyperband_goes_on_with_the_best_of_the_short_trainings(run, trials):
    config = changed(tuner="hyperband", max_trials=40)
    config["recipe"]["training"]["epochs"] = 9
    result, _ = run("out", config)
    by_number = {t["trial"]: t for t in result.trials}
    later = [(number, past) for number, past, _ in trials.lengths if past]
    assert len(by_number) == 40 and len(later) > 5
    for number, past in later:
        assert by_number[number]["values"] == by_number[past]["values"]
    length = {number: epochs for number, _, epochs in trials.lengths}
    assert set(length.values()) == {1, 3, 9}
    assert all(length[number] == 3 * length[past] for number, past in later)
    short = [by_number[n] for n in by_number if length[n] == 1 and int(n) < 20]
    chosen = {past for _, past in later}
    kept = [t["certified"] for t in short if t["trial"] in chosen]
    dropped = [t["certified"] or 0 for t in short if t["trial"] not in chosen]
    assert np.mean(kept) > np.mean(dropped)


def test_infeasible_trials_are_recorded_and_never_the_best(run, trials):
    result, messages = run("out", changed(max_trials=30))
    skipped = [t for t in result.trials if t["status"] == "failed"]
    assert skipped and len(result.completed) + len(skipped) == 30
    assert all(t["reason"] == "not this one" and t["certified"] is None for t in skipped)
    assert len([m for m in messages if "skipped, not this one" in m]) == len(skipped)


def test_a_search_without_a_single_network_says_why(run, trials, tmp_path):
    space = {"training.loss.offset": [0.2, 0.6]}
    trials.__class__ = type("All", (Trials,), {"__call__": lambda *a: {"reason": "too\nbad"}})
    with pytest.raises(ValueError, match="none of 2 trials could be completed, see .*trials.csv"):
        run("out", changed(space=space))
    assert (tmp_path / "out" / "trials.csv").exists()
    assert not (tmp_path / "out" / "best.yaml").exists()


# The folder


def test_a_folder_is_kept_as_it_is_unless_the_same_search_goes_on(run, trials, tmp_path):
    whole, _ = run("whole", changed(max_trials=8))
    first, _ = run("out")
    before = (first.folder / "trials.csv").read_bytes()
    with pytest.raises(CheckpointError, match="holds a search: pass --resume"):
        run("out")
    for other in (changed(seed=1), changed(architecture={"neck_units": 9})):
        with pytest.raises(CheckpointError, match=r"holds another search \((search|recipe) differ"):
            run("out", other, resume=True)
    moved = write_images(tmp_path / "other.npz")
    with np.load(moved) as file:
        arrays = dict(file)
    arrays["x_train"][0, 0, 0, 0] ^= 1
    np.savez(moved, **arrays)
    with pytest.raises(CheckpointError, match=r"\(images differ\)"):
        tuning.search(SEARCH, moved, first.folder, resume=True)
    assert (first.folder / "trials.csv").read_bytes() == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="is not empty"):
        run("full", resume=True)
    del trials.ran[:]
    more, messages = run("out", resume=True, max_trials=8)
    assert messages[1] == "resumed: 6 of 8 trials are done"
    assert trials.ran == ["6", "7"] and numbers(more) == numbers(whole)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\x00", b"null", None])
@pytest.mark.parametrize("name", ["oracle.json", "trial_1/trial.json"])
def test_a_damaged_file_of_the_oracle_is_named(run, trials, name, content):
    first, _ = run("out", changed(max_trials=2))
    path = first.folder / "oracle" / name
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    before = {p: p.read_bytes() for p in first.folder.rglob("*.json")}
    with pytest.raises(CheckpointError) as error:
        run("out", changed(max_trials=3), resume=True)
    message = str(error.value)
    assert message.startswith(f"{path} is damaged (") and "another output folder" in message
    assert "\n" not in message
    assert before == {p: p.read_bytes() for p in first.folder.rglob("*.json")}
    path.unlink()
    if name != "oracle.json":
        with pytest.raises(CheckpointError, match=r"trial_1/trial.json is missing: put its copy"):
            run("out", changed(max_trials=3), resume=True)


def test_files_of_a_tuner_are_not_read(run, trials):
    """keras-tuner has one, which says nothing that the oracle does not know."""
    first, _ = run("out", changed(max_trials=2))
    for name in ("tuner0.json", "main.json"):
        (first.folder / "oracle" / name).write_text("{")
    more, _ = run("out", changed(max_trials=3), resume=True)
    assert [t["trial"] for t in more.trials] == list("012")


def test_a_search_from_before_a_key_of_recipes_existed_goes_on(run, trials, tmp_path):
    first, _ = run("out")
    path = first.folder / "search.json"
    known = json.loads(path.read_text())
    for key in DISTORTIONS:
        del known["recipe"]["data"][key]
    del known["search"]["attacks"]
    path.write_text(json.dumps(known))
    _, messages = run("out", resume=True, max_trials=8)
    assert messages[1] == "resumed: 6 of 8 trials are done"
    known["recipe"]["data"]["zoom"] = 0.1
    for other, message in ((known, "recipe differ"), ({}, "recipe, space"), ([], "is damaged")):
        path.write_text(json.dumps(other))
        with pytest.raises(CheckpointError, match=message):
            run("out", resume=True)


def test_a_record_that_is_not_seen_yet_is_waited_for(run, trials, monkeypatch):
    """As a network file system may have it."""
    result, _ = run("out")
    path = result.folder / "trials" / result.best["trial"] / "result.json"
    content = path.read_bytes()
    path.unlink()
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            path.write_bytes(content)

    monkeypatch.setattr(driver.time, "sleep", sleep)
    assert numbers(run("out", resume=True)[0]) == numbers(result) and len(waited) == 3
    path.unlink()
    again, _ = run("out", resume=True)
    missing = [t for t in again.trials if t["trial"] == result.best["trial"]]
    assert missing[0]["status"] == "unseen" and again.best["trial"] != result.best["trial"]
    assert len(trials.ran) == 6


class Killed(BaseException):
    pass


@pytest.mark.parametrize("tuner", ALL_TUNERS)
def test_a_kill_at_any_moment_loses_no_finished_trial(tuner, run, trials, monkeypatch):
    """Killed before each write in turn: the resumed search ends as one that was left alone."""
    space = {**SEARCH["space"], "training.loss.offset": [0.2, 0.3, 0.6]}
    config = changed(tuner=tuner, max_trials=4, space=space)
    stride = 6 if tuner in ("bayesian", "optuna") else 1  # a second for each guess
    modules = [oracles, tuning.records, driver]
    write = oracles.write_atomically
    whole, _ = run("whole", config)
    count = 0

    def limited(allowed):
        left = iter(range(allowed))

        def written(path, content):
            nonlocal count
            count += 1
            if next(left, None) is None:
                raise Killed
            write(path, content)

        for module in modules:
            monkeypatch.setattr(module, "write_atomically", written)

    for allowed in range(0, 1000, stride):
        del trials.ran[:]
        limited(allowed)
        try:
            run(f"killed{allowed}", config)
            break
        except Killed:
            pass
        finished = {p.parent.name for p in whole.folder.parent.glob(f"killed{allowed}/trials/*/*")}
        before = list(trials.ran)
        limited(10**6)
        result, _ = run(f"killed{allowed}", config, resume=True)
        assert numbers(result) == numbers(whole), allowed
        # what was recorded was not run again
        again = [name for name in trials.ran[len(before) :] if name in finished]
        assert again == [], allowed
    assert 20 < allowed < 100


# The figures


def test_pareto_front():
    x = np.array([0.9, 0.8, 0.7, 0.9, 0.6, 0.8])
    y = np.array([0.1, 0.5, 0.4, 0.2, 0.7, 0.5])
    assert figures.pareto_front(x, y) == [4, 1, 3]


def test_figures_show_every_completed_trial(run, trials):
    result, _ = run("out", changed(max_trials=30))
    config = SearchConfig.load(SEARCH)
    figures.save_figures(config, result)
    for name in ("parallel_coordinates", "pareto"):
        assert (result.folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    axes = figures.parallel_figure(config, result).axes[0]
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) > 2]
    assert len(lines) == len(result.completed) < 30
    heights = np.array([line.get_ydata() for line in lines])
    assert heights.min() == 0 and heights.max() == 1
    assert [t.get_text() for t in axes.get_xticklabels()][-1] == "certified"
    axes = figures.pareto_figure(config, result).axes[0]
    points = axes.collections[0].get_offsets()
    assert sorted(points[:, 1]) == sorted(t["certified"] for t in result.completed)
    assert axes.get_ylabel() == "certified accuracy at 36/255"


def test_figures_without_a_certificate(run, trials):
    result, _ = run("out")
    result.objective = "clean"
    for number, trial in enumerate(result.trials):
        trial["certified"] = None
        trial["parameters"] = 100 + number
    axes = figures.pareto_figure(SearchConfig.load(SEARCH), result).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "parameters",
        "clean accuracy, held-out images",
    )


def test_optuna_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(tuning.config.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"`search.tuner` .*pip install 'dynzoo\[optuna\]'"):
        SearchConfig.load(changed(tuner="optuna"))


@pytest.mark.parametrize("tuner", [t for t in ALL_TUNERS if t.values[0] == "optuna"])
def test_optuna_ends_where_the_space_does(tuner, run, trials):
    space = {"architecture.step_size": [0.5, 1.0, 2.0]}
    result, _ = run("out", changed(tuner=tuner, max_trials=20, space=space))
    tried = [t["values"]["architecture.step_size"] for t in result.trials]
    assert tried[0] == 2.0 and sorted(tried) == [0.5, 1.0, 2.0]
