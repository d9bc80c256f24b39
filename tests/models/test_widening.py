"""Widening: the wide network computes what the narrow one did, under the same constraints."""

import keras
import numpy as np
import pytest

import dynzoo
from dynzoo.models import isometric_classifier, widen
from dynzoo.training.warm_start import warm_start


def network(widths=(16, 16), neck=12, operator="shifted", classes=3, seed=0, **more):
    return isometric_classifier(
        input_shape=(8, 8, 3), num_classes=classes, widths=widths, steps=(2,) * len(widths),
        neck_units=neck, dense_steps=2, operator=operator, seed=seed, **more,
    )  # fmt: skip


def trained(model, seed=0):
    """Weights as after training: biases and offsets that are not zero, constraints that hold."""
    rng = np.random.default_rng(seed)
    model.set_weights([w + 0.3 * rng.standard_normal(w.shape) for w in model.get_weights()])
    dynzoo.constraints.project(model)
    for _ in range(20):  # far from orthonormal, two Newton-Schulz steps at a time
        dynzoo.constraints.project(model)
    return model


@pytest.mark.parametrize("operator", ["shifted", "shifted_pointwise"])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
@pytest.mark.parametrize(
    ("widths", "neck"), [((16, 24), 12), ((16, 16), 20), ((16, 40), 30), ((16, 128), 12)]
)
def test_the_function_stays_the_same(operator, fraction, widths, neck):
    small = trained(network(operator=operator, shift_fraction=fraction))
    large = network(widths, neck, operator, seed=5, shift_fraction=fraction)
    widen(small, large, seed=1)
    x = np.random.default_rng(3).uniform(size=(20, 8, 8, 3)).astype("float32")
    logits = [m.predict(x, verbose=0) for m in (small, large)]
    np.testing.assert_allclose(logits[0], logits[1], atol=5e-6)
    assert np.ptp(logits[0], axis=0).min() > 1e-3
    before, after = (dynzoo.certify(m).lipschitz for m in (small, large))
    assert after == pytest.approx(before, rel=1e-5)


def test_new_channels_carry_a_signal_and_get_gradients():
    small, large = trained(network()), network((16, 32), 24)
    widen(small, large)
    neck = next(layer for layer in large.layers if layer.name == "neck")
    features = keras.Model(large.inputs, neck.output)
    x = np.random.default_rng(3).uniform(size=(20, 8, 8, 3)).astype("float32")
    values = features.predict(x, verbose=0)
    old = keras.Model(small.inputs, next(a for a in small.layers if a.name == "neck").output)
    kept = {0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17}
    new = sorted(set(range(24)) - kept)
    np.testing.assert_allclose(values[:, sorted(kept)], old.predict(x, verbose=0), atol=5e-6)
    assert values[:, new].std(axis=0).min() > 1e-3
    head = large.layers[-1].get_weights()[0]
    assert np.all(head[new] == 0.0)
    large.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    large.fit(x, np.arange(20) % 3, epochs=1, verbose=0)
    assert np.abs(large.layers[-1].get_weights()[0][new]).max() > 0.0


def test_what_does_not_fit_is_refused_before_anything_is_set():
    small = trained(network())
    for target, message in (
        (network((16, 8)), "must not be narrower"),
        (network((32, 32)), "must keep the width of a stage that pads"),
        (network((16, 16, 16)), "same kinds of layers"),
        (network((16, 32), operator="conv"), "same kinds of layers|can be widened"),
    ):
        before = target.get_weights()
        with pytest.raises(ValueError, match=message):
            widen(small, target)
        for a, b in zip(before, target.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="can be widened"):
        widen(*(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(2)))


def test_other_classes_leave_the_head_alone():
    small, large = trained(network()), network((16, 32), 24, classes=5, seed=3)
    head = large.layers[-1].get_weights()
    widen(small, large)
    for a, b in zip(head, large.layers[-1].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    same = network((16, 32), 24)
    widen(small, same)
    np.testing.assert_array_equal(
        large.get_layer("neck").get_weights()[0], same.get_layer("neck").get_weights()[0]
    )


def test_training_starts_from_a_narrower_preset(tmp_path):
    small = trained(network())
    dynzoo.save_to_preset(small, tmp_path / "small")
    large = network((16, 32), 24)
    warm_start(large, str(tmp_path / "small"))
    x = np.random.default_rng(3).uniform(size=(20, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(
        small.predict(x, verbose=0), large.predict(x, verbose=0), atol=5e-6
    )  # fmt: skip
    with pytest.raises(ValueError, match="`training.start`.*must not be narrower"):
        warm_start(network((16, 8)), str(tmp_path / "small"))
