"""Cheap checks that expose an evaluation whose robustness is only a failure of the attack.

Each looks at a few images and returns named warnings. They are diagnostics: silence proves
nothing, but a warning says why a robust accuracy must not be believed. Those of gradients are in
`gradient_check`, the planted example in `active_test`, and what the outcomes themselves tell in
`outcome_checks`.

Reference: Carlini et al., *On evaluating adversarial robustness* (2019), evaluation checklist;
Athalye, Carlini and Wagner, *Obfuscated gradients give a false sense of security* (2018).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynzoo.attacks.pgd import PGD
from dynzoo.inference.answers import answers
from dynzoo.inference.batch_mixing import hides_code, mixing_calls, training_calls
from dynzoo.inference.companions import differs, find_mixing
from dynzoo.inference.draws import Draws
from dynzoo.inference.model_layers import random_layers
from dynzoo.inference.passes import predict_logits
from dynzoo.robustness.checks.warning import SAMPLE, TOLERANCE, EvaluationWarning
from dynzoo.utils.formatting import percent


def check_layers(model: Any, x: np.ndarray) -> list[EvaluationWarning]:
    """Warn of calls that are random at inference, mix a batch, or have `training=True`.

    Raises:
        ValueError: If the model takes batches of one size only, such as a graph whose nodes are
            the images: attacks go on with the images that still resist, hence with smaller ones.
    """
    warnings = []
    if names := random_layers(model):
        warnings.append(EvaluationWarning("randomised-model", f"{_layers(names)}. {_RANDOM}"))
    if names := [call.name for call in training_calls(model)]:
        warnings.append(EvaluationWarning("training-mode-call", f"{_layers(names)}. {_TRAINING}"))
    if names := [call.name for call in mixing_calls(model)]:
        warnings.append(EvaluationWarning("batch-dependent-model", f"{_layers(names)}. {_BATCH}"))
        try:
            for size in (1, 2):
                predict_logits(model, x[:2], size)
        except Exception as error:  # each backend has its own
            raise ValueError(
                "`model` must take batches of any size: attacks go on with the images that still "
                f"resist. {_layers(names)} does not: {error}"
            ) from error
    return warnings


_RANDOM = (
    "The model is random at inference. Its answer is taken to be that of the mean logits of a few "
    "draws, and gradient attacks follow the mean over draws, whose own noise makes them weaker, so "
    "the attacked accuracy is too high: attack `inference='mean'` where the layer has it, or "
    "certify by randomised smoothing."
)
_BATCH = (
    "An output depends on the other images of its batch, so that the numbers hold for the batches "
    "seen here alone, and a change of one image changes the answers to others. The attacks do not "
    "hold a batch together, so the attacked accuracy is not a bound: use a model that treats each "
    "image by itself."
)


_TRAINING = (
    "It is called with training=True in the graph of the model, which `model(x)` follows. "
    "`model.predict` and the attacks override it: the numbers are of the layer at inference."
)


def _layers(names: list[str]) -> str:
    return ("Layer " if len(names) == 1 else "Layers ") + ", ".join(repr(n) for n in names)


def check_examples(model: Any, x: np.ndarray) -> list[EvaluationWarning]:
    """What `check_layers` warns of, and a mixture of the batch that no graph shows but answers do.

    Raises:
        ValueError: If the model takes batches of one size only.
    """
    warnings = check_layers(model, x)
    known = {w.name for w in warnings}
    if hides_code(model) and len(x) and not known & {"batch-dependent-model", "randomised-model"}:
        warnings += [w for w in check_outputs(model, x[:_FEW]) if w.name in _EXAMPLES - known]
    return warnings


_FEW = 8
_EXAMPLES = {"batch-dependent-model", "randomised-model"}


def check_outputs(model: Any, x: np.ndarray, draws: Draws | None = None) -> list[EvaluationWarning]:
    """Warn of outputs that change between two passes or with the batch, and of probabilities.

    `draws` gives each pass noise of its own, also where a compiled pass would repeat its noise.

    Raises:
        ValueError: If the model takes batches of one size only.
    """
    draws = draws or Draws(model, 0)
    key = (2**20,)  # apart from the numbers that are counted

    def logits(x: np.ndarray, *key: int) -> np.ndarray:
        draws.fresh(*key)
        return predict_logits(model, x, SAMPLE)

    first, second = logits(x, *key), logits(x)
    warnings = []
    if differs(first, second, 1e-4):
        warnings.append(
            EvaluationWarning(
                "randomised-model",
                f"Two passes over the same images give different logits. {_RANDOM}",
            )
        )
    elif (found := find_mixing(model, x)) is not None:
        if found.kind == "size":
            raise ValueError(
                "`model` must take batches of any size: attacks go on with the images that still "
                f"resist. It {found}"
            )
        warnings.append(EvaluationWarning("batch-dependent-model", f"The model {found}. {_BATCH}"))
    if first.min() >= 0.0 and np.allclose(first.sum(axis=1), 1.0, atol=1e-4):
        warnings.append(
            EvaluationWarning(
                "probabilities",
                "The outputs look like probabilities. Attacks and certificates need logits: "
                "remove the final softmax.",
            )
        )
    return warnings


def check_unbounded(
    model: Any, x: np.ndarray, y: np.ndarray, norm: str, seed: int
) -> list[EvaluationWarning]:
    """Warn if the attack fails even in a ball that holds the whole box.

    With no limit on the perturbation every image can become any other, so each correct image must
    fall; survivors mean that the attack does not find what exists.
    """
    eps = 1.0 if norm == "linf" else float(np.sqrt(x[0].size))
    attack = PGD(norm=norm, eps=eps, seed=seed, steps=50, random_start=False, batch_size=SAMPLE)
    labels = answers(predict_logits(model, attack(model, x, y), SAMPLE))
    left = float((labels == y).mean())
    if left <= TOLERANCE:
        return []
    return [
        EvaluationWarning(
            "unbounded-attack-fails",
            f"{percent(left, 0)} of the tested images resist an attack without any limit on the "
            "perturbation, so the attack is broken by the model and not defeated by robustness.",
        )
    ]


def check_convergence(
    model: Any,
    x: np.ndarray,
    y: np.ndarray,
    survivors: np.ndarray,
    eps: float,
    norm: str,
    steps: int,
    seed: int,
) -> list[EvaluationWarning]:
    """Warn if twice the steps, and other random starts, break images that had resisted.

    Args:
        model: Built Keras model.
        x: All images.
        y: Their labels.
        survivors: Numbers of images that resisted at `eps`; a few of them are attacked.
        eps: Radius.
        norm: `"l2"` or `"linf"`.
        steps: The largest number of steps that an attack of the evaluation took.
        seed: Seed of the evaluation; the restarts use another one.
    """
    rows = survivors[:SAMPLE]
    if not len(rows):
        return []
    attack = PGD(norm, eps, seed + 1, steps=2 * steps, restarts=2, batch_size=SAMPLE)
    points = attack(model, x[rows], y[rows], indices=rows)
    fallen = int((answers(predict_logits(model, points, SAMPLE)) != y[rows]).sum())
    if fallen <= max(1.0, TOLERANCE * len(rows)):
        return []
    return [
        EvaluationWarning(
            "not-converged",
            f"Of {len(rows)} images that resisted at eps {eps:.4g}, {fallen} fall to PGD with "
            f"{2 * steps} steps and two random starts: the attacks stopped too early.",
        )
    ]
