"""`certify` a model and ask the certificate for the radius of each prediction.

`certify` runs the model on three inputs, to see that it computes what is bounded. The rounding
margin is measured with the first call of `Certificate.radii`, on images that ride along with the
user's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from dynzoo.backend import compiles, to_numpy
from dynzoo.backend import name as backend_name
from dynzoo.certificates import margins, twin
from dynzoo.certificates.errors import StaleCertificateError
from dynzoo.certificates.graph import Program, trace
from dynzoo.certificates.identity import input_dtype, weights_hash
from dynzoo.certificates.lipschitz import (
    Head,
    LayerBound,
    bound_layers,
    check_layers,
    find_head,
)
from dynzoo.certificates.rounding import (
    PROBES,
    SAFETY_FACTOR,
    probe_images,
    rounding_margin,
    run_program,
)
from dynzoo.certificates.settings import Settings, difference, freeze_settings

__all__ = ["Certificate", "certify"]

_REMEASURED = 8
_BLOCK = 4096


def certify(model: keras.Model) -> Certificate:
    r"""Proves an upper bound of a model's L2 Lipschitz constant.

    The graph is walked from the input to the logits: along a chain the layers' constants
    multiply, at an `Add` the bounds of the branches add, at a `Concatenate` their squares do.
    Every constant is an upper bound computed in float64 (an SVD, never a power iteration).

    Guarantee: $\|f(x) - f(y)\| \le L \|x - y\|$ for all inputs of the model's shape, at inference,
    for the weights and settings at the time of the call. It never guesses: a layer that it does
    not know stops it with an error that names the layer.

    Args:
        model: built Sequential or Functional model, float32 or float64, from one input of fixed
            shape to logits (n, K). Nested models, shared layers, branches, joins and bare
            operations such as `x + y`, `0.5 * x` and `x[:, 1:]` are fine.

    Returns:
        A `Certificate`.

    Raises:
        UncertifiableLayerError: (a ValueError) at a layer without a known constant.
        ValueError: if the model is not built, subclassed, in reduced precision, ends in a softmax,
            has weights or settings that are not finite, a bound that float64 cannot hold, or other
            than one input and one output (n, K).
        ReferenceMismatchError: if the model is not the function that its layers are known for.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> labels, radii = certify(model).radii(np.random.rand(5, 4))

    Reference: Szegedy et al., "Intriguing properties of neural networks", 2014 (section 4.3);
    Tsuzuku, Sato, Sugiyama, "Lipschitz-margin training", NeurIPS 2018 (proposition 1).
    """
    program = trace(model)
    check_layers(program)
    x = twin.probes(program.input_shape, input_dtype(model))
    digest = weights_hash(model)
    values = run_program(program, x)
    shapes = {slot: (None, *value.shape[1:]) for slot, value in values.items()}
    head = find_head(program, shapes)
    bounds, table = bound_layers(program, shapes)
    twin.check_twin(model, program, freeze_settings(program, model), x, values[program.output])
    # Taken last: a layer may keep what it computed when it was first called.
    settings = freeze_settings(program, model)
    return Certificate(model, program, head, tuple(table), bounds[head.body_slot], digest, settings)


class Certificate:
    r"""An upper bound of a model's Lipschitz constant, and the certified radii that follow.

    Guarantee: no perturbation of L2 norm up to the radius of an image changes the model's answer,
    as computed in floating point, provided every logit is within `rounding` of its real value.

    Attributes:
        lipschitz: upper bound of the L2 Lipschitz constant of the map from input to logits.
        body_lipschitz: the same up to the input of a linear head (to the logits without one).
        pair_distances: array (K, K); $\|w_i - w_j\|$ of a linear head, $\sqrt2$ without one.
        rounding: margin tau for one logit, 10 times the largest difference between the
            model and its float64 reference on probe images (measured when first needed).
        layers: a `LayerBound` (name, class, gain, bound so far) for each call of a layer.
        weights_sha256: hash of the weights the certificate is for.

    Made by `certify`.
    """

    def __init__(
        self,
        model: keras.Model,
        program: Program,
        head: Head,
        layers: tuple[LayerBound, ...],
        body_lipschitz: float,
        weights_sha256: str,
        settings: Settings,
    ):
        self._model = model
        self._program = program
        self._settings = settings
        self._linear_head = head.linear
        self.layers = layers
        self.body_lipschitz = float(body_lipschitz)
        self.lipschitz = float(margins.product(body_lipschitz, head.norm))
        if not np.isfinite(self.lipschitz):
            raise ValueError("The Lipschitz bound of the model overflows float64.")
        self.pair_distances = head.distances
        self._speeds = margins.product(self.body_lipschitz, self.pair_distances)
        self._rounding: float | None = None
        self.weights_sha256 = weights_sha256

    @property
    def rounding(self) -> float:
        """Margin tau in units of the logits; measured on the first use."""
        if self._rounding is None:
            self._check_current()
            self._predict(np.zeros((0, *self._program.input_shape), input_dtype(self._model)), 256)
        assert self._rounding is not None
        return self._rounding

    def radii(self, x: Any, batch_size: int = 256) -> tuple[np.ndarray, np.ndarray]:
        r"""Predicted labels, and the L2 radius within which each is proved not to change.

        $r = \min_{j \ne i} (z_i - z_j - 4\tau) / (L \|w_i - w_j\|)$, not below 0, with i the
        predicted class, L the bound of the body and $\tau$ the rounding margin, which is measured
        again on the first images. A tie gives exactly 0, so do logits that are not finite. If the
        margin to class j cannot change ($w_i = w_j$), class j sets no limit; the radius of a
        model with a constant answer is infinite.

        Args:
            x: float images (n, ...) of the model's input shape, in the scale the model takes
                ([0, 1] for dynzoo's).
            batch_size: images per forward pass.

        Returns:
            (labels (n,) int64, radii (n,) float64 in the units of x).

        Raises:
            StaleCertificateError: (a ValueError) if the model changed since it was certified.
            ReferenceMismatchError: if the forward pass is too far from the float64 reference.
            ValueError: if x is not a float array of the model's input shape.

        Example:

        >>> labels, radii = certify(model).radii(x_test)
        >>> certified_accuracy = np.mean((labels == y_test) & (radii >= 36 / 255))
        """
        raw, tau, moved = self._logits(x, batch_size)
        labels, radii = np.zeros(len(raw), np.int64), np.zeros(len(raw), np.float64)
        for block in _blocks(len(raw)):
            labels[block] = np.argmax(margins.replaced(raw[block]), axis=1)
            radii[block] = self._limits(raw[block], labels[block], tau).min(axis=1)
        return labels, margins.shrunk(radii, moved)

    def topk_radii(
        self, x: Any, y: Any, k: int | Sequence[int] = (1, 5), batch_size: int = 256
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Place of each label among the logits, and the L2 radius within which it stays in front.

        Label y leaves the k largest logits only if k other classes reach it, and class j cannot
        before the distance $r_j = (z_y - z_j - 4\tau) / (L \|w_y - w_j\|)$. The radius is the k-th
        smallest $r_j$, not below 0; k = 1 gives `radii` where y is the prediction, and 0 elsewhere.

        Args:
            x: float images (n, ...), as in `radii`.
            y: integer labels (n,) in [0, K).
            k: how many largest logits count, one number or several, each in [1, K - 1].
            batch_size: images per forward pass.

        Returns:
            (places (n,) int64, 0 for the prediction; radii float64 in the units of x, of shape
            (n,) for one k, (n, len(k)) for several).

        Raises:
            ValueError: if y or k is out of its range; and what `radii` raises.

        Example:

        >>> places, radii = certify(model).topk_radii(x_test, y_test, k=(1, 5))
        >>> top5, certified_top5 = np.mean(places < 5), np.mean(radii[:, 1] >= 36 / 255)
        """
        classes = len(self.pair_distances)
        ks: list[int] = np.atleast_1d(k).tolist()
        if not ks or not all(isinstance(i, int) and 1 <= i < classes for i in ks):
            raise ValueError(f"`k` must be integers in [1, {classes - 1}]. Received: k={k}")
        labels = margins.check_labels(y, len(x), classes)
        raw, tau, moved = self._logits(x, batch_size)
        places, radii = np.zeros(len(raw), np.int64), np.zeros((len(raw), len(ks)))
        for block in _blocks(len(raw)):
            places[block] = margins.places(margins.replaced(raw[block]), labels[block])
            limits = np.sort(self._limits(raw[block], labels[block], tau), axis=1)
            radii[block] = limits[:, [i - 1 for i in ks]]
        radii = margins.shrunk(radii, moved[:, None])
        return places, radii[:, 0] if np.ndim(k) == 0 else radii

    def to_dict(self) -> dict[str, Any]:
        """Everything in the certificate as plain numbers and strings, for JSON."""
        off_diagonal = self.pair_distances[~np.eye(len(self.pair_distances), dtype=bool)]
        return {
            "lipschitz": self.lipschitz,
            "body_lipschitz": self.body_lipschitz,
            "head": {
                "linear": self._linear_head,
                "classes": len(self.pair_distances),
                "min_distance": float(off_diagonal.min()),
                "max_distance": float(off_diagonal.max()),
            },
            "rounding": {"tau": self.rounding, "safety_factor": SAFETY_FACTOR},
            "weights_sha256": self.weights_sha256,
            "backend": backend_name(),
            "keras_version": keras.__version__,
            "layers": [row._asdict() for row in self.layers],
        }

    def __repr__(self) -> str:
        return (
            f"Certificate(model={self._model.name!r}, lipschitz={self.lipschitz:.6g}, "
            f"classes={len(self.pair_distances)})"
        )

    def _predict(self, images: np.ndarray, batch_size: int) -> tuple[np.ndarray, float]:
        """Logits of the model and the rounding margin; the first call sends probe images along."""
        given, probes = len(images), images[:0]
        if self._rounding is None:
            probes = probe_images(self._program.input_shape).astype(input_dtype(self._model))
            if compiles() and given and given % batch_size == 0:
                # A last batch of a new size would be compiled anew, at the cost of many batches.
                probes = np.resize(probes, (batch_size, *probes.shape[1:]))
        sent = np.concatenate([images, probes]) if len(probes) else images
        raw = np.asarray(self._model.predict(sent, batch_size=batch_size, verbose=0))
        if self._rounding is None:
            distinct = slice(given, given + PROBES)
            self._rounding = self._margin(sent[distinct], raw[distinct])
        few = slice(0, min(given, _REMEASURED))
        measured = self._margin(sent[few], raw[few]) if given else 0.0
        return raw[:given], max(self._rounding, measured)

    def _margin(self, images: np.ndarray, logits: np.ndarray) -> float:
        values = run_program(self._program, images)
        return rounding_margin(values, self._program.output, logits)

    def _logits(self, x: Any, batch_size: int) -> tuple[np.ndarray, float, np.ndarray]:
        """Logits of checked images, the rounding margin, and how far each image was rounded."""
        given = self._check_images(x)
        self._check_current()
        with np.errstate(over="ignore", invalid="ignore"):
            images = given.astype(input_dtype(self._model))
        if not len(images):
            return np.zeros((0, len(self.pair_distances))), 0.0, np.zeros(0)
        raw, tau = self._predict(images, batch_size)
        # The forward pass saw the rounded image; the radius is around the one that was given. An
        # image that is not finite is none, whatever the model makes of it.
        finite = np.isfinite(images.reshape(len(images), -1)).all(axis=1)
        moved = np.where(finite, 0.0, np.inf)
        if given.dtype != images.dtype:
            shift = given[finite].astype(np.float64) - images[finite].astype(np.float64)
            moved[finite] = margins.lengths(shift)
        return raw, tau, moved

    def _limits(self, raw: np.ndarray, labels: np.ndarray, tau: float) -> np.ndarray:
        return margins.limits(raw, labels, self._speeds, tau)

    def _check_images(self, x: Any) -> np.ndarray:
        x = x if isinstance(x, np.ndarray) else to_numpy(x)
        if x.dtype.kind != "f":
            raise ValueError(
                "`x` must be float images in the scale the model takes (dynzoo models: [0, 1]; "
                f"divide uint8 images by 255). Received: x.dtype={x.dtype}"
            )
        if x.shape[1:] != self._program.input_shape or x.ndim == 0:
            raise ValueError(
                f"`x` must have shape (n, {', '.join(map(str, self._program.input_shape))}). "
                f"Received: x.shape={x.shape}"
            )
        return x

    def _check_current(self) -> None:
        """Compares everything the bounds were computed from with the model as it is now."""
        again = "so its bounds no longer hold. Certify it again: `dynzoo.certify(model)`."
        try:
            changed = difference(self._settings, freeze_settings(trace(self._model), self._model))
        except ValueError as error:
            raise StaleCertificateError(
                f"The model changed after it was certified and can no longer be: {error}"
            ) from error
        if changed is not None:
            raise StaleCertificateError(f"After the model was certified, {changed}, {again}")
        if weights_hash(self._model) != self.weights_sha256:
            raise StaleCertificateError(
                f"The weights of the model changed after it was certified, {again}"
            )


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, n, _BLOCK))
