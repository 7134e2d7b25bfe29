"""Pictures from text alone: a map over prompts and seeds (`inpaint.rowmap`), each actor with its own painter.

Guaranteed: each picture is that of diffusers' text-to-image pipeline with the same seed (4-channel bases; the bounds of
`inpaint.paint.painter`), and does not depend on the other prompts, on how many there are or on the number of actors.
"""

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from inpaint.errors import InpaintError
from inpaint.paint.batch import PaintModels, PaintSettings, Worker, read_models
from inpaint.paint.photos import encode_png
from inpaint.paint.request import PaintRequest
from inpaint.rowmap import ActorPool, ActorResources, Item, MapReport, Result, map_rows
from inpaint.stopping import StopToken

GENERATED = "generated.jsonl"
"""Done-list of the output: id, prompt, seed, output, seconds, files."""
LONGEST_NAME = 80
"""Letters of a prompt in a file's name."""


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """One picture to make; plain values, for it travels."""

    prompt: str
    """As the base is told it, and the adapter's weight."""
    seed: int
    height: int
    width: int
    output: str
    """Path of the picture below the output folder."""

    def request(self, models: PaintModels) -> PaintRequest:
        """Raises InpaintError for what cannot be painted."""
        told = models.told(self.prompt)
        return PaintRequest.of_text(height=self.height, width=self.width, seed=self.seed, **told)


def generate(
    prompts: Sequence[str],
    settings: PaintSettings,
    output: str,
    *,
    n: int = 1,
    height: int | None = None,
    width: int | None = None,
    category: str | None = None,
    pool: ActorPool | None = None,
    here: ActorResources | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    stop: StopToken | None = None,
) -> MapReport:
    """Makes `n` pictures of each prompt with the seeds seed, seed + 1, ... into `output` (a folder or URL), as
    `picture_name` says, and `generated.jsonl` about them. What is there, made in the same way, is not made again.

    Args:
        height, width: pixels; default: the side that `settings.sampling.size` says, or else the base's own.
        category: of all prompts: its token is written into them, as the adapter was trained.
        pool, here, on_progress, stop: as in `inpaint.rowmap.map_rows`.

    Raises:
        InpaintError: settings, a base, an adapter, a prompt or an output that cannot be used; stopped.
    """
    models, pool = read_models(settings), pool or ActorPool()
    side = settings.sampling.size or models.info.default_size
    items = plan_pictures(prompts, models, n=n, shape=(height or side, width or side), category=category)
    work = partial(TextWorker, models, pool.max_batch)
    return map_rows(items, work, output, name=GENERATED, pool=pool, here=here, on_progress=on_progress, stop=stop)


def picture_name(prompt: str, seed: int) -> str:
    """Path below the output folder: `a red box`, 3 -> `a-red-box/3.png`; where words do not say all of the prompt, some
    digits of its hash follow them."""
    words = "-".join(re.findall(r"[a-z0-9]+", prompt.lower()))[:LONGEST_NAME]
    if not words or words != prompt.replace(" ", "-"):
        words += "-" + hashlib.sha256(prompt.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{words}/{seed}.png"


def plan_pictures(
    prompts: Sequence[str], models: PaintModels, *, n: int, shape: tuple[int, int], category: str | None = None
) -> list[Item]:
    """A `TextTask` per picture, prompt by prompt. Args: shape: height and width. Raises as `generate`."""
    doubled = [prompt for prompt, uses in Counter(prompts).items() if uses > 1]
    if doubled:
        raise InpaintError(f"prompt {doubled[0]!r}: is there twice; give it once, and a larger n")
    if not prompts or n < 1:
        raise InpaintError(f"{len(prompts)} prompts, n {n}: give at least 1")
    (height, width), first = shape, models.settings.seed
    items = []
    for prompt in prompts:
        told = models.prompt(prompt, category)
        for seed in range(first, first + n):
            name = picture_name(prompt, seed)
            task = TextTask(prompt=told, seed=seed, height=height, width=width, output=name)
            task.request(models)
            # The run's seed is this picture's: those of a run with other seeds are the same pictures.
            own = replace(models, settings=replace(models.settings, seed=seed))
            items.append(Item(name, own.key("text", told, f"{width}x{height}"), task))
    return items


class TextWorker(Worker):
    """Makes batches of pictures."""

    def __call__(self, tasks: Sequence[TextTask]) -> list[Result]:
        started = time.monotonic()
        pictures = self.painter.paint([task.request(self.models) for task in tasks])
        seconds = round((time.monotonic() - started) / len(tasks), 3)
        return [
            Result(
                files={task.output: png},
                line={"prompt": task.prompt, "seed": task.seed, "output": task.output, "seconds": seconds},
            )
            for task, png in zip(tasks, self.threads.map(encode_png, pictures), strict=True)
        ]
