"""Data-parallel training: copies of one model on several devices, kept bit for bit the same."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dynzoo import backend
from dynzoo.augmentation.batches import Augmented
from dynzoo.training.callbacks import Watch

__all__ = [
    "DistributionError",
    "OneDevice",
    "OneProcess",
    "Replicas",
    "ReplicasDivergedError",
    "jax_devices",
    "refuse_separate_processes",
    "separate_processes",
]


class DistributionError(ValueError):
    """Training cannot be spread over the devices asked for; the message says why."""


class ReplicasDivergedError(RuntimeError):
    """Copies of a model that must be the same are not."""


class OneProcess:
    """What several processes do together, for one alone; of one device unless it says more."""

    writes = True
    processes = 1
    count = 1
    apart = False  # whether the model's variables lie on several devices

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def check_batch_size(self, batch_size: int) -> None:
        """Any size."""

    def synchronise(self, model: keras.Model) -> None:
        """Nothing to do."""

    def check_equal(self, model: keras.Model) -> None:
        """There is one copy."""

    def guard(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def average(self, model: keras.Model) -> None:
        """The gradients are those of the whole batch."""

    def batches(self, *arguments: Any, **keywords: Any) -> Augmented:
        return Augmented(*arguments, **keywords)

    def watch(self, deadline: float | None) -> Watch:
        return Watch(deadline)

    def any(self, here: bool) -> bool:
        return here

    def mean(self, *values: float) -> list[float]:
        return list(values)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def read(self, path: str | os.PathLike[str]) -> bytes:
        return Path(path).read_bytes()

    def check_same(self, what: str, here: str) -> None:
        """There is nobody else."""


class OneDevice(OneProcess):
    """Training that is not spread: what ``Replicas`` does, for one device."""


class Replicas(OneProcess):
    r"""The devices that train copies of one model, each on its share of every batch.

    $$ \theta \leftarrow \Pi\Big(\theta - \eta\, U\Big(\tfrac1n \sum_{r=1}^{n} \nabla L_r(\theta)
       \Big)\Big), \qquad L_r = \text{mean loss of share } r $$

    Gradients are averaged over the devices, then each device makes the same update $U$ and the same
    projection $\Pi$ of its own copy. With equal shares the average is the gradient of the whole
    batch: batch size, learning rate and result (up to rounding) are those of one device.

    ``keras.distribution.DataParallel`` on JAX, ``tf.distribute.MirroredStrategy`` on TensorFlow,
    one process. On PyTorch Keras does not synchronise copies, so it is refused; there each device
    has a process of its own, ``dynzoo.training.processes.Processes``.

    Args:
        devices: number of devices, at least 1; ``None`` for all accelerators, or all CPU devices of
            the backend where there are none. A CPU is divided into as many virtual devices as are
            asked for, which shows that a recipe works and makes nothing faster; before the backend
            has computed anything, for later it cannot be divided any more.

    Raises:
        DistributionError: on PyTorch; in one of several processes; if there are not so many
            devices, or the CPU can no longer be divided.

    Example:

    >>> replicas = dynzoo.training.distribution.Replicas(4)
    >>> with replicas.scope():
    ...     model = dynzoo.models.isometric_classifier((32, 32, 3), 10)
    ...     model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ...     model.fit(x, y, batch_size=256)  # x of a multiple of 256 images
    >>> replicas.check_equal(model)

    Reference: Keras guides "Distributed training with JAX" and "... with TensorFlow".
    """

    apart = True

    def __init__(self, devices: int | None = None):
        if devices is not None and (devices != int(devices) or devices < 1):
            raise DistributionError(f"`devices` must be at least 1. Received: devices={devices}")
        refuse_separate_processes()
        makers = {"jax": _on_jax, "tensorflow": _on_tensorflow}
        if backend.name() not in makers:
            raise DistributionError(
                "Several devices of one process need JAX or TensorFlow: Keras "
                f"{keras.__version__} trains copies of a model on PyTorch apart, each on its own "
                "data. Start a process for each (torchrun --nproc-per-node N -m dynzoo train ...), "
                "or set KERAS_BACKEND=jax or KERAS_BACKEND=tensorflow; the weights load on every "
                "backend."
            )
        self.names, self._strategy = makers[backend.name()](devices)
        self.count = len(self.names)

    def __str__(self) -> str:
        return ", ".join(self.names)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where a model is built, compiled and fitted, to be one of copies on all devices."""
        return self._strategy.scope()

    def check_batch_size(self, batch_size: int) -> None:
        """``DistributionError`` where the devices' shares of a batch would differ in size."""
        if batch_size % self.count:
            raise DistributionError(
                f"`training.batch_size` must be a multiple of the {self.count} devices, for equal "
                f"shares. Received: {batch_size}"
            )

    def synchronise(self, model: keras.Model) -> None:
        """Lets batch statistics be those of the whole batch; before ``compile``."""
        # Keras implements it for TensorFlow alone. On JAX the batch is one array in any case.
        if backend.name() == "tensorflow":
            for layer in model._flatten_layers(include_self=False):
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.synchronized = True

    def check_equal(self, model: keras.Model) -> None:
        """Raises ``ReplicasDivergedError`` where copies of a variable differ in a bit.

        Variables of the optimizer included, for they decide the next step.
        """
        for variable in [*model.variables, *model.optimizer.variables]:
            first, *others = self._copies(variable)
            for device, copy in zip(self.names[1:], others, strict=True):
                if not np.array_equal(first, copy, equal_nan=True):
                    raise ReplicasDivergedError(
                        f"{variable.path} on {device} differs from that on {self.names[0]} by "
                        f"{np.abs(copy - first).max():.1e}"
                    )

    def _copies(self, variable: Any) -> list[np.ndarray]:
        if backend.name() == "jax":
            return [np.asarray(shard.data) for shard in variable.value.addressable_shards]
        return [np.asarray(v) for v in self._strategy.experimental_local_results(variable.value)]


def separate_processes() -> int:
    """How many processes train together, this one included, as far as it has been told.

    By what is initialized, or else by the environment: ``WORLD_SIZE`` on PyTorch,
    ``KERAS_DISTRIBUTION_NUM_PROCESSES`` on JAX, ``TF_CONFIG`` on TensorFlow.

    Raises:
        DistributionError: if a variable is no number.
    """
    if backend.name() == "torch":
        import torch.distributed

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_world_size()
        return _number_in("WORLD_SIZE")
    if backend.name() == "jax":
        import jax

        if jax.distributed.is_initialized():
            return jax.process_count()
        return _number_in("KERAS_DISTRIBUTION_NUM_PROCESSES")
    if not os.environ.get("TF_CONFIG"):
        return 1
    import tensorflow as tf

    workers = tf.distribute.cluster_resolver.TFConfigClusterResolver().cluster_spec()
    return sum(workers.num_tasks(job) for job in workers.jobs)


def _number_in(name: str) -> int:
    asked = os.environ.get(name) or "1"
    if not asked.isdecimal() or int(asked) < 1:
        raise DistributionError(f"{name} must be a positive integer. Received: {name}={asked}")
    return int(asked)


def refuse_separate_processes(what: str = "This") -> None:
    """Raises ``DistributionError`` in one of several processes, for what runs in one alone."""
    count = separate_processes()
    if count > 1:
        raise DistributionError(
            f"{what} runs in one process, on all of its devices. This is one of {count}: each "
            "would train a model of its own. Start a single one, or use `dynzoo train`."
        )


def _on_jax(devices: int | None) -> tuple[list[str], Any]:
    names = jax_devices(devices)
    return names, keras.distribution.DataParallel(devices=names)


def jax_devices(devices: int | None) -> list[str]:
    """Names of so many devices of JAX, all for ``None``; a CPU is divided where it still can be.

    Raises:
        DistributionError: if there are not so many.
    """
    import jax

    if devices is not None:
        # Of a backend that runs already JAX refuses it: then what is there must do.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", devices)
            # The parts of a CPU share its threads. With several programs under way, all threads can
            # wait for parts that have none left, and XLA ends the process: one program at a time.
            jax.config.update("jax_cpu_enable_async_dispatch", False)
    found = jax.devices()
    names = [f"{d.platform}:{d.id}" for d in found][:devices]
    _check_enough(devices, names, on_cpu=found[0].platform == "cpu")
    return names


def _on_tensorflow(devices: int | None) -> tuple[list[str], Any]:
    import tensorflow as tf

    accelerators = tf.config.list_physical_devices("GPU")
    if not accelerators and devices is not None and devices > 1:
        (cpu, *_) = tf.config.list_physical_devices("CPU")
        with contextlib.suppress(RuntimeError):  # as on JAX
            parts = [tf.config.LogicalDeviceConfiguration() for _ in range(devices)]
            tf.config.set_logical_device_configuration(cpu, parts)
    found = tf.config.list_logical_devices("GPU" if accelerators else "CPU")
    names = [":".join(d.name.split(":")[-2:]) for d in found][:devices]
    _check_enough(devices, names, on_cpu=not accelerators)
    return names, tf.distribute.MirroredStrategy(names)


def _check_enough(devices: int | None, names: Sequence[str], on_cpu: bool) -> None:
    if devices is None or len(names) == devices:
        return
    why = f"{backend.name()} has {len(names)} here"
    if on_cpu:
        why += ", and divides the CPU only before it has computed anything: start a new process"
    raise DistributionError(f"`devices` must be at most {len(names)}: {why}. Received: {devices}")
