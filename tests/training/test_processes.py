"""Training in two processes over loopback: the run of one process, the same bits in both."""

import copy
import csv
import json
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from training_fixtures import RECIPE, processes_together, random_images, said_together

import dynzoo
from dynzoo import backend
from dynzoo.cli import program as cli
from dynzoo.training import distribution, finetuning, processes, recipes
from dynzoo.training import loop as training

# Two processes of JAX, which compile, take minutes on two busy cores.
together_here = pytest.mark.skipif(backend.name() == "tensorflow", reason="Keras does not there")
slow_on_jax = pytest.mark.slow if backend.name() == "jax" else lambda test: test
torch_only = pytest.mark.skipif(backend.name() != "torch", reason="of PyTorch")
SECONDS = 60  # after which a process must have noticed that the other is gone


def recipe(**settings):
    config = copy.deepcopy(RECIPE)
    # Muon: momenta, tangent step and constraint must all work on the mean of gradients.
    config["training"]["optimizer"] = {"name": "muon", "learning_rate": 0.05}
    config["training"].update(keep="best", **settings)
    config["data"] |= {"validation": 22, "rotation": 10, "color_jitter": 0.2}
    return config


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return random_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """The run of one process."""
    output = tmp_path_factory.mktemp("alone")
    return training.train(recipe(), images, output, verbose=0, log=str), output


TOGETHER = """
import atexit
import hashlib
import numpy as np
from dynzoo import backend
from dynzoo.training import distribution, loop as training, processes

if backend.name() == "torch":
    import torch.distributed

    # called last: what was registered after it has run
    atexit.register(lambda: print("group:", torch.distributed.is_initialized()))
model = training.train({recipe!r}, {images!r}, {output!r} + "/whole", verbose=0)
bits = b"".join(w.tobytes() for w in model.get_weights())
print("bits", hashlib.sha256(bits).hexdigest())

rank = processes.Processes().rank
limit = 1.0 if rank == 1 else None
training.train({long!r}, {images!r}, {output!r} + "/limited", max_seconds=limit, verbose=0)
print("both stopped")

check_equal, epochs = processes.Processes.check_equal, []


def altered(self, model):
    epochs.append(len(epochs))
    variable = model.trainable_variables[1]
    if rank == 1 and len(epochs) == 3:
        value = backend.value_of(variable).copy()
        value.ravel()[0] = np.nextafter(value.ravel()[0], np.float32(9))
        if backend.name() == "jax":
            import jax

            whole = variable.value
            (device,) = whole.addressable_data(0).devices()
            one = jax.device_put(value, device)
            variable._value = jax.make_array_from_single_device_arrays(
                whole.shape, whole.sharding, [one]
            )
        else:
            variable.assign(value)
    check_equal(self, model)


processes.Processes.check_equal = altered
try:
    training.train({recipe!r}, {images!r}, {output!r} + "/altered", verbose=0)
except distribution.ReplicasDivergedError as error:
    print("refused:", error)
"""


@pytest.fixture(scope="module")
def together(images, tmp_path_factory):
    """Where two processes trained, and what each said."""
    output = tmp_path_factory.mktemp("together")
    code = TOGETHER.format(
        recipe=recipe(), long=recipe(epochs=100_000), images=str(images), output=str(output)
    )
    return output, said_together(code)


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


@together_here
@slow_on_jax
def test_the_result_is_that_of_one_process(alone, together):
    model, output = alone
    folder, _ = together
    assert_same_weights(model, dynzoo.from_preset(folder / "whole" / "preset"))
    for one, two in zip(rows_of(output), rows_of(folder / "whole"), strict=True):
        assert one["epoch"] == two["epoch"] and one["learning_rate"] == two["learning_rate"]
        assert float(two["loss"]) == pytest.approx(float(one["loss"]), abs=1e-4)
        assert float(two["accuracy"]) == pytest.approx(float(one["accuracy"]), abs=1.1)
        assert float(two["val_accuracy"]) == pytest.approx(float(one["val_accuracy"]), abs=5)
    assert state_of(folder / "whole")["sessions"][0]["processes"] == 2


@together_here
@slow_on_jax
def test_both_end_with_the_same_bits_and_one_speaks(together):
    _, (first, second) = together
    bits = [next(line for line in said if line.startswith("bits")) for said in (first, second)]
    assert bits[0] == bits[1]
    assert any("12 of 24 images a batch on each of 2 devices of 2 processes" in s for s in first)
    # of the second only what the test prints itself
    own = [line for line in second if "[Gloo]" not in line and not line.startswith("group:")]
    assert [line.split()[0] for line in own] == ["bits", "both", "refused:"]


@torch_only
def test_the_group_is_left_before_python_ends(together):
    _, said = together  # one that lives longer may abort the process
    assert all("group: False" in lines for lines in said)


@together_here
@slow_on_jax
def test_the_time_limit_of_one_stops_both_after_the_same_step(together):
    folder, (first, second) = together
    assert "both stopped" in first and "both stopped" in second
    assert any("stopped at the time limit" in line for line in first)
    state = state_of(folder / "limited")
    assert state["epoch"] + state["batch"] > 0 and state["epoch"] < 100_000


@together_here
@slow_on_jax
def test_one_bit_of_one_weight_is_found_in_both(together):
    folder, said = together
    for lines in said:
        (refused,) = [line for line in lines if line.startswith("refused:")]
        assert "of process 1 differs from that of process 0" in refused
    assert state_of(folder / "altered")["epoch"] == 1  # nothing of the second one is kept


LOST = """
import os, signal, sys
from dynzoo.cli import program as cli
from dynzoo.training import processes

batches, ended = 0, processes._WatchTogether.on_train_batch_end


def kill(self, batch, logs=None):
    global batches
    batches += 1
    ended(self, batch, logs)
    if self._processes.rank == {rank} and batches == 7:
        os.kill(os.getpid(), signal.SIGKILL)


processes._WatchTogether.on_train_batch_end = kill
sys.argv = ["dynzoo"]
code = cli.main({arguments!r})
processes.leave(code)
"""


def lost(rank, images, config, output):
    """What the survivor said, its exit code, and how many seconds after the kill it ended."""
    config.write_text(json.dumps(recipe()))
    arguments = ["train", str(config), "--data", str(images), "--output", str(output), "--quiet"]
    pair = processes_together(LOST.format(rank=rank, arguments=arguments))
    try:
        assert pair[rank].wait(timeout=600) == -signal.SIGKILL, pair[rank].stderr.read()
        began = time.monotonic()
        _, complaint = pair[1 - rank].communicate(timeout=600)
        return complaint, pair[1 - rank].returncode, time.monotonic() - began
    finally:
        for process in pair:
            process.kill()
            process.communicate()


@together_here
@slow_on_jax
def test_one_is_killed_the_other_says_so_and_one_process_goes_on(alone, images, tmp_path):
    model, _ = alone
    complaint, code, seconds = lost(1, images, tmp_path / "tiny.yaml", tmp_path / "run")
    assert "another of the 2 processes is gone" in complaint, complaint
    assert code == 2 and seconds < SECONDS
    assert state_of(tmp_path / "run")["epoch"] == 1
    resumed = training.train(recipe(), images, tmp_path / "run", resume=True, verbose=0, log=str)
    assert_same_weights(model, resumed)


@together_here
@pytest.mark.slow
def test_the_first_one_is_killed(images, tmp_path):
    complaint, code, seconds = lost(0, images, tmp_path / "tiny.yaml", tmp_path / "run")
    assert seconds < SECONDS
    # On JAX it may also be the coordination service that ends the process, in its own words.
    aborted = backend.name() == "jax" and code == -signal.SIGABRT
    assert aborted or code == 2
    words = "another task died" if aborted else "another of the 2 processes is gone"
    assert words in complaint


RESUMED = """
from dynzoo.training import loop as training
training.train({recipe!r}, {images!r}, {output!r}, resume=True, verbose=0)
"""


@together_here
@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(alone, images, tmp_path):
    model, _ = alone
    training.train(recipe(epochs=1), images, tmp_path, verbose=0, log=str)
    first, _ = said_together(
        RESUMED.format(recipe=recipe(), images=str(images), output=str(tmp_path))
    )
    assert any("resumed at epoch 1" in line for line in first)
    # The schedule of one epoch was another one: so was what one process would have done.
    again = tmp_path / "again"
    training.train(recipe(epochs=1), images, again, verbose=0, log=str)
    resumed = training.train(recipe(), images, again, resume=True, verbose=0, log=str)
    assert_same_weights(resumed, dynzoo.from_preset(tmp_path / "preset"))


OTHER = """
import os
from dynzoo.training import distribution, loop as training

path = {images!r}[int(os.environ["RANK"])]
try:
    training.train({recipe!r}, path, {output!r}, verbose=0)
except distribution.DistributionError as error:
    print("refused:", error)
"""


@torch_only
@pytest.mark.slow
def test_processes_with_other_images_are_refused(images, tmp_path):
    with np.load(images) as file:
        arrays = dict(file)
    arrays["x_train"][0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "other.npz", **arrays)
    paths = [str(images), str(tmp_path / "other.npz")]
    code = OTHER.format(images=paths, recipe=recipe(), output=str(tmp_path / "run"))
    for said in said_together(code):
        assert "refused: process 1 has a recipe or images that process 0 has not" in said
    assert not (tmp_path / "run").exists()


# --- what is refused ---


def asked_for(monkeypatch, **variables):
    for name in processes._TORCH + processes._JAX:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


COUNT = {"torch": "WORLD_SIZE", "jax": "KERAS_DISTRIBUTION_NUM_PROCESSES"}


@together_here
def test_a_variable_that_is_missing(images, tmp_path, monkeypatch):
    asked_for(monkeypatch, **{COUNT[backend.name()]: "2"})
    missing = {"torch": "RANK", "jax": "KERAS_DISTRIBUTION_JOB_ADDRESSES"}[backend.name()]
    with pytest.raises(distribution.DistributionError, match=f"{missing} must be set"):
        training.train(recipe(), images, tmp_path)
    assert not list(tmp_path.iterdir())


@together_here
def test_a_number_of_processes_that_is_none(images, tmp_path, monkeypatch):
    asked_for(monkeypatch, **{COUNT[backend.name()]: "two"})
    with pytest.raises(distribution.DistributionError, match="positive integer. Received: .*=two"):
        training.train(recipe(), images, tmp_path)


@torch_only
def test_a_rank_beyond_the_last(images, tmp_path, monkeypatch):
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    asked_for(monkeypatch, WORLD_SIZE="2", RANK="2", **where)
    with pytest.raises(distribution.DistributionError, match=r"RANK must be in \[0, 2\).*: 2"):
        training.train(recipe(), images, tmp_path)


@together_here
def test_devices_in_one_of_several_processes(images, tmp_path, monkeypatch):
    asked_for(monkeypatch, **{COUNT[backend.name()]: "2"})
    with pytest.raises(distribution.DistributionError, match="`devices` .*must be left out"):
        training.train(recipe(), images, tmp_path, distribute=True, devices=2)


@together_here
def test_fine_tuning_in_one_of_several_processes(alone, monkeypatch):
    model, _ = alone
    asked_for(monkeypatch, **{COUNT[backend.name()]: "2"})
    x = np.zeros((4, 8, 8, 3), "float32")
    with pytest.raises(distribution.DistributionError, match="Fine-tuning runs in one process"):
        finetuning.finetune(model, x, np.arange(4) % 3, epochs=1, batch_size=2)


def without_others():
    """What needs no other process, of PyTorch's kind."""
    alone = object.__new__(processes.Processes)
    alone.apart, alone.count, alone._channel = False, 2, None
    return alone


def test_batch_statistics_of_shares_are_refused():
    config = recipe()
    config["architecture"] = {"name": "resnet", "widths": [8], "steps": [1]}
    model = training.build_model(recipes.validate(config), 3, (8, 8, 3))
    with pytest.raises(distribution.DistributionError, match="BatchNormalization.* on PyTorch"):
        without_others().synchronise(model)
    for layer in model._flatten_layers(include_self=False):
        layer.trainable = False  # then its statistics are those that it has
    without_others().synchronise(model)


def test_a_loss_that_is_no_mean_is_refused():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    model.compile("sgd", loss)
    with pytest.raises(distribution.DistributionError, match="a mean over the batch.*'sum'"):
        without_others().average(model)


def test_unequal_shares_are_refused():
    with pytest.raises(distribution.DistributionError, match="multiple of the 2 devices.*: 25"):
        without_others().check_batch_size(25)


def test_the_shares_of_a_batch_are_the_batch(images):
    with np.load(images) as file:
        x, y = file["x_train"], file["y_train"]
    arguments = {"batch_size": 24, "seed": 3, "rotation": 10, "color_jitter": 0.2}
    whole = distribution.OneDevice().batches(x, y, **arguments)[1]
    parts = [processes._Share(rank, 2, x, y, **arguments)[1] for rank in range(2)]
    for k in range(2):
        np.testing.assert_array_equal(np.concatenate([part[k] for part in parts]), whole[k])


# --- TensorFlow ---


@pytest.mark.skipif(backend.name() != "tensorflow", reason="TF_CONFIG is TensorFlow's")
def test_tensorflow_workers_are_refused_in_one_line(images, tmp_path, monkeypatch, capsys):
    cluster = {"cluster": {"worker": ["localhost:1", "localhost:2"]}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster | {"task": {"type": "worker", "index": 0}}))
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps(recipe()))
    output = tmp_path / "run"
    assert cli.main(["train", str(config), "--data", str(images), "--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert "does not run under TensorFlow's MultiWorkerMirroredStrategy" in said
    assert said.count("\n") == 1 and not output.exists()


WORKER = """
import json, os, sys
rank, ports = int(sys.argv[1]), sys.argv[2:]
os.environ["TF_CONFIG"] = json.dumps({
    "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
    "task": {"type": "worker", "index": rank},
})
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import keras, numpy as np
with strategy.scope():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
x = np.zeros((16, 3), "float32")
try:
    model.fit(x, x[:, :1], batch_size=8, verbose=0)
    print("fitted")
except ValueError as error:
    print("PerReplica" if "PerReplica" in str(error) else error)
"""


@pytest.mark.skipif(backend.name() != "tensorflow", reason="of TensorFlow")
@pytest.mark.slow
def test_keras_still_does_not_fit_under_several_workers(tmp_path):
    """Why it is refused; once this fails, Keras can, and the refusal may go."""
    port = 20_000 + os.getpid() % 10_000
    command = [sys.executable, "-c", WORKER]
    pair = [
        subprocess.Popen([*command, str(rank), str(port), str(port + 1)], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0].decode().split()[-1] for process in pair]
    assert said == ["PerReplica", "PerReplica"]
