"""`evaluate` and its report: the sandwich of certificate and attack, the checks, the page."""

import base64
import json
import re
import types

import keras
import numpy as np
import pytest
from keras import ops
from robustness_fixtures import MarginCertificate, centroids, held_out, ridge
from scipy import stats

from dynzoo.attacks import FGSM, PGD, Attack
from dynzoo.certificates import certify
from dynzoo.inference.passes import predict_logits
from dynzoo.plots import (
    certified_curve,
    displayable,
    eps_text,
    robustness_figure,
    wilson_interval,
)
from dynzoo.robustness.checks.warning import EvaluationWarning
from dynzoo.robustness.comparison import compare
from dynzoo.robustness.evaluation import CertificateViolation, evaluate
from dynzoo.utils.formatting import percent
from dynzoo.zoo.measurement import measure

EPS = (0.1, 0.3, 0.5)


@pytest.fixture(scope="module")
def nearest():
    return centroids()


@pytest.fixture(scope="module")
def report(nearest):
    x, y = held_out()
    names = [f"<digit {k}>" for k in range(10)]
    certificate = MarginCertificate(nearest)
    return evaluate(
        nearest, x, y, eps=EPS, attacks="pgd_margin", certificate=certificate, class_names=names,
        title="Digits & <means>",
    )  # fmt: skip


def names_of(report):
    return {w.name for w in report.warnings}


def test_margin_attacks_are_exact_on_the_1_lipschitz_fixture(report):
    """Closed form: 186, 154 and 123 of 200 are robust; 164, 87 and 30 are certified."""
    assert report.clean == 187 / 200
    robust = [round(200 * report.robust[e]) for e in EPS]
    assert all(exact <= n <= exact + 1 for n, exact in zip(robust, (186, 154, 123), strict=True))
    assert [round(200 * report.certified[e]) for e in EPS] == [164, 87, 30]
    assert report.warnings == []


def test_certified_attacked_and_clean_are_ordered_image_by_image(report):
    correct, robust = report.per_image["correct"], report.per_image["robust"]
    assert robust.shape == (3, 200)
    for k, e in enumerate(EPS):
        assert not np.any(robust[k] & ~correct)
        assert not np.any((report.per_image["radii"] > e) & ~robust[k])
    assert np.all(robust[1:] <= robust[:-1])


def test_examples_are_what_they_say(nearest, report):
    assert 3 <= len(report.examples) <= 8
    assert len({e.eps for e in report.examples}) == 3 or len(report.examples) == 8
    for e in report.examples:
        both = predict_logits(nearest, np.stack([e.x, e.x_adv])).argmax(axis=1)
        assert both.tolist() == [e.label, e.fooled_label] and e.label != e.fooled_label
        assert np.linalg.norm(e.x_adv.astype("float64") - e.x) == pytest.approx(e.distance)
        assert e.distance <= e.eps


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_inflated_certificate_is_refuted(nearest, norm):
    x, y = held_out()
    inflated = MarginCertificate(nearest, factor=4.0)
    eps = 0.3 if norm == "l2" else 0.05
    with pytest.raises(CertificateViolation, match="is certified up to L2 radius") as caught:
        evaluate(nearest, x, y, norm=norm, eps=eps, attacks="fast", certificate=inflated)
    error = caught.value
    assert error.distance < error.radius and str(error.index) in str(error)
    np.testing.assert_array_equal(error.x, x[error.index])
    gone = np.linalg.norm(error.x_adv.astype("float64") - error.x)
    assert gone == pytest.approx(error.distance, rel=1e-12)
    both = predict_logits(nearest, np.stack([error.x, error.x_adv])).argmax(axis=1)
    assert both[0] != both[1]


def test_certificate_of_another_model_is_refuted_without_an_attack(nearest):
    class Wrong(MarginCertificate):
        def radii(self, x, batch_size=256):
            labels, radii = super().radii(x)
            return (labels + 1) % 10, radii

    with pytest.raises(CertificateViolation) as caught:
        evaluate(nearest, *held_out(20), eps=0.1, attacks="fast", certificate=Wrong(nearest))
    assert caught.value.distance == 0.0


def test_linf_certificate_is_the_l2_one_of_the_ball_around(nearest):
    x, y = held_out()
    result = evaluate(
        nearest, x, y, "linf", (0.1 / 8, 0.3 / 8), "fast", certificate=MarginCertificate(nearest)
    )
    assert [round(200 * v) for v in result.certified.values()] == [164, 87]
    assert all(result.certified[e] <= result.robust[e] for e in result.robust)
    np.testing.assert_allclose(result.radii() * 8, result.per_image["radii"])


def test_model_without_certificate_gets_a_named_warning():
    class Unknown(keras.layers.Layer):
        def call(self, x):
            return ops.sin(x)

    layers = [keras.Input((64,)), Unknown(name="mystery"), keras.layers.Dense(10)]
    result = evaluate(keras.Sequential(layers), *held_out(20), eps=0.1, attacks="fast")
    assert result.certified == {0.1: None}
    assert "not-certified" in names_of(result)
    assert any("mystery" in w.text for w in result.warnings)
    assert result.radii() is None and result.to_dict()["certified"] == {"0.1": None}


def test_certificate_is_computed_by_default():
    result = evaluate(ridge(), *held_out(), eps=(0.1, 0.3), attacks="fast")
    assert all(0.0 < result.certified[e] <= result.robust[e] for e in (0.1, 0.3))
    assert result.details["certificate"]["lipschitz"] > 0


@pytest.mark.parametrize("which", ["first", "all", "none"])
def test_certified_images_are_attacked_as_asked(nearest, which):
    x, y = held_out(100)
    attacks = [PGD(steps=5, loss="ce", random_start=False), PGD(steps=20, random_start=False)]
    certificate = MarginCertificate(nearest)
    result = evaluate(
        nearest, x, y, eps=EPS, attacks=attacks, certificate=certificate, attack_certified=which
    )
    for radius, e in enumerate(EPS):
        tried = result.outcomes.attacked[result.per_image["radii"] > e, :, radius]
        assert tried[:, 0].all() == (which != "none") and tried[:, 1].all() == (which == "all")
    reference = evaluate(nearest, x, y, eps=EPS, attacks=attacks, certificate=False)
    assert result.robust == reference.robust  # what is proved cannot be broken


def test_no_certificate_if_none_is_wanted(nearest):
    result = evaluate(nearest, *held_out(20), eps=0.1, attacks="fast", certificate=False)
    assert result.certified == {0.1: None} and result.warnings == []


def test_result_is_reproducible_and_follows_the_seed(nearest):
    x, y = held_out(60)
    kwargs = dict(eps=(0.3, 0.5), attacks=[PGD(steps=3, restarts=2)], certificate=False)
    first = evaluate(nearest, x, y, **kwargs)
    again = evaluate(nearest, x, y, batch_size=13, **kwargs)
    np.testing.assert_array_equal(first.per_image["robust"], again.per_image["robust"])


def test_attacks_may_be_names_objects_or_factories(nearest):
    x, y = held_out(40)
    attacks = [
        "fgsm",
        PGD(eps=9.0, steps=3, step_size=0.9),
        lambda norm, eps, seed: FGSM(norm, eps),
    ]
    result = evaluate(nearest, x, y, eps=(0.2, 0.4), attacks=attacks, certificate=False, seed=4)
    runs = result.details["runs"]
    assert [r["attack"] for r in runs] == ["FGSM", "PGD", "FGSM"] * 2
    assert [r["eps"] for r in runs] == [0.2] * 3 + [0.4] * 3
    assert runs[1]["config"]["step_size"] == pytest.approx(0.02)
    broken = sum(r["broken"] for r in runs)
    assert result.robust[0.4] == pytest.approx(result.clean - broken / 40)
    one = evaluate(nearest, x, y, eps=0.2, attacks=PGD, certificate=False)
    assert one.details["runs"][0]["attack"] == "PGD"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l1"}, "`norm` must be one of"),
        ({"norm": "Linf", "attacks": "none"}, "`norm` must be one of 'l2', 'linf'"),
        ({"batch_size": 0, "attacks": "none"}, "`batch_size` must be a positive integer"),
        ({"seed": -1, "attacks": "none"}, "`seed` must be a non-negative integer"),
        ({"eps": ()}, "`eps` must hold at least one"),
        ({"eps": (0.1, -1)}, "`eps` must be in"),
        ({"eps": "36/255"}, "`eps` must be in .*Received: eps='36/255'"),
        ({"attacks": "strong"}, "`attacks` must name one of"),
        ({"attack_certified": True}, "`attack_certified` must be"),
        ({"checks": "none"}, "`checks` must be"),
        ({"attacks": []}, "at least one attack"),
        ({"attacks": [3]}, "names, attacks or factories"),
        ({"attacks": [PGD(norm="linf")]}, "of norm='l2'"),
        ({"attacks": [PGD(targeted=True)]}, "must be untargeted"),
        ({"attacks": [lambda norm, eps, seed: None]}, "must return an Attack"),
        ({"x": np.full((20, 64), 2.0)}, r"must lie in \[0, 1\]"),
        ({"y": np.full(20, 10)}, "labels from 0 to 9"),
    ],
)
def test_wrong_arguments(nearest, arguments, message):
    x, y = held_out(20)
    with pytest.raises(ValueError, match=message):
        evaluate(nearest, **{"x": x, "y": y, "certificate": False, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # Of images that are right 0.1 from the answer in L2, none is proved at 0.1 in Linf.
        ({"norm": "Linf"}, "`norm` must be one of 'l2', 'linf'"),
        ({"norm": "l1"}, "`norm` must be one of 'l2', 'linf'"),
        ({"eps": [0.1, 1e308]}, "`eps` must be at most 8, the size of all images"),
        ({"norm": "linf", "eps": [2.0]}, "`eps` must be at most 1, the size of all images"),
    ],
)
def test_what_is_certified_alone_has_a_norm_and_radii(nearest, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(nearest, *held_out(4), **{"attacks": "none", "eps": [0.1], **arguments})


def test_model_with_nan_weights_is_refused():
    model = ridge()
    weights = model.layers[0].get_weights()
    weights[0][3, 4] = np.nan
    model.layers[0].set_weights(weights)
    for certificate in (None, False):
        with pytest.raises(ValueError, match=r"NaN|finite"):
            evaluate(model, *held_out(20), eps=0.1, attacks="fast", certificate=certificate)


@pytest.mark.parametrize("certificate", [True, "crown", 0.5, {"lipschitz": 1.0}])
def test_what_is_no_certificate_is_refused(nearest, certificate):
    with pytest.raises(ValueError, match=r"`certificate` must be what .* Received: certificate="):
        evaluate(nearest, *held_out(20), eps=0.1, attacks="none", certificate=certificate)


@pytest.mark.parametrize("shape", [(20, 32), (20, 8, 8, 1)])
def test_images_of_another_shape_are_refused(nearest, shape):
    with pytest.raises(ValueError, match=r"`x` must have the shape of the model's input"):
        evaluate(nearest, np.zeros(shape), np.zeros(20, int), certificate=False)


class Masked(keras.layers.Layer):
    """Rounds its input: the gradient vanishes, the model does not get any more robust."""

    def call(self, x):
        return ops.round(x * 16) / 16


def test_masked_gradients_are_named():
    base = ridge()
    model = keras.Sequential([keras.Input((64,)), Masked(), *base.layers])
    result = evaluate(model, *held_out(), norm="linf", eps=0.02, attacks="fast", certificate=False)
    assert result.robust[0.02] > 0.9  # nonsense, and the report says so:
    assert {"zero-gradients", "unbounded-attack-fails"} <= names_of(result)


def test_probabilities_and_randomness_are_named():
    class Noise(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.draws = np.random.default_rng(0)

        def call(self, x):
            if keras.backend.backend() == "torch":  # eager: a new draw in each pass
                return x + float(self.draws.normal())
            return x

    base = ridge()
    soft = keras.Sequential([keras.Input((64,)), *base.layers, keras.layers.Softmax()])
    result = evaluate(soft, *held_out(20), eps=0.1, attacks="fast", certificate=False)
    assert "probabilities" in names_of(result)
    if keras.backend.backend() == "torch":
        noisy = keras.Sequential([keras.Input((64,)), *base.layers, Noise()])
        result = evaluate(noisy, *held_out(20), eps=0.1, attacks="fast", certificate=False)
        assert "randomised-model" in names_of(result)


def test_attack_that_fails_in_a_larger_ball_is_named_and_carried_over(nearest):
    class Clumsy(PGD):
        """Breaks images up to radius 0.4, and does nothing beyond."""

        def search(self, model, x, *args):
            if self.eps > 0.4:
                return x, np.zeros(len(x))
            return super().search(model, x, *args)

    x, y = held_out()
    result = evaluate(nearest, x, y, eps=(0.3, 0.5), attacks=[Clumsy(steps=20)], certificate=False)
    assert result.robust[0.5] == result.robust[0.3] < result.clean
    assert "attack-not-monotone" in names_of(result)


def test_attack_without_search():
    with pytest.raises(NotImplementedError, match="does not implement `search`"):
        Attack(eps=0.1)(ridge(), *held_out(20))


def test_dictionary_holds_all_that_is_needed_to_repeat(report):
    data = json.loads(json.dumps(report.to_dict(per_image=True), allow_nan=False))
    assert data["norm"] == "l2" and data["images"] == 200 and data["eps"] == list(EPS)
    assert data["robust"]["0.3"] == report.robust[0.3]
    assert data["versions"]["backend"] == keras.backend.backend()
    assert data["versions"]["keras"] == keras.__version__
    assert len(data["runs"]) == 9 and data["seed"] == 0
    assert data["certificate"] == {"type": "margin", "lipschitz": 1.0}
    config = data["runs"][0]["config"]
    assert repr(PGD(**config)) == repr(PGD(eps=0.1, steps=100, random_start=False))
    assert np.array(data["per_image"]["robust"]).mean(axis=1).tolist() == list(
        data["robust"].values()
    )


def test_page_is_complete_and_self_contained(report, tmp_path):
    report.sections = [("Fine-tuning <2>", [("accuracy", 0.987654321)]), ("Note", "a < b")]
    path = report.save(tmp_path / "deep" / "report.html")
    report.sections = []
    page = path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    for text in ("Digits &amp; &lt;means&gt;", "&lt;digit ", "93.5 %", "43.5 %", "L2 norm", "0.3"):
        assert text in page
    for text in ("Fine-tuning &lt;2&gt;", "0.987654", "a &lt; b", "No warnings"):
        assert text in page
    assert "<digit" not in page and "<means>" not in page
    sources = re.findall(r'src="([^"]*)"', page)
    text = re.sub(r'src="[^"]*"', "", page)
    assert not re.search(r"//|<script|<link|href|url\(|@import", text)
    assert len(sources) == 1 + 3 * len(report.examples)
    for i, source in enumerate(sources):
        kind, data = source.split(",")
        assert kind == f"data:image/{'png' if i else 'svg+xml'};base64"
        assert base64.b64decode(data).startswith(b"\x89PNG" if i else b"<?xml")
    # who cannot see the pictures reads what they show
    alts = re.findall(r'<img alt="([^"]*)"', page)
    assert len(alts) == len(sources) == len(set(alts))
    assert f"clean {percent(report.clean, 1)}; at " in alts[0]
    for e in EPS:
        shares = f"certified {percent(report.certified[e], 1)} and under attack "
        shares += percent(report.robust[e], 1)
        assert shares in alts[0]
    assert re.fullmatch(r"Image \d+, clean: .+", alts[1])
    for query in ("prefers-color-scheme:dark", "max-width:40rem", "@media print"):
        assert query in page


def test_notebooks_show_numbers_and_curve(report):
    cell = report._repr_html_()
    assert f"{100 * report.clean:.1f} %" in cell and "data:image/svg+xml" in cell
    certificate = certify(ridge())
    shown = certificate._repr_html_()
    assert f"{certificate.lipschitz:.6g}" in shown
    for row in certificate.layers:
        assert row.name in shown
    together = compare([report, report], ["a", "b"])._repr_html_()
    assert "data:image/svg+xml" in together and "95 % interval" in together


def test_report_of_what_is_certified_alone(nearest, tmp_path):
    x, y = held_out(60)
    certificate = MarginCertificate(nearest)
    report = evaluate(nearest, x, y, eps=(0.1, 0.3), attacks="none", certificate=certificate)
    whole = evaluate(nearest, x, y, eps=(0.1, 0.3), attacks="fast", certificate=certificate)
    assert report.clean == whole.clean and report.certified == whole.certified
    assert report.robust == {0.1: None, 0.3: None} and not report.attacked and whole.attacked
    assert report.after_each_attack() == {} and report.examples == []
    left = report.undecided(0.1)
    proved = report.radii() > 0.1
    np.testing.assert_array_equal(left, np.flatnonzero(report.per_image["correct"] & ~proved))
    data = json.loads(report.save(tmp_path / "r.json").read_text())
    assert data["robust"] == {"0.1": None, "0.3": None} and data["per_image"]["robust"] is None
    page = report.save(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "certified and not attacked" in page and "Right and not proved" in page
    for absent in ("under attack", "Attacked images", "Attacker", "survived"):
        assert absent not in page
    (axes,) = report.plot().axes
    labels = axes.get_legend_handles_labels()[1]
    assert "certified" in labels and "under attack" not in labels
    text = report.save(tmp_path / "r.csv").read_text()
    assert text.splitlines()[0] == "image,label,correct,certified_l2_radius"


def test_certified_alone_refuses_what_attacks_are_for(nearest, tmp_path):
    x, y = held_out(4)
    for name, value in (("checkpoint", tmp_path / "c.npz"), ("surrogates", [nearest])):
        with pytest.raises(ValueError, match=f"`{name}` needs attacks"):
            evaluate(nearest, x, y, eps=0.1, attacks="none", **{name: value})


def test_page_shows_warnings_and_missing_numbers(report, tmp_path):
    from dataclasses import replace

    bare = replace(
        report,
        warnings=[EvaluationWarning("some-name", "because 1 < 2")],
        certified=dict.fromkeys(EPS),
        per_image={**report.per_image, "radii": None},
        examples=[],
    )
    page = bare.save(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "some-name" in page and "because 1 &lt; 2" in page and "No warnings" not in page
    assert "No attack changed a correct answer" in page and "&ndash;" in page


def test_save_json_and_wrong_suffix(report, tmp_path):
    path = report.save(tmp_path / "report.json")
    assert json.loads(path.read_text())["clean"] == report.clean
    with pytest.raises(ValueError, match=r"must end in \.html, .* Received: .*report\.pdf"):
        report.save(tmp_path / "report.pdf")
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_failed_save_leaves_the_old_file(report, tmp_path, monkeypatch):
    path = report.save(tmp_path / "report.json")
    before = path.read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        report.save(path)
    assert path.read_text() == before and len(list(tmp_path.iterdir())) == 1


def test_plot_draws_the_numbers(report, tmp_path):
    axes = report.plot(tmp_path / "curve.png").axes[0]
    assert (tmp_path / "curve.png").stat().st_size > 1000
    lines = {line.get_label(): line for line in axes.lines}
    attacked = lines["under attack"].get_xydata()
    np.testing.assert_allclose(attacked[0], [0, report.clean])
    np.testing.assert_allclose(attacked[1:], sorted(report.robust.items()))
    curve = lines["certified"].get_xydata()
    for e in EPS:
        assert curve[curve[:, 0] <= e][-1, 1] == pytest.approx(report.certified[e])
    figure = robustness_figure(0.9, {k / 255: 0.5 for k in range(1, 12)}, None, "linf")
    assert "certified" not in {line.get_label() for line in figure.axes[0].lines}


def test_small_helpers():
    grid, share = certified_curve(np.array([0.0, 0.2, 0.2, 0.5]), 0.4)
    assert grid.tolist() == [0.0, 0.2, 0.4] and share.tolist() == [0.75, 0.25, 0.25]
    assert [eps_text(e) for e in (36 / 255, 0.5, 0.1)] == ["36/255", "0.5", "0.1"]
    low, high = wilson_interval(0.5, 100)
    assert low == pytest.approx(0.4038, abs=1e-4) and high == pytest.approx(0.5962, abs=1e-4)
    assert wilson_interval(0.0, 10)[0] == 0.0 and wilson_interval(1.0, 10)[1] == pytest.approx(1.0)
    assert displayable(np.zeros(64)).shape == (8, 8, 3)
    assert displayable(np.zeros((4, 5, 1))).shape == (4, 5, 3)
    assert displayable(np.zeros(63)) is None and displayable(np.zeros((4, 4, 5))) is None


def test_verbose_prints_progress(nearest, capsys):
    evaluate(nearest, *held_out(20), eps=0.1, attacks="fast", certificate=False, verbose=1)
    assert "broke" in capsys.readouterr().out
    evaluate(nearest, *held_out(20), eps=0.1, attacks="fast", certificate=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("right", "images"), [(0, 10), (3, 10), (250, 256), (1024, 1024)])
def test_wilson_interval_is_that_of_scipy(right, images):
    expected = stats.binomtest(right, images).proportion_ci(method="wilson")
    assert wilson_interval(right / images, images) == pytest.approx(tuple(expected), abs=1e-12)


# --- certificates that decide at each image ----------------------------------------------------


class Deciding(MarginCertificate):
    """Words in place of radii, by the same margins; `norm` and `certificate` as local ones have."""

    def __init__(self, model, norm="l2", factor=1.0):
        super().__init__(model, factor)
        self.norm, self.certificate = norm, MarginCertificate(model, 0.25)

    def decide(self, x, eps, batch_size=256):
        _, radii = self.radii(x)
        words = np.where(radii >= eps, "certified", np.where(radii < 0.5 * eps, "falsified", ""))
        return types.SimpleNamespace(outcomes=np.where(words == "", "unknown", words))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_decisions_are_three_shares_that_the_attacks_test(nearest, norm, tmp_path):
    x, y = (v[:40] for v in held_out())
    eps = (0.02, 0.3) if norm == "l2" else (0.002, 0.03)
    certificate = Deciding(nearest, norm, 1.0 if norm == "l2" else 0.125)
    found = evaluate(
        nearest, x, y, norm, eps=eps, attacks="pgd_margin", certificate=certificate, checks="quick"
    )
    for e in eps:
        shares = found.decisions[e]
        assert sum(shares.values()) == pytest.approx(1.0)
        assert found.certified[e] == shares["certified"] <= found.robust[e]
        assert shares["falsified"] >= 1 - found.clean  # a wrong answer falsifies itself
    assert found.to_dict()["decisions"][repr(eps[0])] == found.decisions[eps[0]]
    page = found.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Decided at the image" in page and "falsified" in page
    with pytest.raises(ValueError, match="in the norm of the evaluation"):
        other = Deciding(nearest, "linf" if norm == "l2" else "l2")
        evaluate(nearest, x, y, norm, eps=eps, attacks="none", certificate=other)


def test_a_wrong_decision_is_refuted(nearest):
    x, y = (v[:60] for v in held_out())
    with pytest.raises(CertificateViolation):
        evaluate(
            nearest, x, y, eps=0.5, attacks="pgd_margin", certificate=Deciding(nearest, factor=20.0)
        )
