"""Radii that a graph computes in float32: never above those in float64, and hardly below."""

import keras
import numpy as np
import pytest

import dynzoo
from dynzoo import backend, layers
from dynzoo.export import exporter as export
from dynzoo.export import formats, radius_outputs, runtimes
from dynzoo.export.radius_outputs import with_radii

WRITABLE = [name for name, about in formats.FORMATS.items() if backend.name() in about.packages]
CLASSES = 5


def classifier():
    """Each image gives the logits that its first numbers are, a little scaled and moved."""
    inputs = keras.Input((2, 4))
    head = keras.layers.Dense(CLASSES)
    model = keras.Model(inputs, head(keras.layers.Flatten()(inputs)))
    rng = np.random.default_rng(0)
    kernel = np.eye(8, CLASSES) + 0.1 * rng.normal(size=(8, CLASSES))
    head.set_weights([kernel.astype("float32"), rng.normal(size=CLASSES).astype("float32")])
    return model


def images():
    """All sizes of numbers, near ties, ties, and what is no number."""
    rng = np.random.default_rng(1)
    sizes = 10.0 ** rng.uniform(-6, 8, size=(3000, 1, 1))
    anywhere = rng.normal(size=(3000, 2, 4)) * sizes
    inside = rng.uniform(size=(3000, 2, 4))
    near = (
        np.full((400, 2, 4), 0.5)
        + rng.normal(size=(400, 2, 4)) * np.geomspace(1e-8, 1, 400)[:, None, None]
    )
    huge = np.array([1e15, 1e18, 1e25, 3e38, -3e38, np.inf, np.nan])[:, None, None]
    x = np.concatenate([anywhere, inside, near, np.zeros((1, 2, 4)), np.ones((7, 2, 4)) * huge])
    return x.astype("float32")


def answers(graph, x):
    outputs = graph(x, training=False)
    return [backend.to_numpy(part) for part in outputs]


@pytest.fixture(scope="module")
def certified():
    model = classifier()
    return model, dynzoo.certify(model)


@pytest.mark.filterwarnings("ignore:invalid value|overflow:RuntimeWarning")
@pytest.mark.parametrize("rounding", ["probable", "worst-case"])
def test_no_radius_is_above_the_one_in_float64(certified, rounding):
    model, certificate = certified
    x = images()
    logits, labels, found = answers(with_radii(model, certificate, rounding), x)
    numbers = export.numbers_of(certificate)
    expected_labels, exact = export.radii(logits, numbers, x, rounding=rounding)
    assert np.array_equal(labels, expected_labels) and labels.dtype == np.int32
    assert np.all(found.astype(np.float64) <= exact) and np.all(found >= 0)
    # Little is lost: 1e-4 of the radius, and of what rounding takes from it.
    lost = (exact - found)[:6000] / np.maximum(exact[:6000], 1e-5 * np.abs(x[:6000]).max((1, 2)))
    assert np.max(lost, where=np.isfinite(lost), initial=0.0) < 1e-4
    assert np.mean(found[:6400] > 0) > 0.9 and np.all(found[-3:] == 0)


@pytest.mark.filterwarnings("ignore:invalid value|overflow:RuntimeWarning")
def test_without_rounding_down_some_are_above(certified, monkeypatch):
    monkeypatch.setattr(radius_outputs, "_SLACK", 0.0)
    monkeypatch.setattr(radius_outputs, "_growth", lambda *_: 1.0)
    model, certificate = certified
    x = images()
    logits, _, found = answers(with_radii(model, certificate), x)
    exact = export.radii(logits, export.numbers_of(certificate), x)[1]
    assert np.sum(found.astype(np.float64) > exact) > 100


def test_two_classes_of_one_row_never_change_places(certified):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    column = np.ones((4, 1), "float32")
    model.layers[0].set_weights([np.hstack([column, column]), np.array([1.0, 0.0], "float32")])
    certificate = dynzoo.certify(model)
    x = np.random.default_rng(0).uniform(size=(5, 4)).astype("float32")
    logits, labels, found = answers(with_radii(model, certificate), x)
    exact = export.radii(logits, export.numbers_of(certificate), x)[1]
    assert np.all(labels == 0) and np.all(found <= exact) and np.all(found > 1e3)


def test_images_of_too_many_numbers_are_refused():
    with pytest.raises(ValueError, match="`radii` must be asked for images of fewer numbers"):
        radius_outputs._growth(5_000_000, "float32")
    assert 1 < radius_outputs._growth(3 * 224 * 224, "float32") < 1.05


@pytest.mark.parametrize("format", WRITABLE)
def test_a_graph_of_each_format_gives_labels_and_radii(format, tmp_path):
    try:
        formats.check_available(format, backend.name(), run=True)
    except ValueError as reason:
        pytest.skip(str(reason))
    model = dynzoo.models.isometric_classifier(
        input_shape=(8, 8, 3), num_classes=4, widths=(8,), steps=(2,), neck_units=8, dense_steps=1
    )
    about = export.export_model(model, tmp_path / "exported", format, radii=True)
    assert about["graph"]["outputs"] == ["logits", "labels", "radii"]
    file = tmp_path / "exported" / about["graph"]["file"]
    run, _ = runtimes.load(format, file)
    for n in (1, 50):
        x = np.random.default_rng(n).uniform(size=(n, 8, 8, 3)).astype("float32")
        logits, labels, found = run(x)
        expected, exact = export.radii(logits, file.parent / "certificate.json", x, model=file)
        assert np.array_equal(labels, expected) and labels.shape == found.shape == (n,)
        assert np.all(found <= exact) and np.all(found >= exact - 1e-4 * exact.max())
        assert np.array_equal(labels, dynzoo.certify(model).radii(x)[0]) and found.max() > 0


def test_a_model_without_a_certificate_gives_no_radii(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    with pytest.raises(ValueError, match="`radii` must be False: the model has no certificate"):
        export.export_model(model, tmp_path / "exported", WRITABLE[0], radii=True, check=False)
    model = keras.Sequential([keras.Input((4,)), layers.UnitRowDense(3)])
    graph = with_radii(model, dynzoo.certify(model))
    assert [tuple(part.shape) for part in graph.outputs] == [(None, 3), (None,), (None,)]
