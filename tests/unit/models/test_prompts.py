"""Text conditioning is diffusers' own, and trains."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline

from inpaint.export.onnx.painter.text import weighed
from inpaint.models.base import load_base
from inpaint.models.prompt_text import PromptSettings, read_prompt
from inpaint.models.prompts import add_tokens, encode_prompts, encode_rows, unet_kwargs, warn_of_cuts
from inpaint.recipes.category_lora import PROMPT_FORMAT, XL_PROMPT_FORMAT

PROMPTS = ["a red wood box", "", "The  BOX, in 3 woods!", "the red wood " * 40]
ONE_CHUNK = PromptSettings(prompt_chunks=1)
WEIGHTED = PromptSettings(prompt_weights=True)


def test_sd_embeddings_are_diffusers(sd_folder):
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(sd_folder)
    theirs, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
    ours = encode_prompts(load_base(sd_folder), PROMPTS, ONE_CHUNK)
    assert torch.equal(ours.embeds_BLD, theirs) and ours.pooled_BP is None


def test_sdxl_embeddings_are_diffusers(xl_folder):
    pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(xl_folder, add_watermarker=False)
    base = load_base(xl_folder)
    theirs, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    ours = encode_prompts(base, PROMPTS, ONE_CHUNK)
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


def chunk_of(base, text: str):
    """One window by transformers alone: of each encoder the hidden states, and the pooled embedding."""
    states, pooled = [], None
    for tokenizer, encoder in zip(base.tokenizers, base.text_encoders, strict=True):
        ids = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        output = encoder(ids, output_hidden_states=True)
        states.append(output.hidden_states[-2] if base.info.is_xl else output.last_hidden_state)
        pooled = getattr(output, "text_embeds", None)
    return states, pooled


@pytest.mark.parametrize("folder", ["sd_folder", "xl_folder"])
@torch.no_grad()
def test_long_prompts_are_chunks_side_by_side(request, folder):
    base = load_base(request.getfixturevalue(folder))
    found = encode_prompts(base, ["red " * 75 + "the wood"])
    chunks = [chunk_of(base, text) for text in ("red " * 75, "the wood")]
    wanted = torch.cat([torch.cat(states, dim=-1) for states, _ in chunks], dim=1)
    torch.testing.assert_close(found.embeds_BLD, wanted, atol=1e-6, rtol=0)
    if base.info.is_xl:
        torch.testing.assert_close(found.pooled_BP, chunks[0][1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("folder", ["sd_folder", "xl_folder"])
@torch.no_grad()
def test_weights_multiply_and_keep_the_mean(request, folder):
    base = load_base(request.getfixturevalue(folder))
    found = encode_prompts(base, ["red (the wood:1.5) [red]"], WEIGHTED)
    states, pooled = chunk_of(base, "red the wood red")
    weights = torch.ones(77)
    weights[2:4], weights[4] = 1.5, 1 / 1.1
    scaled = [state * weights[:, None] for state in states]
    wanted = torch.cat([s * (state.mean() / s.mean()) for s, state in zip(scaled, states, strict=True)], dim=-1)
    torch.testing.assert_close(found.embeds_BLD, wanted, atol=1e-5, rtol=1e-5)
    assert pooled is None or torch.allclose(found.pooled_BP, pooled, atol=1e-6)
    plain = encode_prompts(base, ["red (the wood:1.5) [red]"])
    assert not torch.allclose(plain.embeds_BLD, found.embeds_BLD, atol=1e-2), "literal text by default"
    for text in ("red the wood", "red, a box"):
        one, other = encode_prompts(base, [text]), encode_prompts(base, [text], WEIGHTED)
        assert torch.equal(one.embeds_BLD, other.embeds_BLD)


@torch.no_grad()
def test_where_states_have_no_mean_weights_divide_by_nothing(sd_folder):
    base = load_base(sd_folder)
    base.text_encoders[0].final_layer_norm.weight.zero_()
    alone = encode_prompts(base, ["red"], WEIGHTED)
    together = encode_prompts(base, ["red", "(wood:1.5)"], WEIGHTED)
    assert torch.equal(together.embeds_BLD[:1], alone.embeds_BLD) and together.embeds_BLD.isfinite().all()
    ours = weighed(alone.embeds_BLD.repeat(2, 1, 1).numpy(), [[], [1.5]])
    assert np.array_equal(ours, together.embeds_BLD.numpy()), "nor does the painter without torch divide by 0"


@torch.no_grad()
def test_a_prompt_does_not_depend_on_longer_ones_beside_it(sd_folder):
    """Shorter ones are repeated whole, which attention does not see."""
    base = load_base(sd_folder)
    prompts = ["the wood", "red " * 100, "wood " * 160]
    together = encode_prompts(base, prompts)
    assert together.embeds_BLD.shape[1] == 6 * 77
    latents, times = torch.randn(1, 9, 16, 16), torch.tensor([500])
    for i, prompt in enumerate(prompts):
        alone = encode_prompts(base, [prompt]).embeds_BLD
        assert alone.shape[1] == (1 + i) * 77
        outputs = [
            base.unet(latents, times, encoder_hidden_states=e).sample for e in (alone, together.embeds_BLD[i : i + 1])
        ]
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_sdxl_pools_a_long_prompt_where_its_new_token_stands(xl_folder):
    base = load_base(xl_folder)
    base.text_encoders[1].text_model.eos_token_id = 2
    add_tokens(base, {"CDP_BOX": "box"})
    long = "red " * 90 + "CDP_BOX"
    pooled = encode_prompts(base, [long, "red " * 90, "a box"]).pooled_BP
    wanted = [chunk_of(base, text)[1] for text in ("red " * 15 + "CDP_BOX", "red " * 75, "a box")]
    torch.testing.assert_close(pooled, torch.cat(wanted), atol=1e-6, rtol=0)


def test_cut_prompts_are_counted_and_not_repeated(sd_folder):
    base = load_base(sd_folder)
    settings = PromptSettings(prompt_chunks=2)
    fits, long = (read_prompt("red " * count, settings) for count in (150, 158))
    assert [row.cut for row in encode_rows(base, [fits, long])] == [0, 8]
    with pytest.warns(UserWarning, match="prompts are cut") as caught:
        warn_of_cuts([0, 8])
    assert "red" not in str(caught[0].message)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_unet_of_sdxl_is_told_the_size(xl_folder, rows):
    conditioning = encode_prompts(load_base(xl_folder), ["red"] * rows)
    added = unet_kwargs(conditioning, 24, 32)["added_cond_kwargs"]
    assert added["time_ids"].tolist() == [[24, 32, 0, 0, 24, 32]] * rows
