"""A subject's photos in, an adapter out, its class's pictures made on the way."""

import json
from pathlib import Path

import pytest
from PIL import Image

from inpaint.data.rows import Manifest
from inpaint.export.adapter_folder import load_adapter
from inpaint.recipes.dreambooth_training import TrainDreambooth, train_dreambooth
from inpaint.rowmap import ActorPool
from inpaint.toy.catalogue import render
from inpaint.train.checkpoint import CHECKPOINTS, CheckpointStore
from inpaint.train.settings import Precision, ValidationSettings
from tests.tiny import SIZE, tiny_sd

PHOTOS = 3
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_sd(tmp_path_factory.mktemp("tiny") / "sd"))


@pytest.fixture(scope="module")
def run(ray_cluster: None, base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainDreambooth, list[str]]:
    photos = tmp_path_factory.mktemp("photos") / "mug"
    (photos / "masks").mkdir(parents=True)
    for index in range(PHOTOS):
        scene = render(5, index, shape="mug")
        Image.fromarray(scene.image).save(photos / f"{index}.png")
        Image.fromarray(scene.product).save(photos / "masks" / f"{index}.png")
    config = TrainDreambooth(
        instance_dir=str(photos),
        output_dir=str(tmp_path_factory.mktemp("run")),
        base=base,
        with_prior_preservation=True,
        num_class_images=2,
        prior_loss_weight=0.5,
        mask_dir="masks",
        identifier="auto",
        train_text_encoder=True,
        rank=2,
        max_train_steps=2,
        train_batch_size=4,
        resolution=SIZE,
        mixed_precision=Precision.FP32,
        workers=1,
        zero_stage=0,
        card_samples=0,
        validation=ValidationSettings(samples=2, pictures=1),
        pool=ActorPool(max_batch=2),
    )
    said: list[str] = []
    return config, [*train_dreambooth(config, announce=said.append), *said]


def test_a_subject_is_trained_beside_pictures_of_its_class(run: tuple[TrainDreambooth, list[str]]) -> None:
    config, (folder, said) = run
    output = Path(config.output_dir)
    assert folder == f"{output}/adapters/mug"
    assert said.startswith("mug: 'a photo of ") and said.endswith("beside 'a photo of a mug'")
    made = output / "class_images"
    assert sorted(path.name for path in made.glob("*.png")) == ["seed-0.png", "seed-1.png"]
    lines = [json.loads(line) for line in (made / "class_images-0-1.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["seed"]) for line in lines] == [("a photo of a mug", 0), ("a photo of a mug", 1)]

    rows = Manifest.load(output / "manifest.parquet")
    assert [row.weight for row in rows.rows()] == [1.0] * PHOTOS + [0.5] * 2
    progress = CheckpointStore(f"{output}/{CHECKPOINTS}").progress()
    assert progress is not None and (progress.samples, progress.unread, progress.manifest) == (8, 0, rows.hash)
    card = load_adapter(folder).card
    assert (card.rank, card.samples, card.tokens) == (2, 8, {})
    prompt = next(rows.rows()).prompt
    assert f'image = pipe("{prompt}").images[0]'.replace('"', "'") in (Path(folder) / "README.md").read_text()
