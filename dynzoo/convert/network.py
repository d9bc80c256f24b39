"""A Keras graph under construction, spoken to in the words of channels-first frameworks.

Images stay channels-last throughout. A `Tensor` knows which Keras axis holds which axis of the
other framework, so that a transposition costs nothing; and where an image was flattened, in which
order the other framework counts the entries, so that the next Dense kernel takes them in our order
and no layer has to move them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from dynzoo.convert.errors import ConversionError

__all__ = ["Network", "Tensor", "channels_last"]

kl = keras.layers
# A scale or an offset for so many channels stands in the config of a Rescaling; more are weights.
_LISTED = 16


class _Affine(NamedTuple):
    """A tensor as `scale * source + offset`, in Keras' axes."""

    source: Any
    scale: np.ndarray
    offset: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A Keras tensor and how the other framework sees it; the batch axis is the first of both.

    Attributes:
        keras: the symbolic tensor.
        axes: for each of their axes after the first, the Keras axis that holds it.
        order: of a vector: their entry i is our entry `order[i]`; None if the same.
        nonnegative: no entry is below 0.
        affine: what a scale and shift made it of.
    """

    keras: Any
    axes: tuple[int, ...]
    order: np.ndarray | None = None
    nonnegative: bool = False
    affine: _Affine | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Their shape without the batch axis."""
        return tuple(int(self.keras.shape[a]) for a in self.axes)

    @property
    def rank(self) -> int:
        """Number of axes with that of the batch."""
        return len(self.axes) + 1


def channels_last(rank: int) -> tuple[int, ...]:
    """Their axes 1, 2, ... (channels first) as Keras' axes of a channels-last tensor."""
    return (rank - 1, *range(1, rank - 1))


class Network:
    """Builds the Keras model one call at a time.

    Args:
        input_shape: of one input, as Keras takes it.
        known: names of what can be converted, for the error.
        channels: "last": theirs is channels first and the Keras input channels last; "as_given":
            the input has the same axes in both.
    """

    def __init__(self, input_shape: Sequence[int], known: Sequence[str], channels: str = "last"):
        self._inputs = keras.Input(tuple(input_shape), name="images")
        rank = len(self._inputs.shape)
        axes = channels_last(rank) if channels == "last" else tuple(range(1, rank))
        self.input = Tensor(self._inputs, axes)
        self._known = sorted(known)
        self._names: set[str] = set()
        self.place, self.kind = "", ""

    def at(self, place: str, kind: str) -> None:
        """Names the module that the next calls convert."""
        self.place, self.kind = place, kind

    def refuse(self, reason: str) -> ConversionError:
        """The error that names the present module."""
        return ConversionError(self.place, self.kind, reason)

    def unknown(self) -> ConversionError:
        """The error for a module of which nothing is known."""
        return self.refuse(f"it is not known. Known are {', '.join(self._known)}.")

    def model(self, output: Tensor, name: str) -> keras.Model:
        """The functional model that ends in this tensor; images come out channels last."""
        output = self.laid_out(self.in_their_order(output), channels_last(output.rank))
        return keras.Model(self._inputs, output.keras, name=name)

    # --- layers ----------------------------------------------------------------------------

    def layer(self, cls: type, inputs: Any, weights: Any = None, **arguments: Any) -> Any:
        """The output of a new layer, named after the present module, with these weights."""
        made = cls(name=self._name(cls), **arguments)
        try:
            output = made(inputs)
        except (ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise self.refuse(f"Keras' {cls.__name__} refuses it ({reason:.200})") from None
        if weights is not None:
            made.set_weights([np.asarray(w, "float32") for w in weights])
        return output

    def _name(self, cls: type) -> str:
        place = re.sub(r"\W+", "_", self.place).strip("_")
        stem = f"{place}_{cls.__name__.lower()}" if place else cls.__name__.lower()
        name, count = stem, 1
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name)
        return name

    def entrywise(
        self, x: Tensor, cls: type, nonnegative: bool = False, **arguments: Any
    ) -> Tensor:
        """A layer that treats all entries alike."""
        y = self.layer(cls, x.keras, **arguments)
        return Tensor(y, x.axes, x.order, nonnegative)

    # --- axes ------------------------------------------------------------------------------

    def laid_out(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """The same tensor with its axes in these places."""
        if x.axes == axes:
            return x
        dims = [0] * len(axes)
        for theirs, target in zip(x.axes, axes, strict=True):
            dims[target - 1] = theirs
        y = self.layer(kl.Permute, x.keras, dims=tuple(dims))
        return Tensor(y, axes, nonnegative=x.nonnegative)

    def image(self, x: Tensor, ranks: Sequence[int] = (3, 4)) -> Tensor:
        """A tensor of channels and one or two spatial axes, channels last."""
        if x.rank not in ranks:
            shape = ("n", *x.shape)
            wanted = " or ".join(str(r - 2) for r in ranks)
            raise self.refuse(
                f"its input has the shape {_text(shape)}; it needs channels and {wanted} spatial "
                "axes."
            )
        return self.laid_out(x, channels_last(x.rank))

    def in_their_order(self, x: Tensor) -> Tensor:
        """A vector whose entries stand as the other framework counts them."""
        if x.order is None:
            return x
        y = keras.ops.take(x.keras, x.order, axis=-1)
        return Tensor(y, x.axes, nonnegative=x.nonnegative)

    def _in_order(self, x: Tensor, order: np.ndarray) -> Tensor:
        """A vector whose entries stand as those of another one do."""
        given = np.arange(len(order)) if x.order is None else x.order
        if np.array_equal(given, order):
            return x
        places = np.empty_like(order)
        places[order] = given
        y = keras.ops.take(x.keras, places, axis=-1)
        return Tensor(y, x.axes, order, x.nonnegative)

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """To another shape without the batch axis, in the order of the other framework."""
        size, shape = math.prod(x.shape), list(shape)
        if shape.count(-1) == 1:
            rest = math.prod(n for n in shape if n != -1)
            shape[shape.index(-1)] = size // max(rest, 1)
        if math.prod(shape) != size:
            raise self.refuse(
                f"it reshapes {_text(x.shape)} to {_text(shape)}, over the batch axis."
            )
        if tuple(shape) == x.shape:
            return x
        if len(shape) == 1:
            inner = tuple(int(n) for n in x.keras.shape[1:])
            places = np.arange(size).reshape(inner).transpose([a - 1 for a in x.axes]).ravel()
            order = None if np.array_equal(places, np.arange(size)) else places
            y = self.layer(kl.Flatten, x.keras)
            return Tensor(y, (1,), order, x.nonnegative)
        x = self.in_their_order(x)
        x = self.laid_out(x, tuple(range(1, x.rank)))
        y = self.layer(kl.Reshape, x.keras, target_shape=tuple(shape))
        return Tensor(y, tuple(range(1, len(shape) + 1)), nonnegative=x.nonnegative)

    def transpose(self, x: Tensor, permutation: Sequence[int]) -> Tensor:
        """Their axes in another order; the batch axis stays the first."""
        given = [int(a) % x.rank for a in permutation]
        if sorted(given) != list(range(x.rank)) or given[0] != 0:
            raise self.refuse(f"it moves the batch axis: {tuple(permutation)}.")
        return dataclasses.replace(x, axes=tuple(x.axes[a - 1] for a in given[1:]), affine=None)

    def axis(self, x: Tensor, axis: int) -> int:
        """One of their axes, from 1 on."""
        found = int(axis) % x.rank
        if found == 0:
            raise self.refuse("it works along the batch axis.")
        return found

    def part(self, x: Tensor, axis: int, start: int, stop: int, step: int = 1) -> Tensor:
        """A slice along one of their axes."""
        if x.order is not None:
            x = self.in_their_order(x)
        place = x.axes[self.axis(x, axis) - 1]
        key = [slice(None)] * x.rank
        key[place] = slice(int(start), int(stop), int(step))
        return Tensor(x.keras[tuple(key)], x.axes, nonnegative=x.nonnegative)

    def zeros_around(self, x: Tensor, pads: Sequence[tuple[int, int]]) -> Tensor:
        """Zeros before and after each spatial axis of a channels-last image."""
        if not any(before or after for before, after in pads):
            return x
        if any(n < 0 for pad in pads for n in pad):
            cut = [(max(-a, 0), max(-b, 0)) for a, b in pads]
            more = [(max(a, 0), max(b, 0)) for a, b in pads]
            return self.zeros_around(self.cropped(x, cut), more)
        cls = {1: kl.ZeroPadding1D, 2: kl.ZeroPadding2D}[len(pads)]
        pads = [(int(a), int(b)) for a, b in pads]
        y = self.layer(cls, x.keras, padding=pads[0] if len(pads) == 1 else tuple(pads))
        return Tensor(y, x.axes, nonnegative=x.nonnegative)

    def cropped(self, x: Tensor, crops: Sequence[tuple[int, int]]) -> Tensor:
        """A channels-last image without its border."""
        if not any(before or after for before, after in crops):
            return x
        cls = {1: kl.Cropping1D, 2: kl.Cropping2D}[len(crops)]
        crops = [(int(a), int(b)) for a, b in crops]
        y = self.layer(cls, x.keras, cropping=crops[0] if len(crops) == 1 else tuple(crops))
        return Tensor(y, x.axes, nonnegative=x.nonnegative)

    # --- linear maps -----------------------------------------------------------------------

    def dense(self, x: Tensor, weight: np.ndarray, bias: np.ndarray | None) -> Tensor:
        """x W^T + b over their last axis, for W of shape (outputs, inputs)."""
        if x.rank > 2:
            x = self.laid_out(x, tuple(range(1, x.rank)))
        kernel = np.asarray(weight, np.float64).T
        if x.shape[-1] != len(kernel):
            raise self.refuse(f"it takes {len(kernel)} features, its input has {x.shape[-1]}.")
        if x.order is not None:
            ours = np.empty_like(kernel)
            ours[x.order] = kernel
            kernel = ours
        weights = [kernel] if bias is None else [kernel, bias]
        y = self.layer(kl.Dense, x.keras, weights, units=kernel.shape[1], use_bias=bias is not None)
        return Tensor(y, x.axes)

    def scale_and_shift(self, x: Tensor, scale: Any, offset: Any) -> Tensor:
        """scale * x + offset for constants that their framework spreads over their axes."""
        factors, shifts = self._spread(x, scale), self._spread(x, offset)
        source = x
        if x.affine is not None:
            source, first, second = x.affine
            factors, shifts = factors * first, factors * second + shifts
        y = self._affine(source, factors, shifts)
        return Tensor(y, x.axes, x.order, affine=_Affine(source, factors, shifts))

    def _spread(self, x: Tensor, value: Any) -> np.ndarray:
        """A constant in Keras' axes, without the batch axis, of the rank of an example."""
        array = np.asarray(value, np.float64)
        if array.ndim == x.rank and array.shape[0] == 1:
            array = array[0]
        array = array.reshape((1,) * (len(x.axes) - array.ndim) + array.shape)
        fits = array.ndim == len(x.axes)
        if not fits or np.broadcast_shapes(array.shape, x.shape) != x.shape:
            raise self.refuse(
                f"a constant of shape {_text(np.shape(value))} does not fit a tensor of shape "
                f"{_text(('n', *x.shape))}."
            )
        array = array.transpose([x.axes.index(k) for k in range(1, x.rank)])
        if x.order is not None and array.size > 1:
            ours = np.empty_like(array)
            ours[x.order] = array
            array = ours
        return array

    def _affine(self, x: Tensor, scale: np.ndarray, offset: np.ndarray) -> Any:
        if scale.size > scale.shape[-1]:
            raise self.refuse("it multiplies each pixel by a number of its own.")
        scale = scale.ravel()
        if offset.size > offset.shape[-1]:
            from dynzoo.layers import PositionOffset

            if x.rank != 4:
                raise self.refuse("it adds a number of its own to each place of a sequence.")
            y = x.keras
            if np.any(scale != 1):
                y = self._affine(x, scale[None, None], np.zeros((1, 1, 1)))
            offset = np.broadcast_to(offset, x.keras.shape[1:])
            return self.layer(PositionOffset, y, [offset])
        offset = offset.ravel()
        if max(len(scale), len(offset)) <= _LISTED:
            return self.layer(
                kl.Rescaling, x.keras, scale=_number_or_list(scale), offset=_number_or_list(offset)
            )
        channels = int(x.keras.shape[-1])
        scale, offset = (np.broadcast_to(v, channels) for v in (scale, offset))
        weights = [scale, offset, np.zeros(channels), np.ones(channels)]
        return self.layer(kl.BatchNormalization, x.keras, weights, epsilon=0.0)

    def batch_normalization(
        self,
        x: Tensor,
        gamma: np.ndarray | None,
        beta: np.ndarray | None,
        mean: np.ndarray,
        variance: np.ndarray,
        epsilon: float,
        momentum: float = 0.99,
    ) -> Tensor:
        """The fixed map of inference: running mean and variance."""
        given = [v for v in (gamma, beta, mean, variance) if v is not None]
        weights = [np.asarray(v, np.float64) for v in given]
        if x.order is not None:
            back = np.argsort(x.order)
            weights = [v[back] for v in weights]
        y = self.layer(
            kl.BatchNormalization,
            x.keras,
            weights,
            axis=x.axes[0],
            epsilon=float(epsilon),
            momentum=float(momentum),
            scale=gamma is not None,
            center=beta is not None,
        )
        return Tensor(y, x.axes, x.order)

    # --- several tensors -------------------------------------------------------------------

    def alike(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors with their axes in the same places, and vectors in one order."""
        if len({x.rank for x in tensors}) != 1:
            shapes = " and ".join(_text(("n", *x.shape)) for x in tensors)
            raise self.refuse(f"it joins tensors of shapes {shapes}.")
        orders = [x.order for x in tensors]
        same = all(
            (a is None and orders[0] is None)
            or (a is not None and orders[0] is not None and np.array_equal(a, orders[0]))
            for a in orders
        )
        if not same:
            order = next(o for o in orders if o is not None)
            tensors = [self._in_order(x, order) for x in tensors]
        return [self.laid_out(x, tensors[0].axes) for x in tensors]

    def join(self, cls: type, tensors: Sequence[Tensor]) -> Tensor:
        """A sum, difference or maximum of tensors of one shape."""
        if len({x.shape for x in tensors}) != 1:
            shapes = " and ".join(_text(("n", *x.shape)) for x in tensors)
            raise self.refuse(f"its tensors must have one shape; they have {shapes}.")
        parts = self.alike(tensors)
        y = self.layer(cls, [x.keras for x in parts])
        kept = cls in (kl.Add, kl.Maximum) and all(x.nonnegative for x in parts)
        return Tensor(y, parts[0].axes, parts[0].order, kept)

    def concatenate(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        """Along one of their axes."""
        nonnegative = all(x.nonnegative for x in tensors)
        if all(x.rank == 2 for x in tensors):
            self.axis(tensors[0], axis)
            y = self.layer(kl.Concatenate, [x.keras for x in tensors], axis=-1)
            orders: list[np.ndarray] = []
            start = 0
            for x in tensors:
                size = x.shape[0]
                orders.append(start + (np.arange(size) if x.order is None else x.order))
                start += size
            order = np.concatenate(orders)
            if all(x.order is None for x in tensors):
                return Tensor(y, (1,), None, nonnegative)
            return Tensor(y, (1,), order, nonnegative)
        parts = self.alike(tensors)
        place = parts[0].axes[self.axis(parts[0], axis) - 1]
        y = self.layer(kl.Concatenate, [x.keras for x in parts], axis=place)
        return Tensor(y, parts[0].axes, nonnegative=nonnegative)


def _number_or_list(values: np.ndarray) -> Any:
    return float(values[0]) if len(values) == 1 else [float(v) for v in values]


def _text(shape: Sequence[Any]) -> str:
    return "(" + ", ".join(str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
