"""Tries to refute certificates of random graphs over every layer and operation with a rule.

    KERAS_BACKEND=torch python benchmarks/fuzz.py [--graphs N] [--start SEED] [--seconds S]
        [--dtypes float32 float64] [--output FILE.json]

Each seed is one graph for each dtype (float64 on JAX needs JAX_ENABLE_X64=1): steep pairs of
points, attacks of the certified size, and rounding (tests/certificate_attacks.py). The exit code is
1 if any certificate is refuted. The last line is JSON.
"""

import argparse
import collections
import json
import re
import sys
import time
import traceback
from pathlib import Path

import keras

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from certificate_attacks import Outcome, examine
from random_graphs import RANDOM, random_graph

from dynzoo.training import run as runs
from dynzoo.utils.files import write_atomically


def reason(text: str) -> str:
    """A refusal without names and numbers, so that equal ones are counted together."""
    text = re.sub(r"'[^']*'", "'..'", text.partition("Replace the layer")[0])
    return re.sub(r"[-+]?\d[\d.e+-]*", "#", text)[:160]


def run(seed: int, dtype: str) -> Outcome:
    """One graph; an exception of another kind than a refusal is a violation as well."""
    try:
        model, distribution = random_graph(seed, dtype)
        return examine(model, seed, distribution in RANDOM)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return Outcome(violations=[text[:500]])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--graphs", type=int, default=100)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--output", help="also write the result to this JSON file")
    args = parser.parse_args()

    start, refusals, violations = time.perf_counter(), collections.Counter(), []
    largest = dict.fromkeys(("slope", "pair", "worst", "probable"), 0.0)
    largest |= dict.fromkeys(f"{key}_seed" for key in largest)
    graphs = attacked = 0
    for i in range(args.graphs):
        if time.perf_counter() - start > args.seconds:
            break
        seed, dtype = args.start + i, args.dtypes[i % len(args.dtypes)]
        outcome = run(seed, dtype)
        graphs, attacked = graphs + 1, attacked + outcome.attacked
        if outcome.refused:
            refusals[reason(outcome.refused)] += 1
        for key in ("slope", "pair", "worst", "probable"):
            if getattr(outcome, key) > largest[key]:
                largest[key], largest[f"{key}_seed"] = getattr(outcome, key), seed
        for text in outcome.violations:
            violations.append(f"seed {seed}, {dtype}: {text}")
            print(violations[-1], flush=True)
        if i % 25 == 24:
            keras.backend.clear_session(free_memory=i % 500 == 499)
        if graphs % 100 == 0:
            print(f"{graphs} graphs, {time.perf_counter() - start:.0f} s", flush=True)
    result = {
        "backend": keras.backend.backend(),
        "hardware": runs.hardware(),
        "dtypes": args.dtypes,
        "seeds": [args.start, args.start + graphs],
        "graphs": graphs,
        "refused": sum(refusals.values()),
        "refusals": dict(refusals.most_common()),
        "points_attacked": attacked,
        "largest": largest,
        "violations": violations,
        "seconds": round(time.perf_counter() - start),
    }
    if args.output:
        write_atomically(args.output, json.dumps(result, indent=1).encode() + b"\n")
    print(json.dumps(result))
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
