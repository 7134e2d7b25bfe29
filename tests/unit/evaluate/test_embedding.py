"""Backbones give what transformers gives, a run goes on, and a subject's figures are those of its pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer, ViTImageProcessorPil, ViTModel

from inpaint.errors import InpaintError
from inpaint.evaluate.backbones import Backbones, Embedder
from inpaint.evaluate.embedding import Embedded, Group, embed, embed_groups, subject_scores
from inpaint.rowmap import ActorResources

RNG = np.random.default_rng(1)
PICTURES = [RNG.integers(0, 256, (40, 52, 3), dtype=np.uint8) for _ in range(3)]
PROMPTS = ["a red wood box", "the wood", "red"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def embedder(backbones: Backbones) -> Embedder:
    return Embedder.load(backbones)


@torch.no_grad()
def test_figures_are_those_of_the_published_models_and_torchs_cosine(backbones, embedder) -> None:
    cosine = torch.nn.functional.cosine_similarity
    clip, vit = CLIPModel.from_pretrained(backbones.clip), ViTModel.from_pretrained(backbones.dino)
    tokenizer = CLIPTokenizer.from_pretrained(backbones.clip)
    processor = CLIPProcessor(CLIPImageProcessorPil.from_pretrained(backbones.clip), tokenizer)
    images = [Image.fromarray(picture) for picture in PICTURES]
    both = processor(text=PROMPTS, images=images, return_tensors="pt", padding=True)
    # CLIP's own logits are cosines times its temperature.
    cosines = clip(**both).logits_per_image / clip.logit_scale.exp()
    seen = ViTImageProcessorPil.from_pretrained(backbones.dino)(images, return_tensors="pt")
    tokens = vit(**seen).last_hidden_state[:, 0]
    clip_images = clip.get_image_features(pixel_values=both["pixel_values"]).pooler_output

    groups = [embed(embedder, [picture], prompt) for picture, prompt in zip(PICTURES, PROMPTS, strict=True)]
    found = subject_scores(groups[:1], groups[1:])
    assert found.clip_t == pytest.approx(float(cosines.diagonal()[1:].mean()), abs=TOLERANCE)
    assert found.dino == pytest.approx(float(cosine(tokens[:1], tokens[1:]).mean()), abs=TOLERANCE)
    assert found.clip_i == pytest.approx(float(cosine(clip_images[:1], clip_images[1:]).mean()), abs=TOLERANCE)


def test_a_subjects_figures_are_those_of_all_its_groups() -> None:
    def group(*directions: tuple[float, float], text: tuple[float, float] | None = None, **more: float) -> Embedded:
        features = np.array(directions)
        return Embedded(dino_ND=features, clip_ND=features, text_D=None if text is None else np.array(text), **more)

    real, x, y = group((1, 0)), (1.0, 0.0), (0.0, 1.0)
    made = [group(x, y, text=x, diversity=1.0), group(x, x, text=y, diversity=3.0)]
    scores = subject_scores([real], made, of_class=[group(y, x)], lookalikes=[group(y)])
    assert (scores.dino, scores.clip_i, scores.clip_t) == pytest.approx((0.75, 0.75, 0.25))
    assert (scores.div, scores.pres) == pytest.approx((2.0, 0.5))
    assert scores.lookalike_map == pytest.approx((3 * 1 + 1 / 2) / 4)
    plain = subject_scores([real], [group(x)])
    assert (plain.clip_t, plain.div, plain.pres, plain.lookalike_map) == (None, None, None, None)
    with pytest.raises(InpaintError, match="0 groups of photos"):
        subject_scores([], made)


def test_a_run_embeds_what_is_new_and_says_what_it_could_not_read(backbones, embedder, tmp_path: Path) -> None:
    for number, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")

    def group(name: str, *numbers: int, digest: str = "a", prompt: str = "red") -> Group:
        images = tuple(f"{number}.png" for number in numbers)
        return Group(name=name, root=str(tmp_path), images=images, digests=(digest,) * len(images), prompt=prompt)

    def run(*groups: Group):
        return embed_groups(groups, backbones, str(tmp_path / "out"), here=ActorResources("cpu", 1))

    found, report = run(group("one", 0, 1), group("two", 2, prompt=""), group("gone", 9))
    assert (report.done, len(report.quarantined)) == (2, 1) and found.keys() == {"one", "two"}
    wanted = embed(embedder, PICTURES[:2], "red")
    for name, value in vars(wanted).items():
        np.testing.assert_allclose(getattr(found["one"], name), value, atol=TOLERANCE)
    assert found["two"].text_D is None and found["two"].diversity is None
    _, again = run(group("one", 0, 1), group("two", 2, digest="b", prompt=""))
    assert (again.done, again.skipped) == (1, 1)


def test_a_backbone_that_is_none_is_told_by_its_name(backbones, tmp_path: Path) -> None:
    with pytest.raises(InpaintError, match=r"model .*empty: .*give a hub id"):
        (tmp_path / "empty").mkdir()
        Embedder.load(Backbones(dino=str(tmp_path / "empty"), clip=backbones.clip))
    with pytest.raises(InpaintError, match=r"clip .*dino: is a vit model; give a CLIP"):
        Embedder.load(Backbones(dino=backbones.dino, clip=backbones.dino))
