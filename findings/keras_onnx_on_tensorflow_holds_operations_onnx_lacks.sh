#!/usr/bin/env bash
# Keras 3.15.1 with tf2onnx 1.17.0: an ONNX file that is no ONNX, for GELU, argmax and log1p among others.
#
# A converter that meets an operation which it cannot translate is expected to stop. tf2onnx logs "is not supported",
# among TensorFlow's own lines, and keeps the node under its TensorFlow name in the domain of ONNX itself, where no such
# operation exists: Erfc, Expm1, Log1p, Bitcast. `model.export(format="onnx")` on TensorFlow returns as if all were well.
# The file is refused as late as a runtime loads it, or by `onnx.checker`, which Keras does not ask. What falls under it
# follows from how TensorFlow spells a function this year. TensorFlow 2.21 has one operation for the exact GELU, inside
# of which is an erfc: refused, while erf, of which erfc is the rest to 1, is translated. An argmax of floats goes
# through their bits: refused, while top_k, and an argmax of integers, are translated. log(1 + x) is, log1p(x) is not.
#
# Seen on a CPU. Exit code 0: it still is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'keras==3.15.1' 'tensorflow-cpu==2.21.0' \
  'tf2onnx==1.17.0' 'onnx==1.23.2' 'onnxruntime==1.32.0' 'numpy<3' 2>"$folder/pip.log" ||
  { cat "$folder/pip.log" >&2; exit 2; }
cd "$folder"
KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import sys
from importlib.metadata import version

import keras
import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
from keras import ops

x = np.linspace(0.1, 0.9, 4, dtype="float32")[None]
functions = {
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu by erf": lambda x: 0.5 * x * (1.0 + ops.erf(float(np.sqrt(0.5)) * x)),
    "argmax": lambda x: ops.argmax(x, axis=1),
    "argmax of integers": lambda x: ops.argmax(ops.cast(100 * x, "int32"), axis=1),
    "top_k": lambda x: ops.top_k(x, 1)[1],
    "log1p": ops.log1p,
    "log of 1 + x": lambda x: ops.log(1.0 + x),
    "celu": ops.celu,
    "elu": ops.elu,
}
known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
found = {}
for name, function in functions.items():
    inputs = keras.Input((x.shape[1],))
    model = keras.Model(inputs, function(inputs))
    wanted = np.asarray(model(x))
    model.export(f"{name}.onnx", format="onnx", verbose=False)
    graph = onnx.load(f"{name}.onnx").graph
    foreign = sorted({node.op_type for node in graph.node if node.domain == ""} - known)
    try:
        session = onnxruntime.InferenceSession(f"{name}.onnx")
        given = session.run(None, {session.get_inputs()[0].name: x})[0]
        runs = bool(np.allclose(given, wanted, rtol=1e-4))
    except Exception as error:
        runs = f"refused ({type(error).__name__})"
    found[name] = foreign, runs
print("keras", keras.__version__, "tensorflow", tf.__version__, "tf2onnx", version("tf2onnx"))
for name, (foreign, runs) in found.items():
    print(f"{name:20s} not in ONNX: {', '.join(foreign) or 'none':10s} onnxruntime:", "right" if runs is True else runs)
refused = {name: foreign for name, (foreign, runs) in found.items() if runs is not True}
sys.exit(refused != {"gelu": ["Erfc"], "argmax": ["Bitcast"], "log1p": ["Log1p"], "celu": ["Expm1"]})
PY
# Output:
# keras 3.15.1 tensorflow 2.21.0 tf2onnx 1.17.0
# gelu                 not in ONNX: Erfc       onnxruntime: refused (InvalidGraph)
# gelu by erf          not in ONNX: none       onnxruntime: right
# argmax               not in ONNX: Bitcast    onnxruntime: refused (InvalidGraph)
# argmax of integers   not in ONNX: none       onnxruntime: right
# top_k                not in ONNX: none       onnxruntime: right
# log1p                not in ONNX: Log1p      onnxruntime: refused (InvalidGraph)
# log of 1 + x         not in ONNX: none       onnxruntime: right
# celu                 not in ONNX: Expm1      onnxruntime: refused (InvalidGraph)
# elu                  not in ONNX: none       onnxruntime: right
