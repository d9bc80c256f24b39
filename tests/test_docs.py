"""The README says what the presets' metadata say."""

import re
from pathlib import Path

import pytest
from helpers import load_script

pytestmark = pytest.mark.any_backend

ROOT = Path(__file__).resolve().parents[1]

ABOUT = {
    "name": "small",
    "dataset": "cifar10",
    "parameters": 1234567,
    "accuracy": 0.75,
    "certified_accuracy": {"108/255": 0.3, "36/255": 0.625, "72/255": 0.45},
    "attacked_accuracy": {"36/255": 0.6875},
    "training": {"hardware": "2 CPU cores", "seconds": 5400},
    "evaluation": {"images": 10000, "attacked_images": 1000, "command": "dynzoo evaluate small"},
}


@pytest.fixture(scope="module")
def tables():
    return load_script(ROOT / "docs" / "make_tables.py")


def test_readme_is_up_to_date(tables):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = tables.results_table(tables.read_presets())
    assert tables.updated(readme, "results", table) == readme


def test_leaderboard_is_up_to_date(tables):
    assert tables.stale() == []
    page = (ROOT / "docs" / "leaderboard.md").read_text(encoding="utf-8")
    rows = (ROOT / "docs" / "results" / "leaderboard.csv").read_text(encoding="utf-8")
    for about in tables.read_presets():
        assert f"| **{about['name']}** |" in page and f"\n{about['name']}," in rows


def test_what_is_stale_is_named(tables, tmp_path):
    results = ("recipe", "base", "classes", "rounding", "latency", "scaling_base")
    sources = [f"docs/results/{name}.csv" for name in results]
    for name in (*tables.made(), *sources):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "pretrained").symlink_to(ROOT / "pretrained")
    assert tables.stale(tmp_path) == []
    with (tmp_path / "docs/leaderboard.md").open("a") as file:
        file.write("a number by hand\n")
    (tmp_path / "docs/results/leaderboard.csv").unlink()
    assert tables.stale(tmp_path) == ["docs/leaderboard.md", "docs/results/leaderboard.csv"]


def test_readme_names_files_that_exist(tables):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / target).exists(), target
    for script in re.findall(r"(?:bash|python) ((?:scripts|docs)/\S+)", readme):
        assert (ROOT / script).is_file(), script


def test_picture_shows_the_numbers_of_a_card(tables):
    """The picture was drawn with the committed weights: its labels are the card's numbers."""
    picture = ROOT / "docs" / "accuracy_by_radius.svg"
    text = picture.read_text(encoding="utf-8")
    about = next((a for a in tables.read_presets() if f"{a['name']}:" in text), None)
    if about is None and not tables.read_presets():
        pytest.skip("no presets are committed")
    assert about is not None
    shown = {float(v) for v in re.findall(r">\s*(\d+\.\d) %<", text)}
    assert shown == {round(100 * v, 1) for v in about["certified_accuracy"].values()}


def test_table(tables):
    text = tables.results_table([ABOUT])
    header, _, row, _, note = text.splitlines()
    fewer = {**ABOUT, "evaluation": {**ABOUT["evaluation"], "attacked_images": 500}}
    noisy = {**fewer, "smoothing": {}, "smoothed_certified_accuracy": {"36/255": 0.5}}
    other = tables.results_table([ABOUT, noisy]).splitlines()
    assert "first 500 to 1,000 attacked" in other[-1]
    assert "smoothed 36/255" in other[0] and "| 50.00 % | 68.75 % |" in other[3]
    assert "smoothed" not in header and "68.75 %" in other[2]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    names = [cell.strip() for cell in header.strip("|").split("|")]
    values = dict(zip(names, cells, strict=True))
    assert values["clean"] == "75.00 %" and values["parameters"] == "1,234,567"
    assert names.index("certified 72/255") < names.index("certified 108/255")
    assert values["certified 36/255"] == "62.50 %" and values["attacked 36/255"] == "68.75 %"
    assert values["training"] == "1 h 30 min"
    assert note.startswith("10,000 test images are certified, the first 1,000 attacked.")


def test_the_table_has_the_best_of_each_system(tables):
    def preset(name, certified, kind="flexible", dataset="cifar10"):
        recipe = {"architecture": {"name": "structured", "kind": kind}}
        certified = {"certified_accuracy": {"36/255": certified}}
        return {**ABOUT, **certified, "name": name, "dataset": dataset, "recipe": recipe}

    presets = [
        preset("small", 0.2),
        preset("large", 0.5),
        preset("other", 0.1, kind="naive"),
        preset("hundred", 0.1, dataset="cifar100"),
        preset("middle", 0.3),
    ]
    text = tables.results_table(presets)
    assert re.findall(r"^\| \[(\w+)\]", text, flags=re.MULTILINE) == ["large", "other", "hundred"]
    assert text.endswith("2 more: [leaderboard](docs/leaderboard.md).")


def test_only_the_table_is_rewritten(tables):
    begin, end = tables.markers("results")
    page = f"a\n{begin}\nold\n{end}\nb\n"
    new = tables.updated(page, "results", "new")
    assert new == f"a\n{begin}\nnew\n{end}\nb\n"
    assert tables.updated(new, "results", "new") == new
    for broken in ("no markers", begin, f"{end}{begin}", page + page):
        with pytest.raises(ValueError, match="once each"):
            tables.updated(broken, "results", "new")


def test_studies_are_means_over_seeds_against_the_base_of_the_same_seed(tables, tmp_path):
    def row(arm, epochs, seed, certified):
        return f"{arm},rows of A,{seed},{epochs},50.0,{certified},300.0"

    path = tmp_path / "docs" / "results" / "recipe.csv"
    path.parent.mkdir(parents=True)
    lines = ["arm,study,seed,epochs,accuracy,certified,seconds", row("step_1", 2, 1, 30.0)]
    lines += [row("base", 6, 0, 51.0), row("step_1", 6, 0, 53.0)]
    lines += [row("base", 2, 0, 41.0), row("base", 2, 1, 43.0), row("alone", 2, 0, 41.5)]
    path.write_text("\n".join(lines), encoding="utf-8")
    table = tables.study_table(tables.read_study("recipe", tmp_path)).splitlines()
    assert table[2:] == [
        "| base | rows of A | 2 | 50.00 (50.00 to 50.00) | 42.00 (41.00 to 43.00) |  | 150 |",
        "| alone | rows of A | 2 | 50.00 | 41.50 | +0.50 | 150 |",
        "| step 1 | rows of A | 2 | 50.00 | 30.00 | -13.00 | 150 |",
        "| base | rows of A | 6 | 50.00 | 51.00 |  | 50 |",
        "| step 1 | rows of A | 6 | 50.00 | 53.00 | +2.00 | 50 |",
    ]


COST = {
    "preset": "small", "backend": "jax", "one_image_ms": "1.06", "radius_ms": "13.51",
    "images_per_second": "1695", "one_image_mib": "593", "batches_mib": "1024", "load": "0.5",
    "hardware": "2 CPU cores (X), no GPU", "versions": "keras 3, jax 0.1",
}  # fmt: skip


def test_steps_table(tables):
    row = {"devices": "1", "step_ms": "21.55", "speed_up": "1.0"}
    row |= {"divided_step_ms": "11.73", "divided_speed_up": "1.84"}
    rows = [{"batch": "512", **row}, {"batch": "4096", **row, "step_ms": "98.27"}]
    rows.append({"batch": "4096", **row, "devices": "1024", "speed_up": "7.75"})
    lines = tables.steps_table(rows).splitlines()
    assert lines[0].startswith(
        "| devices | step of 512 images, ms | speed-up | update divided, ms |"
    )
    assert lines[2] == "| 1 | 21.6 | 1.0 | 11.7 | 1.8 | 98.3 | 1.0 | 11.7 | 1.8 |"
    assert lines[3].startswith("| 1024 | – | – | – | – |")


def test_latency_table(tables):
    other = {**COST, "backend": "torch", "load": "2.0", "versions": "keras 3, torch 2"}
    lines = tables.latency_table([COST, other]).splitlines()
    assert lines[2] == "| small | JAX | 1.1 | 13.5 | 1,695 | 593 | 1,024 |"
    assert lines[3].startswith("| small | PyTorch |") and lines[4] == ""
    assert lines[5] == (
        "One core of 2 CPU cores (X), no GPU; load average 0.5 to 2; keras 3, jax 0.1; "
        "keras 3, torch 2."
    )


def test_latency_of_every_preset_on_every_backend_is_known(tables):
    measured = load_script(ROOT / "benchmarks" / "latency.py")
    rows = measured.read(measured.RESULTS)
    wanted = {(about["name"], b) for about in tables.read_presets() for b in measured.BACKENDS}
    assert {(row["preset"], row["backend"]) for row in rows} == wanted
    assert list(rows[0]) == list(measured.COLUMNS)


def test_a_row_measured_again_takes_the_place_of_the_old_one():
    measured = load_script(ROOT / "benchmarks" / "latency.py")
    other = {**COST, "backend": "tensorflow"}
    again = {**COST, "one_image_ms": "0.50"}
    assert measured.merged([COST, other], [again]) == [again, other]
    calls = []
    assert 0 <= measured.least(lambda: calls.append(1), 7) < 1 and len(calls) == 7
