"""Local bounds: the rewritten model is the model, and sound against samples and pairs."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl
from local_bound_models import MODELS, gradient, images, in_ball, perceptron

from dynzoo.certificates import certify, forward_float64
from dynzoo.certificates.audit import audit
from dynzoo.certificates.graph import trace
from dynzoo.certificates.local import relaxation as local_relaxation
from dynzoo.certificates.local.certificate import certify_local
from dynzoo.certificates.local.layers import unroll
from dynzoo.certificates.local.ops import Affine
from dynzoo.certificates.local.relaxation import relax


def assert_encloses(model, seed, anywhere, exact_units, radius):
    """Linear bounds hold for random movements, and for those that lower each row fastest."""
    rng = np.random.default_rng(seed)
    unrolled = unroll(trace(model))
    x = images(3, model.input_shape[1:], seed).astype("float64")
    bounds = relax(unrolled, unrolled.values(x), np.full(3, radius), exact_units, anywhere)
    rows = rng.standard_normal((3, 5, model.output_shape[1]))
    slope, slack = bounds.lower(rows)
    assert np.all(slope >= 0) and np.all(slack >= 0)
    assert not anywhere or np.all(slack == 0)
    down = -np.stack(
        [gradient(model, image, g.T) for image, g in zip(x, rows, strict=True)], axis=1
    )
    lengths = np.linalg.norm(down.reshape(5, 3, -1), axis=2).reshape(5, 3, *(1,) * (x.ndim - 1))
    ends = np.concatenate([x + radius * down / lengths, in_ball(x, radius, rng, 20)])
    starts = in_ball(x, radius, rng, len(ends)) if anywhere else np.broadcast_to(x, ends.shape)
    both = np.concatenate([ends, starts]).reshape(-1, *x.shape[1:])
    logits = forward_float64(model, both).reshape(2, *ends.shape[:2], -1)
    apart = np.linalg.norm((ends - starts).reshape(len(ends), 3, -1), axis=2)[..., None]
    values = [unrolled.values(both.reshape(2, -1, *x.shape[1:])[k]) for k in (0, 1)]
    for slot, switch in bounds._switches.items():
        source = next(node.inputs[0] for node in unrolled.nodes if node.output == slot)
        z = [v[source].reshape(-1, *switch.z.shape) for v in values]
        assert switch.down.shape == switch.up.shape == switch.z.shape
        assert np.all(z[0] >= switch.z - switch.down) and np.all(z[0] <= switch.z + switch.up)
        far = np.linalg.norm((z[0] - switch.z).reshape(len(ends), 3, -1), axis=2)
        assert np.all(far <= switch.norm * (1 + 1e-9) + 1e-12)
    found = np.einsum("nqk,tnk->tnq", rows, logits[0] - logits[1])
    assert np.all(found >= -(slope * apart + slack) - 1e-9)
    return slope, slack


# --- the rewriting -------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_unrolled_model_is_the_model_and_its_adjoints_and_norms_are_right(name):
    model = MODELS[name]()
    unrolled, rng = unroll(trace(model)), np.random.default_rng(0)
    x = images(3, model.input_shape[1:]).astype("float64")
    np.testing.assert_allclose(unrolled.values(x)[-1], forward_float64(model, x), atol=1e-12)
    seen = 0
    for node in unrolled.nodes:
        if not isinstance(node.op, Affine):
            continue
        seen += 1
        a, b = rng.standard_normal((2, 4, *unrolled.shapes[node.inputs[0]]))
        y = rng.standard_normal((4, *unrolled.shapes[node.output]))
        moved = node.op.forward(a) - node.op.forward(b)
        np.testing.assert_allclose(
            np.sum(moved * y), np.sum((a - b) * node.op.adjoint(y)), rtol=1e-9, atol=1e-9
        )
        length = np.linalg.norm((a - b).reshape(4, -1), axis=1)
        assert np.all(
            np.linalg.norm(moved.reshape(4, -1), axis=1) <= node.op.norm * length * (1 + 1e-9)
        )
        spread = node.op.spread(length, np.abs(a - b))
        assert np.all(np.abs(moved) <= spread * (1 + 1e-9) + 1e-12)
        # One entry of the input alone must fit, too: rows are bounded by their own norms.
        one = np.zeros_like(a)
        one.reshape(4, -1)[:, 0] = 1.0
        moved = node.op.forward(one) - node.op.forward(np.zeros_like(a))
        assert np.all(np.abs(moved) <= node.op.spread(np.ones(4), one) * (1 + 1e-9) + 1e-12)
    assert seen >= 2


# --- soundness -----------------------------------------------------------------------------


@settings(max_examples=8)
@given(
    name=st.sampled_from(sorted(MODELS)),
    seed=st.integers(0, 999),
    anywhere=st.booleans(),
    exact_units=st.sampled_from([0, 512]),
    radius=st.sampled_from([1e-3, 0.05, 0.3, 2.0]),
)
def test_linear_bounds_enclose_the_model(name, seed, anywhere, exact_units, radius):
    assert_encloses(MODELS[name](seed), seed, anywhere, exact_units, radius)


@pytest.mark.parametrize("anywhere", [False, True])
def test_a_movement_that_all_pixels_share_is_counted_in_full(anywhere):
    """All entries move together: the L2 norm of the movement is far above that of any entry."""
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), kl.Conv2D(2, 3, activation="relu"), kl.Flatten(), kl.Dense(2)]
    )
    model.layers[0].kernel.assign(np.full((3, 3, 1, 2), 1 / 3))
    unrolled = unroll(trace(model))
    x = np.full((1, 6, 6, 1), 0.5)
    bounds = relax(unrolled, unrolled.values(x), np.array([0.6]), 0, anywhere)
    (switch,) = bounds._switches.values()
    moved = unrolled.values(x + 0.1)[1] - unrolled.values(x)[1]
    assert np.linalg.norm(moved) <= switch.norm[0]
    assert np.all(np.abs(moved) <= switch.up)


def test_units_that_are_forgotten_are_caught(monkeypatch):
    """Takes every unit for fixed: the soundness check of this file must then fail."""
    never = property(lambda self: np.zeros_like(self.z, bool))
    assert_encloses(perceptron(), 0, False, 512, 2.0)
    monkeypatch.setattr(local_relaxation._Switch, "open", never)
    with pytest.raises(AssertionError):
        assert_encloses(perceptron(), 0, False, 512, 2.0)


def test_exact_units_tighten_and_bounds_grow_with_the_ball():
    model = perceptron((16, 16, 16))
    sizes = {}
    for exact_units in (0, 512):
        for radius in (0.01, 0.1, 0.5):
            slope, _ = assert_encloses(model, 1, True, exact_units, radius)
            sizes[exact_units, radius] = slope
    for radius in (0.01, 0.1, 0.5):
        assert sizes[512, radius].mean() <= sizes[0, radius].mean()
    assert sizes[512, 0.5].mean() > sizes[512, 0.1].mean() >= sizes[512, 0.01].mean()


@pytest.mark.parametrize("name", ["perceptron", "pooled"])
def test_slopes_stay_above_what_the_audit_measures_in_the_ball(name):
    model = MODELS[name]()
    x = images(8, model.input_shape[1:])
    found = audit(model, x, pairs=12, steps=20, restarts=1)
    middle = (found.pairs[0] + found.pairs[1]) / 2
    radius = np.linalg.norm((found.pairs[0] - found.pairs[1]).ravel()) / 2 * (1 + 1e-6)
    slopes = certify_local(model).slopes(middle[None], radius)[0]
    moved = forward_float64(model, np.stack(found.pairs))
    gaps = np.subtract.outer(moved[0] - moved[1], moved[0] - moved[1]) / (2 * radius)
    assert np.all(np.abs(gaps) <= slopes + 1e-9)
    np.testing.assert_array_equal(slopes, slopes.T)
    result = certify(model)
    everywhere = result.body_lipschitz * result.pair_distances
    assert np.all(slopes <= everywhere) and np.any(slopes < 0.9 * everywhere)
    # In a ball without a switch the bound is the norm of the gradient itself.
    tiny = certify_local(model).slopes(x[:1], 1e-6)[0]
    own = gradient(model, x[0].astype("float64"), np.eye(len(tiny))[0] - np.eye(len(tiny))[1])
    assert tiny[0, 1] == pytest.approx(np.linalg.norm(own), rel=1e-4)
