"""`check_layer` on layers of a user: a good one passes, and each kind of mistake is named."""

import doctest

import keras
import numpy as np
import pytest
from keras import ops

from dynzoo import testing
from dynzoo.guarantee import Guarantee
from dynzoo.testing import check_layer


class Leaky(keras.layers.Layer):
    """x to factor * x above 0 and half of that below."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return self.factor * ops.leaky_relu(x, negative_slope=0.5)

    def call_float64(self, x):
        x = np.asarray(x, dtype=np.float64)
        return self.factor * np.where(x > 0, x, 0.5 * x)

    def lipschitz_bound(self, input_shape):
        return abs(self.factor)

    def guarantees(self):
        return [Guarantee("Lipschitz", "the slope of each entry", abs(self.factor))]

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class WrongShape(Leaky):
    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 1)


class LostKey(Leaky):
    def get_config(self):
        return {k: v for k, v in super().get_config().items() if k != "factor"}


class KeptDefault(Leaky):
    def __init__(self, factor=1.0, **kwargs):
        super().__init__(2.0 * factor, **kwargs)


class SmallBound(Leaky):
    def lipschitz_bound(self, input_shape):
        return 0.9


class SmallGuarantee(Leaky):
    def guarantees(self):
        return [Guarantee("1-Lipschitz", "so it is said", 0.9)]


class Mixing(Leaky):
    def call(self, x):
        return x - ops.mean(x, axis=0, keepdims=True)


class OtherTwin(Leaky):
    def call_float64(self, x):
        return 1.01 * super().call_float64(x)


class SinglePrecision(Leaky):
    def call_float64(self, x):
        return super().call_float64(x).astype("float32")


class NoTwin(keras.layers.Layer):
    def call(self, x):
        return x + 1.0

    def compute_output_shape(self, input_shape):
        return input_shape


class Raising(NoTwin):
    def compute_output_shape(self, input_shape):
        raise RuntimeError("not\nready")


class OnlyCall(Leaky):
    def call(self, x):
        return -super().call(-x)


class Unconstrained(NoTwin):
    """Weights under a constraint, which a saved model keeps, and a bound for any weights."""

    def build(self, input_shape):
        self.scale = self.add_weight(
            shape=(), initializer="ones", constraint=keras.constraints.NonNeg(), name="scale"
        )

    def call(self, x):
        return self.scale * x

    def call_float64(self, x):
        return float(ops.convert_to_numpy(self.scale.value)) * np.asarray(x, dtype=np.float64)

    def lipschitz_bound(self, input_shape):
        return abs(float(ops.convert_to_numpy(self.scale.value)))


def test_good_layers_pass():
    made = check_layer(Leaky(0.7), (2, 3))
    assert made[0] == "config" and made[-1] == "certificate"
    assert {"batch sizes", "float64 twin", "lipschitz bound", "guarantee: Lipschitz"} <= set(made)
    built = Unconstrained()
    built(np.zeros((1, 4), "float32"))
    built.scale.assign(3.0)
    assert "lipschitz bound" in check_layer(built, (4,))
    assert float(ops.convert_to_numpy(built.scale.value)) == 3.0
    assert not {"float64 twin", "guarantees", "lipschitz bound"} & set(check_layer(NoTwin(), (4,)))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (WrongShape, r"`compute_output_shape` gives \(3, 1\) for an output of shape \(3, 4\)"),
        (LostKey, "`get_config` lacks `factor`"),
        (KeptDefault, "the layer made from its config has another one"),
        (SmallBound, "`lipschitz_bound` is 0.9, and two inputs show a slope of 1"),
        (SmallGuarantee, r"the guarantee '1-Lipschitz' \[0.9\] does not hold: a slope of 1"),
        (Mixing, "changes by .* with the other examples of its batch"),
        (OtherTwin, "`call_float64` differs from `call` by 0.0099"),
        (SinglePrecision, "`call_float64` gives float32, not float64"),
        (Raising, "the check of shapes ended in RuntimeError: .*not ready"),
        (OnlyCall, "`call_float64` differs from `call`"),
    ],
)
def test_mistakes_are_named(cls, message):
    with pytest.raises(AssertionError, match=f"^`{cls.__name__}`: .*{message}") as error:
        check_layer(cls(), (4,))
    assert "\n" not in str(error.value)


def test_inherited_bound_of_another_call_is_refused():
    class Same(Leaky):
        def call(self, x):
            return super().call(x)

    with pytest.raises(AssertionError, match="`certify` refuses it though it states a bound"):
        check_layer(Same(), (4,))


def test_the_docstring_example_runs():
    found = doctest.testmod(testing)
    assert found.attempted == 3 and found.failed == 0


def test_what_is_no_layer_is_refused():
    with pytest.raises(ValueError, match="`layer` must be a Keras layer. Received: layer=3"):
        check_layer(3, (4,))
