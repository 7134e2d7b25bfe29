"""What layers are called in kohya's files: `.` becomes `_`, and SDXL's U-Net has the original's names.

Sources: kohya-ss/sd-scripts `networks/lora.py` (prefixes, modules) and `library/sdxl_model_util.py` (the original's
blocks). A1111 and ComfyUI find these names, too. Names are made, never parsed: `_` stands for `.` and for itself.
"""

import re
from collections.abc import Iterator

from inpaint.models.base import BaseInfo

SUFFIX = ".safetensors"
_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


class KohyaNames:
    """The names of a base's layers."""

    def __init__(self, info: BaseInfo) -> None:
        self._is_xl = info.is_xl
        ups = re.findall(r"unet\.up_blocks\.\d+\.attentions\.(\d+)", " ".join(info.layers))
        self._per_block = 1 + max(map(int, ups), default=0)
        """Attentions of an upward block, and one more than those of a downward one."""

    def own(self, layer: str) -> str:
        """What kohya writes for a layer (on disk): of SD 1.5 `lora_unet_down_blocks_...`, `lora_te_text_model_...`, of
        SDXL `lora_unet_input_blocks_...`, `lora_te1_text_model_...`, `lora_te2_text_model_...`."""
        prefix, _, path = layer.partition(".")
        if self._is_xl and prefix == "unet":
            path = self._original(path)
        head = "lora_te1" if self._is_xl and prefix == "text_encoder" else _PREFIXES[prefix]
        return f"{head}_{path}".replace(".", "_")

    def all(self, layer: str) -> Iterator[str]:
        """What a layer (on disk) is called in files of others: kohya's and diffusers'."""
        prefix, _, path = layer.partition(".")
        yield layer
        yield f"{prefix}.{path.removeprefix('text_model.')}"
        yield self.own(layer)
        # Others' writers: diffusers' names of SDXL's U-Net, and the first encoder counted where it is the only one.
        yield f"{'lora_te1' if prefix == 'text_encoder' else _PREFIXES[prefix]}_{path}".replace(".", "_")

    def _original(self, path: str) -> str:
        """diffusers' path in SDXL's U-Net -> the original one: `down_blocks.1.attentions.0` is `input_blocks.4.1`, for
        there a block's layers, and its up- or downsampler, are counted on."""

        def renamed(match: re.Match[str]) -> str:
            block, attention = int(match[2]), int(match[3])
            if match[1] == "down":
                return f"input_blocks.{block * self._per_block + attention + 1}.1"
            return f"output_blocks.{block * self._per_block + attention}.1"

        path = re.sub(r"^(down|up)_blocks\.(\d+)\.attentions\.(\d+)", renamed, path)
        return re.sub(r"^mid_block\.attentions\.0", "middle_block.1", path)
