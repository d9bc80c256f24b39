"""Randomised smoothing: a certified L2 radius for any classifier, by statistics instead of norms.

The noise of an image comes from its index alone, and a model that mixes the examples of a batch is
refused, so that a result does not change with the batch size, the order, or what else is certified
with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from dynzoo.backend import to_numpy
from dynzoo.certificates.smoothing_checkpoint import SmoothingCheckpoint
from dynzoo.inference.answers import NO_ANSWER, answers
from dynzoo.inference.batch_mixing import mixing_calls, training_calls
from dynzoo.inference.companions import SAME, differs, find_difference, rounding_of
from dynzoo.inference.image_checks import check_range
from dynzoo.inference.label_checks import check_labels
from dynzoo.inference.model_layers import random_layers
from dynzoo.inference.packed import Packed, pack, unpacked
from dynzoo.inference.passes import predict_logits
from dynzoo.utils.arguments import integer, listed, number
from dynzoo.utils.jobs import run_jobs

__all__ = ["ABSTAIN", "SmoothedClassifier", "lower_confidence_bound", "smooth"]

ABSTAIN = NO_ANSWER
# Of the beta quantile of scipy, whose own error is some 1e-15.
_SLACK = 1e-12
_PART = 8  # images that go to a process at a time
# A larger image or noise would leave float32.
_LARGEST = 1e37
# Is given positions, labels and radii.
_Take = Callable[[Any, Any, Any], None]


def lower_confidence_bound(successes: int, trials: int, alpha: float) -> float:
    """Clopper-Pearson lower bound of a probability: too high with probability alpha at most.

    Args:
        successes: number of successes, from 0 to ``trials``.
        trials: number of independent trials.
        alpha: probability of failure, in (0, 1).

    Returns:
        The bound, in [0, 1).

    Example:

    >>> from dynzoo.certificates.smoothing import lower_confidence_bound
    >>> round(lower_confidence_bound(100, 100, 0.001), 6)
    0.933254
    """
    from scipy import stats

    if successes == 0:
        return 0.0
    return float(stats.beta.ppf(alpha, successes, trials - successes + 1)) * (1 - _SLACK)


def smooth(
    model: Any,
    sigma: float,
    samples: int = 1000,
    selection: int = 100,
    alpha: float = 0.001,
    seed: int = 0,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> SmoothedClassifier:
    r"""The classifier that answers what a model answers most often under Gaussian noise.

    $$g(x) = \arg\max_c P(f(x + \sigma n) = c), \quad n \sim N(0, I), \qquad
    r = \sigma\,\Phi^{-1}(\underline{p_A})$$

    In the language of flows: the heat semigroup applied to the model's decision, from time 0 to
    $t = \sigma^2/2$.

    Guarantee: with probability $1 - \alpha$ over the noise, for each image by itself, g(x') = g(x)
    for all x' with $\|x' - x\| < r$, for any model. $\underline{p_A}$ is the
    one-sided Clopper-Pearson bound from ``samples`` draws, independent of the ``selection`` draws
    that choose the class. The guarantee is for g, **not** for the model without noise.

    It rests on three assumptions. (1) f is one function of one example: it takes a noisy image
    $x + \sigma n$, formed in float64 and rounded to float32, to the class that the model computes,
    or to none where a logit is NaN. Rounding belongs to f, so that images of any size are fine, but
    for a large image the radius may be below the distance to the next float32 number. (2) The
    generator's numbers are independent draws of $N(0, I)$, up to the 53 bits of float64, and were
    not known to whoever chose the image: keep the seed from an adversary. (3) The model does not
    change during a call of ``radii``; between calls it may, since nothing is kept.

    Assumption (1) fails for a model that mixes the examples of a batch, draws, or remembers. It is
    refused where the graph shows that, where a pass changes a variable, and where the answers to
    some of the user's images differ by more than rounding alone, in a batch, in another order, or
    with other companions (NaN among them); in every image's batch one noisy copy is run alone, too.
    Code that mixes only where no comparison looks, such as for one certain companion, is not found:
    what a ``Lambda`` or a layer of one's own computes is for its author to know. See
    ``dynzoo.inference.companions``.

    Args:
        model: built Keras model, inputs to logits (n, K), deterministic at inference. It should
            have been trained with noise of about ``sigma``.
        sigma: standard deviation of the noise in units of x, > 0.
        samples: draws for the bound; the largest radius is sigma * Phi^-1(alpha^(1/samples)).
        selection: draws that choose the class.
        alpha: probability of failure for one image, in (0, 1).
        seed: non-negative seed; an image's noise comes from ``[seed, index]``.
        batch_size: noisy images per forward pass.
        progress: called with (images done, images in all) after each image.

    Returns:
        A ``SmoothedClassifier`` with ``predict(x)`` and ``radii(x)``.

    Raises:
        ValueError: if an argument is out of its range, or a layer of the model is random at
            inference, called with ``training=True``, or mixes the examples of a batch: the draws
            would not be independent. ``radii`` and ``predict`` raise it for what answers show.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from dynzoo.certificates import smooth
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> labels, radii = smooth(model, sigma=0.25).radii(np.random.rand(5, 4))

    Reference: Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized
    smoothing" (ICML 2019), theorem 1 and the procedures Predict and Certify.
    """
    return SmoothedClassifier(model, sigma, samples, selection, alpha, seed, batch_size, progress)


class SmoothedClassifier:
    """A smoothed classifier, as ``smooth`` gives it.

    Args:
        model: built Keras model, inputs to logits (n, K), deterministic at inference.
        sigma: standard deviation of the noise in units of x, > 0.
        samples: draws for the bound.
        selection: draws that choose the class.
        alpha: probability of failure for one image, in (0, 1).
        seed: non-negative seed of the noise.
        batch_size: noisy images per forward pass.
        progress: called with (images done, images in all) after each image.

    Raises:
        ValueError: as ``smooth``.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from dynzoo.certificates import smooth
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> smoothed = smooth(model, sigma=0.25, samples=100)
    >>> smoothed.predict(np.full((2, 4), 0.5, "float32")).shape
    (2,)
    """

    def __init__(
        self,
        model: Any,
        sigma: float,
        samples: int = 1000,
        selection: int = 100,
        alpha: float = 0.001,
        seed: int = 0,
        batch_size: int = 256,
        progress: Callable[[int, int], None] | None = None,
    ):
        _check_layers(model)
        self.model = model
        self.sigma = number("sigma", sigma)
        self.samples = integer("samples", samples)
        self.selection = integer("selection", selection)
        self.alpha = number("alpha", alpha)
        if self.alpha >= 1.0:
            raise ValueError(f"`alpha` must be in (0, 1). Received: alpha={alpha}")
        self.seed = integer("seed", seed, least=0)
        self.batch_size = integer("batch_size", batch_size)
        self.progress = progress

    def predict(self, x: Any, indices: Iterable[int] | None = None) -> np.ndarray:
        """The smoothed answer of each image, or -1.

        The class counted most often in ``samples`` draws, unless a two-sided binomial test of the
        first against the second count leaves a chance above alpha that the order is an accident.
        With probability 1 - alpha an answer that is given is that of the smoothed classifier.

        Args:
            x: array (n, ...) of inputs, in the scale the model takes.
            indices: index of each image, which its noise comes from; its position by default.

        Returns:
            Labels (n,), int64.
        """
        from scipy import stats

        given, rows = self._check(x, indices)
        labels = np.full(len(given), ABSTAIN, np.int64)
        for i, found in self._answers(given, rows, self.samples):
            counts = _counts(found)
            order = np.argsort(-counts, kind="stable")
            first, second = counts[order[0]], counts[order[1]] if len(counts) > 1 else 0
            # Answers that are not numbers are no class: they count for the second, as a doubt.
            second = max(int(second), int((found < 0).sum()))
            if first > second:
                chance = stats.binomtest(int(first), int(first + second), 0.5).pvalue
                if chance <= self.alpha:
                    labels[i] = order[0]
        return labels

    def radii(
        self,
        x: Any,
        batch_size: int | None = None,
        indices: Iterable[int] | None = None,
        jobs: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Label and certified L2 radius of each image; (-1, 0) where it abstains.

        Args:
            x: array (n, ...) of inputs, in the scale the model takes.
            batch_size: noisy images per forward pass; the object's own by default.
            indices: index of each image, which its noise comes from; its position by default.
            jobs: number of processes that work on parts of the images side by side, one thread
                each, or of another engine of joblib (see ``dynzoo.evaluate``); labels and radii are
                those of one process with one thread. ``None`` for none.
            checkpoint: JSON file of what is found, written every few seconds: killed and called
                again, with the same model, images and settings, it goes on from there.

        Returns:
            (labels (n,) int64, radii (n,) float64 in the units of x).

        Raises:
            ValueError: if an argument is out of its range, the model's answers show that it mixes
                examples, or the checkpoint is of something else.
            OSError: if the checkpoint cannot be written.

        Example:

        >>> import keras
        >>> import numpy as np
        >>> from dynzoo.certificates import smooth
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.full((2, 4), 0.5, "float32"), np.array([0, 1])
        >>> labels, radii = smooth(model, sigma=0.25, samples=100).radii(x)
        >>> certified_accuracy = np.mean((labels == y) & (radii > 0.25))
        """
        given, rows = self._check(x, indices)
        kept = SmoothingCheckpoint(checkpoint, self, given, rows)
        left = kept.left
        before = len(given) - len(left)

        def take(places: Any, labels: Any, radii: Any) -> None:
            kept.add(left[places], labels, radii)

        try:
            if jobs is not None and integer("jobs", jobs) > 1 and len(left) > 1:
                self._find_in_parts(given[left], rows[left], batch_size, jobs, take, before)
            else:
                self._find(given[left], rows[left], batch_size, take, before)
        except _RefusedModelError:  # none of whose answers hold
            kept.remove()
            raise
        except BaseException:
            kept.write()
            raise
        kept.write()
        return kept.labels, kept.radii

    def _find(
        self, x: np.ndarray, rows: np.ndarray, batch_size: int | None, take: _Take, before: int
    ) -> None:
        """Hands over label and radius of one image after the other, of which some came before."""
        from scipy import stats

        count = self.selection + self.samples
        for i, found in self._answers(x, rows, count, batch_size, before):
            chosen, draws = _counts(found[: self.selection]), found[self.selection :]
            label, radius = ABSTAIN, 0.0
            if chosen.any():
                most = int(chosen.argmax())
                bound = lower_confidence_bound(int((draws == most).sum()), len(draws), self.alpha)
                if bound > 0.5:
                    label = most
                    radius = self.sigma * float(stats.norm.ppf(bound)) * (1 - _SLACK)
            take(i, label, radius)

    def _find_in_parts(
        self,
        x: np.ndarray,
        rows: np.ndarray,
        batch_size: int | None,
        jobs: int,
        take: _Take,
        before: int,
    ) -> None:
        """The same of a few images at a time in processes of their own."""
        names = ("sigma", "samples", "selection", "alpha", "seed", "batch_size")
        content = (self.model, {name: getattr(self, name) for name in names})
        packed = pack(content, [self.model])
        parts = [slice(k, k + _PART) for k in range(0, len(x), _PART)]
        done = before

        def finished(number: int, result: Any) -> None:
            nonlocal done
            take(parts[number], *result)
            done += len(result[0])
            if self.progress is not None:
                self.progress(done, before + len(x))

        run_jobs(
            _radii_packed,
            [partial(tuple, (packed, x[part], rows[part], batch_size)) for part in parts],
            jobs,
            finished=finished,
            environment={"KERAS_BACKEND": packed.backend},
        )

    def accuracy(
        self,
        x: Any,
        y: Any,
        eps: float | Iterable[float] = (),
        batch_size: int | None = None,
        jobs: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> dict[str, Any]:
        """How often the smoothed answer is right, and how often proved right; of g, not the model.

        Args:
            x: array (n, ...) of inputs, in the scale the model takes.
            y: integer labels (n,) or (n, 1), or one-hot rows.
            eps: L2 radius or radii, at least 0, in the units of x.
            batch_size: noisy images per forward pass; the object's own by default.
            jobs: as in ``radii``.
            checkpoint: as in ``radii``.

        Returns:
            ``"clean"`` (abstentions count as wrong), ``"abstained"``, ``"certified"`` with the
            share of right answers whose radius is above each of ``eps``, ``"settings"``, and how
            many ``"images"`` these are of.

        Raises:
            ValueError: if a radius or a label is out of its range; what ``radii`` raises.
        """
        asked = [number("eps", e, closed="low") for e in listed(eps)]
        y = check_labels(y, len(x), getattr(self.model, "output_shape", (None,))[-1])
        labels, radii = self.radii(x, batch_size=batch_size, jobs=jobs, checkpoint=checkpoint)
        right = labels == y
        return {
            "clean": float(right.mean()),
            "abstained": float((labels == ABSTAIN).mean()),
            "certified": {e: float((right & (radii > e)).mean()) for e in asked},
            "settings": self.to_dict(),
            "images": len(x),
        }

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain numbers, for JSON."""
        names = ("sigma", "samples", "selection", "alpha", "seed")
        return {"type": "randomised smoothing", **{name: getattr(self, name) for name in names}}

    def _answers(
        self,
        x: np.ndarray,
        rows: np.ndarray,
        count: int,
        batch_size: int | None = None,
        before: int = 0,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(position, the model's answers to ``count`` noisy copies) of each image in turn."""
        size = self.batch_size if batch_size is None else integer("batch_size", batch_size)
        tolerance, first = rounding_of(self.model), None
        for i, (image, row) in enumerate(zip(x, rows, strict=True)):
            rng = np.random.default_rng([self.seed, int(row)])
            found: list[np.ndarray] = []
            for start in range(0, count, size):
                # Draws follow one another in one stream: where it is cut does not matter.
                noisy = rng.standard_normal((min(size, count - start), *image.shape))
                noisy *= self.sigma
                noisy += image
                noisy = noisy.astype(np.float32)  # the one rounding, see `smooth`
                if first is None:
                    _check_answers(self.model, np.stack([image, noisy[0], x[-1]]))
                    first = noisy[:1], predict_logits(self.model, noisy[:1], 1)
                logits = predict_logits(self.model, noisy, size)
                if not start:
                    at = int(row) % len(noisy)
                    alone = predict_logits(self.model, noisy[at : at + 1], 1)
                    _compare(alone, logits[at : at + 1], tolerance)
                found.append(answers(logits))
            yield i, np.concatenate(found)
            if self.progress is not None:
                self.progress(before + i + 1, before + len(x))
        if first is not None:
            # What the model remembers of so many calls shows now.
            _compare(first[1], predict_logits(self.model, first[0], 1), SAME)

    def _check(self, x: Any, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        x = x if isinstance(x, np.ndarray) else to_numpy(x)
        if x.ndim < 2 or x.dtype.kind != "f" or not np.isfinite(x).all():
            raise ValueError(
                "`x` must be a finite float array of shape (n, ...) in the scale the model takes. "
                f"Received: shape {x.shape}, dtype {x.dtype}"
            )
        if len(x) and max(np.abs(x).max(), self.sigma) > _LARGEST:
            raise ValueError(
                f"`x` and `sigma` must be at most {_LARGEST:g}, so that noisy images are finite in "
                f"float32. Received: values up to {np.abs(x).max():g}, sigma={self.sigma:g}"
            )
        check_range(x, self.model)
        _check_layers(self.model)
        rows = np.arange(len(x)) if indices is None else np.asarray(indices)
        if rows.shape != (len(x),) or (
            rows.size and (rows.dtype.kind not in "iu" or min(rows) < 0)
        ):
            raise ValueError(
                f"`indices` must be {len(x)} non-negative integers. Received: {rows!r}"
            )
        return x, rows


def _counts(answers: np.ndarray) -> np.ndarray:
    """How often each class was the answer."""
    return np.bincount(answers[answers >= 0], minlength=1)


_MUST = "`model` must be a deterministic function of one example."
_WHY = "so that draws of noise would not be independent."


class _RefusedModelError(ValueError):
    """Answers show that the model is no function of one example."""


def _check_layers(model: Any) -> None:
    """A ValueError where the graph shows what answers would depend on."""
    for name in random_layers(model):
        raise ValueError(f"{_MUST} Layer {name!r} is random at inference, {_WHY}")
    for call in mixing_calls(model):
        raise ValueError(f"{_MUST} {call.kind} {call.name!r} mixes the examples of a batch, {_WHY}")
    for call in training_calls(model):
        raise ValueError(
            f"{_MUST} {call.kind} {call.name!r} is called with `training=True`, {_WHY}"
        )


def _check_answers(model: Any, x: np.ndarray) -> None:
    """A ValueError where the answers show it."""
    if (found := find_difference(model, x)) is not None:
        raise _RefusedModelError(f"{_MUST} It {found}, {_WHY}")


def _compare(before: np.ndarray, after: np.ndarray, tolerance: float) -> None:
    if differs(before, after, tolerance):
        raise _RefusedModelError(
            f"{_MUST} The logits of one noisy image change from {before[0]} to {after[0]} with its "
            f"batch, or with what was asked before, {_WHY}"
        )


def _radii_packed(
    packed: Packed, x: np.ndarray, rows: np.ndarray, batch_size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    model, settings = unpacked(packed)
    return smooth(model, **settings).radii(x, batch_size, rows)
