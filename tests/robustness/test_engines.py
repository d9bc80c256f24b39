"""An evaluation on a cluster of Dask's, of which a worker is killed half-way."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from robustness_fixtures import held_out, ridge

from dynzoo.attacks import PGD
from dynzoo.robustness.evaluation import evaluate


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Dask's and Tornado's, about the worker that is gone
def test_a_killed_worker_of_dask_loses_no_image(monkeypatch):
    distributed = pytest.importorskip("distributed", reason="needs dask and distributed")
    joblib = pytest.importorskip("joblib")
    import keras

    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model, (x, y) = ridge(), held_out(90)
    given = dict(
        eps=(0.1, 0.4),
        attacks=[PGD(steps=30), PGD(steps=30, loss="ce", random_start=True)],
        certificate=False,
        checks="quick",
        shards=9,
    )
    here = evaluate(model, x, y, jobs=1, **given)
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
            there = evaluate(model, x, y, jobs=3, **given)
        done.set()
        killer.join()
    for name in ("correct", "attacked", "broken", "passes"):
        np.testing.assert_array_equal(getattr(here.outcomes, name), getattr(there.outcomes, name))
