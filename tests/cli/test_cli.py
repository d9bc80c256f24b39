"""The command: exit codes, one-line errors, and each subcommand on a tiny preset and tiny data."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from helpers import slow_elsewhere
from PIL import Image

import dynzoo
from dynzoo.cli import program as cli
from dynzoo.inference import image_files
from dynzoo.training import loop, recipes
from dynzoo.zoo import measurement as measuring
from dynzoo.zoo import shipped

SMALL = dict(widths=(8,), steps=(1,), neck_units=8, dense_steps=1)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A preset of 8 x 8 images in three classes that is mostly right on `images`, and its data."""
    folder = tmp_path_factory.mktemp("cli")
    model = dynzoo.models.isometric_classifier(input_shape=(8, 8, 3), num_classes=3, **SMALL)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (72, 8, 8, 3), dtype=np.uint8)
    y = model.predict(x / np.float32(255), verbose=0).argmax(axis=1).astype("int64")
    y[:6] = (y[:6] + 1) % 3  # so that accuracy is a number of its own: 11/12 on the first 72
    y[-3:] = [0, 1, 2]
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    dynzoo.save_to_preset(
        model,
        folder / "presets" / "tiny",
        {
            "description": "A tiny one.",
            "dataset": str(folder / "data.npz"),
            "accuracy": 0.25,
            "certified_accuracy": {"36/255": 0.125},
            "recipe": {"evaluation": {"norm": "l2", "eps": [0.01, 36 / 255]}},
        },
    )
    return folder


@pytest.fixture
def tiny(original, tmp_path, monkeypatch):
    """A fresh copy, shipped under the name `tiny`; the working directory is empty."""
    shutil.copytree(original / "presets", tmp_path / "presets")
    monkeypatch.setattr(shipped, "root", lambda: tmp_path / "presets")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "presets" / "tiny"


@pytest.fixture
def file(original):
    return str(original / "data.npz")


@pytest.fixture
def fails(capsys):
    """Check that a command fails with the given code and one line on standard error."""

    def run(*arguments, code=2):
        capsys.readouterr()
        assert cli.main([str(a) for a in arguments]) == code
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and captured.err.endswith("\n"), captured.err
        assert "Traceback" not in captured.err
        return captured.err

    return run


# Help, version, wrong arguments


@pytest.mark.parametrize(
    "arguments", [[], *([c] for c in "list info demo evaluate train search".split())]
)
def test_help(arguments, capsys):
    assert cli.main([*arguments, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("usage: dynzoo") and not captured.err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dynzoo {dynzoo.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["info"], "required: PRESET"),
        (["evaluate", "tiny", "--limit", "0"], "--limit: must be at least 1, not 0"),
        (["evaluate", "tiny", "--limit", "many"], "--limit: invalid"),
        (["evaluate", "tiny", "--eps", "36/0"], "--eps: must be positive numbers"),
        (["evaluate", "tiny", "--eps", "0.1,-1"], "--eps: must be positive numbers"),
        (["evaluate", "tiny", "--eps", "inf"], "--eps: must be positive numbers"),
        (["evaluate", "tiny", "--norm", "l7"], "invalid choice: 'l7'"),
        (["finetune", "tiny"], "one of the arguments --data --dataset is required"),
        (["--backend", "theano", "list"], "invalid choice: 'theano'"),
    ],
)
def test_wrong_arguments(fails, arguments, message):
    error = fails(*arguments)
    assert message in error and "--help" in error


def test_backend_that_does_not_run(fails):
    other = "torch" if keras.backend.backend() != "torch" else "jax"
    assert f"not on {other}: is {other} installed?" in fails("--backend", other, "list")
    assert cli.main(["--backend", keras.backend.backend(), "list"]) == 0


def test_interrupt(monkeypatch, fails):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(shipped, "presets", interrupted)
    said = "dynzoo: interrupted; nothing new was kept, start again: dynzoo list\n"
    assert fails("list", code=130) == said


def test_own_mistakes_are_not_hidden(monkeypatch):
    monkeypatch.setattr(shipped, "presets", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["list"])


def test_traceback_on_request(tiny):
    with pytest.raises(ValueError, match="no preset 'nope'"):
        cli.main(["--traceback", "info", "nope"])


# list, info


def test_list(tiny, capsys):
    assert cli.main(["list"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "tiny" in line)
    assert "25.00 %" in line and "12.50 % at 36/255" in line


def test_leaderboard(tiny, capsys, fails):
    about = json.loads((tiny / "metadata.json").read_text())
    (tiny / "metadata.json").write_text(json.dumps({**about, "dataset": "cifar10"}))
    assert cli.main(["list", "--leaderboard", "--dataset", "cifar10"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "tiny" in line)
    assert line.split()[-1] == "dynzoo" and "25.00" in line and "12.50" in line and "–" in line
    assert "LipNeXt" in out and "cifar100" not in out
    for name in ("sub/board.md", "board.csv"):
        assert cli.main(["list", "--leaderboard", "--output", name]) == 0
        text = (tiny.parents[1] / "work" / name).read_text(encoding="utf-8")
        assert "tiny" in text and "cifar100" in text
    assert "must end in .md or .csv" in fails("list", "--leaderboard", "--output", "board.txt")
    assert "must be one of cifar10" in fails("list", "--leaderboard", "--dataset", "svhn")
    assert "needs --leaderboard" in fails("list", "--dataset", "cifar10")


def test_list_without_presets(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(shipped, "root", lambda: tmp_path)
    assert cli.main(["list"]) == 0
    assert "No presets" in capsys.readouterr().out


def test_info(tiny, capsys):
    for name in ("tiny", str(tiny)):
        assert cli.main(["info", name]) == 0
        out = capsys.readouterr().out
        for part in ("A tiny one.", "8 x 8 x 3", "25.00 %", "model.weights.h5", tiny.name):
            assert part in out
        assert f'dynzoo.from_preset("{name}")' in out


def test_unknown_and_damaged_presets(tiny, fails):
    assert "There is no preset 'nope'" in fails("info", "nope")
    weights = tiny / "model.weights.h5"
    weights.write_bytes(weights.read_bytes()[:-1])
    for command in ("evaluate", "finetune"):
        assert "model.weights.h5 is damaged" in fails(command, "tiny", "--dataset", "digits")


# evaluate


def _rows(out):
    """The cells of a printed table, by radius."""
    rows = {}
    for line in out.splitlines():
        cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
        if len(cells) > 1 and cells[-1].endswith("%"):
            rows[cells[0]] = cells[1:]
    return rows


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(3)
    (tmp_path / "photos").mkdir()
    for name, size in (("a.png", (12, 9)), ("b.png", (12, 9))):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_predict_in_words_and_as_tables(tiny, photos, capsys):
    assert cli.main(["predict", "tiny", str(photos), "--output", "table.csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2] == "table: table.csv"
    assert lines[0].startswith(f"{photos / 'a.png'}: ") and "under every change" in lines[0]
    assert cli.main(["predict", "tiny", str(photos), "--format", "csv"]) == 0
    printed = capsys.readouterr().out
    assert printed == (tiny.parents[1] / "work/table.csv").read_text()
    assert cli.main(["predict", "tiny", str(photos / "b.png"), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["unit"] == "L2, pixels in [0, 1]" and row["certified_radius"] > 0


def test_predict_certifies_the_pixels_of_the_file(tiny, photos, capsys, fails, monkeypatch):
    command = ["predict", "tiny", str(photos), "--certify-pixels", "--format", "json"]
    read, opened = image_files.read_image, []
    monkeypatch.setattr(
        image_files, "read_image", lambda file, **k: opened.append(file) or read(file, **k)
    )
    assert cli.main(command) == 0
    assert opened == [photos / "a.png", photos / "b.png"]  # each once
    rows = json.loads(capsys.readouterr().out)
    assert [row["unit"] for row in rows] == ["L2, pixels in [0, 255]"] * 2
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(photos / "c.png")
    error = fails(*command)
    assert "--certify-pixels needs pictures of one size" in error and "5 x 5" in error


def test_predict_refuses(tiny, photos, fails):
    assert "There is no file gone.png" in fails("predict", "tiny", "gone.png")
    assert "must end in .csv or .json" in fails(
        "predict", "tiny", str(photos), "--output", "table.txt"
    )
    (photos / "d.png").write_bytes(b"no picture")
    assert "d.png is not a readable image" in fails("predict", "tiny", str(photos))


def test_evaluate_certifies_all_and_attacks_the_first(tiny, capsys):
    assert cli.main(["evaluate", "tiny", "--attacks", "fast", "--attack-limit", "12"]) == 0
    out = capsys.readouterr().out
    rows = _rows(out)
    assert list(rows) == ["0 (clean)", "0.01", "36/255"]
    for cells in rows.values():
        certified_first, attacked = (float(cell.split()[0]) for cell in cells[1:])
        assert len(cells) == 3 and certified_first <= attacked
    model = dynzoo.from_preset(tiny)
    with np.load(json.loads((tiny / "metadata.json").read_text())["dataset"]) as arrays:
        x, y = arrays["x_test"] / np.float32(255), arrays["y_test"]
    labels, radii = dynzoo.certify(model).radii(x)
    assert rows["0 (clean)"][0] == f"{100 * (labels == y).mean():.2f} %"
    assert rows["0.01"][0] == f"{100 * ((labels == y) & (radii > 0.01)).mean():.2f} %"
    assert f"{dynzoo.certify(model).lipschitz:.6g}" in out


def test_evaluate_writes_the_report(tiny, capsys):
    arguments = "evaluate tiny --limit 8 --attacks fast --eps 1/50 --output sub/report.json".split()
    assert cli.main(arguments) == 0
    report = json.loads((tiny.parents[1] / "work/sub/report.json").read_text())
    assert report["images"] == 8 and report["eps"] == [0.02]
    assert "sub/report.json" in capsys.readouterr().out


def test_evaluate_reports_what_is_certified_alone(tiny, capsys):
    work = tiny.parents[1] / "work"
    for name in ("r.json", "r.html", "r.csv"):
        command = ["evaluate", "tiny", "--attacks", "none", "--audit", "--output", name]
        assert cli.main(command) == 0
        assert "under attack" not in capsys.readouterr().out
    report = json.loads((work / "r.json").read_text())
    assert report["images"] == 72 and set(report["robust"].values()) == {None}
    assert "tightness" in (work / "r.html").read_text(encoding="utf-8")
    labels, radii = dynzoo.certify(dynzoo.from_preset(tiny)).radii(_pixels(tiny))
    assert len((work / "r.csv").read_text().splitlines()) == 73
    proved = np.array(report["per_image"]["radii"])
    np.testing.assert_array_equal(proved, np.where(report["per_image"]["correct"], radii, 0.0))
    assert cli.main(["compare", "r.json", "r.json", "--output", "both.html"]) == 0


def test_evaluate_measures_prediction_sets(tiny, capsys, fails):
    command = "evaluate tiny --attacks none --prediction-sets 0.2 --output r.json".split()
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "prediction sets: 36 images calibrate, 36 are measured" in out
    report = json.loads((tiny.parents[1] / "work/r.json").read_text())
    sets = report["prediction_sets"]
    assert sets["alpha"] == 0.2 and f"{100 * sets['certified_coverage']:.2f} %" in out
    assert list(sets["coverage"]) == ["0.0", "0.01", repr(36 / 255)]
    assert "`prediction_sets` must be in" in fails(
        "evaluate", "tiny", "--attacks", "none", "--prediction-sets", "1"
    )


def test_evaluate_decides_at_each_image(tiny, capsys, fails):
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    metadata = json.loads((tiny / "metadata.json").read_text())
    dynzoo.save_to_preset(model, "dense", {"dataset": metadata["dataset"]})
    command = "evaluate dense --limit 6 --eps 0.01,0.5 --local complete --time-limit 5".split()
    assert cli.main([*command, "--attacks", "none", "--output", "r.json"]) == 0
    out = capsys.readouterr().out
    assert "at the image (complete), 6 images" in out and "falsified" in out
    for shares in json.loads(Path("r.json").read_text())["decisions"].values():
        assert sum(shares.values()) == pytest.approx(1.0) and shares["unknown"] == 0.0
    assert "--time-limit needs" in fails("evaluate", "dense", "--time-limit", "5")


def _pixels(preset):
    with np.load(json.loads((preset / "metadata.json").read_text())["dataset"]) as arrays:
        return arrays["x_test"] / np.float32(255)


@slow_elsewhere
def test_evaluate_goes_on_audits_and_corrupts(tiny, capsys):
    arguments = (
        "evaluate tiny --limit 8 --attacks apgd-ce,pgd --eps 1/50,2.0 --attack-certified none "
        "--audit --corruptions --checkpoint state.npz --output"
    ).split()
    work = tiny.parents[1] / "work"
    assert cli.main([*arguments, "report.html"]) == 0
    first = capsys.readouterr().out
    assert "APGD-ce" in first and (work / "state.npz").exists()
    page = (work / "report.html").read_text(encoding="utf-8")
    assert "tightness" in page and "orruptions" in page and "attacked there by none" in page
    assert cli.main([*arguments[:-1], "--output", "outcomes.csv"]) == 0
    assert "APGD-ce" not in capsys.readouterr().out  # all of it was in the checkpoint
    assert (work / "outcomes.csv").read_text().count("\n") == 9


def test_evaluate_linf_is_the_converted_certificate(tiny, capsys):
    arguments = "evaluate tiny --attacks none --eps 0.001 --norm".split()
    assert cli.main([*arguments, "linf"]) == 0
    linf = _rows(capsys.readouterr().out)
    eps = 0.001 * np.sqrt(8 * 8 * 3)
    assert cli.main(["evaluate", "tiny", "--attacks", "none", "--eps", repr(float(eps))]) == 0
    l2 = _rows(capsys.readouterr().out)
    assert list(linf.values()) == list(l2.values())


@slow_elsewhere
def test_update_card(tiny):
    before = json.loads((tiny / "metadata.json").read_text())
    command = "evaluate tiny --update-card --attacks fast --attack-limit 10 --limit 30"
    assert cli.main(command.split()) == 0
    after = json.loads((tiny / "metadata.json").read_text())
    assert after["files"] == before["files"] and after["dataset"] == before["dataset"]
    assert set(after["certified_accuracy"]) == set(after["attacked_accuracy"]) == {"0.01", "36/255"}
    assert after["accuracy"] == 24 / 30 and after["lipschitz"] > 0
    how = after["evaluation"]
    assert (how["images"], how["attacked_images"]) == (30, 10)
    assert how["command"].startswith("dynzoo evaluate tiny --update-card --limit 30")
    assert cli.main(how["command"].split()[1:]) == 0
    assert json.loads((tiny / "metadata.json").read_text()) == after
    card = (tiny / "README.md").read_text()
    assert "80.00 %" in card and how["command"] in card and "25.00 %" not in card
    assert dynzoo.from_preset(tiny).name == "isometric"
    assert {p.name for p in tiny.iterdir()} == {*before["files"], "metadata.json", "README.md"}


def test_an_audit_goes_onto_the_card_and_no_further(tiny):
    command = "evaluate tiny --update-card --attacks fast --limit 6 --eps 36/255,0.5"
    assert cli.main([*command.split(), "--audit"]) == 0
    after = json.loads((tiny / "metadata.json").read_text())
    assert 0 < after["audited_slope"] <= after["lipschitz"]
    assert set(after["attacked_accuracy"]) == {"36/255", "0.5"}
    assert after["evaluation"]["command"].endswith(" --audit")
    card = (tiny / "README.md").read_text()
    assert f"largest slope that an audit found: {after['audited_slope']:.6g}" in card
    # numbers are replaced as a whole: the slope was not measured now
    assert cli.main(command.split()) == 0
    again = json.loads((tiny / "metadata.json").read_text())
    assert "audited_slope" not in again and "audit" not in (tiny / "README.md").read_text()


def test_card_without_attacks_keeps_no_old_ones(tiny, file):
    model = dynzoo.from_preset(tiny)
    (_, _), (x, y) = dynzoo.data.load(file)
    full = measuring.measure(model, x[:8], y[:8], eps=[0.01], attacks="fast")
    measuring.update_card(tiny, full, {"split": "test"})
    assert "attacked_accuracy" in json.loads((tiny / "metadata.json").read_text())
    proved = measuring.measure(model, x[:8], y[:8], eps=[0.01], attacks="none")
    metadata = measuring.update_card(tiny, proved, {"split": "test"})
    assert "attacked_accuracy" not in metadata
    assert metadata == json.loads((tiny / "metadata.json").read_text())


def test_certified_numbers_alone_may_be_measured_anew(tiny, fails):
    command = "evaluate tiny --update-card --attacks fast --attack-limit 10 --limit 30"
    assert cli.main(command.split()) == 0
    before = json.loads((tiny / "metadata.json").read_text())
    again = "evaluate tiny --update-card --attacks none --keep-attacks --limit 20"
    assert cli.main(again.split()) == 0
    after = json.loads((tiny / "metadata.json").read_text())
    assert after["attacked_accuracy"] == before["attacked_accuracy"]
    how = after["evaluation"]
    assert how["command"] == before["evaluation"]["command"] and how["images"] == 20
    assert "--keep-attacks" in how["certified_numbers"]
    assert "--keep-attacks" in (tiny / "README.md").read_text()
    assert "--keep-attacks" in fails("evaluate", "tiny", "--keep-attacks")


def test_command_on_a_card_without_attacks_makes_that_card(tiny):
    assert cli.main("evaluate tiny --update-card --attacks none --limit 8".split()) == 0
    about = json.loads((tiny / "metadata.json").read_text())
    assert "attacked_accuracy" not in about
    assert cli.main(about["evaluation"]["command"].split()[1:]) == 0
    assert json.loads((tiny / "metadata.json").read_text()) == about


def test_evaluate_refuses(tiny, file, fails, tmp_path):
    assert "There is no data file gone.npz" in fails("evaluate", "tiny", "--data", "gone.npz")
    assert "must be one of" in fails("evaluate", "tiny", "--dataset", "imagenet")
    assert "images of shape (32, 32, 3)" in fails("evaluate", "tiny", "--dataset", "digits")
    assert "needs attacks" in fails(
        "evaluate", "tiny", "--attacks", "none", "--checkpoint", "c.npz"
    )
    assert "one of .html, .json" in fails("evaluate", "tiny", "--output", "r.pdf")
    assert "must name one of" in fails("evaluate", "tiny", "--attacks", "fast,strong")
    assert "--norm l2" in fails("evaluate", "tiny", "--norm", "linf", "--update-card")
    (_, _), (x, y) = dynzoo.data.load(file)
    np.savez(tmp_path / "more.npz", x_train=x, y_train=y + 2, x_test=x, y_test=y + 2)
    more = fails("evaluate", "tiny", "--data", tmp_path / "more.npz")
    assert "3 classes" in more and "label 4" in more


def test_evaluate_names_the_layer_without_a_certificate(tmp_path, file, fails):
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    )
    dynzoo.save_to_preset(model, tmp_path / "plain", {"dataset": file})
    assert "softmax" in fails("evaluate", tmp_path / "plain", "--attacks", "none").lower()


def test_data_that_is_nowhere(tiny, fails, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(dynzoo.data.datasets, "_unreachable", lambda url: "no network")
    assert "TFDS_DATA_DIR" in fails("evaluate", "tiny", "--dataset", "cifar10")


def test_refuted_certificate_has_its_own_code(tiny, fails, monkeypatch):
    def refuted(*args, **kwargs):
        x = np.zeros((2, 2), "float32")
        raise dynzoo.robustness.CertificateViolation(7, x, x, 0.5, 0.1, 1, 2)

    monkeypatch.setattr(measuring, "evaluate", refuted)
    assert "Image 7 is certified" in fails("evaluate", "tiny", code=1)


# finetune


def test_finetune(tiny, file, capsys):
    arguments = ["finetune", "tiny", "--data", file, "--epochs", "2", "--batch-size", "16"]
    assert cli.main([*arguments, "--num-classes", "4", "--limit", "32"]) == 0
    out = capsys.readouterr().out
    assert "32 test images before" in out and "Lipschitz bound" in out
    folder = tiny.parents[1] / "work" / "runs" / "tiny_data"
    assert str(folder) in out
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["training"]["parent"] == "tiny" and metadata["num_classes"] == 4
    model = dynzoo.from_preset(folder)
    (_, _), (x, y) = dynzoo.data.load(file)
    assert metadata["accuracy"] == measuring.accuracy(model, x[:32], y[:32])
    # its certificate, measured before it was saved, holds for what was saved
    assert metadata["lipschitz"] == dynzoo.certify(model).lipschitz


def test_finetune_keeps_a_network_without_a_certificate(tmp_path, file, capsys):
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.LayerNormalization()]
    model = keras.Sequential([*layers, keras.layers.Dense(3)])
    dynzoo.save_to_preset(model, tmp_path / "plain")
    tuned = tmp_path / "tuned"
    arguments = ["finetune", str(tmp_path / "plain"), "--data", file, "--epochs", "1"]
    assert cli.main([*arguments, "--output", str(tuned)]) == 0
    assert "no certificate: Layer 'layer_normalization" in capsys.readouterr().out
    metadata = json.loads((tuned / "metadata.json").read_text())
    assert not {"lipschitz", "certified_accuracy"} & set(metadata)
    (_, _), (x, y) = dynzoo.data.load(file)
    assert metadata["accuracy"] == measuring.accuracy(dynzoo.from_preset(tuned), x, y)


def test_finetune_with_frozen_body(tiny, file):
    body = dynzoo.from_preset(tiny).get_weights()
    arguments = ["finetune", "tiny", "--data", file, "--epochs", "1", "--freeze-body", "--flip"]
    assert cli.main([*arguments, "--output", "frozen"]) == 0
    tuned = dynzoo.from_preset("frozen")
    metadata = json.loads((tiny.parents[1] / "work" / "frozen" / "metadata.json").read_text())
    known = metadata["training"]
    assert (known["crop_padding"], known["flip"], known["freeze_body"]) == (0, True, True)
    head = len(tuned.layers[-1].weights)
    for old, new in zip(body[:-head], tuned.get_weights()[:-head], strict=True):
        np.testing.assert_allclose(new, old, atol=1e-5)  # `project` polishes what it finds
    assert not all(
        np.array_equal(old, new)
        for old, new in zip(body[-head:], tuned.get_weights()[-head:], strict=True)
    )


def test_finetune_refuses(tiny, file, fails):
    start = ["finetune", "tiny", "--data", file]
    assert "exists already" in fails(*start, "--output", tiny)
    assert "--num-classes must be" in fails(*start, "--num-classes", "some")
    assert "the model has 2 classes" in fails(*start, "--num-classes", "2")
    assert "`learning_rate` must be positive" in fails(*start, "--learning-rate", "-1")
    assert "`crop_padding` must be an integer in [0, 8)" in fails(*start, "--crop-padding", "8")


# train


@pytest.fixture
def recipe(tmp_path):
    content = {
        "name": "mini",
        "architecture": {"name": "isometric", **{k: v for k, v in SMALL.items()}},
        "data": {"name": "digits", "validation": 8, "crop_padding": 1, "flip": False},
        "training": {
            "epochs": 1,
            "batch_size": 16,
            "loss": {"name": "offset_crossentropy"},
            "optimizer": {"name": "sgd", "learning_rate": 0.01},
        },
    }
    content["architecture"].update(widths=[8], steps=[1])

    def write(**training):
        content["training"].update(training)
        path = tmp_path / "mini.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_train_then_evaluate(tiny, recipe, file, capsys, fails):
    arguments = ["train", recipe(), "--data", file, "--output", "run", "--quiet"]
    assert cli.main([str(a) for a in arguments]) == 0
    out = capsys.readouterr().out
    assert "epoch 1/1" in out and "preset written to" in out
    assert cli.main(["evaluate", "run/preset", "--data", file, "--attacks", "none"]) == 0
    assert "pass --resume" in fails(*arguments)


def test_train_takes_the_float_images_that_evaluate_takes(tiny, recipe, tmp_path, fails):
    rng = np.random.default_rng(0)
    shape = dynzoo.from_preset("tiny").input_shape[1:]
    x, y = rng.random((40, *shape), dtype=np.float32), np.arange(40) % 4
    file, shifted = tmp_path / "floats.npz", tmp_path / "shifted.npz"
    np.savez(file, x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    arguments = ["train", str(recipe()), "--data", str(file), "--output", "run", "--quiet"]
    assert cli.main(arguments) == 0
    assert cli.main(["evaluate", "run/preset", "--data", str(file), "--attacks", "none"]) == 0
    np.savez(shifted, x_train=x, y_train=y + 1, x_test=x[:8], y_test=y[:8] + 1)
    said = "labels from 1 to 4. Subtract 1"
    assert said in fails("train", recipe(), "--data", shifted, "--output", "other")
    assert said in fails("finetune", "tiny", "--data", shifted)


def test_train_with_another_seed_is_a_run_of_its_own(tiny, recipe, file, capsys, fails):
    arguments = ["train", str(recipe()), "--data", str(file), "--quiet"]
    for seed in ([], ["--seed", "0"], ["--seed", "7"]):
        assert cli.main([*arguments, *seed]) == 0
    plain, same, other = (Path("runs") / name for name in ("mini", "mini_seed0", "mini_seed7"))
    weights = [dynzoo.from_preset(str(f / "preset")).get_weights() for f in (plain, same, other)]
    assert all(map(np.array_equal, weights[0], weights[1]))
    assert not all(map(np.array_equal, weights[0], weights[2]))
    for folder, seed, option in ((same, 0, ""), (other, 7, " --seed 7")):
        card = json.loads((folder / "preset" / "metadata.json").read_text())["training"]
        assert (card["seed"], card["command"]) == (seed, f"dynzoo train mini{option}")
    assert "pass --resume" in fails(*arguments, "--seed", "7")
    assert "`training.seed`" in fails(*arguments, "--seed", "-1")


def test_train_passes_its_options_on(monkeypatch, recipe, file):
    seen = {}
    monkeypatch.setattr(loop, "train", lambda *a, **k: seen.update(k, config=a))
    options = f"--data {file} --output o --max-seconds 90.5 --resume --quiet --distribute"
    options += " --devices 2 --pilot 60 --weights-dtype float16"
    path = recipe()
    assert cli.main(["train", str(path), *options.split()]) == 0
    assert seen.pop("log") is not None
    assert seen == dict(
        config=(recipes.load(path),),
        data_file=file,
        output="o",
        max_seconds=90.5,
        resume=True,
        verbose=0,
        distribute=True,
        devices=2,
        layout=None,
        pilot=60,
        weights_dtype="float16",
    )


def test_train_refuses(tiny, recipe, file, fails):
    assert "there is no recipe file 'nope'" in fails("train", "nope")
    assert "`training.epochs` must be at least 1" in fails("train", recipe(epochs=0))
    path = recipe(epochs=1)
    assert "There is no data file gone.npz" in fails("train", path, "--data", "gone.npz")
    assert "`max_seconds` must be positive" in fails("train", path, "--max-seconds", "-1")
    assert "`data.validation` must be below" in fails(
        "train", _with(path, "validation: 8", "validation: 8000"), "--data", file
    )


def _with(path, old, new):
    path.write_text(path.read_text().replace(old, new))
    return path
