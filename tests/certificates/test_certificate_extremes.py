"""Numbers at the edges of float64, and numbers that are none: a true radius or one clear line."""

import warnings

import keras
import numpy as np
import pytest
from certificate_models import CLASSES, classifier, images, linear, randomize
from keras import layers as kl
from scipy import linalg

import dynzoo.layers as dl
from dynzoo.certificates import ReferenceMismatchError, certify, margins, upper
from dynzoo.certificates.graph import trace
from dynzoo.certificates.identity import check_float64
from dynzoo.certificates.lipschitz import bound_layers, check_layers, find_head
from dynzoo.certificates.rounding.program import run_program
from dynzoo.operators import Pointwise

JAX = keras.backend.backend() == "jax"


def with_setting(layer, name, value):
    model = classifier(layer, kl.Flatten(), kl.Dense(CLASSES))
    setattr(layer, name, value)
    return model


SETTINGS = {
    "negative_slope": lambda: kl.LeakyReLU(0.1),
    "alpha": kl.ELU,
    "scale": lambda: kl.Rescaling(1.0),
    "offset": lambda: kl.Rescaling(1.0),
    "epsilon": kl.BatchNormalization,
    "max_value": kl.ReLU,
    "step_size": lambda: dl.GradientFlow(Pointwise(4), step_size=0.5),
    "mean": lambda: dl.MeanShift([0.1, 0.2]),
}


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_is_not_finite_is_named(name, value):
    layer = SETTINGS[name]()
    model = with_setting(layer, name, [value, 0.0] if name == "mean" else value)
    with pytest.raises(ValueError, match=f"Setting `{name}` of layer '{layer.name}' is not finite"):
        certify(model)


def test_nan_slopes_of_a_relu_and_of_an_activation_layer_are_named():
    model = with_setting(kl.ReLU(), "negative_slope", np.float32("nan"))
    with pytest.raises(ValueError, match="`negative_slope`.*not finite"):
        certify(model)
    activation = kl.LeakyReLU(0.1)
    model = classifier(kl.Dense(2, activation=activation), kl.Flatten(), kl.Dense(CLASSES))
    activation.negative_slope = float("nan")
    with pytest.raises(ValueError, match="`negative_slope`.*not finite"):
        certify(model)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "mixed_float16"])
def test_an_activation_layer_of_reduced_precision_is_refused(name):
    activation = kl.LeakyReLU(0.1, dtype=name)
    for layer in (kl.Dense(2, activation=activation), kl.Activation(activation)):
        model = classifier(layer, kl.Flatten(), kl.Dense(CLASSES))
        with pytest.raises(ValueError, match=f"dtype policy '{name}'"):
            certify(model)


class Wrapper(kl.Layer):
    """Holds a layer in a list in a dict."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.held = {"layers": [inner]}

    def call(self, x):
        return keras.ops.cast(self.held["layers"][0](x), "float32")

    def call_float64(self, x):
        return np.maximum(x, 0.0)

    def lipschitz_bound(self, input_shape):
        return 1.0


def test_a_layer_of_reduced_precision_inside_any_wrapper_is_refused():
    certify(classifier(Wrapper(kl.ReLU()), kl.Flatten(), kl.Dense(CLASSES)))
    model = classifier(Wrapper(kl.ReLU(dtype="float16")), kl.Flatten(), kl.Dense(CLASSES))
    with pytest.raises(ValueError, match="dtype policy 'float16'"):
        certify(model)


class HalfWeight(kl.Layer):
    """A float32 layer with one weight that is not."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones", dtype="float16", autocast=False)

    def call(self, x):
        return x * keras.ops.cast(self.scale, x.dtype)

    def call_float64(self, x):
        return x * 1.0

    def lipschitz_bound(self, input_shape):
        return 1.0


def test_weights_are_judged_by_their_arrays():
    with pytest.raises(ValueError, match="is float16"):
        certify(classifier(HalfWeight(), kl.Flatten(), kl.Dense(CLASSES)))


def float64_model(*layers, shape=(3,)):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX says that it truncates
        inputs = keras.Input(shape, dtype="float64")
        x = inputs
        for layer in layers:
            x = layer(x)
        return keras.Model(inputs, x)


def test_float64_is_what_the_backend_makes_of_it():
    model = float64_model(kl.Dense(3, dtype="float64"))
    if not JAX:
        assert certify(model).lipschitz > 0
        return
    with pytest.raises(ValueError, match="'jax_enable_x64', True"):
        certify(model)
    with pytest.raises(ValueError, match="'jax_enable_x64', True"):
        check_float64("The model takes float64 images")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_images_that_are_no_numbers_have_radius_zero(bad, dtype):
    if bad == 1e300 and dtype == "float32":
        pytest.skip("no float32")
    models = [
        linear(np.eye(3), [5.0, 0.0, 0.0]),
        linear(np.ones((3, 3)), [1.0, 0.0, 0.0]),  # a constant answer, whatever comes
        # Saturates, so that its logits are finite.
        randomize(keras.Sequential([keras.Input((3,)), kl.Activation("hard_tanh"), kl.Dense(3)])),
    ]
    for model in models:
        x = images(4, (3,)).astype(dtype)
        x[1, 2] = bad
        result = certify(model)
        assert result.radii(x)[1][1] == 0.0
        labels = result.radii(x)[0]
        radii = result.topk_radii(x, labels, k=(1, 2))[1]
        assert np.all(radii[1] == 0.0) and not np.isnan(radii).any()
        assert np.all(result.radii(x)[1][[0, 2, 3]] >= 0)


@pytest.mark.parametrize("scale", [1e-12, 1e-30, 1e12])
def test_the_radius_does_not_depend_on_the_unit_of_the_logits(scale):
    kernel = np.random.default_rng(1).normal(size=(6, 4)).astype("float32")
    bias = np.array([0.1, 0.2, 0.3, 0.4], "float32")
    x = images(20, (6,))
    plain = certify(linear(kernel, bias)).radii(x)
    scaled = certify(linear(scale * kernel, scale * bias)).radii(x)
    np.testing.assert_array_equal(scaled[0], plain[0])
    np.testing.assert_allclose(scaled[1], plain[1], rtol=1e-3, atol=1e-4)


def bounds_of(model):
    """Body and head of a model, whatever its own forward pass makes of such numbers."""
    program = trace(model)
    check_layers(program)
    values = run_program(program, np.zeros((1, *program.input_shape)))
    shapes = {slot: (None, *value.shape[1:]) for slot, value in values.items()}
    head, (bounds, _) = find_head(program, shapes), bound_layers(program, shapes)
    return bounds[head.body_slot], head


@pytest.mark.parametrize("scale", [1e-310, 1e-170, 1e-100, 1e100, 1e200])
def test_float64_kernels_of_any_size_have_their_bound(scale):
    if JAX:
        pytest.skip("JAX has no float64 unless it is switched on before anything runs")
    kernel = np.random.default_rng(0).normal(size=(3, 3))
    model = float64_model(kl.Dense(3, dtype="float64", use_bias=False))
    model.layers[-1].kernel.assign(scale * kernel)
    _, head = bounds_of(model)
    norm, slack = scale * linalg.norm(kernel, 2), 1e-9 if scale > 1e-300 else 1e-6
    assert head.norm == pytest.approx(norm, rel=slack) and head.norm > 0
    expected = scale * np.linalg.norm(kernel[:, 0] - kernel[:, 2])
    assert head.distances[0, 2] == pytest.approx(expected, rel=slack)
    speeds = upper.product(1e-200, head.distances)
    assert np.all(speeds[~np.eye(3, dtype=bool)] > 0)
    if scale < 1e-300:  # some processors and backends take such numbers for zero
        return
    if keras.backend.backend() == "tensorflow":
        assert certify(model).lipschitz == pytest.approx(norm, rel=slack)
    elif scale < 1:  # Keras makes zeros of them in float32: another function
        with pytest.raises(ReferenceMismatchError, match="float64 layer in float32"):
            certify(model)


def test_a_bound_that_vanishes_in_float64_is_rounded_up():
    """Two layers of 1e-170 are no constant: 1e-340 is below float64, and infinite radii are not."""
    layers = [kl.Rescaling(1e-170), kl.Rescaling(1e-170), kl.Activation("tanh")]
    body, head = bounds_of(classifier(kl.Flatten(), *layers))
    assert body == upper.SMALLEST
    speeds = upper.product(body, head.distances)
    assert np.all(speeds[~np.eye(len(speeds), dtype=bool)] >= upper.SMALLEST)
    body, _ = bounds_of(classifier(kl.Flatten(), kl.Rescaling(0.0), kl.Dense(CLASSES)))
    assert body == 0.0


def test_a_bound_that_overflows_is_refused_in_one_line():
    layers = [kl.Rescaling(1e200), kl.Rescaling(1e200), kl.Dense(CLASSES)]
    with pytest.raises(ValueError, match="overflows float64 at layer 'rescaling") as error:
        certify(classifier(kl.Flatten(), *layers))
    assert "\n" not in str(error.value) and len(str(error.value)) < 200
    if JAX:
        return
    model = float64_model(kl.Dense(3, dtype="float64", use_bias=False))
    model.layers[-1].kernel.assign(1e308 * np.array([[1.0, -1, 1]] * 3))
    with pytest.raises(ValueError, match="too large to be certified"):
        certify(model)


def test_a_model_whose_answer_is_constant_alone_has_an_infinite_radius():
    constant = linear(np.ones((2, 3)), [1.0, 0.0, 0.0])
    # constant in real numbers: in float32 the same logits are lost in large ones
    assert certify(constant).radii(images(1, (2,)))[1][0] > 1e4
    speeds = np.array([[0.0, 1e-300], [1e-300, 0.0]])
    found = margins.limits(np.array([[1e200, 0.0]]), np.array([0]), speeds, 0.0)
    assert np.isfinite(found[0, 1]) and found[0, 1] > 1e307


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_a_stated_matrix_is_compared_by_its_own_size(scale, monkeypatch):
    class Head(dl.UnitRowDense):
        wrong = 0.0

        def effective_kernel(self):
            return scale * super().effective_kernel()

        def call(self, x):
            return scale * (super().call(x) - self.bias) + self.bias

        def call_float64(self, x):
            bias = keras.ops.convert_to_numpy(self.bias).astype("float64")
            return x @ ((1 + Head.wrong) * self.effective_kernel()) + bias

        def lipschitz_bound(self, input_shape):
            return 2.0 * scale

    model = keras.Sequential([keras.Input((5,)), Head(3)])
    model.layers[0].bias.assign([1.0, 2.0, 3.0])
    certify(model)
    monkeypatch.setattr(Head, "wrong", 1e-4)
    with pytest.raises(ValueError, match="effective_kernel"):
        certify(model)


def test_lengths_and_products_keep_their_size():
    rows = np.array([[3e-170, 4e-170], [3e200, 4e200], [0.0, 0.0], [np.inf, 1.0]])
    np.testing.assert_allclose(upper.lengths(rows), [5e-170, 5e200, 0.0, np.inf])
    assert upper.product(1e-200, 1e-200) == upper.SMALLEST
    assert upper.product(0.0, 1e-200) == 0.0
    assert upper.product(1e200, 1e200) == np.inf
