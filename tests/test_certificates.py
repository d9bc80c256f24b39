"""Certificates of whole graphs: soundness on random networks, radii, and every refusal."""

import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl
from keras import ops

import dynzoo.layers as dl
from dynzoo.backend import to_numpy
from dynzoo.certificates import (
    ReferenceMismatchError,
    StaleCertificateError,
    UncertifiableLayerError,
    certify,
    forward_float64,
    rounding,
    rules,
)
from dynzoo.models.isometric import isometric_classifier

SHAPE = (4, 4, 2)
CLASSES = 3


def images(n=12, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, *shape)).astype("float32")


def randomize(model, seed=0):
    """Random values everywhere, biases and moving averages too."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.normal(scale=0.6, size=weight.shape)
        weight.assign(np.abs(value) + 0.2 if "variance" in weight.path else value)
    return model


def classifier(*layers, shape=SHAPE, seed=0):
    return randomize(keras.Sequential([keras.Input(shape), *layers]), seed)


def linear(kernel, bias):
    model = keras.Sequential([keras.Input((len(kernel),)), kl.Dense(len(bias))])
    model.set_weights([np.asarray(kernel, "float32"), np.asarray(bias, "float32")])
    return model


def worst_gain(model, seed=0, points=3):
    """Largest measured |f(x) - f(y)| / |x - y|: random pairs, and along singular directions."""
    rng = np.random.default_rng(seed)
    shape = model.input_shape[1:]
    x, y = rng.normal(size=(2, 40, *shape))
    y[20:] = x[20:] + 1e-3 * y[20:]
    moved = np.linalg.norm(forward_float64(model, x) - forward_float64(model, y), axis=1)
    gains = [moved / np.linalg.norm((x - y).reshape(40, -1), axis=1)]
    size = int(np.prod(shape))
    step = (1e-6 * np.eye(size)).reshape(size, *shape)
    for point in x[:points]:
        ahead, behind = forward_float64(model, point + step), forward_float64(model, point - step)
        gains.append([np.linalg.norm((ahead - behind) / 2e-6, ord=2)])
    return float(np.max(np.concatenate(gains)))


def assert_sound(model, seed=0):
    bound = certify(model).lipschitz
    measured = worst_gain(model, seed)
    assert measured <= bound * (1 + 1e-6)
    x = images(5, model.input_shape[1:], seed)
    computed = to_numpy(model(x, training=False))
    reference = forward_float64(model, x)
    scale = max(1.0, float(np.max(np.abs(reference))))
    np.testing.assert_allclose(computed, reference, atol=1e-5 * scale)
    return measured / bound


# --- soundness -----------------------------------------------------------------------------

SAME_SIZE = ["conv", "relu", "gelu", "norm", "depthwise", "shared", "residual", "maximum", "nested"]


def grow(x, kind, shared, seed):
    """One more piece of a random network; keeps the shape (4, 4, 2)."""
    if kind == "conv":
        return kl.Conv2D(2, 3, padding="same", activation="leaky_relu")(x)
    if kind == "relu":
        return kl.ReLU()(x)
    if kind == "gelu":
        return kl.Activation("gelu")(x)
    if kind == "norm":
        return kl.BatchNormalization()(kl.Dropout(0.3)(x))
    if kind == "depthwise":
        return kl.DepthwiseConv2D(3, padding="same")(x)
    if kind == "shared":
        return shared(shared(x))
    if kind == "residual":
        return kl.Add()([x, kl.Conv2D(2, 1, activation="tanh")(x)])
    if kind == "maximum":
        return kl.Maximum()([kl.Dense(2)(x), shared(x)])
    inner = keras.Input(SHAPE)
    both = kl.Concatenate()([kl.Conv2D(1, 3, padding="same")(inner), kl.Dense(1)(inner)])
    return keras.Model(inner, both, name=f"nested_{seed}")(x)


@settings(max_examples=8)
@given(kinds=st.lists(st.sampled_from(SAME_SIZE), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_no_pair_moves_faster_than_the_bound(kinds, seed):
    inputs = keras.Input(SHAPE)
    shared = kl.Conv2D(2, 2, padding="same")
    x = inputs
    for i, kind in enumerate(kinds):
        x = grow(x, kind, shared, i)
    x = kl.MaxPooling2D(2)(x) if seed % 2 else kl.AveragePooling2D(2)(x)
    model = randomize(keras.Model(inputs, kl.Dense(CLASSES)(kl.Flatten()(x))), seed)
    assert_sound(model, seed)


def test_chain_of_linear_layers_that_share_a_singular_vector_is_tight():
    model = classifier(kl.Flatten(), kl.Dense(8), kl.Dense(CLASSES))
    first, second = model.layers[1], model.layers[2]
    u, _, _ = np.linalg.svd(to_numpy(second.kernel))
    first.kernel.assign(np.linalg.qr(np.random.default_rng(0).normal(size=(32, 8)))[0] @ u.T)
    assert assert_sound(model) > 0.999


def test_bounds_combine_as_stated():
    inputs = keras.Input((4,))
    a, b = kl.Dense(5, name="a")(inputs), kl.Dense(5, name="b")(inputs)
    joined = [
        kl.Add(name="add")([a, b]),
        kl.Average(name="average")([a, b]),
        kl.Subtract(name="subtract")([a, b]),
        kl.Concatenate(name="beside")([a, b]),
        kl.Minimum(name="minimum")([a, b]),
    ]
    model = keras.Model(inputs, kl.Concatenate()(joined))
    randomize(model)
    rows = {row.name: row for row in certify(model).layers}
    na, nb = (np.linalg.norm(to_numpy(model.get_layer(n).kernel), 2) for n in "ab")
    root = np.hypot(na, nb)
    expected = {"add": na + nb, "average": (na + nb) / 2, "subtract": na + nb}
    expected |= {"beside": root, "minimum": root}
    for name, value in expected.items():
        assert rows[name].gain is None
        assert rows[name].bound == pytest.approx(value, rel=1e-6)
    assert_sound(model)


def test_shared_and_nested_layers_count_at_every_call():
    inner = keras.Sequential([keras.Input((6,)), kl.Dense(6, name="shared")], name="inner")
    inputs = keras.Input((6,))
    model = randomize(keras.Model(inputs, kl.Dense(CLASSES, name="head")(inner(inner(inputs)))))
    result = certify(model)
    norm = np.linalg.norm(to_numpy(inner.layers[0].kernel), 2)
    assert [row.name for row in result.layers] == ["inner/shared", "inner/shared", "head"]
    assert result.body_lipschitz == pytest.approx(norm**2, rel=1e-6)
    assert_sound(model)


def test_head_inside_a_nested_model_and_before_a_dropout_is_found():
    inner = keras.Sequential([keras.Input((6,)), kl.Dense(CLASSES)], name="inner")
    inputs = keras.Input((6,))
    model = randomize(keras.Model(inputs, kl.Dropout(0.1)(inner(inputs))))
    kernel = to_numpy(inner.layers[0].kernel)
    distance = np.linalg.norm(kernel[:, 0] - kernel[:, 2])
    assert certify(model).pair_distances[0, 2] == pytest.approx(distance, rel=1e-6)
    bent = classifier(kl.Flatten(), kl.Dense(CLASSES, activation="tanh"))
    assert certify(bent).pair_distances[0, 1] == pytest.approx(np.sqrt(2))


def test_dynzoo_classifier_is_one_lipschitz_and_every_pair_obeys():
    model = isometric_classifier(
        (8, 8, 3), 4, widths=(16,), steps=(1,), neck_units=16, dense_steps=1
    )
    result = certify(model)
    assert 0.99 < result.body_lipschitz < 1.001
    assert worst_gain(model, points=1) <= result.lipschitz
    head = model.get_layer("head").effective_kernel()
    assert result.pair_distances[1, 3] == pytest.approx(np.linalg.norm(head[:, 1] - head[:, 3]))
    _, radii = result.radii(images(6, (8, 8, 3)))
    assert np.all(radii >= 0) and np.any(radii > 0)


def test_a_bound_that_is_too_small_is_caught(monkeypatch):
    """Quarters the constant of Dense: the soundness check of this file must then fail."""
    model = classifier(kl.Flatten(), kl.Dense(8), kl.Dense(CLASSES))
    assert_sound(model)
    right = rules._RULES[kl.Dense]
    quartered = right._replace(gain=lambda layer, shape: 0.25 * right.gain(layer, shape))
    monkeypatch.setitem(rules._RULES, kl.Dense, quartered)
    with pytest.raises(AssertionError):
        assert_sound(model)


# --- radii ---------------------------------------------------------------------------------


def test_radius_of_a_linear_model_is_the_distance_to_its_boundary():
    kernel = np.random.default_rng(1).normal(size=(6, 4))
    model = linear(kernel, [0.1, 0.2, 0.3, 0.4])
    x = images(30, (6,))
    labels, radii = certify(model).radii(x, batch_size=7)
    z = x @ kernel + [0.1, 0.2, 0.3, 0.4]
    assert labels.dtype == np.int64 and radii.dtype == np.float64
    np.testing.assert_array_equal(labels, z.argmax(1))
    for row, label, radius, logits in zip(x, labels, radii, z, strict=True):
        others = [j for j in range(4) if j != label]
        gaps = [np.linalg.norm(kernel[:, label] - kernel[:, j]) for j in others]
        nearest = int(np.argmin([(logits[label] - logits[j]) for j in others] / np.array(gaps)))
        distance = (logits[label] - logits[others[nearest]]) / gaps[nearest]
        assert radius <= distance
        assert radius == pytest.approx(distance, abs=1e-4)
        direction = (kernel[:, others[nearest]] - kernel[:, label]) / gaps[nearest]
        for factor, same in ((0.999, True), (1.001, False)):
            moved = (row + factor * max(radius, distance) * direction).astype("float32")
            if distance > 1e-2:
                assert (to_numpy(model(moved[None])).argmax() == label) is np.bool_(same)


@settings(max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_nothing_inside_the_radius_changes_the_answer(seed):
    model = classifier(
        kl.Conv2D(3, 3, padding="same", activation="relu"),
        kl.Flatten(),
        kl.Dense(CLASSES),
        seed=seed,
    )
    x = images(6, seed=seed)
    labels, radii = certify(model).radii(x)
    rng = np.random.default_rng(seed)
    for _ in range(10):
        noise = rng.normal(size=x.shape)
        noise *= (radii / np.linalg.norm(noise.reshape(6, -1), axis=1))[:, None, None, None]
        moved = forward_float64(model, x + noise).argmax(1)
        assert np.all((moved == labels) | (radii == 0))


def test_ties_have_radius_zero():
    _, radii = certify(linear(np.eye(3), np.zeros(3))).radii(np.full((4, 3), 0.5, "float32"))
    np.testing.assert_array_equal(radii, 0.0)
    _, radii = certify(linear(np.zeros((3, 3)), np.zeros(3))).radii(images(4, (3,)))
    np.testing.assert_array_equal(radii, 0.0)


def test_margins_within_rounding_are_not_certified():
    result = certify(linear(np.eye(3), np.zeros(3)))
    x = np.full((2, 3), 0.5, "float32")
    x[0, 0] += 2 * result.rounding
    x[1, 0] += 8 * result.rounding
    _, radii = result.radii(x)
    assert radii[0] == 0 and radii[1] > 0


def test_classes_with_the_same_weights_set_no_limit():
    kernel = np.array([[1.0, 1.0, -1.0], [0.5, 0.5, 2.0]])
    model = linear(kernel, [1.0, 0.0, 0.0])
    x = np.array([[1.0, 0.5]], "float32")
    _, radii = certify(model).radii(x)
    z = x[0] @ kernel + [1.0, 0.0, 0.0]
    expected = (z[0] - z[2]) / np.linalg.norm(kernel[:, 0] - kernel[:, 2])
    assert radii[0] == pytest.approx(expected, rel=1e-4)
    tied = linear(kernel, [0.0, 0.0, 0.0])
    assert certify(tied).radii(x)[1][0] == 0.0
    constant = linear(np.ones((2, 3)), [1.0, 0.0, 0.0])
    assert certify(constant).radii(x)[1][0] == np.inf


def test_logits_that_are_not_finite_have_radius_zero():
    x = images(5, (3,))
    x[1, 0], x[3, 2] = np.nan, np.inf
    _, radii = certify(linear(np.eye(3), [5.0, 0.0, 0.0])).radii(x)
    assert radii[1] == radii[3] == 0.0
    assert np.all(radii[[0, 2, 4]] > 0)


def test_radii_shrink_when_the_image_must_be_rounded():
    result = certify(linear(np.eye(3), [3.0, 0.0, 0.0]))
    x = images(4, (3,)).astype("float64") + 1e-9
    moved = np.linalg.norm(x - x.astype("float32"), axis=1)
    np.testing.assert_allclose(
        result.radii(x)[1], result.radii(x.astype("float32"))[1] - moved, rtol=1e-12
    )


def test_radii_are_the_same_in_every_batch_size_and_call():
    model = classifier(kl.Flatten(), kl.Dense(8, activation="relu"), kl.Dense(CLASSES))
    result, x = certify(model), images(16)
    labels, radii = result.radii(x)
    for batch_size in (3, 8, 16):
        again = result.radii(x, batch_size=batch_size)
        np.testing.assert_array_equal(again[0], labels)
        np.testing.assert_allclose(again[1], radii, atol=1e-5)
    fresh = certify(model).radii(x, batch_size=4)
    np.testing.assert_allclose(fresh[1], radii, atol=1e-5)
    assert [len(a) for a in result.radii(x[:0])] == [0, 0]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 4, 4, 2), "uint8"), "divide uint8 images by 255"),
        (np.zeros((2, 4, 4, 2), "int64"), "float images"),
        (np.zeros((4, 4, 2), "float32"), "must have shape"),
        (np.zeros((2, 5, 4, 2), "float32"), "must have shape"),
    ],
)
def test_wrong_images_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        certify(classifier(kl.Flatten(), kl.Dense(CLASSES))).radii(x)


def test_a_changed_model_makes_the_certificate_stale():
    model = classifier(kl.Flatten(), kl.Dense(CLASSES))
    result = certify(model)
    result.radii(images(2))
    kept = model.get_weights()
    model.layers[1].bias.assign([0.1, 0.2, 0.3])
    with pytest.raises(StaleCertificateError, match="Certify it again"):
        result.radii(images(2))
    model.set_weights(kept)
    result.radii(images(2))
    model.add(kl.Dense(CLASSES))
    with pytest.raises(StaleCertificateError, match="other layers"):
        result.radii(images(2))


def test_certificate_is_plain_data_and_says_where_the_bound_comes_from():
    model = classifier(kl.Flatten(), kl.Dense(8, activation="relu"), kl.Dense(CLASSES))
    result = certify(model)
    record = json.loads(json.dumps(result.to_dict()))
    assert record["lipschitz"] == result.lipschitz
    assert record["weights_sha256"] == certify(model).weights_sha256
    assert record["rounding"]["tau"] == result.rounding > 0
    assert [row["class_name"] for row in record["layers"]] == ["Flatten", "Dense", "Dense"]
    gains = np.prod([row["gain"] for row in record["layers"]])
    assert gains == pytest.approx(result.lipschitz)
    assert "lipschitz=" in repr(result) and len(repr(result)) < 120


def test_float64_models_get_the_margin_of_what_the_backend_computes():
    if keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless it is switched on before anything runs")

    def build(dtype):
        inputs = keras.Input((6,), dtype=dtype)
        return randomize(keras.Model(inputs, kl.Dense(CLASSES, dtype=dtype)(inputs)))

    narrow, wide = certify(build("float32")).rounding, certify(build("float64")).rounding
    # PyTorch under Keras computes some of a float64 model in float32, which the margin sees
    limit = 1e-6 if keras.backend.backend() == "tensorflow" else 2.0
    assert 0 < wide < limit * narrow


# --- refusals ------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="dynzoo_tests")
class Doubling(keras.layers.Layer):
    """States its own bound; `wrong` makes the float64 reference another function."""

    wrong = False

    def call(self, x):
        return 2.0 * x

    def call_float64(self, x):
        return 2.1 * x if self.wrong else 2.0 * x

    def lipschitz_bound(self, input_shape):
        return 2.0


class Tripling(Doubling):
    """Overrides what it computes, but not what it states."""

    def call(self, x):
        return 3.0 * x


class Silent(kl.Dense):
    """A subclass of a known layer."""


def test_a_layer_may_state_its_own_bound():
    model = classifier(Doubling(), kl.Flatten(), kl.Dense(CLASSES))
    assert certify(model).body_lipschitz == pytest.approx(2.0)
    assert_sound(model)


def test_a_reference_that_is_not_the_layer_is_caught(monkeypatch):
    model = classifier(Doubling(), kl.Flatten(), kl.Dense(CLASSES))
    monkeypatch.setattr(Doubling, "wrong", True)
    with pytest.raises(ReferenceMismatchError, match="call_float64"):
        certify(model).radii(images(4))


@pytest.mark.parametrize(
    "layer",
    [Tripling(name="odd"), Silent(3, name="odd"), kl.LayerNormalization(name="odd")],
    ids=["overridden", "subclass", "unknown"],
)
def test_an_unknown_layer_is_named(layer):
    with pytest.raises(UncertifiableLayerError, match="'odd'.*lipschitz_bound") as error:
        certify(classifier(layer, kl.Flatten(), kl.Dense(CLASSES)))
    assert error.value.class_name == type(layer).__name__
    assert isinstance(error.value, ValueError)


def functional(end, shape=(6,), **kwargs):
    inputs = keras.Input(shape, **kwargs)
    return keras.Model(inputs, end(inputs))


REFUSALS = {
    "unbuilt": (lambda: keras.Sequential([kl.Dense(3)]), "not built"),
    "not a model": (lambda: kl.Dense(3), "must be a keras.Model"),
    "softmax head": (lambda: functional(kl.Dense(3, activation="softmax")), "softmax"),
    "softmax layer": (lambda: functional(lambda x: kl.Softmax()(kl.Dense(3)(x))), "softmax"),
    "one logit": (lambda: functional(kl.Dense(1)), "K >= 2"),
    "map of logits": (lambda: functional(kl.Dense(3), (4, 4, 3)), "logits of shape"),
    "two outputs": (lambda: functional(lambda x: [kl.Dense(3)(x), kl.Dense(2)(x)]), "one output"),
    "free size": (
        lambda: functional(lambda x: kl.GlobalMaxPooling2D()(kl.Conv2D(3, 3)(x)), (None, None, 3)),
        "fixed input shape",
    ),
    "bare operation": (lambda: functional(lambda x: kl.Dense(3)(x + 1.0)), "bare operation"),
    "training dropout": (
        lambda: functional(lambda x: kl.Dense(3)(kl.Dropout(0.5)(x, training=True))),
        "training=True",
    ),
    "integer input": (
        lambda: functional(lambda x: kl.Dense(3)(kl.Rescaling(1 / 255)(x)), dtype="uint8"),
        "integer image",
    ),
    "bfloat16": (
        lambda: functional(lambda x: kl.Dense(3)(kl.Dense(4, dtype="mixed_bfloat16")(x))),
        "mixed_bfloat16.*certificate would not hold",
    ),
    "float16": (lambda: functional(kl.Dense(3, dtype="float16")), "float16"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_models_that_have_no_certificate_are_refused(name):
    make, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        certify(make())


def test_two_inputs_are_refused():
    a, b = keras.Input((3,)), keras.Input((3,))
    with pytest.raises(ValueError, match="one input"):
        certify(keras.Model([a, b], kl.Add()([a, b])))


def test_weights_that_are_not_finite_are_refused():
    model = linear(np.full((3, 3), np.nan), np.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        certify(model)


def test_a_forward_pass_outside_the_graph_is_refused():
    class Louder(keras.Model):
        def call(self, x, training=None):
            return 10.0 * super().call(x)

    inputs = keras.Input((3,))
    with pytest.raises(ValueError, match="hides its graph"):
        certify(Louder(inputs, kl.Dense(3)(inputs)))


def test_training_code_in_a_subclass_is_fine():
    class Trained(keras.Model):
        def train_step(self, *args):
            return super().train_step(*args)

    inputs = keras.Input((3,))
    assert certify(Trained(inputs, kl.Dense(3)(inputs))).lipschitz > 0


def test_a_stated_bound_must_be_a_number(monkeypatch):
    monkeypatch.setattr(Doubling, "lipschitz_bound", lambda self, shape: float("nan"))
    with pytest.raises(ValueError, match="not a finite number"):
        certify(classifier(Doubling(), kl.Flatten(), kl.Dense(CLASSES)))


def test_a_head_must_have_the_kernel_it_states(monkeypatch):
    model = classifier(kl.Flatten(), dl.UnitRowDense(CLASSES))
    true = dl.UnitRowDense.effective_kernel
    certify(model)
    monkeypatch.setattr(dl.UnitRowDense, "call_float64", lambda self, x: 2.0 * (x @ true(self)))
    with pytest.raises(ValueError, match="effective_kernel"):
        certify(model)


def test_reduced_precision_of_the_backend_is_noticed(monkeypatch):
    """A forward pass off by 1 % raises; one off by 1e-5 only widens the margin."""
    model = classifier(kl.Flatten(), kl.Dense(CLASSES))
    plain = certify(model).rounding
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda *a, **k: 1.00001 * predict(*a, **k))
    assert certify(model).rounding > 5 * plain
    monkeypatch.setattr(model, "predict", lambda *a, **k: 1.01 * predict(*a, **k))
    with pytest.raises(ReferenceMismatchError, match="TF32"):
        certify(model).radii(images(4))


def test_probe_images_are_in_range_and_always_the_same():
    first, second = (rounding.probe_images((5, 5, 3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.float32 and first.shape == (rounding.PROBES, 5, 5, 3)
    assert first.min() == 0.0 and first.max() == 1.0
    assert ops.shape(rounding.probe_images((512, 512, 8)))[0] == 3
