"""Exact distances to the decision boundary of classifiers whose boundary is made of hyperplanes."""

import itertools

import numpy as np
from scipy import optimize


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


def pattern_distance(kernels, biases, x, norm):
    """Distance of x to the nearest point with another answer of a dense ReLU network, in float64.

    Every pattern of signs of the units is a polyhedron on which the network is affine; the nearest
    point of each with a rival as large as the answer is a least distance problem (Lawson and
    Hanson, by non-negative least squares) or, in L-infinity, a linear program.
    """
    x = np.asarray(x, np.float64)
    widths = [k.shape[1] for k in kernels[:-1]]
    value = x
    for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
        value = np.maximum(value @ kernel + bias, 0)
    logits = value @ kernels[-1] + biases[-1]
    label, best = int(logits.argmax()), np.inf
    for pattern in itertools.product((0.0, 1.0), repeat=sum(widths)):
        signs = np.split(np.array(pattern), np.cumsum(widths)[:-1])
        a, b, rows, limits = np.eye(len(x)), x, [], []
        for kernel, bias, on in zip(kernels[:-1], biases[:-1], signs, strict=True):
            a, b = a @ kernel, b @ kernel + bias
            rows.append((a * (2 * on - 1)).T)  # sign * (a d + b) >= 0
            limits.append(-(2 * on - 1) * b)
            a, b = a * on, b * on
        a, b = a @ kernels[-1], b @ kernels[-1] + biases[-1]
        for rival in set(range(len(b))) - {label}:
            g = np.concatenate([*rows, (a[:, rival] - a[:, label])[None]])
            h = np.concatenate([*limits, [b[label] - b[rival]]])
            best = min(best, _least_distance(g, h, norm))
    return label, best


def _least_distance(g, h, norm):
    """Smallest norm of d with g d >= h, infinite if there is none."""
    n = g.shape[1]
    if norm == "l2":
        target = np.append(np.zeros(n), 1.0)
        u, residual = optimize.nnls(np.concatenate([g.T, h[None]]), target)
        r = np.append(g.T @ u, h @ u) - target
        # A residual of zero: no such d.
        return np.inf if residual < 1e-8 or r[n] > -1e-16 else float(np.linalg.norm(r[:n] / r[n]))
    ones = np.ones((n, 1))
    a = np.concatenate(
        [np.c_[-g, np.zeros(len(g))], np.c_[np.eye(n), -ones], np.c_[-np.eye(n), -ones]]
    )
    b = np.concatenate([-h, np.zeros(2 * n)])
    cost = np.append(np.zeros(n), 1.0)
    found = optimize.linprog(cost, a, b, bounds=[(None, None)] * n + [(0, None)])
    return found.fun if found.status == 0 else np.inf
