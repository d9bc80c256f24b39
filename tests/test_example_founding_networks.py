"""The founding paper's checkpoints: a file of their format, against PyTorch's own operations."""

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import slow_elsewhere

import dynzoo
from dynzoo import backend

torch = pytest.importorskip("torch")
F = torch.nn.functional
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("needs the repository's examples", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))

import founding_networks  # noqa: E402

sys.path.remove(str(EXAMPLES))

WIDTHS, LAYERS, CLASSES = (4, 6, 8), 2, 5


def state_dict(kind, seed=0):
    """Random numbers under the names of the published files."""
    random = torch.Generator().manual_seed(seed)

    def numbers(*shape, scale=0.3):
        return scale * torch.randn(shape, generator=random)

    state, channels = {}, 3
    for stage, width in enumerate(WIDTHS):
        prefix = f"seq.{stage}."
        state[prefix + "u"] = numbers(LAYERS)
        state[prefix + "rescalings"] = numbers(1 if kind == "flexible" else 1 + LAYERS // 2) + 1
        state[prefix + "conv1.0.weight"] = numbers(width, channels, 3, 3)
        for i in range(LAYERS):
            state[f"{prefix}convs.{i}.weight"] = numbers(width, width, 3, 3, scale=0.15)
            state[f"{prefix}convs.{i}.bias"] = numbers(width)
        channels = width
    state["FC.1.weight"], state["FC.1.bias"] = numbers(CLASSES, 8), numbers(CLASSES)
    return state


def published(state, kind, x):
    """Logits by the formulas of the paper, as its code has them."""
    mean, deviation = (
        torch.tensor(v).reshape(3, 1, 1)
        for v in (founding_networks.MEAN, founding_networks.DEVIATION)
    )
    x = (x - mean) / deviation
    for stage in range(3):

        def get(name, stage=stage):
            return state[f"seq.{stage}.{name}"]

        def field(x, i, rho, get=get):
            weight = get(f"convs.{i}.weight")
            inner = rho(F.conv2d(x, weight, get(f"convs.{i}.bias"), padding=1))
            return inner, F.conv_transpose2d(inner, weight, padding=1)

        def leaky(x):
            return F.leaky_relu(x, 0.5)

        u, scales = get("u").abs(), get("rescalings")
        x = torch.relu(scales[-1] * F.conv2d(x, get("conv1.0.weight"), padding=1))
        for i in range(0, LAYERS, 1 if kind == "contractive" else 2):
            if kind == "contractive":
                x = x - u[i] * field(x, i, torch.relu)[1]
            elif kind == "prescribed":
                for _ in range(2):
                    x = x + u[i] / 2 * scales[i // 2].clip(0, 1) * field(x, i, leaky)[0]
                    x = x - u[i + 1] / 2 * field(x, i + 1, leaky)[1]
            else:
                for _ in range(2):
                    x = x - u[i] / 2 * field(x, i, leaky)[1]
                x = x + u[i + 1] * field(x, i, torch.relu)[1]
        x = F.max_pool2d(x, 2)
    return F.linear(x.flatten(1), state["FC.1.weight"], state["FC.1.bias"])


@pytest.mark.parametrize("kind", founding_networks.KINDS)
def test_rebuilt(kind, tmp_path):
    state = state_dict(kind)
    torch.save(state, tmp_path / "model.pt")
    model = founding_networks.rebuilt(founding_networks.read(tmp_path / "model.pt"), kind)
    x = np.random.default_rng(0).random((4, 8, 8, 3), dtype="float32")
    expected = published(state, kind, torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    received = backend.to_numpy(model(x, training=False))
    np.testing.assert_allclose(received, expected, atol=2e-5 * np.abs(expected).max())
    assert np.isfinite(dynzoo.certify(model).lipschitz)


def test_kind_is_in_the_path():
    assert founding_networks.kind_of(Path("CIFAR10/Switch flexible/a.pt")) == "flexible"
    assert founding_networks.kind_of(Path("Non-expansive/a.pt")) == "contractive"
    with pytest.raises(SystemExit, match="--kind"):
        founding_networks.kind_of(Path("a.pt"))


@slow_elsewhere
def test_a_folder_is_attacked_and_certified(tmp_path, monkeypatch, capsys):
    """The command on a tiny file: a line a radius, what is proved below what survives attacks."""
    folder = tmp_path / "Non-expansive"
    folder.mkdir()
    torch.save(state_dict("contractive"), folder / "model.pt")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, size=(12, 8, 8, 3), dtype="uint8")
    model = founding_networks.rebuilt(founding_networks.read(folder / "model.pt"), "contractive")
    y = backend.to_numpy(model(x[:12].astype("float32") / 255)).argmax(axis=1)
    images = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    np.savez(tmp_path / "images.npz", **images)
    monkeypatch.setattr(founding_networks, "RADII", (0.01, 0.5))
    few = dynzoo.attacks.PGD(steps=10, restarts=1, loss="margin")  # keeps the test short
    monkeypatch.setattr(founding_networks, "STRONG", [few])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    words = [str(folder), "--data", str(tmp_path / "images.npz"), "--images", "4", "--strong", "4"]
    monkeypatch.setattr(sys, "argv", ["founding_networks.py", *words, "--local", "1"])
    founding_networks.main()
    lines = capsys.readouterr().out.splitlines()
    assert any("contractive" in line for line in lines)
    assert any("clean 100.00 %" in line for line in lines)
    rows = np.array([line.split() for line in lines[-2:]], float)
    radius, weak, strong, proved, near = rows.T
    assert list(radius) == [0.01, 0.5]
    assert np.all(proved <= strong) and np.all(strong <= weak) and np.all(near <= 100)
    assert np.all(np.diff(strong) <= 0) and np.all(np.diff(proved) <= 0)


def test_the_slope_of_a_stage_shows_a_step_whose_sign_was_dropped(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "Switch flexible"
    folder.mkdir()
    state = state_dict("flexible")
    for stage, width in enumerate(WIDTHS):
        kernel = torch.zeros(width, width, 3, 3)
        kernel[range(width), range(width), 1, 1] = 1.0  # A = I
        state[f"seq.{stage}.convs.0.weight"] = kernel
        state[f"seq.{stage}.convs.0.bias"] = torch.zeros(width)
        state[f"seq.{stage}.u"] = torch.tensor([0.11, -1.9 if stage == 2 else 0.05])
    torch.save(state, folder / "model.pt")
    x = np.random.default_rng(0).integers(0, 256, size=(4, 8, 8, 3), dtype="uint8")
    images = {"x_train": x, "y_train": np.arange(4), "x_test": x, "y_test": np.arange(4)}
    np.savez(tmp_path / "images.npz", **images)
    words = [str(folder), "--data", str(tmp_path / "images.npz"), "--slopes", "2"]
    monkeypatch.setattr(sys, "argv", ["founding_networks.py", *words])
    founding_networks.main()
    lines = capsys.readouterr().out.splitlines()[-3:]
    slopes = [float(line.split("slope ")[1].split()[0]) for line in lines]
    assert max(slopes[:2]) <= 1.0
    assert 1.5 < slopes[2] <= 0.945**2 * 2.9 + 2e-3
