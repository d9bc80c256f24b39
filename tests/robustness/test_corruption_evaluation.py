"""The evaluation under corruptions: regenerated ones, and the official files."""

import json

import keras
import numpy as np
import pytest
from pictures import brightest, labelled

from dynzoo.corruptions import CORRUPTIONS, corrupt
from dynzoo.robustness import corruptions as corruption_evaluation
from dynzoo.robustness.corruptions import evaluate_corruptions
from dynzoo.robustness.noise_curves import noise_curve
from dynzoo.robustness.report import RobustnessReport, render

NAMES = tuple(CORRUPTIONS)


def test_evaluation_counts_each_entry():
    x, y = labelled()
    seen, model = [], brightest()
    result = evaluate_corruptions(
        model, x, y, batch_size=8, seed=3, progress=lambda *a: seen.append(a)
    )
    assert result.correct.shape == (15, 5, 30) and result.clean == 1
    for name, severity in [("brightness", 5), ("snow", 2), ("elastic_transform", 4)]:
        means = corrupt(x, name, severity, seed=3).mean(axis=(1, 2, 3))
        expected = np.abs(means[:, None] - [0.2, 0.5, 0.8]).argmin(axis=1) == y
        np.testing.assert_array_equal(result.correct[NAMES.index(name), severity - 1], expected)
    assert result.accuracy[NAMES.index("brightness"), 4] < 0.5 < result.accuracy.max()
    assert result.mean == pytest.approx(result.accuracy.sum() / 75)
    assert 0 < result.standard_error < 0.1
    assert seen[-1] == (75 * 30, 75 * 30) and len(seen) == 75 * 4 and seen == sorted(seen)
    again = evaluate_corruptions(model, x, y, names=["snow"], severities=[2], batch_size=30, seed=3)
    np.testing.assert_array_equal(again.correct[0, 0], result.correct[NAMES.index("snow"), 1])


def test_the_model_sees_the_same_images_in_any_batches(monkeypatch):
    x, y = labelled(11)
    seen = []

    def predict(model, images, batch_size):
        seen.append(images)
        return np.zeros((len(images), 3), "float32")

    monkeypatch.setattr(corruption_evaluation, "predict_logits", predict)
    for batch_size in (4, 100):
        seen.clear()
        evaluate_corruptions(
            brightest(), x, y, names="snow", severities=2, batch_size=batch_size, seed=5
        )
        images = np.concatenate(seen)
        np.testing.assert_array_equal(images[:11], x)
        np.testing.assert_array_equal(images[11:], corrupt(x, "snow", 2, seed=5))


def test_result_is_reported(tmp_path):
    x, y = labelled(6)
    result = evaluate_corruptions(brightest(), x, y, names=["fog", "contrast"], severities=(1, 4))
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["table"][1]["corruption"] == "contrast" and set(data["table"][0]) >= {"1", "4"}
    assert "not the official files" in data["provenance"] and data["official"] is False
    assert data["table"][0]["mean"] == pytest.approx(result.accuracy[0].mean())
    result.plot(tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    curve = noise_curve(brightest(), x, y, levels=[0.1])
    per_image = {"correct": result.correct[0, 0], "robust": result.correct[:1, 0], "radii": None}
    report = RobustnessReport(
        "l2", 1.0, {0.1: 0.5}, {0.1: None}, per_image=per_image,
        sections=[result.section(), curve.section()],
    )  # fmt: skip
    page = render(report)
    assert "Common corruptions" in page and "Noise curves" in page
    assert "not the official files" in page and "mean over 2 corruptions at 2 severities" in page


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"names": ["fog", "rain"]}, "`names` must be 'all' or some of"),
        ({"names": []}, "`names` must be 'all' or some of"),
        ({"severities": (0, 1)}, "`severities` must be some of"),
        ({"severities": 6}, "`severities` must be some of"),
        ({"severities": ()}, "`severities` must be some of"),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"y": np.arange(6) + 5}, "`y` must hold labels from 0 to 2"),
        ({"y": np.arange(5)}, "`x` and `y` must have the same length"),
        ({"x": np.zeros((6, 40))}, "`x` must be a floating-point array of shape"),
    ],
)
def test_errors_of_the_evaluation(changed, message):
    x, y = labelled(6)
    with pytest.raises(ValueError, match=message):
        evaluate_corruptions(brightest(), **{"x": x, "y": y, "names": "fog", **changed})


def test_non_finite_logits_are_an_error():
    x, y = labelled(6)
    model = keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    model.layers[-1].bias.assign(np.full(3, np.nan))
    with pytest.raises(ValueError, match="The model must return finite logits"):
        evaluate_corruptions(model, x, y, names="fog")


# The official files


def official_folder(folder, x, y, names=("fog", "snow")):
    """Five severities: the images darkened to 1, 0.8, 0.6, 0.4 and 0.2 of their values."""
    np.save(folder / "labels.npy", np.tile(y, 5).astype("uint8"))
    for name in names:
        parts = [np.rint(255 * x * (1.0 - 0.2 * s)) for s in range(5)]
        np.save(folder / f"{name}.npy", np.concatenate(parts).astype("uint8"))


def test_official_files_are_used(tmp_path):
    x, y = labelled(6)
    official_folder(tmp_path, x, y)
    result = evaluate_corruptions(
        brightest(), x[:5], y[:5], names=("fog", "snow"), official=tmp_path, batch_size=2
    )
    for s in range(5):
        means = (np.rint(255 * x[:5] * (1 - 0.2 * s)) / 255).mean(axis=(1, 2, 3))
        expected = np.abs(means[:, None] - [0.2, 0.5, 0.8]).argmin(axis=1) == y[:5]
        np.testing.assert_array_equal(result.correct[0, s], expected)
    assert result.accuracy[0, 0] == 1 and result.accuracy[0, 4] < 0.5
    assert result.official and "official files of the benchmark were used" in result.section()[1][0]
    assert result.to_dict()["folder"] == str(tmp_path)


def test_errors_of_official_files(tmp_path):
    x, y = labelled(6)
    model = brightest()

    def run(x=x, y=y, names=("fog",)):
        return evaluate_corruptions(model, x, y, names=names, official=tmp_path)

    with pytest.raises(FileNotFoundError, match="there is no file .*labels.npy"):
        run()
    official_folder(tmp_path, x, y)
    run()
    with pytest.raises(FileNotFoundError, match="there is no file .*frost.npy"):
        run(names=("fog", "frost"))
    with pytest.raises(ValueError, match="its labels are not those of `y`"):
        run(x[::-1].copy(), y[::-1].copy())
    with pytest.raises(ValueError, match="must hold 5 m integers, m >= 12"):
        run(np.tile(x, (2, 1, 1, 1)), np.tile(y, 2))
    np.save(tmp_path / "fog.npy", np.zeros((30, 16, 16, 1), "uint8"))
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(30, 16, 16, 3\)"):
        run()
    np.save(tmp_path / "fog.npy", np.zeros((30, 16, 16, 3), "float32"))
    with pytest.raises(ValueError, match="dtype float32"):
        run()
    (tmp_path / "fog.npy").write_text("not an array")
    with pytest.raises(ValueError, match="is not a file of numbers"):
        run()
