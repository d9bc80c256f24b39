"""The MNIST noise experiment: its noises, and that its networks build and are what they say."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import jacobian, norm, normal

import dynzoo
from dynzoo import backend

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("needs the repository's examples", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))

import mnist_networks  # noqa: E402
import noise  # noqa: E402

sys.path.remove(str(EXAMPLES))

IMAGES = np.random.default_rng(0).uniform(0, 1, (40, 28, 28, 1)).astype("float32")
DIGITS = np.where(IMAGES > 0.8, IMAGES, 0).astype("float32")  # mostly black, as digits are
ALL = [(u, k, v) for u in noise.UNITS for k, v in [("gaussian", 0.2), ("salt_and_pepper", 0.2)]]


@pytest.mark.parametrize("units, kind, level", ALL)
def test_noise_is_seeded_and_leaves_its_input_alone(units, kind, level):
    before = DIGITS.copy()
    first = noise.UNITS[units](DIGITS, kind, level, 3)
    np.testing.assert_array_equal(first, noise.UNITS[units](DIGITS, kind, level, 3))
    assert np.any(first != noise.UNITS[units](DIGITS, kind, level, 4))
    np.testing.assert_array_equal(DIGITS, before)
    assert first.dtype == np.float32 and first.shape == DIGITS.shape


@pytest.mark.parametrize("units, kind, level", ALL)
def test_noise_stays_in_its_range(units, kind, level):
    noisy = noise.UNITS[units](DIGITS, kind, level, 0)
    low, high = 0.0, 1.0
    if units == "published":  # [-1, 1] in normalised units
        low, high = noise.MEAN - noise.DEVIATION, noise.MEAN + noise.DEVIATION
    assert noisy.min() == pytest.approx(low, abs=1e-6)
    assert noisy.max() == pytest.approx(high, abs=1e-6)


def test_gaussian_noise_has_its_variance_where_nothing_is_clipped():
    grey = np.full((50, 28, 28, 1), 0.5, "float32")
    added = noise.pixel_noise(grey, "gaussian", 0.01, 0) - grey
    assert abs(added.mean()) < 2e-3
    assert added.std() == pytest.approx(0.1, rel=0.02)
    middle = np.full_like(grey, noise.MEAN)
    middle[0, 0, 0] = 0.0  # one negative value in normalised units sets the range to [-1, 1]
    added = noise.published_noise(middle, "gaussian", 0.01, 0) - middle
    assert added[1:].std() == pytest.approx(0.1 * noise.DEVIATION, rel=0.02)


@pytest.mark.parametrize("amount", [0.05, 0.2])
def test_salt_and_pepper_hits_its_share_and_only_that(amount):
    grey = np.full((50, 28, 28, 1), 0.5, "float32")
    noisy = noise.pixel_noise(grey, "salt_and_pepper", amount, 0)
    assert set(np.unique(noisy)) == {0.0, 0.5, 1.0}
    assert np.mean(noisy == 1) == pytest.approx(amount / 2, rel=0.12)
    assert np.mean(noisy == 0) == pytest.approx(amount / 2, rel=0.12)


def test_published_clip_cuts_strokes_without_any_noise():
    clipped = noise.published_noise(DIGITS, "clip", 0.0, 0)
    top = noise.MEAN + noise.DEVIATION
    np.testing.assert_allclose(clipped, np.minimum(DIGITS, top), atol=1e-6)
    np.testing.assert_array_equal(noise.pixel_noise(DIGITS, "clip", 0.0, 0), DIGITS)


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="`kind` must be 'gaussian'"):
        noise.pixel_noise(DIGITS, "speckle", 0.1, 0)


@pytest.mark.parametrize("name", mnist_networks.NETWORKS)
def test_network_is_the_published_size_and_certifiable(name):
    model = mnist_networks.network(name, seed=2)
    assert model.count_params() == 63386
    x = IMAGES[:2]
    layer = model.get_layer("flow")
    state = normal((2, 28, 28, 8), 1, 0.5)
    out = np.asarray(backend.to_numpy(layer(state)), dtype=np.float64)
    exact = layer.call_float64(state)
    # the published map is chaotic: its steps multiply rounding errors, too
    if name != "chnode_published":
        np.testing.assert_allclose(out, exact, rtol=2e-3, atol=2e-3)
    other = state + normal(state.shape, 2, 1e-4)
    apart = np.linalg.norm(layer.call_float64(other) - exact) / np.linalg.norm(other - state)
    found = mnist_networks.facts(model)
    assert apart <= found["flow_lipschitz_bound"]
    assert np.isfinite(dynzoo.certify(model).lipschitz)
    loss = mnist_networks.penalised_loss(model)(np.array([1, 2]), model(x))
    assert np.all(np.isfinite(backend.to_numpy(loss)))


def test_only_the_provable_network_contracts():
    provable = mnist_networks.facts(mnist_networks.network("chnode_provable"))
    assert provable["flow_lipschitz_bound"] < 1
    assert provable["step_size"] <= provable["largest_contractive_step"]
    published = mnist_networks.facts(mnist_networks.network("chnode_published"))
    assert published["contraction_rate_of_ode"] > 0  # the ODE contracts
    assert published["step_size"] > 1000 * published["largest_contractive_step"]


def test_published_flow_is_its_formula():
    """One step, written out with matrices."""
    flow = mnist_networks.PublishedContractiveFlow(dynzoo.operators.Dense(4), steps=1, seed=0)
    flow.build((None, 4))
    kernel, bias = normal((4, 4), 1).astype("float64"), normal((4,), 2)
    flow.kernels[0].assign(kernel)
    flow.biases[0].assign(bias)
    x = normal((3, 4), 3)
    c1 = 0.02**2
    c2 = c1 + np.linalg.norm(kernel, 2) ** 2
    gamma = 1 / np.sqrt(1 - ((c2 - c1) / (c2 + c1)) ** 2 - 1e-6)
    eye, zero = np.eye(2), np.zeros((2, 2))
    form = np.block([[zero, eye], [-eye, zero]]) - gamma * np.eye(4)
    expected = x + 0.5 * (np.tanh(x @ kernel + bias) @ kernel.T + c1 * x) @ form.T
    np.testing.assert_allclose(flow.call_float64(x), expected, rtol=1e-5)
    np.testing.assert_allclose(backend.to_numpy(flow(x)), expected, rtol=1e-3, atol=1e-3)


def test_bound_of_the_residual_flow_is_attained():
    flow = mnist_networks.ResidualFlow(dynzoo.operators.Dense(2), steps=2, seed=0)
    flow.build((None, 2))
    for kernel in flow.kernels:
        kernel.assign(3 * np.eye(2))
    assert flow.lipschitz_bound((None, 2)) == pytest.approx(2.5**2)
    at_zero = norm(jacobian(flow.call_float64, np.zeros((1, 2))))
    assert at_zero == pytest.approx(2.5**2, rel=1e-5)


def test_smoothness_penalty_is_the_published_sum():
    model = mnist_networks.network("resnet")
    logits = keras.ops.zeros((1, 10))
    loss = float(backend.to_numpy(mnist_networks.penalised_loss(model)(np.array([0]), logits))[0])
    flow = model.get_layer("flow")
    jumps = sum(
        np.sum((backend.to_numpy(b) - backend.to_numpy(a)) ** 2)
        for group in (flow.kernels, flow.biases)
        for a, b in zip(group, group[1:], strict=False)
    )
    squares = sum(np.sum(backend.to_numpy(w) ** 2) for w in model.trainable_variables)
    expected = np.log(10) + 1e-4 * squares + 1e-3 * 0.25 * 7 * jumps
    assert loss == pytest.approx(expected, rel=1e-4)
