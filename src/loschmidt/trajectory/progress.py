"""A progress bar for long seeks: on a terminal, and nowhere else."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def columns() -> tuple:
    """Description, bar, count, time left."""
    return TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()


@contextmanager
def bar(description: str, total: int, show: bool) -> Iterator[Callable[[], None]]:
    """Gives a function to call once a step. Draws on stderr, if that is a terminal and `show` is true."""
    if not (show and sys.stderr.isatty()):
        yield lambda: None
        return
    with Progress(*columns(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)
