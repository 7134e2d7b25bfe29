"""What a painting run decides before it paints: names, seeds, prompts, keys."""

from dataclasses import replace

import pytest

from inpaint.data.quarantine import Quarantined
from inpaint.data.rows import Manifest, Row
from inpaint.errors import InpaintError
from inpaint.models.adapter import Adapter, AdapterCard
from inpaint.paint.batch import PaintModels, PaintSettings, output_names, plan_tasks, row_seed
from inpaint.paint.request import SamplingSettings
from inpaint.rowmap import Item
from tests.tiny import base_info

SETTINGS = PaintSettings(base="toy", revision="r")
CARD = AdapterCard(
    base="toy",
    base_revision="r",
    tokens={"CDP_FOOD": "<food>"},
    prompt_format="{token} background, {prompt}",
    resolution=64,
    rank=1,
    alpha=1.0,
    samples=1,
    manifest="m",
    files={"lora": "sha"},
)
ADAPTER = Adapter(card=CARD, lora={})


def row(name: str, **settings: object) -> Row:
    defaults = {"id": name, "root": "r", "image": name.partition("#")[0], "width": 8, "height": 8, "prompt": "a box"}
    return Row(**{**defaults, "digest": "d" * 64, **settings})  # type: ignore[arg-type]


def plan(
    rows: list[Row], settings: PaintSettings = SETTINGS, adapter: Adapter | None = None
) -> tuple[list[Item], list[Quarantined]]:
    return plan_tasks(Manifest.of(rows), PaintModels(settings, adapter, base_info()))


def test_a_row_with_a_category_gets_its_token_only_with_an_adapter():
    rows = [row("a.png", category="CDP_FOOD"), row("b.png")]
    assert [t.value.prompt for t in plan(rows)[0]] == ["a box", "a box"]
    assert [t.value.prompt for t in plan(rows, adapter=ADAPTER)[0]] == ["<food> background, a box", "a box"]


def test_a_category_that_the_adapter_does_not_know_goes_to_the_quarantine():
    tasks, bad = plan([row("a.png", category="CDP_COS"), row("b.png")], adapter=ADAPTER)
    assert [t.value.row.id for t in tasks] == ["b.png"]
    assert (bad[0].reason, bad[0].detail) == ("unknown category", "category 'CDP_COS': this adapter knows CDP_FOOD")


def test_a_rows_seed_depends_on_run_seed_and_id_alone():
    assert len({row_seed(s, i) for s in (0, 1) for i in ("a", "b", "c")}) == 6
    assert all(0 <= row_seed(0, str(i)) < 2**63 for i in range(100))


def test_a_key_covers_all_that_the_picture_depends_on_and_nothing_else():
    (task,) = plan([row("a.png")])[0]
    assert plan([row("a.png", root="elsewhere")])[0][0].key == task.key
    assert plan([row("a.png")], replace(SETTINGS, base="a/copy"))[0][0].key == task.key
    others = [
        plan([row("a.png", digest="e" * 64)]),
        plan([row("b.png")]),
        plan([row("a.png", prompt="x")]),
        plan([row("a.png")], replace(SETTINGS, revision="other weights")),
        plan([row("a.png")], adapter=ADAPTER),
        plan([row("a.png")], adapter=replace(ADAPTER, card=replace(CARD, files={"lora": "other"}))),
        *(
            plan([row("a.png")], replace(SETTINGS, **{name: value}))
            for name, value in {"seed": 1, "negative_prompt": "x", "precision": "bf16"}.items()
        ),
        *(
            plan([row("a.png")], replace(SETTINGS, sampling=SamplingSettings(**{name: value})))
            for name, value in {"steps": 3, "guidance_scale": 2.0, "size": 64, "feather": 1, "padding": 2}.items()
        ),
    ]
    assert len({task.key, *(tasks[0].key for tasks, _ in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (["a.jpg", "s/b.webp"], ["a.png", "s/b.png"]),
        (["a.jpg", "a.jpg#2"], ["a.png", "a#2.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png.png"]),
        (["v1.2/a.b.jpg", "no_suffix"], ["v1.2/a.b.png", "no_suffix.png"]),
    ],
)
def test_pictures_are_named_after_their_rows(ids, names):
    assert list(output_names(ids).values()) == names


@pytest.mark.parametrize("ids", [["a.jpg", "a.png", "A.png"], ["a.jpg", "comparisons/a.jpg"]], ids=["case", "folder"])
def test_pictures_that_would_overwrite_one_another_are_refused(ids):
    # Two ids that differ in case alone share a file on some disks.
    with pytest.raises(InpaintError, match="same file name"):
        output_names(ids)


def test_what_is_left_open_is_what_the_base_prefers():
    info = base_info(guidance_scale=1.5, steps=30)
    open_ = SamplingSettings(size=64)
    assert open_.resolved(info) == replace(open_, guidance_scale=1.5, steps=30)
    decided = SamplingSettings(guidance_scale=0.0, steps=3)
    assert decided.resolved(info) == decided
