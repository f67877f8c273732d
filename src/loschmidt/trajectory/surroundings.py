"""What a run holds besides integers, tape and journal: modes, buffers, and weights that no param group holds."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from ..exact.digest import checksum
from ..optim.buffers import uncompiled

if TYPE_CHECKING:
    from .trajectory import Trajectory


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's parameters by name; the same names whether it is compiled or not."""
    return {uncompiled(name): p for name, p in model.named_parameters()}


def modules(model: nn.Module) -> dict[str, nn.Module]:
    """The model and its modules by name; of what torch.compile put around a module, the module itself."""
    return {uncompiled(name): module for name, module in model.named_modules()}


def untracked(traj: "Trajectory") -> dict[str, nn.Parameter]:
    """The model's parameters that no param group holds, by name."""
    held = {id(s.parameter) for s in traj.optimizer._slots}
    return {name: p for name, p in parameters(traj.model).items() if id(p) not in held}


def checksums(traj: "Trajectory") -> dict[str, int]:
    """A checksum of each untracked parameter, made on its device."""
    out = {}
    for name, p in untracked(traj).items():
        raw = p.detach().contiguous().view(-1).view(torch.uint8)
        out[name] = checksum(F.pad(raw, (0, -raw.numel() % 8)))
    return out


def keep(traj: "Trajectory") -> Callable[[], None]:
    """Copy modes, buffers, untracked parameters and which parameters want a gradient; gives what puts them back."""
    modes = {m: m.training for m in traj.model.modules()}
    wants = {p: p.requires_grad for p in traj.model.parameters()}
    weights = {p: p.detach().clone() for p in untracked(traj).values()}
    buffers = traj.buffers.snapshot()

    def put_back() -> None:
        for module, mode in modes.items():
            module.training = mode
        for p, value in weights.items():
            p.detach().copy_(value)
        for p, flag in wants.items():
            p.requires_grad_(flag)
        traj.buffers.restore(buffers)

    return put_back
