"""Several processes (torch.distributed): what they must agree on, and what only one can do so far."""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from .. import interrupt
from ..errors import InvalidSetting
from ..exact import digest

if TYPE_CHECKING:
    from .base import ReversibleOptimizer


def count() -> int:
    """Processes of the default group; 1 if there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def agree(optimizer: "ReversibleOptimizer", section: interrupt.critical) -> None:
    """Raise InvalidSetting for an optimizer that reads the loss, in a group of several; or whose seed differs by rank.

    Seeds are compared once, at the first step and after loading, by one collective of all processes.
    """
    ranks = count()
    if ranks == 1:
        return
    if optimizer.needs_loss:
        name = type(optimizer).__name__
        raise InvalidSetting(
            f"{name} reads the value of the loss, and there are {ranks} processes: each would read that of its own "
            "batch, and their parameters would part, although gradients are averaged.",
            f"train with {name} in one process; SGD, Adam and AdamW read gradients only, and run under "
            "DistributedDataParallel.",
        )
    if optimizer._agreed:
        return
    # int64 in both backends; the largest, and minus the smallest, in one reduction
    own = _number(optimizer.seed)
    extremes = torch.tensor([own, -own], device=_device(optimizer))
    with section.interruptible():  # it waits for the others
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
    highest, lowest = extremes[0].item(), -extremes[1].item()
    if highest != lowest:
        raise InvalidSetting(
            f"seed={optimizer.seed!r} on rank {dist.get_rank()}, and another one on other ranks (they go from {lowest} "
            f"to {highest}): dropout masks inside `replay`, random draws and the digest would differ between ranks.",
            "construct the optimizer with the same seed on all ranks.",
        )
    optimizer._agreed = True


def _number(seed: object) -> int:
    small = isinstance(seed, int) and abs(seed) < 2**62
    return int(seed) if small else int(digest([repr(seed)], 7), 16)


def _device(optimizer: "ReversibleOptimizer") -> torch.device:
    return optimizer._slots[0].parameter.device if optimizer._slots else torch.device("cpu")
