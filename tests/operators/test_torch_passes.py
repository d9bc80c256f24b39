"""Gradients written by hand for PyTorch: those of the plain operations, and in turn theirs."""

import keras
import numpy as np
import pytest
from helpers import normal

from dynzoo import backend, operators
from dynzoo import layers as dl
from dynzoo.operators import torch_passes

SUITS = torch_passes.suits
pytestmark = pytest.mark.skipif("keras.backend.backend() != 'torch'", reason="PyTorch only")


def both_ways(monkeypatch, layer, shape, seed=0):
    """Output, gradients, and gradients of their square, by hand and by operation."""
    import torch

    results = []

    used = []
    for by_hand in (True, False):

        def chosen(*tensors, by_hand=by_hand):
            used.append(by_hand and SUITS(*tensors))
            return used[-1]

        monkeypatch.setattr(torch_passes, "suits", chosen)
        x = keras.ops.convert_to_tensor(normal(shape, seed)).requires_grad_()
        weights = [v.value for v in layer.trainable_variables]
        y = layer(x)
        towards = keras.ops.convert_to_tensor(normal(tuple(y.shape), seed + 1))
        found = torch.autograd.grad((y * towards).sum(), [x, *weights])
        once = torch.autograd.grad((layer(x).sin() * towards).sum(), x, create_graph=True)[0]
        twice = torch.autograd.grad(once.square().sum(), [x, *weights], allow_unused=True)
        results.append([t.detach().numpy() for t in (y, *found, once, *twice)])
    assert any(used)
    return zip(*results, strict=True)


@pytest.mark.parametrize("fraction", [0.25, 0.5])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 5, 16), (2, 2, 1, 24), (1, 1, 3, 10)])
def test_sort_and_shift(monkeypatch, shape, reverse, fraction):
    layer = dl.MaxMinShift(reverse=reverse, fraction=fraction)
    for ours, theirs in both_ways(monkeypatch, layer, shape):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 3, 6)])
def test_sort(monkeypatch, shape):
    for ours, theirs in both_ways(monkeypatch, dl.MaxMin(), shape):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("step_size", ["maximal", 0.7])
def test_steps(monkeypatch, use_bias, step_size):
    settings = {"step_size": step_size, "steps": 2, "use_bias": use_bias, "seed": 0}
    for operator, shape in (
        (operators.Dense(3), (5, 8)),
        (operators.Pointwise(4), (2, 3, 3, 8)),
    ):
        layer = dl.GradientFlow(operator, **settings)
        layer.build((None, *shape[1:]))
        for bias in layer.biases:
            bias.assign(0.1 * normal(tuple(bias.shape), 3))
        for ours, theirs in both_ways(monkeypatch, layer, shape):
            np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_blocks_of_images_change_nothing(monkeypatch):
    layer = dl.MaxMinShift()
    whole = [a for a, _ in both_ways(monkeypatch, layer, (7, 4, 4, 16))]
    monkeypatch.undo()
    monkeypatch.setattr(torch_passes, "_BLOCK", 2 * 4 * 4 * 16 * 4)  # two images
    for ours, theirs in zip(whole, both_ways(monkeypatch, layer, (7, 4, 4, 16)), strict=True):
        assert (ours == theirs[0]).all()


def test_what_it_leaves_to_pytorch():
    import torch

    x = torch.ones((2, 4), requires_grad=True)
    assert torch_passes.suits(x) and not torch_passes.suits(x.detach())
    assert not torch_passes.suits(x.double()) and not torch_passes.suits(x, x.bfloat16())
    with torch.no_grad():
        assert not torch_passes.suits(x)
    seen = []
    torch.func.grad(lambda t: (seen.append(torch_passes.suits(t)), t.sum())[1])(x)
    assert seen == [False]
    backend.value_and_grad(lambda t: (seen.append(torch_passes.suits(t)), t.sum())[1])(x)
    assert seen == [False, False] and torch_passes.suits(x)
