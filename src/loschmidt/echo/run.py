"""Runs the legs of an echo in worker processes, one torch thread each, with progress, and gathers the results."""

import multiprocessing
import queue
import signal
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from ..errors import LoschmidtError
from ..live import Display, choose
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


def run_echo(plan: Sequence[LegPlan], workers: int = 2, progress: bool | Display | None = True) -> dict[str, Any]:
    """Do all legs: out; then back, perturbed, and in plain floats.

    Args:
        plan: the legs, see `default_plan`.
        workers: processes.
        progress: True: bars on a terminal or in a notebook, lines in a log; None: bars or nothing; False: nothing;
            or a display.

    Returns:
        {"runs": one dict a leg, "failures": texts, "interrupted": bool, "environment": ..., "seconds": ...}. After
        Ctrl-C, or if a job fails, what was finished is there all the same.
    """
    began, results, failures, interrupted = time.perf_counter(), {leg.optimizer: {} for leg in plan}, [], False
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    with (
        tempfile.TemporaryDirectory(prefix="loschmidt-echo-") as folder,
        choose(progress, transient=False) as display,
    ):
        pool = ProcessPoolExecutor(workers, context, _start_worker, (messages,))
        running: dict[Future, tuple[LegPlan, str]] = {}
        over: set[str] = set()  # names of jobs; their last messages may come after their results

        def submit(leg: LegPlan, job: str) -> None:
            running[pool.submit(_work, leg, job, folder)] = (leg, job)

        try:
            for leg in plan:
                submit(leg, "out")
            while running:
                done, _ = wait(running, timeout=_EVERY, return_when=FIRST_COMPLETED)
                _drain(messages, display, over)
                for future in done:
                    leg, job = running.pop(future)
                    try:
                        results[leg.optimizer] |= future.result()
                    except (LoschmidtError, BrokenProcessPool) as error:
                        failures.append(f"{leg.optimizer}, {_VERBS[job]}: {error or 'a worker process died.'}")
                    else:
                        for after in ("back", "perturbed", "floats") if job == "out" else ():
                            submit(leg, after)
                    over.add(name := f"{leg.optimizer} {_VERBS[job]}")
                    display.end(name, "failed" if future.exception() else "")
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

    def tick(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last > _EVERY:
            last = time.monotonic()
            _messages.put((f"{leg.optimizer} {_VERBS[job]}", done, total))

    tick(0, None)
    return JOBS[job](leg, Path(folder), tick)


def _drain(messages: Any, display: Display, over: set[str]) -> None:
    while True:
        try:
            job, done, total = messages.get_nowait()
        except queue.Empty:
            return
        if job not in over:
            display.begin(job, total)
            display.update(job, done)


def _stop(pool: ProcessPoolExecutor) -> None:
    workers = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()
        worker.join()
