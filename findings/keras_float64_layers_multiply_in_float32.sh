#!/usr/bin/env bash
# Keras 3.15.1 on PyTorch: a layer of dtype "float64" multiplies in float32.
#
# Policy, weights, inputs and output of `Dense(dtype="float64")` are all float64; the product between
# them is not: `keras.backend.result_type` makes float32 of ("float64", "float64"), `keras.ops.matmul`
# casts both factors to it, and the layer's result is cast up again. So an array of type float64 holds
# seven digits. On TensorFlow, and on JAX with x64 switched on, the same layer is right to sixteen. Who validates a network in float64 to get rounding out of the way, or takes a reference from
# such a model, has float32 rounding in it, and nothing in a dtype says so.
#
# Seen on a CPU. Exit code 0: it still is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'keras==3.15.1' 'torch==2.13.0' 'numpy<3' 2>"$folder/pip.log" ||
  { cat "$folder/pip.log" >&2; exit 2; }
KERAS_BACKEND=torch "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import sys

import keras
import numpy as np
import torch

x = np.random.default_rng(0).normal(size=(4, 50))
layer = keras.layers.Dense(3, dtype="float64")
y = layer(x)
kernel = layer.kernel.value.detach().numpy()
error = float(np.abs(y.detach().numpy() - x @ kernel).max())
plain = float(np.abs(torch.matmul(torch.tensor(x), torch.tensor(kernel)).numpy() - x @ kernel).max())
kinds = [str(y.dtype).split(".")[-1], str(kernel.dtype), keras.backend.result_type("float64", "float64")]
print("keras", keras.__version__, "torch", torch.__version__.split("+")[0])
print("output, kernel, result_type of two float64:", *kinds)
print(f"error of Dense in float32 units: {error > 1e-9}, of torch.matmul: {plain > 1e-9}")
sys.exit(not (kinds == ["float64", "float64", "float32"] and error > 1e-9 > plain))
PY
# Output:
# keras 3.15.1 torch 2.13.0
# output, kernel, result_type of two float64: float64 float64 float32
# error of Dense in float32 units: True, of torch.matmul: False
