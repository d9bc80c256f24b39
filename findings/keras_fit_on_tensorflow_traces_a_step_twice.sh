#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow 2.21.0: the first step of `fit` is traced twice, unless all variables are made before it.
#
# `tf.function` traces a function a second time if its first trace made variables. Keras' TensorFlow trainer leaves the
# optimizer's variables (momenta, second moments) and those of the metrics to the first step, so the forward pass, the
# gradients, the update and every constraint are put into a graph two times, and the first graph is thrown away. On the
# other backends the trainer makes the variables before. With plain layers it costs a second; with an optimizer or
# constraints of many small products (Muon, Newton-Schulz) it is half of what one waits for the first step. Building
# the optimizer is not enough: one metric that is not built brings the second trace back. One trace is left after
# `optimizer.build(...)` and one call of `compute_metrics` on dummies of the labels' shape.
#
# Seen on a CPU. Exit code 0: it still is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'keras==3.15.1' 'tensorflow==2.21.0' 'numpy<3' 2>"$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 2; }
KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from keras import ops

x = np.random.default_rng(0).normal(size=(64, 32)).astype("float32")
y = np.arange(64) % 10


class Loss(keras.losses.SparseCategoricalCrossentropy):
    traces = 0

    def call(self, *given):
        Loss.traces += 1  # Python runs this while a graph is made, not in a step
        return super().call(*given)


def fit(build):
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(64, activation="relu") for _ in range(8)]
    model = keras.Sequential([keras.Input((32,)), *hidden, keras.layers.Dense(10)])
    model.compile(keras.optimizers.Muon(0.01), Loss(from_logits=True), metrics=["accuracy"], jit_compile=False)
    Loss.traces, begin = 0, time.process_time()
    if "optimizer" in build:
        model.optimizer.build(model.trainable_variables)
    if "metrics" in build:
        model.compute_metrics(None, ops.zeros((1,), "int32"), ops.zeros((1, 10)))
        model.reset_metrics()
    loss = model.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0).history["loss"]
    print(f"built before: {' and '.join(build) or 'nothing':22s} traces {Loss.traces}  CPU s {time.process_time() - begin:.1f}")
    return Loss.traces, loss


print("keras", keras.__version__, "tensorflow", tf.__version__)
fit(())  # what a process pays once
found = [fit(build) for build in ((), ("optimizer",), ("metrics",), ("optimizer", "metrics"))]
same = all(np.allclose(loss, found[0][1], rtol=1e-6) for _, loss in found)
print("the same losses:", same)
sys.exit([traces for traces, _ in found] != [2, 2, 2, 1] or not same)
PY
