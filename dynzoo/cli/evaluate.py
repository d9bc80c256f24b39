"""`dynzoo evaluate`: a preset is certified and attacked, and its card written."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from dynzoo import backend, plots
from dynzoo.attacks.ensembles import makers
from dynzoo.cli.console import percent, progress, say, table
from dynzoo.cli.inputs import check_fit, find_preset, first, load_data
from dynzoo.data import loading as data
from dynzoo.utils import interruption
from dynzoo.zoo import files as preset_files
from dynzoo.zoo import measurement as measuring
from dynzoo.zoo import presets

# What a report can be saved as.
REPORTS = (".html", ".json", ".csv", ".npz")


def evaluate(arguments: Namespace) -> None:
    folder, about = find_preset(arguments.preset)
    source = arguments.data or arguments.dataset or about.get("dataset")
    if not source:
        raise ValueError(f"{folder} does not say its data set: pass --dataset or --data")
    recipe = about.get("recipe") if isinstance(about.get("recipe"), dict) else {}
    planned = recipe.get("evaluation", {}) if recipe else {}
    norm = arguments.norm or planned.get("norm", "l2")
    if arguments.attacks == ["none"]:
        if arguments.checkpoint:
            raise ValueError("--checkpoint needs attacks: it is they that go on from it")
    else:
        makers(arguments.attacks, norm, 0, 1)  # an unknown name, before hours of work
    if arguments.output and Path(arguments.output).suffix not in REPORTS:
        raise ValueError(
            f"--output must end in one of {', '.join(REPORTS)}. Received: {arguments.output}"
        )
    if arguments.keep_attacks and not (arguments.update_card and arguments.attacks == ["none"]):
        raise ValueError("--keep-attacks needs --update-card and --attacks none")
    if arguments.update_card and norm != "l2":
        raise ValueError("--update-card needs --norm l2, the norm of a model card")
    interruption.keeps(lambda: _kept(arguments.checkpoint))
    name = about.get("name", folder.name)
    say(f"{name}: reading {source}")
    model = presets.from_preset(folder)
    x, y = first(load_data(source, about)[1], arguments.limit)
    check_fit(model, x, y, source)
    parameters = f"{model.count_params():,} parameters"
    say(f"{len(x):,} test images; {parameters}; compiling for {backend.name()}")
    with progress(f"certifying {len(x)} images", len(x)) as tick:
        measured = measuring.measure(
            model,
            x,
            y,
            norm=norm,
            eps=arguments.eps or planned.get("eps") or (36 / 255, 72 / 255, 108 / 255),
            attacks="none" if arguments.attacks == ["none"] else _single(arguments.attacks),
            attack_limit=arguments.attack_limit,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            verbose=1,
            class_names=data.class_names(source),
            title=f"Robustness of {name}",
            tick=tick,
            checkpoint=arguments.checkpoint,
            attack_certified=arguments.attack_certified,
            audit=arguments.audit,
            corruptions=arguments.corruptions,
            report=bool(arguments.output),
            prediction_sets=arguments.prediction_sets,
        )
    show(measured, name)
    if arguments.output and measured.report is not None:
        say(f"report: {measured.report.save(arguments.output).absolute()}")
    if arguments.update_card:
        how = _how(arguments, name, source, about)
        measuring.update_card(folder, measured, how, arguments.keep_attacks)
        say(f"card: {folder / 'README.md'}")


def _kept(checkpoint: str | None) -> str:
    if checkpoint and Path(checkpoint).exists():
        return f"{checkpoint} has what was attacked so far, go on: {interruption.command()}"
    again = f"nothing new was kept, start again: {interruption.command()}"
    return again if checkpoint else f"{again} (with --checkpoint FILE it would go on)"


def show(measured: measuring.Measurement, title: str) -> None:
    """The numbers of a measurement as a table, and what casts doubt on them."""
    header = ["radius", f"certified, {measured.images} images"]
    attacked = measured.attacked_images
    partly = 0 < attacked < measured.images
    if partly:
        header.append(f"certified, first {attacked}")
    if attacked:
        header.append(f"under attack, first {attacked}" if partly else "under attack")
    if measured.top5 is not None:
        header.append("certified top-5")
    rows = []
    for eps, certified, certified_first, robust in measured.rows():
        name = measuring.radius_text(eps) if eps else "0 (clean)"
        cells = [percent(certified)]
        if partly:
            cells.append(percent(certified_first))
        if attacked:
            cells.append(percent(robust))
        if measured.top5 is not None:
            cells.append(percent(measured.certified_top5[eps] if eps else measured.top5))
        rows.append([name, *cells])
    say()
    table(header, rows, title=f"{title}, {plots.norm_text(measured.norm)}")
    say(f"Lipschitz bound, images to logits (L2): {measured.lipschitz:.6g}")
    if measured.report is not None and measured.report.prediction_sets is not None:
        _show_sets(measured.report.prediction_sets)
    for warning in measured.report.warnings if measured.report is not None else ():
        say(f"warning: {warning}", style="yellow")


def _show_sets(sets: dict[str, Any]) -> None:
    header = ["attack of size", "coverage promised", "coverage, clean images", "labels in a set"]
    rows = [
        [
            measuring.radius_text(e) if e else "0",
            percent(1 - sets["alpha"]),
            percent(sets["coverage"][e]),
            f"{sets['size'][e]:.2f}",
        ]
        for e in sorted(sets["size"])
    ]
    table(
        header,
        rows,
        title=f"prediction sets: {sets['calibration_images']} images calibrate, "
        f"{sets['images']} are measured",
    )
    say(f"no attack takes the label out for {percent(sets['certified_coverage'])} of these")


def _how(arguments: Namespace, name: str, source: str, about: dict[str, Any]) -> dict[str, Any]:
    """How the numbers came about, without paths of this machine: the command works on any."""
    command = f"dynzoo evaluate {name} --update-card"
    if arguments.dataset and not arguments.data:
        command += f" --dataset {arguments.dataset}"
    elif arguments.data and about.get("dataset") is None:
        command += f" --data {Path(arguments.data).name}"
    if arguments.limit:
        command += f" --limit {arguments.limit}"
    if arguments.eps:
        command += " --eps " + ",".join(measuring.radius_text(e) for e in arguments.eps)
    attacks = ",".join(arguments.attacks)
    command += f" --attacks {attacks}"
    if arguments.keep_attacks:
        command += " --keep-attacks"
    if attacks != "none":
        command += f" --attack-limit {arguments.attack_limit}"
        if arguments.attack_certified != "first":
            command += f" --attack-certified {arguments.attack_certified}"
        if arguments.audit:
            command += " --audit"
    how: dict[str, Any] = {"split": "test", "backend": backend.name()}
    if arguments.data:
        path = Path(source)
        digest = f", SHA-256 {preset_files.sha256(path)}" if path.is_file() else " (folder)"
        how["data_file"] = f"{path.name}{digest}"
    elif arguments.dataset:
        how["dataset"] = source
    if attacks != "none":
        how["attacks"] = f"{attacks}, seed {arguments.seed}"
        if len(arguments.attacks) > 1 or arguments.attacks == ["standard"]:
            which = {"first": "the first attack", "all": "all attacks", "none": "no attack"}
            how["attacks"] += f", certified images by {which[arguments.attack_certified]}"
    return {**how, "command": command}


def _single(names: list[str]) -> str | list[str]:
    """A name alone, as which `fast` asks for its quick checks."""
    return names[0] if len(names) == 1 else names
