"""Bars on a terminal and in a notebook, and which display fits here."""

import os
import sys
import time
from html import escape
from importlib.util import find_spec
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from ..errors import InvalidSetting
from .display import Display, Plain, Silent

_KEPT = 24  # jobs that are over and still shown


class _Board(Plain):
    """A board with a row for each job, drawn over and over in one place."""

    interval = 0.25

    def _begun(self, job: str) -> None:
        over = [name for name, entry in self.jobs.items() if entry.note is not None]
        for name in over[: max(0, len(over) - _KEPT)]:
            self._remove(name)
            del self.jobs[name]
        self._show()

    def _running(self) -> None:
        self._show()

    def _ended(self, job: str) -> None:
        self._show()

    def _remove(self, job: str) -> None:
        """A row is no longer shown."""

    def _show(self) -> None:
        raise TypeError(f"{type(self).__name__} does not define _show()")


class _Says(ProgressColumn):
    def render(self, task: Task) -> Text:
        """The words of a job, cut where the terminal ends."""
        return Text(task.fields["says"], no_wrap=True, overflow="ellipsis")


class Rich(_Board):
    """Bars on a terminal, on stderr.

    Args:
        transient: take the bars away when nothing is running any more.
        console: another console than stderr's.
    """

    def __init__(self, transient: bool = False, console: Console | None = None):
        super().__init__()
        self.transient, self.console = transient, console or Console(stderr=True)
        self._progress: Progress | None = None
        self._rows: dict[str, TaskID] = {}

    def _show(self) -> None:
        if self._progress is None:
            self._progress, self._rows = self._start(), {}
        now = time.monotonic()
        for name, job in self.jobs.items():
            if name not in self._rows:
                self._rows[name] = self._progress.add_task(name, total=job.total, says="")
            self._progress.update(self._rows[name], total=job.total, completed=job.done, says=job.says(now))
        self._progress.refresh()

    def _start(self) -> Progress:
        bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16, table_column=Column(no_wrap=True, min_width=16)),
            _Says(),
            console=self.console,
            auto_refresh=False,  # a thread that draws would take its time from the run, unmeasured
            transient=self.transient,
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),  # else prints to a file would go astray
        )
        bars.start()
        return bars

    def _file(self) -> IO[str] | None:
        return self.console.file

    def _remove(self, job: str) -> None:
        if self._progress is not None and job in self._rows:
            self._progress.remove_task(self._rows.pop(job))

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self.jobs = {name: job for name, job in self.jobs.items() if job.note is None}


class Notebook(_Board):
    """Bars in a notebook: one output of the cell, updated in place. Where IPython is missing you get a `Plain`."""

    interval = 0.5

    def __new__(cls) -> Plain:
        """A `Plain`, if there is no IPython to draw with."""
        return super().__new__(cls) if find_spec("IPython") else Plain()

    def __init__(self):
        super().__init__()
        self._output: Any = None

    def _show(self) -> None:
        now = time.monotonic()
        rows = [(name, job, job.says(now)) for name, job in self.jobs.items()]
        bundle = {
            "text/plain": "\n".join(f"{name}: {says}" for name, _, says in rows),
            "text/html": f"<table>{''.join(_row(name, job.share, says) for name, job, says in rows)}</table>",
        }
        if self._output is None:
            from IPython.display import display

            self._output = display(bundle, raw=True, display_id=True)
        else:
            self._output.update(bundle, raw=True)

    def _close(self) -> None:
        self._output, self.jobs = None, {name: job for name, job in self.jobs.items() if job.note is None}


def _row(name: str, share: float | None, says: str) -> str:
    value = "" if share is None else f' value="{share:.4f}"'
    left = '<td style="text-align: left">'
    return f'<tr>{left}{escape(name)}</td><td><progress max="1"{value}></progress></td>{left}{escape(says)}</td></tr>'


def choose(show: bool | Display | None = None, *, transient: bool = True) -> Display:
    """The display that fits where this runs.

    Args:
        show: True: bars in a notebook or on a terminal, lines elsewhere (a log); None: bars, or nothing where there
            can be none; False: nothing; a display: that one.
        transient: on a terminal, take the bars away at the end.

    Raises:
        InvalidSetting: something else.
    """
    if isinstance(show, Display) and not isinstance(show, type):
        return show
    if show is not None and not isinstance(show, bool):
        raise InvalidSetting(f"progress={show!r} is not a display.", "pass True, False, or one of loschmidt.live.")
    if show is False:
        return Silent()
    if _in_notebook():
        return Notebook()
    if _on_terminal():
        return Rich(transient)
    return Plain() if show else Silent()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")  # in a kernel it is loaded
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


def _on_terminal() -> bool:
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return terminal and os.environ.get("TERM") not in ("dumb", "unknown")
