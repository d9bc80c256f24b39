#!/usr/bin/env bash
# Keras 3.15.1 on JAX: of a model whose optimizer averages its weights (`use_ema=True`), a second `fit` loses the weights.
#
# `fit` ends by putting the averages in the place of the weights. It assigns the arrays themselves, so that each weight and
# its average are one buffer from then on. The step of the next `fit` is handed both and told that it may reuse the memory of
# its arguments; a buffer that is given away twice is refused by JAX, at a moment when Keras has already taken the arrays out
# of the model's variables. What is said is "'NoneType' object is not callable"; the weights are gone, and so is what was
# trained. One `fit` of many epochs is fine, and so are two where the weights are given arrays of their own in between.
# Callers that call `fit` once an epoch, search tools and fine-tuning in stages run into it. On TensorFlow and PyTorch the
# second `fit` goes on from the averages.
#
# Seen on a CPU with JAX 0.10.2. Exit code 0: it still is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'keras==3.15.1' 'jax==0.10.2' 'numpy<3' 2>"$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 2; }
cd "$folder"
KERAS_BACKEND=jax venv/bin/python - <<'PY' 2>/dev/null
import sys

import jax
import keras
import numpy as np

x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")


def fitted(average, between=None, epochs=1):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    model.compile(keras.optimizers.SGD(0.1, use_ema=average), "mse")
    model.fit(x, x, epochs=epochs, verbose=0)
    if between:
        between(model)
    return model


def shared(model):
    averages = model.optimizer._model_variables_moving_average
    return all(v.value is a.value for v, a in zip(model.trainable_variables, averages))


def second_fit(model):
    try:
        model.fit(x, x, verbose=0)
    except TypeError as error:
        return f"refused: {error}"
    return "trains"


def own_arrays(model):
    for variable in model.trainable_variables:
        variable.assign(np.array(variable))


print("keras", keras.__version__, "jax", jax.__version__)
model = fitted(True)
one_buffer = shared(model)
print("after one fit each weight and its average are one array:", one_buffer)
refused = second_fit(model)
gone = all(v._value is None for v in model.trainable_variables)
print("second fit:", refused)
print("the variables of the model hold nothing:", gone)
print("without averages:", second_fit(fitted(False)))
print("three epochs in one fit: loss", round(fitted(True, epochs=3).history.history["loss"][-1], 3))
print("with arrays of their own in between:", second_fit(fitted(True, own_arrays)))
expected = one_buffer and gone and refused == "refused: 'NoneType' object is not callable"
expected &= second_fit(fitted(False)) == second_fit(fitted(True, own_arrays)) == "trains"
sys.exit(not expected)
PY
