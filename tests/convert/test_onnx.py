"""`from_onnx`: graphs made by hand against what onnx itself computes."""

import numpy as np
import pytest

import dynzoo
from dynzoo import backend
from dynzoo.convert import ConversionError, from_onnx
from dynzoo.convert.onnx_graph import OPERATORS

onnx = pytest.importorskip("onnx")
reference = pytest.importorskip("onnx.reference")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
random = np.random.default_rng(3)

IMAGE, SEQUENCE, VECTOR = (4, 8, 6), (4, 12), (10,)


def numbers(*shape):
    return random.normal(size=shape).astype("float32")


def graph(shape, *nodes, batch="n", opset=20, **constants):
    """A model x -> y with these nodes; constants become initializers."""
    arrays = {k: np.asarray(v) for k, v in constants.items()}
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", 1, [batch, *shape])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(v, k) for k, v in arrays.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(kind, inputs="x", outputs="y", **attributes):
    return helper.make_node(kind, inputs.split(), outputs.split(), f"the {kind}", **attributes)


def one(shape, kind, inputs="x", constants=None, **attributes):
    return graph(shape, node(kind, inputs, **attributes), **(constants or {}))


def integers(*values):
    return np.array(values, np.int64)


ZEROS = np.float32(0)
MADE = {
    "Gemm": one(VECTOR, "Gemm", "x w b", {"w": numbers(3, 10), "b": numbers(3)}, transB=1),
    "Gemm scaled": one(
        VECTOR, "Gemm", "x w b", {"w": numbers(10, 3), "b": numbers(1, 3)}, alpha=0.5, beta=2.0
    ),
    "MatMul": one(VECTOR, "MatMul", "x w", {"w": numbers(10, 3)}),
    "Conv": one(
        IMAGE, "Conv", "x w b", {"w": numbers(6, 4, 3, 3), "b": numbers(6)}, pads=[1, 1, 1, 1]
    ),
    "Conv uneven": one(
        IMAGE, "Conv", "x w", {"w": numbers(6, 2, 3, 3)}, pads=[1, 0, 0, 2], strides=[2, 1], group=2
    ),
    "Conv auto": one(
        IMAGE, "Conv", "x w", {"w": numbers(6, 4, 3, 3)}, auto_pad="SAME_LOWER", strides=[2, 2]
    ),
    "Conv of a sequence": one(SEQUENCE, "Conv", "x w", {"w": numbers(6, 4, 3)}),
    "ConvTranspose": one(
        IMAGE, "ConvTranspose", "x w", {"w": numbers(4, 3, 4, 4)}, pads=[1] * 4, strides=[2, 2]
    ),
    "BatchNormalization": one(
        IMAGE,
        "BatchNormalization",
        "x s b m v",
        {"s": numbers(4), "b": numbers(4), "m": numbers(4), "v": numbers(4) ** 2},
    ),
    "MaxPool": one(IMAGE, "MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
    "AveragePool": one(IMAGE, "AveragePool", kernel_shape=[2, 3], strides=[2, 3]),
    "AveragePool same": one(IMAGE, "AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "GlobalAveragePool": one(IMAGE, "GlobalAveragePool"),
    "GlobalMaxPool": one(IMAGE, "GlobalMaxPool"),
    "ReduceMean": one(IMAGE, "ReduceMean", "x a", {"a": integers(2, 3)}, keepdims=0),
    "ReduceSum": one(IMAGE, "ReduceSum", "x a", {"a": integers(-1, 2)}, keepdims=0),
    "ReduceMax": one(IMAGE, "ReduceMax", "x a", {"a": integers(2, 3)}),
    "Flatten": graph(IMAGE, node("Flatten", "x", "f"), node("MatMul", "f w"), w=numbers(192, 3)),
    "Shape": graph(
        IMAGE,
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n"),
        node("Concat", "n rest", "t", axis=0),
        node("Reshape", "x t", "f"),
        node("MatMul", "f w"),
        zero=integers(0),
        rest=integers(-1),
        w=numbers(192, 3),
    ),
    "Reshape": one(IMAGE, "Reshape", "x s", {"s": integers(-1, 8, 24)}),
    "Squeeze": one((4, 1, 6), "Squeeze", "x a", {"a": integers(2)}),
    "Unsqueeze": one(SEQUENCE, "Unsqueeze", "x a", {"a": integers(2)}),
    "Transpose": one(IMAGE, "Transpose", perm=[0, 2, 1, 3]),
    "Concat": one(IMAGE, "Concat", "x x", axis=1),
    "Slice": one(
        IMAGE, "Slice", "x a b c", {"a": integers(1, 0), "b": integers(3, -1), "c": integers(1, 3)}
    ),
    "Split": graph(IMAGE, node("Split", "x", "a b", axis=1, num_outputs=2), node("Sub", "a b")),
    "SpaceToDepth": one(IMAGE, "SpaceToDepth", blocksize=2),
    "Pad": one(IMAGE, "Pad", "x p", {"p": integers(0, 0, 1, 0, 0, 0, 2, 3)}),
    "Add": one(IMAGE, "Add", "x c", {"c": numbers(4, 1, 1)}),
    "Add of tensors": one(IMAGE, "Add", "x x"),
    "Sub": one(IMAGE, "Sub", "c x", {"c": numbers(1)}),
    "Mul": one(IMAGE, "Mul", "x c", {"c": numbers(4, 1, 1)}),
    "Div": one(IMAGE, "Div", "x c", {"c": np.float32(0.3)}),
    "Neg": one(IMAGE, "Neg"),
    "Abs": one(IMAGE, "Abs"),
    "Sum": graph(IMAGE, node("Relu", "x", "r"), node("Sum", "x r x")),
    "Max": graph(IMAGE, node("Neg", "x", "r"), node("Max", "x r")),
    "Min": graph(IMAGE, node("Neg", "x", "r"), node("Min", "x r")),
    "Clip": one(IMAGE, "Clip", "x a b", {"a": ZEROS, "b": np.float32(0.5)}),
    "Relu": one(IMAGE, "Relu"),
    "Sigmoid": one(IMAGE, "Sigmoid"),
    "Tanh": one(IMAGE, "Tanh"),
    "Softsign": one(IMAGE, "Softsign"),
    "Mish": one(IMAGE, "Mish"),
    "HardSwish": one(IMAGE, "HardSwish"),
    "HardSigmoid": one(IMAGE, "HardSigmoid", alpha=1.5, beta=-0.25),
    "LeakyRelu": one(IMAGE, "LeakyRelu", alpha=0.3),
    "PRelu": one(IMAGE, "PRelu", "x s", {"s": numbers(4, 1, 1)}),
    "Elu": one(IMAGE, "Elu", alpha=0.7),
    "Celu": one(IMAGE, "Celu"),
    "Softplus": one(IMAGE, "Softplus"),
    "Gelu": one(IMAGE, "Gelu"),
    "Softmax": one(VECTOR, "Softmax"),
    "LogSoftmax": one(VECTOR, "LogSoftmax"),
    "Identity": one(IMAGE, "Identity"),
    "Dropout": one(IMAGE, "Dropout"),
    "Conv of channels last": graph(
        (8, 6, 4),
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t w", "c"),
        node("Flatten", "c", "f"),
        node("MatMul", "f v"),
        w=numbers(2, 4, 3, 3),
        v=numbers(48, 3),
    ),
    "Gemm of a fixed batch": graph(VECTOR, node("Gemm", "x w", "y"), batch=7, w=numbers(10, 3)),
}


@pytest.mark.parametrize("name", MADE)
def test_operator(name):
    proto = MADE[name]
    last = "channels last" in name
    model = from_onnx(proto)
    shape = model.input_shape[1:]
    size = 20 if name != "Gemm of a fixed batch" else 7
    x = np.random.default_rng(5).normal(size=(size, *shape)).astype("float32")
    theirs = x if last or x.ndim == 2 else np.moveaxis(x, -1, 1)
    expected = reference.ReferenceEvaluator(proto).run(None, {"x": theirs})[0]
    received = backend.to_numpy(model(x, training=False))
    received = np.moveaxis(received, -1, 1) if received.ndim > 2 else received
    np.testing.assert_allclose(received, expected, atol=2e-5 * max(1, np.abs(expected).max()))


def test_every_operator_is_tried():
    assert {name.split()[0] for name in MADE} == set(OPERATORS)


def test_without_onnxruntime(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert from_onnx(MADE["Gemm"], name="small").name == "small"


def test_file_open_sizes_and_certificate(tmp_path):
    proto = MADE["Flatten"]
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].Clear()
    onnx.save(proto, tmp_path / "network.onnx")
    with pytest.raises(ValueError, match=r"`input_shape` is needed: the input 'x' has open sizes"):
        from_onnx(tmp_path / "network.onnx")
    with pytest.raises(
        ValueError, match=r"`input_shape` does not fit the input 'x' of \[4, 0, 0\]"
    ):
        from_onnx(tmp_path / "network.onnx", (8, 6, 3))
    model = from_onnx(tmp_path / "network.onnx", (8, 6, 4))
    assert [type(layer).__name__ for layer in model.layers] == ["InputLayer", "Flatten", "Dense"]
    assert np.isfinite(dynzoo.certify(model).lipschitz)


REFUSED = {
    "made by none": (
        graph(IMAGE, node("Add", "x w")),
        "'the Add' of type `Add`.*its input 'w' is made by no node before it",
    ),
    "unknown": (
        one(IMAGE, "InstanceNormalization", "x s b", {"s": numbers(4), "b": numbers(4)}),
        "'the InstanceNormalization' of type `InstanceNormalization` cannot be converted: it is "
        "not known. Known are Abs, Add, .*, Unsqueeze",
    ),
    "product": (one(IMAGE, "Mul", "x x"), "it is a product of two tensors"),
    "backwards": (
        one(
            IMAGE,
            "Slice",
            "x a b c d",
            {"a": integers(-1), "b": integers(-9), "c": integers(2), "d": integers(-1)},
        ),
        "'the Slice' of type `Slice`.*only positive steps are known, not -1",
    ),
    "batch": (one(IMAGE, "Reshape", "x s", {"s": integers(2, -1)}), "its first size must be that"),
    "fill": (
        one(IMAGE, "Pad", "x p v", {"p": integers(*[0] * 7, 1), "v": np.float32(1)}),
        "only padding with zeros is known",
    ),
    "batch axis": (one(IMAGE, "Concat", "x x", axis=0), "it works along the batch axis"),
    "domain": (
        graph(IMAGE, helper.make_node("Relu", ["x"], ["y"], "r", domain="com.example")),
        "it is an operator of com.example; only those of ONNX are known",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    proto, message = REFUSED[name]
    with pytest.raises(ConversionError, match=message):
        from_onnx(proto)


def test_bad_sources(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`source` must be a file or an onnx.ModelProto"):
        from_onnx(3)
    (tmp_path / "a.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match="a.onnx is no ONNX file"):
        from_onnx(tmp_path / "a.onnx")
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "b.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(
        ImportError, match=r"needs the package onnx: pip install 'dynzoo\[export\]'"
    ):
        from_onnx(tmp_path / "a.onnx")
