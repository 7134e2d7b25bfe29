"""Which subjects there are in a folder, and what they are called: prompts, and the word that stands for a subject."""

import csv
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from inpaint.data.sources import IMAGES, MOST_REPEATS
from inpaint.data.storage import absolute, open_root, opened, read_file
from inpaint.errors import InpaintError
from inpaint.models.adapter import NAME, check_name
from inpaint.recipes.dreambooth import Subject
from inpaint.recipes.dreambooth_identifier import AUTO, doubts_about, rarest_token, words_of

USUAL = "sks"
IDENTIFIER, CLASS = "{identifier}", "{class}"
"""Where they go in a prompt."""
TAKEN = ("adapters", "data", "validation_data", "class_images")
"""Folders of a run beside those of its subjects."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What is said of all subjects."""

    instance_prompt: str = "a photo of {identifier} {class}"
    """Of the subject's photos; a text file beside a photo replaces it. `{identifier}` and `{class}` are filled in."""
    identifier: str | None = None
    """The word that stands for the subject: `auto` finds a rare token of the base's tokenizer; unset: what the instance
    prompt says and the class prompt does not, or sks where the prompt has an `{identifier}`."""
    class_name: str | None = None
    """What the subject is, for `{class}`; unset: its folder's name without digits at the end."""
    class_prompt: str = "a photo of a {class}"
    """Of pictures of its class; a text file beside a picture replaces it."""
    class_endings: tuple[str, ...] = ()
    """What the class prompt ends in when pictures are made, in turn: `"in the snow" "on a beach"`. What prompts say of
    a scene is then kept, too: a LoRA forgets it where no picture's prompt has any."""
    repeats: int = 1
    """How often each photo comes in one epoch."""


def find_subjects(
    folder: str,
    wording: Wording,
    tokenizers: Sequence[Any],
    *,
    table: str | None = None,
    class_dir: str | None = None,
) -> list[Subject]:
    """The one subject whose photos lie in `folder`, or each one that has a folder of its own there.

    Args:
        tokenizers: the base's.
        table: of several subjects, a CSV `subject,class` and perhaps `repeats`.
        class_dir: where pictures of their classes are; None: there are none.

    Raises:
        InpaintError: no images, a name that an adapter cannot have, a table that does not fit.
    """
    try:
        files = list(open_root(folder).files())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InpaintError(f"{folder}: there is no such folder") from error
    images = [name for name in files if re.search(IMAGES, name)]
    if not images:
        raise InpaintError(f"{folder}: there is no image in it")
    is_one = any("/" not in name for name in images)
    if is_one and table is not None:
        raise InpaintError(f"subjects {table}: is about several, and {folder} holds the photos of one")
    captions = [text for name in files if name.endswith(".txt") for text in _text(folder, name)]
    identifier = _identifier(wording, captions, tokenizers, beside_class=class_dir is not None)
    if is_one:
        name = PurePosixPath(absolute(folder)).name
        subject = _subject(name if NAME.fullmatch(name) else "subject", wording, identifier)
        return [replace(subject, folder="", class_folder=class_dir or "")]
    names = sorted({name.split("/")[0] for name in images})
    known = {} if table is None else _read_table(table, names)
    for name in names:
        if name in TAKEN:
            raise InpaintError(f"subject {name}: a run has a folder of that name: rename it")
    return [_subject(name, replace(wording, **known.get(name, {})), identifier, class_dir) for name in names]


def _subject(name: str, wording: Wording, identifier: str, class_dir: str | None = None) -> Subject:
    """One of several. Args: class_dir: has a folder per class."""
    check_name(name)
    # `wolf_plushie2` is a wolf plushie.
    class_name = wording.class_name or name.rstrip("0123456789_").replace("_", " ") or name
    class_folder = "" if class_dir is None else f"{class_dir}/{re.sub(r'[^A-Za-z0-9]+', '_', class_name)}"
    return Subject(
        name=name,
        folder=name,
        prompt=wording.instance_prompt.replace(CLASS, class_name).replace(IDENTIFIER, identifier),
        class_prompt=wording.class_prompt.replace(CLASS, class_name),
        class_folder=class_folder,
        repeats=wording.repeats,
    )


def _identifier(wording: Wording, captions: list[str], tokenizers: Sequence[Any], *, beside_class: bool) -> str:
    """What goes into the prompt; warns where it serves badly. Raises InpaintError for one that no prompt says."""
    prompt, given = wording.instance_prompt, wording.identifier
    words: list[str] = []
    if given == AUTO:
        said = [prompt, wording.class_prompt, wording.class_name or "", *wording.class_endings, *captions]
        return rarest_token(tokenizers, said)
    if IDENTIFIER in prompt:
        words = [given or USUAL]
    elif given is not None:
        if given not in prompt and not any(given in caption for caption in captions):
            raise InpaintError(
                f"identifier {given!r}: the instance prompt {prompt!r} does not say it; write {IDENTIFIER}"
            )
        words = [given]
    elif beside_class:
        known = words_of(f"{wording.class_prompt} {wording.class_name or ''}")
        words = [word for word in words_of(prompt.replace(CLASS, "")) if word not in known]
    for doubt in (doubt for word in words for doubt in doubts_about(word, tokenizers)):
        warnings.warn(doubt, stacklevel=4)
    return words[0] if words else ""


def _read_table(where: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Class and repeats of each subject. Raises InpaintError where the table does not name them all, and no others."""
    with opened(where) as file:
        lines = list(csv.DictReader(io.StringIO(file.read().decode("utf-8-sig", errors="replace"))))
    if not lines or not {"subject", "class"} <= lines[0].keys():
        raise InpaintError(f"{where}: give a CSV whose first line is `subject,class` or `subject,class,repeats`")
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        repeats = line.get("repeats") or "1"
        if not repeats.isdecimal() or not 1 <= int(repeats) <= MOST_REPEATS:
            raise InpaintError(f"{where}: {line['subject']} has repeats {repeats!r}: give 1 to {MOST_REPEATS}")
        found[line["subject"]] = {"class_name": line["class"], "repeats": int(repeats)}
    differing = sorted(found.keys() ^ set(names))
    if differing:
        raise InpaintError(f"{where}: {differing[0]} has {'no folder' if differing[0] in found else 'no line'}")
    return found


def _text(folder: str, name: str) -> Iterator[str]:
    data = read_file(folder, name)
    if data is not None:
        yield data.decode("utf-8", errors="replace")
