"""Adversarial attacks: what was tried, and failed or succeeded, against a model."""

from dynzoo.attacks.base import Attack
from dynzoo.attacks.fgsm import FGSM
from dynzoo.attacks.pgd import PGD

__all__ = ["FGSM", "PGD", "Attack"]
