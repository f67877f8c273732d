"""Refusals on the way back: the closure did not repeat the step. Nothing has been undone for good yet."""

import gc
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import BelowResolution, ReplayMismatch
from ..exact import World
from .flat import Slot

if TYPE_CHECKING:
    from .base import ReversibleOptimizer
    from .replay import Passes

_BELOW_RESOLUTION_SHARE = 0.1
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


def other_gradient(optimizer: "ReversibleOptimizer", step: int, drew: bool, loss: Any) -> ReplayMismatch:
    """The gradient or the loss is not the step's. `drew`: the closure used the global random state.

    `loss`: what the closure gave; it leads to weights of other optimizers, which may have moved since.
    """
    if drew:
        why, remedy = "The closure drew random numbers (dropout?) outside `replay`.", _INSIDE_REPLAY
    elif others := _others(optimizer, loss):
        why = f"The loss also depends on weights that {', '.join(others)} holds: two optimizers on one model?"
        remedy = "give all weights to one optimizer, as param groups; or, if each step had a backward pass of its own, "
        remedy += "undo the steps of both in reverse order."
    else:
        why = "Was it undone before, is this another batch, were weights moved that it does not hold, are the kernels "
        why += "nondeterministic, or has a bit of memory changed?"
        remedy = f"repeat step {step} as it was: same data, order, shapes, clipping, threads and flags."
    seen = f"undoing step {step}: the gradient or the loss differs from the one it was taken with. {why}"
    return ReplayMismatch(seen, remedy, step, "gradient")


def _others(optimizer: "ReversibleOptimizer", loss: Any) -> list[str]:
    """The other optimizers alive, of torch's too, that hold weights which the loss depends on."""
    mine = {id(s.parameter) for s in optimizer._slots}
    leaves = _leaves(loss) if isinstance(loss, torch.Tensor) and loss.grad_fn is not None else []
    if optimizer.passes.buffers.model is not None:
        leaves += optimizer.passes.buffers.model.parameters()
    foreign, names = {id(p) for p in leaves} - mine, []
    for other in gc.get_objects() if foreign else ():
        if issubclass(type(other), torch.optim.Optimizer) and other is not optimizer:
            held = [p for group in other.param_groups for p in group["params"]]
            if any(id(p) in foreign for p in held):
                taken = f" ({other.steps} steps taken)" if hasattr(other, "steps") else ""
                names.append(f"another {type(other).__name__}{taken}")
    return names


def _leaves(loss: torch.Tensor) -> list[torch.Tensor]:
    """The parameters that a loss was computed from."""
    seen, todo, found = set(), [loss.grad_fn], []
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo += [following for following, _ in node.next_functions]
    return found


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


def warn_below_resolution(optimizer: "ReversibleOptimizer", world: World, share: float, lattice: str) -> None:
    """Warn, once, where many updates are so small that they move nothing."""
    if share > _BELOW_RESOLUTION_SHARE:
        resolution = max(float(block.lattices[lattice].units().max()) for block in world.blocks)
        optimizer.warn_once(
            "resolution",
            f"{share:.0%} of the non-zero updates of {lattice!r} at step {world.step} are below half its "
            f"resolution {resolution:g} and move nothing. Remedy: pass a finer resolution.",
            BelowResolution,
        )
