"""The rule of claim 11: from the evidence of heated and cooled runs to a verdict."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .heating_pictures import along
from .record import Evidence, Finding, Measure, SubVerdict, Verdict
from .statistics import Estimate, exponent, mean, ratio

Seeds = Sequence[Mapping[str, Any]]

FULL = ("full batch", "full batch, half the step")
PLACES = {"from rest": "small", "heated": "large"}
NONE = Estimate(None, None, 0)


def _over(statistic: Callable[..., Estimate], *values: Sequence[Any]) -> Estimate:
    """A statistic, or none where there is nothing to make it of."""
    return statistic(*values) if values[0] else NONE


def _ratio(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Of positive numbers; a seed with another one leaves nothing that can be stated."""
    return ratio(a, b) if a and min(*a, *b) > 0 else NONE


def _above(found: Estimate, bound: float) -> Verdict:
    """Whether all of the interval lies above."""
    if found.interval is None:
        return "inconclusive"
    return "supported" if found.interval[0] > bound else "refuted" if found.interval[1] < bound else "inconclusive"


def _within(found: Estimate, low: float, high: float) -> Verdict:
    """Whether all of the interval lies within; refuted: all of it outside."""
    if found.interval is None:
        return "inconclusive"
    a, b = found.interval
    return "supported" if low <= a and b <= high else "refuted" if b < low or a > high else "inconclusive"


def _together(verdicts: Sequence[Verdict]) -> Verdict:
    """All alike, or partly; nothing is concluded if none is supported and one is inconclusive."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "partly" if "supported" in verdicts or "partly" in verdicts else "inconclusive"


def _say(found: Estimate, digits: int = 3) -> str:
    if found.value is None:
        return "not measured"
    bounds = "" if found.interval is None else f" ({found.interval[0]:.{digits}g} to {found.interval[1]:.{digits}g})"
    return f"{found.value:.{digits}g}{bounds}"


def _met(verdict: Verdict) -> bool:
    return verdict == "supported"


# -- numbers of one seed ---------------------------------------------------------------------------------


def _rise(arm: Mapping[str, Any], view: str = "mean") -> float:
    """H over the last tenth of a run, less H at its start."""
    values = arm[view]
    return float(np.mean(values[-max(1, len(values) // 10) :]) - values[0])


def _due(arm: Mapping[str, Any]) -> float:
    """What the formula says of `_rise`."""
    values = arm["predicted"]
    return float(np.mean(values[-max(1, len(values) // 10) :]))


def _swing(arm: Mapping[str, Any]) -> float:
    """Largest |change of H|."""
    return max(abs(h - arm["full"][0]) for h in arm["full"])


def _stored(arm: Mapping[str, Any]) -> float:
    """Share of the rise of H that is in the potential at the end: weights further out, and a higher loss."""
    kinetic = np.log1p(arm["square"])
    return 1 - float(kinetic[-max(1, len(kinetic) // 10) :].mean() - kinetic[0]) / _rise(arm)


def _late(arm: Mapping[str, Any]) -> np.ndarray:
    """Which looks lie in the last 15/16 of a run: its last four doublings of time."""
    steps = np.array(arm["steps"])
    return steps >= steps[-1] / 16


def _last_doubling(arm: Mapping[str, Any]) -> float:
    """H over the last tenth of the run, less H over the last tenth of its first half."""
    h, n = np.array(arm["mean"]), len(arm["mean"])
    tenth = max(1, n // 10)
    half = n // 2 + 1
    return float(h[-tenth:].mean() - h[half - max(1, tenth // 2) : half].mean())


def _linear_over_log(arm: Mapping[str, Any]) -> tuple[float, float, float]:
    """Squares left by a line in t, by one in log t, at late times; and the latter's slope."""
    late = _late(arm)
    h, t = np.array(arm["mean"])[late], np.array(arm["steps"], dtype=np.float64)[late]
    left = []
    for x in (t, np.log(t)):
        slope, start = np.polyfit(x, h, 1)
        left.append(float(((h - slope * x - start) ** 2).sum()))
    return left[0], left[1], float(slope)


# -- the sub-verdicts ------------------------------------------------------------------------------------


def _adds(seeds: Seeds, t: Mapping[str, float], measures: list[Measure]) -> SubVerdict:
    small = [s["arms"]["with replacement"] for s in seeds]
    bound = t["beyond the control"] * t["control"]
    full, average = _over(mean, [_rise(a, "full") for a in small]), _over(mean, [_rise(a) for a in small])
    verdict = _above(full, bound)
    words = f"above {bound:g}"
    measures.append(Measure("rise of H on the full data", *full, "nats", words, _met(verdict)))
    measures.append(Measure("rise of H on the average over batches", *average, "nats"))
    stored = _over(mean, [_stored(a) for a in small if _rise(a) > bound])
    measures.append(Measure("share of that rise that is in the potential at the end", *stored))
    work = _over(mean, [float(np.mean(np.subtract(a["full"], a["mean"]))) for a in small])
    measures.append(Measure("H on full less H on average: reversible work, no heat", *work, "nats"))
    for name, arm in (("small batches", "with replacement"), ("the full batch", "full batch")):
        right = _over(mean, [s["arms"][arm]["accuracy"] for s in seeds])
        measures.append(Measure(f"test accuracy at the end, {name}", *right, control=arm == "full batch"))
    why = f"H on the full data rose by {_say(full)} nats, where the full batch keeps it within {t['control']:g}."
    return SubVerdict("adds energy", verdict, why)


def _continues(seeds: Seeds, t: Mapping[str, float], measures: list[Measure]) -> SubVerdict:
    small = [s["arms"]["with replacement"] for s in seeds]
    square = _over(mean, [float(np.mean(np.array(a["square"])[_late(a)])) for a in small])
    last = _over(mean, [_last_doubling(a) for a in small])
    fits = [_linear_over_log(a) for a in small]
    left, slope = _ratio([f[0] for f in fits], [f[1] for f in fits]), _over(mean, [f[2] for f in fits])
    large = square.value is not None and square.value >= t["large |p|^2"]
    goes_on, like_log = _above(last, 0.0), _above(left, 1.0)
    measures += [
        Measure("|p|^2/s at late times", *square, "", f"at least {t['large |p|^2']:g}", large),
        Measure("rise of H over the last doubling of time", *last, "nats", "above 0", _met(goes_on)),
        Measure("squares left by H ~ t over those by H ~ log t", *left, "", "above 1", _met(like_log)),
        Measure("late slope of H against log t", *slope, "nats"),
    ]
    stopped = last.interval is not None and last.interval[1] < t["stopped"]
    if stopped:
        verdict: Verdict = "refuted"
    elif not large or goes_on != "supported" or like_log == "inconclusive":
        verdict = "inconclusive"
    else:
        verdict = "supported" if like_log == "supported" else "partly"
    why = (
        f"Over the last doubling of time H rose by {_say(last)} nats; a line in t leaves {_say(left)} times the "
        f"squares of one in log t, at a mean |p|^2 of {_say(square)}."
    )
    return SubVerdict("continuously", verdict, why)


def _exponents(evidence: Evidence, t: Mapping[str, float], measures: list[Measure]) -> tuple[SubVerdict, bool]:
    """Also whether the heat is independent of batch size."""
    verdicts, said, alike = [], [], []
    for part, words in PLACES.items():
        for axis, expected in (("dt", 2.0), ("batch", -1.0)):
            tables = [along(s, axis) for s in evidence.get(part, ())]
            curves = {
                what: [([r[axis] for r in rows], [r[what] / r["steps"] for r in rows]) for rows in tables]
                for what in ("heat", "predicted")
            }
            bad = any(min(y) <= 0 for pair in curves.values() for _, y in pair)
            found, own = (NONE if bad else _over(exponent, curves[what]) for what in ("heat", "predicted"))
            low, high = expected - t["exponent"], expected + t["exponent"]
            verdict = _within(found, low, high)
            verdicts.append(verdict)
            name = "dt" if axis == "dt" else "batch size"
            measures.append(
                Measure(
                    f"exponent of heat a step in {name}, |p|^2 {words}",
                    *found,
                    "",
                    f"within {low:g} to {high:g}",
                    _met(verdict),
                )
            )
            measures.append(Measure(f"the formula's own exponent in {name}, |p|^2 {words}", *own))
            said.append(f"{_say(found)} in {name} (|p|^2 {words}; the formula itself there: {_say(own)})")
            if axis == "batch":
                told = found.interval is not None and found.interval[0] > expected / 2  # too wide tells nothing
                alike.append(told and found.interval[1] >= 0)
    why = f"Heat a step goes with powers {', '.join(said)}; 2 and -1 were expected."
    return SubVerdict("exponents", _together(verdicts), why), all(alike)


def _formula(evidence: Evidence, seeds: Seeds, t: Mapping[str, float], measures: list[Measure]) -> SubVerdict:
    low, high = 1 / t["factor"], t["factor"]
    words, verdicts, said = f"within {low:.3g} to {high:g}", [], []
    for part, size in PLACES.items():
        runs = evidence.get(part, ())
        square = _over(mean, [float(np.mean([r["square"] for r in s["rows"]])) for s in runs])
        bound, small = t[f"{size} |p|^2"], size == "small"
        right = square.value is not None and (square.value <= bound if small else square.value >= bound)
        limit = f"at {'most' if small else 'least'} {bound:g}"
        measures.append(Measure(f"|p|^2/s where |p|^2 is {size}", *square, "", limit, right))
        sums = [[sum(r[what] for r in s["rows"]) for s in runs] for what in ("heat", "predicted", "plain")]
        found = _ratio(sums[0], sums[1])
        verdict = _within(found, low, high) if right else "inconclusive"
        verdicts.append(verdict)
        measures.append(Measure(f"heat over the formula's, |p|^2 {size}", *found, "", words, _met(verdict)))
        plain = _ratio(sums[2], sums[1])
        measures.append(Measure(f"the same of the plain change of H, |p|^2 {size}", *plain))
        changes = [abs(c["change"]) for s in runs for c in s["controls"]]
        largest = max(changes, default=None)
        measures.append(
            Measure(
                f"full batch over the same time, |p|^2 {size}: largest |change of H|, taken off",
                largest,
                None,
                len(runs),
                "nats",
                control=True,
            )
        )
        said.append(f"{_say(found)} where |p|^2 is {size}")
    small = [s["arms"]["with replacement"] for s in seeds]
    along_runs = _ratio([_rise(a) for a in small], [_due(a) for a in small])
    verdicts.append(_within(along_runs, low, high))
    measures.append(Measure("rise of H over the formula's, long runs", *along_runs, "", words, _met(verdicts[-1])))
    said.append(f"{_say(along_runs)} over long runs")
    for part, arm in (("growth", "without replacement"), ("cooling", "free, without replacement")):
        runs = seeds if part == "growth" else evidence.get(part, ())
        arms = [s["arms"][arm] for s in runs]
        share = _ratio([_rise(a) for a in arms], [_due(a) for a in arms])
        size = f"batches of {runs[0]['settings']['batch']}" if runs else part
        measures.append(Measure(f"the same without replacement, {size}", *share, control=True))
    why = f"Heat is {', '.join(said)}, of what the formula says."
    return SubVerdict("formula", _together(verdicts), why)


def _cooling(seeds: Seeds, t: Mapping[str, float], measures: list[Measure]) -> SubVerdict:
    low, high = 1 / t["factor"], t["factor"]
    words, verdicts, said = f"within {low:.3g} to {high:g}", [], []
    free = [_rise(s["arms"]["free"]) for s in seeds]
    measures.append(Measure("rise of H without a thermostat", *_over(mean, free), "nats", control=True))
    for name in ("rescale", "friction"):
        arms = [s["arms"][name] for s in seeds]
        pairs = [_paid(a) if name == "rescale" else _paid_steadily(a) for a in arms]
        paid, due = [p[0] for p in pairs], [p[1] for p in pairs]
        measures.append(Measure(f"price of {name}, bits per parameter per step", *_over(mean, paid), "bits"))
        found = _ratio(paid, due)
        bill = _within(found, low, high)
        measures.append(Measure(f"price of {name} over that of the heat", *found, "", words, _met(bill)))
        held = _over(mean, [_rise(a) / f for a, f in zip(arms, free, strict=True)])
        limit = t["held"]
        holds: Verdict = "inconclusive"
        if held.interval is not None:
            holds = "supported" if held.interval[1] < limit else "refuted" if held.interval[0] > limit else holds
        measures.append(Measure(f"rise of H with {name}, of that without", *held, "", f"below {limit:g}", _met(holds)))
        verdicts += [bill, holds]
        said.append(
            f"{name} costs {_say(_over(mean, paid))} bits per parameter per step, {_say(found)} of the heat's price"
        )
    smaller = [_paid(s["arms"]["rescale, smaller batches"]) for s in seeds]
    size = f"batches of {seeds[0]['settings']['smaller']}" if seeds else "smaller batches"
    found = _ratio([p[0] for p in smaller], [p[1] for p in smaller])
    measures.append(Measure(f"price of rescale over that of the heat, {size}", *found))
    skipped = _over(mean, [float(s["arms"]["rescale, smaller batches"]["skipped"]) for s in seeds])
    measures.append(Measure(f"steps at which the shell was out of reach, {size}", *skipped))
    nothing = _over(mean, [_paid(s["arms"]["rescale, full batch"])[0] for s in seeds])
    measures.append(Measure("price of rescale, full batch", *nothing, "bits", control=True))
    exact = [_paid(s["arms"]["friction"])[0] / math.log2(1 / s["keep"]) for s in seeds]
    tape = _over(mean, exact)
    measures.append(
        Measure("bits on the tape over log2(1/keep), friction", *tape, kind="implementation check", control=True)
    )
    return SubVerdict("what cooling costs", _together(verdicts), "; ".join(said).capitalize() + ".")


def _paid(arm: Mapping[str, Any]) -> tuple[float, float]:
    """Bits per parameter per step, and what each step's heat would cost."""
    return arm["bits"][-1] / arm["steps"][-1], arm["bill"][-1] / arm["steps"][-1]


def _paid_steadily(arm: Mapping[str, Any]) -> tuple[float, float]:
    """The same of the second half, where the balance is one of means: mean heat, at the mean of |p|^2/(s + |p|^2)."""
    half = len(arm["steps"]) // 2
    paid, heat, steps = (arm[k][-1] - arm[k][half] for k in ("bits", "predicted", "steps"))
    return paid / steps, heat / steps / (2 * math.log(2) * arm["share"])


def judge(evidence: Evidence, thresholds: Mapping[str, float]) -> Finding:
    """The verdict, by the claim's rule."""
    t, measures, left_out, kept = thresholds, [], [], []
    for s in evidence.get("growth", ()):
        swings = [_swing(s["arms"][name]) for name in FULL]
        if max(swings) < t["control"]:
            kept.append(s)
        else:
            left_out.append(f"growth, seed {s['seed']}: with the full batch H changed by {max(swings):.2g}")
    for k, name in enumerate(FULL):
        found = [_swing(s["arms"][FULL[k]]) for s in evidence.get("growth", ())]
        largest = max(found, default=None)
        met = largest is not None and largest < t["control"]
        words = f"below {t['control']:g}"
        measures.append(
            Measure(f"largest |change of H|, {name}", largest, None, len(found), "nats", words, met, control=True)
        )
    adds, continues = _adds(kept, t, measures), _continues(kept, t, measures)
    exponents, independent = _exponents(evidence, t, measures)
    formula, cools = _formula(evidence, kept, t, measures), _cooling(evidence.get("cooling", ()), t, measures)
    if adds.verdict == "refuted" or independent:
        verdict: Verdict = "refuted"
    elif adds.verdict == "inconclusive":
        verdict = "inconclusive"
    else:
        verdict = "supported" if continues.verdict == "supported" else "partly"
    return Finding(verdict, [adds, continues, exponents, formula, cools], measures, left_out)
