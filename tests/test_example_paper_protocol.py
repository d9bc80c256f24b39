"""The founding paper's tables: the recipes of all their networks, and the areas of their curves."""

import json
import sys
from pathlib import Path

import pytest
from helpers import load_script

import dynzoo
from dynzoo.training import TrainingDivergedError, recipes

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
KINDS = ("unconstrained", "naive", "nonexpansive", "prescribed", "flexible")
# Areas under the published curves, computed from the authors' files.
AREAS = {
    ("cifar10", 0.07): (0.4506, 0.5822, 0.6621, 0.6719, 0.6802),
    ("cifar10", 0.15): (0.4553, 0.5734, 0.6570, 0.6533, 0.6719),
    ("cifar10", 0.3): (0.3987, 0.5596, 0.6481, 0.6468, 0.6625),
    ("cifar100", 0.07): (0.2425, 0.2994, 0.3357, 0.3998, 0.3438),
    ("cifar100", 0.15): (0.2203, 0.3320, 0.3347, 0.3765, 0.3787),
    ("cifar100", 0.3): (0.1906, 0.3272, 0.3670, 0.3713, 0.3862),
}
# On CIFAR-100: learning rate, its share after 100 epochs, weight of the orthogonality loss.
CIFAR100 = {
    "unconstrained": (1.0, 0.001, None),
    "naive": (0.1, 0.001, 0.0001),
    "nonexpansive": (0.01, 0.125, 0.01),
    "prescribed": (0.1, 0.001, 0.01),
    "flexible": (0.01, 0.125, 0.01),
}

pytestmark = pytest.mark.any_backend


@pytest.fixture
def script(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    module = load_script(EXAMPLES / "paper_protocol.py")
    monkeypatch.setattr(module.common, "RESULTS", tmp_path / "results")
    return module


def whole_tables(script, *more):
    words = ["--datasets", "cifar100", "cifar10", "--margins", "0.07", "0.15", "0.3", *more]
    return script.arguments(words)


def test_every_network_of_the_tables_has_a_recipe_of_its_own(script):
    cases = [case for case in script.cases(whole_tables(script)) if case.published]
    assert [case.dataset for case in cases] == ["cifar10"] * 15 + ["cifar100"] * 15
    found = [script.recipe_of(case) for case in cases]
    assert len({recipe["name"] for recipe in found}) == len(cases)
    for case, recipe in zip(cases, found, strict=True):
        assert recipes.validate(recipe) == recipe
        assert recipe["data"]["name"] == case.dataset
        assert recipe["training"]["loss"].get("margin") == case.margin
        assert ("mean" in recipe["architecture"]) == (case.dataset == "cifar100")


def test_recipes_that_ship_are_left_as_they_are(script):
    cases = script.cases(script.arguments([]))
    cases = [case for case in cases if case.published]
    assert [case.network for case in cases] == [f"{kind}_published" for kind in KINDS]
    for case in cases:
        assert script.recipe_of(case) == recipes.load(f"structured_{case.network}_cifar10")
        points = script.recipe_of(case)["training"]["schedule"]["points"]
        assert script.drops(0.1) == points


def test_networks_that_ship_stand_beside_them(script, tmp_path, monkeypatch):
    cases = [case for case in script.cases(whole_tables(script)) if not case.published]
    assert script.Case("cifar10", None, "nonexpansive_certified") in cases
    assert [case.preset for case in cases] == [
        name
        for dataset in script.DATASETS
        for kind in KINDS
        if f"{kind}_certified" in script.NETWORKS
        if (name := f"{kind}_{dataset}") in dynzoo.presets()
    ]
    args = script.arguments(["--runs", str(tmp_path)])
    rows = [{"network": "nonexpansive", "form": "certified", "protocol": "weak"}]
    monkeypatch.setattr(script, "attacked", lambda *_: rows)
    (row,) = script.measured(cases[0], script.trained(cases[0], args), args)
    epochs = dynzoo.presets()["nonexpansive_cifar10"]["training"]["epochs"]
    assert row["epochs"] == epochs and row["changed"] == "preset nonexpansive_cifar10"
    assert (tmp_path / "nonexpansive_cifar10" / "protocol.json").is_file()


def test_networks_as_published_that_ship_are_measured_at_full_width(script, tmp_path, monkeypatch):
    words = ["--datasets", "cifar10", "--margins", "0.07", "0.15", "--scale", "shipped"]
    args = script.arguments([*words, "--runs", str(tmp_path)])
    cases = [case for case in script.cases(args) if case.published]
    assert {(case.margin, case.network) for case in cases} == {
        (0.07, "unconstrained_published"), (0.07, "naive_published"),
    }  # fmt: skip
    # nonexpansive_cifar10 ships too, in the other form
    assert not script.Case("cifar10", 0.07, "nonexpansive_published").ships
    monkeypatch.setattr(script, "attacked", lambda *_: [{"network": "naive"}])
    monkeypatch.setattr(script.training, "train", None)
    case = script.Case("cifar10", 0.07, "naive_published")
    (row,) = script.measured(case, script.trained(case, args), args)
    assert row["epochs"] == dynzoo.presets()["naive_cifar10"]["training"]["epochs"]
    assert row["changed"].startswith("preset naive_cifar10") and "widths" not in row["changed"]
    assert (tmp_path / "naive_cifar10" / "protocol.json").is_file()


def test_rows_of_other_networks_stay(script, monkeypatch, tmp_path):
    rows = script.read_rows()
    assert rows == []
    monkeypatch.setattr(script.common, "RESULTS", EXAMPLES.parent / "docs" / "results")
    rows = script.read_rows()
    mine = [r for r in rows if r["form"] == "certified" and r["network"] == "nonexpansive"]
    monkeypatch.setattr(script.common, "RESULTS", tmp_path)
    script.common.write_csv("paper_protocol", rows)
    monkeypatch.setattr(script, "measured", lambda *_: [{**row, "seen": 1} for row in mine])
    monkeypatch.setattr(script, "picture", lambda rows: None)
    monkeypatch.setattr(script.common, "save_figure", lambda *_: None)
    monkeypatch.setattr(script.common, "finish", lambda figures: None)
    words = ["paper_protocol.py", "--only", "nonexpansive_certified", "--runs", str(tmp_path / "r")]
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    assert script.read_rows() == rows


@pytest.mark.parametrize("kind", KINDS)
def test_cifar100_has_the_authors_settings_for_a_mean_over_100_classes(script, kind):
    recipe = script.recipe_of(script.Case("cifar100", 0.15, f"{kind}_published"))
    rate, last, weight = CIFAR100[kind]
    assert recipe["training"]["optimizer"]["learning_rate"] == rate
    assert recipe["training"]["schedule"]["points"][100] == last
    assert recipe["architecture"].get("orthogonality") == weight


def test_networks_start_from_the_one_on_cifar10_where_there_is_one(script, tmp_path, monkeypatch):
    args = whole_tables(script, "--runs", str(tmp_path))
    case = script.Case("cifar100", 0.3, "naive_published")
    seen = []

    def train(recipe, file, folder, **options):
        seen.append((recipe["training"]["start"], recipe["training"]["optimizer"]["learning_rate"]))
        if len(seen) == 1:
            raise TrainingDivergedError("not a number")
        (folder / "preset").mkdir()
        (folder / "preset" / "metadata.json").write_text("{}")

    monkeypatch.setattr(script.training, "train", train)
    first = script.trained(case._replace(dataset="cifar10"), args)
    assert script.trained(case, args).name == "structured_naive_published_cifar100_margin_0.3_small"
    # the first one diverged, and began again at a tenth of its rate
    assert seen == [("", 0.1), ("", 0.01), (str(first / "preset"), 0.1)]
    recipe = json.loads(json.dumps(script.recipe_of(case)))
    assert script.changes(recipe, case) == "start: fresh weights"
    recipe["training"]["start"] = "there"
    assert script.changes(recipe, case) == ""


def test_areas_are_those_of_the_published_curves(script):
    curves = script.published_curves()
    expected = {
        (*key, kind): area
        for key, areas in AREAS.items()
        for kind, area in zip(KINDS, areas, strict=True)
    }
    assert {key: script.area(curve) for key, curve in curves.items()} == expected
    assert script.area(dict.fromkeys(curves["cifar10", 0.07, "naive"], 50.0)) == 0.5


def test_the_table_in_the_documentation_is_what_follows_from_its_rows(script, monkeypatch):
    monkeypatch.setattr(script.common, "RESULTS", EXAMPLES.parent / "docs" / "results")
    rows = script.read_rows()
    assert tuple(rows[0]) == script.COLUMNS
    follow = ("published", "auc", "certified_auc", "published_auc")
    assert script.filled([{k: v for k, v in r.items() if k not in follow} for r in rows]) == rows
    for row in rows:
        areas = [row[key] for key in follow[1:3]]
        assert (None in areas) == (row["protocol"] == "strong")
        assert None in areas or areas[1] <= areas[0]


def test_older_tables_are_of_cifar10_and_the_first_margin(script, monkeypatch):
    old = [{"form": form, "certified": ""} for form in ("published", "certified")]
    monkeypatch.setattr(script.common, "read_csv", lambda name: old)
    monkeypatch.setattr(script.common, "RESULTS", EXAMPLES.parent / "docs" / "results")
    assert script.read_rows() == [
        {"dataset": "cifar10", "margin": 0.07, "form": "published", "certified": None},
        {"dataset": "cifar10", "margin": None, "form": "certified", "certified": None},
    ]


def test_sources_are_given_one_for_each_data_set(script, capsys):
    assert whole_tables(script).data == {"cifar100": "cifar100", "cifar10": "cifar10"}
    assert script.arguments(["--data", "a.npz"]).data == {"cifar10": "a.npz"}
    for words in (["--data", "a.npz", "b.npz"], ["--data", "cifar100"]):
        with pytest.raises(SystemExit):
            script.arguments(words)
        assert "--data must" in capsys.readouterr().err
