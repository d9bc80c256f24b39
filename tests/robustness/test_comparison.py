"""Reports side by side, and pages as a browser shows them."""

import csv
import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from robustness_fixtures import MarginCertificate, centroids, held_out, ridge

from dynzoo.attacks import APGD, PGD
from dynzoo.cli import program as cli
from dynzoo.robustness.comparison import compare
from dynzoo.robustness.evaluation import evaluate
from dynzoo.robustness.saved_report import read_report

pytestmark = pytest.mark.any_backend

EPS = (0.1, 0.3)


@pytest.fixture(scope="module")
def reports():
    x, y = held_out(80)
    settings = dict(eps=EPS, attacks=[APGD(loss="ce", steps=20), PGD(steps=20)], checks="quick")
    linear, nearest = ridge(), centroids()
    return [
        evaluate(linear, x, y, **settings),
        evaluate(nearest, x, y, certificate=MarginCertificate(nearest), **settings),
    ]


@pytest.fixture(scope="module")
def both(reports):
    return compare(reports, ["<linear>", "means"])


def test_rows_are_the_numbers_of_the_reports(reports, both):
    rows = both.rows()
    assert [(row["model"], row["eps"]) for row in rows] == [
        (name, e) for name in ("<linear>", "means") for e in EPS
    ]
    for row, report in zip(rows[::2], reports, strict=True):
        assert row["clean"] == report.clean and row["attacked"] == report.robust[0.1]
        assert row["certified"] == report.certified[0.1]
    assert both.notes == []


def test_differences_count_the_images_that_tell_two_models_apart(reports, both):
    for radius, e in enumerate(EPS):
        a, b = (report.per_image["robust"][radius] for report in reports)
        first, second = both.differences("<linear>", "means", e)
        assert first == (a & ~b).sum() and second == (b & ~a).sum() and first + second > 0
    with pytest.raises(ValueError, match="`name` must be one of"):
        both.differences("linear", "means", 0.1)


def test_certified_reports_side_by_side(reports, tmp_path):
    x, y = held_out(80)
    settings = dict(eps=EPS, attacks="none")
    linear, nearest = ridge(), centroids()
    proved = [
        evaluate(linear, x, y, **settings),
        evaluate(nearest, x, y, certificate=MarginCertificate(nearest), **settings),
    ]
    files = [r.save(tmp_path / f"{i}.json") for i, r in enumerate(proved)]
    together = compare(files, ["linear", "means"])
    assert together.notes == []
    for row, report in zip(together.rows()[::2], proved, strict=True):
        assert row["attacked"] is None and row["certified"] == report.certified[0.1]
    one, other = (r.per_image["radii"] > 0.1 for r in proved)
    expected = ((one & ~other).sum(), (other & ~one).sum())
    assert together.differences("linear", "means", 0.1) == expected
    page = together.save(tmp_path / "both.html").read_text(encoding="utf-8")
    assert "Image by image" in page
    # with one that was attacked: what is proved is compared, and it is said
    mixed = compare([files[0], reports[1]], ["linear", "means"])
    assert "attacks" in mixed.notes[0]
    assert mixed.differences("linear", "means", 0.1) == expected
    mixed.save(tmp_path / "mixed.html")
    command = ["compare", *map(str, files), "--output", str(tmp_path / "both.csv")]
    assert cli.main(command) == 0


@pytest.mark.parametrize(
    "robust", [{"0.1": 0.5, "0.3": None}, {"0.1": 0.5, "0.3": 0.4}, {"0.1": None}]
)
def test_certified_report_with_shares_of_attacks_is_refused(robust, tmp_path):
    x, y = held_out(10)
    path = evaluate(ridge(), x, y, eps=EPS, attacks="none").save(tmp_path / "r.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "robust": robust}))
    with pytest.raises(ValueError, match="r.json is damaged or something else"):
        read_report(path)


def test_files(both, tmp_path):
    page = both.save(tmp_path / "deep" / "both.html").read_text(encoding="utf-8")
    for text in ("&lt;linear&gt;", "means", "0.3", "Image by image"):
        assert text in page
    assert "<linear>" not in page and page.count("<img") == 1
    data = json.loads(both.save(tmp_path / "both.json").read_text())
    assert len(data["rows"]) == 4 and data["reports"]["means"]["norm"] == "l2"
    with pytest.raises(ValueError, match=r"must end in \.html or \.json"):
        both.save(tmp_path / "both.pdf")
    labels = {line.get_label() for line in both.plot(tmp_path / "b.png").axes[0].lines}
    assert labels >= {"<linear>, under attack", "means, certified"}


def test_reports_that_cannot_be_compared_are_refused(reports):
    first, second = reports
    other = {**second.per_image, "labels": (second.per_image["labels"] + 1) % 10}
    larger = {**second.details, "image_shape": [81]}
    for wrong, message in (
        ([], "at least one"),
        ([first, replace(second, norm="linf")], "agree in their norm"),
        ([first, replace(second, robust={0.1: 0.5})], "agree in their eps"),
        ([first, replace(second, per_image=other)], "of the same images"),
        ([first, replace(second, details=larger)], r"shape of images. Received: \[64\] and \[81\]"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(wrong)
    with pytest.raises(ValueError, match="`names` must be 2 different"):
        compare(reports, ["a", "a"])
    notes = compare([first, replace(second, details={**second.details, "seed": 9})]).notes
    assert len(notes) == 1 and "seed" in notes[0]
    assert len(set(compare([first, first]).names)) == 2


def test_attacks_of_other_strength_are_told_apart(tmp_path):
    x, y = held_out(10)
    weak, strong = (
        evaluate(ridge(), x, y, eps=EPS, attacks=[PGD(steps=steps)], checks="quick")
        for steps in (1, 9)
    )
    saved = read_report(strong.save(tmp_path / "strong.json"))
    for other in (strong, saved):
        (note,) = compare([weak, other], ["a", "b"]).notes
        assert note.endswith("settings: a: PGD-margin steps 1; b: PGD-margin steps 9.")
        assert compare([strong, other], ["a", "b"]).notes == []


# --- saved reports ---


@pytest.fixture(scope="module")
def files(reports, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    return [r.save(folder / f"{name}.json") for r, name in zip(reports, "ab", strict=True)]


def test_a_saved_report_is_the_report(reports, files):
    for report, file in zip(reports, files, strict=True):
        read = read_report(file)
        for name in ("norm", "clean", "robust", "certified", "warnings", "images"):
            assert getattr(read, name) == getattr(report, name)
        assert read.to_dict() == json.loads(json.dumps(report.to_dict()))
        for name in ("correct", "robust", "labels", "radii"):
            np.testing.assert_array_equal(read.per_image[name], report.per_image[name])
    assert '\n    "robust": [[' in files[0].read_text()  # a line for all images


def test_files_are_compared_as_their_reports_are(both, files, tmp_path):
    again = compare(files, ["<linear>", "means"])
    assert again.rows() == both.rows() and again.notes == both.notes
    assert again.differences("<linear>", "means", 0.3) == both.differences("<linear>", "means", 0.3)
    assert again.to_dict() == json.loads(json.dumps(both.to_dict()))
    page = again.save(tmp_path / "b.html").read_text()
    assert page == both.save(tmp_path / "a.html").read_text()
    rows = list(csv.DictReader(again.save(tmp_path / "b.csv").read_text().splitlines()))
    assert [float(row["attacked"]) for row in rows] == [row["attacked"] for row in both.rows()]


def test_what_is_no_report_is_refused(files, tmp_path):
    data = json.loads(files[0].read_text())
    old = {name: value for name, value in data.items() if name != "per_image"}
    flipped = {**data, "per_image": {**data["per_image"], "correct": [False] * 80}}
    short = {**data, "per_image": {**data["per_image"], "labels": [1, 2]}}
    per_image = {**data["per_image"], "radii": [-1.0] * len(data["per_image"]["correct"])}
    negative = {**data, "per_image": per_image}
    above = {**data, "certified": dict.fromkeys(data["certified"], 1.5)}
    for content, message in (
        ("{", "damaged or something else"),
        ("[1]", "no report of schema 1"),
        (json.dumps(old), "evaluate again"),
        (json.dumps(flipped), "not those of its images"),
        (json.dumps(short), "arrays of shapes"),
        (json.dumps({**data, "norm": None, "robust": 3}), "damaged or something else"),
        (json.dumps({**data, "norm": "l1"}), "norm is neither"),
        (json.dumps(negative), "one number >= 0 an image"),
        (json.dumps(above), "no share in"),
        (json.dumps(data).replace("{", '{"clean": 1.0, ', 1), "'clean' stands there twice"),
        (json.dumps({**data, "title": float("nan")}), "contains NaN"),
        (json.dumps({**data, "warnings": [{"nme": "a"}]}), "damaged or something else"),
    ):
        (tmp_path / "r.json").write_text(content)
        with pytest.raises(ValueError, match=f"`path` must be a report.*r.json.*{message}"):
            read_report(tmp_path / "r.json")


# --- the command ---


def test_command(both, files, tmp_path, capsys):
    output = tmp_path / "both.csv"
    arguments = ["compare", *map(str, files), "--names", "<linear>,means", "--output", str(output)]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "80 images, L2" in out and f"comparison: {output}" in out
    for row in both.rows():
        cells = [f"{100 * row[name]:.2f} %" for name in ("clean", "certified", "attacked")]
        line = [row["model"], f"{row['eps']:g}", *cells]
        assert any(" ".join(text.split()) == " ".join(line) for text in out.splitlines())
    again = compare(files, ["<linear>", "means"])
    assert output.read_text() == again.save(tmp_path / "again.csv").read_text()
    assert cli.main(["compare", str(files[0]), str(files[0])]) == 0
    assert "a 2 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: REPORT.json"),
        (["gone.json"], "gone.json"),
        (["{a}", "--output", "x.pdf"], "--output must end in one of .html, .json, .csv"),
        (["{a}", "--names", "b,c"], "`names` must be 1 different names"),
        (["{a}", "{other}"], "`reports` must agree in their norm"),
        (["{text}"], "`path` must be a report that was saved as JSON"),
    ],
)
def test_command_refuses(files, tmp_path, arguments, message, capsys):
    data = json.loads(files[0].read_text())
    (tmp_path / "other.json").write_text(json.dumps({**data, "norm": "linf"}))
    (tmp_path / "text.json").write_text("no JSON")
    paths = {"a": files[0], "other": tmp_path / "other.json", "text": tmp_path / "text.json"}
    assert cli.main(["compare", *(text.format(**paths) for text in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error


# --- in a browser ---

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)


def shown(page, picture):
    """What a browser makes of a page: its text, and a screenshot as an array."""
    from matplotlib.image import imread

    common = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={page.parent / 'profile'}", "--window-size=1100,3000",
    ]  # fmt: skip
    run = dict(capture_output=True, timeout=120, check=True)
    subprocess.run([*common, f"--screenshot={picture}", page.as_uri()], **run)
    dom = subprocess.run([*common, "--dump-dom", page.as_uri()], **run)
    return dom.stdout.decode(), imread(picture)


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or chrome on the PATH")
def test_pages_in_a_browser(reports, both, tmp_path):
    text, pixels = shown(reports[1].save(tmp_path / "r.html"), tmp_path / "r.png")
    for heading in ("Accuracy versus radius", "Hardest images", "Attacks", "Provenance"):
        assert f"<h2>{heading}</h2>" in text
    ink = np.abs(pixels[..., :3] - pixels[0, 0, :3]).max(axis=-1) > 0.1
    # drawn from the heading down to the last table, and across the page
    assert ink[:300].any() and ink[2000:].any() and ink.any(axis=0).mean() > 0.5
    green = np.abs(pixels[..., :3] - np.array([27, 127, 92]) / 255).max(axis=-1) < 0.1
    assert green.sum() > 500  # the certified curve
    text, pixels = shown(both.save(tmp_path / "c.html"), tmp_path / "c.png")
    assert "Comparison of models" in text and pixels.std() > 0.05
