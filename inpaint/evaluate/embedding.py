"""Embedding pictures on actors: a resumable map (`inpaint.rowmap`) over groups of pictures, and what comes of them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from safetensors.numpy import load, save

from inpaint.data.storage import read_file
from inpaint.device import use_cores
from inpaint.errors import BadRow, InpaintError
from inpaint.evaluate.backbones import Backbones, Embedder
from inpaint.evaluate.fidelity import diversity, lookalike_map, mean_similarity, prompt_similarity
from inpaint.paint.photos import read_image
from inpaint.rowmap import ActorPool, ActorResources, Item, MapReport, Result, key_of, map_rows
from inpaint.stopping import StopToken

EMBEDDED = "embedded.jsonl"
"""Done-list of the output: id, pictures, files."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pictures that belong together: those of one prompt, or a folder's; plain values, for they travel."""

    name: str
    """Names it among all groups of a run."""
    root: str
    """Their folder or URL."""
    images: tuple[str, ...]
    """Paths below it."""
    digests: tuple[str, ...]
    """Of each picture's bytes."""
    prompt: str = ""
    """That they are compared with; empty: none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """A group in numbers."""

    dino_ND: np.ndarray
    clip_ND: np.ndarray
    text_D: np.ndarray | None = None
    """Of the prompt."""
    diversity: float | None = None
    """Of two or more pictures of a prompt."""


@dataclass(frozen=True, kw_only=True)
class SubjectScores:
    """What DreamBooth is measured by; None where there were no pictures to measure it with."""

    dino: float
    """Mean cosine to the subject's photos."""
    clip_i: float
    clip_t: float | None
    """Mean cosine of pictures and prompts."""
    div: float | None
    """Perceptual distance of pictures of one prompt, of this backbone (`fidelity.diversity`)."""
    pres: float | None
    """Mean cosine of pictures of the class to the subject's photos: lower keeps the class better."""
    lookalike_map: float | None
    """How well generated pictures find the subject's photos among those of look-alikes."""


def embed(embedder: Embedder, pictures: Sequence[np.ndarray], prompt: str = "") -> Embedded:
    """A group of pictures, H x W x 3 uint8 each, in this process."""
    dino_ND, layers = embedder.dino_layers(pictures)
    clip_ND = embedder.clip_images(pictures)
    if not prompt:
        return Embedded(dino_ND=dino_ND, clip_ND=clip_ND)
    distance = diversity(layers) if len(pictures) > 1 else None
    return Embedded(dino_ND=dino_ND, clip_ND=clip_ND, text_D=embedder.clip_texts([prompt])[0], diversity=distance)


def subject_scores(
    real: Sequence[Embedded],
    generated: Sequence[Embedded],
    *,
    of_class: Sequence[Embedded] = (),
    lookalikes: Sequence[Embedded] = (),
) -> SubjectScores:
    """The figures of one subject. Raises InpaintError where there are no photos or no generated pictures."""
    if not real or not generated:
        raise InpaintError(f"{len(real)} groups of photos, {len(generated)} of generated pictures: give both")
    photos, made = _dino(real), _dino(generated)
    told = [
        (group.clip_ND, np.broadcast_to(group.text_D, group.clip_ND.shape))
        for group in generated
        if group.text_D is not None
    ]
    distances = [group.diversity for group in generated if group.diversity is not None]
    clip_t = None
    if told:
        clip_t = prompt_similarity(*(np.concatenate(side) for side in zip(*told, strict=True)))
    return SubjectScores(
        dino=mean_similarity(made, photos),
        clip_i=mean_similarity(*(np.concatenate([group.clip_ND for group in groups]) for groups in (generated, real))),
        clip_t=clip_t,
        div=float(np.mean(distances)) if distances else None,
        pres=mean_similarity(_dino(of_class), photos) if of_class else None,
        lookalike_map=lookalike_map(made, photos, _dino(lookalikes)) if lookalikes else None,
    )


def _dino(groups: Sequence[Embedded]) -> np.ndarray:
    return np.concatenate([group.dino_ND for group in groups])


def embed_groups(
    groups: Sequence[Group],
    backbones: Backbones,
    output: str,
    *,
    pool: ActorPool | None = None,
    here: ActorResources | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    stop: StopToken | None = None,
) -> tuple[dict[str, Embedded], MapReport]:
    """Group name -> its numbers; what `output` has already is not computed again. Groups with a picture that cannot be
    read any more are missing, and in its `quarantine.jsonl`. Arguments and errors as `inpaint.rowmap.map_rows`."""
    revisions = backbones.revisions()
    items = [Item(group.name, _key(group, revisions), group) for group in groups]
    pool = pool or ActorPool()
    report = map_rows(
        items,
        partial(EmbedWorker, backbones),
        output,
        name=EMBEDDED,
        pool=pool,
        here=here,
        on_progress=on_progress,
        stop=stop,
    )
    found = {group.name: read_file(output, _file(group)) for group in groups}
    aside = {bad.name for bad in report.quarantined}
    return {name: _read(data) for name, data in found.items() if data is not None and name not in aside}, report


class EmbedWorker:
    """Embeds groups, one after the other."""

    def __init__(self, backbones: Backbones, resources: ActorResources) -> None:
        use_cores(resources.threads)
        self.embedder = Embedder.load(backbones, resources.device)

    def __call__(self, groups: Sequence[Group]) -> list[Result | BadRow]:
        return [self._embedded(group) for group in groups]

    def _embedded(self, group: Group) -> Result | BadRow:
        try:
            pictures = [read_image(group.root, path) for path in group.images]
        except BadRow as error:
            return error
        numbers = vars(embed(self.embedder, pictures, group.prompt))
        # In C's order: safetensors writes a view's memory as it lies there.
        arrays = {name: np.array(value, order="C") for name, value in numbers.items() if value is not None}
        return Result(files={_file(group): save(arrays)}, line={"pictures": len(pictures)})


def _file(group: Group) -> str:
    return f"embedded/{hashlib.sha256(group.name.encode()).hexdigest()[:16]}.safetensors"


def _key(group: Group, revisions: Mapping[str, str]) -> str:
    return key_of(sorted(revisions.items()), group.digests, group.prompt)


def _read(data: bytes) -> Embedded:
    arrays = load(data)
    distance = arrays.pop("diversity", None)
    return Embedded(**arrays, diversity=None if distance is None else float(distance))
