"""Painting holes with an exported base and its adapters on ONNX Runtime alone: numpy and tokenizers, no torch.

This folder lies beside every exported base and stands alone:

    from painter import OnnxPainter

    painter = OnnxPainter("export/onnx", adapters={"CDP_FOOD": "export/onnx/CDP_FOOD.onnx_adapter"})
    picture = painter.paint(photo, hole, "a red box", adapter="CDP_FOOD", seed=7)

An export with an adapter in its weights is painted with by itself, without naming any.

Guarantees: the picture of the painter that the base was exported from, with the same seed and size, to 1e-3 in [0, 1]
before paste-back in fp32; pixels outside the hole are the photo's. An adapter of another base, or one that is not
whole, is refused: ONNX Runtime would paint with it. `paint` samples with DDIM and takes prompts as they are written;
`begin`, after which a picture is taken through its steps one by one, takes any sampler's table of coefficients
(`Trajectory`) and text with weights (`Prompt`). Not covered: several adapters on one picture, ControlNets.
"""

from .onnx_painter import VERSION, LoadedAdapter, OnnxPainter, Row, card_of, version_of
from .sampling import COLUMNS, Draws, Trajectory, ddim
from .text import Prompt

__all__ = [
    "COLUMNS",
    "VERSION",
    "Draws",
    "LoadedAdapter",
    "OnnxPainter",
    "Prompt",
    "Row",
    "Trajectory",
    "card_of",
    "ddim",
    "version_of",
]
