"""The model and its float64 twin, compared once: a certificate is for the graph that Keras runs.

All that a certificate says is said of the steps that were read from the graph. If the model runs
something else, a bound of these steps is a bound of nothing. Three random inputs tell.
"""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np

from dynzoo import backend
from dynzoo.certificates import upper
from dynzoo.certificates.compiled_inference import run_once
from dynzoo.certificates.errors import ReferenceMismatchError
from dynzoo.certificates.graph import Program, Step
from dynzoo.certificates.operations import TensorCall
from dynzoo.certificates.rounding.program import factor_unit, run_step
from dynzoo.certificates.rules.joins import JOINS
from dynzoo.certificates.rules.table import rule_for
from dynzoo.certificates.settings import Settings

__all__ = ["call_step", "check_twin", "probes"]

# Float32 stays within about 1e-6 of the largest logit; what differs more is looked at step by step.
_CLOSE = 1e-4
# A single step that differs by more than this from its float64 rule computes something else.
_ONE_STEP = 1e-3
# Terms that cancel leave the rounding of their own size: this share of it is no difference.
_CANCELLED = 1e-2
# Two runs of the same steps in float32 are about equally far from float64.
_SIMILAR = 100.0
_SCALES = (4.0, 1e3)


def probes(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Three random inputs: uniform in [0, 1], and normal noise of two larger scales."""
    rng = np.random.default_rng(0)
    rows = [rng.uniform(size=shape), *(rng.standard_normal(shape) * s for s in _SCALES)]
    return np.stack(rows).astype(dtype)


def check_twin(
    model: keras.Model,
    program: Program,
    settings: Settings,
    x: np.ndarray,
    reference: np.ndarray,
) -> None:
    """Compares the model with the float64 run of its steps.

    Args:
        model: the model, as Keras runs it.
        program: its steps.
        settings: of its layers, now.
        x: a few inputs in the type in which images reach the model.
        reference: logits of the float64 run.

    Raises:
        ReferenceMismatchError: if they differ by more than rounding, with the reason.
        ValueError: if the logits are computed in 16 bits.
    """
    try:
        logits = run_once(model, settings, x)
        # An image alone may take another path; JAX would compile it for another second.
        alone = None if backend.name() == "jax" else run_once(model, settings, x[-1:])
    except Exception as error:  # each backend has kinds of errors of its own
        text = " ".join(str(error).split())[:200]
        raise ValueError(
            f"The model cannot be run on the {backend.name()} backend: {text}"
        ) from error
    if str(logits.dtype) not in ("float32", "float64"):
        raise ValueError(
            f"The model computes its logits in {logits.dtype} on the {backend.name()} backend. "
            "A certificate needs float32 or float64."
        )
    for answer, rows in ((logits, slice(None)), (alone, slice(-1, None))):
        if answer is not None and _deviation(answer, reference[rows]) > _CLOSE:
            backend.without_grad(_explain)(program, x[rows], answer, reference[rows])


def _deviation(computed: np.ndarray, exact: np.ndarray, scale: Any = 0.0) -> float:
    """Largest difference, row by row as a share of the largest entry or of ``scale``, if larger.

    A row that overflows tells nothing; another shape differs infinitely.
    """
    if computed.shape != exact.shape:
        return float("inf")
    computed, exact = (a.reshape(len(a), -1).astype(np.float64) for a in (computed, exact))
    rows = np.isfinite(computed).all(axis=1) & np.isfinite(exact).all(axis=1)
    gap = np.abs(computed[rows] - exact[rows]).max(axis=1, initial=0.0)
    size = np.abs(exact[rows]).max(axis=1, initial=0.0)
    size = np.maximum(size, np.broadcast_to(scale, rows.shape)[rows])
    with np.errstate(divide="ignore", over="ignore"):
        return float(np.max(gap[gap > 0] / size[gap > 0], initial=0.0))


def _explain(program: Program, x: np.ndarray, logits: np.ndarray, reference: np.ndarray) -> None:
    """Runs the steps one by one on the backend and raises at the first that is another function.

    Each is compared on the numbers that really reach it, so that rounding which the network
    enlarges on the way is not taken for an error: nothing is raised if each step agrees, and the
    whole is as far from the reference as the model.
    """
    tensors = {0: keras.ops.convert_to_tensor(x)}
    for step in program.steps:
        inputs = [tensors[slot] for slot in step.inputs]
        tensors[step.output] = call_step(step, inputs)
        arrays = [backend.to_numpy(t).astype(np.float64) for t in inputs]
        computed, exact = backend.to_numpy(tensors[step.output]), run_step(step, arrays)
        if _deviation(computed, exact, _CANCELLED * _reach(step, arrays)) > _ONE_STEP:
            raise ReferenceMismatchError(_step_message(step, computed, exact))
    again = backend.to_numpy(tensors[program.output])
    if _deviation(logits, reference) > _SIMILAR * _deviation(again, reference):
        raise ReferenceMismatchError(
            "The model does not run the graph that was read from it: each layer computes what is "
            f"known of it, but one after the other they give logits that differ by "
            f"{_gap(logits, again):.3g}. Build the model anew from plain layers."
        )


def _reach(step: Step, arrays: list[np.ndarray]) -> np.ndarray:
    """How large the terms of a sum in this step may be, which may cancel in its output."""
    rows = np.max([upper.lengths(a) for a in arrays], axis=0)
    if type(step.layer) in JOINS:
        return rows
    gain = rule_for(step.layer).gain(step.layer, (None, *arrays[0].shape[1:]))
    return np.nan_to_num(gain * rows)


def call_step(step: Step, inputs: list[Any]) -> Any:
    """One step at inference, on the backend."""
    layer = step.layer
    if isinstance(layer, TensorCall):
        return layer.replay(inputs, layer.operation.name)
    given = inputs if type(layer) in JOINS else inputs[0]
    if "training" in inspect.signature(layer.call).parameters:
        return layer(given, training=False)
    return layer(given)


def _gap(computed: np.ndarray, exact: np.ndarray) -> float:
    if computed.shape != exact.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        gaps = np.abs(computed.astype(np.float64) - exact)
    return float(np.max(gaps[np.isfinite(gaps)], initial=0.0))


def _step_message(step: Step, computed: np.ndarray, exact: np.ndarray) -> str:
    name = f"Layer '{step.name}' of class `{type(step.layer).__name__}`"
    if computed.shape != exact.shape:
        return (
            f"{name}: its float64 reference gives the shape {exact.shape}, the layer "
            f"{computed.shape}. Its `call_float64` is not what its `call` computes."
        )
    size = float(np.max(np.abs(exact[np.isfinite(exact)]), initial=0.0))
    what = (
        f"{name} differs from its float64 reference by {_gap(computed, exact):.3g} where its "
        f"output is up to {size:.3g}: more than float32 rounding. "
    )
    unit = factor_unit("float32")
    if unit > 0:
        return (
            f"{what}Factors of a product are rounded by {unit:.1g}, relatively, on this backend: "
            "it runs in TF32 or bfloat16. Switch it off, and certify again."
        )
    wide = getattr(step.layer, "compute_dtype", None) == "float64"
    if wide and keras.backend.result_type("float64") != "float64":
        return (
            f"{what}Keras computes much of a float64 layer in float32 on the {backend.name()} "
            "backend, where its numbers are too large, too small or too close to each other."
        )
    if size < 2 * float(np.finfo(computed.dtype).tiny):
        return f"{what}The {backend.name()} backend takes numbers as small as these for zero."
    return (
        f"{what}Products of matrices are exact to float32 here, so it is the layer: its "
        "`call_float64` is not what its `call` computes at inference."
    )
