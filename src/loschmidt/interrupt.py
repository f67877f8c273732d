"""Ctrl-C between steps, never inside one.

Python raises KeyboardInterrupt between any two bytecodes. Between the two writes of one exchange that would leave a
state that no step leads to. So `critical` puts it off to the end of a block, and `patient` to the end of a step.
Signals are handled in the main thread only, so in others there is nothing to do. `_signal` is what `signal` calls; that
also makes an Enum of each handler, which takes far longer.
"""

import _signal
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _Handler:
    """Takes the place of a handler of SIGINT: passes on to it what exceeds `patience`, outside critical blocks."""

    def __init__(self, before: Callable[[int, Any], Any], patience: int, depth: int):
        self.before, self.patience, self.depth = before, patience, depth
        self.count = 0
        self.waiting: tuple[int, Any] | None = None

    def __call__(self, number: int, frame: Any) -> None:
        self.count += 1
        if self.count > self.patience:
            self.waiting = number, frame
        self.deliver()

    def deliver(self) -> None:
        if self.waiting is not None and not self.depth:
            waiting, self.waiting = self.waiting, None
            self.before(*waiting)  # Python's own raises KeyboardInterrupt

    def leave(self, own: bool, depth: int) -> None:
        """The end of a block, outside of which the depth is this; `own`: the block that put the handler in place."""
        if own:
            self.depth = 1  # what arrives just now waits, too
            present = _signal.signal(signal.SIGINT, self.before)
            if present is not self:  # put in place inside the block
                _signal.signal(signal.SIGINT, present)
        self.depth = depth
        self.deliver()


def _present() -> Any:
    """The handler of SIGINT, if it can run in this thread."""
    return _signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None


class critical:
    """A block that Ctrl-C does not interrupt: it takes effect at the block's end. May be nested.

    Whatever handles SIGINT is put off, if it is a Python function; its default raises KeyboardInterrupt.
    """

    def __enter__(self) -> "critical":
        present, self._own = _present(), False
        self._handler = present if isinstance(present, _Handler) else None
        if self._handler is not None:
            self._outside = self._handler.depth
            self._handler.depth += 1
        elif callable(present):
            self._handler, self._outside, self._own = _Handler(present, 0, 1), 0, True
            _signal.signal(signal.SIGINT, self._handler)
        return self

    def __exit__(self, *error: object) -> None:
        if self._handler is not None:
            self._handler.leave(self._own, self._outside)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A part of the block that Ctrl-C may interrupt, for code of the user's."""
        if self._handler is None:
            yield
            return
        try:
            self._handler.depth = self._outside
            self._handler.deliver()
            yield
        finally:
            self._handler.depth = self._outside + 1


@contextmanager
def patient() -> Iterator[Callable[[], bool]]:
    """A block in which the first Ctrl-C is only noted; a second one interrupts. Gives what tells if there was one.

    Only where Ctrl-C has Python's own handler: others are left alone.
    """
    if _present() is not signal.default_int_handler:
        yield lambda: False
        return
    handler = _Handler(signal.default_int_handler, 1, 0)
    try:
        _signal.signal(signal.SIGINT, handler)
        yield lambda: handler.count > 0
    finally:
        handler.leave(True, 0)
