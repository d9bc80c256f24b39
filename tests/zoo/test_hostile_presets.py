"""What a preset folder may not hold: one clear line each, before anything is built."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hostile_presets as hostile
import keras
import numpy as np
import pytest
from helpers import slow_elsewhere

from dynzoo import backend
from dynzoo.zoo import preset_folder
from dynzoo.zoo.declared_sizes import Declared, planned

LARGE, STORED = hostile.large(), hostile.stored()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return hostile.write(tmp_path_factory.mktemp("original") / "tiny")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "p")


def refused(folder, match, **options):
    """The one line with which a folder is refused."""
    with pytest.raises(ValueError, match=match) as error:
        preset_folder.from_preset(folder, **options)
    text = str(error.value)
    assert "\n" not in text and len(text.replace(str(folder), "")) <= 300, text
    assert str(folder) in text
    return text


def test_the_untouched_folder_is_read(folder):
    assert preset_folder.from_preset(folder).output_shape == (None, 3)


# Sizes


_MEASURE = """
import json, resource, sys
import keras
import dynzoo
from pathlib import Path
from dynzoo.zoo import preset_folder
from hostile_presets import edit, large, layers_of, rewrite, stored, write
import shutil

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

root = Path(sys.argv[1])
write(root / "first")
preset_folder.from_preset(root / "first")
folders = {}
for i, (name, (change, _)) in enumerate(large().items()):
    folders[name] = shutil.copytree(root / "first", root / f"l{i}")
    edit(folders[name], change)
for i, name in enumerate(["compressed", "unwritten", "virtual", "one too many"]):
    folders[name] = shutil.copytree(root / "first", root / f"s{i}")
    rewrite(folders[name], stored()[name][0])
# wide text takes most memory as Python objects
folders["long"] = shutil.copytree(root / "first", root / "long")
edit(folders["long"], lambda c: layers_of(c)[1]["config"].update(units=[[]] * 10**6))
folders["longer"] = shutil.copytree(root / "first", root / "longer")
edit(folders["longer"], lambda c: layers_of(c)[1]["config"].update(units=[[]] * 2 * 10**6))
# where the guard is missing, this fails instead of taking the machine's memory
limit = status("VmSize") + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
found = {}
for name, folder in folders.items():
    for load_weights in (True, False):
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        try:
            preset_folder.from_preset(folder, load_weights=load_weights)
            kind, text = "accepted", ""
        except (ValueError, MemoryError) as error:
            kind, text = type(error).__name__, str(error).replace(str(folder), "FOLDER")
        found[f"{name} {load_weights}"] = [kind, text, (status("VmHWM") - before) / 2**20]
print("FOUND" + json.dumps(found))
"""


MEASURED = [*LARGE, "compressed", "unwritten", "virtual", "one too many", "long", "longer"]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """How a process of its own, whose memory is limited, took each of the folders."""
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("needs Linux")
    here = Path(__file__).parents[1]
    paths = os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path_factory.mktemp("measured"))],
        env={**os.environ, "PYTHONPATH": paths, "KERAS_BACKEND": backend.name()},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("FOUND")[2])


@slow_elsewhere
@pytest.mark.parametrize("kind", MEASURED)
@pytest.mark.parametrize("load_weights", [True, False])
def test_what_the_files_do_not_hold_is_refused_before_it_takes_memory(refusals, kind, load_weights):
    error, text, mebibytes = refusals[f"{kind} {load_weights}"]
    assert error == "ValueError" and mebibytes < 200
    assert "\n" not in text and len(text) <= 300 and "FOLDER" in text
    reasons = {"long": "more than 262,144 values", "longer": "bytes; at most"}
    reason = {**STORED, **LARGE}[kind][1] if kind not in reasons else reasons[kind]
    assert re.search(reason, text), text


def test_a_model_that_is_planned_first_is_the_same_model(folder):
    """Names, weights, values and what the backend sees of them."""
    config = json.loads((folder / "config.json").read_text())
    for entry in config["config"]["layers"][1:]:
        entry["config"]["kernel_initializer"]["config"]["seed"] = 3
    direct = preset_folder._deserialize(config, folder)
    with planned(Declared(1000, 10)) as fill:
        model = preset_folder._deserialize(config, folder)
    assert all(v._value is None for v in model.variables)
    fill(model)
    assert [v.path for v in model.variables] == [v.path for v in direct.variables]
    for a, b in zip(model.get_weights(), direct.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    if backend.name() == "torch":
        names = [[n for n, _ in m.named_parameters()] for m in (model, direct)]
        assert names[0] == names[1]
        assert sorted(model.state_dict()) == sorted(direct.state_dict())


def test_a_refused_model_leaves_nothing_behind(folder):
    """Weights that wait for values would get them, and their memory, at Keras' next chance."""
    hostile.edit(folder, LARGE["two modest numbers"][0])
    refused(folder, "more than the files hold")
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    with keras.StatelessScope():
        inner = keras.layers.Dense(5)
        inner.build((None, 2))
    assert [tuple(w.shape) for w in inner.get_weights()] == [(2, 5), (5,)]
    from keras.src.backend.common import global_state

    assert not global_state.get_global_attribute("uninitialized_variables")


@pytest.mark.skipif(backend.name() != "torch", reason="the others trace without values")
def test_a_trace_that_fails_is_not_tried_again_with_a_large_tensor():
    made = []

    class Host(keras.layers.Layer):
        def call(self, x):
            if x.device.type != "meta":
                made.append(tuple(x.shape))
            x = keras.ops.convert_to_tensor(keras.ops.convert_to_numpy(x) * 1.0)
            return keras.ops.repeat(x, 500, axis=1)

    with pytest.raises(Exception, match="too large to be traced"), backend.small_traces(10**5):
        Host()(keras.Input((10**4,)))
    assert made == []
    with pytest.raises(Exception, match="too large to be traced"), backend.small_traces(10**5):
        Host()(keras.Input((10,)))
    with backend.small_traces(10**5):
        assert Host()(keras.Input((2,))).shape == (None, 1000)


# The weights file


@pytest.mark.parametrize("kind", STORED)
def test_weights_files_hold_the_weights_and_nothing_else(folder, kind):
    change, reason = STORED[kind]
    hostile.rewrite(folder, change)
    assert "model.weights.h5" in refused(folder, reason)


def test_bfloat16_weights_are_read_and_their_nan_is_found(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, dtype="bfloat16")])
    preset_folder.save_to_preset(model, tmp_path / "b")
    again = preset_folder.from_preset(tmp_path / "b")
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a.astype("float32"), b.astype("float32"))

    def spoil(file):
        values = file["layers/dense/vars/0"]
        bits = np.frombuffer(values[()].tobytes(), np.uint16).copy()
        bits[0] = 0x7FC0
        values[()] = bits.view(values.dtype).reshape(values.shape)

    hostile.rewrite(tmp_path / "b", spoil)
    refused(tmp_path / "b", "holds NaN or infinity")


def test_nothing_is_saved_that_could_not_be_read(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.set_weights([np.full((4, 3), np.nan, "float32"), np.zeros(3, "float32")])
    with pytest.raises(ValueError, match="cannot be saved.*NaN or infinity"):
        preset_folder.save_to_preset(model, tmp_path / "no")
    assert list(tmp_path.iterdir()) == []


# Files


@pytest.mark.parametrize("name", ["metadata.json", "config.json", "model.weights.h5"])
@pytest.mark.parametrize("kind", ["outside", "inside", "folder", "pipe"])
def test_only_regular_files_of_the_folder_are_read(folder, name, kind):
    file = folder / name
    other = (folder if kind == "inside" else folder.parent) / f"other_{name}.txt"
    file.rename(other)
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(other)
    reason = "is a link" if kind in ("inside", "outside") else "not a regular file"
    assert name in refused(folder, reason)


@pytest.mark.parametrize("name", ["../p/model.weights.h5", "/etc/hostname", "config.json"])
def test_shards_are_listed_weights_files(tmp_path, monkeypatch, name):
    monkeypatch.setattr(preset_folder, "_SHARD_BYTES", 100)
    folder = hostile.write(tmp_path / "p")
    assert (folder / "model_00001.weights.h5").is_file()
    assert preset_folder.from_preset(folder).output_shape == (None, 3)
    kept = shutil.copytree(folder, tmp_path / "kept")

    def change(index):
        index["weight_map"]["/layers/dense/vars"] = name

    hostile.edit(folder, change, "model.weights.json")
    refused(folder, "does not list as a weights file")
    (kept / "model_00001.weights.h5").rename(tmp_path / "away.h5")
    (kept / "model_00001.weights.h5").symlink_to(tmp_path / "away.h5")
    refused(kept, "model_00001.weights.h5 is refused: it is a link")


@pytest.mark.parametrize("name", ["metadata.json", "config.json"])
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"{", b'{"name": "a", "name": "b",', "the key 'name' stands there twice"),
        (b"{", b'{"x": NaN,', "contains NaN"),
        (b"{", b'{"x": [-Infinity],', "contains -Infinity"),
        (b"{", b'{"x": 1e999,', "which float64 cannot hold"),
        (b"{", b'{"x": "\xff",', "not UTF-8"),
        (b"{", b'{"x": ' + b"[" * 150 + b"]" * 150 + b",", "nested deeper"),
        (b"{", b'{"x": ' + b"9" * 5000 + b",", "is damaged"),
        (b"{", b'{"x": "' + b"a" * 5 * 2**20 + b'",', "at most 4,194,304 are read"),
    ],
)
def test_json_has_one_meaning(folder, name, old, new, reason):
    file = folder / name
    file.write_bytes(file.read_bytes().replace(old, new, 1))
    if name != "metadata.json":
        hostile.rehash(folder)
    assert name in refused(folder, reason)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_classes", 4),
        ("num_classes", "3"),
        ("num_classes", 3.0),
        ("parameters", 52),
        ("input_shape", [5]),
        ("input_shape", [4, 1]),
        ("accuracy", 1.5),
        ("accuracy", "high"),
        ("certified_accuracy", {"36/255": -0.1}),
        ("certified_accuracy", [0.5]),
        ("dataset", ["a"]),
    ],
)
def test_metadata_that_contradict_the_model(folder, key, value):
    hostile.edit(folder, lambda m: m.update({key: value}), "metadata.json")
    assert key in refused(folder, "metadata.json is refused")


# Classes


def _layer(class_name, module="keras.layers", **config):
    name = {"name": "added_0", **config}
    return {
        "module": module,
        "class_name": class_name,
        "config": name,
        "registered_name": None,
    }


CLASSES = {
    "Layer": _layer("Layer"),
    "Layer by its module": _layer("Layer", "keras.src.layers.layer"),
    "Wrapper": _layer("Wrapper"),
    "Operation": _layer("Operation", "keras.src.ops.operation"),
    "IndexLookup": _layer("IndexLookup", "keras.src.layers.preprocessing.index_lookup"),
    "StringLookup": _layer("StringLookup", vocabulary="/etc/hostname"),
    "IntegerLookup": _layer("IntegerLookup", vocabulary="/etc/hostname"),
    "TextVectorization": _layer("TextVectorization", vocabulary="/etc/hostname"),
    "Hashing": _layer("Hashing", num_bins=3),
    "Lambda": _layer("Lambda"),
    "Lambda by its module": _layer("Lambda", "keras.src.layers.core.lambda_layer"),
    "TFSMLayer": _layer("TFSMLayer", filepath="/etc"),
    "BasePooling": _layer("BasePooling", "keras.src.layers.pooling.base_pooling"),
    "Map": _layer("Map", "keras.src.ops.core"),
    "KerasTensor": _layer("KerasTensor", "keras.src.layers.layer", shape=[3]),
    "Metric": _layer("Metric", "keras.src.layers.layer"),
    "not there": _layer("NoSuchLayer"),
    "no module": _layer("Dense", "keras.layers.no.such.module"),
    "Functional by another name": _layer("Variable", "keras.src.models.model"),
    "an optimizer of ours": {
        **_layer("RiemannianMuon"),
        "registered_name": "dynzoo>RiemannianMuon",
    },
    "a loss of ours": {**_layer("MulticlassHinge"), "registered_name": "dynzoo>MulticlassHinge"},
    "quantised": _layer("QuantizedDTypePolicy", "keras.dtype_policies", mode="int8"),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_that_are_no_parts_of_a_network(folder, kind):
    hostile.edit(folder, hostile.set_layers(CLASSES[kind]))
    assert "config.json" in refused(folder, "is refused: (it contains|this version)")


def _first(config):
    return hostile.layers_of(config)[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: _first(c)["config"].update(dtype="int8_from_float32"), "`dtype` is"),
        (lambda c: _first(c)["config"]["dtype"]["config"].update(name="float8"), "'float8'"),
        (lambda c: c.update(compile_config={"optimizer": "adam"}), "`compile_config`"),
        (lambda c: _first(c)["config"].update(quantization_config={"a": 1}), "quantised"),
        (lambda c: _first(c)["config"].update(unknown="x" * 5000), "does not describe a model"),
        (lambda c: c["config"].pop("output_layers"), "does not describe a model"),
        (lambda c: _first(c)["config"].update(units="a" * 4000), "does not describe a model"),
        (lambda c: _first(c).update(inbound_nodes=[]), "config.json"),
    ],
)
def test_configs_that_describe_nothing_allowed(folder, change, reason):
    hostile.edit(folder, change)
    refused(folder, reason)


def test_a_model_without_an_input_is_refused(folder):
    def change(config):
        layer = {**_layer("Dense", units=3), "name": "d"}
        config.clear()
        config.update(_layer("Sequential", "keras", layers=[layer]))

    hostile.edit(folder, change)
    refused(folder, "config.json")
