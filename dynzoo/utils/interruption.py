"""Ctrl-C ends a command wherever it is: a line that says what was kept, and exit code 130.

Python raises ``KeyboardInterrupt`` in whatever its main thread runs next. That may be a callback of
native code, which cannot carry an exception: JAX crashes on it while it compiles, other places
drop it and go on. So a command raises nothing of the kind. A thread hears of the signal while the
main one is in native code too, waits for files that are half written, says the line, and ends the
process. Where a training has steps that no file has yet, it gets the time to write them.

Outside the command (``install`` was not called) nothing here changes what Python does.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

__all__ = [
    "asked",
    "begin",
    "command",
    "end",
    "hold",
    "install",
    "keeps",
    "line",
    "over",
    "release",
    "scratch",
    "training",
    "writing",
]

EXIT_CODE = 130
_PATIENCE = 60.0  # seconds for a training to write the steps that it has taken
_NOTICE = 2.0  # seconds of that after which a second line says what is waited for
_FILES = 30.0  # seconds for a file that is half written


class _State:
    """What the command of this process is doing; one a process, as there is one Ctrl-C."""

    def __init__(self) -> None:
        self.arguments: list[str] = sys.argv[1:]
        self.kept: Callable[[], str] | None = None
        self.asked = threading.Event()
        self.files = threading.RLock()  # held while a file is half written
        self.ending = threading.Lock()  # taken once, by who ends the process
        self.scratch: list[Path] = []
        self.held = False
        self.over = False
        self.receiver: socket.socket | None = None
        self.sender: socket.socket | None = None
        self.stderr: int | None = None


_state = _State()


def install() -> None:
    """Takes Ctrl-C over from Python, for the command alone; nothing where it is ignored.

    A process that the shell put into the background, or ``nohup`` started, ignores it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    if threading.current_thread() is not threading.main_thread():
        return
    try:
        # Its own: while Keras is imported, standard error is put aside.
        _state.stderr = os.dup(2)
    except OSError:
        _state.stderr = None
    _state.receiver, _state.sender = socket.socketpair()
    _state.sender.setblocking(False)
    threading.Thread(target=_listen, name="dynzoo-interrupt", daemon=True).start()
    # Written to by the signal itself, not by Python code that would wait for the main thread.
    signal.set_wakeup_fd(_state.sender.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _nothing)


def begin(arguments: Sequence[str]) -> None:
    """A command begins, and has kept nothing yet.

    Args:
        arguments: those of the command, without the name of the program.
    """
    _state.arguments = list(arguments)
    _state.kept, _state.held = None, False


def over() -> None:
    """The command is done: Ctrl-C does nothing to what is left of its process."""
    if _state.receiver is not None:
        _state.over = True


def keeps(kept: Callable[[], str]) -> None:
    """What to say after ``interrupted; ``: what was kept, and the command that goes on.

    The first that says so in a command is heard: a search, not the training in its trial.

    Args:
        kept: called when it is said, in another thread; empty where nothing is kept.
    """
    _state.kept = _state.kept or kept


def command(*more: str) -> str:
    """The present command, with options that it may lack.

    Example:

    >>> command("--resume")
    'dynzoo train digits --resume'
    """
    arguments = [*_state.arguments, *(o for o in more if o not in _state.arguments)]
    return shlex.join(["dynzoo", *arguments])


def line() -> str:
    """What is said of an interruption."""
    try:
        kept = _state.kept() if _state.kept else ""
    except Exception:  # of a file that is looked at: the line must be said
        kept = ""
    return f"interrupted; {kept or f'nothing new was kept, start again: {command()}'}"


def asked() -> bool:
    """Whether Ctrl-C was pressed; who ``hold``s looks here after every step."""
    return _state.asked.is_set()


def hold() -> None:
    """There are steps that no file has: the process ends when they are kept, or in a minute."""
    _state.held = True


def release() -> None:
    """All steps are in a file."""
    _state.held = False


@contextlib.contextmanager
def training() -> Iterator[None]:
    """Steps are taken within this block, which ``hold``s; what is not kept at its end never is."""
    try:
        yield
    finally:
        release()


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """The process does not end within this block, which leaves files half written."""
    with _state.files:
        yield


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[None]:
    """Makes a folder, and removes what is left of it however the block ends, Ctrl-C included."""
    _state.scratch.append(folder)
    try:
        folder.mkdir()
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _state.scratch.remove(folder)


def end() -> None:
    """Says the line and, where Ctrl-C was taken over, ends the process; else it returns."""
    if not _state.ending.acquire(blocking=False):
        time.sleep(_FILES)  # the other thread is ending it
    for path in list(_state.scratch):
        shutil.rmtree(path, ignore_errors=True)
    if _state.receiver is None:
        print(f"dynzoo: {line()}", file=sys.stderr)
        _state.ending.release()
        return
    _flush()
    _say(line())
    os._exit(EXIT_CODE)  # no clean-up of native code, which may be amid something


def _nothing(signum: int, frame: object) -> None:
    """In place of Python's own, which would raise."""


def _listen() -> None:
    while not _pressed(None):
        pass
    _state.asked.set()
    began, noticed = time.monotonic(), False
    while _state.held and time.monotonic() - began < _PATIENCE:
        if _pressed(0.05):
            break
        if not noticed and time.monotonic() - began > _NOTICE:
            noticed = True
            _say("stopping as soon as the last steps are kept (Ctrl-C again: at once)")
    began = time.monotonic()
    while not (mine := _state.files.acquire(timeout=0.05)):
        if _pressed(0.0) or time.monotonic() - began > _FILES:
            break
    if not _state.over:
        end()
    elif mine:
        _state.files.release()


def _pressed(seconds: float | None) -> bool:
    """Whether Ctrl-C comes within so many seconds; ``None``: waits for it."""
    assert _state.receiver is not None
    if not select.select([_state.receiver], [], [], seconds)[0]:
        return False
    # the numbers of all signals that Python handles, not of this one alone
    return signal.SIGINT in _state.receiver.recv(64) and not _state.over


def _flush() -> None:
    """What was printed before; in a thread, for a pipe that nobody reads would hold it up."""

    def flush() -> None:
        with contextlib.suppress(Exception):
            if sys.stdout.isatty():
                # after a progress bar, which leaves its line open and may hide the cursor
                sys.stdout.write("\x1b[?25h\n")
            sys.stdout.flush()

    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    thread.join(timeout=1.0)


def _say(text: str) -> None:
    if _state.stderr is not None:
        with contextlib.suppress(OSError):
            os.write(_state.stderr, f"dynzoo: {text}\n".encode())
