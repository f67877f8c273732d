"""Schedulers of torch.optim, undone with the steps: where they stood at a step is noted beside its settings."""

import gc
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..errors import InvalidSetting
from .settings import NOTE, Settings, present

if TYPE_CHECKING:
    from .base import ReversibleOptimizer

_KINDS = (LRScheduler, ReduceLROnPlateau)
_OF_BASE = {"optimizer", "base_lrs", "_last_lr", "lr_lambdas", "_schedulers"}
"""Attributes that do not change, or follow from the learning rates."""


class Schedulers:
    """The schedulers that are undone with an optimizer's steps.

    Attributes:
        kept: weak references to them, in the order in which they came.
        suspected: whether there may be others.
        put_back: settings that the last undo left, until a step is taken.
    """

    def __init__(self) -> None:
        self.kept: list[weakref.ref] = []
        self.suspected = False
        self.put_back: Settings | None = None

    def __reduce__(self) -> tuple:
        return Schedulers, ()  # those kept belong to the original

    def add(self, optimizer: "ReversibleOptimizer", scheduler: Any) -> None:
        """Undo this one, too; raises InvalidSetting for one that cannot be."""
        kind = type(scheduler).__name__
        if not isinstance(scheduler, _KINDS) or scheduler.optimizer is not optimizer:
            raise InvalidSetting(
                f"scheduler is a {kind}, which is not one of torch.optim.lr_scheduler on this optimizer.",
                "construct one of those with this optimizer; or put another one back by hand after an undo.",
            )
        for one in _family(scheduler):
            if not type(one).__module__.startswith("torch.optim."):
                for name, value in vars(one).items():
                    if name not in _OF_BASE and not _is_plain(value) and not callable(value):
                        kind = type(one).__name__
                        raise InvalidSetting(
                            f"scheduler is a {kind}, whose {name} is a {type(value).__name__}: only numbers and words "
                            "are put back.",
                            "keep its state in numbers, or put it back by hand after an undo.",
                        )
        if all(ref() is not scheduler for ref in self.kept):
            self.kept.append(weakref.ref(scheduler))

    def notes(self) -> dict[str, Any]:
        """Where they stand: numbers and words, by name."""
        out: dict[str, Any] = {}
        for one, name in self._named():
            out |= {name + k: () if v is None else v for k, v in vars(one).items() if _is_plain(v)}
        return out

    def note_step(self, optimizer: "ReversibleOptimizer", changed: bool) -> None:
        """A step was taken, with the settings of the step before or with others."""
        self.suspected |= changed or "step" in vars(optimizer)  # the latter is torch's mark
        self.put_back = None

    def put(self, optimizer: "ReversibleOptimizer", notes: dict[str, Any]) -> None:
        """Put them back to where they stood; the param groups are back already."""
        for one, name in self._named():
            for k in [k for k, v in vars(one).items() if _is_plain(v) and notes.get(name + k) is not None]:
                setattr(one, k, None if notes[name + k] == () else notes[name + k])
        rates = [group["lr"] for group in optimizer.param_groups]
        for one in self._alive():
            one._last_lr = [lr.clone() if isinstance(lr, torch.Tensor) else lr for lr in rates]

    def refuse_unknown(self, optimizer: "ReversibleOptimizer", settings: Settings) -> None:
        """Raise InvalidSetting if a scheduler stood nobody knows where when the last step was taken.

        They are looked for where there is a sign of them: the mark that torch leaves on their optimizer, or (for
        ReduceLROnPlateau, which leaves none) settings that changed from one step to another, unless an undo did it.
        """
        for one, name in self._named():
            if any(_is_plain(v) and settings[0].get(name + k) is None for k, v in vars(one).items()):
                raise InvalidSetting(
                    f"undoing step {optimizer.steps - 1}: where {type(one).__name__} stood at that step is not known; "
                    "it came later, or with the steps loaded it was another one.",
                    "call undo_also(scheduler) before the first step, in the same order after loading.",
                )
        if not self.suspected and present(optimizer) in (settings, self.put_back):
            return
        mine = {id(one) for scheduler in self._alive() for one in _family(scheduler)}
        others = [one for one in _living() if vars(one).get("optimizer") is optimizer and id(one) not in mine]
        inner = {id(x) for one in others for x in _family(one)[1:]}
        for kind in (type(one).__name__ for one in others if id(one) not in inner):
            raise InvalidSetting(
                f"undoing step {optimizer.steps - 1}: a {kind} of torch.optim.lr_scheduler sets this optimizer's "
                "learning rates. It would stay where it is, and every learning rate after the undo would be wrong.",
                f"say optimizer.undo_also(scheduler) before the first step, with the {kind}; or let a Trajectory "
                "do it: lr=, a factor by step.",
            )
        self.suspected = False

    def _alive(self) -> list[Any]:
        return [one for one in (ref() for ref in self.kept) if one is not None]

    def _named(self) -> Iterator[tuple[Any, str]]:
        for i, ref in enumerate(self.kept):
            scheduler = ref()
            for j, one in enumerate(_family(scheduler) if scheduler is not None else ()):
                yield one, f"{NOTE}{i}.{j} {type(one).__name__}."


def _living() -> list[Any]:
    """All schedulers of this process. There may be half a million objects, but most are of few types."""
    kinds = {kind for kind in set(map(type, gc.get_objects())) if issubclass(kind, _KINDS)}
    return [x for x in gc.get_objects() if type(x) in kinds] if kinds else []


def _family(scheduler: Any) -> list[Any]:
    """A scheduler, and those that it is made of."""
    return [scheduler, *(x for child in vars(scheduler).get("_schedulers", ()) for x in _family(child))]


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (int, float, str))
