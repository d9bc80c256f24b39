"""Convection-diffusion classifiers: with the noise on, off and averaged; attacks, runs, presets."""

import csv
import json

import keras
import numpy as np
import pytest
from keras import ops

from dynzoo import backend
from dynzoo.attacks import PGD
from dynzoo.certificates import UncertifiableLayerError, certify, smooth
from dynzoo.inference.passes import predict_logits
from dynzoo.layers.feynman_kac import feynman_kac_mean
from dynzoo.models import ARCHITECTURES
from dynzoo.models.convection_diffusion import convection_diffusion_classifier, feynman_kac_model
from dynzoo.training import loop as training
from dynzoo.training import recipes
from dynzoo.training import validation as held_out
from dynzoo.training.run import figure_of_merit
from dynzoo.zoo.preset_folder import from_preset

SMALL = {"input_shape": (8, 8, 3), "num_classes": 4, "widths": (6,), "steps": (2,)}
STAGES = {"widths": (6, 8), "steps": (2, 1)}


def small(**arguments):
    return convection_diffusion_classifier(**{**SMALL, **arguments})


def images(count=3, seed=0):
    return np.random.default_rng(seed).uniform(size=(count, 8, 8, 3)).astype("float32")


def passed(model, x, **arguments):
    return backend.to_numpy(model(x, **arguments))


def test_without_diffusion_it_is_the_plain_residual_network():
    model = small(diffusion=0.0)
    x = images()
    np.testing.assert_array_equal(passed(model, x, training=True), passed(model, x))
    # by hand, from the weights: x + h B relu(A x + b) between the layers of Keras
    y = x
    for layer in model.layers[1:]:
        if type(layer).__name__ != "ConvectionDiffusionFlow":
            y = layer(y)
            continue
        for a, b, bias in zip(layer.kernels, layer.outer_kernels, layer.biases, strict=True):
            hidden = ops.relu(layer.operator.apply(y, ops.convert_to_tensor(a)) + bias)
            y = y + 0.5 * layer.operator.adjoint(hidden, ops.convert_to_tensor(b))
    np.testing.assert_allclose(backend.to_numpy(y), passed(model, x), atol=1e-5)


def test_diffusion_and_pixel_noise_act_in_training_and_not_at_inference():
    x = images()
    quiet = small(diffusion=0.0)
    for arguments in ({"diffusion": 0.3}, {"diffusion": 0.0, "input_noise": 0.2}):
        model = small(**arguments)
        # the same start with and without noise: recipes that differ in it stay comparable
        np.testing.assert_array_equal(passed(model, x), passed(quiet, x))
        one, other = (passed(model, x, training=True) for _ in range(2))
        assert np.abs(one - other).max() > 1e-3 and np.isfinite(one).all()


def test_the_noise_is_relative_to_features_of_unit_variance():
    # also behind a lift of ten times the size: the network cannot outgrow its noise there
    model = small(diffusion=0.3)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            layer.set_weights([10 * w for w in layer.get_weights()])
    flows = [layer for layer in model.layers if hasattr(layer, "noise_std")]
    for flow in flows:
        features = passed(keras.Model(model.input, flow.input), images())
        np.testing.assert_allclose(features.var(axis=-1), 1.0, atol=0.05)
        assert flow.noise_std == pytest.approx(0.3)


def test_an_answer_does_not_depend_on_the_rest_of_the_batch():
    model = small(diffusion=0.3, inference="mean", samples=4)
    x = images()
    other = np.concatenate([x[:1], 1 - x[1:]])
    np.testing.assert_allclose(passed(model, other)[:1], passed(model, x)[:1], atol=1e-5)


def test_mean_of_random_passes():
    random = small(diffusion=0.3, inference="random")
    model = feynman_kac_model(random, samples=64)
    x = images()
    many = feynman_kac_mean(random, x, samples=64, seed=1)
    one = passed(random, x)
    got = passed(model, x)
    assert got.shape == (3, 4)
    # nearer to the mean than one draw is, by about the root of 64
    assert np.abs(got - many).mean() < 0.5 * np.abs(one - many).mean()
    with pytest.raises(ValueError, match="`samples` must be a positive integer"):
        feynman_kac_model(random, samples=0)
    with pytest.raises(ValueError, match="random at inference"):
        feynman_kac_model(small(diffusion=0.3))
    with pytest.raises(ValueError, match="random at inference"):
        feynman_kac_model(small(diffusion=0.0, inference="random"))


def test_the_mean_is_attacked_through_its_gradient():
    model = feynman_kac_model(small(diffusion=0.2, inference="random"), 4)
    x = images(8)
    y = predict_logits(model, x).argmax(axis=1)
    points = PGD(norm="l2", eps=2.0, steps=8, batch_size=8)(model, x, y)
    assert (predict_logits(model, points).argmax(axis=1) != y).mean() > 0.5


def test_smoothing_takes_it_without_noise_and_certify_refuses_it():
    model = small(diffusion=0.3, input_noise=0.1)
    labels, radii = smooth(model, 0.1, samples=40, selection=10, alpha=0.01).radii(images(2))
    assert labels.shape == radii.shape == (2,)
    with pytest.raises(ValueError, match="random at inference"):
        smooth(small(diffusion=0.3, inference="random"), 0.1)
    with pytest.raises(UncertifiableLayerError):
        certify(model)


def test_the_gradient_velocity_keeps_its_norm_bound():
    model = small(diffusion=0.2, velocity="gradient", max_norm=1.0, **STAGES)
    flows = [layer for layer in model.layers if hasattr(layer, "noise_std")]
    assert [flow.steps for flow in flows] == [2, 1]
    for flow in flows:
        assert flow.lipschitz_bound((None, 4, 4, 6)) <= 1 + 1e-4
        assert flow.noise_std == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": (2, 1)}, "`steps` must have one entry for each"),
        ({"widths": (), "steps": ()}, "`widths` must list positive integers"),
        ({"diffusion": -0.1}, r"`diffusion` must be in \[0"),
        ({"input_noise": -0.1}, r"`input_noise` must be in \[0"),
        ({"num_classes": 1}, "`num_classes` must be at least 2"),
        (
            {"input_shape": (6, 8, 3), **STAGES},
            "`input_shape` must have height and width div",
        ),
        ({"block_size": 0}, "`block_size` must be a positive integer"),
        ({"inference": "off"}, "`inference` must be one of"),
        ({"velocity": "gradient", "max_norm": 1.0, "step_size": 3.0}, "`step_size` must be in"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_save_and_load(tmp_path):
    model = small(diffusion=0.3, input_noise=0.1, inference="mean", samples=2, seed=3)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(passed(again, images()), passed(model, images()), atol=1e-6)


def test_compiled_equals_eager_and_every_weight_is_reached():
    model = small(diffusion=0.3, input_noise=0.1)
    x, y = images(8), np.arange(8) % 4
    compiled = backend.without_grad(backend.jit(backend.inference(model)))
    got = backend.to_numpy(compiled(backend.weights_of(model), ops.convert_to_tensor(x)))
    np.testing.assert_allclose(got, passed(model, x), atol=1e-5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=backend.fit_with_jit())
    before = model.get_weights()
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    names = [w.path for w in model.weights]
    for name, now, then in zip(names, model.get_weights(), before, strict=True):
        assert np.isfinite(now).all()
        assert "normalization" in name or np.abs(now - then).max() > 1e-6, name


# --- the recipe ------------------------------------------------------------------------------

RECIPE = {
    "name": "tiny",
    "architecture": {
        "name": "convection_diffusion",
        "widths": [6],
        "steps": [1],
        "diffusion": 0.2,
        "input_noise": 0.05,
    },
    "data": {"name": "none", "validation": 16, "crop_padding": 1},
    "training": {
        "epochs": 2,
        "batch_size": 16,
        "keep": "best",
        "loss": {"name": "crossentropy"},
        "optimizer": {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.01},
    },
}


def test_labels_without_radii_where_there_is_no_certificate():
    labels, radii = held_out.labels_and_radii(small(inference="random"), images())
    assert labels.shape == (3,) and radii is None


def test_a_network_without_a_certificate_is_trained_and_chosen_by_accuracy(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8), np.arange(64) % 4
    np.savez(tmp_path / "tiny.npz", x_train=x, y_train=y, x_test=x[:4], y_test=y[:4])
    messages = []
    found, radii = held_out.labels_and_radii, []

    def certified(model, x):
        labels, none = found(model, x)
        radii.append(none)
        # the second epoch is made wrong about every image
        return (labels if len(radii) == 1 else np.full_like(labels, -1)), none

    monkeypatch.setattr(held_out, "labels_and_radii", certified)
    model = training.train(
        RECIPE, tmp_path / "tiny.npz", tmp_path / "run", verbose=0, log=messages.append
    )
    with open(tmp_path / "run" / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["val_certified"] for row in rows] == ["", ""]
    assert all(0 <= float(row["val_accuracy"]) <= 100 for row in rows)
    assert not any("certified" in message for message in messages)
    metadata = json.loads((tmp_path / "run" / "preset" / "metadata.json").read_text())
    assert radii == [None, None]
    assert metadata["training"]["chosen"] == "epoch 1, best held-out accuracy"
    with np.load(tmp_path / "run" / "best.npz") as file:
        assert json.loads(file["state"].tobytes())["epoch"] == 1
    assert "val_certified" not in metadata["training"]["held_out"]
    again = from_preset(tmp_path / "run" / "preset")
    sample = x[:4].astype("float32") / 255
    np.testing.assert_allclose(passed(again, sample), passed(model, sample), atol=1e-5)


def test_epochs_are_compared_by_what_is_known_of_them():
    assert figure_of_merit({"val_accuracy": 70.0, "val_certified": 40.0}) == 40.0
    assert figure_of_merit({"val_accuracy": 70.0, "val_certified": None}) == 70.0


def test_the_shipped_recipes_differ_in_their_noise_alone():
    names = ("convection_diffusion_feature_noise", "residual", "residual_input_noise")
    shipped = [recipes.load(f"{name}_cifar10") for name in names]
    shipped.append(recipes.load("convection_diffusion_input_noise_cifar10"))
    noise = [
        (r["architecture"].pop("diffusion") > 0, r["architecture"].pop("input_noise", 0) > 0)
        for r in shipped
    ]
    assert noise == [(True, False), (False, False), (False, True), (True, True)]
    for recipe in shipped:
        assert {**recipe, "name": "", "description": ""} == {
            **shipped[0],
            "name": "",
            "description": "",
        }


def test_it_is_an_architecture_of_recipes():
    assert ARCHITECTURES["convection_diffusion"] is convection_diffusion_classifier
    model = training.build_model(recipes.validate(RECIPE), 3, (8, 8, 3))
    assert model.output_shape == (None, 3) and model.name == "tiny"
