"""Running a program: ops in order, there and back, in walks over memory.

Neighbouring contractions and shears share a walk, unless one reads a sum over what another of them changes, or a
formula is not understood. The tape is the same however ops are grouped: records and planes lie op by op, part by part,
row by row, so that the drifts of a step can be undone before its kicks.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import LatticeOverflow, LoschmidtError, NonFinite
from .kernels.eager import Failed, Result
from .kernels.trace import Trace, TracedPart, Untraceable, Value
from .kernels.walk import Walk
from .program import Contract, Op, Shear
from .ops import unroom
from .tape import by_rows, halved_bits, pop_all
from .world import Part, World, row_sums

Group = list[tuple[int, Op]]


def run(ops: Sequence[Op], world: World, offset: int = 0) -> None:
    """Do the ops in order, and make weights the view of "q"; if one is refused, undo those before it and raise.

    Args:
        ops: of a program.
        world: the step.
        offset: index of the first op in the program.
    """
    done: list[Group] = []
    try:
        for group in _groups(ops, offset):
            _forward(group, world, done)
    except BaseException:
        for group in reversed(done):
            _backward(group, world)
        raise


def run_back(ops: Sequence[Op], world: World, offset: int = 0) -> None:
    """Undo the ops, last first; if one cannot be undone, do those after it again and raise."""
    undone: list[Group] = []
    try:
        for group in reversed(_groups(ops, offset)):
            _backward(group, world, undone)
    except BaseException:
        for group in reversed(undone):
            _forward(group, world, [])
        raise


def look(world: World) -> None:
    """Sum up the words of the gradients; raises NonFinite."""
    for number, part in enumerate(world.parts):
        if number not in world.sums:
            try:
                world.sums[number] = Walk(Trace(part), True, looks=True).run().checksum
            except Failed as failed:
                _refuse(failed, part, world, ())


def traced_sum(part: Part, formula: Callable[[Part], torch.Tensor]) -> float:
    """`Part.sum_of`, in one walk where the formula is understood."""
    trace = Trace(part)
    try:
        f: Any = formula(TracedPart(part, trace))
        if not isinstance(f, Value):
            raise Untraceable(type(f).__name__)
    except (Untraceable, TypeError, RuntimeError):
        return row_sums(part, formula)
    trace.sum(f.name)
    return math.fsum(Walk(trace, True).run().sums[0].tolist())


def _groups(ops: Sequence[Op], offset: int) -> list[Group]:
    """Neighbours that share a walk: none reads the sum of squares of what another of them changes."""
    groups: list[Group] = []
    changed: set[str] = set()
    for position, op in enumerate(ops, offset):
        alone = not isinstance(op, (Contract, Shear))
        if not groups or alone or not changed or changed & set(op.needs):
            groups.append([(position, op)])
            changed = set()
        else:
            groups[-1].append((position, op))
        changed |= set() if alone else {op.target}
    return groups


def _forward(group: Group, world: World, done: list[Group]) -> None:
    """Do a group, in one walk if all its formulas are understood; note what was done."""
    if not isinstance(group[0][1], (Contract, Shear)):
        _alone(group, world, True)
        done.append(group)
        return
    while group:
        traces, length = _traced(group, world, True)
        now, group = group[:length], group[length:]
        _walk(now, world, traces)
        done.append(now)


def _traced(group: Group, world: World, forward: bool) -> tuple[list[Trace], int]:
    """Traces of the parts, and how many of the ops they hold: an op that is not understood is alone."""
    traces, length = [], len(group)
    for part in world.parts:
        trace = Trace(part)
        part.block.changing = trace.changed
        try:
            for k, (position, op) in enumerate(group[:length] if forward else group[::-1]):
                if not op.trace(part, trace, forward, position) and length > 1:
                    return _traced(group[: max(1, k)] if forward else group[-1:], world, forward)
        finally:
            part.block.changing = ()
        traces.append(trace)
    return traces, length


def _walk(group: Group, world: World, traces: list[Trace]) -> None:
    results: list[tuple[Trace, Result]] = []
    for number, trace in enumerate(traces):
        part = trace.part
        looks = number not in world.sums and bool(part.block.gradients)
        try:
            result = Walk(trace, True, _shows(trace), looks).run()
        except Failed as failed:
            for other, found in reversed(results):
                _take_back(group, other, found)
            for other, _ in results:
                if "q" in other.changed:
                    world.shown.discard(id(other.part))
            _refuse(failed, part, world, group)
        if looks:
            world.sums[number] = result.checksum
        results.append((trace, result))
    for trace, result in results:
        _take_over(trace, world)
    for position, op in group:
        for trace, result in results:
            if position in trace.shears:
                k = trace.shears.index(position)
                if result.quiet[k]:
                    trace.part.block.stack.push_nothing()
                else:
                    lattice = trace.part.block.lattices[op.target]
                    lattice.pushed += halved_bits(result.counts[k], trace.part.lengths)
                    trace.part.block.stack.push(result.counts[k], result.planes[k])
            elif position in trace.idle:
                trace.part.block.stack.push_nothing()


def _shows(trace: Trace) -> bool:
    return bool(trace.part.block.weights) and ("q" in trace.changed or "q" in trace.logs)


def _take_over(trace: Trace, world: World) -> None:
    first, last = trace.part.tensors_at
    for name, logs in trace.logs.items():
        trace.part.block.lattices[name].logs[first:last] = logs
    if _shows(trace):
        world.shown.add(id(trace.part))
        torch.autograd.graph.increment_version(
            [trace.part.block.weights[i] for i in range(first, last) if i in trace.part.block.weights]
        )


def _take_back(group: Group, trace: Trace, result: Result) -> None:
    """Undo a walk forward that is not on the tape yet."""
    inverse = _inverse(group, trace)
    planes = np.concatenate(result.planes) if result.planes else np.empty(0, np.uint8)
    Walk(inverse, False, _shows(inverse)).run(result.counts[::-1], planes)


def _inverse(group: Group, trace: Trace) -> Trace:
    """The trace of the way back, from where a trace forward led, or the other way round."""
    first, last = trace.part.tensors_at
    now = {name: list(trace.part.block.lattices[name].logs[first:last]) for name in trace.logs}
    for name, logs in trace.logs.items():
        trace.part.block.lattices[name].logs[first:last] = logs
    try:
        inverse = Trace(trace.part)
        for position, op in reversed(group):
            op.trace(trace.part, inverse, False, position)
        return inverse
    finally:
        for name, logs in now.items():
            trace.part.block.lattices[name].logs[first:last] = logs


def _backward(group: Group, world: World, undone: list[Group] | None = None) -> None:
    """Undo a group; note what was undone."""
    undone = [] if undone is None else undone
    if not isinstance(group[0][1], (Contract, Shear)):
        _alone(group, world, False)
        undone.append(group)
        return
    while group:
        traces, length = _traced(group, world, False)
        now, group = group[len(group) - length :], group[: len(group) - length]
        _walk_back(now, world, traces)
        undone.append(now)


def _walk_back(group: Group, world: World, traces: list[Trace]) -> None:
    places = [
        (position, number)
        for position, _ in reversed(group)
        for number, trace in reversed(list(enumerate(traces)))
        if position in trace.shears or position in trace.idle
    ]
    parts = [traces[number].part for _, number in places]
    held = dict(zip(places, pop_all([(part.block.stack, part.lengths) for part in parts]), strict=True))
    done: list[Trace] = []
    try:
        for number, trace in reversed(list(enumerate(traces))):
            mine = [held[position, number] for position in trace.shears]
            planes = np.concatenate([planes for _, planes in reversed(mine)]) if mine else None
            Walk(trace, False, _shows(trace)).run([counts for counts, _ in mine], planes)
            done.append(trace)
    except Failed as failed:
        for other in reversed(done):
            forward = _forward_again(group, other)
            Walk(forward, True, _shows(forward)).run()
        for part, popped in reversed(list(zip(parts, held.values(), strict=True))):
            part.block.stack.push(*popped)
        _refuse(failed, trace.part, world, group)
    for trace in traces:
        _take_over(trace, world)
    for (position, number), (counts, planes) in held.items():
        op, trace = dict(group)[position], traces[number]
        lattice = trace.part.block.lattices[op.target]
        lattice.pushed -= halved_bits(counts, trace.part.lengths)
        if position in trace.idle and counts.any():  # off the recorded path: it had something to add there
            unroom(lattice, trace.part.rows_at, counts, by_rows(counts, trace.part.lengths, planes))


def _forward_again(group: Group, trace: Trace) -> Trace:
    first, last = trace.part.tensors_at
    now = {name: list(trace.part.block.lattices[name].logs[first:last]) for name in trace.logs}
    for name, logs in trace.logs.items():
        trace.part.block.lattices[name].logs[first:last] = logs
    try:
        again = Trace(trace.part)
        for position, op in group:
            op.trace(trace.part, again, True, position)
        return again
    finally:
        for name, logs in now.items():
            trace.part.block.lattices[name].logs[first:last] = logs


def _alone(group: Group, world: World, forward: bool) -> None:
    ((_, op),) = group
    if op.target == "q":
        for block in world.blocks:
            block.inspect()
        world.shown.clear()
        world.moved = True
    op.do(world) if forward else op.undo(world)


def _refuse(failed: Failed, part: Part, world: World, group: Sequence[tuple[int, Op]]) -> None:
    """Raise what the user is to be told."""
    first = part.rows_at[0] + failed.row
    name = part.name_of(int(part.block.rows.starts[first]))
    target = next((op.target for position, op in group if position == failed.op), "")
    part.block.inspect()
    if failed.kind == "not finite":
        raise NonFinite(
            f"{name}: at step {world.step} the update of {target!r} is not finite.",
            "look at the loss and lr of this step.",
        ) from None
    if failed.kind == "too large":
        raise LatticeOverflow(
            f"{name}: at step {world.step} the update takes {target!r} beyond any unit of {part.block.work}.",
            "lower lr (a diverging run needs this), or clip the gradient.",
        ) from None
    if failed.kind == "left the lattice":
        raise LatticeOverflow(
            f"{name}: undoing step {world.step} takes lattice {target!r} past its end: this is not the path that was "
            "recorded, and undoing friction amplifies the difference.",
            "stop here, or go back from a smaller perturbation.",
        ) from None
    raise LoschmidtError(f"{name}: step {world.step} was refused ({failed.kind}).", "report it.") from None


def lost_share(ops: Sequence[Op], world: World) -> tuple[float, str]:
    """Share of non-zero updates that are below half the resolution, and so move nothing: the largest, and of what.

    Only lattices that have a resolution are asked, and of each part its first tensor.
    """
    worst = 0.0, ""
    for op in ops:
        for part in world.parts if isinstance(op, Shear) else ():
            lattice, first = part.block.lattices[op.target], part.tensors[0]
            f = None if lattice.resolution is None or op.dithered else op.increment(first)
            if f is not None:
                u = part.block.rows.spread(lattice.units(*first.rows_at), *first.rows_at, f.device)
                units = f.abs().to(torch.float64) / u
                moved, lost = int((units > 0).sum()), int(((units > 0) & (units < 0.5)).sum())
                worst = max(worst, (lost / moved if moved else 0.0, op.target))
    return worst
