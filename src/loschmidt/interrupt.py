"""Ctrl-C between steps, never inside one.

Python raises KeyboardInterrupt between any two bytecodes. Between the two writes of one exchange that would leave a
state that no step leads to. So `critical` puts it off to the end of a block, and `patient` to the end of a step.
Only in the main thread (others get none), and only where Ctrl-C has Python's own handler: others are left alone.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Handler:
    """Counts; raises when there were more than `patience`, but not inside a critical block."""

    def __init__(self, patience: int):
        self.patience, self.count, self.critical = patience, 0, 0

    def __call__(self, number: int = 0, frame: object = None) -> None:
        self.count += 1
        self.settle()

    def settle(self) -> None:
        if self.count > self.patience and not self.critical:
            raise KeyboardInterrupt


@contextmanager
def _installed(patience: int) -> Iterator[_Handler | None]:
    """A handler of ours, if Python's own is there now."""
    main = threading.current_thread() is threading.main_thread()
    if not (main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield None
        return
    handler = _Handler(patience)
    signal.signal(signal.SIGINT, handler)
    try:
        yield handler
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def critical() -> Iterator[None]:
    """A block that Ctrl-C does not interrupt: KeyboardInterrupt is raised at its end. May be nested."""
    main = threading.current_thread() is threading.main_thread()
    present = signal.getsignal(signal.SIGINT) if main else None
    with _installed(0) as own:
        handler = own or (present if isinstance(present, _Handler) else None)
        if handler is None:
            yield
            return
        handler.critical += 1
        try:
            yield
        finally:
            handler.critical -= 1
        handler.settle()


@contextmanager
def patient() -> Iterator[Callable[[], bool]]:
    """A block in which the first Ctrl-C is only noted; a second one interrupts. Gives what tells if there was one."""
    with _installed(1) as handler:
        yield (lambda: False) if handler is None else (lambda: handler.count > 0)
