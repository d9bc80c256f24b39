import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import keras
import pytest
import yaml

import dynzoo

ROOT = Path(__file__).resolve().parents[1]


def _python(code, cwd, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def test_import_is_light_and_silent():
    """Keras itself imports TensorFlow on any backend if it is there; dynzoo must add nothing."""
    heavy = ("keras_tuner", "tensorflow_datasets", "matplotlib", "sklearn", "rich", "tensorflow")
    code = (
        "import io, json, sys; import keras; before = set(sys.modules); "
        "sys.stdout = out = io.StringIO(); import dynzoo; sys.stdout = sys.__stdout__; "
        f"added = [m for m in {heavy} if m in set(sys.modules) - before]; "
        "print(json.dumps([added, out.getvalue()]))"
    )
    assert json.loads(_python(code, ROOT)) == [[], ""]


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] == dynzoo.__version__
    assert f"\n## {dynzoo.__version__}\n" in changes


def test_python_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    least = project["project"]["requires-python"].removeprefix(">=")
    named = [c.rpartition(" :: ")[2] for c in project["project"]["classifiers"] if "3." in c]
    assert min(named, key=lambda v: int(v.partition(".")[2])) == least
    assert project["tool"]["mypy"]["python_version"] == least
    assert project["tool"]["ruff"]["target-version"] == "py" + least.replace(".", "")
    for name in ("README.md", "scripts/venv.sh"):
        assert f"Python {least} or newer" in (ROOT / name).read_text(encoding="utf-8")


def test_hooks_run_what_ci_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    checks = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (repo,) = hooks["repos"]
    for hook in repo["hooks"]:
        assert f"step {hook['entry'].removesuffix(' --force-exclude')}\n" in checks


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist and the wheel, made by the declared build back-end without a download."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    code = (
        "from hatchling import build; "
        f"build.build_sdist({str(folder)!r}); build.build_wheel({str(folder)!r}); print('ok')"
    )
    assert _python(code, ROOT) == "ok"
    return folder


@pytest.mark.slow
def test_wheel_and_sdist_hold_presets_and_recipes(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        wheel = archive.namelist()
        listed = next(name for name in wheel if name.endswith("entry_points.txt"))
        entry_points = archive.read(listed).decode()
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        sdist = archive.getnames()
    for kind, inside in (("pretrained", "_pretrained"), ("zoo_configs", "_zoo_configs")):
        for file in (ROOT / kind).rglob("*"):
            if not file.is_file() or file.name.startswith("."):
                continue
            name = file.relative_to(ROOT / kind).as_posix()
            assert f"dynzoo/{inside}/{name}" in wheel
            assert any(entry.endswith(f"/{kind}/{name}") for entry in sdist)
    for kind in (wheel, [entry.partition("/")[2] for entry in sdist]):
        assert "dynzoo/zoo/published_results.csv" in kind and "dynzoo/py.typed" in kind
    assert "dynzoo = dynzoo.cli:main" in entry_points
    assert not [name for name in wheel if name.startswith(("tests/", "pretrained/"))]


@pytest.mark.slow
def test_wheel_works_outside_the_checkout(built, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        archive.extractall(site)
    code = (
        "import json, dynzoo; from dynzoo.zoo import preset_folder as p; "
        "[p.from_preset(name) for name in p.presets()]; "
        "print(json.dumps([dynzoo.__file__, sorted(p.presets())]))"
    )
    where, names = json.loads(_python(code, tmp_path, PYTHONPATH=str(site)))
    assert Path(where).is_relative_to(site)
    committed = [f.parent.name for f in sorted((ROOT / "pretrained").glob("*/metadata.json"))]
    assert names == sorted(committed)


@pytest.mark.slow
def test_preset_of_one_backend_loads_on_the_others(tmp_path):
    """Weights, batch statistics and the state of the random generators cross over."""
    write = (
        "import keras, numpy as np; from dynzoo.zoo import preset_folder; "
        "from dynzoo import layers as dl; from dynzoo.augmentation import batches as a; "
        "from keras import layers as kl; "
        "keras.utils.set_random_seed(0); "
        "m = keras.Sequential([keras.Input((8, 8, 3)), a.RandomCropFlip(1), dl.SpaceToDepth(2), "
        "kl.Conv2D(8, 3), kl.BatchNormalization(), kl.Dropout(0.1), dl.MaxMin(), kl.Flatten(), "
        "dl.OrthonormalDense(8), dl.UnitRowDense(3)]); preset_folder.save_to_preset(m, 'p'); "
    )
    read = (
        "import numpy as np, keras; from dynzoo.zoo import preset_folder; "
        "m = preset_folder.from_preset('p'); x = np.random.default_rng(0).random((4, 8, 8, 3)); "
        "print(m.predict(x.astype('float32'), verbose=0).tolist())"
    )
    here = {"KERAS_BACKEND": keras.backend.backend(), "PYTHONPATH": str(ROOT)}
    _python(write + "print('ok')", tmp_path, **here)
    expected = json.loads(_python(read, tmp_path, **here))
    for other in ("tensorflow", "jax", "torch"):
        pytest.importorskip(other)
        logits = json.loads(_python(read, tmp_path, **{**here, "KERAS_BACKEND": other}))
        for row, expected_row in zip(logits, expected, strict=True):
            assert row == pytest.approx(expected_row, abs=2e-6)
