"""State to and from dictionaries and snapshots: integers stay integers, and nothing needs pickle.

`state_dict()["state"][i]` has the step count and the integers of parameter i, by lattice name ("q" the
parameters, "p" the momentum, "m" and "v" Adam's moments). Everything else that going back needs (units, tape,
journal) stands in the first param group under "loschmidt", where torch.distributed.checkpoint keeps it too.
A last param group without parameters says whose state it is: torch's own optimizers, which would go on without a
momentum or fail at the next step, refuse to load it for the number of its groups.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import interrupt
from ..errors import InvalidSetting, LoschmidtError
from ..exact import Journal, Lattice, Stack
from ..exact.lattice import peak
from . import flat
from .integers import as_argument, described
from .settings import Settings, as_tuples, plain, present, put

if TYPE_CHECKING:
    from .base import ReversibleOptimizer

EXTRA = "loschmidt"
FORMAT = 2
MOST_LOG = 1 << 91
"""Bound of logarithms of units: exponents of rows, which balance them, have 32 bits."""
MOST_EXPONENT = 2000
"""Bound of the exponent of a whole unit: no arithmetic here has larger ones."""
NOT_TORCHS = "a state of loschmidt's {}: torch.optim cannot go on from it. Load the model's weights, and begin anew."


def expose(optimizer: "ReversibleOptimizer", slots: Sequence[flat.Slot]) -> None:
    """Show integer state in torch's place, `optimizer.state[parameter]`, as views."""
    for s in slots:
        s.state = optimizer.state[s.parameter] = {"step": s.count} | {k: s.integers(k) for k in s.block.lattices}


def refuse_other_state(optimizer: "ReversibleOptimizer") -> None:
    """Raise InvalidSetting if `optimizer.state` was replaced or emptied: the state itself is elsewhere."""
    for s in optimizer._slots:
        if optimizer.state.get(s.parameter) is not s.state:
            raise InvalidSetting(
                f"optimizer.state[{s.name}] was replaced or removed; it only shows the state, and nothing was reset.",
                "construct a new optimizer to begin anew, or call load_state_dict to go back to a state.",
            )


def describe(optimizer: "ReversibleOptimizer") -> dict[str, Any]:
    """Everything of the state that is neither a tensor nor a setting of a param group, as JSON values.

    Raises:
        InvalidSetting: settings with which it could not be loaded, since no step could be taken with them.
    """
    present(optimizer)
    return {
        "format": FORMAT,
        "class": type(optimizer).__name__,
        "resolution": optimizer.resolution,
        "lattice": described(optimizer.integer_types),
        "seed": optimizer.seed,
        "accumulates": optimizer.accumulates,
        "carried": {k: v.hex() for k, v in optimizer.carried.items()},
        "settings": optimizer._settings,
        "active": optimizer._active,
        "element_steps": optimizer.tape.element_steps,
        "counts": [s.count for s in optimizer._slots],
        "lattices": [
            {k: {"logs": x.logs, "pushed": x.pushed} for k, x in b.lattices.items()}
            for b, _ in flat.by_block(optimizer._slots)
        ],
        "forgotten": [[x.planes.forgotten, x.records.forgotten] for x in optimizer.tape],
    }


def exponents(optimizer: "ReversibleOptimizer") -> dict[str, torch.Tensor]:
    """Exponents of all rows, by block and lattice; views."""
    blocks = enumerate(block for block, _ in flat.by_block(optimizer._slots))
    return {f"e.{i}.{k}": torch.from_numpy(x.e) for i, block in blocks for k, x in block.lattices.items()}


def state_dict(optimizer: "ReversibleOptimizer", torchs: dict[str, Any]) -> dict[str, Any]:
    """torch's dictionary with the state copied, and the extras added."""
    refuse_other_state(optimizer)
    meta, tensors = describe(optimizer), _copied(exponents(optimizer))
    for i, stack in enumerate(optimizer.tape):
        tensors |= {f"tape.{i}.{k}": v for k, v in stack.state()[0].items()}
    tensors |= {f"journal.{k}": v for k, v in optimizer.journal.state().items()}
    state = {i: _copied(values) for i, values in torchs["state"].items()}
    groups = [_copied(group) for group in torchs["param_groups"]]
    for group in groups:
        group.pop(EXTRA, None)
        numbers = {k: v for k, v in group.items() if k in optimizer.defaults and not isinstance(v, torch.Tensor)}
        group |= plain(numbers)
    mark = groups[0] | {"params": [], EXTRA: NOT_TORCHS.format(type(optimizer).__name__)}
    groups[0][EXTRA] = {"meta": json.dumps(meta)} | tensors
    groups.append({k: v for k, v in mark.items() if k != "param_names"})
    return torchs | {"state": state, "param_groups": groups}


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()}


@dataclass
class _Parsed:
    """A state_dict, read and checked."""

    meta: dict[str, Any]
    groups: list[dict[str, Any]]
    integers: list[dict[str, torch.Tensor]]  # of each slot
    lattices: list[dict[str, Lattice]]  # of each block: units, without integers
    stacks: list[Stack]
    journal: Journal
    carried: dict[str, float]
    settings: Settings | None


def load_state_dict(optimizer: "ReversibleOptimizer", given: dict[str, Any]) -> None:
    """Inverse of `state_dict`; everything is read and checked before anything is changed."""
    for hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        given = hook(optimizer, given) or given
    groups = [group for group in given.get("param_groups", []) if not isinstance(group.get(EXTRA), str)]
    given = given | {"param_groups": groups}
    parsed = _parsed(optimizer, given)
    with interrupt.critical(), torch.no_grad():
        _take_over(optimizer, parsed)
    for hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        hook(optimizer)


def _take_over(optimizer: "ReversibleOptimizer", parsed: _Parsed) -> None:
    meta = parsed.meta
    for s, integers in zip(optimizer._slots, parsed.integers, strict=True):
        for k in s.block.lattices:
            s.integers(k).copy_(integers[k])
        s.count = meta["counts"][s.index]
    blocks = [block for block, _ in flat.by_block(optimizer._slots)]
    for block, lattices, stack in zip(blocks, parsed.lattices, parsed.stacks, strict=True):
        block.stack = stack
        for name, units in lattices.items():
            put_units(block.lattices[name], (units.e, units.logs, units.pushed))
    optimizer.tape.stacks, optimizer.tape.element_steps = parsed.stacks, meta["element_steps"]
    optimizer.journal, optimizer.carried = parsed.journal, parsed.carried
    optimizer.seed, optimizer._agreed = meta["seed"], False
    optimizer.accumulates = optimizer.accumulates or meta.get("accumulates") is True
    optimizer._settings, optimizer._active = parsed.settings, meta["active"]
    for group, saved in zip(optimizer.param_groups, parsed.groups, strict=True):
        put(group, {k: v for k, v in saved.items() if k not in ("params", EXTRA)})
    flat.write(optimizer._slots)
    expose(optimizer, optimizer._slots)
    optimizer.passes.done()


def _parsed(optimizer: "ReversibleOptimizer", given: dict[str, Any]) -> _Parsed:
    mine, groups = type(optimizer).__name__, given.get("param_groups", [])
    extra = groups[0].get(EXTRA) if groups else None
    if not extra:
        if any("q" in values for values in given.get("state", {}).values()):
            seen = "it has integers, but no tape and no journal (flatten_optimizer_state_dict=True drops them)"
            remedy = "save and load with StateDictOptions(flatten_optimizer_state_dict=False), the default."
        else:
            seen = "it has floats, and no tape or journal"
            remedy = "load the model's weights, construct the optimizer after that, and begin a new run from there."
        raise InvalidSetting(f"this state_dict is not one of loschmidt's {mine}: {seen}.", remedy)
    try:
        return _read(optimizer, given, extra)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
        if isinstance(error, LoschmidtError):
            raise
        seen = f"this state_dict is damaged or incomplete ({type(error).__name__}: {error})."
        raise InvalidSetting(seen, "use another copy.") from error


def _read(optimizer: "ReversibleOptimizer", given: dict[str, Any], extra: dict[str, Any]) -> _Parsed:
    meta, groups, slots = json.loads(extra["meta"]), given["param_groups"], optimizer._slots
    if meta["format"] != FORMAT:
        raise InvalidSetting(
            f"this state_dict has format {meta['format']}; this version reads {FORMAT}.",
            "use the version of loschmidt that wrote it.",
        )
    mine, lattice = type(optimizer).__name__, described(optimizer.integer_types)
    if meta["class"] != mine:
        raise InvalidSetting(
            f"this state_dict is of class {meta['class']}, the optimizer of {mine}.", f"use {meta['class']}."
        )
    if meta["lattice"] != lattice:
        theirs, ours = as_argument(meta["lattice"]), as_argument(lattice)
        raise InvalidSetting(
            f"this state_dict is of {theirs}, the optimizer of {ours}.", f"construct it with {theirs}."
        )
    if meta["resolution"] != optimizer.resolution:
        theirs = f"resolution={meta['resolution']!r}"
        raise InvalidSetting(
            f"this state_dict has {theirs}, the optimizer {optimizer.resolution!r}.", f"construct it with {theirs}."
        )
    sizes = [len(group["params"]) for group in groups]
    if sizes != [len(group["params"]) for group in optimizer.param_groups]:
        raise InvalidSetting(
            f"this state_dict has {sum(sizes)} parameters in groups of {sizes}.",
            "construct the optimizer with the same parameters and groups.",
        )
    keys = [key for group in groups for key in group["params"]]  # numbers; names in torch.distributed.checkpoint
    blocks = [block for block, _ in flat.by_block(slots)]
    lattices = []
    for i, (block, each) in enumerate(zip(blocks, meta["lattices"], strict=True)):
        require_same(each.keys() == block.lattices.keys())
        lattices.append({k: _units(x, extra[f"e.{i}.{k}"], each[k]) for k, x in block.lattices.items()})
    units = {id(block): each for block, each in zip(blocks, lattices, strict=True)}
    integers = [
        _integers(s, given["state"].get(key), units[id(s.block)], meta) for s, key in zip(slots, keys, strict=True)
    ]
    stacks = []
    for i, (_, forgotten) in enumerate(zip(blocks, meta["forgotten"], strict=True)):
        stacks.append(_stack({k: extra[f"tape.{i}.{k}"] for k in Stack.__slots__}, forgotten))
    journal = Journal.from_state({k.removeprefix("journal."): v for k, v in extra.items() if k.startswith("journal.")})
    settings = meta["settings"] and [as_tuples(s) for s in meta["settings"]]
    carried = {k: float.fromhex(v) for k, v in meta["carried"].items()}
    for s in settings or ():
        optimizer.check_settings(s)
    present(optimizer, groups)
    require_same(
        len(meta["counts"]) == len(slots)
        and all(type(count) is int and count >= 0 for count in meta["counts"])
        and set(meta["active"] or ()) <= set(range(len(slots)))
        and isinstance(meta["element_steps"], int)
        and (settings is not None or not journal.steps)
    )
    return _Parsed(meta, groups, integers, lattices, stacks, journal, carried, settings)


def require_same(fits: bool) -> None:
    """Raise InvalidSetting unless a state_dict's parts fit together."""
    if not fits:
        raise InvalidSetting("this state_dict's parts do not fit together.", "use another copy.")


def _units(lattice: Lattice, e: torch.Tensor, about: dict[str, Any]) -> Lattice:
    """A lattice like this one, with the saved units and without integers."""
    logs, pushed = about["logs"], about["pushed"]
    require_same(e.dtype is torch.int32 and tuple(e.shape) == lattice.e.shape and len(logs) == len(lattice.logs))
    require_same(all(type(x) is int and abs(x) <= MOST_LOG for x in (*logs, pushed)))
    out = Lattice(lattice.n[:0], e.cpu().numpy().copy(), lattice.rows, lattice.resolution, lattice.spare)
    out.logs, out.pushed = list(logs), pushed
    require_same(bool((abs(out.exponents()) <= MOST_EXPONENT).all()))
    return out


def _stack(tensors: dict[str, torch.Tensor], forgotten: list[int]) -> Stack:
    """A tape, of bytes only."""
    require_same(all(x.dtype is torch.uint8 and x.dim() == 1 for x in tensors.values()))
    require_same(len(forgotten) == len(tensors) and all(type(x) is int and x >= 0 for x in forgotten))
    stack = Stack()
    stack.load(tensors, {"forgotten": forgotten})
    return stack


def _integers(
    slot: flat.Slot, values: dict[str, Any] | None, units: dict[str, Lattice], meta: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The saved integers of a parameter, by lattice name."""
    p, lattices = slot.parameter, slot.block.lattices
    if values is None and not p.requires_grad and meta["counts"][slot.index] == 0:
        # torch.distributed.checkpoint leaves frozen parameters out: theirs is the value that they have.
        zeros = {k: torch.zeros_like(slot.integers(k)) for k in lattices}
        return zeros | ({"q": flat.rounded_to(slot, units["q"])} if p.numel() else {})
    values = values or {}
    for k, lattice in lattices.items():
        x = values.get(k)
        seen = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else "nothing"
        expected = f"{lattice.n.dtype} of shape {tuple(p.shape)}"
        if seen != expected:
            raise InvalidSetting(
                f"this state_dict has {seen} as {k!r} of {slot.name}, where the optimizer has {expected}.",
                "construct the optimizer with the same parameters and groups, and leave the integers as they are.",
            )
        require_same(peak(x) < 2 * lattice.limit)
    return values


Units = tuple[np.ndarray, list[int], int]


def units_of(lattice: Lattice) -> Units:
    """A copy of a lattice's exponents and logarithms, and its count of bits pushed."""
    return lattice.e.copy(), list(lattice.logs), lattice.pushed


def put_units(lattice: Lattice, units: Units) -> None:
    """Take over what `units_of` gave, after the integers."""
    lattice.e[:], lattice.logs[:], lattice.pushed = units
    lattice.replaced()


def snapshot(optimizer: "ReversibleOptimizer") -> dict[str, Any]:
    """A copy of the whole state that `restore` brings back; the tape's bytes are shared, not copied."""
    lattices = [(x.n.clone(), units_of(x)) for x in optimizer.tape.lattices]
    return {
        "lattices": lattices,
        "stacks": [stack.snapshot() for stack in optimizer.tape],
        "journal": optimizer.journal.copy(),
        "counts": [s.count for s in optimizer._slots],
        "carried": dict(optimizer.carried),
        "settings": optimizer._settings,
        "active": optimizer._active,
        "element_steps": optimizer.tape.element_steps,
        "schedulers": optimizer.schedulers.notes(),
        "groups": [_copied({k: v for k, v in group.items() if k != "params"}) for group in optimizer.param_groups],
    }


def restore(optimizer: "ReversibleOptimizer", saved: dict[str, Any]) -> None:
    """Go back to a snapshot, any number of times. Param groups that were added since then go."""
    with interrupt.critical(), torch.no_grad():
        _put_back(optimizer, saved)


def _put_back(optimizer: "ReversibleOptimizer", saved: dict[str, Any]) -> None:
    for s in optimizer._slots[len(saved["counts"]) :]:
        optimizer.state.pop(s.parameter, None)
    tape = optimizer.tape
    lists = {"counts": optimizer._slots, "groups": optimizer.param_groups}
    for key, held in (lists | {"stacks": tape.stacks, "lattices": tape.lattices}).items():
        del held[len(saved[key]) :]
    for lattice, (n, units) in zip(tape.lattices, saved["lattices"], strict=True):
        lattice.n.copy_(n)
        put_units(lattice, units)
    for stack, held in zip(tape.stacks, saved["stacks"], strict=True):
        stack.restore(held)
    optimizer.journal, optimizer.carried = saved["journal"].returned(optimizer.journal), dict(saved["carried"])
    for s, count in zip(optimizer._slots, saved["counts"], strict=True):
        s.count = count
    optimizer._settings, optimizer._active = saved["settings"], saved["active"]
    optimizer.tape.element_steps = saved["element_steps"]
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        put(group, values)
    optimizer.schedulers.put(optimizer, saved["schedulers"])
    flat.write(optimizer._slots)
    expose(optimizer, optimizer._slots)
    optimizer.passes.done()
