"""Certified radii from bounds that hold on a ball around each image, not everywhere.

Published networks of dynamical blocks have free scalars between the blocks: a product of layer
constants is far above any slope that the network has. Near one image most units cannot switch, and
there the network is nearly linear.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from dynzoo.certificates.certificate import Certificate, certify
from dynzoo.certificates.graph import trace
from dynzoo.certificates.identity import input_dtype
from dynzoo.certificates.local.layers import unroll
from dynzoo.certificates.local.relaxation import relax
from dynzoo.certificates.margins import pair_errors, reach
from dynzoo.certificates.rounding.bound import rounding_kinds
from dynzoo.certificates.upper import product
from dynzoo.utils.arguments import integer

__all__ = ["LocalCertificate", "certify_local"]

# Numbers in the largest array of a backward pass.
_ENTRIES = 8_000_000
_GROWTH = 3.0
# The bisection stops when this much, relatively, could still be gained.
_TOLERANCE = 0.01


def certify_local(
    model: keras.Model, iterations: int = 12, exact_units: int = 512, rounding: str = "probable"
) -> LocalCertificate:
    r"""Certifies each image on its own ball; never less than ``certify`` does.

    For a ball $B(x, r)$ the model is enclosed between linear functions: units that cannot switch
    in the ball are exact, the others are lines with a slack. If
    $f_i(x + \delta) - f_j(x + \delta) \ge m_j - S_j\|\delta\| - \beta_j$ there, then
    $\min(r, \min_j (m_j - e_j - \beta_j) / (S_j + e'_j))$ is certified, with the bounds e of
    rounding; r is found by bisection. Where no unit switches, this is the distance to the
    decision boundary.

    Guarantee: as ``Certificate.radii``, with the same bounds of rounding. It is cheap for small
    dense networks. An image of a large convolutional network costs a float64 backward pass for
    each near class and ball, and gained nothing on a published non-expansive CIFAR-10 network: 7 %
    of its units could switch in the global radius, as their inputs are bounded by norms alone.

    Args:
        model: built Sequential or Functional model of layers that local bounds know: Dense, Conv2D,
            ReLU and LeakyReLU (also as activations), Normalization, BatchNormalization, Rescaling,
            LearnedScale, Flatten, Reshape, AveragePooling2D, MaxPooling2D, Add, Subtract,
            UnitRowDense, GradientFlow (Euler) and SwitchingFlow.
        iterations: balls tried for each image, at least 1.
        exact_units: rectified layers of at most so many units are bounded unit by unit with a
            backward pass each, which costs its square; larger ones by norms.
        rounding: what the radii assume of roundings, as in ``certify``.

    Returns:
        A ``LocalCertificate``.

    Raises:
        ValueError: if the model cannot be certified, or at a layer that local bounds do not know,
            naming it.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from dynzoo.certificates import certify_local
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    ... )
    >>> labels, radii = certify_local(model).radii(np.random.rand(5, 4))

    Reference: Hein and Andriushchenko, "Formal guarantees on the robustness of a classifier against
    adversarial manipulation" (NeurIPS 2017), theorem 2.1; Zhang et al., "Efficient neural network
    robustness certification with general activation functions" (NeurIPS 2018).
    """
    return LocalCertificate(certify(model, rounding), model, iterations, exact_units)


class LocalCertificate:
    """Radii from local bounds; made by ``certify_local``.

    Attributes:
        certificate: the global ``Certificate`` underneath.
        lipschitz: its global bound.
        iterations: balls tried for each image.
        exact_units: largest layer that is bounded unit by unit.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from dynzoo.certificates import certify_local
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    ... )
    >>> labels, radii = certify_local(model).radii(np.random.default_rng(0).random((5, 4)))
    """

    def __init__(
        self, certificate: Certificate, model: keras.Model, iterations: int, exact_units: int
    ):
        self.certificate, self._model = certificate, model
        self.lipschitz = certificate.lipschitz
        self.iterations = integer("iterations", iterations)
        self.exact_units = integer("exact_units", exact_units, least=0)
        # Of the model as it was certified, not as it may be by now.
        certificate._check_current()
        self._unrolled = unroll(trace(model))

    def radii(
        self, x: Any, batch_size: int = 256, rounding: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels and certified L2 radii: of the global and the local bound the larger.

        Args:
            x: float images (n, ...) of the model's input shape, in the scale the model takes.
            batch_size: images per forward pass of the model.
            rounding: what is assumed of roundings, as in ``Certificate.radii``.

        Returns:
            (labels (n,) int64, radii (n,) float64 in the units of x).

        Raises:
            StaleCertificateError: (a ValueError) if the model changed since it was certified.
            ReferenceMismatchError: if the forward pass is too far from the float64 reference.
            ValueError: if x is not a float array of the model's input shape.
        """
        certificate = self.certificate
        rounding = rounding or certificate.assumed
        labels, radii = certificate.radii(x, batch_size, rounding)
        images = certificate._check_images(x).astype(input_dtype(self._model))
        rows = np.flatnonzero((radii > 0) & np.isfinite(radii))
        if not len(rows):
            return labels, radii
        # The ball is around the image as the model sees it, rounded to its input type.
        logits, seen, moved = certificate._logits(x, batch_size)
        logits = logits.astype(np.float64)
        # What is computed stays true for the weights that were unrolled: `radii` checked them.
        for chunk in self._chunks(rows, logits.shape[1]):
            z, own = logits[chunk], labels[chunk]
            error, growth, limit = self._rounding(seen[chunk], own, rounding_kinds(rounding))
            margins = z[np.arange(len(z)), own][:, None] - z - error
            found = self._grow(images[chunk], own, margins, growth, radii[chunk] + moved[chunk])
            radii[chunk] = np.maximum(radii[chunk], np.minimum(found, limit) - moved[chunk])
        return labels, radii

    def _rounding(
        self, images: np.ndarray, labels: np.ndarray, kinds: tuple[str, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pair errors, their growth (both (n, K)) and the reach, of each image's best anchor."""
        bound = self.certificate.rounding_bound
        distances, best = bound.distances(images), None
        for kind in kinds:
            for k in range(len(bound.anchors)):
                s = distances[:, k]
                error, growth = pair_errors(
                    labels, self.certificate.pair_distances, bound, s, kind, k
                )
                found = (error, growth[labels], reach(bound, s, k))
                if best is None:
                    best = found
                    continue
                better = (error.max(axis=1) < best[0].max(axis=1)) & (found[2] > 0)
                best = tuple(
                    np.where(better[:, None] if new.ndim == 2 else better, new, old)
                    for new, old in zip(found, best, strict=True)
                )
        assert best is not None
        return best

    def slopes(self, x: Any, radius: Any) -> np.ndarray:
        """Lipschitz bounds of the differences of logits on balls, between any two points of them.

        Args:
            x: float images (n, ...) of the model's input shape.
            radius: positive radius of the balls, or one for each image (n,).

        Returns:
            Array (n, K, K): bound of the constant of logit i minus logit j, at most the global one.
        """
        certificate = self.certificate
        certificate._check_current()
        images = np.asarray(certificate._check_images(x), np.float64)
        radius = np.broadcast_to(np.asarray(radius, np.float64), (len(images),))
        if not (np.isfinite(radius) & (radius > 0)).all():
            raise ValueError(f"`radius` must be finite and above 0. Received: radius={radius!r}")
        classes = len(certificate.pair_distances)
        first, second = np.triu_indices(classes, 1)
        directions = np.eye(classes)[first] - np.eye(classes)[second]
        result = np.zeros((len(images), classes, classes))
        for chunk in self._chunks(np.arange(len(images)), len(first)):
            bounds = relax(
                self._unrolled,
                self._unrolled.values(images[chunk]),
                radius[chunk],
                self.exact_units,
                anywhere=True,
            )
            found, _ = bounds.lower(np.broadcast_to(directions, (len(chunk), *directions.shape)))
            result[chunk[:, None], first, second] = found
        result += result.swapaxes(1, 2)
        return np.minimum(result, product(certificate.body_lipschitz, certificate.pair_distances))

    def to_dict(self) -> dict[str, Any]:
        """The global certificate's numbers and the settings of the local one, for JSON."""
        settings = {"iterations": self.iterations, "exact_units": self.exact_units}
        return {**self.certificate.to_dict(), "type": "local", "local": settings}

    def __repr__(self) -> str:
        return f"LocalCertificate({self.certificate!r})"

    def _chunks(self, rows: np.ndarray, directions: int) -> list[np.ndarray]:
        """Row numbers of as many images as fit into memory together."""
        sizes = [int(np.prod(shape)) for shape in self._unrolled.shapes]
        exact = [size for size in sizes if size <= self.exact_units]
        many = max([directions, *exact])
        at_once = max(1, _ENTRIES // (many * max(exact, default=1) + directions * max(sizes)))
        return [rows[i : i + at_once] for i in range(0, len(rows), at_once)]

    def _grow(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        margins: np.ndarray,
        growth: np.ndarray,
        start: np.ndarray,
    ) -> np.ndarray:
        """The largest certified radius that a bisection from ``start`` finds, for each image."""
        certificate, classes = self.certificate, margins.shape[1]
        pairs = product(certificate.body_lipschitz, certificate.pair_distances)
        speeds = pairs[labels] + growth
        with np.errstate(divide="ignore", invalid="ignore"):
            limits = np.where(margins > 0, margins / speeds * (1 - 1e-12), 0.0)
        limits[np.arange(len(labels)), labels] = np.inf
        # The nearest class by the global bound first; the last is the answer itself.
        others = np.argsort(limits, axis=1)[:, : classes - 1]
        limits, margins, growth = (
            np.take_along_axis(a, others, axis=1) for a in (limits, margins, growth)
        )
        directions = np.eye(classes)[labels][:, None] - np.eye(classes)[others]
        values = self._unrolled.values(images)
        low, high, candidate = start.copy(), np.full(len(start), np.inf), _GROWTH * start
        for _ in range(self.iterations):
            rows = np.flatnonzero(high > low * (1 + _TOLERANCE))
            if not len(rows):
                break
            ball = candidate[rows]
            # Classes that the global bound keeps away need no local one.
            near = max(1, int((limits[rows] < ball[:, None]).sum(axis=1).max()))
            bounds = relax(self._unrolled, [v[rows] for v in values], ball, self.exact_units)
            slope, slack = bounds.lower(directions[rows, :near])
            room = margins[rows, :near] - slack
            with np.errstate(divide="ignore", invalid="ignore"):
                # What rounding may add grows with the ball, as a slope does.
                reach = np.where(room > 0, room / (slope + growth[rows, :near]), 0.0)
            reach = np.nan_to_num(reach, posinf=np.inf).min(axis=1) * (1 - 1e-9)
            holds = reach >= ball
            low[rows] = np.maximum(low[rows], np.minimum(reach, ball))
            high[rows] = np.maximum(np.where(holds, np.minimum(high[rows], reach), ball), low[rows])
            # Where no unit can switch, `reach` is the distance to the boundary and ends the search.
            middle = 0.5 * (low[rows] + np.minimum(high[rows], _GROWTH * low[rows]))
            wide = np.minimum(high[rows], _GROWTH * low[rows])
            candidate[rows] = np.where(holds, wide, middle)
        return low
