"""What several processes reach beside one: evaluation, memory of a worker, data-parallel training.

    python benchmarks/scaling.py --reach [--images 48] [--seconds 60] [--parts evaluate train ...]

Every figure is of fresh processes with one thread each, by the clock and by the processor's
seconds, with the load of the machine beside it: by the clock they mean something on a machine that
does nothing else. Side by side: one, two, one, two.

* ``evaluate``: the standard evaluation with ``jobs=1`` and ``jobs=2``: throughput, and the largest
  memory of a worker;
* ``overhead``: ``jobs=1`` beside no jobs, of the same parts, in processor's seconds;
* ``train``: images/s of ``dynzoo train --pilot`` in one process that is pinned to one core, and in
  two on a core each (``taskset``).
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

PARTS = ("evaluate", "overhead", "train")
PRESET, RECIPE = "isometric_small_cifar10", "isometric_tiny_cifar10"
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "NPROC": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}

# One evaluation in a process of its own: its seconds, and those and the memory of its workers.
_EVALUATE = """
import json, resource, sys, time
import numpy as np
import dynzoo
arguments = json.loads(sys.argv[1])
with np.load(arguments.pop("data")) as file:
    count = arguments.pop("images")
    x, y = file["x_test"][:count] / np.float32(255), file["y_test"][:count].ravel().astype(int)
model = dynzoo.from_preset(arguments.pop("preset"))
dynzoo.evaluate(model, x[:2], y[:2], attacks="fast")  # imports and compiles what all share
before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
report = dynzoo.evaluate(model, x, y, **arguments)
seconds = time.perf_counter() - began
own, others = resource.getrusage(resource.RUSAGE_SELF), None
from joblib.externals.loky import get_reusable_executor
if arguments.get("jobs", 1) > 1:
    get_reusable_executor().shutdown(wait=True)
others = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = own.ru_utime + own.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps({
    "seconds": seconds,
    "cpu_seconds": cpu + others.ru_utime + others.ru_stime,
    "own_mib": own.ru_maxrss / 1024,
    "worker_mib": others.ru_maxrss / 1024,
    "robust": list(report.robust.values()),
}))
"""


def evaluated(data: Path, images: int, **arguments) -> dict:
    """Seconds, processor's seconds and memory of one evaluation in a fresh process."""
    given = {"data": str(data), "images": images, "preset": PRESET, **arguments}
    command = [sys.executable, "-c", _EVALUATE, json.dumps(given)]
    done = subprocess.run(
        command, env={**os.environ, **_ENVIRONMENT}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def trained(data: Path, seconds: float, processes: int) -> float:
    """Images/s of a pilot, each process pinned to a core of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = []
    with tempfile.TemporaryDirectory() as output:
        for rank in range(processes):
            environment = {
                **os.environ,
                **_ENVIRONMENT,
                "RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
                "KERAS_DISTRIBUTION_NUM_PROCESSES": str(processes),
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
            }
            command = ["taskset", "-c", str(rank), sys.executable, "-m", "dynzoo", "train", RECIPE]
            command += ["--data", str(data), "--output", output, "--quiet", "--pilot", str(seconds)]
            running.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )  # fmt: skip
            )
        said = [process.communicate() for process in running]
    found = re.search(r"([\d,]+) images/s", said[0][0])
    if found is None:
        raise RuntimeError(said[0][1][-2000:])
    return float(found[1].replace(",", ""))


def reach(data: Path, images: int, seconds: float, parts: list[str]) -> dict:
    """All figures, each beside what it must reach."""
    result: dict = {"load_before": os.getloadavg(), "cores": os.cpu_count(), "images": images}
    if "evaluate" in parts:
        one, two = [], []
        for _ in range(2):
            one.append(evaluated(data, images, jobs=1))
            two.append(evaluated(data, images, jobs=2))
        if any(run["robust"] != one[0]["robust"] for run in [*one, *two]):
            raise RuntimeError("one process and two did not end with the same outcomes")
        seconds_of = [min(run["seconds"] for run in runs) for runs in (one, two)]
        cpu = [min(run["cpu_seconds"] for run in runs) for runs in (one, two)]
        result["evaluate"] = {
            "one": one,
            "two": two,
            "throughput_of_two": round(seconds_of[0] / seconds_of[1], 3),
            "throughput_of_two_by_cpu_seconds": round(2 * cpu[0] / cpu[1], 3),
            "must_reach": 1.8,
            "worker_gib": round(max(run["worker_mib"] for run in two) / 1024, 3),
            "worker_must_stay_below_gib": 1.2,
        }
    if "overhead" in parts:
        plain, jobs = [], []
        for _ in range(2):
            plain.append(evaluated(data, images, shards=4)["cpu_seconds"])
            jobs.append(evaluated(data, images, shards=4, jobs=1)["cpu_seconds"])
        result["overhead"] = {
            "cpu_seconds": {"no jobs": plain, "jobs=1": jobs},
            "share": round(min(jobs) / min(plain) - 1, 4),
            "must_stay_below": 0.02,
        }
    if "train" in parts:
        rates = [(trained(data, seconds, 1), trained(data, seconds, 2)) for _ in range(2)]
        one, two = (max(column) for column in zip(*rates, strict=True))
        result["train"] = {
            "images_per_second": {"one": one, "two": two},
            "throughput_of_two": round(two / one, 3),
            "must_reach": 1.7,
        }
    result["load_after"] = os.getloadavg()
    return result
