#!/usr/bin/env bash
# Keras 3.15.1 on JAX or PyTorch: writing down a layer's config, or setting a seed, imports TensorFlow.
#
# `import keras`, building, calling and fitting a model on JAX leave an installed TensorFlow alone. The first
# `layer.get_config()`, `model.save(...)` or `keras.utils.set_random_seed(...)` imports all of it: Keras asks whether an
# object is a tf.TensorShape, a tf.DType or a tf.TypeSpec, and whether TensorFlow has a seed to be set, and finds out
# whether TensorFlow is installed by importing it. In a process that never imported TensorFlow the answer is known to be
# no. It costs seconds and hundreds of MiB, in each worker process of a search or an evaluation again, and a training
# that sets its seed first looks as if it needed that memory.
#
# Exit code 0: it still is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'keras==3.15.1' 'tensorflow==2.21.0' 'jax==0.10.2' 'jaxlib==0.10.2' 2>"$folder/pip.log" ||
  { cat "$folder/pip.log" >&2; exit 2; }
cd "$folder"
cat >part.py <<'PY'
import sys
import time

import keras
import numpy as np


def mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmRSS"))


model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
model.compile("sgd", "mse")
model.fit(np.zeros((4, 2)), np.zeros((4, 3)), verbose=0)
before, start, early = mib(), time.process_time(), "tensorflow" in sys.modules
if sys.argv[1] == "get_config":
    model.layers[0].get_config()
else:
    keras.utils.set_random_seed(0)
late = "tensorflow" in sys.modules
seconds = time.process_time() - start
print(f"{sys.argv[1]}: TensorFlow imported before {early}, after {late};"
      f" {mib() - before} MiB more, {seconds:.1f} CPU s")
sys.exit(early or not late or mib() - before < 100)
PY
status=0
for part in get_config set_random_seed; do
  KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" part.py "$part" 2>/dev/null || status=1
done
exit $status
