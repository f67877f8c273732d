"""The four jobs of a leg, each a function of its plan and a folder: out, back, perturbed, floats.

They may run in different processes: `out` leaves the run (a file of `Trajectory.save`) and its path in the folder,
and the others start from there.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from .. import optim, physics
from ..data import Schedule
from ..errors import LatticeOverflow, LossBelowF0, NonFinite
from ..exact import random
from ..optim import ReversibleOptimizer
from ..tasks import TASKS, Task
from ..trajectory import Trajectory
from .plan import LegPlan

Tick = Callable[[int, int], None]
"""Called with (steps done, steps to do)."""
Prepare = Callable[[nn.Module, Task], None]
"""Called with model and task before a look; what it changes is put back after the look."""
_LOST = 0.1  # a float reversal has failed when its relative error passes this


def out(plan: LegPlan, folder: Path, tick: Tick) -> dict[str, Any]:
    """Train to the turn; save run and path."""
    task, traj = _begin(plan)
    opt = traj.optimizer
    path = {f"start.{name}": x.clone() for name, x in _integers(opt).items()} | {"q.0": _position(opt)}
    looks, energies = [_look(traj, task)], []
    start_digest, began, looking = traj.digest(), time.perf_counter(), 0.0

    def on_step(traj: Trajectory) -> bool:
        nonlocal looking
        if getattr(opt, "energy", None) is not None:
            energies.append(opt.energy)
        if traj.step % plan.look_every and traj.step != plan.steps:
            return False
        since = time.perf_counter()
        looks.append(_look(traj, task))
        path[f"q.{traj.step}"] = _position(opt)
        tick(traj.step, plan.steps)
        looking += time.perf_counter() - since
        return plan.until_accuracy is not None and looks[-1]["test_accuracy"] >= plan.until_accuracy

    traj.seek(plan.steps, on_step=on_step)
    seconds = time.perf_counter() - began - looking
    if energies:
        energies.append(opt.energy_at(traj.loss))
    bits, price = traj.tape.bits, opt.price()
    traj.save(folder / f"{plan.optimizer}.run.safetensors")
    save_file({k: v.contiguous() for k, v in path.items()}, folder / f"{plan.optimizer}.path.safetensors")
    energy = {"start": energies[0], "turn": energies[-1]} if energies else None
    if energy:
        energy["largest_change"] = max(abs(e - energies[0]) for e in energies)
    return {
        "task": plan.task,
        "task_settings": task.settings,
        "answer": task.answer,
        "optimizer": plan.optimizer,
        "settings": plan.settings,
        "batch_size": plan.batch_size,
        "steps": traj.step,
        "parameters": opt.numel,
        "tape_bits": bits,
        "bits_per_parameter_step": traj.tape.bits_per_parameter_step,
        "theory_bits_per_parameter_step": price,
        "tape_bytes": traj.tape.bytes,
        "journal_bytes": traj.journal.bytes,
        "checkpoint_bytes": traj.step * _checkpoint_bytes(opt),
        "forward_seconds": seconds,
        "start_digest": start_digest,
        "turn_digest": traj.digest(),
        "turn": _summary(looks[-1]),
        "reached_accuracy": plan.until_accuracy is None or looks[-1]["test_accuracy"] >= plan.until_accuracy,
        "energy": energy,
        "looks_out": looks,
    }


def back(plan: LegPlan, folder: Path, tick: Tick) -> dict[str, Any]:
    """From the turn to step 0, and compare every bit with the start."""
    task, traj = _reopen(plan, folder)
    looks, seconds, reason = _return(plan, folder, traj, task, tick)
    if reason:
        raise NonFinite(f"the exact return of {plan.optimizer} ended at step {traj.step}: {reason}")
    start = {k: v for k, v in _read(folder, plan).items() if k.startswith("start.")}
    differing = sum(_differing_bits(x, start[f"start.{name}"]) for name, x in _integers(traj.optimizer).items())
    return {
        "backward_seconds": seconds,
        "end_digest": traj.digest(),
        "differing_bits": differing,
        "returned": _summary(looks[-1]),
        "looks_back": looks,
    }


def perturbed(plan: LegPlan, folder: Path, tick: Tick) -> dict[str, Any]:
    """From the turn with one parameter changed, back as far as it goes.

    The journal's running statistics of batch norm belong to the recorded path, so each look measures them anew.
    """
    task, traj = _reopen(plan, folder)
    with traj.edit() as model:
        parameter = next(p for p in model.parameters() if p.requires_grad)
        with torch.no_grad():
            # a nudge that rounds away in the parameter's own precision would perturb nothing
            value = parameter.view(-1)[0] + plan.perturb
            nearest = torch.nextafter(
                parameter.view(-1)[0], torch.full_like(value, math.copysign(math.inf, plan.perturb))
            )
            parameter.view(-1)[0] = value if value != parameter.view(-1)[0] else nearest
    looks, _, reason = _return(plan, folder, traj, task, tick, _measure_statistics)
    ended = {"reached_step": traj.step, "ended_by": reason}
    return {"perturbed": _summary(looks[-1]) | ended, "looks_perturbed": looks}


def floats(plan: LegPlan, folder: Path, tick: Tick) -> dict[str, Any]:
    """The same program in the model's own floats, there and back from the start, and where that fails.

    The error is that of the parameters; batches, dropout and augmentation of a step are the exact run's, both ways.
    """
    task, traj = _begin(plan)
    opt, steps = traj.optimizer, min(plan.float_steps, plan.steps)
    parameters = [p for p in traj.model.parameters() if p.requires_grad]

    def gradient(step: int) -> tuple[float, list[torch.Tensor]]:
        traj.model.zero_grad()
        with random.isolated():  # the random numbers of the exact run, and on the way back once more the same ones
            random.seed_all("step", plan.seed, step)
            loss = task.loss(traj.model, traj.data(step))
            loss.backward()
        return float(loss.detach()), [p.grad for p in parameters]

    settings = {**opt.defaults, **plan.settings}
    run = physics.NaiveRun(
        parameters, gradient, opt.kicks(), opt.drifts(), settings, list(opt.lattices), opt.prepare, opt.carries
    )
    path = [run.values["q"].clone()]
    for i in range(steps):
        try:
            run.forward()
        except (NonFinite, LossBelowF0) as error:
            return {"float_steps": i, "float_note": error.seen}
        path.append(run.values["q"].clone())
        tick(i + 1, 2 * steps)
    errors = []
    for i in range(steps):
        run.back()
        error = float((run.values["q"] - path[run.step]).norm() / path[run.step].norm())
        errors.append(error)
        tick(steps + i + 1, 2 * steps)
        if not error < 1e3:
            break
    failed = next((i + 1 for i, e in enumerate(errors) if not e < _LOST), None)
    mantissa = -math.log2(torch.finfo(parameters[0].dtype).eps) + 1
    price = opt.price()
    return {
        "float_steps": steps,
        "float_dtype": str(parameters[0].dtype).removeprefix("torch."),
        "float_return_error": next((e for e in reversed(errors) if math.isfinite(e)), None),
        "float_failed_after": failed,
        "float_theory_steps": mantissa / price if price > 1e-6 else None,
        "float_errors": errors,
    }


JOBS = {"out": out, "back": back, "perturbed": perturbed, "floats": floats}
"""By name: `out` comes first, `back` and `perturbed` after it, `floats` at any time."""


def _begin(plan: LegPlan) -> tuple[Task, Trajectory]:
    task = TASKS[plan.task](seed=plan.seed)
    opt = getattr(optim, plan.optimizer)(task.model.parameters(), **plan.settings, seed=plan.seed)
    return task, Trajectory(task.model, opt, task.loss, _data(plan, task), seed=plan.seed)


def _reopen(plan: LegPlan, folder: Path) -> tuple[Task, Trajectory]:
    task = TASKS[plan.task](seed=plan.seed)
    path = folder / f"{plan.optimizer}.run.safetensors"
    return task, Trajectory.load(path, model=task.model, loss=task.loss, data=_data(plan, task))


def _data(plan: LegPlan, task: Task) -> Schedule:
    return Schedule(task.train, plan.batch_size, seed=plan.seed, augment=task.augment)


def _return(
    plan: LegPlan, folder: Path, traj: Trajectory, task: Task, tick: Tick, prepare: Prepare | None = None
) -> tuple[list[dict[str, Any]], float, str | None]:
    """Seek back to 0, looking at the steps at which `out` looked. Returns looks, seconds, and what ended it early."""
    path, turn = _read(folder, plan), traj.step
    looks, looking, began, reason = [_look(traj, task, path, prepare)], 0.0, time.perf_counter(), None

    def on_step(traj: Trajectory) -> None:
        nonlocal looking
        if f"q.{traj.step}" in path:
            since = time.perf_counter()
            looks.append(_look(traj, task, path, prepare))
            tick(turn - traj.step, turn)
            looking += time.perf_counter() - since

    try:
        traj.seek(0, on_step=on_step)
    except (LatticeOverflow, NonFinite) as error:
        reason = error.seen
        looks.append(_look(traj, task, path, prepare))
    return looks, time.perf_counter() - began - looking, reason


def _look(
    traj: Trajectory, task: Task, path: dict[str, torch.Tensor] | None = None, prepare: Prepare | None = None
) -> dict[str, Any]:
    train, test = task.probe or (task.train, task.test)
    with traj.evaluating() as model, torch.no_grad():
        if prepare is not None:
            prepare(model, task)
        look = {
            "step": traj.step,
            "train_loss": float(task.loss(model, train)),
            "test_loss": float(task.loss(model, test)),
            "train_accuracy": task.accuracy(model, train),
            "test_accuracy": task.accuracy(model, test),
        }
    if path is not None and f"q.{traj.step}" in path:
        resolution = traj.optimizer.resolution
        difference = (_position(traj.optimizer) - path[f"q.{traj.step}"]).double() * resolution
        look["distance"] = float(difference.norm())
    return look


def _measure_statistics(model: nn.Module, task: Task) -> None:
    """Set running statistics of batch norm to those of the training data at the present weights."""
    norms = {m: m.momentum for m in model.modules() if getattr(m, "running_mean", None) is not None}
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # a plain average over what it sees
    if norms:
        task.loss(model, (task.probe or (task.train, task.test))[0])
    for norm, momentum in norms.items():
        norm.eval().momentum = momentum


def _summary(look: dict[str, Any]) -> dict[str, float]:
    return {k: look[k] for k in ("train_loss", "test_loss", "train_accuracy", "test_accuracy")}


def _integers(opt: ReversibleOptimizer) -> dict[str, torch.Tensor]:
    """All integers of the state, by parameter and lattice."""
    return {f"{s.name}.{k}": s.integers(k) for s in opt._slots for k in s.block.lattices}


def _position(opt: ReversibleOptimizer) -> torch.Tensor:
    return torch.cat([s.integers("q").reshape(-1) for s in opt._slots])


def _differing_bits(a: torch.Tensor, b: torch.Tensor) -> int:
    changed = (a ^ b).reshape(-1)
    return int(sum(int(((changed >> i) & 1).sum()) for i in range(8 * a.element_size()))) if changed.any() else 0


def _checkpoint_bytes(opt: ReversibleOptimizer) -> int:
    """Bytes of a torch checkpoint of the same run: parameters and as many moments, in the parameters' dtype."""
    return sum(s.parameter.numel() * s.parameter.element_size() * (1 + len(opt.lattices)) for s in opt._slots)


def _read(folder: Path, plan: LegPlan) -> dict[str, torch.Tensor]:
    with safe_open(folder / f"{plan.optimizer}.path.safetensors", "pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
