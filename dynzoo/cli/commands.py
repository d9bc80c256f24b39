"""What each subcommand of `dynzoo` does with its parsed arguments."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from dynzoo import backend
from dynzoo.cli import demo as demonstration
from dynzoo.cli.compare import compare_reports as compare_reports
from dynzoo.cli.console import pairs, percent, say, table
from dynzoo.cli.evaluate import evaluate as evaluate
from dynzoo.cli.evaluate import show
from dynzoo.cli.export import export as export
from dynzoo.cli.inputs import check_fit, classes, find_preset, first, load_data, names_of_data
from dynzoo.cli.predict import predict as predict
from dynzoo.cli.search import search as search
from dynzoo.cli.train import train as train
from dynzoo.training import finetuning as tuning
from dynzoo.training import run as runs
from dynzoo.zoo import leaderboard, presets
from dynzoo.zoo import measurement as measuring


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
    folder, about = find_preset(arguments.preset)
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
            "top-5": percent(about["top5_accuracy"]) if "top5_accuracy" in about else None,
            "certified top-5": _by_radius(about.get("certified_top5_accuracy")),
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


def finetune(arguments: Namespace) -> None:
    folder, about = find_preset(arguments.preset)
    source = arguments.data or arguments.dataset
    label = Path(source).stem if arguments.data else source
    parent = about.get("name", folder.name)
    output = Path(arguments.output or Path("runs") / f"{parent}_{label}")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"{output} exists already: choose another folder with --output")
    say(f"{parent}: reading {source}")
    splits = load_data(source, about)
    (x, y), (x_test, y_test) = (first(split, arguments.limit) for split in splits)
    model = presets.from_preset(folder, num_classes=classes(arguments.num_classes, y, y_test))
    check_fit(model, x, y, source)
    say(
        f"{len(x):,} images to train on, {len(x_test):,} to test with; {model.count_params():,} "
        f"parameters; compiling for {backend.name()}"
    )
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
        crop_padding=arguments.crop_padding,
        flip=arguments.flip,
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
            **names_of_data(source, model.output_shape[-1]),
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
                "crop_padding": arguments.crop_padding,
                "flip": arguments.flip,
                "seed": arguments.seed,
            },
        },
    )
    say(f"preset: {output.absolute()}")


def _by_radius(values: dict[str, float] | None) -> str:
    return ", ".join(f"{percent(share)} at {radius}" for radius, share in (values or {}).items())


def _listed(values: dict[str, Any] | None) -> str:
    return "\n".join(f"{key}: {value}" for key, value in (values or {}).items() if value)
