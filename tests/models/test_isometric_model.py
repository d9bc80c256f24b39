"""The isometric classifier: 1-Lipschitz as a whole, signal kept, reproducible, errors named."""

import keras
import numpy as np
import pytest
from helpers import jacobian, norm, normal

import dynzoo
from dynzoo import backend, constraints, layers
from dynzoo.models import isometric_classifier

TINY = {
    "input_shape": (4, 4, 2),
    "num_classes": 3,
    "widths": (8, 12),
    "steps": (2, 1),
    "mean": None,
    "neck_units": 8,
    "dense_steps": 1,
}
OPERATORS = ("shifted", "shifted_pointwise", "conv")


def body_float64(model, last="head"):
    """The model up to (and without) a layer as a float64 function, layer by layer."""
    names = [layer.name for layer in model.layers]

    def run(x):
        for layer in model.layers[1 : names.index(last)]:
            flat = isinstance(layer, keras.layers.Flatten)
            x = x.reshape(len(x), -1) if flat else layer.call_float64(x)
        return x

    return run


def perturbed(model, scale=0.5):
    """Random weights, projected: nothing of the orthogonal start is left."""
    model.set_weights([normal(w.shape, i, scale) for i, w in enumerate(model.get_weights())])
    constraints.project(model)
    return model


@pytest.mark.parametrize("operator", OPERATORS)
def test_body_is_one_lipschitz_and_each_logit_too(operator):
    model = perturbed(isometric_classifier(operator=operator, **TINY))
    body = body_float64(model)
    bounds = [
        layer.lipschitz_bound(layer.input.shape)
        for layer in model.layers[1:-1]
        if hasattr(layer, "lipschitz_bound")
    ]
    assert len(bounds) == len(model.layers) - 3  # all but input, Flatten and head
    assert np.prod(bounds) <= 1 + 1e-4
    x, y = (normal((30, 4, 4, 2), seed).astype(np.float64) for seed in (1, 2))
    before = np.linalg.norm((x - y).reshape(30, -1), axis=1)
    assert (np.linalg.norm(body(x) - body(y), axis=1) <= before * (1 + 1e-5)).all()
    assert norm(jacobian(body, x[0])) <= 1 + 1e-5
    logits = [backend.to_numpy(model(a.astype("float32"))).astype(np.float64) for a in (x, y)]
    assert (np.abs(logits[0] - logits[1]).max(axis=1) <= before * (1 + 1e-4)).all()
    np.testing.assert_allclose(logits[0], model.layers[-1].call_float64(body(x)), atol=1e-4)


def test_no_signal_is_lost_before_the_neck():
    # orthonormal rows, ReLU, h = 2: up to the neck every Jacobian is orthogonal
    arguments = {**TINY, "widths": (8,), "steps": (4,)}
    model = perturbed(isometric_classifier(**arguments))
    m = jacobian(body_float64(model, "neck"), normal((4, 4, 2), 3))
    np.testing.assert_allclose(m.T @ m, np.eye(32), atol=1e-4)


def test_arguments_reach_the_layers():
    model = isometric_classifier(
        **{**TINY, "mean": (0.3, 0.6)}, inner_ratio=0.25, shift_fraction=1.0, activation="tanh"
    )
    kinds = [type(layer) for layer in model.layers]
    assert kinds.count(layers.SpaceToDepth) == 2
    assert kinds.count(layers.GradientFlow) == 4 and kinds.count(layers.MaxMin) == 3
    assert kinds.count(layers.MaxMinShift) == 1
    assert kinds.count(layers.MeanShift) == kinds.count(layers.PositionOffset) == 1
    flows = [layer for layer in model.layers if isinstance(layer, layers.GradientFlow)]
    assert [f.operator.units for f in flows] == [2, 2, 3, 2]
    assert {f.activation for f in flows} == {"tanh"} and flows[0].step_sizes() == [2.0]
    shifts = (layers.SpatialShift, layers.MaxMinShift)
    configs = [layer.get_config() for layer in model.layers if isinstance(layer, shifts)]
    assert [c["reverse"] for c in configs] == [False, True, False]
    assert all(c["fraction"] == 1.0 for c in configs)
    assert model.layers[1].mean == [0.3, 0.6]
    assert model.layers[-1].name == "head" and model.output_shape == (None, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"between": "beta_abs", "head": "orthonormal"},
        {"between": "none", "step_size": 1.0},
        {"constraint": "spectral_norm"},
        {"constraint": "spectral_norm", "operator": "conv", "between": "beta_abs"},
        {"pooling": "l2", "positions": "every"},
        {"flow": "implicit", "step_size": 5.0},
    ],
)
def test_variants_are_one_lipschitz_and_what_they_say(arguments):
    model = perturbed(isometric_classifier(**{**TINY, **arguments}))
    certificate = dynzoo.certify(model)
    x, y = (normal((30, 4, 4, 2), seed) for seed in (1, 2))
    gap = backend.to_numpy(model(x)).astype(np.float64) - backend.to_numpy(model(y))
    before = np.linalg.norm((x - y).reshape(30, -1), axis=1)
    assert (np.abs(gap).max(axis=1) <= before * (1 + 1e-4)).all()
    assert certificate.lipschitz < 2
    kinds = [type(layer) for layer in model.layers]
    flows = [layer for layer in model.layers if isinstance(layer, layers.GradientFlow)]
    assert len(flows) == 4
    assert {f.step_sizes()[0] for f in flows} == {arguments.get("step_size", 2.0)}
    activation = {"maxmin": (4, 0), "beta_abs": (0, 4), "none": (0, 0)}
    found = (sum(issubclass(k, layers.MaxMin) for k in kinds), kinds.count(layers.BetaAbs))
    assert found == activation[arguments.get("between", "maxmin")]
    head = layers.OrthonormalDense if "head" in arguments else layers.UnitRowDense
    assert isinstance(model.layers[-1], head)
    assert kinds.count(layers.L2Pooling2D) == ("pooling" in arguments)
    assert kinds.count(layers.PositionOffset) == (2 if "positions" in arguments else 1)
    if "pooling" in arguments:
        assert model.get_layer("neck").input.shape == (None, 12)
    if "constraint" in arguments:
        kernel = backend.to_numpy(flows[-1].kernels[0].value)  # projected from a random start
        assert np.linalg.svd(kernel, compute_uv=False).min() < 0.9


@pytest.mark.parametrize(("step_size", "beta"), [("maximal", 2.0), (0.1, 30.0)])
def test_softmax_flows_step_over_keys_and_stay_one_lipschitz(step_size, beta):
    model = isometric_classifier(**TINY, flow="softmax", step_size=step_size, beta=beta)
    model = perturbed(model)
    flows = [a for a in model.layers if isinstance(a, layers.SoftmaxGradientFlow)]
    assert [f.keys for f in flows] == [4, 4, 6, 4]
    assert {f.step_sizes()[0] for f in flows} == {2.0 if step_size == "maximal" else 0.1}
    assert not any(isinstance(a, layers.GradientFlow) for a in model.layers)
    x, y = (normal((30, 4, 4, 2), seed) for seed in (1, 2))
    gap = backend.to_numpy(model(x)).astype(np.float64) - backend.to_numpy(model(y))
    before = np.linalg.norm((x - y).reshape(30, -1), axis=1)
    assert (np.abs(gap).max(axis=1) <= before * (1 + 1e-4)).all()
    assert dynzoo.certify(model).body_lipschitz < 1.0 + 1e-4


def test_shifts_are_undone_in_turn_whatever_is_between():
    reverses = []
    for between in ("maxmin", "beta_abs", "none"):
        model = isometric_classifier(**{**TINY, "steps": (4, 1)}, between=between)
        shifts = (layers.SpatialShift, layers.MaxMinShift)
        found = [a.reverse for a in model.layers if isinstance(a, shifts)]
        reverses.append(found)
    assert reverses == [[False, True, False, True, False]] * 3


def test_narrow_first_stage_uses_an_orthonormal_map():
    model = isometric_classifier(**{**TINY, "widths": (4, 4)})
    kinds = [type(layer) for layer in model.layers]
    assert kinds.count(layers.OrthonormalPointwise) == 2 and layers.ChannelPadding not in kinds


def test_seed_decides_the_weights():
    one, same, other = (isometric_classifier(seed=s, **TINY).get_weights() for s in (1, 1, 2))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    kernels = [w for w in one if w.ndim == 2 and w.shape == (8, 4)]
    assert not np.array_equal(kernels[0], kernels[1])  # each layer has a seed of its own


def test_save_and_load(tmp_path):
    model = perturbed(isometric_classifier(**TINY))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = normal((2, 4, 4, 2))
    np.testing.assert_array_equal(backend.to_numpy(again(x)), backend.to_numpy(model(x)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": (1,)}, "`steps` must have one entry for each of `widths`"),
        ({"widths": (), "steps": ()}, "`widths` must list positive integers"),
        ({"operator": "dense"}, "`operator` must be"),
        ({"inner_ratio": 0.0}, "`inner_ratio` must be in"),
        ({"inner_ratio": 1.2}, "`inner_ratio` must be in"),
        ({"shift_fraction": 0.0}, "`shift_fraction` must be in"),
        ({"num_classes": 1}, "`num_classes` must be at least 2"),
        ({"activation": "gelu"}, "`activation` must have slopes"),
        ({"between": "relu"}, "`between` must be one of"),
        ({"head": "dense"}, "`head` must be one of"),
        ({"pooling": "max"}, "`pooling` must be one of"),
        ({"positions": "none"}, "`positions` must be one of"),
        ({"constraint": None}, "`constraint` must be one of"),
        ({"constraint": "orthonormal", "operator": "conv"}, "`constraint` must be"),
        ({"step_size": 2.5}, "`step_size` must be in"),
        ({"flow": "heat"}, "`flow` must be one of"),
        ({"flow": "implicit"}, "`step_size` must be a positive number for flow='implicit'"),
        ({"flow": "softmax", "operator": "conv"}, "`operator` must be 'shifted' for flow="),
        ({"flow": "softmax", "constraint": "orthonormal"}, "`constraint` must be 'default' or"),
        ({"flow": "softmax", "step_size": 1.1}, "`step_size` must be in"),
        ({"flow": "softmax", "beta": 0.0}, "`beta` must be"),
        ({"block_size": 3}, "divisible by 6"),
        ({"mean": (0.5,)}, "`mean` must have 2 entries"),
        ({"widths": (7, 8)}, "even number of channels"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        isometric_classifier(**{**TINY, **arguments})


@pytest.mark.parametrize("arguments", [{"widths": (0,)}, {"steps": (0,)}, {"widths": (8.0,)}])
def test_widths_and_steps_are_positive_integers(arguments):
    name = next(iter(arguments))
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer"):
        isometric_classifier(**{"widths": (8,), "steps": (1,), **arguments})
