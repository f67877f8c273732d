"""Parameters laid out flat: one block of lattices for each (param group, device, dtype)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..errors import EditedOutside, Inconsistent, InvalidSetting, NonFinite
from ..exact import Block, Lattice, Part, Rows, World, exponents_for, to_lattice, traced_sum
from ..exact.world import unseen

REPORT = "report it, with the model and the settings; nothing that you did is wrong."
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class Slot:
    """Where one parameter lives.

    Attributes:
        parameter: the user's parameter; its values are a view of the lattice.
        index: its number over all groups, which is its name on disk.
        name: what messages call it.
        group: its param group's number.
        block: elements [start, stop) of this block are its own, in row-major order.
        tensor: its number in the block.
        count: steps it took part in.
        state: what `optimizer.state` shows of it.
    """

    parameter: torch.nn.Parameter
    index: int
    name: str
    group: int
    block: Block
    tensor: int
    start: int
    stop: int
    count: int = 0
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def rows_at(self) -> tuple[int, int]:
        """Its first row in the block, and the one behind its last."""
        if self.start == self.stop:
            return 0, 0
        first = self.block.rows.first
        return int(first[self.tensor]), int(first[self.tensor + 1])

    def view(self, lattice: str = "q") -> torch.Tensor:
        """The float view of its integers in the parameter's dtype, shaped like it. A copy."""
        x = self.block.lattices[lattice].value(*self.rows_at, self.block.work)
        return x.to(self.block.dtype).view(self.parameter.shape)

    def integers(self, lattice: str) -> torch.Tensor:
        """Its integers, shaped like the parameter; a view."""
        return self.block.lattices[lattice].n[self.start : self.stop].view(self.parameter.shape)


@dataclass(frozen=True)
class Choice:
    """How one lattice is made.

    Attributes:
        dtype: of its integers.
        exponent: e of its resolution 2**-e; None: each row has a unit of its own.
        spare: bits of room that a row of zeros is given above its first update.
    """

    dtype: torch.dtype
    exponent: int | None
    spare: int = 2


_FINEST = {torch.float32: -90, torch.float64: -160}
"""Exponents of the units that rows of zeros begin with: their first update chooses others, without bits."""


def build(
    group: int, parameters: Iterable[tuple[str, torch.nn.Parameter]], first_index: int, choices: Mapping[str, Choice]
) -> list[Slot]:
    """Blocks and slots for one param group; the parameters are snapped to the lattice "q".

    Args:
        group: number of the param group.
        parameters: names and parameters, in the group's order.
        first_index: index of the first.
        choices: of each lattice, "q" among them; the others start at zero.
    """
    named = list(parameters)
    slots: list[Slot] = []
    kinds = [(p.device, p.dtype) for _, p in named]
    for number, (device, kind) in enumerate(dict.fromkeys(kinds)):
        mine = [i for i, other in enumerate(kinds) if other == (device, kind)]
        rows = Rows([named[i][1].numel() for i in mine if named[i][1].numel()])
        block = Block({k: _lattice(k, choice, rows, kind, device) for k, choice in choices.items()}, rows, kind, device)
        block.key = (group, number)
        tensor = 0
        for i in mine:
            name, p = named[i]
            start = int(rows.tensors[tensor])
            slots.append(Slot(p, first_index + i, name, group, block, tensor, start, start + p.numel()))
            tensor += bool(p.numel())
    for s in slots:  # integers of all are made before any weight is written: a refused value leaves all as they were
        if s.stop > s.start:
            _snap(s, s.block.lattices["q"])
    slots.sort(key=lambda s: s.index)
    write(slots)
    return slots


def _lattice(name: str, choice: Choice, rows: Rows, kind: torch.dtype, device: torch.device) -> Lattice:
    wide = choice.exponent is None and kind is torch.float64  # units by row follow the parameters' precision
    dtype = torch.int64 if wide else choice.dtype
    work = torch.float64 if dtype is torch.int64 else torch.float32
    e = _FINEST[work] if choice.exponent is None else -choice.exponent
    n = torch.zeros(rows.size, dtype=dtype, device=device)
    return Lattice(n, np.full(len(rows), e, np.int32), rows, choice.exponent, choice.spare)


def _snap(s: Slot, lattice: Lattice) -> None:
    """Round a parameter to the lattice, in the units that its rows have, or are given now."""
    first, last = s.rows_at
    if lattice.resolution is None:
        finer = 29 if lattice.n.dtype is torch.int64 else 0
        lattice.e[first:last] = exponents_for(s.parameter, last - first) - finer
    s.integers("q").copy_(rounded_to(s, lattice))
    lattice.bound[first:last] = np.inf


def rounded_to(s: Slot, lattice: Lattice) -> torch.Tensor:
    """A parameter's values as integers, in the units that its rows have; shaped like it."""
    u = lattice.rows.spread(lattice.units(*s.rows_at), *s.rows_at, s.block.device)
    return to_lattice(s.parameter, u, lattice.n.dtype, s.name).view(s.parameter.shape)


def write(slots: Sequence[Slot]) -> None:
    """Make parameters the float view of their lattice."""
    for s in slots:
        if s.stop > s.start:
            s.parameter.detach().copy_(s.view())
    torch.clear_autocast_cache()  # inside torch.autocast it holds casts of the values before


def show(slots: Sequence[Slot], world: World) -> None:
    """After a world's ops: see to it that each parameter that took part is the view of its lattice.

    Walks have compared and written those whose integers they moved. The others are written, where an op moved them as a
    whole, and else compared. Elements are counted.

    Raises:
        EditedOutside: a parameter was edited, in a step that does not move it.
        Inconsistent: not all elements that took part were looked at.
    """
    done, looked = {id(part.block): set() for part in world.parts}, 0
    for part in world.parts:
        looked += part.size
        if id(part) in world.shown:
            done[id(part.block)] |= set(range(*part.tensors_at))
    for s in slots:
        if s.tensor in done.get(id(s.block), ()):
            written = s.block.weights[s.tensor]
            if not s.parameter.is_contiguous():
                s.parameter.detach().copy_(written)
        elif world.moved:
            write([s])
        else:
            check_unedited([s])
    torch.clear_autocast_cache()
    if looked != (size := sum(s.stop - s.start for s in slots)):
        raise Inconsistent(f"at step {world.step} {size} elements took part, but {looked} were moved.", REPORT)


def refuse_unshown(slots: Sequence[Slot]) -> None:
    """Raise Inconsistent if a parameter is not, bit for bit, the view of its lattice. For right after a step.

    Unlike `check_unedited` it trusts no copy of what was written before: it is a full pass over memory.
    """
    for s in slots:
        if _same_kind(s) and not (count := int(_edited(s).sum())):
            continue
        seen = f"{count} of its {s.parameter.numel()} values" if _same_kind(s) else "its dtype, device or size"
        raise Inconsistent(
            f"{s.name} is not the view of its integers right after a step: {seen} differ, and no edit was made in "
            "between, unless by a hook on the optimizer's step.",
            f"edit weights between steps, never in a hook on step; without one, {REPORT}",
        )


def gather(slots: Sequence[Slot], world: World) -> None:
    """Note where gradients and parameters lie; nothing is copied, but what is not contiguous or of another dtype."""
    locate(slots, world)
    for s in slots:
        g = s.parameter.grad
        if g.is_sparse:
            raise InvalidSetting(
                f"{s.name} has a sparse gradient; its dense state could not follow.", "use sparse=False."
            )
        if s.stop > s.start:
            as_it_is = g.dtype is s.block.dtype and g.is_contiguous()
            s.block.gradients[s.tensor] = g if as_it_is else g.detach().to(s.block.dtype).contiguous()

    def inspect() -> None:
        check_unedited(slots)
        refuse_not_finite(slots, world.step)

    for block in world.blocks:
        block.inspect = inspect


def locate(slots: Sequence[Slot], world: World) -> None:
    """Note where parameters lie, before their gradients are known."""
    for block in world.blocks:
        block.gradients, block.weights = {}, {}
        block.inspect = lambda: check_unedited(slots)
    for s in slots:
        _refuse_recast(s)
        if s.stop > s.start:
            s.block.weights[s.tensor] = s.parameter if s.parameter.is_contiguous() else s.parameter.detach().contiguous()


def refuse_not_finite(slots: Sequence[Slot], step: int) -> None:
    """Raise NonFinite, naming the first parameter whose gradient holds NaN or infinity."""
    for s in slots:
        if not torch.isfinite(s.parameter.grad).all():
            raise NonFinite(
                f"the gradient of {s.name} holds NaN or infinity at step {step}.",
                "look at this batch and lr, or clip the gradient; the step was not taken.",
            )


def release(slots: Sequence[Slot]) -> None:
    """A step is over: hold nothing but the lattices."""
    for block, _ in by_block(slots):
        block.gradients, block.weights, block.inspect = {}, {}, unseen


def by_block(slots: Sequence[Slot]) -> list[tuple[Block, list[Slot]]]:
    """Slots grouped by block, order kept."""
    if slots and all(s.block is slots[0].block for s in slots):  # as a rule; asked five times a step
        return [(slots[0].block, list(slots))]
    grouped: dict[int, tuple[Block, list[Slot]]] = {}
    for s in slots:
        grouped.setdefault(id(s.block), (s.block, []))[1].append(s)
    return list(grouped.values())


@torch.no_grad()
def check_unedited(slots: Sequence[Slot]) -> None:
    """Raise EditedOutside if a parameter is no longer the view of its lattice, bit for bit."""
    for s in slots:
        _refuse_recast(s)
        if s.stop > s.start and (count := int(_edited(s).sum())):
            raise EditedOutside(
                f"{s.name} was edited outside the optimizer: {count} of {s.parameter.numel()} values differ from its "
                "lattice.",
                "edit inside `with trajectory.edit():`, or call optimizer.adopt() to take the new values over.",
            )


def _same_kind(s: Slot) -> bool:
    p, block = s.parameter, s.block
    return p.dtype is block.dtype and p.device == block.device and p.numel() == s.stop - s.start


def _refuse_recast(s: Slot) -> None:
    p, block = s.parameter, s.block
    if not _same_kind(s):
        raise EditedOutside(
            f"{s.name} was {s.stop - s.start} values of {block.dtype} on {block.device} when it was given to the "
            f"optimizer, and is {p.numel()} of {p.dtype} on {p.device}.",
            "cast, move and prune a model before its parameters are given to an optimizer.",
        )


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(_BITS[x.element_size()])


def _edited(s: Slot) -> torch.Tensor:
    """Which of its elements have other bits than the view of the lattice (-0.0 is not 0.0), flat."""
    return _bits(s.parameter.detach().reshape(-1)) != _bits(s.view().reshape(-1))


@torch.no_grad()
def adopt(slots: Sequence[Slot]) -> int:
    """Take over values that were edited outside; elements that were not keep all their lattice bits.

    Rows with units of their own get others, where an edited value does not fit: their bits are rounded.

    Returns:
        How many elements were edited.
    """
    moved: list[tuple[Slot, torch.Tensor, torch.Tensor, np.ndarray]] = []
    for s in slots:
        _refuse_recast(s)
        lattice, (first, last) = s.block.lattices["q"], s.rows_at
        if s.stop > s.start and bool((edited := _edited(s)).any()):
            if lattice.resolution is None:
                finer = 29 if lattice.n.dtype is torch.int64 else 0
                shift = lattice.exponents(first, last) - lattice.e[first:last]
                wanted = exponents_for(s.parameter, last - first) - finer - shift
                raised = np.maximum(wanted - 3 - lattice.e[first:last], 0).astype(np.int32)
            else:
                raised = np.zeros(last - first, np.int32)
            lattice.e[first:last] += raised
            try:
                q = rounded_to(s, lattice).reshape(-1)
            finally:
                lattice.e[first:last] -= raised
            moved.append((s, edited, q, raised))
    for s, edited, q, raised in moved:
        lattice, (first, last) = s.block.lattices["q"], s.rows_at
        n = s.integers("q").reshape(-1)
        coarser = n >> lattice.rows.spread(raised, first, last, n.device).to(n.dtype)
        lattice.e[first:last] += raised
        n.copy_(torch.where(edited, q, coarser))
        lattice.replaced()
    write(slots)
    return sum(int(edited.sum()) for _, edited, *_ in moved)


def world_of(slots: Sequence[Slot], settings: Sequence[dict], world: World, counting: int) -> World:
    """Fill a world's parts: runs of neighbours of one block with the same step count, whatever lies between them in
    other blocks.

    Args:
        slots: those that take part, in order of their index.
        settings: of each param group.
        world: an empty one.
        counting: added to the slots' counts: 1 on the way forward, 0 on the way back.
    """
    world.sums_of = traced_sum
    last: dict[int, Part] = {}  # of each block, the part in progress
    for s in slots:
        if s.stop == s.start:
            continue
        part, count = last.get(id(s.block)), s.count + counting
        if part is not None and (part.tensors_at[1], part.count) == (s.tensor, count):
            part.tensors_at = part.tensors_at[0], s.tensor + 1
        else:
            at = s.tensor, s.tensor + 1
            part = Part(s.block, at, settings[s.group], count, world, _namer(slots, s.block))
            last[id(s.block)] = part
            world.parts.append(part)
    return world


def _namer(slots: Sequence[Slot], block: Block) -> Callable[[int], str]:
    return lambda i: next((s.name for s in slots if s.block is block and s.start <= i < s.stop), "a parameter")
