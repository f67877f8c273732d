"""Random programs of random ops on random blocks: run some steps forward, then back, and compare every bit.

    python -m reference.programs FIRST LAST [--json FILE]

A program is a function of its seed. It holds one to three blocks of one to three tensors (a few with more than one
row), of any dtypes of gradients and integers, cut into parts of which some sit out a step, and one to four ops of any
kind in any order: factors below and above 1 and below 0, formulas that are traced and others, rounding to the nearest
and dithered. Some gradients are huge or not finite, so that rows are halved and steps refused, which must then have
changed nothing. Half of the programs are also run by the other kernels, and must have the same bits.
"""

import argparse
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from loschmidt.errors import LoschmidtError
from loschmidt.exact import Block, Contract, Lattice, Op, Part, Rescale, Rotate, Rows, Shear, World, run, run_back
from loschmidt.exact.passes import look, traced_sum
from loschmidt.files import write_json

from .bits import flip, flip_float

NAMES = ("a", "b", "c")
FLOATS = (torch.float32, torch.float64, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16)


@contextmanager
def kernels(mode: str):
    """Native or eager."""
    before = os.environ.get("LOSCHMIDT_KERNELS")
    os.environ["LOSCHMIDT_KERNELS"] = mode
    try:
        yield
    finally:
        os.environ.pop("LOSCHMIDT_KERNELS")
        if before is not None:
            os.environ["LOSCHMIDT_KERNELS"] = before


@dataclass
class Program:
    """Ops, blocks, and what each step left behind for its undoing: scalars, and whether it was taken."""

    seed: int
    ops: list[Op]
    blocks: list[Block]
    steps: int
    records: list[tuple[dict, int, bool]] = field(default_factory=list)
    events: Counter = field(default_factory=Counter)

    def world(self, step: int, scalars: dict | None = None) -> World:
        """The same parts, settings and gradients at every call with this step."""
        draw = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        world = World([], 0.5, step, self.seed, dict(scalars or {}), sums_of=traced_sum)
        for block in self.blocks:
            huge = 2.0 ** draw.integers(20, 90) if draw.random() < 0.15 else 1.0
            g = torch.from_numpy(draw.standard_normal(block.size) * huge)
            g[: int(draw.random() < 0.02)] = math.inf
            ends, tensors = block.rows.tensors, len(block.rows.tensors) - 1
            block.gradients = {i: g[ends[i] : ends[i + 1]].to(block.dtype) for i in range(tensors)}
            cuts = sorted({0, tensors, int(draw.integers(0, tensors + 1))})
            for at in zip(cuts, cuts[1:], strict=False):
                if draw.random() < 0.8:
                    settings = {"c": float(draw.uniform(0.05, 1.0)), "scale": float(draw.standard_normal())}
                    world.parts.append(Part(block, at, settings, step + 1, world))
        return world

    def forward(self) -> None:
        """All steps; notes which were refused."""
        for step in range(self.steps):
            world, before = self.world(step), self.bits()
            try:
                look(world)
                run(self.ops, world)
                self.records.append((world.scalars, world.checksum(False), True))
            except LoschmidtError:
                self.records.append(({}, 0, False))
                if before != self.bits():
                    raise AssertionError(f"program {self.seed}: a refused step changed something") from None

    def back(self) -> None:
        """All steps that were taken."""
        for step in reversed(range(self.steps)):
            scalars, check, taken = self.records[step]
            if taken:
                world = self.world(step, scalars)
                look(world)
                assert world.checksum(False) == check
                run_back(self.ops, world)

    def bits(self) -> list:
        """Every integer of the state and the tape."""
        out = []
        for block in self.blocks:
            for x in block.lattices.values():
                out += [x.n.numpy().tobytes(), x.e.tolist(), list(x.logs), x.pushed]
            out += [block.stack.planes.since(0).tobytes(), block.stack.records.since(0).tobytes()]
        return out

    def returns(self, damage: int | None = None) -> bool:
        """Forward and back: is every bit what it was? `damage`: flip one at the turn, chosen by this seed."""
        before = self.bits()
        self.forward()
        self.events = self._events()
        self.turn = self.bits()
        if damage is not None:
            self._flip(np.random.default_rng(damage))
        try:
            self.back()
        except LoschmidtError:
            return False
        return before == self.bits()

    def _flip(self, draw: np.random.Generator) -> None:
        """Flip one bit of a lattice, a plane, a logarithm, an exponent or a recorded scalar."""
        block = self.blocks[draw.integers(len(self.blocks))]
        lattice = block.lattices[NAMES[draw.integers(len(NAMES))]]
        scalars = next((scalars for scalars, *_ in reversed(self.records) if scalars), None)
        planes = block.stack.planes.since(0)
        place = draw.choice(["n", "log", "e"] + ["plane"] * bool(len(planes)) + ["scalar"] * bool(scalars))
        if place == "n":
            flip(lattice.n, int(draw.integers(block.size)), int(draw.integers(14)))
        elif place == "log":
            lattice.logs[int(draw.integers(len(lattice.logs)))] ^= 1 << int(draw.integers(60))
        elif place == "e":
            lattice.e[int(draw.integers(len(lattice.e)))] ^= 1
        elif place == "plane":
            planes[draw.integers(len(planes))] ^= 1  # the first bit of a byte is never filling
            block.stack.planes.settle([planes])
        else:
            name = next(iter(scalars))
            scalars[name] = flip_float(scalars[name], 30)

    def _events(self) -> Counter:
        lattices = [x for block in self.blocks for x in block.lattices.values()]
        return Counter(
            programs=1,
            refused=any(not taken for *_, taken in self.records),
            halved=any(len(block.stack.planes) for block in self.blocks),
            rescaled=any(scalars for scalars, *_ in self.records),
            several_rows=any(len(block.rows) > len(block.rows.tensors) - 1 for block in self.blocks),
            **{str(kind).removeprefix("torch."): any(x.n.dtype is kind for x in lattices) for kind in INTEGERS},
            **{str(kind).removeprefix("torch."): any(b.dtype is kind for b in self.blocks) for kind in FLOATS},
        )


def check(seeds: Iterable[int]) -> tuple[list[int], Counter]:
    """Run programs there and back: seeds of those that did not return, and what happened in how many."""
    failed, events = [], Counter()
    for seed in seeds:
        mode = ("native", "eager")[seed % 2]
        with kernels(mode):
            program = random_program(seed)
            good = program.returns()
        if good and seed % 4 < 2:
            with kernels(("eager", "native")[seed % 2]):
                other = random_program(seed)
                other.forward()
            good = other.bits() == program.turn
        if not good:
            failed.append(seed)
        events += program.events
    return failed, events


def random_program(seed: int) -> Program:
    """The program of a seed."""
    draw = np.random.Generator(np.random.Philox(key=[seed, 1 << 40]))
    blocks = [_block(draw) for _ in range(draw.choice([1, 1, 2, 3]))]
    ops = [_op(draw, i) for i in range(draw.integers(1, 5))]
    return Program(seed, ops, blocks, int(draw.integers(1, 4)))


def _block(draw: np.random.Generator) -> Block:
    sizes = [int(draw.integers(1, 21)) for _ in range(draw.integers(1, 4))]
    if draw.random() < 0.05:
        sizes[0] = int(draw.integers(1020, 1032))
    rows, dtype, lattices = Rows(sizes), FLOATS[draw.integers(3)], {}
    for name in NAMES:
        integers, wide = INTEGERS[draw.integers(3)], draw.random() < 0.5
        top = {torch.int64: 55, torch.int32: 27, torch.int16: 12}[integers]
        n = np.round(draw.standard_normal(rows.size) * 2.0 ** draw.integers(2, top)) * (draw.random() < 0.5)
        n = torch.from_numpy(np.clip(n, -(2.0**top), 2.0**top)).to(integers)
        e = np.full(len(rows), -20, np.int32) + draw.integers(-8, 9, len(rows)).astype(np.int32) * (not wide)
        lattices[name] = Lattice(n, e, rows, 20 if wide else None, int(draw.integers(4)))
    return Block(lattices, rows, dtype)


def _op(draw: np.random.Generator, number: int) -> Op:
    """An op whose function reads all but its target."""
    target, *others = draw.permutation(NAMES).tolist()
    strength, traced = float(draw.uniform(-0.5, 0.5)), draw.random() < 0.8

    def increment(part):
        f = part.value(others[0]).sub(part.gradient * part["scale"])
        f = f.mul(strength) if traced else torch.as_tensor(f) * strength  # the latter is not understood
        if strength < -0.3:
            return f.div(part.value(others[1]).square().sqrt().add(1.0))
        return None if strength > 0.45 and part.count == 2 else f

    def factor(part):
        c = part["c"] if target == "a" or part["scale"] < 0 else 1 / part["c"]
        return -c if part["scale"] > 1.5 else c

    def to_sphere(world):
        return math.exp(10 * strength) * math.sqrt(sum(p.size for p in world.parts) / (1e-3 + world.square(target)))

    def each(world):
        return [0.5 + (i % 3) / 2 for i in range(sum(len(p.tensors) for p in world.parts))]

    def pairs(part):
        if part.size < 2:
            return None
        order = torch.from_numpy(np.random.default_rng([number, part.start, part.count]).permutation(part.size))
        half = part.size // 2
        first, second = order[:half], order[half : 2 * half]
        x = part.value(others[0]) + part.value(others[1])
        return first, second, torch.sin(x.double())[:half] * (math.pi / 2)

    kind = draw.choice(["shear", "contract", "rescale", "rotate"], p=[0.45, 0.25, 0.15, 0.15])
    return {
        "shear": lambda: Shear(target, increment, dithered=bool(draw.random() < 0.3)),
        "contract": lambda: Contract(target, factor),
        "rescale": lambda: Rescale(target, each if target == "a" else to_sphere, f"rescale {number}"),
        "rotate": lambda: Rotate(target, pairs),
    }[kind]()


def main() -> None:
    """Check a range, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--json", type=Path, help="what is in it already is not done again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = {"first": args.first, "next": args.first, "wrong": [], "events": {}, "seconds": 0.0}
    if args.json and args.json.exists():
        out = json.loads(args.json.read_text())
    while out["next"] < args.last:
        began, until = time.perf_counter(), min(out["next"] + 1000, args.last)
        failed, events = check(range(out["next"], until))
        out["next"], out["wrong"] = until, out["wrong"] + failed
        out["events"] = dict(Counter(out["events"]) + events)
        out["seconds"] += time.perf_counter() - began
        if args.json:
            write_json(args.json, out)
    print({k: v for k, v in out.items() if k != "events"}, out["events"])


if __name__ == "__main__":
    main()
