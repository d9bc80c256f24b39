"""Writes the tables of results: README.md, the leaderboard and docs/ablations.md.

    python docs/make_tables.py           rewrites README.md, docs/leaderboard.md, docs/proof.md,
                                         docs/results/leaderboard.csv, docs/ablations.md,
                                         docs/faq.md and docs/scaling.md
    python docs/make_tables.py --check   exits with 1 if one of them is not up to date

The numbers of presets come from `pretrained/*/metadata.json`, where `dynzoo evaluate PRESET
--update-card` writes them; those of published models, with their sources, from
`dynzoo/zoo/published_results.csv`; those of the studies from `benchmarks/ablations.py`, those of
rounding from `benchmarks/rounding.py`, those of latency and memory from `benchmarks/latency.py`,
those of a step on many accelerators from `benchmarks/step_counts.py`.
"""

from __future__ import annotations

import csv
import json
import sys
from fractions import Fraction
from pathlib import Path
from statistics import mean

from dynzoo.utils.formatting import duration, percent
from dynzoo.zoo import leaderboard
from dynzoo.zoo.leaderboard import line

ROOT = Path(__file__).resolve().parents[1]
LEADERBOARD = """# Leaderboard

Made by `python docs/make_tables.py` from the metadata of the presets; the same rows are in
[results/leaderboard.csv](results/leaderboard.csv), and `dynzoo list --leaderboard` shows them.

Accuracies in percent. Certified: the share of the test images that are answered right and that no
change of at most that L2 size (pixels in [0, 1]) turns wrong. Attacked: what is left after the
attacks that are named, an upper bound of the truth. Smoothed: certified of the answer under noise,
by another classifier than the network ([robustness](robustness.md#randomised-smoothing)). Models
in *italics* are published ones, as their sources state them: nothing of theirs was measured here,
and their budgets differ widely.
A dash: not known.

"""
STUDIES = ("recipe", "base", "classes")
RADII = ("36/255", "72/255", "108/255")
# Kinds of a structured network without structure, which count as one system with ResNets.
_FREE_FIELDS = ("unconstrained", "naive")


def results_table(presets: list[dict]) -> str:
    """The table in Markdown, of the best of each system; below it how the numbers were made."""
    if not presets:
        return "No presets are committed."
    every, presets = len(presets), _best(presets)
    # What is proved at other radii is on the card.
    known = {radius for about in presets for radius in about.get("certified_accuracy", {})}
    radii = sorted(known.intersection(RADII), key=Fraction)
    smoothed = any("smoothing" in about for about in presets)
    header = ["preset", "data set", "parameters", "clean"]
    header += [f"certified {radius}" for radius in radii]
    header += [f"smoothed {radius}" for radius in radii[: int(smoothed)]]
    header += [f"attacked {radius}" for radius in radii[:1]]
    header += ["training"]
    lines = [line(header), line(["---", "---", *["---:"] * (len(header) - 2)])]
    for about in presets:
        certified = about.get("certified_accuracy", {})
        attacked = about.get("attacked_accuracy", {})
        training = about.get("training", {})
        cells = [
            f"[{about['name']}](pretrained/{about['name']}/README.md)",
            str(about.get("dataset", "")),
            f"{about['parameters']:,}",
            percent(about.get("accuracy")),
        ]
        cells += [percent(certified.get(radius)) for radius in radii]
        noisy = about.get("smoothed_certified_accuracy", {})
        cells += [percent(noisy.get(radius)) for radius in radii[: int(smoothed)]]
        cells += [percent(attacked.get(radius)) for radius in radii[:1]]
        cells += [duration(training.get("seconds"))]
        lines.append(line(cells))
    left_out = every - len(presets)
    more = f" {left_out} more: [leaderboard](docs/leaderboard.md)." if left_out else ""
    return "\n".join([*lines, "", _notes(presets) + more])


def _best(presets: list[dict]) -> list[dict]:
    """Of each system and data set the preset of which most is certified, in their order."""
    best: dict[tuple, int] = {}
    ranks = [
        (about.get("certified_accuracy", {}).get(RADII[0], 0.0), about.get("accuracy", 0.0))
        for about in presets
    ]
    for i, about in enumerate(presets):
        network = (about.get("recipe") or {}).get("architecture")
        if network is None:
            key: tuple = (i,)
        else:
            kind = network.get("kind")
            free = network["name"] == "resnet" or kind in _FREE_FIELDS
            key = (about.get("dataset"), *(["free"] if free else [network["name"], kind]))
        best[key] = max(best.get(key, i), i, key=lambda j: ranks[j])
    return [presets[i] for i in sorted(best.values())]


def study_table(rows: list[dict[str, str]]) -> str:
    """The table of a study in Markdown, a row an arm, in the order of the rows.

    Args:
        rows: of the CSV that `benchmarks/ablations.py` writes.
    """
    header = ["arm", "what changes", "epochs", "clean", "certified", "against base", "s an epoch"]
    lines = [line(header), line(["---", "---", *["---:"] * 5])]
    base = {_run(row): float(row["certified"]) for row in rows if row["arm"] == "base"}
    for arm, epochs in dict.fromkeys((row["arm"], row["epochs"]) for row in rows):
        own = [row for row in rows if (row["arm"], row["epochs"]) == (arm, epochs)]
        gains = [float(row["certified"]) - base[_run(row)] for row in own if _run(row) in base]
        cells = [
            arm.replace("_", " "),
            own[0]["study"],
            epochs,
            _over_seeds([float(row["accuracy"]) for row in own]),
            _over_seeds([float(row["certified"]) for row in own]),
            "" if arm == "base" else _over_seeds(gains, "+"),
            f"{mean(float(row['seconds']) / int(epochs) for row in own):.0f}",
        ]
        lines.append(line(cells))
    return "\n".join(lines)


def rounding_table(rows: list[dict[str, str]]) -> str:
    """What rounding costs each preset: a row a preset and a kind of bound.

    Args:
        rows: of the CSV that `benchmarks/rounding.py` writes.
    """
    names = {"real": "in real numbers", "probable": "probable", "worst-case": "worst case"}
    radii = [key for key in rows[0] if key not in ("preset", "images", "rounding", "logit_error")]
    header = ["preset", "rounding", *(f"certified {r}" for r in radii), "error of the logits"]
    lines = [line(header), line(["---", "---", *["---:"] * (len(radii) + 1)])]
    for row in rows:
        found = "found: " if row["rounding"] == "real" else "bound: "
        cells = [row["preset"], names[row["rounding"]], *(f"{row[r]} %" for r in radii)]
        lines.append(line([*cells, found + row["logit_error"]]))
    return "\n".join(lines)


def latency_table(rows: list[dict[str, str]]) -> str:
    """What an answer costs: a row a preset and a backend, and how it was measured.

    Args:
        rows: of the CSV that `benchmarks/latency.py` writes.
    """
    names = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
    header = ["preset", "backend", "one image, ms", "with its radius, ms", "images/s, 256 at once"]
    header += ["memory, one image, MiB", "memory, 256 at once, MiB"]
    keys = ["one_image_ms", "radius_ms", "images_per_second", "one_image_mib", "batches_mib"]
    lines = [line(header), line(["---", "---", *["---:"] * len(keys)])]
    for row in rows:
        cells = [f"{float(row[key]):.1f}" if row[key] else "–" for key in keys[:2]]
        cells += [f"{int(row[key]):,}" for key in keys[2:]]
        lines.append(line([row["preset"], names[row["backend"]], *cells]))
    loads = [float(row["load"]) for row in rows]
    hardware = ", ".join(sorted({row["hardware"] for row in rows}))
    versions = "; ".join(sorted({row["versions"] for row in rows}))
    note = f"One core of {hardware}; load average {min(loads):g} to {max(loads):g}; {versions}."
    return "\n".join([*lines, "", note])


def steps_table(rows: list[dict[str, str]]) -> str:
    """A step of the base network on many accelerators: a row a number of devices.

    Args:
        rows: of the CSV that `benchmarks/step_counts.py` writes.
    """
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    header = ["devices"]
    for batch in batches:
        header += [
            f"step of {int(batch):,} images, ms",
            "speed-up",
            "update divided, ms",
            "speed-up",
        ]
    lines = [line(header), line(["---:"] * len(header))]
    for devices in dict.fromkeys(row["devices"] for row in rows):
        cells = [devices]
        for batch in batches:
            own = [row for row in rows if (row["batch"], row["devices"]) == (batch, devices)]
            for key in ("step_ms", "speed_up", "divided_step_ms", "divided_speed_up"):
                cells.append(f"{float(own[0][key]):.1f}" if own else "–")
        lines.append(line(cells))
    return "\n".join(lines)


def _run(row: dict[str, str]) -> tuple[str, str]:
    """What an arm has in common with the base that it is compared with."""
    return row["epochs"], row["seed"]


def _over_seeds(values: list[float], sign: str = "") -> str:
    """The mean, and with more than one seed the least and the greatest."""
    if not values:
        return ""
    text = f"{mean(values):{sign}.2f}"
    spread = f" ({min(values):{sign}.2f} to {max(values):{sign}.2f})"
    return text + spread * (len(values) > 1)


def read_study(name: str, root: Path = ROOT) -> list[dict[str, str]]:
    """Rows of a study: fewer epochs first, then the base, then by what is studied."""

    def rank(row: dict[str, str]) -> tuple[int, bool, str, str]:
        return int(row["epochs"]), row["arm"] != "base", row["study"], row["arm"]

    return sorted(_rows(name, root), key=rank)


def _rows(name: str, root: Path) -> list[dict[str, str]]:
    """Those of a table of results."""
    path = root / "docs" / "results" / f"{name}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markers(name: str) -> tuple[str, str]:
    """The two lines between which a table of that name stands in a page."""
    return f"<!-- {name}: made by docs/make_tables.py -->", f"<!-- end of {name} -->"


def updated(page: str, name: str, table: str) -> str:
    """The page with the table between its markers.

    Raises:
        ValueError: if the markers are not there, once each and in order.
    """
    begin_line, end_line = markers(name)
    before, begin, rest = page.partition(begin_line)
    _, end, after = rest.partition(end_line)
    if not begin or not end or begin_line in after or end_line in before + after:
        raise ValueError(
            f"the page must hold {begin_line!r} and {end_line!r}, once each and in this order"
        )
    return f"{before}{begin_line}\n{table}\n{end_line}{after}"


def read_presets(root: Path = ROOT) -> list[dict]:
    """Metadata of the committed presets, by name."""
    files = sorted((root / "pretrained").glob("*/metadata.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def made(root: Path = ROOT) -> dict[str, str]:
    """Text of every file that this script makes, by its path below the root."""
    presets = read_presets(root)
    rows = leaderboard.leaderboard({about["name"]: about for about in presets})
    readme = (root / "README.md").read_text(encoding="utf-8")
    ablations = (root / "docs" / "ablations.md").read_text(encoding="utf-8")
    for name in STUDIES:
        ablations = updated(ablations, name, study_table(read_study(name, root)))
    proof = (root / "docs" / "proof.md").read_text(encoding="utf-8")
    faq = (root / "docs" / "faq.md").read_text(encoding="utf-8")
    scaling = (root / "docs" / "scaling.md").read_text(encoding="utf-8")
    steps = steps_table(_rows("scaling_base", root))
    return {
        "docs/scaling.md": updated(scaling, "steps", steps),
        "docs/proof.md": updated(proof, "rounding", rounding_table(_rows("rounding", root))),
        "docs/faq.md": updated(faq, "latency", latency_table(_rows("latency", root))),
        "README.md": updated(readme, "results", results_table(presets)),
        "docs/ablations.md": ablations,
        "docs/leaderboard.md": LEADERBOARD + leaderboard.to_markdown(rows),
        "docs/results/leaderboard.csv": leaderboard.to_csv(rows),
    }


def stale(root: Path = ROOT) -> list[str]:
    """Which of these files are not what would be written now."""
    return [
        name
        for name, text in made(root).items()
        if not (root / name).is_file() or (root / name).read_bytes() != text.encode()
    ]


def main() -> int:
    if "--check" in sys.argv[1:]:
        old = stale()
        if old:
            print(
                f"{', '.join(old)}: not up to date, run python docs/make_tables.py",
                file=sys.stderr,
            )
        return int(bool(old))
    for name, text in made().items():
        (ROOT / name).write_bytes(text.encode())
    return 0


def _notes(presets: list[dict]) -> str:
    """How many images the numbers are of, and where the rest is said."""
    measured = [about.get("evaluation", {}) for about in presets]
    counts = {
        key: sorted({numbers[key] for numbers in measured if key in numbers})
        for key in ("images", "attacked_images")
    }
    if not counts["images"]:
        return "Not evaluated yet."
    text = f"{_span(counts['images'])} test images are certified"
    if counts["attacked_images"]:
        text += f", the first {_span(counts['attacked_images'])} attacked"
    return f"{text}. Each card has the attacks, the hardware and the commands."


def _span(counts: list[int]) -> str:
    ends = dict.fromkeys((counts[0], counts[-1]))
    return " to ".join(f"{count:,}" for count in ends)


if __name__ == "__main__":
    sys.exit(main())
