"""What friction does to the way back: the experiments of claim 2.

gamma    what momenta are multiplied by at each step: 1 is no friction
lambda   nats per step by which a small perturbation grows on the way out (tangent map, random directions)
growth   nats per step by which the error of a float run grows on its way back

The maps are conformally symplectic (friction is the same for all momenta), so that singular values of n steps pair up
to gamma^n: what grows fastest on the way back is lambda + ln(1/gamma).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .. import physics
from ..errors import LoschmidtError
from ..physics.outcome import agreement
from .adding import Adding, adding
from .record import Say

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


def friction_of(arm: Mapping[str, Any]) -> float:
    """ln(1/gamma) in nats per step: 0 without friction."""
    return -math.log(arm["settings"].get("momentum", 0.9)) if arm["kind"] == "SGD" else 0.0


def bits(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """What the tape grew by, per parameter and step, beside the price of the program."""
    out = {}
    for i, arm in enumerate(settings["arms"]):
        say(i / len(settings["arms"]), arm=arm["name"])
        run = adding(settings["task"], seed).run(arm["kind"], arm["settings"]).seek(settings["steps"])
        out[arm["name"]] = {"bits": run.tape.bits_per_parameter_step, "theory": run.optimizer.price()}
    return {"arms": out}


def floats(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """Float runs there and back: how the distance from the way out grows; beside lambda, measured on the way out."""
    out, arms = {}, settings["arms"]
    for i, arm in enumerate(arms):
        here: dict[str, Any] = {"friction": friction_of(arm)}
        for j, (name, dtype) in enumerate(_DTYPES.items()):
            say((i + 0.3 * j) / len(arms), arm=arm["name"], dtype=name)
            task, energies = adding(settings["task"], seed, dtype), _Energies()
            here[name] = _there_and_back(task, arm, settings, energies, settings["ceilings"][name])
            here.setdefault("knows", here[name].pop("knows"))
            here.setdefault("energy_change", energies.change(arm))
        say((i + 0.6) / len(arms), arm=arm["name"])
        here["energy_change_at_half_step"] = _energy_at_half_step(settings, seed, arm)
        here |= _tangents(settings, seed, arm)
        out[arm["name"]] = here
    return {"arms": out}


def echoes(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """Lattice runs wound back from a perturbed turn: how long the function follows the way out, and where it ends."""
    out, arms, sizes = {}, settings["arms"], settings["sizes"]
    for i, arm in enumerate(arms):
        say(i / len(arms), arm=arm["name"])
        task = adding(settings["task"], seed)
        run = task.run(arm["kind"], arm["settings"]).seek(settings["turn"])
        knows = task.knows()
        changes = [None, *(physics.Nudge(size, seed=seed) for size in sizes)]
        control, *others = physics.echo(run, None, changes, observe=task.observe, every=settings["every"])
        out[arm["name"]] = {
            "knows": knows,
            "exact": bool(control.exact),
            "bits": run.tape.bits_per_parameter_step,
            "start_against_turn": control.rows[0]["agreement_with_start"],
            "echoes": [_seen(e, size, settings) for e, size in zip(others, sizes, strict=True)],
        }
    return {"arms": out, "floor": floor(settings["task"], seed)}


@torch.no_grad()
def floor(task: Mapping[str, Any], seed: int) -> float:
    """The seed-to-seed noise floor: agreement of this seed's untrained function with that of another seed."""
    one, other = (adding(task, s) for s in (seed, seed + 1000))
    return agreement(one.observe(one.model), other.observe(other.model))


def _seen(echo: physics.Echo, size: float, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`kept`: steps back after which the function still followed the way out at all samples so far."""
    back = [echo.turn - step for step in echo.column("step")]
    followed, kept = echo.column("agreement"), 0
    for steps, share in zip(back, followed, strict=True):
        if share is None or share < settings["same"]:
            break
        kept = steps
    whole = echo.ended_by is None
    return {
        "size": size,
        "back": back,
        "agreement": followed,
        "relative": echo.column("relative"),
        "kept": kept,
        "agreement_with_start": echo.rows[-1]["agreement_with_start"] if whole else None,
        "loss": echo.rows[-1]["loss"] if whole else None,
        "start_loss": echo.rows[-1]["path_loss"] if whole else None,
        "ended_by": echo.ended_by,
    }


class _Energies:
    """H at each gradient: of SGD with momentum 1, lr |p|^2 / 2 + F; ECD says its own."""

    def __init__(self) -> None:
        self.all: list[float] = []

    def look(self, loss: float, run: physics.NaiveRun) -> None:
        lr = run.settings["lr"]
        self.all.append(loss + lr * float(run.values["p"].double().square().sum()) / 2)

    def change(self, arm: Mapping[str, Any]) -> float | None:
        """The largest on the way out; None with friction."""
        if friction_of(arm) or not self.all:
            return None
        return max(abs(e - self.all[0]) for e in self.all)


def _forward(
    task: Adding, arm: Mapping[str, Any], steps: int, energies: _Energies, every: int, kept: dict[int, torch.Tensor]
) -> physics.NaiveRun:
    """A float run of so many steps; its parameters at every so many are kept."""
    outward = not friction_of(arm)

    def look(loss: float, run: physics.NaiveRun) -> None:
        if not outward:
            return
        if arm["kind"] == "SGD":
            energies.look(loss, run)
        else:
            separable = (run.settings["eta"], run.settings["F0"], run.settings["s"])
            energies.all.append(_separable(loss, float(run.values["p"].double().square().sum()), *separable))

    run = task.float_run(arm["kind"], arm["settings"], look)
    kept[0] = run.values["q"].clone()
    while run.step < steps:
        run.forward()
        if run.step % every == 0:
            kept[run.step] = run.values["q"].clone()
    outward = False
    return run


def _separable(loss: float, square: float, eta: float, below: float, s: float) -> float:
    return eta * math.log(loss - below) + math.log(s + square)


def _there_and_back(
    task: Adding, arm: Mapping[str, Any], settings: Mapping[str, Any], energies: _Energies, ceiling: float
) -> dict[str, Any]:
    steps, every, states = settings["turn"], settings["every"], {}
    run = _forward(task, arm, steps, energies, every, states)
    knows, back, errors, lost = task.knows(), [], [], None
    while run.step > 0 and lost is None:
        try:
            run.back()
        except LoschmidtError:
            lost = steps - run.step
            break
        if run.step % every == 0:
            there = states[run.step].double()
            error = float((run.values["q"].double() - there).norm() / there.norm())
            if not error < 1:
                lost = steps - run.step
            if math.isfinite(error):
                back.append(steps - run.step)
                errors.append(error)
    growth = _slope(back, errors, *arm["fit"], ceiling)
    return {"knows": knows, "back": back, "error": errors, "lost": lost, "growth": growth}


def _slope(back: list[int], errors: list[float], first: int, last: int, ceiling: float) -> float | None:
    """Of ln error against steps back, by least squares, while it is small; None with fewer than five points.

    `first`: not at once, since each step adds a rounding, and their sum grows as a power of time before it grows as an
    exponential; without friction this goes on for hundreds of steps.
    """
    small = next((i for i, e in enumerate(errors) if e > ceiling), len(errors))
    points = [(b, math.log(e)) for b, e in zip(back[:small], errors[:small], strict=True) if first <= b <= last and e]
    if len(points) < 5:
        return None
    x, y = zip(*points, strict=True)
    return float(np.polyfit(x, y, 1)[0])


def _energy_at_half_step(settings: Mapping[str, Any], seed: int, arm: Mapping[str, Any]) -> float | None:
    """The largest change of H over the same time in twice the steps; None with friction."""
    if friction_of(arm):
        return None
    lr = arm["settings"]["lr"]
    lr = lr / 2 if arm["kind"] == "ECD" else lr / 4  # SGD without friction: lr is the square of a time step
    halved, energies = arm | {"settings": arm["settings"] | {"lr": lr}}, _Energies()
    _forward(adding(settings["task"], seed), halved, 2 * settings["turn"], energies, 2 * settings["turn"], {})
    return energies.change(arm)


def _tangents(settings: Mapping[str, Any], seed: int, arm: Mapping[str, Any]) -> dict[str, float]:
    """Nats per step of tangents, out ("lambda") and back, over the very steps that growth is fitted on.

    Out, directions are let align in the steps before; back, in all steps from the turn. The two need not mirror each
    other over a stretch of finite length: out and back see the same growth in the end, but not at the same steps.
    """
    run, count = adding(settings["task"], seed).run(arm["kind"], arm["settings"]), settings["directions"]
    turn = run.seek(settings["turn"]).step
    first, last = (turn - back for back in reversed(arm["fit"]))
    align = min(settings["align"], first)
    out = physics.tangent(run, first - align, last, count, seed=seed).log_growth
    back = physics.tangent(run, turn, first, count, seed=seed + 1).by_lattice["q"]
    steps = last - first
    return {
        "lambda": float((out[-1] - out[align]).mean()) / steps,
        "tangent_back": float((back[-1] - back[turn - last]).mean()) / steps,
    }
