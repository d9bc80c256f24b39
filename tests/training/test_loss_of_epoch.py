"""A loss that changes from epoch to epoch, in one compiled step."""

import keras
import numpy as np
import pytest
from training_fixtures import RECIPE

from dynzoo import backend, losses
from dynzoo.training import checkpoints
from dynzoo.training import loop as training
from dynzoo.training.loss_of_epoch import LossOfEpoch

NAME = {
    "offset_crossentropy": losses.OffsetCrossentropy,
    "efficient_margin": losses.EfficientMargin,
    "multiclass_hinge": losses.MulticlassHinge,
}
X = np.random.default_rng(0).standard_normal((24, 5)).astype("float32")
Y = np.arange(24) % 3
SECTIONS = [
    {"name": "offset_crossentropy", "offset": {0: 0.1, 1: 2.0}, "temperature": {0: 0.5, 2: 0.1}},
    {"name": "offset_crossentropy", "offset": {0: 0.0, 1: 0.7}, "annealing": 2.0},
    {"name": "efficient_margin", "offset": {0: 0.1, 2: 3.0}, "temperature": 0.3},
    {"name": "multiclass_hinge", "margin": {0: 0.1, 1: 1.0}},
]


def _model():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, name="logits")])
    model.set_weights([np.full((5, 3), 0.1, "float32") * np.arange(3), np.zeros(3, "float32")])
    return model


def _fit(model, epoch):
    arguments = {"initial_epoch": epoch, "epochs": epoch + 1, "shuffle": False, "verbose": 0}
    return model.fit(X, Y, batch_size=8, **arguments).history


def _counted(monkeypatch, kind):
    """A list that gets an entry for each time that a loss's formula is run, or traced."""
    calls, call = [], kind.call

    def counting(self, y_true, y_pred):
        calls.append(0)
        return call(self, y_true, y_pred)

    monkeypatch.setattr(kind, "call", counting)
    return calls


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: "-".join(map(str, s)))
def test_is_the_plain_loss_of_each_epoch_and_compiles_once(section, monkeypatch):
    model, reference = _model(), _model()
    loss, sgd = LossOfEpoch(section), keras.optimizers.SGD(0.1)
    loss.compile(model, keras.optimizers.SGD(0.1))
    reference.compile(sgd)
    calls = _counted(monkeypatch, NAME[section["name"]])
    counts = []
    for epoch in range(4):
        assert not loss.start(epoch)
        before = len(calls)
        found = _fit(model, epoch)
        counts.append(len(calls) - before)
        due = {
            k: v[max(e for e in v if e <= epoch)] if isinstance(v, dict) else v
            for k, v in section.items()
            if k != "name"
        }
        reference.compile(sgd, NAME[section["name"]](**due), metrics=["accuracy"])
        expected = _fit(reference, epoch)
        assert set(found) == set(expected) == {"loss", "accuracy"}
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
        for a, b in zip(model.get_weights(), reference.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert counts[0] > 0
    assert counts[1:] == ([0, 0, 0] if backend.compiles() else [3, 3, 3])


def test_another_formula_is_compiled_anew():
    loss = LossOfEpoch({"name": "offset_crossentropy", "annealing": {0: 0.0, 2: 2.0}})
    model = _model()
    loss.compile(model, keras.optimizers.SGD(1e-6))
    seen = []
    for epoch in range(4):
        anew = loss.start(epoch)
        assert anew == (epoch == 2)
        if anew:
            loss.compile(model, model.optimizer)
        seen.append(_fit(model, epoch)["loss"][0])
    assert seen[1] == pytest.approx(seen[0], rel=1e-3) and seen[2] < 0.95 * seen[1]


def test_its_numbers_are_in_no_checkpoint_and_old_ones_are_read(tmp_path):
    plain, changing = _model(), _model()
    plain.compile(keras.optimizers.Adam(), losses.OffsetCrossentropy(0.1), metrics=["accuracy"])
    plain.optimizer.build(plain.trainable_variables)
    _fit(plain, 0)
    checkpoints.write(tmp_path / "old.npz", plain, {"epoch": 1})
    loss = LossOfEpoch(SECTIONS[0])
    loss.compile(changing, keras.optimizers.Adam())
    changing.optimizer.build(changing.trainable_variables)
    assert checkpoints.read(tmp_path / "old.npz", changing) == {"epoch": 1}
    loss.start(1)
    _fit(changing, 1)
    checkpoints.write(tmp_path / "new.npz", changing, {"epoch": 2})
    with np.load(tmp_path / "old.npz") as old, np.load(tmp_path / "new.npz") as new:
        assert set(old.files) == set(new.files)
    assert float(backend.value_of(changing.loss_numbers.values["offset"])) == 2.0


def test_saved_it_is_the_plain_loss_of_its_epoch(tmp_path):
    loss = LossOfEpoch(SECTIONS[0])
    loss.start(2)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert isinstance(again, losses.OffsetCrossentropy)
    assert (again.offset, again.temperature) == (2.0, 0.1)
    model = _model()
    loss.compile(model, "sgd")
    _fit(model, 0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.loss.get_config() == loss.plain.get_config()
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])


def test_a_run_traces_its_step_once_whatever_the_offsets(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (120, 4, 4, 3), dtype=np.uint8)
    data = (x, np.arange(120) % 3), (x[:6], np.arange(6) % 3)
    calls = _counted(monkeypatch, losses.OffsetCrossentropy)

    def count(folder, **loss):
        before = len(calls)
        settings = {**RECIPE["training"], "loss": {"name": "offset_crossentropy", **loss}}
        recipe = {**RECIPE, "training": settings}
        training.train(recipe, data, tmp_path / folder, verbose=0, log=lambda text: None)
        return len(calls) - before

    once = count("one", offset=0.2)
    # JAX asks for the shapes before it traces, PyTorch traces nothing
    assert once == {"tensorflow": 1, "jax": 2}.get(backend.name(), once) and once > 0
    assert count("many", offset={0: 0.1, 1: 0.2, 2: 0.3}, temperature={0: 0.3, 2: 0.2}) == once
