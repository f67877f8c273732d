"""Energy-conserving descent, separable Hamiltonian (ECDSep).

H = eta log D + log(s + |p|^2)                 energy
D = F - F0,  F = loss + sum (weight_decay / 2) |q|^2     potential; the sum only for decay inside H
G = grad F = g + weight_decay q,  dt = lr

kicks   friction  p <- momentum p                        momentum below 1
        start     p <- -g sqrt(delta_energy) / |g|       first step only; g without decay, as published
        rescale   p <- p sqrt(P / |p|^2),  P = exp(E - eta log D) - s     conserve="rescale"
        kick      p <- p - dt eta G / D
drifts  decay     q <- (1 - dt weight_decay) q           decoupled=True
        drift     q <- q + dt 2 p / (s + |p|^2)
        scatter   p <- rotations of pairs by angles of size nu sqrt(n)
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch

from ..dynamics import COMPOSITIONS, separable
from ..errors import NonFinite
from ..exact import Contract, Op, Part, Rescale, Rotate, Shear, World
from . import control, energy
from .composed import AUTO
from .descent import Descent, decoupled_decay, downhill, force, potential, reachable, scatter, starts, to_shell
from .integers import LatticeTypes
from .settings import Settings, plain, require, require_number

ALL = "give all groups the same."
ONE = 'use integrator="euler", and do not reverse time; or give lr a number.'


class ECD(Descent):
    """Energy-conserving descent: Hamiltonian, without friction, and free to step back.

    Slows down where the loss is low instead of cooling. Every op is a shear or a rotation, so going back costs
    0 bits per parameter per step, unless the momentum is rescaled (`conserve="rescale"`: -log2 of the factor,
    given back when the factor is above 1, and 8 bytes of journal a step), decay is decoupled
    (log2(1/(1 - lr weight_decay)) bits), or there is friction after all (log2(1/momentum) bits).

    `step` needs the value of the loss: `step(loss=loss)` or `step(closure)`.

    Args:
        params: parameters, named parameters or param groups, as in torch. They are snapped to the lattice.
        lr: the step dt itself; or "auto": chosen at each step so that H, on the step's batch, stays within `tolerance`
            (see `optim.control`; two gradients a step, 8 bytes of journal for it, and `step` needs a closure).
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
        momentum: what a step keeps of p, in (0, 1], as in SGD: 1 is no friction. Below it H falls by
            (1 - momentum) 2 |p|^2/(s + |p|^2) nats a step, to first order.
        integrator: "euler" (kick, then drift), or a palindrome of order 2, 4 or 6, by its name in
            `dynamics.COMPOSITIONS`: these evaluate the gradient inside the step, so that `step` needs a closure.
        tolerance: with lr="auto": by how much H may change over a run, as an aim; a step may change it by a hundredth.
        mirrored: steps are done in reverse order; see `reverse_time`, which sets it.
        resolution: distance of neighbouring lattice points, a power of two.
        lattice: torch.int64, or torch.int32 (then pass a resolution like 2**-24); or by name, as {"p": torch.int32}.
        seed: key of scattering and of the tape's reserve.

    Attributes:
        energy: H at the start of the last step taken forward, in nats; None before the first, and after a step that
            does not begin with a kick (palindromes, mirrored steps): `energy_at` gives it at any time.
        rejected: with lr="auto", how many tries were given up, since construction.

    Raises:
        InvalidSetting: settings out of range, sparse or complex or float16 parameters, unknown options.
        LossBelowF0: at a step with F <= F0; nothing is changed.
        ShellOutOfReach: a start without a gradient, where delta_energy asks for a momentum.

    Source: De Luca, Gatti and Silverstein, arXiv 2306.00352.
    """

    energy_law: ClassVar[energy.EnergyLaw] = energy.SEPARABLE
    shared: ClassVar[tuple[str, ...]] = (
        "eta",
        "F0",
        "s",
        "delta_energy",
        "nu",
        "conserve",
        "integrator",
        "mirrored",
        "tolerance",
        "momentum",
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Literal["auto"] = 0.02,
        eta: float = 1.0,
        F0: float = 0.0,
        s: float = 1.0,
        delta_energy: float = 0.0,
        nu: float = 0.0,
        conserve: Literal["none", "rescale"] = "none",
        weight_decay: float = 0.0,
        decoupled: bool = False,
        momentum: float = 1.0,
        integrator: str = "euler",
        tolerance: float = 1e-2,
        mirrored: bool = False,
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
            "s": s,
            "delta_energy": delta_energy,
            "nu": nu,
            "conserve": conserve,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
            "momentum": momentum,
            "integrator": integrator,
            "tolerance": tolerance,
            "mirrored": mirrored,
        }
        self.rejected = 0
        super().__init__(params, defaults, resolution=resolution, lattice=lattice, seed=seed, options=options)

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Refuse settings without a meaning or an inverse."""
        auto = settings["lr"] == AUTO
        known = auto or not isinstance(settings["lr"], str)
        require(known, "lr", settings["lr"], "unknown", 'give a number, or "auto".')
        super().check_settings(settings | {"lr": 1.0} if auto else settings)
        mirrored = settings["mirrored"]
        require(mirrored in (True, False), "mirrored", mirrored, "unknown", "use True or False.")
        require_number(settings, "tolerance", above=True)
        for name in ("s", "delta_energy"):
            require_number(settings, name)
        require_number(settings, "eta", above=True)
        require_number(settings, "momentum", above=True)
        momentum = settings["momentum"]
        require(momentum <= 1, "momentum", momentum, "above 1 it grows without bound", "use a momentum in (0, 1].")
        still = settings["s"] == settings["delta_energy"] == 0
        require(not still, "s", settings["s"], "with s = 0 a start at rest has infinite speed", "set delta_energy > 0.")
        name = settings["integrator"]
        require(name in COMPOSITIONS, "integrator", name, "unknown", f"use one of {', '.join(COMPOSITIONS)}.")
        if auto:
            require(name == "euler" and not settings["mirrored"], "lr", AUTO, "it has an integrator of its own", ONE)
        if COMPOSITIONS[name].weights or settings["mirrored"] or auto:
            for other, plain in (("conserve", "none"), ("nu", 0.0), ("decoupled", False), ("momentum", 1.0)):
                why = "only kicks and drifts of H itself are composed, mirrored in time, or of a step that is chosen"
                require(settings[other] == plain, other, settings[other], why, f"set {other} to {plain!r}.")

    def reverse_time(self) -> None:
        """Turn time round: the next step begins by flipping momenta, and steps are mirrored from then on.

        With the batches in reverse order (`Trajectory.time_reversed`) the path is followed back, as exactly as the
        integrator's order and the lattice allow; this is not undoing, which is exact. Called again, it turns back.
        Steps are then taken with a closure. Going back over the turn is exact, as over any step.

        Raises:
            InvalidSetting: settings that have no mirror image (rescale, scattering, decoupled decay, friction,
                lr="auto").
        """
        turned = [group | {"mirrored": not group["mirrored"]} for group in self.param_groups]
        for group in turned:
            self.check_settings(plain(group))
        for group, new in zip(self.param_groups, turned, strict=True):
            group["mirrored"] = new["mirrored"]

    def conclude(self, world: World) -> dict[str, float]:
        """The lr that was chosen."""
        lr = world.carried.get("lr")
        return {} if lr == self.carried.get("lr") else {"lr": lr}

    def evaluates_inside(self, settings: Settings) -> Callable[..., Any] | None:
        """Compositions, and lr="auto"."""
        rates = {group["lr"] for group in settings}
        require(AUTO not in rates or len(rates) == 1, "lr", AUTO, "there is one energy, and so one step", ALL)
        return control.advance if AUTO in rates else super().evaluates_inside(settings)

    def kicks(self) -> Sequence[Op]:
        """Friction, start, rescale, kick."""
        return KICKS

    def drifts(self) -> Sequence[Op]:
        """Decay, drift, scatter."""
        return DRIFTS

    def energy_of(self, world: World, at_start: bool) -> float:
        """H in nats."""
        first = world.parts[0]
        square = first["delta_energy"] if at_start else _moving(world, world.square("p"), first["s"])
        return separable.energy(potential(world), square, first["eta"], first["s"])

    def shell_of(self, world: World) -> float:
        """|p|^2 on the energy shell."""
        return _shell(world)


def _shell(world: World) -> float:
    first = world.parts[0]
    square = separable.shell(world.carried["shell"], potential(world), first["eta"], first["s"])
    return reachable(world, square, "lower eta, or F0.")


def _start(part: Part) -> torch.Tensor | None:
    if not starts(part.world) or not part["delta_energy"]:
        return None
    return downhill(part, part["delta_energy"], -1.0 if part["mirrored"] else 1.0)


def _kick(part: Part) -> torch.Tensor:
    return force(part) * separable.kick(part["lr"], potential(part.world), part["eta"])


def _drift(part: Part) -> torch.Tensor | None:
    if part.world.loss is None and "shell" not in part.world.carried:
        return None  # a palindrome's first half drift, before there is a momentum
    square = _moving(part.world, part.world.square("p"), part["s"])
    return part.value("p") * separable.drift(part["lr"], square, part["s"])


def _moving(world: World, square: float, s: float) -> float:
    """|p|^2; refused if it is 0 and s = 0."""
    if s + square == 0:
        raise NonFinite(
            f"at step {world.step} the momentum is zero (of parameters that joined after the start?), and with s = 0 "
            "that is an infinite speed.",
            "set s > 0.",
        )
    return square


KICKS = (
    Contract("p", lambda part: part["momentum"]),
    Shear("p", _start, cause="start"),
    Rescale("p", to_shell(_shell), needs=("p", "q")),
    Shear("p", _kick, needs=("q",)),
)
DRIFTS = (Contract("q", decoupled_decay), Shear("q", _drift, needs=("p",)), Rotate("p", scatter))
