"""Files and folders at a path or an object-store URL, through pyarrow filesystems.

Guarantee: what `written` and `write_file` write is there whole or not at all.
"""

import atexit
import os
import posixpath
import tempfile
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from inpaint.errors import InpaintError


class Stat(NamedTuple):
    """What is known of a file without opening it."""

    size: int | None
    """Bytes."""
    mtime_ns: int | None
    """Time of its last change, nanoseconds since 1970."""


@dataclass(frozen=True)
class Root:
    """A folder on a filesystem. Pickles, so that workers can read below it."""

    filesystem: pafs.FileSystem
    path: str

    def __str__(self) -> str:
        return self.path

    @property
    def is_local(self) -> bool:
        return self.filesystem.type_name == "local"

    def join(self, relative: str) -> str:
        return posixpath.join(self.path, relative) if self.path else relative

    def at(self, relative: str) -> "Root":
        """What lies below: any name as it is, where a URL gives a meaning to `#`, `?` and `%`."""
        return Root(self.filesystem, self.join(relative))

    def files(self) -> dict[str, Stat]:
        """Every file below, by its path from here. What is a file by its name alone (a pipe, a link to nothing) is
        among them, with no size. Raises OSError where there is no folder."""
        if self.is_local:
            return dict(_local_files(self.path))
        above = self.path.rstrip("/") + "/" if self.path else ""
        infos = self.filesystem.get_file_info(pafs.FileSelector(self.path, recursive=True))
        return {i.path.removeprefix(above): Stat(i.size, i.mtime_ns) for i in infos if i.is_file}


def _local_files(top: str) -> Iterator[tuple[str, Stat]]:
    """Folders that links lead to again are listed once, and under their own path where they have one below."""
    seen: set[tuple[int, int]] = set()
    folders, linked = deque([""]), deque[str]()
    while folders or linked:
        below = (folders or linked).popleft()
        info = os.stat(posixpath.join(top, below))
        if (info.st_dev, info.st_ino) in seen:
            continue
        seen.add((info.st_dev, info.st_ino))
        for entry in sorted(os.scandir(posixpath.join(top, below)), key=lambda entry: entry.name):
            path = posixpath.join(below, entry.name)
            try:
                info = entry.stat()
            except OSError:  # a link to nothing, or to itself
                yield path, Stat(None, None)
                continue
            if S_ISDIR(info.st_mode):
                (linked if entry.is_symlink() else folders).append(path)
            elif S_ISREG(info.st_mode):
                yield path, Stat(info.st_size, info.st_mtime_ns)
            else:
                yield path, Stat(None, None)


Where = str | os.PathLike[str] | Root
"""A local path, or a URL that pyarrow knows (`file://`, `s3://`, `gs://`, `fsspec+...://`); or what is open already. A
server of one's own is named as pyarrow does: `s3://bucket/folder?endpoint_override=HOST:PORT&scheme=http`."""


def open_root(where: Where) -> Root:
    """The file or folder at `where`. Raises InpaintError for URLs of unknown stores."""
    if isinstance(where, Root):
        return where
    text = absolute(where)
    return _connected(_below(text)) if "://" in text else Root(pafs.LocalFileSystem(), text)


def absolute(where: str | os.PathLike[str]) -> str:
    """The same path or URL for a process in another directory."""
    text = os.fspath(where)
    return text if "://" in text else os.path.abspath(text)


def _below(url: str) -> str:
    """What is joined to the end of a URL lies below its path: `s3://bucket/run?scheme=http/data` is
    `s3://bucket/run/data?scheme=http`. A query's own slashes are written `%2F`."""
    path, mark, query = url.partition("?")
    query, slash, below = query.partition("/")
    return f"{path}{slash}{below}{mark}{query}"


@lru_cache(maxsize=256)  # so that each process connects once
def _connected(url: str) -> Root:
    try:
        return Root(*pafs.FileSystem.from_uri(url))
    except (ValueError, OSError) as error:
        raise InpaintError(f"{url}: pyarrow cannot open this URL: {error}") from error


@contextmanager
def opened(where: Where) -> Iterator[pa.NativeFile]:
    """The file at `where`, to be read. Raises InpaintError where it cannot be opened."""
    root = open_root(where)
    try:
        if root.is_local and not S_ISREG(os.stat(root.path).st_mode):
            raise FileNotFoundError(f"{where} is no regular file")  # a pipe would keep its reader waiting
        file = root.filesystem.open_input_file(root.path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise InpaintError(f"{where}: there is no such file") from error
    except OSError as error:
        raise InpaintError(f"{where}: cannot be read: {error}") from error
    with file:
        yield file


@contextmanager
def written(where: Where) -> Iterator[BinaryIO]:
    """A file to be written, which is at `where` when the block ends without an error: whole or not at all, for it is
    written aside."""
    root = open_root(where)
    name = f"{uuid.uuid4().hex}.tmp"
    aside = Path(f"{root.path}.{name}") if root.is_local else Path(tempfile.gettempdir(), name)
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        with aside.open("xb") as file:
            yield file
        if root.is_local:
            os.replace(aside, root.path)
        else:
            pafs.copy_files(str(aside), root.path, pafs.LocalFileSystem(), root.filesystem)
    finally:
        aside.unlink(missing_ok=True)


def exists(where: Where) -> bool:
    """Whether there is a file at `where`."""
    root = open_root(where)
    return bool(root.filesystem.get_file_info(root.path).type == pafs.FileType.File)


def write_file(folder: Where, relative: str, data: bytes) -> None:
    """Write one file below a folder, whole or not at all."""
    with written(open_root(folder).at(relative)) as file:
        file.write(data)


def read_file(folder: Where, relative: str) -> bytes | None:
    """What `write_file` wrote, or None where there is no such file."""
    where = open_root(folder).at(relative)
    if not exists(where):
        return None
    with opened(where) as file:
        return bytes(file.read())


@contextmanager
def output_folder(where: str) -> Iterator[Path]:
    """A local folder whose files are at `where` (a path or an object-store URL) at the end, even after an error: for
    libraries that write folders themselves."""
    if "://" not in where:
        Path(where).mkdir(parents=True, exist_ok=True)
        yield Path(where)
        return
    with tempfile.TemporaryDirectory() as temporary:
        try:
            yield Path(temporary)
        finally:
            target = open_root(where)
            target.filesystem.create_dir(target.path, recursive=True)
            pafs.copy_files(temporary, target.path, pafs.LocalFileSystem(), target.filesystem)


@lru_cache
def fetched(url: str) -> Path:
    """A copy of the file or folder at a URL, for as long as this process lives. Raises InpaintError where nothing is
    there."""
    root, copies = open_root(url), tempfile.TemporaryDirectory(prefix="inpaint-")
    kind = root.filesystem.get_file_info(root.path).type
    if kind == pafs.FileType.NotFound:
        raise InpaintError(f"{url}: nothing is there")
    target = Path(copies.name, posixpath.basename(root.path.rstrip("/")))
    if kind == pafs.FileType.Directory:
        target.mkdir()
    pafs.copy_files(root.path, str(target), root.filesystem, pafs.LocalFileSystem())
    atexit.register(copies.cleanup)
    return target
