"""Winding ECD back with a part of its weight decay un-reversed: the experiments of claim 7.

share    of the decay that the way back leaves un-reversed: its decay is (1 - share) times the recorded one;
         1 leaves decay out, and 2, for decay outside H, lets it go on shrinking weights while all else is wound back
returned the function is the start's again: what that means is in the thresholds of the claim
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from .. import physics
from ..errors import LoschmidtError
from ..exact import random
from ..physics.outcome import agreement, as_json
from ..physics.state import Layout
from .adding import Adding, adding
from .friction import floor
from .record import Say

if TYPE_CHECKING:
    from ..trajectory import Trajectory

_FLIPPED = {"lr": -1.0, "eta": -1.0}  # undoing with these: the loss's sign is flipped, the kinetic term is as it was


@dataclass(frozen=True)
class Push(physics.Perturbation):
    """The control of equal size: all decay is reversed, and each step back pushes by what un-reversed decay would.

    Along one random direction, in the momenta for decay inside H and in the parameters for decay outside.

    Attributes:
        share: of the decay whose size it has.
        seed: of the direction.
    """

    kind: ClassVar[str] = "push"
    share: float = 1e-3
    seed: int = 0

    def begin(self, traj: "Trajectory", layout: Layout) -> Callable[["Trajectory"], None]:
        """Push after each step that is undone."""
        opt, turn = traj.optimizer, traj.step
        settings = dict(opt.param_groups[0])
        row = 0 if settings["decoupled"] else 1
        along = torch.zeros(layout.shape, dtype=torch.float64)
        draw = torch.from_numpy(random.generator("push", self.seed).standard_normal(layout.size))
        along[row] = draw / draw.norm()
        opt.journal.verified_from = turn

        def push(traj: "Trajectory") -> None:
            if traj.step == turn:
                return
            q, lr, whole = layout.read()[0], settings["lr"], settings["weight_decay"]
            part, size = (1 - self.share) * whole, lr * self.share * whole * float(q.norm())
            if row:  # decay acts as a force, and through the potential that all forces are divided by
                g = torch.cat([p.grad.reshape(-1) for p in settings["params"]])
                over = [float(traj._last_loss) + w / 2 * float(q @ q) - settings["F0"] for w in (whole, part)]
                size = lr * settings["eta"] * float(((g + whole * q) / over[0] - (g + part * q) / over[1]).norm())
            layout.move(opt, along * size)

        return push


def strong(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """Decay of usual strength: all shares, pushes of equal size, and the loss's sign flipped; at two turns."""
    task = adding(settings["task"], seed)
    ecd = settings["ecd"] | {"decoupled": settings["decoupled"]}
    run, turns = task.run("ECD", ecd), []
    start = _Start(task, run)
    energies = _Energies(run)
    for i, turn in enumerate(settings["turns"]):
        run.seek(turn["at"], on_step=energies.look)
        knows, ways = task.knows(), {}
        plan: dict[str, physics.Perturbation] = {
            f"share {x:g}": physics.Scaled({"weight_decay": 1 - x}) for x in turn["shares"]
        }
        plan |= {f"push {x:g}": Push(x, seed) for x in turn["pushes"]}
        if turn["flip"]:
            whole = {"weight_decay": -1.0} if settings["decoupled"] else {}
            plan |= {"loss flipped, decay reversed": physics.Scaled(_FLIPPED | whole)}
        for j, (name, change) in enumerate(plan.items()):
            say((i + j / len(plan)) / len(settings["turns"]), way=name)
            ways[name] = start.after(run, task, change)
        turns.append({"at": turn["at"], "knows": knows, "ways": ways, "momenta_flipped": None})
        if turn["mirror"] and not settings["decoupled"]:
            turns[-1]["momenta_flipped"] = _mirrored(run, task, turn["mirror"])
    return {
        "turns": turns,
        "start": start.knows,
        "floor": floor(settings["task"], seed),
        "energy_change": None if settings["decoupled"] else energies.change,
        "energy_change_at_half_step": None if settings["decoupled"] else _at_half_step(settings, ecd, seed),
        "contraction": {"bits": run.tape.bits_per_parameter_step, "theory": run.optimizer.price()},
    }


def weak(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """Weaker decay, all of it left out on the way back; and none, the control."""
    rows, start = [], None
    for i, decay in enumerate(settings["decays"]):
        say(i / len(settings["decays"]), decay=decay)
        task = adding(settings["task"], seed)
        ecd = settings["ecd"] | {"decoupled": settings["decoupled"], "weight_decay": decay}
        run = task.run("ECD", ecd)
        start = _Start(task, run)
        energies = _Energies(run)
        run.seek(settings["turn"], on_step=energies.look)
        knows = task.knows()
        way = start.after(run, task, physics.Scaled({"weight_decay": 0.0}))
        conserves = decay == 0 or not settings["decoupled"]
        rows.append(
            {"decay": decay, "knows": knows, "way": way, "energy_change": energies.change if conserves else None}
        )
    time = settings["turn"] * settings["ecd"]["lr"]
    return {"decays": rows, "turn": settings["turn"], "time": time, "start": start.knows}


class _Start:
    """The function before the first step, and how like it another is."""

    def __init__(self, task: Adding, run: "Trajectory"):
        self.knows, self.digest = task.knows(), run.digest()
        with torch.no_grad():
            self.outputs = task.observe(task.model)

    def after(self, run: "Trajectory", task: Adding, change: physics.Perturbation) -> dict[str, Any]:
        """Wind back to step 0 in a branch, with something different, and look."""
        with run.branch() as traj:
            before, ended = change.begin(traj, Layout(traj.optimizer)), None
            if before is not None:
                before(traj)
            try:
                traj.seek(0, on_step=before)
            except LoschmidtError as error:
                ended = error.seen
            with torch.no_grad():
                now = agreement(task.observe(task.model), self.outputs)
            found = {"agreement": now, "exact": traj.digest() == self.digest, **task.knows()}
            return as_json(found | {"ended_by": ended, "ended_at": traj.step})


class _Energies:
    """H on the way out."""

    def __init__(self, run: "Trajectory"):
        self.first: float | None = None
        self.change, self._run = 0.0, run

    def look(self, run: "Trajectory") -> None:
        """After each step."""
        energy = run.optimizer.energy
        self.first = energy if self.first is None else self.first
        self.change = max(self.change, abs(energy - self.first))


def _at_half_step(settings: Mapping[str, Any], ecd: Mapping[str, Any], seed: int) -> float:
    run = adding(settings["task"], seed).run("ECD", ecd | {"lr": ecd["lr"] / 2})
    energies = _Energies(run)
    run.seek(2 * settings["turns"][-1]["at"], on_step=energies.look)
    return energies.change


def _mirrored(run: "Trajectory", task: Adding, shares: list[float]) -> list[dict[str, Any]]:
    """Momenta flipped and steps taken in mirrored order, beside undoing with the same share: the same bits?"""
    out, turn = [], run.step
    for share in shares:
        ends = []
        with run.branch() as traj:
            scale = physics.Scaled({"weight_decay": 1 - share}).begin(traj, Layout(traj.optimizer))
            traj.seek(0, on_step=scale)
            ends.append(Layout(traj.optimizer).read()[0])
        with run.time_reversed() as traj:
            for group in traj.optimizer.param_groups:
                group["weight_decay"] *= 1 - share
            traj.seek(2 * turn)
            ends.append(Layout(traj.optimizer).read()[0])
        out.append({"share": share, "same_bits": bool(torch.equal(*ends))})
    return out
