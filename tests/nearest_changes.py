"""Exact distances to the nearest point with another answer, of many small rectified networks."""

import itertools
from fractions import Fraction
from typing import NamedTuple

import numpy as np

# What a float64 solution may be off, relative to the numbers in it.
_OFF = 1e-11


class Chain(NamedTuple):
    """Networks of one shape in float64: layers of x -> rectified(x W + b), the last one linear.

    Attributes:
        kernels: of each layer, (N, inputs, outputs).
        biases: of each layer, (N, outputs).
        slopes: of each layer but the last, (outputs,) for negative values; 1 for units that are
            linear, as the identity of a residual sum is.
    """

    kernels: list
    biases: list
    slopes: list

    def part(self, rows):
        return Chain([k[rows] for k in self.kernels], [b[rows] for b in self.biases], self.slopes)

    def logits(self, which, points):
        """Logits (c, classes) of networks `which` (c,) at points (c, inputs), and their size."""
        value, size = points[:, None], np.abs(points)[:, None]
        for i, (kernels, biases) in enumerate(zip(self.kernels, self.biases, strict=True)):
            kernel, bias = kernels[which], biases[which][:, None]
            value, size = value @ kernel + bias, size @ np.abs(kernel) + np.abs(bias)
            if i < len(self.slopes):
                value = np.where(value > 0, value, self.slopes[i] * value)
        return value[:, 0], size[:, 0].max(axis=1)

    def exact_logits(self, network, point):
        """Logits of one network in rational arithmetic."""
        value = [Fraction(float(v)) for v in point]
        for i, (kernels, biases) in enumerate(zip(self.kernels, self.biases, strict=True)):
            columns = [[Fraction(float(w)) for w in column] for column in kernels[network].T]
            biases = [Fraction(float(b)) for b in biases[network]]
            value = [
                sum((v * w for v, w in zip(value, column, strict=True)), bias)
                for column, bias in zip(columns, biases, strict=True)
            ]
            if i < len(self.slopes):
                slopes = [Fraction(float(a)) for a in self.slopes[i]]
                value = [v if v > 0 else a * v for v, a in zip(value, slopes, strict=True)]
        return value

    def pieces(self, x):
        """The affine function of every pattern of signs, as functions of a movement from x.

        Returns:
            (rows (N, P, units + classes, inputs), values (N, P, units + classes), bits (P, units)):
            inputs of the rectified units, then the logits; which units a pattern has on.
        """
        count, n = x.shape
        units = sum(int((slopes != 1).sum()) for slopes in self.slopes)
        bits = (np.arange(2**units)[:, None] >> np.arange(units)) & 1
        a = np.broadcast_to(np.eye(n), (count, 2**units, n, n))
        b = np.broadcast_to(x[:, None], (count, 2**units, n))
        rows, values, seen = [], [], 0
        for i, (kernels, biases) in enumerate(zip(self.kernels, self.biases, strict=True)):
            a = a @ kernels[:, None]
            b = b @ kernels + biases[:, None]
            bent = np.arange(b.shape[2])
            if i < len(self.slopes):
                bent = np.flatnonzero(self.slopes[i] != 1)
            rows.append(a[..., bent])
            values.append(b[..., bent])
            if i < len(self.slopes):
                factor = np.ones((2**units, b.shape[2]))
                on = bits[:, seen : seen + len(bent)]
                factor[:, bent] = np.where(on, 1.0, self.slopes[i][bent])
                a, b, seen = a * factor[:, None], b * factor, seen + len(bent)
        return np.concatenate(rows, axis=3).swapaxes(2, 3), np.concatenate(values, axis=2), bits


def nearest_changes(chain, x, labels, norm):
    """Distance (N,) of x (N, inputs) to the nearest point without the answer, and that point.

    The nearest point lies on the boundary of the answer in some piece of the network and is fixed
    by it, by units that are 0 there and, in L2, by being the shortest, in L-infinity by entries
    that have moved as far as any has. The points that are fixed so are all computed, from all
    pieces, and the nearest one at which the network itself has another logit as large as that of
    the label is taken: no feasibility is decided. Infinite where the answer never changes.
    """
    count, n = x.shape
    rows, values, bits = chain.pieces(x)
    units, classes = bits.shape[1], chain.biases[-1].shape[1]
    order = np.arange(classes - 1)[None]
    rivals = units + order + (order >= labels[:, None])
    every, own = np.arange(count)[:, None], units + labels[:, None]
    # (N, rivals, P, ...)
    boundary = rows[every, :, rivals] - rows[every, :, own]
    offset = values[every, :, rivals] - values[every, :, own]
    best, where = np.full(count, np.inf), np.array(x)
    logits, scale = chain.logits(every[:, 0], x)
    best[_changed(logits, scale, labels)] = 0.0
    steps = _shortest if norm == "l2" else _corners
    for many in range(n):
        for zero in map(list, itertools.combinations(range(units), many)):
            # Where they are 0 it does not matter on which side those units are.
            free = np.flatnonzero((bits[:, zero] == 0).all(axis=1))
            normals, right = [boundary[:, :, free]], [-offset[:, :, free]]
            for unit in zero:
                pieces = (count, classes - 1, len(free))
                normals.append(np.broadcast_to(rows[:, None, free, unit], (*pieces, n)))
                right.append(np.broadcast_to(-values[:, None, free, unit], pieces))
            normals, right = np.stack(normals, axis=3), np.stack(right, axis=3)
            for step, length in steps(normals.reshape(count, -1, many + 1, n),
                                      right.reshape(count, -1, many + 1)):  # fmt: skip
                _take(chain, x, labels, step, length, best, where)
    return best, where


def _take(chain, x, labels, step, length, best, where):
    """Puts steps (N, C, n) into `best` and `where` if they are shorter and change the answer."""
    network, candidate = np.nonzero(length < best[:, None])
    points = x[network] + step[network, candidate]
    changed = _changed(*chain.logits(network, points), labels[network])
    network, points, length = network[changed], points[changed], length[network, candidate][changed]
    order = np.argsort(-length)  # the shortest is written last
    best[network[order]] = length[order]
    where[network[order]] = points[order]


def _changed(logits, scale, labels):
    own = np.arange(len(labels))
    others = logits.copy()
    others[own, labels] = -np.inf
    return logits[own, labels] - others.max(axis=1) <= _OFF * scale


def _shortest(normals, right):
    """The shortest solutions of `normals` (N, C, k, n) d = `right` (N, C, k)."""
    size = np.linalg.norm(normals, axis=3, keepdims=True)
    normals, right, fixed = _normalised(normals, right, size)
    gram = normals @ normals.swapaxes(2, 3)
    weights, fixed = _solved(gram, right, fixed)
    step = (weights[:, :, None] @ normals)[:, :, 0]
    rest = right - (normals @ step[..., None])[..., 0]
    step = step + (_solved(gram, rest, fixed)[0][:, :, None] @ normals)[:, :, 0]
    yield step, np.where(fixed, np.linalg.norm(step, axis=2), np.inf)


def _corners(normals, right):
    """Solutions of k equations in which n + 1 - k entries are t or -t, and no other is larger."""
    *_, k, n = normals.shape
    size = np.abs(normals).sum(axis=3, keepdims=True)
    normals, right, fixed = _normalised(normals, right, size)
    for far in map(list, itertools.combinations(range(n), n + 1 - k)):
        others = [i for i in range(n) if i not in far]
        for signs in itertools.product((1.0, -1.0), repeat=len(far) - 1):
            signs = np.array([1.0, *signs])  # t may be negative
            together = normals[..., far] @ signs
            square = np.concatenate([normals[..., others], together[..., None]], axis=3)
            found, good = _solved(square, right, fixed)
            rest = right - (square @ found[..., None])[..., 0]
            found = found + _solved(square, rest, good)[0]
            step = np.empty((*found.shape[:2], n))
            step[..., others] = found[..., :-1]
            step[..., far] = found[..., -1:] * signs
            length = np.abs(step).max(axis=2)
            good = good & (length <= np.abs(found[..., -1]) * (1 + 1e-9))
            yield step, np.where(good, length, np.inf)


def _normalised(normals, right, size):
    """Equations with rows of size 1, and where there is none without a normal."""
    fixed = (size[..., 0] > 1e-200).all(axis=2)
    size = np.where(size > 1e-200, size, 1.0)
    return normals / size, right / size[..., 0], fixed


def _solved(square, right, fixed):
    """Solutions, and where there is one."""
    fixed = fixed & (np.abs(np.linalg.det(square)) > 1e-13)
    square = np.where(fixed[..., None, None], square, np.eye(square.shape[-1]))
    return np.linalg.solve(square, right[..., None])[..., 0], fixed
