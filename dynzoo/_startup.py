"""When Keras is imported, on which backend, and how much of TensorFlow's talk is shown.

Keras chooses its backend once, when it is imported: by `KERAS_BACKEND`, else by its `keras.json`,
else TensorFlow. Where that would be TensorFlow and TensorFlow is not installed, the first installed
of JAX and PyTorch is taken, so that one installed backend is enough. `dynzoo --backend NAME` has to
be read here too, for the command's own module is imported after this one.

`import dynzoo` imports Keras at once, to register dynzoo's classes with it. The command asks for it
(`load_keras`) when its arguments are checked: help, lists and wrong arguments do not pay for it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from dynzoo.utils import interruption

BACKENDS = ("tensorflow", "jax", "torch")
# Modules that register their classes with Keras, which `keras.saving.load_model` then knows.
REGISTERING = (
    "augmentation",
    "constraints",
    "layers",
    "losses",
    "metrics",
    "operators",
    "optimizers",
    "regularizers",
    "training.builders",
)


def choose_backend(environ: Mapping[str, str], asked: str | None = None) -> str | None:
    """Value that `KERAS_BACKEND` needs, or `None` where Keras' own choice stands.

    Args:
        environ: the environment variables.
        asked: the backend that the command line names.
    """
    if asked in BACKENDS and _installed(asked):
        return asked
    if environ.get("KERAS_BACKEND") or _configured(environ) != "tensorflow":
        return None
    found = [name for name in BACKENDS if _installed(name)]
    return found[0] if found and found[0] != "tensorflow" else None


def asked_backend(argv: Sequence[str], orig_argv: Sequence[str]) -> str | None:
    """The backend in `dynzoo --backend NAME ...`; `None` in any other process."""
    if not is_command(argv, orig_argv):
        return None
    arguments = list(orig_argv[orig_argv.index("-m") + 2 :] if argv[0] == "-m" else argv[1:])
    for i, argument in enumerate(arguments):
        if not argument.startswith("-"):
            break  # the subcommand: what follows is its own
        if argument == "--backend":
            return arguments[i + 1] if i + 1 < len(arguments) else None
        if argument.startswith("--backend="):
            return argument.partition("=")[2]
    return None


def is_command(argv: Sequence[str], orig_argv: Sequence[str]) -> bool:
    """Whether this process is the `dynzoo` command, as a script or by `python -m dynzoo`."""
    if not argv:
        return False
    if argv[0] == "-m":  # what Python puts there while it looks for the module
        after = list(orig_argv)[list(orig_argv).index("-m") + 1 :] if "-m" in orig_argv else []
        return after[:1] == ["dynzoo"]
    return Path(argv[0]).name in ("dynzoo", "dynzoo.exe")


# Asked now: once `python -m dynzoo` is found, `sys.argv` names its file.
COMMAND = is_command(sys.argv, sys.orig_argv)


def prepare() -> None:
    """Settle the environment; does nothing once Keras is imported."""
    if "keras" in sys.modules:
        return
    name = choose_backend(os.environ, asked_backend(sys.argv, sys.orig_argv))
    if name is not None:
        os.environ["KERAS_BACKEND"] = name
    if COMMAND:
        interruption.install()
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def backend_name() -> str:
    """The backend that Keras runs on, or would run on if it were imported now."""
    if "keras" in sys.modules:
        return str(sys.modules["keras"].backend.backend())
    return os.environ.get("KERAS_BACKEND") or _configured(os.environ)


def load_keras() -> None:
    """Imports Keras, its backend, and all of dynzoo's classes that Keras can save."""
    if COMMAND and "keras" not in sys.modules:
        _import_keras_quietly()
    for name in REGISTERING:
        importlib.import_module(f"dynzoo.{name}")


def _import_keras_quietly() -> None:
    """Import Keras and its backend without what TensorFlow's C++ part says of missing GPUs."""
    with held_standard_error(lambda line, failed: failed, "starting Keras ..."):
        importlib.import_module("keras")


def is_tensorflow_talk(line: str) -> bool:
    """Whether a line of standard error is one that TensorFlow's C++ part or absl logged."""
    return bool(_TALK.match(line))


_TALK = re.compile(
    r"WARNING: All log messages before absl::InitializeLog\(\) is called"
    r"|[IWE]\d{4} [\d:.]+ +\d+ \S+\.(cc|h):\d+\] "
    r"|\d{4}-\d\d-\d\d [\d:.]+: [IWE] \S+\.(cc|h):\d+\] "
    r"|(INFO|WARNING):absl:"
    r"|(INFO|WARNING):tensorflow:"
)


@contextlib.contextmanager
def held_standard_error(
    shown: Callable[[str, bool], bool], waiting_for: str = ""
) -> Iterator[None]:
    """Keep standard error for a command's own messages while something runs.

    TensorFlow writes to the file descriptor, before any of its settings counts. What was written is
    held until the end.

    Args:
        shown: of a line that was held and whether the end is an exception: whether it is shown.
        waiting_for: told on a terminal meanwhile.
    """
    import tempfile  # costs more than the rest of this module

    with tempfile.TemporaryFile() as said:
        try:
            sys.stderr.flush()
            own = os.dup(2)
        except (AttributeError, OSError):  # no standard error: nothing to keep clean
            yield
            return
        os.dup2(said.fileno(), 2)
        waiting = bool(waiting_for) and os.isatty(own)  # the line is gone afterwards
        if waiting:
            os.write(own, f"{waiting_for}\r".encode())
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            if waiting:
                os.write(own, b"\x1b[K")
            os.dup2(own, 2)
            os.close(own)
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines(keepends=True)
            sys.stderr.writelines(line for line in lines if shown(line, failed))


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _configured(environ: Mapping[str, str]) -> str:
    """The backend in Keras' configuration file; Keras writes TensorFlow there by default."""
    home = environ.get("KERAS_HOME")
    folder = Path(home).expanduser() if home else Path.home() / ".keras"
    try:
        content = json.loads((folder / "keras.json").read_text(encoding="utf-8"))
        return str(content.get("backend", "tensorflow"))
    except (OSError, ValueError, AttributeError):
        return "tensorflow"
