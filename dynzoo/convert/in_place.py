"""PyTorch's operations in place: which nodes of a graph hold the tensor that one of them changes.

A graph of torch.fx reads as if every node made a tensor of its own. ``x.clamp_(0, 1)`` changes x
for all that comes later, whether its result is used or not.
"""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["Memory"]

_OPERATORS = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul")
# What may give its input back, or a view of it.
_VIEWS = frozenset(
    "chunk contiguous detach diagonal dropout dropout1d dropout2d dropout3d expand "
    "expand_as flatten float getattr getitem movedim narrow permute ravel real "
    "reshape select split squeeze swapaxes swapdims t to transpose type_as unbind "
    "unflatten unfold unsqueeze view view_as".split()
)
_VIEW_MODULES = ("Flatten", "Unflatten", "Identity", "Dropout")


class Memory:
    """What the nodes of a graph share, learnt as they are gone through in their order."""

    def __init__(self, root: Any):
        self._root = root
        # of each node the storage it lies in, and the tensor that it is
        self._storages: dict[Any, Any] = {}
        self._tensors: dict[Any, Any] = {}

    def add(self, node: Any) -> tuple[list[Any], bool]:
        """Notes a node.

        Returns:
            (earlier nodes that are the tensor which this one changes; whether it changes one of
            which another view is used later).
        """
        base = node.args[0] if node.args and node.args[0] in self._storages else None
        changes = base is not None and self._in_place(node)
        shares = base is not None and (changes or self._is_view(node))
        self._storages[node] = self._storages[base] if shares else node
        self._tensors[node] = self._tensors[base] if changes else node
        if not changes:
            return [], False
        others = [n for n, s in self._storages.items() if s is self._storages[node] and n != node]
        same = [n for n in others if self._tensors[n] is self._tensors[node]]
        views = [n for n in others if n not in same]
        return same, any(user not in self._storages for view in views for user in view.users)

    def _name(self, node: Any) -> str:
        return str(getattr(node.target, "__name__", node.target))

    def _in_place(self, node: Any) -> bool:
        if node.op == "call_module":
            return bool(getattr(self._root.get_submodule(node.target), "inplace", False))
        if node.op == "call_method":
            return node.target.endswith("_") and not node.target.endswith("__")
        if node.op != "call_function":
            return False
        name = self._name(node)
        if name in _OPERATORS or (name.endswith("_") and not name.endswith("__")):
            return True
        try:
            bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        except (TypeError, ValueError):  # built in, without a signature
            return node.kwargs.get("inplace") is True
        return bound.arguments.get("inplace") is True

    def _is_view(self, node: Any) -> bool:
        if node.op == "call_module":
            part = type(self._root.get_submodule(node.target)).__name__
            return part.startswith(_VIEW_MODULES)
        return self._name(node) in _VIEWS
