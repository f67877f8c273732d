"""Replaying a forward pass in anybody's training loop: the same random numbers, and buffers put back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from ..exact import random
from ..exact.digest import raw_bytes

if TYPE_CHECKING:
    from .base import ReversibleOptimizer


class BufferWatch:
    """Remembers the buffers of every module whose forward runs while it is open, as they were before."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __enter__(self) -> "BufferWatch":
        self._hook = register_module_forward_pre_hook(self._see)
        return self

    def __exit__(self, *exc: object) -> None:
        self._hook.remove()

    def _see(self, module: torch.nn.Module, _inputs: object) -> None:
        for b in module._buffers.values():
            if b is not None and id(b) not in self._before:
                self._before[id(b)] = (b, b.detach().clone())

    def changed(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(buffer, its value before) of those whose bits are different now."""
        return [(b, old) for b, old in self._before.values() if raw_bytes(b) != raw_bytes(old)]

    def restore(self) -> None:
        """Put every buffer back."""
        with torch.no_grad():
            for b, old in self.changed():
                b.copy_(old)


@contextmanager
def replay(optimizer: "ReversibleOptimizer") -> Iterator[None]:
    """Make a forward (and backward) pass repeatable, for loops without a `Trajectory`.

    Use it around the passes of every step, and again inside the closure given to `unstep`. Inside, torch,
    numpy and `random` are seeded from (the optimizer's seed, the step, how often it was entered in this step)
    and put back on leaving. Buffers that modules change in their forward (BatchNorm's) are noted for the
    journal on the way out, and set back by `unstep`.

    Guarantees: dropout masks and buffers of the step come back bit for bit, if the passes are run in the same
    order. Breaks: randomness from elsewhere (own generators, files, time).

    Example:
        >>> import torch, loschmidt as lo
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
        >>> opt = lo.optim.SGD(model.parameters(), lr=0.1)
        >>> before = model[0].weight.detach().clone()
        >>> def passes():
        ...     opt.zero_grad()
        ...     with lo.replay(opt):
        ...         loss = model(torch.ones(8, 4)).square().mean()
        ...         loss.backward()
        ...     return loss
        >>> _ = passes(); _ = opt.step()
        >>> _ = opt.unstep(passes)
        >>> torch.equal(model[0].weight, before)
        True
    """
    step, visit = optimizer._replay_position()
    with random.isolated(), BufferWatch() as watch:
        random.seed_all("replay", optimizer.seed, step, visit)
        yield
    optimizer._note_buffers(watch.changed())
