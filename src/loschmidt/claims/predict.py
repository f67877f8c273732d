"""Makes the predictions of a claim, and writes them down before anything tests them."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InvalidSetting
from ..files import refuse_unwritable
from ..live import Display
from . import jobs, sealed
from .plan import RunPlan, plan_run
from .run import run_jobs


def plan_predictions(
    id: int,
    scale: str = "laptop",
    seeds: int | None = None,
    workers: int = 2,
    out: Path = Path("out/claims"),
    package: str | None = None,
) -> RunPlan:
    """A plan of the jobs that predict, and of no others; arguments and errors as of `plan_run`.

    Raises:
        InvalidSetting: also where a claim predicts nothing at this scale, or other predictions lie there.
    """
    plan = plan_run([id], scale, seeds, workers, out, package, everything=True)
    refuse_unwritable(sealed.place(out, id, scale))
    needed = {job.needs for job in plan.jobs[id]} - {""}
    predicting = [job for job in plan.jobs[id] if job.key in needed]
    if not predicting:
        raise InvalidSetting(f"claim {id} has no part that predicts another at scale {scale}.", "run it.")
    there = sealed.read(out, id, scale)
    if there is not None and {job.key for job in predicting} != set(there.results):
        raise InvalidSetting(
            f"{sealed.place(out, id, scale)} holds predictions of other settings, seeds or code, made {there.made}.",
            "move it away, and predict anew; what was tested against it will say so.",
        )
    todo = [job for job in predicting if job.key not in plan.found[id].by_key]
    return replace(plan, jobs={id: predicting}, todo=todo, withheld={})


def predict(plan: RunPlan, command: str = "", progress: bool | Display | None = True) -> dict[str, Any]:
    """Run what is not finished, and seal the predictions if all of them are there.

    Args:
        plan: see `plan_predictions`.
        command: to be written down.
        progress: as of `run_claims`.

    Returns:
        {"sealed": the predictions, or None; "failures": texts; "interrupted": bool; "seconds": float}.
    """
    began, failures, traces = time.perf_counter(), [], []
    ((id, wanted),) = plan.jobs.items()

    def ended(job: jobs.Job, outcome: Any) -> None:
        if outcome.error:
            failures.append(f"{job.name}: {outcome.error}")
            traces.append(outcome.trace)

    interrupted = run_jobs(plan, ended, progress)
    print(*traces, sep="", end="", file=sys.stderr)
    there, done = jobs.read(plan.out, id, plan.scale), None
    if all(job.key in there.by_key for job in wanted):
        tests = {p.name: p.settings[plan.scale] for p in plan.claims[0].claim.parts if _tests(p, plan.scale)}
        results = [there.by_key[job.key] for job in wanted]
        done = sealed.seal(plan.out, id, plan.scale, tests, results, command)
    return {"sealed": done, "failures": failures, "interrupted": interrupted, "seconds": time.perf_counter() - began}


def _tests(part: Any, scale: str) -> bool:
    return bool(part.predicted_by) and scale in part.settings
