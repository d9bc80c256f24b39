"""FGSM and PGD: strong enough against closed forms, never outside the ball, never stale."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from robustness_fixtures import centroids, held_out, ridge

from dynzoo import backend
from dynzoo.attacks import DDN, FGSM, PGD, Attack
from dynzoo.attacks.geometry import distances, enclose, random_points
from dynzoo.attacks.losses import attack_loss
from dynzoo.inference.passes import predict_logits


def survivors(model, attack, x, y):
    return int((predict_logits(model, attack(model, x, y)).argmax(axis=1) == y).sum())


@pytest.fixture(scope="module")
def linear():
    return ridge()


@pytest.fixture(scope="module")
def nearest():
    return centroids()


# Exact counts of 200 by closed form (box included); an attack that reports less is wrong.
@pytest.mark.parametrize(
    ("norm", "eps", "exact"),
    [
        ("linf", 0.02, 182),
        ("linf", 0.05, 144),
        ("linf", 0.1, 56),
        ("l2", 0.1, 182),
        ("l2", 0.3, 129),
    ],
)
def test_pgd_against_the_exact_robustness_of_a_linear_model(linear, norm, eps, exact):
    x, y = held_out()
    attack = PGD(norm=norm, eps=eps, steps=60, restarts=2, random_start=False)
    assert exact <= survivors(linear, attack, x, y) <= exact + 3


@pytest.mark.parametrize(("eps", "exact"), [(0.1, 186), (0.3, 154), (0.5, 123)])
@pytest.mark.parametrize("loss", ["margin", "dlr", "pairwise"])
def test_margin_losses_against_the_exact_robustness_of_a_1_lipschitz_model(
    nearest, eps, exact, loss
):
    x, y = held_out()
    attack = PGD(eps=eps, steps=60, loss=loss, restarts=3, random_start=False)
    assert exact <= survivors(nearest, attack, x, y) <= exact + 4


def test_cross_entropy_alone_overestimates_a_1_lipschitz_model(nearest):
    # The reason for the default loss: exact robustness is 123 of 200.
    x, y = held_out()
    assert survivors(nearest, PGD(eps=0.5, loss="ce"), x, y) >= 138
    assert survivors(nearest, PGD(eps=0.5), x, y) <= 128


def test_clean_accuracy_of_the_fixtures(linear, nearest):
    x, y = held_out(797)
    assert (predict_logits(linear, x).argmax(axis=1) == y).sum() == 713
    assert (predict_logits(nearest, x).argmax(axis=1) == y).mean() == pytest.approx(
        0.8908, abs=1e-4
    )


def test_fgsm_is_the_signed_step_and_pgd_is_as_strong(linear):
    x, y = held_out()
    w, b = (np.asarray(v, dtype=np.float64) for v in linear.get_weights())
    z = x @ w + b
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1.0
    expected = np.clip(x + 0.05 * np.sign(p @ w.T), 0, 1)
    x_adv = FGSM(norm="linf", eps=0.05)(linear, x, y)
    right = z.argmax(axis=1) == y
    # The sign of a component that nearly cancels is anybody's guess in float32.
    assert (np.abs(x_adv[right] - expected[right]) > 1e-6).mean() < 1e-3
    np.testing.assert_array_equal(x_adv[~right], x[~right])
    fgsm = survivors(linear, FGSM(norm="linf", eps=0.05), x, y)
    assert survivors(linear, PGD(norm="linf", eps=0.05), x, y) <= fgsm == 146


def test_l2_step_of_fgsm_has_length_eps(linear):
    x, y = np.full((20, 64), 0.5, "float32"), np.zeros(20, "int64")
    y[:] = predict_logits(linear, x).argmax(axis=1)
    np.testing.assert_allclose(distances(FGSM(eps=0.1)(linear, x, y), x, "l2"), 0.1, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    norm=st.sampled_from(["l2", "linf"]),
    eps=st.floats(1e-7, 3.0),
    loss=st.sampled_from(["margin", "ce", "dlr"]),
    random_start=st.booleans(),
    targeted=st.booleans(),
    double=st.booleans(),
)
def test_result_is_in_the_ball_and_in_the_box(norm, eps, loss, random_start, targeted, double):
    model = ridge_once()
    x, y = held_out(16)
    if double:  # the ball is around the caller's float64 image, not around its rounding
        x = np.clip(x + np.random.default_rng(0).uniform(0, 1e-3, x.shape), 0, 1)
    target = (y + 1) % 10 if targeted else y
    attack = PGD(norm, eps, steps=3, loss=loss, random_start=random_start, targeted=targeted)
    x_adv = attack(model, x, target)
    assert x_adv.dtype == np.float32 and x_adv.shape == x.shape
    assert x_adv.min() >= 0.0 and x_adv.max() <= 1.0
    delta = np.abs(x_adv.astype(np.float64) - x.astype(np.float64))
    gone = delta.max(axis=1) if norm == "linf" else np.sqrt((delta**2).sum(axis=1))
    # An image that is left alone is its own rounding to float32, nothing nearer exists.
    alone = (x_adv == x.astype(np.float32)).all(axis=1)
    assert np.all(alone | (gone <= eps))


_ONCE = []


def ridge_once():
    if not _ONCE:
        _ONCE.append(ridge())
    return _ONCE[0]


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["l2", "linf"]),
    eps=st.floats(1e-9, 2.0),
    scale=st.floats(1e-9, 10.0),
    seed=st.integers(0, 1000),
)
def test_enclose_draws_any_point_into_the_ball(norm, eps, scale, seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(5, 4, 4, 3)).astype("float32")
    far = (x + scale * rng.standard_normal(x.shape)).astype("float32")
    far[0, 0, 0, 0] = np.nan
    point = enclose(far, x, eps, norm)
    assert point.dtype == np.float32 and point.min() >= 0 and point.max() <= 1
    assert np.all(distances(point, x, norm) <= eps)
    # Not by giving up: a ball that reaches well beyond the rounding is used to the rim.
    if eps > 1e-3 and scale > 1.0 and norm == "linf" and eps < 0.05:
        assert distances(point, x, norm).min() >= 0.99 * eps


def test_random_points_depend_on_seed_index_and_restart_only():
    x = np.full((4, 6), 0.5, "float32")
    a = random_points(x, 0.1, "l2", 0, np.arange(4), 0)
    b = random_points(x[2:], 0.1, "l2", 0, np.array([2, 3]), 0)
    np.testing.assert_array_equal(a[2:], b)
    for other in [(1, np.arange(4), 0), (0, np.arange(4) + 9, 0), (0, np.arange(4), 1)]:
        assert np.abs(a - random_points(x, 0.1, "l2", *other)).min() > 0


def test_same_seed_same_result_whatever_the_batch_size(nearest):
    x, y = held_out(50)
    first = PGD(eps=0.3, seed=3, steps=10)(nearest, x, y)
    np.testing.assert_array_equal(first, PGD(eps=0.3, seed=3, steps=10)(nearest, x, y))
    small = PGD(eps=0.3, seed=3, steps=10, batch_size=7)(nearest, x, y)
    # Another batch shape sums in another order, hence not bit for bit.
    np.testing.assert_allclose(first, small, atol=1e-4)
    assert np.abs(first - PGD(eps=0.3, seed=4, steps=10)(nearest, x, y)).max() > 1e-3


def test_indices_key_the_random_starts(nearest):
    x, y = held_out(30)
    attack = PGD(eps=0.3, steps=5)
    whole = attack(nearest, x, y)
    part = attack(nearest, x[10:], y[10:], indices=np.arange(10, 30))
    np.testing.assert_allclose(whole[10:], part, atol=1e-4)


@pytest.mark.parametrize(
    "indices", [np.arange(9), np.arange(10.0), -np.arange(10), np.zeros((10, 1), int), "0123456789"]
)
@pytest.mark.parametrize("ask", [FGSM(eps=0.1), DDN(steps=2), DDN(steps=2).minimum_norm])
def test_wrong_indices(nearest, ask, indices):
    with pytest.raises(ValueError, match="`indices` must be a non-negative integer for each"):
        ask(nearest, *held_out(10), indices=indices)


def test_wrong_images_are_returned_unchanged(nearest):
    x, y = held_out()
    wrong = predict_logits(nearest, x).argmax(axis=1) != y
    assert wrong.sum() == 13
    x_adv = PGD(eps=0.3, steps=5)(nearest, x, y)
    np.testing.assert_array_equal(x_adv[wrong], x[wrong])
    assert (np.abs(x_adv - x).max(axis=1) > 0)[~wrong].all()


def test_restarts_never_make_an_attack_weaker(nearest):
    x, y = held_out()
    once = predict_logits(nearest, PGD(eps=0.5, steps=10)(nearest, x, y)).argmax(axis=1) != y
    more = PGD(eps=0.5, steps=10, restarts=4)(nearest, x, y)
    assert np.all(predict_logits(nearest, more).argmax(axis=1)[once] != y[once])


def test_attack_sees_the_weights_of_now():
    """An attack that was compiled before training must attack the model after it."""
    x, y = held_out(100)
    model, attack = ridge(), PGD(norm="linf", eps=0.05, steps=10)
    assert survivors(model, attack, x, y) < 85
    before = attack(model, x, y)
    kernel, bias = model.get_weights()
    model.set_weights([kernel[:, ::-1], bias[::-1]])
    flipped = attack(model, x, 9 - y)  # the same problem with the classes in reverse order
    np.testing.assert_allclose(before, flipped, atol=1e-5)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=2, verbose=0)
    x_adv = attack(model, x, y)
    fresh = ridge()
    fresh.set_weights(model.get_weights())
    np.testing.assert_allclose(x_adv, attack(fresh, x, y), atol=1e-5)
    assert np.abs(x_adv - before).max() > 1e-3


def test_weights_accumulate_no_gradient_and_stay_as_they_are(nearest):
    model = ridge()
    before = model.get_weights()
    x, y = held_out(20)
    PGD(eps=0.3, steps=3)(model, x, y)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    if backend.name() == "torch":
        assert all(v.value.grad is None for v in model.variables)


def test_number_of_traces_does_not_grow_with_batches_radii_or_calls():
    traces = []

    class Probe(keras.layers.Layer):
        def call(self, x):
            traces.append(1)
            return x

    model = keras.Sequential([keras.Input((64,)), Probe(), keras.layers.Dense(10)])
    x, _ = held_out(40)
    y = predict_logits(model, x, 16).argmax(axis=1)

    def count(eps, x, y):
        traces.clear()
        PGD(eps=eps, steps=4, batch_size=16)(model, x, y)
        return len(traces)

    count(0.1, x, y)
    if not backend.compiles():
        pytest.skip("PyTorch runs eagerly: there is nothing to trace")
    assert count(0.1, x, y) == count(0.2, x, y) == count(0.3, x[:16], y[:16]) == 0


def test_inference_mode_is_attacked():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dropout(0.5), keras.layers.BatchNormalization(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    x, _ = held_out(30)
    y = predict_logits(model, x).argmax(axis=1)
    before = [v.copy() for v in model.get_weights()]
    attack = PGD(eps=0.2, steps=5)
    np.testing.assert_array_equal(attack(model, x, y), attack(model, x, y))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("loss", ["margin", "ce", "dlr"])
def test_targeted_attack_reaches_the_target(linear, loss):
    x, y = held_out(100)
    target = (y + 3) % 10
    x_adv = PGD(eps=2.0, steps=30, targeted=True, loss=loss)(linear, x, target)
    assert (predict_logits(linear, x_adv).argmax(axis=1) == target).mean() >= 0.98
    # An untargeted goal in so small a ball would be reached more often than the target.
    near = PGD(eps=0.2, steps=30, targeted=True, loss=loss)(linear, x, target)
    assert (predict_logits(linear, near).argmax(axis=1) == target).mean() < 0.05


def test_losses_by_hand():
    z = ops.convert_to_tensor(np.array([[3.0, 1.0, 0.0, -1.0]], dtype="float32"))
    y, rival = ops.convert_to_tensor([0]), ops.convert_to_tensor([2])

    def loss(name, targeted=False):
        return float(backend.to_numpy(attack_loss(name, z, y, rival, targeted))[0])

    assert loss("margin") == -2.0
    assert loss("dlr") == pytest.approx(-2 / 3)
    assert loss("dlr", targeted=True) == pytest.approx(2 / 3.5)
    assert loss("pairwise") == -3.0
    assert loss("ce") == pytest.approx(np.log(np.exp([3.0, 1, 0, -1]).sum()) - 3)


def test_scale_of_the_logits_does_not_hide_the_margin_gradient():
    x, y = held_out()
    for scale in (1e-12, 1e4):
        model = ridge()
        model.set_weights([scale * w for w in model.get_weights()])
        assert survivors(model, PGD(norm="l2", eps=0.3), x, y) <= 135


def test_two_classes():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    x = np.random.default_rng(0).uniform(size=(10, 4)).astype("float32")
    y = predict_logits(model, x).argmax(axis=1)
    for loss in ("margin", "ce", "pairwise"):
        assert survivors(model, PGD(eps=3.0, loss=loss, restarts=2, random_start=False), x, y) <= 5
    with pytest.raises(ValueError, match="needs at least 3 classes"):
        PGD(loss="dlr")(model, x, y)


def test_images_of_any_rank():
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    x, _ = held_out(10)
    x = x.reshape(-1, 8, 8, 1)
    y = predict_logits(model, x).argmax(axis=1)
    for norm in ("l2", "linf"):
        assert PGD(norm, 0.1, steps=2)(model, x, y).shape == x.shape


def test_config_and_copies():
    attack = PGD("linf", 0.1, seed=5, steps=7, step_size=0.02, restarts=2, loss="dlr")
    assert repr(PGD(**attack.get_config())) == repr(attack)
    assert attack.at(0.2).step_size == pytest.approx(0.04)
    assert attack.at(0.2).eps == 0.2 and attack.eps == 0.1
    assert FGSM("l2", 0.1).at(0.3).step_size == pytest.approx(0.3)
    assert isinstance(attack, Attack)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l1"}, "`norm` must be one of"),
        ({"eps": 0}, "`eps` must be in"),
        ({"eps": -1.0}, "`eps` must be"),
        ({"eps": float("nan")}, "`eps` must be"),
        ({"seed": -1}, "`seed` must be a non-negative integer"),
        ({"steps": 0}, "`steps` must be a positive integer"),
        ({"steps": 2.5}, "`steps` must be"),
        ({"restarts": 0}, "`restarts` must be"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"step_size": 0.0}, "`step_size` must be"),
        ({"loss": "mse"}, "`loss` must be one of"),
        ({"loss": "pairwise", "targeted": True}, "a targeted attack needs"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PGD(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x * 255, y), r"must lie in \[0, 1\]"),
        (lambda x, y: (x - 0.1, y), r"must lie in \[0, 1\]"),
        (lambda x, y: (x * np.nan, y), "must be finite"),
        (lambda x, y: (x, y[:-1]), "must have the same length"),
        (lambda x, y: (x[:0], y[:0]), "at least one image"),
        (lambda x, y: (x, y + 10), "labels from 0 to 9"),
        (lambda x, y: (x, y - 5), "labels that are not negative"),
        (lambda x, y: (x, y.astype("float32")), "integer labels"),
        (lambda x, y: (x, np.stack([y, y], 1)), "integer labels"),
    ],
)
def test_wrong_inputs(linear, change, message):
    x, y = held_out(8)
    with pytest.raises(ValueError, match=message):
        PGD(steps=1)(linear, *change(x, y))


def test_model_without_logits():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="must return logits"):
        PGD(steps=1)(model, np.zeros((2, 4), "float32"), np.zeros(2, "int64"))
