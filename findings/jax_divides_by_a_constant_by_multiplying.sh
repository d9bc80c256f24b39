#!/usr/bin/env bash
# JAX 0.10.2 on a CPU: bytes / 255 are not the float32 numbers that NumPy and PyTorch get.
#
# A float32 division is one of the operations that IEEE 754 rounds correctly, so one would take
# `image.astype("float32") / 255` to be the same 256 numbers in every library. XLA replaces the division by a constant
# by a product with its rounded reciprocal, which is another float for 126 of the 256 bytes (one unit in the last
# place). It does so outside of `jax.jit` too, where 255 is a scalar of the call. Divided by an array of the shape of
# the image, every number is right. Who makes batches on the device and compares them, or a training's first step,
# bit for bit with those from the host meets half of all pixels off; who certifies the image that a file holds has
# certified another one. A table of 256 floats, looked up by the byte, is exact everywhere.
#
# Seen on a CPU. Exit code 0: it still is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'jax==0.10.2' 'jaxlib==0.10.2' 'torch==2.13.0' 'numpy<3' 2>"$folder/pip.log" ||
  { cat "$folder/pip.log" >&2; exit 2; }
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch

image = np.arange(256, dtype=np.uint8)
exact = (image.astype(np.float64) / 255).astype(np.float32)  # rounded once: 53 bits are enough here
host = np.divide(image, np.float32(255), dtype=np.float32)


def scale(b):
    return b.astype("float32") / 255


def table(b):
    return jnp.asarray(host)[b.astype("int32")]


def off(values):
    return int((np.asarray(values) != exact).sum())


seen = {
    "NumPy": off(host),
    "PyTorch": off((torch.from_numpy(image).to(torch.float32) / 255).numpy()),
    "JAX": off(scale(jnp.asarray(image))),
    "JAX, compiled": off(jax.jit(scale)(image)),
    "JAX, by an array": off(jnp.asarray(image).astype("float32") / jnp.full(256, 255.0)),
    "JAX, table": off(jax.jit(table)(image)),
}
print("jax", jax.__version__, "torch", torch.__version__.split("+")[0])
print("bytes whose quotient is another float:", seen)
reciprocal = image.astype(np.float32) * (np.float32(1) / np.float32(255))
same = bool((np.asarray(jax.jit(scale)(image)) == reciprocal).all())
print("JAX's numbers are products with the rounded reciprocal:", same)
sys.exit(list(seen.values()) != [0, 0, 126, 126, 0, 0] or not same)
PY
# Output:
# jax 0.10.2 torch 2.13.0
# bytes whose quotient is another float: {'NumPy': 0, 'PyTorch': 0, 'JAX': 126, 'JAX, compiled': 126, 'JAX, by an array': 0, 'JAX, table': 0}
# JAX's numbers are products with the rounded reciprocal: True
