"""The smoothed classifier beside the network: measured, on the card, on the leaderboard."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import normal

import dynzoo
from dynzoo import cli
from dynzoo.certificates import UncertifiableLayerError, smooth, smoothing
from dynzoo.cli.evaluate import show
from dynzoo.robustness.report import percent, render
from dynzoo.zoo import leaderboard
from dynzoo.zoo import measurement as measuring

SETTINGS = {"sigma": 0.1, "samples": 200, "seed": 3}


@pytest.fixture
def network():
    inputs = keras.Input((4, 4, 1))
    features = keras.layers.Flatten()(inputs)
    head = keras.layers.Dense(3, kernel_initializer=keras.initializers.Orthogonal(seed=1))
    model = keras.Model(inputs, head(features))
    x = np.clip(0.5 + normal((12, 4, 4, 1), 1, 0.2), 0, 1)
    return model, x, model.predict(x, verbose=0).argmax(axis=1)


def measured(model, x, y, **arguments):
    few = {"smoothing": 0.1, "smoothing_samples": 200, "smoothing_limit": 10, "seed": 3}
    return measuring.measure(model, x, y, eps=[0.01, 0.1], attacks="none", **{**few, **arguments})


def test_numbers_are_those_of_the_smoothed_classifier(network, capsys):
    model, x, y = network
    found = measured(model, x, y, report=True, verbose=1)
    expected = smooth(model, **SETTINGS).accuracy(x[:10], y[:10], [0.01, 0.1])
    assert found.smoothed == {**expected, "images": 10}
    assert 0 < expected["certified"][0.1] < expected["clean"]
    assert "smoothing: 10 of 10 images" in capsys.readouterr().out
    assert found.report.smoothed == found.smoothed
    page = render(found.report)
    assert "smoothed classifier, 10 images" in page
    assert f"<td>certified at 0.1</td><td>{percent(expected['certified'][0.1])}</td>" in page
    show(found, "small")
    out = capsys.readouterr().out
    assert "under noise of 0.1, 10 images" in out and "200 draws" in out
    assert measured(model, x, y, smoothing=None).smoothed is None


def test_the_card_says_what_holds_for_which_classifier(network, tmp_path):
    model, x, y = network
    folder = tmp_path / "small"
    dynzoo.save_to_preset(model, folder, {"name": "small"})
    found = measured(model, x, y)
    about = measuring.update_card(folder, found, {"split": "test"})
    certified = found.smoothed["certified"]
    assert about["smoothed_certified_accuracy"] == {str(e): v for e, v in certified.items()}
    assert about["smoothing"] == {**SETTINGS, "selection": 100, "alpha": 0.001, "images": 10}
    card = (folder / "README.md").read_text()
    assert "smoothed, certified" in card and f"{100 * certified[0.1]:.2f} %" in card
    assert "standard deviation 0.1 on the pixels" in card and "200 draws" in card
    assert "not for the network without noise" in card
    # left where certified numbers alone are measured anew, gone where all are
    without = measured(model, x, y, smoothing=None)
    kept = measuring.update_card(folder, without, {"command": "again"}, keep_attacks=True)
    assert kept["smoothing"] == about["smoothing"]
    assert kept["smoothed_certified_accuracy"] == about["smoothed_certified_accuracy"]
    gone = measuring.update_card(folder, without, {})
    assert not [key for key in gone if key.startswith("smooth")]
    assert "smoothed" not in (folder / "README.md").read_text()


def test_the_leaderboard_has_a_column_for_it():
    about = {"dataset": "cifar10", "smoothed_certified_accuracy": {"36/255": 0.615}}
    (row,) = leaderboard.leaderboard({"noisy": about}, literature=False)
    assert row["smoothed_36"] == "61.50"
    assert "smoothed, certified 36/255" in leaderboard.to_markdown([row])


def test_the_command_writes_all_of_it(network, tmp_path, monkeypatch, capsys):
    model, x, y = network
    monkeypatch.chdir(tmp_path)
    x = np.round(x * 255).astype("uint8")
    np.savez("data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    dynzoo.save_to_preset(model, "small", {"name": "small"})
    command = (
        "evaluate small --data data.npz --attacks none --eps 0.01 --update-card --output r.json "
        "--smoothing 0.1 --smoothing-samples 150 --smoothing-limit 5"
    )
    assert cli.main(command.split()) == 0
    again = [*command.split(), "--checkpoint", "state.npz"]
    assert cli.main(again) == 0
    assert len(json.loads(Path("state.npz.smoothing.json").read_text())["radii"]) == 5
    asked = []
    monkeypatch.setattr(smoothing, "answers", asked.append)
    assert cli.main(again) == 0  # all of it is there
    assert not asked
    assert "under noise of 0.1, 5 images" in capsys.readouterr().out
    about = json.loads((tmp_path / "small" / "metadata.json").read_text())
    assert about["smoothing"]["samples"] == 150
    options = "--smoothing 0.1 --smoothing-samples 150 --smoothing-limit 5"
    assert about["evaluation"]["command"].endswith(options)


def test_radii_are_of_the_l2_norm(network):
    with pytest.raises(ValueError, match="`smoothing` has L2 radii"):
        measured(*network, norm="linf")
    with pytest.raises(ValueError, match="`sigma` must be"):
        measured(*network, smoothing=-1.0)


@pytest.fixture
def uncertifiable(network):
    inputs = keras.Input((4, 4, 1))
    features = keras.layers.LayerNormalization()(keras.layers.Flatten()(inputs))
    head = keras.layers.Dense(12, kernel_initializer=keras.initializers.Orthogonal(seed=1))
    model = keras.Model(inputs, head(features))
    y = model.predict(network[1], verbose=0).argmax(axis=1)
    y[:3] = (y[:3] + 1) % 12
    return model, network[1], y


def test_a_network_without_a_certificate_is_measured_too(uncertifiable, tmp_path, capsys):
    model, x, y = uncertifiable
    found = measured(model, x, y)
    assert found.clean == 0.75 and found.clean <= found.top5 and found.smoothed["images"] == 10
    assert found.certified == {} and found.lipschitz is None and found.body_lipschitz is None
    assert "layer_normalization" in found.uncertified
    dynzoo.save_to_preset(model, tmp_path / "free", {"name": "free"})
    about = measuring.update_card(tmp_path / "free", found, {"split": "test"})
    assert not {"lipschitz", "certified_accuracy", "certified_top5_accuracy"} & set(about)
    card = (tmp_path / "free" / "README.md").read_text()
    assert "| L2 radius | smoothed, certified |" in card and "a proof about one input" not in card
    show(found, "free")
    assert "no certificate: Layer 'layer_normalization" in capsys.readouterr().out
    attacked = measuring.measure(model, x, y, eps=[0.05], attacks="fast", attack_limit=8)
    (_, clean, *_), (eps, certified, *_, robust) = attacked.rows()
    assert clean == 0.75 and eps == 0.05 and certified is None and 0 <= robust <= 1
    show(attacked, "free")
    assert "right, 12 images" in capsys.readouterr().out


def test_what_needs_the_certificate_says_so(uncertifiable):
    refused = pytest.raises(UncertifiableLayerError, match="layer_normalization")
    for asked in (
        {"attacks": "none"},
        {"attacks": "fast", "audit": True},
        {"attacks": "fast", "local": "crown"},
        {"attacks": "none", "smoothing": 0.1, "prediction_sets": 0.1},
    ):
        with refused:
            measuring.measure(*uncertifiable, eps=[0.05], **asked)


@pytest.mark.parametrize("bad", [[1], {"sigma": "0.1"}, {"sigma": float("inf")}])
def test_settings_that_are_no_numbers_are_refused(network, tmp_path, bad):
    dynzoo.save_to_preset(network[0], tmp_path / "small", {"name": "small"})
    file = tmp_path / "small" / "metadata.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "smoothing": bad}))
    with pytest.raises(ValueError, match="smoothing must be|Infinity"):
        dynzoo.from_preset(tmp_path / "small")
