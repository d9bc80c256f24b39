"""Fine-tuning: a preset's body, a new data set, a few epochs of ``model.fit``."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from dynzoo import backend, constraints, losses
from dynzoo.augmentation import batches as augmentation
from dynzoo.inference import class_names as labels
from dynzoo.inference.image_checks import check_shape, check_unit_range, fitting_images
from dynzoo.inference.label_checks import training_labels
from dynzoo.inference.streamed_images import StreamedImages
from dynzoo.training import builders as optimization
from dynzoo.training.arguments import check_crop_padding, check_finetuning
from dynzoo.training.distribution import refuse_separate_processes
from dynzoo.utils.allocator import keep_freed_memory
from dynzoo.utils.arguments import integer
from dynzoo.utils.tensorflow_import import set_random_seed

__all__ = ["finetune", "fit_arguments"]


def finetune(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    epochs: int = 10,
    learning_rate: float = 0.02,
    batch_size: int = 64,
    freeze_body: bool = False,
    crop_padding: int = 0,
    flip: bool = False,
    seed: int = 0,
    verbose: Any = "auto",
) -> keras.callbacks.History:
    """Compile a model the way the zoo's recipes do, fit it, and impose its constraints once more.

    Guarantee: the model's constraints hold afterwards, so what ``certify`` says of a preset's
    layers it says of the fine-tuned ones.

    Args:
        model: classifier from images to logits, such as ``from_preset`` gives; changed in place.
        x: images (n, height, width, channels) in [0, 1], or in the range that the model takes;
            uint8 images are divided by 255; or ``StreamedImages``, read a batch at a time.
        y: integer labels (n,) or (n, 1), or one-hot or soft ones (n, classes).
        epochs: passes over the images, positive.
        learning_rate: peak of the schedule for kernels under an ``Orthonormal`` constraint,
            positive; other weights get a tenth of it.
        batch_size: images in a step, positive.
        freeze_body: train the last layer only. Afterwards all layers are as trainable as before,
            and the model is compiled as ``from_preset`` does. Without it, layers that you have
            frozen stay so.
        crop_padding: largest random shift of a training image in pixels, each way, with reflected
            borders; less than its height and width. 0: none.
        flip: whether to mirror half of the training images, anew each epoch. Not for digits.
        seed: seed of the shuffling, and of the shifts and flips.
        verbose: as in ``model.fit``.

    Returns:
        The history of ``model.fit``.

    Raises:
        ValueError: if an argument is out of its range, naming it; images and labels included. Of
            its kind ``DistributionError``, in one of several processes.

    Example:

    >>> import numpy as np
    >>> import dynzoo
    >>> from dynzoo.models import isometric_classifier
    >>> from dynzoo.training import finetune
    >>> model = isometric_classifier(
    ...     (8, 8, 1), 10, widths=(8,), steps=(1,), mean=None, neck_units=8, dense_steps=1
    ... )
    >>> x, y = np.random.default_rng(0).random((64, 8, 8, 1)), np.arange(64) % 10
    >>> history = finetune(model, x, y, epochs=1, verbose=0)
    >>> dynzoo.constraints.unmet(model)
    {}
    """
    epochs = integer("epochs", epochs)
    batch_size = integer("batch_size", batch_size)
    check_finetuning(learning_rate)
    refuse_separate_processes("Fine-tuning")
    if isinstance(x, StreamedImages):
        check_shape(x, model)
        check_unit_range(model)
        x = x.astype(x.stored)  # `Augmented` divides the bytes that it is given
    else:
        x = fitting_images(x, model)
    y = training_labels(y, len(x), model.output_shape[-1])
    check_crop_padding(crop_padding, x.shape[1:])
    labels.declare_names(model, None)  # those of the data are not known here
    keep_freed_memory()
    set_random_seed(seed)
    images, steps = fit_arguments(x, y, batch_size, seed, crop_padding, flip)
    optimizer = {
        "name": "muon",
        "learning_rate": learning_rate,
        "adam_learning_rate": 0.1 * learning_rate,
    }
    schedule = {"warmup": 0.1, "decay": 0.9}
    with _frozen(model.layers[:-1] if freeze_body else []):
        model.compile(
            optimizer=optimization.make_optimizer(optimizer, epochs * steps, schedule),
            loss=losses.OffsetCrossentropy(),
            metrics=["accuracy"],
            jit_compile=backend.fit_with_jit(),
        )
        if backend.fit_builds_late():
            optimization.build_variables(model, y[0] if y.ndim == 2 else None)
        history = model.fit(**images, epochs=epochs, verbose=verbose)
    if freeze_body:
        # What was compiled knows of the head alone.
        model.compile(optimizer="adam", loss=losses.OffsetCrossentropy(), metrics=["accuracy"])
    constraints.project(model)
    return history


@contextlib.contextmanager
def _frozen(layers: Sequence[keras.layers.Layer]) -> Iterator[None]:
    """Layers without training within this block; then as they were, for whoever trains them next.

    The flag is part of a layer's config, and would be saved with it.
    """
    parts = [part for layer in layers for part in layer._flatten_layers()]
    flags = [(part, part.trainable) for part in parts]
    flags += [(v, v.trainable) for layer in layers for v in layer.variables]
    try:
        for layer in layers:
            layer.trainable = False
        yield
    finally:
        for part, flag in flags:  # outer layers first, for theirs goes to all that they hold
            part.trainable = flag


def fit_arguments(
    x: np.ndarray, y: np.ndarray, batch_size: int, seed: int, crop_padding: int, flip: bool
) -> tuple[dict[str, Any], int]:
    """What ``model.fit`` is given to see these images, augmented or not, and its steps an epoch."""
    if not crop_padding and not flip and not isinstance(x, StreamedImages):
        return {"x": x, "y": y, "batch_size": batch_size}, math.ceil(len(x) / batch_size)
    batches = augmentation.Augmented(
        x, y, min(batch_size, len(x)), seed, padding=crop_padding, flip=flip
    )
    return {"x": batches, "callbacks": [batches.follow_epochs()]}, len(batches)
