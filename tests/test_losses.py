"""Losses against their formulas in NumPy, and the margins that they ask for."""

import json

import keras
import numpy as np
import pytest
from helpers import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend
from dynzoo.losses import EfficientMargin, MulticlassHinge, OffsetCrossentropy

LABELS = np.array([0, 2, 1, 1, 3])
LOGITS = normal((5, 4), 1, 0.5)


def value(loss, labels, logits, **arguments):
    labels, logits = ops.convert_to_tensor(labels), ops.convert_to_tensor(logits)
    return backend.to_numpy(loss(labels, logits, **arguments))


def gradient_of(loss, labels, logits):
    """The loss, and its gradient by the logits."""
    run = backend.value_and_grad(lambda z: loss(ops.convert_to_tensor(labels), z))
    (total, _), gradient = run(ops.convert_to_tensor(logits))
    return float(backend.to_numpy(total)), backend.to_numpy(gradient)


def crossentropy(labels, z):
    log_sum = np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1)
    return log_sum - z[np.arange(len(labels)), labels]


def offset_reference(labels, logits, offset, temperature, annealing=0.0):
    z = logits.astype(np.float64).copy()
    z[np.arange(len(labels)), labels] -= offset
    each = crossentropy(labels, z / temperature)
    return temperature * (1 - np.exp(-each)) ** annealing * each


def margin_reference(labels, logits, offset, temperature):
    z = logits.astype(np.float64).copy()
    for row, y in enumerate(labels):
        for j in set(range(logits.shape[1])) - {y}:
            z[row, j] += min(max(z[row, y] - z[row, j], offset / 100), offset)
    return temperature * crossentropy(labels, z / temperature)


def hinge_reference(labels, logits, margin):
    rows = np.arange(len(labels))
    own = logits[rows, labels][:, None]
    violation = np.maximum(0, margin - (own - logits))
    violation[rows, labels] = 0
    return violation.mean(1)


ANNEALING = st.one_of(st.just(0.0), st.floats(1, 6))


@settings(max_examples=20)
@given(st.floats(0, 3), st.floats(0.05, 3), ANNEALING, st.integers(0, 100))
def test_offset_crossentropy_is_its_formula(offset, temperature, annealing, seed):
    logits = normal((5, 4), seed)
    loss = OffsetCrossentropy(offset, temperature, "none", annealing=annealing)
    expected = offset_reference(LABELS, logits, offset, temperature, annealing)
    np.testing.assert_allclose(value(loss, LABELS, logits), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=10)
@given(st.floats(0.01, 3), st.floats(0.05, 3), st.integers(0, 100))
def test_efficient_margin_is_its_formula(offset, temperature, seed):
    logits = normal((5, 4), seed)
    loss = EfficientMargin(offset, temperature, reduction="none")
    expected = margin_reference(LABELS, logits, offset, temperature)
    np.testing.assert_allclose(value(loss, LABELS, logits), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=10)
@given(st.floats(0.01, 3), st.integers(0, 100))
def test_hinge_is_its_formula(margin, seed):
    logits = normal((5, 4), seed)
    loss = MulticlassHinge(margin, reduction="none")
    expected = hinge_reference(LABELS, logits, margin)
    np.testing.assert_allclose(value(loss, LABELS, logits), expected, rtol=1e-4, atol=1e-6)


def test_without_offset_it_is_crossentropy():
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    np.testing.assert_allclose(
        value(OffsetCrossentropy(0, 1), LABELS, LOGITS), value(plain, LABELS, LOGITS), rtol=1e-5
    )


def test_extreme_logits_stay_finite():
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], "float32")
    annealed = OffsetCrossentropy(0.4, 0.01, annealing=1.5)
    for loss in (OffsetCrossentropy(0.4, 0.01), annealed, EfficientMargin(), MulticlassHinge()):
        each, gradient = gradient_of(loss, np.array([0, 0]), logits)
        assert np.isfinite(each) and np.isfinite(gradient).all()


def test_annealing_lets_go_of_what_is_far_beyond_the_margin():
    logits = np.array([[3.0, 0.0, 0.0], [0.3, 0.0, 0.0]], "float32")
    losses = [OffsetCrossentropy(0.4, 0.25, annealing=beta) for beta in (0, 5)]
    plain, annealed = (gradient_of(loss, np.array([0, 0]), logits)[1][:, 0] for loss in losses)
    assert (plain < 0).all() and (annealed < 0).all()
    assert annealed[0] / annealed[1] < 1e-6 * plain[0] / plain[1]


def test_efficient_margin_asks_for_no_margin_where_the_answer_is_wrong():
    labels = np.array([0, 0])
    wrong, right = np.array([[0.0, 2.0]] * 2, "float32"), np.array([[2.0, 0.0]] * 2, "float32")
    near, far = EfficientMargin(1e-6, 0.5), EfficientMargin(1.0, 0.5)
    assert value(far, labels, wrong) == pytest.approx(value(near, labels, wrong), rel=0.01)
    assert value(far, labels, right) > 5 * value(near, labels, right)
    # within the margin the class stands beside the label, whatever the distance: log 2
    for margin in (0.2, 0.9):
        logits = np.array([[margin, 0.0]], "float32")
        assert value(far, labels[:1], logits) == pytest.approx(0.5 * np.log(2), rel=1e-5)
        _, gradient = gradient_of(far, labels[:1], logits)
        np.testing.assert_allclose(gradient, [[-0.5, 0.5]], atol=1e-6)


def test_hinge_vanishes_beyond_the_margin():
    logits = np.array([[1.0, 0.25, 0.2]], "float32")
    assert value(MulticlassHinge(0.7), np.array([0]), logits) == 0.0
    assert value(MulticlassHinge(0.9), np.array([0]), logits) == pytest.approx(0.25 / 3, rel=1e-5)


@pytest.mark.parametrize("loss", [OffsetCrossentropy(), EfficientMargin(), MulticlassHinge()])
def test_labels_as_a_column_sample_weights_and_precision(loss):
    flat = value(loss, LABELS, LOGITS)
    assert value(loss, LABELS[:, None], LOGITS) == pytest.approx(float(flat), rel=1e-6)
    assert value(loss, LABELS.astype("float32"), LOGITS) == pytest.approx(float(flat), rel=1e-6)
    single = type(loss)(reduction="none")
    weights = np.array([1, 0, 2, 0, 1], "float32")
    each = value(single, LABELS, LOGITS)
    weighted = value(single, LABELS, LOGITS, sample_weight=weights)
    np.testing.assert_allclose(weighted, each * weights, rtol=1e-5)
    low = loss(ops.convert_to_tensor(LABELS), ops.cast(LOGITS, "bfloat16"))
    assert float(backend.to_numpy(ops.cast(low, "float32"))) == pytest.approx(float(flat), rel=0.02)


@pytest.mark.parametrize(
    "loss", [OffsetCrossentropy(), OffsetCrossentropy(annealing=2), EfficientMargin()]
)
def test_gradient_pushes_the_margin_up(loss):
    _, g = gradient_of(loss, LABELS, LOGITS)
    assert (g[np.arange(5), LABELS] < 0).all()
    np.testing.assert_allclose(g.sum(1), 0, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        OffsetCrossentropy(0.3, 0.7, "sum", "mine", annealing=2.0),
        EfficientMargin(0.3, 0.7, name="e"),
        MulticlassHinge(0.2, name="h"),
    ],
)
def test_config_round_trip(loss):
    stored = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    again = keras.saving.deserialize_keras_object(stored)
    assert type(again) is type(loss) and again.get_config() == loss.get_config()
    assert again.name == loss.name
    assert value(again, LABELS, LOGITS) == value(loss, LABELS, LOGITS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OffsetCrossentropy(offset=-0.1), r"`offset` must be in \[0, inf\)"),
        (lambda: OffsetCrossentropy(offset=float("nan")), r"`offset` must be in \[0, inf\)"),
        (lambda: OffsetCrossentropy(temperature=0), r"`temperature` must be in \(0, inf\)"),
        (lambda: OffsetCrossentropy(annealing=0.5), "`annealing` must be 0 or at least 1"),
        (lambda: OffsetCrossentropy(annealing=float("nan")), "`annealing` must be 0 or at least"),
        (lambda: EfficientMargin(offset=0), r"`offset` must be in \(0, inf\)"),
        (lambda: EfficientMargin(temperature=-1), r"`temperature` must be in \(0, inf\)"),
        (lambda: MulticlassHinge(margin=0), r"`margin` must be in \(0, inf\)"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
