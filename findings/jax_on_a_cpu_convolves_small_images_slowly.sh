#!/usr/bin/env bash
# JAX 0.10.2 on a CPU: a 3x3 convolution of 2x2 images takes several times as long as one of 4x4 images.
#
# A network for 32x32 images that halves them four times ends with 2x2 features and its most channels. There the kernel is
# larger than the image, and XLA's fast convolution does not take it: 64 images of 2x2 with 256 channels take longer than
# 64 images of 4x4, which are four times the products. The gradient with respect to 4x4 images of a convolution that writes
# 2x2 images is one of the same kind, and as slow, even where nothing is padded in the forward pass. Cutting the windows
# out and multiplying matrices computes the same sums many times faster. A ResNet's gradient was seven times as fast for it;
# profiles by layer type blame "convolutions", although all others run at full speed.
#
# CPU seconds of one thread, medians. Exit code 0: it still is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'jax==0.10.2' 'jaxlib==0.10.2' 'numpy<3' 2>"$folder/pip.log" ||
  { cat "$folder/pip.log" >&2; exit 2; }
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_cpu_multi_thread_eigen=false "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

rng = np.random.default_rng(0)
kernel = rng.normal(size=(3, 3, 256, 256)).astype("float32")


def images(size):
    return rng.normal(size=(64, size, size, 256)).astype("float32")


def convolution(x, padding="SAME"):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def windows(x):
    """The same sums: four windows of the padded image times the kernel as a matrix."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [x[:, i : i + 3, j : j + 3].reshape(64, -1) for i in (0, 1) for j in (0, 1)]
    return (jnp.stack(parts, axis=1) @ kernel.reshape(-1, 256)).reshape(64, 2, 2, 256)


def seconds(function, x):
    run = jax.jit(function)
    jax.block_until_ready(run(x))
    found = []
    for _ in range(5):
        start = time.process_time()
        jax.block_until_ready(run(x))
        found.append(time.process_time() - start)
    return float(np.median(found))


small, large = images(2), images(4)
np.testing.assert_allclose(windows(small), convolution(small), rtol=1e-3, atol=1e-2)
seen = {
    "4x4 images": seconds(convolution, large),
    "2x2 images": seconds(convolution, small),
    "2x2 images, windows cut out": seconds(windows, small),
    "4x4 to 2x2": seconds(lambda x: convolution(x, "VALID"), large),
    "and back": seconds(jax.grad(lambda x: (convolution(x, "VALID") ** 2).sum()), large),
}
print("jax", jax.__version__)
for name, value in seen.items():
    print(f"{name}: {1e3 * value:.1f} ms")
slow = seen["2x2 images"] > 2 * seen["4x4 images"] and seen["and back"] > 6 * seen["4x4 to 2x2"]
sys.exit(not (slow and seen["2x2 images"] > 5 * seen["2x2 images, windows cut out"]))
PY
# Output, on a Xeon with AVX-512:
# jax 0.10.2
# 4x4 images: 11.4 ms
# 2x2 images: 70.8 ms
# 2x2 images, windows cut out: 4.2 ms
# 4x4 to 2x2: 5.0 ms
# and back: 168.4 ms
