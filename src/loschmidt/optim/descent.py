"""What the energy-conserving optimizers share: potential and force, the energy shell, start, scattering, refusals."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from ..errors import LossBelowF0, ShellOutOfReach
from ..exact import Part, World, random, scalar
from . import flat, losses
from .adam import require_decay
from .base import ReversibleOptimizer
from .settings import Settings, present, require, require_number


class Descent(ReversibleOptimizer):
    """Base of the optimizers with a Hamiltonian: a subclass gives its energy, and |p|^2 on the energy shell.

    Attributes:
        energy: at the start of the last step taken forward; None before the first.
    """

    lattices: ClassVar[dict[str, int]] = {"p": 2}
    needs_loss: ClassVar[bool] = True
    carries: ClassVar[tuple[str, ...]] = ("shell",)

    def __init__(self, params: Any, defaults: dict[str, Any], **options: Any):
        self.energy: float | None = None
        super().__init__(params, defaults, **options)

    def energy_of(self, world: World, at_start: bool) -> float:
        """The Hamiltonian at a world's state; at the start, of the momentum to come."""
        raise TypeError(f"{type(self).__name__} does not define energy_of()")

    def shell_of(self, world: World) -> float:
        """|p|^2 on the energy shell, at the potential of a world."""
        raise TypeError(f"{type(self).__name__} does not define shell_of()")

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Refuse settings without a meaning or an inverse."""
        super().check_settings(settings)
        require_number(settings, "nu")
        require_number(settings, "F0", low=-math.inf)
        conserve = settings["conserve"]
        require(conserve in ("none", "rescale"), "conserve", conserve, "unknown", 'use "none" or "rescale".')
        decoupled = settings["decoupled"]
        require(decoupled in (True, False), "decoupled", decoupled, "unknown", "use True or False.")
        if decoupled:
            require_decay(settings)

    def prepare(self, world: World) -> None:
        """Refuse a loss at or below F0; note the energy, and at the start its shell."""
        if not world.parts:
            return
        first = world.parts[0]
        _refuse_below(world)
        start = "shell" not in world.carried
        self.energy = self.energy_of(world, start)
        if start:
            world.scalars["shell"] = self.energy
        elif first["conserve"] == "rescale" and self.shell_of(world) < 0:
            world.scalars["skipped"] = 1.0
            self.warn_once(
                "shell",
                f"at step {world.step} the potential is above the energy shell, so the momentum was not rescaled "
                "(c = 1); such steps are counted in `skipped_rescales`. Remedy: a smaller lr or larger batches.",
            )

    def _advance(self, loss: Any, settings: Settings) -> None:
        losses.refuse_part_of_loss(self)
        energy = self.energy
        try:
            super()._advance(loss, settings)
        except BaseException:
            self.energy = energy
            raise

    def energy_at(self, loss: float) -> float:
        """The energy here, given the loss here. At rest before the first step: with the momentum to come.

        Raises:
            LossBelowF0: there is none.
        """
        loss = float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
        active = [s for s in self._slots if s.parameter.requires_grad]
        world = flat.world_of(active, present(self), World([], loss, self.steps, carried=self.carried), counting=1)
        _refuse_below(world)
        return self.energy_of(world, "shell" not in self.carried and world.square("p") == 0)

    @property
    def skipped_rescales(self) -> int:
        """Steps (of those that the journal holds) at which the shell's |p|^2 was negative."""
        return sum("skipped" in entry.get("scalars", {}) for entry in self.journal.entries.values())


def potential(world: World) -> float:
    """D = F - F0, with the decay that is inside H."""
    inside = [p.square("q") * (0.5 * p["weight_decay"]) for p in world.parts if decays_inside(p)]
    return world.mean_loss + world.total(inside) - world.parts[0]["F0"]


def _refuse_below(world: World) -> None:
    """Raise LossBelowF0 where the potential is not above 0."""
    d, F0 = potential(world), world.parts[0]["F0"]
    if d <= 0:
        raise LossBelowF0(
            f"at step {world.step} the potential F - F0 is {d:g}: F = {d + F0:g} with decay, F0 = {F0:g}.",
            "set F0 below every loss that can be reached (for a mean cross entropy, 0 or less).",
        )


def decays_inside(part: Part) -> bool:
    """Whether the decay is part of H."""
    return bool(part["weight_decay"]) and not part["decoupled"]


def force(part: Part) -> torch.Tensor:
    """G = grad F, float64."""
    g = part.gradient
    return g.add(part.value("q"), alpha=part["weight_decay"]) if decays_inside(part) else g


def decoupled_decay(part: Part) -> float:
    """What decay outside H multiplies the parameters by."""
    return 1 - part["lr"] * part["weight_decay"] if part["decoupled"] else 1.0


def starts(world: World) -> bool:
    """Whether this is the step that the momentum starts at."""
    return "shell" in world.scalars


def downhill(part: Part, square: float, sign: float = 1.0) -> torch.Tensor:
    """A momentum along minus the gradient of the loss (without decay, as published), with |p|^2 = `square` in all.

    `sign` -1.0: uphill. ShellOutOfReach where the gradient is zero.
    """
    norm = scalar.sqrt(part.world.sum_of(lambda p: p.gradient.square()))
    if norm == 0:
        raise ShellOutOfReach(
            f"at step {part.world.step} the gradient is zero, so that the momentum has no direction to start in.",
            "start from parameters at which the loss has a gradient.",
        )
    return part.gradient * (-sign * scalar.sqrt(square) / norm)


def to_shell(shell_of: Callable[[World], float]) -> Callable[[World], float]:
    """The factor that puts the momentum on the energy shell, where `conserve` asks for it and the shell is there."""

    def factor(world: World) -> float:
        if not world.parts or world.parts[0]["conserve"] != "rescale" or "shell" not in world.carried:
            return 1.0
        target, present = shell_of(world), world.square("p")
        return scalar.sqrt(target / present) if target > 0 and present > 0 else 1.0

    return factor


def reachable(world: World, square: float, remedy: str) -> float:
    """The shell's |p|^2, if a float holds it; raises ShellOutOfReach."""
    if not square < math.inf:
        raise ShellOutOfReach(
            f"at step {world.step} the energy shell asks for a |p|^2 beyond any float: the potential fell to "
            f"{potential(world):g}.",
            remedy,
        )
    return square


Pairs = tuple[torch.Tensor, torch.Tensor]


def pairs(size: int, c: int) -> Pairs:
    """Pairs i, j with i + j = c modulo the size, i < j: disjoint, and all elements but two at most."""
    first = torch.arange(size)
    second = torch.remainder(c - first, size)
    keep = first < second
    return first[keep], second[keep]


def scatter(part: Part) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Pairs with c drawn anew each step, and normal angles of size nu sqrt(n), folded into +-pi/2."""
    if not part["nu"] or part.size < 2:
        return None
    draw = random.generator("scatter", part.world.seed, part.world.step, *part.block.key, part.start)
    first, second = pairs(part.size, int(draw.integers(part.size)))
    total = sum(p.size for p in part.world.parts)
    angle = part["nu"] * math.sqrt(total) * torch.from_numpy(draw.standard_normal(len(first)))
    folded = torch.remainder(angle + math.pi / 2, math.pi) - math.pi / 2
    device = part.integers("p").device
    return first.to(device), second.to(device), folded.to(device)
