"""Parameters laid out flat: one block of lattices for each (param group, device)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from ..errors import EditedOutside, InvalidSetting, NonFinite
from ..exact import Block, Lanes, Lattice, Part, World, to_lattice
from ..exact.digest import raw_bytes


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
        version: torch's version counter after our last write.
    """

    parameter: torch.nn.Parameter
    index: int
    name: str
    group: int
    block: Block
    start: int
    stop: int
    count: int = 0
    version: int = -1

    def integers(self, lattice: str) -> torch.Tensor:
        """Its integers, shaped like the parameter; a view."""
        return self.block.lattices[lattice].n[self.start : self.stop].view(self.parameter.shape)


def refuse_parameter(p: torch.Tensor, name: str) -> None:
    """Raise InvalidSetting for a parameter that cannot be wound back exactly."""
    if p.is_sparse:
        raise InvalidSetting(f"{name} is sparse; its lattice would not be.", "use a dense parameter.")
    if p.is_complex():
        raise InvalidSetting(f"{name} is complex ({p.dtype}).", "use torch.view_as_real and two real components.")
    if p.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise InvalidSetting(
            f"{name} has dtype {p.dtype}; float16 needs a GradScaler, whose skipped steps are not reversible.",
            "use float32, float64 or bfloat16.",
        )


def refuse_overlap(parameters: Sequence[torch.Tensor]) -> None:
    """Raise InvalidSetting if a parameter is given twice, or two share memory: each would overwrite the other."""
    seen: dict[int, torch.Tensor] = {}
    for p in parameters:
        if p.numel() and p.untyped_storage().data_ptr():
            other = seen.setdefault(p.data_ptr(), p)
            if other is not p:
                raise InvalidSetting(
                    f"two parameters of shapes {tuple(other.shape)} and {tuple(p.shape)} share one memory.",
                    "tie them by assigning the same Parameter object to both modules.",
                )
    if len({id(p) for p in parameters}) != len(parameters):
        raise InvalidSetting("a parameter is given twice.", "pass each parameter once (model.parameters() does).")


def build(
    group: int,
    parameters: Iterable[tuple[str, torch.nn.Parameter]],
    first_index: int,
    exponents: dict[str, int],
    dtype: torch.dtype,
    seed: int,
) -> list[Slot]:
    """Blocks and slots for one param group; the parameters are snapped to the lattice "q".

    Args:
        group: number of the param group.
        parameters: names and parameters, in the group's order.
        first_index: index of the first.
        exponents: e of each lattice's resolution 2**-e, "q" among them; the others start at zero.
        dtype: torch.int64 or torch.int32.
        seed: key of the tape's starting heads.
    """
    named = list(parameters)
    # Everything is rounded before anything is written, so that a refused value leaves all weights as they were.
    integers = [to_lattice(p, exponents["q"], dtype, name).reshape(-1) for name, p in named]
    slots: list[Slot] = []
    for number, device in enumerate(dict.fromkeys(p.device for _, p in named)):
        mine = [i for i, (_, p) in enumerate(named) if p.device == device]
        q = torch.cat([integers[i] for i in mine]) if mine else torch.empty(0, dtype=dtype, device=device)
        block = Block(
            {k: Lattice(q if k == "q" else torch.zeros_like(q), e) for k, e in exponents.items()},
            Lanes(q.numel(), (seed, group, number), device),
            torch.zeros(q.numel(), dtype=torch.float64, device=device),
        )
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
        whole = block.lattices["q"].value()
        views = [whole[s.start : s.stop].view(s.parameter.shape) for s in mine]
        with torch.no_grad():
            torch._foreach_copy_([s.parameter.detach() for s in mine], views)
        for s in mine:
            s.version = s.parameter._version


def gather(slots: Sequence[Slot], step: int) -> None:
    """Copy gradients into their blocks, as float64.

    Raises:
        NonFinite: naming the first parameter whose gradient holds NaN or infinity.
    """
    for block, mine in by_block(slots):
        grads = [s.parameter.grad for s in mine]
        for s, g in zip(mine, grads, strict=True):
            if g.is_sparse:
                raise InvalidSetting(
                    f"{s.name} has a sparse gradient; its dense state could not follow.", "use sparse=False."
                )
        views = [block.gradient[s.start : s.stop].view(s.parameter.shape) for s in mine]
        torch._foreach_copy_(views, grads)
        peaks = [torch.aminmax(block.gradient[a:b]) for a, b in runs(mine)]
        if not all(float(x.abs()) < float("inf") for pair in peaks for x in pair):
            bad = next((s for s, g in zip(mine, grads, strict=True) if not torch.isfinite(g).all()), mine[0])
            raise NonFinite(
                f"the gradient of {bad.name} holds NaN or infinity at step {step}.",
                "look at this batch and lr, or clip the gradient; the step was not taken.",
            )


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
    grouped: dict[int, tuple[Block, list[Slot]]] = {}
    for s in slots:
        grouped.setdefault(id(s.block), (s.block, []))[1].append(s)
    return list(grouped.values())


def check_unedited(slots: Sequence[Slot], full: bool = False) -> None:
    """Raise EditedOutside if a parameter is no longer the view of its lattice.

    Without `full` only parameters whose version counter moved are compared (edits through `.data` move none).
    """
    for s in slots:
        p = s.parameter
        if not full and p._version == s.version:
            continue
        expected = s.block.lattices["q"].value(s.start, s.stop).to(p.dtype).view(p.shape)
        if raw_bytes(p) != raw_bytes(expected):
            wrong = int((p.detach() != expected).sum())
            raise EditedOutside(
                f"{s.name} was edited outside the optimizer: {wrong} of {p.numel()} values differ from its lattice.",
                "edit inside `with trajectory.edit():`, or call optimizer.adopt() to take the new values over.",
            )
        s.version = p._version


def adopt(slots: Sequence[Slot]) -> int:
    """Take over values that were edited outside; elements that were not keep all their lattice bits.

    Returns:
        How many elements changed.
    """
    moved: list[tuple[Slot, torch.Tensor, torch.Tensor]] = []
    for s in slots:
        lattice, p = s.block.lattices["q"], s.parameter
        differs = (p.detach() != lattice.value(s.start, s.stop).to(p.dtype).view(p.shape)).reshape(-1)
        if bool(differs.any()):
            moved.append((s, differs, to_lattice(p, lattice.exponent, lattice.n.dtype, s.name).reshape(-1)))
    for s, differs, q in moved:
        n = s.block.lattices["q"].n[s.start : s.stop]
        n.copy_(torch.where(differs, q, n))
        s.block.lattices["q"].bound = float("inf")
    write([s for s, _, _ in moved])
    return sum(int(d.sum()) for _, d, _ in moved)


def world_of(slots: Sequence[Slot], settings: Sequence[dict], world: World, counting: int) -> World:
    """Fill a world's parts: runs of neighbours of one block with the same step count.

    Args:
        slots: those that take part, in order of their index.
        settings: of each param group.
        world: an empty one.
        counting: added to the slots' counts: 1 on the way forward, 0 on the way back.
    """
    last: Slot | None = None
    for s in slots:
        joins = last is not None and (last.block is s.block) and (last.stop, last.count) == (s.start, s.count)
        if joins:
            world.parts[-1].stop = s.stop
        elif s.stop > s.start:
            name_of = _namer(slots, s.block)
            world.parts.append(Part(s.block, s.start, s.stop, settings[s.group], s.count + counting, world, name_of))
        last = s if joins or s.stop > s.start else last
    return world


def _namer(slots: Sequence[Slot], block: Block) -> Callable[[int], str]:
    return lambda i: next((s.name for s in slots if s.block is block and s.start <= i < s.stop), "a parameter")
