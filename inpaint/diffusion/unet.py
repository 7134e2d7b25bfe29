"""The U-Nets of the DDPM: a plain one, and one that sees the hole and what is known around it.

Shapes: B samples, H x W pixels; H and W are multiples of `UNetSettings.multiple`.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpaint.diffusion.blocks import Level, TimeEmbedding, groups_of, zeroed
from inpaint.errors import InpaintError


class Known(StrEnum):
    """How the masked U-Net is shown what lies outside the hole."""

    CLEAN = "clean"
    """As it is, in channels of its own beside the noisy image."""
    NOISY = "noisy"
    """The noisy image with its hole blanked, and nothing else: what lies in the hole is not seen."""


@dataclass(frozen=True, kw_only=True)
class UNetSettings:
    """An architecture. The default has 40 million parameters and is meant for 128 x 128 pixels."""

    channels: tuple[int, ...] = (64, 128, 256, 512, 512, 384)
    """Width of each level: first those going down, then as many going up. A level going up holds what came from below
    beside a skip, so each after the first must be wider than the skip it receives."""
    attention: tuple[int, ...] = (128, 512)
    """Levels of these widths end with self-attention."""
    patch: int = 1
    """Pixels of a patch's side: the network works on patches, at 1 / patch of the resolution."""
    dropout: float = 0.1
    time_width: int = 1024
    """Numbers of the time embedding."""
    classes: int = 0
    """Classes that may condition it; 0: none."""
    known: Known = Known.CLEAN
    """How the masked U-Net is shown what lies outside the hole."""

    def __post_init__(self) -> None:
        count, half = len(self.channels), len(self.channels) // 2
        if count < 2 or count % 2 or min(self.channels) < 1:
            raise InpaintError(f"channels {self.channels}: give an even number of widths, half of them going down")
        for level in range(half + 1, count):
            width, skip = self.channels[level], self.channels[count - level]
            if width <= skip:
                raise InpaintError(
                    f"channels {self.channels}: level {level + 1} has width {width} and receives a skip of {skip}: "
                    "make it wider than that"
                )
        if not set(self.attention) <= set(self.channels):
            raise InpaintError(f"attention {self.attention}: give widths that occur in channels {self.channels}")
        if self.patch < 1 or self.time_width < 1 or self.classes < 0 or not 0 <= self.dropout < 1:
            raise InpaintError(
                f"patch {self.patch} and time_width {self.time_width} must be at least 1, classes {self.classes} at "
                f"least 0, dropout {self.dropout} in [0, 1)"
            )

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this."""
        return self.patch * 2 ** (len(self.channels) // 2)


PRESETS: dict[int, UNetSettings] = {
    32: UNetSettings(channels=(32, 64, 96, 96), attention=(32, 64, 96), dropout=0.0, time_width=128, patch=2),
    64: UNetSettings(channels=(64, 96, 160, 256, 256, 192), attention=(160, 256), time_width=512),
    128: UNetSettings(),
    256: UNetSettings(patch=2),
    512: UNetSettings(patch=4),
}
"""Architectures by the side of their images in pixels."""


def preset(image_size: int) -> UNetSettings:
    """The architecture for images of `image_size` pixels. Raises InpaintError where there is none."""
    if image_size not in PRESETS:
        raise InpaintError(f"image_size {image_size}: there are presets for {', '.join(map(str, PRESETS))} pixels")
    return PRESETS[image_size]


class UNet(nn.Module):
    """Noisy image -> prediction of the same shape, told the timestep and, where it has classes, a label."""

    def __init__(self, settings: UNetSettings, *, image_channels: int = 3) -> None:
        super().__init__()
        self.settings = settings
        self.image_in = _convolution(image_channels * settings.patch**2, settings.channels[0])
        self.body = _Body(settings, image_channels)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, noisy_BCHW: Tensor, timesteps_B: Tensor, labels_B: Tensor | None = None) -> Tensor:
        """Args: labels_B: int64, 1 .. classes, 0 for no class."""
        return self.body(self.image_in(F.pixel_unshuffle(noisy_BCHW, self.settings.patch)), timesteps_B, labels_B)


class MaskedUNet(nn.Module):
    """A U-Net that also sees the hole: a convolution of the image and one of the hole are added at its entrance.

    With an unknown rest (a hole of the whole image) it is an unconditional model.
    """

    def __init__(self, settings: UNetSettings, *, image_channels: int = 3) -> None:
        super().__init__()
        self.settings = settings
        seen = image_channels * (2 if settings.known is Known.CLEAN else 1)
        self.image_in = _convolution(seen * settings.patch**2, settings.channels[0])
        self.hole_in = _convolution(settings.patch**2, settings.channels[0])
        self.body = _Body(settings, image_channels)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self,
        noisy_BCHW: Tensor,
        timesteps_B: Tensor,
        known_BCHW: Tensor,
        hole_B1HW: Tensor,
        labels_B: Tensor | None = None,
    ) -> Tensor:
        """Args: known_BCHW: the clean image, whose hole is not looked at. hole_B1HW: 1 = paint, 0 = keep."""
        keep_B1HW, patch = 1 - hole_B1HW, self.settings.patch
        if self.settings.known is Known.CLEAN:
            seen = torch.cat([noisy_BCHW, known_BCHW * keep_B1HW], dim=1)
        else:
            seen = noisy_BCHW * keep_B1HW
        features = self.image_in(F.pixel_unshuffle(seen, patch)) + self.hole_in(F.pixel_unshuffle(hole_B1HW, patch))
        return self.body(features, timesteps_B, labels_B)


class _Body(nn.Module):
    """Levels down, levels up with skips, and the way out."""

    def __init__(self, settings: UNetSettings, image_channels: int) -> None:
        super().__init__()
        self.patch = settings.patch
        widths, half = settings.channels, len(settings.channels) // 2
        going_down, going_up = widths[:half], widths[half:]
        skips = going_down[::-1]
        # What a level going up hands on is what the next one's width leaves beside its skip.
        handed = [after - skip for after, skip in zip(going_up[1:], skips, strict=False)] + [going_up[-1] // 2]
        first, last = going_down[0], handed[-1] + skips[-1]

        def level(width: int) -> Level:
            return Level(width, settings.time_width, settings.dropout, width in settings.attention)

        self.time = TimeEmbedding(settings.time_width, settings.classes)
        self.down = nn.ModuleList(level(width) for width in going_down)
        self.up = nn.ModuleList(level(width) for width in going_up)
        self.halvings = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(going_down, widths[1:], strict=False)
        )
        # The kernel is twice the stride, so that no pixel gets more than its neighbours (Odena 2016, "Deconvolution and
        # checkerboard artifacts").
        self.doublings = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in zip(going_up, handed, strict=True)
        )
        # Without residual blocks here the last skip would meet two convolutions and nothing else.
        self.narrow = nn.Sequential(nn.GroupNorm(groups_of(last), last), nn.SiLU(), _convolution(last, first))
        self.last = level(first)
        out = zeroed(_convolution(first, image_channels * settings.patch**2))
        self.head = nn.Sequential(nn.GroupNorm(groups_of(first), first), nn.SiLU(), out)

    def forward(self, features: Tensor, timesteps_B: Tensor, labels_B: Tensor | None) -> Tensor:
        # The weights may not be: DeepSpeed keeps trained ones in flat buffers.
        features = features.contiguous(memory_format=torch.channels_last)
        embedded_BE = self.time(timesteps_B, labels_B)
        skips = []
        for level, smaller in zip(self.down, self.halvings, strict=True):
            features = level(features, embedded_BE)
            skips.append(features)
            features = smaller(features)
        for level, larger in zip(self.up, self.doublings, strict=True):
            features = larger(level(features, embedded_BE))
            features = torch.cat([features, skips.pop()], dim=1)
        features = self.last(self.narrow(features), embedded_BE)
        return F.pixel_shuffle(self.head(features), self.patch)


def _convolution(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1)
