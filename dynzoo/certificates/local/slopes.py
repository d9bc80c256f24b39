r"""Slopes of the lines below rectifiers, found by descent for each row.

The bound $F = rS + \beta$ of a row is piecewise smooth in the slopes. Its gradient is a pass
forward: with $t = r\,\partial S / \partial g_0$ at the image, pushed through the same lines,
$\partial F / \partial a_i = g_i^+ (t_i - z_i)$ at a unit that can switch. Any slopes give a bound;
the best on the way is kept for each row.

Reference: Xu et al., "Fast and complete: enabling complete neural network verification with rapid
and massively parallel incomplete verifiers" (ICLR 2021).
"""

from __future__ import annotations

import math
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from dynzoo.certificates.local.backward import Backward, Splits
from dynzoo.certificates.local.lines import Lines
from dynzoo.certificates.local.ops import Affine, Node, Rectifier, Sum
from dynzoo.certificates.local.rows import Rows, pushed, unit_rows

__all__ = ["Search", "first_slopes", "optimised", "switching", "tightened"]

Array = np.ndarray

_STEPS, _RATE = 20, 0.3
# Rows of a layer that are improved at once.
_AT_ONCE = 64
# Units that can switch, times the entries of the widest slot: a layer with more stays as it is.
_MOST_WORK = 150_000


def optimised(
    bounds: Backward,
    rows: Rows,
    slot: int,
    steps: int = _STEPS,
    start: Search | None = None,
    needed: Array | None = None,
) -> Search:
    """The smallest r S + beta of each row (P, Q) that the descent meets.

    Args:
        bounds: what is known of the units before the slot.
        rows: on all of the slot.
        slot: where they start.
        steps: of the descent.
        start: slopes and conditions to begin with.
        needed: (P, Q), a bound that is enough; the descent ends where all rows have it.
    """
    radius = bounds.radius[rows.image][:, None]
    best = start or first_slopes(bounds, rows, slot)
    slopes, multipliers = dict(best.slopes), dict(best.splits.multipliers)
    keys = [(slopes, key) for key in slopes] + [(multipliers, key) for key in multipliers]
    moments = [(np.zeros_like(table[key]), np.zeros_like(table[key])) for table, key in keys]
    for step in range(steps):
        if monotonic() > bounds.plan.stop:
            break
        met: dict[int, Rows] = {}
        splits = Splits(best.splits.signs, multipliers)
        found = bounds.lower(rows, slot, slopes=slopes, met=met, splits=splits)
        best = best.kept(found, radius, slopes, splits, met.get(0))
        if needed is not None and (best.total(radius) < needed).all():
            break
        gradients = _gradients(bounds, met, slopes, splits, slot, radius)
        for (table, key), (first, second) in zip(keys, moments, strict=True):
            gradient = gradients[table is multipliers].get(key)
            if gradient is None:
                continue
            # Adam, whose step does not depend on the scale of a row.
            first += 0.2 * (gradient - first)
            second += 0.05 * (gradient**2 - second)
            scale = np.sqrt(second / (1 - 0.95 ** (step + 1))) + 1e-30
            move = _RATE * 0.95**step / (1 - 0.8 ** (step + 1)) * first / scale
            if table is multipliers:
                # In units of the row there.
                move = move * best.scale
            table[key] = np.clip(table[key] - move, 0.0, 1.0 if table is slopes else None)
    return best


class Search(NamedTuple):
    """The best bound of each row so far, and how it was found.

    Attributes:
        steep, beta: (P, Q).
        slopes: by output slot of a rectifier, (shape..., P, Q).
        splits: conditions, with their multipliers.
        image: rows on the image (image shape..., P, Q), or ``None``.
    """

    steep: Array
    beta: Array
    slopes: dict[int, Array]
    splits: Splits
    image: Array | None = None
    scale: float = 0.1

    def total(self, radius: Array | float) -> Array:
        return radius * self.steep + self.beta

    def kept(
        self, found: Any, radius: Array, slopes: Any, splits: Splits, image: Rows | None
    ) -> Search:
        """The better of this and another, row by row."""
        better = radius * found[0] + found[1] < self.total(radius)

        def pick(new: Array, old: Array) -> Array:
            return np.where(better, new, old)

        values = None if image is None else image.values
        if values is not None and self.image is not None:
            values = pick(values, self.image)
        return Search(
            pick(found[0], self.steep),
            pick(found[1], self.beta),
            {key: pick(slopes[key], old) for key, old in self.slopes.items()},
            Splits(
                splits.signs,
                {
                    key: pick(splits.multipliers[key], old)
                    for key, old in self.splits.multipliers.items()
                },
            ),
            values,
            self.scale,
        )


def first_slopes(bounds: Backward, rows: Rows, slot: int) -> Search:
    """The best of the modes of lines, and chords to begin a descent with."""
    radius = bounds.radius[rows.image][:, None]
    steep, beta = bounds.lower(rows, slot, "chord")
    for mode in ("adaptive", "tangent"):
        other = bounds.lower(rows, slot, mode)
        better = other[0] * radius + other[1] < steep * radius + beta
        steep, beta = np.where(better, other[0], steep), np.where(better, other[1], beta)
    slopes = {}
    for node in switching(bounds, slot):
        line = rows_on(bounds, node, rows).patches(bounds.lines(node, "chord").low)
        slopes[node.output] = np.repeat(line, rows.values.shape[-1], axis=-1)
    return Search(steep, beta, slopes, Splits({}, {}))


def rows_on(bounds: Backward, node: Node, rows: Rows) -> Rows:
    """Rows of no meaning on the input of a node, for what ``patches`` gives there."""
    shape = bounds.plan.unrolled.shapes[node.inputs[0]]
    return Rows(np.zeros((*shape, 0, 0)), rows.image, None, shape)


def switching(bounds: Backward, slot: int) -> list[Node]:
    """Rectifiers before a slot of which some unit can switch."""
    return [
        node
        for node in bounds.plan.unrolled.nodes[:slot]
        if isinstance(node.op, Rectifier) and bounds.ranges[node.output].open.any()
    ]


def _gradients(
    bounds: Backward,
    met: dict[int, Rows],
    slopes: dict[int, Array],
    splits: Splits,
    slot: int,
    radius: Array,
) -> tuple[dict[int, Array], dict[int, Array]]:
    """Derivatives of r S + beta by the slopes and by the multipliers."""
    if 0 not in met:
        return {}, {}
    image = met[0]
    if bounds.plan.order == 2:
        worst = radius * image.values / np.maximum(image.norms(2), 1e-300)
    else:
        worst = radius * np.sign(image.values)
    moved: dict[int, Array] = {0: worst}
    by_slope: dict[int, Array] = {}
    by_multiplier: dict[int, Array] = {}
    for node in bounds.plan.unrolled.nodes[:slot]:
        # What no row reaches needs no movement.
        if node.output not in met or not set(node.inputs) <= set(moved):
            continue
        parts = [moved[i] for i in node.inputs]
        if isinstance(node.op, Affine):
            moved[node.output] = pushed(node.op, parts[0])
            continue
        if isinstance(node.op, Sum):
            pairs = zip(node.op.weights, parts, strict=True)
            moved[node.output] = sum((w * p for w, p in pairs), np.zeros_like(parts[0]))
            continue
        g, line, given = met[node.output], bounds.lines(node, "chord"), bounds.ranges[node.output]
        if node.output in slopes:
            line, z = bounds.sloped(node, g, line, slopes[node.output], splits), g.patches(given.z)
            wide = g.patches(given.open.astype(np.float64)) > 0
            sign = splits.signs.get(node.output)
            if sign is not None:
                by_multiplier[node.output] = sign * (z - parts[0])
                wide = wide & (sign == 0)
            slope = np.maximum(g.values, 0.0) * (parts[0] - z)
            by_slope[node.output] = np.where(wide, slope, 0.0)
        else:
            line = Lines(*(g.patches(a) for a in line))
        low, low_gap, high, high_gap = line
        moved[node.output] = np.where(
            g.values > 0, low * parts[0] + low_gap, high * parts[0] - high_gap
        )
    return by_slope, by_multiplier


def tightened(bounds: Backward, slot: int, down: Array, up: Array) -> tuple[Array, Array]:
    """How far units of a slot that can switch may go, with slopes of their own.

    Where there are so many that it would take long they are left as they are.
    """
    z, down, up = bounds.values[slot], down.copy(), up.copy()
    inner = z.shape[1:]
    for image in range(len(z)):
        open_units = np.flatnonzero(((z - down < 0) & (z + up > 0))[image])
        if len(open_units) * max(math.prod(s) for s in bounds.plan.unrolled.shapes) > _MOST_WORK:
            continue
        for start in range(0, len(open_units), _AT_ONCE):
            units = open_units[start : start + _AT_ONCE]
            one = unit_rows((z[0].size,), np.array([image]), np.zeros((1, 2), int), units)
            whole = Rows(one.values.reshape(*inner, 1, -1), one.image, None, inner)
            for sign, side in ((1.0, down), (-1.0, up)):
                rows = whole.with_values(sign * whole.values)
                found = optimised(bounds, rows, slot)
                flat = side[image].reshape(-1)
                flat[units] = np.minimum(flat[units], found.total(bounds.radius[image])[0])
    return down, up
