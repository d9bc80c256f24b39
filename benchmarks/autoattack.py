"""The standard ensemble against the one of pyautoattack: robust accuracy and wall time.

    pip install --no-deps pyautoattack==0.2.0
    python benchmarks/autoattack.py [--model PRESET] [--norm l2|linf] [--eps E]
        [--alone] [--certified all|first]

Attacks the first CIFAR-10 test images in two processes: ours on the backend that
`KERAS_BACKEND` names, theirs on PyTorch. Each member runs on the images that resisted the members
before it, or, with `--alone`, on all. With `--certified first` images that are certified at the
radius are tried by the first member of either side only, as `dynzoo.evaluate` does: they resist by
proof, which that member puts to the test. CPU seconds are those of the process, which other work on
the machine disturbs less than the clock's. The preset `resnet_cifar10` is a network without
constraints. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NAMES = ("apgd-ce", "apgd-t", "fab-t", "square")
PRESET = "isometric_tiny_cifar10"


def network(args):
    """The model, and the images and labels to attack."""
    import dynzoo

    name = args.data or "cifar10"
    _, (x, y) = dynzoo.data.load(name)
    return dynzoo.from_preset(args.model), x[: args.images], y[: args.images]


def ours(args, model, x, y):
    """(name, function `(x, y, indices) -> still right`) of each member."""
    from dynzoo.attacks import AutoAttack
    from dynzoo.inference.passes import predict_logits

    ensemble = AutoAttack(args.norm, args.eps, batch_size=args.batch_size)

    def run(member, rows):
        points = member(model, x[rows], y[rows], indices=rows)
        return predict_logits(model, points, args.batch_size).argmax(axis=1) == y[rows]

    for name, member in zip(NAMES, ensemble.members(), strict=True):
        short = {"steps": args.steps, "queries": args.queries}
        config = member.get_config()
        config |= {key: value for key, value in short.items() if key in config and value}
        attack = type(member)(**config)
        yield name, lambda rows, attack=attack: run(attack, rows)


def theirs(args, model, x, y):
    """The same of pyautoattack; its images are channels first."""
    import pyautoattack
    import torch

    class ChannelsFirst(torch.nn.Module):
        def forward(self, images):
            return model(images.permute(0, 2, 3, 1), training=False)

    images = torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    labels = torch.tensor(y.astype("int64"))
    wrapped = ChannelsFirst()

    def run(name, rows):
        norm = {"l2": "L2", "linf": "Linf"}[args.norm]
        ensemble = pyautoattack.AutoAttack(wrapped, eps=args.eps, norm=norm, seed=0)
        ensemble.attacks_to_run = [name]
        for attack in (ensemble.apgd, ensemble.apgd_targeted):
            if args.steps:
                attack.n_iter = attack.n_iter_orig = args.steps
                attack.n_iter_2 = max(int(0.22 * args.steps), 1)
                attack.n_iter_min = max(int(0.06 * args.steps), 1)
                attack.size_decr = max(int(0.03 * args.steps), 1)
        if args.steps:
            ensemble.fab.n_iter = args.steps
        if args.queries:
            ensemble.square.n_queries = args.queries
        points, _ = ensemble.run_standard_evaluation(
            images[rows], labels[rows], batch_size=args.batch_size
        )
        with torch.no_grad():
            parts = [wrapped(part).argmax(1) for part in points.split(args.batch_size)]
        return torch.cat(parts).numpy() == y[rows]

    for name in NAMES:
        yield name, lambda rows, name=name: run(name, rows)


def proved(args, model, x, y):
    """Which images are certified at the radius."""
    import dynzoo

    labels, radii = dynzoo.certify(model).radii(x, args.batch_size)
    factor = np.sqrt(x[0].size) if args.norm == "linf" else 1.0
    return (labels == y) & (radii > args.eps * factor)


def worker(args):
    from dynzoo.inference.passes import predict_logits

    model, x, y = network(args)
    alive = predict_logits(model, x, args.batch_size).argmax(axis=1) == y
    spared = proved(args, model, x, y) if args.certified == "first" else np.zeros(len(x), bool)
    result = {"clean": float(alive.mean()), "certified": float(spared.mean())}
    for name, attack in {"ours": ours, "theirs": theirs}[args.worker](args, model, x, y):
        tried = alive & ~spared if name != NAMES[0] else alive
        rows = np.flatnonzero(tried)
        start = np.array([time.perf_counter(), time.process_time()])
        right = attack(rows) if rows.size else np.zeros(0, bool)
        wall, cpu = (np.array([time.perf_counter(), time.process_time()]) - start).round(2).tolist()
        fallen = rows[~right]
        if spared[fallen].any():
            raise AssertionError(f"{name} broke certified images: {fallen[spared[fallen]]}")
        if not args.alone:
            alive[fallen] = False
        robust = float((right.sum() + (alive & ~tried).sum()) / len(x))
        result[name] = {"robust": robust, "seconds": wall, "cpu_seconds": cpu}
        print(f"{args.worker:<6} {name:<8} {result[name]}", flush=True)
    args.result.write_text(json.dumps(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=PRESET, help="preset, or its folder")
    parser.add_argument("--data", help="npz file in place of the preset's data set")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--norm", choices=("l2", "linf"), default="l2")
    parser.add_argument("--eps", type=float, default=0.5)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--steps", type=int, help="in place of 100, for a trial")
    parser.add_argument("--queries", type=int, help="in place of 5000, for a trial")
    parser.add_argument("--alone", action="store_true", help="each member on all images")
    parser.add_argument(
        "--certified", choices=("all", "first"), default="all", help="members that try them"
    )
    parser.add_argument("--worker", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in ("ours", "theirs"):
            target = Path(folder) / f"{side}.json"
            environment = {**os.environ, "KERAS_BACKEND": "torch"} if side == "theirs" else None
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", side]
            subprocess.run([*command, "--result", str(target)], env=environment, check=True)
            results[side] = json.loads(target.read_text())
    ratios = {
        kind: sum(results["ours"][n][kind] for n in NAMES)
        / sum(results["theirs"][n][kind] for n in NAMES)
        for kind in ("seconds", "cpu_seconds")
    }
    points = {
        n: 100 * (results["ours"][n]["robust"] - results["theirs"][n]["robust"]) for n in NAMES
    }
    settings = {k: v for k, v in vars(args).items() if k not in ("worker", "result")}
    summary = {"settings": settings, **results, "difference_points": points, "time_ratios": ratios}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
