"""Adversarial attacks: what was tried, and failed or succeeded, against a model."""

from collections.abc import Callable
from functools import partial

from dynzoo.attacks.apgd import APGD, TargetedAPGD
from dynzoo.attacks.autoattack import AutoAttack
from dynzoo.attacks.base import Attack
from dynzoo.attacks.ddn import DDN
from dynzoo.attacks.fab import FAB
from dynzoo.attacks.fgsm import FGSM
from dynzoo.attacks.noise import GaussianNoise, UniformNoise
from dynzoo.attacks.pgd import PGD
from dynzoo.attacks.square import Square
from dynzoo.attacks.transfer import Transfer

__all__ = [
    "ATTACKS",
    "APGD",
    "DDN",
    "FAB",
    "FGSM",
    "PGD",
    "Attack",
    "AutoAttack",
    "GaussianNoise",
    "Square",
    "TargetedAPGD",
    "Transfer",
    "UniformNoise",
]

# Name -> attack, from the norm, the radius, the seed and the batch size. Of what is not here,
# `Transfer` needs a source model, and `dynzoo.attacks.ensembles.ENSEMBLES` are several in turn.
ATTACKS: dict[str, Callable[..., Attack]] = {
    "apgd-ce": partial(APGD, loss="ce"),
    "apgd-dlr": partial(APGD, loss="dlr"),
    "apgd-margin": partial(APGD, loss="margin"),
    "apgd-t": TargetedAPGD,
    "fab-t": FAB,
    "square": Square,
    "fgsm": FGSM,
    "pgd": PGD,
    "ddn": DDN,
    "gaussian": GaussianNoise,
    "uniform": UniformNoise,
    "autoattack": AutoAttack,
}
