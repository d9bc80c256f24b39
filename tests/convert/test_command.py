"""`dynzoo import`: weights of PyTorch and ONNX files as presets."""

import json
from pathlib import Path

import numpy as np
import pytest

import dynzoo
from dynzoo import backend
from dynzoo.cli.program import main

torch = pytest.importorskip("torch")
nn = torch.nn
LAYERS = ["Conv2d(3, 4, 3, padding=1)", "ReLU", "Flatten", "Linear(256, 3)"]


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A network, and its state dict twice in a file beside the description of its layers."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
    )
    torch.save({"state_dict": [module.state_dict()] * 2}, "small.pth")
    text = json.dumps({"input_shape": [8, 8, 3], "layers": LAYERS})
    (tmp_path / "small.yaml").write_text(text)
    return module


def said(capsys, line, code=0):
    assert main(line.split()) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_weights_become_a_preset(network, capsys):
    line = "import small.pth --arch small.yaml --network 1 --dataset cifar10 --output mine"
    text = said(capsys, line)
    assert "Lipschitz bound" in text and "imported: " in text
    model = dynzoo.from_preset("mine")
    x = np.random.default_rng(0).random((4, 8, 8, 3), dtype="float32")
    with torch.no_grad():
        expected = network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(backend.to_numpy(model(x, training=False)), expected, atol=1e-5)
    about = json.loads(Path("mine/metadata.json").read_text())
    assert about["dataset"] == "cifar10" and about["imported"]["file"] == "small.pth"
    assert "mine holds a preset already" in said(capsys, line, 2)


def test_flows_are_bounded_as_a_whole(network, capsys, tmp_path):
    body = ["Conv2d(3, 3, 3, padding=1)"]
    layers = [{"Residual": {"body": body, "shortcut": []}}, "Flatten", "Linear(192, 3)"]
    description = {"input_shape": [8, 8, 3], "layers": layers}
    (tmp_path / "block.yaml").write_text(json.dumps(description))
    module = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Linear(192, 3))
    torch.save(module.state_dict(), "block.pth")
    bounds = []
    for name, more in (("sum", ""), ("whole", " --flows")):
        said(capsys, f"import block.pth --arch block.yaml --output {name}{more}")
        bounds.append(dynzoo.certify(dynzoo.from_preset(name)).lipschitz)
    assert bounds[1] < bounds[0]


def test_what_cannot_be_done_is_one_line(network, capsys, tmp_path):
    text = said(capsys, "import small.pth --arch small.yaml", 2)
    assert "`network` must say which of the 2 networks" in text
    (tmp_path / "small.yaml").write_text(json.dumps(["LayerNorm(3)"]))
    text = said(capsys, "import small.pth --arch small.yaml --network 0 --input-shape 8,8,3", 2)
    assert "names `LayerNorm`, which is not known" in text and text.count("dynzoo: error:") == 1


def test_onnx(tmp_path, monkeypatch, capsys):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    weights = onnx.numpy_helper.from_array(np.eye(4, 3, dtype="float32"), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", 1, ["n", 4])],
        [helper.make_tensor_value_info("y", 1, ["n", 3])],
        [weights],
    )
    opset = [helper.make_opsetid("", 20)]
    monkeypatch.chdir(tmp_path)
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), "small.onnx")
    assert "those of  ONNX" in " ".join(said(capsys, "import small.onnx").split("\n"))
    assert dynzoo.from_preset("runs/small").output_shape == (None, 3)
