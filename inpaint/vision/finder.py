"""What finds products by text: what is asked for, what is found, and the Protocol between them.

Guaranteed by every finder: images of unequal sizes in, one answer for each in their order; an image without any of the
products is an answer (nothing found, the best scores seen), never an error; what is found for a class depends neither
on the other images nor on which other classes are asked for, but for the places that several claim: there the best
score wins. Masks are at the photo's own size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np

from inpaint.errors import InpaintError

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels of the photo; x1 and y1 lie behind the last column and row."""

MOST_FOUND = 32
"""Products that are told of one image: the best. Each has a mask of the photo's size."""


@dataclass(frozen=True, kw_only=True)
class ProductClass:
    """A kind of product, by the words that a finder knows it by."""

    name: str
    """What results call it; also looked for."""
    synonyms: tuple[str, ...] = ()
    """Looked for, too; what several of these words find is one thing."""
    threshold: float | None = None
    """Least score, in (0, 1); default: the finder's."""

    def __post_init__(self) -> None:
        if not all(word.strip() for word in self.words):
            raise InpaintError(f"product {self.name!r}, synonyms {self.synonyms}: an empty name; write words")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InpaintError(f"product {self.name!r}: threshold {self.threshold} is not between 0 and 1")

    @classmethod
    def parse(cls, text: str) -> Self:
        """`hand bag`, `hand bag|purse|tote`, `hand bag|purse:0.4`: name, synonyms, threshold. Raises InpaintError."""
        names, colon, threshold = text.partition(":")
        name, *synonyms = (word.strip() for word in names.split("|"))
        try:
            least = float(threshold) if colon else None
        except ValueError as error:
            raise InpaintError(f"product {text!r}: {threshold!r} is no threshold; write name|synonym:0.4") from error
        return cls(name=name, synonyms=tuple(synonyms), threshold=least)

    @property
    def words(self) -> tuple[str, ...]:
        """All that is looked for."""
        return (self.name, *self.synonyms)


@dataclass(frozen=True, kw_only=True)
class FindQuery:
    """What is looked for in every image."""

    products: tuple[ProductClass, ...]
    negatives: tuple[str, ...] = ()
    """What is no product though it looks like one, such as "picture of a shoe": where it has the higher score, there is
    no product."""

    def __post_init__(self) -> None:
        if not self.products:
            raise InpaintError('products: name at least one, such as --products "hand bag|purse" shoe:0.4')
        words = [word.casefold() for product in self.products for word in product.words]
        words += [word.casefold() for word in self.negatives]
        doubled = sorted({word for word in words if words.count(word) > 1})
        if doubled:
            raise InpaintError(f"products and negatives: {', '.join(doubled)} comes twice; name each once")
        if not all(word.strip() for word in self.negatives):
            raise InpaintError("negatives: one is empty; write words, or leave it out")

    @classmethod
    def parse(cls, products: Sequence[str], negatives: Sequence[str] = ()) -> Self:
        """Of products as `ProductClass.parse` has them."""
        return cls(products=tuple(map(ProductClass.parse, products)), negatives=tuple(negatives))


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """One product in an image."""

    product: str
    """Its class's name."""
    score: float
    """In [0, 1]; those of unlike finders cannot be compared."""
    box: Box
    """Around it."""
    mask: np.ndarray
    """H x W bool, at the photo's size: its pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What was found in one image."""

    found: tuple[Found, ...]
    """Best score first; empty where nothing passes its threshold."""
    best: Mapping[str, float]
    """Class -> the best score seen anywhere in the image, whether it passed or not."""
    overruled: Mapping[str, str] = field(default_factory=dict)
    """Class -> the negative that took a place from it, where one did."""
    left_out: int = 0
    """Products beyond the `MOST_FOUND` best."""

    @property
    def mask(self) -> np.ndarray | None:
        """H x W bool: the pixels of all that was found; None where nothing was."""
        return np.logical_or.reduce([one.mask for one in self.found]) if self.found else None


class Finder(Protocol):
    """Finds products in photos."""

    @property
    def threshold(self) -> float:
        """Of classes that have none of their own."""
        ...

    def find(self, images: Sequence[np.ndarray], query: FindQuery) -> list[Findings]:
        """Images H x W x 3 uint8 of any sizes -> what is in each, in their order."""
        ...
