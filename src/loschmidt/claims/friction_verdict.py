"""The verdict on claim 2, from what its experiments found: bits, growth, horizon, perturbed return."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import statistics
from .record import Evidence, Finding, Measure, SubVerdict, Verdict

RUBBED = ("momentum 0.9", "momentum 0.98", "momentum 0.99")
"""Arms with friction."""

FREE = ("momentum 1.0", "ECD")
"""Arms without."""

HORIZONS = (("momentum 0.9", "float32"), ("momentum 0.9", "float64"), ("momentum 0.98", "float32"))
"""Those that lie within the turn."""

SMALLEST = {"float32": 2.0**-24, "float64": 2.0**-53}
"""Half a unit in the last place, relative."""


def judge(evidence: Evidence, thresholds: Mapping[str, float]) -> Finding:
    """Verdicts on growth, horizon and perturbed return; bits are an implementation check."""
    left_out: list[str] = []
    checks, right = _judge_bits(evidence.get("bits", ()), thresholds)
    runs = {
        part: _sound(evidence.get(part, ()), part, thresholds, left_out)
        for part in ("float reversal", "perturbed return")
    }
    growth, measures = _judge_growth(runs["float reversal"], thresholds)
    horizon, more = _judge_horizon(runs["float reversal"], thresholds)
    back, still_more = _judge_return(runs["perturbed return"], evidence.get("perturbed return", ()), thresholds)
    bits = SubVerdict(
        "bits (implementation check)",
        "supported" if right else "inconclusive",
        "the tape grew by what friction destroys, and not at all without it."
        if right
        else "the tape did not grow as it must: something is wrong with the arithmetic, or nothing was run.",
    )
    subs = (bits, growth, horizon, back)
    return Finding(_verdict(right, growth, horizon, back), subs, (*checks, *measures, *more, *still_more), left_out)


def _verdict(right: bool, growth: SubVerdict, horizon: SubVerdict, back: SubVerdict) -> Verdict:
    if growth.verdict == "refuted":
        return "refuted"
    if not right or growth.verdict == "inconclusive":
        return "inconclusive"
    return "supported" if {growth.verdict, horizon.verdict, back.verdict} == {"supported"} else "partly"


def _sound(
    rows: Sequence[Any], part: str, limits: Mapping[str, float], left_out: list[str]
) -> dict[str, dict[int, Any]]:
    """By arm and seed, what met its preconditions; what did not is listed."""
    out: dict[str, dict[int, Any]] = {}
    for row in rows:
        for name, arm in row["arms"].items():
            why, learned = "", arm["knows"]["train"]
            if learned < limits["learned, train accuracy"]:
                why = f"had not learned by the turn: train accuracy {learned:.3f}"
            for key in ("energy_change", "energy_change_at_half_step"):
                if arm.get(key) is not None and not arm[key] < limits["energy"]:
                    why = f"{key.replace('_', ' ')}: {arm[key]:.2g}"
            if why:
                left_out.append(f"{part}, {name}, seed {row['seed']}: {why}.")
            else:
                out.setdefault(name, {})[row["seed"]] = arm
    return out


def _judge_bits(rows: Sequence[Any], limits: Mapping[str, float]) -> tuple[list[Measure], bool]:
    out = []
    for name in rows[0]["arms"] if rows else ():
        theory = rows[0]["arms"][name]["theory"]
        found = statistics.mean([row["arms"][name]["bits"] for row in rows])
        allowed = limits["bits, relative"] * theory
        met = all(abs(row["arms"][name]["bits"] - theory) <= allowed for row in rows)
        bound = f"within {limits['bits, relative']:.1%} of {theory:.5f}" if theory else "0"
        out.append(
            Measure(
                f"tape, {name}", *found, unit="bits per parameter per step", threshold=bound, met=met,
                kind="implementation check", control=not theory,
            )
        )  # fmt: skip
    return out, bool(out) and all(m.met for m in out)


def _judge_growth(arms: Mapping[str, dict[int, Any]], limits: Mapping[str, float]) -> tuple[SubVerdict, list[Measure]]:
    measures, met, apart = [], [], {}
    for name, seeds in arms.items():
        grown = {s: a["float64"]["growth"] for s, a in seeds.items() if a["float64"]["growth"] is not None}
        if not grown:
            continue
        unit, friction = "nats per step", next(iter(seeds.values()))["friction"]
        theory = statistics.mean([friction + seeds[s]["lambda"] for s in grown])
        found = statistics.mean(list(grown.values()))
        if name in RUBBED:
            ok = abs(found.value / theory.value - 1) <= limits["growth, relative"]
            bound = f"within {limits['growth, relative']:.0%} of lambda + ln(1/momentum) = {theory.value:.5f}"
        else:
            over = statistics.mean([grown[s] - seeds[s]["lambda"] for s in grown])
            ok = abs(over.value) <= limits["growth without friction, nats"]
            bound = f"within {limits['growth without friction, nats']} of lambda = {theory.value:.5f}"
        met.append(ok)
        measures.append(Measure(f"growth, {name}", *found, unit=unit, threshold=bound, met=ok, control=name in FREE))
        measures.append(Measure(f"lambda + ln(1/momentum), {name}", *theory, unit=unit, control=name in FREE))
        undone = statistics.mean([a["tangent_back"] for a in seeds.values()])
        measures.append(Measure(f"growth of the tangent of undoing, {name}", *undone, unit=unit, control=name in FREE))
        single = [a["float32"]["growth"] for a in seeds.values() if a["float32"]["growth"] is not None]
        if single:
            found = statistics.mean(single)
            measures.append(Measure(f"growth in float32, {name}", *found, unit=unit, control=name in FREE))
        changes = [a["energy_change"] for a in seeds.values() if a["energy_change"] is not None]
        halved = [a["energy_change_at_half_step"] for a in seeds.values() if a["energy_change"] is not None]
        for what, values in (("", changes), (", half the step", halved)):
            if values:
                bound, kept = f"below {limits['energy']}, or left out", max(values) < limits["energy"]
                what = f"largest change of H, {name}{what}"
                measures.append(Measure(what, max(values), n=len(values), unit="nats", threshold=bound, met=kept))
    still = arms.get("ECD", {})
    for name in RUBBED:
        pairs = [
            (a["float64"]["growth"], still[s]["float64"]["growth"]) for s, a in arms.get(name, {}).items() if s in still
        ]
        pairs = [pair for pair in pairs if None not in pair]
        if len(pairs) > 1:
            apart[name] = statistics.paired(*zip(*pairs, strict=True))
            what, bound = f"growth, {name} less ECD", "interval above 0 (else growth rates are equal)"
            clear = apart[name].interval[0] > 0
            measures.append(Measure(what, *apart[name], unit="nats per step", threshold=bound, met=clear))
    equal = -math.log(0.9) * limits["equal growth, share of friction"]
    return _say_growth(apart, met, len(RUBBED) + len(FREE), equal), measures


def _say_growth(apart: Mapping[str, statistics.Estimate], met: Sequence[bool], wanted: int, equal: float) -> SubVerdict:
    """`equal`: rates are the same if the interval of their difference holds 0 or less and ends below this."""
    clear = [name for name in RUBBED if name in apart and apart[name].interval[0] > 0]
    if "momentum 0.9" not in apart:
        return SubVerdict("growth", "inconclusive", "fewer than two seeds have both momentum 0.9 and ECD.")
    if "momentum 0.9" not in clear:
        if apart["momentum 0.9"].interval[1] >= equal:
            return SubVerdict("growth", "inconclusive", "the interval of momentum 0.9 less ECD is too wide to tell.")
        return SubVerdict(
            "growth", "refuted", "errors of momentum 0.9 grow no faster on the way back than those of ECD."
        )
    full = len(clear) == len(RUBBED) and len(met) == wanted and all(met)
    why = f"faster than ECD: {', '.join(clear)}; {sum(met)} of {wanted} arms grow as predicted."
    return SubVerdict("growth", "supported" if full else "partly", why)


def _judge_horizon(arms: Mapping[str, dict[int, Any]], limits: Mapping[str, float]) -> tuple[SubVerdict, list[Measure]]:
    measures, near, roughly = [], [], []
    for name, dtype in HORIZONS:
        seeds = arms.get(name, {})
        lost = [a[dtype]["lost"] for a in seeds.values() if a[dtype]["lost"] is not None]
        if not lost or len(lost) < len(seeds):
            continue
        friction, exponent = next(iter(seeds.values()))["friction"], -math.log(SMALLEST[dtype])
        theory, found = exponent / friction, statistics.mean(lost)
        near.append(abs(found.value / theory - 1) <= limits["horizon, relative"])
        factor = limits["horizon, within a factor"]
        roughly.append(1 / factor <= found.value / theory <= factor)
        bound = f"within {limits['horizon, relative']:.0%} of {theory:.0f} (friction alone)"
        measures.append(Measure(f"horizon, {name}, {dtype}", *found, unit="steps", threshold=bound, met=near[-1]))
        both = statistics.mean([exponent / (friction + a["lambda"]) for a in seeds.values()])
        measures.append(Measure(f"horizon in theory with lambda, {name}, {dtype}", *both, unit="steps"))
    free = [a["float64"]["lost"] for name in FREE for a in arms.get(name, {}).values()]
    if free:
        share = statistics.proportion(sum(lost is None for lost in free), len(free))
        bound = "1: float64 brings all runs without friction back to the start"
        measures.append(
            Measure("not lost in float64 without friction", *share, threshold=bound, met=share.value == 1, control=True)
        )
    if len(near) < len(HORIZONS) or not free:
        return SubVerdict(
            "horizon", "inconclusive", "not all horizons were reached, or runs without friction lack."
        ), measures
    kept = all(lost is None for lost in free)
    why = f"{sum(near)} of {len(near)} horizons are where friction alone puts them; without friction float64 "
    why += "loses no run." if kept else "loses runs, too."
    verdict = "supported" if all(near) and kept else "partly" if all(roughly) else "refuted"
    return SubVerdict("horizon", verdict, why), measures


def _judge_return(
    arms: Mapping[str, dict[int, Any]], rows: Sequence[Any], limits: Mapping[str, float]
) -> tuple[SubVerdict, list[Measure]]:
    measures, outcomes = [], []
    exact = [a["exact"] for row in rows for a in row["arms"].values()]
    if exact:
        share = statistics.proportion(sum(exact), len(exact))
        measures.append(
            Measure("unperturbed return, bit for bit", *share, threshold="1", met=all(exact), control=True,
                    kind="implementation check")
        )  # fmt: skip
        found = statistics.mean([row["floor"] for row in rows])
        measures.append(Measure("agreement of two seeds' starts", *found, unit="share of equal answers", control=True))
        sizes = [e["size"] for e in next(iter(rows[0]["arms"].values()))["echoes"]]
    for i, size in enumerate(sizes if exact else ()):
        home, kept = {}, {}
        for name, seeds in arms.items():
            echoes = {s: a["echoes"][i] for s, a in seeds.items()}
            home[name] = [
                (e["agreement_with_start"] or 0) >= limits["function, share of equal answers"] for e in echoes.values()
            ]
            kept[name] = {s: e["kept"] for s, e in echoes.items()}
            free = name in FREE
            share, met = statistics.proportion(sum(home[name]), len(home[name])), [free] * len(home[name]) == home[name]
            bound, control = f"{int(free)} for the claim", name == "momentum 1.0"
            what = f"function returned, {name}, {size:g}"
            measures.append(Measure(what, *share, unit="share of seeds", threshold=bound, met=met, control=control))
            found = statistics.mean(list(kept[name].values()))
            measures.append(Measure(f"function followed the way out, {name}, {size:g}", *found, unit="steps back"))
        both = sorted(set(kept.get("ECD", {})) & set(kept.get("momentum 0.9", {})))
        if len(both) > 1:
            gap = statistics.paired([kept["ECD"][s] for s in both], [kept["momentum 0.9"][s] for s in both])
            longer = gap.interval[0] > 0
            measures.append(
                Measure(f"followed longer, ECD less momentum 0.9, {size:g}", *gap, unit="steps back",
                        threshold="interval above 0", met=longer)
            )  # fmt: skip
            outcomes.append((all(home["ECD"]) and not any(home["momentum 0.9"]), longer, gap.interval[1] <= 0, size))
    if not outcomes:
        why = "fewer than two seeds have both momentum 0.9 and ECD."
        return SubVerdict("perturbed return", "inconclusive", why), measures
    whole, longer, no_longer, at = zip(*outcomes, strict=True)
    some = any(whole) or any(longer)
    verdict = "supported" if all(whole) else "partly" if some else "refuted" if all(no_longer) else "inconclusive"
    returned = ", ".join(f"{size:g}" for size, did in zip(at, whole, strict=True) if did) or "no size"
    why = f"ECD brings the function back in all seeds, and momentum 0.9 in none, at {returned}; "
    why += f"it follows longer at {sum(longer)} of {len(at)} sizes."
    return SubVerdict("perturbed return", verdict, why), measures
