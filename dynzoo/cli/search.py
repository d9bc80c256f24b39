"""`dynzoo search`: the space around a recipe, by this process or as one of many."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from dynzoo.cli.console import log_line


def add_search_arguments(parser: ArgumentParser) -> None:
    """What only this command takes."""
    parser.add_argument(
        "config", metavar="CONFIG", help="a YAML file, or the name of one in zoo_configs/search/"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder of the search; default runs/<recipe's name>_search"
    )
    parser.add_argument("--resume", action="store_true", help="go on where the search stopped")
    many = parser.add_argument_group(
        "many processes or machines",
        "one chief and any number of workers: the same command but for these, and one output "
        "folder that all see",
    )
    many.add_argument(
        "--role",
        choices=("chief", "worker"),
        help="default: what keras-tuner's environment variables (KERASTUNER_ORACLE_IP, ...) say, "
        "and without them a search by this process alone",
    )
    many.add_argument(
        "--chief",
        metavar="HOST:PORT",
        help="where the chief listens (default: 127.0.0.1:8470, this machine only). Whoever "
        "reaches it can take part, without password or encryption: for trusted networks only",
    )
    many.add_argument(
        "--worker-id", metavar="ID", help="unlike all others; default: host and process number"
    )
    many.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="the trial of a worker that is silent for so long is given to another one (workers "
        "are heard every 5 s); a worker gives up a chief that is (default: 60)",
    )
    many.add_argument(
        "--wait",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="a chief without any worker for so long gives up; it can be resumed (default: 600)",
    )


def search(arguments: Namespace) -> None:
    from dynzoo import tuning  # keras-tuner: only once it is needed

    tuning.search(
        arguments.config,
        data_file=arguments.data,
        output=arguments.output,
        resume=arguments.resume,
        max_trials=arguments.max_trials,
        role=arguments.role,
        chief=arguments.chief,
        worker_id=arguments.worker_id,
        timeout=arguments.timeout,
        wait=arguments.wait,
        log=log_line,
    )
