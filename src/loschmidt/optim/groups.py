"""Param groups: what is accepted, and how one is added."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from . import flat, memory, serial
from .settings import refuse_group

if TYPE_CHECKING:
    from .base import ReversibleOptimizer


def add(optimizer: "ReversibleOptimizer", param_group: dict[str, Any], add_to_torchs: Callable[[Any], None]) -> None:
    """Check a group, hand it to torch's `add_param_group`, and lay its parameters out."""
    group, at = len(optimizer.param_groups), len(optimizer._slots)
    params = param_group["params"]
    if isinstance(params, set):
        raise TypeError("parameters have no order in a set; pass a list.")
    params = [params] if isinstance(params, torch.Tensor) else list(params)
    bare = [x[1] if isinstance(x, tuple) else x for x in params]
    names = [x[0] if isinstance(x, tuple) else f"parameter {i} of group {group}" for i, x in enumerate(params)]
    tensors = [(name, p) for name, p in zip(names, bare, strict=True) if isinstance(p, torch.Tensor)]
    for name, p in tensors:
        memory.refuse_parameter(p, name)
    memory.refuse_overlap([s.parameter for s in optimizer._slots] + [p for _, p in tensors])
    refuse_group(optimizer, param_group)
    if optimizer.param_groups:  # torch wants all groups with names, or none
        params = list(zip(names, bare, strict=True)) if "param_names" in optimizer.param_groups[0] else bare
    add_to_torchs(param_group | {"params": params})
    try:
        named = list(zip(names, optimizer.param_groups[-1]["params"], strict=False))
        new = flat.build(group, named, at, optimizer.choices)
    except BaseException:
        optimizer.param_groups.pop()
        raise
    optimizer._slots += new
    for block, _ in flat.by_block(new):
        optimizer.tape.stacks.append(block.stack)
        optimizer.tape.lattices += block.lattices.values()
    serial.expose(optimizer, new)
