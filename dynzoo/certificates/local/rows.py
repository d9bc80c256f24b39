r"""Rows on their way back through a model: vectors g that $\langle g, \cdot\rangle$ is bounded for.

A row of a unit of a convolution is nonzero in its window alone, so that is all that is kept: a pass
back for each of 2,048 units of a small network then costs a thirtieth of that with whole images.
Rows come in groups, those of one image and one window; arrays are (window..., groups, rows), which
leaves long runs of memory to add and multiply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dynzoo.certificates.local.ops import Affine, Window

__all__ = ["Rows", "added", "pulled_back", "pushed", "unit_rows"]

Array = np.ndarray
Shape = tuple[int, ...]


@dataclass
class Rows:
    """Vectors on a slot.

    Attributes:
        values: (window..., P, Q): Q rows for each of P groups.
        image: (P,), which image of the batch a group belongs to.
        origin: (P, 2), place of the window's first pixel, which may lie outside of the image;
            ``None`` if the window is the whole slot.
        shape: of the slot.
    """

    values: Array
    image: Array
    origin: Array | None
    shape: Shape

    def patches(self, field: Array, fill: float = 0.0) -> Array:
        """What a field (n, *shape) has in the windows: (window..., P, 1); ``fill`` outside."""
        if self.origin is None:
            found = np.moveaxis(field[self.image], 0, -1)
            return found[..., None]
        y, x, inside = self._places()
        y, x = np.clip(y, 0, self.shape[0] - 1), np.clip(x, 0, self.shape[1] - 1)
        found = field[self.image, y[:, None], x[None, :]]
        if not inside.all():
            found = np.where(inside[..., None], found, fill)
        return np.ascontiguousarray(np.moveaxis(found, -1, 2))[..., None]

    def without_outside(self) -> Rows:
        """Rows that are 0 outside of the image: nothing can move there."""
        if self.origin is None:
            return self
        _, _, inside = self._places()
        partly = np.flatnonzero(~inside.all(axis=(0, 1)))
        if len(partly):
            kept = inside[..., partly][:, :, None, :, None]
            self.values[..., partly, :] = np.where(kept, self.values[..., partly, :], 0.0)
        return self

    def whole(self) -> Rows:
        """The same rows on the whole slot."""
        if self.origin is None:
            return self
        height, width, _ = self.shape
        rows, columns = self.values.shape[:2]
        *_, groups, many = self.values.shape
        full = np.zeros((*self.shape, groups, many))
        for p, (top, left) in enumerate(self.origin):
            first, begin = max(0, top), max(0, left)
            last, end = min(height, top + rows), min(width, left + columns)
            if last > first and end > begin:
                part = self.values[first - top : last - top, begin - left : end - left, :, p]
                full[first:last, begin:end, :, p] = part
        return Rows(full, self.image, None, self.shape)

    def norms(self, order: float) -> Array:
        """L1 or L2 norm (P, Q) of each row."""
        flat = self.values.reshape(-1, *self.values.shape[-2:])
        if order == 1:
            return np.abs(flat).sum(axis=0)
        return np.sqrt(np.einsum("kpq,kpq->pq", flat, flat))

    def total(self, weights: Array) -> Array:
        """Sum over the window (P, Q) of the values, each times what ``patches`` gave."""
        flat = self.values.reshape(-1, *self.values.shape[-2:])
        return np.einsum("kpq,kp->pq", flat, weights.reshape(len(flat), -1))

    def with_values(self, values: Array) -> Rows:
        return Rows(values, self.image, self.origin, self.shape)

    def _places(self) -> tuple[Array, Array, Array]:
        """Rows (h, P) and columns (w, P) of the windows, and which pixels (h, w, P) there are."""
        assert self.origin is not None
        y = np.arange(self.values.shape[0])[:, None] + self.origin[:, 0]
        x = np.arange(self.values.shape[1])[:, None] + self.origin[:, 1]
        tall, wide = (y >= 0) & (y < self.shape[0]), (x >= 0) & (x < self.shape[1])
        return y, x, tall[:, None] & wide[None, :]


def unit_rows(shape: Shape, images: Array, positions: Array, units: Array) -> Rows:
    """A row for each unit of a slot.

    Args:
        shape: of the slot.
        images: (P,).
        positions: (P, 2) pixels whose channels are the units; not looked at for other shapes than
            (height, width, channels).
        units: (Q,) channels, or numbers of the units of a slot of another shape.
    """
    size = shape[-1] if len(shape) == 3 else math.prod(shape)
    values = np.zeros((size, len(images), len(units)))
    values[units, :, np.arange(len(units))] = 1.0
    if len(shape) == 3:
        return Rows(values[None, None], images, positions, shape)
    return Rows(values.reshape(*shape, len(images), len(units)), images, None, shape)


def added(first: Rows, second: Rows) -> Rows:
    """The sum of two sets of rows of the same groups, where branches part."""
    if first.origin is None or second.origin is None:
        first, second = first.whole(), second.whole()
        return first.with_values(first.values + second.values)
    offset = second.origin - first.origin
    if not (offset == offset[:1]).all():
        return added(first.whole(), second.whole())
    shift = offset[0] if len(offset) else np.zeros(2, int)
    low = np.minimum(0, shift)
    ends = [np.array(r.values.shape[:2]) for r in (first, second)]
    size = np.maximum(ends[0], ends[1] + shift) - low
    values = np.zeros((*size, *first.values.shape[2:]))
    for start, end, rows in ((-low, ends[0], first), (shift - low, ends[1], second)):
        values[start[0] : start[0] + end[0], start[1] : start[1] + end[1]] += rows.values
    return Rows(values, first.image, first.origin + low, first.shape)


def pulled_back(op: Affine, rows: Rows, shape: Shape) -> Rows:
    """The rows on the input, of that shape, of an affine map."""
    if op.window is not None:
        return _through_window(op.window, rows, shape)
    if op.scale is not None:
        field = np.broadcast_to(op.scale, shape)[None]
        one = Rows(rows.values, np.zeros_like(rows.image), rows.origin, rows.shape)
        return Rows(rows.values * one.patches(field), rows.image, rows.origin, shape)
    rows = rows.whole()
    *outer, groups, many = rows.values.shape
    if op.kernel is not None and len(outer) == 1:
        values = op.kernel @ rows.values.reshape(len(rows.values), -1)
        return Rows(values.reshape(*shape, groups, many), rows.image, None, shape)
    flat = np.moveaxis(rows.values.reshape(*outer, -1), -1, 0)
    values = np.moveaxis(op.adjoint(flat), 0, -1)
    return Rows(values.reshape(*shape, groups, many), rows.image, None, shape)


def pushed(op: Affine, moved: Array) -> Array:
    """Movements (input shape..., P, Q) after an affine map: the adjoint of ``pulled_back``."""
    *inner, groups, many = moved.shape
    if op.window is not None:
        return _correlated(op.window, moved)
    if op.scale is not None:
        return moved * np.broadcast_to(op.scale, inner)[..., None, None]
    if op.kernel is not None and len(inner) == 1:
        values = op.kernel.T @ moved.reshape(len(moved), -1)
        return values.reshape(-1, groups, many)
    flat = np.moveaxis(moved.reshape(*inner, -1), -1, 0)
    values = op.forward(flat) - op.forward(np.zeros((1, *inner)))
    return np.moveaxis(values, 0, -1).reshape(*values.shape[1:], groups, many)


def _correlated(window: Window, moved: Array) -> Array:
    (down, across), kernel, groups = window.axes, window.kernel, window.groups
    *size, channels, p, q = moved.shape
    taps, more, depth, filters = kernel.shape
    pads, spans = [], []
    for n, axis, count in ((size[0], down, taps), (size[1], across, more)):
        span = (axis.outputs - 1) * axis.stride + (count - 1) * axis.dilation + 1
        pads.append((max(axis.before, 0), max(span - max(axis.before, 0) - n, 0)))
        spans.append(max(-axis.before, 0))
    image = np.pad(moved, (*pads, (0, 0), (0, 0), (0, 0)))[spans[0] :, spans[1] :]
    image = image.reshape(*image.shape[:2], groups, depth, p * q)
    split = kernel.reshape(taps, more, depth, groups, filters // groups).transpose(0, 1, 3, 4, 2)
    out = np.zeros((down.outputs, across.outputs, groups, filters // groups, p * q))
    for a, b in np.ndindex(taps, more):
        y, x = a * down.dilation, b * across.dilation
        end = y + (down.outputs - 1) * down.stride + 1, x + (across.outputs - 1) * across.stride + 1
        out += np.matmul(split[a, b], image[y : end[0] : down.stride, x : end[1] : across.stride])
    return out.reshape(*out.shape[:2], filters, p, q)


def _through_window(window: Window, rows: Rows, shape: Shape) -> Rows:
    values = _spread_out(window, rows.values)
    strides = np.array([axis.stride for axis in window.axes])
    before = np.array([axis.before for axis in window.axes])
    size = np.array(values.shape[:2])
    if rows.origin is not None:
        found = Rows(values, rows.image, rows.origin * strides - before, shape).without_outside()
        # A window as large as the image is the image.
        return found.whole() if (size >= shape[:2]).all() else found
    first = np.maximum(before, 0)
    last = np.minimum(before + np.array(shape[:2]), size)
    kept = values[first[0] : last[0], first[1] : last[1]]
    if kept.shape[:2] == tuple(shape[:2]):
        return Rows(kept, rows.image, None, shape)
    # Pixels at the end that no window reaches, or at the start with a negative offset.
    full = np.zeros((*shape, *values.shape[-2:]))
    top, left = first - before
    full[top : top + kept.shape[0], left : left + kept.shape[1]] = kept
    return Rows(full, rows.image, None, shape)


def _spread_out(window: Window, values: Array) -> Array:
    """The adjoint of a convolution without any border: (h, w, C, P, Q) onto a larger window."""
    (down, across), kernel, groups = window.axes, window.kernel, window.groups
    height, width, channels, p, q = values.shape
    taps, more, depth, _ = kernel.shape
    parts = values.reshape(height, width, groups, channels // groups, p * q)
    split = kernel.reshape(taps * more * depth, groups, channels // groups).transpose(1, 0, 2)
    columns = np.matmul(split, parts).reshape(height, width, groups, taps, more, depth, p * q)
    out = np.zeros(
        (
            (height - 1) * down.stride + (taps - 1) * down.dilation + 1,
            (width - 1) * across.stride + (more - 1) * across.dilation + 1,
            groups,
            depth,
            p * q,
        )
    )
    for a, b in np.ndindex(taps, more):
        y, x = a * down.dilation, b * across.dilation
        end = y + (height - 1) * down.stride + 1, x + (width - 1) * across.stride + 1
        out[y : end[0] : down.stride, x : end[1] : across.stride] += columns[:, :, :, a, b]
    return out.reshape(*out.shape[:2], groups * depth, p, q)
