"""Calls in other processes, of which some die."""

import os

import pytest

from dynzoo.utils.jobs import run_jobs


def _work(folder, number):
    """Squares; kills its own process as the kernel does for want of memory, once at 2, ever at 9"""
    mark = os.path.join(folder, f"{number}")
    if number == 9 or (number == 2 and not os.path.exists(mark)):
        open(mark, "w").close()
        os.kill(os.getpid(), 9)
    return number * number, [os.environ.get(name) for name in NAMES]


NAMES = ("NPROC", "TF_NUM_INTRAOP_THREADS", "DYNZOO_TEST")


@pytest.mark.slow  # eight processes that import Keras
@pytest.mark.filterwarnings("ignore:A worker stopped while some jobs were given")
def test_a_killed_process_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("NPROC", "7")
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    lost, done = [], []
    tasks = [lambda k=k: (str(tmp_path), k) for k in range(5)]
    about = dict(environment={"DYNZOO_TEST": "x"}, lost=lost.append)
    results = run_jobs(_work, tasks, 2, lambda k, _: done.append(k), **about)
    assert [square for square, _ in results] == [k * k for k in range(5)]
    assert sorted(done) == list(range(5)) and len(lost) == 1
    # a worker has one thread and what it is told; here all is as it was
    assert results[-1][1] == ["1", "1", "x"]
    assert [os.environ.get(name) for name in NAMES] == ["7", None, None]
    with pytest.raises(RuntimeError, match="a process was killed at its work"):
        run_jobs(_work, [lambda: (str(tmp_path), 9), lambda: (str(tmp_path), 1)], 2)


def dies_once(calls, error, number):
    calls.append(number)
    if calls == [0, 1]:
        raise error("it is gone")
    return number


def test_a_worker_that_died_is_told_by_the_engines_error():
    joblib = pytest.importorskip("joblib")
    rays = type("RayActorError", (Exception,), {"__module__": "ray.exceptions"})
    died = type("ActorDiedError", (rays,), {})
    for error, expected in ((died, [0, 1, 2]), (ValueError, None)):
        calls, lost = [], []
        tasks = [lambda k=k, c=calls, e=error: (c, e, k) for k in range(3)]
        with joblib.parallel_config(backend="threading"):
            if expected is None:  # an error of the work itself
                with pytest.raises(ValueError, match="it is gone"):
                    run_jobs(dies_once, tasks, 1, lost=lost.append)
                assert lost == []
            else:
                assert run_jobs(dies_once, tasks, 1, lost=lost.append) == expected
                assert len(lost) == 1
