"""The grid of returns and its prediction: turns x perturbations x directions, all of one recorded run a seed.

The prediction sees the run alone: tangent maps are carried forward along it, and say how far off a way back from each
turn is at the onset and at the start. The map J of a stretch has blocks A, B, C, D by (q, p), and being symplectic its
inverse has the block D^T where it takes q to q. So a nudge of q at the turn grows on the way back, in mean square over
directions, exactly as a nudge of *p* there grows forward, seen in p at the turn: that is what is carried, from p to p.
(From q to q, or by the norm of both, is another block: in a pilot it was off by 5 at the start.)

The test winds back, many ways at once (`arrow_flow`). Both run out from the start, so that a job needs nothing but its
seed; a digest at the end shows that they saw one run.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..physics.outcome import as_json
from ..physics.state import Layout
from .arrow_flow import CHUNK, Flow
from .arrow_lab import gauge_norms, start, states, ways
from .arrow_rule import cells
from .record import Say
from .returns import Lab, Meter, Way, go_out, turns

LOOKS = 60  # of a way back


def predictions(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """What forward tangent maps of the run say of ways back, before any is taken.

    Settings: those of `arrow_lab.start`; "steps"; "onset"; "turns": name -> share of the onset, or None for the end;
    "sizes"; "gauge": how many rotations; "growth": how many tangents; "half_step": whether to run out at half the
    step size, too; "rule": the numbers of `arrow_rule.cells`.

    Returns:
        "out", "half": what `go_out` gives; "digest" of the run at its end; "start": {"train", "test"}; "norms" of the
        parameters, {"onset", "start"}; "turns": name -> {"step", "train", "test", "norm", "gauge_norms"}; "growth":
        name -> {"onset", "start"}: ln of the growth from there to the turn, p to p, a list, one a tangent; "cells":
        see `arrow_rule.cells`.
    """
    steps = settings["steps"]
    meter = Meter(say, steps * (1 + 2 * bool(settings["half_step"]) + 2 * (2 + settings["growth"])))
    it = start(settings, seed, meter)
    first = accuracies(it)
    out = go_out(it, steps, settings["onset"])
    found: dict[str, Any] = {"out": out, "half": None, "digest": it.traj.digest(), "start": first}
    found |= {"turns": {}, "growth": {}, "norms": {}, "cells": []}
    if settings["half_step"]:
        found["half"] = go_out(start(settings, seed, meter, 0.5), 2 * steps, settings["onset"], 40)
    if out["onset"] is None:
        return found
    growth = {key: _growth(it, step, settings["growth"], seed) for key, step in (("start", 0), ("onset", out["onset"]))}
    with it.traj.branch() as traj:
        found["norms"] = {"onset": _norm(traj.seek(out["onset"])), "start": _norm(traj.seek(0))}
    for name, turn in turns(settings["turns"], out["onset"], steps).items():
        it.traj.seek(turn)
        there = accuracies(it) | {"step": turn, "norm": _norm(it.traj)}
        found["turns"][name] = there | {"gauge_norms": gauge_norms(it, settings["gauge"], seed)}
        found["growth"][name] = {key: by_step[turn] for key, by_step in growth.items() if turn in by_step}
    found["cells"] = cells(found, settings["sizes"], settings["rule"])
    return as_json(found)


def returns(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """Ways back from one turn: each size in each direction, with nothing different, and with random momenta.

    Settings: as of `predictions`, and "turn": its name; "random": how many directions; "block": see `arrow_lab.ways`.

    Returns:
        "onset", "ended_by", "digest": of the way out; "turn", "turn_step"; "start": {"train", "test"}; "ways": see
        `go_back`. No ways if the run had no onset.
    """
    steps, name = settings["steps"], settings["turn"]
    count = 2 + -(
        -len(settings["sizes"]) * (settings["random"] + settings["gauge"]) // settings.get("block", (0, 1))[1]
    )
    meter = Meter(say, steps * (1 + count))
    it = start(settings, seed, meter)
    first = accuracies(it)
    out = go_out(it, steps, settings["onset"])
    found: dict[str, Any] = {key: out[key] for key in ("onset", "ended_by")}
    found |= {"digest": it.traj.digest(), "turn": name, "turn_step": None, "start": first, "ways": []}
    if out["onset"] is None:
        return found
    found["turn_step"] = turns(settings["turns"], out["onset"], steps)[name]
    it.traj.seek(found["turn_step"])
    meter.total = meter.done + count * found["turn_step"]
    found["ways"] = go_back(it, ways(it, settings, seed), out["onset"])
    return as_json(found)


def go_back(it: Lab, several: Sequence[Way], onset: int, chunk: int = CHUNK) -> list[dict[str, Any]]:
    """Wind back to step 0 in floats, many ways at once, from the turn where the run stands; it stays there.

    Args:
        it: stands at the turn; full batch.
        several: what is different.
        onset: step at which the distance from the way out is taken, if the turn lies above it.
        chunk: ways that are wound back together.

    Returns:
        A dict for each way: "kind", "size", "draw"; "turn_step"; "moved" (relative, parameters); "ended_by";
        "lowest_test" on the way back, the turn left out; "onset_distance": relative, of the parameters, None for
        turns below it; "end": {"step", "train", "test", "agreement" with the start's function, "relative"}.
    """
    turn, flow = it.traj.step, Flow(it.traj, it.train)
    path, table = {turn: flow.layout.read()[0]}, torch.cat([it.train[0], it.test[0]])
    with it.traj.branch() as traj:
        for step in sorted({onset, 0} & set(range(turn)), reverse=True):
            traj.seek(step)
            path[step] = flow.layout.read()[0]
    answers = flow.outputs(path[0][None, None], table)[0].argmax(-1)
    x, rows = states(it, several), []
    at = {*range(0, turn, max(1, turn // LOOKS)), onset}
    for first in range(0, len(several), chunk):
        batch, seen = x[first : first + chunk], []

        def look(step: int, x: torch.Tensor, seen: list = seen) -> None:
            far = (x[:, 0] - path[step]).norm(dim=1) / path[step].norm() if step in path else None
            seen.append((step, flow.right(x, it.test), far))
            it.meter.add(len(x) * turn / len(at), turn=turn, test=float(seen[-1][1].mean()))

        moved = (batch[:, 0] - path[turn]).norm(dim=1) / path[turn].norm()
        end = flow.wind(batch, turn, 0, at, look)
        finite = torch.isfinite(end).flatten(1).all(1)
        agreement = (flow.outputs(end, table).argmax(-1) == answers).double().mean(1)
        train, tests = flow.right(end, it.train), torch.stack([test for _, test, _ in seen])
        at_onset = next((far for step, _, far in seen if step == onset and far is not None), None)
        for i, way in enumerate(several[first : first + chunk]):
            last = {"step": 0, "train": train[i], "test": tests[-1, i], "agreement": agreement[i]}
            row = {"kind": way.kind, "size": way.size, "draw": way.draw, "turn_step": turn, "moved": moved[i]}
            row["ended_by"] = None if finite[i] else "the parameters are not finite."
            row["lowest_test"] = tests[:, i].min()
            row["onset_distance"] = None if at_onset is None else at_onset[i]
            row["end"] = {k: _number(v) for k, v in (last | {"relative": seen[-1][2][i]}).items()}
            rows.append({k: _number(v) for k, v in row.items()})
    return rows


def _growth(it: Lab, first: int, tangents: int, seed: int) -> dict[int, list[float]]:
    """By step above `first`: ln of the growth of nudges of p there, seen in p, one a tangent."""
    last = it.traj.step
    if first >= last:
        return {}
    layout = Layout(it.traj.optimizer)
    with it.traj.branch() as traj:
        traj.seek(first)
        state = layout.read()
    logs = Flow(it.traj, it.train).growth(state, layout.random(tangents, seed, ["p"]), last - first)
    it.meter.add((last - first) * (2 + tangents))
    return {first + i: row for i, row in enumerate(logs.tolist()) if i}


def accuracies(it: Lab) -> dict[str, float]:
    """Of training and test pairs, where the run stands."""
    every, it.every = it.every, 0.0
    with it.traj.evaluating() as model:
        it.observe(model)
    it.every = every
    return dict(zip(("train", "test"), it.looks[-1], strict=True))


def _norm(traj: Any) -> float:
    return float(Layout(traj.optimizer).read()[0].norm())


def _number(value: Any) -> Any:
    """To six digits."""
    value = float(value) if isinstance(value, torch.Tensor) else value
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value
