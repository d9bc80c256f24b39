"""Constraints at work: after `fit` in all its variants every operator norm is within its limit."""

import keras
import numpy as np
import pytest
from helpers import norm, normal, unrolled

from dynzoo import backend, constraints
from dynzoo.constraints import Orthonormal, ProjectWeights, SpectralNorm

IMAGE = (5, 5, 2)
X, Y = normal((16, *IMAGE), 1), normal((16, 3), 2, 5.0)


def model_of(dtype=None):
    return keras.Sequential(
        [
            keras.Input(IMAGE),
            keras.layers.Conv2D(
                3,
                3,
                padding="same",
                kernel_constraint=SpectralNorm(spatial=(5, 5)),
                dtype=dtype,
                name="conv",
            ),
            keras.layers.Flatten(),
            keras.layers.Dense(
                8, kernel_constraint=Orthonormal(), kernel_initializer="orthogonal", dtype=dtype
            ),
            keras.layers.Dense(6, kernel_constraint=SpectralNorm(0.8), dtype=dtype),
            keras.layers.Dense(3, dtype="float32"),
        ]
    )


def norms(model):
    """Of the convolution and the two matrices, unrolled from the layers' own float32 passes."""
    twin = model_of()
    # a large bias would cost the unrolled matrix its digits
    twin.set_weights([w if w.ndim > 1 else np.zeros_like(w) for w in model.get_weights()])
    shapes = {0: IMAGE, 2: (75,), 3: (8,)}
    return [norm(unrolled(twin.layers[i], shape)) for i, shape in shapes.items()]


def check(model, limits=(1.0, 1.0, 0.8)):
    for size, limit in zip(norms(model), limits, strict=True):
        assert size <= limit * (1 + 1e-5)


VARIANTS = {
    "sgd": lambda: keras.optimizers.SGD(0.5),
    "adam": lambda: keras.optimizers.Adam(0.1),
    "adamw": lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1),
    "accumulation": lambda: keras.optimizers.Adam(0.1, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_norms_after_fit(name):
    model = model_of()
    start = model.get_weights()
    model.compile(VARIANTS[name](), "mse")
    model.fit(X, Y, batch_size=4, epochs=1, verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    # it learned, and the limits were felt
    assert np.abs(model.get_weights()[2] - start[2]).max() > 1e-2
    assert max(norms(model)) > 0.9
    check(model)


def test_norms_without_constraints_would_grow():
    model = model_of()
    for variable in model.variables:
        variable.constraint = None
    model.compile(VARIANTS["adam"](), "mse")
    model.fit(X, Y, batch_size=4, epochs=1, verbose=0)
    assert min(norms(model)) > 1.1


def test_mixed_bfloat16():
    model = model_of("mixed_bfloat16")
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.fit(X, Y, batch_size=4, epochs=1, verbose=0)
    assert model.layers[0].compute_dtype == "bfloat16"
    assert model.layers[0].kernel.dtype == "float32"
    check(model)


@pytest.mark.parametrize("overwrite", [None, 2])
def test_weight_averages_are_projected(overwrite):
    def fit(callbacks):
        keras.utils.set_random_seed(1)
        model = model_of()
        optimizer = keras.optimizers.SGD(
            0.05, use_ema=True, ema_momentum=0.3, ema_overwrite_frequency=overwrite
        )
        model.compile(optimizer, "mse")
        model.fit(X, Y, batch_size=4, epochs=2, verbose=0, shuffle=False, callbacks=callbacks)
        return model

    check(fit([ProjectWeights(every_epoch=True)]))
    # what the callback is for: the averages are of weights from before the constraint
    assert max(norms(fit([]))) > 1 + 1e-4


def test_project_weights_every_epoch_reaches_the_running_training():
    seen = []

    class Spoil(keras.callbacks.Callback):
        """Leaves the constraint after each epoch; records the norm that the next starts with."""

        def on_epoch_begin(self, epoch, logs=None):
            seen.append(norm(backend.to_numpy(self.model.layers[2].kernel.value)))

        def on_epoch_end(self, epoch, logs=None):
            kernel = self.model.layers[2].kernel
            kernel.assign(3.0 * backend.to_numpy(kernel.value))

    model = model_of()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    callbacks = [Spoil(), ProjectWeights(every_epoch=True)]
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=callbacks)
    np.testing.assert_allclose(seen, 1.0, atol=1e-5)
    check(model)


def test_set_weights_and_project():
    model = model_of()
    for scale in (0.0, 1e-20, 50.0, 1e4):
        model.set_weights([normal(w.shape, i, scale) for i, w in enumerate(model.get_weights())])
        constraints.project(model)
        assert all(np.isfinite(w).all() for w in model.get_weights())
        check(model)
    assert norms(model)[1] == pytest.approx(1.0, abs=1e-5)


def test_feasible_kernels_are_not_touched_by_training_that_does_not_move_them():
    model = model_of()
    model.set_weights([normal(w.shape, i, 0.05) for i, w in enumerate(model.get_weights())])
    model.layers[2].kernel.assign(keras.initializers.Orthogonal(seed=1)((75, 8)))
    before = model.get_weights()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_allclose(now, then, atol=1e-6)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    np.testing.assert_array_equal(model.get_weights()[4], before[4])
