"""`dynzoo import`: a network of PyTorch or ONNX as a preset, with what is proved of it."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from dynzoo._startup import load_keras
from dynzoo.cli.console import pairs, say
from dynzoo.cli.options import DATASET
from dynzoo.data.sources import check_source
from dynzoo.utils.files import check_place, sha256
from dynzoo.zoo.files import check_target

if TYPE_CHECKING:
    import keras

NAME = "import"
HELP = "make a preset of a network that was trained with PyTorch, or of an ONNX file"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a state dict of PyTorch, as torch.save writes it, or a file that ends in .onnx",
    )
    parser.add_argument(
        "--arch",
        metavar="FILE",
        help="the layers of a state dict, as .yaml or .json: docs/convert.md says how",
    )
    parser.add_argument(
        "--input-shape",
        type=_shape,
        metavar="SIZES",
        help="height,width,channels of an image, where neither FILE nor --arch states it",
    )
    parser.add_argument(
        "--network",
        type=_place,
        metavar="N",
        help="which network, if FILE holds a list of state dicts; the first is 0",
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help=f"what it was trained on, for `evaluate`: {DATASET}"
    )
    parser.add_argument(
        "--flows",
        action="store_true",
        help="residual blocks of 1-Lipschitz networks as single layers, each bounded as a whole",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="the preset to write; default runs/<name of FILE>"
    )


def _shape(text: str) -> list[int]:
    sizes = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
        raise ArgumentTypeError(f"must be numbers of pixels such as 32,32,3, not {text!r}")
    return sizes


def _place(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ArgumentTypeError(f"must be at least 0, not {value}")
    return value


def run(options: Namespace) -> None:
    file = Path(options.file)
    output = Path(options.output or Path("runs") / file.stem)
    onnx = file.suffix.lower() == ".onnx"
    for path in (options.file, options.arch):
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"There is no file {path}")
    if onnx and (options.arch is not None or options.network is not None):
        raise ValueError("--arch and --network go with weights of PyTorch; ONNX holds its layers.")
    if not onnx and options.arch is None:
        raise ValueError("--arch is needed with weights of PyTorch, which do not hold the layers.")
    check_target(output, overwrite=False)
    check_place(output, folder=True)
    if options.dataset is not None:
        check_source(options.dataset)
    load_keras()
    # Keras and what stands on it: wrong arguments do not pay for them
    from dynzoo.certificates.certificate import certify
    from dynzoo.certificates.errors import UncertifiableLayerError
    from dynzoo.convert.comparison import IMAGES, TOLERANCE
    from dynzoo.zoo.preset_folder import save_to_preset

    say(f"{file.name}: reading the network, and comparing it on {IMAGES} random images")
    model = _converted(options, onnx)
    if options.flows:
        from dynzoo.convert.flows import to_flows  # as above

        model = to_flows(model)
    lipschitz = reason = None
    try:
        lipschitz = certify(model).lipschitz
    except UncertifiableLayerError as error:
        reason = str(error)
    about = {"dataset": options.dataset} if options.dataset else {}
    source = {"file": file.name, "sha256": sha256(file)}
    save_to_preset(model, output, {**about, "imported": source})
    pairs(
        {
            "images": " x ".join(str(n) for n in model.input_shape[1:]),
            "classes": model.output_shape[-1],
            "parameters": model.count_params(),
            "logits as those of": f"{'ONNX' if onnx else 'PyTorch'}, to {TOLERANCE:g}",
            "Lipschitz bound": lipschitz,
            "no certificate": reason,
        }
    )
    say(f"imported: {output.absolute()}")


def _converted(options: Namespace, onnx: bool) -> keras.Model:
    from dynzoo.convert.onnx_graph import from_onnx
    from dynzoo.convert.torch_graph import from_torch

    try:
        if onnx:
            return from_onnx(options.file, options.input_shape)
        return from_torch(options.file, options.input_shape, options.arch, options.network)
    except ImportError as error:  # of PyTorch or onnx: the message says what to install
        raise ValueError(str(error)) from error
