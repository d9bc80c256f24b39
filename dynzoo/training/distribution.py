"""Data-parallel training: copies of one model on several devices, kept bit for bit the same."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from dynzoo import backend

__all__ = ["DistributionError", "OneDevice", "Replicas", "ReplicasDivergedError"]


class DistributionError(ValueError):
    """Training cannot be spread over the devices asked for; the message says why."""


class ReplicasDivergedError(RuntimeError):
    """Copies of a model that must be the same are not."""


class OneDevice:
    """Training that is not spread: what ``Replicas`` does, for one device."""

    count = 1

    def __init__(self) -> None:
        _refuse_separate_processes()

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def check_batch_size(self, batch_size: int) -> None:
        """Any size."""

    def synchronise(self, model: keras.Model) -> None:
        """Nothing to do."""

    def check_equal(self, model: keras.Model) -> None:
        """There is one copy."""


class Replicas:
    r"""The devices that train copies of one model, each on its share of every batch.

    $$ \theta \leftarrow \Pi\Big(\theta - \eta\, U\Big(\tfrac1n \sum_{r=1}^{n} \nabla L_r(\theta)
       \Big)\Big), \qquad L_r = \text{mean loss of share } r $$

    Gradients are averaged over the devices, then each device makes the same update $U$ and the same
    projection $\Pi$ of its own copy. With equal shares the average is the gradient of the whole
    batch: batch size, learning rate and result (up to rounding) are those of one device.

    ``keras.distribution.DataParallel`` on JAX, ``tf.distribute.MirroredStrategy`` on TensorFlow,
    one process. On PyTorch Keras does not synchronise copies, so it is refused.

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

    def __init__(self, devices: int | None = None):
        if devices is not None and (devices != int(devices) or devices < 1):
            raise DistributionError(f"`devices` must be at least 1. Received: devices={devices}")
        _refuse_separate_processes()
        makers = {"jax": _on_jax, "tensorflow": _on_tensorflow}
        if backend.name() not in makers:
            raise DistributionError(
                f"Data-parallel training needs JAX or TensorFlow: Keras {keras.__version__} trains "
                "copies of a model on PyTorch apart, each on its own data. Set KERAS_BACKEND=jax "
                "or KERAS_BACKEND=tensorflow; the weights load on every backend."
            )
        self.names, self._strategy = makers[backend.name()](devices)

    @property
    def count(self) -> int:
        """How many devices."""
        return len(self.names)

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


def _refuse_separate_processes() -> None:
    """Raises ``DistributionError`` in one of several processes that train together.

    Keras on PyTorch would train each one's copy apart, on whatever it reads; on JAX and TensorFlow
    this package feeds one process only.
    """
    count = 1
    if backend.name() == "torch":
        import torch.distributed

        started = torch.distributed.is_available() and torch.distributed.is_initialized()
        asked = os.environ.get("WORLD_SIZE", "1")
        count = torch.distributed.get_world_size() if started else int(asked or 1)
    elif backend.name() == "jax":
        import jax

        if jax.distributed.is_initialized():
            count = jax.process_count()
    elif os.environ.get("TF_CONFIG"):
        import tensorflow as tf

        workers = tf.distribute.cluster_resolver.TFConfigClusterResolver().cluster_spec()
        count = sum(workers.num_tasks(job) for job in workers.jobs)
    if count > 1:
        raise DistributionError(
            f"Training runs in one process, on all of its devices. This is one of {count}: each "
            "would train a model of its own. Start a single one, with JAX or TensorFlow and "
            "--distribute."
        )


def _on_jax(devices: int | None) -> tuple[list[str], Any]:
    import jax

    if devices is not None:
        # Of a backend that runs already JAX refuses it: then what is there must do.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", devices)
    found = jax.devices()
    names = [f"{d.platform}:{d.id}" for d in found][:devices]
    _check_enough(devices, names, on_cpu=found[0].platform == "cpu")
    return names, keras.distribution.DataParallel(devices=names)


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
