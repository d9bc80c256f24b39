r"""Norms of contractions of a tensor with a constant one: ``einsum``, ``matmul``, ``dot``.

The letters of an equation such as ``ab...c,ce->ab...e`` fall into kinds. A letter of the tensor
alone that stays is copied, one that goes is summed. A letter of both that goes is contracted; one
that stays selects a matrix of its own. What is left is a block-diagonal matrix, whose norm is that
of the largest block.
"""

from __future__ import annotations

import math

import numpy as np

from dynzoo import spectral
from dynzoo.certificates.rules.linear import Shape

__all__ = ["contraction_gain", "split_equation"]

_SPARE = "ZYXWVUTSRQPONMLKJIHGFEDCBA"


def split_equation(equation: str, rank: int) -> tuple[str, str, str]:
    """Letters of the tensor, the constant and the output; an ellipsis becomes spare letters.

    Raises:
        ValueError: if the equation is not of the form that is understood, or touches the batch
            axis, which must be the first of the tensor and of the output.
    """
    if equation.count("->") != 1 or equation.count(",") != 1:
        raise ValueError(f"the equation {equation!r} is not of the form 'x,w->y'")
    equation = equation.replace(" ", "")
    tensor, constant, output = equation.replace("->", ",").split(",")
    if "..." in constant:
        raise ValueError(f"the constant of the equation {equation!r} has an ellipsis")
    spare = rank - len(tensor.replace("...", ""))
    letters = [c for c in _SPARE if c not in equation][: max(spare, 0)]
    tensor, output = (part.replace("...", "".join(letters)) for part in (tensor, output))
    for part in (tensor, constant, output):
        if len(set(part)) != len(part) or not part.isalpha():
            raise ValueError(f"the equation {equation!r} repeats a letter or is not of letters")
    if len(tensor) != rank or not set(output) <= set(tensor) | set(constant):
        raise ValueError(f"the equation {equation!r} does not fit an input of rank {rank}")
    batch = tensor[0]
    if batch in constant or output[:1] != batch:
        raise ValueError(f"the equation {equation!r} does not leave the batch axis alone")
    return tensor, constant, output


def contraction_gain(equation: str, shape: Shape, constant: np.ndarray) -> float:
    """Exact norm of a contraction with a constant, on one example.

    Raises:
        ValueError: as ``split_equation``.
    """
    tensor, letters, output = split_equation(equation, len(shape))
    sizes = {c: int(n or 1) for c, n in zip(tensor[1:], shape[1:], strict=True)}
    summed = math.prod(sizes[c] for c in tensor[1:] if c not in letters and c not in output)
    blocks = [c for c in letters if c in tensor and c in output]
    contracted = [c for c in letters if c in tensor and c not in output]
    made = [c for c in letters if c not in tensor and c in output]
    if not set(letters) <= {*blocks, *contracted, *made}:
        raise ValueError(f"the equation {equation!r} sums the constant by itself")
    for i, c in enumerate(letters):
        # A kernel axis of size 1 is not spread by every backend alike.
        if c in sizes and sizes[c] != constant.shape[i]:
            raise ValueError(f"the equation {equation!r} spreads the letter {c!r}")
    matrix = constant.transpose([letters.index(c) for c in (*blocks, *contracted, *made)])
    inner = math.prod(sizes[c] for c in contracted)
    count = math.prod(sizes[c] for c in blocks)
    matrices = matrix.reshape(count, inner, -1)
    norm = max(spectral.dense_norm_float64(block) for block in matrices)
    return norm * math.sqrt(summed) * (1 + 1e-14)
