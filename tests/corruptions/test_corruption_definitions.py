"""Each corruption is what it says: against its formula, SciPy, Pillow or the benchmark's loop."""

import colorsys
import io

import numpy as np
import pytest
from pictures import pictures
from scipy import ndimage

from dynzoo.augmentation import pixels
from dynzoo.corruptions import CORRUPTIONS, SEVERITIES, Streams, blur, corrupt, digital
from dynzoo.corruptions.weather import frost_texture, plasma

pytestmark = pytest.mark.any_backend

X = pictures()


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
    result = pixels.sample(x, rows, columns, mode)
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
