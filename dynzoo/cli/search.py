"""`dynzoo search`: the space around a recipe, by this process or as one of many."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace

from dynzoo._startup import load_keras
from dynzoo.cli.console import log_line
from dynzoo.cli.options import FILE, positive
from dynzoo.data.sources import check_source
from dynzoo.training.recipe_files import find
from dynzoo.tuning import cluster
from dynzoo.utils import extras

NAME = "search"
HELP = "search the space around a recipe for its best network; can be killed and resumed"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--data", metavar="PATH", help=f"{FILE}, in place of the recipe's")
    parser.add_argument("--max-trials", type=positive, metavar="N", help="default: the config's")
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
        help="where the chief listens (default: 127.0.0.1:8470, this machine only); any address "
        "that other machines reach needs --tls",
    )
    many.add_argument(
        "--tls",
        metavar="DIR",
        help="folder with tls.crt, tls.key and ca.crt, by which chief and workers know each other "
        "(default: DYNZOO_SEARCH_TLS)",
    )
    many.add_argument(
        "--tls-name",
        metavar="NAME",
        help="whom the chief's certificate must be for (default: DYNZOO_SEARCH_TLS_NAME, else the "
        "host in --chief)",
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


def run(options: Namespace) -> None:
    extras.check("tuning")
    path = find(options.config, kind="search")
    if options.data is not None:
        check_source(options.data)
    cluster.check_times(options.timeout, options.wait)
    cluster.Member.of(options.role, options.chief, options.worker_id, options.tls, options.tls_name)
    # gRPC's log of handshakes that failed, beside the one line that says why
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    load_keras()
    from dynzoo.tuning.driver import search  # keras-tuner: wrong arguments do not pay for it

    search(
        path,
        data_file=options.data,
        output=options.output,
        resume=options.resume,
        max_trials=options.max_trials,
        role=options.role,
        chief=options.chief,
        worker_id=options.worker_id,
        tls=options.tls,
        tls_name=options.tls_name,
        timeout=options.timeout,
        wait=options.wait,
        log=log_line,
    )
