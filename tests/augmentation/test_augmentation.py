import json
import time

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from dynzoo import backend
from dynzoo.augmentation.batches import Augmented, RandomCropFlip, random_crop_flip


def _reference(x, dy, dx, flip, padding, mode):
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(x, pads, mode=mode)
    h, w = x.shape[1:3]
    cut = [p[i : i + h, j : j + w] for p, i, j in zip(padded, dy, dx, strict=True)]
    return np.stack([c[:, ::-1] if f else c for c, f in zip(cut, flip, strict=True)])


def _images(n, h, w, c=2):
    return np.random.default_rng(0).random((n, h, w, c)).astype("float32")


@given(
    st.integers(1, 5),
    st.integers(3, 6),
    st.integers(3, 6),
    st.integers(0, 2),
    st.sampled_from(["reflect", "constant"]),
    st.integers(0, 1000),
)
def test_is_pad_crop_flip(n, h, w, padding, mode, seed):
    x = _images(n, h, w)
    rng = np.random.default_rng(seed)
    dy, dx = rng.integers(0, 2 * padding + 1, (2, n))
    flip = rng.integers(0, 2, n).astype(bool)
    y = backend.to_numpy(random_crop_flip(x, dy, dx, flip, padding, mode))
    np.testing.assert_array_equal(y, _reference(x, dy, dx, flip, padding, mode))


def test_jitted_is_the_same():
    x = _images(4, 8, 8)
    dy, dx, flip = np.array([0, 1, 4, 8]), np.array([8, 4, 3, 0]), np.array([1, 0, 1, 0])
    step = backend.jit(lambda x, dy, dx, flip: random_crop_flip(x, dy, dx, flip, 4, "constant"))
    tensors = [ops.convert_to_tensor(a) for a in (x, dy, dx, flip)]
    y = backend.to_numpy(step(*tensors))
    np.testing.assert_array_equal(y, _reference(x, dy, dx, flip, 4, "constant"))


def test_middle_offset_is_the_identity():
    x = _images(3, 8, 8)
    middle = np.full(3, 4)
    y = backend.to_numpy(random_crop_flip(x, middle, middle, np.zeros(3, bool), 4))
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"padding": 8}, "less than the image"),
        ({"padding": -1}, "integer >= 0"),
        ({"padding": 1.5}, "integer >= 0"),
        ({"padding": 1, "mode": "wrap"}, "`mode` must be one of"),
    ],
)
def test_bad_arguments(kwargs, message):
    zeros = np.zeros(2, int)
    with pytest.raises(ValueError, match=message):
        random_crop_flip(_images(2, 8, 8), zeros, zeros, zeros, **kwargs)


def test_layer_draws_for_each_image_and_rests_at_inference():
    x = np.tile(np.arange(64.0, dtype="float32").reshape(1, 8, 8, 1), (64, 1, 1, 1))
    layer = RandomCropFlip(padding=2, seed=1)
    np.testing.assert_array_equal(backend.to_numpy(layer(x)), x)
    first = backend.to_numpy(layer(x, training=True))
    # 25 offsets and two orientations for 64 images: one draw a batch would give a single image
    assert len({image.tobytes() for image in first}) > 20
    assert not np.array_equal(first, backend.to_numpy(layer(x, training=True)))
    twin = RandomCropFlip.from_config(layer.get_config())
    np.testing.assert_array_equal(backend.to_numpy(twin(x, training=True)), first)


def test_layer_without_flip_never_mirrors():
    x = np.tile(np.arange(8.0, dtype="float32").reshape(1, 1, 8, 1), (50, 8, 1, 1))
    y = backend.to_numpy(RandomCropFlip(padding=0, flip=False, seed=0)(x, training=True))
    np.testing.assert_array_equal(y, x)
    y = backend.to_numpy(RandomCropFlip(padding=0, flip=True, seed=0)(x, training=True))
    mirrored = (y[:, 0, 0, 0] == 7).mean()
    assert 0.25 < mirrored < 0.75


def test_layer_is_a_keras_citizen():
    layer = RandomCropFlip(padding=3, flip=False, mode="constant", seed=5, name="augment")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    assert config["registered_name"] == "dynzoo>RandomCropFlip"
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
    assert again(keras.Input((8, 8, 3))).shape == (None, 8, 8, 3)
    assert layer.lipschitz_bound((None, 8, 8, 3)) == 1.0
    x = _images(2, 8, 8)
    assert layer.call_float64(x).dtype == np.float64
    np.testing.assert_array_equal(layer.call_float64(x), x)
    with pytest.raises(ValueError, match="less than the image"):
        RandomCropFlip(padding=8)(x)
    with pytest.raises(ValueError, match="padding=-1"):
        RandomCropFlip(padding=-1)


def test_layer_trains_in_a_compiled_model():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            RandomCropFlip(padding=2, seed=0),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(_images(8, 8, 8), np.arange(8) % 2, epochs=2, batch_size=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def _batches(n=20, batch_size=6, **kwargs):
    x = np.random.default_rng(1).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return Augmented(x, np.arange(n), batch_size=batch_size, padding=2, **kwargs)


def test_augmented_covers_the_set_once_and_drops_the_rest():
    batches = _batches()
    assert len(batches) == 3
    labels = np.concatenate([batches[i][1] for i in range(3)])
    assert len(set(labels)) == 18
    x, _ = batches[0]
    assert x.dtype == np.float32 and x.shape == (6, 8, 8, 3) and 0 <= x.min() <= x.max() <= 1


def test_augmented_is_a_function_of_seed_epoch_and_batch():
    one, other = _batches(seed=3, epoch=2), _batches(seed=3, epoch=2)
    other[0], other[1]  # the order in which batches are read must not matter
    for i in (2, 0, 1, 2):
        np.testing.assert_array_equal(one[i][0], other[i][0])
        np.testing.assert_array_equal(one[i][1], other[i][1])
    for changed in (_batches(seed=4, epoch=2), _batches(seed=3, epoch=3)):
        assert not np.array_equal(one[0][1], changed[0][1])


def test_resumed_epoch_sees_the_same_batches():
    whole, rest = _batches(epoch=1), _batches(epoch=1, start_batch=2)
    assert len(rest) == 1
    np.testing.assert_array_equal(rest[0][0], whole[2][0])
    np.testing.assert_array_equal(rest[0][1], whole[2][1])
    with pytest.raises(ValueError, match="start_batch=2"):
        rest.follow_epochs()


def test_draws_differ_between_images_batches_and_from_the_permutation():
    x = np.tile(np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1), (64, 1, 1, 1))
    batches = Augmented(x, np.zeros(64), batch_size=32, padding=3, shuffle=False)
    first, second = batches[0][0], batches[1][0]
    assert len({image.tobytes() for image in first}) > 10
    assert not np.array_equal(first, second)


def test_augmented_without_augmentation_is_the_data():
    x = np.random.default_rng(1).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    exact = (x / 255).astype(np.float32)
    for images in (x, exact):
        plain = Augmented(images, np.arange(10), 5, shuffle=False, padding=0, flip=False)
        np.testing.assert_array_equal(plain[1][0], exact[5:])
        np.testing.assert_array_equal(plain[1][1], np.arange(5, 10))


def _cut_one_by_one(x, dy, dx, mirror, padding):
    """How batches were cut before: image by image."""
    out = np.empty(x.shape, np.float32)
    pad = (padding, padding)
    padded = np.pad(x, ((0, 0), pad, pad, (0, 0)), mode="reflect")
    for i in range(len(x)):
        window = padded[i, dy[i] : dy[i] + x.shape[1], dx[i] : dx[i] + x.shape[2]]
        out[i] = window[:, ::-1] if mirror[i] else window
    if x.dtype == np.uint8:
        out /= np.float32(255)
    return out


@pytest.mark.parametrize("shape", [(8, 6, 3), (5, 9, 1), (4, 4, 2)])
@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_all_images_at_once_are_the_bits_of_one_by_one(shape, padding, flip, dtype):
    rng = np.random.default_rng(5)
    x = rng.integers(0, 256, (64, *shape), dtype=np.uint8)
    x = x if dtype == "uint8" else rng.random(x.shape, dtype="float32")
    kept = x.copy()
    batches = Augmented(x, np.arange(64), 16, seed=2, epoch=7, padding=padding, flip=flip)
    order = np.random.default_rng([2, 7]).permutation(64)
    for i in range(4):
        draws = np.random.default_rng([2, 7, i + 1])
        dy, dx = draws.integers(0, 2 * padding + 1, size=(2, 16))
        mirror = draws.integers(0, 2, size=16).astype(bool) & flip
        chosen = order[16 * i : 16 * i + 16]
        found, labels = batches[i]
        expected = _cut_one_by_one(x[chosen], dy, dx, mirror, padding)
        assert found.dtype == np.float32 and found.flags.c_contiguous
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
        np.testing.assert_array_equal(labels, chosen)
    np.testing.assert_array_equal(x, kept)


def test_alternating_halves_show_each_image_both_ways():
    x = np.arange(2 * 12 * 2, dtype="float32").reshape(24, 1, 2, 1) / 48
    sides = []
    for epoch in range(4):
        batches = Augmented(x, np.arange(24), 6, epoch=epoch, padding=0, flip="alternating")
        mirrored = np.empty(24, bool)
        for i in range(4):
            images, labels = batches[i]
            mirrored[labels] = images[:, 0, 0, 0] > images[:, 0, 1, 0]
        sides.append(mirrored)
    assert 4 <= sides[0].sum() <= 20
    for epoch in (1, 2, 3):
        np.testing.assert_array_equal(sides[epoch], sides[0] ^ (epoch % 2 == 1))
    with pytest.raises(ValueError, match="`flip` must be one of .*Received: flip='sometimes'"):
        Augmented(x, np.arange(24), 6, flip="sometimes", padding=0)


DISTORTED = {"rotation": 20.0, "zoom": 0.2, "color_jitter": 0.3}


def test_distortions_come_on_top_of_the_same_crops():
    plain, distorted = _batches(seed=1), _batches(seed=1, **DISTORTED)
    half = _batches(seed=1, rotation=20.0)
    for i in range(3):
        np.testing.assert_array_equal(distorted[i][1], plain[i][1])
        assert all(np.any(a != b) for a, b in zip(plain[i][0], distorted[i][0], strict=True))
        assert distorted[i][0].dtype == np.float32
        assert 0 <= distorted[i][0].min() <= distorted[i][0].max() <= 1
    kept = [(a == b).all() for i in range(3) for a, b in zip(plain[i][0], half[i][0], strict=True)]
    assert 2 <= sum(kept) <= 16  # each of 18 is turned or not, whatever the others are


def test_distorted_images_are_a_function_of_seed_epoch_and_batch():
    one, other = (_batches(seed=3, epoch=2, **DISTORTED) for _ in range(2))
    other[1]
    np.testing.assert_array_equal(one[0][0], other[0][0])
    later = _batches(seed=3, epoch=2, start_batch=2, **DISTORTED)
    np.testing.assert_array_equal(one[2][0], later[0][0])
    assert not np.array_equal(one[0][0], _batches(seed=3, epoch=3, **DISTORTED)[0][0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 21}, "`batch_size`"),
        ({"start_batch": 3}, "`start_batch`"),
        ({"start_batch": -1}, "`start_batch`"),
        ({"rotation": 181}, r"`rotation` must be in \[0, 180\]. Received: rotation=181"),
        ({"workers": 0}, "`workers`"),
        ({"max_queue_size": 0}, "`max_queue_size`"),
        ({"use_multiprocessing": True}, "`use_multiprocessing` must be False"),
        ({"zoom": 1.0}, r"`zoom` must be in \[0, 0.9\]. Received: zoom=1.0"),
        (
            {"color_jitter": "much"},
            r"`color_jitter` must be in \[0, 1\]. Received: color_jitter='m",
        ),
    ],
)
def test_augmented_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        _batches(**kwargs)
    with pytest.raises(ValueError, match="one length"):
        Augmented(np.zeros((4, 8, 8, 3), np.uint8), np.zeros(3), 2)
    with pytest.raises(ValueError, match="uint8 or float32"):
        Augmented(np.zeros((4, 8, 8, 3)), np.zeros(4), 2)


def test_workers_make_each_batch_once_whatever_the_order():
    one, many = _batches(batch_size=3), _batches(batch_size=3, workers=2, max_queue_size=3)
    made = []
    batch = many._batch
    many._batch = lambda epoch, index: made.append((epoch, index)) or batch(epoch, index)
    for epoch in (0, 1, 1, 0):
        one.epoch = many.epoch = epoch
        for i in range(len(one)):
            np.testing.assert_array_equal(one[i][0], many[i][0])
    assert len(made) == 4 * len(one)
    for i in (4, 0, 2, 5):
        np.testing.assert_array_equal(one[i][1], many[i][1])
    many.workers = 1
    np.testing.assert_array_equal(one[3][0], many[3][0])


@pytest.mark.parametrize(("built", "workers"), [(False, 1), (True, 1), (False, 3), (True, 3)])
def test_fit_gets_the_batches_of_its_epochs(built, workers):
    """Keras looks at a first batch of a model never trained before; that must not shift epochs."""
    x = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    y = np.arange(20)
    losses = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def train(fits):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 3))
        outputs = keras.layers.Dense(20)(keras.layers.Flatten()(inputs))
        model = keras.Model(inputs, outputs)
        model.compile(keras.optimizers.SGD(0.1), losses, metrics=["accuracy"])
        if built:
            model.evaluate(x[:4] / 255, y[:4], verbose=0)
        for first, last in fits:
            batches = Augmented(x, y, 6, epoch=first, padding=2, workers=workers)
            callbacks = [batches.follow_epochs()]
            epochs = {"initial_epoch": first, "epochs": last}
            model.fit(batches, callbacks=callbacks, shuffle=False, verbose=0, **epochs)
        return model.get_weights()[0]

    def by_hand():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 3))
        outputs = keras.layers.Dense(20)(keras.layers.Flatten()(inputs))
        model = keras.Model(inputs, outputs)
        model.compile(keras.optimizers.SGD(0.1), losses)
        for epoch in range(3):
            batches = Augmented(x, y, 6, epoch=epoch, padding=2)
            for i in range(3):
                model.train_on_batch(*batches[i])
        return model.get_weights()[0]

    expected = by_hand()
    np.testing.assert_allclose(train([(0, 3)]), expected, atol=1e-6)
    np.testing.assert_allclose(train([(0, 1), (1, 3)]), expected, atol=1e-6)


def test_a_batch_of_256_takes_less_than_15_ms():
    x = np.random.default_rng(1).integers(0, 256, (1024, 32, 32, 3), dtype=np.uint8)
    batches = Augmented(x, np.zeros(1024), 256)
    times = []
    for i in range(16):
        start = time.perf_counter()
        batches[i % 4]
        times.append(time.perf_counter() - start)
    assert min(times) < 0.015
