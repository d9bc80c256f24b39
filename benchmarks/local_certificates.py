"""Local certificates of other people's networks, beside plain backward bounds.

    KERAS_BACKEND=torch python benchmarks/local_certificates.py WEIGHTS.pth --data CIFAR10.npz
        [--limit 60] [--eps 0.1411764705882353] [--methods plain crown alpha-crown] [--attack]
        [--radii] [--jobs 2]
    python benchmarks/local_certificates.py --digits [--methods movement crown]

WEIGHTS.pth has the published form of the small CIFAR-10 network of convex_adversarial (E. Wong and
others, trained to be provably robust in L2); the first of its cascade is taken. "plain" is a pass
back for every unit with chord slopes and whole images in float32, as `plain_backward_bounds` below
has it. `--attack` tries to break what was certified: PGD on the margin, 3 starts of 100 steps. With
`--digits` a dense ReLU network is trained on scikit-learn's 8x8 digits for a few seconds, and
certified at 0.2. `--radii` asks for the radius of each image in place of one ball, and `--jobs`
divides the images among processes, whose CPU seconds are not counted. The last line is JSON: share
certified, CPU seconds and seconds by the clock of each method, and images broken.
"""

import argparse
import json
import sys
import time

import keras
import numpy as np
import torch
from keras import layers as kl

import dynzoo
from dynzoo.certificates import certify_local


def published(file):
    """The network as a Keras model of images in [0, 1], and as it is for the plain bounds."""
    state = torch.load(file, weights_only=True, map_location="cpu")["state_dict"][0]
    values = {name: value.numpy() for name, value in state.items()}
    inputs = keras.Input((32, 32, 3))
    x = kl.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.225**2] * 3)(inputs)
    layers = []
    for name, filters in (("0", 16), ("2", 32)):
        layers.append((kl.Conv2D(filters, 4, strides=2, activation="relu"), name))
        x = layers[-1][0](kl.ZeroPadding2D(1)(x))
    x = kl.Flatten()(kl.Permute((3, 1, 2))(x))
    layers += [(kl.Dense(100, activation="relu"), "5"), (kl.Dense(10), "7")]
    model = keras.Model(inputs, layers[3][0](layers[2][0](x)))
    for layer, name in layers:
        kernel = values[f"{name}.weight"]
        order = (2, 3, 1, 0) if kernel.ndim == 4 else (1, 0)
        layer.set_weights([kernel.transpose(order), values[f"{name}.bias"]])
    return model, [(state[f"{n}.weight"], state[f"{n}.bias"]) for n in ("0", "2", "5", "7")]


def plain_backward_bounds(weights, x, eps):
    """Certified at eps or not, image by image: chord slopes, whole images, one unit's row each."""
    mean, scale = torch.tensor([0.485, 0.456, 0.406]), 0.225
    conv = {"stride": 2, "padding": 1}
    maps = [
        (lambda v, w=w: torch.conv2d(v, w, **conv) if w.ndim == 4 else v.flatten(1) @ w.T)
        for w, _ in weights
    ]
    backs = [
        (lambda g, w=w: torch.conv_transpose2d(g, w, **conv) if w.ndim == 4 else g @ w)
        for w, _ in weights
    ]

    def bound(rows, upto, lines, centre):
        """Smallest values of rows on the output of a linear layer, and of their negatives."""
        low = up = torch.zeros(len(rows))
        for i in range(upto, -1, -1):
            bias = weights[i][1]
            offset = (rows.sum((2, 3)) if rows.ndim == 4 else rows) @ bias
            low, up = low + offset, up + offset
            rows = backs[i](rows)
            if i == 2:
                rows = rows.reshape(-1, 32, 8, 8)
            if i:
                slope, shift = lines[i - 1]
                flat = (rows * shift).flatten(1)
                low, up = low + flat.clamp(max=0).sum(1), up + flat.clamp(min=0).sum(1)
                rows = rows * slope
        flat = rows.flatten(1)
        middle, moved = flat @ centre.flatten(), eps / scale * flat.norm(dim=1)
        return middle + low - moved, middle + up + moved

    certified, answers = [], []
    with torch.no_grad():
        for image in torch.tensor(x).permute(0, 3, 1, 2):
            centre = (image - mean[:, None, None]) / scale
            lines, value = [], centre[None]
            for i, (_, bias) in enumerate(weights[:-1]):
                value = maps[i](value) + (
                    bias[:, None, None] if value.ndim == 4 and i < 2 else bias
                )
                eye = torch.eye(value[0].numel()).reshape(-1, *value.shape[1:])
                parts = [bound(part, i, lines, centre) for part in eye.split(512)]
                low, up = (torch.cat(p).reshape(value.shape[1:]) for p in zip(*parts, strict=True))
                slope = torch.where(up <= 0, 0.0, torch.where(low >= 0, 1.0, up / (up - low)))
                wide = (low < 0) & (up > 0)
                # a row of negative sign reads the chord's upper end, a positive one nothing
                lines.append((slope, torch.where(wide, -low * slope, 0.0)))
                value = value.relu()
            logits = (maps[3](value) + weights[3][1])[0]
            label = int(logits.argmax())
            rows = torch.eye(10)[label] - torch.eye(10)[[j for j in range(10) if j != label]]
            certified.append(bool((bound(rows, 3, lines, centre)[0] > 0).all()))
            answers.append(label)
    return np.array(answers), np.array(certified)


def trained_on_digits():
    """A dense network of 64 and 64 units, trained with noise, test images and labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = (digits.data / 16).astype("float32"), digits.target
    keras.utils.set_random_seed(0)
    hidden = [kl.Dense(64, activation="relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((64,)), kl.GaussianNoise(0.1), *hidden, kl.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3, weight_decay=3e-2), loss)
    model.fit(x[:1437], y[:1437], epochs=40, batch_size=64, verbose=0)
    return model, x[1437:], y[1437:]


def measured(method, model, weights, x, y, eps, radii=False, jobs=None):
    """Which answers are right and certified at eps, CPU seconds, and seconds by the clock."""
    start, began = time.process_time(), time.perf_counter()
    if method == "plain":
        labels, certified = plain_backward_bounds(weights, x, eps)
    else:
        labels, certified = [], []
        local = certify_local(model, method=method)
        bar = keras.utils.Progbar(len(x), unit_name="image")
        for part in range(0, len(x), 100):
            some = x[part : part + 100]
            if radii:
                answers, found = local.radii(some, jobs=jobs)
                found = found >= eps
            else:
                answers, found = local.certified(some, eps, jobs=jobs)
            labels, certified = [*labels, answers], [*certified, found]
            bar.update(min(part + 100, len(x)))
        labels, certified = np.concatenate(labels), np.concatenate(certified)
    seconds, clock = time.process_time() - start, time.perf_counter() - began
    good = certified & (labels == y)
    print(f"{method}: {good.mean():.2%} certified, {seconds:.1f} CPU s, {clock:.1f} s", flush=True)
    return good, round(seconds, 2), round(clock, 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", nargs="?")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--eps", type=float)
    parser.add_argument("--methods", nargs="+", default=["plain", "crown", "alpha-crown"])
    parser.add_argument("--attack", action="store_true")
    parser.add_argument("--radii", action="store_true")
    parser.add_argument("--jobs", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.digits:
        (model, x, y), weights, eps = trained_on_digits(), None, args.eps or 0.2
    else:
        model, weights = published(args.weights)
        x, y = (a[: args.limit] for a in dynzoo.data.load(args.data)[1])
        eps = args.eps or 36 / 255
    right = model.predict(x, verbose=0).argmax(axis=1) == y
    result = {"images": len(x), "eps": eps, "clean": float(right.mean()), "methods": {}}
    for method in args.methods:
        found = measured(method, model, weights, x, y, eps, args.radii, args.jobs)
        good, seconds, clock = found
        own = {"certified": float(good.mean()), "cpu_seconds": seconds, "seconds": clock}
        if args.attack:
            pgd = dynzoo.attacks.PGD(eps=eps, steps=100, restarts=3, loss="margin")
            found = pgd(model, x[good], y[good])
            answers = model.predict(found, verbose=0).argmax(axis=1)
            own["broken"] = int(np.sum(answers != y[good]))
        result["methods"][method] = own
    print(json.dumps(result))
    sys.exit(1 if any(own.get("broken") for own in result["methods"].values()) else 0)


if __name__ == "__main__":
    main()
