"""What a run of claims will do: its jobs, which of them are finished already, and how long the others may take."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import get_args

from ..errors import InvalidSetting
from ..files import make_folder, refuse_unwritable
from . import jobs, records, registry, sealed, statistics
from .record import Claim, Scale

SCALES: tuple[str, ...] = get_args(Scale)


@dataclass(frozen=True)
class RunPlan:
    """A run, refused or ready.

    Attributes:
        claims: in order.
        scale: smoke, laptop or full.
        seeds: by claim.
        workers: processes.
        out: folder of results.
        jobs: all of them, by claim.
        found: what lies there already, by claim.
        todo: jobs that are not finished, the longest first.
        expected: seconds that each may take, by name.
        withheld: by name, jobs that may not run, and why: what they test was not predicted.
        waiting: by claim, parts that are left out of this run, since nothing is predicted yet that they could test.
        earlier: by claim, the record that parts are taken over from which were not chosen.
    """

    claims: tuple[registry.Built, ...]
    scale: str
    seeds: dict[int, tuple[int, ...]]
    workers: int
    out: Path
    jobs: dict[int, list[jobs.Job]]
    found: dict[int, jobs.Found]
    todo: list[jobs.Job]
    expected: dict[str, float]
    withheld: dict[str, str] = field(default_factory=dict)
    waiting: dict[int, list[str]] = field(default_factory=dict)
    earlier: dict[int, records.ClaimRecord] = field(default_factory=dict)

    @property
    def aside(self) -> dict[int, list[str]]:
        """By claim, finished jobs of other versions, which are not used; only claims that have some."""
        names = {id: found.aside(self.jobs[id]) for id, found in self.found.items()}
        return {id: several for id, several in names.items() if several}

    @property
    def seconds(self) -> float:
        """How long the run may take, from start to end."""
        ends = [0.0] * self.workers
        for job in self.todo:
            heapq.heapreplace(ends, ends[0] + self.expected[job.name])
        return max(ends)


def plan_run(
    ids: Sequence[int],
    scale: str = "laptop",
    seeds: int | None = None,
    workers: int = 2,
    out: Path = Path("out/claims"),
    package: str | None = None,
    everything: bool = False,
    parts: Sequence[str] = (),
) -> RunPlan:
    """Make a plan, and refuse before anything runs what cannot be done.

    Args:
        ids: claims by number; all that have this scale if there are none.
        scale: smoke, laptop or full.
        seeds: how many, from each claim's first; None: as the claim says.
        workers: processes, one torch thread each.
        out: folder of results; finished jobs in it are not run again.
        package: where claims are, if not in this one.
        everything: also what waits for predictions.
        parts: run only parts whose names begin with one of these. The others' evidence is taken over from the record
            in `out`, as it is, of whatever version of the code; what has other settings by now is not.

    Raises:
        InvalidSetting: an unknown claim, scale or part, no seeds, or a complete record of more seeds at `out`.
        NotWritten: `out` cannot be written to.
    """
    if scale not in SCALES:
        raise InvalidSetting(f"scale={scale!r} is unknown.", f"choose one of {', '.join(SCALES)}.")
    if seeds is not None and seeds < 1:
        raise InvalidSetting(f"seeds={seeds} is no number of seeds.", "give a positive number; headlines need 5.")
    if workers < 1:
        raise InvalidSetting(f"workers={workers} can do nothing.", "give a positive number.")
    chosen = [registry.find(id, package) for id in dict.fromkeys(ids)]
    if not ids:
        chosen = [entry for entry in registry.built(package).values() if scale in _scales(entry.claim)]
    if not chosen:
        raise InvalidSetting(f"no claim has the scale {scale} yet.", "choose another scale, or see docs/claims.md.")
    all_seeds = {
        entry.claim.id: tuple(entry.claim.numbers(scale, _seeds(entry.claim, scale, seeds))) for entry in chosen
    }
    statistics.require()
    for entry in chosen:
        refuse_unwritable(jobs.folder(out, entry.claim.id, scale) / "job.json")
        refuse_unwritable(records.place(out, entry.claim.id, scale))
        _refuse_fewer_seeds(out, entry.claim.id, scale, len(all_seeds[entry.claim.id]))
    by_claim = {entry.claim.id: jobs.jobs_of(entry, scale, all_seeds[entry.claim.id]) for entry in chosen}
    make_folder(out)
    waiting = {} if everything else _leave_out_what_waits(out, scale, by_claim)
    found = {id: jobs.read(out, id, scale) for id in by_claim}
    expected = _expected(chosen, scale, by_claim, found)
    todo = [job for id, several in by_claim.items() for job in several if job.key not in found[id].by_key]
    todo = [job for job in todo if not parts or job.part.startswith(tuple(parts))]
    earlier = _earlier(out, scale, chosen, parts) if parts else {}
    todo.sort(key=lambda job: -expected[job.name])
    withheld = _withheld(out, scale, by_claim, todo)
    todo = [job for job in todo if job.name not in withheld]
    rest = (withheld, waiting, earlier)
    return RunPlan(tuple(chosen), scale, all_seeds, workers, out, by_claim, found, todo, expected, *rest)


def _earlier(
    out: Path, scale: str, chosen: Sequence[registry.Built], parts: Sequence[str]
) -> dict[int, records.ClaimRecord]:
    """Records in `out`, by claim; refuses a name that no part begins with."""
    names = list(dict.fromkeys(p.name for entry in chosen for p in entry.claim.parts if scale in p.settings))
    if unknown := [text for text in parts if not any(name.startswith(text) for name in names)]:
        raise InvalidSetting(f"no part's name begins with {unknown[0]!r}.", f"choose from: {'; '.join(names)}.")
    places = {entry.claim.id: records.place(out, entry.claim.id, scale) for entry in chosen}
    return {id: records.read(path)[0] for id, path in places.items() if path.exists()}


def _leave_out_what_waits(out: Path, scale: str, by_claim: dict[int, list[jobs.Job]]) -> dict[int, list[str]]:
    """Take out jobs that predict or test predictions, where there are none yet, and others to run."""
    waiting = {}
    for id, several in by_claim.items():
        needed = {job.needs for job in several}
        apart = {job.name: job.part for job in several if job.needs or job.key in needed}
        if apart and len(apart) < len(several) and sealed.read(out, id, scale) is None:
            by_claim[id] = [job for job in several if job.name not in apart]
            waiting[id] = list(dict.fromkeys(apart.values()))
    return waiting


def _withheld(out: Path, scale: str, by_claim: dict[int, list[jobs.Job]], todo: Sequence[jobs.Job]) -> dict[str, str]:
    why = {}
    needed = {job.needs for several in by_claim.values() for job in several}
    for id in {job.claim for job in todo}:
        there = sealed.read(out, id, scale)
        for job in (job for job in todo if job.claim == id):
            if job.key in needed:
                why[job.name] = f"it predicts, and is run by loschmidt claims predict {id} --scale {scale}."
            elif reason := sealed.why_not(job, there):
                why[job.name] = reason
    return why


def _seeds(claim: Claim, scale: str, seeds: int | None) -> int:
    can = _scales(claim)
    if scale not in can or (seeds is None and scale not in claim.seeds):
        raise InvalidSetting(f"claim {claim.id} has no scale {scale}.", f"choose one of {', '.join(can) or 'none'}.")
    return claim.seeds[scale] if seeds is None else seeds


def _scales(claim: Claim) -> list[str]:
    return [scale for scale in SCALES if any(scale in part.settings for part in claim.parts)]


def _refuse_fewer_seeds(out: Path, claim: int, scale: str, seeds: int) -> None:
    path = records.place(out, claim, scale)
    if path.exists():
        there = len(records.read(path)[0].seeds)
        if there > seeds:
            raise InvalidSetting(
                f"{path} rests on {there} seeds, and a run of {seeds} would take its place.",
                f"give --seeds {there} or more, or another --out.",
            )


def _expected(
    chosen: Sequence[registry.Built], scale: str, by_claim: dict[int, list[jobs.Job]], found: dict[int, jobs.Found]
) -> dict[str, float]:
    """From what each part says; scaled to what was measured here, if something was."""
    said = {(e.claim.id, part.name): float(part.seconds.get(scale, 60.0)) for e in chosen for part in e.claim.parts}
    took: dict[tuple[int, str], list[float]] = {}
    for id, there in found.items():
        for record in there.by_key.values():
            if (id, record["part"]) in said:
                took.setdefault((id, record["part"]), []).append(record["evidence"]["seconds"])
    typical = {part: median(seconds) for part, seconds in took.items()}
    factor = median([typical[part] / max(said[part], 1e-3) for part in typical]) if typical else 1.0
    return {
        job.name: typical.get((job.claim, job.part), factor * said[job.claim, job.part])
        for several in by_claim.values()
        for job in several
    }
