"""The painter of DDPMs: fills holes with a model of pixels, many requests per network call.

Guaranteed: pixels outside the hole come back bit for bit; a request's picture depends on what shared its batch by
rounding alone (1e-3 in [-1, 1]). A photo of any size is painted at the model's size, and only the painted hole is
scaled up. Shapes: B rows; H x W working pixels; S steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn

from inpaint.device import on_device
from inpaint.diffusion.ddpm import NoiseSettings, fill
from inpaint.diffusion.schedule import NoiseSchedule
from inpaint.diffusion.unet import MaskedUNet, UNetSettings
from inpaint.errors import InpaintError
from inpaint.paint.crop import batches_of, resize_hole, resize_image, working_shape
from inpaint.paint.paste import paste_back, side_by_side
from inpaint.paint.request import DdpmRequest

OnFrame = Callable[[int, int, np.ndarray], None]
"""Called after each network evaluation with (evaluations done, all of them, pictures so far B x H x W x 3 uint8)."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What must be known of a DDPM beside its weights."""

    image_size: int
    """Side of the square images it was trained on, in pixels."""
    unet: UNetSettings
    noise: NoiseSettings
    classes: tuple[str, ...] = ()
    """Names of its classes, in the order of their labels."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "ModelCard":
        """What `to_json` gave, also after a way through a file. Raises InpaintError where it is something else."""
        try:
            return TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            raise InpaintError(f"not the description of a DDPM: {error}") from error


class DdpmPainter:
    """Paints requests with one DDPM."""

    def __init__(
        self,
        card: ModelCard,
        weights: Mapping[str, Tensor],
        *,
        device: str | torch.device = "cpu",
        max_batch: int = 16,
    ) -> None:
        """Args: weights: by parameter name of `MaskedUNet`. max_batch: most requests per network call."""
        if max_batch < 1:
            raise InpaintError(f"max_batch {max_batch}: give at least 1")
        self.card = card
        self.device = torch.device(device)
        self.max_batch = max_batch
        self.unet = MaskedUNet(card.unet)
        self.unet.load_state_dict(weights)
        self.unet.to(self.device).eval().requires_grad_(False)
        self.schedule = card.noise.schedule()
        self.labels = {name: label for label, name in enumerate(("", *card.classes))}

    def paint(self, requests: Sequence[DdpmRequest], on_frame: OnFrame | None = None) -> list[np.ndarray]:
        """The originals with their holes painted, H x W x 3 uint8, in the requests' order.

        A request without a hole gets its image back, and costs nothing. Raises InpaintError for an unknown label.
        """
        for request in requests:
            if request.label not in self.labels:
                known = ", ".join(self.card.classes) or "none"
                raise InpaintError(f"label {request.label!r}: this model's classes are {known}")
        results = [request.image.copy() for request in requests]
        holed = [index for index, request in enumerate(requests) if request.hole.any()]
        for batch in batches_of([(self.shape_of(requests[i]), requests[i].sampling) for i in holed], self.max_batch):
            chosen = [holed[i] for i in batch]
            rows, shape = [requests[i] for i in chosen], self.shape_of(requests[chosen[0]])
            labels_B = on_device([self.labels[r.label] for r in rows], self.device)
            pictures = paint_batch(self.unet, self.schedule, rows, labels_B, shape, on_frame)
            for i, painted in zip(chosen, pictures, strict=True):
                image, hole = requests[i].image, requests[i].hole
                results[i] = paste_back(image, resize_image(painted, hole.shape), hole, feather=requests[i].feather)
        return results

    def shape_of(self, request: DdpmRequest) -> tuple[int, int]:
        """The request's working height and width: the photo's aspect, the model's area."""
        height, width = request.hole.shape
        return working_shape(height, width, size=self.card.image_size, multiple=self.card.unet.multiple)


@torch.no_grad()
def paint_batch(
    unet: nn.Module,
    schedule: NoiseSchedule,
    requests: Sequence[DdpmRequest],
    labels_B: Tensor,
    shape: tuple[int, int],
    on_frame: OnFrame | None = None,
) -> np.ndarray:
    """What a `MaskedUNet` paints of requests of one sampling, at a working shape: uint8 B H W 3."""
    device = labels_B.device
    images_BHW3 = np.stack([resize_image(r.image, shape) for r in requests])
    hole_BHW = np.stack([resize_hole(r.hole, shape) for r in requests])
    known_B3HW = on_device(images_BHW3, device).permute(0, 3, 1, 2).float() / 127.5 - 1
    hole_B1HW = on_device(hole_BHW, device)[:, None].float()
    scales_B111 = on_device([r.guidance_scale for r in requests], device).reshape(-1, 1, 1, 1)
    guided = any(r.guidance_scale > 1 for r in requests)
    generators = [torch.Generator().manual_seed(r.seed) for r in requests]

    def draw() -> Tensor:
        return on_device(torch.stack([torch.randn(3, *shape, generator=g) for g in generators]), device)

    def predict(noisy_B3HW: Tensor, timesteps_B: Tensor) -> Tensor:
        labelled = unet(noisy_B3HW, timesteps_B, known_B3HW, hole_B1HW, labels_B)
        if not guided:
            return labelled
        free = unet(noisy_B3HW, timesteps_B, known_B3HW, hole_B1HW, torch.zeros_like(labels_B))
        return free + scales_B111.clamp(min=1) * (labelled - free)

    def on_step(done: int, total: int, noisy_B3HW: Tensor) -> None:
        if on_frame is not None:
            on_frame(done, total, to_uint8(noisy_B3HW))

    return to_uint8(fill(predict, schedule, known_B3HW, hole_B1HW, requests[0].sampling, draw, on_step))


def to_uint8(pixels_B3HW: Tensor) -> np.ndarray:
    """[-1, 1] -> uint8 B x H x W x 3."""
    return pixels_B3HW.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


class ReverseProcess:
    """Gathers a strip of pictures from noise to result; pass it as `on_frame`."""

    def __init__(self, frames: int = 10) -> None:
        if frames < 1:
            raise InpaintError(f"frames {frames}: give at least 1")
        self.frames = frames
        self._pictures: list[np.ndarray] = []

    def __call__(self, done: int, total: int, pictures_BHW3: np.ndarray) -> None:
        """Keeps `frames` pictures of the first row, evenly from all, the last among them."""
        if done * self.frames // total > (done - 1) * self.frames // total:
            self._pictures.append(pictures_BHW3[0])

    def strip(self) -> np.ndarray:
        """The pictures side by side on white, uint8 H W 3."""
        if not self._pictures:
            raise InpaintError("nothing was painted yet: there is no reverse process to show")
        return side_by_side(self._pictures)
