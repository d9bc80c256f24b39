"""Labels of data as a preset's classes: by their names, where both have names."""

import json

import keras
import numpy as np
import pytest
from PIL import Image

import dynzoo
from dynzoo import layers
from dynzoo.cli import program
from dynzoo.cli.inputs import matched_labels

pytestmark = pytest.mark.any_backend

OWN = ["ant", "Bee_hive", "cow", "dog"]


def data_of(folder, names):
    x, y = np.zeros((4, 5, 5, 3), np.uint8), np.arange(4) % max(len(names or OWN), 1)
    arrays = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    if names is not None:
        arrays["class_names"] = np.array(names)
    np.savez(folder / "data.npz", **arrays)
    return str(folder / "data.npz")


@pytest.mark.parametrize(
    ("names", "expected", "said"),
    [
        (OWN, [0, 1, 2, 3], ""),
        (["ANT", "bee hive", "cow", "dog"], [0, 1, 2, 3], ""),
        (["ant", "bee hive"], [0, 1, 0, 1], ""),
        (["dog", "bee-hive"], [3, 1, 3, 1], "matched with the classes of mine by their names"),
        (["dog", "cow", "bee-hive", "ant"], [3, 2, 1, 0], "by their names"),
        (["Hund", "Kuh"], [0, 1, 0, 1], "names its classes otherwise than mine"),
        (["ant", "hive", "cow", "dog"], [0, 1, 2, 3], ""),  # one is spelled otherwise
        (None, [0, 1, 2, 3], ""),
    ],
)
def test_labels(names, expected, said, tmp_path, capsys):
    source = data_of(tmp_path, names)
    y, kept = matched_labels(np.arange(4) % len(names or OWN), source, "mine", OWN)
    assert y.tolist() == expected
    by_name = names is not None and kept is OWN
    assert kept == (OWN if by_name else names or ["0", "1", "2", "3"])
    told = " ".join(capsys.readouterr().out.split())
    assert said in told if said else not told


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dog", "horse"], "has classes that mine lacks (horse) beside some that it has"),
        (["ant"], "names 1 classes, and has the label 1"),
    ],
)
def test_labels_that_cannot_be_meant(names, message, tmp_path):
    source = data_of(tmp_path, names)
    with pytest.raises(ValueError) as error:
        matched_labels(np.array([0, 1]), source, "mine", OWN)
    assert message in str(error.value)
    if len(names) == 2:  # for fine-tuning these are other classes
        assert matched_labels(np.array([0, 1]), source, "mine", OWN, strict=False)[1] == names


def test_a_test_label_that_no_training_image_has_needs_no_name(tmp_path):
    x, y = np.zeros((2, 5, 5, 3), np.uint8), np.array([0, 1])
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y + 2)
    found, _ = matched_labels(np.array([2, 3]), str(tmp_path / "data.npz"), "mine", OWN)
    assert found.tolist() == [2, 3]


@pytest.fixture
def preset(tmp_path):
    """One that tells dark, red, green and blue pictures apart."""
    entrance = keras.Input((6, 6, 3))
    x = keras.layers.GlobalAveragePooling2D()(layers.MeanShift([0.0, 0.0, 0.0])(entrance))
    head = keras.layers.Dense(4, name="head")
    network = keras.Model(entrance, head(x))
    kernel = np.array([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "float32")
    head.set_weights([kernel, np.array([0.2, 0, 0, 0], "float32")])
    names = ["dark", "red", "green", "blue"]
    dynzoo.save_to_preset(network, tmp_path / "preset", {"class_names": names})
    return tmp_path / "preset"


def pictures(folder, colours):
    for split in ("train", "test"):
        for name, colour in colours.items():
            place = folder / split / name
            place.mkdir(parents=True)
            for k in range(3):
                pixels = np.full((6, 6, 3), colour, np.uint8)
                pixels[0, 0] = k
                Image.fromarray(pixels).save(place / f"{k}.png")
    return folder


COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0), "dark": (0, 0, 0)}


@pytest.mark.parametrize("names", [["blue", "red"], list(COLOURS)])
def test_a_folder_of_a_presets_classes_is_evaluated_by_name(names, preset, tmp_path):
    folder = pictures(tmp_path / "pictures", {name: COLOURS[name] for name in names})
    output = tmp_path / "report.json"
    line = ["evaluate", preset, "--data", folder, "--attacks", "none", "--output", output]
    assert program.main([str(part) for part in line]) == 0
    report = json.loads(output.read_text())
    assert report["clean"] == 1.0
    assert set(report["per_image"]["labels"]) == {
        ["dark", "red", "green", "blue"].index(name) for name in names
    }


def test_fine_tuning_keeps_a_head_in_its_order(preset, tmp_path, capsys):
    folder = pictures(tmp_path / "pictures", COLOURS)
    line = ["finetune", preset, "--data", folder, "--epochs", 1, "--output", tmp_path / "new"]
    assert program.main([str(part) for part in line]) == 0
    assert "test images before: 100.00 %" in " ".join(capsys.readouterr().out.split())
    about = json.loads((tmp_path / "new" / "metadata.json").read_text())
    assert about["class_names"] == ["dark", "red", "green", "blue"] and about["accuracy"] == 1.0
