"""Several adapters on one base at once: each is what it would be alone, and ends by itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inpaint.data.rows import Manifest, Row
from inpaint.errors import InpaintError
from inpaint.models.lora import LoraSettings
from inpaint.recipes.category_lora import Adapters, CategoryLora
from inpaint.train.alone import train_alone
from inpaint.train.checkpoint import State
from inpaint.train.latent import LatentInpainting
from inpaint.train.settings import Optimizer, Precision, RateSchedule, TrainSettings, ValidationSettings
from inpaint.train.together import train_together
from inpaint.train.trainer import Training
from tests.tiny import SIZE, tiny_sd_inpaint

CPU = torch.device("cpu")
ROWS = {"CDP_A": 4, "CDP_B": 2, "CDP_C": 3}
"""Of each category; they are trained on three times."""
SETTINGS = {"epochs": 3, "global_batch": 2, "max_micro_batch": 1, "zero_stage": 0, "ema_halflife": 4, "epsilon": 1e-5}
"""Adam makes whole steps of the rounding of gradients that are all but zero, as a key's is here: hence epsilon."""
LONG = "wood " * 30
"""Two chunks of tokens."""
pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Training]]:
    """Of each category, in a folder; with other settings of the training than usual."""
    folder = tmp_path_factory.mktemp("together")
    rows = []
    for number, (category, index) in enumerate((c, i) for c, count in ROWS.items() for i in range(count)):
        height, width = SIZE + 16 * (index % 2), SIZE
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        # One category sees other pictures than it paints, as only some catalogues do; one has a long prompt.
        seen = {"input": "0.png"} if category == "CDP_A" else {}
        prompt = LONG if (category, index) == ("CDP_B", 0) else "the red wood"
        seen |= {"prompt": prompt, "category": category, "width": width, "height": height, "digest": f"{number:064x}"}
        rows.append(Row(id=f"{number}", root=str(folder), image=f"{number}.png", **seen))
    base, manifest = str(tiny_sd_inpaint(folder / "base")), Manifest.of(rows)

    def made(output: Path, aspect_buckets: bool = False, **train: object) -> list[Training]:
        recipe = CategoryLora(
            data=str(folder),
            output=str(output),
            base=base,
            resolution=SIZE,
            aspect_buckets=aspect_buckets,
            resume=True,
            adapters=Adapters.PER_CATEGORY,
            init_words={"CDP_A": "red", "CDP_B": "wood", "CDP_C": "the"},
            lora=LoraSettings(rank=2, alpha=1.0, dropout=0.1),
            unet_learning_rate=1e-2,
            train=TrainSettings(**{**SETTINGS, **train}),
            validation=ValidationSettings(samples=2, pictures=1),
        )
        parts = recipe.parts(manifest).items()
        return [Training.of(recipe, p, None, name=n, output=recipe.run_folder(n)) for n, p in parts]

    return made


def state(training: Training) -> State:
    found = training.store.latest()
    assert found is not None
    return found[0]


def difference(one: State, other: State) -> float:
    assert one.keys() == other.keys() and all(one[kind].keys() == other[kind].keys() for kind in one)
    return max(float((one[kind][name] - other[kind][name]).abs().max()) for kind in one for name in one[kind])


def test_each_is_what_it_would_be_alone(trainings, tmp_path, monkeypatch):
    rows_at_once = []
    forward = LatentInpainting.forward

    def counted(self: LatentInpainting, batch, **settings):
        rows_at_once.append(len(batch["weight"]))
        return forward(self, batch, **settings)

    monkeypatch.setattr(LatentInpainting, "forward", counted)
    together, alone = trainings(tmp_path / "together"), trainings(tmp_path / "alone")
    ended = train_together(together, CPU, 1)
    assert [(e.samples, e.steps) for e in ended] == [(12, 6), (6, 3), (10, 5)], "each has its own end"
    assert rows_at_once.count(3) == 2 * 3 and rows_at_once.count(2) == 2 * 2, "all that go on share each forward"
    for one, other, end in zip(together, alone, ended, strict=True):
        by_itself = train_alone(other, CPU, 1)
        assert difference(state(one), state(other)) <= 1e-5
        assert end.metrics == pytest.approx(by_itself.metrics, abs=1e-5)
        moved = [v.abs().max() for name, v in state(one)["trained"].items() if ".lora_B." in name]
        assert min(moved) > 1e-5, "all of it learned"
    assert list((tmp_path / "together" / "CDP_B" / "validation").iterdir())


def test_either_way_goes_on_where_the_other_ended_and_memory_may_be_short(trainings, tmp_path, monkeypatch):
    settings = {"optimizer": Optimizer.SGD, "epochs": None, "ema_halflife": None}
    settings |= {"schedule": RateSchedule.CONSTANT, "warmup": 0.0, "max_micro_batch": 2}
    whole = trainings(tmp_path / "whole", samples=4, **settings)
    halves = trainings(tmp_path / "halves", samples=2, **settings)
    rest = trainings(tmp_path / "halves", samples=4, **settings)
    train_together(whole, CPU, 1)
    train_alone(halves[0], CPU, 1)
    forward = LatentInpainting.forward

    def out_of_memory(self: LatentInpainting, batch, **told):
        if len(batch["weight"]) > 2 * 2:
            raise torch.OutOfMemoryError("of three adapters")
        return forward(self, batch, **told)

    monkeypatch.setattr(LatentInpainting, "forward", out_of_memory)
    train_together(halves[1:], CPU, 1)
    assert [end.samples for end in train_together(rest, CPU, 1)] == [4, 4, 4]
    assert max(difference(state(one), state(other)) for one, other in zip(whole, rest, strict=True)) <= 1e-5


def test_those_whose_images_have_other_shapes_at_a_step_take_turns(trainings, tmp_path):
    together, alone = (trainings(tmp_path / name, aspect_buckets=True) for name in ("together", "alone"))
    train_together(together, CPU, 1)
    for one, other in zip(together, alone, strict=True):
        assert len(np.unique(np.array(other.rows.buckets))) == 2 and "in 2 shapes" in other.length
        train_alone(other, CPU, 1)
        assert difference(state(one), state(other)) <= 1e-5


def test_one_that_fails_stops_no_other(trainings, tmp_path):
    made = trainings(tmp_path)
    gone = replace(made[1], rows=Manifest.of(replace(row, root=str(tmp_path / "gone")) for row in made[1].rows.rows()))
    first, failed, last = train_together([made[0], gone, made[2]], CPU, 1)
    assert (first.samples, last.samples) == (12, 10)
    assert isinstance(failed, InpaintError) and "no row of the validation can be read" in str(failed)


@pytest.mark.parametrize(
    "refused", [{"optimizer": Optimizer.ADAFACTOR}, {"precision": Precision.FP16, "zero_stage": 1}]
)
def test_what_needs_a_training_of_its_own_is_refused(trainings, tmp_path, refused):
    with pytest.raises(InpaintError, match="one training"):
        train_together(trainings(tmp_path, **refused), CPU, 1)
