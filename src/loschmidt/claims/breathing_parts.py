"""Claim 3's controls, each from a state of a run: scaled, held at one norm, learned again, melted.

peak, trough    looks of a run without friction between which test accuracy fell most; the run is wound back to them
frozen          the end of a run with friction
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from .. import physics
from ..physics.state import Layout
from ..trajectory import Trajectory
from . import breathing_measures as pure
from .adding import Adding
from .breathing_runs import Looks, begin, go
from .breathing_sphere import Sphere
from .record import Say
from .returns import Meter, short

_ROWS = ("step", "train", "test", "norm", "square")


def at_a_trough(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """What a trough is: an evaluation of scaled weights, motion at one norm, and how soon it is learned again.

    Settings: those of `begin`; "steps"; "every"; "window": steps of motion at one norm and with other momenta;
    "learner": momentum of the friction that relearns; "cap": steps that it may take; "relearn_every": steps between
    its looks; "share": of the peak's test accuracy that counts as learned; "below": as of `sweep`.

    Returns:
        {} for seeds from "below" on; else "energy_change", "ended_by" of the run, and, where test accuracy fell at all,
        "peak", "trough": {"step", "train", "test", "norm", "returned": whether the run, wound back, gave the same
        table again}; "scaled": by name, {"train", "test"}: "trough to the peak's norm", "peak to the trough's norm",
        and both tensor by tensor; "motion": by name, rows ("step", "train", "test", "norm", "square") of "free",
        "random momenta" and "at the peak's norm" from the peak, and of "at the trough's norm" from the trough; "held":
        by name of the last two, the largest |change of H|; "relearning": by name, {"steps": None if over the cap,
        "reached": the highest test accuracy}: "trough", "fresh", "fresh at the trough's norm"; "target".
    """
    if settings["below"] is not None and seed >= settings["below"]:
        return {}
    meter = Meter(say, 3 * settings["steps"] + 5 * settings["window"] + 3 * settings["cap"])
    net, traj = begin(settings, seed)
    looks = Looks(net, traj, settings["every"], settings["steps"], lambda share: meter.add(settings["every"]))
    ended = go(traj, settings["steps"], looks)
    found: dict[str, Any] = {"energy_change": looks.energy_change, "ended_by": ended}
    fall = pure.largest_fall(looks.rows.get("test", []))
    if fall is None:
        return found
    states: dict[str, dict[str, Any]] = {}
    for name, i in (("trough", fall[1]), ("peak", fall[0])):  # the later one first: the run is wound back
        traj.seek(looks.rows["step"][i])
        same = torch.equal(net.observe(net.model).detach(), looks.tables[i])
        tensors = [p.detach().clone() for p in net.model.parameters()]
        found[name] = {row: looks.rows[row][i] for row in ("step", "train", "test", "norm")} | {"returned": same}
        states[name] = {"tensors": tensors, "state": Layout(traj.optimizer).read()}
    meter.add(settings["steps"])
    found["scaled"] = _scaled(net, states, found)
    found["motion"], found["held"] = _motions(net, traj, states, settings, seed, meter)
    found["target"] = settings["share"] * found["peak"]["test"]
    found["relearning"] = _relearning(settings, seed, states["trough"]["tensors"], found, meter)
    return found


@torch.no_grad()
def _scaled(net: Adding, states: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Weights scaled to another moment's norm, all alike or tensor by tensor; the network is left as it was."""
    keep, out = [p.detach().clone() for p in net.model.parameters()], {}
    for name, other in (("trough", "peak"), ("peak", "trough")):
        whole = found[other]["norm"] / found[name]["norm"]
        own, theirs = states[name]["tensors"], states[other]["tensors"]
        each = [float(b.norm() / a.norm()) if float(a.norm()) else 1.0 for a, b in zip(own, theirs, strict=True)]
        for words, factors in (("", [whole] * len(own)), (", tensor by tensor", each)):
            _put(net, [a * factor for a, factor in zip(own, factors, strict=True)])
            knows = net.knows()
            out[f"{name} to the {other}'s norm{words}"] = {key: knows[key] for key in ("train", "test")}
    _put(net, keep)
    return out


@torch.no_grad()
def _put(net: Adding, tensors: list[torch.Tensor]) -> None:
    for p, value in zip(net.model.parameters(), tensors, strict=True):
        p.copy_(value)


def _motions(
    net: Adding, traj: Trajectory, states: Mapping[str, Any], settings: Mapping[str, Any], seed: int, meter: Meter
) -> tuple[dict[str, Any], dict[str, float]]:
    """From the peak (where the run stands) on: as it was, with random momenta, on the sphere; from the trough, too."""
    window, every, motions = settings["window"], settings["every"], {}
    for name in ("free", "random momenta"):
        with traj.branch():
            if name != "free":
                physics.Momenta(seed=seed).begin(traj, Layout(traj.optimizer))
            looks = Looks(net, traj, every, traj.step + window, lambda share: meter.add(every))
            go(traj, traj.step + window, looks)
            motions[name] = {row: short(looks.rows.get(row, [])) for row in _ROWS}
    held = {}
    with traj.branch():  # the network is the run's; the sphere moves it, and leaving puts it back
        for moment in ("peak", "trough"):
            sphere = Sphere(net, states[moment]["state"], settings["lr"], settings["weight_decay"])
            rows = sphere.run(window, every, lambda: meter.add(every))
            name = f"at the {moment}'s norm"
            motions[name], held[name] = {row: short(rows[row]) for row in _ROWS}, sphere.energy_change
        _put(net, states["peak"]["tensors"])
    return motions, held


def _relearning(
    settings: Mapping[str, Any], seed: int, trough: list[torch.Tensor], found: Mapping[str, Any], meter: Meter
) -> dict[str, Any]:
    """Steps of a learner with friction, from rest, to the target."""
    fresh = [p.detach().clone() for p in begin(settings, seed + 1000)[0].model.parameters()]  # other weights
    norm = math.sqrt(sum(float(p.double().square().sum()) for p in fresh))
    starts = {
        "trough": trough,
        "fresh": fresh,
        "fresh at the trough's norm": [p * (found["trough"]["norm"] / norm) for p in fresh],
    }
    out = {}
    for name, tensors in starts.items():
        net, traj = begin(settings, seed, momentum=settings["learner"])
        with traj.edit():
            _put(net, tensors)
        every = settings["relearn_every"]
        looks = Looks(net, traj, every, settings["cap"], lambda share, every=every: meter.add(every))

        def reached(t: Trajectory, looks: Looks = looks) -> bool:
            looks(t)
            return bool(looks.rows.get("test")) and looks.rows["test"][-1] >= found["target"]

        at_start = net.knows()["test"]
        if at_start >= found["target"]:
            out[name] = {"steps": 0, "reached": at_start}
            continue
        ended = go(traj, settings["cap"], reached)
        tests = looks.rows.get("test", [])
        done = bool(tests) and tests[-1] >= found["target"]
        out[name] = {"steps": traj.step if done else None, "reached": max(tests, default=at_start), "ended_by": ended}
    return out


def melting(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """A frozen network, friction off, and a kick of known energy: random momenta, with H raised by so many nats.

    Settings: those of `begin`, "momentum" the friction that freezes; "steps": of freezing; "every"; "kicks": nats, 0
    for friction turned off and nothing else; "window": steps after a kick; "below": as of `sweep`.

    Returns:
        {} for seeds from "below" on; else "ended_by", "leak"; "frozen": {"step", "train", "test", "norm", "square",
        "energy", "taken", "bits"}, of the last look; "test": of all looks, with "step"; "start": H at the start;
        "kicks": a list of {"energy": nats; "square": |p|^2 after it; "train", "test": lowest afterwards; "end": test
        accuracy at the end; "energy_change": the largest |change of H| afterwards; "ended_by"}.
    """
    if settings["below"] is not None and seed >= settings["below"]:
        return {}
    meter = Meter(say, settings["steps"] + len(settings["kicks"]) * settings["window"])
    net, traj = begin(settings, seed)
    looks = Looks(net, traj, settings["every"], settings["steps"], lambda share: meter.add(settings["every"]))
    ended = go(traj, settings["steps"], looks)
    found: dict[str, Any] = {"ended_by": ended, "leak": looks.leak, "start": looks.rows.get("energy", [None])[0]}
    if ended or not looks.rows:
        return found | {"frozen": None, "kicks": []}
    names = ("step", "train", "test", "norm", "square", "energy", "taken", "bits")
    found["frozen"] = {name: looks.rows[name][-1] for name in names}
    found["test"], found["step"] = short(looks.rows["test"]), looks.rows["step"]
    found["kicks"] = [_kicked(net, traj, energy, settings, seed, meter) for energy in settings["kicks"]]
    return found


def _kicked(
    net: Adding, traj: Trajectory, energy: float, settings: Mapping[str, Any], seed: int, meter: Meter
) -> dict[str, Any]:
    with traj.branch():
        group, layout = traj.optimizer.param_groups[0], Layout(traj.optimizer)
        group["momentum"] = 1.0
        old = layout.read()
        square = float(old[1].square().sum())
        if energy:
            square = (group["s"] + square) * math.exp(energy) - group["s"]
            old[0] = 0.0
            with traj.edit():  # so that nobody takes the kick for a step that lost its energy
                layout.move(traj.optimizer, layout.random(1, seed, ["p"])[0] * math.sqrt(square) - old)
        every, until = settings["every"], traj.step + settings["window"]
        looks = Looks(net, traj, every, until, lambda share: meter.add(every))
        ended = go(traj, until, looks)
        rows = looks.rows
        return {
            "energy": energy,
            "square": square,
            "train": min(rows.get("train", [0.0])),
            "test": min(rows.get("test", [0.0])),
            "end": rows.get("test", [0.0])[-1],
            "energy_change": looks.energy_change,
            "ended_by": ended,
        }
