"""The one-step attack: cheap, and the weakest there is."""

from __future__ import annotations

from dynzoo.attacks.pgd import PGD


class FGSM(PGD):
    r"""Fast gradient (sign) method: one step of full length from the image itself.

    $x' = \mathrm{clip}(x + \varepsilon\,\mathrm{sign}(\nabla_x \ell))$ for Linf and
    $x' = \mathrm{clip}(x + \varepsilon\,\nabla_x \ell / \|\nabla_x \ell\|_2)$ for L2. It is a
    sanity check, not an evaluation: ``PGD`` must be at least as strong.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        eps: radius of the ball and length of the step, > 0.
        seed: unused, since the start is not random; part of the common signature.
        loss: ``"ce"`` (as published), ``"margin"`` or ``"dlr"``.
        targeted: if true, ``y`` is the class to reach.
        batch_size: images processed at once.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> import keras, numpy as np
    >>> from dynzoo.attacks import FGSM
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")
    >>> FGSM(norm="linf", eps=0.1)(model, x, y).shape
    (5, 4)

    Reference: Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples"
    (2015), section 4.
    """

    def __init__(
        self,
        norm: str = "l2",
        eps: float = 0.5,
        seed: int = 0,
        loss: str = "ce",
        targeted: bool = False,
        batch_size: int = 256,
    ) -> None:
        super().__init__(
            norm=norm,
            eps=eps,
            seed=seed,
            steps=1,
            step_size=eps,
            random_start=False,
            loss=loss,
            targeted=targeted,
            batch_size=batch_size,
        )
