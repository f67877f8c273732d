"""A step's program done again in floats, op by op, beside the integers: to see what each op did.

The run itself is not touched: it may do several ops in one walk over memory, and its tape has their remainders in that
order. The floats end where the integers do, up to a few lattice units.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..exact import Contract, Op, Part, Rescale, Rotate, Shear, World, sum_of, sum_of_squares
from ..optim import ReversibleOptimizer, flat
from ..optim.flat import Slot

Values = dict[int, dict[str, torch.Tensor]]


@dataclass
class ShadowPart(Part):
    """A part whose values are floats of its own.

    Attributes:
        values: by lattice, float64, shape (size,). Replaced, never changed in place.
        grad: gradient, float64, shape (size,).
        memo: what a law computed from the momenta, until they change.
        squares: sums of squares, until values change.
    """

    values: dict[str, torch.Tensor] = field(default_factory=dict)
    grad: torch.Tensor | None = None
    memo: dict[str, Any] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)

    @property
    def gradient(self) -> torch.Tensor:
        """Gradient of the loss."""
        return self.grad

    def value(self, name: str, plus: int = 0) -> torch.Tensor:
        """The values of a lattice. `plus` is for lattices' units, which these have none of."""
        return self.values[name]

    def square(self, name: str) -> float:
        """Sum of squares."""
        if name not in self.squares:
            self.squares[name] = float(sum_of_squares(self.values[name]))
        return self.squares[name]

    def sum_of(self, formula: Callable[[Part], torch.Tensor]) -> float:
        """Sum of a formula over the elements."""
        return float(sum_of(formula(self)))

    def put(self, name: str, values: torch.Tensor) -> None:
        """Other values."""
        self.values = self.values | {name: values}
        self.squares.pop(name, None)
        if name != "q":
            self.memo.clear()

    @property
    def tensors(self) -> list[Part]:
        """A part for each parameter."""
        first, ends = self.tensors_at[0], self.block.rows.tensors
        out = []
        for i in range(*self.tensors_at):
            part = ShadowPart(self.block, (i, i + 1), self.settings, self.count, self.world, self.name_of)
            own = slice(int(ends[i] - ends[first]), int(ends[i + 1] - ends[first]))
            part.values = {k: v[own] for k, v in self.values.items()}
            part.grad = None if self.grad is None else self.grad[own]
            out.append(part)
        return out

    def twin(self, world: World, settings: dict[str, Any], count: int) -> "ShadowPart":
        """The same values under other settings."""
        part = ShadowPart(self.block, self.tensors_at, settings, count, world, self.name_of)
        part.values, part.grad, part.squares = self.values, self.grad, self.squares
        return part


def values_of(opt: ReversibleOptimizer) -> Values:
    """The float view of all lattices, by block: a copy, 8 bytes an element and lattice."""
    return {
        id(block): {name: lattice.value() for name, lattice in block.lattices.items()}
        for block, _ in flat.by_block(opt._slots)
    }


def world_of(
    opt: ReversibleOptimizer,
    slots: Sequence[Slot],
    values: Values,
    settings: Sequence[dict[str, Any]],
    counting: int,
    *,
    step: int,
    loss: float | None,
    scalars: dict[str, float] | None = None,
    gradients: bool = True,
) -> World:
    """A world of `ShadowPart`s. Gradients are those in `.grad`. Arguments as of `optim.flat.world_of`."""
    world = World([], loss, step, opt.seed, dict(scalars or {}), carried=opt.carried)
    parts = []
    for part in flat.world_of(slots, settings, world, counting).parts:
        mine = ShadowPart(part.block, part.tensors_at, part.settings, part.count, world, part.name_of)
        mine.values = {k: v[part.start : part.stop] for k, v in values[id(part.block)].items()}
        if gradients:
            grads = [s.parameter.grad.detach().reshape(-1) for s in slots_of(part, slots)]
            mine.grad = torch.cat(grads).to(torch.float64)
        parts.append(mine)
    world.parts = parts
    return world


def slots_of(part: Part, slots: Sequence[Slot]) -> list[Slot]:
    """Those of the slots that lie in a part, in order."""
    return [s for s in slots if s.block is part.block and part.start <= s.start and s.stop <= part.stop]


def apply(op: Op, world: World) -> tuple[bool, float]:
    """Do an op on the floats.

    Returns:
        Whether it did anything, and the bits that it puts on the tape, in theory.
    """
    parts: list[ShadowPart] = world.parts
    if isinstance(op, Shear):
        found = [(part, op.increment(part)) for part in parts]  # all of them, before any part moves
        for part, f in found:
            if f is not None:
                part.put(op.target, part.value(op.target) + f)
        return any(f is not None for _, f in found), 0.0
    if isinstance(op, Contract):
        cost, did = 0.0, False
        for part in parts:
            c = op.factor(part)
            if c != 1.0:
                part.put(op.target, part.value(op.target) * c)
                cost, did = cost - math.log2(abs(c)) * part.size, True
        return did, cost
    if isinstance(op, Rescale):
        return _rescale(op, world)
    if isinstance(op, Rotate):
        found = [(part, op.pairs(part)) for part in parts]
        for part, pairs in found:
            if pairs is not None:
                first, second, angle = pairs
                x, c, s = part.value(op.target).clone(), torch.cos(angle), torch.sin(angle)
                x[first], x[second] = c * x[first] - s * x[second], s * x[first] + c * x[second]
                part.put(op.target, x)
        return any(pairs is not None for _, pairs in found), 0.0
    return False, 0.0


def _rescale(op: Rescale, world: World) -> tuple[bool, float]:
    """Multiply by the recorded factor, or by that of each parameter; one below 0 turns round, too, for no bits."""
    cost, did, number = 0.0, False, 0
    each = f"{op.name} 0" in world.scalars
    parts: list[ShadowPart] = world.parts
    for part in parts:
        pieces = []
        for piece in part.tensors if each else [part]:
            c = world.scalars.get(f"{op.name} {number}" if each else op.name, 1.0)
            number += 1
            pieces.append(piece.value(op.target) * c)
            cost -= math.log2(abs(c)) * piece.size
            did |= c != 1.0
        part.put(op.target, torch.cat(pieces))
    return did, cost
