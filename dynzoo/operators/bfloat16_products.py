"""Products of bfloat16 matrices on CPUs that have instructions for them, which JAX leaves idle.

XLA uses the matrix units of such a CPU (AMX) only for products of two row-major matrices whose
result it may keep in float32. It does not ask for that by itself: neither in the product of a layer
nor in its gradients, whose transposed factor it folds into the product.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dynzoo import backend

__all__ = ["has_units", "product", "suits"]

CPU_INFO = Path("/proc/cpuinfo")


def suits(x: Any, matrix: Any) -> bool:
    """Whether ``product`` is the fast way of ``x @ matrix`` on this machine, for these types."""
    if backend.name() != "jax" or isinstance(x, keras.KerasTensor):
        return False
    if {str(a.dtype) for a in (x, matrix)} != {"bfloat16"} or len(x.shape) != 2:
        return False
    return keras.distribution.distribution() is None and has_units()


def product(x: Any, matrix: Any) -> Any:
    r"""``x @ matrix`` of bfloat16 matrices on JAX: summed in float32, then rounded once.

    The gradients are such products too: $\bar X = \bar Y W^T$ and $\bar W = X^T \bar Y$.

    Args:
        x: (n, k), bfloat16.
        matrix: (k, m), bfloat16.
    """
    return _differentiable()(x, matrix)


@functools.cache
def has_units() -> bool:
    """Whether JAX computes on a CPU with AMX units, and has been seen to use them correctly."""
    if backend.name() != "jax" or backend.accelerator() is not None:
        return False
    try:
        known = "amx_bf16" in CPU_INFO.read_text()
    except OSError:  # not Linux
        known = False
    return known and _works()


def _works() -> bool:
    """Tries the three products: XLA promises nothing of mixed types on CPUs."""
    import jax

    rng = np.random.default_rng(0)
    with jax.ensure_compile_time_eval():
        x, matrix, gradient = (
            jax.numpy.asarray(rng.integers(-2, 3, shape), "bfloat16")
            for shape in ((512, 96), (96, 64), (512, 64))
        )

        def step(x, matrix, gradient):
            y, pullback = jax.vjp(_differentiable(), x, matrix)
            return y, *pullback(gradient)

        try:
            found = [np.asarray(a, "float64") for a in jax.jit(step)(x, matrix, gradient)]
        except jax.errors.JaxRuntimeError:
            return False
    a, b, g = (np.asarray(t, "float64") for t in (x, matrix, gradient))
    exact = (a @ b, g @ b.T, a.T @ g)
    return all(np.allclose(f, e, rtol=2.0**-7, atol=0.0) for f, e in zip(found, exact, strict=True))


@functools.cache
def _differentiable() -> Any:
    import jax
    from jax.experimental.layout import Layout, with_layout_constraint

    def row_major(a):
        return with_layout_constraint(a, Layout(major_to_minor=(0, 1)))

    @jax.custom_vjp
    def multiply(x, matrix):
        y = jax.lax.dot_general(
            row_major(x),
            row_major(matrix),
            (((1,), (0,)), ((), ())),
            preferred_element_type="float32",
        )
        return row_major(y).astype("bfloat16")

    def forward(x, matrix):
        return multiply(x, matrix), (x, matrix)

    def backward(saved, gradient):
        x, matrix = saved
        return multiply(gradient, matrix.T), multiply(x.T, gradient)

    multiply.defvjp(forward, backward)
    return multiply
