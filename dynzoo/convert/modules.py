"""PyTorch's modules: each is its function with the module's settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from dynzoo.convert.functions import FUNCTIONS
from dynzoo.convert.network import Network, Tensor

__all__ = ["FOREIGN", "MODULES"]

Convert = Callable[[Network, Any, Tensor], Tensor]


def _by_function(name: str, *attributes: str) -> Convert:
    """The function of this name, with these attributes of the module as further arguments."""

    def convert(net: Network, module: Any, x: Tensor) -> Tensor:
        return FUNCTIONS[name](net, x, **{a: getattr(module, a) for a in attributes})

    return convert


def _identity(net: Network, module: Any, x: Tensor) -> Tensor:
    return x


def _only_zeros(name: str, *attributes: str) -> Convert:
    convert = _by_function(name, *attributes)

    def checked(net: Network, module: Any, x: Tensor) -> Tensor:
        if module.padding_mode != "zeros":
            raise net.refuse(f"only padding_mode='zeros' is known; it is '{module.padding_mode}'.")
        return convert(net, module, x)

    return checked


def _batch_norm(net: Network, module: Any, x: Tensor) -> Tensor:
    return FUNCTIONS["batch_norm"](
        net,
        x,
        module.running_mean,
        module.running_var,
        module.weight,
        module.bias,
        momentum=module.momentum,
        eps=module.eps,
    )


def _flatten(net: Network, module: Any, x: Tensor) -> Tensor:
    return FUNCTIONS["flatten"](net, x, module.start_dim, module.end_dim)


def _unflatten(net: Network, module: Any, x: Tensor) -> Tensor:
    place, shape = net.axis(x, module.dim), x.shape
    return net.reshape(x, [*shape[: place - 1], *module.unflattened_size, *shape[place:]])


def _sorted_pairs(net: Network, module: Any, x: Tensor) -> Tensor:
    """GroupSort of deel-torchlip: of channels 2i and 2i + 1 the smaller first."""
    from dynzoo.layers import MaxMin

    channels = x.shape[0]
    if module.group_size != 2 or channels % 2:
        raise net.refuse(f"only pairs are sorted; its groups have {module.group_size or channels}.")
    x = net.in_their_order(x) if x.rank == 2 else net.image(x)
    half = np.arange(channels // 2)
    y = keras.ops.take(x.keras, np.concatenate([2 * half, 2 * half + 1]), axis=-1)
    y = net.layer(MaxMin, y)
    order = np.stack([half + len(half), half], axis=1).ravel()
    if x.rank == 2:
        z = Tensor(y, x.axes, order)
    else:
        z = Tensor(keras.ops.take(y, order, axis=-1), x.axes)
    factor = float(getattr(module, "_coefficient_lip", 1.0))
    return z if factor == 1 else FUNCTIONS["mul"](net, z, factor)


def _zero_pad(net: Network, module: Any, x: Tensor) -> Tensor:
    return FUNCTIONS["pad"](net, x, module.padding)


_CONV = ("weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (*_CONV, "output_padding")
_AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
_LARGEST = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")

# By the name of the class in torch.nn.
MODULES: dict[str, Convert] = {
    "Linear": _by_function("linear", "weight", "bias"),
    "Conv1d": _only_zeros("conv1d", *_CONV),
    "Conv2d": _only_zeros("conv2d", *_CONV),
    "ConvTranspose1d": _only_zeros("conv_transpose1d", *_TRANSPOSED),
    "ConvTranspose2d": _only_zeros("conv_transpose2d", *_TRANSPOSED),
    "BatchNorm1d": _batch_norm,
    "BatchNorm2d": _batch_norm,
    "ReLU": _by_function("relu"),
    "ReLU6": _by_function("relu6"),
    "LeakyReLU": _by_function("leaky_relu", "negative_slope"),
    "PReLU": _by_function("prelu", "weight"),
    "ELU": _by_function("elu", "alpha"),
    "CELU": _by_function("celu", "alpha"),
    "SELU": _by_function("selu"),
    "Sigmoid": _by_function("sigmoid"),
    "LogSigmoid": _by_function("logsigmoid"),
    "Hardsigmoid": _by_function("hardsigmoid"),
    "Tanh": _by_function("tanh"),
    "Tanhshrink": _by_function("tanhshrink"),
    "Hardtanh": _by_function("hardtanh", "min_val", "max_val"),
    "Softplus": _by_function("softplus", "beta", "threshold"),
    "Softsign": _by_function("softsign"),
    "GELU": _by_function("gelu", "approximate"),
    "SiLU": _by_function("silu"),
    "Hardswish": _by_function("hardswish"),
    "Mish": _by_function("mish"),
    "Softmax": _by_function("softmax", "dim"),
    "LogSoftmax": _by_function("log_softmax", "dim"),
    "MaxPool1d": _by_function("max_pool1d", *_LARGEST),
    "MaxPool2d": _by_function("max_pool2d", *_LARGEST),
    "AvgPool1d": _by_function("avg_pool1d", *_AVERAGE),
    "AvgPool2d": _by_function("avg_pool2d", *_AVERAGE, "divisor_override"),
    "AdaptiveAvgPool1d": _by_function("adaptive_avg_pool1d", "output_size"),
    "AdaptiveAvgPool2d": _by_function("adaptive_avg_pool2d", "output_size"),
    "AdaptiveMaxPool1d": _by_function("adaptive_max_pool1d", "output_size", "return_indices"),
    "AdaptiveMaxPool2d": _by_function("adaptive_max_pool2d", "output_size", "return_indices"),
    "Flatten": _flatten,
    "Unflatten": _unflatten,
    "PixelUnshuffle": _by_function("pixel_unshuffle", "downscale_factor"),
    "ZeroPad1d": _zero_pad,
    "ZeroPad2d": _zero_pad,
    "Identity": _identity,
    "Dropout": _identity,
    "Dropout1d": _identity,
    "Dropout2d": _identity,
    "AlphaDropout": _identity,
}

# By the name of the class with its module: of other packages, what torch.fx cannot read.
FOREIGN: dict[str, Convert] = {
    f"deel.torchlip.modules.activation.{name}": _sorted_pairs
    for name in ("GroupSort", "GroupSort2")
}
