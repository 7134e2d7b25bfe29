"""Steps of the U-Net: rows of one shape, each with its own adapters and text, advanced together.

What is worked out once for a batch (its adapters' matrices, its text's keys and values, which no timestep changes) is
kept for as long as the same rows go on together; batches of several shapes take turns without losing it.

Shapes: U rows, N tokens, L text tokens, H heads.
"""

import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ControlNetModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from inpaint.diffusion.schedule import NoiseSchedule, schedule_of
from inpaint.models.base import Base
from inpaint.models.controlnet import check_controlnet
from inpaint.models.low_rank import Gathered
from inpaint.paint.denoise import Batch, DenoisingRow
from inpaint.serve.engine.adapter_slots import AdapterSlots
from inpaint.serve.engine.settings import EngineSettings

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}

KeyValue = tuple[Tensor, Tensor]
"""Of the text in one layer, each U x H x L x d."""


class TextAttention:
    """A diffusers attention processor for cross-attention to keys and values that were put there before."""

    def __init__(self, layer: Any) -> None:
        """Args: layer: a diffusers `Attention`, changed in place."""
        self._layer = layer
        self.key_value: KeyValue | None = None
        layer.set_processor(self)

    def project(self, text_ULD: Tensor) -> KeyValue:
        """Keys and values of a batch's text, by the adapters installed now."""
        return _key_value(self._layer, text_ULD)

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: object) -> Tensor:
        """U x N x C -> U x N x C; the text is not read."""
        assert self.key_value is not None
        return _attended(attn, hidden_states, self.key_value)


def self_attention(attn: Any, hidden_states: Tensor, encoder_hidden_states: None = None, **_: object) -> Tensor:
    """A diffusers attention processor, U x N x C -> U x N x C, without what theirs does for other kinds of layers (a
    division by one is a kernel, too)."""
    return _attended(attn, hidden_states, _key_value(attn, hidden_states))


def _key_value(layer: Any, seen_ULD: Tensor) -> KeyValue:
    return _by_head(layer, layer.to_k(seen_ULD)), _by_head(layer, layer.to_v(seen_ULD))


def _attended(layer: Any, x_UNC: Tensor, key_value: KeyValue) -> Tensor:
    query_UHNd = _by_head(layer, layer.to_q(x_UNC))
    mixed_UHNd = functional.scaled_dot_product_attention(query_UHNd, *key_value)
    return layer.to_out[0](mixed_UHNd.transpose(1, 2).flatten(2))


def _by_head(layer: Any, x_UNC: Tensor) -> Tensor:
    return x_UNC.unflatten(-1, (layer.heads, -1)).transpose(1, 2)


def _activate_time_once(unet: Any) -> None:
    """The timestep's embedding goes through SiLU before the residual blocks, not in each of them."""
    blocks = [module for module in unet.modules() if isinstance(module, ResnetBlock2D | ResnetBlockCondNorm2D)]
    if unet.time_embed_act is None and all(
        isinstance(block, ResnetBlock2D) and isinstance(block.nonlinearity, nn.SiLU) and not block.skip_time_act
        for block in blocks
    ):
        unet.time_embed_act = nn.SiLU()
        for block in blocks:
            block.skip_time_act = True


def _is_plain(layer: Any) -> bool:
    """Whether a diffusers `Attention` does nothing else than these: so do those of all supported bases."""
    norms = (layer.norm_q, layer.norm_k, layer.norm_cross, layer.group_norm, layer.spatial_norm)
    return not any(norms) and not layer.residual_connection and layer.rescale_output_factor == 1


@dataclass(frozen=True, eq=False)
class RunningBatch:
    """A batch with what is worked out once for it."""

    batch: Batch
    adapters: Gathered
    text: list[KeyValue]


class UNetRunner:
    """A base's U-Net with the adapters in its slots. Changes the base in place."""

    def __init__(self, base: Base, settings: EngineSettings, controlnet: ControlNetModel | None = None) -> None:
        """Args: controlnet: sees the rows that have a control picture, as it is: adapters change the U-Net alone."""
        if controlnet is not None:
            check_controlnet(controlnet, base)
        self.base, self.settings, self.controlnet = base, settings, controlnet
        self.schedule: NoiseSchedule = schedule_of(base.scheduler)
        self._memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        for module in filter(None, (base.unet, base.vae, controlnet)):
            module.to(memory_format=self._memory_format)
        self.slots = AdapterSlots(base, slots=settings.slots, max_rank=settings.max_rank)
        self._pool = self.slots.pools["unet"]
        self.unet: Callable[..., Any] = self._compiled() if settings.compile else base.unet
        self.is_warm = False
        """From then on nothing is compiled: what is not yet runs as it is."""
        self.unet_seconds = 0.0
        """Spent in calls of the U-Net; on a GPU what the host waits, not the device."""
        layers = [
            (name.rpartition(".")[2], module)
            for name, module in base.unet.named_modules()
            if isinstance(module, Attention) and _is_plain(module)
        ]
        self._attentions = [TextAttention(layer) for name, layer in layers if name == "attn2"]
        for name, layer in layers:
            if name == "attn1":
                layer.set_processor(self_attention)
        _activate_time_once(base.unet)
        self._stacks: dict[tuple[int, int], RunningBatch] = {}
        self._installed: list[KeyValue] | None = None
        """The text of the stack that the U-Net is set up for."""

    def advance(self, shape: tuple[int, int], rows: list[DenoisingRow]) -> Batch:
        """One step of all rows of a shape; those that stepped before and are not among them have left.

        Where it raises, the rows stand where they did, and may be tried again.
        """
        stack = self._stacks.get(shape)
        if stack is None or stack.batch.rows != rows:
            self._disband(shape)
            stack = self._stacks[shape] = self.stack(rows)
        self.step(stack)
        return stack.batch

    def stack(self, rows: list[DenoisingRow]) -> RunningBatch:
        """Rows that go on together, and what their adapters and texts come to."""
        batch = Batch(
            self.base,
            self.schedule,
            rows,
            sizes=self.settings.batch_sizes,
            memory_format=self._memory_format,
            controlnet=self.controlnet,
        )
        adapters = self._pool.gather(batch.unet_uses, fixed=self.settings.compile)
        self._installed = None
        self._pool.install(adapters)
        return RunningBatch(batch, adapters, [attention.project(batch.text_ULD) for attention in self._attentions])

    def step(self, stack: RunningBatch) -> None:
        """One step of all its rows."""
        if self._installed is not stack.text:
            self._pool.install(stack.adapters)
            for attention, key_value in zip(self._attentions, stack.text, strict=True):
                attention.key_value = key_value
            self._installed = stack.text
        stack.batch.advance(self._timed_unet)

    def forget(self, present: Collection[tuple[int, int]]) -> None:
        """Free what is kept for shapes that have no rows any more."""
        for shape in self._stacks.keys() - present:
            del self._stacks[shape]

    def disband(self) -> None:
        """Give all rows their state back, and free what is kept for their batches."""
        for shape in list(self._stacks):
            self._disband(shape)
        self._pool.install(Gathered())
        self._installed = None
        for attention in self._attentions:
            attention.key_value = None

    def _disband(self, shape: tuple[int, int]) -> None:
        stack = self._stacks.pop(shape, None)
        if stack is not None:
            stack.batch.split()

    def attention(self) -> AbstractContextManager[None]:
        """The context to step in."""
        name = self.settings.attention
        return nullcontext() if name == "auto" else sdpa_kernel(_BACKENDS[name])

    def _compiled(self) -> Callable[..., Any]:
        shapes = max(1, len(self.settings.compile_shapes))
        limit = shapes * len(self.settings.batch_sizes) * (1 if self.controlnet is None else 2)
        compiled = torch.compile(self.base.unet, dynamic=False, recompile_limit=limit)  # type: ignore[call-overload]

        def unet(*arguments: Any, **settings: Any) -> Any:
            with torch.compiler.set_stance("eager_on_recompile" if self.is_warm else "default"):
                return compiled(*arguments, **settings)

        return unet

    def _timed_unet(self, *arguments: Any, **settings: Any) -> Any:
        started = time.perf_counter()
        output = self.unet(*arguments, **settings)
        self.unet_seconds += time.perf_counter() - started
        return output
