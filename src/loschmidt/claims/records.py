"""What is written down of a claim: the evidence of all seeds, the verdict, and all that a report needs.

A file holds `{"claims": [...]}`, and each entry is a `ClaimRecord`. The evidence is in it, so that a verdict can be
made again from the file alone.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import DamagedFile, InvalidSetting, LoschmidtError
from ..files import write_json
from .jobs import plain
from .record import Claim, Finding, Measure, Scale, SubVerdict, Verdict

_NAME = re.compile(r"claim-(\d\d)-(smoke|laptop|full)\.json")
_ANEW = "move it away, and make it anew: loschmidt claims run."


class ClaimRecord(BaseModel):
    """One claim at one scale.

    Attributes:
        id: 1 to 12; `title` to `citations` are the claim's own words at the time.
        thresholds: that the verdict was made with.
        thresholds_changed: by name, (when a job ran, when the verdict was made), where they differ.
        scale: smoke, laptop or full.
        seeds: that have evidence.
        verdict: None: none could be made, and `note` says why.
        note: what a reader of the verdict must know; "" as a rule.
        missing: jobs without a result, and why.
        sub_verdicts, measures, left_out: see `Finding`.
        evidence: by part, a dict for each seed.
        settings: by part.
        code: by part, the version of the sources that its evidence depends on.
        taken_over: parts whose evidence is an earlier record's, of the code that `code` says.
        set_aside: finished jobs of other versions that were there and not used.
        command: what was run.
        predictions: that were written down before: "file", "digest", "made", and "note", "" unless some jobs were not
            run against them; empty if the claim has none.
        environment: versions and flags under which the jobs ran; `environments` counts different ones.
        seconds: of all its jobs together.
    """

    model_config = ConfigDict(extra="forbid")

    id: int
    title: str
    statement: str
    sentences: list[int]
    question: str
    prediction: str
    falsifier: str
    protocol: str
    rule: str
    outside: str
    citations: dict[str, str]
    thresholds: dict[str, float]
    thresholds_changed: dict[str, tuple[float | None, float | None]] = {}
    scale: Scale
    seeds: list[int]
    verdict: Verdict | None
    note: str = ""
    missing: list[str] = []
    sub_verdicts: list[SubVerdict]
    measures: list[Measure]
    left_out: list[str] = []
    evidence: dict[str, list[dict[str, Any]]]
    settings: dict[str, dict[str, Any]]
    code: dict[str, str] = {}
    taken_over: list[str] = []
    set_aside: list[str] = []
    command: str = ""
    predictions: dict[str, str] = {}
    environment: dict[str, Any]
    environments: int = 1
    seconds: float

    @property
    def complete(self) -> bool:
        """All jobs that were asked for have results."""
        return not self.missing

    def json_entry(self) -> dict[str, Any]:
        """As it stands in a file."""
        return self.model_dump(mode="json")


WORDS = (
    *("id", "title", "statement", "sentences", "question", "prediction", "falsifier", "protocol", "rule"),
    *("outside", "citations"),
)
"""What a record takes over from its claim."""


def words(claim: Claim) -> dict[str, Any]:
    """What a claim says of itself, as a record holds it."""
    return plain({name: getattr(claim, name) for name in WORDS} | {"citations": dict(claim.citations)})


def judged(
    claim: Claim, evidence: Mapping[str, Sequence[Mapping[str, Any]]], thresholds: Mapping[str, float]
) -> dict[str, Any]:
    """The fields of a record that a verdict makes; if the claim cannot judge this evidence, no verdict and a note."""
    try:
        finding = claim.judge(evidence, thresholds)
    except Exception as error:  # of a part that has no seeds, say; whatever it is, the evidence is kept
        empty = [part for part, several in evidence.items() if not several]
        why = str(error) if isinstance(error, LoschmidtError) else f"{type(error).__name__}: {error}"
        why = f"nothing is finished of {', '.join(empty)}." if empty else why
        return {"verdict": None, "note": f"no verdict: {why}", "sub_verdicts": [], "measures": [], "left_out": []}
    return {"note": ""} | plain(asdict(_listed(finding)))


def _listed(finding: Finding) -> Finding:
    measures = [_without_infinite_interval(m) for m in finding.measures]
    return Finding(finding.verdict, list(finding.sub_verdicts), measures, list(finding.left_out))


def _without_infinite_interval(measure: Measure) -> Measure:
    ends = measure.interval and plain(list(measure.interval))
    interval = None if ends is None or None in ends else tuple(ends)
    return Measure(**{**{name: getattr(measure, name) for name in measure.__dataclass_fields__}, "interval": interval})


def make(
    claim: Claim, scale: str, evidence: Mapping[str, Sequence[Mapping[str, Any]]], environment: Mapping, **rest: Any
) -> ClaimRecord:
    """The record of a claim, judged by its present thresholds; `rest`: what else it holds."""
    thresholds, everything = plain(dict(claim.thresholds)), [e for several in evidence.values() for e in several]
    fields = {
        "thresholds": thresholds,
        "scale": scale,
        "seeds": sorted({e["seed"] for e in everything}),
        "evidence": evidence,
        "settings": {part.name: plain(dict(part.settings[scale])) for part in claim.parts if part.name in evidence},
        "environment": environment,
        "seconds": sum(e["seconds"] for e in everything),
    }
    return ClaimRecord.model_validate(words(claim) | judged(claim, evidence, thresholds) | fields | rest)


def again(record: ClaimRecord, claim: Claim) -> ClaimRecord:
    """The record with its verdict made anew, from its own evidence and thresholds."""
    made = judged(claim, record.evidence, record.thresholds)
    return ClaimRecord.model_validate(record.json_entry() | made)


def agree(one: Any, other: Any) -> bool:
    """Whether two judgements say the same: equal words and verdicts, numbers within 1e-9 of each other.

    The last bits of a fit or a quantile are the processor's: BLAS takes other kernels on another one.
    """
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-15)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(agree(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(agree, one, other))
    return bool(one == other)


def place(out: Path, claim: int, scale: str) -> Path:
    """The file of a claim's record in a folder of results."""
    return out / f"claim-{claim:02}-{scale}.json"


def write(path: Path, records: Iterable[ClaimRecord]) -> None:
    """Write records to a file, atomically."""
    write_json(path, {"claims": [record.json_entry() for record in records]})


def read(path: Path) -> list[ClaimRecord]:
    """The records in a file.

    Raises:
        DamagedFile: it cannot be read, or it is no record of claims.
    """
    try:
        found = [ClaimRecord.model_validate(entry) for entry in json.loads(path.read_text())["claims"]]
    except ValidationError as error:
        first = error.errors()[0]
        raise DamagedFile(
            f"{path} is no record of claims: {'.'.join(map(str, first['loc']))}: {first['msg']}.", _ANEW
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} cannot be read ({type(error).__name__}: {error}).", _ANEW) from error
    if not found:
        raise DamagedFile(f"{path} holds no record of a claim.", _ANEW)
    return found


def read_folder(folder: Path) -> dict[tuple[int, str], ClaimRecord]:
    """The records in a folder of results, by claim and scale; none if there is no such folder.

    Raises:
        InvalidSetting: it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidSetting(f"{folder} is a file.", "give the folder with the records.")
    paths = [path for path in sorted(folder.glob("claim-*.json")) if _NAME.fullmatch(path.name)]
    return {(record.id, record.scale): record for path in paths for record in read(path)}


def latest(records: Mapping[tuple[int, str], ClaimRecord], claim: int) -> ClaimRecord | None:
    """The record that speaks for a claim: of the largest scale that was run."""
    scales = ("full", "laptop", "smoke")
    return next((records[claim, scale] for scale in scales if (claim, scale) in records), None)
