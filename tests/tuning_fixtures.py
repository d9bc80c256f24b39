"""A tiny search, and trials that take no time: what a search does is not what its networks do."""

import copy
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from training_fixtures import RECIPE

import dynzoo
from dynzoo import backend, tuning
from dynzoo.tuning.config import TUNERS

# The tuners of a config; one of an extra is skipped where that is not installed.
ALL_TUNERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "optuna" and importlib.util.find_spec("optuna") is None,
            reason="optuna is not installed: pip install 'dynzoo[optuna]'",
        ),
    )
    for name in TUNERS
]
SEARCH = {
    "recipe": {
        **RECIPE,
        "architecture": {**RECIPE["architecture"], "step_size": 2.0, "between": "maxmin"},
        "data": {**RECIPE["data"], "name": "digits"},
        "training": {**RECIPE["training"], "epochs": 2},
    },
    "space": {
        "architecture.widths": [[12], [16], [8]],
        "architecture.step_size": [0.5, 1.0, 2.0],
        "training.loss.offset": {"min": 0.1, "max": 1.0, "sampling": "log"},
    },
    "search": {"tuner": "random", "max_trials": 6},
}


def changed(**changes):
    """The tiny search with other settings, or another `space`, or changes to its `architecture`."""
    result = copy.deepcopy(SEARCH)
    result["space"] = changes.pop("space", result["space"])
    result["recipe"]["architecture"].update(changes.pop("architecture", {}))
    result["search"].update(changes)
    return result


def write_images(path):
    """120 random images of 8x8 pixels in three classes, each with a mark that tells its class."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)
    y = rng.integers(0, 3, 120)
    y[:3] = [0, 1, 2]
    x[np.arange(120), 0, 0, y] = 255
    np.savez(path, x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    return path


class Trials:
    """Stands in for `attempt`: numbers that depend on the values alone, and a list of who ran."""

    def __init__(self):
        self.ran = []
        self.lengths = []

    def __call__(self, hypermodel, hp, folder, worker, past):
        self.ran.append(folder.name)
        self.lengths.append((folder.name, past and past.name, hp.values.get("tuner/epochs")))
        values = hypermodel.config.values(hp.values)
        offset = values.get("training.loss.offset", 0.2)
        record = {"worker": worker, "seconds": 1.0}
        if values.get("architecture.widths") == [16] and offset > 0.5:
            return {**record, "status": "failed", "reason": "not this one"}
        certified = round(1 - offset / 2 - values.get("architecture.step_size", 2.0) / 10, 6)
        measured = {"clean": 0.9, "certified": certified, "parameters": 100, "epochs": 2}
        return {**record, "status": "completed", **measured}


def free_address(host="127.0.0.1"):
    """HOST:PORT of this machine, where nobody listens."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


class Chief(threading.Thread):
    """A chief in this process."""

    def __init__(self, images, folder, address, config=SEARCH, **arguments):
        super().__init__(daemon=True)
        self.lines, self.error, self.result = [], None, None
        self.arguments = dict(
            config=config, data_file=images, output=folder, role="chief", chief=address,
            log=self.lines.append, **arguments,
        )  # fmt: skip
        self.start()
        waited = time.monotonic()
        while (
            not any("waiting" in line for line in self.lines)
            and self.is_alive()
            and time.monotonic() < waited + 30
        ):
            time.sleep(0.05)

    def run(self):
        try:
            self.result = tuning.search(**self.arguments)
        except Exception as error:
            self.error = error


def kill_a_worker_in_its_second_trial(images, folder, *arguments, hosts=((),) * 4):
    """Nine trials by processes of the command: a chief and workers a, b, c, of which a is killed.

    ``hosts`` are commands that run another on a host, for the chief and each worker.
    """
    config = changed(tuner="random", max_trials=9)
    config["recipe"]["training"]["epochs"] = 30
    file, output = folder / "search.yaml", folder / "out"
    file.write_text(json.dumps(config), encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(dynzoo.__file__).parents[1]),
        "KERAS_BACKEND": backend.name(),
    }
    common = [
        sys.executable, "-m", "dynzoo", "search", str(file), "--data", str(images), "--output",
        str(output), *arguments,
    ]  # fmt: skip

    def start(host, *more):
        return subprocess.Popen(
            [*host, *common, *more], env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    chief = start(hosts[0], "--role", "chief", "--timeout", "15")
    workers = {
        name: start(host, "--role", "worker", "--timeout", "300", "--worker-id", name)
        for name, host in zip("abc", hosts[1:], strict=True)
    }
    try:
        # after an epoch of it
        until = time.monotonic() + 400
        while time.monotonic() < until and all(p.poll() is None for p in workers.values()):
            mine = sorted(output.glob("trials/*/a"))
            if len(mine) > 1 and any((m / "checkpoint.npz").exists() for m in mine):
                break
            time.sleep(0.02)
        workers["a"].send_signal(signal.SIGKILL)
        out, errors = chief.communicate(timeout=500)
        assert chief.returncode == 0, errors
        for name in "bc":
            assert workers[name].wait(timeout=60) == 0, workers[name].stderr.read()
        assert workers["a"].wait(timeout=60) == -signal.SIGKILL
    finally:
        for process in (chief, *workers.values()):
            process.kill()
            process.communicate()
    lines = [line for line in out.splitlines() if line.startswith("trial ")]
    assert [line.split(",")[0] for line in lines] == [f"trial {n} of 9" for n in range(1, 10)]
    records = [
        json.loads((output / "trials" / str(n) / "result.json").read_text(encoding="utf-8"))
        for n in range(9)
    ]
    assert {r["status"] for r in records} == {"completed"}
    assert set("bc") <= {r["worker"] for r in records}
    # what the killed worker had begun, another one went on with
    taken = [r for r in records if (output / "trials" / r["trial"] / "a").exists()]
    taken = [r for r in taken if r["worker"] != "a"]
    assert len(taken) == 1 and taken[0]["epochs"] == 30
