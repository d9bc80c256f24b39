"""The demo, on a tiny untrained preset: the whole way, and what it writes."""

import re

import numpy as np
import pytest

import dynzoo
from dynzoo import cli, demo
from dynzoo.models import presets


@pytest.fixture
def tiny_preset(tmp_path, monkeypatch):
    model = dynzoo.models.isometric_classifier(
        widths=(8,), steps=(1,), block_size=8, neck_units=16, dense_steps=1
    )
    dynzoo.save_to_preset(model, tmp_path / "presets" / demo.PRESET)
    monkeypatch.setattr(presets, "_root", lambda: tmp_path / "presets")
    monkeypatch.setattr(demo, "EPOCHS", 2)
    monkeypatch.setattr(demo, "ATTACKED", 12)


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


def test_demo_without_the_preset(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(presets, "_root", lambda: tmp_path / "none")
    assert cli.main(["demo", "--output", str(tmp_path)]) == 2
    assert f"There is no preset '{demo.PRESET}'" in capsys.readouterr().err
