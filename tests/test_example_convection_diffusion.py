"""The experiment on diffusion: one row a network and seed, their means in the picture."""

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import load_script

from dynzoo import plots

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

pytestmark = pytest.mark.any_backend


@pytest.fixture
def script(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    module = load_script(EXAMPLES / "convection_diffusion.py")
    monkeypatch.setattr(module.common, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    return module


def numbers(script, value, mean):
    """What `measure` gives, with one value everywhere."""
    keys = ["clean", "corruptions", "clean (attacked images)"]
    keys += [f"noise {s:g}" for s in script.NOISE]
    keys += [f"{n} {script.eps_text(e)}" for n, radii in _norms(script) for e in radii]
    keys += [] if mean else [script.certified_key(e) for e in script.CERTIFIED]
    return {"row": dict.fromkeys(keys, value), "radii": []}


def _norms(script):
    return ("l2", script.L2), ("linf", script.LINF)


def test_each_seed_is_trained_and_measured_once(script, monkeypatch, tmp_path):
    seen = []

    class Network:
        def __init__(self, seed):
            self.get_weights = lambda: [seed]

    def trained(name, seed, data_file, folder):
        folder.mkdir(parents=True, exist_ok=True)
        return Network(seed)

    def measure(name, weights, mean, x, y, limit):
        seen.append((name, weights[0], mean))
        return numbers(script, 40.0 + 10 * weights[0], mean)

    monkeypatch.setattr(script, "trained", trained)
    monkeypatch.setattr(script, "measure", measure)
    monkeypatch.setattr(script.dynzoo.data, "load", lambda name: (None, (None, None)))
    figures = []
    monkeypatch.setattr(script.common, "save_figure", lambda name, figure: figures.append(figure))
    words = ["convection_diffusion.py", "--runs", str(tmp_path / "runs"), "--networks"]
    words += ["residual_cifar10", "convection_diffusion_feature_noise_cifar10"]
    monkeypatch.setattr(sys, "argv", words)
    for _ in range(2):  # the second time they are read
        script.main()
    assert len(seen) == len(set(seen)) == 6  # two seeds: one network quiet, one also as a mean
    rows = script.common.read_csv("convection_diffusion")
    assert [row["seed"] for row in rows] == [0, 1, 0, 0, 1, 1]
    assert [row["clean"] for row in rows] == [40.0, 50.0, 40.0, 40.0, 50.0, 50.0]
    groups = script.over_seeds(rows)
    assert [[row["seed"] for row in group] for group in groups] == [[0, 1]] * 3
    panel = figures[-1].axes[0]
    (line, *_) = panel.containers[0].lines
    np.testing.assert_allclose(line.get_ydata(), 45.0)
    # the interval of so many images, not of twice as many
    (bars,) = panel.containers[0].lines[2]
    low, high = bars.get_segments()[-1][:, 1]
    np.testing.assert_allclose((low, high), 100 * np.array(plots.wilson_interval(0.45, 1000)))


def test_a_training_has_the_seed_that_was_asked_for(script, monkeypatch, tmp_path):
    asked = []

    def train(recipe, file, folder, **options):
        asked.append((recipe["name"], recipe["training"]["seed"], folder))

    monkeypatch.setattr(script.training, "train", train)
    monkeypatch.setattr(script.dynzoo, "from_preset", lambda folder: folder)
    folder = tmp_path / "residual_cifar10_seed_1"
    assert script.trained("residual_cifar10", 1, None, folder) == folder / "preset"
    assert asked == [("residual_cifar10", 1, folder)]
