"""Attacks without gradients of the model: random points, and points made for another model."""

import keras
import numpy as np
import pytest
from golden_numbers import made, survivors
from keras import ops
from robustness_fixtures import centroids, held_out, ridge

from dynzoo.attacks import APGD, PGD, GaussianNoise, Transfer, UniformNoise
from dynzoo.inference.passes import predict_logits


@pytest.mark.parametrize("kind", [GaussianNoise, UniformNoise])
@pytest.mark.parametrize(("norm", "eps"), [("l2", 1.5), ("linf", 0.3)])
def test_noise_is_weaker_than_gradients_and_improves_with_draws(kind, norm, eps):
    model, (x, y) = made(centroids), held_out(60)
    clean = (predict_logits(model, x).argmax(axis=1) == y).sum()
    few = survivors(model, kind(norm, eps, draws=2), x, y)
    many = survivors(model, kind(norm, eps, draws=100), x, y)
    assert survivors(model, APGD(norm, eps, steps=20), x, y) < many <= few <= clean
    assert many < clean


def test_noise_has_the_law_that_it_states():
    x = np.full((1, 30), 0.5, "float32")
    rng = np.random.default_rng(0)
    for norm, order in (("l2", 2), ("linf", np.inf)):
        gauss = [GaussianNoise(norm, 0.3).draw(rng, (30,)) for _ in range(400)]
        lengths = np.linalg.norm(gauss, ord=order, axis=1)
        np.testing.assert_allclose(lengths, 0.3, rtol=1e-12)
        uniform = [UniformNoise(norm, 0.3).draw(rng, (30,)) for _ in range(400)]
        lengths = np.linalg.norm(uniform, ord=order, axis=1)
        # (length / eps)^d is uniform in [0, 1]
        assert lengths.max() <= 0.3 and abs(((lengths / 0.3) ** 30).mean() - 0.5) < 0.05
        assert np.abs(np.mean(uniform, axis=0)).max() < 0.03
    assert x.shape == GaussianNoise(eps=0.1, draws=1)(_flat(30), x, np.array([0])).shape


def _flat(size):
    return keras.Sequential([keras.Input((size,)), keras.layers.Dense(2)])


def test_transfer_breaks_what_gradients_cannot():
    class Rounded(keras.layers.Layer):
        """No gradient: an attack on it is blind."""

        def call(self, x):
            return ops.round(x * 16) / 16

    source, (x, y) = made(ridge), held_out()
    masked = keras.Sequential([keras.Input((64,)), Rounded(), *ridge().layers])
    blind = survivors(masked, APGD("linf", 0.05, steps=10), x, y)
    attack = Transfer(APGD("linf", 0.05, steps=20), source)
    # The digits lie on the grid of 17 levels: rounding makes 0.05 as good as 1 / 16.
    assert blind > 180 and survivors(masked, attack, x, y) < 140
    assert attack.at(0.01).eps == attack.at(0.01).attack.eps == 0.01
    assert attack.get_config()["attack"] == "APGD"
    with pytest.raises(ValueError, match="`attack` must be an untargeted Attack"):
        Transfer(PGD(targeted=True), source)
