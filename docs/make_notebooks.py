"""Runs the notebooks of the tutorials, and writes what they print and draw into them.

    KERAS_BACKEND=torch python docs/make_notebooks.py [NAME ...]

Needs `pip install '.[notebooks]'`. Each notebook runs in a process of its own, in `docs/notebooks`,
and is written only if all of its cells ran. The outputs that are committed are those of PyTorch;
`python -m pytest -m slow tests/test_notebooks.py` runs them again on any backend.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import time
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).resolve().parent / "notebooks"
# A cell that takes longer than this, in seconds, has hung.
TIMEOUT = 600
COLORS = 128  # of a picture: a third of the bytes, and no difference to see
# What TensorFlow 2.21 writes while it is loaded, which Keras does on any backend for a random seed;
# TF_CPP_MIN_LOG_LEVEL does not silence it.
_LOADING = re.compile(
    r"WARNING: All log messages before absl|I\d{4} |To enable the following instr"
)
# What a notebook says of the program that runs it: as little as Jupyter needs.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def run(path: Path) -> dict[str, Any]:
    """The notebook with the outputs of a run of all of its cells, and nothing of the run itself.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=where)
    # pictures go into the notebook, whatever the caller's own matplotlib draws on
    inline = "module://matplotlib_inline.backend_inline"
    client.execute(env=dict(os.environ, MPLBACKEND=inline))
    return tidied(json.loads(nbformat.writes(notebook)))


def tidied(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook without times, names of machines and random numbers of cells."""
    for number, cell in enumerate(notebook["cells"], start=1):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "alt"}
        if cell["cell_type"] == "code":
            cell["outputs"] = _tidied_outputs(cell["outputs"])
    return {**notebook, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def _tidied_outputs(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for output in outputs:
        if output.get("name") == "stderr":
            lines = "".join(output["text"]).splitlines()
            if all(not line or _LOADING.match(line) for line in lines):
                continue
        if "data" in output:
            output["metadata"] = {}
            if "image/png" in output["data"]:
                output["data"] = {"image/png": _smaller(output["data"]["image/png"])}
        if kept and output["output_type"] == "stream" and kept[-1].get("name") == output["name"]:
            kept[-1]["text"] = [*kept[-1]["text"], *output["text"]]  # it was flushed in between
        else:
            kept.append(output)
    return kept


def _smaller(picture: str | list[str]) -> str:
    """A PNG in base64 with a palette."""
    from PIL import Image

    written = io.BytesIO()
    read = Image.open(io.BytesIO(base64.b64decode("".join(picture)))).convert("RGB")
    read.quantize(COLORS).save(written, format="png", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def text(notebook: dict[str, Any]) -> str:
    """What stands in the file."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    args = parser.parse_args()
    if unknown := set(args.names) - set(known):
        parser.error(f"NAME must be one of {', '.join(known)}. Received: {min(unknown)}")
    for name in args.names or known:
        path, start = NOTEBOOKS / f"{name}.ipynb", time.perf_counter()
        made = text(run(path))
        path.write_text(made, encoding="utf-8")
        seconds = time.perf_counter() - start
        print(f"{name}: {seconds:.0f} s, {len(made.encode()) / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
