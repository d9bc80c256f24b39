"""The model of a step on many accelerators: what it counts, and what it predicts."""

import math
from pathlib import Path

import pytest
from helpers import load_script

from dynzoo import backend

pytestmark = pytest.mark.skipif(backend.name() != "torch", reason="counts PyTorch's operations")


BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def step_counts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)  # it imports its neighbours
        yield load_script(BENCHMARKS / "step_counts.py")


def test_a_product_is_counted_in_closed_form(step_counts):
    import torch

    a, b = torch.ones(3, 5), torch.ones(5, 7)
    flop, product_bytes, all_bytes = step_counts.counted(lambda: torch.relu(a @ b).T)
    assert flop == 2 * 3 * 5 * 7
    assert product_bytes == 4 * (3 * 5 + 5 * 7 + 3 * 7)
    assert all_bytes == product_bytes + 4 * 2 * 3 * 7  # relu reads and writes; a transpose does not


def test_a_network_is_counted(step_counts):
    network = {"widths": (8,), "steps": (1,), "neck_units": 8, "dense_steps": 1}
    image, update, shapes, size, parameters = step_counts.counts(network)
    assert size == 4 * sum(math.prod(shape) for shape in shapes)
    assert size == 4 * parameters
    # products forward, and twice as many back, but for the first layer's images
    positions, wide = 16 * 16, 8
    step = 2 * 2 * positions * wide * (wide // 2)
    assert image[0] > 3 * step and update[0] > 0
    assert (update[1:] > 0).all() and (image[2] > image[1] > 0)


def test_what_is_predicted(step_counts):
    rows = step_counts.table(2e-5, 0.01, [(8, 8)] * 6, size=1e8, batch_sizes=[512])
    assert [row["devices"] for row in rows] == list(step_counts.DEVICES)
    assert rows[0]["step_ms"] == pytest.approx(1e3 * (0.01 + 2e-5 * 512))
    assert rows[0]["all_reduce_ms"] == 0 and rows[0]["speed_up"] == 1
    reduce = [row["all_reduce_ms"] for row in rows]
    assert reduce == sorted(reduce)
    # what every device repeats bounds them all
    assert all(row["speed_up"] < (0.01 + 2e-5 * 512) / 0.01 for row in rows)
    # of six equal kernels the fullest of two devices has three, of four two, of six or more one
    shares = {row["devices"]: row["divided_update_ms"] for row in rows}
    parts = [shares[n] for n in (1, 2, 4, 8, 256)]
    assert parts == pytest.approx([10, 5, 10 / 3, 10 / 6, 10 / 6], abs=0.01)
    assert rows[0]["divided_step_ms"] == rows[0]["step_ms"]
