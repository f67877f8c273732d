"""The arrow where a network grokked without friction: wound back exactly, nudged, and with other momenta.

The network and its settings are those that claim 3 tests for grokking (`grokking`); the run is turned at the look at
which it knows how to add.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import physics
from ..errors import LatticeOverflow, LossBelowF0, NonFinite
from ..physics.outcome import as_json
from ..tasks.modular_addition import accuracy
from ..trajectory import Trajectory
from . import returns
from .arrow_lab import start
from .arrow_runs import accuracies
from .grok_search import GENERALISED, verdict
from .record import Evidence, Measure, Picture, Say, Series
from .return_rule import THRESHOLDS as RETURNS
from .return_rule import Thresholds, average, returned
from .returns import Meter, Way, short

GROKKED = "arrow: grokked"
"""Name of the part."""
SELECTED = (0, 1, 2)
"""Seeds on which the setting was found, in plain floats."""


def grokked(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """Train until test accuracy says that it knows how to add, and wind back to step 0 on the lattice.

    Settings: those of `arrow_lab.start`; "steps": at most; "every": steps between looks; "sizes" of nudges.

    Returns:
        "step", "train", "test" of the way out, "energy_change", "ended_by", what `grok_search.verdict` says of it;
        "start": {"train", "test"}; "turn_step"; "ways": as `returns.go_back`, none if it never came to know.
    """
    meter = Meter(say, settings["steps"] * (3 + len(settings["sizes"])))
    it = start(settings, seed, meter)
    first, found = accuracies(it), _out(it.traj, it, settings)
    found |= {"start": first, "turn_step": None, "ways": []}
    if found["test"] and found["test"][-1] >= GENERALISED and found["ended_by"] is None:
        found["turn_step"] = it.traj.step
        ways = [Way("none", None), Way("momenta", physics.Momenta(seed=1000 * seed))]
        ways += [Way("random", physics.Nudge(size, seed=1000 * seed), size) for size in settings["sizes"]]
        meter.total = meter.done + len(ways) * it.traj.step
        found["ways"] = returns.go_back(it, "grokked", ways)
    return as_json(found)


def _out(traj: Trajectory, it: returns.Lab, settings: Mapping[str, Any]) -> dict[str, Any]:
    looks: dict[str, list[float]] = {"step": [], "train": [], "test": []}
    energies: list[float] = []
    change, ended = 0.0, None

    def look(traj: Trajectory) -> bool:
        nonlocal change
        energies[1:] = [traj.optimizer.energy]
        change = max(change, abs(energies[-1] - energies[0]))
        if traj.step % settings["every"] == 0:
            for key, value in (("step", traj.step), ("train", it.train), ("test", it.test)):
                looks[key].append(value if key == "step" else accuracy(traj.model, value))
            it.meter.add(settings["every"], step=traj.step, test=looks["test"][-1])
        return bool(looks["test"]) and looks["test"][-1] >= GENERALISED

    try:
        traj.seek(settings["steps"], on_step=look)
    except (LatticeOverflow, NonFinite, LossBelowF0) as error:
        ended = error.seen
    found = {"energy_change": change, "ended_by": ended} | verdict(looks, change, ended)
    return {name: short(values) for name, values in looks.items()} | found


def measures(evidence: Evidence, t: Thresholds) -> list[Measure]:
    """How many grokked, and of these: what came back, and what stayed."""
    several = evidence.get(GROKKED, ())
    kept = [seen for seen in several if seen["outcome"] == "grokked" and seen["ways"]]
    fresh = [s for s in several if s["seed"] not in SELECTED and s["outcome"] not in ("broke off", "energy moved")]
    name = "arrow, grokked: share of seeds that grokked, without those that the setting was found with"
    out = [average(name, [float(s["outcome"] == "grokked") for s in fresh])]
    ways = [(seen, way) for seen in kept for way in seen["ways"]]
    for kind, size in dict.fromkeys((way["kind"], way["size"]) for _, way in ways):
        own = [(seen, way) for seen, way in ways if (way["kind"], way["size"]) == (kind, size)]
        words = f"arrow, grokked, wound back {_words(kind, size)}"
        exact = kind == "none"
        check: Any = {"kind": "implementation check"} if exact else {}
        back = [float(returned(way, seen["start"]["test"], t)) for seen, way in own]
        out.append(average(f"{words}: share that returns", back, control=exact, **check))
        lowest = [way["lowest_test"] for _, way in own]
        out.append(average(f"{words}: lowest test accuracy on the way", lowest, control=exact))
        out.append(average(f"{words}: test accuracy at step 0", [way["end"]["test"] for _, way in own], control=exact))
    return out if several else []


def left_out(evidence: Evidence) -> list[str]:
    """Seeds that did not grok, and what they did."""
    several = evidence.get(GROKKED, ())
    return [f"seed {s['seed']}, {GROKKED}: {s['outcome']}" for s in several if s["outcome"] != "grokked"]


def _words(kind: str, size: float | None) -> str:
    fixed = {"none": "exactly", "momenta": "with random momenta"}
    return fixed[kind] if size is None else f"after a nudge of {size:g}"


def picture(evidence: Evidence) -> Picture | None:
    """The first seed that grokked: the way out, and the ways back."""
    kept = [seen for seen in evidence.get(GROKKED, ()) if seen["outcome"] == "grokked" and seen["ways"]]
    return _picture(kept[0]["ways"], kept[0]) if kept else None


def _picture(ways: Iterable[Mapping[str, Any]], seen: Mapping[str, Any]) -> Picture:
    series: list[Series] = [
        Series("way out, training pairs", seen["step"], seen["train"], role="theory"),
        Series("way out, test pairs", seen["step"], seen["test"], role="theory"),
    ]
    for way in ways:
        curve: Mapping[str, Sequence[Any]] = way["curve"]
        role: Any = "control" if way["kind"] == "none" else "evidence"
        series.append(Series(f"back {_words(way['kind'], way['size'])}", curve["step"], curve["test"], role=role))
    return Picture(
        title="Grokked, and wound back",
        caption=(
            f"Test accuracy of seed {seen['seed']}, without friction: out (dashed), and back, from right to left. "
            "Exactly wound back it un-groks. If that were the rule, and not one way among all others, the other lines "
            "would come down with it."
        ),
        x="step",
        y="accuracy",
        series=series,
        marks={"un-generalised": RETURNS["un-generalised"]},
    )
