"""Backbones that pictures are compared by: a vision transformer (DINO) and CLIP, through transformers.

Each prepares pictures as its own processor says (`preprocessor_config.json`), by Pillow. A hub id, or a folder of
weights; the figures of different backbones cannot be compared, so their labels stand beside each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from inpaint.errors import InpaintError
from inpaint.vision.pretrained import loaded, revision

DINO = "facebook/dino-vits16"
CLIP = "openai/clip-vit-base-patch32"


@dataclass(frozen=True, kw_only=True)
class Backbones:
    """What to compare pictures by: hub ids, or folders that transformers saved."""

    dino: str = DINO
    """Of the paper: ViT-S/16. Any vision transformer whose first token stands for the picture."""
    clip: str = CLIP

    def revisions(self) -> dict[str, str]:
        """Name -> the commit on the hub, or a hash over the folder's files. Raises InpaintError where there is none."""
        return {name: revision(name) for name in (self.dino, self.clip)}

    @property
    def labels(self) -> tuple[str, str]:
        """As reports name them."""
        dino, clip = (Path(name).name if Path(name).is_dir() else name for name in (self.dino, self.clip))
        return dino, clip


@dataclass(kw_only=True, eq=False)
class Embedder:
    """Loaded backbones; float32, without gradients."""

    dino: Any
    clip: Any
    dino_processor: Any
    clip_processor: Any
    tokenizer: Any
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def load(cls, backbones: Backbones, device: str = "cpu") -> "Embedder":
        """Raises InpaintError for what is not there, or is no such model."""
        dino = loaded(backbones.dino, AutoModel.from_pretrained, dtype=torch.float32)
        clip = loaded(backbones.clip, AutoModel.from_pretrained, dtype=torch.float32)
        if clip.config.model_type != "clip":
            raise InpaintError(f"clip {backbones.clip}: is a {clip.config.model_type} model; give a CLIP")
        return cls(
            dino=dino.eval().to(device),
            clip=clip.eval().to(device),
            dino_processor=loaded(backbones.dino, AutoImageProcessor.from_pretrained, backend="pil"),
            clip_processor=loaded(backbones.clip, AutoImageProcessor.from_pretrained, backend="pil"),
            tokenizer=loaded(backbones.clip, AutoTokenizer.from_pretrained),
            device=torch.device(device),
        )

    @torch.no_grad()
    def dino_layers(self, pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Pictures H x W x 3 uint8 -> (features of each, N x D: the first token's, as DINO compares by; each layer's
        patch tokens, N x T x D)."""
        seen = self.dino_processor(images=list(pictures), return_tensors="pt").to(self.device)
        found = self.dino(**seen, output_hidden_states=True)
        layers = [layer[:, 1:].cpu().numpy() for layer in found.hidden_states[1:]]
        return found.last_hidden_state[:, 0].cpu().numpy(), layers

    @torch.no_grad()
    def clip_images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Pictures H x W x 3 uint8 -> their projected embeddings, N x D."""
        seen = self.clip_processor(images=list(pictures), return_tensors="pt").to(self.device)
        pooled = self.clip.vision_model(**seen).pooler_output
        embedded: np.ndarray = self.clip.visual_projection(pooled).cpu().numpy()
        return embedded

    @torch.no_grad()
    def clip_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Prompts, cut to CLIP's 77 tokens -> their projected embeddings, N x D."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        pooled = self.clip.text_model(**tokens).pooler_output
        embedded: np.ndarray = self.clip.text_projection(pooled).cpu().numpy()
        return embedded
