"""The plain residual network: its map recomputed from the weights, its size, batches, a run."""

import keras
import numpy as np
import pytest
from helpers import conv_matrix, normal

import dynzoo
from dynzoo import backend
from dynzoo.models import ARCHITECTURES, resnet_classifier
from dynzoo.training import loop as training
from dynzoo.training import recipes

SHAPE = (8, 8, 3)
SMALL = {"input_shape": SHAPE, "num_classes": 5, "widths": (4, 6), "steps": (1, 2)}
MEAN, DEVIATION = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])


def images(count=4, seed=0):
    return np.random.default_rng(seed).uniform(size=(count, *SHAPE)).astype("float32")


def disturbed(seed=0, **arguments):
    """A small network of which no weight is what it was: also the statistics of the batches."""
    model = resnet_classifier(**{**SMALL, **arguments})
    noise = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            continue
        weights = [w + 0.1 * noise.normal(size=w.shape) for w in layer.get_weights()]
        layer.set_weights([w.astype("float32") for w in weights])
    return model


@pytest.fixture(scope="module")
def model():
    return disturbed()


def test_it_is_the_published_step(model):
    """x + B relu(N2 A relu(N1 x)), by matrices in float64 from the weights alone."""
    weights = iter(
        [w.astype(np.float64) for layer in model.layers[2:] for w in layer.get_weights()]
    )

    def convolve(x, kernel):
        matrix = conv_matrix(kernel, x.shape[1:3], "zero")
        return (x.reshape(len(x), -1) @ matrix.T).reshape(*x.shape[:3], -1)

    def activate(x):
        gamma, beta, mean, variance = (next(weights) for _ in range(4))
        return np.maximum(gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta, 0)

    x = ((images() - MEAN) / DEVIATION).astype(np.float64)
    x = x.reshape(-1, 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 12)
    x = convolve(x, next(weights))
    for stage, steps in enumerate(SMALL["steps"]):
        if stage:  # 2x2 with stride 2: one matrix on the four pixels of a block
            x = x.reshape(-1, 2, 2, 2, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 2, 2, 16)
            x = x @ next(weights).reshape(16, -1)
        for _ in range(steps):
            y = convolve(activate(x), next(weights))
            x = x + convolve(activate(y), next(weights))
    features = activate(x).mean(axis=(1, 2))
    expected = features @ next(weights) + next(weights)
    assert next(weights, None) is None
    np.testing.assert_allclose(backend.to_numpy(model(images())), expected, rtol=1e-4, atol=1e-4)


def test_statistics_of_the_batch_count_in_training_alone(model):
    weights = model.get_weights()
    x = images()
    alone = np.concatenate([backend.to_numpy(model(x[i : i + 1])) for i in range(len(x))])
    np.testing.assert_allclose(backend.to_numpy(model(x)), alone, atol=1e-5)
    together = backend.to_numpy(model(x, training=True))
    assert np.abs(together - alone).max() > 1e-2
    model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(True))
    before = [backend.to_numpy(w.value) for w in model.non_trainable_weights]
    model.train_on_batch(x, np.arange(4))
    after = [backend.to_numpy(w.value) for w in model.non_trainable_weights]
    moved = [
        w.path
        for w, a, b in zip(model.non_trainable_weights, after, before, strict=True)
        if np.abs(a - b).max() > 0
    ]
    assert len(moved) == 2 * 7  # two statistics for each of the normalisations
    model.set_weights(weights)


def test_the_shipped_baseline_is_of_the_size_of_the_certified_network(monkeypatch):
    # random numbers for kernels that nobody reads take long
    monkeypatch.setattr(
        keras.initializers.HeNormal, "__call__", lambda self, shape, dtype=None: np.ones(shape)
    )
    recipe = recipes.load("resnet_cifar10")
    assert ARCHITECTURES[recipe["architecture"]["name"]] is resnet_classifier
    model = training.build_model(recipe, 10, (32, 32, 3))
    other = dynzoo.presets()["isometric_tiny_cifar10"]["parameters"]
    assert 0.9 < model.count_params() / other < 1.1


def test_seed_decides_the_weights():
    one, same, other = (resnet_classifier(seed=s, **SMALL).get_weights() for s in (1, 1, 2))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_its_true_bound_is_sound_and_proves_next_to_nothing(model):
    certificate = dynzoo.certify(model)
    x, y = images(16, 1), images(16, 2)
    gap = backend.to_numpy(model(x)).astype(np.float64) - backend.to_numpy(model(y))
    moved = np.linalg.norm(gap, axis=1)
    assert (moved <= certificate.lipschitz * np.linalg.norm((x - y).reshape(16, -1), axis=1)).all()
    assert certificate.lipschitz > 100
    assert certificate.radii(x)[1].max() < 0.05


def test_a_run_leaves_a_preset_that_computes_the_same(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (120, *SHAPE), dtype=np.uint8)
    y = np.arange(120) % 3
    x[np.arange(120), :, :, y] = 255
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    recipe = {
        **recipes.load("resnet_cifar10"),
        "name": "tiny",
        "architecture": {"name": "resnet", "widths": [4, 8], "steps": [1, 1]},
        "data": {"name": "none", "validation": 24, "crop_padding": 1},
    }
    recipe["training"] |= {"epochs": 6, "batch_size": 16}
    model = training.train(
        recipe, tmp_path / "data.npz", tmp_path / "run", verbose=0, log=lambda line: None
    )
    preset = dynzoo.from_preset(tmp_path / "run" / "preset")
    z = normal((8, *SHAPE), 3)
    np.testing.assert_allclose(
        backend.to_numpy(preset(z)), backend.to_numpy(model(z)), atol=1e-5, rtol=1e-5
    )
    learned = preset.predict(x / np.float32(255), verbose=0).argmax(axis=1) == y
    assert learned.mean() > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": (1,)}, "`steps` must have one entry for each of `widths`"),
        ({"widths": (4, 0)}, "`widths` must be a positive integer"),
        ({"steps": (1, 1.5)}, "`steps` must be a positive integer"),
        ({"block_size": 0}, "`block_size` must be a positive integer"),
        ({"num_classes": 1}, "`num_classes` must be at least 2"),
        ({"input_shape": (10, 10, 3)}, "divisible by 4"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        resnet_classifier(**{**SMALL, **arguments})
