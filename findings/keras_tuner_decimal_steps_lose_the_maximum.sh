#!/usr/bin/env bash
# keras-tuner 1.4.8 with Keras 3.15.1: most ranges with a decimal step never try their maximum.
#
# `hp.Float("x", 0.0, 1.0, step=0.1)` is documented to include both ends. The number of values is counted as
# `(max - min) // step + 1` in floating point, and 1.0 // 0.1 is 9.0, so there are ten values, 0 to 0.9: no random,
# Bayesian or grid search reaches 1.0. Ranges with `sampling="log"` are counted with a tolerance, and 0 to 0.4 by 0.1 has
# all its five values (of 0 to n tenths, n = 2 to 14, only n = 2, 4, 8 and 11 are whole), so one sees it on some ranges
# and not on others. A value given from outside suffers too: 0.3 in 0 to 0.3 is taken as a value, but its place in the
# unit interval, from which an oracle learns, is that of 0.2. What looks like a plateau at the edge of a search may be an
# edge that was never there.
#
# Exit code 0: it still is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'keras==3.15.1' 'keras-tuner==1.4.8' 'six==1.17.0' 'jax==0.10.2' 'jaxlib==0.10.2' 'numpy<3' 2>"$folder/pip.log" ||
  { cat "$folder/pip.log" >&2; exit 2; }
cd "$folder"
KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import sys

import keras
import keras_tuner as kt
import numpy as np


def drawn(high):
    parameter = kt.engine.hyperparameters.Float("x", 0.0, high, step=0.1)
    return sorted({round(parameter.prob_to_value(p), 10) for p in np.linspace(0, 0.9999, 2000)})


class Grid(kt.GridSearch):
    def run_trial(self, trial, *args, **kwargs):
        tried.append(round(trial.hyperparameters.get("x"), 10))
        return tried[-1]


tried, space = [], kt.HyperParameters()
space.Float("x", 0.0, 0.3, step=0.1)
Grid(
    hypermodel=lambda hp: None, hyperparameters=space, objective=kt.Objective("score", "max"),
    max_trials=50, directory=".", project_name="grid", overwrite=True,
).search(verbose=0)
whole = [n for n in range(2, 15) if len(drawn(n / 10)) == n + 1]
third = kt.engine.hyperparameters.Float("x", 0.0, 0.3, step=0.1)
places = third.value_to_prob(0.2), third.value_to_prob(0.3)
print("keras", keras.__version__, "keras-tuner", kt.__version__)
print("0 to 1 by 0.1:", drawn(1.0), "grid of 0 to 0.3:", sorted(tried))
print("0 to n tenths has n + 1 values for n =", whole, "places of 0.2 and 0.3:", places)
sys.exit(
    not (
        drawn(1.0)[-1] == 0.9
        and sorted(tried) == [0.0, 0.1, 0.2]
        and whole == [2, 4, 8, 11]
        and places[0] == places[1]
    )
)
PY
