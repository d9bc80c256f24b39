"""Certified accuracy in `fit`: the callback and the metric say what `certify` says."""

import copy

import keras
import numpy as np
import pytest
from keras import layers as kl

import dynzoo
from dynzoo import callbacks, constraints, metrics
from dynzoo.backend import has_float64
from dynzoo.certificates import UncertifiableLayerError, certify

EPS = 0.05
RNG = np.random.default_rng(0)
X = RNG.random((96, 6, 6, 1), dtype="float32")
Y = (X[:, :3].mean((1, 2, 3)) > X[:, 3:].mean((1, 2, 3))).astype("int64") + (X[:, 0, 0, 0] > 0.8)
X_VAL, Y_VAL = X[64:], Y[64:]


def model_of(metric=None, **optimizer):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            kl.Flatten(),
            kl.Dense(
                16,
                kernel_constraint=constraints.Orthonormal(),
                kernel_initializer="orthogonal",
                activation="relu",
            ),
            kl.BatchNormalization(),
            dynzoo.layers.UnitRowDense(3),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.5, **optimizer),
        dynzoo.losses.OffsetCrossentropy(),
        metrics=["accuracy"] + ([] if metric is None else [metric]),
    )
    return model


def fit(model, callbacks=(), epochs=3, **arguments):
    return model.fit(
        X[:64], Y[:64], batch_size=16, epochs=epochs, verbose=0, callbacks=callbacks, **arguments
    ).history


def share(model, eps=EPS, x=X_VAL, y=Y_VAL):
    labels, radii = certify(model).radii(x)
    return float(np.mean((labels == y) & (radii > eps)))


class Truth(keras.callbacks.Callback):
    """What `certify` says of the weights at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.shares, self.seen = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.shares.append(share(self.model))
        self.seen.append((logs or {}).get("val_certified_accuracy"))


def test_callback_and_metric_are_the_share_of_certify():
    model, truth = model_of(metrics.CertifiedAccuracy(EPS, name="metric")), Truth()
    certified = callbacks.CertifiedAccuracy(X_VAL, Y_VAL, EPS, batch_size=7)
    history = fit(
        model, [certified, truth], validation_data=(X_VAL, Y_VAL), validation_batch_size=7
    )
    assert history["val_certified_accuracy"] == truth.shares == truth.seen
    np.testing.assert_allclose(history["val_metric"], truth.shares, atol=1e-6)
    assert 0.1 < truth.shares[-1] <= history["val_accuracy"][-1]
    assert "metric" not in history  # while the weights moved


def test_metric_alone_asks_for_the_callback():
    model = model_of(metrics.CertifiedAccuracy(EPS))
    with pytest.raises(ValueError, match=r"needs what the weights prove.*callbacks=\[dynzoo.callb"):
        fit(model, validation_data=(X_VAL, Y_VAL))
    with pytest.raises(ValueError, match="needs what the weights prove"):
        model.evaluate(X_VAL, Y_VAL, verbose=0)
    measured = model.evaluate(
        X_VAL, Y_VAL, verbose=0, return_dict=True, callbacks=[callbacks.CertifiedAccuracy()]
    )
    assert measured["certified_accuracy"] == pytest.approx(share(model), abs=1e-6)
    with pytest.raises(ValueError, match="needs what the weights prove"):
        model.evaluate(X_VAL, Y_VAL, verbose=0)


@pytest.mark.parametrize("labels", ["column", "one-hot"])
def test_metric_takes_labels_of_every_shape(labels):
    y = Y_VAL[:, None] if labels == "column" else np.eye(3, dtype="float32")[Y_VAL]
    model = model_of()
    metric = metrics.CertifiedAccuracy(EPS)
    model.compile("sgd", dynzoo.losses.OffsetCrossentropy(), metrics=[metric])
    found = model.evaluate(X_VAL, y, verbose=0, callbacks=[callbacks.CertifiedAccuracy()])[1]
    assert found == pytest.approx(share(model), abs=1e-6)


def test_nothing_is_counted_without_weights_at_rest():
    metric = metrics.CertifiedAccuracy(EPS)
    metric.update_state(np.array([0, 1]), np.eye(2, dtype="float32"))
    assert np.isnan(float(metric.result()))


def test_metric_never_counts_more_than_the_certificate():
    model = model_of()
    certificate = certify(model)
    labels, radii = certificate.radii(X_VAL)
    z = model.predict(X_VAL, verbose=0).astype("float64")
    for row in range(0, 32, 4):
        # at the radius of an image itself, and a hair to both sides
        for factor in (1 - 1e-9, 1.0, 1 + 1e-9, 0.99):
            eps = float(radii[row] * factor)
            lead = z[np.arange(32), labels][:, None] - z
            counted = np.all(lead >= certificate.needed_margins(eps)[labels], axis=1)
            assert not np.any(counted & (radii <= eps))
            assert np.all(counted | (radii <= eps + 1e-3))


@pytest.mark.skipif(not has_float64(), reason="JAX computes in float32")
def test_float64_logits_are_not_rounded_ahead():
    """In float32 a lead of 1e-4 at 1e4 would be one of 1e-3, or none."""
    lead, y = 9.0e-4 * RNG.random(64), np.zeros(64, "int64")
    x = np.zeros((64, 4))
    x[:, 0] = lead
    floatx = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        model = keras.Sequential([keras.Input((4,)), kl.Dense(2)])
        model.set_weights([np.eye(4)[:, :2] * [1.0, 0.0], np.full(2, 1e4)])
        model.compile("sgd", "mse", metrics=[metrics.CertifiedAccuracy(4.0e-4)])
        certified = [callbacks.CertifiedAccuracy()]
        found = model.evaluate(x, np.eye(2)[y], verbose=0, callbacks=certified)[1]
        assert found == pytest.approx(share(model, 4.0e-4, x, y), abs=1e-6)
        # PyTorch's certificate counts on float32 roundings, and proves nothing here.
        assert found <= np.mean(lead > 4.0e-4)
    finally:
        keras.config.set_floatx(floatx)


def test_needed_margins_refuse_what_is_no_radius():
    for eps in (-0.1, float("nan"), float("inf"), "1"):
        with pytest.raises(ValueError, match="`eps` must be in"):
            certify(model_of()).needed_margins(eps)


def test_early_stopping_and_checkpoint_see_it(tmp_path):
    certified = callbacks.CertifiedAccuracy(X_VAL, Y_VAL, EPS)
    monitor = {"monitor": "val_certified_accuracy", "mode": "max"}
    best = keras.callbacks.ModelCheckpoint(tmp_path / "b.keras", save_best_only=True, **monitor)
    stop = keras.callbacks.EarlyStopping(patience=1, min_delta=1.0, **monitor)
    model = model_of()
    history = fit(model, [certified, best, stop], epochs=6)
    assert len(history["val_certified_accuracy"]) == 2  # nothing gains a whole 1
    saved = keras.saving.load_model(tmp_path / "b.keras")
    assert share(saved) == max(history["val_certified_accuracy"])


def test_early_stopping_knows_the_direction_of_the_metric(tmp_path):
    model = model_of(metrics.CertifiedAccuracy(EPS))
    stop = keras.callbacks.EarlyStopping("val_certified_accuracy", patience=1, min_delta=1.0)
    path = tmp_path / "best_{val_certified_accuracy:.3f}.keras"
    best = keras.callbacks.ModelCheckpoint(path, monitor="val_certified_accuracy")
    certified = callbacks.CertifiedAccuracy()
    held = (X_VAL, Y_VAL)
    history = fit(model, [stop, best, certified], epochs=6, validation_data=held)  # in any order
    assert len(history["val_certified_accuracy"]) == 2
    saved = keras.saving.load_model(tmp_path / f"best_{share(model):.3f}.keras")
    found = saved.evaluate(
        X_VAL, Y_VAL, verbose=0, return_dict=True, callbacks=[callbacks.CertifiedAccuracy()]
    )
    assert found["certified_accuracy"] == pytest.approx(share(model), abs=1e-6)


def test_several_radii():
    certified = callbacks.CertifiedAccuracy(X_VAL, Y_VAL, (36 / 255, 0.05))
    assert certified.names == ["val_certified_accuracy_36_255", "val_certified_accuracy_0_05"]
    model = model_of()
    history = fit(model, [certified], epochs=1)
    found = [history[name][0] for name in certified.names]
    assert found == [share(model, e) for e in (36 / 255, 0.05)]


def test_a_copy_shares_the_images():
    certified = callbacks.CertifiedAccuracy(X_VAL, Y_VAL, EPS)
    copied = copy.deepcopy([certified])[0]
    assert copied is not certified and copied.x is certified.x and copied.y is certified.y
    model = model_of()
    assert fit(model, [copied], epochs=1)["val_certified_accuracy"] == [share(model)]


@pytest.mark.filterwarnings("ignore:currentThread:DeprecationWarning")  # keras-tuner's own
@pytest.mark.filterwarnings("ignore:getName:DeprecationWarning")
@pytest.mark.parametrize("with_metric", [True, False])
def test_keras_tuner_ranks_by_it(tmp_path, with_metric):
    import keras_tuner

    def build(hp):
        model = model_of(metrics.CertifiedAccuracy(EPS) if with_metric else None)
        model.optimizer.learning_rate = hp.Choice("rate", [0.5, 1e-4])
        return model

    tuner = keras_tuner.GridSearch(
        build,
        objective=keras_tuner.Objective("val_certified_accuracy", "max"),
        directory=tmp_path,
    )
    if keras.backend.backend() == "tensorflow":  # it asks for tensorboard there
        tuner._configure_tensorboard_dir = lambda *arguments, **more: None
    held = {"validation_data": (X_VAL, Y_VAL)} if with_metric else {}
    certified = callbacks.CertifiedAccuracy(*(() if with_metric else (X_VAL, Y_VAL)), eps=EPS)
    tuner.search(X[:64], Y[:64], epochs=1, batch_size=16, verbose=0, callbacks=[certified], **held)
    scores = [t.score for t in tuner.oracle.get_best_trials(2)]
    assert len(scores) == 2 and scores[0] >= scores[1] and 0 < scores[0] <= 1


def test_averages_of_weights_are_judged_as_they_are_tested():
    """Whatever swaps weights in for a test comes before the metric looks, in any order."""
    seen = []

    class Look(keras.callbacks.Callback):
        def on_test_batch_begin(self, batch, logs=None):
            if not batch:
                seen.append(share(self.model))

    for first in (True, False):
        swap = constraints.SwapProjectedEMAWeights()
        certified = callbacks.CertifiedAccuracy()
        model = model_of(metrics.CertifiedAccuracy(EPS), use_ema=True, ema_momentum=0.5)
        order = [certified, swap] if first else [swap, certified]
        history = fit(model, [*order, Look()], validation_data=(X_VAL, Y_VAL))
        np.testing.assert_allclose(history["val_certified_accuracy"], seen, atol=1e-6)
        seen.clear()


def test_a_model_that_diverges_has_nothing_certified():
    class Break(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.layers[-1].kernel.assign(np.nan * np.ones((16, 3)))

        def on_test_begin(self, logs=None):
            self.on_epoch_end(0)

    model = model_of(metrics.CertifiedAccuracy(EPS, name="metric"))
    certified = callbacks.CertifiedAccuracy(X_VAL, Y_VAL, EPS)
    history = fit(model, [Break(), certified], epochs=1, validation_data=(X_VAL, Y_VAL))
    assert history["val_certified_accuracy"] == history["val_metric"] == [0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X}, "go together"),
        ({"x": X, "y": Y[:3]}, "same length"),
        ({"x": X[:0], "y": Y[:0]}, "at least one image"),
        ({"x": X, "y": Y, "eps": 0.0}, "`eps` must be in"),
        ({"x": X, "y": Y, "eps": ()}, "at least one radius"),
        ({"x": X, "y": Y, "eps": (0.1, float("nan"))}, "`eps` must be in"),
        ({"x": X, "y": Y, "batch_size": 0}, "`batch_size`"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        callbacks.CertifiedAccuracy(**arguments)


@pytest.mark.parametrize("eps", [0.0, -1.0, float("inf"), float("nan"), True, "0.1"])
def test_metric_refuses_what_is_no_radius(eps):
    with pytest.raises(ValueError, match="`eps` must be in"):
        metrics.CertifiedAccuracy(eps)


def test_what_cannot_be_measured_is_told_before_the_training():
    for images, labels, message in (
        (X_VAL[:, :5], Y_VAL, "must have shape"),
        ((255 * X_VAL).astype("uint8"), Y_VAL, "divide uint8 images by 255"),
        (X_VAL, Y_VAL + 3, "labels from 3 to|labels from 4 to"),
    ):
        model = model_of()
        before = model.get_weights()
        with pytest.raises(ValueError, match=message):
            fit(model, [callbacks.CertifiedAccuracy(images, labels, EPS)])
        for a, b in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="has nothing to measure"):
        fit(model_of(), [callbacks.CertifiedAccuracy()])
    other = keras.Sequential([keras.Input((6, 6, 1)), kl.Flatten(), kl.Dense(3, "softmax")])
    other.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises((UncertifiableLayerError, ValueError), match="softmax"):
        fit(other, [callbacks.CertifiedAccuracy(X_VAL, Y_VAL)])


# The hint


def hints(told):
    return [w for w in told if issubclass(w.category, constraints.UnmetConstraintWarning)]


def test_averages_off_the_constraint_are_told_when_training_ends_and_when_certified():
    model = model_of(use_ema=True, ema_momentum=0.5)
    certified = callbacks.CertifiedAccuracy(X_VAL, Y_VAL, EPS)
    with pytest.warns(constraints.UnmetConstraintWarning) as told:
        fit(model, [certified])
    (hint,) = hints(told)
    text = str(hint.message)
    assert "SwapProjectedEMAWeights" in text and "dynzoo.project(model)" in text
    assert "\n" not in text and "constraint: 1 (" in text
    with pytest.warns(constraints.UnmetConstraintWarning):
        certify(model)
    dynzoo.project(model)
    assert constraints.unmet(model) == {}
    certify(model)  # silent: warnings are errors in these tests


def test_plain_fit_is_told_when_certified():
    model = model_of(use_ema=True, ema_momentum=0.5)
    fit(model)
    with pytest.warns(constraints.UnmetConstraintWarning) as told:
        certify(model)
    assert [w.filename for w in hints(told)] == [__file__]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("cure", ["SwapProjectedEMAWeights", "ProjectWeights"])
def test_no_hint_where_a_callback_projects(cure, first):
    model = model_of(use_ema=True, ema_momentum=0.5)
    cure = getattr(constraints, cure)()
    certified = callbacks.CertifiedAccuracy(X_VAL, Y_VAL, EPS)
    fit(model, [certified, cure] if first else [cure, certified])
    assert constraints.unmet(model) == {} and not constraints.projected_at_end(model)
    certify(model)


def test_no_hint_without_averages_or_training():
    model = model_of()
    model.layers[1].kernel.assign(2.0 * np.asarray(model.get_weights()[0]))
    certify(model)  # not trained: as its maker wants it
    assert constraints.unmet(model) == {model.layers[1].kernel.path: pytest.approx(4.0, rel=1e-3)}
    fit(model)
    certify(model)


def test_unmet_of_foreign_constraints_and_broken_weights():
    layers = [
        keras.Input((4,)),
        kl.Dense(3, kernel_constraint="non_neg", bias_constraint="max_norm"),
    ]
    model = keras.Sequential(layers)
    model.set_weights([np.full((4, 3), -1.0), np.zeros(3)])
    kernel = model.layers[0].kernel
    assert constraints.unmet(model) == {kernel.path: np.inf}
    kernel.assign(np.ones((4, 3)))
    assert constraints.unmet(model) == {}
    kernel.assign(np.full((4, 3), np.nan))
    assert constraints.unmet(model) == {kernel.path: np.inf}
