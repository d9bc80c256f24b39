"""Constraints at work: after `fit` in all its variants every operator norm is within its limit."""

import keras
import numpy as np
import pytest
from helpers import norm, normal, unrolled

from dynzoo import backend, constraints
from dynzoo.constraints import Orthonormal, ProjectWeights, SpectralNorm, SwapProjectedEMAWeights

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


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_orthonormal_after_fit_with_a_large_rate(optimizer):
    make = {"adam": lambda: keras.optimizers.Adam(0.3), "sgd": lambda: keras.optimizers.SGD(3.0)}
    dense = keras.layers.Dense
    model = keras.Sequential(
        [
            keras.Input((12,)),
            dense(8, use_bias=False, kernel_constraint=Orthonormal()),
            dense(3, use_bias=False, kernel_constraint=SpectralNorm()),
        ]
    )
    model.compile(make[optimizer](), "mse")
    for epoch in range(3):
        model.fit(normal((16, 12), epoch, 3.0), Y, batch_size=4, epochs=1, verbose=0)
        kernel = backend.to_numpy(model.layers[0].kernel.value).astype(np.float64)
        assert np.abs(np.linalg.svd(kernel, compute_uv=False) - 1).max() <= 1e-5


# --- averages of weights ------------------------------------------------------------------------


class Watch(keras.callbacks.Callback):
    """The norms that other callbacks see."""

    def __init__(self):
        super().__init__()
        self.validated, self.ended = [], []

    def on_test_batch_begin(self, batch, logs=None):
        self.validated.append(norms(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.ended.append(norms(self.model))


def fit_averaged(callbacks, validate=True, epochs=3):
    keras.utils.set_random_seed(1)
    model = model_of()
    optimizer = keras.optimizers.SGD(0.3, use_ema=True, ema_momentum=0.6)
    model.compile(optimizer, "mse")
    held_out = {"validation_data": (X, Y), "validation_batch_size": 16} if validate else {}
    history = model.fit(
        X, Y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks, **held_out
    )
    return model, history.history


def within(all_norms, limits=(1.0, 1.0, 0.8)):
    return bool(np.all(np.array(all_norms) <= np.array(limits) * (1 + 1e-5)))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("swap_on_epoch", [True, False])
def test_validation_and_other_callbacks_see_projected_averages(swap_on_epoch, first):
    watch, swap = Watch(), SwapProjectedEMAWeights(swap_on_epoch=swap_on_epoch)
    model, history = fit_averaged([swap, watch] if first else [watch, swap])
    assert len(watch.validated) == 3 and within(watch.validated)
    assert within(norms(model)) and norms(model)[1] == pytest.approx(1.0, abs=1e-5)
    assert within(watch.ended)
    if swap_on_epoch:
        # what was validated is what a checkpoint would hold
        np.testing.assert_allclose(watch.ended, watch.validated, atol=1e-6)
    # the raw weights are not those that were validated, and training is that without callbacks
    plain, _ = fit_averaged([], validate=False)
    constraints.project(plain)
    for mine, other in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)
    assert history["val_loss"][-1] == pytest.approx(model.evaluate(X, Y, verbose=0), rel=1e-4)


def test_keras_own_swap_validates_outside_of_the_constraints():
    watch = Watch()
    fit_averaged([keras.callbacks.SwapEMAWeights(), watch, ProjectWeights(every_epoch=True)])
    assert not within(watch.validated)


def test_an_early_end_leaves_the_projected_averages():
    swap = SwapProjectedEMAWeights(swap_on_epoch=True)
    stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9)
    model, _ = fit_averaged([swap, stop], epochs=10)
    plain, _ = fit_averaged([], validate=False, epochs=2)
    constraints.project(plain)
    for mine, other in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


@pytest.mark.parametrize("callback", [SwapProjectedEMAWeights, ProjectWeights])
def test_a_second_fit_goes_on_from_the_projected_averages(callback):
    """Keras alone loses the weights on JAX."""
    model, _ = fit_averaged([callback()], validate=False)
    other = model.evaluate(X, -Y, verbose=0)
    model.optimizer.learning_rate = 0.01
    model.fit(X, -Y, batch_size=8, epochs=3, verbose=0, shuffle=False, callbacks=[callback()])
    assert within(norms(model)) and model.evaluate(X, -Y, verbose=0) < other
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_evaluate_and_predict_put_the_weights_back():
    model, _ = fit_averaged([])
    before = model.get_weights()
    assert not within(norms(model))  # averages as Keras leaves them
    swap = SwapProjectedEMAWeights()
    loss = model.evaluate(X, Y, verbose=0, callbacks=[swap])
    outputs = model.predict(X, verbose=0, callbacks=[swap])
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    constraints.project(model)
    assert loss == pytest.approx(model.evaluate(X, Y, verbose=0), rel=1e-5)
    np.testing.assert_allclose(outputs, model.predict(X, verbose=0), atol=1e-5)


def test_swapping_needs_an_optimizer_that_averages():
    model = model_of()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    with pytest.raises(ValueError, match="needs an optimizer with use_ema=True"):
        model.evaluate(X, Y, verbose=0, callbacks=[SwapProjectedEMAWeights()])
