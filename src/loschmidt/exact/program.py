"""Programs: a training step as a short list of invertible ops, from which the way back is derived.

A step is kicks (parameters stand still) and then drifts (momenta stand still). An op is declared once,
with a function of everything *except* its target; running it backwards, its bits and its range checks
follow from that. Adding an optimizer is writing two lists of ops.

    World   one step: which parts take part, the loss, what is recorded
    Part    a contiguous run of a block that takes part: parameters with the same settings and step count
    Block   one flat buffer of lattices and its tape lanes
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..errors import LatticeOverflow, NonFinite
from . import fractions
from .digest import sum_of_squares
from .lattice import Lattice, rounded
from .ops import contract_, rotate_, shear_, uncontract_
from .tape import Lanes


@dataclass
class Block:
    """Flat integer state of `size` elements.

    Attributes:
        lattices: by name; "q" holds the parameters.
        lanes: the tape of this block.
        gradient: float64, shape (size,): this step's gradient; stale outside the kicks.
    """

    lattices: dict[str, Lattice]
    lanes: Lanes
    gradient: torch.Tensor


@dataclass
class Part:
    """Elements [start, stop) of a block, and what a formula may read of them.

    Attributes:
        settings: hyper-parameters of the step, by torch's names; also read as `part["lr"]`.
        count: how many steps these parameters have taken, this one included (1 at their first).
        name_of: names the parameter that holds an element of the block, for messages.
    """

    block: Block
    start: int
    stop: int
    settings: dict[str, Any]
    count: int
    world: "World"
    name_of: Callable[[int], str] = field(default=lambda i: f"element {i}")
    _cache: dict[str, torch.Tensor] = field(default_factory=dict)

    def __getitem__(self, setting: str) -> Any:
        return self.settings[setting]

    @property
    def size(self) -> int:
        """Elements of this part."""
        return self.stop - self.start

    @property
    def gradient(self) -> torch.Tensor:
        """Gradient of the loss, float64, shape (size,). Do not change it in place."""
        return self.block.gradient[self.start : self.stop]

    def value(self, name: str) -> torch.Tensor:
        """The float64 view of a lattice, shape (size,), computed once per change. Do not change it in place."""
        if name not in self._cache:
            self._cache[name] = self.block.lattices[name].value(self.start, self.stop)
        return self._cache[name]

    def square(self, name: str) -> torch.Tensor:
        """Sum of squares of a lattice's values, 0-dimensional float64."""
        key = f"|{name}|^2"
        if key not in self._cache:
            self._cache[key] = sum_of_squares(self.value(name))
        return self._cache[key]

    def integers(self, name: str) -> torch.Tensor:
        """The integers themselves, a view."""
        return self.block.lattices[name].n[self.start : self.stop]

    def forget(self, name: str) -> None:
        """Drop cached views of a lattice that changed."""
        self._cache.pop(name, None)
        self._cache.pop(f"|{name}|^2", None)


@dataclass
class World:
    """Everything that a step's ops may read, and what they record.

    Attributes:
        parts: what takes part in this step, in a fixed order.
        loss: the loss at the parameters before the step, or None.
        step: index of the step, 0 at the first.
        seed: key of random draws.
        scalars: data-dependent numbers that the way back needs, by name; recorded.
        coarsened: (op, block, bits) of lattices made coarser to hold a large value; recorded.
        fixed: names of lattices that must not be coarsened.
    """

    parts: list[Part]
    loss: float | None = None
    step: int = 0
    seed: int = 0
    scalars: dict[str, float] = field(default_factory=dict)
    coarsened: list[tuple[int, int, int]] = field(default_factory=list)
    fixed: frozenset[str] = frozenset({"q"})
    position: int = 0
    _totals: dict[str, float] = field(default_factory=dict)

    @property
    def blocks(self) -> list[Block]:
        """The blocks that take part, in order, each once."""
        return list({id(p.block): p.block for p in self.parts}.values())

    def total(self, terms: Sequence[torch.Tensor]) -> float:
        """Sum of 0-dimensional tensors over parts: the one place where a global scalar is made."""
        # exact: a fixed order of summation, in float64.
        return float(sum(t.cpu() for t in terms)) if terms else 0.0

    def square(self, name: str) -> float:
        """Sum of squares of a lattice over all parts, computed once per change."""
        if name not in self._totals:
            self._totals[name] = self.total([p.square(name) for p in self.parts])
        return self._totals[name]

    def changed(self, name: str) -> None:
        """Note that a lattice has new values."""
        self._totals.pop(name, None)
        for part in self.parts:
            part.forget(name)

    def make_room(
        self, block: Block, target: str, extra: float, growth: float = 1.0, who: Callable[[], str] = lambda: "momentum"
    ) -> bool:
        """Coarsen a lattice (a contraction by a power of two, on the tape) until |n| * growth + extra fits.

        Returns:
            Whether it had to.

        Raises:
            LatticeOverflow: where the lattice may not be coarsened, or could not hold the value even at resolution 1.
        """
        lattice, did = block.lattices[target], False
        while not lattice.has_room(extra, growth):
            reached = (lattice.bound * growth + extra) * 2.0**-lattice.exponent
            if target in self.fixed or not reached < lattice.limit:
                end = lattice.limit * 2.0**-lattice.exponent
                raise LatticeOverflow(
                    f"{who()}: at step {self.step} the update takes lattice {target!r} to {reached:.3g}, "
                    f"past its end at {end:.3g}.",
                    "lower lr (a diverging run needs this), clip the gradient, or pass a coarser resolution.",
                )
            bits = 1 if lattice.exponent < 3 else 3
            contract_(lattice.n, 0, block.lanes, 1, 1 << bits)
            lattice.exponent -= bits
            lattice.bound, extra, did = lattice.bound / 2**bits + 1, extra / 2**bits, True
            self.coarsened.append((self.position, self.blocks.index(block), bits))
            self.changed(target)
        return did

    def refine_back(self, target: str) -> None:
        """Undo what `make_room` did for the present op."""
        blocks = self.blocks
        while self.coarsened and self.coarsened[-1][0] == self.position:
            _, index, bits = self.coarsened.pop()
            lattice = blocks[index].lattices[target]
            uncontract_(lattice.n, 0, blocks[index].lanes, 1, 1 << bits)
            lattice.exponent += bits
            lattice.bound = math.inf
            self.changed(target)


def _worst(units: torch.Tensor) -> int:
    """Index of the largest or first non-finite element."""
    return int(torch.where(torch.isfinite(units), units.abs(), torch.inf).argmax())


class Op(Protocol):
    """One invertible operation. `undo` after `do` restores every bit, the tape's too."""

    target: str

    def do(self, world: World) -> None: ...
    def undo(self, world: World) -> None: ...
    def price(self, part: Part) -> float:
        """Bits per element of the part, in theory (0.0 where only the data can tell)."""


@dataclass(frozen=True)
class Shear:
    """target += increment(part), rounded to the lattice. Free.

    `increment` returns float64 real units, shape (part.size,), from anything but the target; or None for nothing.
    """

    target: str
    increment: Callable[[Part], torch.Tensor | None]

    def do(self, world: World) -> None:
        """Add; nothing is changed if any part's increment is refused."""
        pieces = self._pieces(world)
        for part, units, peak in pieces:
            if not math.isfinite(peak):
                raise NonFinite(
                    f"{part.name_of(part.start + _worst(units))}: at step {world.step} the update of "
                    f"{self.target!r} is not finite.",
                    "look at the loss and lr of this step.",
                )
        coarser = [
            world.make_room(p.block, self.target, peak, who=lambda p=p, u=u: p.name_of(p.start + _worst(u)))
            for p, u, peak in pieces
        ]
        for part, units, peak in self._pieces(world) if any(coarser) else pieces:
            lattice = part.block.lattices[self.target]
            lattice.bound += peak
            shear_(part.integers(self.target), units)
        world.changed(self.target)

    def undo(self, world: World) -> None:
        """Subtract the same increments."""
        for part, units, peak in self._pieces(world):
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
            world.make_room(part.block, target, 2.0 * len(pairs), growth)
    for part, pairs in chosen:
        lattice = part.block.lattices[target]
        for n, d in pairs:
            contract_(part.integers(target), part.start, part.block.lanes, n, d)
            shrinks = n < d and part.size == lattice.n.numel()
            lattice.bound = lattice.bound * (n / d if shrinks else max(1.0, n / d)) + 2
    world.changed(target)


def _divide(world: World, target: str, pairs_of: Callable[[Part], fractions.Factors]) -> None:
    for part in reversed(world.parts):
        for n, d in reversed(pairs_of(part)):
            uncontract_(part.integers(target), part.start, part.block.lanes, n, d)
        part.block.lattices[target].bound = math.inf
    world.changed(target)
    world.refine_back(target)


@dataclass(frozen=True)
class Contract:
    """target *= factor(part), remainders to the tape: log2(1/factor) bits an element.

    `factor` reads settings and counts only. It is met to 1e-7 of |1 - factor| by one or two small fractions.
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
        world.scalars[self.name] = c

    def undo(self, world: World) -> None:
        """Divide by the recorded factor."""
        pairs = fractions.factors(world.scalars[self.name], self.tolerance)
        _divide(world, self.target, lambda part: pairs)

    def price(self, part: Part) -> float:
        """Known only from the data; see the tape."""
        return 0.0


@dataclass(frozen=True)
class Rotate:
    """Rotate disjoint pairs of the target's elements, part by part. Free.

    `pairs` returns index tensors (first, second), int64 within the part, and angles (float64 radians, at most
    pi/2), or None for nothing; it must not depend on the target.
    """

    target: str
    pairs: Callable[[Part], tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None]

    def do(self, world: World) -> None:
        """Rotate; room is made for the longer coordinate first."""
        for block in world.blocks:
            world.make_room(block, self.target, 4.0, growth=5.0)  # three shears: |x|, then |y|, then |x| again
        self._turn(world, 1)

    def undo(self, world: World) -> None:
        """Rotate back."""
        self._turn(world, -1)
        world.refine_back(self.target)

    def _turn(self, world: World, sign: int) -> None:
        for part in world.parts:
            chosen = self.pairs(part)
            if chosen is not None:
                first, second, angle = chosen
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
    """Undo the ops, last first."""
    for i, op in reversed(list(enumerate(ops))):
        world.position = offset + i
        op.undo(world)
