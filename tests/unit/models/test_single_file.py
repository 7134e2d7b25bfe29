"""A base as one file in the original layout gives what it was made from; its header says what it is."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.random_base import build_architecture
from inpaint.errors import InpaintError
from inpaint.models import architectures, locate
from inpaint.models.base import Base, load_base, read_base_info
from tests.tiny import WIDTH, tiny_unet, tiny_vae
from tests.unit.models.ldm import save_single_file

NAMES = ["sd15", "sd15-inpaint", "sdxl", "sdxl-inpaint"]
SECOND = 24
"""Width of the second text encoder: the loader tells them apart by their widths."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The architectures with all their kinds of layers, and few of each."""

    def text(width: int) -> CLIPTextConfig:
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
        return CLIPTextConfig(**sizes, num_hidden_layers=2, num_attention_heads=2)

    xl = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "cross_attention_dim": WIDTH + SECOND}
    xl |= {"projection_class_embeddings_input_dim": 6 * 4 + SECOND, "use_linear_projection": True}
    monkeypatch.setattr(architectures, "clip_l", lambda: CLIPTextModel(text(WIDTH)))
    monkeypatch.setattr(architectures, "open_clip_bigg", lambda: CLIPTextModelWithProjection(text(SECOND)))
    monkeypatch.setattr(architectures, "vae", lambda *, is_xl: tiny_vae())
    monkeypatch.setattr(architectures, "sd15_unet", tiny_unet)
    monkeypatch.setattr(architectures, "sdxl_unet", lambda channels: tiny_unet(channels, **xl))


def tensors_of(base: Base) -> dict[str, torch.Tensor]:
    models = {"vae": base.vae, "unet": base.unet, **{str(i): e for i, e in enumerate(base.text_encoders)}}
    return {f"{part}.{name}": tensor for part, model in models.items() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_arrives_and_the_header_says_the_rest(name: str, tmp_path: Path) -> None:
    made = build_architecture(name, device="cpu", seed=3)
    path = save_single_file(made, tmp_path / "base.safetensors")
    loaded = load_base(path)
    expected, found = tensors_of(made), tensors_of(loaded)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert read_base_info(str(path)) == loaded.info
    assert loaded.info.layers == made.info.layers and loaded.info.in_channels == made.info.in_channels
    assert loaded.info.revision == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.zero_empty_negative == loaded.info.is_xl == (len(loaded.tokenizers) == 2)
    assert not loaded.unet.training and loaded.scheduler.config.prediction_type == "epsilon"


def test_weights_come_in_the_type_asked_for(tmp_path: Path) -> None:
    made = build_architecture("sd15", device="cpu", dtype=torch.float16)
    loaded = load_base(save_single_file(made, tmp_path / "base.safetensors"))
    assert {tensor.dtype for tensor in tensors_of(loaded).values()} == {torch.float32}
    assert torch.equal(loaded.unet.conv_in.weight, made.unet.conv_in.weight.float())


def test_a_checkpoint_of_v_prediction_says_so(tmp_path: Path) -> None:
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    made = build_architecture("sdxl", device="cpu")
    scheduler = load_base(save_single_file(made, tmp_path / "base.safetensors", **marks)).scheduler
    assert (scheduler.config.prediction_type, scheduler.config.timestep_spacing) == ("v_prediction", "trailing")
    assert scheduler.alphas_cumprod[-1] < 1e-6


def test_a_file_is_found_from_elsewhere_and_checked_against_its_revision(tmp_path, monkeypatch) -> None:
    path = save_single_file(build_architecture("sd15", device="cpu"), tmp_path / "base.safetensors")
    monkeypatch.chdir(tmp_path)
    assert locate.absolute_name("base.safetensors") == str(path)
    with pytest.raises(InpaintError, match="revision 123 is wanted"):
        load_base("base.safetensors", revision="123")


def test_pickles_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "base.ckpt").write_bytes(b"pickle")
    with pytest.raises(InpaintError, match=r"base\.ckpt: only \.safetensors.*any code.*weights_only=True"):
        load_base(tmp_path / "base.ckpt")


@pytest.mark.parametrize(
    ("name", "shape", "what"),
    [
        ("lora_unet_mid_block.lora_down.weight", (4, 8), "a LoRA; it is an adapter"),
        ("cond_stage_model.model.ln_final.weight", (8,), "Stable Diffusion 2"),
        ("conditioner.embedders.0.model.ln_final.weight", (8,), "SDXL's refiner"),
        ("down_blocks.0.resnets.0.conv1.weight", (8, 8), "one part of a diffusers folder"),
        ("model.diffusion_model.input_blocks.0.0.weight", (8, 8, 3, 3), "a U-Net of 8 input channels"),
        ("double_blocks.0.weight", (8,), "no such checkpoint"),
        ("edm_mean", (1, 4, 1, 1), "EDM noise"),
    ],
)
def test_other_files_are_told_what_they_are(tmp_path: Path, name: str, shape: tuple[int, ...], what: str) -> None:
    save_file({name: torch.zeros(shape)}, tmp_path / "x.safetensors")
    with pytest.raises(InpaintError, match=what):
        read_base_info(str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("missing", ["first_stage_model.", "cond_stage_model.transformer.text_model.encoder.layers.1"])
def test_a_part_of_a_checkpoint_is_refused(tmp_path: Path, missing: str) -> None:
    path = save_single_file(build_architecture("sd15", device="cpu"), tmp_path / "base.safetensors")
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(missing)}
    save_file(tensors, path)
    with pytest.raises(InpaintError, match=r"are missing, such as|not a whole checkpoint"):
        load_base(path)


def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"half a download")
    with pytest.raises(InpaintError, match=r"x\.safetensors: not a safetensors file"):
        load_base(tmp_path / "x.safetensors")
