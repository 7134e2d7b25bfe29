"""Checkpoints: full fp32 tensors as safetensors and a `state.json` with the sha256 of each file. No pickle.

Guarantees: a checkpoint depends neither on the world size nor on the ZeRO stage. It appears whole or not at all: it is
written beside its place, flushed to disk, its hashes last, and renamed (object stores: `state.json` last; a folder
without it is no checkpoint). Who loads tensors verifies their hashes, once, and falls back to the checkpoint before,
saying so; `progress` and `best` read `state.json` alone.
Not covered: two runs writing into one folder.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow.fs as pafs
import safetensors.torch
from torch import Tensor

from inpaint.data.storage import Root, open_root
from inpaint.errors import CheckpointCorrupt

CHECKPOINTS = "checkpoints"
"""Their folder, in a training's."""
STATE_FILE = "state.json"
VALIDATION_LOSS = "validation_loss"
"""The metric by which a checkpoint is the best."""
State = dict[str, dict[str, Tensor]]
"""Kind of state (`trained`, the optimizer's `exp_avg`, ..., `ema`) -> name of the parameter -> full fp32 CPU tensor."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What `state.json` says besides the hashes."""

    samples: int
    """Position in the plan: samples trained on so far."""
    steps: int
    """Optimizer steps so far; Adam's bias correction needs it."""
    seed: int
    manifest: str
    """Hash of the manifest the run began with."""
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
        if self.root.is_local:
            _write_folder(Path(self.root.join(name)), _files(tensors, progress))
        else:
            self.root.filesystem.create_dir(self.root.join(name), recursive=True)
            for file, data in _files(tensors, progress):
                with self.root.filesystem.open_output_stream(self.root.join(f"{name}/{file}")) as stream:
                    stream.write(data)
        best = self.best()
        for old in self.names()[: -self.keep]:
            if best is None or old != best[0]:
                self._delete(old)
        return name

    def names(self) -> list[str]:
        """Committed checkpoints, oldest first."""
        selector = pafs.FileSelector(self.root.path, allow_not_found=True)
        folders = [i for i in self.root.filesystem.get_file_info(selector) if i.type == pafs.FileType.Directory]
        names = sorted(i.base_name for i in folders if i.base_name.startswith("samples-") and "." not in i.base_name)
        states = self.root.filesystem.get_file_info([self.root.join(f"{n}/{STATE_FILE}") for n in names])
        return [name for name, state in zip(names, states, strict=True) if state.type == pafs.FileType.File]

    def load(self, name: str) -> tuple[State, Progress]:
        """A checkpoint's tensors and progress.

        Raises:
            CheckpointCorrupt: a file is missing or does not match its hash.
        """
        state = self._read_state(name)
        tensors = {}
        for file, digest in state["files"].items():
            data = self._read(f"{name}/{file}")
            if hashlib.sha256(data).hexdigest() != digest:
                raise CheckpointCorrupt(f"{self.root.join(name)}/{file}: its bytes do not match their recorded sha256")
            tensors[file.removesuffix(".safetensors")] = safetensors.torch.load(data)
        return tensors, Progress(**state["progress"])

    def latest(self, *, set_aside: bool = False) -> tuple[State, Progress] | None:
        """The newest checkpoint whose hashes hold, or None where there is none at all.

        Args:
            set_aside: let damaged ones be no checkpoints any more; their files stay.

        Raises:
            CheckpointCorrupt: there are checkpoints, and every one of them is damaged.
        """
        damaged = []
        for name in reversed(self.names()):
            try:
                return self.load(name)
            except CheckpointCorrupt as error:
                damaged.append(str(error))
                warnings.warn(f"{error}; falling back to the checkpoint before", stacklevel=2)
                if set_aside:
                    state = self.root.join(f"{name}/{STATE_FILE}")
                    self.root.filesystem.move(state, f"{state}.damaged")
        if damaged:
            raise CheckpointCorrupt("no usable checkpoint is left: " + "; ".join(damaged))
        return None

    def progress(self) -> Progress | None:
        """Progress of the newest checkpoint, by its `state.json` alone; None where there is none."""
        return next((p for name in reversed(self.names()) if (p := self._progress_of(name)) is not None), None)

    def best(self) -> tuple[str, float] | None:
        """The checkpoint with the lowest validation loss, and that loss; None where none was validated."""
        found = {name: self._progress_of(name) for name in self.names()}
        losses = {n: p.metrics[VALIDATION_LOSS] for n, p in found.items() if p and VALIDATION_LOSS in p.metrics}
        return min(losses.items(), key=lambda item: item[1], default=None)

    def _progress_of(self, name: str) -> Progress | None:
        """None where `state.json` is damaged: who loads the checkpoint says so."""
        try:
            return Progress(**self._read_state(name)["progress"])
        except CheckpointCorrupt:
            return None

    def _delete(self, name: str) -> None:
        # The commit mark goes first, so that a half-deleted checkpoint is none.
        self.root.filesystem.delete_file(self.root.join(f"{name}/{STATE_FILE}"))
        self.root.filesystem.delete_dir(self.root.join(name))

    def _read_state(self, name: str) -> dict:
        try:
            state = json.loads(self._read(f"{name}/{STATE_FILE}"))
            if set(state) != {"files", "progress"}:
                raise ValueError("unexpected fields")
            return state
        except ValueError as error:
            raise CheckpointCorrupt(f"{self.root.join(name)}/{STATE_FILE}: {error}") from error

    def _read(self, relative: str) -> bytes:
        try:
            with self.root.filesystem.open_input_stream(self.root.join(relative)) as stream:
                return stream.read()
        except FileNotFoundError as error:
            raise CheckpointCorrupt(f"{self.root.join(relative)} is missing") from error


def _files(tensors: State, progress: Progress) -> Iterator[tuple[str, bytes]]:
    """Names and bytes, `state.json` last."""
    hashes = {}
    for kind, named in tensors.items():
        data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in named.items()})
        hashes[f"{kind}.safetensors"] = hashlib.sha256(data).hexdigest()
        yield f"{kind}.safetensors", data
    state = {"files": hashes, "progress": asdict(progress)}
    yield STATE_FILE, json.dumps(state, indent=1).encode()


def _write_folder(folder: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Written aside, flushed to the disk and renamed; what was there before is replaced."""
    aside = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, data in files:
        with (aside / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    _sync(aside)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(aside, folder)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
