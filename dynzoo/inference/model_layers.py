"""The layers of a model, nested ones included, and what a layer of anyone may declare of itself.

A layer that is no fixed function of one example says so by an attribute or property of its own:

* ``random_at_inference``: two passes over one input may differ;
* ``depends_on_batch``: an output depends on the other examples of its batch.

Layers that say nothing (those of Keras, and most others) are taken for fixed functions. This
module is the one place that asks.
"""

from __future__ import annotations

from typing import Any

__all__ = ["depends_on_batch", "flat_layers", "is_random", "mixing_layers", "random_layers"]


def flat_layers(model: Any) -> list[Any]:
    """All layers of a model, itself and nested ones included; none of what is no Keras object."""
    return list(getattr(model, "_flatten_layers", list)())


def is_random(layer: Any) -> bool:
    """Whether two passes of the layer over one input may differ at inference."""
    return bool(getattr(layer, "random_at_inference", False))


def depends_on_batch(layer: Any) -> bool:
    """Whether an output of the layer depends on the other examples of its batch."""
    return bool(getattr(layer, "depends_on_batch", False))


def random_layers(model: Any) -> list[str]:
    """Names of the layers that are random at inference.

    Example:

    >>> random_layers(dynzoo.from_preset("isometric_small_cifar10"))
    []
    """
    return [layer.name for layer in flat_layers(model) if is_random(layer)]


def mixing_layers(model: Any) -> list[str]:
    """Names of the layers that say that they mix the examples of a batch."""
    return [layer.name for layer in flat_layers(model) if depends_on_batch(layer)]
