"""Hamiltonian networks: their maps recomputed from the weights, what the flows keep, a run."""

import keras
import numpy as np
import pytest
from helpers import normal

import dynzoo
from dynzoo import backend
from dynzoo.models import ARCHITECTURES, hamiltonian_classifier
from dynzoo.training import loop as training
from dynzoo.training import recipes

SHAPE = (8, 8, 3)
SMALL = {"input_shape": SHAPE, "num_classes": 5, "widths": (4, 6), "steps": (2, 3)}


def images(count=4, seed=0):
    return np.random.default_rng(seed).uniform(size=(count, *SHAPE)).astype("float32")


def test_leapfrog_recomputed_from_the_weights():
    """One pixel at a time: normalise, lift, drift-kick-drift, mean, dense."""
    model = hamiltonian_classifier(
        SHAPE, 5, widths=(4,), steps=(2,), operator="pointwise", block_size=1, seed=3
    )
    lift, flow, head = (model.get_layer(n) for n in ("lift_0", "flow_0", "head"))
    mean, deviation = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    x = images().astype(np.float64)
    lifted = backend.to_numpy(lift(((x - mean) / deviation).astype("float32"))).astype(np.float64)
    q, p = lifted[..., :2], lifted[..., 2:]
    h = flow.step_sizes()[0]
    kernels = [backend.to_numpy(k.value).astype(np.float64) for k in flow.kernels]

    def force(kernel, z):
        return np.tanh(z @ kernel) @ kernel.T

    assert h == 0.5 and flow.integrator == "leapfrog"
    for i in range(2):
        a, b = kernels[2 * i : 2 * i + 2]
        q = q + 0.5 * h * force(a, p)
        p = p - h * force(b, q)
        q = q + 0.5 * h * force(a, p)
    features = np.concatenate([q, p], axis=-1).mean(axis=(1, 2))
    kernel, bias = (backend.to_numpy(w.value) for w in head.weights)
    np.testing.assert_allclose(
        backend.to_numpy(model(images())), features @ kernel + bias, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("normalization", [None, "batch"])
@pytest.mark.parametrize("operator", ["conv", "pointwise"])
def test_hamiltonian_stages_can_be_undone(operator, normalization):
    model = hamiltonian_classifier(**SMALL, operator=operator, normalization=normalization)
    flows = [layer for layer in model.layers if layer.name.startswith("flow_")]
    assert [f.steps for f in flows] == [2, 3]
    for flow in flows:
        z = normal((2, *flow.input.shape[1:]), 1)
        np.testing.assert_allclose(backend.to_numpy(flow.inverse(flow(z))), z, atol=1e-4)
    batches = [la for la in model.layers if isinstance(la, keras.layers.BatchNormalization)]
    assert len(batches) == (2 if normalization else 0)


@pytest.mark.parametrize("operator", ["conv", "pointwise"])
def test_contractive_stages_contract_whatever_the_weights(operator):
    model = hamiltonian_classifier(**SMALL, flow="contractive", operator=operator, head="flatten")
    for weight in model.trainable_weights:
        weight.assign(10.0 * normal(tuple(weight.shape), 2))
    dynzoo.project(model)
    for flow in (model.get_layer("flow_0"), model.get_layer("flow_1")):
        assert max(flow.step_factors(flow.input.shape)) <= 1.0
        x, y = normal((2, 16, *flow.input.shape[1:]), 4)
        before, after = (
            np.linalg.norm((a - b).reshape(16, -1), axis=1)
            for a, b in ((x, y), (backend.to_numpy(flow(x)), backend.to_numpy(flow(y))))
        )
        assert (after <= before * (1 + 1e-5)).all() and (after < 0.999 * before).any()


@pytest.mark.parametrize("flow", ["hamiltonian", "contractive"])
def test_the_bound_of_the_whole_is_sound(flow):
    model = hamiltonian_classifier(**SMALL, flow=flow, normalization="batch")
    certificate = dynzoo.certify(model)
    x, y = images(16, 1), images(16, 2)
    gap = backend.to_numpy(model(x)).astype(np.float64) - backend.to_numpy(model(y))
    moved = np.linalg.norm(gap, axis=1)
    assert (moved <= certificate.lipschitz * np.linalg.norm((x - y).reshape(16, -1), axis=1)).all()


def test_seed_decides_the_weights():
    one, same, other = (hamiltonian_classifier(seed=s, **SMALL).get_weights() for s in (1, 1, 2))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (5, 6)}, "`widths` must be even"),
        ({"flow": "damped"}, "`flow` must be one of 'hamiltonian', 'contractive'"),
        ({"operator": "dense"}, "`operator` must be one of 'conv', 'pointwise'"),
        ({"normalization": "layer"}, "`normalization` must be one of None, 'batch'"),
        ({"head": "max"}, "`head` must be one of 'mean', 'flatten'"),
        ({"block_size": 0}, "`block_size`"),
        ({"steps": (1,)}, "`steps` must have one entry for each of `widths`"),
        ({"num_classes": 1}, "`num_classes` must be at least 2"),
        ({"input_shape": (6, 6, 3)}, "divisible by 4"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        hamiltonian_classifier(**{**SMALL, **arguments})


def test_the_digits_network_is_the_papers():
    recipe = recipes.load("contractive_hamiltonian_mnist")
    assert ARCHITECTURES[recipe["architecture"]["name"]] is hamiltonian_classifier
    model = training.build_model(recipe, 10, (28, 28, 1))
    assert model.count_params() == 63_386
    assert max(model.get_layer("flow_0").step_factors((None, 28, 28, 8))) < 1.0


def test_trained_stages_can_be_undone():
    if "hamiltonian_cifar10" not in dynzoo.presets():
        pytest.skip("its weights are not here")
    model = dynzoo.from_preset("hamiltonian_cifar10")
    x = np.random.default_rng(0).uniform(size=(4, 32, 32, 3)).astype("float32")
    flows = [layer for layer in model.layers if layer.name.startswith("flow_")]
    assert len(flows) == 3
    for flow in flows:
        features = keras.Model(model.input, flow.input)(x)
        back = backend.to_numpy(flow.inverse(flow(features)))
        features = backend.to_numpy(features)
        assert np.abs(back - features).max() < 2e-6 * np.abs(features).max()


def test_a_run_leaves_a_preset_that_computes_the_same(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (96, 8, 8, 1), dtype=np.uint8)
    y = np.arange(96) % 3
    x[np.arange(96), y] = 255
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    recipe = {
        **recipes.load("contractive_hamiltonian_mnist"),
        "name": "tiny",
        "data": {"name": "none", "validation": 24, "crop_padding": 0, "flip": False},
    }
    recipe["training"] |= {"epochs": 4, "batch_size": 8}
    model = training.train(
        recipe, tmp_path / "data.npz", tmp_path / "run", verbose=0, log=lambda line: None
    )
    preset = dynzoo.from_preset(tmp_path / "run" / "preset")
    z = np.random.default_rng(3).uniform(size=(8, 8, 8, 1)).astype("float32")
    np.testing.assert_allclose(
        backend.to_numpy(preset(z)), backend.to_numpy(model(z)), atol=1e-5, rtol=1e-5
    )
    learned = preset.predict(x / np.float32(255), verbose=0).argmax(axis=1) == y
    assert learned.mean() > 0.9
