"""Checkpoints: full fp32 tensors as safetensors and a `state.json` with the sha256 of each file. No pickle.

Guarantees: a checkpoint depends neither on the world size nor on the ZeRO stage. It appears whole or not at all: its
files are flushed to disk, its hashes last, and `state.json` is renamed to that; a folder without it is no checkpoint.
Who loads tensors verifies their hashes, once, and falls back to the checkpoint before, saying so; `progress` and `best`
read `state.json` alone.
Not covered: two runs writing into one folder.
"""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import pyarrow.fs as pafs

from inpaint.data.storage import Root, open_root
from inpaint.errors import CheckpointCorrupt

if TYPE_CHECKING:  # who asks for progress alone starts sooner without torch
    from torch import Tensor

CHECKPOINTS = "checkpoints"
"""Their folder, in a training's."""
STATE_FILE = "state.json"
VALIDATION_LOSS = "validation_loss"
"""The metric by which a checkpoint is the best."""
State = dict[str, dict[str, "Tensor"]]
"""Kind of state (`trained`, the optimizer's `exp_avg`, ..., `ema`) -> name of the parameter -> full CPU tensor, fp32
unless the optimizer keeps something else; and kinds whose names are numbers'."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What `state.json` says besides the hashes."""

    samples: int
    """Position in the plan: samples trained on so far."""
    steps: int
    """Optimizer steps so far, without those that fp16 skipped; Adam's bias correction needs it."""
    seed: int
    manifest: str
    """Hash of the manifest the run began with."""
    unread: int = 0
    """Of the samples, those whose files could not be read when it was their turn: they counted nothing."""
    held_out: str = ""
    """Hash of the rows that it validates on; empty where these are the same."""
    run: dict[str, object] = field(default_factory=dict)
    """Settings that must not change when a run is resumed."""
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints of one run, in `folder` (a path or an object-store URL)."""

    def __init__(self, folder: str, *, keep: int = 2) -> None:
        self.root: Root = open_root(folder)
        self.keep = keep

    def save(self, tensors: State, progress: Progress) -> str:
        """Write a checkpoint and drop the oldest beyond `keep`, but never the best; returns its name."""
        name = f"samples-{progress.samples:012d}"
        folder, files = self.root.join(name), self.root.filesystem
        files.create_dir(folder, recursive=True)
        for file, data in _files(tensors, progress):
            with files.open_output_stream(f"{folder}/{file}") as stream:
                stream.write(data)
            self._flush(f"{folder}/{file}")
        files.move(f"{folder}/{STATE_FILE}.tmp", f"{folder}/{STATE_FILE}")
        for changed in (folder, self.root.path):
            self._flush(changed)
        best = self.best()
        for old in self.names()[: -self.keep]:
            if best is None or old != best[0]:
                self._delete(old)
        return name

    def names(self) -> list[str]:
        """Committed checkpoints, oldest first."""
        selector = pafs.FileSelector(self.root.path, allow_not_found=True)
        folders = [i for i in self.root.filesystem.get_file_info(selector) if i.type == pafs.FileType.Directory]
        names = sorted(i.base_name for i in folders if i.base_name.startswith("samples-"))
        states = self.root.filesystem.get_file_info([self.root.join(f"{n}/{STATE_FILE}") for n in names])
        return [name for name, state in zip(names, states, strict=True) if state.type == pafs.FileType.File]

    def load(self, name: str) -> tuple[State, Progress]:
        """A checkpoint's tensors and progress.

        Raises:
            CheckpointCorrupt: a file is missing or does not match its hash.
        """
        import safetensors.torch

        hashes, progress = self._read_state(name)
        tensors = {}
        for file, digest in hashes.items():
            data = self._read(f"{name}/{file}")
            if hashlib.sha256(data).hexdigest() != digest:
                raise CheckpointCorrupt(f"{self.root.join(name)}/{file}: its bytes do not match their recorded sha256")
            tensors[file.removesuffix(".safetensors")] = safetensors.torch.load(data)
        return tensors, progress

    def latest(self, *, set_aside: bool = False) -> tuple[State, Progress] | None:
        """The newest checkpoint whose hashes hold, or None where there is none at all.

        Args:
            set_aside: let damaged ones that are newer be no checkpoints any more; their files stay.

        Raises:
            CheckpointCorrupt: there are checkpoints, and every one of them is damaged.
        """
        damaged: dict[str, str] = {}
        for name in reversed(self.names()):
            try:
                found = self.load(name)
            except CheckpointCorrupt as error:
                damaged[name] = str(error)
                warnings.warn(f"{error}; falling back to the checkpoint before", stacklevel=2)
                continue
            for state in (self.root.join(f"{name}/{STATE_FILE}") for name in damaged if set_aside):
                self.root.filesystem.move(state, f"{state}.damaged")
            return found
        if damaged:
            raise CheckpointCorrupt(
                f"no usable checkpoint is left: {'; '.join(damaged.values())}: restore one, or give another output"
            )
        return None

    def progress(self) -> Progress | None:
        """Progress of the newest checkpoint, by its `state.json` alone; None where there is none."""
        return next((p for name in reversed(self.names()) if (p := self._progress_of(name)) is not None), None)

    def best(self) -> tuple[str, float] | None:
        """The checkpoint with the lowest validation loss, and that loss; None where none was validated."""
        found = {name: self._progress_of(name) for name in self.names()}
        losses = {name: p.metrics.get(VALIDATION_LOSS, math.nan) for name, p in found.items() if p is not None}
        return min((item for item in losses.items() if math.isfinite(item[1])), key=lambda item: item[1], default=None)

    def _progress_of(self, name: str) -> Progress | None:
        """None where `state.json` is damaged: who loads the checkpoint says so."""
        try:
            return self._read_state(name)[1]
        except CheckpointCorrupt:
            return None

    def _flush(self, path: str) -> None:
        """To the disk: a file, or a folder's entries. An object store has what was written."""
        if self.root.is_local:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _delete(self, name: str) -> None:
        # The commit mark goes first, so that a half-deleted checkpoint is none.
        self.root.filesystem.delete_file(self.root.join(f"{name}/{STATE_FILE}"))
        self.root.filesystem.delete_dir(self.root.join(name))

    def _read_state(self, name: str) -> tuple[dict[str, str], Progress]:
        """The sha256 of each file, and the progress."""
        try:
            state = json.loads(self._read(f"{name}/{STATE_FILE}"))
            return dict(state["files"]), Progress(**state["progress"])
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointCorrupt(f"{self.root.join(name)}/{STATE_FILE}: {error}") from error

    def _read(self, relative: str) -> bytes:
        try:
            with self.root.filesystem.open_input_stream(self.root.join(relative)) as stream:
                return stream.read()
        except FileNotFoundError as error:
            raise CheckpointCorrupt(f"{self.root.join(relative)} is missing") from error


def _files(tensors: State, progress: Progress) -> Iterator[tuple[str, bytes]]:
    """Names and bytes, `state.json` last, which is not called so yet."""
    import safetensors.torch

    hashes = {}
    for kind, named in tensors.items():
        data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in named.items()})
        hashes[f"{kind}.safetensors"] = hashlib.sha256(data).hexdigest()
        yield f"{kind}.safetensors", data
    state = {"files": hashes, "progress": asdict(progress)}
    yield f"{STATE_FILE}.tmp", json.dumps(state, indent=1).encode()
