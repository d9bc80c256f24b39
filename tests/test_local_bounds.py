"""Local bounds: sound against samples, pairs and attacks; exact where no unit switches."""

import functools
import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl

import dynzoo.layers as dl
from dynzoo import operators
from dynzoo.attacks import PGD
from dynzoo.backend import to_numpy
from dynzoo.certificates import StaleCertificateError, certify, forward_float64, local_relaxation
from dynzoo.certificates.audit import audit
from dynzoo.certificates.graph import trace
from dynzoo.certificates.local import certify_local
from dynzoo.certificates.local_layers import unroll
from dynzoo.certificates.local_ops import Affine
from dynzoo.certificates.local_relaxation import relax
from dynzoo.models import structured_classifier

SHAPE = (4, 4, 2)


def images(n=6, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, *shape)).astype("float32")


def randomize(model, seed):
    """Random values everywhere, so that biases and scales count."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.normal(scale=0.5, size=weight.shape)
        weight.assign(np.abs(value) + 0.2 if "variance" in weight.path else value)
    return model


def perceptron(units=(16, 16), inputs=8, classes=4, seed=0):
    keras.utils.set_random_seed(seed)
    hidden = [kl.Dense(n, "relu", kernel_initializer="he_normal") for n in units]
    model = keras.Sequential([keras.Input((inputs,)), *hidden, kl.Dense(classes)])
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        layer.bias.assign(rng.normal(scale=0.3, size=layer.bias.shape))
    return model


@functools.cache  # building it takes long on some backends; `randomize` makes it new
def build_everything():
    """One model with nearly all layers that are supported."""
    inputs = keras.Input(SHAPE)
    x = kl.Normalization(mean=[0.4, 0.5], variance=[0.1, 0.2])(inputs)
    x = kl.Conv2D(4, 3, strides=2, padding="same", use_bias=False)(x)
    x = kl.ReLU(negative_slope=0.1)(dl.LearnedScale()(x))
    y = kl.Conv2D(4, 2, padding="same", activation="relu")(kl.BatchNormalization()(x))
    x = kl.Add()([x, kl.Dropout(0.1)(y)])
    x = dl.GradientFlow(operators.Conv(3), constraint="spectral_norm", steps=2)(x)
    x = dl.GradientFlow(
        operators.Pointwise(3), constraint=None, step_size=0.3, direction="expansive"
    )(x)
    x = dl.SwitchingFlow(operators.ShiftedPointwise(4), mode="flexible")(x)
    x = dl.SwitchingFlow(operators.Conv(4), mode="prescribed")(x)
    x = kl.Flatten()(kl.MaxPooling2D(2)(x))
    x = kl.Subtract()([kl.Dense(5, "leaky_relu")(x), kl.Dense(5)(kl.Reshape((4,))(x))])
    return keras.Model(inputs, dl.UnitRowDense(3)(kl.LeakyReLU(0.3)(x)))


def everything(seed=0):
    return randomize(build_everything(), seed)


@functools.cache
def build_pooled():
    inputs = keras.Input(SHAPE)
    x = kl.Conv2D(3, 3, padding="same", activation="relu")(inputs)
    x = kl.AveragePooling2D(2)(kl.Rescaling(1.5, 0.1)(kl.Activation("relu")(x)))
    return keras.Model(inputs, kl.Dense(3)(kl.Flatten()(x)))


def pooled(seed=0):
    return randomize(build_pooled(), seed)


MODELS = {"everything": everything, "pooled": pooled, "perceptron": lambda seed=0: perceptron()}


def in_ball(center, radius, rng, count):
    """Points (count, n, ...) of the balls, a third of them on the sphere."""
    step = rng.standard_normal((count, *center.shape))
    share = np.minimum(1.0, 1.5 * rng.uniform(size=(count, len(center))))
    lengths = np.linalg.norm(step.reshape(count, len(center), -1), axis=2)
    return center + step * (share * radius / lengths).reshape(
        *lengths.shape, *step[0, 0].ndim * [1]
    )


def assert_encloses(model, seed, anywhere, exact_units, radius):
    """Linear bounds hold for random movements, and for those that lower each row fastest."""
    rng = np.random.default_rng(seed)
    unrolled = unroll(trace(model))
    x = images(3, model.input_shape[1:], seed).astype("float64")
    bounds = relax(unrolled, unrolled.values(x), np.full(3, radius), exact_units, anywhere)
    rows = rng.standard_normal((3, 5, model.output_shape[1]))
    slope, slack = bounds.lower(rows)
    assert np.all(slope >= 0) and np.all(slack >= 0)
    assert not anywhere or np.all(slack == 0)
    down = -np.stack(
        [gradient(model, image, g.T) for image, g in zip(x, rows, strict=True)], axis=1
    )
    lengths = np.linalg.norm(down.reshape(5, 3, -1), axis=2).reshape(5, 3, *(1,) * (x.ndim - 1))
    ends = np.concatenate([x + radius * down / lengths, in_ball(x, radius, rng, 20)])
    starts = in_ball(x, radius, rng, len(ends)) if anywhere else np.broadcast_to(x, ends.shape)
    both = np.concatenate([ends, starts]).reshape(-1, *x.shape[1:])
    logits = forward_float64(model, both).reshape(2, *ends.shape[:2], -1)
    apart = np.linalg.norm((ends - starts).reshape(len(ends), 3, -1), axis=2)[..., None]
    values = [unrolled.values(both.reshape(2, -1, *x.shape[1:])[k]) for k in (0, 1)]
    for slot, switch in bounds._switches.items():
        source = next(node.inputs[0] for node in unrolled.nodes if node.output == slot)
        z = [v[source].reshape(-1, *switch.z.shape) for v in values]
        assert switch.down.shape == switch.up.shape == switch.z.shape
        assert np.all(z[0] >= switch.z - switch.down) and np.all(z[0] <= switch.z + switch.up)
        far = np.linalg.norm((z[0] - switch.z).reshape(len(ends), 3, -1), axis=2)
        assert np.all(far <= switch.norm * (1 + 1e-9) + 1e-12)
    found = np.einsum("nqk,tnk->tnq", rows, logits[0] - logits[1])
    assert np.all(found >= -(slope * apart + slack) - 1e-9)
    return slope, slack


def gradient(model, x, directions):
    """Of the logits along one direction (K,) or several (K, q), by central differences."""
    steps = 1e-6 * np.eye(x.size).reshape(x.size, *x.shape)
    ends = forward_float64(model, np.concatenate([x + steps, x - steps]))
    slopes = (ends[: x.size] - ends[x.size :]) @ directions / 2e-6
    return slopes.T.reshape(*directions.shape[1:], *x.shape)


# --- the rewriting -------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_unrolled_model_is_the_model_and_its_adjoints_and_norms_are_right(name):
    model = MODELS[name]()
    unrolled, rng = unroll(trace(model)), np.random.default_rng(0)
    x = images(3, model.input_shape[1:]).astype("float64")
    np.testing.assert_allclose(unrolled.values(x)[-1], forward_float64(model, x), atol=1e-12)
    seen = 0
    for node in unrolled.nodes:
        if not isinstance(node.op, Affine):
            continue
        seen += 1
        a, b = rng.standard_normal((2, 4, *unrolled.shapes[node.inputs[0]]))
        y = rng.standard_normal((4, *unrolled.shapes[node.output]))
        moved = node.op.forward(a) - node.op.forward(b)
        np.testing.assert_allclose(
            np.sum(moved * y), np.sum((a - b) * node.op.adjoint(y)), rtol=1e-9, atol=1e-9
        )
        length = np.linalg.norm((a - b).reshape(4, -1), axis=1)
        assert np.all(
            np.linalg.norm(moved.reshape(4, -1), axis=1) <= node.op.norm * length * (1 + 1e-9)
        )
        spread = node.op.spread(length, np.abs(a - b))
        assert np.all(np.abs(moved) <= spread * (1 + 1e-9) + 1e-12)
        # One entry of the input alone must fit, too: rows are bounded by their own norms.
        one = np.zeros_like(a)
        one.reshape(4, -1)[:, 0] = 1.0
        moved = node.op.forward(one) - node.op.forward(np.zeros_like(a))
        assert np.all(np.abs(moved) <= node.op.spread(np.ones(4), one) * (1 + 1e-9) + 1e-12)
    assert seen >= 2


# --- soundness -----------------------------------------------------------------------------


@settings(max_examples=8)
@given(
    name=st.sampled_from(sorted(MODELS)),
    seed=st.integers(0, 999),
    anywhere=st.booleans(),
    exact_units=st.sampled_from([0, 512]),
    radius=st.sampled_from([1e-3, 0.05, 0.3, 2.0]),
)
def test_linear_bounds_enclose_the_model(name, seed, anywhere, exact_units, radius):
    assert_encloses(MODELS[name](seed), seed, anywhere, exact_units, radius)


@pytest.mark.parametrize("anywhere", [False, True])
def test_a_movement_that_all_pixels_share_is_counted_in_full(anywhere):
    """All entries move together: the L2 norm of the movement is far above that of any entry."""
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), kl.Conv2D(2, 3, activation="relu"), kl.Flatten(), kl.Dense(2)]
    )
    model.layers[0].kernel.assign(np.full((3, 3, 1, 2), 1 / 3))
    unrolled = unroll(trace(model))
    x = np.full((1, 6, 6, 1), 0.5)
    bounds = relax(unrolled, unrolled.values(x), np.array([0.6]), 0, anywhere)
    (switch,) = bounds._switches.values()
    moved = unrolled.values(x + 0.1)[1] - unrolled.values(x)[1]
    assert np.linalg.norm(moved) <= switch.norm[0]
    assert np.all(np.abs(moved) <= switch.up)


def test_units_that_are_forgotten_are_caught(monkeypatch):
    """Takes every unit for fixed: the soundness check of this file must then fail."""
    never = property(lambda self: np.zeros_like(self.z, bool))
    assert_encloses(perceptron(), 0, False, 512, 2.0)
    monkeypatch.setattr(local_relaxation._Switch, "open", never)
    with pytest.raises(AssertionError):
        assert_encloses(perceptron(), 0, False, 512, 2.0)


def test_exact_units_tighten_and_bounds_grow_with_the_ball():
    model = perceptron((16, 16, 16))
    sizes = {}
    for exact_units in (0, 512):
        for radius in (0.01, 0.1, 0.5):
            slope, _ = assert_encloses(model, 1, True, exact_units, radius)
            sizes[exact_units, radius] = slope
    for radius in (0.01, 0.1, 0.5):
        assert sizes[512, radius].mean() <= sizes[0, radius].mean()
    assert sizes[512, 0.5].mean() > sizes[512, 0.1].mean() >= sizes[512, 0.01].mean()


@pytest.mark.parametrize("name", ["perceptron", "pooled"])
def test_slopes_stay_above_what_the_audit_measures_in_the_ball(name):
    model = MODELS[name]()
    x = images(8, model.input_shape[1:])
    found = audit(model, x, pairs=12, steps=20, restarts=1)
    middle = (found.pairs[0] + found.pairs[1]) / 2
    radius = np.linalg.norm((found.pairs[0] - found.pairs[1]).ravel()) / 2 * (1 + 1e-6)
    slopes = certify_local(model).slopes(middle[None], radius)[0]
    moved = forward_float64(model, np.stack(found.pairs))
    gaps = np.subtract.outer(moved[0] - moved[1], moved[0] - moved[1]) / (2 * radius)
    assert np.all(np.abs(gaps) <= slopes + 1e-9)
    np.testing.assert_array_equal(slopes, slopes.T)
    result = certify(model)
    everywhere = result.body_lipschitz * result.pair_distances
    assert np.all(slopes <= everywhere) and np.any(slopes < 0.9 * everywhere)
    # In a ball without a switch the bound is the norm of the gradient itself.
    tiny = certify_local(model).slopes(x[:1], 1e-6)[0]
    own = gradient(model, x[0].astype("float64"), np.eye(len(tiny))[0] - np.eye(len(tiny))[1])
    assert tiny[0, 1] == pytest.approx(np.linalg.norm(own), rel=1e-4)


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


def test_ties_have_radius_zero_and_constant_answers_an_infinite_one():
    model = perceptron()
    head = model.layers[-1]
    head.kernel.assign(np.zeros(head.kernel.shape))
    head.bias.assign(np.zeros(4))
    assert np.all(certify_local(model).radii(images(2, (8,)))[1] == 0.0)
    head.bias.assign([1.0, 0.0, 0.0, 0.0])
    assert np.all(certify_local(model).radii(images(2, (8,)))[1] == np.inf)


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (kl.Dense(4, "tanh", name="bent"), "bent"),
        (kl.Activation("gelu", name="smooth"), "smooth"),
        (kl.ReLU(max_value=6.0, name="capped"), "capped"),
        (dl.MaxMin(name="sorted"), "sorted"),
        (dl.GradientFlow(operators.Dense(4), "tanh", name="flow"), "flow"),
        (dl.GradientFlow(operators.Dense(4), integrator="rk4", name="rk"), "rk"),
    ],
)
def test_an_unsupported_layer_is_named(layer, name):
    model = keras.Sequential([keras.Input((8,)), layer, kl.Dense(3)])
    with pytest.raises(ValueError, match=f"Layer '{name}' of class .* has no local bound"):
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
