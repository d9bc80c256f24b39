"""Values that change from epoch to epoch."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynzoo.training import epoch_values as by_epoch

pytestmark = pytest.mark.any_backend

MAPPINGS = st.dictionaries(st.integers(1, 50), st.floats(0, 1), max_size=4).map(
    lambda later: {0: 0.5, **dict(sorted(later.items()))}
)


@given(MAPPINGS, st.integers(0, 60))
def test_the_value_of_the_last_start_is_due(values, epoch):
    due = None
    for e in range(epoch + 1):
        due = values.get(e, due)
    section = {"name": "x", "offset": values, "temperature": 0.25}
    expected = {"name": "x", "offset": due, "temperature": 0.25}
    assert by_epoch.at_epoch(section, epoch) == expected
    stored = json.loads(json.dumps(section))  # keys become text in a preset's metadata
    assert by_epoch.at_epoch(stored, epoch) == expected
    by_epoch.check("offset", stored["offset"])


def test_the_epochs_at_which_something_changes():
    section = {"offset": {0: 0.4, 6: 0.8}, "temperature": {"0": 1.0, "3": 0.5}, "name": "x"}
    assert by_epoch.first_epochs(section) == [0, 3, 6]
    assert by_epoch.first_epochs({}) == [0]


@pytest.mark.parametrize(
    "wrong",
    [{}, {3: 0.1}, {0: 0.1, 4: 0.2, 2: 0.3}, {0: 1, 1.5: 2}, {0: 1, "late": 2}, {0: 1, "00": 2}],
)
def test_a_mapping_that_is_none_of_epochs_is_refused(wrong):
    with pytest.raises(ValueError, match="`data.zoom` must map increasing epochs, from 0, to"):
        by_epoch.check("data.zoom", wrong)
