"""ConvectionDiffusionFlow: its noise, its means against the heat semigroup, and its bounds."""

import keras
import numpy as np
import pytest
from helpers import normal, worst_gain
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, certificates, constraints, operators
from dynzoo.fields.convection_diffusion import brownian_std, fixed_noise
from dynzoo.layers.convection_diffusion_flow import ConvectionDiffusionFlow
from dynzoo.layers.feynman_kac import feynman_kac_mean


def built(shape=(5,), weights=True, operator=None, scale=2.0, **arguments):
    """A flow with random weights inside their constraints (or zero weights: no convection)."""
    layer = ConvectionDiffusionFlow(operator or operators.Dense(4), **{"seed": 1, **arguments})
    layer.build((None, *shape))
    layer.set_weights(
        [normal(w.shape, i, scale if weights else 0.0) for i, w in enumerate(layer.get_weights())]
    )
    constraints.project(layer)
    return layer


def passed(layer, x, **arguments):
    return backend.to_numpy(layer(x, **arguments))


def mean_square_model(flow, size):
    """f(x) = |x|^2 behind the flow."""
    inputs = keras.Input((size,))
    return keras.Model(inputs, ops.sum(flow(inputs) ** 2, axis=-1, keepdims=True))


# --- the noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("sigma", "step_size"), [(0.3, 0.5), (0.1, 2.0)])
def test_noise_variance_in_training_and_random_inference(sigma, step_size):
    layer = built((50,), weights=False, sigma=sigma, step_size=step_size, inference="random")
    wanted = 2 * sigma**2 * step_size
    assert layer.guarantees()[0].value == pytest.approx(wanted)
    assert layer.noise_std == brownian_std(sigma, step_size) == pytest.approx(np.sqrt(wanted))
    x = np.zeros((400, 50), "float32")
    for training in (True, False):
        noise = passed(layer, x, training=training).astype(np.float64)
        # 20 000 numbers: the variance is known to 1 %, the mean to its standard error
        assert noise.var() == pytest.approx(wanted, rel=0.05)
        assert abs(noise.mean()) < 5 * np.sqrt(wanted / noise.size)
        # each entry of each example by itself
        assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.25
        assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 0.6


def test_noise_of_several_steps_adds_its_variances():
    layer = built((50,), weights=False, sigma=0.2, step_size=0.5, steps=3)
    noise = passed(layer, np.zeros((400, 50), "float32"), training=True).astype(np.float64)
    assert noise.var() == pytest.approx(3 * 2 * 0.2**2 * 0.5, rel=0.05)


@pytest.mark.parametrize("inference", ["mean", "random", "deterministic"])
def test_which_randomness_acts(inference):
    layer = built(inference=inference, sigma=0.3, steps=2)
    x = normal((3, 5), 2)
    assert layer.random_at_inference == (inference == "random")
    first, second = passed(layer, x), passed(layer, x)
    assert np.array_equal(first, second) == (inference != "random")
    assert not np.array_equal(passed(layer, x, training=True), passed(layer, x, training=True))
    quiet = built(inference=inference, sigma=0.0, steps=2)
    assert not quiet.random_at_inference
    np.testing.assert_array_equal(passed(quiet, x, training=True), passed(quiet, x))
    if inference == "deterministic":
        np.testing.assert_allclose(first, passed(quiet, x), atol=1e-6)


def test_seed_repeats_the_noise_and_layers_without_one_differ():
    x = np.zeros((2, 5), "float32")
    one, other = (built(seed=7, weights=False) for _ in range(2))
    np.testing.assert_array_equal(passed(one, x, training=True), passed(other, x, training=True))
    one, other = (built(seed=None, weights=False) for _ in range(2))
    assert np.abs(passed(one, x, training=True) - passed(other, x, training=True)).max() > 1e-3


def test_tensor_std_is_the_noise_of_enresnet_and_depends_on_the_batch():
    arguments = {"weights": False, "sigma": 0.1, "step_size": 0.5, "noise_scaling": "tensor_std"}
    layer = built((50,), **arguments, inference="random")
    x = normal((400, 50), 3, 7.0)
    noise = (passed(layer, x) - x).astype(np.float64)
    assert noise.std() == pytest.approx(0.1 * x.std(), rel=0.03)
    assert layer.depends_on_batch and layer.guarantees() == []
    assert not built(sigma=0.1).depends_on_batch
    mean = built(**{**arguments, "weights": True}, steps=2)
    x = normal((4, 5), 3)
    alone, together = passed(mean, x[:1]), passed(mean, np.concatenate([x[:1], 50 * x]))[:1]
    assert mean.depends_on_batch and np.abs(alone - together).max() > 1e-3
    np.testing.assert_allclose(passed(mean, x), mean.call_float64(x), atol=1e-5)
    with pytest.raises(ValueError, match="no Lipschitz bound"):
        mean.lipschitz_bound((None, 5))


def test_fixed_paths_are_normal_and_come_in_pairs():
    noise = fixed_noise(3, 2, 200, (50,)).astype(np.float64)
    assert noise.shape == (2, 200, 50)
    np.testing.assert_array_equal(noise[:, :100], -noise[:, 100:])
    assert noise.var() == pytest.approx(1.0, rel=0.05)
    assert abs(np.corrcoef(noise[0, 0], noise[1, 0])[0, 1]) < 0.6
    assert fixed_noise(3, 2, 3, (4,)).shape == (2, 3, 4)


# --- means -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
def test_mean_of_a_quadratic_is_the_heat_semigroup(steps):
    size, sigma, h = 6, 0.4, 0.5
    flow = built((size,), weights=False, sigma=sigma, step_size=h, steps=steps, inference="random")
    x = normal((3, size), 5)
    samples, copies = 6, 100
    u = feynman_kac_mean(
        mean_square_model(flow, size), np.repeat(x, copies, 0), samples, batch_size=300
    )
    u = u.reshape(3, copies).mean(axis=1)
    variance = 2 * sigma**2 * h * steps
    square = (x.astype(np.float64) ** 2).sum(axis=1)
    exact = square + size * variance
    error = np.sqrt((2 * size * variance**2 + 4 * square * variance) / (samples * copies))
    assert (np.abs(u - exact) < 4 * error).all()
    assert (size * variance > 8 * error).all()  # without the noise the test would fail


def test_layer_mean_is_the_mean_of_paths_and_unbiased():
    layer = built(sigma=0.3, steps=3, samples=4)
    x = normal((3, 5), 4)
    got = passed(layer, x)
    # by hand: each path one by one, without the last noise
    quiet = built(sigma=0.3, steps=1, inference="deterministic")
    noise = fixed_noise(1, 2, 4, (5,))
    paths = []
    for path in range(4):
        y = x
        for i in range(3):
            weights = layer.get_weights()
            quiet.set_weights(weights[2 * i : 2 * i + 2])
            y = passed(quiet, y)
            if i < 2:
                y = y + layer.noise_std * noise[i, path]
        paths.append(y)
    np.testing.assert_allclose(got, np.mean(paths, axis=0), atol=1e-5)
    # many fixed paths and many random draws have the same mean
    many = built(sigma=0.3, steps=3, samples=500)
    draws = built(sigma=0.3, steps=3, inference="random")
    sampled = passed(draws, np.repeat(x, 2000, axis=0)).reshape(3, 2000, 5)
    error = sampled.std(axis=1) / np.sqrt(500)
    assert (np.abs(passed(many, x) - sampled.mean(axis=1)) < 5 * error).all()


def test_layer_mean_sees_one_example_at_a_time():
    layer = built(sigma=0.5, steps=2)
    x = normal((4, 5), 3)
    whole = passed(layer, x)
    np.testing.assert_allclose(passed(layer, x[2:3]), whole[2:3], atol=1e-6)
    np.testing.assert_allclose(passed(layer, x[::-1].copy()), whole[::-1], atol=1e-6)


def test_feynman_kac_mean_depends_on_its_seed_and_leaves_the_model_as_it_was():
    flow = built(sigma=0.3, inference="random")
    model = mean_square_model(flow, 5)
    x = normal((5, 5), 3)
    state = backend.to_numpy(flow.seed_generator.state.value)
    first = feynman_kac_mean(model, x, samples=4, seed=1, batch_size=3)
    assert first.shape == (5, 1) and first.dtype == np.float64
    np.testing.assert_array_equal(
        first, feynman_kac_mean(model, x, samples=4, seed=1, batch_size=3)
    )
    other = feynman_kac_mean(model, x, samples=4, seed=2, batch_size=3)
    assert np.abs(first - other).max() > 1e-4
    # every pass has another noise
    single = [feynman_kac_mean(model, x, samples=k, seed=1, batch_size=3) for k in (1, 2)]
    assert np.abs(single[0] - single[1]).max() > 1e-4
    np.testing.assert_array_equal(backend.to_numpy(flow.seed_generator.state.value), state)
    with pytest.raises(ValueError, match="random at inference"):
        feynman_kac_mean(mean_square_model(built(), 5), x)
    with pytest.raises(ValueError, match="`samples` must be a positive integer"):
        feynman_kac_mean(model, x, samples=0)


def test_maximum_principle_of_the_mean():
    # f = the first coordinate of a tanh, in (-1, 1): no mean leaves the range
    flow = built(sigma=2.0, inference="random")
    inputs = keras.Input((5,))
    model = keras.Model(inputs, ops.tanh(flow(inputs)))
    u = feynman_kac_mean(model, normal((4, 5), 1, 5.0), samples=8)
    assert (np.abs(u) <= 1).all()


# --- bounds ----------------------------------------------------------------------------------


@settings(max_examples=10)
@given(
    st.sampled_from(["relu", "tanh", "half_leaky_relu"]),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.floats(0.1, 1.0),
    st.integers(0, 1000),
)
def test_gradient_velocity_is_not_expansive(activation, max_norm, fraction, seed):
    layer = ConvectionDiffusionFlow(
        operators.Dense(4),
        activation=activation,
        max_norm=max_norm,
        step_size=fraction * 2 / max_norm**2,
        steps=2,
        samples=4,
        sigma=0.5,
        seed=1,
    )
    layer.build((None, 4))
    layer.set_weights([normal(w.shape, seed + i, 3.0) for i, w in enumerate(layer.get_weights())])
    constraints.project(layer)
    bound = layer.lipschitz_bound((None, 4))
    assert bound <= 1 + 1e-4
    assert worst_gain(layer.call_float64, (4,), points=1) <= bound * (1 + 1e-7)


@settings(max_examples=8)
@given(st.floats(0.1, 3.0), st.sampled_from([None, 0.7]), st.integers(0, 1000))
def test_bound_of_the_free_velocity(step_size, max_norm, seed):
    layer = ConvectionDiffusionFlow(
        operators.Dense(3), velocity="free", max_norm=max_norm, step_size=step_size, steps=2
    )
    layer.build((None, 4))
    layer.set_weights([normal(w.shape, seed + i) for i, w in enumerate(layer.get_weights())])
    constraints.project(layer)
    bound = layer.lipschitz_bound((None, 4))
    if max_norm:
        assert bound <= (1 + step_size * 0.7**2) ** 2 * (1 + 1e-4)
    assert worst_gain(layer.call_float64, (4,), points=1) <= bound * (1 + 1e-7)


def test_smoothing_bound_of_the_mean_behind_the_layer():
    # f is a hard threshold; its mean over the noise is known, and so is the slope of Phi^-1(u)
    from scipy import stats

    flow = built((1,), weights=False, operator=operators.Dense(1), sigma=0.5, inference="random")
    inputs = keras.Input((1,))
    model = keras.Model(inputs, ops.cast(flow(inputs) > 0, "float32"))
    x = np.array([[-0.3], [0.0], [0.4]], "float32")
    u = feynman_kac_mean(model, np.repeat(x, 400, 0), samples=8, batch_size=1200)
    u = u.reshape(3, 400).mean(axis=1)
    np.testing.assert_allclose(u, stats.norm.cdf(x[:, 0] / flow.noise_std), atol=0.04)
    slope = np.diff(stats.norm.ppf(u)) / np.diff(x[:, 0])
    (promise,) = [g.value for g in flow.guarantees() if g.property == "smoothing"]
    np.testing.assert_allclose(slope, promise, rtol=0.25)


def test_certificate_knows_the_mean_and_refuses_randomness():
    def model(inference):
        return keras.Sequential(
            [
                keras.Input((5,)),
                built(inference=inference, steps=2, sigma=0.2),
                keras.layers.Dense(3),
            ]
        )

    _, radii = certificates.certify(model("mean")).radii(normal((4, 5), 3))
    assert (radii >= 0).all() and radii.max() > 0
    with pytest.raises(ValueError, match="without randomness"):
        certificates.certify(model("random"))
    with pytest.raises(ValueError, match="without randomness"):
        built(inference="random").call_float64(normal((1, 5)))


def test_without_a_bound_nothing_is_promised():
    assert ["1-Lipschitz"] == [
        g.property for g in built(sigma=0.0).guarantees() if "Lipschitz" in g.property
    ]
    for arguments in ({"velocity": "free"}, {"max_norm": None, "step_size": 5.0}):
        properties = [g.property for g in built(**arguments).guarantees()]
        assert properties == ["noise variance", "maximum principle"]


# --- Keras -----------------------------------------------------------------------------------


@pytest.mark.parametrize("velocity", ["gradient", "free"])
def test_float64_twin_on_images_and_compiled(velocity):
    layer = built(
        (3, 3, 4), operator=operators.Conv(2), velocity=velocity, steps=2, samples=3, scale=0.5
    )
    x = normal((2, 3, 3, 4), 6)
    y = passed(layer, x)
    np.testing.assert_allclose(y, layer.call_float64(x), atol=1e-5)
    compiled = backend.jit(layer)(ops.convert_to_tensor(x))
    np.testing.assert_allclose(backend.to_numpy(compiled), y, atol=1e-5)
    assert layer(keras.Input((3, 3, 4))).shape == (None, 3, 3, 4)
    assert layer.compute_output_shape((2, 3, 3, 4)) == (2, 3, 3, 4)


def test_shared_weights_are_an_autonomous_system():
    layer = built(steps=3, shared=True, inference="deterministic")
    once = built(steps=1, inference="deterministic")
    once.set_weights(layer.get_weights())
    y = x = normal((3, 5), 2)
    for _ in range(3):
        y = passed(once, y)
    np.testing.assert_allclose(passed(layer, x), y, atol=1e-5)


def test_training_reaches_every_weight():
    layer = ConvectionDiffusionFlow(
        operators.Dense(4), velocity="free", steps=2, sigma=0.2, activation="tanh", seed=1
    )
    model = keras.Sequential([keras.Input((5,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = layer.get_weights()
    history = model.fit(normal((16, 5), 1), normal((16, 5), 2), epochs=2, batch_size=8, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for weight, old in zip(layer.get_weights(), before, strict=True):
        assert np.isfinite(weight).all() and np.abs(weight - old).max() > 1e-6


def test_starts_inside_its_constraint():
    layer = ConvectionDiffusionFlow(operators.Dense(4), max_norm=0.5, step_size=8.0, seed=1)
    assert layer.step_limit == 8.0
    layer.build((None, 5))
    assert np.linalg.norm(layer.get_weights()[0], 2) == pytest.approx(0.5, rel=1e-5)


def test_mixed_precision_stays_close():
    layer = ConvectionDiffusionFlow(
        operators.Dense(4), steps=2, sigma=0.1, seed=1, dtype="mixed_bfloat16"
    )
    x = normal((3, 5))
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    np.testing.assert_allclose(
        backend.to_numpy(ops.cast(y, "float32")), layer.call_float64(x), atol=0.1
    )
    noisy = ops.cast(layer(x, training=True), "float32")
    assert 1e-3 < np.abs(backend.to_numpy(noisy) - layer.call_float64(x)).max() < 1.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": -0.1}, r"`sigma` must be in \[0, inf\).*sigma=-0.1"),
        ({"step_size": 2.1}, r"`step_size` must be in \(0, 2\].*step_size=2.1"),
        ({"step_size": 0.0}, "`step_size` must be in"),
        ({"step_size": 0.6, "max_norm": 2.0}, r"`step_size` must be in \(0, 0.5\]"),
        ({"step_size": "maximal"}, "`step_size` must be in"),
        ({"steps": 0}, "`steps` must be a positive integer"),
        ({"samples": 0}, "`samples` must be a positive integer"),
        ({"velocity": "both"}, "`velocity` must be one of"),
        ({"noise_scaling": "std"}, "`noise_scaling` must be one of"),
        ({"inference": "sample"}, "`inference` must be one of"),
        ({"max_norm": 0.0}, "`max_norm` must be in"),
        ({"activation": "gelu"}, "`activation` must have slopes"),
        ({"seed": -1}, "`seed` must be a non-negative integer"),
        ({"operator": 3}, "`operator` must be a dynzoo operator"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvectionDiffusionFlow(**{"operator": operators.Dense(3), **arguments})


def test_fixed_paths_need_a_shape():
    layer = ConvectionDiffusionFlow(operators.Pointwise(2), steps=2)
    with pytest.raises(ValueError, match="`inference` must be 'random' or 'deterministic'"):
        layer.build((None, None, None, 4))
