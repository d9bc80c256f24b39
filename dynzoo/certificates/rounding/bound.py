r"""How far a model's floating-point logits are from its real ones, for every image and ball.

A certificate is a statement on real numbers; a model runs in float32. Here each layer's rounding
is bounded (``rounding_rules``), and the bounds are carried to the logits by the layers' Lipschitz
constants. What a layer's input may be is bounded too: within s of an anchor image $x_0$ no tensor
is larger than $\|f_l(x_0)\| + L_l s$. So the error of the logits is at most $a + b s$, and for an
image at distance s from the anchor it is at most $a + b(s + r)$ in the ball of radius r.

Two such bounds are made.

* **worst-case**: for every rounding. It is a proof about floating-point numbers, and grows with the
  number of terms of each sum.
* **probable**: independent roundings, up to a chance of one in ten million, which then all point
  the way that hurts. It grows with the root of the number of terms. In measurements the true error
  is a hundredth of it.

Both assume: IEEE arithmetic rounded to nearest, results below the smallest normal number flushed
to zero or not; sums in any order, blocked and fused in any way, but in the same one for all outputs
of a product at one place; convolutions as sums of products (no Fourier, Winograd or Strassen
transforms); factors in full precision, or rounded as measured (TF32); library functions within 16
units of the larger of argument and value.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from dynzoo.backend import to_numpy
from dynzoo.certificates.errors import ReferenceMismatchError, UncertifiableLayerError
from dynzoo.certificates.graph import Program, Step
from dynzoo.certificates.lipschitz import Head, LayerBound
from dynzoo.certificates.operations import TensorCall, class_name
from dynzoo.certificates.rounding.floating_point import Arithmetic, Budget, few_roundings
from dynzoo.certificates.rounding.operations import operation_rounding
from dynzoo.certificates.rounding.program import run_program, run_step
from dynzoo.certificates.rules.joins import JOINS
from dynzoo.certificates.rules.linear import Shape
from dynzoo.certificates.twin import call_step

__all__ = [
    "ANCHORS",
    "KINDS",
    "RoundingBound",
    "anchor_images",
    "rounding_bound",
    "rounding_kinds",
]

# Constant images; what is near one of them has a small s. The last is for pixels up to 255.
ANCHORS = (0.0, 0.5, 127.5)
# The kinds of bounds, and how the errors at the two ends of a path add.
KINDS = {"worst-case": 2.0, "probable": math.sqrt(2.0)}
# A measured error is multiplied by this.
_SAFETY = 10.0
# Rounding leaves a layer's float32 output within about 1e-5 of its size.
_SUSPICIOUS = 1e-3
# How often a result may underflow within one layer that is not a product.
_FEW = 1e3


@dataclass(frozen=True)
class RoundingBound:
    """Bounds of the rounding of a model's logits; made by ``rounding_bound``.

    Every array has the shape (2, anchors): constants and slopes in s.

    Attributes:
        anchors: the values of the constant anchor images.
        body: for each kind the error of the input of a linear head, of the logits without one.
        head: for each kind the error that a linear head adds.
        peak: bound of all numbers on the way.
        measured: names of the layers whose rounding was measured, for want of a rule.
        arithmetic: the ``Arithmetic`` that is assumed.
    """

    anchors: np.ndarray
    body: dict[str, np.ndarray]
    head: dict[str, np.ndarray]
    peak: np.ndarray
    measured: tuple[str, ...]
    arithmetic: Arithmetic

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, for JSON; ``from_dict`` reads it again."""
        return {
            "anchors": self.anchors.tolist(),
            "body": {kind: value.tolist() for kind, value in self.body.items()},
            "head": {kind: value.tolist() for kind, value in self.head.items()},
            "peak": self.peak.tolist(),
            "measured_layers": list(self.measured),
            "arithmetic": self.arithmetic._asdict(),
        }

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any]) -> RoundingBound:
        """What ``to_dict`` wrote."""
        return cls(
            np.asarray(numbers["anchors"], np.float64),
            {kind: np.asarray(numbers["body"][kind], np.float64) for kind in KINDS},
            {kind: np.asarray(numbers["head"][kind], np.float64) for kind in KINDS},
            np.asarray(numbers["peak"], np.float64),
            tuple(numbers["measured_layers"]),
            Arithmetic(**numbers["arithmetic"]),
        )

    def farthest(self, low: float, high: float, entries: int) -> np.ndarray:
        """Largest distance (anchors,) of an image with that many entries in [low, high]."""
        far = np.maximum(np.abs(high - self.anchors), np.abs(low - self.anchors))
        return far * math.sqrt(entries) * (1 + 1e-12)

    def distances(self, images: np.ndarray) -> np.ndarray:
        """L2 distance (n, anchors) of each image from each anchor, in float64."""
        flat = images.reshape(len(images), -1)
        with np.errstate(over="ignore", invalid="ignore"):
            columns = [
                np.sqrt(np.einsum("ij,ij->i", moved, moved))
                for moved in (flat.astype(np.float64) - a for a in self.anchors)
            ]
        return np.stack(columns, axis=1) * (1 + 1e-12)

    def of_logits(self, images: np.ndarray, kinds: tuple[str, ...], head_norm: float) -> np.ndarray:
        """Bound (n,) of the L2 norm of the error of each image's logits.

        Args:
            images: float images (n, ...), as the model sees them.
            kinds: keys of ``KINDS``; the smallest bound counts.
            head_norm: Lipschitz constant of the linear head, 1 without one.
        """
        s = self.distances(images)
        bounds = []
        for kind in kinds:
            constant, slope = head_norm * self.body[kind] + self.head[kind]
            bounds.append((constant + slope * s).min(axis=1))
        return np.min(bounds, axis=0)


def rounding_kinds(rounding: str) -> tuple[str, ...]:
    """The kinds of bounds that may be used under an assumption on roundings.

    Raises:
        ValueError: unless it is "probable" or "worst-case".
    """
    if rounding not in KINDS:
        raise ValueError(
            f"`rounding` must be 'probable' or 'worst-case'. Received: rounding={rounding!r}"
        )
    return ("worst-case",) if rounding == "worst-case" else tuple(KINDS)


def anchor_images(input_shape: tuple[int, ...]) -> np.ndarray:
    """The anchors as float64 images."""
    return np.stack([np.full(input_shape, a) for a in ANCHORS])


def rounding_bound(
    program: Program,
    shapes: dict[int, Shape],
    bounds: dict[int, float],
    table: list[LayerBound],
    head: Head,
    arithmetic: Arithmetic,
    kinds: Collection[str] = (),
) -> RoundingBound:
    """Carries the rounding of every layer to the logits.

    Args:
        program: steps of the model.
        shapes: shape of each slot, batch axis first (None).
        bounds: Lipschitz bound of each slot with respect to the model's input.
        table: the gain of each step.
        head: the end of the model.
        arithmetic: the numbers in which it computes.
        kinds: floating-point types of its layers; the coarsest is that of ``arithmetic``.
    """
    images = anchor_images(program.input_shape)
    values = run_program(program, images)
    sizes = {slot: _size(value, bounds.get(slot, math.inf)) for slot, value in values.items()}
    zero = np.zeros_like(sizes[0])
    errors = {0: Budget(sizes[0], arithmetic, peak=zero)}
    # Roundings of layers that make too few of them, which may all point the same way.
    aligned = {0: zero}
    peak, measured = zero, []
    added = {kind: zero for kind in KINDS}
    head_slot = None
    # In a model of two types a number is rounded on its way from one layer to the next.
    cast = arithmetic.unit if len(kinds) > 1 else 0.0
    for step, row in zip(program.steps, table, strict=True):
        inputs = [errors[slot] for slot in step.inputs]
        fresh = [_read(errors[slot], shapes[slot], cast) for slot in step.inputs]
        own = _own_rounding(step, row.gain, [shapes[s] for s in step.inputs], fresh, values)
        # So may its settings: scales and slopes that are next to nothing.
        own = own.disturbed(_FEW * arithmetic.tiny * np.sum([b.computed for b in fresh], axis=0))
        if own.measured:
            measured.append(step.name)
        in_head = head.linear and (step.inputs[0] == head.body_slot or step.inputs[0] == head_slot)
        # What a layer reads counts although it may be multiplied by zero.
        peak = np.maximum.reduce([peak, own.peak, *(b.computed for b in inputs)])
        if in_head:
            # What the head adds is kept apart: the body's error moves logits by pair distances.
            head_slot = step.output
            added = {
                "worst-case": added["worst-case"] + own.worst,
                "probable": added["probable"] + np.minimum(own.worst, own.probable),
            }
            continue_with = errors[head.body_slot]
            errors[step.output] = Budget(
                sizes[step.output], arithmetic, continue_with.worst, continue_with.probable
            )
            aligned[step.output] = aligned[head.body_slot]
            continue
        worst = _propagated(step, row, [b.worst for b in inputs], shapes) + own.worst
        probable = _propagated(step, row, [b.probable for b in inputs], shapes)
        aligned[step.output] = _propagated(step, row, [aligned[i] for i in step.inputs], shapes)
        if few_roundings(own):
            aligned[step.output] = aligned[step.output] + np.minimum(own.worst, own.probable)
        else:
            probable = np.hypot(probable, own.probable)
        errors[step.output] = Budget(sizes[step.output], arithmetic, worst, probable)
    body = errors[head.body_slot]
    return RoundingBound(
        np.array(ANCHORS),
        {"worst-case": body.worst, "probable": body.probable + aligned[head.body_slot]},
        added,
        peak,
        tuple(measured),
        arithmetic,
    )


def _read(b: Budget, shape: Shape, cast: float) -> Budget:
    """A layer's input, as it reads it: too small for a normal number is taken for zero."""
    entries = math.prod(int(n or 1) for n in shape[1:])
    lost = cast * b.computed
    lost[0] += _FEW * b.arithmetic.tiny * math.sqrt(entries)
    return Budget(b.computed, b.arithmetic, lost, lost.copy())


def _size(value: np.ndarray, bound: float) -> np.ndarray:
    norms = np.linalg.norm(value.reshape(len(value), -1), axis=1) * (1 + 1e-9)
    return np.stack([norms, np.full_like(norms, bound)])


def _propagated(
    step: Step, row: LayerBound, errors: list[np.ndarray], shapes: dict[int, Shape]
) -> np.ndarray:
    """Errors of the inputs after an exact layer."""
    if row.gain is not None:
        return row.gain * errors[0]
    join = JOINS[type(step.layer)]
    inner = [shapes[slot] for slot in step.inputs]
    flat = [
        join.bound(step.layer, [float(e) for e in column], inner)
        for column in zip(*(e.ravel() for e in errors), strict=True)
    ]
    return np.array(flat).reshape(errors[0].shape)


def _own_rounding(
    step: Step,
    gain: float | None,
    shapes: list[Shape],
    inputs: list[Budget],
    values: dict[int, np.ndarray],
) -> Budget:
    from dynzoo.certificates.rounding.flows import ROUNDING

    inner = [tuple(int(n or 1) for n in shape[1:]) for shape in shapes]
    try:
        if isinstance(step.layer, TensorCall):
            return operation_rounding(step.layer, inner, inputs)
        if type(step.layer) in JOINS:
            return _joined(step.layer, inner, inputs)
        if gain is not None:
            return ROUNDING[type(step.layer)](step.layer, inner[0], inputs[0], gain)
    except KeyError:
        pass  # a class, an operator or an activation that is not in the tables
    return _measured(step, inputs, [values[slot] for slot in step.inputs])


def _joined(layer: Any, shapes: list[tuple[int, ...]], inputs: list[Budget]) -> Budget:
    """A sum rounds once for each further branch; choosing and stacking round nothing."""
    times = [1.0] * len(inputs)
    if not isinstance(layer, keras.layers.Concatenate):
        full = math.prod(np.broadcast_shapes(*shapes))
        times = [math.sqrt(max(1.0, full / math.prod(s))) for s in shapes]
    size = sum(b.computed * t for b, t in zip(inputs, times, strict=True))
    lost = sum(b.worst * t for b, t in zip(inputs, times, strict=True))
    y = Budget(np.asarray(size), inputs[0].arithmetic, np.asarray(lost), np.asarray(lost).copy())
    if type(layer).__name__ in ("Add", "Subtract", "Average"):
        return y.rounded(float(len(inputs)))
    return y


def _measured(step: Step, inputs: list[Budget], values: list[np.ndarray]) -> Budget:
    """Ten times the largest error, relative to its numbers, that the layer itself shows."""
    rng, b = np.random.default_rng(0), inputs[0]
    dtype = "float32" if b.arithmetic.unit > 1e-10 else "float64"
    probes = []
    for value in values:
        base = np.concatenate([value, value + rng.standard_normal(value.shape)])
        parts = [1e-2 * base, base, 100.0 * base[-1:]]
        probes.append(np.concatenate(parts).astype(dtype))
    try:
        exact = run_step(step, [x.astype(np.float64) for x in probes])
        tensors = [ops.convert_to_tensor(x) for x in probes]
        computed = to_numpy(call_step(step, tensors)).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise UncertifiableLayerError(
            step.name, class_name(step.layer), f"its rounding could not be measured: {error}"
        ) from error
    gaps, outputs = _norms(computed - exact), _norms(exact)
    scale = np.maximum(np.sum([_norms(x) for x in probes], axis=0), outputs)
    relative = max(float(np.max(gaps / np.maximum(scale, 1e-30))), b.arithmetic.unit)
    if relative > _SUSPICIOUS:
        raise ReferenceMismatchError(
            f"Layer '{step.name}' differs from its float64 reference by {relative:.3g} of the "
            "larger of input and output: more than float32 rounding. Its `call_float64` is not "
            "what its `call` computes at inference."
        )
    local = _SAFETY * relative * np.sum([other.computed for other in inputs], axis=0)
    local[0] += _SAFETY * relative * float(np.max(outputs))
    result = Budget(np.sum([other.size for other in inputs], axis=0), b.arithmetic).disturbed(local)
    result.measured = True
    return result


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows.reshape(len(rows), -1).astype(np.float64), axis=1)
