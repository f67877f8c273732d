"""The arrow: scores of the predictions, and what the grid shows, as measures and sub-verdicts.

They do not decide the verdict of claim 10, whose rule was fixed before there was a grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from . import arrow_grokked, arrow_held, statistics
from .arrow_rule import (
    GRID,
    OUTCOMES,
    PREDICTED,
    calibration_error,
    left_out,
    outcome,
    pairs,
    scores,
)
from .record import Evidence, Finding, Measure, SubVerdict, Verdict
from .return_rule import Thresholds, average, share


def with_arrow(finding: Finding, evidence: Evidence, t: Thresholds) -> Finding:
    """A finding of claim 10 with what the arrow's parts show; as it was if none of them was run."""
    if evidence.get(arrow_grokked.GROKKED):
        more, out = arrow_grokked.measures(evidence, t), arrow_grokked.left_out(evidence)
        finding = replace(finding, measures=[*finding.measures, *more], left_out=[*finding.left_out, *out])
    if not evidence.get(PREDICTED) or not grid(evidence):
        return finding
    out = left_out(evidence, t)
    measures, subs = [], []
    for which in OUTCOMES:
        more, sub = _scored(pairs(evidence, which, t), which, t)
        measures += more
        subs.append(sub)
    measures += _distances(evidence, t) + _shares(evidence, out, t) + _checks(evidence, out, t)
    measures += arrow_held.measures(evidence, out, t)
    words = [f"seed {seed}, arrow: {why}" for seed, why in sorted(out.items())]
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


def _scored(rows: Sequence[Mapping[str, Any]], which: str, t: Thresholds) -> tuple[list[Measure], SubVerdict]:
    """Brier scores, their differences by seed, calibration; and whether the prediction beats both rivals."""
    by_seed = scores(rows)
    measures, better = [], []
    for name in ("prediction", "constant", "turn alone"):
        words = f"arrow, {which}: Brier score of {'the ' if name == 'prediction' else ''}{name}"
        measures.append(average(words, [s[name] for s in by_seed.values()], control=name != "prediction"))
    for name in ("constant", "turn alone"):
        gains = [s[name] - s["prediction"] for s in by_seed.values()]
        words = f"arrow, {which}: Brier score of {name} minus that of the prediction, by seed"
        found = average(words, gains, bounded=False, threshold="interval above 0")
        above = found.interval is not None and found.interval[0] > 0
        below = found.interval is not None and found.interval[1] < 0
        better.append(1 if above else -1 if below else 0)
        measures.append(replace(found, met=above))
    error = calibration_error(rows)
    measures.append(Measure(f"arrow, {which}: mean |predicted - observed| over bins", error, n=len(rows)))
    few = len(by_seed) < t["least seeds"]
    verdict: Verdict = (
        "inconclusive" if few else "supported" if min(better) > 0 else "refuted" if max(better) < 0 else "partly"
    )
    gains = ", ".join("none" if m.value is None else f"{m.value:.3f}" for m in measures[3:5])
    why = (
        f"Over {len(by_seed)} seeds and {len(rows)} ways back its Brier score is lower than that of a constant and of "
        f"the turn alone by {gains}; supported if both intervals are above 0."
    )
    return measures, SubVerdict(f"arrow: forward growth predicts which way back {which}", verdict, why)


def _distances(evidence: Evidence, t: Thresholds) -> list[Measure]:
    """Measured over predicted distance at the onset, where the measured one is small."""
    rows = [row for row in pairs(evidence, "un-generalises", t) if row["kind"] == "random"]
    rows = [r for r in rows if r["measured"] and r["predicted"] and r["measured"] < t["small"]]
    by_seed = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append(row["measured"] / row["predicted"])
    if not by_seed:
        return [Measure("arrow: measured over predicted distance at the onset, where small", None, n=0)]
    ones = [1.0] * len(by_seed)
    means = [statistics.ratio(ratios, [1.0] * len(ratios)).value for ratios in by_seed.values()]
    name = f"arrow: measured over predicted distance at the onset, where below {t['small']:g}"
    return [Measure(name, *statistics.ratio(means, ones))]


def _shares(evidence: Evidence, out: Mapping[int, str], t: Thresholds) -> list[Measure]:
    """Share of ways back that return, by kind and size, from turns before and after the onset."""
    measures, seen = [], grid(evidence, out)
    ways = [
        (s["seed"], "before" if way["turn_step"] < s["onset"] else "after", way, outcome(way, s["start"]["test"], t))
        for s in seen
        for way in s["ways"]
    ]
    for kind in ("random", "gauge"):
        for size in sorted({way["size"] for _, _, way, _ in ways if way["kind"] == kind}):
            for side, which in (("before", "returns"), ("after", "returns"), ("after", "un-generalises")):
                own = [(s, o[which]) for s, at, w, o in ways if (at, w["kind"], w["size"]) == (side, kind, size)]
                by_seed = [share(y for s, y in own if s == seed) for seed in sorted({s for s, _ in own})]
                name = f"arrow, {kind} directions, size {size:g}, turns {side} the onset: share that {which}"
                measures.append(average(name, by_seed))
    for side in ("before", "after"):
        own = [w["end"]["test"] for _, at, w, _ in ways if w["kind"] == "momenta" and at == side]
        name = f"arrow, equal-norm random momenta at turns {side} the onset: test accuracy at step 0"
        measures.append(average(name, own, control=True))
    return measures


def _checks(evidence: Evidence, out: Mapping[int, str], t: Thresholds) -> list[Measure]:
    seen = grid(evidence, out)
    still = [(s, way) for s in seen for way in s["ways"] if way["kind"] == "none"]
    back = [float(outcome(way, s["start"]["test"], t)["returns"]) for s, way in still]
    floor = max((way["end"]["relative"] for _, way in still if way["end"]["relative"] is not None), default=None)
    told = {s["seed"]: s["digest"] for s in evidence[PREDICTED]}
    same = [float(told.get(s["seed"]) == s["digest"]) for s in seen]
    check: dict[str, Any] = {"control": True, "kind": "implementation check"}
    return [
        average("arrow, unperturbed in float64: share that returns", back, control=True),
        Measure(
            "arrow, unperturbed in float64: largest relative distance at step 0", floor, n=len(still), control=True
        ),
        average("arrow: share of jobs whose run was, to the bit, the predicted one", same, **check),
    ]
