"""Invariants of integrators: what is stated is kept to rounding, what is not stated is lost."""

import dataclasses

import numpy as np
import pytest
from helpers import jacobian
from integrator_systems import (
    TABLE,
    N,
    euler_step,
    integral,
    midpoint_step,
    ridge_gradient,
    skew_network,
    split_step,
)

from dynzoo.fields.hamiltonian import canonical_matrix, rotate
from dynzoo.fields.mass import mass_field
from dynzoo.fields.sphere import sphere_field
from dynzoo.integrators import registry


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
    if row.family == "implicit Euler":  # V does not see the direction c
        flat, push = np.eye(N) - np.outer(c, c) / (c @ c), ridge_gradient(rng, N)
        step = euler_step(row, lambda x: push(x @ flat) @ flat)
        return change(step, lambda x: x @ c, rng)
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
    if row.family == "implicit Euler":
        step = euler_step(row, ridge_gradient(rng, N))
        found = [
            matrix_defect(step, lambda m: np.linalg.norm(m, 2), rng, h) for h in (0.3, 5.0, 500.0)
        ]
        return max(0.0, *(f - 1.0 for f in found))
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
    ("implicit Euler", "linear invariants"): linear_invariants,
    ("implicit Euler", "contractivity"): contractivity,
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
