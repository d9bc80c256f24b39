"""JSON from others: what Python's own reader lets pass."""

import json

import pytest

from dynzoo.tuning import records
from dynzoo.utils import strict_json

pytestmark = pytest.mark.any_backend


def test_plain_json_is_read_as_it_is(tmp_path):
    value = {"a": [1, -2.5, 1e300, True, None, "ü"], "b": {"a": {}}, "c": []}
    (tmp_path / "a.json").write_text(json.dumps(value), encoding="utf-8")
    assert strict_json.read(tmp_path / "a.json") == value == strict_json.parse(json.dumps(value))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' stands there twice"),
        ("[NaN]", "contains NaN"),
        ("[Infinity]", "contains Infinity"),
        ("[1e400]", "float64 cannot hold"),
        (b'["\xff"]', "not UTF-8"),
        ("[" * 200 + "]" * 200, "nested deeper than 100"),
        ("[" * 10**5, "nested deeper|Expecting|maximum recursion"),
        ("{", "Expecting"),
        ("", "Expecting"),
    ],
)
def test_what_has_two_meanings_or_none_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        strict_json.parse(text)


def test_large_files_and_folders_are_not_read(tmp_path):
    (tmp_path / "a.json").write_text("[" + "1," * 1000 + "1]")
    assert len(strict_json.read(tmp_path / "a.json")) == 1001
    with pytest.raises(ValueError, match="2,003 bytes; at most 2,000 are read"):
        strict_json.read(tmp_path / "a.json", 2000)
    with pytest.raises(ValueError, match="not a regular file"):
        strict_json.read(tmp_path)


def test_a_reason_is_one_short_line():
    assert strict_json.short("a\n  b") == "a b"
    text = strict_json.short(ValueError("x" * 5000))
    assert len(text) == 160 and text.endswith("...")


RECORD = records.blank("0", {"lr": 0.1}, status=records.COMPLETED, clean=0.5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting"),
        ("[]", "no mapping"),
        ('{"trial": "0"}', "lacks status, values"),
        (json.dumps({**RECORD, "values": 3}), "lacks values"),
        (json.dumps({**RECORD, "clean": "0.9"}), "clean is '0.9', not a number"),
        (json.dumps({**RECORD, "certified": -1.0}), "certified is -1.0, not a number >= 0"),
        (json.dumps({**RECORD, "clean": float("nan")}), "contains NaN"),
        (json.dumps(RECORD).replace("{", '{"trial": "1",', 1), "'trial' stands there twice"),
    ],
)
def test_damaged_records_of_a_search_are_named(tmp_path, text, reason):
    assert records.read_record(tmp_path) is None
    records.write_record(tmp_path, RECORD)
    assert records.read_record(tmp_path) == RECORD
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=f"result.json is damaged or no record.*{reason}"):
        records.read_record(tmp_path)
