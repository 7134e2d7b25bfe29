"""The wiring on Ray Data: every reason for the quarantine, exact blocks, exact suffixes, few-shot, vanished files."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import ray
import ray.cloudpickle
import ray.data

from inpaint.data import pipeline, sample
from inpaint.data.files import check_relative
from inpaint.data.pipeline import MAX_POSITIONS_AHEAD, Stage, batches, read_manifest, share_rows
from inpaint.data.plan import PADDING, Plan, StepLayout
from inpaint.data.quarantine import Reason
from inpaint.data.rows import Manifest, digest_of
from inpaint.data.sample import ReadSettings
from inpaint.data.sources import Captions, CsvSource, FolderSource, JoinedSource
from inpaint.errors import BadRow, InpaintError, TooManyBadRows
from inpaint.stopping import StopToken
from tests.unit.data import images

pytestmark = pytest.mark.usefixtures("ray_cluster")
HEADER = "input,mask,output,prompt,category"
READ = ReadSettings(height=16, width=16, caption_dropout=0.0)


def one(batch):
    """Each batch is a step of one worker."""
    return StepLayout(global_batch=batch, max_micro_batch=batch, workers=1)


POISON = {
    "truncated.jpg": (images.encoded(images.picture(), "JPEG")[:400], Reason.TRUNCATED),
    "zero.jpg": (b"", Reason.ZERO_BYTES),
    "text.png": (b"this is not a picture", Reason.NOT_AN_IMAGE),
    "photo.bmp": (images.encoded(images.picture(), "BMP"), Reason.WRONG_FORMAT),
    "bomb.png": (images.png_bomb(30_000, 30_000), Reason.TOO_MANY_PIXELS),
    "animated.webp": (images.animated("WEBP"), Reason.ANIMATED),
}
POISON_MASKS = {
    "other_size.png": (images.encoded(images.mask(20, 20)), Reason.OTHER_SIZE),
    "empty.png": (images.encoded(images.mask().point(lambda _: 0)), Reason.EMPTY_HOLE),
    "full.png": (images.encoded(images.mask().point(lambda _: 255)), Reason.FULL_HOLE),
    "torn.png": (images.encoded(images.mask())[:-30], Reason.TRUNCATED),
    "erased.png": (images.encoded(images.mask(), transparency=0), Reason.TRANSPARENT_MASK),
}


@pytest.fixture
def folder(tmp_path):
    """Five good pictures with masks; `write_csv` lists what a test needs of them."""
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(images.encoded(images.picture(40, 30 + 4 * i)))
        (tmp_path / f"m{i}.png").write_bytes(images.encoded(images.mask(40, 30 + 4 * i)))
    return tmp_path


def write_csv(folder, lines, header=HEADER):
    (folder / "set.csv").write_text("\n".join([header, *lines]))
    return CsvSource(path=folder / "set.csv")


def good(i):
    return f",m{i}.png,{i}.png,thing {i},COS"


@pytest.fixture
def manifest(folder):
    return read_manifest(write_csv(folder, [good(i) for i in range(5)]))[0]


def consume(shards):
    """Each shard's batches, read side by side as training workers do."""
    found = [[] for _ in shards]

    def read(rank):
        for batch in shards[rank].iter_batches(batch_size=None):
            found[rank].append({name: values.copy() for name, values in batch.items()})

    threads = [threading.Thread(target=read, args=(rank,)) for rank in range(len(shards))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def positions(found):
    return [np.concatenate([batch["position"] for batch in rank]) for rank in found]


def test_every_bad_row_is_in_the_quarantine_with_its_reason(folder):
    for name, (data, _) in (POISON | POISON_MASKS).items():
        (folder / name).write_bytes(data)
    (folder / "link.png").symlink_to("/etc/hostname")
    expected = {f",,{name},x,COS": ("output", reason) for name, (_, reason) in POISON.items()}
    expected |= {f",{name},0.png,x,COS": ("mask", reason) for name, (_, reason) in POISON_MASKS.items()}
    expected |= {f"{name},,0.png,x,COS": ("input", reason) for name, (_, reason) in list(POISON.items())[:2]}
    expected |= {
        "1.png,,0.png,x,COS": ("input", Reason.OTHER_SIZE),
        ",,absent.png,x,COS": ("output", Reason.MISSING_FILE),
        ",,link.png,x,COS": ("output", Reason.OUTSIDE_ROOT),
        ",,../0.png,x,COS": ("output", Reason.OUTSIDE_ROOT),
        ",,http://x/0.png,x,COS": ("output", Reason.URL),
        ",,,x,COS": ("output", Reason.EMPTY_FIELD),
        ",,0.png,,COS": ("prompt", Reason.EMPTY_PROMPT),
        ",,0.png,x,COZ": ("category", Reason.UNKNOWN_CATEGORY),
        ",,0.png": ("row", Reason.TOO_FEW_FIELDS),
        ",,0.png,red, shiny, new,COS": ("row", Reason.TOO_MANY_FIELDS),
        ',,0.png,"red,COS': ("row", Reason.OPEN_QUOTE),
        ",,0.png,x,COS,never": ("repeats", Reason.NOT_A_COUNT),
    }
    lines = [good(0), *expected, good(1)]
    full = [line if line.endswith("never") or line == ",,0.png" else f"{line}," for line in lines]
    source = replace(write_csv(folder, full, f"{HEADER},repeats"), categories=["COS", "FOOD"])
    manifest, bad = read_manifest(source, max_bad_fraction=0.99, quarantine=str(folder / "q.jsonl"))
    assert [row.id for row in manifest.rows()] == ["0.png", "1.png"]
    found = {lines[q.row - 2]: (q.field, q.reason) for q in bad}
    assert found == expected
    assert all(q.detail for q in bad)
    written = [json.loads(line) for line in (folder / "q.jsonl").read_text().splitlines()]
    assert [line["row"] for line in written] == sorted(q.row for q in bad)
    # Those that this test does not make: see test_sources.py, test_decode.py, test_panels.py and the jobs' own tests.
    others = {Reason.UNREADABLE, Reason.TOO_MANY_BYTES, Reason.NOT_UTF8, Reason.TOO_LONG, Reason.OTHER_GRID}
    others |= {Reason.UNKNOWN_ADAPTER, Reason.SHARED_CAPTION, Reason.NOT_TRAINED}
    assert {q.reason for q in bad} == set(Reason) - others


def test_too_many_bad_rows_stop_before_training(folder):
    with pytest.raises(TooManyBadRows, match=r"(?s)1 of 6 rows.*missing file"):
        read_manifest(write_csv(folder, [*(good(i) for i in range(5)), ",,absent.png,x,COS"]), max_bad_fraction=0.1)


def test_good_rows_are_used_after_conversion(folder):
    (folder / "really_a_jpeg.png").write_bytes(images.encoded(images.picture(), "JPEG"))
    (folder / "cmyk.jpg").write_bytes(images.encoded(images.picture().convert("CMYK"), "JPEG"))
    (folder / "turned.jpg").write_bytes(images.with_orientation(images.picture(), images.ROTATED, "JPEG"))
    (folder / "turned_mask.png").write_bytes(images.encoded(images.mask(30, 40)))
    lines = [",,really_a_jpeg.png,x,", ",,cmyk.jpg,x,", ",turned_mask.png,turned.jpg,x,", "1.png,m1.png,1.png,x,"]
    manifest, bad = read_manifest(write_csv(folder, lines))
    assert bad == []
    assert [(row.width, row.height) for row in manifest.rows()] == [(40, 30), (40, 30), (30, 40), (40, 34)]


def test_repeated_rows_are_used_and_counted(folder):
    source = write_csv(folder, [good(0), good(1), good(0), ",m0.png,0.png,other prompt,COS"])
    with pytest.warns(UserWarning, match=r"1 rows repeat an earlier row \(the first: 0.png\)"):
        manifest, bad = read_manifest(source)
    assert bad == [] and [row.id for row in manifest.rows()] == ["0.png", "1.png", "0.png#2", "0.png#3"]


def test_the_manifest_keeps_the_order_and_knows_the_bytes(folder):
    lines = [f",m{i % 5}.png,{i % 5}.png,prompt {i},COS" for i in range(100)]
    manifest, _ = read_manifest(write_csv(folder, lines))
    assert [row.prompt for row in manifest.rows()] == [f"prompt {i}" for i in range(100)]
    again, _ = read_manifest(write_csv(folder, lines))
    assert again.hash == manifest.hash
    (folder / "m3.png").write_bytes(images.encoded(images.mask(40, 42), compress_level=0))
    changed, _ = read_manifest(write_csv(folder, lines))
    assert "3.png (bytes of the files)" in manifest.difference(changed)
    files = {"image": "3.png", "hole": "m3.png"}
    assert changed.row(3).digest == digest_of({name: (folder / path).read_bytes() for name, path in files.items()})


@pytest.mark.parametrize("with_input", [False, True])
def test_batches_keep_the_contract(folder, with_input):
    lines = [good(i) for i in range(5)] + (["0.png,m0.png,0.png,with input,COS"] if with_input else [])
    manifest, _ = read_manifest(write_csv(folder, lines))
    dataset = batches(manifest, replace(READ, width=24), seed=1, start=3, stop=3 + 24, layout=one(4))
    found = list(dataset.iter_batches(batch_size=None))
    assert [batch["position"].tolist() for batch in found] == [list(range(p, p + 4)) for p in range(3, 27, 4)]
    names = {"position", "image", "hole", "original_size", "crop_top_left", "prompt", "label", "weight", "error"}
    names |= {"input"} if with_input else set()
    for batch in found:
        assert set(batch) == names
        assert batch["position"].dtype == np.int64 and batch["weight"].dtype == np.float32
        assert batch["image"].shape == (4, 16, 24, 3) and batch["image"].dtype == np.uint8
        assert batch["hole"].shape == (4, 16, 24) and batch["hole"].dtype == np.uint8
        assert (batch["hole"].max(axis=(1, 2)) >= 128).all()
        assert batch["original_size"].shape == batch["crop_top_left"].shape == (4, 2)
        assert batch["original_size"].dtype == batch["crop_top_left"].dtype == np.int32
        assert (batch["weight"] == 1).all() and set(batch["error"]) == set(batch["label"]) == {""}
        rows = Plan.of(manifest, 1).lookup(batch["position"])[1]
        assert [manifest.row(row).prompt for row in rows] == batch["prompt"].tolist()
        assert all(isinstance(prompt, str) for prompt in batch["prompt"])


@pytest.mark.parametrize("micro_batch", [1, 3, 16, 48])
@pytest.mark.parametrize("prompt", ["x", "a long prompt " * 100], ids=["short", "long"])
def test_blocks_are_exactly_one_micro_batch(manifest, micro_batch, prompt):
    """Also where strings outweigh the pixels, and where a task holds many micro-batches."""
    wordy = Manifest.of([replace(row, prompt=prompt) for row in manifest.rows()])
    dataset = batches(wordy, READ, seed=0, start=0, stop=192, layout=one(micro_batch))
    sizes = [block.metadata.num_rows for bundle in dataset.iter_internal_ref_bundles() for block in bundle.blocks]
    assert sizes == [micro_batch] * (192 // micro_batch)


def test_a_long_run_is_dealt_in_order_too(manifest, monkeypatch):
    """Runs of very many tasks make their tasks one by one."""
    monkeypatch.setattr("inpaint.data.pipeline.MAX_READ_TASKS", 4)
    dataset = batches(manifest, READ, seed=0, start=0, stop=400, layout=one(2))
    assert np.concatenate([b["position"] for b in dataset.iter_batches(batch_size=None)]).tolist() == list(range(400))


def test_workers_get_their_positions_and_a_restart_gives_the_suffix_whatever_their_number(manifest):
    def read(workers, start):
        layout = StepLayout(global_batch=16, max_micro_batch=3, workers=workers)
        dataset = batches(manifest, READ, seed=5, start=start, stop=96, layout=layout)
        found = consume(dataset.streaming_split(workers, equal=True))
        for rank in range(workers):
            expected = np.concatenate([layout.positions(step, rank) for step in range(start, 96, 16)])
            assert [batch["position"].tolist() for batch in found[rank]] == expected.tolist()
        return found

    whole, again, alone = read(3, 0), read(3, 48), read(1, 48)
    for rank in range(3):
        suffix = whole[rank][len(whole[rank]) // 2 :]
        assert len(suffix) == len(again[rank])
        for before, after in zip(suffix, again[rank], strict=True):
            assert all(np.array_equal(before[name], after[name]) for name in before)
    together, one = in_order(again), in_order(alone)
    assert one["position"].tolist() == list(range(48, 96))
    assert all(np.array_equal(one[name], together[name]) for name in one)


def in_order(found):
    """The samples of all workers by position, without padding."""
    every = [batch for rank in found for batch in rank]
    together = {name: np.concatenate([batch[name] for batch in every]) for name in every[0]}
    kept = np.flatnonzero(together["position"] != PADDING)
    order = kept[np.argsort(together["position"][kept])]
    return {name: values[order] for name, values in together.items()}


def test_padding_is_blank_weighs_nothing_and_is_not_read(manifest, folder):
    layout = StepLayout(global_batch=4, max_micro_batch=2, workers=3)
    found = list(batches(manifest, READ, seed=5, start=0, stop=8, layout=layout).iter_batches(batch_size=None))
    assert [len(batch["position"]) for batch in found] == [2] * 6
    padding = 0
    for batch in found:
        for i in np.flatnonzero(batch["position"] == PADDING):
            padding += 1
            assert (batch["weight"][i], batch["prompt"][i], batch["error"][i]) == (0, "", "")
            assert (batch["image"][i] == 0).all() and (batch["hole"][i] == 255).all()
    assert padding == 4


def test_joined_folders_are_read_at_their_ratio(folder):
    for name, count in (("few", 2), ("many", 9)):
        (folder / name).mkdir()
        for i in range(count):
            (folder / name / f"{i}.png").write_bytes(images.encoded(images.picture(30 + i, 30)))
    (folder / "few" / "0.txt").write_text("the first")
    few, many = (FolderSource(path=folder / name, prompt=name, weight=w) for name, w in (("few", 1.0), ("many", 0.5)))
    manifest, bad = read_manifest(JoinedSource(parts=((few, 1), (many, 3))))
    assert bad == [] and manifest.shares == (1, 3)
    assert [row.id for row in manifest.rows()][:4] == ["0.png", "1.png", "0.png#2", "1.png#2"]
    found = list(batches(manifest, READ, seed=0, start=0, stop=24, layout=one(8)).iter_batches(batch_size=None))
    for batch in found:
        assert sorted(zip(batch["prompt"], batch["weight"], strict=True)) == sorted(
            [("few", 1.0), ("the first", 1.0)] + 6 * [("many", 0.5)]
        )


def test_a_joined_source_of_which_nothing_can_be_used_is_refused(folder):
    for name, content in (("good", images.encoded(images.picture(30, 30))), ("bad", b"no image")):
        (folder / name).mkdir()
        (folder / name / "0.png").write_bytes(content)
    source = JoinedSource(parts=tuple((FolderSource(path=folder / name), 1) for name in ("good", "bad")))
    with pytest.raises(InpaintError, match="(?s)joined source 2 of 2.*bad/0.png.*not an image"):
        read_manifest(source, max_bad_fraction=0.9)


def test_captions_are_read_and_an_empty_one_is_named(folder):
    (folder / "1.txt").write_text("\ufeffa bowl\n", encoding="utf-8")
    (folder / "2.txt").write_text(" ")
    (folder / "3.txt").write_bytes(b"caf\xe9")
    manifest, bad = read_manifest(FolderSource(path=folder, captions=Captions.REQUIRED), max_bad_fraction=0.95)
    assert [(row.id, row.prompt) for row in manifest.rows()] == [("1.png", "a bowl")]
    assert {(q.name, q.reason) for q in bad} >= {("2.png", Reason.EMPTY_PROMPT), ("3.png", Reason.UNREADABLE)}


def test_five_images_on_four_workers_are_each_seen_once_per_epoch(manifest):
    layout = StepLayout(global_batch=4, max_micro_batch=1, workers=4)
    dataset = batches(manifest, READ, seed=9, start=0, stop=20, layout=layout)
    found = consume(dataset.streaming_split(4, equal=True))
    assert [len(rank) for rank in found] == [5, 5, 5, 5]
    seen = [(int(b["position"][0]) // 5, b["prompt"][0]) for rank in found for b in rank]
    assert sorted(seen) == [(epoch, f"thing {i}") for epoch in range(4) for i in range(5)]


def test_a_file_that_vanished_becomes_a_row_without_weight_in_its_place(manifest, folder):
    before = list(batches(manifest, READ, seed=2, start=0, stop=10, layout=one(5)).iter_batches(batch_size=None))
    (folder / "3.png").unlink()
    (folder / "m1.png").write_bytes(b"broken")
    after = list(batches(manifest, READ, seed=2, start=0, stop=10, layout=one(5)).iter_batches(batch_size=None))
    gone = 0
    for then, now in zip(before, after, strict=True):
        assert np.array_equal(then["position"], now["position"])
        for i, prompt in enumerate(then["prompt"]):
            if prompt in ("thing 3", "thing 1"):
                gone += 1
                assert now["weight"][i] == 0 and now["prompt"][i] == ""
                assert now["error"][i].startswith(prompt.replace("thing ", "") + ".png: ")
            else:
                assert now["weight"][i] == 1 and now["error"][i] == ""
                assert np.array_equal(then["image"][i], now["image"][i])
    assert gone == 4


def test_a_count_that_cannot_be_dealt_is_refused(manifest):
    with pytest.raises(InpaintError, match=r"101, not a multiple of the global batch 8: stop at 96 or 104"):
        batches(manifest, READ, seed=0, start=0, stop=101, layout=one(8))
    with pytest.raises(InpaintError, match="nothing to read"):
        batches(manifest, READ, seed=0, start=8, stop=8, layout=one(4))


def test_a_category_without_a_token_is_refused_before_reading(manifest):
    chosen = replace(READ, prompt_format="{token} background, {prompt}", tokens={"FOOD": "<food>"})
    with pytest.raises(InpaintError, match="'COS' has no token"):
        batches(manifest, chosen, seed=0, start=0, stop=4, layout=one(4))


def test_a_folder_and_a_url_are_read(folder):
    manifest, bad = read_manifest(FolderSource(path=folder.as_uri(), prompt="a thing"))
    assert bad == [] and len(manifest) == 10 and {row.root for row in manifest.rows()} == {folder.as_uri()}
    (batch,) = batches(manifest, READ, seed=0, start=0, stop=10, layout=one(10)).iter_batches(batch_size=None)
    assert set(batch["prompt"]) == {"a thing"} and set(batch["error"]) == {""}


def test_the_order_is_kept_and_reading_does_not_run_far_ahead(manifest):
    options = batches(manifest, READ, seed=0, start=0, stop=5, layout=one(5)).context.execution_options
    assert options.preserve_order
    assert options.resource_limits.object_store_memory == MAX_POSITIONS_AHEAD * 16 * 16 * 4
    assert not ray.data.DataContext.get_current().execution_options.preserve_order


def test_encoders_beside_reading_have_their_places_first_and_keep_the_order(manifest, monkeypatch):
    def load():
        return lambda batch: {"position": batch["position"], "latents": batch["image"].mean(axis=(1, 2, 3))}

    monkeypatch.setattr(pipeline, "MAX_POSITIONS_AHEAD", 8)
    stage = Stage(pickled=ray.cloudpickle.dumps(load), actors=2, cpus=0.25, free_cpus=1.5)
    layout = StepLayout(global_batch=6, max_micro_batch=3, workers=2)
    encoded = batches(manifest, READ, seed=0, start=6, stop=246, layout=layout, encoding=stage)
    assert encoded.context.execution_options.resource_limits.cpu == 1.5 and encoded.context.wait_for_min_actors_s > 0
    for rank, found in enumerate(consume(encoded.streaming_split(2, equal=True))):
        expected = np.concatenate([layout.positions(step, rank) for step in range(6, 246, 6)])
        assert [batch["position"].tolist() for batch in found] == expected.tolist()
        with ThreadPoolExecutor(1) as threads:
            seen = sample.read_batch(manifest, Plan.of(manifest, 0), READ, expected.ravel(), threads)["image"]
        assert np.array_equal(np.concatenate([batch["latents"] for batch in found]), seen.mean(axis=(1, 2, 3)))


def test_small_images_are_read_by_one_thread(manifest):
    large = Manifest.of([replace(row, width=512, height=512) for row in manifest.rows()])
    assert [pipeline._threads_per_task(m) for m in (manifest, large)] == [1, 2]


def test_files_are_fetched_side_by_side_while_one_thread_decodes(manifest, monkeypatch):
    fetch, together = sample.fetch, threading.Barrier(4)

    def fetch_together(row, **which):
        together.wait(timeout=30)
        return fetch(row, **which)

    plan = Plan.of(manifest, 0)
    with ThreadPoolExecutor(1) as threads, ThreadPoolExecutor(4) as fetchers:
        read = partial(sample.read_batch, manifest, plan, READ, np.arange(8), threads)
        alone = read()
        monkeypatch.setattr(sample, "fetch", fetch_together)
        batch = read(fetchers)
    assert not any(batch["error"])
    assert np.array_equal(batch["image"], alone["image"])


def test_paths_are_normalised():
    assert check_relative("./a//b.png", "output") == "a/b.png"
    with pytest.raises(BadRow):
        check_relative("a/../../b.png", "output")


def test_decoded_rows_are_shared_and_are_those_of_the_files(folder, manifest) -> None:
    read = replace(READ, flip_probability=0.5)
    plan, span, stop = Plan.of(manifest, 3, 4), range(12), StopToken()

    def found(**shared):
        dataset = batches(manifest, read, seed=3, start=0, stop=12, layout=one(4), **shared)
        return list(dataset.iter_batches(batch_size=None))

    decoded = share_rows(manifest, read, plan, span, room=10**6, stop=stop)
    expected = found()
    for path in folder.glob("*.png"):
        path.unlink()
    for batch, same in zip(expected, found(decoded=decoded), strict=True):
        assert all((values == same[name]).all() for name, values in batch.items()) and batch["weight"].all()
    pieces = ray.get(decoded.pieces)
    assert decoded.bytes == sum(piece[name].nbytes for piece in pieces for name in ("image", "area"))
    assert decoded.opened(replace(read, width=24)) is None
    assert share_rows(manifest, read, plan, span, room=decoded.bytes - 1, stop=stop) is None
    stop.request()
    with pytest.raises(InpaintError, match="stopped"):
        share_rows(manifest, read, plan, span, room=10**6, stop=stop)


def test_blocks_of_one_bucket_are_of_its_shape_and_dealt_as_ever(manifest):
    shapes, of_each = ((24, 8), (16, 16)), np.array([0, 0, 1, 1, 1])
    rows, read = manifest.in_buckets(of_each), replace(READ, shapes=shapes)
    layout, plan = StepLayout(global_batch=4, max_micro_batch=2, workers=2), Plan.of(rows, 7, 4)
    dataset = batches(rows, read, seed=7, start=4, stop=44, layout=layout)
    for rank, found in enumerate(consume(dataset.streaming_split(2, equal=True))):
        for step, batch in enumerate(found):
            assert np.array_equal(batch["position"], layout.positions(4 + 4 * step, rank)[0])
            (bucket,) = set(of_each[plan.lookup(batch["position"])[1]].tolist())
            assert batch["image"].shape[1:3] == batch["hole"].shape[1:] == shapes[bucket]
        assert {batch["image"].shape[1:3] for batch in found} == set(shapes) and len(found) == 10
