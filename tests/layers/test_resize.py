"""Images of another size, as a linear map: its matrices, its norm, and Pillow's pictures."""

import json

import keras
import numpy as np
import pytest
from helpers import norm, normal, unrolled
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from PIL import Image

import dynzoo
from dynzoo import backend, layers
from dynzoo.inference.image_files import read_image
from dynzoo.layers.resize import bicubic


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40))
def test_means_of_old_pixels(size, new):
    matrix = bicubic(size, new)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)  # the mirror image
    if size == new:
        np.testing.assert_allclose(matrix, np.eye(size), atol=1e-12)


def test_parabolas_are_reproduced_inside():
    # Keys' kernel is of third order: exact for polynomials of degree two away from the ends
    at = np.arange(20) + 0.5
    new = (np.arange(30) + 0.5) * 20 / 30
    inside = (new > 3) & (new < 17)
    np.testing.assert_allclose((bicubic(20, 30) @ at**2)[inside], new[inside] ** 2, rtol=1e-12)


@pytest.mark.parametrize("size", [(48, 80), (33, 20), (8, 8), (5, 7), (200, 31)])
@pytest.mark.parametrize("contrast", [64, 255])
def test_same_as_a_picture_file(size, contrast, tmp_path):
    # Pillow rounds and clips after each of the two axes; noise of full contrast overshoots most
    rng = np.random.default_rng(1)
    low = (255 - contrast) // 2
    image = rng.integers(low, low + contrast + 1, (*size, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    expected = read_image(tmp_path / "x.png", (8, 8, 3)).astype(np.float64)
    layer = layers.Resize(8, 8, value_range=(0, 255))
    y = backend.to_numpy(layer(image[None].astype("float32")))[0]
    apart = np.abs(y - expected)
    assert apart.max() <= (2.0 if contrast < 100 else 16.0)
    assert apart.mean() <= 1.0


@pytest.mark.parametrize("shape", [(9, 6, 2), (4, 4, 1), (3, 11, 3), (1, 1, 1)])
def test_bound_is_the_norm_of_the_map(shape):
    layer = layers.Resize(4, 3)
    matrix = unrolled(layer, shape)
    bound = layer.lipschitz_bound((None, *shape))
    assert norm(matrix) <= bound * (1 + 1e-6)
    assert bound <= norm(matrix) * (1 + 1e-6)
    (guarantee,) = layer.guarantees()
    assert guarantee.value == bound


def test_twin_shape_config_and_compilation():
    layer = layers.Resize(4, 3, value_range=(-1, 1))
    x = normal((3, 9, 7, 2))
    y = backend.to_numpy(layer(x))
    assert y.shape == (3, 4, 3, 2) == layer.compute_output_shape(x.shape)
    assert np.abs(y).max() <= 1.0
    np.testing.assert_allclose(y, layer.call_float64(x), atol=1e-6)
    compiled = backend.jit(layer)(ops.convert_to_tensor(x))
    np.testing.assert_allclose(backend.to_numpy(compiled), y, atol=1e-6)
    stored = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = keras.saving.deserialize_keras_object(stored)
    assert again.get_config() == layer.get_config()
    np.testing.assert_array_equal(backend.to_numpy(again(x)), y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Resize(0, 4), "`height` must be a positive integer"),
        (lambda: layers.Resize(4, 4.5), "`width` must be a positive integer"),
        (lambda: layers.Resize(4, 4, value_range=3), r"`value_range` must be \(low, high\)"),
        (lambda: layers.Resize(4, 4, value_range=(1, 0)), "low < high"),
        (lambda: layers.Resize(4, 4)(keras.Input((None, 4, 1))), "of known size"),
        (lambda: layers.Resize(4, 4)(normal((2, 8))), "of known size"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def small():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.MeanShift([0.5, 0.4, 0.3])(inputs)
    x = layers.OrthonormalDense(6)(keras.layers.Flatten()(x))
    return keras.Model(inputs, layers.UnitRowDense(4)(x))


@pytest.mark.parametrize("size", [None, (20, 12)])
def test_preset_with_preprocessing_takes_bytes(size, tmp_path):
    dynzoo.save_to_preset(small(), tmp_path / "plain")
    plain = dynzoo.from_preset(tmp_path / "plain")
    model = dynzoo.from_preset(tmp_path / "plain", preprocess=True, image_size=size)
    assert model.input_shape == (None, *(size or (8, 8)), 3)
    x = np.random.default_rng(0).integers(0, 256, (5, *model.input_shape[1:]), dtype=np.uint8)
    resize = layers.Resize(8, 8, value_range=(0, 255))
    inside = backend.to_numpy(resize(x.astype("float32"))) / np.float32(255)
    logits = model.predict(x, verbose=0)
    np.testing.assert_allclose(logits, plain.predict(inside, verbose=0), atol=1e-5)
    # radii in bytes: the map before the network shrinks distances by what is divided here
    certificate, before = dynzoo.certify(model), dynzoo.certify(plain)
    gain = resize.lipschitz_bound(None) / 255
    assert certificate.lipschitz == pytest.approx(gain * before.lipschitz, rel=1e-9)
    answers, radii = certificate.radii(x)
    expected, inner = before.radii(inside)
    np.testing.assert_array_equal(answers, expected)
    np.testing.assert_allclose(radii, inner / gain, rtol=0.01, atol=0.05)  # less for rounding
    assert certificate.rounding_bound.measured == ()
    with pytest.raises(ValueError, match=r"must lie in \[0, 255\]"):
        certificate.radii(x.astype("float32") * 2)
    # attacks, radii and corruptions are for [0, 1], and are told apart from bytes
    unit, y = x[:2] / np.float32(255), np.zeros(2, np.int64)
    for use in (
        lambda: dynzoo.evaluate(model, unit, y, eps=0.1, attacks="none"),
        lambda: dynzoo.attacks.PGD(eps=0.1)(model, unit, y),
        lambda: dynzoo.evaluate_corruptions(model, unit, y),
        lambda: dynzoo.noise_curve(model, unit, y),
    ):
        with pytest.raises(ValueError, match=r"`model` must take images in \[0, 1\]"):
            use()
    with pytest.raises(ValueError, match="multiply them by 255"):
        certificate.radii(unit)
    # it is a preset as any other
    dynzoo.save_to_preset(model, tmp_path / "bytes")
    again = dynzoo.from_preset(tmp_path / "bytes")
    np.testing.assert_array_equal(again.predict(x, verbose=0), logits)
    about = json.loads((tmp_path / "bytes" / "metadata.json").read_text())
    assert about["input_range"] == [0.0, 255.0]
    with pytest.raises(ValueError, match=r"preset of images in \[0, 1\]"):
        dynzoo.from_preset(tmp_path / "bytes", preprocess=True)


def test_preprocessing_of_a_sequential_preset_with_new_classes(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), *small().layers[1:]])
    dynzoo.save_to_preset(model, tmp_path / "plain", {"class_names": list("abcd")})
    longer = dynzoo.from_preset(
        tmp_path / "plain", num_classes=3, preprocess=True, image_size=(16, 9)
    )
    assert longer.output_shape == (None, 3)
    dynzoo.certify(longer)
    history = longer.fit(
        np.zeros((4, 16, 9, 3), np.uint8), np.array([0, 1, 2, 0]), epochs=1, verbose=0
    )
    assert np.isfinite(history.history["loss"]).all()


def test_preprocessing_refuses(tmp_path):
    dynzoo.save_to_preset(small(), tmp_path / "plain")
    with pytest.raises(ValueError, match="`image_size` needs `preprocess=True`"):
        dynzoo.from_preset(tmp_path / "plain", image_size=(4, 4))
    for size in (8, (8,), (8, 0), (8.0, 8)):
        with pytest.raises(ValueError, match=r"`image_size` must be \(height, width\)"):
            dynzoo.from_preset(tmp_path / "plain", preprocess=True, image_size=size)
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    dynzoo.save_to_preset(dense, tmp_path / "dense")
    with pytest.raises(ValueError, match="images of one size"):
        dynzoo.from_preset(tmp_path / "dense", preprocess=True)
