"""Checkpoints appear whole or not at all, are verified, and the one before is used where one is damaged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inpaint.errors import CheckpointCorrupt
from inpaint.train.checkpoint import VALIDATION_LOSS, CheckpointStore, Progress


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    named = {"unet.a": torch.full((3, 2), value), "tokens": torch.full((4,), -value)}
    return {"trained": named, "exp_avg": {n: t + 1 for n, t in named.items()}}


def progress(samples: int) -> Progress:
    return Progress(samples=samples, steps=samples // 4, seed=1, manifest="hash", metrics={"loss": 0.5})


@pytest.fixture(params=["path", "uri"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    """By path and by URL; the latter as on an object store, without rename."""
    folder = tmp_path / "checkpoints"
    if request.param == "path":
        return CheckpointStore(str(folder))
    remote = CheckpointStore(folder.as_uri())
    remote.root = type(remote.root)(_Remote(remote.root.filesystem), remote.root.path)
    return remote


class _Remote:
    """A local filesystem that says it is none."""

    type_name = "s3"

    def __init__(self, filesystem: object) -> None:
        self._filesystem = filesystem

    def __getattr__(self, name: str) -> object:
        return getattr(self._filesystem, name)


def test_what_was_saved_is_loaded(store: CheckpointStore) -> None:
    assert store.latest() is None
    store.save(tensors(1.5), progress(8))
    loaded = store.latest()
    assert loaded is not None
    assert loaded[1] == progress(8)
    for kind, named in tensors(1.5).items():
        assert all(torch.equal(loaded[0][kind][name], tensor) for name, tensor in named.items())


def test_only_the_newest_are_kept(store: CheckpointStore) -> None:
    for samples in (4, 8, 12):
        store.save(tensors(samples), progress(samples))
    assert store.names() == ["samples-000000000008", "samples-000000000012"]
    loaded = store.latest()
    assert loaded is not None
    assert loaded[1].samples == 12


STATES = ('{"files": {', "5", '{"files": {}, "progress": {"other": 1}}')


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", *STATES])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(store: CheckpointStore, damage: str) -> None:
    store.save(tensors(4), progress(4))
    newest = Path(store.root.path) / store.save(tensors(8), progress(8))
    file = newest / "exp_avg.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-3] ^= 4
        file.write_bytes(data)
    elif damage == "truncate":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "remove":
        file.unlink()
    else:
        (newest / "state.json").write_text(damage)
    with pytest.warns(UserWarning, match="samples-000000000008.*falling back"):
        loaded = store.latest()
    assert loaded is not None
    assert loaded[1].samples == 4


def test_nothing_is_trained_over_the_ruins_of_all_checkpoints(store: CheckpointStore) -> None:
    for samples in (4, 8):
        name = store.save(tensors(4), progress(samples))
        (Path(store.root.path) / name / "trained.safetensors").write_bytes(b"")
    for _ in range(2):  # also when it is tried again
        with pytest.warns(UserWarning), pytest.raises(CheckpointCorrupt, match="no usable checkpoint"):
            store.latest(set_aside=True)


def test_a_validation_that_is_not_finite_is_not_the_best(store: CheckpointStore) -> None:
    for samples, loss in ((4, float("nan")), (8, 0.5), (12, float("inf"))):
        store.save(tensors(4), replace(progress(samples), metrics={VALIDATION_LOSS: loss}))
    assert store.best() == ("samples-000000000008", 0.5), "which stays beside the last two"


def test_an_interrupted_save_is_no_checkpoint(store: CheckpointStore) -> None:
    store.save(tensors(4), progress(4))
    root = Path(store.root.path)
    (root / "samples-000000000008").mkdir()
    (root / "samples-000000000008" / "state.json.tmp").write_text("{}")
    (root / "samples-000000000012").mkdir()
    (root / "samples-000000000012" / "trained.safetensors").write_bytes(b"half")
    assert store.names() == ["samples-000000000004"]
    store.save(tensors(8), progress(8))
    loaded = store.latest()
    assert loaded is not None
    assert loaded[1].samples == 8


def test_no_pickle_is_written(store: CheckpointStore) -> None:
    name = store.save(tensors(4), progress(4))
    files = sorted(path.name for path in (Path(store.root.path) / name).iterdir())
    assert files == ["exp_avg.safetensors", "state.json", "trained.safetensors"]
    state = json.loads((Path(store.root.path) / name / "state.json").read_text())
    assert sorted(state["files"]) == ["exp_avg.safetensors", "trained.safetensors"]
