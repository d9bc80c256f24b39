"""Bounds by passes back: sound against samples, gradients and exact distances."""

import numpy as np
import pytest
from local_bound_models import ALL_MODELS, images

from dynzoo.certificates import forward_float64
from dynzoo.certificates.graph import trace
from dynzoo.certificates.local import backward as backward_module
from dynzoo.certificates.local.backward import Backward, Plan, Splits
from dynzoo.certificates.local.backward_certificate import output_rows
from dynzoo.certificates.local.branching import descended
from dynzoo.certificates.local.layers import unroll
from dynzoo.certificates.local.lines import MODES
from dynzoo.certificates.local.ops import Affine
from dynzoo.certificates.local.rows import Rows, pulled_back, pushed, unit_rows
from dynzoo.certificates.local.slopes import Search, first_slopes, optimised, tightened


def unrolled_of(name, seed=0):
    model = ALL_MODELS[name](seed)
    return model, unroll(trace(model), curves=True)


def bounds_of(unrolled, x, radius, order=2.0, **settings):
    return Backward(Plan(unrolled, order), unrolled.values(x), np.full(len(x), radius), **settings)


def ball_points(x, radius, order, count, rng):
    """Points of the balls, half of them on the sphere or at corners: (count, n, ...)."""
    if order == 2:
        step = rng.normal(size=(count, *x.shape))
        step /= np.linalg.norm(step.reshape(count, len(x), -1), axis=2).reshape(
            count, len(x), *(1,) * (x.ndim - 1)
        )
    else:
        step = rng.choice([-1.0, 1.0], size=(count, *x.shape))
        step[::2] = rng.uniform(-1, 1, size=step[::2].shape)
    share = np.minimum(1.0, 2 * rng.uniform(size=count)).reshape(-1, *(1,) * x.ndim)
    return x + radius * share * step


def with_descents(unrolled, x, radius, order, directions, points):
    """Points with those to which gradient steps lead from each centre."""
    extra = [
        np.stack([x[i] + descended(unrolled, x[i], d[q], radius, order, 3) for i, d in
                  enumerate(directions)])
        for q in range(directions.shape[1])
    ]  # fmt: skip
    return np.concatenate([points, np.stack(extra)])


# --- rows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_MODELS)
def test_every_layer_is_pulled_back_by_its_adjoint_and_windows_are_the_whole(name):
    model, unrolled = unrolled_of(name)
    rng, seen = np.random.default_rng(0), 0
    x = images(2, model.input_shape[1:]).astype("float64")
    np.testing.assert_allclose(unrolled.values(x)[-1], forward_float64(model, x), atol=1e-12)
    for node in unrolled.nodes:
        if not isinstance(node.op, Affine):
            continue
        before, after = unrolled.shapes[node.inputs[0]], unrolled.shapes[node.output]
        a, g = rng.normal(size=(*before, 2, 3)), rng.normal(size=(*after, 2, 3))
        moved = pushed(node.op, a)
        rows = pulled_back(node.op, Rows(g, np.arange(2), None, after), before)
        np.testing.assert_allclose((moved * g).sum(), (a * rows.values).sum(), rtol=1e-9)
        flat = np.moveaxis(a.reshape(*before, 6), -1, 0)
        exact = node.op.forward(flat) - node.op.forward(np.zeros((1, *before)))
        np.testing.assert_allclose(moved.reshape(*after, 6), np.moveaxis(exact, 0, -1), atol=1e-9)
        if len(after) == 3:
            pixels = np.array([[i, j] for i in range(after[0]) for j in range(after[1])])
            image = np.zeros(len(pixels), int)
            units = unit_rows(after, image, pixels, np.arange(after[2]))
            small, whole = (pulled_back(node.op, r, before).whole() for r in (units, units.whole()))
            np.testing.assert_allclose(small.values, whole.values, atol=1e-12)
        seen += 1
    assert seen >= 2


# --- soundness -----------------------------------------------------------------------------


def assert_encloses(name, seed, order, radius, **settings):
    model, unrolled = unrolled_of(name, seed)
    rng = np.random.default_rng(seed)
    x = images(2, model.input_shape[1:], seed).astype("float64")
    bounds = bounds_of(unrolled, x, radius, order, **settings)
    directions = rng.normal(size=(2, 2, model.output_shape[1]))
    points = ball_points(x, radius, order, 16, rng)
    points = with_descents(unrolled, x, radius, order, directions, points)
    values = unrolled.values(points.reshape(-1, *x.shape[1:]))
    for node in unrolled.nodes:
        if node.output not in bounds.ranges:
            continue
        given = bounds.ranges[node.output]
        z = values[node.inputs[0]].reshape(len(points), *given.z.shape)
        assert np.all(z >= given.z - given.down) and np.all(z <= given.z + given.up)
    last, moved = len(unrolled.shapes) - 1, values[-1].reshape(len(points), 2, -1)
    moved = np.einsum("nqk,tnk->tnq", directions, moved - bounds.values[-1])
    found = [bounds.lower(output_rows(directions), last, mode) for mode in MODES]
    best = optimised(bounds, output_rows(directions), last, steps=4)
    for steep, beta in [*found, (best.steep, best.beta)]:
        assert np.all(steep >= 0) and np.all(beta >= 0)
        assert np.all(moved >= -(steep * radius + beta) - 1e-12)
    return best.total(radius), np.min([s * radius + b for s, b in found], axis=0)


@pytest.mark.parametrize("name", ALL_MODELS)
@pytest.mark.parametrize("order", [2.0, np.inf])
def test_bounds_enclose_the_model(name, order):
    for seed, radius in ((1, 0.05), (2, 0.6)):
        radius = radius if order == 2 else 0.3 * radius
        best, modes = assert_encloses(name, seed, order, radius, refine=seed == 1)
        assert np.all(best <= modes * (1 + 1e-9))


def test_tightened_units_are_enclosed_and_tighter():
    for name in ("perceptron", "pooled"):
        assert_encloses(name, 3, 2.0, 0.4, refine=True, tighten=tightened)
    _, unrolled = unrolled_of("perceptron")
    x = images(3, (8,)).astype("float64")
    plain, better = (bounds_of(unrolled, x, 0.4, tighten=t) for t in (None, tightened))
    last = max(plain.ranges)
    assert better.ranges[last].down.sum() < plain.ranges[last].down.sum()


def test_a_pass_that_forgets_its_gaps_is_caught(monkeypatch):
    """The enclosure above must fail if the gaps of the lines are left out."""
    lines = backward_module.lines

    def without(op, given, mode):
        found = lines(op, given, mode)
        return found._replace(high_gap=0 * found.high_gap)

    monkeypatch.setattr(backward_module, "lines", without)
    with pytest.raises(AssertionError):
        for seed in range(6):
            assert_encloses("perceptron", seed, 2.0, 1.0)


# --- slopes and splits ---------------------------------------------------------------------


@pytest.mark.parametrize("order", [2.0, np.inf])
def test_gradients_of_slopes_and_multipliers_are_those_of_the_bound(order):
    from dynzoo.certificates.local.slopes import _gradients

    _, unrolled = unrolled_of("residual", 4)
    x, rng = images(1, (6, 6, 2), 4).astype("float64"), np.random.default_rng(0)
    bounds = bounds_of(unrolled, x, 0.1, order)
    rows, last = output_rows(rng.normal(size=(1, 2, 3))), len(unrolled.shapes) - 1
    start = first_slopes(bounds, rows, last)
    slopes = {k: rng.uniform(0.2, 0.8, size=v.shape) for k, v in start.slopes.items()}
    signs = {k: np.zeros_like(v) for k, v in slopes.items()}
    multipliers = {k: np.zeros_like(v) for k, v in slopes.items()}
    key = max(slopes)
    free = bounds.ranges[key].open[0][..., None, None]
    signs[key] = np.where(free, rng.choice([-1.0, 0.0, 1.0], size=signs[key].shape), 0.0)
    multipliers[key] = np.where(signs[key] != 0, 0.05, 0.0)
    splits, radius = Splits(signs, multipliers), np.full((1, 1), 0.1)

    def total():
        steep, beta = bounds.lower(rows, last, slopes=slopes, splits=splits)
        return steep * 0.1 + beta

    met = {}
    bounds.lower(rows, last, slopes=slopes, met=met, splits=splits)
    by_slope, by_multiplier = _gradients(bounds, met, slopes, splits, last, radius)
    checked = 0
    for table, gradients in ((slopes, by_slope), (multipliers, by_multiplier)):
        for k, gradient in gradients.items():
            size = np.abs(gradient).reshape(-1, 2)
            for unit in np.argsort(size.sum(axis=1))[-3:]:
                place = (*np.unravel_index(unit, table[k].shape[:-2]), 0, slice(None))
                old = table[k][place].copy()
                ends = []
                for step in (1e-5, -1e-5):
                    table[k][place] = old + step
                    ends.append(total()[0])
                table[k][place] = old
                slope = (ends[0] - ends[1]) / 2e-5
                np.testing.assert_allclose(gradient[place], slope, rtol=1e-3, atol=1e-6)
                checked += bool(np.any(slope))
    assert checked >= 4


def test_bounds_of_parts_hold_on_their_parts():
    _, unrolled = unrolled_of("perceptron", 1)
    x, rng = images(1, (8,), 1).astype("float64"), np.random.default_rng(1)
    bounds, radius = bounds_of(unrolled, x, 0.8), 0.8
    direction = rng.normal(size=(1, 1, 4))
    rows, last = output_rows(direction), len(unrolled.shapes) - 1
    root = first_slopes(bounds, rows, last)
    points = ball_points(x, radius, 2.0, 4000, rng).reshape(-1, 8)
    values = unrolled.values(points)
    moved = (values[-1] - bounds.values[-1]) @ direction[0, 0]
    smallest = np.inf
    for node in unrolled.nodes:
        if node.output not in root.slopes:
            continue
        for unit in np.flatnonzero(bounds.ranges[node.output].open[0])[:4]:
            for sign in (1.0, -1.0):
                signs = {k: np.zeros_like(v) for k, v in root.slopes.items()}
                signs[node.output][unit] = sign
                none = {k: np.zeros_like(v) for k, v in signs.items()}
                start = Search(
                    np.full((1, 1), 1e9), np.zeros((1, 1)), root.slopes, Splits(signs, none)
                )
                best = optimised(bounds, rows, last, 15, start)
                part = sign * values[node.inputs[0]][:, unit] >= 0
                assert np.all(moved[part] >= -best.total(radius)[0, 0])
                smallest = min(smallest, best.total(radius)[0, 0])
    assert smallest < optimised(bounds, rows, last).total(radius)[0, 0]
