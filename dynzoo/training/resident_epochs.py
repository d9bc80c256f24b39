"""Epochs whose images, batches and updates stay on the device: one compiled call for many steps.

``model.fit`` hands a batch at a time to the device, made on the host, and asks after each how it
went. A fast accelerator waits for that most of the time. Here the images lie on the device as
bytes; the host draws only the numbers of an epoch, while the one before runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from dynzoo import backend
from dynzoo.augmentation.batches import DISTORTIONS, Augmented, random_crop_flip
from dynzoo.data import datasets as data
from dynzoo.training.builders import GivenRate, build_variables
from dynzoo.training.fitted_epochs import Epochs, Stretch
from dynzoo.utils import interruption

__all__ = ["ResidentEpochs", "epoch_numbers", "resident_needs_jax"]

_TRIAL = 3  # steps that are timed before any is taken
_FLOAT_OF_BYTE = data.to_float(np.arange(256, dtype=np.uint8))
_LONGEST = 10.0  # seconds of a call, so that a time limit is not missed by more


def epoch_numbers(batches: Augmented) -> tuple[np.ndarray, ...]:
    """What ``Augmented`` draws for all batches of its epoch, stacked.

    Returns:
        Places of the images (int32), shifts down and to the right (int32), mirrors (bool), each
        (batches, n); and the numbers of the distortions (float32), (batches, n, 5).
    """
    chosen, dy, dx, mirror, draws = zip(*map(batches.numbers, range(len(batches))), strict=True)
    whole = (np.stack(part).astype("int32") for part in (chosen, dy, dx))
    return (*whole, np.stack(mirror), np.stack(draws).astype("float32"))


class ResidentEpochs(Epochs):
    r"""Training steps of a compiled model on images that lie on the device; JAX only.

    A step is that of Keras, $s \leftarrow \mathrm{train\_step}(s, (x_b, y_b))$, with the batches of
    ``Augmented``. Everything that changes while a run lasts (rates, numbers of the loss, batches)
    is an argument, so that a run compiles once.

    Args:
        *arguments: those of ``dynzoo.training.fitted_epochs.Epochs``, the model with a
            ``GivenRate`` for its learning rate.

    Raises:
        ValueError: on another backend.
    """

    def __init__(self, *arguments: Any):
        if backend.name() != "jax":
            raise ValueError(resident_needs_jax())
        import jax

        super().__init__(*arguments)
        self.rate: GivenRate = self.model.optimizer._learning_rate
        self._data = jax.device_put((self.images, self.labels.astype("int32")))
        self.seconds_a_step = 0.0
        self.seconds_to_compile = 0.0
        self._padding = 0
        self._compiled: Callable[..., Any] | None = None
        self._pool = ThreadPoolExecutor(1)
        self._ahead: dict[Any, Future] = {}
        self._numbers: tuple[Any, Any] = (None, None)
        build_variables(self.model)

    def prepare(self, epoch: int, section: dict[str, Any]) -> None:
        """Begins to draw the numbers of an epoch, in a thread.

        Args:
            epoch: its number, from 0.
            section: ``data`` of the recipe in this epoch.
        """
        key = self._key(epoch, section)
        if key not in self._ahead:
            self._ahead = {k: f for k, f in self._ahead.items() if k[0] >= epoch - 1}
            self._ahead[key] = self._pool.submit(self._draw, epoch, section)

    def recompiled(self) -> None:
        """The model was compiled for another loss: the steps that were compiled are of the old."""
        build_variables(self.model)
        self._compiled = None

    def run(
        self,
        epoch: int,
        section: dict[str, Any],
        first: int,
        rates: np.ndarray,
        deadline: float | None = None,
    ) -> Stretch:
        """Takes the steps of an epoch from a batch on, one a rate; weights stay in the model.

        Args:
            epoch, section: as in ``prepare``.
            first: number of the first batch.
            rates: learning rates of the steps, at most as many as batches are left.
            deadline: when to stop, in the seconds of ``time.monotonic``; ``None`` for never.
        """
        self.model.reset_metrics()
        numbers, end = self._numbers_of(epoch, section), first + len(rates)
        all_rates = np.zeros(self.steps_an_epoch, "float32")
        all_rates[first:end] = rates
        self._compile(section["crop_padding"], numbers, all_rates)
        done, finite, late = first, True, False
        while done < end and finite and not late:
            until = min(end, done + max(1, int(_LONGEST / self.seconds_a_step)))
            began = time.monotonic()
            finite, state = self._call(numbers, all_rates, done, until)
            self.restore(state)
            self.seconds_a_step = max(1e-9, (time.monotonic() - began) / (until - done))
            done = until
            interruption.hold()
            late = deadline is not None and time.monotonic() > deadline
            late = late or interruption.asked()
        figures = {k: float(v) for k, v in self.model.get_metrics_result().items()}
        return Stretch(done - first, finite, late, figures["loss"], figures["accuracy"])

    def measure(self, epoch: int, section: dict[str, Any]) -> None:
        """Compiles, and times a few steps whose results are thrown away: ``seconds_a_step``."""
        self._compile(
            section["crop_padding"],
            self._numbers_of(epoch, section),
            np.zeros(self.steps_an_epoch, "float32"),
        )

    def time_steps(self, epoch: int, section: dict[str, Any], seconds: float) -> float:
        """Seconds a step, timed over about so many seconds; their results are thrown away."""
        numbers, rates = self._numbers_of(epoch, section), np.zeros(self.steps_an_epoch, "float32")
        taken, began = 0, time.monotonic()
        most = min(seconds, _LONGEST)
        while taken == 0 or time.monotonic() - began < seconds:
            steps = min(self.steps_an_epoch, max(1, int(most / self.seconds_a_step)))
            self._call(numbers, rates, 0, steps)
            taken += steps
        self.seconds_a_step = (time.monotonic() - began) / taken
        return self.seconds_a_step

    def seconds_an_update(self, steps: int = 10) -> float:
        """Seconds of the optimizer's part of a step with its constraints; compiles it alone."""
        import jax

        weights, _, optimizer, _ = self.state()

        def update(i, state):
            with self.rate.given(np.float32(1e-3)):
                new = self.model.optimizer.stateless_apply(state[1], weights, state[0])
            return tuple(list(part) for part in new)

        loop = jax.jit(lambda state: jax.lax.fori_loop(0, steps, update, state))
        run = loop.lower((weights, optimizer)).compile()
        began = time.monotonic()
        jax.block_until_ready(run((weights, optimizer)))
        return (time.monotonic() - began) / steps

    def _key(self, epoch: int, section: dict[str, Any]) -> tuple:
        return (epoch, *(section[k] for k in ("crop_padding", "flip", *DISTORTIONS)))

    def _draw(self, epoch: int, section: dict[str, Any]) -> Any:
        import jax

        return jax.device_put(epoch_numbers(self.batches(epoch, section)))

    def _numbers_of(self, epoch: int, section: dict[str, Any]) -> Any:
        key = self._key(epoch, section)
        if self._numbers[0] != key:
            future = self._ahead.pop(key, None)
            self._numbers = (key, future.result() if future else self._draw(epoch, section))
        return self._numbers[1]

    def state(self) -> tuple[list, list, list, list]:
        """The present arrays: weights, states, optimizer, metrics; nothing is copied."""
        lists = [[v.value for v in variables] for variables in self._variables()]
        return lists[0], lists[1], lists[2], lists[3]

    def restore(self, state: tuple[list, list, list, list]) -> None:
        """Gives the model the arrays of a step."""
        for variables, values in zip(self._variables(), state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    def _variables(self) -> tuple[list, list, list, list]:
        """In the order of Keras' ``train_step``."""
        model = self.model
        return (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )

    def _call(self, numbers, rates, first: int, end: int) -> tuple[bool, Any]:
        assert self._compiled is not None
        arguments = (self.state(), *self._data, numbers, rates)
        state, finite = self._compiled(*arguments, np.int32(first), np.int32(end))
        return bool(finite), state  # reading the one waits for the other

    def _compile(self, padding: int, numbers, rates) -> None:
        if self._compiled is not None:
            return
        import jax

        self._padding = padding
        began = time.monotonic()
        arguments = (self.state(), *self._data, numbers, rates)
        whole = jax.jit(self._steps).lower(*arguments, np.int32(0), np.int32(0))
        self._compiled = whole.compile()
        self.seconds_to_compile = time.monotonic() - began
        steps = min(_TRIAL, self.steps_an_epoch)
        self._call(numbers, np.zeros_like(rates), 0, 1)  # the first is slower than all others
        began = time.monotonic()
        self._call(numbers, np.zeros_like(rates), 0, steps)
        self.seconds_a_step = max(1e-9, (time.monotonic() - began) / steps)

    def _steps(self, state, images, labels, numbers, rates, first, end):
        """Steps ``first`` to ``end - 1``, and whether all that came of them is finite."""
        import jax
        import jax.numpy as jnp

        distorted = len(self.model.inputs) == 2

        def step(i, state):
            chosen, dy, dx, mirror, draws = (part[i] for part in numbers)
            # cut as bytes, as on the host, so that the same pixels are divided
            x = random_crop_flip(images[chosen], dy, dx, mirror, self._padding)
            if x.dtype == jnp.uint8:
                # looked up: XLA would multiply by 1 / 255, which is another float half the time
                x = jnp.asarray(_FLOAT_OF_BYTE)[x.astype("int32")]
            with self.rate.given(rates[i]):
                _, state = self.model.train_step(
                    state, ([x, draws] if distorted else x, labels[chosen])
                )
            return tuple(list(part) for part in state)

        state = jax.lax.fori_loop(first, end, step, tuple(list(part) for part in state))
        finite = [jnp.isfinite(v).all() for part in state for v in part if v.dtype.kind == "f"]
        return state, jnp.stack(finite).all()


def resident_needs_jax() -> str:
    """What to tell who asks for resident training on another backend."""
    return (
        "`training.resident` needs the JAX backend, which keeps an epoch in one compiled call: set "
        "KERAS_BACKEND=jax, or leave `training.resident` out. "
        f"Received: the backend {backend.name()!r}"
    )
