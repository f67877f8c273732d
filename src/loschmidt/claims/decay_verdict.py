"""The verdict on claim 7, from what its experiments found."""

from collections.abc import Mapping, Sequence
from typing import Any

from . import statistics
from .record import Evidence, Finding, Measure, SubVerdict, Verdict

KINDS = {"inside H": "inside H", "outside H": "outside H"}
"""Parts of the claim with decay of usual strength, by what they are called in measures."""

FLIPPED = "loss flipped, decay reversed"
"""The way back with the loss's sign flipped and nothing else."""

Way = Mapping[str, Any]


def returned(way: Way, start: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    """Whether a way back ended with the start's function: its answers, and its loss."""
    if way["ended_by"] is not None or way["loss"] is None:
        return False
    near = abs(way["loss"] / start["loss"] - 1) <= limits["loss, relative"]
    return near and way["agreement"] >= limits["answers as at the start"]


def judge(evidence: Evidence, thresholds: Mapping[str, float]) -> Finding:
    """Verdicts on decay inside and outside H; beside them weak decay, pushes of equal size, the loss's sign alone."""
    left_out: list[str] = []
    runs = {kind: _sound(evidence.get(kind, ()), kind, thresholds, left_out) for kind in KINDS}
    measures, subs = _checks(evidence, runs, thresholds), []
    for kind in KINDS:
        found, sub = _judge_kind(runs[kind], kind, thresholds)
        measures += found
        subs.append(sub)
    beside = (_judge_weak, _judge_push, _judge_flip)
    weak = {kind: evidence.get(f"weak decay {kind}", ()) for kind in KINDS}
    for step in beside:
        found, sub = step(weak if step is _judge_weak else runs, thresholds, left_out)
        measures += found
        subs.append(sub)
    return Finding(_verdict([sub.verdict for sub in subs[: len(KINDS)]]), subs, measures, left_out)


def _verdict(necessary: Sequence[Verdict]) -> Verdict:
    if "refuted" in necessary:
        return "refuted"
    if "inconclusive" in necessary:
        return "inconclusive"
    return "supported" if set(necessary) == {"supported"} else "partly"


def _why_not(knows: Mapping[str, float], changes: Sequence[float | None], limits: Mapping[str, float]) -> str:
    """Why a run is left out; "" if it is not."""
    if knows["train"] < limits["learned, train accuracy"]:
        return f"had not learned by the turn: train accuracy {knows['train']:.3f}"
    worst = max((c for c in changes if c is not None), default=0.0)
    return "" if worst < limits["energy"] else f"H changed by {worst:.2g}"


def _sound(rows: Sequence[Any], kind: str, limits: Mapping[str, float], left_out: list[str]) -> list[Any]:
    out = []
    for row in rows:
        changes = (row["energy_change"], row["energy_change_at_half_step"])
        why = _why_not(row["turns"][-1]["knows"], changes, limits)
        if why:
            left_out.append(f"decay {kind}, seed {row['seed']}: {why}.")
        else:
            out.append(row)
    return out


def _share(rows: Sequence[Any], turn: int, way: str, limits: Mapping[str, float]) -> statistics.Estimate | None:
    """In how many seeds the function returned."""
    ways = [(row["turns"][turn]["ways"].get(way), row["start"]) for row in rows]
    home = [returned(found, start, limits) for found, start in ways if found is not None]
    return statistics.proportion(sum(home), len(home)) if home else None


def _shares(rows: Sequence[Any], turn: int = -1, what: str = "share") -> list[float]:
    names = rows[0]["turns"][turn]["ways"] if rows else ()
    return sorted(float(name.split()[1]) for name in names if name.startswith(f"{what} "))


def _checks(evidence: Evidence, runs: Mapping[str, list[Any]], limits: Mapping[str, float]) -> list[Measure]:
    """Controls and what is true by construction."""
    out = []
    for kind, rows in runs.items():
        if not rows:
            continue
        exact = [row["turns"][-1]["ways"]["share 0"]["exact"] for row in rows]
        found = statistics.proportion(sum(exact), len(exact))
        what = f"all decay reversed returns bit for bit, {kind}"
        check: dict[str, Any] = {"kind": "implementation check", "control": True}
        out.append(Measure(what, *found, threshold="1", met=all(exact), **check))
        bits, theory = rows[0]["contraction"]["bits"], rows[0]["contraction"]["theory"]
        met = abs(bits - theory) <= limits["bits, relative"] * theory
        bound = f"{theory:.4g} = log2(1/(1 - lr decay))" if theory else "0"
        unit = "bits per parameter per step"
        out.append(Measure(f"contraction, {kind}", bits, n=1, unit=unit, threshold=bound, met=met, kind=check["kind"]))
        mirrored = [m["same_bits"] for row in rows for t in row["turns"] for m in t["momenta_flipped"] or ()]
        if mirrored:
            found = statistics.proportion(sum(mirrored), len(mirrored))
            what = "momenta flipped ends where undoing does, bit for bit"
            out.append(Measure(what, *found, threshold="1", met=all(mirrored), **check))
        for key, at in (("energy_change", "at the step"), ("energy_change_at_half_step", "at half the step")):
            changes = [row[key] for row in rows if row[key] is not None]
            if changes:
                bound, met = f"below {limits['energy']}, or left out", max(changes) < limits["energy"]
                what = f"largest change of H, {kind}, {at}"
                out.append(Measure(what, max(changes), n=len(changes), unit="nats", threshold=bound, met=met))
    floors = [row["floor"] for row in evidence.get("inside H", ())]
    if floors:
        found = statistics.mean(floors)
        out.append(Measure("agreement of two seeds' starts", *found, unit="share of equal answers", control=True))
    return out


def _judge_kind(rows: list[Any], kind: str, limits: Mapping[str, float]) -> tuple[list[Measure], SubVerdict]:
    out, home, largest = [], {}, None
    for turn in range(len(rows[0]["turns"]) if rows else 0):
        at = rows[0]["turns"][turn]["at"]
        for x in _shares(rows, turn):
            found = _share(rows, turn, f"share {x:g}", limits)
            last = turn == len(rows[0]["turns"]) - 1
            bound, met = "", None
            if last and x in (0, 1, 2):
                bound, met = ("1" if x == 0 else "0 for the claim"), found.value == float(x == 0)
                home[x] = found.value
            what = f"function returned, {kind}, share {x:g} un-reversed, turn at {at}"
            out.append(Measure(what, *found, unit="share of seeds", threshold=bound, met=met, control=x == 0))
            if last and found.value == 1 and (largest is not None or x == 0):
                largest = x
            elif last and largest is not None:
                largest, out = None, [*out, _largest(kind, largest, len(rows))]
    if largest is not None:
        out.append(_largest(kind, largest, len(rows)))
    for what, name in (("train loss", "loss"), ("test accuracy", "test")):
        values = [row["turns"][-1]["ways"]["share 1"][name] for row in rows]
        starts, values = [row["start"][name] for row in rows], [v for v in values if v is not None]
        if values:
            out.append(Measure(f"{what} at step 0 with share 1 un-reversed, {kind}", *statistics.mean(values)))
            out.append(Measure(f"{what} of the start, {kind}", *statistics.mean(starts), control=True))
    if len(rows) < 2 or home.get(0) != 1:
        why = "fewer than two seeds met the preconditions." if len(rows) < 2 else "all decay reversed does not return."
        return out, SubVerdict(f"decay {kind}", "inconclusive", why)
    without = [home[x] for x in (1, 2) if x in home]
    verdict = "supported" if max(without) == 0 else "refuted" if home[1] == 1 else "partly"
    why = f"with all decay reversed the function returns in all of {len(rows)} seeds, with none of it in {home[1]:.0%}"
    if 2 in home:
        why += f", with decay going on in {home[2]:.0%}"
    return out, SubVerdict(f"decay {kind}", verdict, why + ".")


def _largest(kind: str, share: float, n: int) -> Measure:
    return Measure(f"largest share un-reversed at which all seeds return, {kind}", share, n=n, unit="of the decay")


def _judge_weak(
    parts: Mapping[str, Sequence[Any]], limits: Mapping[str, float], left_out: list[str]
) -> tuple[list[Measure], SubVerdict]:
    out, fails, shares = [], [], []
    for kind, rows in parts.items():
        for i, first in enumerate(rows[0]["decays"] if rows else ()):
            home, decay = [], first["decay"]
            for row in rows:
                found = row["decays"][i]
                why = _why_not(found["knows"], [found["energy_change"]], limits)
                if why:
                    left_out.append(f"decay {decay:g} {kind}, seed {row['seed']}: {why}.")
                else:
                    home.append(returned(found["way"], row["start"], limits))
            if not home:
                continue
            share = statistics.proportion(sum(home), len(home))
            what = f"function returned, decay {decay:g} {kind}, all of it left out"
            what += f" (decay x time {decay * rows[0]['time']:.2g})" if decay else " (no decay)"
            bound, met = ("1", share.value == 1) if decay == 0 else ("", None)
            control = decay == 0
            out.append(Measure(what, *share, unit="share of seeds", threshold=bound, met=met, control=control))
            if decay:
                shares.append(share.value)
                fails += [f"{decay:g} {kind}"] if share.value < 1 else []
    if not shares:
        return out, SubVerdict("weak decay", "inconclusive", "no seed met the preconditions.")
    verdict = "supported" if max(shares) == 0 else "refuted" if min(shares) == 1 else "partly"
    why = f"left out in whole, decay keeps the function from returning at {', '.join(fails) or 'no weaker strength'}."
    return out, SubVerdict("weak decay", verdict, why)


def _judge_push(
    runs: Mapping[str, list[Any]], limits: Mapping[str, float], left_out: list[str]
) -> tuple[list[Measure], SubVerdict]:
    out, gaps = [], []
    for kind, rows in runs.items():
        for x in _shares(rows, what="push"):
            push = _share(rows, -1, f"push {x:g}", limits)
            decay = _share(rows, -1, f"share {x:g}", limits)
            what = f"function returned, {kind}, pushed at random as a share {x:g} of decay would"
            out.append(Measure(what, *push, unit="share of seeds", control=True))
            gaps += [] if decay is None else [push.value - decay.value]
    if not gaps:
        return out, SubVerdict("is it the decay itself?", "inconclusive", "no seed met the preconditions.")
    verdict = "supported" if max(gaps) == 1 else "partly" if max(gaps) > 0 else "refuted"
    more = sum(gap > 0 for gap in gaps)
    why = f"at {more} of {len(gaps)} sizes a random push lets more seeds return than un-reversed decay of equal size."
    return out, SubVerdict("is it the decay itself?", verdict, why)


def _judge_flip(
    runs: Mapping[str, list[Any]], limits: Mapping[str, float], left_out: list[str]
) -> tuple[list[Measure], SubVerdict]:
    out, values, said = [], [], []
    for kind, rows in runs.items():
        found = _share(rows, -1, FLIPPED, limits) if rows else None
        if found is not None:
            what = f"function returned, {kind}, only the loss's sign flipped, decay reversed"
            out.append(Measure(what, *found, unit="share of seeds", threshold="1", met=found.value == 1))
            values.append(found.value)
            said.append(f"{found.value:.0%} of seeds return {kind}")
    if not values:
        return out, SubVerdict("is a loss enough?", "inconclusive", "no seed met the preconditions.")
    verdict = "supported" if min(values) == 1 else "refuted" if max(values) == 0 else "partly"
    why = f"with the loss's sign flipped, decay reversed, and the kinetic term as it was, {', '.join(said)}."
    return out, SubVerdict("is a loss enough?", verdict, why)
