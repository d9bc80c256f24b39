"""SwitchingFlow: 1-Lipschitz for all weights and steps, the published formulas, signs, errors."""

import keras
import numpy as np
import pytest
from helpers import conv_matrix, jacobian, norm, normal, worst_gain
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, constraints, operators
from dynzoo.fields import switching
from dynzoo.layers.switching_flow import SwitchingFlow, substep_sizes

IMAGE = (3, 3, 4)
OPERATORS = {
    "dense": (lambda: operators.Dense(4), (4,)),
    "pointwise": (lambda: operators.Pointwise(4), IMAGE),
    "shifted": (lambda: operators.ShiftedPointwise(4), IMAGE),
    "conv": (lambda: operators.Conv(4), IMAGE),
    "conv_circular_even": (lambda: operators.Conv(4, 2, "circular"), IMAGE),
}
MODES = [
    ("prescribed", "paper", "generic"),
    ("prescribed", "sharp", "gradient"),
    ("flexible", "paper", "tied"),
    ("flexible", "sharp", "gradient"),
    ("sharp", "sharp", "gradient"),
    ("sharp", "sharp", "generic"),
    ("sharp", "sharp", "tied"),
]
raws = st.sampled_from([-100.0, -1.0, 0.0, 0.3, 2.0, 100.0])


def built(operator, shape, seed=0, scale=None, raw=(0.3, 1.0), **arguments):
    """A flow with random biases; kernels are orthonormal, or disturbed by noise of this scale."""
    layer = SwitchingFlow(operator, seed=seed + 1, **arguments)
    layer.build((None, *shape))
    for i, kernel in enumerate(layer.kernels + layer.expansion_kernels):
        if scale is not None:
            noise = normal(tuple(kernel.shape), seed + i, scale)
            kernel.assign(backend.to_numpy(kernel.value) + noise)
    for i, bias in enumerate(layer.biases + layer.expansion_biases):
        bias.assign(normal(tuple(bias.shape), seed + 100 + i, 0.5))
    for contraction, expansion in zip(
        layer.raw_contractions or [None] * layer.steps, layer.raw_expansions, strict=True
    ):
        if contraction is not None:
            contraction.assign(raw[0])
        expansion.assign(raw[1])
    return layer


@pytest.mark.parametrize("operator", ["dense", "pointwise", "shifted"])
@pytest.mark.parametrize("mode", ["prescribed", "flexible", "sharp"])
def test_step_sizes_of_orthonormal_kernels_do_not_depend_on_the_precision(operator, mode):
    _, shape = OPERATORS[operator]
    shape = (*shape[:-1], 128)  # wide enough for a Gram matrix in float32 to be off by 1e-6
    make = {"dense": operators.Dense, "pointwise": operators.Pointwise}
    units = make.get(operator, operators.ShiftedPointwise)(128)
    layer = built(units, shape, scale=0.05, mode=mode, bound="sharp", raw=(1.5, 1.0))
    constraints.project(layer)
    kernels, wide = layer._kernels(0, ops.convert_to_tensor)
    raw = layer._raws(0, ops.convert_to_tensor)
    computed = substep_sizes(layer, kernels, wide, raw, ops)
    for size, exact in zip(computed, next(layer._substeps_float64()), strict=True):
        assert abs(float(backend.to_numpy(size)) - exact) <= 6e-7 * abs(exact)


# --- the bound -----------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    st.sampled_from(sorted(OPERATORS)),
    st.sampled_from(MODES),
    st.sampled_from([None, 1e-5, 0.03, 0.3, 3.0]),
    raws,
    raws,
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_one_lipschitz_for_all_weights(name, mode, scale, contraction, expansion, substeps, seed):
    # nothing is projected: kernels may be far from orthonormal and steps at their ends
    make, shape = OPERATORS[name]
    mode, bound, kind = mode
    layer = built(
        make(),
        shape,
        seed,
        scale,
        (contraction, expansion),
        mode=mode,
        bound=bound,
        expansion=kind,
        substeps=substeps,
    )
    bound = layer.lipschitz_bound((None, *shape))
    assert bound <= 1.0
    assert worst_gain(layer.call_float64, shape, seed, points=1) <= bound * (1 + 1e-6)


@settings(max_examples=12)
@given(
    st.sampled_from([1, 3]),
    st.sampled_from(["paper", "sharp"]),
    st.sampled_from(["half_leaky_relu", "leaky_relu", "linear"]),
    st.sampled_from([0.1, 1.0, 3.0]),
    raws,
    st.integers(0, 99),
)
def test_tied_flow_with_fewer_units_than_channels(units, bound, activation, scale, raw, seed):
    layer = built(
        operators.Dense(units),
        (4,),
        seed,
        scale,
        (raw, raw),
        mode="flexible",
        bound=bound,
        activation=activation,
    )
    gain = worst_gain(layer.call_float64, (4,), seed, points=1)
    stated = layer.lipschitz_bound((None, 4))
    assert stated <= 1.0 and gain <= stated + 1e-6
    # outside the row space nothing moves
    assert gain == pytest.approx(1.0, abs=1e-6)


@settings(max_examples=25)
@given(
    st.floats(1e-3, 2.0),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
    st.sampled_from(["paper", "sharp"]),
    st.integers(1, 4),
)
def test_product_of_the_factors_is_at_most_one(step, slope, ratio, bound, count):
    limit = switching.expansion_limit(step, slope, ratio, bound, count, 8.0, np)
    paper, sharp = (
        switching.contraction_factor(step, slope, ratio, b, np) for b in ("paper", "sharp")
    )
    assert sharp <= paper + 1e-12 and sharp <= 1
    assert (1 + limit) * min(1.0, paper if bound == "paper" else sharp) ** count <= 1 + 1e-12
    assert (1 + limit) * sharp**count <= 1 + 1e-12
    assert 0 <= limit <= 8
    if bound == "sharp" and slope * ratio * step > 1e-6 and step < 2 - 1e-6:
        assert limit > 0


def test_the_room_is_used_up():
    # one unit: where the contraction has slope a and the expansion slope 1, the gain is 1
    for mode in ("prescribed", "sharp"):
        layer = built(operators.Dense(1), (1,), raw=(0.0, 100.0), mode=mode, bound="sharp")
        for kernel in layer.kernels + layer.expansion_kernels:
            kernel.assign([[1.0]])
        layer.biases[0].assign([-5000.0])
        layer.expansion_biases[0].assign([50.0])
        gain = jacobian(layer.call_float64, np.array([0.1]))[0, 0]
        assert gain == pytest.approx(1.0, abs=1e-4)
        assert layer.step_sizes()[0][1] > 0.5


def test_sharp_bound_leaves_far_more_room():
    rooms = {}
    for mode, bound in (("prescribed", "paper"), ("sharp", None), ("flexible", "sharp")):
        layer = SwitchingFlow(operators.Dense(4), mode=mode, bound=bound)
        rooms[mode] = layer.guarantees()[1].value
    # a time step has two expansions except in the flexible mode (S = 2)
    assert 2 * rooms["prescribed"] == pytest.approx(0.3094, abs=1e-4)
    assert 2 * rooms["sharp"] == pytest.approx(4.0, rel=1e-3)
    assert rooms["flexible"] == pytest.approx(8.0, rel=1e-3)


def near_delta(shape, seed, scale):
    """A convolution kernel with orthonormal columns or rows at its centre, and noise."""
    kernel = normal(shape, seed, scale)
    u, _, vt = np.linalg.svd(normal(shape[2:], seed + 1), full_matrices=False)
    kernel[(shape[0] - 1) // 2, (shape[1] - 1) // 2] += u @ vt
    return kernel


@settings(max_examples=20)
@given(
    st.integers(1, 3),
    st.integers(2, 4),
    st.integers(2, 4),
    st.sampled_from(["zero", "circular"]),
    st.floats(0.0, 0.15),
    st.integers(0, 99),
)
def test_measured_spectrum_of_a_convolution(size, inputs, outputs, padding, scale, seed):
    shape = (size, size, inputs, outputs)
    kernel = near_delta(shape, seed, scale)
    operator = operators.Conv(outputs, size, padding)
    lower, upper = switching.singular_values_squared(operator, kernel.astype(np.float64), np)
    for spatial in ((3, 3), (4, 5)):
        values = np.linalg.svd(conv_matrix(kernel, spatial, padding), compute_uv=False) ** 2
        assert lower <= values.min() and values.max() <= upper
    if scale < 1e-3:
        assert lower > 0.8 and upper < 1.2


def test_measured_spectrum_is_the_same_in_float32():
    kernel, operator = near_delta((3, 3, 3, 2), 0, 0.01), operators.Conv(2)
    exact = switching.singular_values_squared(operator, kernel.astype(np.float64), np)
    assert 0.1 < exact[0] < 0.9
    measured = switching.singular_values_squared(operator, ops.convert_to_tensor(kernel), ops)
    np.testing.assert_allclose([float(m) for m in measured], exact, atol=1e-4)


def test_what_zero_padding_cuts_off_is_counted():
    # one output channel comes from the pixel to the left: orthonormal on a torus only
    kernel = np.zeros((3, 3, 2, 2))
    kernel[1, 1, 0, 0] = kernel[1, 0, 1, 1] = 1.0
    lower, upper = switching.singular_values_squared(operators.Conv(2, 3, "circular"), kernel, np)
    assert 0.999 < lower <= upper < 1.001
    lower, _ = switching.singular_values_squared(operators.Conv(2, 3, "zero"), kernel, np)
    assert lower == 0.0
    assert np.linalg.svd(conv_matrix(kernel, (3, 3), "zero"), compute_uv=False).min() < 1e-12


def test_constraint_keeps_the_room():
    layer = built(operators.Dense(6), (6,), scale=0.3, raw=(0.0, 100.0), mode="sharp")
    before = layer.step_sizes()[0][1]
    constraints.project(layer)
    after = layer.step_sizes()[0][1]
    assert before < 0.1 and after > 1.0
    assert layer.lipschitz_bound((None, 6)) <= 1.0


# --- the published variant -----------------------------------------------------------------


def leaky(x):
    return np.maximum(x, 0.5 * x)


def test_prescribed_is_the_published_map():
    layer = built(operators.Dense(3), (3,), mode="prescribed", spectrum="assumed", steps=2)
    layer.assign_step_sizes([(0.3, 1.0), (0.8, 0.5 * 0.2942)])
    (h1, e1), (h2, e2) = layer.step_sizes()
    assert (h1, e1) == pytest.approx((0.3, 0.1412), abs=1e-4)
    assert (h2, e2) == pytest.approx((0.8, 0.1471), abs=1e-4)
    x = expected = normal((5, 3), 1)
    for i, (h, rescaling) in enumerate(((0.3, 1.0), (0.8, 0.5))):
        a, w, b, v = (
            backend.to_numpy(weights[i].value)
            for weights in (
                layer.kernels,
                layer.expansion_kernels,
                layer.biases,
                layer.expansion_biases,
            )
        )
        e = 4 / np.sqrt(h * h - 2 * h + 4) - 2
        for _ in range(2):
            expected = expected + e / 2 * rescaling * leaky(expected @ w + v)
            expected = expected - h / 2 * leaky(expected @ a + b) @ a.T
    np.testing.assert_allclose(backend.to_numpy(layer(x)), expected, atol=1e-4)


def test_flexible_is_the_published_map_with_the_sign_kept():
    layer = built(operators.Dense(3), (3,), mode="flexible", spectrum="assumed", steps=3)
    layer.assign_step_sizes([(0.11, -1.9), (1.0, 0.2), (1.9, 9.0)])
    sizes = layer.step_sizes()
    threshold = 1.89 * 0.11 / (1.89**2 - 2 * 1.89 + 4)
    np.testing.assert_allclose(sizes, [(0.11, -1.9), (1.0, 0.2), (1.89, threshold)], atol=1e-5)
    x = expected = normal((5, 3), 1)
    for kernel, bias, (h, e) in zip(layer.kernels, layer.biases, sizes, strict=True):
        a, b = backend.to_numpy(kernel.value), backend.to_numpy(bias.value)
        for _ in range(2):
            expected = expected - h / 2 * leaky(expected @ a + b) @ a.T
        expected = expected + e * np.maximum(expected @ a + b, 0) @ a.T
    np.testing.assert_allclose(backend.to_numpy(layer(x)), expected, atol=1e-4)
    assert layer.lipschitz_bound((None, 3)) <= 1.0
    assert worst_gain(layer.call_float64, (3,), points=2) <= 1.0


@pytest.mark.parametrize("mode", ["prescribed", "flexible", "sharp"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.98])
def test_share_of_the_room_that_a_fresh_layer_expands_by(mode, share):
    def expansion(**arguments):
        layer = SwitchingFlow(operators.Dense(6), mode=mode, bound="sharp", seed=0, **arguments)
        layer.build((None, 6))
        return layer, layer.step_sizes()[0][1]

    layer, start = expansion(expansion_start=share)
    layer.raw_expansions[0].assign(50.0)
    np.testing.assert_allclose(start, share * layer.step_sizes()[0][1], rtol=1e-5)
    assert SwitchingFlow.from_config(layer.get_config()).expansion_start == share
    usual = 0.5 if mode == "prescribed" else np.tanh(0.5)
    np.testing.assert_allclose(expansion(expansion_start=usual)[1], expansion()[1], rtol=1e-5)


@pytest.mark.parametrize("h", [0.5, 1.0, 1.7])
def test_full_linear_expansion_and_contraction_are_a_gradient_step(h):
    """(1 + e)(x - t A^T max(y, y/2)) is x - h A^T relu(y): non-expansive networks are in reach."""
    tau = 2 * h / (1 + h)
    flow = SwitchingFlow(
        operators.Dense(6), bound="sharp", expansion="gradient", expansion_activation="linear",
        substeps=1, step_size=tau, seed=0,
    )  # fmt: skip
    flow.build((None, 6))
    flow.raw_expansions[0].assign(50.0)
    kernel, x = backend.to_numpy(flow.kernels[0]).astype("float64"), normal((20, 6), seed=1)
    expected = x - h * np.maximum(x @ kernel, 0) @ kernel.T
    # the room is taken 3e-5 too small, for kernels that are orthonormal only to float32
    np.testing.assert_allclose(flow.call_float64(x), expected, atol=2e-3)
    np.testing.assert_allclose(backend.to_numpy(flow(x.astype("float32"))), expected, atol=2e-3)


def test_published_values_and_corners():
    layer = SwitchingFlow(operators.Dense(3), mode="prescribed", spectrum="assumed")
    layer.build((None, 3))
    for h, e in ((0.3, 0.1412), (0.5, 0.2188), (0.8, 0.2942), (1.0, 0.3094)):
        layer.assign_step_sizes([(h, 1.0)])
        assert layer.step_sizes()[0] == pytest.approx((h, e), abs=1e-4)
    layer = SwitchingFlow(operators.Dense(3), mode="flexible", spectrum="assumed")
    assert layer.step_range == pytest.approx((0.11, 1.89))
    layer.build((None, 3))
    layer.assign_step_sizes([(0.05, 9.0)])
    assert layer.step_sizes()[0] == pytest.approx((0.11, 0.0548), abs=1e-4)
    # the corner of the CIFAR-100 clamp, whose constant 0.05 made the product 1.0001
    wide = SwitchingFlow(operators.Dense(3), mode="flexible", step_range=(0.11, 1.9))
    wide.build((None, 3))
    wide.assign_step_sizes([(1.9, 0.05)])
    h, e = wide.step_sizes()[0]
    assert h == pytest.approx(1.9, abs=1e-4) and (1 - h / 2 + h * h / 4) * (1 + e) <= 1


def test_assumed_spectrum_is_not_believed_by_the_bound():
    layer = built(
        operators.Dense(4), (4,), scale=0.5, raw=(0.0, 100.0), spectrum="assumed", constraint=None
    )
    bound = layer.lipschitz_bound((None, 4))
    assert bound > 1.0
    assert worst_gain(layer.call_float64, (4,), points=2) <= bound * (1 + 1e-6)


# --- a layer like any other ----------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_float64_twin_and_compilation(name):
    make, shape = OPERATORS[name]
    layer = built(make(), shape, scale=0.02, mode="sharp", expansion="generic")
    x = normal((3, *shape), 6)
    y = backend.to_numpy(layer(x))
    np.testing.assert_allclose(y, layer.call_float64(x), atol=3e-5)
    compiled = backend.jit(layer)(ops.convert_to_tensor(x))
    np.testing.assert_allclose(backend.to_numpy(compiled), y, atol=1e-5)
    assert layer.compute_output_shape((3, *shape)) == y.shape


def test_shared_weights_are_an_autonomous_system():
    layer = built(operators.Dense(4), (4,), mode="flexible", steps=3, shared=True)
    once = built(operators.Dense(4), (4,), mode="flexible", steps=1)
    assert len(layer.kernels) == 1 and len(layer.raw_expansions) == 3
    once.kernels[0].assign(layer.kernels[0])
    once.biases[0].assign(layer.biases[0])
    x = expected = normal((3, 4), 2)
    for _ in range(3):
        expected = once.call_float64(expected)
    np.testing.assert_allclose(layer.call_float64(x), expected, atol=1e-12)


@pytest.mark.parametrize("mode", ["prescribed", "flexible", "sharp"])
def test_training_moves_every_weight_and_keeps_the_bound(mode):
    layer = SwitchingFlow(operators.Dense(4), mode=mode, steps=1 + (mode == "sharp"), seed=1)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    before = model.get_weights()
    for i in range(3):
        model.train_on_batch(normal((8, 4), i), normal((8, 4), i + 1))
    for weight, old in zip(model.weights, before, strict=True):
        new = backend.to_numpy(weight.value)
        assert np.isfinite(new).all() and np.abs(new - old).max() > 1e-5, weight.path
    assert norm(backend.to_numpy(layer.kernels[0].value)) <= 1 + 1e-5
    assert layer.lipschitz_bound((None, 4)) <= 1.0


def test_mixed_precision_stays_close():
    layer = built(operators.Pointwise(4), IMAGE, mode="sharp", dtype="mixed_bfloat16")
    x = normal((2, *IMAGE))
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    np.testing.assert_allclose(
        backend.to_numpy(ops.cast(y, "float32")), layer.call_float64(x), atol=0.1
    )


def test_guarantees_say_what_they_rest_on():
    measured = SwitchingFlow(operators.Dense(4)).guarantees()
    assert measured[0].value == 1.0 and "all finite weights" in measured[0].condition
    assumed = SwitchingFlow(operators.Dense(4), spectrum="assumed", step_size=0.8).guarantees()
    assert "only if" in assumed[0].condition
    assert assumed[1].value == pytest.approx(0.1471, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "relu"}, "`activation` must have slopes above 0"),
        ({"mode": "free"}, "`mode` must be one of"),
        ({"bound": "loose"}, "`bound` must be one of"),
        ({"mode": "sharp", "bound": "paper"}, "`bound` must be 'sharp'"),
        ({"expansion": "other"}, "`expansion` must be one of"),
        ({"constraint": "unit"}, "`constraint` must be 'orthonormal'"),
        ({"spectrum": "known"}, "`spectrum` must be one of"),
        ({"steps": 0}, "`steps` must be a positive integer"),
        ({"substeps": 1.5}, "`substeps` must be a positive integer"),
        ({"step_size": 4.1}, r"`step_size` must be in \(0, 4\].*4.1"),
        ({"step_size": 0.0}, "`step_size` must be in"),
        ({"step_range": (0.0, 1.0)}, r"`step_range` must be \(low, high\)"),
        ({"step_range": (1.0, 4.5)}, "high <= 4"),
        ({"max_expansion": 0.0}, "`max_expansion` must be in"),
        ({"expansion_start": 1.0}, r"`expansion_start` must be in \(0, 1\)"),
        ({"operator": keras.layers.Dense(3)}, "`operator` must be a dynzoo operator"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SwitchingFlow(**{"operator": operators.Dense(3), **arguments})


@pytest.mark.parametrize(
    ("operator", "arguments", "message"),
    [
        (operators.Dense(3), {"expansion": "gradient"}, "at least 4 units.*Received: 3"),
        (operators.Dense(6), {}, "must have 4 units.*Received: 6"),
        (operators.Conv(2), {"mode": "sharp"}, "at least 4 units"),
        (operators.ShiftedPointwise(4, "zero"), {"mode": "flexible"}, "must be injective"),
        (operators.Conv(4), {"constraint": "orthonormal"}, "`constraint` must be"),
    ],
)
def test_kernels_without_room_are_refused(operator, arguments, message):
    shape = (
        (4,)
        if isinstance(operator, operators.Dense) and not hasattr(operator, "padding")
        else IMAGE
    )
    with pytest.raises(ValueError, match=message):
        SwitchingFlow(operator, **arguments).build((None, *shape))
