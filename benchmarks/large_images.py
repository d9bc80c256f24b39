"""224x224 images from shards that together are larger than the memory of the process.

    python benchmarks/large_images.py write FOLDER [--gib 6]
    python benchmarks/large_images.py read FOLDER [--workers 2]
    python benchmarks/large_images.py train FOLDER [--seconds 60] [--limit 3]
    python benchmarks/large_images.py certify [--images 256]
    python benchmarks/large_images.py sizes [--sides 64 224 448 896]

`write` makes gratings in ten directions, of any colour, width and place, in noise. `read` makes
batches and nothing else; `train` times steps of isometric_gratings224 as `dynzoo train --pilot`
does; `certify` proves the bound of that network, fresh, and radii of some images; `sizes` the bound
at several sizes of images. `--limit` is how many GiB of data the process may ask for (RLIMIT_DATA):
beyond that it fails. The last line is JSON, with the peak resident memory in GiB.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
from latency import peak_mib

RECIPE = "isometric_gratings224"
CLASSES, SIDE = 10, 224
_GIB = 2**30
_A_BATCH = 64


def peak():
    return round(peak_mib() / 2**10, 2)


def gratings(count, seed):
    """Batches of `count` images in all, with their directions."""
    rng = np.random.default_rng(seed)
    rows, columns = (axis.astype(np.float32) for axis in np.mgrid[:SIDE, :SIDE])
    for start in range(0, count, _A_BATCH):
        y = rng.integers(0, CLASSES, min(_A_BATCH, count - start))
        x = rng.integers(0, 96, (len(y), SIDE, SIDE, 3), np.uint8)
        for image, direction in zip(x, y, strict=True):
            angle = np.pi * direction / CLASSES
            width, phase = rng.uniform(8, 40), rng.uniform(0, 2 * np.pi)
            way = np.float32(np.cos(angle)) * rows + np.float32(np.sin(angle)) * columns
            wave = (np.sin(way * np.float32(2 * np.pi / width) + np.float32(phase)) + 1) / 2
            image += (wave[..., None] * rng.uniform(32, 159, 3).astype(np.float32)).astype(np.uint8)
        yield x, y


def write(args):
    from dynzoo.data import write_shards

    count = int(args.gib * _GIB) // (SIDE * SIDE * 3)
    files = write_shards(args.folder, gratings(count, seed=0))
    files += write_shards(args.folder, gratings(1024, seed=1), "test")
    return {"images": count, "shards": len(files)}


def shards_gib(folder):
    return round(sum(file.stat().st_size for file in Path(folder).iterdir()) / _GIB, 2)


def read(args):
    from dynzoo.augmentation import Augmented
    from dynzoo.data import load_exact

    (x, y), _ = load_exact(args.folder, stream=None)
    batches = Augmented(x, y, batch_size=_A_BATCH, padding=8, flip=False, workers=args.workers)
    began, done = time.perf_counter(), 0
    while done < len(batches) and time.perf_counter() - began < args.seconds:
        batches[done]
        done += 1
    speed = done * _A_BATCH / (time.perf_counter() - began)
    return {
        "set_gib": shards_gib(args.folder),
        "images_read": done * _A_BATCH,
        "images/s": round(speed),
    }


def train(args):
    import keras

    from dynzoo.training import train

    lines = []
    train(RECIPE, data_file=args.folder, pilot=args.seconds, verbose=0, log=lines.append)
    return {
        "backend": keras.backend.backend(),
        "set_gib": shards_gib(args.folder),
        "limit_gib": args.limit,
        "images/s": float(lines[-1].split(" images/s")[0].replace(",", "")),
        "said": lines[-1],
    }


def certify(args):
    import keras

    import dynzoo
    from dynzoo.training import build_model

    model = build_model(dynzoo.recipes.load(RECIPE), CLASSES, (SIDE, SIDE, 3))
    before, began = peak(), time.perf_counter()
    certificate = dynzoo.certify(model)
    first, began = time.perf_counter() - began, time.perf_counter()
    dynzoo.certify(model)
    again, of_certify = time.perf_counter() - began, peak()
    x = np.concatenate([x for x, _ in gratings(args.images, seed=2)]) / np.float32(255)
    began = time.perf_counter()
    certificate.radii(x)
    return {
        "backend": keras.backend.backend(),
        "parameters": model.count_params(),
        "lipschitz": certificate.lipschitz,
        "certify_seconds": round(first, 2),
        "again_seconds": round(again, 2),
        "radii_images/s": round(args.images / (time.perf_counter() - began), 1),
        "before_gib": before,
        "certify_gib": of_certify,
    }


def sizes(args):
    """CPU seconds of `certify` and largest memory so far, of one network at several image sizes."""
    import dynzoo
    from dynzoo.training import build_model

    recipe, found = dynzoo.recipes.load(RECIPE), {}
    dynzoo.certify(build_model(recipe, CLASSES, (32, 32, 3)))  # what is only done once
    for side in sorted(args.sides):
        model = build_model(recipe, CLASSES, (side, side, 3))
        began = time.process_time()
        dynzoo.certify(model)
        found[side] = (round(time.process_time() - began, 2), peak())
    return {"seconds_and_gib": found}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("write", "read", "train", "certify", "sizes"))
    parser.add_argument("folder", nargs="?", default="gratings224")
    parser.add_argument("--gib", type=float, default=6.0, help="size of the training images")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=1, help="threads that make batches")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 224, 448, 896])
    parser.add_argument("--limit", type=float, help="GiB of data that the process may ask for")
    args = parser.parse_args()
    if args.limit:
        limit = int(args.limit * _GIB)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    ways = {"write": write, "read": read, "train": train, "certify": certify, "sizes": sizes}
    result = ways[args.what](args)
    print(json.dumps({**result, "peak_gib": peak()}))


if __name__ == "__main__":
    main()
