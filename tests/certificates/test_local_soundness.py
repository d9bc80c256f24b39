"""No local bound is above the exact distance to another answer, of random small networks."""

import keras
import numpy as np
import pytest
from exact_distances import pattern_distance
from local_soundness_checks import ARCHITECTURES, Found, chain_of, model_of, random_networks, search
from nearest_changes import nearest_changes

from dynzoo.certificates.local import backward as backward_module
from dynzoo.certificates.local.backward import Backward


def found_of(each, enough=None):
    """What so many networks of each architecture show, until something is refuted `enough`."""
    found = Found()
    for _ in search(0, each * len(ARCHITECTURES), found, each):
        if enough and any(enough in text for text in found.refuted):
            break
    return found


def test_no_bound_is_above_the_exact_distance():
    # The others compile for every model.
    each = 4 if keras.backend.backend() == "torch" else 1
    found = found_of(each)
    assert found.refuted == [] and found.open == []
    assert found.networks == each * len(ARCHITECTURES) and found.checked > found.networks
    if each == 1:
        return
    for norm in ("l2", "linf"):
        means = {key: np.mean(v) for key, v in found.shares.items() if key.startswith(norm)}
        assert means[f"{norm} crown, searched"] > 0.6 and means[f"{norm} plain"] > 0.4
        assert means[f"{norm} alpha-crown"] > means[f"{norm} crown, chord"]
        assert means[f"{norm} certified at 0.98"] > 0.5
        assert means[f"{norm} falsified at 1.001"] > 0.5


def test_a_pass_that_forgets_its_gaps_is_refuted(monkeypatch):
    lines = backward_module.lines

    def without(op, given, mode):
        found = lines(op, given, mode)
        return found._replace(high_gap=0.9 * found.high_gap, low_gap=0.9 * found.low_gap)

    monkeypatch.setattr(backward_module, "lines", without)
    assert any("crown, adaptive" in text for text in found_of(4, "crown, adaptive").refuted)


def test_slopes_that_forget_their_gaps_are_refuted(monkeypatch):
    sloped = Backward.sloped

    def without(*args):
        found = sloped(*args)
        return found._replace(high_gap=0.9 * found.high_gap, low_gap=0.9 * found.low_gap)

    monkeypatch.setattr(Backward, "sloped", without)
    refuted = found_of(4, "parts of a ball").refuted
    assert any("parts of a ball" in text for text in refuted)
    assert any("alpha-crown" in text for text in refuted)


@pytest.mark.any_backend
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_nearest_changes_are_those_of_other_solvers(norm):
    """Of non-negative least squares and a linear program, over the same pieces."""
    compared = 0
    for name in ("one layer of 6", "two layers", "three layers"):
        networks = range(8) if norm == "l2" else range(2)
        weights, images = random_networks(name, networks)
        chain, x = chain_of(name, weights), images.astype("float64")
        labels = chain.logits(np.arange(len(x)), x)[0].argmax(axis=1)
        exact, points = nearest_changes(chain, x, labels, norm)
        step = np.linalg.norm(points - x, 2 if norm == "l2" else np.inf, axis=1)
        finite = np.isfinite(exact)
        np.testing.assert_allclose(step[finite], exact[finite], rtol=1e-9)
        for i in networks:
            one = chain.part([i])
            _, other = pattern_distance([k[0] for k in one.kernels], [b[0] for b in one.biases],
                                        x[i], norm)  # fmt: skip
            if exact[i] < 1e3 and other > 1e-7:
                np.testing.assert_allclose(exact[i], other, rtol=1e-6)
                compared += 1
    assert compared >= (14 if norm == "l2" else 3)


def test_a_chain_is_its_model():
    for name in ARCHITECTURES:
        weights, images = random_networks(name, range(3))
        chain, flat = chain_of(name, weights), images.reshape(3, -1).astype("float64")
        logits, scale = chain.logits(np.arange(3), flat)
        for i in range(3):
            model_of(name).set_weights(weights[i])
            given = keras.ops.convert_to_numpy(model_of(name)(images[i][None]))[0]
            np.testing.assert_allclose(given / scale[i], logits[i] / scale[i], atol=1e-6)
            exact = [float(v) for v in chain.exact_logits(i, flat[i])]
            np.testing.assert_allclose(exact / scale[i], logits[i] / scale[i], atol=1e-13)


@pytest.mark.slow
def test_no_bound_is_above_the_exact_distance_of_many_networks():
    found = found_of(80)
    assert found.networks == 800 and found.refuted == [] and found.open == []
