"""What is painted of a data set, row by row, decided before anything is painted; no Ray.

A task's seed is a function of (run seed, row id), so a row's picture does not depend on which other rows there are.
Its `key` covers everything that its picture depends on, so that a second run knows what it need not do again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

from inpaint.data.quarantine import Quarantined, Reason
from inpaint.data.rows import Manifest, Row
from inpaint.errors import BadRow, InpaintError
from inpaint.models.adapter import AdapterCard
from inpaint.paint.settings import PaintModels

COMPARISONS = "comparisons"


@dataclass(frozen=True, kw_only=True)
class PaintTask:
    """One row to paint; plain values, for it travels."""

    row: Row
    prompt: str
    """With the category's token in it."""
    seed: int
    output: str
    """Path of the picture below the output folder; its comparison is at `comparisons/` + this."""
    key: str
    """sha256 of all that the picture depends on."""


def plan_tasks(manifest: Manifest, models: PaintModels) -> tuple[list[PaintTask], list[Quarantined]]:
    """A task for each row, in the manifest's order, and the rows whose category the adapter does not know."""
    tasks, unknown = [], []
    settings, card = models.settings, None if models.adapter is None else models.adapter.card
    names = output_names(manifest.table["id"].to_pylist())
    shared = [models.identity, asdict(settings.sampling), settings.seed, settings.negative_prompt]
    for number, row in enumerate(manifest.rows(), start=1):
        try:
            prompt = format_prompt(row.prompt, row.category, card)
        except BadRow as error:
            unknown.append(Quarantined.of(number, row.image, error))
            continue
        text = json.dumps([*shared, row.id, row.digest, prompt], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        seed = row_seed(settings.seed, row.id)
        tasks.append(PaintTask(row=row, prompt=prompt, seed=seed, output=names[row.id], key=key))
    return tasks, unknown


def format_prompt(prompt: str, category: str | None, adapter: AdapterCard | None) -> str:
    """`a red box` -> `<CDP_FOOD> background, a red box`; as written without an adapter or without a category.

    Raises:
        BadRow: a category that the adapter was not trained on.
    """
    if adapter is None:
        return prompt
    if category is not None and adapter.tokens and category not in adapter.tokens:
        known = ", ".join(sorted(adapter.tokens))
        raise BadRow("category", Reason.UNKNOWN_CATEGORY, f"{category!r}: the adapter has {known}")
    return adapter.prompt(prompt, category)


def row_seed(seed: int, row_id: str) -> int:
    """0 .. 2^63 - 1."""
    digest = hashlib.blake2b(f"{seed}/paint/{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def output_names(ids: Iterable[str]) -> dict[str, str]:
    """Row id -> its picture's path below the output folder: `shoes/a.jpg` -> `shoes/a.png`.

    Where two rows would share a path (`a.jpg` beside `a.png`), both keep their whole id: `a.jpg.png`, `a.png.png`.
    """
    short = {row_id: _short_name(row_id) for row_id in ids}
    uses = Counter(name.casefold() for name in short.values())
    names = {i: name if uses[name.casefold()] == 1 else f"{i}.png" for i, name in short.items()}
    written = Counter(n.casefold() for name in names.values() for n in (name, f"{COMPARISONS}/{name}"))
    doubled = [i for i, name in names.items() if written[name.casefold()] > 1]
    if doubled:
        raise InpaintError(f"row {doubled[0]}: another row's picture would have the same file name; rename the image")
    return names


def _short_name(row_id: str) -> str:
    path, hash_sign, number = row_id.rpartition("#")
    if not (hash_sign and number.isdigit()):
        path, number = row_id, ""
    stem = PurePosixPath(path).with_suffix("").as_posix()
    return f"{stem}#{number}.png" if number else f"{stem}.png"
