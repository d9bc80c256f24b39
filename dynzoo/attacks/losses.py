r"""Per-image attack losses of the logits, all of them to be **maximised**.

Cross-entropy alone overestimates the robustness of a 1-Lipschitz network: its logits differ by
so little that the softmax spreads the gradient over classes that the attack cannot reach. The
margin looks only at the class that is closest to winning, and is the default of ``PGD``.

With $y$ the label, $m = \max_{j \ne y} z_j$, and $z_{(k)}$ the $k$-th largest logit:

| name | untargeted | targeted, $y$ the target |
|---|---|---|
| ``"margin"`` | $m - z_y$ | $z_y - m$ |
| ``"ce"`` | $\log\sum_j e^{z_j} - z_y$ | $z_y - \log\sum_j e^{z_j}$ |
| ``"dlr"`` | $(m - z_y)/(z_{(1)} - z_{(3)})$ | $(z_y - m)/(z_{(1)} - (z_{(3)} + z_{(4)})/2)$ |
| ``"pairwise"`` | $z_r - z_y$, $r$ a runner-up fixed at the clean image | - |
| ``"pairwise_dlr"`` | $(z_r - z_y)/(z_{(1)} - (z_{(3)} + z_{(4)})/2)$ | - |

The last two climb towards one class $r$ after another, and count any misclassification: this is
what the literature calls a targeted attack in an untargeted evaluation.

A row with NaN answers no class: its margin is infinite, and so is its loss (minus infinity for a
targeted attack, which it does not serve), so that no search loses such a point. Infinite logits
are clipped to the largest numbers first, since their differences would be NaN.

Reference: Carlini and Wagner, "Towards evaluating the robustness of neural networks" (2017),
objective f6 (margin); Croce and Hein, "Reliable evaluation of adversarial robustness with an
ensemble of diverse parameter-free attacks" (2020), equations 5 and 6 (DLR); Gowal et al., "An
alternative surrogate loss for PGD-based adversarial testing" (2019) (pairwise).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

ATTACK_LOSSES = ("margin", "ce", "dlr", "pairwise", "pairwise_dlr")
# Stands for infinity where logits are subtracted from each other, a little inside float32.
_LARGEST = 3e38


def margin(logits: Any, y: Any) -> Any:
    """Largest other logit minus the logit of ``y``: positive where ``y`` does not win. Shape (n,).

    Infinite where a logit is NaN: such a row has no answer.
    """
    return _where_broken(logits, _margin(_finite(logits), y), np.inf)


def margins(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``margin`` of arrays, in float64."""
    rows = np.arange(len(y))
    others = np.clip(logits.astype(np.float64), -_LARGEST, _LARGEST)
    own = others[rows, y]
    others[rows, y] = -np.inf
    return np.where(np.isnan(logits).any(axis=1), np.inf, others.max(axis=1) - own)


def attack_loss(name: str, logits: Any, y: Any, rival: Any, targeted: bool) -> Any:
    """The loss called ``name``, per image.

    Args:
        name: one of ``ATTACK_LOSSES``.
        logits: float tensor of shape (n, classes).
        y: integer tensor of shape (n,): labels, or targets if ``targeted``.
        rival: integer tensor of shape (n,): the fixed runner-up of the pairwise losses.
        targeted: whether ``y`` is the class to reach instead of the class to leave.

    Returns:
        Float tensor of shape (n,), without NaN.
    """
    given, logits = logits, _finite(logits)
    if name == "margin":
        loss = _margin(logits, y)
    elif name == "ce":
        # The same value as logsumexp(z) - z_y, but its gradient p - e_y does not cancel where the
        # model is sure: there p_y - 1 in float32 is mostly rounding, and its sign is noise.
        others = ops.logsumexp(_without(logits, y), axis=-1)
        loss = ops.softplus(others - _own(logits, y))
    elif name == "dlr":
        loss = _margin(logits, y) / _spread(logits, 4 if targeted else 3)
    else:
        loss = _own(logits, rival) - _own(logits, y)
        if name == "pairwise_dlr":
            loss = loss / _spread(logits, 4)
    loss = -loss if targeted else loss
    return _where_broken(given, loss, -np.inf if targeted else np.inf)


def classes_needed(name: str, targeted: bool) -> int:
    """How many classes the loss needs to be defined."""
    if name == "dlr":
        return 4 if targeted else 3
    return 4 if name == "pairwise_dlr" else 2


def require_classes(name: str, classes: int, targeted: bool = False) -> None:
    """Raise a ValueError if the loss is not defined for a model of so many classes."""
    needed = classes_needed(name, targeted)
    if classes < needed:
        kind = " with targeted=True" if targeted else ""
        raise ValueError(
            f"`loss={name!r}`{kind} needs at least {needed} classes. "
            f"Received: a model with {classes}"
        )


def runner_up(logits: np.ndarray, y: np.ndarray, rank: int) -> np.ndarray:
    """Class of the (rank + 1)-th largest logit beside that of ``y``; after the last, the first."""
    others = logits.copy()
    others[np.arange(len(y)), y] = -np.inf
    order = np.argsort(-others, axis=1, kind="stable")
    return order[:, rank % (logits.shape[1] - 1)]


def _finite(logits: Any) -> Any:
    return ops.clip(logits, -_LARGEST, _LARGEST)


def _filled(like: Any, value: float) -> Any:
    """`value` in the shape of `like`: of `full_like` Keras on PyTorch asks for a number back."""
    return ops.zeros_like(like) + value


def _where_broken(logits: Any, values: Any, other: float) -> Any:
    """The values, those of rows with NaN replaced, and the worst there is where only they broke."""
    values = ops.where(ops.isnan(values), _filled(values, -np.inf), values)
    broken = ops.any(ops.isnan(logits), axis=-1)
    return ops.where(broken, _filled(values, other), values)


def _margin(logits: Any, y: Any) -> Any:
    return ops.max(_without(logits, y), axis=-1) - _own(logits, y)


def _spread(logits: Any, count: int) -> Any:
    """How far the largest logit is above the third, or the mean of the third and the fourth."""
    top = ops.top_k(logits, count)[0]
    return top[:, 0] - ops.mean(top[:, 2:], axis=-1) + 1e-12


def _mask(logits: Any, y: Any) -> Any:
    classes = ops.arange(logits.shape[-1], dtype="int32")
    return ops.equal(ops.cast(y, "int32")[:, None], classes[None, :])


def _own(logits: Any, y: Any) -> Any:
    # `where`, not a product with one-hot: an infinite logit elsewhere must not give NaN.
    return ops.sum(ops.where(_mask(logits, y), logits, ops.zeros_like(logits)), axis=-1)


def _without(logits: Any, y: Any) -> Any:
    return ops.where(_mask(logits, y), _filled(logits, -_LARGEST), logits)
