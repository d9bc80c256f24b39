r"""Attack the certificate itself: search for the pair of inputs that moves the logits fastest.

A certificate claims $\|f(x) - f(x')\| \le L\|x - x'\|$ for all inputs, and the same for the
difference of two logits with a constant for each pair of classes. One pair of inputs that is
faster refutes it. The best pair that the search finds tells how much of the bound is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo.certificates.certificate import Certificate, certify
from dynzoo.certificates.graph import trace
from dynzoo.certificates.local.certificate import LocalCertificate
from dynzoo.certificates.rounding.program import allowed_gap, check_reference, run_program
from dynzoo.certificates.slope_search import length, search, start_images
from dynzoo.inference.passes import predict_logits
from dynzoo.utils.arguments import integer
from dynzoo.utils.formatting import percent
from dynzoo.utils.jobs import checked_jobs

__all__ = ["Audit", "AuditViolation", "audit"]

# At a smaller distance a float64 difference quotient is mostly rounding.
_CLOSEST = 1e-5
# What a forward pass may be off, relative to the largest number in it.
_ROUNDING = {"float64": 1e-12, "float32": 1e-5}
# Pairs of each kind that are judged in float64.
_JUDGED, _CHECKED = 8, 4


class AuditViolation(Exception):
    """Two inputs between which the model is faster than its certificate allows.

    Attributes:
        pair: the inputs (x, x'), float64.
        slope: their slope, a lower bound of the true Lipschitz constant.
        bound: what the certificate claims; below ``slope``.
        classes: the two classes whose difference of logits is too fast, or ``None`` for all logits.
    """

    def __init__(
        self,
        pair: tuple[np.ndarray, np.ndarray],
        slope: float,
        bound: float,
        classes: tuple[int, int] | None,
    ) -> None:
        what = "the logits" if classes is None else f"the logits {classes[0]} minus {classes[1]}"
        distance = float(np.linalg.norm((pair[0] - pair[1]).ravel()))
        super().__init__(
            f"The certificate bounds the slope of {what} by {bound:.8g}, but two inputs at "
            f"distance {distance:.4g} have slope {slope:.8g}. The certificate is not valid; "
            "`error.save('pair.npz')` keeps them."
        )
        self.pair, self.slope, self.bound, self.classes = pair, slope, bound, classes

    def save(self, path: str | Path) -> None:
        """Writes the counter-example to an ``.npz``: x, x_other, slope, bound, classes."""
        np.savez(
            path,
            x=self.pair[0],
            x_other=self.pair[1],
            slope=self.slope,
            bound=self.bound,
            classes=np.asarray(self.classes or (), np.int64),
        )


@dataclass(frozen=True)
class Audit:
    """What ``audit`` found.

    Attributes:
        slope: largest slope of the map from input to logits, a lower bound of its constant.
        bound: the certificate's upper bound of the same.
        pairs: the two inputs (x, x') of ``slope``, float64.
        classes: the pair of classes that came closest to its own bound.
        class_slope: slope of the difference of these two logits.
        class_bound: the certificate's bound of it, or ``None`` if it has none.
        precision: ``"float64"``, or ``"float32"`` where the model has no float64 twin.
        settings: arguments of the search.

    Example:

    >>> import keras
    >>> from dynzoo.certificates import audit
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> found = audit(model, pairs=4, steps=5)
    >>> found.slope <= found.bound
    True
    """

    slope: float
    bound: float
    pairs: tuple[np.ndarray, np.ndarray]
    classes: tuple[int, int] | None
    class_slope: float | None
    class_bound: float | None
    precision: str
    settings: dict[str, int]

    @property
    def tightness(self) -> float:
        """``slope / bound``, in [0, 1]: the share of the bound that is known to be needed."""
        return self.slope / self.bound if self.bound > 0 else 1.0

    @property
    def class_tightness(self) -> float | None:
        """``class_slope / class_bound``: the same for the radii, which use the pairs of classes."""
        if self.class_slope is None or not self.class_bound:
            return None
        return self.class_slope / self.class_bound

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {
            "slope": self.slope,
            "bound": self.bound,
            "tightness": self.tightness,
            "distance": float(np.linalg.norm((self.pairs[0] - self.pairs[1]).ravel())),
            "classes": None if self.classes is None else list(self.classes),
            "class_slope": self.class_slope,
            "class_bound": self.class_bound,
            "class_tightness": self.class_tightness,
            "precision": self.precision,
            **self.settings,
        }

    def section(self) -> tuple[str, list[tuple[str, Any]]]:
        """Heading and content for ``RobustnessReport.sections``."""
        rows: list[tuple[str, Any]] = [
            ("largest slope found", self.slope),
            ("certified bound", self.bound),
            ("tightness", percent(self.tightness, 1)),
        ]
        if self.classes is not None and self.class_tightness is not None:
            name = f"classes {self.classes[0]} and {self.classes[1]}"
            rows.append((f"tightness, {name}", percent(self.class_tightness, 1)))
        search = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        rows.append(("search", f"{search}; slopes in {self.precision}"))
        return "Audit of the certificate", rows


def audit(
    model: Any,
    x: Any = None,
    pairs: int = 32,
    steps: int = 60,
    restarts: int = 2,
    seed: int = 0,
    certificate: Any = None,
    jobs: int | None = None,
) -> Audit:
    r"""Searches for the largest slope of a model, which must stay below its certified bound.

    Each start is a pair $p \pm hv$. With $w = f(p + hv) - f(p - hv)$ (or its part along
    $e_i - e_j$ for a pair of classes) and the gradients $g_\pm = J(p \pm hv)^T w$,

    $$v \leftarrow \frac{g_+ + g_-}{\|g_+ + g_-\|}, \qquad
    p \leftarrow p + \eta\,\frac{g_+ - g_-}{\|g_+ - g_-\|}, \qquad
    \ln h \leftarrow \ln h + \tfrac15\,\partial_{\ln h} \ln \frac{\|w\|}{h}$$

    a power iteration for $J^TJ$ whose base point climbs too. Starts are pairs of images and nearby
    points, the latter at distances of 0.1, 0.01 and 0.001.

    Guarantee: ``slope`` is a lower bound of the Lipschitz constant up to the rounding of a float64
    forward pass, which is subtracted (1e-12 of the largest number in it; 1e-5 of the largest logit
    where the model has no float64 twin). That nothing was found above the bound proves nothing.

    Args:
        model: built Keras model, inputs to logits (n, K).
        x: images (n, ...) to start from; uniform noise in [0, 1] if ``None``.
        pairs: starts of one run, at least 1.
        steps: iterations, at least 1.
        restarts: runs; half of the starts of a later one are near the best of those before.
        seed: non-negative seed of the starts.
        certificate: the claim: an object with ``lipschitz`` (and ``body_lipschitz`` and
            ``pair_distances``, if it bounds pairs of classes); ``certify(model)`` if ``None``.
        jobs: number of processes that share the starts of a run, eight at a time, one thread each,
            or of another engine of joblib (see ``dynzoo.evaluate``). The answer does not depend on
            their number, 1 among them. ``None`` for this process alone and 64 at a time, which
            rounds otherwise, and may end at pairs that differ a little.

    Returns:
        An ``Audit``.

    Raises:
        AuditViolation: if a slope is above the certificate's bound; it holds the two inputs.
        ReferenceMismatchError: if the model is not its float64 twin.
        ValueError: if an argument is out of its range, or the model cannot be certified.

    Example:

    >>> import keras
    >>> from dynzoo.certificates import audit
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> audit(model).tightness > 0.999
    True

    Reference: power iteration on $J^TJ$ by gradients: Virmaux and Scaman, "Lipschitz regularity
    of deep neural networks" (NeurIPS 2018), section 3.
    """
    pairs, steps = integer("pairs", pairs), integer("steps", steps)
    restarts, seed = integer("restarts", restarts), integer("seed", seed, least=0)
    jobs = checked_jobs(jobs)
    certificate = certify(model) if certificate is None else certificate
    if isinstance(certificate, LocalCertificate):
        certificate = certificate.certificate
    if isinstance(certificate, Certificate) and certificate._model is model:
        # A claim about what the model was before is not refuted by what it is now.
        certificate._check_current()
    images = start_images(model, x, pairs, seed)
    claims = _Claims(certificate, int(model.outputs[0].shape[-1]))
    ends, slopes, whole = search(model, images, claims.classes, pairs, steps, restarts, seed, jobs)
    # Slopes of all logits and of two classes have bounds of their own: the best of either kind.
    kinds = (np.flatnonzero(whole), np.flatnonzero(~whole))
    chosen = np.concatenate([rows[np.argsort(-slopes[rows])][:_JUDGED] for rows in kinds])
    settings = {"pairs": pairs, "steps": steps, "restarts": restarts, "seed": seed}
    return _judge(model, ends[chosen], claims, settings)


class _Claims:
    """The numbers that a certificate claims: one for all logits, one for each pair of them."""

    def __init__(self, certificate: Any, classes: int):
        self.all = float(certificate.lipschitz)
        self.pairs, self.classes = None, classes
        if getattr(certificate, "pair_distances", None) is not None:
            distances = np.asarray(certificate.pair_distances, np.float64)
            self.pairs = float(certificate.body_lipschitz) * distances


def _judge(model: Any, ends: np.ndarray, claims: _Claims, settings: dict[str, int]) -> Audit:
    """Slopes of the best pairs in float64, also with their ends drawn together; then the claims."""
    ends = ends.astype(np.float64)
    middle = ends.mean(axis=1, keepdims=True)
    apart = ends - middle
    sizes = np.maximum(length(apart[:, 0]), 1e-300)[:, None]
    factors = [np.clip(_CLOSEST / sizes, factor, 1.0) for factor in (1.0, 0.1, 0.01)]
    ends = np.concatenate([middle + apart * factor for factor in factors])
    logits, peak, precision = _forward(model, ends.reshape(-1, *ends.shape[2:]))
    if precision == "float32":
        ends = ends.astype(np.float32).astype(np.float64)
    logits = logits.reshape(len(ends), 2, -1)
    rounding = _ROUNDING[precision] * peak.reshape(len(ends), 2).max(axis=1)
    distance = np.maximum(length(ends[:, 0] - ends[:, 1]).reshape(-1), 1e-300)
    moved = logits[:, 0] - logits[:, 1]
    classes = claims.classes
    slopes = (np.linalg.norm(moved, axis=1) - 2 * np.sqrt(classes) * rounding) / distance
    slopes = np.where(np.isfinite(slopes) & (distance > 0), slopes, 0.0)

    top = int(np.argmax(slopes))
    slope, fastest = max(float(slopes[top]), 0.0), (ends[top, 0], ends[top, 1])
    if slope > claims.all:
        raise AuditViolation(fastest, slope, claims.all, None)
    found: tuple[Any, Any, Any] = (None, None, None)
    if claims.pairs is not None:
        gaps = np.abs(moved[:, :, None] - moved[:, None, :]) - 4 * rounding[:, None, None]
        gaps = np.maximum(np.nan_to_num(gaps / distance[:, None, None], posinf=0.0), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(gaps > 0, gaps / claims.pairs, 0.0)
        k, i, j = (int(n) for n in np.unravel_index(np.argmax(shares), shares.shape))
        if i != j:
            found = ((i, j), float(gaps[k, i, j]), float(claims.pairs[i, j]))
            if found[1] > found[2]:
                raise AuditViolation((ends[k, 0], ends[k, 1]), found[1], found[2], (i, j))
    return Audit(slope, claims.all, fastest, *found, precision, settings)


def _forward(model: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Logits in float64 where the model has such a twin, else its own; largest number on the way.

    Where the layers' outputs are not seen, the largest logit stands for it.
    """
    few = x[:_CHECKED].astype(np.float32)
    try:
        program = trace(model)
        checked = run_program(program, few)
    except ValueError:
        logits = predict_logits(model, x.astype(np.float32)).astype(np.float64)
        return logits, np.abs(logits).max(axis=1), "float32"
    # The search ran on the model: slopes of a twin that computes something else say nothing of it.
    allowed = allowed_gap(checked, program.output)
    check_reference(checked, program.output, predict_logits(model, few), allowed)
    parts, peaks = [], []
    for start in range(0, len(x), 8):
        values = run_program(program, x[start : start + 8])
        parts.append(values[program.output])
        peaks.append(
            np.max([np.abs(v).reshape(len(v), -1).max(axis=1) for v in values.values()], 0)
        )
    return np.concatenate(parts), np.concatenate(peaks), "float64"
