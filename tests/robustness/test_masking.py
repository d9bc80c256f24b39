"""The checks of an evaluation: they flag what only looks robust, and leave a plain model alone."""

import copy

import numpy as np
import pytest
from helpers import slow_elsewhere
from masking_fixtures import FIXTURES, wrapped
from robustness_fixtures import centroids, held_out, ridge

from dynzoo.attacks import APGD, PGD, Attack, Square
from dynzoo.inference.passes import predict_logits
from dynzoo.robustness.campaign import Campaign
from dynzoo.robustness.checks.gradients import gradient_check
from dynzoo.robustness.checks.model import check_convergence
from dynzoo.robustness.checks.outcomes import check_outcomes
from dynzoo.robustness.checks.planted import active_test, check_active
from dynzoo.robustness.evaluation import evaluate

EPS = 0.05  # Linf; 144 of 200 are robust


def right(model, count=200):
    x, y = held_out(count)
    rows = np.flatnonzero(predict_logits(model, x).argmax(axis=1) == y)
    return x[rows], y[rows]


def attacks(steps=40):
    return [
        APGD("linf", EPS, loss="ce", steps=steps),
        APGD("linf", EPS, loss="margin", steps=steps),
        Square("linf", EPS, queries=100),
    ]


def warnings_of(model, count=200, steps=40, **kwargs):
    kwargs |= {"norm": "linf", "eps": EPS, "attacks": attacks(steps), "certificate": False}
    result = evaluate(model, *held_out(count), **kwargs)
    return {warning.name for warning in result.warnings}, result


def test_plain_model_is_not_flagged():
    names, result = warnings_of(ridge(), surrogates=[wrapped()])
    assert names == set()
    assert 144 <= round(200 * result.robust[EPS]) <= 145


@pytest.mark.parametrize("name", FIXTURES)
def test_masking_is_flagged(name):
    make, expected = FIXTURES[name]
    # each step on a random model takes many passes, and says nothing more of its randomness
    few = {"count": 40, "steps": 10} if name == "random" else {}
    names, _ = warnings_of(make(), checks="quick", **few)
    assert names & expected


@slow_elsewhere
@pytest.mark.parametrize("name", ["zero gradient", "negated gradient", "noisy gradient"])
def test_several_checks_expose_masked_gradients(name):
    """Transfer from the plain model, attacks without gradients, and a planted example."""
    names, result = warnings_of(FIXTURES[name][0](), surrogates=[ridge()])
    assert {"unbounded-attack-fails"} & names or name == "noisy gradient"
    assert {"transfer-beats-white-box", "active-test-failed"} <= names
    assert "black-box-beats-white-box" in names
    assert round(200 * result.robust[EPS]) <= 146  # transfer finds what is there


def test_transfer_finds_the_robustness_of_the_rounded_model():
    names, result = warnings_of(FIXTURES["rounded"][0](), surrogates=[ridge()])
    assert "transfer-beats-white-box" in names
    assert round(200 * result.robust[EPS]) <= 130  # exact 122, gradient attacks see 187


def test_gradient_check_tells_good_from_broken():
    x, y = right(ridge())
    for loss in ("margin", "ce"):
        found = gradient_check(ridge(), x, y, loss)
        assert found.zero == 0 and found.error < 0.02 and found.ascent > 0.95
    broken = gradient_check(FIXTURES["negated gradient"][0](), x, y)
    assert broken.error > 0.9 and broken.ascent < 0.1
    assert gradient_check(FIXTURES["scaled"][0](), x, y, "ce").zero > 0.5
    assert gradient_check(FIXTURES["zero gradient"][0](), x, y).zero == 1.0


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.3), ("linf", 0.05)])
@pytest.mark.parametrize("make", [ridge, centroids])
def test_a_good_attack_finds_planted_examples(make, norm, eps):
    x, _ = held_out(6)
    found = active_test(make(), x, PGD(norm, eps, steps=50, random_start=False))
    assert len(found) >= 4 and found.all()


def test_an_attack_that_does_nothing_fails_the_active_test():
    class Idle(PGD):
        def search(self, model, x, *args):
            return x, np.zeros(len(x))

    x, _ = held_out(4)
    assert check_active(ridge(), x, Idle(eps=0.3))[0].name == "active-test-failed"
    flat = FIXTURES["rounded"][0]()
    assert check_active(flat, x, PGD(eps=1e-4))[0].name == "active-test-impossible"


def test_too_few_steps_are_named():
    model = ridge()
    x, y = held_out()
    survivors = np.flatnonzero(predict_logits(model, x).argmax(axis=1) == y)
    found = check_convergence(model, x, y, survivors, 0.1, "linf", 1, 0)
    assert found[0].name == "not-converged"
    points = PGD("linf", 0.05, steps=100)(model, x, y)
    robust = np.flatnonzero(predict_logits(model, points).argmax(axis=1) == y)
    assert not check_convergence(model, x, y, robust, 0.05, "linf", 50, 0)
    assert not check_convergence(model, x, y, robust[:0], 0.05, "linf", 50, 0)


# --- what the outcomes tell ---


class Puppet(Attack):
    """Breaks the images that it was told to, at each radius."""

    def __init__(self, broken, loss=None, black_box=False, transferred=False):
        super().__init__()
        self.broken, self.black_box, self.transferred = broken, black_box, transferred
        if loss:
            self.loss = loss


def outcomes_of(puppets, images=100, eps=(0.1, 0.3)):
    def at(puppet, e):
        moved = copy.copy(puppet)
        moved.eps = e
        return moved

    def judge(attack, rows):
        labels = np.zeros(len(rows), int)
        labels[np.isin(rows, attack.broken[eps.index(attack.eps)])] = 1
        return np.zeros((len(rows), 1)), labels

    y = np.zeros(images, int)
    planned = [[at(puppet, e) for puppet in puppets] for e in eps]
    campaign = Campaign(planned, eps, y, y == 0, judge)
    return campaign.run(), campaign.repeated


def flags(puppets, **kwargs):
    outcomes, repeated = outcomes_of(puppets, **kwargs)
    return {w.name for w in check_outcomes(outcomes, puppets, repeated)}


def test_outcomes_of_a_sound_evaluation_are_quiet():
    first = [range(10), range(40)]
    assert flags([Puppet(first, "ce"), Puppet(first, black_box=True)]) == set()
    # one image more is no pattern
    late = [range(11), range(41)]
    assert flags([Puppet(first, "ce"), Puppet(late, black_box=True)]) == set()


def test_outcomes_flag_each_pattern():
    first, late = [range(10), range(40)], [range(15), range(40)]
    assert flags([Puppet(first), Puppet(late, black_box=True)]) == {"black-box-beats-white-box"}
    assert flags([Puppet(first, "ce"), Puppet(late)]) == {"crossentropy-only-gap"}
    assert flags([Puppet(first), Puppet(late, transferred=True)]) == {"transfer-beats-white-box"}
    assert flags([Puppet([range(10), range(5)])]) == {"attack-not-monotone", "flat-curve"}
    assert flags([Puppet([range(10), range(10)])]) == {"flat-curve"}
    assert flags([Puppet([range(10), range(10)])], eps=(0.1, 0.11)) == set()
    assert flags([Puppet([range(100), range(100)])]) == set()  # nothing left to fall
    assert flags([Puppet([range(2), range(2)])], images=20) == set()
    assert flags([Puppet(first, black_box=True)]) == set()
