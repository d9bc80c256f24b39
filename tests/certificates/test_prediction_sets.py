"""Prediction sets hold the right label as often as they promise, under attacks too."""

import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from certificate_models import classifier, images, linear
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl
from robustness_fixtures import digits, ridge

import dynzoo
from dynzoo.attacks import PGD
from dynzoo.certificates import (
    StaleCertificateError,
    certify,
    certify_local,
    forward_float64,
    prediction_sets,
    smooth,
)
from dynzoo.certificates.prediction_sets import TooFewImagesWarning, needed_images

# the classifier was fitted to the first thousand; writer after writer is no exchangeable order
ORDER = 1000 + np.random.default_rng(1).permutation(797)
X, Y = (part[ORDER] for part in digits())
CLASSES = 3


@pytest.fixture(scope="module")
def certificate():
    return certify(ridge())


def truth(certificate, model, x):
    """The score in real numbers, by its formula."""
    z, found = forward_float64(model, x), []
    for y in range(z.shape[1]):
        others = [j for j in range(z.shape[1]) if j != y and certificate.pair_distances[y, j] > 0]
        speeds = certificate.body_lipschitz * certificate.pair_distances[y, others]
        found.append(np.max((z[:, others] - z[:, [y]]) / speeds, axis=1))
    return np.stack(found, axis=1)


# The score


@settings(max_examples=6)
@given(seed=st.integers(0, 10**6))
def test_bounds_hold_the_real_score_which_moves_no_faster_than_the_image(seed):
    model = classifier(
        kl.Conv2D(3, 3, activation="relu"), kl.Flatten(), kl.Dense(CLASSES), seed=seed
    )
    found, x = certify(model), images(8, seed=seed)
    low, high = found.distances_behind(x, batch_size=3)
    exact = truth(found, model, x)
    assert np.all(low <= exact) and np.all(exact <= high) and np.all(high - low < 1e-3)
    moved = x + np.random.default_rng(seed).normal(size=x.shape).astype("float32")
    distance = np.linalg.norm((moved - x).reshape(8, -1).astype("float64"), axis=1)
    assert np.all(np.abs(truth(found, model, moved) - exact) <= distance[:, None])


def test_score_of_the_answer_is_its_radius_with_the_sign_turned(certificate):
    labels, radii = certificate.radii(X[:50])
    low, high = (part[np.arange(50), labels] for part in certificate.distances_behind(X[:50]))
    np.testing.assert_allclose(-low, radii, atol=1e-4)
    np.testing.assert_allclose(-high, radii, atol=1e-4)
    worst = certificate.distances_behind(X[:50], rounding="worst-case")
    assert np.all(worst[0] <= low.min()) or np.all(worst[0][np.arange(50), labels] <= low)
    assert np.all(worst[1][np.arange(50), labels] >= high)


def test_images_and_logits_that_are_not_finite_are_in_every_set():
    x = images(4, (3,))
    x[0, 0], x[1, 2] = np.nan, np.inf
    low, high = certify(linear(np.eye(3), np.zeros(3))).distances_behind(x)
    assert np.all(low[:2] == -np.inf) and np.all(high[:2] == np.inf)
    assert np.isfinite(low[2:]).all() and np.isfinite(high[2:]).all()
    big = np.full((1, 3), 1e37, "float32")
    low, high = certify(linear(1e5 * np.eye(3), np.zeros(3))).distances_behind(big)
    assert np.all(low == -np.inf) and np.all(high == np.inf)


def test_a_rounded_image_is_as_far_as_it_was_moved():
    found = certify(linear(np.eye(3), [3.0, 0.0, 0.0]))
    x = images(4, (3,)).astype("float64") + 1e-9
    moved = np.linalg.norm(x - x.astype("float32"), axis=1)[:, None]
    wide, narrow = found.distances_behind(x), found.distances_behind(x.astype("float32"))
    np.testing.assert_allclose(narrow[0] - wide[0], np.broadcast_to(moved, (4, 3)), atol=1e-15)
    np.testing.assert_allclose(wide[1] - narrow[1], np.broadcast_to(moved, (4, 3)), atol=1e-15)


def test_classes_that_never_change_places_take_no_part():
    kernel = np.array([[1.0, 1.0, -1.0], [0.5, 0.5, 2.0]])
    model = linear(kernel, [1.0, 0.0, 0.0])
    found, x = certify(model), images(5, (2,))
    low, high = found.distances_behind(x)
    np.testing.assert_allclose(low, truth(found, model, x), atol=1e-5)
    constant = certify(linear(np.zeros((2, 3)), [1.0, 0.0, 0.0]))
    assert np.all(np.concatenate(constant.distances_behind(x)) == 0.0)
    sets = prediction_sets(constant, images(20, (2,)), np.zeros(20, int))
    assert sets(x).all()


# Coverage


def test_coverage_on_many_splits(certificate):
    """Its mean over splits is at least 1 - alpha, and no more than a share of one image above."""
    rng, count, shares = np.random.default_rng(0), 99, []
    low, high = certificate.distances_behind(X)
    own = high[np.arange(len(Y)), Y]
    for _ in range(400):
        order = rng.permutation(len(Y))
        q = np.sort(own[order[:count]])[89]  # ceil(100 * 0.9)
        shares.append(np.mean(low[order[count:], Y[order[count:]]] <= q))
    # The mean is that of exchangeable images exactly; of 400 draws it is off by 0.0015.
    assert 0.9 - 0.006 < np.mean(shares) < 0.91 + 0.006
    assert np.std(shares) < 2 * np.sqrt(0.09 / count)
    sets = prediction_sets(certificate, X[:count], Y[:count], alpha=0.1, eps=0.0)
    assert sets.threshold == np.sort(own[:count])[89] and sets.images == count
    assert sets.coverage(X[count:], Y[count:]) == np.mean(
        low[np.arange(count, len(Y)), Y[count:]] <= sets.threshold
    )


@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_coverage_under_attack(certificate, eps):
    model = certificate._model
    sets = prediction_sets(certificate, X[:400], Y[:400], alpha=0.1, eps=eps)
    x, y = X[400:600], Y[400:600]
    plain = prediction_sets(certificate, X[:400], Y[:400], alpha=0.1, eps=0.0)
    proved = sets.certified_coverage(x, y)
    attacked = PGD(norm="l2", eps=eps, steps=20, loss="margin")(model, x, y)
    # Along the direction that raises the score of the right label fastest, the score of a linear
    # model rises by all of eps. It leaves [0, 1], which is allowed.
    kernel = np.asarray(model.get_weights()[0], np.float64)
    z, own = forward_float64(model, x), np.eye(10, dtype=bool)[y]
    gaps = z - z[np.arange(200), y][:, None]
    rival = np.argmax(np.where(own, -np.inf, gaps / (certificate.pair_distances[y] + own)), axis=1)
    step = (kernel[:, rival] - kernel[:, y]).T
    steepest = (x + eps * step / np.linalg.norm(step, axis=1)[:, None]).astype("float32")
    for points in (x, attacked, steepest):
        assert 0.87 < proved <= sets.coverage(points, y)  # 0.9 but for the scatter of the draw
    # Without the allowance for attacks the promise is broken, so the attack is a real one.
    assert plain.coverage(steepest, y) < proved
    assert np.all(sets.sizes(x) >= plain.sizes(x)) and sets.sizes(x).mean() < 10
    np.testing.assert_array_equal(plain(x, eps=eps), sets(x))


def test_no_image_whose_label_is_proved_inside_loses_it(certificate):
    """Image by image, not on average: what the sets promise of one calibration."""
    sets = prediction_sets(certificate, X[:99], Y[:99], alpha=0.2, eps=0.3)
    _, high = certificate.distances_behind(X[99:300])
    inside = high[np.arange(201), Y[99:300]] <= sets.threshold
    rng = np.random.default_rng(0)
    for _ in range(5):
        noise = rng.normal(size=(201, 64))
        noise *= 0.3 / np.linalg.norm(noise, axis=1)[:, None]
        held = sets((X[99:300] + noise).astype("float64"))[np.arange(201), Y[99:300]]
        assert np.all(held[inside])


# Arguments


@pytest.mark.parametrize(
    ("alpha", "n"), [(0.1, 9), (0.05, 19), (0.3, 3), (0.5, 1), (0.9, 1), (1 / 3, 3)]
)
def test_how_many_images_it_takes(certificate, alpha, n):
    assert needed_images(alpha) == n
    sets = prediction_sets(certificate, X[:n], Y[:n], alpha)
    assert np.isfinite(sets.threshold)
    with pytest.warns(TooFewImagesWarning, match=f"at least {n} .* Received: {n - 1}. Every set"):
        sets = prediction_sets(certificate, X[: n - 1], Y[: n - 1], alpha)
    assert sets.threshold == np.inf and sets(X[:3]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "`alpha` must be in"),
        ({"alpha": 1.0}, "`alpha` must be in"),
        ({"alpha": float("nan")}, "`alpha` must be in"),
        ({"eps": -0.1}, "`eps` must be in"),
        ({"eps": float("inf")}, "`eps` must be in"),
        ({"eps": float("nan")}, "`eps` must be in"),
        ({"y": Y[:19]}, "same length"),
        ({"y": np.full(20, 10)}, "labels from 0 to 9"),
        ({"y": np.full(20, 0.5)}, "integer labels"),
        ({"x": X[:20, :5]}, "must have shape"),
        ({"x": (255 * X[:20]).astype("uint8")}, "divide uint8 images"),
        ({"batch_size": 0}, "`batch_size`"),
    ],
)
def test_wrong_arguments(certificate, change, message):
    with pytest.raises(ValueError, match=message):
        prediction_sets(**{"model": certificate, "x": X[:20], "y": Y[:20], **change})


def test_wrong_questions(certificate):
    sets = prediction_sets(certificate, X[:20], Y[:20])
    for eps in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`eps` must be in"):
            sets(X[:2], eps=eps)
    for ask in (sets.coverage, sets.certified_coverage):
        with pytest.raises(ValueError, match="at least one image"):
            ask(X[:0], Y[:0])
        with pytest.raises(ValueError, match="same length"):
            ask(X[:2], Y[:3])
    assert sets(X[:0]).shape == (0, 10) and "images=20" in repr(sets)


def test_certificates_without_a_lipschitz_bound_are_refused():
    model = keras.Sequential([keras.Input((64,)), kl.Dense(8, "relu"), kl.Dense(10)])
    for other in (smooth(model, 0.25), certify_local(model), None):
        with pytest.raises(TypeError, match=f"Lipschitz bound. Received: {type(other).__name__}"):
            prediction_sets(other, X[:20], Y[:20])


def test_a_changed_model_is_refused():
    model = linear(np.eye(3), np.zeros(3))
    sets = prediction_sets(model, images(20, (3,)), np.zeros(20, int))
    model.layers[0].bias.assign([1.0, 0.0, 0.0])
    with pytest.raises(StaleCertificateError):
        sets(images(2, (3,)))


# The report


def test_report_shows_them(tmp_path):
    x, y = X[:120], Y[:120]
    report = dynzoo.evaluate(
        ridge(), x, y, eps=(0.1, 0.4), attacks="fast", prediction_sets=0.1, seed=3
    )
    found = report.prediction_sets
    assert found["calibration_images"] == found["images"] == 60 and found["alpha"] == 0.1
    assert list(found["coverage"]) == list(found["size"]) == [0.0, 0.1, 0.4]
    order = np.random.default_rng(3).permutation(120)
    ours, others = order[:60], order[60:]
    sets = prediction_sets(ridge(), x[ours], y[ours], 0.1, 0.4)
    assert sets.threshold == pytest.approx(found["threshold"], abs=1e-6)
    assert found["size"][0.4] == pytest.approx(sets.sizes(x[others]).mean(), abs=0.05)
    assert found["size"][0.0] <= found["size"][0.1] <= found["size"][0.4]
    assert found["certified_coverage"] <= found["coverage"][0.0]
    stored = json.loads(report.save(tmp_path / "report.json").read_text())
    assert stored["prediction_sets"]["size"]["0.4"] == found["size"][0.4]
    page = report.save(tmp_path / "report.html").read_text()
    assert "Prediction sets" in page and f"{found['size'][0.4]:.2f}" in page
    assert dynzoo.compare([tmp_path / "report.json", report])


def test_report_without_them_is_as_before(tmp_path):
    report = dynzoo.evaluate(ridge(), X[:20], Y[:20], eps=0.1, attacks="fast")
    assert report.prediction_sets is None and "prediction_sets" not in report.to_dict()
    assert "Prediction sets" not in report.save(tmp_path / "report.html").read_text()


def test_report_of_too_few_images(tmp_path):
    with pytest.warns(TooFewImagesWarning):
        report = dynzoo.evaluate(
            ridge(), X[:12], Y[:12], eps=0.1, attacks="fast", prediction_sets=0.1
        )
    assert report.prediction_sets["threshold"] is None
    assert report.prediction_sets["size"][0.1] == 10.0
    assert "every set holds all classes" in report.save(tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_sets": 1.0}, "`prediction_sets` must be in"),
        ({"prediction_sets": float("nan")}, "`prediction_sets` must be in"),
        ({"norm": "linf"}, "`prediction_sets` need `norm='l2'`"),
        ({"certificate": False}, "need the Lipschitz bound"),
        ({"x": X[:1], "y": Y[:1]}, "images to calibrate and others"),
    ],
)
def test_reports_that_cannot_have_them(change, message):
    arguments = {"x": X[:20], "y": Y[:20], "eps": 0.1, "attacks": "fast", "prediction_sets": 0.1}
    with pytest.raises(ValueError, match=message):
        dynzoo.evaluate(ridge(), **{**arguments, **change})


def test_example_of_the_page_runs(capsys):
    path = Path(__file__).resolve().parents[2] / "docs" / "prediction_sets.md"
    if not path.is_file():
        pytest.skip("needs a checkout")
    (code,) = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
    data = {"x_val": X[:99], "y_val": Y[:99], "x_test": X[99:], "y_test": Y[99:]}
    exec(code, {"model": ridge(), **data})  # noqa: S102
    assert len(capsys.readouterr().out.splitlines()) == 2
