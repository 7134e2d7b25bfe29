"""Bases in the original layout of single-file checkpoints: the inverse of what diffusers' single-file loader does."""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from inpaint.models.base import Base
from inpaint.models.layers import Modules

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def save_single_file(base: Base, path: Path, **more: Tensor) -> Path:
    """One `.safetensors` file as Civitai has them."""
    tensors = {f"model.diffusion_model.{unet_name(base, n)}": t for n, t in base.unet.state_dict().items()}
    for name, tensor in base.vae.state_dict().items():
        as_1x1 = tensor[:, :, None, None] if "attentions" in name and tensor.ndim == 2 else tensor
        tensors[f"first_stage_model.{vae_name(base, name)}"] = as_1x1
    first = "conditioner.embedders.0" if base.info.is_xl else "cond_stage_model"
    for name, tensor in base.text_encoders[0].state_dict().items():
        tensors[f"{first}.transformer.text_model.{name}"] = tensor
    tensors[f"{first}.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if base.info.is_xl:
        state = base.text_encoders[1].state_dict()
        tensors |= {f"conditioner.embedders.1.model.{n}": t for n, t in open_clip(state).items()}
    save_file({n: t.contiguous() for n, t in {**tensors, **more}.items()}, path)
    return path


def unet_name(base: Modules, name: str) -> str:
    """`down_blocks.0.resnets.1.conv1.weight` -> `input_blocks.2.0.in_layers.2.weight`."""
    layers = base.unet.config.layers_per_block
    fixed = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for ours, theirs in fixed.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    block, kind, rest = re.fullmatch(r"(\w+_blocks?(?:\.\d+)?)\.(\w+)\.(.*)", name).groups()
    number, _, rest = rest.partition(".")
    if kind == "resnets":
        inner, _, end = rest.rpartition(".")
        rest = f"{RESNET[inner]}.{end}"
    if block == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{rest}"
    side, index = block.split(".")
    start = int(index) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{start + layers + 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        place = 2 if base.unet.config.up_block_types[int(index)].startswith("CrossAttn") else 1
        return f"output_blocks.{start + layers}.{place}.{rest}"
    place = start + int(number) + (side == "down_blocks")
    return f"{'input' if side == 'down_blocks' else 'output'}_blocks.{place}.{int(kind == 'attentions')}.{rest}"


def vae_name(base: Base, name: str) -> str:
    """`decoder.up_blocks.0.resnets.1.conv1.weight` -> `decoder.up.1.block.1.conv1.weight` of two blocks."""
    blocks = len(base.vae.config.block_out_channels)
    for ours, theirs in ATTENTION.items():
        name = name.replace(f"attentions.0.{ours}.", f"attn_1.{theirs}.")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}", name)
    for ours, theirs in {
        "mid_block.": "mid.",
        "down_blocks.": "down.",
        "resnets.": "block.",
        "downsamplers.0": "downsample",
        "upsamplers.0": "upsample",
        "conv_shortcut": "nin_shortcut",
        "conv_norm_out": "norm_out",
    }.items():
        name = name.replace(ours, theirs)
    return name


def open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPTextModelWithProjection's tensors as OpenCLIP names and stacks them."""
    found = {}
    for name, tensor in state.items():
        name = name.removeprefix("text_model.").replace("encoder.layers.", "transformer.resblocks.")
        for ours, theirs in OPEN_CLIP.items():
            name = name.replace(ours, theirs)
        found[name] = tensor
    found["positional_embedding"] = found.pop("embeddings.position_embedding.weight")
    found["token_embedding.weight"] = found.pop("embeddings.token_embedding.weight")
    found["text_projection"] = found.pop("text_projection.weight").T
    for end in ("weight", "bias"):
        found |= {f"ln_final.{end}": found.pop(f"final_layer_norm.{end}")}
        for name in [n for n in found if n.endswith(f"self_attn.q_proj.{end}")]:
            parts = [found.pop(name.replace("q_proj", f"{x}_proj")) for x in "qkv"]
            found[name.replace(f"self_attn.q_proj.{end}", f"attn.in_proj_{end}")] = torch.cat(parts)
    return found
