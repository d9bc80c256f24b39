"""README.md runs as it stands, and no page links to what is not there."""

import re
import shlex
import tomllib
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import dynzoo
from dynzoo.cli import program
from dynzoo.training import recipes

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
PAGES += sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").glob("*.md"))
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")

if not README.is_file():
    pytest.skip("needs a checkout", allow_module_level=True)


def blocks(text):
    """(language, code) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(program=None):
    """Lines of the bash blocks, those of one program or all, as lists of words."""
    lines = "".join(code for language, code in blocks(README.read_text()) if language == "bash")
    words = [shlex.split(line, comments=True) for line in lines.splitlines()]
    return [line for line in words if line and program in (None, line[0])]


def same(said, expected):
    """Whether two texts agree, decimal fractions up to a relative 1e-3."""
    found, wanted = (np.array(NUMBER.findall(t), dtype=float) for t in (said, expected))
    return NUMBER.sub("#", said) == NUMBER.sub("#", expected) and np.allclose(
        found, wanted, rtol=1e-3
    )


def test_every_block_is_run_or_compared():
    kinds = [language for language, _ in blocks(README.read_text())]
    assert set(kinds) == {"bash", "python", "text"}
    # what a block prints stands right behind it
    assert all(kinds[i - 1] == "python" for i, kind in enumerate(kinds) if kind == "text")
    assert {line[0] for line in commands()} == {"bash", "pip", "dynzoo"}


def test_python_blocks_run_in_order_and_print_what_stands_there(tmp_path, monkeypatch, capsys):
    """On the first images of each data set only: a test is no training."""
    load = dynzoo.data.load

    def first(*args, **kwargs):
        (x, y), (x_test, y_test) = load(*args, **kwargs)
        return (x[:32], y[:32]), (x_test[:8], y_test[:8])

    monkeypatch.setattr(dynzoo.data, "load", first)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    found = blocks(README.read_text())
    names = {}
    for i, (language, code) in enumerate(found):
        if language != "python":
            continue
        capsys.readouterr()
        exec(compile(code, "README.md", "exec"), names)
        if found[i + 1][0] == "text":
            said = capsys.readouterr().out
            assert same(said, found[i + 1][1]), said
    assert len(names["radii"]) == 8
    assert dynzoo.from_preset("my_digits").output_shape == (None, 10)


def test_commands_have_options_presets_and_recipes_that_exist():
    for line in commands("dynzoo"):
        arguments = program._parser().parse_args(line[1:])
        assert callable(arguments.run)
        if hasattr(arguments, "preset"):
            assert arguments.preset in dynzoo.presets(), line
        for image in getattr(arguments, "images", []):
            assert (ROOT / image).is_file(), line
        if line[1] == "train":
            recipes.find(arguments.config)


def test_short_commands_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    run = [line for line in commands("dynzoo") if line[1] in ("list", "info")]
    assert run  # the others are parsed above; what they do stands in the Python blocks too
    for line in run:
        assert program.main(line[1:]) == 0, line
    said = capsys.readouterr()
    assert "isometric_small_cifar10" in said.out and not said.err


def test_scripts_and_extras_exist():
    assert commands("bash") == [["bash", "scripts/demo.sh"], ["bash", "scripts/test.sh"]]
    for line in commands("bash"):
        assert (ROOT / line[1]).is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [re.fullmatch(r"\.\[([\w,]+)\]", line[2]) for line in commands("pip")]
    assert named and {e for match in named for e in match[1].split(",")} <= set(extras)


def test_readme_is_short():
    assert 150 <= len(README.read_text().splitlines()) <= 180


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE):
        kept = (c for c in heading.lower() if c in " -_" or unicodedata.category(c)[0] in "LN")
        yield "".join(kept).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_no_relative_link_is_broken(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


def test_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    missing = [p.name for p in (ROOT / "docs").glob("*.md") if f"({p.name})" not in index]
    assert missing == ["README.md"]
