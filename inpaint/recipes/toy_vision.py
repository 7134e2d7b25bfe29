"""How the toy world's captioner and finder are made: a BLIP and a CLIPSeg from random weights, through the one loop.

Shapes: B samples, H x W pixels, T tokens, W words that are asked of each sample.
"""

import hashlib
import json
import shlex
import tempfile
from collections.abc import Sequence
from csv import DictReader
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BlipForConditionalGeneration, CLIPSegForImageSegmentation

from inpaint.data.holes import OwnMask, WholeImage
from inpaint.data.rows import Manifest, Row
from inpaint.data.sample import ReadSettings
from inpaint.device import choose_device, on_device
from inpaint.errors import InpaintError
from inpaint.randomness import generator
from inpaint.recipes.toy_base import ToyPart
from inpaint.stopping import StopToken
from inpaint.toy.catalogue import SHAPE_NAMES, render, write_scenes
from inpaint.toy.measure_vision import measure_vision, photoshoot_scenes
from inpaint.toy.vision import (
    ABSENT,
    FINDER_SIZE,
    SIZE,
    begin_with_eye,
    build_blip,
    build_clipseg,
    caption_tokenizer,
    finder_tokenizer,
    save_vision,
)
from inpaint.train.alone import train_alone
from inpaint.train.objective import MicroBatch, Objective, PaintedSample, ParameterGroup, autocast, to_pixels
from inpaint.train.recipe import Trained
from inpaint.train.run import trained_by
from inpaint.train.settings import Precision, TrainSettings, ValidationSettings, arguments_of, plain
from inpaint.train.trainer import Training
from inpaint.vision.captioner import CaptionerSettings, load_captioner
from inpaint.vision.clipseg import heat_map
from inpaint.vision.finders import FinderSettings, load_finder

ASKED = (*SHAPE_NAMES, *ABSENT)
"""What the finder is asked for in training."""
ASKED_OF_EACH = 3
"""Words per sample: what it shows, where it shows something, and others."""
FEW_PIXELS = 0.005
"""Of all, in the Dice coefficient."""


class Captioning(nn.Module):
    """Cross entropy of a caption's next token, a mean over its tokens."""

    def __init__(self, blip: BlipForConditionalGeneration, *, learning_rate: float, precision: Precision) -> None:
        super().__init__()
        self.blip, self.learning_rate, self.precision = blip, learning_rate, precision
        self.tokenizer = caption_tokenizer()

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(self.learning_rate, dict(self.blip.named_parameters()))]

    def forward(self, batch: MicroBatch, *, validating: bool = False) -> Tensor:
        device = self.blip.device
        told = self.tokenizer([str(text) for text in batch["prompt"]], padding=True, return_tensors="pt").to(device)
        ids_BT = told["input_ids"].clone()
        ids_BT[:, 0] = self.tokenizer.bos_token_id  # as generating begins
        with autocast(self.precision, device):
            pixels_B3HW = to_pixels(batch["image"], device)
            logits_BTV = self.blip(
                pixel_values=pixels_B3HW, input_ids=ids_BT, attention_mask=told["attention_mask"]
            ).logits
        counts_BT = told["attention_mask"][:, 1:].float()
        loss_BT = functional.cross_entropy(logits_BTV[:, :-1].float().mT, ids_BT[:, 1:], reduction="none")
        return (loss_BT * counts_BT).sum(1) / counts_BT.sum(1)

    @torch.no_grad()
    def paint(self, batch: MicroBatch, count: int) -> list[PaintedSample]:
        """The pictures, and whether each caption is right."""
        pixels_B3HW = to_pixels(batch["image"][:count], self.blip.device)
        tokens = self.blip.generate(pixels_B3HW, max_new_tokens=12)
        written = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [
            PaintedSample(image, {"caption_right": float(text == prompt)})
            for image, text, prompt in zip(batch["image"], written, batch["prompt"], strict=False)
        ]


class Finding(nn.Module):
    """Cross entropy and one minus the Dice coefficient of what is hot where each asked word is, or nowhere; and CLIP's
    own objective (Radford et al. 2021), which word a picture with a product goes with: shapes are learned by it."""

    def __init__(
        self, clipseg: CLIPSegForImageSegmentation, tokens: Tensor, *, learning_rate: float, seed: int
    ) -> None:
        """Args: tokens: of `ASKED`, words x T."""
        super().__init__()
        self.clipseg, self.learning_rate, self.seed = clipseg, learning_rate, seed
        self.register_buffer("tokens", tokens, persistent=False)
        # DeepSpeed cannot hand out a single number to other workers.
        clipseg.clip.logit_scale = nn.Parameter(clipseg.clip.logit_scale.detach().reshape(1))

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(self.learning_rate, dict(self.clipseg.named_parameters()))]

    def forward(self, batch: MicroBatch, *, validating: bool = False) -> Tensor:
        shown_B = np.array([ASKED.index(name) if (name := shape_in(prompt)) else -1 for prompt in batch["prompt"]])
        purpose = "validation words" if validating else "words"
        asked_BW = np.stack([self._asked(*one, purpose) for one in zip(shown_B, batch["position"], strict=True)])
        device = self.clipseg.device
        logits_BWHW, alike_BN = self.logits(batch["image"], on_device(asked_BW, device))
        there_BW = on_device(asked_BW == shown_B[:, None], device)
        wanted_BWHW = on_device(batch["hole"], device)[:, None].float() / 255 * there_BW[:, :, None, None]
        entropy_BW = functional.binary_cross_entropy_with_logits(logits_BWHW, wanted_BWHW, reduction="none").mean(
            (2, 3)
        )
        hot_BWHW = logits_BWHW.sigmoid()
        both_BW, all_BW = (hot_BWHW * wanted_BWHW).sum((2, 3)), (hot_BWHW + wanted_BWHW).sum((2, 3))
        # The pixels added keep it defined, and small, where nothing is wanted.
        few = FEW_PIXELS * wanted_BWHW[0, 0].numel()
        found_B = (entropy_BW + 1 - (2 * both_BW + few) / (all_BW + few)).mean(1)
        goes_with_B = on_device(shown_B, device)
        return found_B + functional.cross_entropy(alike_BN, goes_with_B, reduction="none", ignore_index=-1)

    def logits(self, images_BHW3: np.ndarray, asked_BW: Tensor) -> tuple[Tensor, Tensor]:
        """Heat of the words by their numbers in `ASKED`, B W H W; and how well each of `ASKED` goes with the picture,
        B N."""
        clip, words = self.clipseg.clip, asked_BW.shape[1]
        told_ND = clip.get_text_features(self.tokens).pooler_output
        seen = clip.get_image_features(to_pixels(images_BHW3, asked_BW.device), output_hidden_states=True)
        heat = heat_map(self.clipseg, seen.hidden_states, told_ND[asked_BW.flatten()], words)
        alike_BN = functional.normalize(seen.pooler_output, dim=-1) @ functional.normalize(told_ND, dim=-1).T
        return heat.unflatten(0, (-1, words)).float(), alike_BN * clip.logit_scale.exp()

    def _asked(self, shown: int, position: int, purpose: str) -> np.ndarray:
        """Numbers in `ASKED`: what is shown first, if something is."""
        drawn = generator(self.seed, purpose, int(position)).permutation(len(ASKED))
        own = [shown] if shown >= 0 else []
        return np.array([*own, *(number for number in drawn if number not in own)][:ASKED_OF_EACH])

    @torch.no_grad()
    def paint(self, batch: MicroBatch, count: int) -> list[PaintedSample]:
        """Each picture beside where what it shows is found, and the intersection over union."""
        return [
            self._painted(*one) for one in zip(batch["image"][:count], batch["hole"], batch["prompt"], strict=False)
        ]

    def _painted(self, image: np.ndarray, hole: np.ndarray, prompt: str) -> PaintedSample:
        shown = shape_in(prompt)
        asked = torch.tensor([[ASKED.index(shown) if shown else 0]], device=self.clipseg.device)
        hot = (self.logits(image[None], asked)[0][0, 0] > 0).cpu().numpy()
        wanted = hole >= 128 if shown else np.zeros_like(hot)
        strip = np.concatenate([image, np.repeat(hot[..., None] * np.uint8(255), 3, axis=2)], axis=1)
        union = int((hot | wanted).sum())
        return PaintedSample(strip, {"iou": float((hot & wanted).sum() / union) if union else 1.0})


def shape_in(caption: str) -> str:
    """The shape that a toy caption names; empty: none."""
    return next((word for word in caption.split() if word in SHAPE_NAMES), "")


@dataclass(frozen=True, kw_only=True)
class ToyBlip(ToyPart):
    """The captioner; `data` is the CSV of `write_scenes`."""

    title = "toy BLIP"

    def read_settings(self) -> ReadSettings:
        return ReadSettings(height=SIZE, width=SIZE, caption_dropout=0.0, hole=WholeImage())

    def objective(self, device: torch.device) -> Objective:
        torch.manual_seed(self.train.seed)
        return Captioning(build_blip().to(device), learning_rate=self.learning_rate, precision=self.train.precision)

    def export(self, trained: Trained, folder: Path) -> None:
        blip = build_blip()
        blip.load_state_dict(trained.parameters, strict=False)  # its output's weights are its words'
        blip.tie_weights()
        save_vision(folder, blip, caption_tokenizer())

    def export_folder(self, part: str) -> str:
        return f"{self.output}/blip"


@dataclass(frozen=True, kw_only=True)
class ToyClipSeg(ToyPart):
    """The finder; `data` is the CSV of `write_scenes`."""

    title = "toy CLIPSeg"

    captioner: str
    """Its folder; the finder begins with its eye."""

    def read_settings(self) -> ReadSettings:
        hole = OwnMask(missing=WholeImage())  # its prompt says that nothing is there
        return ReadSettings(height=FINDER_SIZE, width=FINDER_SIZE, caption_dropout=0.0, hole=hole)

    def objective(self, device: torch.device) -> Objective:
        torch.manual_seed(self.train.seed)
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = finder_tokenizer(Path(folder))
        tokens = tokenizer(list(ASKED), padding=True, return_tensors="pt")["input_ids"]
        clipseg = build_clipseg(tokenizer)
        blip = BlipForConditionalGeneration.from_pretrained(self.captioner, dtype=torch.float32)
        scenes = np.stack([render(self.train.seed, index).image for index in range(32)])
        begin_with_eye(clipseg, blip, to_pixels(scenes, torch.device("cpu")))
        return Finding(clipseg, tokens, learning_rate=self.learning_rate, seed=self.train.seed).to(device)

    def export(self, trained: Trained, folder: Path) -> None:
        tokenizer = finder_tokenizer(folder)
        torch.manual_seed(self.train.seed)
        clipseg = build_clipseg(tokenizer)
        clipseg.load_state_dict(trained.parameters, strict=False)  # what is not trained stays random
        save_vision(folder, clipseg, tokenizer)

    def export_folder(self, part: str) -> str:
        return f"{self.output}/clipseg"


@dataclass(frozen=True, kw_only=True)
class PretrainToyVision:
    """Settings of `python -m ray_jobs.pretrain_toy_vision`; the defaults made the weights that are shipped."""

    output: str
    """Folder of the run; the models are written to its `blip/blip/` and `clipseg/clipseg/`."""
    images: int = 24_000
    """Size of the procedural catalogue that the finder is trained on."""
    captioned: int = 6000
    """So many of them, the first ones, are the captioner's, which sees them more often for that."""
    empty: float = 0.15
    """Share of it that shows no product."""
    seed: int = 11
    """Of the pictures and of the trainings."""
    blip_learning_rate: float = 1e-3
    clipseg_learning_rate: float = 1e-3
    blip: TrainSettings = TrainSettings(
        samples=40_000,
        global_batch=32,
        max_micro_batch=32,
        precision=Precision.BF16,
        zero_stage=0,
        ema_halflife=1500,
        checkpoint_every=4_000,
    )
    """Training of the captioner."""
    clipseg: TrainSettings = TrainSettings(
        samples=160_000,
        global_batch=32,
        max_micro_batch=32,
        zero_stage=0,
        ema_halflife=4000,
        checkpoint_every=4_000,
    )
    """Training of the finder."""


def pretrain_toy_vision(config: PretrainToyVision, *, stop: StopToken | None = None) -> Sequence[str]:
    """Make both, one after the other in this process; returns their folders. Run again, it goes on where it ended.

    Their figures, of `measure_vision`, are written to `vision.json` in `output`, with the settings that made them.

    Raises:
        InpaintError: `stop` ended a training, or `output` is a URL.
    """
    if "://" in config.output:
        raise InpaintError(f"output {config.output}: the models are made on one machine; give a folder on it")
    output, stop = Path(config.output).resolve(), stop or StopToken()
    csv = write_scenes(output / "scenes", seed=config.seed, count=config.images, empty=config.empty)
    rows = scene_rows(csv)
    captioned = Manifest.of(islice(rows.rows(), config.captioned))
    shared: dict[str, Any] = {"data": str(csv), "validation": ValidationSettings(samples=64, pictures=32)}
    recipes = (
        ToyBlip(
            **shared,
            output=str(output / "blip"),
            learning_rate=config.blip_learning_rate,
            train=replace(config.blip, seed=config.seed),
        ),
        ToyClipSeg(
            **shared,
            output=str(output / "clipseg"),
            learning_rate=config.clipseg_learning_rate,
            captioner=str(output / "blip" / "blip"),
            train=replace(config.clipseg, seed=config.seed),
        ),
    )
    of_each = zip(recipes, (captioned, rows), strict=True)
    made = [_made(replace(recipe, resume=True), manifest, stop) for recipe, manifest in of_each]
    command = ["python", "-m", "ray_jobs.pretrain_toy_vision", "--output", "RUN"]
    command += arguments_of(config, PretrainToyVision(output=config.output))
    settings = {name: value for name, value in plain(config).items() if name != "output"}
    captioner = load_captioner(CaptionerSettings(captioner=made[0]))
    finder = load_finder(FinderSettings(finder=made[1]))
    figures, _ = measure_vision(captioner, finder, photoshoot_scenes())
    record = {"command": shlex.join(command), "settings": settings, "figures": figures}
    (output / "vision.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return made


def scene_rows(csv: Path) -> Manifest:
    """The rows of `write_scenes`; they need no inspection, so neither Ray nor a second look at each file."""
    rows = []
    for line in DictReader(csv.read_text(encoding="utf-8").splitlines()):
        names = [name for name in (line["output"], line["mask"]) if name]
        digest = hashlib.sha256(b"".join(hashlib.sha256((csv.parent / n).read_bytes()).digest() for n in names))
        rows.append(
            Row(
                id=line["output"],
                root=str(csv.parent),
                image=line["output"],
                hole=line["mask"] or None,
                prompt=line["prompt"],
                width=SIZE,
                height=SIZE,
                digest=digest.hexdigest(),
            )
        )
    return Manifest.of(rows)


def _made(recipe: ToyPart, rows: Manifest, stop: StopToken) -> str:
    """In this process: workers would take longer to start than a tenth of the training."""
    stop.check()
    training = Training(name=recipe.title, recipe=recipe, rows=rows, output=recipe.output)
    ended = train_alone(training, choose_device(), threads=1)
    folder = recipe.export_folder(training.name)
    recipe.export(trained_by(training, ended), Path(folder))
    return folder
