"""The table of commands, and what they say before Keras is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dynzoo
from dynzoo.cli.program import COMMANDS

pytestmark = pytest.mark.any_backend

ROOT = Path(dynzoo.__file__).resolve().parents[1]
PRESET = "isometric_tiny_cifar10"
SHARED = {"__init__", "completion", "console", "inputs", "options", "program"}


def test_every_file_is_a_command_in_the_table():
    files = {path.stem for path in (ROOT / "dynzoo" / "cli").glob("*.py")} - SHARED
    assert {command.__name__ for command in COMMANDS.values()} == {f"dynzoo.cli.{f}" for f in files}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_is(name):
    command = COMMANDS[name]
    assert command.NAME == name
    assert command.HELP[0].islower() and not command.HELP.endswith(".")
    assert command.__doc__.startswith(f"`dynzoo {name}`: ")


# Nothing of this needs Keras: what is said, by the arguments.
DONE = {
    "--help": "usage: dynzoo",
    **{f"{name} --help": f"usage: dynzoo {name}" for name in COMMANDS},
    "--version": "dynzoo ",
    "list": PRESET,
    "list --leaderboard --dataset cifar10": PRESET,
    f"info {PRESET}": "Lipschitz bound",
}
REFUSED = {
    "fly": "invalid choice: 'fly'",
    "--backend theano list": "invalid choice: 'theano'",
    "list --fast": "unrecognized arguments: --fast",
    "list --leaderboard --dataset svhn": "`dataset` must be one of",
    "list --leaderboard --output board.txt": "must end in .md or .csv",
    "list --dataset cifar10": "needs --leaderboard",
    "info gone": "There is no preset 'gone'",
    "demo --seed -1": "--seed: must be from 0",
    "demo --output file": "file",
    f"predict gone {__file__}": "There is no preset 'gone'",
    f"predict {PRESET} gone.png": "There is no file gone.png",
    f"predict {PRESET} pictures --certify-pixels": "--certify-pixels needs pictures of one size",
    f"predict {PRESET} gone.png --output table.txt": "must end in .csv or .json",
    f"predict {PRESET} gone.png --output file/table.csv": "file is not a folder",
    "evaluate gone": "There is no preset 'gone'",
    f"evaluate {PRESET} --limit 0": "--limit: must be at least 1",
    f"evaluate {PRESET} --eps 36/0": "--eps: must be positive numbers",
    f"evaluate {PRESET} --seed -1": "--seed: must be from 0",
    f"evaluate {PRESET} --prediction-sets 1": "`prediction_sets` must be in (0, 1)",
    f"evaluate {PRESET} --data gone.npz": "There is no data file gone.npz",
    f"evaluate {PRESET} --data gone": "`name` must be one of",
    f"evaluate {PRESET} --dataset svhn": "`name` must be one of",
    f"evaluate {PRESET} --output report.pdf": "must end in one of .html",
    f"evaluate {PRESET} --output file/report.html": "file is not a folder",
    f"evaluate {PRESET} --output folder.json": "folder.json is a folder",
    f"evaluate {PRESET} --checkpoint folder.json": "folder.json is a folder",
    f"evaluate {PRESET} --checkpoint file/state.npz": "file is not a folder",
    f"evaluate {PRESET} --shards 2 --checkpoint file/parts": "file is not a folder",
    f"evaluate {PRESET} --attacks none --checkpoint state.npz": "--checkpoint needs attacks",
    f"evaluate {PRESET} --norm linf --update-card": "--update-card needs --norm l2",
    f"evaluate {PRESET} --smoothing 0": "`smoothing` must be in",
    f"evaluate {PRESET} --smoothing 0.1 --norm linf": "--smoothing needs --norm l2",
    f"evaluate {PRESET} --smoothing 0.1 --smoothing-samples 0": "must be at least 1",
    f"evaluate {PRESET} --keep-attacks": "--keep-attacks needs --update-card",
    "compare gone.json": "No such file or directory: 'gone.json'",
    "compare file --output table.txt": "must end in one of .html, .json, .csv",
    "compare file --output folder.json": "folder.json is a folder",
    f"finetune {PRESET}": "one of the arguments --data --dataset is required",
    "finetune gone --dataset digits": "There is no preset 'gone'",
    f"finetune {PRESET} --data gone.npz": "There is no data file gone.npz",
    f"finetune {PRESET} --dataset digits --output pictures": "pictures exists already",
    f"finetune {PRESET} --dataset digits --output file/new": "file is not a folder",
    f"finetune {PRESET} --dataset digits --num-classes 1": "--num-classes must be",
    f"finetune {PRESET} --dataset digits --learning-rate 0": "`learning_rate` must be positive",
    f"finetune {PRESET} --dataset digits --crop-padding 32": "integer in [0, 32)",
    "train gone": "there is no recipe file 'gone'",
    f"train {PRESET} --data gone.npz": "There is no data file gone.npz",
    f"train {PRESET} --max-seconds 0": "`max_seconds` must be positive",
    f"train {PRESET} --pilot nan": "`pilot` must be a positive number",
    f"train {PRESET} --devices 2": "`devices` needs `distribute=True`",
    f"train {PRESET} --seed -1": "`training.seed` must be in [0, 4294967295]",
    "search gone": "there is no search file 'gone'",
    "search digits --data gone.npz": "There is no data file gone.npz",
    "search digits --max-trials 0": "--max-trials: must be at least 1",
    "search digits --timeout 0": "`timeout` must be positive",
    "search digits --role chief --chief here": "`chief` must be HOST:PORT",
    "search digits --chief here:80": "`chief` needs a `role`",
    "import gone.pth --arch file": "There is no file gone.pth",
    "import file": "--arch is needed with weights of PyTorch",
    "import file --arch gone.yaml": "There is no file gone.yaml",
    "import file --arch file --input-shape 32x32": "--input-shape: must be numbers of pixels",
    "import file --arch file --network -1": "--network: must be at least 0",
    "import a.onnx --arch file": "--arch and --network go with weights of PyTorch",
    "import file --arch file --output file": "file exists and is not a preset",
    "import file --arch file --output file/new": "file is not a folder",
    "import file --arch file --dataset svhn": "`name` must be one of",
    f"export {PRESET} --format tflite": "invalid choice: 'tflite'",
    "export gone --format onnx": "There is no preset 'gone'",
    f"export {PRESET} --format torch --data gone.npz": "There is no data file gone.npz",
    f"export {PRESET} --format torch --output pictures": "pictures exists already",
    f"export {PRESET} --format torch --output file/new": "file is not a folder",
    f"export {PRESET} --format saved_model": "Format 'saved_model' cannot be written here",
}
SCRIPT = """
import contextlib, io, json, sys
sys.argv = ["dynzoo"]
from dynzoo.cli import main
heavy = {"keras", "tensorflow", "jax", "torch", "matplotlib", "sklearn", "keras_tuner"}
for line in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(line.split())
    loaded = heavy & set(sys.modules)
    heavy -= loaded  # each is told of the line that loads it
    print(json.dumps([line, code, said.getvalue(), sorted(loaded)]), flush=True)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """(exit code, what was said, modules that were loaded) of each line, all by one process."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "file").touch()
    (folder / "a.onnx").touch()
    (folder / "pictures").mkdir()
    (folder / "folder.json").mkdir()
    for size in (5, 6):
        Image.fromarray(np.zeros((size, 5, 3), np.uint8)).save(folder / f"pictures/{size}.png")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=folder,
        input=json.dumps([*DONE, *REFUSED]),
        # one backend for all: it decides which formats can be exported
        env={**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {line: rest for line, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("line", [*DONE, *REFUSED])
def test_said_without_keras(answers, line):
    code, said, loaded = answers[line]
    assert code == (0 if line in DONE else 2)
    assert {**DONE, **REFUSED}[line] in said
    assert loaded == []
    if line in REFUSED:
        assert said.startswith("dynzoo") and said.count("\n") == 1
