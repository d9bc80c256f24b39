"""One dimension of a search space: keys of the recipe, and the values that they may take."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

from dynzoo.augmentation.batches import DISTORTIONS
from dynzoo.training.recipes import RecipeError

__all__ = ["Dimension"]

# What may be tuned. The rest says what is compared with what, and stays as it is.
_SECTIONS = ("architecture", "training")
_SINGLE = tuple(f"data.{key}" for key in ("crop_padding", "flip", *DISTORTIONS))
_RANGE = ("min", "max", "sampling", "step")
# keras-tuner hands numbers to its workers in single precision: more digits would not come through
_DIGITS = 6
_MOST_STEPS = 10_000


class Dimension:
    """A key of the recipe and its values: a list of choices, or a range of numbers.

    Args:
        key: dotted key, such as ``"architecture.widths"``; or several with commas between, which
            change together: each choice is then a list with a value for each of them.
        values: a list of at least two different values of any kind; or a mapping with ``min`` and
            ``max`` (integers give integers if the recipe has one, else floats), ``sampling``
            (``"linear"`` or ``"log"``) and ``step`` (an increment, or a factor for ``"log"``): the
            values are then ``min``, ``min + step`` and so on up to ``max``, which is one of them
            where it is a whole number of decimal steps away, and the recipe's own.
        recipe: a complete recipe, whose own value must be one of these.

    Raises:
        RecipeError: naming the key, if the values are not as described.

    Example:

    >>> Dimension("training.loss.offset", {"min": 0.1, "max": 1.0}, recipe)
    """

    def __init__(self, key: str, values: Any, recipe: dict):
        self.keys = [part.strip() for part in key.split(",")]
        self.key = ", ".join(self.keys)
        self.values = values
        for part in self.keys:
            inner = any(part.startswith(s + ".") for s in _SECTIONS)
            if not inner and part not in _SINGLE:
                raise RecipeError(
                    f"`space.{part}` cannot be searched: a key must begin with architecture. or "
                    f"training., or be one of {', '.join(_SINGLE)}"
                )
        own = [_value_at(recipe, part) for part in self.keys]
        self.default = own if self.is_joint else own[0]
        if isinstance(values, list):
            self._check_choices()
        elif isinstance(values, dict) and not self.is_joint:
            self._check_range()
        else:
            raise RecipeError(
                f"`space.{self.key}` must be a list of values"
                + ("" if self.is_joint else " or a range {min: ..., max: ...}")
                + f". Received: {values!r}"
            )

    @property
    def is_joint(self) -> bool:
        return len(self.keys) > 1

    def put(self, recipe: dict, value: Any) -> dict:
        """The recipe with this value; the one that was given is left alone."""
        for part, single in zip(self.keys, value if self.is_joint else [value], strict=True):
            recipe = _with_value(recipe, part, single)
        return recipe

    def _check_choices(self) -> None:
        texts = [json.dumps(value) for value in self.values]
        if len(set(texts)) != len(texts) or len(texts) < 2:
            raise RecipeError(
                f"`space.{self.key}` must list at least two values, all different. "
                f"Received: {self.values!r}"
            )
        if self.is_joint and not all(
            isinstance(v, list) and len(v) == len(self.keys) for v in self.values
        ):
            raise RecipeError(
                f"`space.{self.key}` must list choices of {len(self.keys)} values each. "
                f"Received: {self.values!r}"
            )
        if self.default not in self.values:
            self._refuse_default()

    def _check_range(self) -> None:
        given = self.values
        unknown = [k for k in given if k not in _RANGE]
        low, high = given.get("min"), given.get("max")
        if unknown or not (_is_number(low) and _is_number(high) and low < high):
            raise RecipeError(
                f"`space.{self.key}` must have a `min` below its `max`, and may have `sampling` "
                f"and `step`. Received: {given!r}"
            )
        logarithmic = self.logarithmic
        if given.get("sampling", "linear") not in ("linear", "log") or (logarithmic and low <= 0):
            raise RecipeError(
                f"`space.{self.key}.sampling` must be linear, or log with a positive `min`. "
                f"Received: {given!r}"
            )
        step = given.get("step")
        if step is not None:
            fits = _is_number(step) and step > (1 if logarithmic else 0)
            if not fits or (self.is_integer and not isinstance(step, int)):
                raise RecipeError(
                    f"`space.{self.key}.step` must be positive (above 1 for log), an integer for "
                    f"integers. Received: {given!r}"
                )
            if self._count() > _MOST_STEPS:
                raise RecipeError(
                    f"`space.{self.key}.step` must leave at most {_MOST_STEPS:,} values. "
                    f"Received: {given!r}"
                )
        if not _is_number(self.default) or not low <= self.default <= high:
            self._refuse_default()

    def _refuse_default(self) -> None:
        raise RecipeError(
            f"`space.{self.key}` must contain the recipe's own value, which the first trial takes. "
            f"Received: {self.values!r}, and {self.default!r} in the recipe"
        )

    @property
    def is_range(self) -> bool:
        return isinstance(self.values, dict)

    @property
    def logarithmic(self) -> bool:
        return self.is_range and self.values.get("sampling") == "log"

    @property
    def is_integer(self) -> bool:
        ends = (self.values["min"], self.values["max"], self.default) if self.is_range else ()
        return self.is_range and all(isinstance(value, int) for value in ends)

    @property
    def _ordered(self) -> bool:
        """Choices that keras-tuner may take for numbers."""
        return not self.is_range and all(_is_number(v) for v in self.values)

    def _count(self) -> int:
        """Of the values from ``min`` on, with a step that a float may hold a little off."""
        low, high, step = (self.values[key] for key in ("min", "max", "step"))
        steps = math.log(high / low, step) if self.logarithmic else (high - low) / step
        return math.floor(steps * (1 + 1e-9) + 1e-9) + 1

    def _steps(self) -> list[Any] | None:
        """The values of a range with a step, in order; the recipe's own may stand between.

        keras-tuner counts steps in floats, and loses 0.3 of 0 to 0.3 by 0.1: it is told the values.
        """
        if not self.is_range or self.values.get("step") is None:
            return None
        low, high, step = (self.values[key] for key in ("min", "max", "step"))
        indices = range(self._count())
        if self.logarithmic:
            values = [low * step**i for i in indices]
        else:
            values = [low + step * i for i in indices]
        if self.is_integer:
            return sorted({*values, self.default})
        # as they were written, where a step is one of them
        default: Any = self.default
        own = {float(default), *([float(high)] if _is_close(values[-1], high) else [])}
        rounded = {float(f"{value:.{_DIGITS}g}") for value in values}
        return sorted(own | {v for v in rounded if not any(_is_close(v, e) for e in own)})

    def declare(self, hp: Any) -> None:
        """Registers the dimension with ``keras_tuner.HyperParameters``."""
        if (steps := self._steps()) is not None:
            default: Any = self.default
            hp.Choice(self.key, steps, default=default if self.is_integer else float(default))
            return
        if self.is_range:
            arguments = {
                "min_value": self.values["min"],
                "max_value": self.values["max"],
                "sampling": self.values.get("sampling", "linear"),
                "default": self.default,
            }
            (hp.Int if self.is_integer else hp.Float)(self.key, **arguments)
            return
        hp.Choice(
            self.key, [self._encode(v) for v in self.values], default=self._encode(self.default)
        )

    def _encode(self, value: Any) -> Any:
        """keras-tuner takes numbers and texts: a list, a mapping or a bool becomes its JSON."""
        if not self._ordered:
            return json.dumps(value)
        return value if all(isinstance(v, int) for v in self.values) else float(value)

    def decode(self, value: Any) -> Any:
        """The recipe's value for a value of keras-tuner's."""
        if not self.is_range:
            if self._ordered:
                return min(self.values, key=lambda choice: abs(choice - value))
            return json.loads(value)
        if (steps := self._steps()) is not None:
            return min(steps, key=lambda step: abs(step - value))
        return int(value) if self.is_integer else float(f"{value:.{_DIGITS}g}")

    def extremes(self) -> list[Any]:
        """Values that stand for all when a recipe is checked: all choices, or both ends."""
        return [self.values["min"], self.values["max"]] if self.is_range else list(self.values)


def _value_at(recipe: dict, key: str) -> Any:
    """The value at a dotted key of a recipe.

    Raises:
        RecipeError: if the recipe has no such key.
    """
    node: Any = recipe
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            raise RecipeError(
                f"`space.{key}`: the recipe has no {key}. Give it there a value, which the first "
                "trial takes"
            )
        node = node[part]
    return node


def _with_value(recipe: dict, key: str, value: Any) -> dict:
    """The recipe with another value at a dotted key; the one that was given is left alone."""
    first, _, rest = key.partition(".")
    value = _with_value(recipe[first], rest, value) if rest else copy.deepcopy(value)
    return {**recipe, first: value}


def _is_close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)


def _is_number(value: Any) -> bool:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return numeric and math.isfinite(value)
