"""`to_flows`: residual blocks of plain layers as the one layer that they are, bounded as one.

What is made of a block is found by numbers, not by names: the second half of x - B rho(A x + b) is
measured against the adjoint of the first. So layers of any author and any rescaling are known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from dynzoo import activations, backend, operators
from dynzoo import layers as dl
from dynzoo.certificates.graph import Program, Step
from dynzoo.certificates.operations import TensorCall
from dynzoo.certificates.rules.joins import JOINS
from dynzoo.certificates.rules.linear import float64
from dynzoo.certificates.rules.table import RULES, is_identity
from dynzoo.convert.builder import Builder, full_precision
from dynzoo.convert.comparison import check

__all__ = ["to_flows"]

kl = keras.layers
# What weights in float32 may differ by, of the largest number.
_TOLERANCE = 1e-5
_SCALES = (kl.Rescaling, kl.BatchNormalization)
_LINEAR = (
    *_SCALES,
    kl.Conv2D,
    kl.Conv2DTranspose,
    kl.Cropping2D,
    kl.Dense,
    kl.ZeroPadding2D,
)
# rho(t x) = t rho(x) for t > 0: a scale of a unit may stand before it or behind.
_HOMOGENEOUS = ("relu", "leaky_relu", "half_leaky_relu", "linear")


def to_flows(model: keras.Model) -> keras.Model:
    r"""The same function, with residual blocks as single layers whose bound is that of the whole.

    A sum of two branches is certified by the sum of their bounds, which is far above the slope of
    $x - A^T D \rho(Ax + b)$ with $D \ge 0$ diagonal. Published 1-Lipschitz blocks have this form:
    gradient steps divided by a norm from power iteration, rescaled ones (SLL), those with
    orthogonal kernels. Each becomes a ``GradientFlow``, whose bound is computed from the weights in
    float64: not the 1 that the block was built for, which an estimated norm does not give. Further
    $x + Wx$, dense or a convolution, becomes one dense layer or convolution, and the two halves of
    a maximum and a minimum of pairs of channels one ``MaxMin``. Everything else stays as it is.

    Args:
        model: built Sequential or Functional model from one input of fixed shape to logits (n, K),
            for example what ``from_torch`` gave.

    Returns:
        A functional model with weights of its own.

    Raises:
        ConversionError: if its logits are not those of ``model`` to 1e-5 of the largest.
        ValueError: if the model's graph cannot be read, as that of a subclassed model, or runs in
            mixed precision.

    Example:

    >>> import dynzoo, keras
    >>> step = dynzoo.layers.GradientFlow(dynzoo.operators.Dense(3))
    >>> model = keras.Sequential([keras.Input((4,)), step, dynzoo.layers.UnitRowDense(3)])
    >>> plain = dynzoo.convert.to_plain(model)
    >>> flows = dynzoo.convert.to_flows(plain)
    >>> dynzoo.certify(plain).lipschitz > 2.9, dynzoo.certify(flows).lipschitz < 1.001
    (True, True)

    Reference: Meunier et al., "A dynamical system perspective for Lipschitz neural networks",
    ICML 2022; Araujo et al., "A unified algebraic perspective on Lipschitz neural networks", ICLR
    2023.
    """
    program = full_precision(model)
    graph = _Graph(program, model)
    blocks = {step.output: block for step in program.steps if (block := _block(graph, step))}
    values: dict[int, Any] = {0: keras.Input(program.input_shape, name="images")}
    build = Builder()
    needed = _needed(graph, program.output, blocks)
    for step in program.steps:
        if step.output not in needed:
            continue
        build.name = re.sub(r"\W+", "_", step.name)
        if step.output in blocks:
            block = blocks[step.output]
            y = build.layer(block.cls, values[block.source], block.weights, **block.arguments)
        else:
            inputs = [values[slot] for slot in step.inputs]
            if isinstance(step.layer, TensorCall):
                y = step.layer.replay(inputs, build.fresh())
            elif is_identity(step.layer):
                y = inputs[0]
            else:
                y = build.copy(step.layer, inputs)
        values[step.output] = y
    flows = keras.Model(values[0], values[program.output], name=f"{model.name}_flows")
    check(flows, lambda x: backend.to_numpy(model(x, training=False)), model.name, "Model")
    return flows


class _Block(NamedTuple):
    """A layer that takes the place of all steps between a slot and a join."""

    source: int
    cls: type
    weights: list[np.ndarray] | None
    arguments: dict[str, Any]


class _Map(NamedTuple):
    """x W + b on vectors, or a convolution with stride 1 whose output is as large as its input."""

    kernel: np.ndarray
    bias: np.ndarray

    @property
    def image(self) -> bool:
        return self.kernel.ndim == 4


class _Graph:
    """The steps of a program by the slots that they write, with the shapes of these."""

    def __init__(self, program: Program, model: keras.Model):
        self.makers = {step.output: step for step in program.steps}
        self.shapes: dict[int, tuple[int, ...]] = {0: program.input_shape}
        for step in program.steps:
            spec = [
                keras.KerasTensor((None, *self.shapes[s]), dtype=step.layer.dtype_policy.name)
                for s in step.inputs
            ]
            if isinstance(step.layer, TensorCall):
                y = step.layer.replay(spec, step.layer.operation.name)
                self.shapes[step.output] = tuple(int(n) for n in y.shape[1:])
            else:
                given = spec[0].shape if len(spec) == 1 else [s.shape for s in spec]
                found = step.layer.compute_output_shape(given)
                self.shapes[step.output] = tuple(int(n) for n in found[1:])

    def line(self, slot: int) -> list[Step]:
        """The steps of one input each that lead to a slot, the last first."""
        found = []
        while slot in self.makers and len(self.makers[slot].inputs) == 1:
            found.append(self.makers[slot])
            slot = found[-1].inputs[0]
        return found

    def branches(self, slots: Sequence[int]) -> tuple[int, list[list[Step]]] | None:
        """The last slot from which lines lead to all of these, and the lines; None if none does."""
        lines = [self.line(slot) for slot in slots]
        met = [
            [slot, *(s.inputs[0] for s in line)] for slot, line in zip(slots, lines, strict=True)
        ]
        common = next((s for s in met[0] if all(s in other for other in met[1:])), None)
        if common is None:
            return None
        return common, [
            line[: places.index(common)][::-1] for line, places in zip(lines, met, strict=True)
        ]


def _needed(graph: _Graph, output: int, blocks: dict[int, _Block]) -> set[int]:
    """Slots on which the output depends once the blocks stand in their places."""
    makers, needed, stack = graph.makers, set(), [output]
    while stack:
        slot = stack.pop()
        if slot in needed or slot not in makers:
            continue
        needed.add(slot)
        stack.extend([blocks[slot].source] if slot in blocks else makers[slot].inputs)
    return needed


def _block(graph: _Graph, step: Step) -> _Block | None:
    """What a join and the two branches before it are together, or None if that is not known."""
    if len(step.inputs) != 2:
        return None
    if type(step.layer) is kl.Concatenate:
        return _max_min(graph, step)
    if type(step.layer) is kl.Add:
        sign = 1.0
    elif type(step.layer) is kl.Subtract:
        sign = -1.0
    else:
        return None
    found = graph.branches(step.inputs)
    if found is None or len(graph.shapes[found[0]]) not in (1, 3):
        return None
    source, (first, second) = found
    shape = graph.shapes[source]
    maps = [_affine(branch, shape) for branch in (first, second)]
    if maps[0] is not None and maps[1] is not None:
        learned = any(type(s.layer) in (kl.Dense, kl.Conv2D) for s in (*first, *second))
        return _linear(source, maps[0], _scaled(maps[1], sign)) if learned else None
    if maps[0] is not None and _is_identity(maps[0]):
        return _gradient_step(graph, source, second, -sign)
    if sign > 0 and maps[1] is not None and _is_identity(maps[1]):
        return _gradient_step(graph, source, first, -1.0)
    return None


# --- affine maps -----------------------------------------------------------------------------


def _affine(branch: Sequence[Step], shape: tuple[int, ...]) -> _Map | None:
    """A branch as one affine map, if it is one with a bias that is the same at all pixels."""
    eye = np.eye(shape[-1])
    found = _Map(eye if len(shape) == 1 else eye[None, None], np.zeros(shape[-1]))
    for step in branch:
        layer, kind = step.layer, type(step.layer)
        if is_identity(layer):
            continue
        if _name(layer) == "Take" and len(shape) == 1:
            found = _Map(_taken(layer, found.kernel), _taken(layer, found.bias[None])[0])
        elif kind in _SCALES:
            ends = _ends(layer, len(shape), found.kernel.shape[-1])
            if ends is None:
                return None
            offset, scale = ends
            found = _Map(found.kernel * scale, found.bias * scale + offset)
        elif kind is kl.Dense and len(shape) == 1 and _is_bare(layer):
            kernel = float64(layer.kernel)
            bias = float64(layer.bias) if layer.use_bias else 0.0
            found = _Map(found.kernel @ kernel, found.bias @ kernel + bias)
        elif kind is kl.Conv2D and len(shape) == 3 and _is_bare(layer) and _keeps_size(layer):
            # At the border a bias in front would meet zeros.
            if found.kernel.shape[:2] != (1, 1) or np.any(found.bias):
                return None
            kernel = np.einsum("ij,hwjk->hwik", found.kernel[0, 0], float64(layer.kernel))
            bias = float64(layer.bias) if layer.use_bias else np.zeros(kernel.shape[-1])
            found = _Map(kernel, bias)
        else:
            return None
    return found


def _ends(layer: Any, axes: int, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(offset, scale) of a layer that treats channels apart, or None if it looks at pixels."""
    inputs = np.stack([np.full((1,) * (axes - 1) + (channels,), v) for v in (0.0, 1.0)])
    if type(layer) is kl.BatchNormalization and layer.axis not in (-1, axes):
        return None
    if type(layer) is kl.Rescaling and max(np.size(layer.scale), np.size(layer.offset)) > channels:
        return None
    low, high = RULES[type(layer)].forward(layer, inputs).reshape(2, -1)
    return (low, high - low) if len(low) == channels else None


def _is_bare(layer: Any) -> bool:
    return layer.activation in (None, keras.activations.linear)


def _keeps_size(layer: Any) -> bool:
    size = layer.kernel_size
    same = layer.padding == "same" or tuple(size) == (1, 1)
    plain = tuple(layer.strides) == tuple(layer.dilation_rate) == (1, 1) and layer.groups == 1
    return same and plain and size[0] == size[1] and layer.data_format == "channels_last"


def _is_identity(given: _Map) -> bool:
    shape = given.kernel.shape
    square = shape[-1] == shape[-2] and shape[:-2] in ((), (1, 1))
    return square and not np.any(given.bias) and bool(np.all(given.kernel == np.eye(shape[-1])))


def _scaled(given: _Map, factor: float) -> _Map:
    return _Map(given.kernel * factor, given.bias * factor)


def _widened(kernel: np.ndarray, size: int) -> np.ndarray:
    """The same convolution with zeros around its kernel."""
    before = (size - 1) // 2 - (len(kernel) - 1) // 2
    after = size - len(kernel) - before
    return np.pad(kernel, [(before, after)] * 2 + [(0, 0)] * 2)


def _linear(source: int, first: _Map, second: _Map) -> _Block | None:
    """The sum of two affine maps as one layer."""
    if first.kernel.shape[-2:] != second.kernel.shape[-2:]:
        return None
    bias = first.bias + second.bias
    if not first.image:
        kernel = first.kernel + second.kernel
        return _Block(source, kl.Dense, [kernel, bias], {"units": len(bias)})
    size = max(len(first.kernel), len(second.kernel))
    kernel = _widened(first.kernel, size) + _widened(second.kernel, size)
    arguments = {
        "filters": len(bias),
        "kernel_size": size,
        "padding": "same",
        "data_format": "channels_last",
    }
    return _Block(source, kl.Conv2D, [kernel, bias], arguments)


# --- gradient steps --------------------------------------------------------------------------


def _gradient_step(
    graph: _Graph, source: int, branch: Sequence[Step], sign: float
) -> _Block | None:
    """x - sign * branch as a contractive Euler step, if the branch is A^T D rho(A x + b)."""
    shape = graph.shapes[source]
    names = [_monotone(step.layer) for step in branch]
    places = [i for i, name in enumerate(names) if name is not None]
    if len(places) != 1:
        return None
    place = places[0]
    name, before, after = names[place], branch[:place], branch[place + 1 :]
    inner = _affine(before, shape)
    if inner is None or any(
        type(s.layer) not in _LINEAR and _name(s.layer) != "Take" for s in after
    ):
        return None
    if any(not _is_bare(s.layer) for s in after if hasattr(s.layer, "activation")):
        return None
    operator: Any = operators.Dense(len(inner.bias))
    if inner.image:
        operator = operators.Conv(len(inner.bias), len(inner.kernel))
    steps = _steps(operator, inner.kernel, after, graph.shapes[branch[place].output], shape, sign)
    if steps is None or not np.any(steps > 0):
        return None
    kernel, bias, step = inner.kernel, inner.bias, float(steps.max())
    if np.ptp(steps) > _TOLERANCE * step:
        if name not in _HOMOGENEOUS:
            return None
        root, step = np.sqrt(steps / 2.0), 2.0
        kernel, bias = kernel * root, bias * root
    arguments = {
        "operator": operator,
        "activation": name,
        "step_size": step,
        "constraint": None,
    }
    return _Block(source, dl.GradientFlow, [kernel, bias], arguments)


def _steps(
    operator: Any,
    kernel: np.ndarray,
    after: Sequence[Step],
    inner: tuple[int, ...],
    shape: tuple[int, ...],
    sign: float,
) -> np.ndarray | None:
    """D of sign * `after` = A^T D, one number a unit, or None if it is no such map or D < 0."""
    units, found, worst, largest = inner[-1], np.zeros(inner[-1]), 0.0, 0.0
    if np.any(_run(after, np.zeros((1, *inner)))):
        return None
    rng = np.random.default_rng(0)
    for start in range(0, units, 32):
        part = np.arange(start, min(start + 32, units))
        z = np.zeros((len(part), *inner))
        z[np.arange(len(part)), ..., part] = rng.normal(size=(len(part), *inner[:-1]))
        theirs = sign * _run(after, z)
        if theirs.shape[1:] != shape:
            return None
        theirs = theirs.reshape(len(part), -1)
        ours = operator.adjoint_float64(z, kernel).reshape(len(part), -1)
        size = (ours**2).sum(axis=1)
        found[part] = (ours * theirs).sum(axis=1) / np.where(size > 0, size, 1.0)
        worst = max(worst, float(np.max(np.abs(theirs - found[part][:, None] * ours))))
        largest = max(largest, float(np.max(np.abs(theirs))))
    negative = bool(np.any(found < -_TOLERANCE * np.max(np.abs(found))))
    return None if worst > _TOLERANCE * largest or negative else np.maximum(found, 0.0)


def _taken(layer: TensorCall, x: np.ndarray) -> np.ndarray:
    return JOINS[TensorCall].forward(layer, [x])


def _run(steps: Sequence[Step], x: np.ndarray) -> np.ndarray:
    for step in steps:
        layer = step.layer
        if isinstance(layer, TensorCall):
            x = _taken(layer, x)
        else:
            x = RULES[type(layer)].forward(layer, x)
    return x


def _monotone(layer: Any) -> str | None:
    """The name in `ACTIVATIONS` of a layer that is one of them."""
    if type(layer) is kl.ReLU:
        plain = layer.max_value is None and layer.threshold == 0
        return _leaky(float(layer.negative_slope)) if plain else None
    if type(layer) is kl.LeakyReLU:
        return _leaky(float(layer.negative_slope))
    if type(layer) is kl.ELU:
        return "elu" if layer.alpha == 1 else None
    if type(layer) is kl.Activation and not is_identity(layer):
        try:
            name = activations.get(layer.activation).name
        except ValueError:
            return None
        # Keras' own of this name has another slope below 0 in some versions.
        return None if "leaky" in name else name
    return None


def _leaky(slope: float) -> str | None:
    for name in _HOMOGENEOUS[:3]:
        if abs(activations.ACTIVATIONS[name].slope_min - slope) < 1e-7:
            return name
    return None


# --- pairs of channels -----------------------------------------------------------------------


def _max_min(graph: _Graph, step: Step) -> _Block | None:
    """A concatenation of the maximum and the minimum of the two halves of the channels."""
    makers = [graph.makers.get(slot) for slot in step.inputs]
    if [_name(m.layer) if m else None for m in makers] != ["Maximum", "Minimum"]:
        return None
    large, small = makers
    assert large is not None and small is not None
    if len(large.inputs) != 2 or sorted(large.inputs) != sorted(small.inputs):
        return None
    found = graph.branches(large.inputs)
    if found is None or any(len(branch) != 1 for branch in found[1]):
        return None
    source, halves = found
    shape = graph.shapes[source]
    x = np.arange(np.prod(shape), dtype=np.float64).reshape(1, *shape)
    parts = np.split(x, 2, axis=-1) if shape[-1] % 2 == 0 else []
    if step.layer.axis not in (-1, len(shape)):
        return None
    seen = [JOINS[type(s.layer)].forward(s.layer, [x]) for (s,) in halves if type(s.layer) in JOINS]
    same = len(seen) == len(parts) == 2 and all(
        any(np.array_equal(part, other) for other in seen) for part in parts
    )
    return _Block(source, dl.MaxMin, None, {}) if same else None


def _name(layer: Any) -> str:
    return type(layer.operation if isinstance(layer, TensorCall) else layer).__name__
