"""Listing: what a CSV or a folder states, found by column name, and the rows that fail before a file is opened."""

import os
import shutil
import warnings
from dataclasses import replace
from types import SimpleNamespace

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint.data import sources
from inpaint.data.files import read
from inpaint.data.quarantine import Reason
from inpaint.data.sources import Captions, CsvSource, FolderNames, FolderSource, JoinedSource
from inpaint.data.storage import Root, open_root, opened
from inpaint.errors import BadRow, InpaintError
from tests.unit.data import images

HEADER = "input,mask,output,prompt,category"


def listed(folder, text, **options):
    path = folder / "set.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return CsvSource(path=path, **options).listing()


def rows_of(listing):
    return [SimpleNamespace(**line) for line in listing.table.to_pylist()]


def the_reason(listing):
    assert listing.table.num_rows == 0 and len(listing.quarantined) == 1
    assert listing.quarantined[0].detail
    return listing.quarantined[0].field, listing.quarantined[0].reason


def test_a_row_is_read(tmp_path):
    (row,) = rows_of(listed(tmp_path, f"{HEADER}\ni.png,m.png,sub/o.png,a jar,COS\n"))
    assert (row.line, row.input, row.hole, row.image) == (2, "i.png", "m.png", "sub/o.png")
    assert (row.prompt, row.category) == ("a jar", "COS")


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_columns_are_found_by_name_with_or_without_bom(tmp_path, bom):
    text = bom + 'Prompt , OUTPUT,note\r\n"caf\u00e9, red",o.png,x\r\n'.encode()
    (row,) = rows_of(listed(tmp_path, text))
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
    assert [row.prompt for row in rows_of(listing)] == ["two\nlines"]
    assert [row.row for row in listing.quarantined] == [5]


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (b',,d.png,"a jar,C', Reason.OPEN_QUOTE),
        (b',,d.png,"a jar,C\n\n', Reason.OPEN_QUOTE),
        (b',,d.png,a jar,"C', Reason.OPEN_QUOTE),
        (b",,d.png,Stra\xdfe,C", Reason.NOT_UTF8),
        (b",,d.png,red box, shiny,C", Reason.TOO_MANY_FIELDS),
        (b",,d.png," + b"x" * 200_000 + b",C", Reason.TOO_LONG),
    ],
)
@pytest.mark.parametrize("behind", [0, 1, 30])
def test_a_damaged_line_costs_no_other_and_is_named(tmp_path, damaged, reason, behind):
    """Whether the next quote is far behind it, or there is none up to the end of the file."""
    good = [b",,%d.png,thing,C" % i for i in range(60)] + [b',,q.png,"a, b",C'] * bool(behind)
    lines = [HEADER.encode(), *good[:60], damaged, *good[60:], *good[:behind]]
    listing = listed(tmp_path, b"\r\n".join(lines))
    assert [(row.row, row.reason) for row in listing.quarantined] == [(62, reason)]
    assert listing.table.num_rows == len(lines) - 2


@settings(max_examples=60, deadline=None)
@given(
    at=st.integers(0, 20),
    what=st.lists(
        st.sampled_from([b'"', b'""', b",", b"\xff", b"\0", b"\xed\xa0\x80", b"'", b"\\", b'"a"b"']), min_size=1
    ),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_whatever_is_in_a_line_costs_no_other(tmp_path_factory, at, what, end):
    rows = [b',m.png,%d.png,"a ""new"", red jar",C' % i if i % 2 else b",m.png,%d.png,a jar,C" % i for i in range(9)]
    rows[4] = rows[4][:at] + b"".join(what) + rows[4][at:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        listing = listed(tmp_path_factory.mktemp("set"), end.join([HEADER.encode(), *rows]))
    found = [row.image for row in rows_of(listing)]
    others = [f"{i}.png" for i in range(9) if i != 4]
    assert [name for name in found if name in others] == others
    assert len(found) + len(listing.quarantined) == 9


@pytest.mark.parametrize("behind", ["", ",,b.png,x,C\n"])
def test_what_stands_behind_an_open_quote_is_read_for_itself(tmp_path, behind):
    """Damaged or not: also where it is no row, and where it has an open quote of its own."""
    text = f'{HEADER}\n,,a.png,"red,C\n,,/etc/hostname,x,C\n,,c\n,,d.png,"red,C\n{behind}'
    listing = listed(tmp_path, text)
    reasons = [Reason.OPEN_QUOTE, Reason.OUTSIDE_ROOT, Reason.TOO_FEW_FIELDS, Reason.OPEN_QUOTE]
    assert [(row.row, row.reason) for row in listing.quarantined] == list(zip(range(2, 6), reasons, strict=True))
    assert listing.table.num_rows == bool(behind)


def test_an_open_quote_before_more_than_a_cell_may_hold_costs_its_line(tmp_path):
    listing = listed(tmp_path, f'{HEADER}\n,,a.png,"red,C\n' + ",,photo,x,C\n" * 20_000)
    assert [row.row for row in listing.quarantined] == [2] and listing.table.num_rows == 20_000


def test_a_cell_may_have_lines_of_its_own_and_a_row_empty_cells_too_many(tmp_path):
    text = f'{HEADER}\n,,a.png,"a jar,\nred, shiny, new,\n\nold",C,,\n,,b.png,"x",C\n'
    assert [(row.prompt, row.line) for row in rows_of(listed(tmp_path, text))] == [
        ("a jar,\nred, shiny, new,\n\nold", 2),
        ("x", 6),
    ]
    text = 'prompt,output\n"two\nlines",a.png\n"three\n\nlines, see b.png",c.png\n'
    assert [(row.prompt, row.image) for row in rows_of(listed(tmp_path, text))] == [
        ("two\nlines", "a.png"),
        ("three\n\nlines, see b.png", "c.png"),
    ]


@pytest.mark.parametrize("behind", ['x",C', '"x",C'], ids=["closed later", "another cell's"])
def test_a_quote_that_may_have_swallowed_rows_is_told(tmp_path, behind):
    """Names without a known extension: whether a line in the cell is a row, nobody can tell."""
    text = f'{HEADER}\n,,a,y,C\n,,b,"red,C\n,,c,x,C\n,,d,x,C\n,,e,{behind}\n,,f,x,C\n'
    with pytest.warns(UserWarning, match="1 rows have lines within quotes, 3 in all .*begins in line 3"):
        assert listed(tmp_path, text).table.num_rows == 3


def test_columns_that_nobody_knows_are_named(tmp_path):
    with pytest.warns(UserWarning, match="not read: column 'Mask_path', 'caption'; known are input, mask, output"):
        assert listed(tmp_path, "output,prompt,Mask_path,,caption\na.png,x,m.png,,y\n").table.num_rows == 1


def test_files_that_are_no_csv_are_refused(tmp_path):
    with pytest.raises(InpaintError, match="no such file"):
        CsvSource(path=tmp_path / "absent.csv").listing()
    with pytest.raises(InpaintError, match="line 1: the line is not UTF-8"):
        listed(tmp_path, f"{HEADER},caf".encode() + b"\xe9\n,,o.png,x,C,\n")
    with pytest.raises(InpaintError, match="cannot open this URL"):
        CsvSource(path="gopher://x/set.csv").listing()


def test_a_folder_is_walked_in_order_with_its_captions(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.webp", "notes.md", "sub/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b.txt").write_text("a bowl\n")
    (tmp_path / "sub/d.txt").write_text(" ")
    rows = rows_of(FolderSource(path=tmp_path, prompt="a thing", category="C", repeats=3).listing())
    assert [(r.image, r.caption, r.prompt) for r in rows] == [
        ("a.JPG", None, "a thing"),
        ("b.png", "b.txt", "a thing"),
        ("sub/c.webp", None, "a thing"),
        ("sub/d.png", "sub/d.txt", "a thing"),
    ]
    assert {(r.category, r.repeats, r.root) for r in rows} == {("C", 3, str(tmp_path))}
    strict = FolderSource(path=tmp_path, captions=Captions.REQUIRED).listing()
    assert [(r.image, r.prompt) for r in rows_of(strict)] == [("b.png", None), ("sub/d.png", None)]
    assert [(q.row, q.name, q.reason) for q in strict.quarantined] == [
        (1, "a.JPG", Reason.EMPTY_PROMPT),
        (3, "sub/c.webp", Reason.EMPTY_PROMPT),
    ]
    with pytest.raises(InpaintError, match="no such folder"):
        FolderSource(path=tmp_path / "absent").listing()


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    def refuse(root):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Root, "files", refuse)
    with pytest.raises(InpaintError, match="cannot be listed: .*Permission denied"):
        FolderSource(path=tmp_path).listing()


@pytest.mark.timeout(20)
def test_links_pipes_and_odd_names_below_a_folder(tmp_path):
    """A loop of links lists nothing twice, and what cannot be read is named, not waited for."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "photo.png").write_bytes(images.encoded(images.picture()))
    (tmp_path / "a" / "again").symlink_to("..")
    (tmp_path / "0-first").symlink_to("a")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to("nothing.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "phone.HEIC").write_bytes(b"")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb"):
        pass
    listing = FolderSource(path=tmp_path).listing()
    assert [row.image for row in rows_of(listing)] == ["a/photo.png", "gone.png", "loop.png", "phone.HEIC", "pipe.png"]
    assert [(row.name, row.reason) for row in listing.quarantined] == [("'caf\\udce9.png'", Reason.NOT_UTF8)]
    expected = {"pipe.png": Reason.MISSING_FILE, "gone.png": Reason.MISSING_FILE, "loop.png": Reason.UNREADABLE}
    for name, reason in expected.items():
        with pytest.raises(BadRow) as caught:
            read(open_root(tmp_path), name, "output", 1000, retries=(60,))  # nothing of this passes
        assert caught.value.reason == reason
    with pytest.raises(InpaintError, match="no such file"), opened(tmp_path / "pipe.png"):
        pass


def test_captions_that_nobody_reads_are_not_opened(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (row,) = rows_of(FolderSource(path=tmp_path, captions=Captions.UNREAD, prompt="a thing").listing())
    assert (row.caption, row.prompt) == (None, "a thing")


def test_files_that_are_left_out_are_counted(tmp_path):
    """A caption without its image, and images by unknown names; but not what systems and our own jobs put there."""
    for name in ("composites.jsonl", "quarantine.jsonl"):
        (tmp_path / name).write_bytes(b"")
    for name in ("a.png", "a.txt", "b.txt", "sub/c.psd", "d.psd", "license", ".DS_Store", "sub/Thumbs.db", "e.JFIF"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    told = r"4 files are not read, .*: 2 \.psd, 1 \.txt, 1 no extension \(the first: b\.txt\)"
    with pytest.warns(UserWarning, match=told):
        rows = rows_of(FolderSource(path=tmp_path).listing())
    assert [row.image for row in rows] == ["a.png", "e.JFIF"]


def test_a_category_beside_folders_that_name_theirs_is_refused(tmp_path):
    with pytest.raises(InpaintError, match="category 'C' of .* give one of them"):
        FolderSource(path=tmp_path, category="C", folder_names=FolderNames.CATEGORY)


@pytest.mark.parametrize("what", ["category", "label"])
def test_a_folders_name_is_the_category_or_the_label(tmp_path, what):
    for name in ("a.png", "x/b.png", "x/y/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    rows = rows_of(FolderSource(path=tmp_path, folder_names=FolderNames(what)).listing())
    assert [vars(row)[what] for row in rows] == [None, "x", "y"]
    assert {vars(row)["label" if what == "category" else "category"] for row in rows} == {None}


def test_folders_say_repeats_and_what_is_in_them_as_kohyas_do(tmp_path):
    for name in ("a.png", "6_handbag/b.png", "6_handbag/red/9_x/c.png", "img/2_a red shoe/d.png", "x_6/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"x")
    source = FolderSource(path=tmp_path, folder_names=FolderNames.REPEATS, repeats=3, prompt="p")
    found = {row.image[-5]: (row.repeats, row.prompt) for row in rows_of(source.listing())}
    shoe = (2, "a red shoe")
    assert found == {"a": (3, "p"), "b": (6, "handbag"), "c": (6, "handbag"), "d": shoe, "e": (3, "p")}
    (tmp_path / "0_none").mkdir()
    (tmp_path / "0_none" / "f.png").write_bytes(b"x")
    with pytest.raises(InpaintError, match="folder 0_none: its images shall come 1 to 9999 times"):
        source.listing()


def test_repeats_are_read_and_a_wrong_one_is_named(tmp_path):
    text = "output,prompt,repeats\na.png,x,3\nb.png,x,\nc.png,x,0\nd.png,x,often\n"
    listing = listed(tmp_path, text)
    assert [(row.image, row.repeats) for row in rows_of(listing)] == [("a.png", 3), ("b.png", 1)]
    assert [(q.row, q.field, q.reason) for q in listing.quarantined] == [
        (4, "repeats", Reason.NOT_A_COUNT),
        (5, "repeats", Reason.NOT_A_COUNT),
    ]


def test_what_looks_doubtful_is_looked_at_closely_and_used(tmp_path):
    """Paths that no pattern vouches for take the same way as ever, and keep their place."""
    odd = ["./a//b.png", ".hidden/c.png", "a~b.png", "d.png"]
    rows = rows_of(listed(tmp_path, "output,prompt\n" + "".join(f"{path},p{i}\n" for i, path in enumerate(odd))))
    assert [(r.image, r.prompt) for r in rows] == [
        ("a/b.png", "p0"),
        (".hidden/c.png", "p1"),
        ("a~b.png", "p2"),
        ("d.png", "p3"),
    ]


def test_a_long_csv_is_listed_as_a_short_one(tmp_path, monkeypatch):
    lines = [f",m{i % 3}.png,{i}.png,thing {i},C{i % 2}" if i % 5 else ",,,," for i in range(1, 40)] + [",,,x,C"]
    text = "\n".join([HEADER, *lines])
    whole = listed(tmp_path, text)
    monkeypatch.setattr(sources, "CHUNK", 7)
    parts = listed(tmp_path, text)
    assert parts.table.to_pylist() == whole.table.to_pylist() and parts.quarantined == whole.quarantined
    assert [row.line for row in rows_of(whole)] == [i + 1 for i in range(1, 40) if i % 5]
    assert [row.row for row in whole.quarantined] == [41]


def test_joined_sources_keep_their_shares_and_name_their_folders(tmp_path):
    for name in ("one/a.png", "two/b.png", "two/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "one" / "a.txt").write_text("a jar")
    one = FolderSource(path=tmp_path / "one", captions=Captions.REQUIRED)
    two = FolderSource(path=tmp_path / "two", prompt="a thing", weight=0.5)
    listing = JoinedSource(parts=((one, 2), (two, 1))).listing()
    assert listing.shares == (2, 1)
    assert [(r.root, r.image, r.source, r.weight) for r in rows_of(listing)] == [
        (str(tmp_path / "one"), "a.png", 0, 1.0),
        (str(tmp_path / "two"), "b.png", 1, 0.5),
        (str(tmp_path / "two"), "c.png", 1, 0.5),
    ]
    (tmp_path / "one" / "bare.png").write_bytes(b"x")
    (bad,) = JoinedSource(parts=((one, 1),)).listing().quarantined
    assert bad.name == str(tmp_path / "one" / "bare.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InpaintError, match="no usable rows, so that its share cannot be kept: it lists none"):
        JoinedSource(parts=((one, 1), (FolderSource(path=tmp_path / "empty"), 1))).listing()
    with pytest.raises(InpaintError, match="(?s)its share cannot be kept: .*b.png.*write a caption into b.txt"):
        JoinedSource(parts=((replace(two, captions=Captions.REQUIRED), 1),)).listing()
    with pytest.raises(InpaintError, match="each 1 or more"):
        JoinedSource(parts=((one, 0),))


@pytest.fixture
def small_set(tmp_path):
    folder = tmp_path / "deep" / "set"
    folder.mkdir(parents=True)
    (folder / "o.png").write_bytes(images.encoded(images.picture()))
    (folder / "set.csv").write_text("output,prompt\no.png,a jar\n")
    return folder


@pytest.mark.parametrize("kind", ["path", "url", "remote"])
def test_local_paths_and_urls(small_set, kind):
    path = str(small_set / "set.csv")
    if kind == "url":
        path = small_set.as_uri() + "/set.csv"
    elif kind == "remote":
        path = "fsspec+memory://bucket/deep/set.csv"
        for name in ("set.csv", "o.png"):
            fsspec.filesystem("memory").pipe(f"/bucket/deep/{name}", (small_set / name).read_bytes())
    (row,) = rows_of(CsvSource(path=path).listing())
    root = open_root(row.root)
    assert root.is_local == (kind != "remote")
    assert read(root, row.image, "output", 10**6) == (small_set / "o.png").read_bytes()
    with pytest.raises(BadRow) as caught:
        read(root, "absent.png", "output", 10**6)
    assert caught.value.reason == Reason.MISSING_FILE


@pytest.mark.parametrize("kind", ["path", "url"])
def test_a_link_out_of_the_root_is_refused(small_set, kind):
    (small_set.parent / "secret.png").write_bytes(b"secret")
    (small_set / "link.png").symlink_to(small_set.parent / "secret.png")
    (small_set / "inside.png").symlink_to(small_set / "o.png")
    root = open_root(small_set if kind == "path" else small_set.as_uri())
    with pytest.raises(BadRow) as caught:
        read(root, "link.png", "output", 10**6)
    assert caught.value.reason == Reason.OUTSIDE_ROOT
    assert read(root, "inside.png", "output", 10**6) == (small_set / "o.png").read_bytes()


def test_a_root_may_itself_be_a_link(small_set, tmp_path):
    (tmp_path / "alias").symlink_to(small_set)
    assert read(open_root(tmp_path / "alias"), "o.png", "output", 10**6)


def test_a_passing_error_is_tried_again_and_a_lasting_one_is_reported(small_set, monkeypatch):
    attempts = []

    def flaky(path, mode, opener):
        attempts.append(path)
        if len(attempts) < limit:
            raise OSError(5, "Input/output error")
        return open(path, mode, opener=opener)

    monkeypatch.setattr("inpaint.data.files.open", flaky, raising=False)
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
        assert CsvSource(path=tmp_path / "other.csv").listing().table.num_rows == 1
