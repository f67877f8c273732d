"""The pictures of claim 3."""

import math
from collections.abc import Mapping
from typing import Any

from .breathing_rule import (
    FREE,
    MELT,
    THRESHOLDS,
    TROUGH,
    Run,
    by_momentum,
    free_runs,
    frozen,
    generalised,
    kept,
    late_depth,
    usable,
)
from .record import Evidence, Picture, Series


def pictures(evidence: Evidence) -> list[Picture]:
    """Breathing beside freezing; the sweep of friction; what happens inside a breath; motion at one norm; melting."""
    free, by = free_runs(evidence, THRESHOLDS), by_momentum(evidence, THRESHOLDS)
    drawn = [_breathing(free, by), _sweep(free, by), _inside(free), _held(evidence), _melting(evidence)]
    return [picture for picture in drawn if picture is not None]


def _breathing(free: Mapping[int, Run], by: Mapping[float, Mapping[int, Run]]) -> Picture | None:
    cooled = by.get(THRESHOLDS["freezing momentum"], {})
    if not free and not cooled:
        return None
    series = []
    for name, runs, role in (
        (FREE, free, "evidence"),
        (f"momentum {THRESHOLDS['freezing momentum']:g}", cooled, "control"),
    ):
        for i, (seed, run) in enumerate(runs.items()):
            words, which = (f"{name}, seed {seed}", "seed") if i else (name, role)
            series.append(Series(words, run["curve"]["step"], run["curve"]["test"], role=which))
    return Picture(
        title="Breathing and freezing",
        caption=(
            "Test accuracy along training, without friction and with a little. Were friction no matter for keeping "
            "what was learned, both would stay where they rose to."
        ),
        x="step",
        y="test accuracy",
        series=series,
        marks={"counts as generalised": THRESHOLDS["generalised"]},
    )


def _sweep(free: Mapping[int, Run], by: Mapping[float, Mapping[int, Run]]) -> Picture | None:
    ladder = sorted(by, reverse=True)
    runs = {m: [r for r in by[m].values() if generalised(r, THRESHOLDS)] for m in ladder}
    ladder = [m for m in ladder if runs[m]]
    if not ladder:
        return None
    x = [-math.log2(m) for m in ladder]
    series = [Series("mean of those that generalised", x, [_mean(map(late_depth, runs[m])) for m in ladder])]
    seeds = sorted({seed for m in ladder for seed in by[m]})
    for seed in seeds:
        own = [m for m in ladder if seed in by[m] and generalised(by[m][seed], THRESHOLDS)]
        depths = [late_depth(by[m][seed]) for m in own]
        series.append(Series(f"seed {seed}", [-math.log2(m) for m in own], depths, role="seed"))
    marks = {"a breath": THRESHOLDS["breath"], "frozen": THRESHOLDS["still"]}
    falls = [late_depth(run) for run in free.values() if generalised(run, THRESHOLDS)]
    if falls:
        marks["without friction, mean"] = _mean(falls)
    return Picture(
        title="How much friction locks it in",
        caption=(
            "Largest fall of test accuracy in the second half of a run, over what friction writes to the tape. A line "
            "that stayed at the height of the runs without friction would say that friction keeps nothing."
        ),
        x="bits per parameter per step",
        y="largest fall of test accuracy",
        series=series,
        log="x",
        marks=marks,
    )


def _inside(free: Mapping[int, Run]) -> Picture | None:
    """One seed: the first that breathed, and has key frequencies."""
    breathing = (r for r in free.values() if late_depth(r) >= THRESHOLDS["breath"])
    run = next((r for r in breathing if r["fourier"]["keys"]), None)
    if run is None:
        return None
    curve, fourier = run["curve"], run["fourier"]
    high = max(curve["norm"])
    series = [
        Series("test accuracy", curve["step"], curve["test"]),
        Series("test accuracy of the key frequencies alone", curve["step"], fourier["restricted"], role="control"),
        Series("share of the logits that they explain", curve["step"], fourier["explained"], role="control"),
        Series("norm, over its largest", curve["step"], [v / high for v in curve["norm"]], role="theory"),
    ]
    return Picture(
        title="Inside a breath",
        caption=(
            "A run without friction. If what was learned dissolved, its key frequencies alone would lose their test "
            "accuracy, too; where they keep it, it is there and outvoted by the rest."
        ),
        x="step",
        y="share",
        series=series,
    )


def _held(evidence: Evidence) -> Picture | None:
    seen = [e for e in evidence.get(TROUGH, ()) if usable(e, THRESHOLDS)]
    if not seen:
        return None
    series = []
    roles = {"free": "evidence", "at the peak's norm": "control", "random momenta": "control"}
    for name, role in roles.items():
        for i, e in enumerate(seen):
            rows = e["motion"][name]
            start = rows["step"][0] - _gap(rows) if rows["step"] else 0
            x = [0.0, *(step - start for step in rows["step"])]
            words, which = (f"{name}, seed {e['seed']}", "seed") if i else (name, role)
            series.append(Series(words, x, [e["peak"]["test"], *rows["test"]], role=which))
    return Picture(
        title="From a peak on, at one norm",
        caption=(
            "Test accuracy from a peak on: free, with the norm of the parameters held, and with random momenta. If the "
            "norm were what breathes, the line at one norm would be flat."
        ),
        x="steps after the peak",
        y="test accuracy",
        series=series,
    )


def _gap(rows: Mapping[str, Any]) -> float:
    return rows["step"][1] - rows["step"][0] if len(rows["step"]) > 1 else 0


def _melting(evidence: Evidence) -> Picture | None:
    seen = [e for e in evidence.get(MELT, ()) if frozen(e, THRESHOLDS)]
    if not seen:
        return None
    series = []
    for i, e in enumerate(seen):
        kicks = sorted((k for k in e["kicks"] if k["energy"] and kept(k, THRESHOLDS)), key=lambda k: k["energy"])
        lost = [e["frozen"]["test"] - k["test"] for k in kicks]
        name, role = (f"seed {e['seed']}", "seed") if i else ("largest loss after the kick", "evidence")
        series.append(Series(name, [k["energy"] for k in kicks], lost, role=role, mode="lines+markers"))
    return Picture(
        title="Melting a frozen network",
        caption=(
            "Friction off, and random momenta that raise H by so much: how much test accuracy is lost at some look "
            "afterwards. A line at 0 would say that the form does not un-form."
        ),
        x="energy of the kick (nats)",
        y="test accuracy lost",
        series=series,
        log="x",
        marks={"melted": THRESHOLDS["breath"]},
    )


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)
