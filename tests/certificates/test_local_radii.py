"""Radii from local bounds: exact where no unit switches, sound under attack; and every refusal."""

import json

import keras
import numpy as np
import pytest
from keras import layers as kl
from local_bound_models import images, perceptron

import dynzoo.layers as dl
from dynzoo import operators
from dynzoo.attacks import PGD
from dynzoo.backend import to_numpy
from dynzoo.certificates import StaleCertificateError, certify, forward_float64
from dynzoo.certificates.local.certificate import certify_local
from dynzoo.models import structured_classifier

# --- radii ---------------------------------------------------------------------------------


def test_radii_gain_on_a_dense_network_and_no_attack_breaks_them():
    model = perceptron((24, 24, 24), seed=2)
    x = images(8, (8,), seed=3)
    local = certify_local(model)
    labels, radii = local.radii(x)
    same, everywhere = certify(model).radii(x)
    np.testing.assert_array_equal(labels, same)
    assert np.all(radii >= everywhere)
    assert np.median(radii / everywhere) > 1.5
    broken = 0
    for row in range(len(x)):
        one, label = x[row : row + 1], labels[row : row + 1]
        for eps, inside in ((radii[row], True), (3 * radii[row], False)):
            points = PGD(eps=eps, steps=25, random_start=False)(model, one, label)
            fooled = forward_float64(model, points).argmax(1)[0] != label[0]
            assert not (inside and fooled)
            broken += fooled
    assert broken > len(x) / 3  # the attack is not a weak one


def test_radius_is_the_distance_to_the_boundary_where_no_unit_switches():
    model = perceptron((12,), seed=4)
    model.layers[0].bias.assign(np.where(np.arange(12) % 3 == 0, -50.0, 50.0))
    x = images(5, (8,))
    labels, radii = certify_local(model).radii(x)
    kernels = [to_numpy(layer.kernel).astype("float64") for layer in model.layers]
    on = np.arange(12) % 3 != 0
    product = (kernels[0] * on) @ kernels[1]
    z = forward_float64(model, x)
    for row, label in enumerate(labels):
        others = np.delete(np.arange(4), label)
        gaps = np.linalg.norm(product[:, [label]] - product[:, others], axis=0)
        exact = np.min((z[row, label] - z[row, others]) / gaps)
        assert exact * 0.98 < radii[row] <= exact


def test_a_structured_network_keeps_at_least_its_global_radii():
    model = structured_classifier(
        "nonexpansive",
        "published",
        input_shape=(4, 4, 1),
        num_classes=3,
        widths=(4,),
        convolutions=2,
        mean=(0.5,),
        deviation=(0.3,),
    )
    x = images(3, (4, 4, 1))
    _, everywhere = certify(model).radii(x)
    labels, radii = certify_local(model).radii(x)
    assert np.all(radii >= everywhere) and np.median(radii / everywhere) > 1.2
    points = PGD(eps=float(radii.min()), steps=20)(model, x, labels)
    np.testing.assert_array_equal(forward_float64(model, points).argmax(1), labels)


def test_radii_do_not_depend_on_the_batch_and_shrink_by_rounding_of_the_image():
    model, x = perceptron(), images(6, (8,))
    local = certify_local(model)
    labels, radii = local.radii(x)
    again = [local.radii(x[i : i + 1])[1][0] for i in range(6)]
    np.testing.assert_allclose(again, radii, rtol=1e-3)  # float32 logits
    wide = x.astype("float64") + 1e-9
    moved = np.linalg.norm(wide - wide.astype("float32"), axis=1)
    np.testing.assert_allclose(local.radii(wide)[1], radii - moved, rtol=1e-3)
    assert [len(a) for a in local.radii(x[:0])] == [0, 0]


def test_ties_have_radius_zero_and_constant_answers_a_vast_one():
    model = perceptron()
    head = model.layers[-1]
    head.kernel.assign(np.zeros(head.kernel.shape))
    head.bias.assign(np.zeros(4))
    assert np.all(certify_local(model).radii(images(2, (8,)))[1] == 0.0)
    head.bias.assign([1.0, 0.0, 0.0, 0.0])
    # nothing is claimed of images so large that float32 ends
    assert np.all(certify_local(model).radii(images(2, (8,)))[1] > 1e15)


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (kl.Dense(4, "tanh", name="bent"), "bent"),
        (kl.Activation("gelu", name="smooth"), "smooth"),
        (kl.ReLU(max_value=6.0, name="capped"), "capped"),
        (dl.SoftmaxGradientFlow(4, name="attending"), "attending"),
        (dl.GradientFlow(operators.Dense(4), "tanh", name="flow"), "flow"),
        (dl.GradientFlow(operators.Dense(4), integrator="rk4", name="rk"), "rk"),
    ],
)
def test_an_unsupported_layer_is_named(layer, name):
    model = keras.Sequential([keras.Input((8,)), layer, kl.Dense(3)])
    with pytest.raises(ValueError, match=f"Layer '{name}' of class .* has no local bound"):
        certify_local(model)


@pytest.mark.parametrize(
    ("operation", "name"), [(keras.ops.tanh, "Tanh"), (lambda x: keras.ops.max(x, 1), "Max")]
)
def test_an_unsupported_operation_is_named(operation, name):
    inputs = keras.Input((8, 3))
    model = keras.Model(inputs, kl.Dense(3)(kl.Flatten()(operation(inputs))))
    with pytest.raises(ValueError, match=f"of class `{name}` has no local bound"):
        certify_local(model)


def test_wrong_arguments_and_a_changed_model_are_refused():
    model = perceptron()
    with pytest.raises(ValueError, match="`iterations` must be"):
        certify_local(model, iterations=0)
    with pytest.raises(ValueError, match="`exact_units` must be"):
        certify_local(model, exact_units=-1)
    local = certify_local(model)
    with pytest.raises(ValueError, match="`radius` must be finite and above 0"):
        local.slopes(images(2, (8,)), 0.0)
    record = json.loads(json.dumps(local.to_dict()))
    assert record["type"] == "local" and record["lipschitz"] == local.lipschitz
    assert "LocalCertificate" in repr(local)
    model.layers[0].bias.assign(np.ones(16))
    with pytest.raises(StaleCertificateError):
        local.radii(images(2, (8,)))
    with pytest.raises(StaleCertificateError):
        local.slopes(images(2, (8,)), 0.1)
