"""Sets of labels that hold the right one with a stated probability, under every small attack."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from typing import Any

import keras
import numpy as np

from dynzoo.certificates.certificate import Certificate, certify
from dynzoo.inference.label_checks import check_labels
from dynzoo.utils.arguments import number

__all__ = ["PredictionSets", "TooFewImagesWarning", "needed_images", "prediction_sets"]


class TooFewImagesWarning(UserWarning):
    """There are so few calibration images that every set holds all classes."""


def prediction_sets(
    model: keras.Model | Certificate,
    x: Any,
    y: Any,
    alpha: float = 0.1,
    eps: float = 36 / 255,
    batch_size: int = 256,
) -> PredictionSets:
    r"""Sets of labels with a proved coverage under every attack: split conformal prediction.

    $$C(x') = \{y : s_y(x') \le q + \varepsilon\}, \qquad
    s_y(x) = \max_{j \ne y} \frac{f_j(x) - f_y(x)}{L \|w_j - w_y\|}$$

    with q the $\lceil (n+1)(1-\alpha) \rceil$-th smallest of the scores $s_{y_i}(x_i)$ of n
    calibration images. The score is the certified radius with its sign turned
    (``Certificate.distances_behind``): it moves by no more than the image does, so that an attack
    of size eps cannot raise that of the right label by more than eps.

    Guarantee: $P(y \in C(x') \text{ for all } x' \text{ with } \|x' - x\| \le \varepsilon) \ge
    1 - \alpha$ for an image x with label y that is exchangeable with the calibration images, over
    the draw of all of them. Rounding is counted at both ends, so that it holds for the logits as
    they are computed, under the assumptions of ``dynzoo.certify``. The attacker may know everything
    but is to attack the image that is asked about, not those that calibrate.

    Condition: the calibration images are like those that will be asked about, labelled right, and
    took no part in training or in any choice of the model. The coverage is that of a draw: it is
    neither the share for one class nor for one image, and for a fixed calibration it scatters by
    about $\sqrt{\alpha(1-\alpha)/n}$.

    Args:
        model: a model that ``dynzoo.certify`` accepts, or its certificate.
        x: clean calibration images (n, ...), floats in the scale that the model takes.
        y: their labels (n,) or (n, 1), or one-hot rows.
        alpha: allowed share of sets without the right label, in (0, 1).
        eps: L2 size of the attacks, at least 0, in the units of x; 0 for none.
        batch_size: images per forward pass.

    Returns:
        A ``PredictionSets``. If n is below ``needed_images(alpha)``, every set holds all classes,
        and there is a ``TooFewImagesWarning``.

    Raises:
        ValueError: if an argument is out of its range; what ``certify`` and ``radii`` raise.
        TypeError: for a certificate without a Lipschitz bound, such as a smoothed classifier.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from dynzoo.certificates import prediction_sets
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
    >>> sets = prediction_sets(model, x, y, alpha=0.2, eps=36 / 255)
    >>> sets(x).shape
    (20, 3)
    >>> sets.coverage(x, y) >= 0.8  # on the calibration images themselves
    True

    Reference: Vovk, Gammerman and Shafer, "Algorithmic learning in a random world" (2005), for
    split conformal prediction; Gendler et al., "Adversarially robust conformal prediction" (ICLR
    2022), for the enlarged threshold; Massena et al., "Efficient robust conformal prediction via
    Lipschitz-bounded networks" (ICML 2025), for Lipschitz bounds in place of noise.
    """
    alpha = number("alpha", alpha, 0.0, 1.0, closed="none")
    eps = number("eps", eps, closed="low")
    if isinstance(model, Certificate):
        certificate = model
    elif isinstance(model, keras.Model):
        certificate = certify(model)
    else:
        raise TypeError(
            "`model` must be a Keras model or what `dynzoo.certify` gave of one: prediction sets "
            f"need its Lipschitz bound. Received: {type(model).__name__}"
        )
    labels = check_labels(y, len(x), len(certificate.pair_distances))
    # From above: a larger threshold makes larger sets.
    _, high = certificate.distances_behind(x, batch_size)
    scores = np.sort(high[np.arange(len(labels)), labels])
    rank = _rank(len(scores), alpha)
    if rank > len(scores):
        warnings.warn(
            f"alpha={alpha:g} needs at least {needed_images(alpha)} calibration images. Received: "
            f"{len(scores)}. Every set holds all classes.",
            TooFewImagesWarning,
            stacklevel=2,
        )
    threshold = float(scores[rank - 1]) if rank <= len(scores) else math.inf
    return PredictionSets(certificate, threshold, alpha, eps, len(scores))


class PredictionSets:
    """Sets of labels with a coverage that no attack takes away; made by ``prediction_sets``.

    Attributes:
        threshold: q, in the units of the images; infinite if all sets hold all classes.
        alpha: allowed share of sets without the right label.
        eps: L2 size of the attacks.
        images: number of calibration images.
        certificate: the ``Certificate`` behind them.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from dynzoo.certificates import prediction_sets
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
    >>> sets = prediction_sets(model, x, y, alpha=0.2, eps=0.1)
    >>> sets(x).shape
    (20, 3)
    """

    def __init__(
        self, certificate: Certificate, threshold: float, alpha: float, eps: float, images: int
    ):
        self.certificate = certificate
        self.threshold = threshold
        self.alpha = alpha
        self.eps = eps
        self.images = images

    def __call__(self, x: Any, eps: float | None = None, batch_size: int = 256) -> np.ndarray:
        """Which classes are in the set of each image, attacked or not.

        Args:
            x: float images (n, ...) in the scale that the model takes.
            eps: another size of the attacks: the threshold is the same for all.
            batch_size: images per forward pass.

        Returns:
            bool (n, classes). A row may be empty: no label fits the image as well as the right
            ones fitted the calibration images. An image that gives no finite logits has all.

        Raises:
            ValueError: if eps is out of its range; what ``Certificate.radii`` raises.

        Example:

        >>> import keras
        >>> import numpy as np
        >>> from dynzoo.certificates import prediction_sets
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
        >>> sets = prediction_sets(model, x, y, alpha=0.2, eps=0.1)
        >>> answers = [np.flatnonzero(row) for row in sets(x[:3])]
        """
        size = self.eps if eps is None else number("eps", eps, closed="low")
        low, _ = self.certificate.distances_behind(x, batch_size)
        return self.holding(low, size)

    def holding(self, low: np.ndarray, eps: float) -> np.ndarray:
        """The same from what ``Certificate.distances_behind`` gave: one pass for all sizes.

        Args:
            low: its first array (n, classes).
            eps: size of the attacks, at least 0.

        Example:

        >>> import keras
        >>> import numpy as np
        >>> from dynzoo.certificates import prediction_sets
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
        >>> sets = prediction_sets(model, x, y, alpha=0.2, eps=0.1)
        >>> low, _ = sets.certificate.distances_behind(x)
        >>> by_size = {e: sets.holding(low, e) for e in (0.1, 0.5)}
        """
        return low <= (self.threshold + eps) + 1e-12 * (abs(self.threshold) + eps)

    def sizes(self, x: Any, eps: float | None = None, batch_size: int = 256) -> np.ndarray:
        """Number of classes in the set of each image: integers (n,). Arguments as of a call.

        Example:

        >>> import keras
        >>> import numpy as np
        >>> from dynzoo.certificates import prediction_sets
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
        >>> sets = prediction_sets(model, x, y, alpha=0.2, eps=0.1)
        >>> bool(sets.sizes(x).mean() <= 3)
        True
        """
        return self(x, eps, batch_size).sum(axis=1)

    def coverage(self, x: Any, y: Any, eps: float | None = None, batch_size: int = 256) -> float:
        """Share of these images, attacked or not, whose set holds their label.

        Args:
            x: float images (n, ...), at least one.
            y: labels (n,) or (n, 1), or one-hot rows.
            eps: another size of the attacks.
            batch_size: images per forward pass.

        Returns:
            A share in [0, 1]. It is an observation; what is guaranteed is 1 - alpha.

        Example:

        >>> import keras
        >>> import numpy as np
        >>> from dynzoo.certificates import prediction_sets
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
        >>> sets = prediction_sets(model, x, y, alpha=0.2, eps=0.1)
        >>> x_attacked = np.clip(x + 0.1 / np.sqrt(4), 0, 1)  # all pixels up, by 0.1 in L2
        >>> sets.certified_coverage(x, y) <= sets.coverage(x_attacked, y)
        True
        """
        labels = self._labels(x, y)
        inside = self(x, eps, batch_size)
        return float(inside[np.arange(len(labels)), labels].mean())

    def certified_coverage(self, x: Any, y: Any, batch_size: int = 256) -> float:
        """Share of clean images whose set is proved to hold their label under every attack.

        It is the same for attacks of every size, since the sets grow with it.

        Args:
            x: clean float images (n, ...), at least one.
            y: labels (n,) or (n, 1), or one-hot rows.
            batch_size: images per forward pass.

        Returns:
            A share in [0, 1].

        Example:

        >>> import keras
        >>> import numpy as np
        >>> from dynzoo.certificates import prediction_sets
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.random.default_rng(0).random((20, 4)), np.arange(20) % 3
        >>> sets = prediction_sets(model, x, y, alpha=0.2, eps=0.1)
        >>> sets.certified_coverage(x, y) <= sets.coverage(x, y)
        True
        """
        labels = self._labels(x, y)
        _, high = self.certificate.distances_behind(x, batch_size)
        return float((high[np.arange(len(labels)), labels] <= self.threshold).mean())

    def __repr__(self) -> str:
        return (
            f"PredictionSets(threshold={self.threshold:.6g}, alpha={self.alpha:g}, "
            f"eps={self.eps:.6g}, images={self.images})"
        )

    def _labels(self, x: Any, y: Any) -> np.ndarray:
        labels = check_labels(y, len(x), len(self.certificate.pair_distances))
        if not len(labels):
            raise ValueError("`x` must hold at least one image. Received: an empty array")
        return labels


def needed_images(alpha: float) -> int:
    r"""Smallest number of calibration images with which sets need not hold all classes.

    $\lceil 1/\alpha \rceil - 1$.

    Args:
        alpha: allowed share of sets without the right label, in (0, 1).

    Raises:
        ValueError: if it is out of its range.

    Example:

    >>> from dynzoo.certificates.prediction_sets import needed_images
    >>> needed_images(0.1)
    9
    """
    return math.ceil(1 / _decimal(number("alpha", alpha, 0.0, 1.0, closed="none"))) - 1


def _rank(images: int, alpha: float) -> int:
    return math.ceil((images + 1) * (1 - _decimal(alpha)))


def _decimal(alpha: float) -> Fraction:
    """The number that was written: 0.3 as a float is a little less, which would be a rank more."""
    return Fraction(repr(alpha))
