"""The audit: it finds what is there on models with a known constant, and refutes wrong claims."""

import functools
import json
import types

import keras
import numpy as np
import pytest
from keras import layers as kl
from robustness_fixtures import centroids, held_out
from robustness_fixtures import ridge as new_ridge

import dynzoo.layers as dl
from dynzoo import operators
from dynzoo.certificates import ReferenceMismatchError, certify, forward_float64
from dynzoo.certificates.audit import Audit, AuditViolation, audit
from dynzoo.robustness import report as page

FEW = {"pairs": 16, "steps": 40, "restarts": 1}


@keras.saving.register_keras_serializable(package="test_audit")
class Optimist(kl.Layer):
    """Doubles its input and claims to keep distances."""

    def call(self, x):
        return 2.0 * x

    def call_float64(self, x):
        return 2.0 * np.asarray(x, np.float64)

    def lipschitz_bound(self, input_shape):
        return 1.0


@functools.cache  # one model, compiled once
def ridge():
    return new_ridge()


@functools.cache
def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            kl.Conv2D(4, 3, padding="same", activation="relu"),
            kl.MaxPooling2D(2),
            kl.Flatten(),
            kl.Dense(8, activation="tanh"),
            kl.Dense(3),
        ]
    )


def slope_of(model, pair):
    moved = forward_float64(model, np.stack(pair))
    return np.linalg.norm(moved[0] - moved[1]) / np.linalg.norm((pair[0] - pair[1]).ravel())


def claim(lipschitz, **more):
    return types.SimpleNamespace(lipschitz=lipschitz, **more)


def test_linear_model_gives_its_spectral_norm_and_the_distance_of_its_worst_classes():
    model = ridge()
    kernel = model.layers[0].get_weights()[0].astype("float64")
    result = audit(model, held_out()[0], pairs=16, steps=60, restarts=1)
    assert isinstance(result, Audit) and result.precision == "float64"
    assert result.slope == pytest.approx(np.linalg.norm(kernel, 2), rel=1e-4)
    i, j = result.classes
    own = np.linalg.norm(kernel[:, i] - kernel[:, j])
    assert result.class_slope == pytest.approx(own, rel=1e-4)
    assert result.class_bound == pytest.approx(own, rel=1e-6)
    assert 0.9999 < result.tightness <= 1.0 and 0.9999 < result.class_tightness <= 1.0


def test_a_bound_that_is_two_percent_too_small_is_refuted_and_the_pair_is_kept(tmp_path):
    model = ridge()
    right = certify(model)
    with pytest.raises(AuditViolation, match="not valid") as caught:
        audit(model, certificate=claim(0.98 * right.lipschitz), **FEW)
    error = caught.value
    assert error.classes is None and error.slope > error.bound
    error.save(tmp_path / "pair.npz")
    with np.load(tmp_path / "pair.npz") as kept:
        assert slope_of(model, (kept["x"], kept["x_other"])) > float(kept["bound"])
        assert float(kept["slope"]) == error.slope and kept["classes"].size == 0


def test_a_wrong_distance_of_two_classes_is_refuted_by_name():
    model = ridge()
    right = certify(model)
    distances = right.pair_distances.copy()
    distances[2, 7] = distances[7, 2] = 0.5 * distances[2, 7]
    wrong = claim(right.lipschitz, body_lipschitz=1.0, pair_distances=distances)
    with pytest.raises(AuditViolation, match="logits 2 minus 7") as caught:
        audit(model, certificate=wrong, pairs=64, steps=10, restarts=1)
    x, other = caught.value.pair
    moved = forward_float64(model, np.stack([x, other]))
    gap = abs((moved[0] - moved[1]) @ (np.eye(10)[2] - np.eye(10)[7]))
    assert gap / np.linalg.norm(x - other) > distances[2, 7]


def test_a_layer_that_claims_half_of_its_constant_is_refuted():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((9,)), Optimist(), kl.Dense(4)])
    with pytest.raises(AuditViolation):
        audit(model, **FEW)


def test_a_network_stays_below_its_bound_and_the_search_beats_its_jacobians():
    model = network()
    x = np.random.default_rng(1).uniform(size=(12, 6, 6, 2)).astype("float32")
    result = audit(model, x, **FEW)
    assert result.slope <= result.bound == certify(model).lipschitz
    assert result.slope <= slope_of(model, result.pairs) <= result.slope * (1 + 1e-6)
    steps = 1e-6 * np.eye(72).reshape(72, 6, 6, 2)
    norms = [
        np.linalg.norm(
            (forward_float64(model, image + steps) - forward_float64(model, image - steps)) / 2e-6,
            ord=2,
        )
        for image in x.astype("float64")
    ]
    assert result.slope > 0.99 * max(norms)


def test_result_is_a_function_of_the_seed_and_runs_add_up():
    model = network()
    first = audit(model, pairs=16, steps=10, restarts=1, seed=3)
    again = audit(model, pairs=16, steps=10, restarts=1, seed=3)
    assert first.to_dict() == again.to_dict()
    other = audit(model, pairs=16, steps=10, restarts=1, seed=4)
    assert first.slope != other.slope
    longer = audit(model, pairs=16, steps=10, restarts=3, seed=3)
    assert longer.slope >= 0.98 * first.slope


def test_orthonormal_network_needs_most_of_its_bound():
    keras.utils.set_random_seed(0)
    flow = dl.GradientFlow(operators.Dense(6), step_size="maximal", seed=1)
    layers = [keras.Input((12,)), flow, dl.MaxMin(), dl.UnitRowDense(4, seed=2)]
    model = keras.Sequential(layers)
    result = audit(model, **FEW)
    assert 0.999 < result.tightness <= 1.0
    assert 0.999 < result.class_tightness <= 1.0


def test_model_without_a_float64_twin_is_judged_in_float32_with_an_allowance():
    model = centroids()  # each logit is 1-Lipschitz, ten of them sqrt(10) at most
    result = audit(model, held_out()[0], certificate=claim(np.sqrt(10.0)), **FEW)
    assert result.precision == "float32" and result.classes is None
    assert 0.5 < result.tightness <= 1.0
    assert result.class_tightness is None
    with pytest.raises(AuditViolation):
        audit(model, held_out()[0], certificate=claim(0.9 * result.slope), **FEW)


def test_a_constant_model_has_slope_zero():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, kernel_initializer="zeros")])
    result = audit(model, pairs=4, steps=2, restarts=2)
    assert result.slope == result.bound == 0.0 and result.tightness == 1.0


def test_result_is_plain_data_and_a_section_of_the_report():
    result = audit(ridge(), pairs=16, steps=5, restarts=1)
    record = json.loads(json.dumps(result.to_dict()))
    assert record["tightness"] == result.tightness and record["steps"] == 5
    heading, content = result.section()
    assert "udit" in heading
    assert f"{100 * result.tightness:.1f} %" in page._content(content, "Audit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": 0}, "`pairs` must be a positive integer"),
        ({"steps": 1.5}, "`steps` must be"),
        ({"restarts": 0}, "`restarts` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"x": np.zeros((1, 64), "float32")}, "at least 2 float images"),
        ({"x": np.zeros((5, 63), "float32")}, "of shape"),
        ({"x": np.zeros((5, 64), "uint8")}, "uint8"),
        ({"x": np.full((5, 64), np.nan, "float32")}, "finite"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        audit(ridge(), **arguments)


def test_a_float64_twin_that_computes_something_else_is_noticed():
    class Hypocrite(Optimist):
        def call_float64(self, x):
            return np.asarray(x, np.float64)

        def lipschitz_bound(self, input_shape):
            return 1.0

    model = keras.Sequential([keras.Input((9,)), Hypocrite(), kl.Dense(4)])
    with pytest.raises(ReferenceMismatchError):
        audit(model, **FEW)
