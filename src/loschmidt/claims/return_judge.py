"""Claim 10: how the evidence of all seeds makes a verdict."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from . import statistics
from .record import Evidence, Finding, Measure, SubVerdict, Verdict
from .return_rule import (
    BATCHES,
    FLOATS,
    FRICTION,
    GRID,
    LATTICE,
    Thresholds,
    after_onset,
    average,
    before_onset,
    growth_rate,
    left_out,
    predicted_distance,
    returned,
    share,
)


def _grade(value: float | None, t: Thresholds) -> Verdict:
    if value is None:
        return "inconclusive"
    return "supported" if value >= t["most"] else "refuted" if value <= t["few"] else "partly"


def _graded(name: str, values: Iterable[float | None], t: Thresholds, sub: str) -> tuple[Measure, SubVerdict]:
    """A share of returns, held against `most`, and the verdict on it."""
    plain = average(name, values)
    met = plain.value is not None and plain.value >= t["most"]
    measure = replace(plain, threshold=f"at least {t['most']:g}", met=met)
    if plain.value is None:
        return measure, SubVerdict(sub, "inconclusive", "No seed gave a number.")
    why = f"{name}: {plain.value:.2f} over {plain.n} seeds; {t['most']:g} would be all, {t['few']:g} none."
    return measure, SubVerdict(sub, _grade(plain.value, t), why)


def judge(evidence: Evidence, t: Thresholds) -> Finding:
    """Supported: floats and all perturbed returns come back from turns after the onset. Partly: the lattice does, and
    some of these don't. Refuted: nothing but the lattice comes back, from anywhere. Else inconclusive."""
    out = left_out(evidence, t)
    kept = {part: [seen for seen in several if seen["seed"] not in out] for part, several in evidence.items()}
    grid = kept.get(GRID, [])
    by_seed = {seen["seed"]: seen for seen in grid}
    measures, subs = _lattice(evidence.get(LATTICE, []))
    for rule in (_floats, _perturbed, _batches):
        more, verdicts = rule(kept, by_seed, t)
        measures += more
        subs += verdicts
    measures += _prediction(grid, t) + _controls(kept, t) + _energy(evidence.get(GRID, []), t)
    words = [f"seed {seed}: {why}" for seed, why in sorted(out.items())]
    for part in (BATCHES, FRICTION):
        missed = [seen for seen in kept.get(part, ()) if seen["out"]["onset"] is None]
        words += [f"seed {s['seed']}, {part}: {s['out']['ended_by'] or 'it did not generalise'}" for s in missed]
    return Finding(_verdict(subs, kept, by_seed, t), subs, measures, words)


def _verdict(subs: Sequence[SubVerdict], kept: Evidence, by_seed: Mapping[int, Any], t: Thresholds) -> Verdict:
    lattice, *rest = subs
    few = len(by_seed) < t["least seeds"]
    if few or lattice.verdict != "supported" or any(s.verdict == "inconclusive" for s in rest):
        return "inconclusive"
    if all(s.verdict == "supported" for s in rest):
        return "supported"
    grid = [
        (w, seen) for seen in by_seed.values() for w in seen["returns"] if w["kind"] in ("random", "one sample, once")
    ]
    floats = [(w, by_seed[seen["seed"]]) for seen in _of(kept, FLOATS, by_seed) for d in _dtypes(seen) for w in seen[d]]
    anything = any(returned(way, seen["start"]["test"], t) for way, seen in grid + floats)
    anything |= any(s.verdict in ("supported", "partly") for s in rest)  # fresh batches, and samples throughout
    return "partly" if anything else "refuted"


def _of(kept: Evidence, part: str, by_seed: Mapping[int, Any]) -> list[Mapping[str, Any]]:
    return [seen for seen in kept.get(part, ()) if seen["seed"] in by_seed]


def _dtypes(seen: Mapping[str, Any]) -> list[str]:
    return [name for name in ("float32", "float64") if name in seen]


def _lattice(several: Sequence[Mapping[str, Any]]) -> tuple[list[Measure], list[SubVerdict]]:
    n = len(several)
    back, twins = sum(s["returned"] for s in several), sum(s["twin_returned"] for s in several)
    check: dict[str, Any] = {"n": n, "kind": "implementation check"}
    name, twin = (
        "lattice: share of runs with all bits back",
        "lattice: share of twins, one unit of one parameter changed, with all bits back",
    )
    measures = [
        Measure(name, back / n if n else None, threshold="1", met=n > 0 and back == n, **check),
        Measure(twin, twins / n if n else None, threshold="0", met=n > 0 and not twins, control=True, **check),
    ]
    verdict: Verdict = "supported" if n and back == n and not twins else "inconclusive"
    why = f"{back} of {n} runs came back with all bits, and {twins} of their twins; true by construction, no evidence."
    return measures, [SubVerdict("(a) return on the lattice", verdict, why)]


def _floats(kept: Evidence, by_seed: Mapping[int, Any], t: Thresholds) -> tuple[list[Measure], list[SubVerdict]]:
    several = _of(kept, FLOATS, by_seed)
    measures, grades = [], []
    for dtype, epsilon in (("float32", 2.0**-23), ("float64", 2.0**-52)):
        shares, horizons, rates, never = [], [], [], 0
        for seen in several:
            start, onset = by_seed[seen["seed"]]["start"]["test"], by_seed[seen["seed"]]["out"]["onset"]
            flags = [(way["turn_step"], returned(way, start, t)) for way in seen[dtype]]
            shares.append(share(back for step, back in flags if step >= onset))
            lost = [step for step, back in flags if not back]
            never += not lost
            horizons.append(min(lost) if lost else max(step for step, _ in flags))
            rates.append(growth_rate(seen[dtype], epsilon, onset, seen["settings"]["optimizer_settings"]["lr"]))
        name = f"{dtype}, out and back: share of turns after the onset from which the function returned"
        measure, verdict = _graded(name, shares, t, f"(b) return in {dtype}")
        grades.append(verdict)
        measures.append(measure)
        if horizons:
            value, interval, n = statistics.bootstrap(horizons)
            name = f"{dtype}: first turn without return"
            if never:  # seeds that returned from all turns count with the last: a bound from below, without interval
                name, interval = f"{name}, at least ({never} of {n} seeds returned from all turns)", None
            measures.append(Measure(name, value, interval, n, unit="steps"))
        measures.append(
            average(
                f"{dtype}: growth rate of the error from the last turn back to the onset",
                rates,
                bounded=False,
                unit="nats a unit of time",
            )
        )
    both = {g.verdict for g in grades}
    verdict: Verdict = "inconclusive" if "inconclusive" in both else both.pop() if len(both) == 1 else "partly"
    return measures, [SubVerdict("(b) return in floats", verdict, " ".join(g.why for g in grades))]


def _perturbed(kept: Evidence, by_seed: Mapping[int, Any], t: Thresholds) -> tuple[list[Measure], list[SubVerdict]]:
    grid = list(by_seed.values())

    def shares(where: Callable, kind: str, size: float | None = None) -> list[float | None]:
        return [
            share(
                returned(way, seen["start"]["test"], t)
                for way in where(seen)
                if way["kind"] == kind and (size is None or way["size"] == size)
            )
            for seen in grid
        ]

    measures, subs = [], []
    sizes = sorted({way["size"] for seen in grid for way in seen["returns"] if way["kind"] in ("random", "gauge")})
    practical = next((s for s in sizes if s >= t["practical size"]), None)
    wanted = [
        (f"perturbed by {practical or t['practical size']:g}", shares(after_onset, "random", practical)),
        ("one sample replaced in one step", shares(after_onset, "one sample, once")),
        ("one sample replaced throughout", shares(after_onset, "one sample, throughout")),
    ]
    for name, values in wanted:
        full = f"{name}: share of turns after the onset from which the function returned"
        measure, verdict = _graded(full, values if practical or "sample" in name else [], t, f"(c) {name}")
        measures.append(measure)
        subs.append(verdict)
    for kind in ("random", "gauge"):
        for size in sizes:
            for words, where in (("before", before_onset), ("after", after_onset)):
                name = f"{kind} direction, size {size:g}: share of turns {words} the onset with return"
                measures.append(average(name, shares(where, kind, size)))
            ways = [[w for w in after_onset(seen) if w["kind"] == kind and w["size"] == size] for seen in grid]
            low = [share(w["lowest_test"] <= t["un-generalised"] for w in several) for several in ways]
            name = f"{kind} direction, size {size:g}, turns after the onset"
            measures.append(average(f"{name}: share that un-generalised on the way back", low))
            forgot = [
                share(abs(w["end"]["test"] - seen["start"]["test"]) <= t["accuracy floor"] for w in several)
                for seen, several in zip(grid, ways, strict=True)
            ]
            measures.append(average(f"{name}: share with the start's test accuracy at step 0", forgot))
            for key, what in (("test", "test accuracy"), ("agreement", "agreement with the start's function")):
                ends = [_mean(w["end"][key] for w in several) for several in ways]
                measures.append(average(f"{name}: {what} at step 0", ends))
    return measures, subs


def _mean(values: Iterable[float | None]) -> float | None:
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


def _batches(kept: Evidence, by_seed: Mapping[int, Any], t: Thresholds) -> tuple[list[Measure], list[SubVerdict]]:
    several = [seen for seen in _of(kept, BATCHES, by_seed) if seen["out"]["onset"] is not None]
    values = [_share_of(seen, after_onset(seen), "fresh batches", t) for seen in several]
    name = "mini-batches, fresh ones on the way back: share of turns after the onset from which the function returned"
    measure, verdict = _graded(name, values, t, "(c) fresh batches")
    replayed = [share(w["exact"] is True for w in seen["returns"] if w["kind"] == "none") for seen in several]
    check = average(
        "mini-batches, the same ones: share with all bits back", replayed, kind="implementation check", control=True
    )
    heat = [seen["out"]["energy_change"] for seen in several]
    return [measure, check, average("mini-batches: largest |change of H| on the way out", heat, False, unit="nats")], [
        verdict
    ]


def _share_of(seen: Mapping[str, Any], ways: Iterable[Mapping[str, Any]], kind: str, t: Thresholds) -> float | None:
    return share(returned(way, seen["start"]["test"], t) for way in ways if way["kind"] == kind)


def _prediction(grid: Sequence[Mapping[str, Any]], t: Thresholds) -> list[Measure]:
    """Does forward growth say which turns un-generalise, which return, and how far from the way out they come?

    A tangent map does not know of the kinks of ReLU. A perturbation large enough to cross some is further off than this
    says, and the more so the longer the way: in the pilots that decided returns, not yet un-generalising.
    """
    hits, always, ratios, back, back_always = [], [], [], [], []
    for seen in grid:
        cells = [(way, predicted_distance(seen, way)) for way in after_onset(seen) if way["kind"] == "random"]
        cells = [(way, p) for way, p in cells if p is not None]
        truths = [way["lowest_test"] <= t["un-generalised"] for way, _ in cells]
        guesses = [p <= t["onset distance"] for _, p in cells]
        hits.append(share(a == b for a, b in zip(truths, guesses, strict=True)))
        always.append(_constant(truths))
        ways = [
            w for w in seen["returns"] if w["kind"] == "random" and predicted_distance(seen, w, "start") is not None
        ]
        truths = [returned(way, seen["start"]["test"], t) for way in ways]
        guesses = [predicted_distance(seen, way, "start") <= t["start distance"] for way in ways]
        back.append(share(a == b for a, b in zip(truths, guesses, strict=True)))
        back_always.append(_constant(truths))
        logs = [math.log10(d / p) for way, p in cells if (d := way["onset_distance"]) and d < 0.1]
        ratios.append(sum(logs) / len(logs) if logs else None)
    below = (
        f"forward growth: share of turns whose un-generalising is predicted by a distance below {t['onset distance']:g}"
    )
    return [
        average(below, hits),
        average("un-generalising: share that the better of two constant answers has right", always, control=True),
        average(f"forward growth: share of returns predicted by one below {t['start distance']:g} at the start", back),
        average("returns: share that the better of two constant answers has right", back_always, control=True),
        average("log10 of measured over predicted distance at the onset, where below 0.1", ratios, False),
    ]


def _constant(truths: Sequence[bool]) -> float | None:
    """How often the better of the answers "always" and "never" is right."""
    return max(share(truths), 1 - share(truths)) if truths else None


def _controls(kept: Evidence, t: Thresholds) -> list[Measure]:
    grid = kept.get(GRID, [])

    def ends(kind: str, field: str, where: Callable) -> list[float | None]:
        return [_mean(way["end"][field] for way in where(seen) if way["kind"] == kind) for seen in grid]

    exact = [share(w["exact"] is True for w in seen["returns"] if w["kind"] == "none") for seen in grid]
    past = {kind: _learned_past(grid, kind, t) for kind in ("past the start", "past the start, unperturbed")}
    friction = [seen for seen in kept.get(FRICTION, []) if seen["out"]["onset"] is not None]
    check: dict[str, Any] = {"kind": "implementation check", "control": True}
    momenta = [
        average(
            f"equal-norm random momenta {words} the onset: {what} at step 0", ends("momenta", key, where), control=True
        )
        for words, where in (("before", before_onset), ("after", after_onset))
        for what, key in (("test accuracy", "test"), ("agreement with the start's function", "agreement"))
    ]
    measures = [
        average("unperturbed: share with all bits back", exact, **check),
        *momenta,
        average(
            "turned before the onset, past step 0, perturbed: share that generalised there", past["past the start"]
        ),
        average(
            "turned before the onset, past step 0, unperturbed (a palindrome): share that generalised there",
            past["past the start, unperturbed"],
            **check,
        ),
        average(
            "SGD with momentum, unperturbed: share with all bits back",
            [share(w["exact"] is True for w in seen["returns"] if w["kind"] == "none") for seen in friction],
            **check,
        ),
    ]
    for size in sorted({w["size"] for seen in friction for w in seen["returns"] if w["kind"] == "random"}):
        for words, where in (("before", before_onset), ("after", after_onset)):
            values = [_share_of(seen, [w for w in where(seen) if w["size"] == size], "random", t) for seen in friction]
            name = f"SGD with momentum, size {size:g}: share of turns {words} the onset with return"
            measures.append(average(name, values, control=True))
    return measures


def _learned_past(grid: Sequence[Mapping[str, Any]], kind: str, t: Thresholds) -> list[float | None]:
    """By seed: did test accuracy reach `generalised` at some step below 0?"""
    return [
        share(
            max(w["beyond"]["test"]) >= t["generalised"]
            for w in s["returns"]
            if w["kind"] == kind and w["beyond"]["test"]
        )
        for s in grid
    ]


def _energy(grid: Sequence[Mapping[str, Any]], t: Thresholds) -> list[Measure]:
    out = []
    for name, key in (("the step size", "out"), ("half the step size", "half")):
        changes = [seen[key]["energy_change"] for seen in grid if seen[key]]
        largest = max(changes, default=None)
        met = largest is not None and largest < t["energy"]
        words = f"largest |change of H| of any seed, at {name}"
        under = f"below {t['energy']:g} (seeds that miss it are left out)"
        out.append(Measure(words, largest, None, len(changes), "nats", under, met, control=True))
    return out
