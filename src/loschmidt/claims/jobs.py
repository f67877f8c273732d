"""A job is one part of a claim with one seed: run in a worker, written down as one file, found again by its key."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidSetting
from ..exact import digest, random
from ..files import finite, write_json
from ..live import Tell
from ..trajectory import environment
from . import code, registry, sealed
from .record import Claim, Part, Say

RESERVED = ("seed", "settings", "seconds")
"""What a job adds to the evidence that its part returns."""


@dataclass(frozen=True)
class Job:
    """One part with one seed.

    Attributes:
        module: where the claim is found.
        claim: its number.
        part: name of the part.
        scale: smoke, laptop or full.
        seed: 0, 1, ...
        settings: what the part's function gets.
        code: which version of the sources, see `code.version`.
        thresholds: the claim's when the job ran. Not in the key: they decide nothing in a run.
        needs: key of the job that predicts what this one finds; "" if none does. Not in the key.
    """

    module: str
    claim: int
    part: str
    scale: str
    seed: int
    settings: Mapping[str, Any]
    code: str
    thresholds: Mapping[str, float]
    needs: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return f"claim {self.claim}, {self.part}, seed {self.seed}"

    @cached_property
    def key(self) -> str:
        """What the evidence depends on, digested."""
        settings = json.dumps(self.settings, sort_keys=True, allow_nan=False)
        return digest([self.claim, self.part, self.scale, self.seed, settings, self.code], 8)

    def path(self, out: Path) -> Path:
        """Its file, below the folder of results; files of other versions have other names."""
        part = "".join(c if c.isalnum() else "-" for c in self.part.lower())
        return folder(out, self.claim, self.scale) / f"{part}-seed-{self.seed}-{self.key}.json"


def folder(out: Path, claim: int, scale: str) -> Path:
    """Where the finished jobs of a claim lie."""
    return out / "jobs" / f"claim-{claim:02}" / scale


def jobs_of(entry: registry.Built, scale: str, seeds: Sequence[int]) -> list[Job]:
    """All jobs of a claim at a scale.

    Raises:
        InvalidSetting: settings that JSON cannot hold, or two parts of one name.
    """
    claim, jobs = entry.claim, []
    for part in claim.parts:
        if scale not in part.settings:
            continue
        version = code.version(part.run, entry.module)
        for seed in seeds:
            settings, thresholds = dict(part.settings[scale]), dict(claim.thresholds)
            jobs.append(Job(entry.module, claim.id, part.name, scale, seed, settings, version, thresholds))
    try:
        jobs = [replace(job, needs=_predictor(claim, job, jobs)) for job in jobs]
        paths = {job.path(Path()) for job in jobs}
    except (TypeError, ValueError) as error:
        raise InvalidSetting(f"settings of claim {claim.id} are no JSON: {error}.", "use numbers and texts.") from error
    if len(paths) != len(jobs):
        raise InvalidSetting(f"two parts of claim {claim.id} have one name.", "rename one.")
    return jobs


def _predictor(claim: Claim, job: Job, several: Sequence[Job]) -> str:
    name = next(part.predicted_by for part in claim.parts if part.name == job.part)
    keys = [other.key for other in several if (other.part, other.seed) == (name, job.seed)]
    if name and not keys:
        raise InvalidSetting(
            f"part {job.part!r} of claim {claim.id} is to be predicted by {name!r}, which does not run at this scale.",
            "give that part settings for it.",
        )
    return keys[0] if name else ""


def do(job: Job, out: Path, tell: Tell) -> float:
    """Run a job, in a worker process, and write down what it finds; seconds that it took.

    Raises:
        InvalidSetting: what it is to test was not predicted; see `sealed`.
    """
    predictions = sealed.read(out, job.claim, job.scale) if job.needs else None
    if why := sealed.why_not(job, predictions):
        raise InvalidSetting(f"{job.name} was not run: {why}")
    claim = registry.load(job.module).claim
    part = next(p for p in claim.parts if p.name == job.part)

    def say(share: float, /, **facts: float | str) -> None:
        tell(round(100 * share), 100, **facts)

    evidence = perform(claim, part, job.scale, job.seed, say)
    result = {
        "claim": job.claim,
        "part": job.part,
        "scale": job.scale,
        "code": job.code,
        "key": job.key,
        "thresholds": dict(job.thresholds),
        "environment": environment.record(),
        "evidence": evidence,
    }
    if predictions is not None:
        result["sealed"] = predictions.digest
    write_json(job.path(out), result)
    return evidence["seconds"]


def perform(claim: Claim, part: Part, scale: str, seed: int, say: Say) -> dict[str, Any]:
    """Run a part with a seed: its evidence as JSON gives it back, with seed, settings and seconds.

    Raises:
        InvalidSetting: the part returned what JSON cannot hold, or names that are added here.
    """
    where = f"part {part.name!r} of claim {claim.id} returned"
    _fresh(claim.id, part.name, seed)
    began = time.perf_counter()
    evidence = part.run(part.settings[scale], seed, say)
    seconds = time.perf_counter() - began
    if not isinstance(evidence, dict) or not all(isinstance(name, str) for name in evidence):
        raise InvalidSetting(
            f"{where} {type(evidence).__name__} {str(evidence)[:60]!r}.", "return a dict with texts as keys."
        )
    if taken := [name for name in RESERVED if name in evidence]:
        raise InvalidSetting(f"{where} {', '.join(taken)}, which is added to it.", "rename it.")
    try:
        return plain(evidence | {"seed": seed, "settings": dict(part.settings[scale]), "seconds": seconds})
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InvalidSetting(
            f"{where} what JSON cannot hold: {error}.", "return numbers, texts, lists and dicts; `.tolist()` of arrays."
        ) from error


def _fresh(*key: int | str) -> None:
    """What an earlier job of this process may have left is put in order, so that results depend on the job alone."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    if torch.are_deterministic_algorithms_enabled():  # to ask is quick, to set imports half of torch
        torch.use_deterministic_algorithms(False)
    random.seed_all("claim", *key)


@dataclass
class Found:
    """What lies in the folder of a claim's jobs.

    Attributes:
        by_key: finished jobs.
        damaged: names of files that cannot be read.
    """

    by_key: dict[str, dict[str, Any]]
    damaged: list[str]

    def aside(self, jobs: Sequence[Job]) -> list[str]:
        """Finished jobs of another version or other settings that stand where one of these is wanted."""
        wanted, keys = {(job.part, job.seed) for job in jobs}, {job.key for job in jobs}
        others = (r for key, r in self.by_key.items() if key not in keys)
        return [
            f"{r['part']}, seed {r['evidence']['seed']}, of version {r['code']}"
            for r in others
            if (r["part"], r["evidence"]["seed"]) in wanted
        ] + [f"{name}, which is damaged" for name in self.damaged]


def read(out: Path, claim: int, scale: str) -> Found:
    """The finished jobs of a claim, of any version; of those that predict, what was written down speaks.

    Raises:
        DamagedFile: the predictions were changed, or cannot be read.
    """
    found = Found({}, [])
    for path in sorted(folder(out, claim, scale).glob("[!.]*.json")):
        try:
            record = json.loads(path.read_text())
            if record["part"] and record["code"] and record["evidence"]["seed"] >= 0 and record["evidence"]["seconds"]:
                found.by_key[record["key"]] = record
        except (OSError, ValueError, KeyError, TypeError):
            found.damaged.append(path.name)
    predictions = sealed.read(out, claim, scale)
    found.by_key.update(predictions.results if predictions is not None else {})
    return found


def plain(value: Any) -> Any:
    """The same as it comes back from JSON: lists for tuples, None for NaN, numbers for those of numpy."""
    return json.loads(json.dumps(finite(value), default=lambda x: finite(x.item())))
