"""The table of integrators: every order is measured, every invariant and radius checked."""

import dataclasses
import importlib
import pkgutil

import numpy as np
import pytest
from helpers import jacobian
from scipy.integrate import solve_ivp

from dynzoo import integrators
from dynzoo.fields.first_integral import Integral, integral_field
from dynzoo.fields.hamiltonian import canonical_matrix, rotate
from dynzoo.fields.mass import mass_field
from dynzoo.fields.skew import SkewNetwork
from dynzoo.fields.sphere import sphere_field
from dynzoo.integrators import registry, splitting
from dynzoo.layers.first_integral_flow import PROJECTED
from dynzoo.layers.spherical_flow import SPHERE_INTEGRATORS

TABLE = integrators.table()
ROWS = {row.name: row for row in TABLE}
every = pytest.mark.parametrize("row", TABLE, ids=list(ROWS))
N = 4


# --- the table -------------------------------------------------------------------------------


def test_every_integrator_is_in_the_table():
    modules = [
        importlib.import_module(f"dynzoo.integrators.{m.name}")
        for m in pkgutil.iter_modules(integrators.__path__)
    ]
    methods, classes = set(), set()
    for module in modules:
        for value in vars(module).values():
            inside = value.values() if isinstance(value, dict) else (value,)
            methods |= {m for m in inside if dataclasses.is_dataclass(m) and hasattr(m, "order")}
    classes = {m for m in methods if isinstance(m, type)} - {registry.Integrator}
    shipped = {row.method for row in TABLE}
    assert len(ROWS) == len(TABLE) == len(shipped)
    assert {m for m in methods if not isinstance(m, type)} == {
        m for m in shipped if type(m).__name__ not in ("ImplicitMidpoint", "DiscreteGradient")
    }
    assert {type(m) for m in shipped} >= classes
    for names in (integrators.names(), splitting.names(), SPHERE_INTEGRATORS, PROJECTED):
        assert set(names) <= set(ROWS)


@every
def test_rows_are_the_methods_themselves(row):
    for name in ("name", "order", "preserves", "family", "equation", "solver", "source"):
        value = getattr(row, name)
        assert value == getattr(row.method, name) and value
    assert row.solver in ("explicit", "linearly implicit", "implicit")
    assert set(row.preserves) <= set(registry.INVARIANTS)
    assert (row.circle_contractivity_radius is not None) == (row.family == "Runge-Kutta")


# --- random systems, in float64 ----------------------------------------------------------------


def skew_network(rng, scale=0.3):
    return SkewNetwork(
        lambda x, kernel: x @ kernel,
        np.tanh,
        rng.normal(size=(N, 5)),
        rng.normal(size=5),
        scale * rng.normal(size=(5, N * N)),
        scale * rng.normal(size=N * N),
        None,
        np,
    )


def integral(rng, ridged=False):
    root = rng.normal(size=(N, N))
    ridges = (
        (2.0 * rng.normal(size=(N, 5)), rng.normal(size=5), rng.uniform(0.5, 1.0, 5))
        if ridged
        else (None, None, None)
    )
    return Integral(root @ root.T / N, rng.normal(size=N), np, *ridges)


def ridge_gradient(rng, size, bias=True):
    """Gradient of a convex sum of ridges, with a Hessian in [0, 1]."""
    k = rng.normal(size=(size, 6))
    k /= np.linalg.norm(k, 2)
    b = rng.normal(size=6) if bias else 0.0
    return lambda x: np.tanh(x @ k + b) @ k.T


def split_step(row, drift, kick):
    def step(x, h):
        q, p = np.split(x, 2, axis=-1)
        return np.concatenate(row.method.step(drift, kick, q, p, h), axis=-1)

    return step


def midpoint_step(row, gradient, damping=0.0, center=0.5):
    return lambda x, h: row.method.step(gradient, x, h, damping, center, np)


def systems(row, rng, ridged=False):
    """(one step of the method, right-hand side) for a random system of the kind it solves."""
    if row.family == "Runge-Kutta":
        gradient = ridge_gradient(rng, N)

        def field(x):
            return rotate(gradient(x), np) - 0.1 * x**3

        return lambda x, h: row.method.step(field, x, h), field
    if row.family == "splitting":
        drift, kick = ridge_gradient(rng, N // 2), ridge_gradient(rng, N // 2)

        def halves(x):
            q, p = np.split(x, 2, axis=-1)
            return np.concatenate([drift(p), kick(q)], axis=-1)

        return split_step(row, drift, kick), halves
    if row.family == "implicit midpoint":
        gradient = ridge_gradient(rng, N)
        return midpoint_step(
            row, gradient, 0.3
        ), lambda x: rotate(gradient(x), np) - 0.3 * (gradient(x))
    network = skew_network(rng)
    if "first integral" in row.preserves:
        kept = integral(rng, ridged)
        return (
            lambda x, h: row.method.integral_step(network, kept, x, h),
            integral_field(network, kept),
        )
    return lambda x, h: row.method.sphere_step(network, x, h, np), sphere_field(network)


# --- orders ----------------------------------------------------------------------------------


def measured_order(step, field, x, counts, end=1.0):
    options = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-14}
    exact = solve_ivp(lambda t, x: field(x), (0.0, end), x, **options).y[:, -1]
    errors = []
    for count in counts:
        found = x
        for _ in range(count):
            found = step(found, end / count)
        errors.append(np.linalg.norm(found - exact))
    assert errors[-1] > 1e-11  # far above rounding, or nothing would be measured
    return np.log2(errors[0] / errors[1])


@every
def test_order(row):
    rng = np.random.default_rng(1)
    step, field = systems(row, rng)
    assert measured_order(step, field, rng.normal(size=N), (20, 40)) == pytest.approx(
        row.order, abs=0.25
    )


@pytest.mark.parametrize(
    "row", [r for r in TABLE if "first integral" in r.preserves], ids=lambda r: r.name
)
def test_order_on_integrals_that_are_not_quadratic(row):
    rng = np.random.default_rng(1)
    step, field = systems(row, rng, ridged=True)
    counts = (40, 80) if row.general_order == row.order else (160, 320)
    order = measured_order(step, field, rng.normal(size=N), counts)
    assert order == pytest.approx(row.general_order, abs=0.25)


@pytest.mark.parametrize(
    "row", [r for r in TABLE if r.family == "projected Runge-Kutta"], ids=lambda r: r.name
)
def test_order_on_spheres(row):
    rng = np.random.default_rng(2)
    network = skew_network(rng, 1.0)

    def step(x, h):
        return row.method.sphere_step(network, x, h, np)

    order = measured_order(step, sphere_field(network), rng.normal(size=N), (20, 40))
    assert order == pytest.approx(row.order, abs=0.25)


# --- invariants: what is stated is kept to rounding, what is not stated is lost -------------------


def change(step, invariant, rng, h=0.3):
    """Largest change of a function in one step, from a few points."""
    x = rng.normal(size=(8, N))
    return np.abs(invariant(step(x, h)) - invariant(x)).max()


def matrix_defect(step, defect, rng, h=0.3):
    return max(
        np.abs(defect(jacobian(lambda x: step(x, h), rng.normal(size=N)))).max() for _ in range(3)
    )


def linear_invariants(row, rng):
    c = rng.normal(size=N)
    if row.family == "Runge-Kutta":
        field = mass_field(skew_network(rng), c, np)
        return change(lambda x, h: row.method.step(field, x, h), lambda x: x @ c, rng)
    if row.family == "splitting":
        a, b = np.split(c, 2)

        def across(direction):
            flat = np.eye(len(direction)) - np.outer(direction, direction) / (direction @ direction)
            push = ridge_gradient(rng, N // 2)
            return lambda x: push(x) @ flat

        return change(split_step(row, across(a), across(b)), lambda x: x @ c, rng)
    # H does not see the direction c, hence J c is kept
    flat, push = np.eye(N) - np.outer(c, c) / (c @ c), ridge_gradient(rng, N)
    return change(
        midpoint_step(row, lambda x: push(x @ flat) @ flat), lambda x: x @ rotate(c, np), rng
    )


def bilinear_invariants(row, rng):
    d, s, t = rng.normal(size=(3, N // 2, N // 2))

    def drift(p):  # orthogonal to D p
        return np.cos(p[..., :1]) * (p @ d.T @ (s - s.T))

    def kick(q):  # orthogonal to D^T q
        return np.sin(q[..., :1] + 1.0) * (q @ d @ (t - t.T))

    def invariant(x):
        q, p = np.split(x, 2, axis=-1)
        return np.sum(q * (p @ d.T), axis=-1)

    return change(split_step(row, drift, kick), invariant, rng)


def quadratic_invariants(row, rng):
    if row.family == "Runge-Kutta":
        field = sphere_field(skew_network(rng))
        return change(
            lambda x, h: row.method.step(field, x, h), lambda x: np.sum(x * x, axis=-1), rng
        )
    if row.family == "splitting":
        step = split_step(row, lambda p: p, lambda q: -q)
        return change(step, lambda x: np.sum(x * x, axis=-1), rng)
    # H = log(1 + x^T Q x) / 2 keeps x^T Q x
    root = 0.4 * rng.normal(size=(N, N))
    q = root @ root.T

    def gradient(x):
        return x @ q / (1.0 + np.sum(x * (x @ q), axis=-1, keepdims=True))

    step = midpoint_step(dataclasses.replace(row, method=type(row.method)(60)), gradient)
    return change(step, lambda x: np.sum(x * (x @ q), axis=-1), rng)


def first_integral(row, rng):
    if hasattr(row.method, "integral_step"):
        kept = integral(rng)
        network = skew_network(rng)
        return change(
            lambda x, h: row.method.integral_step(network, kept, x, h), kept.value, rng, 0.2
        )
    # the energy of a Hamiltonian field
    k = 0.8 * rng.normal(size=(N, 5))
    step = hamiltonian_step(row, lambda x: np.tanh(x @ k) @ k.T)
    return change(step, lambda x: np.log(np.cosh(x @ k)).sum(axis=-1), rng)


def hamiltonian_step(row, gradient):
    if row.family == "Runge-Kutta":
        return lambda x, h: row.method.step(lambda x: rotate(gradient(x), np), x, h)
    return midpoint_step(row, gradient)


def norm(row, rng):
    network = skew_network(rng)
    return change(
        lambda x, h: row.method.sphere_step(network, x, h, np),
        lambda x: np.linalg.norm(x, axis=-1),
        rng,
    )


def _of_jacobian(row, rng, defect):
    if row.family == "splitting":
        a, b = ridge_gradient(rng, N // 2), ridge_gradient(rng, N // 2)
        step = split_step(row, lambda p: 2.0 * a(p), lambda q: -2.0 * b(q))
    else:
        step = hamiltonian_step(row, ridge_gradient(rng, N))
    return matrix_defect(step, defect, rng, 0.5)


def symplectic_form(row, rng):
    j = canonical_matrix(N)
    return _of_jacobian(row, rng, lambda m: m.T @ j @ m - j)


def volume(row, rng):
    if row.family == "splitting":  # halves that are no gradients
        a, b = 0.8 * rng.normal(size=(2, N // 2, N // 2))
        step = split_step(row, lambda p: np.tanh(p @ a), lambda q: np.tanh(q @ b))
        return matrix_defect(step, lambda m: np.linalg.det(m) - 1.0, rng, 0.5)
    return _of_jacobian(row, rng, lambda m: np.linalg.det(m) - 1.0)


def invertibility(row, rng):
    drift, kick = ridge_gradient(rng, N // 2), ridge_gradient(rng, N // 2)
    q, p = rng.normal(size=(2, 8, N // 2))
    back = row.method.inverse_step(drift, kick, *row.method.step(drift, kick, q, p, 0.7), 0.7)
    return np.abs(np.stack(back) - np.stack([q, p])).max()


def contractivity(row, rng):
    """Largest expansion beyond 1, at a step below the limit; the damping is above critical."""
    gradient, (c1, c2) = ridge_gradient(rng, N), (1.0, 2.0)
    damping, center, radius = 1.0, 0.5 * (c1 + c2), 0.5 * (c2 - c1)
    limit = min(row.method.step_limit(damping, center, radius), 3.0)
    step = midpoint_step(row, lambda x: gradient(x) + c1 * x, damping, center)
    worst = matrix_defect(step, lambda m: np.linalg.norm(m, 2), rng, limit)
    return max(worst - 1.0, 0.0)


CHECKS = {
    ("Runge-Kutta", "linear invariants"): linear_invariants,
    ("Runge-Kutta", "quadratic invariants"): quadratic_invariants,
    ("Runge-Kutta", "first integral"): first_integral,
    ("Runge-Kutta", "symplectic form"): symplectic_form,
    ("Runge-Kutta", "volume"): volume,
    ("splitting", "linear invariants"): linear_invariants,
    ("splitting", "bilinear invariants"): bilinear_invariants,
    ("splitting", "quadratic invariants"): quadratic_invariants,
    ("splitting", "volume"): volume,
    ("splitting", "symplectic form"): symplectic_form,
    ("splitting", "invertibility"): invertibility,
    ("implicit midpoint", "linear invariants"): linear_invariants,
    ("implicit midpoint", "quadratic invariants"): quadratic_invariants,
    ("implicit midpoint", "first integral"): first_integral,
    ("implicit midpoint", "symplectic form"): symplectic_form,
    ("implicit midpoint", "contractivity"): contractivity,
    ("Cayley", "norm"): norm,
    ("projected Runge-Kutta", "norm"): norm,
    ("projected Runge-Kutta", "first integral"): first_integral,
    ("discrete gradient", "first integral"): first_integral,
}


@pytest.mark.parametrize(
    ("row", "invariant"),
    [
        (row, invariant)
        for row in TABLE
        for invariant in registry.INVARIANTS
        if invariant in row.preserves or (row.family, invariant) in CHECKS
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_what_is_stated_is_kept_and_what_is_not_is_lost(row, invariant):
    losses = [CHECKS[row.family, invariant](row, np.random.default_rng(s)) for s in range(3)]
    if invariant in row.preserves:
        # Jacobians are central differences, good to nine digits
        sharp = 1e-8 if invariant in ("volume", "symplectic form", "contractivity") else 1e-12
        assert max(losses) <= sharp
    else:
        assert max(losses) > 1e-6


# --- circle contractivity ----------------------------------------------------------------------

contractive = pytest.mark.parametrize(
    "row", [r for r in TABLE if r.circle_contractivity_radius], ids=lambda r: r.name
)


def gain(method, z):
    """|y1 / y0| of a step of size 1 on y' = z(t) y that meets z_i in stage i."""
    stages = iter(z)
    return np.abs(method.step(lambda x: next(stages) * x, np.ones_like(z[0]), 1.0))


@contractive
def test_steps_up_to_twice_the_radius_do_not_expand(row):
    # |z + r| <= r is h nu <= 2 r for the linear field z y in the plane; z changes between stages
    rng, r, stages = np.random.default_rng(0), row.circle_contractivity_radius, row.method.stages
    shape = (len(stages), 20000)
    z = r * (np.sqrt(rng.uniform(size=shape)) * np.exp(2j * np.pi * rng.uniform(size=shape)) - 1)
    edge = r * (np.exp(2j * np.pi * rng.uniform(size=shape)) - 1)
    near = r * (np.exp(0.3j * rng.normal(size=shape)) - 1)
    for points in (z, edge, near):
        assert gain(row.method, points).max() <= 1 + 1e-12


@contractive
def test_radius_cannot_be_larger(row):
    # To second order in e, with z_i = s (exp(i e w_i / s) - 1) on the edge of the disk of radius s,
    # |y1|^2 = |y0|^2 + e^2 w^T B w (1/r - 1/s) for the w that attains r.
    b, e, s = np.array(row.method.weights), 1e-2, 1.05 * row.circle_contractivity_radius
    a = np.array([[*line, *[0.0] * (len(b) - len(line))] for line in row.method.stages])
    form = np.diag(b) @ a + a.T @ np.diag(b) - np.outer(b, b)
    values, vectors = np.linalg.eigh(form / np.sqrt(np.outer(b, b)))
    w = vectors[:, 0] / np.sqrt(b)
    z = s * (np.exp(1j * e * w / s) - 1)[:, None]
    assert gain(row.method, z)[0] > 1 + 1e-7
    assert gain(row.method, z / 1.05)[0] <= 1 + 1e-12
