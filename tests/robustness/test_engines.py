"""An evaluation on Dask and on Ray, of which a worker is killed half-way: no image is lost."""

import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from robustness_fixtures import held_out, ridge

from dynzoo.attacks import PGD
from dynzoo.robustness.evaluation import evaluate


class Dying(PGD):
    """PGD; the process that first runs it, of those that are told to, is killed."""

    def search(self, *arguments):
        mark = os.environ["DYNZOO_TEST_MARK"]
        if not os.path.exists(mark):
            with open(mark, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        return super().search(*arguments)


GIVEN = dict(
    eps=(0.1, 0.4),
    attacks=[PGD(steps=30), PGD(steps=30, loss="ce", random_start=True)],
    certificate=False,
    checks="quick",
    shards=9,
)


@pytest.fixture
def alone(monkeypatch):
    """A model, images, and what one process finds."""
    import keras

    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model, (x, y) = ridge(), held_out(90)
    return model, x, y, evaluate(model, x, y, jobs=1, **GIVEN)


def assert_same(here, there):
    for name in ("correct", "attacked", "broken", "passes"):
        np.testing.assert_array_equal(getattr(here.outcomes, name), getattr(there.outcomes, name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Dask's and Tornado's, about the worker that is gone
def test_a_killed_worker_of_dask_loses_no_image(alone):
    distributed = pytest.importorskip("distributed", reason="needs dask and distributed")
    joblib = pytest.importorskip("joblib")
    model, x, y, here = alone
    with (
        distributed.LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as hub,
        distributed.Client(hub) as client,
    ):
        pids = list(client.run(os.getpid).values())
        done = threading.Event()

        def kill():
            while client.call_stack() == {} and not done.is_set():
                time.sleep(0.2)
            os.kill(pids[1], signal.SIGKILL)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        with joblib.parallel_config(backend="dask"):
            there = evaluate(model, x, y, jobs=3, **GIVEN)
        done.set()
        killer.join()
    assert_same(here, there)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_a_killed_worker_of_ray_loses_no_image(alone, monkeypatch, tmp_path):
    ray = pytest.importorskip("ray", reason="needs ray")
    joblib = pytest.importorskip("joblib")
    from ray.util.joblib import register_ray

    # Ray's workers are nice by 15: beside other work they would hardly come to import Keras
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    mark = tmp_path / "killed"
    monkeypatch.setenv("DYNZOO_TEST_MARK", str(mark))
    model, x, y, here = alone
    first, second = GIVEN["attacks"]
    attacks = [first, Dying(**second.get_config())]
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        register_ray()
        with joblib.parallel_config(backend="ray"):
            there = evaluate(model, x, y, jobs=3, **{**GIVEN, "attacks": attacks})
    finally:
        ray.shutdown()
    assert mark.exists()
    assert_same(here, there)
