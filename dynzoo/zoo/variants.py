"""A preset's network for images of another size, in another precision, or without its head."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import Any

import keras

from dynzoo.utils.strict_json import short
from dynzoo.utils.tensorflow_import import config_of
from dynzoo.zoo.declared_sizes import MAX_ENTRIES

__all__ = ["FreshWeightsWarning", "features", "is_size", "note_policy", "rebuilt"]

_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


class FreshWeightsWarning(UserWarning):
    """Layers of a loaded model have new random weights, and have to be trained.

    Example:

    >>> import warnings
    >>> from dynzoo.zoo.variants import FreshWeightsWarning
    >>> warnings.simplefilter("ignore", FreshWeightsWarning)
    """


def rebuilt(model: keras.Model, input_shape: Any, dtype: Any) -> keras.Model:
    """The same network on images of another shape, in another precision.

    Weights whose shape does not depend on the size of the images are those of the model; layers
    with others start anew, and a ``FreshWeightsWarning`` names them. Images of one channel are
    repeated to the channels that the network takes: no weight changes, and certified radii count
    the change of that one channel.

    Args:
        model: a functional or sequential model.
        input_shape: (height, width, channels), or ``None`` for that of the model.
        dtype: ``"float32"``, ``"mixed_bfloat16"``, ``"mixed_float16"``, or ``None`` for that of
            the layers. The last layer stays in float32: it gives the logits.

    Raises:
        ValueError: if an argument is out of its range, or the architecture does not allow it.

    Example:

    >>> import keras
    >>> from dynzoo.zoo.variants import rebuilt
    >>> layers = [keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()]
    >>> rebuilt(keras.Sequential(layers), (12, 12, 1), None).input_shape
    (None, 12, 12, 1)
    """
    shape = model.input_shape[1:] if input_shape is None else _checked_shape(input_shape, model)
    if dtype is not None and _policy_name(dtype) not in _POLICIES:
        raise ValueError(
            f"`dtype` must be one of {', '.join(map(repr, _POLICIES))} or None. "
            f"Received: dtype={dtype!r}"
        )
    head = model.layers[-1]
    copies: dict[int, Any] = {}

    def copied(operation: Any) -> Any:
        if id(operation) not in copies:  # one that is called twice is one
            config = config_of(operation)
            if dtype is not None and isinstance(operation, keras.layers.Layer):
                _set_policy(config, "float32" if operation is head else _policy_name(dtype))
            copies[id(operation)] = operation.__class__.from_config(config)
        return copies[id(operation)]

    entrance = next(la for la in model._flatten_layers() if isinstance(la, keras.layers.InputLayer))
    inputs = keras.Input(shape, name=entrance.name, dtype=entrance.dtype)
    channels = model.input_shape[-1]
    x = inputs
    if shape[-1:] != model.input_shape[-1:]:
        # pixels stay as they come, whatever policy Keras has
        name = f"{entrance.name}_repeated"
        x = keras.layers.Concatenate(name=name, dtype="float32")([inputs] * channels)
    graph = keras.Model(model.inputs[0], model.outputs[0])  # of a Sequential, too
    try:
        # as `keras.models.clone_model` does it, whose input may not be what another layer gives
        outputs = graph._run_through_graph(x, copied, lambda layer, *a, **k: layer(*a, **k))
    except ValueError as error:
        raise ValueError(
            f"`input_shape` is none that {model.name!r} can take: {short(error)} "
            f"Received: input_shape={input_shape}"
        ) from None
    result = keras.Model(inputs, outputs, name=model.name)
    _copy_weights(graph, result)
    return result


def features(model: keras.Model) -> keras.Model:
    """The model up to what its last layer takes.

    Raises:
        ValueError: if that is not one tensor, or the last layer alone does not give the output.

    Example:

    >>> import keras
    >>> from dynzoo.zoo.variants import features
    >>> layers = [keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(3)]
    >>> features(keras.Sequential(layers)).output_shape
    (None, 4)
    """
    tensor = model.outputs[0]
    while True:
        operation, index, _ = tensor._keras_history
        before = operation._inbound_nodes[index].input_tensors  # of this call, where it has several
        if isinstance(operation, keras.layers.Layer) or len(before) != 1:
            break
        tensor = before[0]  # a bare operation on the logits
    if len(before) != 1:
        what = "layer" if isinstance(operation, keras.layers.Layer) else "operation"
        raise ValueError(
            f"`features_only` needs a model whose last {what} takes one tensor; "
            f"{operation.name!r} takes {len(before)}."
        )
    return keras.Model(model.inputs[0], before[0], name=f"{model.name}_features")


def note_policy(model: keras.Model) -> None:
    """Warns if Keras' policy asks for another precision than the preset has."""
    policy = keras.config.dtype_policy().name
    if policy in _POLICIES[1:] and model.layers[-1].dtype_policy.name == "float32":
        warnings.warn(
            f"Keras' dtype policy is {policy}, and the preset is in float32 as it was saved: "
            f"pass dtype={policy!r} to `from_preset`, or dtype='float32' to keep it so.",
            stacklevel=3,
        )


def _copy_weights(source: keras.Model, target: keras.Model) -> None:
    new = {layer.name: layer for layer in target.layers}
    fresh = []
    for layer in source.layers:
        if not (values := layer.get_weights()):
            continue
        places = new[layer.name].get_weights()
        if [v.shape for v in values] == [p.shape for p in places]:
            new[layer.name].set_weights(values)
        else:
            fresh.append(layer.name)
    if fresh:
        warnings.warn(
            f"The weights of {', '.join(fresh)} depend on the size of the images: they are new, "
            "and have to be trained. All others are those of the preset.",
            FreshWeightsWarning,
            stacklevel=4,
        )


def _set_policy(config: dict[str, Any], policy: str) -> None:
    """Gives a layer a policy, and those inside it: of a nested model, a wrapper, a recurrent one.

    What images are when they come in is no layer's choice.
    """
    config["dtype"] = policy
    parts = [part for key, part in config.items() if key != "dtype"]
    while parts:
        part = parts.pop()
        if isinstance(part, (list, tuple)):
            parts += part
        elif isinstance(part, dict):
            inner, kind = part.get("config"), part.get("class_name", "InputLayer")
            if isinstance(inner, dict) and "dtype" in inner and kind != "InputLayer":
                _set_policy(inner, policy)
            else:
                parts += part.values()


def _policy_name(dtype: Any) -> str:
    return str(getattr(dtype, "name", dtype))


def _checked_shape(input_shape: Any, model: keras.Model) -> tuple[int, ...]:
    given = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else ()
    if len(model.input_shape) != 4:
        raise ValueError(
            f"`input_shape` needs a preset of images; {model.name!r} takes {model.input_shape}. "
            f"Received: input_shape={input_shape!r}"
        )
    if len(given) != 3 or not all(is_size(n) for n in given):
        raise ValueError(
            "`input_shape` must be (height, width, channels), positive integers, or None. "
            f"Received: input_shape={input_shape!r}"
        )
    if math.prod(map(int, given)) > MAX_ENTRIES:
        raise ValueError(
            f"`input_shape` must have at most {MAX_ENTRIES:,} entries. "
            f"Received: input_shape={input_shape!r}"
        )
    channels = model.input_shape[-1]
    if given[-1] not in (1, channels):
        raise ValueError(
            f"`input_shape` must have 1 or {channels} channels for {model.name!r}. "
            f"Received: input_shape={input_shape!r}"
        )
    return tuple(int(n) for n in given)


def is_size(value: Any) -> bool:
    """Whether it counts pixels or channels: a positive integer, and no truth value."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and int(value) > 0
