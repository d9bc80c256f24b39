"""A tiny search, and trials that take no time: what a search does is not what its networks do."""

import copy
import importlib.util

import numpy as np
import pytest
from training_fixtures import RECIPE

from dynzoo.tuning.config import TUNERS

# The tuners of a config; one of an extra is skipped where that is not installed.
ALL_TUNERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "optuna" and importlib.util.find_spec("optuna") is None,
            reason="optuna is not installed: pip install 'dynzoo[optuna]'",
        ),
    )
    for name in TUNERS
]
SEARCH = {
    "recipe": {
        **RECIPE,
        "architecture": {**RECIPE["architecture"], "step_size": 2.0, "between": "maxmin"},
        "data": {**RECIPE["data"], "name": "digits"},
        "training": {**RECIPE["training"], "epochs": 2},
    },
    "space": {
        "architecture.widths": [[12], [16], [8]],
        "architecture.step_size": [0.5, 1.0, 2.0],
        "training.loss.offset": {"min": 0.1, "max": 1.0, "sampling": "log"},
    },
    "search": {"tuner": "random", "max_trials": 6},
}


def changed(**changes):
    """The tiny search with other settings, or another `space`, or changes to its `architecture`."""
    result = copy.deepcopy(SEARCH)
    result["space"] = changes.pop("space", result["space"])
    result["recipe"]["architecture"].update(changes.pop("architecture", {}))
    result["search"].update(changes)
    return result


def write_images(path):
    """120 random images of 8x8 pixels in three classes, each with a mark that tells its class."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)
    y = rng.integers(0, 3, 120)
    y[:3] = [0, 1, 2]
    x[np.arange(120), 0, 0, y] = 255
    np.savez(path, x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    return path


class Trials:
    """Stands in for `attempt`: numbers that depend on the values alone, and a list of who ran."""

    def __init__(self):
        self.ran = []
        self.lengths = []

    def __call__(self, hypermodel, hp, folder, worker, past):
        self.ran.append(folder.name)
        self.lengths.append((folder.name, past and past.name, hp.values.get("tuner/epochs")))
        values = hypermodel.config.values(hp.values)
        offset = values.get("training.loss.offset", 0.2)
        record = {"worker": worker, "seconds": 1.0}
        if values.get("architecture.widths") == [16] and offset > 0.5:
            return {**record, "status": "failed", "reason": "not this one"}
        certified = round(1 - offset / 2 - values.get("architecture.step_size", 2.0) / 10, 6)
        measured = {"clean": 0.9, "certified": certified, "parameters": 100, "epochs": 2}
        return {**record, "status": "completed", **measured}
