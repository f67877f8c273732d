"""Runs the sections of a bench one after the other, with progress, and gathers the results."""

import gc
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import BelowResolution, LoschmidtError
from ..live import Display, choose
from ..trajectory import environment
from . import machine
from .alternatives import alternatives
from .growth import growth
from .large import gpt2
from .plan import BenchPlan
from .steps import steps
from .training import training

Section = Callable[[BenchPlan, dict[str, Any], Callable[[int, int], None]], None]

_SECTIONS: dict[str, Section] = {
    "steps": steps,
    "training": training,
    "gpt2": gpt2,
    "alternatives": alternatives,
    "growth": growth,
}


def run_bench(plan: BenchPlan, progress: bool | Display | None = True) -> dict[str, Any]:
    """Measure. Nothing else should run on the machine meanwhile.

    Args:
        plan: what, see `default_plan`.
        progress: True: bars on a terminal or in a notebook, lines in a log; None: bars or nothing; False: nothing;
            or a display.

    Returns:
        {"sections": by name, "failures": texts, "interrupted": bool, "settings", "environment", "machine",
        "section_seconds": by name, "seconds"}. After Ctrl-C, or if a section fails, what was finished is there all
        the same, rows of that section too.
    """
    began, failures, interrupted = time.perf_counter(), [], False
    sections: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    with _surroundings(plan):
        facts = {"environment": environment.record(plan.device), "machine": machine.describe(plan.device)}
        try:
            with choose(progress, transient=False) as display:
                for name in plan.only:
                    since, sections[name] = time.perf_counter(), {}
                    display.begin(name, None)
                    try:
                        _SECTIONS[name](plan, sections[name], _tick(display, name))
                        display.end(name)
                    except Exception as error:  # whatever it is, hours of other measurements are kept
                        failures.append(f"{name}: {_why(error)}")
                        display.end(name, "failed")
                        machine.empty(plan.device)
                    finally:
                        seconds[name] = time.perf_counter() - since
        except KeyboardInterrupt:
            interrupted = True
    return {
        "settings": plan.model_dump(mode="json"),
        "sections": {name: found for name, found in sections.items() if found},
        "failures": failures,
        "interrupted": interrupted,
        **facts,
        "section_seconds": seconds,
        "seconds": time.perf_counter() - began,
    }


@contextmanager
def _surroundings(plan: BenchPlan) -> Iterator[None]:
    threads = torch.get_num_threads()
    if plan.device == "cuda":  # before cuBLAS begins, which reads it once
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(plan.threads)
    gc.freeze()  # what is there already is no garbage of a measurement: each collection is a quarter second shorter
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BelowResolution)  # gradients are given, and are not learnt from
            yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)


def _tick(display: Display, name: str) -> Callable[[int, int], None]:
    def tick(done: int, total: int) -> None:
        display.begin(name, total)
        display.update(name, done)

    return tick


def _why(error: Exception) -> str:
    if isinstance(error, LoschmidtError):
        return str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error):  # as a CPU says it
        return "there was not enough memory. Remedy: smaller --sizes, or fewer sections (--only)."
    traceback.print_exception(error)
    return f"an error that should not be, {type(error).__name__}: {error} Remedy: report it, with what is above."
