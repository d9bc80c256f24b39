"""Dry run of the scripts that train on a borrowed accelerator and finish what came back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from dynzoo import backend
from dynzoo.data import parts as image_parts
from dynzoo.zoo import preset_folder

ROOT = Path(__file__).parents[1]
# what a bare machine does not have, refused on import
BARE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in (
            "tensorflow", "torch", "sklearn", "keras_tuner", "tensorflow_datasets", "onnx"
        ):
            raise ModuleNotFoundError(f"No module named {name!r} on a bare machine", name=name)

sys.meta_path.insert(0, Absent())
"""
RECIPE = {
    "name": "toy",
    "architecture": {
        "name": "isometric",
        "widths": [8],
        "steps": [1],
        "neck_units": 16,
        "dense_steps": 1,
        "mean": None,
    },
    "data": {"name": "toys", "validation": 128, "crop_padding": 1, "rotation": 5},
    "training": {
        "epochs": 4,
        "batch_size": 32,
        "dtype": "mixed_bfloat16",
        "loss": {"name": "offset_crossentropy", "offset": {0: 0.3, 3: 0.2}},
        "optimizer": {"name": "muon", "learning_rate": 0.02},
    },
}


def images(count, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    x = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    x[np.arange(count), 0, 0, y] = 255
    return x, y


def script(name, *arguments, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif("backend.name() != 'jax'", reason="the training needs JAX")
def test_a_borrowed_machine_trains_and_another_finishes(tmp_path):
    x, y = images(640)
    np.savez(tmp_path / "a.npz", x_train=x[:300], y_train=y[:300])
    np.save(tmp_path / "b.npy", x[300:])
    np.save(tmp_path / "b.labels.npy", y[300:])
    np.savez(tmp_path / "all.npz", x_train=x, y_train=y, x_test=x[:24], y_test=y[:24])
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(BARE)
    process = script(
        *("train_on_accelerator.py", tmp_path / "toy.yaml", "--cpu", "--smoke", 1),
        *("--data", tmp_path / "a.npz", tmp_path / "b.npy"),
        *("--output", tmp_path / "back", "--max-seconds", 34, "--set", "training.seed=1"),
        PYTHONPATH=str(tmp_path / "bare"),
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert "smoke test passed" in process.stdout and process.stdout.count("written to") == 3
    run = json.loads((tmp_path / "back" / "run.json").read_text())
    assert run["images"] == 640 and "--set training.seed=1" in run["command"]
    assert str(tmp_path) not in run["command"]

    arguments = [tmp_path / "back", "--data", tmp_path / "all.npz", "--out", tmp_path / "toy"]
    process = script("finish_preset.py", *arguments, "--attacks", "fast", "--attack-limit", 4)
    assert process.returncode == 0, process.stderr[-3000:]
    about = json.loads((tmp_path / "toy" / "metadata.json").read_text())
    assert about["format"] == 2 and about["training"]["seed"] == 1
    assert about["training"]["command"] == run["command"]
    assert (
        about["training"]["held_out"]["val_certified"]
        <= about["training"]["held_out"]["val_accuracy"]
    )
    assert set(about["certified_accuracy"]) == set(about["attacked_accuracy"])
    assert about["audited_slope"] <= about["lipschitz"]
    assert "CPU" in about["training"]["hardware"]
    assert preset_folder.from_preset(tmp_path / "toy").output_shape == (None, 3)

    np.savez(tmp_path / "other.npz", x_train=x[::-1], y_train=y[::-1], x_test=x, y_test=y)
    arguments[2] = tmp_path / "other.npz"
    process = script("finish_preset.py", *arguments, "--overwrite")
    assert process.returncode == 1 and "are not those of the run" in process.stderr


def test_parts_become_one_set(tmp_path):
    x, y = images(10)
    np.savez(tmp_path / "a.npz", x=x[:4], y=y[:4, None])
    np.savez(tmp_path / "b.npz", x_train=x[4:], y_train=y[4:])
    images_, labels = image_parts.load_parts([tmp_path / "a.npz", tmp_path / "b.npz"])
    np.testing.assert_array_equal(images_, x)
    np.testing.assert_array_equal(labels, y)
    assert image_parts.images_sha256(images_) == image_parts.images_sha256(x)
    assert image_parts.images_sha256(x[::-1]) != image_parts.images_sha256(x)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 4, 4, 3), np.uint8)}, "a.npz.*lacks the keys \\['y'\\]"),
        ({"x": np.zeros((2, 4, 4, 3)), "y": [0, 1]}, "a.npz: images must be bytes.*float64"),
        ({"x": np.zeros((2, 4, 4, 3), np.uint8), "y": [0]}, "2 images need as many whole labels"),
        ({"x": np.zeros((2, 4, 4, 3), np.uint8), "y": [0.5, 1]}, "need as many whole labels"),
    ],
)
def test_parts_that_are_no_images_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        image_parts.load_parts([tmp_path / "a.npz"])


def test_files_of_parts_must_be_there(tmp_path):
    with pytest.raises(ValueError, match="`paths` must name at least one"):
        image_parts.load_parts([])
    with pytest.raises(ValueError, match="a.png: images must be in .npz or .npy"):
        image_parts.load_parts([tmp_path / "a.png"])
    with pytest.raises(FileNotFoundError, match="no data file .*a.npz"):
        image_parts.load_parts([tmp_path / "a.npz"])
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(FileNotFoundError, match="no file .*a.labels.npy with the labels"):
        image_parts.load_parts([tmp_path / "a.npy"])
    (tmp_path / "b.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="b.npz is not readable"):
        image_parts.load_parts([tmp_path / "b.npz"])
    for name, size in (("c", 4), ("d", 5)):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((1, size, 4, 3), np.uint8), y=[0])
    with pytest.raises(ValueError, match="images have different shapes"):
        image_parts.load_parts([tmp_path / "c.npz", tmp_path / "d.npz"])


@pytest.mark.any_backend
def test_without_an_accelerator_the_script_says_so(tmp_path):
    if backend.accelerator() is not None:
        pytest.skip("there is one")
    np.savez(tmp_path / "a.npz", x=images(4)[0], y=images(4)[1])
    process = script(
        *("train_on_accelerator.py", "isometric_tiny_cifar10", "--data", tmp_path / "a.npz"),
        *("--output", tmp_path / "back", "--max-seconds", 10),
    )
    assert process.returncode == 1 and "--cpu goes on without one" in process.stderr
    assert not (tmp_path / "back").exists()
