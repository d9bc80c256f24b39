"""What onnxruntime's dynamic int8 quantisation does to exported ONNX files and certificates.

    dynzoo --backend tensorflow export isometric_tiny_cifar10 --format onnx --output exported
    python benchmarks/quantisation.py exported --data cifar10.npz

Each line of output is JSON: how many operations the quantiser replaced, how far it moved the logits
of test images, in multiples of the bound of rounding that the certificate counts on, and how many
answers it changed, certified ones among them.
"""

import argparse
import json
import logging
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import quantize_dynamic

from dynzoo.certificates.rounding.bound import RoundingBound
from dynzoo.data.loading import load
from dynzoo.export import radii


def logits(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0].astype(np.float64)


def measured(folder, x):
    graph, certificate = folder / "model.onnx", folder / "certificate.json"
    numbers = json.loads(certificate.read_text())
    with tempfile.TemporaryDirectory() as scratch:
        quantised = Path(scratch) / "int8.onnx"
        quantize_dynamic(graph, quantised)
        kinds = Counter(node.op_type for node in onnx.load(quantised).graph.node)
        before, after = logits(graph, x), logits(quantised, x)
        sizes = graph.stat().st_size, quantised.stat().st_size
        try:
            radii(after, certificate, x, model=quantised)
            refused = None
        except ValueError as error:
            refused = str(error).partition(": ")[2]
    labels, certified = radii(before, certificate, x, model=graph)
    changed = labels != after.argmax(axis=1)
    bound = RoundingBound.from_dict(numbers["rounding"])
    head = numbers["lipschitz"] / numbers["body_lipschitz"]
    ratios = np.linalg.norm(after - before, axis=1)
    ratios /= bound.of_logits(x, ("worst-case", "probable"), head)
    return {
        "exported": str(folder),
        "backend": numbers["versions"].get("backend"),
        "products_in_int8": kinds["MatMulInteger"] + kinds["ConvInteger"],
        "bytes": sizes,
        "images": len(x),
        "logits_moved_in_rounding_bounds": {
            "median": float(np.median(ratios)),
            "largest": float(ratios.max()),
        },
        "labels_changed": int(changed.sum()),
        "certified_labels_changed": int((changed & (certified > 0)).sum()),
        "largest_certified_radius_changed": float(certified.max(where=changed, initial=0.0)),
        "refused": refused,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("exported", nargs="+", type=Path, help="folders that `dynzoo export` wrote")
    parser.add_argument("--data", required=True, help="data set, as for `dynzoo evaluate`")
    parser.add_argument("--images", type=int, default=1000)
    args = parser.parse_args()

    logging.getLogger().setLevel(logging.ERROR)  # the quantiser recommends a pass before it
    x = load(args.data)[1][0][: args.images]
    for folder in args.exported:
        print(json.dumps(measured(folder, x)), flush=True)


if __name__ == "__main__":
    main()
