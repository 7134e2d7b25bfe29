"""Adapters as kohya writes them: every key is one that kohya's trainer and A1111 know, what is written is read back bit
for bit, and unmodified diffusers paints our picture with it."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
from safetensors import safe_open
from safetensors.torch import load, load_file
from torch import nn

from inpaint.errors import InpaintError
from inpaint.export.kohya import read_adapter_file
from inpaint.export.kohya_file import kohya_files, save_kohya
from inpaint.export.kohya_names import KohyaNames
from inpaint.models.adapter import apply_adapter, check_adapter
from inpaint.models.architectures import Architecture
from inpaint.models.base import info_of, load_base, read_base_info
from inpaint.models.layers import Modules, is_trained
from inpaint.paint.painter import Painter
from tests.adapters import made_up
from tests.tiny import tiny_sd_inpaint, tiny_sdxl_inpaint
from tests.unit.models.ldm import OPEN_CLIP, unet_name
from tests.unit.paint.examples import TOLERANCE, painted_by_diffusers, request

PROMPT = "the red wood, CDP_X background"


@pytest.fixture(scope="module", params=[False, True], ids=["sd15", "sdxl"])
def full(request: pytest.FixtureRequest) -> Modules:
    """Of full size, without weights."""
    with torch.device("meta"):
        return Architecture(is_xl=request.param, in_channels=4).blank()


def pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


def kohyas_own(models: Modules) -> set[str]:
    """The modules that the `LoRANetwork` of sd-scripts makes: below each transformer, attention and MLP (of the text
    encoders) all linear layers and convolutions of 1 x 1. SDXL's U-Net is the original's there."""
    is_xl = len(models.text_encoders) == 2
    blocks = {"mid_block.attentions.0": "middle_block.1"}
    for i in range(3):
        blocks |= {f"down_blocks.{i}.attentions.{j}": f"input_blocks.{3 * i + j + 1}.1" for j in range(2)}
        blocks |= {f"up_blocks.{i}.attentions.{j}": f"output_blocks.{3 * i + j}.1" for j in range(3)}
    found = set()
    for name, module in models.unet.named_modules():
        if type(module).__name__ == "Transformer2DModel":
            own = blocks[name] if is_xl else name
            found |= {f"lora_unet.{own}.{child}" for child, m in module.named_modules() if pointwise(m)}
    for number, encoder in enumerate(models.text_encoders, start=1):
        prefix = f"lora_te{number}" if is_xl else "lora_te"
        for name, module in encoder.named_modules():
            if type(module).__name__ in ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP"):
                path = f"text_model.{name.removeprefix('text_model.')}"
                found |= {f"{prefix}.{path}.{child}" for child, m in module.named_modules() if pointwise(m)}
    return {name.replace(".", "_") for name in found}


def test_layers_are_called_as_kohyas_trainer_calls_them(full: Modules) -> None:
    info = info_of(full, name="n", revision="r")
    own = {KohyaNames(info).own(layer) for layer in info.layers}
    assert len(own) == len(info.layers)
    assert own == kohyas_own(full), "none unknown, none missing"


def a1111s_modules(models: Modules) -> set[str]:
    """Names of modules by which A1111 finds a LoRA's, of the original implementation."""
    is_xl = len(models.text_encoders) == 2
    paths = {
        f"diffusion_model.{unet_name(models, f'{n}.weight')}" for n, m in models.unet.named_modules() if pointwise(m)
    }
    for number, encoder in enumerate(models.text_encoders):
        for name, module in encoder.named_modules():
            if not pointwise(module):
                continue
            name = f"text_model.{name.removeprefix('text_model.')}"
            if number == 1:
                name = name.replace("text_model.encoder.layers.", "model.transformer.resblocks.")
                for ours, theirs in OPEN_CLIP.items():
                    name = name.replace(ours, theirs)
                # One module holds q, k and v there.
                name = re.sub(r"self_attn\.[qkv]_proj$", "attn", name)
            else:
                name = f"transformer.{name}"
            paths.add(f"{number}.{name}" if is_xl else name)
    return {path.removesuffix(".weight").replace(".", "_") for path in paths}


def found_by_a1111(key: str, *, is_xl: bool) -> str:
    """A1111's `convert_diffusers_name_to_compvis`, and what `load_network` tries beside it."""
    match = re.fullmatch(r"lora_unet_(down|up)_blocks_(\d+)_attentions_(\d+)_(.+)", key)
    if match:
        side, block, layer, rest = match[1], int(match[2]), int(match[3]), match[4]
        place = f"input_blocks_{1 + block * 3 + layer}" if side == "down" else f"output_blocks_{block * 3 + layer}"
        return f"diffusion_model_{place}_1_{rest}"
    key = re.sub(r"^lora_unet_mid_block_attentions_0_", "diffusion_model_middle_block_1_", key)
    key = re.sub(r"^lora_te_text_model_", "transformer_text_model_", key)
    if is_xl:
        key = re.sub(r"^lora_unet_", "diffusion_model_", key)
        key = re.sub(r"^lora_te1_text_model_", "0_transformer_text_model_", key)
        key = re.sub(r"^lora_te2_text_model_encoder_layers_(\d+)_", r"1_model_transformer_resblocks_\1_", key)
        for ours, theirs in {"mlp_fc1": "mlp_c_fc", "mlp_fc2": "mlp_c_proj", "self_attn": "attn"}.items():
            key = key.replace(ours, theirs) if key.startswith("1_") else key
        key = re.sub(r"^(1_.*)_[qkv]_proj$", r"\1", key)
    return key


def test_a1111_finds_every_layer(full: Modules) -> None:
    info = info_of(full, name="n", revision="r")
    names, modules = KohyaNames(info), a1111s_modules(full)
    unknown = [layer for layer in info.layers if found_by_a1111(names.own(layer), is_xl=info.is_xl) not in modules]
    assert not unknown


@pytest.mark.parametrize("is_xl", [False, True])
def test_what_is_written_is_read_back_and_paints_the_same_in_diffusers(tmp_path: Path, is_xl: bool) -> None:
    folder = (tiny_sdxl_inpaint if is_xl else tiny_sd_inpaint)(tmp_path / "base")
    info = read_base_info(str(folder))
    adapter = made_up(folder, 1, tokens=("CDP_X", "CDP_X_1"))
    save_kohya(tmp_path / "kohya", adapter, info, "style")
    data = (tmp_path / "kohya/style.safetensors").read_bytes()
    back = read_adapter_file(data, "style", info)
    check_adapter(back, info)
    assert back.card.tokens == {"style": "CDP_X"}
    assert (back.card.rank, back.card.alpha) == (adapter.card.rank, adapter.card.alpha)
    assert back.lora.keys() == adapter.lora.keys()
    assert all(torch.equal(back.lora[name], tensor) for name, tensor in adapter.lora.items())

    base, asked = load_base(folder), request(1, prompt=PROMPT)
    (bare,) = Painter(base).paint_raw([asked])
    apply_adapter(base, adapter)
    (ours,) = Painter(base).paint_raw([asked])
    kind, more = (
        (StableDiffusionXLInpaintPipeline, {"add_watermarker": False})
        if is_xl
        else (StableDiffusionInpaintPipeline, {"safety_checker": None})
    )
    pipeline = kind.from_pretrained(folder, local_files_only=True, **more)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(tmp_path / "kohya", weight_name="style.safetensors", use_safetensors=True)
    tokens = load_file(tmp_path / "kohya/embeddings/CDP_X.safetensors")
    readers = {"clip_l" if is_xl else "emb_params": (pipeline.tokenizer, pipeline.text_encoder)}
    if is_xl:
        readers["clip_g"] = (pipeline.tokenizer_2, pipeline.text_encoder_2)
    assert {key: len(vectors) for key, vectors in tokens.items()} == dict.fromkeys(readers, 2)
    for key, (tokenizer, encoder) in readers.items():
        pipeline.load_textual_inversion(tokens[key], token="CDP_X", tokenizer=tokenizer, text_encoder=encoder)
    theirs = painted_by_diffusers(pipeline, asked)
    assert np.abs(ours - theirs).max() <= TOLERANCE
    assert np.abs(ours - bare).max() > 20 * TOLERANCE, "it changes nothing, so equality says nothing"


def test_what_others_look_for_is_told(tmp_path: Path) -> None:
    info = read_base_info("toy")
    adapter = made_up("toy", 1)
    folder = {"n_repeats": 6, "img_count": 65, "tags": {"CDP_X": 65, "a bag": 3}}
    adapter = replace(adapter, card=replace(adapter.card, resolution=[512, 768], dataset={"6_bag": folder}))
    check_adapter(adapter, info)
    save_kohya(tmp_path, adapter, info, "ppz-10")
    path = tmp_path / "ppz-10.safetensors"
    with safe_open(path, "pt") as file:
        told, keys = file.metadata(), list(file.keys())
    wanted = {"ss_v2": "False", "ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora"}
    wanted |= {"ss_network_dim": "4", "ss_network_alpha": "8.0", "ss_network_args": "{}", "ss_output_name": "ppz-10"}
    wanted |= {"ss_resolution": "(768, 512)", "ss_num_train_images": "390", "modelspec.resolution": "768x512"}
    wanted |= {"modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.trigger_phrase": "CDP_X"}
    assert wanted.items() <= told.items()
    assert json.loads(told["ss_tag_frequency"]) == {"6_bag": {"CDP_X": 65, "a bag": 3}}
    assert json.loads(told["ss_dataset_dirs"]) == {"6_bag": {"n_repeats": 6, "img_count": 65}}
    data = path.read_bytes()
    content = data[8 + int.from_bytes(data[:8], "little") :]
    assert told["sshs_model_hash"] == hashlib.sha256(content).hexdigest()
    assert re.fullmatch("[0-9a-f]{8}", told["sshs_legacy_hash"])
    ends = ("lora_down.weight", "lora_up.weight", "alpha")
    layers = {key.partition(".")[0] for key in keys}
    assert sorted(keys) == sorted(f"{layer}.{end}" for layer in layers for end in ends)


def test_layers_that_are_not_trained_are_not_written() -> None:
    info, adapter = read_base_info("toy"), made_up("toy", 1, tokens=())
    lora = {name: tensor for name, tensor in adapter.lora.items() if is_trained(name.rpartition(".lora_")[0])}
    (data,) = kohya_files(replace(adapter, lora=lora, embeds=()), info, "n").values()
    assert len(load(data)) == len(lora) * 3 // 2 < len(adapter.lora) * 3 // 2


def test_a_token_that_can_be_no_files_name_is_refused() -> None:
    adapter = made_up("toy", 1, tokens=("<a/b>",))
    with pytest.raises(InpaintError, match="'<a/b>': cannot be the name of a file"):
        kohya_files(adapter, read_base_info("toy"), "n")
