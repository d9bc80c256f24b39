r"""Linear bounds of a model on balls by passes back from each unit, in L2 and L-infinity.

Layer after layer, the inputs of the activations are bounded: for each unit a row is pulled back to
the image through the adjoints of the linear layers, and each activation on the way is replaced by
a line below or above it, whichever the sign of the row asks for. With the movement
$\Delta = f(x + \delta) - f(x)$,

$$\langle g, \Delta\rangle \ge -(S\|\delta\| + \beta), \qquad S = \|g_0\|_*,$$

$g_0$ the row at the image and $\beta$ the sum of the gaps of the lines at x, weighted by the row.
Movements have no biases: every term of $\beta$ is positive and nothing cancels.

Rounding. All is float64. What an adjoint rounds is at most
$\gamma\,\||A|\|\,\|g\| \le \gamma\sqrt{m}\,\|A\|\,\|g\|$ in norm, with $\gamma$ its number of
terms in units of roundoff; times what can move there it is added to $\beta$. The values at x
are taken to be off by $10^{-11}$ of the largest number on the way to them.

Reference: Zhang et al., "Efficient neural network robustness certification with general activation
functions" (CROWN, NeurIPS 2018); Wong and Kolter, "Provable defenses against adversarial examples
via the convex outer adversarial polytope" (ICML 2018), for one slope on both sides.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from dynzoo.certificates.local.lines import Lines, Range, lines
from dynzoo.certificates.local.ops import Affine, Curve, Node, Rectifier, Sum, Unrolled
from dynzoo.certificates.local.rows import Rows, added, pulled_back, unit_rows

__all__ = ["Backward", "Plan", "Splits"]

Array = np.ndarray
Tighten = Callable[["Backward", int, Array, Array], tuple[Array, Array]]

_VALUES, _SUMS, _UNIT = 1e-11, 1.0 + 1e-9, 1.2e-16
# Numbers in the largest array of a block of rows: what stays near the processor.
_BLOCK = 1_500_000
# Numbers in the arrays of a single row, beyond which layers are bounded by norms.
_MOST = 200_000_000


@dataclass
class Plan:
    """What passes of one model share.

    Attributes:
        unrolled: the model.
        order: of the norm of the ball, 2 or infinity.
        exact_units: layers of more units are bounded by norms; ``None`` for no limit.
        stop: when, on the clock of ``time.monotonic``, layers are no longer bounded unit by unit.
    """

    unrolled: Unrolled
    order: float = 2.0
    exact_units: int | None = None
    stop: float = math.inf
    peaks: dict[int, int] = field(default_factory=dict)
    linear: dict[int, tuple[Array, Array]] = field(default_factory=dict)
    told: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        shapes = self.unrolled.shapes
        self.roundoff: dict[int, float] = {}
        # Slots that no activation lies before.
        self.affine = {0}
        for node in self.unrolled.nodes:
            if isinstance(node.op, Affine | Sum) and set(node.inputs) <= self.affine:
                self.affine.add(node.output)
            if isinstance(node.op, Affine):
                sizes = [math.prod(shapes[i]) for i in (node.inputs[0], node.output)]
                terms = (max(sizes) + 8) * math.sqrt(min(sizes))
                self.roundoff[node.output] = _UNIT * terms * node.op.norm


class Splits(NamedTuple):
    """Conditions on inputs of rectifiers, by output slot, in arrays (shape..., P, Q).

    Attributes:
        signs: 1 and -1 where only inputs of that sign count, 0 elsewhere.
        multipliers: of the conditions, not below 0.
    """

    signs: dict[int, Array]
    multipliers: dict[int, Array]


class Backward:
    """Linear bounds of a model on a ball around each of a batch of images.

    Args:
        plan: the model and what passes share.
        values: ``unrolled.values(x)``.
        radius: (n,), positive.
        mode: lines of the passes, one of ``MODES``.
        refine: bound units with adaptive slopes as well, which takes three times as long.
        known: ranges that need not be found again, by output slot of the activation.
        tighten: makes better of how far the units of a slot may go down and up.

    Attributes:
        ranges: by output slot of each activation, the range of its input.
    """

    def __init__(
        self,
        plan: Plan,
        values: list[Array],
        radius: Array,
        mode: str = "chord",
        refine: bool = False,
        known: dict[int, Range] | None = None,
        tighten: Tighten | None = None,
    ):
        self.plan, self.values, self.radius = plan, values, radius
        self.mode, self.refine, self.tighten = mode, refine, tighten
        self.ranges: dict[int, Range] = {}
        self._lines: dict[tuple[str, int], Lines] = {}
        self.lengths = [self._first_length()]
        self._spreads = [np.broadcast_to(_expand(radius, values[0]), values[0].shape)]
        largest = _largest(values[0])
        for node in plan.unrolled.nodes:
            largest = np.maximum(largest, _largest(values[node.output]))
            self._visit(node, _VALUES * largest, (known or {}).get(node.output))

    # --- the passes ------------------------------------------------------------------------

    def lower(
        self,
        rows: Rows,
        slot: int,
        mode: str | None = None,
        both: bool = False,
        slopes: dict[int, Array] | None = None,
        met: dict[int, Rows] | None = None,
        splits: Splits | None = None,
    ) -> tuple[Array, ...]:
        r"""S, and beta of each row (P, Q); of its negative as well if ``both``.

        Args:
            rows: on the slot.
            slot: where they start.
            mode: which lines; that of the object by default.
            both: only with the mode "chord", whose lines have one slope.
            slopes: by output slot of a rectifier, slopes (window..., P, Q) of the lines below it.
            met: a dictionary that takes the rows as they were on each slot.
            splits: of which inputs only one sign counts, and multipliers of these conditions. Beta
                may be negative then.
        """
        mode = mode or self.mode
        start = rows.values.shape[-2:]
        beta, other = np.zeros(start), np.zeros(start)
        waiting = {slot: rows}
        for node in reversed(self.plan.unrolled.nodes[:slot]):
            g = waiting.pop(node.output, None)
            if g is None:
                continue
            if met is not None:
                met[node.output] = g
            if isinstance(node.op, Affine):
                rounded = self.plan.roundoff[node.output] * g.norms(2)
                rounded = rounded * self.lengths[node.inputs[0]][g.image][:, None]
                beta, other = beta + rounded, other + rounded
                parts = [pulled_back(node.op, g, self.plan.unrolled.shapes[node.inputs[0]])]
            elif isinstance(node.op, Sum):
                parts = [g.with_values(weight * g.values) for weight in node.op.weights]
            else:
                own = None if slopes is None else slopes.get(node.output)
                part, low, high = self._through(node, g, mode, both, own, splits)
                beta, other, parts = beta + low, other + high, [part]
            for source, part in zip(node.inputs, parts, strict=True):
                waiting[source] = added(waiting[source], part) if source in waiting else part
        steep = np.zeros(start)
        if met is not None and 0 in waiting:
            met[0] = waiting[0]
        if 0 in waiting:
            steep = waiting[0].norms(2 if self.plan.order == 2 else 1)
        beta, other = (b + (_SUMS - 1.0) * np.abs(b) for b in (beta, other))
        result = (steep * _SUMS, beta, other)
        return result if both else result[:2]

    def _through(
        self,
        node: Node,
        g: Rows,
        mode: str,
        both: bool,
        slopes: Array | None,
        splits: Splits | None,
    ) -> tuple[Rows, Array, Array]:
        """Rows before an activation, and the gaps of the rows and of their negatives."""
        line = self.lines(node, mode)
        if slopes is not None:
            return self._with_slopes(node, g, line, slopes, splits)
        low_gap, high_gap = g.patches(line.low_gap), g.patches(line.high_gap)
        if mode == "chord" and line.low is line.high:
            # One slope on both sides: |g| and g are all that the gaps need.
            size = g.with_values(np.abs(g.values)).total(0.5 * (low_gap + high_gap))
            lean = g.total(0.5 * (low_gap - high_gap))
            part = g.with_values(g.values * g.patches(line.low))
            tiny = 1e-13 * size
            return part, np.maximum(size + lean, 0) + tiny, np.maximum(size - lean, 0) + tiny
        assert not both
        positive, negative = np.maximum(g.values, 0.0), np.minimum(g.values, 0.0)
        gap = g.with_values(positive).total(low_gap) - g.with_values(negative).total(high_gap)
        values = positive * g.patches(line.low) + negative * g.patches(line.high)
        return g.with_values(values), gap, gap

    def _with_slopes(
        self, node: Node, g: Rows, line: Lines, slopes: Array, splits: Splits | None
    ) -> tuple[Rows, Array, Array]:
        """As ``_through``, with a slope for each row below units that can switch."""
        found = self.sloped(node, g, line, slopes, splits)
        positive, negative = np.maximum(g.values, 0.0), np.minimum(g.values, 0.0)
        gaps = positive * found.low_gap - negative * found.high_gap
        flat = (-1, *g.values.shape[-2:])
        beta = gaps.reshape(flat).sum(axis=0) + 1e-10 * np.abs(gaps).reshape(flat).sum(axis=0)
        values = positive * found.low + negative * found.high
        if splits is not None and node.output in splits.signs:
            # The Lagrangian of sign * (z + t) >= 0.
            weighted = splits.multipliers[node.output] * splits.signs[node.output]
            given = self.ranges[node.output]
            z, error = g.patches(given.z), g.patches(_filled(given.error, given.z))
            cost = weighted * z + np.abs(weighted) * (error + 1e-10 * np.abs(z))
            values, beta = values - weighted, beta + cost.reshape(flat).sum(axis=0)
        return g.with_values(values), beta, beta

    def sloped(
        self, node: Node, g: Rows, line: Lines, slopes: Array, splits: Splits | None
    ) -> Lines:
        """Lines in the windows of rows (window..., P, Q), with those slopes below."""
        assert isinstance(node.op, Rectifier)
        given, kappa = self.ranges[node.output], node.op.slope
        z, error = g.patches(given.z), g.patches(_filled(given.error, given.z))
        wide = g.patches(given.open.astype(np.float64)) > 0
        value = np.where(z > 0, z, kappa * z)
        low = np.where(wide, np.clip(slopes, kappa, 1.0), g.patches(line.low))
        low_gap = np.where(wide, np.maximum(value - low * z, 0.0) + 2.0 * error, 0.0)
        high, high_gap = g.patches(line.high), g.patches(line.high_gap)
        if splits is not None and node.output in splits.signs:
            # On one side the function is a line, which need not go through its value at x.
            sign = splits.signs[node.output]
            side = np.where(sign > 0, 1.0, kappa)
            off = value - side * z
            low, high = np.where(sign != 0, side, low), np.where(sign != 0, side, high)
            low_gap = np.where(sign != 0, off + 2.0 * error, low_gap)
            high_gap = np.where(sign != 0, 2.0 * error - off, high_gap)
        return Lines(low, low_gap, high, high_gap)

    def lines(self, node: Node, mode: str) -> Lines:
        """The lines of an activation."""
        key = (mode, node.output)
        if key not in self._lines:
            assert isinstance(node.op, Rectifier | Curve)
            self._lines[key] = lines(node.op, self.ranges[node.output], mode)
        return self._lines[key]

    # --- layer after layer -----------------------------------------------------------------

    def _first_length(self) -> Array:
        if self.plan.order == 2:
            return self.radius * 1.0
        return self.radius * (math.sqrt(self.values[0][0].size) * (1 + 1e-12))

    def _visit(self, node: Node, error: Array, known: Range | None) -> None:
        """How far the output of a node may move."""
        source, op = node.inputs[0], node.op
        length, spread = self.lengths[source], self._spreads[source]
        shape = self.values[node.output].shape
        if isinstance(op, Affine):
            length, spread = length * op.norm, np.broadcast_to(op.spread(length, spread), shape)
        elif isinstance(op, Sum):
            pairs = [(abs(w), i) for w, i in zip(op.weights, node.inputs, strict=True)]
            length = np.sum([w * self.lengths[i] for w, i in pairs], axis=0)
            spread = np.sum([w * self._spreads[i] for w, i in pairs], axis=0)
        else:
            given = known or self._range(node, source, spread, _expand(error, self.values[source]))
            self.ranges[node.output] = given
            steep = 1.0 if isinstance(op, Rectifier) else max(abs(op.low), abs(op.high))
            spread = steep * np.maximum(given.down, given.up)
            length = length * steep
        if node.cap is not None:
            length = np.minimum(length, self.lengths[node.cap[0]] * node.cap[1])
        length = np.minimum(length, _norms(spread)) * (1 + 1e-12)
        self.lengths.append(length)
        self._spreads.append(np.minimum(spread, _expand(length, spread)))

    def _range(self, node: Node, source: int, spread: Array, error: Array) -> Range:
        z = self.values[source]
        down = up = spread
        if self._exact(node, z[0].size):
            down, up = self._unit_bounds(source, z.shape, spread)
        error = np.broadcast_to(error, (len(z), *(1,) * (z.ndim - 1)))
        return Range(z, down * _SUMS + error, up * _SUMS + error, error)

    def _exact(self, node: Node, units: int) -> bool:
        """Whether a layer is bounded unit by unit, of which the user hears where it is not."""
        plan = self.plan
        if plan.exact_units is not None and units > plan.exact_units:
            reason = f"it has more than exact_units={plan.exact_units} units"
        elif max(math.prod(shape) for shape in plan.unrolled.shapes) * 16 > _MOST:
            reason = "a pass back would not fit into memory"
        elif monotonic() > plan.stop:
            return False  # of which the result speaks: time was limited
        else:
            return True
        if node.output not in plan.told:
            plan.told.add(node.output)
            warnings.warn(
                f"An activation of {units} units is bounded by norms, unit by unit it is not: "
                f"{reason}. Radii are smaller than they could be.",
                stacklevel=2,
            )
        return False

    def _unit_bounds(self, slot: int, shape: tuple[int, ...], spread: Array) -> tuple[Any, ...]:
        """How far down and up each unit of a slot may go."""
        n, inner = shape[0], shape[1:]
        if slot in self.plan.affine:
            steep, beta = self._without_activations(slot, inner)
            moved = _expand(self.radius, spread) * (steep + beta)
            return np.minimum(moved, spread), np.minimum(moved, spread)
        down, up = np.array(spread), np.array(spread)
        for rows, place in self._blocks(slot, n, inner):
            reach = self.radius[rows.image][:, None]
            steep, low, high = self._two_sided(rows, slot, reach)
            down[place] = np.minimum(down[place], steep[0] * reach + low)
            up[place] = np.minimum(up[place], steep[1] * reach + high)
        return (down, up) if self.tighten is None else self.tighten(self, slot, down, up)

    def _two_sided(self, rows: Rows, slot: int, reach: Array) -> tuple[Any, ...]:
        """S downwards and upwards, and beta for both, from the best of the modes."""
        steep, low, high = self.lower(rows, slot, "chord", both=True)
        found = [(steep, low), (steep, high)]
        if self.refine:
            for side, sign in enumerate((1.0, -1.0)):
                turned = rows.with_values(sign * rows.values)
                other = self.lower(turned, slot, "adaptive")
                old = found[side]
                better = other[0] * reach + other[1] < old[0] * reach + old[1]
                worse = found[side]
                pair = [np.where(better, a, b) for a, b in zip(other, worse, strict=True)]
                found[side] = pair[0], pair[1]
        (first, low), (second, high) = found
        return (first, second), low, high

    def _without_activations(self, slot: int, inner: tuple[int, ...]) -> tuple[Array, Array]:
        """S and beta of every unit for radius one; the same for all images."""
        plan = self.plan
        if slot not in plan.linear:
            one = object.__new__(Backward)
            one.plan, one.mode, one.values = plan, "chord", [v[:1] for v in self.values]
            one.radius = np.ones(1)
            one.lengths = [one._first_length()]
            for node in plan.unrolled.nodes[:slot]:
                # Behind an activation the numbers mean nothing, and are not looked at.
                gains = [getattr(node.op, "norm", 1.0)]
                if isinstance(node.op, Sum):
                    gains = [abs(w) for w in node.op.weights]
                pairs = zip(gains, node.inputs, strict=True)
                one.lengths.append(np.sum([g * one.lengths[i] for g, i in pairs], axis=0))
            steep, beta = np.zeros((2, 1, *inner))
            for rows, place in one._blocks(slot, 1, inner):
                steep[place], beta[place] = one.lower(rows, slot, "chord")
            plan.linear[slot] = steep, beta
        return plan.linear[slot]

    def _blocks(self, slot: int, n: int, inner: tuple[int, ...]) -> Iterator[tuple[Rows, Any]]:
        """Rows of all units of a slot, so many at once, and where in (n, *inner) they are."""
        spatial = len(inner) == 3
        units = inner[-1] if spatial else math.prod(inner)
        pixels = math.prod(inner[:2]) if spatial else 1
        each = self._numbers_a_row(slot, inner)
        many = max(1, min(units, _BLOCK // each))
        groups = max(1, _BLOCK // (each * many))
        for start in range(0, n * pixels, groups):
            which = np.arange(start, min(n * pixels, start + groups))
            image, pixel = which // pixels, which % pixels
            across = inner[1] if spatial else 1
            positions = np.stack([pixel // across, pixel % across], axis=1)
            for first in range(0, units, many):
                channels = np.arange(first, min(units, first + many))
                rows = unit_rows(inner, image, positions, channels)
                if spatial:
                    place = (image[:, None], *(p[:, None] for p in positions.T), channels)
                else:
                    place = (image[:, None], *np.unravel_index(channels, inner))
                yield rows, place

    def _numbers_a_row(self, slot: int, inner: tuple[int, ...]) -> int:
        """How many numbers the widest array of a pass back from one unit has."""
        plan = self.plan
        if slot not in plan.peaks:
            middle = np.array([[n // 2 for n in (*inner, 1)[:2]]])
            waiting = {slot: unit_rows(inner, np.zeros(1, int), middle, np.zeros(1, int))}
            peak = 1
            for node in reversed(plan.unrolled.nodes[:slot]):
                g = waiting.pop(node.output, None)
                if g is None:
                    continue
                for source in node.inputs:
                    part = g.with_values(g.values)
                    if isinstance(node.op, Affine):
                        part = pulled_back(node.op, g, plan.unrolled.shapes[source])
                        if node.op.window is not None:
                            taps = node.op.window.kernel
                            inside = math.prod(g.values.shape[:2])
                            peak = max(peak, inside * taps[..., 0].size * node.op.window.groups)
                    old = waiting.get(source)
                    waiting[source] = part if old is None else added(old, part)
                    peak = max(peak, part.values.size)
            plan.peaks[slot] = peak
        return plan.peaks[slot]


def _filled(error: Array, z: Array) -> Array:
    return np.broadcast_to(error, z.shape)


def _largest(value: Array) -> Array:
    return np.abs(value.reshape(len(value), -1)).max(axis=1, initial=0.0)


def _norms(a: Array) -> Array:
    return np.linalg.norm(a.reshape(len(a), -1), axis=1)


def _expand(a: Array, like: Array) -> Array:
    return a.reshape(*a.shape, *(1,) * (like.ndim - a.ndim))
