"""What an adapter's card tells of the rows it was trained on: folders, repeats and the tags of captions."""

import posixpath
from collections import Counter

import numpy as np
import pyarrow.compute as pc

from inpaint.data.captions import tags_of
from inpaint.data.rows import Manifest
from inpaint.data.sample import ReadSettings
from inpaint.models.adapter import DatasetFolder

MOST_TAGS = 200
"""Of a folder."""
MOST_FOLDERS = 50
MOST_ROWS = 100_000
"""Whose captions are looked at; of larger sets no tags are told."""


def dataset_of(rows: Manifest, read: ReadSettings) -> dict[str, DatasetFolder]:
    """By the name of the folder that images lie in; of the first source alone, for others are pictures of a class."""
    if not len(rows):
        return {}
    sources = rows.table["source"].to_numpy()
    rows = rows.select(sources == sources.min())
    paths = zip(rows.table["root"].to_pylist(), rows.table["image"].to_pylist(), strict=True)
    folders = [posixpath.basename(posixpath.dirname(f"{root}/{image}")) for root, image in paths]
    found: dict[str, DatasetFolder] = {}
    for name, images in Counter(folders).most_common(MOST_FOLDERS):
        own = rows.select(np.array([folder == name for folder in folders]))
        tags: Counter[str] = Counter()
        for row in own.rows() if len(rows) <= MOST_ROWS else ():
            tags.update(dict.fromkeys(tags_of(read.prompt_of(row)), 1))
        repeats = int(pc.max(own.table["repeats"]).as_py())
        found[name] = DatasetFolder(n_repeats=repeats, img_count=images, tags=dict(tags.most_common(MOST_TAGS)))
    return found
