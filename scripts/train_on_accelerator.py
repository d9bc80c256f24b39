"""Train a recipe on a machine with an accelerator and little else: smoke test, pilot, training.

    python scripts/train_on_accelerator.py RECIPE --data A.npz [B.npz ...] --output DIR
        --max-seconds N [--pilot N | --smoke N] [--start PRESET] [--set KEY=VALUE ...] [--cpu]

Needs JAX, Keras, NumPy, SciPy, h5py, PyYAML, rich, Matplotlib and Pillow, and of the repository
dynzoo/, zoo_configs/ and scripts/. RECIPE is a file or the name of one that ships; it is trained as
`training.resident` and `training.clock` have it, whatever it says itself. --max-seconds counts from
the start of this program. At 60, 80 and 100 % of the time DIR gets the preset so far in float16, no
file above 16 MiB, and run.json; scripts/finish_preset.py makes the finished preset of them.
"""

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from pathlib import Path

START = time.monotonic()
os.environ["KERAS_BACKEND"] = "jax"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
_SMOKE = {"widths": [16], "steps": [1], "neck_units": 16, "dense_steps": 1}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--max-seconds", type=float, required=True, metavar="N")
    parser.add_argument("--pilot", type=float, metavar="N", help="time steps for N seconds only")
    parser.add_argument("--smoke", type=float, default=20, metavar="N", help="0 for no smoke test")
    parser.add_argument("--start", default="", metavar="PRESET", help="weights to start from")
    parser.add_argument("--repeat-to", type=int, default=0, metavar="N", help="images of a pilot")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as training.seed=1"
    )
    parser.add_argument("--cpu", action="store_true", help="go on without an accelerator")
    return parser.parse_args()


def recipe_of(arguments: argparse.Namespace) -> dict:
    """The recipe as it will be trained, checked."""
    import yaml

    from dynzoo.training import recipes

    recipe = recipes.load(arguments.recipe)
    for entry in arguments.set:
        key, _, value = entry.partition("=")
        section, _, option = key.partition(".")
        if not value or section not in recipe or not isinstance(recipe[section], dict):
            raise SystemExit(f"--set must be SECTION.KEY=VALUE. Received: {entry}")
        recipe[section][option] = yaml.safe_load(value)
    recipe["training"] |= {"resident": True, "clock": True, "keep": "last", "average": []}
    # with a look comes a checkpoint, which is larger than all that goes back
    recipe["training"]["validate_every"] = max(10, recipe["training"]["validate_every"])
    if arguments.start:
        recipe["training"]["start"] = arguments.start
    return recipes.validate(recipe)


def smoke_test(recipe: dict, x, y, seconds: float) -> None:
    """A tiny network through all that the training does, or an error before any time is lost."""
    from dynzoo import training
    from dynzoo.training import recipes
    from dynzoo.zoo import preset_folder

    tiny = copy.deepcopy(recipe)
    tiny["architecture"] = {**tiny["architecture"], **_SMOKE}
    tiny["training"] |= {"start": "", "batch_size": 64}
    tiny["data"]["validation"] = 128
    with tempfile.TemporaryDirectory() as folder:
        training.train(
            recipes.validate(tiny),
            ((x[:1024], y[:1024]), None),
            folder,
            max_seconds=seconds,
            verbose=0,
            log=lambda line: None,
            weights_dtype="float16",
        )
        preset_folder.from_preset(Path(folder) / "preset")
    print(f"smoke test passed, {time.monotonic() - START:.0f} s", flush=True)


def main() -> int:
    arguments = options()
    from dynzoo import backend, training
    from dynzoo.data import parts as image_parts
    from dynzoo.training import run as runs

    if backend.accelerator() is None and not arguments.cpu:
        raise SystemExit("JAX finds no accelerator here; --cpu goes on without one")
    recipe = recipe_of(arguments)
    x, y = image_parts.load_parts(arguments.data)
    print(f"{runs.hardware()}; {len(x)} images, {time.monotonic() - START:.0f} s", flush=True)
    left = lambda: arguments.max_seconds - (time.monotonic() - START)  # noqa: E731
    say = lambda line: print(f"{line}  [{time.monotonic() - START:.0f} s]", flush=True)  # noqa: E731
    if arguments.pilot:
        if arguments.repeat_to:
            some = [k % len(x) for k in range(arguments.repeat_to)]
            x, y = x[some], y[some]
        training.train(
            recipe, ((x, y), None), pilot=arguments.pilot, max_seconds=left(), verbose=0, log=say
        )
        return 0
    if arguments.smoke:
        smoke_test(recipe, x, y, arguments.smoke)
    arguments.output.mkdir(parents=True, exist_ok=True)
    about = {
        "images": len(x),
        "sha256": image_parts.images_sha256(x),
        "command": "scripts/train_on_accelerator.py "
        + " ".join(Path(word).name if Path(word).exists() else word for word in sys.argv[1:]),
    }
    with tempfile.TemporaryDirectory() as folder:

        def follow(line: str) -> None:
            say(line)
            if "written to" in line:  # also those of an unfinished run
                bring_back(Path(folder), arguments.output, about)

        training.train(
            recipe,
            ((x, y), None),
            folder,
            max_seconds=left(),
            verbose=0,
            log=follow,
            weights_dtype="float16",
        )
    return 0


def bring_back(run: Path, output: Path, about: dict) -> None:
    """The files of the preset and what is known of the run, each replaced in one step."""
    from dynzoo.utils.files import write_atomically

    target = output / "preset"
    target.mkdir(exist_ok=True)
    for file in sorted((run / "preset").iterdir(), key=lambda f: f.name == "metadata.json"):
        if file.name != "README.md":  # which can be written again
            write_atomically(target / file.name, file.read_bytes())
    text = json.dumps({**about, "log": (run / "log.csv").read_text()}, indent=1)
    write_atomically(output / "run.json", text.encode())


if __name__ == "__main__":
    sys.exit(main())
