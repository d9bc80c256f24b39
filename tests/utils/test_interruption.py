"""Ctrl-C, at any moment of any command: a line with what was kept and what goes on, code 130."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import slow_elsewhere
from training_fixtures import RECIPE

import dynzoo
from dynzoo import backend
from dynzoo.utils import interruption

any_backend = pytest.mark.any_backend

ROOT = Path(dynzoo.__file__).parents[1]
# The module by itself, in a process that starts at once: no Keras.
ALONE = f"""
import importlib.util, os, pathlib, sys, threading, time
spec = importlib.util.spec_from_file_location("interruption", {interruption.__file__!r})
interruption = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interruption)
interruption.install()
interruption.begin(["train", "a b", "--quiet"])
"""


# Sets what SIGINT does, then becomes the process that is asked for: with `preexec_fn`, Python would
# fork this one, which JAX's threads do not survive.
LAUNCH = """
import os, signal, sys
signal.signal(signal.SIGINT, getattr(signal, sys.argv[1]))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Running:
    """A process with what it printed so far."""

    # by default as in a terminal: a process that a shell put into the background ignores the signal
    def __init__(self, *arguments, at_first="SIG_DFL", folder=None):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "KERAS_BACKEND": backend.name(),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LAUNCH, at_first, *arguments],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out = ""
        self._error = ""
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True)
            for name in ("out", "_error")
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name):
        stream = self.process.stdout if name == "out" else self.process.stderr
        for line in stream:
            setattr(self, name, getattr(self, name) + line)

    def wait_for(self, text):
        until = time.monotonic() + 120
        while text not in self.out:
            assert time.monotonic() < until and self.process.poll() is None, self._error
            time.sleep(0.01)
        return self

    def press(self):
        self.process.send_signal(signal.SIGINT)
        return self

    def ends(self, seconds=30):
        """Its exit code, and the lines of dynzoo on standard error."""
        try:
            code = self.process.wait(timeout=seconds)
        finally:
            self.process.kill()
        for reader in self._readers:
            reader.join(timeout=10)
        self.process.stdout.close()
        self.process.stderr.close()
        assert "Traceback" not in self._error, self._error
        lines = self._error.splitlines()
        return code, [line for line in lines if line.startswith("dynzoo:")]


def alone(code, **arguments):
    return Running("-c", ALONE + code, **arguments)


@any_backend
def test_native_code_is_ended_at_once_and_nothing_is_lost_of_what_was_printed():
    process = alone("""
print("begun", flush=True)
print("so far", end="")  # a progress bar, which ends no line
lock = threading.Lock()
lock.acquire()
lock.acquire()
""")
    began = time.monotonic()
    code, lines = process.wait_for("begun").press().ends()
    assert code == 130 and time.monotonic() - began < 5
    again = "dynzoo train 'a b' --quiet"
    assert lines == [f"dynzoo: interrupted; nothing new was kept, start again: {again}"]
    assert process.out == "begun\nso far"


@any_backend
def test_nobody_can_swallow_it():
    process = alone("""
interruption.keeps(lambda: "half of it was kept, go on: " + interruption.command("--resume"))
interruption.keeps(lambda: "of a part of it")
print("begun", flush=True)
while True:
    try:
        time.sleep(0.01)
    except BaseException:
        pass
""")
    code, lines = process.wait_for("begun").press().ends()
    again = "dynzoo train 'a b' --quiet --resume"
    assert (code, lines) == (130, [f"dynzoo: interrupted; half of it was kept, go on: {again}"])


@any_backend
def test_a_file_is_written_to_its_end_and_a_scratch_folder_is_removed(tmp_path):
    process = alone("""
with interruption.scratch(pathlib.Path("work")):
    with interruption.writing():
        with open("file", "w") as file:
            print("begun", flush=True)
            time.sleep(0.5)
            file.write("all of it")
    time.sleep(60)
""", folder=tmp_path)  # fmt: skip
    assert process.wait_for("begun").press().ends()[0] == 130
    assert (tmp_path / "file").read_text() == "all of it"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


HELD = """
interruption.hold()
print("begun", flush=True)
for _ in range(600):
    time.sleep(0.1)
    if interruption.asked() and {heard}:
        interruption.keeps(lambda: "all steps are kept")
        interruption.release()
        interruption.end()
"""


@any_backend
def test_steps_that_no_file_has_are_kept_first():
    code, lines = alone(HELD.format(heard=True)).wait_for("begun").press().ends()
    assert (code, lines) == (130, ["dynzoo: interrupted; all steps are kept"])


@any_backend
def test_a_second_one_ends_at_once():
    process = alone(HELD.format(heard=False)).wait_for("begun").press()
    time.sleep(0.5)
    assert process.process.poll() is None
    code, lines = process.press().ends(5)
    assert code == 130 and len(lines) == 1 and "nothing new was kept" in lines[0]


@any_backend
def test_where_it_is_ignored_it_stays_so():
    process = alone("print('begun', flush=True); time.sleep(0.5)", at_first="SIG_IGN")
    assert process.wait_for("begun").press().ends() == (0, [])


@any_backend
def test_a_command_that_is_done_stays_done():
    process = alone("interruption.over(); print('done', flush=True); time.sleep(0.5)")
    assert process.wait_for("done").press().ends() == (0, [])


@any_backend
def test_outside_the_command_python_is_left_alone():
    handler = signal.getsignal(signal.SIGINT)
    assert handler is not interruption._nothing and not interruption.asked()


# The command itself


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2400, 8, 8, 3), dtype=np.uint8)
    y = rng.integers(0, 3, 2400)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    training = {**RECIPE["training"], "epochs": 1000}
    recipe = {**RECIPE, "training": training}
    (tmp_path / "long.yaml").write_text(json.dumps(recipe))
    space = {"training.loss.offset": [0.1, 0.2]}
    search = {"recipe": recipe, "space": space, "search": {"tuner": "grid", "max_trials": 2}}
    (tmp_path / "search.yaml").write_text(json.dumps(search))
    return tmp_path


def command(folder, *arguments):
    return Running("-m", "dynzoo", *arguments, folder=folder)


TRAIN = ("train", "long.yaml", "--data", "data.npz", "--quiet")


@slow_elsewhere
def test_a_training_keeps_its_last_step_and_goes_on(folder):
    process = command(folder, *TRAIN).wait_for("epoch 1/1000")
    time.sleep(0.3)
    code, (line,) = process.press().ends()
    again = " ".join(["dynzoo", *TRAIN, "--resume"])
    assert code == 130 and line.endswith(f" of 1000, go on: {again}"), line
    with np.load(folder / "runs/tiny/checkpoint.npz") as file:
        state = json.loads(file["state"].tobytes())
    epoch, batch = state["epoch"], state["batch"]
    where = f"batch {batch} of epoch {epoch + 1}" if batch else f"epoch {epoch}"
    assert f"runs/tiny/checkpoint.npz stands after {where} of 1000" in line
    assert not list(folder.glob("runs/**/*.partial"))
    process = command(folder, *TRAIN, "--resume")
    process.wait_for(f"resumed at epoch {epoch}, batch {batch}")
    code, (line,) = process.press().ends()
    assert code == 130 and "checkpoint.npz stands after" in line


@any_backend
def test_what_is_not_kept_at_the_end_of_a_training_is_not_waited_for():
    with pytest.raises(RuntimeError):
        with interruption.training():
            interruption.hold()
            raise RuntimeError
    assert not interruption._state.held


MOMENTS = {
    "the import": ("list",),
    "reading": TRAIN,
    "compiling": TRAIN,
    "a pilot": (*TRAIN, "--pilot", "60"),
    "the trial of a search": ("search", "search.yaml", "--data", "data.npz"),
    "a demonstration": ("demo",),
    "certifying": ("evaluate", "isometric_tiny_cifar10", "--dataset", "digits"),
    "an export": ("export", "isometric_tiny_cifar10", "--no-check", "--format"),
    "fine-tuning": ("finetune", "isometric_tiny_cifar10", "--dataset", "digits"),
}
FORMAT = {"tensorflow": "saved_model", "jax": "saved_model", "torch": "torch"}


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("moment", MOMENTS)
def test_at_any_moment_of_any_command(moment, seconds, folder):
    arguments = MOMENTS[moment]
    if moment == "an export":
        arguments = (*arguments, FORMAT[backend.name()])
    process = command(folder, *arguments)
    if moment == "the import":
        time.sleep(0.2 + seconds / 4)
    else:
        said = {"reading": "reading", "the trial of a search": "begins trial 1"}
        process.wait_for(said.get(moment, "compiling" if moment != "an export" else "writing"))
        time.sleep(seconds)
    code, lines = process.press().ends()
    if moment == "the import" and code == 0:  # it was done
        return
    assert code == 130 and len(lines) == 1, (code, lines)
    assert lines[0].startswith("dynzoo: interrupted; ") and " again: dynzoo " in lines[0].replace(
        "go on:", "again:"
    )
    if moment == "the trial of a search":
        assert "runs/tiny_search has 0 of 2 trials, go on: dynzoo search" in lines[0]
        assert lines[0].endswith("--resume")
    assert not list(folder.glob("**/*.partial"))
