"""Corruptions, noise, smoothing, local certificates, audits in processes: the bits of one."""

import json
import types

import keras
import numpy as np
import pytest

import dynzoo
from dynzoo.certificates import audit, certify_local, smooth
from dynzoo.certificates.local import parts
from dynzoo.cli.program import main


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.random((18, 16, 16, 3), dtype="float32"), rng.integers(0, 3, 18)


def network(noisy=False):
    keras.utils.set_random_seed(3)
    layers = [keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3, activation="relu")]
    if noisy:
        layers.append(AlwaysNoise())
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(3)])


class AlwaysNoise(keras.layers.Layer):
    random_at_inference = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), stddev=3.0, seed=self.generator)


@pytest.mark.parametrize("noisy", [False, True])
def test_corruptions(images, noisy):
    model, seen = network(noisy), []
    given = {"names": ["fog", "snow"], "severities": [1, 5], "batch_size": 7, "seed": 4}
    one = dynzoo.evaluate_corruptions(model, *images, **given)
    two = dynzoo.evaluate_corruptions(
        model, *images, **given, jobs=2, progress=lambda *told: seen.append(told)
    )
    np.testing.assert_array_equal(one.correct, two.correct)
    assert one.clean == two.clean and 0 < one.correct.mean() < 1
    assert seen == [(18 * k, 72) for k in range(1, 5)]


def test_noise_curves(images):
    model, seen = network(noisy=True), []
    given = {"kinds": ["gaussian"], "levels": [0.3, 3.0], "draws": 2, "batch_size": 5}
    one = dynzoo.noise_curve(model, *images, **given)
    two = dynzoo.noise_curve(
        model, *images, **given, jobs=2, progress=lambda *told: seen.append(told)
    )
    np.testing.assert_array_equal(one.accuracies["gaussian"], two.accuracies["gaussian"])
    assert len(np.unique(one.accuracies["gaussian"])) > 1
    assert seen == [(k, 4) for k in range(1, 5)]


def test_smoothing(images):
    seen = []
    smoothed = smooth(network(), 0.5, samples=60, selection=10, alpha=0.1, batch_size=32)
    one = smoothed.radii(images[0])
    smoothed.progress = lambda *told: seen.append(told)
    two = smoothed.radii(images[0], jobs=2)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(np.unique(one[1])) > 2
    assert seen[-1] == (18, 18)


# --- local certificates ---


def told(local):
    seen = []
    local.tick = seen.append
    return seen


@pytest.fixture(scope="module")
def certified():
    """Local certificates by their methods; the complete one of few units, which are soon split."""
    model, dense = network(), keras.layers.Dense
    keras.utils.set_random_seed(3)
    layers = [keras.Input((16, 16, 3)), keras.layers.Flatten(), dense(6, "relu"), dense(3)]
    few = keras.Sequential(layers)
    return {
        "movement": certify_local(model, iterations=3),
        "alpha-crown": certify_local(model, iterations=2, method="alpha-crown"),
        "complete": certify_local(few, method="complete", time_limit=600.0),
    }


@pytest.mark.parametrize("method", ["movement", "alpha-crown"])
def test_local_radii(certified, images, method):
    local, x = certified[method], images[0]
    one = local.radii(x)
    seen = told(local)
    two = local.radii(x, jobs=2)
    assert sum(seen) == len(x) and max(seen) == 4
    eps = float(np.median(one[1]))
    held = local.certified(x, eps), local.certified(x, eps, jobs=2)
    for a, b in [*zip(one, two, strict=True), *zip(*held, strict=True)]:
        np.testing.assert_array_equal(a, b)
    assert len(np.unique(one[1])) > 2 and 0 < held[0][1].sum() < len(x)
    if method == "movement":
        some = x[:9], 0.1
        np.testing.assert_array_equal(local.slopes(*some), local.slopes(*some, jobs=2))


def test_local_decisions(certified, images):
    local, x = certified["complete"], images[0][:8]
    eps = 1.01 * float(np.median(local.radii(x)[1]))
    one, seen = local.decide(x, eps), told(local)
    two = local.decide(x, eps, jobs=2)
    for name in ("labels", "outcomes", "points"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert {"certified", "falsified"} <= set(one.outcomes) and sum(seen) == len(x)


def test_the_model_of_a_local_certificate_must_stay_what_it_was(images):
    local = certify_local(network(), iterations=1, method="crown", exact_units=5)
    with pytest.warns(UserWarning, match="exact_units=5") as heard:
        local.radii(images[0], jobs=2)
    assert sum(issubclass(w.category, UserWarning) for w in heard) == 1  # for all workers
    sent = parts._Sent(local, local._settings())
    # what a worker would have, had the activation been lost on the way
    local.certificate._model.layers[0].activation = keras.activations.linear
    with pytest.raises(ValueError, match="A worker cannot make model"):
        sent.local  # noqa: B018
    with pytest.raises(ValueError, match="Certify it again"):
        local.radii(images[0], jobs=2)


def test_an_evaluation_shares_its_certificate(certified, images):
    local, (x, y) = certified["complete"], images
    smoothed = smooth(local.certificate._model, 0.5, samples=60, selection=10, alpha=0.1)
    for claim in (local, smoothed):
        given = {"eps": (0.02, 0.2), "attacks": "none", "certificate": claim, "checks": "quick"}
        one = dynzoo.evaluate(local.certificate._model, x[:8], y[:8], **given)
        two = dynzoo.evaluate(local.certificate._model, x[:8], y[:8], **given, jobs=2)
        assert one.decisions == two.decisions and one.smoothed == two.smoothed
        assert one.certified == two.certified
        np.testing.assert_array_equal(one.per_image["radii"], two.per_image["radii"])


# --- audits ---


@keras.saving.register_keras_serializable("tests")
class Turned(keras.layers.Layer):
    def call(self, x):
        return 2.0 * keras.ops.flip(x, axis=-1)


def test_an_audit(images):
    inner = network()
    model = keras.Model(inner.inputs, Turned()(inner.outputs[0]))
    claim = types.SimpleNamespace(lipschitz=1e3)
    given = {"pairs": 20, "steps": 6, "restarts": 2, "certificate": claim, "seed": 3}
    one, two = (audit(model, images[0], **given, jobs=jobs) for jobs in (1, 2))
    assert one.to_dict() == two.to_dict()
    np.testing.assert_array_equal(one.pairs, two.pairs)
    assert audit(model, images[0], **given).slope == pytest.approx(one.slope, rel=1e-3)


# --- the command ---


@pytest.mark.parametrize(
    "asked", [["--local", "crown"], ["--audit"], ["--attacks", "fast", "--local", "movement"]]
)
def test_the_command(asked, images, tmp_path):
    x, y = images
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    dynzoo.save_to_preset(network(), tmp_path / "preset")
    given = ["evaluate", str(tmp_path / "preset"), "--data", str(tmp_path / "d.npz")]
    given += ["--eps", "0.02,0.1", *([] if "fast" in asked else ["--attacks", "none"]), *asked]
    reports = []
    for jobs in ("1", "2"):
        file = tmp_path / f"{jobs}.json"
        assert main([*given, "--jobs", jobs, "--output", str(file)]) == 0
        reports.append(json.loads(file.read_text()))
    one, two = reports
    assert one["certified"] == two["certified"] and one["robust"] == two["robust"]
    assert one["per_image"] == two["per_image"]
    assert one.get("sections") == two.get("sections")


@pytest.mark.parametrize("jobs", [0, 1.5, -2])
def test_a_number_of_processes_that_is_none(certified, images, jobs):
    with pytest.raises(ValueError, match="`jobs` must be"):
        dynzoo.evaluate_corruptions(network(), *images, names=["fog"], jobs=jobs)
    with pytest.raises(ValueError, match="`jobs` must be"):
        dynzoo.noise_curve(network(), *images, jobs=jobs)
    with pytest.raises(ValueError, match="`jobs` must be"):
        smooth(network(), 0.5).radii(images[0], jobs=jobs)
    for local in certified.values():
        with pytest.raises(ValueError, match="`jobs` must be"):
            local.radii(images[0], jobs=jobs)
        with pytest.raises(ValueError, match="`jobs` must be"):
            local.certified(images[0], 0.1, jobs=jobs)
    with pytest.raises(ValueError, match="`jobs` must be"):
        audit(network(), pairs=2, steps=1, jobs=jobs)
