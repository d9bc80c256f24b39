"""`to_flows`: blocks of published 1-Lipschitz families, as single layers with measured bounds."""

import keras
import numpy as np
import pytest

import dynzoo
from dynzoo import backend, operators
from dynzoo import layers as dl
from dynzoo.convert import to_flows, to_plain

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


def parameter(*shape, scale=1.0):
    return nn.Parameter(scale * torch.randn(shape))


class Rescaled(nn.Module):
    """x - 2 W^T T^-1 relu(W x + b), T from the sums of |W W^T| (SLL), on vectors."""

    def __init__(self, features, units):
        super().__init__()
        self.w, self.b, self.q = parameter(units, features), parameter(units), parameter(units)

    def forward(self, x):
        q = torch.exp(0.3 * self.q)
        t = (q / q[:, None] * (self.w @ self.w.T)).abs().sum(1)
        return x - 2 * F.linear(torch.relu(F.linear(x, self.w, self.b)) / t, self.w.T)


class PowerIteration(nn.Module):
    """x - 2 / s^2 W^T relu(W x + b) on images, s from a few steps of power iteration."""

    def __init__(self, channels, units, rounds):
        super().__init__()
        self.w, self.b = parameter(units, channels, 3, 3), parameter(units, scale=0.1)
        u = torch.randn(1, channels, 6, 6)
        for _ in range(rounds):
            u = F.conv_transpose2d(F.conv2d(u, self.w, padding=1), self.w, padding=1)
            u = u / u.norm()
        self.register_buffer("square", F.conv2d(u, self.w, padding=1).square().sum())

    def forward(self, x):
        y = torch.relu(F.conv2d(x, self.w, self.b, padding=1))
        return x - 2 / self.square * F.conv_transpose2d(y, self.w, padding=1)


class AlmostOrthogonal(nn.Conv2d):
    """A kernel with its columns divided by the sums of |W^T W| (AOL)."""

    def forward(self, x):
        w = self.weight
        gram = F.conv2d(w.transpose(0, 1), w.transpose(0, 1), padding=w.shape[-1] - 1)
        d = gram.abs().sum((1, 2, 3)).rsqrt()
        return F.conv2d(x, w * d[None, :, None, None], self.bias, padding=self.padding)


class LinearResidual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class MaxMin(nn.Module):
    def forward(self, x):
        a, b = x.split(x.shape[1] // 2, 1)
        return torch.cat([torch.max(a, b), torch.min(a, b)], 1)


def converted(*parts, shape=(6, 6, 4)):
    torch.manual_seed(0)
    network = nn.Sequential(*[part() for part in parts], nn.Flatten(), nn.LazyLinear(3))
    order = (0, len(shape), *range(1, len(shape)))
    network(torch.zeros(1, *shape).permute(*order))
    plain = dynzoo.convert.from_torch(network, shape)
    return plain, to_flows(plain)


def gains(model):
    return {row.class_name: row.gain for row in dynzoo.certify(model).layers}


def jacobian_norm(model, layer):
    """Largest singular value of the layer's derivative at random points, in float64."""
    rng, shape = np.random.default_rng(0), layer.input.shape[1:]
    best = 0.0
    for _ in range(4):
        x = rng.normal(size=(1, *shape))
        size = x.size
        steps = 1e-6 * np.eye(size).reshape(size, *shape)
        moved = layer.call_float64(x + steps) - layer.call_float64(x - steps)
        best = max(best, np.linalg.norm(moved.reshape(size, -1) / 2e-6, 2))
    return best


def test_rescaled_blocks_are_gradient_steps():
    plain, flows = converted(nn.Flatten, lambda: Rescaled(144, 40))
    assert gains(plain)["Subtract"] is None
    assert gains(flows)["GradientFlow"] <= 1 + 1e-5
    assert dynzoo.certify(flows).lipschitz < 0.7 * dynzoo.certify(plain).lipschitz
    step = next(layer for layer in flows.layers if isinstance(layer, dl.GradientFlow))
    assert step.step_size == 2.0  # a scale for each unit, half of it on either side
    assert jacobian_norm(flows, step) <= gains(flows)["GradientFlow"] * (1 + 1e-6)


@pytest.mark.parametrize(("rounds", "low", "high"), [(1, 1.01, 8.0), (200, 1.0, 1.2)])
def test_gradient_steps_get_the_bound_that_their_estimate_does_not_give(rounds, low, high):
    """One step of power iteration is below the norm, so that the step is not 1-Lipschitz."""
    _, flows = converted(lambda: PowerIteration(4, 6, rounds))
    assert low <= gains(flows)["GradientFlow"] <= high


def test_orthogonal_kernels_and_power_iteration_in_float64_give_one():
    """A 1x1 kernel with orthonormal rows: a reflection, whose norm is known."""

    def block():
        made = PowerIteration(4, 3, 1)
        w = torch.zeros(3, 4, 3, 3)
        w[:, :, 1, 1] = torch.linalg.qr(torch.randn(4, 4))[0][:3]
        made.w.data, made.square = w, torch.tensor(1.0)
        return made

    plain, flows = converted(block)
    assert gains(flows)["GradientFlow"] == pytest.approx(1.0, abs=1e-5)
    last = gains(plain)["Dense"]
    assert dynzoo.certify(plain).lipschitz == pytest.approx(3 * last, rel=1e-4)
    assert dynzoo.certify(flows).lipschitz == pytest.approx(last, rel=1e-4)


def test_almost_orthogonal_kernels_and_linear_residuals_are_measured():
    plain, flows = converted(
        lambda: AlmostOrthogonal(4, 4, 3, padding=1),
        lambda: LinearResidual(nn.Conv2d(4, 4, 3, padding=1)),
        nn.Flatten,
        lambda: LinearResidual(nn.Linear(144, 144)),
    )
    assert not any(isinstance(layer, keras.layers.Add) for layer in flows.layers)
    rows = dynzoo.certify(flows).layers
    assert rows[0].gain <= 1 + 1e-5  # of the kernel that was rescaled
    assert dynzoo.certify(flows).lipschitz < dynzoo.certify(plain).lipschitz
    first = next(layer for layer in flows.layers if isinstance(layer, keras.layers.Dense))
    matrix = backend.to_numpy(first.kernel).astype("float64")
    assert [row.class_name for row in rows] == ["Conv2D", "Conv2D", "Flatten", "Dense", "Dense"]
    assert rows[-2].gain == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-9)


def test_pairs_of_channels_keep_every_distance():
    plain, flows = converted(MaxMin)
    assert gains(flows)["MaxMin"] == 1.0
    assert dynzoo.certify(plain).lipschitz > 1.4 * dynzoo.certify(flows).lipschitz


def random_model(layer, shape):
    model = keras.Sequential(
        [keras.Input(shape), layer, keras.layers.Flatten(), dl.UnitRowDense(3)]
    )
    rng = np.random.default_rng(0)
    model.set_weights([w + 0.05 * rng.normal(size=w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: dl.GradientFlow(operators.Dense(5), steps=2), (8,)),
        (lambda: dl.GradientFlow(operators.Conv(3), "tanh", 0.7, constraint=None), (5, 4, 2)),
        (lambda: dl.GradientFlow(operators.Pointwise(3), "half_leaky_relu"), (4, 4, 4)),
        (lambda: dl.GradientFlow(operators.Conv(3, 2), use_bias=False), (4, 4, 2)),
        (lambda: dl.MaxMin(), (4, 4, 4)),
    ],
)
def test_plain_layers_find_back_what_they_were(layer, shape):
    model = random_model(layer(), shape)
    again = to_flows(to_plain(model))
    expected = dynzoo.certify(model).lipschitz
    assert dynzoo.certify(again).lipschitz == pytest.approx(expected, rel=1e-5)


def test_what_is_no_such_block_stays():
    """Expansive, another matrix on the way back, or a bias there: each keeps its sum."""
    rng = np.random.default_rng(0)
    for change in ("sign", "matrix", "bias"):
        inputs = keras.Input((6,))
        kernel = rng.normal(size=(6, 5))
        first, second = keras.layers.Dense(5, "linear"), keras.layers.Dense(6)
        y = second(keras.layers.ReLU()(first(inputs)))
        join = keras.layers.Add() if change == "sign" else keras.layers.Subtract()
        model = keras.Model(inputs, join([inputs, y]))
        back = kernel.T + (0.01 * rng.normal(size=(5, 6)) if change == "matrix" else 0)
        first.set_weights([kernel, rng.normal(size=5)])
        second.set_weights([back, np.full(6, 0.1 if change == "bias" else 0.0)])
        assert dynzoo.certify(to_flows(model)).lipschitz == dynzoo.certify(model).lipschitz


def test_sorted_pairs_are_known_by_the_name_of_their_class():
    """As torchlip's module, whose own code torch.fx cannot read."""

    def forward(self, x):
        pairs = x.reshape(len(x), -1, 2, *x.shape[2:])
        return torch.cat([pairs.amin(2, True), pairs.amax(2, True)], 2).reshape(x.shape)

    home = {"__module__": "deel.torchlip.modules.activation", "group_size": 2, "forward": forward}
    kind = type("GroupSort2", (nn.Module,), home)
    plain, _ = converted(kind, nn.Flatten, lambda: nn.Linear(144, 6), kind)
    assert gains(plain)["MaxMin"] == 1.0
    kind.group_size = 3
    with pytest.raises(dynzoo.convert.ConversionError, match="only pairs are sorted"):
        converted(kind)


def test_sorted_pairs_of_torchlip():
    torchlip = pytest.importorskip("deel.torchlip", reason="deel-torchlip is not installed")
    torch.manual_seed(0)
    network = torchlip.Sequential(
        torchlip.SpectralConv2d(2, 4, 3, padding=1),
        torchlip.GroupSort2(),
        nn.Flatten(),
        torchlip.SpectralLinear(64, 8),
        torchlip.GroupSort2(),
        torchlip.SpectralLinear(8, 3),
    )
    network(torch.zeros(2, 2, 4, 4))
    model = dynzoo.convert.from_torch(network.vanilla_export(), (4, 4, 2))
    assert dynzoo.certify(model).lipschitz <= 1.1


@pytest.mark.filterwarnings("ignore")  # its own, of Python and of torch
def test_blocks_of_orthogonium():
    pytest.importorskip("orthogonium", reason="orthogonium is not installed")
    from orthogonium.layers.conv.SLL.sll_layer import SDPBasedLipschitzDense
    from orthogonium.layers.conv.SLL.sll_layer import SDPBasedLipschitzResBlock as Block

    _, flows = converted(
        lambda: Block(4, 2, 3), nn.Flatten, lambda: SDPBasedLipschitzDense(144, 144, 40)
    )
    kinds = [type(layer).__name__ for layer in flows.layers]
    assert kinds.count("GradientFlow") == 2
