"""Data in shards: the same images, batches and trainings as from memory, and every fault named."""

import shutil
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_fixtures import KILLED, RECIPE, in_new_process

import dynzoo
from dynzoo import data
from dynzoo.augmentation import Augmented
from dynzoo.cli import program as cli
from dynzoo.data import sharded_images
from dynzoo.data.sharded_images import ShardedImages
from dynzoo.training import checkpoints, loop
from dynzoo.training.validation import hold_out, labels_and_radii

any_backend = pytest.mark.any_backend
SHAPE = (8, 8, 3)


def images(count=120, seed=0, dtype="uint8"):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 256, (count, *SHAPE), np.uint8), rng.integers(0, 3, count)
    y[:3] = range(min(3, count))
    x[np.arange(count), 0, 0, y] = 255
    return (x if dtype == "uint8" else (x / 255).astype(dtype)), y


def write(folder, kind, dtype="uint8"):
    """120 training images in five shards, 12 test images in one."""
    (x, y), (x_test, y_test) = images(dtype=dtype), images(12, 1, dtype)
    folder.mkdir()
    for split, a, b, parts in (("train", x, y, 5), ("test", x_test, y_test, 1)):
        for n, rows in enumerate(np.array_split(np.arange(len(a)), parts)):
            name = folder / f"{split}-{n:02}-of-{parts:02}"
            if kind == "npy":
                np.save(f"{name}.npy", a[rows])
                np.save(f"{name}.labels.npy", b[rows])
            elif kind == "tfrecord":
                records(f"{name}.tfrecord", a[rows], b[rows])
            else:
                save = np.savez if kind == "npz" else np.savez_compressed
                save(f"{name}.npz", x=a[rows], y=b[rows][:, None])
    return (x, y), (x_test, y_test)


def records(path, x, y):
    tf = pytest.importorskip("tensorflow")
    with tf.io.TFRecordWriter(path) as file:
        for image, label in zip(x, y, strict=True):
            picture = tf.io.encode_png(image).numpy()
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[picture])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            file.write(example.SerializeToString())


def load(folder, **more):
    return data.load_shards(folder, log=None, **more)


@any_backend
@pytest.mark.parametrize("kind", ["npy", "npz", "tfrecord"])
def test_the_same_images_as_were_written(kind, tmp_path):
    expected = write(tmp_path / "s", kind)
    for (x, y), (lazy, labels) in zip(expected, load(tmp_path / "s"), strict=True):
        assert isinstance(lazy, ShardedImages)
        assert lazy.shape == x.shape and lazy.dtype == x.dtype == lazy.stored
        np.testing.assert_array_equal(labels, y)
        np.testing.assert_array_equal(lazy[:], x)
        rows = np.array([7, 0, len(x) - 1, 7, 3])
        np.testing.assert_array_equal(lazy[rows], x[rows])
        np.testing.assert_array_equal(lazy[-1], x[-1])
        np.testing.assert_array_equal(lazy[y == 1], x[y == 1])
        np.testing.assert_array_equal(lazy.part(2, 9).take([3, 1])[:], x[[5, 3]])
        assert lazy[:0].shape == (0, *SHAPE)
        assert lazy.sha256() == lazy.take(np.arange(len(x))).sha256() != lazy.part(0, 2).sha256()
        with pytest.raises(TypeError, match="streamed images would take"):
            np.asarray(lazy)
    (x, _), _ = data.load(tmp_path / "s", stream=True)
    np.testing.assert_array_equal(x[:9], expected[0][0][:9] / np.float32(255))
    (x, _), _ = data.load(tmp_path / "s", dtype="uint8")  # small enough to be read at once
    assert isinstance(x, np.ndarray) and np.array_equal(x, expected[0][0])


@any_backend
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_floats(dtype, tmp_path):
    (x, _), _ = write(tmp_path / "s", "npy", dtype)
    (lazy, _), _ = load(tmp_path / "s")
    assert lazy.dtype == lazy.stored == np.float32
    np.testing.assert_array_equal(lazy[[5, 1]], x[[5, 1]].astype("float32"))
    with pytest.raises(ValueError, match="these shards hold floats"):
        data.load(tmp_path / "s", dtype="uint8", stream=True)
    x[77, 0, 0, 0] = 1.5
    np.save(tmp_path / "s" / "train-03-of-05.npy", x[72:96])
    with pytest.raises(ValueError, match="train-03-of-05.npy is float, so its values must be in"):
        load(tmp_path / "s")[0][0][77]


@any_backend
@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    rows=st.lists(st.integers(0, 10**6), max_size=12),
    keep=st.lists(st.integers(0, 10**6), min_size=1, max_size=12),
)
def test_any_rows_of_any_shards(sizes, rows, keep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    x, y = images(sum(sizes))
    starts = np.cumsum([0, *sizes])
    batches = [(x[a:b], y[a:b]) for a, b in zip(starts, starts[1:], strict=False)]
    data.write_shards(folder, batches, shard_bytes=5 * 192)
    data.write_shards(folder, [(x, np.zeros(len(x)))], "test")
    (lazy, labels), _ = load(folder)
    kept = np.array(keep) % len(x)
    chosen = np.array(rows, int) % len(kept)
    np.testing.assert_array_equal(labels, y)
    np.testing.assert_array_equal(lazy.take(kept)[chosen], x[kept][chosen])


@any_backend
def test_batches_depend_on_the_seed_alone(tmp_path):
    """Not on where the images are, nor on how many threads make batches ahead."""
    (x, y), _ = write(tmp_path / "s", "npy")
    make = dict(batch_size=16, seed=3, epoch=2, padding=2, rotation=10.0, color_jitter=0.2)
    (lazy, labels), _ = load(tmp_path / "s")
    ahead = Augmented(lazy, labels, workers=3, **make)
    rest = Augmented(lazy, labels, start_batch=4, **make)
    for n, (a, b) in enumerate(Augmented(x, y, **make)[i] for i in range(7)):
        for batches, place in ((ahead, n), (rest, n - 4)):
            if place >= 0:
                np.testing.assert_array_equal(batches[place][0], a)
                np.testing.assert_array_equal(batches[place][1], b)


@any_backend
def test_which_file_is_of_which_split(tmp_path):
    x, y = images(30)

    def make(name, *files):
        for n, file in enumerate(files):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, x=x[10 * n :][:10], y=y[10 * n :][:10])
        return [split[0][:] for split in load(tmp_path / name)]

    train, test = make("folders", "train/a-0.npz", "train/a-1.npz", "test/a-0.npz")
    assert np.array_equal(train, x[:20]) and np.array_equal(test, x[20:])
    train, test = make("names", "my_train_1.npz", "my_train_2.npz", "my_val.npz")
    assert np.array_equal(train, x[:20]) and np.array_equal(test, x[20:])
    train, test = make("three", "train.npz", "val.npz", "test.npz")
    assert np.array_equal(train, x[:20]) and np.array_equal(test, x[20:])
    train, test = make("numbers", "x10.npz", "x9.npz", "x11.npz")  # 9, 10, 11
    order = np.concatenate([x[10:20], x[:10], x[20:]])
    assert len(train) == 24 and len(test) == 6
    again = [split[0][:] for split in load(tmp_path / "numbers")]
    assert np.array_equal(again[1], test)
    held = [n for n, image in enumerate(order) if any((image == t).all() for t in test)]
    assert np.array_equal(order[held], test) and np.array_equal(np.delete(order, held, 0), train)


def damaged(folder, what):
    """One fault in a folder of npy shards."""
    third = folder / "train-02-of-05.npy"
    labels = third.with_suffix(".labels.npy")
    x, y = np.load(third), np.load(labels)
    if what == "missing":
        third.unlink()
    elif what == "no labels":
        labels.unlink()
    elif what == "cut":
        third.write_bytes(third.read_bytes()[:-100])
    elif what == "empty":
        third.write_bytes(b"")
    elif what == "pickle":
        np.save(third, np.array([{}], object), allow_pickle=True)
    elif what == "npz":
        np.savez(folder / "train-05-of-06.npz", x=x, y=y)
    else:
        x, y = {
            "shape": (x[:, :, :5], y),
            "type": ((x / 255).astype("float32"), y),
            "integers": (x.astype("int32"), y),
            "order": (np.asfortranarray(x), y),
            "flat": (x.reshape(len(x), -1), y),
            "lengths": (x, y[1:]),
            "text": (x, y.astype(str)),
            "negative": (x, np.where(np.arange(len(y)) == 7, -1, y)),
            "names": (x, np.where(np.arange(len(y)) == 4, 5, y)),
        }[what]
        np.save(third, x)
        np.save(labels, y)
    if what == "names":
        (folder / "class_names.txt").write_text("cat\ndog\nbird\n", encoding="utf-8")


@any_backend
@pytest.mark.parametrize(
    "what, message",
    {
        "missing": "train-02-of-05.npy is missing: 4 of 5 are there",
        "no labels": "There is no file .*train-02-of-05.labels.npy with the labels of",
        "cut": "train-02-of-05.npy is not a usable shard: it is cut short: 24 images of",
        "empty": "train-02-of-05.npy is not a usable shard: ",
        "pickle": "train-02-of-05.npy is not a usable shard: ",
        "npz": "holds train shards of several kinds: npy, npz",
        "shape": r"train-02-of-05.npy has images of shape \(8, 5, 3\), but train-00-of-05.npy has",
        "type": "train-02-of-05.npy has pixels of type float32, but train-00-of-05.npy has uint8",
        "integers": "train-02-of-05.npy is not a usable shard: images must be uint8 or float",
        "order": "train-02-of-05.npy is not a usable shard: images must be in C order",
        "flat": "train-02-of-05.npy is not a usable shard: images must be .n, height, width",
        "lengths": "train-02-of-05.npy is not a usable shard: 24 images need as many whole labels",
        "text": "train-02-of-05.npy is not a usable shard: 24 images need as many whole labels",
        "negative": "train-02-of-05.npy: image 7 has the label -1, but",
        "names": "train-02-of-05.npy: image 4 has the label 5, but there are the names of 3 class",
    }.items(),
)
def test_a_fault_is_told_in_one_line_with_its_file(what, message, tmp_path, capsys):
    write(tmp_path / "s", "npy")
    damaged(tmp_path / "s", what)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(tmp_path / "s")
    command = ["train", "isometric_tiny_cifar10", "--data", str(tmp_path / "s"), "--output"]
    assert cli.main([*command, str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@any_backend
def test_other_faults(tmp_path, monkeypatch):
    (x, y), _ = write(tmp_path / "npz", "npz")
    folder = tmp_path / "npz"
    np.savez(folder / "test-00-of-01.npz", x=x[:5], y=np.array([0, 1, 7, 1, 0]))
    with pytest.raises(ValueError, match="test-00-of-01.npz: image 2 has the label 7, but there"):
        load(folder)
    np.savez(folder / "test-00-of-01.npz", images=x[:5])
    with pytest.raises(ValueError, match="it lacks the keys x and y; it has .'images'."):
        load(folder)
    (folder / "test-00-of-01.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="test-00-of-01.npz is not a usable shard"):
        load(folder)
    # compressed: as a whole, or not at all
    write(tmp_path / "packed", "compressed")
    np.testing.assert_array_equal(load(tmp_path / "packed", stream=None)[0][0], x)
    with pytest.raises(ValueError, match="train-00-of-05.npz is compressed, so that no image"):
        load(tmp_path / "packed", stream=True)
    # cut short while it is in use
    write(tmp_path / "npy", "npy")
    (lazy, _), _ = load(tmp_path / "npy")
    first = tmp_path / "npy" / "train-00-of-05.npy"
    first.write_bytes(first.read_bytes()[:-50])
    with pytest.raises(ValueError, match="train-00-of-05.npy is shorter than when it was opened"):
        lazy[20:]
    shutil.rmtree(tmp_path / "npz")
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "test.npz", x=x, y=y)
    with pytest.raises(ValueError, match="holds no training shards"):
        load(tmp_path / "npz")


@any_backend
def test_records_that_are_damaged(tmp_path, monkeypatch):
    tf = pytest.importorskip("tensorflow")
    write(tmp_path / "s", "tfrecord")
    shard = tmp_path / "s" / "train-02-of-05.tfrecord"
    good = shard.read_bytes()
    shard.write_bytes(good[:-30])
    with pytest.raises(ValueError, match="02-of-05.tfrecord is not a usable shard: record 23"):
        load(tmp_path / "s")
    wrong = bytearray(good)
    wrong[40] ^= 1
    shard.write_bytes(bytes(wrong))
    with pytest.raises(ValueError, match="usable shard: record 0 is damaged or cut short"):
        load(tmp_path / "s")
    with tf.io.TFRecordWriter(str(shard)) as file:
        file.write(tf.train.Example().SerializeToString())
    with pytest.raises(ValueError, match="usable shard: record 0: it has no feature label or"):
        load(tmp_path / "s")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(RuntimeError, match="need TensorFlow: pip install 'dynzoo.tensorflow.'"):
        load(tmp_path / "s")


@any_backend
def test_records_of_other_sizes_are_brought_to_one(tmp_path):
    write(tmp_path / "s", "tfrecord")
    (x, _), _ = load(tmp_path / "s", image_shape=(4, 4, 1))
    assert x.shape == (120, 4, 4, 1) and x[:3].shape == (3, 4, 4, 1)


@any_backend
def test_a_folder_of_pictures_with_an_array_in_it_is_one_of_pictures(tmp_path):
    write(tmp_path / "s", "npy")
    assert sharded_images.is_sharded(tmp_path / "s")
    (tmp_path / "s" / "logs").mkdir()
    assert sharded_images.is_sharded(tmp_path / "s")
    (tmp_path / "s" / "cat").mkdir()
    assert not sharded_images.is_sharded(tmp_path / "s")


@any_backend
def test_names_of_classes(tmp_path):
    write(tmp_path / "s", "npy")
    assert data.class_names(tmp_path / "s") == ["0", "1", "2"]
    (tmp_path / "s" / "labels.txt").write_text("cat\ndog\nbird\n", encoding="utf-8")
    assert data.class_names(tmp_path / "s") == ["cat", "dog", "bird"]


@any_backend
def test_what_the_writer_refuses(tmp_path):
    x, y = images(10)
    for arguments, message in [
        (([(x, y[1:])],), "images and labels must be as many. Received: 10 and 9"),
        (([],), "`batches` must give at least one image"),
        (([(x, y)], "valid"), "`split` must be 'train' or 'test'"),
    ]:
        with pytest.raises(ValueError, match=message):
            data.write_shards(tmp_path / "s", *arguments)
    files = data.write_shards(tmp_path / "s", [(x, y)], shard_bytes=600)
    assert [f.name for f in files] == [f"train-{n:05}-of-00004.npy" for n in range(4)]
    with pytest.raises(ValueError, match="holds train shards already"):
        data.write_shards(tmp_path / "s", [(x, y)])
    assert len(list((tmp_path / "s").iterdir())) == 8


# Training


@pytest.fixture
def streamed(monkeypatch):
    """Sets of any size stay in their files."""
    monkeypatch.setattr(sharded_images, "_IN_MEMORY", 0)


def train(source, output, **more):
    return loop.train(
        RECIPE, data_file=source, output=output, verbose=0, log=lambda line: None, **more
    )


def same_weights(one, other):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_run_is_that_of_images_in_memory(tmp_path, streamed):
    (x, y), (x_test, y_test) = write(tmp_path / "s", "npy")
    np.savez(tmp_path / "all.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    ((kept, _), _), _ = hold_out(loop.recipes.load(RECIPE), tmp_path / "s")
    assert isinstance(kept, ShardedImages)
    whole = train(str(tmp_path / "all.npz"), tmp_path / "whole")
    model = train(str(tmp_path / "s"), tmp_path / "parts")
    same_weights(whole, model)
    logs = [
        [line.split(",")[2:] for line in (tmp_path / run / "log.csv").read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    assert logs[0] == logs[1]  # all but the seconds
    # the same images, wherever they are: either run goes on with the other's
    train(str(tmp_path / "s"), tmp_path / "whole", resume=True)
    (lazy, _), _ = load(tmp_path / "s")
    for a, b in zip(
        labels_and_radii(model, lazy.astype("float32")),
        labels_and_radii(model, data.to_float(x)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    history = dynzoo.training.finetune(model, lazy, y, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_other_images_are_not_gone_on_with(tmp_path, streamed):
    write(tmp_path / "s", "npy")
    train(str(tmp_path / "s"), tmp_path / "run", max_seconds=1e-3)
    file = tmp_path / "s" / "train-01-of-05.npy"
    x = np.load(file)
    np.save(file, 255 - x)
    with pytest.raises(checkpoints.CheckpointError, match="was trained on other images"):
        train(str(tmp_path / "s"), tmp_path / "run", resume=True)


@any_backend
def test_the_hash_of_a_large_set_sees_all_parts_of_it(tmp_path, monkeypatch):
    from dynzoo.training import run as records

    monkeypatch.setattr(records, "_HASHED_WHOLE", 0)
    monkeypatch.setattr(records, "_HASHED", 30)
    (x, y), _ = write(tmp_path / "s", "npy")

    def identity():
        (lazy, labels), _ = load(tmp_path / "s")
        run = records.Run(loop.recipes.load(RECIPE), tmp_path)
        run.trains_on(lazy, labels)
        return run.state["images"]

    seen = {identity()}
    for n in range(5):
        file = tmp_path / "s" / f"train-{n:02}-of-05.npy"
        np.save(file, 255 - np.load(file))
        seen.add(identity())
    assert len(seen) == 6 and identity() in seen


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_batches(tmp_path, streamed):
    """By SIGKILL, within its second epoch."""
    write(tmp_path / "s", "npy")
    statement = (
        "from dynzoo.data import sharded_images\nsharded_images._IN_MEMORY = 0\n"
        f"training.train({RECIPE!r}, {str(tmp_path / 's')!r}, {str(tmp_path / 'run')!r}, verbose=0)"
    )
    killed = in_new_process(KILLED.format(batch=6, statement=statement))
    assert killed.returncode == -9, killed.stderr
    same_weights(
        train(str(tmp_path / "s"), tmp_path / "run", resume=True),
        train(str(tmp_path / "s"), tmp_path / "whole"),
    )


def test_the_same_evaluation(tmp_path):
    (x, y), _ = write(tmp_path / "s", "npy")
    (lazy, _), _ = data.load(tmp_path / "s", stream=True)
    model = loop.build_model(loop.recipes.load(RECIPE), 3, SHAPE)
    more = dict(eps=[0.1], attacks="none", verbose=False)
    one = dynzoo.evaluate(model, lazy, y, **more)
    other = dynzoo.evaluate(model, data.to_float(x), y, **more)
    assert (one.clean, one.certified) == (other.clean, other.certified)
