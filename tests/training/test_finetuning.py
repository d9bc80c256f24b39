"""Fine-tuning: what `fit` sees with and without augmentation, what holds afterwards, errors."""

import numpy as np
import pytest

import dynzoo
from dynzoo import backend
from dynzoo.augmentation import batches as augmentation
from dynzoo.losses import OffsetCrossentropy
from dynzoo.training.finetuning import finetune

SMALL = dict(widths=(8,), steps=(1,), neck_units=8, dense_steps=1)


def tuned(x, y, **arguments):
    model = dynzoo.models.isometric_classifier(input_shape=(8, 8, 3), num_classes=4, **SMALL)
    history = finetune(model, x, y, epochs=2, batch_size=16, verbose=0, **arguments)
    return model, history


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.random((40, 8, 8, 3), dtype=np.float32), rng.integers(0, 4, 40)


def test_images_are_shifted_and_flipped_anew_in_each_epoch(images, monkeypatch):
    seen = []
    cut = augmentation.Augmented._cut

    def watched(self, x, dy, dx, mirror):
        seen.append((self.epoch, dy - self.padding, dx - self.padding, mirror))
        return cut(self, x, dy, dx, mirror)

    monkeypatch.setattr(augmentation.Augmented, "_cut", watched)
    model, _ = tuned(*images, crop_padding=2, flip=True, seed=3)
    assert {epoch for epoch, *_ in seen} == {0, 1}
    shifts = np.concatenate([np.concatenate(part[1:3]) for part in seen])
    assert set(shifts) == {-2, -1, 0, 1, 2}
    mirrored = [np.concatenate([part[3] for part in seen if part[0] == e]) for e in (0, 1)]
    assert all(0 < m.mean() < 1 for m in mirrored)
    assert not np.array_equal(mirrored[0][-32:], mirrored[1][-32:])
    # all steps of the schedule are taken, over full batches: two of 16 images in each of two epochs
    assert int(model.optimizer.iterations) == 4
    again, _ = tuned(*images, crop_padding=2, flip=True, seed=3)
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_constraints_hold_and_nothing_is_augmented_unless_asked(images, monkeypatch):
    augmented, _ = tuned(*images, crop_padding=1)
    monkeypatch.setattr(augmentation, "Augmented", None)
    plain, _ = tuned(*images)
    assert int(plain.optimizer.iterations) == 6  # the last, smaller batch included
    for model in (augmented, plain):
        assert dynzoo.certify(model).lipschitz < 2
        before = model.get_weights()
        dynzoo.project(model)
        for one, other in zip(before, model.get_weights(), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("padding", [8, -1, 1.5])
def test_shifts_that_cannot_be_are_named(images, padding):
    with pytest.raises(ValueError, match=r"`crop_padding` must be an integer in \[0, 8\)"):
        tuned(*images, crop_padding=padding)


def test_fewer_images_than_a_batch(images):
    _, history = tuned(images[0][:5], images[1][:5], flip=True)
    assert np.isfinite(history.history["loss"]).all()


def test_a_frozen_body_is_kept_and_trains_again_afterwards(images, tmp_path):
    model = dynzoo.models.isometric_classifier(input_shape=(8, 8, 3), num_classes=4, **SMALL)
    mine = next(layer for layer in model.layers if layer.trainable_variables)
    mine.trainable = False  # what the caller froze is the caller's
    flags = [part.trainable for part in model._flatten_layers()]
    before = model.get_weights()
    finetune(model, *images, epochs=1, batch_size=16, verbose=0, freeze_body=True)
    head = len(model.layers[-1].get_weights())
    for one, other in zip(before[:-head], model.get_weights()[:-head], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert not np.allclose(before[-head], model.get_weights()[-head])
    assert [part.trainable for part in model._flatten_layers()] == flags
    finetune(model, *images, epochs=1, batch_size=16, verbose=0)
    fixed = len(mine.get_weights())
    assert not all(np.allclose(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert fixed and not mine.trainable
    mine.trainable = True
    finetune(model, *images, epochs=1, batch_size=16, verbose=0, freeze_body=True)
    model.fit(*images, epochs=1, verbose=0)  # all of it, and as it comes
    dynzoo.save_to_preset(model, tmp_path / "saved")
    config = (tmp_path / "saved" / "config.json").read_text()
    assert '"trainable": false' not in config


@pytest.mark.parametrize("one_hot", [False, True])
def test_a_step_is_traced_once(images, monkeypatch, one_hot):
    if backend.name() != "tensorflow":
        pytest.skip("a fault of Keras on TensorFlow")
    x, y = images
    calls = []
    call = OffsetCrossentropy.call
    monkeypatch.setattr(
        OffsetCrossentropy, "call", lambda self, *given: calls.append(0) or call(self, *given)
    )
    _, history = tuned(x[:32], np.eye(4)[y[:32]] if one_hot else y[:32])
    assert len(calls) == 1 and len(history.history["accuracy"]) == 2
