"""The orthogonality loss against the dense matrix of the convolution on a torus."""

import keras
import numpy as np
import pytest
from helpers import conv_matrix, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, operators
from dynzoo.layers.gradient_flow import GradientFlow
from dynzoo.layers.switching_flow import SwitchingFlow
from dynzoo.regularizers import Orthogonality, orthogonality_distance

SHAPES = [(3, 3, 4, 3), (3, 3, 2, 4), (1, 3, 3, 3), (2, 2, 3, 2), (5, 3), (3, 5)]


def dense(kernel):
    """Distance by the dense matrix of the map; a torus of 2k - 1 pixels sees every offset once."""
    if kernel.ndim == 2:
        matrix, pixels = kernel.astype(np.float64).T, 1
    else:
        spatial = tuple(2 * side - 1 for side in kernel.shape[:2])
        matrix, pixels = conv_matrix(kernel, spatial, "circular"), np.prod(spatial)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    return np.linalg.norm(matrix @ matrix.T - np.eye(len(matrix))) / np.sqrt(pixels)


@settings(max_examples=15)
@given(st.sampled_from(SHAPES), st.integers(0, 99), st.floats(0.05, 1.0))
def test_equals_the_dense_construction(shape, seed, scale):
    kernel = normal(shape, seed, scale)
    found = float(backend.to_numpy(orthogonality_distance(kernel)))
    np.testing.assert_allclose(found, dense(kernel), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 3, 4, 4), (3, 3, 6, 3), (3, 6)])
def test_is_zero_for_orthonormal_kernels_alone(shape):
    if len(shape) == 4:
        kernel = operators.DeltaOrthonormal(seed=0)(shape)
    else:
        kernel = keras.initializers.Orthogonal(seed=0)(shape)
    assert float(backend.to_numpy(orthogonality_distance(kernel))) < 1e-5
    assert float(backend.to_numpy(orthogonality_distance(1.1 * kernel))) > 0.1


def test_has_a_finite_gradient_at_zero_and_pulls_towards_it():
    def gradient(kernel):
        _, found = backend.value_and_grad(lambda k: (Orthogonality(0.5)(k), None))(kernel)
        return backend.to_numpy(found)

    centre = np.zeros((3, 3, 2, 2), "float32")
    centre[1, 1] = np.eye(2)
    assert backend.to_numpy(orthogonality_distance(centre)) == 0.0
    assert (gradient(ops.convert_to_tensor(centre)) == 0).all()
    assert (gradient(ops.convert_to_tensor(np.zeros_like(centre))) == 0).all()
    kernel, direction = normal(centre.shape, 1, 0.4), normal(centre.shape, 2)
    step = 1e-5
    slope = (dense(kernel + step * direction) - dense(kernel - step * direction)) / (2 * step)
    found = gradient(ops.convert_to_tensor(kernel))
    np.testing.assert_allclose(np.sum(found * direction), 0.5 * slope, rtol=1e-3)


def test_training_with_it_makes_a_kernel_orthogonal():
    layer = keras.layers.Conv2D(3, 3, padding="same", kernel_regularizer=Orthogonality(1.0))
    model = keras.Sequential([keras.Input((4, 4, 3)), layer])
    layer.kernel.assign(normal((3, 3, 3, 3), 3, 0.3))
    before = dense(backend.to_numpy(layer.kernel.value))
    model.compile(
        keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.05, 80)),
        # the data ask for nothing
        lambda y, z: 0.0 * ops.sum(z, axis=(1, 2, 3)),
    )
    x = np.zeros((8, 4, 4, 3), "float32")
    model.fit(x, np.zeros(8), batch_size=1, epochs=10, verbose=0)
    after = dense(backend.to_numpy(layer.kernel.value))
    assert after < 0.2 * before


@pytest.mark.parametrize(
    ("make", "kernels"),
    [
        (lambda r: GradientFlow(operators.Conv(3), steps=2, kernel_regularizer=r), 2),
        (lambda r: SwitchingFlow(operators.Conv(3), steps=2, kernel_regularizer=r), 4),
        (lambda r: SwitchingFlow(operators.Pointwise(3), "half_leaky_relu", "flexible",
                                 kernel_regularizer=r), 1),
    ],
)  # fmt: skip
def test_flows_add_it_to_the_loss(make, kernels, tmp_path):
    layer = make(Orthogonality(0.2))
    model = keras.Sequential([keras.Input((4, 4, 3)), layer])
    shape = tuple(layer.kernels[0].shape)
    weights = [w for w in layer.trainable_weights if "kernel" in w.name]
    assert len(weights) == kernels
    for seed, weight in enumerate(weights):
        weight.assign(normal(shape, seed, 0.3))
    expected = 0.2 * sum(dense(normal(shape, seed, 0.3)) for seed in range(kernels))
    found = sum(float(backend.to_numpy(loss)) for loss in model.losses)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.layers[-1].kernel_regularizer.gamma == 0.2
    np.testing.assert_allclose(float(backend.to_numpy(sum(again.losses))), expected, rtol=1e-5)
    assert make(None).kernel_regularizer is None
    assert type(layer).from_config(layer.get_config()).kernel_regularizer.gamma == 0.2


def test_bad_weights():
    for gamma in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="`gamma` must be in"):
            Orthogonality(gamma)
