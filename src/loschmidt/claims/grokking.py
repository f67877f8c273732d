"""Does grokking need friction? Claim 3's part with a network that does grok: rule, runs, measures, picture.

The square multilayer perceptron (Gromov, arXiv 2301.02679) learns its examples by heart and, much later, to add, by
the rule of `grok_search.verdict`. Runs differ in friction alone. What is found decides no verdict of claim 3: it was
added after that rule was fixed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..physics.outcome import as_json
from . import breathing_measures as pure
from .arrow_lab import start
from .breathing_rule import Thresholds
from .grok_search import ENERGY, KNOWS_NOTHING, verdict
from .record import Evidence, Finding, Measure, Picture, Say, Series, SubVerdict, Verdict
from .return_rule import average
from .returns import Meter, go_out

GROKKING = "grokking"
"""Name of the part."""


def runs(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """Runs that differ in friction, each to the same step.

    Settings: those of `arrow_lab.start`; "steps"; "every": steps between looks; "momenta": of the frictions; "below":
    seeds from this on have no such runs (None: all have).

    Returns:
        "runs": for each {"momentum"; "step", "train", "test": lists, an entry a look; "bits" a parameter, on the tape;
        "energy_change": the largest |H - H at the start|; "ended_by"; and what `grok_search.verdict` gives of it}.
    """
    if settings["below"] is not None and seed >= settings["below"]:
        return {"runs": []}
    meter, found = Meter(say, settings["steps"] * len(settings["momenta"])), []
    for momentum in settings["momenta"]:
        own = settings["optimizer_settings"] | {"momentum": momentum}
        it = start({**settings, "optimizer_settings": own}, seed, meter)
        out = go_out(it, settings["steps"], 1.0, settings["every"])
        energy = out["energy_change"] if momentum == 1 else 0.0  # friction takes some, and is meant to
        curve = {name: out[name] for name in ("step", "train", "test", "ended_by", "energy_change")}
        bits = it.traj.tape.bits / it.traj.optimizer.numel
        found.append({"momentum": momentum, "bits": bits} | curve | verdict(out, energy, out["ended_by"]))
    return as_json({"runs": found})


def with_grokking(finding: Finding, evidence: Evidence, t: Thresholds) -> Finding:
    """A finding of claim 3 with what this part shows; as it was if it was not run."""
    everything = _by_momentum(evidence)
    if not everything:
        return finding
    by = {m: {s: r for s, r in several.items() if _counts(r)} for m, several in everything.items()}
    shares, measures = {}, []
    for momentum, several in sorted(by.items(), reverse=True):
        words = f"grokking, {_words(momentum)}"
        grokked = [float(r["outcome"] == "grokked") for r in several.values()]
        rows = [r for r in several.values() if r["outcome"] == "grokked"]
        found = average(f"{words}: share of seeds that grokked", grokked)
        bar = f"at least {t['most']:g}: grokking does without friction" if momentum == 1 else ""
        met = found.value is not None and found.value >= t["most"] if bar else None
        shares[momentum] = found.value
        measures += [
            replace(found, threshold=bar, met=met, control=momentum < 1),
            average(f"{words}: delay, over the steps that fitting took", [r["delay"] for r in rows], False),
            average(f"{words}: step at which it knew how to add", [float(r["generalised"]) for r in rows], False),
            average(f"{words}: largest fall of test accuracy afterwards", [_fall(r) for r in rows], False),
            average(f"{words}: bits a parameter, whole run", [r["bits"] for r in several.values()], False, unit="bits"),
        ]
    measures.append(_energy(everything))
    seen, n = shares.get(1.0), len(by.get(1.0, ()))
    best = max((v for m, v in shares.items() if m < 1 and v is not None), default=0.0)
    subs = [*finding.sub_verdicts, SubVerdict("(e) grokking needs friction", *_decided(seen, best, n, t))]
    left = [
        f"seed {seed}, grokking ({_words(momentum)}): {_why(run)}"
        for momentum, several in sorted(everything.items(), reverse=True)
        for seed, run in several.items()
        if not _counts(run)
    ]
    return replace(
        finding,
        sub_verdicts=subs,
        measures=[*finding.measures, *measures],
        left_out=[*finding.left_out, *left],
    )


def _decided(seen: float | None, best: float, n: int, t: Thresholds) -> tuple[Verdict, str]:
    why = f"{0 if seen is None else seen:.2f} of {n} seeds grokked without friction, {best:.2f} with the best one."
    if seen is None or n < t["least seeds"]:
        return "inconclusive", f"{why} Needed: {t['least seeds']:g} seeds."
    if seen >= t["most"]:
        return "refuted", why
    if seen <= t["few"]:
        return ("supported" if best >= t["most"] else "inconclusive"), why
    return "partly", why


def picture(evidence: Evidence) -> Picture | None:
    """Test and train accuracy without friction, over the logarithm of steps; test accuracy with some."""
    by = _by_momentum(evidence)
    if not by:
        return None
    series: list[Series] = []
    for momentum, several in sorted(by.items(), reverse=True):
        for i, (seed, run) in enumerate(several.items()):
            role = "seed" if i else "evidence" if momentum == 1 else "control"
            name = f"test, {_words(momentum)}"
            series.append(Series(f"{name}, seed {seed}" if i else name, run["step"], run["test"], role=role))
            if momentum == 1 and not i:
                series.append(Series("train, without friction", run["step"], run["train"], role="theory"))
    return Picture(
        title="Grokking, without friction and with",
        caption=(
            "A square multilayer perceptron. Dashed: training accuracy of the first seed, which knows its examples by "
            "heart long before it can add. If that took friction, the lines without would stay down."
        ),
        x="step",
        y="accuracy",
        series=series,
        log="x",
        marks={"knows nothing below": KNOWS_NOTHING},
    )


def _by_momentum(evidence: Evidence) -> dict[float, dict[int, Mapping[str, Any]]]:
    out: dict[float, dict[int, Mapping[str, Any]]] = {}
    for e in evidence.get(GROKKING, ()):
        for run in e["runs"]:
            out.setdefault(float(run["momentum"]), {})[e["seed"]] = run
    return out


def _counts(run: Mapping[str, Any]) -> bool:
    return run["outcome"] not in ("broke off", "energy moved")


def _words(momentum: float) -> str:
    return "without friction" if momentum == 1 else f"momentum {momentum:g}"


def _fall(run: Mapping[str, Any]) -> float:
    return pure.depth([test for step, test in zip(run["step"], run["test"], strict=True) if step >= run["generalised"]])


def _why(run: Mapping[str, Any]) -> str:
    return run["ended_by"] or f"|change of H| was {run['energy_change']:.2g}; allowed: {ENERGY:g}"


def _energy(by: Mapping[float, Mapping[int, Mapping[str, Any]]]) -> Measure:
    changes: Sequence[float] = [r["energy_change"] for r in by.get(1.0, {}).values() if r["energy_change"] is not None]
    largest = max(changes, default=None)
    name, met = "grokking, without friction: largest |change of H|", largest is not None and largest < ENERGY
    return Measure(name, largest, None, len(changes), "nats", f"below {ENERGY:g}", met, control=True)
