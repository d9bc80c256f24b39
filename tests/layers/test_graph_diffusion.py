"""GraphDiffusion: maximum principle, sums and stability on random and on the worst graphs."""

import json

import keras
import numpy as np
import pytest
from helpers import normal, worst_gain
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend
from dynzoo.layers.graph_diffusion import GraphDiffusion

PATH = [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]


def weights(nodes, seed, symmetric=True):
    w = np.random.default_rng(seed).exponential(size=(nodes, nodes)).astype("float32")
    return (w + w.T) / 2 if symmetric else w


def probabilities(nodes, classes=3, seed=0):
    e = np.exp(3 * normal((nodes, classes), seed))
    return (e / e.sum(axis=-1, keepdims=True)).astype("float32")


def run(layer, inputs):
    return backend.to_numpy(layer(inputs))


def by_definition(u, w, sigma2, steps):
    """u <- u - sigma2 (D - W) u, literally."""
    laplacian = np.diag(w.sum(axis=1)) - w
    for _ in range(steps):
        u = u - sigma2 * laplacian @ u
    return u


def test_is_the_equation():
    w, u = weights(5, 1).astype(np.float64), probabilities(5)
    w += np.diag(np.arange(5.0))  # self-loops cancel
    limit = 1 / (w.sum(axis=1) - np.diag(w)).max()
    layer = GraphDiffusion(0.8 * limit, steps=3, adjacency=w)
    exact = by_definition(u.astype(np.float64), w, 0.8 * limit, 3)
    assert layer.step_limit == pytest.approx(limit)
    np.testing.assert_allclose(run(layer, u), exact, atol=1e-6)
    np.testing.assert_allclose(layer.call_float64(u), exact, atol=1e-12)
    data = GraphDiffusion(0.8 * limit, steps=3)
    np.testing.assert_allclose(run(data, [u, w.astype("float32")]), exact, atol=1e-6)
    np.testing.assert_allclose(data.call_float64([u, w]), exact, atol=1e-12)


@settings(max_examples=25)
@given(
    st.floats(0.01, 100.0), st.integers(0, 1000), st.booleans(), st.sampled_from(["u", "W", "knn"])
)
def test_maximum_principle_and_row_sums(sigma2, seed, symmetric, kind):
    u, w = probabilities(6, seed=seed), weights(6, seed, symmetric)
    if kind == "u":  # constant, at a fraction of its limit
        unit = GraphDiffusion(1e-9, adjacency=w)
        layer, inputs = GraphDiffusion(unit.step_limit, steps=3, adjacency=w), u
    elif kind == "W":  # any graph, negative weights too, and any step
        w[0, 1] = -5.0
        layer, inputs = GraphDiffusion(sigma2, steps=3), [u, w]
    else:
        layer = GraphDiffusion(sigma2, steps=3, graph="knn", neighbours=4, scale_neighbour=2)
        inputs = [u, normal((6, 2), seed, 10.0)]
    for y in (run(layer, inputs), layer.call_float64(inputs)):
        assert (y >= 0).all()  # exactly: the logarithm is safe
        assert (y >= u.min(axis=0) - 1e-6).all() and (y <= u.max(axis=0) + 1e-6).all()
        np.testing.assert_allclose(y.sum(axis=1), 1.0, atol=1e-5)
        if (symmetric and kind == "u") or kind == "knn":
            np.testing.assert_allclose(y.sum(axis=0), u.sum(axis=0), atol=1e-4)
            if kind == "u":
                assert np.linalg.norm(y) <= np.linalg.norm(u) * (1 + 1e-6)


def test_step_is_as_asked_or_clamped():
    u = probabilities(3)
    w = np.array(PATH, "float32")
    asked = run(GraphDiffusion(0.3), [u, w])
    np.testing.assert_allclose(asked, by_definition(u, w, 0.3, 1), atol=1e-6)
    clamped = run(GraphDiffusion(7.0), [u, w])  # the middle node has two neighbours
    np.testing.assert_allclose(clamped, by_definition(u, w, 0.5, 1), atol=1e-6)
    # no edges: nothing moves
    np.testing.assert_allclose(run(GraphDiffusion(7.0), [u, 0 * w]), u, atol=1e-6)


def test_unstable_step_on_a_constant_graph_is_refused():
    with pytest.raises(ValueError, match=r"`sigma2` must be in \(0, 0.5\].*sigma2=0.6"):
        GraphDiffusion(0.6, adjacency=PATH)
    GraphDiffusion(0.5, adjacency=PATH)
    # and rightly so: 0.6 leaves the range of the values
    u = np.array([[0.0], [1.0], [0.0]])
    assert by_definition(u, np.array(PATH), 0.6, 1).min() < 0
    # normalised graphs allow larger steps
    layer = GraphDiffusion(0.7, adjacency=PATH, normalize=True, self_loops=True)
    assert layer.step_limit > 0.7


def test_normalisation_is_that_of_graph_networks():
    a = np.array(PATH)
    loops = a + np.eye(3)
    root = np.diag(loops.sum(axis=1) ** -0.5)
    u = probabilities(3)
    exact = by_definition(u, root @ loops @ root, 0.35, 2)
    for layer, inputs in (
        (GraphDiffusion(0.35, 2, adjacency=a, normalize=True, self_loops=True), u),
        (GraphDiffusion(0.35, 2, normalize=True, self_loops=True), [u, a.astype("float32")]),
    ):
        np.testing.assert_allclose(run(layer, inputs), exact, atol=1e-6)
        np.testing.assert_allclose(layer.call_float64(inputs), exact, atol=1e-6)
    # a node without neighbours stays as it is
    lonely = np.zeros((3, 3), "float32")
    lonely[0, 1] = lonely[1, 0] = 1.0
    y = run(GraphDiffusion(0.35, normalize=True), [u, lonely])
    np.testing.assert_allclose(y[2], u[2], atol=1e-6)


def test_knn_graph_point_by_point():
    x, k, s = normal((9, 3), 4), 5, 3
    w = np.zeros((9, 9))
    for i in range(9):
        d = np.array([np.linalg.norm(x[i].astype(np.float64) - x[j]) for j in range(9)])
        order = np.sort(d)
        for j in range(9):
            if d[j] < order[k - 1]:
                w[i, j] = np.exp(-((d[j] / order[s - 1]) ** 2))
    assert ((w > 0).sum(axis=1) == k - 1).all()
    root = np.diag(w.sum(axis=1) ** -0.5)
    w = root @ w @ root
    w = (w + w.T) / 2
    u = probabilities(9)
    layer = GraphDiffusion(0.5, steps=2, graph="knn", neighbours=k, scale_neighbour=s)
    exact = by_definition(u, w, 0.5, 2)
    np.testing.assert_allclose(run(layer, [u, x]), exact, atol=1e-5)
    np.testing.assert_allclose(layer.call_float64([u, x]), exact, atol=1e-9)
    # far from the origin the distances keep their digits
    np.testing.assert_allclose(run(layer, [u, x + 100]), exact, atol=1e-3)


def test_knn_graph_of_few_or_equal_points():
    layer = GraphDiffusion(0.5, graph="knn")
    for features in (normal((3, 2), 1), np.ones((3, 2), "float32")):
        u = probabilities(3)
        y = run(layer, [u, features])
        assert np.isfinite(y).all()
        np.testing.assert_allclose(y.sum(axis=1), 1.0, atol=1e-5)
        np.testing.assert_allclose(y, layer.call_float64([u, features]), atol=1e-5)
    x = normal((6, 2), 2)  # its own features
    np.testing.assert_allclose(run(layer, x), layer.call_float64(x), atol=1e-5)


def test_diffusion_tends_to_the_mean():
    u = probabilities(3)
    y = GraphDiffusion(0.4, steps=200, adjacency=PATH).call_float64(u)
    np.testing.assert_allclose(y, np.tile(u.mean(axis=0, dtype=np.float64), (3, 1)), atol=1e-6)


def test_graphs_one_for_each_example():
    u = np.stack([probabilities(4, seed=i) for i in range(3)])
    w = np.stack([weights(4, i) for i in range(3)])
    layer = GraphDiffusion(1.0, steps=2)
    y = run(layer, [u, w])
    assert not layer.depends_on_batch
    single = GraphDiffusion(1.0, steps=2)
    for i in range(3):
        np.testing.assert_allclose(run(single, [u[i], w[i]]), y[i], atol=1e-6)
    assert single.depends_on_batch
    np.testing.assert_allclose(layer.call_float64([u, w]), y, atol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_lipschitz_bound_of_one_example(symmetric):
    w = weights(4, 3, symmetric)
    layer = GraphDiffusion(0.1, steps=3, adjacency=w)
    layer.build((None, 4, 2))
    bound = layer.lipschitz_bound((None, 4, 2))
    gain = worst_gain(layer.call_float64, (4, 2), points=1)
    assert gain <= bound * (1 + 1e-7)
    if symmetric:
        assert bound == pytest.approx(1.0, abs=1e-9)
    for refused, shape in ((layer, (4, 2)), (GraphDiffusion(0.1), [(4, 2), (4, 4)])):
        with pytest.raises(ValueError, match="no Lipschitz bound"):
            refused.lipschitz_bound(shape)


def test_guarantees_name_their_condition():
    found = {g.property: g for g in GraphDiffusion(0.5, adjacency=PATH).guarantees()}
    assert set(found) == {"maximum principle", "row sums kept", "mass kept"}
    assert "0.5 <= 0.5" in found["maximum principle"].condition
    assert "clamped" in GraphDiffusion(3.0).guarantees()[0].condition
    assert "mass kept" not in {g.property for g in GraphDiffusion(3.0).guarantees()}
    lopsided = GraphDiffusion(0.1, adjacency=weights(4, 2, symmetric=False))
    assert "mass kept" not in {g.property for g in lopsided.guarantees()}


def test_in_a_model_with_gradients(tmp_path):
    u, features = keras.Input((3,), batch_size=6), keras.Input((2,), batch_size=6)
    dense = keras.layers.Dense(2)
    y = GraphDiffusion(0.5, steps=2, graph="knn", neighbours=4, scale_neighbour=2)(
        [keras.layers.Dense(3)(u), dense(features)]
    )
    model = keras.Model([u, features], y)
    model.compile(keras.optimizers.SGD(0.5), "mse")
    data = [normal((6, 3), 1), normal((6, 2), 2)]
    before = model.get_weights()
    model.train_on_batch(data, normal((6, 3), 3))
    changed = [np.abs(a - b).max() for a, b in zip(model.get_weights(), before, strict=True)]
    assert np.isfinite(changed).all()
    assert min(changed[:3]) > 1e-7  # the bias of the features moves no distance
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        backend.to_numpy(again(data)), backend.to_numpy(model(data)), atol=1e-6
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"adjacency": PATH, "normalize": True, "self_loops": True, "steps": 2},
        {"graph": "knn", "neighbours": 5, "scale_neighbour": 2},
        {"graph": "adjacency"},
    ],
)
def test_config_round_trip(arguments):
    layer = GraphDiffusion(0.3, name="heat", **arguments)
    stored = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    assert stored["registered_name"] == "dynzoo>GraphDiffusion"
    again = keras.saving.deserialize_keras_object(stored)
    assert again.get_config() == layer.get_config()
    for key, value in arguments.items():
        assert getattr(again, key) == value


@pytest.mark.parametrize("graph", ["adjacency", "knn"])
def test_compiled_is_the_same(graph):
    layer = GraphDiffusion(0.5, steps=2, graph=graph, normalize=True, self_loops=True)
    u, other = probabilities(9), np.abs(normal((9, 9), 3))
    compiled = backend.jit(lambda a, b: layer([a, b]))
    y = compiled(ops.convert_to_tensor(u), ops.convert_to_tensor(other))
    np.testing.assert_allclose(backend.to_numpy(y), run(layer, [u, other]), atol=1e-6)
    symbolic = layer([keras.Input((3,)), keras.Input((9,))])
    assert symbolic.shape == (None, 3)


def test_mixed_precision_averages_in_float32():
    layer = GraphDiffusion(0.4, steps=50, adjacency=PATH, dtype="mixed_bfloat16")
    u = probabilities(3)
    np.testing.assert_allclose(run(layer, u), layer.call_float64(u), atol=1e-5)
    y = layer(ops.cast(u, "bfloat16"))
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    np.testing.assert_allclose(
        backend.to_numpy(ops.cast(y, "float32")), layer.call_float64(u), atol=0.01
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int32"])
def test_a_graph_of_layers_knows_the_type_that_comes_out(policy, kind):
    layer = GraphDiffusion(0.4, adjacency=PATH, dtype=policy)
    symbolic = layer(keras.Input((3, 2), dtype=kind))
    y = layer(ops.ones((1, 3, 2), dtype=kind))
    assert symbolic.dtype == keras.backend.standardize_dtype(y.dtype)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma2": 0.0}, "`sigma2` must be in"),
        ({"sigma2": float("nan")}, "`sigma2` must be in"),
        ({"steps": 0}, "`steps` must be a positive integer"),
        ({"graph": "full"}, "`graph` must be one of"),
        ({"graph": "constant"}, "`adjacency` must be given"),
        ({"graph": "knn", "adjacency": PATH}, "`adjacency` must be given"),
        ({"adjacency": [[0.0, 1.0]]}, "`adjacency` must be a square matrix"),
        ({"adjacency": [[0.0, -1.0], [1.0, 0.0]]}, "`adjacency` must be a square matrix"),
        ({"adjacency": [[0.0, np.nan], [1.0, 0.0]]}, "`adjacency` must be a square matrix"),
        ({"neighbours": 3}, "`scale_neighbour` must be at most"),
        ({"neighbours": 0}, "`neighbours` must be a positive integer"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GraphDiffusion(**{"sigma2": 0.1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "shapes", "message"),
    [
        ({}, [(3, 2)], r"needs inputs \[u, W\]"),
        ({}, [(3, 2), (4, 4)], "same number of nodes"),
        ({}, [(3, 2), (3, 4)], "same number of nodes"),
        ({}, [(2, 3, 2), (3, 3)], "second input of the same rank"),
        ({"adjacency": PATH}, [(4, 2)], "same number of nodes"),
        ({"adjacency": PATH}, [(3, 2), (3, 3)], "needs one input"),
        ({"graph": "knn"}, [(3,)], "needs u of shape"),
    ],
)
def test_bad_shapes(arguments, shapes, message):
    inputs = [np.zeros(s, "float32") for s in shapes]
    with pytest.raises(ValueError, match=message):
        GraphDiffusion(0.1, **arguments)(inputs if len(inputs) > 1 else inputs[0])


@pytest.mark.parametrize("neighbours", [4, 5, 8])
@pytest.mark.parametrize("points", ["grid", "pairs", "binary"])
def test_knn_graph_of_points_at_equal_distances(points, neighbours):
    """Ties are ties in float32 as well: a neighbour that is as far as the k-th is none."""
    x = {
        "grid": np.stack(np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1, 6)), -1),
        "pairs": 30 + np.repeat(normal((9, 3), 1), 2, axis=0),
        "binary": (normal((24, 5), 2) > 0).astype("float32"),
    }[points]
    x = x.reshape(-1, x.shape[-1]).astype("float32")
    layer = GraphDiffusion(0.5, graph="knn", neighbours=neighbours, scale_neighbour=2)
    u = normal((len(x), 2), 3)
    np.testing.assert_allclose(run(layer, [u, x]), layer.call_float64([u, x]), atol=1e-5)
