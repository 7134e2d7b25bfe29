"""The bytes of a row's files.

Guarantee: nothing outside the root is read: absolute paths, `..`, URLs and symlinks that leave it are refused.
"""

import os
import posixpath
import re
import time
from errno import ELOOP, ENAMETOOLONG
from functools import lru_cache
from stat import S_ISREG

from inpaint.data.quarantine import Reason
from inpaint.data.storage import Root, Stat
from inpaint.errors import BadRow

PLAIN = re.compile(r"([^/\\:.~\0][^/\\:\0]*/)*[^/\\:.~\0][^/\\:\0]*$")  # no part begins with a dot, no URL, no drive
RETRIES = (0.2, 1.0)  # seconds before the second and the third attempt at an I/O error that may pass
LASTING = (ELOOP, ENAMETOOLONG)
_real_root = lru_cache(maxsize=64)(os.path.realpath)


def check_relative(path: str, field: str) -> str:
    """The normalised form of a path as written in a source. Raises BadRow for what may leave the root."""
    if PLAIN.match(path):
        return path
    if "://" in path or path.lower().startswith(("data:", "http:", "https:")):
        raise BadRow(field, Reason.URL, f"{path!r}: fetch the file and write its path relative to the source")
    if path.startswith(("/", "\\", "~")) or path[1:2] == ":":
        raise BadRow(field, Reason.OUTSIDE_ROOT, f"{path!r} is absolute: write a path relative to the source")
    if ".." in path.replace("\\", "/").split("/"):
        raise BadRow(field, Reason.OUTSIDE_ROOT, f"{path!r} leaves the source's folder: move the file below it")
    if "\0" in path:
        raise BadRow(field, Reason.OUTSIDE_ROOT, f"{path!r} holds a NUL character")
    return posixpath.normpath(path)


def read(root: Root, relative: str, field: str, max_bytes: int, retries: tuple[float, ...] = RETRIES) -> bytes:
    """The bytes of one file below `root`.

    Raises BadRow: missing, a directory, more than `max_bytes`, outside the root, or unreadable after `retries`.
    """
    for delay in (*retries, None):
        try:
            return _read_once(root, relative, field, max_bytes)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            hint = "; write forward slashes" if "\\" in relative else ""
            raise BadRow(field, Reason.MISSING_FILE, f"{relative!r} is not a file below {root.path}{hint}") from error
        except PermissionError as error:
            raise BadRow(field, Reason.UNREADABLE, f"{relative!r}: no permission to read it") from error
        except OSError as error:
            if delay is None or error.errno in LASTING:
                raise BadRow(field, Reason.UNREADABLE, f"{relative!r}: {error}") from error
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def _read_once(root: Root, relative: str, field: str, max_bytes: int) -> bytes:
    path = root.join(relative)
    if root.is_local:
        real, base = os.path.realpath(path), _real_root(root.path)
        if os.path.commonpath([real, base]) != base:
            raise BadRow(field, Reason.OUTSIDE_ROOT, f"{relative!r} is a link out of {root.path}: copy the file in")
        # A pipe or a device would keep its reader waiting.
        with open(real, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            if not S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FileNotFoundError(f"{real} is no regular file")
            data = file.read(max_bytes + 1)
    else:
        with root.filesystem.open_input_stream(path) as stream:
            data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise BadRow(field, Reason.TOO_MANY_BYTES, f"{relative!r} has more than {max_bytes:,} bytes: make it smaller")
    return data


def stat(root: Root, relative: str) -> Stat:
    """Of one file below `root`."""
    try:
        info = root.filesystem.get_file_info(root.join(relative))
    except OSError:
        return Stat(None, None)  # whether it can be read is `read`'s to say
    return Stat(info.size, info.mtime_ns)
