"""What several processes reach beside one: evaluation, memory of a worker, data-parallel training.

    python benchmarks/scaling.py --reach [--images 48] [--seconds 60] [--parts evaluate train ...]

Every figure is of fresh processes with one thread each, by the clock and by the processor's
seconds, with the load of the machine beside it: by the clock they mean something on a machine that
does nothing else. Side by side: one, two, one, two.

* ``evaluate``: the standard evaluation with ``jobs=1`` and ``jobs=2``: throughput, and the largest
  memory of a worker;
* ``overhead``: ``jobs=1`` beside no jobs, of the same parts, in processor's seconds;
* ``train``: images/s of ``dynzoo train --pilot`` in one process that is pinned to one core, in two
  on a core each, in four on two cores (``taskset``), beside what the model of a step predicts from
  one process's steps at several batch sizes: n processes on k cores take n / k times what each
  repeats, B / k images, and the all-reduce of the gradients.
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


def pinned(core: int, *command: str, **environment: str) -> subprocess.Popen[str]:
    """A Python process with one thread on one core."""
    return subprocess.Popen(
        ["taskset", "-c", str(core), sys.executable, *command],
        env={**os.environ, **_ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def addresses(rank: int, processes: int, port: str) -> dict[str, str]:
    """What tells a process which others there are, on either backend."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
        "KERAS_DISTRIBUTION_NUM_PROCESSES": str(processes),
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
    }


def outputs(running: list[subprocess.Popen[str]]) -> list[str]:
    """What each said, all of which must succeed."""
    said = [process.communicate() for process in running]
    for process, (_, complaint) in zip(running, said, strict=True):
        if process.returncode:
            raise RuntimeError(complaint[-2000:])
    return [out for out, _ in said]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def trained(data: Path, seconds: float, processes: int) -> float:
    """Images/s of a pilot, the processes pinned to cores in turn."""
    port, cores = free_port(), os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as output:
        command = ["-m", "dynzoo", "train", RECIPE, "--data", str(data), "--output", output]
        command += ["--quiet", "--pilot", str(seconds)]
        running = [
            pinned(rank % cores, *command, **addresses(rank, processes, port))
            for rank in range(processes)
        ]
        said = outputs(running)
    found = re.search(r"([\d,]+) images/s", said[0])
    if found is None:
        raise RuntimeError(said[0][-2000:])
    return float(found[1].replace(",", ""))


# The seconds in which processes add up as many bytes as the gradients have.
_REDUCE = """
import sys, time
import numpy as np
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
values = torch.zeros(int(sys.argv[1]) // 4)
seconds = []
for _ in range(12):
    dist.barrier()
    began = time.perf_counter()
    dist.all_reduce(values)
    seconds.append(time.perf_counter() - began)
print(np.median(seconds[2:]))
dist.destroy_process_group()
"""


def reduced(size: int, processes: int) -> float:
    """Seconds of an all-reduce by gloo over loopback, the processes pinned to cores in turn."""
    port, cores = free_port(), os.cpu_count() or 1
    command = ["-c", _REDUCE, str(size)]
    ranks = range(processes)
    return float(
        outputs([pinned(r % cores, *command, **addresses(r, processes, port)) for r in ranks])[0]
    )


def predicted(processes: tuple[int, ...]) -> dict:
    """Images/s by the model of a step, from steps of one process on one core."""
    script = str(Path(__file__).with_name("scaling.py"))
    sizes = ["--batch-sizes", "32", "64", "128", "256"]
    said = outputs([pinned(0, script, "--recipe", RECIPE, *sizes)])[0]
    terms = json.loads(said.splitlines()[-1])
    fixed, image, batch = terms["fixed_seconds"], terms["image_seconds"], 256
    result = {"fixed_seconds": fixed, "image_seconds": image, "all_reduce_seconds": {}}
    rates = {}
    for count in processes:
        cores = min(count, os.cpu_count() or 1)
        link = reduced(terms["gradients_bytes"], count) if count > 1 else 0.0
        result["all_reduce_seconds"][count] = round(link, 4)
        rates[count] = round(batch / (count / cores * fixed + image * batch / cores + link), 1)
    result["images_per_second"] = rates
    return result


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
        counts = (1, 2, 4)
        rounds = [[trained(data, seconds, count) for count in counts] for _ in range(2)]
        rates = dict(zip(counts, map(max, zip(*rounds, strict=True)), strict=True))
        result["train"] = {
            "images_per_second": rates,
            "throughput_of_two": round(rates[2] / rates[1], 3),
            "must_reach": 1.7,
            "predicted": predicted(counts),
        }
    result["load_after"] = os.getloadavg()
    return result
