"""`dynzoo evaluate`: a preset is certified and attacked, and its card written."""

from __future__ import annotations

import contextlib
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynzoo._startup import backend_name, load_keras
from dynzoo.cli.console import percent, progress, say, table
from dynzoo.cli.inputs import check_fit, find_preset, first, load_data, matched_labels
from dynzoo.cli.options import DATASET, FILE, add_preset, names, positive, radii, seed, shard
from dynzoo.data.sources import check_source
from dynzoo.utils import extras, interruption
from dynzoo.utils.files import check_place
from dynzoo.zoo import files as preset_files

if TYPE_CHECKING:
    from dynzoo.robustness.report import RobustnessReport
    from dynzoo.zoo.measurement import Measurement

NAME = "evaluate"
HELP = "measure clean, certified and attacked accuracy of a preset on its own test set"

# What a report can be saved as.
REPORTS = (".html", ".json", ".csv", ".npz")


def add_arguments(parser: ArgumentParser) -> None:
    add_preset(parser)
    parser.add_argument("--data", metavar="PATH", help=FILE)
    parser.add_argument("--dataset", metavar="NAME", help=f"another data set: {DATASET}")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N images only")
    parser.add_argument("--norm", choices=("l2", "linf"), help="default: the preset's, else l2")
    parser.add_argument(
        "--eps",
        type=radii,
        metavar="RADII",
        help="radii for pixels in [0, 1], such as 36/255,72/255; default: the preset's",
    )
    _add_attacks(parser)
    parser.add_argument(
        "--audit", action="store_true", help="try to refute the Lipschitz bound by a steep slope"
    )
    parser.add_argument(
        "--corruptions", action="store_true", help="measure fifteen corruptions as well"
    )
    parser.add_argument(
        "--prediction-sets",
        type=float,
        metavar="ALPHA",
        help="sets of labels that hold the right one, under attack, with probability 1 - ALPHA: "
        "half of the images of the report calibrate, the other half is measured",
    )
    _add_local(parser)
    add_smoothing(parser)
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write the report: .html, .json, or each attack's outcomes as .csv or .npz",
    )
    parser.add_argument("--batch-size", type=positive, default=256, metavar="N")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the attacks")
    parser.add_argument(
        "--update-card",
        action="store_true",
        help="put the numbers into the preset's metadata.json and README.md",
    )
    parser.add_argument(
        "--keep-attacks",
        action="store_true",
        help="with --update-card and --attacks none: leave the attacks' numbers on the card",
    )


def _add_attacks(parser: ArgumentParser) -> None:
    """Which attacks, on which images, and how the work is kept and divided."""
    parser.add_argument(
        "--attacks",
        type=names,
        default=["standard"],
        metavar="NAMES",
        help="standard: AutoAttack (long on a CPU: see --checkpoint); fast: one run of PGD; "
        "none; or names such as pgd_margin or apgd-t,square (default: standard)",
    )
    parser.add_argument(
        "--attack-limit",
        type=positive,
        default=1000,
        metavar="N",
        help="attack the first N images (default: 1000); all are certified",
    )
    parser.add_argument(
        "--attack-certified",
        choices=("first", "all", "none"),
        default="first",
        help="attacks that try images which are certified at a radius (default: the first)",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="an .npz file from which a stopped run goes on; with --jobs, --shards or --shard a "
        "folder; smoothing has a .json file beside it",
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="attack, certify with --local, audit, corrupt and smooth in N processes of one thread "
        "each",
    )
    parser.add_argument(
        "--shards",
        type=positive,
        metavar="N",
        help="attack the images in N parts (default with --jobs: 8 or more)",
    )
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="K/N",
        help="attack part K of N alone, into the folder --checkpoint, and stop; when all N are "
        "there, `dynzoo merge FOLDER` makes the report",
    )


def _add_local(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--local",
        choices=("movement", "crown", "alpha-crown", "complete"),
        help="certify the images of the report each on its own ball; complete: shares that are "
        "certified, falsified and unknown",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="for an image, with --local (default: none; a minute with complete)",
    )


def add_smoothing(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--smoothing",
        type=float,
        metavar="SIGMA",
        help="certify the answer under Gaussian noise of this standard deviation (randomised "
        "smoothing), on the first images, too",
    )
    parser.add_argument(
        "--smoothing-samples",
        type=positive,
        default=10_000,
        metavar="N",
        help="noisy copies of an image, with --smoothing (default: 10000)",
    )
    parser.add_argument(
        "--smoothing-limit",
        type=positive,
        default=500,
        metavar="N",
        help="smooth the first N images (default: 500)",
    )


def run(options: Namespace) -> None:
    folder, about = find_preset(options.preset)
    source = options.data or options.dataset or about.get("dataset")
    if not source:
        raise ValueError(f"{folder} does not say its data set: pass --dataset or --data")
    check_source(source)
    recipe = about.get("recipe") if isinstance(about.get("recipe"), dict) else {}
    planned = recipe.get("evaluation", {}) if recipe else {}
    norm = options.norm or planned.get("norm", "l2")
    _check_options(options, norm)
    _check_places(options, folder)
    load_keras()
    _evaluate(options, folder, about, source, norm, planned.get("eps"))


def _check_options(options: Namespace, norm: str) -> None:
    """Numbers, names of files, and what the options ask of each other."""
    if options.prediction_sets is not None:
        from dynzoo.utils.arguments import number  # NumPy: only where there is something to check

        number("prediction_sets", options.prediction_sets, 0.0, 1.0, closed="none")
    if options.time_limit is not None:
        from dynzoo.utils.arguments import number  # as above

        number("time_limit", options.time_limit)
        if options.local in (None, "movement"):
            raise ValueError("--time-limit needs --local crown, alpha-crown or complete")
    if options.smoothing is not None:
        from dynzoo.utils.arguments import number  # as above

        number("smoothing", options.smoothing)
        if norm != "l2":
            raise ValueError("--smoothing needs --norm l2, the norm of its radii")
    if options.local and options.prediction_sets is not None:
        raise ValueError("--prediction-sets needs the Lipschitz bound, not --local")
    if options.local and (options.audit or options.update_card):
        name = "--audit" if options.audit else "--update-card"
        raise ValueError(f"{name} is of the Lipschitz bound: leave --local out")
    if options.attacks == ["none"]:
        if options.checkpoint and options.smoothing is None:
            raise ValueError(
                "--checkpoint needs attacks or --smoothing: it is they that go on from it"
            )
        if options.shards or options.shard:
            raise ValueError("--shards and --shard need attacks: it is they that are divided")
        parts = (options.local, options.audit, options.corruptions, options.smoothing)
        if options.jobs and not any(parts):
            raise ValueError("--jobs has nothing to share: no attacks, --local, --audit, "
                             "--corruptions or --smoothing")  # fmt: skip
    if options.shard:
        _check_shard(options)
    if _divided(options) and options.checkpoint and Path(options.checkpoint).is_file():
        raise ValueError(
            f"--checkpoint must be a folder with --jobs, --shards or --shard. Received: a file, "
            f"{options.checkpoint}"
        )
    if options.output and Path(options.output).suffix not in REPORTS:
        raise ValueError(
            f"--output must end in one of {', '.join(REPORTS)}. Received: {options.output}"
        )
    if options.output and Path(options.output).suffix == ".html":
        extras.check("plots")
    if options.jobs not in (None, 1):
        extras.check("parallel")
    if options.keep_attacks and not (options.update_card and options.attacks == ["none"]):
        raise ValueError("--keep-attacks needs --update-card and --attacks none")
    if options.update_card and norm != "l2":
        raise ValueError("--update-card needs --norm l2, the norm of a model card")


def _check_places(options: Namespace, folder: Path) -> None:
    """That what comes of hours of work can be written."""
    if options.output:
        check_place(options.output)
    if options.checkpoint:
        check_place(options.checkpoint, folder=_divided(options))
    if options.update_card:
        check_place(folder, folder=True)


def _divided(options: Namespace) -> bool:
    """Whether the checkpoint is a folder, of a file for each part."""
    return bool(options.jobs or options.shards or options.shard)


def _check_shard(options: Namespace) -> None:
    if not options.checkpoint:
        raise ValueError("--shard needs --checkpoint FOLDER, into which its part goes")
    of_the_report = ("jobs", "shards", "local", "output", "audit", "corruptions", "update_card")
    for name in (*of_the_report, "prediction_sets", "smoothing"):
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} is of a whole report, not of one part")


def _evaluate(
    options: Namespace,
    folder: Path,
    about: dict[str, Any],
    source: str,
    norm: str,
    planned: list[float] | None,
) -> None:
    # Keras and what stands on it: wrong arguments do not pay for them
    from dynzoo import backend
    from dynzoo.attacks.ensembles import makers
    from dynzoo.inference.class_names import names_of
    from dynzoo.zoo.measurement import measure, update_card
    from dynzoo.zoo.preset_folder import from_preset

    if options.attacks != ["none"]:
        makers(options.attacks, norm, 0, 1)  # an unknown name, before hours of work
    interruption.keeps(lambda: _kept(options.checkpoint))
    name = about.get("name", folder.name)
    say(f"{name}: reading {source}")
    model = from_preset(folder)
    x, y = first(load_data(source, about)[1], options.limit)
    y, classes = matched_labels(y, source, name, names_of(model))
    check_fit(model, x, y, source)
    parameters = f"{model.count_params():,} parameters"
    say(f"{len(x):,} test images; {parameters}; compiling for {backend.name()}")
    eps = options.eps or planned or (36 / 255, 72 / 255, 108 / 255)
    if options.shard:
        _attack_part(options, model, x, y, norm, eps)
        return
    with progress(f"certifying {len(x)} images", len(x)) as tick:
        measured = measure(
            model,
            x,
            y,
            norm=norm,
            eps=eps,
            attacks="none" if options.attacks == ["none"] else _single(options.attacks),
            attack_limit=options.attack_limit,
            batch_size=options.batch_size,
            seed=options.seed,
            verbose=1,
            class_names=classes,
            title=f"Robustness of {name}",
            tick=tick,
            checkpoint=options.checkpoint,
            attack_certified=options.attack_certified,
            audit=options.audit,
            corruptions=options.corruptions,
            report=bool(options.output),
            prediction_sets=options.prediction_sets,
            local=options.local,
            time_limit=options.time_limit,
            jobs=options.jobs,
            shards=options.shards,
            smoothing=options.smoothing,
            smoothing_samples=options.smoothing_samples,
            smoothing_limit=options.smoothing_limit,
        )
    show(measured, name, options.local)
    if options.output and measured.report is not None:
        say(f"report: {measured.report.save(options.output).absolute()}")
    if options.update_card:
        how = _how(options, name, source, about)
        update_card(folder, measured, how, options.keep_attacks)
        say(f"card: {folder / 'README.md'}")


def _attack_part(options: Namespace, model: Any, x: Any, y: Any, norm: str, eps: Any) -> None:
    """One part of the attacks, as ``measure`` makes them of all images, into the folder."""
    from dynzoo.certificates import UncertifiableLayerError, certify
    from dynzoo.robustness.evaluation import attack_part
    from dynzoo.robustness.shard_files import missing, save_plan

    number, shards = options.shard
    attacked = slice(options.attack_limit)
    save_plan(Path(options.checkpoint), plan_of(options, norm, list(eps)), shards)
    certificate = None
    with contextlib.suppress(UncertifiableLayerError):  # attacked all the same, as by `measure`
        certificate = certify(model)
    attack_part(
        model,
        x[attacked],
        y[attacked],
        norm,
        eps,
        _single(options.attacks),
        options.batch_size,
        certificate,
        options.seed,
        1,
        options.checkpoint,
        options.attack_certified,
        shards,
        number - 1,
    )
    left = missing(options.checkpoint, shards)
    say(f"part {number} of {shards} is in {options.checkpoint}; {len(left)} are missing")
    if not left:
        say(f"next: dynzoo merge {options.checkpoint} --output report.html")


def plan_of(options: Namespace, norm: str, eps: list[float]) -> dict[str, Any]:
    """What all parts of an evaluation have in common: options of this command."""
    kept = ("preset", "data", "dataset", "limit", "attacks", "attack_limit", "attack_certified")
    plan = {name: getattr(options, name) for name in (*kept, "batch_size", "seed")}
    return {**plan, "norm": norm, "eps": eps}


def _kept(checkpoint: str | None) -> str:
    from dynzoo.zoo.measurement import smoothing_file  # Keras is loaded by then

    if checkpoint:
        places = {Path(checkpoint): "attacked", smoothing_file(checkpoint): "smoothed"}
        found = [f"{place} has what was {what}" for place, what in places.items() if place.exists()]
        if found:
            return f"{' and '.join(found)} so far, go on: {interruption.command()}"
    again = f"nothing new was kept, start again: {interruption.command()}"
    return again if checkpoint else f"{again} (with --checkpoint FILE it would go on)"


def show(measured: Measurement, title: str, local: str | None = None) -> None:
    """The numbers of a measurement as a table, and what casts doubt on them."""
    # Keras is loaded where something was measured
    from dynzoo.plots import norm_text
    from dynzoo.zoo.measurement import radius_text

    proved = measured.lipschitz is not None
    header = ["radius", f"{'certified' if proved else 'right'}, {measured.images} images"]
    attacked = measured.attacked_images
    partly = 0 < attacked < measured.images
    if partly and proved:
        header.append(f"certified, first {attacked}")
    if attacked:
        header.append(f"under attack, first {attacked}" if partly else "under attack")
    if measured.top5 is not None:
        header.append("certified top-5")
    rows = []
    for eps, certified, certified_first, robust in measured.rows():
        name = radius_text(eps) if eps else "0 (clean)"
        cells = [percent(certified)]
        if partly and proved:
            cells.append(percent(certified_first))
        if attacked:
            cells.append(percent(robust))
        if measured.top5 is not None:
            cells.append(percent(measured.certified_top5.get(eps) if eps else measured.top5))
        rows.append([name, *cells])
    say()
    table(header, rows, title=f"{title}, {norm_text(measured.norm)}")
    if measured.lipschitz is None:
        say(f"no certificate: {measured.uncertified}")
    else:
        say(f"Lipschitz bound, images to logits (L2): {measured.lipschitz:.6g}")
    if measured.smoothed is not None:
        _show_smoothed(measured.smoothed)
    if measured.report is not None and measured.report.prediction_sets is not None:
        _show_sets(measured.report.prediction_sets)
    if local and measured.report is not None:
        _show_local(measured.report, local)
    for warning in measured.report.warnings if measured.report is not None else ():
        say(f"warning: {warning}", style="yellow")


def _show_local(report: RobustnessReport, method: str) -> None:
    from dynzoo.zoo.measurement import radius_text  # as above

    decisions = report.decisions or {
        e: {"certified": share} for e, share in report.certified.items() if share is not None
    }
    words = list(next(iter(decisions.values()), {}))
    rows = [
        [radius_text(e), *(percent(decisions[e][word]) for word in words)]
        for e in sorted(decisions)
    ]
    table(["radius", *words], rows, title=f"at the image ({method}), {report.images} images")


def _show_smoothed(smoothed: dict[str, Any]) -> None:
    from dynzoo.zoo.measurement import radius_text  # as above

    rows = [["0 (clean)", percent(smoothed["clean"])]]
    rows += [[radius_text(e), percent(share)] for e, share in smoothed["certified"].items()]
    settings = smoothed["settings"]
    title = f"under noise of {settings['sigma']:g}, {smoothed['images']} images"
    table(["radius", "certified, smoothed"], rows, title=title)
    say(f"each radius by {settings['samples']:,} draws, wrong with chance {settings['alpha']:g}")


def _show_sets(sets: dict[str, Any]) -> None:
    from dynzoo.zoo.measurement import radius_text  # as above

    header = ["attack of size", "coverage promised", "coverage, clean images", "labels in a set"]
    rows = [
        [
            radius_text(e) if e else "0",
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


def _how(options: Namespace, name: str, source: str, about: dict[str, Any]) -> dict[str, Any]:
    """How the numbers came about, without paths of this machine: the command works on any."""
    from dynzoo.zoo.measurement import radius_text  # as above

    command = f"dynzoo evaluate {name} --update-card"
    if options.dataset and not options.data:
        command += f" --dataset {options.dataset}"
    elif options.data and about.get("dataset") is None:
        command += f" --data {Path(options.data).name}"
    if options.limit:
        command += f" --limit {options.limit}"
    if options.eps:
        command += " --eps " + ",".join(radius_text(e) for e in options.eps)
    attacks = ",".join(options.attacks)
    command += f" --attacks {attacks}"
    if options.keep_attacks:
        command += " --keep-attacks"
    if options.shards:
        command += f" --shards {options.shards}"
    elif options.jobs:
        command += f" --jobs {options.jobs}"
    if attacks != "none":
        command += f" --attack-limit {options.attack_limit}"
        if options.attack_certified != "first":
            command += f" --attack-certified {options.attack_certified}"
        if options.audit:
            command += " --audit"
    if options.smoothing is not None:
        command += f" --smoothing {options.smoothing:g}"
        if options.smoothing_samples != 10_000:
            command += f" --smoothing-samples {options.smoothing_samples}"
        if options.smoothing_limit != 500:
            command += f" --smoothing-limit {options.smoothing_limit}"
    how: dict[str, Any] = {"split": "test", "backend": backend_name()}
    if options.data:
        path = Path(source)
        digest = f", SHA-256 {preset_files.sha256(path)}" if path.is_file() else " (folder)"
        how["data_file"] = f"{path.name}{digest}"
    elif options.dataset:
        how["dataset"] = source
    if attacks != "none":
        how["attacks"] = f"{attacks}, seed {options.seed}"
        if len(options.attacks) > 1 or options.attacks == ["standard"]:
            which = {"first": "the first attack", "all": "all attacks", "none": "no attack"}
            how["attacks"] += f", certified images by {which[options.attack_certified]}"
    return {**how, "command": command}


def _single(names: list[str]) -> str | list[str]:
    """A name alone, as which `fast` asks for its quick checks."""
    return names[0] if len(names) == 1 else names
