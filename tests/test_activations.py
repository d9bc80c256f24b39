"""Activations of gradient flows: their slopes are what they state, and others are refused."""

import keras
import numpy as np
import pytest
from keras import ops

from dynzoo import activations, backend

GRID = np.linspace(-12, 12, 24001)


@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_slopes_are_the_stated_ones(name):
    activation = activations.get(name)
    slopes = np.diff(activation.reference(GRID)) / np.diff(GRID)
    assert slopes.min() >= activation.slope_min - 1e-9
    assert slopes.max() <= activation.slope_max + 1e-9
    # The stated range is not larger than need be: a sharp bound depends on it.
    far = np.array([-1e6, -1e6 + 1, 1e6 - 1, 1e6])
    tails = np.diff(activation.reference(far))[[0, 2]]
    assert min(slopes.min(), tails.min()) <= activation.slope_min + 1e-3
    assert slopes.max() >= activation.slope_max - 1e-3


@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_reference_agrees_with_the_backend(name):
    activation = activations.get(name)
    x = np.concatenate([GRID[::50], [-1.0, 0.0, 1.0, 80.0, -80.0]]).astype("float32")
    np.testing.assert_allclose(
        backend.to_numpy(activation(ops.convert_to_tensor(x))),
        activation.reference(x.astype(np.float64)),
        rtol=1e-5,
        atol=2e-6,
    )


def test_lookup():
    assert activations.get(None).name == "linear"
    assert activations.get(keras.activations.relu).name == "relu"
    assert activations.get(activations.get("tanh")).name == "tanh"
    own = activations.MonotoneActivation("half", 0.5, 0.5, lambda x: x / 2, lambda x: x / 2)
    assert activations.get(own) is own


def test_another_function_under_a_known_name_is_refused():
    own = activations.MonotoneActivation("relu", 0.5, 0.5, lambda x: x / 2, lambda x: x / 2)
    with pytest.raises(ValueError, match="`activation` must have a name of its own"):
        activations.get(own)


@pytest.mark.parametrize(
    "activation",
    ["gelu", "silu", "mish", "maxmin", "selu", "exponential", "", 3, lambda x: x, keras.ops.relu6],
)
def test_unknown_slopes_are_refused(activation):
    with pytest.raises(ValueError, match="`activation` must have slopes known to lie in"):
        activations.get(activation)


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.0, 1.5), (0.7, 0.3)])
def test_stated_slopes_outside_the_range_are_refused(low, high):
    own = activations.MonotoneActivation("own", low, high, lambda x: x, lambda x: x)
    with pytest.raises(ValueError, match="`activation` must have slopes in"):
        activations.get(own)
