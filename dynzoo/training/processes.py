"""Data-parallel training in several processes, on one machine or many: one model, kept the same."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import hashlib
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np

from dynzoo import backend
from dynzoo.augmentation.batches import Augmented
from dynzoo.inference.model_layers import flat_layers
from dynzoo.training.callbacks import Watch
from dynzoo.training.distribution import DistributionError, ReplicasDivergedError
from dynzoo.training.update_shares import UpdateShares
from dynzoo.utils import interruption
from dynzoo.utils.tensorflow_import import set_random_seed

__all__ = ["ProcessLostError", "Processes", "leave"]

_PATIENCE = 300.0  # seconds until a process that neither answers nor has died counts as lost
_PAUSE = 1.0  # seconds between the steps after which the processes agree whether to stop
_LENGTH = struct.Struct("<q")
_TORCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_JAX = tuple(f"KERAS_DISTRIBUTION_{n}" for n in ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID"))
# what the loss over a batch must be for the mean over equal shares to be that of the whole
_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")


class ProcessLostError(RuntimeError):
    """Another process of this training is gone, or does not answer."""


class Processes:
    r"""Processes that train one model, each on its share of every batch.

    $$ \theta \leftarrow \Pi\Big(\theta - \eta\, U\Big(\tfrac1n \sum_{r=1}^{n} \nabla L_r(\theta)
       \Big)\Big), \qquad L_r = \text{mean loss of share } r $$

    as in ``dynzoo.training.distribution.Replicas``, with every share in a process of its own. On
    PyTorch, one device a process, the gradients are averaged by ``torch.distributed`` (gloo) before
    the Keras optimizer's step, which keeps the constraints; a variable of a ``RiemannianMuon`` is
    then updated and projected by one process for all (``UpdateShares``), of other optimizers by
    each in the same way. On JAX ``keras.distribution.DataParallel`` spans the devices of
    all processes. Only process 0 writes. After every epoch the weights are compared, bit for bit.

    The processes are those that the environment names: ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``
    and ``MASTER_PORT`` on PyTorch, as ``torchrun`` sets them; ``KERAS_DISTRIBUTION_JOB_ADDRESSES``,
    ``KERAS_DISTRIBUTION_NUM_PROCESSES`` and ``KERAS_DISTRIBUTION_PROCESS_ID`` on JAX. What has been
    initialized already is taken as it is.

    Raises:
        DistributionError: on TensorFlow; if a variable is missing; if the processes do not meet.

    Reference: Keras guide "Distributed training with JAX"; PyTorch, ``torch.distributed``.
    """

    apart = True  # whether the model's variables are not plain arrays of this process

    def __init__(self) -> None:
        makers: dict[str, type[_Jax | _Gloo]] = {"jax": _Jax, "torch": _Gloo}
        if backend.name() not in makers:
            raise DistributionError(
                f"Training in several processes needs JAX or PyTorch: `fit` of Keras "
                f"{keras.__version__} does not run under TensorFlow's MultiWorkerMirroredStrategy. "
                "Unset TF_CONFIG, or set KERAS_BACKEND=jax or KERAS_BACKEND=torch; the weights "
                "load on every backend."
            )
        self._channel: _Jax | _Gloo = makers[backend.name()]()
        self.rank, self.processes = self._channel.rank, self._channel.processes
        self.count = self._channel.devices
        self.apart = isinstance(self._channel, _Jax)

    def __str__(self) -> str:
        return f"{self.count} devices of {self.processes} processes"

    @property
    def writes(self) -> bool:
        """Whether this is the one process that writes and speaks."""
        return self.rank == 0

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where a model is built, compiled and fitted."""
        return self._channel.scope()

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turns the backend's error over a process that is gone into ``ProcessLostError``."""
        with self._channel.guard():
            yield

    def check_batch_size(self, batch_size: int) -> None:
        """``DistributionError`` where the devices' shares of a batch would differ in size."""
        if batch_size % self.count:
            raise DistributionError(
                f"`training.batch_size` must be a multiple of the {self.count} devices of all "
                f"processes, for equal shares. Received: {batch_size}"
            )

    def synchronise(self, model: keras.Model) -> None:
        """Refuses what would not be that of the whole batch; before ``compile``."""
        if self.apart:  # JAX sees the whole batch as one array
            return
        for layer in flat_layers(model):
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
                raise DistributionError(
                    f"{layer.name} (BatchNormalization) would normalise each process's share of a "
                    "batch by itself on PyTorch: train this network in one process, or on JAX"
                )

    def average(self, model: keras.Model) -> None:
        """Lets the optimizer of a compiled model take the mean of all processes' gradients."""
        channel = self._channel
        if isinstance(channel, _Jax):  # the gradients are those of the whole batch
            return
        if model.loss.reduction not in _MEANS:
            raise DistributionError(
                f"`training.loss` must be a mean over the batch in several processes. Received: "
                f"reduction={model.loss.reduction!r}"
            )
        shares = UpdateShares(model.optimizer, self.rank, self.processes, channel.share)

        def averaged(grads: Sequence[Any], trainable_variables: Any = None) -> None:
            shares.apply(channel.mean_of(grads), trainable_variables)

        model.optimizer.apply = averaged

    def batches(self, *arguments: Any, **keywords: Any) -> Augmented:
        """This process's share of the batches that ``Augmented`` makes of the arguments."""
        return _Share(self.rank, self.processes, *arguments, **keywords)

    def watch(self, deadline: float | None) -> Watch:
        """A ``Watch`` with which all processes stop after the same step."""
        return _WatchTogether(deadline, self)

    def any(self, here: bool) -> bool:
        """Whether it is so in any of the processes."""
        return any(flag != b"\0" for flag in self.gather(b"\1" if here else b"\0"))

    def mean(self, *values: float) -> list[float]:
        """The means over the processes, of what each has of its own share."""
        if self.apart:  # those of the whole batch already
            return list(values)
        parts = self.gather(struct.pack(f"<{len(values)}d", *values))
        return np.mean([struct.unpack(f"<{len(values)}d", part) for part in parts], axis=0).tolist()

    def gather(self, content: bytes) -> list[bytes]:
        """What each process gives, all of one length, in their order."""
        return self._channel.gather(content)

    def exists(self, path: Path) -> bool:
        """Whether process 0 sees the file."""
        return self._from_first(b"\1" if self.writes and path.exists() else b"\0") == b"\1"

    def read(self, path: str | os.PathLike[str]) -> bytes:
        """The content of a file that process 0 sees."""
        return self._from_first(Path(path).read_bytes() if self.writes else b"")

    def _from_first(self, content: bytes) -> bytes:
        (length,) = _LENGTH.unpack(self.gather(_LENGTH.pack(len(content)))[0])
        return self._channel.broadcast(content, length)

    def check_same(self, what: str, here: str) -> None:
        """``DistributionError`` unless all processes have the same text."""
        digests = self.gather(hashlib.sha256(here.encode()).digest())
        others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise DistributionError(f"process {others[0]} has {what} that process 0 has not")

    def check_equal(self, model: keras.Model) -> None:
        """Raises ``ReplicasDivergedError`` where variables differ in a bit between processes.

        Variables of the optimizer included, for they decide the next step.
        """
        variables = [*model.variables, *model.optimizer.variables]
        digests = self.gather(b"".join(self._digest(v) for v in variables))
        for rank, digest in enumerate(digests):
            for k, variable in enumerate(variables):
                part = slice(k * 32, (k + 1) * 32)
                if digest[part] != digests[0][part]:
                    raise ReplicasDivergedError(
                        f"{variable.path} of process {rank} differs from that of process 0: are "
                        "all of one kind of processor and the same versions?"
                    )

    def _digest(self, variable: Any) -> bytes:
        digests = [hashlib.sha256(c.tobytes()).digest() for c in self._channel.copies(variable)]
        if len(set(digests)) > 1:
            raise ReplicasDivergedError(
                f"{variable.path} differs between the devices of process {self.rank}"
            )
        return digests[0]


class _Share(Augmented):
    """One process's share of every batch: its images alone are read and cut."""

    def __init__(self, rank: int, processes: int, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        size = self.batch_size // processes
        self._part = slice(rank * size, (rank + 1) * size)

    def _numbers(self, epoch: int, index: int) -> tuple[np.ndarray, ...]:
        # drawn for the whole batch: the numbers of an image are those of one process
        return tuple(part[self._part] for part in super()._numbers(epoch, index))


class _WatchTogether(Watch):
    """Stops all processes after the same step; they agree on it about once a second.

    A collective call between steps must come in the same order everywhere, so in the main thread.
    """

    async_safe = False

    def __init__(self, deadline: float | None, processes: Processes):
        super().__init__(deadline)
        self._processes = processes
        self._next, self._steps, self._since = 1, 1, time.monotonic()

    def on_train_batch_begin(self, batch, logs=None):
        """Nothing waits: Keras reports the end of a batch before the next one begins."""

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        interruption.hold()
        self._look((logs or {}).get("loss", 0.0))
        if self.batches < self._next:
            return
        now = time.monotonic()
        pace = int(_PAUSE * self._steps / max(now - self._since, 1e-9))
        late = self._is_late() or interruption.asked()
        here = struct.pack("<??i", self.diverged, late, min(pace, 2 * self._steps))
        told = [struct.unpack("<??i", part) for part in self._processes.gather(here)]
        self.diverged = any(diverged for diverged, _, _ in told)
        self.out_of_time = not self.diverged and any(late for _, late, _ in told)
        if self.diverged or self.out_of_time:
            self._fitted.stop_training = True
        self._steps = max(1, min(pace for _, _, pace in told))
        self._next, self._since = self.batches + self._steps, now


def leave(code: int) -> NoReturn:
    """Ends the command's process at once: JAX would wait a minute and more for what is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _check_environment(names: Sequence[str], count: str, rank: str) -> None:
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise DistributionError(
            f"{missing[0]} must be set in the environment, as {', '.join(names)} say which "
            "processes train together"
        )
    values = []
    for name in (count, rank):
        try:
            values.append(int(os.environ[name]))
        except ValueError:
            raise DistributionError(
                f"{name} must be an integer. Received: {name}={os.environ[name]}"
            ) from None
    if not 0 <= values[1] < values[0]:
        raise DistributionError(
            f"{rank} must be in [0, {values[0]}), for {count}={values[0]}. Received: {values[1]}"
        )


def _lost(processes: int, error: Exception) -> ProcessLostError:
    said = " ".join(str(error).split()).partition(". This is typically")[0]
    return ProcessLostError(
        f"another of the {processes} processes is gone or does not answer, so this one stops; the "
        f"last checkpoint goes on with --resume and any number of processes ({said[-120:]})"
    )


def _leave_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized():  # unless the caller has done so
        dist.destroy_process_group()


class _Gloo:
    """Collective calls of PyTorch's processes, through the memory of the host."""

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist

        self._torch, self._dist = torch, dist
        if not dist.is_initialized():
            _check_environment(_TORCH, "WORLD_SIZE", "RANK")
            try:
                patience = datetime.timedelta(seconds=_PATIENCE)
                dist.init_process_group("gloo", timeout=patience)
            except (RuntimeError, ValueError) as error:
                raise DistributionError(
                    f"the processes did not meet at {os.environ['MASTER_ADDR']}:"
                    f"{os.environ['MASTER_PORT']} ({' '.join(str(error).split())[:200]})"
                ) from None
            # A group that lives on while Python ends may abort the process (PyTorch issue 190489).
            atexit.register(_leave_group)
        self.rank, self.processes = dist.get_rank(), dist.get_world_size()
        self.devices = self.processes
        if torch.cuda.is_available():
            local = int(os.environ.get("LOCAL_RANK", self.rank))
            torch.cuda.set_device(local % torch.cuda.device_count())
        # apart from a group of the caller's, which may be of another kind and patience
        self._group = dist.new_group(backend="gloo")

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def guard(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()  # each call below is guarded

    def _call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        try:
            function(*arguments, group=self._group, **keywords)
        except RuntimeError as error:
            raise _lost(self.processes, error) from None

    def gather(self, content: bytes) -> list[bytes]:
        here = self._tensor(content)
        parts = [self._torch.empty_like(here) for _ in range(self.processes)]
        self._call(self._dist.all_gather, parts, here)
        return [part.numpy().tobytes() for part in parts]

    def broadcast(self, content: bytes, length: int) -> bytes:
        tensor = self._tensor(content if self.rank == 0 else bytes(length))
        self._call(self._dist.broadcast, tensor, src=0)
        return tensor.numpy().tobytes()

    def mean_of(self, gradients: Sequence[Any]) -> list[Any]:
        """In one message for each kind of number, through the memory of the host."""
        result = list(gradients)
        kinds: dict[Any, list[int]] = {}
        for k, gradient in enumerate(result):
            if gradient is not None:
                kinds.setdefault(gradient.dtype, []).append(k)
        for places in kinds.values():
            parts = [result[k].detach() for k in places]
            whole = self._torch.cat([part.reshape(-1) for part in parts])
            sums = whole.cpu()
            self._call(self._dist.all_reduce, sums)
            pieces = (sums / self.processes).to(whole.device).split([p.numel() for p in parts])
            for k, part, piece in zip(places, parts, pieces, strict=True):
                result[k] = piece.reshape(part.shape)
        return result

    def share(self, tensors: Sequence[Any], source: int) -> None:
        """Fills tensors with those of one process, in one message for each kind of number."""
        kinds: dict[Any, list[Any]] = {}
        for tensor in tensors:
            kinds.setdefault(tensor.dtype, []).append(tensor)
        for dtype, parts in kinds.items():
            sizes = [part.numel() for part in parts]
            if source == self.rank:
                values = self._torch.cat([part.detach().reshape(-1) for part in parts]).cpu()
            else:
                values = self._torch.empty(sum(sizes), dtype=dtype)
            self._call(self._dist.broadcast, values, src=source)
            if source == self.rank:
                continue
            with self._torch.no_grad():
                for part, piece in zip(parts, values.split(sizes), strict=True):
                    part.copy_(piece.reshape(part.shape))

    def copies(self, variable: Any) -> list[np.ndarray]:
        return [backend.value_of(variable)]

    def _tensor(self, content: bytes) -> Any:
        return self._torch.from_numpy(np.frombuffer(content, np.uint8).copy())


class _Jax:
    """Collective calls of JAX's processes, and the devices of all of them."""

    def __init__(self) -> None:
        import jax

        self._jax = jax
        if not jax.distributed.is_initialized():
            _check_environment(_JAX, _JAX[1], _JAX[2])
            set_random_seed(0)  # else Keras agrees on one; training sets its own
            try:
                keras.distribution.initialize()
            except (RuntimeError, ValueError) as error:
                raise DistributionError(
                    f"the processes did not meet at {os.environ[_JAX[0]]} "
                    f"({' '.join(str(error).split())[:200]})"
                ) from None
        self.rank, self.processes = jax.process_index(), jax.process_count()
        self.devices = len(jax.devices())
        self._strategy = keras.distribution.DataParallel(auto_shard_dataset=False)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return self._strategy.scope()

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        try:
            yield
        except self._jax.errors.JaxRuntimeError as error:
            # of the link, whatever step the collective call was part of
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            raise _lost(self.processes, error) from None

    def gather(self, content: bytes) -> list[bytes]:
        from jax.experimental import multihost_utils

        here = np.frombuffer(content, np.uint8)
        return [part.tobytes() for part in np.asarray(multihost_utils.process_allgather(here))]

    def broadcast(self, content: bytes, length: int) -> bytes:
        from jax.experimental import multihost_utils

        here = np.frombuffer(content if self.rank == 0 else bytes(length), np.uint8)
        return np.asarray(multihost_utils.broadcast_one_to_all(here)).astype(np.uint8).tobytes()

    def copies(self, variable: Any) -> list[np.ndarray]:
        if self._jax.local_device_count() == 1:
            # JAX 0.10 raises ValueError over `addressable_shards` of a replicated array that has
            # one shard here and others elsewhere.
            return [np.asarray(variable.value.addressable_data(0))]
        return [np.asarray(shard.data) for shard in variable.value.addressable_shards]
