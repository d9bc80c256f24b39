"""ContractiveHamiltonianFlow: the rate, the discrete bounds and how sharp they are."""

import math

import keras
import numpy as np
import pytest
from helpers import jacobian, norm, normal, worst_gain
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, constraints, integrators, operators
from dynzoo.fields import contractive_hamiltonian as theory
from dynzoo.fields.hamiltonian import canonical_matrix
from dynzoo.integrators.implicit import ImplicitMidpoint
from dynzoo.layers.contractive_hamiltonian_flow import ContractiveHamiltonianFlow

IMAGE = (3, 3, 4)
METHODS = ("euler", "implicit_midpoint")
methods = pytest.mark.parametrize("integrator", METHODS)


def built(operator=None, shape=(4,), seed=0, scale=2.0, project=True, **arguments):
    """A flow with random weights, inside its constraint unless told otherwise."""
    layer = ContractiveHamiltonianFlow(operator or operators.Dense(3), seed=1, **arguments)
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


def hessian(rng, c1, c2, n=4):
    """A random symmetric matrix with spectrum in [c1, c2], both ends taken."""
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    values = c1 + (c2 - c1) * np.concatenate([[0, 1], rng.integers(0, 2, n - 2)])
    return q @ np.diag(values) @ q.T


# --- the theory ----------------------------------------------------------------------------

bounds = st.tuples(st.floats(0.01, 2.0), st.floats(1.01, 20.0)).map(lambda t: (t[0], t[0] * t[1]))


@given(bounds, st.floats(0.0, 3.0), st.integers(0, 1000))
def test_rate_bounds_the_symmetric_part_and_is_attained(c, margin, seed):
    c1, c2 = c
    gamma = (1 + margin) * theory.critical_damping(c1, c2)
    rate, rng = theory.contraction_rate(gamma, c1, c2), np.random.default_rng(seed)
    form = canonical_matrix(4) - gamma * np.eye(4)

    def worst(s):
        return np.linalg.eigvalsh((form @ s + (form @ s).T) / 2)[-1]

    assert worst(hessian(rng, c1, c2)) <= -rate + 1e-9 * c2 * (1 + gamma)
    # one plane, eigenvalues c1 and c2: E is a reflection, whatever its axis
    plane = canonical_matrix(2) - gamma * np.eye(2)
    s = hessian(rng, c1, c2, 2)
    attained = np.linalg.eigvalsh((plane @ s + (plane @ s).T) / 2)[-1]
    assert attained == pytest.approx(-rate, abs=1e-9 * c2 * (1 + gamma))


def test_critical_damping_is_where_contraction_begins():
    for c1, c2 in ((0.04, 4.0), (0.5, 2.0), (1.0, 1.5)):
        gamma = theory.critical_damping(c1, c2)
        rates = [theory.contraction_rate(f * gamma, c1, c2) for f in (0.98, 1.0, 1.02)]
        assert rates[0] < 0 < rates[2] and rates[1] == pytest.approx(0, abs=1e-12)


@given(bounds, st.floats(0.0, 3.0), st.floats(0.001, 3.0), st.integers(0, 1000))
def test_euler_factor_bounds_and_is_attained(c, gamma, step_size, seed):
    rng, factor = np.random.default_rng(seed), theory.euler_factor(step_size, gamma, *c)
    for n in (4, 2):
        form = canonical_matrix(n) - gamma * np.eye(n)
        gain = norm(np.eye(n) + step_size * form @ hessian(rng, *c, n))
        assert gain <= factor * (1 + 1e-12)
    assert gain == pytest.approx(factor, rel=1e-12)


def test_euler_step_limit_is_the_exact_one():
    # numerical limits known for (c1, c2) = (0.5, 2)
    for margin, limit in ((0.1, 0.070), (0.5, 0.244), (1.0, 0.321)):
        gamma = (1 + margin) * theory.critical_damping(0.5, 2.0)
        found = theory.euler_step_limit(gamma, 0.5, 2.0)
        assert found == pytest.approx(limit, abs=1e-3)
        assert theory.euler_factor(found, gamma, 0.5, 2.0) == pytest.approx(1.0, abs=1e-12)
        assert theory.euler_factor(1.01 * found, gamma, 0.5, 2.0) > 1
        best = theory.best_euler_step(gamma, 0.5, 2.0)
        factor = theory.euler_factor(best, gamma, 0.5, 2.0)
        assert factor == pytest.approx(math.sin(math.atan(1 / gamma) + math.asin(0.6)))
        for other in (0.99 * best, 1.01 * best):
            assert theory.euler_factor(other, gamma, 0.5, 2.0) > factor
    assert theory.euler_step_limit(0.5, 0.5, 2.0) == 0.0


@given(bounds, st.floats(0.0, 3.0), st.floats(0.01, 30.0), st.integers(1, 6), st.integers(0, 999))
def test_midpoint_bound_holds_however_the_hessian_changes(c, margin, step_size, iterations, seed):
    c1, c2 = c
    gamma = margin * theory.critical_damping(c1, c2)
    method, rng = ImplicitMidpoint(iterations), np.random.default_rng(seed)
    # another Hessian at every iterate, which is worse than any smooth energy
    step = method.step(
        lambda m: m @ hessian(rng, c1, c2), np.eye(4), step_size, gamma, (c1 + c2) / 2, np
    )
    arguments = (gamma, (c1 + c2) / 2, (c2 - c1) / 2)
    bound = method.growth_bound(step_size, *arguments)
    assert norm(step) <= bound * (1 + 1e-9)
    theta = method.solver_factor(step_size, *arguments)
    assert theta < (c2 - c1) / (c2 + c1)  # for every step
    limit = method.step_limit(*arguments)
    if step_size <= limit:
        assert bound <= 1 + 1e-9
    if 0 < limit < math.inf:
        assert method.growth_bound(limit, *arguments) == pytest.approx(1.0, abs=1e-9)
        assert method.growth_bound(1.01 * limit, *arguments) > 1
    if margin <= 1:
        assert limit < 1e-6 or margin == 1


# --- the layer -----------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    st.sampled_from(METHODS),
    st.sampled_from(["tanh", "softplus", "sigmoid", "linear"]),
    st.floats(0.3, 1.5),
    st.floats(0.05, 2.0),
    st.sampled_from(["optimal", "learned", 0.9]),
    st.integers(1, 6),
    st.integers(0, 1000),
)
def test_contracts_by_construction(
    integrator, activation, kappa, margin, step_size, iterations, seed
):
    arguments = {
        "seed": seed,
        "scale": 1.0,
        "integrator": integrator,
        "activation": activation,
        "kappa": kappa,
        "margin": margin,
        "iterations": iterations,
    }
    if step_size == 0.9:  # of the largest step, or large where all are allowed
        step_size = 0.9 * min(built(**arguments).step_limit, 5.0)
    layer = built(step_size=step_size, steps=2, **arguments)
    bound = layer.lipschitz_bound((None, 4))
    assert layer.rate > 0 and bound <= 1
    assert worst_gain(layer.call_float64, (4,), points=1) <= bound * (1 + 1e-8)
    if step_size == "optimal":
        assert bound < 1


@methods
def test_maximal_step_keeps_the_bound_at_one(integrator):
    layer = built(integrator=integrator, step_size="maximal", kappa=0.5, margin=0.5)
    assert layer.step_sizes()[0] == pytest.approx(layer.step_limit)
    assert 0.99 < layer.lipschitz_bound((None, 4)) <= 1
    assert worst_gain(layer.call_float64, (4,)) <= 1 + 1e-8
    with pytest.raises(ValueError, match="`step_size` must be in"):
        built(integrator=integrator, step_size=1.01 * layer.step_limit, kappa=0.5, margin=0.5)


def test_euler_bound_is_attained_by_the_layer():
    # one neuron on one plane: the Hessian has the eigenvalues c1 and c2 at the steepest slope
    layer = built(operators.Dense(1), (2,), use_bias=False, kappa=0.5, step_size=0.3)
    gain = norm(jacobian(layer.call_float64, np.zeros(2)))
    assert gain == pytest.approx(layer.lipschitz_bound((None, 2)), rel=1e-8)


@methods
def test_bound_is_true_when_the_constraint_is_broken(integrator):
    layer = built(integrator=integrator, scale=1.0, project=False, step_size=0.25)
    kernel = normal((4, 3), 3)
    layer.kernels[0].assign(4.0 * kernel / norm(kernel))
    assert layer.rate < 0
    bound = layer.lipschitz_bound((None, 4))
    assert bound > 1
    assert worst_gain(layer.call_float64, (4,), scale=0.1) <= bound * (1 + 1e-8)


def test_trajectories_approach_at_the_rate():
    layer = built(operators.Dense(6), (6,), kappa=0.6, seed=4)
    rk4, h = integrators.get("rk4"), 0.01
    x, y = normal((20, 6), 1).astype(np.float64), normal((20, 6), 2).astype(np.float64)
    y[10:] = x[10:] + 1e-4 * y[10:]
    start = np.linalg.norm(x - y, axis=1)
    for i in range(1, 101):
        x, y = rk4.step(layer.field_float64, x, h), rk4.step(layer.field_float64, y, h)
        distance = np.linalg.norm(x - y, axis=1)
        assert (distance <= math.exp(-layer.rate * h * i) * start * (1 + 1e-9)).all()


@methods
def test_distances_fall_by_the_factors(integrator):
    steps = 4
    layers = [built(integrator=integrator, steps=n, kappa=0.8) for n in range(1, steps + 1)]
    factors = layers[-1].step_factors((None, 4))
    assert len(factors) == steps and max(factors) < 1
    x, y = normal((20, 4), 1), normal((20, 4), 2)
    start = np.linalg.norm(x.astype(np.float64) - y, axis=1)
    for n, layer in enumerate(layers, 1):  # step n of the long flow has the weights of step n here
        moved = layer.call_float64(x) - layer.call_float64(y)
        if n == steps:
            found = backend.to_numpy(layer(x)).astype(np.float64) - backend.to_numpy(layer(y))
            np.testing.assert_allclose(found, moved, atol=1e-5)
        expected = np.prod(factors[:n]) * start
        assert (np.linalg.norm(moved, axis=1) <= expected * (1 + 1e-9)).all()


def test_small_steps_lose_nothing_of_the_rate():
    for integrator in METHODS:
        layer = built(integrator=integrator, step_size=1e-4, iterations=1)
        factor = layer.step_factors((None, 4))[0]
        assert (1 - factor) / 1e-4 == pytest.approx(layer.rate, rel=1e-3)


def test_published_damping():
    c1, c2 = 0.25, 0.25 + (1 + 1e-5) ** 2
    alpha = (c2 - c1) / (c2 + c1)
    paper = built(kappa=0.5, bound="paper", step_size=0.5)
    assert paper.gamma == pytest.approx(alpha / math.sqrt(1 - alpha**2), rel=1e-6)
    assert paper.gamma < theory.critical_damping(c1, c2)  # on the wrong side, by epsilon
    assert paper.guarantees() == [] and paper.lipschitz_bound((None, 4)) > 1
    mnist = built(kappa=0.5, bound="paper_mnist", step_size=0.5)
    assert mnist.gamma == pytest.approx(1 / math.sqrt(1 - alpha**2), rel=1e-5)
    assert mnist.rate > 0
    # the published step is above the Euler bound: only the rate is promised
    assert [g.property for g in mnist.guarantees()] == ["contracting field"]
    small = built(kappa=0.5, bound="paper_mnist")
    assert [g.property for g in small.guarantees()] == ["contracting field", "1-Lipschitz"]
    for layer in (paper, mnist, small):
        gain = worst_gain(layer.call_float64, (4,), points=1)
        assert gain <= layer.lipschitz_bound((None, 4)) * (1 + 1e-8)


def test_sharp_damping_has_its_margin():
    layer = ContractiveHamiltonianFlow(operators.Dense(3), margin=0.5, kappa=0.7)
    critical = theory.critical_damping(0.49, 0.49 + (1 + 1e-5) ** 2)
    assert layer.gamma == pytest.approx(1.5 * critical)
    before = layer.rate
    layer.build((None, 4))
    assert layer.rate >= before > 0


@methods
def test_layer_integrates_its_field(integrator):
    exact = normal((4, 4), 3).astype(np.float64)
    results, x = [], exact
    for steps in (5, 10):
        layer = built(shared=True, steps=steps, step_size=1 / steps, integrator=integrator)
        results.append(layer.call_float64(x))
    for _ in range(100):
        exact = integrators.get("rk4").step(layer.field_float64, exact, 0.01)
    errors = [np.linalg.norm(r - exact) for r in results]
    order = 1 if integrator == "euler" else ImplicitMidpoint().order
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


def test_published_field():
    layer = built(step_size=0.1, kappa=0.5)
    k, b = (backend.to_numpy(w[0].value).astype(np.float64) for w in (layer.kernels, layer.biases))
    form = canonical_matrix(4) - layer.gamma * np.eye(4)
    x = normal((3, 4), 1).astype(np.float64)
    expected = x + 0.1 * (np.tanh(x @ k + b) @ k.T + 0.25 * x) @ form.T
    np.testing.assert_allclose(layer.call_float64(x), expected, atol=1e-13)


OPERATORS = {
    "dense": (lambda: operators.Dense(5), (4,)),
    "pointwise": (lambda: operators.Pointwise(3), IMAGE),
    "conv": (lambda: operators.Conv(2), IMAGE),
}


@methods
@pytest.mark.parametrize("operator", OPERATORS)
def test_float64_twin_bound_and_compilation(operator, integrator):
    make, shape = OPERATORS[operator]
    layer = built(make(), shape, steps=2, step_size="learned", integrator=integrator)
    x = normal((3, *shape), 6)
    y = backend.to_numpy(layer(x))
    np.testing.assert_allclose(y, layer.call_float64(x), atol=5e-6)
    assert norm(jacobian(layer.call_float64, x[0])) <= layer.lipschitz_bound((None, *shape)) <= 1
    compiled = backend.jit(layer)(ops.convert_to_tensor(x))
    np.testing.assert_allclose(backend.to_numpy(compiled), y, atol=2e-6)


@pytest.mark.parametrize("raw", [-100.0, 0.0, 100.0])
def test_learned_steps_stay_in_their_interval(raw):
    layer = built(step_size="learned", steps=2, shared=True)
    layer.raw_steps[1].assign(raw)
    assert len(layer.raw_steps) == 2 and len(layer.kernels) == 1
    assert all(0 <= h <= layer.step_limit for h in layer.step_sizes())
    assert layer.lipschitz_bound((None, 4)) <= 1
    assert layer.guarantees()[1].value == 1.0
    wide = built(step_size="learned", integrator="implicit_midpoint", max_step=0.7)
    assert wide.step_limit == math.inf and wide.step_sizes()[0] < 0.7


def test_save_and_load(tmp_path):
    inputs = keras.Input((6,))
    x = ContractiveHamiltonianFlow(operators.Dense(4), step_size="learned", seed=1)(inputs)
    x = ContractiveHamiltonianFlow(operators.Dense(3), integrator="implicit_midpoint", seed=2)(x)
    model = keras.Model(inputs, x)
    model.set_weights([normal(w.shape, i, 0.3) for i, w in enumerate(model.get_weights())])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = normal((2, 6))
    np.testing.assert_allclose(backend.to_numpy(again(x)), backend.to_numpy(model(x)), atol=1e-6)
    assert isinstance(again.layers[1].kernels[0].constraint, constraints.SpectralNorm)
    assert again.layers[1].rate > 0  # a loaded layer knows its shape


@methods
def test_gradients_flow_to_every_weight_and_training_keeps_the_bound(integrator):
    layer = ContractiveHamiltonianFlow(
        operators.Dense(3), step_size="learned", integrator=integrator, iterations=2
    )
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    before = model.get_weights()
    x, y = normal((8, 4), 1), normal((8, 4), 2)
    model.train_on_batch(x, y)
    for weight, old in zip(model.weights, before, strict=True):
        change = np.abs(backend.to_numpy(weight.value) - old).max()
        assert np.isfinite(change) and change > 1e-6, weight.path
    for _ in range(3):
        model.train_on_batch(x, 10 * y)
    assert layer.lipschitz_bound((None, 4)) <= 1 and layer.rate > 0


def test_mixed_precision_stays_close():
    layer = ContractiveHamiltonianFlow(
        operators.Dense(3), integrator="implicit_midpoint", seed=1, dtype="mixed_bfloat16"
    )
    x = normal((2, 6))
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    found = backend.to_numpy(ops.cast(y, "float32"))
    np.testing.assert_allclose(found, layer.call_float64(x), atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0.3}, r"`step_size` must be in \(0, 0.29\d+\], or 'optimal' or 'maximal'"),
        ({"step_size": 0}, "`step_size` must be in.*step_size=0"),
        ({"step_size": "best"}, "`step_size` must be in.*step_size='best'"),
        (
            {"step_size": "maximal", "integrator": "implicit_midpoint"},
            "`step_size` must be a positive number",
        ),
        ({"bound": "paper"}, "`step_size` must be a positive number with bound='paper'"),
        ({"bound": "exact"}, "`bound` must be one of 'sharp', 'paper', 'paper_mnist'"),
        ({"bound": "paper_mnist", "kappa": 1e-4}, "`bound` 'paper_mnist' needs"),
        ({"kappa": 0.0}, "`kappa` must be in"),
        ({"margin": 0.0}, "`margin` must be in"),
        ({"integrator": "leapfrog"}, "`integrator` must be one of 'euler', 'implicit_midpoint'"),
        ({"iterations": 0}, "`iterations` must be a positive integer"),
        ({"steps": 0}, "`steps` must be a positive integer"),
        ({"max_norm": math.inf}, "`max_norm` must be in"),
        ({"activation": "gelu"}, "`activation` must have slopes"),
        ({"operator": None}, "`operator` must be a dynzoo operator"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContractiveHamiltonianFlow(**{"operator": operators.Dense(3), **arguments})


def test_odd_features_are_refused():
    with pytest.raises(ValueError, match="needs an even number of features"):
        ContractiveHamiltonianFlow(operators.Dense(3)).build((None, 5))
