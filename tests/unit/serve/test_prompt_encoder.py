"""Texts of rows with different adapters are encoded together, as each would be by a base with its adapter alone."""

from collections.abc import Mapping

import pytest
import torch

from inpaint.models.adapter import Adapter, apply_adapter
from inpaint.models.base import load_base
from inpaint.models.files import TOY_BASE
from inpaint.models.prompts import encode_negative_prompts, encode_prompts
from inpaint.serve.engine.prompt_encoder import Prompt, PromptEncoder
from inpaint.serve.engine.slots import AdapterSlots
from tests.tiny import tiny_sdxl_inpaint
from tests.unit.serve.engines import made_up

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


def desk(base: str, adapters: Mapping[str, Adapter], cached: int = 64) -> PromptEncoder:
    loaded = load_base(base)
    bank = AdapterSlots(loaded, slots=8, max_rank=8)
    for digest, adapter in adapters.items():
        assert bank.acquire([digest]) and bank.put(digest, bank.pack(adapter))
    return PromptEncoder(loaded, bank, cached=cached)


@pytest.fixture(params=["toy", "sdxl"])
def base(request, tmp_path) -> str:
    return str(TOY_BASE) if request.param == "toy" else str(tiny_sdxl_inpaint(tmp_path / "base"))


@pytest.mark.filterwarnings("ignore:prompt cut")
def test_rows_are_encoded_together_as_alone(base):
    adapters = {f"a{i}": made_up(base, i, rank=2 + i, tokens=TOKENS) for i in range(2)}
    wishes = [Prompt(prompt, ((digest, 1.0),)) for prompt in PROMPTS for digest in adapters]
    wishes += [Prompt(prompt) for prompt in PROMPTS]
    wishes += [Prompt("", (("a1", 1.0),), is_negative=True)]
    found = dict(zip(wishes, desk(base, adapters).encode(wishes), strict=True))
    for digest in (None, *adapters):
        alone = load_base(base)
        if digest is not None:
            apply_adapter(alone, adapters[digest])
        with torch.no_grad():
            for prompt in PROMPTS:
                wish = Prompt(prompt, () if digest is None else ((digest, 1.0),))
                wanted = encode_prompts(alone, [prompt.replace("\ue000", " ")])
                assert_same(found[wish], wanted)
            if digest == "a1":
                assert_same(found[wishes[-1]], encode_negative_prompts(alone, [""]))
    one, other = (found[Prompt(PROMPTS[0], ((digest, 1.0),))] for digest in adapters)
    assert (one.embeds_BLD - other.embeds_BLD).abs().max() > 0.1, "the same token means other vectors"


def assert_same(found, wanted) -> None:
    torch.testing.assert_close(found.embeds_BLD, wanted.embeds_BLD, atol=1e-4, rtol=1e-4)
    if wanted.pooled_BP is not None:
        torch.testing.assert_close(found.pooled_BP, wanted.pooled_BP, atol=1e-4, rtol=1e-4)


def test_texts_are_remembered_up_to_a_bound():
    texts = desk(str(TOY_BASE), {}, cached=2)
    first = texts.encode([Prompt("a red box")])
    calls = []
    texts.base.text_encoders[0].register_forward_pre_hook(lambda *_: calls.append(1))
    assert texts.encode([Prompt("a red box")])[0] is first[0] and not calls
    texts.encode([Prompt("a blue box"), Prompt("a blue ball"), Prompt("a blue ball")])
    assert len(calls) == 1
    assert texts.is_known(Prompt("a blue ball")) and not texts.is_known(Prompt("a red box"))


def test_weights_and_adapters_are_told_apart():
    texts = desk(str(TOY_BASE), {"a": made_up(TOY_BASE, 1)})
    plain, half, whole = texts.encode([Prompt("box"), Prompt("box", (("a", 0.5),)), Prompt("box", (("a", 1.0),))])
    assert not torch.allclose(half.embeds_BLD, whole.embeds_BLD, atol=1e-3)
    assert not torch.allclose(plain.embeds_BLD, half.embeds_BLD, atol=1e-3)
