"""What rounding costs a certificate, and how far its bounds are above the true errors.

    KERAS_BACKEND=torch python benchmarks/rounding.py [PRESET ...] [--data NAME=FILE.npz]
        [--limit N] [--output docs/results/rounding.csv]

For each preset: certified accuracy on the test images in real numbers, with probable roundings (the
default) and with roundings of the worst case; the largest error of the logits that is found on the
first 256 images, alone and in batches, and the smallest bounds on the same images. The last line is
JSON; with --output a CSV, which docs/make_tables.py puts into docs/proof.md.
"""

import argparse
import csv
import json

import keras
import numpy as np

import dynzoo
from dynzoo.certificates import margins
from dynzoo.training import run as runs
from dynzoo.utils.formatting import radius_text

EPS = (36 / 255, 72 / 255, 108 / 255, 0.5)
KINDS = ("real", "probable", "worst-case")


def certified(labels, radii, y) -> list[float]:
    return [round(100 * float(np.mean((labels == y) & (radii >= e))), 2) for e in EPS]


def largest_error(model, x) -> float:
    """Of whole batches and of single images, against float64."""
    exact = np.concatenate(
        [dynzoo.certificates.forward_float64(model, x[i : i + 32]) for i in range(0, len(x), 32)]
    )
    batches = [model.predict(x, batch_size=size, verbose=0) for size in (len(x), 32)]
    alone = np.concatenate([model.predict(x[i : i + 1], verbose=0) for i in range(16)])
    gaps = [np.linalg.norm(b - exact, axis=1) for b in batches]
    gaps.append(np.linalg.norm(alone - exact[:16], axis=1))
    return float(max(gap.max() for gap in gaps))


def row(name: str, args) -> dict:
    model = dynzoo.from_preset(name)
    dataset = dynzoo.presets()[name]["dataset"]
    _, (x, y) = dynzoo.data.load(args.data.get(dataset, dataset))
    x, y = x[: args.limit], y[: args.limit]
    certificate = dynzoo.certify(model)
    found = {r: certificate.radii(x, rounding=r) for r in ("probable", "worst-case")}
    raw = model.predict(x, batch_size=256, verbose=0)
    labels = raw.argmax(axis=1)
    speeds = certificate.body_lipschitz * certificate.pair_distances
    real = margins.limits(raw, labels, speeds).min(axis=1)
    few = x[:256]
    return {
        "preset": name,
        "images": len(x),
        "eps": EPS,
        "real": certified(labels, real, y),
        **{r: certified(*pair, y) for r, pair in found.items()},
        "largest_error": largest_error(model, few),
        **{
            f"{r}_error": float(certificate.logit_error(few, r).min())
            for r in ("probable", "worst-case")
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", default=sorted(dynzoo.presets()))
    parser.add_argument("--data", action="append", default=[], help="NAME=FILE.npz of a data set")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--output", help="CSV to write")
    args = parser.parse_args()
    args.data = dict(item.split("=", 1) for item in args.data)
    rows = []
    for name in args.presets or sorted(dynzoo.presets()):
        rows.append(row(name, args))
        print(json.dumps(rows[-1]), flush=True)
    if args.output:
        with open(args.output, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["preset", "images", "rounding", *map(radius_text, EPS), "logit_error"])
            for found in rows:
                for kind in KINDS:
                    error = found["largest_error" if kind == "real" else f"{kind}_error"]
                    writer.writerow(
                        [found["preset"], found["images"], kind, *found[kind], f"{error:.2g}"]
                    )
    about = {"backend": keras.backend.backend(), "hardware": runs.hardware(), "rows": rows}
    print(json.dumps(about))


if __name__ == "__main__":
    main()
