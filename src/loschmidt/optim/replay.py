"""Replaying a forward pass in anybody's training loop: the same random numbers, and buffers put back."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from ..exact import random
from ..exact.digest import raw_bytes

if TYPE_CHECKING:
    from .base import ReversibleOptimizer

_LARGE = 1 << 16


@dataclass
class _Kept:
    module: "weakref.ref[torch.nn.Module]"
    attribute: str
    copy: torch.Tensor
    version: int

    @property
    def live(self) -> torch.Tensor | None:
        module = self.module()
        return None if module is None else module._buffers.get(self.attribute)


class Buffers:
    """Copies of module buffers, so that what a forward pass changed is noticed and can be put back.

    Buffers of up to 65,536 elements are compared bit for bit (batch norm's kernel moves no version counter);
    larger ones (masks, tables) only when their version counter has moved.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._seen: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()

    def see(self, module: torch.nn.Module, prefix: str | None = None) -> None:
        """Keep the module's own buffers; named "prefix.attribute", or by a number in the order of first sight."""
        if module in self._seen:
            return
        self._seen.add(module)
        for attribute, b in module._buffers.items():
            if b is not None:
                name = str(len(self._kept)) if prefix is None else f"{prefix}.{attribute}".lstrip(".")
                self._kept[name] = _Kept(weakref.ref(module), attribute, b.detach().clone(), b._version)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See every module whose forward runs inside, before it runs."""
        hook = register_module_forward_pre_hook(lambda module, _inputs: self.see(module))
        try:
            yield
        finally:
            hook.remove()

    def edited(self, full: bool = False) -> dict[str, torch.Tensor]:
        """Values before, by name, of the buffers whose bits changed since the last look.

        `full` compares the large ones too.
        """
        out = {}
        for name, kept in self._kept.items():
            b = kept.live
            if b is None or (not full and b.numel() > _LARGE and b._version == kept.version):
                continue
            if b.shape != kept.copy.shape or b.dtype != kept.copy.dtype or raw_bytes(b) != raw_bytes(kept.copy):
                out[name] = kept.copy
        return out

    def changed(self, full: bool = False) -> dict[str, torch.Tensor]:
        """What `edited` says; and the present values are the ones to compare with from now on."""
        out = self.edited(full)
        for name in out:
            kept = self._kept[name]
            kept.copy, kept.version = kept.live.detach().clone(), kept.live._version
        return out

    def snapshot(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Present values and copies, for `restore`."""
        return {name: (k.live.detach().clone(), k.copy) for name, k in self._kept.items() if k.live is not None}

    def restore(self, snapshot: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Back to a snapshot: an edit that was not looked at then is noticed later all the same."""
        self.put({name: value for name, (value, _) in snapshot.items()})
        for name, (_, copy) in snapshot.items():
            self._kept[name].copy = copy

    def forget(self) -> None:
        """Begin anew, with other names."""
        self.__init__()

    def put(self, values: dict[str, torch.Tensor]) -> None:
        """Set buffers (those known by name) to values; the copies follow."""
        for name, value in values.items():
            kept = self._kept.get(name)
            b = kept.live if kept else None
            if b is not None:
                with torch.no_grad():
                    b.copy_(value)
                kept.copy, kept.version = value.clone(), b._version

    def values(self) -> dict[str, torch.Tensor]:
        """The copies, by name."""
        return {name: kept.copy for name, kept in self._kept.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Buffers":
        return Buffers()  # a copied optimizer belongs to a copied model, whose modules are seen afresh


@contextmanager
def replay(optimizer: "ReversibleOptimizer") -> Iterator[None]:
    """Make a forward (and backward) pass repeatable, for loops without a `Trajectory`.

    Use it around the passes of every step, and again inside the closure given to `unstep`. Inside, torch,
    numpy and `random` are seeded from (the optimizer's seed, the step, how often it was entered in this step)
    and put back on leaving. Buffers that modules change in their forward (BatchNorm's) go to the journal with
    the step, and are put back by `unstep`.

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
    passes = optimizer.passes
    passes.buffers.changed()  # what happened outside (an evaluation in train mode) is not this step's
    with random.isolated(), passes.buffers.watching():
        random.seed_all("replay", optimizer.seed, optimizer.steps - passes.undoing, passes.visits)
        passes.visits += 1
        yield
    passes.note(passes.buffers.changed())


class Passes:
    """What the forward passes of the step in progress did.

    Attributes:
        buffers: module buffers seen so far.
        before: buffers that this step's passes changed, as they were before it.
        visits: how often `replay` was entered in this step.
        undoing: whether `unstep` is running.
    """

    def __init__(self) -> None:
        self.buffers = Buffers()
        self.before: dict[str, torch.Tensor] = {}
        self.visits, self.undoing = 0, False

    def note(self, changed: dict[str, torch.Tensor]) -> None:
        """Remember the first value of each."""
        self.before = changed | self.before

    def done(self) -> dict[str, torch.Tensor]:
        """The step is over: what it changed, and a fresh start."""
        before, self.before, self.visits = self.before, {}, 0
        return before
