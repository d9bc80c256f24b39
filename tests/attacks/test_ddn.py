"""DDN: distances close to the closed form's and never below, on its own judgement of success."""

import keras
import numpy as np
import pytest
from exact_distances import linear_distances
from robustness_fixtures import centroids, held_out, ridge

from dynzoo.attacks.ddn import DDN
from dynzoo.attacks.geometry import distances
from dynzoo.inference.passes import predict_logits


def survivors(model, attack, x, y):
    return int((predict_logits(model, attack(model, x, y)).argmax(axis=1) == y).sum())


@pytest.fixture(scope="module")
def linear():
    return ridge()


@pytest.fixture(scope="module")
def nearest():
    return centroids()


@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_distances_of_a_linear_model(linear, loss):
    x, y = held_out()
    exact = linear_distances(linear, x, y, "l2")
    points, found = DDN(loss=loss).minimum_norm(linear, x, y)
    right = exact > 0
    ratio = found[right] / exact[right]
    assert ratio.min() >= 1 - 1e-6 and np.median(ratio) <= 1.003
    np.testing.assert_array_equal(found[~right], 0.0)
    np.testing.assert_allclose(distances(points, x, "l2"), found)
    assert (predict_logits(linear, points).argmax(axis=1) != y).all()
    assert points.min() >= 0.0 and points.max() <= 1.0


def test_norm_is_found_from_far_below_and_far_above(linear):
    x, y = held_out(60)
    exact = linear_distances(linear, x, y, "l2")
    right = exact > 0
    for init_eps in (0.01, 5.0):
        found = DDN(init_eps=init_eps).minimum_norm(linear, x, y)[1]
        assert np.median(found[right] / exact[right]) <= 1.01


@pytest.mark.parametrize(("eps", "exact"), [(0.1, 186), (0.3, 154), (0.5, 123)])
def test_counts_of_the_1_lipschitz_model(nearest, eps, exact):
    x, y = held_out()
    assert exact <= survivors(nearest, DDN(eps=eps, steps=150), x, y) <= exact + 4


def test_cross_entropy_is_misled_by_a_1_lipschitz_model(nearest):
    # The reason for the default loss.
    x, y = held_out()
    by_loss = [DDN(loss=loss).minimum_norm(nearest, x, y)[1] for loss in ("margin", "ce")]
    assert np.median(by_loss[1][by_loss[1] > 0] / by_loss[0][by_loss[0] > 0]) > 1.05


def test_points_lie_in_the_ball(nearest):
    x, y = held_out(50)
    x_adv = DDN(eps=0.3, steps=30)(nearest, x, y)
    assert np.all(distances(x_adv, x, "l2") <= 0.3)
    assert x_adv.min() >= 0.0 and x_adv.max() <= 1.0


def test_batch_size_order_and_company_do_not_matter(nearest):
    x, y = held_out(40)
    attack = DDN(steps=30, restarts=2, seed=3)
    whole = attack.minimum_norm(nearest, x, y)[1]
    small = DDN(steps=30, restarts=2, seed=3, batch_size=7).minimum_norm(nearest, x, y)[1]
    np.testing.assert_allclose(whole, small, rtol=1e-2)
    order = np.random.default_rng(0).permutation(40)[:25]
    part = attack.minimum_norm(nearest, x[order], y[order], indices=order)[1]
    np.testing.assert_allclose(whole[order], part, rtol=1e-2)


def test_restarts_help(linear):
    x, y = held_out(60)
    once = DDN(steps=30).minimum_norm(linear, x, y)[1]
    more = DDN(steps=30, restarts=3).minimum_norm(linear, x, y)[1]
    assert np.all(more <= once) and (more < 0.999 * once).any()


def test_two_classes():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    x = np.random.default_rng(0).uniform(size=(10, 4)).astype("float32")
    y = predict_logits(model, x).argmax(axis=1)
    assert np.isfinite(DDN(steps=60).minimum_norm(model, x, y)[1]).sum() >= 5
    with pytest.raises(ValueError, match="needs at least 3 classes"):
        DDN(loss="dlr").minimum_norm(model, x, y)


def test_config_makes_a_copy():
    attack = DDN(eps=0.1, seed=5, steps=7, gamma=0.1, init_eps=0.3, loss="ce")
    assert repr(DDN(**attack.get_config())) == repr(attack)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "linf"}, "`norm` must be 'l2'"),
        ({"steps": 0}, "`steps` must be"),
        ({"gamma": 1.0}, r"`gamma` must be in \(0, 1\)"),
        ({"gamma": -0.1}, "`gamma` must be"),
        ({"init_eps": 0.0}, "`init_eps` must be"),
        ({"loss": "pairwise"}, "`loss` must be one of"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DDN(**arguments)
