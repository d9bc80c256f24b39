"""A bound holds for the forward pass it was stated for: what is redefined below it ends it."""

import functools

import keras
import numpy as np
import pytest
from certificate_models import assert_sound, images
from keras import layers as kl

import dynzoo.layers as dl
from dynzoo.augmentation.batches import RandomCropFlip
from dynzoo.certificates import UncertifiableLayerError, certify, overrides
from dynzoo.certificates.rules.table import linear_head

SHAPE = (4, 4, 2)


class Louder(dl.MaxMin):
    """Both the pass and its twin are redefined, the bound is not."""

    def call(self, x):
        return 7.0 * super().call(x)

    def call_float64(self, x):
        return 7.0 * super().call_float64(x)


class LouderTwin(dl.MaxMin):
    def call_float64(self, x):
        return 7.0 * super().call_float64(x)


class LouderHelper(dl.MaxMinShift):
    """Redefines a method that `call` of a parent uses."""

    def _sorted(self, x):
        return [7.0 * part for part in super()._sorted(x)]


class LouderPass(dl.MaxMin):
    def __call__(self, *args, **kwargs):
        y = super().__call__(*args, **kwargs)
        return y if isinstance(y, keras.KerasTensor) else 7.0 * y


class OnlyBound(dl.MaxMin):
    """States a new bound, but keeps the float64 twin of another `call`."""

    def call(self, x):
        return 7.0 * super().call(x)

    def lipschitz_bound(self, input_shape):
        return 7.0


class Mixin:
    def call(self, x):
        return 7.0 * super().call(x)

    def call_float64(self, x):
        return 7.0 * super().call_float64(x)


class Mixed(Mixin, dl.MaxMin):
    """The forward pass comes from a class beside that of the bound."""


class Kernel(dl.UnitRowDense):
    def effective_kernel(self):
        return 7.0 * super().effective_kernel()


def through_a_helper(layer, x):
    return layer.factor * x


class Scaled(kl.Layer):
    """Uses a class attribute, a property and a function that is given the layer."""

    factor = 1.0

    @property
    def share(self):
        return 1.0

    def call(self, x):
        return through_a_helper(self, x) * getattr(self, "share")  # noqa: B009

    def call_float64(self, x):
        return through_a_helper(self, x) * self.share

    def lipschitz_bound(self, input_shape):
        return 1.0


class ScaledMore(Scaled):
    factor = 7.0


class ScaledShare(Scaled):
    @property
    def share(self):
        return 7.0


class ScaledLazily(Scaled):
    @functools.cached_property
    def share(self):
        return 7.0


class Attributes(Scaled):
    def __getattribute__(self, name):
        return 7.0 if name == "factor" else super().__getattribute__(name)


class OwnDense(kl.Dense):
    """A subclass of a standard layer that states everything."""

    def call_float64(self, x):
        return x @ np.asarray(keras.ops.convert_to_numpy(self.kernel), np.float64)

    def lipschitz_bound(self, input_shape):
        return float(np.linalg.norm(keras.ops.convert_to_numpy(self.kernel), 2)) * (1 + 1e-6)


class OwnDenseLouder(OwnDense):
    @property
    def kernel(self):
        return 7.0 * self._kernel


FALSE = {
    "call and twin": (Louder, "call"),
    "twin": (LouderTwin, "call_float64"),
    "helper": (LouderHelper, "_sorted"),
    "__call__": (LouderPass, "__call__"),
    "bound without twin": (OnlyBound, "call"),
    "mixin": (Mixed, "call"),
    "matrix": (lambda **k: Kernel(3, **k), "effective_kernel"),
    "class attribute": (ScaledMore, "factor"),
    "property": (ScaledShare, "share"),
    "cached property": (ScaledLazily, "share"),
    "attribute access": (Attributes, "__getattribute__"),
    "standard parent": (lambda **k: OwnDenseLouder(3, use_bias=False, **k), "kernel"),
}


def model_of(layer, shape=SHAPE):
    inputs = keras.Input(shape)
    return keras.Model(inputs, kl.Dense(3)(kl.Flatten()(layer(inputs))))


@pytest.mark.parametrize("name", FALSE)
def test_a_bound_ends_where_the_pass_it_was_stated_for_is_redefined(name):
    make, redefined = FALSE[name]
    with pytest.raises(UncertifiableLayerError, match=f"redefines `{redefined}`") as error:
        certify(model_of(make(name="odd")))
    # The advice is to define both methods, in the class that defines the pass.
    assert "'odd'" in str(error.value) and "must define both" in str(error.value)
    assert "at least one" not in str(error.value)


class Stated(Louder):
    """The same with everything stated."""

    def call(self, x):
        return 7.0 * dl.MaxMin.call(self, x)

    def call_float64(self, x):
        return 7.0 * dl.MaxMin.call_float64(self, x)

    def lipschitz_bound(self, input_shape):
        return 7.0


def test_a_subclass_that_states_its_bound_anew_is_certified_with_it():
    bound = certify(model_of(Stated())).body_lipschitz
    assert bound == pytest.approx(7.0)
    assert_sound(model_of(Stated()))
    assert_sound(model_of(OwnDense(3, use_bias=False)))


class Configured(dl.OrthonormalDense):
    """Changes nothing of what is computed."""

    def get_config(self):
        return {**super().get_config(), "note": "mine"}

    def describe(self):
        return "an orthonormal matrix"


def test_subclasses_that_compute_the_same_are_accepted():
    assert_sound(model_of(Configured(4)))
    assert overrides.redefined(Configured, "lipschitz_bound") is None


def test_every_layer_of_the_package_states_a_bound_for_its_own_pass():
    stated = [cls for cls in vars(dl).values() if isinstance(cls, type)]
    stated = [cls for cls in [*stated, RandomCropFlip] if hasattr(cls, "lipschitz_bound")]
    assert len(stated) > 15
    assert {cls for cls in stated if overrides.redefined(cls, "lipschitz_bound")} == set()


PUT_ON = [(make, m) for make in (dl.MaxMin, kl.ReLU, kl.Flatten) for m in ("call", "__call__")]
PUT_ON += [(dl.MaxMin, "call_float64"), (dl.MaxMin, "lipschitz_bound")]


@pytest.mark.parametrize(("make", "method"), PUT_ON)
def test_a_method_put_on_one_object_is_noticed(make, method):
    layer = make()
    model = model_of(layer)
    assert certify(model).lipschitz > 0
    setattr(layer, method, lambda x: 7.0 * x)
    with pytest.raises(UncertifiableLayerError, match=f"`{method}` was put on this one object"):
        certify(model)


def test_a_method_put_on_a_join_an_activation_or_a_helper_is_noticed():
    inputs = keras.Input(SHAPE)
    join, activation, sort = kl.Add(), kl.LeakyReLU(0.1), dl.MaxMin()
    dense = kl.Dense(2, activation=activation)
    model = keras.Model(inputs, kl.Dense(3)(kl.Flatten()(join([sort(dense(inputs)), inputs]))))
    certify(model)
    for layer, method in ((join, "call"), (activation, "call"), (sort, "_sorted")):
        vars(layer)[method] = lambda x: x
        with pytest.raises(UncertifiableLayerError, match=f"`{method}`"):
            certify(model)
        del vars(layer)[method]
    certify(model)


def test_a_hidden_graph_of_a_model_is_noticed():
    class Detour(keras.Model):
        def _run_through_graph(self, *args, **kwargs):
            return super()._run_through_graph(*args, **kwargs)

    inputs = keras.Input((3,))
    with pytest.raises(ValueError, match="`_run_through_graph`, which hides its graph"):
        certify(Detour(inputs, kl.Dense(3)(inputs)))
    model = keras.Model(inputs, kl.Dense(3)(inputs))
    model.call = lambda x, **kwargs: 7.0 * x
    with pytest.raises(ValueError, match="`call`, which hides its graph"):
        certify(model)


def test_a_hook_of_pytorch_is_noticed():
    if keras.backend.backend() != "torch":
        pytest.skip("only PyTorch has hooks on layers")
    layer = kl.ReLU()
    model = model_of(layer)
    result = certify(model)
    layer.register_forward_hook(lambda module, given, output: 7.0 * output)
    with pytest.raises(UncertifiableLayerError, match="_forward_hooks"):
        certify(model)
    with pytest.raises(ValueError, match="_forward_hooks"):
        result.radii(images(2, SHAPE))


class NonlinearHead(dl.UnitRowDense):
    """States everything but the matrix, which it inherits from a linear layer."""

    def call(self, x):
        return 7.0 * keras.ops.relu(super().call(x))

    def call_float64(self, x):
        return 7.0 * np.maximum(super().call_float64(x), 0.0)

    def lipschitz_bound(self, input_shape):
        return 7.0 * super().lipschitz_bound(input_shape)


def test_an_inherited_matrix_is_not_that_of_the_head():
    model = keras.Sequential([keras.Input((5,)), NonlinearHead(3)])
    assert linear_head(model.layers[0]) is None
    result = certify(model)
    assert result.pair_distances[0, 1] == pytest.approx(np.sqrt(2.0))
    assert result.body_lipschitz == pytest.approx(model.layers[0].lipschitz_bound((None, 5)))
