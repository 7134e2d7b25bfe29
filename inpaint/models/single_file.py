"""A base as one `.safetensors` file in the original layout, as Civitai and A1111 have them: known by its header alone.

Names are converted by diffusers' single-file loader; configurations are our own (`inpaint.models.architectures`), so
that nothing is asked of the network.
Covered: Stable Diffusion 1.5 and SDXL, with 4 or 9 channels, of noise or v prediction, whose text encoders and VAE are
in the file. Not covered: Stable Diffusion 2, SDXL's refiner, parts of a base, pickled `.ckpt` files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from diffusers.loaders import single_file_utils as loader
from torch import Tensor, nn

from inpaint.errors import InpaintError
from inpaint.models.architectures import Architecture
from inpaint.models.architectures import vae as blank_vae
from inpaint.models.layers import Modules

_FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"
_SDXL, _SD15 = "conditioner.embedders.1.model.", "cond_stage_model.transformer."
_OTHERS = {
    "lora_": "a LoRA; it is an adapter, not a base",
    "edm_": "of EDM noise (Playground), which is not supported",
    "cond_stage_model.model.": "Stable Diffusion 2, which is not supported",
    "conditioner.embedders.0.model.": "SDXL's refiner, which is not supported",
    "down_blocks.": "one part of a diffusers folder; give the folder",
}
"""Beginning of a tensor's name -> what a file that has such ones is."""


@dataclass(frozen=True, kw_only=True)
class SingleFile(Architecture):
    """A supported checkpoint. Made by `open_file`."""

    path: Path

    def load(self, dtype: torch.dtype) -> Modules:
        """With their weights in `dtype`. Raises InpaintError for a module that is not, or not wholly, in the file."""
        with init_empty_weights():
            modules = self.blank()
        tensors = safetensors.torch.load_file(self.path)
        self._fill(modules.unet, loader.convert_ldm_unet_checkpoint(tensors, modules.unet.config), dtype)
        self._fill(modules.vae, loader.convert_ldm_vae_checkpoint(tensors, modules.vae.config), dtype)
        first, *second = modules.text_encoders
        self._fill(first, loader.convert_ldm_clip_checkpoint(tensors), dtype)
        for encoder in second:
            self._fill(encoder, loader.convert_open_clip_checkpoint(encoder, tensors, prefix=_SDXL), dtype)
        return modules

    def load_vae(self, dtype: torch.dtype) -> AutoencoderKL:
        """Of the modules the VAE alone. Raises InpaintError, as `load`."""
        with init_empty_weights():
            vae = blank_vae(is_xl=self.is_xl)
        tensors = safetensors.torch.load_file(self.path)
        self._fill(vae, loader.convert_ldm_vae_checkpoint(tensors, vae.config), dtype)
        return vae

    def vae_config(self) -> Mapping[str, Any]:
        """Of its architecture."""
        with init_empty_weights():
            return blank_vae(is_xl=self.is_xl).config

    def _fill(self, module: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        names = module.state_dict().keys()
        # transformers 5 flattened CLIPTextModel.
        state = {n if n in names else n.removeprefix("text_model."): t for n, t in tensors.items()}
        absent = sorted(names - state.keys())
        if absent:
            raise InpaintError(
                f"base {self.path}: {len(absent)} of {len(names)} tensors of its {type(module).__name__} are missing, "
                f"such as {absent[0]}: it is a part of a checkpoint, give a whole one"
            )
        # Copied: what the file's bytes are mapped to would be read again whenever memory is short.
        copied = {name: state[name].to(dtype, copy=True) for name in names}
        try:
            module.load_state_dict(copied, assign=True)
        except RuntimeError as error:
            raise InpaintError(f"base {self.path}: it is of another architecture ({error})") from error


def open_file(path: Path) -> SingleFile:
    """Read a checkpoint's header: a few hundred kB, whatever its size. Raises InpaintError for a file that is not
    safetensors, or not a whole checkpoint of a supported family."""
    if path.suffix != ".safetensors":
        raise InpaintError(
            f"base {path}: only .safetensors files are opened, for a pickle (.ckpt, .pt) can run any code. Take the "
            "safetensors version of it, or convert one you trust: `safetensors.torch.save_file(torch.load(OLD, "
            'weights_only=True)["state_dict"], NEW)`'
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = set(file.keys())
            shape = file.get_slice(_FIRST_CONVOLUTION).get_shape() if _FIRST_CONVOLUTION in names else [0, 0]
    except safetensors.SafetensorError as error:
        raise InpaintError(f"base {path}: not a safetensors file ({error})") from error
    is_xl, is_sd15 = (any(name.startswith(prefix) for name in names) for prefix in (_SDXL, _SD15))
    what = next((text for prefix, text in _OTHERS.items() if any(name.startswith(prefix) for name in names)), None)
    if what or shape[1] not in (4, 9) or not (is_xl or is_sd15):
        what = what or (f"a U-Net of {shape[1]} input channels" if shape[1] else "no such checkpoint")
        raise InpaintError(
            f"base {path}: it is {what}. A single file must be a whole checkpoint of Stable Diffusion 1.5 or SDXL "
            "with 4 or 9 input channels"
        )
    # Empty tensors that A1111 and ComfyUI know, too: v prediction, and noise of zero signal at the last timestep.
    noise: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in names else {}
    if "ztsnr" in names:
        noise |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return SingleFile(path=path, is_xl=is_xl, in_channels=int(shape[1]), noise=noise)
