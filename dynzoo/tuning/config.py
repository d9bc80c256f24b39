"""The description of a search: a recipe, a space of values around it, and how to go about it."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynzoo.training import recipes
from dynzoo.training.recipes import RecipeError, Schema
from dynzoo.tuning.space import Dimension
from dynzoo.utils.formatting import eps_text

__all__ = ["OBJECTIVES", "TUNERS", "SearchConfig"]

TUNERS = ("random", "hyperband", "bayesian", "grid", "optuna")
OBJECTIVES = ("certified", "attacked", "clean")
_KEYS = ("recipe", "space", "search")

_SCHEMA = Schema(
    what="a search",
    defaults={
        "search": {
            "tuner": "random",
            "max_trials": 20,
            "objective": "certified",
            "seed": 0,
            "seconds_per_trial": 0.0,  # 0: as long as the recipe's epochs take
            "max_model_size": 0,  # parameters; 0: any
            "attacks": "none",
            "attack_images": 256,  # of the held-out images, the first ones
            "initial_points": 0,  # of bayesian and optuna; 0: a third of the trials
            "factor": 3,  # of Hyperband: by how much each round has fewer trials and more epochs
        }
    },
    ranges={
        "search.max_trials": (1, None),
        "search.seed": (0, None),
        "search.seconds_per_trial": (0, None),
        "search.max_model_size": (0, None),
        "search.attack_images": (1, None),
        "search.initial_points": (0, None),
        "search.factor": (2, None),
    },
    choices={
        "search.tuner": TUNERS,
        "search.objective": OBJECTIVES,
        "search.attacks": ("none", "fast", "pgd_margin", "standard"),
    },
    required={},
)


@dataclass(frozen=True)
class SearchConfig:
    """A complete search: recipe, dimensions of the space, and settings.

    Args:
        recipe: the recipe around which is searched, complete.
        space: dimensions of the space: keys of the recipe and the values that they may take.
        settings: the section ``search``, complete: tuner, objective, limits.

    Example:

    >>> from dynzoo.tuning import SearchConfig
    >>> SearchConfig.load("digits").settings["max_trials"]
    20
    """

    recipe: dict[str, Any]
    space: tuple[Dimension, ...]
    settings: dict[str, Any]

    @classmethod
    def load(cls, source: Any) -> SearchConfig:
        """Reads and checks a search from a mapping, a YAML file, or the name of one that ships.

        Raises:
            RecipeError: naming the file and the key that is wrong.
        """
        if isinstance(source, SearchConfig):
            return source
        if isinstance(source, dict):
            return cls._checked(source)
        path = recipes.find(os.fspath(source), kind="search")
        content = recipes.read(path, _KEYS)
        try:
            return cls._checked(content, path.parent)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from None

    @classmethod
    def _checked(cls, given: dict, beside: Path | None = None) -> SearchConfig:
        for key in given:
            if key not in _KEYS:
                raise RecipeError(f"`{key}` is not a key of a search. Known: {', '.join(_KEYS)}")
        for key in ("recipe", "space"):
            if key not in given:
                raise RecipeError(f"`{key}` is missing")
        source = given["recipe"]
        if not isinstance(source, str | dict):
            raise RecipeError(f"`recipe` must be a recipe or the name of one. Received: {source!r}")
        if isinstance(source, str) and beside is not None and (beside / source).is_file():
            source = beside / source
        recipe = recipes.load(source)
        settings = recipes.complete(_SCHEMA, {k: v for k, v in given.items() if k == "search"})
        config = cls(recipe, _dimensions(recipe, given["space"]), settings["search"])
        config._check_together()
        return config

    def _check_together(self) -> None:
        keys = [key for d in self.space for key in d.keys]
        for key in keys:
            inner = [k for k in keys if k.startswith(key + ".")]
            if inner or keys.count(key) > 1:
                other = inner[0] if inner else key
                raise RecipeError(f"`space.{key}` contains `space.{other}`: give one of them")
        if self.settings["objective"] == "attacked" and self.settings["attacks"] == "none":
            raise RecipeError(
                "`search.attacks` must say what attacks for `search.objective: attacked`, such as "
                "fast. Received: none"
            )
        if self.settings["tuner"] == "optuna" and importlib.util.find_spec("optuna") is None:
            raise RecipeError(
                "`search.tuner` must be another one, or Optuna be installed: "
                "pip install 'dynzoo[optuna]'. Received: optuna"
            )
        if self.settings["tuner"] == "hyperband" and "training.epochs" in keys:
            raise RecipeError("`space.training.epochs` is what the hyperband tuner chooses itself")

    def values(self, tuned: dict[str, Any]) -> dict[str, Any]:
        """The recipe's values, by the key of their dimension, for values of keras-tuner's."""
        return {d.key: d.decode(tuned[d.key]) for d in self.space}

    def recipe_of(self, values: dict[str, Any], epochs: int | None = None) -> dict[str, Any]:
        """The complete recipe for values by the key of their dimension.

        Args:
            values: as ``values`` gives them.
            epochs: length of the training where the tuner decides on it, else ``None``; weights
                are not averaged then.

        Raises:
            RecipeError: if they do not go together.
        """
        recipe = self.recipe
        for dimension in self.space:
            recipe = dimension.put(recipe, values[dimension.key])
        if epochs is not None:
            length = {"epochs": epochs, "average": []}
            recipe = {**recipe, "training": {**recipe["training"], **length}}
        return recipes.validate(recipe)

    def with_settings(self, **settings: Any) -> SearchConfig:
        """The same search with other settings, checked; those that are ``None`` stay."""
        given = {k: v for k, v in settings.items() if v is not None}
        complete = recipes.complete(_SCHEMA, {"search": {**self.settings, **given}})
        result = replace(self, settings=complete["search"])
        result._check_together()
        return result

    @property
    def objective(self) -> str:
        return self.settings["objective"]

    @property
    def radius(self) -> str:
        """The radius at which is certified and attacked, as papers write it."""
        return eps_text(self.recipe["evaluation"]["eps"][0])

    def to_dict(self) -> dict[str, Any]:
        """A mapping of plain values that ``load`` takes."""
        return {
            "recipe": self.recipe,
            "space": {d.key: d.values for d in self.space},
            "search": self.settings,
        }


def _dimensions(recipe: dict, space: Any) -> tuple[Dimension, ...]:
    if not isinstance(space, dict) or not space:
        raise RecipeError(
            "`space` must map keys of the recipe, such as architecture.widths, to values. "
            f"Received: {space!r}"
        )
    dimensions = []
    for key, values in space.items():
        dimension = Dimension(str(key), values, recipe)
        for value in dimension.extremes():
            try:
                recipes.validate(dimension.put(recipe, value))
            except RecipeError as error:
                raise RecipeError(f"`space.{key}`: {error}") from None
        dimensions.append(dimension)
    return tuple(dimensions)
