"""Tangent maps: how small perturbations of a run grow, from any step to any other, forward and back.

v_t      directions in the joint state (q, p), infinitesimal
J_t      derivative of step t without rounding, at the *recorded* state of step t
forward  v_{t+1} = J_t v_t         back  v_t = J_t^-1 v_{t+1}

J_t v costs one product with the Hessian (about two gradients) a direction; the gradient's graph is made once a step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InvalidSetting, NotSmooth
from ..trajectory import guard
from .replica import Replica
from .smooth import Taken
from .state import Direction, Layout

if TYPE_CHECKING:
    from ..trajectory import Trajectory

_CLOSE = {torch.float64: 1e-6, torch.float32: 1e-2}  # of the loss, against that of the run


@dataclass(frozen=True)
class Tangent:
    """Growth of small perturbations along a run.

    Attributes:
        steps: from start to stop.
        log_growth: ln |v_t| / |v_start| over the joint state, shape (steps, k).
        by_lattice: the same of "q" alone, of "p" alone, ...: ln |q part of v_t| / |v_start|; -inf where it is zero.
        directions: at the end, each of norm 1, shape (k, lattices, size).
        lattices: names of the rows of a direction, "q" first.
    """

    steps: list[int]
    log_growth: torch.Tensor
    by_lattice: dict[str, torch.Tensor]
    directions: torch.Tensor
    lattices: tuple[str, ...]

    @property
    def total(self) -> torch.Tensor:
        """ln |v_stop| / |v_start|, shape (k,)."""
        return self.log_growth[-1]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the directions, as JSON values (-inf as None)."""

        def plain(x: torch.Tensor) -> list[list[float | None]]:
            return [[y if math.isfinite(y) else None for y in row] for row in x.tolist()]

        by_lattice = {name: plain(x) for name, x in self.by_lattice.items()}
        return {"steps": self.steps, "log_growth": plain(self.log_growth), "by_lattice": by_lattice}


def tangent(
    trajectory: "Trajectory",
    start: int,
    stop: int,
    directions: int | Direction | Sequence[Direction] = 1,
    *,
    seed: int = 0,
) -> Tangent:
    """Follow small perturbations of the state of step `start` to step `stop`, forward or back.

    The run is linearised at its recorded states, which are visited by `seek` in a branch: it stands where it stood
    afterwards, bit for bit. Going back, the tangent is that of undoing: the inverse of the one forward, but that
    factors of a rescaling are held at what was recorded, as undoing holds them.

    Guarantees: products within 1e-6 of finite differences, in float64, of the model's loss as a function in float64.
    The energy shell of ECD and learning rates are held. ReLU and the like have the derivative that torch gives them.
    Growth is returned as a logarithm, and so cannot overflow. What breaks it: a float64 copy of the model that is
    another function (dropout that draws other numbers in float64): noticed where its loss differs.

    Args:
        trajectory: the run.
        start: where the perturbation is made; between the first step and any later one.
        stop: where it is followed to.
        directions: how many random ones (normal, in the parameters); or one, or several: state-shaped tensors, or
            dicts of a parameter's name (or "name/p" for its momentum) -> tensor. Their length does not matter.
        seed: of random directions.

    Returns:
        The growth at each step.

    Raises:
        NotSmooth: a model with state that evaluations change and read (batch norm's statistics in train mode are
            not read, and are fine), a run with `after_backward` (clipping is not part of the program), an op
            without a derivative.
        InvalidSetting: directions that are zero or do not fit.
        OutOfReach: a step that cannot be reached.
    """
    guard.refuse_no_trajectory(trajectory)
    layout = Layout(trajectory.optimizer)
    v = layout.vectors(directions, seed)
    v = v / _norms(v)[:, None, None]
    logs = torch.zeros(len(v), dtype=torch.float64)
    steps, growth, parts = [start], [logs.clone()], {name: [_row_logs(v, i)] for i, name in enumerate(layout.names)}

    def each(step: int, v: torch.Tensor) -> torch.Tensor:
        norms = _norms(v)
        for i, name in enumerate(layout.names):
            parts[name].append(logs + _row_logs(v, i))
        logs.add_(norms.log().cpu())
        steps.append(step)
        growth.append(logs.clone())
        return v / norms[:, None, None]

    v = walk(trajectory, start, stop, v, each)
    by_lattice = {name: torch.stack(rows) for name, rows in parts.items()}
    return Tangent(steps, torch.stack(growth), by_lattice, v, layout.names)


def walk(
    traj: "Trajectory",
    start: int,
    stop: int,
    v: torch.Tensor,
    each: Callable[[int, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Carry tangents along a run; `each(step, v)` is called after each step, and gives what to go on with.

    Args and errors: `tangent`. `v` is of shape (k, lattices, size).
    """
    start, stop = guard.reachable(traj, start), guard.reachable(traj, stop)
    if traj.after_backward is not None:
        raise NotSmooth(
            "this run has an after_backward, which changes gradients in a way that is not part of the program.",
            "make a Trajectory without it.",
        )
    opt = traj.optimizer
    energy = getattr(opt, "energy", None)
    with traj.branch():
        traj.seek(start)
        layout, replica = Layout(opt), Replica(traj)
        changing = replica.changing_buffers(start)
        if changing:
            raise NotSmooth(
                f"evaluating the loss changes buffer {changing[0]}, which a later step may read: that is state "
                "besides parameters and momenta.",
                "put that module into eval mode, inside `with trajectory.edit():`.",
            )
        back = stop < start
        here = {"x": layout.read(), "taken": Taken.last(traj, layout) if back else None, "v": v}

        def on_step(traj: "Trajectory") -> None:
            x, after = here["x"], layout.read()
            taken = here["taken"] if back else Taken.last(traj, layout)
            taken.loss = None if traj._last_loss is None else float(traj._last_loss)
            pushed = (taken.back if back else taken.forward)(x, here["v"], replica)[1]
            _refuse_another_function(taken, traj)
            here["x"], here["v"] = after, each(traj.step, pushed)
            if back and traj.step != stop:
                here["taken"] = Taken.last(traj, layout)

        try:
            traj.seek(stop, on_step=on_step)
        finally:
            if energy is not None:
                opt.energy = energy
    return here["v"]


def _refuse_another_function(taken: Taken, traj: "Trajectory") -> None:
    if taken.loss is None or taken.seen is None:
        return
    kinds = {s.parameter.dtype for s in traj.optimizer._slots}
    allowed = max(_CLOSE.get(kind, 0.1) for kind in kinds) * (0.01 + abs(taken.loss))
    if not abs(taken.seen - taken.loss) <= allowed:
        raise NotSmooth(
            f"in float64 the loss of step {taken.step} is {taken.seen:.6g}, and in the run it was {taken.loss:.6g}: a "
            "copy of the model is another function (does it draw other random numbers, or keep state of its own?).",
            "let loss(model, batch) depend on the model, the batch and torch's random numbers only.",
        )


def _norms(v: torch.Tensor) -> torch.Tensor:
    return v.flatten(1).norm(dim=1)


def _row_logs(v: torch.Tensor, row: int) -> torch.Tensor:
    return v[:, row].norm(dim=1).log().cpu()


@dataclass(frozen=True)
class Lyapunov:
    """Leading Lyapunov exponents of a stretch of a run.

    Attributes:
        exponents: nats per step, largest first, shape (k,).
        errors: standard errors from the means over ten blocks of the stretch.
        steps: where the directions were made orthogonal again.
        log_growth: sums of the logarithms up to there, shape (len(steps), k).
        directions: orthonormal, at the end.
    """

    exponents: torch.Tensor
    errors: torch.Tensor
    steps: list[int]
    log_growth: torch.Tensor
    directions: torch.Tensor

    def to_dict(self) -> dict[str, Any]:
        """Everything but the directions, as JSON values."""
        return {
            "exponents": self.exponents.tolist(),
            "errors": [e if math.isfinite(e) else None for e in self.errors.tolist()],
            "steps": self.steps,
            "log_growth": self.log_growth.tolist(),
        }


_BLOCKS = 10


def lyapunov(
    trajectory: "Trajectory",
    start: int,
    stop: int,
    k: int = 1,
    *,
    every: int = 1,
    settle: int = 0,
    directions: int | Direction | Sequence[Direction] | None = None,
    seed: int = 0,
) -> Lyapunov:
    """The k leading Lyapunov exponents between two steps, by carrying k directions and making them orthonormal by QR.

    Backward (`stop < start`) they are those of the way back: of undoing. Over a finite stretch an exponent is an
    average rate; with friction (or where training has not settled) it is no property of an attractor.

    Args:
        trajectory: the run; afterwards it stands where it stood.
        start: first step.
        stop: last step.
        k: how many.
        every: steps between QR factorisations.
        settle: steps at the beginning that align the directions and are not counted.
        directions: to begin with, instead of k random ones.
        seed: of random directions.

    Returns:
        Exponents in nats per step, with errors.

    Raises:
        As `tangent`; InvalidSetting also for a stretch with nothing to count, and for more than there are dimensions.
    """
    guard.refuse_no_trajectory(trajectory)
    start, stop = guard.reachable(trajectory, start), guard.reachable(trajectory, stop)
    layout, count = Layout(trajectory.optimizer), abs(stop - start) - settle
    v = layout.vectors(k if directions is None else directions, seed)
    if count < 1 or settle < 0 or every < 1:
        seen = f"start={start}, stop={stop}, settle={settle}, every={every} leave no step to count."
        raise InvalidSetting(seen, "give a longer stretch.")
    if len(v) > v[0].numel():
        raise InvalidSetting(f"k={len(v)}, but the state has {v[0].numel()} dimensions.", "give at most that.")
    v = _orthonormal(v)[0]
    logs, steps, sums, done = torch.zeros(len(v), dtype=torch.float64), [], [], 0

    def each(step: int, v: torch.Tensor) -> torch.Tensor:
        nonlocal done
        done += 1
        if done % every and done != settle and step != stop:
            return v
        v, stretched = _orthonormal(v)
        if done > settle:
            logs.add_(stretched)
            steps.append(step)
            sums.append(logs.clone())
        return v

    v = walk(trajectory, start, stop, v, each)
    log_growth = torch.stack(sums)
    return Lyapunov(log_growth[-1] / count, _errors(log_growth, count), steps, log_growth, v)


def _orthonormal(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal directions that span the same, and the logarithms of what they were stretched by."""
    q, r = torch.linalg.qr(v.flatten(1).T)
    return q.T.reshape(v.shape), r.diagonal().abs().log().cpu()


def _errors(log_growth: torch.Tensor, count: int) -> torch.Tensor:
    n = len(log_growth)
    if n < 2 * _BLOCKS:
        return torch.full_like(log_growth[0], math.nan)
    ends = [round((i + 1) * n / _BLOCKS) - 1 for i in range(_BLOCKS)]
    zero = torch.zeros_like(log_growth[:1])
    blocks = torch.cat([zero, log_growth[ends]]).diff(dim=0) * (_BLOCKS / count)
    return blocks.std(dim=0) / math.sqrt(_BLOCKS)
