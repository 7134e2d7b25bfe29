"""The quarantine: written as JSON lines, shown as a table, and a stop where it grows too large."""

import json

import pytest

from inpaint.data.quarantine import Quarantined, Reason, check, table, write
from inpaint.errors import BadRow, TooManyBadRows

BAD = [
    Quarantined.of(line, f"{line}.png", BadRow("mask", reason, "do this"))
    for line, reason in ((2, "empty mask"), (5, "empty mask"), (9, "zero bytes"))
]


def test_it_is_written_as_json_lines(tmp_path):
    write(BAD, tmp_path / "quarantine.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert lines[0] == {"row": 2, "name": "2.png", "field": "mask", "reason": "empty mask", "detail": "do this"}
    assert len(lines) == 3 and {line["reason"] for line in lines} <= set(Reason)


def test_the_table_counts_and_names():
    text = table(BAD, 100)
    assert "3 of 100 rows" in text and "2 x empty mask" in text and "row 9 (9.png), mask: zero bytes: do this" in text
    assert "and 40 more" in table(BAD * 20, 100)


def test_too_many_bad_rows_stop_with_the_table():
    check(BAD, 60, max_bad_fraction=0.05)
    with pytest.raises(TooManyBadRows, match="(?s)3 of 50 rows.*6.0%.*q.jsonl.*empty mask"):
        check(BAD, 50, max_bad_fraction=0.05, written_to="q.jsonl")


def test_nothing_usable_is_always_too_many():
    with pytest.raises(TooManyBadRows):
        check(BAD, 3, max_bad_fraction=1.0)
    with pytest.raises(TooManyBadRows, match="no rows"):
        check([], 0, max_bad_fraction=1.0)
