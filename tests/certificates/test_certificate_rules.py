"""Every rule: its constant against the unrolled Jacobian, its float64 forward against Keras."""

import functools

import keras
import numpy as np
import pytest
from keras import layers as kl

from dynzoo.backend import to_numpy
from dynzoo.certificates import UncertifiableLayerError, certify, forward_float64
from dynzoo.certificates.rules.activations import KERAS_ACTIVATIONS
from dynzoo.certificates.rules.joins import JOINS
from dynzoo.certificates.rules.table import rule_for

IMAGE = (5, 6, 4)
FIRST = (4, 5, 6)
VECTOR = (12,)
SERIES = (7, 3)
SERIES_FIRST = (3, 7)
VOLUME = (4, 3, 5, 2)


@functools.cache
def built(name):
    """The layer of a case, its input shape, and how tight its bound must be."""
    make, shape, tightness = CASES[name]
    return seeded_weights(make(), shape), shape, tightness


def seeded_weights(layer, shape):
    """Builds a layer and gives all its weights random values (variances stay positive)."""
    layer.build((None, *shape))
    rng = np.random.default_rng(3)
    for weight in layer.weights:
        value = rng.normal(scale=0.7, size=weight.shape)
        weight.assign(np.abs(value) + 0.1 if "variance" in weight.path else value)
    return layer


def jacobian(layer, x, step=1e-6):
    """Jacobian of the float64 reference at one input, by central differences."""
    forward = rule_for(layer).forward
    n = x.size
    moves = (np.eye(n) * step).reshape(n, *x.shape)
    difference = forward(layer, x + moves) - forward(layer, x - moves)
    return difference.reshape(n, -1) / (2 * step)


def measured_gain(layer, shape, points=6):
    rng = np.random.default_rng(4)
    scales = np.linspace(0.3, 4.0, points)
    return max(np.linalg.norm(jacobian(layer, s * rng.normal(size=shape)), ord=2) for s in scales)


# name: (layer, input shape, the share of the bound that the measured gain must reach)
CASES = {
    "dense": (lambda: kl.Dense(7), VECTOR, 0.999),
    "dense_wide": (lambda: kl.Dense(20, use_bias=False), VECTOR, 0.999),
    "dense_relu": (lambda: kl.Dense(7, activation="relu"), VECTOR, 0.5),
    "dense_sigmoid": (lambda: kl.Dense(7, activation="sigmoid"), VECTOR, 0.2),
    "dense_on_images": (lambda: kl.Dense(3), IMAGE, 0.999),
    "dense_activation_layer": (
        lambda: kl.Dense(7, activation=kl.LeakyReLU(negative_slope=2.0)),
        VECTOR,
        0.3,
    ),
    "conv_same": (lambda: kl.Conv2D(3, 3, padding="same"), IMAGE, 0.9),
    "conv_valid": (lambda: kl.Conv2D(3, 3), IMAGE, 0.8),
    "conv_even": (lambda: kl.Conv2D(3, (2, 4), padding="same"), IMAGE, 0.85),
    "conv_pointwise": (lambda: kl.Conv2D(5, 1), IMAGE, 0.999),
    "conv_patches": (lambda: kl.Conv2D(5, 2, strides=2), IMAGE, 0.999),
    "conv_patches_same": (lambda: kl.Conv2D(5, 2, strides=2, padding="same"), IMAGE, 0.9),
    "conv_strided": (lambda: kl.Conv2D(3, 3, strides=2, padding="same"), IMAGE, 0.6),
    "conv_strided_valid": (lambda: kl.Conv2D(3, (3, 2), strides=(2, 1)), IMAGE, 0.5),
    "conv_dilated": (lambda: kl.Conv2D(3, 3, dilation_rate=2, padding="same"), IMAGE, 0.7),
    "conv_groups": (lambda: kl.Conv2D(6, 3, groups=2, padding="same"), IMAGE, 0.85),
    "conv_tanh": (lambda: kl.Conv2D(3, 3, padding="same", activation="tanh"), IMAGE, 0.3),
    "conv_channels_first": (
        lambda: kl.Conv2D(3, 3, padding="same", data_format="channels_first"),
        FIRST,
        0.85,
    ),
    "depthwise": (lambda: kl.DepthwiseConv2D(3, padding="same"), IMAGE, 0.8),
    "depthwise_multiplied": (
        lambda: kl.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
        IMAGE,
        0.8,
    ),
    "depthwise_strided": (lambda: kl.DepthwiseConv2D(3, strides=2), IMAGE, 0.5),
    "batchnorm": (kl.BatchNormalization, IMAGE, 0.999),
    "batchnorm_first": (lambda: kl.BatchNormalization(axis=1), FIRST, 0.999),
    "batchnorm_plain": (
        lambda: kl.BatchNormalization(scale=False, center=False),
        VECTOR,
        0.999,
    ),
    "rescaling": (lambda: kl.Rescaling(-2.5, offset=1.0), IMAGE, 0.999),
    "rescaling_channels": (
        lambda: kl.Rescaling([1.0, -3.0, 0.5, 2.0], offset=[0.1, 0.2, 0.3, 0.4]),
        IMAGE,
        0.999,
    ),
    "normalization": (
        lambda: kl.Normalization(mean=[0.1, 0.2, 0.3, 0.4], variance=[1.0, 0.04, 2.0, 3.0]),
        IMAGE,
        0.999,
    ),
    "normalization_inverse": (
        lambda: kl.Normalization(mean=0.3, variance=4.0, invert=True),
        VECTOR,
        0.999,
    ),
    "max_pool": (lambda: kl.MaxPooling2D(2), IMAGE, 0.999),
    "max_pool_same": (lambda: kl.MaxPooling2D(2, padding="same"), IMAGE, 0.999),
    "max_pool_overlap": (lambda: kl.MaxPooling2D(3, strides=1), IMAGE, 0.6),
    "max_pool_overlap_same": (lambda: kl.MaxPooling2D(3, strides=2, padding="same"), IMAGE, 0.5),
    "average_pool": (lambda: kl.AveragePooling2D(2), IMAGE, 0.999),
    "average_pool_overlap": (lambda: kl.AveragePooling2D(3, strides=1), IMAGE, 0.999),
    "average_pool_skipping": (lambda: kl.AveragePooling2D(2, strides=3), IMAGE, 0.999),
    "global_average": (kl.GlobalAveragePooling2D, IMAGE, 0.999),
    "global_average_first": (
        lambda: kl.GlobalAveragePooling2D(data_format="channels_first", keepdims=True),
        FIRST,
        0.999,
    ),
    "global_max": (kl.GlobalMaxPooling2D, IMAGE, 0.999),
    "upsampling": (lambda: kl.UpSampling2D((2, 3)), IMAGE, 0.999),
    "zero_padding": (lambda: kl.ZeroPadding2D(((1, 2), (0, 3))), IMAGE, 0.999),
    "cropping": (lambda: kl.Cropping2D(((1, 0), (2, 1))), IMAGE, 0.999),
    "flatten": (kl.Flatten, IMAGE, 0.999),
    "flatten_first": (lambda: kl.Flatten(data_format="channels_first"), FIRST, 0.999),
    "reshape": (lambda: kl.Reshape((6, -1)), IMAGE, 0.999),
    "permute": (lambda: kl.Permute((3, 1, 2)), IMAGE, 0.999),
    "relu": (kl.ReLU, VECTOR, 0.999),
    "relu_all": (lambda: kl.ReLU(max_value=1.5, negative_slope=0.3), VECTOR, 0.999),
    "leaky": (lambda: kl.LeakyReLU(negative_slope=0.1), VECTOR, 0.999),
    "leaky_steep": (lambda: kl.LeakyReLU(negative_slope=3.0), VECTOR, 0.999),
    "prelu": (lambda: kl.PReLU(shared_axes=[1, 2]), IMAGE, 0.9),
    "elu_steep": (lambda: kl.ELU(alpha=2.0), (400,), 0.9),
    "softmax": (kl.Softmax, (2,), 0.7),
    "softmax_axes": (lambda: kl.Softmax(axis=(1, 2)), (2, 3, 4), 0.1),
    "dropout": (lambda: kl.Dropout(0.5), VECTOR, 0.999),
    "noise": (lambda: kl.GaussianNoise(0.5), VECTOR, 0.999),
    "random_flip": (kl.RandomFlip, IMAGE, 0.999),
    "random_rotation": (lambda: kl.RandomRotation(0.2), IMAGE, 0.999),
    "random_contrast": (lambda: kl.RandomContrast(0.2), IMAGE, 0.999),
    "random_brightness": (lambda: kl.RandomBrightness(0.2), IMAGE, 0.999),
    "random_translation": (lambda: kl.RandomTranslation(0.2, 0.2), IMAGE, 0.999),
    "random_zoom": (lambda: kl.RandomZoom(0.2), IMAGE, 0.999),
    # windows that are cut off, on each backend as it computes them
    "average_pool_cut": (lambda: kl.AveragePooling2D(3, strides=1, padding="same"), IMAGE, 0.999),
    "average_pool_cut_even": (lambda: kl.AveragePooling2D(2, padding="same"), IMAGE, 0.999),
    "average_pool_cut_mixed": (
        lambda: kl.AveragePooling2D((3, 4), strides=(1, 2), padding="same"),
        IMAGE,
        0.999,
    ),
    "average_pool_cut_strided": (
        lambda: kl.AveragePooling2D(4, strides=3, padding="same"),
        IMAGE,
        0.999,
    ),
    # one and three spatial axes
    "max_pool_1d": (lambda: kl.MaxPooling1D(2), SERIES, 0.999),
    "max_pool_1d_overlap": (lambda: kl.MaxPooling1D(3, strides=2, padding="same"), SERIES, 0.6),
    "max_pool_3d": (lambda: kl.MaxPooling3D(2, padding="same"), VOLUME, 0.999),
    "average_pool_1d": (lambda: kl.AveragePooling1D(3, strides=2), SERIES, 0.999),
    "average_pool_1d_cut": (lambda: kl.AveragePooling1D(4, padding="same"), SERIES, 0.999),
    "average_pool_3d": (lambda: kl.AveragePooling3D((2, 1, 2), strides=1), VOLUME, 0.999),
    "average_pool_3d_cut": (lambda: kl.AveragePooling3D(2, padding="same"), VOLUME, 0.999),
    "global_average_1d": (kl.GlobalAveragePooling1D, SERIES, 0.999),
    "global_average_1d_first": (
        lambda: kl.GlobalAveragePooling1D(data_format="channels_first"),
        SERIES_FIRST,
        0.999,
    ),
    "global_average_3d": (lambda: kl.GlobalAveragePooling3D(keepdims=True), VOLUME, 0.999),
    "global_max_1d": (kl.GlobalMaxPooling1D, SERIES, 0.999),
    "global_max_3d": (kl.GlobalMaxPooling3D, VOLUME, 0.999),
    "zero_padding_1d": (lambda: kl.ZeroPadding1D((1, 2)), SERIES, 0.999),
    "zero_padding_1d_first": (
        lambda: kl.ZeroPadding1D(2, data_format="channels_first"),
        SERIES_FIRST,
        0.999,
    ),
    "zero_padding_3d": (lambda: kl.ZeroPadding3D(((1, 0), (0, 2), (1, 1))), VOLUME, 0.999),
    "cropping_1d": (lambda: kl.Cropping1D((2, 1)), SERIES, 0.999),
    "cropping_3d": (lambda: kl.Cropping3D(((1, 0), (0, 1), (2, 0))), VOLUME, 0.999),
    "upsampling_1d": (lambda: kl.UpSampling1D(3), SERIES, 0.999),
    "upsampling_3d": (lambda: kl.UpSampling3D((2, 1, 3)), VOLUME, 0.999),
    "repeat_vector": (lambda: kl.RepeatVector(5), VECTOR, 0.999),
    # interpolation
    "upsampling_bilinear": (
        lambda: kl.UpSampling2D((2, 3), interpolation="bilinear"),
        IMAGE,
        0.999,
    ),
    "upsampling_bilinear_first": (
        lambda: kl.UpSampling2D(2, interpolation="bilinear", data_format="channels_first"),
        FIRST,
        0.999,
    ),
    "resizing": (lambda: kl.Resizing(8, 4), IMAGE, 0.999),
    "resizing_first": (lambda: kl.Resizing(3, 9, data_format="channels_first"), FIRST, 0.999),
    "resizing_nearest": (lambda: kl.Resizing(7, 3, interpolation="nearest"), IMAGE, 0.999),
    "center_crop": (lambda: kl.CenterCrop(2, 5), IMAGE, 0.999),
    "center_crop_first": (
        lambda: kl.CenterCrop(4, 3, data_format="channels_first"),
        FIRST,
        0.999,
    ),
    # contractions
    "einsum_dense": (
        lambda: kl.EinsumDense("abcd,de->abce", (5, 6, 3), bias_axes="e"),
        IMAGE,
        0.999,
    ),
    "einsum_ellipsis": (lambda: kl.EinsumDense("...x,xy->...y", 3, bias_axes="y"), IMAGE, 0.999),
    "einsum_two_axes": (
        lambda: kl.EinsumDense("abcd,bde->ace", (6, 3), bias_axes="ce"),
        IMAGE,
        0.999,
    ),
    "einsum_blocks": (
        lambda: kl.EinsumDense("abcd,cde->aebc", (3, 5, 6), activation="relu"),
        IMAGE,
        0.5,
    ),
    "einsum_sum": (lambda: kl.EinsumDense("abcd,de->ace", (6, 3)), IMAGE, 0.999),
    # wrappers
    "spectral_dense": (lambda: kl.SpectralNormalization(kl.Dense(7)), VECTOR, 0.999),
    "spectral_conv": (
        lambda: kl.SpectralNormalization(kl.Conv2D(3, 3, padding="same")),
        IMAGE,
        0.85,
    ),
    "time_distributed_dense": (lambda: kl.TimeDistributed(kl.Dense(4)), SERIES, 0.999),
    "time_distributed_pool": (lambda: kl.TimeDistributed(kl.MaxPooling2D(2)), (3, 4, 4, 2), 0.999),
    "time_distributed_norm": (
        lambda: kl.TimeDistributed(kl.BatchNormalization()),
        SERIES,
        0.999,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gain_bounds_the_unrolled_jacobian(name):
    layer, shape, tightness = built(name)
    gain = rule_for(layer).gain(layer, (None, *shape))
    measured = measured_gain(layer, shape, points=1 if np.prod(shape) > 300 else 6)
    assert measured <= gain * (1 + 1e-7)
    assert measured >= tightness * gain


@pytest.mark.parametrize("name", CASES)
def test_float64_forward_is_what_keras_computes(name):
    if name == "conv_channels_first" and keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow has no channels_first convolution on the CPU")
    layer, shape, _ = built(name)
    x = np.random.default_rng(5).normal(size=(3, *shape)).astype("float32")
    expected = to_numpy(layer(x, training=False) if layer._call_has_training_arg else layer(x))
    reference = rule_for(layer).forward(layer, x.astype("float64"))
    assert reference.dtype == np.float64
    assert reference.shape == expected.shape
    np.testing.assert_allclose(reference, expected, atol=1e-5, rtol=1e-5)


def activation_layers():
    return {
        f"{function.__module__.split('.')[-2]}.{function.__name__}": kl.Activation(function)
        for function in KERAS_ACTIVATIONS
    }


@pytest.mark.parametrize("name", activation_layers())
def test_slope_of_every_activation(name):
    layer = activation_layers()[name]
    rule = rule_for(layer)
    if name.endswith("log_softmax"):
        pytest.skip("its constant depends on the number of classes: see test_operations.py")
    if name.endswith("softmax"):
        x = np.stack([np.linspace(-6, 6, 4001), np.zeros(4001)], axis=1)
        slopes = [np.linalg.norm(jacobian(layer, row), ord=2) for row in x[::100]]
    else:
        x = np.linspace(-12, 12, 40001)[:, None]
        y = rule.forward(layer, x)[:, 0]
        slopes = np.abs(np.diff(y) / np.diff(x[:, 0]))
    slope = rule.gain(layer, (None, 1))
    # 1 %: some suprema are only reached at infinity
    assert 0.99 * slope <= np.max(slopes) <= slope * (1 + 1e-9)
    x32 = x.astype("float32")
    np.testing.assert_allclose(
        rule.forward(layer, x32.astype("float64")), to_numpy(layer(x32)), atol=2e-6, rtol=2e-6
    )


JOIN_LAYERS = {
    "add": kl.Add,
    "subtract": kl.Subtract,
    "average": kl.Average,
    "maximum": kl.Maximum,
    "minimum": kl.Minimum,
    "concatenate": kl.Concatenate,
}


@pytest.mark.parametrize("second", [(3, 2), (1, 2)], ids=["same_shape", "broadcast"])
@pytest.mark.parametrize("name", JOIN_LAYERS)
def test_join_of_two_linear_branches(name, second):
    """The Jacobian of join(Ax, Bx) never exceeds the combined bound of |A| and |B|."""
    if name == "concatenate":
        second = (3, 5)
    layer = JOIN_LAYERS[name]()
    join = JOINS[type(layer)]
    rng = np.random.default_rng(6)
    for trial in range(20):
        maps = [rng.normal(size=(4, *shape)) for shape in [(3, 2), second]]
        if trial % 2 and maps[0].shape == maps[1].shape:
            maps[1] = -maps[0] if name == "subtract" else maps[0]
        bounds = [np.linalg.norm(m.reshape(4, -1), ord=2) for m in maps]

        def forward(x, maps=maps):
            return join.forward(layer, [np.tensordot(x, m, axes=1) for m in maps])

        x = rng.normal(size=(1, 4))
        step = 1e-6 * np.eye(4)
        jac = ((forward(x + step) - forward(x - step)) / 2e-6).reshape(4, -1)
        bound = join.bound(layer, bounds, [(None, 3, 2), (None, *second)])
        measured = np.linalg.norm(jac, ord=2)
        assert measured <= bound * (1 + 1e-6)
        if trial % 2 and second == (3, 2) and name in ("add", "subtract", "average"):
            assert measured >= 0.999 * bound
    arrays = [rng.normal(size=(2, *shape)).astype("float32") for shape in [(3, 2), second]]
    np.testing.assert_allclose(
        join.forward(layer, [a.astype("float64") for a in arrays]),
        to_numpy(layer(arrays)),
        atol=1e-6,
    )


REFUSED = {
    "normalises": (kl.LayerNormalization, IMAGE),
    "lambda": (lambda: kl.Lambda(lambda x: 2 * x), VECTOR),
    "jumps": (lambda: kl.ReLU(threshold=1.0), VECTOR),
    "bicubic": (lambda: kl.UpSampling2D(2, interpolation="bicubic"), IMAGE),
    "resizing_bicubic": (lambda: kl.Resizing(3, 3, interpolation="bicubic"), IMAGE),
    "antialias": (lambda: kl.Resizing(3, 3, antialias=True), IMAGE),
    "aspect": (lambda: kl.Resizing(3, 3, crop_to_aspect_ratio=True), IMAGE),
    "tie": (lambda: kl.Resizing(23, 6, interpolation="nearest"), (14, 6, 2)),
    "enlarging_crop": (lambda: kl.CenterCrop(9, 3), IMAGE),
    "random_crop": (lambda: kl.RandomCrop(3, 3), IMAGE),
    "float16_inside": (
        lambda: kl.SpectralNormalization(kl.Dense(3, dtype="float16")),
        VECTOR,
    ),
    "exponential": (lambda: kl.Dense(3, activation="exponential"), VECTOR),
    "callable": (lambda: kl.Activation(lambda x: 5 * x), VECTOR),
    "grows": (lambda: kl.Rescaling(np.ones((7, 5, 6, 4))), IMAGE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused_by_name(name):
    make, shape = REFUSED[name]
    layer = make()
    if name != "grows":
        layer.build((None, *shape))
    with pytest.raises(UncertifiableLayerError, match=layer.name) as error:
        rule_for(layer).gain(layer, (None, *shape))
    assert error.value.class_name == type(layer).__name__


@pytest.mark.parametrize("wrapper", [kl.TimeDistributed, kl.SpectralNormalization])
def test_a_wrapper_of_an_unknown_layer_is_refused(wrapper):
    class Tripled(kl.Dense):
        def call(self, x):
            return 3.0 * super().call(x)

    with pytest.raises(UncertifiableLayerError, match="subclass of `Dense`"):
        rule_for(wrapper(Tripled(3))).gain(wrapper(Tripled(3)), (None, *SERIES))


def test_normalisation_by_the_input_itself_is_refused_with_its_reason():
    for layer in (kl.LayerNormalization(), kl.UnitNormalization(), kl.RMSNormalization()):
        with pytest.raises(UncertifiableLayerError, match="divides by the size of its own input"):
            rule_for(layer)
    with pytest.raises(UncertifiableLayerError, match="product of tensors"):
        rule_for(kl.Multiply())
    for layer in (kl.Embedding(3, 2), kl.Masking()):
        with pytest.raises(UncertifiableLayerError, match="makes steps of its input"):
            rule_for(layer)


@pytest.mark.parametrize("shape", [VECTOR, IMAGE], ids=["dense", "conv"])
def test_an_activation_with_weights_counts_once_it_has_them(shape):
    """Keras makes them at the first call; before, there is nothing to bound."""
    dense = shape == VECTOR
    prelu = kl.PReLU(shared_axes=None if dense else [1, 2])
    layer = kl.Dense(5, activation=prelu) if dense else kl.Conv2D(5, 1, activation=prelu)
    head = [] if dense else [kl.Flatten()]
    model = keras.Sequential([keras.Input(shape), layer, *head, kl.Dense(3)])
    with pytest.raises(UncertifiableLayerError, match="PReLU.*run the model once"):
        certify(model)
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    model.predict(x, verbose=0)
    plain = certify(model).body_lipschitz
    prelu.alpha.assign(np.full(prelu.alpha.shape, -4.0))
    assert certify(model).body_lipschitz == pytest.approx(4.0 * plain)
    np.testing.assert_allclose(
        forward_float64(model, x), model.predict(x, verbose=0), rtol=1e-4, atol=1e-4
    )


def test_joins_refuse_the_batch_axis_and_mixed_ranks():
    with pytest.raises(UncertifiableLayerError, match="batch axis"):
        JOINS[kl.Concatenate].bound(kl.Concatenate(axis=0), [1.0, 1.0], [(None, 3)] * 2)
    with pytest.raises(UncertifiableLayerError, match="ranks"):
        JOINS[kl.Add].bound(kl.Add(), [1.0, 1.0], [(None, 3), (None, 3, 3)])


def test_large_images_use_the_bound_for_all_sizes():
    layer = seeded_weights(kl.Conv2D(2, 3, padding="same"), (8, 8, 2))
    gain = rule_for(layer).gain
    exact = gain(layer, (None, 60, 60, 2))
    assert exact <= gain(layer, (None, 500, 500, 2)) <= 1.01 * exact
