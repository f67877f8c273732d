"""What the controls of the arrow show, as measures. Pure functions of evidence; none of them decides a verdict."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .arrow_controls import generalised_at
from .record import Evidence, Measure
from .return_rule import Thresholds, average, returned, share

BOTH, CONTROLS, LATTICES, ENTROPY = "arrow: both ways", "arrow: controls", "arrow: lattices", "arrow: entropy"
"""Names of the parts."""


def measures(evidence: Evidence, out: Iterable[int], t: Thresholds) -> list[Measure]:
    """Of all control parts that were run, without seeds that the arrow left out."""
    kept = {part: [s for s in evidence.get(part, ()) if s["seed"] not in out] for part in (BOTH, CONTROLS, LATTICES)}
    kept[ENTROPY] = list(evidence.get(ENTROPY, ()))
    return [m for part, rule in _RULES.items() if kept[part] for m in rule(kept[part], t)]


def _both(several: Sequence[Mapping[str, Any]], t: Thresholds) -> list[Measure]:
    found = []
    several = [seen for seen in several if seen["arms"]]
    for arm in dict.fromkeys(name for seen in several for name in seen["arms"]):
        # A memoriser that was none, or an arm whose energy moved, says nothing.
        rows = {seen["seed"]: [r for r in seen["arms"][arm] if _sound(r, seen, arm, t)] for seen in several}
        for name, sides in (("forward", ("forward",)), ("back in time", ("back",)), ("both", ("forward", "back"))):
            shares = [
                share(all(generalised_at(r[s], t["generalised"]) is not None for s in sides) for r in own)
                for own in rows.values()
            ]
            check: Any = {"kind": "implementation check"} if "unperturbed" in arm else {}
            found.append(average(f"arrow, from a {arm}: share that generalised {name}", shares, control=True, **check))
    return found


def _sound(row: Mapping[str, Any], seen: Mapping[str, Any], arm: str, t: Thresholds) -> bool:
    if max(row["forward"]["energy_change"], row["back"]["energy_change"]) >= t["energy"]:
        return False
    return not arm.startswith("memoriser") or (row["train"] >= t["by heart"] and row["test"] <= t["un-generalised"])


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
            own = [(r, w) for r in rows for w in r["ways"] if w["kind"] == kind]
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
        pairs = {
            "late over the first step": [r["log_weight"][-1] / r["parameters"] for r in rows],
            "late over a memoriser": [_over(r, r["memoriser"]) for r in rows],
            "late over a memoriser's norm at the late loss": [_over(r, r["matched"]) for r in rows],
        }
        for name, values in pairs.items():
            words = f"arrow, width {width}: ln of the weight of momenta, {name}"
            found.append(average(words, values, bounded=False, unit="nats a parameter"))
    return found


def _over(row: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """Late over another; None if the other lies outside the energy shell."""
    return None if other["log_weight"] is None else (row["log_weight"][-1] - other["log_weight"]) / row["parameters"]


def _mean(values: Iterable[float | None]) -> float | None:
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


_RULES = {BOTH: _both, CONTROLS: _controls, LATTICES: _lattices, ENTROPY: _entropy}
