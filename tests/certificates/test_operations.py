"""Bare operations of a functional model: right bounds, or one line that says why there is none."""

import keras
import numpy as np
import pytest
from certificate_models import CLASSES, images, randomize
from helpers import jacobian, norm
from keras import layers as kl
from keras import ops

from dynzoo.backend import to_numpy
from dynzoo.certificates import UncertifiableLayerError, certify, forward_float64
from dynzoo.export.inference_graph import inference_graph

SHAPE = (3, 4, 2)
NORMAL = np.random.default_rng(7).normal(size=(6, 6)).astype("float32")
ROW = np.array([0.5, -2.0], "float32")


def model_of(function, shape=SHAPE):
    inputs = keras.Input(shape)
    return randomize(keras.Model(inputs, kl.Flatten()(function(inputs))))


def slope(model, points=6):
    """Largest norm of the Jacobian of the float64 forward pass at points of all sizes."""
    rng, shape = np.random.default_rng(2), model.input_shape[1:]
    return max(
        norm(jacobian(lambda x: forward_float64(model, x), scale * rng.normal(size=shape)))
        for scale in np.geomspace(0.2, 5.0, points)
    )


# name: (function, the share of the bound that is reached)
LINEAR = {
    "x + x": lambda x: x + x,
    "x + constant": lambda x: x + 3.0,
    "x + row": lambda x: x + ROW,
    "constant - x": lambda x: 1.0 - x,
    "0.5 * x": lambda x: 0.5 * x,
    "row * x": lambda x: ops.multiply(ROW, x),
    "x * all": lambda x: x * NORMAL[:3, :4, None],
    "x / 255": lambda x: x / 255,
    "x / row": lambda x: ops.divide(x, ROW),
    "-x": lambda x: -x,
    "spread by the constant": lambda x: x[..., :1] * ROW,
    "slices": lambda x: x[:, 1:, ::2],
    "number and new axis": lambda x: x[:, 0, None, :, 1:],
    "ellipsis": lambda x: x[..., -1],
    "reshape": lambda x: ops.reshape(x, (-1, 4, 6)),
    "reshape by method": lambda x: x.reshape((-1, 24)),
    "transpose": lambda x: ops.transpose(x, (0, 3, 1, 2)),
    "swapaxes": lambda x: ops.swapaxes(x, -1, 1),
    "moveaxis": lambda x: ops.moveaxis(x, 3, 1),
    "expand and squeeze": lambda x: ops.squeeze(ops.expand_dims(x, 2), 2),
    "flip": lambda x: ops.flip(x, axis=(1, 2)),
    "roll": lambda x: ops.roll(x, 2, axis=2),
    "repeat": lambda x: ops.repeat(x, 3, axis=2),
    "tile": lambda x: ops.tile(x, (1, 2, 1, 3)),
    "take": lambda x: ops.take(x, [1, 1, 3, 1], axis=2),
    "split": lambda x: ops.split(x, [1, 3], axis=2)[1],
    "pad": lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=2.0),
    "reflected": lambda x: ops.pad(x, ((0, 0), (1, 2), (1, 1), (0, 0)), mode="reflect"),
    "mean": lambda x: ops.mean(x, axis=(1, 2)),
    "sum": lambda x: ops.sum(x, axis=-1, keepdims=True),
    "matmul": lambda x: ops.matmul(x, NORMAL[:2, :5]),
    "x @ vector": lambda x: x @ NORMAL[0, :2],
    "constant @ x": lambda x: ops.matmul(NORMAL[:5, :4], x),
    "dot": lambda x: ops.dot(x, NORMAL[:2, :3]),
    "einsum": lambda x: ops.einsum("nhwc,wd->nhdc", x, NORMAL[:4]),
    "einsum, constant first": lambda x: ops.einsum(
        "hwc,nhwc->nhc", NORMAL.reshape(-1)[:24].reshape(SHAPE), x
    ),
    "cast": lambda x: ops.cast(x, "float32"),
    "stop_gradient": ops.stop_gradient,
    "stack": lambda x: ops.stack([x, x], axis=-1),
    "concatenate": lambda x: ops.concatenate([x, x, x], axis=1),
}

BENT = {
    "relu": ops.relu,
    "leaky_relu": lambda x: ops.leaky_relu(x, 3.0),
    "elu": lambda x: ops.elu(x, 2.0),
    "celu": lambda x: ops.celu(x, 0.5),
    "gelu": ops.gelu,
    "gelu exact": lambda x: ops.gelu(x, approximate=False),
    "squareplus": lambda x: ops.squareplus(x, 1),
    "soft_shrink": lambda x: ops.soft_shrink(x, 0.3),
    "tanh": ops.tanh,
    "abs": ops.abs,
    "abs by method": abs,
    "sin": ops.sin,
    "erf": ops.erf,
    "clip": lambda x: ops.clip(x, -1.0, 0.5),
    "softmax": lambda x: ops.softmax(x, axis=1) + x,
    "logsumexp": lambda x: ops.logsumexp(x, axis=3),
    "max": lambda x: ops.max(x, axis=1),
    "amax": lambda x: ops.amax(x, axis=(1, 3), keepdims=True),
    "min": lambda x: ops.min(x, axis=2),
    "sort": lambda x: ops.sort(x, axis=2),
    "maximum of constant": lambda x: ops.maximum(x, 0.5),
    "minimum of row": lambda x: ops.minimum(ROW, x),
    "Activation(ops.relu)": lambda x: kl.Activation(ops.relu)(x),
    "Dense(activation=ops.silu)": lambda x: kl.Dense(3, activation=ops.silu)(x),
    "Activation(ops.gelu)": lambda x: kl.Activation(ops.gelu)(x),
}

JOINED = {
    "x + f(x)": lambda x: x + kl.Dense(2, activation="tanh")(x),
    "f(x) - x": lambda x: ops.subtract(kl.Dense(2)(x), x),
    "spread": lambda x: kl.Dense(2)(x) + ops.mean(x, axis=(1, 2), keepdims=True),
    "maximum": lambda x: ops.maximum(x, kl.Dense(2)(x)),
    "concatenate": lambda x: ops.concatenate([x, ops.roll(x, 1, axis=1)], axis=-1),
    "coupling": lambda x: ops.concatenate(
        [x[..., :1], x[..., 1:] + kl.Dense(1, activation="relu")(x[..., :1])], axis=-1
    ),
}


def check(model, least):
    bound, measured = certify(model).lipschitz, slope(model)
    assert least * bound <= measured <= bound * (1 + 1e-6)
    x = 2 * images(5, model.input_shape[1:]) - 1
    reference = forward_float64(model, x)
    assert reference.shape[1:] == model.predict(x, verbose=0).shape[1:]
    for n in (5, 1):  # a batch of one is a batch
        np.testing.assert_allclose(
            model.predict(x[:n], verbose=0), reference[:n], atol=2e-5, rtol=2e-5
        )


@pytest.mark.parametrize("name", LINEAR)
def test_linear_operations_have_their_norm(name):
    check(model_of(LINEAR[name]), 1 - 1e-6)


@pytest.mark.parametrize("name", BENT)
def test_bent_operations_stay_below_their_slope(name):
    check(model_of(BENT[name]), 0.4)


@pytest.mark.parametrize("name", JOINED)
def test_operations_join_branches(name):
    check(model_of(JOINED[name]), 0.3)


def test_bounds_of_a_residual_block_are_those_of_the_layers():
    def block(x, add, scale):
        return add(x, scale(kl.Dense(2, kernel_initializer="ones")(x)))

    written = model_of(lambda x: block(x, lambda a, b: a + b, lambda a: 0.5 * a))
    layered = model_of(lambda x: block(x, lambda a, b: kl.Add()([a, b]), kl.Rescaling(0.5)))
    layered.set_weights(written.get_weights())
    assert certify(written).lipschitz == pytest.approx(certify(layered).lipschitz, rel=1e-9)
    rows = {row.class_name: row for row in certify(written).layers}
    assert rows["Multiply"].gain == pytest.approx(0.5) and rows["Add"].gain is None


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_log_softmax_has_the_root_of_the_number_of_classes(classes):
    for function in (ops.log_softmax, kl.Activation("log_softmax"), kl.Activation(ops.log_softmax)):
        inputs = keras.Input((classes,))
        model = keras.Model(inputs, 1.0 * function(inputs))
        far = np.zeros(classes)
        far[0] = 40.0  # the supremum is that of logits that move apart
        reached = norm(jacobian(lambda x, m=model: forward_float64(m, x), far))
        assert certify(model).lipschitz == pytest.approx(np.sqrt(classes), rel=1e-9)
        assert reached == pytest.approx(np.sqrt(classes), rel=1e-6)
    inputs = keras.Input((classes, 5))
    model = keras.Model(inputs, kl.Flatten()(ops.log_softmax(inputs, axis=1)))
    assert certify(model).lipschitz == pytest.approx(np.sqrt(classes), rel=1e-9)


REFUSED = {
    "product": (lambda x: x * ops.relu(x), "Multiply.*product of two tensors"),
    "quotient": (lambda x: 1.0 / x, "divides by a tensor"),
    "by zero": (lambda x: x / np.array([1.0, 0.0], "float32"), "divides by 0"),
    "square": (lambda x: ops.square(x), "Square.*no bound"),
    "power": (lambda x: x**2, "Power.*no bound"),
    "sqrt": (lambda x: ops.sqrt(x), "Sqrt.*no bound"),
    "exp": (lambda x: ops.exp(x), "Exp.*no bound"),
    "sign": (lambda x: ops.sign(x), "Sign.*jumps"),
    "shrink": (lambda x: ops.hard_shrink(x), "HardShrink.*jumps"),
    "negative threshold": (lambda x: ops.soft_shrink(x, -0.5), "SoftShrink.*jumps"),
    "matmul": (lambda x: ops.matmul(x, ops.transpose(x, (0, 1, 3, 2))), "product of two tensors"),
    "integers": (lambda x: ops.cast(ops.cast(x, "int32"), "float32"), "rounds to int32"),
    "half": (lambda x: ops.cast(ops.cast(x, "float16"), "float32"), "rounds to float16"),
    "unknown": (lambda x: ops.cumsum(x, axis=1), "Cumsum.*no bound.*known"),
    "convolution": (lambda x: ops.conv(x, np.ones((2, 2, 2, 3), "float32")), "Conv.*the layer"),
    "not finite": (lambda x: x * np.float32(np.inf), "not finite"),
    # the batch
    "mean": (lambda x: x - ops.mean(x, axis=0, keepdims=True), "batch axis"),
    "sum of all": (lambda x: x - ops.sum(x), "batch axis"),
    "sort": (lambda x: ops.sort(x, axis=0), "batch axis"),
    "softmax": (lambda x: ops.softmax(x, axis=0), "batch axis"),
    "part": (lambda x: x[:5, :], "part of the batch"),
    "one": (lambda x: x + x[0], "part of the batch"),
    "backwards": (lambda x: ops.flip(x, axis=0), "batch axis"),
    "roll": (lambda x: ops.roll(x, 6, axis=0), "batch axis"),
    "roll of all": (lambda x: ops.roll(x, 24), "batch axis"),
    "reshape": (lambda x: ops.reshape(x, (-1, 8)), "batch axis"),
    "transpose": (
        lambda x: ops.transpose(ops.transpose(x, (1, 0, 2, 3)), (1, 0, 2, 3)),
        "batch axis",
    ),
    "take": (lambda x: ops.take(x, [0, 1], axis=0), "batch axis"),
    "concatenate": (lambda x: ops.concatenate([x, x], axis=0), "batch axis"),
    "pad": (lambda x: ops.pad(x, ((1, 0), (0, 0), (0, 0), (0, 0))), "batch axis"),
    "constant": (lambda x: x + np.ones((5, 1, 1, 1), "float32"), "along the batch axis"),
    "einsum": (lambda x: ops.einsum("nhwc,nd->hwcd", x, np.ones((5, 2), "float32")), "batch axis"),
    "ranks": (lambda x: x + ops.mean(x, axis=1), "different ranks"),
    "squeeze": (lambda x: ops.squeeze(x[:, :1]), "batch axis alone"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bound_is_refused_with_a_reason(name):
    function, message = REFUSED[name]
    inputs = keras.Input(SHAPE, batch_size=5 if name in ("constant", "einsum", "one") else None)
    outputs = kl.Flatten()(function(inputs))
    with pytest.raises(UncertifiableLayerError, match=message) as error:
        certify(keras.Model(inputs, outputs))
    assert "\n" not in str(error.value)


def test_a_variable_in_an_operation_is_refused():
    table = keras.Variable(np.ones(2, "float32"), name="table")
    with pytest.raises(UncertifiableLayerError, match="variable 'table'"):
        certify(model_of(lambda x: x * table))


def test_a_users_operation_of_a_known_name_is_refused():
    class Add(keras.Operation):
        def call(self, x, y):
            return 10.0 * x + y

        def compute_output_spec(self, x, y):
            return keras.KerasTensor(x.shape, x.dtype)

    with pytest.raises(UncertifiableLayerError, match="Add"):
        certify(model_of(lambda x: Add()(x, x)))


def test_an_operation_with_a_call_of_its_own_is_refused():
    inputs = keras.Input(SHAPE)
    outputs = ops.relu(inputs)
    outputs._keras_history.operation.call = lambda x: 10.0 * x
    with pytest.raises(UncertifiableLayerError, match="Relu"):
        certify(keras.Model(inputs, kl.Flatten()(outputs)))


def test_a_constant_is_rounded_as_the_model_rounds_it():
    model = model_of(lambda x: 0.1 * x)
    assert certify(model).lipschitz == pytest.approx(float(np.float32(0.1)), rel=1e-11)


def test_what_was_bounded_keeps_its_constants():
    row = ROW.copy()
    model = model_of(lambda x: x * row)
    result = certify(model)
    row *= 10.0
    x = images(3)[:, :3, :, :]
    program = result._program
    from dynzoo.certificates.rounding.program import run_program

    y = run_program(program, x)[program.output]
    np.testing.assert_allclose(y, (ROW * x).reshape(3, -1), rtol=1e-6)
    assert certify(model).lipschitz == pytest.approx(10 * result.lipschitz)


@pytest.mark.parametrize("name", ["x + f(x)", "coupling", "spread"])
def test_an_exported_graph_has_the_operations(name):
    model = model_of(JOINED[name])
    x = 2 * images(4, SHAPE) - 1
    graph = inference_graph(model)
    np.testing.assert_allclose(
        to_numpy(graph.predict(x, verbose=0)), model.predict(x, verbose=0), atol=1e-6
    )
    before = [len(layer._inbound_nodes) for layer in model.operations]
    inference_graph(model)
    assert [len(layer._inbound_nodes) for layer in model.operations] == before


def test_operations_inside_nested_models_count_at_every_call():
    inner_inputs = keras.Input((6,))
    inner = keras.Model(inner_inputs, 3.0 * inner_inputs, name="inner")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, inner(inner(inputs)))
    assert certify(model).lipschitz == pytest.approx(9.0)
    assert [row.name for row in certify(model).layers] == ["inner/multiply", "inner/multiply"]
    graph = inference_graph(model)
    x = images(3, (6,))
    np.testing.assert_allclose(to_numpy(graph.predict(x, verbose=0)), 9.0 * x, rtol=1e-6)


# --- the input of a nested model ----------------------------------------------------------------


def test_a_nested_model_may_add_or_drop_a_last_axis():
    picture = keras.Input((4, 3, 1))
    inner = keras.Model(picture, kl.Dense(2)(kl.Flatten()(picture)))
    inputs = keras.Input((4, 3))
    check(randomize(keras.Model(inputs, inner(inputs))), 0.99)
    vector = keras.Input((4,))
    inner = keras.Model(vector, kl.Dense(4)(vector))
    inputs = keras.Input((4, 1))
    # Keras announces (n, 4, 4) here, and computes (n, 4).
    model = randomize(keras.Model(inputs, kl.Flatten()(kl.Activation("relu")(inner(inputs)))))
    bound = certify(model).lipschitz
    assert bound == pytest.approx(norm(to_numpy(inner.layers[-1].kernel)), rel=1e-6)


def test_a_nested_model_of_another_shape_is_refused():
    picture = keras.Input((4, 3))
    inner = keras.Model(picture, kl.Dense(2)(kl.Flatten()(picture)), name="inner")
    inputs = keras.Input((4, 3, 2))
    outputs = keras.KerasTensor((None, 2))
    try:
        outputs = inner(inputs)
    except ValueError:
        pytest.skip("Keras refuses it at once")
    with pytest.raises(UncertifiableLayerError, match="'inner'.*called with"):
        certify(keras.Model(inputs, outputs))


def test_a_nested_model_that_rounds_its_input_is_refused():
    inner_inputs = keras.Input((4,), dtype="int32")
    inner = keras.Model(inner_inputs, kl.Dense(3)(ops.cast(inner_inputs, "float32")), name="inner")
    inputs = keras.Input((4,))
    with pytest.raises(UncertifiableLayerError, match="'inner'.*rounds its input to int32"):
        certify(keras.Model(inputs, inner(inputs)))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: kl.SpectralNormalization(kl.Conv2D(3, 2)),
        lambda: kl.TimeDistributed(kl.Dense(3)),
        lambda: kl.EinsumDense("...x,xy->...y", 3, bias_axes="y"),
        lambda: kl.Resizing(5, 5),
        lambda: kl.AveragePooling2D(2, padding="same"),
    ],
    ids=["spectral", "time", "einsum", "resizing", "pooling"],
)
def test_an_exported_graph_has_wrappers_and_image_layers(layer):
    model = model_of(layer())
    x = 2 * images(4, SHAPE) - 1
    graph = inference_graph(model)
    np.testing.assert_allclose(
        to_numpy(graph.predict(x, verbose=0)), model.predict(x, verbose=0), atol=1e-6
    )


def test_operands_by_name_in_any_order_keep_their_bounds():
    inputs = keras.Input((1, 2))
    wide = 10.0 * ops.repeat(inputs, 3, axis=1)
    model = keras.Model(inputs, kl.Flatten()(type(wide._keras_history.operation)()(inputs, 2.0)))
    assert certify(model).lipschitz == pytest.approx(2.0)
    add = type((inputs + inputs)._keras_history.operation)
    model = keras.Model(inputs, kl.Flatten()(add().symbolic_call(x2=inputs, x1=wide)))
    assert certify(model).lipschitz == pytest.approx(11 * np.sqrt(3))
    assert slope(model) == pytest.approx(11 * np.sqrt(3))


# Shapes of two tensors, and whether Keras on TensorFlow adds the second as a bias along another
# axis, in an image alone or in a batch of as many images as an axis is long.
SUMS = {
    "mean over the last axis": ((3, 3), (3, 1), True),
    "mean over all": ((4, 3), (1, 1), True),
    "outer sum": ((3, 1), (1, 3), True),
    "mean over the first axis": ((4, 3), (1, 3), False),
    "another length": ((4, 3), (4, 1), False),
    "images": ((3, 5, 3), (3, 1, 1), True),
    "equal": ((3, 3), (3, 3), False),
    "equal with one long axis": ((3, 1), (3, 1), False),
}


@pytest.mark.parametrize("form", ["operation", "layer", "average"])
@pytest.mark.parametrize("name", SUMS)
def test_sums_that_depend_on_the_batch_are_refused(name, form):
    first, second, misread = SUMS[name]
    inputs = keras.Input((int(np.prod(first)) + int(np.prod(second)),))
    size = int(np.prod(first))
    a = kl.Reshape(first)(inputs[:, :size])
    b = kl.Reshape(second)(inputs[:, size:])
    total = {
        "operation": lambda: a + b,
        "layer": lambda: kl.Add()([a, b]),
        "average": lambda: kl.Average()([a, b]),
    }[form]()
    model = randomize(keras.Model(inputs, kl.Dense(CLASSES)(kl.Flatten()(total))))
    if misread and keras.backend.backend() == "tensorflow":
        with pytest.raises(UncertifiableLayerError, match="Subtract its negative"):
            certify(model)
        total = a - (-b)  # what the message says
        model = randomize(keras.Model(inputs, kl.Dense(CLASSES)(kl.Flatten()(total))))
    certificate = certify(model)
    for batch in (1, 3, 4):
        x = images(batch, inputs.shape[1:])
        gap = to_numpy(model(x)).astype(np.float64) - forward_float64(model, x)
        assert np.all(np.linalg.norm(gap, axis=1) <= certificate.logit_error(x, "worst-case"))
