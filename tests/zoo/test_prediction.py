"""Answers to pictures: names, margins, radii, in words and as tables."""

import csv
import json

import keras
import numpy as np
import pytest
from PIL import Image

import dynzoo
from dynzoo import layers
from dynzoo.certificates import certify_local, smooth
from dynzoo.inference.image_files import read_image
from dynzoo.inference.image_paths import image_paths
from dynzoo.zoo.prediction import predict

NAMES = ["ant", "bee", "cow"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.MeanShift([0.5, 0.5, 0.5])(inputs)
    x = layers.OrthonormalDense(6, seed=1)(keras.layers.Flatten()(x))
    network = keras.Model(inputs, layers.UnitRowDense(3)(x))
    folder = tmp_path_factory.mktemp("prediction") / "preset"
    dynzoo.save_to_preset(network, folder, {"class_names": NAMES})
    return dynzoo.from_preset(folder)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (20, 31)), ("b.jpg", (8, 8)), ("c.png", (9, 9))):
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_files_of_any_size(model, photos):
    found = predict(model, photos)
    assert [name.rpartition("/")[2] for name in found.images] == ["a.png", "b.jpg", "c.png"]
    x = np.stack([read_image(f, (8, 8, 3)) for f in image_paths(photos)]) / np.float32(255)
    answers, radii = dynzoo.certify(model).radii(x)
    np.testing.assert_array_equal(found.labels, answers)
    np.testing.assert_array_equal(found.radii, radii)
    logits = np.sort(model.predict(x, verbose=0).astype(np.float64), axis=1)
    np.testing.assert_allclose(found.margins, logits[:, -1] - logits[:, -2], atol=1e-6)
    assert found.classes == NAMES
    assert found.unit == "L2, pixels in [0, 1]"
    assert len(found) == 3
    assert found._repr_html_().count("<tr>") == 4 and "a.png" in found._repr_html_()


def test_logits_and_radii_are_of_one_pass(model, monkeypatch):
    monkeypatch.setattr(keras.Model, "predict", None)  # which would be the second
    x = np.random.default_rng(3).random((4, 8, 8, 3), "float32")
    found = predict(model, x)
    logits, labels, radii = dynzoo.certify(model).logits_and_radii(x)
    ordered = np.sort(logits.astype(np.float64), axis=1)
    np.testing.assert_array_equal(found.margins, ordered[:, -1] - ordered[:, -2])
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.radii, radii)


def test_a_local_certificate_gives_its_own_radii():
    network = keras.Sequential(
        [keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    x = np.random.default_rng(4).random((2, 2, 2, 1), "float32")
    local = dynzoo.certificates.certify_local(network)
    np.testing.assert_array_equal(predict(network, x, certificate=local).radii, local.radii(x)[1])


def test_arrays_and_bytes_are_the_same_pictures(model):
    x = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    one = predict(model, x)
    other = predict(model, x / np.float32(255))
    np.testing.assert_array_equal(one.radii, other.radii)
    single = predict(model, x[0])
    assert single.radii[0] == pytest.approx(one.radii[0], rel=1e-3)
    assert single.images == ["0"]


def test_words_never_round_a_radius_up(model):
    found = predict(model, np.random.default_rng(2).random((20, 8, 8, 3), "float32"))
    for sentence, row in zip(found.sentences(), found.to_dict(), strict=True):
        assert sentence.startswith(f"{row['image']}: {row['class']}, then {row['runner_up']}")
        said = float(sentence.split("by up to ")[1].split(" ")[0])
        assert 0.99 * row["certified_radius"] <= said <= row["certified_radius"]


def test_a_tie_has_no_radius(model):
    twice = keras.models.clone_model(model)
    twice.set_weights([np.zeros_like(w) for w in model.get_weights()])
    found = predict(twice, np.zeros((1, 8, 8, 3), "float32"), class_names=NAMES)
    assert found.radii[0] == 0 and found.margins[0] == 0
    assert "no radius is proved" in str(found)


def test_network_without_a_certificate_still_answers():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.LayerNormalization()(keras.layers.Flatten()(inputs))
    network = keras.Model(inputs, keras.layers.Dense(3)(x))
    found = predict(network, np.ones((2, 8, 8, 3), "float32"))
    assert found.radii is None
    assert found.classes == ["0", "1", "2"]
    assert "No certified radii: " in str(found) and "layer_norm" in str(found)
    assert found.to_dict()[0]["certified_radius"] is None


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_tables(model, photos, ending, tmp_path):
    found = predict(model, [photos / "a.png", photos / "c.png"])
    path = tmp_path / f"table.{ending}"
    found.save(path)
    if ending == "json":
        rows = json.loads(path.read_text())
        assert rows == found.to_dict()
    else:
        with path.open() as stream:
            rows = list(csv.DictReader(stream))
        assert [float(row["certified_radius"]) for row in rows] == found.radii.tolist()
    assert [row["class"] for row in rows] == [NAMES[i] for i in found.labels]
    with pytest.raises(ValueError, match=r"must end in .csv or .json"):
        found.save(tmp_path / "table.xlsx")


def test_radii_for_the_pixels_of_the_file(model, photos, tmp_path):
    dynzoo.save_to_preset(model, tmp_path / "preset")
    whole = dynzoo.from_preset(tmp_path / "preset", preprocess=True, image_size=(20, 31))
    found = predict(whole, photos / "a.png")
    assert found.unit == "L2, pixels in [0, 255]"
    assert found.classes == NAMES
    assert found.size == (20, 31)
    # a pixel of the file moves less than one of the network's picture, so more of it is harmless
    assert found.radii[0] > 255 * predict(model, photos / "a.png").radii[0]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("nowhere.png", "There is no file nowhere.png"),
        ([], "`images` must name at least one file"),
        (np.zeros((2, 4, 4, 3)), "must have the shape of the model's input"),
        (np.full((2, 8, 8, 3), 200.0), r"must lie in \[0, 1\].*divide them by 255"),
        (np.full((2, 8, 8, 3), np.nan), "`x` must be finite"),
        (np.zeros((0, 8, 8, 3)), "at least one image"),
        (np.array(3.0), "`images` must be files, or an array"),
    ],
)
def test_refusals(model, images, message):
    with pytest.raises(ValueError, match=message):
        predict(model, images)


def test_other_refusals(model, photos, tmp_path):
    with pytest.raises(ValueError, match="notes.txt is not a readable image"):
        predict(model, photos / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images"):
        predict(model, tmp_path / "empty")
    with pytest.raises(ValueError, match="`class_names` must be 3 texts"):
        predict(model, np.zeros((1, 8, 8, 3)), class_names=["a"])
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="for a model of images"):
        predict(dense, photos / "a.png")
    assert predict(dense, np.zeros((2, 4), "float32")).radii is not None


def test_a_certificate_that_is_not_of_the_model_is_refused(model):
    other = keras.models.clone_model(model)
    for certificate in (dynzoo.certify(other), certify_local(other)):
        with pytest.raises(ValueError, match="`certificate` must be of the model that it is given"):
            predict(model, np.zeros((2, 8, 8, 3), "float32"), certificate=certificate)
    with pytest.raises(ValueError, match="a smoothed classifier, whose answers are not the model"):
        predict(model, np.zeros((2, 8, 8, 3), "float32"), certificate=smooth(model, 0.1))


@pytest.mark.parametrize("certificate", [True, False, "crown"])
def test_what_is_no_certificate_is_refused(model, certificate):
    with pytest.raises(ValueError, match=r"`certificate` must be what .* Received: certificate="):
        predict(model, np.zeros((2, 8, 8, 3), "float32"), certificate=certificate)


def test_radii_of_a_local_certificate_say_their_norm(tmp_path):
    entrance = keras.Input((4, 4, 1))
    x = keras.layers.Dense(6, "relu")(keras.layers.Flatten()(entrance))
    network = keras.Model(entrance, keras.layers.Dense(3)(x))
    images = np.random.default_rng(1).random((3, 4, 4, 1), "float32")
    for norm, text in (("l2", "L2"), ("linf", "Linf")):
        local = certify_local(network, method="crown", norm=norm)
        found = predict(network, images, certificate=local)
        np.testing.assert_array_equal(found.radii, local.radii(images)[1])
        assert found.unit.startswith(f"{text}, ") and found.unit in str(found)
        found.save(tmp_path / "rows.csv")
        with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
            assert {row["unit"] for row in csv.DictReader(file)} == {found.unit}
