"""What a step's ops see: flat state, the parts of it that take part, and what is recorded.

World   one step: which parts take part, the loss, what is recorded
Part    a contiguous run of a block that takes part: parameters with the same settings and step count
Block   one flat buffer of lattices and its tape lanes
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..errors import InvalidSetting, LatticeOverflow
from .digest import checksum, checksum_of, chunk_sums, folded, sum_of, sum_of_squares, words_sum
from .lattice import Lattice, largest, peak
from .ops import contract_, uncontract_
from .tape import Lanes

CHUNK = 1024
"""Elements of a row that are done at once, in the first cache, and whose squares are summed, in deep blocks."""


@dataclass
class Block:
    """Flat integer state of `size` elements.

    Attributes:
        lattices: by name; "q" holds the parameters.
        lanes: the tape of this block.
        drift_lanes: the tape of "q", if its contractions have one of their own: then drifts can be done in the same
            walk as kicks, which are undone in another.
        dtype: of the parameters and their gradients.
        key: tells it from the other blocks, for random draws.
        shown: shape (size,): the parameters as they were last written, in their dtype; None in a deep block.
        gradients: fetches this step's gradient, float64, shape (size,).
        operands: gradients and parameters as they lie in memory, for passes (`fused.Operands`).
        changing: lattices that the pass which is being traced has changed already.
    """

    lattices: dict[str, Lattice]
    lanes: Lanes
    drift_lanes: Lanes | None = None
    dtype: torch.dtype = torch.float64
    key: tuple[int, ...] = ()
    shown: torch.Tensor | None = None
    gradients: Callable[[], torch.Tensor] | None = None
    operands: Any = None
    changing: Sequence[str] = ()
    _gradient: torch.Tensor | None = None

    @property
    def tapes(self) -> list[Lanes]:
        """All its lanes."""
        return [self.lanes] if self.drift_lanes is None else [self.lanes, self.drift_lanes]

    def lanes_of(self, name: str) -> Lanes:
        """Those that a lattice's contractions use."""
        return self.drift_lanes if name == "q" and self.drift_lanes is not None else self.lanes

    @property
    def size(self) -> int:
        """Elements."""
        return self.lanes.size

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.lanes.heads.device

    @property
    def deep(self) -> bool:
        """Whether there are several rows of lanes: then nothing of the block's size is kept besides its lattices."""
        return self.lanes.depth > 1

    @property
    def gradient(self) -> torch.Tensor:
        """This step's gradient, float64, shape (size,); stale outside the kicks."""
        if self._gradient is None:
            self._gradient = (
                self.gradients() if self.gradients else torch.zeros(self.size, dtype=torch.float64, device=self.device)
            )
        return self._gradient

    def gradient_of(self, start: int, stop: int) -> torch.Tensor:
        """This step's gradient of elements [start, stop); of a deep block without fetching the rest."""
        gradients = getattr(self.operands, "gradients", None)
        if self._gradient is None and gradients is not None:
            return self.operands.span(gradients, start, stop)[0].to(torch.float64)
        return self.gradient[start:stop]

    def drop_gradient(self) -> None:
        """Free it; it is fetched again when it is asked for."""
        self._gradient = None


@dataclass
class Part:
    """Elements [start, stop) of a block, and what a formula may read of them.

    Attributes:
        settings: hyper-parameters of the step, by torch's names; also read as `part["lr"]`.
        count: how many steps these parameters have taken, this one included (1 at their first).
        name_of: names the parameter that holds an element of the block, for messages.
        cuts: elements at which a parameter begins, besides `start`.
    """

    block: Block
    start: int
    stop: int
    settings: dict[str, Any]
    count: int
    world: "World"
    name_of: Callable[[int], str] = field(default=lambda i: f"element {i}")
    cuts: list[int] = field(default_factory=list)
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
        if self.block.deep and not self.deep:
            return self.block.gradient_of(self.start, self.stop)
        return self.block.gradient[self.start : self.stop]

    def value(self, name: str) -> torch.Tensor:
        """The float64 view of a lattice, shape (size,), computed once per change. Do not change it in place."""
        if name not in self._cache:
            self._cache[name] = self.block.lattices[name].value(self.start, self.stop)
        return self._cache[name]

    def square(self, name: str) -> torch.Tensor:
        """Sum of squares of a lattice's values, 0-dimensional float64."""
        lattice, key = self.block.lattices[name], f"|{name}|^2"
        if name in self.block.changing:
            raise InvalidSetting(
                f"a formula reads the sum of squares of {name!r}, which an op before it has changed.",
                f"declare it: Shear(..., needs=({name!r},)).",
            )
        if self.deep:
            lattice.asked = True
            if lattice.square is None:
                lattice.square = self._square_by_rows(lattice)
            return lattice.square
        if key not in self._cache:
            self._cache[key] = sum_of_squares(self.value(name))
        return self._cache[key]

    def sum_of(self, formula: Callable[["Part"], torch.Tensor]) -> torch.Tensor:
        """Sum of a formula over the elements, 0-dimensional float64; in deep blocks row by row, always in one order.

        Args:
            formula: part -> float64, shape (part.size,), of each element by itself: it may be given rows of the part.
        """
        return self._by_rows(formula) if self.deep else sum_of(formula(self))

    def _square_by_rows(self, lattice: Lattice) -> torch.Tensor:
        def squared(row: "Part") -> torch.Tensor:
            x = lattice.value(row.start, row.stop)
            return x * x

        return self._by_rows(squared)

    def _by_rows(self, formula: Callable[["Part"], torch.Tensor]) -> torch.Tensor:
        lanes, sums = self.block.lanes.heads.numel(), []
        groups = -(-lanes // CHUNK)
        for start in range(0, self.size, lanes):
            row = chunk_sums(formula(self.section(start, min(start + lanes, self.size))), CHUNK)
            sums.append(torch.nn.functional.pad(row, (0, groups - len(row))))
        return folded(torch.cat(sums), CHUNK)

    def section(self, start: int, stop: int) -> "Part":
        """Elements [start, stop) of the block as a part of their own."""
        return Part(self.block, start, stop, self.settings, self.count, self.world, self.name_of)

    @property
    def tensors(self) -> list["Part"]:
        """A part for each parameter."""
        ends = [self.start, *self.cuts, self.stop]
        return [self.section(first, last) for first, last in itertools.pairwise(ends)]

    def sample(self) -> "Part":
        """Its first row, if it is all of a deep block; else itself."""
        if not self.deep:
            return self
        return self.section(self.start, min(self.stop, self.block.lanes.heads.numel()))

    @property
    def deep(self) -> bool:
        """Whether it is all of a deep block. This alone decides what is done in passes: gathering, checking and writing
        ask it, too, so that none of them can think of a block as done that no pass has seen."""
        return self.block.deep and self.size == self.block.size

    def integers(self, name: str) -> torch.Tensor:
        """The integers themselves, a view."""
        return self.block.lattices[name].n[self.start : self.stop]

    def forget(self, name: str) -> None:
        """Drop cached views of a lattice that changed."""
        self._cache.pop(name, None)
        self._cache.pop(f"|{name}|^2", None)
        self.block.lattices[name].square = None


@dataclass
class World:
    """Everything that a step's ops may read, and what they record.

    Attributes:
        parts: what takes part in this step, in a fixed order.
        loss: the loss at the parameters before the step, or None.
        step: index of the step, 0 at the first.
        seed: key of random draws.
        scalars: data-dependent numbers that the way back needs, by name; recorded.
        coarsened: (op, block, bits) of lattices made coarser to hold a large value, bits negative where the
            lattice was still zero and nothing went on the tape; recorded.
        fixed: names of lattices that must not be coarsened.
        carried: scalars recorded by earlier steps and still known.
        position: index of the op in progress.
        singly: the parts that ops work on, one op after the other; the other parts are done in passes (`fused`).
        sums: of the words of the gradients that passes have read, by block.
    """

    parts: list[Part]
    loss: float | None = None
    step: int = 0
    seed: int = 0
    scalars: dict[str, float] = field(default_factory=dict)
    coarsened: list[tuple[int, int, int]] = field(default_factory=list)
    fixed: frozenset[str] = frozenset({"q"})
    carried: Mapping[str, float] = field(default_factory=dict)
    position: int = 0
    sums: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.singly = self.parts

    @property
    def deep(self) -> list[Part]:
        """Parts that are done in passes."""
        return [p for p in self.parts if p.deep and p.block.operands is not None]

    @property
    def blocks(self) -> list[Block]:
        """The blocks that take part, in order, each once."""
        return list({id(p.block): p.block for p in self.parts}.values())

    def total(self, terms: Sequence[torch.Tensor | float], over: Literal["parts", "batches"] = "parts") -> float:
        """Sum of numbers (or 0-dimensional tensors): the one place where a global scalar is made.

        Args:
            terms: one for each part that this process holds; or one number of its batch.
            over: what other processes would add: "parts" that only they hold (a sum over these), or the same number
                of other "batches" (a mean). In one process both are the sum of the terms.
        """
        # exact: a fixed order of summation, in float64.
        return sum(map(float, terms), 0.0)

    def square(self, name: str) -> float:
        """Sum of squares of a lattice over all parts, from the parts' cached sums."""
        return self.total([p.square(name) for p in self.parts])

    def sum_of(self, formula: Callable[[Part], torch.Tensor]) -> float:
        """Sum of a formula over all parts, see `Part.sum_of`."""
        return self.total([p.sum_of(formula) for p in self.parts])

    @property
    def mean_loss(self) -> float:
        """The loss, over the batches of all processes."""
        return self.total([self.loss], over="batches")

    @property
    def size(self) -> int:
        """Elements that take part."""
        return int(self.total([p.size for p in self.parts]))

    def changed(self, name: str) -> None:
        """Note that a lattice has new values, in the parts that ops work on."""
        for part in self.singly:
            part.forget(name)

    def make_room(
        self,
        part: Part,
        target: str,
        extra: float,
        growth: float = 1.0,
        spare: int = 0,
        units: torch.Tensor | None = None,
    ) -> bool:
        """Coarsen the lattice of a part's block (by a power of two, on the tape) until |n| * growth + extra fits.

        A lattice that is still zero everywhere has nothing to remember: its resolution is chosen without bits on
        the tape, and leaves `spare` bits of room above the first update. `units`: the part's update, if it is one.

        Returns:
            Whether it had to.

        Raises:
            LatticeOverflow: where the lattice may not be coarsened, or could not hold the value even at resolution 1.
        """
        block, did = part.block, False
        lattice = block.lattices[target]
        while not lattice.has_room(extra, growth):
            needed = lattice.bound * growth + extra
            reached = needed * 2.0**-lattice.exponent
            if target in self.fixed or not reached < lattice.limit:
                end = lattice.limit * 2.0**-lattice.exponent
                worst = part.start + largest(units) if units is not None else largest(lattice.n)
                raise LatticeOverflow(
                    f"{part.name_of(worst)}: at step {self.step} the update takes lattice {target!r} to {reached:.3g}, "
                    f"past its end at {end:.3g}.",
                    "lower lr (a diverging run needs this), clip the gradient, or pass a coarser resolution.",
                )
            bits = math.frexp(needed / lattice.limit)[1]
            if lattice.bound == 0:
                bits = min(bits + spare, lattice.exponent)
            else:
                bits = min(bits, 3, lattice.exponent)
                contract_(lattice.n, 0, block.lanes_of(target), 1, 1 << bits)
                lattice.bound = lattice.bound / 2**bits + 1
            lattice.exponent -= bits
            self.coarsened.append((self.position, self.blocks.index(block), bits if lattice.bound else -bits))
            extra, did = extra / 2**bits, True
            self.changed(target)
        return did

    def require_room_back(self, part: Part, target: str, extra: float, growth: float = 1.0) -> None:
        """Raise LatticeOverflow if undoing would leave the lattice: never on the recorded path, which came from there.

        `extra` and `growth` know nothing of signs: a momentum of 0 that one kick took to the limit counts as going
        back from the limit to twice the limit. So that much is allowed; beyond it integers would wrap.
        """
        lattice = part.block.lattices[target]
        end = 2.0 * lattice.limit
        if lattice.bound * growth + extra > end:
            lattice.bound = peak(lattice.n)
        if lattice.bound * growth + extra <= end:
            return
        reached = peak(part.integers(target)) * growth + extra
        if reached > end:
            name = part.name_of(part.start + largest(part.integers(target)))
            raise LatticeOverflow(
                f"{name}: undoing step {self.step} takes lattice {target!r} to {reached * 2.0**-lattice.exponent:.3g}, "
                "past its end: this is not the path that was recorded, and undoing friction amplifies the difference.",
                "stop here, or go back from a smaller perturbation.",
            )

    def refine_back(self, target: str) -> None:
        """Undo what `make_room` did for the present op, in the blocks that ops work on."""
        blocks, mine = self.blocks, {id(part.block) for part in self.singly}
        while self.coarsened and self.coarsened[-1][0] == self.position:
            if id(blocks[self.coarsened[-1][1]]) not in mine:
                return
            _, index, bits = self.coarsened.pop()
            lattice = blocks[index].lattices[target]
            if bits > 0:
                uncontract_(lattice.n, 0, blocks[index].lanes_of(target), 1, 1 << bits)
                lattice.bound = math.inf
            elif peak(lattice.n):
                continue  # off the recorded path, on which it is zero here: the coarse resolution stays
            lattice.exponent += abs(bits)
            self.changed(target)

    def checksum(self, with_loss: bool) -> int:
        """64 bits of this step's gradients (and loss): what the way back is compared with."""
        total = 0
        for part in self.parts:
            total = total * 31 + self._sum(part) + part.start
        if with_loss and self.loss is not None:
            total = total * 31 + checksum_of(self.loss)
        return (total + 2**63) % 2**64 - 2**63

    def _sum(self, part: Part) -> int:
        block = part.block
        if not part.deep:
            return checksum(part.gradient)
        if id(block) not in self.sums:
            self.sums[id(block)] = int(words_sum(part.gradient.to(block.dtype), 0))
        return (self.sums[id(block)] + 2**63) % 2**64 - 2**63
