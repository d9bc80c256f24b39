"""Fast adaptive boundary attack: steps to the linearised decision boundary, close to the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from dynzoo.attacks.box_projection import hyperplane_step
from dynzoo.attacks.geometry import lengths, per_image, random_points
from dynzoo.attacks.losses import margin, runner_up
from dynzoo.attacks.minimum_norm import MinimumNorm
from dynzoo.attacks.passes import judged, loss_and_gradient
from dynzoo.attacks.pgd import LOOK
from dynzoo.inference.batching import Pool
from dynzoo.inference.passes import pure, scalar
from dynzoo.utils.arguments import integer, number


class FAB(MinimumNorm):
    r"""Fast adaptive boundary attack, by default FAB-T: against one runner-up class after another.

    With $D = z_t - z_y$ linearised at $u_k$, let $\delta$ and $\delta_0$ be the smallest steps
    from $u_k$ and from the image $x$ to $\{D = 0\} \cap [0, 1]^d$. Then

    $$u_{k+1} = P_{[0,1]}\big((1 - \alpha)(u_k + \eta\,\delta) + \alpha\,(x + \eta\,\delta_0)\big),
    \quad \alpha = \min\Big(\frac{\|\delta\|}{\|\delta\| + \|\delta_0\|}, \alpha_{\max}\Big)$$

    and a point that fools the model is kept if it is the nearest so far and drawn back,
    $u_{k+1} \leftarrow x + \beta (u_{k+1} - x)$. The gradient is used for its direction only, so
    that the scale of the logits does not matter. At the end a line search goes from the best point
    towards the image. The result is an upper bound of the model's robustness, never a proof of it.

    The rivals $t$ are the ``targets`` largest wrong logits of the clean image, or all K - 1 if
    there are fewer: one run of ``steps`` against each. With ``targeted_rivals=False`` there is one
    run in all, whose $t$ is the class with the smallest $|D_t|/\|\nabla D_t\|_q$ at $u_k$ (q the
    dual norm), at K - 1 gradients a step.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        eps: radius within which an image counts as fallen, > 0; ``minimum_norm`` needs none.
        seed: seed of the random starts of all but the first restart.
        steps: iterations of a run, >= 1.
        restarts: how often images that resist are attacked against all rivals, >= 1.
        targets: number of rivals, >= 1.
        alpha_max: largest share of the step that starts at the image, in (0, 1].
        eta: overshoot beyond the linearised boundary, >= 1.
        beta: share of the way from the image at which the search goes on, in (0, 1].
        targeted_rivals: whether each run has one fixed rival.
        batch_size: images processed at once.
        eot: passes through a random model whose logits and gradients are averaged.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> import keras, numpy as np
    >>> from dynzoo.attacks.fab import FAB
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")
    >>> points, distances = FAB(norm="linf", steps=5).minimum_norm(model, x, y)
    >>> points.shape, distances.shape
    ((5, 4), (5,))

    Reference: Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive
    boundary attack" (2020), algorithm 1; "Reliable evaluation of adversarial robustness with an
    ensemble of diverse parameter-free attacks" (2020), for the fixed rivals.
    """

    def __init__(
        self,
        norm: str = "l2",
        eps: float = 0.5,
        seed: int = 0,
        steps: int = 100,
        restarts: int = 1,
        targets: int = 9,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        targeted_rivals: bool = True,
        batch_size: int = 256,
        eot: int = 1,
    ) -> None:
        super().__init__(norm, eps, seed, False, restarts, batch_size)
        self.steps = integer("steps", steps)
        self.targets = integer("targets", targets)
        self.alpha_max = number("alpha_max", alpha_max, high=1.0)
        self.eta = number("eta", eta)
        if self.eta < 1.0:
            raise ValueError(f"`eta` must be at least 1. Received: eta={eta!r}")
        self.beta = number("beta", beta, high=1.0)
        self.targeted_rivals = bool(targeted_rivals)
        self.eot = integer("eot", eot)

    def runs(self, classes: int) -> int:
        return self.restarts * self._rivals(classes)

    def _rivals(self, classes: int) -> int:
        """Runs of one restart."""
        return min(self.targets, classes - 1) if self.targeted_rivals else 1

    def nearest(
        self,
        model: Any,
        x: np.ndarray,
        y: np.ndarray,
        logits: np.ndarray,
        indices: np.ndarray,
        real: int,
        restart: int,
        enough: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        classes = logits.shape[1]
        turn, rank = divmod(restart, self._rivals(classes))
        ranks = [rank] if self.targeted_rivals else range(classes - 1)
        start = x
        if turn > 0:
            start = random_points(x, self.eps / 2, self.norm, self.seed, indices, restart)
        look = loss_and_gradient(model, "pairwise", eot=self.eot)
        judge = judged(model, ("fab", self.norm), _first, _make_judge(self.norm), self.eot)
        nearer, advance = (pure(make, self.norm) for make in (_make_nearer, _make_step))
        alpha_max, eta, beta, limit = (
            scalar(v) for v in (self.alpha_max, self.eta, self.beta, enough)
        )
        center, point = (ops.convert_to_tensor(v, dtype="float32") for v in (x, start))
        classes_of = [y, *(runner_up(logits, y, k) for k in ranks)]
        state = [
            center,
            ops.full((len(x),), np.inf, dtype="float32"),
            point,
            center,
            *(ops.convert_to_tensor(v.astype("int32")) for v in classes_of),
        ]
        pool = Pool(real, len(x), 2, self.rows_at_once(x))
        for iteration in range(1, self.steps + 1):
            best, found, point, center, label, *rivals = state
            plane = _plane(look, point, label, rivals[0])
            for rival in rivals[1:]:
                other = _plane(look, point, label, rival)
                plane = nearer(*plane, *other)
            point = advance(alpha_max, eta, point, center, *plane)
            state[:3] = judge(point, center, label, best, found, beta, limit)
            if enough > 0.0 and iteration % LOOK == 0:
                state = pool.pack(state[1] <= enough, state)
                if not pool.open:
                    break
        best, found = pool.results(state)
        return best, found


def _plane(look: Callable[..., Any], point: Any, label: Any, rival: Any) -> tuple[Any, Any]:
    """Gradient and value of the boundary function of a rival."""
    value, _, gradient = look(point, label, rival)
    return gradient, value


def _make_nearer(norm: str) -> Callable[..., Any]:
    """Of two hyperplanes, given by gradient and value at the same point, the nearer for each row.

    The distance to a hyperplane is the size of the value over the dual norm of the gradient.
    """

    def away(gradient: Any, value: Any) -> Any:
        flat = ops.abs(ops.reshape(gradient, (gradient.shape[0], -1)))
        dual = ops.sum(flat, axis=1) if norm == "linf" else lengths(flat, norm)
        return ops.abs(value) / ops.maximum(dual, 1e-30)

    def nearer(first: Any, value: Any, second: Any, other: Any) -> tuple[Any, Any]:
        better = away(second, other) < away(first, value)
        return ops.where(per_image(better, first), second, first), ops.where(better, other, value)

    return nearer


def _make_step(norm: str) -> Callable[..., Any]:
    """The step towards the linearised boundary, from the present point and from the image."""

    def step(alpha_max: Any, eta: Any, point: Any, center: Any, gradient: Any, value: Any) -> Any:
        flat = (point.shape[0], -1)
        # Where the model or its gradient is not finite there is no plane, and no step.
        x, u, w = (ops.reshape(v, flat) for v in (center, point, _finite(gradient)))
        value = _finite(value)
        # Both at once: on small batches the number of operations is what costs.
        values = ops.concatenate([value, value + ops.sum(w * (x - u), axis=1)])
        both = hyperplane_step(ops.concatenate([u, x]), ops.concatenate([w, w]), values, norm)
        from_point, from_image = ops.split(both, 2)
        near, far = lengths(from_point, norm), lengths(from_image, norm)
        share = ops.minimum(near / ops.maximum(near + far, 1e-30), alpha_max)[:, None]
        moved = (1.0 - share) * (u + eta * from_point) + share * (x + eta * from_image)
        return ops.reshape(ops.clip(moved, 0.0, 1.0), point.shape)

    return step


def _finite(values: Any) -> Any:
    return ops.where(ops.isfinite(values), values, ops.zeros_like(values))


def _first(point: Any, *_: Any) -> Any:
    return point


def _make_judge(norm: str) -> Callable[..., Any]:
    """Remembers a point that fools the model if it is the nearest so far, and draws it back."""

    def judge(
        logits: Any,
        point: Any,
        center: Any,
        label: Any,
        best: Any,
        found: Any,
        beta: Any,
        limit: Any,
    ) -> tuple[Any, Any, Any]:
        # Strict: a tie is left to the forward pass that judges the returned point.
        fooled = margin(logits, label) > 0.0
        delta = point - center
        away = lengths(delta, norm)
        # What has fallen stays as it is, so that it does not matter when it leaves the batch.
        better = fooled & (away < found) & (found > limit)
        best = ops.where(per_image(better, point), point, best)
        share = ops.where(fooled, beta, ops.ones_like(away))
        return best, ops.where(better, away, found), center + per_image(share, delta) * delta

    return judge
