"""Certified radii: exact for linear models, sound for the others, and safe from rounding."""

import json

import keras
import numpy as np
import pytest
from certificate_models import CLASSES, classifier, images, linear, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl

from dynzoo.backend import to_numpy
from dynzoo.certificates import StaleCertificateError, certify, forward_float64


def test_radius_of_a_linear_model_is_the_distance_to_its_boundary():
    kernel = np.random.default_rng(1).normal(size=(6, 4))
    model = linear(kernel, [0.1, 0.2, 0.3, 0.4])
    x = images(30, (6,))
    labels, radii = certify(model).radii(x, batch_size=7)
    z = x @ kernel + [0.1, 0.2, 0.3, 0.4]
    assert labels.dtype == np.int64 and radii.dtype == np.float64
    np.testing.assert_array_equal(labels, z.argmax(1))
    for row, label, radius, logits in zip(x, labels, radii, z, strict=True):
        others = [j for j in range(4) if j != label]
        gaps = [np.linalg.norm(kernel[:, label] - kernel[:, j]) for j in others]
        nearest = int(np.argmin([(logits[label] - logits[j]) for j in others] / np.array(gaps)))
        distance = (logits[label] - logits[others[nearest]]) / gaps[nearest]
        assert radius <= distance
        assert radius == pytest.approx(distance, abs=1e-4)
        direction = (kernel[:, others[nearest]] - kernel[:, label]) / gaps[nearest]
        for factor, same in ((0.999, True), (1.001, False)):
            moved = (row + factor * max(radius, distance) * direction).astype("float32")
            if distance > 1e-2:
                assert (to_numpy(model(moved[None])).argmax() == label) is np.bool_(same)


@settings(max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_nothing_inside_the_radius_changes_the_answer(seed):
    model = classifier(
        kl.Conv2D(3, 3, padding="same", activation="relu"),
        kl.Flatten(),
        kl.Dense(CLASSES),
        seed=seed,
    )
    x = images(6, seed=seed)
    labels, radii = certify(model).radii(x)
    rng = np.random.default_rng(seed)
    for _ in range(10):
        noise = rng.normal(size=x.shape)
        noise *= (radii / np.linalg.norm(noise.reshape(6, -1), axis=1))[:, None, None, None]
        moved = forward_float64(model, x + noise).argmax(1)
        assert np.all((moved == labels) | (radii == 0))


def test_ties_have_radius_zero():
    _, radii = certify(linear(np.eye(3), np.zeros(3))).radii(np.full((4, 3), 0.5, "float32"))
    np.testing.assert_array_equal(radii, 0.0)
    _, radii = certify(linear(np.zeros((3, 3)), np.zeros(3))).radii(images(4, (3,)))
    np.testing.assert_array_equal(radii, 0.0)


def test_margins_within_rounding_are_not_certified():
    result = certify(linear(np.eye(3), np.zeros(3)))
    x = np.full((2, 3), 0.5, "float32")
    error = result.logit_error(x[:1])[0]
    assert error <= result.rounding
    x[0, 0] += error
    x[1, 0] += 8 * error
    _, radii = result.radii(x)
    assert radii[0] == 0 and radii[1] > 0


def test_classes_with_the_same_weights_set_no_limit():
    kernel = np.array([[1.0, 1.0, -1.0], [0.5, 0.5, 2.0]])
    model = linear(kernel, [1.0, 0.0, 0.0])
    x = np.array([[1.0, 0.5]], "float32")
    _, radii = certify(model).radii(x)
    z = x[0] @ kernel + [1.0, 0.0, 0.0]
    expected = (z[0] - z[2]) / np.linalg.norm(kernel[:, 0] - kernel[:, 2])
    assert radii[0] == pytest.approx(expected, rel=1e-4)
    tied = linear(kernel, [0.0, 0.0, 0.0])
    assert certify(tied).radii(x)[1][0] == 0.0
    constant = linear(np.ones((2, 3)), [1.0, 0.0, 0.0])
    # In real numbers it is infinite; in float32 the same logits are lost in large ones.
    assert 1e4 < certify(constant).radii(x)[1][0] < np.inf
    zero = linear(np.zeros((2, 3)), [1.0, 0.0, 0.0])
    # Beyond this squares of what a layer reads are no float32.
    assert certify(zero).radii(x)[1][0] > 1e17


def test_logits_that_are_not_finite_have_radius_zero():
    x = images(5, (3,))
    x[1, 0], x[3, 2] = np.nan, np.inf
    _, radii = certify(linear(np.eye(3), [5.0, 0.0, 0.0])).radii(x)
    assert radii[1] == radii[3] == 0.0
    assert np.all(radii[[0, 2, 4]] > 0)


def test_radii_shrink_when_the_image_must_be_rounded():
    result = certify(linear(np.eye(3), [3.0, 0.0, 0.0]))
    x = images(4, (3,)).astype("float64") + 1e-9
    moved = np.linalg.norm(x - x.astype("float32"), axis=1)
    np.testing.assert_allclose(
        result.radii(x)[1], result.radii(x.astype("float32"))[1] - moved, rtol=1e-12
    )


def test_radii_are_the_same_in_every_batch_size_and_call():
    model = classifier(kl.Flatten(), kl.Dense(8, activation="relu"), kl.Dense(CLASSES))
    result, x = certify(model), images(16)
    labels, radii = result.radii(x)
    for batch_size in (3, 8, 16):
        again = result.radii(x, batch_size=batch_size)
        np.testing.assert_array_equal(again[0], labels)
        np.testing.assert_allclose(again[1], radii, atol=1e-5)
    fresh = certify(model).radii(x, batch_size=4)
    np.testing.assert_allclose(fresh[1], radii, atol=1e-5)
    assert [len(a) for a in result.radii(x[:0])] == [0, 0]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 4, 4, 2), "uint8"), "divide uint8 images by 255"),
        (np.zeros((2, 4, 4, 2), "int64"), "float images"),
        (np.zeros((4, 4, 2), "float32"), "must have shape"),
        (np.zeros((2, 5, 4, 2), "float32"), "must have shape"),
    ],
)
def test_wrong_images_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        certify(classifier(kl.Flatten(), kl.Dense(CLASSES))).radii(x)


def test_a_changed_model_makes_the_certificate_stale():
    model = classifier(kl.Flatten(), kl.Dense(CLASSES))
    result = certify(model)
    result.radii(images(2))
    kept = model.get_weights()
    model.layers[1].bias.assign([0.1, 0.2, 0.3])
    with pytest.raises(StaleCertificateError, match="Certify it again"):
        result.radii(images(2))
    model.set_weights(kept)
    result.radii(images(2))
    model.add(kl.Dense(CLASSES))
    with pytest.raises(StaleCertificateError, match="other layers"):
        result.radii(images(2))


def test_certificate_is_plain_data_and_says_where_the_bound_comes_from():
    model = classifier(kl.Flatten(), kl.Dense(8, activation="relu"), kl.Dense(CLASSES))
    result = certify(model)
    record = json.loads(json.dumps(result.to_dict()))
    assert record["lipschitz"] == result.lipschitz
    assert record["weights_sha256"] == certify(model).weights_sha256
    assert record["rounding"]["logit_error"] == result.rounding > 0
    assert record["rounding"]["measured_layers"] == []
    assert [row["class_name"] for row in record["layers"]] == ["Flatten", "Dense", "Dense"]
    gains = np.prod([row["gain"] for row in record["layers"]])
    assert gains == pytest.approx(result.lipschitz)
    assert "lipschitz=" in repr(result) and len(repr(result)) < 120


def test_float64_models_get_the_margin_of_what_the_backend_computes():
    if keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless it is switched on before anything runs")

    def build(dtype):
        inputs = keras.Input((6,), dtype=dtype)
        return randomize(keras.Model(inputs, kl.Dense(CLASSES, dtype=dtype)(inputs)))

    narrow, wide = certify(build("float32")).rounding, certify(build("float64")).rounding
    # Keras rounds the images, and on PyTorch computes much of a float64 model in float32.
    assert 0 < wide < 2.0 * narrow


def test_top_k_radius_of_a_linear_model_is_the_distance_to_the_kth_boundary():
    # with orthogonal rows all k classes can be reached at once, in order of their distances
    kernel = np.random.default_rng(2).normal(size=(6, 5))
    model = linear(kernel, np.linspace(0, 0.4, 5))
    x, y = images(30, (6,)), np.random.default_rng(3).integers(0, 5, 30)
    places, radii = certify(model).topk_radii(x, y, k=(1, 2, 4), batch_size=7)
    z = x @ kernel + np.linspace(0, 0.4, 5)
    np.testing.assert_array_equal(places, (z > z[np.arange(30), y][:, None]).sum(axis=1))
    for row, label, own in zip(z, y, radii, strict=True):
        others = [j for j in range(5) if j != label]
        gaps = [np.linalg.norm(kernel[:, label] - kernel[:, j]) for j in others]
        reach = np.sort(np.maximum((row[label] - row[others]) / gaps, 0))
        np.testing.assert_allclose(own, reach[[0, 1, 3]], atol=1e-4)
        assert np.all(own <= reach[[0, 1, 3]])


@settings(max_examples=5)
@given(seed=st.integers(0, 10**6), k=st.integers(1, CLASSES - 1))
def test_nothing_inside_the_top_k_radius_pushes_the_label_out(seed, k):
    model = classifier(kl.Flatten(), kl.Dense(8, "relu"), kl.Dense(CLASSES), seed=seed)
    x = images(6, seed=seed)
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, 6)
    places, radii = certify(model).topk_radii(x, y, k=k)
    assert np.all((radii == 0) | (places < k))
    for _ in range(10):
        noise = rng.normal(size=x.shape)
        noise *= (radii / np.linalg.norm(noise.reshape(6, -1), axis=1))[:, None, None, None]
        z = forward_float64(model, x + noise)
        place = np.sum(z >= z[np.arange(6), y][:, None], axis=1) - 1
        assert np.all((place < k) | (radii == 0))


def test_top_1_radius_is_the_radius_of_the_prediction():
    model = classifier(kl.Flatten(), kl.Dense(CLASSES), seed=4)
    x = images(20, seed=4)
    labels, radii = certify(model).radii(x)
    places, own = certify(model).topk_radii(x, labels, k=1)
    assert own.shape == (20,) and not places.any()
    np.testing.assert_array_equal(own, radii)
    places, others = certify(model).topk_radii(x, (labels + 1) % CLASSES, k=1)
    assert places.all() and not others.any()


def test_logits_that_tie_or_are_not_finite_hold_no_place():
    tied = certify(linear(np.eye(3), np.zeros(3)))
    x, y = np.full((3, 3), 0.5, "float32"), np.array([0, 1, 2])
    places, radii = tied.topk_radii(x, y, k=(1, 2))
    np.testing.assert_array_equal(places, [0, 1, 2])  # as `argmax` breaks the tie
    np.testing.assert_array_equal(radii, 0.0)
    x[0] = np.nan
    assert not tied.topk_radii(x, y, k=2)[1].any()


@pytest.mark.parametrize(
    ("y", "k", "name"),
    [
        ([0, 1], 0, "`k`"),
        ([0, 1], 3, "`k`"),
        ([0, 1], (), "`k`"),
        ([0, 1], 1.0, "`k`"),
        ([0, 3], 1, "`y`"),
        ([0], 1, "`y`"),
        ([0.0, 1.0], 1, "`y`"),
    ],
)
def test_top_k_refuses_what_is_no_label_or_number_of_places(y, k, name):
    certificate = certify(linear(np.eye(3), np.zeros(3)))
    with pytest.raises(ValueError, match=name):
        certificate.topk_radii(np.zeros((2, 3), "float32"), np.array(y), k=k)


@pytest.mark.parametrize(("classes", "columns"), [(3, 1), (5, 1), (6, 2)])
def test_top_k_of_few_classes_counts_what_they_allow(classes, columns):
    certificate = certify(linear(np.eye(classes), np.zeros(classes)))
    _, radii = certificate.topk_radii(np.zeros((2, classes), "float32"), np.array([0, 1]))
    assert radii.shape == (2, columns)
