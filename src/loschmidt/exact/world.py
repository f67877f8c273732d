"""What a step's ops see: flat state, the parts of it that take part, and what is recorded.

World   one step: which parts take part, the loss, what is recorded
Part    a contiguous run of a block's tensors that takes part: the same settings and step count
Block   one flat buffer of lattices and its tape
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from ..errors import InvalidSetting
from .digest import checksum_of
from .lattice import Lattice, Rows
from .rounding import by_rows
from .tape import Stack


def unseen() -> None:
    """Nothing is inspected."""


@dataclass
class Block:
    """Flat integer state.

    Attributes:
        lattices: by name; "q" holds the parameters.
        rows: how tensors and rows lie.
        dtype: of the parameters and their gradients.
        device: where it lies.
        key: tells it from the other blocks, for random draws.
        stack: its tape.
        gradients, weights: of each tensor that takes part in a step, by its number; contiguous.
        inspect: raises if weights were edited, or a gradient is not finite; names the parameter.
        changing: lattices that the walk being traced has changed already.
        frames: what walks keep of it from one step to the next.
    """

    lattices: dict[str, Lattice]
    rows: Rows
    dtype: torch.dtype = torch.float64
    device: torch.device = torch.device("cpu")
    key: tuple[int, ...] = ()
    stack: Stack = field(default_factory=Stack)
    gradients: dict[int, torch.Tensor] = field(default_factory=dict)
    weights: dict[int, torch.Tensor] = field(default_factory=dict)
    inspect: Callable[[], None] = unseen
    changing: Sequence[str] = ()
    frames: dict[tuple[int, int], Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"frames": {}}  # they hold addresses

    @property
    def size(self) -> int:
        """Elements."""
        return self.rows.size

    @property
    def work(self) -> torch.dtype:
        """The type that formulas are computed in: float64 where anything has 64 bits, else float32."""
        wide = self.dtype is torch.float64 or any(x.n.dtype is torch.int64 for x in self.lattices.values())
        return torch.float64 if wide else torch.float32


@dataclass
class Part:
    """Tensors [tensors_at) of a block, and what a formula may read of them.

    Attributes:
        settings: hyper-parameters of the step, by torch's names; also read as `part["lr"]`.
        count: how many steps these parameters have taken, this one included (1 at their first).
        name_of: names the parameter that holds an element of the block, for messages.
    """

    block: Block
    tensors_at: tuple[int, int]
    settings: dict[str, Any]
    count: int
    world: "World"
    name_of: Callable[[int], str] = field(default=lambda i: f"element {i}")

    def __getitem__(self, setting: str) -> Any:
        return self.settings[setting]

    @property
    def start(self) -> int:
        """Its first element."""
        return int(self.block.rows.tensors[self.tensors_at[0]])

    @property
    def stop(self) -> int:
        """The element behind its last."""
        return int(self.block.rows.tensors[self.tensors_at[1]])

    @property
    def size(self) -> int:
        """Elements of this part."""
        return self.stop - self.start

    @property
    def rows_at(self) -> tuple[int, int]:
        """Its first row, and the one behind its last."""
        first, last = self.tensors_at
        return int(self.block.rows.first[first]), int(self.block.rows.first[last])

    @property
    def lengths(self) -> np.ndarray:
        """Elements of its rows."""
        return self.block.rows.lengths(*self.rows_at)

    @property
    def gradient(self) -> torch.Tensor:
        """Gradient of the loss, shape (size,), in the block's working type. A copy."""
        first, last = self.tensors_at
        held = [self.block.gradients[i].reshape(-1) for i in range(first, last) if i in self.block.gradients]
        empty = torch.zeros(self.size, dtype=self.block.work, device=self.block.device)
        return torch.cat(held).to(self.block.work) if len(held) == last - first else empty

    def value(self, name: str, plus: int = 0) -> torch.Tensor:
        """The view of a lattice, shape (size,), in the block's working type; `plus`: of n + plus. A copy."""
        lattice, (first, last), work = self.block.lattices[name], self.rows_at, self.block.work
        u = self.block.rows.spread(lattice.units(first, last), first, last, self.block.device).to(work)
        return (self.integers(name) + plus).to(work).mul_(u)

    def square(self, name: str) -> float:
        """Sum of squares of a lattice's values."""
        if name in self.block.changing:
            raise InvalidSetting(
                f"a formula reads the sum of squares of {name!r}, which an op before it has changed.",
                f"declare it: Shear(..., needs=({name!r},)).",
            )
        return self.sum_of(lambda part: part.value(name).square())

    def sum_of(self, formula: Callable[["Part"], torch.Tensor]) -> float:
        """Sum of a formula over the elements, always in one order, the sum in float64.

        Args:
            formula: part -> shape (part.size,), of each element by itself.
        """
        return self.world.sums_of(self, formula)

    @property
    def tensors(self) -> list["Part"]:
        """A part for each parameter."""
        first, last = self.tensors_at
        rest = self.settings, self.count, self.world, self.name_of
        return [Part(self.block, (i, i + 1), *rest) for i in range(first, last)]

    def integers(self, name: str) -> torch.Tensor:
        """The integers themselves, a view."""
        return self.block.lattices[name].n[self.start : self.stop]


def row_sums(part: Part, formula: Callable[[Part], torch.Tensor]) -> float:
    """`Part.sum_of` on tensors."""
    return math.fsum(by_rows(formula(part), part.lengths).tolist())


@dataclass
class World:
    """Everything that a step's ops may read, and what they record.

    Attributes:
        parts: what takes part in this step, in a fixed order.
        loss: the loss at the parameters before the step, or None.
        step: index of the step, 0 at the first.
        seed: key of random draws.
        scalars: data-dependent numbers that the way back needs, by name; recorded.
        carried: scalars recorded by earlier steps and still known.
        sums_of: how a part's sums are found.
        sums: of the words of the gradients that walks have read, by part.
        moved: whether an op moved weights as a whole, without a walk that writes them.
        shown: parts, by identity, whose weights are known to be the view of "q": walks have compared and written them.
    """

    parts: list[Part]
    loss: float | None = None
    step: int = 0
    seed: int = 0
    scalars: dict[str, float] = field(default_factory=dict)
    carried: Mapping[str, float] = field(default_factory=dict)
    sums_of: Callable[[Part, Callable[[Part], torch.Tensor]], float] = row_sums
    sums: dict[int, int] = field(default_factory=dict)
    shown: set[int] = field(default_factory=set)
    moved: bool = False

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
        """Sum of squares of a lattice over all parts."""
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

    def checksum(self, with_loss: bool) -> int:
        """64 bits of this step's gradients (and loss): what the way back is compared with."""
        total = 0
        for number, part in enumerate(self.parts):
            total = total * 31 + self.sums[number] + part.start
        if with_loss and self.loss is not None:
            total = total * 31 + checksum_of(self.loss)
        return (total + 2**63) % 2**64 - 2**63
