"""Where this process paints."""

import torch

from inpaint.errors import InpaintError


def parse_device(device: str | torch.device) -> torch.device:
    """Raises InpaintError for what is no device's name."""
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise InpaintError(f"device {device!r}: give cpu, cuda or cuda:N") from error


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or else a GPU where there is one. Raises InpaintError for a GPU that is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = parse_device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InpaintError(f"device {device}: torch finds no GPU here; leave the device out")
    return chosen
