"""Preset folders as somebody with bad intentions would write them; all of them are harmless."""

import copy
import hashlib
import json

import h5py
import keras
import numpy as np

from dynzoo.zoo import preset_folder


def write(folder):
    """A tiny whole preset."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), name="image")
    x = keras.layers.Dense(6, name="first")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x), name="tiny")
    preset_folder.save_to_preset(model, folder, {"dataset": "none", "accuracy": 0.5})
    return folder


def rehash(folder):
    """The sums made right after a change, as only an author can."""
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text())
    for name in metadata["files"]:
        metadata["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(metadata))


def edit(folder, change, name="config.json"):
    """Change a JSON file of a preset; `change` gets its content."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    if name != "metadata.json":
        rehash(folder)


def rewrite(folder, change, name="model.weights.h5"):
    """Change the HDF5 file of a preset; `change` gets the open file."""
    with h5py.File(folder / name, "r+") as file:
        change(file)
    rehash(folder)


def layers_of(config):
    """The list of layers in a model's config."""
    return config["config"]["layers"]


def set_layers(*added, shape=(4,)):
    """A change of the config: a chain of these layers in place of the model's own."""

    def change(config):
        chain = copy.deepcopy(layers_of(config)[:1])
        chain[0]["config"]["batch_shape"] = [None, *shape]
        for i, layer in enumerate(added):
            entry = (
                keras.saving.serialize_keras_object(layer)
                if not isinstance(layer, dict)
                else (copy.deepcopy(layer))
            )
            entry.pop("build_config", None)
            entry["name"] = entry["config"]["name"] = f"added_{i}"
            tensor = {
                "class_name": "__keras_tensor__",
                "config": {
                    "shape": [None, 4],
                    "dtype": "float32",
                    "keras_history": [chain[-1]["name"], 0, 0],
                },
            }
            entry["inbound_nodes"] = [{"args": [tensor], "kwargs": {}}]
            chain.append(entry)
        config["config"]["layers"] = chain
        config["config"]["output_layers"] = [[chain[-1]["name"], 0, 0]]

    return change


def _set(layer, **values):
    def change(config):
        entry = next(e for e in layers_of(config) if e["name"] == layer)
        entry["config"].update(values)
        entry.pop("build_config", None)

    return change


def _constant(dtype):
    def change(config):
        node = layers_of(config)[1]["inbound_nodes"][0]
        value = {"class_name": "__numpy__", "config": {"value": ["a"], "dtype": dtype}}
        node["kwargs"]["mask"] = value

    return change


def _sequential(*inner):
    return keras.Sequential([keras.Input((None, None, 4)), *inner])


L = keras.layers


def large():
    """Changes of a config that declare what the files do not hold: name -> (change, reason)."""
    from dynzoo import layers as dl
    from dynzoo import operators

    def many(config):
        config["config"]["layers"] = [layers_of(config)[0]] * 5000

    def deep(config):
        value = []
        for _ in range(150):
            value = [value]
        layers_of(config)[1]["config"]["anything"] = value

    flow = dl.GradientFlow(operators.Dense(4), steps=7, shared=True)
    steps = keras.saving.serialize_keras_object(flow)
    steps["config"]["steps"] = 10**6
    separate = keras.saving.serialize_keras_object(
        dl.GradientFlow(operators.Dense(4), steps=900, shared=False)
    )
    noise = dl.ConvectionDiffusionFlow(operators.Pointwise(4), steps=101, samples=100, shared=True)
    return {
        "50 million units": (_set("first", units=50_000_000), "`units` is 50000000"),
        "16 million units": (_set("first", units=2**24), "first/kernel of shape"),
        "two modest numbers": (
            set_layers(L.Dense(9000), L.Dense(9000)),
            r"more than the files hold",
        ),
        "filters": (
            set_layers(L.Conv2D(4096, 63), shape=(64, 64, 4)),
            "more than the files hold",
        ),
        "an input": (set_layers(L.Flatten(), shape=(10**6, 10**6)), "`batch_shape` is"),
        "an input of modest sides": (
            set_layers(L.Flatten(), shape=(5000, 5000)),
            "at most 16,777,216 entries",
        ),
        "a batch": (
            lambda c: layers_of(c)[0]["config"].update(batch_shape=[10**7, 4]),
            "at most 16,777,216 entries",
        ),
        "repeated": (set_layers(L.RepeatVector(10**7)), "gives the shape"),
        "upsampled": (
            set_layers(L.UpSampling2D(3000), shape=(8, 8, 4)),
            "gives the shape",
        ),
        "padded": (
            set_layers(L.ZeroPadding2D(9000), shape=(8, 8, 4)),
            "gives the shape",
        ),
        "upsampled twice": (
            set_layers(L.UpSampling2D(1000), L.UpSampling2D(1000), shape=(8, 8, 4)),
            "gives the shape",
        ),
        "turns of a loop": (set_layers(steps), "`steps` is 1000000, at most 1,000"),
        "weights of a loop": (set_layers(separate), "more than the files hold"),
        "noise": (set_layers(noise, shape=(32, 32, 4)), "does not fit"),
        "many layers": (many, "5,000 layers, at most 4,096"),
        "deep nesting": (deep, "nested deeper than 100"),
        "a constant of large items": (_constant("S1000000000"), "a constant of type"),
    }


def stored():
    """Changes of the weights file that are refused by its headers: name -> (change, reason)."""

    def replace(file, make):
        del file["layers/dense/vars/0"]
        make(file["layers/dense/vars"])

    def typed(value):
        return lambda file: replace(file, lambda g: g.create_dataset("0", data=value))

    def bomb(file):
        replace(
            file,
            lambda g: g.create_dataset("0", (4, 6), chunks=(1, 1), compression="gzip", dtype="f4"),
        )

    def unwritten(file):
        replace(file, lambda g: g.create_dataset("0", (2**24, 6), dtype="f4"))

    def external(file):
        replace(
            file,
            lambda g: g.create_dataset("0", (4, 6), "f4", external=[("/etc/hostname", 0, 96)]),
        )

    def virtual(file):
        layout = h5py.VirtualLayout((4, 6), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (4, 6))
        replace(file, lambda g: g.create_virtual_dataset("0", layout))

    def soft(file):
        replace(file, lambda g: g.__setitem__("0", h5py.SoftLink("/layers/dense_1/vars/0")))

    def link(file):
        replace(file, lambda g: g.__setitem__("0", h5py.ExternalLink("/etc/hostname", "/x")))

    def outside(file):
        del file["layers/dense_1"]
        file["layers/dense_1"] = h5py.ExternalLink("other.h5", "/layers/dense_1")

    def hard(file):
        replace(file, lambda g: g.__setitem__("0", file["layers/dense_1/vars/0"]))

    def cycle(file):
        file["layers/dense/again"] = file["layers"]

    def named_type(file):
        file["layers/dense/type"] = np.dtype("f4")

    def nested(file):
        group = file
        for _ in range(40):
            group = group.create_group("g")

    def attribute(file):
        file["layers"].attrs.create("large", np.zeros(2000, "f4"))

    def value(number):
        def change(file):
            file["layers/dense/vars/0"][1, 2] = number

        return change

    text = np.array([[b"abcd"] * 6] * 4)
    return {
        "compressed": (bomb, "compressed or stored in pieces"),
        "unwritten": (unwritten, "bytes that the file does not hold"),
        "external storage": (external, "in another file"),
        "virtual": (virtual, "put together from other arrays"),
        "soft link": (soft, "is a link"),
        "external link": (link, "is a link"),
        "external group": (outside, "is a link"),
        "two names": (hard, "under two names"),
        "cycle": (cycle, "under two names"),
        "named type": (named_type, "neither a group nor an array"),
        "nested": (nested, "too many groups"),
        "attribute": (attribute, "more than one short value"),
        "text": (typed(text), "which is no number"),
        "compound": (typed(np.zeros((4, 6), [("a", "f4")])), "which is no number"),
        "integers": (typed(np.zeros((4, 6), "i4")), "is integer, the model's weight float32"),
        "float16": (typed(np.zeros((4, 6), "f2")), "is float16, the model's weight float32"),
        "float64": (typed(np.zeros((4, 6), "f8")), "is float64, the model's weight float32"),
        "bools": (typed(np.zeros((4, 6), "?")), "is bool, the model's weight float32"),
        "complex": (typed(np.zeros((4, 6), "c8")), "which is no number"),
        "another shape": (typed(np.zeros((6, 4), "f4")), "has shape"),
        "one too many": (lambda f: f["layers"].create_dataset("x", data=[1.0]), "has shape"),
        "one too few": (lambda f: f.__delitem__("layers/dense/vars/0"), "does not fit"),
        "nan": (value(np.nan), "holds NaN or infinity"),
        "infinity": (value(-np.inf), "holds NaN or infinity"),
    }
