"""`dynzoo export`: a preset as a graph that runs without dynzoo, and its certificate."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_export_arguments(parser: ArgumentParser) -> None:
    """What this command takes."""
    parser.add_argument(
        "--format",
        required=True,
        choices=("onnx", "saved_model", "torch", "litert"),
        help="onnx (PyTorch, TensorFlow), saved_model (TensorFlow, JAX), torch (PyTorch) or "
        "litert (TensorFlow); in brackets the backends that write it",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder to write; default runs/PRESET_FORMAT"
    )
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="do not run the exported graph; default: its logits and radii on 100 images are "
        "compared with the model's, and a graph that differs is removed",
    )


# Of images that do not fit into memory, so many are compared.
_STREAMED = 1000


def export(arguments: Namespace) -> None:
    from dynzoo.cli.console import pairs, say
    from dynzoo.cli.inputs import find_preset, load_data
    from dynzoo.export.exporter import FORMATS, check_target, export_model
    from dynzoo.inference.streamed_images import StreamedImages
    from dynzoo.zoo import presets

    folder, about = find_preset(arguments.preset)
    name = about.get("name", folder.name)
    output = Path(arguments.output or Path("runs") / f"{name}_{arguments.format}")
    check_target(output, arguments.format, check=not arguments.no_check)
    say(f"{name}: writing {arguments.format} to {output}")
    images = load_data(arguments.data, about)[1][0] if arguments.data else None
    if isinstance(images, StreamedImages):
        images = images[:_STREAMED]
    model = presets.from_preset(folder)
    written = export_model(
        model,
        output,
        arguments.format,
        x=images,
        check=not arguments.no_check,
        source={"preset": name, "files": about["files"]},
    )
    checked = written["check"] or {}
    pairs(
        {
            "graph": output.absolute() / FORMATS[arguments.format].file,
            "Lipschitz bound": written.get("lipschitz"),
            "no certificate": written.get("reason"),
            "checked with": checked.get("runtime"),
            "images": checked.get("images"),
            "largest difference of logits": checked.get("largest_logit_difference"),
        }
    )
    say(f"exported: {output.absolute()}")
