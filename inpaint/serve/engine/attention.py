"""Attention of the engine's U-Net: the keys and values of the text are worked out once per batch, not at every step.

They depend on the text and on the adapters, not on the timestep. Shapes: U rows, N tokens, L text tokens, H heads.
"""

from dataclasses import dataclass
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

TextKeyValues = dict[str, tuple[Tensor, Tensor]]
"""Keys and values, U x H x L x d, by attention layer."""


@dataclass(eq=False)
class TextAttention:
    """A diffusers attention processor for cross-attention, whose keys and values were put there before."""

    key_UHLd: Tensor | None = None
    value_UHLd: Tensor | None = None

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: object) -> Tensor:
        """U x N x C -> U x N x C; the text is not read."""
        assert self.key_UHLd is not None and self.value_UHLd is not None
        query_UHNd = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        mixed_UHNd = functional.scaled_dot_product_attention(query_UHNd, self.key_UHLd, self.value_UHLd)
        return attn.to_out[0](mixed_UHNd.transpose(1, 2).flatten(2))


class TextKeyValueCache:
    """The cross-attention layers of a U-Net, changed in place to attend to keys and values made before."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._layers = {}
        self._installed: TextKeyValues | None = None
        for name, module in unet.named_modules():
            # Only the plain kind, which all supported bases have: what else diffusers' processor handles is not there.
            if name.endswith(".attn2") and not (
                module.norm_q or module.norm_k or module.norm_cross or module.group_norm or module.residual_connection
            ):
                self._layers[name] = (module, TextAttention())
        for module, processor in self._layers.values():
            module.set_processor(processor)

    def compute(self, text_ULD: Tensor) -> TextKeyValues:
        """Keys and values of a batch's text, by the adapters installed now."""
        computed = {}
        for name, (module, _) in self._layers.items():
            key, value = (
                project(text_ULD).unflatten(-1, (module.heads, -1)).transpose(1, 2)
                for project in (module.to_k, module.to_v)
            )
            computed[name] = (key, value)
        return computed

    def install(self, computed: TextKeyValues) -> None:
        """Attend to these from now on. Costs nothing where it does so already."""
        if self._installed is not computed:
            for name, (_, processor) in self._layers.items():
                processor.key_UHLd, processor.value_UHLd = computed[name]
            self._installed = computed
