"""Tiny models that look at photos, with random weights, as folders that `save_pretrained` writes.

The architectures are real, what they see means nothing; the same call gives the same weights. Each returns its folder.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    SamConfig,
    SamImageProcessorPil,
    SamModel,
    ViTImageProcessorPil,
)

from tests.tiny import tiny_text_config, tiny_tokenizer

SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[DEC]",
    "[MASK]",
    ".",
    *("a", "photo", "of", "hand", "bag", "shoe", "red", "box", "on", "wood"),
)


def word_tokenizer(**special: str) -> BertTokenizer:
    """BERT's, of a few words."""
    return BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}, **special)


def tiny_clipseg(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer, size = tiny_tokenizer(), {"height": 32, "width": 32}
    text = tiny_text_config(tokenizer)
    kept = (*SMALL, "vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    config = CLIPSegConfig(
        text_config={name: getattr(text, name) for name in kept},
        vision_config={**SMALL, "image_size": 32, "patch_size": 4},
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ViTImageProcessorPil(size=size).save_pretrained(folder)
    return folder


def tiny_blip(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = word_tokenizer(bos_token="[DEC]")
    names = {word: number for number, word in enumerate(WORDS)}
    config = BlipConfig(
        text_config={
            **SMALL,
            "vocab_size": len(WORDS),
            "encoder_hidden_size": 16,
            "projection_dim": 16,
            "max_position_embeddings": 32,
            "bos_token_id": names["[DEC]"],
            "pad_token_id": names["[PAD]"],
            "eos_token_id": names["[SEP]"],
            "sep_token_id": names["[SEP]"],
        },
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        image_text_hidden_size=16,
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def tiny_grounding_dino(folder: Path) -> Path:
    torch.manual_seed(0)
    swin = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4, "image_size": 64}
    config = GroundingDinoConfig(
        backbone_config={"model_type": "swin", **swin, "out_indices": [2, 3, 4]},
        text_config={"model_type": "bert", **SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 64},
        num_queries=20,
        encoder_layers=1,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        d_model=32,
        max_text_len=64,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 256}).save_pretrained(folder)
    return folder


def tiny_sam(folder: Path) -> Path:
    torch.manual_seed(0)
    config = SamConfig(
        vision_config={
            **SMALL,
            "image_size": 64,
            "patch_size": 8,
            "output_channels": 16,
            "num_pos_feats": 8,
            "window_size": 4,
            "global_attn_indexes": [1],
            "mlp_dim": 32,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
            "num_hidden_layers": 1,
        },
    )
    SamModel(config).save_pretrained(folder)
    SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder
