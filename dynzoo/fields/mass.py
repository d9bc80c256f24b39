r"""Fields with a linear invariant, $f(x) = S(x)c$, hence $c^Tf(x) = 0$; and sum-keeping maps."""

from __future__ import annotations

__all__ = [
    "SUM_TOLERANCE",
    "mass_field",
    "sum_lift",
    "sum_projection",
    "tangent_part",
    "tangent_step",
]

# What a step may change of c^T x, in parts of the terms of that sum.
SUM_TOLERANCE = 1e-6


def tangent_part(d, weights, xp):
    r"""d less its part along c: $c^Td = 0$ up to rounding relative to $\sum_i|c_id_i|$."""
    weights = weights / xp.max(xp.abs(weights))  # their squares exist
    unit = weights / xp.sum(weights * weights)
    return d - xp.sum(weights * d, axis=-1, keepdims=True) * unit


def tangent_step(x, d, weights, xp):
    """x + d less the part of d along c; x where rounding is all that there is of d.

    Rounding is known by what it does: it would change c^T x by more than ``SUM_TOLERANCE`` of its
    terms.
    """
    d = tangent_part(d, weights, xp)
    y = x + d
    sizes = (xp.sum(xp.abs(weights * v), axis=-1, keepdims=True) for v in (x, y))
    change = xp.abs(xp.sum(weights * d, axis=-1, keepdims=True))
    return xp.where(change <= 0.5 * SUM_TOLERANCE * xp.maximum(*sizes), y, x)


def mass_field(network, weights, xp):
    r"""$f(x) = S(x)c$ as a function of x, with the rounding's share along c taken out.

    Skewness gives $c^Tf = 0$ in exact arithmetic; the last projection keeps it so where matrix
    products run at reduced precision, as they do by default on some accelerators.
    """
    return lambda x: tangent_part(network(x).apply(weights), weights, xp)


def sum_lift(x, units, xp):
    """Zeros behind the last axis."""
    shape = (*xp.shape(x)[:-1], units - x.shape[-1])
    return xp.concatenate([x, xp.zeros(shape, dtype=x.dtype)], axis=-1)


def sum_projection(x, units, weights, xp):
    r"""The first entries, plus the least-norm share of the dropped ones that keeps $c^Tx$.

    $y = x_K + c_K (c_D^Tx_D) / (c_K^Tc_K)$, K kept and D dropped; for ones, the mean share.
    """
    kept, dropped = weights[:units], weights[units:]
    lost = xp.sum(dropped * x[..., units:], axis=-1, keepdims=True)
    return x[..., :units] + lost * (kept / xp.sum(kept * kept))
