"""Records survive the way to the disk and back, and nothing else is taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.errors import InputError
from wattline.drivers.grant_records import decode_record, encode_record
from wattline.grants.records import Compacted, Granted, Lowered, Opened, Record, Released

COUNTS = st.integers(0, 2**63 - 1)
RECORDS: st.SearchStrategy[Record[str]] = st.one_of(
    st.builds(Opened, COUNTS),
    st.builds(Granted, COUNTS, st.text(), COUNTS, COUNTS, COUNTS, COUNTS),
    st.builds(Lowered, COUNTS, st.text(), COUNTS),
    st.builds(Released, COUNTS, st.text(), st.text(), st.text()),
    st.builds(
        Compacted, COUNTS, st.dictionaries(st.text(), COUNTS).map(lambda each: tuple(each.items()))
    ),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


@given(RECORDS)
def test_a_record_comes_back_as_it_went(record: Record[str]) -> None:
    assert decode_record(json.loads(json.dumps(encode_record(record))), "log") == record


@given(RECORDS, st.data())
def test_a_record_with_another_field_is_refused_or_is_a_record(
    record: Record[str], data: st.DataObject
) -> None:
    entry: dict[str, Any] = encode_record(record)
    name = data.draw(st.sampled_from(sorted(entry)))
    entry[name] = data.draw(JSON)
    said: str | None = None
    try:
        again = decode_record(entry, "log")
    except InputError as error:
        said = str(error)
    if said is None:
        assert encode_record(again) == entry
    else:
        assert said.startswith("log: ")
        assert "\n" not in said


@pytest.mark.parametrize("entry", ["x", True, None, [], 7], ids=str)
def test_what_is_no_object_is_no_record(entry: object) -> None:
    with pytest.raises(InputError, match="must be an object"):
        decode_record(entry, "log")


@pytest.mark.parametrize("missing", ["epoch", "gpu", "booked_mw", "sequence", "kind"])
def test_a_record_without_a_field_is_refused(missing: str) -> None:
    entry = encode_record(Granted(1, "GPU-a", 2, 3, 4, 5))
    del entry[missing]
    with pytest.raises(InputError, match="record"):
        decode_record(entry, "log")
