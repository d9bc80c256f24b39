"""Model-parallel training: kernels divided over devices, where one holds no whole network."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import yaml

from dynzoo import backend
from dynzoo.training.arguments import axes_of
from dynzoo.training.distribution import (
    DistributionError,
    OneProcess,
    ReplicasDivergedError,
    jax_devices,
    refuse_separate_processes,
)
from dynzoo.utils.arguments import integer

__all__ = ["Sharded"]

_BATCH = "batch"  # the axis of the mesh over which the images are divided
_KEYS = ("mesh", "variables")


class Sharded(OneProcess):
    r"""Devices in a mesh that hold parts of one model's kernels; JAX only.

    ``keras.distribution.ModelParallel``: every array is divided as its layout says, and the
    compiler adds what the devices must tell each other. A constraint sees the whole kernel: the
    projection $\Pi(W)$ of a divided kernel is that of the undivided one up to rounding, in
    particular its singular values. The optimizer's arrays are divided like their variables.

    Args:
        layout: axes of the mesh, ``"model=4"`` or ``"batch=2,model=2"`` or a mapping: of every
            variable of two axes or more the last axis whose size is a multiple of ``model`` is then
            divided over it. Or a YAML file with ``mesh``, a mapping of axes, and ``variables``, a
            mapping from patterns of variables' paths (which match the whole of them) to lists of an
            axis of the mesh, or null, for each axis of the variable; others are not divided.
            ``batch`` is the axis over which the images are divided, 1 if it is not given.

    Raises:
        DistributionError: on another backend; in one of several processes; if there are not so many
            devices; if the layout does not fit, naming the variable.

    Example:

    >>> sharded = dynzoo.training.layouts.Sharded("model=4")
    >>> with sharded.scope():
    ...     model = dynzoo.models.isometric_classifier((32, 32, 3), 10)
    ...     model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ...     model.fit(x, y, batch_size=256)

    Reference: Keras guide "Distributed training with JAX".
    """

    apart = True

    def __init__(self, layout: str | os.PathLike[str] | Mapping[str, int]):
        refuse_separate_processes("A layout (--layout)")
        if backend.name() != "jax":
            raise DistributionError(
                "`layout` (--layout) needs the JAX backend, which divides arrays over devices: set "
                f"KERAS_BACKEND=jax. Received: the backend {backend.name()!r}"
            )
        axes, patterns = _read(layout)
        self.axes = {_BATCH: 1, **axes}
        self.count = self.axes[_BATCH]
        names = jax_devices(math.prod(self.axes.values()))
        mesh = keras.distribution.DeviceMesh(
            tuple(self.axes.values()), tuple(self.axes), devices=names
        )
        self._strategy = _divided()(mesh, self.axes, patterns)

    def __str__(self) -> str:
        return "the mesh " + " x ".join(f"{name}={size}" for name, size in self.axes.items())

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where a model is built, compiled and fitted."""
        return self._strategy.scope()

    def check_batch_size(self, batch_size: int) -> None:
        """``DistributionError`` where the shares of a batch would differ in size."""
        if batch_size % self.count:
            raise DistributionError(
                f"`training.batch_size` must be a multiple of the axis `batch` of the mesh, "
                f"{self.count}. Received: {batch_size}"
            )

    def synchronise(self, model: keras.Model) -> None:
        """Refuses a pattern that no variable has."""
        paths = [variable.path for variable in model.variables]
        for pattern in self._strategy.patterns or {}:
            if not any(re.fullmatch(pattern, path) for path in paths):
                raise DistributionError(
                    f"`variables` of the layout: no variable matches {pattern!r}. There are "
                    f"{', '.join(paths[:4])}, ..."
                )

    def check_equal(self, model: keras.Model) -> None:
        """Raises ``ReplicasDivergedError`` where devices differ in a part that they share."""
        for variable in [*model.variables, *model.optimizer.variables]:
            parts = defaultdict(list)
            for shard in variable.value.addressable_shards:
                parts[str(shard.index)].append(np.asarray(shard.data))
            for first, *others in parts.values():
                if not all(np.array_equal(first, other, equal_nan=True) for other in others):
                    raise ReplicasDivergedError(f"{variable.path} differs between devices")

    def bytes_of(self, model: keras.Model) -> tuple[int, int]:
        """Bytes of weights and optimizer on the first device, and of all of them undivided."""
        arrays = [v.value for v in [*model.variables, *model.optimizer.variables]]
        return sum(a.addressable_shards[0].data.nbytes for a in arrays), sum(
            a.nbytes for a in arrays
        )


def _read(layout: Any) -> tuple[dict[str, int], dict[str, tuple[str | None, ...]] | None]:
    """Axes of a mesh, and patterns with layouts; ``None`` for an axis of each kernel."""
    if isinstance(layout, Mapping):
        return {str(k): integer(f"layout[{k!r}]", v) for k, v in layout.items()}, None
    text = os.fspath(layout)
    axes = axes_of(text)
    if axes is not None:
        return axes, None
    try:
        with open(text, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DistributionError(f"{text}: not readable as YAML ({error})") from None
    whole = isinstance(content, dict) and set(content) == set(_KEYS)
    if not whole or not all(isinstance(content[key], dict) and content[key] for key in _KEYS):
        raise DistributionError(f"{text}: must hold the mappings `mesh` and `variables`")
    mesh = {str(k): integer(f"mesh.{k}", v) for k, v in content["mesh"].items()}
    patterns = {}
    for pattern, axes_of_variable in content["variables"].items():
        named = isinstance(axes_of_variable, list)
        if not named or not all(a is None or a in mesh for a in axes_of_variable):
            raise DistributionError(
                f"{text}: `variables`: {pattern!r} must have a list of axes of the mesh "
                f"({', '.join(mesh)}) or null. Received: {axes_of_variable}"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise DistributionError(f"{text}: {pattern!r} is no pattern ({error})") from None
        patterns[str(pattern)] = tuple(axes_of_variable)
    return mesh, patterns


def _divided() -> type:
    """The strategy; made when asked for, as Keras has its base on the running backend."""

    class Divided(keras.distribution.ModelParallel):
        """Layouts by pattern, or an axis of each kernel; all checked against the shapes."""

        def __init__(self, mesh, axes, patterns):
            layouts = keras.distribution.LayoutMap(mesh)
            for pattern, spec in (patterns or {}).items():
                layouts[pattern] = spec
            super().__init__(layout_map=layouts, batch_dim_name=_BATCH, auto_shard_dataset=False)
            self.axes, self.patterns = axes, patterns

        def get_variable_layout(self, variable):
            if getattr(variable, "_layout", None) is not None or self.patterns is not None:
                layout = super().get_variable_layout(variable)
            else:
                shape, size = variable.shape, self.axes.get("model", 1)
                spec: list[str | None] = [None] * len(shape)
                multiples = [k for k, n in enumerate(shape) if n % size == 0]
                if len(shape) >= 2 and size > 1 and multiples:
                    spec[multiples[-1]] = "model"
                layout = keras.distribution.TensorLayout(spec, self.device_mesh)
            self._check(variable, layout.axes)
            return layout

        def _check(self, variable, spec):
            shape = tuple(variable.shape)
            sizes = [self.axes[a] if a else 1 for a in spec]
            fits = len(shape) == len(spec)
            if not fits or any(n % size for n, size in zip(shape, sizes, strict=True)):
                raise DistributionError(
                    f"the layout {list(spec)} does not fit {variable.path} of shape {shape}: an "
                    "entry for each axis, whose size must be a multiple of the mesh's"
                )

        def get_tensor_layout(self, path):
            return None  # patterns are of variables

    return Divided
