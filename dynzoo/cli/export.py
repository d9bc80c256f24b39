"""`dynzoo export`: a preset as a graph that runs without dynzoo, and its certificate."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from dynzoo._startup import (
    backend_name,
    held_standard_error,
    is_tensorflow_talk,
    load_keras,
)
from dynzoo.cli.console import pairs, say
from dynzoo.cli.inputs import find_preset, load_data
from dynzoo.cli.options import FILE, add_preset
from dynzoo.data.sources import check_source
from dynzoo.export.formats import FORMATS, check_writable

NAME = "export"
HELP = "write a preset as a graph for another runtime, with its certificate beside it"

# Of images that do not fit into memory, so many are compared.
_STREAMED = 1000


def add_arguments(parser: ArgumentParser) -> None:
    add_preset(parser)
    parser.add_argument(
        "--format",
        required=True,
        choices=tuple(FORMATS),
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
    parser.add_argument(
        "--radii",
        action="store_true",
        help="let the graph give labels and certified radii as well, after the logits",
    )
    parser.add_argument("--data", metavar="PATH", help=f"{FILE}: images for the check")


def run(options: Namespace) -> None:
    folder, about = find_preset(options.preset)
    name = about.get("name", folder.name)
    output = Path(options.output or Path("runs") / f"{name}_{options.format}")
    check_writable(output, options.format, backend_name(), run=not options.no_check)
    if options.data is not None:
        check_source(options.data)
    load_keras()
    # Keras and what stands on it: wrong arguments do not pay for them
    from dynzoo.export.exporter import export_model
    from dynzoo.inference.streamed_images import StreamedImages
    from dynzoo.zoo.preset_folder import from_preset

    say(f"{name}: writing {options.format} to {output}")
    images = load_data(options.data, about)[1][0] if options.data else None
    if isinstance(images, StreamedImages):
        images = images[:_STREAMED]
    # Keras' exporters import TensorFlow on every backend, and it talks of the machine.
    with held_standard_error(lambda line, failed: not is_tensorflow_talk(line)):
        written = export_model(
            from_preset(folder),
            output,
            options.format,
            x=images,
            check=not options.no_check,
            radii=options.radii,
            source={"preset": name, "files": about["files"]},
        )
    checked = written["check"] or {}
    pairs(
        {
            "graph": output.absolute() / FORMATS[options.format].file,
            "outputs": ", ".join(written["graph"]["outputs"]),
            "Lipschitz bound": written.get("lipschitz"),
            "no certificate": written.get("reason"),
            "checked with": checked.get("runtime"),
            "images": checked.get("images"),
            "largest difference of logits": checked.get("largest_logit_difference"),
        }
    )
    say(f"exported: {output.absolute()}")
