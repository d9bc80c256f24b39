"""Training that starts from a preset: its weights, layer by layer, into the model of a recipe."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras

from dynzoo.models.widening import can_widen, widen
from dynzoo.zoo import files as preset_files
from dynzoo.zoo import preset_folder, shipped

__all__ = ["transfer", "warm_start"]


def warm_start(model: keras.Model, preset: str) -> dict[str, Any]:
    """Put the weights of a preset into a built model.

    A wider model of the same layers computes the function of the preset, see `widen`; for all
    others see `transfer` for what must match.

    Args:
        model: the model to start; changed in place.
        preset: name of a preset, or a folder with one.

    Returns:
        What a later reader must know of the start: the preset's name, and the SHA-256 of each
        file with its weights.

    Raises:
        ValueError: if there is no such preset, it is damaged, or a layer does not match.

    Example:

    >>> about = warm_start(model, "isometric_small_cifar10")
    """
    metadata = preset_files.read_metadata(shipped.find(preset))
    source = preset_folder.from_preset(preset)
    try:
        (widen if can_widen(source, model) else transfer)(source, model)
    except ValueError as error:
        raise ValueError(f"`training.start`: {error} (the start is {preset})") from None
    files = {name: sha for name, sha in metadata["files"].items() if name != "config.json"}
    return {"preset": metadata.get("name", source.name), "sha256": files}


def transfer(source: keras.Model, target: keras.Model) -> None:
    """Copy the weights of one model into another, layer by layer.

    Layers with weights are matched by name (what Keras appends to tell layers of a kind apart
    counts within the model, not within the process) and must agree in the shapes of all their
    weights. Where the number of classes differs, the last layer of ``target`` stays as it is.

    Args:
        source: built model that is read.
        target: built model that is changed, or left alone if anything does not match.

    Raises:
        ValueError: naming the first layer that has no counterpart, or one of other shapes.

    Example:

    >>> transfer(dynzoo.from_preset("isometric_small_cifar10"), model)
    """
    fresh_head = source.output_shape[-1] != target.output_shape[-1]
    old, new = dict(_named(source, fresh_head)), dict(_named(target, fresh_head))
    for key, layer in new.items():
        if key not in old:
            raise ValueError(f"layer {layer.name!r} of the model is not in the start")
        if _shapes(layer) != _shapes(old[key]):
            raise ValueError(
                f"layer {layer.name!r} of the model has weights of shapes {_shapes(layer)}, "
                f"that of the start {_shapes(old[key])}"
            )
    for key, layer in old.items():
        if key not in new:
            raise ValueError(f"layer {layer.name!r} of the start is not in the model")
    for key, layer in new.items():
        layer.set_weights(old[key].get_weights())


def _shapes(layer: Any) -> list[tuple[int, ...]]:
    return [tuple(w.shape) for w in layer.weights]


def _named(model: keras.Model, without_head: bool) -> Iterator[tuple[tuple[str, int], Any]]:
    """Layers with weights, by name without its counter and place among those of that name."""
    seen: Counter[str] = Counter()
    layers = [layer for layer in model.layers if layer.weights]
    for layer in layers[:-1] if without_head and layers[-1] is model.layers[-1] else layers:
        base = re.sub(r"_\d+$", "", layer.name)
        yield (base, seen[base]), layer
        seen[base] += 1
