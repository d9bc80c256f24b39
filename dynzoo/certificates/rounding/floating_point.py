r"""What rounding does to a vector on its way through a computation: bounds, not samples.

The model of arithmetic is the standard one: the result of an operation on numbers x and y is
$(x \circ y)(1 + \delta)$ with $|\delta| \le u$, plus at most the smallest normal number where it
underflows. A ``Budget`` follows one tensor through a computation and holds three upper bounds of
L2 norms: of its exact value, of the distance between the computed and the exact value for every
choice of the $\delta$ (``worst``), and of the same distance for $\delta$ that are independent and
have mean zero, up to a chance of one in ten million (``probable``).

Each bound is an affine function of the distance s between the image and an anchor image, kept as
an array (2, anchors): constants, then slopes. So one pass over the layers serves all images and
all radii.

Reference: N. J. Higham, "Accuracy and Stability of Numerical Algorithms" (2002), chapters 3 and
4; N. J. Higham and T. Mary, "A new approach to probabilistic rounding error analysis", SIAM
J. Sci. Comput. 41 (2019).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "DEVIATIONS",
    "DEVIATION_UNITS",
    "Arithmetic",
    "Budget",
    "arithmetic_of",
    "few_roundings",
]

# How many standard deviations the probable error of single roundings counts.
DEVIATIONS = 4.0
# Root mean square of delta / u: the error of a rounding is uniform in half a unit of the last
# place, the mantissa logarithmic in [1, 2): sqrt(1/3 * (1 - 1/4) / (2 ln 2)) = 0.4247.
_SPREAD = 0.425
# The probable size of one rounding in units u.
DEVIATION_UNITS = DEVIATIONS * _SPREAD
# Chances below exp(-16), one in ten million, are left out.
_RARE = 16.0
# Sums of so few terms are not left to chance.
_FEW_TERMS = 16
# The probable share of the worst error above which roundings are few: sums of 16 terms or less.
_FEW = 0.25


class Arithmetic(NamedTuple):
    """The numbers in which a model computes.

    Attributes:
        unit: unit roundoff u, 2^-24 for float32.
        tiny: what a result may lose that underflows, whether or not it is flushed to zero.
        largest: above this size nothing is claimed: squares, too, must stay finite.
        factor_unit: to how much factors of a matrix product are rounded before (TF32: 2^-11);
            0 where they are not.
        library: error of exp, tanh, erf, ... in units u, relative to the larger of argument and
            value.
    """

    unit: float
    tiny: float
    largest: float
    factor_unit: float = 0.0
    library: float = 16.0


def arithmetic_of(dtype: str, factor_unit: float = 0.0) -> Arithmetic:
    """The arithmetic of a floating-point type: "float32" or "float64"."""
    info = np.finfo(dtype)
    return Arithmetic(
        float(info.eps) / 2, float(info.tiny), math.sqrt(float(info.max)) / 16.0, factor_unit
    )


class Budget:
    """A tensor on its way: bounds of its size and of its errors, affine in s.

    Attributes:
        size: bound of the L2 norm of the exact value.
        worst: bound of the L2 norm of the error, whatever the roundings are.
        probable: the same for independent roundings.
        peak: bound of all intermediate results so far.
        measured: whether a part of the errors was measured rather than bounded.
        arithmetic: the ``Arithmetic``.

    Example:

    >>> start = Budget(np.array([[1.0], [0.0]]), arithmetic_of("float32"))
    >>> start.product(4, 1.0).worst[0, 0] < 1e-6
    True
    """

    def __init__(
        self,
        size: np.ndarray,
        arithmetic: Arithmetic,
        worst: np.ndarray | None = None,
        probable: np.ndarray | None = None,
        peak: np.ndarray | None = None,
        measured: bool = False,
    ):
        self.size = size
        self.arithmetic = arithmetic
        self.worst = np.zeros_like(size) if worst is None else worst
        self.probable = np.zeros_like(size) if probable is None else probable
        self.peak = np.zeros_like(size) if peak is None else peak
        self.measured = measured

    @property
    def computed(self) -> np.ndarray:
        """Bound of the L2 norm of the computed value."""
        return self.size + self.worst

    def mapped(self, gain: float, offset: float = 0.0) -> Budget:
        """After an exact map with this Lipschitz constant and this norm of the image of zero."""
        size = gain * self.size
        size[0] += offset
        return self._with(size, gain * self.worst, gain * self.probable)

    def rounded(
        self, times: float = 1.0, offset: float = 0.0, relative_to: np.ndarray | None = None
    ) -> Budget:
        """After ``times`` roundings of every entry, relative to itself or to a larger size."""
        size = self.computed if relative_to is None else relative_to
        local = times * self.arithmetic.unit * size
        local[0] += times * (self.arithmetic.unit * offset + self.arithmetic.tiny)
        return self.disturbed(local, DEVIATION_UNITS / math.sqrt(times))

    def disturbed(self, worst: np.ndarray, ratio: float = 1.0) -> Budget:
        """With an error added, whose probable part is ``ratio`` times as large."""
        probable = np.hypot(self.probable, ratio * worst)
        return self._with(self.size, self.worst + worst, probable)

    def product(
        self,
        terms: int,
        norm: float,
        frobenius: float | None = None,
        outputs: int = 1,
        coherent: bool = False,
        independent: int = 1,
    ) -> Budget:
        r"""After a product with a matrix, in any order of summation, fused or not.

        A node v of the summation tree holds the partial sums $W_S x_S$ of all outputs at once,
        over the indices S below it, and $\|W_S x_S\| \le \|W\| \|x\|$. Its rounding moves the
        result by at most $u \|W_S x_S\|$; with fewer than n nodes and n products,
        $\|e\| \le (n + \sqrt n) u (1 + u)^n \|W\| \|x\|$. This takes for granted that the outputs
        at one place share the tree; without it the square root of their number would be a factor.
        Independent roundings add in squares, and $\|x_S\|^2$ is the share of the terms that S
        holds: half of them in the mean. That gives the mean square of $\|e\|$; see ``deviations``.

        Args:
            terms: number n of products in each sum.
            norm: bound of the L2 operator norm of W and of each part $W_S$ of its rows.
            frobenius: bound of the Frobenius norm of the map, for factors that are rounded.
            outputs: number of sums, for those that underflow.
            coherent: whether the terms may have one sign and size, so that the roundings line up.
            independent: number of sums at one place of which none is a copy of another.
        """
        a = self.arithmetic
        x = norm * self.computed
        growth = math.exp(min(700.0, terms * a.unit)) * a.unit
        worst = (terms + math.sqrt(terms)) * growth * x
        probable = worst
        if not coherent and terms > _FEW_TERMS:
            spread = deviations(independent) * _SPREAD
            probable = np.minimum(worst, spread * math.sqrt(terms / 2 + 1.5) * growth * x)
        if a.factor_unit:
            # Both factors are rounded: |dW| <= f |W| entry by entry, |dx| <= f |x|.
            loose = norm if frobenius is None else frobenius
            rounded = a.factor_unit * (norm + (1 + a.factor_unit) * loose) * self.computed
            worst, probable = worst + rounded, probable + rounded
        # Underflow of products, and of factors where the hardware reads denormal numbers as zero.
        lost = a.tiny * terms * math.sqrt(outputs) * self.computed
        lost[0] += a.tiny * 2 * terms * math.sqrt(outputs)
        worst, probable = worst + lost, probable + lost
        return self._with(
            norm * self.size,
            norm * self.worst + worst,
            np.hypot(norm * self.probable, probable),
            np.maximum(self.peak, x + worst),
        )

    def __add__(self, other: Budget) -> Budget:
        """The sum of two computed tensors, rounded."""
        total = self._with(
            self.size + other.size,
            self.worst + other.worst,
            # Both may hold the same roundings: deviations of dependent numbers add.
            self.probable + other.probable,
            np.maximum(self.peak, other.peak),
        )
        total.measured = self.measured or other.measured
        return total.rounded()

    __sub__ = __add__

    def __rmul__(self, factor: float) -> Budget:
        """A number times a tensor, rounded unless it is a power of two."""
        scaled = self.mapped(abs(float(factor)))
        return scaled if math.frexp(float(factor))[0] in (0.5, -0.5) else scaled.rounded(2.0)

    def _with(self, size: Any, worst: Any, probable: Any, peak: Any = None) -> Budget:
        peak = self.peak if peak is None else peak
        peak = np.maximum(peak, size + worst)
        return Budget(size, self.arithmetic, worst, probable, peak, self.measured)


def deviations(outputs: int) -> float:
    r"""How many times its root mean square the norm of independent errors may be.

    For m independent normal numbers of variance one, $\|e\|^2$ is above
    $m + 2\sqrt{mt} + 2t$ with a probability of $e^{-t}$ at most (Laurent and Massart, Annals of
    Statistics 28, 2000, lemma 1): 6.4 for one, 1.6 for 64 and 1.2 for 512.
    """
    m = float(max(1, outputs))
    return math.sqrt(1.0 + 2.0 * math.sqrt(_RARE / m) + 2.0 * _RARE / m)


def few_roundings(budget: Budget) -> bool:
    """Whether errors come from so few roundings for each number that chance means nothing.

    A sum of independent errors is unlikely to be large if there are many. Of a few it is easy to
    choose numbers, such as a bias just below half a unit, which makes them all point one way; from
    layer to layer these add up in full.
    """
    return bool(np.any(budget.probable >= _FEW * budget.worst))
