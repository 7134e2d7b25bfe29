"""The manifest: one hash wherever the folder lies, another for any change, and a text that says what changed."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
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


def test_a_file_that_was_changed_or_is_no_manifest_is_refused(tmp_path):
    manifest = Manifest.of(ROWS)
    manifest.save(tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    pq.write_table(table.slice(1), tmp_path / "m.parquet")
    with pytest.raises(InpaintError, match="the file was changed"):
        Manifest.load(tmp_path / "m.parquet")
    pq.write_table(table.drop_columns(["digest"]), tmp_path / "m.parquet")
    with pytest.raises(InpaintError, match="is no manifest"):
        Manifest.load(tmp_path / "m.parquet")
    (tmp_path / "m.parquet").write_text("rows")
    with pytest.raises(InpaintError, match="is no manifest"):
        Manifest.load(tmp_path / "m.parquet")
    manifest.save(tmp_path / "m.parquet")
    data = (tmp_path / "m.parquet").read_bytes()
    (tmp_path / "m.parquet").write_bytes(b"PAR1" + b"\xff" * 300 + data[304:])  # only its columns are damaged
    with pytest.raises(InpaintError, match="is no manifest"):
        Manifest.load(tmp_path / "m.parquet")
    with pytest.raises(InpaintError, match="no such file"):
        Manifest.load(tmp_path / "absent.parquet")


def test_a_manifest_is_saved_to_a_url_and_loaded_from_it():
    Manifest.of(ROWS).save("fsspec+memory://runs/one/m.parquet")
    assert Manifest.load("fsspec+memory://runs/one/m.parquet") == Manifest.of(ROWS)


def test_the_hash_does_not_depend_on_chunks_and_no_two_values_run_together():
    whole = Manifest.of(ROWS)
    parts = pa.concat_tables([Manifest.of(ROWS[i : i + 5]).table for i in range(0, 12, 5)])
    assert parts["id"].num_chunks == 3 and Manifest(parts).hash == whole.hash
    one, other = ([replace(ROWS[0], prompt=text) for text in texts] for texts in (("ab", "c"), ("a", "bc")))
    assert Manifest.of(one).hash != Manifest.of(other).hash
    assert Manifest.of(ROWS, (2,)).hash != whole.hash


def test_rows_come_out_as_they_went_in_and_are_selected():
    rows = [
        replace(row, category="AB"[i % 2], label=None if i else "cat", root=f"r{i % 3}") for i, row in enumerate(ROWS)
    ]
    manifest = Manifest.of(rows)
    assert list(manifest.rows()) == rows and manifest.row(7) == rows[7] and len(manifest) == 12
    assert (manifest.categories, manifest.labels, manifest.has_inputs) == (("A", "B"), ("cat",), False)
    assert list(manifest.select("B").rows()) == rows[1::2]
    assert list(manifest.select(np.arange(12) % 4 == 0).rows()) == rows[::4]
    assert list(manifest.select(np.array([5, 2])).rows()) == [rows[5], rows[2]]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_a_held_out_row_stays_held_out_when_others_come(share):
    rows = [replace(ROWS[0], id=str(i), digest=hashlib.sha256(str(i).encode()).hexdigest()) for i in range(2000)]
    few, many = Manifest.of(rows[:500]), Manifest.of(rows[::-1])
    sides = {row.id: held for held, part in enumerate(many.split(share, 7)) for row in part.rows()}
    rest, held = few.split(share, 7)
    assert len(rest) + len(held) == 500 and len(sides) == 2000
    moved = [row.id for part in (rest, held) for row in part.rows() if sides[row.id] != (part is held)]
    assert len(moved) <= 2, "all but the one of each side that a smaller set is sure to have"
    assert abs(len(held) / 500 - share) < 0.05
    assert [row.id for row in held.rows()] != [row.id for row in few.split(share, 8)[1].rows()] or not share


def test_a_small_set_has_a_row_on_each_side_and_twins_stay_together():
    few = Manifest.of([replace(ROWS[0], id=name, digest=name * 64) for name in "ab"])
    assert [len(part) for part in few.split(0.01, 0)] == [len(part) for part in few.split(0.99, 0)] == [1, 1]
    twins = Manifest.of([replace(ROWS[0], id="one"), replace(ROWS[0], id="other")])
    assert sorted(len(part) for part in twins.split(0.5, 0)) == [0, 2]
    with pytest.raises(InpaintError, match="held-out share 1.0"):
        few.split(1.0, 0)


def test_the_difference_names_rows_and_fields():
    then = Manifest.of(ROWS)
    changed = replace(ROWS[1], prompt="new", digest="f" * 64)
    now = Manifest.of((changed, *ROWS[2:], replace(ROWS[0], id="new.png")))
    text = then.difference(now)
    assert "removed: 0.png" in text and "added: new.png" in text
    assert "changed: 1.png (prompt, bytes of the files)" in text


def test_a_long_difference_is_counted():
    assert "and 4 more" in Manifest.of(ROWS).difference(Manifest.of(()))
