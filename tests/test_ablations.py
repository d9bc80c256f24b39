"""The ablations' script: each arm is one change, rows are kept, nothing is computed twice."""

import csv
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from helpers import load_script, write_images

from dynzoo.training import loop as training
from dynzoo.training import recipes
from dynzoo.training.epoch_values import at_epoch

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "ablations.py"

RECIPE = {
    "name": "tiny",
    "architecture": {
        "name": "isometric",
        "widths": [12],
        "steps": [1],
        "neck_units": 8,
        "dense_steps": 1,
    },
    "data": {"name": "none", "validation": 24, "crop_padding": 2},
    "training": {
        "epochs": 9,
        "batch_size": 24,
        "loss": {"name": "offset_crossentropy", "offset": {0: 0.4, 3: 0.7}},
        "optimizer": {"name": "muon", "learning_rate": 0.05},
    },
}


@pytest.fixture(scope="module")
def ablations():
    return load_script(PATH)


@pytest.fixture
def arguments(tmp_path):
    write_images(tmp_path / "data.npz", test=3)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    files = {"data": "data.npz", "recipe": "tiny.yaml", "runs": "runs", "csv": "out.csv"}
    return [part for k, v in files.items() for part in (f"--{k}", str(tmp_path / v))]


def leaves(value, path=""):
    if not isinstance(value, dict):
        return {path: value}
    return {k: v for key, part in value.items() for k, v in leaves(part, f"{path}.{key}").items()}


@pytest.mark.parametrize("name", ["recipe", "base", "classes"])
def test_every_arm_is_the_base_with_its_one_change(ablations, name):
    study = ablations.STUDIES[name]
    base = recipes.load(study.recipe)
    plain = ablations.recipe_of(study, "base", base, epochs=2, seed=3)
    assert plain["training"]["epochs"] == 2 and plain["training"]["seed"] == 3
    assert plain["training"]["loss"]["offset"] == study.offset
    assert plain["training"]["schedule"]["points"] == {}
    for arm, (_, changes) in study.arms.items():
        recipe = ablations.recipe_of(study, arm, base, epochs=2, seed=3)
        found, expected = leaves(recipe), {}
        for key, value in changes.items():
            expected |= leaves(ablations.in_epochs(value, 2), f".{key}")
        assert expected.items() <= found.items(), arm
        differing = {k for k, v in found.items() if leaves(plain).get(k) != v}
        assert differing - {".name"} <= set(expected) and (len(differing) > 1) == (arm != "base")
    assert base == recipes.load(study.recipe)


def test_a_ramp_over_shares_of_the_run_fits_every_length(ablations):
    ramp = {0.0: 1, 0.17: 2, 0.34: 3, 0.5: 4}
    assert ablations.in_epochs(ramp, 2) == {0: 3, 1: 4}
    assert ablations.in_epochs(ramp, 6) == {0: 1, 1: 2, 2: 3, 3: 4}
    assert ablations.in_epochs({0: 0.4, 3: 0.7}, 2) == {0: 0.4, 3: 0.7}


@pytest.mark.parametrize("name", ["recipe", "base"])
def test_every_arm_is_a_model_and_an_optimizer(ablations, name):
    from dynzoo.training import builders as optimization

    tiny, study = recipes.validate(RECIPE), ablations.STUDIES[name]
    if name == "base":
        tiny["architecture"].update(widths=[4, 4, 4], steps=[1, 1, 1])
    kinds = {}
    for arm in study.arms:
        recipe = ablations.recipe_of(study, arm, tiny, epochs=1, seed=0)
        model = training.build_model(recipe, 3, (8, 8, 3))
        settings = recipe["training"]
        optimizer = optimization.make_optimizer(settings["optimizer"], 3, settings["schedule"])
        kinds[arm] = [type(layer).__name__ for layer in model.layers]
        assert type(optimizer).__name__.lower().endswith(settings["optimizer"]["name"])
        loss = optimization.make_loss(at_epoch(settings["loss"], 0))
        changed = study.arms[arm][1].get("training.loss.annealing", 0.0)
        assert getattr(loss, "annealing", 0.0) == changed
        keras.backend.clear_session()
    if name == "base":
        assert "L2Pooling2D" in kinds["pooling_l2"] and "L2Pooling2D" not in kinds["trunk_64"]
        return
    assert "BetaAbs" in kinds["between_beta_abs"]
    assert not {"MaxMin", "MaxMinShift", "BetaAbs"} & set(kinds["between_none"])


def test_two_arms_run_once_each_and_are_drawn(ablations, arguments, tmp_path, capsys):
    arms = ["--arms", "base", "step_1", "--epochs", "1", "--seeds", "0"]
    assert ablations.main([*arguments, *arms[:2], *arms[3:]]) == 0
    first = (tmp_path / "out.csv").read_text()
    assert ablations.main([*arguments, *arms, "--plot", str(tmp_path / "out.png")]) == 0
    assert capsys.readouterr().out.count("seed 0") == 2
    text = (tmp_path / "out.csv").read_text()
    assert text.startswith(first) and text.count("\n") == 3
    rows = list(csv.DictReader(text.splitlines()))
    assert [r["arm"] for r in rows] == ["base", "step_1"]
    for row in rows:
        assert 0 <= float(row["certified"]) <= float(row["accuracy"]) <= 100
        assert float(row["seconds"]) >= 0 and row["radius"] == "36/255" and row["epochs"] == "1"
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    assert not list((tmp_path / "runs").iterdir())  # a row is all that an arm leaves


def test_an_arm_starts_from_the_superclasses_in_the_same_number_of_epochs(
    ablations, arguments, tmp_path, monkeypatch
):
    # three classes as they are, two superclasses of them
    monkeypatch.setattr(ablations, "superclasses", lambda y: np.minimum(y, 1))
    trained, seen = ablations.trained, []

    def spy(recipe, file, folder):
        model, last = trained(recipe, file, folder)
        seen.append((recipe["training"]["epochs"], recipe["training"]["start"], last))
        assert model.output_shape[-1] == (2 if len(seen) == 1 else 3)
        return model, last

    monkeypatch.setattr(ablations, "trained", spy)
    arms = ["--study", "classes", "--epochs", "3", "--arms", "start_superclasses"]
    assert ablations.main([*arguments, *arms]) == 0
    (half, nothing, first), (rest, start, last) = seen
    assert (half, nothing, rest) == (1, "", 2) and Path(start).name == "preset"
    (row,) = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert float(row["seconds"]) == pytest.approx(float(first["seconds"]) + float(last["seconds"]))
    assert row["accuracy"] == last["val_accuracy"] and row["epochs"] == "3"
    assert not list((tmp_path / "runs").iterdir())
    with pytest.raises(ValueError, match="`--epochs`"):
        ablations.main([*arguments, "--study", "classes", "--epochs", "1", *arms[4:]])


def test_wrong_arms_are_refused(ablations, capsys):
    with pytest.raises(SystemExit):
        ablations.main(["--arms", "bigger"])
    with pytest.raises(SystemExit):
        ablations.main(["--study", "classes", "--arms", "operator_conv"])
    assert "start_scratch" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ablations.main(["--arms", "start_scratch"])
    assert "operator_conv" in capsys.readouterr().err
