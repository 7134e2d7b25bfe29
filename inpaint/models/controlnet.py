"""ControlNets (Zhang et al. 2023, "Adding conditional control to text-to-image diffusion models") beside a base.

A ControlNet is told the latents alone, whatever else the U-Net sees: one fits a base of 4 channels and its inpainting
sibling of 9.
"""

from diffusers import ControlNetModel, UNet2DConditionModel

from inpaint.errors import InpaintError
from inpaint.models.base import Base, no_progress_bars
from inpaint.models.locate import locate_controlnet

LATENT_CHANNELS = 4
_EMBEDDING = (16, 32, 96, 256)
"""Channels of what a picture goes through; each but the first halves its sides."""
_SHARED = ("block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type")
"""Settings in which a ControlNet is as its U-Net, or what it adds does not fit."""


def new_controlnet(base: Base) -> ControlNetModel:
    """A copy of the U-Net's encoder, with its weights, that adds nothing as yet; on the CPU."""
    unet = base.unet
    four = UNet2DConditionModel.from_config({**unet.config, "in_channels": LATENT_CHANNELS})
    weights = unet.state_dict()
    four.load_state_dict(weights | {"conv_in.weight": weights["conv_in.weight"][:, :LATENT_CHANNELS]})
    halvings = base.info.downsample.bit_length() - 1
    return ControlNetModel.from_unet(four, conditioning_embedding_out_channels=_EMBEDDING[: halvings + 1])


def load_controlnet(name: str, base: Base, revision: str | None = None) -> ControlNetModel:
    """A ControlNet for a base, in its type and on its device: a folder in diffusers format, a hub id, or `toy-edges`.

    Raises:
        InpaintError: not found, no safetensors, not of this revision, or made for another kind of base.
    """
    folder, variant, _ = locate_controlnet(name, revision)
    with no_progress_bars():
        net = ControlNetModel.from_pretrained(folder, use_safetensors=True, variant=variant, torch_dtype=base.dtype)
    check_controlnet(net, base)
    return net.eval().to(base.device)


def check_controlnet(net: ControlNetModel, base: Base) -> None:
    """Raises InpaintError where a ControlNet does not fit a base, or works in a way that is not supported."""
    ours, theirs, name = net.config, base.unet.config, net.config.get("_name_or_path") or "given"
    for setting in _SHARED:
        if ours[setting] != theirs[setting]:
            raise InpaintError(
                f"ControlNet {name}: its {setting} is {ours[setting]}, that of the base {base.info.name} is "
                f"{theirs[setting]}; give one that was made for this kind of base"
            )
    if ours.in_channels != LATENT_CHANNELS or ours.conditioning_channels != 3:
        raise InpaintError(
            f"ControlNet {name}: takes {ours.in_channels} channels and pictures of {ours.conditioning_channels}; "
            f"supported are {LATENT_CHANNELS} and 3"
        )
    shrinks = 2 ** (len(ours.conditioning_embedding_out_channels) - 1)
    if shrinks != base.info.downsample:
        raise InpaintError(
            f"ControlNet {name}: makes pictures {shrinks} times smaller, the base's latents are {base.info.downsample} "
            "times smaller; give one that was made for this kind of base"
        )
    if ours.global_pool_conditions:
        raise InpaintError(f"ControlNet {name}: one that pools its conditions (shuffle) is not supported")
