"""What an evaluation makes of the certificate it is given: whose it is, and in which norm."""

import keras
import numpy as np
import pytest
from robustness_fixtures import held_out, ridge

from dynzoo.attacks import PGD
from dynzoo.certificates import certify, certify_local
from dynzoo.robustness.comparison import compare
from dynzoo.robustness.evaluation import evaluate
from dynzoo.robustness.refutation import CertificateViolation
from dynzoo.robustness.saved_report import read_report

EPS = 0.01


def network(seed):
    keras.utils.set_random_seed(seed)
    entrance = keras.Input((8, 8, 1))
    x = keras.layers.Dense(16, "relu")(keras.layers.Flatten()(entrance))
    return keras.Model(entrance, keras.layers.Dense(3)(x), name=f"network_{seed}")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((40, 8, 8, 1)).astype("float32")


@pytest.mark.parametrize("kind", [certify, certify_local], ids=["global", "local"])
def test_a_certificate_of_another_model_is_refused(kind, images):
    model, y = network(0), np.zeros(40, int)
    with pytest.raises(ValueError, match="'network_0'. Received: that of another model, 'network_"):
        evaluate(model, images, y, attacks="none", certificate=kind(network(1)))


@pytest.mark.parametrize("method", ["crown", "complete"])
def test_linf_claims_are_counted_in_their_own_norm(method, images, tmp_path):
    models = network(0), network(1)
    y = models[0].predict(images, verbose=0).argmax(axis=1)
    reports = []
    for model in models:
        local = certify_local(model, method=method, norm="linf", time_limit=20)
        labels, held = local.certified(images, EPS)
        made = evaluate(model, images, y, "linf", EPS, "none", certificate=local)
        share = made.certified[EPS]
        # what is decided at the radius itself is no less than what a search for radii finds
        assert share >= np.mean(held & (labels == y))
        assert method == "complete" or share == np.mean(held & (labels == y))
        # the Lipschitz bound alone proves no more, and less where many answers are right
        alone = evaluate(model, images, y, "linf", EPS, "none").certified[EPS]
        assert alone <= share and (model is models[1] or alone < share)
        assert np.mean(made.radii() > EPS) == share
        assert "on Linf balls" in made.save(tmp_path / "page.html").read_text()
        reports.append(made)
    files = [r.save(tmp_path / f"{i}.json") for i, r in enumerate(reports)]
    for given in (reports, files):
        first, second = compare(given, ["a", "b"]).differences("a", "b", EPS)
        shares = [round(40 * report.certified[EPS]) for report in reports]
        assert first - second == shares[0] - shares[1] and first > 0
    np.testing.assert_array_equal(
        read_report(files[0]).per_image["linf_radii"], reports[0].per_image["linf_radii"]
    )


@pytest.mark.parametrize("method", ["crown", "complete"])
def test_linf_claims_prove_nothing_of_longer_l2_changes(method, images):
    model = network(0)
    local = certify_local(model, method=method, norm="linf", time_limit=5)
    with pytest.raises(ValueError, match="norm of the evaluation, 'l2'. Received: .*'linf'"):
        evaluate(model, images, np.zeros(40, int), "l2", EPS, "none", certificate=local)


class OnCubes:
    """Claims the same radius in the maximum norm for each image."""

    norm = "linf"

    def __init__(self, model, radius):
        self.model, self.radius = model, radius

    def radii(self, x, batch_size=256):
        labels = self.model.predict(x, verbose=0).argmax(axis=1)
        return labels, np.full(len(x), self.radius)


def test_a_wrong_claim_in_linf_is_refuted(tmp_path):
    model, (x, y) = ridge(), held_out(40)
    attacks = [PGD("linf", 0.2, steps=10)]
    with pytest.raises(CertificateViolation, match="up to Linf radius 0.25") as error:
        evaluate(model, x, y, "linf", 0.2, attacks, certificate=OnCubes(model, 0.25))
    found = error.value
    assert found.norm == "linf" and found.distance < found.radius == 0.25
    gone = np.abs(found.x_adv.astype(np.float64) - found.x.astype(np.float64)).max()
    assert gone == found.distance
    with np.load(found.save(tmp_path / "found.npz")) as saved:
        assert saved["norm"] == "linf"
    # the same attack leaves a claim alone that it does not reach
    made = evaluate(model, x, y, "linf", 0.2, attacks, certificate=OnCubes(model, 1e-6))
    assert made.certified[0.2] == 0.0
