"""Two checks of the arrow: orbits far from the mirror image of the run, and the energy along perturbed ways back.

mirror   a run that begins at rest is a palindrome, q(-1 - t) = q(t): wound back past its start, a turn that is hardly
         perturbed learns again since its mirror image does. Nudged by much, it is on a way of its own.
energy   a way back that left the energy shell (a spike of curvature) would not return for that reason alone
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import physics
from ..physics.outcome import as_json
from .arrow_controls import generalised_at
from .arrow_flow import Flow
from .arrow_lab import start, states
from .record import Measure, Say
from .return_rule import Thresholds, average, share
from .returns import Meter, Way, go_out, turns

MIRROR, SHELL = "arrow: far from the mirror", "arrow: energy of ways back"
"""Names of the parts."""

_LOOKS = 40


def mirror(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """From a turn before the onset, nudged by much: back past the start, and forward.

    Settings: those of `arrow_lab.start`; "steps"; "onset"; "before": the turn's share of the onset; "sizes" of nudges;
    "draws" of each; "both": steps in each direction.

    Returns:
        "onset", "turn_step", "ended_by"; "orbits": for each "size", "draw", and for "forward" and "back" {"step": from
        the turn, "test", "energy_change"}; "mirror": for the way back below step 0, the relative distance of the
        parameters from the mirror image, at each look that has one.
    """
    both = settings["both"]
    meter = Meter(say, settings["steps"] + 2 * len(settings["sizes"]) * settings["draws"] * both)
    it = start(settings, seed, meter)
    out = go_out(it, settings["steps"], settings["onset"])
    found: dict[str, Any] = {"onset": out["onset"], "ended_by": out["ended_by"], "turn_step": None, "orbits": []}
    if out["onset"] is None:
        return found
    flow, turn = (
        Flow(it.traj, it.train),
        turns({"before": settings["before"]}, out["onset"], settings["steps"])["before"],
    )
    it.traj.seek(turn)
    several = [
        Way("random", physics.Nudge(size, seed=1000 * seed + i), size, i)
        for size in settings["sizes"]
        for i in range(settings["draws"])
    ]
    x, every = states(it, several), max(1, both // _LOOKS)
    images = _images(
        it, flow, {k - turn - 1 for k in range(0, both + 1, every) if 0 <= k - turn - 1 <= out["step"][-1]}
    )
    begun = flow.energy(x)
    rows: list[dict[str, Any]] = [{"size": way.size, "draw": way.draw, "mirror": []} for way in several]
    for name, sign in (("forward", 1), ("back", -1)):
        seen: dict[str, list] = {"step": [0], "test": [flow.right(x, it.test)], "energy": [torch.zeros_like(begun)]}

        def look(step: int, x: torch.Tensor, seen: dict = seen, name: str = name) -> None:
            seen["step"].append(abs(step))
            seen["test"].append(flow.right(x, it.test))
            seen["energy"].append((flow.energy(x) - begun).abs())
            image = images.get(abs(step) - turn - 1) if name == "back" else None
            for i, row in enumerate(rows if image is not None else ()):
                row["mirror"].append(float((x[i, 0] - image).norm() / image.norm()))
            it.meter.add(len(x) * every, test=float(seen["test"][-1].mean()))

        flow.wind(x, 0, sign * both, {sign * k for k in range(every, both + 1, every)}, look)
        for i, row in enumerate(rows):
            change = max(float(value[i]) for value in seen["energy"])
            row[name] = {"step": seen["step"], "test": [float(v[i]) for v in seen["test"]], "energy_change": change}
    return as_json(found | {"turn_step": turn, "orbits": rows})


def _images(it: Any, flow: Flow, steps: set[int]) -> dict[int, torch.Tensor]:
    """Parameters of the run at some of its steps; it stays where it stands."""
    images = {}
    with it.traj.branch() as traj:
        for step in sorted(steps):
            traj.seek(step)
            images[step] = flow.layout.read()[0]
    return images


def shell(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """Ways back from the end of the run, as the grid takes them, and what becomes of H on each.

    Settings: those of `arrow_lab.start`; "steps"; "onset"; "sizes" of nudges; "draws" of each.

    Returns:
        "onset", "ended_by"; "ways": for each "kind", "size", "draw", "energy_change": the largest |H - H at the turn|
        of all looks on the way back, None where it is not finite.
    """
    steps, draws = settings["steps"], settings["draws"]
    meter = Meter(say, steps * (2 + draws * (1 + len(settings["sizes"]))))
    it = start(settings, seed, meter)
    out = go_out(it, steps, settings["onset"])
    found: dict[str, Any] = {"onset": out["onset"], "ended_by": out["ended_by"], "ways": []}
    if out["ended_by"] is not None:
        return found
    several = [Way("none", None)]
    several += [Way("momenta", physics.Momenta(seed=1000 * seed + i), draw=i) for i in range(draws)]
    several += [
        Way("random", physics.Nudge(size, seed=1000 * seed + i), size, i)
        for size in settings["sizes"]
        for i in range(draws)
    ]
    flow, every = Flow(it.traj, it.train), max(1, steps // 200)
    x = states(it, several)
    begun, change = flow.energy(x), torch.zeros(len(x), dtype=x.dtype)

    def look(step: int, x: torch.Tensor) -> None:
        change.copy_(torch.maximum(change, (flow.energy(x) - begun).abs()))
        it.meter.add(len(x) * every)

    flow.wind(x, steps, 0, set(range(0, steps, every)), look)
    finite = torch.isfinite(change).tolist()
    return as_json(
        found
        | {
            "ways": [
                {"kind": w.kind, "size": w.size, "draw": w.draw, "energy_change": float(c) if ok else None}
                for w, c, ok in zip(several, change, finite, strict=True)
            ]
        }
    )


def measures(mirrors: Sequence[Mapping[str, Any]], shells: Sequence[Mapping[str, Any]], t: Thresholds) -> list[Measure]:
    """Who generalises at both ends though far from the mirror, and how much H moved on ways back."""
    out: list[Measure] = []
    for size in sorted({row["size"] for seen in mirrors for row in seen["orbits"]}):
        rows = {seen["seed"]: [r for r in seen["orbits"] if r["size"] == size and _kept(r, t)] for seen in mirrors}
        words = f"arrow, turn before the onset nudged by {size:g}"
        far = [min((min(r["mirror"]) for r in own if r["mirror"]), default=None) for own in rows.values()]
        out.append(
            average(f"{words}: least distance from the mirror image, relative", far, bounded=False, control=True)
        )
        for name, sides in (("forward", ("forward",)), ("back in time", ("back",)), ("both", ("forward", "back"))):
            shares = [
                share(all(generalised_at(r[s], t["generalised"]) is not None for s in sides) for r in own)
                for own in rows.values()
            ]
            out.append(average(f"{words}: share that generalised {name}", shares))
    changes = [way["energy_change"] for seen in shells for way in seen["ways"]]
    if changes:
        most = None if None in changes else max(changes)
        over = [float(change is None or change >= t["energy"]) for change in changes]
        out.append(Measure("arrow, ways back: largest |change of H|", most, None, len(changes), "nats", control=True))
        bar = f"arrow, ways back: share whose H moved by {t['energy']:g} or more"
        out.append(Measure(bar, sum(over) / len(over), None, len(over), control=True))
    return out


def _kept(row: Mapping[str, Any], t: Thresholds) -> bool:
    return max(row["forward"]["energy_change"], row["back"]["energy_change"]) < t["energy"]
