r"""The nearest point of a hyperplane that lies in the box: the inner problem of FAB, exactly.

For a point $p \in [0,1]^d$ and an affine function with gradient $w$ and value $c$ at $p$,

$$\min_\delta \|\delta\|_p \quad\text{with}\quad w \cdot \delta = -c, \quad p + \delta \in [0,1]^d$$

has a solution with one multiplier $t \ge 0$: each coordinate moves against $c\,w_i$, in L2 by
$\min(t|w_i|, r_i)$ and in Linf by $\min(t, r_i)$, where $r_i$ is its room up to the box.
"""

from __future__ import annotations

from typing import Any

from keras import ops

# Newton steps on the multiplier. The gain of a step is concave and piecewise linear in it, so
# Newton rises to the root without overshoot, and is there once the last bound is met. Images take
# three to six steps; what is missing after the last one is made up by the next FAB iteration.
_NEWTON = 7
# Where no step is long enough the multiplier grows without end; this bound keeps 0 * t a zero.
_LARGEST = 1e20


def hyperplane_step(point: Any, normal: Any, value: Any, norm: str) -> Any:
    r"""Smallest step from a point of the box to $\{u : c + w \cdot (u - p) = 0\} \cap [0, 1]^d$.

    Where the hyperplane misses the box, the step goes to the point of the box nearest to it in
    the sense of $w$: every coordinate to its bound. A zero or non-finite gradient gives no step.

    Args:
        point: float tensor of shape (n, d), $p$, in [0, 1].
        normal: float tensor of shape (n, d), $w$.
        value: float tensor of shape (n,), $c$: the affine function at ``point``.
        norm: ``"l2"`` or ``"linf"``.

    Returns:
        Float tensor of shape (n, d), the step $\delta$.

    Example:

    >>> from keras import ops
    >>> p, w = ops.convert_to_tensor([[0.5, 0.9]]), ops.convert_to_tensor([[1.0, 1.0]])
    >>> step = hyperplane_step(p, w, ops.convert_to_tensor([-0.4]), "l2")
    >>> [round(float(v), 6) for v in step[0]]
    [0.3, 0.1]

    Reference: Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive
    boundary attack" (2020), section 2.2, who sort the coordinates instead.
    """
    normal = ops.where(ops.isfinite(normal), normal, ops.zeros_like(normal))
    # Dividing by the largest entry first keeps a tiny gradient from underflowing in its square.
    largest = ops.max(ops.abs(normal), axis=1, keepdims=True)
    scale = ops.where(largest > 0.0, largest, ops.ones_like(largest))
    value = value[:, None] / scale
    needed = ops.abs(value[:, 0])
    gain = ops.abs(normal) / scale
    side = ops.sign(normal) * -ops.sign(value)
    room = 0.5 + side * (0.5 - point)
    speed, slopes = (gain, gain * gain) if norm == "l2" else (1.0, gain)

    multiplier = ops.zeros_like(needed)
    for _ in range(_NEWTON):
        wanted = multiplier[:, None] * speed
        reached = ops.sum(gain * ops.minimum(wanted, room), axis=1)
        # 1 where there is room left, else 0: on a CPU several times faster than `where`.
        free = ops.sign(ops.relu(room - wanted))
        slope = ops.sum(slopes * free, axis=1)
        moves = slope > 0.0
        more = (needed - reached) / ops.where(moves, slope, ops.ones_like(slope))
        multiplier = ops.where(moves, ops.minimum(multiplier + more, _LARGEST), multiplier)
    return side * ops.minimum(multiplier[:, None] * speed, room)
