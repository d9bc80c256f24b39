"""What all tests share: seeds, a quiet environment, and CIFAR-10 where it is at hand."""

import os

# before the backends are imported
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import keras
import pytest

from dynzoo.data import loading as data

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


def pytest_collection_modifyitems(config, items):
    which = os.environ.get("DYNZOO_TEST_ROUNDING")
    if which:
        chosen = [item for item in items if (item.path.name in ROUNDING) == (which == "only")]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state and leaves no layer names behind."""
    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session(free_memory=False)  # collecting garbage takes 0.3 s a test


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
