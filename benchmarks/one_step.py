"""A network that fills a hole in one evaluation: the same architecture as the DDPM's, trained to output the picture.

It paints the mean of what is possible, which is what PSNR prefers; it stands beside the DDPM so that nobody is misled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from inpaint.diffusion.objective import hole_loss
from inpaint.diffusion.unet import MaskedUNet
from inpaint.paint.ddpm_painter import ModelCard, to_uint8
from inpaint.paint.paste import paste_back
from inpaint.recipes.ddpm import TrainDdpm
from inpaint.train.checkpoint import CheckpointStore
from inpaint.train.objective import MicroBatch, ParameterGroup, to_hole, to_pixels


class OneStep(nn.Module):
    """Squared error of the picture in the hole."""

    def __init__(self, unet: MaskedUNet, learning_rate: float) -> None:
        super().__init__()
        self.unet = unet
        self.learning_rate = learning_rate

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(self.learning_rate, dict(self.unet.named_parameters()))]

    def forward(self, batch: MicroBatch, *, validating: bool = False) -> Tensor:
        device = self.unet.image_in.weight.device
        clean_B3HW = to_pixels(batch["image"], device)
        hole_B1HW = (to_hole(batch["hole"], device) >= 0.5).float()
        return hole_loss(one_step(self.unet, clean_B3HW, hole_B1HW), clean_B3HW, hole_B1HW)


def one_step(unet: MaskedUNet, known_B3HW: Tensor, hole_B1HW: Tensor) -> Tensor:
    """The picture, B 3 H W in about [-1, 1]; what lies in the hole is not looked at."""
    timesteps_B = torch.zeros(len(known_B3HW), dtype=torch.int64, device=known_B3HW.device)
    # A DDPM's network takes a noisy image, too: here it holds the known pixels, whatever the variant shows of it.
    return unet(known_B3HW * (1 - hole_B1HW), timesteps_B, known_B3HW, hole_B1HW)


@dataclass(frozen=True, kw_only=True)
class TrainOneStep(TrainDdpm):
    """The DDPM's settings, and the weights that it starts from, with the other objective."""

    def objective(self, device: torch.device) -> OneStep:  # type: ignore[override]
        torch.manual_seed(self.train.seed)
        return OneStep(MaskedUNet(self.unet).to(device), self.learning_rate)


def paint_one_step(
    run: str, card: ModelCard, images: Sequence[np.ndarray], holes: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Pictures with their holes filled by the newest weights of a run."""
    loaded = CheckpointStore(f"{run}/checkpoints").latest()
    assert loaded is not None
    unet = MaskedUNet(card.unet).eval()
    unet.load_state_dict(loaded[0]["ema"])
    known_B3HW = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    hole_B1HW = torch.from_numpy(np.stack(holes))[:, None].float()
    with torch.no_grad():
        painted = to_uint8(one_step(unet, known_B3HW, hole_B1HW))
    return [paste_back(i, p, h) for i, p, h in zip(images, painted, holes, strict=True)]
