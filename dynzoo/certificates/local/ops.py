r"""A model rewritten as affine maps, sums and rectifiers: the form that local bounds work on.

A rectifier is $\rho_\kappa(z) = \max(z, \kappa z)$ entry by entry, with $0 \le \kappa < 1$. Every
supported layer is a few of these three: a gradient step is $y + c\,A^T\rho(Ay + b)$, and a maximum
is $\max(a, b) = b + \rho_0(a - b)$. All of it is NumPy float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynzoo.spectral.convolutions import Axis

__all__ = [
    "Affine",
    "Curve",
    "Node",
    "Rectifier",
    "Sum",
    "Unrolled",
    "Window",
    "dense",
    "diagonal",
    "gather",
    "mix",
]

Array = np.ndarray


@dataclass(frozen=True)
class Window:
    """A convolution of images: kernel (rows, columns, channels in a group, channels out)."""

    kernel: Array
    axes: tuple[Axis, Axis]
    groups: int = 1


@dataclass(frozen=True)
class Affine:
    """y = A x + b.

    `spread(m, s)` bounds how far each entry of y moves if x moves by at most m (n,) in L2 norm
    and at most s (n, ...) entry by entry. What A is made of, where it is one of these: a `window`,
    a `kernel` (inputs, outputs) on the last axis, or a `scale` of each entry.
    """

    forward: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    norm: float
    spread: Callable[[Array, Array], Array]
    window: Window | None = None
    kernel: Array | None = None
    scale: Array | None = None


@dataclass(frozen=True)
class Sum:
    """y = sum of c_k x_k."""

    weights: tuple[float, ...]


@dataclass(frozen=True)
class Rectifier:
    """y = max(z, slope * z), with 0 <= slope < 1."""

    slope: float

    def forward(self, z: Array) -> Array:
        return np.where(z > 0, z, self.slope * z)


@dataclass(frozen=True)
class Curve:
    """y = f(z) entry by entry, f with slopes in [low, high].

    Between two neighbours of `kinks` f has a derivative, with Lipschitz constant `curvature`.
    """

    function: Callable[[Array], Array]
    low: float
    high: float
    kinks: tuple[float, ...]
    curvature: float

    def forward(self, z: Array) -> Array:
        return self.function(z)


@dataclass(frozen=True)
class Node:
    """Slot `output` from the slots `inputs`; it moves at most gain times as far as slot `of`."""

    op: Affine | Sum | Rectifier | Curve
    inputs: tuple[int, ...]
    output: int
    cap: tuple[int, float] | None


@dataclass
class Unrolled:
    """The nodes in the order of execution; slot 0 is the input.

    With `curves` any activation may stand in it, without them rectifiers alone.
    """

    shapes: list[tuple[int, ...]]
    nodes: list[Node] = field(default_factory=list)
    curves: bool = False

    def add(self, op: Any, inputs: list[int], cap: tuple[int, float] | None = None) -> int:
        """Appends a node and returns its slot."""
        slot = len(self.shapes)
        self.nodes.append(Node(op, tuple(inputs), slot, cap))
        zeros = [np.zeros((1, *self.shapes[i])) for i in inputs]
        self.shapes.append(run(op, zeros).shape[1:])
        return slot

    def rectify(self, slot: int, slope: float) -> int:
        return slot if slope == 1.0 else self.add(Rectifier(slope), [slot])

    def values(self, x: Array) -> list[Array]:
        """What is in every slot."""
        values: list[Array] = [np.asarray(x, np.float64)]
        for node in self.nodes:
            values.append(run(node.op, [values[i] for i in node.inputs]))
        return values


def run(op: Affine | Sum | Rectifier | Curve, inputs: list[Array]) -> Array:
    """The value of one operation."""
    if isinstance(op, Sum):
        total = op.weights[0] * inputs[0]
        for weight, value in zip(op.weights[1:], inputs[1:], strict=True):
            total = total + weight * value
        return total
    return op.forward(inputs[0])


# --- affine maps ---------------------------------------------------------------------------


def _over_entries(m: Array, shape: int) -> Array:
    return m.reshape(-1, *(1,) * shape)


def mix(
    forward: Any,
    adjoint: Any,
    norm: float,
    row_norms: Array,
    window: Window | None = None,
    kernel: Array | None = None,
) -> Affine:
    """A map whose output i is a row of norm `row_norms[i]` (broadcast) on the whole input."""
    rows = np.minimum(row_norms, norm) * (1 + 1e-12)

    def spread(m: Array, s: Array) -> Array:
        return _over_entries(m, s.ndim - 1) * rows

    return Affine(forward, adjoint, norm, spread, window, kernel)


def dense(kernel: Array, bias: Array | float, norm: float) -> Affine:
    """x W + b over the last axis."""
    rows = np.linalg.norm(kernel, axis=0)
    return mix(lambda x: x @ kernel + bias, lambda y: y @ kernel.T, norm, rows, kernel=kernel)


def diagonal(scale: Array, forward: Callable[[Array], Array], norm: float) -> Affine:
    """Entry by entry s x + b."""
    size = np.abs(scale) * (1 + 1e-12)
    return Affine(forward, lambda y: y * scale, norm, lambda m, s: s * size, scale=scale)


def gather(forward: Callable[[Array], Array], adjoint: Callable[[Array], Array]) -> Affine:
    """A selection or a new order of the entries."""
    return Affine(forward, adjoint, 1.0, lambda m, s: forward(s))
