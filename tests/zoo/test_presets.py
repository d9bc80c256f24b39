import copy
import hashlib
import json
import re
import shutil

import keras
import numpy as np
import pytest
from keras import layers, ops

import dynzoo
from dynzoo import backend
from dynzoo import layers as dl
from dynzoo.augmentation.batches import RandomCropFlip
from dynzoo.inference import class_names as labels
from dynzoo.training.finetuning import finetune
from dynzoo.zoo import cards, preset_folder, safe_config, shipped, variants
from dynzoo.zoo import files as preset_files


def _model(classes=4, compiled=False):
    inputs = keras.Input((8, 8, 3))
    x = RandomCropFlip(padding=1, seed=0)(inputs)
    x = dl.SpaceToDepth(2)(x)
    x = dl.OrthonormalPointwise(8)(x)
    x = dl.MaxMin()(x)
    x = layers.BatchNormalization()(x)
    x = x + layers.Conv2D(8, 3, padding="same", kernel_constraint="max_norm")(x)
    x = dl.OrthonormalDense(6)(layers.Flatten()(x))
    model = keras.Model(inputs, dl.UnitRowDense(classes, name="head")(x), name="small")
    if compiled:
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(_images(8), np.arange(8) % classes, batch_size=4, verbose=0)
    return model


def _images(n=5):
    return np.random.default_rng(0).random((n, 8, 8, 3)).astype("float32")


def _logits(model):
    return backend.to_numpy(model(_images(), training=False))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    keras.utils.set_random_seed(1)
    model = _model()
    folder = tmp_path_factory.mktemp("original") / "small"
    preset_folder.save_to_preset(model, folder, {"dataset": "digits", "accuracy": 0.5})
    return model, folder


@pytest.fixture
def saved(original, tmp_path):
    """A model and a copy of its preset, which the test may change."""
    model, folder = original
    return model, shutil.copytree(folder, tmp_path / "small")


def _rehash(folder):
    """What a malicious author can do, unlike an accident: fix the sums after a change."""
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text())
    for name in metadata["files"]:
        metadata["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(metadata))


def _edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_round_trip(saved):
    model, folder = saved
    again = preset_folder.from_preset(folder)
    np.testing.assert_array_equal(_logits(again), _logits(model))
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["name"] == "small" and metadata["dataset"] == "digits"
    assert metadata["parameters"] == model.count_params()
    assert metadata["num_classes"] == 4 and metadata["input_shape"] == [8, 8, 3]
    assert sorted(metadata["files"]) == ["config.json", "model.weights.h5"]
    assert "50.00 %" in (folder / "README.md").read_text()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["small"]


def test_sequential_round_trip_with_a_new_head(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(4)])
    preset_folder.save_to_preset(model, tmp_path / "s")
    np.testing.assert_array_equal(
        _logits(preset_folder.from_preset(tmp_path / "s")), _logits(model)
    )
    assert preset_folder.from_preset(tmp_path / "s", num_classes=7).output_shape == (None, 7)


def test_loaded_model_is_compiled_and_trains(saved):
    _, folder = saved
    model = preset_folder.from_preset(str(folder), num_classes=3)
    history = model.fit(_images(6), np.arange(6) % 3, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"][0]) and "accuracy" in history.history
    model.compile("sgd", "mse")  # the user's own overrides it
    assert model.loss == "mse"


def test_optimizer_is_not_stored(tmp_path):
    model = _model(compiled=True)
    preset_folder.save_to_preset(model, tmp_path / "trained")
    preset_folder.save_to_preset(
        preset_folder.from_preset(tmp_path / "trained"), tmp_path / "fresh"
    )
    np.testing.assert_array_equal(
        _logits(preset_folder.from_preset(tmp_path / "trained")), _logits(model)
    )
    sizes = [(tmp_path / n / "model.weights.h5").stat().st_size for n in ("trained", "fresh")]
    assert sizes[0] == sizes[1]
    assert "compile_config" not in (tmp_path / "trained" / "config.json").read_text()
    assert model.optimizer is not None  # and the model itself is left as it was


def test_new_classes_keep_the_body_bit_by_bit(saved):
    model, folder = saved
    other = preset_folder.from_preset(folder, num_classes=9)
    assert other.output_shape == (None, 9)
    compared = 0
    for old, new in zip(model.layers[:-1], other.layers[:-1], strict=True):
        for a, b in zip(old.get_weights(), new.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
            compared += 1
    assert compared >= 6
    body = keras.Model(model.input, model.layers[-2].output)
    other_body = keras.Model(other.input, other.layers[-2].output)
    np.testing.assert_array_equal(_logits(body), _logits(other_body))


def test_same_number_of_classes_keeps_the_head(saved):
    model, folder = saved
    np.testing.assert_array_equal(
        _logits(preset_folder.from_preset(folder, num_classes=4)), _logits(model)
    )


@pytest.mark.parametrize("num_classes", [0, 1, -2, 2.0, "3", True, 10**12])
def test_bad_number_of_classes(saved, num_classes):
    with pytest.raises(ValueError, match="`num_classes` must be an integer >= 2"):
        preset_folder.from_preset(saved[1], num_classes=num_classes)


def test_new_classes_need_a_head_with_units(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 8), layers.Flatten()])
    preset_folder.save_to_preset(model, tmp_path / "s")
    with pytest.raises(ValueError, match="last layer has `units`; 'flatten"):
        preset_folder.from_preset(tmp_path / "s", num_classes=3)


@pytest.mark.parametrize("num_classes", [4, 3])
@pytest.mark.parametrize("join", [ops.add, lambda a, b: ops.concatenate([a, b], axis=-1)])
def test_new_classes_need_logits_of_the_last_layer_alone(join, num_classes, tmp_path):
    x = keras.Input((4,))
    model = keras.Model(x, join(layers.Dense(4, name="skip")(x), layers.Dense(4, name="last")(x)))
    preset_folder.save_to_preset(model, tmp_path / "s")
    if model.output_shape[-1] == num_classes:
        same = preset_folder.from_preset(tmp_path / "s", num_classes=num_classes)
        assert same.output_shape == model.output_shape
        return
    with pytest.raises(ValueError, match="`num_classes` cannot be changed in"):
        preset_folder.from_preset(tmp_path / "s", num_classes=num_classes)


def test_a_temperature_behind_the_last_layer_is_kept_with_new_classes(tmp_path):
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(4)(layers.Dense(5)(x)) / 2.0)
    preset_folder.save_to_preset(model, tmp_path / "s")
    assert preset_folder.from_preset(tmp_path / "s", num_classes=3).output_shape == (None, 3)
    body = preset_folder.from_preset(tmp_path / "s", features_only=True)
    ones = np.ones((1, 4), "float32")
    expected = model.layers[1](ones)
    np.testing.assert_array_equal(backend.to_numpy(body(ones)), backend.to_numpy(expected))


def test_features_are_what_the_last_call_takes(tmp_path):
    x = keras.Input((4,))
    twice = layers.Dense(4)
    model = keras.Model(x, twice(twice(x)))
    preset_folder.save_to_preset(model, tmp_path / "twice")
    body = preset_folder.from_preset(tmp_path / "twice", features_only=True)
    ones = np.ones((1, 4), "float32")
    expected = backend.to_numpy(twice(ones))
    np.testing.assert_array_equal(backend.to_numpy(body(ones)), expected)
    model = keras.Model(x, ops.add(layers.Dense(4)(x), layers.Dense(4)(x)))
    preset_folder.save_to_preset(model, tmp_path / "sum")
    with pytest.raises(ValueError, match="`features_only` needs .* 'add.*' takes 2"):
        preset_folder.from_preset(tmp_path / "sum", features_only=True)


def test_without_weights_is_fresh(saved):
    model, folder = saved
    fresh = preset_folder.from_preset(folder, load_weights=False)
    assert fresh.count_params() == model.count_params()
    assert not np.array_equal(_logits(fresh), _logits(model))


def test_unknown_name_lists_the_presets(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "folders", lambda: {"one": tmp_path, "two": tmp_path})
    with pytest.raises(ValueError, match="no preset 'three'.*Presets: one, two"):
        preset_folder.from_preset("three")
    with pytest.raises(ValueError, match="lacks metadata.json"):
        preset_folder.from_preset(tmp_path)
    for name in (None, 3, ["one"], b"one"):
        with pytest.raises(
            ValueError, match="`name_or_path` must be the name of a preset or a path"
        ):
            preset_folder.from_preset(name)


def test_names_of_classes_are_kept_for_the_same_classes_only(saved, tmp_path):
    _, folder = saved
    plain = preset_folder.from_preset(folder)
    count = plain.output_shape[-1]
    names = [f"class {i}" for i in range(count)]

    def stored(model, about):
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        preset_folder.save_to_preset(model, tmp_path / "again", about)
        return json.loads((tmp_path / "again" / "metadata.json").read_text()).get("class_names")

    assert stored(plain, {"class_names": names}) == names
    named = preset_folder.from_preset(tmp_path / "again")
    assert labels.names_of(named) == names
    asked = preset_folder.from_preset(tmp_path / "again", num_classes=count)  # for other data
    assert labels.names_of(asked) is None
    assert stored(named, {}) == names
    assert stored(named, {"dataset": "photos"}) is None
    finetune(named, *_tiny_data(named), epochs=1, verbose=0)
    assert labels.names_of(named) is None and stored(named, {}) is None


def _tiny_data(model):
    x = np.random.default_rng(0).random((4, *model.input_shape[1:]), "float32")
    return x, np.arange(4) % model.output_shape[-1]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"class_names": ["a"]}, "class_names must be a list"),
        ({"class_names": "abc"}, "class_names must be a list"),
        ({"input_range": [1, 0]}, "input_range must be two finite numbers"),
        ({"input_range": [0, 1, 2]}, "input_range must be two finite numbers"),
        ({"resizing": 3}, "resizing must be text"),
    ],
)
def test_what_metadata_say_of_the_input_is_checked(saved, about, message):
    _, folder = saved
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, **about}))
    with pytest.raises(ValueError, match=f"metadata.json is refused: {message}"):
        preset_folder.from_preset(folder)


def test_shipped_presets_are_whole():
    for name, metadata in preset_folder.presets().items():
        assert metadata["name"] == name
        model = preset_folder.from_preset(name)
        assert model.count_params() == metadata["parameters"]
        x = ops.zeros((1, *metadata["input_shape"]), "float32")
        arguments = backend.weights_of(model), x
        logits = backend.jit_once(backend.inference(model), *arguments)(*arguments)
        assert backend.to_numpy(logits).shape == (1, metadata["num_classes"])


def test_names_come_from_folders_with_metadata(monkeypatch, saved):
    _, folder = saved
    (folder.parent / "unfinished").mkdir()
    monkeypatch.setattr(shipped, "root", lambda: folder.parent)
    assert list(preset_folder.presets()) == ["small"]
    assert preset_folder.presets()["small"]["accuracy"] == 0.5
    assert preset_folder.from_preset("small").name == "small"


# Damage


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_damaged_files_are_named(saved, name, damage):
    _, folder = saved
    file = folder / name
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(ValueError, match=name):
        preset_folder.from_preset(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "metadata.json is damaged"),
        ("[]", "no table 'files'"),
        ("{}", "no table 'files'"),
        ('{"files": {"config.json": 3}}', "no table 'files'"),
        ('{"files": {}, "format": 99}', "format 99.*update dynzoo"),
        ('{"files": {}}', "is not listed"),
        ("[" * 100_000, "metadata.json is damaged"),
    ],
)
def test_damaged_metadata(saved, text, message):
    _, folder = saved
    (folder / "metadata.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        preset_folder.from_preset(folder)


def test_unlisted_files_are_not_trusted(saved):
    _, folder = saved
    (folder / "model.weights.json").write_text("{}")
    with pytest.raises(ValueError, match="model.weights.json is not listed"):
        preset_folder.from_preset(folder)
    (folder / "model.weights.json").unlink()
    _edit(folder / "metadata.json", lambda m: m["files"].pop("model.weights.h5"))
    with pytest.raises(ValueError, match="model.weights.h5 is not listed"):
        preset_folder.from_preset(folder)
    (folder / "model.weights.h5").unlink()
    with pytest.raises(ValueError, match="lacks model.weights.h5"):
        preset_folder.from_preset(folder)


@pytest.mark.parametrize("name", ["../secret.json", "/etc/passwd", "..", "a/b.json", "a\\b", ""])
def test_listed_names_stay_inside_the_folder(saved, name):
    _, folder = saved
    (folder.parent / "secret.json").write_text("{}")
    _edit(folder / "metadata.json", lambda m: m["files"].update({name: "0" * 64}))
    with pytest.raises(ValueError, match="is not the plain name of a file"):
        preset_folder.from_preset(folder)


def test_weights_of_another_model_are_refused(saved, tmp_path):
    _, folder = saved
    preset_folder.save_to_preset(_model(classes=5), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.weights.h5", folder)
    _rehash(folder)
    with pytest.raises(ValueError, match="model.weights.h5 does not fit"):
        preset_folder.from_preset(folder)


# Attacks by the config: the sums are right, so only the allow-list stands between it and Keras


def _layer(module, class_name, config=None, registered_name=None):
    return {
        "module": module,
        "class_name": class_name,
        "config": config or {},
        "registered_name": registered_name,
    }


class _NotOurs(layers.Layer):
    made = 0

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        _NotOurs.made += 1


_EVIL = {
    "lambda layer": _layer("keras.layers", "Lambda", {"function": {"class_name": "__lambda__"}}),
    "marshalled code": _layer("builtins", "__lambda__", {"value": "4wEAAAA="}),
    "function": _layer("builtins", "function", "get_file"),
    "module os": _layer("os", "system", {"command": "true"}),
    "class of os": _layer("os", "PathLike"),
    "module subprocess": _layer("subprocess", "Popen", {"args": "true"}),
    "keras tool": _layer("keras.utils", "get_file", {"origin": "file:///etc/passwd"}),
    "keras class outside": _layer("keras.callbacks", "LambdaCallback"),
    "look-alike module": _layer("keras_evil.layers", "Dense"),
    "saved model": _layer("keras.layers", "TFSMLayer", {"filepath": "x"}),
    "pickled torch": _layer("keras.layers", "TorchModuleWrapper", {"module": "gASV"}),
    "vocabulary file": _layer("keras.layers", "StringLookup", {"vocabulary": "/etc/passwd"}),
    "no module": {"class_name": "Dense", "config": {"units": 3}},
    "another package": _layer("x", "NotOurs", {}, "test>NotOurs"),
    "another package as keras": _layer("keras.layers", "Dense", {}, "test>NotOurs"),
    "unknown of ours": _layer("dynzoo.layers", "FutureFlow", {}, "dynzoo>FutureFlow"),
    "not a name": _layer("keras.layers", ["Dense"]),
    "typespec": _layer("keras.layers", "__typespec__"),
}


@pytest.mark.parametrize("kind", _EVIL)
@pytest.mark.parametrize("where", ["model", "layer", "deep"])
def test_only_known_classes_are_made(saved, kind, where):
    _, folder = saved
    keras.saving.get_custom_objects()["test>NotOurs"] = _NotOurs
    evil = copy.deepcopy(_EVIL[kind])
    config = json.loads((folder / "config.json").read_text())
    if where == "model":
        config = evil
    elif where == "layer":
        config["config"]["layers"][2] = evil
    else:
        config["config"]["layers"][2]["config"]["anything"] = [{"a": [evil]}]
    (folder / "config.json").write_text(json.dumps(config))
    _rehash(folder)
    try:
        with pytest.raises(ValueError, match="config.json is refused") as error:
            preset_folder.from_preset(folder)
    finally:
        del keras.saving.get_custom_objects()["test>NotOurs"]
    assert "config.json" in str(error.value) and _NotOurs.made == 0


def test_config_that_is_no_model(saved):
    _, folder = saved
    (folder / "config.json").write_text(json.dumps(_layer("keras.layers", "ReLU")))
    _rehash(folder)
    with pytest.raises(ValueError, match="holds a ReLU, not a model"):
        preset_folder.from_preset(folder)
    for text in ("{}", "[]", "3", '{"class_name": "Functional", "module": "keras.models"}'):
        (folder / "config.json").write_text(text)
        _rehash(folder)
        with pytest.raises(ValueError, match="config.json"):
            preset_folder.from_preset(folder)


def test_every_keras_and_dynzoo_block_of_a_model_is_allowed():
    config = keras.saving.serialize_keras_object(_model(compiled=True))
    with pytest.raises(ValueError, match="keras.(optimizers|losses)"):
        safe_config.check_config(config)
    safe_config.check_config(safe_config.without_compile_config(config))


# Writing


def test_models_with_foreign_classes_are_refused_when_saving(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: 2 * x), layers.Dense(2)])
    with pytest.raises(ValueError, match="'sequential.*refused.*Lambda"):
        preset_folder.save_to_preset(model, tmp_path / "no")
    assert list(tmp_path.iterdir()) == []


def test_unbuilt_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be built"):
        preset_folder.save_to_preset(keras.Sequential([layers.Dense(2)]), tmp_path / "no")


def _two_inputs():
    one, two = keras.Input((8, 8, 3)), keras.Input((5,))
    joined = keras.layers.Concatenate()([keras.layers.Flatten()(one), two])
    return keras.Model([one, two], keras.layers.Dense(3)(joined), name="two")


def _two_outputs():
    image = keras.Input((8, 8, 3))
    flat = keras.layers.Flatten()(image)
    return keras.Model(
        image, [keras.layers.Dense(3)(flat), keras.layers.Dense(2)(flat)], name="two"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_two_inputs, r"Received: 'two' with 2 input\(s\) and 1 output"),
        (_two_outputs, r"Received: 'two' with 1 input\(s\) and 2 output"),
    ],
)
def test_models_with_several_ends_are_refused_and_nothing_is_written(tmp_path, make, message):
    with pytest.raises(ValueError, match=message) as error:
        preset_folder.save_to_preset(make(), tmp_path / "new")
    assert "`model` must have one input and one output" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_frozen_layers_train_again_unless_asked(tmp_path):
    model = _model()
    model.layers[1].trainable = False
    preset_folder.save_to_preset(model, tmp_path / "new")
    for arguments in ({}, {"num_classes": 7}, {"load_weights": False}):
        loaded = preset_folder.from_preset(tmp_path / "new", **arguments)
        assert all(layer.trainable for layer in loaded._flatten_layers())
        assert len(loaded.trainable_variables) == len(_model().trainable_variables)
    kept = preset_folder.from_preset(tmp_path / "new", keep_frozen=True)
    assert [layer.trainable for layer in kept.layers] == [layer.trainable for layer in model.layers]
    assert len(kept.trainable_variables) == len(model.trainable_variables)


@pytest.mark.parametrize("metadata", [{"accuracy": float("nan")}, {"model": object()}])
def test_bad_metadata_leaves_nothing_behind(tmp_path, metadata):
    with pytest.raises(ValueError, match="what JSON can hold"):
        preset_folder.save_to_preset(_model(), tmp_path / "no", metadata)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (["dataset"], "`metadata` must be a mapping"),
        ({"class_names": "abcd"}, "class_names must be a list of 4 texts"),
        ({"class_names": [1, 2, 3, 4]}, "class_names must be a list of 4 texts"),
        ({"input_range": 3}, "input_range must be two finite numbers"),
        ({"input_range": "ab"}, "input_range must be two finite numbers"),
    ],
)
def test_metadata_of_another_kind_are_named(metadata, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        preset_folder.save_to_preset(_model(), tmp_path / "no", metadata)
    assert list(tmp_path.iterdir()) == []


def test_arrays_of_names_and_ends_are_taken(tmp_path):
    about = {"class_names": np.array(list("abcd")), "input_range": np.array([0.0, 2.0])}
    preset_folder.save_to_preset(_model(), tmp_path / "new", about)
    written = preset_files.read_metadata(tmp_path / "new")
    assert written["class_names"] == list("abcd") and written["input_range"] == [0.0, 2.0]


def test_what_is_saved_and_where_is_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("", ".", tmp_path, tmp_path.parent, None, 3, b"x"):
        with pytest.raises(ValueError, match="`path` must be "):
            preset_folder.save_to_preset(_model(), path)
    assert tmp_path.samefile(".") and not list(tmp_path.iterdir())
    for model in (None, "model", layers.Dense(3)):
        with pytest.raises(ValueError, match="`model` must be a Keras model"):
            preset_folder.save_to_preset(model, "new")
    for name in (None, 3, b"a/b", ["a/b"]):
        with pytest.raises(ValueError, match="`repository` must be 'owner/name'"):
            preset_folder.push_to_hub(_model(), name)


def test_numpy_numbers_become_plain_ones(tmp_path):
    metadata = {"accuracy": np.float32(0.5), "eps": np.array([1, 2])}
    preset_folder.save_to_preset(_model(), tmp_path / "yes", metadata)
    written = json.loads((tmp_path / "yes" / "metadata.json").read_text())
    assert written["accuracy"] == 0.5 and written["eps"] == [1, 2]


def test_metadata_of_another_model_do_not_stick(saved, tmp_path):
    """A fine-tuned model is saved with its parent's metadata: what is counted is counted anew."""
    _, folder = saved
    parent = json.loads((folder / "metadata.json").read_text())
    tuned = preset_folder.from_preset(folder, num_classes=7)
    preset_folder.save_to_preset(tuned, tmp_path / "tuned", {**parent, "name": "tuned"})
    metadata = json.loads((tmp_path / "tuned" / "metadata.json").read_text())
    assert metadata["num_classes"] == 7 and metadata["files"] != parent["files"]
    assert preset_folder.from_preset(tmp_path / "tuned").output_shape == (None, 7)


def test_existing_folders_are_kept(saved, tmp_path):
    model, folder = saved
    with pytest.raises(FileExistsError, match="overwrite=True"):
        preset_folder.save_to_preset(model, folder)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="not a preset"):
            preset_folder.save_to_preset(model, tmp_path / "home", overwrite=overwrite)
    assert (tmp_path / "home" / "letter.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    preset_folder.save_to_preset(model, tmp_path / "empty")
    assert preset_folder.from_preset(tmp_path / "empty").output_shape == (None, 4)


def test_overwrite_swaps_the_whole_folder(saved):
    _, folder = saved
    (folder / "old.txt").write_text("of the old preset")
    preset_folder.save_to_preset(_model(classes=6), folder, overwrite=True)
    assert preset_folder.from_preset(folder).output_shape == (None, 6)
    assert not (folder / "old.txt").exists()
    assert [p.name for p in folder.parent.iterdir()] == ["small"]


@pytest.mark.parametrize("broken", ["weights", "card", "rename"])
def test_failure_while_writing_leaves_the_old_preset(saved, monkeypatch, broken):
    model, folder = saved
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    other = _model(classes=6)
    if broken == "weights":
        monkeypatch.setattr(keras.Model, "save_weights", fail)
    elif broken == "card":
        monkeypatch.setattr(preset_folder, "model_card", fail)
    else:
        rename = preset_files.Path.rename

        def only_away(self, target):
            if self.suffix == ".partial":
                fail()
            return rename(self, target)

        monkeypatch.setattr(preset_files.Path, "rename", only_away)
    with pytest.raises(OSError, match="no space"):
        preset_folder.save_to_preset(other, folder, overwrite=True)
    with pytest.raises(OSError, match="no space"):
        preset_folder.save_to_preset(other, folder.parent / "new")
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["small"]
    np.testing.assert_array_equal(_logits(preset_folder.from_preset(folder)), _logits(model))


def test_large_models_are_sharded(saved, tmp_path, monkeypatch):
    model, _ = saved
    # the largest array fits into a file, and not much beside it
    monkeypatch.setattr(preset_folder, "_SHARD_BYTES", max(w.nbytes for w in model.get_weights()))
    preset_folder.save_to_preset(model, tmp_path / "large")
    names = {p.name for p in (tmp_path / "large").iterdir()}
    shards = {n for n in names if n.endswith(".h5")}
    assert "model.weights.json" in names and len(shards) >= 2
    again = preset_folder.from_preset(tmp_path / "large")
    np.testing.assert_array_equal(_logits(again), _logits(model))

    weights = tmp_path / "large" / "model.weights.json"
    original = weights.read_text()
    _edit(weights, lambda w: w["weight_map"].update({"/vars": "../../other.weights.h5"}))
    _rehash(tmp_path / "large")
    with pytest.raises(ValueError, match="names '../../other.weights.h5'"):
        preset_folder.from_preset(tmp_path / "large")
    for text in ("[]", '{"weight_map": 3}'):
        weights.write_text(text)
        _rehash(tmp_path / "large")
        with pytest.raises(ValueError, match="model.weights.json is damaged"):
            preset_folder.from_preset(tmp_path / "large")
    weights.write_text(original)
    _rehash(tmp_path / "large")
    (tmp_path / "large" / min(shards)).unlink()
    with pytest.raises(ValueError, match=f"lacks {min(shards)}"):
        preset_folder.from_preset(tmp_path / "large")


def test_mixed_precision_model_comes_back(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, dtype="mixed_bfloat16")(inputs)
    model = keras.Model(inputs, layers.Dense(2, dtype="float32")(layers.Flatten()(x)))
    preset_folder.save_to_preset(model, tmp_path / "mixed")
    again = preset_folder.from_preset(tmp_path / "mixed")
    assert again.layers[1].compute_dtype == "bfloat16"
    np.testing.assert_array_equal(_logits(again), _logits(model))


# Cards


def test_card_says_what_is_known():
    text = cards.model_card(
        {
            "name": "tiny",
            "dataset": "cifar10",
            "accuracy": 0.7512,
            "certified_accuracy": {"36/255": 0.6, str(72 / 255): 0.45, "108/255": 0.3},
            "attacked_accuracy": {"36/255": 0.65},
            "parameters": 1234567,
            "lipschitz": 1.0000012,
            "training": {"hardware": "2 CPU cores", "seconds": 3700, "command": "dynzoo train x"},
            "files": {"config.json": "ab" * 32},
        }
    )
    assert text.startswith("# tiny\n")
    assert "| 0 (clean) | 75.12 % | 75.12 % |" in text
    assert "| 36/255 | 60.00 % | 65.00 % |" in text
    assert "| 72/255 | 45.00 % |  |" in text
    assert text.index("72/255") < text.index("108/255")
    for part in ("1,234,567", "1 h 1 min", "`dynzoo train x`", "ab" * 32, 'from_preset("tiny")'):
        assert part in text
    assert "proof" in text and "upper bound" in text


def test_card_explains_the_head_and_its_warnings():
    about = {"lipschitz": 1.21, "body_lipschitz": 1.0000017, "input_range": [0, 255]}
    about |= {"class_names": ["ant", "bee"], "input_shape": [8, 8, 3]}
    about |= {"certified_accuracy": {"1.0": 0.5}, "attacked_accuracy": {"1.0": 0.6}}
    about["evaluation"] = {"warnings": ["crossentropy-only-gap"]}
    text = cards.model_card(about)
    assert "All before the last layer is 1.0000017-Lipschitz." in text
    assert "8 x 8 x 3 in [0, 255]" in text and "images in [0, 255]" in text
    assert "class names: ant, bee" in text
    assert "`crossentropy-only-gap` says that" in text
    assert "All before" not in cards.model_card({**about, "body_lipschitz": 1.21})
    many = cards.model_card({"class_names": [f"class {i}" for i in range(100)]})
    assert "class 0, class 1, class 2, ... class 99; all of them in metadata.json" in many


@pytest.mark.parametrize(
    ("certified", "smoothing"),
    [(True, None), (False, {"sigma": 0.1, "samples": 50}), (False, None)],
)
def test_the_lines_that_a_card_gives_run(certified, smoothing, tmp_path):
    parts = [keras.Input((3, 3, 1)), layers.Flatten(), layers.Dense(3)]
    parts += [] if certified else [layers.LayerNormalization()]
    about = {"smoothing": smoothing, "evaluation": {"warnings": ["not-certified"]}}
    about = {"lipschitz": 1.0} if certified else about
    preset_folder.save_to_preset(keras.Sequential(parts), tmp_path / "own", about)
    lines = cards.usage(str(tmp_path / "own"), about)
    known = {"images": np.full((2, 3, 3, 1), 0.5, "float32")}
    exec("\n".join(lines), known)
    assert known["labels"].shape == (2,)
    assert ("radii" in known) == (certified or smoothing is not None)
    assert "\n".join(lines[3:]) in (tmp_path / "own" / "README.md").read_text()


def test_card_invents_nothing():
    text = cards.model_card({"name": "bare"})
    for word in ("%", "## Numbers", "## Training", "## Files", "None", "certified radius", "nan"):
        assert word not in text
    assert "Accuracy: 50.00 %" in cards.model_card({"accuracy": 0.5})
    unknown = {"accuracy": 0.5, "evaluation": {"warnings": [], "split": "test"}}
    assert "warnings" not in cards.model_card(unknown)


def tiny_network():
    parts = [
        keras.Input((8, 8, 3), name="image"),
        dl.MeanShift((0.4, 0.4, 0.4)),
        dl.SpaceToDepth(2),
        dl.OrthonormalPointwise(8, seed=0),
        layers.Flatten(),
        dl.OrthonormalDense(6, seed=1, name="neck"),
        dl.UnitRowDense(3, seed=2, name="head"),
    ]
    return keras.Sequential(parts)


def test_other_sizes_channels_and_precisions(tmp_path):
    preset_folder.save_to_preset(tiny_network(), tmp_path / "own")
    model = preset_folder.from_preset(tmp_path / "own")
    with pytest.warns(variants.FreshWeightsWarning, match="The weights of neck depend on the size"):
        large = preset_folder.from_preset(tmp_path / "own", input_shape=(12, 16, 3), num_classes=4)
    assert large.input_shape == (None, 12, 16, 3) and large.output_shape == (None, 4)
    np.testing.assert_array_equal(large.get_weights()[0], model.get_weights()[0])
    grey = preset_folder.from_preset(tmp_path / "own", input_shape=(8, 8, 1))
    x = np.random.default_rng(0).random((3, 8, 8, 1)).astype("float32")
    np.testing.assert_allclose(
        backend.to_numpy(grey(x)), backend.to_numpy(model(np.repeat(x, 3, -1))), atol=1e-6
    )
    labels, radii = dynzoo.certify(grey).radii(x)
    colour = dynzoo.certify(model).radii(np.repeat(x, 3, -1))
    np.testing.assert_array_equal(labels, colour[0])
    np.testing.assert_allclose(radii * 3**0.5, colour[1], rtol=1e-3)
    half = preset_folder.from_preset(tmp_path / "own", dtype="mixed_bfloat16")
    kinds = {layer.compute_dtype for layer in half.layers if layer.weights}
    assert kinds == {"bfloat16", "float32"} and half.layers[-1].compute_dtype == "float32"
    assert {str(v.dtype) for v in half.weights} == {"float32"}
    body = preset_folder.from_preset(tmp_path / "own", features_only=True)
    assert body.output_shape == (None, 6) and body.name.endswith("_features")
    camera = preset_folder.from_preset(
        tmp_path / "own", input_shape=(8, 8, 1), preprocess=True, image_size=(9, 20)
    )
    assert camera.input_shape == (None, 9, 20, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (8, 8)}, "`input_shape` must be (height, width, channels)"),
        ({"input_shape": (8, 8, 2)}, "`input_shape` must have 1 or 3 channels"),
        ({"input_shape": (9, 8, 3)}, "`input_shape` is none that"),
        ({"input_shape": (8, True, 3)}, "`input_shape` must be (height, width, channels)"),
        ({"input_shape": (10**6, 10**6, 3)}, "`input_shape` must have at most"),
        ({"preprocess": True, "image_size": (True, 8)}, "`image_size` must be (height, width)"),
        ({"preprocess": True, "image_size": (10**6, 10**6)}, "`image_size` must have at most"),
        ({"dtype": "int8"}, "`dtype` must be one of 'float32', 'mixed_bfloat16'"),
        ({"features_only": True, "num_classes": 4}, "leaves out the layer that `num_classes`"),
    ],
)
def test_variants_that_cannot_be(tmp_path, arguments, message):
    preset_folder.save_to_preset(tiny_network(), tmp_path / "own")
    with pytest.raises(ValueError, match=re.escape(message)):
        preset_folder.from_preset(tmp_path / "own", **arguments)


def test_a_policy_that_is_not_followed_is_said(tmp_path):
    preset_folder.save_to_preset(tiny_network(), tmp_path / "own")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        with pytest.warns(UserWarning, match="pass dtype='mixed_bfloat16'"):
            preset_folder.from_preset(tmp_path / "own")
        preset_folder.from_preset(tmp_path / "own", dtype="float32")
    finally:
        keras.config.set_dtype_policy("float32")


def test_pixels_keep_their_digits_whatever_policy_keras_has(tmp_path):
    preset_folder.save_to_preset(tiny_network(), tmp_path / "own")
    arguments = {"dtype": "float32", "input_shape": (8, 8, 1), "preprocess": True}
    expected = preset_folder.from_preset(tmp_path / "own", **arguments)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = preset_folder.from_preset(tmp_path / "own", **arguments)
    finally:
        keras.config.set_dtype_policy("float32")
    x = 255 * np.random.default_rng(0).random((3, 8, 8, 1)).astype("float32")
    np.testing.assert_array_equal(backend.to_numpy(model(x)), backend.to_numpy(expected(x)))
    assert dynzoo.certify(model).lipschitz == dynzoo.certify(expected).lipschitz


def test_bytes_stay_bytes_in_another_precision(tmp_path):
    parts = [keras.Input((4,), dtype="uint8"), layers.Rescaling(1 / 255), layers.Dense(3)]
    preset_folder.save_to_preset(keras.Sequential(parts), tmp_path / "own")
    half = preset_folder.from_preset(tmp_path / "own", dtype="mixed_bfloat16")
    assert half.inputs[0].dtype == "uint8"


def test_presets_by_pattern():
    assert set(preset_folder.presets("*cifar100")) < set(preset_folder.presets("*cifar10*"))
    assert preset_folder.presets("nothing*") == {}


NESTED = {
    "nested model": lambda: keras.Sequential(
        [keras.Input((4, 4)), keras.layers.Flatten(), keras.layers.Dense(5)], name="inner"
    ),
    "wrapper": lambda: keras.layers.TimeDistributed(keras.layers.Dense(5)),
    "recurrent": lambda: keras.layers.RNN(keras.layers.GRUCell(5)),
}


@pytest.mark.parametrize("kind", NESTED)
def test_precision_reaches_layers_inside_of_others(kind, tmp_path):
    entrance = keras.Input((4, 4))
    x = keras.layers.Flatten()(NESTED[kind]()(entrance))
    model = keras.Model(entrance, keras.layers.Dense(3, name="head")(x))
    preset_folder.save_to_preset(model, tmp_path / "own")
    half = preset_folder.from_preset(tmp_path / "own", dtype="mixed_bfloat16")
    policies = {
        layer.dtype_policy.name
        for layer in half._flatten_layers()
        if not isinstance(layer, (keras.Model, keras.layers.InputLayer)) and layer.name != "head"
    }
    assert policies == {"mixed_bfloat16"}
    assert half.get_layer("head").dtype_policy.name == "float32"
    x = np.random.default_rng(0).random((2, 4, 4)).astype("float32")
    np.testing.assert_allclose(
        half.predict(x, verbose=0), model.predict(x, verbose=0), atol=0.05, rtol=0.05
    )


def _with_lora():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(6), keras.layers.Dense(3)])
    model.layers[0].enable_lora(2)
    return model


def _shared_with_nested():
    entrance, shared = keras.Input((4,)), keras.layers.Dense(4)
    inner = keras.Sequential([keras.Input((4,)), shared])
    return keras.Model(entrance, keras.layers.Dense(3)(shared(inner(entrance))))


def _spectral():
    wrapped = keras.layers.SpectralNormalization(keras.layers.Dense(6))
    return keras.Sequential([keras.Input((5,)), wrapped, keras.layers.Dense(3)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_with_lora, "LoRA weights, which Keras adds to the kernel.*before `enable_lora`"),
        (_shared_with_nested, "its configuration makes 6 weights, where it has 4.*nested model"),
        (_spectral, "stores the kernel twice.*kernel_constraint=dynzoo.constraints.SpectralNorm"),
    ],
)
def test_what_keras_does_not_store_as_it_is_is_refused_with_a_remedy(make, message, tmp_path):
    with pytest.raises(ValueError, match=f"cannot be saved as a preset: .*{message}"):
        preset_folder.save_to_preset(make(), tmp_path / "own")
    assert not (tmp_path / "own").exists()
