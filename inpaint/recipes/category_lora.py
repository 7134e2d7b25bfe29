"""Category LoRA: a background style per product category, the product untouched."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

import pyarrow.compute as pc

from inpaint.data.rows import Manifest
from inpaint.data.sources import CsvSource
from inpaint.errors import InpaintError
from inpaint.models.base import read_base_info
from inpaint.recipes.lora import LoraRecipe

PROMPT_FORMAT = "{token} background, {prompt}"
XL_PROMPT_FORMAT = "{prompt}, {token} background"
"""SDXL's second encoder sums a prompt up in what its last new token sees: all that stands before it."""
FOLDERS = ("adapters", "shared", "data", "validation_data")
"""What lies in a run's folder beside those of its categories."""


class Adapters(StrEnum):
    """How many adapters are trained."""

    SHARED = "shared"
    PER_CATEGORY = "per-category"


@dataclass(frozen=True, kw_only=True)
class CategoryLora(LoraRecipe):
    """Settings of `python -m ray_jobs.train_category_lora`. `data` is a CSV with the columns input, mask, output,
    prompt, category."""

    categories: tuple[str, ...] = ()
    """Categories that may occur in the CSV; rows of others go to the quarantine. Empty: any."""
    init_words: Mapping[str, str] = field(default_factory=dict)
    """Words whose mean embedding starts a category's token; `product` where not given."""
    prompt_template: str | None = None
    """How prompts are written; unset: `"{token} background, {prompt}"`, for SDXL `"{prompt}, {token} background"`."""
    adapters: Adapters = Adapters.SHARED
    """One adapter for all categories, or one for each, trained side by side where the cluster has room."""

    def source(self, data: str) -> CsvSource:
        return CsvSource(path=data, categories=self.categories or None, category_required=True)

    def check(self) -> None:
        super().check()
        if "{token}" not in self.prompt_format():
            raise InpaintError(f"prompt_template {self.prompt_template!r}: write where the category's {{token}} goes")

    def bind(self, rows: Manifest) -> Self:
        bound = super().bind(rows)
        default = XL_PROMPT_FORMAT if read_base_info(bound.base, bound.revision).is_xl else PROMPT_FORMAT
        return replace(bound, categories=rows.categories, prompt_template=self.prompt_template or default)

    def joined(self, recipes: Sequence[Self]) -> Self:
        return replace(self, categories=tuple(category for recipe in recipes for category in recipe.categories))

    def parts(self, rows: Manifest) -> dict[str, Manifest]:
        categories = rows.categories
        _check_categories(rows)
        if self.adapters is Adapters.SHARED:
            return {"shared" if len(categories) > 1 else categories[0]: rows}
        return {category: rows.select(category) for category in categories}

    def run_folder(self, part: str) -> str:
        return self.output if self.adapters is Adapters.SHARED else f"{self.output}/{part}"

    def tokens(self) -> Mapping[str, str]:
        return {category: category for category in self.categories}

    def init_word(self, category: str) -> str:
        return self.init_words.get(category, "product")

    def prompt_format(self) -> str:
        return self.prompt_template or PROMPT_FORMAT


def _check_categories(rows: Manifest) -> None:
    """A category is a token, which is found wherever its letters stand, and the name of a folder."""
    for category in rows.categories:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", category) or category in FOLDERS:
            raise InpaintError(f"category {category!r}: name it with letters, digits, '_', '-' and '.', as in CDP_FOOD")
        number = re.fullmatch(r"(.+)_[1-9][0-9]*", category)
        if number is not None and number[1] in rows.categories:
            raise InpaintError(f"category {category!r} reads as a further vector of {number[1]!r}'s token: rename it")
        prompts = rows.table["prompt"]
        found = prompts.filter(pc.match_substring(prompts, category, ignore_case=True))
        if len(found):
            raise InpaintError(
                f"category {category!r} becomes a token and would be found in the prompt {str(found[0])!r}: give it a "
                f"name that is no word, such as CDP_{category.upper()}"
            )
