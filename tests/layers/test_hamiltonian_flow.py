"""HamiltonianFlow: symplecticity, inverse, gradients through depth; order of the integrators."""

import math

import keras
import numpy as np
import pytest
from helpers import jacobian, norm, normal, worst_gain
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, constraints, integrators, operators
from dynzoo.fields.hamiltonian import canonical_matrix, rotate
from dynzoo.integrators import splitting
from dynzoo.integrators.implicit import ImplicitMidpoint
from dynzoo.layers.hamiltonian_flow import HamiltonianFlow

IMAGE = (3, 3, 4)
J4, J6 = canonical_matrix(4), canonical_matrix(6)
JOINT = {"hamiltonian": "joint"}
# every way to discretise, with the arguments that name it
VARIANTS = {
    "symplectic_euler": {"integrator": "symplectic_euler"},
    "leapfrog": {"integrator": "leapfrog"},
    "yoshida4": {"integrator": "yoshida4"},
    "implicit_midpoint": {**JOINT, "integrator": "implicit_midpoint"},
}
every = pytest.mark.parametrize("name", VARIANTS)


def built(operator=None, shape=(6,), seed=0, scale=2.0, project=True, **arguments):
    """A flow with random weights, inside its constraint unless told otherwise."""
    layer = HamiltonianFlow(operator or operators.Dense(5), seed=1, **arguments)
    layer.build((None, *shape))
    for i, kernel in enumerate(layer.kernels):
        kernel.assign(normal(tuple(kernel.shape), seed + i, scale))
    for i, bias in enumerate(layer.biases):
        bias.assign(normal(tuple(bias.shape), seed + 100 + i, 0.3))
    for i, raw in enumerate(layer.raw_steps):
        raw.assign(float(i - 1))
    if project:
        constraints.project(layer)
    return layer


def defect(matrix, form):
    """|M^T J M - J|, relative to |M|^2."""
    return norm(matrix.T @ form @ matrix - form) / norm(matrix) ** 2


def backend_jacobian(function, x):
    """Jacobian by the backend's own float32 gradients, a row at a time."""
    gradient = backend.value_and_grad(lambda z, w: ops.sum(function(z) * w))
    rows = np.eye(x.size, dtype="float32")
    z = ops.convert_to_tensor(x[None])
    return np.stack(
        [backend.to_numpy(gradient(z, ops.convert_to_tensor(r[None]))[1])[0] for r in rows]
    )


@settings(max_examples=20)
@given(
    st.sampled_from(splitting.names()),
    st.sampled_from(["tanh", "softplus", "sigmoid", "linear"]),
    st.floats(0.01, 1.0),
    st.floats(0.1, 1.5),
    st.integers(0, 1000),
)
def test_symplectic_for_all_weights_and_steps(integrator, activation, step_size, scale, seed):
    layer = built(
        seed=seed,
        scale=scale,
        project=False,
        constraint=None,
        integrator=integrator,
        activation=activation,
        step_size=step_size,
        steps=2,
    )
    x = normal((6,), seed + 7)
    m = jacobian(layer.call_float64, x)
    assert defect(m, J6) < 1e-7
    size = norm(m)
    assert np.linalg.det(m) == pytest.approx(1.0, abs=1e-7 * size**6)
    assert size <= layer.lipschitz_bound((None, 6)) * (1 + 1e-7)
    back = layer.inverse_float64(layer.call_float64(x[None]))
    # the inverse of a symplectic matrix has its norm: rounding grows by both
    np.testing.assert_allclose(back[0], x, atol=1e-11 + 1e-15 * size**2)


@settings(max_examples=10)
@given(st.floats(0.01, 1.0), st.integers(0, 1000))
def test_joint_hamiltonian_is_symplectic_to_the_residual(step_size, seed):
    layer = built(seed=seed, step_size=step_size, steps=2, iterations=24, **JOINT)
    x = normal((6,), seed + 7)
    m = jacobian(layer.call_float64, x)
    assert defect(m, J6) < 1e-8
    assert np.linalg.det(m) == pytest.approx(1.0, abs=1e-7)
    assert norm(m) <= layer.lipschitz_bound((None, 6)) * (1 + 1e-7)
    back = layer.inverse_float64(layer.call_float64(x[None]))
    np.testing.assert_allclose(back[0], x, atol=1e-11)


def test_residual_of_the_solver_falls_as_stated():
    x = normal((6,), 3)
    defects = []
    for iterations in (2, 4, 6, 8):
        layer = built(step_size=1.5, iterations=iterations, **JOINT)
        defects.append(defect(jacobian(layer.call_float64, x), J6))
        assert worst_gain(layer.call_float64, (6,), points=1) <= layer.lipschitz_bound((None, 6))
    theta = layer.solver_factor
    assert 0.1 < theta < 0.5 and defects[0] > 1e-4
    for i, value in enumerate(defects):  # the Jacobian's error is k theta^k, not theta^k
        k = 2 * (i + 1)
        assert value <= 2 * k * theta**k + 1e-8
    assert defects[-1] < 0.01 * defects[0]
    text = str(layer.guarantees()[0])
    assert "residual" in text and layer.guarantees()[0].value == pytest.approx(theta**8)


def test_default_iterations_reach_rounding():
    counts = [built(step_size=h, **JOINT).solver_iterations for h in (0.01, 0.1, 1.0, 1e4)]
    assert counts[0] < counts[1] < counts[2] < 20 and counts[3] == 50
    layer = built(step_size=1.0, **JOINT)
    assert layer.guarantees()[0].value < 1e-8
    assert defect(jacobian(layer.call_float64, normal((6,), 3)), J6) < 1e-6


def test_euler_of_the_joint_field_is_symplectic_only_for_isotropic_kernels():
    layer = built(integrator="euler", step_size=0.5, **JOINT)
    m = jacobian(layer.call_float64, normal((6,), 2))
    assert defect(m, J6) > 1e-2
    assert not any(g.property in ("symplectic", "invertible") for g in layer.guarantees())
    assert norm(m) <= layer.lipschitz_bound((None, 6)) * (1 + 1e-7)
    with pytest.raises(ValueError, match="`inverse` needs a symplectic integrator"):
        layer.inverse(normal((2, 6)))
    kernel = np.array(backend.to_numpy(layer.kernels[0].value))
    kernel[3:] = 0  # K acts on q alone: K J K^T = 0, and the Euler step is a shear
    layer.kernels[0].assign(kernel)
    assert defect(jacobian(layer.call_float64, normal((6,), 2)), J6) < 1e-8
    # the published field: y + h J K tanh(K^T y + b), with the kernel as the paper's K
    x, b = normal((3, 6), 4).astype(np.float64), backend.to_numpy(layer.biases[0].value)
    expected = x + 0.5 * np.tanh(x @ kernel + b) @ kernel.T @ J6.T
    np.testing.assert_allclose(layer.call_float64(x), expected, atol=1e-12)


@every
def test_float32_jacobian_and_inverse(name):
    layer = built(operators.Dense(3), (4,), steps=2, step_size=0.4, **VARIANTS[name])
    x = normal((4,), 5)
    m = backend_jacobian(layer, x)
    assert defect(m, J4) < 3e-6
    assert np.linalg.det(m) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(m, jacobian(layer.call_float64, x), atol=1e-5)
    batch = normal((5, 4), 6)
    y = layer(batch)
    np.testing.assert_allclose(backend.to_numpy(layer.inverse(y)), batch, atol=5e-6)
    np.testing.assert_allclose(backend.to_numpy(layer(layer.inverse(batch))), batch, atol=5e-6)
    np.testing.assert_allclose(backend.to_numpy(y), layer.call_float64(batch), atol=5e-6)


@pytest.mark.parametrize("name", ["symplectic_euler", "implicit_midpoint"])
def test_gradients_through_100_layers(name):
    """Factor B of the docstring: below 1.67 for 100 steps of 0.01 with max_norm 1."""
    layer = built(operators.Dense(3), (4,), steps=100, step_size=0.01, **VARIANTS[name])
    assert layer.gradient_factor < 1.67
    x, w = normal((8, 4), 1), normal((8, 4), 2)
    if name == "symplectic_euler":  # the backend's own gradient; the other would take long
        gradient = backend.value_and_grad(lambda z, w: ops.sum(layer(z) * w))
        _, g = gradient(ops.convert_to_tensor(x), ops.convert_to_tensor(w))
        ratio = np.linalg.norm(backend.to_numpy(g), axis=1) / np.linalg.norm(w, axis=1)
        assert ratio.max() <= layer.gradient_factor and ratio.min() >= 1 / layer.gradient_factor
    values = np.linalg.svd(jacobian(layer.call_float64, x[0]), compute_uv=False)
    assert values.max() <= layer.gradient_factor and values.min() >= 1 / layer.gradient_factor
    assert values.max() > 1.02  # the bound is about something
    # symplectic: singular values come in pairs (s, 1/s)
    np.testing.assert_allclose(values * values[::-1], 1.0, atol=1e-6)


def test_bound_is_attained_by_a_shear():
    layer = built(activation="linear", integrator="symplectic_euler", step_size=0.7, max_norm=1.5)
    layer.kernels[0].assign(np.zeros((3, 5)))
    bound = layer.lipschitz_bound((None, 6))
    stiffness = 0.7 * norm(backend.to_numpy(layer.kernels[1].value)) ** 2
    assert bound == pytest.approx(math.exp(math.asinh(stiffness / 2)))
    assert norm(jacobian(layer.call_float64, normal((6,)))) == pytest.approx(bound, rel=1e-7)


@given(st.sampled_from(splitting.names()), st.floats(0, 2), st.floats(0, 2), st.integers(0, 10**6))
def test_growth_bounds_of_splittings(name, drift, kick, seed):
    method, rng = splitting.get(name), np.random.default_rng(seed)

    def semidefinite():
        q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        return q @ np.diag(rng.integers(0, 2, 3)) @ q.T

    for convex in (True, False):
        # fresh matrices at every stage, as a nonlinear field has
        def field(size, sign, convex=convex):
            def apply(z):
                a = semidefinite() if convex else np.linalg.qr(rng.normal(size=(3, 3)))[0]
                return sign * size * z @ a

            return apply

        q, p = np.split(np.eye(6), 2, axis=1)
        m = np.concatenate(method.step(field(drift, 1), field(kick, -1), q, p, 1.0), axis=1)
        bound = (method.convex_growth_bound if convex else method.growth_bound)(drift, kick)
        assert max(norm(m), norm(np.linalg.inv(m))) <= bound * (1 + 1e-9)


def pendulum_error(step, steps, end=2.0):
    y = np.array([1.0, 0.5])
    for _ in range(steps):
        y = step(y, end / steps)
    reference = np.array([1.0, 0.5])
    rk4 = integrators.get("rk4")
    for _ in range(2000):
        reference = rk4.step(lambda z: np.array([z[1], -np.sin(z[0])]), reference, end / 2000)
    return np.linalg.norm(y - reference)


def measured_orders(step):
    errors = [pendulum_error(step, n) for n in (20, 40, 80)]
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


@pytest.mark.parametrize("name", splitting.names())
def test_order_of_splittings(name):
    method = splitting.get(name)
    assert method.name == name and "volume" in method.preserves
    assert sum(method.drifts) == pytest.approx(1) and sum(method.kicks) == pytest.approx(1)

    def step(y, h):
        q, p = method.step(lambda p: p, lambda q: -np.sin(q), y[:1], y[1:], h)
        back = method.inverse_step(lambda p: p, lambda q: -np.sin(q), q, p, h)
        np.testing.assert_allclose(np.concatenate(back), y, atol=1e-14)
        return np.concatenate([q, p])

    np.testing.assert_allclose(measured_orders(step), method.order, atol=0.2)


@pytest.mark.parametrize("iterations", [1, 2, 10])
def test_order_of_implicit_midpoint(iterations):
    method = ImplicitMidpoint(iterations)
    assert method.order == min(2, iterations) and "symplectic form" in method.preserves

    def gradient(y):
        return np.array([np.sin(y[0]), y[1]])

    def step(y, h):
        z = method.step(gradient, y, h, 0.0, 0.5, np)
        if iterations == 10:  # the equation of the rule itself
            np.testing.assert_allclose(z, y + h * rotate(gradient((y + z) / 2), np), atol=1e-9)
        return z

    np.testing.assert_allclose(measured_orders(step), method.order, atol=0.25)


@every
def test_layer_integrates_its_field(name):
    exact, errors = normal((4, 6), 3).astype(np.float64), []
    x = exact
    for steps in (4, 8):
        layer = built(shared=True, steps=steps, step_size=1 / steps, scale=1.0, **VARIANTS[name])
        errors.append(layer.call_float64(x))
    for _ in range(100):
        exact = integrators.get("rk4").step(layer.field_float64, exact, 0.01)
    errors = [np.linalg.norm(e - exact) for e in errors]
    order = {"symplectic_euler": 1, "yoshida4": 4}.get(name, 2)
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.5)


OPERATORS = {
    "pointwise": lambda: operators.Pointwise(3),
    "conv": lambda: operators.Conv(2),
    "shifted": lambda: operators.ShiftedPointwise(2),
}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("variant", [{}, JOINT])
def test_images(operator, variant):
    layer = built(OPERATORS[operator](), IMAGE, step_size=0.4, **variant)
    x = normal((2, *IMAGE), 1)
    y = layer(x)
    np.testing.assert_allclose(backend.to_numpy(y), layer.call_float64(x), atol=1e-5)
    np.testing.assert_allclose(backend.to_numpy(layer.inverse(y)), x, atol=1e-5)
    m = jacobian(layer.call_float64, x[0])
    form = np.kron(np.eye(9), J4)  # q and p are the halves of the channels of each pixel
    assert defect(m, form) < 1e-7
    assert norm(m) <= layer.lipschitz_bound((None, *IMAGE))
    compiled = backend.jit(layer)(ops.convert_to_tensor(x))
    np.testing.assert_allclose(backend.to_numpy(compiled), backend.to_numpy(y), atol=1e-6)


@pytest.mark.parametrize("raw", [-100.0, 0.0, 100.0])
def test_learned_steps_stay_in_their_interval(raw):
    layer = built(step_size="learned", steps=2, max_step=0.3, shared=True)
    layer.raw_steps[1].assign(raw)
    assert len(layer.raw_steps) == 2 and len(layer.kernels) == 2
    assert all(0 <= h <= 0.3 for h in layer.step_sizes())
    x = normal((3, 6), 2)
    np.testing.assert_allclose(backend.to_numpy(layer(x)), layer.call_float64(x), atol=1e-5)
    assert layer.lipschitz_bound((None, 6)) <= layer.gradient_factor * (1 + 1e-9)
    assert worst_gain(layer.call_float64, (6,), points=1) <= layer.lipschitz_bound((None, 6))


def test_guarantees_follow_the_configuration():
    names = [g.property for g in HamiltonianFlow(operators.Dense(3)).guarantees()]
    assert names == ["symplectic", "invertible", "gradient norm"]
    free = HamiltonianFlow(operators.Dense(3), constraint=None)
    assert [g.property for g in free.guarantees()] == ["symplectic", "invertible"]
    assert free.gradient_factor == math.inf
    euler = HamiltonianFlow(operators.Dense(3), integrator="euler", **JOINT)
    assert [g.property for g in euler.guarantees()] == ["gradient norm"]


@pytest.mark.parametrize("variant", [{}, JOINT])
def test_gradients_flow_to_every_weight(variant):
    layer = HamiltonianFlow(operators.Dense(3), step_size="learned", iterations=2, **variant)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    before = model.get_weights()
    model.train_on_batch(normal((8, 4), 1), normal((8, 4), 2))
    for weight, old in zip(model.weights, before, strict=True):
        change = np.abs(backend.to_numpy(weight.value) - old).max()
        assert np.isfinite(change) and change > 1e-6, weight.path


def test_mixed_precision_stays_close():
    layer = HamiltonianFlow(
        operators.Dense(3), step_size="learned", seed=1, dtype="mixed_bfloat16", **JOINT
    )
    x = normal((2, 6))
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    assert layer.kernels[0].dtype == "float32"
    found = backend.to_numpy(ops.cast(y, "float32"))
    np.testing.assert_allclose(found, layer.call_float64(x), atol=0.1)
    back = backend.to_numpy(ops.cast(layer.inverse(y), "float32"))
    np.testing.assert_allclose(back, x, atol=0.1)


def test_inverse_before_the_first_call_builds():
    layer = HamiltonianFlow(operators.Dense(3), seed=0)
    y = normal((2, 4))
    np.testing.assert_allclose(backend.to_numpy(layer(layer.inverse(y))), y, atol=1e-6)
    assert layer.compute_output_shape((None, 4)) == (None, 4)
    assert layer(keras.Input((4,))).shape == (None, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0}, r"`step_size` must be in \(0, inf\), or 'learned'. .*step_size=0"),
        ({"step_size": -0.1}, "`step_size` must be in"),
        ({"step_size": math.inf}, "`step_size` must be in"),
        ({"step_size": "maximal"}, "`step_size` must be in.*step_size='maximal'"),
        ({"hamiltonian": "full"}, "`hamiltonian` must be one of 'separable', 'joint'"),
        ({"integrator": "implicit_midpoint"}, "`integrator` must be one of 'symplectic_euler'"),
        ({"integrator": "leapfrog", **JOINT}, "`integrator` must be one of 'implicit_midpoint'"),
        ({"constraint": None, **JOINT}, "`constraint` must be 'spectral_norm' with implicit"),
        (
            {"constraint": "orthonormal"},
            "`constraint` must be 'spectral_norm', a Keras constraint or None",
        ),
        ({"iterations": 0}, "`iterations` must be a positive integer"),
        ({"steps": 0}, "`steps` must be a positive integer"),
        ({"max_norm": 0.0}, "`max_norm` must be in"),
        ({"max_step": -1.0}, "`max_step` must be in"),
        ({"activation": "gelu"}, "`activation` must have slopes"),
        ({"operator": keras.layers.Dense(3)}, "`operator` must be a dynzoo operator"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        HamiltonianFlow(**{"operator": operators.Dense(3), **arguments})


@pytest.mark.parametrize("shape", [(None, 5), (None, None)])
def test_odd_features_are_refused(shape):
    with pytest.raises(ValueError, match="`HamiltonianFlow` needs an even number of features"):
        HamiltonianFlow(operators.Dense(3)).build(shape)


def test_lookup():
    assert splitting.get(splitting.LEAPFROG) is splitting.LEAPFROG
    with pytest.raises(ValueError, match="`integrator` must be one of 'symplectic_euler"):
        splitting.get("rk4")


@pytest.mark.parametrize("hamiltonian", ["separable", "joint"])
@pytest.mark.parametrize("arguments", [{"max_norm": 1e5}, {"max_norm": 1e-200}, {"step_size": 1e9}])
def test_extreme_bounds_of_the_operator(hamiltonian, arguments):
    layer = HamiltonianFlow(operators.Dense(4), hamiltonian=hamiltonian, **arguments)
    assert 2 <= layer.solver_iterations <= 50
