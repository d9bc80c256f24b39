#!/usr/bin/env bash
# Keras 3.15.1, TensorFlow 2.21.0, ai-edge-litert 2.3.0: `softplus` in one LiteRT file has three ceilings.
#
# TensorFlow and Keras have a softplus that is x for large x. The LiteRT format has none, so the converter behind
# `model.export(format="litert")` (and `tf.lite.TFLiteConverter`) writes log(1 + exp(x)). Who knows that expects an
# infinity above 88.7, which a test of the outputs would find. `tf.lite.Interpreter` with its XNNPACK delegate gives it.
# The newer ai-edge-litert, whose delegate bounds the argument of exp, gives 88.376 for whatever is larger; both without
# a delegate give 88.723, for their own exp stops at the largest float32. So a network that trained with outputs of
# some hundreds (a variance, a rate, an energy) is finite, flat and wrong after its export, and how wrong is a matter of
# the interpreter, not of the file. At the other end nothing is left below -17, where softplus is exp(x): a scale
# that was 4e-8 is 0, and what divides by it is not finite. `max(x, 0) + log(1 + exp(-|x|))` cures the first.
#
# Seen on a CPU. Exit code 0: it still is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'keras==3.15.1' 'tensorflow-cpu==2.21.0' 'ai-edge-litert==2.3.0' 'numpy<3' 2>"$folder/pip.log" ||
  { cat "$folder/pip.log" >&2; exit 2; }
cd "$folder"
KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import sys
from importlib.metadata import version

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import interpreter as litert
from keras import ops

x = np.array([[-20, -17, 0, 80, 88.5, 100, 1000]], "float32")


def write(activation, path):
    inputs = keras.Input((x.shape[1],))
    model = keras.Model(inputs, keras.layers.Activation(activation)(inputs))
    model.export(path, format="litert", verbose=False)
    return np.asarray(model(x))[0]


def run(interpreter, path, **options):
    graph = interpreter(path, **options)
    graph.allocate_tensors()
    graph.set_tensor(graph.get_input_details()[0]["index"], x)
    graph.invoke()
    return graph.get_tensor(graph.get_output_details()[0]["index"])[0]


def show(name, numbers):
    print(f"{name:28s}", " ".join(f"{number:8.4g}" for number in numbers))


bare = "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
runs = {
    "TensorFlow": (tf.lite.Interpreter, {}),
    "TensorFlow, no delegate": (
        tf.lite.Interpreter,
        {"experimental_op_resolver_type": tf.lite.experimental.OpResolverType[bare]},
    ),
    "ai-edge-litert": (litert.Interpreter, {}),
    "ai-edge-litert, no delegate": (
        litert.Interpreter,
        {"experimental_op_resolver_type": litert.OpResolverType[bare]},
    ),
}
print("keras", keras.__version__, "tensorflow", tf.__version__, "ai-edge-litert", version("ai-edge-litert"))
show("x", x[0])
truth = write("softplus", "plain.tflite")
show("Keras", truth)
found = {name: run(kind, "plain.tflite", **options) for name, (kind, options) in runs.items()}
for name, numbers in found.items():
    show(name, numbers)
write(lambda x: ops.relu(x) + ops.log(1 + ops.exp(-ops.abs(x))), "cured.tflite")
cured = [run(kind, "cured.tflite", **options) for kind, options in runs.values()]
show("cured", cured[2])
ceilings = [float(numbers[-1]) for numbers in found.values()]
wanted = [np.inf, np.log(np.finfo("float32").max), 88.3763, np.log(np.finfo("float32").max)]
sys.exit(
    not (
        np.allclose(ceilings, wanted, rtol=1e-5)
        and all((numbers[:2] == 0).all() for numbers in found.values())
        and truth[0] > 2e-9
        and truth[-1] == 1000
        and all(np.allclose(numbers, truth, atol=1e-6) for numbers in cured)
    )
)
PY
# Output:
# keras 3.15.1 tensorflow 2.21.0 ai-edge-litert 2.3.0
# x                                 -20      -17        0       80     88.5      100     1000
# Keras                        2.061e-09 4.14e-08   0.6931       80     88.5      100     1000
# TensorFlow                          0        0   0.6931       80      inf      inf      inf
# TensorFlow, no delegate             0        0   0.6931       80     88.5    88.72    88.72
# ai-edge-litert                      0        0   0.6931       80    88.38    88.38    88.38
# ai-edge-litert, no delegate         0        0   0.6931       80     88.5    88.72    88.72
# cured                               0        0   0.6931       80     88.5      100     1000
