"""Programs: a training step as a short list of invertible ops, from which the way back is derived.

A step is kicks (parameters stand still) and then drifts (momenta stand still). An op is declared once,
with a function of everything *except* its target; running it backwards, its bits and its range checks
follow from that. Adding an optimizer is writing two lists of ops.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from ..errors import LatticeOverflow, NonFinite
from . import fractions
from .lattice import largest, rounded
from .ops import contract_, rotate_, shear_, uncontract_
from .trace import Trace, TracedPart, Untraceable, Value
from .world import Part, World


class Op(Protocol):
    """One invertible operation. `undo` after `do` restores every bit, the tape's too."""

    target: str
    needs: tuple[str, ...]

    def do(self, world: World) -> None:
        """Go forward; raise with nothing changed if the step must be refused."""

    def undo(self, world: World) -> None:
        """Go back."""

    def trace(self, part: TracedPart, trace: Trace, forward: bool) -> None:
        """What it does to one element of a part; raises Untraceable."""

    def price(self, part: Part) -> float:
        """Bits per element of the part, in theory (0.0 where only the data can tell)."""


@dataclass(frozen=True)
class Shear:
    """target += increment(part), rounded to the lattice. Free.

    `increment` returns float64 real units, shape (part.size,), from anything but the target; or None for nothing.
    `spare`: bits of room above the first update, where that chooses the lattice's resolution (see `make_room`).
    `needs`: lattices whose sum of squares over all parts it reads.
    `cause`: what an energy ledger books it under, where kind and target do not say it ("kick", "drift").
    """

    target: str
    increment: Callable[[Part], torch.Tensor | None]
    spare: int = 0
    needs: tuple[str, ...] = ()
    cause: str = ""

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
        for part in world.singly:
            f = self.increment(part)
            if f is not None:
                pieces.append((part, *rounded(f, part.block.lattices[self.target].exponent)))
        return pieces

    def trace(self, part: TracedPart, trace: Trace, forward: bool) -> None:
        """Its formula, and the rounded addition."""
        f = self.increment(part)
        if f is None:
            return
        if not isinstance(f, Value):
            raise Untraceable(type(f).__name__)
        units = f.mul(2.0 ** part.exponent(self.target)).applied()
        trace.shear(self.target, units, 1 if forward else -1)

    def price(self, part: Part) -> float:
        """A shear destroys nothing."""
        return 0.0


Chosen = list[tuple[Part, fractions.Factors]]


def _multiply(world: World, target: str, chosen: Chosen) -> None:
    for part, pairs in chosen:
        growth = math.prod(max(1.0, n / d) for n, d in pairs)  # the largest intermediate, not just the product
        if growth > 1.0:
            world.make_room(part, target, 2.0 * len(pairs), growth)
    for part, pairs in chosen:
        lattice = part.block.lattices[target]
        for n, d in pairs:
            contract_(part.integers(target), part.start, part.block.lanes_of(target), n, d, lattice.bound)
            shrinks = n < d and part.size == lattice.n.numel()
            lattice.bound = lattice.bound * (n / d if shrinks else max(1.0, n / d)) + 2
        if pairs:
            part.forget(target)


def _divide(world: World, target: str, chosen: Chosen) -> None:
    undone: list[tuple[Part, int, int]] = []
    try:
        for part, pairs in reversed(chosen):
            lattice = part.block.lattices[target]
            for n, d in reversed(pairs):
                world.require_room_back(part, target, -d / n, d / n)  # a contraction ends up to one unit too high
                uncontract_(part.integers(target), part.start, part.block.lanes_of(target), n, d, lattice.bound)
                lattice.bound = lattice.bound * max(1.0, d / n) + 2
                undone.append((part, n, d))
                part.forget(target)
    except LatticeOverflow:
        for part, n, d in reversed(undone):
            contract_(part.integers(target), part.start, part.block.lanes_of(target), n, d)
        raise
    world.refine_back(target)


@dataclass(frozen=True)
class Contract:
    """target *= factor(part), remainders to the tape: log2(1/factor) bits an element.

    `factor` reads settings and counts only. It is met to 3e-7 of |1 - factor| by one or two small fractions.
    """

    target: str
    factor: Callable[[Part], float]
    needs = ()

    def do(self, world: World) -> None:
        """Multiply."""
        _multiply(world, self.target, [(part, self.pairs(part)) for part in world.singly])

    def undo(self, world: World) -> None:
        """Divide, taking the remainders back."""
        _divide(world, self.target, [(part, self.pairs(part)) for part in world.singly])

    def pairs(self, part: Part | TracedPart) -> fractions.Factors:
        """The factor as fractions."""
        return fractions.factors(self.factor(part))

    def trace(self, part: TracedPart, trace: Trace, forward: bool) -> None:
        """One exchange a fraction."""
        trace.exchanges(self.target, self.pairs(part), forward)

    def price(self, part: Part) -> float:
        """-log2 of the fractions in use."""
        return fractions.bits(self.pairs(part))


@dataclass(frozen=True)
class Rescale:
    """target *= factor(world) in all parts: a number that depends on the data, and is therefore recorded.

    It is met to 2**-44 by two small fractions and costs -log2|factor| bits an element, given back when the
    factor is above 1. `factor` may return 1.0, for nothing; one below 0 reverses the target, too, which is free.
    It may also return a list: a factor for each parameter, in the order of `World.parts` and their `tensors`.
    """

    target: str
    factor: Callable[[World], float | list[float]]
    name: str = "rescale"
    needs: tuple[str, ...] = ()
    tolerance = 2.0**-46

    def do(self, world: World) -> None:
        """Multiply by the factor and record it."""
        if not {self.name, f"{self.name} 0"} & world.scalars.keys():
            c = self.factor(world)
            if isinstance(c, list):
                world.scalars.update({f"{self.name} {i}": x for i, x in enumerate(c)})
            elif c != 1.0:
                world.scalars[self.name] = c
        factors = self._factors(world)
        if factors:
            _multiply(world, self.target, self._pairs(factors))
            self._reverse(world, factors)

    def undo(self, world: World) -> None:
        """Divide by the recorded factor."""
        factors = self._factors(world)
        self._reverse(world, factors)
        try:
            _divide(world, self.target, self._pairs(factors))
        except LatticeOverflow:
            self._reverse(world, factors)
            raise

    def _factors(self, world: World) -> list[tuple[Part, float]]:
        """Parts, or parameters, each with its recorded factor."""
        scalars = world.scalars
        if f"{self.name} 0" in scalars:
            tensors = [tensor for part in world.singly for tensor in part.tensors]
            return [(tensor, scalars[f"{self.name} {i}"]) for i, tensor in enumerate(tensors)]
        c = scalars.get(self.name, 1.0)
        return [(part, c) for part in world.singly] if c != 1.0 else []

    def _pairs(self, factors: list[tuple[Part, float]]) -> Chosen:
        return [(part, fractions.factors(abs(c), self.tolerance)) for part, c in factors]

    def _reverse(self, world: World, factors: list[tuple[Part, float]]) -> None:
        for part, c in factors:
            if c < 0:
                part.integers(self.target).neg_()
        if factors:
            world.changed(self.target)

    def trace(self, part: TracedPart, trace: Trace, forward: bool) -> None:
        """Not traced: what a rescaling in two fractions does to a row depends on the order of the rows."""
        raise Untraceable(self.name)

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
    needs = ()

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
        chosen = [(part, self.pairs(part)) for part in world.singly]
        return [(part, pairs) for part, pairs in chosen if pairs is not None]

    def _turn(self, world: World, chosen: list[tuple[Part, Pairs]], sign: int) -> None:
        for part, (first, second, angle) in chosen:
            n = part.integers(self.target)
            x, y = n[first], n[second]
            rotate_(x, y, angle, sign)
            n[first], n[second] = x, y
            part.block.lattices[self.target].bound = math.inf
        if chosen:
            world.changed(self.target)

    def trace(self, part: TracedPart, trace: Trace, forward: bool) -> None:
        """Not traced: it takes elements from anywhere."""
        raise Untraceable("Rotate")

    def price(self, part: Part) -> float:
        """A rotation destroys nothing."""
        return 0.0
