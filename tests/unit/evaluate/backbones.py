"""Tiny backbones with random weights, saved as folders."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, ViTConfig, ViTImageProcessorPil, ViTModel

from inpaint.evaluate.backbones import Backbones
from tests.tiny import tiny_text_config, tiny_tokenizer


def tiny_backbones(folder: Path) -> Backbones:
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    ViTModel(ViTConfig(**vision)).save_pretrained(folder / "dino")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "dino")
    tokenizer = tiny_tokenizer()
    text = tiny_text_config(tokenizer).to_dict()
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    size = {"shortest_edge": 32}
    CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder / "clip")
    return Backbones(dino=str(folder / "dino"), clip=str(folder / "clip"))
