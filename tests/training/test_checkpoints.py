"""Checkpoints: atomic, complete, and damage or a wrong model is refused with nothing changed."""

import io
import json
import os

import keras
import numpy as np
import pytest
from helpers import normal
from hypothesis import given, settings
from hypothesis import strategies as st

from dynzoo import backend
from dynzoo.training import checkpoints
from dynzoo.training.checkpoints import CheckpointError

STATE = {"epoch": 2, "history": [{"loss": 0.5}], "name": "süß"}


def compiled(units=4, optimizer="adam", seed=0):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(units), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def everything(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [backend.to_numpy(v.value).copy() for v in variables]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def stored(tmp_path):
    """A checkpoint of a model after a step, and all of the model's variables."""
    model = compiled()
    model.train_on_batch(normal((4, 3)), normal((4, 2), 1))
    path = tmp_path / "run" / "checkpoint.npz"
    checkpoints.write(path, model, STATE)
    return path, everything(model)


def test_round_trip_goes_on_where_it_was(stored):
    path, values = stored
    model = compiled(seed=1)
    assert not same(everything(model), values)
    assert checkpoints.read(path, model) == STATE
    assert same(everything(model), values)
    assert int(backend.to_numpy(model.optimizer.iterations.value)) == 1
    assert os.listdir(path.parent) == ["checkpoint.npz"]
    # the next steps, moments included, are those of a model that never stopped
    straight = compiled()
    for _ in range(2):
        straight.train_on_batch(normal((4, 3)), normal((4, 2), 1))
    model.train_on_batch(normal((4, 3)), normal((4, 2), 1))
    for a, b in zip(everything(model), everything(straight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_failure_in_the_middle_of_writing_leaves_the_old_file(stored, monkeypatch, broken):
    path, values = stored
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fail)
        with pytest.raises(OSError, match="disk full"):
            checkpoints.write(path, compiled(seed=1), {"epoch": 3})
    assert path.read_bytes() == before
    model = compiled(seed=2)
    assert checkpoints.read(path, model) == STATE and same(everything(model), values)
    # what the failed write left behind does not hinder the next
    checkpoints.write(path, model, {"epoch": 4})
    assert checkpoints.read(path, model) == {"epoch": 4}
    assert os.listdir(path.parent) == ["checkpoint.npz"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_written(stored, bad):
    path, _ = stored
    before = path.read_bytes()
    model = compiled()
    model.layers[0].bias.assign([0.0, bad, 0.0, 0.0])
    with pytest.raises(CheckpointError, match="bias is not finite.*was not written"):
        checkpoints.write(path, model, STATE)
    assert path.read_bytes() == before


def refuse(path, model, message="is damaged or not a dynzoo checkpoint"):
    before = everything(model)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.read(path, model)
    assert same(everything(model), before)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files_are_refused(stored, keep):
    path, _ = stored
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    refuse(path, compiled(seed=1))


def _npy():
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    return buffer.getvalue()


def _npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"not a checkpoint",
        b"PK\x03\x04 and then nothing",
        _npy(),
        _npz(other=np.arange(3)),
        _npz(state=np.frombuffer(b"{broken", dtype=np.uint8)),
        _npz(state=np.frombuffer(b"[1]", dtype=np.uint8)),
        _npz(state=np.array(3.5)),
        _npz(state=np.array({"epoch": 1}, dtype=object)),
    ],
    ids=["text", "zip", "npy", "no_state", "bad_json", "list", "number", "pickle"],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(content)
    refuse(path, compiled())


def _changed(path, **changes):
    with np.load(path) as file:
        return {**{key: file[key] for key in file.files}, **changes}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.full((3, 4), np.nan, "float32"), "kernel is not finite"),
        (np.full((3, 4), np.inf, "float32"), "kernel is not finite"),
        (np.ones((3, 4), "int32"), "holds int32 for .*kernel, which is float32"),
    ],
)
def test_weights_that_no_training_leaves_are_refused(stored, value, reason):
    path, _ = stored
    np.savez(path, **_changed(path, weight_0000=value))
    refuse(path, compiled(seed=1), f"checkpoint.npz is damaged: .*{reason}|{reason}")


def test_archives_that_declare_more_than_they_have_are_refused(stored):
    path, _ = stored
    np.savez_compressed(path, **_changed(path, more=np.zeros(10**6, "uint8")))
    assert path.stat().st_size < 10**5
    refuse(path, compiled(seed=1), "not a dynzoo checkpoint .it is compressed")


def test_a_state_has_one_meaning(stored):
    path, _ = stored
    for text, reason in ((b'{"epoch": 1, "epoch": 2}', "twice"), (b'{"epoch": NaN}', "NaN")):
        np.savez(path, **_changed(path, state=np.frombuffer(text, np.uint8)))
        refuse(path, compiled(seed=1), f"not a dynzoo checkpoint .*{reason}")


def test_missing_file(tmp_path):
    refuse(tmp_path / "nothing.npz", compiled(), "nothing.npz cannot be read")


@settings(max_examples=60)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_flipped_byte_never_passes_for_other_weights(where, mask):
    model = _Shared.model()
    content = bytearray(_Shared.content)
    content[int(where * len(content))] ^= mask
    _Shared.path.write_bytes(bytes(content))
    before = everything(model)
    try:
        state = checkpoints.read(_Shared.path, model)
    except CheckpointError:
        assert same(everything(model), before)
    else:  # a byte that carries nothing, such as a time stamp of the archive
        assert state == STATE and same(everything(model), _Shared.values)
        for variable, value in zip([*model.variables, *model.optimizer.variables], before):  # noqa: B905
            variable.assign(value)


class _Shared:
    """One model and file for the many examples above."""

    _model = None

    @classmethod
    def model(cls):
        if cls._model is None:
            raise RuntimeError("the fixture below makes it")
        return cls._model


@pytest.fixture(autouse=True, scope="module")
def shared(tmp_path_factory):
    model = compiled(units=2)
    model.train_on_batch(normal((4, 3)), normal((4, 2), 1))
    _Shared.path = tmp_path_factory.mktemp("flip") / "checkpoint.npz"
    checkpoints.write(_Shared.path, model, STATE)
    _Shared.content, _Shared.values = _Shared.path.read_bytes(), everything(model)
    _Shared._model = compiled(units=2, seed=1)
    yield
    _Shared._model = None


@pytest.mark.parametrize(
    "arguments", [{"units": 5}, {"optimizer": "sgd"}, {"units": 5, "optimizer": "sgd"}]
)
def test_another_model_or_optimizer_is_refused(stored, arguments):
    refuse(stored[0], compiled(**arguments), "variables of another model or optimizer")


def test_check_is_asked_first(stored):
    path, _ = stored
    model = compiled(seed=1)
    before = everything(model)

    def check(state):
        assert state == STATE
        raise CheckpointError("not mine")

    with pytest.raises(CheckpointError, match="not mine"):
        checkpoints.read(path, model, check)
    assert same(everything(model), before)


def test_the_file_is_plain_numpy(stored):
    # readable on another backend or machine: arrays and JSON, no pickles, nothing of the backend
    path, values = stored
    with np.load(path, allow_pickle=False) as file:
        keys = sorted(file.files)
        assert json.loads(file["state"].tobytes()) == STATE
        weights = [file[k] for k in keys if k.startswith("weight_")]
    assert same(weights, values[: len(weights)])


def test_a_newer_format_is_told_and_none_is_the_first(stored):
    path, values = stored
    arrays = _changed(path)
    assert int(arrays["format"]) == checkpoints.FORMAT
    np.savez(path, **_changed(path, format=np.array(checkpoints.FORMAT + 1)))
    refuse(path, compiled(seed=1), "has format 2, and this dynzoo reads formats up to 1: go on")
    del arrays["format"]
    np.savez(path, **arrays)
    other = compiled(seed=1)
    assert checkpoints.read(path, other) == STATE
    assert same(everything(other), values)
