"""A pass that is recorded on PyTorch answers as the model does, whatever happens to the model."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

import dynzoo
from dynzoo import backend
from dynzoo import layers as dl
from dynzoo.attacks.passes import loss_and_gradient
from dynzoo.inference import passes
from dynzoo.inference.passes import predict_logits, pure
from dynzoo.inference.recorded import _PATIENCE, Recorded, can_record
from dynzoo.models import isometric_classifier, resnet_classifier

pytestmark = pytest.mark.skipif(backend.name() != "torch", reason="recorded on PyTorch only")

LENGTHS = (1, 2, 3, 7, 16, 40)


def isometric(**kwargs):
    small = {"input_shape": (8, 8, 3), "widths": (8, 16), "steps": (2, 2), "neck_units": 16}
    return isometric_classifier(**small, dense_steps=1, **kwargs)


def residual():
    model = resnet_classifier(input_shape=(8, 8, 3), widths=(8, 16), steps=(1, 1))
    rng = np.random.default_rng(0)
    noise = [0.1 * rng.random(w.shape).astype("float32") for w in model.get_weights()]
    model.set_weights([w + n for w, n in zip(model.get_weights(), noise, strict=True)])
    return model


def images(count=40, seed=0):
    return np.random.default_rng(seed).random((count, 8, 8, 3), dtype="float32")


def plain(model, x):
    import torch

    with torch.no_grad():
        return backend.to_numpy(model(ops.convert_to_tensor(x), training=False))


def warm(model, x, calls=_PATIENCE + 3):
    """Asks so often that the pass is recorded and trusted."""
    for _ in range(calls):
        predict_logits(model, x)


def recorded_of(model):
    return [f for f in passes._COMPILED[model].values() if isinstance(f, Recorded)]


def programs_of(model):
    return [p for f in recorded_of(model) for p in f._programs.values()]


@pytest.mark.parametrize("make", [isometric, residual, lambda: isometric(operator="conv")])
def test_a_recorded_pass_gives_the_same_bits_at_every_length(make):
    model = make()
    warm(model, images())
    (program,) = programs_of(model)
    for length in LENGTHS:
        x = images(length, seed=length)
        for _ in range(2):  # the first is compared, the second is the program's
            np.testing.assert_array_equal(predict_logits(model, x), plain(model, x))
    assert len(program.agrees) >= 4 and all(program.agrees.values())


def test_it_is_the_program_that_answers(monkeypatch):
    model = isometric()
    warm(model, images())
    monkeypatch.setattr(type(model), "__call__", lambda *args, **kwargs: 1 / 0)
    assert predict_logits(model, images()).shape == (40, 10)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "pairwise_dlr"])
def test_recorded_gradients_give_the_same_bits(loss):
    model = isometric()
    run = loss_and_gradient(model, loss)
    rng = np.random.default_rng(1)
    arguments = {}
    for length in LENGTHS:
        y, rival = (
            ops.convert_to_tensor(rng.integers(0, 10, length).astype("int32")) for _ in "yr"
        )
        arguments[length] = ops.convert_to_tensor(images(length, seed=length)), y, rival
    expected = {n: [backend.to_numpy(t) for t in run(*a)] for n, a in arguments.items()}
    assert not programs_of(model)
    for _ in range(_PATIENCE):
        run(*arguments[40])
    for length in LENGTHS * 2:
        found = [backend.to_numpy(t) for t in run(*arguments[length])]
        for a, b in zip(found, expected[length], strict=True):
            np.testing.assert_array_equal(a, b)
    (program,) = programs_of(model)
    assert program.agrees and all(program.agrees.values())


def _set_weights(model):
    model.set_weights([w * 0.9 for w in model.get_weights()])


def _in_place(model):
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.mul_(0.9)


def _replaced(model):
    import torch

    for variable in model.variables:
        variable._value = torch.nn.Parameter(variable._value.detach() * 0.9)


def _trained(model):
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(images(), np.arange(40) % 10)


@pytest.mark.parametrize("change", [_set_weights, _in_place, _replaced, _trained])
def test_a_recorded_pass_reads_the_present_weights(change):
    model = isometric()
    x = images()
    warm(model, x)
    before = predict_logits(model, x)
    change(model)
    now = predict_logits(model, x)
    np.testing.assert_array_equal(now, plain(model, x))
    assert np.abs(now - before).max() > 1e-4
    assert all(programs_of(model))


def test_loaded_and_projected_weights_are_seen(tmp_path):
    model, other = isometric(), isometric(seed=1)
    x = images()
    warm(model, x)
    other.save_weights(tmp_path / "other.weights.h5")
    model.load_weights(tmp_path / "other.weights.h5")
    np.testing.assert_array_equal(predict_logits(model, x), plain(other, x))
    model.set_weights([w * 1.3 if w.ndim == 2 else w for w in model.get_weights()])
    far = predict_logits(model, x)
    dynzoo.project(model)
    near = predict_logits(model, x)
    np.testing.assert_array_equal(near, plain(model, x))
    assert np.abs(near - far).max() > 1e-3


def test_weights_of_another_type_are_another_recording():
    import torch

    model = isometric()
    x = images()
    warm(model, x)
    for variable in model.variables:
        variable._value.data = variable._value.data.to(torch.float64)
    for _ in range(3):
        found = predict_logits(model, x)
    assert np.abs(found - plain(model, x)).max() < 1e-6
    assert len(programs_of(model)) == 2


def test_what_keras_keeps_of_predicting_and_training_makes_no_new_recording():
    model = isometric()
    x = images()
    warm(model, x)
    first = programs_of(model)
    model.predict(x, verbose=0)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.evaluate(x, np.zeros(40), verbose=0)
    predict_logits(model, x)
    assert all(first) and programs_of(model) == first


def test_settings_and_hooks_of_now_count():
    model = isometric()
    x = images()
    warm(model, x)
    shift = next(layer for layer in model.layers if isinstance(layer, dl.MeanShift))
    shift.mean = [0.1, 0.2, 0.3]
    np.testing.assert_array_equal(predict_logits(model, x), plain(model, x))
    warm(model, x)
    assert all(programs_of(model))
    shift.mean[0] = 0.9
    np.testing.assert_array_equal(predict_logits(model, x), plain(model, x))
    hook = model.layers[-1].register_forward_hook(lambda module, args, output: output + 1.0)
    np.testing.assert_array_equal(predict_logits(model, x), plain(model, x))
    assert not recorded_of(model)
    hook.remove()
    warm(model, x)
    np.testing.assert_array_equal(predict_logits(model, x), plain(model, x))
    model.layers[-1].dtype_policy = "mixed_bfloat16"
    np.testing.assert_array_equal(predict_logits(model, x), plain(model, x).astype("float32"))


def test_tensors_that_layers_hold_are_read_where_they_are():
    import torch

    model = residual()
    x = images()
    warm(model, x)
    (layer,) = [n for n in model.layers if isinstance(n, keras.layers.Normalization)]
    layer.mean.add_(0.25)
    np.testing.assert_array_equal(predict_logits(model, x), plain(model, x))
    assert all(programs_of(model))
    layer.mean = torch.zeros_like(layer.mean)
    np.testing.assert_array_equal(predict_logits(model, x), plain(model, x))
    assert not programs_of(model)


def _lambda(x):
    return keras.layers.Lambda(lambda z: z * 2.0)(x)


def _drawing(x):
    return keras.layers.Dropout(0.5)(x, training=True)


def _mixing(x):
    return x - ops.mean(x, axis=0, keepdims=True)


@keras.saving.register_keras_serializable(package="tests")
class Counting(keras.layers.Layer):
    """Answers differently from its tenth call on."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return x * (2.0 if self.calls < 10 else 3.0)


@pytest.mark.parametrize("part", [_lambda, _drawing, _mixing, lambda x: Counting()(x)])
def test_what_a_graph_does_not_tell_is_never_recorded(part):
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(10)(part(keras.layers.Flatten()(inputs)))
    model = keras.Model(inputs, outputs)
    assert not can_record(model)
    warm(model, images())
    assert not recorded_of(model)


class Held:
    tensor = None


def _branch(weights, x):
    return x * 2.0 if bool(ops.sum(x) > 1.0) else x


def _through_numpy(weights, x):
    scale = float(backend.to_numpy(weights[0]).sum()) if weights else 2.0
    return x * scale


def _holding(weights, x):
    Held.tensor = ops.convert_to_tensor(np.float32(2.0)) if Held.tensor is None else Held.tensor
    return x * Held.tensor


def _writing(weights, x):
    return x.mul_(1.0)


def _random(weights, x):
    return x + keras.random.normal((len(x), 3))


def _of_the_batch(weights, x):
    return x / float(len(x))


@pytest.mark.parametrize(
    "function", [_branch, _through_numpy, _holding, _writing, _random, _of_the_batch]
)
def test_what_could_answer_differently_is_not_recorded(function):
    run = Recorded(function)
    weights = [ops.convert_to_tensor(np.full(3, 0.5, "float32"))]
    for _ in range(_PATIENCE + 2):
        run(weights, ops.ones((6, 3)))
    assert list(run._programs.values()) == [None]


def test_a_write_to_what_was_made_on_the_way_is_recorded():
    def function(weights, x):
        y = x + weights[0] if weights else x + 1.0
        y.mul_(3.0)
        return y, ops.max(y, axis=1)

    run = Recorded(function)
    weights = [ops.ones((3,))]
    x = ops.reshape(ops.arange(12, dtype="float32"), (4, 3))
    for _ in range(_PATIENCE + 3):
        y, largest = run(weights, x)
    np.testing.assert_array_equal(backend.to_numpy(y), 3 * (np.arange(12).reshape(4, 3) + 1.0))
    np.testing.assert_array_equal(backend.to_numpy(largest), [9, 18, 27, 36])
    (program,) = run._programs.values()
    assert program.agrees == {-3: True}


def test_a_program_that_disagrees_is_not_used():
    answers = iter([1.0, 2.0])

    run = Recorded(lambda weights, x: x * 2.0)
    for _ in range(_PATIENCE + 2):
        run([], ops.ones((6, 3)))
    (program,) = run._programs.values()
    program.agrees.clear()
    run.plain = lambda weights, x: x * 2.0 + next(answers)
    assert float(run([], ops.ones((6, 3)))[0, 0]) == 3.0
    assert float(run([], ops.ones((6, 3)))[0, 0]) == 4.0
    assert program.agrees == {-3: False}


def test_pure_functions_are_recorded_with_tensors_that_are_no_batch():
    def make():
        return lambda x, size: ops.where(x > size[0], x * size[1], ops.zeros_like(x))

    run = pure(make)
    rng = np.random.default_rng(0)
    for count in [6] * (_PATIENCE + 2) + [2, 2, 2, 9, 9]:
        x, size = rng.random((count, 4)).astype("float32"), rng.random(2).astype("float32")
        found = backend.to_numpy(run(ops.convert_to_tensor(x), ops.convert_to_tensor(size)))
        np.testing.assert_array_equal(found, np.where(x > size[0], x * size[1], 0.0))


def test_nothing_keeps_a_deleted_model():
    model = isometric()
    warm(model, images())
    certificate = dynzoo.certify(model)
    for _ in range(_PATIENCE + 2):
        certificate.radii(images())
    gone = weakref.ref(model), weakref.ref(model.layers[3]), weakref.ref(model.variables[0].value)
    assert all(programs_of(model))
    del model, certificate
    gc.collect()
    assert [g() for g in gone] == [None, None, None]


def test_radii_through_a_recorded_pass_are_the_same():
    model = isometric()
    x = images()
    certificate = dynzoo.certify(model)
    logits, labels, radii = certificate.logits_and_radii(x)
    for _ in range(_PATIENCE + 2):
        again = certificate.logits_and_radii(x)
    for a, b in zip(again, (logits, labels, radii), strict=True):
        np.testing.assert_array_equal(a, b)
    model.set_weights([w * 0.9 for w in model.get_weights()])
    with pytest.raises(ValueError, match="weights of the model changed"):
        certificate.radii(x)


def test_listeners_hear_of_recorded_passes():
    model = isometric()
    warm(model, images())
    heard = []
    with passes.listening(lambda count, backward: heard.append((count, backward))):
        predict_logits(model, images())
    assert heard == [(40, False)]
