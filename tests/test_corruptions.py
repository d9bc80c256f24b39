"""The fifteen corruptions, the evaluation under them, and noise curves."""

import colorsys
import io
import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from scipy import ndimage

from dynzoo import corruption_evaluation
from dynzoo.corruption_evaluation import evaluate_corruptions
from dynzoo.corruptions import CORRUPTIONS, SEVERITIES, Streams, add_noise, blur, corrupt, digital
from dynzoo.corruptions.weather import frost_texture, plasma
from dynzoo.noise_curves import noise_curve
from dynzoo.page import render
from dynzoo.report import RobustnessReport

NAMES = tuple(CORRUPTIONS)


def pictures(count=12, height=32, width=32, channels=3, seed=0):
    """Smooth shapes with edges and texture, in 8-bit values: nearer to photographs than noise."""
    noise = np.random.default_rng(seed).standard_normal((4, count, height, width, channels))
    smooth = [ndimage.gaussian_filter(noise[k], (0, s, s, 0)) for k, s in ((0, 4), (1, 2), (2, 1))]
    x = sum(part / part.std() for part in smooth) + 1.5 * (smooth[0] > 0) + 0.15 * noise[3]
    x = np.clip(0.45 + 0.13 * (x - x.mean()), 0, 1)
    return (np.rint(255 * x) / 255).astype("float32")


X = pictures()


def distance(name, severity, x=X):
    return float(np.abs(corrupt(x, name, severity) - x).mean())


# What every corruption keeps


def test_the_names_are_those_of_the_benchmark():
    assert " ".join(NAMES) == (
        "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur "
        "snow frost fog brightness contrast elastic_transform pixelate jpeg_compression"
    )
    assert all(len(parameters) == 5 for _, parameters in CORRUPTIONS.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(16, 16, 1), (28, 28, 1), (33, 20, 3)])
def test_shape_range_and_quantisation(name, shape):
    x = pictures(3, *shape)
    before = x.copy()
    for severity in (1, 5):
        result = corrupt(x, name, severity)
        assert result.shape == x.shape and result.dtype == np.float32
        levels = result * np.float32(255)
        assert np.all((result >= 0) & (result <= 1))
        np.testing.assert_allclose(levels, np.rint(levels), atol=2e-5)
        assert np.any(result != x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_the_others(name):
    """The same bytes alone, in another order, and beyond the size of an internal part."""
    rows = np.random.default_rng(1).permutation(90)
    x = pictures(90, 16, 16)
    whole = corrupt(x, name, 3)
    np.testing.assert_array_equal(corrupt(x[rows], name, 3, indices=rows), whole[rows])
    np.testing.assert_array_equal(corrupt(x[77:78], name, 3, indices=[77]), whole[77:78])


RANDOM = (
    "gaussian_noise shot_noise impulse_noise glass_blur motion_blur snow frost fog "
    "elastic_transform"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_seed_and_index_matter_where_there_is_chance(name):
    x = np.repeat(X[:1], 4, axis=0)
    first = corrupt(x, name, 5)
    np.testing.assert_array_equal(first, corrupt(x, name, 5))
    differs = [np.any(first[0] != other) for other in (*first[1:], corrupt(x, name, 5, seed=1)[0])]
    # two directions of motion may round to the same pixels
    assert (np.mean(differs) > 0.7) if name in RANDOM else not any(differs)


@settings(max_examples=20)
@given(
    name=st.sampled_from(NAMES),
    severity=st.sampled_from(SEVERITIES),
    kind=st.sampled_from(["black", "white", "grey", "colour", "checks"]),
    channels=st.sampled_from([1, 3]),
)
def test_extreme_images(name, severity, kind, channels):
    x = np.zeros((2, 16, 16, channels), "float32")
    if kind == "checks":
        x[:, ::2, 1::2] = x[:, 1::2, ::2] = 1
    else:
        x += {"black": 0, "white": 1, "grey": 0.5}.get(kind, np.arange(channels) / 2)
    result = corrupt(x, name, severity)
    assert np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1


# Severity


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("glass_blur", "frost", "elastic_transform")]
)
def test_distance_from_the_clean_image_grows_with_the_severity(name):
    steps = np.diff([distance(name, s) for s in SEVERITIES])
    if name == "motion_blur":  # severities 3 and 4 differ in taps that weigh nothing
        assert steps[2] == 0
        steps = np.delete(steps, 2)
    assert np.all(steps > 0), steps


def test_frost_hides_more_of_the_image():
    """Its image gets darker with the severity, so the correlation with the clean one counts.

    On dark images, which the ice does not drive into the clip at 1.
    """
    dark = np.float32(0.4) * X

    def correlation(severity):
        pairs = zip(corrupt(dark, "frost", severity), dark, strict=True)
        return np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])

    assert np.all(np.diff([correlation(s) for s in SEVERITIES]) < 0)


def test_glass_smooths_and_moves_more():
    """Its severities are 1 to 3 with one pass, 4 and 5 with two, and with a growing Gaussian."""

    def sharpness(severity):
        return np.square(np.diff(corrupt(X, "glass_blur", severity), axis=2)).mean()

    assert sharpness(1) > sharpness(2) > sharpness(3) and sharpness(4) > sharpness(5)
    assert distance("glass_blur", 4) > 1.2 * distance("glass_blur", 2)
    assert distance("glass_blur", 5) > 1.2 * distance("glass_blur", 3)


def test_elastic_displacement_is_less_affine():
    """What an affine map does not explain of the displacement of the pixels grows."""
    ramp = np.linspace(0.25, 0.75, 64)
    x = np.zeros((6, 64, 64, 3))
    x[..., 0], x[..., 1] = ramp[:, None], ramp[None, :]
    function, parameters = CORRUPTIONS["elastic_transform"]
    i, j = np.meshgrid(np.arange(16, 48), np.arange(16, 48), indexing="ij")  # away from the border
    affine = np.stack([i.ravel(), j.ravel(), np.ones(i.size)], axis=1)
    left = []
    for c in parameters:
        moved = function(x, c, Streams(0, "elastic_transform", np.arange(6)))
        moved = moved[:, 16:48, 16:48, :2].reshape(6, -1, 2)
        rest = [m - affine @ np.linalg.lstsq(affine, m, rcond=None)[0] for m in moved]
        left.append(np.std(rest))
    assert left[0] < 1e-9  # severity 1 is affine
    assert left[0] < left[1] < left[2] < left[3] < left[4]


# Each corruption is what it says


def test_noise_has_its_level():
    grey = np.full((20, 32, 32, 3), 128 / 255, "float32")
    for severity, sigma in zip(SEVERITIES, CORRUPTIONS["gaussian_noise"][1], strict=True):
        added = corrupt(grey, "gaussian_noise", severity) - grey
        assert added.std() == pytest.approx(sigma, rel=0.02)
        assert added.mean() == pytest.approx(-0.5 / 255, abs=1e-3)  # the truncation to 8 bits
    for severity, c in zip(SEVERITIES, CORRUPTIONS["shot_noise"][1], strict=True):
        added = corrupt(grey, "shot_noise", severity) - grey
        assert added.std() == pytest.approx(np.sqrt(128 / 255 / c), rel=0.02)
    for severity, share in zip(SEVERITIES, CORRUPTIONS["impulse_noise"][1], strict=True):
        result = corrupt(grey, "impulse_noise", severity)
        assert np.mean(result == 0) == pytest.approx(share / 2, rel=0.15)
        assert np.mean(result == 1) == pytest.approx(share / 2, rel=0.15)


def test_contrast_and_brightness():
    result = corrupt(X, "contrast", 5)
    np.testing.assert_allclose(result.std(axis=(1, 2)), 0.15 * X.std(axis=(1, 2)), atol=3e-3)
    np.testing.assert_allclose(result.mean(axis=(1, 2)), X.mean(axis=(1, 2)), atol=1 / 255)
    result = corrupt(X, "brightness", 4)
    for pixel, before in zip(result[0, ::5, 3], X[0, ::5, 3].astype(float), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))
        np.testing.assert_allclose(pixel, expected, atol=1.01 / 255)


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "zoom_blur", "glass_blur"])
def test_blur_keeps_constants(name):
    x = np.full((2, 32, 32, 3), 100 / 255, "float32")
    np.testing.assert_array_equal(corrupt(x, name, 5), x)


def test_disk_is_a_symmetric_mean():
    for c in CORRUPTIONS["defocus_blur"][1]:
        kernel = blur.disk(*c)
        assert kernel.sum() == pytest.approx(1) and kernel.min() >= 0
        np.testing.assert_allclose(kernel, kernel.T[::-1], atol=1e-15)


def test_smear_of_a_point_is_half_a_gaussian():
    x = np.zeros((3, 33, 33, 1))
    x[:, 16, 16] = 1
    result = blur.smear(x, 6, 2.0, np.array([0.0, 90.0, 45.0]))[..., 0]
    weights = np.exp(-(np.arange(8) ** 2) / 8)
    along = result[0, 16, 16:8:-1]  # a pixel collects from the right, so the point goes left
    np.testing.assert_allclose(along / along[0], weights, atol=1e-12)
    np.testing.assert_allclose(result[1], result[0].T, atol=1e-12)
    assert result[2, 15, 15] > 0 and result[2, 15, 17] == 0
    np.testing.assert_allclose(result.sum(axis=(1, 2)), 1)


@pytest.mark.parametrize("factor", [1.0, 1.03, 1.25, 1.75, 2.25])
def test_zoom_is_that_of_scipy(factor):
    kept = int(np.ceil(32 / factor))
    start = (32 - kept) // 2
    middle = X[0, start : start + kept, start : start + kept].astype(float)
    big = ndimage.zoom(middle, (factor + 1e-9, factor + 1e-9, 1), order=1)
    trim = (len(big) - 32) // 2
    expected = big[trim : trim + 32, trim : trim + 32]
    np.testing.assert_allclose(blur.zoom(X[:1].astype(float), factor)[0], expected, atol=1e-7)


def test_glass_moves_pixels_like_the_loop_of_the_benchmark():
    """An exchange of two views of one array, from the last pixel to the first, loses one value."""
    x = pictures(1, 20, 20).astype(float)
    streams = Streams(0, "glass_blur", np.arange(1))
    shift = Streams(0, "glass_blur", np.arange(1))(
        lambda rng: rng.integers(-1, 1, size=(2, 18, 18))
    )[0]
    expected = x[0].copy()
    for i in range(19, 1, -1):
        for j in range(19, 1, -1):
            k, m = i + shift[0, i - 2, j - 2], j + shift[1, i - 2, j - 2]
            expected[i, j], expected[k, m] = expected[k, m], expected[i, j]
    result = blur.glass_blur(x, (0.0, 1, 1), streams)
    np.testing.assert_allclose(result[0], expected, atol=1e-12)


@pytest.mark.parametrize("mode", ["mirror", "reflect"])
def test_sample_is_that_of_scipy(mode):
    rng = np.random.default_rng(0)
    rows, columns = rng.uniform(-40, 60, (2, 2, 9, 7))
    x = X[:2, :, :20].astype(float)
    result = digital.sample(x, rows, columns, mode)
    for k in range(2):
        for c in range(3):
            expected = ndimage.map_coordinates(
                x[k, ..., c], [rows[k], columns[k]], order=1, mode=mode
            )
            np.testing.assert_allclose(result[k, ..., c], expected, atol=1e-12)


def test_elastic_transform_without_strength_changes_nothing():
    x = X.astype(float)
    result = digital.elastic_transform(x, (0.0, 0.1, 0.0), Streams(0, "e", np.arange(len(x))))
    np.testing.assert_allclose(result, x, atol=1e-9)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_and_jpeg_are_those_of_pillow(severity):
    image = pytest.importorskip("PIL.Image")
    bytes_of = np.rint(255 * X[:3]).astype(np.uint8)
    for index, levels in enumerate(bytes_of):
        picture = image.fromarray(levels)
        small = int(32 * CORRUPTIONS["pixelate"][1][severity - 1])
        expected = picture.resize((small, small), image.BOX).resize((32, 32), image.BOX)
        result = 255 * corrupt(X[index : index + 1], "pixelate", severity)[0]
        # Pillow rounds to 8 bits between its two directions too
        np.testing.assert_allclose(result, np.asarray(expected), atol=1.01)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=CORRUPTIONS["jpeg_compression"][1][severity - 1])
        result = 255 * corrupt(X[index : index + 1], "jpeg_compression", severity)[0]
        np.testing.assert_allclose(result, np.asarray(image.open(file)), atol=1e-3)


def test_plasma_is_smoother_for_a_larger_decay():
    noise = np.random.default_rng(0).uniform(-1, 1, (20, 32, 32))
    rough = [np.abs(np.diff(plasma(noise, d), axis=2)).mean() for d in (3.0, 2.5, 2.0, 1.75)]
    assert np.all(np.diff(rough) > 0)
    clouds = plasma(noise, 2.0)
    np.testing.assert_allclose(clouds.min(axis=(1, 2)), 0)
    np.testing.assert_allclose(clouds.max(axis=(1, 2)), 1)
    # on a torus: no edge where the image begins again
    wrap, inside = clouds[:, :, 0] - clouds[:, :, -1], np.diff(clouds, axis=2)
    assert np.abs(wrap).mean() < 2 * np.abs(inside).mean()


def test_frost_is_bluish_and_structured():
    ice = frost_texture((32, 32), Streams(0, "frost", np.arange(200)))
    mean = ice.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(mean, [0.57, 0.656, 0.702], atol=0.04)  # of the photographs
    assert 0.06 < ice.mean(axis=-1).std(axis=(1, 2)).mean() < 0.11


# Errors


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "frosty"}, "`name` must be one of"),
        ({"severity": 0}, "`severity` must be 1, 2, 3, 4 or 5. Received: severity=0"),
        ({"severity": True}, "`severity` must be"),
        ({"severity": 2.5}, "`severity` must be"),
        ({"seed": -1}, "`seed` must be a non-negative integer"),
        ({"seed": 0.5}, "`seed` must be a non-negative integer"),
        ({"indices": [0]}, "`indices` must be 2 non-negative integers"),
        ({"indices": [0, -1]}, "`indices` must be 2 non-negative integers"),
        ({"x": np.zeros((2, 32, 32))}, "`x` must be a floating-point array of shape"),
        ({"x": np.zeros((2, 32, 32, 3), "uint8")}, "`x` must be a floating-point array"),
        ({"x": np.zeros((2, 32, 32, 4))}, "with 1 or 3 channels"),
        ({"x": np.zeros((2, 7, 32, 3))}, "sides of at least 8 pixels"),
        ({"x": np.zeros((0, 32, 32, 3))}, "n >= 1"),
        ({"x": np.full((2, 32, 32, 3), 1.5)}, r"`x` must be finite and lie in \[0, 1\]"),
        ({"x": np.full((2, 32, 32, 3), np.nan)}, r"`x` must be finite and lie in \[0, 1\]"),
    ],
)
def test_errors_of_corrupt(changed, message):
    arguments = {"x": np.zeros((2, 32, 32, 3)), "name": "fog", "severity": 1, **changed}
    with pytest.raises(ValueError, match=message):
        corrupt(**arguments)


# Evaluation


class Brightest(keras.layers.Layer):
    """Logits of three classes: minus the distance of the mean value from 0.2, 0.5 and 0.8."""

    def call(self, x):
        mean = ops.mean(x, axis=(1, 2, 3))
        return -ops.abs(mean[:, None] - ops.convert_to_tensor([[0.2, 0.5, 0.8]], "float32"))


def brightest(shape=(16, 16, 3)):
    return keras.Sequential([keras.Input(shape), Brightest()])


def labelled(count=30, shape=(16, 16, 3), shift=0.0):
    y = np.arange(count) % 3
    x = np.clip(pictures(count, *shape) * 0.25 + (0.1 + 0.3 * y + shift)[:, None, None, None], 0, 1)
    return x.astype("float32"), y.astype("int64")


def test_evaluation_counts_each_entry():
    x, y = labelled()
    seen, model = [], brightest()
    result = evaluate_corruptions(
        model, x, y, batch_size=8, seed=3, progress=lambda *a: seen.append(a)
    )
    assert result.correct.shape == (15, 5, 30) and result.clean == 1
    for name, severity in [("brightness", 5), ("snow", 2), ("elastic_transform", 4)]:
        means = corrupt(x, name, severity, seed=3).mean(axis=(1, 2, 3))
        expected = np.abs(means[:, None] - [0.2, 0.5, 0.8]).argmin(axis=1) == y
        np.testing.assert_array_equal(result.correct[NAMES.index(name), severity - 1], expected)
    assert result.accuracy[NAMES.index("brightness"), 4] < 0.5 < result.accuracy.max()
    assert result.mean == pytest.approx(result.accuracy.sum() / 75)
    assert 0 < result.standard_error < 0.1
    assert seen[-1] == (75 * 30, 75 * 30) and len(seen) == 75 * 4 and seen == sorted(seen)
    again = evaluate_corruptions(model, x, y, names=["snow"], severities=[2], batch_size=30, seed=3)
    np.testing.assert_array_equal(again.correct[0, 0], result.correct[NAMES.index("snow"), 1])


def test_the_model_sees_the_same_images_in_any_batches(monkeypatch):
    x, y = labelled(11)
    seen = []

    def predict(model, images, batch_size):
        seen.append(images)
        return np.zeros((len(images), 3), "float32")

    monkeypatch.setattr(corruption_evaluation, "predict_logits", predict)
    for batch_size in (4, 100):
        seen.clear()
        evaluate_corruptions(
            brightest(), x, y, names="snow", severities=[2], batch_size=batch_size, seed=5
        )
        images = np.concatenate(seen)
        np.testing.assert_array_equal(images[:11], x)
        np.testing.assert_array_equal(images[11:], corrupt(x, "snow", 2, seed=5))


def test_result_is_reported(tmp_path):
    x, y = labelled(6)
    result = evaluate_corruptions(brightest(), x, y, names=["fog", "contrast"], severities=(1, 4))
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["table"][1]["corruption"] == "contrast" and set(data["table"][0]) >= {"1", "4"}
    assert "not the official files" in data["provenance"] and data["official"] is False
    assert data["table"][0]["mean"] == pytest.approx(result.accuracy[0].mean())
    result.plot(tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    curve = noise_curve(brightest(), x, y, levels=[0.1])
    per_image = {"correct": result.correct[0, 0], "robust": result.correct[:1, 0], "radii": None}
    report = RobustnessReport(
        "l2", 1.0, {0.1: 0.5}, {0.1: None}, per_image=per_image,
        sections=[result.section(), curve.section()],
    )  # fmt: skip
    page = render(report)
    assert "Common corruptions" in page and "Noise curves" in page
    assert "not the official files" in page and "mean over 2 corruptions at 2 severities" in page


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"names": ["fog", "rain"]}, "`names` must be 'all' or some of"),
        ({"names": []}, "`names` must be 'all' or some of"),
        ({"severities": (0, 1)}, "`severities` must be some of"),
        ({"severities": ()}, "`severities` must be some of"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"y": np.arange(6) + 5}, "`y` must hold labels from 0 to 2"),
        ({"y": np.arange(5)}, "`x` and `y` must have the same length"),
        ({"x": np.zeros((6, 40))}, "`x` must be a floating-point array of shape"),
    ],
)
def test_errors_of_the_evaluation(changed, message):
    x, y = labelled(6)
    with pytest.raises(ValueError, match=message):
        evaluate_corruptions(brightest(), **{"x": x, "y": y, "names": "fog", **changed})


def test_non_finite_logits_are_an_error():
    x, y = labelled(6)
    model = keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    model.layers[-1].bias.assign(np.full(3, np.nan))
    with pytest.raises(ValueError, match="The model must return finite logits"):
        evaluate_corruptions(model, x, y, names="fog")


# The official files


def official_folder(folder, x, y, names=("fog", "snow")):
    """Five severities: the images darkened to 1, 0.8, 0.6, 0.4 and 0.2 of their values."""
    np.save(folder / "labels.npy", np.tile(y, 5).astype("uint8"))
    for name in names:
        parts = [np.rint(255 * x * (1.0 - 0.2 * s)) for s in range(5)]
        np.save(folder / f"{name}.npy", np.concatenate(parts).astype("uint8"))


def test_official_files_are_used(tmp_path):
    x, y = labelled(6)
    official_folder(tmp_path, x, y)
    result = evaluate_corruptions(
        brightest(), x[:5], y[:5], names=("fog", "snow"), official=tmp_path, batch_size=2
    )
    for s in range(5):
        means = (np.rint(255 * x[:5] * (1 - 0.2 * s)) / 255).mean(axis=(1, 2, 3))
        expected = np.abs(means[:, None] - [0.2, 0.5, 0.8]).argmin(axis=1) == y[:5]
        np.testing.assert_array_equal(result.correct[0, s], expected)
    assert result.accuracy[0, 0] == 1 and result.accuracy[0, 4] < 0.5
    assert result.official and "official files of the benchmark were used" in result.section()[1][0]
    assert result.to_dict()["folder"] == str(tmp_path)


def test_errors_of_official_files(tmp_path):
    x, y = labelled(6)
    model = brightest()

    def run(x=x, y=y, names=("fog",)):
        return evaluate_corruptions(model, x, y, names=names, official=tmp_path)

    with pytest.raises(FileNotFoundError, match="there is no file .*labels.npy"):
        run()
    official_folder(tmp_path, x, y)
    run()
    with pytest.raises(FileNotFoundError, match="there is no file .*frost.npy"):
        run(names=("fog", "frost"))
    with pytest.raises(ValueError, match="its labels are not those of `y`"):
        run(x[::-1].copy(), y[::-1].copy())
    with pytest.raises(ValueError, match="must hold 5 m integers, m >= 12"):
        run(np.tile(x, (2, 1, 1, 1)), np.tile(y, 2))
    np.save(tmp_path / "fog.npy", np.zeros((30, 16, 16, 1), "uint8"))
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(30, 16, 16, 3\)"):
        run()
    np.save(tmp_path / "fog.npy", np.zeros((30, 16, 16, 3), "float32"))
    with pytest.raises(ValueError, match="dtype float32"):
        run()
    (tmp_path / "fog.npy").write_text("not an array")
    with pytest.raises(ValueError, match="is not a file of numbers"):
        run()


# Noise curves


def test_noise_curve_falls_and_repeats():
    x, y = labelled(30)
    model = brightest()
    levels = {"gaussian": [0.05, 0.5, 2.0], "uniform": [0.05, 2.0], "salt_and_pepper": [0.01, 1.0]}
    seen = []
    curve = noise_curve(
        model, x, y, levels=levels, draws=2, batch_size=7, progress=lambda *a: seen.append(a)
    )
    assert seen == [(k, 14) for k in range(1, 15)]
    for kind in levels:
        assert curve.accuracies[kind].shape == (len(levels[kind]), 2)
        assert curve.mean(kind)[0] > 0.9 and curve.mean(kind)[-1] < 0.5
    other = noise_curve(model, x, y, kinds="gaussian", levels=levels, draws=2, batch_size=30)
    np.testing.assert_array_equal(other.accuracies["gaussian"], curve.accuracies["gaussian"])
    assert (
        noise_curve(model, x, y, kinds="uniform", levels=[0.1], draws=1).deviation("uniform") == 0
    )
    data = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert len(data["curve"]) == 7 and data["curve"][0]["draws"] == 2


@settings(max_examples=15)
@given(
    kind=st.sampled_from(["gaussian", "uniform", "salt_and_pepper"]), level=st.floats(0.01, 0.12)
)
def test_noise_of_any_kind_has_its_level(kind, level):
    x = np.full((8, 32, 32, 3), 0.5)
    added = add_noise(x, kind, level, Streams(0, kind, np.arange(8))).astype(float) - x
    measured = np.mean(added != 0) if kind == "salt_and_pepper" else added.std()
    assert measured == pytest.approx(level, rel=0.1)
    assert abs(added.mean()) < 0.01


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kinds": ["gaussian", "pink"]}, "`kinds` must be some of"),
        ({"kinds": []}, "`kinds` must be some of"),
        ({"levels": [0.0, 0.1]}, "`levels` of 'gaussian' must be positive and finite"),
        ({"levels": []}, "`levels` of 'gaussian'"),
        ({"levels": {"uniform": [0.1]}}, r"none of \['gaussian', 'salt_and_pepper'\]"),
        ({"levels": [0.5, 1.5]}, r"`levels` of 'salt_and_pepper' must be in \(0, 1\]"),
        ({"draws": 0}, "`draws` must be"),
    ],
)
def test_errors_of_noise_curve(changed, message):
    x, y = labelled(6)
    with pytest.raises(ValueError, match=message):
        noise_curve(brightest(), x, y, **changed)


@pytest.mark.parametrize(
    ("kind", "level", "message"),
    [
        ("pink", 0.1, "`kind` must be one of"),
        ("uniform", -0.1, r"`level` of 'uniform' must be in \[0, inf\)"),
        ("salt_and_pepper", 1.1, r"`level` of 'salt_and_pepper' must be in \[0, 1\]"),
    ],
)
def test_errors_of_add_noise(kind, level, message):
    with pytest.raises(ValueError, match=message):
        add_noise(X, kind, level, Streams(0, kind, np.arange(len(X))))
