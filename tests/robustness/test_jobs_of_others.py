"""Corruptions, noise curves, smoothing and local certificates in processes: the bits of one."""

import keras
import numpy as np
import pytest

import dynzoo
from dynzoo.certificates import smooth


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.random((18, 16, 16, 3), dtype="float32"), rng.integers(0, 3, 18)


def network(noisy=False):
    keras.utils.set_random_seed(3)
    layers = [keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3, activation="relu")]
    if noisy:
        layers.append(AlwaysNoise())
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(3)])


class AlwaysNoise(keras.layers.Layer):
    random_at_inference = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), stddev=3.0, seed=self.generator)


@pytest.mark.parametrize("noisy", [False, True])
def test_corruptions(images, noisy):
    model, seen = network(noisy), []
    given = {"names": ["fog", "snow"], "severities": [1, 5], "batch_size": 7, "seed": 4}
    one = dynzoo.evaluate_corruptions(model, *images, **given)
    two = dynzoo.evaluate_corruptions(
        model, *images, **given, jobs=2, progress=lambda *told: seen.append(told)
    )
    np.testing.assert_array_equal(one.correct, two.correct)
    assert one.clean == two.clean and 0 < one.correct.mean() < 1
    assert seen == [(18 * k, 72) for k in range(1, 5)]


def test_noise_curves(images):
    model, seen = network(noisy=True), []
    given = {"kinds": ["gaussian"], "levels": [0.3, 3.0], "draws": 2, "batch_size": 5}
    one = dynzoo.noise_curve(model, *images, **given)
    two = dynzoo.noise_curve(
        model, *images, **given, jobs=2, progress=lambda *told: seen.append(told)
    )
    np.testing.assert_array_equal(one.accuracies["gaussian"], two.accuracies["gaussian"])
    assert len(np.unique(one.accuracies["gaussian"])) > 1
    assert seen == [(k, 4) for k in range(1, 5)]


def test_smoothing(images):
    seen = []
    smoothed = smooth(network(), 0.5, samples=60, selection=10, alpha=0.1, batch_size=32)
    one = smoothed.radii(images[0])
    smoothed.progress = lambda *told: seen.append(told)
    two = smoothed.radii(images[0], jobs=2)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(np.unique(one[1])) > 2
    assert seen[-1] == (18, 18)


@pytest.mark.parametrize("jobs", [0, 1.5, -2])
def test_a_number_of_processes_that_is_none(images, jobs):
    with pytest.raises(ValueError, match="`jobs` must be"):
        dynzoo.evaluate_corruptions(network(), *images, names=["fog"], jobs=jobs)
    with pytest.raises(ValueError, match="`jobs` must be"):
        dynzoo.noise_curve(network(), *images, jobs=jobs)
    with pytest.raises(ValueError, match="`jobs` must be"):
        smooth(network(), 0.5).radii(images[0], jobs=jobs)
