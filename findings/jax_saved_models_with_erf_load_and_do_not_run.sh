#!/usr/bin/env bash
# JAX 0.10.2 and TensorFlow 2.21.0: a SavedModel with `erf` is written and loaded without a word, and cannot be called.
#
# A SavedModel from JAX holds one opaque StableHLO program, which TensorFlow compiles when it is called, not when it is
# loaded. JAX 0.10 writes some operations as composites (erf, arcsin, arccos, arcsinh, arctanh, sinh, cosh, top_k), in
# a version of the format that the compiler inside TensorFlow 2.21 cannot read: "unregistered operation
# 'vhlo.composite_v2'". One would expect the exporter to refuse, or to write for the older reader, and the list to follow
# how exotic a function is; it does not. `sinh` and `cosh` fail; `tan`, `arctan`, `expm1` and `erfinv` run. The exact
# GELU, which one thinks of as x/2 (1 + erf(x / sqrt 2)), runs too, since JAX computes it by erfc: so one transformer
# passes, and the same one with its GELU written out by hand does not. As erf is 1 - erfc, there is another word for it.
# Call what you have loaded before you ship it: shapes, signatures and variables all look right.
#
# Seen on a CPU. Exit code 0: it still is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'keras==3.15.1' 'jax==0.10.2' 'jaxlib==0.10.2' 'tensorflow-cpu==2.21.0' 'numpy<3' 2>"$folder/pip.log" ||
  { cat "$folder/pip.log" >&2; exit 2; }
cd "$folder"
KERAS_BACKEND=jax JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import sys

import jax
import keras
import numpy as np
import tensorflow as tf
from keras import ops

x = np.linspace(0.1, 0.9, 4, dtype="float32")[None]
root = float(np.sqrt(0.5))
functions = {name: getattr(ops, name) for name in "arcsin arccos arcsinh arctanh sinh cosh erf".split()}
functions |= {name: getattr(ops, name) for name in "arctan tan tanh exp expm1 log1p erfinv".split()}
functions["top_k"] = lambda x: ops.top_k(x, 2)[0]
functions["gelu"] = lambda x: ops.gelu(x, approximate=False)
functions["gelu by erf"] = lambda x: 0.5 * x * (1.0 + ops.erf(root * x))
functions["gelu by erfc"] = lambda x: 0.5 * x * jax.lax.erfc(-root * x)
runs, reasons = [], set()
for name, function in functions.items():
    inputs = keras.Input((x.shape[1],))
    layer = keras.layers.Lambda(function, output_shape=(2 if name == "top_k" else x.shape[1],))
    model = keras.Model(inputs, layer(inputs))
    model.export(name, format="tf_saved_model", verbose=False)
    loaded = tf.saved_model.load(name)
    try:
        same = np.allclose(loaded.serve(x), np.asarray(model(x)), rtol=1e-5)
        runs += [name] if same else []
    except tf.errors.InvalidArgumentError as error:
        reasons.add("unregistered operation 'vhlo.composite_v2'" in str(error))
print("keras", keras.__version__, "jax", jax.__version__, "tensorflow", tf.__version__)
print("written and loaded:", len(functions))
print("called, with JAX's numbers:", ", ".join(runs))
refused = [name for name in functions if name not in runs]
print("called, refused:", ", ".join(refused))
print("for an operation of the format that TensorFlow does not know:", reasons == {True})
wanted = ["arcsin", "arccos", "arcsinh", "arctanh", "sinh", "cosh", "erf", "top_k", "gelu by erf"]
sys.exit(refused != wanted or reasons != {True})
PY
# Output:
# keras 3.15.1 jax 0.10.2 tensorflow 2.21.0
# written and loaded: 18
# called, with JAX's numbers: arctan, tan, tanh, exp, expm1, log1p, erfinv, gelu, gelu by erfc
# called, refused: arcsin, arccos, arcsinh, arctanh, sinh, cosh, erf, top_k, gelu by erf
# for an operation of the format that TensorFlow does not know: True
