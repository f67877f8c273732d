"""What is refused before a trajectory moves: wrong arguments, edits from outside, another world."""

import math
from collections.abc import Callable
from operator import index
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import EditedOutside, EnvironmentChanged, InvalidSetting, OutOfReach, ReplayMismatch, SourceChanged
from ..optim import ReversibleOptimizer, flat
from ..optim.descent import Descent
from . import environment, record, surroundings
from .evaluate import digest_of

JUMP = 0.1
"""Nats (of the energy's logarithm, where it is in units of the loss): a change in one step that is past stability."""

if TYPE_CHECKING:
    from .trajectory import Trajectory


def refuse_arguments(model: Any, opt: Any, loss: Any, data: Any, tape: Any, lr: Any, after_backward: Any) -> None:
    """Raise InvalidSetting for an argument of `Trajectory` that cannot work."""
    refuse_model(model)
    if not isinstance(opt, ReversibleOptimizer):
        known = ", ".join(f"lo.optim.{name}" for name in ("SGD", "Adam", "AdamW", "ECD", "BBI", "ECDq1"))
        raise InvalidSetting(
            f"opt is a {type(opt).__module__}.{type(opt).__name__}, which cannot be wound back.", f"use one of {known}."
        )
    own = {id(p) for p in model.parameters()}
    for slot in opt._slots:
        if id(slot.parameter) not in own:
            raise InvalidSetting(
                f"opt holds {slot.name}, of shape {tuple(slot.parameter.shape)}, which is no parameter of model.",
                "construct the optimizer from this model's parameters.",
            )
    for name, value in (("loss", loss), ("data", data)):
        if not callable(value):
            remedy = "pass a function loss(model, batch)." if name == "loss" else "wrap it: lo.data.Schedule(dataset)."
            raise InvalidSetting(f"{name} is a {type(value).__name__}, and cannot be called.", remedy)
    for name, value, remedy in (
        ("lr", lr, "pass a function step -> factor, or None; the learning rate itself is a setting of the optimizer."),
        ("after_backward", after_backward, "pass a function of the model, or None."),
    ):
        if value is not None and not callable(value):
            raise InvalidSetting(f"{name}={value!r} cannot be called.", remedy)
    if tape is not None and not isinstance(tape, (str, PathLike)):
        raise InvalidSetting(f"tape is a {type(tape).__name__}.", "pass a folder, or None to keep the tape in memory.")


def refuse_model(model: Any) -> None:
    """Raise InvalidSetting for what is no module."""
    if not isinstance(model, nn.Module):
        raise InvalidSetting(f"model is a {type(model).__name__}.", "pass a torch.nn.Module.")


def whole(name: str, value: Any) -> int:
    """The value of an argument as an int; raises InvalidSetting if it is none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return index(value)
    except TypeError:
        raise InvalidSetting(f"{name}={value!r} is not a whole number.", f"pass an int as {name}.") from None


def path_of(path: Any) -> Path:
    """A path to save to or to load from; raises InvalidSetting if it is none."""
    if not isinstance(path, (str, PathLike)):
        raise InvalidSetting(f"path={path!r} is a {type(path).__name__}.", "pass the path of a file or of a folder.")
    return Path(path)


def warn_of_energy(traj: "Trajectory") -> None:
    """Warn once of a step past stability: it changed the energy on one and the same batch.

    Steps are kick, then drift, and their energies those at their starts: the change over a step falls with lr squared.
    """
    opt, before = traj.optimizer, traj._energy
    traj._energy = now = getattr(opt, "energy", None)
    if before is None or now is None or "energy" in opt._warned:
        return
    nats = opt.energy_law.unit == "nats"
    jump = abs(now - before) if nats else abs(math.log(now / before)) if min(now, before) > 0 else 0.0
    if not jump > JUMP:
        return
    group, step = opt.param_groups[0], traj.step - 2
    kept = group["conserve"] == "none" and not group["decoupled"] and not isinstance(group["lr"], str)
    entry = opt.journal.peek()[1]  # what was otherwise at the step before: of settings, all but lr are in the energy
    changed = [name for was in entry.get("settings", {}).values() if isinstance(was, dict) for name in was]
    if "active" in entry or set(changed) - {"lr"}:
        return
    kept = kept and group.get("momentum", 1.0) == 1
    batches = [digest_of(traj.data(traj.moment(s))) for s in (step, step + 1)]
    if not kept or batches[0] != batches[1]:
        opt._warned.add("energy")  # energies on two mini-batches differ, and that is no error
        return
    opt.warn_once(
        "energy",
        f"step {step} changed the energy by {f'{jump:.2g}' if nats else f'{abs(now / before - 1):.0%}'} with "
        f"lr={group['lr']:.3g}, on one and the same batch: past stability. Remedy: "
        f"lr={group['lr'] * math.sqrt(0.25 * JUMP / jump):.2g} would have kept it (the change falls with lr squared)"
        + ('; or lr="auto", which finds the step by itself.' if "tolerance" in group else "."),
    )


def factor(lr: Callable[[int], Any], step: int) -> float:
    """What the function lr gives for a step; raises InvalidSetting if that is no factor."""
    value = lr(step)
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise InvalidSetting(
            f"lr({step}) gave {value!r}, which is no factor for a learning rate.",
            "let the function lr return a finite number of at least 0 for every step.",
        )
    return number


def refuse_intervals(digest_every: Any, commit_every: Any, commit_seconds: Any) -> None:
    """Raise InvalidSetting for intervals of `Trajectory` that make no sense."""
    for name, value in (("digest_every", digest_every), ("commit_every", commit_every)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InvalidSetting(f"{name}={value!r} is not a positive whole number.", "use 100, or None.")
    if commit_seconds is not None and not (isinstance(commit_seconds, (int, float)) and commit_seconds >= 0):
        raise InvalidSetting(f"commit_seconds={commit_seconds!r} is not a number of seconds.", "use 10, or None.")


def reachable(traj: "Trajectory", step: int) -> int:
    """The step as an int; raises InvalidSetting if it is none, OutOfReach if the journal does not hold it."""
    try:
        if isinstance(step, bool):
            raise TypeError
        step = index(step)
    except TypeError:
        raise InvalidSetting(f"seek({step!r}): a step is a whole number.", "pass an int.") from None
    first = max(traj.first, traj.journal.first)
    if step < first:
        why = "below 0" if step < 0 else f"below step {first}, the first that this trajectory's journal holds"
        raise OutOfReach(f"seek({step}) is {why}.", f"seek to step {first} or later.")
    return step


def refuse_edits(traj: "Trajectory") -> None:
    """Raise EditedOutside if weights, buffers or modes are not what the last step left."""
    flat.check_unedited(traj.optimizer._slots)
    for name in traj.buffers.edited(full=True):
        raise EditedOutside(
            f"buffer {name} was edited since the last step.",
            "evaluate inside `with trajectory.evaluating():`; edit inside `with trajectory.edit():`.",
        )
    for name, value in surroundings.checksums(traj).items():
        if value != traj.untracked_bits.get(name, value):
            raise EditedOutside(
                f"{name}, which no param group holds, was edited since the last step.",
                "edit inside `with trajectory.edit():`.",
            )
    for name, module in surroundings.modules(traj.model).items():
        if module.training != traj.modes.get(name, module.training):
            mode = "train" if module.training else "eval"
            raise EditedOutside(
                f"{name or 'the model'} was put in {mode} mode since the last step.",
                "evaluate inside `with trajectory.evaluating():`; change modes inside `with trajectory.edit():`.",
            )


def refuse_no_trajectory(traj: Any) -> None:
    """Raise InvalidSetting for what is no trajectory."""
    if not all(hasattr(traj, name) for name in ("seek", "branch", "optimizer")):
        raise InvalidSetting(f"traj is a {type(traj).__name__}.", "pass a loschmidt.Trajectory.")


def refuse_no_reversal(optimizer: ReversibleOptimizer) -> None:
    """Raise InvalidSetting if time cannot be reversed for this optimizer."""
    if hasattr(optimizer, "reverse_time"):
        return
    why = (
        "its program has no mirror image here"
        if isinstance(optimizer, Descent) or all(group.get("momentum") == 1 for group in optimizer.param_groups)
        else "friction runs forward whichever way momenta point"
    )
    raise InvalidSetting(
        f"{type(optimizer).__name__} has no time reversal: {why}.",
        "use lo.optim.ECD; or undo steps: seek(step).",
    )


def refuse_reversed(traj: "Trajectory") -> None:
    """Raise InvalidSetting inside `time_reversed()`."""
    if traj.mirrored(traj.step) is not None:
        raise InvalidSetting(
            "a run is not saved while time runs backwards: a loaded one would not know where it turned.",
            "save it outside `with trajectory.time_reversed():`.",
        )


def refuse_other_data(traj: "Trajectory") -> None:
    """Raise SourceChanged if the data's fingerprint is not the recorded one."""
    if traj.fingerprint is None:
        return
    if not hasattr(traj.data, "differs"):
        raise SourceChanged(
            f"this run began with a Schedule; data is now a {type(traj.data).__name__}, which cannot be compared.",
            "pass the same Schedule.",
        )
    changed = traj.data.differs(traj.fingerprint)
    if changed:
        raise SourceChanged(
            f"the data changed since this run began: {' '.join(changed)}", "bring back the data it began with."
        )


def refuse_other_environment(traj: "Trajectory") -> None:
    """Raise SourceChanged if the environment changed, unless the newest step with a gradient has the same bits in it.

    Says what differs either way: in the error, or in a warning. The environment that the run's steps were taken in
    stays recorded.
    """
    now = environment.record(device_of(traj.optimizer), traj.model)
    if now in (traj.environment, traj.proven):
        return
    changed = "; ".join(environment.differences(traj.environment, now))
    step = _newest_with_gradient(traj)
    if step is None:
        said, traj.environment = "no step with a gradient is recorded yet to compare with", now
    elif _repeats(traj, step):
        which = "the last step" if step == traj.step - 1 else f"step {step}, the last with a gradient,"
        said, traj.proven = f"{which} was undone and taken again, with the same bits", now
    else:
        raise SourceChanged(
            f"the environment is not the recorded one, and gives the last step other bits: {changed}.",
            "go back to the recorded environment (threads, versions, device, flags).",
        )
    traj.optimizer.warn_once(
        f"environment {changed}",
        f"the environment changed ({changed}); {said}. Remedy: call preflight(), or go back to the recorded one.",
        EnvironmentChanged,
    )


def _newest_with_gradient(traj: "Trajectory") -> int | None:
    """The newest step on record in which a parameter took part: others come back with the same bits anywhere."""
    active = traj.optimizer._active
    for step in range(traj.step - 1, record.lowest(traj) - 1, -1):
        if active:
            return step
        active = traj.journal.entries.get(step, {}).get("active", active)
    return None


def _repeats(traj: "Trajectory", step: int) -> bool:
    """Whether the steps from `step` on, undone and taken again, give the same bits."""
    before, there = traj.digest(), traj.step
    try:
        with traj.branch():
            while traj.step > step:
                traj._back()
            while traj.step < there:
                traj._forward()
            return traj.digest() == before
    except ReplayMismatch:
        return False


def explained(traj: "Trajectory", error: ReplayMismatch) -> ReplayMismatch:
    """The error; or, in another environment than the recorded one, one that names what differs."""
    now = environment.record(device_of(traj.optimizer), traj.model)
    changed = "; ".join(environment.differences(traj.environment, now))
    if not changed:
        return error
    return ReplayMismatch(
        f"{error.seen} The environment is not the recorded one: {changed}.",
        f"go back to the recorded environment (threads, versions, device, flags); if that is no help: {error.remedy}",
        error.step,
        error.tensor,
    )


def device_of(opt: ReversibleOptimizer) -> torch.device | str:
    """Where the first parameter is."""
    return opt._slots[0].parameter.device if opt._slots else "cpu"
