"""Runs the legs of an echo in worker processes, one torch thread each, with progress, and gathers the results."""

import multiprocessing
import queue
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..errors import LoschmidtError
from ..trajectory import environment
from .legs import JOBS
from .plan import LegPlan

_VERBS = {
    "out": "training",
    "back": "winding back",
    "perturbed": "winding back, perturbed",
    "floats": "in plain floats",
}
_EVERY = 0.2  # seconds between messages of a worker
_messages: Any = None


class Display(Protocol):
    """Where progress goes."""

    def update(self, job: str, done: int, total: int) -> None:
        """A job has done so many of so many steps."""

    def finish(self, job: str, note: str) -> None:
        """A job is over."""


def run_echo(plan: Sequence[LegPlan], workers: int = 2, console: Console | None = None) -> dict[str, Any]:
    """Do all legs: out; then back, perturbed, and in plain floats.

    Args:
        plan: the legs, see `default_plan`.
        workers: processes.
        console: where progress goes: bars on a terminal, a line for each job elsewhere. Default: stderr.

    Returns:
        {"runs": one dict a leg, "failures": texts, "interrupted": bool, "environment": ..., "seconds": ...}. After
        Ctrl-C, or if a job fails, what was finished is there all the same.
    """
    began, results, failures, interrupted = time.perf_counter(), {leg.optimizer: {} for leg in plan}, [], False
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    with (
        tempfile.TemporaryDirectory(prefix="loschmidt-echo-") as folder,
        _display(console or Console(stderr=True)) as display,
    ):
        pool = ProcessPoolExecutor(workers, context, _start_worker, (messages,))
        running: dict[Future, tuple[LegPlan, str]] = {}

        def submit(leg: LegPlan, job: str) -> None:
            running[pool.submit(_work, leg, job, folder)] = (leg, job)

        try:
            for leg in plan:
                submit(leg, "out")
            while running:
                done, _ = wait(running, timeout=_EVERY, return_when=FIRST_COMPLETED)
                _drain(messages, display)
                for future in done:
                    leg, job = running.pop(future)
                    try:
                        results[leg.optimizer] |= future.result()
                    except (LoschmidtError, BrokenProcessPool) as error:
                        failures.append(f"{leg.optimizer}, {_VERBS[job]}: {error or 'a worker process died.'}")
                    else:
                        for after in ("back", "perturbed", "floats") if job == "out" else ():
                            submit(leg, after)
                    display.finish(f"{leg.optimizer} {_VERBS[job]}", "failed" if future.exception() else "done")
        except KeyboardInterrupt:
            interrupted = True
        finally:
            _stop(pool)
    legs = [_complete(results[leg.optimizer]) for leg in plan if results[leg.optimizer]]
    return {
        "runs": legs,
        "failures": failures,
        "interrupted": interrupted,
        "environment": environment.record() | {"threads": 1, "workers": workers},
        "seconds": time.perf_counter() - began,
    }


def _complete(run: dict[str, Any]) -> dict[str, Any]:
    """Every field is there, None where its job did not finish; `exact` is decided here."""
    fields = ("differing_bits", "backward_seconds", "end_digest", "returned", "perturbed", "float_return_error")
    run = dict.fromkeys(fields) | run
    exact = None
    if run["end_digest"] is not None:
        exact = run["end_digest"] == run["start_digest"] and run["differing_bits"] == 0
    return run | {"exact": exact}


def _start_worker(messages: Any) -> None:
    global _messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    torch.set_num_threads(1)
    _messages = messages


def _work(leg: LegPlan, job: str, folder: str) -> dict[str, Any]:
    last = 0.0

    def tick(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > _EVERY:
            last = time.monotonic()
            _messages.put((f"{leg.optimizer} {_VERBS[job]}", done, total))

    tick(0, 1)
    return JOBS[job](leg, Path(folder), tick)


def _drain(messages: Any, display: Display) -> None:
    while True:
        try:
            display.update(*messages.get_nowait())
        except queue.Empty:
            return


def _stop(pool: ProcessPoolExecutor) -> None:
    workers = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()
        worker.join()


class _Bars:
    def __init__(self, progress: Progress):
        self.progress, self.tasks = progress, {}

    def update(self, job: str, done: int, total: int) -> None:
        if job not in self.tasks:
            self.tasks[job] = self.progress.add_task(job, total=total)
        self.progress.update(self.tasks[job], completed=done, total=total)

    def finish(self, job: str, note: str) -> None:
        self.update(job, 1, 1)


class _Lines:
    def __init__(self, console: Console):
        self.console, self.seen = console, set()

    def update(self, job: str, done: int, total: int) -> None:
        if job not in self.seen:
            self.seen.add(job)
            self.console.print(f"{job} ...", highlight=False)

    def finish(self, job: str, note: str) -> None:
        self.console.print(f"{job}: {note}", highlight=False)


@contextmanager
def _display(console: Console) -> Iterator[Display]:
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        yield _Bars(progress)
    sys.stderr.flush()
