"""Tries to refute one certificate: steep pairs, attacks of the certified size, rounding.

Only pairs of points count. A Jacobian by finite differences proposes directions; at kinks its
columns may come from different pieces, so that its norm alone refutes nothing.
"""

import dataclasses

import keras
import numpy as np

from dynzoo.backend import to_numpy
from dynzoo.certificates import ReferenceMismatchError, certify
from dynzoo.certificates.graph import trace
from dynzoo.certificates.rules.joins import JOINS
from dynzoo.certificates.rules.table import rule_for

SLACK = 1 + 1e-6
BATCH, RIM = 8, 64  # few sizes, which backends that compile compile once


@dataclasses.dataclass
class Outcome:
    """What was tried on one graph; `violations` is empty unless the certificate is wrong."""

    refused: str | None = None
    slope: float = 0.0  # largest |f(x) - f(y)| / (L |x - y|)
    pair: float = 0.0  # the same for differences of two logits
    worst: float = 0.0  # largest rounding error over its bound
    probable: float = 0.0
    attacked: int = 0
    violations: list = dataclasses.field(default_factory=list)


def lengths(x):
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    top = np.max(np.abs(flat), axis=1, keepdims=True, initial=0.0)
    top = np.where(top > 0, top, 1.0)
    return top[:, 0] * np.linalg.norm(flat / top, axis=1)


class Twin:
    """The float64 forward pass, and how far its own rounding may reach."""

    def __init__(self, model, certificate):
        program = trace(model)
        # `rule_for` looks at every method of a layer; that once is enough here.
        self.steps = [
            (JOINS[type(step.layer)], step, step.inputs)
            if type(step.layer) in JOINS
            else (rule_for(step.layer), step, None)
            for step in program.steps
        ]
        self.output = program.output
        self.lipschitz = certificate.lipschitz
        self.body = certificate.body_lipschitz
        # Of a tensor that is constant but for rounding the bound is next to 0, and tells nothing.
        self.ahead = {
            slot: self.lipschitz / bound if bound > 1e-100 else max(1.0, self.lipschitz)
            for slot, bound in certificate._bounds.items()
        }

    def values(self, x):
        values = {0: np.asarray(x, np.float64)}
        with np.errstate(all="ignore"):
            for rule, step, joined in self.steps:
                given = values[step.inputs[0]] if joined is None else [values[i] for i in joined]
                values[step.output] = rule.forward(step.layer, given)
        return values

    def __call__(self, x):
        return self.values(x)[self.output]

    def noisy(self, x):
        """Logits, and a generous size (n,) of their rounding in float64."""
        values, eps = self.values(x), 64 * np.finfo(float).eps
        noise = sum(eps * lengths(value) * self.ahead.get(i, 1.0) for i, value in values.items())
        return values[self.output], noise + eps * lengths(values[self.output])

    def jacobians(self, points, steps):
        """(n, classes, entries) by central differences, each with its own step."""
        n, shape = len(points), points.shape[1:]
        size = int(np.prod(shape))
        basis = np.eye(size).reshape(1, size, *shape) * column(steps, len(shape) + 2)
        ends = np.concatenate([points[:, None] + basis, points[:, None] - basis])
        y = self(ends.reshape(-1, *shape)).reshape(2, n, size, -1)
        with np.errstate(all="ignore"):
            found = np.swapaxes(y[0] - y[1], 1, 2) / (2 * column(steps, 3))
            return np.nan_to_num(found, posinf=0.0, neginf=0.0)


def column(numbers, rank):
    """Numbers (n,) with as many more axes as a tensor of that rank."""
    return np.asarray(numbers).reshape(-1, *(1,) * (rank - 1))


def units(rows):
    """Each row with length 1, or 0 if it has none."""
    n = lengths(rows)
    good = np.isfinite(n) & (n > 0)
    scale = np.where(good, 1.0 / np.where(good, n, 1.0), 0.0)
    return np.nan_to_num(rows) * column(scale, rows.ndim)


def sizes(points):
    return np.maximum(1e-3, np.abs(points.reshape(len(points), -1)).max(axis=1))


def hard_images(shape, rng):
    """Noise of all sizes, constants with ties, alternating signs, nothing at all."""
    size = int(np.prod(shape))
    scale = 10.0 ** rng.uniform(-3, 4, size=2)
    signs = (1.0 - 2.0 * (np.arange(size) % 2)).reshape(shape)
    rows = [
        rng.uniform(size=shape),
        scale[0] * rng.normal(size=shape),
        scale[1] * rng.normal(size=shape),
        rng.normal(size=shape) * 10.0 ** rng.uniform(-3, 3, size=shape),
        np.full(shape, rng.choice([0.1, 1.0 / 3.0, 77.7])),
        signs * rng.choice([0.3, 30.0]),
        np.round(rng.normal(size=shape)),
        np.zeros(shape),
    ]
    return np.stack(rows)


# --- the Lipschitz constant ----------------------------------------------------------------------


def check_pairs(twin, certificate, x, y, outcome):
    """Whether any pair moves faster than the bound; returns the slopes."""
    fx, nx = twin.noisy(x)
    fy, ny = twin.noisy(y)
    noise = nx + ny
    apart = lengths(x - y)
    moved = fy - fx
    good = (apart > 0) & np.isfinite(moved).all(axis=1) & np.isfinite(noise)
    apart, moved, noise = apart[good], moved[good], noise[good]
    if not len(apart):
        return np.zeros(len(x))
    allowed = certificate.lipschitz * apart
    with np.errstate(divide="ignore", invalid="ignore"):
        size = lengths(moved)
        slopes = np.nan_to_num((size - noise) / allowed, posinf=0.0, neginf=0.0)
    outcome.slope = max(outcome.slope, float(slopes.max()))
    if np.any(size > allowed * SLACK + noise):
        k = int(np.argmax(size - allowed * SLACK - noise))
        outcome.violations.append(f"slope: moved {size[k]:.9g}, allowed {allowed[k]:.9g}")
    each = np.abs(moved[:, :, None] - moved[:, None, :])
    limit = twin.body * certificate.pair_distances[None] * apart[:, None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (each - 2 * noise[:, None, None]) / limit
    outcome.pair = max(outcome.pair, float(np.max(np.where(limit > 0, ratio, 0.0), initial=0.0)))
    if np.any(each > limit * SLACK + 2 * noise[:, None, None]):
        outcome.violations.append(f"pair of logits: {float(np.max(each - limit)):.9g} too far")
    full = np.zeros(len(x))
    full[good] = slopes
    return full


def steep_pairs(twin, certificate, points, rng, outcome):
    """Singular directions at each point, near and far, and a few steps up the slope."""
    n, shape, size = len(points), points.shape[1:], sizes(points)
    _, _, vt = np.linalg.svd(twin.jacobians(points, 1e-5 * size), full_matrices=False)
    noise = rng.normal(size=(n, 2, vt.shape[2]))
    directions = units(np.concatenate([vt[:, :2], noise], axis=1).reshape(-1, vt.shape[2]))
    reaches = np.array([1e-6, 1e-3, 0.1, 1.0, 30.0])
    moves = reaches[None, :, None, None] * directions.reshape(n, 1, -1, vt.shape[2])
    moves = (moves * column(size, 4)).reshape(n, -1, *shape)
    base = np.broadcast_to(points[:, None], moves.shape)
    middle, moves = base.reshape(-1, *shape), moves.reshape(-1, *shape)
    slopes = check_pairs(twin, certificate, middle + moves, middle - moves, outcome)
    check_pairs(twin, certificate, middle, middle + moves, outcome)
    # Ascent of each point's steepest pair: turned along the gradient of its own difference.
    best = slopes.reshape(n, -1).argmax(axis=1) + np.arange(n) * (len(moves) // n)
    a, b = middle[best] + moves[best], middle[best] - moves[best]
    for _ in range(2):
        steps = 1e-5 * size
        jacobian = twin.jacobians(a, steps) + twin.jacobians(b, steps)
        pull = units(np.einsum("nkd,nk->nd", jacobian, units(twin(a) - twin(b))))
        reach = column(0.5 * lengths(a - b), a.ndim)
        centre = 0.5 * (a + b) + 0.1 * reach * units(rng.normal(size=a.shape))
        v = pull.reshape(a.shape)
        a, b = centre + reach * v, centre - reach * v
        check_pairs(twin, certificate, a, b, outcome)


# --- the certified size --------------------------------------------------------------------------


def inside(x, direction, radius, dtype):
    """The point of the dtype on the rim, strictly within the radius in real numbers."""
    share = 1.0 - 1e-9
    for _ in range(40):
        with np.errstate(over="ignore", invalid="ignore"):
            y = (x.astype(np.float64) + share * radius * direction).astype(dtype)
            moved = lengths((y.astype(np.float64) - x.astype(np.float64))[None])[0]
        if not np.isfinite(moved):
            return None
        if moved < radius * (1 - 1e-13):
            return y
        share = min(share * 0.9999999, share * radius / moved * (1 - 1e-8))
    return x


class Asker:
    """The model's own logits, together or alone.

    Operation by operation for most graphs; JAX compiles each operation for each shape, and is asked
    by `predict`, compiled as a whole, but for one graph of sixteen.
    """

    def __init__(self, model, seed):
        self.model = model
        self.eager = keras.backend.backend() != "jax" or seed % 16 == 0

    def __call__(self, x, size):
        """Logits of any number of points, in batches of one size."""
        if not self.eager:
            short = -len(x) % size
            x_full = np.concatenate([x, np.resize(x, (short, *x.shape[1:]))]) if short else x
            return self.model.predict(x_full, batch_size=size, verbose=0)[: len(x)]
        parts = []
        for begin in range(0, len(x), size):
            part = x[begin : begin + size]
            full = np.resize(part, (size, *part.shape[1:]))
            parts.append(to_numpy(self.model(full, training=False))[: len(part)])
        return np.concatenate(parts)

    def together(self, x):
        return self(x, RIM if self.eager and len(x) > BATCH else BATCH)

    def alone(self, x):
        return self(x, 1)


def rims(images, directions, radii):
    """Points of `inside`, row by row, and which of them exist."""
    found = [
        inside(x, d, r, images.dtype) for x, d, r in zip(images, directions, radii, strict=True)
    ]
    exist = np.array([y is not None for y in found], bool)
    found = [x if y is None else y for x, y in zip(images, found, strict=True)]
    return np.stack(found), exist


def rim_points(twin, images, labels, radii):
    """Points at the rims: towards the two nearest classes, a step of PGD later, where it is steep.

    Returns:
        (points, index of the image of each).
    """
    n = len(images)
    points, rows = images.astype(np.float64), np.arange(n)
    steps = 1e-5 * sizes(points)
    logits, jacobian = twin(points), twin.jacobians(points, steps)
    towards = jacobian - jacobian[rows, labels][:, None]
    steep = np.linalg.norm(towards, axis=2)
    with np.errstate(all="ignore"):
        need = np.where(steep > 0, (logits[rows, labels][:, None] - logits) / steep, np.inf)
    need = np.nan_to_num(need, nan=np.inf)
    need[rows, labels] = np.inf
    _, _, vt = np.linalg.svd(jacobian, full_matrices=False)
    found, owners = [images], [rows]

    def keep(directions):
        y, exist = rims(images, directions.reshape(images.shape), radii)
        found.append(y[exist])
        owners.append(rows[exist])
        return y.astype(np.float64)

    keep(vt[:, 0])
    keep(-vt[:, 0])
    for near in np.argsort(need, axis=1)[:, :2].T:
        y = keep(units(towards[rows, near]))
        at = twin.jacobians(y, steps)
        keep(units(at[rows, near] - at[rows, labels]))
    return np.concatenate(found), np.concatenate(owners)


def attack_radii(ask, twin, certificate, images, kind, outcome):
    """Whether any point within the radius of an image has another answer."""
    labels, radii = certificate.radii(images, batch_size=BATCH, rounding=kind)
    rows = np.flatnonzero(radii > 0)
    if not len(rows):
        return
    far = np.where(np.isfinite(radii), radii, 1e3 * np.maximum(1.0, sizes(images)))[rows]
    points, owners = rim_points(twin, images[rows], labels[rows], far)
    owners = rows[owners]
    outcome.attacked += len(points)
    exact, noise = twin.noisy(points.astype(np.float64))
    rows = np.arange(len(points))
    margin = exact[rows, labels[owners], None] - exact
    margin[rows, labels[owners]] = np.inf
    margin = margin.min(axis=1)
    for k in np.flatnonzero(~(margin >= -2 * noise)):
        outcome.violations.append(
            f"{kind}: exact margin {margin[k]:.6g} within radius {radii[owners[k]]:.6g}"
        )
    together = ask.together(points)
    worst = np.argsort(margin, kind="stable")[:2]
    alone = ask.alone(points[worst])
    answers = [("batch", together, rows), ("alone", alone, worst)]
    if kind == "probable" and ask.eager:  # the larger radii
        closest = np.resize(np.argsort(margin, kind="stable"), BATCH)
        whole = ask.model.predict(points[closest], verbose=0, batch_size=BATCH)
        answers.append(("predict", whole, closest))
    for name, logits, index in answers:
        given = np.argmax(logits, axis=1)
        for k in np.flatnonzero(
            (given != labels[owners[index]]) | ~np.isfinite(logits).all(axis=1)
        ):
            at = index[k]
            outcome.violations.append(
                f"{kind}, {name}: answer {given[k]} for {labels[owners[at]]} within radius "
                f"{radii[owners[at]]:.6g}, margin {margin[at]:.6g}"
            )


# --- rounding ---------------------------------------------------------------------------------


def check_rounding(ask, twin, certificate, images, random, outcome):
    """Whether the logits are farther from exact ones than the bound, at once or alone."""
    exact, noise = twin.noisy(images.astype(np.float64))
    some = np.array([1, 4])
    answers = [(np.arange(len(images)), ask.together(images)), (some, ask.alone(images[some]))]
    bounds = {k: certificate.logit_error(images, k) for k in ("worst-case", "probable")}
    # In a float64 model the twin errs as much as the model.
    times = 2.0 if images.dtype == np.float64 else 1.0
    for rows, logits in answers:
        with np.errstate(invalid="ignore", over="ignore"):
            gap = lengths(logits.astype(np.float64) - exact[rows]) - noise[rows]
        for kind, bound in bounds.items():
            good = np.isfinite(gap) & np.isfinite(bound[rows]) & (gap > 0)
            limit = times * bound[rows][good]
            with np.errstate(divide="ignore", over="ignore"):
                ratio = float(np.max(gap[good] / limit, initial=0.0))
            if kind == "worst-case":
                outcome.worst = max(outcome.worst, ratio)
            elif random:
                outcome.probable = max(outcome.probable, ratio)
            if ratio > 1 and (kind == "worst-case" or random):
                outcome.violations.append(f"rounding, {kind}: {ratio:.6g} of its bound")


# --- all of it ---------------------------------------------------------------------------------


def examine(model, seed, random):
    """Tries to refute the certificate of a model.

    Args:
        model: a Keras model.
        seed: of the points.
        random: whether its weights are independent random numbers.

    Returns:
        an `Outcome`; a refusal is a ValueError or a ReferenceMismatchError of a few lines.
    """
    rng, outcome = np.random.default_rng([seed, 11]), Outcome()
    shape = tuple(model.input_shape[1:])
    dtype = np.dtype(str(model.inputs[0].dtype))
    images = hard_images(shape, rng).astype(dtype)
    try:
        certificate = certify(model)
        # At the scale of the images rounding may be all there is.
        certificate.rounding_bound  # noqa: B018
    except (ValueError, ReferenceMismatchError) as error:
        if str(error).count("\n") > 2 or len(str(error)) > 1200:
            outcome.violations.append(f"refusal of {len(str(error))} characters")
        outcome.refused = f"{type(error).__name__}: {error}"
        return outcome
    twin, ask = Twin(model, certificate), Asker(model, seed)
    with np.errstate(all="ignore"):
        steep_pairs(twin, certificate, images[[0, 1, 6, 7]].astype(np.float64), rng, outcome)
        for kind in ("probable", "worst-case"):
            attack_radii(ask, twin, certificate, images, kind, outcome)
        check_rounding(ask, twin, certificate, images, random, outcome)
    return outcome
