"""The demo, on a tiny untrained preset: the whole way, and what it writes."""

import re

import numpy as np
import pytest
from helpers import slow_elsewhere

import dynzoo
from dynzoo import gallery
from dynzoo.cli import demo
from dynzoo.cli import program as cli
from dynzoo.zoo import shipped


@pytest.fixture
def tiny_preset(tmp_path, monkeypatch):
    model = dynzoo.models.isometric_classifier(
        widths=(8,), steps=(1,), block_size=8, neck_units=16, dense_steps=1
    )
    dynzoo.save_to_preset(model, tmp_path / "presets" / demo.PRESET)
    monkeypatch.setattr(shipped, "root", lambda: tmp_path / "presets")
    monkeypatch.setattr(demo, "EPOCHS", 2)
    monkeypatch.setattr(demo, "ATTACKED", 12)


@slow_elsewhere
def test_demo(tiny_preset, tmp_path, capsys):
    assert cli.main(["demo", "--output", str(tmp_path / "out"), "--seed", "3"]) == 0
    out = capsys.readouterr().out
    before, after = (float(v) for v in re.search(r"(\S+) % before, (\S+) % now", out).groups())
    assert after > before + 20  # a tiny network learns the digits' rough shapes in two epochs
    assert str(tmp_path / "out" / "report.html") in out
    rows = re.findall(r"proved for (\S+) % of all; .*?, (\S+) % proved, (\S+) % survive PGD", out)
    assert len(rows) == len(demo.EPS)
    for _, proved, survive in np.array(rows, dtype=float):
        assert proved <= survive
    html = (tmp_path / "out" / "report.html").read_text()
    assert "fine-tuned on handwritten digits" in html
    assert "<img" in html and "All 360 images" in html
    # the gallery: a line a system, every promise kept, and their picture in the report
    lines = [line for line in out.splitlines() if " kept: " in line]
    assert len(lines) == 13 and "BROKEN" not in out
    assert "The zoo" in html and html.count("(kept)") == 13
    pictures = re.findall(r'alt="Figure: [^"]+" src="data:image/png;base64,([^"]{1000,})"', html)
    assert len(pictures) == 1


def test_gallery():
    found = list(gallery.portraits(times=12))
    assert len(found) == 13 and len({p.title for p in found}) == 13
    for p in found:
        assert p.path.shape == (13, 8, 2) and np.isfinite(p.path).all()
        assert p.guarantee in p.layer.guarantees()
        assert p.kept and 0 <= p.violation <= p.tolerance < 0.8, p
        # something happens: a promise that nothing moves would be an easy one
        assert np.abs(p.path[-1] - p.path[0]).max() > 1e-2


def test_gallery_sees_a_broken_promise(monkeypatch):
    # trajectories that drift outwards: no norm, distance, sum or integral is kept
    drawn = gallery._trajectories

    def pushed(layer, starts, times):
        return drawn(layer, starts, times) * 1.1 ** np.arange(times + 1)[:, None, None]

    monkeypatch.setattr(gallery, "_trajectories", pushed)
    broken = {p.title.split(":")[0] for p in gallery.portraits(times=12) if not p.kept}
    assert {"gradient flow", "spherical flow", "mass preserving", "first integral kept"} <= broken
    assert {"convection-diffusion", "graph diffusion on a ring"} <= broken


def test_demo_without_the_preset(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(shipped, "root", lambda: tmp_path / "none")
    assert cli.main(["demo", "--output", str(tmp_path)]) == 2
    assert f"There is no preset '{demo.PRESET}'" in capsys.readouterr().err
