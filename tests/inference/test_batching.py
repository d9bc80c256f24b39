"""Batches of few shapes, and a pool of images that shrinks as they fall."""

import keras
import numpy as np
import pytest
from golden_numbers import survivors
from keras import ops
from robustness_fixtures import held_out, ridge

from dynzoo import backend
from dynzoo.attacks import APGD
from dynzoo.inference.batching import Pool, batches, fastest, sizes


def test_pool_gives_each_result_to_its_image():
    rng = np.random.default_rng(0)
    real, size, batch_size = 50, 64, 64
    pool = Pool(real, size, 2, batch_size)
    names = np.arange(size, dtype="float32")
    state = [ops.convert_to_tensor(v) for v in (names, names * 10, names)]
    expected, gone = np.full(real, np.nan), np.zeros(real, bool)
    for turn in range(200):
        ids = backend.to_numpy(state[2])
        gone |= rng.uniform(size=real) < 0.15
        # what is an image's result is fixed when it falls
        value = np.array([expected[int(i)] if i < real else 0 for i in ids])
        fresh = np.isnan(value)
        value[fresh] = ids[fresh] + 1000 * turn
        for i, v in zip(ids.astype(int), value, strict=True):
            if i < real and gone[i]:
                expected[i] = v
        fallen = np.array([i < real and gone[int(i)] for i in ids])
        state[0] = ops.convert_to_tensor(value.astype("float32"))
        state = pool.pack(ops.convert_to_tensor(fallen), state)
        assert pool.open == (~gone).sum()
        assert (
            backend.compiles() or len(backend.to_numpy(state[0])) == max(pool.open, 1) or turn < 1
        )
        if not pool.open:
            break
    assert gone.all()
    values, tens = pool.results(state)
    np.testing.assert_array_equal(values[:real], expected)
    np.testing.assert_array_equal(tens[:real], 10 * np.arange(real))


@pytest.mark.parametrize("count", [0, 1, 5, 16, 40, 64, 130, 200, 256, 300, 777])
def test_batches_cover_each_row_once_in_few_shapes(count):
    cut = batches(count, 256)
    rows = np.concatenate([rows[:real] for rows, real in cut]) if cut else np.zeros(0)
    np.testing.assert_array_equal(rows, np.arange(count))
    if backend.compiles():
        assert {len(rows) for rows, _ in cut} <= set(sizes(256))
        assert sum(len(rows) for rows, _ in cut) <= max(16, 4 / 3 * count)


@pytest.mark.parametrize("cores", [1, 2, 64])
def test_on_a_cpu_jax_and_torch_get_batches_that_fit_in_the_caches(monkeypatch, cores):
    monkeypatch.setattr("dynzoo.inference.batching._cores", lambda: cores)
    lengths = [fastest(256, shape) for shape in ((32, 32, 3), (28, 28, 1), (8, 8, 1), (2000, 1000))]
    expected = {
        "jax": {1: [16, 64, 256, 16], 2: [32, 128, 256, 16], 64: [256, 256, 256, 16]},
        "torch": {1: [64, 256, 256, 16], 2: [128, 256, 256, 16], 64: [256, 256, 256, 16]},
    }
    if backend.name() in expected and backend.accelerator() is None:
        assert lengths == expected[backend.name()][cores]
    else:
        assert lengths == [256] * 4
    assert fastest(5, (32, 32, 3)) == 5
    assert (
        sizes(16) == [16]
        and sizes(64) == [16, 64]
        and sizes(256) == [16, 64, 256]
        and sizes(5) == [5]
    )


def test_images_leave_the_batch_when_they_fall():
    seen = []

    class Probe(keras.layers.Layer):
        def call(self, x):
            seen.append(x.shape[0])
            return x

    if backend.compiles():
        pytest.skip("a compiled pass does not report its batches")
    model = keras.Sequential([keras.Input((64,)), Probe(), *ridge().layers])
    x, y = held_out()
    seen.clear()
    left = survivors(model, APGD("linf", 0.1, steps=40), x, y)
    # 189 images are attacked; after ten steps most have fallen
    assert seen.count(189) <= 11 and min(seen[5:-3]) <= left + 5
    seen.clear()
    APGD("linf", 0.5, steps=40)(model, x, y)
    assert len(seen) <= 14  # nothing is left to attack
