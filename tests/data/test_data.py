import hashlib
import os
import sys
import time
import types
import urllib.request

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynzoo.data import datasets as data
from dynzoo.data import sources
from dynzoo.inference import class_names as labels

pytestmark = pytest.mark.any_backend


def _write(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (12, 4, 5, 3), dtype=np.uint8),
        "y_train": np.arange(12, dtype=np.int32) % 3,
        "x_test": rng.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8),
        "y_test": np.arange(6, dtype=np.int32) % 3,
    }
    arrays.update(changes)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return arrays


def test_npz_gives_exact_floats_or_bytes(tmp_path):
    path = tmp_path / "small.npz"
    arrays = _write(path)
    (x, y), (x_test, y_test) = data.load(path)
    assert x.dtype == np.float32 and x_test.dtype == np.float32
    assert y.dtype == np.int64 and y.shape == (12,)
    np.testing.assert_array_equal(np.rint(x.astype(np.float64) * 255), arrays["x_train"])
    np.testing.assert_array_equal(x, (arrays["x_train"] / 255).astype(np.float32))
    np.testing.assert_array_equal(y_test, arrays["y_test"])
    raw = data.load(str(path), dtype="uint8")[1][0]
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(raw, arrays["x_test"])


def test_npz_layouts_of_keras_datasets(tmp_path):
    """keras.datasets.mnist has no channel axis, keras.datasets.cifar10 labels of shape (n, 1)."""
    path = tmp_path / "small.npz"
    _write(
        path,
        x_train=np.zeros((12, 4, 5), np.uint8),
        x_test=np.zeros((6, 4, 5), np.uint8),
        y_train=(np.arange(12) % 3)[:, None],
    )
    (x, y), _ = data.load(path)
    assert x.shape == (12, 4, 5, 1)
    assert y.shape == (12,)


def test_float_images_go_back_to_their_bytes(tmp_path):
    path = tmp_path / "small.npz"
    arrays = _write(path)
    exact = {k: (arrays[k] / 255).astype(np.float32) for k in ("x_train", "x_test")}
    _write(path, **exact)
    np.testing.assert_array_equal(data.load(path, "uint8")[0][0], arrays["x_train"])
    _write(path, **{k: v * np.float32(0.5003) for k, v in exact.items()})
    with pytest.raises(ValueError, match="bytes divided by 255"):
        data.load(path, "uint8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"lacks the keys \['y_test'\]"),
        ({"x_train": np.zeros((12, 4), np.uint8)}, "x_train must be of shape"),
        ({"x_train": np.zeros((11, 4, 5, 3), np.uint8)}, "x_train has 11 images but y_train 12"),
        ({"x_test": np.zeros((6, 8, 5, 3), np.uint8)}, "x_test of shape"),
        ({"x_train": np.full((12, 4, 5, 3), 2.0)}, r"x_train is float, .* in \[0, 1\]"),
        ({"x_train": np.full((12, 4, 5, 3), np.nan)}, "x_train is float"),
        ({"x_train": np.zeros((12, 4, 5, 3), np.int64)}, "x_train must be uint8 or float"),
        ({"y_train": np.zeros(12)}, "y_train must be integers"),
        ({"y_train": np.eye(12, dtype=int)}, "y_train must be integers"),
        ({"y_train": np.full(12, -1)}, "y_train has the negative label -1"),
        ({"y_test": np.full(6, 7)}, "y_test has the label 7"),
        ({"x_test": np.zeros((0, 4, 5, 3), np.uint8)}, "x_test is empty"),
        ({"y_train": np.array([{}] * 12, dtype=object)}, "allow_pickle"),
    ],
)
def test_bad_npz_is_refused_by_name(tmp_path, changes, message):
    path = tmp_path / "bad.npz"
    _write(path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        data.load(path)
    assert "bad.npz" in str(error.value)


def test_truncated_npz_and_missing_npz(tmp_path):
    path = tmp_path / "cut.npz"
    _write(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="cut.npz"):
        data.load(path)
    with pytest.raises(FileNotFoundError, match="none.npz"):
        data.load(tmp_path / "none.npz")


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match="cifar10.*digits.*Received: name='imagenet'"):
        data.load("imagenet")
    with pytest.raises(ValueError, match="cifar100"):
        data.class_names("imagenet")
    with pytest.raises(ValueError, match="dtype='float64'"):
        data.load("digits", dtype="float64")


def test_digits_are_the_same_bytes_everywhere():
    (x, y), (x_test, y_test) = data.load("digits", dtype="uint8")
    assert x.shape == (1437, 32, 32, 3) and x_test.shape == (360, 32, 32, 3)
    assert np.bincount(y_test).min() >= 35 and np.bincount(y_test).max() <= 37
    content = b"".join(a.tobytes() for a in (x, y, x_test, y_test))
    assert hashlib.sha256(content).hexdigest() == (
        "4d09aaa888ceacd0cdbaf7da5c300718ab1355f07cd0bea09863a8cb774aa8b1"
    )


def test_digits_keep_the_mean_and_range_of_the_original():
    from sklearn.datasets import load_digits

    images = load_digits().images / 16
    (x, _), (x_test, _) = data.load("digits")
    both = np.concatenate([x, x_test])
    assert both.min() == 0 and both.max() == 1
    assert abs(both.mean() - images.mean()) < 0.01


@given(st.integers(3, 60), st.integers(0, 5), st.data())
def test_split_validation_is_a_partition(n, seed, draw):
    size = draw.draw(st.integers(1, n - 1))
    x, y = np.arange(n) * 10, np.arange(n)
    (x_train, y_train), (x_val, y_val) = data.split_validation(x, y, size, seed)
    assert len(y_val) == size
    np.testing.assert_array_equal(np.sort(np.concatenate([y_train, y_val])), y)
    np.testing.assert_array_equal(x_val, y_val * 10)
    np.testing.assert_array_equal(x_train, y_train * 10)
    again = data.split_validation(x, y, size, seed)[1][1]
    np.testing.assert_array_equal(y_val, again)


def test_split_validation_share_seed_and_errors():
    x = y = np.arange(1000)
    held = data.split_validation(x, y, 0.1, seed=1)[1][1]
    assert len(held) == 100
    assert not np.array_equal(held, data.split_validation(x, y, 0.1, seed=2)[1][1])
    for size in (0, 1000, 1.5, -3):
        with pytest.raises(ValueError, match="`size`"):
            data.split_validation(x, y, size)
    with pytest.raises(ValueError, match="one length"):
        data.split_validation(x, y[:-1], 10)


def test_class_names(tmp_path):
    assert data.class_names("cifar10")[9] == "truck"
    hundred = data.class_names("cifar100")
    assert len(set(hundred)) == 100 and hundred == sorted(hundred)
    assert data.class_names("digits") == data.class_names("mnist") == list("0123456789")
    _write(tmp_path / "a.npz")
    assert data.class_names(tmp_path / "a.npz") == ["0", "1", "2"]
    _write(tmp_path / "b.npz", label_names=np.array(["x", "y", "z"]))
    assert data.class_names(tmp_path / "b.npz") == ["x", "y", "z"]


@pytest.mark.parametrize("hangs", [False, True])
def test_no_data_and_no_network_fails_soon_and_names_the_remedies(tmp_path, monkeypatch, hangs):
    def no_network(*args, **kwargs):
        if hangs:
            time.sleep(30)
        raise OSError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="TFDS_DATA_DIR.*x_train.*digits") as error:
        data.load("cifar10")
    assert time.monotonic() - start < 10
    assert str(tmp_path) in str(error.value)
    assert ("no answer" if hangs else "no route to host") in str(error.value)


def test_another_prepared_version_without_network_is_named_at_once(tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("it would ask the network for minutes")

    class Builder:
        VERSION = "3.0.2"

    fake = types.SimpleNamespace(builder_cls=lambda name: Builder, builder=never)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    monkeypatch.setattr(data, "_unreachable", lambda url: "no route to host")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    (tmp_path / "cifar10" / "3.0.1").mkdir(parents=True)
    (tmp_path / "cifar10" / "3.0.1" / "dataset_info.json").write_text("{}")
    with pytest.raises(RuntimeError, match="in version 3.0.1, but .* reads version 3.0.2") as error:
        data.load("cifar10")
    assert str(tmp_path) in str(error.value) and "no route to host" in str(error.value)


@pytest.mark.slow
def test_tfds_and_npz_hold_the_same_images_in_the_same_order():
    npz = os.environ.get("DYNZOO_CIFAR10_NPZ")
    if not npz or not os.environ.get("TFDS_DATA_DIR"):
        pytest.skip("both DYNZOO_CIFAR10_NPZ and TFDS_DATA_DIR are needed")
    for mine, theirs in zip(data.load("cifar10", "uint8"), data.load(npz, "uint8"), strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])


def test_superclasses_are_five_classes_each():
    y = labels.superclasses(np.arange(100))
    np.testing.assert_array_equal(np.bincount(y), [5] * 20)
    names = data.class_names("cifar100")
    assert {names[i] for i in np.flatnonzero(y == 1)} == set(
        "aquarium_fish flatfish ray shark trout".split()
    )
    for wrong in ([100], [-1], [0.5]):
        with pytest.raises(ValueError, match="`y` must be integer labels from 0 to 99"):
            labels.superclasses(wrong)


def test_the_table_has_the_names_that_are_checked_without_it():
    assert sorted(data.DATASETS) == list(sources.NAMES)
