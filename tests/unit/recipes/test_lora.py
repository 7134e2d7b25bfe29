"""A LoRA on a tiny SDXL: trained in bf16, exported, and read by unmodified diffusers; checkpointing changes no
gradient."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLInpaintPipeline
from safetensors.torch import load_file

from inpaint.data.rows import SCHEMA, Manifest
from inpaint.export.adapter_folder import EMBEDS_FILES, load_adapter
from inpaint.models.adapter import apply_adapter
from inpaint.models.base import load_base, read_base_info
from inpaint.models.lora import LoraSettings
from inpaint.models.prompts import encode_prompts
from inpaint.recipes.category_lora import XL_PROMPT_FORMAT, CategoryLora
from inpaint.train.checkpoint import Progress
from inpaint.train.engine import ZeroEngine
from inpaint.train.objective import MicroBatch
from inpaint.train.recipe import Trained
from inpaint.train.settings import Precision, TrainSettings
from tests.tiny import SIZE, tiny_sdxl_inpaint

CPU = torch.device("cpu")
PROMPT = "the red wood, CDP_COS background"
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> CategoryLora:
    """As it is once it is bound."""
    folder = tiny_sdxl_inpaint(tmp_path_factory.mktemp("base"))
    return CategoryLora(
        data="d.csv",
        output=str(tmp_path_factory.mktemp("run")),
        base=str(folder),
        revision=read_base_info(str(folder)).revision,
        resolution=(SIZE, 2 * SIZE),
        categories=("CDP_COS",),
        prompt_template=XL_PROMPT_FORMAT,
        lora=LoraSettings(rank=2),
        unet_learning_rate=1e-2,
        text_encoder_learning_rate=1e-2,
        token_learning_rate=1e-2,
        card_samples=0,
        train=TrainSettings(global_batch=2, max_micro_batch=1, precision=Precision.BF16, warmup=0.0),
    )


def batch_of(position: int) -> MicroBatch:
    image = np.random.default_rng(position).integers(0, 256, (1, SIZE, 2 * SIZE, 3), dtype=np.uint8)
    hole = np.zeros((1, SIZE, 2 * SIZE), dtype=np.uint8)
    hole[:, 8:, 8:40] = 255
    one = {"position": np.array([position]), "image": image, "hole": hole, "weight": np.ones(1, np.float32)}
    one |= {"original_size": np.array([[SIZE, 2 * SIZE]]), "crop_top_left": np.zeros((1, 2), int)}
    return {**one, "prompt": np.array([PROMPT], dtype=object), "error": np.array([""])}


@pytest.fixture(scope="module")
def trained(recipe: CategoryLora, process_group: None) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """All that is trained, before and after three steps in bf16 through the engine."""
    engine = ZeroEngine(recipe.objective(CPU), recipe.train, recipe.train.layout(1), CPU)
    before = engine.gather()["trained"]
    losses = [engine.train_step([batch_of(2 * step), batch_of(2 * step + 1)], 1.0) for step in range(3)]
    assert all(loss.isfinite() for loss in losses)
    assert {p.dtype for p in engine.objective.unet.conv_in.parameters()} == {torch.bfloat16}, "what is frozen"
    return before, engine.gather()["trained"]


def test_all_of_sdxl_learns_in_bf16_and_what_is_trained_stays_fp32(trained) -> None:
    before, after = trained
    parts = {name.split(".")[0] for name in after}
    assert parts == {"unet", "text_encoder", "text_encoder_2", "tokens", "tokens_2"}
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    for part in parts:
        moved = [name for name in after if name.split(".")[0] == part and not torch.equal(before[name], after[name])]
        assert moved, part
        assert any((after[name] != after[name].bfloat16().float()).any() for name in moved), "not rounded"


def test_unmodified_diffusers_reads_what_is_exported(recipe: CategoryLora, trained, tmp_path: Path) -> None:
    progress = Progress(samples=6, steps=3, seed=0, manifest="m")
    recipe.export(Trained("CDP_COS", trained[1], progress, 6, Manifest(SCHEMA.empty_table(), (1,))), tmp_path)
    adapter = load_adapter(str(tmp_path))
    assert adapter.card.resolution == [SIZE, 2 * SIZE]
    assert f"{SIZE} x {2 * SIZE} px, height x width" in (tmp_path / "README.md").read_text()
    ours = load_base(recipe.base)
    apply_adapter(ours, adapter)
    theirs = StableDiffusionXLInpaintPipeline.from_pretrained(recipe.base)
    theirs.load_lora_weights(tmp_path)
    readers = ((theirs.tokenizer, theirs.text_encoder), (theirs.tokenizer_2, theirs.text_encoder_2))
    for file, (tokenizer, encoder) in zip(EMBEDS_FILES, readers, strict=True):
        for token, vector in load_file(tmp_path / file).items():
            theirs.load_textual_inversion(vector, token=token, tokenizer=tokenizer, text_encoder=encoder)
    embeds, _, pooled, _ = theirs.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    with torch.no_grad():
        told = encode_prompts(ours, [PROMPT])
    assert torch.allclose(told.embeds_BLD, embeds, atol=1e-5)
    assert told.pooled_BP is not None and torch.allclose(told.pooled_BP, pooled, atol=1e-5)
    lora = {n: p for n, p in theirs.unet.state_dict().items() if ".lora_" in n}
    own = {n: p for n, p in ours.unet.state_dict().items() if ".lora_" in n}
    assert sorted(p.sum().item() for p in lora.values()) == sorted(p.sum().item() for p in own.values())


def test_gradients_are_the_same_where_activations_are_computed_again(recipe: CategoryLora) -> None:
    gradients = []
    for checkpointing in (False, True):
        train = replace(recipe.train, precision=Precision.FP32, gradient_checkpointing=checkpointing)
        objective = replace(recipe, train=train).objective(CPU)
        objective.train()
        assert objective.unet.is_gradient_checkpointing == checkpointing
        objective(batch_of(0)).sum().backward()
        gradients.append({name: p.grad for group in objective.groups() for name, p in group.parameters.items()})
    without, again = gradients
    assert any(grad is not None and grad.abs().max() > 0 for grad in again.values())
    for name, grad in without.items():
        assert (grad is None) == (again[name] is None), name
        assert grad is None or torch.equal(grad, again[name]), name
