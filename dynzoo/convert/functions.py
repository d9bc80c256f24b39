"""PyTorch's functions and tensor methods: what each adds to the Keras network.

A function stands under its name in PyTorch and takes PyTorch's arguments after the network. Those
of constants alone never come here: they are computed by PyTorch when the network is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from dynzoo.convert import activations, windows
from dynzoo.convert.network import Network, Tensor

__all__ = ["BATCH", "FUNCTIONS", "array"]

kl = keras.layers


class _Batch:
    """The number of examples, which no network may depend on."""

    def __repr__(self) -> str:
        return "n"


BATCH = _Batch()


def array(value: Any) -> Any:
    """A constant of PyTorch, or a number, as float64; None stays None."""
    if value is None or isinstance(value, (int, float, np.ndarray)):
        return value
    return value.detach().cpu().double().numpy()


def _tuple(value: Any, length: int) -> tuple:
    return (
        (value,) * length
        if isinstance(value, (int, float)) or value is None
        else (tuple(value) if len(value) == length else tuple(value) * length)
    )


def _constant(net: Network, *values: Any) -> None:
    if any(isinstance(v, Tensor) for v in values):
        raise net.refuse("a weight of it depends on the input.")


# --- linear maps -----------------------------------------------------------------------------


def linear(net: Network, input: Tensor, weight: Any, bias: Any = None) -> Tensor:
    _constant(net, weight, bias)
    if not isinstance(input, Tensor):
        raise net.refuse("its weight depends on the input.")
    return net.dense(input, array(weight), array(bias))


def _matmul(net: Network, a: Any, b: Any) -> Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        raise net.refuse("it is a product of two tensors that depend on the input.")
    if isinstance(b, Tensor) or array(b).ndim != 2:
        raise net.refuse("only a product of a tensor with a constant matrix on its right is known.")
    return net.dense(a, array(b).T, None)


def _addmm(net: Network, bias: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    _constant(net, bias, b)
    return net.dense(a, alpha * array(b).T, beta * array(bias))


def _pads(net: Network, padding: Any, weight: np.ndarray, dilation: Sequence[int]) -> list:
    spatial = weight.ndim - 2
    if padding == "valid":
        return [(0, 0)] * spatial
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        return [(t // 2, t - t // 2) for t in totals]
    return [(int(p), int(p)) for p in _tuple(padding, spatial)]


def _conv(
    net: Network,
    input: Tensor,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    _constant(net, weight, bias)
    weight = array(weight)
    steps, wide = (_tuple(v, weight.ndim - 2) for v in (stride, dilation))
    pads = _pads(net, padding, weight, wide)
    geometry = windows.Geometry(steps, pads, wide, groups)
    return windows.conv(net, input, weight, array(bias), geometry)


def _conv_transpose(
    net: Network,
    input: Tensor,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    _constant(net, weight, bias)
    weight = array(weight)
    spatial = weight.ndim - 2
    steps, wide, more = (_tuple(v, spatial) for v in (stride, dilation, output_padding))
    pads = [(p, p) for p in _tuple(padding, spatial)]
    geometry = windows.Geometry(steps, pads, wide, groups, more)
    return windows.conv_transpose(net, input, weight, array(bias), geometry)


def _batch_norm(
    net: Network,
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    if training or running_mean is None:
        raise net.refuse("it normalises by the batch at hand; running statistics are needed.")
    return net.batch_normalization(
        input,
        array(weight),
        array(bias),
        array(running_mean),
        array(running_var),
        eps,
        0.99 if momentum is None else 1.0 - momentum,
    )


# --- arithmetic ------------------------------------------------------------------------------


def _sum(sign: float) -> Callable:
    def add(net: Network, a: Any, b: Any, *, alpha: Any = 1) -> Any:
        if alpha != 1:
            b = multiply(net, b, alpha)
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return net.join(kl.Add if sign > 0 else kl.Subtract, [a, b])
        if isinstance(a, Tensor):
            return net.scale_and_shift(a, 1.0, sign * array(b))
        return net.scale_and_shift(b, sign, array(a))

    return add


def multiply(net: Network, a: Any, b: Any) -> Any:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        raise net.refuse("it is a product of two tensors that depend on the input.")
    tensor, factor = (a, b) if isinstance(a, Tensor) else (b, a)
    if not isinstance(tensor, Tensor):
        raise net.refuse("it computes with the size of the batch.")
    return net.scale_and_shift(tensor, array(factor), 0.0)


def _divide(net: Network, a: Any, b: Any, *, rounding_mode: Any = None) -> Any:
    if isinstance(b, Tensor) or not isinstance(a, Tensor) or rounding_mode is not None:
        raise net.refuse("it divides by a tensor that depends on the input, or rounds.")
    with np.errstate(divide="ignore"):
        factor = 1.0 / np.asarray(array(b), np.float64)
    if not np.all(np.isfinite(factor)):
        raise net.refuse("it divides by 0.")
    return net.scale_and_shift(a, factor, 0.0)


def _negative(net: Network, input: Tensor) -> Tensor:
    return net.scale_and_shift(input, -1.0, 0.0)


def _largest(cls: type) -> Callable:
    def choose(net: Network, a: Any, b: Any = None) -> Tensor:
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            raise net.refuse("only the larger or smaller of two tensors is known.")
        return net.join(cls, [a, b])

    return choose


def _clamp(net: Network, input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    low = -math.inf if min is None else float(min)
    return activations.clip(net, input, low, math.inf if max is None else float(max))


def _absolute(net: Network, input: Tensor) -> Tensor:
    return Tensor(keras.ops.abs(input.keras), input.axes, input.order, True)


# --- axes ------------------------------------------------------------------------------------


def _flatten(net: Network, input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    first = net.axis(input, start_dim)
    last = int(end_dim) % input.rank
    shape = input.shape
    joined = math.prod(shape[first - 1 : last])
    return net.reshape(input, [*shape[: first - 1], joined, *shape[last:]])


def _view(net: Network, input: Tensor, *shape: Any) -> Tensor:
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    first, *inner = shape
    if BATCH in inner or not all(isinstance(n, int) for n in inner):
        raise net.refuse(f"it puts the batch elsewhere than first: {shape}.")
    if first is not BATCH and not (first == -1 and -1 not in inner):
        raise net.refuse(
            f"its first size must be that of the batch, such as x.shape[0] or -1; it is {first}."
        )
    return net.reshape(input, inner)


def _permute(net: Network, input: Tensor, *dims: Any) -> Tensor:
    given = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    return net.transpose(input, given)


def _transpose(net: Network, input: Tensor, dim0: int, dim1: int) -> Tensor:
    dims = list(range(input.rank))
    a, b = dim0 % input.rank, dim1 % input.rank
    dims[a], dims[b] = dims[b], dims[a]
    return net.transpose(input, dims)


def _squeeze(net: Network, input: Tensor, dim: Any = None) -> Tensor:
    if dim is None:
        raise net.refuse("it drops all axes of length 1, that of the batch maybe; name `dim`.")
    axes = {net.axis(input, d) for d in np.atleast_1d(dim)}
    kept = [n for a, n in enumerate(input.shape, 1) if not (a in axes and n == 1)]
    return net.reshape(input, kept)


def _unsqueeze(net: Network, input: Tensor, dim: int) -> Tensor:
    place = int(dim) % (input.rank + 1)
    if place == 0:
        raise net.refuse("it puts an axis before that of the batch.")
    shape = list(input.shape)
    return net.reshape(input, [*shape[: place - 1], 1, *shape[place - 1 :]])


def _over_pixels(name: str) -> Callable:
    """The mean, sum or largest value over all pixels of each channel."""

    def reduce(net: Network, input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
        axes = sorted(net.axis(input, d) for d in np.atleast_1d([] if dim is None else dim))
        if axes != list(range(2, input.rank)) or not axes:
            raise net.refuse(
                f"only the {name} over all pixels, such as x.{name}((2, 3)), is known."
            )
        pixels = math.prod(input.shape[1:])
        y = windows.adaptive_pool(net, input, (1,) * (input.rank - 2), name == "amax")
        if name == "sum":
            y = net.scale_and_shift(y, float(pixels), 0.0)
        return y if keepdim else net.reshape(y, [y.shape[0]])

    return reduce


def _cat(net: Network, tensors: Sequence[Any], dim: int = 0) -> Tensor:
    if not all(isinstance(t, Tensor) for t in tensors):
        raise net.refuse("it joins a tensor with a constant.")
    return net.concatenate(tensors, dim)


def _chunk(net: Network, input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    size = input.shape[net.axis(input, dim) - 1]
    return _split(net, input, -(-size // chunks), dim)


def _split(net: Network, tensor: Tensor, split_size_or_sections: Any, dim: int = 0) -> tuple:
    size = tensor.shape[net.axis(tensor, dim) - 1]
    each = split_size_or_sections
    sizes = [each] * -(-size // each) if isinstance(each, int) else list(each)
    ends = np.minimum(np.cumsum(sizes), size)
    starts = [0, *ends[:-1]]
    return tuple(net.part(tensor, dim, a, b) for a, b in zip(starts, ends, strict=True))


def _getitem(net: Network, value: Any, key: Any) -> Any:
    if not isinstance(value, Tensor):
        return value[key]
    keys = key if isinstance(key, tuple) else (key,)
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        missing = value.rank - (len(keys) - 1)
        keys = (*keys[:at], *(slice(None),) * missing, *keys[at + 1 :])
    if not all(isinstance(k, slice | int) for k in keys) or keys[0] != slice(None):
        raise net.refuse(f"only slices along the axes of one example are known, not {key}.")
    single = [axis for axis, part in enumerate(keys) if isinstance(part, int)]
    for axis, part in enumerate(keys[1:], start=1):
        if isinstance(part, int):
            place = range(value.shape[axis - 1])[part]
            part = slice(place, place + 1)
        start, stop, step = part.indices(value.shape[axis - 1])
        if (start, stop, step) != (0, value.shape[axis - 1], 1):
            value = net.part(value, axis, start, stop, step)
    return _squeeze(net, value, single) if single else value


def _attribute(net: Network, value: Any, name: str) -> Any:
    if not isinstance(value, Tensor):
        return getattr(value, name)
    if name == "shape":
        return (BATCH, *value.shape)
    if name == "ndim":
        return value.rank
    raise net.refuse(f"it reads `{name}` of a tensor.")


def _size(net: Network, input: Tensor, dim: int | None = None) -> Any:
    shape = (BATCH, *input.shape)
    return shape if dim is None else shape[dim]


# --- images ----------------------------------------------------------------------------------


def _max_pool(
    net: Network,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    spatial = input.rank - 2
    if max(_tuple(dilation, spatial)) > 1 or return_indices:
        raise net.refuse("only dilation=1 and return_indices=False are known.")
    sizes = _tuple(kernel_size, spatial)
    steps = sizes if stride in (None, []) else _tuple(stride, spatial)
    pads = [(p, p) for p in _tuple(padding, spatial)]
    return windows.max_pool(net, input, sizes, steps, pads, ceil_mode)


def _avg_pool(
    net: Network,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Tensor:
    if divisor_override is not None:
        raise net.refuse("only divisor_override=None is known.")
    spatial = input.rank - 2
    sizes = _tuple(kernel_size, spatial)
    steps = sizes if stride in (None, []) else _tuple(stride, spatial)
    pads = [(p, p) for p in _tuple(padding, spatial)]
    return windows.average_pool(net, input, sizes, steps, pads, ceil_mode, count_include_pad)


def _adaptive(largest: bool) -> Callable:
    def pool(net: Network, input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
        if return_indices:
            raise net.refuse("only return_indices=False is known.")
        return windows.adaptive_pool(net, input, _tuple(output_size, input.rank - 2), largest)

    return pool


def pixel_unshuffle(net: Network, input: Tensor, downscale_factor: int) -> Tensor:
    """Blocks of r x r pixels to channels: the channel first, then the row, then the column."""
    x, r = net.image(input, (4,)), int(downscale_factor)
    channels, height, width = x.shape
    if height % r or width % r:
        raise net.refuse(f"{height} x {width} pixels are no multiple of {r}.")
    y = net.layer(kl.Reshape, x.keras, target_shape=(height // r, r, width // r, r, channels))
    y = net.layer(kl.Permute, y, dims=(1, 3, 5, 2, 4))
    shape = (height // r, width // r, channels * r * r)
    y = net.layer(kl.Reshape, y, target_shape=shape)
    return Tensor(y, x.axes, nonnegative=x.nonnegative)


def _pad(
    net: Network, input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Tensor:
    if mode != "constant" or value not in (None, 0):
        raise net.refuse(f"only padding with zeros is known, not mode={mode!r}, value={value}.")
    pairs = [(int(a), int(b)) for a, b in zip(pad[::2], pad[1::2], strict=True)][::-1]
    spatial = input.rank - 2
    if len(pairs) > spatial:
        raise net.refuse("only padding of the spatial axes is known.")
    x = net.image(input)
    return net.zeros_around(x, [(0, 0)] * (spatial - len(pairs)) + pairs)


def _dropout(net: Network, input: Tensor, *settings: Any, **named: Any) -> Tensor:
    training = named.get("training", settings[1] if len(settings) > 1 else True)
    if training:
        raise net.refuse("it drops entries at inference, too: it is called with training=True.")
    return input


def _same(net: Network, input: Tensor, *settings: Any, **named: Any) -> Tensor:
    return input


def _cast(net: Network, input: Tensor, *settings: Any, **named: Any) -> Tensor:
    given = [*settings, *named.values()]
    if any("float32" not in str(v) for v in given if "torch." in str(v)):
        raise net.refuse("only float32 is known.")
    return input


def _plain(name: str) -> Callable:
    def apply(net: Network, input: Tensor, inplace: bool = False) -> Tensor:
        return activations.PLAIN[name](net, input)

    return apply


def _leaky_relu(
    net: Network, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor:
    return activations.leaky_relu(net, input, negative_slope)


def _elu(net: Network, input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return activations.elu(net, input, alpha)


def _celu(net: Network, input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return activations.celu(net, input, alpha)


def _softplus(net: Network, input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    if beta * threshold < 15:  # beyond it PyTorch cuts the logarithm off, and one can tell
        raise net.refuse(f"only threshold >= {15 / beta:g} is known; it is {threshold:g}.")
    return activations.softplus(net, input, beta)


def _gelu(net: Network, input: Tensor, *, approximate: str = "none") -> Tensor:
    return activations.gelu(net, input, approximate)


def _hardtanh(
    net: Network, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    return activations.clip(net, input, min_val, max_val)


def _prelu(net: Network, input: Tensor, weight: Any) -> Tensor:
    _constant(net, weight)
    return activations.prelu(net, input, array(weight))


def _softmax(logarithm: bool) -> Callable:
    def apply(
        net: Network, input: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None
    ) -> Tensor:
        return activations.softmax(net, input, dim, logarithm)

    return apply


# By the name of the function or of the tensor's method.
FUNCTIONS: dict[str, Callable] = {
    "linear": linear,
    "matmul": _matmul,
    "mm": _matmul,
    "addmm": _addmm,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "batch_norm": _batch_norm,
    **dict.fromkeys(("add", "iadd", "add_"), _sum(1.0)),
    **dict.fromkeys(("sub", "isub", "subtract", "sub_"), _sum(-1.0)),
    **dict.fromkeys(("mul", "imul", "multiply", "mul_"), multiply),
    **dict.fromkeys(("div", "truediv", "itruediv", "divide", "true_divide", "div_"), _divide),
    **dict.fromkeys(("neg", "negative"), _negative),
    **dict.fromkeys(("max", "maximum"), _largest(kl.Maximum)),
    **dict.fromkeys(("min", "minimum"), _largest(kl.Minimum)),
    **dict.fromkeys(("clamp", "clip", "clamp_"), _clamp),
    **dict.fromkeys(("abs", "absolute"), _absolute),
    "flatten": _flatten,
    **dict.fromkeys(("view", "reshape"), _view),
    "permute": _permute,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    **{name: _over_pixels(name) for name in ("mean", "sum", "amax")},
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "chunk": _chunk,
    "split": _split,
    "getitem": _getitem,
    "getattr": _attribute,
    "size": _size,
    "dim": lambda net, input: input.rank,
    **dict.fromkeys(("max_pool1d", "max_pool2d"), _max_pool),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d"), _avg_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d"), _adaptive(False)),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d"), _adaptive(True)),
    "pixel_unshuffle": pixel_unshuffle,
    "pad": _pad,
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "alpha_dropout"), _dropout),
    **dict.fromkeys(("contiguous", "clone", "detach"), _same),
    **dict.fromkeys(("float", "to", "type"), _cast),
    **{name: _plain(name) for name in ("relu", "relu6", "sigmoid", "tanh", "silu", "mish")},
    **{name: _plain(name) for name in ("selu", "softsign")},
    "relu_": _plain("relu"),
    "logsigmoid": _plain("log_sigmoid"),
    "hardsigmoid": _plain("hard_sigmoid"),
    "hardswish": _plain("hard_silu"),
    "tanhshrink": _plain("tanh_shrink"),
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "celu": _celu,
    "softplus": _softplus,
    "gelu": _gelu,
    "hardtanh": _hardtanh,
    "prelu": _prelu,
    "softmax": _softmax(False),
    "log_softmax": _softmax(True),
}
