"""Files that are complete or not there."""

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import LoschmidtError, NotWritten

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR}


def not_written(path: str | os.PathLike, error: OSError) -> NotWritten:
    """The error for a failed write, with a remedy that fits."""
    if error.errno in _FULL:
        why, remedy = "the disk is full", "make room, and go on: what was written before is whole."
    elif error.errno in _CLOSED:
        why, remedy = f"it may not be written to ({error.strerror})", "choose another place, or change its permissions."
    elif error.errno in _IN_THE_WAY:
        why, remedy = "a file is where a folder should be", "choose another place, or move that file away."
    else:
        why, remedy = str(error.strerror or error), "choose another place."
    return NotWritten(f"{path} cannot be written: {why}.", remedy)


@contextmanager
def written_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path to write to; on leaving without an error it takes the place of `path`.

    Raises:
        NotWritten: the folder cannot be written to, or is full. What was at `path` still is.
    """
    path = Path(path)
    try:
        _refuse_special(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = _temporary_beside(path)
    except OSError as error:
        if isinstance(error, LoschmidtError):
            raise
        raise not_written(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, LoschmidtError):
            raise
        raise not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_beside(path: Path) -> tuple[int, str]:
    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)


def _refuse_special(path: Path) -> None:
    """What is there would be replaced: a file may be, /dev/null may not."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise NotWritten(f"{path} cannot be written: it is {what}.", "give the path of a file.")


def write_new(path: Path, data: bytes) -> None:
    """Write a file that nothing refers to yet, and see it to the disk. A link in its place is removed, not followed."""
    if os.path.lexists(path):
        path.unlink()
    with open(path, "xb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def make_folder(path: str | os.PathLike) -> None:
    """Make a folder, and those above it; NotWritten if nothing can be written into it."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise not_written(path, error) from error


def refuse_unwritable(path: str | os.PathLike) -> None:
    """Raise NotWritten if a file cannot be written there, before long work: it is tried.

    A temporary file is written in its folder, which is made if need be; then both are removed again. What the disk
    holds later, nobody knows.
    """
    path, made = Path(path).absolute(), list[Path]()
    try:
        _refuse_special(path)
        for folder in reversed(path.parents):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        handle, name = _temporary_beside(path)
        try:
            os.write(handle, b"tried")
            os.fsync(handle)
        finally:
            os.close(handle)
            os.unlink(name)
    except OSError as error:
        if isinstance(error, LoschmidtError):
            raise
        raise not_written(path, error) from error
    finally:
        for folder in reversed(made):
            with suppress(OSError):  # somebody else uses it by now
                folder.rmdir()


def size(count: float) -> str:
    """A number of bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def sync_folder(path: Path) -> None:
    """See the names in a folder to the disk (where the system can: Windows cannot)."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON, indented; numbers that are not finite become null."""
    with written_atomically(path) as temporary:
        temporary.write_text(json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same with None for NaN and infinities."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
