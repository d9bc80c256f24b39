"""Widening a trained network without changing what it computes."""

from __future__ import annotations

import keras
import numpy as np

from dynzoo import layers as dl
from dynzoo import operators
from dynzoo.operators.shift import shift_float64

__all__ = ["can_widen", "widen"]


def widen(source: keras.Model, target: keras.Model, seed: int = 0) -> None:
    r"""Set the weights of a wider model so that it computes the function of a trained one.

    The channels of the narrow network live on among those of the wide one, $x' = (x, v)$ up to
    their order, and its matrices become blocks: a gradient step with orthonormal rows $A$ turns
    into two that do not touch,

    $$A' = \begin{pmatrix} A & 0 \\ 0 & B \end{pmatrix}, \qquad
    x' \leftarrow \big(x - 2A^T\sigma(Ax + b),\; v - 2B^T\sigma(Bv)\big),$$

    with random orthonormal rows $B$. A map that drops dimensions (between stages, or the neck)
    gives the new channels a random part of what it dropped, so that they carry a signal from the
    start. The head gives them weight 0. Training then finds out what to do with them. Where the
    number of classes differs, the head of the target stays as it is.

    Guarantee: the logits stay the same up to rounding, and each constraint holds in the wide model
    as it did in the narrow one.

    Args:
        source: a model of ``isometric_classifier`` with a matrix operator.
        target: another one, with the same layers but wider stages or a wider neck; its weights
            are replaced. The first stage keeps its width if it pads the input channels.
        seed: integer seed of the new directions.

    Raises:
        ValueError: if the two do not have the same layers in the same order, if a layer of the
            target other than the head is narrower, or if a kind of layer cannot be widened.

    Example:

    >>> from dynzoo.models import isometric_classifier, widen
    >>> small = isometric_classifier(widths=(16, 16), steps=(1, 1), neck_units=16, dense_steps=1)
    >>> large = isometric_classifier(widths=(16, 32), steps=(1, 1), neck_units=24, dense_steps=1)
    >>> widen(small, large)

    Reference: Chen, Goodfellow and Shlens, "Net2Net: accelerating learning via knowledge transfer",
    ICLR 2016, which duplicates channels instead; duplicates cannot be orthonormal.
    """
    pairs = list(zip(source.layers, target.layers, strict=False))
    if len(source.layers) != len(target.layers) or any(type(a) is not type(b) for a, b in pairs):
        raise ValueError(
            "`target` must have the same kinds of layers in the same order as `source`"
        )
    for small, large in pairs[:-1]:
        if _channels(large.output) < _channels(small.output):
            raise ValueError(
                "`target` must not be narrower than `source`. Received: "
                f"{_channels(large.output)} channels after {large.name}, "
                f"{_channels(small.output)} in `source`"
            )
    rng = np.random.default_rng(seed)
    fraction = _shift_fraction(source)
    weights = []
    # Where each channel of the narrow network lies in the wide one, at the present layer.
    place = np.arange(source.input_shape[-1])
    for small, large in pairs:
        place, new = _widen_layer(small, large, place, fraction, rng)
        if new is not None:
            weights.append((large, new))
    # Nothing is set before everything is known to fit.
    for layer, new in weights:
        layer.set_weights([array.astype("float32") for array in new])


def can_widen(source: keras.Model, target: keras.Model) -> bool:
    """Whether two models have the same layers, of other widths, and ``widen`` knows all of them."""

    def known(layer):
        flow = isinstance(layer, dl.GradientFlow)
        matrix = flow and isinstance(layer.operator, operators.MatrixOperator)
        return not layer.weights or matrix or isinstance(layer, _WIDENED)

    pairs = list(zip(source.layers, target.layers, strict=False))
    return (
        len(source.layers) == len(target.layers)
        and all(type(a) is type(b) and known(a) and known(b) for a, b in pairs)
        and any(_channels(a.output) != _channels(b.output) for a, b in pairs[:-1])
    )


_WIDENED = (dl.PositionOffset, dl.OrthonormalDense, dl.UnitRowDense)


def _channels(tensor) -> int:
    return int(tensor.shape[-1])


def _shift_fraction(model) -> float:
    parts = [p for layer in model.layers for p in (layer, getattr(layer, "operator", None))]
    return next((float(p.fraction) for p in parts if p is not None and hasattr(p, "fraction")), 1.0)


def _widen_layer(small, large, place, fraction, rng):
    """Places of the channels after a layer, and the weights of its wide form, if it gets any."""
    shapes = [tuple(weight.shape) for weight in large.weights]
    old = [np.asarray(weight, dtype=np.float64) for weight in small.get_weights()]
    if isinstance(small, keras.layers.InputLayer):
        return place, []
    width = _channels(large.input)
    if isinstance(small, dl.SpaceToDepth):
        blocks = large.block_size**2
        return np.concatenate([place + block * width for block in range(blocks)]), []
    if isinstance(small, keras.layers.Flatten):
        pixels = int(np.prod(large.input.shape[1:-1]))
        return np.concatenate([place + pixel * width for pixel in range(pixels)]), []
    if isinstance(small, dl.ChannelPadding):
        if small.channels != large.channels:
            raise ValueError(
                "`target` must keep the width of a stage that pads its input. Received: "
                f"{large.channels} channels, {small.channels} in `source`"
            )
        return np.arange(small.channels), []
    if isinstance(small, dl.PositionOffset):
        offset = np.zeros(shapes[0])
        offset[..., place] = old[0]
        return place, [offset]
    if isinstance(small, dl.OrthonormalDense) and not small.use_bias:
        # Features after the neck are sorted in pairs, but not shifted.
        groups = fraction if isinstance(small, dl.OrthonormalPointwise) else 0.0
        following = _following(_channels(small.output), _channels(large.output), groups)
        return following, [_embed(old[0], place, following, shapes[0], False, rng)]
    if isinstance(small, dl.UnitRowDense):
        if small.units != large.units:
            return np.arange(large.units), None
        kernel = np.zeros(shapes[0])
        kernel[place] = old[0]
        return np.arange(small.units), [kernel, *old[1:]]
    if isinstance(small, dl.GradientFlow) and isinstance(small.operator, operators.MatrixOperator):
        return place, _widen_flow(old, shapes, place, rng)
    if not shapes:
        return place, []
    raise ValueError(f"`source` must be made of layers that can be widened. Received: {small.name}")


def _widen_flow(old, shapes, place, rng):
    new = []
    for array, shape in zip(old, shapes, strict=True):
        inner = np.arange(array.shape[-1])
        if len(shape) == 2:
            new.append(_embed(array, place, inner, shape, True, rng))
        else:
            wide = np.zeros(shape)
            wide[inner] = array
            new.append(wide)
    return new


def _embed(kernel, rows, columns, shape, apart, rng):
    """A wide matrix with orthonormal columns (or rows, if these are fewer) around a narrow one.

    ``apart``: the new columns must not touch the old rows.
    """
    wide = np.zeros(shape)
    wide[np.ix_(rows, columns)] = kernel
    fresh = np.setdiff1d(np.arange(shape[1]), columns)
    allowed = np.setdiff1d(np.arange(shape[0]), rows) if apart else np.arange(shape[0])
    # A basis of what the old columns leave free of the allowed rows.
    basis, values, _ = np.linalg.svd(wide[np.ix_(allowed, columns)], full_matrices=True)
    free = basis[:, int((values > 0.5).sum()) :]
    random = rng.standard_normal((free.shape[1], len(fresh)))
    left, _, right = np.linalg.svd(random, full_matrices=False)
    wide[np.ix_(allowed, fresh)] = free @ (left @ right)
    return wide


def _following(before, after, fraction):
    """Places of a stage's channels that keep pairs of MaxMin and groups of shifts together."""
    if before == after:
        return np.arange(before)
    free: dict = {}
    for channel, kind in enumerate(_kinds(after, fraction)):
        free.setdefault(kind, []).append(channel)
    first = []
    for kind in _kinds(before, fraction):
        if not free.get(kind):
            raise ValueError(
                "`target` must have room for each shift group of `source`. Received: "
                f"width {after} for width {before}"
            )
        first.append(free[kind].pop(0))
    return np.concatenate([first, np.array(first) + after // 2])


def _kinds(width, fraction):
    """For each channel of the first half: how it is shifted, and how its partner is."""
    # A pixel moves to one of five places: its channel's group can be read off there.
    image = np.zeros((1, 3, 3, width))
    image[0, 1, 1] = 1.0
    moved = shift_float64(image, False, "circular", fraction).reshape(9, width).argmax(axis=0)
    half = width // 2
    return list(zip(moved[:half].tolist(), moved[half : 2 * half].tolist(), strict=True))
