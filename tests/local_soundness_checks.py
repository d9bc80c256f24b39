"""Random small rectified networks, and no local bound above the exact distance to another answer.

Every architecture is one Keras model, whose weights are set for each network, and the same
function as a chain of dense layers, of which `nearest_changes` finds the exact distance.
"""

import functools
from dataclasses import dataclass, field, replace

import keras
import numpy as np
from keras import layers as kl
from nearest_changes import Chain, nearest_changes

from dynzoo.certificates import certify_local
from dynzoo.certificates.graph import trace
from dynzoo.certificates.local.backward import Backward, Plan
from dynzoo.certificates.local.backward_certificate import output_rows
from dynzoo.certificates.local.branching import decided
from dynzoo.certificates.local.layers import unroll
from dynzoo.certificates.local.lines import MODES
from dynzoo.certificates.local.slopes import optimised, tightened

NORMS = ("l2", "linf")
# Balls, in exact distances, on which bounds are asked how far they prove the answer.
BALLS = (1.0001, 1.5, 4.0)
# Distances beyond these are differences of rounding.
_LEAST, _FAR = 1e-6, 1e6
# Above the exact distance by more than float64 rounds there.
_ABOVE = 1 + 1e-7
# Parts of a ball that are looked at.
_PARTS = 40
_IMAGE = (2, 2, 1)

# --- architectures -------------------------------------------------------------------------


def _dense(sizes, slope=0.0):
    def build():
        hidden = [
            layer for n in sizes[1:-1] for layer in (kl.Dense(n), kl.ReLU(negative_slope=slope))
        ]
        return keras.Sequential([keras.Input(sizes[:1]), *hidden, kl.Dense(sizes[-1])])

    def chain(weights):
        return weights[::2], weights[1::2], [np.full(n, slope) for n in sizes[1:-1]]

    return build, chain


def _residual():
    def build():
        inputs = keras.Input((3,))
        y = kl.Dense(3)(kl.Dense(4, "relu")(inputs))
        return keras.Model(inputs, kl.Dense(3)(kl.Dense(2, "relu")(kl.Add()([inputs, y]))))

    def chain(weights):
        w, b, v, c, *others = weights
        kernels = [np.c_[w, np.eye(3)], np.r_[v, np.eye(3)], *others[::2]]
        biases = [np.r_[b, np.zeros(3)], c, *others[1::2]]
        return kernels, biases, [np.r_[np.zeros(4), np.ones(3)], np.ones(3), np.zeros(2)]

    return build, chain


def _convolution(kernel):
    """Of 2x2 pixels, padding "same" and flattened, as a matrix."""
    rows, columns, depth, filters = kernel.shape
    matrix = np.zeros((2, 2, depth, 2, 2, filters))
    before = (rows - 1) // 2, (columns - 1) // 2
    for i, j, a, b in np.ndindex(2, 2, rows, columns):
        y, x = i + a - before[0], j + b - before[1]
        if 0 <= y < 2 and 0 <= x < 2:
            matrix[y, x, :, i, j] = kernel[a, b]
    return matrix.reshape(4 * depth, 4 * filters)


def _convolutional():
    def build():
        body = [kl.Conv2D(1, 2, padding="same", activation="relu"), kl.Flatten()]
        last = [kl.Dense(2, "relu"), kl.Dense(3)]
        return keras.Sequential([keras.Input(_IMAGE), *body, *last])

    def chain(weights):
        kernel, bias, *others = weights
        kernels, biases = [_convolution(kernel), *others[::2]], [np.tile(bias, 4), *others[1::2]]
        return kernels, biases, [np.zeros(4), np.zeros(2)]

    return build, chain


def _pooled():
    """A maximum is b + relu(a - b)."""

    def build():
        body = [kl.Conv2D(2, 3, padding="same"), kl.MaxPooling2D(2), kl.Flatten()]
        return keras.Sequential([keras.Input(_IMAGE), *body, kl.Dense(3)])

    def chain(weights):
        kernel, bias, last, offset = weights
        pairs, one = np.array([[1.0, 0.0], [-1.0, 1.0]]), np.eye(2)
        bent, sums = np.repeat([0.0, 1.0], 2), np.ones((2, 1))
        # pixel, channel -> pair, (difference or second pixel), channel
        first = np.kron(np.eye(2), np.kron(pairs, one))
        joined = np.kron(np.eye(2), np.kron(sums, one))
        kernels = [_convolution(kernel), first, joined, np.kron(pairs, one), np.kron(sums, one)]
        sizes = [k.shape[1] for k in kernels[1:]]
        biases = [np.tile(bias, 4), *map(np.zeros, sizes), offset]
        slopes = [np.ones(8), np.tile(bent, 2), np.ones(4), bent, np.ones(2)]
        return [*kernels, last], biases, slopes

    return build, chain


ARCHITECTURES = {
    "one layer of 6": _dense((3, 6, 3)),
    "one layer of 5": _dense((4, 5, 3)),
    "two classes": _dense((4, 4, 2)),
    "two layers": _dense((3, 3, 3, 3)),
    "narrow": _dense((4, 2, 3, 2)),
    "three layers": _dense((2, 2, 2, 2, 3)),
    "leaky": _dense((3, 4, 2, 3), 0.25),
    "residual": _residual(),
    "convolution": _convolutional(),
    "pooling": _pooled(),
}


@functools.cache
def model_of(name):
    return ARCHITECTURES[name][0]()


# --- weights -------------------------------------------------------------------------------


def _random(shapes, rng):
    scale = rng.choice([0.5, 1.0, 2.0])
    return [
        scale * rng.normal(size=s) / np.sqrt(np.prod(s[:-1])) if len(s) > 1
        else 0.3 * rng.normal(size=s)
        for s in shapes
    ]  # fmt: skip


def _twins(shapes, rng):
    """Units that switch together, and against each other."""
    weights = _random(shapes, rng)
    weights[0][..., 0] = rng.choice([-1.0, 1.0]) * weights[0][..., -1]
    weights[1][0] = weights[1][-1]
    return weights


def _dead(shapes, rng):
    """Units that are off or on everywhere, or do not read their input."""
    weights = _random(shapes, rng)
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        unit = rng.integers(len(bias))
        bias[unit] = rng.choice([-6.0, 6.0])
        kernel[..., rng.integers(len(bias))] *= rng.choice([0.0, 1e-6])
    return weights


def _wild(shapes, rng):
    """Layers of very large and very small numbers."""
    weights, size = _random(shapes, rng), 1.0
    for i in range(0, len(weights), 2):
        factor = 10.0 ** rng.uniform(-3, 3)
        size *= factor
        weights[i], weights[i + 1] = factor * weights[i], size * weights[i + 1]
    return weights


def _whole(shapes, rng):
    """Numbers of few bits: kinks on the image, parallel hyperplanes, ties."""
    return [rng.integers(-2, 3, size=s) / 2.0 for s in shapes]


WEIGHTS = (_random, _twins, _dead, _wild, _whole)


def random_networks(name, seeds):
    """Weights (a list for each seed), and images in float32."""
    model, weights, images = model_of(name), [], []
    shapes = [w.shape for w in model.weights]
    for seed in seeds:
        rng = np.random.default_rng(seed)
        kind = WEIGHTS[rng.integers(len(WEIGHTS))]
        own = [w.astype("float32") for w in kind(shapes, rng)]
        x = rng.integers(0, 17, size=model.input_shape[1:]) / 16
        if kind is not _whole:
            x = rng.uniform(size=x.shape)
        x = x.astype("float32")
        chain = chain_of(name, [own])
        flat = x.reshape(1, -1).astype("float64")
        if rng.random() < 0.2:
            # A kink on the image, as near as float32 has it.
            z = flat @ chain.kernels[0][0] + chain.biases[0][0]
            unit = rng.integers(z.size)
            own[1][unit % len(own[1])] -= z[0, unit]
        if rng.random() < 0.2:
            # Two answers that nearly tie.
            z = chain_of(name, [own]).logits(np.zeros(1, int), flat)[0][0]
            second, first = np.argsort(z)[-2:]
            own[-1][second] += (z[first] - z[second]) * (1 - 10.0 ** -rng.uniform(1, 5))
        weights.append(own)
        images.append(x)
    return weights, np.stack(images)


def chain_of(name, weights):
    found = [ARCHITECTURES[name][1]([w.astype("float64") for w in own]) for own in weights]
    kernels, biases = ([np.stack(a) for a in zip(*(f[i] for f in found), strict=True)]
                       for i in (0, 1))  # fmt: skip
    return Chain(kernels, biases, found[0][2])


# --- checks --------------------------------------------------------------------------------


@dataclass
class Found:
    """What checks found.

    Attributes:
        networks: how many there were.
        checked: networks times norms with a distance that is neither 0 nor infinite.
        shares: what was proved, in exact distances, by norm and method.
        refuted: claims that a point contradicts, in exact arithmetic.
        open: claims above the distance that no point contradicts: rounding in the distance.
    """

    networks: int = 0
    checked: int = 0
    shares: dict = field(default_factory=dict)
    refuted: list = field(default_factory=list)
    open: list = field(default_factory=list)

    def add(self, norm, what, value):
        self.shares.setdefault(f"{norm} {what}", []).append(float(value))


def search(start, networks, found, at_once=20):
    """Checks networks `start` to `start + networks`, whose number is their seed, by blocks."""
    for first in range(start - start % at_once, start + networks, at_once):
        name = list(ARCHITECTURES)[first // at_once % len(ARCHITECTURES)]
        seeds = range(max(first, start), min(first + at_once, start + networks))
        check_networks(name, seeds, found)
        yield first


def check_networks(name, seeds, found):
    """Compares bounds with the exact distance, for networks of one architecture.

    Passes back are asked in both norms, the certificates of the Keras model in one of them. Of
    every eight networks one is split to the end in L2, another in L-infinity.
    """
    model = model_of(name)
    weights, images = random_networks(name, seeds)
    chain, flat = chain_of(name, weights), images.reshape(len(images), -1).astype("float64")
    labels = chain.logits(np.arange(len(flat)), flat)[0].argmax(axis=1)
    nearest = {norm: nearest_changes(chain, flat, labels, norm) for norm in NORMS}
    found.networks += len(seeds)
    for i, seed in enumerate(seeds):
        model.set_weights(weights[i])
        unrolled = unroll(trace(model), curves=True)
        for place, norm in enumerate(NORMS):
            exact, points = (a[i] for a in nearest[norm])
            exact = float(exact) if exact < _FAR else np.inf
            where = f"{name}, seed {seed}, {norm}"
            one = _Check(found, where, norm, chain.part([i]), flat[i], int(labels[i]), exact,
                         points)  # fmt: skip
            apart = _LEAST < exact < np.inf
            if apart:
                found.checked += 1
                one.passes(unrolled, images[i], seed % 8 == place)
            if seed % 2 == place:
                one.radii(model, images[i])
            if seed % 8 == place and apart:
                one.decisions(model, images[i])


@dataclass
class _Check:
    """One network in one norm."""

    found: Found
    where: str
    norm: str
    chain: Chain
    x: np.ndarray
    label: int
    exact: float
    point: np.ndarray

    def at_most(self, what, radius):
        """Notes a radius above the exact distance; refuted is it by a point inside."""
        if radius <= self.exact * _ABOVE:
            return
        step, order = self.point - self.x, 2 if self.norm == "l2" else np.inf
        further = radius / max(self.exact, 1e-300) * (1 - 1e-12) - 1
        text = f"{self.where}: {what}: {radius!r} above {self.exact!r}"
        for share in [1.0, *(1 + further * 10.0 ** -np.arange(9.0))] if self.exact else [1.0]:
            moved = self.x + share * step
            logits = self.chain.exact_logits(0, moved)
            own = logits.pop(self.label)
            if max(logits) >= own and np.linalg.norm(moved - self.x, order) < radius:
                self.found.refuted.append(text)
                return
        self.found.open.append(text)

    def radii(self, model, image):
        """The radius that a search with the model's own answer finds."""
        labels, radii = certify_local(model, 6, method="crown", norm=self.norm).radii(image[None])
        if labels[0] != self.label:
            # A tie, as float32 rounds it: nothing holds of the answer.
            tie = replace(self, label=int(labels[0]), exact=0.0, point=self.x)
            tie.at_most("crown, searched", radii[0])
            return
        self.at_most("crown, searched", radii[0])
        if _LEAST < self.exact < np.inf:
            self.found.add(self.norm, "crown, searched", radii[0] / self.exact)

    def passes(self, unrolled, image, parts):
        """How far bounds on balls around the exact distance prove the answer, without rounding."""
        plan = Plan(unrolled, 2.0 if self.norm == "l2" else np.inf)
        values = unrolled.values(np.repeat(image[None].astype("float64"), len(BALLS), axis=0))
        eye = np.eye(values[-1].shape[1])
        directions = eye[self.label] - np.delete(eye, self.label, axis=0)
        margins = directions @ values[-1][0]
        radius, last = self.exact * np.array(BALLS), len(unrolled.shapes) - 1

        def proved(what, lines):
            with np.errstate(divide="ignore", invalid="ignore"):  # a row that no pixel reaches
                far = np.where(margins > lines[1], (margins - lines[1]) / lines[0], 0.0)
            far = np.where(np.isnan(far), np.inf, far).min(axis=1)
            self.found.add(self.norm, what, min(1.0, far[0] / self.exact))
            for value in np.minimum(far, radius[: len(far)]):
                self.at_most(what, value)

        rows = output_rows(np.repeat(directions[None], len(BALLS), axis=0))
        proved("plain", Backward(plan, values, radius).lower(rows, last, "chord"))
        bounds = Backward(plan, values, radius, refine=True)
        for mode in MODES:
            proved(f"crown, {mode}", bounds.lower(rows, last, mode))
        one = [v[:1] for v in values]
        bounds = Backward(plan, one, radius[:1], refine=True, tighten=tightened)
        proved("alpha-crown", optimised(bounds, output_rows(directions[None]), last)[:2])
        if parts and decided(bounds, directions, margins * (1 - 1e-9), most=_PARTS):
            self.at_most("parts of a ball", radius[0])

    def decisions(self, model, image):
        """Decisions about the model itself just below and just above."""
        complete = certify_local(model, method="complete", norm=self.norm, time_limit=10.0)
        below, above = (complete.decide(image[None], s * self.exact) for s in (0.98, 1.001))
        if above.labels[0] != self.label:
            return
        if above.outcomes[0] == "certified":
            self.at_most("decided", above.eps)
        if below.outcomes[0] == "falsified":
            # Another answer of the model nearer than there is one, by more than float32 rounds.
            point = below.points.reshape(1, -1).astype("float64")
            logits, scale = self.chain.logits(np.zeros(1, int), point)
            own = logits[0, self.label]
            if own < np.delete(logits[0], self.label).max() - 1e-6 * scale[0]:
                self.found.refuted.append(f"{self.where}: the exact distance: {self.exact!r}")
        self.found.add(self.norm, "certified at 0.98", below.outcomes[0] == "certified")
        self.found.add(self.norm, "falsified at 1.001", above.outcomes[0] == "falsified")
