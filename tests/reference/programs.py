"""Random programs of random ops on random blocks: run some steps forward, then back, and compare every bit.

A program is a function of its seed. It holds one to three blocks of 3 to 20 elements (int64 or int32, one lane an
element or fewer), each cut into parts of which some sit out a step, and one to four ops of any kind in any order.
Some gradients are huge, so that lattices (zero at first, or not) are coarsened on demand; now and then a step is
refused, and must then have changed nothing.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from loschmidt.errors import LoschmidtError
from loschmidt.exact import (
    Block,
    Contract,
    Lanes,
    Lattice,
    Op,
    Part,
    Rescale,
    Rotate,
    Shear,
    World,
    run,
    run_back,
    tape,
)

from .bits import flip, flip_float, flip_word

NAMES = ("a", "b", "c")


@dataclass
class Program:
    """Ops, blocks, and what each step left behind for its undoing: scalars, coarsenings, and whether it was taken."""

    seed: int
    ops: list[Op]
    blocks: list[Block]
    steps: int
    records: list[tuple[dict, list, bool]] = field(default_factory=list)
    events: Counter = field(default_factory=Counter)  # what happened on the way out

    def world(self, step: int, scalars: dict | None = None, coarsened: list | None = None) -> World:
        """The same parts, settings and gradients at every call with this step."""
        draw = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        world = World([], step=step, fixed=frozenset({"a"}), scalars=scalars or {}, coarsened=coarsened or [])
        for block in self.blocks:
            size = len(block.gradient)
            huge = 2.0 ** draw.integers(20, 45) if draw.random() < 0.1 else 1.0
            block.gradient.copy_(torch.from_numpy(draw.standard_normal(size) * huge))
            cuts = sorted({0, size, *draw.integers(0, size, 2).tolist()})
            for start, stop in itertools.pairwise(cuts):
                if draw.random() < 0.8:
                    settings = {"c": float(draw.uniform(0.05, 1.0)), "scale": float(draw.standard_normal())}
                    world.parts.append(Part(block, start, stop, settings, step, world))
        return world

    def forward(self) -> None:
        for step in range(self.steps):
            world, before = self.world(step), self.bits()
            try:
                run(self.ops, world)
                self.records.append((world.scalars, world.coarsened, True))
            except LoschmidtError:
                self.records.append(({}, [], False))
                if not all(map(torch.equal, before, self.bits())):
                    raise AssertionError(f"program {self.seed}: a refused step changed something") from None

    def back(self) -> None:
        for step in reversed(range(self.steps)):
            scalars, coarsened, taken = self.records[step]
            if taken:
                run_back(self.ops, self.world(step, dict(scalars), list(coarsened)))

    def bits(self) -> list[torch.Tensor]:
        """Every integer of the state and the tape."""
        out = []
        for block in self.blocks:
            lanes = block.lanes
            out += [lattice.n.clone() for lattice in block.lattices.values()]
            out += [lanes.heads.to(torch.int64), torch.from_numpy(lanes.stack.since(0).astype(np.int64))]
            exponents = [lattice.exponent for lattice in block.lattices.values()]
            out.append(torch.tensor([*exponents, lanes.low, lanes.high, lanes.index, lanes.borrowed, len(lanes.moves)]))
        return out

    def returns(self, damage: int | None = None) -> bool | None:
        """Forward and back: is every bit what it was?

        Args:
            damage: flip one bit at the turn, chosen by this seed. Then None where the tape has borrowed from its
                reserve: those words are not read on the way back but thrown away, and the damage may go with them.
        """
        before = self.bits()
        self.forward()
        self.events = self._events()
        if damage is not None:
            if any(block.lanes.borrowed for block in self.blocks):
                return None
            self.flip(np.random.default_rng(damage))
        try:
            self.back()
        except LoschmidtError:
            return False
        return all(map(torch.equal, before, self.bits()))

    def flip(self, draw: np.random.Generator) -> None:
        """Flip one bit of a lattice, a head, a word or a recorded scalar."""
        block = self.blocks[draw.integers(len(self.blocks))]
        scalars = next((scalars for scalars, _, _ in reversed(self.records) if scalars), None)
        places = [*NAMES, "head"] + ["word"] * bool(block.lanes.words) + ["scalar"] * bool(scalars)
        place = places[draw.integers(len(places))]
        if place == "head":
            flip(block.lanes.heads, int(draw.integers(block.lanes.heads.numel())), int(draw.integers(30)))
        elif place == "word":
            flip_word(block.lanes, int(draw.integers(block.lanes.words)))
        elif place == "scalar":
            name = next(iter(scalars))
            scalars[name] = flip_float(scalars[name], 30)
        else:
            n = block.lattices[place].n
            flip(n, int(draw.integers(len(n))), int(draw.integers(20)))

    def _events(self) -> Counter:
        lanes = [block.lanes for block in self.blocks]
        return Counter(
            programs=1,
            refused=any(not taken for *_, taken in self.records),
            coarsened=any(bits > 0 for _, coarsened, _ in self.records for *_, bits in coarsened),
            coarsened_while_zero=any(bits < 0 for _, coarsened, _ in self.records for *_, bits in coarsened),
            rescaled=any(scalars for scalars, *_ in self.records),
            int32=any(block.lattices["a"].n.dtype == torch.int32 for block in self.blocks),
            words_written=any(x.words for x in lanes),
            words_borrowed=any(x.borrowed for x in lanes),
            lanes_unequal=any(move.mask is not None for x in lanes for move in x.moves),
        )


def check(seeds: Iterable[int]) -> tuple[list[int], Counter]:
    """Run programs there and back: seeds of those that did not return, and what happened in how many."""
    failed, events = [], Counter()
    for seed in seeds:
        program = random_program(seed)
        if not program.returns():
            failed.append(seed)
        events += program.events
    return failed, events


def random_program(seed: int) -> Program:
    """The program of a seed."""
    draw = np.random.Generator(np.random.Philox(key=[seed, 1 << 40]))
    blocks = [_block(draw, seed, i) for i in range(draw.choice([1, 1, 2, 3]))]
    ops = [_op(draw, i) for i in range(draw.integers(1, 5))]
    return Program(seed, ops, blocks, int(draw.integers(1, 4)))


def _block(draw: np.random.Generator, seed: int, number: int) -> Block:
    size = int(draw.integers(3, 21))
    dtype, exponents = (torch.int64, (20, 50)) if draw.random() < 0.6 else (torch.int32, (6, 22))
    lattices = {}
    for name in NAMES:
        e = int(draw.integers(*exponents))
        n = np.round(draw.standard_normal(size) * 2.0**e) * (name == "a" or draw.random() < 0.5)
        lattices[name] = Lattice(torch.from_numpy(n).to(dtype), e)
    most, tape.MAX_LANES = tape.MAX_LANES, int(draw.integers(5, 24))
    lanes = Lanes(size, (seed, number))
    tape.MAX_LANES = most
    return Block(lattices, lanes)


def _op(draw: np.random.Generator, number: int) -> Op:
    """An op whose function reads all but its target."""
    target, *others = draw.permutation(NAMES).tolist()
    strength = float(draw.uniform(-0.5, 0.5))

    def increment(part: Part) -> torch.Tensor:
        return (part.value(others[0]) - part.gradient * part["scale"]) * strength

    def factor(part: Part) -> float:
        return part["c"] if target == "a" or part["scale"] < 0 else 1 / part["c"]

    def to_sphere(world: World) -> float:
        return math.exp(10 * strength) * math.sqrt(sum(p.size for p in world.parts) / (1e-3 + world.square(target)))

    def pairs(part: Part):
        if part.size < 2:
            return None
        order = torch.from_numpy(np.random.default_rng([number, part.start, part.count]).permutation(part.size))
        half = part.size // 2
        first, second = order[:half], order[half : 2 * half]
        return first, second, torch.sin(part.value(others[0]) + part.value(others[1]))[:half] * (math.pi / 2)

    kind = draw.choice(["shear", "contract", "rescale", "rotate"], p=[0.4, 0.25, 0.15, 0.2])
    return {
        "shear": lambda: Shear(target, increment),
        "contract": lambda: Contract(target, factor),
        "rescale": lambda: Rescale(target, to_sphere if target != "a" else lambda world: 0.9, f"rescale {number}"),
        "rotate": lambda: Rotate(target, pairs),
    }[kind]()
