"""What attacks ask of a model in one compiled pass: losses with their gradient, and a judgement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from dynzoo import backend
from dynzoo.attacks.losses import attack_loss, margin
from dynzoo.inference.passes import compiled, logits_of

__all__ = ["judged", "loss_and_gradient"]


def loss_and_gradient(
    model: Any, loss: str, targeted: bool = False, eot: int = 1
) -> Callable[[Any, Any, Any], tuple[Any, Any, Any]]:
    r"""The function ``(x, y, rival) -> (losses, margins, gradient)`` of a model, all per image.

    With ``eot`` above 1 each of the three is the mean over that many passes, the expectation over
    transformation of a random model: $\frac1k \sum_{i=1}^k \ell(f_{\omega_i}(x), y)$.

    Args:
        model: built Keras model.
        loss: name of a loss of ``dynzoo.attacks.losses``.
        targeted: whether ``y`` is the class to reach.
        eot: number of passes, >= 1.

    Reference: Athalye et al., "Synthesizing robust adversarial examples" (2018), section 2.1.
    """

    def make(infer: Callable[[Any, Any], Any]) -> Callable[..., Any]:
        def run(weights: Any, point: Any, y: Any, rival: Any) -> tuple[Any, Any, Any]:
            def objective(x: Any) -> tuple[Any, tuple[Any, Any]]:
                logits = ops.cast(infer(weights, x), "float32")
                losses = attack_loss(loss, logits, y, rival, targeted)
                return ops.sum(losses), (losses, margin(logits, y))

            (_, (losses, gap)), gradient = backend.value_and_grad(objective)(point)
            return losses, gap, gradient

        return run

    once = compiled(model, ("gradient", loss, targeted), make)

    def mean(*args: Any) -> tuple[Any, Any, Any]:
        total = once(*args)
        for _ in range(eot - 1):
            total = [a + b for a, b in zip(total, once(*args), strict=True)]
        losses, gap, gradient = (t / eot for t in total)
        return losses, gap, gradient

    return mean if eot > 1 else once


def judged(
    model: Any,
    key: Any,
    point: Callable[..., Any],
    judge: Callable[..., Any],
    eot: int = 1,
) -> Callable[..., Any]:
    r"""The function ``(*args) -> judge(logits, *args)`` of a model's logits at ``point(*args)``.

    It is one compiled pass. With ``eot`` above 1 the logits are the mean over that many passes,
    $\frac1k \sum_{i=1}^k f_{\omega_i}(x)$, because that is what decides whether a point fools a
    random model: what one draw says of it may be luck.

    Args:
        model: built Keras model.
        key: what tells the compiled function from others of the model: ``point`` and ``judge`` are
            looked at where it is new.
        point: pure function of tensors.
        judge: pure function of the logits and the same tensors.
        eot: number of passes, >= 1.
    """
    if eot == 1:

        def make(infer: Callable[[Any, Any], Any]) -> Callable[..., Any]:
            logits = logits_of(infer)
            return lambda weights, *args: judge(logits(weights, point(*args)), *args)

        return compiled(model, key, make)
    once = compiled(model, "logits", logits_of)

    def mean(*args: Any) -> Any:
        x = point(*args)
        total = once(x)
        for _ in range(eot - 1):
            total = total + once(x)
        return judge(total / eot, *args)

    return mean
