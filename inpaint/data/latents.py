"""Samples whose pixels were encoded before: which variants of which rows a run needs, and reading them.

A row has one entry per view (its image) and one per hole of each view (the hole, and for bases that see it the masked
image); the masked image of the whole hole is grey, one entry for all rows. An entry's key says all that it depends on:
the row's bytes, the encoder's weights and type, size, crop, mirroring, hole, and its number in the bank.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from inpaint.data.bank import WHOLE
from inpaint.data.latent_files import NOWHERE, Stored, plane_of
from inpaint.data.plan import Plan
from inpaint.data.quarantine import Reason
from inpaint.data.rows import Manifest, Row, as_bytes
from inpaint.data.sample import ReadSettings
from inpaint.data.storage import open_root
from inpaint.errors import BadRow

FORMAT = 1
"""Of entries: another number makes all keys others."""
PIECE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """What an encoder makes of an image."""

    encoder: str
    """What its numbers depend on: its weights' digest, the type that it computes in."""
    shape: tuple[int, int, int]
    """Of the moments: 2C h w."""
    dtype: str
    """Of the moments in numpy: float32, float16, or int16 for the bits of bfloat16, which numpy has not."""
    sees_masked: bool
    """Whether the model is shown the masked image, too (a base of 9 channels)."""

    @property
    def bytes_per_latent(self) -> int:
        """Mean and log variance together."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def bytes_per_sample(self) -> int:
        """Of all that stands in a batch in place of pixels."""
        return self.bytes_per_latent * (1 + self.sees_masked)

    def folder(self, cache: str) -> str:
        """Where its entries lie below a cache."""
        digest = hashlib.sha256(repr((FORMAT, self.encoder, self.shape, self.dtype)).encode()).hexdigest()
        return f"{cache}/{digest[:16]}"

    def blank(self, size: int) -> dict[str, np.ndarray]:
        """Of so many samples, zeros: what a batch has in place of pixels."""
        names = ("latents", "masked_latents") if self.sees_masked else ("latents",)
        return {name: np.zeros((size, *self.shape), dtype=self.dtype) for name in names}


@dataclass(frozen=True)
class Variants:
    """The entries that a run needs."""

    read: ReadSettings
    spec: LatentSpec
    used: np.ndarray
    """bool[rows, entries]: of each view its image and then its holes."""
    whole: bool
    """Whether the grey image of the whole hole is needed."""

    @classmethod
    def of(cls, rows: Manifest, read: ReadSettings, spec: LatentSpec, plan: Plan, span: range) -> "Variants":
        """Args: span: positions of the rows' plan."""
        assert read.bank is not None, "entries are variants of a bank"
        each = 1 + read.bank.holes
        used, whole = np.zeros((len(rows), read.views * each), dtype=bool), False
        for start in span[::PIECE]:
            positions = np.arange(start, min(span.stop, start + PIECE))
            _, indices = plan.lookup(positions)
            views, holes = read.variants(plan.seed, positions)
            used[indices, views * each] = True
            part = holes != WHOLE
            used[indices[part], (views * each + 1 + holes)[part]] = True
            whole |= not part.all()
        return cls(read, spec, used, whole and spec.sees_masked)

    @property
    def whole_key(self) -> bytes:
        """Of the grey image."""
        return _key(self.spec, self._image(), "grey")

    def keys(self, rows: Manifest) -> tuple[np.ndarray, pa.Array]:
        """The needed entries as (row, entry), int64[N, 2], and their keys."""
        image = _key(self.spec, self._image())
        hole = _key(self.spec, self._image(), repr(self.read.hole.partial), self.read.hole.uses_own)
        places = np.argwhere(self.used)
        digests, each = as_bytes(rows.table["digest"].combine_chunks()), self._each
        names = [
            (hole if entry % each else image) + b"%d/%d" % divmod(entry, each) for entry in range(self.used.shape[1])
        ]
        found = [hashlib.sha256(names[entry] + digests[row].tobytes()).digest() for row, entry in places]
        return places, pa.array(found, pa.binary(32))

    def view_and_hole(self, entry: int) -> tuple[int, int | None]:
        """What an entry is of; no hole: of the image."""
        view, number = divmod(entry, self._each)
        return view, number - 1 if number else None

    @property
    def _each(self) -> int:
        assert self.read.bank is not None
        return 1 + self.read.bank.holes

    def _image(self) -> tuple[object, ...]:
        read = self.read
        size = (read.height, read.width, str(read.crop), read.flip_probability)
        return (*size, read.reads_mask, read.loss_in_mask)


def _key(spec: LatentSpec, *values: object) -> bytes:
    return hashlib.sha256(repr((FORMAT, spec.encoder, spec.shape, spec.dtype, values)).encode()).digest()


@dataclass(frozen=True)
class StoredLatents:
    """A run's entries, where they lie. Reading a sample touches one or two of them; pickles."""

    variants: Variants
    stored: Stored
    addresses: np.ndarray
    """Of `ADDRESS`, [rows, entries]; `NOWHERE` where there is none."""
    whole: np.void
    """Of the grey image."""

    @classmethod
    def find(cls, variants: Variants, rows: Manifest, cache: str) -> "StoredLatents":
        """What there is in a cache."""
        stored = Stored.at(variants.spec.folder(cache))
        places, keys = variants.keys(rows)
        addresses = np.full(variants.used.shape, NOWHERE)
        addresses[places[:, 0], places[:, 1]] = stored.find(keys)
        whole = stored.find(pa.array([variants.whole_key], pa.binary(32)))[0]
        return cls(variants, stored, addresses, whole)

    @property
    def is_local(self) -> bool:
        """Whether reading needs no network."""
        return open_root(self.stored.where).is_local

    def fetch(self, index: int, view: int, hole: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The entries of a row's variant: image, and hole, None for the whole one that nobody sees the image of.
        Raises BadRow."""
        first = view * self.variants._each
        image = self._read(self.addresses[index, first])
        if hole != WHOLE:
            return image, self._read(self.addresses[index, first + 1 + hole])
        return image, self._read(self.whole) if self.variants.spec.sees_masked else None

    def sample(self, row: Row, image: dict[str, Any], hole: dict[str, Any] | None) -> dict[str, Any]:
        """What `make_sample` returns but pixels and text, and in their place `latents` and perhaps `masked_latents`.

        Args:
            image, hole: as `fetch` gives them.
        """
        spec, shape = self.variants.spec, (self.variants.read.height, self.variants.read.width)
        found = {"latents": self._moments(image["moments"])}
        if hole is not None and spec.sees_masked:
            found["masked_latents"] = self._moments(hole["moments"])
        packed = None if hole is None else hole["hole"]
        found["hole"] = np.full(shape, 255, np.uint8) if packed is None else plane_of(packed, shape)
        if image["area"] is not None:
            found["area"] = plane_of(image["area"], shape)
        return {**found, "original_size": (row.height, row.width), "crop_top_left": image["crop_top_left"]}

    def _read(self, address: np.void) -> dict[str, Any]:
        if address["file"] < 0:
            raise BadRow("output", Reason.UNREADABLE, "it could not be encoded: its files were damaged or gone")
        return self.stored.read(address)

    def _moments(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, self.variants.spec.dtype).reshape(self.variants.spec.shape)
