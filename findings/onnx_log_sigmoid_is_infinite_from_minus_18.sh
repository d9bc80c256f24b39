#!/usr/bin/env bash
# PyTorch 2.13.0 and onnxruntime 1.32.0: `log_sigmoid` of -18 is minus infinity, and rises where it should fall.
#
# The log of a sigmoid has a name of its own in every framework so that large logits do it no harm: -x in, -x out. ONNX
# has no such operation, and both exporters of PyTorch 2.13 (`dynamo=True` and the older one), hence Keras 3.15.1 on
# PyTorch, write it as Log(Sigmoid(x)), although ONNX has Softplus, of which it is the mirror image. One would then look
# for trouble near -88, where exp leaves float32, and the reference evaluator of the onnx package is right to there.
# onnxruntime's float32 Sigmoid on a CPU is a rational function of x, cut off at 18: right to 1e-7, but not to any digit
# where its value is that small. It is 0 from -18 on, and larger at -17 than at -16 (twice, and half, of what they
# should be). Logits of -18 are everyday: a model whose scores or losses were finite gives -inf after its export, and a
# ranking by log-probability is turned round before that. `-softplus(-x)` is right to -80 and beyond. Nothing that one
# adds a sigmoid to shows the error, and no comparison of outputs by an absolute tolerance does.
#
# Seen on a CPU with AVX2. Exit code 0: it still is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'torch==2.13.0' 'keras==3.15.1' 'onnx==1.23.2' 'onnxscript==0.7.2' 'onnxruntime==1.32.0' 'numpy<3' \
  2>"$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 2; }
cd "$folder"
KERAS_BACKEND=torch "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import sys
import warnings

import keras
import numpy as np
import onnx
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator

warnings.simplefilter("ignore")
x = np.array([[-80, -30, -18, -17, -16, -10, 0]], "float32")
truth = -np.logaddexp(0, -x.astype("float64"))[0]


class Mirror(torch.nn.Module):
    def forward(self, x):
        return -torch.nn.functional.softplus(-x, threshold=100)


def run(path):
    graph = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return graph.run(None, {graph.get_inputs()[0].name: x})[0][0]


def words(path):
    return [node.op_type for node in onnx.load(path).graph.node if node.op_type != "Cast"]


def show(name, numbers):
    print(f"{name:28s}", " ".join(f"{number:8.4f}" for number in numbers))


print("torch", torch.__version__.split("+")[0], "onnxruntime", onnxruntime.__version__, "keras", keras.__version__)
show("x", x[0])
show("PyTorch", torch.nn.functional.logsigmoid(torch.from_numpy(x))[0].numpy())
found = {}
for dynamo in (True, False):
    name = "exporter, dynamo" if dynamo else "exporter, older"
    sys.stdout, stdout = sys.stderr, sys.stdout
    torch.onnx.export(torch.nn.LogSigmoid(), (torch.from_numpy(x),), f"{dynamo}.onnx", dynamo=dynamo)
    sys.stdout = stdout
    found[name] = run(f"{dynamo}.onnx")
    assert words(f"{dynamo}.onnx") == ["Sigmoid", "Log"]
inputs = keras.Input((x.shape[1],))
model = keras.Model(inputs, keras.layers.Activation("log_sigmoid")(inputs))
model(x)
model.export("keras.onnx", format="onnx", verbose=False)
assert words("keras.onnx") == ["Sigmoid", "Log"]
found["Keras' export"] = run("keras.onnx")
for name, numbers in found.items():
    show(name, numbers)
graph = ReferenceEvaluator("True.onnx")
reference = graph.run(None, {graph.input_names[0]: x})[0][0]
show("the first, by onnx itself", reference)
torch.onnx.export(Mirror(), (torch.from_numpy(x),), "mirror.onnx", dynamo=False)
mirror = run("mirror.onnx")
show("-softplus(-x)", mirror)
wrong = all(np.isneginf(y[:3]).all() and y[3] > y[4] and abs(y[5] - truth[5]) < 1e-3 for y in found.values())
right = all(np.allclose(y, truth, rtol=1e-3) for y in (reference, mirror))
sys.exit(not (wrong and right))
PY
# Output:
# torch 2.13.0 onnxruntime 1.32.0 keras 3.15.1
# x                            -80.0000 -30.0000 -18.0000 -17.0000 -16.0000 -10.0000   0.0000
# PyTorch                      -80.0000 -30.0000 -18.0000 -17.0000 -16.0000 -10.0000  -0.6931
# exporter, dynamo                 -inf     -inf     -inf -16.2301 -16.6355 -10.0002  -0.6931
# exporter, older                  -inf     -inf     -inf -16.2301 -16.6355 -10.0002  -0.6931
# Keras' export                    -inf     -inf     -inf -16.2301 -16.6355 -10.0002  -0.6931
# the first, by onnx itself    -80.0000 -30.0000 -18.0000 -17.0000 -16.0000 -10.0000  -0.6931
# -softplus(-x)                -80.0000 -30.0000 -18.0000 -17.0000 -16.0000 -10.0000  -0.6931
