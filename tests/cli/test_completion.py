"""`dynzoo --print-completion SHELL`: real shells complete with what it writes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dynzoo
from dynzoo.cli import completion
from dynzoo.cli.program import COMMANDS, main
from dynzoo.data import sources
from dynzoo.training import recipe_files

pytestmark = pytest.mark.any_backend

ROOT = Path(dynzoo.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    """Words of a command line, the last one begun -> what bash offers."""
    pytest.importorskip("shtab")
    folder = tmp_path_factory.mktemp("completion")
    for name in ("photos", "photo.png"):
        (folder / name).mkdir() if "." not in name else (folder / name).touch()
    with open(folder / "script", "w") as file:
        command = [sys.executable, "-m", "dynzoo", "--print-completion", "bash"]
        subprocess.run(command, cwd=ROOT, stdout=file, check=True, timeout=300)
    ask = (
        'source ./script; read -r _ _ _ _ function _ <<<"$(complete -p dynzoo)"; '
        '[ -n "$function" ] || exit 3; COMP_WORDS=(dynzoo "$@"); COMP_CWORD=$#; '
        '"$function" dynzoo "${@: -1}" "${COMP_WORDS[$(($# - 1))]}"; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )

    def complete(*words):
        done = subprocess.run(
            ["bash", "-c", ask, "bash", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split())

    return complete


def test_bash_completes_commands_options_and_names(bash):
    assert bash("") >= set(COMMANDS)
    assert bash("ex") == {"export"}
    assert {"--backend", "--print-completion"} <= bash("--")
    assert bash("--backend", "") >= {"tensorflow", "jax", "torch"}
    assert bash("evaluate", "") >= set(dynzoo.presets())
    assert bash("evaluate", "isometric_ti") == {"isometric_tiny_cifar10"}
    assert bash("evaluate", "--attack-c") == {"--attack-certified"}
    assert bash("evaluate", "isometric_tiny_cifar10", "--dataset", "") >= set(sources.NAMES)
    assert bash("train", "") >= set(recipe_files.names())
    assert bash("search", "") >= set(recipe_files.names("search"))
    assert not bash("search", "") & set(recipe_files.names())


def test_bash_completes_paths(bash):
    assert bash("predict", "isometric_tiny_cifar10", "pho") >= {"photo.png", "photos"}
    found = bash("finetune", "isometric_tiny_cifar10", "--output", "pho")
    assert "photos" in found and "photo.png" not in found


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shell_gets_a_script_that_it_can_read(shell, tmp_path, capsys):
    shtab = pytest.importorskip("shtab")
    assert shell in shtab.SUPPORTED_SHELLS
    assert main(["--print-completion", shell]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in (*COMMANDS, *dynzoo.presets()))
    if shutil.which(shell) and shell != "tcsh":
        (tmp_path / "script").write_text(said)
        subprocess.run([shell, "-n", "script"], cwd=tmp_path, check=True, timeout=60)


def test_without_shtab_a_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    said = capsys.readouterr().err
    assert "Completions of a shell need shtab: pip install 'dynzoo[completion]'" in said
    assert said.count("\n") == 1
