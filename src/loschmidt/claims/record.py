"""What a claim is: what the source says, how it is put to the test, and the rule that makes evidence a verdict.

A claim is a file of this folder that ends with `CLAIM = Claim(...)`. Its parts are run once a seed, in worker
processes, and give evidence: numbers, nothing else. `judge` is a pure function from the evidence of all seeds to a
`Finding`, so that a verdict can be made again from a record, years later, without running anything. `pictures` is pure,
too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Verdict = Literal["supported", "refuted", "partly", "inconclusive"]
Scale = Literal["smoke", "laptop", "full"]
Kind = Literal["evidence", "implementation check"]
Evidence = Mapping[str, Sequence[Mapping[str, Any]]]
"""By part, a dict for each seed that was finished: what `Part.run` returned, with "seed", "settings" and "seconds"."""


class Say(Protocol):
    """How a part tells how far it is: `say(0.4, test=0.93)`; cheap, call it often."""

    def __call__(self, share: float, /, **facts: float | str) -> None:
        """`share`: of the work that is done, in [0, 1]; `facts`: what to show beside."""


@dataclass(frozen=True)
class Part:
    """One experiment of a claim.

    Args:
        name: short, in words; unique within the claim.
        run: (settings, seed, say) -> evidence, a dict that JSON can hold (None for what does not exist; never NaN).
        settings: by scale; the arguments of `run`, all that is not the seed. A scale that lacks is not run.
        seconds: by scale; about how long a seed takes on one core.
        predicted_by: name of the part whose results must be written down before this one runs, by `loschmidt claims
            predict`, which alone runs that part; "" as a rule. See `sealed`.
    """

    name: str
    run: Callable[[Mapping[str, Any], int, Say], dict[str, Any]]
    settings: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]
    predicted_by: str = ""


@dataclass(frozen=True)
class Measure:
    """A number with what one must know to trust it.

    Args:
        name: what was measured, in words.
        value: None: could not be measured; `threshold` is then not met.
        interval: 95 %, over seeds; None: none can be stated.
        n: how many seeds (or runs) it rests on.
        unit: "" for a pure number.
        threshold: what it was held against, in words, with the number; "" if it decides nothing.
        met: whether it was; None without a threshold.
        kind: an implementation check is true by construction, and no evidence.
        control: it is what a control showed.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None = None
    n: int = 1
    unit: str = ""
    threshold: str = ""
    met: bool | None = None
    kind: Kind = "evidence"
    control: bool = False


@dataclass(frozen=True)
class SubVerdict:
    """The verdict on one part of a claim; `why` in one sentence, its numbers from the measures."""

    name: str
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class Finding:
    """What the evidence comes to.

    Args:
        verdict: by the rule of the claim, from the sub-verdicts.
        sub_verdicts: in the order of the claim.
        measures: all numbers that were used, controls and implementation checks among them.
        left_out: seeds that missed a precondition, and why: listed, and not part of the statistics.
    """

    verdict: Verdict
    sub_verdicts: Sequence[SubVerdict]
    measures: Sequence[Measure]
    left_out: Sequence[str] = ()


@dataclass(frozen=True)
class Series:
    """Points or a line of a picture; `low` and `high` are an interval about `y`.

    `role`: "evidence", "control", "theory" (drawn dashed) or "seed" (one of many, drawn faint).
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    role: Literal["evidence", "control", "theory", "seed"] = "evidence"
    mode: Literal["lines", "markers", "lines+markers"] = "lines"


@dataclass(frozen=True)
class Picture:
    """A picture in neutral terms; `report` draws it.

    `caption` says what one sees and what would have been seen otherwise. `log`: which axes are logarithmic, of "xy".
    `marks`: horizontal lines, by what they say (thresholds).
    """

    title: str
    caption: str
    x: str
    y: str
    series: Sequence[Series]
    log: str = ""
    marks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A claim of the source, and its test.

    Args:
        id: its number, 1 to 12.
        title: a few words.
        statement: in our words.
        sentences: which sentences of the source it reads, by number (docs/source.md).
        question: what a reader wants to know.
        prediction: what the claim says will be seen.
        falsifier: what would refute it, fixed before the run.
        protocol: how it is tested, controls included, in a few sentences.
        rule: how the sub-verdicts make the verdict, in words; `judge` is the same in code.
        thresholds: fixed before the run, by name; recorded with the evidence.
        seeds: by scale, how many.
        first_seed: they count from here; above 0 where rule or settings were made with a look at the seeds below.
        parts: the experiments.
        judge: (evidence, thresholds) -> Finding. Pure.
        pictures: evidence -> pictures, the deciding one first. Pure.
        outside: the outside check: what published number or formula it is held against.
        citations: arXiv ids or references, with a few words each.
    """

    id: int
    title: str
    statement: str
    sentences: Sequence[int]
    question: str
    prediction: str
    falsifier: str
    protocol: str
    rule: str
    thresholds: Mapping[str, float]
    seeds: Mapping[str, int]
    parts: Sequence[Part]
    judge: Callable[[Evidence, Mapping[str, float]], Finding]
    pictures: Callable[[Evidence], Sequence[Picture]]
    outside: str
    citations: Mapping[str, str]
    first_seed: int = 0

    def numbers(self, scale: str, seeds: int | None = None) -> range:
        """The seeds at a scale; `seeds`: how many, if not as many as the claim says."""
        return range(self.first_seed, self.first_seed + (self.seeds[scale] if seeds is None else seeds))
