"""What people's folders hold: splits by other names, other files, and files that are damaged."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dynzoo.data import datasets as data
from dynzoo.data.folder_contents import survey
from dynzoo.data.image_folder import load_image_folder
from dynzoo.inference.image_files import read_image

pytestmark = pytest.mark.any_backend


def write(root, counts, value=100, ending=".png"):
    """Gray images, `value` bright."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("L", (4, 4), value).save(root / name / f"{i}{ending}")


def load(root):
    lines = []
    (x, y), (x_test, y_test) = load_image_folder(root, log=lines.append)
    return (x, y), (x_test, y_test), lines[0]


@pytest.mark.parametrize(
    ("train", "held"),
    [("train", "val"), ("Train", "VALID"), ("training", "Validation"), ("TRAIN", "Test")],
)
def test_splits_by_any_name_are_no_classes(tmp_path, train, held):
    write(tmp_path / train, {"a": 3, "b": 2}, 10)
    write(tmp_path / held, {"a": 1, "b": 2}, 20)
    assert data.class_names(tmp_path) == ["a", "b"]
    (x, y), (x_test, y_test), line = load(tmp_path)
    assert np.bincount(y).tolist() == [3, 2] and np.bincount(y_test).tolist() == [1, 2]
    assert (x == 10).all() and (x_test == 20).all()
    assert "8 images of 2 classes read, 5 for training, 3 for the test" in line


def test_no_split_vanishes(tmp_path):
    write(tmp_path / "train", {"a": 3, "b": 2}, 10)
    write(tmp_path / "val", {"a": 1, "b": 1}, 15)
    write(tmp_path / "test", {"b": 2}, 20)
    (x, y), (x_test, y_test), line = load(tmp_path)
    assert np.bincount(y).tolist() == [4, 3] and y_test.tolist() == [1, 1]
    assert sorted(np.unique(x)) == [10, 15] and (x_test == 20).all()
    assert "val counts as training images" in line
    (tmp_path / "Valid").mkdir()
    with pytest.raises(ValueError, match="two folders for one split: Valid and val"):
        load(tmp_path)


def test_train_alone_is_divided_and_a_class_may_be_called_train(tmp_path):
    write(tmp_path / "one" / "train", {"a": 5, "b": 5})
    assert np.bincount(load(tmp_path / "one")[1][1]).tolist() == [1, 1]
    write(tmp_path / "vehicles", {"car": 5, "train": 5, "test": 5})
    assert data.class_names(tmp_path / "vehicles") == ["car", "test", "train"]
    write(tmp_path / "none" / "val", {"a": 5, "b": 5})
    write(tmp_path / "none" / "test", {"a": 5, "b": 5})
    with pytest.raises(ValueError, match="but no folder `train`"):
        survey(tmp_path / "none")


@pytest.mark.parametrize("held", ["test", "Validation"])
def test_a_split_beside_its_classes_is_no_class(tmp_path, held):
    write(tmp_path, {"cat": 5, "dog": 5})
    write(tmp_path / held, {"cat": 2, "dog": 2})
    with pytest.raises(ValueError, match=f"{held} holds classes .* beside it as well .cat, dog."):
        survey(tmp_path)
    # folders of other names in a class are no split
    write(tmp_path / "other", {"cat": 5, "test/near": 2, "test/far": 2})
    assert data.class_names(tmp_path / "other") == ["cat", "test"]


def test_what_is_left_out_shifts_no_label_and_is_counted(tmp_path):
    write(tmp_path, {"b": 5, "c": 5})
    write(tmp_path, {"__MACOSX": 2, "@eaDir": 2, ".cache": 1})
    write(tmp_path / "b", {".ipynb_checkpoints": 5, "@eaDir": 5, "more": 1})
    (tmp_path / "a").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("no image")
    (tmp_path / "top.png").write_bytes(b"")
    Image.new("L", (4, 4), 100).save(tmp_path / "c" / "photo.JFIF", "JPEG")
    write(tmp_path / "elsewhere" / "linked", {".": 2})
    os.rename(tmp_path / "elsewhere", tmp_path.parent / f"{tmp_path.name}_elsewhere")
    os.symlink(tmp_path.parent / f"{tmp_path.name}_elsewhere", tmp_path / "c" / "link")
    os.symlink(tmp_path / "c", tmp_path / "c" / "loop")
    assert data.class_names(tmp_path) == ["b", "c"]
    (_, y), (_, y_test), line = load(tmp_path)
    assert np.bincount([*y, *y_test]).tolist() == [6, 8]
    for why in (
        "14 images of 2 classes",
        "1 ending in .txt",
        "1 empty folder",
        "1 folder __MACOSX",
        "2 folder @eaDir",
        "1 folder .ipynb_checkpoints",
        "1 in no class",
    ):
        assert why in line


def test_a_class_of_files_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path, {"a": 2, "c": 2})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.heic").write_bytes(b"..")
    with pytest.raises(ValueError, match=r"b holds no image that can be read \(1 ending in .heic"):
        data.class_names(tmp_path)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_sixteen_bits_become_eight(tmp_path, ending):
    values = np.array([[0, 128, 257], [25700, 65534, 65535]], np.uint16)
    file = tmp_path / f"a{ending}"
    Image.fromarray(values).save(file)
    expected = [[0, 0, 1], [100, 255, 255]]
    np.testing.assert_array_equal(read_image(file)[..., 1], expected)
    assert read_image(file, (2, 3, 1))[..., 0].tolist() == expected


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_gray_values_of_unknown_range_are_refused_by_name(tmp_path, kind):
    file = tmp_path / "scan.tiff"
    Image.fromarray(np.ones((4, 4), kind)).save(file)
    with pytest.raises(ValueError, match=r"scan.tiff has .* whose range its type does not tell"):
        read_image(file)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_every_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path, {"a": 1})
    whole = (tmp_path / "a" / "0.png").read_bytes()
    text = chunk(b"zTXt", b"note\0\0" + zlib.compress(b" " * (PngImagePlugin.MAX_TEXT_CHUNK + 1)))
    damaged = {
        "cut.png": whole[:40],
        "header.png": whole[:16] + b"\xff" * 8 + whole[24:],
        "comment.png": whole[:33] + text + whole[33:],
        "bitmap.bmp": b"BM" + b"\xff" * 60,
        "tagged.tif": b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40,
        "empty.webp": b"",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
    with pytest.raises(ValueError, match="0.png is larger than the limit.*MAX_IMAGE_PIXELS"):
        read_image(tmp_path / "a" / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12)  # above it, and below twice: no word
    write(tmp_path, {"b": 2, "a": 2})
    assert load(tmp_path)[0][0].shape == (2, 4, 4, 3)
