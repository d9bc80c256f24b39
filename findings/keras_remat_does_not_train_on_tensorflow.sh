#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow 2.21.0: a network of Dense layers built in a `keras.RematScope` cannot be fitted.
#
# The scope promises activations that are computed again in the backward pass instead of kept. On TensorFlow it stands on
# `tf.recompute_grad`, a custom gradient, which in a graph refuses keyword arguments; Keras hands its layers `training`
# and the like as such. So the first step of `fit` ends in a ValueError for the modes that wrap whole layers ("full" and
# "larger_than"); "activations", which wraps functions of one argument, trains. So does "full" eagerly
# (`run_eagerly=True`), and on JAX, where the memory of a step of 16 layers of 512 units falls as promised (by XLA's own
# count). Who plans a batch size by the scope has to know the backend.
#
# Seen on a CPU. Exit code 0: it still is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'keras==3.15.1' 'tensorflow==2.21.0' 'jax==0.10.2' 'numpy<3' 2>"$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 2; }
cat >"$folder/network.py" <<'PY'
import contextlib

import keras


def network(mode, units=16, layers=2):
    scope = contextlib.nullcontext()
    if mode == "larger_than":
        scope = keras.RematScope(mode=mode, output_size_threshold=1)
    elif mode:
        scope = keras.RematScope(mode=mode)
    with scope:
        hidden = [keras.layers.Dense(units, activation="gelu") for _ in range(layers)]
        return keras.Sequential([keras.Input((units,)), *hidden])
PY
cd "$folder"
KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3 venv/bin/python - <<'PY' 2>/dev/null
import sys

import keras
import numpy as np
import tensorflow as tf
from network import network

x = np.random.default_rng(0).normal(size=(8, 16)).astype("float32")


def outcome(mode, **how):
    keras.utils.set_random_seed(0)
    model = network(mode)
    model.compile("sgd", "mse", **how)
    try:
        model.fit(x, x, verbose=0)
    except ValueError as error:
        refused = "keywords arguments only when eager" in str(error)
        return "refused: keyword arguments in a graph" if refused else str(error)
    return "trains"


print("keras", keras.__version__, "tensorflow", tf.__version__)
found = {str(mode): outcome(mode) for mode in (None, "full", "activations", "larger_than")}
found["full, eagerly"] = outcome("full", run_eagerly=True)
for mode, what in found.items():
    print(f"{mode:14s} {what}")
refused = "refused: keyword arguments in a graph"
expected = ["trains", refused, "trains", refused, "trains"]
sys.exit(list(found.values()) != expected)
PY
KERAS_BACKEND=jax venv/bin/python - <<'PY' 2>/dev/null
import sys

import jax
import numpy as np
from keras import ops
from network import network


def mebibytes(mode):
    model = network(mode, 512, 16)
    weights = [v.value for v in model.trainable_variables]

    def loss(weights, x):
        return ops.sum(model.stateless_call(weights, [], x, training=True)[0] ** 2)

    step = jax.jit(jax.grad(loss)).lower(weights, np.ones((2048, 512), "float32")).compile()
    return step.memory_analysis().temp_size_in_bytes / 2**20


plain, again = mebibytes(None), mebibytes("full")
print(f"jax {jax.__version__}: {plain:.0f} MiB of activations and buffers, {again:.0f} in the scope")
sys.exit(not again < 0.7 * plain)
PY
