"""An adapter for ONNX Runtime beside a base of ours in ONNX: one file for all parts of the base, and its card."""

import json
from pathlib import Path

import numpy as np
import onnxruntime

from inpaint.export.onnx.graph import SCALE, TOKENS, input_name
from inpaint.export.onnx.painter import VERSION, card_of, version_of
from inpaint.models.adapter import Adapter

SUFFIX = ".onnx_adapter"


def save_onnx_adapter(folder: str | Path, adapter: Adapter, name: str) -> Path:
    """Write `NAME.onnx_adapter`, which ONNX Runtime loads, and `card_of` it, which says what it belongs to; returns the
    former's path. Numbers are fp16, as in our own folders."""
    path, card = Path(folder, name + SUFFIX), adapter.card
    parameters = {SCALE: np.array([card.alpha / card.rank], np.float32)}
    for tensor_name, tensor in adapter.lora.items():
        layer, half = tensor_name.removesuffix(".weight").rsplit(".", 1)
        matrix = tensor.half().flatten(1).numpy()
        parameters[input_name(layer, half == "lora_B")] = np.ascontiguousarray(matrix.T)
    learned = []
    for token_rows, embeds in zip(TOKENS, adapter.embeds, strict=False):
        parameters[token_rows] = np.stack([vector.half().numpy() for vector in embeds.values()])
        learned.append(list(embeds))
    told = onnxruntime.AdapterFormat()
    told.set_adapter_version(VERSION)
    told.set_model_version(version_of(card.base_revision))
    told.set_parameters({key: onnxruntime.OrtValue.ortvalue_from_numpy(value) for key, value in parameters.items()})
    told.export_adapter(str(path))
    about = {
        "base": card.base,
        "base_revision": card.base_revision,
        "tokens": card.tokens,
        "prompt_format": card.prompt_format,
        "learned": learned or [[] for _ in TOKENS],
        "rank": card.rank,
        "alpha": card.alpha,
    }
    card_of(path).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return path
