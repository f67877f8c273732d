"""Replaying a forward pass in anybody's training loop: the same random numbers, and buffers put back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from .. import interrupt
from ..errors import InvalidSetting
from ..exact import random
from .buffers import Buffers, Values

if TYPE_CHECKING:
    from .base import ReversibleOptimizer


@contextmanager
def replay(optimizer: "ReversibleOptimizer", model: nn.Module | None = None) -> Iterator[None]:
    """Make a forward (and backward) pass repeatable, for loops without a `Trajectory`.

    Use it around the passes of every step, and again inside the closure given to `unstep`. Inside, torch,
    numpy and `random` are seeded from (the optimizer's seed, the step, how often it was entered in this step)
    and put back on leaving. Buffers that modules change in their forward (BatchNorm's) go to the journal with
    the step, and are put back by `unstep`; or at once after an exception, back to where the step's passes began.

    Guarantees: dropout masks and buffers of the step come back bit for bit, if the passes are run in the same
    order. Breaks: randomness from elsewhere (own generators, files, time).

    Args:
        optimizer: whose step the passes are for.
        model: whose buffers are watched, under its own names for them; of several, an `nn.ModuleList`. Without it,
            those of the module called first and of all below it. Others called inside (a second network) are watched
            too, but a step that changed their buffers cannot be undone after `load_state_dict`: that is refused.
            Modules that are never called, but read by hand, are not seen.

    Raises:
        InvalidSetting: model is no module, or in the closure another one than before; or model is missing, and what
            ran was compiled in place (`model.compile()`) or in a compiled function, where no module is seen.

    Example:
        >>> import torch, loschmidt as lo
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
        >>> opt = lo.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> before = model[0].weight.detach().clone()
        >>> def passes():
        ...     opt.zero_grad()
        ...     with lo.replay(opt, model):
        ...         loss = model(torch.ones(8, 4)).square().mean()
        ...         loss.backward()
        ...     return loss
        >>> _ = passes(); _ = opt.step()
        >>> _ = opt.unstep(passes)
        >>> torch.equal(model[0].weight, before)
        True
    """
    if model is not None and not isinstance(model, nn.Module):
        raise InvalidSetting(
            f"model is a {type(model).__name__}.", "pass one nn.Module; an nn.ModuleList joins several."
        )
    passes = optimizer.passes
    try:
        with interrupt.critical() as section:
            passes.buffers.changed()  # what happened outside (an evaluation in train mode) is not this step's
            if model is not None:
                passes.name(model)
            with random.isolated(), passes.buffers.watching():
                random.seed_all("replay", optimizer.seed, optimizer.steps - passes.undoing, passes.visits)
                passes.visits += 1
                with section.interruptible():
                    yield
            passes.note(passes.buffers.changed())
    except BaseException:
        passes.give_up()
        raise


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
        self.before: Values = {}
        self.visits, self.undoing = 0, False

    def name(self, model: nn.Module) -> None:
        """Name buffers by their paths below this model."""
        known = self.buffers.model
        if known is None or (known is not model and not self.undoing):
            self.buffers.name(model)
        elif known is not model:
            raise InvalidSetting(
                f"replay(optimizer, model) is given a {type(model).__name__}, but buffers are named by a "
                f"{type(known).__name__}.",
                "give replay the same model at every step.",
            )

    def note(self, changed: Values) -> None:
        """Remember the first value of each."""
        self.before = changed | self.before

    def give_up(self) -> None:
        """Put back what the passes of the step in progress changed."""
        with interrupt.critical():
            self.note(self.buffers.changed())
            self.buffers.put(self.done())

    def done(self) -> Values:
        """The step is over: what it changed, and a fresh start."""
        before, self.before, self.visits = self.before, {}, 0
        return before
