"""The manifest: one hash wherever the folder lies, another for any change, and a text that says what changed."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from inpaint.data.rows import Manifest, Row
from inpaint.errors import InpaintError

ROWS = tuple(
    Row(
        id=f"{i}.png",
        root="here",
        image=f"{i}.png",
        prompt=f"thing {i}",
        category="C",
        width=8,
        height=8,
        digest=f"{i:064x}",
    )
    for i in range(12)
)


def test_the_hash_is_of_the_rows_and_not_of_the_place():
    moved = [replace(row, root="s3://there/x") for row in ROWS]
    assert Manifest.of(ROWS).hash == Manifest.of(moved).hash
    assert Manifest.of(ROWS).difference(Manifest.of(moved)) == ""


@pytest.mark.parametrize(
    "change",
    [{"prompt": "x"}, {"hole": "m.png"}, {"input": "i.png"}, {"category": None}, {"weight": 0.5}, {"digest": "f" * 64}],
    ids=lambda change: next(iter(change)),
)
def test_any_change_of_a_row_changes_the_hash(change):
    changed = (replace(ROWS[0], **change), *ROWS[1:])
    assert Manifest.of(changed).hash != Manifest.of(ROWS).hash


def test_order_counts():
    assert Manifest.of(ROWS[::-1]).hash != Manifest.of(ROWS).hash
    assert "another order" in Manifest.of(ROWS).difference(Manifest.of(ROWS[::-1]))


def test_saved_and_loaded_is_equal(tmp_path):
    manifest = Manifest.of(ROWS, (2,))
    manifest.save(tmp_path / "m.parquet")
    loaded = Manifest.load(tmp_path / "m.parquet")
    assert loaded == manifest and loaded.hash == manifest.hash


def test_a_file_that_was_changed_is_refused(tmp_path):
    manifest = Manifest.of(ROWS)
    manifest.save(tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    pq.write_table(table.slice(1), tmp_path / "m.parquet")
    with pytest.raises(InpaintError, match="the file was changed"):
        Manifest.load(tmp_path / "m.parquet")


def test_the_difference_names_rows_and_fields():
    then = Manifest.of(ROWS)
    changed = replace(ROWS[1], prompt="new", digest="f" * 64)
    now = Manifest.of((changed, *ROWS[2:], replace(ROWS[0], id="new.png")))
    text = then.difference(now)
    assert "removed: 0.png" in text and "added: new.png" in text
    assert "changed: 1.png (prompt, bytes of the files)" in text


def test_a_long_difference_is_counted():
    assert "and 4 more" in Manifest.of(ROWS).difference(Manifest.of(()))
