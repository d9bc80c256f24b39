"""Convolutions: gains against the unrolled layer, and the float64 forward against the backend."""

import warnings

import keras
import numpy as np
import pytest
from helpers import norm, normal
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from keras import layers as kl

import dynzoo
from dynzoo.backend import to_numpy
from dynzoo.certificates import UncertifiableLayerError
from dynzoo.certificates.rounding.program import forward_float64
from dynzoo.certificates.rules.table import rule_for

BACKEND = keras.backend.backend()
# PyTorch's own padding='same' warns of what Keras then does by hand.
QUIET = "ignore:You might experience inconsistencies:UserWarning"


def built(layer, shape, seed=3, scale=0.5):
    """The layer with random weights; no random initialiser, which JAX would compile each time."""
    for name in ("kernel_initializer", "depthwise_initializer", "pointwise_initializer"):
        if hasattr(layer, name):
            setattr(layer, name, keras.initializers.Zeros())
    layer.build((None, *shape))
    for i, weight in enumerate(layer.weights):
        weight.assign(normal(weight.shape, seed + i, scale))
    return layer


def unrolled_norm(layer, shape):
    """Exact norm of the float64 forward pass, which other tests compare with the backend."""
    size = int(np.prod(shape))
    basis = np.concatenate([np.zeros((1, size)), np.eye(size)]).reshape(-1, *shape)
    images = rule_for(layer).forward(layer, basis).reshape(size + 1, -1)
    return norm(images[1:] - images[0])


def norms(x):
    return np.linalg.norm(x.reshape(len(x), -1), axis=1)


def conv(cls, *args, shape, **kwargs):
    return (lambda: cls(*args, **kwargs), shape)


LINE, IMAGE, VOLUME = (9, 4), (6, 7, 4), (4, 5, 4, 2)
CASES = {
    "1d": conv(kl.Conv1D, 3, 3, shape=LINE),
    "1d_same": conv(kl.Conv1D, 3, 4, strides=2, padding="same", shape=LINE),
    "1d_causal": conv(kl.Conv1D, 3, 3, padding="causal", dilation_rate=2, shape=LINE),
    "1d_causal_strided": conv(kl.Conv1D, 3, 3, padding="causal", strides=2, shape=LINE),
    "1d_groups": conv(kl.Conv1D, 6, 3, groups=2, padding="same", shape=LINE),
    "1d_first": conv(kl.Conv1D, 3, 3, data_format="channels_first", shape=(4, 9)),
    "1d_causal_first": conv(
        kl.Conv1D, 3, 3, padding="causal", data_format="channels_first", shape=(4, 9)
    ),
    "1d_activated": conv(kl.Conv1D, 3, 3, activation="relu", shape=LINE),
    "2d_strided_same": conv(kl.Conv2D, 3, 3, strides=2, padding="same", shape=IMAGE),
    "2d_uneven": conv(kl.Conv2D, 3, (2, 5), strides=(3, 2), padding="same", shape=IMAGE),
    "2d_larger_than_image": conv(kl.Conv2D, 3, 5, padding="same", shape=(2, 3, 4)),
    "2d_dilated": conv(kl.Conv2D, 3, 3, dilation_rate=(1, 2), padding="same", shape=IMAGE),
    "2d_first": conv(
        kl.Conv2D, 3, 3, strides=2, padding="same", data_format="channels_first", shape=(4, 6, 7)
    ),
    "3d": conv(kl.Conv3D, 3, 2, shape=VOLUME),
    "3d_same": conv(kl.Conv3D, 3, (3, 2, 3), strides=(1, 2, 2), padding="same", shape=VOLUME),
    "3d_groups": conv(kl.Conv3D, 4, 2, groups=2, padding="same", shape=VOLUME),
    "depthwise_1d": conv(kl.DepthwiseConv1D, 3, depth_multiplier=2, shape=LINE),
    "depthwise_1d_same": conv(kl.DepthwiseConv1D, 4, strides=2, padding="same", shape=LINE),
    "depthwise_1d_dilated": conv(kl.DepthwiseConv1D, 3, dilation_rate=2, shape=LINE),
    "depthwise_2d": conv(kl.DepthwiseConv2D, 3, strides=2, padding="same", shape=IMAGE),
    "depthwise_2d_first": conv(
        kl.DepthwiseConv2D, 3, padding="same", data_format="channels_first", shape=(4, 6, 7)
    ),
    "separable_1d": conv(kl.SeparableConv1D, 5, 3, padding="same", shape=LINE),
    "separable_1d_strided": conv(
        kl.SeparableConv1D, 5, 3, strides=2, depth_multiplier=2, shape=LINE
    ),
    "separable_2d": conv(kl.SeparableConv2D, 5, 3, padding="same", depth_multiplier=2, shape=IMAGE),
    "separable_2d_dilated": conv(
        kl.SeparableConv2D, 3, 2, dilation_rate=2, use_bias=False, shape=IMAGE
    ),
    "separable_2d_strided": conv(
        kl.SeparableConv2D, 3, 3, strides=2, padding="same", activation="tanh", shape=IMAGE
    ),
    "separable_2d_first": conv(
        kl.SeparableConv2D, 6, 3, data_format="channels_first", shape=(4, 6, 7)
    ),
    "transposed_1d": conv(kl.Conv1DTranspose, 3, 3, shape=LINE),
    "transposed_1d_same": conv(kl.Conv1DTranspose, 3, 5, strides=2, padding="same", shape=LINE),
    "transposed_1d_first": conv(
        kl.Conv1DTranspose, 3, 3, strides=2, data_format="channels_first", shape=(4, 5)
    ),
    "transposed_2d": conv(kl.Conv2DTranspose, 3, 3, strides=2, shape=(3, 4, 2)),
    "transposed_2d_same": conv(
        kl.Conv2DTranspose, 3, 3, strides=2, padding="same", shape=(3, 4, 2)
    ),
    "transposed_2d_even": conv(
        kl.Conv2DTranspose, 3, 4, strides=2, padding="same", shape=(3, 4, 2)
    ),
    "transposed_2d_skipping": conv(
        kl.Conv2DTranspose, 3, 2, strides=3, padding="same", shape=(3, 4, 2)
    ),
    "transposed_2d_uneven": conv(
        kl.Conv2DTranspose, 3, (1, 5), strides=(2, 1), padding="same", shape=(3, 4, 2)
    ),
    "transposed_2d_dilated": conv(
        kl.Conv2DTranspose, 3, 3, dilation_rate=2, activation="relu", shape=(4, 4, 2)
    ),
    "transposed_2d_first": conv(
        kl.Conv2DTranspose, 3, 3, strides=2, data_format="channels_first", shape=(2, 3, 4)
    ),
    "transposed_3d": conv(kl.Conv3DTranspose, 2, 2, strides=2, shape=(2, 3, 2, 2)),
    "transposed_3d_same": conv(
        kl.Conv3DTranspose, 2, 3, strides=(1, 2, 1), padding="same", shape=(2, 3, 2, 2)
    ),
}
# What Keras itself cannot run on a CPU with TensorFlow.
NOT_ON_TENSORFLOW = {"1d_first", "1d_causal_first", "2d_first", "transposed_1d_first"}
NOT_ON_TENSORFLOW |= {"transposed_2d_first"}


def backend_output(layer, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return to_numpy(layer(x))


@pytest.mark.parametrize("name", CASES)
def test_forward_is_what_the_backend_computes(name):
    if name in NOT_ON_TENSORFLOW and BACKEND == "tensorflow":
        pytest.skip("TensorFlow has no such convolution on the CPU")
    make, shape = CASES[name]
    layer = built(make(), shape)
    x = normal((2, *shape), 5)
    try:
        expected = backend_output(layer, x)
    except Exception as error:
        # oneDNN has it where the processor has AVX-512, TensorFlow's own code has not
        if BACKEND == "tensorflow" and "do not yet support dilation" in str(error):
            pytest.skip("TensorFlow has no such convolution on this CPU")
        raise
    reference = rule_for(layer).forward(layer, x.astype("float64"))
    assert reference.dtype == np.float64 and reference.shape == expected.shape
    np.testing.assert_allclose(reference, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gain_is_the_norm_of_the_unrolled_layer(name):
    make, shape = CASES[name]
    layer = built(make(), shape)
    gain = rule_for(layer).gain(layer, (None, *shape))
    if layer.activation is not keras.activations.linear:
        layer.activation = keras.activations.linear
    exact = unrolled_norm(layer, shape)
    assert exact * (1 - 1e-13) <= gain <= exact * (1 + 1e-7)


# TensorFlow aborts where an even kernel with output_padding=0 would need another input size.
@pytest.mark.parametrize(
    ("kernel_size", "strides", "padding", "output_padding"),
    [(2, 2, "same", 1), (3, 1, "same", 0), (3, 2, "same", 0), (3, 2, "same", 1), (4, 3, "same", 2),
     (5, 3, "same", 0), (5, 3, "same", 2), (1, 3, "same", 1), (3, 2, "valid", 1),
     (2, 3, "valid", 0), (2, 3, "valid", 2)],
)  # fmt: skip
def test_transposed_output_padding(kernel_size, strides, padding, output_padding):
    layer = kl.Conv1DTranspose(
        2, kernel_size, strides, padding=padding, output_padding=output_padding
    )
    layer = built(layer, (4, 3))
    x = normal((2, 4, 3), 6)
    reference = rule_for(layer).forward(layer, x.astype("float64"))
    np.testing.assert_allclose(reference, backend_output(layer, x), atol=1e-5)
    gain, exact = rule_for(layer).gain(layer, (None, 4, 3)), unrolled_norm(layer, (4, 3))
    assert exact * (1 - 1e-13) <= gain <= exact * (1 + 1e-7)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a fault of Keras on TensorFlow")
@pytest.mark.parametrize("cls", [kl.DepthwiseConv2D, kl.SeparableConv2D])
def test_bias_along_the_wrong_axis_is_refused(cls):
    args = (5, 3) if cls is kl.SeparableConv2D else (3,)
    layer = built(cls(*args, data_format="channels_first"), (5, 6, 7))
    with pytest.raises(UncertifiableLayerError, match="adds the bias"):
        rule_for(layer).gain(layer, (None, 5, 6, 7))
    x = normal((2, 5, 6, 7), 5).astype("float64")
    assert np.abs(rule_for(layer).forward(layer, x) - backend_output(layer, x)).max() > 0.1


# --- kernels that no draw of Gaussian weights finds -----------------------------------------


def adversarial(shape, kind, seed):
    """Kernels whose symbol has a sharp peak, where a border matters most."""
    taps, index = shape[:-2], np.indices(shape[:-2])
    rng = np.random.default_rng(seed)
    if kind == "random":
        return rng.normal(size=shape)
    if kind == "separable":
        values = np.ones(())
        for k in taps:
            values = np.multiply.outer(values, rng.normal(size=k))
        return values[..., None, None] * rng.normal(size=shape[-2:])
    values = {
        "ones": np.ones(taps),
        "checkerboard": (-1.0) ** index.sum(axis=0),
        "wave": np.cos(np.tensordot(rng.uniform(0, np.pi, len(taps)), index, axes=1)),
        "corners": np.prod(
            [(i == 0) | (i == k - 1) for i, k in zip(index, taps, strict=True)], axis=0
        ),
    }[kind]
    return np.ones(shape) * values[..., None, None]


KINDS = ("random", "separable", "ones", "checkerboard", "wave", "corners")
small = st.integers(1, 5)


@settings(max_examples=150)
@given(
    st.tuples(small, small),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 3),
    st.tuples(st.integers(1, 16), st.integers(1, 16)),
    st.sampled_from(["same", "valid"]),
    st.integers(1, 2),
    st.sampled_from(KINDS),
    st.integers(0, 1000),
)
def test_gain_of_a_convolution(kernel, strides, dilation, size, padding, groups, kind, seed):
    if max(strides) > 1:
        dilation = 1
    if padding == "valid":
        assume(all((k - 1) * dilation < n for k, n in zip(kernel, size, strict=True)))
    check_ratio(
        kl.Conv2D, 2, kernel, strides, padding, dilation_rate=dilation, groups=groups,
        shape=(*size, 2), kind=kind, seed=seed,
    )  # fmt: skip


@settings(max_examples=60)
@given(
    st.tuples(small, small),
    st.integers(1, 3),
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.sampled_from(["same", "valid"]),
    st.sampled_from(KINDS),
    st.integers(0, 1000),
)
def test_gain_of_a_transposed_convolution(kernel, stride, size, padding, kind, seed):
    check_ratio(
        kl.Conv2DTranspose, 2, kernel, stride, padding, shape=(*size, 2), kind=kind, seed=seed
    )


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.integers(3, 6), st.integers(3, 6), st.integers(3, 6)),
    st.sampled_from(["same", "valid"]),
    st.sampled_from(KINDS),
    st.integers(0, 1000),
)
def test_gain_of_a_3d_convolution(kernel, strides, size, padding, kind, seed):
    check_ratio(kl.Conv3D, 1, kernel, strides, padding, shape=(*size, 1), kind=kind, seed=seed)


@settings(max_examples=40)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 300),
    st.sampled_from(["same", "causal"]),
    st.sampled_from(KINDS),
    st.integers(0, 1000),
)
def test_gain_of_a_1d_convolution(kernel, stride, dilation, size, padding, kind, seed):
    dilation = 1 if stride > 1 else dilation
    check_ratio(
        kl.Conv1D, 2, kernel, stride, padding, dilation_rate=dilation,
        shape=(size, 1), kind=kind, seed=seed,
    )  # fmt: skip


@settings(max_examples=40)
@given(
    st.tuples(small, small),
    st.integers(1, 3),
    st.tuples(st.integers(5, 16), st.integers(5, 16)),
    st.booleans(),
    st.integers(1, 2),
    st.integers(0, 1000),
)
def test_gain_of_depthwise_and_separable(kernel, stride, size, separable, multiplier, seed):
    cls, filters = (kl.SeparableConv2D, (2,)) if separable else (kl.DepthwiseConv2D, ())
    check_ratio(
        cls, *filters, kernel, stride, "same", depth_multiplier=multiplier,
        shape=(*size, 2), kind="random", seed=seed,
    )  # fmt: skip


def check_ratio(cls, *args, shape, kind, seed, **kwargs):
    def values(weight_shape, dtype=None):
        return keras.ops.convert_to_tensor(
            adversarial(tuple(weight_shape), kind, seed).astype("float32")
        )

    names = ["kernel"]
    if cls is kl.DepthwiseConv2D:
        names = ["depthwise"]
    elif cls is kl.SeparableConv2D:
        names = ["depthwise", "pointwise"]
    # no random initialiser: JAX would compile one for each shape
    kwargs |= {f"{name}_initializer": values for name in names}
    layer = cls(*args, use_bias=False, **kwargs)
    layer.build((None, *shape))
    gain, exact = rule_for(layer).gain(layer, (None, *shape)), unrolled_norm(layer, shape)
    assert exact * (1 - 1e-12) <= gain
    # A tap of weight near 0 may be all that a tiny image sees; 1e-7 is for those.
    assert gain <= 1.10 * exact + 1e-7


def test_stride_two_is_no_longer_a_third_too_large():
    kernel = normal((3, 3, 3, 8), 0, 0.2)
    layer = kl.Conv2D(8, 3, 2, "same", use_bias=False)
    layer.build((None, 20, 20, 3))
    layer.kernel.assign(kernel)
    gain = rule_for(layer).gain(layer, (None, 20, 20, 3))
    rule = rule_for(layer)
    basis = np.eye(1200).reshape(-1, 20, 20, 3)
    matrix = np.concatenate(
        [rule.forward(layer, part).reshape(len(part), -1) for part in np.split(basis, 8)]
    )
    exact = float(np.sqrt(np.linalg.eigvalsh(matrix.T @ matrix)[-1]))
    assert exact <= gain <= 1.02 * exact


# --- through `certify` ----------------------------------------------------------------------


@pytest.mark.filterwarnings(QUIET)
def test_models_of_all_convolutions_are_certified():
    image = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            kl.SeparableConv2D(4, 3, padding="same"),
            kl.Conv2D(4, 3, 2, "same", activation="relu"),
            kl.Conv2DTranspose(4, 3, 2, "same"),
            kl.DepthwiseConv2D(3, padding="same"),
            kl.Flatten(),
            kl.Dense(3),
        ]
    )
    line = keras.Sequential(
        [
            keras.Input((12, 2)),
            kl.Conv1D(4, 3, padding="causal"),
            kl.Conv1DTranspose(3, 2, 2),
            kl.SeparableConv1D(4, 3, 2, "same"),
            kl.DepthwiseConv1D(3, padding="same", activation="relu"),
            kl.Flatten(),
            kl.Dense(3),
        ]
    )
    volume = keras.Sequential(
        [
            keras.Input((4, 4, 4, 1)),
            kl.Conv3D(2, 3, 2, "same", activation="relu"),
            kl.Conv3DTranspose(2, 2, 2),
            kl.Flatten(),
            kl.Dense(3),
        ]
    )
    for model in (image, line, volume):
        certificate = dynzoo.certify(model)
        x = normal((4, *model.input_shape[1:]), 1)
        labels, radii = certificate.radii(x)
        # `radii` has compared the two forward passes
        y = x.astype("float64") + 0.01 * normal(x.shape, 2)
        moved = np.linalg.norm(forward_float64(model, x) - forward_float64(model, y), axis=1)
        assert np.all(moved <= certificate.lipschitz * norms(x - y))
        assert labels.shape == radii.shape == (4,) and np.all(radii >= 0)


def test_beyond_the_limit_is_one_error_that_names_the_layer():
    layer = kl.Conv2D(4096, 3, padding="same", name="huge")
    layer.build((None, 512, 512, 4))

    class Wide:  # a kernel of this size is never made
        shape = (3, 3, 4096, 4096)

    layer._kernel = Wide()
    with pytest.raises(UncertifiableLayerError, match=r"huge.*\(3, 3, 4096, 4096\).*512x512"):
        rule_for(layer).gain(layer, (None, 512, 512, 4096))


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30])
def test_float32_kernels_of_extreme_size(scale):
    make, shape = CASES["separable_2d"]
    layer = built(make(), shape)
    plain = rule_for(layer).gain(layer, (None, *shape))
    layer.pointwise_kernel.assign(layer.pointwise_kernel * scale)
    exact_scale = float(to_numpy(layer.pointwise_kernel).max()) / float(
        to_numpy(built(make(), shape).pointwise_kernel).max()
    )
    gain = rule_for(layer).gain(layer, (None, *shape))
    assert gain == pytest.approx(plain * exact_scale, rel=1e-5)
