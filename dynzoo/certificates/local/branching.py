r"""Branch and bound: a ball is split at units that can switch, until every part is decided.

A part is the points of the ball at which some units have given signs. Its bound is that of
``slopes.optimised`` with the multipliers of these conditions; where it is not enough, the part is
split at the unit whose lines leave the largest gap. The point at which the bound of a part is
reached, and what gradient steps make of it, may show that the answer does not hold.

Reference: Wang et al., "Beta-CROWN: efficient bound propagation with per-neuron split constraints
for complete and incomplete neural network robustness verification" (NeurIPS 2021).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from time import monotonic

import numpy as np

from dynzoo.certificates.local.backward import Backward, Splits
from dynzoo.certificates.local.ops import Affine, Curve, Sum, Unrolled
from dynzoo.certificates.local.rows import Rows, pulled_back
from dynzoo.certificates.local.slopes import Search, first_slopes, optimised, switching

__all__ = ["decided", "descended"]

Array = np.ndarray

# Parts that are bounded together, and steps for each.
_AT_ONCE, _STEPS = 32, 20


def decided(
    bounds: Backward,
    directions: Array,
    needed: Array,
    breaks: Callable[[Array], bool] | None = None,
    image: int = 0,
    most: float = math.inf,
) -> bool | None:
    """Whether r S + beta < needed on every part of the ball of an image, for each direction.

    Args:
        bounds: of a batch of images, with their balls.
        directions: (q, K).
        needed: (q,).
        breaks: whether a movement (*input shape) shows that the answer does not hold.
        image: which of the batch.
        most: parts that are bounded.

    Returns:
        ``True``; ``False`` if a movement was found; ``None`` if the time was over before, the
        parts were too many, or nothing was left to split.
    """
    slot, count, bounded = len(bounds.plan.unrolled.shapes) - 1, 0, 0
    radius = float(bounds.radius[image])
    root = first_slopes(bounds, _part_rows(directions, image), slot)
    nodes = list(root.slopes)
    empty = {key: np.zeros((*root.slopes[key].shape[:-2], 1, 1)) for key in nodes}
    heap: list[tuple[float, int, int, dict[int, Array], Search | None]] = []
    for k in range(len(directions)):
        heapq.heappush(heap, (0.0, count, k, empty, None))
        count += 1
    while heap:
        if monotonic() > bounds.plan.stop or bounded + len(heap) > most:
            return None
        parts = [heapq.heappop(heap) for _ in range(min(_AT_ONCE, len(heap)))]
        which = np.array([part[2] for part in parts])
        rows = _part_rows(directions[which], image)
        bounded += len(parts)
        signs = {key: np.concatenate([p[3][key] for p in parts], axis=-2) for key in nodes}
        start = _together(bounds, rows, slot, [p[4] for p in parts], signs)
        limit = needed[which][:, None]
        best = optimised(bounds, rows, slot, _STEPS, start, limit)
        total = best.total(radius)
        left = np.flatnonzero((total >= limit)[:, 0]).tolist()
        if breaks is not None and best.image is not None:
            for p in left[:4]:
                if breaks(_worst(best.image[..., p, 0], radius, bounds.plan.order)):
                    return False
        for p in left:
            place = _widest(bounds, rows, slot, best, p)
            if place is None:
                return None
            key, unit = place
            for sign in (1.0, -1.0):
                own = {k: s[..., p : p + 1, :].copy() for k, s in signs.items()}
                own[key].reshape(-1)[unit] = sign
                # The part with the worst bound first.
                entry = (float(limit[p, 0] - total[p, 0]), count, int(which[p]), own)
                heapq.heappush(heap, (*entry, _only(best, p)))
                count += 1
    return True


def _part_rows(directions: Array, image: int) -> Rows:
    """A group for each part, all of the one image."""
    values = np.ascontiguousarray(directions.T)[..., None]
    return Rows(values, np.full(len(directions), image), None, (directions.shape[1],))


def _only(best: Search, p: int) -> Search:
    def cut(table: dict[int, Array]) -> dict[int, Array]:
        return {key: value[..., p : p + 1, :].copy() for key, value in table.items()}

    splits = Splits({}, cut(best.splits.multipliers))
    return Search(best.steep[p : p + 1], best.beta[p : p + 1], cut(best.slopes), splits)


def _together(
    bounds: Backward, rows: Rows, slot: int, parents: list[Search | None], signs: dict[int, Array]
) -> Search:
    """Where the descent of parts begins: with what was best for the part that they were cut from.

    The bound of that part holds for its halves.
    """
    if parents[0] is None or any(parent is None for parent in parents):
        found = first_slopes(bounds, rows, slot)
        known = [_only(found, p) if parent is None else parent for p, parent in enumerate(parents)]
    else:
        known = [parent for parent in parents if parent is not None]

    def joined(tables: list[dict[int, Array]], key: int) -> Array:
        none = np.zeros((*signs[key].shape[:-2], 1, 1))
        return np.concatenate([table.get(key, none) for table in tables], axis=-2)

    slopes = {key: joined([k.slopes for k in known], key) for key in signs}
    multipliers = {key: joined([k.splits.multipliers for k in known], key) for key in signs}
    steep = np.concatenate([k.steep for k in known])
    beta = np.concatenate([k.beta for k in known])
    scale = 0.1 * float(np.abs(rows.values).max())
    return Search(steep, beta, slopes, Splits(signs, multipliers), None, scale)


def _widest(
    bounds: Backward, rows: Rows, slot: int, best: Search, p: int
) -> tuple[int, int] | None:
    """Slot and number of the unit, not split yet, whose lines leave the largest gap."""
    row = Rows(rows.values[..., p : p + 1, :], rows.image[p : p + 1], None, rows.shape)
    met: dict[int, Rows] = {}
    own = {key: value[..., p : p + 1, :] for key, value in best.slopes.items()}
    splits = Splits(
        {key: value[..., p : p + 1, :] for key, value in best.splits.signs.items()},
        {key: value[..., p : p + 1, :] for key, value in best.splits.multipliers.items()},
    )
    bounds.lower(row, slot, slopes=own, met=met, splits=splits)
    largest, found = -1.0, None
    for node in switching(bounds, slot):
        if node.output not in met:
            continue
        g = met[node.output]
        line = bounds.sloped(node, g, bounds.lines(node, "chord"), own[node.output], splits)
        gap = np.where(g.values > 0, g.values * line.low_gap, -g.values * line.high_gap)
        free = g.patches(bounds.ranges[node.output].open.astype(np.float64)) > 0
        free = free & (splits.signs[node.output] == 0)
        # A unit without a gap may still have one when others are split.
        score = np.where(free, gap + 1e-12, -1.0)
        unit = int(score.argmax())
        if score.reshape(-1)[unit] > largest:
            largest, found = float(score.reshape(-1)[unit]), (node.output, unit)
    return found


def _worst(row: Array, radius: float, order: float) -> Array:
    """The movement of a ball that is worst for a row on the image."""
    if order == 2:
        return -radius * row / max(float(np.linalg.norm(row)), 1e-300)
    return -radius * np.sign(row)


# --- counterexamples -----------------------------------------------------------------------


def descended(
    unrolled: Unrolled, x: Array, direction: Array, radius: float, order: float, steps: int = 20
) -> Array:
    """A movement in the ball at which gradient steps made a direction of the logits small.

    Args:
        unrolled: the model.
        x: an image of the model's input shape.
        direction: (K,).
        radius: of the ball.
        order: 2 or infinity.
        steps: of the descent.
    """
    moved, best, least = np.zeros_like(x), np.zeros_like(x), math.inf
    for step in range(steps + 1):
        values = unrolled.values((x + moved)[None])
        margin = float(values[-1][0] @ direction)
        if margin < least:
            least, best = margin, moved
        g = _gradient(unrolled, values, direction)
        length = 2.0 * radius / (1 + 0.3 * step)
        if order == 2:
            moved = moved - length * g / max(float(np.linalg.norm(g)), 1e-300)
            moved = moved * min(1.0, radius / max(float(np.linalg.norm(moved)), 1e-300))
        else:
            moved = np.clip(moved - length * np.sign(g), -radius, radius)
    return best


def _gradient(unrolled: Unrolled, values: list[Array], direction: Array) -> Array:
    slot = len(unrolled.shapes) - 1
    waiting = {slot: direction[:, None, None]}
    for node in reversed(unrolled.nodes):
        g = waiting.pop(node.output, None)
        if g is None:
            continue
        z = values[node.inputs[0]]
        if isinstance(node.op, Affine):
            rows = Rows(g, np.zeros(1, int), None, unrolled.shapes[node.output])
            parts = [pulled_back(node.op, rows, unrolled.shapes[node.inputs[0]]).values]
        elif isinstance(node.op, Sum):
            parts = [weight * g for weight in node.op.weights]
        elif isinstance(node.op, Curve):
            slope = (node.op.forward(z + 1e-6) - node.op.forward(z - 1e-6)) / 2e-6
            parts = [g * np.moveaxis(slope, 0, -1)[..., None]]
        else:
            parts = [g * np.moveaxis(np.where(z > 0, 1.0, node.op.slope), 0, -1)[..., None]]
        for source, part in zip(node.inputs, parts, strict=True):
            waiting[source] = waiting[source] + part if source in waiting else part
    if 0 not in waiting:
        return np.zeros(unrolled.shapes[0])
    return waiting[0][..., 0, 0]
