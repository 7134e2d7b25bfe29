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

FORMAT = 2
"""Of entries: another number makes all keys others."""
PIECE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """What an encoder makes of an image."""

    encoder: str
    """What its numbers depend on: its weights' digest, the type that it computes in."""
    channels: int
    """Of the moments: 2C."""
    downsample: int
    """Pixels of an image per latent, along a side."""
    dtype: str
    """Of the moments in numpy: float32, float16, or int16 for the bits of bfloat16, which numpy has not."""
    sees_masked: bool
    """Whether the model is shown the masked image, too (a base of 9 channels)."""

    def shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Of the moments of an image of `size` (height, width, in pixels): 2C h w."""
        return self.channels, size[0] // self.downsample, size[1] // self.downsample

    def bytes_per_latent(self, size: tuple[int, int]) -> int:
        """Mean and log variance together."""
        return int(np.prod(self.shape(size))) * np.dtype(self.dtype).itemsize

    def bytes_per_sample(self, size: tuple[int, int]) -> int:
        """Of all that stands in a batch in place of pixels."""
        return self.bytes_per_latent(size) * (1 + self.sees_masked)

    def folder(self, cache: str) -> str:
        """Where its entries lie below a cache."""
        digest = hashlib.sha256(repr((FORMAT, self.encoder, self.dtype)).encode()).hexdigest()
        return f"{cache}/{digest[:16]}"

    def blank(self, samples: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Zeros: what a batch of images of `size` has in place of pixels."""
        names = ("latents", "masked_latents") if self.sees_masked else ("latents",)
        return {name: np.zeros((samples, *self.shape(size)), dtype=self.dtype) for name in names}


@dataclass(frozen=True)
class Variants:
    """The entries that a run needs."""

    read: ReadSettings
    spec: LatentSpec
    used: np.ndarray
    """bool[rows, entries]: of each view its image and then its holes."""
    buckets: np.ndarray | None
    """Of each row, as `Manifest.buckets`."""
    whole: tuple[int | None, ...]
    """The buckets in which the grey image of the whole hole is needed; (None,) where rows have none and it is."""

    @classmethod
    def of(cls, rows: Manifest, read: ReadSettings, spec: LatentSpec, plan: Plan, span: range) -> "Variants":
        """Args: span: positions of the rows' plan."""
        assert read.bank is not None, "entries are variants of a bank"
        each = 1 + read.bank.holes
        used, whole = np.zeros((len(rows), read.views * each), dtype=bool), np.zeros(len(rows), dtype=bool)
        for start in span[::PIECE]:
            positions = np.arange(start, min(span.stop, start + PIECE))
            _, indices = plan.lookup(positions)
            views, holes = read.variants(plan.seed, positions)
            used[indices, views * each] = True
            part = holes != WHOLE
            used[indices[part], (views * each + 1 + holes)[part]] = True
            whole[indices[~part]] = True
        buckets, greys = rows.buckets, tuple[int | None, ...]()
        if spec.sees_masked and whole.any():
            greys = (None,) if buckets is None else tuple(np.unique(buckets[whole]).tolist())
        return cls(read, spec, used, buckets, greys)

    def bucket_of(self, row: int) -> int | None:
        """None where rows have none."""
        return None if self.buckets is None else int(self.buckets[row])

    def whole_key(self, bucket: int | None) -> bytes:
        """Of the grey image."""
        return _key(self.spec, self._image(bucket), "grey")

    def keys(self, rows: Manifest) -> tuple[np.ndarray, pa.Array]:
        """The needed entries as (row, entry), int64[N, 2], and their keys."""
        places, digests = np.argwhere(self.used), as_bytes(rows.table["digest"].combine_chunks())
        buckets = np.zeros(len(rows), dtype=np.int32) if self.buckets is None else self.buckets
        firsts = zip(*np.unique(buckets, return_index=True), strict=True)
        names = {number: self._names(self.bucket_of(first)) for number, first in firsts}
        found = [hashlib.sha256(names[buckets[row]][entry] + digests[row].tobytes()).digest() for row, entry in places]
        return places, pa.array(found, pa.binary(32))

    def _names(self, bucket: int | None) -> list[bytes]:
        """Of each entry of a row, what its key depends on beside the row."""
        image = _key(self.spec, self._image(bucket))
        hole = _key(self.spec, self._image(bucket), repr(self.read.hole.partial), self.read.hole.uses_own)
        entries = range(self.used.shape[1])
        return [(hole if entry % self._each else image) + b"%d/%d" % divmod(entry, self._each) for entry in entries]

    def view_and_hole(self, entry: int) -> tuple[int, int | None]:
        """What an entry is of; no hole: of the image."""
        view, number = divmod(entry, self._each)
        return view, number - 1 if number else None

    @property
    def _each(self) -> int:
        assert self.read.bank is not None
        return 1 + self.read.bank.holes

    def _image(self, bucket: int | None) -> tuple[object, ...]:
        read = self.read.of_bucket(bucket)
        size = (read.height, read.width, str(read.crop), read.flip_probability)
        return (*size, read.reads_mask, read.loss_in_mask)


def _key(spec: LatentSpec, *values: object) -> bytes:
    return hashlib.sha256(repr((FORMAT, spec.encoder, spec.dtype, values)).encode()).digest()


@dataclass(frozen=True)
class StoredLatents:
    """A run's entries, where they lie. Reading a sample touches one or two of them; pickles."""

    variants: Variants
    stored: Stored
    addresses: np.ndarray
    """Of `ADDRESS`, [rows, entries]; `NOWHERE` where there is none."""
    whole: dict[int | None, np.void]
    """Of the grey image, by bucket."""

    @classmethod
    def find(cls, variants: Variants, rows: Manifest, cache: str) -> "StoredLatents":
        """What there is in a cache."""
        stored = Stored.at(variants.spec.folder(cache))
        places, keys = variants.keys(rows)
        addresses = np.full(variants.used.shape, NOWHERE)
        addresses[places[:, 0], places[:, 1]] = stored.find(keys)
        greys = stored.find(pa.array([variants.whole_key(bucket) for bucket in variants.whole], pa.binary(32)))
        return cls(variants, stored, addresses, dict(zip(variants.whole, greys, strict=True)))

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
        return image, self._read(self.whole[self.variants.bucket_of(index)]) if self.variants.spec.sees_masked else None

    def sample(
        self, row: Row, shape: tuple[int, int], image: dict[str, Any], hole: dict[str, Any] | None
    ) -> dict[str, Any]:
        """What `make_sample` returns but pixels and text, and in their place `latents` and perhaps `masked_latents`.

        Args:
            shape: height and width that the row is seen at.
            image, hole: as `fetch` gives them.
        """
        spec = self.variants.spec
        found = {"latents": self._moments(image["moments"], shape)}
        if hole is not None and spec.sees_masked:
            found["masked_latents"] = self._moments(hole["moments"], shape)
        packed = None if hole is None else hole["hole"]
        found["hole"] = np.full(shape, 255, np.uint8) if packed is None else plane_of(packed, shape)
        if image["area"] is not None:
            found["area"] = plane_of(image["area"], shape)
        return {**found, "original_size": (row.height, row.width), "crop_top_left": image["crop_top_left"]}

    def _read(self, address: np.void) -> dict[str, Any]:
        if address["file"] < 0:
            raise BadRow("output", Reason.UNREADABLE, "it could not be encoded: its files were damaged or gone")
        return self.stored.read(address)

    def _moments(self, data: bytes, shape: tuple[int, int]) -> np.ndarray:
        return np.frombuffer(data, self.variants.spec.dtype).reshape(self.variants.spec.shape(shape))
