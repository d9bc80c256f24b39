"""Exact distances to the decision boundary of classifiers whose boundary is made of hyperplanes."""

import numpy as np


def step_lengths(normal, value, point, norm):
    """Length of the smallest step to `value + normal.step = 0` inside the box, in float64.

    By bisection on the multiplier, rows of `normal` and `point` and entries of `value` at a time;
    infinite where the hyperplane misses the box.
    """
    normal, point = np.asarray(normal, np.float64), np.asarray(point, np.float64)
    value = np.asarray(value, np.float64)
    direction = -np.sign(value)[:, None] * normal
    room = np.where(direction > 0, 1 - point, point)
    gain = np.abs(normal)
    speed = gain if norm == "l2" else np.ones_like(gain)

    def reached(t):
        return (gain * np.minimum(t[:, None] * speed, room)).sum(axis=1)

    low, high = np.zeros(len(value)), np.full(len(value), 1e6)
    for _ in range(200):
        middle = (low + high) / 2
        enough = reached(middle) >= np.abs(value)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    step = np.where(gain > 0, np.minimum(high[:, None] * speed, room), 0.0)
    length = step.max(axis=1) if norm == "linf" else np.sqrt((step**2).sum(axis=1))
    return np.where(reached(high) >= np.abs(value) * (1 - 1e-12), length, np.inf)


def linear_distances(model, x, y, norm):
    """Exact distance of each image to the boundary of a linear model, 0 where it is wrong."""
    w, b = (np.asarray(v, np.float64) for v in model.get_weights())
    logits = np.asarray(x, np.float64) @ w + b
    result = np.full(len(x), np.inf)
    for rival in range(w.shape[1]):
        normal = w[:, rival] - w[:, y].T
        value = logits[:, rival] - logits[np.arange(len(y)), y]
        length = step_lengths(normal, value, x, norm)
        result = np.where(y == rival, result, np.minimum(result, length))
    return np.where(logits.argmax(axis=1) == y, result, 0.0)
