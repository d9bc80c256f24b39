#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow: `keras.ops.add(x, b)` is not always x + b broadcast.
#
# If b has one axis longer than 1, and that length is also the length of x's second or last axis, the
# backend squeezes b and hands it to `tf.nn.bias_add`, for the sake of a fused kernel. Which axis is
# meant is then guessed from the length alone, the last one first. So for x of shape (n, C, H, C) and b
# of shape (1, C, 1, 1) the numbers are added along the last axis, silently; the same shapes give what
# NumPy gives with `x + b` on tensors, and with `keras.ops.add` where the two axes differ in length.
# `Conv2D(data_format="channels_first")` adds its bias so, and is wrong on images as wide as it has
# filters. Who reads the graph of such a model as "x + b" (an exporter, a verifier) proves something
# about another function on this backend.
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

import keras
import numpy as np
import tensorflow as tf

b = np.array([1.0, 2.0, 3.0], "float32").reshape(1, 3, 1, 1)
wide, square = (np.zeros((2, 3, 4, width), "float32") for width in (4, 3))


def added(x):
    return np.asarray(keras.ops.add(x, b))[0, :, 0, 0].tolist()


layer = keras.layers.Conv2D(3, 1, data_format="channels_first")
layer.build((None, 2, 4, 3))
layer.bias.assign(b.ravel())
convolved = np.asarray(layer(np.zeros((1, 2, 4, 3), "float32")))
found = {
    "width 4": added(wide),
    "width 3": added(square),
    "numpy, width 3": (square + b)[0, :, 0, 0].tolist(),
    "bias of Conv2D along the channels": convolved[0, :, 0, 0].tolist(),
    "bias of Conv2D along the width": convolved[0, 0, 0, :].tolist(),
}
print("keras", keras.__version__, "tensorflow", tf.__version__)
for name, numbers in found.items():
    print(f"{name}: {numbers}")
expected = [[1, 2, 3], [1, 1, 1], [1, 2, 3], [1, 1, 1], [1, 2, 3]]
sys.exit(list(found.values()) != expected)
PY
# Output:
# keras 3.15.1 tensorflow 2.21.0
# width 4: [1.0, 2.0, 3.0]
# width 3: [1.0, 1.0, 1.0]
# numpy, width 3: [1.0, 2.0, 3.0]
# bias of Conv2D along the channels: [1.0, 1.0, 1.0]
# bias of Conv2D along the width: [1.0, 2.0, 3.0]
