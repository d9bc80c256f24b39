"""Noise curves: they fall, repeat, and their noise has its level."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import brightest, labelled, pictures

from dynzoo.corruptions import Streams, add_noise
from dynzoo.robustness.noise_curves import noise_curve

X = pictures()


def test_noise_curve_falls_and_repeats():
    x, y = labelled(30)
    model = brightest()
    levels = {"gaussian": [0.05, 0.5, 2.0], "uniform": [0.05, 2.0], "salt_and_pepper": [0.01, 1.0]}
    seen = []
    curve = noise_curve(
        model, x, y, levels=levels, draws=2, batch_size=7, progress=lambda *a: seen.append(a)
    )
    assert seen == [(k, 14) for k in range(1, 15)]
    for kind in levels:
        assert curve.accuracies[kind].shape == (len(levels[kind]), 2)
        assert curve.mean(kind)[0] > 0.9 and curve.mean(kind)[-1] < 0.5
    other = noise_curve(model, x, y, kinds="gaussian", levels=levels, draws=2, batch_size=30)
    np.testing.assert_array_equal(other.accuracies["gaussian"], curve.accuracies["gaussian"])
    assert (
        noise_curve(model, x, y, kinds="uniform", levels=[0.1], draws=1).deviation("uniform") == 0
    )
    data = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert len(data["curve"]) == 7 and data["curve"][0]["draws"] == 2


@settings(max_examples=15)
@given(
    kind=st.sampled_from(["gaussian", "uniform", "salt_and_pepper"]), level=st.floats(0.01, 0.12)
)
def test_noise_of_any_kind_has_its_level(kind, level):
    x = np.full((8, 32, 32, 3), 0.5)
    added = add_noise(x, kind, level, Streams(0, kind, np.arange(8))).astype(float) - x
    measured = np.mean(added != 0) if kind == "salt_and_pepper" else added.std()
    assert measured == pytest.approx(level, rel=0.1)
    assert abs(added.mean()) < 0.01


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kinds": ["gaussian", "pink"]}, "`kinds` must be some of"),
        ({"kinds": []}, "`kinds` must be some of"),
        ({"levels": [0.0, 0.1]}, "`levels` of 'gaussian' must be positive and finite"),
        ({"levels": []}, "`levels` of 'gaussian'"),
        ({"levels": {"uniform": [0.1]}}, r"none of \['gaussian', 'salt_and_pepper'\]"),
        ({"levels": [0.5, 1.5]}, r"`levels` of 'salt_and_pepper' must be in \(0, 1\]"),
        ({"levels": "a"}, "`levels` must be numbers"),
        ({"levels": None}, "`levels` of 'gaussian'"),
        ({"kinds": None}, "`kinds` must be some of"),
        ({"draws": 0}, "`draws` must be"),
    ],
)
def test_errors_of_noise_curve(changed, message):
    x, y = labelled(6)
    with pytest.raises(ValueError, match=message):
        noise_curve(brightest(), x, y, **changed)


@pytest.mark.parametrize(
    ("kind", "level", "message"),
    [
        ("pink", 0.1, "`kind` must be one of"),
        ("uniform", -0.1, r"`level` of 'uniform' must be in \[0, inf\)"),
        ("salt_and_pepper", 1.1, r"`level` of 'salt_and_pepper' must be in \[0, 1\]"),
    ],
)
def test_errors_of_add_noise(kind, level, message):
    with pytest.raises(ValueError, match=message):
        add_noise(X, kind, level, Streams(0, kind, np.arange(len(X))))
