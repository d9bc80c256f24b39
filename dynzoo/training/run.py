"""Records of a training run: folder, state, log, and the preset that comes out of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dynzoo import backend
from dynzoo.augmentation.batches import DISTORTIONS
from dynzoo.inference.streamed_images import StreamedImages, chunks
from dynzoo.training import checkpoints
from dynzoo.utils import interruption
from dynzoo.utils.csv_text import csv_text
from dynzoo.utils.files import write_atomically

__all__ = ["Run", "figure_of_merit", "hardware", "message", "session"]

# flags of Linux, the widest first
_INSTRUCTIONS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX"}
_HASHED_WHOLE = 2**32  # pixels of streamed images that are all read for a hash of them
_HASHED = 4096  # images, of more
_COLUMNS = (
    "epoch",
    "seconds",
    "learning_rate",
    "loss",
    "accuracy",
    "val_accuracy",
    "val_certified",
)


def figure_of_merit(row: dict) -> float:
    """What validated epochs are compared by: certified accuracy, or accuracy if there is none."""
    return row["val_accuracy"] if row["val_certified"] is None else row["val_certified"]


def message(row: dict, epochs: int) -> str:
    """A line on an epoch, for who waits."""
    parts = {"held-out": row["val_accuracy"], "certified": row["val_certified"]}
    measured = "".join(f"{k} {v:.2f} %, " for k, v in parts.items() if v is not None)
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.4f}, accuracy {row['accuracy']:.2f} %, "
        f"{measured}{row['seconds']:.0f} s"
    )


def _in_parts(x: Any) -> Iterator[np.ndarray]:
    if not isinstance(x, StreamedImages):
        yield x
        return
    x = x.astype(x.stored)
    if math.prod(x.shape) > _HASHED_WHOLE:
        x = x.take(np.linspace(0, len(x) - 1, _HASHED).round().astype(np.int64))
    for part in chunks(len(x)):
        yield x[part]


class Run:
    """One run: its folder, its checkpoint, and everything that a later process must know."""

    def __init__(self, recipe: dict, output: Path):
        self.recipe = recipe
        self.output = output
        self.checkpoint = output / "checkpoint.npz"
        self.best = output / "best.npz"
        self.state: dict[str, Any] = {
            "epoch": 0,
            "batch": 0,
            "seconds": 0.0,
            "history": [],
            "sessions": [],
            "identity": self.identity(),
            "optimizer": recipe["training"]["optimizer"]["name"],
            "judged": [recipe["evaluation"]["norm"], recipe["evaluation"]["eps"][0]],
        }
        self._kept = ""

    def identity(self) -> str:
        """What a resumed run must share: everything but the length and what is done with it.

        Beside it are the optimizer and the radius of the held-out images, which have messages of
        their own.
        """
        data = self.recipe["data"]
        # Distortions of 0 are left out: runs from before these keys existed go on.
        data = {k: v for k, v in data.items() if v or k not in DISTORTIONS}
        parts = {"architecture": self.recipe["architecture"], "data": data}
        training = self.recipe["training"]
        parts["training"] = {k: training[k] for k in ("seed", "batch_size", "loss", "dtype")}
        if training["start"]:  # left out otherwise: runs from before it existed go on
            parts["training"]["start"] = training["start"]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def trains_on(self, x: np.ndarray, y: np.ndarray) -> None:
        """Notes which images these are, so that a checkpoint goes on with no others.

        Args:
            x: images (n, h, w, c), bytes or floats in [0, 1]: the same, to the byte, count as such,
                in memory or streamed. Of streamed images beyond 4 GiB as bytes, some thousand all
                over the set stand for the rest, which would take minutes to read.
            y: labels (n,).
        """
        digest = hashlib.sha256(f"{x.shape}".encode())
        for images in _in_parts(x):
            pixels = images if images.dtype == np.uint8 else np.rint(images * 255.0)
            digest.update(pixels.astype(np.uint8, copy=False).tobytes())
        digest.update(y.astype(np.int64).tobytes())
        self.state["images"] = digest.hexdigest()

    def check(self, state: dict) -> None:
        if state.get("identity") != self.state["identity"]:
            raise checkpoints.CheckpointError(
                f"{self.checkpoint} belongs to another recipe (architecture, data, seed, batch "
                "size, loss or dtype differ); use another output folder"
            )
        optimizer = self.state["optimizer"]
        if state.get("optimizer", optimizer) != optimizer:  # of which some have variables alike
            raise checkpoints.CheckpointError(
                f"{self.checkpoint} was trained with the optimizer {state['optimizer']!r}, not "
                f"{optimizer!r}: go on with the former, or use another output folder"
            )
        norm, eps = self.state["judged"]
        before = state.get("judged", [norm, eps])  # runs from before it was written down go on
        if before != [norm, eps]:  # epochs would be compared, and logged, by two measures
            raise checkpoints.CheckpointError(
                f"{self.checkpoint} has held-out images certified at {before[1]:g} in {before[0]}, "
                f"the first of `evaluation.eps`, not at {eps:g} in {norm}: go on with the former, "
                "or use another output folder"
            )
        if state.get("images", self.state.get("images")) != self.state.get("images"):
            raise checkpoints.CheckpointError(
                f"{self.checkpoint} was trained on other images than these; go on with the same "
                "data, or use another output folder"
            )

    def kept(self, epoch: int) -> Path:
        """The file with the weights after an epoch that the recipe averages over."""
        return self.output / f"epoch_{epoch}.npz"

    def check_kept(self, exists: Callable[[Path], bool] = Path.exists) -> None:
        """Refuses to go on where weights that are to be averaged were not kept."""
        for epoch in self.recipe["training"]["average"]:
            if epoch <= self.state["epoch"] and not exists(self.kept(epoch)):
                raise checkpoints.CheckpointError(
                    f"`training.average` has epoch {epoch}, but {self.kept(epoch)} is missing: "
                    "leave that epoch out, or use another output folder"
                )

    def note_kept(self) -> None:
        """The checkpoint holds the present state: what an interruption says of the run."""
        state, epochs = self.state, self.recipe["training"]["epochs"]
        where = f"after epoch {state['epoch']} of {epochs}"
        if state["batch"]:
            where = f"after batch {state['batch']} of epoch {state['epoch'] + 1} of {epochs}"
        self._kept = f"{self.checkpoint} stands {where}"

    def kept_so_far(self) -> str:
        """The last such state, and the command that goes on; empty if there is none."""
        return f"{self._kept}, go on: {interruption.command('--resume')}" if self._kept else ""

    def best_row(self) -> dict | None:
        """That of the best epoch among those that were validated, of equal ones the last.

        None where none was: of a run that stopped before its first look and was then made shorter.
        """
        rows = [row for row in self.state["history"] if row["val_accuracy"] is not None]
        return max(reversed(rows), key=figure_of_merit, default=None)

    def log(self) -> None:
        text = csv_text(_COLUMNS, self.state["history"])
        write_atomically(self.output / "log.csv", text.encode())

    def save_preset(
        self, model, measured: dict | None = None, weights_dtype: str = "float32"
    ) -> Path:
        """Writes the preset, with what is known of the run so far; returns its folder.

        Args:
            model: the finished model.
            measured: its held-out accuracies where it is not the network of a row of the log.
            weights_dtype: as in ``dynzoo.save_to_preset``.
        """
        from dynzoo.zoo import preset_folder

        recipe, state = self.recipe, self.state
        sessions, seed = state["sessions"], recipe["training"]["seed"]
        chosen = "last epoch"
        held_out = measured or state["history"][-1]
        if recipe["training"]["average"]:
            *most, last = (str(epoch) for epoch in recipe["training"]["average"])
            chosen = f"mean of the weights after epochs {', '.join(most)} and {last}, projected"
        best = self.best_row()
        if recipe["training"]["keep"] == "best" and best:
            kind = "accuracy" if best["val_certified"] is None else "certified accuracy"
            chosen = f"epoch {best['epoch']}, best held-out {kind}"
            held_out = measured or best
        if recipe["training"]["optimizer"].get("use_ema"):
            chosen += ", the optimizer's averages of the weights, projected"
        if state.get("share", 1.0) < 1.0:
            chosen = f"epoch {state['epoch']}, at {100 * state['share']:.0f} % of the run"
        metadata = {
            "name": recipe["name"],
            "description": recipe["description"],
            "dataset": recipe["data"]["name"],
            "recipe": recipe,
            "training": {
                "hardware": " + ".join(dict.fromkeys(s["hardware"] for s in sessions)),
                "backend": " + ".join(dict.fromkeys(s["backend"] for s in sessions)),
                "seconds": round(state["seconds"]),
                "epochs": state["epoch"],
                "seed": seed,
                "command": self._command(),
                "chosen": chosen,
                "held_out": {k: v for k, v in held_out.items() if v is not None},
            },
        }
        if state.get("start"):
            metadata["training"]["start"] = state["start"]
        folder = self.output / "preset"
        preset_folder.save_to_preset(
            model, folder, metadata, overwrite=True, weights_dtype=weights_dtype
        )
        return folder

    def _command(self) -> str:
        """The command that makes the run again."""
        training, last = self.recipe["training"], self.state["sessions"][-1]
        command = f"dynzoo train {self.recipe['name']}"
        command += f" --seed {training['seed']}" if training["seed"] else ""
        if training["clock"]:  # by which the epochs are counted
            command += f" --max-seconds {last['max_seconds']:g}"
        return command


def session(max_seconds, devices: int = 1, processes: int = 1) -> dict:
    """Where and how a part of a run is started."""
    return {
        "command": "dynzoo " + " ".join(sys.argv[1:]),
        "backend": keras.backend.backend(),
        "hardware": hardware(devices),
        "max_seconds": max_seconds,
        "keras": keras.__version__,
        **({"processes": processes} if processes > 1 else {}),
    }


def hardware(devices: int = 1) -> str:
    """What the training runs on, in a few words."""
    accelerator = backend.accelerator()
    if accelerator:
        return accelerator if devices == 1 else f"{devices} x {accelerator}"
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        model = processor(Path("/proc/cpuinfo").read_text(encoding="utf-8")) or model
    return f"{os.cpu_count()} CPU cores ({model}), no GPU"


def processor(cpuinfo: str) -> str:
    r"""The model that Linux names, and its widest instructions: by these alone speeds differ a lot.

    Example:

    >>> from dynzoo.training.run import processor
    >>> processor("model name : AMD EPYC\nflags : sse2 avx avx2 fma")
    'AMD EPYC, AVX2'
    """
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    widest = next((name for flag, name in _INSTRUCTIONS.items() if flag in flags), "")
    return ", ".join(part for part in (fields.get("model name", ""), widest) if part)
