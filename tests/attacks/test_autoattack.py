"""The ensemble: exact on the closed forms, on robust images only, for two classes and up."""

import keras
import numpy as np
import pytest
from golden_numbers import (
    CENTROIDS_L2,
    GOLDEN,
    GOLDEN_ALL,
    RIDGE_L2,
    RIDGE_LINF,
    made,
    survivors,
)
from helpers import SLOW_ELSEWHERE
from robustness_fixtures import centroids, held_out, ridge

from dynzoo import attacks as package
from dynzoo.attacks import APGD, FAB, PGD, Attack, AutoAttack, Square, TargetedAPGD
from dynzoo.attacks.ensembles import makers
from dynzoo.inference.passes import predict_logits
from dynzoo.robustness.evaluation import evaluate


def square_images(make):
    """A classifier of digits that takes them as images of shape (8, 8, 1), as Square does."""
    if (make, "image") not in _IMAGES:
        layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), *make().layers]
        _IMAGES[make, "image"] = keras.Sequential(layers)
    return _IMAGES[make, "image"]


_IMAGES = {}


class Short(AutoAttack):
    """The same members with fewer iterations, for models on which those are enough."""

    few = {"steps": 30, "queries": 200, "targets": 4, "eot": 5}

    def members(self, classes=None):
        return [
            type(m)(**{name: self.few.get(name, value) for name, value in m.get_config().items()})
            for m in super().members(classes)
        ]


@pytest.mark.parametrize(
    ("make", "norm", "eps", "exact"),
    [
        (ridge, "linf", 0.05, RIDGE_LINF[0.05]),
        (ridge, "l2", 0.3, RIDGE_L2[0.3]),
        # the longest: members alone are exact on it on every backend (test_apgd.py and others)
        pytest.param(centroids, "l2", 0.5, CENTROIDS_L2[0.5], marks=SLOW_ELSEWHERE),
    ],
)
def test_short_ensemble_is_exact(make, norm, eps, exact):
    x, y = held_out()
    x = x.reshape(-1, 8, 8, 1)
    attack = Short(norm, eps, batch_size=200)
    assert survivors(square_images(make), attack, x, y) == exact


@pytest.mark.slow
@pytest.mark.parametrize(("make", "norm", "eps", "exact"), GOLDEN)
def test_ensemble_is_exact(make, norm, eps, exact):
    x, y = held_out()
    x = x.reshape(-1, 8, 8, 1)
    attack = AutoAttack(norm, eps, batch_size=200)
    assert survivors(square_images(make), attack, x, y) == exact


@pytest.mark.slow
@pytest.mark.parametrize(("make", "norm", "eps", "exact"), GOLDEN_ALL)
def test_ensemble_is_exact_on_all_held_out_digits(make, norm, eps, exact):
    x, y = held_out(797)
    x = x.reshape(-1, 8, 8, 1)
    assert survivors(square_images(make), AutoAttack(norm, eps), x, y) == exact


def test_members_and_their_hyperparameters():
    standard = AutoAttack("linf", 0.03, seed=4, batch_size=50).members()
    assert [type(m) for m in standard] == [APGD, TargetedAPGD, FAB, Square]
    ce, targeted, fab, square = standard
    assert (ce.loss, ce.steps, ce.restarts) == ("ce", 100, 1)
    assert (targeted.steps, targeted.targets, targeted.restarts) == (100, 9, 1)
    assert (fab.steps, fab.targets, fab.restarts, fab.targeted_rivals) == (100, 9, 1, True)
    assert (square.queries, square.p_init, square.restarts) == (5000, 0.8, 1)
    for member in standard:
        assert (member.norm, member.eps, member.seed, member.batch_size) == ("linf", 0.03, 4, 50)
    plus = AutoAttack(version="plus").members()
    assert [type(m) for m in plus] == [APGD, APGD, FAB, Square, TargetedAPGD, FAB]
    assert [m.restarts for m in plus] == [5, 5, 5, 1, 1, 1]
    assert [plus[1].loss, plus[2].targeted_rivals] == ["dlr", False]
    rand = AutoAttack(version="rand").members()
    assert [(type(m), m.loss, m.eot) for m in rand] == [(APGD, "ce", 20), (APGD, "dlr", 20)]
    few = AutoAttack(version="rand").members(classes=2)
    assert [m.loss for m in few] == ["ce", "margin"]


def test_each_member_sees_the_images_that_still_resist():
    seen = []

    def watched(member):
        class Watched(type(member)):
            def __call__(self, model, x, y, indices=None):
                points = super().__call__(model, x, y, indices)
                fell = predict_logits(model, points).argmax(axis=1) != y
                seen.append((indices.copy(), fell))
                return points

        return Watched(**member.get_config())

    class Two(AutoAttack):
        def members(self, classes=None):
            common = dict(norm=self.norm, eps=self.eps, seed=self.seed)
            weak = PGD(steps=2, step_size=0.3, loss="ce", random_start=False, **common)
            return [watched(weak), watched(APGD(steps=20, **common))]

    model, (x, y) = made(centroids), held_out(80)
    x_adv = Two("l2", 0.7)(model, x, y, indices=np.arange(80) + 500)
    right = predict_logits(model, x).argmax(axis=1) == y
    (first, fell), (second, fell_too) = seen
    np.testing.assert_array_equal(first, np.flatnonzero(right) + 500)
    np.testing.assert_array_equal(second, first[~fell])
    assert fell.any() and fell_too.any() and not fell_too.all()
    survived = predict_logits(model, x_adv).argmax(axis=1) == y
    np.testing.assert_array_equal(np.flatnonzero(survived) + 500, second[~fell_too])
    # What resists comes back as the worst point seen, not as the image.
    assert np.all(np.abs(x_adv - x).max(axis=1)[survived] > 0)
    np.testing.assert_array_equal(x_adv[~right], x[~right])


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(version, classes):
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(classes))
    x = np.random.default_rng(0).uniform(size=(6, 4, 4, 1)).astype("float32")
    y = predict_logits(model, x).argmax(axis=1)
    for eps, left in ((4.0, 6), (1e-6, 6)):
        attack = Short("l2", eps, version=version, batch_size=6)
        if eps < 1:  # where nothing falls, every member takes all of its iterations
            attack.few = {"steps": 5, "queries": 20, "targets": 2, "eot": 2}
        fell = predict_logits(model, attack(model, x, y)).argmax(axis=1) != y
        # every image can reach another class somewhere in the box, none within 1e-6
        assert fell.sum() == left if eps > 1 else fell.sum() == 0


def test_random_model_gets_the_expectation():
    class Noisy(keras.layers.Layer):
        random_at_inference = True

        def __init__(self):
            super().__init__()
            self.seed_generator = keras.random.SeedGenerator(1)

        def call(self, z):
            return z + 0.5 * keras.random.normal((1, 10), seed=self.seed_generator)

    model = keras.Sequential([keras.Input((64,)), *ridge().layers, Noisy()])
    x, y = held_out(40)
    attack = Short("linf", 0.1, version="rand")
    x_adv = attack(model, x, y)
    np.testing.assert_array_equal(x_adv, attack(model, x, y))  # a function of the seed
    exact = survivors(made(ridge), TargetedAPGD("linf", 0.1, steps=30, targets=4), x, y)
    fell = predict_logits(made(ridge), x_adv).argmax(axis=1) != y  # the model without its noise
    assert exact <= (~fell).sum() <= exact + 6


@pytest.mark.parametrize("name", package.ATTACKS)
def test_every_attack_has_a_name(name):
    (make,) = makers(name, "l2", 3, 17)
    attack = make(0.25)
    assert isinstance(attack, Attack) and type(attack).__name__ in package.__all__
    assert (attack.norm, attack.eps, attack.seed, attack.batch_size) == ("l2", 0.25, 3, 17)


def test_named_ensembles():
    names = [[type(make(0.1)).__name__ for make in makers(n, "linf", 0, 9)] for n in (
        "standard", "pgd_margin", "fast"
    )]  # fmt: skip
    assert names == [["APGD", "TargetedAPGD", "FAB", "Square"], ["PGD"] * 3, ["PGD"]]


def test_ensemble_can_be_one_attack_of_an_evaluation():
    x, y = held_out(40)
    attack = Short("l2", 0.3, batch_size=40)
    report = evaluate(
        square_images(ridge), x.reshape(-1, 8, 8, 1), y, eps=0.3, attacks=attack, certificate=False
    )
    exact = survivors(made(ridge), TargetedAPGD("l2", 0.3, steps=30, targets=4), x, y)
    assert round(40 * report.robust[0.3]) == exact


def test_config_and_wrong_arguments():
    attack = AutoAttack("linf", 0.1, seed=2, version="plus", batch_size=8)
    assert repr(AutoAttack(**attack.get_config())) == repr(attack)
    assert attack.at(0.2).eps == 0.2 and attack.at(0.2).version == "plus"
    with pytest.raises(ValueError, match="`version` must be one of"):
        AutoAttack(version="custom")
    with pytest.raises(ValueError, match="`eps` must be"):
        AutoAttack(eps=-1)
    with pytest.raises(ValueError, match="labels from 0 to 9"):
        AutoAttack()(made(ridge), held_out(4)[0], np.full(4, 10))
