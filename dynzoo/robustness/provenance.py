"""What an evaluation was of, and how it was made: for its report and its checkpoint."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from dynzoo import backend
from dynzoo.attacks.base import Attack
from dynzoo.inference.model_identity import identity_of
from dynzoo.inference.streamed_images import StreamedImages
from dynzoo.robustness.outcomes import Outcomes
from dynzoo.utils.version import version

__all__ = ["fingerprint", "runs", "threat_model", "versions"]


def fingerprint(model: Any, x: np.ndarray, y: np.ndarray) -> dict[str, str]:
    """Hashes of what is evaluated, so that a checkpoint goes on with nothing else."""
    images = hashlib.sha256()
    for array in (x, y):
        if isinstance(array, StreamedImages):
            images.update(array.sha256().encode())
            continue
        images.update(f"{array.shape} {array.dtype}".encode() + array.tobytes())
    return {
        "images": images.hexdigest(),
        **identity_of(model),
        "backend": backend.name(),
        "dynzoo": versions()["dynzoo"],
    }


def threat_model(
    norm: str, eps: Sequence[float], attacks: Sequence[Attack], attack_certified: str
) -> dict[str, Any]:
    """What the attacker may do and knows, for the header of the report."""
    return {
        "goal": "untargeted: any wrong answer counts",
        "knowledge": "white box: the model, its weights and its gradients",
        "norm": norm,
        "eps": list(eps),
        "box": [0.0, 1.0],
        "attacks": [type(attack).__name__ for attack in attacks],
        "worst_case": "pointwise over all attacks, and over all smaller radii",
        "attacks_on_certified_images": attack_certified,
    }


def runs(outcomes: Outcomes, planned: Sequence[Sequence[Attack]]) -> list[dict[str, Any]]:
    """A record of each attack at each radius."""
    return [
        {
            "eps": eps,
            "attack": type(attack).__name__,
            "name": outcomes.attacks[number],
            "config": attack.get_config(),
            "attacked": int(outcomes.attacked[:, number, radius].sum()),
            "broken": int(outcomes.broken[:, number, radius].sum()),
            "forward_passes": int(outcomes.passes[0, number, radius]),
            "backward_passes": int(outcomes.passes[1, number, radius]),
            "seconds": round(float(outcomes.seconds[number, radius]), 3),
        }
        for radius, eps in enumerate(outcomes.eps)
        for number, attack in enumerate(planned[radius])
    ]


def versions() -> dict[str, str]:
    """Versions of all that computes."""
    return {
        "dynzoo": version(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "keras": keras.__version__,
        "backend": backend.name(),
        "backend_version": backend.version(),
    }
