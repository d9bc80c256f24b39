"""The first five of many classes: counted, proved, and written on the card and the leaderboard."""

import dataclasses

import numpy as np

import dynzoo
from dynzoo.cli.evaluate import show
from dynzoo.zoo import leaderboard
from dynzoo.zoo import measurement as measuring


def test_top_five_are_counted_with_more_than_ten_classes(tmp_path, capsys):
    model = dynzoo.models.isometric_classifier(
        (8, 8, 3), 12, widths=(16,), steps=(1,), neck_units=16, dense_steps=1, mean=None
    )
    rng = np.random.default_rng(0)
    x, y = rng.random((40, 8, 8, 3), dtype="float32"), np.zeros(40, "int64")
    order = np.argsort(-model.predict(x, verbose=0), axis=1)
    for i, place in enumerate([0, 1, 2, 8]):  # a quarter of the labels each
        y[i::4] = order[i::4, place]
    found = measuring.measure(model, x, y, eps=[0.01, 0.1], attacks="none")
    places, radii = dynzoo.certify(model).topk_radii(x, y, k=5)
    assert (found.clean, found.top5) == (0.25, 0.75) and np.mean(places < 5) == 0.75
    assert found.certified_top5 == {e: np.mean(radii > e) for e in (0.01, 0.1)}
    assert 0 < found.certified[0.01] < found.certified_top5[0.01] <= found.top5
    folder = tmp_path / "twelve"
    dynzoo.save_to_preset(model, folder, {"name": "twelve"})
    about = measuring.update_card(folder, found, {"split": "test"})
    assert about["certified_top5_accuracy"]["0.01"] == found.certified_top5[0.01]
    card = (folder / "README.md").read_text()
    assert f"| 0 (clean) | {100 * found.clean:.2f} % | {100 * found.top5:.2f} % |" in card
    assert "five largest" in card
    show(found, "twelve")
    assert "certified top-5" in capsys.readouterr().out
    few = measuring.update_card(folder, dataclasses.replace(found, top5=None), {})
    assert "top5_accuracy" not in few and "five" not in (folder / "README.md").read_text()


def test_the_leaderboard_has_a_column_for_them():
    about = {
        "name": "hundred",
        "dataset": "cifar100",
        "top5_accuracy": 0.7,
        "certified_top5_accuracy": {"36/255": 0.55},
    }
    (row,) = leaderboard.leaderboard({"hundred": about}, literature=False)
    assert (row["top5"], row["certified_top5_36"]) == ("70.00", "55.00")
    assert "certified top-5 36/255" in leaderboard.to_markdown([row])
