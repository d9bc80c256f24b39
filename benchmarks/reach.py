"""What several processes reach beside one: evaluation, memory of a worker, data-parallel training.

    python benchmarks/scaling.py --reach --data cifar10.npz [--images 200] [--seconds 60]
        [--rounds 2] [--parts evaluate memory overhead train]

Every figure is of fresh processes with one thread each, by the clock and by the processor's
seconds, with the load of the machine beside it: by the clock they mean something on a machine that
does nothing else. Side by side: one, two, one, two.

* ``evaluate``: the standard evaluation with ``jobs=1`` and ``jobs=2``; what a model of parts
  predicts of two, and of the whole test set on up to 256 workers: what is done here alone (clean
  accuracy, certificate, checks), and as many rounds of parts as there are for each worker;
* ``memory``: the largest memory of a worker with the small preset;
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
from statistics import median

from dynzoo.robustness.shards import default_shards
from dynzoo.training.update_shares import largest_share

PARTS = ("evaluate", "memory", "overhead", "train")
PRESET, RECIPE = "isometric_tiny_cifar10", "isometric_tiny_cifar10"
LARGER = "isometric_small_cifar10"
FEW = 50  # images where a figure does not depend on their number
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "NPROC": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}

# One evaluation in a process of its own: its seconds, and those and the memory of its workers.
_EVALUATE = """
import json, os, resource, sys, time
from pathlib import Path
import numpy as np
import dynzoo
arguments = json.loads(sys.argv[1])
with np.load(arguments.pop("data")) as file:
    count = arguments.pop("images")
    x, y = file["x_test"][:count] / np.float32(255), file["y_test"][:count].ravel().astype(int)
model = dynzoo.from_preset(arguments.pop("preset"))
if arguments.pop("short", False):  # as far as memory goes, a few steps are as good as many
    steps = {"steps": 2, "queries": 40}
    arguments["attacks"] = [
        type(one)(**{k: steps.get(k, v) for k, v in one.get_config().items()})
        for one in dynzoo.attacks.AutoAttack("l2", 0.5).members()
    ]
dynzoo.evaluate(model, x[:2], y[:2], attacks="fast")  # imports and compiles what all share
before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
report = dynzoo.evaluate(model, x, y, **arguments)
seconds = time.perf_counter() - began
own = resource.getrusage(resource.RUSAGE_SELF)
from joblib.externals.loky import get_reusable_executor
peaks = [0.0]
if arguments.get("jobs", 1) > 1:
    # of the workers, which still live: getrusage would begin at what this process had at a fork
    for status in Path("/proc").glob("[0-9]*/status"):
        lines = status.read_text().splitlines()
        said = dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
        if int(said["PPid"]) == os.getpid() and "VmHWM" in said:
            peaks.append(int(said["VmHWM"].split()[0]) / 1024)
    get_reusable_executor().shutdown(wait=True)
others = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = own.ru_utime + own.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps({
    "seconds": seconds,
    "cpu_seconds": cpu + others.ru_utime + others.ru_stime,
    "worker_mib": max(peaks),
    "robust": list(report.robust.values()),
}))
"""


def evaluated(data: Path, images: int, preset: str = PRESET, **arguments) -> dict:
    """Seconds, processor's seconds and memory of one evaluation in a fresh process."""
    given = {"data": str(data), "images": images, "preset": preset, **arguments}
    command = [sys.executable, "-c", _EVALUATE, json.dumps(given)]
    done = subprocess.run(
        command, env={**os.environ, **_ENVIRONMENT}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def workers(data: Path, image_seconds: float) -> dict[int, float]:
    """Hours that the whole test set takes on so many workers, in parts of 25 images."""
    whole = 10_000
    here = evaluated(data, whole, attacks="none")["seconds"]
    parts = whole // 25
    return {
        count: round((here + -(-parts // count) * 25 * image_seconds) / 3600, 3)
        for count in (1, 2, 4, 16, 64, 256)
    }


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
    divided = terms["update_seconds"] is not None  # on PyTorch; on JAX each repeats the update
    update, messages = terms["update_seconds"] or 0.0, 2 if divided else 1
    result = {"fixed_seconds": fixed, "update_seconds": update, "image_seconds": image}
    result |= {"largest_share_of_update": {}, "all_reduce_seconds": {}}
    rates = {}
    for count in processes:
        cores = min(count, os.cpu_count() or 1)
        link = reduced(terms["gradients_bytes"], count) if count > 1 else 0.0
        result["all_reduce_seconds"][count] = round(link, 4)
        share = largest_share(terms["shapes"], count) if divided else 1.0
        result["largest_share_of_update"][count] = round(share, 3)
        each = fixed - update + share * update
        rates[count] = round(
            batch / (count / cores * each + image * batch / cores + messages * link), 1
        )
    result["images_per_second"] = rates
    return result


def reach(data: Path, images: int, seconds: float, rounds: int, parts: list[str]) -> dict:
    """All figures, each beside what it must reach."""
    result: dict = {"load_before": os.getloadavg(), "cores": os.cpu_count()}
    for part in parts:
        if part == "evaluate":
            result[part] = reach_evaluate(data, images, rounds)
        elif part == "memory":
            worker = evaluated(data, FEW, LARGER, jobs=2, shards=2, short=True)["worker_mib"] / 1024
            result[part] = {"worker_gib": round(worker, 3), "must_stay_below_gib": 1.2}
        elif part == "overhead":
            result[part] = reach_overhead(data, rounds)
        else:
            result[part] = reach_train(data, seconds, rounds)
    result["load_after"] = os.getloadavg()
    return result


def reach_evaluate(data: Path, images: int, rounds: int) -> dict:
    one, two = [], []
    for _ in range(rounds):
        one.append(evaluated(data, images, jobs=1))
        two.append(evaluated(data, images, jobs=2))
    if any(run["robust"] != one[0]["robust"] for run in [*one, *two]):
        raise RuntimeError("one process and two did not end with the same outcomes")
    seconds_of = [min(run["seconds"] for run in runs) for runs in (one, two)]
    cpu = [min(run["cpu_seconds"] for run in runs) for runs in (one, two)]
    here = evaluated(data, images, attacks="none")["seconds"]
    shards = default_shards(images, 256)
    share = -(-shards // 2) / shards  # of the parts, for the one of two that has more
    return {
        "images": images,
        "one": one,
        "two": two,
        "throughput_of_two": round(seconds_of[0] / seconds_of[1], 3),
        "throughput_of_two_by_cpu_seconds": round(2 * cpu[0] / cpu[1], 3),
        "must_reach": 1.8,
        "seconds_without_attacks": here,
        "predicted_throughput_of_two": round(
            seconds_of[0] / (here + share * (seconds_of[0] - here)), 3
        ),
        "hours_of_workers": workers(data, (seconds_of[0] - here) / images),
    }


def reach_overhead(data: Path, rounds: int) -> dict:
    plain, jobs = [], []
    for _ in range(rounds):
        plain.append(evaluated(data, FEW, shards=4)["cpu_seconds"])
        jobs.append(evaluated(data, FEW, shards=4, jobs=1)["cpu_seconds"])
    return {
        "cpu_seconds": {"no jobs": plain, "jobs=1": jobs},
        "share": round(min(jobs) / min(plain) - 1, 4),
        "must_stay_below": 0.02,
    }


def reach_train(data: Path, seconds: float, rounds: int) -> dict:
    counts = (1, 2, 4)
    found = [[trained(data, seconds, count) for count in counts] for _ in range(rounds)]
    rates = dict(zip(counts, map(median, zip(*found, strict=True)), strict=True))
    return {
        "rounds": found,
        "images_per_second": rates,
        "throughput_of_two": round(median(two / one for one, two, _ in found), 3),
        "must_reach": 1.7,
        "predicted": predicted(counts),
    }
