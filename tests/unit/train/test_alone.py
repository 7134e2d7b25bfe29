"""A training in one process: it goes on exactly, several follow one another, and nothing of them is kept."""

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inpaint.data import sample
from inpaint.data.decoded import DecodedRows, decode
from inpaint.data.plan import Plan
from inpaint.data.rows import Manifest, Row
from inpaint.data.sample import ReadSettings
from inpaint.models.lora import LoraSettings
from inpaint.recipes.dreambooth import DreamboothLora, Subject
from inpaint.recipes.dreambooth_side_by_side import times_seen
from inpaint.stopping import StopToken
from inpaint.train import run
from inpaint.train.alone import train_alone
from inpaint.train.encoding import Latents
from inpaint.train.latent import LatentInpainting
from inpaint.train.run import trained_by
from inpaint.train.settings import RateSchedule, TrainSettings, ValidationSettings
from inpaint.train.trainer import Training
from tests.tiny import SIZE, tiny_sd

CPU = torch.device("cpu")
ROWS, SAMPLES = 3, 12


pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Of a subject with three photos and one picture of its class, half of it."""
    folder = tmp_path_factory.mktemp("alone")
    rows = []
    for number in range(ROWS + 1):
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        seen = {"image": f"{number}.png", "width": SIZE, "height": SIZE, "digest": f"{number:064x}"}
        of_class = {"source": 1, "weight": 0.5} if number == ROWS else {}
        rows.append(Row(id=f"{number}.png", root=str(folder), prompt="the red wood", **seen, **of_class))
    recipe = DreamboothLora(
        data=str(folder),
        output=str(folder),
        subjects=(Subject(name="s", prompt="p"),),
        base=str(tiny_sd(folder / "base")),
        random_holes=False,
        resolution=SIZE,
        resume=True,
        lora=LoraSettings(rank=2),
        unet_learning_rate=1e-2,
        train=TrainSettings(
            samples=SAMPLES, global_batch=2, max_micro_batch=1, zero_stage=0, schedule=RateSchedule.CONSTANT, warmup=0.0
        ),
        validation=ValidationSettings(samples=2, pictures=1),
    )
    manifest = Manifest.of(rows, (2, 1))
    bound = recipe.bind(manifest)
    return Training(name="s", recipe=bound, rows=manifest, output=str(folder / "run"))


def to(training: Training, samples: int, output: str | None = None) -> Training:
    recipe = replace(training.recipe, train=replace(training.recipe.train, samples=samples))
    return replace(training, recipe=recipe, output=output or training.output)


def test_it_goes_on_exactly_and_nothing_of_it_is_kept(training: Training, tmp_path: Path) -> None:
    whole, halves = to(training, SAMPLES), to(training, SAMPLES // 2, str(tmp_path / "halves"))
    ended = train_alone(whole, CPU, 1)
    assert (ended.samples, ended.unread, ended.manifest) == (SAMPLES, 0, training.rows.hash)
    assert train_alone(halves, CPU, 1).samples == SAMPLES // 2
    assert train_alone(to(halves, SAMPLES), CPU, 1).samples == SAMPLES
    one, other = (trained_by(each, ended).parameters for each in (whole, to(halves, SAMPLES)))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert any(tensor.abs().max() > 0 for name, tensor in one.items() if ".lora_B." in name), "it learned"
    assert train_alone(whole, CPU, 1).samples == SAMPLES, "what has ended is not begun again"
    assert (Path(training.output) / "validation").is_dir()
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is LatentInpainting]


class Stored:
    """Stands for `SharedRows`, without Ray."""

    bytes = 100

    def __init__(self, rows: Manifest, read: ReadSettings) -> None:
        entries = np.argwhere(np.ones((len(rows), 1), dtype=bool))
        self._rows = DecodedRows(np.arange(len(rows))[:, None], 100, [decode(rows, read, entries)])

    def opened(self, read: ReadSettings) -> DecodedRows:
        return self._rows


def test_on_decoded_rows_it_learns_the_same(training: Training, tmp_path: Path, monkeypatch) -> None:
    said: list[str] = []
    unseen = replace(training.recipe, validation=ValidationSettings(samples=0))
    plain = replace(training, recipe=unseen, output=str(tmp_path / "plain"))
    rooms: list[int] = []

    def share_rows(rows: Manifest, read: ReadSettings, plan: Plan, span: range, *, room: int, stop: StopToken):
        rooms.append(room)
        return Stored(rows, read) if room >= Stored.bytes else None

    monkeypatch.setattr(run, "share_rows", share_rows)
    monkeypatch.setattr(run, "store_room", lambda: 150)
    cached = replace(plain, recipe=replace(unseen, latents=Latents.CACHED))
    first, second, third = run.decode_before([plain, plain, cached], StopToken(), said.append)
    assert rooms == [150, 50] and second.decoded is third.decoded is None
    assert said == ["the object store has no room for the rows of 1 training(s), which decode them at each reading"]
    ended = train_alone(plain, CPU, 1)
    monkeypatch.setattr(sample, "fetch", None)
    decoded = replace(first, output=str(tmp_path / "decoded"))
    assert train_alone(decoded, CPU, 1).samples == SAMPLES
    one, other = (trained_by(each, ended).parameters for each in (plain, decoded))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_photos_and_class_pictures_come_at_their_ratio(training: Training) -> None:
    seen = times_seen(training, SAMPLES)
    assert seen.pop(f"{ROWS}.png") == SAMPLES // 3
    assert sum(seen.values()) == SAMPLES * 2 // 3 and max(seen.values()) - min(seen.values()) <= 1
