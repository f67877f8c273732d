"""Step control for runs that conserve energy: lr="auto".

Rare spikes of curvature throw the energy of a run whose step is too long for them, and cannot be seen before the step
that meets them. So a step is a velocity Verlet, kick(1/2) drift(1) kick(1/2), with a gradient at either end, both on
the step's batch: its energy is known before and after, to second order. If it changed by too much, the step is undone
and tried with a shorter lr. What was chosen goes to the journal (8 bytes a step), and the way back uses it: adaptive,
exactly reversible, and free of bits. Nothing is judged across steps, so a step is a function of the state it begins at.
"""

import math
from typing import TYPE_CHECKING, Any

from .. import interrupt
from ..dynamics import separable
from ..errors import InvalidSetting, LatticeOverflow, LossBelowF0, NonFinite
from ..exact import World
from . import composed
from .descent import force, potential, starts

if TYPE_CHECKING:
    from .base import Closure
    from .ecd import ECD

SHARE = 0.01
"""Of the tolerance: by how much one step may change the energy."""
LONGEST_KICK = 0.05
"""How far a step's kicks may turn the momentum, as a share of sqrt(s + |p|^2)."""
GROWTH = 1.05
"""By how much a step may be longer than the one before."""
ATTEMPTS = 24
_BEYOND = (NonFinite, LossBelowF0, LatticeOverflow)
"""What a step that is too long may meet at its end, where the exact flow would not have come."""


class Rejected(Exception):
    """The step changed the energy by too much.

    Args:
        lr: what to try instead.
    """

    def __init__(self, lr: float):
        super().__init__(lr)
        self.lr = lr


class Trial:
    """One try at a step.

    Args:
        lr: with which; None: the longest that seems fit at its start.
    """

    def __init__(self, lr: float | None = None):
        self.lr = lr

    def begin(self, world: World) -> float:
        """The lr of the step, from what is known at its start."""
        if self.lr is None:
            first, D = world.parts[0], potential(world)
            pull2 = (first["eta"] / D) ** 2 * world.sum_of(lambda part: force(part) * force(part))
            p2 = first["delta_energy"] if starts(world) else world.square("p")
            turn = LONGEST_KICK * math.sqrt((first["s"] + p2) / pull2) if pull2 else math.inf
            self.lr = min(turn, GROWTH * world.carried.get("lr", math.inf), 1.0)
        return self.lr

    def end(self, world: World, before: float) -> None:
        """Look at the step that is done, given its energy before; raises Rejected."""
        first = world.parts[0]
        after = separable.energy(potential(world), world.square("p"), first["eta"], first["s"])
        error = abs(after - before) / (SHARE * first["tolerance"])
        if not error <= 1:
            raise Rejected(self.lr * max(0.2, min(0.5, 0.9 * error ** (-1 / 3))))


def advance(optimizer: "ECD", closure: "Closure | None", section: interrupt.critical) -> Any:
    """Take a step; what the closure gave at its first call."""
    lr, beyond = None, None
    for _ in range(ATTEMPTS):
        trial = Trial(lr)
        try:
            return composed.advance(optimizer, closure, section, trial)
        except Rejected as rejected:
            lr, beyond = rejected.lr, None
        except _BEYOND as error:
            if trial.lr is None:  # at the start of the step: no lr mends that
                raise
            lr, beyond = 0.2 * trial.lr, error
        optimizer.rejected += 1
    if beyond is not None:
        raise beyond
    raise InvalidSetting(
        f'lr="auto": no step at {optimizer.steps} keeps the energy, down to lr={lr:.1g}: the loss is too coarse '
        "(bfloat16 somewhere?), or not the same at each evaluation.",
        "raise tolerance, train in float32 or float64, or give lr a number.",
    )
