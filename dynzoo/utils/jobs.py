"""Calls side by side, on whatever engine joblib is told to use: processes here, or a cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dynzoo.utils.arguments import integer
from dynzoo.utils.extras import check, extra

__all__ = ["checked_jobs", "run_jobs"]

# How often what a lost worker had is given out anew.
_TRIES = 3
# Errors by which an engine says that a worker died, by package and name: Ray is not imported here.
_WORKER_DIED = ("joblib.TerminatedWorkerError", "ray.RayActorError")
# One thread a worker, or they wait for one another: those of OpenMP are joblib's to set.
_ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "NPROC": "1"}


def checked_jobs(jobs: Any) -> int | None:
    """A number of processes, or ``None``, before anything is computed.

    Raises:
        ImportError: if there are to be several, without joblib.
        ValueError: if it is no positive integer.

    Example:

    >>> from dynzoo.utils.jobs import checked_jobs
    >>> checked_jobs(1)
    1
    """
    if jobs is None:
        return None
    if (number := integer("jobs", jobs)) > 1:
        check("parallel")
    return number


def run_jobs(
    function: Callable[..., Any],
    tasks: Sequence[Callable[[], tuple[Any, ...]]],
    jobs: int,
    finished: Callable[[int, Any], None] = lambda number, result: None,
    lost: Callable[[int], None] = lambda left: None,
    environment: dict[str, str] | None = None,
) -> list[Any]:
    """The results of ``function(*task())`` for each task, in the order of the tasks.

    Without a word of the caller's they run in ``jobs`` processes of this machine with one thread
    each. Within ``joblib.parallel_config(backend)`` they run there, on Dask for instance.
    What a process that died was doing is done again, twice at most.

    Args:
        function: a function of a module, which the workers import.
        tasks: each gives the arguments of one call, when its turn comes: only so many of them are
            in memory at once.
        jobs: number of workers, >= 1; one is this process.
        finished: called here with the number of a task and its result, as each comes in.
        lost: called here with the number of tasks that are left, where a process died.
        environment: variables that the processes start with, beside those of one thread each.

    Raises:
        ImportError: without joblib.
        RuntimeError: if processes keep dying.
    """
    with extra("parallel"):  # where there are jobs alone
        import joblib

    results: dict[int, Any] = {}
    for _ in range(_TRIES):
        left = [number for number in range(len(tasks)) if number not in results]
        calls = (joblib.delayed(_numbered)(function, number, tasks[number]()) for number in left)
        try:
            with _workers(joblib, environment or {}) as engine:
                # Some, Ray's for one, do not give results as they come, but all at the end.
                as_they_come = getattr(engine, "supports_return_generator", False)
                pool = joblib.Parallel(
                    n_jobs=jobs,
                    return_as="generator_unordered" if as_they_come else "list",
                    batch_size=1,
                    pre_dispatch=jobs,
                )
                for number, result in pool(calls):
                    results[number] = result
                    finished(number, result)
            return [results[number] for number in range(len(tasks))]
        except Exception as error:
            if not _says_worker_died(error):
                raise
            lost(len(tasks) - len(results))
    raise RuntimeError(
        f"{_TRIES} times a process was killed at its work, for want of memory perhaps: fewer "
        "`jobs` need less of it"
    )


def _says_worker_died(error: Exception) -> bool:
    """Whether the engine says so; Dask gives out anew by itself what a worker had."""
    kinds = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(error).__mro__}
    return not kinds.isdisjoint(_WORKER_DIED)


def _numbered(function: Callable[..., Any], number: int, task: tuple[Any, ...]) -> tuple[int, Any]:
    return number, function(*task)


@contextlib.contextmanager
def _workers(joblib: Any, environment: dict[str, str]) -> Iterator[Any]:
    """The engine: processes of this machine, unless the caller has chosen another one."""
    from joblib._parallel_backends import LokyBackend

    engine, _ = joblib.parallel.get_active_backend()
    if not isinstance(engine, LokyBackend):
        yield engine
        return
    before = dict(os.environ)
    os.environ.update(_ONE_THREAD | environment)  # as they are when a process starts
    try:
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
            yield engine
    finally:
        for name in _ONE_THREAD | environment:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
