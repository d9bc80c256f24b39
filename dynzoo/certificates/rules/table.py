"""What is known of each layer: a bound of its Lipschitz constant and its float64 forward pass.

Standard Keras layers are recognised by their exact class, for a subclass may compute something
else. Any other layer speaks for itself with `lipschitz_bound` and `call_float64`, or is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from dynzoo.certificates import overrides
from dynzoo.certificates.operations import TensorCall
from dynzoo.certificates.rules import conv, image, linear, window
from dynzoo.certificates.rules.activations import KERAS_ACTIVATIONS, elu, leaky_relu, softmax
from dynzoo.certificates.rules.contractions import contraction_gain
from dynzoo.certificates.rules.linear import Shape, float64, refuse

__all__ = [
    "IDENTITY",
    "RULES",
    "Rule",
    "activation_rule",
    "check_methods",
    "ends_in_softmax",
    "is_identity",
    "linear_head",
    "rule_for",
]

kl = keras.layers


class Rule(NamedTuple):
    """`gain(layer, input_shape)` bounds the constant; `forward(layer, x)` is the reference."""

    gain: Callable[[Any, Shape], float]
    forward: Callable[[Any, np.ndarray], np.ndarray]


def _one(layer: Any, shape: Shape) -> float:
    return 1.0


def _same(layer: Any, x: np.ndarray) -> np.ndarray:
    return x


# --- activations ---------------------------------------------------------------------------


def activation_rule(layer: Any) -> Rule:
    """The rule of a layer's `activation`, which is a Keras function or a layer."""
    activation = layer.activation
    if activation is None:
        return Rule(_one, _same)
    if isinstance(activation, kl.Layer):
        inner = rule_for(activation)
        if not activation.built:
            raise refuse(
                layer,
                f"its activation `{type(activation).__name__}` has no weights before the first "
                "call: run the model once, for example `model.predict` on one input.",
            )
        return Rule(
            lambda _, shape: inner.gain(activation, shape),
            lambda _, x: inner.forward(activation, x),
        )
    known = KERAS_ACTIVATIONS.get(activation) if callable(activation) else None
    if known is None:
        name = getattr(activation, "__name__", repr(activation))
        raise refuse(layer, f"the Lipschitz constant of its activation `{name}` is not known.")
    return Rule(lambda _, shape: known.bound(shape), lambda _, x: known.function(x))


def _with_activation(gain: Any, forward: Any) -> Rule:
    """An affine map, then the layer's own activation."""

    def total_gain(layer: Any, shape: Shape) -> float:
        output = (None, *layer.compute_output_shape(shape)[1:])
        return gain(layer, shape) * activation_rule(layer).gain(layer, output)

    def total_forward(layer: Any, x: np.ndarray) -> np.ndarray:
        return activation_rule(layer).forward(layer, forward(layer, x))

    return Rule(total_gain, total_forward)


def _at_least_one(slopes: Any) -> float:
    """The largest of 1 and the slopes; unlike `max`, it keeps a NaN."""
    return float(np.max(np.maximum(1.0, np.abs(slopes))))


def _relu_gain(layer: Any, shape: Shape) -> float:
    if layer.threshold != 0:
        raise refuse(layer, "with a threshold other than 0 it jumps.")
    return _at_least_one(layer.negative_slope)


def _relu_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    y = leaky_relu(x, layer.negative_slope)
    return y if layer.max_value is None else np.minimum(y, layer.max_value)


def _softmax_gain(layer: Any, shape: Shape) -> float:
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if any(axis % len(shape) == 0 for axis in axes):
        raise refuse(layer, "it normalises along the batch axis.")
    return 0.5


def _softmax_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    axis = tuple(layer.axis) if isinstance(layer.axis, (list, tuple)) else layer.axis
    return softmax(x, axis)


# --- the table -----------------------------------------------------------------------------

# Identity at inference.
IDENTITY: tuple[type, ...] = (
    kl.InputLayer,
    kl.Identity,
    kl.ActivityRegularization,
    kl.Dropout,
    kl.SpatialDropout1D,
    kl.SpatialDropout2D,
    kl.SpatialDropout3D,
    kl.AlphaDropout,
    kl.GaussianDropout,
    kl.GaussianNoise,
    *image.AUGMENTATION,
)

RULES: dict[type, Rule] = {
    **{cls: Rule(_one, _same) for cls in IDENTITY},
    kl.Flatten: Rule(_one, lambda layer, x: _flatten(layer, x)),
    kl.Reshape: Rule(
        _one, lambda layer, x: x.reshape(len(x), *layer.compute_output_shape(x.shape)[1:])
    ),
    kl.Permute: Rule(_one, lambda layer, x: x.transpose(0, *layer.dims)),
    kl.Activation: Rule(
        lambda layer, shape: activation_rule(layer).gain(layer, shape),
        lambda layer, x: activation_rule(layer).forward(layer, x),
    ),
    kl.ReLU: Rule(_relu_gain, _relu_forward),
    kl.LeakyReLU: Rule(
        lambda layer, shape: _at_least_one(layer.negative_slope),
        lambda layer, x: leaky_relu(x, layer.negative_slope),
    ),
    kl.PReLU: Rule(
        lambda layer, shape: _at_least_one(float64(layer.alpha)),
        lambda layer, x: leaky_relu(x, float64(layer.alpha)),
    ),
    kl.ELU: Rule(
        lambda layer, shape: _at_least_one(layer.alpha), lambda layer, x: elu(x, layer.alpha)
    ),
    kl.Softmax: Rule(_softmax_gain, _softmax_forward),
    kl.Dense: _with_activation(linear.dense_gain, linear.dense_forward),
    kl.Conv1D: _with_activation(conv.gain, conv.forward),
    kl.Conv2D: _with_activation(conv.gain, conv.forward),
    kl.Conv3D: _with_activation(conv.gain, conv.forward),
    kl.DepthwiseConv1D: _with_activation(conv.depthwise_gain, conv.depthwise_forward),
    kl.DepthwiseConv2D: _with_activation(conv.depthwise_gain, conv.depthwise_forward),
    kl.SeparableConv1D: _with_activation(conv.separable_gain, conv.separable_forward),
    kl.SeparableConv2D: _with_activation(conv.separable_gain, conv.separable_forward),
    kl.Conv1DTranspose: _with_activation(conv.transposed_gain, conv.transposed_forward),
    kl.Conv2DTranspose: _with_activation(conv.transposed_gain, conv.transposed_forward),
    kl.Conv3DTranspose: _with_activation(conv.transposed_gain, conv.transposed_forward),
    kl.BatchNormalization: Rule(linear.batchnorm_gain, linear.batchnorm_forward),
    kl.Normalization: Rule(linear.normalization_gain, linear.normalization_forward),
    kl.Rescaling: Rule(linear.rescaling_gain, linear.rescaling_forward),
    **{
        cls: Rule(window.max_pooling_gain, window.max_pooling_forward)
        for cls in (kl.MaxPooling1D, kl.MaxPooling2D, kl.MaxPooling3D)
    },
    **{
        cls: Rule(window.average_pooling_gain, window.average_pooling_forward)
        for cls in (kl.AveragePooling1D, kl.AveragePooling2D, kl.AveragePooling3D)
    },
    **{
        cls: Rule(window.global_average_gain, window.global_average_forward)
        for cls in (
            kl.GlobalAveragePooling1D,
            kl.GlobalAveragePooling2D,
            kl.GlobalAveragePooling3D,
        )
    },
    **{
        cls: Rule(_one, window.global_max_forward)
        for cls in (kl.GlobalMaxPooling1D, kl.GlobalMaxPooling2D, kl.GlobalMaxPooling3D)
    },
    **{
        cls: Rule(_one, window.zero_padding_forward)
        for cls in (kl.ZeroPadding1D, kl.ZeroPadding2D, kl.ZeroPadding3D)
    },
    **{
        cls: Rule(_one, window.cropping_forward)
        for cls in (kl.Cropping1D, kl.Cropping2D, kl.Cropping3D)
    },
    **{
        cls: Rule(window.upsampling_gain, window.upsampling_forward)
        for cls in (kl.UpSampling1D, kl.UpSampling2D, kl.UpSampling3D)
    },
    kl.RandomCrop: Rule(image.random_crop_gain, _same),
    kl.CenterCrop: Rule(image.center_crop_gain, image.center_crop_forward),
    kl.Resizing: Rule(image.resizing_gain, image.resizing_forward),
    kl.RepeatVector: Rule(
        lambda layer, shape: math.sqrt(layer.n) * (1 + 1e-15),
        lambda layer, x: np.repeat(x[:, None], layer.n, axis=1),
    ),
    kl.EinsumDense: _with_activation(
        lambda layer, shape: _einsum_gain(layer, shape), lambda layer, x: _einsum_forward(layer, x)
    ),
    kl.SpectralNormalization: Rule(
        lambda layer, shape: _wrapped(layer).gain(layer.layer, shape),
        lambda layer, x: _wrapped(layer).forward(layer.layer, x),
    ),
    kl.TimeDistributed: Rule(
        lambda layer, shape: _wrapped(layer).gain(layer.layer, (shape[0], *shape[2:])),
        lambda layer, x: _each_time(layer, x),
    ),
}

# Why some layers have no rule.
_REASONS: dict[type, str] = {
    **dict.fromkeys(
        (kl.Multiply, kl.Dot),
        "a product of tensors that depend on the input has no Lipschitz constant.",
    ),
    **dict.fromkeys(
        (kl.LayerNormalization, kl.RMSNormalization, kl.GroupNormalization, kl.UnitNormalization),
        "it divides by the size of its own input, which may be next to nothing: its slope is huge "
        "there. BatchNormalization, which is a fixed map at inference, has a constant.",
    ),
    **dict.fromkeys(
        (kl.Embedding, kl.Masking, kl.Discretization, kl.CategoryEncoding),
        "it makes steps of its input: between them nothing, at them a jump.",
    ),
    **dict.fromkeys(
        (kl.AutoContrast, kl.Equalization),
        "it stretches each image by its own brightest and darkest pixel, at inference too.",
    ),
    kl.Lambda: "its function is not known.",
}


def _einsum_gain(layer: Any, shape: Shape) -> float:
    try:
        return contraction_gain(layer.equation, shape, float64(layer.kernel))
    except ValueError as error:
        raise refuse(layer, f"{error}.") from None


def _einsum_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    y = np.einsum(layer.equation, x, float64(layer.kernel), optimize=True)
    return y if layer.bias is None else y + float64(layer.bias)


def _wrapped(layer: Any) -> Rule:
    """The rule of the layer inside a wrapper that at inference does nothing else."""
    inner = layer.layer
    if inner.dtype_policy.name != layer.dtype_policy.name:
        raise refuse(
            layer, f"the layer inside runs with another dtype policy, '{inner.dtype_policy.name}'."
        )
    if getattr(inner, "quantization_mode", None):
        raise refuse(layer, "the layer inside is quantized.")
    return rule_for(inner)


def _each_time(layer: Any, x: np.ndarray) -> np.ndarray:
    flat = x.reshape(-1, *x.shape[2:])
    y = _wrapped(layer).forward(layer.layer, flat)
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _flatten(layer: Any, x: np.ndarray) -> np.ndarray:
    if layer.data_format == "channels_first" and x.ndim > 1:
        x = np.moveaxis(x, 1, -1)
    return x.reshape(len(x), -1)


_PROTOCOL = Rule(
    lambda layer, shape: float(layer.lipschitz_bound(shape)),
    lambda layer, x: np.asarray(layer.call_float64(x), dtype=np.float64),
)


def _objection(layer: Any) -> str | None:
    """Why what the class states is not a statement of the `call` that is in force, if it is not.

    A subclass that computes something else inherits a bound that was proved for its parent.
    """
    cls = type(layer)
    missing = [m for m in ("lipschitz_bound", "call_float64") if not hasattr(cls, m)]
    if missing:
        return f"it has no `{missing[0]}`."
    place = overrides.defined_at
    changed = overrides.redefined(cls, "lipschitz_bound")
    if changed is None and place(cls, "call_float64") > place(cls, "call"):
        changed = "call"
    if changed is None:
        return None
    definer = cls.__mro__[place(cls, changed)].__name__
    return (
        f"`{definer}` redefines `{changed}`, which the `lipschitz_bound` or `call_float64` that "
        f"it inherits was not written for; `{definer}` must define both."
    )


def rule_for(layer: Any) -> Rule:
    """The rule of a layer with one input.

    Raises:
        UncertifiableLayerError: if nothing is known of the layer's class.
    """
    check_methods(layer)
    if type(layer) in RULES:
        return RULES[type(layer)]
    objection = _objection(layer)
    if objection is None:
        return _PROTOCOL
    if hasattr(type(layer), "lipschitz_bound"):
        raise refuse(layer, objection)
    base = next((cls.__name__ for cls in type(layer).__mro__ if cls in RULES), None)
    if base is not None:
        raise refuse(layer, f"it is a subclass of `{base}` and may compute something else.")
    raise refuse(layer, _REASONS.get(type(layer), "no bound of its Lipschitz constant is known."))


def check_methods(layer: Any) -> None:
    """Refuses an object with a method of its own: its class no longer says what it computes."""
    name = overrides.replaced_method(layer)
    if name is not None:
        raise refuse(
            layer,
            f"`{name}` was put on this one object, so that what is known of its class need not "
            "hold; write a class of its own.",
        )


# --- what the last layers are --------------------------------------------------------------


def is_identity(layer: Any) -> bool:
    """Whether the layer returns its input at inference."""
    if type(layer) is kl.Activation:
        return layer.activation is keras.activations.linear
    return type(layer) in (*IDENTITY, kl.RandomCrop)


def ends_in_softmax(layer: Any) -> bool:
    """Whether the layer's output is a softmax (or its logarithm), not logits."""
    activation = getattr(layer, "activation", None)
    if isinstance(layer, TensorCall):
        return type(layer.operation).__name__ in ("Softmax", "LogSoftmax")
    if isinstance(activation, kl.Layer):
        return type(activation) is kl.Softmax
    functions = ("softmax", "log_softmax")
    return type(layer) is kl.Softmax or any(
        activation is getattr(module, name)
        for module in (keras.activations, keras.ops)
        for name in functions
    )


def linear_head(layer: Any) -> np.ndarray | None:
    """Float64 kernel (features, K) of a layer z = x W + b, or None if it is not of this form."""
    if type(layer) is kl.Dense:
        if layer.activation in (None, keras.activations.linear):
            return float64(layer.kernel)
        return None
    if type(layer) in RULES or not hasattr(type(layer), "effective_kernel"):
        return None
    # As with a bound: a matrix that was stated for another forward pass is not this layer's.
    if overrides.redefined(type(layer), "effective_kernel") is None:
        return np.asarray(layer.effective_kernel(), dtype=np.float64)
    return None
