"""`import dynzoo`: what it offers, what it registers, and which backend it settles on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import dynzoo
from dynzoo import _startup

ROOT = Path(__file__).resolve().parents[1]

CONTRACT = (
    "presets from_preset save_to_preset project certify evaluate attacks constraints layers losses "
    "operators data models training tuning __version__"
).split()


@pytest.mark.parametrize("name", CONTRACT)
def test_public_names(name):
    assert getattr(dynzoo, name) is getattr(dynzoo, name)
    assert name in dir(dynzoo)
    assert name in dynzoo.__all__


def test_unknown_name():
    with pytest.raises(AttributeError, match="'dynzoo' has no attribute 'tunning'"):
        dynzoo.tunning  # noqa: B018


def test_everything_offered_exists():
    for name in dynzoo.__all__:
        assert getattr(dynzoo, name) is not None


def test_import_registers_classes_for_keras(tmp_path):
    """A model saved by Keras loads in a fresh process that imported nothing but `dynzoo`."""
    model = dynzoo.models.isometric_classifier(
        input_shape=(8, 8, 3), num_classes=3, widths=(16,), steps=(1,), neck_units=8, dense_steps=1
    )
    model.compile(dynzoo.optimizers.RiemannianMuon(0.01), loss=dynzoo.losses.OffsetCrossentropy())
    x = np.random.default_rng(0).random((2, 8, 8, 3), dtype="float32")
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import json, dynzoo, keras, numpy as np; m = keras.saving.load_model('model.keras'); "
        "assert m.optimizer is not None; "
        "print(json.dumps(m.predict(np.load('x.npy'), verbose=0).tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected, atol=1e-5)


# Which backend


@pytest.fixture
def installed(monkeypatch):
    """Pretend that only the given packages are installed."""

    def pretend(*names):
        monkeypatch.setattr(_startup, "_installed", lambda name: name in names)

    return pretend


@pytest.fixture
def home(tmp_path):
    return {"KERAS_HOME": str(tmp_path)}


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("tensorflow", "jax", "torch"), None),
        (("jax", "torch"), "jax"),
        (("torch",), "torch"),
        ((), None),
    ],
)
def test_first_installed_backend(installed, home, there, expected):
    installed(*there)
    assert _startup.choose_backend(home) == expected


def test_environment_wins(installed, home):
    installed("jax")
    assert _startup.choose_backend({**home, "KERAS_BACKEND": "torch"}) is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [('{"backend": "torch"}', None), ('{"backend": "tensorflow"}', "jax"), ("[]", "jax")],
)
def test_keras_configuration_wins(installed, home, tmp_path, content, expected):
    """Keras writes TensorFlow into its file by itself, so that entry decides nothing."""
    installed("jax")
    (tmp_path / "keras.json").write_text(content)
    assert _startup.choose_backend(home) == expected


def test_command_line_wins_over_all(installed, home):
    installed("jax", "torch")
    environment = {**home, "KERAS_BACKEND": "jax"}
    assert _startup.choose_backend(environment, asked="torch") == "torch"
    assert _startup.choose_backend(environment, asked="tensorflow") is None  # main says so
    assert _startup.choose_backend(environment, asked="theano") is None


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["/usr/bin/dynzoo", "--backend", "jax", "list"], [], "jax"),
        (["dynzoo", "--traceback", "--backend=torch", "list"], [], "torch"),
        (["dynzoo", "list", "--backend", "jax"], [], None),
        (["dynzoo", "--backend"], [], None),
        (["pytest", "--backend", "jax"], ["python", "pytest", "--backend", "jax"], None),
        (["-m", "--backend", "jax"], ["python", "-m", "dynzoo", "--backend", "jax"], "jax"),
        (["-m", "--backend", "jax"], ["python", "-m", "pytest", "--backend", "jax"], None),
        ([], [], None),
        ([""], ["python"], None),
    ],
)
def test_backend_on_the_command_line(argv, orig_argv, expected):
    assert _startup.asked_backend(argv, orig_argv) == expected


@pytest.mark.any_backend
def test_backend_option_of_a_real_command(tmp_path):
    other = "jax" if keras.backend.backend() != "jax" else "tensorflow"
    pytest.importorskip(other)
    (tmp_path / "report.json").write_text("{}")  # which is read when Keras is loaded
    command = ["dynzoo", "--backend", other, "compare", "report.json"]
    code = (
        f"import sys; sys.argv = {command}; from dynzoo.cli import main; code = main(); "
        "import keras; print(code, keras.backend.backend())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == f"2 {other}\n"
    assert done.stderr.startswith("dynzoo: error: `path` must be a report")
    assert done.stderr.count("\n") == 1


def test_what_a_library_writes_to_standard_error_is_held(capfd):
    said = [
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "I0000 00:00:1795917691.707845    9746 port.cc:153] oneDNN custom operations are on.",
        "E0000 00:00:1795917721.851579   10053 cuda_platform.cc:52] failed call to cuInit",
        "2026-11-29 02:01:00.123456: W tensorflow/core/x.cc:1] something",
        "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
        "WARNING:absl:Importing a function with ops with unsaved custom gradients.",
    ]
    own = ["a line of the command's own", "F0000 00:00:1795917691.7 9746 port.cc:1] dies"]

    def write():
        os.write(2, "".join(line + "\n" for line in said + own).encode())

    with _startup.held_standard_error(lambda line, _: not _startup.is_tensorflow_talk(line)):
        write()
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err.splitlines() == own
    with pytest.raises(OSError), _startup.held_standard_error(lambda line, failed: failed):
        write()
        raise OSError
    assert capfd.readouterr().err.splitlines() == said + own
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
