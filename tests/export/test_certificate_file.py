"""`certificate.json` as somebody could change it: no radius is computed from such a file."""

import hashlib
import json

import numpy as np
import pytest

from dynzoo.export import certificate_file
from dynzoo.export import exporter as export
from dynzoo.export import runtimes as exported_runtimes

pytestmark = pytest.mark.any_backend

ZEROS = [[0.0, 0.0], [0.0, 0.0]]
ROUNDING = {
    "anchors": [0.0, 0.5],
    "body": {"worst-case": ZEROS, "probable": ZEROS},
    "head": {"worst-case": ZEROS, "probable": ZEROS},
    "peak": ZEROS,
    "measured_layers": [],
    "arithmetic": {
        "unit": 6e-8,
        "tiny": 1e-38,
        "largest": 1e18,
        "factor_unit": 0.0,
        "library": 16.0,
    },
}
GOOD = {
    "certified": True,
    "norm": "l2",
    "lipschitz": 2.0,
    "body_lipschitz": 1.0,
    "pair_distances": [[0.0, 1.0, 2.0], [1.0, 0.0, 1.5], [2.0, 1.5, 0.0]],
    "rounding": ROUNDING,
    "image_range": [0.0, 1.0],
    "image_entries": 4,
    "graph": {"classes": 3},
}
LOGITS = np.array([[3.0, 1.0, 0.0]])

BAD = {
    "rounding": [
        *(0.0, -1.0, "0", None, True, [0.0], {}),
        {**ROUNDING, "anchors": []},
        {**ROUNDING, "anchors": [0.0, None]},
        {**ROUNDING, "body": {"worst-case": ZEROS}},
        {**ROUNDING, "body": {"worst-case": ZEROS, "probable": [[0.0, -1e-9], [0.0, 0.0]]}},
        {**ROUNDING, "head": {"worst-case": ZEROS, "probable": [[0.0], [0.0]]}},
        {**ROUNDING, "head": {"worst-case": ZEROS, "probable": [[0.0, np.nan], [0.0, 0.0]]}},
        {**ROUNDING, "peak": [[0.0, np.inf], [0.0, 0.0]]},
        {**ROUNDING, "measured_layers": "none"},
        {**ROUNDING, "arithmetic": {**ROUNDING["arithmetic"], "unit": 0.0}},
        {**ROUNDING, "arithmetic": {"unit": 6e-8}},
    ],
    "image_range": [None, 1.0, [0.0], [1.0, 0.0], [0.0, float("nan")], "01"],
    "image_entries": [0, -1, 1.5, None, True],
    "body_lipschitz": [0, 0.0, -1.0, float("nan"), float("inf"), "1", None, False, [1.0]],
    "lipschitz": [0.0, -2.0, float("nan"), "2", None],
    "norm": ["linf", "L2", 2, None],
    "pair_distances": [
        [],
        [[0.0]],
        [[0.0, 1.0], [1.0, 0.0]],
        [[0.0, 1.0, 2.0], [1.0, 0.0, 1.5]],
        [[0.0, 1.0, 2.0], [1.0, 0.0], [2.0, 1.5, 0.0]],
        [[0.0, 1.0, 2.0], [1.0, 0.0, 1.5], [0.5, 1.5, 0.0]],
        [[0.0, 1.0, 2.0], [1.0, 0.1, 1.5], [2.0, 1.5, 0.0]],
        [[0.0, -1.0, 2.0], [-1.0, 0.0, 1.5], [2.0, 1.5, 0.0]],
        [[0.0, np.nan, 2.0], [np.nan, 0.0, 1.5], [2.0, 1.5, 0.0]],
        [[0.0, np.inf, 2.0], [np.inf, 0.0, 1.5], [2.0, 1.5, 0.0]],
        [["0", "1", "2"], ["1", "0", "1"], ["2", "1", "0"]],
        [[None, 1.0, 2.0], [1.0, None, 1.5], [2.0, 1.5, None]],
        3,
        None,
        "abc",
    ],
}
CASES = [(field, value) for field, values in BAD.items() for value in values]


def test_the_good_numbers_give_radii(tmp_path):
    (tmp_path / "certificate.json").write_text(json.dumps(GOOD))
    for certificate in (GOOD, tmp_path / "certificate.json", str(tmp_path / "certificate.json")):
        labels, radii = export.radii(LOGITS, certificate)
        assert labels.tolist() == [0] and radii[0] == pytest.approx(1.5, abs=1e-9)


@pytest.mark.parametrize(("field", "value"), CASES)
def test_numbers_that_no_certificate_has_are_refused(field, value):
    with pytest.raises(ValueError, match=f"`certificate` is refused: '{field}'") as error:
        export.radii(LOGITS, {**GOOD, field: value})
    assert len(str(error.value)) <= 300 and "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["rounding", "body_lipschitz", "pair_distances"])
def test_what_a_radius_needs_must_be_there(field):
    numbers = {key: value for key, value in GOOD.items() if key != field}
    with pytest.raises(ValueError, match=f"lacks '{field}'"):
        export.radii(LOGITS, numbers)


def test_the_classes_are_those_of_the_graph():
    with pytest.raises(ValueError, match="3 rows, its graph 4 classes"):
        export.radii(LOGITS, {**GOOD, "graph": {"classes": 4}})


def test_every_field_of_the_table_is_tested():
    assert set(BAD) == set(certificate_file.FIELDS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no certificate"),
        ("[1]", "does not say whether"),
        ('{"certified": "yes"}', "does not say whether"),
        (json.dumps(GOOD).replace('"unit": 6e-08', '"unit": NaN'), "contains NaN"),
        (json.dumps(GOOD).replace("{", '{"rounding": 9.0, ', 1), "'rounding' stands there twice"),
        (json.dumps(GOOD).replace('"unit": 6e-08', '"unit": 1e999'), "float64 cannot hold"),
        (json.dumps(GOOD).replace('"unit": 6e-08', '"unit": -1.0'), "'rounding' must be"),
    ],
)
def test_damaged_files_are_named(tmp_path, text, reason):
    path = tmp_path / "certificate.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason) as error:
        export.radii(LOGITS, path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_files_and_certificates(tmp_path):
    with pytest.raises(ValueError, match="nothing.json is no certificate"):
        export.radii(LOGITS, tmp_path / "nothing.json")
    for certified in (False, 1, "yes", None):
        with pytest.raises(ValueError, match="has no certificate: because"):
            export.radii(LOGITS, {**GOOD, "certified": certified, "reason": "because"})


# The graph beside it


def _exported(folder, sums):
    (folder / "model.onnx").write_bytes(b"no graph at all")
    graph = {"sha256": sums, "classes": 3}
    (folder / "certificate.json").write_text(json.dumps({**GOOD, "graph": graph}))
    return folder / "model.onnx"


def test_a_graph_that_was_not_certified_is_not_run(tmp_path):
    for sums in ({"model.onnx": "0" * 64}, {}, {"other": "0" * 64}):
        path = _exported(tmp_path, sums)
        with pytest.raises(ValueError, match="model.onnx is not the graph of certificate.json"):
            exported_runtimes.load("onnx", path)
    _exported(tmp_path, None)
    with pytest.raises(ValueError, match="does not name the files of its graph"):
        exported_runtimes.load("onnx", tmp_path / "model.onnx")


def test_a_graph_in_a_folder_is_compared_file_by_file(tmp_path):
    folder = tmp_path / "saved_model"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"a")
    sums = {"saved_model/saved_model.pb": hashlib.sha256(b"a").hexdigest()}
    _exported(tmp_path, sums)
    exported_runtimes._check_certified(folder)
    (folder / "more").write_bytes(b"b")
    with pytest.raises(ValueError, match="saved_model/more is not the graph"):
        exported_runtimes._check_certified(folder)


def test_radii_are_those_of_the_certified_graph_alone(tmp_path):
    graph = tmp_path / "served" / "renamed.onnx"
    graph.parent.mkdir()
    graph.write_bytes(b"the graph")
    weights = graph.with_name("model.onnx.data")  # where a large graph keeps them
    weights.write_bytes(b"weights")
    sums = {
        "model.onnx": hashlib.sha256(b"the graph").hexdigest(),
        "model.onnx.data": hashlib.sha256(b"weights").hexdigest(),
    }
    numbers = {**GOOD, "graph": {"file": "model.onnx", "classes": 3, "sha256": sums}}
    (tmp_path / "certificate.json").write_text(json.dumps(numbers))
    for certificate in (numbers, tmp_path / "certificate.json"):
        assert export.radii(LOGITS, certificate, model=graph)[1][0] == pytest.approx(1.5)
    for changed, content in ((graph, b"the graph in int8"), (weights, b"others"), (weights, None)):
        before = changed.read_bytes()
        changed.unlink() if content is None else changed.write_bytes(content)
        with pytest.raises(ValueError, match="is not the graph of .*quantised") as error:
            export.radii(LOGITS, numbers, model=graph)
        assert str(changed) in str(error.value) and "\n" not in str(error.value)
        changed.write_bytes(before)
    with pytest.raises(ValueError, match="away.onnx does not exist"):
        export.radii(LOGITS, numbers, model=tmp_path / "away.onnx")
    with pytest.raises(ValueError, match="does not name the files of its graph"):
        export.radii(LOGITS, GOOD, model=graph)


def test_damaged_graphs_are_named(tmp_path):
    pytest.importorskip("onnxruntime")
    path = _exported(tmp_path, {"model.onnx": hashlib.sha256(b"no graph at all").hexdigest()})
    with pytest.raises(ValueError, match="model.onnx is damaged or no graph of format") as error:
        exported_runtimes.load("onnx", path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="away.onnx does not exist"):
        exported_runtimes.load("onnx", tmp_path / "away.onnx")
    with pytest.raises(ValueError, match="`format` must be one of"):
        exported_runtimes.load("pickle", path)
