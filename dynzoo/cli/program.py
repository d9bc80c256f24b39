"""The `dynzoo` command: its arguments, its exit codes, and errors as one line.

Exit codes: 0 done, 1 a certificate was refuted, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import keras

import dynzoo
from dynzoo._startup import BACKENDS
from dynzoo.cli.export import add_export_arguments
from dynzoo.cli.options import positive, radii
from dynzoo.cli.predict import add_predict_arguments
from dynzoo.cli.search import add_search_arguments
from dynzoo.cli.train import add_train_arguments
from dynzoo.utils import interruption

__all__ = ["main"]


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
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:  # --help, --version, or wrong arguments: all is said
        return int(stop.code or 0)
    try:
        _check_backend(arguments.backend)
        arguments.run(arguments)
    except KeyboardInterrupt:
        interruption.end()
        return interruption.EXIT_CODE
    except Exception as error:
        code = _code(error)
        if arguments.traceback or code is None:
            raise
        print(f"dynzoo: error: {_one_line(error)}", file=sys.stderr)
        return code
    finally:
        interruption.over()
    return 0


def _code(error: Exception) -> int | None:
    """Exit code of an error that the user can do something about; `None` for any other."""
    from dynzoo.certificates.audit import AuditViolation
    from dynzoo.robustness.evaluation import CertificateViolation
    from dynzoo.training.distribution import ReplicasDivergedError
    from dynzoo.training.loop import TrainingDivergedError

    if isinstance(error, (AuditViolation, CertificateViolation)):
        return 1
    known = (ValueError, OSError, TrainingDivergedError, ReplicasDivergedError)
    return 2 if isinstance(error, known) else None


def _one_line(message: Any) -> str:
    return " ".join(str(message).split())


def _check_backend(asked: str | None) -> None:
    running = keras.backend.backend()
    if asked is not None and asked != running:
        raise ValueError(
            f"Keras runs on {running}, not on {asked}: is {asked} installed? "
            f"(pip install 'dynzoo[{asked}]')"
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dynzoo",
        description="Image models made of dynamical systems, with proved robustness, on Keras 3.",
        epilog="`dynzoo COMMAND --help` says more. Start with `dynzoo demo`.",
    )
    parser.add_argument("--version", action="version", version=f"dynzoo {dynzoo.__version__}")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="backend of Keras, in place of the environment variable KERAS_BACKEND",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error arose, not only its message"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _list(commands)
    _info(commands)
    _demo(commands)
    _predict(commands)
    _evaluate(commands)
    _compare(commands)
    _finetune(commands)
    _train(commands)
    _search(commands)
    _export(commands)
    return parser


def _command(commands: Any, name: str, function: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")

    def run(arguments: argparse.Namespace) -> None:
        from dynzoo.cli import commands as module  # rich and the models: only once they are needed

        getattr(module, function)(arguments)

    parser.set_defaults(run=run)
    return parser


_PRESET = "name of a preset (see `dynzoo list`) or a folder with one"
_FILE = (
    "data as an .npz file with the keys x_train, y_train, x_test, y_test, or a folder of images "
    "with a subfolder a class (or `train` and `test` with one each)"
)
_NAME = "cifar10, cifar100, mnist or digits"


def _list(commands: Any) -> None:
    parser = _command(commands, "list", "list_presets", "list the presets that come with dynzoo")
    parser.add_argument(
        "--leaderboard", action="store_true", help="all numbers, beside published models"
    )
    parser.add_argument("--dataset", metavar="NAME", help="of the leaderboard; default: all")
    parser.add_argument("--output", metavar="FILE", help="write the leaderboard: .md or .csv")


def _info(commands: Any) -> None:
    parser = _command(commands, "info", "info", "say what is known of a preset")
    parser.add_argument("preset", metavar="PRESET", help=_PRESET)


def _demo(commands: Any) -> None:
    text = "fine-tune a pretrained model on handwritten digits, certify it, attack it, and report"
    parser = _command(commands, "demo", "demo", text)
    parser.add_argument("--output", default=".", metavar="DIR", help="where report.html goes")
    parser.add_argument("--seed", type=int, default=0)


def _predict(commands: Any) -> None:
    text = "say what is on pictures, by how much, and how far that is proved to hold"
    parser = _command(commands, "predict", "predict", text)
    parser.add_argument("preset", metavar="PRESET", help=_PRESET)
    add_predict_arguments(parser)


def _evaluate(commands: Any) -> None:
    text = "measure clean, certified and attacked accuracy of a preset on its own test set"
    parser = _command(commands, "evaluate", "evaluate", text)
    parser.add_argument("preset", metavar="PRESET", help=_PRESET)
    parser.add_argument("--data", metavar="PATH", help=_FILE)
    parser.add_argument("--dataset", metavar="NAME", help=f"another data set: {_NAME}")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N images only")
    parser.add_argument("--norm", choices=("l2", "linf"), help="default: the preset's, else l2")
    parser.add_argument(
        "--eps",
        type=radii,
        metavar="RADII",
        help="radii for pixels in [0, 1], such as 36/255,72/255; default: the preset's",
    )
    parser.add_argument(
        "--attacks",
        type=lambda text: text.split(","),
        default=["standard"],
        metavar="NAMES",
        help="standard: AutoAttack (long on a CPU: see --checkpoint); fast: one run of PGD; "
        "none; or names such as pgd_margin or apgd-t,square (default: standard)",
    )
    parser.add_argument(
        "--attack-limit",
        type=positive,
        default=1000,
        metavar="N",
        help="attack the first N images (default: 1000); all are certified",
    )
    parser.add_argument(
        "--attack-certified",
        choices=("first", "all", "none"),
        default="first",
        help="attacks that try images which are certified at a radius (default: the first)",
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="an .npz file from which a stopped run goes on"
    )
    parser.add_argument(
        "--audit", action="store_true", help="try to refute the Lipschitz bound by a steep slope"
    )
    parser.add_argument(
        "--corruptions", action="store_true", help="measure fifteen corruptions as well"
    )
    parser.add_argument(
        "--prediction-sets",
        type=float,
        metavar="ALPHA",
        help="sets of labels that hold the right one, under attack, with probability 1 - ALPHA: "
        "half of the images of the report calibrate, the other half is measured",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write the report: .html, .json, or each attack's outcomes as .csv or .npz",
    )
    parser.add_argument("--batch-size", type=positive, default=256, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="seed of the attacks")
    parser.add_argument(
        "--update-card",
        action="store_true",
        help="put the numbers into the preset's metadata.json and README.md",
    )
    parser.add_argument(
        "--keep-attacks",
        action="store_true",
        help="with --update-card and --attacks none: leave the attacks' numbers on the card",
    )


def _compare(commands: Any) -> None:
    text = "put reports that `dynzoo evaluate --output` saved as JSON side by side"
    parser = _command(commands, "compare", "compare_reports", text)
    parser.add_argument("reports", nargs="+", metavar="REPORT.json", help="reports to compare")
    parser.add_argument(
        "--names",
        type=lambda text: text.split(","),
        metavar="NAMES",
        help="names of the models, by commas; default: those of the files",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="write the comparison: .html, .json or .csv"
    )


def _finetune(commands: Any) -> None:
    text = "fit a preset to other data and save it as a preset of its own"
    parser = _command(commands, "finetune", "finetune", text)
    parser.add_argument("preset", metavar="PRESET", help=_PRESET)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="PATH", help=_FILE)
    source.add_argument("--dataset", metavar="NAME", help=_NAME)
    parser.add_argument(
        "--num-classes",
        default="auto",
        metavar="N",
        help="default: as many as the labels have; with the preset's own number its head is kept",
    )
    parser.add_argument("--epochs", type=positive, default=10, metavar="N")
    parser.add_argument("--learning-rate", type=float, default=0.02, metavar="RATE")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N")
    parser.add_argument("--freeze-body", action="store_true", help="train the last layer only")
    parser.add_argument(
        "--crop-padding",
        type=int,
        default=0,
        metavar="N",
        help="shift training images at random, up to N pixels each way (default: 0)",
    )
    parser.add_argument("--flip", action="store_true", help="mirror half of the training images")
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="the first N training and test images only"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", metavar="FOLDER", help="the new preset; default runs/PRESET_DATA"
    )


def _train(commands: Any) -> None:
    text = "train a preset from its recipe; can be stopped at any time and resumed"
    parser = _command(commands, "train", "train", text)
    parser.add_argument("--data", metavar="PATH", help=f"{_FILE}, in place of the recipe's")
    add_train_arguments(parser)


def _search(commands: Any) -> None:
    text = "search the space around a recipe for its best network; can be killed and resumed"
    parser = _command(commands, "search", "search", text)
    parser.add_argument("--data", metavar="PATH", help=f"{_FILE}, in place of the recipe's")
    parser.add_argument("--max-trials", type=positive, metavar="N", help="default: the config's")
    add_search_arguments(parser)


def _export(commands: Any) -> None:
    text = "write a preset as a graph for another runtime, with its certificate beside it"
    parser = _command(commands, "export", "export", text)
    parser.add_argument("preset", metavar="PRESET", help=_PRESET)
    add_export_arguments(parser)
    parser.add_argument("--data", metavar="PATH", help=f"{_FILE}: images for the check")


if __name__ == "__main__":
    sys.exit(main())
