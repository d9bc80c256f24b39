import numpy as np
import pytest
from keras import ops

from dynzoo import backend
from dynzoo.operators import bfloat16_products
from dynzoo.operators.dense import matmul_channels

ROUNDING = 2.0**-8  # of bfloat16, relative
# Without these instructions TensorFlow sums in bfloat16, which is its own affair.
SUMS_COARSELY = backend.name() == "tensorflow" and not (
    bfloat16_products.CPU_INFO.exists() and "avx512" in bfloat16_products.CPU_INFO.read_text()
)


def _rounded(rng, shape):
    """Random bfloat16 numbers, as float32."""
    bits = rng.standard_normal(shape).astype("float32").view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


@pytest.mark.skipif(SUMS_COARSELY, reason="TensorFlow on a processor without AVX-512")
@pytest.mark.parametrize("shape", [(300, 70), (2, 5, 7, 48)])
def test_is_the_product_summed_finely_and_rounded_once(shape):
    rng = np.random.default_rng(0)
    x, matrix, g = (_rounded(rng, s) for s in (shape, (shape[-1], 33), (*shape[:-1], 33)))
    weights = ops.convert_to_tensor(g)

    def value(x, matrix):
        y = matmul_channels(ops.cast(x, "bfloat16"), ops.cast(matrix, "bfloat16"))
        return ops.sum(ops.cast(y, "float32") * weights), y

    tensors = ops.convert_to_tensor(x), ops.convert_to_tensor(matrix)
    (_, y), gradient = backend.jit(backend.value_and_grad(value))(*tensors)
    of_matrix = backend.value_and_grad(lambda matrix, x: value(x, matrix))
    _, matrix_gradient = backend.jit(of_matrix)(tensors[1], tensors[0])
    assert "bfloat16" in str(y.dtype)
    flat = g.reshape(-1, 33)
    for found, a, b in (
        (ops.cast(y, "float32"), x.reshape(-1, shape[-1]), matrix),
        (gradient, flat, matrix.T),
        (matrix_gradient, x.reshape(-1, shape[-1]).T, flat),
    ):
        exact = a.astype("float64") @ b.astype("float64")
        # one rounding of the result, and float32 sums
        allowed = ROUNDING * np.abs(exact) + 1e-5 * (np.abs(a) @ np.abs(b))
        found = backend.to_numpy(found).reshape(exact.shape)
        assert np.all(np.abs(found - exact) <= allowed)


def test_only_for_bfloat16_on_jax_with_the_units():
    narrow, wide = ops.ones((4, 4), "bfloat16"), ops.ones((4, 4), "float32")
    assert not bfloat16_products.suits(wide, wide)
    assert not bfloat16_products.suits(narrow, wide)
    expected = backend.name() == "jax" and bfloat16_products.has_units()
    assert bfloat16_products.suits(narrow, narrow) == expected
    if backend.name() != "jax":
        assert not bfloat16_products.has_units()


@pytest.mark.skipif(backend.name() != "jax", reason="JAX's own products on a CPU")
@pytest.mark.parametrize("information", ["flags : avx2 fma", None])
def test_other_processors_keep_the_plain_product(tmp_path, monkeypatch, information):
    file = tmp_path / "cpuinfo"
    if information:
        file.write_text(information)
    monkeypatch.setattr(bfloat16_products, "CPU_INFO", file)
    bfloat16_products.has_units.cache_clear()
    try:
        assert not bfloat16_products.has_units()
        narrow = ops.ones((4, 4), "bfloat16")
        assert not bfloat16_products.suits(narrow, narrow)
    finally:
        bfloat16_products.has_units.cache_clear()


@pytest.mark.skipif(backend.name() != "jax", reason="JAX's own products on a CPU")
def test_a_unit_that_computes_something_else_is_not_used(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text("flags : amx_bf16")
    monkeypatch.setattr(bfloat16_products, "CPU_INFO", file)
    monkeypatch.setattr(
        bfloat16_products, "_differentiable", lambda: lambda x, matrix: 1.25 * (x @ matrix)
    )
    bfloat16_products.has_units.cache_clear()
    try:
        assert not bfloat16_products.has_units()
    finally:
        bfloat16_products.has_units.cache_clear()
