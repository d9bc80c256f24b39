"""The CIFAR networks that the founding paper's authors published, measured and certified.

    python examples/founding_networks.py FOLDER [--kind KIND] [--data cifar10|FILE.npz]
        [--images N] [--strong N] [--local N]
    python examples/founding_networks.py FOLDER --slopes N

FOLDER holds checkpoints (*.pt) of arXiv 2210.02373, as they lie in the authors' repository
(github.com/davidemurari/StructuredNeuralNetworks); none of them comes with dynzoo. Each is a state
dict of three stages with 3x3 convolutions and a dense layer. It does not say which of the three
systems it is, so that the path has to (`Contractive`, `Switch prescribed`, `Switch flexible`), or
--kind.

Every network is rebuilt as the authors' code computes it, with their normalisation, and a line a
radius is printed: what is right under the weak attack of the paper (ten steps of L2 PGD, the first
1,024 test images), under a strong one (`dynzoo.evaluate` with `pgd_margin`, on fewer images), and
what is proved by the global bound of `dynzoo.certify` and by bounds at each image, again on fewer.
With --slopes nothing is attacked: a line a stage says how fast its dynamics change near N test
images, which a 1-Lipschitz stage does by at most 1.
"""

import argparse
from pathlib import Path

import keras
import numpy as np

import dynzoo
from dynzoo import data, operators
from dynzoo.layers import GradientFlow

kl = keras.layers
KINDS = ("contractive", "prescribed", "flexible")
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
RADII = (36 / 255, 0.3, 0.5, 1.0)
SUBSTEPS = 2
STRONG = "pgd_margin"


def read(path):
    """The state dict of a checkpoint as float64 arrays; no code of the file is run."""
    import torch  # only to read

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: value.double().numpy() for key, value in state.items()}


def kind_of(path):
    """Which system the path of a checkpoint names."""
    text = str(path).lower().replace("non-expansive", "contractive")
    found = [kind for kind in KINDS if kind in text]
    if len(found) != 1:
        raise SystemExit(f"Say with --kind which network {path} is: {', '.join(KINDS)}.")
    return found[0]


def rebuilt(state, kind, mean=MEAN, deviation=DEVIATION):
    """The network as a Keras model from images in [0, 1], channels last."""
    head, bias = state["FC.1.weight"], state["FC.1.bias"]
    width = len(state["seq.2.convs.0.bias"])
    side = round((head.shape[1] / width) ** 0.5)
    inputs = keras.Input((8 * side, 8 * side, 3), name="image")
    x = kl.Normalization(mean=list(mean), variance=[d**2 for d in deviation])(inputs)
    for stage in range(3):
        prefix = f"seq.{stage}."
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        x = kl.ReLU()(kl.Rescaling(float(part["rescalings"][-1]))(lift(x, part)))
        x = kl.MaxPooling2D(2)(_SYSTEMS[kind](x, part))
    # PyTorch flattens channel by channel.
    kernel = head.reshape(-1, width, side, side).transpose(2, 3, 1, 0).reshape(-1, len(bias))
    outputs = with_weights(kl.Dense(len(bias)), kl.Flatten()(x), [kernel, bias])
    return keras.Model(inputs, outputs, name=f"founding_{kind}")


def with_weights(layer, x, weights):
    """The output of the layer, with these weights."""
    y = layer(x)
    layer.set_weights([np.asarray(w, "float32") for w in weights])
    return y


def lift(x, part):
    """The 3x3 convolution to more channels, with or without a bias."""
    kernel = next(v for k, v in part.items() if k.startswith("conv1") and v.ndim == 4)
    bias = [v for k, v in part.items() if k.startswith("conv1") and k.endswith("bias")]
    layer = kl.Conv2D(len(kernel), 3, padding="same", use_bias=bool(bias))
    return with_weights(layer, x, [kernel.transpose(2, 3, 1, 0), *bias])


def gradient_step(x, part, i, step, activation, direction="contractive", times=1):
    """Euler steps along the gradient of the i-th convolution; one of length 0 does nothing."""
    for _ in range(times if step else 0):
        kernel = part[f"convs.{i}.weight"].transpose(2, 3, 1, 0)
        layer = GradientFlow(
            operators.Conv(kernel.shape[-1]),
            activation,
            step_size=float(step),
            direction=direction,
            constraint=None,
        )
        x = with_weights(layer, x, [kernel, part[f"convs.{i}.bias"]])
    return x


def contractive(x, part):
    """A contractive step a convolution."""
    for i, step in enumerate(np.abs(part["u"])):
        x = gradient_step(x, part, i, step, "relu")
    return x


def prescribed(x, part):
    """Expansive and contractive half steps in turn, two of each for a pair of convolutions."""
    times = np.abs(part["u"]) / SUBSTEPS
    for i in range(0, len(times), 2):
        scale = times[i] * np.clip(part["rescalings"][i // 2], 0.0, 1.0)
        kernel, bias = part[f"convs.{i}.weight"].transpose(2, 3, 1, 0), part[f"convs.{i}.bias"]
        for _ in range(SUBSTEPS):
            y = with_weights(kl.Conv2D(kernel.shape[-1], 3, padding="same"), x, [kernel, bias])
            y = kl.Rescaling(float(scale))(kl.LeakyReLU(0.5)(y))
            x = gradient_step(kl.Add()([x, y]), part, i + 1, times[i + 1], "half_leaky_relu")
    return x


def flexible(x, part):
    """Two contractive half steps, then an expansive one with the same convolution.

    The authors' code takes the absolute value of the last step, so that what was meant to contract
    expands; this is the network that they measured.
    """
    times = np.abs(part["u"])
    for i in range(0, len(times), 2):
        half = times[i] / SUBSTEPS
        x = gradient_step(x, part, i, half, "half_leaky_relu", times=SUBSTEPS)
        x = gradient_step(x, part, i, times[i + 1], "relu", "expansive")
    return x


_SYSTEMS = {"contractive": contractive, "prescribed": prescribed, "flexible": flexible}


def stages(model, state, kind, x):
    """The dynamics of the three stages as models of their own, and what they read of images x."""
    lifts = [layer for layer in model.layers if isinstance(layer, kl.ReLU)]
    for stage, layer in enumerate(lifts):
        features = keras.Model(model.input, layer.output).predict(x, verbose=0)
        prefix = f"seq.{stage}."
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        inputs = keras.Input(features.shape[1:])
        yield keras.Model(inputs, _SYSTEMS[kind](inputs, part)), features


def steepest(model, x, iterations=20, seed=0):
    """The largest |f(x + v) - f(x - v)| / |2v| found by repeating v <- f(x + v) - f(x - v).

    A lower bound of the Lipschitz constant, up to rounding: |v| is a hundredth of |x|.
    """
    found, axes = 0.0, tuple(range(1, x.ndim))
    v = np.random.default_rng(seed).normal(size=x.shape)
    reach = 0.01 * np.linalg.norm(x.reshape(len(x), -1), axis=1).reshape(-1, *[1] * len(axes))
    for _ in range(iterations):
        v = v * reach / np.sqrt((v**2).sum(axes, keepdims=True))
        ends = np.stack([x + v, x - v]).astype("float32")
        high, low = (model.predict_on_batch(end).astype("float64") for end in ends)
        v = high - low
        apart = ends[0].astype("float64") - ends[1]
        ratio = (v**2).sum(axes) / (apart**2).sum(axes)
        found = max(found, float(np.sqrt(ratio.max())))
    return found


def measured(model, x, y, args):
    """Prints a line a radius."""
    from paper_protocol import weak_attack

    certificate = dynzoo.certify(model)
    labels, radii = certificate.radii(x)
    right = labels == y
    print(f"  Lipschitz bound {certificate.lipschitz:.4g}, clean {100 * right.mean():.2f} %")
    report = dynzoo.evaluate(
        model, x[: args.strong], y[: args.strong], eps=RADII, attacks=STRONG, checks="quick"
    )
    local = np.zeros(0)
    if args.local:
        answers, local = dynzoo.certificates.certify_local(model).radii(x[: args.local])
        local = np.where(answers == y[: args.local], local, -1.0)
    print("  radius    weak  strong  certified  at the image")
    for eps in RADII:
        weak = weak_attack(model, x[right], y[right], eps).sum() / len(x)
        proved = np.mean(right & (radii > eps))
        near = f"{100 * np.mean(local > eps):12.2f}" if args.local else ""
        strong = 100 * report.robust[eps]
        print(f"  {eps:6.4f} {100 * weak:7.2f} {strong:7.2f} {100 * proved:10.2f} {near}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder of checkpoints, or one of them")
    parser.add_argument("--kind", choices=KINDS, help="which network, if the path does not say it")
    parser.add_argument("--data", default="cifar10", help="cifar10, or an .npz file")
    parser.add_argument("--images", type=int, default=1024, help="for clean, weak and certified")
    parser.add_argument("--strong", type=int, default=256, help="of them, for the strong attack")
    parser.add_argument("--local", type=int, default=0, help="of them, for bounds at each image")
    parser.add_argument("--slopes", type=int, default=0, help="images; slopes of the stages only")
    args = parser.parse_args()
    files = [args.folder] if args.folder.is_file() else sorted(args.folder.rglob("*.pt"))
    if not files:
        raise SystemExit(f"{args.folder} holds no *.pt file.")
    _, (x, y) = data.load(args.data)
    x, y = x[: args.images], np.ravel(y[: args.images])
    for path in files:
        kind = args.kind or kind_of(path)
        print(f"{path}: {kind}", flush=True)
        state = read(path)
        model = rebuilt(state, kind)
        if not args.slopes:
            measured(model, x, y, args)
            continue
        for number, (stage, features) in enumerate(stages(model, state, kind, x[: args.slopes])):
            steps = ", ".join(f"{step:.3g}" for step in state[f"seq.{number}.u"])
            slope = steepest(stage, features)
            print(f"  stage {number}: slope {slope:.3f} found, steps {steps}", flush=True)


if __name__ == "__main__":
    main()
