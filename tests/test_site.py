"""The pages' Python runs as it stands, in small; the site names every page and public name."""

import re
import shlex
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import load_script, slow_elsewhere
from PIL import Image
from public_names import public_objects

import dynzoo
from dynzoo import backend
from dynzoo.cli import program
from dynzoo.export.formats import check_available

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
if not (ROOT / "mkdocs.yml").is_file():
    pytest.skip("needs a checkout", allow_module_level=True)

PAGES = {
    page.relative_to(DOCS).as_posix(): re.findall(
        r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    for page in sorted(DOCS.rglob("*.md"))
}
# Blocks that are only compiled, and why: page -> numbers of blocks.
NOT_RUN = {
    "search.md": {0: "trains twenty networks"},
    "data.md": {0: "needs CIFAR-10"},
    "convert.md": {1: "needs a published file", 2: "needs a network of deel-torchlip"},
    "parallel_evaluation.md": {
        0: "starts four processes",
        1: "starts four processes",
        2: "needs a cluster of Dask's",
        3: "needs a cluster of Ray's",
    },
}


@pytest.fixture(scope="module")
def site():
    return load_script(DOCS / "site_hooks.py")


def images(count, shape=(32, 32, 3)):
    rng = np.random.default_rng(0)
    return rng.random((count, *shape)).astype("float32"), np.arange(count) % 10


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the blocks of a page take for granted, in small."""
    load, preset = dynzoo.data.load, dynzoo.from_preset

    def first(*arguments, **options):
        (x, y), (x_test, y_test) = load(*arguments, **options)
        return (x[:8], y[:8]), (x_test[:2], y_test[:2])

    def smallest(name, *arguments, **options):
        return preset(name.replace("isometric_small", "isometric_tiny"), *arguments, **options)

    monkeypatch.setattr(dynzoo.data, "load", first)
    monkeypatch.setattr(dynzoo, "from_preset", smallest)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(DOCS)
    (tmp_path / "more_photos").mkdir()
    for name in ("photo.jpg", "more_photos/other.png"):
        Image.new("RGB", (40, 30), (90, 120, 60)).save(tmp_path / name)
    x, y = images(4)
    parts = [keras.Input((32, 32, 3)), keras.layers.AveragePooling2D(8), keras.layers.Flatten()]
    dense = keras.layers.Dense
    model = keras.Sequential([*parts, dense(8, activation="relu"), dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    held_out = images(40)
    return {
        "__name__": "page",
        "dynzoo": dynzoo, "keras": keras, "np": np, "model": model, "other": model, "x": x,
        "x_train": x, "y_train": y, "x_test": x[:2], "y_test": y[:2],
        "x_val": held_out[0], "y_val": held_out[1],
        "frames": np.zeros((1, 480, 640, 3), "uint8"),
        "metadata": {"dataset": "cifar10"},
    }  # fmt: skip


def prepared(page, names):
    """The rest of what one page takes for granted."""
    if page == "robustness.md":
        report = dynzoo.evaluate(
            names["model"], names["x_test"], names["y_test"], attacks="fast", checks="quick"
        )
        names["other_report"] = report
    if page == "convert.md":
        torch = pytest.importorskip("torch")
        nn = torch.nn
        names["network"] = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(1800, 10))
    if page == "export.md":
        try:
            check_available("onnx", backend.name(), run=True)
        except ValueError as reason:
            pytest.skip(str(reason))
    return names


@slow_elsewhere
@pytest.mark.parametrize("page", [page for page, blocks in PAGES.items() if blocks])
def test_the_python_of_a_page_runs(page, names):
    names = prepared(page, names)
    for number, block in enumerate(PAGES[page]):
        code = compile(block, f"{page}, block {number}", "exec")
        if number not in NOT_RUN.get(page, {}):
            exec(code, names)


@pytest.mark.any_backend
def test_the_commands_of_the_pages_are_understood():
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md")))
    text = text.replace("\\\n", " ")  # a command on several lines
    lines = re.findall(r"^ {4}(?:my_env/bin/)?(dynzoo [a-z-].*)$", text, re.MULTILINE)
    assert len(lines) >= 20
    for line in lines:
        arguments = program._parser().parse_args(shlex.split(line, comments=True)[1:])
        assert callable(arguments.run), line


@pytest.mark.any_backend
def test_the_scripts_that_pages_name_are_there_with_their_flags():
    pages = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "benchmarks" / "README.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", " ")
    script = r"((?:examples|benchmarks|docs|scripts|findings)/[\w/-]+\.(?:py|sh))"
    commands = re.findall(rf"(?:python|bash) {script}([^`\n|)#]*)", text)
    assert len(commands) >= 40
    for name, flags in commands:
        assert (ROOT / name).is_file(), name
        source = (ROOT / name).read_text(encoding="utf-8")
        for flag in re.findall(r"(?<!\S)--[a-z-]+", flags):
            assert f'"{flag}"' in source, (name, flag)


@pytest.mark.any_backend
def test_the_page_of_what_we_found_says_what_its_rules_are_called():
    text = (DOCS / "what-we-found.md").read_text(encoding="utf-8")
    script = load_script(ROOT / "examples" / "published_conditions.py")
    named = re.findall(r"^ {4}python examples/published_conditions\.py (\w+)$", text, re.MULTILINE)
    assert sorted(named) == sorted(script.RULES)
    entries = re.split(r"^### ", text.split("## Confirmed")[0], flags=re.MULTILINE)[1:]
    parts = ["*Published.*", "*Ran.*", "*Saw", "*How sure.*"]
    assert len(entries) >= 11
    assert [e.splitlines()[0] for e in entries if not all(part in e for part in parts)] == []


def test_what_is_not_run_is_there():
    for page, blocks in NOT_RUN.items():
        assert max(blocks) < len(PAGES[page])


@pytest.mark.any_backend
@pytest.mark.parametrize("page", ["which_system.md", "layers.md"])
def test_every_layer_is_named(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    layers = [name for name, value in vars(dynzoo.layers).items() if isinstance(value, type)]
    assert len(layers) > 25
    assert [name for name in layers if f"`{name}" not in text] == []


@pytest.mark.any_backend
@pytest.mark.parametrize("path", sorted((DOCS / "systems").glob("*.md")), ids=lambda p: p.stem)
def test_the_page_of_a_system_is_whole(path):
    text = path.read_text(encoding="utf-8")
    parts = ["$$", "![", "**What it guarantees.**", "**When it helps**", "**When it does not**"]
    assert [part for part in [*parts, f"layers.{path.stem}("] if part not in text] == []
    assert (path.parent / f"{path.stem}.png").is_file()
    assert f"systems/{path.name}" in (DOCS / "which_system.md").read_text(encoding="utf-8")


def test_navigation_has_every_page(site):
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- (\S+\.md)$", text, re.MULTILINE)
    notebooks = {f"notebooks/{path.stem}.md" for path in (DOCS / "notebooks").glob("*.ipynb")}
    elsewhere = {"extending.md", "security.md", "changelog.md"}
    assert len(notebooks) == 5
    assert sorted(listed) == sorted({*PAGES, *notebooks, *elsewhere})
    assert all((ROOT / source).is_file() for source in site.ELSEWHERE)


def test_reference_names_everything_public(site):
    described = {place for module in site.MODULES for place in site.public(module).values()}
    public = {f"{v.__module__}.{v.__qualname__}" for v in public_objects().values()}
    assert public <= described
    for place in described:
        module, _, name = place.rpartition(".")
        __import__(module)
        assert hasattr(sys.modules[module], name), place


def test_links_out_of_the_pages_lead_to_pages(site):
    text = "[a](../CONTRIBUTING.md#layout) [b](zoo.md) [c](../pyproject.toml) `[d](x.md)`"
    text += " [e](notebooks/search.ipynb)"
    made = "[a](../extending.md#layout) [b](../zoo.md) c `[d](x.md)` [e](../notebooks/search.md)"
    assert site.relinked(text, "docs/proof.md", "systems/proof.md") == made


@pytest.mark.any_backend
def test_pages_from_elsewhere_take_no_page_of_the_docs():
    hooks = load_script(DOCS / "site_hooks.py")
    assert not [page for page in hooks.ELSEWHERE.values() if (DOCS / page).exists()]
