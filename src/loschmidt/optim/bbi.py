"""Born-Infeld descent (BBI).

H = sqrt(D (D + |p|^2))                        energy
D = F - F0,  F = loss + sum (weight_decay / 2) |q|^2     potential; the sum only for decay inside H
G = grad F = g + weight_decay q,  dt = lr,  E = D + delta_energy at the start

kicks   start     p <- -g sqrt(P) / |g|,  P = D ((E/D)^2 - 1)      first step only
        rescale   p <- p sqrt(P / |p|^2)                           conserve="rescale"
        kick      p <- p - (dt/2) (D/E + E/D) G
drifts  decay     q <- (1 - dt weight_decay) q                     decoupled=True
        drift     q <- q + dt (D/E) p
        bounce    p <- rotations of pairs by angles up to pi, in place of rescale, kick and drift
        scatter   p <- rotations of pairs by angles of size nu sqrt(n)
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch

from ..dynamics import born_infeld
from ..exact import Contract, Op, Part, Rescale, Rotate, Shear, World, random
from . import energy
from .descent import (
    Descent,
    decoupled_decay,
    downhill,
    force,
    pairs,
    potential,
    reachable,
    scatter,
    starts,
    to_shell,
)
from .integers import LatticeTypes
from .settings import require, require_number

_ROUNDS = 4  # of pairs in a bounce


class BBI(Descent):
    """Born-Infeld descent: a relativistic particle whose speed limit falls with the loss, free to step back.

    |dq/dt| = sqrt(D (1 - (D/E)^2)), at most sqrt(D). Where its motion is ergodic it visits q with density
    (E^2/D - D)^((n-2)/2) / D, that is D^(-n/2) far below E. A step costs 0 bits per parameter and 8 bytes of journal
    (D, which the drift reads and the way back does not know yet), unless the momentum is rescaled
    (`conserve="rescale"`: -log2 of the factor a parameter) or decay is decoupled (log2(1/(1 - lr weight_decay))).

    `step` needs the value of the loss: `step(loss=loss)` or `step(closure)`.

    Args:
        params: parameters, named parameters or param groups, as in torch. They are snapped to the lattice.
        lr: the step dt itself.
        F0: below every loss that can be reached (v0 of the published code, Delta V of the paper).
        delta_energy: E above the potential of the start; 0 starts at rest, else along minus the gradient.
        nu: scattering at each step, as in `ECD`.
        conserve: "none", or "rescale" (published): before each kick the momentum is put back on the energy shell. Where
            D is above E that is skipped, counted in `skipped_rescales`, and warned of once.
        weight_decay: inside H.
        decoupled: decay outside H, as in AdamW.
        bounces: how many fixed bounces (N_b); 0 for none. A bounce gives the momentum a new direction and keeps its
            length: four times, random disjoint pairs of elements turn by uniform angles, within each run of parameters
            with the same settings. The published code draws a vector from a cube; that would forget p.
        bounce_every: steps between fixed bounces (T_0; 1000 in the published code).
        patience: bounce when so many steps have passed without a new lowest potential, or since the last such bounce
            (T_1; 3000 in the published code); 0 for never.
        resolution: distance of neighbouring lattice points, a power of two.
        lattice: torch.int64, or torch.int32 (then pass a resolution like 2**-24); or by name, as {"p": torch.int32}.
        seed: key of bounces, scattering and of the tape's reserve.

    Attributes:
        energy: H at the start of the last step taken forward, in units of the loss; None before the first.

    Raises:
        InvalidSetting: settings out of range, sparse or complex or float16 parameters, unknown options.
        LossBelowF0: at a step with F <= F0; nothing is changed.
        ShellOutOfReach: no direction to start in, or a potential so small that E asks for an infinite momentum.

    Source: De Luca and Silverstein, arXiv 2201.11137.
    """

    energy_law: ClassVar[energy.EnergyLaw] = energy.BORN_INFELD
    shared: ClassVar[tuple[str, ...]] = ("F0", "delta_energy", "nu", "conserve", "bounces", "bounce_every", "patience")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        F0: float = 0.0,
        delta_energy: float = 0.0,
        nu: float = 0.0,
        conserve: Literal["none", "rescale"] = "none",
        weight_decay: float = 0.0,
        decoupled: bool = False,
        bounces: int = 0,
        bounce_every: int = 1000,
        patience: int = 0,
        *,
        resolution: float = 2.0**-40,
        lattice: LatticeTypes = torch.int64,
        seed: int = 0,
        **options: Any,
    ):
        defaults = {
            "lr": lr,
            "F0": F0,
            "delta_energy": delta_energy,
            "nu": nu,
            "conserve": conserve,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
            "bounces": bounces,
            "bounce_every": bounce_every,
            "patience": patience,
        }
        super().__init__(params, defaults, resolution=resolution, lattice=lattice, seed=seed, options=options)

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Refuse settings without a meaning or an inverse."""
        super().check_settings(settings)
        require_number(settings, "delta_energy")
        for name, low in (("bounces", 0), ("bounce_every", 1), ("patience", 0)):
            value = settings[name]
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= low
            require(whole, name, value, f"it must be a whole number of at least {low}", f"set {name} to one.")

    def kicks(self) -> Sequence[Op]:
        """Start, rescale, kick."""
        return KICKS

    def drifts(self) -> Sequence[Op]:
        """Decay, drift, bounce, scatter."""
        return DRIFTS

    def energy_of(self, world: World, at_start: bool) -> float:
        """H, in units of the loss."""
        d = potential(world)
        return d + world.parts[0]["delta_energy"] if at_start else born_infeld.energy(d, world.square("p"))

    def shell_of(self, world: World) -> float:
        """|p|^2 on the energy shell."""
        return _shell(world)

    def prepare(self, world: World) -> None:
        """Note the potential, and whether this step is a bounce."""
        super().prepare(world)
        if world.parts:
            world.scalars["D"] = potential(world)
            if self._bounces(world, world.parts[0].settings):
                world.scalars["bounce"] = 1.0
                world.scalars.pop("skipped", None)

    def _bounces(self, world: World, settings: dict[str, Any]) -> bool:
        number, rest = divmod(world.step + 1, settings["bounce_every"] + 1)  # a bounce is a step of its own
        fixed = rest == 0 and number <= settings["bounces"]
        quiet = world.step - 1 - world.carried.get("lowest at", world.step - 1)
        return fixed or 0 < settings["patience"] <= quiet

    def conclude(self, world: World) -> dict[str, float]:
        """The lowest potential so far, and the step since which there is no lower one, or no bounce."""
        if not world.parts or not world.parts[0]["patience"]:
            return {}
        if "bounce" in world.scalars:
            return {"lowest at": float(world.step)}
        lower = world.scalars["D"] < world.carried.get("lowest", math.inf)
        return {"lowest": world.scalars["D"], "lowest at": float(world.step)} if lower else {}


def _shell(world: World) -> float:
    return reachable(
        world, born_infeld.shell(_energy(world), potential(world)), "lower F0 (below every loss that can be reached)."
    )


def _energy(world: World) -> float:
    return world.scalars.get("shell", world.carried.get("shell", math.nan))


def _bouncing(world: World) -> bool:
    return "bounce" in world.scalars


def _start(part: Part) -> torch.Tensor | None:
    if not starts(part.world) or not part["delta_energy"]:
        return None
    return downhill(part, _shell(part.world))


def _rescale(world: World) -> float:
    return 1.0 if _bouncing(world) else to_shell(_shell)(world)


def _kick(part: Part) -> torch.Tensor | None:
    if _bouncing(part.world):
        return None
    return force(part) * born_infeld.kick(part["lr"], potential(part.world), _energy(part.world))


def _drift(part: Part) -> torch.Tensor | None:
    if _bouncing(part.world):
        return None
    return part.value("p") * born_infeld.drift(part["lr"], part.world.scalars["D"], _energy(part.world))


def _turn(number: int) -> Callable[[Part], tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None]:
    """Half a round of a bounce: it is done twice, so that pairs turn by up to pi; one rotation ends at pi/2."""

    def turn(part: Part) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        if not _bouncing(part.world) or part.size < 2:
            return None
        draw = random.generator("bounce", part.world.seed, part.world.step, *part.block.key, part.start, number)
        c = int(draw.integers(part.size))
        first, second = pairs(part.size, c if part.size % 2 else c | 1)  # odd: all elements of an even size have a pair
        angle = torch.from_numpy(draw.uniform(-math.pi / 2, math.pi / 2, len(first)))
        device = part.integers("p").device
        return first.to(device), second.to(device), angle.to(device)

    return turn


KICKS = (Shear("p", _start, cause="start"), Rescale("p", _rescale, needs=("p", "q")), Shear("p", _kick, needs=("q",)))
DRIFTS = (
    Contract("q", decoupled_decay),
    Shear("q", _drift),
    *(Rotate("p", turn) for number in range(_ROUNDS) for turn in [_turn(number)] * 2),
    Rotate("p", scatter),
)
