"""Claim 3: which runs count, and what counts as generalised, breathing, frozen. Pure functions of evidence."""

from collections.abc import Mapping
from typing import Any

from . import breathing_measures as pure
from .record import Evidence

Thresholds = Mapping[str, float]
Run = Mapping[str, Any]
FREE, HALF, SWEEP, DECAY = "without friction", "half the step", "friction", "decay"
WEAK, SIZES, TROUGH, MELT = "weaker friction", "sizes", "at a trough", "melting"
"""Names of the parts."""

THRESHOLDS: Thresholds = {
    "energy": 1e-2,
    "fitted": 0.99,
    "generalised": 0.5,
    "breath": 0.1,
    "still": 0.05,
    "restored": 0.5,
    "most": 0.8,
    "few": 0.2,
    "freezing momentum": 0.9998,
    "least seeds": 3,
}
"""Fixed before the recorded runs.

energy: |change of H| that a run without friction may have.
fitted: train accuracy that a run must reach at some look.
generalised: test accuracy reached at some look; a network that knows its examples by heart has about 1/p.
breath, still: a fall of test accuracy that is one, and that is none. Of the 577 test pairs of p = 31 at 40 % a share
    has a standard deviation of at most 0.021: five of them, and two and a half.
restored: share of a breath that a scaled network must give back if it is the norm that breathes.
most, few: shares of seeds that count as all and as none.
freezing momentum: the friction that an early measurement saw freeze (seeds 0 and 1); others are measured beside.
"""


def misses(run: Run, t: Thresholds, free: bool) -> str | None:
    """Why a run does not count, or None."""
    if run["ended_by"]:
        return run["ended_by"]
    if free and not run["energy_change"] < t["energy"]:
        return f"|change of H| was {run['energy_change']:.2g}; allowed: {t['energy']:g}"
    best = max(run["curve"].get("train", []), default=0.0)
    if best < t["fitted"]:
        return f"train accuracy came to {best:.2f}; needed: {t['fitted']:g}"
    return None


def free_runs(evidence: Evidence, t: Thresholds) -> dict[int, Run]:
    """Runs without friction that count, by seed."""
    runs = {e["seed"]: run for e in evidence.get(FREE, ()) for run in e["runs"]}
    return {seed: run for seed, run in runs.items() if misses(run, t, True) is None}


def by_momentum(evidence: Evidence, t: Thresholds) -> dict[float, dict[int, Run]]:
    """Runs with friction that count, by momentum and seed."""
    out: dict[float, dict[int, Run]] = {}
    for e in (e for part in (SWEEP, WEAK) for e in evidence.get(part, ())):
        for run in e["runs"]:
            if misses(run, t, False) is None:
                out.setdefault(run["momentum"], {})[e["seed"]] = run
    return out


def left_out(evidence: Evidence, t: Thresholds) -> list[str]:
    """Runs that do not count, and why."""
    out = []
    for part in (FREE, HALF, SWEEP, WEAK, DECAY, SIZES):
        for e in evidence.get(part, ()):
            for run in e["runs"]:
                why = misses(run, t, run["momentum"] == 1)
                changes = ", ".join(f"{k} {v:g}" for k, v in run["changes"].items())
                out += [f"seed {e['seed']}, {part}{f' ({changes})' if changes else ''}: {why}"] if why else []
    for e in evidence.get(TROUGH, ()):
        if "energy_change" in e and not usable(e, t):
            change = f"|change of H| was {e['energy_change']:.2g}"
            out.append(f"seed {e['seed']}, {TROUGH}: {e['ended_by'] or ('' if 'peak' in e else 'no fall; ') + change}")
    for e in evidence.get(MELT, ()):
        if "frozen" in e and not frozen(e, t):
            why = "it did not generalise, or did not freeze"
            out.append(f"seed {e['seed']}, {MELT}: {e['ended_by'] or why}")
        for kick in e.get("kicks", ()):
            if not kept(kick, t):
                why = kick["ended_by"] or f"|change of H| was {kick['energy_change']:.2g}"
                out.append(f"seed {e['seed']}, {MELT}, kick of {kick['energy']:g}: {why}")
    return out


def frozen(e: Mapping[str, Any], t: Thresholds) -> bool:
    """Whether a run with friction generalised, and its test accuracy stayed within a band in the end."""
    still = e.get("frozen") is not None and pure.frozen_at({"test": e["test"]}, t["still"]) is not None
    return still and e["frozen"]["test"] >= t["generalised"]


def kept(kick: Mapping[str, Any], t: Thresholds) -> bool:
    """Whether a run after a kick kept its energy to the end."""
    return not kick["ended_by"] and kick["energy_change"] < t["energy"]


def usable(e: Mapping[str, Any], t: Thresholds) -> bool:
    """Whether a run wound back to its trough counts: it kept H, and its peak generalised."""
    kept = "peak" in e and not e["ended_by"] and e["energy_change"] < t["energy"]
    return kept and e["peak"]["test"] >= t["generalised"]


def generalised(run: Run, t: Thresholds) -> bool:
    """Whether test accuracy reached `generalised` at some look."""
    return max(run["curve"]["test"], default=0.0) >= t["generalised"]


def fall_of(run: Run) -> tuple[int, int] | None:
    """Looks of the largest fall of test accuracy of the whole run."""
    return pure.largest_fall(run["curve"]["test"])


def late_depth(run: Run) -> float:
    """The largest fall of test accuracy in the second half of the run."""
    return pure.depth(pure.late(run["curve"], "test"))
