"""Layers on images and tokens whose number is not known before they come."""

import keras
import numpy as np
import pytest
from helpers import normal

from dynzoo import backend, layers, operators

IMAGES = {
    "gradient, pointwise": lambda: layers.GradientFlow(operators.Pointwise(4)),
    "gradient, shifted": lambda: layers.GradientFlow(operators.ShiftedPointwise(4)),
    "gradient, circular": lambda: layers.GradientFlow(operators.Conv(3, padding="circular")),
    "implicit": lambda: layers.ImplicitGradientFlow(operators.Pointwise(4)),
    "switching": lambda: layers.SwitchingFlow(operators.Pointwise(8)),
    "joint hamiltonian": lambda: layers.HamiltonianFlow(
        operators.Pointwise(8), hamiltonian="joint"
    ),
    "spherical": lambda: layers.SphericalFlow(operators.Pointwise(4), integrator="cayley"),
    "presnov": lambda: layers.PresnovFlow(operators.Pointwise(4)),
    "first integral": lambda: layers.FirstIntegralFlow(operators.Pointwise(4)),
    "mass": lambda: layers.MassPreservingFlow(operators.Pointwise(4)),
    "orthonormal": lambda: layers.OrthonormalPointwise(5),
    "unit rows": lambda: layers.UnitRowDense(5),
    "shift": lambda: layers.SpatialShift(),
    "shift, no wrap": lambda: layers.SpatialShift(padding="zero"),
    "maxmin, shift": lambda: layers.MaxMinShift(),
}
TOKENS = {
    "gradient": lambda: layers.GradientFlow(operators.Dense(4)),
    "switching": lambda: layers.SwitchingFlow(operators.Dense(8)),
    "hamiltonian": lambda: layers.HamiltonianFlow(operators.Dense(4)),
    "orthonormal": lambda: layers.OrthonormalDense(6),
    "unit rows": lambda: layers.UnitRowDense(5),
}


def check(layer, sizes):
    inputs = keras.Input((*[None] * len(sizes[0]), 8))
    model = keras.Model(inputs, layer(inputs))
    for size in sizes:
        x = normal((3, *size, 8), 1)
        expected = layer.call_float64(x)
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-4)
        np.testing.assert_allclose(backend.to_numpy(model(x)), expected, atol=1e-4)


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_any_size(name):
    check(IMAGES[name](), [(4, 6), (5, 3)])


@pytest.mark.parametrize("name", TOKENS)
def test_any_number_of_tokens(name):
    check(TOKENS[name](), [(5,), (1,)])
