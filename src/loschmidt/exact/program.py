"""Programs: a training step as a short list of invertible ops, from which the way back is derived.

A step is kicks (parameters stand still) and then drifts (momenta stand still). An op is declared once,
with a function of everything *except* its target; running it backwards, its bits and its range checks
follow from that. Adding an optimizer is writing two lists of ops.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..errors import LatticeOverflow, NonFinite
from . import fractions
from .lattice import largest, rounded
from .ops import contract_, rotate_, shear_, uncontract_
from .world import Part, World


class Op(Protocol):
    """One invertible operation. `undo` after `do` restores every bit, the tape's too."""

    target: str

    def do(self, world: World) -> None:
        """Go forward; raise with nothing changed if the step must be refused."""

    def undo(self, world: World) -> None:
        """Go back."""

    def price(self, part: Part) -> float:
        """Bits per element of the part, in theory (0.0 where only the data can tell)."""


@dataclass(frozen=True)
class Shear:
    """target += increment(part), rounded to the lattice. Free.

    `increment` returns float64 real units, shape (part.size,), from anything but the target; or None for nothing.
    `spare`: bits of room above the first update, where that chooses the lattice's resolution (see `make_room`).
    """

    target: str
    increment: Callable[[Part], torch.Tensor | None]
    spare: int = 0

    def do(self, world: World) -> None:
        """Add; nothing is changed if any part's increment is refused."""
        pieces = self._pieces(world)
        for part, units, peak in pieces:
            if not math.isfinite(peak):
                raise NonFinite(
                    f"{part.name_of(part.start + largest(units))}: at step {world.step} the update of "
                    f"{self.target!r} is not finite.",
                    "look at the loss and lr of this step.",
                )
        worst: dict[int, tuple[Part, torch.Tensor, float]] = {}
        for piece in pieces:
            key = id(piece[0].block)
            worst[key] = max(worst.get(key, piece), piece, key=lambda p: p[2])
        coarser = [world.make_room(p, self.target, peak, spare=self.spare, units=u) for p, u, peak in worst.values()]
        for part, units, peak in self._pieces(world) if any(coarser) else pieces:
            lattice = part.block.lattices[self.target]
            lattice.bound += peak
            shear_(part.integers(self.target), units)
        world.changed(self.target)

    def undo(self, world: World) -> None:
        """Subtract the same increments."""
        pieces = self._pieces(world)
        for part, _, peak in pieces:
            world.require_room_back(part, self.target, peak)
        for part, units, peak in pieces:
            part.block.lattices[self.target].bound += peak
            shear_(part.integers(self.target), units, -1)
        world.changed(self.target)
        world.refine_back(self.target)

    def _pieces(self, world: World) -> list[tuple[Part, torch.Tensor, float]]:
        """Increments in lattice units with their largest magnitude."""
        pieces = []
        for part in world.parts:
            f = self.increment(part)
            if f is not None:
                pieces.append((part, *rounded(f, part.block.lattices[self.target].exponent)))
        return pieces

    def price(self, part: Part) -> float:
        """A shear destroys nothing."""
        return 0.0


def _multiply(world: World, target: str, pairs_of: Callable[[Part], fractions.Factors]) -> None:
    chosen = [(part, pairs_of(part)) for part in world.parts]
    for part, pairs in chosen:
        growth = math.prod(max(1.0, n / d) for n, d in pairs)  # the largest intermediate, not just the product
        if growth > 1.0:
            world.make_room(part, target, 2.0 * len(pairs), growth)
    for part, pairs in chosen:
        lattice = part.block.lattices[target]
        for n, d in pairs:
            contract_(part.integers(target), part.start, part.block.lanes, n, d)
            shrinks = n < d and part.size == lattice.n.numel()
            lattice.bound = lattice.bound * (n / d if shrinks else max(1.0, n / d)) + 2
        if pairs:
            part.forget(target)


def _divide(world: World, target: str, pairs_of: Callable[[Part], fractions.Factors]) -> None:
    undone: list[tuple[Part, int, int]] = []
    try:
        for part in reversed(world.parts):
            lattice = part.block.lattices[target]
            for n, d in reversed(pairs_of(part)):
                world.require_room_back(part, target, -d / n, d / n)  # a contraction ends up to one unit too high
                uncontract_(part.integers(target), part.start, part.block.lanes, n, d)
                lattice.bound = lattice.bound * max(1.0, d / n) + 2
                undone.append((part, n, d))
                part.forget(target)
    except LatticeOverflow:
        for part, n, d in reversed(undone):
            contract_(part.integers(target), part.start, part.block.lanes, n, d)
        raise
    world.refine_back(target)


@dataclass(frozen=True)
class Contract:
    """target *= factor(part), remainders to the tape: log2(1/factor) bits an element.

    `factor` reads settings and counts only. It is met to 3e-7 of |1 - factor| by one or two small fractions.
    """

    target: str
    factor: Callable[[Part], float]

    def do(self, world: World) -> None:
        """Multiply."""
        _multiply(world, self.target, lambda part: fractions.factors(self.factor(part)))

    def undo(self, world: World) -> None:
        """Divide, taking the remainders back."""
        _divide(world, self.target, lambda part: fractions.factors(self.factor(part)))

    def price(self, part: Part) -> float:
        """-log2 of the fractions in use."""
        return fractions.bits(fractions.factors(self.factor(part)))


@dataclass(frozen=True)
class Rescale:
    """target *= factor(world) in all parts: a number that depends on the data, and is therefore recorded.

    It is met to 2**-44 by two small fractions and costs -log2(factor) bits an element, given back when the
    factor is above 1. `factor` may return 1.0, for nothing.
    """

    target: str
    factor: Callable[[World], float]
    name: str = "rescale"
    tolerance = 2.0**-46

    def do(self, world: World) -> None:
        """Multiply by the factor and record it."""
        c = self.factor(world)
        pairs = fractions.factors(c, self.tolerance)
        _multiply(world, self.target, lambda part: pairs)
        if c != 1.0:
            world.scalars[self.name] = c

    def undo(self, world: World) -> None:
        """Divide by the recorded factor."""
        pairs = fractions.factors(world.scalars.get(self.name, 1.0), self.tolerance)
        _divide(world, self.target, lambda part: pairs)

    def price(self, part: Part) -> float:
        """Known only from the data; see the tape."""
        return 0.0


Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
_GROWTH, _ROUNDING = 5.0, 4.0  # three shears by at most 1: |x| + |y|, then |y| + that, then |x| + that


@dataclass(frozen=True)
class Rotate:
    """Rotate disjoint pairs of the target's elements, part by part. Free.

    `pairs` returns index tensors (first, second), int64 within the part, and angles (float64 radians, at most
    pi/2), or None for nothing; it must not depend on the target.
    """

    target: str
    pairs: Callable[[Part], Pairs | None]

    def do(self, world: World) -> None:
        """Rotate; room is made for the longer coordinate first."""
        chosen = self._chosen(world)
        for part in {id(part.block): part for part, _ in chosen}.values():
            world.make_room(part, self.target, _ROUNDING, _GROWTH)
        self._turn(world, chosen, 1)

    def undo(self, world: World) -> None:
        """Rotate back."""
        chosen = self._chosen(world)
        for part, _ in chosen:
            world.require_room_back(part, self.target, _ROUNDING, _GROWTH)
        self._turn(world, chosen, -1)
        world.refine_back(self.target)

    def _chosen(self, world: World) -> list[tuple[Part, Pairs]]:
        chosen = [(part, self.pairs(part)) for part in world.parts]
        return [(part, pairs) for part, pairs in chosen if pairs is not None]

    def _turn(self, world: World, chosen: list[tuple[Part, Pairs]], sign: int) -> None:
        for part, (first, second, angle) in chosen:
            n = part.integers(self.target)
            x, y = n[first], n[second]
            rotate_(x, y, angle, sign)
            n[first], n[second] = x, y
            part.block.lattices[self.target].bound = math.inf
        world.changed(self.target)

    def price(self, part: Part) -> float:
        """A rotation destroys nothing."""
        return 0.0


def run(ops: Sequence[Op], world: World, offset: int = 0) -> None:
    """Do the ops in order; if one is refused, undo those before it and raise."""
    for i, op in enumerate(ops):
        world.position = offset + i
        try:
            op.do(world)
        except BaseException:
            world.refine_back(op.target)
            run_back(ops[:i], world, offset)
            raise


def run_back(ops: Sequence[Op], world: World, offset: int = 0) -> None:
    """Undo the ops, last first; if one cannot be undone, do those after it again and raise."""
    for i, op in reversed(list(enumerate(ops))):
        world.position = offset + i
        try:
            op.undo(world)
        except BaseException:
            run(ops[i + 1 :], world, offset + i + 1)
            raise


def lost_share(ops: Sequence[Op], world: World) -> tuple[float, str]:
    """Share of non-zero updates that are below half the resolution, and so move nothing: the largest, and of what.

    Shears with `spare` are left out: the resolution of their lattice follows from the data.
    """
    worst = 0.0, ""
    for op in ops:
        if isinstance(op, Shear) and not op.spare:
            moved = lost = 0
            for part in world.parts:
                f = op.increment(part)
                if f is not None:
                    units = f.abs() * 2.0 ** part.block.lattices[op.target].exponent
                    moved += int((units > 0).sum())
                    lost += int(((units > 0) & (units < 0.5)).sum())
            worst = max(worst, (lost / moved if moved else 0.0, op.target))
    return worst
