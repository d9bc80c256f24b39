#!/usr/bin/env bash
# Keras 3.15.1 and PyTorch 2.13.0: `antialias` changes a bicubic enlargement, on PyTorch alone.
#
# Antialiasing widens the kernel of a resampling where an image is made smaller; where it is enlarged there is nothing
# to widen, and one would take both settings of the flag to give the same pixels. On PyTorch they do not: the flag also
# chooses the kernel. Keys' cubic convolution has one free number a, and `interpolate` takes -0.75 without antialiasing
# and -0.5 with it. `keras.layers.Resizing(interpolation="bicubic")` hands the flag on, so its default (no
# antialiasing) is another map on PyTorch than on TensorFlow and JAX, which take -0.5 always, as Pillow does; with the
# flag all three agree, when images are made smaller, too. One would guess it the other way round. The overshoot at an
# edge is half as large again, up to 11 of 255 gray levels apart on noise: a network that was trained behind this layer
# on one backend sees other images on the next one, and a bound of the layer's norm holds for one of them.
#
# Seen on a CPU. Exit code 0: it still is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'keras==3.15.1' 'torch==2.13.0' 'jax==0.10.2' 'jaxlib==0.10.2' 'numpy<3' 2>"$folder/pip.log" ||
  { cat "$folder/pip.log" >&2; exit 2; }
for backend in jax torch; do
  KERAS_BACKEND=$backend JAX_PLATFORMS=cpu "$folder/venv/bin/python" - "$folder" <<'PY' 2>/dev/null
import sys

import keras
import numpy as np


def kernel(d, a):
    d = abs(d)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    return near if d < 1 else a * (((d - 5) * d + 8) * d - 4) if d < 2 else 0.0


line = np.zeros((1, 9, 9, 1), "float32")
line[:, :, 4] = 1.0
noise = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3)).astype("float32")
answers, small = {}, []
for antialias in (False, True):
    def resize(x, size, flag=antialias):
        layer = keras.layers.Resizing(*size, interpolation="bicubic", antialias=flag)
        return keras.ops.convert_to_numpy(layer(x))

    row = resize(line, (9, 18))[0, 4, :, 0]
    wanted = {a: [kernel((i + 0.5) / 2 - 0.5 - 4, a) for i in range(18)] for a in (-0.5, -0.75)}
    fits = [a for a, values in wanted.items() if np.abs(row - values).max() < 1e-5]
    answers[antialias] = fits[0] if fits else None
    small.append(resize(noise, (8, 8)))
name = keras.backend.backend()
print(name, "keras", keras.__version__, "a without and with antialiasing:", answers)
np.save(f"{sys.argv[1]}/{name}.npy", np.stack(small))
sys.exit(answers != {False: -0.75 if name == "torch" else -0.5, True: -0.5})
PY
done
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys

import numpy as np

one, other = (np.load(f"{sys.argv[1]}/{name}.npy") for name in ("jax", "torch"))
apart = np.abs(one - other).max(axis=(1, 2, 3, 4))
print(f"noise of 16 x 24 as 8 x 8: {apart[0]:.1f} gray levels apart without, {apart[1]:.4f} with")
sys.exit(not (apart[0] > 10 and apart[1] < 0.01))
PY
# Output:
# jax keras 3.15.1 a without and with antialiasing: {False: -0.5, True: -0.5}
# torch keras 3.15.1 a without and with antialiasing: {False: -0.75, True: -0.5}
# noise of 16 x 24 as 8 x 8: 11.6 gray levels apart without, 0.0000 with
