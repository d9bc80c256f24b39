"""Images attacked in parts: the outcomes are those of the plan, whoever computes them."""

import os
import pickle
import threading

import keras
import numpy as np
import pytest
from helpers import slow_elsewhere
from hypothesis import given
from hypothesis import strategies as st
from robustness_fixtures import MarginCertificate, centroids, held_out

from dynzoo.attacks import PGD
from dynzoo.cli import main
from dynzoo.inference import packed as packed_models
from dynzoo.robustness import shards as shards_module
from dynzoo.robustness.evaluation import evaluate
from dynzoo.robustness.refutation import CertificateViolation
from dynzoo.robustness.shard_files import missing, shard_file
from dynzoo.robustness.shards import attack_packed, default_shards, pack, ranges
from dynzoo.zoo.preset_folder import save_to_preset

EPS = (0.1, 0.4)
IMAGES = 30


@pytest.fixture(scope="module")
def model():
    return centroids()


def evaluated(model, **kwargs):
    attacks = [PGD(steps=5), PGD(steps=5, loss="ce", random_start=True)]
    given = dict(eps=EPS, attacks=attacks, certificate=False, checks="quick")
    return evaluate(model, *held_out(IMAGES), **(given | kwargs))


def same(one, other):
    """Every bit of what fell, and the points that are kept."""
    for name in ("correct", "attacked", "broken", "passes"):
        np.testing.assert_array_equal(getattr(one.outcomes, name), getattr(other.outcomes, name))
    assert one.outcomes.attacks == other.outcomes.attacks
    assert one.robust == other.robust and one.warnings == other.warnings
    assert len(one.examples) == len(other.examples)
    for a, b in zip(one.examples, other.examples, strict=True):
        np.testing.assert_array_equal(a.x_adv, b.x_adv)


@pytest.mark.any_backend
@given(images=st.integers(1, 500), data=st.data())
def test_parts_hold_each_image_once(images, data):
    count = data.draw(st.integers(1, images))
    parts = ranges(images, count)
    assert [row for part in parts for row in part] == list(range(images))
    assert len(parts) == count and max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.any_backend
@given(images=st.integers(1, 20_000), batch_size=st.integers(1, 512))
def test_default_parts_do_not_depend_on_the_workers(images, batch_size):
    count = default_shards(images, batch_size)
    assert 1 <= count <= images
    assert max(map(len, ranges(images, count))) <= batch_size


@slow_elsewhere
def test_processes_find_what_one_finds(model, tmp_path):
    here = evaluated(model, shards=4)
    assert 0 < here.robust[0.4] < here.clean  # some fall, some resist
    one = evaluated(model, shards=4, jobs=1)
    two = evaluated(model, shards=4, jobs=2, checkpoint=tmp_path / "parts")
    same(one, two)
    # the threads of this process may be more: the same to rounding, of which nothing hangs here
    np.testing.assert_array_equal(here.outcomes.broken, two.outcomes.broken)
    assert missing(tmp_path / "parts", 4) == []


def test_parts_go_on_and_a_lost_one_is_done_again(model, tmp_path, monkeypatch):
    whole = evaluated(model, shards=3, checkpoint=tmp_path)
    os.remove(shard_file(tmp_path, 1, 3))
    shard_file(tmp_path, 2, 3).rename(tmp_path / "elsewhere")
    assert missing(tmp_path, 3) == [2, 3]
    attacked = []
    run = shards_module.Campaign._attack

    def counted(self):
        attacked.append(len(self.y))
        return run(self)

    monkeypatch.setattr(shards_module.Campaign, "_attack", counted)
    same(evaluated(model, shards=3, checkpoint=tmp_path), whole)
    assert missing(tmp_path, 3) == []


def test_a_part_of_another_plan_is_refused(model, tmp_path):
    evaluated(model, shards=3, checkpoint=tmp_path)
    os.rename(shard_file(tmp_path, 0, 3), shard_file(tmp_path, 0, 2))
    with pytest.raises(ValueError, match="has other shard"):
        evaluated(model, shards=2, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(jobs=0), "`jobs` must be"),
        (dict(shards=0), "`shards` must be"),
        (dict(shards=31), r"`shards` must be at most the number of images, 30\. Received: .*31"),
        (dict(jobs=2, attacks="none"), "`jobs` needs attacks"),
        (dict(shards=2, attacks="none"), "`shards` needs attacks"),
    ],
)
def test_bad_numbers_are_named(model, given, message):
    with pytest.raises(ValueError, match=message):
        evaluated(model, **given)


def test_a_file_is_no_folder(model, tmp_path):
    file = tmp_path / "one.npz"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="`checkpoint` must be a folder"):
        evaluated(model, shards=2, checkpoint=file)
    assert file.read_bytes() == b""


def test_a_certificate_is_refuted_from_another_process(model, tmp_path):
    # A certificate that promises far too much.
    with pytest.raises(CertificateViolation) as caught:
        evaluated(
            model,
            shards=3,
            jobs=2,
            certificate=MarginCertificate(model, 100.0),
            attack_certified="all",
            checkpoint=tmp_path / "parts",
        )
    found = caught.value
    x, _ = held_out(IMAGES)
    np.testing.assert_array_equal(found.x, x[found.index].astype("float32"))
    assert found.distance < found.radius
    assert (tmp_path / f"counterexample_{found.index}.npz").is_file()
    again = pickle.loads(pickle.dumps(found))
    assert again.index == found.index and again.radius == found.radius


def test_workers_of_another_backend_are_refused(model):
    packed = pack(model, [[]], 0)
    packed.backend = "numpy"
    with pytest.raises(ValueError, match="start them with KERAS_BACKEND=numpy"):
        attack_packed(packed, None)


def test_classes_of_ones_own_travel():
    inputs = keras.Input((4,))
    local = type("Local", (keras.layers.Layer,), {"call": lambda self, x: 2.0 * x})
    model = keras.Model(inputs, keras.layers.Dense(3)(local()(inputs)))
    there, attacks = packed_models._unpack(pack(model, [[PGD(eps=0.5)]], 0).content)
    x = np.random.default_rng(0).random((5, 4)).astype("float32")
    np.testing.assert_array_equal(
        there.predict(x, verbose=0), model.predict(x, verbose=0)
    )  # its weights too
    assert attacks[0][0].eps == 0.5


def test_what_cannot_travel_is_named():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="odd")
    attack = PGD(eps=0.5)
    attack.lock = threading.Lock()
    with pytest.raises(ValueError, match="`jobs` needs a model and attacks.* odd cannot"):
        pack(model, [[attack]], 0)
    with pytest.raises(ValueError, match="A worker cannot make the model"):
        packed_models._unpack(np.frombuffer(pickle.dumps(({}, b"no model")), dtype=np.uint8))


# --- the command ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "0/3"], "must be a part such as 3/16"),
        (["--shard", "4/3"], "must be a part such as 3/16"),
        (["--shard", "1/3"], "--shard needs --checkpoint FOLDER"),
        (["--shard", "1/3", "--checkpoint", "f", "--output", "a.html"], "--output is of a whole"),
        (["--jobs", "2", "--attacks", "none"], "--jobs has nothing to share"),
        (["--shards", "2", "--attacks", "none", "--local", "crown"], "need attacks"),
    ],
)
def test_the_command_names_bad_options(options, message, capsys):
    try:
        code = main(["evaluate", "isometric_mini_cifar10", "--dataset", "cifar10", *options])
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and message in capsys.readouterr().err


def test_merge_names_a_folder_without_parts(tmp_path, capsys):
    assert main(["merge", str(tmp_path)]) == 2
    assert "has no plan.json" in capsys.readouterr().err


@slow_elsewhere
def test_parts_of_a_queue_make_the_report_of_one_command(tmp_path, capsys):
    x, y = np.random.default_rng(0).random((6, 8, 8, 3)).astype("float32"), np.arange(6) % 3
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    preset = str(tmp_path / "preset")
    save_to_preset(keras.Sequential(layers), preset)
    parts = str(tmp_path / "parts")
    given = ["evaluate", preset, "--data", str(tmp_path / "d.npz"), "--attacks", "fast"]
    given += ["--eps", "0.05", "--batch-size", "2"]
    assert main([*given, "--shard", "2/3", "--checkpoint", parts]) == 0
    assert "part 2 of 3 is in" in (said := capsys.readouterr().out) and "2 are missing" in said
    assert main(["merge", parts]) == 2
    assert "parts 1, 3 of 3 are missing" in capsys.readouterr().err
    assert main([*given, "--seed", "1", "--shard", "1/3", "--checkpoint", parts]) == 2
    assert "holds parts of an evaluation with other seed" in capsys.readouterr().err
    for number in (1, 3):
        assert main([*given, "--shard", f"{number}/3", "--checkpoint", parts]) == 0
    assert "next: dynzoo merge" in capsys.readouterr().out
    merged, whole = (tmp_path / name for name in ("merged.csv", "whole.csv"))
    assert main(["merge", parts, "--output", str(merged)]) == 0
    assert main([*given, "--shards", "3", "--output", str(whole)]) == 0
    assert merged.read_text() == whole.read_text()


def test_parts_of_a_network_without_a_certificate(tmp_path, capsys):
    x, y = np.random.default_rng(0).random((4, 3, 2, 1)).astype("float32"), np.arange(4) % 3
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    layers = [keras.Input((3, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    layers.append(keras.layers.LayerNormalization())
    preset, parts = str(tmp_path / "preset"), str(tmp_path / "parts")
    save_to_preset(keras.Sequential(layers), preset)
    given = ["evaluate", preset, "--data", str(tmp_path / "d.npz"), "--attacks", "fgsm"]
    given += ["--eps", "0.05", "--checkpoint", parts]
    for number in (1, 2):
        assert main([*given, "--shard", f"{number}/2"]) == 0
    assert main(["merge", parts]) == 0
    assert "no certificate: Layer 'layer_normalization" in capsys.readouterr().out
