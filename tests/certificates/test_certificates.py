"""Certificates of whole graphs: soundness on random networks, and how bounds combine."""

import keras
import numpy as np
import pytest
from certificate_models import (
    CLASSES,
    SHAPE,
    assert_sound,
    classifier,
    images,
    randomize,
    worst_gain,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl
from keras import ops

from dynzoo.backend import to_numpy
from dynzoo.certificates import certify
from dynzoo.certificates.rules import table as rules
from dynzoo.models.isometric import isometric_classifier

SAME_SIZE = ["conv", "relu", "gelu", "norm", "depthwise", "shared", "residual", "maximum", "nested"]
ROW = np.array([1.5, -0.5], "float32")
# Bare operations and layers with nothing to learn; each keeps the shape (4, 4, 2).
PIECES = {
    "sum": lambda x: x + 0.5 * kl.Dense(2, activation=ops.relu)(x),
    "difference": lambda x: ops.subtract(kl.Dense(2)(x) / 2, x * ROW),
    "bent": lambda x: ops.clip(ops.abs(x - 0.3), 0.1, 2.0) - ops.leaky_relu(x, 0.3),
    "moved": lambda x: ops.roll(ops.flip(x, axis=1), 1, axis=2),
    "turned": lambda x: ops.transpose(ops.reshape(x, (-1, 4, 2, 4)), (0, 1, 3, 2)),
    "coupling": lambda x: ops.concatenate(
        [x[..., :1], x[..., 1:] - kl.Dense(1, activation="tanh")(x[..., :1])], axis=-1
    ),
    "mean": lambda x: x - ops.mean(x, axis=(1, 2), keepdims=True),
    "largest": lambda x: ops.maximum(ops.max(x, axis=3, keepdims=True), ops.flip(x, axis=1)),
    "sorted": lambda x: ops.sort(x, axis=1),
    "padded": lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), constant_values=1.0)[:, 1:5],
    "product": lambda x: ops.matmul(x, np.array([[0.6, -1.0], [0.2, 0.4]], "float32")),
    "spread": lambda x: ops.split(x, 2, axis=3)[1] * np.array([0.7, 0.9], "float32"),
    "soft": lambda x: x + ops.log_softmax(x, axis=3) - ops.softmax(x, axis=1),
    "pooled": lambda x: kl.UpSampling2D(2, interpolation="bilinear")(
        kl.AveragePooling2D(3, strides=2, padding="same")(x)
    ),
    "resized": lambda x: kl.Resizing(4, 4)(kl.CenterCrop(3, 4)(x)),
    "augmented": lambda x: kl.RandomFlip()(kl.RandomContrast(0.2)(x)),
    "einsum": lambda x: kl.EinsumDense("nhwc,wv->nhvc", (4, 4, 2))(x),
    "wrapped": lambda x: kl.TimeDistributed(kl.SpectralNormalization(kl.Dense(2)))(x),
    "rank": lambda x: kl.Reshape((4, 4, 2))(
        kl.UpSampling1D(2)(kl.MaxPooling1D(2)(kl.Reshape((16, 2))(x)))
    ),
}


def grow(x, kind, shared, seed):
    """One more piece of a random network; keeps the shape (4, 4, 2)."""
    if kind in PIECES:
        return PIECES[kind](x)
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


@settings(max_examples=8)
@given(
    kinds=st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_no_pair_moves_faster_than_the_bound_of_bare_operations(kinds, seed):
    inputs = keras.Input(SHAPE)
    x = inputs
    for kind in kinds:
        x = PIECES[kind](x)
    model = randomize(keras.Model(inputs, kl.Dense(CLASSES)(kl.Flatten()(x))), seed)
    assert_sound(model, seed)


@pytest.mark.parametrize("kind", PIECES)
def test_each_piece_alone_is_sound(kind):
    inputs = keras.Input(SHAPE)
    assert_sound(randomize(keras.Model(inputs, kl.Flatten()(PIECES[kind](inputs))), 3), 3)


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
    right = rules.RULES[kl.Dense]
    quartered = right._replace(gain=lambda layer, shape: 0.25 * right.gain(layer, shape))
    monkeypatch.setitem(rules.RULES, kl.Dense, quartered)
    with pytest.raises(AssertionError):
        assert_sound(model)
