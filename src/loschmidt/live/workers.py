"""Jobs in worker processes, with progress: one torch thread each, and what ends one job ends no other."""

import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, Self

import torch

from ..errors import InvalidSetting, LoschmidtError
from .display import Display, Silent

_EVERY = 0.2  # seconds between messages of a job
_PATIENCE = 5.0  # seconds that a worker has to end in


class Tell(Protocol):
    """How a job says how far it is; cheap, call it often."""

    def __call__(self, done: int, total: int | None = None, /, **facts: float | str) -> None:
        """So many of so many units are done; `facts` are shown beside."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        name: the job's.
        value: what its function returned; None if it failed.
        error: why it failed, in words; "" if it did not.
        trace: where, if the error is none of this package's own.
    """

    name: str
    value: Any = None
    error: str = ""
    trace: str = ""


class Workers:
    """Runs functions in processes that are started afresh, so many at once, in the order in which they are submitted.

    A job that raises, or whose process dies (killed, out of memory), is an `Outcome` with a reason; its process is
    replaced, and the other jobs do not notice. Ctrl-C is the business of whoever iterates over `outcomes`: workers
    do not see it, and leaving the `with` block ends them.

    Args:
        count: processes, at most.
        display: shows a job while it runs.
        told: called with (job, done, total) when a job tells how far it is.
    """

    def __init__(
        self,
        count: int = 2,
        display: Display | None = None,
        told: Callable[[str, int, int | None], None] | None = None,
    ):
        if count < 1:
            raise InvalidSetting(f"workers={count} can do nothing.", "give a positive number.")
        self.count, self._display, self._told = count, display or Silent(), told
        self._context = multiprocessing.get_context("spawn")
        self._waiting: deque[tuple[str, Callable[..., Any], tuple[Any, ...]]] = deque()
        self._workers: list[_Worker] = []

    def submit(self, name: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Have `function(*arguments, tell)` run; both, and what it returns, must be things that processes can exchange.

        Args:
            name: of the job, unique.
            function: of a module, by name.
            *arguments: before `tell`, with which it says how far it is.
        """
        self._waiting.append((name, function, arguments))

    def outcomes(self) -> Iterator[Outcome]:
        """Each job's outcome as it ends; more may be submitted meanwhile."""
        while self._waiting or any(worker.job for worker in self._workers):
            self._assign()
            busy = {worker.pipe: worker for worker in self._workers if worker.job}
            for pipe in wait(list(busy)):
                outcome = self._hear(busy[pipe])
                if outcome is not None:
                    self._display.end(outcome.name, "failed" if outcome.error else "")
                    yield outcome

    def _assign(self) -> None:
        for worker in [w for w in self._workers if not w.job]:
            if self._waiting and not worker.take(self._waiting[0]):
                self._workers.remove(worker)  # it died while it had nothing to do
            elif worker.job:
                self._waiting.popleft()
        while self._waiting and len(self._workers) < self.count:
            with _interrupts_wait():  # a process that is just starting would print a traceback
                self._workers.append(_Worker(self._context))
            if self._workers[-1].take(self._waiting[0]):
                self._waiting.popleft()

    def _hear(self, worker: "_Worker") -> Outcome | None:
        job = worker.job
        try:
            kind, *what = worker.pipe.recv()
        except (EOFError, OSError):
            self._workers.remove(worker)
            return Outcome(job, error=worker.died())
        if kind == "tells":
            done, total, facts = what
            self._display.begin(job, total)
            self._display.update(job, done, **facts)
            if self._told is not None:
                self._told(job, done, total)
            return None
        worker.job = ""
        return Outcome(job, *what)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self._waiting.clear()


class _Worker:
    """A process, the pipe to it, and the job it has."""

    def __init__(self, context: Any):
        self.job = ""
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does

    def take(self, job: tuple[str, Callable[..., Any], tuple[Any, ...]]) -> bool:
        """Give it a job. False: it is dead."""
        name, function, arguments = job
        try:
            self.pipe.send((function, arguments))
        except OSError:
            self.end()
            return False
        self.job = name
        return True

    def died(self) -> str:
        """Why, in words, once the pipe has ended."""
        self.end()
        code = self.process.exitcode
        if code is not None and code < 0:
            with suppress(ValueError):
                name = signal.Signals(-code).name
                why = " (which the system sends when memory runs out)" if name == "SIGKILL" else ""
                return f"its process was killed by {name}{why}."
        return f"its process ended with exit code {code}."

    def end(self) -> None:
        """Wait for the process, and insist if it does not end."""
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C is delivered after the block; processes started inside never get it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection) -> None:
    """What a worker does: job after job, until the other end of the pipe is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            function, arguments = pipe.recv()
            answer = _do(function, arguments, pipe)
            try:
                pipe.send(("ends", *answer))
            except (TypeError, AttributeError, ValueError) as error:  # a result that cannot travel
                pipe.send(("ends", None, f"{type(error).__name__}: {error}", ""))


def _do(function: Callable[..., Any], arguments: tuple[Any, ...], pipe: Connection) -> tuple[Any, str, str]:
    last = 0.0

    def tell(done: int, total: int | None = None, /, **facts: float | str) -> None:
        nonlocal last
        if time.monotonic() - last > _EVERY:
            last = time.monotonic()
            numbers = {k: v if isinstance(v, str | int) else float(v) for k, v in facts.items()}
            pipe.send(("tells", done, total, numbers))

    tell(0)
    try:
        return function(*arguments, tell), "", ""
    except (BrokenPipeError, ConnectionResetError):
        raise
    except LoschmidtError as error:
        return None, str(error), ""
    except Exception as error:  # whatever it is, it is this job's alone
        return None, f"{type(error).__name__}: {error}", traceback.format_exc()
