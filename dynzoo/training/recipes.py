"""Training recipes: one YAML file a preset, read and checked key by key."""

from __future__ import annotations

import copy
import math
import os
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from dynzoo.augmentation.batches import DISTORTIONS, FLIPS
from dynzoo.training import epoch_values as by_epoch
from dynzoo.training.recipe_files import RecipeError as RecipeError
from dynzoo.training.recipe_files import find as find
from dynzoo.utils.arguments import integer, number

__all__ = ["DEFAULTS", "RecipeError", "Schema", "complete", "find", "load", "read", "validate"]


# The recipe's keys, their defaults, and thereby their types. `...` marks a key that must be given;
# a mapping that is empty here takes any keys, which the function behind it checks.
DEFAULTS: dict[str, Any] = {
    "name": ...,
    "description": "",
    "architecture": {},
    "data": {
        "name": ...,
        "validation": 5000,
        "crop_padding": 4,
        "flip": True,  # or "alternating"
        # each of these may be a mapping from first epoch to value
        "rotation": 0.0,  # degrees
        "zoom": 0.0,
        "color_jitter": 0.0,
    },
    "training": {
        "seed": 0,
        "start": "",  # a preset, by name or folder, whose weights the training starts from
        "epochs": ...,
        "batch_size": 256,
        "dtype": "float32",
        "keep": "last",
        "resident": False,  # images, batches and steps on the device: see `resident_epochs`
        "clock": False,  # the schedule is stretched over --max-seconds
        "validate_every": 1,  # epochs between looks at the held-out images, and checkpoints
        "average": [],  # epochs whose weights' mean, projected, is kept in place of the last
        "loss": {},
        "optimizer": {},
        "schedule": {"warmup": 0.02, "decay": 0.5, "points": {}},
    },
    "evaluation": {"norm": "l2", "eps": ["36/255", "72/255", "108/255"]},
}


class Schema(NamedTuple):
    """What a YAML file may hold: keys and defaults; ranges, choices and types by dotted key."""

    what: str
    defaults: dict[str, Any]
    ranges: dict[str, tuple[float, float | None]]
    choices: dict[str, tuple[str, ...]]
    required: dict[str, type]  # types of the keys that have no default
    by_epoch: tuple[str, ...] = ()  # keys whose value may change from epoch to epoch
    words: dict[str, tuple[str, ...]] = {}  # what a key of another type may be as well


_SCHEMA = Schema(
    what="a recipe",
    defaults=DEFAULTS,
    ranges={
        "data.validation": (1, None),
        "data.crop_padding": (0, None),
        "data.rotation": (0, 180),
        "data.zoom": (0, 0.9),
        "data.color_jitter": (0, 1),
        "training.seed": (0, 2**32 - 1),  # what NumPy and the backends take
        "training.epochs": (1, None),
        "training.batch_size": (1, None),
        "training.validate_every": (1, None),
        "training.schedule.warmup": (0, 1),
        "training.schedule.decay": (0, 1),
    },
    choices={
        "training.dtype": ("float32", "mixed_bfloat16", "mixed_float16"),
        "training.keep": ("last", "best"),
        "evaluation.norm": ("l2", "linf"),
    },
    required={"name": str, "data.name": str, "training.epochs": int},
    words={"data.flip": FLIPS},
    by_epoch=tuple(f"data.{key}" for key in DISTORTIONS),
)


def read(path: Path, keys) -> dict:
    """The mapping that a YAML file holds.

    Raises:
        RecipeError: naming the file, if it is not readable or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not readable as YAML ({error})") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: must hold a mapping with the keys {', '.join(keys)}")
    return content


def load(source) -> dict:
    """Reads and validates a recipe from a mapping, a path, or the name of one that ships.

    Raises:
        RecipeError: naming the file and the key that is wrong.
    """
    if isinstance(source, dict):
        return validate(source)
    path = find(os.fspath(source))
    content = read(path, DEFAULTS)
    try:
        return validate(content)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def validate(recipe: dict) -> dict:
    """A complete recipe: defaults filled in, types, ranges and names checked.

    Raises:
        RecipeError: naming the key that is missing, unknown or out of range.
    """
    result = complete(_SCHEMA, recipe)
    result["evaluation"]["eps"] = [_eps(e) for e in result["evaluation"]["eps"]]
    if not result["evaluation"]["eps"]:
        raise RecipeError("`evaluation.eps` must name at least one radius. Received: eps=[]")
    architecture = dict(result["architecture"])
    from dynzoo.models import ARCHITECTURES

    _named("architecture.name", architecture.get("name"), ARCHITECTURES)
    from dynzoo.training.builders import LOSSES, OPTIMIZERS, make_loss

    training = result["training"]
    _named("training.loss.name", training["loss"].get("name"), LOSSES)
    for key, value in training["loss"].items():
        if isinstance(value, dict):
            training["loss"][key] = _by_epoch(f"training.loss.{key}", value)
    for epoch in by_epoch.first_epochs(training["loss"]):  # now, not hours into the training
        try:
            make_loss(by_epoch.at_epoch(training["loss"], epoch))
        except ValueError as error:
            raise RecipeError(str(error)) from None
    _named("training.optimizer.name", training["optimizer"].get("name"), OPTIMIZERS)
    if "learning_rate" not in training["optimizer"]:
        raise RecipeError("`training.optimizer.learning_rate` is missing")
    rate = training["optimizer"]["learning_rate"]
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate < math.inf:
        # YAML reads 1e-3 as text; it wants 1.0e-3 or 0.001.
        raise RecipeError(
            "`training.optimizer.learning_rate` must be a positive number such as 0.001. "
            f"Received: {rate!r}"
        )
    _check_optimizer(training["optimizer"])
    _check_average(training)
    _check_resident(training)
    schedule = training["schedule"]
    if not schedule["warmup"] + schedule["decay"] <= 1:
        raise RecipeError(
            "`training.schedule.warmup` and `training.schedule.decay` must add up to at most 1. "
            f"Received: {schedule}"
        )
    return result


def _check_optimizer(settings: dict) -> None:
    """Types and ranges of what optimizers take; names that they do not know they refuse."""
    for key, value in settings.items():
        path = f"training.optimizer.{key}"
        if key in _OPTIMIZER_NUMBERS and value is not None:
            high, closed = _OPTIMIZER_NUMBERS[key]
            try:
                number(path, value, 0.0, high, closed)
            except ValueError as error:
                # YAML reads 1e-3 as text; it wants 1.0e-3 or 0.001.
                raise RecipeError(f"{error}; write numbers such as 0.001") from None
        if key == "gradient_accumulation_steps" and value is not None:
            try:
                integer(path, value, least=2)
            except ValueError as error:
                raise RecipeError(str(error)) from None
        if key in _OPTIMIZER_SWITCHES and not isinstance(value, bool):
            raise RecipeError(f"`{path}` must be true or false. Received: {value!r}")


# Upper end (open), and whether 0 is allowed.
_OPTIMIZER_NUMBERS = {
    **dict.fromkeys(("momentum", "beta_1", "beta_2", "ema_momentum"), (1.0, "low")),
    **dict.fromkeys(("adam_beta_1", "adam_beta_2"), (1.0, "low")),
    **dict.fromkeys(("clipnorm", "clipvalue", "global_clipnorm", "epsilon"), (math.inf, "none")),
    **dict.fromkeys(("loss_scale_factor", "adam_learning_rate"), (math.inf, "none")),
    "bias_lr_ratio": (math.inf, "none"),
    "weight_decay": (math.inf, "low"),
}
_OPTIMIZER_SWITCHES = ("use_ema", "nesterov", "amsgrad")


def _check_average(training: dict) -> None:
    given, epochs = training["average"], training["epochs"]
    counts = [e for e in given if isinstance(e, int) and not isinstance(e, bool)]
    inside = all(1 <= e <= epochs for e in counts)
    if counts != given or given != sorted(set(counts)) or not inside or len(given) == 1:
        raise RecipeError(
            "`training.average` must be empty or list two or more increasing epochs in "
            f"[1, {epochs}], as log.csv counts them. Received: {given}"
        )
    if given and training["optimizer"].get("use_ema"):
        raise RecipeError(
            "`training.average` and `training.optimizer.use_ema` are two averages: give one"
        )
    if given and training["keep"] != "last":
        raise RecipeError(
            "`training.average` and `training.keep: best` are two choices of weights: give one"
        )


def _check_resident(training: dict) -> None:
    if training["resident"] and training["dtype"] == "mixed_float16":
        raise RecipeError(
            "`training.dtype` must be float32 or mixed_bfloat16 with `training.resident`. "
            "Received: mixed_float16"
        )
    if training["resident"] and training["optimizer"].get("use_ema"):
        raise RecipeError(
            "`training.optimizer.use_ema` must be left out with `training.resident`. Received: True"
        )
    if training["clock"] and not training["resident"]:
        raise RecipeError("`training.clock` needs `training.resident: true`. Received: false")
    if training["clock"] and (training["average"] or training["keep"] != "last"):
        raise RecipeError(
            "`training.clock` keeps the last weights: leave out `training.average` and "
            "`training.keep`"
        )


def _by_epoch(key: str, values: dict) -> dict[int, Any]:
    try:
        by_epoch.check(key, values)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return {int(epoch): value for epoch, value in values.items()}


def _named(key, value, choices):
    if not isinstance(value, str) or value not in choices:
        raise RecipeError(f"`{key}` must be one of {', '.join(sorted(choices))}. Received: {value}")


def complete(schema: Schema, given: dict) -> dict:
    """What was given, with the defaults of the schema filled in; types and ranges checked.

    Raises:
        RecipeError: naming the key that is missing, unknown or out of range.
    """
    return _merge(schema, schema.defaults, given, "")


def _merge(schema: Schema, defaults: dict, given: dict, prefix: str) -> dict:
    for key in given:
        if key not in defaults:
            raise RecipeError(
                f"`{prefix}{key}` is not a key of {schema.what}. Known: "
                f"{', '.join(prefix + k for k in defaults)}"
            )
    result: dict = {}
    for key, default in defaults.items():
        path = prefix + key
        if key not in given:
            if default is ...:
                raise RecipeError(f"`{path}` is missing")
            nested = isinstance(default, dict)
            result[key] = (
                _merge(schema, default, {}, path + ".") if nested else copy.deepcopy(default)
            )
        elif isinstance(default, dict):
            if not isinstance(given[key], dict):
                raise RecipeError(f"`{path}` must be a mapping. Received: {given[key]!r}")
            free = not default
            result[key] = (
                dict(given[key]) if free else _merge(schema, default, given[key], path + ".")
            )
        else:
            result[key] = _checked(schema, path, given[key], default)
    return result


def _checked(schema: Schema, path: str, value: Any, default: Any) -> Any:
    if path in schema.by_epoch and isinstance(value, dict):
        values = _by_epoch(path, value)
        return {epoch: _checked(schema, path, v, default) for epoch, v in values.items()}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) and value in schema.words.get(path, ()):
        return value
    kind = schema.required.get(path, type(default))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        allowed = " or ".join([f"of type {kind.__name__}", *map(repr, schema.words.get(path, ()))])
        raise RecipeError(f"`{path}` must be {allowed}. Received: {value!r}")
    if path in schema.ranges:
        low, high = schema.ranges[path]
        number: Any = value
        if not number >= low or (high is not None and number > high):  # NaN is neither
            allowed = f"at least {low}" if high is None else f"in [{low}, {high}]"
            raise RecipeError(f"`{path}` must be {allowed}. Received: {value}")
    if path in schema.choices:
        _named(path, value, schema.choices[path])
    return value


def _eps(value) -> float:
    """A positive radius: a number, or a fraction such as ``36/255``."""
    try:
        eps = float(Fraction(str(value)))
    except (ValueError, ArithmeticError):
        eps = -1.0
    if not 0 < eps < float("inf"):
        raise RecipeError(f"`evaluation.eps` must hold positive numbers. Received: {value!r}")
    return eps
