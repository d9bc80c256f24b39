"""dynzoo beside the libraries one would use instead, on PyTorch: time, and the norms that are true.

    pip install -e ".[torch,peers]"
    OMP_NUM_THREADS=1 KERAS_BACKEND=torch python benchmarks/peers.py [--update]

Networks of the same matrix products as `isometric_tiny`: of deel-torchlip (spectral norm and
Bjorck), of orthogonium (orthogonal layers), and of plain PyTorch layers. They train in turn, a
step each, with the optimizer of dynzoo's recipe for ours and Adam for the others; then the norms
of their layers are computed exactly, in float64, from the weights that they compute with.
Inference is ours as `predict_logits` runs it, of the others the same network with these weights in
plain layers; certified radii are ours with every bound of rounding, theirs the margin over the
square root of two, on the word of their layers. PGD attacks the first test images of the preset
with 20 steps of L2, and the standard ensemble, every member on every image, the same images
(`benchmarks/autoattack.py --alone`). All times are CPU seconds of one thread, medians of
alternating rounds but for the ensembles. `--update` writes the table and the picture into
docs/benchmarks.md. The last line is JSON.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import torch
from as_trained import compile_as_trained
from torch import nn

import dynzoo
from dynzoo import backend, training
from dynzoo.inference.passes import predict_logits
from dynzoo.training import recipes
from dynzoo.training import run as runs

PRESET = "isometric_tiny_cifar10"
PACKAGES = ("torch", "deel-torchlip", "orthogonium", "torchattacks", "foolbox", "pyautoattack")
ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "pictures" / "peers.svg"
MARKS = "<!-- peers -->\n", "<!-- end of peers -->\n"
PIXELS = 32


class Padding(nn.Module):
    """Zero channels up to the width of the first stage."""

    def forward(self, x):
        return nn.functional.pad(x, (0, 0, 0, 0, 0, 64 - x.shape[1]))


def network(convolution, linear, head, sort):
    """The matrix products of `isometric_tiny`, a square one for each gradient step."""
    parts = [nn.PixelUnshuffle(2), Padding()]
    for before, width in ((None, 64), (64, 128), (128, 256)):
        if before:
            parts += [nn.PixelUnshuffle(2), convolution(4 * before, width)]
        for _ in range(4):
            parts += [convolution(width, width), sort()]
    parts += [nn.Flatten(), linear(256 * (PIXELS // 8) ** 2, 256)]
    for _ in range(3):
        parts += [linear(256, 256), sort()]
    return nn.Sequential(*parts, head(256, 10))


def plain_convolution(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 1)


def peers():
    import deel.torchlip
    import orthogonium.layers

    return {
        "deel-torchlip": network(
            lambda i, o: deel.torchlip.SpectralConv2d(i, o, 1),
            deel.torchlip.SpectralLinear,
            deel.torchlip.FrobeniusLinear,
            deel.torchlip.GroupSort2,
        ),
        "orthogonium": network(
            lambda i, o: orthogonium.layers.AdaptiveOrthoConv2d(i, o, 1),
            orthogonium.layers.OrthoLinear,
            orthogonium.layers.UnitNormLinear,
            orthogonium.layers.MaxMin,
        ),
        "plain": network(plain_convolution, nn.Linear, nn.Linear, nn.ReLU),
    }


def layers_of(net):
    return [m for m in net if isinstance(m, nn.Conv2d | nn.Linear)]


def as_plain(net, sort):
    """The same function in plain layers, with the weights that the network computes with."""
    twin = network(plain_convolution, nn.Linear, nn.Linear, sort).eval()
    with torch.no_grad():
        for ours, theirs in zip(layers_of(twin), layers_of(net.eval()), strict=True):
            ours.weight.copy_(theirs.weight.reshape(ours.weight.shape))
            if theirs.bias is not None:
                ours.bias.copy_(theirs.bias)
    return twin


def our_network():
    recipe = recipes.load("isometric_tiny_cifar10")
    model = training.build_model(recipe, 10, (PIXELS, PIXELS, 3))
    compile_as_trained(model, recipe, False)
    return model


def training_step(net, x, y):
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)

    def step():
        net.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x) * 4.0, y).backward()
        optimizer.step()

    return step


def constrained(net):
    """What computes all constrained weights once."""

    def compute():
        with torch.no_grad():
            return [layer.weight for layer in layers_of(net.train())]

    return compute


def our_constraints(model):
    variables = [v for v in model.trainable_variables if v.constraint is not None]

    def compute():
        with torch.no_grad():
            return [v.constraint(v.value) for v in variables]

    return compute


def cpu(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def medians(functions, rounds, warm=2):
    for function in functions.values():
        for _ in range(warm):
            function()
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(cpu(function))
    return {name: float(np.median(values)) for name, values in times.items()}


def extremes(weights):
    """Largest and smallest norm of the layers, and the smallest singular value, in float64."""
    values = [
        np.linalg.svd(w.reshape(len(w), -1).astype(np.float64), compute_uv=False) for w in weights
    ]
    return [min(s[0] for s in values), max(s[0] for s in values), min(s[-1] for s in values)]


def norms(model, nets):
    ours = [backend.to_numpy(v.value).T for v in model.trainable_variables if v.constraint]
    found = {"dynzoo": extremes(ours)}
    for name, net in nets.items():
        with torch.no_grad():  # without the head, whose rows are what is bounded
            found[name] = extremes([m.weight.numpy() for m in layers_of(net.eval())[:-1]])
    return found


def measure_networks(batch_size, steps, rounds):
    rng = np.random.default_rng(0)
    x = rng.random((batch_size, PIXELS, PIXELS, 3), dtype="float32")
    y = rng.integers(0, 10, batch_size)
    images = torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    model, nets = our_network(), peers()
    training_steps = {"dynzoo": lambda: model.train_on_batch(x, y)}
    training_steps |= {n: training_step(net, images, torch.tensor(y)) for n, net in nets.items()}
    result = {"step": medians(training_steps, steps - 2)}
    result["norms"] = norms(model, nets)
    constraints = {"dynzoo": our_constraints(model)}
    constraints |= {n: constrained(net) for n, net in nets.items() if n != "plain"}
    result["constraint"] = medians(constraints, rounds)
    sorts = {n: type(next(m for m in net if not list(m.parameters()) and type(m).__name__ in (
        "GroupSort2", "MaxMin", "ReLU"))) for n, net in nets.items()}  # fmt: skip
    plain = {name: as_plain(net, sorts[name]) for name, net in nets.items()}
    for length in (1, batch_size):
        functions = {"dynzoo": lambda n=length: predict_logits(model, x[:n])}
        for name, net in plain.items():
            functions[name] = lambda net=net, n=length: net(images[:n])
        with torch.no_grad():
            result[f"inference {length}"] = medians(functions, rounds, warm=12)
    certificate = dynzoo.certify(model)
    functions = {"dynzoo": lambda: certificate.radii(x)}
    for name, net in plain.items():
        if name != "plain":
            functions[name] = lambda net=net: margins(net, images)
    with torch.no_grad():
        result["radii"] = medians(functions, rounds)
    return result


def margins(net, images):
    """Radii as one takes them from a network whose layers are said to be 1-Lipschitz."""
    best = net(images).topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]) / 2**0.5


def measure_ensemble(args):
    """The standard ensembles, both of them, by `benchmarks/autoattack.py`."""
    command = [sys.executable, str(Path(__file__).with_name("autoattack.py")), "--alone"]
    command += ["--images", str(args.images), "--batch-size", str(args.images)]
    command += ["--data", args.data] if args.data != "cifar10" else []
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(said.splitlines()[-1])
    members = ("apgd-ce", "apgd-t", "fab-t", "square")
    return {side: {n: found[side][n] for n in members} for side in ("ours", "theirs")}


def measure_pgd(model, x, y, rounds):
    """CPU seconds and accuracy of each library's L2 PGD, 20 steps."""
    import foolbox
    import torchattacks

    eps, steps = 0.5, 20

    class Dense(torch.autograd.Function):
        """torchattacks asks for a view of the gradient that only a contiguous one has."""

        @staticmethod
        def forward(ctx, images):
            return images.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient.contiguous()

    class ChannelsFirst(nn.Module):
        def forward(self, images):
            return model(Dense.apply(images).permute(0, 2, 3, 1), training=False)

    wrapped = ChannelsFirst().eval()
    images = torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    labels = torch.tensor(y.astype("int64"))
    length = 2.5 * eps / steps
    ours = dynzoo.attacks.PGD(eps=eps, steps=steps, step_size=length, loss="ce")
    theirs = torchattacks.PGDL2(wrapped, eps=eps, alpha=length, steps=steps)
    theirs.set_device("cpu")
    box = foolbox.PyTorchModel(wrapped, bounds=(0, 1), device="cpu")
    third = foolbox.attacks.L2PGD(abs_stepsize=length, steps=steps)
    points = {}

    def run(name, attack):
        points[name] = attack()

    functions = {
        "dynzoo": lambda: run("dynzoo", lambda: ours(model, x, y)),
        "torchattacks": lambda: run(
            "torchattacks", lambda: theirs(images, labels).numpy().transpose(0, 2, 3, 1)
        ),
        "foolbox": lambda: run(
            "foolbox",
            lambda: third(box, images, labels, epsilons=eps)[1].numpy().transpose(0, 2, 3, 1),
        ),
    }
    seconds = medians(functions, rounds, warm=1)
    right = {n: float(np.mean(predict_logits(model, p).argmax(1) == y)) for n, p in points.items()}
    return {"seconds": seconds, "accuracy": right}


def table(result):
    """The results as Markdown."""
    batch = result["batch_size"]
    lines = [
        "| | dynzoo | deel-torchlip | orthogonium | plain layers |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]

    def row(label, values, text):
        cells = [text(values[n]) if n in values else "" for n in ("dynzoo", *NAMES)]
        lines.append(f"| {label} | {' | '.join(cells)} |")

    milliseconds = "{:.1f}".format
    row(f"training step of {batch} images, ms", ms(result["step"]), milliseconds)
    row("its constrained weights, computed once, ms", ms(result["constraint"]), milliseconds)
    for length in (1, batch):
        label = f"inference, {length} image{'s' * (length > 1)}, ms"
        row(label, ms(result[f"inference {length}"]), milliseconds)
    row(f"certified radii of {batch} images, ms", ms(result["radii"]), milliseconds)
    row(
        f"norms of the layers after {result['steps']} steps",
        {n: v for n, v in result["norms"].items() if n != "plain"},
        lambda v: f"1 {v[0] - 1:+.0e} to 1 {v[1] - 1:+.0e}",
    )
    row(
        "smallest singular value of a layer",
        {n: v for n, v in result["norms"].items() if n != "plain"},
        lambda v: f"1 {v[2] - 1:+.0e}",
    )
    row("what is said of them", CLAIMS, str)
    pgd = result["pgd"]
    lines += [
        "",
        f"| L2 PGD, 20 steps, {result['pgd_images']} images | dynzoo | torchattacks | foolbox |",
        "| --- | ---: | ---: | ---: |",
        "| CPU s | " + " | ".join(f"{s:.2f}" for s in pgd["seconds"].values()) + " |",
        "| still right, % | "
        + " | ".join(f"{100 * pgd['accuracy'][n]:.1f}" for n in pgd["seconds"])
        + " |",
        "",
        f"| ensemble, {result['pgd_images']} images, each member on all | "
        + " | ".join(f"{name}: CPU s | still right, %" for name in ("dynzoo", "pyautoattack"))
        + " |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for member, one in result["ensemble"]["ours"].items():
        other = result["ensemble"]["theirs"][member]
        cells = [f"{v['cpu_seconds']:.1f} | {100 * v['robust']:.1f}" for v in (one, other)]
        lines.append(f"| {member} | {' | '.join(cells)} |")
    sums = [sum(v["cpu_seconds"] for v in m.values()) for m in result["ensemble"].values()]
    lines.append(f"| all | {sums[0]:.1f} | | {sums[1]:.1f} | |")
    load = " to ".join(f"{v:.1f}" for v in result["load"])
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += ["", f"{result['hardware']}, one thread, load average {load}; {versions}."]
    return "\n".join(lines) + "\n"


NAMES = ("deel-torchlip", "orthogonium", "plain")
CLAIMS = {
    "dynzoo": "orthonormal rows or columns",
    "deel-torchlip": "1-Lipschitz, near orthogonal",
    "orthogonium": "orthogonal",
}


def ms(values):
    return {name: 1e3 * value for name, value in values.items()}


def draw(result):
    from dynzoo import plots

    kinds = ("step", "inference 1", f"inference {result['batch_size']}")
    labels = (
        f"training, batch of {result['batch_size']}",
        "inference, one image",
        f"inference, batches of {result['batch_size']}",
    )
    counts = (result["batch_size"], 1, result["batch_size"])
    figure = plots.new_figure(8, 2.4)
    axes = figure.subplots(1, 3, sharey=True)
    axes[0].invert_yaxis()
    for ax, kind, label, count in zip(axes, kinds, labels, counts, strict=True):
        values = {n: count / s for n, s in result[kind].items()}
        ax.barh(list(values), list(values.values()), color=["#1f6feb", *["#999999"] * 3])
        ax.set_title(label, fontsize=9)
        ax.set_xlabel("images a CPU second", fontsize=8)
        ax.tick_params(labelsize=8)
    PICTURE.write_bytes(plots.svg(figure))


def update(text):
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(before + MARKS[0] + text + MARKS[1] + after, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=32, help="that PGD attacks")
    parser.add_argument("--data", default="cifar10", help="data set, or an npz file of it")
    parser.add_argument("--update", action="store_true", help="write the page and the picture")
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    torch.set_num_threads(1)
    result = {
        "hardware": runs.hardware(),
        "load": [os.getloadavg()[0]],
        "threads": 1,
        "versions": {n: importlib.metadata.version(n).split("+")[0] for n in PACKAGES},
        "batch_size": args.batch_size,
        "steps": args.steps,
        "pgd_images": args.images,
        **measure_networks(args.batch_size, args.steps, args.rounds),
    }
    _, (x, y) = dynzoo.data.load(args.data)
    model = dynzoo.from_preset(PRESET)
    result["pgd"] = measure_pgd(model, x[: args.images], y[: args.images], args.rounds)
    result["ensemble"] = measure_ensemble(args)
    result["load"].append(os.getloadavg()[0])
    text = table(result)
    print(text)
    if args.update:
        update(text)
        draw(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
