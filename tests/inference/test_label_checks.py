"""Labels as people bring them: integers, columns, one-hot and soft ones, and those of no class."""

import keras
import numpy as np
import pytest
from helpers import normal
from keras import ops

import dynzoo
from dynzoo import backend
from dynzoo.attacks import PGD
from dynzoo.certificates.smoothing import smooth
from dynzoo.inference.label_checks import check_labels, count_classes, training_labels
from dynzoo.losses import EfficientMargin, MulticlassHinge, OffsetCrossentropy
from dynzoo.training.finetuning import finetune
from dynzoo.zoo import measurement as evaluation

LOSSES = [OffsetCrossentropy, EfficientMargin, MulticlassHinge]
LOGITS = normal((4, 4), 1, 0.5)  # as many images as classes
LABELS = np.array([0, 2, 1, 3])
BAD = [[1, 2, 3, 4], [0, 255, 1, 2], [0, -1, 1, 2], [0.0, 0.5, 1.0, 2.0], [0.0, np.nan, 1.0, 2.0]]


def value(loss, labels, logits=LOGITS):
    labels, logits = ops.convert_to_tensor(labels), ops.convert_to_tensor(logits)
    return backend.to_numpy(loss(labels, logits))


def classifier(classes=4):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(classes, use_bias=False)])


def identity():
    model = classifier()
    model.set_weights([np.eye(4, dtype="float32")])
    return model


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rows", [4, 3])
def test_one_hot_labels_have_the_loss_of_the_integers(loss, rows):
    loss, labels, logits = loss(reduction="none"), LABELS[:rows], LOGITS[:rows]
    expected = value(loss, labels, logits)
    assert expected.shape == (rows,)
    for same in (labels[:, None], np.eye(4)[labels], np.eye(4, dtype="int32")[labels]):
        np.testing.assert_allclose(value(loss, same, logits), expected, rtol=1e-6)


def soft_reference(loss, t, z):
    """The formulas with the shares t in place of the unit vector."""

    def crossentropy(z):
        return -(t * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1)

    own = (t * z).sum(1, keepdims=True)
    if isinstance(loss, OffsetCrossentropy):
        return loss.temperature * crossentropy((z - loss.offset * t) / loss.temperature)
    if isinstance(loss, EfficientMargin):
        shift = np.clip(own - z, loss.offset / 100, loss.offset) * (1 - t)
        return loss.temperature * crossentropy((z + shift) / loss.temperature)
    return (np.maximum(0, loss.margin - own + z) * (1 - t)).mean(1)


@pytest.mark.parametrize("loss", LOSSES)
def test_soft_labels_are_the_formula_with_shares(loss):
    loss = loss(reduction="none")
    t = 0.7 * np.eye(4)[LABELS] + 0.3 * np.eye(4)[LABELS[::-1]]
    expected = soft_reference(loss, t, LOGITS.astype(np.float64))
    np.testing.assert_allclose(value(loss, t.astype("float32")), expected, rtol=1e-4)
    uniform = np.full((4, 4), 0.25, "float16")
    assert np.isfinite(value(loss, uniform)).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("labels", BAD)
def test_a_label_of_no_class_has_the_loss_nan_and_no_gradient(loss, labels):
    each = loss(reduction="none")
    found, right = value(each, labels), value(each, LABELS)
    bad = [not (v == v and 0 <= v < 4 and v == int(v)) for v in labels]
    np.testing.assert_array_equal(np.isnan(found), bad)
    assert np.isfinite(right).all()
    run = backend.value_and_grad(lambda z: loss()(ops.convert_to_tensor(labels), z))
    (total, _), gradient = run(ops.convert_to_tensor(LOGITS))
    gradient = backend.to_numpy(gradient)
    assert np.isnan(backend.to_numpy(total)) and np.isfinite(gradient).all()
    assert not gradient[np.array(bad)].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_shares_that_are_none_and_other_shapes(loss):
    for rows in (np.full((4, 4), 0.5), np.eye(4) * 2, np.tile([1.5, -0.5, 0, 0], (4, 1))):
        assert np.isnan(value(loss(reduction="none"), rows.astype("float32"))).all()
    for shape in ((4, 3), (4, 5), (4, 1, 1)):
        with pytest.raises(ValueError, match=r"Labels must be integers of shape \(batch,\)"):
            value(loss(), np.zeros(shape, "float32"))


def test_fit_shows_the_nan_and_keeps_the_weights():
    model = classifier()
    model.compile(keras.optimizers.SGD(0.1), OffsetCrossentropy())
    x = np.random.default_rng(0).random((8, 4), dtype="float32")
    with np.errstate(invalid="ignore"):
        history = model.fit(x, np.array([1, 2, 3, 4] * 2), verbose=0)
    assert np.isnan(history.history["loss"][0])
    assert np.isfinite(model.get_weights()[0]).all()


def test_a_preset_counts_right_answers_of_one_hot_labels(tmp_path):
    dynzoo.save_to_preset(identity(), tmp_path / "preset")
    x = np.eye(4, dtype="float32")
    for y in (np.arange(4), np.arange(4)[:, None], np.eye(4, dtype="float32")):
        model = dynzoo.from_preset(tmp_path / "preset")
        assert model.evaluate(x, y, verbose=0, return_dict=True)["accuracy"] == 1.0


def tuned(y, **arguments):
    keras.utils.set_random_seed(0)
    head = dynzoo.layers.UnitRowDense(4)  # what is trained makes no difference to labels
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), head])
    x = np.random.default_rng(0).random((len(y), 8, 8, 3), dtype="float32")
    return finetune(model, x, y, epochs=1, batch_size=4, verbose=0, **arguments).history


@pytest.mark.parametrize("augmented", [{}, {"flip": True}])
def test_finetune_takes_all_kinds_of_labels(augmented):
    y = np.array([0, 1, 2, 3, 3, 2, 1, 0])
    expected = tuned(y, **augmented)
    for same in (y[:, None], y.astype("float32"), np.eye(4)[y]):
        found = tuned(same, **augmented)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-6)
    assert np.isfinite(tuned(np.full((8, 4), 0.25), **augmented)["loss"]).all()


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.array([1, 2, 3, 4] * 2), "from 0 to 3.*labels from 1 to 4. Subtract 1"),
        (np.array([0, 1, 2, 255] * 2, "uint8"), "from 0 to 3.*labels from 0 to 255"),
        (np.array([0, 1, 2, -1] * 2), "labels from -1 to 2"),
        (np.array([0.5] * 8), "integer labels"),
        (np.eye(3)[[0, 1, 2, 0]], "a column for each of the 4 classes"),
        (np.full((8, 4), 0.5), "sum 1 in each row"),
    ],
)
def test_finetune_refuses_labels_of_no_class(y, message):
    with pytest.raises(ValueError, match=message):
        tuned(y)


def test_labels_as_a_column_are_counted_right_everywhere():
    x, y = np.eye(4, dtype="float32"), np.arange(4)
    x = np.concatenate([x, x])
    y = np.concatenate([y, y])
    model = identity()
    for same in (y, y[:, None], np.eye(4, dtype="uint8")[y], y.astype("uint8")):
        smoothed = smooth(model, 0.1, samples=50, selection=10).accuracy(x, same, eps=0.01)
        assert smoothed["clean"] == 1.0 and list(smoothed["certified"]) == [0.01]
        assert evaluation.accuracy(model, x, same) == 1.0
        measured = evaluation.measure(model, x, same, eps=np.float32(0.125), attacks="none")
        assert measured.clean == 1.0 and measured.certified[0.125] == 1.0
        report = dynzoo.evaluate(model, x, same, eps=np.float32(0.125), attacks="fast")
        assert report.clean == 1.0 and list(report.robust) == [0.125]
        assert PGD(eps=0.1, steps=2)(model, x, same).shape == x.shape
        places, _ = dynzoo.certify(model).topk_radii(x, same, k=1)
        assert not places.any()
    for bad in (y + 1, y[:4], y / 1.0):
        with pytest.raises(ValueError, match="`y`"):
            smooth(model, 0.1).accuracy(x, bad)
        with pytest.raises(ValueError, match="`y`"):
            evaluation.measure(model, x, bad, attacks="none")


def test_checks_by_themselves():
    np.testing.assert_array_equal(check_labels([[2], [0]]), [2, 0])
    with pytest.raises(ValueError, match="integer labels"):
        check_labels(np.array([[0.5, 0.5]]))
    assert training_labels([[0.5, 0.5]], 1, 2).dtype == np.float32
    assert count_classes([0, 1, 1, 3]) == 4
    with pytest.raises(ValueError, match="labels from 0 on.*from 1 to 3. Subtract 1"):
        count_classes([1, 2, 3])
    with pytest.raises(ValueError, match="without gaps. Received: 3 different.*255"):
        count_classes([0, 1, 255])
