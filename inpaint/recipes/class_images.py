"""Pictures of subjects' classes, made by the base itself, for DreamBooth's prior preservation."""

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from inpaint.data.sources import IMAGES
from inpaint.data.storage import open_root, write_file
from inpaint.paint.batch import PaintSettings, read_models
from inpaint.paint.generate import TextTask, TextWorker
from inpaint.rowmap import ActorPool, Item, map_rows
from inpaint.stopping import StopToken

_SEEDS = re.compile(r"(?:^|/)(?:seed-(\d+)\.png|class_images-\d+-(\d+)\.jsonl)$")


def fill_classes(
    folder: str,
    prompts: Mapping[str, str],
    count: int,
    settings: PaintSettings,
    *,
    endings: Sequence[str] = (),
    pool: ActorPool,
    on_progress: Callable[[int, int], None] | None = None,
    stop: StopToken | None = None,
) -> int:
    """Make pictures until each class has `count` images; returns how many were made.

    What is there counts, whoever put it there, and is never written over: a picture is called by its seed, and a seed
    is used once. So pictures that were removed do not come again, and a run that was interrupted makes what lacks. Each
    call's pictures stand, with prompt and seed, in its own `class_images-FIRST-LAST.jsonl` in `folder`.

    Args:
        folder: of all classes, a path or URL.
        prompts: of each class, by its folder below; one that is empty means `folder` itself.
        settings: how they are painted; `seed` is the first that may be used.
        endings: of the prompts, in turn; a picture's whole prompt then lies beside it, in a text file of its name.

    Raises:
        InpaintError: settings or a base that cannot be used; `stop` was requested.
    """
    names = _names(folder)
    images = [name for name in names if re.search(IMAGES, name)]
    lack = {c: count - sum(name.startswith(posixpath.join(c, "")) for name in images) for c in prompts}
    lack = {c: missing for c, missing in lack.items() if missing > 0}
    if not lack:
        return 0
    used = [int(found[1] or found[2]) + 1 for name in names if (found := _SEEDS.search(name))]
    first = max([settings.seed, *used])
    models = read_models(settings)
    side = settings.sampling.size or models.info.default_size
    tasks = []
    for c, missing in lack.items():
        for seed in range(first, first + missing):
            prompt, name = prompts[c], posixpath.join(c, f"seed-{seed}")
            if endings:
                prompt = f"{prompt} {endings[seed % len(endings)]}"
                write_file(folder, f"{name}.txt", prompt.encode())
            tasks.append(TextTask(prompt=prompt, seed=seed, height=side, width=side, output=f"{name}.png"))
    map_rows(
        [Item(task.output, "", task) for task in tasks],
        partial(TextWorker, models, pool.max_batch),
        folder,
        name=f"class_images-{first}-{first + max(lack.values()) - 1}.jsonl",
        pool=pool,
        on_progress=on_progress,
        stop=stop,
    )
    return len(tasks)


def _names(folder: str) -> list[str]:
    """Of the files in a folder, which need not be there."""
    try:
        return list(open_root(folder).files())
    except FileNotFoundError:
        return []
