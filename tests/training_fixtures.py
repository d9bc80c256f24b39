"""A tiny recipe, and a process whose training is killed after a number of batches."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

import dynzoo
from dynzoo import backend

RECIPE = {
    "name": "tiny",
    "architecture": {
        "name": "isometric",
        "widths": [12],
        "steps": [1],
        "mean": None,
        "neck_units": 8,
        "dense_steps": 1,
    },
    "data": {"name": "none", "validation": 24, "crop_padding": 1},
    "training": {
        "epochs": 3,
        "batch_size": 24,
        "loss": {"name": "offset_crossentropy", "offset": 0.2},
        "optimizer": {"name": "adam", "learning_rate": 0.02},
    },
}
KILLED = """
import os, signal
from dynzoo.cli import program as cli
from dynzoo.training import callbacks as watching, loop as training

batches = 0
on_train_batch_end = watching.Watch.on_train_batch_end

def kill(self, batch, logs=None):
    global batches
    batches += 1
    on_train_batch_end(self, batch, logs)
    if batches == {batch}:
        os.kill(os.getpid(), signal.SIGKILL)

watching.Watch.on_train_batch_end = kill
{statement}
"""


def in_new_process(code):
    """The finished process that ran Python code on this backend, with this dynzoo."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(dynzoo.__file__).parents[1]),
        "KERAS_BACKEND": backend.name(),
    }
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )


def processes_together(code, count=2):
    """Processes that run Python code together on this backend, over loopback; not waited for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = []
    for rank in range(count):
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(dynzoo.__file__).parents[1]),
            "KERAS_BACKEND": backend.name(),
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
            "KERAS_DISTRIBUTION_NUM_PROCESSES": str(count),
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", code]
        together.append(subprocess.Popen(command, env=environment, **pipes))
    return together


def said_together(code, seconds=600):
    """What each of two processes printed, both of which must succeed."""
    together = processes_together(code)
    try:
        said = [process.communicate(timeout=seconds) for process in together]
    finally:
        for process in together:
            process.kill()
    for process, (_, complaint) in zip(together, said, strict=True):
        assert process.returncode == 0, complaint
    return [out.splitlines() for out, _ in said]


def killed_after(batch, statement):
    """The process that ran `statement`, with `cli` and `training` at hand, and was killed."""
    process = in_new_process(KILLED.format(batch=batch, statement=statement))
    assert process.returncode == -signal.SIGKILL, process.stderr
    return process


def random_images(folder):
    """131 of 3 classes: with 22 held out four batches of 24, and 13 are left over."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (131, 8, 8, 3)).astype("uint8"), rng.integers(0, 3, 131)
    path = folder / "images.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    return path
