"""Certified radii from bounds that hold on a ball around each image, not everywhere.

Published networks of dynamical blocks have free scalars between the blocks: a product of layer
constants is far above any slope that the network has. Near one image most units cannot switch, and
there the network is nearly linear.
"""

from __future__ import annotations

import keras

from dynzoo.certificates.certificate import certify
from dynzoo.certificates.local.backward_certificate import AlphaCertificate, BackwardCertificate
from dynzoo.certificates.local.complete_certificate import CompleteCertificate
from dynzoo.certificates.local.movement_certificate import LocalCertificate
from dynzoo.utils.arguments import one_of

__all__ = ["METHODS", "LocalCertificate", "certify_local"]

METHODS: dict[str, type[LocalCertificate]] = {
    "movement": LocalCertificate,
    "crown": BackwardCertificate,
    "alpha-crown": AlphaCertificate,
    "complete": CompleteCertificate,
}
_EXACT_UNITS = 512


def certify_local(
    model: keras.Model,
    iterations: int = 12,
    exact_units: int | None = None,
    rounding: str = "probable",
    method: str = "movement",
    norm: str = "l2",
    time_limit: float | None = None,
) -> LocalCertificate:
    r"""Certifies each image on its own ball; never less than ``certify`` does.

    For a ball $B(x, r)$ the model is enclosed between linear functions: units that cannot switch
    in the ball are exact, the others are lines with a slack. If
    $f_i(x + \delta) - f_j(x + \delta) \ge m_j - S_j\|\delta\| - \beta_j$ there, then
    $\min(r, \min_j (m_j - e_j - \beta_j) / (S_j + e'_j))$ is certified, with the bounds e of
    rounding; r is found by bisection. Where no unit switches, this is the distance to the
    decision boundary.

    Guarantee: as ``Certificate.radii``, with the same bounds of rounding. What the local bounds
    round themselves, in float64, is part of them.

    Args:
        model: built Sequential or Functional model of layers that local bounds know: Dense; Conv,
            DepthwiseConv, ConvTranspose, MaxPooling, AveragePooling, GlobalAveragePooling,
            GlobalMaxPooling, ZeroPadding and Cropping in one and two dimensions; ReLU, LeakyReLU
            (also as activations) and PReLU; Normalization, BatchNormalization, Rescaling,
            LearnedScale, Flatten, Reshape, Permute; Add, Subtract, Average, Maximum, Minimum,
            Concatenate; MaxMin, MeanShift, PositionOffset, SpaceToDepth, UnitRowDense,
            GradientFlow (Euler), ImplicitGradientFlow and SwitchingFlow; with another method than
            "movement" any activation of single numbers, such as tanh, GELU or ELU.
        iterations: balls tried for each image, at least 1.
        exact_units: rectified layers of at most so many units are bounded unit by unit with a
            backward pass each; larger ones by norms, which "crown" says in a warning. 512 by
            default for "movement", no limit for the others.
        rounding: what the radii assume of roundings, as in ``certify``.
        method: how units are bounded. "movement": from the image, with one slack shared by many
            units; cheap for small dense networks. "crown": passes back through the adjoint of each
            layer, in windows of convolutions. "alpha-crown": the same, with slopes found by
            gradient descent where "crown" is not enough. "complete": in addition, balls are split
            at units that can switch, until the answer is certified, a counterexample is found or
            the time is over.
        norm: of the balls, "l2" or "linf" (not with "movement").
        time_limit: seconds for an image, after which layers are bounded by norms and searches
            end; ``None`` for no limit (a minute with "complete").

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
    >>> labels, radii = certify_local(model, method="crown").radii(np.random.rand(5, 4))

    Reference: Hein and Andriushchenko, "Formal guarantees on the robustness of a classifier against
    adversarial manipulation" (NeurIPS 2017), theorem 2.1; Zhang et al., "Efficient neural network
    robustness certification with general activation functions" (NeurIPS 2018); Xu et al., "Fast and
    complete: enabling complete neural network verification with rapid and massively parallel
    incomplete verifiers" (ICLR 2021).
    """
    one_of("method", method, METHODS)
    one_of("norm", norm, ("l2", "linf"))
    if method != "movement":
        made = METHODS[method]
        assert issubclass(made, BackwardCertificate)
        return made(certify(model, rounding), model, iterations, exact_units, norm, time_limit)
    if norm != "l2":
        raise ValueError(f"`norm` must be 'l2' with method='movement'. Received: norm={norm!r}")
    if time_limit is not None:
        raise ValueError(
            f"`time_limit` must be None with method='movement'. Received: time_limit={time_limit!r}"
        )
    most = _EXACT_UNITS if exact_units is None else exact_units
    return LocalCertificate(certify(model, rounding), model, iterations, most)
