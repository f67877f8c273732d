"""State to and from dictionaries and snapshots: integers stay integers, and nothing needs pickle.

`state_dict()["state"][i]` has the step count and the integers of parameter i, by lattice name ("q" the
parameters, "p" the momentum, "m" and "v" Adam's moments). Everything else that going back needs (exponents,
tape, journal) stands in the first param group under "loschmidt", where torch.distributed.checkpoint keeps it too.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InvalidSetting
from ..exact import Journal, exponent_of, to_lattice
from . import flat
from .settings import as_tuples

if TYPE_CHECKING:
    from .base import ReversibleOptimizer

EXTRA = "loschmidt"
FORMAT = 1


def expose(optimizer: "ReversibleOptimizer", slots: Sequence[flat.Slot]) -> None:
    """Show integer state in torch's place, `optimizer.state[parameter]`, as views."""
    for s in slots:
        optimizer.state[s.parameter] = {"step": s.count} | {k: s.integers(k) for k in s.block.lattices}


def describe(optimizer: "ReversibleOptimizer") -> dict[str, Any]:
    """Everything of the state that is neither a tensor nor a setting of a param group, as JSON values."""
    return {
        "format": FORMAT,
        "class": type(optimizer).__name__,
        "resolution": optimizer.resolution,
        "lattice": str(optimizer.lattice).removeprefix("torch."),
        "seed": optimizer.seed,
        "carried": {k: v.hex() for k, v in optimizer.carried.items()},
        "settings": optimizer._settings,
        "active": optimizer._active,
        "element_steps": optimizer.tape.element_steps,
        "counts": [s.count for s in optimizer._slots],
        "exponents": [{k: lat.exponent for k, lat in b.lattices.items()} for b, _ in flat.by_block(optimizer._slots)],
        "lanes": [lanes.core()[1] for lanes in optimizer.tape.lanes],
    }


def state_dict(optimizer: "ReversibleOptimizer", plain: dict[str, Any]) -> dict[str, Any]:
    """torch's dictionary with the state copied, and the extras added."""
    meta, tensors = describe(optimizer), {}
    for i, lanes in enumerate(optimizer.tape.lanes):
        tensors |= {f"tape.{i}.{k}": v for k, v in lanes.state()[0].items()}
    tensors |= {f"journal.{k}": v for k, v in optimizer.journal.state().items()}
    state = {
        i: {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        for i, values in plain["state"].items()
    }
    groups = [dict(group) for group in plain["param_groups"]]
    for group in groups:
        group.pop(EXTRA, None)
    groups[0][EXTRA] = {"meta": json.dumps(meta)} | tensors
    return plain | {"state": state, "param_groups": groups}


def load_state_dict(optimizer: "ReversibleOptimizer", given: dict[str, Any]) -> None:
    """Inverse of `state_dict`; everything is checked before anything is changed."""
    for hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        given = hook(optimizer, given) or given
    meta, extra, states = _validated(optimizer, given)
    for s, values in zip(optimizer._slots, states, strict=True):
        for k in s.block.lattices:
            s.integers(k).copy_(values[k])
        s.count = meta["counts"][s.index]
    for (block, _), exponents in zip(flat.by_block(optimizer._slots), meta["exponents"], strict=True):
        for name, e in exponents.items():
            block.lattices[name].exponent, block.lattices[name].bound = e, float("inf")
    for i, (lanes, about) in enumerate(zip(optimizer.tape.lanes, meta["lanes"], strict=True)):
        lanes.load({k: extra[f"tape.{i}.{k}"] for k in ("heads", "words", "moves", "masks")}, about)
    journal = {k.removeprefix("journal."): v for k, v in extra.items() if k.startswith("journal.")}
    optimizer.journal = Journal.from_state(journal)
    optimizer.resolution, optimizer.seed = meta["resolution"], meta["seed"]
    optimizer.carried = {k: float.fromhex(v) for k, v in meta["carried"].items()}
    optimizer._settings = meta["settings"] and [as_tuples(s) for s in meta["settings"]]
    optimizer._active, optimizer.tape.element_steps = meta["active"], meta["element_steps"]
    for group, saved in zip(optimizer.param_groups, given["param_groups"], strict=True):
        group.update({k: v for k, v in saved.items() if k not in ("params", EXTRA)})
    flat.write(optimizer._slots)
    expose(optimizer, optimizer._slots)
    optimizer.passes.done()
    for hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        hook(optimizer)


def _validated(
    optimizer: "ReversibleOptimizer", given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, torch.Tensor]]]:
    """The JSON values, the tensors, and the integers of each slot."""
    mine = type(optimizer).__name__
    groups = given.get("param_groups", [])
    extra = groups[0].get(EXTRA) if groups else None
    if not extra:
        raise InvalidSetting(
            f"this state_dict is not one of loschmidt's {mine}: it has floats, and no tape or journal.",
            "load the model's weights, construct the optimizer after that, and begin a new run from there.",
        )
    meta = json.loads(extra["meta"])
    if meta["format"] != FORMAT:
        raise InvalidSetting(
            f"this state_dict has format {meta['format']}; this version reads {FORMAT}.",
            "use the version of loschmidt that wrote it.",
        )
    lattice = str(optimizer.lattice).removeprefix("torch.")
    for what, theirs, ours in (("class", meta["class"], mine), ("lattice", meta["lattice"], lattice)):
        if theirs != ours:
            raise InvalidSetting(f"this state_dict is of {what} {theirs}, the optimizer of {ours}.", f"use {theirs}.")
    exponent_of(meta["resolution"])
    sizes = [len(group["params"]) for group in groups]
    if sizes != [len(group["params"]) for group in optimizer.param_groups]:
        raise InvalidSetting(
            f"this state_dict has {sum(sizes)} parameters in groups of {sizes}.",
            "construct the optimizer with the same parameters and groups.",
        )
    keys = [key for group in groups for key in group["params"]]  # numbers; names in torch.distributed.checkpoint
    states = [_integers(s, given["state"].get(key), meta) for s, key in zip(optimizer._slots, keys, strict=True)]
    return meta, extra, states


def _integers(slot: flat.Slot, values: dict[str, Any] | None, meta: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The saved integers of a parameter, by lattice name."""
    p, lattices = slot.parameter, slot.block.lattices
    if values is None and not p.requires_grad and meta["counts"][slot.index] == 0:
        # torch.distributed.checkpoint leaves frozen parameters out: theirs is the value that they have.
        e = exponent_of(meta["resolution"])
        q = to_lattice(p, e, lattices["q"].n.dtype, slot.name)
        return {k: q if k == "q" else torch.zeros_like(q) for k in lattices}
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
    return values


def snapshot(optimizer: "ReversibleOptimizer") -> dict[str, Any]:
    """A copy of the whole state that `restore` brings back; the tape's words are shared, not copied."""
    blocks = [{k: (x.n.clone(), x.exponent) for k, x in b.lattices.items()} for b, _ in flat.by_block(optimizer._slots)]
    return {
        "blocks": blocks,
        "lanes": [lanes.snapshot() for lanes in optimizer.tape.lanes],
        "journal": optimizer.journal.copy(),
        "counts": [s.count for s in optimizer._slots],
        "carried": dict(optimizer.carried),
        "settings": optimizer._settings,
        "active": optimizer._active,
        "element_steps": optimizer.tape.element_steps,
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
    }


def restore(optimizer: "ReversibleOptimizer", saved: dict[str, Any]) -> None:
    """Go back to a snapshot, any number of times. Param groups that were added since then go."""
    for s in optimizer._slots[len(saved["counts"]) :]:
        optimizer.state.pop(s.parameter, None)
    lists = {"counts": optimizer._slots, "lanes": optimizer.tape.lanes, "groups": optimizer.param_groups}
    for key, held in lists.items():
        del held[len(saved[key]) :]
    for (block, _), lattices in zip(flat.by_block(optimizer._slots), saved["blocks"], strict=True):
        for name, (n, exponent) in lattices.items():
            lattice = block.lattices[name]
            lattice.n.copy_(n)
            lattice.exponent, lattice.bound = exponent, float("inf")
    for lanes, held in zip(optimizer.tape.lanes, saved["lanes"], strict=True):
        lanes.restore(held)
    optimizer.journal, optimizer.carried = saved["journal"].returned(optimizer.journal), dict(saved["carried"])
    for s, count in zip(optimizer._slots, saved["counts"], strict=True):
        s.count = count
    optimizer._settings, optimizer._active = saved["settings"], saved["active"]
    optimizer.tape.element_steps = saved["element_steps"]
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(values)
    flat.write(optimizer._slots)
    expose(optimizer, optimizer._slots)
    optimizer.passes.done()
