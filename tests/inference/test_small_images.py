"""Convolutions with kernels larger than their images are products of matrices on JAX."""

from itertools import product

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend
from dynzoo.attacks.passes import loss_and_gradient
from dynzoo.inference.passes import predict_logits
from dynzoo.inference.small_images import with_windows_cut_out
from dynzoo.models import resnet_classifier

pytestmark = pytest.mark.skipif(backend.name() != "jax", reason="JAX only")


def convolutions_of(function, *args):
    """How many convolutions JAX is asked for."""
    import jax

    return str(jax.make_jaxpr(function)(*args)).count("conv_general_dilated[")


@settings(max_examples=20)
@given(data=st.data())
def test_products_are_the_convolution(data):
    import jax

    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    spatial = draw(1, 3)
    size = [draw(1, 4) for _ in range(spatial)]
    window = [draw(1, 5) for _ in range(spatial)]
    stride = [draw(1, 3) for _ in range(spatial)]
    dilation = [draw(1, 3) for _ in range(spatial)]
    least = [d * (w - 1) + 1 - n for d, w, n in zip(dilation, window, size, strict=True)]
    before = [draw(0, 3) for _ in range(spatial)]
    # so much behind the image that the window has a place
    after = [max(0, most - b) + draw(0, 2) for most, b in zip(least, before, strict=True)]
    last = data.draw(st.booleans())
    letters = "DHW"[3 - spatial :]
    layout = f"N{letters}C" if last else f"NC{letters}"
    rng = np.random.default_rng(draw(0, 99))
    image = rng.normal(size=(2, *size, 3) if last else (2, 3, *size)).astype("float32")
    kernel = rng.normal(size=(*window, 3, 2)).astype("float32")

    def convolution(x, k):
        return jax.lax.conv_general_dilated(
            x,
            k,
            stride,
            list(zip(before, after, strict=True)),
            rhs_dilation=dilation,
            dimension_numbers=(layout, f"{letters}IO", layout),
        )

    dense = with_windows_cut_out(convolution)
    written = jax.eval_shape(convolution, image, kernel).shape
    written = written[1:-1] if last else written[2:]
    fits = all(map(np.greater_equal, map(min, size, written), window))
    if fits or np.prod(written) > 16:
        assert convolutions_of(dense, image, kernel) == 1
        return
    assert convolutions_of(dense, image, kernel) == 0

    def expected(x):
        """The sums themselves, channels last."""
        x = x if last else np.moveaxis(x, 1, -1)
        sides = list(zip(before, after, strict=True))
        x = np.pad(x.astype("float64"), [(0, 0), *sides, (0, 0)])
        result = np.zeros((2, *written, 2))
        for pixel, entry in product(np.ndindex(*written), np.ndindex(*window)):
            at = [o * s + e * d for o, s, e, d in zip(pixel, stride, entry, dilation, strict=True)]
            result[:, *pixel] += x[:, *at] @ kernel[entry]
        return result if last else np.moveaxis(result, -1, 1)

    value, back = jax.vjp(dense, image, kernel)
    np.testing.assert_allclose(value, expected(image), atol=1e-4)
    # the convolution is linear in image and in kernel, so that these are its gradients
    weights = rng.normal(size=value.shape).astype("float32")
    by_image, by_kernel = map(np.asarray, back(weights))
    other = rng.normal(size=image.shape).astype("float32")
    np.testing.assert_allclose(
        (by_image * other).sum(), (weights * expected(other)).sum(), atol=1e-3
    )
    np.testing.assert_allclose(
        (by_kernel * kernel).sum(), (weights * expected(image)).sum(), atol=1e-3
    )


def network():
    keras.utils.set_random_seed(0)
    return resnet_classifier(input_shape=(8, 8, 3), widths=(4, 8, 16), steps=(1, 1, 1))


def test_a_model_answers_as_before():
    model = network()
    infer, weights = backend.inference(model), backend.weights_of(model)
    x = np.random.default_rng(0).random((5, 8, 8, 3), dtype="float32")
    dense = with_windows_cut_out(infer)
    assert 0 < convolutions_of(dense, weights, x) < convolutions_of(infer, weights, x)
    expected = backend.to_numpy(model(x, training=False))
    np.testing.assert_allclose(dense(weights, x), expected, atol=1e-5)
    np.testing.assert_allclose(predict_logits(model, x), expected, atol=1e-5)


def test_gradients_of_attacks_are_those_of_the_model():
    import jax

    model = network()
    x = np.random.default_rng(1).random((4, 8, 8, 3), dtype="float32")
    y = ops.convert_to_tensor(np.array([1, 2, 3, 4], "int32"))
    _, _, gradient = loss_and_gradient(model, "ce")(ops.convert_to_tensor(x), y, y)

    def loss(points):
        logits = model(points, training=False)
        return ops.sum(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))

    np.testing.assert_allclose(gradient, jax.grad(loss)(x), atol=1e-5)


def test_functions_that_are_compiled_inside_are_rewritten_as_well():
    import jax

    kernel = np.ones((3, 3, 2, 2), "float32")

    @jax.jit
    def inner(x):
        return jax.nn.relu(
            jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )

    function = lambda x: {"out": inner(x) + 1.0}  # noqa: E731
    dense = with_windows_cut_out(function)
    x = np.random.default_rng(0).normal(size=(3, 2, 2, 2)).astype("float32")
    assert convolutions_of(function, x) == 1
    assert convolutions_of(dense, x) == 0
    np.testing.assert_allclose(dense(x)["out"], function(x)["out"], atol=1e-5)
    assert with_windows_cut_out(jax.nn.relu)(x).shape == x.shape
