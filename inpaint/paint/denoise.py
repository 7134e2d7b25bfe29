"""Denoising: rows, each with its own sampler, step, guidance and text, advanced together by one U-Net call per step.

The painter and the painting engine of the service both paint with this, and with nothing else. Shapes: B rows; U U-Net
rows (a guided row has two), V of them with a control picture; C latent channels; h w latents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inpaint.diffusion.samplers import COLUMNS, Trajectory, column, step
from inpaint.diffusion.schedule import NoiseSchedule
from inpaint.models.base import Base
from inpaint.models.latents import prepare, unet_input
from inpaint.models.prompts import Conditioning, unet_kwargs
from inpaint.paint.crop import WorkingImage
from inpaint.paint.request import PaintRequest

_NEXT_PREVIOUS = COLUMNS.index("next_previous")

Unet = Callable[..., Any]
"""A `UNet2DConditionModel`, or what it was compiled to."""


@dataclass(eq=False, kw_only=True)
class DenoisingRow:
    """One picture between two steps."""

    trajectory: Trajectory
    generator: torch.Generator
    """On the CPU; what the sampler draws comes from here."""
    latents_Chw: Tensor
    clean_Chw: Tensor
    """The clean latents predicted by the step before; zeros at first."""
    noise_Chw: Tensor
    hole_1hw: Tensor
    known_Chw: Tensor
    text: Conditioning
    """One row."""
    negative: Conditioning | None
    """One row; None where there is no guidance."""
    guidance_scale: float
    """Not read where there is none."""
    control: tuple[Tensor, float] | None = None
    """What the ControlNet sees (3 H W at the working shape, in [0, 1]) and the weight of what it adds."""
    uses: tuple[tuple[int, float], ...] = ()
    """(slot, weight) of the adapters painted with; the engine's."""
    step: int = 0
    """Steps taken."""

    @property
    def unet_rows(self) -> int:
        """What a step of it costs: 1, with guidance 2."""
        return 1 if self.negative is None else 2

    @property
    def left(self) -> int:
        """Steps to take."""
        return len(self.trajectory) - self.step


def start_rows(
    base: Base,
    schedule: NoiseSchedule,
    requests: Sequence[PaintRequest],
    images: Sequence[WorkingImage],
    text: Sequence[Conditioning],
    negative: Sequence[Conditioning | None],
) -> list[DenoisingRow]:
    """Rows before their first step; all images of one shape. Encodes with the VAE, in one call.

    Raises:
        InpaintError: steps or a strength that the base cannot be sampled with.
    """
    paths = [request.sampling.trajectory(schedule) for request in requests]
    images_BHW3 = torch.from_numpy(np.stack([image.image_HW3 for image in images])).to(base.device)
    holes_BHW = torch.from_numpy(np.stack([image.hole_HW for image in images])).to(base.device)
    pixels_B3HW = images_BHW3.permute(0, 3, 1, 2).float() / 127.5 - 1
    generators = [torch.Generator("cpu").manual_seed(r.seed) for r in requests]
    canvas = prepare(base, pixels_B3HW, holes_BHW[:, None].float(), generators, [p.start_clean == 0 for p in paths])
    return [
        DenoisingRow(
            trajectory=path,
            generator=generators[i],
            latents_Chw=path.start_clean * canvas.image_BChw[i] + path.start_noise * canvas.noise_BChw[i],
            clean_Chw=torch.zeros_like(canvas.noise_BChw[i]),
            noise_Chw=canvas.noise_BChw[i],
            hole_1hw=canvas.hole_B1hw[i],
            known_Chw=canvas.known_BChw[i],
            text=text[i],
            negative=negative[i],
            guidance_scale=requests[i].sampling.guidance_scale or 1.0,
            control=_control_of(base, requests[i], images[i]),
        )
        for i, path in enumerate(paths)
    ]


def _control_of(base: Base, request: PaintRequest, image: WorkingImage) -> tuple[Tensor, float] | None:
    if request.control is None:
        return None
    image_HW3 = torch.tensor(image.control_HW3, device=base.device)
    return image_HW3.permute(2, 0, 1).to(base.dtype) / 255, request.control.scale


@dataclass(frozen=True)
class BatchSettings:
    """How a batch is laid out in memory."""

    sizes: tuple[int, ...] = ()
    """Numbers of U-Net rows that batches are padded to, rising; empty: as many as there are."""
    memory_format: torch.memory_format = field(default=torch.contiguous_format)
    """Of the U-Net's input."""


class Batch:
    """Rows of one shape, stacked for as long as the same ones go on together."""

    def __init__(
        self,
        base: Base,
        schedule: NoiseSchedule,
        rows: Sequence[DenoisingRow],
        settings: BatchSettings | None = None,
        controlnet: Callable[..., Any] | None = None,
    ) -> None:
        """Args: controlnet: a `ControlNetModel`; needed where a row has a control picture."""
        self.base, self.schedule, self.rows = base, schedule, list(rows)
        self.settings = settings or BatchSettings()
        self.latents_BChw = torch.stack([row.latents_Chw for row in rows])
        self.clean_BChw = torch.stack([row.clean_Chw for row in rows])
        self._known_BChw = torch.stack([row.known_Chw for row in rows])
        self._hole_B1hw = torch.stack([row.hole_1hw for row in rows])
        self._noise_BChw = torch.stack([row.noise_Chw for row in rows]) if base.info.in_channels == 4 else None
        self._lay_out_unet_rows()
        self._control = None
        if any(row.control is not None for row in rows):
            assert controlnet is not None, "rows with a control picture need a ControlNet"
            self._control = _Control(controlnet, self.rows, self.source_U, self._kwargs)

    def _lay_out_unet_rows(self) -> None:
        """Rows with adapters first, so that the others cost their adapters' kernels nothing; padding last."""
        device = self.base.device
        places = [(i, positive) for i, row in enumerate(self.rows) for positive in (False, True)[-row.unet_rows :]]
        places.sort(key=lambda place: not self.rows[place[0]].uses)
        where = {place: index for index, place in enumerate(places)}
        wanted = next((size for size in self.settings.sizes if size >= len(places)), len(places))
        padded = places + [places[-1]] * (wanted - len(places))
        self.unet_uses = [self.rows[i].uses for i, _ in padded]
        self.source_U = torch.tensor([i for i, _ in padded], device=device)
        texts = [self._text_of(self.rows[i], positive) for i, positive in padded]
        height, width = (side * self.base.info.downsample for side in self.latents_BChw.shape[2:])
        self._kwargs = unet_kwargs(_stacked(texts), height, width)
        self._positive_B = torch.tensor([where[i, True] for i in range(len(self.rows))], device=device)
        self._is_guided = any(row.negative is not None for row in self.rows)
        self._negative_B = torch.tensor(
            [where[i, row.negative is None] for i, row in enumerate(self.rows)], device=device
        )
        scales = [1.0 if row.negative is None else row.guidance_scale for row in self.rows]
        self._scales_B111 = torch.tensor(scales, device=device).reshape(-1, 1, 1, 1)
        self._hole_U1hw = self._hole_B1hw[self.source_U]
        self._known_UChw = self._known_BChw[self.source_U] if self.base.info.in_channels == 9 else None

    @staticmethod
    def _text_of(row: DenoisingRow, positive: bool) -> Conditioning:
        if positive or row.negative is None:
            return row.text
        return row.negative

    @property
    def text_ULD(self) -> Tensor:
        """The text that each U-Net row attends to."""
        embeds: Tensor = self._kwargs["encoder_hidden_states"]
        return embeds

    def advance(self, unet: Unet) -> None:
        """One step of every row."""
        rows, device = self.rows, self.base.device
        lines = np.stack([row.trajectory.table_SK[row.step] for row in rows])
        times = np.array([row.trajectory.timesteps_S[row.step] for row in rows])
        table_BK, times_B = torch.from_numpy(lines).to(device), torch.from_numpy(times).to(device)
        output_BChw = self._predict(unet, table_BK, times_B)
        previous = self.clean_BChw if lines[:, _NEXT_PREVIOUS].any() else None
        self.latents_BChw, self.clean_BChw = step(
            table_BK, output_BChw, self.latents_BChw, previous, self._draw(), clip_range=self.schedule.clip_range
        )
        if self._noise_BChw is not None:
            known_BChw = column(table_BK, "known_clean", 4) * self._known_BChw
            known_BChw = known_BChw.addcmul_(column(table_BK, "known_noise", 4), self._noise_BChw)
            self.latents_BChw = torch.lerp(known_BChw, self.latents_BChw, self._hole_B1hw)
        for row in rows:
            row.step += 1

    def _predict(self, unet: Unet, table_BK: Tensor, times_B: Tensor) -> Tensor:
        """The U-Net's output with classifier-free guidance (Ho 2022, eq. 6), in one call for all rows; float32."""
        inputs_UChw = (self.latents_BChw * column(table_BK, "scale_input", 4))[self.source_U]
        times_U, kwargs = times_B[self.source_U], self._kwargs
        if self._control is not None:
            kwargs = {**kwargs, **self._control.residuals(inputs_UChw.to(self.base.dtype), times_U)}
        inputs_UChw = unet_input(inputs_UChw, self._hole_U1hw, self._known_UChw).to(self.base.dtype)
        inputs_UChw = inputs_UChw.contiguous(memory_format=self.settings.memory_format)
        output_UChw = unet(inputs_UChw, times_U, return_dict=False, **kwargs)[0].float()
        positive_BChw = output_UChw[self._positive_B]
        if not self._is_guided:
            return positive_BChw
        # An unguided row is its own negative.
        return torch.lerp(output_UChw[self._negative_B], positive_BChw, self._scales_B111)

    def _draw(self) -> Tensor | None:
        """Fresh noise, drawn on the CPU in the base's precision, as diffusers draws it."""
        drawing = [i for i, row in enumerate(self.rows) if row.trajectory.draws and row.left > 1]
        if not drawing:
            return None
        noise_BChw = torch.zeros(self.latents_BChw.shape)
        for i in drawing:
            shape = (1, *noise_BChw.shape[1:])
            noise_BChw[i] = torch.randn(shape, generator=self.rows[i].generator, dtype=self.base.dtype)[0]
        return noise_BChw.to(self.base.device)

    def split(self) -> None:
        """Hands each row its state back; the batch is done with."""
        for row, latents_Chw, clean_Chw in zip(self.rows, self.latents_BChw, self.clean_BChw, strict=True):
            row.latents_Chw, row.clean_Chw = latents_Chw, clean_Chw


class _Control:
    """What a ControlNet adds to the rows that have a picture for it; it sees the latents alone, as in diffusers."""

    def __init__(
        self, net: Callable[..., Any], rows: Sequence[DenoisingRow], source_U: Tensor, kwargs: Mapping[str, Any]
    ) -> None:
        """Args: source_U: row of each U-Net row. kwargs: the U-Net's, of all its rows."""
        sources = source_U.tolist()
        controls = [(u, control) for u, i in enumerate(sources) if (control := rows[i].control) is not None]
        self._net, self._rows = net, len(sources)
        self._index_V = torch.tensor([u for u, _ in controls], device=source_U.device)
        self._image_V3HW = torch.stack([image_3HW for _, (image_3HW, _) in controls])
        self._scale_V111 = self._image_V3HW.new_tensor([scale for _, (_, scale) in controls]).reshape(-1, 1, 1, 1)
        self._kwargs: dict[str, Any] = {"encoder_hidden_states": kwargs["encoder_hidden_states"][self._index_V]}
        added = kwargs.get("added_cond_kwargs")
        if added is not None:
            self._kwargs["added_cond_kwargs"] = {name: value_U[self._index_V] for name, value_U in added.items()}

    def residuals(self, latents_UChw: Tensor, times_U: Tensor) -> dict[str, Any]:
        """Keyword arguments of the U-Net; zeros in the other rows."""
        index_V = self._index_V
        down, middle = self._net(
            latents_UChw[index_V],
            times_U[index_V],
            controlnet_cond=self._image_V3HW,
            return_dict=False,
            **self._kwargs,
        )
        return {
            "down_block_additional_residuals": tuple(self._spread(residual) for residual in down),
            "mid_block_additional_residual": self._spread(middle),
        }

    def _spread(self, residual_Vchw: Tensor) -> Tensor:
        everywhere = residual_Vchw.new_zeros((self._rows, *residual_Vchw.shape[1:]))
        return everywhere.index_copy_(0, self._index_V, residual_Vchw * self._scale_V111)


def _stacked(texts: Sequence[Conditioning]) -> Conditioning:
    embeds_BLD = torch.cat([text.embeds_BLD for text in texts])
    pooled = [text.pooled_BP for text in texts if text.pooled_BP is not None]
    return Conditioning(embeds_BLD, torch.cat(pooled) if pooled else None)
