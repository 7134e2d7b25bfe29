"""A fleet is planned by memory: what does not fit is refused, and what fits is used."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from inpaint import rowmap
from inpaint.cluster import GIGA, Node
from inpaint.data.rows import Manifest, Row
from inpaint.errors import ClusterTooSmall, InpaintError
from inpaint.models.lora import LoraSettings
from inpaint.recipes.category_lora import CategoryLora
from inpaint.rowmap import ActorPool
from inpaint.train import footprint, packing
from inpaint.train.footprint import HEADROOM, Footprint, footprint_of
from inpaint.train.packing import pack
from inpaint.train.settings import TrainSettings, ValidationSettings
from inpaint.train.trainer import Training
from tests.tiny import SIZE, tiny_sd_inpaint

GB = int(GIGA / HEADROOM)
"""Counts as 1 GB in a plan."""
ON_CPU = Footprint(loading=3 * GB, base=2 * GB, adapter=2 * GB, device=0)
ON_GPU = Footprint(loading=3 * GB, base=2 * GB, adapter=2 * GB, device=int(24.1 * GIGA))


def node(cpus: float, gb: float, gpus: float = 0.0) -> Node:
    return Node(cpus, gpus, gb * GIGA)


@pytest.mark.parametrize(
    ("footprint", "nodes", "pool", "most", "expected"),
    [
        pytest.param(ON_CPU, [node(8, 15)], {}, None, (1, 5, 12), id="as many as the machine holds, in even rounds"),
        pytest.param(ON_CPU, [node(8, 100)], {}, 4, (1, 4, 10), id="never more than are wanted"),
        pytest.param(ON_CPU, [node(8, 1000)], {}, None, (1, 10, 22), id="never more than there are"),
        pytest.param(ON_CPU, [node(8, 9), node(8, 100)], {}, None, (2, 3, 8), id="every process finds a place"),
        pytest.param(ON_CPU, [node(8, 3), node(8, 100)], {}, None, (1, 10, 22), id="too small a machine has none"),
        pytest.param(ON_CPU, [node(8, 25)], {"actors": 2}, None, (2, 5, 12), id="processes share their machine"),
        pytest.param(ON_CPU, [node(8, 13)], {"cpus_per_actor": 2}, None, (3, 1, 4), id="as many as memory holds"),
        pytest.param(ON_CPU, [node(4, 17)], {"cpus_per_actor": 2}, None, (2, 3, 8), id="as many as CPUs hold"),
        pytest.param(ON_CPU, [node(8, 100)], {"memory_gb_per_actor": 9.0}, None, (1, 3, 9), id="no more than is given"),
        pytest.param(ON_CPU, [Node(8)], {}, None, (1, 10, 22), id="nobody knows what there is"),
        pytest.param(ON_GPU, [node(8, 9, 1)], {}, None, (1, 10, None), id="a GPU's memory, not the machine's"),
        pytest.param(ON_GPU, [node(8, 9, 1)], {"gpus_per_actor": 0.5}, None, (2, 5, None), id="a share of it each"),
    ],
)
def test_memory_decides_how_many(footprint, nodes, pool, most, expected, monkeypatch) -> None:
    for module in (rowmap, packing):
        monkeypatch.setattr(module, "cluster_nodes", lambda: tuple(nodes))
    found, told = pack(10, footprint, ActorPool(**pool), most)
    memory = found.memory_gb_per_actor
    assert (found.actors, found.max_batch, None if memory is None else round(memory)) == expected
    assert f"10 adapters, {found.max_batch} at once in each of {found.actors} process(es)" in told
    assert found.needs(10).workers == found.actors


@pytest.mark.parametrize(
    ("footprint", "nodes", "pool", "error", "message"),
    [
        (ON_CPU, [node(8, 3.9)], {}, InpaintError, "takes 4 GB, a machine has 3.9 GB: give a smaller train.max_micro"),
        (ON_CPU, [node(8, 99)], {"memory_gb_per_actor": 3.5}, InpaintError, "memory_gb_per_actor has 3.5 GB"),
        (ON_GPU, [node(8, 99, 1)], {"gpus_per_actor": 0.1}, InpaintError, "takes 4 GB, 0.1 of a GPU has 2.41 GB"),
        (ON_CPU, [node(8, 9)], {"actors": 3}, ClusterTooSmall, r"lacks 3 more GB of memory \(12 asked, 9 there\)"),
        (ON_CPU, [node(8, 7)] * 2, {"actors": 3}, ClusterTooSmall, r"the machines have 8 CPU \+ 0 GPU \+ 7 GB"),
    ],
)
def test_what_cannot_fit_is_refused(footprint, nodes, pool, error, message, monkeypatch) -> None:
    for module in (rowmap, packing):
        monkeypatch.setattr(module, "cluster_nodes", lambda: tuple(nodes))
    with pytest.raises(error, match=message):
        pack(10, footprint, ActorPool(**pool), None)


def training_in(folder: Path) -> Training:
    """An adapter's, of one row."""
    Image.new("RGB", (SIZE, SIZE)).save(folder / "0.png")
    told = {"prompt": "wood", "category": "CDP_A", "width": SIZE, "height": SIZE, "digest": "0" * 64}
    rows = Manifest.of([Row(id="0", root=str(folder), image="0.png", **told)])
    recipe = CategoryLora(
        data=str(folder),
        output=str(folder),
        base=str(tiny_sd_inpaint(folder / "base")),
        resolution=SIZE,
        lora=LoraSettings(rank=1),
        train=TrainSettings(samples=8, global_batch=4, max_micro_batch=2, ema_halflife=4),
        validation=ValidationSettings(samples=3),
    )
    return Training(name="CDP_A", recipe=recipe.bind(rows), rows=rows, output=str(folder / "run"))


def test_what_a_row_takes_is_measured_and_what_a_parameter_takes_counted(tmp_path: Path, monkeypatch) -> None:
    """Loading takes 3,000 bytes; a step 1,000, 50 for each row, and the first one 500 more."""
    training, rows = training_in(tmp_path), list[int]()
    kind = training.recipe.objective(torch.device("cpu"))

    class Scripted(footprint._Meter):
        def peak(self) -> int:
            return 1000 + 500 * (len(rows) == 1) + 50 * rows[-1] if rows else 3000

    forward = type(kind).forward

    def counted(self, batch, **settings):
        rows.append(len(batch["position"]))
        return forward(self, batch, **settings)

    monkeypatch.setattr(footprint, "_Meter", Scripted)
    monkeypatch.setattr(type(kind), "forward", counted)
    found, settings = footprint_of(training, torch.device("cpu")), training.recipe.train
    assert rows == [1, 1, 2]
    trained = sum(p.numel() for group in kind.groups() for p in group.parameters.values())
    sample = footprint.first_sample(training)
    waiting = settings.global_batch + 2 + training.recipe.validation.samples
    kept = (2 + 2 + 2 + 1) * 4 * trained  # parameters, gradients, each once stacked; Adam's moments; the average
    assert found.adapter == 2 * 50 + kept + waiting * sum(values.nbytes for values in sample.values())
    assert (found.loading, found.base, found.device) == (3000, 1000, 0)
    without = replace(training, recipe=replace(training.recipe, train=replace(settings, ema_halflife=None)))
    assert footprint_of(without, torch.device("cpu")).adapter == found.adapter - 4 * trained
