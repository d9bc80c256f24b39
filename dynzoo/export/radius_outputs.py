r"""Label and certified radius as outputs of an exported graph, for servers without NumPy.

The radius is that of ``dynzoo.export.radii`` for the graph's own logits, computed in the graph's
floating-point numbers and rounded down: every constant is rounded in the direction that makes the
radius smaller, and each of its steps is shortened by $2^{-18}$, more than the few roundings of a
step and whatever order a runtime gives them. The image's distance from an anchor, a sum of n
squares, is made larger by $1 / (1 - n u)$ first, which no order of summation exceeds. So the
radius is never above the one in float64, and about $10^{-5}$ of it below.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from dynzoo.certificates.certificate import Certificate
from dynzoo.certificates.rounding.bound import KINDS, rounding_kinds

__all__ = ["OUTPUTS", "with_radii"]

OUTPUTS = ("logits", "labels", "radii")
# 64 units of float32; a step makes three or four roundings.
_SLACK = 2.0**-18
# More than what underflows.
_TINY = 1e-30
# A radius above this is rounded down to it: a quotient that overflows is no bound.
_FARTHEST = 1e30


def with_radii(
    graph: keras.Model, certificate: Certificate, rounding: str | None = None
) -> keras.Model:
    r"""The graph with the outputs logits (n, K), labels (n,) int32 and radii (n,).

    Guarantee: a radius is not above that of ``dynzoo.export.radii`` for the same logits and images,
    wherever the graph is computed in its own floating-point type, and 0 where a logit is not
    finite.

    Args:
        graph: from images to logits.
        certificate: of the model that the graph was made from.
        rounding: what is assumed of roundings, as in ``Certificate.radii``.

    Returns:
        A Functional model of the same input.

    Raises:
        ValueError: for another ``rounding``, and for images of so many numbers that the sum of
            their squares says nothing.
    """
    kinds = rounding_kinds(rounding or certificate.assumed)
    images, logits = graph.inputs[0], graph.outputs[0]
    dtype = keras.backend.standardize_dtype(logits.dtype)
    growth = _growth(math.prod(images.shape[1:]), dtype)
    bound = certificate.rounding_bound

    finite = ops.abs(logits) <= float(np.finfo(dtype).max)
    known = ops.min(ops.where(finite, 1.0, 0.0), axis=1, keepdims=True) > 0.5
    z = ops.where(known, logits, 0.0)
    # `argmax` is no built-in operation of every runtime.
    top, classes = ops.max(z, axis=1, keepdims=True), np.arange(z.shape[1], dtype=dtype)
    places = ops.where(z >= top, classes, float(z.shape[1]))
    labels = ops.min(places, axis=1, keepdims=True)
    own = ops.equal(labels, classes)
    whole = ops.squeeze(ops.cast(labels, "int32"), axis=1)
    distances = ops.take(_up(certificate.pair_distances, dtype), whole, axis=0)
    margins = ops.multiply(ops.subtract(top, z), 1.0 - _SLACK)

    best = None
    for k, anchor in enumerate(bound.anchors.tolist()):
        s = ops.multiply(_distance(ops.cast(images, dtype), anchor), growth) + _TINY
        peak, peak_growth = (float(v) for v in bound.peak[:, k])
        largest = bound.arithmetic.largest * (1.0 - _SLACK)
        room = ops.subtract(largest - _more(peak), ops.multiply(s, _more(peak_growth)))
        reach = ops.divide(ops.maximum(room, 0.0), _more(peak_growth))
        for kind in kinds:
            (a, b), (c, d) = bound.body[kind][:, k], bound.head[kind][:, k]
            f, root = KINDS[kind], math.sqrt(2.0)
            body = ops.add(ops.multiply(s, _more(f * b)), _more(f * a))
            head = ops.add(ops.multiply(s, _more(f * root * d)), _more(f * root * c))
            error = ops.add(ops.multiply(distances, body), head)
            speed = ops.multiply(distances, _more(certificate.body_lipschitz + b)) + _more(root * d)
            lead = ops.subtract(margins, error)
            limit = ops.divide(ops.multiply(ops.maximum(lead, 0.0), 1.0 - _SLACK), speed)
            # What is not a number is compared as no lead.
            limit = ops.where(lead > 0.0, limit, 0.0)
            limit = ops.where(own, _FARTHEST, ops.minimum(limit, _FARTHEST))
            radius = ops.minimum(ops.min(limit, axis=1, keepdims=True), reach)
            radius = ops.where(radius > 0.0, radius, 0.0)
            best = radius if best is None else ops.maximum(best, radius)
    radii = ops.squeeze(ops.where(known, best, 0.0), axis=1)
    return keras.Model(graph.inputs[0], [logits, whole, radii], name=graph.name)


def _distance(images: Any, anchor: float) -> Any:
    """L2 distance (n, 1) of each image from a constant one, as computed."""
    moved = ops.subtract(images, anchor)
    axes = tuple(range(1, len(images.shape)))
    squares = ops.sum(ops.multiply(moved, moved), axis=axes)
    return ops.expand_dims(ops.sqrt(squares), axis=1)


def _growth(entries: int, dtype: str) -> float:
    """What a computed distance is multiplied by to be no shorter than the true one."""
    lost = (entries + 8) * float(np.finfo(dtype).eps)
    if lost > 0.5:
        raise ValueError(
            f"`radii` must be asked for images of fewer numbers: the sum of {entries:,} squares in "
            f"{dtype} may be off by half. Compute them with `dynzoo.export.radii`."
        )
    return (1.0 + _SLACK) / (1.0 - lost)


def _more(number: float) -> float:
    """A constant of an error or a speed, with what the steps after it round away."""
    return float(number) * (1.0 + _SLACK) + _TINY


def _up(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """The array in another type, no entry smaller."""
    rounded = numbers.astype(dtype)
    return np.where(rounded < numbers, np.nextafter(rounded, np.asarray(np.inf, dtype)), rounded)
