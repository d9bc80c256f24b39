"""The `dynzoo` command: its arguments, its exit codes, and errors as one line.

Exit codes: 0 done, 1 a certificate was refuted, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

from dynzoo._startup import BACKENDS, COMMAND, backend_name
from dynzoo.cli import (
    compare,
    completion,
    demo,
    evaluate,
    export,
    finetune,
    import_network,
    info,
    list_presets,
    merge,
    predict,
    search,
    train,
)
from dynzoo.utils import interruption
from dynzoo.utils.extras import MissingExtraError
from dynzoo.utils.version import version

__all__ = ["COMMANDS", "Command", "main"]


class Command(Protocol):
    """A module of this folder: what stands after `dynzoo`.

    Its imports at the top need no Keras, and `run` checks all that can be checked without, before
    it calls `dynzoo._startup.load_keras`.
    """

    NAME: str
    HELP: str  # lower case, without a full stop

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None: ...

    def run(self, options: argparse.Namespace, /) -> None: ...


# In the order of `dynzoo --help`.
_MODULES: tuple[Command, ...] = (
    list_presets,
    info,
    demo,
    predict,
    evaluate,
    merge,
    compare,
    finetune,
    train,
    search,
    import_network,
    export,
)
COMMANDS = {command.NAME: command for command in _MODULES}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {_one_line(message)} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    Args:
        argv: arguments, without the name of the program; default those of the process.

    Example:

    >>> main(["list"])
    0
    """
    interruption.begin(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:  # --help, --version, or wrong arguments: all is said
        return int(stop.code or 0)
    try:
        _check_backend(options.backend)
        options.run(options)
    except KeyboardInterrupt:
        interruption.end()
        return interruption.EXIT_CODE
    except Exception as error:
        code = _code(error)
        if options.traceback or code is None:
            raise
        print(f"dynzoo: error: {_one_line(error)}", file=sys.stderr)
        _leave_at_once(error, code)
        return code
    finally:
        interruption.over()
    return 0


def _code(error: Exception) -> int | None:
    """Exit code of an error that the user can do something about; `None` for any other."""
    if isinstance(error, (ValueError, OSError, MissingExtraError)):
        return 2
    if "keras" not in sys.modules:
        return None  # whose absence is perhaps the error; the kinds below come from what needs it
    from dynzoo.certificates.audit import AuditViolation
    from dynzoo.robustness.evaluation import CertificateViolation
    from dynzoo.training.distribution import ReplicasDivergedError
    from dynzoo.training.loop import TrainingDivergedError
    from dynzoo.training.processes import ProcessLostError

    if isinstance(error, (AuditViolation, CertificateViolation)):
        return 1
    told = (TrainingDivergedError, ReplicasDivergedError, ProcessLostError)
    return 2 if isinstance(error, told) else None


def _leave_at_once(error: Exception, code: int) -> None:
    """Where other processes are waited for at the end which are gone."""
    if COMMAND and "keras" in sys.modules:
        from dynzoo.training.processes import ProcessLostError, leave

        if isinstance(error, ProcessLostError):
            leave(code)


def _one_line(message: Any) -> str:
    return " ".join(str(message).split())


def _check_backend(asked: str | None) -> None:
    running = backend_name()
    if asked is not None and asked != running:
        raise ValueError(
            f"Keras runs on {running}, not on {asked}: is {asked} installed? "
            f"(pip install 'dynzoo[{asked}]')"
        )


class _Version(argparse.Action):
    """`--version`, which looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"dynzoo {version()}")
        parser.exit()


class _PrintCompletion(argparse.Action):
    """`--print-completion SHELL`, which imports what it needs only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, *__: Any) -> NoReturn:
        try:
            print(completion.script(parser, shell))
        except MissingExtraError as error:
            parser.error(str(error))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dynzoo",
        description="Image models made of dynamical systems, with proved robustness, on Keras 3.",
        epilog="`dynzoo COMMAND --help` says more. Start with `dynzoo demo`.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show program's version number and exit"
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="backend of Keras, in place of the environment variable KERAS_BACKEND",
    )
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=completion.SHELLS,
        metavar="SHELL",
        help=f"write what completes this command in a shell: {', '.join(completion.SHELLS)}",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error arose, not only its message"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        text = command.HELP
        part = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_arguments(part)
        part.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
