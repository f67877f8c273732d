"""Refusals on the way back: the closure did not repeat the step. Nothing has been undone for good yet."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ..errors import ReplayMismatch
from .flat import Slot

if TYPE_CHECKING:
    from .replay import Passes

_INSIDE_REPLAY = "run the passes of every step, and of the closure, inside `with lo.replay(optimizer):`."
_WITH_MODEL = "run the passes of every step, and of the closure, inside `with lo.replay(optimizer, model):`."


def refuse_other_gradients(slots: Sequence[Slot], active: Sequence[int], step: int) -> None:
    """Raise ReplayMismatch unless exactly the parameters of the step have a gradient."""
    has = {s.index for s in slots if s.parameter.grad is not None}
    for i in sorted(has ^ set(active)):
        raise ReplayMismatch(
            f"undoing step {step}: {slots[i].name} {'has' if i in has else 'lacks'} a gradient, unlike in that step.",
            "repeat exactly that step's loss and backward in the closure.",
            step,
            slots[i].name,
        )


def other_gradient(step: int, drew: bool) -> ReplayMismatch:
    """The gradient or the loss is not the step's. `drew`: the closure used the global random state."""
    if drew:
        why, remedy = "The closure drew random numbers (dropout?) outside `replay`.", _INSIDE_REPLAY
    else:
        why = "Was it undone before, is this another batch, or are the kernels nondeterministic?"
        remedy = f"repeat step {step} as it was: same data, order, shapes, clipping, threads and flags."
    seen = f"undoing step {step}: the gradient or the loss differs from the one it was taken with. {why}"
    return ReplayMismatch(seen, remedy, step, "gradient")


def refuse_other_buffers(passes: "Passes", recorded: Collection[str], step: int) -> None:
    """Raise ReplayMismatch unless the buffers of the step's record are known, and no others were changed."""
    for name in recorded:
        if name not in passes.buffers:
            raise ReplayMismatch(
                f"undoing step {step}: it changed buffer {name}, and no module seen has it under that name. "
                "(Names that are guessed hold until the state is loaded.)",
                _WITH_MODEL,
                step,
                f"buffer {name}",
            )
    for name in passes.before:
        if name not in recorded:
            raise ReplayMismatch(
                f"undoing step {step}: the closure changed buffer {name} (BatchNorm?), whose earlier value was not "
                "recorded.",
                _WITH_MODEL if recorded else _INSIDE_REPLAY,
                step,
                f"buffer {name}",
            )
