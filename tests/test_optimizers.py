"""Riemannian Muon: the tangent projection, one step against NumPy, and the learning rates."""

import keras
import numpy as np
import pytest
from helpers import norm, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend, constraints, layers
from dynzoo.optimizers import RiemannianMuon, tangent
from dynzoo.training.builders import (
    OPTIMIZERS,
    PiecewiseLinear,
    Trapezoid,
    make_loss,
    make_optimizer,
)


def orthonormal(shape, seed=0):
    u, _, vt = np.linalg.svd(normal(shape, seed), full_matrices=False)
    return (u @ vt).astype("float32")


def project_gradient(x, g):
    return backend.to_numpy(tangent(ops.convert_to_tensor(x), ops.convert_to_tensor(g)))


@settings(max_examples=12)
@given(st.sampled_from([(3, 6), (6, 3), (4, 4)]), st.integers(0, 1000))
def test_tangent_is_the_orthogonal_projection_on_the_tangent_space(shape, seed):
    x, g, other = orthonormal(shape, seed), normal(shape, seed + 1), normal(shape, seed + 2)
    t = project_gradient(x, g)
    inner = t @ x.T if shape[0] <= shape[1] else t.T @ x
    np.testing.assert_allclose(inner + inner.T, 0, atol=1e-5)  # tangent
    np.testing.assert_allclose(project_gradient(x, t), t, atol=1e-5)  # idempotent
    # self-adjoint: <P g, h> = <g, P h>
    assert (t * other).sum() == pytest.approx((g * project_gradient(x, other)).sum(), abs=1e-3)
    # a move along it leaves the manifold at second order only
    moved = x + 1e-3 * t
    gram = moved @ moved.T if shape[0] <= shape[1] else moved.T @ moved
    np.testing.assert_allclose(gram, np.eye(min(shape)), atol=1e-4)


def fitted(optimizer, constraint, steps=1):
    keras.utils.set_random_seed(3)
    dense = keras.layers.Dense(
        4, use_bias=False, kernel_initializer="orthogonal", kernel_constraint=constraint
    )
    model = keras.Sequential([keras.Input((7,)), dense])
    model.compile(optimizer, "mse")
    start = backend.to_numpy(dense.kernel.value).copy()
    x, y = normal((8, 7), 1), normal((8, 4), 2)
    for _ in range(steps):
        model.train_on_batch(x, y)
    gradient = 2 * x.T @ (x @ start - y) / y.size
    return start, gradient, backend.to_numpy(dense.kernel.value)


def muon(**arguments):
    return RiemannianMuon(0.05, rms_rate=None, weight_decay=None, momentum=0.9, **arguments)


def quintic(x, steps=5):
    """The polar factor as Muon approximates it (singular values within about 0.3 of 1)."""
    x = x.astype(np.float64) / np.linalg.norm(x)
    for _ in range(steps):
        g = x @ x.T
        x = 3.4445 * x + (-4.7750 * g + 2.0315 * g @ g) @ x
    return x


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 5)])
@pytest.mark.parametrize("rank", [1, 3])
def test_polar_factor_on_the_gram_matrix(shape, rank):
    matrix = normal((shape[0], rank), 1) @ normal((rank, shape[1]), 2)
    after = backend.to_numpy(muon().zeropower_via_newtonschulz5(ops.convert_to_tensor(matrix), 5))
    np.testing.assert_allclose(after, quintic(matrix), atol=1e-3)


def test_a_step_moves_along_the_polar_factor_of_the_tangent_gradient():
    start, gradient, after = fitted(muon(), constraints.Orthonormal(12))
    moved = start - 0.05 * quintic(project_gradient(start, gradient))
    u, _, vt = np.linalg.svd(moved, full_matrices=False)
    np.testing.assert_allclose(after, u @ vt, atol=1e-3)
    assert np.abs(after - start).max() > 0.005


def test_without_the_constraint_it_is_keras_muon():
    arguments = {"rms_rate": None, "weight_decay": None, "momentum": 0.9}
    _, _, ours = fitted(muon(), None, steps=2)
    _, _, keras_own = fitted(keras.optimizers.Muon(0.05, **arguments), None, steps=2)
    np.testing.assert_allclose(ours, keras_own, atol=1e-4)
    _, _, constrained = fitted(muon(), constraints.Orthonormal(), steps=2)
    assert np.abs(constrained - keras_own).max() > 1e-3


def test_biases_move_by_a_multiple_of_the_rate():
    moved = []
    for ratio in (1.0, 16.0):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(4)])
        model.compile(muon(bias_lr_ratio=ratio), "mse")
        model.train_on_batch(normal((8, 7), 1), normal((8, 4), 2))
        moved.append(model.get_weights())
    np.testing.assert_array_equal(moved[0][0], moved[1][0])
    np.testing.assert_allclose(16 * moved[0][1], moved[1][1], rtol=1e-5)
    assert RiemannianMuon.from_config(muon(bias_lr_ratio=16).get_config()).bias_lr_ratio == 16
    with pytest.raises(ValueError, match="`bias_lr_ratio` must be in .*Received"):
        muon(bias_lr_ratio=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_a_recipe_trains_under_the_constraints(name):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.OrthonormalDense(4, use_bias=True, name="body"),
            layers.UnitRowDense(3, name="head"),
        ]
    )
    config = {"name": name, "learning_rate": 0.05}
    optimizer = make_optimizer(config, 8, {"warmup": 0.0, "decay": 0.5})
    model.compile(optimizer, make_loss({"name": "offset_crossentropy", "offset": 0.2}))
    x = normal((16, 6), 1)
    y = np.arange(16) % 3
    first = model.evaluate(x, y, verbose=0)
    model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    assert model.evaluate(x, y, verbose=0) < first
    assert norm(backend.to_numpy(model.layers[0].kernel.value)) <= 1 + 1e-5


def test_muon_survives_saving(tmp_path):
    model = keras.Sequential([keras.Input((5,)), layers.OrthonormalDense(4)])
    model.compile(muon(exclude_layers=["head"]), "mse")
    x, y = normal((4, 5)), normal((4, 4), 1)
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(again.optimizer, RiemannianMuon)
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert int(backend.to_numpy(again.optimizer.iterations.value)) == 1
    for copy in (model, again):
        copy.train_on_batch(x, y)
    np.testing.assert_allclose(again.get_weights()[0], model.get_weights()[0], atol=1e-5)


def test_trapezoid():
    schedule = Trapezoid(2.0, total_steps=100, warmup=0.1, decay=0.5)
    rates = [
        float(backend.to_numpy(schedule(step))) for step in (0, 4, 9, 30, 50, 75, 99, 100, 120)
    ]
    expected = [0.2, 1.0, 2.0, 2.0, 2.0, 1.0, 0.04, 0.0, 0.0]
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    flat = Trapezoid(0.3, 10, warmup=0, decay=0)
    assert float(backend.to_numpy(flat(0))) == float(backend.to_numpy(flat(9)))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert again.get_config() == schedule.get_config()


@pytest.mark.parametrize(
    ("steps", "rates"), [([0, 10, 30, 31], [0.0, 2.0, 1.0, 5.0]), ([0], [0.3]), ([0, 4], [1, 0])]
)
def test_piecewise_linear(steps, rates):
    schedule = PiecewiseLinear(steps, rates)
    at = [0, 1, 5, 10, 20, 30, 31, 99]
    found = [float(backend.to_numpy(schedule(step))) for step in at]
    np.testing.assert_allclose(found, np.interp(at, steps, rates), atol=1e-6)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert again.get_config() == schedule.get_config()


def test_points_of_a_recipe_are_epochs_and_shares_of_the_peak():
    points = {0: 0.5, 2: 1.0, 3.5: 0.0}
    config = {"name": "sgd", "learning_rate": 0.2}
    schedule = {"warmup": 0.0, "decay": 0.5, "points": points}
    optimizer = make_optimizer(config, 40, schedule, steps_per_epoch=10)
    rates = []
    for step in (0, 10, 20, 30, 35, 40):
        optimizer.iterations.assign(step)
        rates.append(float(backend.to_numpy(optimizer.learning_rate)))
    np.testing.assert_allclose(rates, [0.1, 0.15, 0.2, 0.2 / 3, 0.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PiecewiseLinear([1, 2], [0, 1]), "`steps` must increase from 0"),
        (lambda: PiecewiseLinear([0, 2, 2], [0, 1, 0]), "`steps` must increase from 0"),
        (lambda: PiecewiseLinear([0, 2], [0]), "`steps` must increase from 0"),
        (lambda: PiecewiseLinear([0, 2], [0, -1]), "`rates` must be finite and at least 0"),
        (lambda: Trapezoid(0.1, 0), "`total_steps` must be a positive integer"),
        (lambda: Trapezoid(0.1, 10, 0.6, 0.6), "`warmup` and `decay`"),
        (lambda: Trapezoid(0.1, 10, -0.1), "`warmup` and `decay`"),
        (lambda: make_loss({"name": "offset_crossentropy", "offse": 1}), "`training.loss`.*offse"),
        (
            lambda: make_optimizer({"name": "sgd", "learning_rate": 0.1, "speed": 1}, 10, {}),
            "`training.optimizer`.*speed",
        ),
        (
            lambda: make_optimizer({"name": "muon", "learning_rate": 0.1, "speed": 1}, 10, {}),
            "`training.optimizer`.*speed",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.skipif("keras.backend.backend() == 'tensorflow'", reason="stacks elsewhere only")
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1}, {"nesterov": False}])
def test_a_stack_of_kernels_takes_the_same_steps(settings):
    def weights(stacked):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        x = inputs
        for _ in range(3):
            x = keras.layers.Dense(
                6, kernel_initializer="orthogonal", kernel_constraint=constraints.Orthonormal()
            )(x)
        for limit in (0.5, 0.5, 2.0):  # of these only two are alike
            x = keras.layers.Dense(6, kernel_constraint=constraints.SpectralNorm(limit))(x)
        for _ in range(2):
            x = keras.layers.Dense(6, kernel_constraint="unit_norm")(x)
        model = keras.Model(inputs, keras.layers.Dense(6, name="head")(x))
        optimizer = RiemannianMuon(
            0.05,
            stacked=stacked,
            rms_rate=0.2,
            exclude_layers=["head"],
            **{"weight_decay": None, **settings},
        )
        model.compile(optimizer, "mse")
        for seed in range(3):
            model.train_on_batch(normal((8, 6), seed), normal((8, 6), seed + 9))
        variables = model.trainable_variables
        stacks = optimizer._stacks([1.0] * len(variables), variables)
        assert sorted(map(len, stacks)) == ([2, 2, 3] if stacked else [])
        assert int(backend.value_of(optimizer.iterations)) == 3
        return model.get_weights() + [backend.value_of(v) for v in optimizer.variables]

    for one, other in zip(weights(True), weights(False), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)  # of steps of 0.05


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 5)])
@pytest.mark.parametrize("constraint", [constraints.Orthonormal(), constraints.SpectralNorm(0.7)])
def test_a_constraint_of_a_stack_is_that_of_each_kernel(shape, constraint):
    scales = np.array([1e-9, 0.3, 1.0, 1e6, 0.0], "float32")
    kernels = scales[:, None, None] * np.stack([normal(shape, seed) for seed in range(5)])
    together = backend.to_numpy(constraint.stacked(ops.convert_to_tensor(kernels)))
    for kernel, found in zip(kernels, together, strict=True):
        alone = backend.to_numpy(constraint(ops.convert_to_tensor(kernel)))
        np.testing.assert_allclose(found, alone, atol=2e-6)
        assert np.linalg.norm(found.astype("float64"), 2) <= 1 + 1e-5


def test_stacked_is_part_of_the_config():
    again = RiemannianMuon.from_config(RiemannianMuon(0.05, stacked=True).get_config())
    assert again.stacked and not RiemannianMuon(0.05).stacked
    clipped = RiemannianMuon(0.05, stacked=True, global_clipnorm=1.0)
    variables = [keras.Variable(np.eye(3)), keras.Variable(np.eye(3))]
    clipped.build(variables)
    assert (
        clipped._stacks([1.0, 1.0], variables) == []
    )  # the norm is that of all gradients together
