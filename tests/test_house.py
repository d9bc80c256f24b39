"""Who imports whom: the list of folders, downwards only, and the old paths."""

import ast
import functools
import importlib
import sys
import warnings
from pathlib import Path

import pytest

import dynzoo
from dynzoo._moved import MOVED

pytestmark = pytest.mark.any_backend

HOUSE = Path(dynzoo.__file__).resolve().parent
# Imports run down this list only: who stands in a line may import what stands above it.
ORDER = """
utils
backend spectral guarantee plots
inference
activations constraints losses optimizers regularizers
operators
fields
integrators
layers
models
gallery
certificates
testing
callbacks metrics
augmentation corruptions
attacks
robustness
data
export convert
zoo
training
tuning
_moved _startup __init__
cli
__main__
""".split("\n")
RANK = {name: i for i, names in enumerate(ORDER) for name in names.split()}


def room(dotted):
    """The module or folder just below the package."""
    name = (dotted.split(".") + ["__init__"])[1]
    return name if name in RANK else "__init__"


@functools.cache
def arrows():
    """(importing room, imported room, file and line), imports inside functions included."""
    return list(_arrows())


def _arrows():
    for file in sorted(HOUSE.rglob("*.py")):
        place = file.relative_to(HOUSE)
        for node, modules in _imports(ast.parse(file.read_text(encoding="utf-8"))):
            whole = isinstance(node, ast.ImportFrom) and node.module == "dynzoo"
            names = [f"dynzoo.{a.name}" for a in node.names] if whole else modules
            for name in names:
                yield place.parts[0].removesuffix(".py"), room(name), f"{place}:{node.lineno}"


def _imports(tree):
    """(statement, modules of the house that it names), but for what is under TYPE_CHECKING."""
    checks = [n for n in ast.walk(tree) if isinstance(n, ast.If)]
    types = [n for n in checks if getattr(n.test, "id", "") == "TYPE_CHECKING"]
    skipped = {id(n) for part in types for n in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dynzoo":
            yield node, [node.module]
        elif isinstance(node, ast.Import):
            yield node, [a.name for a in node.names if a.name.split(".")[0] == "dynzoo"]


def test_every_room_has_a_place():
    rooms = {p.name.removesuffix(".py") for p in HOUSE.iterdir() if p.suffix in ("", ".py")}
    rooms -= {"__pycache__", "_pretrained", "_zoo_configs"}
    assert rooms == set(RANK)


def test_imports_run_down_the_list():
    registering = "zoo"  # imports the package's modules so that their classes are registered
    back = [a for a in arrows() if RANK[a[1]] > RANK[a[0]]]
    assert [a for a in back if a[:2] != (registering, "__init__")] == []


def test_no_circle_of_files():
    waiting = {}  # file -> the files of the house that it imports
    for importer, name in _files():
        waiting.setdefault(importer, set()).add(name)
    while free := [f for f, needs in waiting.items() if not needs & set(waiting)]:
        for file in free:
            del waiting[file]
    assert waiting == {}


def _files():
    """(importing module, imported module), both with dots, but for what is under TYPE_CHECKING."""
    for file in sorted(HOUSE.rglob("*.py")):
        here = ".".join(("dynzoo", *file.relative_to(HOUSE).with_suffix("").parts))
        for node, names in _imports(ast.parse(file.read_text(encoding="utf-8"))):
            for name in names:
                parts = [f"{name}.{a.name}" for a in getattr(node, "names", [])]
                for target in parts if isinstance(node, ast.ImportFrom) else [name]:
                    # `from a import b`: b is a module, or a name in the module a
                    found = next((t for t in (target, name) if _is_module(t)), None)
                    if found and found != here:
                        yield here, found


def _is_module(dotted):
    return HOUSE.parent.joinpath(*dotted.split(".")).with_suffix(".py").is_file()


@pytest.mark.parametrize(
    ("who", "whom"), [("certificates", "attacks"), ("utils", "inference"), ("attacks", "zoo")]
)
def test_nevers(who, whom):
    assert [where for a, b, where in arrows() if (a, b) == (who, whom)] == []


def test_nothing_but_the_command_imports_the_command():
    assert {a for a, b, _ in arrows() if b == "cli"} <= {"cli", "__main__"}


def test_utils_import_nothing_of_the_house():
    assert {b for a, b, _ in arrows() if a == "utils"} <= {"utils"}


def test_folders_say_what_they_are():
    for folder in HOUSE.iterdir():
        if (folder / "__init__.py").is_file():
            text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
            assert text and text.endswith(".") and len(text) > 20, folder


def test_old_paths_warn_once_and_give_the_module():
    for old, new in MOVED.items():
        name = f"dynzoo.{old}"
        sys.modules.pop(name, None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module = importlib.import_module(name)
        assert module is importlib.import_module(f"dynzoo.{new}")
        assert module.__spec__.name == f"dynzoo.{new}"
        said = [str(w.message) for w in caught if w.category is DeprecationWarning]
        assert said == [f"{name} is dynzoo.{new} now; the old path goes with version 0.3"]
        with warnings.catch_warnings(record=True) as again:
            warnings.simplefilter("always")
            importlib.import_module(name)
        assert again == []


def test_warning_names_the_line_that_asks():
    sys.modules.pop("dynzoo.runs", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile("import dynzoo\n\n\nimport dynzoo.runs\n", "asks.py", "exec"), {})
    (warning,) = caught
    assert (warning.filename, warning.lineno) == ("asks.py", 4)
    assert str(warning.message).startswith("dynzoo.runs is dynzoo.training.run now")
