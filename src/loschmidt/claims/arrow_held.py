"""What the controls of the arrow show, as measures. Pure functions of evidence; none of them decides a verdict."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import arrow_mirror
from .arrow_controls import generalised_at
from .arrow_mirror import MIRROR, SHELL
from .record import Evidence, Measure, SubVerdict, Verdict
from .return_rule import Thresholds, average, returned, share

BOTH, CONTROLS, LATTICES, ENTROPY = "arrow: both ways", "arrow: controls", "arrow: lattices", "arrow: entropy"
"""Names of the parts."""


def measures(evidence: Evidence, out: Iterable[int], t: Thresholds) -> list[Measure]:
    """Of all control parts that were run, without seeds that the arrow left out."""
    kept = {part: [s for s in evidence.get(part, ()) if s["seed"] not in out] for part in (BOTH, CONTROLS, LATTICES)}
    kept[ENTROPY] = list(evidence.get(ENTROPY, ()))
    found = [m for part, rule in _RULES.items() if kept[part] for m in rule(kept[part], t)]
    more = ([s for s in evidence.get(part, ()) if s["seed"] not in out] for part in (MIRROR, SHELL))
    return found + arrow_mirror.measures(*more, t)


def both_ways(evidence: Evidence, out: Iterable[int], t: Thresholds) -> SubVerdict:
    """Do orbits through a memoriser, which did not generalise, generalise at both of their ends?

    With momenta drawn at random each end alone has the same chance, since H is even in p. That it is large, and that
    one orbit has both, is not given.
    """
    several = [seen for seen in evidence.get(BOTH, ()) if seen["seed"] not in out and seen["arms"]]
    found = _generalised(several, "memoriser", ("forward", "back"), t)
    verdict: Verdict = "partly"
    if found.value is None or found.n < t["least seeds"]:
        verdict = "inconclusive"
    elif found.value >= t["most"] or found.value <= t["few"]:
        verdict = "supported" if found.value >= t["most"] else "refuted"
    mean = "none" if found.value is None else f"{found.value:.2f}"
    why = (
        f"Of orbits through a memoriser a share of {mean} reached {t['generalised']:g} at both ends ({found.n} seeds)."
    )
    return SubVerdict("arrow: from the middle it learns in both directions of time", verdict, why)


def _generalised(several: Sequence[Mapping[str, Any]], arm: str, sides: Sequence[str], t: Thresholds) -> Measure:
    """Share of an arm's orbits, by seed, that generalised on all these sides."""
    shares = [
        share(
            all(generalised_at(r[side], t["generalised"]) is not None for side in sides)
            for r in seen["arms"].get(arm, ())
            if _sound(r, arm, t)
        )
        for seen in several
    ]
    name = {("forward",): "forward", ("back",): "back in time"}.get(tuple(sides), "both")
    check: Any = {"kind": "implementation check"} if "unperturbed" in arm else {}
    # Near the start of a run that began at rest the way back is near the mirror image of the way out.
    mirror = " (near its mirror image)" if arm == "turn before the onset" else ""
    control = not arm.startswith("memoriser")
    return average(f"arrow, from a {arm}{mirror}: share that generalised {name}", shares, control=control, **check)


def _both(several: Sequence[Mapping[str, Any]], t: Thresholds) -> list[Measure]:
    several = [seen for seen in several if seen["arms"]]
    arms = dict.fromkeys(name for seen in several for name in seen["arms"])
    sides = (("forward",), ("back",), ("forward", "back"))
    return [_generalised(several, arm, which, t) for arm in arms for which in sides]


def _sound(row: Mapping[str, Any], arm: str, t: Thresholds) -> bool:
    """A memoriser that was none, or an arm whose energy moved, says nothing."""
    return not _why(row, arm, t)


def _why(row: Mapping[str, Any], arm: str, t: Thresholds) -> str:
    change = max(row["forward"]["energy_change"], row["back"]["energy_change"])
    if not change < t["energy"]:
        return f"|change of H| was {change:.2g}"
    if arm.startswith("memoriser") and (row["train"] < t["by heart"] or row["test"] > t["un-generalised"]):
        return f"it is no memoriser: accuracies {row['train']:.2f} and {row['test']:.2f}"
    return ""


def sound_rows(seen: Mapping[str, Any], arm: str, t: Thresholds) -> list[Mapping[str, Any]]:
    """The orbits of an arm that count."""
    return [row for row in seen["arms"].get(arm, ()) if _sound(row, arm, t)]


def left_out(evidence: Evidence, t: Thresholds) -> list[str]:
    """Orbits, arms and lattices that say nothing, and why."""
    words = []
    for seen in evidence.get(BOTH, ()):
        for arm, rows in seen["arms"].items():
            words += [] if rows else [f"seed {seen['seed']}, {BOTH}, {arm}: it lies outside the energy shell"]
            words += [f"seed {seen['seed']}, {BOTH}, {arm}, {r['draw']}: {w}" for r in rows if (w := _why(r, arm, t))]
    for part, key, name in ((CONTROLS, "arms", None), (LATTICES, "lattices", "resolution"), (ENTROPY, "rows", "width")):
        for seen in evidence.get(part, ()):
            rows = seen[key].items() if name is None else [(f"{name} {row[name]}", row) for row in seen[key]]
            for words_of, row in rows:
                if row["ended_by"] or not row["energy_change"] < t["energy"]:
                    why = row["ended_by"] or f"|change of H| was {row['energy_change']:.2g}"
                    words.append(f"seed {seen['seed']}, {part}, {words_of}: {why}")
    return words


def _controls(several: Sequence[Mapping[str, Any]], t: Thresholds) -> list[Measure]:
    found = []
    for arm in dict.fromkeys(name for seen in several for name in seen["arms"]):
        kept = [s["arms"][arm] for s in several if s["arms"][arm]["ways"]]
        kept = [a for a in kept if a["energy_change"] < t["energy"]]
        found.append(
            average(f"arrow, {arm}: train accuracy at the turn", [a["turn"]["train"] for a in kept], control=True)
        )
        found.append(
            average(f"arrow, {arm}: test accuracy at the turn", [a["turn"]["test"] for a in kept], control=True)
        )
        kinds = dict.fromkeys((w["kind"], w["size"]) for a in kept for w in a["ways"])
        for kind, size in kinds:
            label = kind if size is None else f"{kind}, size {size:g}"
            for key in ("train", "test"):
                ends = [_mean(w["end"][key] for w in a["ways"] if (w["kind"], w["size"]) == (kind, size)) for a in kept]
                name = f"arrow, {arm}, wound back with {label}: {key} accuracy at step 0"
                found.append(average(name, ends, control=True))
    return found


def _lattices(several: Sequence[Mapping[str, Any]], t: Thresholds) -> list[Measure]:
    found: list[Measure] = []
    for resolution in sorted({row["resolution"] for seen in several for row in seen["lattices"]}):
        rows = [r for s in several for r in s["lattices"] if r["resolution"] == resolution and r["ways"]]
        for kind, words in (("none", "unperturbed"), ("unit", "one unit changed"), ("random", "nudged")):
            kept = [r for r in rows if kind == "none" or r["energy_change"] < t["energy"]]
            own = [(r, w) for r in kept for w in r["ways"] if w["kind"] == kind]
            back = [float(returned(w, r["start"]["test"], t)) for r, w in own]
            found.append(average(f"arrow, lattice 2^{resolution}, {words}: share that returns", back, control=True))
            if kind == "none":
                exact = [float(w["exact"] is True) for _, w in own]
                name = f"arrow, lattice 2^{resolution}, unperturbed: share with all bits back"
                found.append(average(name, exact, control=True, kind="implementation check"))
    return found


def _entropy(several: Sequence[Mapping[str, Any]], t: Thresholds) -> list[Measure]:
    found = []
    for width in dict.fromkeys(row["width"] for seen in several for row in seen["rows"]):
        rows = [r for s in several for r in s["rows"] if r["width"] == width and "matched" in r]
        rows = [r for r in rows if r["energy_change"] < t["energy"] and r["log_weight"][-1] is not None]
        rows = [r for r in rows if r["test"][-1] >= t["generalised"] and r["onset"] is not None]
        known = [r for r in rows if _by_heart(r["memoriser"], t)]
        pairs = {
            "late over the onset": [(r["log_weight"][-1] - _at_onset(r)) / r["parameters"] for r in rows],
            "late over a memoriser": [_over(r, r["memoriser"]) for r in known],
            "late over a memoriser's norm at the late loss": [_over(r, r["matched"]) for r in known],
        }
        for name, values in pairs.items():
            words = f"arrow, width {width}: ln of the weight of momenta, {name}"
            found.append(average(words, values, bounded=False, unit="nats a parameter"))
    return found


def _by_heart(memoriser: Mapping[str, Any], t: Thresholds) -> bool:
    return memoriser["train"] >= t["by heart"] and memoriser["test"] <= t["un-generalised"]


def _at_onset(row: Mapping[str, Any]) -> float:
    """At the look nearest to the onset."""
    i = min(range(len(row["step"])), key=lambda i: abs(row["step"][i] - row["onset"]))
    return row["log_weight"][i]


def _over(row: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """Late over another; None if the other lies outside the energy shell."""
    return None if other["log_weight"] is None else (row["log_weight"][-1] - other["log_weight"]) / row["parameters"]


def _mean(values: Iterable[float | None]) -> float | None:
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


_RULES = {BOTH: _both, CONTROLS: _controls, LATTICES: _lattices, ENTROPY: _entropy}
