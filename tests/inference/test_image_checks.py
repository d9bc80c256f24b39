"""Images in other ranges than the model takes: refused, or warned of, and never taken for right."""

import warnings

import keras
import numpy as np
import pytest

import dynzoo
from dynzoo.certificates.smoothing import smooth
from dynzoo.cli import program as cli
from dynzoo.data import datasets as data
from dynzoo.inference.image_checks import InputRangeWarning, input_range
from dynzoo.training.finetuning import finetune
from dynzoo.training.validation import hold_out
from dynzoo.zoo import measurement as evaluation

SMALL = dict(widths=(8,), steps=(1,), neck_units=8, dense_steps=1)
RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (8, 8, 8, 3)).astype("uint8")
X, Y = BYTES / np.float32(255), np.arange(8) % 4


def network():
    return dynzoo.models.isometric_classifier(input_shape=(8, 8, 3), num_classes=4, **SMALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("presets") / "tiny"
    dynzoo.save_to_preset(network(), path)
    return path


@pytest.fixture
def preset(folder):
    return dynzoo.from_preset(folder)


def test_a_preset_refuses_what_is_not_in_its_range(preset, folder):
    assert input_range(preset) == (0.0, 1.0) == input_range(dynzoo.from_preset(folder, 5))
    certificate = dynzoo.certify(preset)
    right = certificate.radii(X)[1]
    for wrong in (X * 255, RNG.random((2, 8, 8, 3)) * 255, X * 2 - 1):
        for use in (
            certificate.radii,
            certificate.logit_error,
            lambda x: certificate.topk_radii(x, np.zeros(len(x), "int64"), 1),
            smooth(preset, 0.1, samples=4, selection=2).radii,
            lambda x: finetune(preset, x, np.zeros(len(x), "int64"), epochs=1),
        ):
            with pytest.raises(ValueError, match=r"`x` must lie in \[0, 1\], the range.*Received"):
                use(wrong)
    with pytest.raises(ValueError, match="look like bytes: divide them by 255"):
        certificate.radii(X * 255)
    with pytest.raises(ValueError, match="look like bytes: divide them by 255"):
        evaluation.measure(preset, X * 255, Y, attacks="none")
    np.testing.assert_array_equal(certificate.radii(X)[1], right)  # nothing is lost
    assert certificate.radii(np.full((1, 8, 8, 3), np.nan, "float32"))[1] == 0.0


def test_a_model_of_unknown_range_warns_of_bytes_alone():
    certificate = dynzoo.certify(network())
    for wrong in (X * 255, BYTES.astype("float64"), RNG.random((2, 8, 8, 3)) * 255):
        with pytest.warns(InputRangeWarning, match="divide them by 255") as found:
            certificate.radii(wrong)
        assert sum(w.category is InputRangeWarning for w in found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputRangeWarning)
        for fine in (X, X * 2 - 1, X * 1e6, np.zeros((1, 8, 8, 3)), X * 7.3):
            certificate.radii(fine)
    vectors = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    dynzoo.certify(vectors).radii(np.array([[0.0, 100.0, 200.0]]))  # counts, not pixels


def test_a_model_that_rescales_takes_bytes(tmp_path):
    layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(4)])
    plain = keras.Sequential([*layers[:1], *layers[2:], model.layers[-1]])
    expected = dynzoo.certify(plain).radii(X)[1]
    found = dynzoo.certify(model).radii(BYTES.astype("float32"))[1]  # in gray values
    np.testing.assert_allclose(found / 255, expected, rtol=1e-3, atol=1e-6)
    dynzoo.save_to_preset(model, tmp_path / "plain")
    assert input_range(dynzoo.from_preset(tmp_path / "plain")) is None
    dynzoo.save_to_preset(model, tmp_path / "known", {"input_range": [0, 255]})
    known = dynzoo.from_preset(tmp_path / "known")
    assert input_range(known) == (0.0, 255.0)
    dynzoo.certify(known).radii(BYTES.astype("float32"))
    with pytest.raises(ValueError, match=r"`x` must lie in \[0, 255\]"):
        dynzoo.certify(known).radii(BYTES * np.float32(2))


def test_finetune_takes_bytes_as_bytes_and_no_floats_that_are_bytes():
    def loss(x, **arguments):
        keras.utils.set_random_seed(0)
        head = dynzoo.layers.UnitRowDense(4)  # what is trained makes no difference to images
        model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), head])
        return finetune(model, x, Y, epochs=1, batch_size=4, verbose=0, **arguments).history["loss"]

    for augmented in ({}, {"flip": True}):
        assert loss(BYTES, **augmented) == pytest.approx(loss(X, **augmented), rel=1e-5)
    for wrong, message in (
        (X * 255, "divide them by 255"),
        (X * np.nan, "must be finite"),
        (X[:, :4], "shape of the model's input"),
        (X[:0], "at least one image"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune(network(), wrong, Y[: len(wrong)], epochs=1)


def test_float_images_that_are_no_bytes_can_be_trained_on(tmp_path):
    x = RNG.random((12, 8, 8, 3), dtype=np.float32)
    y = np.arange(12) % 3
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    recipe = {"data": {"name": "digits", "validation": 4}}
    ((kept, _), (held, _)), classes = hold_out(recipe, tmp_path / "a.npz")
    assert classes == 3 and kept.dtype == held.dtype == np.float32
    assert {*kept.ravel()} | {*held.ravel()} == {*x.ravel()}
    np.savez(tmp_path / "b.npz", x_train=X, y_train=Y, x_test=BYTES, y_test=Y)
    (x, _), (x_test, _) = data.load_exact(tmp_path / "b.npz")
    assert x.dtype == x_test.dtype == np.uint8
    np.testing.assert_array_equal(x, BYTES)
    np.savez(tmp_path / "c.npz", x_train=X, y_train=Y + 1, x_test=BYTES, y_test=Y + 1)
    with pytest.raises(ValueError, match="labels from 1 to 4. Subtract 1"):
        hold_out(recipe, tmp_path / "c.npz")


def test_numbers_of_numpy_are_numbers(folder):
    n = np.int64(4)
    model = dynzoo.from_preset(folder, num_classes=Y.max() + 1)
    finetune(model, X, Y, epochs=np.int64(1), batch_size=n, crop_padding=np.int32(1), verbose=0)
    model = dynzoo.models.isometric_classifier(input_shape=(8, 8, 3), num_classes=n, **SMALL)
    assert model.output_shape == (None, 4)
    for operator in (dynzoo.operators.Dense(n), dynzoo.operators.Conv(n, np.int8(3))):
        assert all(type(v) in (int, str) for v in operator.get_config().values())
    for eps in (np.float32(0.5), np.array(0.5), np.array([0.5]), [np.float64(0.5)]):
        assert [*dynzoo.evaluate(model, X, Y, eps=eps, attacks="fast").robust] == [0.5]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8), ("l2", 36), ("l2", [0.1, np.float32(72)])])
def test_radii_in_bytes_are_refused(norm, eps):
    with pytest.raises(ValueError, match="`eps` must be at most.*divide radii in bytes by 255"):
        dynzoo.evaluate(network(), X, Y, norm=norm, eps=eps, attacks="fast")


@pytest.mark.parametrize("radius", ["8", "36/255,8"])
def test_radii_in_bytes_are_refused_by_the_command(radius, folder, capsys):
    assert cli.main(["evaluate", str(folder), "--dataset", "digits", "--eps", radius]) == 2
    assert "write 8/255 for 8 of 255 gray values" in capsys.readouterr().err
