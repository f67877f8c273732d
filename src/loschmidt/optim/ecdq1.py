"""Energy-conserving descent at unit speed (ECD q=1).

H = |P| D^k,  k = eta n / (2 (n - 1))          energy; n parameters
D = F - F0,  F = loss + sum (weight_decay / 2) |q|^2     potential; the sum only for decay inside H
G = grad F = g + weight_decay q,  dt = lr,  c = dt k / D,  p = direction of P

kicks   start     p <- -g / |g|                          first step only
        rescale   p <- p (1 + c p.G / r) / r             r = |p| with conserve="rescale", else 1
        kick      p <- p - c G
drifts  decay     q <- (1 - dt weight_decay) q           decoupled=True
        drift     q <- q + dt p
        scatter   p <- rotations of pairs by angles of size nu sqrt(n)

Rescale and kick are the published two: bring p to length 1, then p <- p - c (G - p (p.G)).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch

from ..dynamics import unit_speed
from ..errors import InvalidSetting, NonFinite
from ..exact import Contract, Op, Part, Rescale, Rotate, Shear, World, scalar
from . import energy
from .descent import Descent, decoupled_decay, downhill, force, potential, scatter, starts
from .integers import LatticeTypes
from .settings import require, require_number

_SMALLEST = 2.0**-30  # factor of a rescaling: 30 bits a parameter


class ECDq1(Descent):
    """Energy-conserving descent at unit speed: steps of length lr, whose direction is turned by the loss.

    Where its motion is ergodic it visits q with density D^(-eta n / 2). A kick is a rescaling by a number that is
    recorded (1 + c p.G, which the way back could not find: it knows the loss and the gradient, but p only after the
    kick) and a shear by -c G, which both ways can compute. What the direction forgets is the logarithm of |P|: the bill
    is -log2 |1 + c p.G| bits per parameter per step, in all about (eta/2) log2(D_start / D_end) at small steps,
    given back when the loss rises again. Decoupled decay costs log2(1/(1 - lr weight_decay)) on top.

    `step` needs the value of the loss: `step(loss=loss)` or `step(closure)`.

    Args:
        params: parameters, named parameters or param groups, as in torch. They are snapped to the lattice.
        lr: the step dt itself: a length. The published `ECD_q1_scaled` divides its lr by sqrt(eta).
        eta: how strongly low loss is preferred.
        F0: below every loss that can be reached (published: -1).
        nu: scattering, as in `ECD`.
        conserve: "rescale" (published): p is brought to length 1 before each kick. Or "none": its length drifts upward.
        weight_decay: inside H.
        decoupled: decay outside H, as in AdamW.
        projection: "global": p.G is the sum over all parameters. "per-tensor": each parameter tensor its own, as in the
            released code; for contrast only. That is no Hamiltonian flow: there is no energy, and rotations that mix
            tensors conserve nothing.
        resolution: distance of neighbouring lattice points, a power of two.
        lattice: torch.int64, or torch.int32 (then pass a resolution like 2**-24); or by name, as {"p": torch.int32}.
        seed: key of scattering and of the tape's reserve.

    Attributes:
        energy: log H at the start of the last step taken forward, in nats, with |P| = 1 at the start; None before the
            first, nan with projection="per-tensor".

    Raises:
        InvalidSetting: settings out of range, one parameter only (its direction cannot turn), sparse or complex or
            float16 parameters, unknown options.
        LossBelowF0: at a step with F <= F0; nothing is changed.
        ShellOutOfReach: at a start without a gradient.

    Source: De Luca, Nachman, Silverstein and Zheng, arXiv 2501.18419; used by arXiv 2601.22257.
    """

    energy_law: ClassVar[energy.EnergyLaw] = energy.UNIT_SPEED
    shared: ClassVar[tuple[str, ...]] = ("eta", "F0", "nu", "conserve", "projection")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        eta: float = 100.0,
        F0: float = 0.0,
        nu: float = 0.0,
        conserve: Literal["none", "rescale"] = "rescale",
        weight_decay: float = 0.0,
        decoupled: bool = False,
        projection: Literal["global", "per-tensor"] = "global",
        *,
        resolution: float = 2.0**-40,
        lattice: LatticeTypes = torch.int64,
        seed: int = 0,
        **options: Any,
    ):
        defaults = {
            "lr": lr,
            "eta": eta,
            "F0": F0,
            "nu": nu,
            "conserve": conserve,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
            "projection": projection,
        }
        super().__init__(params, defaults, resolution=resolution, lattice=lattice, seed=seed, options=options)

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Refuse settings without a meaning or an inverse."""
        super().check_settings(settings)
        require_number(settings, "eta", above=True)
        projection = settings["projection"]
        known = projection in ("global", "per-tensor")
        require(known, "projection", projection, "unknown", 'use "global", or "per-tensor" for contrast.')

    def kicks(self) -> Sequence[Op]:
        """Start, rescale, kick."""
        return KICKS

    def drifts(self) -> Sequence[Op]:
        """Decay, drift, scatter."""
        return DRIFTS

    def energy_of(self, world: World, at_start: bool) -> float:
        """log H in nats."""
        first = world.parts[0]
        if first["projection"] != "global":
            return math.nan
        square = 1.0 if at_start else world.square("p")
        log_P = 0.5 * scalar.log(square) - world.carried.get("log a", 0.0) if square else -math.inf
        return unit_speed.energy(potential(world), log_P, first["eta"], world.size)

    def shell_of(self, world: World) -> float:
        """|p|^2 = 1."""
        return 1.0

    def prepare(self, world: World) -> None:
        """Refuse a single parameter."""
        if world.parts and world.size < 2:
            raise InvalidSetting(
                f"ECDq1 has one parameter to move at step {world.step}, whose direction cannot turn.",
                "use ECD, or train at least two parameters.",
            )
        super().prepare(world)

    def conclude(self, world: World) -> dict[str, float]:
        """The sum of log |a| over all factors a: how far |p|, which stays 1, has fallen behind |P|."""
        c = world.scalars.get("rescale", 1.0)
        return {"log a": world.carried.get("log a", 0.0) + math.log(abs(c))} if c != 1.0 else {}


def _coefficient(part: Part) -> float:
    """-c. Parameters with another lr have another c, in p.G, too: then |p| = 1 stays what the flow keeps."""
    return unit_speed.kick(part["lr"], potential(part.world), part["eta"], part.world.size)


def _power(part: Part) -> torch.Tensor:
    return part.value("p") * force(part)


def _growth(world: World) -> float | list[float]:
    if not world.parts:
        return 1.0
    first = world.parts[0]
    length = scalar.sqrt(world.square("p")) if first["conserve"] == "rescale" else 1.0
    if length == 0:  # of parameters that never had a gradient before: the kick gives them a direction
        return 1.0
    tensors = [tensor for part in world.parts for tensor in part.tensors]
    grouped = [[t] for t in tensors] if first["projection"] != "global" else [world.parts]
    powers = [-world.total([p.sum_of(_power) * _coefficient(p) for p in parts]) for parts in grouped]
    factors = [_bounded(world, unit_speed.growth(power, length)) for power in powers]
    return factors[0] if first["projection"] == "global" else factors


def _bounded(world: World, factor: float) -> float:
    if not scalar.isfinite(factor):
        for block in world.blocks:
            block.inspect()  # names the parameter
        raise NonFinite(f"at step {world.step} p.G is not finite.", "look at the loss and lr of this step.")
    return factor if abs(factor) >= _SMALLEST else math.copysign(_SMALLEST, scalar.value(factor))


def _start(part: Part) -> torch.Tensor | None:
    return downhill(part, 1.0) if starts(part.world) else None


def _kick(part: Part) -> torch.Tensor:
    return force(part) * _coefficient(part)


KICKS = (Shear("p", _start, cause="start"), Rescale("p", _growth, needs=("p", "q")), Shear("p", _kick, needs=("q",)))
DRIFTS = (
    Contract("q", decoupled_decay),
    Shear("q", lambda part: part.value("p") * part["lr"]),
    Rotate("p", scatter),
)
