"""What is predicted of a way back, and how predictions are scored. Pure functions of numbers.

d        relative distance from the way out, if it grows back as nudges of p grow forward (see `arrow_runs`):
         size |q at the turn| / |q there| exp(growth from there to the turn), there: the onset, or the start
random   size: of the nudge, and the floor of rounding beside it
gauge    a rotation goes along, and returns; but a nudge by the angle a along its tangent misses the circle by
         a^2/2 of what turns, and that grows as any perturbation does
P        share of tangents of which d stays below a threshold, softened: mean of Phi((ln threshold - ln d)/spread)
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

from .record import Evidence
from .return_rule import returned, share

PREDICTED, GRID = "arrow: predictions", "arrow: returns"
"""Names of the parts; those of the grid begin with the second."""

THRESHOLDS = {"small": 0.01, "by heart": 0.99}
"""Beside those of claim 10. small: a distance at which growth is still that of small ones. by heart: train accuracy
that makes a memoriser, whose test accuracy must be at most `un-generalised`."""

RULE = {"onset threshold": 0.03, "start threshold": 0.05, "onset spread": 1.0, "start spread": 2.0, "floor": 5e-15}
"""How distance becomes probability; written down with the predictions.

thresholds: those of claim 10, from its pilots. spreads: of ln d, how far a tangent map may be off: a factor of e at the
    onset; e^2 at the start, which lies further, beyond kinks that no tangent map sees. floor: what
    rounding of float64 adds up to: in a pilot (seed 100) unperturbed ways back were off as if by nudges of this size.
"""

OUTCOMES = ("returns", "un-generalises")
_PHI = NormalDist().cdf


def cells(seen: Mapping[str, Any], sizes: Sequence[float], rule: Mapping[str, float]) -> list[dict[str, Any]]:
    """The predictions of a seed: one for each turn, size and kind; gauge rotations one each.

    Args:
        seen: "turns", "norms" and "growth", as `arrow_runs.predictions` gives them.
        sizes: of nudges, relative.
        rule: as `RULE`.

    Returns:
        "turn", "kind", "size", "draw" (None: any); "distance": {"onset", "start"}, the geometric mean over tangents;
        "returns", "un-generalises": probabilities, the second None for turns before the onset.
    """
    out = []
    for name, turn in seen["turns"].items():
        for size in sizes:
            kinds = [("random", None, size)]
            for draw, turned in enumerate(turn["gauge_norms"]):
                kinds.append(("gauge", draw, size**2 * turn["norm"] / (2 * turned)))
            for kind, draw, own in kinds:
                cell: dict[str, Any] = {"turn": name, "kind": kind, "size": size, "draw": draw, "distance": {}}
                for outcome, where in zip(OUTCOMES, ("start", "onset"), strict=True):
                    growth = seen["growth"][name].get(where)
                    effective = math.hypot(own, rule["floor"]) * turn["norm"] / seen["norms"][where]
                    logs = [math.log(effective) + g for g in growth or ()]
                    limit, spread = math.log(rule[f"{where} threshold"]), rule[f"{where} spread"]
                    cell["distance"][where] = _exp(sum(logs) / len(logs)) if logs else None
                    cell[outcome] = sum(_PHI((limit - x) / spread) for x in logs) / len(logs) if logs else None
                out.append(cell)
    return out


def _exp(x: float) -> float | None:
    return math.exp(x) if x < 700 else None


def outcome(way: Mapping[str, Any], start_test: float, t: Mapping[str, float]) -> dict[str, bool]:
    """What a way back did, in the terms of the predictions."""
    return {"returns": returned(way, start_test, t), "un-generalises": way["lowest_test"] <= t["un-generalised"]}


def left_out(evidence: Evidence, t: Mapping[str, float]) -> dict[int, str]:
    """Seeds whose run missed a precondition, and which."""
    out = {}
    for seen in evidence.get(PREDICTED, ()):
        run, half = seen["out"], seen["half"] or {}
        energies, late = (run["energy_change"], half.get("energy_change")), (run["test"] or [0.0])[-1]
        if run["ended_by"]:
            out[seen["seed"]] = run["ended_by"]
        elif any(e is None or not e < t["energy"] for e in energies):
            sizes = ", ".join("not run" if e is None else f"{e:.2g}" for e in energies)
            out[seen["seed"]] = f"|change of H| was {sizes} at the step size and half of it; allowed: {t['energy']:g}"
        elif run["onset"] is None or late < t["generalised"]:
            out[seen["seed"]] = f"test accuracy at the last turn was {late:.2f}; needed: {t['generalised']:g}"
    return out


def pairs(evidence: Evidence, which: str, t: Mapping[str, float]) -> list[dict[str, Any]]:
    """Ways back of all seeds beside their predictions, for an outcome; seeds that are left out are not there.

    Returns:
        Dicts of "seed", "turn", "kind", "size", "draw", "p" (predicted), "y" (0 or 1), "predicted" and "measured"
        distance at the onset (None where there is none).
    """
    out, missing = [], left_out(evidence, t)
    told = {seen["seed"]: seen for seen in evidence.get(PREDICTED, ()) if seen["seed"] not in missing}
    for part in sorted(name for name in evidence if name.startswith(GRID)):
        for seen in (seen for seen in evidence[part] if seen["seed"] in told):
            by_key = {(c["turn"], c["kind"], c["size"], c["draw"]): c for c in told[seen["seed"]]["cells"]}
            for way in seen["ways"]:
                key = (seen["turn"], way["kind"], way["size"])
                cell = by_key.get((*key, way["draw"] if way["kind"] == "gauge" else None))
                if cell is not None and cell[which] is not None:
                    y = float(outcome(way, seen["start"]["test"], t)[which])
                    row = {"seed": seen["seed"], "turn": seen["turn"], "kind": way["kind"], "size": way["size"]}
                    row |= {"draw": way["draw"], "p": cell[which], "y": y, "turn_step": way["turn_step"]}
                    out.append(row | {"predicted": cell["distance"]["onset"], "measured": way["onset_distance"]})
    return out


def brier(p: Iterable[float], y: Iterable[float]) -> float | None:
    """Mean of (p - y)^2; None of nothing."""
    squares = [(a - b) ** 2 for a, b in zip(p, y, strict=True)]
    return sum(squares) / len(squares) if squares else None


def scores(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """By seed: Brier scores of the prediction, of a constant and of the turn alone.

    The rivals are told what the prediction is not: shares of the outcome among the *other* seeds, over all their ways
    back, or over those from the same turn (by name). Empty with fewer than two seeds.
    """
    seeds, out = sorted({row["seed"] for row in rows}), {}
    for seed in seeds if len(seeds) > 1 else ():
        own = [row for row in rows if row["seed"] == seed]
        others = [row for row in rows if row["seed"] != seed]
        whole = share(row["y"] for row in others)
        at = {turn: share(r["y"] for r in others if r["turn"] == turn) for turn in {row["turn"] for row in own}}
        guesses = {
            "prediction": [row["p"] for row in own],
            "constant": [whole for _ in own],
            "turn alone": [whole if at[row["turn"]] is None else at[row["turn"]] for row in own],
        }
        out[seed] = {name: brier(guess, (row["y"] for row in own)) for name, guess in guesses.items()}
    return out


def calibration(rows: Sequence[Mapping[str, Any]], bins: int = 5) -> list[dict[str, float]]:
    """Bins of equal width in the predicted probability that hold something: its mean, the share that came, how many."""
    out = []
    for i in range(bins):
        own = [row for row in rows if min(bins - 1, int(row["p"] * bins)) == i]
        if own:
            p = sum(row["p"] for row in own) / len(own)
            out.append({"predicted": p, "observed": sum(row["y"] for row in own) / len(own), "n": len(own)})
    return out


def calibration_error(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean over bins of |predicted - observed|, weighted by how many; None of nothing."""
    bins = calibration(rows)
    total = sum(b["n"] for b in bins)
    return sum(b["n"] * abs(b["predicted"] - b["observed"]) for b in bins) / total if total else None
