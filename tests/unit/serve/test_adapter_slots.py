"""A slot holds its adapter and nothing of the one before; what does not fit the base is refused, by name."""

from dataclasses import replace

import pytest
import torch

from inpaint.errors import InpaintError
from inpaint.models.adapter import Adapter
from inpaint.models.base import load_base
from inpaint.serve.engine.adapter_slots import AdapterSlots
from tests.adapters import made_up
from tests.unit.serve.engines import with_lora


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return made_up("toy", 1, rank=3)


@pytest.fixture(scope="module")
def slots() -> AdapterSlots:
    return AdapterSlots(load_base("toy"), slots=2, max_rank=4)


def test_a_slot_keeps_nothing_of_the_adapter_before(slots, adapter):
    slots.put(1, slots.pack(made_up("toy", 2, rank=4)))
    for slot in (1, 2):
        slots.put(slot, slots.pack(adapter))
    gathered, rows, _ = slots.pools["unet"].gather([((1, 1.0),), ((2, 1.0),)], fixed=True)
    assert rows == 2 and torch.equal(gathered[0], gathered[1])


def test_rows_without_adapters_are_left_out_and_weights_scale_the_update(slots, adapter):
    slots.put(1, slots.pack(adapter))
    assert slots.pools["unet"].gather([(), ()]) == (None, 0, frozenset())
    whole, rows, _ = slots.pools["unet"].gather([((1, 1.0),), ()])
    assert rows == 1 and whole.shape[0] == adapter.card.rank
    half, _, _ = slots.pools["unet"].gather([((1, 0.5),), ()])
    changed = (half != whole).any(dim=0)
    assert torch.equal(half[:, changed], whole[:, changed] * 0.5) and 0 < changed.sum() < len(changed)


def test_what_does_not_fit_is_refused_with_its_reason(slots, adapter):
    first = next(name for name in adapter.lora if name.endswith("lora_A.weight"))
    bad = [
        (replace(adapter, card=replace(adapter.card, base_revision="0" * 64)), "trained on base"),
        (made_up("toy", 1, rank=5), "rank 5: up to 4"),
        (with_lora(adapter, lambda lora: {**lora, first: lora[first] / 0}), f"{first} is not finite"),
    ]
    for wrong, words in bad:
        with pytest.raises(InpaintError, match=words):
            slots.pack(wrong)


def test_an_adapter_of_some_layers_only_leaves_the_others_alone(slots, adapter):
    some = with_lora(adapter, lambda lora: {n: t for n, t in lora.items() if "attn1.to_q" in n})
    packed = slots.pack(some)
    assert not packed.matrices["text_encoder"].matrix_RW.any() and packed.matrices["unet"].matrix_RW.any()
    slots.put(1, packed)
    unet = slots.pools["unet"]
    unet.install(unet.gather([((1, 1.0),)]))
    assert {name for name, layer in unet.layers.items() if layer.update is not None} == packed.matrices["unet"].layers
    slots.put(2, slots.pack(adapter))
    both = unet.gather([((1, 1.0),), ((2, 1.0),)])
    assert both.layers == {name.rpartition(".lora_")[0] for name in adapter.lora if name.startswith("unet.")}
