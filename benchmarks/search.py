"""Wall time of one search by one process, and by a chief with workers on the same machine.

    python benchmarks/search.py [CONFIG] [--max-trials 20] [--workers 3] [--kill]

Each search is the `dynzoo search` command in processes of its own, from their start to their end.
`--kill` kills a worker after a third of the trials: its trial must be run by another one. The
single process may use all cores, each of the others one thread. The network that the search finds
is compared with that of its first trial, the recipe as it stands, on the held-out images that the
search looks at and on the test set, which it does not. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras

import dynzoo
from dynzoo import tuning
from dynzoo.zoo import measurement as evaluation

THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
PORT = "127.0.0.1:8471"


def start(config, output, *arguments, threads=None):
    environment = dict(os.environ)
    if threads is not None:
        environment |= dict.fromkeys(THREADS, str(threads))
    command = [sys.executable, "-m", "dynzoo", "search", config, "--output", str(output)]
    return subprocess.Popen([*command, *arguments], env=environment, stdout=subprocess.DEVNULL)


def finished(output):
    return len(list(output.glob("trials/*/result.json")))


def alone(config, output, limit):
    began = time.monotonic()
    if start(config, output, *limit).wait() != 0:
        raise SystemExit("the search by one process failed")
    return time.monotonic() - began


def together(config, output, limit, args):
    began = time.monotonic()
    common = (*limit, "--chief", PORT)
    chief = start(config, output, *common, "--role", "chief", "--timeout", "20", threads=1)
    workers = [
        start(config, output, *common, "--role", "worker", "--worker-id", f"w{n}", threads=1)
        for n in range(args.workers)
    ]
    while args.kill and finished(output) < args.max_trials // 3:
        time.sleep(0.1)
    if args.kill:
        workers[0].kill()
    if chief.wait() != 0:
        raise SystemExit("the search by chief and workers failed")
    seconds = time.monotonic() - began
    for worker in workers:
        worker.wait()
    return seconds


def shares(folder, trial, test):
    """Of a trial, on held-out and on test images."""
    preset = next((folder / "trials" / trial["trial"]).glob("*/preset"))
    radius = tuning.SearchConfig.load(config_of(folder)).recipe["evaluation"]["eps"][0]
    measured = evaluation.measure(dynzoo.from_preset(preset), *test, eps=[radius], attacks="none")
    return {
        "held_out_certified": trial["certified"],
        "test_clean": measured.clean,
        "test_certified": measured.certified[radius],
        "parameters": trial["parameters"],
    }


def config_of(folder):
    known = json.loads((folder / "search.json").read_text(encoding="utf-8"))
    return {key: known[key] for key in ("recipe", "space", "search")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", nargs="?", default="digits")
    parser.add_argument("--max-trials", type=int, default=20)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kill", action="store_true", help="kill a worker half-way")
    parser.add_argument("--only", choices=("alone", "together"))
    args = parser.parse_args()
    limit = ("--max-trials", str(args.max_trials))
    plan = tuning.SearchConfig.load(args.config)
    result = {"backend": keras.backend.backend(), "trials": args.max_trials, "cores": cores()}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if args.only != "together":
            result["seconds_alone"] = round(alone(args.config, folder / "alone", limit), 1)
        if args.only != "alone":
            seconds = together(args.config, folder / "together", limit, args)
            result["seconds_together"] = round(seconds, 1)
        if args.only is None:
            result["speed_up"] = round(result["seconds_alone"] / result["seconds_together"], 2)
        for name in ("alone", "together"):
            output = folder / name
            if not output.exists():
                continue
            if finished(output) != args.max_trials:
                raise SystemExit(f"{name}: {finished(output)} of {args.max_trials} trials ended")
            trials = [
                tuning.records.read_record(path.parent)
                for path in sorted(output.glob("trials/*/result.json"))
            ]
            search = tuning.SearchResult(output, plan.objective, trials)
            test = dynzoo.data.load(plan.recipe["data"]["name"])[1]
            result[name] = {
                "first": shares(output, search.trials[0], test),
                "best": shares(output, search.best, test),
            }
    print(json.dumps(result))


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


if __name__ == "__main__":
    main()
