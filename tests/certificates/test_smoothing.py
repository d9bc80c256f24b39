"""Randomised smoothing against linear classifiers, where everything is known exactly."""

import json

import keras
import numpy as np
import pytest
from helpers import normal
from hypothesis import given
from hypothesis import strategies as st
from keras import ops
from scipy import stats

from dynzoo import backend, operators
from dynzoo.certificates import smoothing
from dynzoo.certificates.smoothing import lower_confidence_bound, smooth
from dynzoo.certificates.smoothing_checkpoint import SmoothingCheckpoint
from dynzoo.layers.convection_diffusion_flow import ConvectionDiffusionFlow
from dynzoo.layers.graph_diffusion import GraphDiffusion


def linear(weights, bias):
    """Two classes, split by the plane w.x + b = 0; class 1 where it is positive."""
    weights = np.asarray(weights, "float32")
    model = keras.Sequential([keras.Input((len(weights),)), keras.layers.Dense(2)])
    kernel = np.stack([np.zeros_like(weights), weights], axis=1)
    model.set_weights([kernel, np.array([0.0, bias], "float32")])
    return model


W, B = np.array([1.0, -2.0, 0.5], "float32"), 0.3


def distances(x):
    """Signed distance from the plane: the smoothed classifier's exact radius, too."""
    w = W.astype(np.float64)
    return (x.astype(np.float64) @ w + float(np.float32(B))) / np.linalg.norm(w)


def at_distance(d, seed=0):
    """Points at the given signed distances."""
    x = normal((len(d), 3), seed).astype(np.float64)
    w = W.astype(np.float64)
    x += np.outer(np.asarray(d) - distances(x), w / np.linalg.norm(w))
    return x.astype("float32")


# --- statistics ------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([0.001, 0.05, 0.5]))
def test_clopper_pearson_is_scipys(trials, fraction, alpha):
    successes = round(fraction * trials)
    test = stats.binomtest(successes, trials, alternative="greater")
    exact = test.proportion_ci(confidence_level=1 - alpha, method="exact").low
    bound = lower_confidence_bound(successes, trials, alpha)
    assert bound == pytest.approx(exact, rel=1e-9, abs=1e-12)
    # its definition: at the bound, so many successes happen with probability alpha
    if successes:
        assert stats.binom.sf(successes - 1, trials, bound) == pytest.approx(alpha, rel=1e-6)


def test_clopper_pearson_at_the_ends():
    assert lower_confidence_bound(0, 50, 0.01) == 0.0
    assert lower_confidence_bound(50, 50, 0.01) == pytest.approx(0.01 ** (1 / 50))


def test_failures_are_as_rare_as_alpha_says():
    # 600 images near the plane and a large alpha: too large a radius must be rare, not absent
    d = np.random.default_rng(1).uniform(0.05, 0.3, size=600)
    x, alpha = at_distance(d), 0.2
    smoothed = smooth(linear(W, B), 0.4, samples=60, selection=10, alpha=alpha, seed=3)
    labels, radii = smoothed.radii(x)
    failures = np.where(labels == 1, radii > distances(x), labels == 0)
    share = failures.mean()
    assert share <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / len(x))
    assert share > 0.05  # the bound is not trivially small


# --- a linear classifier -----------------------------------------------------------------------


def test_radius_is_below_the_exact_one_and_not_far():
    d = np.concatenate([np.linspace(0.1, 1.2, 30), -np.linspace(0.1, 1.2, 30), [3.0]])
    x = at_distance(d)
    smoothed = smooth(linear(W, B), 0.5, samples=2000, selection=500)
    labels, radii = smoothed.radii(x)
    sure = labels != smoothing.ABSTAIN
    np.testing.assert_array_equal(labels[sure], (d > 0)[sure])
    assert sure.all() and radii.dtype == np.float64 and labels.dtype == np.int64
    assert (radii <= np.abs(distances(x))).all()
    # what 2000 samples can show
    largest = 0.5 * stats.norm.ppf(0.001 ** (1 / 2000))
    assert (radii <= largest).all() and radii.max() == pytest.approx(largest)
    near = np.abs(d) < 0.8
    assert (radii[near] > np.abs(d)[near] - 0.2).all()


def test_abstains_near_the_plane():
    x = at_distance(np.full(20, 1e-3))
    smoothed = smooth(linear(W, B), 0.5, samples=200)
    labels, radii = smoothed.radii(x)
    assert (labels == -1).mean() >= 0.9
    assert (radii[labels == -1] == 0).all()
    assert (smoothed.predict(x) == -1).mean() >= 0.9


def test_predict_agrees_where_the_answer_is_clear():
    d = np.array([0.5, -0.5, 1.0, -1.0])
    np.testing.assert_array_equal(
        smooth(linear(W, B), 0.3, samples=100).predict(at_distance(d)), [1, 0, 1, 0]
    )


def test_smoothing_is_not_the_base_classifier():
    # a thin sliver of class 1: the model says 1 there, the smoothed classifier says 0
    inputs = keras.Input((1,))
    inside = ops.relu(0.05 - ops.abs(inputs)) * 100.0
    model = keras.Model(inputs, ops.concatenate([ops.ones_like(inputs), inside], axis=-1))
    x = np.zeros((1, 1), "float32")
    assert backend.to_numpy(model(x)).argmax() == 1
    labels, radii = smooth(model, 0.5, samples=500).radii(x)
    assert labels[0] == 0 and radii[0] > 0.3


# --- reproducible ----------------------------------------------------------------------------


def test_depends_on_seed_and_index_alone():
    model, x = linear(W, B), at_distance([0.1, 0.2, -0.3, 0.15])
    smoothed = smooth(model, 0.5, samples=150, selection=20, seed=5)
    labels, radii = smoothed.radii(x)
    predicted = smoothed.predict(x)
    for size in (7, 64, 1000):
        again = smoothed.radii(x, batch_size=size)
        np.testing.assert_array_equal(again[0], labels)
        np.testing.assert_array_equal(again[1], radii)
    order = np.array([2, 0, 3, 1])
    again = smoothed.radii(x[order], indices=order)
    np.testing.assert_array_equal(again[0], labels[order])
    np.testing.assert_array_equal(again[1], radii[order])
    np.testing.assert_array_equal(smoothed.predict(x[order], indices=order), predicted[order])
    # another seed, another index: other noise
    other = smooth(model, 0.5, samples=150, selection=20, seed=6).radii(x)[1]
    assert not np.array_equal(other, radii)
    assert not np.array_equal(smoothed.radii(x, indices=[4, 5, 6, 7])[1], radii)


def script(monkeypatch, logits):
    """Puts a function in the place of the model, apart from the checks, which run images alone."""
    monkeypatch.setattr(smoothing, "find_difference", lambda model, x: None)
    monkeypatch.setattr(smoothing, "_compare", lambda *_: None)
    alone = np.zeros((1, 2))
    monkeypatch.setattr(
        smoothing, "predict_logits", lambda model, x, n: logits(x) if len(x) > 1 else alone
    )


def test_selection_and_estimation_use_different_draws(monkeypatch):
    seen = []

    def record(x):
        seen.append(x.copy())
        return np.tile([0.0, 1.0], (len(x), 1))

    script(monkeypatch, record)
    x = np.zeros((2, 3), "float32")
    smooth(linear(W, B), 0.5, samples=2000, selection=100, batch_size=300).radii(x)
    noise = np.concatenate(seen).reshape(2, 2100, 3)
    assert len(np.unique(noise[..., 0])) > 4100  # no draw comes twice, within or between images
    assert noise.std() == pytest.approx(0.5, rel=0.03)
    assert abs(np.corrcoef(noise[0, :, 0], noise[1, :, 0])[0, 1]) < 0.1
    first = np.random.default_rng([0, 1]).standard_normal((2100, 3))
    np.testing.assert_array_equal(noise[1], (0.5 * first).astype(np.float32))


def test_bound_counts_the_estimation_draws_alone(monkeypatch):
    # 20 selections for class 1, then 90 of 100 estimations for it; next image: the selection errs
    answers = np.concatenate([np.ones(20 + 90), np.zeros(10), np.ones(20), np.zeros(100)])
    position = iter(range(len(answers)))

    def scripted(x):
        labels = answers[[next(position) for _ in x]].astype(int)
        return np.eye(2)[labels]

    script(monkeypatch, scripted)
    smoothed = smooth(linear(W, B), 0.5, samples=100, selection=20, batch_size=16)
    labels, radii = smoothed.radii(np.zeros((2, 3), "float32"))
    np.testing.assert_array_equal(labels, [1, -1])
    low = stats.binomtest(90, 100, alternative="greater").proportion_ci(0.999, "exact").low
    np.testing.assert_allclose(radii, [0.5 * stats.norm.ppf(low), 0.0], rtol=1e-9)


@pytest.mark.parametrize(
    ("second", "alpha", "answer"),
    # the two-sided chance of 9 against 1 is 22/1024, of 10 against 0 it is 2/1024
    [(1, 22 / 1024 + 1e-9, 1), (1, 22 / 1024 - 1e-9, -1), (0, 2 / 1024 - 1e-9, -1), (5, 0.9, -1)],
)
def test_predict_abstains_by_the_two_sided_test(monkeypatch, second, alpha, answer):
    votes = np.array([1] * (10 - second) + [0] * second)
    script(monkeypatch, lambda x: np.eye(2)[votes])
    smoothed = smooth(linear(W, B), 0.5, samples=10, alpha=alpha)
    np.testing.assert_array_equal(smoothed.predict(np.zeros((1, 3), "float32")), [answer])


def test_accuracy_counts_abstentions_as_wrong():
    d = np.array([1.0, -1.0, 1.0, 1e-4])
    smoothed = smooth(linear(W, B), 0.5, samples=200, selection=20)
    x, y = at_distance(d), np.array([1, 0, 0, 1])
    labels, radii = smoothed.radii(x)
    assert labels.tolist() == [1, 0, 1, -1]
    found = smoothed.accuracy(x, y, (0.1, radii[0], 9.0))
    assert found["clean"] == 0.5 and found["abstained"] == 0.25
    above = float(np.mean(radii[:2] > radii[0]))  # of two images, strictly above
    assert found["certified"] == {0.1: 0.5, float(radii[0]): above / 2, 9.0: 0.0}
    assert found["settings"] == smoothed.to_dict()


@pytest.mark.parametrize("eps", ["0.1", -0.1, float("nan"), [0.1, None]])
def test_accuracy_refuses_what_is_no_radius(eps):
    smoothed = smooth(linear(W, B), 0.5, samples=2, selection=1)
    with pytest.raises(ValueError, match=r"`eps` must be in \[0, inf\). Received: eps="):
        smoothed.accuracy(at_distance(np.ones(1)), np.array([1]), eps)


def test_progress_is_told():
    told = []
    x = at_distance([0.5, 0.5])
    smooth(linear(W, B), 0.3, samples=10, selection=5, progress=lambda *a: told.append(a)).radii(x)
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("jobs", [None, 2])
def test_a_stopped_run_goes_on_and_ends_with_the_same_radii(jobs, tmp_path):
    if jobs is not None:
        pytest.importorskip("joblib")
    path, x = tmp_path / "state.json", at_distance(np.linspace(-1, 1, 20), 3)
    model, told = linear(W, B), []
    settings = {"sigma": 0.5, "samples": 200, "seed": 5}
    labels, radii = smooth(model, **settings).radii(x)
    assert (labels == smoothing.ABSTAIN).any() and (radii > 0).any()

    def stop(done, total):
        told.append((done, total))
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        smooth(model, **settings, progress=stop).radii(x, checkpoint=path)
    kept = json.loads(path.read_text())["positions"]
    assert 0 < len(kept) < len(x)
    told.clear()
    again = smooth(model, **settings, progress=lambda *now: told.append(now))
    found = again.radii(x, jobs=jobs, checkpoint=path)
    np.testing.assert_array_equal(found[0], labels)
    np.testing.assert_array_equal(found[1], radii)
    assert told[0][0] > len(kept) and told[-1] == (20, 20)
    told.clear()
    shares = again.accuracy(x, np.maximum(labels, 0), 0.1, checkpoint=path)
    assert shares["certified"][0.1] == np.mean(radii > 0.1)
    assert told == []  # all of it was there


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path, x = tmp_path / "state.json", at_distance([-1, 1], 3)
    model, settings = linear(W, B), {"sigma": 0.5, "samples": 100}
    smooth(model, **settings).radii(x, checkpoint=path)
    content = path.read_text()
    for change, what in (
        ({"model": linear(2 * W, B)}, "model's weights"),
        ({"sigma": 0.25}, "settings"),
        ({"seed": 1}, "settings"),
        ({"x": x + np.float32(1e-6)}, "images"),
        ({"indices": [1, 0]}, "images"),
    ):
        call = {"model": model, "x": x, "indices": None, **settings, **change}
        images, indices = call.pop("x"), call.pop("indices")
        with pytest.raises(ValueError, match=f"`checkpoint` must be of .* differs in its {what}"):
            smooth(**call).radii(images, indices=indices, checkpoint=path)
    assert path.read_text() == content
    # more than so many draws can prove, another label, another place, another shape
    for old, new in (("radii", 9.0), ("radii", -1.0), ("labels", -2), ("positions", 2)):
        state = json.loads(content)
        state[old][-1] = new
        path.write_text(json.dumps(state))
        with pytest.raises(ValueError, match="`checkpoint` must hold labels and radii"):
            smooth(model, **settings).radii(x, checkpoint=path)
    for text in ("", "[]", "{}", content[:-9], content.replace('"labels": [', '"labels": [0, ')):
        path.write_text(text)
        with pytest.raises(ValueError, match="state.json is damaged or another file"):
            smooth(model, **settings).radii(x, checkpoint=path)
    with pytest.raises(IsADirectoryError):
        smooth(model, **settings).radii(x, checkpoint=tmp_path)


def test_answers_of_a_refused_model_are_not_kept(tmp_path, monkeypatch):
    path, x = tmp_path / "state.json", at_distance([-1, 1, 2], 3)
    smoothed, written = smooth(linear(W, B), sigma=0.5, samples=100), []

    def add(self, *_):
        self.write()
        written.append(path.exists())

    with monkeypatch.context() as patch:
        patch.setattr(SmoothingCheckpoint, "add", add)
        # what is compared at the end is another answer than at the beginning
        patch.setattr(smoothing, "differs", lambda *_: len(written) == len(x))
        with pytest.raises(ValueError, match="must be a deterministic function of one example"):
            smoothed.radii(x, checkpoint=path)
    assert written == [True] * len(x) and not path.exists()
    # a call that is no good costs nothing
    smoothed.radii(x[:1], checkpoint=path)
    with pytest.raises(ValueError, match="`batch_size` must be"):
        smoothed.radii(x[:1], batch_size=0, checkpoint=path)
    assert path.exists()


def test_noise_is_added_to_the_image_as_it_was_given(monkeypatch):
    # and the sum rounded once, so that rounding is a part of the model and not of the noise
    seen = []

    def record(x):
        seen.append(x.copy())
        return np.tile([0.0, 1.0], (len(x), 1))

    script(monkeypatch, record)
    x = np.array([[1.0 + 2.0**-26, 1e8 + 3.7]])
    smooth(linear(W[:2], B), 2.0**-24, samples=40, selection=10).radii(x)
    noise = np.random.default_rng([0, 0]).standard_normal((50, 2)) * 2.0**-24
    np.testing.assert_array_equal(np.concatenate(seen), (x + noise).astype(np.float32))


def test_large_images_are_smoothed_with_the_rounding_of_the_model():
    # float32 numbers near 2^26 are 8 apart: the answer changes half-way to the next one, 4 away
    model = linear([1.0], -np.float32(2.0**26 + 4))
    x = np.full((30, 1), 2.0**26)
    labels, radii = smooth(model, 6.0, samples=400).radii(x)
    assert (radii[labels == 0] <= 4.0).all() and (labels == 0).sum() > 20
    assert radii.max() > 2.0
    with pytest.raises(ValueError, match="must be at most 1e"):
        smooth(model, 6.0).radii(np.full((1, 1), 1e38))


def test_answers_that_are_not_numbers_count_against():
    inputs = keras.Input((1,))
    # log of a negative number: not a number on one side
    model = keras.Model(inputs, ops.concatenate([ops.log(inputs), 0 * inputs - 99], axis=-1))
    smoothed = smooth(model, 1.0, samples=100, selection=20)
    x = np.array([[0.1], [-4.0], [4.0]], "float32")
    labels, radii = smoothed.radii(x)
    np.testing.assert_array_equal(labels, [-1, -1, 0])
    assert radii[0] == radii[1] == 0 < radii[2] <= 4.0
    np.testing.assert_array_equal(smoothed.predict(x), [-1, -1, 0])


def test_nothing_to_do():
    labels, radii = smooth(linear(W, B), 0.3).radii(np.zeros((0, 3), "float32"))
    assert labels.shape == radii.shape == (0,)


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0.0}, "`sigma` must be"),
        ({"sigma": float("inf")}, "`sigma` must be"),
        ({"samples": 0}, "`samples` must be"),
        ({"selection": 0}, "`selection` must be"),
        ({"alpha": 0.0}, "`alpha` must be"),
        ({"alpha": 1.0}, r"`alpha` must be in \(0, 1\)"),
        ({"seed": -1}, "`seed` must be"),
        ({"batch_size": 0}, "`batch_size` must be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        smooth(linear(W, B), **{"sigma": 0.5, **arguments})


def test_bad_inputs():
    smoothed = smooth(linear(W, B), 0.5)
    for x in (np.zeros((1, 3), "int32"), np.full((1, 3), np.nan), np.zeros(3, "float32")):
        with pytest.raises(ValueError, match="`x` must be a finite float array"):
            smoothed.radii(x)
    for indices in ([1], [-1, 2], [0.5, 1.0]):
        with pytest.raises(ValueError, match="`indices` must be"):
            smoothed.predict(np.zeros((2, 3), "float32"), indices=indices)


def test_models_whose_draws_would_hang_together_are_refused():
    flow = ConvectionDiffusionFlow(operators.Dense(2), inference="random")
    random = keras.Sequential([keras.Input((3,)), flow, keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="is random at inference"):
        smooth(random, 0.5)
    mixing = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2), GraphDiffusion(0.1, graph="knn")]
    )
    with pytest.raises(ValueError, match="mixes the examples"):
        smooth(mixing, 0.5)
    quiet = ConvectionDiffusionFlow(operators.Dense(2), steps=2)
    smooth(keras.Sequential([keras.Input((3,)), quiet, keras.layers.Dense(2)]), 0.5)


def test_settings_as_data():
    assert smooth(linear(W, B), 0.5).to_dict() == {
        "type": "randomised smoothing",
        "sigma": 0.5,
        "samples": 1000,
        "selection": 100,
        "alpha": 0.001,
        "seed": 0,
    }


# --- models that mix a batch, draw, or remember ------------------------------------------------


def mapped(function, name=None):
    """A classifier of three numbers whose first layer hides a function of the batch."""
    inputs = keras.Input((3,))
    hidden = keras.layers.Lambda(function, output_shape=(3,), name=name)(inputs)
    return keras.Model(inputs, keras.layers.Dense(2)(hidden))


def graph(function):
    inputs = keras.Input((3,))
    return keras.Model(inputs, function(inputs))


def dense(x):
    return keras.layers.Dense(2)(x)


class TrainingNorm(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = keras.layers.BatchNormalization()

    def call(self, x):
        return self.norm(x, training=True)


class Draw(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + 1e-3 * keras.random.normal(ops.shape(x), seed=self.generator)


class Counter(keras.layers.Layer):
    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x):
        self.calls.assign_add(1.0)
        return x * (1.0 + 1e-3 * self.calls)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(2)

    def call(self, x):
        return self.head(x - 1e-4 * ops.mean(x, axis=0))


def wrapped(layer):
    return keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(2)])


def called_once(model):
    model(np.zeros((2, 3), "float32"))
    return model


IN_GRAPH = {
    "mean": lambda: graph(lambda x: dense(x - ops.mean(x, axis=0))),
    "mean of all": lambda: graph(lambda x: dense(x - ops.mean(x))),
    "sort": lambda: graph(lambda x: dense(ops.sort(x, axis=0))),
    "cumsum": lambda: graph(lambda x: dense(ops.cumsum(x, axis=0))),
    "flip": lambda: graph(lambda x: dense(ops.flip(x, axis=0))),
    "roll": lambda: graph(lambda x: dense(ops.roll(x, 1, axis=-2))),
    "softmax": lambda: graph(lambda x: keras.layers.Softmax(axis=0)(dense(x))),
    "layer norm": lambda: graph(lambda x: dense(ops.layer_normalization(x, axis=0))),
    "pairs": lambda: graph(
        lambda x: dense(ops.mean(ops.expand_dims(x, 0) - ops.expand_dims(x, 1), axis=1))
    ),
    "attention": lambda: graph(
        lambda x: dense(
            ops.squeeze(
                keras.layers.MultiHeadAttention(2, 2)(ops.expand_dims(x, 0), ops.expand_dims(x, 0)),
                0,
            )
        )
    ),
    "gram": lambda: graph(
        lambda x: dense(ops.matmul(ops.softmax(ops.matmul(x, ops.transpose(x))), x))
    ),
    "einsum": lambda: graph(
        lambda x: dense(ops.einsum("nm,mj->nj", ops.einsum("ni,mi->nm", x, x), x))
    ),
    "transposed": lambda: graph(
        lambda x: dense(ops.transpose(keras.layers.Softmax()(ops.transpose(x))))
    ),
    "nested": lambda: wrapped(graph(lambda x: x - ops.max(x, axis=0))),
}


@pytest.mark.parametrize("make", IN_GRAPH.values(), ids=IN_GRAPH)
def test_operations_that_mix_a_batch_are_refused_by_name(make):
    with pytest.raises(ValueError, match=r"\w+ '[\w/]+' mixes the examples of a batch"):
        smooth(make(), 0.5)


BY_ANSWERS = {
    "lambda": lambda: mapped(lambda x: x - 1e-6 * ops.mean(x, axis=0)),
    "max": lambda: mapped(lambda x: x + 1e-3 * ops.max(x, axis=0)),
    "far away": lambda: mapped(lambda x: x - ops.relu(ops.mean(x, axis=0) - 20.0)),
    "any": lambda: mapped(lambda x: x + ops.cast(ops.any(x > 90.0, axis=0), "float32")),
    "reshape": lambda: graph(
        lambda x: dense(ops.reshape(ops.flip(ops.reshape(x, (3, -1)), -1), (-1, 3)))
    ),
    "pairs": lambda: mapped(
        lambda x: ops.reshape(ops.flip(ops.reshape(x, (-1, 2, 3)), 1), (-1, 3))
    ),
    "length": lambda: mapped(lambda x: x / ops.cast(ops.shape(x)[0], "float32")),
    "place": lambda: mapped(
        lambda x: x + ops.cast(ops.arange(ops.shape(x)[0]), "float32")[:, None]
    ),
    "same draws": lambda: mapped(lambda x: x + keras.random.normal(ops.shape(x), seed=3)),
    "activation": lambda: graph(keras.layers.Dense(2, activation=lambda x: ops.softmax(x, axis=0))),
    "training norm": lambda: wrapped(TrainingNorm()),
    "draws": lambda: wrapped(Draw()),
    "counter": lambda: wrapped(Counter()),
    "subclassed": lambda: called_once(Subclassed()),
    "nested subclass": lambda: wrapped(wrapped(TrainingNorm())),
}


@pytest.mark.parametrize("make", BY_ANSWERS.values(), ids=BY_ANSWERS)
def test_what_no_graph_shows_is_refused_by_the_answers(make):
    smoothed = smooth(make(), 0.5, samples=20, selection=5)
    for ask in (smoothed.radii, smoothed.predict):
        with pytest.raises(ValueError, match="must be a deterministic function of one example. It"):
            ask(normal((2, 3), 0))


def test_call_in_training_mode_is_refused():
    for layer in (keras.layers.BatchNormalization(name="it"), keras.layers.Dropout(0.5, name="it")):
        model = graph(lambda x, layer=layer: dense(layer(x, training=True)))
        with pytest.raises(ValueError, match="'it' is called with `training=True`"):
            smooth(model, 0.5)
        outer = wrapped(model)
        with pytest.raises(ValueError, match="/it' is called with `training=True`"):
            smooth(outer, 0.5)


def test_memory_of_many_calls_is_seen_at_the_end():
    """A layer that changes its mind after its 60th call: its count is a setting, hence traced."""

    class Late(keras.layers.Layer):
        count = 0

        def call(self, x):
            self.count += 1
            return x if self.count < 60 else -x

    smoothed = smooth(wrapped(Late()), 0.5, samples=20, selection=5)
    x = normal((40, 3), 0)
    with pytest.raises(ValueError, match="or with what was asked before"):
        smoothed.radii(x)


def test_two_points_with_opposite_labels_are_not_both_certified():
    """Sign of the difference from the batch mean: every noisy batch answers for its own image."""

    def centred(x):
        return 100.0 * (ops.mean(x, axis=0, keepdims=True) + 0.0 * x)

    inputs = keras.Input((1,))
    for mean in (centred(inputs), keras.layers.Lambda(centred, output_shape=(1,))(inputs)):
        with pytest.raises(ValueError, match="mixes the examples of a batch"):
            model = keras.Model(inputs, ops.concatenate([-mean, mean], axis=-1))
            smooth(model, 0.25, samples=100, selection=20).radii(
                np.array([[-0.04], [0.04]], "float32")
            )


HARMLESS = {
    "norm": lambda: wrapped(keras.layers.BatchNormalization()),
    "dropout": lambda: wrapped(keras.layers.Dropout(0.5)),
    "noise": lambda: wrapped(keras.layers.GaussianNoise(0.5)),
    "layer norm": lambda: wrapped(keras.layers.LayerNormalization()),
    "attention": lambda: graph(
        lambda x: dense(
            keras.layers.Flatten()(
                keras.layers.MultiHeadAttention(1, 2)(*2 * [keras.layers.Reshape((3, 1))(x)])
            )
        )
    ),
    "merged axes": lambda: graph(
        lambda x: dense(ops.reshape(ops.reshape(x, (-1, 1)) ** 2, (-1, 3)))
    ),
    "time first": lambda: graph(
        lambda x: dense(ops.transpose(ops.softmax(ops.transpose(x), axis=0)))
    ),
    "copies": lambda: graph(
        lambda x: dense(ops.mean(ops.reshape(ops.repeat(x, 4, axis=0), (-1, 4, 3)), axis=1))
    ),
    "subclassed layer": lambda: wrapped(keras.layers.Lambda(ops.tanh, output_shape=(3,))),
    "reductions": lambda: graph(lambda x: dense(x - ops.mean(x, axis=-1, keepdims=True))),
    "bfloat16": lambda: keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(64, dtype="bfloat16"), keras.layers.Dense(2)]
    ),
    "constant": lambda: graph(lambda x: dense(0.0 * x)),
    "infinite": lambda: graph(lambda x: ops.concatenate([x, ops.exp(1e3 * x)], axis=-1)),
    "whole numbers": lambda: wrapped(
        keras.Sequential(
            [
                keras.layers.Lambda(lambda x: ops.cast(x > 0, "int32"), output_shape=(3,)),
                keras.layers.Embedding(2, 2),
                keras.layers.Flatten(),
            ]
        )
    ),
}


@pytest.mark.parametrize("make", HARMLESS.values(), ids=HARMLESS)
def test_models_that_treat_each_example_by_itself_are_not_refused(make):
    smoothed = smooth(make(), 0.5, samples=20, selection=5, batch_size=16)
    smoothed.radii(normal((2, 3), 0))
    smoothed.predict(normal((2, 3), 0))


@pytest.mark.skipif(backend.name() == "jax", reason="float64 is off on JAX by default")
def test_a_float64_model_is_smoothed():
    model = keras.Sequential(
        [keras.Input((3,), dtype="float64"), keras.layers.Dense(2, dtype="float64")]
    )
    smooth(model, 0.5, samples=20, selection=5).radii(normal((2, 3), 0).astype("float64"))


def test_settings_and_weights_of_now_are_smoothed():
    scale = keras.layers.Rescaling(1.0)
    model = keras.Sequential([keras.Input((3,)), scale, *linear(W, B).layers])
    smoothed = smooth(model, 0.3, samples=40)
    x = at_distance([1.5, 1.5])
    assert smoothed.radii(x)[0].tolist() == [1, 1]
    scale.scale = -1.0
    assert smoothed.radii(x)[0].tolist() == [0, 0]
    scale.scale = 1.0
    model.layers[-1].set_weights([w * -1 for w in model.layers[-1].get_weights()])
    assert smoothed.radii(x)[0].tolist() == [0, 0]
