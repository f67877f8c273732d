"""What a pass's instructions do to each lattice, found once for all steps that have the same instructions."""

import functools
import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .tape import in_one_go, pads

if TYPE_CHECKING:
    from .trace import Instruction

NEAR = 2.0**48
"""Near lattices start a pass within this, and so are their updates."""

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Course:
    """The part of the instructions that moves lattices.

    Attributes:
        reads_gradient: whether any of them does.
        shape: all instructions, exchanges without their n and d.
        moves: peaks, exchanges and shears, in order.
        pairs: n and d of each lattice's exchanges, in order.
        shears: the numbers of its shears' peaks.
        growth: product of what its exchanges multiply by, where that is above 1.
        shrinking: the same of their inverses.
        nearly: lattices whose arithmetic is exact in float64, if they start near.
    """

    reads_gradient: bool
    shape: "tuple[Instruction, ...]"
    moves: "tuple[Instruction, ...]"
    pairs: dict[str, Pairs] = field(default_factory=dict)
    shears: dict[str, tuple[int, ...]] = field(default_factory=dict)
    growth: dict[str, float] = field(default_factory=dict)
    shrinking: dict[str, float] = field(default_factory=dict)
    nearly: set[str] = field(default_factory=set)


@functools.lru_cache(128)  # a schedule of a decay makes new ones
def course(instructions: "tuple[Instruction, ...]") -> Course:
    """Of these instructions; see `trace`."""
    moves = tuple(i for i in instructions if i[0] in ("peak", "exchange", "shear"))
    shape = tuple(i[:2] if i[0] == "exchange" else i for i in instructions)
    out = Course(("gradient",) in instructions, shape, moves)
    for name in dict.fromkeys(i[1] for i in moves if i[0] != "peak"):
        pairs = tuple(i[2:] for i in moves if i[:2] == ("exchange", name))
        shears = tuple(i[4] for i in moves if i[:2] == ("shear", name))
        out.pairs[name], out.shears[name] = pairs, shears
        out.growth[name] = math.prod(max(1.0, n / d) for n, d in pairs)
        out.shrinking[name] = math.prod(max(1.0, d / n) for n, d in pairs)
        reach = (1 + len(shears)) * math.prod(max(n, d) / min(n, d) for n, d in pairs) * NEAR
        if all(abs(n - d) <= 1 for n, d in pairs) and reach < 2.0**51:
            out.nearly.add(name)
    return out


@functools.lru_cache(128)
def exchanges(done: Course, apart: bool, forward: bool) -> tuple[tuple[bool, Pairs], ...]:
    """What is done to lanes a row, each fraction as it is on the way forward; and whether these are the lanes of "q".

    `apart`: whether "q" has lanes of its own.
    """
    used: dict[bool, list[tuple[int, int]]] = {}
    for op, name, *pair in done.moves:
        if op == "exchange":
            used.setdefault(apart and name == "q", []).append(tuple(pair))
    if not forward:
        used = {of_q: [(d, n) for n, d in reversed(pairs)] for of_q, pairs in used.items()}
    return tuple((of_q, tuple(pairs)) for of_q, pairs in used.items())


@functools.lru_cache(128)
def fits_between_rows(pairs: Pairs) -> bool:
    """Whether the tape's words need not move while these are done to a row, each fraction as on the way forward."""
    return in_one_go(pairs) and all(itertools.starmap(pads, pairs))
