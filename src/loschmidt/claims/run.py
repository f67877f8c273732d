"""Runs the jobs of claims in worker processes, keeps what is finished, and makes verdicts of it."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from ..exact import random
from ..live import Display, Outcome, Workers, choose
from ..trajectory import environment
from . import jobs, records, sealed
from .plan import RunPlan
from .record import Claim
from .records import ClaimRecord

_ALL = "all jobs"
NOT_RUN = ": not run"
"""How a missing job is called that nothing was wrong with."""


def run_claims(plan: RunPlan, command: str = "", progress: bool | Display | None = True) -> dict[str, Any]:
    """Run what is not finished, and judge each claim as soon as its jobs are through.

    A job that fails is reported, and ends no other. After Ctrl-C what is finished is kept, and judged if it can be.
    An incomplete record does not take the place of a complete one.

    Args:
        plan: see `plan_run`.
        command: to be written down.
        progress: True: bars on a terminal or in a notebook, lines in a log; None: bars or nothing; False: nothing;
            or a display.

    Returns:
        {"claims": records, "failures": texts, "notes": texts, "interrupted": bool, "seconds": float}.
    """
    began = time.perf_counter()
    session = _Session(plan, command)
    interrupted = run_jobs(plan, session.ended, progress)
    print(*session.traces, sep="", end="", file=sys.stderr)
    session.conclude()
    return {
        "claims": [session.records[id] for id in plan.jobs if id in session.records],
        "failures": list(session.failures.values()),
        "notes": session.notes,
        "interrupted": interrupted,
        "seconds": time.perf_counter() - began,
    }


def run_jobs(plan: RunPlan, ended: Callable[[jobs.Job, Outcome], None], progress: bool | Display | None) -> bool:
    """Run the jobs of a plan that are to do; `ended` is called with each, and how it ended.

    Returns:
        Whether Ctrl-C ended it.
    """
    with choose(progress, transient=False) as display:
        board = _Board(plan, display)
        with Workers(plan.workers, display, board.told) as pool:
            by_name = {job.name: job for job in plan.todo}
            try:
                for job in plan.todo:
                    pool.submit(job.name, jobs.do, job, plan.out)
                for outcome in pool.outcomes():
                    ended(by_name[outcome.name], outcome)
                    board.ended(outcome.name)
            except KeyboardInterrupt:
                return True
    return False


def try_claim(claim: Claim, scale: str = "smoke", seeds: int | None = None) -> ClaimRecord:
    """Run a claim in this process, job after job, and judge it; nothing is written.

    For tests of a claim, and while writing one. Torch keeps one thread afterwards.

    Args:
        claim: in a file or not.
        scale: smoke, laptop or full.
        seeds: how many, from the claim's first; None: as the claim says.
    """
    numbers = claim.numbers(scale, seeds)
    parts = [part for part in claim.parts if scale in part.settings]
    with random.isolated():
        evidence = {p.name: [jobs.perform(claim, p, scale, seed, _silent) for seed in numbers] for p in parts}
    return records.make(claim, scale, evidence, environment.record())


def _silent(share: float, /, **facts: float | str) -> None:
    """Shows nothing."""


class _Session:
    """What has ended so far."""

    def __init__(self, plan: RunPlan, command: str):
        self.plan, self.command = plan, command
        self.claims = {entry.claim.id: entry.claim for entry in plan.claims}
        self.failures = {name: f"{name}: {why}" for name, why in plan.withheld.items()}
        self.notes: list[str] = []
        self.traces: list[str] = []
        self.records: dict[int, ClaimRecord] = {}
        self.through: set[int] = set()
        self.left = {id: sum(job.claim == id for job in plan.todo) for id in plan.jobs}

    def ended(self, job: jobs.Job, outcome: Outcome) -> None:
        """One more job has ended; if it was the last of its claim, the claim is judged."""
        if outcome.error:
            self.failures[job.name] = f"{job.name}: {outcome.error}"
            self.traces.append(outcome.trace)
        self.left[job.claim] -= 1
        if not self.left[job.claim]:
            self._judge(self.claims[job.claim])

    def conclude(self) -> None:
        """Judge what is not judged yet."""
        for id, claim in self.claims.items():
            if id not in self.through:
                self._judge(claim)

    def _judge(self, claim: Claim) -> None:
        plan, there = self.plan, jobs.read(self.plan.out, claim.id, self.plan.scale)
        self.through.add(claim.id)
        wanted = plan.jobs[claim.id]
        taken = _taken_over(wanted, there, plan.earlier.get(claim.id))
        done = [there.by_key.get(job.key) or taken.get((job.part, job.seed)) for job in wanted]
        done = [result for result in done if result is not None]
        if not done:
            self.notes.append(f"claim {claim.id}: no job is finished, so there is nothing to judge.")
            return
        lacking = [job for job in wanted if job.key not in there.by_key and (job.part, job.seed) not in taken]
        missing = [self.failures.get(job.name, f"{job.name}{NOT_RUN}") for job in lacking]
        predictions = sealed.read(plan.out, claim.id, plan.scale)
        needy = {(job.part, job.seed) for job in wanted if job.needs}
        tested = [r for r in done if (r["part"], r["evidence"]["seed"]) in needy]
        said = sealed.note(predictions, tested)
        earlier = plan.earlier.get(claim.id)
        if earlier is not None and said and any("taken over" in r for r in tested):
            said["note"] = " ".join(filter(None, (said["note"], earlier.predictions.get("note"))))
        record = _record(claim, wanted, done, missing, there.aside(wanted), self.command, said)
        self.records[claim.id] = record
        path = records.place(plan.out, claim.id, plan.scale)
        there_before = records.read(path)[0] if path.exists() else None
        if missing and there_before is not None and there_before.complete:
            self.notes.append(f"claim {claim.id}: not all jobs are finished; the complete record {path.name} stays.")
            return
        waiting = [part for part in plan.waiting.get(claim.id, ()) if there_before and part in there_before.evidence]
        if waiting:
            self.notes.append(
                f"claim {claim.id}: {path.name} holds {len(waiting)} parts whose predictions are not here; it stays."
            )
            return
        records.write(path, [record])


def _taken_over(
    wanted: list[jobs.Job], there: jobs.Found, earlier: ClaimRecord | None
) -> dict[tuple[str, int], dict[str, Any]]:
    """Results of an earlier record, by part and seed: of whole parts that have no finished job of their own here."""
    if earlier is None:
        return {}
    own = {job.part for job in wanted if job.key in there.by_key}
    settings = {job.part: jobs.plain(dict(job.settings)) for job in wanted if job.part not in own}
    then = earlier.thresholds | {name: was for name, (was, _) in earlier.thresholds_changed.items()}
    return {
        (part, evidence["seed"]): {
            "part": part,
            "code": earlier.code.get(part, ""),
            "thresholds": {name: value for name, value in then.items() if value is not None},
            "environment": earlier.environment,
            "environments": earlier.environments,
            "evidence": evidence,
            "sealed": earlier.predictions.get("digest"),
            "taken over": True,
        }
        for part, several in earlier.evidence.items()
        for evidence in several
        if settings.get(part) == evidence["settings"]
    }


def _record(
    claim: Claim,
    wanted: list[jobs.Job],
    done: list[dict[str, Any]],
    missing: list[str],
    aside: list[str],
    command: str,
    predictions: dict[str, str],
) -> ClaimRecord:
    evidence: dict[str, list[dict[str, Any]]] = {job.part: [] for job in wanted}
    for result in done:
        evidence[result["part"]].append(result["evidence"])
    now, then = jobs.plain(dict(claim.thresholds)), {}
    for name, value in ((name, value) for result in done for name, value in result["thresholds"].items()):
        if name not in then or value != now.get(name):  # of several, one that differs is told
            then[name] = value
    changed = {name: (then.get(name), now.get(name)) for name in then | now if then.get(name) != now.get(name)}
    environments = [result["environment"] for result in done]
    older = max((result.get("environments", 1) for result in done), default=1)
    taken_over = {result["part"]: result["code"] for result in done if result.get("taken over")}
    return records.make(
        claim,
        wanted[0].scale,
        evidence,
        environments[-1],
        environments=len({json.dumps(environment, sort_keys=True) for environment in environments}) + older - 1,
        thresholds_changed=changed,
        missing=missing,
        code={job.part: job.code for job in wanted} | taken_over,
        taken_over=sorted(taken_over),
        set_aside=aside,
        command=command,
        predictions=predictions,
    )


class _Board:
    """One bar for all jobs, in hundredths of the work that is expected."""

    def __init__(self, plan: RunPlan, display: Display):
        self.expected = {job.name: plan.expected[job.name] for job in plan.todo}
        self.total, self.display = sum(self.expected.values()), display
        self.shares = dict.fromkeys(self.expected, 0.0)
        self.over = 0
        if self.expected:
            display.begin(_ALL, 100)

    def told(self, job: str, done: int, total: int | None) -> None:
        """A job told how far it is."""
        self.shares[job] = done / total if total else 0.0
        self._update()

    def ended(self, job: str) -> None:
        """A job has ended."""
        self.shares[job], self.over = 1.0, self.over + 1
        self._update()
        if self.over == len(self.shares):
            self.display.end(_ALL)

    def _update(self) -> None:
        done = sum(share * self.expected[job] for job, share in self.shares.items()) / max(self.total, 1e-9)
        self.display.update(_ALL, int(100 * done), jobs=f"{self.over} of {len(self.shares)}")
