"""Convolutions on JAX whose kernel is larger than their image, as products of matrices.

XLA computes a 3x3 convolution of 2x2 images on a CPU at a twentieth to a hundredth of the speed at
which it multiplies matrices, and so the gradient of one that writes 2x2 images. Of so few pixels
the windows may as well be cut out one by one. What attacks and predictions ask of a model is
rewritten so, where it is traced; the user's model stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dynzoo import backend

__all__ = ["with_windows_cut_out"]

# Windows that are cut out at most, one for each pixel that is written: those of 4x4 images.
_MOST_WINDOWS = 16


def with_windows_cut_out(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, computed without convolutions whose kernel is larger than an image of theirs.

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
        # `function` is not called again: of a large model that takes seconds
        results = _computed(traced, jax.tree_util.tree_leaves(args))
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
    """Whether it is a convolution with a kernel larger than what it reads or writes."""
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
    smaller = map(min, read, written)
    larger = any(size < width for size, width in zip(smaller, window, strict=True))
    return larger and math.prod(written) <= _MOST_WINDOWS


def _computed(program: Any, inputs: Sequence[Any]) -> Sequence[Any]:
    """What a program returns, with products in the place of such convolutions."""
    from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

    jaxpr = program.jaxpr
    if not _has_small_images(jaxpr):
        return jaxpr_as_fun(program)(*inputs)
    values = dict(zip(jaxpr.constvars, program.consts, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))

    def value_of(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [value_of(atom) for atom in equation.invars]
        if _is_small(equation):
            results: Sequence[Any] = [_product(equation, *operands)]
        elif (inner := _inlined(equation)) and _has_small_images(inner.jaxpr):
            results = _computed(inner, operands)
        else:
            # as a program of its own: how a primitive is called differs between releases of JAX
            names = [atom for atom in equation.invars if not isinstance(atom, Literal)]
            alone = jaxpr.replace(
                constvars=[], invars=names, outvars=equation.outvars, eqns=[equation]
            )
            results = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*map(values.get, names))
        values |= dict(zip(equation.outvars, results, strict=True))
    return [value_of(atom) for atom in jaxpr.outvars]


def _product(equation: Any, image: Any, kernel: Any) -> Any:
    """The convolution of ``equation``: windows of the image, cut out, times the kernel."""
    import jax
    import jax.numpy as jnp

    parameters = equation.params
    numbers = parameters["dimension_numbers"]
    order = (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])
    image = jnp.transpose(image, order)  # channels last, as the kernel and what is written
    order = (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])
    kernel = jnp.transpose(kernel, order)
    order = (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])
    count, *written, outputs = (equation.outvars[0].aval.shape[axis] for axis in order)
    padding = [(0, 0, 0), *((*sides, 0) for sides in parameters["padding"]), (0, 0, 0)]
    image = jax.lax.pad(image, jnp.zeros((), image.dtype), padding)
    dilation = parameters["rhs_dilation"]
    reach = [d * (size - 1) + 1 for d, size in zip(dilation, kernel.shape, strict=False)]
    windows = []
    for pixel in np.ndindex(*written):
        start = [n * stride for n, stride in zip(pixel, parameters["window_strides"], strict=True)]
        end = [n + size for n, size in zip(start, reach, strict=True)]
        window = jax.lax.slice(
            image, (0, *start, 0), (count, *end, image.shape[-1]), (1, *dilation, 1)
        )
        windows.append(window.reshape(count, -1))
    result = jax.lax.dot_general(
        jnp.stack(windows, axis=1),
        kernel.reshape(-1, outputs),
        (((2,), (0,)), ((), ())),
        precision=parameters["precision"],
        preferred_element_type=parameters["preferred_element_type"],
    )
    return jnp.transpose(result.reshape(count, *written, outputs), np.argsort(order).tolist())
