"""1-Lipschitz networks of other packages, trained for a minute, and what is proved of them.

    python examples/lipschitz_networks.py [--seconds 60] [--only NAME ...] [--eps 0.2]

Each network is trained on scikit-learn's 8x8 digits with the layers of its own package
(`pip install deel-torchlip orthogonium`; those that are not installed are left out), read by
`dynzoo.convert.from_torch` and rewritten by `to_flows`. A line a network is printed: clean
accuracy; what is certified if the network has the Lipschitz constant 1 that it was built for; the
bounds that `dynzoo.certify` computes in float64, of the layers one by one and of whole blocks; and
what these certify. `--only` takes names of `NETWORKS`.
"""

import argparse
import importlib.util
import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import dynzoo

WIDTH = 16
TEMPERATURE = 8.0


class GradientStep(nn.Module):
    """x - 2 / s^2 W^T relu(W x + b), s from one step of power iteration a pass (CPL)."""

    def __init__(self, channels):
        super().__init__()
        self.w = nn.Parameter(torch.randn(channels, channels, 3, 3) / (3 * channels**0.5))
        self.b = nn.Parameter(torch.zeros(channels))
        self.register_buffer("u", torch.randn(1, channels, 4, 4))
        self.register_buffer("square", torch.ones(()))

    def forward(self, x):
        square = self.square
        if self.training:
            with torch.no_grad():
                u = F.conv_transpose2d(F.conv2d(self.u, self.w, padding=1), self.w, padding=1)
                self.u.copy_(u / u.norm())
            square = F.conv2d(self.u, self.w, padding=1).square().sum()
            self.square.copy_(square.detach())
        y = torch.relu(F.conv2d(x, self.w, self.b, padding=1))
        return x - 2 / square * F.conv_transpose2d(y, self.w, padding=1)


class LinearResidual(nn.Module):
    """x + W x, divided by the norm of I + W from one step of power iteration a pass."""

    def __init__(self, features):
        super().__init__()
        self.w = nn.Parameter(0.1 * torch.randn(features, features) / features**0.5)
        self.register_buffer("u", torch.randn(features))
        self.register_buffer("norm", torch.ones(()))

    def forward(self, x):
        norm = self.norm
        if self.training:
            with torch.no_grad():
                v = self.u + self.w @ self.u
                u = v + self.w.T @ v
                self.u.copy_(u / u.norm())
            norm = (self.u + self.w @ self.u).norm()
            self.norm.copy_(norm.detach())
        return (x + F.linear(x, self.w)) / norm


def torchlip_network():
    """deel-torchlip: spectrally normalised convolutions and dense layers, GroupSort."""
    from deel import torchlip

    return torchlip.Sequential(
        torchlip.SpectralConv2d(4, WIDTH, 3, padding=1),
        torchlip.GroupSort2(),
        torchlip.SpectralConv2d(WIDTH, WIDTH, 3, padding=1),
        torchlip.GroupSort2(),
        nn.Flatten(),
        torchlip.SpectralLinear(16 * WIDTH, 64),
        torchlip.GroupSort2(),
        torchlip.SpectralLinear(64, 10),
    )


def orthogonal_network():
    """orthogonium: orthogonal convolutions (AOC), MaxMin, orthogonal dense layers."""
    from orthogonium.layers import AdaptiveOrthoConv2d, MaxMin, OrthoLinear

    return nn.Sequential(
        AdaptiveOrthoConv2d(4, WIDTH, 3, padding=1, padding_mode="zeros"),
        MaxMin(),
        AdaptiveOrthoConv2d(WIDTH, WIDTH, 3, padding=1, padding_mode="zeros"),
        MaxMin(),
        nn.Flatten(),
        OrthoLinear(16 * WIDTH, 10),
    )


def almost_orthogonal_network():
    """orthogonium: rescaled convolutions (AOL), MaxMin."""
    from orthogonium.layers import MaxMin, OrthoLinear
    from orthogonium.layers.conv.AOL import AOLConv2D

    return nn.Sequential(
        AOLConv2D(4, WIDTH, 3, padding=1),
        MaxMin(),
        AOLConv2D(WIDTH, WIDTH, 3, padding=1),
        MaxMin(),
        nn.Flatten(),
        OrthoLinear(16 * WIDTH, 10),
    )


def rescaled_network():
    """orthogonium: residual blocks of the SLL kind, on images and on vectors."""
    from orthogonium.layers import AdaptiveOrthoConv2d, OrthoLinear
    from orthogonium.layers.conv.SLL.sll_layer import (
        SDPBasedLipschitzDense,
        SDPBasedLipschitzResBlock,
    )

    return nn.Sequential(
        AdaptiveOrthoConv2d(4, WIDTH, 3, padding=1, padding_mode="zeros"),
        SDPBasedLipschitzResBlock(WIDTH, 2, 3),
        SDPBasedLipschitzResBlock(WIDTH, 2, 3),
        nn.Flatten(),
        SDPBasedLipschitzDense(16 * WIDTH, 16 * WIDTH, 128),
        OrthoLinear(16 * WIDTH, 10),
    )


def gradient_network():
    """Gradient steps with power iteration, written here; spectral_norm of PyTorch around them."""
    norm = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(
        GradientStep(4),
        GradientStep(4),
        nn.Flatten(),
        LinearResidual(64),
        nn.ReLU(),
        norm(nn.Linear(64, 10)),
    )


# Name -> (what makes it, the package it needs).
NETWORKS = {
    "spectral normalisation": (torchlip_network, "deel.torchlip"),
    "orthogonal": (orthogonal_network, "orthogonium"),
    "AOL": (almost_orthogonal_network, "orthogonium"),
    "SLL": (rescaled_network, "orthogonium"),
    "gradient steps": (gradient_network, None),
}


def installed(package):
    """Whether a package, maybe inside another, can be imported."""
    try:
        return package is None or importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def images():
    """Training and test images in four channels of 4 x 4 pixels (blocks of two), channels first."""
    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    x, y = F.pixel_unshuffle(x, 2), torch.tensor(digits.target)
    return (x[:1437], y[:1437]), (x[1437:], y[1437:])


def trained(make, seconds):
    """The network after so many seconds, at inference."""
    torch.manual_seed(0)
    network, (x, y) = make(), images()[0]
    network(x[:2])
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    start = time.monotonic()
    network.train()
    while time.monotonic() - start < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * max(0.02, 1 - (time.monotonic() - start) / seconds)
        rows = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        F.cross_entropy(TEMPERATURE * network(x[rows]), y[rows]).backward()
        optimizer.step()
    network.eval()
    return network


def plain(network):
    """The network with its weights as they are used, where its package can say so."""
    return network.vanilla_export() if hasattr(network, "vanilla_export") else network


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, each")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--eps", type=float, default=0.2)
    args = parser.parse_args()
    x, y = (v.numpy() for v in images()[1])
    x = x.transpose(0, 2, 3, 1)
    print(f"| network | clean | if 1-Lipschitz, at {args.eps:g} | bound, by layer | bound, by "
          "block | certified by layer | certified by block |")  # fmt: skip
    print("| --- |" + " ---: |" * 6)
    for name in args.only:
        make, package = NETWORKS[name]
        if not installed(package):
            print(f"{name}: {package} is not installed")
            continue
        by_layer = dynzoo.convert.from_torch(plain(trained(make, args.seconds)), (4, 4, 4))
        by_block = dynzoo.convert.to_flows(by_layer)
        logits = np.sort(by_layer.predict(x, verbose=0).astype("float64"), axis=1)
        right = by_layer.predict(x, verbose=0).argmax(axis=1) == y
        margin = (logits[:, -1] - logits[:, -2]) / np.sqrt(2)
        shares = [right.mean(), np.mean(right & (margin > args.eps))]
        bounds = []
        for model in (by_layer, by_block):
            certificate = dynzoo.certify(model)
            labels, radii = certificate.radii(x)
            bounds.append(certificate.lipschitz)
            shares.append(np.mean((labels == y) & (radii > args.eps)))
        clean, claimed, first, second = (f"{100 * v:.1f} %" for v in shares)
        ends = " | ".join(f"{b:.4f}" for b in bounds)
        print(f"| {name} | {clean} | {claimed} | {ends} | {first} | {second} |", flush=True)


if __name__ == "__main__":
    main()
