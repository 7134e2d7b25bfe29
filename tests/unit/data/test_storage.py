"""Files and folders on a real S3 server: whole or not there, listed, fetched; and a run's checkpoints and latents."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from inpaint.data.latent_files import Stored, entry, trim, write_entries
from inpaint.data.storage import exists, fetched, open_root, opened, output_folder, read_file, write_file
from inpaint.errors import InpaintError
from inpaint.train.checkpoint import VALIDATION_LOSS, CheckpointStore, Progress
from tests.s3 import s3_bucket


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as url:
        yield url


def test_files_are_written_read_and_listed(bucket: str) -> None:
    assert not exists(f"{bucket}/run/a.txt") and read_file(f"{bucket}/run", "a.txt") is None
    write_file(f"{bucket}/run", "deep/er/b #1?.txt", b"b")
    write_file(f"{bucket}/run", "a.txt", b"one")
    write_file(f"{bucket}/run", "a.txt", b"two")
    assert read_file(f"{bucket}/run", "a.txt") == b"two"
    assert read_file(f"{bucket}/run", "deep/er/b #1?.txt") == b"b"
    files = open_root(f"{bucket}/run").files()
    assert {path: stat.size for path, stat in files.items()} == {"a.txt": 3, "deep/er/b #1?.txt": 1}
    with opened(open_root(f"{bucket}/run").at("a.txt")) as file:
        assert file.read() == b"two"
    with pytest.raises(InpaintError, match="there is no such file"), opened(f"{bucket}/run/c.txt"):
        pass


def test_folders_are_uploaded_and_fetched(bucket: str) -> None:
    with output_folder(f"{bucket}/folder") as folder:
        (folder / "below").mkdir()
        (folder / "below" / "x").write_bytes(b"x")
    copy = fetched(f"{bucket}/folder")
    assert [path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()] == ["below/x"]
    with pytest.raises(InpaintError, match="nothing is there"):
        fetched(f"{bucket}/nowhere")


def test_checkpoints_are_kept_found_and_dropped(bucket: str) -> None:
    store = CheckpointStore(f"{bucket}/checkpoints", keep=2)
    assert store.names() == [] and store.latest() is None and store.best() is None
    progress = Progress(samples=0, steps=0, seed=0, manifest="m")
    for samples, loss in ((8, 0.1), (16, 0.3), (24, 0.2), (32, 0.4)):
        at = replace(progress, samples=samples, metrics={VALIDATION_LOSS: loss})
        store.save({"trained": {"a": torch.full((3,), float(samples))}}, at)
    assert [int(name[-3:]) for name in store.names()] == [8, 24, 32], "the last two and the best"
    state, found = store.latest() or ({}, progress)
    assert found.samples == 32 and state["trained"]["a"].tolist() == [32.0] * 3
    assert store.best() == (store.names()[0], 0.1)


def test_latents_are_kept_found_and_dropped(bucket: str) -> None:
    where, moments = f"{bucket}/cache/space", np.arange(8, dtype=np.float32)
    for number in range(2):
        write_entries(where, [entry(bytes([number]) * 32, moments + number, b"", b"", (0, 0))])
    stored = Stored.at(where)
    for number, address in enumerate(stored.find(pa.array([bytes([n]) * 32 for n in range(2)], pa.binary(32)))):
        assert np.array_equal(np.frombuffer(stored.read(address)["moments"], np.float32), moments + number)
    stored.note_use([1])
    assert trim(f"{bucket}/cache", 0, {f"space/{stored.files[1]}"}) == [f"space/{stored.files[0]}"]
    assert Stored.at(where).files == stored.files[1:]
