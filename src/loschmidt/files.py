"""Files that are complete or not there."""

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import LoschmidtError, NotWritten

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}


def not_written(path: str | os.PathLike, error: OSError) -> NotWritten:
    """The error for a failed write, with a remedy that fits."""
    if error.errno in _FULL:
        why, remedy = "the disk is full", "make room, and go on: what was written before is whole."
    elif error.errno in _CLOSED:
        why, remedy = f"it may not be written to ({error.strerror})", "choose another place, or change its permissions."
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
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    except OSError as error:
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


def write_new(path: Path, data: bytes) -> None:
    """Write a file that nothing refers to yet, and see it to the disk."""
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


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
