"""What the U-Nets are made of: time embedding, residual block, self-attention, a level of these.

Shapes: B samples, C channels, H x W features, E numbers of the time embedding, N = H * W tokens, h heads of D numbers.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_WIDTH = 64
SINUSOIDS = 128


def sinusoids(timesteps_B: Tensor, width: int) -> Tensor:
    """Sines and cosines of the timestep at `width / 2` wavelengths from 2 pi to 10,000 x 2 pi, B x width (Vaswani 2017,
    section 3.5; Ho 2020, appendix B)."""
    half = width // 2
    exponents = torch.arange(half, device=timesteps_B.device, dtype=torch.float32) / half
    angles = timesteps_B.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def groups_of(channels: int, most: int = 32) -> int:
    """Groups of a GroupNorm: at most 32, of at least 4 channels: normalised alone, a channel would lose its mean, and
    with it the colour that it may carry (and Adam would blow up the noise of biases whose gradient is zero)."""
    return math.gcd(max(1, channels // 4), most)


def zeroed(layer: nn.Module) -> nn.Module:
    """The same layer with zero weights: a block that ends with it begins as the identity (Zhang 2019, "Fixup")."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class TimeEmbedding(nn.Module):
    """Timestep (and label, where there are classes: 0 for none, 1 .. `classes` for each) -> what every residual block
    is told."""

    def __init__(self, width: int, classes: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(SINUSOIDS, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(classes + 1, width) if classes else None

    def forward(self, timesteps_B: Tensor, labels_B: Tensor | None = None) -> Tensor:
        embedded_BE = self.layers(sinusoids(timesteps_B, SINUSOIDS))
        if self.labels is not None:
            labels_B = torch.zeros_like(timesteps_B) if labels_B is None else labels_B
            embedded_BE = embedded_BE + self.labels(labels_B)
        return F.silu(embedded_BE)


class ResidualBlock(nn.Module):
    """Twice GroupNorm, SiLU, 3 x 3 convolution; the time embedding is added between, dropout before the second."""

    def __init__(self, channels: int, time_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups_of(channels), channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Linear(time_width, channels)
        self.norm2 = nn.GroupNorm(groups_of(channels), channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x_BCHW: Tensor, embedded_BE: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x_BCHW)))
        inner = inner + self.time(embedded_BE)[:, :, None, None]
        return x_BCHW + self.conv2(self.dropout(F.silu(self.norm2(inner))))


class SelfAttention(nn.Module):
    """Multi-head attention of every place to every other, through torch's fused kernel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // HEAD_WIDTH)
        self.norm = nn.GroupNorm(groups_of(channels), channels)
        self.queries_keys_values = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        batch, channels, height, width = x_BCHW.shape
        # In channels_last this is a view: a place's channels lie together.
        tokens_BNC = self.norm(x_BCHW).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        together = self.queries_keys_values(tokens_BNC).reshape(batch, height * width, 3, self.heads, -1)
        queries_BhND, keys_BhND, values_BhND = together.permute(2, 0, 3, 1, 4)
        mixed_BhND = F.scaled_dot_product_attention(queries_BhND, keys_BhND, values_BhND)
        mixed_BNC = self.out(mixed_BhND.transpose(1, 2).reshape(batch, height * width, channels))
        return x_BCHW + mixed_BNC.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


class Level(nn.Module):
    """Two residual blocks at one resolution, and self-attention after them where it is asked for."""

    def __init__(self, channels: int, time_width: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.first = ResidualBlock(channels, time_width, dropout)
        self.second = ResidualBlock(channels, time_width, dropout)
        self.attention = SelfAttention(channels) if attention else nn.Identity()

    def forward(self, x_BCHW: Tensor, embedded_BE: Tensor) -> Tensor:
        return self.attention(self.second(self.first(x_BCHW, embedded_BE), embedded_BE))
