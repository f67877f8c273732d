"""Claim 10: what counts as a return, where the claim is needed, and what is predicted. Pure functions of evidence."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import statistics
from .record import Evidence, Measure

Thresholds = Mapping[str, float]
LATTICE, FLOATS, GRID, BATCHES, FRICTION = "lattice", "floats", "perturbations", "fresh batches", "friction"
"""Names of the parts."""

THRESHOLDS: Thresholds = {
    "agreement": 0.9,
    "accuracy floor": 0.05,
    "practical size": 1e-7,
    "most": 0.9,
    "few": 0.1,
    "generalised": 0.5,
    "un-generalised": 0.1,
    "onset distance": 0.03,
    "start distance": 0.05,
    "energy": 1e-2,
    "least seeds": 3,
}
"""Fixed before the recorded runs, from reasoning and from pilots on seeds 100 and above.

agreement, accuracy floor: a way back returned if it came to step 0, at least this share of the table has the answer
    that the start gave it, and test accuracy is this near to the start's (untrained networks of the pilots gave
    0.00 to 0.06).
practical size: the rounding of float32, relative to the parameters: what nobody can avoid who trains as published.
most, few: shares of returns that count as all and as none.
generalised: test accuracy that the last turn must have; un-generalised: 10 %, as in the definition of grokking.
onset distance: a relative distance from the way out at the onset below which a way back is predicted to un-generalise.
start distance: one at the start below which the function is predicted to return. Both from the pilots.
energy: |change of H| that a run may have, at both step sizes.
"""


def returned(way: Mapping[str, Any], start_test: float, t: Thresholds) -> bool:
    """Whether a way back came to the start's function: in words, see `THRESHOLDS`."""
    end = way["end"]
    if way["ended_by"] is not None or end["step"] > 0 or end["agreement"] is None or end["test"] is None:
        return False
    return end["agreement"] >= t["agreement"] and abs(end["test"] - start_test) <= t["accuracy floor"]


def left_out(evidence: Evidence, t: Thresholds) -> dict[int, str]:
    """Seeds whose run missed a precondition, and which."""
    out = {}
    for seen in evidence.get(GRID, ()):
        run, half = seen["out"], seen["half"] or {}
        energies, late = (run["energy_change"], half.get("energy_change")), (run["test"] or [0.0])[-1]
        if any(e is None or not e < t["energy"] for e in energies):
            sizes = ", ".join("not run" if e is None else f"{e:.2g}" for e in energies)
            out[seen["seed"]] = f"|change of H| was {sizes} at the step size and half of it; allowed: {t['energy']:g}"
        elif run["onset"] is None or late < t["generalised"]:
            why = f"test accuracy at the last turn was {late:.2f}; needed: {t['generalised']:g}"
            out[seen["seed"]] = run["ended_by"] or why
    return out


def after_onset(seen: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Ways back from turns at or after the onset: where the claim is needed."""
    return [way for way in seen["returns"] if way["turn_step"] >= seen["out"]["onset"]]


def before_onset(seen: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Ways back from turns before it."""
    return [way for way in seen["returns"] if way["turn_step"] < seen["out"]["onset"]]


def share(flags: Iterable[bool]) -> float | None:
    """Of those that are true; None of none."""
    flags = list(flags)
    return sum(flags) / len(flags) if flags else None


def predicted_distance(seen: Mapping[str, Any], way: Mapping[str, Any], at: str = "onset") -> float | None:
    """Relative distance from the way out at the onset, or the start, if it grows on the way back as it does forward.

    size exp(growth from there to the turn) |q at the turn| / |q there|; None for what has no size or no growth.
    """
    growth = seen["growth"].get(way["turn"], {}).get(at)
    if not growth or way["size"] is None:
        return None
    return way["size"] * seen["turns"][way["turn"]]["norm"] / seen["norms"][at] * math.exp(sum(growth) / len(growth))


def growth_rate(ways: Sequence[Mapping[str, Any]], epsilon: float, onset: int, lr: float) -> float | None:
    """Nats a unit of time that the float error grows by, going back from the last turn to the onset.

    Of looks at which it is between 10 epsilon and 0.1: not rounding alone, and not yet as large as it gets.
    """
    curve = max(ways, key=lambda way: way["turn_step"])["curve"]
    rows = [(s, d) for s, d in zip(curve["step"], curve["relative"], strict=True) if s >= onset and d]
    rows = [(s, d) for s, d in rows if 10 * epsilon <= d <= 0.1]
    if len(rows) < 3:
        return None
    return math.log(rows[-1][1] / rows[0][1]) / (rows[0][0] - rows[-1][0]) / lr


def average(name: str, values: Iterable[float | None], bounded: bool = True, **more: Any) -> Measure:
    """The mean over seeds with its interval; Wilson's, if each seed's is 0 or 1 (a t interval would have no width).

    `bounded`: it is a share, and its interval ends at 0 and 1.
    """
    values = [v for v in values if v is not None]
    if not values:
        return Measure(name, None, n=0, **more)
    yes_or_no = bounded and len(values) > 1 and set(values) <= {0.0, 1.0}
    found = statistics.proportion(sum(map(bool, values)), len(values)) if yes_or_no else statistics.mean(values)
    interval = found.interval
    if bounded and interval is not None:
        interval = max(0.0, interval[0]), min(1.0, interval[1])
    return Measure(name, found.value, interval, found.n, **more)
