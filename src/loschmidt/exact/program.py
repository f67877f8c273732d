"""Programs: a training step as a short list of invertible ops, from which the way back is derived.

A step is kicks (parameters stand still) and then drifts (momenta stand still). An op is declared once, with a function
of everything *except* its target; running it backwards, its bits and its range checks follow from that. Adding an
optimizer is writing two lists of ops.

A `Contract` needs a `Shear` of the same lattice after it, which makes room where units have become too small.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import InvalidSetting, LatticeOverflow
from .kernels.trace import Trace, TracedPart, Untraceable, Value
from .lattice import peaks
from .ops import TooLarge, coarsen, refine, room, rotate_, unroom
from .tape import by_rows, halved_bits, pop_all
from .units import SMALLEST, log2_of
from .world import Part, World


class Op(Protocol):
    """One invertible operation."""

    target: str
    needs: tuple[str, ...]

    def price(self, part: Part) -> float:
        """Bits per element of the part, in theory (0.0 where only the data can tell)."""


class Walked(Op, Protocol):
    """An op that is done element by element, together with its neighbours (`passes`)."""

    def trace(self, part: Part, trace: Trace, forward: bool, position: int) -> bool:
        """What it does to one element of a part; whether its formula was understood."""


class Alone(Op, Protocol):
    """An op that needs all parts at once. `undo` after `do` restores every bit, the tape's too."""

    def do(self, world: World) -> None:
        """Go forward; raise with nothing changed if the step must be refused."""

    def undo(self, world: World) -> None:
        """Go back."""


@dataclass(frozen=True)
class Shear:
    """target += increment(part), rounded to the lattice. Free, but for rows that grow: a bit for each factor of 2.

    `increment` returns real units, shape (part.size,), from anything but the target; or None for nothing, which leaves an
    empty record, so that the way back need not know it beforehand.
    `dithered`: rounded down after a number in [0, 1) was added that only place, step and seed decide: unbiased where
    updates are below the resolution.
    `needs`: lattices whose sum of squares over all parts it reads.
    `cause`: what an energy ledger books it under, where kind and target do not say it ("kick", "drift").
    """

    target: str
    increment: Callable[[Part], torch.Tensor | None]
    dithered: bool = False
    needs: tuple[str, ...] = ()
    cause: str = ""

    def trace(self, part: Part, trace: Trace, forward: bool, position: int) -> bool:
        """Its formula, and the rounded addition."""
        known = len(trace.instructions)
        try:
            f: Any = self.increment(TracedPart(part, trace))
            if f is None:
                trace.idle.append(position)
                return True
            if not isinstance(f, Value):
                raise Untraceable(type(f).__name__)
            reads = [k for k, i in enumerate(trace.instructions) if i[0] == "value" and i[1] == self.target]
            if reads and not _inputs(trace, f.name).isdisjoint(f"%{k}" for k in reads):
                raise InvalidSetting(
                    f"the update of {self.target!r} reads {self.target!r} itself, so that the step has no inverse.",
                    "let it read other lattices, gradient and settings only.",
                )
            name, understood = f.name, True
        except (Untraceable, TypeError, RuntimeError):  # torch functions, float(), comparisons
            trace.forget(known)
            f = self.increment(part)
            if f is None:
                trace.idle.append(position)
                return True
            trace.given.append(f)
            name, understood = trace.emit("given", len(trace.given) - 1), False
        trace.shear(self.target, name, 1 if forward else -1, self.dithered, position)
        return understood

    def price(self, part: Part) -> float:
        """A shear destroys nothing."""
        return 0.0


def _inputs(trace: Trace, name: str) -> set[str]:
    """A register, and all that it is made of."""
    found, todo = set(), [name]
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += [x for x in trace.instructions[int(one[1:])] if isinstance(x, str) and x.startswith("%")]
    return found


@dataclass(frozen=True)
class Contract:
    """target *= factor(part), by a change of unit: log2(1/factor) bits an element, which halvings pay.

    `factor` reads settings and counts only; 2**-30 or more, in size.
    """

    target: str
    factor: Callable[[Part], float]
    needs = ()

    def trace(self, part: Part, trace: Trace, forward: bool, position: int) -> bool:
        """An addition to the logarithms of the units."""
        log = log2_of(usable(self.factor(part), self.target))
        trace.scale(self.target, log if forward else -log)
        return True

    def price(self, part: Part) -> float:
        """-log2 of the factor."""
        return -math.log2(abs(self.factor(part)))


def usable(factor: float, target: str) -> float:
    """A factor, if it has an inverse here."""
    if not (math.isfinite(factor) and abs(factor) >= SMALLEST):
        raise InvalidSetting(
            f"{target!r} would be multiplied by {factor:g}, and only sizes of 2**-30 and more have an inverse.",
            "use a larger factor (a smaller lr or weight_decay, a larger momentum).",
        )
    return factor


@dataclass(frozen=True)
class Rescale:
    """target *= factor(world) in all parts: a number that depends on the data, and is therefore recorded.

    It costs -log2|factor| bits an element, given back when the factor is above 1: rows whose unit has grown beyond
    their resolution are refined, with bits from the tape. `factor` may return 1.0, for nothing; one below 0 reverses
    the target, too, which is free. It may also return a list: a factor for each parameter, in the order of
    `World.parts` and their `tensors`.
    """

    target: str
    factor: Callable[[World], float | list[float]]
    name: str = "rescale"
    needs: tuple[str, ...] = ()

    def do(self, world: World) -> None:
        """Multiply by the factor and record it."""
        if not {self.name, f"{self.name} 0"} & world.scalars.keys():
            c = self.factor(world)
            if isinstance(c, list):
                world.scalars.update({f"{self.name} {i}": usable(x, self.target) for i, x in enumerate(c)})
            elif c != 1.0:
                world.scalars[self.name] = usable(c, self.target)
        for part, factors in self._factors(world):
            lattice = part.block.lattices[self.target]
            self._scale(part, factors, 1)
            counts = np.zeros(len(part.lengths), np.int16)
            if max(map(abs, factors)) > 1.0:
                counts = refine(lattice, part.rows_at, part.block.stack)
                lattice.pushed += halved_bits(counts, part.lengths // 8 * 8)
            part.block.stack.push(counts, np.empty(0, np.uint8))

    def undo(self, world: World) -> None:
        """Divide by the recorded factor."""
        chosen = self._factors(world)[::-1]
        popped = pop_all([(part.block.stack, part.lengths) for part, _ in chosen])
        for (part, factors), (counts, _) in zip(chosen, popped, strict=True):
            lattice = part.block.lattices[self.target]
            coarsen(lattice, part.rows_at, counts, part.block.stack)
            lattice.pushed -= halved_bits(counts, part.lengths // 8 * 8)
            self._scale(part, factors, -1)

    def _scale(self, part: Part, factors: list[float], sign: int) -> None:
        lattice, (first, last) = part.block.lattices[self.target], part.tensors_at
        for i, c in zip(range(first, last), factors, strict=True):
            lattice.logs[i] += sign * log2_of(c)
            if c < 0:
                rows = part.block.rows
                lattice.n[int(rows.tensors[i]) : int(rows.tensors[i + 1])].neg_()

    def _factors(self, world: World) -> list[tuple[Part, list[float]]]:
        """Parts, each with the recorded factors of its tensors; nothing, where there was none."""
        if f"{self.name} 0" in world.scalars:
            out, at = [], 0
            for part in world.parts:
                count = part.tensors_at[1] - part.tensors_at[0]
                out.append((part, [world.scalars[f"{self.name} {at + i}"] for i in range(count)]))
                at += count
            return out
        c = world.scalars.get(self.name, 1.0)
        return [(p, [c] * (p.tensors_at[1] - p.tensors_at[0])) for p in world.parts] if c != 1.0 else []

    def price(self, part: Part) -> float:
        """Known only from the data; see the tape."""
        return 0.0


Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
_GROWTH, _ROUNDING = 5.0, 4.0  # three shears by at most 1: |x| + |y|, then |y| + that, then |x| + that


@dataclass(frozen=True)
class Rotate:
    """Rotate pairs of the target's elements: pairs(part) gives (first, second, angle), or None for nothing. Free.

    Indices within the part, int64, no element twice; angles float64, at most pi/2 in magnitude.
    """

    target: str
    pairs: Callable[[Part], Pairs | None]
    needs: tuple[str, ...] = ()

    def do(self, world: World) -> None:
        """Rotate, after room was made for what a row can take over from any other."""
        done: list[Part] = []
        try:
            for part, pairs in self._chosen(world):
                lattice, (first, last) = part.block.lattices[self.target], part.rows_at
                most = np.full(last - first, _GROWTH * self._largest(part))
                counts, planes = room(lattice, part.rows_at, most, torch.float64)
                part.block.stack.push(counts, planes)
                lattice.pushed += halved_bits(counts, part.lengths)
                self._turn(part, pairs, 1)
                done.append(part)
        except TooLarge:
            self._undo(done, world)
            raise

    def undo(self, world: World) -> None:
        """Rotate back."""
        for part, _ in self._chosen(world):
            lattice = part.block.lattices[self.target]
            if _GROWTH * self._largest(part) / lattice.units(*part.rows_at).min() > 2.0 * lattice.limit - 8:
                raise LatticeOverflow(
                    f"{part.name_of(part.start)}: undoing step {world.step} takes lattice {self.target!r} past its "
                    "end: this is not the path that was recorded.",
                    "stop here, or go back from a smaller perturbation.",
                )
        self._undo([part for part, _ in self._chosen(world)], world)

    def _undo(self, parts: list[Part], world: World) -> None:
        chosen = dict((id(part), pairs) for part, pairs in self._chosen(world))
        popped = pop_all([(part.block.stack, part.lengths) for part in parts[::-1]])
        for part, (counts, planes) in zip(parts[::-1], popped, strict=True):
            lattice = part.block.lattices[self.target]
            self._turn(part, chosen[id(part)], -1)
            unroom(lattice, part.rows_at, counts, by_rows(counts, part.lengths, planes))
            lattice.pushed -= halved_bits(counts, part.lengths)

    def _chosen(self, world: World) -> list[tuple[Part, Pairs]]:
        chosen = [(part, self.pairs(part)) for part in world.parts]
        return [(part, pairs) for part, pairs in chosen if pairs is not None]

    def _largest(self, part: Part) -> float:
        starts = np.concatenate([[0], np.cumsum(part.lengths)])
        lattice = part.block.lattices[self.target]
        return float((peaks(part.integers(self.target), starts) * lattice.units(*part.rows_at)).max())

    def _turn(self, part: Part, pairs: Pairs, sign: int) -> None:
        first, second, angle = pairs
        n, lattice = part.integers(self.target), part.block.lattices[self.target]
        u = part.block.rows.spread(lattice.units(*part.rows_at), *part.rows_at, part.block.device)
        x, y = n[first], n[second]
        rotate_(x, y, u[second] / u[first], angle, sign)
        n[first], n[second] = x, y
        lattice.bound[slice(*part.rows_at)] = np.inf

    def price(self, part: Part) -> float:
        """A rotation destroys nothing."""
        return 0.0
