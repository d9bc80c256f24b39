"""Convolutions on JAX whose kernel is larger than their image, as products of matrices.

XLA computes a 3x3 convolution of 2x2 images on a CPU at a twentieth to a hundredth of the speed at
which it multiplies matrices. Such an image has few pixels, each of which reaches all others: the
convolution is a dense product for each pixel of its result. What attacks and predictions ask of a
model is rewritten so, where it is traced; the user's model stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dynzoo import backend

__all__ = ["with_dense_convolutions"]

# Pairs of a pixel read and a pixel written up to which the dense product is made: the pixels of
# 4x4 images, more than which no kernel of use is larger than.
_MOST_PAIRS = 256


def with_dense_convolutions(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, computed without convolutions whose kernel is larger than their image.

    The sums are the same, in another order. It is ``function`` itself on other backends and on
    accelerators.

    Args:
        function: pure function of tensors.
    """
    if backend.name() != "jax" or backend.accelerator() is not None:
        return function
    import jax

    def rewritten(*args: Any) -> Any:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        if not _has_small_images(traced.jaxpr):
            return function(*args)
        results = _computed(traced.jaxpr, traced.consts, jax.tree_util.tree_leaves(args))
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(shapes), results)

    return rewritten


def _has_small_images(jaxpr: Any) -> bool:
    return any(
        _has_small_images(inner.jaxpr) if (inner := _inlined(equation)) else _is_small(equation)
        for equation in jaxpr.eqns
    )


def _inlined(equation: Any) -> Any:
    """The program that an equation calls by name, such as that of a function with ``jax.jit``."""
    return equation.params["jaxpr"] if equation.primitive.name in ("jit", "pjit") else None


def _is_small(equation: Any) -> bool:
    """Whether it is a convolution with a kernel larger than its image, in some direction."""
    if equation.primitive.name != "conv_general_dilated":
        return False
    parameters = equation.params
    if parameters["feature_group_count"] != 1 or parameters["batch_group_count"] != 1:
        return False
    if any(factor != 1 for factor in parameters["lhs_dilation"]):
        return False
    image, kernel = (variable.aval.shape for variable in equation.invars)
    numbers = parameters["dimension_numbers"]
    read = [image[axis] for axis in numbers.lhs_spec[2:]]
    written = [equation.outvars[0].aval.shape[axis] for axis in numbers.out_spec[2:]]
    window = [kernel[axis] for axis in numbers.rhs_spec[2:]]
    larger = any(size < width for size, width in zip(read, window, strict=True))
    return larger and 0 < math.prod(read) * math.prod(written) <= _MOST_PAIRS


def _computed(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """What a program returns, with dense products in the place of such convolutions."""
    from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))

    def value_of(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [value_of(atom) for atom in equation.invars]
        inner = _inlined(equation)
        if _is_small(equation):
            results = [_dense(*operands, equation)]
        elif inner and _has_small_images(inner.jaxpr):
            results = _computed(inner.jaxpr, inner.consts, operands)
        else:
            # as a program of its own: how a primitive is called differs between releases of JAX
            names = [atom for atom in equation.invars if not isinstance(atom, Literal)]
            program = jaxpr.replace(
                constvars=[], invars=names, outvars=equation.outvars, eqns=[equation]
            )
            results = jaxpr_as_fun(ClosedJaxpr(program, ()))(*map(values.get, names))
        values |= dict(zip(equation.outvars, results, strict=True))
    return [value_of(atom) for atom in jaxpr.outvars]


def _dense(image: Any, kernel: Any, equation: Any) -> Any:
    """The convolution of ``equation`` as one product for each pixel that is written."""
    import jax
    import jax.numpy as jnp

    parameters = equation.params
    numbers = parameters["dimension_numbers"]
    # (images, pixels, channels) and (offsets, channels, results), with zeros as one more offset
    image = jnp.transpose(image, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    read = image.shape[1:-1]
    image = image.reshape(image.shape[0], -1)
    kernel = jnp.transpose(
        kernel, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])
    )
    window, (channels, outputs) = kernel.shape[:-2], kernel.shape[-2:]
    kernel = kernel.reshape(-1, channels, outputs)
    kernel = jnp.concatenate([kernel, jnp.zeros_like(kernel[:1])])
    shape = equation.outvars[0].aval.shape
    written = [shape[axis] for axis in numbers.out_spec[2:]]
    offsets = _offsets(read, written, window, parameters)
    pixels = [
        jax.lax.dot(
            image,
            kernel[row].reshape(-1, outputs),
            precision=parameters["precision"],
            preferred_element_type=parameters["preferred_element_type"],
        )
        for row in offsets
    ]
    result = jnp.stack(pixels, axis=1).reshape(-1, *written, outputs)
    order = np.argsort((numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1]))
    return jnp.transpose(result, order)


def _offsets(read: Any, written: Any, window: Any, parameters: Any) -> np.ndarray:
    """Which entry of the kernel, flattened, meets each pair (pixel written, pixel read).

    It is one more than the last where none does. In each direction the result at $o$ is
    $\\sum_k w_k x_{so + dk - p}$ with stride $s$, dilation $d$ and padding $p$ before the image.
    """
    found, missing = np.zeros((1, 1), int), np.zeros((1, 1), bool)
    steps = zip(
        *(parameters[name] for name in ("window_strides", "rhs_dilation", "padding")), strict=True
    )
    for axis, (stride, dilation, (before, _)) in enumerate(steps):
        first = stride * np.arange(written[axis])[:, None] - before
        entry, rest = np.divmod(np.arange(read[axis]) - first, dilation)
        outside = (rest != 0) | (entry < 0) | (entry >= window[axis])
        # one more direction; pixels are numbered as they lie in memory, the last direction fastest
        shape = (found.shape[0] * len(entry), -1)
        found = (found[:, None, :, None] * window[axis] + entry[:, None]).reshape(shape)
        missing = (missing[:, None, :, None] | outside[:, None]).reshape(shape)
    return np.where(missing, math.prod(window), found)
