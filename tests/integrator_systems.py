"""The table of integrators, and a random system in float64 for each row of it."""

import numpy as np
import pytest

from dynzoo import integrators
from dynzoo.fields.first_integral import Integral, integral_field
from dynzoo.fields.hamiltonian import rotate
from dynzoo.fields.skew import SkewNetwork
from dynzoo.fields.sphere import sphere_field

TABLE = integrators.table()
ROWS = {row.name: row for row in TABLE}
every = pytest.mark.parametrize("row", TABLE, ids=list(ROWS))
N = 4


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


def euler_step(row, gradient, curvature=1.0):
    """Implicit Euler on x' = -gradient(x)."""

    def step(x, h):
        share = row.method.share(h, curvature)
        return row.method.step(lambda z: share * h * gradient(z), x, share)

    return step


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
    if row.family == "implicit Euler":
        gradient = ridge_gradient(rng, N)
        return euler_step(row, gradient), lambda x: -gradient(x)
    network = skew_network(rng)
    if "first integral" in row.preserves:
        kept = integral(rng, ridged)
        return (
            lambda x, h: row.method.integral_step(network, kept, x, h),
            integral_field(network, kept),
        )
    return lambda x, h: row.method.sphere_step(network, x, h, np), sphere_field(network)
