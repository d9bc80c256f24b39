"""`from_torch`: a PyTorch module, read by torch.fx, as a Keras model."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from dynzoo.convert import architectures
from dynzoo.convert.comparison import check, random_images
from dynzoo.convert.errors import ConversionError
from dynzoo.convert.functions import BATCH, FUNCTIONS
from dynzoo.convert.in_place import Memory
from dynzoo.convert.modules import FOREIGN, MODULES
from dynzoo.convert.network import Network, Tensor
from dynzoo.utils.arguments import integer

__all__ = ["from_torch"]

# Where the functions come from that are known by their names.
_HOMES = {"torch", "_operator", "operator", "builtins", "math"}


def from_torch(
    source: Any,
    input_shape: Sequence[int] | None = None,
    architecture: Any = None,
    network: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """A Keras model with the logits of a PyTorch network at inference.

    PyTorch is needed to read the network and to compare, not to run the result, which is a
    functional model of plain Keras layers for any backend, channels last. Batch normalisation takes
    its running statistics; weight_norm, spectral_norm and other parametrizations become plain
    weights. The order in which PyTorch flattens images goes into the kernel of the dense layer
    behind.

    Args:
        source: a ``torch.nn.Module``; or a state dict, or a file with one, which
            ``torch.load(weights_only=True)`` reads.
        input_shape: of one image as Keras takes it: (height, width, channels), (length, channels)
            or (features,). It may be left out if the architecture states it.
        architecture: for a state dict, the layers in their order: a list, or a .json or .yaml
            file, as ``dynzoo.convert.architectures`` describes.
        network: which one, if the file holds a list of state dicts; the first is 0.
        name: of the model; default: the class of the module, in small letters.

    Returns:
        A built ``keras.Model``; on 100 random images in [0, 1] its logits differ from PyTorch's by
        at most 1e-5 of the largest.

    Raises:
        ConversionError: a module, function or setting that has no such form; it names the place.
        ValueError: an argument that does not fit.

    Example:

    >>> import torch, dynzoo
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    >>> model = dynzoo.convert.from_torch(network, (2, 2, 3))
    >>> model.output_shape
    (None, 3)
    """
    torch = _torch()
    if isinstance(source, torch.nn.Module):
        if architecture is not None or network is not None:
            raise ValueError("`architecture` and `network` go with a state dict, not a module.")
        module = source
    else:
        module, stated = architectures.load(source, architecture, network)
        input_shape = stated if input_shape is None else input_shape
    shape = _checked_shape(input_shape)
    while isinstance(module, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        module = module.module
    kind = type(module).__name__
    _check_hooks(module)
    module = _single_precision(module)
    with _evaluating(module), torch.no_grad():
        run = _runner(module, len(shape))
        try:
            run(random_images(shape)[:2])
        except ConversionError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"The network does not take images of shape {shape}: {reason:.300}"
            ) from None
        net = Network(shape, list(MODULES))
        traced = _trace(module)
        try:
            output = _interpret(module, traced, net)
        finally:
            _forget_constants(module)
        net.at("output", kind)
        model = net.model(output, name or kind.lower())
        check(model, run, "the network", kind)
    return model


def _torch() -> Any:
    try:
        import torch  # takes seconds, and is not needed to use dynzoo
    except ImportError:
        raise ImportError(
            "`from_torch` needs PyTorch to read the network: pip install 'dynzoo[torch]'"
        ) from None
    return torch


def _checked_shape(input_shape: Any) -> tuple[int, ...]:
    try:
        shape = tuple(integer("input_shape", n) for n in input_shape)
    except (TypeError, ValueError):
        shape = ()
    if not 1 <= len(shape) <= 3 or any(n < 1 for n in shape):
        raise ValueError(
            "`input_shape` must be that of one image as Keras takes it: (height, width, channels), "
            f"(length, channels) or (features,). Received: input_shape={input_shape}"
        )
    return shape


def _check_hooks(module: Any) -> None:
    """Hooks change what a module computes; those of torch.nn.utils only make its weights."""
    for path, part in module.named_modules():
        hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
        for hook in hooks:
            home = type(hook).__module__
            if not home.startswith("torch.nn.utils"):
                name = getattr(hook, "__name__", type(hook).__name__)
                raise ConversionError(
                    path or "the network",
                    type(part).__name__,
                    f"it has the forward hook `{name}`; only those of torch.nn.utils, such as "
                    "weight_norm, are known. Remove it first.",
                )


def _single_precision(module: Any) -> Any:
    """A copy of a network in half precision: its weights as they are, without its rounding."""
    import torch

    tensors = [*module.parameters(), *module.buffers()]
    if any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors):
        return copy.deepcopy(module).float()
    return module


@contextlib.contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """The module at inference; its own flags come back afterwards."""
    flags = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, flag in flags.items():
            part.training = flag


def _runner(module: Any, axes: int) -> Any:
    """Images, channels last, -> outputs of the module, in its own precision."""
    import torch

    first = next(iter([*module.parameters(), *module.buffers()]), torch.zeros(1))
    floating = first.dtype if first.is_floating_point() else torch.float32
    order = (0, axes, *range(1, axes))

    def run(x: np.ndarray) -> np.ndarray:
        # a copy: a network may change its input in place
        images = torch.from_numpy(np.array(x.transpose(order), order="C"))
        y = module(images.to(first.device, floating))
        if not isinstance(y, torch.Tensor):
            raise ConversionError(
                "the network", type(module).__name__, "its output is not one tensor."
            )
        return y.cpu().double().numpy()

    return run


def _class_name(module: Any) -> str:
    """Name of the class without parametrizations, with its module if it is not torch.nn's."""
    from torch import nn
    from torch.nn.utils import parametrize

    cls = parametrize.type_before_parametrizations(module)
    return (
        cls.__name__
        if getattr(nn, cls.__name__, None) is cls
        else f"{cls.__module__}.{cls.__name__}"
    )


def _known(name: str) -> bool:
    return name in MODULES or name in FOREIGN


def _trace(module: Any) -> Any:
    """The graph of the module: known modules are its leaves, all others are opened."""
    import torch
    from torch import fx

    class Tracer(fx.Tracer):
        def is_leaf_module(self, part: Any, path: str) -> bool:
            name = _class_name(part)
            return _known(name) or (
                "." not in name and not isinstance(part, (torch.nn.Sequential, torch.nn.ModuleList))
            )

        def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
            # What a module makes of its weights alone is computed here and now, whatever that is.
            return attr_val

    root = module
    if _known(_class_name(module)):
        root = torch.nn.Sequential(module)
        root.eval()
    try:
        return root, Tracer().trace(root)
    except Exception as error:  # whatever the module's own code raises on a symbolic tensor
        reason = " ".join(str(error).split())
        raise ConversionError(
            "the network",
            type(module).__name__,
            f"torch.fx cannot read its `forward` ({reason:.200}); branches that depend on the "
            "input must go.",
        ) from None


def _forget_constants(module: Any) -> None:
    """Takes away what torch.fx left in the module: tensors that were made of its weights."""
    for name in [n for n in vars(module) if n.startswith("_tensor_constant")]:
        delattr(module, name)


def _interpret(module: Any, traced: Any, net: Network) -> Tensor:
    """Runs the graph node by node on tensors of the network."""
    root, graph = traced
    values: dict[Any, Any] = {}
    memory = Memory(root)
    for node in graph.nodes:
        changed, seen_otherwise = memory.add(node)
        if node.op == "placeholder":
            values[node] = _placeholder(node, values, net, root)
            continue
        args, kwargs = _resolved((node.args, node.kwargs), values)
        if node.op == "get_attr":
            value = root
            for part in node.target.split("."):
                value = getattr(value, part)
            values[node] = value
        elif node.op == "output":
            output = args[0]
            if not isinstance(output, Tensor):
                raise ConversionError(
                    "output", type(root).__name__, "the output is not one tensor."
                )
            return output
        else:
            values[node] = _call(node, args, kwargs, net, root)
            if seen_otherwise and isinstance(values[node], Tensor):
                raise net.refuse("it changes in place a tensor of which a view is used later.")
            values |= dict.fromkeys(changed, values[node])
    raise AssertionError("a graph without an output")


def _placeholder(node: Any, values: Mapping, net: Network, root: Any) -> Any:
    if not any(isinstance(v, Tensor) for v in values.values()):
        return net.input
    if node.args:
        return node.args[0]
    raise ConversionError(node.name, type(root).__name__, "the network takes more than one input.")


def _resolved(value: Any, values: Mapping) -> Any:
    """Nodes replaced by what they hold, in nested arguments."""
    from torch import fx

    if isinstance(value, fx.Node):
        return values[value]
    if isinstance(value, (list, tuple)):
        return type(value)([_resolved(v, values) for v in value])
    if isinstance(value, dict):
        return {k: _resolved(v, values) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_resolved(v, values) for v in (value.start, value.stop, value.step)))
    return value


def _symbolic(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_symbolic(v) for v in value)
    if isinstance(value, dict):
        return _symbolic(list(value.values()))
    if isinstance(value, slice):
        return _symbolic([value.start, value.stop, value.step])
    return isinstance(value, Tensor) or value is BATCH


def _call(node: Any, args: Any, kwargs: Any, net: Network, root: Any) -> Any:
    if node.op == "call_module":
        part = root.get_submodule(node.target)
        name = _class_name(part)
        net.at(node.target, f"torch.nn.{name}" if "." not in name else name)
        if not _symbolic((args, kwargs)):
            return part(*args, **kwargs)
        if not _known(name):
            raise net.unknown()
        inputs = [*args, *kwargs.values()]
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            raise net.refuse("it takes more than one tensor.")
        return (MODULES if name in MODULES else FOREIGN)[name](net, part, inputs[0])
    method = node.op == "call_method"
    name = node.target if method else getattr(node.target, "__name__", str(node.target))
    path = _path(node)
    net.at(f"{path}.{name}" if path else name, f"torch.Tensor.{name}" if method else name)
    if not _symbolic((args, kwargs)):
        return (
            getattr(args[0], name)(*args[1:], **kwargs) if method else node.target(*args, **kwargs)
        )
    home = (getattr(node.target, "__module__", None) or "torch").split(".")[0]
    if name not in FUNCTIONS or (not method and home not in _HOMES):
        raise net.refuse(f"it is not known. Known functions are {', '.join(sorted(FUNCTIONS))}.")
    try:
        return FUNCTIONS[name](net, *args, **kwargs)
    except TypeError as error:
        raise net.refuse(f"it is called in a way that is not known ({error}).") from None


def _path(node: Any) -> str:
    """The module whose `forward` makes this call."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [value[0] for value in stack.values()]
    return str(paths[-1]) if paths else ""
