"""A Keras graph that is made anew step by step from the program of another model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from dynzoo.certificates.graph import Program, trace
from dynzoo.utils.tensorflow_import import config_of

__all__ = ["Builder", "full_precision"]

kl = keras.layers


def full_precision(model: keras.Model) -> Program:
    """The steps of a model, which must not run in mixed precision."""
    program = trace(model)
    for step in program.steps:
        policy = step.layer.dtype_policy
        if policy.compute_dtype != policy.variable_dtype:
            raise ValueError(f"Layer '{step.name}' runs in mixed precision: {policy.name}.")
    return program


class Builder:
    """Makes the layers of one step of the program, under its name."""

    def __init__(self):
        self.name = ""
        self._used: set[str] = set()
        self._copies: dict[int, Any] = {}

    def fresh(self) -> str:
        """The step's name, with a number if it is taken."""
        name, count = self.name, 1
        while name in self._used:
            count += 1
            name = f"{self.name}_{count}"
        self._used.add(name)
        return name

    def layer(self, cls: type, inputs: Any, weights: Any = None, **arguments: Any) -> Any:
        """The output of a new layer with these weights."""
        made = cls(name=self.fresh(), **arguments)
        output = made(inputs)
        if weights is not None:
            made.set_weights([np.asarray(w, "float32") for w in weights])
        return output

    def copy(self, layer: Any, inputs: list[Any]) -> Any:
        """The output of a copy of the layer; one that is called twice stays one."""
        if id(layer) not in self._copies:
            config = {**config_of(layer), "name": self.fresh()}
            self._copies[id(layer)] = type(layer).from_config(config)
        copy = self._copies[id(layer)]
        output = copy(inputs[0] if len(inputs) == 1 else inputs)
        copy.set_weights(layer.get_weights())
        return output

    def matrix(self, x: Any, kernel: np.ndarray, bias: Any = None) -> Any:
        """A matrix on vectors, or on the channels of each pixel."""
        use_bias = bias is not None
        weights = [kernel, bias] if use_bias else [kernel]
        if len(x.shape) == 4:
            weights[0] = weights[0][None, None]
            return self.layer(
                kl.Conv2D,
                x,
                weights,
                filters=kernel.shape[-1],
                kernel_size=1,
                use_bias=use_bias,
                data_format="channels_last",
            )
        return self.layer(kl.Dense, x, weights, units=kernel.shape[-1], use_bias=use_bias)

    def conv(self, x: Any, kernel: np.ndarray, bias: Any, before: int, after: int) -> Any:
        """A convolution with stride 1 and these zeros before and after both axes."""
        size, padding = len(kernel), "same"
        if before != (size - 1) // 2:
            x = self.layer(kl.ZeroPadding2D, x, padding=((before, after), (before, after)))
            padding = "valid"
        return self.layer(
            kl.Conv2D,
            x,
            [kernel] if bias is None else [kernel, bias],
            filters=kernel.shape[-1],
            kernel_size=size,
            padding=padding,
            use_bias=bias is not None,
            data_format="channels_last",
        )

    def activation(self, x: Any, name: str) -> Any:
        """A monotone activation by its name in dynzoo."""
        if name == "linear":
            return x
        if name == "relu":
            return self.layer(kl.ReLU, x)
        if name in ("leaky_relu", "half_leaky_relu"):
            return self.layer(kl.LeakyReLU, x, negative_slope=0.5 if "half" in name else 0.2)
        return self.layer(kl.Activation, x, activation=name)
