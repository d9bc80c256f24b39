r"""How far the model's floating-point forward pass is from the map that is certified.

A certificate is a statement on real numbers; a model runs in float32. `forward_float64` is a
second, independent implementation of the inference pass in NumPy float64, and the largest
difference of the logits, times `SAFETY_FACTOR`, is the rounding margin tau. If every logit the
machine computes is within tau of the real one, at the clean and at the perturbed image, then a
margin larger than 4 tau plus the certified movement keeps the answer of the *machine* too.

tau is measured, not proved: the factor is there because the images that were probed are few.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynzoo.certificates.errors import ReferenceMismatchError
from dynzoo.certificates.graph import Program, trace
from dynzoo.certificates.joins import JOINS
from dynzoo.certificates.rules import rule_for

__all__ = [
    "PROBES",
    "SAFETY_FACTOR",
    "forward_float64",
    "probe_images",
    "rounding_margin",
    "run_program",
]

SAFETY_FACTOR = 10.0
# Rounding of float32 leaves the logits within about 1e-5 of their size; TF32 about 1e-3.
_SUSPICIOUS = 1e-3
PROBES = 16
_PROBE_NUMBERS = 2_000_000


def forward_float64(model: Any, x: Any) -> np.ndarray:
    """Logits of a model in NumPy float64, without its backend.

    Args:
        model: a model that `certify` accepts.
        x: images (n, ...), any float type.

    Returns:
        Logits (n, K), float64.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> forward_float64(model, np.zeros((3, 4))).shape
    (3, 2)
    """
    program = trace(model)
    return run_program(program, x)[program.output]


def run_program(program: Program, x: Any) -> dict[int, np.ndarray]:
    """Runs every step in float64; returns what is in each slot."""
    values = {0: np.asarray(x, dtype=np.float64)}
    with np.errstate(all="ignore"):  # far tails of an activation may underflow
        for step in program.steps:
            arrays = [values[slot] for slot in step.inputs]
            if type(step.layer) in JOINS:
                values[step.output] = JOINS[type(step.layer)].forward(step.layer, arrays)
            else:
                values[step.output] = rule_for(step.layer).forward(step.layer, arrays[0])
    return values


def probe_images(input_shape: tuple[int, ...]) -> np.ndarray:
    """A small deterministic float32 batch in [0, 1]: black, white, and uniform noise."""
    count = max(3, min(PROBES, _PROBE_NUMBERS // max(1, int(np.prod(input_shape)))))
    images = np.random.default_rng(0).uniform(size=(count, *input_shape)).astype(np.float32)
    images[0], images[1] = 0.0, 1.0
    return images


def rounding_margin(values: dict[int, np.ndarray], output: int, logits: np.ndarray) -> float:
    """tau from the float64 run of a batch and the model's own logits of the same batch.

    Raises:
        ReferenceMismatchError: if they differ by more than rounding can explain.
    """
    reference = values[output]
    if reference.shape != logits.shape:
        raise ReferenceMismatchError(
            f"The float64 reference gives logits of shape {reference.shape}, the model "
            f"{logits.shape}: a layer's `call_float64` is not what its `call` computes."
        )
    rows = np.all(np.isfinite(logits), axis=1) & np.all(np.isfinite(reference), axis=1)
    if not rows.any():
        return 0.0
    exact, computed = reference[rows], logits[rows].astype(np.float64)
    gap = float(np.max(np.abs(exact - computed)))
    size = float(np.max(np.abs(exact)))
    # Logits that cancel to almost nothing keep the rounding of the larger numbers before them.
    peak = max(float(np.max(np.abs(v[rows]), initial=0.0)) for v in values.values())
    if gap > _SUSPICIOUS * max(size, 1e-2 * peak):
        raise ReferenceMismatchError(
            f"The model's logits differ from the float64 reference by {gap:.3g} where logits are "
            f"up to {size:.3g}: more than float32 rounding. Either the backend runs in reduced "
            "precision (TF32, bfloat16 matrix products: switch it off) or a layer's "
            "`call_float64` is not what its `call` computes at inference."
        )
    unit = float(np.finfo(logits.dtype).eps) / 2
    return SAFETY_FACTOR * max(gap, unit * size)
