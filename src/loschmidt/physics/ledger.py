"""The energy ledger of a step: what each op of the program changed, and what it cost in bits.

Symbols: (q, p) the state before the step, (q', p') after it; U a potential, K kinetic energy, H = U + K.

    U on batch      of this step's batch
    U on full       of the full data
    U on mean       E_B[U_B], the average over batches: its gradient is the mean kick, noise is what is left

    heat            kick + drift + scatter + rounding, on mean: what noise (and the integrator's error) put in
    work            change of U on full - change of U on mean: a function of q alone, so it comes back with q
    friction        kinetic energy after a contraction of momentum minus before; rescale likewise
    decay           change of U by a contraction of q (decay outside H)
    metric          what a change of an adaptive mass did (Adam's v)
    schedule        what other settings (lr), or another step count, made of the same state before the step
    rounding        the lattice's last state minus the one that the ops led to in floats

First law, on each view: change = sum over causes; and change on full = heat + work + all causes but kick, drift,
scatter and rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..exact import World, sum_of_squares
from ..optim import ReversibleOptimizer
from ..optim.energy import EnergyLaw
from ..optim.flat import Slot
from .potentials import Potentials, lent
from .shadow import ShadowPart, Values, apply, world_of

_CLOSE = 1e-4  # of |q|: so near, the next order of the loss is below the rounding of float32
HEAT = ("kick", "drift", "scatter", "rounding")
"""Causes that are heat, on the average over batches."""


@dataclass
class Side:
    """One side of a step.

    Attributes:
        values: the float view of all lattices.
        losses: there, as `Potentials` gives them.
        settings: of the last step before it, or None.
        bits: on the tape.
    """

    values: Values
    losses: np.ndarray
    settings: list[dict[str, Any]] | None
    bits: float


@dataclass
class Taken:
    """A step between two sides.

    Attributes:
        number: of the step.
        slots: that took part.
        settings: that it used.
        counting: what to add to the present step counts, to have those of this step.
        scalars: from its journal.
        coarsened: bits that making lattices coarser put on the tape.
    """

    number: int
    slots: Sequence[Slot]
    settings: list[dict[str, Any]]
    counting: int
    scalars: dict[str, float]
    coarsened: float = 0.0


@torch.no_grad()
def account(
    opt: ReversibleOptimizer, potentials: Potentials, step: Taken, low: Side, high: Side
) -> dict[str, Any] | None:
    """The ledger line of a step; gradients are in `.grad`.

    Args:
        opt: with an `energy_law`.
        potentials: which losses are looked at.
        step: the step.
        low: before it.
        high: after it.

    Returns:
        The fields of `monitor.FIELDS` up to "cumulated"; None for a step in which nothing took part.
    """
    law: EnergyLaw = opt.energy_law
    loss = float(low.losses[0])
    settings = {"step": step.number, "loss": loss, "scalars": step.scalars}
    world = world_of(opt, step.slots, low.values, step.settings, step.counting, **settings)
    if not world.parts:
        return None
    book = _Book(law, potentials, low.losses)
    before = low.settings or step.settings
    start = _retold(world, before, step.slots) if law.counts or before != step.settings else world
    first = book.energies(start)
    book.total = sum(first)
    if start is not world:
        book.note("schedule", world)
    else:
        book.by["schedule"] = np.zeros_like(book.total)
    _run(opt, book, world, step, high.losses, lambda: _between(potentials, step, world, low))
    end = world_of(opt, step.slots, high.values, step.settings, step.counting, **settings, gradients=False)
    last = book.energies(end, high.losses)
    book.by["rounding"] = sum(last) - book.total
    bits = book.bits | ({"coarsening": step.coarsened} if step.coarsened else {})
    out: dict[str, Any] = {"step": step.number, "unit": law.unit}
    out |= book.views(first, last)
    out |= _measures(law, out, low, end, float(last[1][0]))
    return out | {"bits": bits, "tape": high.bits - low.bits}


class _Book:
    """Energies at one stage after the other, and what changed between them."""

    def __init__(self, law: EnergyLaw, potentials: Potentials, losses: np.ndarray):
        self.law, self.potentials, self.losses = law, potentials, losses
        self.by: dict[str, np.ndarray] = {}
        self.bits: dict[str, float] = {}
        self.total: np.ndarray = losses

    def energies(self, world: World, losses: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Potential and kinetic energy, on each loss."""
        return self.law.terms(world, self.losses if losses is None else losses)

    def note(self, cause: str, world: World) -> None:
        """The state moved on to that of `world`: book the difference."""
        total = sum(self.energies(world))
        self.by[cause] = self.by.get(cause, 0.0) + (total - self.total)
        self.total = total

    def views(self, first: tuple[np.ndarray, np.ndarray], last: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
        """For each view: potential, kinetic, total before the step; its change; and that by cause."""
        of = self.potentials.by_view
        potential, kinetic, total, change = of(first[0]), of(first[1]), of(sum(first)), of(sum(last) - sum(first))
        by = {cause: of(values) for cause, values in self.by.items()}
        return {
            view: {
                "potential": potential[view],
                "kinetic": kinetic[view],
                "total": total[view],
                "change": change[view],
                "by": {cause: values[view] for cause, values in by.items()},
            }
            for view in self.potentials.views
        }


def _run(
    opt: ReversibleOptimizer,
    book: _Book,
    world: World,
    step: Taken,
    losses: np.ndarray,
    between: Callable[[], np.ndarray],
) -> None:
    """Do the program on the floats; note what each op did."""
    ops = [*opt.kicks(), *opt.drifts()]
    # A mass changes before the kick it belongs to: at Adam's first step v is 0, and a kick under that would be absurd.
    ops.sort(key=lambda op: book.law.cause_of(op) != "metric")
    movers = [i for i, op in enumerate(ops) if op.target == "q" and _moves(op, world)]
    due = False
    for i, op in enumerate(ops):
        did, cost = apply(op, world)
        cause = book.law.cause_of(op)
        book.by.setdefault(cause, np.zeros_like(book.total))
        if cost:
            book.bits[cause] = book.bits.get(cause, 0.0) + cost
        if did and op.target == "q":
            book.losses = losses if i == movers[-1] else between()
        due |= did
        last = i + 1 == len(ops) or book.law.cause_of(ops[i + 1]) != cause  # neighbours of one cause are one entry
        if due and last:
            book.note(cause, world)
            due = False


def _moves(op: Any, world: World) -> bool:
    """Whether an op on q will do anything: a contraction by 1 does not."""
    return not hasattr(op, "pairs") or any(op.pairs(part) for part in world.parts)


def _between(potentials: Potentials, step: Taken, world: World, low: Side) -> np.ndarray:
    """Losses at the parameters between two drifts.

    On a full batch and close by they follow from the gradient, better than by the difference of two float32 losses.
    """
    if potentials.alone and potentials.traj.after_backward is None:
        parts: list[ShadowPart] = world.parts
        moves = [p.value("q") - low.values[id(p.block)]["q"][p.start : p.stop] for p in parts]
        if world.total([sum_of_squares(d) for d in moves]) <= _CLOSE**2 * world.square("q"):
            return low.losses + world.total([torch.dot(p.grad, d) for p, d in zip(parts, moves, strict=True)])
    with lent(step.slots, world.parts):
        return potentials(step.number)


def _retold(world: World, settings: Sequence[dict[str, Any]], slots: Sequence[Slot]) -> World:
    """The same state under the settings and counts of the step before."""
    before = World([], world.loss, world.step, world.seed, world.scalars, carried=world.carried)
    group = {id(s.block): s.group for s in slots}
    before.parts = [part.twin(before, settings[group[id(part.block)]], part.count - 1) for part in world.parts]
    return before


def _measures(law: EnergyLaw, views: dict[str, Any], low: Side, end: World, kinetic: float) -> dict[str, Any]:
    """Heat and work, and what stationarity and temperature are judged by."""
    mean, full = views.get("mean"), views.get("full")
    heat = sum(mean["by"].get(cause, 0.0) for cause in HEAT) if mean else None
    push = pull = square = 0.0
    parts: list[ShadowPart] = end.parts
    for part in parts:
        old = {name: low.values[id(part.block)][name][part.start : part.stop] for name in ("q", law.momentum)}
        q, p = part.value("q"), part.value(law.momentum)
        push += float(torch.dot(q - old["q"], p))
        pull += float(torch.dot(old["q"], p - old[law.momentum]))
        square += float(part.square("q"))
    return {
        "heat": heat,
        "work": full["change"] - mean["change"] if mean and full else None,
        "push": push,
        "pull": pull,
        "norm2": square,
        "virial": law.virial(end, kinetic),
        "parameters": sum(part.size for part in parts),
    }
