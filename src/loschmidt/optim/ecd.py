"""Energy-conserving descent, separable Hamiltonian (ECDSep).

H = eta log D + log(s + |p|^2)                 energy
D = F - F0,  F = loss + sum (weight_decay / 2) |q|^2     potential; the sum only for decay inside H
G = grad F = g + weight_decay q,  dt = lr

kicks   start     p <- -g sqrt(delta_energy) / |g|       first step only; g without decay, as published
        rescale   p <- p sqrt(P / |p|^2),  P = exp(E - eta log D) - s     conserve="rescale"
        kick      p <- p - dt eta G / D
drifts  decay     q <- (1 - dt weight_decay) q           decoupled=True
        drift     q <- q + dt 2 p / (s + |p|^2)
        scatter   p <- rotations of pairs by angles of size nu sqrt(n)
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch

from ..errors import LossBelowF0, NonFinite
from ..exact import Contract, Op, Part, Rescale, Rotate, Shear, World, random, sum_of_squares
from . import energy, flat
from .adam import require_decay
from .base import ReversibleOptimizer
from .settings import present, require, require_number

_LARGEST_LOG = 700.0  # of a float64


class ECD(ReversibleOptimizer):
    """Energy-conserving descent: Hamiltonian, without friction, and free to step back.

    Slows down where the loss is low instead of cooling. Every op is a shear or a rotation, so going back costs
    0 bits per parameter per step, unless the momentum is rescaled (`conserve="rescale"`: -log2 of the factor,
    given back when the factor is above 1, and 8 bytes of journal a step) or decay is decoupled
    (log2(1/(1 - lr weight_decay)) bits).

    `step` needs the value of the loss: `step(loss=loss)` or `step(closure)`.

    Args:
        params: parameters, named parameters or param groups, as in torch. They are snapped to the lattice.
        lr: the step dt itself.
        eta: how strongly low loss is preferred: the stationary measure of s = 0 is (F - F0)^(-eta n / 2).
        F0: below every loss that can be reached.
        s: regularises the kinetic term; 0 diverges where the momentum vanishes.
        delta_energy: |p|^2 at the start, along minus the gradient of the loss.
        nu: scattering: the direction of p turns by about nu sqrt(n) a step (the published optimizer adds nu z to
            p/|p| and normalises; plane rotations by nu sqrt(n) z of disjoint pairs do the same, exactly invertible;
            angles beyond pi/2 are folded).
        conserve: "none", or "rescale": before each kick the momentum is put back on the energy shell of the start.
            Where the shell's |p|^2 would be negative the rescaling is skipped, counted in `skipped_rescales`, and
            warned of once, as in the published code.
        weight_decay: inside H: it enters potential, kick and energy, and is wound back like all else.
        decoupled: decay outside H, as in AdamW.
        resolution: distance of neighbouring lattice points, a power of two.
        lattice: torch.int64, or torch.int32 (then pass a resolution like 2**-24).
        seed: key of scattering and of the tape's reserve.

    Attributes:
        energy: H at the start of the last step taken forward, in nats; None before the first.

    Raises:
        InvalidSetting: settings out of range, sparse or complex or float16 parameters, unknown options.
        LossBelowF0: at a step with F <= F0; nothing is changed.

    Source: De Luca, Gatti and Silverstein, arXiv 2306.00352.
    """

    lattices: ClassVar[dict[str, float | None]] = {"p": None}
    energy_law: ClassVar[energy.EnergyLaw] = energy.SEPARABLE
    needs_loss: ClassVar[bool] = True
    shared: ClassVar[tuple[str, ...]] = ("eta", "F0", "s", "delta_energy", "nu", "conserve")
    carries: ClassVar[tuple[str, ...]] = ("shell",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        eta: float = 1.0,
        F0: float = 0.0,
        s: float = 1.0,
        delta_energy: float = 0.0,
        nu: float = 0.0,
        conserve: Literal["none", "rescale"] = "none",
        weight_decay: float = 0.0,
        decoupled: bool = False,
        *,
        resolution: float = 2.0**-40,
        lattice: torch.dtype = torch.int64,
        seed: int = 0,
        **options: Any,
    ):
        defaults = {
            "lr": lr,
            "eta": eta,
            "F0": F0,
            "s": s,
            "delta_energy": delta_energy,
            "nu": nu,
            "conserve": conserve,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
        }
        self.energy: float | None = None
        super().__init__(params, defaults, resolution=resolution, lattice=lattice, seed=seed, options=options)

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Refuse settings without a meaning or an inverse."""
        super().check_settings(settings)
        for name in ("s", "delta_energy", "nu"):
            require_number(settings, name)
        require_number(settings, "eta", above=True)
        require_number(settings, "F0", low=-math.inf)
        conserve = settings["conserve"]
        require(conserve in ("none", "rescale"), "conserve", conserve, "unknown", 'use "none" or "rescale".')
        still = settings["s"] == settings["delta_energy"] == 0
        require(not still, "s", settings["s"], "with s = 0 a start at rest has infinite speed", "set delta_energy > 0.")
        if settings["decoupled"]:
            require_decay(settings)

    def kicks(self) -> Sequence[Op]:
        """Start, rescale, kick."""
        return KICKS

    def drifts(self) -> Sequence[Op]:
        """Decay, drift, scatter."""
        return DRIFTS

    def prepare(self, world: World) -> None:
        """Refuse a loss at or below F0; note the energy, and at the start its shell."""
        if not world.parts:
            return
        d, first = potential(world), world.parts[0]
        if d <= 0:
            raise LossBelowF0(
                f"at step {world.step} the potential F - F0 is {d:g}: F = {d + first['F0']:g} with decay, "
                f"F0 = {first['F0']:g}.",
                "set F0 below every loss that can be reached (for a mean cross entropy, 0 or less).",
            )
        start = "shell" not in self.carried
        self.energy = _energy(world, start)
        if start:
            world.scalars["shell"] = self.energy
        elif first["conserve"] == "rescale" and _target(world) < 0:
            world.scalars["skipped"] = 1.0
            self.warn_once(
                "shell",
                f"at step {world.step} the potential is above the energy shell, so the momentum was not rescaled "
                "(c = 1); such steps are counted in `skipped_rescales`. Remedy: a smaller lr or larger batches.",
            )

    def energy_at(self, loss: float) -> float:
        """H in nats at the present state, given the loss there. Before the first step: with the momentum to come."""
        active = [s for s in self._slots if s.parameter.requires_grad]
        world = flat.world_of(active, present(self), World([], loss, carried=self.carried), counting=1)
        return _energy(world, at_start="shell" not in self.carried)

    @property
    def skipped_rescales(self) -> int:
        """Steps (of those that the journal holds) at which the shell's |p|^2 was negative."""
        return sum("skipped" in entry.get("scalars", {}) for entry in self.journal.entries.values())


def potential(world: World) -> float:
    """D = F - F0, with the decay that is inside H."""
    inside = [p.square("q") * (0.5 * p["weight_decay"]) for p in world.parts if _decays_inside(p)]
    return world.loss + world.total(inside) - world.parts[0]["F0"]


def _energy(world: World, at_start: bool) -> float:
    first = world.parts[0]
    kinetic = first["delta_energy"] if at_start else world.square("p")
    return first["eta"] * math.log(potential(world)) + math.log(first["s"] + kinetic)


def _decays_inside(part: Part) -> bool:
    return bool(part["weight_decay"]) and not part["decoupled"]


def _force(part: Part) -> torch.Tensor:
    """G, float64."""
    g = part.gradient
    return g.add(part.value("q"), alpha=part["weight_decay"]) if _decays_inside(part) else g


def _target(world: World) -> float:
    """|p|^2 on the energy shell."""
    first = world.parts[0]
    log = world.carried["shell"] - first["eta"] * math.log(potential(world))
    if log > _LARGEST_LOG:
        raise NonFinite(f"at step {world.step} the energy shell asks for a |p|^2 of e^{log:.0f}.", "lower eta, or F0.")
    return math.exp(log) - first["s"]


def _start(part: Part) -> torch.Tensor | None:
    if "shell" not in part.world.scalars or not part["delta_energy"]:
        return None
    norm = math.sqrt(part.world.total([sum_of_squares(p.gradient) for p in part.world.parts]))
    return part.gradient * (-math.sqrt(part["delta_energy"]) / norm) if norm else None


def _rescale(world: World) -> float:
    if not world.parts or world.parts[0]["conserve"] != "rescale" or "shell" not in world.carried:
        return 1.0
    target, present = _target(world), world.square("p")
    return math.sqrt(target / present) if target > 0 and present > 0 else 1.0


def _kick(part: Part) -> torch.Tensor:
    return _force(part) * (-part["lr"] * part["eta"] / potential(part.world))


def _drift(part: Part) -> torch.Tensor:
    kinetic = part["s"] + part.world.square("p")
    if kinetic == 0:
        raise NonFinite(
            f"at step {part.world.step} the momentum is zero (a start without a gradient?), and with s = 0 that is an "
            "infinite speed.",
            "set s > 0.",
        )
    return part.value("p") * (2 * part["lr"] / kinetic)


def _scatter(part: Part) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Pairs i, j with i + j = c modulo the size of the part, c drawn anew each step, and normal angles."""
    if not part["nu"] or part.size < 2:
        return None
    draw = random.generator("scatter", part.world.seed, part.world.step, *part.block.key, part.start)
    first = torch.arange(part.size)
    second = torch.remainder(int(draw.integers(part.size)) - first, part.size)
    keep = first < second
    total = sum(p.size for p in part.world.parts)
    angle = part["nu"] * math.sqrt(total) * torch.from_numpy(draw.standard_normal(int(keep.sum())))
    folded = torch.remainder(angle + math.pi / 2, math.pi) - math.pi / 2
    device = part.integers("p").device
    return first[keep].to(device), second[keep].to(device), folded.to(device)


KICKS = (Shear("p", _start, cause="start"), Rescale("p", _rescale, needs=("p", "q")), Shear("p", _kick, needs=("q",)))
DRIFTS = (
    Contract("q", lambda part: 1 - part["lr"] * part["weight_decay"] if part["decoupled"] else 1.0),
    Shear("q", _drift, needs=("p",)),
    Rotate("p", _scatter),
)
