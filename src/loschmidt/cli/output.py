"""What is printed may not arrive: a full disk, or a reader who has seen enough."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO


class Unwritten(OSError):
    """Standard output, or standard error, does not take what is written to it."""


class _Watched:
    """A stream whose errors can be told from those of other files."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._marked():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._marked():
            self._stream.flush()

    @contextmanager
    def _marked(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with suppress(OSError, ValueError):  # what is left in buffers goes nowhere, so that Python can end in peace
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise Unwritten(*error.args) from error


@contextmanager
def watched() -> Iterator[None]:
    """Raise Unwritten where standard output or standard error cannot be written."""
    out, err = (None if stream is None else _Watched(stream) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        yield
        if out is not None:
            out.flush()
