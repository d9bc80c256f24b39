"""Square attack: random search with windows of noise, which asks the model for its logits only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from dynzoo.attacks.base import Attack
from dynzoo.attacks.geometry import INSIDE, per_image, project
from dynzoo.attacks.losses import margin
from dynzoo.attacks.passes import judged
from dynzoo.attacks.pgd import LOOK
from dynzoo.attacks.square_windows import bump_table, layout, start, window_share, window_size
from dynzoo.backend import to_numpy
from dynzoo.inference.batching import Pool
from dynzoo.inference.passes import pure, scalar
from dynzoo.utils.arguments import integer, number

# Queries whose random numbers are drawn at once.
_BLOCK = 256


class Square(Attack):
    r"""Square attack: score-based random search, blind to gradients and hence to their masking.

    A query replaces the perturbation in a window at a random place,

    $$u = P\big(x_k + \nu\big), \qquad
    x_{k+1} = u \text{ if } m(u) > m(x_k) \text{ else } x_k,$$

    with $m$ the margin $\max_{j \ne y} z_j - z_y$ and $P$ the projection on the ball and the box.
    Linf: the window takes the value $\pm\varepsilon$, one sign for each channel, and the opposite
    signs where these would change nothing. L2: the window takes a signed pattern on top of what it
    held, and the norm of a second window, which is set to zero; the whole keeps norm
    $\varepsilon$. Windows cover ``p_init`` of the pixels at first, and half as much after 10, 50,
    200, 500, 1000, 2000, 4000, 6000 and 8000 queries. Every place at which a window fits, the last
    row and column included, is as likely as the others, and is drawn for each image by itself.

    The result is an upper bound of the model's robustness, never a proof of it.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        eps: radius of the ball, > 0.
        seed: seed of the windows.
        queries: forward passes of an image that resists, >= 1.
        p_init: share of the pixels in the first windows, in (0, 1].
        restarts: runs on images that still resist, >= 1.
        batch_size: images processed at once.
        eot: passes through a random model whose logits are averaged, in each query.

    Inputs are images (n, h, w, c) or (n, h, w), or vectors (n, d), which are taken for square
    images of one channel where d is a perfect square, and for images of one row elsewhere.

    Raises:
        ValueError: if an argument is out of its range, or the inputs have another rank.

    Example:

    >>> import keras, numpy as np
    >>> from dynzoo.attacks.square import Square
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.full((5, 4), 0.5, "float32"), np.zeros(5, "int64")
    >>> Square(norm="linf", eps=0.1, queries=5)(model, x, y).shape
    (5, 4)

    Reference: Andriushchenko et al., "Square attack: a query-efficient black-box adversarial attack
    via random search" (2020), algorithms 1 to 3.
    """

    black_box = True

    def __init__(
        self,
        norm: str = "linf",
        eps: float = 8 / 255,
        seed: int = 0,
        queries: int = 5000,
        p_init: float = 0.8,
        restarts: int = 1,
        batch_size: int = 256,
        eot: int = 1,
    ) -> None:
        super().__init__(norm, eps, seed, False, restarts, batch_size)
        self.queries = integer("queries", queries)
        self.p_init = number("p_init", p_init, high=1.0)
        self.eot = integer("eot", eot)

    def search(
        self,
        model: Any,
        x: np.ndarray,
        y: np.ndarray,
        logits: np.ndarray,
        indices: np.ndarray,
        real: int,
        restart: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        given, shape = x.shape[1:], layout(x.shape[1:])
        height, width, channels = shape
        images = x.reshape(-1, *shape)
        eps = self.eps * INSIDE
        keys = [[self.seed, int(index), restart] for index in indices]
        first = [start(np.random.default_rng(key), shape, self.norm) for key in keys]
        points = np.clip(images + eps * np.stack(first), 0.0, 1.0).astype(np.float32)
        judge = judged(
            model,
            ("square", given),
            lambda candidate, *_: ops.reshape(candidate, (-1, *given)),
            _keep_better,
            self.eot,
        )
        center = ops.convert_to_tensor(images, dtype="float32")
        radius = scalar(eps)
        state = [
            center,
            ops.full((len(x),), -np.inf, dtype="float32"),
            center,
            ops.convert_to_tensor(y.astype("int32")),
            ops.arange(len(x), dtype="int32"),
        ]
        state[:2] = judge(ops.convert_to_tensor(points), *state[:2], state[3])
        propose = pure(_MAKE_PROPOSAL[self.norm])
        pool = Pool(real, len(x), 2, self.rows_at_once(x))
        rows, size = np.arange(len(x)), (0, 0)
        for query in range(1, self.queries):
            number = (query - 1) % _BLOCK
            if number == 0:
                draws = _draws(keys, rows, (query - 1) // _BLOCK, 5 + channels)
            wanted = window_size(window_share(query, self.p_init), height, width, self.norm)
            if wanted != size:
                size = wanted
                window = [ops.convert_to_tensor(np.asarray(size, dtype="float32"))]
                if self.norm == "l2":
                    window.append(ops.convert_to_tensor(bump_table(*size, height, width)))
            point, best, center, label, _ = state
            uniform = ops.convert_to_tensor(draws[rows, number])
            candidate = propose(point, center, radius, uniform, *window)
            state[:2] = judge(candidate, point, best, label)
            if query % LOOK == 0:
                state = pool.pack(state[1] > 0.0, state)
                if not pool.open:
                    break
                rows = to_numpy(state[4])
        points, loss = pool.results(state)
        return points.reshape(x.shape), loss


def _draws(keys: list[list[int]], rows: np.ndarray, block: int, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1) of shape (batch, queries, count), for the rows in use."""
    result = np.zeros((len(keys), _BLOCK, count), dtype=np.float32)
    for row in np.unique(rows):
        rng = np.random.default_rng([*keys[row], block])
        result[row] = rng.random((_BLOCK, count), dtype=np.float32)
    return result


def _keep_better(logits: Any, candidate: Any, point: Any, best: Any, label: Any) -> tuple[Any, Any]:
    """Keeps a candidate where its margin is larger than that of the present point."""
    gap = margin(logits, label)
    # What has fallen stays as it is, so that it does not matter when it leaves the batch.
    better = ops.logical_and(gap > best, best <= 0.0)
    return ops.where(per_image(better, point), candidate, point), ops.where(better, gap, best)


def _corner(uniform: Any, size: Any, length: int) -> Any:
    """First row or column of each window, from 0 to ``length - size`` inclusive."""
    return ops.minimum(ops.floor(uniform * (length - size + 1.0)), length - size)


def _inside(corner: Any, size: Any, length: int) -> Any:
    """1 for each row or column of the window and 0 elsewhere. Shape (n, length)."""
    offset = ops.arange(length, dtype="float32")[None, :] - corner[:, None]
    return ops.cast(ops.logical_and(offset >= 0.0, offset < size), "float32")


def _make_linf() -> Callable[..., Any]:
    def propose(point: Any, center: Any, eps: Any, uniform: Any, size: Any) -> Any:
        _, height, width, channels = point.shape
        tops = _inside(_corner(uniform[:, 0], size[0], height), size[0], height)
        lefts = _inside(_corner(uniform[:, 1], size[1], width), size[1], width)
        mask = tops[:, :, None, None] * lefts[:, None, :, None]
        sign = ops.where(uniform[:, 5:] < 0.5, -1.0, 1.0)[:, None, None, :]

        def change(sign: Any) -> Any:
            return (ops.clip(center + eps * sign, 0.0, 1.0) - point) * mask

        # A query that repeats the window's present content is wasted: the opposite is not.
        same = ops.max(ops.abs(change(sign)), axis=(1, 2, 3), keepdims=True) < 1e-3 * eps
        return point + change(ops.where(same, -sign, sign))

    return propose


def _make_l2() -> Callable[..., Any]:
    def propose(point: Any, center: Any, eps: Any, uniform: Any, size: Any, table: Any) -> Any:
        _, height, width, channels = point.shape
        masks = []
        corners = []
        for k in (0, 2):
            top = _corner(uniform[:, k], size[0], height)
            left = _corner(uniform[:, k + 1], size[1], width)
            tops, lefts = _inside(top, size[0], height), _inside(left, size[1], width)
            masks.append(tops[:, :, None, None] * lefts[:, None, :, None])
            corners.append((top, left))
        taker, giver = masks
        both = ops.maximum(taker, giver)
        # Entry of the table for each pixel; outside the window any entry will do.
        row = ops.arange(height, dtype="float32")[None, :] - corners[0][0][:, None]
        column = ops.arange(width, dtype="float32")[None, :] - corners[0][1][:, None]
        row, column = ops.clip(row, 0, height - 1), ops.clip(column, 0, width - 1)
        half = ops.where(uniform[:, 4] < 0.5, 0.0, float(height * width))[:, None, None]
        entry = ops.cast(half + row[:, :, None] * width + column[:, None, :], "int32")
        pattern = ops.take(ops.reshape(table, (-1,)), entry)[:, :, :, None] * taker
        sign = ops.where(uniform[:, 5:] < 0.5, -1.0, 1.0)[:, None, None, :]

        def mass(values: Any) -> Any:
            return ops.sum(values * values, axis=(1, 2), keepdims=True)

        delta = point - center
        held = delta * taker
        new = sign * pattern + held / ops.maximum(ops.sqrt(mass(held)), 1e-12)
        # What the box cut off goes to the window, in equal parts to the channels.
        lost = eps * eps - ops.sum(mass(delta), axis=3, keepdims=True)
        budget = mass(delta * both) + ops.maximum(lost, 0.0) / channels
        # What cancels but for rounding has no direction; the pattern alone has.
        new = ops.where(mass(new) > 1e-6, new, sign * pattern)
        new = new * ops.sqrt(budget / mass(new))
        return project(center + delta * (1.0 - both) + new, center, eps, "l2")

    return propose


_MAKE_PROPOSAL = {"linf": _make_linf, "l2": _make_l2}
