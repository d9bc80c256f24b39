"""`dynzoo demo`: pretrained model, fine-tuning, certificate, attack, report, in one command.

And a look at the zoo: what each dynamical system promises, and what is measured of it here and now.
Needs no network and no data set: the weights come with dynzoo, the digits with scikit-learn.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from dynzoo._startup import backend_name, load_keras
from dynzoo.cli.console import percent, say
from dynzoo.cli.inputs import find_preset
from dynzoo.cli.options import seed

NAME = "demo"
HELP = "fine-tune a pretrained model on handwritten digits, certify it, attack it, and report"

PRESET = "isometric_tiny_cifar10"
EPOCHS = 4
# digits are black and white: their certified radii are larger than those of photographs
EPS = (0.5, 1.0, 1.5)
# half of the test digits: all batches then have one shape, which a backend compiles once
ATTACKED = 180


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--output", default=".", metavar="DIR", help="where report.html goes")
    parser.add_argument("--seed", type=seed, default=0)


def run(options: Namespace) -> None:
    find_preset(PRESET)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    load_keras()
    _demo(output, options.seed)


def _demo(output: Path, seed: int) -> None:
    # Keras and what stands on it: wrong arguments do not pay for them
    from dynzoo.data import datasets as data
    from dynzoo.training.finetuning import finetune
    from dynzoo.zoo.measurement import accuracy, measure, radius_text
    from dynzoo.zoo.preset_folder import from_preset

    started = time.monotonic()
    say(f"1. {PRESET}, pretrained, on {backend_name()}", style="bold")
    model = from_preset(PRESET, num_classes=10)
    (x_train, y_train), (x_test, y_test) = data.load("digits")
    say(f"   {model.count_params():,} parameters; compiling for {len(x_test)} test digits")
    before = accuracy(model, x_test, y_test, batch_size=ATTACKED)

    say(f"2. Fine-tuning on {len(x_train)} handwritten digits with model.fit", style="bold")
    finetune(model, x_train, y_train, epochs=EPOCHS, seed=seed)

    say(f"3. Certifying {len(x_test)} digits, attacking the first {ATTACKED}", style="bold")
    measured = measure(
        model,
        x_test,
        y_test,
        eps=EPS,
        attacks="fast",
        attack_limit=ATTACKED,
        batch_size=ATTACKED,
        seed=seed,
        class_names=data.class_names("digits"),
        title=f"{PRESET}, fine-tuned on handwritten digits",
    )
    report = measured.report
    assert report is not None
    after = measured.clean
    say(f"   accuracy on {len(x_test)} test digits: {percent(before)} before, {percent(after)} now")
    say(f"   Lipschitz bound of the whole model: {measured.lipschitz:.6f}")
    for eps in EPS:
        say(
            f"   L2 radius {radius_text(eps):>7}: proved for {percent(measured.certified[eps])} "
            f"of all; of the first {report.images}, {percent(report.certified[eps])} proved, "
            f"{percent(report.robust[eps])} survive PGD"
        )
    for warning in report.warnings:
        say(f"   warning: {warning}", style="yellow")
    report.sections.append(
        (
            "The model",
            [
                ("pretrained", PRESET),
                ("fine-tuned on", f"scikit-learn digits, {len(x_train)} images, {EPOCHS} epochs"),
                ("test accuracy before", percent(before)),
                ("test accuracy after", percent(after)),
                ("test images", str(len(x_test))),
            ],
        )
    )
    say("4. The zoo: each system with random weights, what it promises, what came of it", "bold")
    report.sections.append(("The zoo", _gallery()))
    path = report.save(output / "report.html").absolute()
    say(f"5. Report: {path}", style="bold")
    say(f"   {time.monotonic() - started:.0f} s in all")


def _gallery() -> tuple[str, bytes, list[tuple[str, str]]]:
    """Prints a line a system; the same with a picture as a section of the report."""
    # Keras and what stands on it, as above
    from dynzoo import plots
    from dynzoo.gallery import portraits

    paths, rows = {}, []
    for p in portraits():
        mark = "kept" if p.kept else "BROKEN"
        say(
            f"   {p.title:<38} {p.promise:<33} {mark}: {p.measured}",
            style=None if p.kept else "red",
        )
        paths[p.title] = p.path
        rows.append((p.title, f"{p.promise}; measured: {p.measured} ({mark})"))
    text = (
        "A layer of dynzoo is a step of a dynamical system. Thirteen systems in the plane, random "
        "weights, eight starts each (dots): what each promises, and what was measured of it."
    )
    return text, plots.png(plots.portrait_figure(paths, columns=4)), rows
