"""A loss whose numbers change from epoch to epoch while the compiled step stays the same."""

from __future__ import annotations

import copy
from typing import Any

import keras
from keras import ops

from dynzoo import backend
from dynzoo.training import builders as optimization
from dynzoo.training.epoch_values import at_epoch

__all__ = ["LossOfEpoch"]

# What is compared with numbers only while the loss is computed; `annealing` chooses its formula.
_VARIABLES = ("margin", "offset", "temperature")


class _Numbers(keras.metrics.Metric):
    """The present numbers, as a metric that measures nothing.

    Keras hands the variables of metrics to the compiled step as arguments, and they are neither
    weights nor variables of the optimizer: no checkpoint and no saved model holds them.
    """

    def __init__(self, names: list[str], **kwargs: Any):
        super().__init__(**kwargs)
        self.values = {
            # the mean of what several devices have: TensorFlow would divide a sum among them
            name: self.add_variable((), "zeros", aggregation="mean", name=name)
            for name in names
        }

    def update_state(self, y_true, y_pred, sample_weight=None):
        pass

    def reset_state(self):
        pass

    def result(self):
        return {}


@keras.saving.register_keras_serializable(package="dynzoo")
class LossOfEpoch(keras.losses.Loss):
    r"""A recipe's loss with those numbers that are due, $\ell_{v(e)}(y, z)$ in epoch e.

    Saved, it is the plain loss of the present epoch.

    Args:
        section: the loss of a recipe, with its mappings from first epoch to value.

    Example:

    >>> loss = LossOfEpoch({"name": "offset_crossentropy", "offset": {0: 0.4, 6: 0.8}})
    >>> loss.compile(model, optimizer="adam")
    >>> loss.start(6)  # the offset is 0.8; nothing is compiled anew
    """

    def __init__(self, section: dict[str, Any]):
        self.section = section
        self.plain = optimization.make_loss(at_epoch(section, 0))
        super().__init__(name=self.plain.name, reduction=self.plain.reduction)
        names = [k for k in _VARIABLES if isinstance(section.get(k), dict)]
        self.numbers = _Numbers(names, name="loss_numbers") if names else None

    def call(self, y_true, y_pred):
        if self.numbers is None:
            return self.plain.call(y_true, y_pred)
        present = copy.copy(self.plain)
        for name, variable in self.numbers.values.items():
            setattr(present, name, ops.convert_to_tensor(variable))
        return present.call(y_true, y_pred)

    def compile(self, model: keras.Model, optimizer: Any) -> None:
        """Compiles a model for this loss, with its accuracy beside it."""
        model.compile(
            optimizer=optimizer,
            loss=self,
            metrics=["accuracy"],
            jit_compile=backend.fit_with_jit(),
        )
        if backend.fit_builds_late():
            optimization.build_variables(model)
        if self.numbers is not None:
            model.loss_numbers = self.numbers  # noted by Keras, which looks for metrics there

    def start(self, epoch: int) -> bool:
        """Sets the numbers of an epoch, from 0; whether the model must be compiled anew for it."""
        due = at_epoch(self.section, epoch)
        before, self.plain = self.plain, optimization.make_loss(due)
        for name, variable in (self.numbers.values if self.numbers else {}).items():
            variable.assign(getattr(self.plain, name))
        return self._formula(before) != self._formula(self.plain)

    def _formula(self, loss: keras.losses.Loss) -> dict[str, Any]:
        changing = self.numbers.values if self.numbers else {}
        return {k: v for k, v in loss.get_config().items() if k not in changing}

    def get_config(self):
        return {"plain": keras.saving.serialize_keras_object(self.plain)}

    @classmethod
    def from_config(cls, config):
        return keras.saving.deserialize_keras_object(config["plain"])
