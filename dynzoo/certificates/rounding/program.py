r"""The model's inference pass a second time, in NumPy float64, and how the backend multiplies.

``forward_float64`` is an implementation of its own: what a certificate bounds is the function that
it computes. How far the model's floating-point logits may be from it is bounded in
``rounding_bound``; that they are no farther on probe images is checked here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from dynzoo.backend import to_numpy
from dynzoo.certificates.errors import ReferenceMismatchError
from dynzoo.certificates.graph import Program, Step, trace
from dynzoo.certificates.rules.joins import JOINS
from dynzoo.certificates.rules.table import rule_for

__all__ = [
    "PROBES",
    "allowed_gap",
    "check_reference",
    "factor_unit",
    "forward_float64",
    "probe_images",
    "run_program",
    "run_step",
]

PROBES = 16
_PROBE_NUMBERS = 2_000_000


def forward_float64(model: Any, x: Any) -> np.ndarray:
    """Logits of a model in NumPy float64, without its backend.

    Args:
        model: a model that ``certify`` accepts.
        x: images (n, ...), any float type.

    Returns:
        Logits (n, K), float64.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from dynzoo.certificates import forward_float64
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> forward_float64(model, np.zeros((3, 4))).shape
    (3, 2)
    """
    program = trace(model)
    return run_program(program, x)[program.output]


def run_program(program: Program, x: Any) -> dict[int, np.ndarray]:
    """Runs every step in float64; returns what is in each slot."""
    values = {0: np.asarray(x, dtype=np.float64)}
    for step in program.steps:
        values[step.output] = run_step(step, [values[slot] for slot in step.inputs])
    return values


def run_step(step: Step, arrays: list[np.ndarray]) -> np.ndarray:
    """One step in float64."""
    with np.errstate(all="ignore"):  # far tails of an activation may underflow
        if type(step.layer) in JOINS:
            return JOINS[type(step.layer)].forward(step.layer, arrays)
        return rule_for(step.layer).forward(step.layer, arrays[0])


def probe_images(input_shape: tuple[int, ...]) -> np.ndarray:
    """A small deterministic float32 batch in [0, 1]: black, white, and uniform noise."""
    count = max(3, min(PROBES, _PROBE_NUMBERS // max(1, int(np.prod(input_shape)))))
    images = np.random.default_rng(0).uniform(size=(count, *input_shape)).astype(np.float32)
    images[0], images[1] = 0.0, 1.0
    return images


def check_reference(
    values: dict[int, np.ndarray], output: int, logits: np.ndarray, allowed: np.ndarray
) -> None:
    """Compares the model's logits with the float64 run of the same images.

    Args:
        values: what ``run_program`` returned.
        output: slot of the logits.
        logits: the model's own.
        allowed: bound (n,) of the L2 norm of the rounding of each image's logits.

    Raises:
        ReferenceMismatchError: if they differ by more than rounding can.
    """
    reference = values[output]
    if reference.shape != logits.shape:
        raise ReferenceMismatchError(
            f"The float64 reference gives logits of shape {reference.shape}, the model "
            f"{logits.shape}: a layer's `call_float64` is not what its `call` computes."
        )
    rows = np.all(np.isfinite(logits), axis=1) & np.all(np.isfinite(reference), axis=1)
    gaps = np.linalg.norm(reference[rows] - logits[rows].astype(np.float64), axis=1)
    if np.any(gaps > allowed[rows]):
        k = int(np.argmax(gaps - allowed[rows]))
        raise ReferenceMismatchError(
            f"The model's logits differ from the float64 reference by {gaps[k]:.3g}, where "
            f"rounding explains {allowed[rows][k]:.3g}. Either the backend runs in reduced "
            "precision (TF32, bfloat16 matrix products: switch it off) or a layer's "
            "`call_float64` is not what its `call` computes at inference."
        )


def allowed_gap(values: dict[int, np.ndarray], output: int) -> np.ndarray:
    """Differences (n,) that reduced precision or another function would exceed, without a bound.

    Rounding of float32 leaves the logits within about 1e-5 of their size, TF32 about 1e-3.
    """
    size = float(np.max(np.abs(values[output]), initial=0.0, where=np.isfinite(values[output])))
    # Logits that cancel to almost nothing keep the rounding of the larger numbers before them.
    peaks = [np.abs(v).reshape(len(v), -1).max(axis=1, initial=0.0) for v in values.values()]
    return 1e-3 * np.maximum(size, 1e-2 * np.max(peaks, axis=0))


def factor_unit(dtype: str) -> float:
    """To how much the backend rounds the factors of a matrix product or a convolution.

    Returns:
        0 for full precision; 2^-11 for TF32 and float16, 2^-8 for bfloat16.

    Example:

    >>> from dynzoo.certificates.rounding.program import factor_unit
    >>> factor_unit("float32")
    0.0
    """
    units = [0.0]
    # One more than what each shorter mantissa holds, in a product of a size that fast paths take.
    for bits in (8, 11):
        number = 1.0 + 2.0**-bits * 0.75
        rows = np.full((64, 64), number, dtype)
        product = to_numpy(ops.matmul(rows, np.eye(64, dtype=dtype)))
        images = np.full((2, 8, 8, 64), number, dtype)
        kernel = np.eye(64, dtype=dtype).reshape(1, 1, 64, 64)
        convolved = to_numpy(ops.conv(images, kernel, data_format="channels_last"))
        if np.any(product != rows) or np.any(convolved != images):
            units.append(2.0**-bits)
    return max(units)
