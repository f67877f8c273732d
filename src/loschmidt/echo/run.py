"""Runs the legs of an echo in worker processes, one torch thread each, with progress, and gathers the results."""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..live import Display, Workers, choose
from ..trajectory import environment
from .legs import JOBS, Tick
from .plan import LegPlan

_VERBS = {
    "out": "training",
    "back": "winding back",
    "perturbed": "winding back, perturbed",
    "floats": "in plain floats",
}


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
    jobs: dict[str, tuple[LegPlan, str]] = {}
    traces: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="loschmidt-echo-") as folder,
        choose(progress, transient=False) as display,
        Workers(workers, display) as pool,
    ):

        def submit(leg: LegPlan, job: str) -> None:
            jobs[name := f"{leg.optimizer} {_VERBS[job]}"] = leg, job
            pool.submit(name, _work, leg, job, Path(folder))

        try:
            for leg in plan:
                submit(leg, "out")
            for outcome in pool.outcomes():
                leg, job = jobs[outcome.name]
                if outcome.error:
                    failures.append(f"{leg.optimizer}, {_VERBS[job]}: {outcome.error}")
                    traces.append(outcome.trace)
                    continue
                results[leg.optimizer] |= outcome.value
                for after in ("back", "perturbed", "floats") if job == "out" else ():
                    submit(leg, after)
        except KeyboardInterrupt:
            interrupted = True
    print(*traces, sep="", end="", file=sys.stderr)
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


def _work(leg: LegPlan, job: str, folder: Path, tick: Tick) -> dict[str, Any]:
    return JOBS[job](leg, folder, tick)
