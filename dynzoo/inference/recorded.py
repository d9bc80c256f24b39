"""A pass on PyTorch, recorded once and then run without Keras.

Of a pass on few images PyTorch computes for a tenth of the time; the rest is Keras calling layers.
What the pass asks of PyTorch is written down twice, for batches of two lengths, with other numbers
and other weights. What differs between the two must be a multiple of the length; all else stands in
the program as it is. The program is the same operations in the same order, for any length. It reads
the weights that it is given, and is compared with the pass, bit by bit, before it answers for it.

Nothing is recorded that could answer differently another time: numbers that leave PyTorch on the
way (a branch on a value, NumPy), draws, tensors that someone holds, writes to what was given.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras

from dynzoo import backend
from dynzoo.inference.batch_mixing import hides_code, mixing_calls, training_calls
from dynzoo.inference.model_layers import flat_layers, random_layers

__all__ = ["Recorded", "can_record", "has_hooks", "held_tensors"]

# Lengths of the batches that are recorded; no two sizes of a network are in their ratio by chance.
_LENGTHS = (3, 5)
# A recording takes as long as some ten plain passes of a few images.
_PATIENCE = 8
# Numbers of the second recording, as a share of those of the first.
_SHARE = 0.75


class _NotRecordable(Exception):
    """The pass must be called as it is."""


def can_record(model: Any) -> bool:
    """Whether the graph of a model tells all that a pass on PyTorch does, now and the next time.

    No code of a user's own, no draws, no look at the rest of the batch, no hooks; on a CPU.
    """
    if backend.name() != "torch" or backend.accelerator() is not None:
        return False
    return not (
        has_hooks(flat_layers(model))
        or hides_code(model)
        or random_layers(model)
        or mixing_calls(model)
        or training_calls(model)
    )


def has_hooks(layers: Sequence[Any]) -> bool:
    """Whether PyTorch is to call something of a user's before or after one of the layers."""
    for layer in layers:
        attributes = vars(layer)
        if attributes.get("_forward_hooks") or attributes.get("_forward_pre_hooks"):
            return True
    return False


def held_tensors(model: Any) -> list[Any]:
    """Tensors that are plain attributes of layers, such as the mean of a ``Normalization``."""
    return [
        value
        for layer in flat_layers(model)
        for key, value in vars(layer).items()
        if key[0] != "_" and keras.ops.is_tensor(value)
    ]


class Recorded:
    """A function ``(weights, *tensors) -> tensors``, recorded when it has been called often.

    Args:
        function: pure function of a list of weights and of tensors; of an empty list it takes the
            weights from where they are, which is the plain pass.
        held: tensors that the function may read where they are. Whoever puts others in their place
            asks for another ``Recorded``.
    """

    def __init__(self, function: Callable[..., Any], held: Sequence[Any] = ()) -> None:
        self.plain = backend.without_grad(function)
        self._held = list(held)
        self._programs: dict[Any, _Program | None] = {}
        self._calls = 0

    def __call__(self, weights: Sequence[Any], *args: Any) -> Any:
        """What the plain pass returns for these weights, which must be the present ones."""
        import torch

        self._calls += 1
        if self._calls <= _PATIENCE or not _are_tensors(args) or torch.is_autocast_enabled("cpu"):
            return self.plain([], *args)
        count = next((len(a) for a in args if a.ndim), 0)
        if not count:
            return self.plain([], *args)
        signature = (
            tuple((w.shape, w.dtype, w.device.type) for w in weights),
            tuple((_kind(a, count), a.dtype, a.device.type) for a in args),
        )
        if signature not in self._programs:
            self._programs[signature] = _recorded(self.plain, self._held, weights, args, count)
        program = self._programs[signature]
        if program is None:
            return self.plain([], *args)
        # Of each size of batches the first is compared: PyTorch's products may be others there.
        size = count if count <= _LENGTHS[0] else -count.bit_length()
        agrees = program.agrees.get(size)
        if agrees:
            return program(weights, args)
        expected = self.plain([], *args)
        if agrees is None:
            program.agrees[size] = _same(program(weights, args), expected)
        return expected


def _are_tensors(args: Sequence[Any]) -> bool:
    return all(map(keras.ops.is_tensor, args))


def _kind(tensor: Any, count: int) -> Any:
    """The shape of a tensor, without the length of the batch."""
    return (None, *tensor.shape[1:]) if _has_rows(tensor, count) else tuple(tensor.shape)


def _has_rows(tensor: Any, count: int) -> bool:
    return bool(tensor.ndim and len(tensor) == count)


def _same(ours: Any, theirs: Any) -> bool:
    import torch

    pairs = zip(keras.tree.flatten(ours), keras.tree.flatten(theirs), strict=True)
    return all(
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
        for a, b in pairs
    )


def _recorded(
    function: Callable[..., Any],
    held: Sequence[Any],
    weights: Sequence[Any],
    args: Sequence[Any],
    count: int,
) -> _Program | None:
    """The program of a function, or ``None`` where it cannot be one."""
    try:
        tapes = []
        for length, share in zip(_LENGTHS, (1.0, _SHARE), strict=True):
            given = [_changed(w, share) for w in weights]
            given += [_changed(_rows(a, count, length), share) for a in args]
            tapes.append(_listen(function, given, len(weights)))
        rows = next(k for k, a in enumerate(args) if _has_rows(a, count))
        return _Program(_Writer(tapes[0], tapes[1], len(weights) + rows, held))
    except Exception:  # PyTorch's compiler has errors of many kinds; the plain pass is always there
        return None


def _rows(tensor: Any, count: int, length: int) -> Any:
    """So many rows of a batch, over and over, or the tensor that is none."""
    import torch

    if not _has_rows(tensor, count):
        return tensor
    return tensor[torch.arange(length) % count]


def _changed(tensor: Any, share: float) -> Any:
    return (
        (tensor.detach() * share).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.detach()
    )


class _Tape:
    """What was asked of PyTorch: inputs, calls with their results, and the outputs."""

    def __init__(self, inputs: list[Any], weights: int) -> None:
        self.inputs, self.weights = inputs, weights
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.outputs: Any = None


def _listen(function: Callable[..., Any], inputs: list[Any], weights: int) -> _Tape:
    """Runs a function and writes down what it asks of PyTorch."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    tape = _Tape(inputs, weights)

    class Listener(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if torch.Tag.nondeterministic_seeded in func.tags:
                raise _NotRecordable(f"{func} draws")
            if torch.Tag.data_dependent_output in func.tags:
                raise _NotRecordable(f"{func} looks at a value")
            result = func(*args, **(kwargs or {}))
            tape.calls.append((func, args, kwargs or {}, result))
            return result

    with Listener():
        tape.outputs = function(list(inputs[:weights]), *inputs[weights:])
    return tape


class _Program:
    """A recorded function, compiled to run without Python.

    Attributes:
        agrees: whether it gave the same bits as the plain function, by size of the batch.
    """

    def __init__(self, writer: _Writer) -> None:
        import torch

        self._structure = writer.structure
        self._constants = writer.constants
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._run = torch.jit.CompilationUnit(writer.source).run
        self.agrees: dict[int, bool] = {}

    def __call__(self, weights: Sequence[Any], args: Sequence[Any]) -> Any:
        results = self._run([*weights, *args], self._constants)
        return keras.tree.pack_sequence_as(self._structure, results)


class _Writer:
    """Writes one source for two recordings of a function.

    Args:
        first: the recording for the first length.
        second: that for the second, with other numbers.
        rows: the input whose length is that of the batch.
        held: tensors that may be read where they are.
    """

    def __init__(self, first: _Tape, second: _Tape, rows: int, held: Sequence[Any]) -> None:
        self.constants: list[Any] = []
        self._tapes = (first, second)
        self._names: tuple[dict[int, str], dict[int, str]] = ({}, {})
        self._constant_names: dict[int, str] = {}
        self._held = {_place(t) for t in held}
        self._made: set[int] = set()  # places in memory of what was made on the way
        for _, args, kwargs, result in first.calls:
            sources = {_place(t) for t in _tensors((args, kwargs))}
            self._made |= {_place(t) for t in _tensors(result)} - sources
        self._lines = ["def run(x: List[Tensor], c: List[Tensor]) -> List[Tensor]:"]
        self._lines.append(f"    n = x[{rows}].size(0)")
        if len(first.calls) != len(second.calls):
            raise _NotRecordable("another number of calls")
        for tape, names in zip(self._tapes, self._names, strict=True):
            names.update({id(t): f"x[{k}]" for k, t in enumerate(tape.inputs)})
        outputs = [keras.tree.flatten(tape.outputs) for tape in self._tapes]
        for call in self._needed(outputs):
            self._call(call)
        texts = [self._value(a, b, "Tensor") for a, b in zip(*outputs, strict=True)]
        self._lines.append(f"    return [{', '.join(texts)}]")
        self.structure = keras.tree.map_structure(lambda _: 0, first.outputs)
        self.source = "\n".join([*self._lines, ""])

    def _needed(self, outputs: list[list[Any]]) -> list[int]:
        """Numbers of the calls that the outputs are made of, and of all that write."""
        wanted = {id(t) for t in outputs[0]}
        needed = []
        for number in reversed(range(len(self._tapes[0].calls))):
            func, args, kwargs, result = self._tapes[0].calls[number]
            if func._schema.is_mutable or any(id(t) in wanted for t in _tensors(result)):
                needed.append(number)
                wanted.update(id(t) for t in _tensors((args, kwargs)))
        return needed[::-1]

    def _call(self, number: int) -> None:
        """A line for a call, and the names of its results."""
        (func, args, kwargs, result), (other, args2, kwargs2, result2) = (
            tape.calls[number] for tape in self._tapes
        )
        if func is not other or len(args) != len(args2) or kwargs.keys() != kwargs2.keys():
            raise _NotRecordable(f"{func} in place of {other}")
        parameters = func._schema.arguments
        if func._schema.is_mutable:
            self._check_writes(parameters, args, kwargs)
        kinds = {p.name: str(p.type) for p in parameters}
        texts = [
            self._value(a, b, str(p.type))
            for a, b, p in zip(args, args2, parameters[: len(args)], strict=True)
        ]
        texts += [f"{k}={self._value(v, kwargs2[k], kinds[k])}" for k, v in kwargs.items()]
        space, name = func._schema.name.split("::")
        call = f"torch.ops.{space}.{name}({', '.join(texts)})"
        self._name_results(number, call, result, result2)

    def _name_results(self, number: int, call: str, result: Any, result2: Any) -> None:
        new = f"v{number}"
        pairs = list(zip(_tensors(result), _tensors(result2), strict=True))
        if isinstance(result, tuple) and len(result) > 1:
            new = ", ".join(f"v{number}_{k}" for k in range(len(result)))
            names = [f"v{number}_{k}" for k, t in enumerate(result) if keras.ops.is_tensor(t)]
        elif isinstance(result, (list, tuple)):
            names = [f"v{number}[{k}]" for k in range(len(result))]
        else:
            names = [new]
        self._lines.append(f"    {new} = {call}")
        for (a, b), name in zip(pairs, names, strict=True):
            self._names[0].setdefault(id(a), name)  # what was written to keeps its name
            self._names[1].setdefault(id(b), name)

    def _check_writes(self, parameters: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Nothing is written but to what was made on the way."""
        values = {p.name: a for p, a in zip(parameters, args, strict=False)} | kwargs
        for p in parameters:
            if p.alias_info is not None and p.alias_info.is_write:
                if any(_place(t) not in self._made for t in _tensors(values.get(p.name))):
                    raise _NotRecordable("a write to what was given")

    def _value(self, a: Any, b: Any, kind: str) -> str:
        """An argument as source, from what it was in the two recordings."""
        import torch

        if isinstance(a, torch.Tensor):
            return self._tensor(a, b)
        if type(a) is not type(b):
            raise _NotRecordable(f"{a!r} in place of {b!r}")
        if isinstance(a, (list, tuple)):
            text = f"[{', '.join(self._value(v, w, '') for v, w in zip(a, b, strict=True))}]"
            if kind == "List[Optional[Tensor]]":
                return f"torch.jit.annotate({kind}, {text})"
            return text if a else f"torch.jit.annotate({kind}, [])"
        if type(a) is int:
            return _multiple(a, b) if kind != "float" else repr(float(a))
        if isinstance(a, (torch.dtype, torch.memory_format, torch.layout)) and a == b:
            return str(a)
        if isinstance(a, torch.device) and a == b:
            return f"torch.device({str(a)!r})"
        if a is None or type(a) in (bool, str) or (type(a) is float and math.isfinite(a)):
            if a != b:
                raise _NotRecordable(f"{a!r} became {b!r}")
            return repr(a)
        if type(a) is float and str(a) == str(b):
            return f"float({str(a)!r})"
        raise _NotRecordable(f"an argument {a!r}")

    def _tensor(self, a: Any, b: Any) -> str:
        names = self._names[0].get(id(a)), self._names[1].get(id(b))
        if names[0] is not None:
            if names[0] != names[1]:
                raise _NotRecordable("another order")
            return names[0]
        # A constant, if it was made anew: what someone holds may be changed.
        shared = bool(a.numel()) and _place(a) == _place(b)
        if names[1] is not None or not _same(a, b) or (shared and _place(a) not in self._held):
            raise _NotRecordable("a tensor that comes from elsewhere")
        if id(a) not in self._constant_names:
            self._constant_names[id(a)] = f"c[{len(self.constants)}]"
            self.constants.append(a.detach() if shared else a.detach().clone())
        return self._constant_names[id(a)]


def _multiple(a: int, b: int) -> str:
    """An integer in the source: the same in both recordings, or a multiple of the length."""
    if a == b:
        return repr(a)
    times, rest = divmod(a, _LENGTHS[0])
    if rest or times * _LENGTHS[1] != b:
        raise _NotRecordable(f"{a} and {b} are no multiples of the length")
    return f"({times} * n)"


def _tensors(value: Any) -> list[Any]:
    """All tensors in nested arguments or results."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [t for part in value for t in _tensors(part)]
    return [value] if keras.ops.is_tensor(value) else []


def _place(tensor: Any) -> int:
    return int(tensor.untyped_storage().data_ptr())
