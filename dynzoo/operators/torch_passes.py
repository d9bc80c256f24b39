"""Two passes of training on PyTorch with gradients written by hand, which move less memory.

PyTorch differentiates a gradient step and a sort operation by operation, and each operation is one
more walk through images that no cache holds. Here the additions of a step are part of its products,
and images are sorted and shifted a few at a time, while they are in the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from dynzoo import backend

__all__ = ["maxmin_shift", "relu_step", "suits"]

# Bytes of images that are sorted together: of the sizes of the caches of a core.
_BLOCK = 1 << 21


def suits(*tensors: Any) -> bool:
    """Whether these are float32 tensors of PyTorch, of which one asks for a gradient.

    Not for the gradients of attacks, which are recorded operation by operation and compared bit by
    bit (``dynzoo.inference.recorded``).
    """
    if backend.name() != "torch" or backend.takes_input_gradient():
        return False
    import torch

    if not all(isinstance(t, torch.Tensor) and t.dtype == torch.float32 for t in tensors):
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return differentiated and not torch.is_autocast_enabled(tensors[0].device.type)


def relu_step(x: Any, kernel: Any, bias: Any, scale: float) -> Any:
    r"""$x + s\,\mathrm{relu}(xK + b)K^T$.

    Args:
        x: (rows, channels).
        kernel: K, (channels, units).
        bias: b, (units,), or ``None``.
        scale: s.
    """
    return _functions()[0].apply(x, kernel, bias, scale)


def maxmin_shift(x: Any, moved: int, moves: tuple[tuple[int, int], ...]) -> Any:
    """Sorts channel i against i + C/2, then moves the last groups of channels, circularly.

    Args:
        x: images (batch, height, width, channels); any shape where nothing moves.
        moved: channels of a group; all groups together are at most half of the channels.
        moves: axis and sign of each group.
    """
    return _functions()[1].apply(x, moved, moves)


def _pieces(
    shape: Any, moved: int, moves: tuple[tuple[int, int], ...]
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Where the parts of the smaller halves go, and where they are taken from."""
    still = shape[-1] - moved * len(moves)
    if still:
        place = (slice(None),) * (len(shape) - 1) + (slice(still),)
        yield place, place
    for k, (axis, sign) in enumerate(moves if moved else ()):
        last = shape[axis] - 1
        for far, near in ((slice(1, None), slice(last)), (slice(1), slice(last, None))):
            places = []
            for part in (far, near) if sign > 0 else (near, far):
                cut = [slice(None)] * len(shape)
                cut[axis] = part
                cut[-1] = slice(still + k * moved, still + (k + 1) * moved)
                places.append(tuple(cut))
            yield places[0], places[1]


@functools.cache
def _functions() -> tuple[Any, Any]:
    import torch

    threshold = torch.ops.aten.threshold_backward

    class ReluStep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, kernel: Any, bias: Any, scale: float) -> Any:
            inner = torch.mm(x, kernel) if bias is None else torch.addmm(bias, x, kernel)
            inner = inner.relu_()
            ctx.save_for_backward(x, kernel, bias, inner)
            ctx.scale = scale
            return torch.addmm(x, inner, kernel.t(), alpha=scale)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            (g,), scale = gradients, ctx.scale
            x, kernel, bias, inner = ctx.saved_tensors
            if torch.is_grad_enabled():  # this gradient is to be differentiated in turn
                inner = torch.relu(x @ kernel if bias is None else x @ kernel + bias)
            inner_g = threshold(torch.mm(g, kernel * scale), inner, 0)
            x_g = torch.addmm(g, inner_g, kernel.t()) if ctx.needs_input_grad[0] else None
            kernel_g = bias_g = None
            if ctx.needs_input_grad[1]:
                kernel_g = torch.addmm(torch.mm(x.t(), inner_g), g.t(), inner, alpha=scale)
            if ctx.needs_input_grad[2]:
                bias_g = inner_g.sum(0)
            return x_g, kernel_g, bias_g, None

    def blocks(*tensors: Any) -> Any:
        """The same few images of each tensor, so that they stay in the cache."""
        first = tensors[0]
        size = first[:1].numel() * first.element_size()
        if first.is_cuda or not size:
            return [tensors]
        return zip(*(t.split(max(1, _BLOCK // size)) for t in tensors), strict=True)

    class MaxMinShift(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, moved: int, moves: Any) -> Any:
            half = x.shape[-1] // 2
            out, excess = torch.empty_like(x), torch.empty_like(x[..., :half])
            pieces = list(_pieces(excess.shape, moved, moves))
            for x_, out_, excess_ in blocks(x, out, excess):
                a, b = x_[..., :half], x_[..., half:]
                torch.sub(b, a, out=excess_).relu_()
                torch.add(a, excess_, out=out_[..., :half])
                smaller, low = torch.sub(b, excess_), out_[..., half:]
                for go, come in pieces:
                    low[go].copy_(smaller[come])
            ctx.save_for_backward(excess)
            ctx.pieces = pieces
            return out

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            (g,), (excess,) = gradients, ctx.saved_tensors
            return Unsort.apply(g, excess, ctx.pieces), None, None

    class Unsort(torch.autograd.Function):
        """The transposed permutation; what is linear is differentiated by its transpose."""

        @staticmethod
        def forward(ctx: Any, g: Any, excess: Any, pieces: Any) -> Any:
            half = excess.shape[-1]
            ctx.save_for_backward(excess)
            ctx.pieces = pieces
            result = torch.empty_like(g)
            for g_, excess_, result_ in blocks(g, excess, result):
                high, low, back = g_[..., :half], g_[..., half:], result_[..., half:]
                for go, come in pieces:
                    back[come].copy_(low[go])
                swapped = threshold(torch.sub(high, back), excess_, 0)
                torch.sub(high, swapped, out=result_[..., :half])
                back.add_(swapped)
            return result

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            (g,), (excess,) = gradients, ctx.saved_tensors
            half = excess.shape[-1]
            high, back = g[..., :half], g[..., half:]
            swapped = threshold(high - back, excess, 0)
            low, smaller = torch.empty_like(excess), back + swapped
            for go, come in ctx.pieces:
                low[go] = smaller[come]
            return torch.cat([high - swapped, low], dim=-1), None, None

    return ReluStep, MaxMinShift
