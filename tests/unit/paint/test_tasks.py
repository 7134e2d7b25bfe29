"""What a painting run decides before it paints: names, seeds, prompts, keys; and what it finds done."""

from dataclasses import replace

import pytest

from inpaint.data.rows import Manifest, Row
from inpaint.errors import InpaintError
from inpaint.models.adapter import AdapterCard
from inpaint.paint.request import SamplingSettings
from inpaint.paint.results import PAINTED, Painted, Results, picture_hash
from inpaint.paint.tasks import PaintSettings, PaintTask, checked_output_folder, output_names, plan_tasks, row_seed
from tests.tiny import base_info

SETTINGS = PaintSettings(base="toy")


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
)


def row(name: str, **settings: object) -> Row:
    files = {"root": "r", "image": name.partition("#")[0], "width": 8, "height": 8, "digest": "d" * 64}
    defaults = {"id": name, "prompt": "a box", **files}
    return Row(**{**defaults, **settings})


def plan(rows, settings=SETTINGS, adapter=None, models="m"):
    return plan_tasks(Manifest.of(rows), settings, models, adapter)


def test_a_row_with_a_category_gets_its_token_only_with_an_adapter():
    rows = [row("a.png", category="CDP_FOOD"), row("b.png")]
    assert [t.prompt for t in plan(rows)[0]] == ["a box", "a box"]
    assert [t.prompt for t in plan(rows, adapter=CARD)[0]] == ["<food> background, a box", "a box"]


def test_a_category_that_the_adapter_does_not_know_goes_to_the_quarantine():
    tasks, bad = plan([row("a.png", category="CDP_COS"), row("b.png")], adapter=CARD)
    assert [t.row.id for t in tasks] == ["b.png"]
    assert (bad[0].reason, bad[0].detail) == ("unknown category", "'CDP_COS': the adapter has CDP_FOOD")


def test_a_rows_seed_depends_on_run_seed_and_id_alone():
    alone = plan([row("b.png")])[0][0]
    among = plan([row("a.png"), row("b.png")])[0][1]
    assert alone.seed == among.seed == row_seed(0, "b.png")
    assert len({row_seed(s, i) for s in (0, 1) for i in ("a", "b", "c")}) == 6
    assert all(0 <= row_seed(0, str(i)) < 2**63 for i in range(100))


def test_a_key_covers_all_that_the_picture_depends_on():
    (task,) = plan([row("a.png")])[0]
    assert plan([row("a.png")])[0] == [task]
    others = [
        plan([row("a.png", digest="e" * 64)]),
        plan([row("a.png", prompt="x")]),
        plan([row("a.png")], models="other weights"),
        plan([row("a.png")], adapter=CARD, models="m with an adapter"),
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


def test_tasks_travel_as_json():
    (task,) = plan([row("a.png", category="CDP_FOOD")], adapter=CARD)[0]
    assert PaintTask.from_json(task.to_json()) == task


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (["a.jpg", "s/b.webp"], ["a.png", "s/b.png"]),
        (["a.jpg", "a.jpg#2"], ["a.png", "a#2.png"]),
        (["a.jpg", "a.png", "A.png"], ["a.jpg.png", "a.png.png", "A.png.png"]),
        (["v1.2/a.b.jpg", "no_suffix"], ["v1.2/a.b.png", "no_suffix.png"]),
    ],
)
def test_pictures_are_named_after_their_rows_and_never_overwrite_one_another(ids, names):
    if "A.png" in ids:  # two ids that differ in case alone share a file on some disks
        with pytest.raises(InpaintError, match="same file name"):
            output_names([row(i) for i in ids])
        ids, names = ids[:2], names[:2]
    assert list(output_names([row(i) for i in ids]).values()) == names


def test_a_row_named_like_a_comparison_is_refused():
    with pytest.raises(InpaintError, match="same file name"):
        output_names([row("a.jpg"), row("comparisons/a.jpg")])


def test_what_is_left_open_is_what_the_base_prefers():
    open_ = SamplingSettings(size=64)
    assert open_.resolved(base_info()) == replace(open_, guidance_scale=1.0, steps=25)
    assert open_.resolved(base_info(guidance_scale=7.5)) == replace(open_, guidance_scale=7.5, steps=25)
    decided = SamplingSettings(guidance_scale=0.0, steps=3)
    assert decided.resolved(base_info()) == decided


def test_output_must_be_a_folder_on_a_disk(tmp_path):
    with pytest.raises(InpaintError, match="s3://b/out: give a folder"):
        checked_output_folder("s3://b/out")
    (tmp_path / "file").write_text("")
    with pytest.raises(InpaintError, match="is a file"):
        checked_output_folder(tmp_path / "file")


def painted(task: PaintTask, picture: bytes) -> Painted:
    return Painted(
        id=task.row.id,
        prompt=task.prompt,
        seed=task.seed,
        output=task.output,
        kept_pixels_changed=0,
        seconds=0.1,
        sha256=picture_hash(picture),
        key=task.key,
    )


def test_only_whole_pictures_of_the_same_task_count_as_done(tmp_path):
    tasks, _ = plan([row(f"{name}.png") for name in "abcdef"])
    results = Results(tmp_path)
    results.keep_done([])
    for task in tasks:
        results.add(painted(task, task.output.encode()), task.output.encode(), b"strip")
    a, b, c, d, e, f = tasks
    assert Results(tmp_path).keep_done(tasks) == {t.row.id for t in tasks}
    (tmp_path / a.output).unlink()
    (tmp_path / b.output).write_bytes(b"other bytes")
    (tmp_path / "comparisons" / c.output).unlink()
    changed = replace(d, key="painted otherwise")
    lines = (tmp_path / PAINTED).read_text().splitlines(keepends=True)
    (tmp_path / PAINTED).write_text("".join(lines[:-1]) + lines[-1][:20])  # a crash while the last line was written
    assert Results(tmp_path).keep_done([a, b, c, changed, e, f]) == {e.row.id}
    assert [line.split('"')[3] for line in (tmp_path / PAINTED).read_text().splitlines()] == ["e.png"]
    assert not list(tmp_path.rglob("*.tmp"))
