"""Expectation over transformation: attacks on a random model follow means over its draws."""

import functools

import keras
import numpy as np
import pytest
from golden_numbers import made, survivors
from keras import ops
from robustness_fixtures import held_out, ridge

from dynzoo import backend
from dynzoo.attacks import APGD, DDN, FAB, PGD, GaussianNoise, Square, TargetedAPGD
from dynzoo.attacks.ensembles import standard, with_draws
from dynzoo.attacks.passes import judged, loss_and_gradient
from dynzoo.inference import passes
from dynzoo.inference.passes import listening, mean_logits, noise, predict_logits


class Noisy(keras.layers.Layer):
    """Adds a random vector of mean zero to the logits in each pass: one each, or a common one."""

    random_at_inference = True

    def __init__(self, sigma, common):
        super().__init__()
        self.sigma, self.common = sigma, common
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, z):
        shape = (1, 10) if self.common else ops.shape(z)
        return z + self.sigma * keras.random.normal(shape, seed=self.seed_generator)


@pytest.fixture(scope="module")
def quiet():
    return ridge()


@pytest.fixture(scope="module")
def images(quiet):
    x, y = held_out(60)
    right = predict_logits(quiet, x).argmax(axis=1) == y
    return x[right], y[right]


def behind_noise(sigma, common=False):
    return keras.Sequential([keras.Input((64,)), *ridge().layers, Noisy(sigma, common)])


noisy = functools.cache(behind_noise)  # compiled once for all tests


def fallen(quiet, points, y):
    """Points that fool the model without its noise."""
    return int((predict_logits(quiet, points).argmax(axis=1) != y).sum())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 1.2)])
def test_square_sees_through_the_noise_by_means(norm, eps, quiet, images):
    """With one draw, a lucky one ends the search at a point that fools nobody else."""
    x, y = images
    model = noisy(1.0)
    state = next(v for v in model.variables if v.name == "seed_generator_state")
    before = backend.to_numpy(state.value)
    one, eight = (Square(norm, eps, queries=60, eot=eot) for eot in (1, 8))
    points = eight(model, x, y)
    np.testing.assert_array_equal(backend.to_numpy(state.value), before)
    np.testing.assert_array_equal(eight(model, x, y), points)  # a function of the seed
    assert fallen(quiet, points, y) >= fallen(quiet, one(model, x, y), y) + 5


def test_points_of_fab_fool_by_the_mean(images):
    """What fooled in one draw is refused by the mean, and then nothing is left of the search."""
    x, y = images
    found = []
    for eot in (1, 8):
        attack = FAB("l2", steps=10, targets=2, eot=eot)
        found.append(np.isfinite(attack.minimum_norm(noisy(1.0), x, y)[1]).sum())
    assert found[1] >= found[0] + 6


@pytest.mark.parametrize(
    ("make", "gradients", "logits"),
    [
        # a step of FAB judges its point; the line search of both asks seven times
        (lambda eot: FAB("l2", 1e-6, steps=5, targets=1, eot=eot), 5, 5 + 7),
        (lambda eot: DDN("l2", 1e-6, steps=5, init_eps=3.0, eot=eot), 5 + 1, 7),
        (lambda eot: Square("l2", 1e-6, queries=9, eot=eot), 0, 9),
    ],
    ids=["fab", "ddn", "square"],
)
def test_every_pass_of_a_search_is_repeated(make, gradients, logits, images):
    x, y = images
    counts = []
    for eot in (1, 4):
        passes = []
        with listening(lambda images, backward, passes=passes: passes.append(backward)):
            make(eot)(noisy(1e-4), x[:2], y[:2])
        counts.append((sum(passes), len(passes) - sum(passes)))
    (few_back, few), (many_back, many) = counts
    assert many_back - few_back == 3 * gradients and many - few == 3 * logits


def test_judged_is_the_mean_of_the_same_draws(images):
    x, _ = images
    model = noisy(1.0)
    doubled = ops.convert_to_tensor(x / 2)

    def double(half):
        return 2 * half

    def stacked(logits, half):
        return ops.concatenate([logits, half], axis=1)

    with noise(model, x, 64, seed=0):
        once = judged(model, "once", double, stacked)
        first, second = (backend.to_numpy(once(doubled)) for _ in range(2))
    assert first.shape == (len(x), 74) and np.abs(first - second)[:, :10].max() > 0.1
    with noise(model, x, 64, seed=0):
        mean = backend.to_numpy(judged(model, "twice", double, stacked, eot=2)(doubled))
    np.testing.assert_allclose(mean, (first + second) / 2, rtol=1e-4, atol=1e-5)


def test_an_evaluation_of_a_random_model_asks_for_means():
    members = standard("l2")
    assert [with_draws(member, True).eot for member in members] == [20] * 4
    assert [with_draws(member, False).eot for member in members] == [1] * 4
    assert with_draws(PGD(eot=3), True).eot == 3 and with_draws(DDN(), True).eot == 20
    assert with_draws(GaussianNoise(), True).eot == 1  # it has no such argument
    for kind in (FAB, Square, DDN, APGD):
        with pytest.raises(ValueError, match="`eot` must be a positive integer"):
            kind(eot=0)


@pytest.mark.parametrize("kind", [PGD, APGD])
def test_expectation_over_transformation(kind):
    """Noise of mean zero on the logits: the mean model is the linear one."""
    x, y = held_out(100)
    model = noisy(0.5, common=True)
    state = next(v for v in model.variables if v.name == "seed_generator_state")
    before = backend.to_numpy(state.value)
    attack = kind("linf", 0.05, steps=10, eot=8)
    x_adv = attack(model, x, y)
    np.testing.assert_array_equal(backend.to_numpy(state.value), before)
    np.testing.assert_array_equal(attack(model, x, y), x_adv)  # a function of the seed
    # One lucky draw does not count: most of the points fool the model without its noise.
    changed = np.any(x_adv != x, axis=1)
    fell = predict_logits(made(ridge), x_adv).argmax(axis=1) != y
    exact = survivors(made(ridge), TargetedAPGD("linf", 0.05, steps=30, targets=3), x, y)
    assert (~fell).sum() <= exact + 12 and changed.sum() > 80


def test_each_pass_of_a_random_model_sees_other_noise():
    x, y = held_out(4)
    model = noisy(1.0, common=True)
    images, labels = ops.convert_to_tensor(x), ops.convert_to_tensor(y.astype("int32"))
    with noise(model, x, 4, seed=0):
        look = loss_and_gradient(model, "margin")
        first, second = (backend.to_numpy(look(images, labels, labels)[0]) for _ in range(2))
        assert np.abs(first - second).min() > 1e-4
        logits = mean_logits(model, x)
    with noise(model, x, 4, seed=0):
        # the same draws once more
        mean = loss_and_gradient(model, "margin", eot=2)(images, labels, labels)[0]
    np.testing.assert_allclose(backend.to_numpy(mean), (first + second) / 2, rtol=1e-5)
    quiet = predict_logits(made(ridge), x)
    assert 0.05 < np.abs(logits - quiet).max() < 1.2  # sixteen draws: sigma / 4


def test_dropout_does_not_make_a_model_random():
    layers = [keras.layers.Dropout(0.5), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    x, _ = held_out(4)
    with passes.noise(model, x, 4, seed=0):
        assert model not in passes._NOISE
    random = behind_noise(1.0, common=True)
    random.layers[-1].random_at_inference = False  # undeclared, but measured
    with passes.noise(random, x, 4, seed=0):
        assert random in passes._NOISE
    assert random not in passes._NOISE
