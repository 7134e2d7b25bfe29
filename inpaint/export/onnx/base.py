"""A base as ONNX: text encoders, VAE encoder and decoder and U-Net, any batch and size, with an adapter's inputs, or
without where one is in its weights.

Written: `unet.onnx`, `text_encoder.onnx` (SDXL: `text_encoder_2.onnx`, too), `vae_encoder.onnx`, `vae_decoder.onnx`,
`tokenizer.json` (`tokenizer_2.json`), `base.json`, and `painter/`, which paints with them without torch. What is
larger than a protobuf may be lies in `NAME.onnx.data` beside it.

Shapes: B rows, H W pixels, h w latents, L tokens, D text width, P pooled width.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from inpaint.diffusion.schedule import schedule_of
from inpaint.export.onnx import painter
from inpaint.export.onnx.graph import add_adapter_inputs, add_token_rows
from inpaint.models.adapter import AdapterCard
from inpaint.models.base import Base
from inpaint.models.layers import adaptable_layers, adapted_models

OPSET = 20
ABOUT = "base.json"
LARGEST = 1_800_000_000
"""Bytes of weights in a file; a protobuf ends at 2 GiB."""
_TEXTS = ("text_encoder", "text_encoder_2")
_TOKENIZERS = ("tokenizer.json", "tokenizer_2.json")
_PAINTER = "painter"


class TextEncoder(nn.Module):
    """Ids B L -> the states that the U-Net attends to B L D, and of SDXL's second encoder the pooled ones B P."""

    def __init__(self, encoder: nn.Module, *, is_xl: bool) -> None:
        super().__init__()
        self.encoder, self.is_xl = encoder, is_xl

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        output = self.encoder(ids, output_hidden_states=self.is_xl)
        if not self.is_xl:
            return (output.last_hidden_state,)
        pooled = getattr(output, "text_embeds", None)
        return (output.hidden_states[-2],) if pooled is None else (output.hidden_states[-2], pooled)


class VaeEncoder(nn.Module):
    """Pixels B 3 H W in [-1, 1] -> mean and standard deviation of the latents B 4 h w, unscaled."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(pixels).latent_dist
        return posterior.mean, posterior.std


class VaeDecoder(nn.Module):
    """Unscaled latents B 4 h w -> pixels B 3 H W in [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.vae.decode(latents).sample
        return pixels


class Unet(nn.Module):
    """What the U-Net makes of its input B C h w, timesteps B, states B L D and, of SDXL, pooled B P and sizes B 6."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        states: Tensor,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        # As they are joined with embeddings in fp32, which torch does by itself and an exported graph does not.
        added = None if pooled is None else {"text_embeds": pooled.float(), "time_ids": sizes}
        output: Tensor = self.unet(sample, timestep, states, added_cond_kwargs=added, return_dict=False)[0]
        return output


def export_base(base: Base, folder: Path, *, merged: AdapterCard | None = None) -> None:
    """Write a base in its own type. Args: merged: of the adapter in its weights and tokenizers, if there is one: graphs
    have no inputs for another then."""
    info, dtype = base.info, base.dtype
    ids = torch.zeros(2, base.tokenizers[0].model_max_length, dtype=torch.int64)
    pixels = torch.zeros(2, 3, info.default_size, info.default_size + 2 * info.size_multiple, dtype=dtype)
    latents = torch.zeros(2, 4, *(side // info.downsample for side in pixels.shape[2:]), dtype=dtype)
    states = torch.zeros(2, ids.shape[1], base.unet.config.cross_attention_dim, dtype=dtype)
    image, rows = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, {0: Dim.DYNAMIC}
    inputs = [latents.new_zeros(2, info.in_channels, *latents.shape[2:]), torch.zeros(2), states]
    shapes: list[dict[int, Any]] = [image, rows, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}]
    if info.is_xl:
        inputs += [torch.zeros(2, width, dtype=dtype) for width in (base.text_encoders[1].config.projection_dim, 6)]
        shapes += [rows, rows]
    names = ["sample", "timestep", "states", "pooled", "sizes"][: len(inputs)]
    for number, encoder in enumerate(base.text_encoders):
        part = _TEXTS[number]
        model = _exported(TextEncoder(encoder, is_xl=info.is_xl), [ids], [rows], ["ids"], ["states", "pooled"])
        if merged is None:
            (embedding,) = (n for n, m in encoder.named_modules() if m is encoder.get_input_embeddings())
            add_token_rows(model, f"encoder.{embedding}.weight", number)
            _add_adapter_inputs(model, base, part, "encoder")
        _save(model, folder / f"{part}.onnx")
        tokenizer = base.tokenizers[number]
        tokenizer.backend_tokenizer.save(str(folder / _TOKENIZERS[number]))
    vae = _exported(VaeEncoder(base.vae), [pixels.to(base.vae.dtype)], [image], ["pixels"], ["mean", "std"])
    _save(vae, folder / "vae_encoder.onnx")
    vae = _exported(VaeDecoder(base.vae), [latents.to(base.vae.dtype)], [image], ["latents"], ["pixels"])
    _save(vae, folder / "vae_decoder.onnx")
    unet = _exported(Unet(base.unet), inputs, shapes, names, ["output"])
    if merged is None:
        _add_adapter_inputs(unet, base, "unet", "unet")
    _save(unet, folder / "unet.onnx")
    (folder / ABOUT).write_text(json.dumps(_about(base, merged)) + "\n", encoding="utf-8")
    (folder / _PAINTER).mkdir()
    for file in Path(str(painter.__file__)).parent.glob("*.py"):
        shutil.copyfile(file, folder / _PAINTER / file.name)


def _about(base: Base, merged: AdapterCard | None) -> dict[str, Any]:
    """What the painter has to know."""
    info, schedule = base.info, schedule_of(base.scheduler)
    return {
        "version": painter.VERSION,
        "base": info.name,
        "revision": info.revision,
        "precision": str(base.dtype),
        "takes_adapters": merged is None,
        "tokens": merged.tokens if merged else {},
        "prompt_format": merged.prompt_format if merged else "{prompt}",
        "in_channels": info.in_channels,
        "default_size": info.default_size,
        "size_multiple": info.size_multiple,
        "downsample": info.downsample,
        "is_xl": info.is_xl,
        "guidance_scale": info.guidance_scale,
        "steps": info.steps,
        "scaling_factor": base.vae.config.scaling_factor,
        "shift_factor": base.vae.config.shift_factor or 0.0,
        "zero_empty_negative": base.zero_empty_negative,
        "max_tokens": base.tokenizers[0].model_max_length,
        "special_ids": [[t.bos_token_id, t.eos_token_id, t.pad_token_id] for t in base.tokenizers],
        "alphas_cumprod": schedule.alphas_cumprod_T.tolist(),
        "final_alpha_cumprod": schedule.final_alpha_cumprod,
        "prediction_type": schedule.prediction_type,
        "timestep_spacing": schedule.timestep_spacing,
        "steps_offset": schedule.steps_offset,
        "clip_range": schedule.clip_range,
        "stated": dict(schedule.stated),
    }


def is_export_of(base: Base, folder: Path) -> bool:
    """Whether a folder holds this base in its type, from this version of ours."""
    try:
        told = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    own = {"version": painter.VERSION, "revision": base.info.revision, "precision": str(base.dtype)}
    return {name: told.get(name) for name in own} == own


def base_files(folder: Path) -> list[Path]:
    """Of what a folder holds, what `export_base` wrote."""
    kinds = ("*.onnx", "*.onnx.data", *_TOKENIZERS, ABOUT, f"{_PAINTER}/*.py")
    return [path for kind in kinds for path in folder.glob(kind)]


def _exported(
    module: nn.Module, inputs: list[Tensor], shapes: list[dict[int, Any]], names: list[str], outputs: list[str]
) -> onnx.ModelProto:
    with torch.no_grad(), _quiet():
        program = torch.export.export(module.eval(), tuple(inputs), dynamic_shapes=tuple(shapes), strict=False)
        # Not optimised: weights keep their names.
        made = torch.onnx.export(
            program, dynamo=True, optimize=False, opset_version=OPSET, input_names=names, verbose=False
        )
    assert made is not None
    model = made.model_proto
    for output, name in zip(model.graph.output, outputs, strict=False):
        _rename(model.graph, output.name, name)
    return model


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """A value that is computed."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in graph.output:
        if value.name == old:
            value.name = new


def _add_adapter_inputs(model: onnx.ModelProto, base: Base, part: str, attribute: str) -> None:
    """Args: part: of the base, that the graph is of; attribute: which holds it in the module that was exported."""
    layers = adaptable_layers(adapted_models(base)[part], part)
    weights = {name: f"{attribute}.{path}.weight" for name, (path, _) in layers.items()}
    add_adapter_inputs(model, base.info.layers, weights, base.info.text_widths)


def _save(model: onnx.ModelProto, path: Path) -> None:
    del model.graph.value_info[:]  # of a rank or a batch that are no longer so
    for node in model.graph.node:  # where in Python it was made: more bytes than a small base's weights
        del node.metadata_props[:]
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(model, path, save_as_external_data=size > LARGEST, location=f"{path.name}.data")
    onnx.checker.check_model(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's lines on what of torchvision it lacks."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
