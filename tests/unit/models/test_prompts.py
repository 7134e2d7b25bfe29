"""Text conditioning is diffusers' own, and trains."""

import warnings

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline

from inpaint.models.base import load_base
from inpaint.models.prompts import add_tokens, encode_prompts, unet_kwargs
from inpaint.recipes.category_lora import PROMPT_FORMAT, XL_PROMPT_FORMAT

PROMPTS = ["a red wood box", "", "The  BOX, in 3 woods!", "the red wood " * 40]


def encode_quietly(base, prompts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return encode_prompts(base, prompts)


def test_sd_embeddings_are_diffusers(sd_folder):
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(sd_folder)
    theirs, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
    ours = encode_quietly(load_base(sd_folder), PROMPTS)
    assert torch.equal(ours.embeds_BLD, theirs) and ours.pooled_BP is None


def test_sdxl_embeddings_are_diffusers(xl_folder):
    pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(xl_folder, add_watermarker=False)
    base = load_base(xl_folder)
    theirs, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    ours = encode_quietly(base, PROMPTS)
    assert torch.equal(ours.embeds_BLD, theirs) and torch.equal(ours.pooled_BP, pooled)
    # No negative prompt is zeros for SDXL; a given one is embedded.
    _, nothing, _, nothing_pooled = pipeline.encode_prompt("x", negative_prompt=None)
    _, red, _, red_pooled = pipeline.encode_prompt("x", negative_prompt="red")
    negative = encode_prompts(base, ["", "red"], negative=True)
    torch.testing.assert_close(negative.embeds_BLD, torch.cat([nothing, red]), atol=1e-6, rtol=0)
    torch.testing.assert_close(negative.pooled_BP, torch.cat([nothing_pooled, red_pooled]), atol=1e-6, rtol=0)
    assert negative.embeds_BLD[0].abs().max() == 0


def test_learned_tokens_of_several_vectors_are_expanded_as_diffusers_does(sd_folder):
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(sd_folder)
    width = pipeline.text_encoder.config.hidden_size
    pipeline.load_textual_inversion({"<FOOD>": torch.randn(3, width)}, token="<FOOD>")
    pipeline.load_textual_inversion({"<COS>": torch.randn(1, width)}, token="<COS>")
    base = load_base(sd_folder)
    base.tokenizers, base.text_encoders = [pipeline.tokenizer], [pipeline.text_encoder]
    prompts = ["<FOOD> background, a red box", "<COS> background, <FOOD>", "<FOOD>_1", "a box"]
    theirs, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    assert torch.equal(encode_prompts(base, prompts).embeds_BLD, theirs)


def test_sdxl_pools_all_of_a_prompt_that_ends_with_its_new_token(xl_folder):
    """Where the token comes first, as on other bases, the second encoder's summary holds nothing of the prompt."""
    base = load_base(xl_folder)
    base.text_encoders[1].text_model.eos_token_id = 2  # as SDXL's own configuration says, and transformers honours
    add_tokens(base, {"CDP_BOX": "box"})

    def pooled(template: str) -> torch.Tensor:
        prompts = [template.format(token="CDP_BOX", prompt=prompt) for prompt in ("a red wood box", "the woods")]
        return encode_prompts(base, prompts).pooled_BP

    first, last = pooled(PROMPT_FORMAT), pooled(XL_PROMPT_FORMAT)
    assert torch.equal(first[0], first[1]) and (last[0] - last[1]).abs().max() > 1e-3


def test_gradients_reach_the_text_encoders(xl_folder):
    base = load_base(xl_folder)
    conditioning = encode_prompts(base, ["red"])
    (conditioning.embeds_BLD.sum() + conditioning.pooled_BP.sum()).backward()
    first = base.text_encoders[0].get_input_embeddings().weight
    second = base.text_encoders[1].get_input_embeddings().weight
    assert first.grad.abs().sum() > 0 and second.grad.abs().sum() > 0


def test_cut_prompts_warn_once_and_are_not_repeated(sd_folder):
    base = load_base(sd_folder)
    longs, fits = ["red " * 75 + "the wood", "wood " * 100], "red " * 75
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        encode_prompts(base, [fits])
        assert not caught
        for long in longs:
            encode_prompts(base, [fits, long])
    (warning,) = caught
    assert "77 tokens" in str(warning.message) and "wood" not in str(warning.message)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_unet_of_sdxl_is_told_the_size(xl_folder, rows):
    conditioning = encode_prompts(load_base(xl_folder), ["red"] * rows)
    added = unet_kwargs(conditioning, 24, 32)["added_cond_kwargs"]
    assert added["time_ids"].tolist() == [[24, 32, 0, 0, 24, 32]] * rows
