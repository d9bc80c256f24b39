"""Random Keras graphs over every layer and operation that has a rule, with weights of all kinds.

A graph depends on its seed, dtype and on which pieces fit, and on nothing else. `PIECES` holds
everything it may be grown from: name -> (ranks of the tensors it takes, a function of the grower
and the tensor). A piece that does not fit a shape raises, and another is drawn.
"""

import contextlib

import keras
import numpy as np
from keras import layers as kl
from keras import ops

from dynzoo import layers as dl
from dynzoo import operators
from dynzoo.certificates.rules.activations import KERAS_ACTIVATIONS, OPERATIONS
from dynzoo.certificates.rules.image import AUGMENTATION

LARGEST = 72  # entries of a tensor: Jacobians stay cheap
SHAPES = [(5,), (8,), (4, 3), (6, 2), (4, 4, 2), (3, 4, 3), (2, 6, 4), (3, 2, 2, 2), (2, 3, 4, 1)]
DISTRIBUTIONS = [
    "gaussian", "wide", "sparse", "equal", "near_singular", "huge", "tiny", "alternating", "mixed",
]  # fmt: skip
# Independent random weights, for which roundings do not line up by construction.
RANDOM = ("gaussian", "wide", "sparse")


# What a backend cannot run at all, whoever asks.
ABSENT = {("tensorflow", "float64"): ("keras.MaxPooling3D", "keras.AveragePooling3D")}


class DoesNotFit(Exception):
    """The piece does not take tensors of this shape."""


def need(condition):
    if not condition:
        raise DoesNotFit


@contextlib.contextmanager
def precision(dtype):
    """Builds in this dtype; the settings of Keras are put back afterwards."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


class Grower:
    """Draws one graph."""

    def __init__(self, seed, dtype="float32"):
        self.rng = np.random.default_rng([seed, 7])
        self.seed = seed
        self.dtype = dtype
        self.nesting = self.activation_layers = 0

    def coin(self, chance=0.5):
        return bool(self.rng.random() < chance)

    def integer(self, low, high):
        """From low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, options):
        return options[int(self.rng.integers(len(options)))]

    def number(self):
        return float(self.rng.normal() * 10.0 ** self.rng.uniform(-1, 1))

    def constant(self, *shape):
        return self.rng.normal(size=shape).astype(self.dtype)

    def activation(self):
        return self.pick([None, None, "relu", "tanh", "leaky_relu", "gelu", ops.silu, kl.PReLU])

    def act(self):
        """An activation as an argument: a name, a function, or a new layer."""
        found = self.activation()
        if isinstance(found, type):
            self.activation_layers += 1
            return found()
        return found

    def axis(self, x):
        return self.integer(1, len(x.shape) - 1) - (len(x.shape) if self.coin(0.3) else 0)

    def grow(self, x, depth):
        for _ in range(depth):
            x = self.step(x)
        return x

    def step(self, x):
        for _ in range(60):
            name = self.pick(NAMES)
            with contextlib.suppress(DoesNotFit):
                return self.add(name, x)
        return kl.Activation("tanh")(x)

    def add(self, name, x):
        """The tensor after a piece of this name."""
        ranks, build = PIECES[name]
        need(len(x.shape) - 1 in ranks)
        need(name not in ABSENT.get((keras.backend.backend(), self.dtype), ()))
        try:
            y = build(self, x)
        except (ValueError, TypeError, NotImplementedError, IndexError) as error:
            raise DoesNotFit from error
        need(None not in y.shape[1:] and 0 < int(np.prod(y.shape[1:])) <= LARGEST)
        need(len(y.shape) > 1)
        return y

    def same(self, x, depth=1):
        """Another tensor of the shape of x."""
        for _ in range(20):
            with contextlib.suppress(DoesNotFit):
                y = self.add(self.pick(SAME), x)
                if y.shape == x.shape:
                    return y
        return kl.Activation("relu")(x)


def spatial(x):
    return tuple(int(n) for n in x.shape[1:-1])


def channels(x):
    return int(x.shape[-1])


# --- layers of Keras ---------------------------------------------------------------------------


def _conv(cls, filters=True, transposed=False, causal=False):
    def build(g, x):
        kernel = g.integer(1, 3)
        strides, dilation = (1, 1)
        if g.coin():
            strides = g.integer(1, 3)
        elif not transposed and g.coin(0.3):
            dilation = 2
        reach = dilation * (kernel - 1) + 1
        padding = "valid" if reach <= min(spatial(x)) and g.coin() else "same"
        if causal and g.coin(0.2):
            padding = "causal"
        arguments = dict(strides=strides, padding=padding, activation=g.act())
        if not transposed:
            arguments["dilation_rate"] = dilation
        if filters:
            count = g.integer(1, 3)
            if cls in (kl.Conv1D, kl.Conv2D) and channels(x) % 2 == 0 and g.coin(0.3):
                count, arguments["groups"] = 2, 2
            return cls(count, kernel, use_bias=g.coin(), **arguments)(x)
        return cls(kernel, depth_multiplier=g.integer(1, 2), use_bias=g.coin(), **arguments)(x)

    return build


def _pool(cls):
    def build(g, x):
        size = g.integer(1, 3)
        padding = "valid" if size <= min(spatial(x)) and g.coin(0.7) else "same"
        strides = size if g.coin(0.7) else g.integer(1, 3)
        return cls(size, strides=strides, padding=padding)(x)

    return build


def _crop(cls, n):
    def build(g, x):
        need(min(spatial(x)) > 1)
        widths = [(1, 0) if g.coin() else (0, 1) for _ in range(n)]
        return cls(widths[0] if n == 1 else tuple(widths))(x)

    return build


def _zero(cls, n):
    def build(g, x):
        widths = tuple((g.integer(0, 1), g.integer(0, 2)) for _ in range(n))
        return cls(widths[0] if n == 1 else widths)(x)

    return build


def _upsample_2d(g, x):
    return kl.UpSampling2D(
        (g.integer(1, 2), g.integer(1, 2)), interpolation=g.pick(["nearest", "bilinear", "nearest"])
    )(x)


def _einsum_dense(g, x):
    rank, out = len(x.shape) - 1, g.integer(1, 3)
    equation, shape, axes = g.pick(
        {
            1: [("ab,bc->ac", out, "c")],
            2: [
                ("abc,cd->abd", (x.shape[1], out), "d"),
                ("abc,bd->adc", (out, x.shape[2]), None),
                ("abc,bcd->ad", out, "d"),
                ("abc,bcd->abd", (x.shape[1], out), "bd"),
            ],
            3: [
                ("abcd,de->abce", (*spatial(x), out), "e"),
                ("abcd,bde->ace", (x.shape[2], out), "e"),
            ],
            4: [("abcde,ef->abcdf", (*spatial(x), out), "f")],
        }[rank]
    )
    return kl.EinsumDense(equation, shape, bias_axes=axes, activation=g.act())(x)


def _reshape(g, x):
    size = int(np.prod(x.shape[1:]))
    pieces = []
    for _ in range(g.integer(0, 3)):
        n = g.pick([k for k in range(1, size + 1) if size % k == 0])
        pieces.append(n)
        size //= n
    shape = [*pieces, size]
    if g.coin():
        shape[g.integer(0, len(shape) - 1)] = -1
    return kl.Reshape(shape)(x)


def _time(g, x):
    inner = [kl.Dense(g.integer(1, 3), g.act())]
    if len(x.shape) == 4:
        inner.append(kl.Conv1D(2, 2, padding="same"))
    if len(x.shape) == 5:
        inner.append(kl.Conv2D(2, 2, padding="same"))
    return kl.TimeDistributed(g.pick(inner))(x)


def _spectral(g, x):
    if len(x.shape) == 4 and g.coin():
        return kl.SpectralNormalization(kl.Conv2D(2, 2, padding="same"))(x)
    return kl.SpectralNormalization(kl.Dense(g.integer(1, 3)))(x)


AUGMENTATION_ARGUMENTS = {
    **dict.fromkeys(
        ["RandomBrightness", "RandomColorDegeneration", "RandomContrast", "RandomHue"], (0.5,)
    ),
    **dict.fromkeys(
        ["RandomRotation", "RandomSaturation", "RandomSharpness", "RandomZoom"], (0.5,)
    ),
    "RandomPosterization": (4,),
    "RandomTranslation": (0.3, 0.3),
}

ANY, IMAGE = (1, 2, 3, 4), (3,)
LAYERS = {
    kl.Identity: (ANY, lambda g, x: kl.Identity()(x)),
    kl.ActivityRegularization: (ANY, lambda g, x: kl.ActivityRegularization(1e-3)(x)),
    kl.Dropout: (ANY, lambda g, x: kl.Dropout(0.4)(x)),
    kl.SpatialDropout1D: ((2,), lambda g, x: kl.SpatialDropout1D(0.4)(x)),
    kl.SpatialDropout2D: ((3,), lambda g, x: kl.SpatialDropout2D(0.4)(x)),
    kl.SpatialDropout3D: ((4,), lambda g, x: kl.SpatialDropout3D(0.4)(x)),
    kl.AlphaDropout: (ANY, lambda g, x: kl.AlphaDropout(0.4)(x)),
    kl.GaussianDropout: (ANY, lambda g, x: kl.GaussianDropout(0.4)(x)),
    kl.GaussianNoise: (ANY, lambda g, x: kl.GaussianNoise(0.4)(x)),
    kl.Flatten: (ANY, lambda g, x: kl.Flatten()(x)),
    kl.Reshape: (ANY, _reshape),
    kl.Permute: (
        ANY,
        lambda g, x: kl.Permute((1 + g.rng.permutation(len(x.shape) - 1)).tolist())(x),
    ),
    kl.Activation: (ANY, lambda g, x: kl.Activation(g.pick(list(KERAS_ACTIVATIONS)))(x)),
    kl.ReLU: (
        ANY,
        lambda g, x: kl.ReLU(
            max_value=g.pick([None, 6.0, 0.5]), negative_slope=g.pick([0.0, 0.2, 3.0])
        )(x),
    ),
    kl.LeakyReLU: (ANY, lambda g, x: kl.LeakyReLU(g.pick([0.1, 2.5]))(x)),
    kl.PReLU: (ANY, lambda g, x: kl.PReLU(shared_axes=[1] if g.coin(0.3) else None)(x)),
    kl.ELU: (ANY, lambda g, x: kl.ELU(g.pick([1.0, 0.3, 4.0]))(x)),
    kl.Softmax: (ANY, lambda g, x: kl.Softmax(axis=g.axis(x))(x)),
    kl.Dense: (ANY, lambda g, x: kl.Dense(g.integer(1, 5), g.act(), use_bias=g.coin())(x)),
    kl.Conv1D: ((2,), _conv(kl.Conv1D, causal=True)),
    kl.Conv2D: ((3,), _conv(kl.Conv2D)),
    kl.Conv3D: ((4,), _conv(kl.Conv3D)),
    kl.DepthwiseConv1D: ((2,), _conv(kl.DepthwiseConv1D, filters=False)),
    kl.DepthwiseConv2D: ((3,), _conv(kl.DepthwiseConv2D, filters=False)),
    kl.SeparableConv1D: ((2,), _conv(kl.SeparableConv1D)),
    kl.SeparableConv2D: ((3,), _conv(kl.SeparableConv2D)),
    kl.Conv1DTranspose: ((2,), _conv(kl.Conv1DTranspose, transposed=True)),
    kl.Conv2DTranspose: ((3,), _conv(kl.Conv2DTranspose, transposed=True)),
    kl.Conv3DTranspose: ((4,), _conv(kl.Conv3DTranspose, transposed=True)),
    kl.BatchNormalization: (
        ANY,
        lambda g, x: kl.BatchNormalization(
            axis=g.axis(x) if g.coin(0.3) else -1, center=g.coin(), scale=g.coin()
        )(x),
    ),
    kl.Normalization: (
        ANY,
        lambda g, x: kl.Normalization(
            axis=-1,
            mean=g.rng.normal(size=channels(x)),
            variance=g.rng.uniform(0.01, 3.0, size=channels(x)),
            invert=g.coin(0.2),
        )(x),
    ),
    kl.Rescaling: (
        ANY,
        lambda g, x: kl.Rescaling(
            g.pick([1 / 255, 2.0, -1 / 127.5, g.number()]), g.pick([0.0, -1.0])
        )(x),
    ),
    kl.MaxPooling1D: ((2,), _pool(kl.MaxPooling1D)),
    kl.MaxPooling2D: ((3,), _pool(kl.MaxPooling2D)),
    kl.MaxPooling3D: ((4,), _pool(kl.MaxPooling3D)),
    kl.AveragePooling1D: ((2,), _pool(kl.AveragePooling1D)),
    kl.AveragePooling2D: ((3,), _pool(kl.AveragePooling2D)),
    kl.AveragePooling3D: ((4,), _pool(kl.AveragePooling3D)),
    kl.GlobalAveragePooling1D: ((2,), lambda g, x: kl.GlobalAveragePooling1D()(x)),
    kl.GlobalAveragePooling2D: ((3,), lambda g, x: kl.GlobalAveragePooling2D(keepdims=g.coin())(x)),
    kl.GlobalAveragePooling3D: ((4,), lambda g, x: kl.GlobalAveragePooling3D()(x)),
    kl.GlobalMaxPooling1D: ((2,), lambda g, x: kl.GlobalMaxPooling1D(keepdims=g.coin())(x)),
    kl.GlobalMaxPooling2D: ((3,), lambda g, x: kl.GlobalMaxPooling2D()(x)),
    kl.GlobalMaxPooling3D: ((4,), lambda g, x: kl.GlobalMaxPooling3D(keepdims=g.coin())(x)),
    kl.ZeroPadding1D: ((2,), _zero(kl.ZeroPadding1D, 1)),
    kl.ZeroPadding2D: ((3,), _zero(kl.ZeroPadding2D, 2)),
    kl.ZeroPadding3D: ((4,), _zero(kl.ZeroPadding3D, 3)),
    kl.Cropping1D: ((2,), _crop(kl.Cropping1D, 1)),
    kl.Cropping2D: ((3,), _crop(kl.Cropping2D, 2)),
    kl.Cropping3D: ((4,), _crop(kl.Cropping3D, 3)),
    kl.UpSampling1D: ((2,), lambda g, x: kl.UpSampling1D(2)(x)),
    kl.UpSampling2D: ((3,), _upsample_2d),
    kl.UpSampling3D: ((4,), lambda g, x: kl.UpSampling3D((2, 1, 2))(x)),
    kl.RandomCrop: ((3,), lambda g, x: kl.RandomCrop(*spatial(x))(x)),
    kl.CenterCrop: (
        (3,),
        lambda g, x: kl.CenterCrop(g.integer(1, x.shape[1]), g.integer(1, x.shape[2]))(x),
    ),
    kl.Resizing: (
        (3,),
        lambda g, x: kl.Resizing(
            g.integer(1, 5), g.integer(1, 5), interpolation=g.pick(["nearest", "bilinear"])
        )(x),
    ),
    kl.RepeatVector: ((1,), lambda g, x: kl.RepeatVector(g.integer(1, 3))(x)),
    kl.EinsumDense: (ANY, _einsum_dense),
    kl.SpectralNormalization: (ANY, _spectral),
    kl.TimeDistributed: ((2, 3, 4), _time),
    **{
        cls: (IMAGE, lambda g, x, c=cls: c(*AUGMENTATION_ARGUMENTS.get(c.__name__, ()))(x))
        for cls in AUGMENTATION
    },
}

# --- layers of dynzoo --------------------------------------------------------------------------


def _operator(g, x, units=None):
    units = units or g.integer(1, 4)
    if len(x.shape) != 4:
        return operators.Dense(units)
    kinds = [
        operators.Pointwise(units),
        operators.Conv(units, padding=g.pick(["zero", "circular"])),
    ]
    if channels(x) % 4 == 0:
        kinds.append(operators.ShiftedPointwise(units))
    return g.pick(kinds)


def _gradient(g, x):
    return dl.GradientFlow(
        _operator(g, x),
        activation=g.pick(["relu", "tanh", "leaky_relu", "softplus"]),
        step_size=g.pick([0.1, 0.5, 1.0]),
        steps=g.integer(1, 2),
        integrator=g.pick(["euler", "euler", "rk4", "heun"]),
        direction=g.pick(["contractive", "contractive", "expansive"]),
        constraint=None,
        shared=g.coin(),
        use_bias=g.coin(),
    )(x)


def _tangent(g, x):
    return dl.GradientFlow(_operator(g, x, g.integer(1, channels(x))), steps=g.integer(1, 3))(x)


def _implicit(g, x):
    return dl.ImplicitGradientFlow(
        _operator(g, x),
        activation=g.pick(["relu", "tanh", "leaky_relu"]),
        step_size=g.pick([0.5, 3.0, 50.0]),
        iterations=g.integer(1, 4),
        constraint="spectral_norm",
        steps=g.integer(1, 2),
        shared=g.coin(),
        use_bias=g.coin(),
    )(x)


def _softmax_flow(g, x):
    return dl.SoftmaxGradientFlow(
        g.integer(1, 4), beta=g.pick([0.5, 1.0, 5.0]), steps=g.integer(1, 2), use_bias=g.coin()
    )(x)


def _switching(g, x):
    return dl.SwitchingFlow(
        _operator(g, x, g.integer(1, channels(x))),
        mode=g.pick(["prescribed", "flexible", "sharp"]),
        steps=g.integer(1, 2),
        use_bias=g.coin(),
    )(x)


def _convection(g, x):
    need(len(x.shape) == 2)
    return dl.ConvectionDiffusionFlow(
        operators.Dense(g.integer(1, 4)),
        steps=g.integer(1, 2),
        velocity=g.pick(["gradient", "free"]),
        inference="deterministic",
        samples=2,
    )(x)


def _graph(g, x):
    n = int(x.shape[1])
    need(n > 1)
    adjacency = np.triu(g.rng.uniform(size=(n, n)) < 0.6, 1).astype(float)
    return dl.GraphDiffusion(0.9 / n, adjacency=adjacency + adjacency.T, steps=g.integer(1, 2))(x)


def _even(build):
    def checked(g, x):
        need(channels(x) % 2 == 0)
        return build(g, x)

    return checked


DYNZOO = {
    dl.GradientFlow: (ANY, lambda g, x: _tangent(g, x) if g.coin() else _gradient(g, x)),
    dl.ImplicitGradientFlow: (ANY, _implicit),
    dl.SoftmaxGradientFlow: (ANY, _softmax_flow),
    dl.SwitchingFlow: (ANY, _switching),
    dl.ConvectionDiffusionFlow: (ANY, _convection),
    dl.HamiltonianFlow: (
        ANY,
        lambda g, x: dl.HamiltonianFlow(
            _operator(g, x), hamiltonian=g.pick(["separable", "joint"]), steps=g.integer(1, 2)
        )(x),
    ),
    dl.ContractiveHamiltonianFlow: (
        ANY,
        lambda g, x: dl.ContractiveHamiltonianFlow(_operator(g, x), steps=g.integer(1, 2))(x),
    ),
    dl.VolumePreservingFlow: (
        ANY,
        lambda g, x: dl.VolumePreservingFlow(
            _operator(g, x), second_order=g.coin(), steps=g.integer(1, 2), step_size=0.5
        )(x),
    ),
    dl.GraphDiffusion: ((2,), _graph),
    dl.UnitRowDense: (ANY, lambda g, x: dl.UnitRowDense(g.integer(1, 4))(x)),
    dl.OrthonormalDense: (ANY, lambda g, x: dl.OrthonormalDense(g.integer(1, channels(x)))(x)),
    dl.OrthonormalPointwise: (
        IMAGE,
        lambda g, x: dl.OrthonormalPointwise(g.integer(1, channels(x)))(x),
    ),
    dl.MaxMin: (ANY, _even(lambda g, x: dl.MaxMin()(x))),
    dl.BetaAbs: (ANY, lambda g, x: dl.BetaAbs(g.pick([0.5, 1.0, 0.3]))(x)),
    dl.SpaceToDepth: (IMAGE, lambda g, x: dl.SpaceToDepth(2)(x)),
    dl.ChannelPadding: (ANY, lambda g, x: dl.ChannelPadding(channels(x) + g.integer(0, 2))(x)),
    dl.MeanShift: (ANY, lambda g, x: dl.MeanShift(g.rng.normal(size=channels(x)).tolist())(x)),
    dl.PositionOffset: (ANY, lambda g, x: dl.PositionOffset()(x)),
    dl.LearnedScale: (ANY, lambda g, x: dl.LearnedScale(g.pick([None, 1.0]))(x)),
    dl.ScaledAveragePooling2D: (IMAGE, lambda g, x: dl.ScaledAveragePooling2D(2)(x)),
    dl.L2Pooling2D: (IMAGE, lambda g, x: dl.L2Pooling2D(g.pick([2, None]))(x)),
    dl.SpatialShift: (IMAGE, lambda g, x: dl.SpatialShift(padding=g.pick(["circular", "zero"]))(x)),
    dl.MaxMinShift: (IMAGE, _even(lambda g, x: dl.MaxMinShift(reverse=g.coin())(x))),
    dl.Resize: (
        IMAGE,
        lambda g, x: dl.Resize(g.integer(1, 6), g.integer(1, 6), g.pick([None, (-0.5, 0.5)]))(x),
    ),
    dl.SumLift: (ANY, lambda g, x: dl.SumLift(channels(x) + g.integer(0, 2))(x)),
    dl.SumProjection: (
        ANY,
        lambda g, x: dl.SumProjection(
            g.integer(1, channels(x)), g.pick([None, g.rng.normal(size=channels(x)).tolist()])
        )(x),
    ),
}

# --- bare operations ---------------------------------------------------------------------------


def _elementwise(function):
    """With a constant in front or behind, spread over or by the tensor, or with another tensor."""

    def build(g, x):
        kind, inner = g.integer(0, 4), tuple(x.shape[1:])
        if kind == 0:
            return function(x, g.same(x))
        if kind == 1:
            return function(x, g.number())
        if kind == 2:
            return function(g.constant(inner[-1]), x)
        if kind == 3:
            return function(x, g.constant(*inner))
        other = ops.mean(x, axis=-1, keepdims=True)
        return function(x, other) if g.coin() else function(other, g.constant(inner[-1]))

    return build


def _scaled(function):
    def build(g, x):
        value = g.pick([g.number(), g.constant(channels(x)), g.constant(*x.shape[1:])])
        if function is ops.divide or function is ops.true_divide:
            value = value + np.where(np.asarray(value) < 0, -0.1, 0.1).astype(g.dtype)
            return function(x, value)
        return function(x, value) if g.coin() else function(value, x)

    return build


def _matmul(g, x):
    if len(x.shape) > 2 and g.coin(0.3):
        return ops.matmul(g.constant(g.integer(1, 4), x.shape[-2]), x)
    return ops.matmul(x, g.constant(channels(x), g.integer(1, 4)))


def _einsum(g, x):
    need(len(x.shape) == 3)
    if g.coin():
        return ops.einsum("nab,bc->nac", x, g.constant(channels(x), 2))
    return ops.einsum("ab,nab->na", g.constant(*x.shape[1:]), x)


def _pad(g, x):
    mode = g.pick(["constant", "reflect", "symmetric"])
    widths = [(0, 0)] + [(g.integer(0, 1), g.integer(0, 1)) for _ in x.shape[1:]]
    need(min(x.shape[1:]) > 1 or mode == "constant")
    if mode == "constant":
        return ops.pad(x, widths, constant_values=g.pick([0.0, 2.0]))
    return ops.pad(x, widths, mode=mode)


def _item(g, x):
    index = [slice(None)]
    for n in x.shape[1:]:
        index.append(g.pick([slice(None), slice(0, None, 2), slice(-2, None), slice(n // 2, None)]))
    if len(index) > 2 and g.coin(0.3):
        index[g.integer(1, len(index) - 1)] = 0
    if g.coin(0.2):
        index.insert(1, None)
    return x[tuple(index)]


def _take(g, x):
    axis = g.integer(1, len(x.shape) - 1)
    return ops.take(x, g.rng.integers(0, x.shape[axis], size=3).tolist(), axis=axis)


def _split(g, x):
    axis = g.integer(1, len(x.shape) - 1)
    need(x.shape[axis] > 1)
    parts = ops.split(x, [g.integer(1, x.shape[axis] - 1)], axis=axis)
    return g.pick(parts)


def _reduced(function):
    return lambda g, x: function(x, axis=g.axis(x), keepdims=len(x.shape) == 2 or g.coin())


def _joined_operation(function):
    return lambda g, x: function([x, g.same(x), g.same(x)][: g.integer(1, 3)], axis=g.axis(x))


def _bare_reshape(g, x):
    size = int(np.prod(x.shape[1:]))
    n = g.pick([k for k in range(1, size + 1) if size % k == 0])
    return ops.reshape(x, (-1, n, size // n))


def _squeeze(g, x):
    axis = g.axis(ops.expand_dims(x, 1))
    return ops.squeeze(ops.expand_dims(x, axis), axis)


def _transpose(g, x):
    return ops.transpose(x, (0, *(1 + g.rng.permutation(len(x.shape) - 1)).tolist()))


ENTRYWISE = {
    "Celu": lambda g, x: ops.celu(x, g.pick([1.0, 0.3])),
    "Elu": lambda g, x: ops.elu(x, g.pick([1.0, 2.0])),
    "LeakyRelu": lambda g, x: ops.leaky_relu(x, g.pick([0.2, 3.0])),
    "Squareplus": lambda g, x: ops.squareplus(x, g.pick([4, 1])),
    "SoftShrink": lambda g, x: ops.soft_shrink(x, g.pick([0.5, 0.1])),
    "Gelu": lambda g, x: ops.gelu(x, approximate=g.coin()),
    "Absolute": lambda g, x: ops.abs(x),
}
_SNAKE = {"SparsePlus": "sparse_plus", "LogSigmoid": "log_sigmoid", "HardSigmoid": "hard_sigmoid",
          "SparseSigmoid": "sparse_sigmoid", "HardSilu": "hard_silu", "TanhShrink": "tanh_shrink",
          "HardTanh": "hard_tanh"}  # fmt: skip


def _entrywise(name):
    return ENTRYWISE.get(name) or (
        lambda g, x: getattr(ops, _SNAKE.get(name, name.lower()))(x)  # looked up late: same object
    )


OPERATION_PIECES = {
    **{name: (ANY, _entrywise(name)) for name in OPERATIONS},
    "Add": (ANY, _elementwise(ops.add)),
    "Subtract": (ANY, _elementwise(ops.subtract)),
    "Maximum": (ANY, _elementwise(ops.maximum)),
    "Minimum": (ANY, _elementwise(ops.minimum)),
    "Multiply": (ANY, _scaled(ops.multiply)),
    "Divide": (ANY, _scaled(ops.divide)),
    "TrueDivide": (ANY, _scaled(ops.true_divide)),
    "Matmul": (ANY, _matmul),
    "Dot": (ANY, lambda g, x: ops.dot(x, g.constant(channels(x), 3))),
    "Einsum": (ANY, _einsum),
    "Clip": (ANY, lambda g, x: ops.clip(x, g.pick([-1.0, 0.0]), g.pick([0.5, 3.0]))),
    "Cast": (ANY, lambda g, x: ops.cast(x, g.dtype)),
    "Softmax": (ANY, lambda g, x: ops.softmax(x, axis=g.axis(x))),
    "LogSoftmax": (ANY, lambda g, x: ops.log_softmax(x, axis=g.axis(x))),
    "Mean": (ANY, _reduced(ops.mean)),
    "Sum": (ANY, _reduced(ops.sum)),
    "Logsumexp": (ANY, _reduced(ops.logsumexp)),
    "Max": (ANY, _reduced(ops.max)),
    "Amax": (ANY, _reduced(ops.amax)),
    "Min": (ANY, _reduced(ops.min)),
    "Amin": (ANY, _reduced(ops.amin)),
    "Sort": (ANY, lambda g, x: ops.sort(x, axis=g.axis(x))),
    "Pad": (ANY, _pad),
    "Concatenate": (ANY, _joined_operation(ops.concatenate)),
    "Stack": (ANY, _joined_operation(ops.stack)),
    "GetItem": (ANY, _item),
    "Take": (ANY, _take),
    "Split": (ANY, _split),
    "Roll": (ANY, lambda g, x: ops.roll(x, g.integer(-2, 2), axis=g.axis(x))),
    "Repeat": (ANY, lambda g, x: ops.repeat(x, 2, axis=g.axis(x))),
    "Flip": (ANY, lambda g, x: ops.flip(x, axis=g.axis(x))),
    "Squeeze": (ANY, _squeeze),
    "Reshape": (ANY, _bare_reshape),
    "Transpose": (ANY, _transpose),
    "ExpandDims": ((1, 2, 3), lambda g, x: ops.expand_dims(x, g.axis(x))),
    "Moveaxis": (ANY, lambda g, x: ops.moveaxis(x, g.axis(x), g.axis(x))),
    "Swapaxes": (ANY, lambda g, x: ops.swapaxes(x, g.axis(x), g.axis(x))),
    "Tile": (ANY, lambda g, x: ops.tile(x, [1] + [g.integer(1, 2) for _ in x.shape[1:]])),
    "StopGradient": (ANY, lambda g, x: ops.stop_gradient(x)),
}

# --- branches, shared layers, nested models ---------------------------------------------------


def _branches(cls, least=2, most=3):
    def build(g, x):
        others = [g.same(x) for _ in range(g.integer(least, most) - 1)]
        if cls is kl.Concatenate:
            return cls(axis=g.axis(x))([x, *others])
        if g.coin(0.2) and len(x.shape) > 2:
            others[-1] = ops.mean(x, axis=1, keepdims=True)
        return cls()([x, *others])

    return build


JOIN_PIECES = {
    kl.Add: (ANY, _branches(kl.Add)),
    kl.Subtract: (ANY, _branches(kl.Subtract, 2, 2)),
    kl.Average: (ANY, _branches(kl.Average)),
    kl.Maximum: (ANY, _branches(kl.Maximum)),
    kl.Minimum: (ANY, _branches(kl.Minimum)),
    kl.Concatenate: (ANY, _branches(kl.Concatenate)),
}


def _shared(g, x):
    layer = kl.Dense(channels(x), activation=g.act())
    y = layer(layer(x))
    return kl.Add()([y, layer(x)]) if g.coin() else y


def _nested(g, x):
    need(g.nesting < 2)
    g.nesting += 1
    try:
        kind, shape = g.integer(0, 3), tuple(x.shape[1:])
        a = keras.Input(shape)
        if kind == 0:
            return keras.Sequential([a, kl.Dense(channels(x), activation=g.act())])(x)
        if kind == 1:  # the same network twice, the second time behind itself
            inner = keras.Model(a, g.same(a))
            return inner(inner(x))
        b = keras.Input(shape)
        out = kl.Subtract()([g.same(a), ops.multiply(b, 0.1)])
        if kind == 2:
            return keras.Model([a, b], out)([x, g.same(x)])
        names = ("z", "a") if g.coin() else ("a", "z")
        inner = keras.Model({names[0]: a, names[1]: b}, out)
        given = {names[1]: g.same(x), names[0]: x}
        return inner(given)
    finally:
        g.nesting -= 1


def _residual(g, x):
    return x + 0.5 * g.same(g.same(x))


OTHERS = {"shared": (ANY, _shared), "nested": (ANY, _nested), "residual": (ANY, _residual)}


def _name(key):
    if isinstance(key, str):
        return key
    kind = "dynzoo" if key.__module__.startswith("dynzoo") else "keras"
    return f"{kind}.{key.__name__}"


PIECES = {
    _name(key): value
    for table in (LAYERS, DYNZOO, JOIN_PIECES, OPERATION_PIECES, OTHERS)
    for key, value in table.items()
}
_QUIET = {_name(cls) for cls in AUGMENTATION} | {
    f"keras.{n}" for n in ("Identity", "ActivityRegularization", "Dropout", "AlphaDropout",
                           "GaussianDropout", "GaussianNoise")
}  # fmt: skip
# What does nothing at inference is drawn a tenth as often.
NAMES = [n for n in PIECES if n not in _QUIET for _ in range(10)] + sorted(_QUIET)
NAMES += ["shared", "nested", "residual"] * 20
NAMES += [_name(cls) for cls in (kl.Dense, kl.Conv1D, kl.Conv2D, kl.Conv3D) for _ in range(15)]
# These keep the shape, or may.
SAME = [
    "keras.Activation", "keras.Dense", "keras.Conv1D", "keras.Conv2D", "keras.Conv3D",
    "keras.BatchNormalization", "keras.ReLU", "keras.PReLU", "keras.ELU", "keras.MaxPooling2D",
    "dynzoo.GradientFlow", "dynzoo.MaxMin", "dynzoo.LearnedScale", "dynzoo.BetaAbs",
    "dynzoo.SwitchingFlow", "dynzoo.HamiltonianFlow", "Sort", "Flip", "Roll", "Multiply", "Divide",
    "Clip", "Sin", "Softmax", "LogSoftmax", "Matmul", "Negative", "Add", "keras.Rescaling",
    "keras.SeparableConv2D", "keras.DepthwiseConv2D", "keras.Conv2DTranspose", "shared",
]  # fmt: skip


# --- whole models ------------------------------------------------------------------------------


def _head(g, x):
    x = x if len(x.shape) == 2 else kl.Flatten()(x)
    classes = g.integer(2, 5)
    kind = g.integer(0, 9)
    if kind == 0:
        return dl.UnitRowDense(classes)(x)
    if kind == 1:
        return dl.OrthonormalDense(min(classes, channels(x)))(x) if channels(x) > 1 else x
    if kind == 2 and channels(x) > 1:
        return x
    if kind == 3:
        return kl.Dense(classes, activation="tanh")(x)
    if kind == 4:
        return kl.Dropout(0.2)(kl.Dense(classes)(x))
    if kind == 5:
        return kl.Rescaling(3.0)(kl.Dense(classes)(x))
    return kl.Dense(classes, use_bias=g.coin(0.8))(x)


def values(rng, shape, distribution):
    """Numbers of one distribution."""
    size = int(np.prod(shape))
    normal = rng.normal(size=shape)
    match distribution:
        case "gaussian":
            return 0.6 * normal
        case "wide":
            return 3.0 * normal
        case "sparse":
            return normal * (rng.random(size=shape) < 0.25)
        case "equal":
            return np.full(shape, rng.choice([0.1, 1.0 / 3.0, -1.0]))
        case "near_singular":
            flat = normal.reshape(-1, shape[-1]) if shape else normal.reshape(1, 1)
            return (np.outer(flat[:, 0], flat[0]) + 1e-5 * flat).reshape(shape)
        case "huge":
            return normal * 10.0 ** rng.uniform(1, 6)
        case "tiny":
            return normal * 10.0 ** rng.uniform(-6, -1)
        case "alternating":
            return 0.7 * (1.0 - 2.0 * (np.arange(size) % 2)).reshape(shape)
    raise KeyError(distribution)


def set_weights(model, rng, distribution):
    """New values for every weight, moving averages too; variances stay positive."""
    for weight in model.weights:
        if str(weight.dtype) not in ("float32", "float64") or "seed_generator" in weight.path:
            continue
        kind = distribution
        if kind == "mixed":
            kind = DISTRIBUTIONS[int(rng.integers(len(DISTRIBUTIONS) - 1))]
        value = values(rng, tuple(weight.shape), kind)
        if "variance" in weight.path:
            value = np.abs(value) + rng.choice([0.2, 1e-4])
        weight.assign(value.astype(str(weight.dtype)))


def random_graph(seed, dtype="float32", piece=None):
    """A model, and the distribution of its weights.

    Args:
        seed: an integer; the same seed gives the same graph.
        dtype: "float32" or "float64".
        piece: a key of `PIECES` that the graph must hold; None for whatever comes.

    Returns:
        (model, distribution)
    """
    for attempt in range(200):
        g = Grower(seed + 1_000_000 * attempt, dtype)
        with precision(dtype):
            inputs = keras.Input(g.pick(SHAPES))
            try:
                x = g.grow(inputs, g.integer(0, 2))
                x = g.add(piece, x) if piece else g.grow(x, g.integer(1, 4))
                outputs = _head(g, g.grow(x, g.integer(0, 2)))
                need(2 <= outputs.shape[-1] <= 40)
                need(int(np.prod(inputs.shape[1:])) <= LARGEST)
            except DoesNotFit:
                continue
            model = keras.Model(inputs, outputs)
        if g.activation_layers:  # they have no weights before the first call
            try:
                model(np.zeros((1, *model.input_shape[1:]), dtype), training=False)
            except (RuntimeError, NotImplementedError):
                pass  # a graph that PyTorch builds and cannot run: for `certify` to refuse
        distribution = g.pick(["gaussian", "gaussian", *DISTRIBUTIONS])
        set_weights(model, g.rng, distribution)
        return model, distribution
    raise AssertionError(f"no graph with {piece} in 200 attempts")
