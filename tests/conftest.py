"""What all tests share: seeds, a quiet environment, and CIFAR-10 where it is at hand."""

import contextlib
import functools
import gc
import itertools
import os
import threading
from pathlib import Path
from unittest import mock

# before the backends are imported
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
# Modules are for ever: looking through millions of their objects for garbage takes a fifth of the
# time in which they are imported. Collection begins again when all tests are known.
gc.disable()

import hypothesis
import keras
import pytest
from hypothesis.strategies import DataObject

from dynzoo.data import datasets as data

# no deadline: the first call on each shape compiles
hypothesis.settings.register_profile(
    "dynzoo",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.load_profile("dynzoo")


# Files whose claims are about the last bits of what users compile: scripts/test.sh runs them apart.
ROUNDING = {
    "test_certificate_fuzz.py",
    "test_certified_radii.py",
    "test_rounding.py",
    "test_rounding_extremes.py",
    "test_worst_cases.py",
}

# Files that take longest, the longest first: begun last, one would keep one process busy alone.
LONGEST = """
test_tuning.py test_processes.py test_export.py test_site.py test_packaging.py
test_radius_outputs.py
test_distribution.py test_tuning_trials.py test_autoattack.py test_training.py test_cli.py
test_resident_epochs.py test_campaign.py test_distorted_model.py test_accelerator_scripts.py
test_masking.py test_robustness.py test_label_checks.py test_ablations.py
test_example_fine_tuning.py test_certificate_fuzz.py test_rounding.py test_worst_cases.py
test_conformance.py test_presets.py test_hostile_presets.py test_readme.py test_finetuning.py
test_certified_accuracy.py test_averaging.py test_interruption.py test_random_models.py
test_apgd.py test_shards.py test_import.py test_attacks.py test_eot.py
test_example_founding_networks.py test_spectral.py
""".split()


def pytest_collection_modifyitems(config, items):
    chosen = items
    if which := os.environ.get("DYNZOO_TEST_ROUNDING"):
        chosen = [item for item in chosen if (item.path.name in ROUNDING) == (which == "only")]
    if os.environ.get("DYNZOO_TEST_ANY_BACKEND") == "none":
        chosen = [item for item in chosen if not item.get_closest_marker("any_backend")]
    config.hook.pytest_deselected(items=list(set(items) - set(chosen)))
    if hasattr(config, "workerinput"):
        place = {name: i for i, name in enumerate(LONGEST)}
        chosen = sorted(chosen, key=lambda item: place.get(item.path.name, len(LONGEST)))
    items[:] = chosen


def pytest_collection_finish():
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 20)


def _share_compilers_context():
    """JAX makes a context of its compiler for each program, a quarter of the time of a small one.

    Here each thread keeps one for a hundred programs: for ever, and constants would pile up in it.
    """
    from jax._src.interpreters import mlir

    if not hasattr(mlir, "make_ir_context"):  # another version of JAX
        return
    make, kept = mlir.make_ir_context, threading.local()

    def shared():
        kept.uses = getattr(kept, "uses", 0) + 1
        if kept.uses % 100 == 1:
            kept.context = make()
        return kept.context

    mlir.make_ir_context = shared


if keras.backend.backend() == "jax":
    _share_compilers_context()


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state and leaves no layer names behind."""
    with _kernels_kept():
        keras.utils.set_random_seed(0)
    yield
    with _kernels_kept():
        keras.backend.clear_session(free_memory=False)  # collecting garbage takes 0.3 s a test


@contextlib.contextmanager
def _kernels_kept():
    """What Keras resets, without what TensorFlow drops at it: all kernels, twice a test.

    Making them anew takes as long as most tests. No kernel that Keras asks for has a state.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    with contextlib.ExitStack() as scope:
        scope.enter_context(mock.patch.object(tf, "executing_eagerly", lambda: False))
        if tf.compat.v1.get_seed(1)[0] == 0:  # no test has set another seed
            scope.enter_context(mock.patch.object(tf.random, "set_seed"))
        yield


@pytest.fixture(autouse=True)
def searched(request):
    """TensorFlow and JAX take the first ten examples of a property, PyTorch all of them.

    What is drawn is mostly shapes, and the two compile anew for each; what is claimed is of the
    formulas in `keras.ops`. Where it is of rounding, all are taken, as are all after a failure.
    """
    compiles = keras.backend.backend() in ("tensorflow", "jax")
    test = getattr(request.function, "hypothesis", None)
    if not compiles or test is None or request.path.name in ROUNDING:
        yield
        return
    inner, number, failed = test.inner_test, itertools.count(), []

    @functools.wraps(inner)
    def first_ten(*args, **kwargs):
        # a test that draws as it runs must draw the same each time
        draws = any(isinstance(value, DataObject) for value in kwargs.values())
        if next(number) >= 10 and not failed and not draws:
            return
        try:
            inner(*args, **kwargs)
        except hypothesis.errors.UnsatisfiedAssumption:
            raise
        except Exception:
            failed.append(True)
            raise

    test.inner_test = first_ten
    yield
    test.inner_test = inner


# Bytes that a process held when it last let go of what JAX had compiled.
_AT_LAST = [0]


@pytest.fixture(autouse=True, scope="module")
def bounded():
    """JAX keeps all that it ever compiled; a process that has grown by 4 GiB lets go of it."""
    yield
    if keras.backend.backend() == "jax" and _resident_bytes() - _AT_LAST[0] > 4 * 2**30:
        import jax

        jax.clear_caches()
        gc.collect()
        _AT_LAST[0] = _resident_bytes()


def _resident_bytes():
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") if pages.exists() else 0


@pytest.fixture(scope="session")
def cifar10():
    """The whole CIFAR-10 as bytes: `(x_train, y_train), (x_test, y_test)`."""
    npz = os.environ.get("DYNZOO_CIFAR10_NPZ")
    if npz:
        return data.load(npz, dtype="uint8")
    if not os.environ.get("TFDS_DATA_DIR"):
        pytest.skip("CIFAR-10 is needed: set DYNZOO_CIFAR10_NPZ or TFDS_DATA_DIR")
    return data.load("cifar10", dtype="uint8")


@pytest.fixture(scope="session")
def cifar10_test(cifar10):
    """The first 1000 test images in [0, 1], and their labels."""
    _, (x, y) = cifar10
    return (x[:1000] / 255).astype("float32"), y[:1000]
