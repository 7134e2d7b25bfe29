"""Listing: what a CSV or a folder states, found by column name, and the rows that fail before a file is opened."""

import shutil
import warnings

import pyarrow.fs as pafs
import pytest

from inpaint.data.quarantine import Reason
from inpaint.data.sources import CsvSource, FolderSource
from inpaint.data.storage import open_root, read
from inpaint.errors import BadRow, InpaintError
from tests.unit.data import images

HEADER = "input,mask,output,prompt,category"


def listed(folder, text, **options):
    path = folder / "set.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return CsvSource(path=path, **options).listing()


def the_reason(listing):
    assert listing.candidates == [] and len(listing.quarantined) == 1
    assert listing.quarantined[0].detail
    return listing.quarantined[0].field, listing.quarantined[0].reason


def test_a_row_is_read(tmp_path):
    (row,) = listed(tmp_path, f"{HEADER}\ni.png,m.png,sub/o.png,a jar,COS\n").candidates
    assert (row.row, row.input, row.hole, row.image) == (2, "i.png", "m.png", "sub/o.png")
    assert (row.prompt, row.category) == ("a jar", "COS")


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_columns_are_found_by_name_with_or_without_bom(tmp_path, bom):
    text = bom + 'Prompt , OUTPUT,note\r\n"caf\u00e9, red",o.png,x\r\n'.encode()
    (row,) = listed(tmp_path, text).candidates
    assert (row.prompt, row.image) == ("caf\u00e9, red", "o.png")
    assert row.input is None and row.hole is None and row.category is None


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("input,mask,target,prompt", "column 'output' is missing; the first line has 'input', 'mask', 'target'"),
        ("output,mask", "column 'prompt' is missing"),
        ("", "the first line has nothing"),
        ("output,prompt,output", "'output' occurs 2 times"),
    ],
)
def test_missing_columns_are_named_with_those_found(tmp_path, header, message):
    with pytest.raises(InpaintError, match=message):
        listed(tmp_path, header + "\n")


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        (",,o.png", "row", Reason.TOO_FEW_FIELDS),
        (",,,a jar,COS", "output", Reason.EMPTY_FIELD),
        (",,o.png,  ,COS", "prompt", Reason.EMPTY_PROMPT),
        (",,/etc/hostname,a jar,COS", "output", Reason.OUTSIDE_ROOT),
        (",,~/o.png,a jar,COS", "output", Reason.OUTSIDE_ROOT),
        (",,C:\\o.png,a jar,COS", "output", Reason.OUTSIDE_ROOT),
        (",../m.png,o.png,a jar,COS", "mask", Reason.OUTSIDE_ROOT),
        ("a/../../i.png,,o.png,a jar,COS", "input", Reason.OUTSIDE_ROOT),
        (",,https://x/o.png,a jar,COS", "output", Reason.URL),
        (",,file:///etc/hostname,a jar,COS", "output", Reason.URL),
        (",,s3://b/o.png,a jar,COS", "output", Reason.URL),
        (",,o.png,a jar,CDP_COZ", "category", Reason.UNKNOWN_CATEGORY),
        (",,o.png,a jar,", "category", Reason.UNKNOWN_CATEGORY),
    ],
)
def test_rows_that_fail_before_a_file_is_opened(tmp_path, line, field, reason):
    listing = listed(tmp_path, f"{HEADER}\n{line}\n", categories=["COS", "CDP_COS", "CDP_FOOD"])
    assert the_reason(listing) == (field, reason)
    assert listing.quarantined[0].row == 2


def test_an_unknown_category_names_the_nearest(tmp_path):
    listing = listed(tmp_path, f"{HEADER}\n,,o.png,a jar,CDP_COZ\n", categories=["CDP_COS", "CDP_FOOD"])
    assert "CDP_COS" in listing.quarantined[0].detail


def test_lines_are_counted_as_an_editor_does(tmp_path):
    text = f'{HEADER}\n,,a.png,"two\nlines",C\n\n,,b.png,,C\n'
    listing = listed(tmp_path, text)
    assert [row.prompt for row in listing.candidates] == ["two\nlines"]
    assert [row.row for row in listing.quarantined] == [5]


def test_files_that_are_no_csv_are_refused(tmp_path):
    with pytest.raises(InpaintError, match="no such file"):
        CsvSource(path=tmp_path / "absent.csv").listing()
    with pytest.raises(InpaintError, match="not UTF-8"):
        listed(tmp_path, f"{HEADER}\n,,o.png,caf".encode() + b"\xe9,C\n")
    with pytest.raises(InpaintError, match="cannot open this URL"):
        CsvSource(path="gopher://x/set.csv").listing()


def test_a_folder_is_walked_in_order_with_its_captions(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.webp", "notes.md", "sub/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b.txt").write_text("a bowl\n")
    (tmp_path / "sub/d.txt").write_text(" ")
    rows = FolderSource(path=tmp_path, prompt="a thing", category="C").listing().candidates
    assert [(r.image, r.prompt) for r in rows] == [
        ("a.JPG", "a thing"),
        ("b.png", "a bowl"),
        ("sub/c.webp", "a thing"),
        ("sub/d.png", "a thing"),
    ]
    strict = FolderSource(path=tmp_path, captions_required=True).listing()
    assert [r.image for r in strict.candidates] == ["b.png"]
    assert {q.reason for q in strict.quarantined} == {Reason.EMPTY_PROMPT}
    with pytest.raises(InpaintError, match="no such folder"):
        FolderSource(path=tmp_path / "absent").listing()
    by_folder = FolderSource(path=tmp_path, category_from_folder=True).listing().candidates
    assert [r.category for r in by_folder] == [None, None, "sub", "sub"]


@pytest.fixture
def small_set(tmp_path):
    folder = tmp_path / "deep" / "set"
    folder.mkdir(parents=True)
    (folder / "o.png").write_bytes(images.encoded(images.picture()))
    (folder / "set.csv").write_text("output,prompt\no.png,a jar\n")
    return folder


@pytest.mark.parametrize("kind", ["path", "url", "subtree", "mock"])
def test_local_paths_urls_and_filesystems(small_set, kind):
    path, filesystem = str(small_set / "set.csv"), None
    if kind == "url":
        path = small_set.as_uri() + "/set.csv"
    elif kind == "subtree":
        filesystem, path = pafs.SubTreeFileSystem(str(small_set.parent), pafs.LocalFileSystem()), "set/set.csv"
    elif kind == "mock":
        filesystem, path = pafs._MockFileSystem(), "bucket/set.csv"
        filesystem.create_dir("bucket")
        for name in ("set.csv", "o.png"):
            with filesystem.open_output_stream(f"bucket/{name}") as file:
                file.write((small_set / name).read_bytes())
    listing = CsvSource(path=path, filesystem=filesystem).listing()
    (row,) = listing.candidates
    data = (small_set / "o.png").read_bytes()
    assert read(listing.root, row.image, "output", 10**6) == data
    # What the manifest records leads back to the same files.
    assert read(open_root(listing.name, filesystem), row.image, "output", 10**6) == data
    with pytest.raises(BadRow) as caught:
        read(listing.root, "absent.png", "output", 10**6)
    assert caught.value.reason == Reason.MISSING_FILE


@pytest.mark.parametrize("kind", ["path", "url", "subtree"])
def test_a_link_out_of_the_root_is_refused(small_set, kind):
    (small_set.parent / "secret.png").write_bytes(b"secret")
    (small_set / "link.png").symlink_to(small_set.parent / "secret.png")
    (small_set / "inside.png").symlink_to(small_set / "o.png")
    root = {
        "path": lambda: open_root(small_set),
        "url": lambda: open_root(small_set.as_uri()),
        "subtree": lambda: open_root("", pafs.SubTreeFileSystem(str(small_set), pafs.LocalFileSystem())),
    }[kind]()
    with pytest.raises(BadRow) as caught:
        read(root, "link.png", "output", 10**6)
    assert caught.value.reason == Reason.OUTSIDE_ROOT
    assert read(root, "inside.png", "output", 10**6) == (small_set / "o.png").read_bytes()


def test_a_root_may_itself_be_a_link(small_set, tmp_path):
    (tmp_path / "alias").symlink_to(small_set)
    assert read(open_root(tmp_path / "alias"), "o.png", "output", 10**6)


def test_a_passing_error_is_tried_again_and_a_lasting_one_is_reported(small_set, monkeypatch):
    attempts = []

    def flaky(path, mode):
        attempts.append(path)
        if len(attempts) < limit:
            raise OSError(5, "Input/output error")
        return open(path, mode)

    monkeypatch.setattr("inpaint.data.storage.open", flaky, raising=False)
    limit = 3
    assert read(open_root(small_set), "o.png", "output", 10**6, retries=(0, 0))
    limit = 99
    with pytest.raises(BadRow) as caught:
        read(open_root(small_set), "o.png", "output", 10**6, retries=(0, 0))
    assert caught.value.reason == Reason.UNREADABLE
    assert len(attempts) == 6


def test_a_directory_and_a_too_large_file_are_bad_rows(small_set):
    (small_set / "folder.png").mkdir()
    for name, limit, reason in (("folder.png", 100, Reason.MISSING_FILE), ("o.png", 10, Reason.TOO_MANY_BYTES)):
        with pytest.raises(BadRow) as caught:
            read(open_root(small_set), name, "output", limit)
        assert caught.value.reason == reason


def test_listing_opens_no_image(tmp_path, small_set):
    shutil.copy(small_set / "set.csv", tmp_path / "other.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(CsvSource(path=tmp_path / "other.csv").listing().candidates) == 1
