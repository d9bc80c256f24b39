"""The leaderboard: what the metadata say and nothing else, beside sources that can be looked up."""

import csv
import io

import pytest

from dynzoo.models import ARCHITECTURES
from dynzoo.zoo import leaderboard as board

pytestmark = pytest.mark.any_backend

ABOUT = {
    "name": "small",
    "dataset": "cifar10",
    "parameters": 1234567,
    "accuracy": 0.75,
    "certified_accuracy": {"108/255": 0.3, "36/255": 0.625, "72/255": 0.45},
    "attacked_accuracy": {"36/255": 0.6875, "0.5": 0.5},
    "lipschitz": 1.2345678,
    "audited_slope": 1.1,
    "recipe": {"architecture": {"name": "isometric"}},
    "training": {
        "hardware": "2 CPU cores",
        "seconds": 5400,
        "seed": 3,
        "command": "dynzoo train small",
    },
    "evaluation": {"images": 10000, "attacked_images": 1000, "attacks": "standard, seed 0"},
}
BARE = {"name": "bare", "dataset": "cifar10", "parameters": 10}


def test_networks_of_one_builder_are_told_apart():
    def system(**architecture):
        about = {"dataset": "cifar10", "recipe": {"architecture": architecture}}
        return board.leaderboard({"one": about}, literature=False)[0]["system"]

    assert system(name="structured", kind="nonexpansive") == system(name="isometric")
    assert system(name="structured", kind="flexible") == "switching flows"
    assert system(name="structured", kind="unconstrained") == system(name="resnet")


def test_a_row_says_what_the_metadata_say():
    (row,) = board.leaderboard({"small": ABOUT}, literature=False)
    assert list(row) == list(board.COLUMNS)
    expected = {
        "name": "small",
        "kind": "dynzoo",
        "system": "gradient flow",
        "parameters": "1234567",
        "clean": "75.00",
        "certified_36": "62.50",
        "certified_72": "45.00",
        "certified_108": "30.00",
        "attacked_36": "68.75",
        "attacked_0.5": "50.00",
        "attacks": "1,000 images: standard, seed 0",
        "lipschitz": "1.2346",
        "audited_slope": "1.1",
        "training_time": "1 h 30 min",
        "seed": "3",
        "command": "dynzoo train small",
    }
    assert {key: row[key] for key in expected} == expected
    named = {**ABOUT, "system": "a flow of its own"}
    assert board.leaderboard({"x": named}, literature=False)[0]["system"] == "a flow of its own"


def test_what_is_not_known_is_a_dash_and_never_a_number():
    rows = board.leaderboard({"small": ABOUT, "bare": BARE}, literature=False)
    bare = rows[1]
    assert {key for key, value in bare.items() if value} == {
        "name",
        "kind",
        "dataset",
        "parameters",
    }
    line = next(x for x in board.to_markdown(rows).splitlines() if "**bare**" in x)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "**bare**" and cells.count("–") == len(cells) - 2 and "10" in cells
    stored = list(csv.DictReader(io.StringIO(board.to_csv(rows))))[1]
    assert stored["certified_36"] == stored["seed"] == ""


def test_the_best_certified_is_first_within_its_data_set():
    rows = board.leaderboard({"small": ABOUT, "bare": BARE})
    for dataset in ("cifar10", "cifar100"):
        shares = [float(r["certified_36"] or -1) for r in rows if r["dataset"] == dataset]
        assert len(shares) > 10 and shares == sorted(shares, reverse=True)
    assert [r["dataset"] for r in rows] == sorted(r["dataset"] for r in rows)
    only = board.leaderboard({"small": ABOUT}, dataset="cifar100")
    assert {r["dataset"] for r in only} == {"cifar100"} and only[0]["kind"] == "published"
    with pytest.raises(ValueError, match="`dataset` must be one of cifar10, cifar100"):
        board.leaderboard({"small": ABOUT}, dataset="svhn")


def test_published_rows_have_sources_and_possible_numbers():
    rows = board.published()
    names = [(r["dataset"], r["name"]) for r in rows]
    assert len(set(names)) == len(names) and {d for d, _ in names} == {"cifar10", "cifar100"}
    for row in rows:
        assert set(row) == set(board.COLUMNS), row  # no column that nobody reads
        assert row["source"] and row["certified_36"] and row["kind"] == "published"
        assert row["parameters"] == "" or int(row["parameters"]) > 1e5
        keys = ("clean", "certified_36", "certified_72", "certified_108")
        shares = [float(row[key]) for key in keys if row[key]]
        assert shares == sorted(shares, reverse=True) and 0 < shares[-1] <= shares[0] < 100
        if row["attacked_36"]:
            assert float(row["certified_36"]) <= float(row["attacked_36"]) <= shares[0]


def test_markdown_marks_what_is_published():
    text = board.to_markdown(board.leaderboard({"small": ABOUT}))
    assert text.index("## cifar10\n") < text.index("## cifar100\n")
    ours = next(line for line in text.splitlines() if "small" in line)
    theirs = next(line for line in text.splitlines() if "LipNeXt L32W1024" in line)
    assert ours.startswith("| **small** |") and "1,234,567" in ours
    assert theirs.startswith("| *LipNeXt L32W1024* |") and "*71.2*" in theirs
    tables = [part.splitlines()[2:] for part in text.split("## ")[1:]]
    for lines in tables:
        assert len({line.count("|") for line in lines if line}) == 1


def test_saved_as_its_ending_says(tmp_path):
    rows = board.leaderboard({"small": ABOUT})
    assert board.save(rows, tmp_path / "a" / "b.md").read_text() == board.to_markdown(rows)
    assert board.save(rows, tmp_path / "b.csv").read_text() == board.to_csv(rows)
    with pytest.raises(ValueError, match="must end in .md or .csv"):
        board.save(rows, tmp_path / "b.html")
    titles, cells = board.summary(rows)
    assert all(len(row) == len(titles) for row in cells)


def test_every_architecture_has_its_system():
    assert set(board._SYSTEMS) == set(ARCHITECTURES)
