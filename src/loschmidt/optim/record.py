"""What a step leaves behind besides remainders: pushed to the journal with the step, popped when it is undone."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from ..exact import World
from .settings import Settings, pack, put, unpack

if TYPE_CHECKING:
    from .base import ReversibleOptimizer


def push(
    optimizer: "ReversibleOptimizer",
    world: World,
    settings: Settings,
    active: list[int],
    check: int,
    parts: Sequence[dict[str, Any]] = (),
) -> None:
    """The step is taken: count it, and note what going back needs and what changed since the step before.

    Args:
        optimizer: that took it.
        world: of the step.
        settings: that it used.
        active: indices of the slots that took part.
        check: checksum of its gradient.
        parts: what each kick and drift of a composed step left.
    """
    entry: dict[str, Any] = {"scalars": world.scalars, "buffers": optimizer.passes.done()}
    entry |= {"parts": list(parts)}
    entry = {k: v for k, v in entry.items() if v}
    if optimizer._settings is not None and optimizer._settings != settings:
        entry["settings"] = pack(optimizer._settings, settings)
    if optimizer._active is not None and optimizer._active != active:
        entry["active"] = optimizer._active
    optimizer._settings, optimizer._active = settings, active
    optimizer.carried.update({k: v for k, v in world.scalars.items() if k in optimizer.carries})
    history = optimizer.conclude(world)
    if history:
        entry["carried"] = {k: optimizer.carried.get(k) for k in history}
        optimizer.carried.update(history)
    _count(optimizer, active, 1)
    optimizer.backward.clear()
    optimizer.schedulers.note_step(optimizer, changed="settings" in entry)
    optimizer.journal.push(check, entry)


def pop(optimizer: "ReversibleOptimizer", active: list[int]) -> None:
    """The last step is undone: so is what `push` did, and the param groups have the settings that it used."""
    used, entry = optimizer._settings, optimizer.journal.pop()
    _count(optimizer, active, -1)
    optimizer.backward.clear()
    for name in entry.get("scalars", {}):
        optimizer.carried.pop(name, None)
    before = entry.get("carried", {})
    for name in before:
        optimizer.carried.pop(name, None)
    optimizer.carried.update({k: v for k, v in before.items() if v is not None})
    if optimizer.steps == 0:
        optimizer._settings = optimizer._active = None
    else:
        optimizer._settings = unpack(entry.get("settings"), used)
        optimizer._active = entry.get("active", active)
    shared = {key: used[0][key] for key in optimizer.shared if key in used[0]}
    for group, settings in zip_longest(optimizer.param_groups, used, fillvalue=shared):  # of groups added later, too
        put(group, settings)
    optimizer.schedulers.put(optimizer, used[0])
    optimizer.schedulers.put_back = used


def _count(optimizer: "ReversibleOptimizer", active: list[int], sign: int) -> None:
    for i in active:
        s = optimizer._slots[i]
        s.count += sign
        s.state["step"] = s.count
        optimizer.tape.element_steps += sign * (s.stop - s.start)
