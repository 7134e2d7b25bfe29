"""The bank never evicts what is in use, reuses the oldest slot, and refuses what does not fit, by name."""

from dataclasses import replace

import pytest
import torch

from inpaint.errors import InpaintError
from inpaint.models.adapter import Adapter
from inpaint.models.base import load_base
from inpaint.serve.engine.slots import AdapterSlots
from tests.unit.serve.engines import made_up, with_lora


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return made_up("toy", 1, rank=3)


@pytest.fixture
def bank() -> AdapterSlots:
    return AdapterSlots(load_base("toy"), slots=2, max_rank=4)


def load(bank: AdapterSlots, digest: str, adapter: Adapter) -> None:
    assert bank.acquire([digest])
    assert bank.put(digest, bank.pack(adapter))


def test_an_adapter_in_use_is_never_evicted(bank, adapter):
    load(bank, "a", adapter)
    load(bank, "b", adapter)
    assert not bank.acquire(["c"])
    assert not bank.acquire(["a", "c"])
    bank.release(["b"])
    assert not bank.acquire(["b", "c"]), "b would have to make room for c"
    assert bank.acquire(["c"])
    assert bank.resident() == {"a"} and bank.is_ready(["a"]) and not bank.is_ready(["c"])
    assert bank.evictions == 1


def test_a_refused_acquire_takes_nothing(bank, adapter):
    load(bank, "a", adapter)
    load(bank, "b", adapter)
    bank.release(["a"])
    assert not bank.acquire(["c", "d"])
    assert bank.resident() == {"a", "b"} and bank.in_use() == 1


def test_it_stays_in_use_until_the_last_user_has_gone(bank, adapter):
    load(bank, "a", adapter)
    assert bank.acquire(["a", "a"])
    load(bank, "b", adapter)
    bank.release(["a"])
    assert not bank.acquire(["c"])
    bank.release(["a", "a"])
    assert bank.acquire(["c"])


def test_the_least_recently_used_makes_room(bank, adapter):
    for digest in ("a", "b"):
        load(bank, digest, adapter)
        bank.release([digest])
    assert bank.missing(["a"]) == [] and bank.acquire(["a"])
    bank.release(["a"])
    load(bank, "c", adapter)
    assert bank.resident() == {"a", "c"}


def test_a_load_that_nobody_waits_for_any_more_is_dropped(bank, adapter):
    assert bank.acquire(["a"])
    bank.release(["a"])
    assert not bank.put("a", bank.pack(adapter))
    assert bank.resident() == set()
    assert bank.acquire(["b", "c"]), "its slot is free again"


def test_a_slot_keeps_nothing_of_the_adapter_before(bank, adapter):
    load(bank, "a", made_up("toy", 2, rank=4))
    load(bank, "other", adapter)
    bank.release(["a"])
    load(bank, "b", adapter)
    uses = [((bank.slot("b"), 1.0),), ((bank.slot("other"), 1.0),)]
    gathered, rows = bank.gather("unet", uses, fixed=True)
    assert rows == 2 and torch.equal(gathered[0], gathered[1])


def test_rows_without_adapters_are_left_out_and_weights_scale_the_update(bank, adapter):
    load(bank, "a", adapter)
    slot = bank.slot("a")
    assert bank.gather("unet", [(), ()]) == (None, 0)
    whole, rows = bank.gather("unet", [((slot, 1.0),), ()])
    assert rows == 1 and whole.shape[0] == adapter.card.rank
    half, _ = bank.gather("unet", [((slot, 0.5),), ()])
    changed = (half != whole).any(dim=0)
    assert torch.equal(half[:, changed], whole[:, changed] * 0.5) and 0 < changed.sum() < len(changed)


def lora_with(adapter: Adapter, name: str, tensor: torch.Tensor) -> Adapter:
    return with_lora(adapter, lambda lora: {**lora, name: tensor})


def test_what_does_not_fit_is_refused_with_its_reason(bank, adapter):
    first = next(name for name in adapter.lora if name.endswith("lora_A.weight"))
    tensor = adapter.lora[first]
    stray = "unet.down_blocks.9.to_q.lora_A.weight"
    bad = [
        (replace(adapter, card=replace(adapter.card, base_revision="0" * 64)), "trained on base"),
        (made_up("toy", 1, rank=5), "rank 5: up to 4"),
        (replace(adapter, card=replace(adapter.card, rank=2)), "expected \\(2, "),
        (lora_with(adapter, stray, tensor), "down_blocks.9.to_q.lora_A.weight: base toy has no such layer"),
        (lora_with(adapter, "vae.x.lora_A.weight", tensor), "vae.x.lora_A.weight: base toy has no such layer"),
        (lora_with(adapter, first, tensor[:, 1:]), "expected"),
        (lora_with(adapter, first, tensor * float("nan")), f"{first} is not finite"),
        (with_lora(adapter, lambda lora: {n: t for n, t in lora.items() if n != first}), "other half .* is missing"),
        (replace(adapter, embeds=adapter.embeds * 2), "2 text encoders, base toy has 1"),
        (replace(adapter, embeds=({"CDP_X": torch.zeros(7)},)), "CDP_X is \\(7,\\)"),
        (replace(adapter, embeds=({"CDP_X": adapter.embeds[0]["CDP_X"] / 0},)), "CDP_X is not finite"),
    ]
    for wrong, words in bad:
        with pytest.raises(InpaintError, match=words):
            bank.pack(wrong)


def test_an_adapter_of_some_layers_only_leaves_the_others_alone(bank, adapter):
    some = with_lora(adapter, lambda lora: {n: t for n, t in lora.items() if "attn1.to_q" in n})
    packed = bank.pack(some)
    assert not packed.matrices["text_encoder"].any() and packed.matrices["unet"].any()


def test_more_adapters_than_slots_are_refused(bank):
    with pytest.raises(InpaintError, match="3 adapters in one order"):
        bank.acquire(["a", "b", "c"])
