"""Who has which slot: what is in use is never evicted, the least recently used makes room, all are lent or none."""

import pytest

from inpaint.serve.engine.slot_table import SlotTable


@pytest.fixture
def table() -> SlotTable:
    return SlotTable(2)


def load(table: SlotTable, digest: str) -> int:
    assert table.acquire([digest]) == [digest]
    slot = table.loaded(digest)
    assert slot is not None
    return slot


def test_an_adapter_in_use_is_never_evicted(table):
    a, b = load(table, "a"), load(table, "b")
    assert table.acquire(["c"]) is None
    assert table.acquire(["a", "c"]) is None
    table.release(["b"])
    assert table.acquire(["b", "c"]) is None, "b would have to make room for c"
    assert table.acquire(["c"]) == ["c"]
    assert table.resident == {"a"} and table.slot_of("a") == a and not table.is_loaded(["a", "c"])
    assert table.loaded("c") == b
    assert table.evictions == 1


def test_a_refused_acquire_takes_nothing(table):
    load(table, "a")
    load(table, "b")
    table.release(["a"])
    assert table.acquire(["c", "d"]) is None
    assert table.resident == {"a", "b"} and table.in_use == 1


def test_it_stays_in_use_until_the_last_user_has_gone(table):
    load(table, "a")
    assert table.acquire(["a", "a"]) == []
    load(table, "b")
    table.release(["a"])
    assert table.acquire(["c"]) is None
    table.release(["a", "a"])
    assert table.acquire(["c"]) == ["c"]


def test_the_least_recently_used_makes_room(table):
    for digest in ("a", "b"):
        load(table, digest)
        table.release([digest])
    assert table.acquire(["a"]) == []
    table.release(["a"])
    load(table, "c")
    assert table.resident == {"a", "c"}


def test_a_load_that_nobody_waits_for_any_more_is_dropped(table):
    assert table.acquire(["a"]) == ["a"]
    table.release(["a"])
    assert table.loaded("a") is None
    assert table.resident == set()
    assert table.acquire(["b", "c"]) == ["b", "c"], "its slot is free again"


def test_a_second_load_of_the_same_is_dropped(table):
    load(table, "a")
    assert table.loaded("a") is None
