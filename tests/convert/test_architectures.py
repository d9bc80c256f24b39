"""State dicts with a description of their layers, and files of them."""

import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest

import dynzoo
from dynzoo import backend
from dynzoo.convert import from_torch

torch = pytest.importorskip("torch")
nn = torch.nn

SMALL = [
    "Normalize([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])",
    "Conv2d(3, 4, 3, stride=2, padding=1)",
    {"BatchNorm2d": 4},
    "ReLU",
    {
        "Residual": {
            "body": ["Conv2d(4, 4, 3, padding=1)", "ReLU()", {"Conv2d": [4, 4, 1]}],
            "shortcut": [{"Conv2d": {"in_channels": 4, "out_channels": 4, "kernel_size": 1}}],
        }
    },
    {"Sequential": ["LeakyReLU(0.1)", "Flatten"]},
    {"Linear": [64, 3]},
]


class Small(nn.Module):
    """The same network, with names of its own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 1)
        self.skip = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        mean = torch.tensor([0.5, 0.4, 0.3]).reshape(3, 1, 1)
        x = (x - mean) / torch.tensor([0.2, 0.25, 0.3]).reshape(3, 1, 1)
        x = torch.relu(self.norm(self.stem(x)))
        x = self.second(torch.relu(self.first(x))) + self.skip(x)
        return self.head(torch.flatten(nn.functional.leaky_relu(x, 0.1), 1))


def logits(model):
    x = np.random.default_rng(2).random((20, *model.input_shape[1:]), dtype="float32")
    return backend.to_numpy(model(x, training=False))


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return Small()


@pytest.mark.parametrize("kind", ["list", "json", "yaml"])
def test_description(kind, module, tmp_path):
    """The state dict of one module goes into the described one by its order."""
    architecture, shape = SMALL, (8, 8, 3)
    if kind != "list":
        architecture, shape = tmp_path / f"small.{kind}", None
        # JSON is YAML as well
        architecture.write_text(json.dumps({"input_shape": [8, 8, 3], "layers": SMALL}))
    model = from_torch(module.state_dict(), shape, architecture)
    np.testing.assert_allclose(logits(model), logits(from_torch(module, (8, 8, 3))), atol=1e-5)
    assert np.isfinite(dynzoo.certify(model).lipschitz)


def test_files(module, tmp_path):
    state = module.state_dict()
    other = {key: 2 * value for key, value in state.items()}
    torch.save(state, tmp_path / "one.pth")
    torch.save({"epoch": 3, "state_dict": [other, state]}, tmp_path / "two.pth")
    first = from_torch(tmp_path / "one.pth", (8, 8, 3), SMALL)
    second = from_torch(str(tmp_path / "two.pth"), (8, 8, 3), SMALL, network=1)
    np.testing.assert_array_equal(logits(first), logits(second))
    for network, message in (
        (None, "`network` must say which of the 2 networks of the file is meant"),
        (2, r"`network` must be in \[0, 1\]. Received: network=2"),
    ):
        with pytest.raises(ValueError, match=message):
            from_torch(tmp_path / "two.pth", (8, 8, 3), SMALL, network=network)
    with pytest.raises(ValueError, match="The file holds one network. Received: network=1"):
        from_torch(tmp_path / "one.pth", (8, 8, 3), SMALL, network=1)


def test_files_that_hold_code_are_not_run(tmp_path):
    torch.save(Small(), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"whole.pth is not read: only .*; it holds `[\w.]*Small`"):
        from_torch(tmp_path / "whole.pth", (8, 8, 3), SMALL)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="text.pth is not read: .* none that torch.save wrote"):
        from_torch(tmp_path / "text.pth", (8, 8, 3), SMALL)
    with pytest.raises(FileNotFoundError):
        from_torch(tmp_path / "none.pth", (8, 8, 3), SMALL)


WRONG = {
    "none": (None, "`architecture` is needed with a state dict, .* has stem.weight"),
    "no list": (3, "`architecture` must be a list of layers. Received: int"),
    "keys": ({"layer": []}, "A description has the keys `layers` and `input_shape`"),
    "unknown": (["Attention(3)"], r"'layers\[0\]' names `Attention`, .* Known are Adaptive"),
    "no layer": ([3], r"'layers\[0\]' must be a layer such as .* Received: 3"),
    "code": (["Conv2d(print(1))"], r"'layers\[0\]' must be a name and numbers"),
    "code in a name": (["nn.Conv2d(3)"], r"'layers\[0\]' must be a name and numbers"),
    "arguments": (["Conv2d(3)"], r"'layers\[0\]', 'Conv2d\(3\)', does not fit"),
    "nested": ([{"Residual": {"body": [3]}}], r"'layers\[0\].body\[0\]' must be a layer"),
    "count": (SMALL[:3], "`architecture` has 2 layers with weights, the state dict 6"),
    "shapes": (
        [*SMALL[:1], "Conv2d(3, 5, 3)", *SMALL[2:]],
        r"Layer 1 of `architecture`, Conv2d.* has weight \(5, 3, 3, 3\), bias \(5,\).; the next "
        r"one of the state dict is 'stem' with weight \(4, 3, 3, 3\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_descriptions(name, module):
    architecture, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        from_torch(module.state_dict(), (8, 8, 3), architecture)


@pytest.mark.parametrize(("suffix", "message"), [("json", "is no JSON"), ("yaml", "is no YAML")])
def test_wrong_description_files(suffix, message, module, tmp_path):
    (tmp_path / f"a.{suffix}").write_text("[{]")
    with pytest.raises(ValueError, match=message):
        from_torch(module.state_dict(), (8, 8, 3), tmp_path / f"a.{suffix}")


def test_description_files_are_text(module, tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="The description of the layers is no text: .*a.yaml"):
        from_torch(module.state_dict(), (8, 8, 3), tmp_path / "a.yaml")


def test_wrong_sources(module):
    with pytest.raises(ValueError, match="`source` must be a torch.nn.Module, a state dict, or a"):
        from_torch(3, (8, 8, 3), SMALL)
    with pytest.raises(ValueError, match="A state dict holds tensors only; 'a' is none"):
        from_torch({"a": 3}, (8, 8, 3), SMALL)
    with pytest.raises(ValueError, match="go with a state dict, not a module"):
        from_torch(module, (8, 8, 3), SMALL)


PUBLISHED = "cifar_small_36px.pth"
CASCADE = [
    "Normalize([0.485, 0.456, 0.406], 0.225)",
    *("Conv2d(3, 16, 4, stride=2, padding=1)", "ReLU"),
    *("Conv2d(16, 32, 4, stride=2, padding=1)", "ReLU"),
    *("Flatten", "Linear(2048, 100)", "ReLU", "Linear(100, 10)"),
]


def published():
    path = Path(os.environ.get("DYNZOO_MODELS", "models")) / PUBLISHED
    return path if path.is_file() else None


@pytest.mark.skipif(published() is None, reason=f"set DYNZOO_MODELS to a folder with {PUBLISHED}")
def test_published_network(cifar10_test):
    """E. Wong's network with provable L2 robustness: 60.0 % of the first 60 test images."""
    model = from_torch(published(), (32, 32, 3), CASCADE, network=0)
    assert {type(layer) for layer in model.layers[1:]} == {
        keras.layers.Rescaling,
        keras.layers.Conv2D,
        keras.layers.ReLU,
        keras.layers.Flatten,
        keras.layers.Dense,
    }
    x, y = cifar10_test
    assert np.mean(np.argmax(backend.to_numpy(model(x[:60])), 1) == np.ravel(y[:60])) == 0.6
    assert 80 < dynzoo.certify(model).lipschitz < 120
