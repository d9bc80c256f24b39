"""Auto-PGD: exact on the closed forms, per image, and deterministic."""

import keras
import numpy as np
import pytest
from golden_numbers import GOLDEN, GOLDEN_ALL, made, survivors
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from robustness_fixtures import centroids, held_out, ridge

from dynzoo import backend
from dynzoo.attacks import APGD, PGD, GaussianNoise, TargetedAPGD, Transfer, UniformNoise
from dynzoo.attacks.apgd import checkpoints
from dynzoo.attacks.geometry import distances
from dynzoo.attacks.losses import attack_loss, runner_up
from dynzoo.inference.passes import predict_logits


@pytest.mark.parametrize(("make", "norm", "eps", "exact"), GOLDEN)
def test_targeted_apgd_is_exact_on_the_closed_forms(make, norm, eps, exact):
    x, y = held_out()
    attack = TargetedAPGD(norm, eps, steps=30, targets=4, batch_size=200)
    left = survivors(made(make), attack, x, y)
    # at 0.75 one image needs another start
    assert exact <= left <= exact + (1 if (make, eps) == (centroids, 0.75) else 0)


@pytest.mark.parametrize(
    ("make", "norm", "eps"), [(ridge, "linf", 0.05), (ridge, "l2", 0.3), (centroids, "l2", 0.5)]
)
def test_dlr_and_margin_are_exact_with_restarts_and_cross_entropy_is_not(make, norm, eps):
    x, y = held_out()
    exact = dict((case[:3], case[3]) for case in GOLDEN)[make, norm, eps]
    for loss in ("dlr", "margin"):
        attack = APGD(norm, eps, steps=40, loss=loss, restarts=5, batch_size=200)
        assert exact <= survivors(made(make), attack, x, y) <= exact + 1
    ce = survivors(made(make), APGD(norm, eps, steps=40, loss="ce", batch_size=200), x, y)
    # The cross-entropy of a 1-Lipschitz model hides what is within reach: 143 of 200 stand.
    assert exact + 15 <= ce if make is centroids else exact <= ce <= exact + 3


@pytest.mark.slow
@pytest.mark.parametrize(("make", "norm", "eps", "exact"), GOLDEN_ALL)
def test_targeted_apgd_is_exact_on_all_held_out_digits(make, norm, eps, exact):
    x, y = held_out(797)
    left = survivors(made(make), TargetedAPGD(norm, eps), x, y)
    assert exact <= left <= exact + 2


def test_checkpoints_of_a_hundred_steps():
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(checkpoints(3)) == [1, 2, 3]


def test_iteration_is_that_of_the_algorithm():
    """Against a plain NumPy version of algorithm 1, image by image."""
    model, (x, y) = made(centroids), held_out(30)
    means = np.asarray(model.get_weights()[0], dtype=np.float64)
    steps, eps = 25, 0.05  # a ball in which hardly any image falls
    attack = APGD(eps=eps, steps=steps, seed=1)
    got = attack(model, x, y)
    from dynzoo.attacks.geometry import random_points

    starts = random_points(x, eps, "l2", 1, np.arange(30), 0).astype(np.float64)
    compared = 0
    for i in range(30):
        center, own = x[i].astype(np.float64), means[y[i]]

        def look(p, own=own, label=y[i]):
            gaps = np.linalg.norm(p - means, axis=1)
            gaps[label] = np.inf
            other = means[gaps.argmin()]
            a, b = p - own, p - other
            loss = np.linalg.norm(a) - np.linalg.norm(b)
            return loss, a / np.linalg.norm(a) - b / np.linalg.norm(b)

        def project(p, center=center):
            d = p - center
            return np.clip(center + d * min(1.0, eps / np.linalg.norm(d)), 0, 1)

        point = previous = starts[i]
        loss, g = look(point)
        if loss > 0:
            continue
        best, best_loss, best_g, eta = point, loss, g, 2 * eps
        rises, last, halved, mark, fell = 0, loss, False, -np.inf, False
        for k in range(steps):
            u = project(point + eta * g / np.linalg.norm(g))
            a = 0.75 if k else 1.0
            point, previous = project(point + a * (u - point) + (1 - a) * (point - previous)), point
            loss, g = look(point)
            fell = fell or loss > 0
            rises, last = rises + (loss > last), loss
            if loss > best_loss:
                best, best_loss, best_g = point, loss, g
            if k + 1 in checkpoints(steps):
                stuck = not halved and best_loss <= mark
                halved = rises <= 0.75 * checkpoints(steps)[k + 1] or stuck
                if halved:
                    eta, point, g = eta / 2, best, best_g
                mark, rises = best_loss, 0
        if not fell:
            np.testing.assert_allclose(got[i], best, atol=2e-4)
            compared += 1
    assert compared >= 20


@settings(max_examples=10, deadline=None)
@given(
    norm=st.sampled_from(["l2", "linf"]),
    eps=st.floats(1e-6, 3.0),
    loss=st.sampled_from(["margin", "ce", "dlr"]),
)
def test_result_is_in_the_ball_and_in_the_box(norm, eps, loss):
    x, y = held_out(16)
    for attack in (
        APGD(norm, eps, steps=5, loss=loss),
        TargetedAPGD(norm, eps, steps=3, targets=2),
        GaussianNoise(norm, eps, draws=2),
        UniformNoise(norm, eps, draws=2),
        Transfer(PGD(norm, eps, steps=2), made(centroids)),
    ):
        x_adv = attack(made(ridge), x, y)
        assert x_adv.dtype == np.float32 and x_adv.min() >= 0.0 and x_adv.max() <= 1.0
        assert np.all(distances(x_adv, x, norm) <= eps)


@pytest.mark.parametrize(
    "attack",
    [
        APGD("l2", 0.5, steps=25, loss="dlr", seed=2),
        TargetedAPGD("l2", 0.5, steps=15, targets=2),
        PGD("l2", 0.5, steps=15, loss="pairwise", restarts=2),
        UniformNoise("l2", 1.2, draws=20),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_outcome_depends_on_the_image_and_its_index_alone(attack):
    model, (x, y) = made(centroids), held_out(120)
    whole = attack(model, x, y)
    fell = predict_logits(model, whole).argmax(axis=1) != y
    assert 20 < fell.sum() < 110
    small = type(attack)(**{**attack.get_config(), "batch_size": 32})
    order = np.random.default_rng(0).permutation(120)
    shuffled = np.empty_like(whole)
    shuffled[order] = small(model, x[order], y[order], indices=order)
    for other in (small(model, x, y), shuffled):
        # Another batch shape sums in another order, hence not bit for bit.
        np.testing.assert_array_equal(predict_logits(model, other).argmax(axis=1) != y, fell)
        assert np.median(np.abs(other - whole).max(axis=1)) < 1e-4
    seeded = type(attack)(**{**attack.get_config(), "seed": 9})(model, x, y)
    assert np.median(np.abs(seeded - whole).max(axis=1)) > 1e-4


def test_scale_and_offset_of_the_logits_do_not_matter():
    x, y = held_out()
    for scale in (1e-8, 1e4):
        model = ridge()
        model.set_weights([scale * w for w in model.get_weights()])
        left = survivors(model, TargetedAPGD("l2", 0.3, steps=30, targets=4, batch_size=200), x, y)
        assert 129 <= left <= 130


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes(classes):
    """A linear model: the exact answer is that of the nearest hyperplane."""
    rng = np.random.default_rng(classes)
    model = keras.Sequential([keras.Input((5, 1)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(classes))
    x = rng.uniform(0.45, 0.55, size=(40, 5, 1)).astype("float32")
    w = rng.standard_normal((5, classes)).astype("float32")
    b = -0.5 * w.sum(axis=0)  # all classes are near at the centre of the box
    model.set_weights([w, b])
    z = x.reshape(40, 5).astype(np.float64) @ w + b
    y = z.argmax(axis=1)
    lengths = [[np.linalg.norm(w[:, i] - w[:, j]) + 1e-30 for j in range(classes)] for i in y]
    gap = (z[np.arange(40), y][:, None] - z) / np.array(lengths)
    gap[np.arange(40), y] = np.inf
    eps = float(np.median(gap.min(axis=1)))
    assert eps < 0.4  # the box does not cut
    exact = int((gap.min(axis=1) > eps).sum())
    assert abs(survivors(model, TargetedAPGD(eps=eps, steps=30), x, y) - exact) <= 1
    assert abs(survivors(model, APGD(eps=eps, steps=30, restarts=3), x, y) - exact) <= 1
    if classes == 2:
        with pytest.raises(ValueError, match="`loss=.dlr.` needs at least 3 classes"):
            APGD(loss="dlr")(model, x, y)


def test_targeted_dlr_by_hand():
    z = np.array([[3.0, 1.0, 0.0, -1.0], [0.0, 5.0, 4.0, 2.0]], dtype="float32")
    y = np.array([0, 2])
    np.testing.assert_array_equal(runner_up(z, y, 0), [1, 1])
    np.testing.assert_array_equal(runner_up(z, y, 2), [3, 0])
    np.testing.assert_array_equal(runner_up(z, y, 3), [1, 1])  # the turn of the first again
    rival = runner_up(z, y, 1)
    loss = attack_loss("pairwise_dlr", *(ops.convert_to_tensor(v) for v in (z, y, rival)), False)
    np.testing.assert_allclose(backend.to_numpy(loss), [-3 / 3.5, -2 / (5 - 1)], rtol=1e-6)


def test_config_and_copies():
    attack = TargetedAPGD("linf", 0.1, seed=5, steps=7, restarts=2, targets=4, rho=0.6, eot=2)
    assert repr(TargetedAPGD(**attack.get_config())) == repr(attack)
    assert attack.at(0.2).eps == 0.2 and attack.at(0.2).targets == 4
    assert attack.runs(10) == 8 and attack.runs(3) == 4
    assert repr(APGD(**APGD(loss="dlr").get_config())) == repr(APGD(loss="dlr"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: APGD(loss="pairwise"), "`loss` must be one of"),
        (lambda: APGD(rho=1.0), r"`rho` must be in \(0, 1\). Received: rho=1.0"),
        (lambda: APGD(steps=0), "`steps` must be a positive integer"),
        (lambda: APGD(eot=0), "`eot` must be a positive integer"),
        (lambda: PGD(eot=0), "`eot` must be a positive integer"),
        (lambda: TargetedAPGD(targets=0), "`targets` must be a positive integer"),
        (lambda: GaussianNoise(draws=0), "`draws` must be a positive integer"),
        (lambda: Transfer("pgd", None), "`attack` must be an untargeted Attack"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
