"""Adversarial attacks: what was tried, and failed or succeeded, against a model."""

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
