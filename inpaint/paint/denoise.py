"""Denoising: rows, each with its own sampler, step, guidance and text, advanced together by one U-Net call per step.

The painter and the painting engine of the service both paint with this, and with nothing else. Shapes: B rows; U U-Net
rows (a guided row has two), V of them with a control picture; C latent channels; h w latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inpaint.device import on_device
from inpaint.diffusion.samplers import COLUMNS, Trajectory, column, step
from inpaint.diffusion.schedule import NoiseSchedule
from inpaint.models.base import Base
from inpaint.models.latents import Posterior, encode, masked, shrink_hole, unet_input
from inpaint.models.prompts import Conditioning, stacked, unet_kwargs
from inpaint.paint.crop import WorkingImage
from inpaint.paint.request import PaintRequest, Start

_PREVIOUS, _EARLIER, _NOISE = (COLUMNS.index(f"next_{name}") for name in ("previous", "earlier", "noise"))

Unet = Callable[..., Any]
"""A `UNet2DConditionModel`, or what it was compiled to."""


@dataclass(eq=False, kw_only=True)
class DenoisingRow:
    """One picture between two steps."""

    trajectory: Trajectory
    latents_Chw: Tensor
    clean_Chw: Tensor
    """The clean latents predicted by the call before; zeros at first."""
    earlier_Chw: Tensor
    """Those of the call before that."""
    noise_Chw: Tensor
    fresh_SChw: Tensor | None
    """What the sampler draws at each of the trajectory's steps, zeros where nothing; None where it never draws."""
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
    """Steps taken: calls of the U-Net."""

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

    Draws what the inpaint pipelines of diffusers draw, in their order, row by row: the posterior of the whole image (4
    channels, or where a row does not start from noise alone), the noise, the posterior of the masked image, then what
    the sampler draws, so that no step waits for it; without the posteriors what the text-to-image pipelines draw, where
    there is text alone. Raises InpaintError for steps or a strength that the base cannot be sampled with.
    """
    paths = [request.sampling.trajectory(schedule) for request in requests]
    images_BHW3 = on_device(torch.from_numpy(np.stack([image.image_HW3 for image in images])), base.device)
    holes_BHW = on_device(torch.from_numpy(np.stack([image.hole_HW for image in images])), base.device)
    pixels_B3HW = images_BHW3.permute(0, 3, 1, 2).float() / 127.5 - 1
    hole_B1HW = holes_BHW[:, None].float()
    hole_B1hw = shrink_hole(hole_B1HW, base.info.downsample)
    is_nine = base.info.in_channels == 9
    unseen = [request.text_alone and not is_nine for request in requests]
    whole = [i for i, path in enumerate(paths) if path.start_clean or not (is_nine or unseen[i])]
    # One by one: a list of indices would be copied to the device.
    seen = [pixels_B3HW[i : i + 1] for i in whole] + ([masked(pixels_B3HW, hole_B1HW)] if is_nine else [])
    posterior = encode(base, torch.cat(seen)) if seen else _of_nothing(base, *hole_B1hw.shape[2:])
    vae_dtype = base.vae.encoder.conv_in.weight.dtype

    def draw(generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        return on_device(_normal(generator, posterior.shape, dtype).float(), base.device)

    rows = []
    for i, (path, request) in enumerate(zip(paths, requests, strict=True)):
        generator = torch.Generator("cpu").manual_seed(request.seed)
        image_Chw = torch.zeros(posterior.shape, device=base.device)
        if i in whole:
            image_Chw = posterior[whole.index(i)].sample(draw(generator, vae_dtype))
        noise_Chw = draw(generator, base.dtype)
        start_Chw = image_Chw
        if request.sampling.start in (Start.NOISE, Start.NOTHING):
            in_hole_Chw = noise_Chw if request.sampling.start == Start.NOISE else torch.zeros_like(noise_Chw)
            start_Chw = torch.lerp(image_Chw, in_hole_Chw, hole_B1hw[i])
        # A 4-channel pipeline encodes the masked image for nothing, but draws for it.
        drawn_Chw = torch.zeros_like(noise_Chw) if unseen[i] else draw(generator, vae_dtype)
        fresh_SChw = _fresh(generator, path, noise_Chw.shape, base.dtype)
        control = None
        if request.control is not None:
            control_HW3 = on_device(torch.tensor(images[i].control_HW3), base.device)
            control = control_HW3.permute(2, 0, 1).to(base.dtype) / 255, request.control.scale
        rows.append(
            DenoisingRow(
                trajectory=path,
                latents_Chw=path.start_clean * start_Chw + path.start_noise * noise_Chw,
                clean_Chw=torch.zeros_like(noise_Chw),
                earlier_Chw=torch.zeros_like(noise_Chw),
                noise_Chw=noise_Chw,
                fresh_SChw=None if fresh_SChw is None else on_device(fresh_SChw, base.device),
                hole_1hw=hole_B1hw[i],
                known_Chw=posterior[len(whole) + i].sample(drawn_Chw) if is_nine else image_Chw,
                text=text[i],
                negative=negative[i],
                guidance_scale=request.sampling.guidance_scale or 1.0,
                control=control,
            )
        )
    return rows


def _of_nothing(base: Base, height: int, width: int) -> Posterior:
    """Of no image; it has a shape all the same."""
    nothing_0Chw = torch.zeros(0, base.vae.config.latent_channels, height, width, device=base.device)
    return Posterior(nothing_0Chw, nothing_0Chw)


def _normal(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Noise as diffusers draws it: in `dtype`, and on the CPU, so that a seed means the same on every device."""
    return torch.randn((1, *shape), generator=generator, dtype=dtype)[0]


def _fresh(generator: torch.Generator, path: Trajectory, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """`DenoisingRow.fresh_SChw`, on the CPU."""
    drawing = np.flatnonzero(path.table_SK[:, _NOISE])
    if not drawing.size:
        return None
    fresh_SChw = torch.zeros(len(path), *shape)
    for number in drawing:
        fresh_SChw[number] = _normal(generator, shape, path.noise_dtype or dtype)
    return fresh_SChw


class Batch:
    """Rows of one shape, stacked for as long as the same ones go on together."""

    def __init__(
        self,
        base: Base,
        schedule: NoiseSchedule,
        rows: Sequence[DenoisingRow],
        *,
        sizes: Sequence[int] = (),
        memory_format: torch.memory_format = torch.contiguous_format,
        controlnet: Callable[..., Any] | None = None,
    ) -> None:
        """
        Args:
            sizes: numbers of U-Net rows that batches are padded to, rising; empty: as many as there are.
            memory_format: of the U-Net's input.
            controlnet: a `ControlNetModel`; needed where a row has a control picture.
        """
        self.base, self.schedule, self.rows = base, schedule, list(rows)
        self._done = 0
        """Steps since these rows came together."""
        self._memory_format = memory_format
        self.latents_BChw = torch.stack([row.latents_Chw for row in rows])
        self.clean_BChw = torch.stack([row.clean_Chw for row in rows])
        self._earlier_BChw = torch.stack([row.earlier_Chw for row in rows])
        self._known_BChw = torch.stack([row.known_Chw for row in rows])
        self._hole_B1hw = torch.stack([row.hole_1hw for row in rows])
        self._noise_BChw = torch.stack([row.noise_Chw for row in rows])
        # Rows with adapters first, so that the others cost their adapters' kernels nothing; padding last.
        places = [(i, positive) for i, row in enumerate(rows) for positive in (False, True) if positive or row.negative]
        places.sort(key=lambda place: not rows[place[0]].uses)
        where = {place: index for index, place in enumerate(places)}
        wanted = next((size for size in sizes if size >= len(places)), len(places))
        padded = places + [places[-1]] * (wanted - len(places))
        self.unet_uses = [rows[i].uses for i, _ in padded]

        source = [i for i, _ in padded]
        self.source_U = on_device(source, base.device)
        self._positive_B = on_device([where[i, True] for i in range(len(rows))], base.device)
        # An unguided row is its own negative.
        self._negative_B = on_device([where[i, row.negative is None] for i, row in enumerate(rows)], base.device)
        self._scales_B111 = on_device([float(row.guidance_scale) for row in rows], base.device).reshape(-1, 1, 1, 1)
        # No row goes on past the first one's end: so many steps at most are taken together.
        ahead = [slice(row.step, row.step + min(row.left for row in rows)) for row in rows]
        lines_TBK = np.stack([row.trajectory.table_SK[part] for row, part in zip(rows, ahead, strict=True)], axis=1)
        times_TB = np.stack([row.trajectory.timesteps_S[part] for row, part in zip(rows, ahead, strict=True)], axis=1)
        self._table_TBK = on_device(lines_TBK, base.device)
        self._times_TU = on_device(times_TB[:, source], base.device)
        self._used_TK = np.asarray(lines_TBK.any(axis=1))
        self._nothing_Chw = torch.zeros_like(self.latents_BChw[0])
        self._is_guided = any(row.negative is not None for row in rows)
        texts = [rows[i].text if positive else rows[i].negative or rows[i].text for i, positive in padded]
        size = [side * base.info.downsample for side in self.latents_BChw.shape[2:]]
        self._kwargs = unet_kwargs(stacked(texts), *size)
        self._hole_U1hw = self._hole_B1hw[self.source_U]
        self._known_UChw = self._known_BChw[self.source_U] if base.info.in_channels == 9 else None
        controls = {u: control for u, (i, _) in enumerate(padded) if (control := rows[i].control) is not None}
        self._control = None
        if controls:
            assert controlnet is not None, "rows with a control picture need a ControlNet"
            kwargs = unet_kwargs(stacked([texts[u] for u in controls]), *size)
            self._control = _control(controlnet, controls, kwargs, len(padded))

    @property
    def text_ULD(self) -> Tensor:
        """The text that each U-Net row attends to."""
        embeds: Tensor = self._kwargs["encoder_hidden_states"]
        return embeds

    def advance(self, unet: Unet) -> None:
        """One step of every row; none may be past its last. Where it raises, all stand where they did."""
        table_BK, used_K = self._table_TBK[self._done], self._used_TK[self._done]
        output_BChw = self._predict(unet, table_BK, self._times_TU[self._done])
        previous = self.clean_BChw
        latents_BChw, clean_BChw = step(
            table_BK,
            output_BChw,
            self.latents_BChw,
            previous if used_K[_PREVIOUS] else None,
            self._drawn() if used_K[_NOISE] else None,
            earlier=self._earlier_BChw if used_K[_EARLIER] else None,
            clip_range=self.schedule.clip_range,
        )
        if self._known_UChw is None:
            known_BChw = column(table_BK, "known_clean", 4) * self._known_BChw
            known_BChw = known_BChw.addcmul_(column(table_BK, "known_noise", 4), self._noise_BChw)
            latents_BChw = torch.lerp(known_BChw, latents_BChw, self._hole_B1hw)
        self.latents_BChw, self.clean_BChw, self._earlier_BChw = latents_BChw, clean_BChw, previous
        for row in self.rows:
            row.step += 1
        self._done += 1

    def _predict(self, unet: Unet, table_BK: Tensor, times_U: Tensor) -> Tensor:
        """The U-Net's output with classifier-free guidance (Ho 2022, eq. 6), in one call for all rows; float32."""
        inputs_UChw = (self.latents_BChw * column(table_BK, "scale_input", 4))[self.source_U]
        kwargs = self._kwargs
        if self._control is not None:
            kwargs = {**kwargs, **self._control(inputs_UChw.to(self.base.dtype), times_U)}
        inputs_UChw = unet_input(inputs_UChw, self._hole_U1hw, self._known_UChw)
        inputs_UChw = inputs_UChw.to(self.base.dtype, memory_format=self._memory_format)
        output_UChw = unet(inputs_UChw, times_U, return_dict=False, **kwargs)[0].float()
        positive_BChw = output_UChw[self._positive_B]
        if not self._is_guided:
            return positive_BChw
        return torch.lerp(output_UChw[self._negative_B], positive_BChw, self._scales_B111)

    def _drawn(self) -> Tensor:
        """Fresh noise of the rows that take some, zeros for the others."""
        nothing_Chw = self._nothing_Chw
        return torch.stack([nothing_Chw if row.fresh_SChw is None else row.fresh_SChw[row.step] for row in self.rows])

    def split(self) -> None:
        """Hands each row its state back; the batch is done with."""
        for i, row in enumerate(self.rows):
            row.latents_Chw, row.clean_Chw = self.latents_BChw[i], self.clean_BChw[i]
            row.earlier_Chw = self._earlier_BChw[i]


def _control(
    net: Callable[..., Any], controls: dict[int, tuple[Tensor, float]], kwargs: dict[str, Any], rows: int
) -> Callable[[Tensor, Tensor], dict[str, Any]]:
    """(scaled latents U x C x h x w, timesteps U) -> keyword arguments of the U-Net: what a ControlNet adds to the rows
    that have a picture for it (`controls`, by U-Net row), zeros in the others. It sees the latents alone, as in
    diffusers, and the U-Net's `kwargs` of these rows."""
    pictures, scales = zip(*controls.values(), strict=True)
    image_V3HW = torch.stack(pictures)
    index_V = on_device(list(controls), image_V3HW.device)
    scale_V111 = on_device(scales, image_V3HW.device).to(image_V3HW.dtype).reshape(-1, 1, 1, 1)

    def spread(residual_Vchw: Tensor) -> Tensor:
        everywhere = residual_Vchw.new_zeros((rows, *residual_Vchw.shape[1:]))
        return everywhere.index_copy_(0, index_V, residual_Vchw * scale_V111)

    def residuals(latents_UChw: Tensor, times_U: Tensor) -> dict[str, Any]:
        seen = latents_UChw[index_V], times_U[index_V]
        down, middle = net(*seen, controlnet_cond=image_V3HW, return_dict=False, **kwargs)
        added = tuple(spread(residual) for residual in down)
        return {"down_block_additional_residuals": added, "mid_block_additional_residual": spread(middle)}

    return residuals
