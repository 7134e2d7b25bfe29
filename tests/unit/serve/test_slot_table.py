"""Who has which slot: what is in use is never evicted, the least recently used makes room, all are lent or none."""

import pytest

from inpaint.serve.engine.slot_table import Loan, SlotTable


@pytest.fixture
def table() -> SlotTable:
    return SlotTable(2)


def load(table: SlotTable, digest: str) -> Loan:
    (loan,) = table.acquire([digest])
    assert (loan.users, loan.is_loaded) == (1, False)
    loan.is_loaded = True
    return loan


def test_an_adapter_in_use_is_never_evicted(table):
    a, b = load(table, "a"), load(table, "b")
    assert table.acquire(["c"]) is None
    assert table.acquire(["a", "c"]) is None
    table.release([b])
    assert table.acquire(["b", "c"]) is None, "b would have to make room for c"
    (c,) = table.acquire(["c"])
    assert c.slot == b.slot != a.slot and not c.is_loaded
    assert table.resident == {"a"} and table.evictions == 1


def test_a_refused_acquire_takes_nothing(table):
    a, b = load(table, "a"), load(table, "b")
    table.release([a])
    assert table.acquire(["c", "d"]) is None
    assert table.resident == {"a", "b"} and (a.users, b.users) == (0, 1)


def test_it_stays_in_use_until_the_last_user_has_gone(table):
    a = load(table, "a")
    assert table.acquire(["a", "a"]) == [a], "one loan, however often an order names it"
    load(table, "b")
    table.release([a])
    assert table.acquire(["c"]) is None
    table.release([a])
    assert [loan.digest for loan in table.acquire(["c"])] == ["c"]


def test_the_least_recently_used_makes_room(table):
    a, b = load(table, "a"), load(table, "b")
    table.release([a])
    table.release([b])
    table.release(table.acquire(["a"]))
    load(table, "c")
    assert table.resident == {"a", "c"}


def test_a_loan_that_ends_before_its_adapter_is_loaded_gives_its_slot_back(table):
    (over,) = table.acquire(["a"])
    table.release([over])
    assert table.resident == set()
    assert len(table.acquire(["b", "c"])) == 2, "its slot is free again"


def test_the_next_loan_of_the_same_adapter_is_another_one(table):
    (over,) = table.acquire(["a"])
    table.release([over])
    (again,) = table.acquire(["a"])
    assert again is not over and (over.users, again.users, again.is_loaded) == (0, 1, False)
