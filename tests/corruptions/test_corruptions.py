"""What every corruption keeps, how it grows with the severity, and its errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import pictures

from dynzoo.corruptions import CORRUPTIONS, SEVERITIES, Streams, corrupt

pytestmark = pytest.mark.any_backend

NAMES = tuple(CORRUPTIONS)
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
