"""Lipschitz bounds of a whole graph: one number for each tensor, and a table that shows them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from dynzoo import spectral
from dynzoo.backend import to_numpy
from dynzoo.certificates import upper
from dynzoo.certificates.errors import UncertifiableLayerError
from dynzoo.certificates.graph import Program, Step
from dynzoo.certificates.identity import check_float64
from dynzoo.certificates.operations import class_name
from dynzoo.certificates.rules.joins import JOINS
from dynzoo.certificates.rules.linear import Shape
from dynzoo.certificates.rules.table import (
    check_methods,
    ends_in_softmax,
    is_identity,
    linear_head,
    rule_for,
)
from dynzoo.certificates.settings import not_finite, sublayers

__all__ = ["Head", "LayerBound", "bound_layers", "check_layers", "find_head"]

# A product or a norm in float64 rounds by a few 1e-16 each; this covers it a thousand times.
_SLACK = 1.0 + 1e-12
# Of classes; each is a float64, and a few such arrays are held at a time.
_MOST_PAIRS = 2**29


class LayerBound(NamedTuple):
    """A row of the table: the layer's own gain, and the bound from the model input to here.

    ``gain`` is None for a layer that joins branches: it has no constant of its own.

    Example:

    >>> import keras
    >>> from dynzoo import certify
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> certify(model).layers[0].class_name
    'Dense'
    """

    name: str
    class_name: str
    gain: float | None
    bound: float


class Head(NamedTuple):
    """The end of the model: bounds of the differences of logits, per unit of body movement."""

    linear: bool
    body_slot: int
    norm: float
    distances: np.ndarray


def check_layers(program: Program) -> None:
    """Refuses layers that are unknown, in reduced precision, or hold numbers that are not finite.

    Raises:
        UncertifiableLayerError: for a layer that no rule covers.
        ValueError: for the other reasons, with the remedy.
    """
    for step in program.steps:
        layer = step.layer
        if type(layer) in JOINS:
            check_methods(layer)
        else:
            rule_for(layer)
            if len(step.inputs) != 1:
                raise UncertifiableLayerError(
                    step.name, type(layer).__name__, f"it joins {len(step.inputs)} tensors."
                )
        for part in sublayers(layer):
            _check_precision(step.name, part)
            setting = not_finite(part)
            if setting is not None:
                raise ValueError(
                    f"Setting `{setting[0]}` of layer '{step.name}' is not finite. "
                    f"Received: {setting[0]}={setting[1]}"
                )
            _check_weights(step.name, part)


def _check_precision(name: str, layer: Any) -> None:
    policy = layer.dtype_policy
    kinds = {policy.compute_dtype, policy.variable_dtype}
    if getattr(layer, "quantization_mode", None) or kinds not in ({"float32"}, {"float64"}):
        raise ValueError(
            f"Layer '{name}' runs with dtype policy '{policy.name}'. In bfloat16, float16 "
            "or integer arithmetic the model's output is off by more than the radii that "
            "would be certified, so a certificate would not hold. Build the model again under "
            "`keras.config.set_dtype_policy('float32')` and load the same weights."
        )
    if "float64" in kinds:
        check_float64(f"Layer '{name}' runs with dtype policy 'float64'")


def _check_weights(name: str, layer: Any) -> None:
    for weight in layer.weights:
        value = to_numpy(weight)
        # By the array: the variable says what was asked for, not what the backend made of it.
        if value.dtype.kind not in "iub" and str(value.dtype) not in ("float32", "float64"):
            raise ValueError(
                f"Weight '{weight.path}' of layer '{name}' is {value.dtype}. A certificate needs "
                "weights in float32 or float64."
            )
        if not np.all(np.isfinite(value)):
            raise ValueError(
                f"Weight '{weight.path}' of layer '{name}' is not finite. "
                "Training diverged; load an earlier checkpoint."
            )


def bound_layers(
    program: Program, shapes: dict[int, Shape]
) -> tuple[dict[int, float], list[LayerBound]]:
    """Upper bound of the Lipschitz constant of every slot with respect to the model's input.

    Args:
        program: steps of the model.
        shapes: shape of each slot, batch axis first (None).

    Returns:
        (bound of each slot, list of ``LayerBound`` in the order of execution).
    """
    bounds: dict[int, float] = {0: 1.0}
    table: list[LayerBound] = []
    known: dict[tuple[int, Shape], float] = {}
    for step in program.steps:
        layer, gain = step.layer, None
        inputs = [bounds[slot] for slot in step.inputs]
        if type(layer) in JOINS:
            join = JOINS[type(layer)]
            bound = join.bound(layer, inputs, [shapes[slot] for slot in step.inputs]) * _SLACK
            bound = max(bound, upper.SMALLEST) if any(inputs) else bound
            if len(inputs) == 1:  # a bare operation, with a constant of its own
                gain = join.bound(layer, [1.0], [shapes[step.inputs[0]]])
        else:
            shape = shapes[step.inputs[0]]
            key = (id(layer), shape)
            if key not in known:
                known[key] = _gain(step, shape)
            gain = known[key]
            # Multiplying by exactly 1 does not round.
            bound = inputs[0] if gain == 1.0 else float(upper.product(inputs[0], gain))
        if not math.isfinite(bound):
            raise ValueError(
                f"The Lipschitz bound overflows float64 at layer '{step.name}': its weights, or "
                "those before it, are too large to be certified."
            )
        bounds[step.output] = bound
        table.append(LayerBound(step.name, class_name(layer), gain, bound))
    return bounds, table


def _gain(step: Step, shape: Shape) -> float:
    gain = float(rule_for(step.layer).gain(step.layer, shape))
    if not (math.isfinite(gain) and gain >= 0):
        raise ValueError(
            f"The Lipschitz bound of layer '{step.name}' of class `{type(step.layer).__name__}` "
            f"is not a finite number >= 0. Received: {gain}"
        )
    return gain


def find_head(program: Program, shapes: dict[int, Shape]) -> Head:
    r"""Bounds of logit differences: $\|w_i - w_j\|$ after a linear head, $\sqrt2$ otherwise.

    Raises:
        ValueError: if the model ends in a softmax: radii are margins of logits; if there are so
            many classes that their pairs do not fit into memory.
    """
    producers = {step.output: step for step in program.steps}
    slot = program.output
    while slot in producers and is_identity(producers[slot].layer):
        slot = producers[slot].inputs[0]
    last = producers.get(slot)
    if last is not None and ends_in_softmax(last.layer):
        raise ValueError(
            f"The model ends in a softmax (layer '{last.name}'). Certified radii are margins of "
            "logits: remove it, and train with `from_logits=True`."
        )
    classes = program.num_classes
    if classes**2 > _MOST_PAIRS:
        raise ValueError(
            f"A certificate bounds every pair of outputs, for at most {math.isqrt(_MOST_PAIRS):,} "
            f"of them. Received: a model with {classes:,} outputs"
        )
    kernel = linear_head(last.layer) if last is not None and len(last.inputs) == 1 else None
    if last is None or kernel is None or len(shapes[last.inputs[0]]) != 2:
        return Head(False, program.output, 1.0, np.sqrt(2.0) * _SLACK * (1 - np.eye(classes)))
    _check_kernel(last, kernel, shapes[last.inputs[0]])
    with np.errstate(over="ignore"):
        distances = np.stack(
            [upper.lengths((kernel - kernel[:, [i]]).T) for i in range(kernel.shape[1])]
        )
    norm = spectral.dense_norm_float64(kernel) if np.all(np.isfinite(kernel)) else math.inf
    if not (math.isfinite(norm) and np.all(np.isfinite(distances))):
        raise ValueError(
            f"The weights of layer '{last.name}' are too large to be certified: the distances "
            "between the classes overflow float64."
        )
    return Head(True, last.inputs[0], norm, distances * _SLACK)


def _check_kernel(step: Step, kernel: np.ndarray, shape: Shape) -> None:
    """The layer must be x W + b with exactly this W, or the pair distances mean nothing.

    Asked at a usual scale of inputs and at one where the kernel outweighs the bias, for each
    column by its own size: in float64 a small kernel vanishes beside a large bias.
    """
    forward = rule_for(step.layer).forward
    x = np.random.default_rng(0).standard_normal((2, int(shape[1] or 0)))
    size, bias = np.max(np.abs(kernel), initial=0.0), np.abs(forward(step.layer, 0.0 * x[:1]))
    with np.errstate(all="ignore"):
        outweighing = max(1.0, float(bias.max(initial=0.0))) / size if size > 0 else 1.0
        for scale in (1.0, min(outweighing, 1e300)):
            ends = [forward(step.layer, scale * row[None]) for row in x]
            expected = (scale * x[:1] - scale * x[1:]) @ kernel
            columns = scale * upper.lengths(x.ravel()[None]) * upper.lengths(kernel.T)
            rounding = 8 * np.finfo(np.float64).eps * np.maximum(*(np.abs(z) for z in ends))
            if expected.shape != ends[0].shape or not np.all(
                np.abs(ends[0] - ends[1] - expected) <= 1e-9 * columns + rounding
            ):
                raise ValueError(
                    f"`effective_kernel()` of layer '{step.name}' is not the matrix of its "
                    "forward pass."
                )
