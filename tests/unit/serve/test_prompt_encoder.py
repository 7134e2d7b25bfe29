"""Texts of rows with different adapters are encoded together, as each would be by a base with its adapter alone."""

import json

import pytest
import torch

from inpaint.models.adapter import Adapter, apply_adapter
from inpaint.models.base import load_base
from inpaint.models.locate import TOY_BASE
from inpaint.models.prompts import encode_prompts
from inpaint.serve.engine.adapter_slots import AdapterSlots
from inpaint.serve.engine.prompt_encoder import Prompt, PromptEncoder
from inpaint.serve.service import AdapterUse
from tests.adapters import made_up
from tests.tiny import tiny_sdxl_inpaint

PROMPTS = [
    "CDP_X background, a red box",
    "a box, cdp_x",
    "xCDP_Xx CDP_XY,CDP_X.CDP_X CDP_M <m> box",
    "  a   red\tbox ",
    "",
    "CDP_OTHER and \ue0000\ue000 <|endoftext|> CDP_X",
    "CDP_X " * 200,
]
TOKENS = ("CDP_X", "CDP_XY", "CDP_M", "CDP_M_1", "<m>", "<m>_1", "<m>_2")


def encoder(base: str, *adapters: Adapter, cached: int = 64) -> PromptEncoder:
    """With the adapters in slots 1, 2, ..."""
    loaded = load_base(base)
    slots = AdapterSlots(loaded, slots=8, max_rank=8)
    for slot, adapter in enumerate(adapters, start=1):
        slots.put(slot, slots.pack(adapter))
    return PromptEncoder(loaded, slots, cached=cached)


def prompt(text: str, slot: int = 0, weight: float = 1.0, **how: bool) -> Prompt:
    """With the adapter of a slot."""
    if slot == 0:
        return Prompt(text, **how)
    return Prompt(text, (AdapterUse(name="a", digest=f"digest {slot}", weight=weight),), ((slot, weight),), **how)


@pytest.fixture(params=["toy", "sdxl"])
def base(request, tmp_path) -> str:
    if request.param == "toy":
        return str(TOY_BASE)
    folder = tiny_sdxl_inpaint(tmp_path / "base")
    config = folder / "text_encoder_2" / "config.json"
    # As SDXL's own: the text is pooled at the highest token id, so the order of added tokens matters.
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token_id": 2}))
    return str(folder)


@pytest.mark.filterwarnings("ignore:prompts of more")
def test_rows_are_encoded_together_as_alone(base):
    adapters = {slot: made_up(base, slot, rank=1 + slot, tokens=TOKENS) for slot in (1, 2)}
    prompts = [prompt(text, slot) for text in PROMPTS for slot in (0, *adapters)]
    prompts.append(prompt("", 2, is_negative=True))
    found = encoder(base, *adapters.values()).encode(prompts)
    for slot in (0, *adapters):
        alone = load_base(base)
        if slot:
            apply_adapter(alone, adapters[slot])
        with torch.no_grad():
            for text in PROMPTS:
                assert_same(found[prompt(text, slot)], encode_prompts(alone, [text.replace("\ue000", " ")]))
            if slot == 2:
                assert_same(found[prompts[-1]], encode_prompts(alone, [""], negative=True))
    one, other = (found[prompt(PROMPTS[0], slot)] for slot in adapters)
    assert (one.embeds_BLD - other.embeds_BLD).abs().max() > 0.1, "the same token means other vectors"


def assert_same(found, wanted) -> None:
    torch.testing.assert_close(found.embeds_BLD, wanted.embeds_BLD, atol=1e-4, rtol=1e-4)
    if wanted.pooled_BP is not None:
        torch.testing.assert_close(found.pooled_BP, wanted.pooled_BP, atol=1e-4, rtol=1e-4)


def test_texts_are_remembered_up_to_a_bound():
    texts = encoder(str(TOY_BASE), cached=2)
    calls = []
    texts.base.text_encoders[0].register_forward_pre_hook(lambda *_: calls.append(1))
    red = prompt("a red box")
    first = texts.encode([red])
    assert texts.encode([red])[red] is first[red] and len(calls) == 1
    texts.encode([prompt("a blue box"), prompt("a blue ball"), prompt("a blue ball")])
    assert len(calls) == 2, "one call for all that are new"
    texts.encode([prompt("a blue ball")])
    assert len(calls) == 2
    texts.encode([prompt("a red box")])
    assert len(calls) == 3, "the oldest was forgotten"


def test_weights_and_adapters_are_told_apart():
    texts = encoder(str(TOY_BASE), made_up(TOY_BASE, 1))
    plain, half, whole = texts.encode([prompt("box"), prompt("box", 1, 0.5), prompt("box", 1)]).values()
    assert not torch.allclose(half.embeds_BLD, whole.embeds_BLD, atol=1e-3)
    assert not torch.allclose(plain.embeds_BLD, half.embeds_BLD, atol=1e-3)
