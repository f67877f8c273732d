"""The arrow: scores of the predictions, and what the grid shows, as measures and sub-verdicts.

They do not decide the verdict of claim 10, whose rule was fixed before there was a grid. Theirs were written when the
pilot (seed 100) and runs in both directions of time had been seen, and nothing of the grid.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from . import arrow_grokked, arrow_held, statistics
from .arrow_rule import GRID, OUTCOMES, PREDICTED, calibration_error, left_out, outcome
from .arrow_score import KNOWN, Rows, counted, rows, scores
from .record import Evidence, Finding, Measure, SubVerdict, Verdict
from .return_rule import Thresholds, average, share

RIVALS = ("constant", "turn alone", "size alone")
"""That a prediction must beat; the shares of other seeds by turn and size are a rival of their own."""


def with_arrow(finding: Finding, evidence: Evidence, t: Thresholds) -> Finding:
    """A finding of claim 10 with what the arrow's parts show; as it was if none of them was run."""
    if evidence.get(arrow_grokked.GROKKED):
        more, gone = arrow_grokked.measures(evidence, t), arrow_grokked.left_out(evidence)
        finding = replace(finding, measures=[*finding.measures, *more], left_out=[*finding.left_out, *gone])
    if not evidence.get(PREDICTED) or not grid(evidence):
        return finding
    kept, words = counted(evidence)
    out = left_out(kept, t)
    measures, subs = [], []
    for which in OUTCOMES:
        more, verdicts = _scored(kept, which, t)
        measures += more
        subs += verdicts
    seen = grid(kept, out)
    held, verdict = _last_turn(seen, t)
    measures += [*held, *_distances(kept, t), *_shares(seen, t), *_checks(kept, seen, evidence, t)]
    subs += [verdict, arrow_held.both_ways(kept, out, t)]
    measures += arrow_held.measures(kept, out, t)
    words = [f"seed {seed}, arrow: {why}" for seed, why in sorted(out.items())] + words + arrow_held.left_out(kept, t)
    return replace(
        finding,
        sub_verdicts=[*finding.sub_verdicts, *subs],
        measures=[*finding.measures, *measures],
        left_out=[*finding.left_out, *words],
    )


def grid(evidence: Evidence, out: Mapping[int, str] | None = None) -> list[Mapping[str, Any]]:
    """The evidence of all blocks of the grid, without seeds that are left out."""
    parts = sorted(name for name in evidence if name.startswith(GRID))
    return [seen for part in parts for seen in evidence[part] if seen["seed"] not in (out or {})]


def _scored(evidence: Evidence, which: str, t: Thresholds) -> tuple[list[Measure], list[SubVerdict]]:
    """Brier scores, their differences by seed, calibration; and which rivals the prediction surely beats."""
    several = rows(evidence, which, t)
    by_seed, start = scores(several), f"arrow, {which}: Brier score"
    measures = [
        average(f"{start} of {'the ' * (name == 'prediction')}{name}", _column(by_seed, name), control=i > 0)
        for i, name in enumerate(("prediction", "constant", "turn alone", *KNOWN))
    ]
    better: dict[str, Measure] = {}
    for name in (*RIVALS, "turn and size"):
        gains = [s[name] - s["prediction"] for s in by_seed.values()]
        found = average(f"{start} of {name} minus that of the prediction, by seed", gains, bounded=False)
        better[name] = replace(found, threshold="interval above 0", met=_sign(found) > 0)
    measures += better.values()
    hard = [row for row in several if 0.1 <= row["p"] <= 0.9]
    gauge = rows(evidence, which, t, "gauge")
    measures += [
        _pooled(f"{start} of the prediction where it is between 0.1 and 0.9", hard),
        _pooled(f"{start} of the prediction along rotations", gauge),
        Measure(f"arrow, {which}: mean |predicted - observed| over bins", calibration_error(several), n=len(several)),
    ]
    enough = len(by_seed) >= t["least seeds"]
    signs = [_sign(better[name]) for name in RIVALS]
    gains = ", ".join(f"{name} by {_text(better[name])}" for name in RIVALS)
    why = f"Over {len(by_seed)} seeds and {len(several)} ways back its Brier score is lower than that of {gains}."
    subs = [SubVerdict(f"arrow: forward growth predicts which way back {which}", _beats(signs, enough), why)]
    last = better["turn and size"]
    verdict = _beats([_sign(last)], enough)
    why = f"Shares of other seeds, by turn and size, have a Brier score that is higher by {_text(last)}."
    return measures, [*subs, SubVerdict(f"arrow: it knows more than other runs do of which {which}", verdict, why)]


def _beats(signs: Sequence[int], enough: bool) -> Verdict:
    """Supported: surely better than all; refuted: surely worse than one; partly: surely better than some."""
    if not enough or not any(signs):
        return "inconclusive"
    return "supported" if min(signs) > 0 else "refuted" if min(signs) < 0 else "partly"


def _column(by_seed: Mapping[int, Mapping[str, float]], name: str) -> list[float]:
    return [scores[name] for scores in by_seed.values()]


def _pooled(name: str, several: Rows) -> Measure:
    """The mean over seeds of their Brier scores."""
    return average(name, _by_seed((row["seed"], (row["p"] - row["y"]) ** 2) for row in several))


def _sign(m: Measure) -> int:
    """1: surely above 0; -1: surely below; 0: can't be told."""
    if m.interval is None:
        return 0
    return 1 if m.interval[0] > 0 else -1 if m.interval[1] < 0 else 0


def _text(m: Measure) -> str:
    if m.value is None:
        return "none"
    ends = "" if m.interval is None else f" ({m.interval[0]:.3f} to {m.interval[1]:.3f})"
    return f"{m.value:.3f}{ends}"


def _by_seed(several: Iterable[tuple[int, float | None]]) -> list[float]:
    """Means by seed."""
    by: dict[int, list[float]] = {}
    for seed, value in several:
        if value is not None:
            by.setdefault(seed, []).append(value)
    return [sum(values) / len(values) for values in by.values()]


def _last_turn(seen: Sequence[Mapping[str, Any]], t: Thresholds) -> tuple[list[Measure], SubVerdict]:
    """From the last turn: does a perturbed way back keep what was learned, where the unperturbed one loses it?"""
    last = {s["seed"]: max(o["turn_step"] for o in seen if o["seed"] == s["seed"]) for s in seen}
    ways = [(s["seed"], way) for s in seen if s["turn_step"] == last[s["seed"]] for way in s["ways"]]
    size = max((way["size"] for _, way in ways if way["kind"] == "random"), default=0.0)
    kinds = {
        "unperturbed in floats": lambda w: w["kind"] == "none",
        f"nudged by {size:g}": lambda w: w["kind"] == "random" and w["size"] == size,
        "random momenta": lambda w: w["kind"] == "momenta",
    }
    level, found = t["un-generalised"], {}
    for name, chosen in kinds.items():
        stays = _by_seed((seed, float(way["lowest_test"] > level)) for seed, way in ways if chosen(way))
        words = f"arrow: from the last turn, {name}: share that keeps what was learned all the way"
        found[name] = average(words, stays, control=name != f"nudged by {size:g}")
    none, nudged, _ = found.values()
    verdict: Verdict = "partly"
    if nudged.n < t["least seeds"] or none.value is None or none.value > t["few"]:
        verdict = "inconclusive"
    elif nudged.value >= t["most"] or nudged.value <= t["few"]:
        verdict = "supported" if nudged.value >= t["most"] else "refuted"
    shares = ", ".join(f"{name}: {'none' if m.value is None else f'{m.value:.2f}'}" for name, m in found.items())
    why = f"Shares that never fell to {level:g} of test accuracy: {shares} ({nudged.n} seeds)."
    return list(found.values()), SubVerdict("arrow: perturbed, it keeps what it learned", verdict, why)


def _distances(evidence: Evidence, t: Thresholds) -> list[Measure]:
    """Measured over predicted distance at the onset, where the predicted one is small."""
    name = f"arrow: measured over predicted distance at the onset, where that is below {t['small']:g}"
    several = [
        r for r in rows(evidence, "un-generalises", {**t, "generalised": 0.0}) if r["measured"] and r["predicted"]
    ]
    means = _by_seed((r["seed"], r["measured"] / r["predicted"]) for r in several if r["predicted"] < t["small"])
    return [Measure(name, *statistics.ratio(means, [1.0] * len(means))) if means else Measure(name, None, n=0)]


def _shares(seen: Sequence[Mapping[str, Any]], t: Thresholds) -> list[Measure]:
    """By kind and size, from turns before and after the onset: who returns, and test accuracy at step 0."""
    measures = []
    ways = [
        (s["seed"], "before" if way["turn_step"] < s["onset"] else "after", way, outcome(way, s["start"]["test"], t))
        for s in seen
        for way in s["ways"]
    ]
    for kind in ("random", "gauge"):
        for size in sorted({way["size"] for _, _, way, _ in ways if way["kind"] == kind}):
            for side, which in (("before", "returns"), ("after", "returns"), ("after", "un-generalises")):
                own = ((s, float(o[which])) for s, at, w, o in ways if (at, w["kind"], w["size"]) == (side, kind, size))
                name = f"arrow, {kind} directions, size {size:g}, turns {side} the onset: share that {which}"
                measures.append(average(name, _by_seed(own)))
    for side in ("before", "after"):
        mine = [(s, w) for s, at, w, _ in ways if at == side]
        momenta = _ends(mine, "momenta", None)
        name = f"arrow, equal-norm random momenta at turns {side} the onset: test accuracy at step 0"
        measures.append(average(name, list(momenta.values()), control=True))
        for size in sorted({w["size"] for _, w in mine if w["kind"] == "random"}):
            nudged = _ends(mine, "random", size)
            name = f"arrow, nudged by {size:g} at turns {side} the onset: test accuracy at step 0"
            measures.append(average(name, list(nudged.values())))
            gaps = [nudged[s] - momenta[s] for s in nudged if s in momenta]
            measures.append(average(f"{name}, less that with random momenta", gaps, bounded=False))
    return measures


def _ends(ways: Sequence[tuple[int, Mapping[str, Any]]], kind: str, size: float | None) -> dict[int, float]:
    own = [(s, w["end"]["test"]) for s, w in ways if w["kind"] == kind and (size is None or w["size"] == size)]
    return {seed: sum(v for s, v in own if s == seed) / sum(s == seed for s, _ in own) for seed in {s for s, _ in own}}


def _checks(kept: Evidence, seen: Sequence[Mapping[str, Any]], every: Evidence, t: Thresholds) -> list[Measure]:
    still = [(s, way) for s in seen for way in s["ways"] if way["kind"] == "none"]
    back = _by_seed((s["seed"], float(outcome(way, s["start"]["test"], t)["returns"])) for s, way in still)
    floor = max((way["end"]["relative"] for _, way in still if way["end"]["relative"] is not None), default=None)
    told = {s["seed"]: s["digest"] for s in every[PREDICTED]}
    same = share(told.get(s["seed"]) == s["digest"] for s in grid(every))
    jobs = len(grid(every))
    seconds = [s["seconds"] for s in (*grid(every), *every[PREDICTED]) if "seconds" in s]
    silent = sum(cell["returns"] is None for s in kept[PREDICTED] for cell in s["cells"])
    check: dict[str, Any] = {"control": True, "kind": "implementation check"}
    return [
        average("arrow, unperturbed in float64: share that returns", back, control=True),
        Measure(
            "arrow, unperturbed in float64: largest relative distance at step 0", floor, n=len(still), control=True
        ),
        Measure("arrow: share of jobs whose run was, to the bit, the predicted one", same, None, jobs, **check),
        Measure("arrow: grid and predictions, on 2 cores", sum(seconds) / 120, None, len(seconds), "minutes", **check),
        Measure("arrow: cells without a prediction, since a tangent overflowed", float(silent), **check),
    ]
