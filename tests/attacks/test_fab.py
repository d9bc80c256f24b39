"""FAB: the inner projection is exact, the distances are the closed form's, nothing is claimed."""

import keras
import numpy as np
import pytest
from exact_distances import linear_distances, step_lengths
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from robustness_fixtures import centroids, held_out, ridge

from dynzoo import backend
from dynzoo.attacks import fab as fab_module
from dynzoo.attacks.box_projection import hyperplane_step
from dynzoo.attacks.fab import FAB
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


def step_of(point, normal, value, norm):
    tensors = [ops.convert_to_tensor(np.asarray(v, "float32")) for v in (point, normal, value)]
    return backend.to_numpy(hyperplane_step(*tensors, norm)).astype(np.float64)


@settings(max_examples=20)
@given(
    norm=st.sampled_from(["l2", "linf"]),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-12, 1.0, 1e9]),
    share=st.floats(0.01, 0.9),
)
def test_step_is_the_shortest_one_to_the_hyperplane_in_the_box(norm, seed, scale, share):
    rng = np.random.default_rng(seed)
    point = np.clip(rng.uniform(-0.5, 1.5, (6, 12)), 0, 1).astype("float32")
    normal = rng.standard_normal((6, 12)).astype("float32")
    normal[:, 0] = 0.0
    sign = rng.choice([-1.0, 1.0], 6)
    # The value that can be made up for within the box is known: `share` of it is asked for.
    room = np.where(-sign[:, None] * normal > 0, 1 - point, point)
    value = (sign * share * (np.abs(normal) * room).sum(axis=1)).astype("float32")
    scaled = np.float32(scale)
    step = step_of(point, normal * scaled, value * scaled, norm)
    assert (point + step).min() >= -1e-6 and (point + step).max() <= 1 + 1e-6
    met = value + (normal.astype(np.float64) * step).sum(axis=1)
    np.testing.assert_allclose(met / np.abs(value), 0.0, atol=1e-4)
    length = distances(step, np.zeros_like(step), norm)
    np.testing.assert_allclose(length, step_lengths(normal, value, point, norm), rtol=1e-3)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_step_without_a_gradient_or_without_room(norm):
    point = np.full((4, 3), 0.25)
    normal = np.array([[0.0, 0, 0], [np.nan, np.inf, 0], [1, -1, 0], [1, 1e-30, 0]])
    step = step_of(point, normal, [-1.0, -1.0, -100.0, -100.0], norm)
    np.testing.assert_array_equal(step[:2], 0.0)
    np.testing.assert_allclose(step[2], [0.75, -0.25, 0.0], atol=1e-6)
    assert step[3, 0] == pytest.approx(0.75) and step[3, 2] == 0.0


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_distances_of_a_linear_model_are_the_exact_ones(linear, norm):
    x, y = held_out(100)
    exact = linear_distances(linear, x, y, norm)
    points, found = FAB(norm, steps=15).minimum_norm(linear, x, y)
    np.testing.assert_array_equal(found[exact == 0], 0.0)
    np.testing.assert_array_equal(points[exact == 0], x[exact == 0])
    right = exact > 0
    ratio = found[right] / exact[right]
    assert ratio.min() >= 1 - 1e-6
    assert np.median(ratio) <= 1.001 and ratio.max() <= 1.02
    assert (predict_logits(linear, points).argmax(axis=1) != y).all()
    assert points.min() >= 0.0 and points.max() <= 1.0
    np.testing.assert_allclose(distances(points, x, norm)[right], found[right])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "median", "counts"),
    [
        ("l2", 0.387938, {0.05: 686, 0.1: 657, 0.2: 579, 0.3: 473, 0.5: 227, 0.75: 16, 1.0: 0}),
        (
            "linf",
            None,
            {0.01: 685, 0.02: 651, 0.03: 611, 0.05: 516, 0.08: 323, 0.1: 211, 0.2: 0},
        ),
    ],
)
def test_all_golden_counts_of_the_linear_model(linear, norm, median, counts):
    x, y = held_out(797)
    exact = linear_distances(linear, x, y, norm)
    assert {eps: int((exact > eps).sum()) for eps in counts} == counts
    if median:
        assert np.median(exact[exact > 0]) == pytest.approx(median, abs=1e-5)
    found = FAB(norm).minimum_norm(linear, x, y)[1]
    ratio = found[exact > 0] / exact[exact > 0]
    assert ratio.min() >= 1 - 1e-6 and np.median(ratio) <= 1.006
    for eps, count in counts.items():
        assert count <= (found > eps).sum() <= count + 1


@pytest.mark.parametrize(
    ("norm", "eps", "exact"), [("linf", 0.05, 144), ("linf", 0.1, 56), ("l2", 0.3, 129)]
)
def test_counts_of_the_linear_model(linear, norm, eps, exact):
    x, y = held_out()
    attack = FAB(norm, eps, steps=15, targets=4)
    assert exact <= survivors(linear, attack, x, y) <= exact + 1


def test_counts_of_the_1_lipschitz_model(nearest):
    x, y = held_out()
    found = FAB(steps=20, targets=5).minimum_norm(nearest, x, y)[1]
    for eps, exact in {0.1: 186, 0.3: 154, 0.5: 123, 0.75: 76, 1.0: 26}.items():
        assert exact <= (found > eps).sum() <= exact + 2


def test_points_lie_in_the_ball_and_fool_the_model(nearest):
    x, y = held_out(60)
    x_adv = FAB(eps=0.3, steps=20, targets=3)(nearest, x, y)
    assert np.all(distances(x_adv, x, "l2") <= 0.3)
    assert x_adv.min() >= 0.0 and x_adv.max() <= 1.0
    fell = predict_logits(nearest, x_adv).argmax(axis=1) != y
    found = FAB(steps=20, targets=3).minimum_norm(nearest, x, y)[1]
    clear = np.abs(found - 0.3) > 1e-3
    np.testing.assert_array_equal(fell[clear], (found <= 0.3)[clear])


def test_batch_size_order_and_company_do_not_matter(nearest):
    x, y = held_out(40)
    attack = FAB(eps=0.3, steps=6, targets=2, restarts=2, seed=3)
    whole = attack.minimum_norm(nearest, x, y)[1]
    small = FAB(**{**attack.get_config(), "batch_size": 7}).minimum_norm(nearest, x, y)[1]
    np.testing.assert_allclose(whole, small, rtol=1e-3)
    order = np.random.default_rng(0).permutation(40)[:25]
    part = attack.minimum_norm(nearest, x[order], y[order], indices=order)[1]
    np.testing.assert_allclose(whole[order], part, rtol=1e-3)


def test_restarts_start_elsewhere_and_never_make_it_worse(nearest):
    x, y = held_out(30)
    once = FAB(steps=3, targets=1).minimum_norm(nearest, x, y)[1]
    twice = FAB(steps=3, targets=1, restarts=3).minimum_norm(nearest, x, y)[1]
    assert np.all(twice <= once) and (twice < once).any()


def test_one_run_per_rival_and_no_more_than_there_are(linear):
    assert FAB(targets=9).runs(10) == 9 == FAB(targets=20).runs(10)
    assert FAB(targets=9, restarts=2).runs(3) == 4
    assert FAB(targeted_rivals=False, restarts=2).runs(10) == 2
    x, y = held_out(30)
    by_rank = [FAB(steps=5, targets=k).minimum_norm(linear, x, y)[1] for k in (1, 9)]
    # The nearest class is not always that of the second largest logit.
    assert np.all(by_rank[1] <= by_rank[0]) and (by_rank[1] < 0.99 * by_rank[0]).any()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_free_choice_of_the_rival(linear, norm):
    x, y = held_out(40)
    exact = linear_distances(linear, x, y, norm)
    right = exact > 0
    attack = FAB(norm, steps=10, targeted_rivals=False)
    ratio = attack.minimum_norm(linear, x, y)[1][right] / exact[right]
    assert ratio.min() >= 1 - 1e-6 and np.median(ratio) <= 1.01


def test_fallen_images_take_no_more_steps(linear, monkeypatch):
    seen = []

    def counting(*args, **kwargs):
        look = loss_and_gradient(*args, **kwargs)

        def counted(point, *rest):
            seen.append(len(point))
            return look(point, *rest)

        return counted

    loss_and_gradient = fab_module.loss_and_gradient
    monkeypatch.setattr(fab_module, "loss_and_gradient", counting)
    x, y = held_out(64)
    FAB("linf", 0.08, steps=30, targets=2, batch_size=64)(linear, x, y)
    assert seen[0] > 55 and min(seen) <= 40
    seen.clear()
    FAB("linf", 0.5, steps=30, targets=2, batch_size=64)(linear, x, y)
    assert len(seen) <= 20  # all have fallen at the first look


def test_two_classes_and_images():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((4, 3, 2)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    x = np.random.default_rng(0).uniform(size=(10, 4, 3, 2)).astype("float32")
    y = predict_logits(model, x).argmax(axis=1)
    for norm in ("l2", "linf"):
        points, found = FAB(norm, steps=10).minimum_norm(model, x, y)
        assert points.shape == x.shape and np.isfinite(found).sum() >= 8


def test_model_without_a_gradient_is_not_claimed_to_fall():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.set_weights([np.zeros((6, 3)), np.array([1.0, 0.0, 0.0])])
    x, y = np.full((3, 6), 0.5, "float32"), np.zeros(3, "int64")
    points, found = FAB(steps=3, restarts=2).minimum_norm(model, x, y)
    np.testing.assert_array_equal(points, x)
    assert np.isinf(found).all()
    assert survivors(model, FAB(steps=3), x, y) == 3


def test_config_makes_a_copy():
    attack = FAB("linf", 0.1, seed=5, steps=7, targets=3, alpha_max=0.2, eta=1.1, beta=0.8)
    assert repr(FAB(**attack.get_config())) == repr(attack)
    assert attack.at(0.2).eps == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l1"}, "`norm` must be one of"),
        ({"eps": 0}, "`eps` must be"),
        ({"steps": 0}, "`steps` must be"),
        ({"targets": 0}, "`targets` must be"),
        ({"alpha_max": 1.5}, r"`alpha_max` must be in \(0, 1\]"),
        ({"alpha_max": 0.0}, "`alpha_max` must be"),
        ({"eta": 0.9}, "`eta` must be at least 1"),
        ({"beta": 1.1}, r"`beta` must be in \(0, 1\]"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FAB(**arguments)


def test_wrong_inputs(linear):
    x, y = held_out(4)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        FAB().minimum_norm(linear, 255 * x, y)
    with pytest.raises(ValueError, match="labels from 0 to 9"):
        FAB().minimum_norm(linear, x, y + 10)
