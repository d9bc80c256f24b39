"""`from_onnx`: an ONNX graph as a Keras model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from dynzoo.convert import activations, functions, windows
from dynzoo.convert.comparison import check
from dynzoo.convert.errors import ConversionError
from dynzoo.convert.network import Network, Tensor
from dynzoo.utils.arguments import integer

__all__ = ["OPERATORS", "from_onnx"]

kl = keras.layers
_INSTALL = "pip install 'dynzoo[export]'"


def from_onnx(
    source: Any, input_shape: Sequence[int] | None = None, name: str | None = None
) -> keras.Model:
    """A Keras model with the logits of an ONNX network.

    The package ``onnx`` is needed to read the network, not to run the result, which is a functional
    model of plain Keras layers for any backend, channels last. The network may take its images
    channels first, or channels last if a transposition is the first that it does with them.

    Args:
        source: a file, or an ``onnx.ModelProto``.
        input_shape: of one image as Keras takes it, where the file leaves sizes open.
        name: of the model; default: that of the graph.

    Returns:
        A built ``keras.Model``; on 100 random images in [0, 1] its logits differ by at most 1e-5 of
        the largest from what onnxruntime, or onnx itself where that is not installed, computes.

    Raises:
        ConversionError: an operator or a setting that has no such form; it names the node.
        ValueError: an argument that does not fit.

    Example:

    >>> import dynzoo, onnx.parser
    >>> network = onnx.parser.parse_model(
    ...     '<ir_version: 10, opset_import: ["": 20]>'
    ...     "network (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }"
    ... )
    >>> dynzoo.convert.from_onnx(network).output_shape
    (None, 4)
    """
    try:
        import onnx  # takes time, and is not needed to use dynzoo
    except ImportError:
        raise ImportError(f"`from_onnx` needs the package onnx: {_INSTALL}") from None
    proto = _read(source, onnx)
    graph = proto.graph
    values: dict[str, Any] = {
        value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer
    }
    inputs = [value for value in graph.input if value.name not in values]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ValueError(
            "`from_onnx` needs a network with one input and one output. "
            f"Received: {len(inputs)} input(s) and {len(graph.output)} output(s)"
        )
    (start,) = inputs
    last = _takes_channels_last(graph, start.name)
    theirs = _their_shape(start, input_shape, last)
    rank = len(theirs) + 1
    keras_shape = theirs if last or rank == 2 else (*theirs[1:], theirs[0])
    net = Network(keras_shape, list(OPERATORS), "as_given" if last else "last")
    values[start.name] = net.input
    for index, node in enumerate(graph.node):
        _convert(node, index, values, net, proto)
    output = values.get(graph.output[0].name)
    kind = graph.name or "graph"
    if not isinstance(output, Tensor):
        raise ConversionError(graph.output[0].name, kind, "it does not depend on the input.")
    net.at("output", kind)
    model = net.model(output, name or _model_name(kind))
    order = tuple(range(rank)) if last else (0, rank - 1, *range(1, rank - 1))
    run = _runner(proto, start, order)
    check(model, run, "the network", kind)
    return model


def _model_name(kind: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in kind).strip("_").lower() or "network"


def _read(source: Any, onnx: Any) -> Any:
    if isinstance(source, onnx.ModelProto):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"`source` must be a file or an onnx.ModelProto. Received: {type(source).__name__}"
        )
    try:
        return onnx.load(os.fspath(source))
    except FileNotFoundError:
        raise
    except Exception as error:  # errors of protobuf and of external data
        reason = " ".join(str(error).split())
        raise ValueError(f"{source} is no ONNX file: {reason:.200}") from None


def _takes_channels_last(graph: Any, name: str) -> bool:
    """Whether the first that happens to images is that their channels come to the front."""
    users = [node for node in graph.node if name in node.input]
    return bool(users) and all(
        node.op_type == "Transpose"
        and any(a.name == "perm" and list(a.ints) == [0, 3, 1, 2] for a in node.attribute)
        for node in users
    )


def _their_shape(start: Any, input_shape: Any, last: bool) -> tuple[int, ...]:
    """The shape of one input in the graph's own axes."""
    sizes = [d.dim_value for d in start.type.tensor_type.shape.dim][1:]
    if not 1 <= len(sizes) <= 3:
        raise ValueError(
            "`from_onnx` needs an input of images, sequences or vectors with a batch axis. "
            f"Received: '{start.name}' with {len(sizes) + 1} axes"
        )
    if start.type.tensor_type.elem_type != 1:
        raise ValueError(f"`from_onnx` needs an input of type float32; '{start.name}' is another.")
    if input_shape is not None:
        given = [integer("input_shape", n) for n in input_shape]
        ours = given if last or len(given) == 1 else [given[-1], *given[:-1]]
        if len(ours) != len(sizes) or any(
            n not in (0, m) for n, m in zip(sizes, ours, strict=True)
        ):
            raise ValueError(
                f"`input_shape` does not fit the input '{start.name}' of {sizes} (without the "
                f"batch axis). Received: input_shape={tuple(given)}"
            )
        sizes = ours
    if min(sizes) < 1:
        raise ValueError(
            f"`input_shape` is needed: the input '{start.name}' has open sizes, {sizes} without "
            "the batch axis."
        )
    return tuple(sizes)


def _runner(proto: Any, start: Any, order: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Images as Keras takes them -> outputs of the graph."""
    try:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(proto)
    fixed = start.type.tensor_type.shape.dim[0].dim_value

    def run(x: np.ndarray) -> np.ndarray:
        images = np.ascontiguousarray(x.transpose(order))
        size = fixed or len(images)
        parts = [images[i : i + size] for i in range(0, len(images), size)]
        # A graph of a fixed batch size gets the last batch filled up.
        filled = [np.resize(part, (size, *part.shape[1:])) for part in parts]
        outputs = [session.run(None, {start.name: part})[0] for part in filled]
        return np.concatenate(outputs)[: len(images)]

    return run


def _convert(node: Any, index: int, values: dict[str, Any], net: Network, proto: Any) -> None:
    """One node: on tensors of the network, or on constants by onnx itself."""
    net.at(node.name or f"node {index}", node.op_type)
    if node.domain not in ("", "ai.onnx"):
        raise net.refuse(f"it is an operator of {node.domain}; only those of ONNX are known.")
    missing = [name for name in node.input if name and name not in values]
    if missing:
        raise net.refuse(f"its input '{missing[0]}' is made by no node before it.")
    inputs = [values[name] if name else None for name in node.input]
    while inputs and inputs[-1] is None:
        inputs.pop()
    if not any(isinstance(v, Tensor) for v in inputs):
        outputs = _folded(node, inputs, proto)
    else:
        convert = OPERATORS.get(node.op_type)
        if convert is None:
            raise net.unknown()
        try:
            result = convert(net, _attributes(node), *inputs)
        except TypeError as error:
            raise net.refuse(f"it is used in a way that is not known ({error}).") from None
        outputs = list(result) if isinstance(result, tuple) else [result]
    values.update(zip([name for name in node.output if name], outputs, strict=False))


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}


def _folded(node: Any, inputs: Sequence[Any], proto: Any) -> list[Any]:
    """The outputs of a node whose inputs are known."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.input if name]
    graph = helper.make_graph(
        [node],
        "constants",
        [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in names],
        [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in node.output if n],
    )
    model = helper.make_model(graph, opset_imports=proto.opset_import)
    given = {n: v for n, v in zip(names, [v for v in inputs if v is not None], strict=True)}
    return list(ReferenceEvaluator(model).run(None, given))


# --- operators -------------------------------------------------------------------------------

Attributes = Mapping[str, Any]


def _weights(net: Network, *values: Any) -> None:
    if any(isinstance(v, Tensor) for v in values):
        raise net.refuse("a weight of it depends on the input.")


def _gemm(net: Network, a: Attributes, x: Tensor, w: Any, c: Any = None) -> Tensor:
    _weights(net, w, c)
    if a.get("transA", 0):
        raise net.refuse("only transA=0 is known.")
    weight = a.get("alpha", 1.0) * (w if a.get("transB", 0) else w.T)
    if c is not None:
        c = a.get("beta", 1.0) * np.broadcast_to(np.ravel(c), (len(weight),))
    return net.dense(x, weight, c)


def _matmul(net: Network, a: Attributes, x: Any, w: Any) -> Tensor:
    if not isinstance(x, Tensor) or isinstance(w, Tensor) or w.ndim != 2:
        raise net.refuse("only a product of a tensor with a constant matrix on its right is known.")
    return net.dense(x, w.T, None)


def _pads(net: Network, a: Attributes, sizes: Sequence[int], windows_: Sequence[int]) -> list:
    """Zeros before and after each spatial axis."""
    spatial = len(windows_)
    automatic = a.get("auto_pad", "NOTSET")
    if automatic in ("NOTSET", ""):
        pads = list(a.get("pads", [0] * 2 * spatial))
        return list(zip(pads[:spatial], pads[spatial:], strict=True))
    if automatic == "VALID":
        return [(0, 0)] * spatial
    strides = a.get("strides", [1] * spatial)
    pads = []
    for n, k, s in zip(sizes, windows_, strides, strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if automatic == "SAME_UPPER" else (large, small))
    return pads


def _conv(net: Network, a: Attributes, x: Tensor, w: Any, b: Any = None) -> Tensor:
    _weights(net, w, b)
    spatial = w.ndim - 2
    dilation = a.get("dilations", [1] * spatial)
    sizes = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilation, strict=True)]
    pads = _pads(net, a, x.shape[1:], sizes)
    strides = a.get("strides", [1] * spatial)
    geometry = windows.Geometry(strides, pads, dilation, a.get("group", 1))
    return windows.conv(net, x, w, b, geometry)


def _conv_transpose(net: Network, a: Attributes, x: Tensor, w: Any, b: Any = None) -> Tensor:
    _weights(net, w, b)
    spatial = w.ndim - 2
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "") or "output_shape" in a:
        raise net.refuse("only explicit pads are known.")
    geometry = windows.Geometry(
        a.get("strides", [1] * spatial),
        _pads(net, a, x.shape[1:], w.shape[2:]),
        a.get("dilations", [1] * spatial),
        a.get("group", 1),
        a.get("output_padding", [0] * spatial),
    )
    return windows.conv_transpose(net, x, w, b, geometry)


def _batch_normalization(
    net: Network, a: Attributes, x: Tensor, scale: Any, b: Any, mean: Any, var: Any
) -> Tensor:
    _weights(net, scale, b, mean, var)
    if a.get("training_mode", 0):
        raise net.refuse("it normalises by the batch at hand; running statistics are needed.")
    return net.batch_normalization(x, scale, b, mean, var, a.get("epsilon", 1e-5))


def _max_pool(net: Network, a: Attributes, x: Tensor) -> Tensor:
    sizes = a["kernel_shape"]
    if max(a.get("dilations", [1])) > 1:
        raise net.refuse("only dilations of 1 are known.")
    strides = a.get("strides", [1] * len(sizes))
    pads = _pads(net, a, x.shape[1:], sizes)
    return windows.max_pool(net, x, sizes, strides, pads, bool(a.get("ceil_mode", 0)))


def _average_pool(net: Network, a: Attributes, x: Tensor) -> Tensor:
    sizes = a["kernel_shape"]
    if max(a.get("dilations", [1])) > 1:
        raise net.refuse("only dilations of 1 are known.")
    strides = a.get("strides", [1] * len(sizes))
    pads = _pads(net, a, x.shape[1:], sizes)
    counted = bool(a.get("count_include_pad", 0))
    return windows.average_pool(net, x, sizes, strides, pads, bool(a.get("ceil_mode", 0)), counted)


def _global(largest: bool) -> Callable:
    def pool(net: Network, a: Attributes, x: Tensor) -> Tensor:
        return windows.adaptive_pool(net, x, (1,) * (x.rank - 2), largest)

    return pool


def _reduced(name: str) -> Callable:
    def reduce(net: Network, a: Attributes, x: Tensor, axes: Any = None) -> Tensor:
        given = a.get("axes") if axes is None else [int(n) for n in axes]
        return functions.FUNCTIONS[name](net, x, given, bool(a.get("keepdims", 1)))

    return reduce


def _flatten(net: Network, a: Attributes, x: Tensor) -> Tensor:
    if a.get("axis", 1) % x.rank != 1:
        raise net.refuse("only axis=1, each example by itself, is known.")
    return net.reshape(x, [math.prod(x.shape)])


def _shape(net: Network, a: Attributes, x: Tensor) -> np.ndarray:
    # 0 is what Reshape takes for "as it was"; no other use of the batch size comes out right.
    shape = np.array([0, *x.shape], np.int64)
    return shape[a.get("start", 0) : a.get("end", None)]


def _reshape(net: Network, a: Attributes, x: Tensor, shape: Any) -> Tensor:
    _weights(net, shape)
    first, *inner = (int(n) for n in shape)
    sizes = (0, *x.shape)
    inner = [sizes[i] if n == 0 and i < len(sizes) else n for i, n in enumerate(inner, start=1)]
    known = math.prod(n for n in inner if n != -1)
    whole = known == math.prod(x.shape) if -1 not in inner else True
    if not (first == 0 or (first == -1 and -1 not in inner) or (first == 1 and whole)):
        raise net.refuse(f"its first size must be that of the batch; its shape is {list(shape)}.")
    return net.reshape(x, inner)


def _squeeze(net: Network, a: Attributes, x: Tensor, axes: Any = None) -> Tensor:
    given = a.get("axes") if axes is None else [int(n) for n in axes]
    return functions.FUNCTIONS["squeeze"](net, x, given)


def _unsqueeze(net: Network, a: Attributes, x: Tensor, axes: Any = None) -> Tensor:
    given = [int(n) for n in (a["axes"] if axes is None else axes)]
    for axis in sorted(n % (x.rank + len(given)) for n in given):
        x = functions.FUNCTIONS["unsqueeze"](net, x, axis)
    return x


def _transpose(net: Network, a: Attributes, x: Tensor) -> Tensor:
    return net.transpose(x, a.get("perm", list(range(x.rank))[::-1]))


def _concat(net: Network, a: Attributes, *tensors: Any) -> Tensor:
    return functions.FUNCTIONS["cat"](net, tensors, a["axis"])


def _slice(
    net: Network, a: Attributes, x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = 1
) -> Tensor:
    axes = range(len(starts)) if axes is None else axes
    steps = np.broadcast_to(steps, np.shape(starts))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise net.refuse(f"only positive steps are known, not {int(step)}.")
        place = net.axis(x, axis)
        size = x.shape[place - 1]
        x = net.part(x, place, *slice(int(start), int(end), int(step)).indices(size))
    return x


def _split(net: Network, a: Attributes, x: Tensor, sizes: Any = None) -> tuple:
    axis = a.get("axis", 0)
    size = x.shape[net.axis(x, axis) - 1]
    if sizes is None:
        sizes = a.get("split") or -(-size // a.get("num_outputs", 2))
    given = int(sizes) if np.ndim(sizes) == 0 else [int(n) for n in sizes]
    return functions.FUNCTIONS["split"](net, x, given, axis)


def _space_to_depth(net: Network, a: Attributes, x: Tensor) -> Tensor:
    """Blocks to channels: the row first, then the column, then the channel."""
    block = a["blocksize"]
    channels = x.shape[0]
    y = functions.pixel_unshuffle(net, x, block)
    order = np.arange(channels * block * block).reshape(channels, -1).T.ravel()
    moved = keras.ops.take(y.keras, order, axis=-1)
    return Tensor(moved, y.axes, nonnegative=y.nonnegative)


def _pad(
    net: Network, a: Attributes, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None
) -> Tensor:
    fill = a.get("value", 0.0) if value is None else float(np.ravel(value)[0])
    widths = list(a["pads"]) if pads is None else [int(n) for n in pads]
    given = range(x.rank) if axes is None else [int(n) % x.rank for n in axes]
    pairs = {axis: (widths[i], widths[i + len(widths) // 2]) for i, axis in enumerate(given)}
    if any(pairs.get(axis, (0, 0)) != (0, 0) for axis in (0, 1)):
        raise net.refuse("only padding of the spatial axes is known.")
    if a.get("mode", "constant") != "constant" or fill != 0:
        raise net.refuse("only padding with zeros is known.")
    image = net.image(x)
    return net.zeros_around(image, [pairs.get(axis, (0, 0)) for axis in range(2, x.rank)])


def _binary(name: str) -> Callable:
    return lambda net, a, x, y: functions.FUNCTIONS[name](net, x, y)


def _extreme(name: str) -> Callable:
    def choose(net: Network, a: Attributes, *tensors: Any) -> Tensor:
        if len(tensors) != 2:
            raise net.refuse("only two tensors are known.")
        return functions.FUNCTIONS[name](net, *tensors)

    return choose


def _sum(net: Network, a: Attributes, *tensors: Any) -> Any:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = functions.FUNCTIONS["add"](net, total, tensor)
    return total


def _clip(net: Network, a: Attributes, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low = a.get("min", -math.inf) if low is None else float(low)
    return activations.clip(net, x, low, a.get("max", math.inf) if high is None else float(high))


def _plain(name: str) -> Callable:
    return lambda net, a, x: activations.PLAIN[name](net, x)


def _same(net: Network, a: Attributes, x: Tensor, *others: Any) -> Tensor:
    return x


def _dropout(net: Network, a: Attributes, x: Tensor, ratio: Any = None, on: Any = None) -> Tensor:
    if on is not None and bool(on):
        raise net.refuse("it drops entries at inference, too.")
    return x


def _hard_sigmoid(net: Network, a: Attributes, x: Tensor) -> Tensor:
    y = net.scale_and_shift(x, a.get("alpha", 0.2), a.get("beta", 0.5))
    return activations.clip(net, y, 0.0, 1.0)


def _prelu(net: Network, a: Attributes, x: Tensor, slope: Any) -> Tensor:
    _weights(net, slope)
    return activations.prelu(net, x, slope)


def _softmax(logarithm: bool) -> Callable:
    return lambda net, a, x: activations.softmax(net, x, a.get("axis", -1), logarithm)


# By the name of the operator.
OPERATORS: dict[str, Callable] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "BatchNormalization": _batch_normalization,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global(False),
    "GlobalMaxPool": _global(True),
    "ReduceMean": _reduced("mean"),
    "ReduceSum": _reduced("sum"),
    "ReduceMax": _reduced("amax"),
    "Flatten": _flatten,
    "Shape": _shape,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "SpaceToDepth": _space_to_depth,
    "Pad": _pad,
    "Add": _binary("add"),
    "Sub": _binary("sub"),
    "Mul": _binary("mul"),
    "Div": _binary("div"),
    "Neg": lambda net, a, x: functions.FUNCTIONS["neg"](net, x),
    "Abs": lambda net, a, x: functions.FUNCTIONS["abs"](net, x),
    "Sum": _sum,
    "Max": _extreme("max"),
    "Min": _extreme("min"),
    "Clip": _clip,
    "Relu": _plain("relu"),
    "Sigmoid": _plain("sigmoid"),
    "Tanh": _plain("tanh"),
    "Softsign": _plain("softsign"),
    "Mish": _plain("mish"),
    "HardSwish": _plain("hard_silu"),
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": lambda net, a, x: activations.leaky_relu(net, x, a.get("alpha", 0.01)),
    "PRelu": _prelu,
    "Elu": lambda net, a, x: activations.elu(net, x, a.get("alpha", 1.0)),
    "Celu": lambda net, a, x: activations.celu(net, x, a.get("alpha", 1.0)),
    "Softplus": lambda net, a, x: activations.softplus(net, x),
    "Gelu": lambda net, a, x: activations.gelu(net, x, a.get("approximate", "none")),
    "Softmax": _softmax(False),
    "LogSoftmax": _softmax(True),
    "Identity": _same,
    "Dropout": _dropout,
}
