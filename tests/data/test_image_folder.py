"""Folders of images: what becomes which array and label, and what is refused."""

import json

import keras
import numpy as np
import pytest
from PIL import Image

import dynzoo
from dynzoo import backend
from dynzoo.cli import program as cli
from dynzoo.data import datasets as data
from dynzoo.data.image_folder import class_folders, load_image_folder
from dynzoo.training.validation import hold_out

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def write(root, counts, size=(8, 8)):
    """One-coloured images, each with a number of its own in the corner."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = Image.new("RGB", size, COLOURS[name])
            image.putpixel((0, 0), (i, i, i))
            image.save(root / name / f"{i}.png")


def numbers(x):
    return x[:, 0, 0, 0].tolist()


def colours(x):
    """Labels by the colour in the middle."""
    return [list(COLOURS.values()).index(tuple(image[4][4])) for image in x.tolist()]


def test_train_and_test_folders(tmp_path):
    write(tmp_path / "train", {"red": 5, "blue": 4, "green": 3})
    write(tmp_path / "test", {"red": 2, "green": 1})
    (tmp_path / "train" / "red" / "notes.txt").write_text("no image")
    assert class_folders(tmp_path) == data.class_names(tmp_path) == ["blue", "green", "red"]
    (x, y), (x_test, y_test) = load_image_folder(tmp_path)
    assert x.shape == (12, 8, 8, 3) and x.dtype == np.uint8 and y.dtype == np.int64
    assert np.bincount(y).tolist() == [4, 3, 5] and np.bincount(y_test).tolist() == [0, 1, 2]
    assert colours(x) == y.tolist() and colours(x_test) == y_test.tolist()
    assert y.tolist() != sorted(y)  # so that the first few are of all classes
    (again, _), _ = load_image_folder(tmp_path)
    np.testing.assert_array_equal(again, x)


def test_a_fifth_of_each_class_is_held_out(tmp_path):
    write(tmp_path, {"red": 20, "blue": 10})
    (x, y), (x_test, y_test) = load_image_folder(tmp_path)
    assert np.bincount(y).tolist() == [8, 16] and np.bincount(y_test).tolist() == [2, 4]
    for label, count in ((0, 10), (1, 20)):
        assert sorted(numbers(x[y == label]) + numbers(x_test[y_test == label])) == [*range(count)]


def test_images_are_scaled_and_cut_but_not_stretched(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 15:45] = 200  # more than the square in the middle
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(wide).save(tmp_path / name / f"{i}.png")
    (x, _), _ = data.load(tmp_path, dtype="uint8", image_shape=(10, 10, 3))
    assert x.shape == (2, 10, 10, 3) and np.all(x == 200)
    (x, _), _ = data.load(tmp_path, image_shape=(10, 10, 1))
    assert x.shape == (2, 10, 10, 1) and x.dtype == np.float32
    np.testing.assert_allclose(x, 200 / 255)


def test_a_photo_is_turned_as_its_camera_was(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    for name in ("blue", "red"):
        (tmp_path / name).mkdir()
        for i in range(2):
            path = tmp_path / name / f"{i}.png"
            Image.new("RGB", (4, 8), COLOURS[name]).save(path, exif=exif)
    assert load_image_folder(tmp_path)[0][0].shape == (2, 4, 8, 3)


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        load_image_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="or a folder of images. Received"):
        data.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="at least two classes.*Received: no folders"):
        load_image_folder(tmp_path)
    write(tmp_path, {"red": 2, "blue": 0})
    (tmp_path / "blue").rmdir()
    with pytest.raises(ValueError, match="Received: red"):
        data.class_names(tmp_path)
    (tmp_path / "blue").mkdir()
    with pytest.raises(ValueError, match="Received: red"):  # an empty folder is no class
        load_image_folder(tmp_path)
    write(tmp_path, {"blue": 1})
    (tmp_path / "red" / "1.png").unlink()
    with pytest.raises(ValueError, match="holds no test images"):
        load_image_folder(tmp_path)
    write(tmp_path, {"red": 3, "blue": 3})
    with pytest.raises(ValueError, match="`image_shape` must be"):
        load_image_folder(tmp_path, (8, 8, 4))
    write(tmp_path, {"blue": 1}, size=(8, 9))
    with pytest.raises(ValueError, match="must be of one size.*0.png"):
        load_image_folder(tmp_path)
    (tmp_path / "red" / "2.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="2.png is not a readable image"):
        load_image_folder(tmp_path, (8, 8, 3))
    for part in ("train", "test"):
        write(tmp_path / "both" / part, {"red": 1, "blue": 1})
    write(tmp_path / "both" / "test", {"green": 1})
    with pytest.raises(ValueError, match="classes that `train` lacks: green"):
        load_image_folder(tmp_path / "both")


def test_a_preset_is_fine_tuned_on_a_folder_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = dict(widths=(8,), steps=(1,), neck_units=8, dense_steps=1)
    model = dynzoo.models.isometric_classifier(input_shape=(8, 8, 3), num_classes=10, **small)
    dynzoo.save_to_preset(model, "tiny", {"name": "tiny"})
    write(tmp_path / "photos", {"red": 20, "green": 20, "blue": 20}, size=(30, 20))
    command = "finetune tiny --data photos --epochs 8 --batch-size 8 --output tuned"
    assert cli.main(command.split()) == 0
    about = json.loads((tmp_path / "tuned" / "metadata.json").read_text())
    assert about["dataset"] == "photos" and about["num_classes"] == 3
    assert about["accuracy"] == 1.0  # colours are easy
    command = "evaluate tuned --data photos --attacks none --eps 0.1 --update-card"
    assert cli.main(command.split()) == 0
    about = json.loads((tmp_path / "tuned" / "metadata.json").read_text())
    assert about["evaluation"]["data_file"] == "photos (folder)"
    assert 0 < about["certified_accuracy"]["0.1"] <= 1.0
    capsys.readouterr()
    assert cli.main("finetune tiny --data tuned".split()) == 2
    assert "at least two classes" in capsys.readouterr().err


def test_fit_takes_the_data_set_that_keras_makes_of_a_folder(tmp_path):
    pytest.importorskip("tensorflow", reason="keras.utils.image_dataset_from_directory needs it")
    write(tmp_path, {"red": 12, "blue": 12}, size=(20, 20))
    images = keras.utils.image_dataset_from_directory(
        tmp_path, image_size=(8, 8), batch_size=8, seed=0, verbose=False
    ).map(lambda x, y: (x / 255.0, y))
    small = dict(widths=(8,), steps=(1,), neck_units=8, dense_steps=1)
    model = dynzoo.models.isometric_classifier(input_shape=(8, 8, 3), num_classes=2, **small)
    for optimizer in (keras.optimizers.SGD(0.05), keras.optimizers.AdamW(0.01)):
        model.compile(
            optimizer,
            dynzoo.losses.OffsetCrossentropy(),
            metrics=["accuracy"],
            jit_compile=backend.fit_with_jit(),
        )
        before = model.evaluate(images, verbose=0)[0]
        model.fit(images, epochs=4, shuffle=False, verbose=0)  # Keras warns: it is shuffled
        assert model.evaluate(images, verbose=0)[0] < before
        assert dynzoo.certify(model).body_lipschitz < 1 + 1e-4  # the constraints held throughout


def test_the_line_on_what_it_holds_goes_where_the_caller_says(tmp_path, capsys):
    write(tmp_path, {"red": 10, "blue": 10})
    said = []
    recipe = {"data": {"name": str(tmp_path), "validation": 2}}
    hold_out(recipe, log=said.append)  # as a training does, of whose processes one speaks
    hold_out(recipe, log=None)
    assert len(said) == 1 and "20 images of 2 classes" in said[0]
    assert capsys.readouterr().out == ""
