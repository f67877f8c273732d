"""Running a program: ops in order, there and back; deep blocks in passes, everything else op by op.

Which ops make up a pass follows from the program alone, so that the way back finds the same passes. If a pass is
refused (a lattice must be made coarser first), the step does its ops one by one, and that is recorded.
"""

from collections.abc import Sequence

from ..errors import EditedOutside, LatticeOverflow
from .fused import Pass, Refused
from .lattice import peak
from .program import Contract, Op, Shear
from .trace import Untraceable
from .world import Part, World

Group = tuple[int, Sequence[Op]]


def run(ops: Sequence[Op], world: World, offset: int = 0, drifts: int | None = None) -> None:
    """Do the ops in order; if one is refused, undo those before it and raise.

    Args:
        ops: of a program.
        world: the step.
        offset: index of the first op in the program.
        drifts: where among them the drifts begin: they are done in the same walk as the last kicks if that is exact.
    """
    if not world.deep:
        _one_by_one([(offset, ops)], world, world.parts)
        return
    groups = [*_groups(ops[:drifts], offset), *(() if drifts is None else _groups(ops[drifts:], offset + drifts))]
    done: list[Group] = []
    try:
        while groups:
            now, passes = groups[:2], None
            if _joins(now, offset + (drifts or 0), world):
                passes = _passes(now, world, True)
            if passes is None:
                now = groups[:1]
                passes = _passes(now, world, True)
            _do(now, passes, world)
            done += now
            groups = groups[len(now) :]
        _inspect_others(ops, world)
    except BaseException:
        for group in reversed(done):
            _undo(group, world)
        raise


def run_back(ops: Sequence[Op], world: World, offset: int = 0) -> None:
    """Undo the ops, last first; if one cannot be undone, do those after it again and raise."""
    if not world.deep:
        _one_by_one([(offset, ops)], world, world.parts, False)
        return
    undone: list[Group] = []
    try:
        for group in reversed(_groups(ops, offset)):
            _undo(group, world)
            undone.append(group)
        _inspect_others(ops, world)
    except BaseException:
        for group in reversed(undone):
            _do([group], _passes([group], world, True), world)
        raise


def _inspect_others(ops: Sequence[Op], world: World) -> None:
    """Compare the weights that no pass has compared, since these ops did not move them after all (a drift of None)."""
    if any(op.target == "q" for op in ops):
        for part in world.deep:
            if not part.block.operands.shown:
                part.block.operands.inspect()
                part.block.operands.shown = True


def _groups(ops: Sequence[Op], offset: int) -> list[Group]:
    """Neighbours that can share a walk: none reads the sum of squares of what another of them changes."""
    groups: list[Group] = []
    changed: set[str] = set()
    for i, op in enumerate(ops):
        alone = not isinstance(op, (Contract, Shear))
        if not groups or alone or not changed or changed & set(op.needs):
            groups.append((offset + i, [op]))
            changed = set()
        else:
            groups[-1][1].append(op)
        changed |= set() if alone else {op.target}
    return groups


def _joins(groups: list[Group], border: int, world: World) -> bool:
    """Whether two groups can be one walk: the last kicks and the first drifts, if these have lanes of their own or
    leave the tape alone (on the way back all drifts are undone before any kick, and lanes are last in, first out). Each
    must be done, and undone, without a sum over what the other changes."""
    if len(groups) < 2 or groups[1][0] != border:
        return False
    (_, kicks), (_, drifts) = groups
    plain = all(isinstance(op, (Contract, Shear)) for op in (*kicks, *drifts))
    return (
        plain
        and not {op.target for op in kicks} & {name for op in drifts for name in op.needs}
        and "q" not in {name for op in kicks for name in (op.target, *op.needs)}
        and all(op.target == "q" for op in drifts)
        and all(isinstance(op, Shear) or part.block.drift_lanes for op in drifts for part in world.deep)
    )


def _do(groups: list[Group], passes: list[Pass] | None, world: World) -> None:
    """Do neighbouring groups, all or nothing."""
    ops = [op for _, group in groups for op in group]
    if passes is None or any(_flag(offset) in world.scalars for offset, _ in groups):
        _one_by_one(groups, world, world.parts)
        return
    rest = _rest(world)
    _one_by_one(groups, world, rest)
    done: list[Pass] = []
    try:
        for one in passes:
            found = one.run(one.block.operands, True)
            if one.reads_gradient:
                world.sums[id(one.block)] = found
            done.append(one)
    except BaseException as error:
        for one in reversed(done):
            Pass(one.part, ops, False).run(one.block.operands, True)
        _one_by_one(groups, world, rest, False)
        if not isinstance(error, Refused):
            raise
        _refuse(error, world)
        if _resolved(error, passes[len(done)].part, groups, world):
            try:
                _do(groups, _passes(groups, world, True), world)
            except BaseException:
                _refine(groups, world)
                raise
            return
        _refine(groups, world)  # op by op they are chosen anew, and recorded in that order
        for offset, _ in groups:
            world.scalars[_flag(offset)] = 1.0
        _one_by_one(groups, world, world.parts)


def _resolved(refused: Refused, part: Part, groups: Sequence[Group], world: World) -> bool:
    """Choose the resolution of lattices that are still zero and wait for their first update, as `make_room` does."""
    did = False
    for number, (position, op) in enumerate(_numbered(groups)):
        spare, largest = getattr(op, "spare", 0), refused.peaks.get(number, 0.0)
        if spare and not peak(part.integers(op.target)):
            world.position = position
            did |= world.make_room(part, op.target, largest, spare=spare)
    return did


def _refine(groups: Sequence[Group], world: World) -> None:
    """Undo what was made coarser in deep blocks for these ops, in whatever order that was."""
    ops, world.singly = dict(_numbered(groups)), world.deep
    left = -1
    while world.coarsened and world.coarsened[-1][0] in ops and len(world.coarsened) != left:
        left, world.position = len(world.coarsened), world.coarsened[-1][0]
        world.refine_back(ops[world.position].target)
    world.singly = world.parts


def _numbered(groups: Sequence[Group]) -> list[tuple[int, Op]]:
    return [(offset + i, op) for offset, group in groups for i, op in enumerate(group)]


def _undo(group: Group, world: World) -> None:
    """Undo a group, all or nothing."""
    offset, ops = group
    passes = _passes([group], world, False)
    if passes is None or _flag(offset) in world.scalars:
        _one_by_one([group], world, world.parts, False)
        return
    done: list[Pass] = []
    rest = _rest(world)
    try:
        for one in reversed(passes):
            one.run(one.block.operands, True)
            done.append(one)
        _one_by_one([group], world, rest, False)
        _refine([group], world)  # last: deep blocks were made coarser before the rest did anything
    except BaseException as error:
        for one in reversed(done):
            Pass(one.part, ops, True).run(one.block.operands, True)
        if not isinstance(error, Refused):
            raise
        _refuse(error, world)
        raise LatticeOverflow(
            f"undoing step {world.step} takes lattice {ops[0].target!r} past its end: this is not the path that was "
            "recorded, and undoing friction amplifies the difference.",
            "stop here, or go back from a smaller perturbation.",
        ) from None


def _refuse(refused: Refused, world: World) -> None:
    """Raise what the user is to be told, if it is the user's doing."""
    for part in world.deep:
        part.block.operands.inspect()
    if refused.edited:
        raise EditedOutside(
            "parameters were edited outside the optimizer.",
            "edit inside `with trajectory.edit():`, or call optimizer.adopt() to take the new values over.",
        )


def _flag(offset: int) -> str:
    """Name of the record that a group was done op by op."""
    return f"op by op {offset}"


def _rest(world: World) -> list[Part]:
    """Parts that are not done in passes."""
    deep = {id(part) for part in world.deep}
    return [part for part in world.parts if id(part) not in deep]


def _passes(groups: Sequence[Group], world: World, forward: bool) -> list[Pass] | None:
    """One for each deep block; None if a formula is not understood."""
    ops = [op for _, group in groups for op in group]
    try:
        return [Pass(part, ops, forward) for part in world.deep]
    except (Untraceable, TypeError):  # TypeError: torch functions, float(), comparisons
        return None


def _one_by_one(groups: Sequence[Group], world: World, parts: list[Part], forward: bool = True) -> None:
    """Do or undo ops one after the other on some parts; if one is refused, take back those before it and raise."""
    if not parts:
        return
    ops = _numbered(groups)
    moved = [part for part in parts if part in world.deep and any(op.target == "q" for _, op in ops)]
    for part in moved:
        part.block.operands.inspect()
    world.singly = parts
    done: list[tuple[int, Op]] = []
    try:
        for position, op in ops if forward else reversed(ops):
            world.position = position
            op.do(world) if forward else op.undo(world)
            done.append((position, op))
    except BaseException:
        if forward:
            world.refine_back(op.target)
        for position, op in reversed(done):
            world.position = position
            op.undo(world) if forward else op.do(world)
        raise
    finally:
        world.singly = world.parts
    for part in moved:
        part.block.operands.show(part.block)


def lost_share(ops: Sequence[Op], world: World) -> tuple[float, str]:
    """Share of non-zero updates that are below half the resolution, and so move nothing: the largest, and of what.

    Shears with `spare` are left out: the resolution of their lattice follows from the data. Of a deep block, the first
    row is looked at.
    """
    worst = 0.0, ""
    for op in ops:
        if isinstance(op, Shear) and not op.spare:
            moved = lost = 0
            for part in world.parts:
                f = op.increment(part.sample())
                if f is not None:
                    units = f.abs() * 2.0 ** part.block.lattices[op.target].exponent
                    moved += int((units > 0).sum())
                    lost += int(((units > 0) & (units < 0.5)).sum())
            worst = max(worst, (lost / moved if moved else 0.0, op.target))
    return worst
