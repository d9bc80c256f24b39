"""A model that returns NaN or infinity: what attacks, evaluations and certificates make of it."""

import keras
import numpy as np
import pytest
from keras import ops

from dynzoo.attacks import (
    APGD,
    DDN,
    FAB,
    FGSM,
    PGD,
    AutoAttack,
    GaussianNoise,
    Square,
    TargetedAPGD,
    Transfer,
    UniformNoise,
)
from dynzoo.attacks.losses import ATTACK_LOSSES, attack_loss, margin, margins
from dynzoo.backend import to_numpy
from dynzoo.inference.answers import answers
from dynzoo.inference.draws import Draws
from dynzoo.inference.passes import predict_logits
from dynzoo.robustness.corruptions import hits
from dynzoo.robustness.evaluation import CertificateViolation, evaluate
from dynzoo.robustness.noise_curves import noise_curve


def failing(power=0.5, slope=0.0):
    """Answers class 0 on all of [0, 1]^16, and NaN where the mean of the pixels is below 0.4517.

    The gradient of the margin leads there, as that of any model leads to where it fails.
    """
    inputs = keras.Input((16,))
    mean = ops.mean(inputs, axis=-1, keepdims=True)
    root = ops.power(mean - 0.4517, power)
    zero = 0.0 * mean
    return keras.Model(
        inputs, ops.concatenate([2.0 + root, zero + slope, zero - 1, zero - 2], axis=-1)
    )


X = np.full((3, 16), 0.5, "float32")
Y = np.zeros(3, "int64")
L2 = [
    FGSM(eps=0.4),
    PGD(eps=0.4, steps=10),
    PGD(eps=0.4, steps=10, loss="ce", random_start=False),
    PGD(eps=0.4, steps=10, loss="pairwise"),
    APGD(eps=0.4, steps=10),
    APGD(eps=0.4, steps=10, loss="dlr"),
    APGD(eps=0.4, steps=10, eot=2),
    TargetedAPGD(eps=0.4, steps=10),
    FAB(eps=0.4, steps=10),
    FAB(eps=0.4, steps=10, targeted_rivals=False),
    DDN(eps=0.4, steps=20),
    AutoAttack(eps=0.4),
    Transfer(PGD(eps=0.4, steps=10), failing(slope=1.0)),
]
LINF = [
    FGSM("linf", 0.1),
    PGD("linf", 0.1, steps=10),
    APGD("linf", 0.1, steps=10),
    TargetedAPGD("linf", 0.1, steps=10),
    FAB("linf", 0.1, steps=10),
    Square("linf", 0.1, queries=200),
    AutoAttack("linf", 0.1),
]
BLIND = [
    Square(norm="l2", eps=1.0, queries=200),
    GaussianNoise(eps=2.0, draws=200),
    UniformNoise("linf", 0.3, draws=200),
]


@pytest.mark.parametrize("attack", [*L2, *LINF, *BLIND], ids=repr)
def test_every_attack_finds_the_nan(attack):
    model = failing()
    assert answers(predict_logits(model, X)).tolist() == [0, 0, 0]
    points = attack(model, X, Y)
    assert np.isfinite(points).all()
    distance = points.astype(np.float64) - X
    length = np.abs(distance).max(1) if attack.norm == "linf" else np.linalg.norm(distance, axis=1)
    assert (length <= attack.eps).all()
    assert np.isnan(predict_logits(model, points)).any(axis=1).all()


@pytest.mark.parametrize("attack", [FAB(steps=20), DDN(steps=60)], ids=repr)
def test_distance_to_the_nan_is_that_to_a_boundary(attack):
    points, distances = attack.minimum_norm(failing(), X, Y)
    exact = (0.5 - 0.4517) * 4.0
    assert np.isfinite(points).all()
    assert (distances >= exact * (1 - 1e-5)).all() and (distances <= 1.2 * exact).all()


def test_nan_is_no_target():
    model = failing()
    attack = PGD(eps=0.4, steps=10, targeted=True)
    assert not attack.fooled(np.array([[np.nan, 0.0]]), np.array([0])).any()
    points = attack(model, X, np.full(3, 1))
    assert not attack.fooled(predict_logits(model, points), np.full(3, 1)).any()


def test_evaluation_counts_them():
    model = failing()
    dark = np.full((2, 16), 0.4, "float32")  # clean images that give NaN
    x, y = np.concatenate([X, dark, np.full((2, 16), 0.9, "float32")]), np.zeros(7, "int64")
    report = evaluate(model, x, y, eps=(0.1, 0.4), attacks="pgd_margin", certificate=False)
    assert report.clean == pytest.approx(5 / 7)
    assert report.robust[0.1] == pytest.approx(5 / 7)
    assert report.robust[0.4] == pytest.approx(2 / 7)
    (warning,) = (w for w in report.warnings if w.name == "nan-logits")
    assert "2 of 7 clean images" in warning.text
    assert {e.fooled_label for e in report.examples} == {-1}


def test_page_has_words_for_no_answer(tmp_path):
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, failing()(keras.layers.Flatten()(inputs)))
    x = X.reshape(3, 4, 4, 1)
    report = evaluate(
        model, x, Y, eps=0.4, attacks="fast", certificate=False, class_names=list("abcd")
    )
    page = report.save(tmp_path / "r.html").read_text()
    assert "no answer (NaN)" in page


def test_nan_inside_a_certified_radius_refutes_the_certificate():
    class Wrong:
        def radii(self, x, batch_size=256):
            return np.zeros(len(x), int), np.full(len(x), 1.0)

    with pytest.raises(CertificateViolation):
        evaluate(failing(), X, Y, eps=0.4, attacks="fast", certificate=Wrong())


def test_noise_curves_and_corruptions_count_them_as_wrong():
    model = failing()
    curve = noise_curve(model, X, Y, kinds=["gaussian"], levels=[0.5], draws=20)
    assert curve.clean == 1.0 and 0.2 < curve.mean("gaussian")[0] < 0.95
    x = np.concatenate([X, 0 * X])
    with Draws(model, 0) as draws:
        found = hits(model, lambda rows: x[rows], np.zeros(6, int), 256, draws)
    assert found.tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("name", ATTACK_LOSSES)
@pytest.mark.parametrize("targeted", [False, True])
def test_losses_hold_no_nan(name, targeted):
    if targeted and name.startswith("pairwise"):
        return
    inf, nan = np.inf, np.nan
    rows = [[nan, 0, 1, 2], [0, 1, 2, nan], [inf, 0, 1, 2], [0, inf, 1, 2], [inf, inf, 0, 0]]
    rows += [[-inf, -inf, -inf, -inf], [5, -inf, -inf, -inf], [inf, inf, inf, inf], [2, 1, 0, 3]]
    logits = np.array(rows, "float32")
    y, rival = np.zeros(len(rows), "int32"), np.ones(len(rows), "int32")
    loss = to_numpy(attack_loss(name, ops.convert_to_tensor(logits), y, rival, targeted))
    assert not np.isnan(loss).any()
    assert (loss[:2] == (-inf if targeted else inf)).all()
    gap = to_numpy(margin(ops.convert_to_tensor(logits), ops.convert_to_tensor(y)))
    assert (gap[:2] == inf).all() and not np.isnan(gap).any()
    np.testing.assert_array_equal(np.sign(gap), np.sign(margins(logits, y)))
    # the gap is above 0 only where another class is the answer, and below it only where y is
    found = answers(logits)
    assert (found[gap > 0] != 0).all() and (found[gap < 0] == 0).all()
    assert found.tolist() == [-1, -1, 0, 1, 0, 0, 0, 0, 3]


def test_infinite_logits_are_numbers_in_their_order():
    """1 / d is infinite at one point: a right answer there counts, a wrong one does not."""
    inputs = keras.Input((2,))
    far = ops.sum(ops.abs(inputs - 0.5), axis=-1, keepdims=True)
    model = keras.Model(inputs, ops.concatenate([1.0 / far, 0 * far], axis=-1))
    x = np.full((2, 2), 0.5, "float32")
    report = evaluate(model, x, np.array([0, 1]), eps=0.1, attacks="fast", certificate=False)
    assert report.clean == 0.5 and report.robust[0.1] == 0.5
