"""Bases load by component, in one dtype, from safetensors only; what cannot be loaded is named with the way out."""

import json
import os
import shutil

import pytest
import torch
import transformers
from diffusers import UNet2DConditionModel

from inpaint.errors import InpaintError
from inpaint.models import locate
from inpaint.models.base import load_base, read_base_info
from inpaint.models.folder import DiffusersFolder
from inpaint.models.lora import LoraSettings, inject_lora, lora_parameters


@pytest.fixture
def copied(sd_folder, tmp_path):
    return shutil.copytree(sd_folder, tmp_path / "copy")


def edit_index(folder, **changes):
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_inpaint_base_and_an_sdxl_base_say_what_they_are(sd_folder, xl_folder):
    sd, xl = load_base(sd_folder), load_base(xl_folder)
    for base in (sd, xl):
        assert (base.info.in_channels, base.info.downsample, base.info.default_size, base.info.size_multiple) == (
            9,
            2,
            32,
            4,
        )
        assert not base.unet.training and not base.vae.training and not base.text_encoders[0].training
    assert (sd.info.is_xl, xl.info.is_xl) == (False, True)
    assert (len(sd.tokenizers), len(xl.tokenizers), len(xl.text_encoders)) == (1, 2, 2)
    assert (sd.zero_empty_negative, xl.zero_empty_negative) == (False, True)


def test_a_revision_is_the_files_not_the_place(sd_folder, copied):
    first = load_base(sd_folder).info.revision
    (copied / "README.md").write_text("not part of it")
    assert load_base(copied).info.revision == first
    edit_index(copied, note="changed")
    assert load_base(copied).info.revision != first
    with pytest.raises(InpaintError, match=f"revision {first} is wanted"):
        load_base(copied, revision=first)


def test_only_what_is_loaded_makes_the_revision(copied):
    first = read_base_info(str(copied)).revision
    (copied / "inpaint.json").write_text('{"guidance_scale": 3, "steps": 9}')
    (copied / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not taken")
    (copied / "vae" / "notes.json").write_text("{}")
    info = read_base_info(str(copied))
    assert (info.revision, info.guidance_scale, info.steps) == (first, 3.0, 9)
    for used in ("tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json", "vae/config.json"):
        (copied / used).write_text((copied / used).read_text() + " ")
        assert read_base_info(str(copied)).revision != first, used
        first = read_base_info(str(copied)).revision


def test_a_file_is_hashed_once_until_its_size_or_time_changes(copied):
    path = copied / "unet" / "diffusion_pytorch_model.safetensors"
    first, stat = read_base_info(str(copied)).revision, path.stat()
    path.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert read_base_info(str(copied)).revision == first, "read again"
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert read_base_info(str(copied)).revision != first


def test_what_is_known_without_weights_is_what_the_loaded_base_is(sd_folder, xl_folder):
    for folder in (sd_folder, xl_folder):
        loaded = load_base(folder)
        assert read_base_info(str(folder)) == loaded.info
        inject_lora(loaded, LoraSettings(rank=1), seed=0, only=loaded.info.layers)
        shapes = {name: tuple(p.shape[:2]) for name, p in lora_parameters(loaded).items()}
        assert shapes == {
            f"{layer}.lora_{half}.weight": shape
            for layer, (outputs, inputs) in loaded.info.layers.items()
            for half, shape in (("A", (1, inputs)), ("B", (outputs, 1)))
        }
        inject_lora(loaded := load_base(folder), LoraSettings(rank=1), seed=0)
        untrained = {layer for layer in loaded.info.layers if f"{layer}.lora_A.weight" not in lora_parameters(loaded)}
        assert (
            untrained == {layer for layer in loaded.info.layers if layer.endswith((".proj_in", ".proj_out"))} != set()
        )


@pytest.mark.parametrize("text", ['{"guidance": 1}', "[1]", '{"steps": "9"}', "{"])
def test_preferences_that_are_none_are_refused(copied, text):
    (copied / "inpaint.json").write_text(text)
    with pytest.raises(InpaintError, match="inpaint.json"):
        read_base_info(str(copied))


def test_loading_prints_nothing(xl_folder, capfd):
    load_base(xl_folder)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_fp16_files_are_upcast_and_a_lone_fp16_variant_is_taken(copied, sd_folder, variant):
    unet = UNet2DConditionModel.from_pretrained(sd_folder / "unet", torch_dtype=torch.float16)
    shutil.rmtree(copied / "unet")
    unet.save_pretrained(copied / "unet", variant=variant)
    loaded = load_base(copied)
    assert {p.dtype for m in (loaded.unet, loaded.vae, *loaded.text_encoders) for p in m.parameters()} == {
        torch.float32
    }
    expected = unet.conv_in.weight.float()
    assert torch.equal(loaded.unet.conv_in.weight, expected)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_shards_are_loaded_and_make_the_revision(copied, sd_folder, variant):
    unet = UNet2DConditionModel.from_pretrained(sd_folder / "unet")
    shutil.rmtree(copied / "unet")
    unet.save_pretrained(copied / "unet", variant=variant, max_shard_size="60KB")
    used = {path.name for path in DiffusersFolder(copied).used_files()}
    assert used >= {path.name for path in (copied / "unet").iterdir()} and len(used) > 10
    assert torch.equal(load_base(copied).unet.conv_out.weight, unet.conv_out.weight)


def test_plain_weights_are_preferred_to_the_fp16_variant(copied):
    UNet2DConditionModel.from_pretrained(copied / "unet", torch_dtype=torch.float16).save_pretrained(
        copied / "unet", variant="fp16"
    )
    weight = load_base(copied).unet.conv_in.weight
    assert not torch.equal(weight, weight.half().float())


def test_weights_load_in_the_dtype_asked_for(sd_folder):
    base = load_base(sd_folder, dtype=torch.bfloat16)
    assert {m.dtype for m in (base.unet, base.vae, *base.text_encoders)} == {torch.bfloat16}


def test_the_vae_of_sdxl_stays_fp32_in_fp16(xl_folder):
    base = load_base(xl_folder, dtype=torch.float16)
    assert (base.unet.dtype, base.vae.dtype) == (torch.float16, torch.float32)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.ckpt"])
def test_pickled_weights_are_refused_by_name(copied, name):
    (copied / "unet" / "diffusion_pytorch_model.safetensors").rename(copied / "unet" / name)
    with pytest.raises(InpaintError, match=rf"unet: has only pickled weights \({name}\).*save_pretrained"):
        load_base(copied)


def test_missing_weights_are_named(copied):
    (copied / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InpaintError, match=r"vae: diffusion_pytorch_model.safetensors .* is missing"):
        load_base(copied)


def test_other_families_and_classes_are_refused_with_what_is_supported(copied):
    edit_index(copied, unet=["diffusers", "UNet2DModel"])
    with pytest.raises(InpaintError, match="unet is UNet2DModel.*UNet2DConditionModel"):
        load_base(copied)
    edit_index(copied, _class_name="FluxPipeline")
    with pytest.raises(InpaintError, match="FluxPipeline is not supported; supported are StableDiffusion"):
        load_base(copied)


def test_tokens_without_an_embedding_or_a_place_are_refused(copied):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(copied / "tokenizer")
    tokenizer.model_max_length = 78
    tokenizer.save_pretrained(copied / "tokenizer")
    with pytest.raises(InpaintError, match="model_max_length is 78, its text encoder takes 77"):
        load_base(copied)
    tokenizer.add_tokens(["CDP_OLD"])
    tokenizer.save_pretrained(copied / "tokenizer")
    words = len(tokenizer)
    with pytest.raises(InpaintError, match=f"has {words} tokens, its text encoder embeds {words - 1}"):
        load_base(copied)


def test_unets_for_other_inputs_are_refused(copied):
    path = copied / "unet" / "config.json"
    config = json.loads(path.read_text())
    shutil.rmtree(copied / "unet")
    UNet2DConditionModel.from_config({**config, "in_channels": 8}).save_pretrained(copied / "unet")
    with pytest.raises(InpaintError, match="takes 8 input channels"):
        load_base(copied)


def test_folders_that_are_no_base_are_named(tmp_path, copied):
    with pytest.raises(InpaintError, match=r"no model_index.json"):
        load_base(tmp_path)
    with pytest.raises(InpaintError, match="no such folder or file, and not a URL"):
        load_base(tmp_path / "absent")
    with pytest.raises(InpaintError, match="no such folder or file"):
        load_base("models/base.safetensors")
    with pytest.raises(InpaintError, match="one part of a diffusers folder|no such checkpoint"):
        load_base(copied / "unet" / "diffusion_pytorch_model.safetensors")
    (copied / "model_index.json").write_text("{")
    with pytest.raises(InpaintError, match="not valid JSON"):
        load_base(copied)


def test_a_base_at_a_url_is_the_one_that_was_put_there(sd_folder, tmp_path):
    here, there = read_base_info(str(sd_folder)), read_base_info(sd_folder.as_uri())
    assert (there.revision, there.layers) == (here.revision, here.layers) and there.name == sd_folder.as_uri()
    assert load_base(sd_folder.as_uri(), revision=here.revision).info == there
    with pytest.raises(InpaintError, match="nothing is there"):
        load_base((tmp_path / "absent").as_uri())


def test_a_toy_base_that_was_not_made_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(locate.TOYS, "toy", tmp_path / "absent")
    with pytest.raises(InpaintError, match=r"python -m ray_jobs.pretrain_toy"):
        load_base("toy")


def test_an_unreachable_hub_names_the_way_out(tmp_path, monkeypatch):
    # tests/conftest.py sets HF_HUB_OFFLINE, so nothing is asked of the network.
    monkeypatch.setattr(locate, "snapshot_download", lambda name, **kw: _real_snapshot(name, cache_dir=tmp_path, **kw))
    with pytest.raises(InpaintError, match=r"hub cannot be reached.*hf download owner/some-base.*give the folder"):
        load_base("owner/some-base")


_real_snapshot = locate.snapshot_download


def test_hub_bases_come_without_pickles_and_fp16_only_where_needed(copied, tmp_path, monkeypatch):
    (copied / "unet" / "diffusion_pytorch_model.safetensors").rename(
        copied / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    )
    (copied / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (copied / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not wanted")
    cache = tmp_path / "snapshots" / "commit123"

    def snapshot(name, *, revision, allow_patterns):
        assert (name, revision) == ("owner/base", "main")
        for pattern in allow_patterns:
            for path in copied.glob(pattern):
                target = cache / path.relative_to(copied)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        return str(cache)

    monkeypatch.setattr(locate, "snapshot_download", snapshot)
    base = load_base("owner/base", revision="main")
    assert (base.info.name, base.info.revision) == ("owner/base", "commit123")
    weights = {p.relative_to(cache).as_posix() for p in cache.rglob("*model*") if p.suffix in (".safetensors", ".bin")}
    assert weights == {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
