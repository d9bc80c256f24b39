import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from helpers import load_script
from packaging.utils import canonicalize_name
from PIL import Image

import dynzoo
from dynzoo.cli import demo
from dynzoo.utils.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[1]


def _python(code, cwd, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def test_import_is_light_and_silent():
    """Keras itself imports TensorFlow on any backend if it is there; dynzoo must add nothing."""
    heavy = ("keras_tuner", "tensorflow_datasets", "matplotlib", "sklearn", "rich", "tensorflow")
    code = (
        "import io, json, sys; import keras; before = set(sys.modules); "
        "sys.stdout = out = io.StringIO(); import dynzoo; sys.stdout = sys.__stdout__; "
        f"added = [m for m in {heavy} if m in set(sys.modules) - before]; "
        "print(json.dumps([added, out.getvalue()]))"
    )
    assert json.loads(_python(code, ROOT)) == [[], ""]


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] == dynzoo.__version__
    assert f"\n## {dynzoo.__version__}\n" in changes


def test_python_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    least = project["project"]["requires-python"].removeprefix(">=")
    named = [c.rpartition(" :: ")[2] for c in project["project"]["classifiers"] if "3." in c]
    assert min(named, key=lambda v: int(v.partition(".")[2])) == least
    assert project["tool"]["mypy"]["python_version"] == least
    assert project["tool"]["ruff"]["target-version"] == "py" + least.replace(".", "")
    for name in ("README.md", "scripts/venv.sh"):
        assert f"Python {least} or newer" in (ROOT / name).read_text(encoding="utf-8")


def test_hooks_run_what_ci_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    checks = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (repo,) = hooks["repos"]
    for hook in repo["hooks"]:
        assert f"step {hook['entry'].removesuffix(' --force-exclude')}\n" in checks


# What is installed by itself, and what the extras bring

DISTRIBUTIONS = {"keras_tuner": "keras-tuner", "sklearn": "scikit-learn"}
CORE = {"keras", "numpy", "scipy", "h5py", "pyyaml", "rich", "pillow"}


def _project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _names(requirements):
    return {re.match(r"[\w-]+", line)[0] for line in requirements}


@pytest.mark.any_backend
def test_extras_are_those_of_the_messages():
    project = _project()["project"]
    assert _names(project["dependencies"]) == CORE
    optional = project["optional-dependencies"]
    for name, extra in EXTRAS.items():
        assert {DISTRIBUTIONS.get(m, m) for m in extra.modules} == _names(optional[name])
    assert optional["all"] == ["dynzoo[plots,tuning,parallel,completion]"]
    assert "dynzoo[all]" in optional["test"]


@pytest.mark.any_backend
def test_nothing_beyond_the_core_is_imported_without_a_word():
    """At the top of a module: Python's own, the core's, or within `with extra(...)`."""
    core = {*sys.stdlib_module_names, *CORE, "dynzoo", "PIL", "yaml"}
    beyond = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in sorted((ROOT / "dynzoo").rglob("*.py"))
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
        )
        if name.partition(".")[0] not in core
    ]
    assert beyond == []


@pytest.mark.any_backend
def test_licences_of_all_requirements_are_listed():
    script = load_script(ROOT / "docs" / "make_licences.py")
    listed = script.packages(script.PAGE.read_text(encoding="utf-8"))
    for lines in script.requirements().values():
        for name in _names(lines):
            assert listed[canonicalize_name(name)]
    assert len(listed) > 100  # what they bring in turn
    assert [n for n, kind in listed.items() if re.search(r"\b[AL]?GPL", kind)] == []
    assert script.licence("numpy") == listed["numpy"] and "BSD" in listed["numpy"]
    assert script.needed(["keras"]) >= {"keras", "numpy", "h5py"}


WITHOUT_EXTRAS = """
import contextlib, io, json, sys
from dynzoo.utils.extras import EXTRAS
for extra in EXTRAS.values():
    sys.modules.update(dict.fromkeys(extra.modules))  # as if they were not installed
import keras
before = "scipy.linalg" in sys.modules
import dynzoo
added = "scipy.linalg" in sys.modules and not before  # as much time as all of dynzoo
from dynzoo.cli import main
(x, y), _ = dynzoo.data.load("digits")
model = dynzoo.from_preset("isometric_tiny_cifar10")
labels, radii = dynzoo.certify(model).radii(x[:4])
report = dynzoo.evaluate(model, x[:4], y[:4], eps=0.1, attacks="fast")
report.save("report.json")
said = {"numbers": [report.images, len(report._repr_html_()), str(report.save("report.csv"))]}
for name, call in {
    "plots": lambda: report.save("report.html"),
    "plot": report.plot,
    "notebook": lambda: print(report._repr_html_().partition("<p>Pictures")[2]),
    "tuning": lambda: dynzoo.tuning.HyperModel,
    "search": lambda: dynzoo.tuning.search,
    "parallel": lambda: dynzoo.evaluate(model, x[:4], y[:4], attacks="fast", jobs=2),
    "hub": lambda: dynzoo.from_preset("hf://owner/name"),
    "dynzoo list": None,
    "dynzoo predict isometric_tiny_cifar10 digit.png": None,
    "dynzoo demo": None,
    "dynzoo search digits": None,
    "dynzoo evaluate isometric_tiny_cifar10 --dataset digits --output report.html": None,
    "dynzoo evaluate isometric_tiny_cifar10 --dataset digits --jobs 2": None,
    "dynzoo compare report.json --output both.html": None,
}.items():
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(name.split()[1:]) if call is None else call() and None
        except ImportError as error:
            code = f"{type(error).__name__}: {error}"
    said[name] = [code, out.getvalue()]
loaded = [m for extra in EXTRAS.values() for m in extra.modules if sys.modules[m]]
print(json.dumps([said, loaded, added]))
"""


@pytest.mark.any_backend
def test_core_works_without_the_extras_and_says_what_to_install(tmp_path):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "digit.png")
    answer = _python(WITHOUT_EXTRAS, tmp_path, PYTHONPATH=str(ROOT))
    said, loaded, added = json.loads(answer)
    assert loaded == [] and not added and said.pop("numbers")[0] == 4
    assert said["dynzoo list"][0] == said["dynzoo predict isometric_tiny_cifar10 digit.png"][0] == 0
    html = "Pictures and HTML reports need matplotlib: pip install 'dynzoo[plots]'"
    jobs = "Evaluations in several processes need {}: pip install 'dynzoo[parallel]'"
    for name in ("plots", "plot"):
        assert said[name] == [f"MissingExtraError: {html}", ""]
    assert "pip install" in said["notebook"][1]  # in place of the curve
    for name in ("tuning", "search"):
        assert said[name][0].startswith("MissingExtraError: Searches need ")
        assert said[name][0].endswith(": pip install 'dynzoo[tuning]'")
    both = jobs.format("joblib, cloudpickle")
    assert said["parallel"] == [f"MissingExtraError: {both}", ""]
    assert said["hub"][0] == (
        "MissingExtraError: hf:// addresses need huggingface_hub: pip install 'dynzoo[hub]'"
    )
    searches = "Searches need keras_tuner, matplotlib, sklearn, six: pip install "
    for name, line in {
        "demo": html,
        "search digits": searches + "'dynzoo[tuning]'",
        "evaluate isometric_tiny_cifar10 --dataset digits --output report.html": html,
        "evaluate isometric_tiny_cifar10 --dataset digits --jobs 2": both,
        "compare report.json --output both.html": html,
    }.items():
        assert said[f"dynzoo {name}"] == [2, f"dynzoo: error: {line}\n"]


# What is built

LARGEST_WHEEL = 25_000_000  # bytes
LARGEST_SDIST = 100_000_000  # what PyPI takes


def _with_weights():
    wheel = _project()["tool"]["hatch"]["build"]["targets"]["wheel"]
    return wheel["hooks"]["custom"]["weights"]


def _build(kind, folder):
    """By the declared build back-end, without a download."""
    pytest.importorskip("hatchling")
    code = f"from hatchling import build; print(build.build_{kind}({str(folder)!r}))"
    return folder / _python(code, ROOT)


@pytest.mark.any_backend
def test_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = {name: [s.get("run") for s in job["steps"]] for name, job in workflow["jobs"].items()}
    assert steps["check"][-1] == "bash .ci/run"
    assert steps["release"][-1] == "bash scripts/release.sh ${{ matrix.backend }}"
    versions = [s["with"] for job in workflow["jobs"].values() for s in job["steps"] if "with" in s]
    least = _project()["project"]["requires-python"].removeprefix(">=")
    assert versions == 2 * [{"python-version": least}]


def _description(**environment):
    """The README as an index would show it."""
    pytest.importorskip("hatchling")
    code = (
        "import json; from hatchling.metadata.core import ProjectMetadata; "
        "from hatchling.plugin.manager import PluginManager; "
        "found = ProjectMetadata('.', PluginManager()).core; "
        "print(json.dumps([found.readme_content_type, found.readme, dict(found.urls)]))"
    )
    return json.loads(_python(code, ROOT, **environment))


BASE = "https://example.org/owner/dynzoo/blob/v1"


@pytest.mark.any_backend
def test_readme_is_as_it_stands_without_a_base():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert _description(DYNZOO_README_BASE="") == ["text/markdown", readme, {}]


@pytest.mark.any_backend
def test_readme_has_absolute_links_with_a_base():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, text, _ = _description(DYNZOO_README_BASE=f"{BASE}/")
    targets = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", text)
    assert len(targets) > 20
    roots = {"": f"{BASE}/", "!": f"{BASE.replace('blob', 'raw')}/"}
    for mark, target in targets:
        assert target.startswith(("#", roots[mark]))
        assert target[0] == "#" or (ROOT / target[len(roots[mark]) :].partition("#")[0]).exists()
    back = text.replace(roots["!"], "").replace(roots[""], "")
    assert back == readme  # nothing else was touched


@pytest.mark.any_backend
def test_links_that_are_absolute_or_code_stay():
    pytest.importorskip("hatchling")
    absolute = load_script(ROOT / "hatch_build.py").absolute_links
    kept = "[a](https://b.org/c.md) [d](#e) [f](mailto:g@h.org)\n```python\ni[0](j)\n```\n"
    assert absolute(kept, BASE) == kept
    assert absolute("![p](q.svg) [r](s.md#t)", "https://b.org") == (
        "![p](https://b.org/q.svg) [r](https://b.org/s.md#t)"
    )


@pytest.mark.any_backend
def test_a_base_that_is_no_address_is_refused():
    pytest.importorskip("hatchling")
    with pytest.raises(AssertionError, match="`DYNZOO_README_BASE` must be an http"):
        _description(DYNZOO_README_BASE="owner/dynzoo")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return _build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return _build("sdist", tmp_path_factory.mktemp("sdist"))


@pytest.mark.any_backend
def test_wheel_is_small_and_knows_every_preset(wheel):
    assert wheel.stat().st_size <= LARGEST_WHEEL
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        listed = next(name for name in names if name.endswith("entry_points.txt"))
        assert "dynzoo = dynzoo.cli:main" in archive.read(listed).decode()
    presets = {f.parent.name for f in (ROOT / "pretrained").glob("*/metadata.json")}
    assert set(_with_weights()) < presets
    for kind in ("pretrained", "zoo_configs"):
        for file in (f for f in (ROOT / kind).rglob("*") if f.is_file()):
            shipped = file.suffix != ".h5" or file.parent.name in _with_weights()
            assert (
                f"dynzoo/_{kind}/{file.relative_to(ROOT / kind).as_posix()}" in names
            ) == shipped
    assert {"dynzoo/zoo/published_results.csv", "dynzoo/py.typed", "dynzoo/data/digits.npz"} < names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"dynzoo"}


@pytest.mark.any_backend
def test_weights_that_ship_are_those_of_the_first_steps():
    """What the README and the demo load."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"^```\w+\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL))
    used = {name for name in dynzoo.presets() if re.search(rf"\b{name}\b", code)}
    assert used | {demo.PRESET} == set(_with_weights())


@pytest.mark.slow
@pytest.mark.any_backend
def test_sdist_holds_everything(sdist):
    assert sdist.stat().st_size <= LARGEST_SDIST
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    git = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode:
        pytest.skip("needs a checkout")
    assert set(git.stdout.splitlines()) - names == set()


@pytest.mark.slow
@pytest.mark.any_backend
def test_tests_pass_from_the_sdist(sdist, tmp_path):
    """Those of the files themselves, and a wheel that is built there."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    some = ["test_packaging.py", "test_docs.py", "test_house.py", "test_readme.py", "zoo"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(f"tests/{name}" for name in some)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def _venv(folder, wheel):
    """An environment with nothing but this wheel, and this one's packages behind it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = Path(keras.__file__).parents[1]
    site = folder / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    (site / "others.pth").write_text(f"{packages}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
    subprocess.run([*pip, "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    return folder / "bin"


INSTALLED = """
import json, os, sys
import dynzoo
from dynzoo.zoo.downloads import DownloadError
names = list(dynzoo.presets())
shapes, refused = {}, {}
for name in names:
    try:
        shapes[name] = dynzoo.from_preset(name).output_shape
    except DownloadError as error:
        refused[name] = str(error)
print(json.dumps([dynzoo.__file__, names, list(shapes), refused]))
"""


@pytest.mark.slow
def test_installed_wheel_has_some_weights_and_fetches_the_others(wheel, tmp_path):
    programs = _venv(tmp_path / "venv", wheel)
    here = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DYNZOO_WEIGHTS")}
    here["DYNZOO_HOME"] = str(tmp_path / "cache")

    def run(*command, **more):
        environment = {**here, **more}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def load(**more):
        return json.loads(run(programs / "python", "-c", INSTALLED, **more).splitlines()[-1])

    committed = sorted(f.parent.name for f in (ROOT / "pretrained").glob("*/metadata.json"))
    where, names, loaded, refused = load()
    assert Path(where).is_relative_to(tmp_path) and names == committed
    assert set(loaded) == set(_with_weights()) and {*loaded, *refused} == set(names)
    for name, line in refused.items():
        assert line.startswith(f"The weights of {name} do not come with this installation")
        assert "`pretrained` of a checkout" in line and "\n" not in line and "://" in line
    marked = [
        line.split()[0] for line in run(programs / "dynzoo", "list").splitlines() if " * " in line
    ]
    assert marked == list(refused)
    # from a folder into the cache, and from there without the folder
    for weights in ({"DYNZOO_WEIGHTS": str(ROOT / "pretrained")}, {}):
        assert load(**weights)[2:] == [names, {}]
    listed = run(programs / "dynzoo", "list")
    assert " * " not in listed and all(name in listed for name in names)


@pytest.mark.slow
@pytest.mark.any_backend
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_release_works_in_empty_environments(backend):
    """Wheel and sdist, and nothing but the core and one backend, which pip brings."""
    done = subprocess.run(
        ["bash", "scripts/release.sh", backend],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert done.stdout.count(f"on {backend}: works") == 2


@pytest.mark.slow
def test_preset_of_one_backend_loads_on_the_others(tmp_path):
    """Weights, batch statistics and the state of the random generators cross over."""
    write = (
        "import keras, numpy as np; from dynzoo.zoo import preset_folder; "
        "from dynzoo import layers as dl; from dynzoo.augmentation import batches as a; "
        "from keras import layers as kl; "
        "keras.utils.set_random_seed(0); "
        "m = keras.Sequential([keras.Input((8, 8, 3)), a.RandomCropFlip(1), dl.SpaceToDepth(2), "
        "kl.Conv2D(8, 3), kl.BatchNormalization(), kl.Dropout(0.1), dl.MaxMin(), kl.Flatten(), "
        "dl.OrthonormalDense(8), dl.UnitRowDense(3)]); preset_folder.save_to_preset(m, 'p'); "
    )
    read = (
        "import numpy as np, keras; from dynzoo.zoo import preset_folder; "
        "m = preset_folder.from_preset('p'); x = np.random.default_rng(0).random((4, 8, 8, 3)); "
        "print(m.predict(x.astype('float32'), verbose=0).tolist())"
    )
    here = {"KERAS_BACKEND": keras.backend.backend(), "PYTHONPATH": str(ROOT)}
    _python(write + "print('ok')", tmp_path, **here)
    expected = json.loads(_python(read, tmp_path, **here))
    for other in ("tensorflow", "jax", "torch"):
        pytest.importorskip(other)
        logits = json.loads(_python(read, tmp_path, **{**here, "KERAS_BACKEND": other}))
        for row, expected_row in zip(logits, expected, strict=True):
            assert row == pytest.approx(expected_row, abs=2e-6)
