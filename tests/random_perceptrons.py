"""Random small dense ReLU networks: local bounds against exact distances to the boundary.

Keras is left out, as building a model takes longer than all that is tested here.
"""

import numpy as np
from exact_distances import pattern_distance

from dynzoo.certificates.local.backward import Backward, Plan
from dynzoo.certificates.local.backward_certificate import output_rows
from dynzoo.certificates.local.branching import decided
from dynzoo.certificates.local.ops import Unrolled, dense
from dynzoo.certificates.local.slopes import optimised, tightened


def random_network(seed):
    """Kernels, biases and an image of a network of at most six units."""
    rng = np.random.default_rng(seed)
    widths = [(4,), (6,), (3, 3), (2, 3), (2, 2, 2), (5,), (3, 2)][seed % 7]
    sizes = [int(rng.integers(2, 5)), *widths, int(rng.integers(2, 4))]
    scale = rng.choice([0.5, 1.0, 2.0])
    kernels = [
        scale * rng.normal(size=(a, b)) / np.sqrt(a)
        for a, b in zip(sizes[:-1], sizes[1:], strict=True)
    ]
    biases = [0.3 * rng.normal(size=b) for b in sizes[1:]]
    if seed % 5 == 0:
        kernels[0][:, 0] = kernels[0][:, -1]  # units that switch together
    return kernels, biases, rng.uniform(size=sizes[0])


def unrolled_network(kernels, biases):
    unrolled, slot = Unrolled([(len(kernels[0]),)]), 0
    for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        op = dense(kernel, bias, float(np.linalg.norm(kernel, 2)) * (1 + 1e-12))
        slot = unrolled.add(op, [slot])
        if i < len(kernels) - 1:
            slot = unrolled.rectify(slot, 0.0)
    return unrolled


def reached(unrolled, x, radius, order, method):
    """How far the answer is proved to hold by bounds on a ball, at most its radius."""
    values = unrolled.values(x[None])
    logits = values[-1][0]
    label = int(logits.argmax())
    rivals = [j for j in range(len(logits)) if j != label]
    directions = (np.eye(len(logits))[label] - np.eye(len(logits))[rivals])[None]
    margins = directions[0] @ logits
    extra = {} if method == "crown" else {"tighten": tightened}
    plan = Plan(unrolled, order)
    bounds = Backward(plan, values, np.array([radius]), refine=True, **extra)
    last = len(unrolled.shapes) - 1
    if method == "complete":
        return radius if decided(bounds, directions[0], margins, most=40) else 0.0
    found = []
    if method == "crown":
        found = [bounds.lower(output_rows(directions), last, m) for m in ("chord", "adaptive")]
    else:
        best = optimised(bounds, output_rows(directions), last)
        found = [(best.steep, best.beta)]
    with np.errstate(divide="ignore", invalid="ignore"):  # a row that no pixel reaches
        reach = [np.where(margins > b[0], (margins - b[0]) / s[0], 0.0) for s, b in found]
    return float(min(radius, np.max(reach, axis=0).min()))


def check_network(seed, norm, methods=("crown", "alpha-crown", "complete"), patterns=None):
    """Asserts that no method proves more than is true; returns the shares that they prove."""
    kernels, biases, x = random_network(seed)
    if patterns is not None:
        patterns = visited(kernels, biases, x, patterns)
    _, exact = pattern_distance(kernels, biases, x, norm, patterns)
    if not np.isfinite(exact) or exact < 1e-6:
        return None
    unrolled, shares = unrolled_network(kernels, biases), {}
    for method in methods:
        # Beyond the boundary nothing may be proved to hold; below it much should be.
        for share in (0.9, 1.01) if method == "complete" else (0.5, 1.0, 1.5):
            radius = share * exact
            order = 2.0 if norm == "l2" else np.inf
            reach = reached(unrolled, x, radius, order, method)
            assert reach <= exact * (1 + 1e-7), (seed, norm, method, share, reach / exact)
            shares[method, share] = reach / exact
    return shares


def visited(kernels, biases, x, count):
    """Patterns of signs of random points around x."""
    rng = np.random.default_rng(0)
    spread = 10.0 ** rng.uniform(-2, 1, size=(count, 1))
    value, signs = x + spread * rng.normal(size=(count, len(x))), []
    for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
        value = value @ kernel + bias
        signs.append(value > 0)
        value = np.maximum(value, 0)
    return np.unique(np.concatenate(signs, axis=1), axis=0).astype(float)
