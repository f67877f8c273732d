"""What energy an optimizer has: stated once beside its program, and read by `physics`.

A law gives potential and kinetic energy at a state, for several losses at once. Without friction, rescaling, decoupled
decay and noise, a program with a small step keeps the sum of both nearly constant; what each op changes of it is then
what that op did.

    ECD    H = eta log D + log(s + |p|^2)                        nats
    BBI    H = D + (sqrt(D (D + |p|^2)) - D)                     units of the loss
    ECDq1  H = eta n/(2 (n - 1)) log D + log |p|                 nats
    SGD    H = F + (lr / 2 (1 - dampening)) |p|^2                units of the loss
    Adam   H = F + sum A m^2 / (2 (1 - b1))                      units of the loss

F   loss (negative where it is maximised) + (weight_decay/2) |q|^2, where decay is part of the gradient; D = F - F0
A   lr / ((1 - b1^t) (sqrt(v / (1 - b2^t)) + eps)), of each element: dq = -A m a step
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from ..dynamics import unit_speed
from ..exact import Contract, Op, Part, Rescale, Rotate, Shear, World, sum_of_squares

Array = np.ndarray
Terms = tuple[Array, Array]


@dataclass(frozen=True)
class EnergyLaw:
    """An optimizer's energy.

    Attributes:
        unit: "nats" or "loss".
        formula: for people.
        momentum: the lattice that is conjugate to "q", up to a factor.
        terms: (world, losses) -> potential and kinetic energy, arrays like `losses`. May read settings, step counts and
            lattices of the world's parts, and no gradient. NaN where it does not exist (D <= 0). Lattices besides "q"
            and the momentum are a mass; their ops must read neither of the two.
        virial: (world, kinetic) -> p . dH/dp. Its mean over n parameters is the kinetic temperature at equilibrium.
        bend: (world, kicks, one for each part) -> k . (d2K/dp2) k, twice the energy of a kick at second order.
        counts: whether `terms` reads step counts.
    """

    unit: str
    formula: str
    momentum: str
    terms: Callable[[World, Array], Terms]
    virial: Callable[[World, float], float]
    bend: Callable[[World, Sequence[torch.Tensor]], float]
    counts: bool = False

    def cause_of(self, op: Op) -> str:
        """What a ledger books the op under: its own word for it, or what its kind and target say."""
        if getattr(op, "cause", ""):
            return op.cause
        if isinstance(op, Rescale):
            return "rescale"
        if isinstance(op, Rotate):
            return "scatter"
        if op.target not in ("q", self.momentum) or not isinstance(op, (Contract, Shear)):
            return "metric"
        shrinks = isinstance(op, Contract)
        return ("decay" if shrinks else "drift") if op.target == "q" else ("friction" if shrinks else "kick")


@runtime_checkable
class HasEnergy(Protocol):
    """An optimizer that states its energy."""

    energy_law: EnergyLaw


# -- ECD ---------------------------------------------------------------------------------------------


def _first(world: World) -> Any:
    return world.parts[0].settings


def _kinetic(world: World) -> float:
    s, p2 = _first(world)["s"], world.square("p")
    return s + p2 if s + p2 or "shell" not in world.scalars else _first(world)["delta_energy"]


def _above(world: World, losses: Array) -> Array:
    """D; NaN where it is not above 0."""
    inside = [p for p in world.parts if p["weight_decay"] and not p["decoupled"]]
    d = losses + _decay(world, inside) - _first(world)["F0"]
    return np.where(d > 0, d, np.nan)


def _separable(world: World, losses: Array) -> Terms:
    return _first(world)["eta"] * np.log(_above(world, losses)), np.full(len(losses), np.log(_kinetic(world)))


def _separable_bend(world: World, kicks: Sequence[torch.Tensor]) -> float:
    kinetic = _kinetic(world)
    along = _along(world, kicks)
    return 2 * world.total([sum_of_squares(k) for k in kicks]) / kinetic - 4 * along**2 / kinetic**2


def _decay(world: World, parts: Sequence[Part]) -> float:
    return world.total([p.square("q") * (0.5 * p["weight_decay"]) for p in parts if p["weight_decay"]])


SEPARABLE = EnergyLaw(
    "nats",
    "eta log(F - F0) + log(s + |p|^2)",
    "p",
    _separable,
    lambda world, kinetic: 2 * (1 - _first(world)["s"] * float(np.exp(-kinetic))),
    _separable_bend,
)
"""ECD's. Conserved by the flow; a step of size dt of the integrator errs by O(dt^2), and makes it swing by O(dt)."""


# -- BBI, ECDq1 --------------------------------------------------------------------------------------


def _born_infeld(world: World, losses: Array) -> Terms:
    d = _above(world, losses)
    return d, np.sqrt(d * (d + world.square("p"))) - d


def _born_infeld_virial(world: World, kinetic: float) -> float:
    """D |p|^2 / H, where D follows from both: (kinetic + D)^2 = D^2 + D |p|^2."""
    p2 = world.square("p")
    d = kinetic**2 / (p2 - 2 * kinetic) if p2 > 2 * kinetic else np.nan
    return d * p2 / (kinetic + d)


def _born_infeld_bend(world: World, kicks: Sequence[torch.Tensor]) -> float:
    if world.loss is None:
        return float("nan")
    d = float(_above(world, np.array([world.loss]))[0])
    h = float(np.sqrt(d * (d + world.square("p"))))
    return d / h * world.total([sum_of_squares(k) for k in kicks]) - d**2 / h**3 * _along(world, kicks) ** 2


def _along(world: World, kicks: Sequence[torch.Tensor]) -> float:
    return world.total([(p.value("p") * k).sum() for p, k in zip(world.parts, kicks, strict=True)])


BORN_INFELD = EnergyLaw(
    "loss", "D + (sqrt(D (D + |p|^2)) - D)", "p", _born_infeld, _born_infeld_virial, _born_infeld_bend
)
"""BBI's: the energy at rest, and what motion adds. Conserved by the flow."""


def _unit_speed(world: World, losses: Array) -> Terms:
    power = unit_speed.exponent(_first(world)["eta"], world.size)
    p2 = world.square("p")
    kinetic = 0.5 * np.log(p2) if p2 > 0 else 0.0 if "shell" in world.scalars else np.nan
    return power * np.log(_above(world, losses)), np.full(len(losses), kinetic)


def _unit_speed_bend(world: World, kicks: Sequence[torch.Tensor]) -> float:
    p2 = world.square("p")
    return world.total([sum_of_squares(k) for k in kicks]) / p2 - 2 * _along(world, kicks) ** 2 / p2**2


UNIT_SPEED = EnergyLaw(
    "nats",
    "eta n/(2 (n - 1)) log D + log |p|",
    "p",
    _unit_speed,
    lambda world, kinetic: 1.0,
    _unit_speed_bend,
)
"""ECDq1's, of the momentum as it is stored: a direction, whose length the kick's rescaling takes away again. The sum is
conserved up to what is booked as `rescale`. Before the start it is that of the momentum to come."""


# -- SGD, Adam ---------------------------------------------------------------------------------------


def _signed(world: World, losses: Array) -> Array:
    """The loss that descends; NaN if groups go opposite ways, for then there is no one potential."""
    signs = {-1.0 if p["maximize"] else 1.0 for p in world.parts}
    return losses * (signs.pop() if len(signs) == 1 else np.nan)


def _mass_sgd(part: Part) -> float:
    return part["lr"] / (1 - part["dampening"])


def _newton(world: World, losses: Array) -> Terms:
    kinetic = 0.5 * world.total([p.square("p") * _mass_sgd(p) for p in world.parts])
    return _signed(world, losses) + _decay(world, world.parts), np.full(len(losses), kinetic)


def _twice(world: World, kinetic: float) -> float:
    return 2 * kinetic


NEWTON = EnergyLaw(
    "loss",
    "F + lr/(2 (1 - dampening)) |p|^2",
    "p",
    _newton,
    _twice,
    lambda world, kicks: world.total(
        [sum_of_squares(k) * _mass_sgd(p) for p, k in zip(world.parts, kicks, strict=True)]
    ),
)
"""SGD's: a particle of mass 1/lr, whose momentum is torch's buffer with its sign reversed; with P = sqrt(lr) p it is
F + |P|^2/2. At momentum 1 the steps are a symplectic integrator of it with time step 1 (its error is small while
lr times the largest curvature is far below 1); momentum below 1 is friction. A change of lr changes the energy.
"""


def _weighed(part: Part, x: torch.Tensor) -> torch.Tensor:
    """sum A x^2 / (1 - b1), 0-dimensional; 0 before the part's first step."""
    if part.count < 1:
        return torch.zeros((), dtype=torch.float64)
    (b1, b2), t = part["betas"], part.count
    root = part.value("v").clamp_min(0.0).sqrt_().div_((1 - b2**t) ** 0.5).add_(part["eps"])
    return x.square().div_(root).sum() * (part["lr"] / ((1 - b1**t) * (1 - b1)))


def _kinetic_of(part: Part) -> torch.Tensor:
    """(1/2) sum A m^2 / (1 - b1); where the part can remember it, while m and v stand still."""
    memo = getattr(part, "memo", {})
    if "kinetic" not in memo:
        memo["kinetic"] = _weighed(part, part.value("m")) * 0.5
    return memo["kinetic"]


def _metric(coupled: bool) -> Callable[[World, Array], Terms]:
    def terms(world: World, losses: Array) -> Terms:
        kinetic = world.total([_kinetic_of(p) for p in world.parts])
        potential = _signed(world, losses) + (_decay(world, world.parts) if coupled else 0.0)
        return potential, np.full(len(losses), kinetic)

    return terms


def _metric_bend(world: World, kicks: Sequence[torch.Tensor]) -> float:
    return world.total([_weighed(p, k) for p, k in zip(world.parts, kicks, strict=True)])


_ADAM = "F + sum A m^2 / (2 (1 - b1)), A = lr / ((1 - b1^t) (sqrt(v / (1 - b2^t)) + eps))"

ADAM = EnergyLaw("loss", _ADAM, "m", _metric(True), _twice, _metric_bend, counts=True)
"""Adam's: a particle whose mass, 1/A, is made of its past gradients. v and the step count change the mass without
being forces: that is booked as `metric` and `schedule`. Conserved only in the limit b1 -> 1 with v frozen; at the
usual betas friction takes a tenth of m at each step, and this energy is a book-keeping of that, not a conserved
quantity. The kinetic term is that of the Lyapunov functions used for Adam's continuous limit, up to constants.
"""
ADAMW = EnergyLaw("loss", _ADAM, "m", _metric(False), _twice, _metric_bend, counts=True)
"""AdamW's: the same, without decay in F, where it is not a force but a contraction."""
