"""A preset folder on disk: read only if whole and unchanged, written whole or not at all."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from dynzoo.utils import strict_json
from dynzoo.utils.files import folder_of as folder_of
from dynzoo.utils.files import move_into_place as move_into_place
from dynzoo.utils.files import sha256 as sha256
from dynzoo.utils.files import to_json as to_json
from dynzoo.utils.strict_json import short

FORMAT = 1
FORMAT_IN_PARTS = 2  # weights as `weight_parts` writes them, in files of such names
_PARTS_FILE = re.compile(r"weights_\d{2}\.h5")
_AGAIN = "Restore the folder from where it came, or write it again with save_to_preset."


class PresetFiles(NamedTuple):
    """The checked files of a preset: what `load_weights` takes, and all that hold arrays."""

    weights: Path
    arrays: tuple[Path, ...]
    in_parts: bool = False


def parse_json(path: Path) -> Any:
    """Parse a file of a preset; what is wrong with it becomes a `ValueError` naming it."""
    _check_regular(path)
    try:
        return strict_json.read(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent} is not a whole preset: it lacks {path.name}.") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {short(error)}. {_AGAIN}") from error


def _check_regular(path: Path) -> None:
    """A link may lead out of the folder, to a file that nobody meant to be read."""
    if path.is_symlink():
        raise ValueError(
            f"{path} is refused: it is a link. A preset's files must stand in its folder; "
            "copy it with the links resolved (cp -rL)."
        )
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is refused: it is not a regular file.")


def read_metadata(folder: Path) -> dict[str, Any]:
    """Metadata of a preset folder, with a table of files that has the right form."""
    path = folder / "metadata.json"
    metadata = parse_json(path)
    files = metadata.get("files") if isinstance(metadata, dict) else None
    if not isinstance(files, dict) or not all(isinstance(h, str) for h in files.values()):
        raise ValueError(f"{path} is damaged: it has no table 'files' of SHA-256 sums. {_AGAIN}")
    version = metadata.get("format", FORMAT)
    if version not in (FORMAT, FORMAT_IN_PARTS) or isinstance(version, bool):
        raise ValueError(
            f"{path} has format {short(repr(version), 40)}, this dynzoo reads {FORMAT} and "
            f"{FORMAT_IN_PARTS}: update dynzoo."
        )
    return metadata


def verify(folder: Path, metadata: dict[str, Any]) -> PresetFiles:
    """Check every file against the metadata, by name, kind and SHA-256."""
    listed = metadata["files"]
    for name, expected in listed.items():
        file = folder / name
        if name != Path(name).name or "\\" in name or name in (".", "..", ""):
            raise ValueError(
                f"{folder / 'metadata.json'} is refused: {short(repr(name), 80)} is not the plain "
                "name of a file."
            )
        _check_regular(file)
        if not file.is_file():
            raise ValueError(f"{folder} is not a whole preset: it lacks {name}. {_AGAIN}")
        if sha256(file) != expected:
            raise ValueError(
                f"{file} is damaged or was changed: its SHA-256 is not the one in metadata.json. "
                f"{_AGAIN}"
            )
    for file in folder.iterdir():
        loadable = file.suffix in (".json", ".h5") and file.name != "metadata.json"
        if loadable and file.name not in listed:
            raise ValueError(
                f"{file} is not listed in metadata.json, so it is not trusted. {_AGAIN}"
            )
    if "config.json" not in listed:
        raise ValueError(f"{folder} is not a whole preset: it lacks config.json. {_AGAIN}")
    if metadata.get("format", FORMAT) == FORMAT_IN_PARTS:
        parts = tuple(folder / name for name in sorted(listed) if _PARTS_FILE.fullmatch(name))
        if not parts:
            raise ValueError(f"{folder} is not a whole preset: it lacks weights_00.h5. {_AGAIN}")
        return PresetFiles(parts[0], parts, in_parts=True)
    if "model.weights.json" in listed:
        weights = folder / "model.weights.json"
        shards = sorted(_shards(weights))
        for name in shards:
            # listed names are plain ones, so that no shard can lie outside the folder
            if name not in listed or not name.endswith(".weights.h5"):
                raise ValueError(
                    f"{weights} names {short(repr(name), 80)}, which metadata.json does not list "
                    "as a weights file."
                )
        return PresetFiles(weights, tuple(folder / name for name in shards))
    if "model.weights.h5" not in listed:
        raise ValueError(f"{folder} is not a whole preset: it lacks model.weights.h5. {_AGAIN}")
    return PresetFiles(folder / "model.weights.h5", (folder / "model.weights.h5",))


def _shards(weights: Path) -> set[str]:
    table = parse_json(weights)
    shards = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(shards, dict):
        raise ValueError(f"{weights} is damaged: it has no table 'weight_map'. {_AGAIN}")
    names: set[str] = set()
    for entry in shards.values():
        entries = entry if isinstance(entry, list) else [entry]
        if not all(isinstance(name, str) for name in entries):
            raise ValueError(f"{weights} is damaged: 'weight_map' names no files. {_AGAIN}")
        names.update(entries)
    return names


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse to write over anything but nothing, an empty folder, or (if asked) a preset."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / "metadata.json").is_file():
        raise FileExistsError(f"{target} exists and is not a preset; it is left as it is.")
    if not overwrite:
        raise FileExistsError(
            f"{target} holds a preset already; pass overwrite=True to replace it."
        )
