"""The fine-tuning example: four fits, one table, and the folder of digits that it writes."""

import csv
import sys
from pathlib import Path

import pytest
from helpers import load_script, slow_elsewhere, write_images

import dynzoo
from dynzoo.data import datasets as data

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def example(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    module = load_script(EXAMPLES / "fine_tuning.py")
    monkeypatch.setattr(module.common, "RESULTS", tmp_path / "results")
    small = dict(widths=(8,), steps=(1,), neck_units=8, dense_steps=1)
    model = dynzoo.models.isometric_classifier(input_shape=(8, 8, 3), num_classes=10, **small)
    dynzoo.save_to_preset(model, tmp_path / "tiny", {"name": "tiny"})
    return module


@slow_elsewhere
def test_four_fits_of_a_preset_are_rows_of_one_table(example, tmp_path):
    write_images(tmp_path / "images.npz", test=20)
    options = ["--model", str(tmp_path / "tiny"), "--epochs", "1", "--verbose", "0"]
    options += ["--data", str(tmp_path / "images.npz"), "--batch-size", "16"]
    example.main(options)
    for arm in ("head alone", "from scratch", "from scratch"):
        example.main([*options, "--name", "other", "--arms", arm])
    example.main(
        [*options, "--name", "other", "--arms", "all layers, Adam", "head alone", "--augment"]
    )
    table = tmp_path / "results" / "fine_tuning.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["fitted"] for row in rows] == [
        *example.ARMS, "head alone", "from scratch", "all layers, Adam", "head alone",
    ]  # fmt: skip
    assert [row["data"] for row in rows] == ["images"] * 4 + ["other"] * 4
    assert [row["augmentation"] for row in rows] == ["none"] * 6 + ["crop 2, flip"] * 2
    for row in rows:
        assert float(row["certified"]) <= float(row["clean"]) <= 100
        assert float(row["certified_before"]) <= float(row["clean_before"])
        assert row["model"] == "tiny" and row["test_images"] == "20"
    # one body and one fresh head before all fits but the last
    assert len({row["clean_before"] for row in rows[:3]}) == 1


def test_the_folder_of_digits_is_what_scikit_learn_has(example, tmp_path):
    root = example.digits_folder(tmp_path / "digits")
    assert data.class_names(root) == list("0123456789")
    (x, y), (x_test, y_test) = data.load(root, dtype="uint8", image_shape=(8, 8, 1))
    assert len(x) + len(x_test) == 1797 and len(x_test) == pytest.approx(1797 / 5, abs=10)
    digits = example.load_digits()
    first = x[y == 0][0, ..., 0]
    zeros = digits.images[digits.target == 0]
    assert abs(zeros * (255 / 16) - first).max(axis=(1, 2)).min() < 1
