"""The founding paper's networks: the published maps recomputed in NumPy, and certified bounds."""

from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import conv_matrix, normal
from keras import ops

import dynzoo
from dynzoo import backend, constraints, layers, operators
from dynzoo.layers.learned_scale import LearnedScale
from dynzoo.models.structured import structured_classifier
from dynzoo.training import builders as optimization
from dynzoo.training import epoch_values as by_epoch
from dynzoo.training import loop as training
from dynzoo.training import recipes

KINDS = ["unconstrained", "naive", "nonexpansive", "prescribed", "flexible"]
RECIPES = sorted((Path(__file__).parents[2] / "zoo_configs").glob("structured_*.yaml"))
SHAPE = (8, 8, 3)
SMALL = {"input_shape": SHAPE, "widths": (4, 6), "convolutions": 2, "num_classes": 5}
MEAN, DEVIATION = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])


def small(kind, form="published", seed=0, scale=0.15, **arguments):
    """A small network whose weights are all disturbed."""
    model = structured_classifier(kind, form, **{**SMALL, **arguments})
    noise = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            continue
        layer.set_weights(
            [w + scale * noise.normal(size=w.shape).astype("float32") for w in layer.get_weights()]
        )
    return model


def relu(x):
    return np.maximum(x, 0)


def leaky(x):
    return np.maximum(x, x / 2)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Reference:
    """The published network from its weights alone, images as long vectors."""

    def __init__(self, model):
        self.named = {
            w.path: backend.to_numpy(w.value).astype(np.float64)
            for layer in model.layers
            for w in layer.weights
        }
        self.order = [layer for layer in model.layers if layer.weights]

    def matrix(self, kernel, size):
        return conv_matrix(kernel, (size, size), "zero")

    def bias(self, b, size):
        return np.tile(b, size * size)

    def weight(self, layer, name):
        return next(v for p, v in self.named.items() if p == f"{layer.name}/{name}")

    def linear(self, x, layer, size):
        y = x @ self.matrix(self.weight(layer, "kernel"), size).T
        return y + self.bias(self.weight(layer, "bias"), size) if layer.use_bias else y

    def logits(self, x, kind):
        layers = [a for a in self.order if not isinstance(a, keras.layers.Normalization)]
        x = ((x - MEAN) / DEVIATION).reshape(len(x), -1)
        size = 8
        for width in (4, 6):
            x = self.linear(x, layers.pop(0), size)
            if kind in ("unconstrained", "naive"):
                for _ in range(2):
                    y = relu(self.linear(x, layers.pop(0), size))
                    x = x + self.linear(y, layers.pop(0), size)
                    x = x / 2 if kind == "naive" else x
            else:
                x = relu(self.weight(layers.pop(0), "scale") * x)
                x = self.dynamics(x, layers.pop(0), kind, size)
            x = x.reshape(-1, size // 2, 2, size // 2, 2, width).max(axis=(2, 4))
            x = x.reshape(len(x), -1)
            size //= 2
        head = layers.pop(0)
        assert not layers
        return x @ self.weight(head, "kernel") + self.weight(head, "bias")

    def dynamics(self, x, layer, kind, size):
        a = self.matrix(self.weight(layer, "kernel_0"), size)
        b = self.bias(self.weight(layer, "bias_0"), size)
        if kind == "nonexpansive":
            for i in range(2):
                a = self.matrix(self.weight(layer, f"kernel_{i}"), size)
                b = self.bias(self.weight(layer, f"bias_{i}"), size)
                h = 2 * sigmoid(self.weight(layer, f"raw_step_{i}"))
                x = x - h * relu(x @ a.T + b) @ a
            return x
        share = sigmoid(self.weight(layer, "raw_contraction_0"))
        raw = self.weight(layer, "raw_expansion_0")
        if kind == "prescribed":
            w = self.matrix(self.weight(layer, "expansion_kernel_0"), size)
            v = self.bias(self.weight(layer, "expansion_bias_0"), size)
            h = 0.3 + 0.7 * share
            e = sigmoid(raw) * (4 / np.sqrt(h * h - 2 * h + 4) - 2)
            for _ in range(2):
                x = x + e / 2 * leaky(x @ w.T + v)
                x = x - h / 2 * leaky(x @ a.T + b) @ a
            return x
        h = 0.11 + 1.78 * share
        e = np.tanh(raw) * (h * (2 - h) / (h * h - 2 * h + 4) if raw > 0 else 2)
        for _ in range(2):
            x = x - h / 2 * leaky(x @ a.T + b) @ a
        return x + e * relu(x @ a.T + b) @ a


@pytest.mark.parametrize("kind", KINDS)
def test_published_form_is_the_published_map(kind):
    model = small(kind)
    if kind == "flexible":  # one stage with each sign
        flows = [a for a in model.layers if type(a).__name__ == "SwitchingFlow"]
        for flow, raw in zip(flows, (-0.7, 1.2), strict=True):
            flow.raw_expansions[0].assign(raw)
    images = np.random.default_rng(1).uniform(size=(6, *SHAPE)).astype("float32")
    logits = backend.to_numpy(model(images))
    expected = Reference(model).logits(images, kind)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture
def quick_start(monkeypatch):
    """Orthogonal starts of large kernels take long, and some tests need none."""
    for initializer in (operators.DeltaOrthonormal, keras.initializers.Orthogonal):
        monkeypatch.setattr(initializer, "__call__", lambda self, shape, dtype=None: np.ones(shape))


def test_parameter_counts_of_the_paper(quick_start):
    assert structured_classifier("unconstrained", "published").count_params() == 1_662_922
    # the paper's 888,575 holds 18 steps and rescalings, of which 6 follow from the other 12
    assert structured_classifier("prescribed", "published").count_params() == 888_569


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_build(path, quick_start):
    recipe = recipes.load(path)
    assert recipe["name"] == path.stem
    kind, form = path.stem.split("_")[1:3]
    assert (recipe["architecture"]["kind"], recipe["architecture"]["form"]) == (kind, form)
    model = training.build_model(recipe, 10, (32, 32, 3))
    assert model.output_shape == (None, 10)
    settings = recipe["training"]
    epochs = settings["epochs"]
    optimizer = optimization.make_optimizer(
        settings["optimizer"], 375 * epochs, settings["schedule"], 375
    )
    rate = optimizer._learning_rate
    peak = settings["optimizer"]["learning_rate"]
    assert float(rate(375 * epochs // 5)) <= peak * (1 + 1e-6)
    assert 0 <= float(rate(375 * epochs)) < 0.01 * peak
    assert optimization.make_loss(by_epoch.at_epoch(settings["loss"], 0)) is not None
    if form == "published":  # a tenth of what the authors set beside a loss ten times as large
        weight = {"unconstrained": 0, "flexible": 0.001, "naive": 0.001}.get(kind, 0.01)
        regularizers = {
            v.regularizer.gamma for v in model.trainable_weights if v.regularizer is not None
        }
        assert regularizers == ({weight} if weight else set())


def test_all_recipes_ship():
    names = {f"structured_{kind}_published_cifar10" for kind in KINDS}
    names |= {f"structured_{kind}_certified_cifar10" for kind in KINDS[1:]}
    assert {path.stem for path in RECIPES} == names


@pytest.mark.parametrize(
    ("kind", "operator"),
    [
        ("naive", None),
        ("nonexpansive", "conv"),
        ("prescribed", "shifted"),
        ("flexible", "shifted"),
        ("flexible", "conv"),
    ],
)
def test_certified_form(kind, operator):
    model = small(kind, "certified", scale=0.5, operator=operator)
    dynzoo.project(model)
    certificate = dynzoo.certify(model)
    assert certificate.lipschitz <= (1 + 1e-3) / DEVIATION.min()
    x, y = (normal((32, *SHAPE), seed, 0.3) for seed in (1, 2))
    gap = backend.to_numpy(model(x)) - backend.to_numpy(model(y))
    moved = np.linalg.norm(gap.astype(np.float64), axis=1)
    before = np.linalg.norm((x - y).reshape(32, -1), axis=1)
    assert (moved <= certificate.lipschitz * before).all()
    labels, radii = certificate.radii(np.clip(x, 0, 1))
    assert labels.shape == radii.shape == (32,) and radii.max() > 0


@pytest.mark.parametrize("kind", ["nonexpansive", "prescribed", "flexible"])
def test_isometric_lifts(kind):
    arguments = {"lifts": "isometric", "bound": "sharp", "neck_units": 12, "widths": (12, 24)}
    model = small(kind, "certified", scale=0.5, **arguments)
    dynzoo.project(model)
    certificate = dynzoo.certify(model)
    assert certificate.body_lipschitz <= (1 + 1e-3) / DEVIATION.min()
    x, away = (normal((32, *SHAPE), seed, 0.3) for seed in (1, 2))
    labels, radii = certificate.radii(x)
    away *= 0.999 * (radii / np.linalg.norm(away.reshape(32, -1), axis=1))[:, None, None, None]
    moved = backend.to_numpy(model(x + away)).argmax(axis=1)
    assert (moved == labels).all() and radii.max() > 0


def test_isometric_lifts_keep_all_of_the_norm():
    model = structured_classifier(
        "nonexpansive", **{**SMALL, "widths": (12, 16)}, lifts="isometric"
    )
    x, y = (normal((2, *SHAPE), seed, 0.3) for seed in (1, 2))
    flow = next(layer for layer in model.layers if layer.name.startswith("gradient_flow"))
    lifted = keras.Model(model.input, flow.input)
    gap = backend.to_numpy(lifted(x) - lifted(y))
    images = (x - y) / DEVIATION
    np.testing.assert_allclose(np.linalg.norm(gap), np.linalg.norm(images), rtol=1e-5)


def test_steps_stay_in_their_range():
    arguments = {**SMALL, "step_range": (0.02, 0.3)}
    model = structured_classifier("flexible", **arguments)
    flow = next(layer for layer in model.layers if layer.name.startswith("switching_flow"))
    for raw, end in ((-50.0, 0.02), (50.0, 0.3)):
        flow.raw_contractions[0].assign(raw)
        contraction, _ = flow.step_sizes()[0]
        np.testing.assert_allclose(contraction, end, rtol=1e-4)


@pytest.mark.parametrize("kind", ["prescribed", "flexible"])
def test_deep_networks_keep_the_signal_with_full_linear_expansions(kind):
    """16 steps in a row: started at half of the room they leave little, near all of it most."""
    chosen = {
        "expansion": "gradient", "expansion_activation": "linear",
        "substeps": 1, "step_range": (0.1, 4 / 3),
    }  # fmt: skip
    x, y = normal((2, *SHAPE), 0, 0.3), normal((2, *SHAPE), 1, 0.3)

    def kept(share):
        model = structured_classifier(
            kind, bound="sharp", lifts="isometric", expansion_start=share,
            **{**SMALL, **chosen, "convolutions": 8, "widths": (12, 16, 24)},
        )  # fmt: skip
        body = keras.Model(model.input, model.layers[-1].input)
        return np.linalg.norm(backend.to_numpy(body(x) - body(y)))

    assert kept(0.98) > 3 * kept(0.5)


@pytest.mark.parametrize("kind", ["prescribed", "flexible"])
def test_expansions_that_follow_a_gradient(kind):
    chosen = {"expansion": "gradient", "expansion_activation": "softplus"}
    usual = structured_classifier(kind, bound="sharp", lifts="isometric", **SMALL)
    model = structured_classifier(kind, bound="sharp", lifts="isometric", **SMALL, **chosen)
    for own, flow in zip(usual.layers, model.layers, strict=True):
        if isinstance(flow, layers.SwitchingFlow):
            assert (flow.expansion, flow.expansion_activation) == ("gradient", "softplus")
            assert own.expansion == {"prescribed": "generic", "flexible": "tied"}[kind]
    for i, variable in enumerate(model.trainable_variables):
        variable.assign(variable + normal(variable.shape, i, 0.3))
    constraints.project(model)
    assert dynzoo.certify(model).body_lipschitz <= 1 / DEVIATION.min() * (1 + 1e-4)


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [
        ("nonexpansive", {}),
        ("prescribed", {"expansion": "tied", "bound": "sharp", "expansion_activation": "linear"}),
        ("flexible", {"expansion": "tied", "bound": "sharp"}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_half_as_many_rows_as_channels(kind, chosen, seed):
    model = structured_classifier(kind, lifts="isometric", inner_ratio=0.5, **SMALL, **chosen)
    flows = [layer for layer in model.layers if layer.name.startswith(("grad", "switching"))]
    assert [flow.kernels[0].shape[-1] for flow in flows] == [2, 3, 128]
    for i, variable in enumerate(model.trainable_variables):
        variable.assign(variable + normal(variable.shape, 100 * seed + i, 2.0))
    constraints.project(model)
    assert dynzoo.certify(model).body_lipschitz <= 1 / DEVIATION.min() * (1 + 1e-4)
    assert dynzoo.certificates.audit(model, pairs=8, steps=20).slope > 0


def test_orthogonality_is_the_authors_and_can_be_set():
    def weights(kind, form="published", **arguments):
        model = structured_classifier(kind, form, **SMALL, **arguments)
        found = [v.regularizer for v in model.trainable_weights if v.regularizer is not None]
        return len(found), {r.gamma for r in found}

    # two stages of two kernels, two times two where a residual step has two, one where tied
    assert weights("unconstrained") == (0, set())
    assert weights("naive") == (8, {0.01})
    assert weights("nonexpansive") == (4, {0.1})
    assert weights("prescribed") == (4, {0.1})
    assert weights("flexible") == (2, {0.01})
    assert weights("flexible", "certified") == (0, set())
    assert weights("prescribed", orthogonality=0.0) == (0, set())
    assert weights("prescribed", "certified", orthogonality=0.5) == (4, {0.5})


def test_published_form_certifies_to_something_large():
    model = small("flexible")
    for layer in model.layers:
        if isinstance(layer, LearnedScale):
            layer.scale.assign(5.0)
    assert dynzoo.certify(model).lipschitz > 10 / DEVIATION.min()


def test_trains_inside_its_bound_and_is_saved(tmp_path):
    model = structured_classifier("flexible", **{**SMALL, "widths": (4,)})
    model.compile(keras.optimizers.SGD(0.5), dynzoo.losses.MulticlassHinge(margin=0.3))
    before = [backend.to_numpy(w.value) for w in model.trainable_weights]
    images = np.random.default_rng(1).uniform(size=(16, *SHAPE)).astype("float32")
    for _ in range(2):
        loss = model.train_on_batch(images, np.arange(16) % 5)
    assert np.isfinite(loss)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        new = backend.to_numpy(weight.value)
        # scalars start at their limit, where an update may push on
        assert np.isfinite(new).all() and (weight.path.endswith("scale") or (new != old).any())
    assert dynzoo.certify(model).lipschitz <= (1 + 1e-3) / DEVIATION.min()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        backend.to_numpy(again(images)), backend.to_numpy(model(images)), atol=1e-6
    )


def test_learned_scale_keeps_its_sign_and_limit():
    layer = LearnedScale(limit=0.5)
    x = normal((2, 3))
    layer(x)
    layer.scale.assign(-2.0)
    assert layer.lipschitz_bound((None, 3)) == 2.0
    dynzoo.project(layer)
    assert layer.lipschitz_bound((None, 3)) == 0.5
    np.testing.assert_allclose(backend.to_numpy(layer(x)), -0.5 * x, atol=1e-7)
    np.testing.assert_allclose(layer.call_float64(x), -0.5 * x, atol=1e-7)
    y = backend.jit(layer)(ops.convert_to_tensor(x))
    np.testing.assert_allclose(backend.to_numpy(y), -0.5 * x, atol=1e-7)
    assert LearnedScale.from_config(layer.get_config()).limit == 0.5
    with pytest.raises(ValueError, match="`limit` must be in"):
        LearnedScale(limit=0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "best"}, "`kind` must be one of"),
        ({"form": "free"}, "`form` must be one of"),
        ({"kind": "unconstrained", "form": "certified"}, "`form` must be 'published'"),
        ({"operator": "dense"}, "`operator` must be one of"),
        ({"convolutions": 3}, "`convolutions` must be even"),
        ({"convolutions": 0}, "`convolutions` must be a positive integer"),
        ({"orthogonality": -1.0}, "`orthogonality` must be in"),
        ({"num_classes": 1}, "`num_classes` must be at least 2"),
        ({"lifts": "none"}, "`lifts` must be one of"),
        ({"lifts": "isometric", "form": "published"}, "`lifts` must be 'convolution'"),
        ({"lifts": "isometric", "kind": "naive"}, "`lifts` must be 'convolution'"),
        ({"lifts": "isometric", "block_size": 0}, "`block_size` must be a positive integer"),
        ({"lifts": "isometric", "neck_units": 0}, "`neck_units` must be a positive integer"),
        ({"lifts": "isometric", "input_shape": (12, 12, 3)}, "divisible by 8"),
        ({"step_range": (0.5, 0.1)}, "`step_range` must be"),
        ({"kind": "nonexpansive", "step_range": (0.1, 0.5)}, "`step_range` is for kind="),
        ({"kind": "naive", "expansion": "tied"}, "`expansion` is for kind="),
        ({"kind": "naive", "substeps": 1}, "`substeps` is for kind="),
        ({"substeps": 0}, "`substeps` must be a positive integer"),
        ({"inner_ratio": 1.5}, r"`inner_ratio` must be in \(0, 1\]"),
        ({"kind": "naive", "inner_ratio": 0.5}, "`inner_ratio` is for kind="),
        ({"kind": "prescribed", "inner_ratio": 0.5}, "must have 32 units.*Received: 16"),
        ({"expansion_start": 1}, r"`expansion_start` must be in \(0, 1\)"),
        ({"expansion": "free"}, "`expansion` must be one of"),
        ({"expansion_activation": "gelu"}, "`expansion_activation` must have slopes"),
        ({"input_shape": (12, 12, 3), "widths": (4, 4, 4)}, "divisible by 8"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        structured_classifier(**arguments)
