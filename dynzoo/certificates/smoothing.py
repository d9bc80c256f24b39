"""Randomised smoothing: a certified L2 radius for any classifier, by statistics instead of norms.

The noise of an image comes from its index alone, so that a result does not change with the batch
size, the order, or what else is certified with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dynzoo.attacks.base import positive_float, positive_int, predict_logits
from dynzoo.backend import to_numpy
from dynzoo.random_layers import layers_with

__all__ = ["ABSTAIN", "SmoothedClassifier", "lower_confidence_bound", "smooth"]

ABSTAIN = -1


def lower_confidence_bound(successes: int, trials: int, alpha: float) -> float:
    """Clopper-Pearson lower bound of a probability: too high with probability alpha at most.

    Args:
        successes: number of successes, from 0 to ``trials``.
        trials: number of independent trials.
        alpha: probability of failure, in (0, 1).

    Returns:
        The bound, in [0, 1).

    Example:

    >>> round(lower_confidence_bound(100, 100, 0.001), 6)
    0.933254
    """
    from scipy import stats

    if successes == 0:
        return 0.0
    return float(stats.beta.ppf(alpha, successes, trials - successes + 1))


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
    for all x' with $\|x' - x\| < r$, for any model, in real numbers. $\underline{p_A}$ is the
    one-sided Clopper-Pearson bound from ``samples`` draws, independent of the ``selection`` draws
    that choose the class. The guarantee is for g, **not** for the model without noise.

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
        A `SmoothedClassifier` with ``predict(x)`` and ``radii(x)``.

    Raises:
        ValueError: if an argument is out of its range, or a layer of the model is random at
            inference or mixes the examples of a batch: the draws would not be independent.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> labels, radii = smooth(model, sigma=0.25).radii(np.random.rand(5, 4))

    Reference: Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized
    smoothing" (ICML 2019), theorem 1 and the procedures Predict and Certify.
    """
    return SmoothedClassifier(model, sigma, samples, selection, alpha, seed, batch_size, progress)


class SmoothedClassifier:
    """A smoothed classifier; made by `smooth`, whose arguments are its attributes."""

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
        self.sigma = positive_float("sigma", sigma)
        self.samples = positive_int("samples", samples)
        self.selection = positive_int("selection", selection)
        self.alpha = positive_float("alpha", alpha)
        if self.alpha >= 1.0:
            raise ValueError(f"`alpha` must be in (0, 1). Received: alpha={alpha}")
        self.seed = positive_int("seed", seed, least=0)
        self.batch_size = positive_int("batch_size", batch_size)
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
        for i, answers in self._answers(given, rows, self.samples):
            counts = _counts(answers)
            order = np.argsort(-counts, kind="stable")
            first, second = counts[order[0]], counts[order[1]] if len(counts) > 1 else 0
            # Answers that are not numbers are no class: they count for the second, as a doubt.
            second = max(int(second), int((answers < 0).sum()))
            if first > second:
                chance = stats.binomtest(int(first), int(first + second), 0.5).pvalue
                if chance <= self.alpha:
                    labels[i] = order[0]
        return labels

    def radii(
        self, x: Any, batch_size: int | None = None, indices: Iterable[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Label and certified L2 radius of each image; (-1, 0) where it abstains.

        Args:
            x: array (n, ...) of inputs, in the scale the model takes.
            batch_size: noisy images per forward pass; the object's own by default.
            indices: index of each image, which its noise comes from; its position by default.

        Returns:
            (labels (n,) int64, radii (n,) float64 in the units of x).

        Example:

        >>> labels, radii = smoothed.radii(x_test[:100])
        >>> certified_accuracy = np.mean((labels == y_test[:100]) & (radii > 0.25))
        """
        from scipy import stats

        given, rows = self._check(x, indices)
        # The model sees the image rounded to float32; the radius is around the one given.
        moved = given.astype(np.float64) - given.astype(np.float32)
        moved = np.sqrt((moved**2).sum(axis=tuple(range(1, moved.ndim))))
        labels, radii = np.full(len(given), ABSTAIN, np.int64), np.zeros(len(given))
        count = self.selection + self.samples
        for i, answers in self._answers(given, rows, count, batch_size):
            chosen, draws = _counts(answers[: self.selection]), answers[self.selection :]
            if not chosen.any():
                continue
            label = int(chosen.argmax())
            bound = lower_confidence_bound(int((draws == label).sum()), len(draws), self.alpha)
            if bound > 0.5:
                radius = self.sigma * float(stats.norm.ppf(bound)) * (1 - 1e-12) - moved[i]
                labels[i], radii[i] = label, max(radius, 0.0)
        return labels, radii

    def accuracy(
        self, x: Any, y: Any, eps: Iterable[float] = (), batch_size: int | None = None
    ) -> dict[str, Any]:
        """How often the smoothed answer is right, and how often proved right; of g, not the model.

        Args:
            x: array (n, ...) of inputs, in the scale the model takes.
            y: integer labels (n,).
            eps: L2 radii in the units of x.
            batch_size: noisy images per forward pass; the object's own by default.

        Returns:
            ``"clean"`` (abstentions count as wrong), ``"abstained"``, ``"certified"`` with the
            share of right answers whose radius is above each of ``eps``, and ``"settings"``.
        """
        labels, radii = self.radii(x, batch_size=batch_size)
        right = labels == np.asarray(y)
        return {
            "clean": float(right.mean()),
            "abstained": float((labels == ABSTAIN).mean()),
            "certified": {float(e): float((right & (radii > e)).mean()) for e in eps},
            "settings": self.to_dict(),
        }

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain numbers, for JSON."""
        names = ("sigma", "samples", "selection", "alpha", "seed")
        return {"type": "randomised smoothing", **{name: getattr(self, name) for name in names}}

    def _answers(self, x, rows, count, batch_size=None):
        """(position, the model's answers to ``count`` noisy copies) of each image in turn."""
        size = self.batch_size if batch_size is None else positive_int("batch_size", batch_size)
        for i, (image, row) in enumerate(zip(x.astype(np.float32), rows, strict=True)):
            rng = np.random.default_rng([self.seed, int(row)])
            answers = []
            for start in range(0, count, size):
                # Draws follow one another in one stream: where it is cut does not matter.
                shape = (min(size, count - start), *image.shape)
                noisy = image + np.float32(self.sigma) * rng.standard_normal(shape, np.float32)
                logits = predict_logits(self.model, noisy, size)
                found.append(answers(logits))
            yield i, np.concatenate(answers)
            if self.progress is not None:
                self.progress(i + 1, len(x))

    def _check(self, x, indices):
        x = x if isinstance(x, np.ndarray) else to_numpy(x)
        if x.ndim < 2 or x.dtype.kind != "f" or not np.isfinite(x).all():
            raise ValueError(
                "`x` must be a finite float array of shape (n, ...) in the scale the model takes. "
                f"Received: shape {x.shape}, dtype {x.dtype}"
            )
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


def _check_layers(model: Any) -> None:
    for attribute, what in (
        ("random_at_inference", "is random at inference"),
        ("depends_on_batch", "mixes the examples of a batch"),
    ):
        for name in layers_with(model, attribute):
            raise ValueError(
                f"`model` must be a deterministic function of one example. Layer {name!r} {what}, "
                "so that draws of noise would not be independent."
            )
