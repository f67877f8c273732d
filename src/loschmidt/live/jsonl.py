"""Metrics as JSON lines: whole lines as they come, readable at any time and after any end."""

import json
import os
import time
import warnings
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from ..errors import DamagedFile, InvalidSetting
from ..files import finite, not_written
from .metrics import FIELDS, EachStep, Record

_FORMAT = 1
_MARK = b'{"loschmidt": "metrics"'
_BLOCK = 1 << 16


class JSONL(EachStep):
    """Writes records to a file of JSON lines. Call it with a record; the first line says what the fields mean.

    Guarantees: each record is one write of one whole line at the end of the file, at once. A killed process leaves
    whole lines; a machine that stops may lose the newest and leave one torn, which `read` skips. Opening the file
    again cuts a torn line and goes on below. NaN and infinities become null.

    A run that was killed and goes on from its last commit takes some steps again; their lines are there twice.

    Args:
        path: the file; folders are made.
        every: only steps that this divides are written.
        fields: what the fields mean, by name, for the first line.

    Raises:
        InvalidSetting: the file is something else, or `every` is not a positive integer.
        NotWritten: it cannot be written to; also later, at a record that a full disk has no room for: what was
            written of it is cut away.
    """

    def __init__(self, path: str | os.PathLike, every: int = 1, fields: Record = FIELDS):
        super().__init__(every)
        self.path, self._opened = Path(path), time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(self.path, "a+")
        except OSError as error:
            raise not_written(path, error) from error
        try:
            self._cut_torn_line()
            if self._file.seek(0, os.SEEK_END) == 0:
                self._put({"loschmidt": "metrics", "format": _FORMAT, "fields": fields})
        except BaseException:
            self._file.close()
            raise

    def write(self, record: Record) -> None:
        """Write a record, whatever its step; "seconds" and "time" are added."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._put({**record, "seconds": round(time.monotonic() - self._opened, 6), "time": stamp})

    def close(self) -> None:
        """Close the file. Nothing is lost without it."""
        self._file.close()

    def _put(self, fields: Record) -> None:
        if self._file.closed:
            raise InvalidSetting(f"{self.path} was closed.", "open it again: it goes on below the last line.")
        try:
            line = _json(fields).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise InvalidSetting(f"a record cannot be written: {error}.", "use numbers and texts.") from error
        done = 0
        try:
            while done < len(line):  # more than once only where the disk gets full
                done += self._file.write(line[done:])
        except OSError as error:
            if done:
                self._file.truncate(self._file.tell() - done)
            raise not_written(self.path, error) from error

    def _cut_torn_line(self) -> None:
        end = keep = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        if not _ours(self._file.read(len(_MARK))):
            raise InvalidSetting(f"{self.path} exists and holds something else.", "choose another name.")
        while keep > 0:
            start = max(0, keep - _BLOCK)
            self._file.seek(start)
            at = self._file.read(keep - start).rfind(b"\n")
            keep = start + at + 1
            if at >= 0:
                break
        if keep < end:
            self._file.truncate(keep)


def _ours(head: bytes) -> bool:
    """Whether a file begins like one of metrics: perhaps empty, perhaps torn in its first line."""
    return _MARK.startswith(head[: len(_MARK)])


def _plain(value: Any) -> Any:
    """Tensors and arrays as numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


_ENCODER = json.JSONEncoder(allow_nan=False, default=_plain)


def _json(fields: Record) -> str:
    try:
        return _ENCODER.encode(fields)
    except ValueError:  # rare: something is not finite
        return _ENCODER.encode(finite(json.loads(json.dumps(fields, default=_plain))))


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a file that `JSONL` wrote, in the order written; also while it is being written.

    A torn last line is skipped, with a warning.

    Raises:
        DamagedFile: not such a file, or a line other than the last that is not whole.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}.", "check the path.") from error
    if not _ours(data):
        raise DamagedFile(f"{path} is not a file of metrics.", "pass a file that loschmidt.live.JSONL wrote.")
    *lines, torn = data.split(b"\n")
    head, *found = [_parsed(path, number, line) for number, line in enumerate(lines, 1)] or [{"format": _FORMAT}]
    if head.get("format") != _FORMAT:
        raise DamagedFile(f"{path} has format {head.get('format')}, not {_FORMAT}.", "use a newer loschmidt.")
    if torn:
        warnings.warn(f"the last line of {path} is torn, and was skipped.", stacklevel=2)
    return found


def _parsed(path: str | os.PathLike, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise DamagedFile(f"line {number} of {path} is not a record: {error}.", "take that line out.") from error
    return value
