"""The table of integrators: every order is measured, every radius checked."""

import dataclasses
import importlib
import pkgutil

import numpy as np
import pytest
from integrator_systems import ROWS, TABLE, N, every, skew_network, systems
from scipy.integrate import solve_ivp

from dynzoo import integrators
from dynzoo.fields.sphere import sphere_field
from dynzoo.integrators import registry, splitting
from dynzoo.layers.first_integral_flow import PROJECTED
from dynzoo.layers.spherical_flow import SPHERE_INTEGRATORS

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
    assert {m for m in methods if not isinstance(m, type)} == shipped
    assert shipped == set(integrators.INTEGRATORS.values())
    assert all(name == method.name for name, method in integrators.INTEGRATORS.items())
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
