"""Guarantees under the worst weights, inputs and steps that a search finds, not under random ones.

Conservation is measured on the running backend in float32, Lipschitz bounds by ascent of the slope
of the float64 twin. Weights come in scales of 1e-8 to 1e8, of equal entries, of signs, of low rank,
with biases far from the rest; inputs in scales of 1e-20 to 1e15, with zeros and huge ratios.
"""

import numpy as np
import pytest
from helpers import normal
from keras import ops

from dynzoo import backend, layers, operators
from dynzoo.fields.first_integral import Integral
from dynzoo.fields.skew import PlanesSkew, euclidean_gram, implicit_update
from dynzoo.layers.spherical_flow import SPHERE_INTEGRATORS

SCALES = [1e-8, 1e-3, 0.1, 1.0, 1.0, 1.0, 10.0, 1e3, 1e8]
SIZES = [1e-20, 1e-10, 1e-3, 1.0, 1.0, 10.0, 1e3, 1e10, 1e15]
STEPS = [1e-6, 0.1, 1.0, 10.0, 100.0, 1e4]
# every operation is compiled once a shape: fewer draws where that is slow
FEATURES = [2, 3, 8] if backend.name() == "torch" else [3]
DRAWS = 24 if backend.name() == "torch" else 6


def wild(rng, shape):
    """An array of one of the shapes that arithmetic dislikes, with entries of about 1."""
    kind = rng.integers(6)
    if kind == 0:
        return np.sign(rng.normal(size=shape))
    if kind == 1:
        return np.ones(shape)
    if kind == 2:  # near-singular: rank one and a little noise
        return rng.normal(size=shape[-1:]) + 1e-6 * rng.normal(size=shape)
    if kind == 3:  # huge ratios
        return rng.normal(size=shape) * 10.0 ** rng.uniform(-8, 2, size=shape)
    if kind == 4:  # mostly zero
        return rng.normal(size=shape) * (rng.random(size=shape) < 0.3)
    return rng.normal(size=shape)


def spoil(layer, rng, scale):
    for weight in layer.weights:
        factor = scale if rng.random() < 0.8 else 10.0 ** rng.integers(-4, 5)
        weight.assign((factor * wild(rng, tuple(weight.shape))).astype("float32"))


def inputs(rng, n, size):
    x = size * rng.normal(size=(8, n))
    x[0], x[1], x[2, 1:] = size, 0.0, 0.0
    x[3] *= 10.0 ** rng.uniform(-12, 0, size=n)
    return x.astype("float32")


def search(make, defect, seed, draws=DRAWS, sizes=SIZES):
    """Largest ``defect(layer, x, y)`` over wild layers, and what was drawn for it."""
    rng, worst = np.random.default_rng(seed), (-1.0, None)
    for _ in range(draws):
        n = int(rng.choice(FEATURES))
        scale, size, step = (rng.choice(many) for many in (SCALES, sizes, STEPS))
        layer = make(float(step))
        layer.build((None, n))
        spoil(layer, rng, scale)
        x = inputs(rng, n, size)
        y = backend.to_numpy(layer(x))
        found = defect(layer, x.astype(np.float64), y.astype(np.float64))
        worst = max(worst, (found if np.isfinite(found) else np.inf, (n, scale, size, step)))
    return worst


def relative(change, size):
    return float(np.max(np.abs(change) / np.where(size > 0, size, 1.0)))


def norm_defect(layer, x, y):
    before, after = (np.linalg.norm(v, axis=-1) for v in (x, y))
    return relative(after - before, before)


@pytest.mark.parametrize("planes", [None, 2])
@pytest.mark.parametrize("integrator", SPHERE_INTEGRATORS)
def test_norm(integrator, planes):
    def make(step):
        return layers.SphericalFlow(
            operators.Dense(5), integrator=integrator, planes=planes, step_size=step, steps=2
        )

    worst, where = search(make, norm_defect, 1)
    assert worst <= make(1.0).guarantees()[0].value, where


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e10, 1e15, 1e30])
def test_norm_of_any_size_under_large_steps(size):
    layer = layers.SphericalFlow(operators.Dense(5), step_size=100.0, steps=3, seed=1)
    x = (size * normal((8, 4), 2)).astype("float32")
    y = backend.to_numpy(layer(x)).astype(np.float64)
    assert norm_defect(layer, x.astype(np.float64), y) <= 1e-6
    assert np.abs(y / x - 1).max() > 0.1  # it moves


def test_norm_over_many_layers_with_the_smallest_rotations():
    # the step rounds away or not; what it must not do is drift
    layer = layers.SphericalFlow(operators.Dense(5), step_size=1e-7, seed=1)
    x = y = normal((16, 4), 3)
    for _ in range(100):
        y = backend.to_numpy(layer(y))
    assert norm_defect(layer, x.astype(np.float64), y.astype(np.float64)) <= 1e-5


def sum_defect(layer, x, y):
    c = np.ones(x.shape[-1]) if layer.invariant_weights is None else layer._invariant
    sizes = np.maximum(np.abs(x) @ np.abs(c), np.abs(y) @ np.abs(c))
    return relative((y - x) @ c, sizes)


@pytest.mark.parametrize("planes", [None, 2])
@pytest.mark.parametrize("integrator", ["euler", "heun", "ssp3", "rk4"])
def test_weighted_sum(integrator, planes):
    def make(step):
        return layers.MassPreservingFlow(
            operators.Dense(5), integrator=integrator, planes=planes, step_size=step
        )

    worst, where = search(make, sum_defect, 2)
    assert worst <= make(1.0).guarantees()[0].value, where


def test_a_step_of_nothing_but_rounding_keeps_the_sum():
    # p = q in every plane: S = 0 in exact arithmetic, and what is left of it along c
    layer = layers.MassPreservingFlow(operators.Dense(5), planes=2, step_size=1e-6)
    layer.build((None, 3))
    for weight in layer.weights:
        weight.assign(0.1 * np.ones(weight.shape))
    x = np.zeros((1, 3))
    for speeds in normal((50, 2), 8):
        layer.weights[3].assign(0.1 * speeds)
        y = backend.to_numpy(layer(x.astype("float32"))).astype(np.float64)
        assert sum_defect(layer, x, y) <= 1e-6


def test_weighted_sum_with_weights_of_huge_ratio():
    rng = np.random.default_rng(4)
    for weights in ([1e-6, 1e6, -1.0, 0.0], [1.0, 1.0, 1e-8, -1e-8], [1e25, 1.0, 2e25, 0.0]):
        layer = layers.MassPreservingFlow(operators.Dense(5), weights=weights, step_size=10.0)
        layer.build((None, 4))
        spoil(layer, rng, 10.0)
        x = inputs(rng, 4, 1.0)
        y = backend.to_numpy(layer(x)).astype(np.float64)
        assert sum_defect(layer, x.astype(np.float64), y) <= 1e-6


def integral_defect(layer, x, y):
    integral = layer._integral(x.shape[-1], np)
    sizes = np.maximum(integral.magnitude(x), integral.magnitude(y))
    return relative(integral.value(y) - integral.value(x), sizes)


@pytest.mark.parametrize("planes", [None, 2])
@pytest.mark.parametrize("kind", ["quadratic", "convex"])
@pytest.mark.parametrize(
    "integrator", ["discrete_gradient", "relaxed_heun", "projected_heun", "projected_rk4"]
)
def test_first_integral(integrator, kind, planes):
    def make(step):
        return layers.FirstIntegralFlow(
            operators.Dense(5), integrator=integrator, integral=kind, planes=planes, step_size=step
        )

    worst, where = search(make, integral_defect, 3)
    assert worst <= make(1.0).guarantees()[0].value, where


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e8, 1e12, 1e25])
def test_bent_terms_of_any_size(size):
    # the root of 1 + u^2 where the square overflows, and its slope there, which is one
    for dtype in (np.float32, np.float64):
        one = np.ones((1, 1), dtype)
        integral = Integral(0 * one, 0 * one[0], np, ridges=one, offsets=0 * one[0], heights=one[0])
        x = np.array([[size], [-size]], dtype)
        np.testing.assert_allclose(integral.value(x), np.hypot(1.0, x[:, 0]), rtol=1e-6)
        slope = x / np.hypot(1.0, x)
        np.testing.assert_allclose(integral.gradient(x), slope, rtol=1e-6)


def test_systems_of_planes_with_common_directions_can_be_solved():
    # cores whose square is all but zero: the inverse of the system is as large as the system
    rng = np.random.default_rng(6)
    for _ in range(100):
        scale = 10.0 ** rng.integers(-3, 9)
        directions = scale * np.sign(rng.normal(size=(3, 4)))
        speeds, slope = scale * rng.normal(size=(8, 2)), rng.normal(size=(8, 3))
        directions, speeds, slope = (
            ops.convert_to_tensor(a, "float32") for a in (directions, speeds, slope)
        )
        skew = PlanesSkew(speeds, directions, ops)
        d = backend.to_numpy(implicit_update(skew, 1e4, slope, euclidean_gram(ops)))
        assert np.isfinite(d).all()


def test_magnitude_is_the_sum_of_the_sizes_of_the_terms():
    layer = layers.FirstIntegralFlow(
        operators.Dense(3),
        matrix=[[2.0, -1.0], [-1.0, 3.0]],
        vector=[-4.0, 1.0],
        integrator="projected_heun",
    )
    layer.build((None, 2))
    x = np.array([[1.0, 2.0]])
    integral = layer._integral(2, np)
    assert integral.value(x)[0] == 0.5 * (2 - 4 + 12) - 4 + 2
    assert integral.magnitude(x)[0] == 0.5 * (2 + 4 + 12) + 4 + 2


@pytest.mark.parametrize("integrator", ["projected_heun", "relaxed_heun"])
def test_a_step_that_does_not_reach_the_level_set_is_not_taken(integrator):
    layer = layers.FirstIntegralFlow(
        operators.Dense(5), integrator=integrator, integral="convex", step_size=50.0, iterations=1
    )
    x = normal((64, 4), 5)
    y = backend.to_numpy(layer(x))
    stays = (y == x).all(axis=-1)
    assert stays.any()
    assert integral_defect(layer, x.astype(np.float64), y.astype(np.float64)) <= 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 16))
def test_a_longer_search(seed):
    cases = [(layers.SphericalFlow, norm_defect, {"integrator": i}) for i in SPHERE_INTEGRATORS]
    cases += [(layers.MassPreservingFlow, sum_defect, {"integrator": "rk4", "planes": 2})]
    for kind in ("quadratic", "convex"):
        cases += [(layers.FirstIntegralFlow, integral_defect, {"integral": kind, "planes": 2})]
    for flow, defect, arguments in cases:

        def make(step, flow=flow, arguments=arguments):
            return flow(operators.Dense(5), step_size=step, **arguments)

        worst, where = search(make, defect, seed, draws=5 * DRAWS)
        assert worst <= make(1.0).guarantees()[0].value, (flow.__name__, arguments, where)


# --- Lipschitz bounds ---------------------------------------------------------------------------


def ascent(function, x, seed=0, rounds=12):
    """Largest |f(x + v) - f(x)| / |v| found by power iteration and random moves of x (float64)."""
    rng, best = np.random.default_rng(seed), 0.0
    size = np.abs(x).max() + 1e-30

    def top(point):
        step = 1e-6 * size
        basis = step * np.eye(point.size)
        matrix = (function(point + basis) - function(point - basis)) / (2 * step)
        _, s, _ = np.linalg.svd(matrix)
        return float(s[0])

    slopes = [top(p) for p in x]
    point, best = x[int(np.argmax(slopes))], max(slopes)
    width = 1.0
    for _ in range(rounds):
        other = point + width * size * rng.normal(size=point.shape)
        slope = top(other)
        if slope > best:
            point, best = other, slope
        else:
            width *= 0.7
    return best


LIPSCHITZ = {
    "gradient": lambda: layers.GradientFlow(operators.Dense(5), steps=2),
    "gradient rk4": lambda: layers.GradientFlow(
        operators.Dense(5), integrator="rk4", activation="tanh"
    ),
    "gradient expansive": lambda: layers.GradientFlow(
        operators.Dense(5), direction="expansive", step_size=0.5
    ),
    "implicit": lambda: layers.ImplicitGradientFlow(operators.Dense(5), iterations=4, steps=2),
    "implicit, a large step": lambda: layers.ImplicitGradientFlow(
        operators.Dense(5), "tanh", step_size=200.0, iterations=3
    ),
    "implicit, steep everywhere": lambda: layers.ImplicitGradientFlow(
        operators.Dense(5), "half_leaky_relu", step_size=5.0, constraint="spectral_norm"
    ),
    "softmax": lambda: layers.SoftmaxGradientFlow(2, steps=2),
    "softmax, cold": lambda: layers.SoftmaxGradientFlow(5, beta=20.0, max_norm=2.0),
    "prescribed": lambda: layers.SwitchingFlow(operators.Dense(4), mode="prescribed"),
    "flexible": lambda: layers.SwitchingFlow(operators.Dense(4), mode="flexible"),
    "sharp": lambda: layers.SwitchingFlow(operators.Dense(4), mode="sharp"),
    "hamiltonian": lambda: layers.HamiltonianFlow(operators.Dense(3), step_size=0.5, steps=2),
    "joint": lambda: layers.HamiltonianFlow(operators.Dense(3), hamiltonian="joint"),
    "volume": lambda: layers.VolumePreservingFlow(operators.Dense(2), step_size=0.5, steps=2),
    "contractive": lambda: layers.ContractiveHamiltonianFlow(operators.Dense(3)),
    "midpoint": lambda: layers.ContractiveHamiltonianFlow(
        operators.Dense(3), integrator="implicit_midpoint", step_size=1.0, kappa=2.0
    ),
    "convection": lambda: layers.ConvectionDiffusionFlow(operators.Dense(4), steps=2, samples=4),
    "unit rows": lambda: layers.UnitRowDense(3),
    "orthonormal": lambda: layers.OrthonormalDense(3),
}


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("name", LIPSCHITZ)
def test_slopes_stay_below_the_bound(name, projected):
    from dynzoo.constraints import project

    rng = np.random.default_rng(5)
    for draw in range(6):
        layer = LIPSCHITZ[name]()
        layer.build((None, 4))
        scale = rng.choice([1e-8, 0.1, 1.0, 1.0, 10.0, 1e3])
        for weight in layer.weights:
            if weight.dtype.startswith("float"):
                size = 1.0 if "raw" in weight.name else scale
                weight.assign((size * wild(rng, tuple(weight.shape))).astype("float32"))
        if projected:
            project(layer)
        bound = layer.lipschitz_bound((None, 4))
        x = rng.choice([1e-3, 1.0, 30.0]) * rng.normal(size=(6, 4))
        found = ascent(layer.call_float64, x, draw)
        assert found <= bound * (1 + 1e-6) + 1e-7 * scale**2, (draw, scale)
        if projected:
            for g in layer.guarantees():
                if g.property in ("1-Lipschitz", "Lipschitz") and "orthonormal" not in name:
                    # of every step; a constraint is kept to 1e-5
                    steps = getattr(layer, "steps", 1)
                    assert found <= g.value**steps * (1 + 1e-4), (draw, scale)


@pytest.mark.parametrize("mode", ["prescribed", "flexible", "sharp"])
@pytest.mark.parametrize("scale", [1e-30, 1e8, 1e19, 1e25, 1e37])
def test_switching_flow_of_huge_weights(mode, scale):
    layer = layers.SwitchingFlow(operators.Dense(4), mode=mode, seed=1)
    layer.build((None, 4))
    for i, kernel in enumerate(layer.kernels + layer.expansion_kernels):
        kernel.assign(normal((4, 4), i) * np.float32(scale))
    assert layer.lipschitz_bound((None, 4)) <= 1.0
    x = normal((8, 4), 3)
    y = backend.to_numpy(layer(x)).astype(np.float64)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y, layer.call_float64(x), atol=1e-5)
    i, j = np.triu_indices(8, 1)
    before = np.linalg.norm(x[i].astype(np.float64) - x[j], axis=-1)
    after = np.linalg.norm(y[i] - y[j], axis=-1)
    assert (after <= before * (1 + 1e-5)).all()


# --- the others ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e8, 1e17, 1e19, 1e30])
def test_unit_rows_have_length_one_at_every_scale(scale):
    layer = layers.UnitRowDense(3, use_bias=False)
    layer.build((None, 5))
    kernel = normal((5, 3), 1) * np.float32(scale)
    kernel[:, 2] *= np.float32(1e-6)
    layer.kernel.assign(kernel)
    rows = backend.to_numpy(layer(np.eye(5, dtype="float32"))).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=0), 1.0, atol=1e-6)
    np.testing.assert_allclose(rows, layer.effective_kernel(), atol=1e-6)
    layer.kernel.assign(np.zeros((5, 3)))
    assert np.abs(backend.to_numpy(layer(np.eye(5, dtype="float32")))).max() == 0


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e8, 1e20, 1e37])
def test_graph_steps_are_averages_for_any_weights(scale, normalize):
    rng = np.random.default_rng(6)
    u = rng.random((5, 7, 3)).astype("float32")
    u[0] *= 1e10
    weights = (scale * np.abs(wild(rng, (5, 7, 7)))).astype("float32")
    layer = layers.GraphDiffusion(0.4, steps=3, normalize=normalize)
    y = backend.to_numpy(layer([u, weights])).astype(np.float64)
    size = np.abs(u).max(axis=1)
    assert np.isfinite(y).all()
    assert (y.max(axis=1) <= u.max(axis=1) + 1e-6 * size).all()
    assert (y.min(axis=1) >= u.min(axis=1) - 1e-6 * size).all()
    np.testing.assert_allclose(
        y / size[:, None], layer.call_float64([u, weights]) / size[:, None], atol=1e-4
    )


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1.0, 1e10, 1e25])
def test_graphs_of_features_of_any_size(scale):
    u = np.random.default_rng(7).random((2, 9, 3)).astype("float32")
    features = normal((2, 9, 4), 8) * np.float32(scale)
    y = backend.to_numpy(layers.GraphDiffusion(0.5, graph="knn", neighbours=4)([u, features]))
    assert np.isfinite(y).all()
    assert (y.max(axis=1) <= u.max(axis=1) + 1e-6).all()
    np.testing.assert_allclose(y.sum(axis=1), u.sum(axis=1), atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.HamiltonianFlow(operators.Dense(4), step_size=2.0, steps=3),
        lambda: layers.VolumePreservingFlow(operators.Dense(2), step_size=2.0, steps=3),
    ],
)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_inverse_is_exact_up_to_the_rounding_it_states(make, scale, size):
    rng = np.random.default_rng(9)
    layer = make()
    layer.build((None, 4))
    for weight in layer.weights:
        weight.assign((scale * rng.normal(size=tuple(weight.shape))).astype("float32"))
    x = (size * normal((8, 4), 1)).astype("float32")
    y = layer(x)
    largest = max(np.abs(x).max(), np.abs(backend.to_numpy(y)).max(), 2.0 * scale**2)
    back = backend.to_numpy(layer.inverse(y))
    growth = min(layer.lipschitz_bound((None, 4)), 1e30)
    assert np.abs(back - x).max() <= 3e-6 * largest * growth
