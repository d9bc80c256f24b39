"""What each subcommand of `dynzoo` does with its parsed arguments."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from dynzoo import backend, data, leaderboard, plots, runs, training
from dynzoo import demo as demonstration
from dynzoo import evaluation as measuring
from dynzoo import finetuning as tuning
from dynzoo.attacks.ensembles import makers
from dynzoo.comparison_command import compare_reports as compare_reports
from dynzoo.console import pairs, percent, progress, say, table
from dynzoo.models import preset_files, presets

# What a report can be saved as.
REPORTS = (".html", ".json", ".csv", ".npz")


def list_presets(arguments: Namespace) -> None:
    known = presets.presets()
    if arguments.leaderboard:
        ranked = leaderboard.leaderboard(known, arguments.dataset)
        if arguments.output:
            say(f"leaderboard: {leaderboard.save(ranked, arguments.output).absolute()}")
        else:
            table(*leaderboard.summary(ranked), title="percent; published: as their sources state")
        return
    for flag in ("dataset", "output"):
        if getattr(arguments, flag):
            raise ValueError(f"--{flag} needs --leaderboard")
    if not known:
        say("No presets are installed. `dynzoo train CONFIG` makes one from its recipe.")
        return
    rows = []
    for name, about in known.items():
        certified = about.get("certified_accuracy") or {}
        radius = next(iter(certified), None)
        rows.append(
            [
                name,
                str(about.get("dataset", "–")),
                f"{about.get('parameters', 0):,}",
                percent(about.get("accuracy")),
                "–" if radius is None else f"{percent(certified[radius])} at {radius}",
            ]
        )
    table(["preset", "data set", "parameters", "accuracy", "certified (L2)"], rows)


def info(arguments: Namespace) -> None:
    folder, about = _find(arguments.preset)
    shape = about.get("input_shape") or []
    trained = about.get("training") if isinstance(about.get("training"), dict) else {}
    pairs(
        {
            "preset": about.get("name"),
            "description": about.get("description"),
            "data set": about.get("dataset"),
            "input": " x ".join(map(str, shape)) + " in [0, 1]" if shape else None,
            "classes": about.get("num_classes"),
            "parameters": f"{about['parameters']:,}" if "parameters" in about else None,
            "Lipschitz bound": about.get("lipschitz"),
            "accuracy": percent(about["accuracy"]) if "accuracy" in about else None,
            "certified": _by_radius(about.get("certified_accuracy")),
            "attacked": _by_radius(about.get("attacked_accuracy")),
            "evaluation": _listed(about.get("evaluation")),
            "training": _listed(trained),
            "folder": folder,
            "files": ", ".join(about["files"]),
        }
    )
    say("\nUse it:\n")
    say("    import dynzoo")
    say(f'    model = dynzoo.from_preset("{arguments.preset}")')
    say("    labels, radii = dynzoo.certify(model).radii(images)  # images: (n, h, w, c) in [0, 1]")


def demo(arguments: Namespace) -> None:
    demonstration.run(Path(arguments.output), seed=arguments.seed)


def evaluate(arguments: Namespace) -> None:
    folder, about = _find(arguments.preset)
    source = arguments.data or arguments.dataset or about.get("dataset")
    if not source:
        raise ValueError(f"{folder} does not say its data set: pass --dataset or --data")
    recipe = about.get("recipe") if isinstance(about.get("recipe"), dict) else {}
    planned = recipe.get("evaluation", {}) if recipe else {}
    norm = arguments.norm or planned.get("norm", "l2")
    if arguments.attacks == ["none"]:
        for flag in ("output", "audit", "corruptions", "checkpoint"):
            if getattr(arguments, flag):
                raise ValueError(
                    f"--{flag} needs attacks: a report compares proved and attacked accuracy"
                )
    else:
        makers(arguments.attacks, norm, 0, 1)  # an unknown name, before hours of work
    if arguments.output and Path(arguments.output).suffix not in REPORTS:
        raise ValueError(
            f"--output must end in one of {', '.join(REPORTS)}. Received: {arguments.output}"
        )
    if arguments.update_card and norm != "l2":
        raise ValueError("--update-card needs --norm l2, the norm of a model card")
    model = presets.from_preset(folder)
    _, (x, y) = _load(source)
    x, y = x[: arguments.limit], y[: arguments.limit]
    _check_fit(model, x, y, source)
    name = about.get("name", folder.name)
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
        )
    show(measured, name)
    if arguments.output and measured.report is not None:
        say(f"report: {measured.report.save(arguments.output).absolute()}")
    if arguments.update_card:
        measuring.update_card(folder, measured, _how(arguments, name, source, about))
        say(f"card: {folder / 'README.md'}")


def finetune(arguments: Namespace) -> None:
    folder, about = _find(arguments.preset)
    source = arguments.data or arguments.dataset
    label = Path(source).stem if arguments.data else source
    parent = about.get("name", folder.name)
    output = Path(arguments.output or Path("runs") / f"{parent}_{label}")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"{output} exists already: choose another folder with --output")
    (x, y), (x_test, y_test) = _load(source)
    x, y = x[: arguments.limit], y[: arguments.limit]
    x_test, y_test = x_test[: arguments.limit], y_test[: arguments.limit]
    model = presets.from_preset(folder, num_classes=_classes(arguments.num_classes, y, y_test))
    _check_fit(model, x, y, source)
    before = measuring.accuracy(model, x_test, y_test)
    say(f"accuracy on {len(x_test)} test images before: {percent(before)}")
    tuning.finetune(
        model,
        x,
        y,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        batch_size=arguments.batch_size,
        freeze_body=arguments.freeze_body,
        seed=arguments.seed,
    )
    measured = measuring.measure(model, x_test, y_test, attacks="none")
    show(measured, f"{parent} after fine-tuning on {label}")
    presets.save_to_preset(
        model,
        output,
        {
            "description": f"{parent}, fine-tuned on {label}.",
            "dataset": label,
            "accuracy": measured.clean,
            "certified_accuracy": {
                measuring.radius_text(e): share for e, share in measured.certified.items()
            },
            "lipschitz": measured.lipschitz,
            "evaluation": {"split": "test", "images": measured.images},
            "training": {
                "hardware": runs.hardware(),
                "backend": backend.name(),
                "parent": parent,
                "images": len(x),
                "epochs": arguments.epochs,
                "learning_rate": arguments.learning_rate,
                "batch_size": arguments.batch_size,
                "freeze_body": arguments.freeze_body,
                "seed": arguments.seed,
            },
        },
    )
    say(f"preset: {output.absolute()}")


def train(arguments: Namespace) -> None:
    training.train(
        arguments.config,
        data_file=arguments.data,
        output=arguments.output,
        max_seconds=arguments.max_seconds,
        resume=arguments.resume,
        verbose=0 if arguments.quiet else "auto",
        log=lambda line: print(line, flush=True),
    )


def show(measured: measuring.Measurement, title: str) -> None:
    """The numbers of a measurement as a table, and what casts doubt on them."""
    header = ["radius", f"certified, {measured.images} images"]
    attacked = measured.attacked_images
    partly = 0 < attacked < measured.images
    if partly:
        header.append(f"certified, first {attacked}")
    if attacked:
        header.append(f"under attack, first {attacked}" if partly else "under attack")
    rows = []
    for eps, certified, certified_first, robust in measured.rows():
        name = measuring.radius_text(eps) if eps else "0 (clean)"
        cells = [percent(certified)]
        if partly:
            cells.append(percent(certified_first))
        if attacked:
            cells.append(percent(robust))
        rows.append([name, *cells])
    say()
    table(header, rows, title=f"{title}, {plots.norm_text(measured.norm)}")
    say(f"Lipschitz bound, images to logits (L2): {measured.lipschitz:.6g}")
    for warning in measured.report.warnings if measured.report is not None else ():
        say(f"warning: {warning}", style="yellow")


def _find(name: str) -> tuple[Path, dict[str, Any]]:
    folder = presets._resolve(name)
    return folder, preset_files.read_metadata(folder)


def _load(source: str) -> tuple[data.Split, data.Split]:
    try:
        return data.load(source)
    except RuntimeError as error:  # neither here nor to be had: the message says what to do
        raise ValueError(str(error)) from error


def _check_fit(model: Any, x: np.ndarray, y: np.ndarray, source: str) -> None:
    if tuple(model.input_shape[1:]) != x.shape[1:]:
        raise ValueError(
            f"the model takes images of shape {tuple(model.input_shape[1:])}, "
            f"{source} has images of shape {x.shape[1:]}"
        )
    if y.max() >= model.output_shape[-1]:
        raise ValueError(
            f"the model has {model.output_shape[-1]} classes, {source} has the label {y.max()}"
        )


def _classes(text: str, *labels: np.ndarray) -> int:
    if text == "auto":
        return max(2, *(int(y.max()) + 1 for y in labels))
    if not text.isdecimal() or int(text) < 2:
        raise ValueError(f"--num-classes must be 'auto' or an integer >= 2. Received: {text}")
    return int(text)


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
    if attacks != "none":
        command += f" --attacks {attacks} --attack-limit {arguments.attack_limit}"
        if arguments.attack_certified != "first":
            command += f" --attack-certified {arguments.attack_certified}"
        if arguments.audit:
            command += " --audit"
    how: dict[str, Any] = {"split": "test", "backend": backend.name()}
    if arguments.data:
        how["data_file"] = f"{Path(source).name}, SHA-256 {preset_files.sha256(Path(source))}"
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


def _by_radius(values: dict[str, float] | None) -> str:
    return ", ".join(f"{percent(share)} at {radius}" for radius, share in (values or {}).items())


def _listed(values: dict[str, Any] | None) -> str:
    return "\n".join(f"{key}: {value}" for key, value in (values or {}).items() if value)
