"""Claim 3: how the evidence of all seeds makes a verdict. The rule that a run must meet is in `breathing_rule`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from . import breathing_measures as pure
from . import statistics
from .breathing_rule import (
    DECAY,
    FREE,
    HALF,
    MELT,
    SIZES,
    SWEEP,
    TROUGH,
    Run,
    Thresholds,
    by_momentum,
    fall_of,
    free_runs,
    frozen,
    generalised,
    kept,
    late_depth,
    left_out,
    misses,
    usable,
)
from .record import Evidence, Finding, Measure, SubVerdict, Verdict
from .return_rule import average, share

Found = tuple[list[Measure], list[SubVerdict]]


def judge(evidence: Evidence, t: Thresholds) -> Finding:
    """Refuted: learning and keeping both do without friction. Partly: one of them needs it, or needs it in part.

    Inconclusive: too few seeds to say. Supported it can't be, since crystallisation is not tested here.
    """
    free, by = free_runs(evidence, t), by_momentum(evidence, t)
    measures: list[Measure] = []
    subs: list[SubVerdict] = []
    for rule in (_learning, _keeping):
        more, verdicts = rule(free, by, t)
        measures, subs = measures + more, subs + verdicts
    more, verdicts = _cause(evidence, t)
    measures, subs = measures + more, subs + verdicts
    subs.append(
        SubVerdict(
            "(d) crystallisation",
            "inconclusive",
            "Not tested here: an order of transition needs noise, several sizes and starts from both sides.",
        )
    )
    measures += _breaths(free, t) + _circuit(free, t) + _lock_in(free, by, t) + _freezing(by, t)
    measures += _melting(evidence, t) + _relearning(evidence, t) + _controls(evidence, t) + _energy(evidence, t)
    return Finding(_verdict(subs), subs, measures, left_out(evidence, t))


def _verdict(subs: Sequence[SubVerdict]) -> Verdict:
    learning, keeping = subs[0].verdict, subs[1].verdict
    if "inconclusive" in (learning, keeping):
        return "inconclusive"
    if all(s.verdict == "supported" for s in subs):
        return "supported"
    return "refuted" if learning == keeping == "refuted" else "partly"


def _learning(free: Mapping[int, Run], by: Mapping[float, Mapping[int, Run]], t: Thresholds) -> Found:
    """Does the network generalise without friction?"""
    without = [float(generalised(run, t)) for run in free.values()]
    name, words = "without friction: share of seeds that generalised", f"above {t['few']:g}"
    plain = average(name, without)
    measures = [replace(plain, threshold=words, met=plain.value is not None and plain.value > t["few"])]
    cooled = {m: [float(generalised(run, t)) for run in runs.values()] for m, runs in by.items()}
    measures += [average(f"momentum {m:g}: share of seeds that generalised", cooled[m]) for m in sorted(by)[::-1]]
    enough = [values for values in cooled.values() if len(values) >= t["least seeds"]]
    best = max((share(map(bool, values)) or 0.0 for values in enough), default=0.0)
    sub, seen = "(a) learning needs friction", plain.value
    if seen is None or len(without) < t["least seeds"]:
        why = f"{len(without)} seeds without friction can be used; needed: {t['least seeds']:g}."
        return measures, [SubVerdict(sub, "inconclusive", why)]
    if seen <= t["few"]:
        verdict: Verdict = "supported" if best >= t["most"] else "inconclusive"
    else:
        verdict = "refuted" if seen >= t["most"] else "partly"
    low, high = plain.interval or (seen, seen)
    why = (
        f"{seen:.2f} of {len(without)} seeds generalised without friction ({low:.2f} to {high:.2f}), "
        f"and {best:.2f} with the best one."
    )
    return measures, [SubVerdict(sub, verdict, why)]


def _keeping(free: Mapping[int, Run], by: Mapping[float, Mapping[int, Run]], t: Thresholds) -> Found:
    """Does a network that generalised lose it again, and does friction keep it?"""
    cooled = by.get(t["freezing momentum"], {})
    both = [s for s in free if s in cooled and generalised(free[s], t) and generalised(cooled[s], t)]
    moving, still = [late_depth(free[s]) for s in both], [late_depth(cooled[s]) for s in both]
    sub = "(b) keeping needs friction"
    names = [
        "without friction: largest fall of test accuracy in the second half of the run",
        f"momentum {t['freezing momentum']:g}: the same",
    ]
    if len(both) < t["least seeds"]:
        why = f"{len(both)} seeds generalised with friction and without, and can be used; needed: {t['least seeds']:g}."
        measures = [average(name, x, False) for name, x in zip(names, (moving, still), strict=True)]
        return measures, [SubVerdict(sub, "inconclusive", why)]
    d0, d1 = average(names[0], moving, False), average(names[1], still, False)
    gap = statistics.paired(moving, still)
    measures = [
        replace(d0, threshold=f"at least {t['breath']:g}: it breathes", met=d0.value >= t["breath"]),
        replace(d1, threshold=f"at most {t['still']:g}: it is frozen", met=d1.value <= t["still"]),
        Measure("difference of the two", *gap, threshold="interval above 0", met=gap.interval[0] > 0),
    ]
    for m, runs in sorted(by.items(), reverse=True):
        if m != t["freezing momentum"]:
            name = f"momentum {m:g}: largest fall in the second half, of those that generalised"
            measures.append(average(name, [late_depth(r) for r in runs.values() if generalised(r, t)], False))
    verdict: Verdict = "inconclusive"
    if d0.value <= t["still"] and d0.interval[1] < t["breath"]:
        verdict = "refuted"
    elif gap.interval[0] > 0:
        verdict = "supported" if d0.value >= t["breath"] and d1.value <= t["still"] else "partly"
    why = (
        f"Test accuracy fell by {d0.value:.2f} without friction and by {d1.value:.2f} with momentum "
        f"{t['freezing momentum']:g}, in the second half of {len(both)} pairs of runs; {t['breath']:g} is a breath, "
        f"{t['still']:g} is frozen."
    )
    return measures, [SubVerdict(sub, verdict, why)]


def _cause(evidence: Evidence, t: Thresholds) -> Found:
    """Is it the norm? Held fixed, it would stop the breathing; given back, it would give back the accuracy."""
    seen = [e for e in evidence.get(TROUGH, ()) if usable(e, t)]
    falls = [(e, pure.depth([e["peak"]["test"], *e["motion"]["free"]["test"]])) for e in seen]
    breathing = [e for e, fall in falls if fall >= t["breath"]]
    key = "at the peak's norm"
    held = [e for e in breathing if e["held"][key] < t["energy"]]
    clamped = [pure.depth([e["peak"]["test"], *e["motion"][key]["test"]]) for e in held]
    of_free = [pure.depth([e["peak"]["test"], *e["motion"]["free"]["test"]]) for e in held]
    other = [pure.depth([e["peak"]["test"], *e["motion"]["random momenta"]["test"]]) for e in breathing]
    low = [e for e in breathing if e["held"]["at the trough's norm"] < t["energy"]]
    risen = [max([0.0, *(v - e["trough"]["test"] for v in e["motion"]["at the trough's norm"]["test"])]) for e in low]
    restored = {
        words: [_restored(e, f"trough to the peak's norm{words}") for e in breathing]
        for words in ("", ", tensor by tensor")
    }
    name = "from a peak on, at its norm: largest fall of test accuracy"
    fall = average(name, clamped, False)
    back = average("trough scaled to the peak's norm: share restored", restored[""], False)
    measures = [
        replace(fall, threshold=f"at least {t['breath']:g}: not the norm", met=_at_least(fall, t["breath"])),
        replace(back, threshold=f"below {t['restored']:g}: not the norm", met=_below(back, t["restored"])),
        average("the same seeds, free: largest fall", of_free, False, control=True),
        average("from a trough on, at its norm: largest rise of test accuracy", risen, False, control=True),
        average("random momenta of equal norm at the peak: largest fall", other, False, control=True),
        average(
            "trough scaled to the peak's norm, tensor by tensor: share restored",
            restored[", tensor by tensor"],
            False,
            control=True,
        ),
    ]
    for words in ("", ", tensor by tensor"):
        lost = [e["peak"]["test"] - e["scaled"][f"peak to the trough's norm{words}"]["test"] for e in breathing]
        measures.append(average(f"peak scaled to the trough's norm{words}: accuracy lost", lost, False, control=True))
    sub = "(c) breathing is not the norm's doing"
    if min(len(clamped), len(breathing)) < t["least seeds"]:
        why = f"{len(breathing)} runs fell from their peak again, {len(clamped)} kept H at one norm; needed: "
        return measures, [SubVerdict(sub, "inconclusive", why + f"{t['least seeds']:g}.")]
    answers = [
        _sides(fall, t["still"], t["breath"]),
        {True: False, False: True}.get(_sides(back, t["restored"], t["restored"])),
    ]
    verdict: Verdict = "partly"
    if None in answers:
        verdict = "inconclusive"
    elif len(set(answers)) == 1:
        verdict = "supported" if answers[0] else "refuted"
    why = (
        f"At one norm test accuracy fell by {fall.value:.2f} from its peak; the peak's norm gave back "
        f"{back.value:.2f} of what a trough had lost ({len(breathing)} seeds)."
    )
    return measures, [SubVerdict(sub, verdict, why)]


def _sides(m: Measure, low: float, high: float) -> bool | None:
    """True: at least `high`, and surely above `low`; False: the other way round; None: can't tell."""
    if m.value is None or m.interval is None:
        return None
    if m.value >= high and m.interval[0] > low:
        return True
    return False if m.value <= low and m.interval[1] < high else None


def _at_least(m: Measure, bar: float) -> bool:
    return m.value is not None and m.value >= bar


def _below(m: Measure, bar: float) -> bool:
    return m.value is not None and m.value < bar


def _restored(e: Mapping[str, Any], name: str) -> float:
    lost = e["peak"]["test"] - e["trough"]["test"]
    return (e["scaled"][name]["test"] - e["trough"]["test"]) / lost


def _breaths(free: Mapping[int, Run], t: Thresholds) -> list[Measure]:
    """Period, and phase of accuracy against norm."""
    periods, correlations, phases = [], [], []
    for run in free.values():
        onset = pure.first(run["curve"]["test"], t["generalised"])
        if onset is None:
            continue
        curve, lr = run["curve"], run["lr"]
        found = pure.period(curve, onset, t["breath"], lr)
        periods.append(found)
        if found is None:
            continue
        gap = lr * (curve["step"][1] - curve["step"][0])
        opposed = pure.lag(curve, onset, max(1, int(found / gap / 2)))
        correlations.append(pure.correlation(curve["test"][onset:], curve["norm"][onset:]))
        phases.append(None if opposed is None else opposed[1] * gap / found)
    with_period = [p for p in periods if p is not None]
    return [
        average("without friction: share of seeds with two breaths or more", [float(p is not None) for p in periods]),
        average("period of a breath", with_period, False, unit="steps times lr"),
        average("correlation of test accuracy and norm, without friction", correlations, False),
        average("by how much accuracy follows the opposite of the norm, in periods", phases, False),
    ]


def _circuit(free: Mapping[int, Run], t: Thresholds) -> list[Measure]:
    """Restricted and excluded loss along the largest fall: does the rule dissolve, or is it outvoted?"""
    names = {
        "test": "test accuracy",
        "restricted": "test accuracy of the keys' waves alone",
        "restricted_loss": "test loss of the keys' waves alone",
        "excluded_loss": "train loss without them",
        "explained": "share of the logits that they explain",
    }
    found: dict[str, list[float]] = {name: [] for name in names}
    kept: list[float] = []
    for run in free.values():
        fall = fall_of(run)
        if fall is None or not run["fourier"]["keys"] or pure.depth(run["curve"]["test"]) < t["breath"]:
            continue
        if run["curve"]["test"][fall[0]] < t["generalised"]:
            continue
        for name in names:
            values = run["curve"][name] if name == "test" else run["fourier"][name]
            found[name].append(values[fall[1]] - values[fall[0]])
        kept.append(run["fourier"]["restricted"][fall[1]])
    there = average("at the trough: test accuracy of the keys' waves alone", kept)
    changes = [average(f"from peak to trough, change of {words}", found[name], False) for name, words in names.items()]
    return [there, *changes]


def _lock_in(free: Mapping[int, Run], by: Mapping[float, Mapping[int, Run]], t: Thresholds) -> list[Measure]:
    """1 - momentum from which on a run stays, of seeds that generalised; the middle of its bracket, in logarithms."""
    middles, lows, highs, weakest, never = [], [], [], 0, 0
    for seed, run in free.items():
        ladder = [(0.0, run)] + [(1 - m, runs[seed]) for m, runs in sorted(by.items(), reverse=True) if seed in runs]
        ladder = [(f, r) for f, r in ladder if generalised(r, t)]
        if len(ladder) < 2:
            continue
        low, high = pure.lock_in([f for f, _ in ladder], [late_depth(r) <= t["still"] for _, r in ladder])
        never += high is None
        weakest += high is not None and not low
        if low and high:
            middles.append(math.log10(low * high) / 2)
            lows, highs = [*lows, low], [*highs, high]
    n = len(middles) + weakest + never
    return [
        average(
            "log10 of 1 - momentum at lock-in, middle of its bracket, where two tried have it between them",
            middles,
            False,
        ),
        Measure(
            "1 - momentum: least of any seed at which it still breathed below its lock-in",
            min(lows, default=None),
            n=len(lows),
        ),
        Measure("1 - momentum: largest of any seed that it took to hold still", max(highs, default=None), n=len(highs)),
        Measure("seeds that the weakest friction tried, or none, held still", float(weakest), None, n),
        Measure("seeds that no friction tried held still (over the largest)", float(never), None, n),
    ]


def _freezing(by: Mapping[float, Mapping[int, Run]], t: Thresholds) -> list[Measure]:
    """Bits and nats up to the look from which on test accuracy stays within a band."""
    runs = [r for r in by.get(t["freezing momentum"], {}).values() if generalised(r, t)]
    looks = [(r["curve"], pure.frozen_at(r["curve"], t["still"])) for r in runs]
    held = [(curve, i) for curve, i in looks if i is not None]
    words = f"momentum {t['freezing momentum']:g}"
    until, froze = f"{words}, until frozen", [float(i is not None) for _, i in looks]
    return [
        average(f"{words}: share of seeds that froze within a band of {t['still']:g}", froze),
        average(f"{until}: bits a parameter", [c["bits"][i] for c, i in held], False, unit="bits"),
        average(f"{until}: energy that friction took", [c["taken"][i] for c, i in held], False, unit="nats"),
        average(f"{words}: test accuracy at the end", [r["curve"]["test"][-1] for r in runs]),
        average(f"{words}: |p|^2 at the end", [r["curve"]["square"][-1] for r in runs], False),
    ]


def _melting(evidence: Evidence, t: Thresholds) -> list[Measure]:
    """How much energy melts it, beside what freezing took; of networks that were frozen, and kicks that kept H."""
    seen = [e for e in evidence.get(MELT, ()) if frozen(e, t)]
    least, held, price, ratio, over, rest = [], [], [], [], 0, []
    for e in seen:
        level, kicks = e["frozen"]["test"], [k for k in e["kicks"] if kept(k, t)]
        rest += [level - k["test"] for k in kicks if k["energy"] == 0]
        low, high = pure.melting_energy([k for k in kicks if k["energy"] > 0], level, t["breath"])
        over += high is None
        held += [] if low is None else [low]
        if high is not None:
            square = next(k["square"] for k in kicks if k["energy"] == high)
            least.append(high)
            price.append(math.log2(square / e["frozen"]["square"]) / 2)
            ratio.append(high / e["frozen"]["taken"])
    name = "bits a parameter that taking that kick out again would cost, at fixed weights: log2(|p|^2 after/before)/2"
    return [
        average("friction turned off, no kick: largest loss of test accuracy", rest, False, control=True),
        average("least kick that melts, of those tried", least, False, unit="nats"),
        average("largest kick below it that does not", held, False, unit="nats"),
        average(name, price, False, unit="bits"),
        average("least kick that melts, over the energy that friction took", ratio, False),
        Measure("frozen networks that no kick tried melted (over the largest)", float(over), None, len(seen)),
    ]


def _relearning(evidence: Evidence, t: Thresholds) -> list[Measure]:
    """Steps from a trough over steps from a fresh network; capped ones are counted."""
    seen = [e for e in evidence.get(TROUGH, ()) if usable(e, t)]
    out = []
    for control in ("fresh", "fresh at the trough's norm"):
        pairs = [(e["relearning"]["trough"]["steps"], e["relearning"][control]["steps"]) for e in seen]
        both = [a / (b or e["settings"]["cap"]) for (a, b), e in zip(pairs, seen, strict=True) if a is not None]
        name = f"relearning: steps from a trough over steps from {control}"
        found = statistics.bootstrap(both) if both else (None, None, 0)
        out.append(Measure(f"{name}, median (over the cap counts as the cap: at most so much)", *found))
        over = sum(a is not None and b is None for a, b in pairs)
        out.append(Measure(f"{name}: {control} over the cap, trough not", float(over), None, len(pairs), control=True))
    lost = sum(e["relearning"]["trough"]["steps"] is None for e in seen)
    return [*out, Measure("relearning: troughs over the cap", float(lost), None, len(seen))]


def _controls(evidence: Evidence, t: Thresholds) -> list[Measure]:
    """Half the step size, other decays, other sizes; and that runs wound back are where they were."""
    out = []
    for part in (HALF, DECAY, SIZES):
        groups: dict[str, list[Run]] = {}
        for seen in evidence.get(part, ()):
            for run in seen["runs"]:
                groups.setdefault(_words(run["changes"]), []).append(run)
        for words, runs in groups.items():
            kept = [r for r in runs if misses(r, t, r["momentum"] == 1) is None]
            name = f"{part}{f', {words}' if words else ''}"
            learned = [r for r in kept if generalised(r, t)]
            out.append(
                average(f"{name}: share that generalised", [float(generalised(r, t)) for r in kept], control=True)
            )
            falls = [late_depth(r) for r in learned]
            out.append(average(f"{name}: largest fall in the second half", falls, False, control=True))
            periods = [_period(r, t) for r in learned]
            out.append(average(f"{name}: period", periods, False, unit="steps times lr", control=True))
    back = [e[at]["returned"] for e in evidence.get(TROUGH, ()) if "peak" in e for at in ("trough", "peak")]
    name = "wound back over a breath: share with the same table, bit for bit"
    check: dict[str, Any] = {"kind": "implementation check", "control": True}
    return [*out, average(name, map(float, back), threshold="1", met=bool(back) and all(back), **check)]


def _period(run: Run, t: Thresholds) -> float | None:
    onset = pure.first(run["curve"]["test"], t["generalised"])
    return None if onset is None else pure.period(run["curve"], onset, t["breath"], run["lr"])


def _words(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in changes.items() if name not in ("steps", "every"))


def _energy(evidence: Evidence, t: Thresholds) -> list[Measure]:
    """Largest change of H without friction, and what is left of it with friction when its own part is taken off."""
    out = []
    for part, key, of in ((FREE, "energy_change", max), (HALF, "energy_change", max), (SWEEP, "leak", max)):
        values = [of(r[key] for r in e["runs"]) for e in evidence.get(part, ()) if e["runs"]]
        largest = max(values, default=None)
        words = "largest |change of H| of any seed" if key == "energy_change" else "largest change of H but friction's"
        bar = f"below {t['energy']:g} (runs without friction that miss it are left out)"
        met = largest is not None and largest < t["energy"]
        out.append(Measure(f"{part}: {words}", largest, None, len(values), "nats", bar, met, control=True))
    return out
