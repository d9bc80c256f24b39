"""What a network says of pictures: the class, by how much, and how far that is proved to hold."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dynzoo import backend
from dynzoo.certificates import LocalCertificate, UncertifiableLayerError, certify
from dynzoo.certificates.certificate import Certificate
from dynzoo.certificates.identity import check_is_of
from dynzoo.certificates.smoothing import SmoothedClassifier
from dynzoo.inference import class_names as labels
from dynzoo.inference.image_checks import fitting_images, input_range
from dynzoo.inference.image_files import MODES, read_image, told_apart
from dynzoo.inference.image_paths import image_paths
from dynzoo.utils.csv_text import csv_text
from dynzoo.utils.files import check_output, write_atomically
from dynzoo.utils.formatting import norm_text
from dynzoo.utils.html import table, text

__all__ = ["COLUMNS", "Predictions", "predict"]

COLUMNS = ("image", "label", "class", "runner_up", "margin", "certified_radius", "unit")


@dataclass(frozen=True)
class Predictions:
    """Answers of a network to pictures, one an entry.

    Attributes:
        images: names of the pictures: their files, or numbers.
        labels: int64 array (n,), the classes with the largest logits.
        runners_up: int64 array (n,), those with the second largest.
        margins: float64 array (n,), by how much the first logit exceeds the second; no probability.
        radii: float64 array (n,), radius within which no change of the picture changes the answer;
            ``None`` for a network without a certificate.
        classes: names of all classes.
        size: (height, width) of the pictures that the network was given.
        pixels: the range of their pixels, which is the unit of the radii; ``None`` if not known.
        reason: why there are no radii, or "".
        norm: of the radii, "l2", or "linf" where a local certificate has those.
    """

    images: list[str]
    labels: np.ndarray
    runners_up: np.ndarray
    margins: np.ndarray
    radii: np.ndarray | None
    classes: list[str]
    size: tuple[int, ...]
    pixels: tuple[float, float] | None
    reason: str = ""
    norm: str = "l2"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def unit(self) -> str:
        """What the radii are counted in."""
        norm = norm_text(self.norm)
        if self.pixels is None:
            return f"{norm}, in the units of the pixels"
        return f"{norm}, pixels in [{self.pixels[0]:g}, {self.pixels[1]:g}]"

    def to_dict(self) -> list[dict[str, Any]]:
        """An entry a picture, of values that JSON has."""
        return [
            {
                "image": self.images[i],
                "label": int(self.labels[i]),
                "class": self.classes[self.labels[i]],
                "runner_up": self.classes[self.runners_up[i]],
                "margin": float(self.margins[i]),
                "certified_radius": None if self.radii is None else float(self.radii[i]),
                "unit": self.unit,
            }
            for i in range(len(self))
        ]

    def sentences(self) -> list[str]:
        """A sentence a picture, for people."""
        size = " x ".join(map(str, self.size))
        texts = []
        for row in self.to_dict():
            text = f"{row['image']}: {row['class']}"
            text += f", then {row['runner_up']} with a logit {row['margin']:.3g} lower"
            radius = row["certified_radius"]
            if radius:
                text += (
                    f"; it stays {row['class']} under every change of the {size} picture by up to "
                    f"{_floor(radius)} ({self.unit})"
                )
            elif radius is not None:
                text += "; no radius is proved for it"
            texts.append(text)
        return texts

    def __str__(self) -> str:
        lines = self.sentences()
        if self.reason:
            lines.append(f"No certified radii: {self.reason}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """A table, for a notebook."""
        rows = [
            [
                text(row["image"]),
                text(row["class"]),
                text(row["runner_up"]),
                f"{row['margin']:.3g}",
                _floor(row["certified_radius"]) if row["certified_radius"] else "&ndash;",
            ]
            for row in self.to_dict()
        ]
        header = ["image", "class", "runner-up", "margin", f"certified radius ({self.unit})"]
        return table(header, rows) + (f"<p>{text(self.reason)}</p>" if self.reason else "")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a table as ``.csv`` or ``.json``.

        Raises:
            ValueError: if the name ends otherwise.
        """
        path = check_output(path)
        rows = self.to_dict()
        text = csv_text(COLUMNS, rows) if path.suffix == ".csv" else json.dumps(rows, indent=1)
        write_atomically(path, (text.rstrip("\n") + "\n").encode())


def predict(
    model: keras.Model,
    images: Any,
    class_names: Sequence[str] | None = None,
    certificate: Certificate | LocalCertificate | None = None,
    batch_size: int = 256,
) -> Predictions:
    r"""Asks a network what is on some pictures, and how far its answers are proved to hold.

    Guarantee: as for ``Certificate.radii``: no change of L2 norm up to the radius changes the
    answer. It is about the picture as the network gets it. Files of another size are cut in the
    middle and scaled first, and then it is about the scaled picture; a model of
    ``from_preset(..., preprocess=True, image_size=...)`` scales inside, and is certified for the
    pixels of the file.

    Args:
        model: classifier from images (n, height, width, channels) to logits (n, K), such as
            ``from_preset`` gives; without a certificate there are no radii.
        images: a file, a folder of files, or a list of them, of any size; or an array
            (n, height, width, channels), or one image (height, width, channels), in the range that
            the model takes (uint8 counts as bytes).
        class_names: K texts; ``None`` for the preset's own, or numbers where it has none.
        certificate: that of the model, if there is one already, of ``certify`` or
            ``certify_local``.
        batch_size: images at once.

    Returns:
        ``Predictions``.

    Raises:
        ValueError: if an image cannot be read or does not fit, naming it, or the certificate is of
            another model or of a smoothed classifier.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import dynzoo
    >>> layers = [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    >>> model = keras.Sequential(layers)
    >>> image = np.full((4, 4, 3), 0.5, "float32")  # or a file: "photo.jpg"
    >>> found = dynzoo.predict(model, image, class_names=["cat", "dog"])
    >>> len(found.to_dict())
    1
    """
    _check_certificate(certificate, model)
    shape = tuple(model.input_shape[1:])
    names, x = _pictures(images, shape)
    x = fitting_images(x, model)
    classes = _classes(class_names, model)
    reason = ""
    if certificate is None:
        try:
            certificate = certify(model)
        except UncertifiableLayerError as error:
            reason = str(error)
    answers, radii = None, None
    if isinstance(certificate, Certificate):
        logits, answers, radii = certificate.logits_and_radii(x, batch_size)
    else:
        logits = backend.to_numpy(model.predict(x, batch_size=batch_size, verbose=0))
        if certificate is not None:  # a local one, whose passes are its own
            answers, radii = certificate.radii(x, batch_size=batch_size)
    logits = logits.astype(np.float64)
    order = np.argsort(-logits, axis=1, kind="stable")
    answers = order[:, 0] if answers is None else answers
    seconds = np.where(order[:, 0] == answers, order[:, 1], order[:, 0])
    rows = np.arange(len(x))
    return Predictions(
        images=names,
        labels=answers,
        runners_up=seconds,
        margins=logits[rows, answers] - logits[rows, seconds],
        radii=radii,
        classes=classes,
        size=x.shape[1:3],
        pixels=input_range(model),
        reason=reason,
        norm=getattr(certificate, "norm", "l2"),
    )


def _check_certificate(certificate: Any, model: keras.Model) -> None:
    """A ValueError for one whose answers are not those of the model."""
    if isinstance(certificate, SmoothedClassifier):
        raise ValueError(
            "`certificate` must be one of `dynzoo.certify` or `certify_local`. Received: a "
            "smoothed classifier, whose answers are not the model's: call its own `radii`"
        )
    check_is_of(certificate, model)


def _pictures(images: Any, shape: tuple[int, ...]) -> tuple[list[str], np.ndarray]:
    if isinstance(images, (str, os.PathLike)):
        images = [images]
    if isinstance(images, (list, tuple)) and all(isinstance(i, (str, os.PathLike)) for i in images):
        files = [file for entry in images for file in image_paths(entry)]
        if not files:
            raise ValueError("`images` must name at least one file. Received: an empty list")
        return [str(file) for file in files], _read(files, shape)
    x = images if isinstance(images, np.ndarray) else backend.to_numpy(images)
    x = x[None] if x.ndim == len(shape) else x
    if x.ndim < 2:
        raise ValueError(
            "`images` must be files, or an array (n, height, width, channels). "
            f"Received: shape {x.shape}, dtype {x.dtype}"
        )
    return [str(i) for i in range(len(x))], x


def _read(files: list[Path], shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) != 3 or shape[2] not in MODES or None in shape:
        raise ValueError(
            "`images` can be files for a model of images with 1 or 3 channels and a known size. "
            f"Received: a model of inputs {shape}"
        )
    with told_apart():
        return np.stack([read_image(file, shape) for file in files])


def _classes(names: Sequence[str] | None, model: keras.Model) -> list[str]:
    count = model.output_shape[-1]
    if names is None:
        return labels.names_of(model) or [str(i) for i in range(count)]
    if len(names) != count:
        raise ValueError(
            f"`class_names` must be {count} texts, one a class. Received: {len(names)} of them"
        )
    return [str(name) for name in names]


def _floor(radius: float) -> str:
    """Three digits, never more than the number."""
    digits = 2 - int(np.floor(np.log10(radius)))
    text = f"{np.floor(radius * 10.0**digits) / 10.0**digits:.3g}"
    return text if float(text) <= radius else f"{radius:.17g}"
