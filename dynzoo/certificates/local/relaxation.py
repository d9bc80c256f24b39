r"""Linear bounds of an unrolled model on balls $B(x, r)$, by one pass forward and one back.

Forward: how far each slot can move, in L2 norm (the layers' own constants: a gradient step does
not lengthen a movement) and entry by entry. A rectifier whose input cannot change sign is linear
in the whole ball. Backward: a row $g$ of output directions is pulled through the adjoints, and each
rectifier that can switch is replaced by a line plus a slack. With the movement $t$ of its input:

* where $g_i > 0$, the tangent at the centre lies below the convex $\rho$: no slack;
* where $g_i < 0$, the chord over $[-d_i, u_i]$ lies above it by at most $\beta_i$ at the centre;
* or the line of mean slope for all of the latter, which is off by at most
  $\tfrac{1-\kappa}2|t_i|$, together $\tfrac{1-\kappa}2\|g_-\|\,\|t\|$: better where many units
  share one movement.

The smaller slack is taken, row by row, so that
$\langle g, f(x + \delta) - f(x)\rangle \ge -(S\|\delta\| + \beta)$ for $\|\delta\| \le r$.

Reference: Zhang et al., "Efficient neural network robustness certification with general
activation functions" (CROWN, NeurIPS 2018), for the lines; the shared slack is ours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dynzoo.certificates.local.ops import Affine, Rectifier, Sum, Unrolled

__all__ = ["Relaxation", "relax"]

# Float64 rounding of the centre's values, and of the sums of a pass.
_VALUES, _SUMS = 1e-11, 1.0 + 1e-9

Array = np.ndarray


class _Switch(NamedTuple):
    """A rectifier's input on the ball: its value, how far down and up it may go, and in norm."""

    z: Array
    down: Array
    up: Array
    norm: Array

    @property
    def open(self) -> Array:
        """Which entries can change their sign."""
        return (self.z - self.down < 0) & (self.z + self.up > 0)


class Relaxation:
    """Linear bounds of a model on a ball around each of a batch of inputs; made by ``relax``.

    Attributes:
        undecided: share of the rectified units of each input that can change their sign.
    """

    def __init__(self, unrolled: Unrolled, values: list[Array], radius: Array, anywhere: bool):
        self._unrolled, self._values = unrolled, values
        self._radius, self._anywhere = radius, anywhere
        self._switches: dict[int, _Switch] = {}
        self.undecided = np.zeros(len(radius))

    def lower(self, rows: Array, slot: int | None = None) -> tuple[Array, Array]:
        r"""S and beta with $\langle g, \Delta\rangle \ge -(S\|\delta\| + \beta)$ for each row g.

        Args:
            rows: directions (n, q, ...) in the shape of the slot.
            slot: that of the logits if ``None``.

        Returns:
            (S, beta), each (n, q). With ``anywhere`` beta is 0 and S bounds the Lipschitz constant
            of $\langle g, \cdot\rangle$ between any two points of the ball.
        """
        last = len(self._unrolled.shapes) - 1 if slot is None else slot
        count, many = rows.shape[:2]
        pulled: dict[int, Array] = {last: rows}
        slope, slack = np.zeros((count, many)), np.zeros((count, many))
        for node in reversed(self._unrolled.nodes[:last]):
            g = pulled.pop(node.output, None)
            if g is None:
                continue
            if isinstance(node.op, Affine):
                flat = node.op.adjoint(g.reshape(-1, *g.shape[2:]))
                parts = [flat.reshape(count, many, *flat.shape[1:])]
            elif isinstance(node.op, Sum):
                parts = [weight * g for weight in node.op.weights]
            else:
                assert isinstance(node.op, Rectifier)
                part, extra = self._through(node.op, self._switches[node.output], g)
                parts = [part]
                if self._anywhere:
                    slope = slope + extra / self._radius[:, None]
                else:
                    slack = slack + extra
            for source, part in zip(node.inputs, parts, strict=True):
                pulled[source] = pulled[source] + part if source in pulled else part
        if 0 in pulled:
            slope = slope + _norm(pulled[0], 2)
        return slope * _SUMS, slack * _SUMS

    def _through(self, op: Rectifier, switch: _Switch, g: Array) -> tuple[Array, Array]:
        """Rows on the other side of a rectifier, and the slack (n, q)."""
        kappa, z, wide = op.slope, switch.z[:, None], switch.open[:, None]
        mean = 0.5 * (1.0 + kappa)
        centre = np.where(z > 0, 1.0, kappa)
        loose = np.where(wide & (self._anywhere | (g < 0)), np.abs(g), 0.0)
        moved = np.where(switch.open, np.maximum(switch.down, switch.up), 0.0)
        shared = np.minimum(switch.norm, _norm(moved, 1))[:, None]
        shared = 0.5 * (1.0 - kappa) * _norm(loose, 2) * shared
        if self._anywhere:
            single = 0.5 * (1.0 - kappa) * _total(loose * moved[:, None])
            return g * np.where(wide, mean, centre), np.minimum(single, shared)
        low, high = z - switch.down[:, None], z + switch.up[:, None]
        length = np.where(wide, high - low, 1.0)
        chord = np.where(wide, (high - kappa * low) / length, centre)
        above = kappa * low + chord * (z - low) - np.where(z > 0, z, kappa * z)
        single = _total(loose * np.where(wide, above, 0.0))
        chords = _expand(single <= shared, g)
        line = np.where(chords, chord, mean)
        return g * np.where(wide & (g < 0), line, centre), np.minimum(single, shared)


def relax(
    unrolled: Unrolled,
    values: list[Array],
    radius: Array,
    exact_units: int = 512,
    anywhere: bool = False,
) -> Relaxation:
    """Linear bounds of a model on balls.

    Args:
        unrolled: the model.
        values: ``unrolled.values(x)`` of a batch of inputs.
        radius: radii (n,), positive.
        exact_units: the input of a rectifier with at most so many units is bounded by a backward
            pass for each unit, of one with more by norms alone.
        anywhere: bound the movement between any two points of the ball, not from its centre.
    """
    result = Relaxation(unrolled, values, radius, anywhere)
    lengths: list[Array] = [radius]
    spreads: list[Array] = [np.broadcast_to(_expand(radius, values[0]), values[0].shape)]
    undecided, units = np.zeros(len(radius)), 0
    for node in unrolled.nodes:
        source, op = node.inputs[0], node.op
        length, spread = lengths[source], spreads[source]
        if isinstance(op, Affine):
            length, spread = length * op.norm, op.spread(length, spread)
            spread = np.broadcast_to(spread, values[node.output].shape)
        elif isinstance(op, Sum):
            weights = [abs(weight) for weight in op.weights]
            pairs = list(zip(weights, node.inputs, strict=True))
            length = np.sum([weight * lengths[i] for weight, i in pairs], axis=0)
            spread = np.sum([weight * spreads[i] for weight, i in pairs], axis=0)
        else:
            assert isinstance(op, Rectifier)
            z = values[source]
            down = up = spread
            if z[0].size <= exact_units:
                down, up = _exact(result, source, z, spread)
            tiny = _VALUES * np.abs(z).max(axis=tuple(range(1, z.ndim)), keepdims=True)
            down, up = down * _SUMS + tiny, up * _SUMS + tiny
            length = np.minimum(length, _norm(np.maximum(down, up), 1))
            switch = _Switch(z, down, up, length)
            result._switches[node.output] = switch
            undecided += switch.open.reshape(len(z), -1).sum(axis=1)
            units += z[0].size
            spread = _after(op, switch, anywhere)
        if node.cap is not None:
            length = np.minimum(length, lengths[node.cap[0]] * node.cap[1])
        length = np.minimum(length, _norm(spread, 1)) * (1 + 1e-12)
        lengths.append(length)
        spreads.append(np.minimum(spread, _expand(length, spread)))
    result.undecided = undecided / max(units, 1)
    return result


def _exact(result: Relaxation, slot: int, z: Array, spread: Array) -> tuple[Array, Array]:
    """How far down and up each entry of a slot may go, by a backward pass for each."""
    size, radius = z[0].size, result._radius[:, None]
    rows = np.broadcast_to(np.eye(size).reshape(size, *z.shape[1:]), (len(z), size, *z.shape[1:]))
    slope, slack = result.lower(rows, slot)
    down = (slope * radius + slack).reshape(z.shape)
    up = down
    if not result._anywhere:
        slope, slack = result.lower(-rows, slot)
        up = (slope * radius + slack).reshape(z.shape)
    return np.minimum(down, spread), np.minimum(up, spread)


def _after(op: Rectifier, switch: _Switch, anywhere: bool) -> Array:
    """How far each output of a rectifier may move."""
    z, down, up, _ = switch
    if anywhere:
        steep = np.where(z + up > 0, 1.0, op.slope)
        return steep * np.maximum(down, up)
    middle = op.forward(z)
    tiny = 1e-15 * np.abs(middle)
    return np.maximum(op.forward(z + up) - middle, middle - op.forward(z - down)) + tiny


def _norm(a: Array, lead: int) -> Array:
    """L2 norm over all but the leading axes."""
    return np.linalg.norm(a.reshape(*a.shape[:lead], -1), axis=-1)


def _total(a: Array) -> Array:
    return a.reshape(*a.shape[:2], -1).sum(axis=-1)


def _expand(a: Array, like: Array) -> Array:
    return a.reshape(*a.shape, *(1,) * (like.ndim - a.ndim))
