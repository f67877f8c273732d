"""Heating by mini-batch noise: predicted from the covariance of kicks, and measured from a ledger.

The kick of a batch is the mean kick and a deviation k with covariance C'. The mean kick belongs to the potential
averaged over batches, and H_mean = E_B[U_B] + K would be conserved under it; k adds on average its second order:

    heating a step = (1/2) tr(d2K/dp2 C')

For ECD k = -dt eta (G_B/D_B - mean), C' = dt^2 eta^2 C with C = Cov(G_B/D_B), and this is

    dt^2 eta^2 [tr C - 2 p.Cp/(s + |p|^2)]/(s + |p|^2)

It takes the kicks of different steps to be independent, as they are with replacement. Without, the deviations of an
epoch add up to nothing while the parameters stand still, so that there is less heating, the less the gradient changes
within an epoch.

Source: Chen, Fox and Guestrin, arXiv 1402.4102 (that noise without friction heats); the formula is derived here.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data import Schedule
from ..errors import InvalidSetting
from ..exact import random
from ..optim import ReversibleOptimizer
from ..optim.composed import AUTO, scaled
from ..optim.descent import Descent
from ..optim.energy import SEPARABLE, HasEnergy
from ..optim.settings import Settings, present
from ..trajectory import Trajectory, guard
from .ledger import HEAT
from .potentials import twin_of
from .shadow import Values, slots_of, values_of, world_of

Kicks = dict[int, torch.Tensor]

_BLOCKS = 8  # stretches of a record, whose heating is compared for the error


@dataclass(frozen=True)
class Heating:
    """A heating rate, energy a step.

    Attributes:
        value: the rate, in `unit` a step.
        error: its standard error; NaN where there is too little to tell.
        count: of what it is a mean: pairs of batches, or stretches of the record.
        unit: nats, or loss.
        replacement: whether batches are drawn with replacement; None if that is not known.
        how: what was done, in a sentence.
    """

    value: float
    error: float
    count: int
    unit: str
    replacement: bool | None
    how: str

    @property
    def interval(self) -> tuple[float, float]:
        """Value plus and minus two standard errors."""
        return self.value - 2 * self.error, self.value + 2 * self.error


def predicted_heating(traj: Trajectory, batches: int = 64, seed: int = 0) -> Heating:
    """Heating a step that the noise of batches predicts at the present state, with the settings of now.

    Draws pairs of independent batches: half the second-order energy of the difference of two kicks is an unbiased
    estimate, and no more than two gradients are held. Nothing of the run changes; gradients are cleared.

    Args:
        traj: an optimizer with a stated energy; of a function step -> batch, the batches of the steps from this one on.
        batches: how many to draw, at least 4.
        seed: of the draws.

    Raises:
        InvalidSetting: too few batches, an optimizer without a stated energy, or one that has not started.
        LossBelowF0: from a batch whose potential is not positive.
    """
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 4:
        raise InvalidSetting(f"batches={batches!r} are too few to tell their covariance.", "pass at least 4.")
    guard.refuse_no_trajectory(traj)
    opt = traj.optimizer
    if not isinstance(opt, HasEnergy):
        name = type(opt).__name__
        raise InvalidSetting(f"{name} does not state its energy.", "give its class an energy_law.")
    values, found, last = values_of(opt), [], None
    for kicks in _kicks(traj, values, batches, seed):
        if last is None:
            last = kicks
            continue
        found.append(0.25 * _bend(traj, values, last, kicks))
        last = None
    replacement = traj.data.replacement if isinstance(traj.data, Schedule) else None
    mean, error = _mean(found)
    return Heating(mean, error, len(found), opt.energy_law.unit, replacement, "half the second order of batches' kicks")


@torch.no_grad()
def _bend(traj: Trajectory, values: Values, a: Kicks, b: Kicks) -> float:
    """Twice the second-order energy of the difference of two kicks; a parameter without a gradient has none."""
    opt = traj.optimizer
    slots = [s for s in opt._slots if s.index in a or s.index in b]
    world = world_of(opt, slots, values, _settings(opt), 1, step=traj.step, loss=traj.loss, gradients=False)
    flat = {s.index: b.get(s.index, 0.0) - a.get(s.index, 0.0) for s in slots}
    return opt.energy_law.bend(world, [torch.cat([flat[s.index] for s in slots_of(p, slots)]) for p in world.parts])


def _kicks(traj: Trajectory, values: Values, count: int, seed: int) -> Iterator[Kicks]:
    """Kicks of independent batches at the present state, by slot."""
    opt = traj.optimizer
    settings = _settings(opt)
    ops = [op for op in opt.kicks() if opt.energy_law.cause_of(op) == "kick"]
    try:
        for k in range(count):
            with traj._undisturbed():
                batch = _drawn(traj, k, seed)
                random.seed_all("heating", seed, k)
                opt.zero_grad()
                traj.model.zero_grad()
                with torch.enable_grad():
                    loss = traj.loss_fn(traj.model, batch)
                    loss.backward()
                if traj.after_backward is not None:
                    traj.after_backward(traj.model)
            with torch.no_grad():
                slots = [s for s in opt._slots if s.parameter.grad is not None]
                world = world_of(opt, slots, values, settings, 1, step=traj.step, loss=float(loss.detach()))
                kicks: Kicks = {}
                for part in world.parts:
                    kick = sum(f for op in ops if (f := op.increment(part)) is not None)
                    kicks |= {s.index: kick[s.start - part.start : s.stop - part.start] for s in slots_of(part, slots)}
                yield kicks
    finally:
        opt.zero_grad()
        traj.model.zero_grad()


def _settings(opt: ReversibleOptimizer) -> Settings:
    """Those of now; for lr="auto" the lr that was chosen last. A Verlet's two half kicks heat as a whole one does."""
    settings = scaled(present(opt), 1.0, opt.carried.get("lr"))
    at_rest = opt.energy_law is SEPARABLE and not any(s["delta_energy"] for s in settings)
    if isinstance(opt, Descent) and "shell" not in opt.carried and not at_rest:
        raise InvalidSetting(
            f"at step {opt.steps} {type(opt).__name__} has not started: momentum and energy shell are still to come.",
            "take a step: seek(1).",
        )
    if any(s["lr"] == AUTO for s in settings):
        raise InvalidSetting('with lr="auto" no step was taken yet, and so no lr is known.', "take a step: seek(1).")
    return settings


def _drawn(traj: Trajectory, k: int, seed: int) -> Any:
    """An independent batch: without replacement, one place of a fresh epoch."""
    if not isinstance(traj.data, Schedule):
        batch = traj.data(traj.step + k)
    else:
        twin = twin_of(traj.data, "heating", seed)
        epoch = twin.steps_per_epoch
        batch = twin(k * epoch + int(random.generator("heating", seed, k).integers(epoch)))
    if batch is None:
        raise InvalidSetting("a batch is empty, and has no kick.", "take fewer samples out of the batches.")
    return batch


def measured_heating(lines: Sequence[dict[str, Any]]) -> Heating:
    """Heating a step that a ledger shows.

    Where nothing but kicks, drifts and scattering changed the energy, it is the slope (least squares, over
    steps) of the total energy on mean: d/dstep of E_B[eta log D_B] + log(s + |p|^2) for ECD, before each line's step.
    Else it is the mean of `heat` over the lines, which samples single steps and is noisier. Either includes what the
    integrator's error does; a run on the full batch shows how much that is. Errors: from rates in 8 stretches.

    Args:
        lines: of an `EnergyMonitor`, or as `read` gives them, in order; with a view on mean.

    Raises:
        InvalidSetting: fewer than 3 lines, or lines without the average over batches.
    """
    if len(lines) < 3 or any(line.get("heat") is None for line in lines):
        raise InvalidSetting(
            f"{len(lines)} lines of a ledger, or lines without the average over batches, do not show heating.",
            "record at least 3 lines, with losses= or batches=.",
        )
    unit = lines[0]["unit"]
    steps = np.array([line["step"] for line in lines], dtype=np.float64)
    others = [c for line in lines[1:] for c, x in line["mean"]["by"].items() if c not in HEAT and x]
    if others or any(c not in HEAT and x for c, x in lines[0]["mean"]["by"].items() if c != "start"):
        heats = [line["heat"] for line in lines]
        blocks = np.array_split(np.array(heats), min(_BLOCKS, len(heats)))
        how = f"mean of heat over sampled steps, since {', '.join(sorted(set(others)))} changed the energy too"
        return Heating(float(np.mean(heats)), _mean([b.mean() for b in blocks])[1], len(blocks), unit, None, how)
    started = 1 if lines[0]["mean"]["by"].get("start") else 0
    totals = np.array([line["mean"]["total"] for line in lines])[started:]
    steps = steps[started:]
    ends = np.unique(np.linspace(0, len(totals) - 1, min(_BLOCKS, len(totals) - 1) + 1).round().astype(int))
    rates = np.diff(totals[ends]) / np.diff(steps[ends])
    value = np.polyfit(steps - steps.mean(), totals, 1)[0]
    how = "slope of the total energy on mean over steps"
    return Heating(float(value), _mean(list(rates))[1], len(rates), unit, None, how)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    x = np.asarray(values, dtype=np.float64)
    return float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan
