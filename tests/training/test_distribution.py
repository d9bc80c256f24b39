"""Data-parallel training: the run of one device, on several virtual ones."""

import copy
import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import yaml
from training_fixtures import RECIPE, in_new_process, killed_after, random_images

import dynzoo
from dynzoo import backend, constraints
from dynzoo.cli import program as cli
from dynzoo.training import checkpoints, distribution, recipes
from dynzoo.training import loop as training

DEVICES = 4
spreads = pytest.mark.skipif(backend.name() == "torch", reason="Keras on PyTorch does not")
torch_only = pytest.mark.skipif(backend.name() != "torch", reason="what Keras lacks on PyTorch")


def recipe(**settings):
    config = copy.deepcopy(RECIPE)
    # Muon: momenta, tangent step and constraint must all work on copies.
    config["training"]["optimizer"] = {"name": "muon", "learning_rate": 0.05}
    config["training"].update(settings)
    config["data"] |= {"validation": 22, "rotation": 10, "color_jitter": 0.2}
    return config


def said_by(code):
    process = in_new_process(code)
    assert process.returncode == 0, process.stderr
    return process.stdout


def trained_on_several(config, images, output):
    """The preset that a run on several devices leaves."""
    said_by(
        "from dynzoo.training import loop as training\n"
        f"training.train({config!r}, {str(images)!r}, {str(output)!r}, verbose=0, "
        f"distribute=True, devices={DEVICES})"
    )
    return dynzoo.from_preset(output / "preset")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return random_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe()))
    return path


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """The run of one device."""
    output = tmp_path_factory.mktemp("alone")
    return training.train(recipe(), images, output, verbose=0, log=lambda line: None), output


@pytest.fixture(scope="module")
def spread(images, config, tmp_path_factory):
    """The same by the command on four virtual devices, and copies that are made to differ."""
    output = tmp_path_factory.mktemp("spread")
    arguments = f"train {config} --data {images} --output {output} --quiet --distribute"
    arguments = arguments.split() + ["--devices", str(DEVICES)]
    return output, said_by(
        f"""
import keras, numpy as np
from dynzoo import backend
from dynzoo.cli import program as cli
from dynzoo.training import distribution, loop as training

models = []
check_equal = distribution.Replicas.check_equal

def noted(self, model):
    models.append((self, model, [self._copies(v) for v in model.trainable_variables]))
    check_equal(self, model)

distribution.Replicas.check_equal = noted
assert cli.main({arguments!r}) == 0
replicas, model, copies = models[-1]
print(len(models), "checks of", {{len(c) for c in copies}}, "copies")
print("same bits", all(np.array_equal(c[0], other) for c in copies for other in c))

variable = model.trainable_variables[1]
if backend.name() == "jax":
    import jax
    parts = [s.data + i for i, s in enumerate(variable.value.addressable_shards)]
    value = variable.value
    variable._value = jax.make_array_from_single_device_arrays(value.shape, value.sharding, parts)
else:
    replicas._strategy.experimental_local_results(variable.value)[1].assign_add(variable + 1)
try:
    check_equal(replicas, model)
except distribution.ReplicasDivergedError as error:
    print("refused:", error)
"""
    )


def rows_of(output):
    return list(csv.DictReader((output / "log.csv").read_text().splitlines()))


def state_of(output):
    with np.load(output / "checkpoint.npz") as file:
        return json.loads(file["state"].tobytes())


def assert_same_weights(model, other, tolerance=5e-5):
    for one, two in zip(model.weights, other.weights, strict=True):
        np.testing.assert_allclose(
            backend.value_of(one), backend.value_of(two), atol=tolerance, err_msg=one.path
        )


@spreads
def test_the_result_is_that_of_one_device(alone, spread):
    model, output = alone
    other, _ = spread
    assert_same_weights(model, dynzoo.from_preset(other / "preset"))
    for one, two in zip(rows_of(output), rows_of(other), strict=True):
        assert one["epoch"] == two["epoch"] and one["learning_rate"] == two["learning_rate"]
        assert float(two["loss"]) == pytest.approx(float(one["loss"]), abs=1e-4)
        assert float(two["accuracy"]) == pytest.approx(float(one["accuracy"]), abs=1.1)
        assert float(two["val_accuracy"]) == pytest.approx(float(one["val_accuracy"]), abs=5)


@spreads
def test_the_copies_have_the_same_bits_and_are_checked_every_epoch(spread):
    _, said = spread
    assert f"6 of 24 images a batch on each of {backend_devices()}" in said
    assert f"4 checks of {{{DEVICES}}} copies" in said  # one before the first of three epochs
    assert "same bits True" in said


def backend_devices():
    kind = "cpu" if backend.name() == "jax" else "CPU"
    return ", ".join(f"{kind}:{i}" for i in range(DEVICES))


@spreads
def test_copies_that_differ_are_found(spread):
    _, said = spread
    refused = [line for line in said.splitlines() if line.startswith("refused: ")]
    assert len(refused) == 1 and " differs from that on " in refused[0]


@spreads
def test_constraints_hold_on_several_devices(spread):
    output, _ = spread
    model = training.build_model(recipes.validate(recipe()), 3, (8, 8, 3))
    checkpoints.read(output / "best.npz", compiled(model))
    # Before the last projection that makes the preset: what the devices' own steps left.
    constrained = [v for v in model.trainable_variables if v.constraint is not None]
    assert len(constrained) == 3
    for variable in constrained:
        before = backend.value_of(variable)
        np.testing.assert_allclose(
            backend.to_numpy(variable.constraint(variable)),
            before,
            atol=1e-3,
            err_msg=variable.path,
        )
        if isinstance(variable.constraint, constraints.Orthonormal):
            matrix = before.reshape(-1, before.shape[-1]).astype("float64")
            assert np.linalg.norm(matrix, 2) < 1 + 1e-3, variable.path


def compiled(model):
    optimizer = recipe()["training"]["optimizer"]
    model.compile(training.optimization.make_optimizer(optimizer, 15, {}, 5), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.slow
@spreads
def test_a_run_killed_on_several_devices_goes_on_on_one(alone, images, tmp_path):
    model, _ = alone
    run = f"training.train({recipe()!r}, {str(images)!r}, {str(tmp_path)!r}, verbose=0, "
    killed_after(7, run + "distribute=True, devices=2)")  # each is traced by itself
    assert state_of(tmp_path)["epoch"] == 1
    resumed = training.train(recipe(), images, tmp_path, resume=True, verbose=0, log=str)
    assert_same_weights(model, resumed)


@spreads
@pytest.mark.slow
def test_batch_statistics_are_those_of_the_whole_batch(images, tmp_path):
    """Of a residual network, whose normalisation looks at all images of a batch."""
    config = recipe(epochs=1, dtype="float32")
    config["architecture"] = {"name": "resnet", "widths": [8], "steps": [1]}
    config["training"]["optimizer"] = {"name": "sgd", "learning_rate": 0.05}
    config["training"]["loss"] = {"name": "crossentropy"}
    one = training.train(config, images, tmp_path / "one", verbose=0, log=str)
    assert_same_weights(one, trained_on_several(config, images, tmp_path / "two"), 1e-4)


@spreads
@pytest.mark.slow
def test_a_run_that_starts_from_a_preset(alone, images, tmp_path):
    _, output = alone
    config = recipe(epochs=1, start=str(output / "preset"))
    one = training.train(config, images, tmp_path / "one", verbose=0, log=str)
    assert_same_weights(one, trained_on_several(config, images, tmp_path / "two"))


@spreads
def test_unequal_shares_are_refused_before_any_work(images, tmp_path, monkeypatch):
    check = distribution.Replicas.check_batch_size
    monkeypatch.setattr(
        distribution.Replicas,
        "check_batch_size",
        lambda self, size: check(SimpleNamespace(count=5), size),
    )
    with pytest.raises(distribution.DistributionError, match="multiple of the 5 devices.*: 24"):
        training.train(recipe(), images, tmp_path, distribute=True, devices=1)
    assert not list(tmp_path.iterdir())


@spreads
def test_more_devices_than_there_are(monkeypatch):
    keras.ops.ones(2) + 1  # from here on the CPU cannot be divided
    with pytest.raises(distribution.DistributionError, match="start a new process.*: 1000"):
        distribution.Replicas(1000)


@spreads
def test_one_device_is_spread_over_itself(alone, images, tmp_path):
    model, _ = alone
    other = training.train(recipe(), images, tmp_path, verbose=0, log=str, distribute=True)
    assert_same_weights(model, other)
    assert state_of(tmp_path)["sessions"][0]["hardware"]


@pytest.mark.parametrize("devices", [0, -1, 1.5])
def test_a_number_of_devices_that_is_none(devices):
    with pytest.raises(distribution.DistributionError, match="`devices` must be at least 1"):
        distribution.Replicas(devices)


def test_devices_without_distribute(images, tmp_path):
    with pytest.raises(ValueError, match="`devices` needs `distribute=True`. Received: devices=2"):
        training.train(recipe(), images, tmp_path, devices=2)


def test_the_command_refuses_no_devices(capsys):
    assert cli.main(["train", "isometric_small_cifar10", "--distribute", "--devices", "0"]) == 2
    assert "must be at least 1, not 0" in capsys.readouterr().err


@torch_only
def test_pytorch_is_refused_with_the_way_around(images, config, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = ["train", str(config), "--data", str(images), "--output", str(output)]
    assert cli.main([*arguments, "--distribute"]) == 2
    message = capsys.readouterr().err
    assert "PyTorch apart" in message and "torchrun" in message and "KERAS_BACKEND=jax" in message
    assert not output.exists()


@spreads
def test_several_devices_of_one_of_several_processes(monkeypatch):
    monkeypatch.setattr(distribution, "separate_processes", lambda: 2)
    with pytest.raises(distribution.DistributionError, match="one process.*one of 2"):
        distribution.Replicas(1)


APART = """
import sys
import keras, numpy as np, torch.distributed as dist

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x = np.random.default_rng(rank).normal(size=(16, 3)).astype("float32")
model.fit(x, x[:, :1], verbose=0)
print(model.get_weights()[0].ravel().tolist())
"""


@torch_only
@pytest.mark.slow
def test_keras_on_pytorch_still_trains_copies_apart(tmp_path):
    """Why it is refused; once this fails, Keras synchronises and the refusal can go."""
    command = [sys.executable, "-c", APART]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    weights = [json.loads(p.communicate(timeout=300)[0].splitlines()[-1]) for p in processes]
    assert weights[0] != weights[1]
