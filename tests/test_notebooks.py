"""The tutorials' notebooks are whole, small and say what they show; slow: they run again."""

import ast
import json
import re
from pathlib import Path

import keras
import pytest
from helpers import load_script

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "notebooks"
NAMES = ["load_and_certify", "fine_tune", "search", "own_cnn", "from_ode_to_network"]
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?")
ABSOLUTE = re.compile(r"/(?:tmp|home|root|work|usr)/")
if not FOLDER.is_dir():
    pytest.skip("needs a checkout", allow_module_level=True)


def read(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shown(cell):
    """What a cell shows, its numbers left out: kinds of pictures and tables, and texts."""
    parts = []
    for output in cell["outputs"]:
        kinds = sorted(set(output.get("data", {})) - {"text/plain"})
        parts.append(kinds or NUMBER.sub("#", "".join(output.get("text", ""))).split())
    return parts


@pytest.mark.any_backend
def test_all_are_listed():
    assert sorted(NAMES) == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.any_backend
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_whole_and_small(name):
    path, notebook = FOLDER / f"{name}.ipynb", read(name)
    assert path.stat().st_size < 300_000
    assert not ABSOLUTE.search(path.read_text(encoding="utf-8"))
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        kinds = {o["output_type"] for o in cell["outputs"]}
        assert kinds <= {"stream", "display_data", "execute_result"}
        assert not any(o.get("name") == "stderr" for o in cell["outputs"])
        assert any("image/png" in o.get("data", {}) for o in cell["outputs"]) == (
            "alt" in cell["metadata"]
        )
        drawn = "".join(cell["source"])
        assert ("xlabel" in drawn and "ylabel" in drawn) or "subplots" not in drawn
    first = notebook["cells"][0]
    assert first["cell_type"] == "markdown" and first["source"][0].startswith("# ")


@pytest.mark.any_backend
def test_the_founding_idea_takes_twenty_cells():
    assert len(read("from_ode_to_network")["cells"]) == 20


@pytest.mark.any_backend
@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files(name):
    cells = [c for c in read(name)["cells"] if c["cell_type"] == "markdown"]
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join("".join(c["source"]) for c in cells)):
        assert (FOLDER / target.partition("#")[0]).is_file(), target


@pytest.mark.any_backend
def test_the_page_of_a_notebook_has_its_cells_outputs_and_pictures():
    site = load_script(ROOT / "docs" / "site_hooks.py")
    notebook = read("load_and_certify")
    text, pictures = site.notebook_page(notebook, "load_and_certify")
    assert text.startswith("# Load and certify\n")
    assert text.count("```python\n") == len(code_cells(notebook))
    assert sorted(pictures) == ["load_and_certify_1.png", "load_and_certify_2.png"]
    assert all(data.startswith(b"\x89PNG") for data in pictures.values())
    for name in pictures:
        assert re.search(rf"!\[[^\]]{{20,}}\]\({name}\)", text)
    assert "[fine-tuning](../notebooks/fine_tune.md)" in text
    assert "<table><thead>" in text and "```text\nbody: 1.00000" in text
    output = {"output_type": "stream", "name": "stdout", "text": ["1\n", "2\n"]}
    cell = {"cell_type": "code", "metadata": {}, "source": ["f()"], "outputs": [output]}
    assert (
        "```python\nf()\n```\n\n```text\n1\n2\n```" in site.notebook_page({"cells": [cell]}, "x")[0]
    )


@pytest.mark.any_backend
def test_what_depends_on_the_run_is_left_out():
    made = load_script(ROOT / "docs" / "make_notebooks.py")

    def stream(name, *lines):
        return {"output_type": "stream", "name": name, "text": list(lines)}

    loading = "I0000 00:00:1795917932.258259   11882 port.cc:153] oneDNN\n"
    outputs = [stream("stdout", "a\n"), stream("stdout", "b\n"), stream("stderr", loading)]
    outputs += [stream("stderr", loading, "UserWarning: c\n")]
    cell = {"cell_type": "code", "id": "f3a", "metadata": {"execution": {"t": 1}, "alt": "x"}}
    cell |= {"outputs": outputs, "source": "f()", "execution_count": 1}
    tidy = made.tidied({"cells": [cell], "metadata": {"language_info": {"version": "3.11"}}})
    (kept,) = tidy["cells"]
    assert kept["id"] == "cell-1" and kept["metadata"] == {"alt": "x"}
    assert [o["text"] for o in kept["outputs"]] == [["a\n", "b\n"], [loading, "UserWarning: c\n"]]
    assert tidy["metadata"] == made.METADATA


@pytest.mark.any_backend
@pytest.mark.parametrize("name", NAMES)
def test_names_used_are_public(name):
    """A reader shall not need what may change: nothing below dynzoo's public modules."""
    for cell in code_cells(read(name)):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            module = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else None
            assert module is None or not module.startswith("dynzoo.") or module.count(".") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_shows_the_same(name):
    """All its assertions hold on this backend; texts are the committed ones but for numbers."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    made = load_script(ROOT / "docs" / "make_notebooks.py")
    again = code_cells(made.run(FOLDER / f"{name}.ipynb"))
    for old, new in zip(code_cells(read(name)), again, strict=True):
        assert shown(new) == shown(old), f"{keras.backend.backend()}: {''.join(new['source'])}"
