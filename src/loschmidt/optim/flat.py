"""Parameters laid out flat: one block of lattices for each (param group, device, dtype)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from ..errors import EditedOutside, Inconsistent, InvalidSetting, NonFinite
from ..exact import Block, Lanes, Lattice, Operands, Part, Refused, World, gradient_sum, to_lattice

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
        count: steps it took part in.
        state: what `optimizer.state` shows of it.
    """

    parameter: torch.nn.Parameter
    index: int
    name: str
    group: int
    block: Block
    start: int
    stop: int
    count: int = 0
    state: dict[str, Any] = field(default_factory=dict)

    def integers(self, lattice: str) -> torch.Tensor:
        """Its integers, shaped like the parameter; a view."""
        return self.block.lattices[lattice].n[self.start : self.stop].view(self.parameter.shape)


def build(
    group: int,
    parameters: Iterable[tuple[str, torch.nn.Parameter]],
    first_index: int,
    exponents: dict[str, int],
    types: Mapping[str, torch.dtype],
    seed: int,
    decays: bool = False,
) -> list[Slot]:
    """Blocks and slots for one param group; the parameters are snapped to the lattice "q".

    Args:
        group: number of the param group.
        parameters: names and parameters, in the group's order.
        first_index: index of the first.
        exponents: e of each lattice's resolution 2**-e, "q" among them; the others start at zero.
        types: of each lattice's integers, torch.int64 or torch.int32.
        seed: key of the tape's starting heads.
        decays: whether drifts contract "q": deep blocks then have lanes of their own for it.
    """
    named = list(parameters)
    # Everything is rounded before anything is written, so that a refused value leaves all weights as they were.
    integers = [to_lattice(p, exponents["q"], types["q"], name).reshape(-1) for name, p in named]
    slots: list[Slot] = []
    kinds = [(p.device, p.dtype) for _, p in named]
    for number, (device, kind) in enumerate(dict.fromkeys(kinds)):
        mine = [i for i, other in enumerate(kinds) if other == (device, kind)]
        q = torch.cat([integers[i] for i in mine]) if mine else torch.empty(0, dtype=types["q"], device=device)
        block = Block(
            {k: Lattice(q if k == "q" else torch.zeros_like(q, dtype=types[k]), e) for k, e in exponents.items()},
            Lanes(q.numel(), (seed, group, number), device),
            dtype=kind,
            key=(group, number),
        )
        if block.deep and decays:
            block.drift_lanes = Lanes(q.numel(), (seed, group, number, "drift"), device)
        at = 0
        for i in mine:
            name, p = named[i]
            slots.append(Slot(p, first_index + i, name, group, block, at, at + p.numel()))
            at += p.numel()
    slots.sort(key=lambda s: s.index)
    write(slots)
    return slots


def write(slots: Sequence[Slot]) -> None:
    """Make parameters the float view of their lattice."""
    for block, mine in by_block(slots):
        _write(block, mine)
    torch.clear_autocast_cache()  # inside torch.autocast it holds casts of the values before


def _write(block: Block, slots: Sequence[Slot]) -> int:
    """Write the parameters of one block; how many elements were written."""
    parameters = [s.parameter.detach() for s in slots]
    if block.deep:
        for s, p in zip(slots, parameters, strict=True):
            p.copy_(block.lattices["q"].value(s.start, s.stop).view(p.shape))
    else:
        block.shown = block.lattices["q"].value().to(block.dtype)
        torch._foreach_copy_(parameters, _pieces(block.shown, slots))
    return sum(p.numel() for p in parameters)


def show(slots: Sequence[Slot], world: World) -> None:
    """After a world's ops: write the parameters that took part and that no pass has written.

    Elements are counted: those that passes have written or compared, and those written here, are those of the parts.

    Raises:
        Inconsistent: they are not.
    """
    shown = 0
    for block, mine in by_block(slots):
        done = block.operands is not None and block.operands.shown
        shown += block.operands.size if done else _write(block, mine)
    torch.clear_autocast_cache()
    if shown != (size := sum(part.size for part in world.parts)):
        raise Inconsistent(
            f"at step {world.step} {size} elements were moved, but {shown} were written to parameters.", REPORT
        )


def refuse_unshown(slots: Sequence[Slot]) -> None:
    """Raise Inconsistent if a parameter is not, bit for bit, the view of its lattice. For right after a step.

    Unlike `check_unedited` it trusts no copy of what was written before: it is a full pass over memory.
    """
    for s in slots:
        if _same_kind(s) and not (count := int(_unlike(s).sum())):
            continue
        seen = f"{count} of its {s.parameter.numel()} values" if _same_kind(s) else "its dtype, device or size"
        raise Inconsistent(
            f"{s.name} is not the view of its integers right after a step: {seen} differ, and no edit was made in "
            "between, unless by a hook on the optimizer's step.",
            f"edit weights between steps, never in a hook on step; without one, {REPORT}",
        )


def _pieces(flat: torch.Tensor, slots: Sequence[Slot]) -> Sequence[torch.Tensor]:
    """Views of a block's flat tensor, shaped like the parameters."""
    sizes = [s.stop - s.start for s in slots]
    if sum(sizes) == flat.numel() and all(sizes):
        return _unflatten_dense_tensors(flat, [s.parameter for s in slots])  # a fifth of the time of slicing
    return [flat[s.start : s.stop].view(s.parameter.shape) for s in slots]


def gather(slots: Sequence[Slot], world: World) -> None:
    """Copy gradients into their blocks, as float64; note where those of deep parts lie, and copy nothing.

    Args:
        slots: those that take part.
        world: of the step, with its parts.

    Raises:
        NonFinite: naming the first parameter whose gradient holds NaN or infinity (deep blocks: later, in their pass).
    """
    deep, step = _deep(world), world.step
    for block, mine in by_block(slots):
        grads = [s.parameter.grad for s in mine]
        for s, g in zip(mine, grads, strict=True):
            if g.is_sparse:
                raise InvalidSetting(
                    f"{s.name} has a sparse gradient; its dense state could not follow.", "use sparse=False."
                )
        block.drop_gradient()
        if id(block) in deep:
            block.gradients = partial(_copied, block, mine)
            given = [g if g.dtype is block.dtype else g.to(block.dtype) for g in grads]
            block.operands = _operands(block, mine, given, step)
            continue
        block.operands, block.gradients = None, None
        torch._foreach_copy_(_pieces(block.gradient, mine), grads)
        peaks = [torch.aminmax(block.gradient[a:b]) for a, b in runs(mine)]
        if not all(float(x.abs()) < float("inf") for pair in peaks for x in pair):
            refuse_not_finite(mine, step)


def refuse_not_finite(slots: Sequence[Slot], step: int) -> None:
    """Raise NonFinite, naming the first parameter whose gradient holds NaN or infinity."""
    for s in slots:
        if not torch.isfinite(s.parameter.grad).all():
            raise NonFinite(
                f"the gradient of {s.name} holds NaN or infinity at step {step}.",
                "look at this batch and lr, or clip the gradient; the step was not taken.",
            )


def _deep(world: World) -> set[int]:
    """The blocks of deep parts, by identity: those that are done in passes."""
    return {id(part.block) for part in world.parts if part.deep}


def locate(slots: Sequence[Slot], world: World) -> None:
    """Note where the parameters of deep parts lie, before their gradients are known."""
    deep = _deep(world)
    for block, mine in by_block(slots):
        block.operands = _operands(block, mine, None, 0) if id(block) in deep else None


def _operands(block: Block, slots: Sequence[Slot], grads: Sequence[torch.Tensor] | None, step: int) -> Operands:
    def inspect() -> None:
        check_unedited(slots)
        if grads is not None:
            refuse_not_finite(slots, step)

    for s in slots:
        _refuse_recast(s)
    sizes = [s.stop - s.start for s in slots]
    return Operands(sizes, [s.parameter for s in slots], grads, inspect)


def _copied(block: Block, slots: Sequence[Slot]) -> torch.Tensor:
    out = torch.empty(block.size, dtype=torch.float64, device=block.device)
    torch._foreach_copy_(_pieces(out, slots), [s.parameter.grad for s in slots])
    return out


def look(world: World) -> None:
    """Sum up the gradients of deep parts; raises NonFinite."""
    for part in world.deep:
        try:
            world.sums[id(part.block)] = gradient_sum(part)
        except Refused:
            part.block.operands.inspect()


def release(slots: Sequence[Slot]) -> None:
    """A step is over: hold nothing of the size of a deep block but its lattices."""
    for block, _ in by_block(slots):
        if block.deep:
            block.operands = block.gradients = None
            block.drop_gradient()


def runs(slots: Sequence[Slot]) -> list[tuple[int, int]]:
    """Contiguous element ranges of slots of one block."""
    out: list[tuple[int, int]] = []
    for s in slots:
        if out and out[-1][1] == s.start:
            out[-1] = (out[-1][0], s.stop)
        elif s.stop > s.start:
            out.append((s.start, s.stop))
    return out


def by_block(slots: Sequence[Slot]) -> list[tuple[Block, list[Slot]]]:
    """Slots grouped by block, order kept."""
    if slots and all(s.block is slots[0].block for s in slots):  # as a rule; asked five times a step
        return [(slots[0].block, list(slots))]
    grouped: dict[int, tuple[Block, list[Slot]]] = {}
    for s in slots:
        grouped.setdefault(id(s.block), (s.block, []))[1].append(s)
    return list(grouped.values())


def check_unedited(slots: Sequence[Slot], later: World | None = None) -> None:
    """Raise EditedOutside if a parameter is no longer the view of its lattice, bit for bit.

    Args:
        slots: all slots of one or more blocks.
        later: a step about to be taken or undone. Its deep parts are left out: `run` sees to it that each is compared,
            in its pass or after it.
    """
    skipped = set() if later is None else _deep(later)
    for block, mine in by_block(slots):
        if id(block) not in skipped and not _as_shown(block, mine):
            for s in mine:
                _refuse_recast(s)
            s, count = next((s, count) for s in mine if (count := int(_edited(s).sum())))
            raise EditedOutside(
                f"{s.name} was edited outside the optimizer: {count} of {s.parameter.numel()} values differ from its "
                "lattice.",
                "edit inside `with trajectory.edit():`, or call optimizer.adopt() to take the new values over.",
            )


@torch.no_grad()
def _as_shown(block: Block, slots: Sequence[Slot]) -> bool:
    shown = block.shown
    if shown is None:
        return all(_same_kind(s) and not bool(_edited(s).any()) for s in slots)
    try:
        now = _flatten_dense_tensors([s.parameter for s in slots])  # a quarter of the time of reshape and cat
    except RuntimeError:  # on several devices
        return False
    if now.dtype is not shown.dtype or now.device != shown.device or now.numel() != shown.numel():
        return False
    words, size = _BITS[shown.element_size()], shown.element_size()
    if shown.nbytes % 8 == 0 and now.storage_offset() * size % 8 == 0 and now.stride(0) == 1:
        words = torch.int64  # a single parameter is not copied, and may begin anywhere in its memory
    return torch.equal(now.view(words), shown.view(words))


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
    """Which of its elements have other bits than what was last written (-0.0 is not 0.0), flat."""
    if s.block.shown is None:
        return _unlike(s)
    return _bits(s.parameter.detach().reshape(-1)) != _bits(s.block.shown[s.start : s.stop])


def _unlike(s: Slot) -> torch.Tensor:
    """Which of its elements have other bits than the view of the lattice, flat."""
    view = s.block.lattices["q"].value(s.start, s.stop).to(s.block.dtype)
    return _bits(s.parameter.detach().reshape(-1)) != _bits(view)


def adopt(slots: Sequence[Slot]) -> int:
    """Take over values that were edited outside; elements that were not keep all their lattice bits.

    Returns:
        How many elements were edited.
    """
    moved: list[tuple[Slot, torch.Tensor, torch.Tensor]] = []
    for s in slots:
        _refuse_recast(s)
        edited, lattice = _edited(s), s.block.lattices["q"]
        if bool(edited.any()):
            q = to_lattice(s.parameter, lattice.exponent, lattice.n.dtype, s.name).reshape(-1)
            moved.append((s, edited, q))
    for s, edited, q in moved:
        n = s.block.lattices["q"].n[s.start : s.stop]
        n.copy_(torch.where(edited, q, n))
        s.block.lattices["q"].replaced()
    write(slots)
    return sum(int(edited.sum()) for _, edited, _ in moved)


def world_of(slots: Sequence[Slot], settings: Sequence[dict], world: World, counting: int) -> World:
    """Fill a world's parts: runs of neighbours of one block with the same step count, whatever lies between them in
    other blocks.

    Args:
        slots: those that take part, in order of their index.
        settings: of each param group.
        world: an empty one.
        counting: added to the slots' counts: 1 on the way forward, 0 on the way back.
    """
    last: dict[int, Part] = {}  # of each block, the part in progress
    for s in slots:
        if s.stop == s.start:
            continue
        part, count = last.get(id(s.block)), s.count + counting
        if part is not None and (part.stop, part.count) == (s.start, count):
            part.stop = s.stop
            part.cuts.append(s.start)
        else:
            part = Part(s.block, s.start, s.stop, settings[s.group], count, world, _namer(slots, s.block))
            last[id(s.block)] = part
            world.parts.append(part)
    return world


def _namer(slots: Sequence[Slot], block: Block) -> Callable[[int], str]:
    return lambda i: next((s.name for s in slots if s.block is block and s.start <= i < s.stop), "a parameter")
