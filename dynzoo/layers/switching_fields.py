"""One time step of a ``SwitchingFlow``: its two fields, and the order in which they act."""

from __future__ import annotations

from dynzoo.fields.gradient import gradient_field, gradient_field_float64

__all__ = ["alternate", "time_step", "time_step_float64"]


def time_step(layer, x, h, e, kernels, biases):
    """The state after one time step, over ``keras.ops``.

    Args:
        layer: a ``SwitchingFlow``, for its configuration.
        x: the state.
        h: contractive substep.
        e: expansive substep, signed.
        kernels: those of A and of the expansion.
        biases: b and v, or ``None`` each.
    """

    def contract(y):
        return gradient_field(layer.operator, layer._activation, y, kernels[0], biases[0], h)

    def expand(y):
        sigma = layer._expansion_activation
        if layer.expansion != "generic":
            return gradient_field(layer.operator, sigma, y, kernels[1], biases[1], e)
        inner = layer.operator.apply(y, kernels[1])
        return e * sigma(inner if biases[1] is None else inner + biases[1])

    return alternate(layer, x, contract, expand)


def time_step_float64(layer, x, h, e, kernels, biases):
    """The same in NumPy float64; the biases are numbers."""

    def contract(y):
        field = gradient_field_float64
        return h * field(layer.operator, layer._activation, y, kernels[0], biases[0])

    def expand(y):
        sigma = layer._expansion_activation
        if layer.expansion != "generic":
            return e * gradient_field_float64(layer.operator, sigma, y, kernels[1], biases[1])
        return e * sigma.reference(layer.operator.apply_float64(y, kernels[1]) + biases[1])

    return alternate(layer, x, contract, expand)


def alternate(layer, x, contract, expand):
    """The substeps of both fields in their order; the state may be of any type that adds."""
    if layer.mode == "flexible":
        for _ in range(layer.substeps):
            x = x - contract(x)
        return x + expand(x)
    for _ in range(layer.substeps):
        x = x + expand(x)
        x = x - contract(x)
    return x
