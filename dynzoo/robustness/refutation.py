"""A certificate against the attacks: one counterexample is enough."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo.attacks.geometry import distances
from dynzoo.utils.files import write_atomically
from dynzoo.utils.formatting import norm_text

__all__ = ["CertificateViolation", "refute"]

_NAMES = ("index", "x", "x_adv", "radius", "distance", "label", "fooled_label", "norm")


class CertificateViolation(Exception):
    """A certified image was fooled inside its certified radius: the certificate is wrong.

    Attributes:
        index: position of the image in ``x``.
        x: the clean image, float32.
        x_adv: the point that the model classifies differently, float32.
        radius: the certified radius of the image.
        distance: distance of ``x_adv`` from ``x``, in float64; below ``radius``.
        label: label that the certificate vouches for.
        fooled_label: label of ``x_adv``.
        norm: of radius and distance, "l2" or "linf".
    """

    def __init__(
        self,
        index: int,
        x: np.ndarray,
        x_adv: np.ndarray,
        radius: float,
        distance: float,
        label: int,
        fooled_label: int,
        norm: str = "l2",
    ) -> None:
        super().__init__(
            f"Image {index} is certified up to {norm_text(norm)} radius {radius:.8g}, but a point "
            f"at distance {distance:.8g} is classified differently. The certificate is not valid."
        )
        self.index, self.x, self.x_adv = index, x, x_adv
        self.radius, self.distance = radius, distance
        self.label, self.fooled_label = label, fooled_label
        self.norm = norm

    def __reduce__(self) -> tuple[Any, ...]:
        # it comes out of other processes too
        return type(self), tuple(getattr(self, name) for name in _NAMES)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the counterexample as an ``.npz`` file: every attribute by its name.

        Raises:
            ValueError: if the suffix is another one.
        """
        path = Path(path)
        if path.suffix.lower() != ".npz":
            raise ValueError(f"`path` must end in .npz. Received: path={str(path)!r}")
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{name: getattr(self, name) for name in _NAMES})
        write_atomically(path, buffer.getvalue())
        self.args = (f"{self.args[0]} Saved as {path}.",)
        return path


def refute(
    x: np.ndarray,
    points: np.ndarray,
    rows: np.ndarray,
    labels: np.ndarray,
    cert_labels: np.ndarray,
    radii: Mapping[str, np.ndarray],
    first: int = 0,
) -> None:
    """Raise a CertificateViolation if a point has another label inside its certified radius.

    ``radii`` are by their norm; ``first`` is the number of the first image of ``x`` in the data
    set.
    """
    for norm, claimed in radii.items():
        gone = distances(points, x[rows], norm)
        wrong = np.flatnonzero((labels != cert_labels[rows]) & (gone < claimed[rows]))
        if not wrong.size:
            continue
        k, index = int(wrong[0]), int(rows[wrong[0]])
        raise CertificateViolation(
            index + first,
            x[index].copy(),
            points[k].copy(),
            float(claimed[index]),
            float(gone[k]),
            int(cert_labels[index]),
            int(labels[k]),
            norm,
        )
