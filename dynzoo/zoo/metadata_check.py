"""What ``metadata.json`` says of a model, compared with the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from dynzoo.utils.strict_json import short

__all__ = ["check_metadata"]

_SHARES = ("accuracy", "top5_accuracy", "smoothed_accuracy")
_SHARES_BY_RADIUS = (
    "certified_accuracy",
    "attacked_accuracy",
    "certified_top5_accuracy",
    "smoothed_certified_accuracy",
)


def _input_shape(model: keras.Model) -> list[int | None]:
    return list(model.input_shape[1:])


# what the metadata may not say otherwise; keys that they lack are not asked for
_OF_THE_MODEL: dict[str, Callable[[Any], Any]] = {
    "input_shape": _input_shape,
    "num_classes": lambda model: model.output_shape[-1],
    "parameters": lambda model: model.count_params(),
}


def check_metadata(metadata: Mapping[str, Any], model: keras.Model, path: Path) -> None:
    """Refuse metadata that contradict the model, or hold accuracies that are no shares.

    Args:
        metadata: the content of ``metadata.json``.
        model: the model of the ``config.json`` beside it.
        path: the file, for the message.

    Raises:
        ValueError: naming the file, the key and both values.
    """
    for key, value_of in _OF_THE_MODEL.items():
        if metadata.get(key) is None:
            continue
        said, true = metadata[key], value_of(model)
        if type(said) is not type(true) or said != true:
            raise ValueError(
                f"{path} is refused: it says {key} {short(repr(said), 60)}, the model of "
                f"config.json has {short(repr(true), 60)}."
            )
    _check_input(metadata, model, path)
    _check_smoothing(metadata.get("smoothing"), path)
    for key in ("name", "dataset", "description", "resizing"):
        if not isinstance(metadata.get(key, ""), str | None):
            raise ValueError(
                f"{path} is refused: {key} must be text. It says {short(repr(metadata[key]), 60)}."
            )
    for key in _SHARES:
        _check_share(metadata.get(key), key, path)
    for key in _SHARES_BY_RADIUS:
        table = metadata.get(key) or {}
        if not isinstance(table, Mapping):
            raise ValueError(
                f"{path} is refused: {key} must be a share for each radius. "
                f"It says {short(repr(table), 60)}."
            )
        for radius, value in table.items():
            _check_share(value, f"{key} at {short(str(radius), 30)}", path)


def _check_input(metadata: Mapping[str, Any], model: keras.Model, path: Path) -> None:
    names, extent = metadata.get("class_names"), metadata.get("input_range")
    if names is not None:
        good = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not good or len(names) != model.output_shape[-1]:
            raise ValueError(
                f"{path} is refused: class_names must be a list of {model.output_shape[-1]} texts, "
                f"one a class. It says {short(repr(names), 60)}."
            )
    if extent is not None:
        good = isinstance(extent, list) and len(extent) == 2
        real = good and all(type(v) in (int, float) and math.isfinite(v) for v in extent)
        if not real or not extent[0] < extent[1]:
            raise ValueError(
                f"{path} is refused: input_range must be two finite numbers, the lower one first. "
                f"It says {short(repr(extent), 60)}."
            )


def _check_smoothing(settings: Any, path: Path) -> None:
    good = settings is None or isinstance(settings, Mapping)
    if good and settings:
        good = all(type(v) in (int, float) and math.isfinite(v) for v in settings.values())
    if not good:
        raise ValueError(
            f"{path} is refused: smoothing must be a finite number for each setting. "
            f"It says {short(repr(settings), 60)}."
        )


def _check_share(value: Any, what: str, path: Path) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0.0 <= value <= 1.0):
        raise ValueError(
            f"{path} is refused: {what} must be a share in [0, 1]. "
            f"It says {short(repr(value), 60)}."
        )
