"""Folders that stay in their files: the same pictures, the same results, little memory."""

import tracemalloc

import keras
import numpy as np
import pytest
from PIL import Image

import dynzoo
from dynzoo import layers
from dynzoo.augmentation.batches import Augmented
from dynzoo.cli import program as cli
from dynzoo.data import image_folder
from dynzoo.inference.streamed_images import StreamedImages
from dynzoo.training.finetuning import finetune
from dynzoo.zoo.measurement import accuracy, measure

SHAPE = (8, 8, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 pictures of 12 x 9 pixels in three classes that differ in colour."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cow")):
        (root / name).mkdir()
        for i in range(20):
            pixels = rng.integers(0, 120, (12, 9, 3), dtype=np.uint8)
            pixels[..., label] += 130
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def splits(folder):
    return [dynzoo.data.load(folder, image_shape=SHAPE, stream=s) for s in (False, True)]


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE, name="image")
    x = layers.OrthonormalDense(6)(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, layers.UnitRowDense(3)(x))


def test_the_same_pictures(splits):
    for (x, y), (lazy, labels) in zip(*splits, strict=True):
        assert isinstance(lazy, StreamedImages)
        assert lazy.shape == x.shape and lazy.dtype == x.dtype and lazy.ndim == 4
        assert lazy.nbytes == x.nbytes and len(lazy) == len(x)
        np.testing.assert_array_equal(labels, y)
        np.testing.assert_array_equal(lazy[:], x)
        np.testing.assert_array_equal(lazy[-1], x[-1])
        np.testing.assert_array_equal(lazy[1:5:2], x[1:5:2])
        rows = np.array([3, 0, 3])
        np.testing.assert_array_equal(lazy[rows], x[rows])
        mask = np.arange(len(x)) % 2 == 0
        np.testing.assert_array_equal(lazy[mask], x[mask])
        np.testing.assert_array_equal(lazy.part(2, 4)[:], x[2:4])
        assert lazy[:0].shape == (0, *SHAPE)
        bytes_ = lazy.astype("uint8")
        np.testing.assert_array_equal(bytes_[:2] / np.float32(255), x[:2])
        assert lazy.sha256() != bytes_.sha256() != lazy.part(0, 1).sha256()


def test_the_same_batches_and_the_same_training(splits):
    ((x, y), _), ((lazy, labels), _) = splits
    make = dict(batch_size=8, seed=3, padding=2, flip=True)
    one, other = Augmented(x, y, **make), Augmented(lazy, labels, **make)
    for (a, b), (c, d) in zip(
        (one[i] for i in range(3)), (other[i] for i in range(3)), strict=True
    ):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)
    results = []
    for images in (x, lazy):
        model = network()
        finetune(model, images, y, epochs=2, batch_size=8, crop_padding=1, verbose=0)
        results.append(model.predict(x, verbose=0))
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)


def test_training_without_augmentation(splits):
    _, ((lazy, y), (lazy_test, y_test)) = splits
    model = network()
    finetune(model, lazy, y, epochs=8, batch_size=8, verbose=0)
    assert accuracy(model, lazy_test, y_test) >= 0.9


def test_the_same_evaluation(splits, tmp_path):
    (_, (x, y)), (_, (lazy, _)) = splits
    model = network()
    assert accuracy(model, lazy, y) == accuracy(model, x, y)
    settings = dict(eps=(0.05, 0.2), attacks="fast", seed=1)
    whole = dynzoo.evaluate(model, x, y, **settings)
    streamed = dynzoo.evaluate(model, lazy, y, checkpoint=tmp_path / "c.npz", **settings)
    assert streamed.robust == whole.robust and streamed.certified == whole.certified
    again = dynzoo.evaluate(model, lazy, y, checkpoint=tmp_path / "c.npz", **settings)
    assert again.robust == whole.robust
    with pytest.raises(ValueError, match="checkpoint"):
        dynzoo.evaluate(model, lazy.part(1, 5), y[1:5], checkpoint=tmp_path / "c.npz", **settings)
    for attacks in ("none", "fast"):
        one, other = (
            measure(model, images, y, attacks=attacks, attack_limit=4, report=True)
            for images in (x, lazy)
        )
        assert one.certified == other.certified and one.clean == other.clean
        assert one.report.certified == other.report.certified


def test_memory_is_that_of_a_batch(tmp_path):
    shape = (64, 64, 3)
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    files = [tmp_path / name / f"{i % 4}.png" for i in range(300) for name in ("a", "b")]
    lazy = StreamedImages(files, shape)
    y = np.arange(600) % 2
    batches = Augmented(lazy, y, batch_size=16, padding=2)
    tracemalloc.start()
    try:
        for i in range(len(batches)):
            batches[i]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    batch = 16 * 64 * 64 * 3 * 4
    assert lazy.nbytes > 35 * batch
    assert peak < 8 * batch


def test_large_folders_are_streamed_unasked(folder, monkeypatch, capsys):
    (x, _), _ = dynzoo.data.load(folder, image_shape=SHAPE, stream=None)
    assert isinstance(x, np.ndarray)
    assert "60 images of 3 classes read, " in capsys.readouterr().out
    monkeypatch.setattr(image_folder, "_IN_MEMORY", 1000)
    (x, _), _ = dynzoo.data.load(folder, image_shape=SHAPE, stream=None)
    assert isinstance(x, StreamedImages)
    assert "60 images of 3 classes found, read when needed, " in capsys.readouterr().out


def test_commands_stream_large_folders(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(image_folder, "_IN_MEMORY", 1000)
    monkeypatch.setattr(StreamedImages, "_read", _counted(StreamedImages._read))
    dynzoo.save_to_preset(network(), tmp_path / "preset")
    command = ["finetune", str(tmp_path / "preset"), "--data", str(folder), "--epochs", "1"]
    assert cli.main([*command, "--output", str(tmp_path / "tuned")]) == 0
    command = ["evaluate", str(tmp_path / "tuned"), "--data", str(folder), "--attacks", "none"]
    assert cli.main([*command, "--output", str(tmp_path / "r.json")]) == 0
    out = capsys.readouterr().out
    assert "found, read when needed" in out and "certified, 12 images" in out
    assert "class_names" in (tmp_path / "tuned" / "metadata.json").read_text()


def _counted(read):
    def at_most_one_batch(self, places):
        assert len(places) <= 64
        return read(self, places)

    return at_most_one_batch


def test_refusals(splits, tmp_path):
    _, ((lazy, y), _) = splits
    with pytest.raises(TypeError, match="streamed images would take .* MiB as one array"):
        np.asarray(lazy)
    with pytest.raises(ValueError, match="`stream=True` needs a folder"):
        dynzoo.data.load("digits", stream=True)
    with pytest.raises(ValueError, match="`dtype` must be"):
        StreamedImages([], SHAPE, "float16")
    with pytest.raises(ValueError, match="must have the shape of the model's input"):
        finetune(network(), StreamedImages(lazy.files, (4, 4, 3)), y)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = StreamedImages([*lazy.files[:4], tmp_path / "broken.png"], SHAPE)
    with pytest.raises(ValueError, match="broken.png is not a readable image"):
        broken[:]
