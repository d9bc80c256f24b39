"""From what scripts/train_on_accelerator.py brought back to a preset with its numbers and card.

    python scripts/finish_preset.py FOLDER --data cifar10.npz --out pretrained/NAME
        [--attacks standard] [--attack-limit 500] [--limit N] [--overwrite]

The training images of --data must be those of the run: their SHA-256 is compared, for else its
held-out images may have been trained on. The weights are projected as they are loaded, certified,
counted on the held-out images and, by `dynzoo evaluate --audit --update-card`, on the test images.
KERAS_BACKEND chooses the backend.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--data", required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--attacks", default="standard", metavar="NAMES")
    parser.add_argument("--attack-limit", type=int, default=500, metavar="N")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N test images only")
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args()


def main() -> int:
    arguments = options()
    from dynzoo import data
    from dynzoo.data import parts as image_parts
    from dynzoo.training import recipes
    from dynzoo.training.validation import held_out_accuracy, l2_radius
    from dynzoo.zoo import files as preset_files
    from dynzoo.zoo import preset_folder
    from dynzoo.zoo.cards import model_card

    run = json.loads((arguments.folder / "run.json").read_text())
    (x, y), _ = data.load(arguments.data, dtype="uint8")
    if image_parts.images_sha256(x) != run["sha256"]:
        raise SystemExit(
            f"{arguments.data}: its training images are not those of the run ({run['images']} with "
            f"SHA-256 {run['sha256'][:12]}...): the held-out ones would not be those of the run"
        )
    source = arguments.folder / "preset"
    preset_files.check_target(arguments.out, arguments.overwrite)
    model = preset_folder.from_preset(source)  # checks every file
    metadata = preset_files.read_metadata(source)
    recipe = recipes.validate(metadata["recipe"])
    _, held_out = data.split_validation(x, y, recipe["data"]["validation"], seed=0)
    clean, certified = held_out_accuracy(
        model, held_out, l2_radius(recipe["evaluation"], held_out[0].shape[1:])
    )
    trained = metadata["training"]
    trained["command"] = run["command"]
    trained["held_out"] |= {"val_accuracy": round(100 * clean, 3)}
    if certified is not None:
        trained["held_out"]["val_certified"] = round(100 * certified, 3)
    print(f"{model.count_params():,} parameters; held-out, in percent: {trained['held_out']}")

    work = arguments.out.with_name(f".{arguments.out.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for name in metadata["files"]:
        shutil.copyfile(source / name, work / name)
    metadata["name"] = arguments.out.name
    text = preset_files.to_json(metadata)
    (work / "metadata.json").write_text(text, encoding="utf-8")
    (work / "README.md").write_text(model_card(json.loads(text)), encoding="utf-8")
    preset_files.move_into_place(work, arguments.out)

    command = [sys.executable, "-m", "dynzoo", "evaluate", str(arguments.out)]
    command += [
        "--data",
        arguments.data,
        "--audit",
        "--update-card",
        "--attacks",
        arguments.attacks,
    ]
    if arguments.attacks != "none":
        command += ["--attack-limit", str(arguments.attack_limit)]
    if arguments.limit:
        command += ["--limit", str(arguments.limit)]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
