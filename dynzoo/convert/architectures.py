"""A state dict and a description of its layers as a PyTorch module.

A state dict holds numbers and names, not the network. The description is a list of layers in their
order, each as PyTorch prints it, or as a mapping from its name to its arguments:

    input_shape: [32, 32, 3]
    layers:
      - Normalize([0.485, 0.456, 0.406], 0.225)
      - Conv2d(3, 16, 4, stride=2, padding=1)
      - ReLU()
      - Residual:
          body: ["Conv2d(16, 16, 3, padding=1)", "ReLU()"]
          shortcut: []
      - Flatten
      - Linear: [4096, 10]

`Normalize(mean, std)` takes the mean of each channel off and divides by the deviation, `Residual`
adds what its two lists make of its input; all else is in `torch.nn`. Numbers go to the layers that
have any in the order in which the state dict holds them, so that its names do not matter.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from dynzoo.convert.modules import MODULES

__all__ = ["load", "read_description"]

# Under these names training scripts keep a state dict beside other things.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")


def load(source: Any, architecture: Any, network: int | None) -> tuple[Any, Any]:
    """The module of a state dict, or of a file with one, and the input shape of its description."""
    if isinstance(source, (str, os.PathLike)):
        source = _read(source)
    state = _state_dict(source, network)
    if architecture is None:
        raise ValueError(
            "`architecture` is needed with a state dict, which holds numbers but not the network: "
            "a list of layers such as 'Conv2d(3, 16, 4)', or a file with one. The state dict has "
            f"{_shapes(state)}"
        )
    layers, input_shape = read_description(architecture)
    module = _sequence(layers, "layers")
    _fill(module, state)
    return module, input_shape


def _read(path: Any) -> Any:
    import torch  # takes seconds

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # unpickling errors of many kinds, all of which the file causes
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{path} is not read: only files of tensors in plain containers are "
            "(torch.load(weights_only=True)); "
            + (f"it holds `{found[1]}`." if found else "it is none that torch.save wrote.")
        ) from None


def _state_dict(value: Any, network: int | None) -> dict[str, Any]:
    import torch

    if isinstance(value, Mapping):
        inner = next(
            (value[k] for k in _WRAPPERS if isinstance(value.get(k), (Mapping, list))), None
        )
        if inner is not None:
            return _state_dict(inner, network)
    if isinstance(value, (list, tuple)):
        if network is None and len(value) != 1:
            raise ValueError(
                f"`network` must say which of the {len(value)} networks of the file is meant, from "
                "0 on. Received: network=None"
            )
        if not 0 <= (network or 0) < len(value):
            raise ValueError(
                f"`network` must be in [0, {len(value) - 1}]. Received: network={network}"
            )
        return _state_dict(value[network or 0], None)
    if network not in (None, 0):
        raise ValueError(f"The file holds one network. Received: network={network}")
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            "`source` must be a torch.nn.Module, a state dict, or a file with one. "
            f"Received: {type(value).__name__}"
        )
    other = [k for k, v in value.items() if not isinstance(v, torch.Tensor)]
    if other:
        raise ValueError(f"A state dict holds tensors only; {other[0]!r} is none.")
    return dict(value)


def read_description(architecture: Any) -> tuple[list, Any]:
    """The list of layers, and the input shape if the description states it.

    Args:
        architecture: a list of layers, a mapping with the keys `layers` and `input_shape`, or the
            path of a .json or .yaml file with either.
    """
    if isinstance(architecture, (str, os.PathLike)):
        try:
            with open(architecture, encoding="utf-8") as file:
                text = file.read()
        except UnicodeDecodeError:
            raise ValueError(f"The description of the layers is no text: {architecture}") from None
        try:
            if os.fspath(architecture).endswith(".json"):
                architecture = json.loads(text)
            else:
                import yaml

                architecture = yaml.safe_load(text)
        except ValueError as error:
            raise ValueError(f"The description of the layers is no JSON: {error}") from None
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"The description of the layers is no YAML: {reason}") from None
    shape = None
    if isinstance(architecture, Mapping):
        unknown = set(architecture) - {"layers", "input_shape"}
        if unknown or "layers" not in architecture:
            raise ValueError(
                "A description has the keys `layers` and `input_shape`. "
                f"Received: {', '.join(map(str, architecture))}"
            )
        shape, architecture = architecture.get("input_shape"), architecture["layers"]
    if not isinstance(architecture, (list, tuple)):
        raise ValueError(
            f"`architecture` must be a list of layers. Received: {type(architecture).__name__}"
        )
    return list(architecture), shape


def _sequence(layers: Any, place: str) -> Any:
    from torch import nn

    if not isinstance(layers, (list, tuple)):
        raise ValueError(f"'{place}' must be a list of layers. Received: {layers!r:.80}")
    return nn.Sequential(*(_layer(entry, f"{place}[{i}]") for i, entry in enumerate(layers)))


def _layer(entry: Any, place: str) -> Any:
    """The module of one entry."""
    from torch import nn

    name, args, kwargs = _parsed(entry, place)
    if name == "Residual":
        return _residual(place, *args, **kwargs)
    if name == "Sequential":
        return _sequence(args[0] if len(args) == 1 else list(args), place)
    if name == "Normalize":
        make: Any = _normalization()
    elif name in MODULES:
        make = getattr(nn, name)
    else:
        known = ", ".join(sorted({*MODULES, "Normalize", "Residual", "Sequential"}))
        raise ValueError(f"'{place}' names `{name}`, which is not known. Known are {known}.")
    try:
        return make(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"'{place}', {entry!r:.80}, does not fit: {error}") from None


def _parsed(entry: Any, place: str) -> tuple[str, list, dict]:
    """Name and arguments of `ReLU`, `Conv2d(3, 16, 4)` or `{"Linear": [64, 10]}`."""
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, given),) = entry.items()
        if isinstance(given, Mapping):
            return str(name), [], dict(given)
        if given is None:
            return str(name), [], {}
        return str(name), list(given) if isinstance(given, (list, tuple)) else [given], {}
    if not isinstance(entry, str):
        raise ValueError(
            f"'{place}' must be a layer such as 'Conv2d(3, 16, 4)' or {{'Linear': [64, 10]}}. "
            f"Received: {entry!r:.80}"
        )
    try:
        node = ast.parse(entry.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            kwargs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords if k.arg}
            return node.func.id, [ast.literal_eval(a) for a in node.args], kwargs
    except (SyntaxError, ValueError):
        pass
    raise ValueError(
        f"'{place}' must be a name and numbers, as 'Conv2d(3, 16, 4)'. Received: {entry!r:.80}"
    )


def _normalization() -> Any:
    import torch

    class Normalize(torch.nn.Module):
        """(x - mean) / std for each channel."""

        def __init__(self, mean: Any, std: Any):
            super().__init__()
            for key, value in (("mean", mean), ("std", std)):
                numbers = torch.tensor(value, dtype=torch.float32).reshape(-1, 1, 1)
                self.register_buffer(key, numbers, persistent=False)

        def forward(self, x: Any) -> Any:
            return (x - self.mean) / self.std

    return Normalize


def _residual(place: str, body: Any = None, shortcut: Any = ()) -> Any:
    import torch

    class Residual(torch.nn.Module):
        """The sum of two branches."""

        def __init__(self):
            super().__init__()
            self.body = _sequence(body, f"{place}.body")
            self.shortcut = _sequence(shortcut or [], f"{place}.shortcut")

        def forward(self, x: Any) -> Any:
            return self.body(x) + self.shortcut(x)

    return Residual()


def _fill(module: Any, state: dict[str, Any]) -> None:
    """Gives the tensors of a state dict to the layers in their order."""
    groups: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        layer, _, name = key.rpartition(".")
        groups.setdefault(layer, {})[name] = value
    own: dict[str, dict[str, Any]] = {}
    for key, value in module.state_dict().items():
        layer, _, name = key.rpartition(".")
        own.setdefault(layer, {})[name] = value
    if len(own) != len(groups):
        raise ValueError(
            f"`architecture` has {len(own)} layers with weights, the state dict {len(groups)}: "
            f"{_shapes(state)}"
        )
    filled = {}
    for (layer, wanted), (source, given) in zip(own.items(), groups.items(), strict=True):
        for name, value in wanted.items():
            found = given.get(name)
            if found is None and name == "num_batches_tracked":  # of old files; not used
                found = value
            if found is None or found.shape != value.shape or len(given) > len(wanted):
                part = module.get_submodule(layer)
                raise ValueError(
                    f"Layer {layer or 'layers'} of `architecture`, {part}, has {_shapes(wanted)}; "
                    f"the next one of the state dict is '{source}' with {_shapes(given)}"
                )
            filled[f"{layer}.{name}" if layer else name] = found
    module.load_state_dict(filled, strict=True)
    dtypes = [v.dtype for v in filled.values() if v.is_floating_point()]
    if dtypes:
        module.to(dtypes[0])


def _shapes(tensors: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items()) + "."
