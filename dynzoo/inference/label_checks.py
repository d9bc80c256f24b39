"""What labels may be: one check for every entry point, whole classes or shares of classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynzoo.backend import to_numpy

__all__ = ["check_labels", "count_classes", "training_labels"]

# What rounding in half precision may leave of a sum of shares that is 1.
SHARE_TOLERANCE = 0.01


def check_labels(y: Any, images: int | None = None, classes: int | None = None) -> np.ndarray:
    """One class for each image, as integers.

    Args:
        y: integers (n,) or (n, 1), as Keras' CIFAR loader gives them, or one-hot rows (n, K).
        images: n, where it is known.
        classes: number of classes of the model, where it is known.

    Returns:
        int64 (n,).

    Raises:
        ValueError: for anything else: shares of several classes, other numbers of labels, labels
            that no class has.

    Example:

    >>> check_labels([[2], [0]], images=2, classes=3)
    array([2, 0])
    """
    given = y if isinstance(y, np.ndarray) else to_numpy(y)
    labels = given
    if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind in "iu":
        labels = labels[:, 0]
    elif labels.ndim == 2 and labels.shape[1] > 1 and _is_one_hot(labels):
        _check_width(labels, classes)
        labels = labels.argmax(axis=1)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            "`y` must be integer labels of shape (n,), one an image, or one-hot rows. "
            f"Received: shape {given.shape}, dtype {given.dtype}"
        )
    if images is not None and len(labels) != images:
        raise ValueError(
            f"`x` and `y` must have the same length. Received: {images} images, "
            f"{len(labels)} labels"
        )
    _check_range(labels, classes)
    return labels.astype(np.int64)


def training_labels(y: Any, images: int, classes: int) -> np.ndarray:
    """Labels that a loss can be given: a class for each image, or the shares of the classes.

    Args:
        y: what ``check_labels`` takes, whole numbers in a float type, or rows (n, K) of shares that
            are not negative and sum to 1 (soft labels, as MixUp makes them).
        images: n.
        classes: K.

    Returns:
        int64 (n,), or float32 (n, K).

    Raises:
        ValueError: as ``check_labels``.

    Example:

    >>> training_labels([[0.25, 0.75]], 1, 2)
    array([[0.25, 0.75]], dtype=float32)
    """
    labels = y if isinstance(y, np.ndarray) else to_numpy(y)
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "iufb":
        _check_width(labels, classes)
        shares = labels.astype(np.float32)
        if not (np.all(shares >= 0) and np.all(np.abs(shares.sum(1) - 1) <= SHARE_TOLERANCE)):
            raise ValueError(
                "`y` of shape (n, K) must hold the shares of the K classes, not negative and with "
                "the sum 1 in each row (one-hot or soft labels). Received: sums from "
                f"{shares.sum(1).min():g} to {shares.sum(1).max():g}, least {shares.min():g}"
            )
        if len(shares) != images:
            raise ValueError(
                f"`x` and `y` must have the same length. Received: {images} images, "
                f"{len(shares)} labels"
            )
        return shares
    if labels.dtype.kind == "f" and np.all(np.isfinite(labels)) and np.all(labels % 1 == 0):
        labels = labels.astype(np.int64)
    return check_labels(labels, images, classes)


def count_classes(y: Any, where: str = "`y`") -> int:
    """The number of classes of a data set by its labels: the largest one, plus one.

    Args:
        y: integers (n,), not empty.
        where: what the labels are of, for the message.

    Raises:
        ValueError: if no image has the label 0 or most of the numbers up to the largest label are
            no label: classes that no image has would be trained and certified.

    Example:

    >>> count_classes([0, 2, 1])
    3
    """
    found = np.unique(check_labels(y))
    remedy = "Number the classes from 0 on, without gaps."
    if found[0] != 0:
        raise ValueError(
            f"{where} must hold labels from 0 on. Received: labels from {found[0]} to {found[-1]}. "
            + (f"Subtract {found[0]}." if len(found) == found[-1] - found[0] + 1 else remedy)
        )
    if 2 * len(found) <= found[-1]:
        raise ValueError(
            f"{where} must hold labels from 0 on without gaps. Received: {len(found)} different "
            f"labels, the largest of which is {found[-1]}. {remedy}"
        )
    return int(found[-1]) + 1


def _is_one_hot(labels: np.ndarray) -> bool:
    ones = labels == 1
    return bool(np.all(ones | (labels == 0)) and np.all(ones.sum(axis=1) == 1))


def _check_width(labels: np.ndarray, classes: int | None) -> None:
    if classes is not None and labels.shape[1] != classes:
        raise ValueError(
            f"`y` must have a column for each of the {classes} classes, where it has several. "
            f"Received: shape {labels.shape}"
        )


def _check_range(labels: np.ndarray, classes: int | None) -> None:
    if not labels.size:
        return
    low, high = labels.min(), labels.max()
    if low < 0 or (classes is not None and high >= classes):
        allowed = "that are not negative"
        if classes is not None:
            allowed = f"from 0 to {classes - 1}, one for each of the {classes} logits"
        hint = ""
        if classes is not None and low == 1 and high == classes:
            hint = ". Subtract 1: classes are counted from 0"
        raise ValueError(
            f"`y` must hold labels {allowed}. Received: labels from {low} to {high}{hint}"
        )
