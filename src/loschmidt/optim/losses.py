"""The loss that a step is given: its value, and whether it is that of all backward passes behind the gradients."""

import math
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InvalidSetting, NonFinite

if TYPE_CHECKING:
    from .base import ReversibleOptimizer


class BackwardPasses:
    """Counts the backward passes that reach one of some parameters, since `clear`.

    Each parameter has a hook that compares two numbers of the host; nothing waits for a device. A pass is seen if
    it reaches any of them. Gradients that were cleared in between by others (`model.zero_grad()`) are noticed, where
    they were set to None.

    Attributes:
        count: of passes.
    """

    def __init__(self) -> None:
        self.count, self._task = 0, -2
        self._first: tuple[int, weakref.ref] | None = None  # which parameter a pass reached first, and its gradient
        self._handles: dict[int, torch.utils.hooks.RemovableHandle] = {}

    def __reduce__(self) -> tuple:
        return BackwardPasses, ()  # hooks are on other parameters, and a copy has none yet

    def watch(self, parameters: Iterable[torch.Tensor]) -> None:
        """Count passes that reach these too."""
        for p in parameters:
            if p.requires_grad and id(p) not in self._handles:
                self._handles[id(p)] = p.register_post_accumulate_grad_hook(self._reached)

    def clear(self) -> None:
        """Begin anew."""
        self.count, self._first = 0, None

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def _reached(self, p: torch.Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if task == self._task:
            return
        self._task = task
        # Passes add up in place, but for those with create_graph; another tensor says that the gradient was cleared.
        afresh = self._first is not None and self._first[0] == id(p) and self._first[1]() is not p.grad
        self.count = 1 if afresh and not torch.is_grad_enabled() else self.count + 1
        self._first = (id(p), weakref.ref(p.grad))


def watch(optimizer: "ReversibleOptimizer") -> None:
    """Count the passes of an optimizer that reads the loss."""
    passes = optimizer.backward
    if optimizer.needs_loss:
        if not passes._handles:
            weakref.finalize(optimizer, passes.remove).atexit = False
        passes.watch(s.parameter for s in optimizer._slots)


def refuse_part_of_loss(optimizer: "ReversibleOptimizer") -> None:
    """Raise InvalidSetting if gradients are of several passes, and nobody said that the loss is, too."""
    count = optimizer.backward.count
    if count > 1 and not optimizer.accumulates:
        name = type(optimizer).__name__
        raise InvalidSetting(
            f"{count} backward passes went into the gradients of step {optimizer.steps}, and one loss was given. "
            f"{name} needs the loss that they are the gradient of; that of the last micro-batch is another one.",
            "give the sum of what backward was called on, and say so: optimizer.accumulates = True. If old gradients "
            "were left, call optimizer.zero_grad() before the passes of a step.",
        )


def value_of(optimizer: "ReversibleOptimizer", loss: Any, required: bool) -> float | None:
    """The loss as a number; raises InvalidSetting if it is missing, and NonFinite."""
    if loss is None:
        if optimizer.needs_loss and required:
            raise InvalidSetting(
                f"{type(optimizer).__name__} needs the value of the loss.",
                "call step(loss=loss) or step(closure), with a closure that returns the loss.",
            )
        return None
    value = float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
    if not math.isfinite(value):
        raise NonFinite(f"the loss is {value} at step {optimizer.steps}.", "look at this batch, and lower lr.")
    return value
