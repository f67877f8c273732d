"""Step control for runs that conserve energy: lr="auto".

Rare spikes of curvature throw the energy of a run whose step is too long for them, and cannot be seen before the step
that meets them. So a step is judged at the start of the next one, when its energy is known there; if it changed by too
much, the step is undone, exactly, and taken again with a shorter lr. What was chosen goes to the journal (8 bytes a
step), and the way back uses it: adaptive, reversible, and free of bits.

A step is a leapfrog whose kicks are shared: the kick at q_n lasts half of the drift before and half of that after it,
    p <- p - (h[n-1] + h[n])/2 eta G/D,   q <- q + h[n] 2p/(s + |p|^2),
since a kick as long as the next drift alone would shift the energy, to first order, whenever h changes. The energy that
is judged is that of the momentum half a kick later, p - h[n-1]/2 eta G/D, which is known to second order. (Adaptive
leapfrogs in general: Hairer, Lubich and Wanner, Geometric Numerical Integration, VIII.)
"""

import math
from typing import TYPE_CHECKING, Any

import torch

from .. import interrupt
from ..dynamics import separable
from ..errors import InvalidSetting, ReplayMismatch
from ..exact import World
from .descent import force, potential, starts

if TYPE_CHECKING:
    from .base import Closure
    from .ecd import ECD

AUTO = "auto"
SHARE = 0.01
"""Of the tolerance: by how much one step may change the energy."""
LONGEST_KICK = 0.05
"""How far a kick may turn the momentum, as a share of sqrt(s + |p|^2)."""
GROWTH = 1.03
"""By how much a step may be longer than the one before."""
SHORTEST = 1e-9


class Rejected(Exception):
    """The step before changed the energy by too much.

    Args:
        lr: what to take it with instead.
    """

    def __init__(self, lr: float):
        super().__init__(lr)
        self.lr = lr


def choose(optimizer: "ECD", world: World) -> float:
    """The lr of a step, from what is known at its start.

    Raises:
        Rejected: the step before must be taken anew.
    """
    first, D = world.parts[0], potential(world)
    eta, s, before = first["eta"], first["s"], world.carried.get("lr", 0.0)
    scale = eta / D
    pull2 = scale**2 * world.sum_of(lambda part: force(part) * force(part))
    if starts(world):
        p2 = first["delta_energy"]
        work = -math.sqrt(p2 * pull2)
    else:
        p2, work = world.square("p"), scale * world.sum_of(lambda part: part.value("p") * force(part))
    halfway = max(0.0, p2 - before * work + before**2 / 4 * pull2)
    energy = separable.energy(D, halfway, eta, s)
    if optimizer.asked_lr is None:
        known, last = optimizer.judged
        # p as it is stored lags half a kick, and its H differs by as much; both are judged, each by its own measure
        lag = abs(separable.energy(D, p2, eta, s) - energy) / (0.5 * first["tolerance"])
        error = max(abs(energy - last) / (SHARE * first["tolerance"]), lag)
        if known == world.step - 1 and error > 1 and before > SHORTEST:
            raise Rejected(before * max(0.2, min(0.5, 0.9 * error**-0.4)))
    optimizer.judged = world.step, energy
    room = s + halfway
    limits = [
        LONGEST_KICK * math.sqrt(room / pull2) if pull2 else math.inf,
        0.5 * first["tolerance"] * room / abs(work) if work else math.inf,  # see `lag`
        GROWTH * before if before else math.inf,
    ]
    return optimizer.asked_lr or min(*limits, 1.0)


def advance(optimizer: "ECD", closure: "Closure | None", section: interrupt.critical) -> Any:
    """Take a step; what the closure gave."""
    if closure is None:
        raise InvalidSetting('lr="auto" may take a step anew, and was given no closure.', "pass one: step(closure).")
    while True:
        with torch.enable_grad(), section.interruptible():
            loss = closure()
        try:
            optimizer._advance(loss)
            return loss
        except Rejected as rejected:
            optimizer.passes.give_up()
            _again(optimizer, closure, section, rejected.lr)


def _again(optimizer: "ECD", closure: "Closure", section: interrupt.critical, lr: float) -> None:
    """Undo the step before, and take it with another lr."""
    held = optimizer.judged
    try:
        loss = optimizer._go_back(closure, section)
    except ReplayMismatch:
        raise InvalidSetting(
            'lr="auto" judges a step by the energy that the next one finds, and the next one has another loss (a '
            "mini-batch, or dropout).",
            "train on the full batch, or give lr a number.",
        ) from None
    optimizer.asked_lr = lr
    try:
        optimizer._advance(loss)  # its gradients are still there
        optimizer.rejected += 1
    finally:
        optimizer.asked_lr = None
        optimizer.judged = held
