"""Image data sets as arrays: CIFAR by TensorFlow Datasets, digits, ``.npz`` files, and folders."""

import os
import threading
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynzoo.data.image_folder import class_folders, load_image_folder
from dynzoo.data.sharded_images import is_sharded, load_shards, shard_classes
from dynzoo.data.sources import check_source
from dynzoo.inference.class_names import CIFAR10, CIFAR100, DIGITS
from dynzoo.inference.streamed_images import StreamedImages

Split = tuple[np.ndarray, np.ndarray]

_DIGITS = Path(__file__).with_name("digits.npz")  # of scripts/make_digits.py


@dataclass(frozen=True)
class Dataset:
    """A data set that ``dynzoo.data.load`` knows by name.

    Args:
        about: what it is, in a few words.
        classes: names of the classes, in the order of the labels.
        read: from the name to the images and labels as they are kept.
        url: where its maintainers serve it. Asked once, so that a machine without network is told
            so at once instead of after the minutes that TensorFlow Datasets spends on retries.

    Example:

    >>> from dynzoo.data import DATASETS
    >>> DATASETS["cifar10"].classes[:2]
    ['airplane', 'automobile']
    """

    about: str
    classes: Sequence[str]
    read: Callable[[str], tuple[Split, Split]]
    url: str = ""


def load(
    name: str | os.PathLike,
    dtype: str = "float32",
    image_shape: tuple[int, ...] | None = None,
    stream: bool | None = False,
) -> tuple[Split, Split]:
    """Load ``(x_train, y_train), (x_test, y_test)``: NHWC images and integer labels.

    Float images are the stored bytes divided by 255, hence in [0, 1] and exact to the byte. CIFAR
    comes in its original order, which published protocols count in ("the first 1000 test images").

    Args:
        name: one of ``DATASETS``: ``"cifar10"``, ``"cifar100"``, ``"mnist"`` (TensorFlow Datasets,
            from the folder that the environment variable ``TFDS_DATA_DIR`` names), ``"digits"``
            (1437 + 360 handwritten digits that come with dynzoo, upsampled to 32x32x3; no
            download); or the path of an ``.npz`` file laid out as ``keras.datasets`` does:
            ``x_train``, ``y_train``, ``x_test``, ``y_test``; or a folder of images, see
            ``dynzoo.data.image_folder.load_image_folder``; or of shards, see
            ``dynzoo.data.sharded_images.load_shards``.
        dtype: ``"float32"`` for images in [0, 1], or ``"uint8"`` for the bytes.
        image_shape: (height, width, channels) to which the images of a folder are brought; shards
            of arrays stay as they are.
        stream: ``True`` leaves the images of a folder in their files until they are asked for;
            ``None`` does so where they would take more than 1 GiB as floats.

    Returns:
        Images of shape (n, height, width, channels), labels int64 of shape (n,), for each split.
        Streamed images are a ``dynzoo.inference.streamed_images.StreamedImages``, which is indexed
        as an array and goes into ``dynzoo.augmentation.Augmented``, ``finetune`` and ``evaluate``.

    Raises:
        ValueError: unknown name, or a file whose content is not as described (it names the key).
        FileNotFoundError: no such ``.npz`` file.
        RuntimeError: the data are neither on this machine nor to be had over the network.

    Example:

    >>> import dynzoo
    >>> (x_train, y_train), (x_test, y_test) = dynzoo.data.load("digits")
    >>> x_test.shape
    (360, 32, 32, 3)
    """
    if dtype not in ("float32", "uint8"):
        raise ValueError(f"`dtype` must be 'float32' or 'uint8'. Received: dtype={dtype!r}")
    if stream and not Path(os.fspath(name)).is_dir():
        raise ValueError(
            f"`stream=True` needs a folder of images or shards. Received: name={os.fspath(name)!r}"
        )
    (x_train, y_train), (x_test, y_test) = _stored(name, image_shape, stream)
    convert = to_float if dtype == "float32" else _to_bytes
    return (convert(x_train), y_train), (convert(x_test), y_test)


def _stored(
    name: str | os.PathLike,
    image_shape: tuple[int, ...] | None = None,
    stream: bool | None = False,
    log: Callable[[str], object] | None = print,
) -> tuple[Split, Split]:
    """The data as they are kept: bytes, or the floats of an ``.npz`` file."""
    key = check_source(name)
    if key.endswith(".npz"):
        return _load_npz(Path(key))
    if key in DATASETS:
        return DATASETS[key].read(key)
    if is_sharded(key):
        return load_shards(key, image_shape, stream=stream, log=log)
    return load_image_folder(key, image_shape, stream=stream, log=log)


def class_names(name: str | os.PathLike) -> list[str]:
    """Names of the classes of a data set that ``load`` knows, in the order of the labels.

    For an ``.npz`` file these are its key ``class_names`` or ``label_names``, else the numbers as
    text; for a folder of images the names of its subfolders; for shards the lines of
    ``class_names.txt`` or ``labels.txt``.

    Args:
        name: as in ``load``.

    Returns:
        One text a class.

    Example:

    >>> import dynzoo
    >>> dynzoo.data.class_names("cifar10")[:3]
    ['airplane', 'automobile', 'bird']
    """
    key = check_source(name)
    if key in DATASETS:
        return list(DATASETS[key].classes)
    if not key.endswith(".npz"):
        if not is_sharded(key):
            return class_folders(key)
        names = shard_classes(key)
        if names is not None:
            return names
        (_, y), _ = load_shards(key, log=None, stream=None)
        return [str(i) for i in range(int(y.max()) + 1)]
    with open(key, "rb") as stream, np.load(stream, allow_pickle=False) as file:
        for entry in ("class_names", "label_names", "fine_label_names"):
            if entry in file.files:
                return [str(value) for value in file[entry]]
        return [str(i) for i in range(int(file["y_train"].max()) + 1)]


def split_validation(
    x: np.ndarray, y: np.ndarray, size: int | float, seed: int = 0
) -> tuple[Split, Split]:
    """Hold out a part of a training set, the same part every time for the same seed.

    Args:
        x: images (n, ...); those that are streamed stay in their files.
        y: labels (n,).
        size: number of held-out images, or their share as a float in (0, 1).
        seed: seed of the choice.

    Returns:
        ``(x_train, y_train), (x_val, y_val)``; both keep the order of the original.

    Example:

    >>> import numpy as np
    >>> from dynzoo.data import split_validation
    >>> x, y = np.zeros((10, 8, 8, 3)), np.arange(10)
    >>> (x_train, y_train), (x_val, y_val) = split_validation(x, y, 0.2)
    >>> len(x_train), len(x_val)
    (8, 2)
    """
    n = len(x)
    count = round(size * n) if isinstance(size, float) and 0 < size < 1 else size
    if count != int(count) or not 0 < count < n:
        raise ValueError(
            f"`size` must be a count in [1, {n - 1}] or a share in (0, 1). Received: size={size}"
        )
    if len(y) != n:
        raise ValueError(f"`x` and `y` must be of one length. Received: {n} and {len(y)}")
    held = np.zeros(n, dtype=bool)
    held[np.random.default_rng(seed).permutation(n)[: int(count)]] = True
    if isinstance(x, StreamedImages):
        return (x.take(~held), y[~held]), (x.take(held), y[held])
    return (x[~held], y[~held]), (x[held], y[held])


def load_exact(
    name: str | os.PathLike,
    stream: bool | None = False,
    log: Callable[[str], object] | None = print,
) -> tuple[Split, Split]:
    """What ``load`` gives: as bytes, or as float32 in [0, 1] where the images are no bytes / 255.

    Args:
        name: as in ``load``.
        stream: as in ``load``.
        log: called with a line on what a folder holds; ``None`` for silence.

    Returns:
        ``(x_train, y_train), (x_test, y_test)``, as ``load`` does.

    Example:

    >>> import dynzoo
    >>> (x_train, y_train), (x_test, y_test) = dynzoo.data.load_exact("digits")
    >>> x_test.dtype
    dtype('uint8')
    """
    splits = _stored(name, stream=stream, log=log)
    parts = [x if x.dtype == np.uint8 else _bytes_or_floats(x) for x, _ in splits]
    if len({x.dtype for x in parts}) > 1:
        parts = [to_float(x) for x in parts]
    (_, y_train), (_, y_test) = splits
    return (parts[0], y_train), (parts[1], y_test)


def _bytes_or_floats(x: np.ndarray) -> np.ndarray:
    if isinstance(x, StreamedImages):
        return x
    try:
        return _to_bytes(x)
    except ValueError:
        return to_float(x)


def to_float(x: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as float32; bytes are divided by 255.

    Args:
        x: images, of bytes or of floats in [0, 1]; or ``StreamedImages``.

    Returns:
        The same as float32.

    Example:

    >>> import numpy as np
    >>> import dynzoo
    >>> dynzoo.data.to_float(np.array([0, 51, 255], "uint8"))
    array([0. , 0.2, 1. ], dtype=float32)
    """
    if isinstance(x, StreamedImages):
        return x.astype("float32")
    if x.dtype == np.uint8:
        return np.divide(x, np.float32(255), dtype=np.float32)
    return x.astype(np.float32)


def _to_bytes(x: np.ndarray) -> np.ndarray:
    if isinstance(x, StreamedImages):
        return x.astype("uint8")
    if x.dtype == np.uint8:
        return x
    rounded = np.rint(x * 255.0)
    if np.max(np.abs(rounded / 255.0 - x), initial=0.0) > 1e-6:
        raise ValueError(
            "`dtype='uint8'` needs images that are bytes divided by 255; these are not. "
            "Load them with dtype='float32'."
        )
    return rounded.astype(np.uint8)


def _load_digits() -> tuple[Split, Split]:
    with np.load(_DIGITS, allow_pickle=False) as file:
        digits, labels, test = file["images"], file["labels"], file["test"]
    # Bilinear interpolation with pixel centres at (i + 1/2)/4. All weights are eighths and the
    # grey values are 0..16, so the arithmetic is exact and the bytes are the same everywhere.
    position = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)
    weight = np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(8)))
    images = np.rint(weight @ digits @ weight.T * (255 / 16)).astype(np.uint8)
    x = np.repeat(images[..., None], 3, axis=-1)
    y = labels.astype(np.int64)
    return (x[~test], y[~test]), (x[test], y[test])


def _load_npz(path: Path) -> tuple[Split, Split]:
    arrays = {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            missing = {"x_train", "y_train", "x_test", "y_test"} - set(file.files)
            if missing:
                raise ValueError(f"it lacks the keys {sorted(missing)}; it has {file.files}")
            for key in ("x_train", "y_train", "x_test", "y_test"):
                arrays[key] = _check_array(key, file[key])
        for split in ("train", "test"):
            images, labels = len(arrays[f"x_{split}"]), len(arrays[f"y_{split}"])
            if images != labels:
                raise ValueError(f"x_{split} has {images} images but y_{split} {labels} labels")
        if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
            raise ValueError(
                f"x_train holds images of shape {arrays['x_train'].shape[1:]}, "
                f"x_test of shape {arrays['x_test'].shape[1:]}"
            )
        classes = int(arrays["y_train"].max()) + 1
        if arrays["y_test"].max() >= classes:
            raise ValueError(
                f"y_test has the label {arrays['y_test'].max()}, y_train has only 0..{classes - 1}"
            )
    except Exception as error:  # zip, npy and pickle errors alike: the user needs the file's name
        raise ValueError(f"{path} is not a usable data file: {error}.") from error
    return (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])


def _check_array(key: str, value: np.ndarray) -> np.ndarray:
    if len(value) == 0:
        raise ValueError(f"{key} is empty")
    if key.startswith("y"):
        if value.ndim == 2 and value.shape[1] == 1:  # the layout of keras.datasets.cifar10
            value = value[:, 0]
        if value.ndim != 1 or value.dtype.kind not in "iu":
            raise ValueError(
                f"{key} must be integers of shape (n,), not {value.dtype} of shape {value.shape}"
            )
        if value.min() < 0:
            raise ValueError(f"{key} has the negative label {value.min()}")
        return value.astype(np.int64)
    if value.ndim == 3:
        value = value[..., None]
    if value.ndim != 4:
        raise ValueError(f"{key} must be of shape (n, height, width, channels), not {value.shape}")
    if value.dtype == np.uint8:
        return value
    if value.dtype.kind != "f":
        raise ValueError(f"{key} must be uint8 or float, not {value.dtype}")
    if not (np.isfinite(value).all() and value.min() >= 0 and value.max() <= 1):
        raise ValueError(f"{key} is float, so its values must be in [0, 1]")
    return value


def _data_dir() -> str:
    return os.environ.get("TFDS_DATA_DIR") or str(Path.home() / "tensorflow_datasets")


def _load_tfds(name: str) -> tuple[Split, Split]:
    data_dir = _data_dir()
    # The folder is looked at before the slow import of TensorFlow. Cloud addresses are left to it.
    cloud = "://" in data_dir
    there = [] if cloud else sorted(Path(data_dir, name).glob("*/dataset_info.json"))
    problem = None if cloud or there else _unreachable(DATASETS[name].url)
    if problem:
        raise RuntimeError(_remedies(name, data_dir, problem))
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        hint = f"tensorflow_datasets cannot be imported ({error}): pip install 'dynzoo[data]'"
        raise RuntimeError(_remedies(name, data_dir, hint)) from error
    versions = [file.parent.name for file in there]
    wanted = str(tfds.builder_cls(name).VERSION)
    # Asked of the class: a builder would ask the network for minutes.
    if versions and wanted not in versions and (problem := _unreachable(DATASETS[name].url)):
        raise RuntimeError(
            f"The data set {name!r} is in {data_dir} in version {', '.join(versions)}, but the "
            f"installed tensorflow-datasets reads version {wanted}, which could not be fetched "
            f"({problem}). Do one of these: install the tensorflow-datasets that prepared it; run "
            "once with network access; or pass the path of an '.npz' file with the keys x_train, "
            "y_train, x_test, y_test."
        )
    _keep_tensorflow_off_the_gpu()
    builder = tfds.builder(name, data_dir=data_dir)
    try:
        if not builder.is_prepared():
            builder.download_and_prepare()
        train, test = (_read_split(tfds, builder, split) for split in ("train", "test"))
    except Exception as error:
        raise RuntimeError(_remedies(name, data_dir, str(error))) from error
    return train, test


def _read_split(tfds, builder, split: str) -> Split:
    batches = list(tfds.as_numpy(builder.as_dataset(split=split, batch_size=1000)))
    x = np.concatenate([batch["image"] for batch in batches])
    y = np.concatenate([batch["label"] for batch in batches]).astype(np.int64)
    if "id" not in builder.info.features:
        return x, y
    # TFDS stores the images shuffled; the zero-padded ids restore the order of the original files
    order = np.argsort(np.concatenate([batch["id"] for batch in batches]), kind="stable")
    return x[order], y[order]


def _keep_tensorflow_off_the_gpu() -> None:
    """Another backend needs the GPU's memory, which TensorFlow would take as a whole."""
    import keras

    if keras.backend.backend() == "tensorflow":
        return
    import tensorflow as tf

    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:
        pass  # TensorFlow was started by someone else, who decided on its devices


def _unreachable(url: str, timeout: float = 5.0) -> str | None:
    """Why ``url`` cannot be fetched, or None. In a thread: look-ups ignore socket timeouts."""
    answer = [f"no answer from {url} within {timeout:g} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout):
                answer[0] = ""
        except Exception as error:
            answer[0] = f"{url}: {error}"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout + 0.5)
    return answer[0] or None


def _remedies(name: str, data_dir: str, problem: str) -> str:
    return (
        f"The data set {name!r} is not in {data_dir} and could not be fetched ({problem}). "
        "Do one of these: set TFDS_DATA_DIR to a folder where TensorFlow Datasets has prepared "
        f"{name!r}; run once with network access; or pass the path of an '.npz' file with the keys "
        "x_train, y_train, x_test, y_test. The data set 'digits' needs no download."
    )


# Below the functions that it names.
DATASETS: dict[str, Dataset] = {
    "cifar10": Dataset(
        "32x32 photographs in 10 classes",
        CIFAR10,
        _load_tfds,
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    ),
    "cifar100": Dataset(
        "32x32 photographs in 100 classes",
        CIFAR100,
        _load_tfds,
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    ),
    "mnist": Dataset(
        "28x28 handwritten digits",
        DIGITS,
        _load_tfds,
        "https://storage.googleapis.com/cvdf-datasets/mnist/t10k-labels-idx1-ubyte.gz",
    ),
    "digits": Dataset(
        "handwritten digits (UCI, Alpaydin and Kaynak), upsampled to 32x32; no download",
        DIGITS,
        lambda name: _load_digits(),
    ),
}
