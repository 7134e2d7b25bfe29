"""Adapters of others: what diffusers paints with a file, we do; what is not understood wholly is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
from safetensors.torch import save

from inpaint.errors import InpaintError
from inpaint.export.kohya import read_adapter_file
from inpaint.models.adapter import apply_adapter, check_adapter
from inpaint.models.base import BaseInfo, load_base, read_base_info
from inpaint.paint.painter import Painter
from tests.tiny import base_info, tiny_sd_inpaint, tiny_sdxl_inpaint
from tests.unit.paint.examples import TOLERANCE, painted_by_diffusers, request

Tensors = dict[str, torch.Tensor]
WORDS = {"down_blocks.1.attentions.0": "input_blocks_3_1", "mid_block.attentions.0": "middle_block_1"}
WORDS |= {f"up_blocks.0.attentions.{i}": f"output_blocks_{i}_1" for i in (0, 1)}
"""The tiny SDXL's blocks -> their original names, counted by hand."""


def kohya_name(layer: str, *, xl: bool, original: bool = False) -> str:
    prefix, _, path = layer.partition(".")
    head = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if xl else "lora_te_", "text_encoder_2": "lora_te2_"}
    for ours, theirs in WORDS.items() if original else ():
        path = path.replace(ours, theirs)
    return head[prefix] + path.replace(".", "_")


def drawn(info: BaseInfo, name: Callable[[str], str], ends: tuple[str, str], *, mixed: bool) -> Tensors:
    """Large random layers, each (where `mixed`) with its own rank and alpha; some as convolutions of 1 x 1."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for number, (layer, (outputs, inputs)) in enumerate(info.layers.items()):
        rank = 1 + number % 3 if mixed else 2
        tail = (1, 1) if "proj_in" in layer or "proj_out" in layer else ()
        tensors[f"{name(layer)}.{ends[0]}.weight"] = torch.randn(rank, inputs, *tail, generator=generator) / 3
        tensors[f"{name(layer)}.{ends[1]}.weight"] = torch.randn(outputs, rank, *tail, generator=generator) / 3
        if mixed and number % 4:
            tensors[f"{name(layer)}.alpha"] = torch.tensor(0.5 + number % 5)
    return tensors


def kohya(info: BaseInfo, *, original: bool = False) -> Tensors:
    def name(layer: str) -> str:
        return kohya_name(layer, xl=info.is_xl, original=original)

    return drawn(info, name, ("lora_down", "lora_up"), mixed=True)


def with_one_alpha(tensors: Tensors) -> Tensors:
    """The same LoRA with 1 as alpha of all layers: diffusers 0.42 overlooks kohya's where they differ."""
    same = dict(tensors)
    for name in [name for name in tensors if name.endswith(".lora_up.weight")]:
        layer = name.removesuffix(".lora_up.weight")
        alpha = tensors.get(f"{layer}.alpha", torch.tensor(float(tensors[name].shape[1])))
        same |= {name: tensors[name] * alpha, f"{layer}.alpha": torch.tensor(1.0)}
    return same


@pytest.mark.parametrize("kind", ["sd, kohya", "sd, diffusers", "sdxl, kohya", "sdxl, original"])
def test_a_file_of_others_paints_what_diffusers_paints_with_it(tmp_path: Path, kind: str) -> None:
    is_xl = kind.startswith("sdxl")
    folder = (tiny_sdxl_inpaint if is_xl else tiny_sd_inpaint)(tmp_path / "base")
    info = read_base_info(str(folder))
    if "diffusers" in kind:
        tensors = drawn(info, lambda layer: layer, ("lora_A", "lora_B"), mixed=False)
    else:
        tensors = kohya(info, original="original" in kind)
    (tmp_path / "lora.safetensors").write_bytes(save(with_one_alpha(tensors)))
    adapter = read_adapter_file(save(tensors), "style", info)
    check_adapter(adapter, info)
    base = load_base(folder)
    (bare,) = Painter(base).paint_raw([request(1)])
    apply_adapter(base, adapter)
    (ours,) = Painter(base).paint_raw([request(1)])
    pipeline_kind = StableDiffusionXLInpaintPipeline if is_xl else StableDiffusionInpaintPipeline
    extra = {"add_watermarker": False} if is_xl else {"safety_checker": None}
    pipeline = pipeline_kind.from_pretrained(folder, local_files_only=True, **extra)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors", use_safetensors=True)
    assert np.abs(ours - painted_by_diffusers(pipeline, request(1))).max() <= TOLERANCE
    assert np.abs(ours - bare).max() > 20 * TOLERANCE, "it changes nothing, so equality says nothing"


@pytest.fixture(scope="module")
def info() -> BaseInfo:
    return base_info(layers={"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (8, 6)})


NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def plain(**changes: torch.Tensor | None) -> Tensors:
    tensors = {"lora_down.weight": torch.ones(2, 6), "lora_up.weight": torch.ones(8, 2), "alpha": torch.tensor(1.0)}
    tensors = {f"{NAME}.{end}": tensor for end, tensor in tensors.items()} | changes
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


@pytest.mark.parametrize(
    ("tensors", "metadata", "says"),
    [
        (plain(), {"ss_base_model_version": "sdxl_base_v1-0"}, "made for SDXL"),
        (plain(), {"modelspec.architecture": "flux-1-dev/lora"}, "made for Flux"),
        ({f"{NAME}.hada_w1_a": torch.ones(2, 2)}, {}, "LoHa"),
        ({f"{NAME}.lokr_w1": torch.ones(2, 2)}, {}, "LoKr"),
        (plain(**{f"{NAME}.dora_scale": torch.ones(8, 1)}), {}, "DoRA"),
        (plain(**{f"{NAME}.lora_mid.weight": torch.ones(2, 2, 3, 3)}), {}, "LoCon"),
        ({"lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": torch.ones(2, 4, 3, 3)}, {}, "LoCon"),
        (plain(**{"lora_unet_double_blocks_0.lora_down.weight": torch.ones(2, 6)}), {}, "another family"),
        (plain(something=torch.ones(1)), {}, "tensor something"),
        (plain(**{f"{NAME}.lora_up.weight": None}), {}, "no lora_up"),
        (plain(**{f"{NAME}.lora_up.weight": torch.ones(8, 3)}), {}, "the ranks 2 and 3"),
        (plain(**{f"{NAME}.lora_up.weight": torch.ones(9, 2)}), {}, "expected (8, 2)"),
        (plain(**{f"{NAME}.lora_down.weight": torch.full((2, 6), float("nan"))}), {}, "not finite"),
        (plain(**{f"{NAME}.alpha": torch.tensor(float("inf"))}), {}, "no finite number"),
        ({"model.diffusion_model.out.weight": torch.ones(1)}, {}, "a whole checkpoint"),
        ({"emb_params": torch.ones(1, 768)}, {}, "an embedding"),
        ({}, {"format": "pt"}, "no LoRA layer"),
    ],
)
def test_what_is_not_understood_wholly_is_refused(info: BaseInfo, tensors: Tensors, metadata: dict, says: str) -> None:
    with pytest.raises(InpaintError) as error:
        check_adapter(read_adapter_file(save(tensors, metadata), "style", info), info)
    assert says in str(error.value)


@pytest.mark.parametrize("data", [b"", b"PK\3\4", save(plain())[:-1], b"\xff" * 100])
def test_what_is_no_safetensors_file_is_refused(info: BaseInfo, data: bytes) -> None:
    with pytest.raises(InpaintError, match="not a safetensors file"):
        read_adapter_file(data, "style", info)


@pytest.mark.parametrize(
    ("metadata", "tag"),
    [
        ({}, ""),
        ({"modelspec.trigger_phrase": "ohwx mug"}, "ohwx mug"),
        ({"ss_tag_frequency": {"10_a": {"ohwx": 20, "mug": 12}, "5_b": {"ohwx": 3}}}, "ohwx"),
        ({"ss_tag_frequency": {"a": {"ohwx": 20, "mug": 20}}, "ss_dataset_dirs": {"a": {"img_count": 20}}}, "ohwx"),
        ({"ss_tag_frequency": {"a": {"1girl": 9}}, "ss_dataset_dirs": {"a": {"img_count": 20}}}, ""),
        ({"ss_tag_frequency": {"a": {"x\n": 9}}}, "x"),
        ({"ss_tag_frequency": {"a": {"x\u200by": 9}}}, ""),
        *(({"ss_tag_frequency": text}, "") for text in ("{", "[]", '{"a": 3}', '{"a": {"b": 1e999}}', "[" * 99_999)),
    ],
)
def test_the_tag_is_what_the_metadata_call_it_by(info: BaseInfo, metadata: dict, tag: str) -> None:
    told = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    card = read_adapter_file(save(plain(), told), "style", info).card
    assert card.tokens == ({"style": tag} if tag else {})
    assert card.prompt("a table", "style" if tag else None) == (f"{tag}, a table" if tag else "a table")
    check_adapter(read_adapter_file(save(plain(), told), "style", info), info)


def test_alphas_that_diffusers_tells_are_used(info: BaseInfo) -> None:
    (layer,) = info.layers
    tensors = {f"{layer}.lora_A.weight": torch.ones(2, 6), f"{layer}.lora_B.weight": torch.ones(8, 2)}

    def alpha(**told: object) -> float:
        return read_adapter_file(save(tensors, {"lora_adapter_metadata": json.dumps(told)}), "x", info).card.alpha

    assert alpha() == 2 and alpha(**{"unet.lora_alpha": 5}) == 5
    assert alpha(**{"unet.lora_alpha": 5, "unet.alpha_pattern": {"attn1.to_q": 7, "to_k": 8}}) == 7
