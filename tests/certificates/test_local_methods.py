"""`certify_local` by method: radii, answers at one radius, decisions, and every refusal."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from local_bound_models import bent, images, perceptron, randomize, residual

from dynzoo.attacks import PGD
from dynzoo.certificates import certify, certify_local, forward_float64
from dynzoo.certificates.local import backward as backward_module
from dynzoo.certificates.local.certificate import METHODS
from dynzoo.certificates.local.curves import CURVES, curve_of, curve_of_operation
from dynzoo.certificates.local.lines import MODES, Range, lines
from dynzoo.certificates.rules.activations import KERAS_ACTIVATIONS
from dynzoo.zoo.measurement import measure


def distances(points, x, norm):
    order = 2 if norm == "l2" else np.inf
    moved = (points.astype("float64") - x).reshape(len(x), -1)
    return np.linalg.norm(moved, order, axis=1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_radii_by_method_grow_and_no_attack_breaks_them(norm):
    model, x = perceptron((16, 16), seed=2), images(6, (8,), seed=3)
    found = {}
    for method in ("crown", "alpha-crown"):
        local = certify_local(model, method=method, norm=norm)
        labels, found[method] = local.radii(x)
        for share in (0.9, 1.5):
            eps = float(share * np.median(found[method]))
            same, certified = local.certified(x, eps)
            np.testing.assert_array_equal(same, labels)
            assert np.all(certified[found[method] > eps * 1.01])
            points = PGD(norm=norm, eps=eps, steps=20, loss="margin")(model, x, labels)
            assert np.all(forward_float64(model, points).argmax(1)[certified] == labels[certified])
    everywhere = certify(model).radii(x)[1] / (1 if norm == "l2" else np.sqrt(8))
    assert np.all(found["crown"] >= everywhere * (1 - 1e-9))
    assert np.median(found["crown"] / everywhere) > 1.5
    assert np.all(found["alpha-crown"] >= found["crown"] * 0.99)
    if norm == "l2":
        movement = certify_local(model).radii(x)[1]
        assert np.mean(found["alpha-crown"]) > np.mean(movement)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_decisions_are_proved_or_shown_by_a_point(norm):
    model, x = randomize(perceptron((6, 6)), 5), images(5, (8,), seed=6)
    alpha = certify_local(model, method="alpha-crown", norm=norm)
    local = certify_local(model, method="complete", norm=norm, time_limit=5)
    eps = float(1.6 * np.median(alpha.radii(x)[1]))
    found = local.decide(x, eps)
    assert set(found.outcomes) >= {"certified", "falsified"}
    assert sum(found.shares.values()) == pytest.approx(1.0)
    broken = found.outcomes == "falsified"
    assert np.all(distances(found.points, x, norm)[broken] <= eps)
    answers = model.predict(found.points, verbose=0).argmax(axis=1)
    np.testing.assert_array_equal(answers != found.labels, broken)
    np.testing.assert_array_equal(found.points[~broken], x[~broken])
    assert np.all((found.outcomes == "certified")[alpha.certified(x, eps)[1]])
    np.testing.assert_array_equal(local.certified(x, eps)[1], found.outcomes == "certified")
    assert found.to_dict()["shares"] == found.shares
    nothing = certify_local(model, method="complete", norm=norm, time_limit=1e-9).decide(x, eps)
    assert np.all((found.outcomes == "certified")[nothing.outcomes == "certified"])


def test_other_layers_and_curves_get_radii():
    with pytest.raises(ValueError, match="has no local bound"):
        certify_local(bent())
    for model in (bent(), residual()):
        x = images(2, model.input_shape[1:])
        labels, radii = certify_local(model, method="crown", iterations=5).radii(x)
        everywhere = certify(model).radii(x)[1]
        assert np.all(radii >= everywhere) and np.median(radii / everywhere) > 2
        points = PGD(eps=float(radii.min()), steps=20)(model, x, labels)
        np.testing.assert_array_equal(forward_float64(model, points).argmax(1), labels)


def test_images_that_are_done_are_told():
    model, x = perceptron((6, 6)), images(5, (8,))
    y = np.arange(5) % 4
    for method in METHODS:
        local = certify_local(model, method=method, iterations=3)
        for asked in (
            lambda local=local: local.radii(x),
            lambda local=local: local.certified(x, 0.1),
        ):
            told = []
            local.tick = told.append
            asked()
            assert sum(told) == len(x) and min(told) > 0
        told = []
        measure(model, x, y, eps=(0.05, 0.1), attacks="none", local=method, tick=told.append)
        # Wrong answers are not decided.
        least = 1 if method == "complete" else len(x)
        assert least <= sum(told) <= len(x)


# --- lines ---------------------------------------------------------------------------------


def all_curves():
    """By name; the two of GELU are other functions."""
    names = {getattr(function, "__name__", ""): function for function in KERAS_ACTIVATIONS}
    found = {name: curve_of(function) for name, function in names.items() if name in CURVES}
    gelu = {"gelu": curve_of(keras.activations.gelu), "gelu_tanh": curve_of(keras.ops.gelu)}
    return {**found, **gelu}


def test_slopes_kinks_and_curvatures_of_the_table_are_right():
    curves = all_curves()
    assert {n for n in CURVES if n != "abs"} <= set(curves)
    for name, curve in curves.items():
        z = np.linspace(-9.0, 9.0, 180_001)
        slope = np.diff(curve.forward(z)) / np.diff(z)
        assert slope.min() >= curve.low - 1e-9, name
        assert slope.max() <= curve.high + 1e-9, name
        apart = np.min([np.abs(z[1:-1] - k) for k in curve.kinks] or [np.inf + 0 * z[1:-1]], axis=0)
        bend = np.abs(np.diff(slope) / 1e-4)[apart > 2e-4]
        assert bend.max() <= curve.curvature * (1 + 1e-3) + 1e-6, name
        assert curve.curvature <= 1.3 * bend.max() + 1e-6, name


def test_lines_of_curves_hold_on_their_intervals():
    rng = np.random.default_rng(0)
    z, down, up = 3 * rng.normal(size=200), *(3 * rng.uniform(size=(2, 200)) ** 2)
    given = Range(z, down, up, np.full(200, 1e-12))
    moved = -down + (down + up) * np.linspace(0, 1, 301)[:, None]
    for name, curve in all_curves().items():
        rise = curve.forward(z + moved) - curve.forward(z)
        for mode in MODES:
            low, low_gap, high, high_gap = lines(curve, given, mode)
            assert np.all(rise >= low * moved - low_gap), (name, mode)
            assert np.all(rise <= high * moved + high_gap), (name, mode)
        assert np.median(high_gap / (down + up)) < 0.5


def test_operations_with_other_settings_have_their_own_curves():
    x = keras.KerasTensor((2, 3))
    z = np.linspace(-3, 3, 7)
    for function in (lambda t: keras.ops.elu(t, alpha=0.5), keras.ops.gelu, keras.ops.tanh):
        operation = function(x)._keras_history.operation
        np.testing.assert_allclose(
            curve_of_operation(operation).forward(z), np.asarray(operation(z)), atol=1e-6
        )
    shifted = keras.ops.soft_shrink(x, threshold=1.0)._keras_history.operation
    assert curve_of_operation(shifted) is None


# --- limits and refusals -------------------------------------------------------------------


def test_what_is_not_bounded_unit_by_unit_is_said(monkeypatch):
    model, x = perceptron((16, 16)), images(3, (8,))
    with pytest.warns(UserWarning, match="more than exact_units=4 units"):
        few = certify_local(model, method="crown", exact_units=4).radii(x)[1]
    assert np.all(few <= certify_local(model, method="crown").radii(x)[1] * 1.001)
    monkeypatch.setattr(backward_module, "_MOST", 10)
    with pytest.warns(UserWarning, match="would not fit into memory"):
        radii = certify_local(model, method="crown").radii(x)[1]
    assert np.all(radii >= certify(model).radii(x)[1])


def test_a_short_time_leaves_the_global_radii():
    model, x = perceptron((16, 16)), images(3, (8,))
    radii = certify_local(model, method="crown", time_limit=1e-9).radii(x)[1]
    assert np.all(radii >= certify(model).radii(x)[1])


def test_wrong_arguments_are_named():
    model = perceptron()
    assert sorted(METHODS) == ["alpha-crown", "complete", "crown", "movement"]
    with pytest.raises(ValueError, match="`method` must be one of"):
        certify_local(model, method="ibp")
    with pytest.raises(ValueError, match="`norm` must be 'l2' with method='movement'"):
        certify_local(model, norm="linf")
    with pytest.raises(ValueError, match="`time_limit` must be None"):
        certify_local(model, time_limit=3)
    with pytest.raises(ValueError, match="`time_limit`"):
        certify_local(model, method="crown", time_limit=0)
    with pytest.raises(ValueError, match="`eps` must be in"):
        certify_local(model, method="crown").certified(images(2, (8,)), 0)
    with pytest.raises(ValueError, match="`slopes` needs method='movement'"):
        certify_local(model, method="crown").slopes(images(2, (8,)), 0.1)
    other = keras.Sequential(
        [keras.Input((8,)), kl.Dense(4, "log_softmax", name="rows"), kl.Dense(3)]
    )
    with pytest.raises(ValueError, match="Layer 'rows' .* not in the table of curves"):
        certify_local(other, method="crown")
