"""Integrators: measured order, circle-contractivity radius, and what happens beyond it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynzoo import integrators

METHODS = [integrators.get(name) for name in integrators.names()]
methods = pytest.mark.parametrize("method", METHODS, ids=integrators.names())


def pendulum(x):
    return np.stack([x[..., 1], -np.sin(x[..., 0]) - 0.1 * x[..., 1] ** 3], axis=-1)


def solve(method, steps, end=2.0):
    x = np.array([1.0, 0.5])
    for _ in range(steps):
        x = method.step(pendulum, x, end / steps)
    return x


@methods
def test_measured_order(method):
    exact = solve(integrators.get("rk4"), 4000)
    errors = [np.linalg.norm(solve(method, n) - exact) for n in (40, 80, 160)]
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(orders, method.order, atol=0.2)


@methods
def test_circle_contractivity_radius_is_one(method):
    assert method.circle_contractivity_radius == pytest.approx(1.0, abs=1e-12)


def test_radius_of_other_methods():
    # b_1 = 0: the explicit midpoint rule is contractive on no disk.
    midpoint = integrators.RungeKutta("midpoint", 2, ((), (0.5,)), (0.0, 1.0))
    assert midpoint.circle_contractivity_radius == 0.0
    # Two Euler half steps: each is contractive up to twice the radius.
    halves = integrators.RungeKutta("halves", 1, ((), (0.5,)), (0.5, 0.5))
    assert halves.circle_contractivity_radius == pytest.approx(2.0)


@methods
def test_stability_function_on_the_disk(method):
    # On x' = lambda x with |h lambda + 1| <= 1 the step is a contraction; r = 1 cannot be larger
    # for Euler, which expands right outside.
    angles = np.linspace(0, 2 * np.pi, 181)
    for radius in (0.3, 0.7, 1.0):
        z = -1 + radius * np.exp(1j * angles)
        assert np.abs(method.step(lambda x, z=z: z * x, np.ones_like(z), 1.0)).max() <= 1 + 1e-12


@pytest.mark.parametrize(
    ("name", "edge"), [("euler", 2.0), ("heun", 2.0), ("ssp3", 2.512745), ("rk4", 2.785294)]
)
def test_steps_beyond_the_stability_limit_expand(name, edge):
    method = integrators.get(name)

    def factor(h):
        return abs(float(method.step(lambda x: -x, np.array(1.0), h)))

    assert factor(edge - 1e-3) <= 1 < factor(edge + 1e-3)


@methods
@pytest.mark.parametrize("stiffness", [0.5, 1.0, 2.0])
def test_contractive_on_cocoercive_fields(method, stiffness):
    # -A^T relu(Ax + b) with |A|^2 = 1; leading directions of random pairs, many of them
    rng = np.random.default_rng(3)
    for _ in range(20):
        a = rng.normal(size=(4, 3))
        a /= np.linalg.norm(a, 2)
        b = 0.3 * rng.normal(size=4)

        def field(x, a=a, b=b):
            return -np.maximum(x @ a.T + b, 0) @ a

        x = rng.normal(size=(200, 3))
        y = x + rng.normal(size=(200, 3)) * 10 ** rng.uniform(-3, 1, size=(200, 1))
        moved = method.step(field, x, stiffness) - method.step(field, y, stiffness)
        gains = np.linalg.norm(moved, axis=1) / np.linalg.norm(x - y, axis=1)
        assert gains.max() <= 1 + 1e-9


@given(st.sampled_from(METHODS), st.floats(0.01, 4.0), st.integers(0, 1000))
def test_growth_bound_holds(method, stiffness, seed):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(3, 3))
    matrix /= np.linalg.norm(matrix, 2)
    step = method.step(lambda x: x @ matrix.T, np.eye(3), stiffness)
    assert np.linalg.norm(step, 2) <= method.growth_bound(stiffness) * (1 + 1e-12)


@methods
def test_growth_bound_is_attained_by_growth(method):
    step = method.step(lambda x: x, np.array(1.0), 0.7)
    assert float(step) == pytest.approx(method.growth_bound(0.7))


def test_lookup():
    assert integrators.get("heun") is integrators.HEUN
    assert integrators.get(integrators.RK4) is integrators.RK4
    with pytest.raises(
        ValueError, match="`integrator` must be one of 'euler', 'heun', 'ssp3', 'rk4'"
    ):
        integrators.get("leapfrog")
