"""Model parallel training: the run of one device, with kernels divided over four virtual ones."""

import copy
import csv
import json

import keras
import numpy as np
import pytest
import yaml
from training_fixtures import RECIPE, in_new_process, random_images

import dynzoo
from dynzoo import backend
from dynzoo.cli import program as cli
from dynzoo.training import distribution, layouts
from dynzoo.training import loop as training
from dynzoo.training.arguments import axes_of

jax_only = pytest.mark.skipif(backend.name() != "jax", reason="of JAX")


def recipe(**settings):
    config = copy.deepcopy(RECIPE)
    config["training"]["optimizer"] = {"name": "muon", "learning_rate": 0.05}
    config["training"].update(settings)
    config["data"] |= {"validation": 22}
    return config


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return random_images(tmp_path_factory.mktemp("data"))


DIVIDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "0"  # as `jax_devices` has it: see there
import keras, numpy as np
from dynzoo import backend
from dynzoo.cli import program as cli
from dynzoo.training import layouts

seen = []
check_equal = layouts.Sharded.check_equal


def noted(self, model):
    check_equal(self, model)
    seen.append((self, model))


layouts.Sharded.check_equal = noted
assert cli.main({arguments!r}) == 0
sharded, model = seen[-1]
kernels = [v for v in model.trainable_variables if v.constraint is not None]
for variable in kernels:
    value = backend.value_of(variable).astype("float64")
    parts = variable.value.addressable_shards
    assert value.shape == variable.shape
    matrix = value.reshape(-1, value.shape[-1])
    sigma = np.linalg.svd(matrix, compute_uv=False)
    print(variable.constraint.__class__.__name__, parts[0].data.size, value.size, sigma.max() - 1)
here, whole = sharded.bytes_of(model)
print("bytes", here, whole)
variable = kernels[0]
import jax
shards = [s.data for s in variable.value.addressable_shards]
bias = next(v for v in model.trainable_variables if len(v.shape) == 1)
parts = [s.data + i for i, s in enumerate(bias.value.addressable_shards)]
bias._value = jax.make_array_from_single_device_arrays(
    bias.value.shape, bias.value.sharding, parts
)
try:
    check_equal(sharded, model)
except Exception as error:
    print("refused:", type(error).__name__, error)
"""


def divided(images, folder, layout, **settings):
    """Lines that a run on four virtual devices printed, and its folder."""
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(recipe(**settings)))
    arguments = ["train", str(config), "--data", str(images), "--output", str(folder / "run")]
    arguments += ["--quiet", "--layout", str(layout)]
    process = in_new_process(DIVIDED.format(arguments=arguments))
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines(), folder / "run"


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """The run of one device."""
    output = tmp_path_factory.mktemp("alone")
    return training.train(recipe(), images, output, verbose=0, log=str), output


@pytest.fixture(scope="module")
def by_axes(images, tmp_path_factory):
    return divided(images, tmp_path_factory.mktemp("axes"), "model=4")


def rows_of(output):
    return list(csv.DictReader((output / "log.csv").read_text().splitlines()))


@jax_only
def test_the_result_is_that_of_one_device(alone, by_axes):
    model, output = alone
    _, other = by_axes
    preset = dynzoo.from_preset(other / "preset")
    for one, two in zip(model.weights, preset.weights, strict=True):
        one, two = backend.value_of(one), backend.value_of(two)
        np.testing.assert_allclose(one, two, atol=5e-5)
    for one, two in zip(rows_of(output), rows_of(other), strict=True):
        assert float(two["loss"]) == pytest.approx(float(one["loss"]), abs=1e-4)
    lipschitz = dynzoo.certify(preset).lipschitz
    assert lipschitz == pytest.approx(dynzoo.certify(model).lipschitz, abs=1e-4)


@jax_only
def test_constraints_hold_on_divided_kernels(by_axes):
    said, _ = by_axes
    kernels = [line.split() for line in said if line.startswith(("Orthonormal", "SpectralNorm"))]
    assert len(kernels) >= 2
    for _, part, whole, excess in kernels:
        assert int(part) * 4 == int(whole)  # a quarter on each device
        assert abs(float(excess)) < 5e-6


@jax_only
def test_a_device_holds_a_part_of_the_bytes(by_axes):
    said, _ = by_axes
    _, here, whole = next(line for line in said if line.startswith("bytes")).split()
    assert int(here) < 0.5 * int(whole)
    assert any("24 of 24 images a batch on each of the mesh batch=1 x model=4" in s for s in said)


@jax_only
def test_devices_that_differ_are_found(by_axes):
    said, _ = by_axes
    (refused,) = [line for line in said if line.startswith("refused:")]
    assert "ReplicasDivergedError" in refused and "differs between devices" in refused


@jax_only
@pytest.mark.slow
def test_a_file_of_patterns_with_both_axes(alone, images, tmp_path):
    """Spectral norms by SpectralNorm and Orthonormal; images divided as well as kernels."""
    model, _ = alone
    layout, variables = tmp_path / "layout.yaml", {}
    for variable in model.trainable_variables:
        if variable.constraint is not None and variable.shape[-1] % 2 == 0:
            pattern = f".*{variable.path.split('/', 1)[-1]}"
            variables[pattern] = [*[None] * (len(variable.shape) - 1), "model"]
    layout.write_text(yaml.safe_dump({"mesh": {"batch": 2, "model": 2}, "variables": variables}))
    said, other = divided(images, tmp_path, layout)
    assert any("12 of 24 images a batch on each of the mesh batch=2 x model=2" in s for s in said)
    for one, two in zip(model.weights, dynzoo.from_preset(other / "preset").weights, strict=True):
        np.testing.assert_allclose(backend.value_of(one), backend.value_of(two), atol=5e-5)


CONSTRAINTS = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "0"  # as `jax_devices` has it: see there
import keras, numpy as np
from dynzoo import backend, constraints
from dynzoo.training.layouts import Sharded

rng = np.random.default_rng(0)
kinds = [constraints.Orthonormal(), constraints.SpectralNorm(0.5)]
for constraint in kinds:
    for shape in [(12, 8), (8, 32), (3, 3, 8, 16)]:
        if len(shape) == 4 and isinstance(constraint, constraints.Orthonormal):
            continue
        value = rng.normal(size=shape).astype("float32")
        plain = backend.to_numpy(constraint(keras.ops.convert_to_tensor(value)))
        with Sharded("model=4").scope():
            variable = keras.Variable(value, constraint=constraint, name="kernel")
            assert len({str(s.index) for s in variable.value.addressable_shards}) == 4
            variable.assign(constraint(variable))
        print(type(constraint).__name__, np.abs(backend.value_of(variable) - plain).max())
"""


@jax_only
def test_projections_of_divided_kernels_are_those_of_whole_ones():
    process = in_new_process(CONSTRAINTS)
    assert process.returncode == 0, process.stderr
    said = [line.split() for line in process.stdout.splitlines()]
    assert len(said) == 5
    for name, error in said:
        assert float(error) < 2e-6, name


# --- what is refused ---


@pytest.mark.any_backend
def test_axes_of_a_mesh():
    assert axes_of("batch=2,model=4") == {"batch": 2, "model": 4}
    assert axes_of("model=4") == {"model": 4}
    for text in ("model=0", "model", "model=2,model=2", "rows=4", "layout.yaml", "model=2,"):
        assert axes_of(text) is None, text


@pytest.mark.any_backend
def test_the_command_refuses_what_is_no_layout(capsys):
    assert cli.main(["train", "isometric_small_cifar10", "--layout", "rows=4"]) == 2
    assert "`layout` must be axes such as 'model=4'" in capsys.readouterr().err
    code = cli.main(["train", "isometric_small_cifar10", "--layout", "model=2", "--distribute"])
    assert code == 2 and "two ways to use devices" in capsys.readouterr().err


@pytest.mark.skipif(backend.name() == "jax", reason="what only JAX can")
def test_other_backends_are_refused(images, tmp_path):
    with pytest.raises(distribution.DistributionError, match="`layout` .*needs the JAX backend"):
        training.train(recipe(), images, tmp_path, layout="model=2")
    assert not list(tmp_path.iterdir())


@jax_only
@pytest.mark.parametrize(
    "content, message",
    [
        ("[1, 2]", "must hold the mappings `mesh` and `variables`"),
        ("{mesh: {model: 1}, variables: {kernel: [null, rows]}}", "axes of the mesh .model."),
        ("{mesh: {model: 1}, variables: {'(': [null, model]}}", "is no pattern"),
        ("{mesh: {model: 0}, variables: {kernel: [model]}}", "mesh.model"),
    ],
)
def test_files_that_are_no_layout(content, message, tmp_path):
    path = tmp_path / "layout.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        layouts.Sharded(path)


@jax_only
def test_a_layout_that_does_not_fit_names_the_variable(tmp_path):
    path = tmp_path / "layout.yaml"
    path.write_text(json.dumps({"mesh": {"model": 1}, "variables": {".*kernel": ["model"]}}))
    with layouts.Sharded(path).scope():
        with pytest.raises(distribution.DistributionError, match="does not fit .*kernel of shape"):
            keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])


@jax_only
def test_a_pattern_that_no_variable_has(tmp_path):
    path = tmp_path / "layout.yaml"
    path.write_text(json.dumps({"mesh": {"model": 1}, "variables": {"head": [None, "model"]}}))
    sharded = layouts.Sharded(path)
    with sharded.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    with pytest.raises(distribution.DistributionError, match="no variable matches 'head'"):
        sharded.synchronise(model)
