"""Training checkpoints: one file, replaced atomically, readable on every backend."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np

from dynzoo import backend
from dynzoo.utils import strict_json
from dynzoo.utils.files import write_atomically
from dynzoo.utils.strict_json import short

__all__ = ["CheckpointError", "NotFiniteError", "read", "state_of", "write"]

# Counts changes of what a file holds; files without a number are of format 1.
FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


class NotFiniteError(CheckpointError):
    """Weights that are not finite, which no checkpoint is written of."""


def write(path, model, state: dict) -> None:
    """Saves weights, optimizer variables and a JSON state.

    Raises:
        NotFiniteError: if a weight is not finite; the file on disk is left as it was.
    """
    arrays = {}
    for prefix, variables in _groups(model).items():
        for i, variable in enumerate(variables):
            value = backend.value_of(variable)
            if prefix == "weight" and not np.isfinite(value).all():
                raise NotFiniteError(f"{variable.path} is not finite: {path} was not written")
            arrays[f"{prefix}_{i:04d}"] = value
    arrays["format"] = np.array(FORMAT)
    arrays["state"] = np.frombuffer(json.dumps(state).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())


def _groups(model) -> dict:
    return {"weight": model.variables, "optimizer": model.optimizer.variables}


def read(path, model, check=None, load=None) -> dict:
    """Puts a checkpoint's weights and optimizer variables into a compiled, built model.

    Args:
        path: file written by ``write``.
        model: the model, of the same architecture and with the same optimizer.
        check: called with the state before anything is changed; may raise.
        load: gives the bytes of the file, in place of ``Path.read_bytes``.

    Returns:
        The state.

    Raises:
        CheckpointError: if the file is damaged or does not fit the model; nothing is changed then.
    """
    arrays, state = _parsed(path, load)
    if check is not None:
        check(state)
    pairs = []
    for prefix, variables in _groups(model).items():
        stored = [k for k in sorted(arrays) if k.startswith(prefix + "_")]
        shapes = [tuple(arrays[k].shape) for k in stored]
        if shapes != [tuple(v.shape) for v in variables]:
            raise CheckpointError(
                f"{path} holds {prefix} variables of another model or optimizer; "
                "start in a new output folder, or use the recipe that it was made with"
            )
        for variable, key in zip(variables, stored, strict=True):
            value = arrays[key]
            if ("int" in variable.dtype) != (value.dtype.kind in "iu"):
                raise CheckpointError(
                    f"{path} is damaged: it holds {value.dtype} for {variable.path}, which is "
                    f"{variable.dtype}"
                )
            if prefix == "weight" and value.dtype.kind == "f" and not np.isfinite(value).all():
                raise CheckpointError(f"{path} is damaged: {variable.path} is not finite")
            pairs.append((variable, value))
    for variable, value in pairs:
        variable.assign(value)
    return state


def state_of(path, load=None) -> dict:
    """The state that a checkpoint holds, which says what its weights are of.

    Args:
        path: file written by ``write``.
        load: gives the bytes of the file, in place of ``Path.read_bytes``.

    Raises:
        CheckpointError: if the file is damaged.
    """
    return _parsed(path, load)[1]


def _parsed(path, load) -> tuple[dict, dict]:
    """The arrays and the state of a checkpoint."""
    # Read whole, so that a damaged archive leaves no open file behind.
    try:
        content = load(path) if load else Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({short(error)})") from None
    try:
        _check_sizes(content)
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        written = int(arrays.pop("format", FORMAT))
        state = strict_json.parse(arrays.pop("state").tobytes())
        if not isinstance(state, dict):
            raise ValueError("its state is not a mapping")
    except Exception as error:  # zipfile and NumPy raise some ten kinds over a damaged archive
        raise CheckpointError(
            f"{path} is damaged or not a dynzoo checkpoint ({short(error)})"
        ) from None
    if not 1 <= written <= FORMAT:
        raise CheckpointError(
            f"{path} has format {written}, and this dynzoo reads formats up to {FORMAT}: "
            "go on with the version that wrote it, or start in a new output folder"
        )
    return arrays, state


def _check_sizes(content: bytes) -> None:
    """``write`` does not compress: an archive that declares more than it has is none of its."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
    if any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise ValueError("it is compressed")
    if sum(m.file_size for m in members) > len(content):
        raise ValueError("it declares more bytes than it has")
