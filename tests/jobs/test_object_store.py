"""A run whose data, checkpoints, adapter and pictures lie on an S3 server: begun elsewhere, copied there, gone on
with on another number of workers."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.fs as pafs
import pytest

import inpaint
from inpaint.data.rows import Manifest
from inpaint.data.storage import open_root, read_file
from inpaint.paint.batch import PAINTED, PaintSettings, paint_manifest
from inpaint.paint.request import SamplingSettings
from inpaint.rowmap import ActorResources
from inpaint.train.checkpoint import CHECKPOINTS, CheckpointStore
from inpaint.train.encoding import Latents
from tests.jobs.conftest import StyleRun, difference
from tests.s3 import s3_bucket


@pytest.mark.timeout(400)
def test_a_run_goes_on_and_is_painted_with_on_s3(style: StyleRun) -> None:
    with s3_bucket() as bucket:
        local, there = pafs.LocalFileSystem(), open_root(bucket)
        images, run = f"{bucket}/images", f"{bucket}/run"
        pafs.copy_files(style.recipe.data, there.join("images"), local, there.filesystem)
        ended = CheckpointStore(f"{style.folder}/{CHECKPOINTS}").progress()
        assert ended is not None
        for what in (CHECKPOINTS, "data"):
            pafs.copy_files(f"{style.folder}/{what}", there.join(f"run/{what}"), local, there.filesystem)
        train = replace(style.recipe.train, samples=ended.samples + style.recipe.train.global_batch, workers=1)
        again = replace(style.recipe, data=images, output=run, resume=True, train=train, latents=Latents.ONLINE)
        (adapter,) = inpaint.run(again)

        began = json.loads(read_file(run, "data/recipe.json") or b"{}")
        assert began["data"] == images, "its rows were read there"
        store = CheckpointStore(f"{run}/{CHECKPOINTS}")
        state, progress = store.latest() or ({}, ended)
        before, _ = store.load(store.names()[-2])
        assert progress.samples == ended.samples + train.global_batch
        assert difference(state["trained"], before["trained"]) > 0.0
        assert {path.rpartition(".")[2] for path in open_root(run).files()} >= {"parquet", "safetensors", "png", "json"}

        rows = Manifest.load(f"{run}/manifest.parquet").select(np.arange(2))
        settings = PaintSettings(base="toy", adapter=adapter, sampling=SamplingSettings(steps=2))
        report = paint_manifest(rows, settings, f"{bucket}/painted", here=ActorResources("cpu", 1))
        lines = [json.loads(line) for line in (read_file(f"{bucket}/painted", PAINTED) or b"").splitlines()]
        assert report.done == len(lines) == 2
        for line in lines:
            assert (read_file(f"{bucket}/painted", line["output"]) or b"").startswith(b"\x89PNG")
        assert paint_manifest(rows, settings, f"{bucket}/painted", here=ActorResources("cpu", 1)).skipped == 2
