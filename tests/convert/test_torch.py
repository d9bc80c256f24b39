"""`from_torch`: every module and function that it knows, against PyTorch on random weights."""

import sys

import keras
import numpy as np
import pytest

import dynzoo
from dynzoo import backend
from dynzoo.convert import ConversionError, from_torch
from dynzoo.convert.functions import FUNCTIONS
from dynzoo.convert.modules import MODULES

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

IMAGE, SEQUENCE, VECTOR = (8, 6, 4), (12, 4), (10,)


def randomised(module):
    """Weights and running statistics that are not those of a fresh module."""
    generator = torch.Generator().manual_seed(1)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            with torch.no_grad():
                value.copy_(noise + 0.5 if "var" in name else (noise - 0.4) * 0.8)
    return module


def compared(module, shape):
    """The Keras model, after a comparison on numbers of both signs."""
    model = from_torch(module, shape)
    x = np.random.default_rng(5).normal(size=(20, *shape)).astype("float32")
    order = (0, len(shape), *range(1, len(shape)))
    module.eval()
    with torch.no_grad():
        expected = module(torch.from_numpy(x.transpose(order).copy())).numpy()
    received = backend.to_numpy(model(x, training=False))
    if received.ndim > 2:
        received = np.moveaxis(received, -1, 1)
    np.testing.assert_allclose(received, expected, atol=2e-5 * max(1, np.abs(expected).max()))
    return model


def head(channels, pixels):
    """A dense layer behind a flattened image, where the order of its entries shows."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * pixels, 3))


class Plain(nn.Module):
    """A function of the input as a module, with a parameter or two."""

    def __init__(self, function, **parameters):
        super().__init__()
        self.function = function
        for name, shape in parameters.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))

    def forward(self, x):
        return self.function(self, x)


MADE = {
    "Linear": (nn.Linear(10, 5), VECTOR),
    "Linear without bias": (nn.Linear(10, 5, bias=False), VECTOR),
    "Conv1d": (nn.Sequential(nn.Conv1d(4, 6, 3, stride=2, padding=1), head(6, 6)), SEQUENCE),
    "Conv1d dilated": (nn.Sequential(nn.Conv1d(4, 6, 3, dilation=2), head(6, 8)), SEQUENCE),
    "Conv2d": (nn.Sequential(nn.Conv2d(4, 6, 3), head(6, 24)), IMAGE),
    "Conv2d same": (nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), head(6, 48)), IMAGE),
    "Conv2d padding='same'": (nn.Conv2d(4, 6, (5, 3), padding="same"), IMAGE),
    "Conv2d stride 2": (nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), head(6, 12)), IMAGE),
    "Conv2d 4x4 stride 2": (nn.Conv2d(4, 6, 4, 2, 1), IMAGE),
    "Conv2d uneven": (nn.Conv2d(4, 6, (3, 2), stride=(3, 1), padding=(2, 0)), IMAGE),
    "Conv2d dilated": (nn.Conv2d(4, 6, 3, padding=2, dilation=2), IMAGE),
    "Conv2d dilated with a stride": (nn.Conv2d(4, 6, 3, 2, 1, dilation=2), IMAGE),
    "Conv2d in groups": (nn.Conv2d(4, 6, 3, padding=1, groups=2), IMAGE),
    "Conv2d depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), IMAGE),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1), SEQUENCE),
    "ConvTranspose2d": (nn.Sequential(nn.ConvTranspose2d(4, 3, 4, 2, 1), head(3, 192)), IMAGE),
    "ConvTranspose2d 3x3": (nn.ConvTranspose2d(4, 3, 3, 2, 1, output_padding=1), IMAGE),
    "ConvTranspose2d large stride": (nn.ConvTranspose2d(4, 3, 2, stride=3), IMAGE),
    "ConvTranspose2d in groups": (nn.ConvTranspose2d(4, 6, 3, 1, 1, groups=2), IMAGE),
    "ConvTranspose2d dilated": (nn.ConvTranspose2d(4, 3, 3, padding=2, dilation=2), IMAGE),
    "BatchNorm1d": (nn.Sequential(nn.BatchNorm1d(10), nn.Linear(10, 3)), VECTOR),
    "BatchNorm1d of a sequence": (nn.BatchNorm1d(4), SEQUENCE),
    "BatchNorm1d behind Flatten": (
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.ReLU(), nn.Linear(192, 3)),
        IMAGE,
    ),
    "BatchNorm2d": (nn.BatchNorm2d(4, eps=1e-3), IMAGE),
    "BatchNorm2d plain": (nn.BatchNorm2d(4, affine=False), IMAGE),
    "ReLU": (nn.ReLU(), IMAGE),
    "ReLU6": (nn.ReLU6(), IMAGE),
    "LeakyReLU": (nn.LeakyReLU(0.3), IMAGE),
    "PReLU": (nn.PReLU(), IMAGE),
    "PReLU by channel": (nn.PReLU(4), IMAGE),
    "PReLU behind Flatten": (nn.Sequential(nn.Flatten(), nn.PReLU(192), nn.Linear(192, 3)), IMAGE),
    "ELU": (nn.ELU(0.7), IMAGE),
    "CELU": (nn.CELU(), IMAGE),
    "SELU": (nn.SELU(), IMAGE),
    "Sigmoid": (nn.Sigmoid(), IMAGE),
    "LogSigmoid": (nn.LogSigmoid(), IMAGE),
    "Hardsigmoid": (nn.Hardsigmoid(), IMAGE),
    "Tanh": (nn.Tanh(), IMAGE),
    "Tanhshrink": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanhshrink()), IMAGE),
    "Hardtanh": (nn.Hardtanh(-0.5, 0.75), IMAGE),
    "Softplus": (nn.Softplus(), IMAGE),
    "Softplus sharp": (nn.Softplus(beta=5), IMAGE),
    "Softsign": (nn.Softsign(), IMAGE),
    "GELU": (nn.GELU(), IMAGE),
    "GELU by tanh": (nn.GELU(approximate="tanh"), IMAGE),
    "SiLU": (nn.SiLU(), IMAGE),
    "Hardswish": (nn.Hardswish(), IMAGE),
    "Mish": (nn.Mish(), IMAGE),
    "Softmax": (nn.Softmax(1), VECTOR),
    "Softmax behind Flatten": (nn.Sequential(nn.Flatten(), nn.Softmax(1)), IMAGE),
    "LogSoftmax": (nn.LogSoftmax(1), VECTOR),
    "MaxPool1d": (nn.MaxPool1d(2), SEQUENCE),
    "MaxPool2d": (nn.Sequential(nn.MaxPool2d(2), head(4, 12)), IMAGE),
    "MaxPool2d same": (nn.MaxPool2d(3, 1, 1), IMAGE),
    "MaxPool2d of a ReLU": (nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2, 1)), IMAGE),
    "MaxPool2d ceil_mode": (nn.MaxPool2d(3, 2, ceil_mode=True), IMAGE),
    "AvgPool1d": (nn.AvgPool1d(3), SEQUENCE),
    "AvgPool2d": (nn.AvgPool2d(2), IMAGE),
    "AvgPool2d over zeros": (nn.AvgPool2d(3, 2, 1), IMAGE),
    "AvgPool2d without zeros": (nn.AvgPool2d(3, 1, 1, count_include_pad=False), IMAGE),
    "AdaptiveAvgPool1d": (nn.AdaptiveAvgPool1d(3), SEQUENCE),
    "AdaptiveAvgPool2d": (nn.Sequential(nn.AdaptiveAvgPool2d(1), head(4, 1)), IMAGE),
    "AdaptiveAvgPool2d parts": (nn.AdaptiveAvgPool2d((4, 2)), IMAGE),
    "AdaptiveAvgPool2d one axis": (nn.AdaptiveAvgPool2d((None, 1)), IMAGE),
    "AdaptiveMaxPool1d": (nn.AdaptiveMaxPool1d(1), SEQUENCE),
    "AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d((2, 3)), IMAGE),
    "Flatten": (nn.Flatten(), IMAGE),
    "Flatten to a sequence": (nn.Flatten(2), IMAGE),
    "Unflatten": (nn.Sequential(nn.Linear(10, 24), nn.Unflatten(1, (2, 3, 4))), VECTOR),
    "Unflatten what was flattened": (
        nn.Sequential(nn.Flatten(), nn.Unflatten(1, (8, 4, 6)), nn.Conv2d(8, 2, 3)),
        IMAGE,
    ),
    "PixelUnshuffle": (nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(16, 3, 1)), IMAGE),
    "ZeroPad1d": (nn.ZeroPad1d((1, 2)), SEQUENCE),
    "ZeroPad2d": (nn.ZeroPad2d((1, 2, 0, 3)), IMAGE),
    "ZeroPad2d crops": (nn.ZeroPad2d((-1, 2, 0, 3)), IMAGE),
    "Identity": (nn.Identity(), IMAGE),
    "Dropout": (nn.Dropout(0.5), IMAGE),
    "Dropout1d": (nn.Dropout1d(), SEQUENCE),
    "Dropout2d": (nn.Dropout2d(), IMAGE),
    "AlphaDropout": (nn.AlphaDropout(), IMAGE),
}


@pytest.mark.parametrize("name", MADE)
def test_module(name):
    module, shape = MADE[name]
    compared(randomised(module), shape)


def test_every_module_is_tried():
    assert {name.split()[0] for name in MADE} == set(MODULES)


def resblock(self, x):
    return F.relu(F.conv2d(x, self.w, padding=1) + x)


def dense_block(self, x):
    return torch.cat([x, F.conv2d(x, self.w, padding=1)], 1)


def concatenated_vectors(self, x):
    both = torch.cat([x.flatten(1), F.relu(F.conv2d(x, self.w)).flatten(1)], dim=1)
    return F.linear(F.relu(both), self.v)


def residual_of_orders(self, x):
    return x.flatten(1) + F.linear(x.flatten(1), self.w)


def maxmin(self, x):
    a, b = x.chunk(2, dim=1)
    return torch.cat([torch.max(a, b), torch.minimum(a, b)], dim=1)


def gradient_step(self, x):
    weight = self.w / torch.linalg.matrix_norm(self.w, 2)
    return x - 2 * F.linear(F.relu(F.linear(x, weight, self.b)), weight.t())


def convolutional_gradient_step(self, x):
    inner = F.leaky_relu(F.conv2d(x, self.w, self.b, padding=1), 0.5)
    return x - 0.5 * F.conv_transpose2d(inner, self.w, padding=1)


def normalised(self, x):
    x = (x - torch.tensor([0.4, 0.5, 0.6, 0.7])[None, :, None, None]) / 0.25
    return x.mean((2, 3))


FUNCTIONAL = {
    "resblock": (Plain(resblock, w=(4, 4, 3, 3)), IMAGE),
    "dense block": (Plain(dense_block, w=(2, 4, 3, 3)), IMAGE),
    "vectors in two orders": (
        Plain(concatenated_vectors, w=(2, 4, 3, 3), v=(3, 192 + 48)),
        IMAGE,
    ),
    "sum of vectors": (Plain(residual_of_orders, w=(192, 192)), IMAGE),
    "maxmin": (Plain(maxmin), IMAGE),
    "gradient step": (Plain(gradient_step, w=(6, 10), b=(6,)), VECTOR),
    "gradient step of images": (
        Plain(convolutional_gradient_step, w=(6, 4, 3, 3), b=(6,)),
        IMAGE,
    ),
    "normalised": (Plain(normalised), IMAGE),
    "view": (Plain(lambda m, x: F.linear(x.view(x.size(0), -1), m.w), w=(3, 192)), IMAGE),
    "reshape": (Plain(lambda m, x: x.reshape(-1, 8, 24).permute(0, 2, 1)), IMAGE),
    "shape": (Plain(lambda m, x: x.view(x.shape[0], x.shape[1], -1).mean(2)), IMAGE),
    "matmul": (Plain(lambda m, x: x @ m.w + m.b, w=(10, 3), b=(3,)), VECTOR),
    "addmm": (Plain(lambda m, x: torch.addmm(m.b, x, m.w), w=(10, 3), b=(3,)), VECTOR),
    "position offset": (Plain(lambda m, x: 3 * x + m.w, w=(4, 8, 6)), IMAGE),
    "many scales": (Plain(lambda m, x: x.flatten(1) * m.w - 1, w=(192,)), IMAGE),
    "slices": (Plain(lambda m, x: x[:, 1:3, ..., ::2]), IMAGE),
    "one pixel": (Plain(lambda m, x: x[:, :, -1, 2] - x[..., 0, 0]), IMAGE),
    "sum of pixels": (Plain(lambda m, x: x.sum((-1, 2))), IMAGE),
    "largest pixel": (Plain(lambda m, x: x.amax((2, 3), keepdim=True)), IMAGE),
    "split": (Plain(lambda m, x: x.split([1, 3], dim=1)[1] - 1), IMAGE),
    "transpose": (Plain(lambda m, x: F.linear(x.transpose(1, 3), m.w), w=(5, 4)), IMAGE),
    "transpose and convolve": (
        Plain(lambda m, x: F.conv2d(x.permute(0, 2, 1, 3), m.w), w=(2, 8, 1, 1)),
        IMAGE,
    ),
    "squeeze": (Plain(lambda m, x: F.avg_pool2d(x, (8, 6)).squeeze(3).squeeze(2)), IMAGE),
    "unsqueeze": (Plain(lambda m, x: F.conv1d(x.unsqueeze(1), m.w), w=(2, 1, 3)), VECTOR),
    "clamp": (Plain(lambda m, x: x.clamp(min=0) - x.abs().clamp(0, 2) + x.clip(-1, 1)), IMAGE),
    "arithmetic": (Plain(lambda m, x: -(1 - x) * 2 / 3 + torch.sub(x, x.neg(), alpha=2)), IMAGE),
    "pixel_unshuffle": (Plain(lambda m, x: F.pixel_unshuffle(F.pad(x, (1, 1)), 2)), IMAGE),
    "dropout": (Plain(lambda m, x: F.dropout(x, 0.5, m.training).float().contiguous()), IMAGE),
}


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_function(name):
    module, shape = FUNCTIONAL[name]
    compared(randomised(module), shape)


def classifier():
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(32, 10),
            nn.Tanh(),
            nn.Linear(10, 4),
        )
    )


def test_result_is_certified_saved_and_needs_no_moves(tmp_path):
    model = compared(classifier(), (8, 8, 3))
    kinds = {type(layer).__name__ for layer in model.layers}
    assert "Permute" not in kinds and kinds <= {
        *("InputLayer ZeroPadding2D Conv2D BatchNormalization ReLU MaxPooling2D Flatten").split(),
        *("Dense", "Activation"),
    }
    certificate = dynzoo.certify(model)
    x = np.random.default_rng(0).random((4, 8, 8, 3), dtype="float32")
    labels, radii = certificate.radii(x)
    assert np.isfinite(radii).all() and (radii > 0).any()
    dynzoo.save_to_preset(model, tmp_path / "preset")
    again = dynzoo.from_preset(tmp_path / "preset")
    np.testing.assert_array_equal(
        backend.to_numpy(again(x, training=False)), backend.to_numpy(model(x, training=False))
    )


def test_maxmin_networks_are_saved(tmp_path):
    body = nn.Sequential(nn.Linear(10, 8), Plain(maxmin), nn.Linear(8, 3))
    model = compared(randomised(body), VECTOR)
    assert np.isfinite(dynzoo.certify(model).lipschitz)
    dynzoo.save_to_preset(model, tmp_path / "preset")
    dynzoo.from_preset(tmp_path / "preset")


def test_certified_residual_network():
    body = nn.Sequential(Plain(resblock, w=(4, 4, 3, 3)), head(4, 48))
    assert np.isfinite(dynzoo.certify(from_torch(randomised(body), IMAGE)).lipschitz)


@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of:FutureWarning")
def test_parametrizations_become_weights():
    from torch.nn.utils import parametrizations, spectral_norm, weight_norm

    module = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(10, 8)),
        parametrizations.spectral_norm(nn.Linear(8, 8)),
        parametrizations.orthogonal(nn.Linear(8, 8)),
        weight_norm(nn.Linear(8, 8)),
        spectral_norm(nn.Linear(8, 3)),
    )
    before = {k: v.clone() for k, v in module.state_dict().items()}
    model = compared(module.train(), VECTOR)
    assert {type(layer).__name__ for layer in model.layers} == {"InputLayer", "Dense"}
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_module_stays_as_it_was():
    module = classifier()
    module[1].eval()
    flags = [part.training for part in module.modules()]
    from_torch(module, (8, 8, 3))
    assert [part.training for part in module.modules()] == flags and True in flags


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    module = classifier().to(dtype)
    model = from_torch(module, (8, 8, 3))
    assert {v.dtype for v in module.parameters()} == {dtype}
    x = np.random.default_rng(5).random((20, 8, 8, 3), dtype="float32")
    with torch.no_grad():
        expected = module.float().eval()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(backend.to_numpy(model(x, training=False)), expected, atol=1e-5)


def test_double_precision_and_name():
    model = from_torch(classifier().double(), (8, 8, 3), name="small")
    assert model.name == "small" and model.dtype == "float32"
    assert [layer.name for layer in model.layers][1:4] == [
        "0_zeropadding2d",
        "0_conv2d",
        "1_batchnormalization",
    ]


# Refusals


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Pair(nn.Module):
    def forward(self, x):
        return x, x


REFUSED = {
    "unknown module": (
        nn.Sequential(nn.Linear(10, 4), nn.LayerNorm(4)),
        VECTOR,
        r"'1' of type `torch.nn.LayerNorm` cannot be converted: it is not known. Known are "
        r"AdaptiveAvgPool1d, .*, ZeroPad2d\.",
    ),
    "unknown function": (
        nn.Sequential(nn.Identity(), Plain(lambda m, x: torch.cumsum(x, 1))),
        VECTOR,
        r"'1.cumsum' of type `cumsum` cannot be converted: it is not known. Known functions",
    ),
    "padding mode": (
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        IMAGE,
        r"'0' of type `torch.nn.Conv2d`.*only padding_mode='zeros' is known; it is 'circular'",
    ),
    "batch statistics": (
        nn.BatchNorm2d(4, track_running_stats=False),
        IMAGE,
        "it normalises by the batch at hand; running statistics are needed",
    ),
    "padding of a maximum": (
        nn.MaxPool2d(3, 2, 1),
        IMAGE,
        r"its padding is not Keras' padding='same' at this size, .* that of a ReLU",
    ),
    "uneven parts": (
        nn.AdaptiveAvgPool2d(5),
        IMAGE,
        r"its output size \(5, 5\) does not divide its input of \(8, 6\) pixels",
    ),
    "product": (
        Plain(lambda m, x: x * x.sigmoid()),
        VECTOR,
        "'mul' of type `mul`.*it is a product of two tensors that depend on the input",
    ),
    "dropout at inference": (
        Plain(lambda m, x: F.dropout(x, 0.5)),
        VECTOR,
        "it drops entries at inference, too",
    ),
    "batch axis": (Plain(lambda m, x: x.flatten()), IMAGE, "it works along the batch axis"),
    "batch size": (
        Plain(lambda m, x: x.reshape(2, -1)),
        VECTOR,
        "its first size must be that of the batch",
    ),
    "broadcast sum": (
        Plain(lambda m, x: x + x[:, :1]),
        VECTOR,
        r"its tensors must have one shape; they have \(n, 10\) and \(n, 1\)",
    ),
    "branch": (
        Branching(),
        VECTOR,
        r"'the network' of type `Branching`.*torch.fx cannot read its `forward`",
    ),
    "two outputs": (Pair(), VECTOR, "its output is not one tensor"),
    "threshold": (nn.Softplus(threshold=1), VECTOR, "only threshold >= 15 is known; it is 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    module, shape, message = REFUSED[name]
    with pytest.raises(ConversionError, match=message):
        from_torch(module, shape)


def test_hooks_are_refused():
    module = nn.Sequential(nn.Linear(10, 3))
    module[0].register_forward_hook(lambda part, args, output: 2 * output)
    with pytest.raises(ConversionError, match=r"'0' of type `Linear`.*forward hook `<lambda>`"):
        from_torch(module, VECTOR)


def test_other_numbers_are_refused(monkeypatch):
    monkeypatch.setitem(MODULES, "ReLU", MODULES["ReLU6"])
    with pytest.raises(ConversionError, match=r"on 100 random images its outputs .* differ by"):
        from_torch(
            randomised(nn.Sequential(nn.ReLU(), Plain(lambda m, x: 20 * x), nn.ReLU())), VECTOR
        )


@pytest.mark.parametrize("shape", [None, (), (0, 3), "image", (1, 2, 3, 4)])
def test_input_shape_is_checked(shape):
    with pytest.raises(ValueError, match="`input_shape` must be that of one image"):
        from_torch(nn.ReLU(), shape)


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ImportError, match=r"needs PyTorch to read .*: pip install 'dynzoo\[torch\]'"
    ):
        from_torch(nn.ReLU(), IMAGE)


def test_images_that_do_not_fit():
    with pytest.raises(ValueError, match=r"does not take images of shape \(8, 8, 1\)"):
        from_torch(classifier(), (8, 8, 1))


def test_functions_have_names_of_torch():
    namespaces = (torch, F, torch.Tensor, __import__("operator"), __import__("builtins"))
    for name in FUNCTIONS:
        assert any(hasattr(space, name) for space in namespaces), name
    assert keras.backend.backend()


class InPlace(nn.Module):
    """A function that changes tensors in place, before a dense layer."""

    def __init__(self, change, features):
        super().__init__()
        self.change, self.relu, self.dense = change, nn.ReLU(inplace=True), nn.Linear(features, 3)

    def forward(self, x):
        return self.dense(self.change(self, x).flatten(1))


def _statement(module, x):
    x.sub_(0.5).div_(0.25)
    return x


def _clamped(module, x):
    x.clamp_(0.0, 1.0)
    return x


def _operator(module, x):
    x *= 2
    return x


def _function(module, x):
    y = F.relu(x, inplace=True)
    return x + 2 * y


def _shortcut(module, x):
    x = 3 * x
    y = module.relu(x)
    return x + y


@pytest.mark.parametrize("shape", [(6,), (4, 4, 1), (4, 4, 3)])
@pytest.mark.parametrize("change", [_statement, _clamped, _operator, _function, _shortcut])
def test_changes_in_place_are_seen_by_all_that_comes_later(change, shape):
    compared(randomised(InPlace(change, int(np.prod(shape)))), shape)


def test_changes_in_place_of_what_has_a_view_are_refused():
    def change(module, x):
        x = 3 * x
        view = x.flatten(1)
        x.relu_()
        return view

    with pytest.raises(ConversionError, match=r"relu_.*in place a tensor of which a view is used"):
        from_torch(InPlace(change, 48), (4, 4, 3))


def test_input_shape_has_whole_numbers():
    with pytest.raises(ValueError, match="`input_shape` must be"):
        from_torch(nn.ReLU(), (2.7, 2, 3))
