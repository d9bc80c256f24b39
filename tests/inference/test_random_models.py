"""`evaluate` and `certify` of models that are random, mix a batch, or are smoothed."""

import json

import keras
import numpy as np
import pytest
from robustness_fixtures import held_out, ridge

from dynzoo import backend, operators
from dynzoo.attacks import PGD
from dynzoo.certificates import certify
from dynzoo.certificates.smoothing import smooth
from dynzoo.inference.batch_mixing import hides_code
from dynzoo.inference.draws import Draws
from dynzoo.inference.model_layers import random_layers
from dynzoo.layers.convection_diffusion_flow import ConvectionDiffusionFlow
from dynzoo.layers.graph_diffusion import GraphDiffusion
from dynzoo.robustness.checks.model import check_layers, check_outputs
from dynzoo.robustness.corruptions import evaluate_corruptions
from dynzoo.robustness.evaluation import CertificateViolation, evaluate
from dynzoo.robustness.noise_curves import noise_curve

FAST = dict(eps=(0.2, 0.4), attacks=[PGD(steps=3, random_start=False)])


def names_of(report):
    return [w.name for w in report.warnings]


def behind(*layers):
    """The ridge classifier of digits behind layers that keep the shape."""
    base = ridge()
    model = keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(10)])
    model.layers[-1].set_weights(base.layers[0].get_weights())
    return model


def noisy(sigma=0.3, **arguments):
    flow = ConvectionDiffusionFlow(
        operators.Dense(4), sigma=sigma, seed=1, name="noisy", **{"inference": "random"} | arguments
    )
    return behind(flow)


@pytest.fixture(scope="module")
def random_report():
    model = noisy()
    states = [v for v in model.variables if v.name == "seed_generator_state"]
    before = [backend.to_numpy(v.value) for v in states]
    report = evaluate(model, *held_out(60), **FAST, seed=3)
    after = [backend.to_numpy(v.value) for v in states]
    return model, report, before, after


def test_random_model_is_named_and_evaluated(random_report):
    _, report, before, after = random_report
    assert names_of(report).count("randomised-model") == 1
    (warning,) = (w for w in report.warnings if w.name == "randomised-model")
    assert "'noisy'" in warning.text and "mean over draws" in warning.text
    assert "too high" in warning.text
    # no certificate, and the reason names the layer
    assert report.certified == {0.2: None, 0.4: None}
    (missing,) = (w for w in report.warnings if w.name == "not-certified")
    assert "noisy" in missing.text
    assert 0.3 < report.clean < 1.0 and report.robust[0.4] < report.clean
    np.testing.assert_array_equal(before, after)  # whoever comes next sees the same draws


def test_random_model_gives_the_same_numbers_for_the_same_seed(random_report):
    model, report, *_ = random_report
    x, y = held_out(60)
    model(x)  # moves the states on
    again = evaluate(model, x, y, **FAST, seed=3)
    for key in ("correct", "robust"):
        np.testing.assert_array_equal(again.per_image[key], report.per_image[key])
    other = evaluate(model, x, y, **FAST, seed=4)
    assert not np.array_equal(other.per_image["correct"], report.per_image["correct"])


def test_attack_and_judge_see_different_noise(random_report, monkeypatch):
    # an attack that saw the judge's draw would look stronger than it is against fresh noise
    model, seen = random_report[0], []
    (state,) = (v for v in model.variables if v.name == "seed_generator_state")
    fresh = Draws.fresh

    def recorded(self, *key):
        fresh(self, *key)
        seen.append(tuple(backend.to_numpy(state.value)))

    monkeypatch.setattr(Draws, "fresh", recorded)
    evaluate(model, *held_out(60), eps=0.2, attacks=FAST["attacks"], certificate=False)
    assert len(set(seen)) >= 5


def test_undeclared_randomness_is_measured():
    class Undeclared(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.seed_generator = keras.random.SeedGenerator(1)

        def call(self, x):
            return x + 0.1 * keras.random.normal((1, 64), seed=self.seed_generator)

    x, _ = held_out(16)
    assert [w.name for w in check_outputs(behind(Undeclared()), x)] == ["randomised-model"]
    assert check_outputs(behind(), x) == []


def test_undeclared_mixing_is_measured():
    class Centred(keras.layers.Layer):
        def call(self, x):
            return x - keras.ops.mean(x, axis=0, keepdims=True)

    x, _ = held_out(16)
    assert [w.name for w in check_outputs(behind(Centred()), x)] == ["batch-dependent-model"]


@pytest.mark.parametrize(
    "layer",
    [
        lambda: GraphDiffusion(0.05, graph="knn", neighbours=4, scale_neighbour=2, name="mixing"),
        lambda: ConvectionDiffusionFlow(
            operators.Dense(4), steps=2, noise_scaling="tensor_std", seed=1, name="mixing"
        ),
    ],
    ids=["graph", "tensor_std"],
)
def test_model_that_mixes_the_batch_is_named_and_evaluated(layer):
    model = behind(layer())
    x, y = held_out(40)
    report = evaluate(model, x, y, **FAST)
    assert names_of(report).count("batch-dependent-model") == 1
    (warning,) = (w for w in report.warnings if w.name == "batch-dependent-model")
    assert "'mixing'" in warning.text and "hold a batch together" in warning.text
    assert "randomised-model" not in names_of(report)
    assert report.certified == {0.2: None, 0.4: None}
    again = evaluate(model, x, y, **FAST)
    np.testing.assert_array_equal(again.per_image["robust"], report.per_image["robust"])


def test_graph_of_a_fixed_size_is_refused_with_the_reason():
    path = np.eye(20, k=1) + np.eye(20, k=-1)
    model = behind(GraphDiffusion(0.1, adjacency=path, name="path"))
    with pytest.raises(ValueError, match="must take batches of any size.*'path' does not"):
        evaluate(model, *held_out(20), **FAST)


def test_random_and_mixing_models_are_not_certified():
    with pytest.raises(ValueError, match="'noisy' has inference='random'"):
        certify(noisy())
    with pytest.raises(ValueError, match="'mixing' has no Lipschitz bound"):
        certify(behind(GraphDiffusion(0.1, graph="knn", name="mixing")))


def test_names_of_layers():
    assert random_layers(noisy()) == ["noisy"]
    assert random_layers(noisy(inference="mean")) == []
    nested = keras.Sequential([keras.Input((64,)), noisy()])
    assert random_layers(nested) == ["noisy"]


def test_quiet_models_have_no_such_warning():
    model, (x, _) = noisy(inference="deterministic"), held_out(16)
    assert check_layers(model, x) == check_outputs(model, x) == []
    assert certify(model).lipschitz > 0


# --- smoothing ------------------------------------------------------------------------------


def test_smoothed_certificate_has_numbers_of_its_own(tmp_path):
    # a sliver of class 9 around the first image, which noise does not see: the smoothed classifier
    # is certified to answer otherwise than the model, and that is no contradiction
    x, y = held_out(60)
    inputs = keras.Input((64,))
    distance = keras.ops.mean(keras.ops.abs(inputs - x[0]), axis=-1, keepdims=True)
    sliver = 1e3 * keras.ops.relu(0.02 - distance) * np.eye(10, dtype="float32")[9]
    model = keras.Model(inputs, ridge()(inputs) + sliver)
    smoothed = smooth(model, 0.15, samples=100, selection=20)
    labels, radii = smoothed.radii(x)
    plain = np.argmax(backend.to_numpy(model(x)), axis=1)
    assert np.any((labels != plain) & (labels >= 0) & (radii > 0))
    eps = (0.05, 0.2)
    report = evaluate(model, x, y, eps=eps, attacks=FAST["attacks"], certificate=smoothed)
    assert report.certified == dict.fromkeys(eps) and report.clean == np.mean(plain == y)
    found = report.smoothed
    assert found["clean"] == np.mean(labels == y) and found["abstained"] == np.mean(labels == -1)
    for e in eps:
        assert found["certified"][e] == np.mean((labels == y) & (radii > e)) <= found["clean"]
    assert found["certified"][0.05] > 0.3
    assert found["settings"] == smoothed.to_dict()
    stored = json.loads(report.save(tmp_path / "r.json").read_text())
    assert stored["smoothed"]["certified"]["0.05"] == found["certified"][0.05]
    page = report.save(tmp_path / "r.html").read_text()
    assert "Randomised smoothing" in page and f"{100 * found['clean']:.1f} %" in page
    assert "sigma 0.15" in page and "another classifier" in page


def test_smoothed_radii_in_linf_are_those_of_the_l2_ball_around():
    model, (x, y) = ridge(), held_out(30)
    smoothed = smooth(model, 0.3, samples=40, selection=10)
    report = evaluate(model, x, y, "linf", 0.02, "fast", certificate=smoothed)
    labels, radii = smoothed.radii(x)
    assert report.smoothed["certified"] == {0.02: np.mean((labels == y) & (radii > 0.16))}


def test_smoothing_of_another_model_is_refused():
    with pytest.raises(ValueError, match="`certificate` must be of the model that it is"):
        evaluate(ridge(), *held_out(20), **FAST, certificate=smooth(ridge(), 0.2))


def test_other_certificates_are_still_refuted():
    class Wrong:
        def radii(self, x, batch_size=256):
            return np.full(len(x), 3), np.full(len(x), 1.0)

    with pytest.raises(CertificateViolation):
        evaluate(ridge(), *held_out(20), **FAST, certificate=Wrong())


# --- mixtures that no layer declares -----------------------------------------------------------


def centred(x):
    return x - keras.ops.mean(x, axis=0)


def mixing_models():
    inputs = keras.Input((64,))
    head = keras.layers.Dense(10)
    hidden = keras.layers.Lambda(centred, output_shape=(64,), name="hidden")
    return {
        "mean": keras.Model(inputs, head(centred(inputs))),
        "hidden": keras.Model(inputs, head(hidden(inputs))),
    }


@pytest.mark.parametrize("name", ["mean", "hidden"])
def test_undeclared_mixtures_are_named_everywhere(name):
    x, y = held_out(20)
    model = mixing_models()[name]
    report = evaluate(model, x, y, **FAST, certificate=False)
    assert names_of(report).count("batch-dependent-model") == 1
    (warning,) = (w for w in report.warnings if w.name == "batch-dependent-model")
    assert f"'{name}'" in warning.text
    curve = noise_curve(model, x, y, kinds=["gaussian"], levels=[0.1], draws=1)
    assert [w["name"] for w in curve.details["warnings"]] == ["batch-dependent-model"]
    assert "batch-dependent-model" in str(curve.section())
    quiet = noise_curve(ridge(), x, y, kinds=["gaussian"], levels=[0.1], draws=1)
    assert quiet.details["warnings"] == []


def test_corruptions_name_a_mixture():
    x = np.random.default_rng(0).random((6, 16, 16, 3), "float32")
    inputs = keras.Input((16, 16, 3))
    flat = keras.layers.Flatten()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(flat - keras.ops.max(flat, axis=0)))
    result = evaluate_corruptions(model, x, np.zeros(6, int), names="fog", severities=[1])
    (warning,) = result.details["warnings"]
    assert warning["name"] == "batch-dependent-model" and "'max'" in warning["text"]
    assert "batch-dependent-model" in str(result.section())


def test_code_that_no_graph_shows():
    assert not hides_code(ridge()) and not hides_code(noisy())
    assert hides_code(mixing_models()["hidden"]) and not hides_code(mixing_models()["mean"])
    inputs = keras.Input((4,))
    own = keras.layers.Dense(2, activation=lambda x: keras.ops.softmax(x, axis=0))
    assert hides_code(keras.Model(inputs, own(inputs)))
    nested = keras.Sequential([keras.Input((64,)), mixing_models()["hidden"]])
    assert hides_code(nested)


def test_layer_in_training_mode_is_named():
    x, y = held_out(20)
    inputs = keras.Input((64,))
    norm = keras.layers.BatchNormalization(name="norm")
    model = keras.Model(inputs, keras.layers.Dense(10)(norm(inputs, training=True)))
    report = evaluate(model, x, y, **FAST, certificate=False)
    (warning,) = (w for w in report.warnings if w.name == "training-mode-call")
    assert "'norm'" in warning.text and "training=True" in warning.text


def test_images_that_need_batches_of_one_size_are_refused():
    model = behind(
        keras.layers.Lambda(
            lambda x: keras.ops.reshape(
                keras.ops.flip(keras.ops.reshape(x, (-1, 2, 64)), 1), (-1, 64)
            ),
            output_shape=(64,),
        )
    )
    with pytest.raises(ValueError, match="`model` must take batches of any size"):
        evaluate(model, *held_out(20), **FAST, certificate=False)
