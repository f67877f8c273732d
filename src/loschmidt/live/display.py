"""Progress, behind a small protocol: what a job tells, what shows it, and lines for a log."""

import sys
import time
from contextlib import suppress
from typing import IO, Any, Protocol, Self, runtime_checkable

from .job import Job, printable

_AT_MOST = 0.01  # of the time goes into drawing
_LINE_EVERY = 10.0  # seconds between lines of a log, at least
_LINE_SHARE = 0.1  # of the job between lines,
_LINE_LATEST = 600.0  # or so many seconds


@runtime_checkable
class Display(Protocol):
    """Where progress goes. Several jobs may run at once; a display may be used again.

    `with display: ...` ends, on leaving, the jobs that began inside, and says what stopped them.
    """

    def begin(self, job: str, total: int | None) -> None:
        """A job begins, of so many steps (None: not known). If it is running already, its total is set anew."""

    def update(self, job: str, done: int, /, **facts: Any) -> None:
        """So many steps are done. Facts are shown beside: numbers, tensors of one element, texts, functions."""

    def end(self, job: str, note: str = "") -> None:
        """The job is over: complete, or, if there is a note, for that reason."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...


class Silent:
    """Shows nothing."""

    def begin(self, job: str, total: int | None) -> None:
        """Nothing."""

    def update(self, job: str, done: int, /, **facts: Any) -> None:
        """Nothing."""

    def end(self, job: str, note: str = "") -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


class Plain:
    """Lines for a log: one when a job begins, one when it ends, and few in between.

    In between there is a line when 10 s have passed since the last one and another tenth of the job is done, or
    10 minutes have passed. No carriage returns, no escape codes. It is the base of the other displays too, which
    draw where this prints.

    What drawing costs is measured: the next drawing waits until the last one was at most 1 % of the time, so that
    a slow terminal does not slow the run. If the place to write to is gone (a closed terminal, a full disk), the
    display goes silent, and the run goes on.

    Args:
        file: where to; stderr by default.
    """

    interval = 1.0  # seconds between looks at what to draw

    def __init__(self, file: IO[str] | None = None):
        self.file, self.jobs = file, {}
        self._level, self._due, self._gone = 0, 0.0, False
        self._lines: dict[Job, tuple[float, int]] = {}  # time and count of a job's last line

    def begin(self, job: str, total: int | None) -> None:
        """A job begins, of so many steps; None if that is not known. If it is running, its total is set anew."""
        if job in self.jobs and self.jobs[job].note is None:
            self.jobs[job].total = total
            return
        self.jobs[job] = Job(total, self._level)
        self._draw(self._begun, job)

    def update(self, job: str, done: int, /, **facts: Any) -> None:
        """So many steps are done.

        Args:
            job: its name; a job that did not begin begins here.
            done: steps done.
            **facts: shown beside; a tensor or a function is only read when something is drawn.
        """
        if job not in self.jobs:
            self.begin(job, None)
        entry = self.jobs[job]
        entry.done, entry.facts = done, facts
        if time.monotonic() >= self._due:
            self._draw(self._running)

    def end(self, job: str, note: str = "") -> None:
        """The job is over: complete, or, if there is a note, for that reason."""
        if job not in self.jobs:
            self.begin(job, None)
        self.jobs[job].end(note)
        self._draw(self._ended, job)
        if not self._level and all(entry.note is not None for entry in self.jobs.values()):
            self._draw(self._close)

    def __enter__(self) -> Self:
        self._level += 1
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        why = "stopped" if kind is None else f"stopped by {kind.__name__}"
        for name, entry in list(self.jobs.items()):
            if entry.note is None and entry.level >= self._level:
                self.end(name, f"{why} at {entry.done:,}" + (f" of {entry.total:,}" if entry.total else ""))
        self._level -= 1
        if not self._level:
            self._draw(self._close)

    def _draw(self, what: Any, *arguments: Any) -> None:
        if self._gone:
            return
        began = time.monotonic()
        try:
            what(*arguments)
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not getattr(self._file(), "closed", False):
                raise  # a mistake in a fact; writing to a closed file is a ValueError, too
            self._gone = True
            with suppress(OSError, ValueError):
                self._close()
        now = time.monotonic()
        self._due = now + max(self.interval, (now - began) / _AT_MOST)

    # -- what the other displays do in their own way -------------------------------------------------

    def _begun(self, job: str) -> None:
        self._lines[self.jobs[job]] = time.monotonic(), 0
        self._print(f"{job} ...")

    def _running(self) -> None:
        now = time.monotonic()
        for name, job in self.jobs.items():
            last, done = self._lines[job]
            much = job.total is None or job.done - done >= _LINE_SHARE * job.total
            if now - last >= (_LINE_EVERY if much else _LINE_LATEST) and job.done > done:
                self._lines[job] = now, job.done
                self._print(f"{name}: {job.says(now)}")

    def _ended(self, job: str) -> None:
        entry = self.jobs.pop(job)
        self._lines.pop(entry, None)
        self._print(f"{job}: {entry.says(time.monotonic())}")

    def _close(self) -> None:
        """Nothing is left to draw."""

    def _print(self, line: str) -> None:
        file = self._file()
        if file is not None:
            print(printable(line), file=file, flush=True)

    def _file(self) -> IO[str] | None:
        return self.file or sys.stderr
