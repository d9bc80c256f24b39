"""Random crop and horizontal flip, image by image: as a function, a layer, and a data set."""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.lib.stride_tricks import sliding_window_view

from dynzoo.augmentation.distortions import color_jitter, rotate_and_zoom
from dynzoo.augmentation.on_device import DRAWS
from dynzoo.utils.arguments import integer, number, one_of

_MODES = ("reflect", "constant")
FLIPS = ("alternating",)  # what `flip` may be besides true and false
DISTORTIONS = ("rotation", "zoom", "color_jitter")  # arguments of `Augmented` that 0 turns off


def random_crop_flip(x, dy, dx, flip, padding: int, mode: str = "reflect"):
    """Pad every image, cut a window of the original size out of it, and mirror it where asked.

    $$ y[b, i, j] = \\mathrm{pad}(x)[b,\\ i + dy_b,\\ j' + dx_b], \\qquad
       j' = w - 1 - j \\text{ if } flip_b \\text{ else } j $$

    Every image has offsets of its own, which the random choice belongs to (Keras' ``RandomCrop``
    draws one offset a batch). Pixels are copied, never computed with, so values stay exact. Nothing
    is padded in memory: the indices are folded back into the image.

    Args:
        x: images (n, h, w, c).
        dy, dx: integer offsets (n,), each in [0, 2 padding]; ``padding`` leaves the image in place.
        flip: booleans (n,).
        padding: rows and columns added on each side, less than h and w with ``mode="reflect"``.
        mode: ``"reflect"`` (the border pixel is not repeated) or ``"constant"`` (zeros).

    Returns:
        Images (n, h, w, c) of the type of ``x``.

    Example:

    >>> import numpy as np
    >>> from dynzoo.augmentation import random_crop_flip
    >>> x = np.random.default_rng(0).random((2, 8, 8, 3))
    >>> same = random_crop_flip(x, [2, 2], [2, 2], [False, False], padding=2)
    >>> tuple(same.shape)
    (2, 8, 8, 3)
    """
    _check(padding, mode, x.shape)
    height, width, channels = x.shape[1:]
    n = ops.shape(x)[0]
    columns = ops.arange(width, dtype="int32")
    mirrored = ops.where(ops.cast(flip, "bool")[:, None], width - 1 - columns, columns)
    rows = ops.cast(dy, "int32")[:, None] + ops.arange(height, dtype="int32") - padding
    columns = ops.cast(dx, "int32")[:, None] + mirrored - padding
    source = _fold(rows, height)[:, :, None] * width + _fold(columns, width)[:, None, :]
    source = source + (ops.arange(n, dtype="int32") * (height * width))[:, None, None]
    y = ops.take(ops.reshape(x, (-1, channels)), source, axis=0)
    if mode == "constant":
        inside_y = ops.logical_and(rows >= 0, rows < height)
        inside_x = ops.logical_and(columns >= 0, columns < width)
        inside = ops.logical_and(inside_y[:, :, None], inside_x[:, None, :])
        y = ops.where(inside[..., None], y, ops.zeros_like(y))
    return y


def _fold(index, size: int):
    """Mirror an index in (-size, 2 size - 1) back into [0, size), as reflection padding does."""
    return (size - 1) - ops.abs((size - 1) - ops.abs(index))


def _check(padding: int, mode: str, shape) -> None:
    one_of("mode", mode, _MODES)
    if padding != int(padding) or padding < 0:
        raise ValueError(f"`padding` must be an integer >= 0. Received: padding={padding}")
    if len(shape) != 4 or shape[1] is None or shape[2] is None or shape[3] is None:
        raise ValueError(
            f"images must be of shape (n, height, width, channels). Received: {tuple(shape)}"
        )
    if padding >= min(shape[1], shape[2]):
        raise ValueError(
            f"`padding` must be less than the image's height and width. "
            f"Received: padding={padding} for images of shape {tuple(shape)}"
        )


@keras.saving.register_keras_serializable(package="dynzoo")
class RandomCropFlip(keras.layers.Layer):
    """Random crop and flip of every image while training; the identity at inference.

    Guarantee: at inference the layer is the identity, so its Lipschitz bound is exactly 1.

    Args:
        padding: largest shift in pixels, each way.
        flip: whether to mirror half of the images horizontally.
        mode: ``"reflect"`` or ``"constant"``, what appears at the border.
        seed: seed of the layer's own generator; None for a different one each time.

    Example:

    >>> import numpy as np
    >>> from dynzoo.augmentation import RandomCropFlip
    >>> layer = RandomCropFlip(padding=4, seed=0)
    >>> tuple(layer(np.zeros((2, 8, 8, 3), "float32"), training=True).shape)
    (2, 8, 8, 3)
    """

    def __init__(self, padding=4, flip=True, mode="reflect", seed=None, **kwargs):
        super().__init__(**kwargs)
        if padding != int(padding) or padding < 0:
            raise ValueError(f"`padding` must be an integer >= 0. Received: padding={padding}")
        one_of("mode", mode, _MODES)
        self.padding = int(padding)
        self.flip = bool(flip)
        self.mode = mode
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def build(self, input_shape):
        _check(self.padding, self.mode, input_shape)

    def call(self, inputs, training=False):
        if not training:
            return inputs
        shape = (ops.shape(inputs)[0],)
        limit = 2 * self.padding + 1
        dy = keras.random.randint(shape, 0, limit, seed=self.seed_generator)
        dx = keras.random.randint(shape, 0, limit, seed=self.seed_generator)
        if self.flip:
            flip = keras.random.randint(shape, 0, 2, seed=self.seed_generator)
        else:
            flip = ops.zeros(shape, dtype="int32")
        return random_crop_flip(inputs, dy, dx, flip, self.padding, self.mode)

    def compute_output_shape(self, input_shape):
        return input_shape

    def lipschitz_bound(self, input_shape) -> float:
        """Upper bound of the L2 gain at inference: 1, for the layer is then the identity."""
        return 1.0

    def call_float64(self, x: np.ndarray) -> np.ndarray:
        """NumPy float64 reference of the inference call."""
        return np.asarray(x, dtype=np.float64)

    def get_config(self):
        config = super().get_config()
        config.update(padding=self.padding, flip=self.flip, mode=self.mode, seed=self.seed)
        return config


class Augmented(keras.utils.PyDataset):
    """Shuffled, cropped and flipped batches that depend on (seed, epoch, batch) and nothing else.

    A run that was interrupted and goes on with the same three numbers sees exactly the batches that
    it would have seen: on any backend, machine and number of workers. The object is one epoch, and
    reading it changes nothing. For several epochs in one ``fit``, give ``fit`` the callback
    ``follow_epochs()``; without it every epoch is the same.

    Args:
        x: images (n, h, w, c), uint8 or float32 in [0, 1].
        y: labels (n,).
        batch_size: images a batch; a last, smaller batch is dropped.
        seed: seed of the order and of the augmentation.
        epoch: number of the epoch, from 0.
        start_batch: first batch of the epoch, to go on part-way: it is shorter by as many.
        shuffle: whether to permute the images anew every epoch.
        padding: largest shift in pixels each way, with reflected borders; 0 for none.
        flip: whether to mirror half of the images; ``"alternating"`` for a half that is drawn
            once and takes turns with the other, so that two epochs show each image both ways.
        rotation: largest angle in degrees, in [0, 180], each way, by which half of the images are
            turned.
        zoom: largest share, in [0, 0.9], by which the same half is enlarged or made smaller.
        color_jitter: largest share, in [0, 1], by which brightness, contrast and saturation of
            every image change, each by a factor of its own.
        distort: whether to rotate, zoom and recolor here, on the host. If not, a batch is
            ``((x, draws), y)`` with numbers (n, 5) for each image, with which
            ``dynzoo.augmentation.on_device.distorted_model`` does the same, up to rounding, on the
            device.
        workers: threads that make batches ahead, within an epoch and in its order (so give ``fit``
            ``shuffle=False``); 1 for none.
        max_queue_size: how many batches they are ahead, with more than one worker.
        use_multiprocessing: must be False: workers are threads.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from dynzoo.augmentation import Augmented
    >>> x, y = np.random.default_rng(0).random((8, 8, 8, 3)).astype("float32"), np.arange(8) % 2
    >>> batches = Augmented(x, y, batch_size=4, padding=1, seed=0)
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    >>> model.add(keras.layers.Dense(2))
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = model.fit(batches, epochs=2, verbose=0, callbacks=[batches.follow_epochs()])
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        batch_size: int = 256,
        seed: int = 0,
        epoch: int = 0,
        start_batch: int = 0,
        shuffle: bool = True,
        padding: int = 4,
        flip: bool | str = True,
        rotation: float = 0.0,
        zoom: float = 0.0,
        color_jitter: float = 0.0,
        distort: bool = True,
        workers: int = 1,
        use_multiprocessing: bool = False,
        max_queue_size: int = 10,
    ):
        workers = integer("workers", workers)
        max_queue_size = integer("max_queue_size", max_queue_size)
        super().__init__(max_queue_size=max_queue_size)
        if use_multiprocessing:
            raise ValueError(
                "`use_multiprocessing` must be False: workers are threads. "
                f"Received: use_multiprocessing={use_multiprocessing}"
            )
        _check(padding, "reflect", x.shape)
        if x.dtype not in (np.uint8, np.float32):
            raise ValueError(f"`x` must be uint8 or float32. Received: x.dtype={x.dtype}")
        if len(x) != len(y):
            raise ValueError(f"`x` and `y` must be of one length. Received: {len(x)} and {len(y)}")
        if not 1 <= batch_size <= len(x):
            raise ValueError(
                f"`batch_size` must be in [1, {len(x)}]. Received: batch_size={batch_size}"
            )
        if not 0 <= start_batch < len(x) // batch_size:
            raise ValueError(
                f"`start_batch` must be in [0, {len(x) // batch_size - 1}]. "
                f"Received: start_batch={start_batch}"
            )
        self.x, self.y = x, y
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.start_batch = start_batch
        self.shuffle = shuffle
        self.padding = padding
        self.flip = one_of("flip", flip, (True, False, *FLIPS))
        self.rotation = number("rotation", rotation, 0.0, 180.0, closed="both")
        self.zoom = number("zoom", zoom, 0.0, 0.9, closed="both")
        self.color_jitter = number("color_jitter", color_jitter, 0.0, 1.0, closed="both")
        self.distort = distort
        self._order: tuple[int, np.ndarray] = (-1, np.arange(0))
        self._ahead = _Ahead(workers, max_queue_size) if workers > 1 else None

    def __len__(self) -> int:
        return len(self.x) // self.batch_size - self.start_batch

    @property
    def workers(self) -> int:
        """1, what Keras is told: its own workers feed batches of an epoch again in the next one."""
        return 1

    @workers.setter
    def workers(self, value: int) -> None:
        self._ahead = _Ahead(int(value), self.max_queue_size) if value > 1 else None

    def __getitem__(self, index: int) -> tuple[Any, np.ndarray]:
        if self._ahead is None:
            return self._batch(self.epoch, index)
        return self._ahead(self._batch, self.epoch, index, len(self))

    def _batch(self, epoch: int, index: int) -> tuple[Any, np.ndarray]:
        chosen, dy, dx, mirror, draws = self._numbers(epoch, index)
        x = self._cut(self.x[chosen], dy, dx, mirror)
        if self.distort:
            return self._distorted(x, draws), self.y[chosen]
        return (x, draws.astype("float32")), self.y[chosen]

    def numbers(self, index: int) -> tuple[np.ndarray, ...]:
        """What is drawn for a batch, without making it.

        Returns:
            For each image of the batch: its place in ``x``; the shifts down and to the right, in
            [0, 2 padding]; whether it is mirrored; and the numbers (n, 5) of its distortions, whose
            columns ``dynzoo.augmentation.on_device.DRAWS`` names.

        Example:

        >>> import numpy as np
        >>> from dynzoo.augmentation import Augmented
        >>> x, y = np.zeros((8, 8, 8, 3), "uint8"), np.arange(8)
        >>> chosen, dy, dx, mirror, draws = Augmented(x, y, batch_size=4).numbers(0)
        >>> chosen.shape, draws.shape
        ((4,), (4, 5))
        """
        return self._numbers(self.epoch, index)

    def _numbers(self, epoch: int, index: int) -> tuple[np.ndarray, ...]:
        batch = index + self.start_batch
        chosen = self._permutation(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
        # the batch counts from 1: NumPy reads [seed, epoch] and [seed, epoch, 0] as one seed
        rng = np.random.default_rng([self.seed, epoch, batch + 1])
        dy, dx = rng.integers(0, 2 * self.padding + 1, size=(2, len(chosen)))
        mirror = rng.integers(0, 2, size=len(chosen)).astype(bool)
        if self.flip == "alternating":
            mirror = (self._mirrored_first[chosen] + epoch) % 2 == 1
        else:
            mirror &= bool(self.flip)
        return chosen, dy, dx, mirror, self._draws(len(chosen), rng)

    def follow_epochs(self) -> keras.callbacks.Callback:
        """A callback that sets ``epoch`` to the number of each epoch that ``fit`` begins.

        Not by ``on_epoch_end``, which Keras also calls after it looked at a first batch to build
        the model: the count would depend on whether the model had been used before.

        Raises:
            ValueError: with a ``start_batch``, for ``fit`` fixes the number of batches at the
                start.
        """
        if self.start_batch:
            raise ValueError(
                "`follow_epochs` needs whole epochs: run the rest of a broken one in a `fit` of "
                f"its own. Received: start_batch={self.start_batch}"
            )
        return _FollowEpochs(self)

    def _permutation(self, epoch: int) -> np.ndarray:
        known, order = self._order
        if known != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            order = rng.permutation(len(self.x)) if self.shuffle else np.arange(len(self.x))
            self._order = (epoch, order)
        return order

    @functools.cached_property
    def _mirrored_first(self) -> np.ndarray:
        """1 for each image that is mirrored in epoch 0, if the halves take turns."""
        # four numbers that do not end in 0: no seed of an epoch or a batch reads like that
        return np.random.default_rng([self.seed, 0, 0, 1]).integers(0, 2, size=len(self.x))

    def _cut(self, x: np.ndarray, dy, dx, mirror) -> np.ndarray:
        # The same map as `random_crop_flip`. On a CPU, slices of memory beat gathering by index:
        # all windows of all images are a view, from which those that were drawn are copied.
        n, height, width, channels = x.shape
        pad = (self.padding, self.padding)
        padded = np.pad(x, ((0, 0), pad, pad, (0, 0)), mode="reflect") if self.padding else x
        lines = padded.reshape(n, padded.shape[1], -1)
        windows = sliding_window_view(lines, (height, width * channels), axis=(1, 2))
        out = windows[np.arange(n), dy, dx * channels]
        backwards = np.arange(width * channels).reshape(width, channels)[::-1].ravel()
        out[mirror] = out[mirror].take(backwards, axis=2)
        out = out.reshape(x.shape)
        if x.dtype == np.uint8:
            return np.divide(out, np.float32(255), dtype=np.float32)
        return out

    def _draws(self, count: int, rng: np.random.Generator) -> np.ndarray:
        draws = np.tile(np.array([*DRAWS.values()]), (count, 1))
        if self.rotation or self.zoom:
            # The other half stays as sharp as the images at inference.
            some = np.flatnonzero(rng.integers(0, 2, size=count))
            angle, zoom = rng.uniform(-1, 1, size=(2, len(some)))
            draws[some, 0] = np.deg2rad(self.rotation) * angle
            draws[some, 1] = 1 + self.zoom * zoom
        if self.color_jitter:
            factors = rng.uniform(1 - self.color_jitter, 1 + self.color_jitter, (3, count))
            draws[:, 2:] = factors.T
        return draws

    def _distorted(self, x: np.ndarray, draws: np.ndarray) -> np.ndarray:
        angle, zoom, *factors = draws.T
        some = np.flatnonzero((angle != 0) | (zoom != 1))
        if len(some):
            x[some] = rotate_and_zoom(x[some], angle[some], zoom[some])
        return color_jitter(x, *factors) if self.color_jitter else x


class _Ahead:
    """Makes the batches that come next while one is in use; those of another epoch are dropped."""

    def __init__(self, workers: int, batches: int):
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="augmented")
        self._batches = batches
        self._lock = threading.Lock()
        self._made: dict[tuple[int, int], Future] = {}
        self._next = 0

    def __call__(self, make: Callable[[int, int], Any], epoch: int, index: int, end: int) -> Any:
        with self._lock:
            # Out of order it is not known which batches come next.
            ahead = self._batches if index in (0, self._next) else 0
            self._next = index + 1
            self._made = {key: f for key, f in self._made.items() if key[0] == epoch}
            for i in (index, *range(index + 1, min(index + 1 + ahead, end))):
                if (epoch, i) not in self._made:
                    self._made[epoch, i] = self._pool.submit(make, epoch, i)
            batch = self._made.pop((epoch, index))
        return batch.result()


class _FollowEpochs(keras.callbacks.Callback):
    def __init__(self, batches: Augmented):
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.epoch = epoch
