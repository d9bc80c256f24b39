"""``certify`` a model and ask the certificate for the radius of each prediction.

``certify`` runs the model on three inputs, to see that it computes what is bounded. What rounding
may do is bounded with the first call of ``Certificate.radii``, and compared with what it does to
images that ride along with the user's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from dynzoo.backend import name as backend_name
from dynzoo.backend import to_numpy
from dynzoo.certificates import margins, twin, upper
from dynzoo.certificates.compiled_inference import run_batches
from dynzoo.certificates.errors import ReferenceMismatchError, StaleCertificateError
from dynzoo.certificates.graph import Program, trace
from dynzoo.certificates.identity import input_dtype, weights_hash
from dynzoo.certificates.lipschitz import Head, LayerBound, bound_layers, check_layers, find_head
from dynzoo.certificates.rounding.bound import RoundingBound, rounding_bound, rounding_kinds
from dynzoo.certificates.rounding.floating_point import arithmetic_of
from dynzoo.certificates.rounding.program import (
    check_reference,
    factor_unit,
    probe_images,
    run_program,
)
from dynzoo.certificates.settings import Settings, difference, freeze_settings, sublayers
from dynzoo.constraints import hint_at_unmet
from dynzoo.inference.image_checks import check_range, input_range
from dynzoo.inference.label_checks import check_labels
from dynzoo.utils.arguments import integer, number

__all__ = ["Certificate", "certify"]

_BLOCK = 4096


def certify(model: keras.Model, rounding: str = "probable") -> Certificate:
    r"""Proves an upper bound of a model's L2 Lipschitz constant.

    The graph is walked from the input to the logits: along a chain the layers' constants
    multiply, at an ``Add`` the bounds of the branches add, at a ``Concatenate`` their squares do.
    Every constant is an upper bound computed in float64 (an SVD, never a power iteration).

    Guarantee: $\|f(x) - f(y)\| \le L \|x - y\|$ for all inputs of the model's shape, at inference,
    for the weights and settings at the time of the call. It never guesses: a layer that it does
    not know stops it with an error that names the layer.

    Args:
        model: built Sequential or Functional model, float32 or float64, from one input of fixed
            shape to logits (n, K). Nested models, shared layers, branches, joins and bare
            operations such as ``x + y``, ``0.5 * x`` and ``x[:, 1:]`` are fine.
        rounding: what the radii assume of roundings. "probable": they are independent, and
            chances of one in ten million are left out. "worst-case": nothing; the radii are proved
            for whatever roundings the arithmetic allows, and are smaller for wide networks. Take
            it for a network from someone who may have chosen its weights to deceive.

    Returns:
        A ``Certificate``. There is an ``UnmetConstraintWarning`` if the model was trained and its
        weights are off their constraints: the bound holds, and would be smaller without that.

    Raises:
        UncertifiableLayerError: (a ValueError) at a layer without a known constant.
        ValueError: if the model is not built, subclassed, in reduced precision, ends in a softmax,
            has weights or settings that are not finite, a bound that float64 cannot hold, or other
            than one input and one output (n, K).
        ReferenceMismatchError: if the model is not the function that its layers are known for.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from dynzoo import certify
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> labels, radii = certify(model).radii(np.random.rand(5, 4))

    Reference: Szegedy et al., "Intriguing properties of neural networks", 2014 (section 4.3);
    Tsuzuku, Sato, Sugiyama, "Lipschitz-margin training", NeurIPS 2018 (proposition 1).
    """
    rounding_kinds(rounding)
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
    hint_at_unmet(model)
    return Certificate(
        model, program, head, tuple(table), bounds, shapes, digest, settings, rounding
    )


class Certificate:
    r"""An upper bound of a model's Lipschitz constant, and the certified radii that follow.

    Guarantee: no perturbation of L2 norm up to the radius of an image changes the model's answer,
    in real numbers and as computed in floating point, under the assumptions on arithmetic that
    ``dynzoo.certificates.rounding.bound`` lists.

    Attributes:
        lipschitz: upper bound of the L2 Lipschitz constant of the map from input to logits.
        body_lipschitz: the same up to the input of a linear head (to the logits without one).
        pair_distances: array (K, K); $\|w_i - w_j\|$ of a linear head, $\sqrt2$ without one.
        rounding: bound of the error of the logits of any image in [0, 1]; ``logit_error`` gives it
            image by image, ``rounding_bound`` all numbers and the layers that were measured.
        assumed: what the radii assume of roundings unless they are told otherwise.
        layers: a ``LayerBound`` (name, class, gain, bound so far) for each call of a layer.
        weights_sha256: hash of the weights the certificate is for.

    Made by ``certify``.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from dynzoo import certify
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> certificate = certify(model)
    >>> bool(certificate.lipschitz >= np.linalg.norm(model.layers[0].kernel, 2))
    True
    """

    def __init__(
        self,
        model: keras.Model,
        program: Program,
        head: Head,
        layers: tuple[LayerBound, ...],
        bounds: dict[int, float],
        shapes: dict[int, Any],
        weights_sha256: str,
        settings: Settings,
        assumed: str = "probable",
    ):
        self._model = model
        self._program = program
        self._settings = settings
        self._head = head
        self._bounds, self._shapes = bounds, shapes
        self.assumed = assumed
        self.layers = layers
        self.body_lipschitz = float(bounds[head.body_slot])
        self.lipschitz = float(upper.product(self.body_lipschitz, head.norm))
        if not np.isfinite(self.lipschitz):
            raise ValueError("The Lipschitz bound of the model overflows float64.")
        self.pair_distances = head.distances
        self._rounding: RoundingBound | None = None
        self.weights_sha256 = weights_sha256

    @property
    def rounding_bound(self) -> RoundingBound:
        """The bounds of rounding behind the radii, for the arithmetic as it is now.

        Measured on the first use, and again where products have become coarser since: TF32 or an
        autocast switched on.

        Raises:
            StaleCertificateError, ReferenceMismatchError: as ``radii``.
        """
        self._check_current()
        return self._bound()

    @property
    def model(self) -> keras.Model:
        """The model that is certified."""
        return self._model

    @property
    def image_entries(self) -> int:
        """How many numbers an image has."""
        return int(np.prod(self._program.input_shape))

    @property
    def rounding(self) -> float:
        """Bound of the L2 error of the logits of any image in [0, 1], in units of the logits."""
        corners = np.stack([np.full(self._program.input_shape, v) for v in (0.0, 1.0)])
        # Of all images in the unit cube, its corners are farthest from its middle.
        return float(self.logit_error(corners).max())

    def logit_error(self, x: Any, rounding: str | None = None) -> np.ndarray:
        """Bound of the L2 norm of the rounding error of each image's logits, however computed.

        Args:
            x: float images (n, ...) of the model's input shape.
            rounding: as in ``radii``.

        Returns:
            float64 (n,), in units of the logits.

        Example:

        >>> import keras
        >>> import numpy as np
        >>> from dynzoo import certify
        >>> from dynzoo.certificates import forward_float64
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x = np.random.default_rng(0).random((5, 4)).astype("float32")
        >>> gap = np.linalg.norm(model.predict(x, verbose=0) - forward_float64(model, x), axis=1)
        >>> bool(np.all(gap <= certify(model).logit_error(x, "worst-case")))
        True
        """
        images = self._check_images(x).astype(input_dtype(self._model))
        kinds = rounding_kinds(rounding or self.assumed)
        return self.rounding_bound.of_logits(images, kinds, self._head.norm)

    def radii(
        self, x: Any, batch_size: int = 256, rounding: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Predicted labels, and the L2 radius within which each is proved not to change.

        $r = \min_{j \ne i} (z_i - z_j - e_{ij}) / (L \|w_i - w_j\| + e'_{ij})$, not below 0, with
        i the predicted class and L the bound of the body. $e_{ij}$ bounds how far rounding moves
        the margin at the image and $e'_{ij}$ what it may add with each unit of the radius; they
        depend on the image alone. A tie gives exactly 0, so do logits that are not finite and
        numbers near overflow. If the margin to class j cannot change, class j sets no limit.

        Args:
            x: float images (n, ...) of the model's input shape, in the scale the model takes
                ([0, 1] for dynzoo's).
            batch_size: images per forward pass, at most.
            rounding: "probable" or "worst-case", as in ``certify``; the certificate's own by
                default.

        Returns:
            (labels (n,) int64, radii (n,) float64 in the units of x).

        Raises:
            StaleCertificateError: (a ValueError) if the model changed since it was certified.
            ReferenceMismatchError: if the forward pass is too far from the float64 reference.
            ValueError: if x is not a float array of the model's input shape.

        Example:

        >>> import keras
        >>> import numpy as np
        >>> from dynzoo import certify
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
        >>> labels, radii = certify(model).radii(x)
        >>> certified_accuracy = np.mean((labels == y) & (radii >= 36 / 255))
        """
        _, labels, radii = self.logits_and_radii(x, batch_size, rounding)
        return labels, radii

    def logits_and_radii(
        self, x: Any, batch_size: int = 256, rounding: str | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The logits of one pass, and what ``radii`` says of them.

        Args:
            x: float images (n, ...), as in ``radii``.
            batch_size: images per forward pass, at most.
            rounding: as in ``radii``.

        Returns:
            (logits (n, K) as the model computed them, labels (n,), radii (n,)).

        Raises:
            StaleCertificateError, ReferenceMismatchError, ValueError: as ``radii``.

        Example:

        >>> import keras
        >>> import numpy as np
        >>> from dynzoo import certify
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x = np.random.default_rng(0).random((5, 4))
        >>> logits, labels, radii = certify(model).logits_and_radii(x)
        """
        kinds = rounding_kinds(rounding or self.assumed)
        raw, images, moved = self._logits(x, batch_size)
        labels, radii = np.zeros(len(raw), np.int64), np.zeros(len(raw), np.float64)
        for block in _blocks(len(raw)):
            labels[block] = np.argmax(margins.replaced(raw[block]), axis=1)
            found = self._limits(raw[block], images[block], labels[block], kinds)
            radii[block] = found.min(axis=1)
        return raw, labels, margins.shrunk(radii, moved)

    def topk_radii(
        self,
        x: Any,
        y: Any,
        k: int | Sequence[int] | None = None,
        batch_size: int = 256,
        rounding: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Place of each label among the logits, and the L2 radius within which it stays in front.

        Label y leaves the k largest logits only if k other classes reach it, and class j cannot
        before the distance $r_j$ of ``radii``, with y for i. The radius is the k-th smallest $r_j$,
        not below 0; k = 1 gives ``radii`` where y is the prediction, and 0 elsewhere.

        Args:
            x: float images (n, ...), as in ``radii``.
            y: integer labels (n,) in [0, K).
            k: how many largest logits count, one number or several, each in [1, K - 1]; 1 and 5,
                or what of them K allows, if ``None``.
            batch_size: images per forward pass, at most.
            rounding: as in ``radii``.

        Returns:
            (places (n,) int64, 0 for the prediction; radii float64 in the units of x, of shape
            (n,) for one k, (n, len(k)) for several).

        Raises:
            ValueError: if y or k is out of its range; and what ``radii`` raises.

        Example:

        >>> import keras
        >>> import numpy as np
        >>> from dynzoo import certify
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
        >>> places, radii = certify(model).topk_radii(x, y, k=(1, 2))
        >>> top2, certified_top2 = np.mean(places < 2), np.mean(radii[:, 1] >= 36 / 255)
        """
        classes = len(self.pair_distances)
        if k is None:
            k = tuple(i for i in (1, 5) if i < classes)
        ks: list[int] = np.atleast_1d(k).tolist()
        if not ks or not all(isinstance(i, int) and 1 <= i < classes for i in ks):
            raise ValueError(f"`k` must be integers in [1, {classes - 1}]. Received: k={k}")
        labels = check_labels(y, len(x), classes)
        kinds = rounding_kinds(rounding or self.assumed)
        raw, images, moved = self._logits(x, batch_size)
        places, radii = np.zeros(len(raw), np.int64), np.zeros((len(raw), len(ks)))
        for block in _blocks(len(raw)):
            places[block] = margins.places(margins.replaced(raw[block]), labels[block])
            found = self._limits(raw[block], images[block], labels[block], kinds)
            limits = np.sort(found, axis=1)
            radii[block] = limits[:, [i - 1 for i in ks]]
        radii = margins.shrunk(radii, moved[:, None])
        return places, radii[:, 0] if np.ndim(k) == 0 else radii

    def distances_behind(
        self, x: Any, batch_size: int = 256, rounding: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Bounds of how far each class is behind, in L2 distance: the radius with its sign turned.

        $s_y(x) = \max_{j \ne y} (f_j(x) - f_y(x)) / (L \|w_j - w_y\|)$, with L the bound of the
        body. Where y is the answer, $-s_y$ is its certified radius; elsewhere no image nearer than
        $s_y$ has the answer y.

        Guarantee: for the real logits f, $|s_y(x) - s_y(x')| \le \|x - x'\|$ for all x, x', and
        $s_y(x)$ lies between the two numbers, however the logits were computed.

        Args:
            x: float images (n, ...), as in ``radii``.
            batch_size: images per forward pass, at most.
            rounding: as in ``radii``.

        Returns:
            (low, high), float64 (n, K) in the units of x; -inf and inf for images or logits that
            are not finite.

        Raises:
            StaleCertificateError, ReferenceMismatchError, ValueError: as ``radii``.

        Example:

        >>> import keras
        >>> import numpy as np
        >>> from dynzoo import certify
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
        >>> low, high = certify(model).distances_behind(x)
        >>> too_far = low > 36 / 255  # classes that no attack of this size can bring about
        """
        kinds = rounding_kinds(rounding or self.assumed)
        raw, images, moved = self._logits(x, batch_size)
        low, high = np.zeros((2, len(raw), len(self.pair_distances)))
        for block in _blocks(len(raw)):
            bound = self._bound()
            low[block], high[block] = margins.distances_behind(
                raw[block],
                self.body_lipschitz,
                self.pair_distances,
                bound,
                bound.distances(images[block]),
                kinds,
            )
        return low - moved[:, None], high + moved[:, None]

    def needed_margins(self, eps: float) -> np.ndarray:
        r"""How far a logit must lead, so that the answer is proved to hold within a radius.

        Guarantee: an image in the model's range of pixels ([0, 1] where none is known) whose
        computed logits satisfy $z_y - z_j \ge m_{yj}$ for all j has a certified radius above eps.
        These numbers allow for the rounding of any such image; ``radii`` takes that of the image,
        so that it may certify a little more.

        Args:
            eps: radius, finite and at least 0, in the units of x.

        Returns:
            m, float64 (K, K); -inf on the diagonal.

        Raises:
            ValueError: if eps is out of its range.

        Example:

        >>> import keras
        >>> from dynzoo import certify
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> certify(model).needed_margins(36 / 255).shape
        (3, 3)
        """
        eps = number("eps", eps, closed="low")
        low, high = input_range(self._model) or (0.0, 1.0)
        bound = self.rounding_bound
        return margins.needed_margins(
            self.body_lipschitz,
            self.pair_distances,
            bound,
            bound.farthest(low, high, self.image_entries),
            rounding_kinds(self.assumed),
            eps,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything in the certificate as plain numbers and strings, for JSON."""
        bound = self.rounding_bound
        off_diagonal = self.pair_distances[~np.eye(len(self.pair_distances), dtype=bool)]
        return {
            "lipschitz": self.lipschitz,
            "body_lipschitz": self.body_lipschitz,
            "head": {
                "linear": self._head.linear,
                "classes": len(self.pair_distances),
                "min_distance": float(off_diagonal.min()),
                "max_distance": float(off_diagonal.max()),
            },
            "rounding": {
                "assumed": self.assumed,
                "logit_error": self.rounding,
                "unit_roundoff": bound.arithmetic.unit,
                "factor_unit": bound.arithmetic.factor_unit,
                "measured_layers": list(bound.measured),
            },
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

    def _repr_html_(self) -> str:
        """The bound and the layers that make it, for a notebook."""
        from dynzoo.utils.html import table, text

        rows = [
            [
                text(cell)
                for cell in (
                    row.name,
                    row.class_name,
                    "join" if row.gain is None else row.gain,
                    row.bound,
                )
            ]
            for row in self.layers
        ]
        return (
            f"<div><p><b>Certificate of {text(self._model.name)}</b>: Lipschitz bound "
            f"{text(self.lipschitz)} from input to logits, {text(self.body_lipschitz)} before the "
            f"last layer, {len(self.pair_distances)} classes</p>"
            f"{table(['layer', 'class', 'gain', 'bound so far'], rows)}</div>"
        )

    def _bound(self) -> RoundingBound:
        """The bounds of rounding, of a model that was compared with what was certified."""
        if self._rounding is None:
            self._predict(np.zeros((0, *self._program.input_shape), input_dtype(self._model)), 256)
        assert self._rounding is not None
        return self._rounding

    def _predict(self, images: np.ndarray, batch_size: int) -> np.ndarray:
        """Logits of the model; the first call sends probe images along and checks them."""
        if self._rounding is not None:
            return run_batches(self._model, self._settings, images, batch_size)
        probes = probe_images(self._program.input_shape).astype(input_dtype(self._model))
        sent = np.concatenate([images, probes])
        raw = run_batches(self._model, self._settings, sent, batch_size)
        self._rounding = self._bound_rounding(probes, raw[len(images) :])
        return raw[: len(images)]

    def _bound_rounding(self, images: np.ndarray, logits: np.ndarray) -> RoundingBound:
        """The bounds for the arithmetic in which the model computes, checked on a few images."""
        values = run_program(self._program, images)
        # A float64 model counts as float32 unless Keras' own type is float64: much of what layers
        # do with constants follows that type, or the backend, and not the layer's.
        kinds = {str(logits.dtype), str(images.dtype), *self._dtypes()} & {"float32", "float64"}
        if keras.backend.result_type("float64", "float64") == "float32":
            kinds.add("float32")
        dtypes = ["float32"] if "float32" in kinds else ["float64", "float32"]
        for dtype in dtypes:
            found = rounding_bound(
                self._program,
                self._shapes,
                self._bounds,
                list(self.layers),
                self._head,
                arithmetic_of(dtype, factor_unit(dtype)),
                kinds,
            )
            allowed = found.of_logits(images, ("worst-case",), self._head.norm)
            try:
                check_reference(values, self._program.output, logits, allowed)
            except ReferenceMismatchError:
                # Keras computes parts of a float64 model in float32 on some backends.
                if dtype == dtypes[-1]:
                    raise
            else:
                break
        return found

    def _dtypes(self) -> set[str]:
        """In what the layers compute: what shows no difference on a few images may still round."""
        parts = (part for step in self._program.steps for part in sublayers(step.layer))
        policies = [p.dtype_policy for p in parts if isinstance(p, keras.layers.Layer)]
        policies += [step.layer.dtype_policy for step in self._program.steps]
        return {policy.compute_dtype for policy in policies}

    def _logits(self, x: Any, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits of checked images, the images as the model sees them, and how far these are."""
        given = self._check_images(x)
        integer("batch_size", batch_size)
        self._check_current()
        with np.errstate(over="ignore", invalid="ignore"):
            images = given.astype(input_dtype(self._model))
        if not len(images):
            return np.zeros((0, len(self.pair_distances))), images, np.zeros(0)
        raw = self._predict(images, batch_size)
        # The forward pass saw the rounded image; the radius is around the one that was given. An
        # image that is not finite is none, whatever the model makes of it.
        finite = np.isfinite(images.reshape(len(images), -1)).all(axis=1)
        moved = np.where(finite, 0.0, np.inf)
        if given.dtype != images.dtype:
            shift = given[finite].astype(np.float64) - images[finite].astype(np.float64)
            moved[finite] = upper.lengths(shift)
        return raw, images, moved

    def _limits(
        self, raw: np.ndarray, images: np.ndarray, labels: np.ndarray, kinds: tuple[str, ...]
    ) -> np.ndarray:
        bound = self._bound()
        return margins.rounded_limits(
            raw,
            labels,
            self.body_lipschitz,
            self.pair_distances,
            bound,
            bound.distances(images),
            kinds,
        )

    def _check_images(self, x: Any) -> np.ndarray:
        x = x if isinstance(x, np.ndarray) else to_numpy(x)
        if x.dtype == np.uint8 and input_range(self._model) == (0.0, 255.0):
            x = x.astype(np.float32)
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
        check_range(x, self._model)
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
        if self._rounding is not None:
            # Not a setting of the model: TF32 or an autocast may be switched on around a call.
            known = self._rounding.arithmetic
            dtype = "float32" if known.unit == arithmetic_of("float32").unit else "float64"
            if factor_unit(dtype) > known.factor_unit:
                self._rounding = None


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, n, _BLOCK))
