"""Exported graphs: the same function, without weights to constrain, and radii that can be derived
from their logits without dynzoo."""

import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import normal

import dynzoo
from dynzoo import backend, layers, operators
from dynzoo.cli import program as cli
from dynzoo.export import exporter as export
from dynzoo.export import formats
from dynzoo.export import runtimes as exported_runtimes
from dynzoo.export.inference_graph import inference_graph
from dynzoo.zoo import shipped

WRITABLE = {
    "tensorflow": ["saved_model", "onnx", "litert"],
    "jax": ["saved_model"],
    "torch": ["torch", "onnx"],
}[backend.name()]
REFUSED = [name for name in export.FORMATS if name not in WRITABLE]


def moved(model, seed=0):
    """The model with weights that are not those of its constraints."""
    for i, variable in enumerate(model.trainable_variables):
        variable.assign(variable + normal(variable.shape, seed + i, 0.05))
    return model


def classifier():
    model = dynzoo.models.isometric_classifier(
        input_shape=(8, 8, 3), num_classes=4, widths=(8,), steps=(2,), neck_units=8, dense_steps=1
    )
    return moved(model)


@pytest.fixture
def available():
    """Skips where a package of a format is not installed."""

    def check(format):
        try:
            formats.check_available(format, backend.name(), run=True)
        except ValueError as reason:
            pytest.skip(str(reason))
        return format

    return check


@pytest.fixture
def model():
    return classifier()


def images(n=9, shape=(8, 8, 3), seed=0):
    return np.random.default_rng(seed).uniform(size=(n, *shape)).astype("float32")


def logits_of(model, x):
    if backend.name() == "jax":  # which would compile each operation by itself
        return model.predict_on_batch(x)
    return backend.to_numpy(model(x, training=False))


# The graph


def _square(units):
    return operators.Pointwise(units)


LAYERS = {
    "gradient": lambda: layers.GradientFlow(_square(4), step_size="learned", steps=2),
    "gradient_rk4": lambda: layers.GradientFlow(operators.Conv(6), integrator="rk4"),
    "shifted": lambda: layers.GradientFlow(operators.ShiftedPointwise(6)),
    "expansive": lambda: layers.GradientFlow(_square(4), direction="expansive", step_size=0.1),
    "implicit": lambda: layers.ImplicitGradientFlow(_square(4), step_size="learned"),
    "softmax": lambda: layers.SoftmaxGradientFlow(4, step_size="learned"),
    "switching": lambda: layers.SwitchingFlow(_square(8)),
    "spherical": lambda: layers.SphericalFlow(_square(4)),
    "cayley": lambda: layers.SphericalFlow(_square(4), integrator="cayley"),
    "presnov": lambda: layers.PresnovFlow(_square(4)),
    "hamiltonian": lambda: layers.HamiltonianFlow(_square(4)),
    "contractive_hamiltonian": lambda: layers.ContractiveHamiltonianFlow(_square(4)),
    "volume": lambda: layers.VolumePreservingFlow(_square(4)),
    "mass": lambda: layers.MassPreservingFlow(_square(4)),
    "integral": lambda: layers.FirstIntegralFlow(_square(4)),
    "diffusion": lambda: layers.ConvectionDiffusionFlow(_square(4)),
    "orthonormal": lambda: layers.OrthonormalPointwise(6, use_bias=True),
    "scale": lambda: layers.LearnedScale(),
    "pooling": lambda: layers.ScaledAveragePooling2D(2),
    "norm_pooling": lambda: layers.L2Pooling2D(2),
    "beta_abs": lambda: layers.BetaAbs(),
    "shift": lambda: layers.MaxMinShift(),
    "mean_shift": lambda: layers.MeanShift([0.5] * 8),
    "offset": lambda: layers.PositionOffset(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_graph_computes_what_the_layer_computes_without_its_weights(name):
    model = keras.Sequential(
        [keras.Input((4, 4, 8)), LAYERS[name](), keras.layers.Flatten(), layers.UnitRowDense(3)]
    )
    moved(model)
    graph = inference_graph(model)
    x = images(5, (4, 4, 8))
    expected = logits_of(model, x)
    if backend.name() != "jax" or name in ("gradient", "shifted", "orthonormal", "diffusion"):
        assert graph.weights == []
    assert np.max(np.abs(logits_of(graph, x) - expected)) <= 1e-5 * np.abs(expected).max()
    for variable in model.trainable_variables:
        variable.assign(variable * 0)
    assert np.allclose(logits_of(graph, x), expected, rtol=1e-5, atol=1e-5)


def test_a_graph_copies_keras_layers_branches_and_shared_layers():
    inputs = keras.Input((4, 4, 8))
    shared = keras.layers.Conv2D(8, 3, padding="same", activation="relu")
    x = keras.layers.BatchNormalization()(shared(inputs))
    x = keras.layers.Add()([shared(keras.layers.Dropout(0.5)(x)), inputs])
    outputs = keras.layers.Dense(3)(keras.layers.Flatten()(layers.MaxMin()(x)))
    model = moved(keras.Model(inputs, outputs))
    model.layers[2].moving_mean.assign(normal((8,), 3))
    calls = [len(layer._inbound_nodes) for layer in model.layers]
    graph = inference_graph(model)
    x = images(5, (4, 4, 8))
    assert np.allclose(logits_of(graph, x), logits_of(model, x), atol=1e-5)
    assert [len(layer._inbound_nodes) for layer in model.layers] == calls
    assert not {id(v) for v in graph.variables} & {id(v) for v in model.variables}
    assert not any("dropout" in layer.name for layer in graph.layers)


def test_mixed_precision_is_refused():
    policy = keras.mixed_precision.DTypePolicy("mixed_bfloat16")
    model = keras.Sequential([keras.Input((6,)), layers.UnitRowDense(3, dtype=policy)])
    with pytest.raises(ValueError, match="mixed precision"):
        inference_graph(model)


@pytest.mark.slow
def test_the_preset_keeps_its_logits():
    model = dynzoo.from_preset("isometric_small_cifar10")
    x = images(4, (32, 32, 3))
    graph = inference_graph(model)
    assert np.max(np.abs(logits_of(graph, x) - logits_of(model, x))) <= 1e-5


# The folder


def by_hand(logits, certificate, x):
    """The formula in the certificate, word by word."""
    z, labels = logits.astype(np.float64), logits.argmax(axis=1)
    rounding, root = certificate["rounding"], np.sqrt(2)
    radii = np.zeros(len(z))
    for n, (row, i, image) in enumerate(zip(z, labels, x, strict=True)):
        for k, anchor in enumerate(rounding["anchors"]):
            s = np.linalg.norm(image.astype(np.float64) - anchor)
            for kind, f in (("worst-case", 2), ("probable", root)):
                body = [part[k] for part in rounding["body"][kind]]
                head = [part[k] for part in rounding["head"][kind]]
                limits = []
                for j in set(range(len(row))) - {i}:
                    d = certificate["pair_distances"][i][j]
                    e = d * (body[0] + body[1] * s) + root * (head[0] + head[1] * s)
                    speed = d * (certificate["body_lipschitz"] + body[1]) + root * head[1]
                    limits.append((1 - 1e-12) * (row[i] - row[j] - f * e) / speed)
                radii[n] = max(radii[n], min(limits))
    return labels, radii


@pytest.mark.parametrize("format", WRITABLE)
def test_an_export_runs_without_dynzoo_and_gives_the_radii(format, model, tmp_path, available):
    folder = tmp_path / "new" / "exported"
    written = export.export_model(model, folder, available(format), source={"preset": "tiny"})
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate == written and certificate["certified"]
    assert certificate["source"] == {"preset": "tiny"} and certificate["check"]["images"] == 100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new"]  # nothing else is left behind
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "certificate.json"]
    hashes = certificate["graph"]["sha256"]
    assert {p.relative_to(folder).as_posix() for p in files} == set(hashes)

    run, _ = exported_runtimes.load(format, folder / certificate["graph"]["file"])
    own = dynzoo.certify(model)
    for n in (1, 9):  # the batch size is open
        x = images(n, seed=n)
        logits = run(x)
        assert np.max(np.abs(logits - logits_of(model, x))) <= 1e-5
        labels, radii = export.radii(logits, folder / "certificate.json", x)
        expected_labels, expected = own.radii(x)
        assert np.array_equal(labels, expected_labels) and np.any(radii > 0)
        shortest = own.pair_distances[own.pair_distances > 0].min() * own.body_lipschitz
        assert np.all(np.abs(radii - expected) <= 4 * own.rounding / shortest)
        assert np.allclose(radii, expected, atol=1e-3)
        again = by_hand(logits, certificate, x)
        assert np.array_equal(again[0], labels) and np.allclose(again[1], radii, rtol=1e-9)
        # Without the images every one may be a corner of the range; worst-case is less still.
        unseen = export.radii(logits, certificate)[1]
        worst = export.radii(logits, certificate, x, rounding="worst-case")[1]
        assert np.all(unseen <= radii) and np.all(worst <= radii) and np.any(unseen > 0)
    assert 0 < certificate["check"]["largest_logit_error"] < own.rounding


def test_distances_in_the_certificate_are_upper_bounds(model):
    kernel = np.asarray(keras.ops.convert_to_numpy(model.layers[-1].kernel), np.longdouble)
    kernel /= np.sqrt((kernel**2).sum(axis=0))
    exact = np.sqrt(((kernel[:, :, None] - kernel[:, None, :]) ** 2).sum(axis=0))
    numbers = export.numbers_of(dynzoo.certify(model))
    listed = np.array(json.loads(json.dumps(numbers))["pair_distances"])
    assert np.all(listed >= exact) and np.allclose(listed, exact.astype(float), atol=1e-9)


def test_a_graph_that_differs_is_removed(model, tmp_path, available, monkeypatch):
    format = available(WRITABLE[0])
    other = keras.models.clone_model(model)
    other.set_weights([w + 1e-3 for w in model.get_weights()])
    monkeypatch.setattr(export, "inference_graph", lambda _: inference_graph(other))
    with pytest.raises(export.ExportCheckError, match="differ"):
        export.export_model(model, tmp_path / "exported", format)
    assert list(tmp_path.iterdir()) == []


def test_radii_beyond_rounding_are_refused(model):
    certificate = dynzoo.certify(model)
    x = images()
    logits = logits_of(model, x)
    assert export._compare_radii(certificate, logits, x) < 1e-5
    with pytest.raises(export.ExportCheckError, match="radii"):
        export._compare_radii(certificate, logits * 1.01, x)


def test_an_existing_path_is_left_alone(model, tmp_path):
    (tmp_path / "exported").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        export.export_model(model, tmp_path / "exported", WRITABLE[0], check=False)
    assert list((tmp_path / "exported").iterdir()) == []


def test_arguments_of_another_kind_are_named(model, tmp_path):
    for path in (None, 3, ""):
        with pytest.raises(ValueError, match="`path` must be the path of a folder"):
            export.export_model(model, path, WRITABLE[0], check=False)
    with pytest.raises(ValueError, match="`format` must be one of"):
        export.export_model(model, tmp_path / "new", [WRITABLE[0]], check=False)
    for source in (3, "isometric"):
        with pytest.raises(ValueError, match="`source` must be a mapping"):
            export.export_model(model, tmp_path / "new", WRITABLE[0], check=False, source=source)


def test_a_model_without_a_certificate_says_so(tmp_path, available):
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    )
    format = available(WRITABLE[0])
    written = export.export_model(model, tmp_path / "exported", format)
    assert not written["certified"] and "softmax" in written["reason"]
    assert written["check"]["largest_logit_difference"] <= 1e-4
    with pytest.raises(ValueError, match="no certificate.*softmax"):
        export.radii(np.zeros((1, 3)), tmp_path / "exported" / "certificate.json")


@pytest.mark.skipif(backend.name() != "tensorflow", reason="keeps the state of the draws")
def test_a_model_that_draws_is_exported_without_a_certificate(tmp_path):
    flow = layers.ConvectionDiffusionFlow(_square(4), sigma=0.5, inference="random", seed=0)
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), flow, keras.layers.Flatten(), layers.UnitRowDense(3)]
    )
    written = export.export_model(model, tmp_path / "exported", "saved_model")
    assert not written["certified"] and "random" in written["reason"]
    run, _ = exported_runtimes.load("saved_model", tmp_path / "exported" / "saved_model")
    x = images(3, (4, 4, 3))
    assert np.max(np.abs(run(x) - run(x))) > 1e-3  # a fresh draw in each pass


def test_a_graph_that_cannot_be_read_is_exported_as_it_is(tmp_path, available):
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(3)(keras.layers.Flatten()(keras.ops.square(inputs - 0.5)))
    format = available(WRITABLE[0])
    written = export.export_model(keras.Model(inputs, outputs), tmp_path / "exported", format)
    assert "its slope has no bound" in written["reason"] and written["check"] is not None


def test_without_the_check_nothing_is_run(model, tmp_path, available, monkeypatch):
    format = available(WRITABLE[0])
    monkeypatch.setattr(export, "load", lambda *_: pytest.fail("the graph was run"))
    written = export.export_model(model, tmp_path / "exported", format, check=False)
    assert written["check"] is None and written["certified"] and written["rounding"]["peak"]


# Arguments and the command


def test_two_inputs_are_refused(tmp_path):
    inputs = [keras.Input((4,)), keras.Input((4,))]
    model = keras.Model(inputs, keras.layers.Add()(inputs))
    with pytest.raises(ValueError, match="one input of fixed shape"):
        export.export_model(model, tmp_path / "exported", WRITABLE[0], check=False)


@pytest.mark.parametrize("format", REFUSED)
def test_a_backend_that_cannot_write_a_format_names_the_way_around(format, model, tmp_path):
    with pytest.raises(ValueError, match="--backend (torch|tensorflow)") as error:
        export.export_model(model, tmp_path / "exported", format)
    assert backend.name() not in str(error.value).split("use ")[1]


def test_missing_packages_are_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr(exported_runtimes.importlib.util, "find_spec", lambda name: None)
    for name, about in export.FORMATS.items():
        if needed := about.packages.get(backend.name()):
            with pytest.raises(ValueError, match="pip install .*" + needed[0]):
                export.export_model(model, tmp_path / "exported", name)


@pytest.mark.parametrize("x", [np.zeros((2, 4, 4, 3)), np.zeros((2, 8, 8, 3), np.uint8)])
def test_images_of_another_kind_are_refused(x, model, tmp_path):
    with pytest.raises(ValueError, match="`x` must be float images"):
        export.export_model(model, tmp_path / "exported", WRITABLE[0], x=x, check=False)


def test_logits_of_other_classes_are_refused(model):
    with pytest.raises(ValueError, match=r"`logits` must have shape \(n, 4\)"):
        export.radii(np.zeros((2, 5)), export.numbers_of(dynzoo.certify(model)))


@pytest.fixture
def tiny(model, tmp_path, monkeypatch):
    dynzoo.save_to_preset(model, tmp_path / "presets" / "tiny")
    monkeypatch.setattr(shipped, "root", lambda: tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_exports_a_preset(tiny, available, capsys):
    format = available(WRITABLE[0])
    x = (255 * images(12)).astype(np.uint8)
    y = np.arange(12) % 4
    np.savez(tiny / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    command = ["export", "tiny", "--format", format, "--data", "data.npz", "--radii"]
    assert cli.main(command) == 0
    folder = tiny / "runs" / f"tiny_{format}"
    assert str(folder) in capsys.readouterr().out
    about = json.loads((folder / "certificate.json").read_text())
    assert about["source"]["preset"] == "tiny" and about["check"]["images"] == 12
    assert about["graph"]["outputs"] == ["logits", "labels", "radii"]
    listed = json.loads((tiny / "presets" / "tiny" / "metadata.json").read_text())["files"]
    assert about["source"]["files"] == listed

    before = sorted(p.name for p in folder.parent.iterdir())
    assert cli.main(["export", "tiny", "--format", format]) == 2  # it exists
    assert cli.main(["export", "tiny", "--format", REFUSED[0], "--output", "other"]) == 2
    assert cli.main(["export", "nothing", "--format", format, "--output", "other"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all(line.startswith("dynzoo: error: ") for line in errors)
    assert sorted(p.name for p in folder.parent.iterdir()) == before
    assert not (tiny / "other").exists()


def test_an_unwritable_folder_is_one_line(tiny, available, capsys):
    format = available(WRITABLE[0])
    (tiny / "file").write_text("")
    shutil.rmtree(tiny / "runs", ignore_errors=True)
    assert cli.main(["export", "tiny", "--format", format, "--output", "file/exported"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_standard_error_is_free_of_tensorflow(tiny, available):
    format = available(WRITABLE[0] if backend.name() != "torch" else "onnx")
    command = [sys.executable, "-m", "dynzoo", "--backend", backend.name(), "export"]
    command += [str(tiny / "presets" / "tiny"), "--format", format, "--output", "quiet"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and (tiny / "quiet" / "certificate.json").is_file()
