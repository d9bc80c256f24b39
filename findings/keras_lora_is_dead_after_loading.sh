#!/usr/bin/env bash
# Keras 3.15.1: a model with LoRA that was saved and loaded has LoRA weights that can never be trained again.
#
# `enable_lora` makes a low-rank update A B of a kernel, with A random and B zero, so that the update begins at zero and B
# has a gradient. When weights are stored, A B is added to the kernel, which is right. When they are loaded, A and B are both
# set to zero. Then the gradient of each is zero, for it is a product with the other: from there on no optimizer moves them,
# the loss of a fit stays what it is to the last bit, and nothing is said. This holds for `save` and `load_model`, for
# `save_weights` and `load_weights` of one and the same model (a checkpoint in the middle of a fine-tuning), and for Dense,
# EinsumDense and Embedding. A kernel that is loaded before `enable_lora` is called trains.
#
# Seen on a CPU with JAX 0.10.2. Exit code 0: it still is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'keras==3.15.1' 'jax==0.10.2' 'numpy<3' 2>"$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 2; }
cd "$folder"
KERAS_BACKEND=jax venv/bin/python - <<'PY' 2>/dev/null
import sys

import keras
import numpy as np

rng = np.random.default_rng(0)
vectors, words = rng.normal(size=(64, 4)).astype("float32"), rng.integers(0, 8, (64, 4))
wanted = rng.normal(size=(64, 3)).astype("float32")
KINDS = {
    "Dense": (lambda: keras.layers.Dense(3, use_bias=False), vectors),
    "EinsumDense": (lambda: keras.layers.EinsumDense("bi,ij->bj", 3), vectors),
    "Embedding": (lambda: keras.layers.Embedding(8, 3), words),
}


def network(kind):
    keras.utils.set_random_seed(0)
    layer = KINDS[kind][0]()
    entrance = keras.Input((4,), dtype="int32" if kind == "Embedding" else "float32")
    x = layer(entrance)
    if kind == "Embedding":
        x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(entrance, x), layer


def gained(model, x):
    model.compile(keras.optimizers.Adam(0.05), "mse")
    losses = model.fit(x, wanted, epochs=20, shuffle=False, batch_size=64, verbose=0).history["loss"]
    return losses[0] - losses[-1]


dead = True
print("keras", keras.__version__)
for kind, (_, x) in KINDS.items():
    model, layer = network(kind)
    layer.enable_lora(2)
    model.save("whole.keras")
    model.save_weights("some.weights.h5")
    fresh = gained(model, x)
    whole = gained(keras.saving.load_model("whole.keras"), x)
    model.load_weights("some.weights.h5")
    same = gained(model, x)
    largest = max(float(np.abs(w).max()) for w in layer.trainable_weights)
    later, layer = network(kind)
    later.load_weights("some.weights.h5")
    layer.enable_lora(2)
    remedy = gained(later, x)
    print(
        f"{kind:12s} loss falls by {fresh:.3f} after enable_lora, by {whole:.3f} after load_model, "
        f"by {same:.3f} after load_weights (largest LoRA weight {largest}), by {remedy:.3f} where "
        "enable_lora comes after loading"
    )
    dead &= whole == same == largest == 0.0 and fresh > 0.01 and remedy > 0.01
sys.exit(not dead)
PY
