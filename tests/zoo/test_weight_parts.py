"""Presets with float16 weights, and with arrays larger than a file may be."""

import json

import h5py
import hostile_presets as hostile
import keras
import numpy as np
import pytest
from helpers import norm, normal

from dynzoo import backend, certify, constraints
from dynzoo.layers import OrthonormalDense
from dynzoo.zoo import preset_folder, weight_parts


@pytest.fixture
def small_files(monkeypatch):
    """Files of at most 400 kB; arrays from 1,000 entries on are large."""
    monkeypatch.setattr(preset_folder, "_SHARD_BYTES", 400_000)
    monkeypatch.setattr(weight_parts, "_LARGE", 1000)


def network():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((200,))
    x = OrthonormalDense(300)(inputs)
    x = keras.layers.Dense(400, name="wide")(x)  # 480 kB: no file holds it
    x = keras.layers.BatchNormalization()(keras.layers.Dropout(0.5, seed=1)(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x), name="parts")


def answers(model):
    return backend.to_numpy(model(normal((4, 200), 5), training=False))


def test_an_array_larger_than_a_file_comes_back_bit_by_bit(tmp_path, small_files):
    model = network()
    preset_folder.save_to_preset(model, tmp_path / "p")
    files = sorted((tmp_path / "p").glob("*.h5"))
    assert [f.name for f in files] == [f"weights_{k:02d}.h5" for k in range(len(files))]
    assert len(files) >= 2 and max(f.stat().st_size for f in files) <= 400_000
    assert json.loads((tmp_path / "p" / "metadata.json").read_text())["format"] == 2
    again = preset_folder.from_preset(tmp_path / "p")
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_float16_is_half_the_size_and_is_projected_when_loaded(tmp_path, small_files):
    model = network()
    preset_folder.save_to_preset(model, tmp_path / "p", weights_dtype="float16")
    size = sum(f.stat().st_size for f in (tmp_path / "p").glob("*.h5"))
    assert size < 0.6 * sum(w.nbytes for w in model.get_weights())
    again = preset_folder.from_preset(tmp_path / "p")
    for ours, w in zip(again.variables, model.variables, strict=True):
        a, b = backend.value_of(ours), backend.value_of(w)
        if w.constraint is not None:
            np.testing.assert_allclose(a, b, atol=1e-3)
        elif b.size > 1000:
            np.testing.assert_array_equal(a, b.astype("float16").astype("float32"))
        else:
            np.testing.assert_array_equal(a, b)
    kernel = backend.value_of(again.layers[1].kernel)
    assert kernel.shape == (200, 300)
    np.testing.assert_allclose(np.linalg.svd(kernel, compute_uv=False), 1.0, atol=1e-6)
    np.testing.assert_allclose(answers(again), answers(model), atol=0.01)
    # it is the loaded weights that a certificate is of
    assert certify(again).lipschitz != certify(model).lipschitz
    # and they travel on as they are
    preset_folder.save_to_preset(again, tmp_path / "q", weights_dtype="float16")
    np.testing.assert_allclose(
        answers(preset_folder.from_preset(tmp_path / "q")), answers(again), atol=0.01
    )


def test_what_float16_cannot_hold_is_refused(tmp_path, small_files):
    model = network()
    model.get_layer("wide").kernel.assign(np.full((300, 400), 1e5))
    with pytest.raises(ValueError, match="up to 65504. Received: wide/kernel with 1e"):
        preset_folder.save_to_preset(model, tmp_path / "p", weights_dtype="float16")
    assert not (tmp_path / "p").exists()
    with pytest.raises(ValueError, match="`weights_dtype` must be 'float32' or 'float16'"):
        preset_folder.save_to_preset(model, tmp_path / "p", weights_dtype="bfloat16")
    inputs = keras.Input((4,))
    low = keras.Model(inputs, keras.layers.Dense(3, dtype="bfloat16")(inputs))
    with pytest.raises(
        ValueError, match="needs weights in float32. Received: .*kernel in bfloat16"
    ):
        preset_folder.save_to_preset(low, tmp_path / "p", weights_dtype="float16")


def _replace(name, array):
    def change(file):
        if name in file:
            del file[name]
        if array is not None:
            file.create_dataset(name, data=array)

    return change


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("0000_00", None, "declares more than the files hold"),
        ("0000_01", np.zeros((1, 6), "float32"), "is not whole|declares more"),
        ("0000_02", np.zeros((0, 6), "float32"), "is not whole"),
        ("0000_00", np.zeros((5, 6), "float16"), "is not whole: its parts"),
        ("0000_00", np.zeros((4, 6), "int32"), "integer\\) is no part of a weight"),
        ("0009_00", np.zeros((), "float32"), "has no weight for /0009_00"),
        ("other", np.zeros((), "float32"), "/other \\(float32\\) is no part of a weight"),
        ("0001_00", np.full(6, np.nan, "float16"), "NaN or infinity"),
    ],
)
def test_files_that_do_not_hold_the_weights_are_refused(tmp_path, name, array, reason):
    folder = hostile.write(tmp_path / "p")
    model = preset_folder.from_preset(folder)
    preset_folder.save_to_preset(model, folder, overwrite=True, weights_dtype="float16")
    preset_folder.from_preset(folder)
    hostile.rewrite(folder, _replace(name, array), "weights_00.h5")
    with pytest.raises(ValueError, match=reason) as caught:
        preset_folder.from_preset(folder)
    assert "weights_00.h5" in str(caught.value) and len(str(caught.value)) < 400


def test_a_folder_without_parts_is_not_whole(tmp_path):
    folder = hostile.write(tmp_path / "p")
    hostile.edit(folder, lambda about: about.update(format=2), "metadata.json")
    with pytest.raises(ValueError, match="lacks weights_00.h5"):
        preset_folder.from_preset(folder)
    hostile.edit(folder, lambda about: about.update(format=3), "metadata.json")
    with pytest.raises(ValueError, match="has format 3, this dynzoo reads 1 and 2"):
        preset_folder.from_preset(folder)


def test_project_mends_float16_to_the_last_digit():
    for shape in ((40, 60), (60, 40), (32, 32)):
        u, _, vt = np.linalg.svd(normal(shape, 3).astype(np.float64), full_matrices=False)
        rounded = (u @ vt).astype(np.float16).astype(np.float64)
        near = constraints.Orthonormal().nearest(rounded)
        u, _, vt = np.linalg.svd(rounded, full_matrices=False)
        np.testing.assert_allclose(near, u @ vt, atol=1e-14)
        assert norm(near) <= 1 + 1e-14


def test_parts_are_plain_arrays(tmp_path, small_files):
    preset_folder.save_to_preset(network(), tmp_path / "p", weights_dtype="float16")
    with h5py.File(tmp_path / "p" / "weights_00.h5") as file:
        assert file["0000_00"].dtype == np.float16 and file["0000_00"].chunks is None
