"""Latents online, cached and streamed are one run: the same parameters to the bit; encoding goes on where it ended."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from inpaint import cluster
from inpaint.cluster import Node
from inpaint.data.bank import Bank
from inpaint.data.latent_files import DATA, Stored
from inpaint.data.latents import Variants
from inpaint.data.rows import Manifest, Row, digest_of
from inpaint.data.sample import read_batch
from inpaint.errors import ClusterTooSmall, InpaintError
from inpaint.models.lora import LoraSettings
from inpaint.recipes.dreambooth import DreamboothLora, Subject
from inpaint.stopping import StopToken
from inpaint.train import alone, encode, trainer
from inpaint.train.encode import Encoded, Subset
from inpaint.train.encoding import Encoding, EncodingSettings, Latents
from inpaint.train.run import encode_before, trained_by
from inpaint.train.settings import RateSchedule, TrainSettings, ValidationSettings
from inpaint.train.start import LatentReading
from inpaint.train.trainer import Training
from tests.tiny import SIZE, tiny_sd_inpaint

pytestmark = pytest.mark.usefixtures("ray_cluster", "process_group")
CPU = torch.device("cpu")
SAMPLES = 24
SHAPES = ((SIZE + 4, SIZE), (SIZE, SIZE - 12), (SIZE - 8, SIZE + 10), (SIZE, SIZE - 12))
"""Height and width of each photo."""


def training_in(folder: Path, latents: Latents, *, aspect_buckets: bool = False) -> Training:
    """Of three photos, of which half of the samples are mirrored; one has an input of its own."""
    rows = []
    for files in (("0.png",), ("1.png", "3.png"), ("2.png",)):
        named = dict(zip(("image", "input"), files, strict=False))
        digest = digest_of({column: (folder / name).read_bytes() for column, name in named.items()})
        height, width = SHAPES[int(files[0][0])]
        seen = {**named, "width": width, "height": height, "digest": digest}
        rows.append(Row(id=files[0], root=str(folder), prompt="the red wood", **seen))
    recipe = DreamboothLora(
        data=str(folder),
        output=str(folder / f"{latents} {aspect_buckets}"),
        subjects=(Subject(name="s", prompt="p"),),
        base=str(folder / "base"),
        resolution=SIZE,
        aspect_buckets=aspect_buckets,
        flip_probability=0.5,
        bank=Bank(holes=2),
        latents=latents,
        encoding=EncodingSettings(cache=str(folder / "cache"), cpus_per_actor=0.5),
        lora=LoraSettings(rank=2),
        unet_learning_rate=1e-2,
        train=TrainSettings(
            samples=SAMPLES, global_batch=4, max_micro_batch=2, zero_stage=0, schedule=RateSchedule.CONSTANT, warmup=0.0
        ),
        validation=ValidationSettings(samples=0),
    )
    manifest = Manifest.of(rows)
    return Training.of(recipe, manifest, None, name="s", output=recipe.output)


def trained(training: Training) -> dict[str, torch.Tensor]:
    return trained_by(training, alone.train_alone(training, CPU, 1)).parameters


def encoding_of(training: Training) -> Encoding:
    found = training.recipe.how_encoded()
    assert found is not None
    return found


def encoded(training: Training) -> Encoded:
    found = encode_before([training], StopToken(), print)
    assert found is not None
    return found


def in_this_process(most: int | None = None) -> Callable[..., int]:
    """What the pool of actors does, which tests/jobs have. Args: most: files, after which it is killed."""

    def work(subsets: Sequence[Subset], lacking: pa.Table, encoding: Encoding, *_: object) -> int:
        write = encode._writing(encoding, 1)
        lacking, starts, changes = encode._by_shape(subsets, lacking)
        bounds = sorted({*starts[::2], *changes, len(lacking)})
        files = [lacking.slice(first, end - first) for first, end in pairwise(bounds)]
        return sum(int(write(encode._read(subsets, file))["made"].sum()) for file in files[:most])

    return work


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoding")
    tiny_sd_inpaint(folder / "base")
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (*SHAPES[number], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["one shape", "aspect buckets"])
def in_buckets(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def online(folder: Path, process_group: None, in_buckets: bool) -> dict[str, torch.Tensor]:
    found = trained(training_in(folder, Latents.ONLINE, aspect_buckets=in_buckets))
    assert any(tensor.abs().max() > 0 for name, tensor in found.items() if ".lora_B." in name), "it learned"
    return found


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_cached_is_the_same_run_and_encodes_once_whatever_happens(
    folder: Path,
    online: dict[str, torch.Tensor],
    in_buckets: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = training_in(folder, Latents.CACHED, aspect_buckets=in_buckets)
    if in_buckets:
        assert len(set(np.array(training.rows.buckets).tolist())) == 3
    cache = str(folder / f"cache {in_buckets}")
    training = replace(
        training, recipe=replace(training.recipe, encoding=replace(training.recipe.encoding, cache=cache))
    )
    where = encoding_of(training).spec.folder(cache)
    monkeypatch.setattr(encode, "_encode", in_this_process(1))
    encoded(training)
    begun = Stored.at(where)
    address = begun.addresses[0]
    file = Path(where) / f"{begun.files[address['file']]}{DATA}"
    data = bytearray(file.read_bytes())
    data[int(address["offset"]) + int(address["length"]) // 2] ^= 1
    file.write_bytes(data)
    monkeypatch.setattr(encode, "_encode", in_this_process())
    done = encoded(training)
    assert (done.damaged, done.made) == (1, done.needed - len(begun.keys) + 1)
    assert "1 entries in" in capsys.readouterr().err
    stored = Stored.at(where)
    assert len(stored.keys) == len(pa.compute.unique(stored.keys)) == done.needed, "nothing was encoded twice"
    again = encoded(training)
    assert (again.made, again.damaged) == (0, 0), "what a run encoded serves the others"
    for picture in folder.glob("*.png"):
        picture.rename(picture.with_suffix(".hidden"))
    try:
        assert difference(trained(training), online) == 0.0, "and no picture was opened"
    finally:
        for picture in folder.glob("*.hidden"):
            picture.rename(picture.with_suffix(".png"))
    settings = replace(training.recipe.encoding, limit_gb=1e-6)
    monkeypatch.setattr(encode, "_encode", lambda *_: 1)
    unseen = replace(training.recipe, encoding=replace(training.recipe.encoding, cache=str(folder / "unseen")))
    with pytest.raises(InpaintError, match="unseen cannot be seen from every machine"):
        encoded(replace(training, recipe=unseen, output=str(folder / "unseen run")))
    small = replace(training, recipe=replace(training.recipe, encoding=settings), output=str(folder / "small"))
    with pytest.raises(InpaintError, match=r"limit_gb 1e-06: this run needs .* GB"):
        encoded(small)


def test_streamed_is_the_same_run(
    folder: Path, online: dict[str, torch.Tensor], in_buckets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = training_in(folder, Latents.STREAMED, aspect_buckets=in_buckets)
    encoding = encoding_of(training)
    encode_batch, seen, shapes = encode._streaming(encoding, 1), set[str](), set[tuple[int, int]]()

    def read_and_encoded(*args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        batch = encode_batch(read_batch(*args, **kwargs))
        seen.update(batch)
        shapes.add(batch["latents"].shape[2:])
        return batch

    monkeypatch.setattr(alone, "read_batch", read_and_encoded)
    assert difference(trained(training), online) == 0.0
    assert len(shapes) == (3 if in_buckets else 1)
    assert {"latents", "masked_latents"} <= seen and not {"image", "input"} & seen


def test_a_file_that_changed_is_not_encoded_for_what_it_was(folder: Path) -> None:
    training = training_in(folder, Latents.CACHED)
    rows = Manifest.of([replace(training.rows.row(0), digest="ab" * 32), training.rows.row(2)])
    read, plan = training.recipe.read_settings(), replace(training, rows=rows).plan
    subset = Subset(rows, Variants.of(rows, read, encoding_of(training).spec, plan, range(SAMPLES)))
    (told,) = filter(None, encode._read([subset], encode._wanted([subset]))["error"])
    assert told.startswith("0.png: ") and "they changed after they were inspected" in told


def test_images_are_shown_beside_their_latents_where_something_else_is_made_of_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = training_in(folder, Latents.CACHED)
    encoding, rows, plan = encoding_of(training), training.rows, training.plan
    monkeypatch.setattr(encode, "_encode", in_this_process())
    encoded(replace(training, output=str(folder / "control")))
    read = replace(training.recipe.read_settings(), keeps_image=True)
    stored = LatentReading.of_cache(encoding).stored(rows, read, plan, range(training.total))
    with ThreadPoolExecutor(1) as threads:
        online, cached = (read_batch(rows, plan, read, np.arange(8), threads, stored=of) for of in (None, stored))
    streamed = encode._streaming(replace(encoding, keeps_image=True), 1)(online)
    assert cached.keys() == streamed.keys() == online.keys() - {"input"} | {"latents", "masked_latents"}
    for name in cached:
        assert np.array_equal(cached[name], streamed[name]), name
    assert np.array_equal(cached["image"], online["image"]) and cached["image"].any()


def test_encoders_beside_a_training_have_their_places_or_it_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = training_in(folder, Latents.STREAMED)
    encoding, settings = encoding_of(training), replace(training.recipe.train, workers=(1, 8))
    nodes = [Node(cpus=16, gpus=4)]
    monkeypatch.setattr(cluster, "cluster_nodes", lambda: nodes)
    workers, encoders = trainer._needs(settings, 1, encoding)
    assert encoders is not None and (workers.workers, encoders.workers, encoders.gpus_per_worker) == (3, 1, 1.0)
    assert trainer.runs_side_by_side(settings, encoding) == 2 and trainer.runs_side_by_side(settings) == 4
    stage = encode.streaming(encoding, encoders, free_cpus=5.0)
    assert (stage.actors, stage.gpus, stage.cpus, stage.free_cpus) == (1, 1.0, 0.5, 5.0)
    nodes[:] = [Node(cpus=16, gpus=1)]
    with pytest.raises(ClusterTooSmall, match="2 stages side by side ask for 2 GPU, the cluster has 1"):
        trainer._needs(settings, 1, encoding)
    on_cpus = replace(encoding, settings=replace(encoding.settings, gpus_per_actor=0.0))
    workers, encoders = trainer._needs(settings, 1, on_cpus)
    assert encoders is not None and (workers.workers, encoders.gpus_per_worker) == (1, 0.0)
    nodes[:] = [Node(cpus=4, gpus=2)]
    workers, encoders = trainer._needs(settings, 1, replace(encoding, settings=EncodingSettings()))
    assert encoders is not None and (workers.cpus_per_worker, encoders.cpus_per_worker) == (2.0, 1.0), "one reads"
    nodes[:] = [Node(cpus=2)]
    with pytest.raises(ClusterTooSmall, match="it lacks .* more CPU"):
        trainer._needs(settings, 1, replace(encoding, settings=replace(encoding.settings, cpus_per_actor=2.0)))
    workers, encoders = trainer._needs(replace(settings, workers=2), 1, replace(encoding, settings=EncodingSettings()))
    assert encoders is not None and workers.cpus_per_worker == encoders.cpus_per_worker == 0.25
    assert trainer._needs(settings, 1, replace(encoding, latents=Latents.CACHED))[1] is None
