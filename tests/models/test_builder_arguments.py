"""What the builders of models refuse, by the name of the argument, and their seeds."""

import numpy as np
import pytest

from dynzoo.models import ARCHITECTURES
from dynzoo.models.arguments import layer_seeds

SMALL = {
    "isometric": {"widths": (4,), "steps": (1,), "neck_units": 4, "dense_steps": 0, "mean": None},
    "hamiltonian": {"widths": (4,), "steps": (1,)},
    "convection_diffusion": {"widths": (4,), "steps": (1,)},
    "resnet": {"widths": (4,), "steps": (1,)},
    "structured": {"widths": (4,), "convolutions": 2},
}
SHAPE = (8, 8, 3)


def build(name, **arguments):
    return ARCHITECTURES[name](
        **{"input_shape": SHAPE, "num_classes": 3, **SMALL[name], **arguments}
    )


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "wrong",
    [
        {"widths": 32},
        {"widths": []},
        {"widths": "wide"},
        {"widths": [4.5]},
        {"input_shape": 8},
        {"input_shape": (8, 8)},
        {"input_shape": (8, 8.5, 3)},
        {"seed": -1},
        {"seed": 1.5},
    ],
)
def test_wrong_arguments_are_named(name, wrong):
    (argument,) = wrong
    with pytest.raises(ValueError, match=f"`{argument}` must"):
        build(name, **wrong)


@pytest.mark.parametrize("name", ["hamiltonian", "convection_diffusion", "resnet", "structured"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": None},
        {"mean": 0.5},
        {"mean": ["a", "b", "c"]},
        {"mean": [0.5, 0.5]},
        {"mean": [0.5, 0.5, np.inf]},
        {"deviation": 0.2},
        {"deviation": [1.0, 1.0, 0.0]},
    ],
)
def test_normalisations_have_a_number_for_each_channel(name, wrong):
    (argument,) = wrong
    with pytest.raises(ValueError, match=f"`{argument}` must"):
        build(name, **wrong)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("isometric", {"steps": 2}),
        ("isometric", {"inner_ratio": "0.5"}),
        ("isometric", {"shift_fraction": 2}),
        ("isometric", {"neck_units": 0}),
        ("isometric", {"dense_steps": -1}),
        ("isometric", {"input_shape": (9, 8, 3)}),
        ("convection_diffusion", {"input_noise": 1.5}),
    ],
)
def test_arguments_of_some(name, wrong):
    (argument,) = wrong
    with pytest.raises(ValueError, match=f"`{argument}` must"):
        build(name, **wrong)


@pytest.mark.parametrize("name", SMALL)
def test_a_date_is_a_seed(name):
    """Larger than a thousandth of what the backends take."""
    build(name, seed=20261130)


def test_seeds_of_layers():
    assert list(layer_seeds(3, 250)) == [3000, 3250, 3500, 3750]
    many = list(layer_seeds(2**32 - 1))
    assert len(set(many)) == 1000 and 0 <= min(many) and max(many) < 2**31
