"""Presets: a model, its weights and what is known of them, in a folder that any backend loads.

config.json        the model, serialised by Keras
model.weights.h5   its weights; above 15 MiB model.weights.json and shards model_<n>.weights.h5;
                   with an array larger than that, or float16, weights_<n>.h5 with parts of arrays
metadata.json      data set, numbers, versions, and the SHA-256 of the files above
README.md          the model card, written from the metadata

Here folders become models and models folders. Which presets come with dynzoo is in ``shipped.py``;
a new one is a recipe in ``zoo_configs/``, of an architecture in ``models/``. CONTRIBUTING.md: "A
family of presets".
"""

import copy
import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras

import dynzoo.augmentation.batches
import dynzoo.constraints
import dynzoo.layers
import dynzoo.operators
from dynzoo import constraints, losses
from dynzoo.data.datasets import DATASETS
from dynzoo.inference import class_names as labels
from dynzoo.inference.image_checks import declare_range, input_range
from dynzoo.utils import interruption
from dynzoo.utils.arguments import listed
from dynzoo.utils.strict_json import short
from dynzoo.utils.tensorflow_import import serialized

# imported so that their classes are registered before a config names them
from dynzoo.utils.version import version
from dynzoo.zoo import downloads, files, hub, shipped, variants, weight_parts, weights_file
from dynzoo.zoo.cards import model_card
from dynzoo.zoo.declared_sizes import MAX_ENTRIES, Declared, check_numbers, check_tensors, planned
from dynzoo.zoo.metadata_check import check_metadata
from dynzoo.zoo.safe_config import check_config, without_compile_config
from dynzoo.zoo.shipped import presets as presets

# How pictures of another size are brought to that of a preset, by `load` and by `Resize`.
RESIZING = "cut in the middle to the input's proportions, then bicubic with antialiasing"
_SHARD_BYTES = 15 * 2**20  # git hosts and reviewers dislike larger files


def from_preset(
    name_or_path: str | os.PathLike[str],
    num_classes: int | None = None,
    load_weights: bool = True,
    *,
    input_shape: tuple[int, int, int] | None = None,
    dtype: Any = None,
    preprocess: bool = False,
    image_size: tuple[int, int] | None = None,
    features_only: bool = False,
    keep_frozen: bool = False,
) -> keras.Model:
    """Load a model from the name of a preset or from a folder that ``save_to_preset`` wrote.

    Every file is checked against its SHA-256 before it is read, and the config may only name Keras'
    and dynzoo's own classes: loading never runs code of the preset. It needs no network but for
    weights that did not ship (``DYNZOO_WEIGHTS``) or stand at Hugging Face, once. What the
    config declares is compared with what the files hold before any memory is taken. The model
    comes compiled (Adam, ``OffsetCrossentropy``, accuracy), so that ``fit`` works at once; your own
    ``compile`` overrides that.

    Args:
        name_or_path: one of ``dynzoo.presets()``, a path, or ``"hf://owner/name"``.
        num_classes: number of classes, if another than the preset's: the body and its weights stay
            as they are, bit by bit, and the last layer is a fresh one.
        load_weights: ``False`` for the architecture alone, with newly initialised weights.
        input_shape: (height, width, channels) that the network shall take in place of its own. What
            depends on the size of the images starts anew, a ``FreshWeightsWarning`` names it, and
            it has to be trained; images of one channel are repeated to three, with no new weight.
        dtype: ``"mixed_bfloat16"``, ``"mixed_float16"`` or ``"float32"``: Keras' dtype policy of
            all layers but the last; ``None`` as the preset was saved, whatever policy Keras has.
        preprocess: ``True`` puts resizing and the division by 255 inside the model: it takes bytes,
            or floats in [0, 255], and its certified radii are in these units, for images as they
            come.
        image_size: with ``preprocess``, (height, width) of the images in pixels, which are cut in
            the middle and scaled to what the preset takes; ``None`` for its own size.
        features_only: ``True`` for the network without its last layer, not compiled: a backbone,
            from images to the features that the preset's classes are told by.
        keep_frozen: leave layers frozen (``trainable=False``) that were so when the preset was
            saved; by default all of them train.

    Returns:
        A ``keras.Model`` from images in [0, 1] (in [0, 255] with ``preprocess``) to logits.

    Raises:
        ValueError: unknown name, or a damaged or refused file (which the message names).
        DownloadError: weights that cannot be had, or are not those of the preset.

    Example:

    >>> import dynzoo
    >>> model = dynzoo.from_preset("isometric_tiny_cifar10", num_classes=3)
    >>> model.output_shape
    (None, 3)
    """
    if image_size is not None and not preprocess:
        raise ValueError(
            f"`image_size` needs `preprocess=True`. Received: image_size={image_size}, "
            f"preprocess={preprocess}"
        )
    if features_only and num_classes is not None:
        raise ValueError(
            "`features_only` leaves out the layer that `num_classes` is about. "
            f"Received: num_classes={num_classes}, features_only={features_only}"
        )
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise ValueError(
            "`name_or_path` must be the name of a preset or a path. "
            f"Received: name_or_path={name_or_path!r}"
        )
    folder, metadata = _whole(os.fspath(name_or_path))
    model, config = _load(folder, metadata, load_weights)
    if num_classes is not None:
        model = _with_classes(model, config, num_classes, folder)
    if input_shape is not None or dtype is not None:
        model = variants.rebuilt(model, input_shape, dtype)
    else:
        variants.note_policy(model)
    if not keep_frozen:
        for layer in model._flatten_layers():
            # of the model alone it would not do: on TensorFlow what is so already is not set
            layer.trainable = True
    # who names a number has classes of his own, even where it is that of the preset
    names = class_names_of(metadata, model.output_shape[-1]) if num_classes is None else None
    if preprocess:
        model = _with_preprocessing(model, metadata, image_size, folder)
        metadata = {**metadata, "input_range": [0, 255]}
    if features_only:
        model = variants.features(model)
        declare_range(model, metadata)
        return model
    declare_range(model, metadata)
    labels.declare_names(model, names)
    model.compile(
        optimizer="adam",
        loss=losses.OffsetCrossentropy(),
        metrics=["accuracy"],  # Keras takes the one for whole or one-hot labels, by their shape
    )
    return model


def _whole(name: str) -> tuple[Path, dict[str, Any]]:
    """Folder and metadata of a preset, its weights brought here if they did not ship."""
    folder = hub.from_hub(name) if name.startswith(hub.PREFIX) else shipped.find(name)
    metadata = files.read_metadata(folder)
    if folder in shipped.folders().values():
        folder = downloads.complete(folder, metadata)
    return folder, metadata


def save_to_preset(
    model: keras.Model,
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    weights_dtype: str = "float32",
) -> None:
    """Write a model as a preset folder, whole or not at all.

    The optimizer is not stored. What the metadata say of the model itself (shapes, parameters,
    versions, files) is filled in; everything else is the caller's, and goes into the model card:
    see ``dynzoo.zoo.cards.model_card`` for the keys that it knows.

    Args:
        model: a built model made of Keras' and dynzoo's layers.
        path: the folder to write.
        metadata: what is known of the model; values that JSON has.
        overwrite: replace a preset that stands there already.
        weights_dtype: ``"float16"`` stores arrays of more than 100,000 entries in half the size.
            Their rounding, up to 2^-11 of each entry, is in the weights that ``from_preset`` gives;
            it imposes the model's constraints on them (``dynzoo.project``), and what it gives is
            what is to be certified.

    Raises:
        FileExistsError: the folder exists and is not empty, or is not a preset.
        ValueError: a model with several inputs or outputs, a layer that a preset may not hold,
            metadata that JSON cannot hold, or weights that ``weights_dtype`` cannot.

    Example:

    >>> import keras
    >>> import dynzoo
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> dynzoo.save_to_preset(model, "my_preset", {"dataset": "digits", "accuracy": 0.98})
    >>> dynzoo.from_preset("my_preset").output_shape
    (None, 3)
    """
    target = files.folder_of(path)
    files.check_target(target, overwrite)
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a Keras model. Received: model={model!r}")
    if not isinstance(metadata, Mapping | None):
        raise ValueError(
            f"`metadata` must be a mapping of names to values or None. Received: {metadata!r}"
        )
    metadata = json.loads(files.to_json(metadata or {}))  # plain values, as they are read again
    if weights_dtype not in ("float32", "float16"):
        raise ValueError(
            f"`weights_dtype` must be 'float32' or 'float16'. Received: {weights_dtype!r}"
        )
    if not model.built:
        raise ValueError("`model` must be built before it is saved. Call it on an input first.")
    _check_ends(model)
    _check_storable(model)
    config = without_compile_config(serialized(model))
    config = json.loads(json.dumps(config))
    check_config(config, f"The model {model.name!r}")
    # Through a copy without optimizer, whose slots Keras would store as well: three times the size.
    # Making it also proves that the config is enough to rebuild the model.
    bare = _deserialize(config, target)
    _fill(bare, model)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    with interruption.scratch(work):
        (work / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        version = _save_weights(bare, work, weights_dtype)
        about = {
            "name": target.name,
            **metadata,
            "format": version,
            "input_shape": list(bare.input_shape[1:]),
            "num_classes": bare.output_shape[-1],
            "parameters": bare.count_params(),
            **_known(model, metadata),
            "versions": _versions(),
            "saved": datetime.now(UTC).strftime("%Y-%m-%d"),
            "files": {file.name: files.sha256(file) for file in sorted(work.iterdir())},
        }
        text = files.to_json(about)
        (work / "metadata.json").write_text(text, encoding="utf-8")
        _check_readable(bare, work, target)  # the card takes the metadata for what they must be
        (work / "README.md").write_text(model_card(json.loads(text)), encoding="utf-8")
        files.move_into_place(work, target)


def _fill(bare: keras.Model, model: keras.Model) -> None:
    """Gives the copy that Keras makes of a model its weights; a ValueError where they differ."""
    rebuilt, weights = ([w.shape for w in m.weights] for m in (bare, model))
    if rebuilt == weights:
        bare.set_weights(model.get_weights())
        return
    raise ValueError(
        f"The model {model.name!r} cannot be saved as a preset: its configuration makes "
        f"{len(rebuilt)} weights, where it has {len(weights)}. Keras keeps no layer shared that is "
        "called inside a nested model and outside of it: build it anew without the nesting."
    )


def _check_storable(model: keras.Model) -> None:
    """Refuse layers of which Keras writes other arrays than their weights, and say what to do."""
    for layer in model._flatten_layers():
        start = f"The model cannot be saved as a preset: layer {layer.name!r} "
        if isinstance(layer, keras.layers.SpectralNormalization):
            raise ValueError(
                f"{start}is a SpectralNormalization, of which Keras stores the kernel twice. Use "
                "the layer inside it with kernel_constraint=dynzoo.constraints.SpectralNorm()."
            )
        if getattr(layer, "lora_enabled", False):
            raise ValueError(
                f"{start}has LoRA weights, which Keras adds to the kernel when it stores them. "
                "Write them with `model.save_weights`, load the file into the model as it was "
                "before `enable_lora`, and save that."
            )


def push_to_hub(
    model: keras.Model,
    repository: str,
    metadata: Mapping[str, Any] | None = None,
    *,
    private: bool = False,
    weights_dtype: str = "float32",
) -> str:
    """Writes a model as a preset into a repository of Hugging Face, which is made if need be.

    Args:
        model: as ``dynzoo.save_to_preset`` takes it.
        repository: ``"owner/name"``; whoever is logged in there (``hf auth login``) writes.
        metadata: as for ``save_to_preset``.
        private: who may read a repository that is made.
        weights_dtype: as for ``save_to_preset``.

    Returns:
        The address that ``from_preset`` takes.

    Raises:
        ImportError: without ``huggingface_hub``, the extra ``dynzoo[hub]``.
        ValueError: if the name has another form, or the model cannot be saved.
        DownloadError: in one line, if nothing can be written there.

    Example:

    >>> import dynzoo
    >>> model = dynzoo.from_preset("isometric_tiny_cifar10")
    >>> dynzoo.push_to_hub(model, "owner/tiny", {"dataset": "cifar10"}, private=True)
    'hf://owner/tiny'
    """
    name = hub.checked_repository(repository)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / name.split("/")[1]
        save_to_preset(model, place, metadata, weights_dtype=weights_dtype)
        return hub.to_hub(place, name, private)


def class_names_of(metadata: Mapping[str, Any], classes: int) -> list[str] | None:
    """Names of the classes: those in the metadata, else those of its known data set.

    Names of another number than the classes are not theirs.
    """
    dataset = DATASETS.get(str(metadata.get("dataset")))
    names = metadata.get("class_names") or (dataset.classes if dataset else None)
    return [str(name) for name in names] if names and len(names) == classes else None


def _known(model: keras.Model, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Class names and range of pixels, from the metadata or as they are known of the model."""
    classes = model.output_shape[-1]
    names = metadata.get("class_names") or class_names_of(metadata, classes)
    if names is None and "dataset" not in metadata:
        names = labels.names_of(model)
    extent = metadata.get("input_range") or input_range(model)
    known: dict[str, Any] = {"input_range": None if extent is None else listed(extent)}
    # what the caller names is checked as it stands; what the model had may be of other classes
    if names and (metadata.get("class_names") or len(names) == classes):
        known["class_names"] = listed(names)
    if len(model.input_shape) == 4:
        known["resizing"] = RESIZING
    return {key: value for key, value in known.items() if value is not None}


def _load(
    folder: Path, metadata: dict[str, Any], load_weights: bool
) -> tuple[keras.Model, dict[str, Any]]:
    """The model of a folder and its config; nothing is made that the files do not fill."""
    found = files.verify(folder, metadata)
    where = folder / "config.json"
    config = files.parse_json(where)
    check_config(config, str(where))
    check_numbers(config, str(where))
    stored = weights_file.headers(found.arrays)
    arrays = {s.path.partition("_")[0] for s in stored} if found.in_parts else stored
    declared = Declared(sum(s.entries for s in stored), len(arrays))
    with planned(declared) as fill:
        try:
            model = _deserialize(config, folder)
        except ValueError:
            if declared.refusal is None:
                raise
            raise ValueError(f"{found.weights} does not fit {where}: {declared.refusal}.") from None
    _check_network(model, where)
    check_tensors(model, str(where))
    _check_fit(found, stored, model, where)
    check_metadata(metadata, model, folder / "metadata.json")
    if load_weights:
        weights_file.check_values(stored)
    fill(model)
    if load_weights:
        try:
            _load_weights(model, found, stored)
        except Exception as error:  # HDF5, shape and key errors alike: the user needs the file
            raise ValueError(f"{found.weights} does not fit {where}: {short(error)}") from error
    return model, config


def _check_fit(
    found: files.PresetFiles, stored: list[weights_file.Stored], model: keras.Model, where: Path
) -> None:
    if found.in_parts:
        weight_parts.check_fit(stored, model, found.weights, where)
    else:
        weights_file.check_fit(stored, model.variables, found.weights, where)


def _load_weights(
    model: keras.Model, found: files.PresetFiles, stored: list[weights_file.Stored]
) -> None:
    if not found.in_parts:
        model.load_weights(str(found.weights))
        return
    weight_parts.read(model, found.arrays)
    if any(s.dtype == "float16" for s in stored):
        constraints.project(model)


def _check_network(model: keras.Model, where: Path) -> None:
    if not (model.built and getattr(model, "inputs", None) and getattr(model, "outputs", None)):
        raise ValueError(f"{where} holds a model without a fixed input and output.")
    if problem := _ends_problem(model):
        raise ValueError(f"{where} holds a model with {problem}; a preset has one of each.")


def _check_ends(model: keras.Model) -> None:
    """Refuse what no metadata can describe: all else takes a preset from images to logits."""
    if problem := _ends_problem(model):
        raise ValueError(
            "`model` must have one input and one output, each a tensor, to be saved as a preset. "
            f"Received: {model.name!r} with {problem}"
        )


def _ends_problem(model: keras.Model) -> str:
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs:
        return "no fixed input or output (subclasses of keras.Model have none)"
    if len(inputs) != 1 or len(outputs) != 1:
        return f"{len(inputs)} input(s) and {len(outputs)} output(s)"
    return ""


def _check_readable(model: keras.Model, work: Path, target: Path) -> None:
    """What is written must be what ``from_preset`` takes, or nothing is written."""
    try:
        metadata = files.read_metadata(work)
        found = files.verify(work, metadata)
        config = files.parse_json(work / "config.json")
        check_numbers(config, "config.json")
        stored = weights_file.headers(found.arrays)
        check_tensors(model, "config.json")
        _check_fit(found, stored, model, work / "config.json")
        check_metadata(metadata, model, work / "metadata.json")
        weights_file.check_values(stored)
    except ValueError as error:
        reason = str(error).replace(str(work), str(target))
        raise ValueError(f"The model cannot be saved as a preset: {reason}") from None


def _deserialize(config: dict[str, Any], folder: Path) -> keras.Model:
    try:
        # of a copy, for Keras takes the config apart while it reads it
        model = keras.saving.deserialize_keras_object(copy.deepcopy(config), safe_mode=True)
    except Exception as error:
        raise ValueError(
            f"{folder}/config.json does not describe a model: {short(error)}"
        ) from error
    if not isinstance(model, keras.Model):
        raise ValueError(f"{folder}/config.json holds a {type(model).__name__}, not a model.")
    return model


def _with_classes(
    model: keras.Model, config: dict[str, Any], num_classes: int, folder: Path
) -> keras.Model:
    head = model.layers[-1]
    if not variants.is_size(num_classes) or not 2 <= num_classes <= MAX_ENTRIES:
        raise ValueError(
            f"`num_classes` must be an integer >= 2 and <= {MAX_ENTRIES:,}. "
            f"Received: {num_classes!r}"
        )
    num_classes = int(num_classes)
    if getattr(head, "units", None) == num_classes == model.output_shape[-1]:
        return model
    layers = config["config"].get("layers", [])
    named = (layer for layer in layers if layer["config"].get("name") == head.name)
    entry: dict[str, Any] = next(named, {})
    if "units" not in entry.get("config", {}):
        raise ValueError(
            f"`num_classes` needs a model whose last layer has `units`; {head.name!r} has none. "
            f"Received: num_classes={num_classes}"
        )
    entry["config"]["units"] = num_classes
    reason = f"what {head.name!r} gives is a part of the logits alone."
    resized = None
    try:
        resized = _deserialize(config, folder)
    except ValueError as error:
        reason = short(error.__cause__ or error)
    if resized is None or resized.output_shape[-1] != num_classes:
        raise ValueError(
            f"`num_classes` cannot be changed in {model.name!r}: {reason} "
            f"Received: num_classes={num_classes}"
        )
    for old, new in zip(model.layers[:-1], resized.layers[:-1], strict=True):
        new.set_weights(old.get_weights())
    return resized


def _with_preprocessing(
    model: keras.Model, metadata: dict[str, Any], image_size: tuple[int, int] | None, folder: Path
) -> keras.Model:
    """The model behind a ``Resize`` and a ``Rescaling``, which stands where its input did."""
    low, high = metadata.get("input_range") or (0.0, 1.0)
    if len(model.input_shape) != 4 or None in model.input_shape[1:]:
        raise ValueError(
            "`preprocess` needs a preset of images of one size. "
            f"{folder} takes inputs of shape {model.input_shape}"
        )
    height, width, channels = model.input_shape[1:]
    if (low, high) != (0.0, 1.0):
        raise ValueError(
            f"`preprocess` needs a preset of images in [0, 1]. {folder} takes [{low:g}, {high:g}]"
        )
    size = (height, width) if image_size is None else _checked_size(image_size)
    graph = keras.Model(model.inputs, model.outputs, name=model.name)  # of a Sequential, too
    config = without_compile_config(serialized(graph))
    network = config["config"]
    entrance = next(la.name for la in graph.layers if isinstance(la, keras.layers.InputLayer))
    place = next(i for i, e in enumerate(network["layers"]) if e["name"] == entrance)
    names = {layer.name for layer in model.layers}
    pixels, resize = (_free_name(name, names) for name in ("pixels", "resize"))
    x = keras.Input((*size, channels), name=pixels)
    # pixels keep their digits, whatever policy Keras has
    arguments = {"value_range": (0.0, 255.0), "name": resize, "dtype": "float32"}
    y = dynzoo.layers.Resize(height, width, **arguments)(x)
    y = keras.layers.Rescaling(1 / 255, name=entrance, dtype="float32")(y)
    before = serialized(keras.Model(x, y))["config"]["layers"]
    network["layers"][place : place + 1] = before
    network["input_layers"] = [pixels, 0, 0]
    longer = _deserialize(config, folder)
    longer.set_weights(model.get_weights())
    return longer


def _checked_size(image_size: tuple[int, int]) -> tuple[int, int]:
    size = tuple(image_size) if isinstance(image_size, (tuple, list)) else ()
    if len(size) != 2 or not all(variants.is_size(n) for n in size):
        raise ValueError(
            "`image_size` must be (height, width), positive integers, or None. "
            f"Received: image_size={image_size!r}"
        )
    if int(size[0]) * int(size[1]) > MAX_ENTRIES:
        raise ValueError(
            f"`image_size` must have at most {MAX_ENTRIES:,} pixels. "
            f"Received: image_size={image_size!r}"
        )
    return int(size[0]), int(size[1])


def _free_name(name: str, taken: set[str]) -> str:
    return name if name not in taken else _free_name(f"{name}_", taken)


def _save_weights(model: keras.Model, folder: Path, dtype: str) -> int:
    """Writes the weights in files of at most 15 MiB; returns the format that this is."""
    sizes = [array.nbytes for array in model.get_weights()]
    if dtype == "float16" or max(sizes, default=0) > _SHARD_BYTES:
        weight_parts.write(model, folder, _SHARD_BYTES, dtype)
        return files.FORMAT_IN_PARTS
    if sum(sizes) <= _SHARD_BYTES:
        model.save_weights(str(folder / "model.weights.h5"))
    else:
        path = str(folder / "model.weights.json")
        model.save_weights(path, max_shard_size=_SHARD_BYTES / 2**30)
    return files.FORMAT


def _versions() -> dict[str, str]:
    backend = keras.backend.backend()
    return {"keras": keras.__version__, "backend": backend, "dynzoo": version()}
