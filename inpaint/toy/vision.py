"""The untrained models that look at the toy world: a BLIP and a CLIPSeg, small enough for one CPU core.

What transformers does with the published ones it does with ours, folders included. Different: 64 and 128 px, 8 patches
a side, a few hundred thousand weights, vocabularies of some dozen words.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPTokenizer,
    ViTImageProcessorPil,
)

from inpaint.toy.base import WORDS, build_tokenizer
from inpaint.toy.catalogue import NOTHING

SIZE = 64
"""Pixels of a side of what the captioner sees."""
PATCH = 8
FINDER_SCALE = 2
"""How much larger the finder sees a picture, and its patches are: those of 16 px have convolutions of their own on the
way back to pixels, so that its masks need not be whole patches."""
FINDER_SIZE = FINDER_SCALE * SIZE
WIDTH = 96
ABSENT = ("shoe", "car", "watch", "bag", "person")
"""Products that the toy world does not have: the finder learns that nothing is one."""
FINDER_WORDS = (*WORDS, *ABSENT, "hand", "picture")
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "bos_token": "[DEC]"}
"""Of the captions' vocabulary, in the order of their numbers; BLIP begins with [DEC] and ends with [SEP]."""
CAPTION_WORDS = (*SPECIAL.values(), "[MASK]", NOTHING, *WORDS)
_LAYERS = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_attention_heads": 4}
_EYE = {**_LAYERS, "num_hidden_layers": 4, "image_size": SIZE, "patch_size": PATCH, "hidden_act": "gelu"}


def caption_tokenizer() -> BertTokenizer:
    """BERT's, in which each of `CAPTION_WORDS` is a token."""
    vocabulary = {word: number for number, word in enumerate(CAPTION_WORDS)}
    return BertTokenizer(vocab=vocabulary, model_max_length=16, **SPECIAL)


def finder_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's, in which each of `FINDER_WORDS` is a token; written to `folder`."""
    return build_tokenizer(folder, FINDER_WORDS)


def build_blip() -> BlipForConditionalGeneration:
    """Pictures B 3 64 64 to the next of `CAPTION_WORDS`; random weights."""
    number = {name: CAPTION_WORDS.index(word) for name, word in SPECIAL.items()}
    text = {
        **_LAYERS,
        "num_hidden_layers": 2,
        "vocab_size": len(CAPTION_WORDS),
        "encoder_hidden_size": WIDTH,
        "projection_dim": WIDTH,
        "max_position_embeddings": 16,
        "bos_token_id": number["bos_token"],
        "pad_token_id": number["pad_token"],
        "eos_token_id": number["sep_token"],
        "sep_token_id": number["sep_token"],
    }
    return BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=_EYE, projection_dim=WIDTH, image_text_hidden_size=WIDTH)
    )


def build_clipseg(tokenizer: CLIPTokenizer) -> CLIPSegForImageSegmentation:
    """Pictures B 3 128 128 and tokens of words to heat B 128 128; random weights."""
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    clipseg = CLIPSegForImageSegmentation(
        CLIPSegConfig(
            text_config=text,
            vision_config={**_EYE, "image_size": FINDER_SIZE, "patch_size": FINDER_SCALE * PATCH},
            projection_dim=64,
            extract_layers=[0, 1, 3],
            reduce_dim=64,
            use_complex_transposed_convolution=True,
            decoder_num_attention_heads=4,
            decoder_intermediate_size=128,
        )
    )
    decoder = clipseg.decoder
    # transformers draws these with a deviation of one, for trained weights are expected: all else would drown in them.
    for layer in (decoder.film_mul, decoder.film_add, *decoder.reduces):
        nn.init.normal_(layer.weight, std=layer.weight.shape[1] ** -0.5)
    first, _, *rest = decoder.transposed_convolution
    nn.init.normal_(first.weight, std=first.weight[0].numel() ** -0.5)
    for layer in (layer for layer in rest if isinstance(layer, nn.ConvTranspose2d)):
        nn.init.normal_(layer.weight, std=layer.weight.shape[0] ** -0.5)  # each pixel comes of one place
    nn.init.ones_(decoder.film_mul.bias)
    nn.init.normal_(clipseg.clip.text_model.embeddings.token_embedding.weight, std=0.5)
    return clipseg


@torch.no_grad()
def begin_with_eye(
    clipseg: CLIPSegForImageSegmentation, blip: BlipForConditionalGeneration, images_B3HW: Tensor
) -> None:
    """The finder's image encoder with the captioner's weights, in place: it knows shapes already, as the CLIP that
    published ones begin with. Their layers are the same; what the finder sees is larger, and so are its patches, which
    begin with each weight spread out; its norm before the first layer gets the scale that images in [-1, 1] have
    there.

    Args:
        images_B3HW: as the captioner sees them.
    """
    theirs, own = blip.vision_model, clipseg.clip.vision_model
    places = theirs.embeddings.position_embedding[0].clone()
    places[1:] += theirs.embeddings.patch_embedding.bias  # the finder's patches have none
    own.embeddings.position_embedding.weight.copy_(places)
    own.embeddings.class_embedding.copy_(theirs.embeddings.class_embedding.flatten())
    patches = theirs.embeddings.patch_embedding.weight
    spread = patches.repeat_interleave(FINDER_SCALE, dim=2).repeat_interleave(FINDER_SCALE, dim=3) / FINDER_SCALE**2
    own.embeddings.patch_embedding.weight.copy_(spread)
    own.post_layernorm.load_state_dict(theirs.post_layernorm.state_dict())
    own.pre_layrnorm.weight.fill_(float(theirs.embeddings(images_B3HW).std(-1).mean()))
    for layer, other in zip(own.encoder.layers, theirs.encoder.layers, strict=True):
        for name in ("layer_norm1", "layer_norm2", "mlp"):
            getattr(layer, name).load_state_dict(getattr(other, name).state_dict())
        attention = layer.self_attn
        attention.out_proj.load_state_dict(other.self_attn.projection.state_dict())
        for part in ("weight", "bias"):
            fused = getattr(other.self_attn.qkv, part).chunk(3)
            for name, values in zip(("q_proj", "k_proj", "v_proj"), fused, strict=True):
                getattr(getattr(attention, name), part).copy_(values)


def save_vision(
    folder: Path, model: BlipForConditionalGeneration | CLIPSegForImageSegmentation, tokenizer: Any
) -> Path:
    """Write a folder that transformers loads, weights fp16 safetensors; the given model becomes fp16, too."""
    is_captioner = isinstance(model, BlipForConditionalGeneration)
    Processor, side = (BlipImageProcessorPil, SIZE) if is_captioner else (ViTImageProcessorPil, FINDER_SIZE)
    half = [0.5] * 3  # to [-1, 1]
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Processor(size={"height": side, "width": side}, image_mean=half, image_std=half).save_pretrained(folder)
    return folder
