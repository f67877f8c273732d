"""Digests in the journal: written at the first step and every so many steps, and compared on the way back.

Those of the first step are made where the run begins (`begin`) and wait in `journal.start`; the step that leaves it
takes them into its record. So they are committed, pruned, copied and given up with the records of the steps.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import LoschmidtError, ReplayMismatch
from ..exact import digest
from ..optim import flat, serial
from ..optim.settings import REASONS, plain
from . import surroundings
from .evaluate import digest_of

if TYPE_CHECKING:
    from .trajectory import Trajectory

_OUTSIDE = "weights of "


@dataclass(frozen=True)
class Good:
    """A state to put back if the next comparison fails: `what` says how good it is."""

    what: str
    snapshot: dict[str, Any]
    buffers: dict[str, Any]


def lowest(traj: "Trajectory") -> int:
    """The first step that the run can go back to."""
    return max(traj.first, traj.journal.first)


def begin(traj: "Trajectory") -> None:
    """Note digests of the present state if the run begins here: one pass over it, on its way to the journal."""
    traj.journal.start = _digests(traj) | _more(traj, traj.untracked_bits) if traj.step == lowest(traj) else None


def leave(traj: "Trajectory") -> None:
    """The first step is taken: note its settings, too, which are back in the param groups when it is undone."""
    entry = traj.journal.peek()[1]
    if "start" in entry:
        traj.journal.annotate(start=entry["start"] | _settings(traj))


def write(traj: "Trajectory", step: int) -> None:
    """Note digests of the state after `step`, and of its batch."""
    traj.optimizer.check_shown()
    traj.journal.annotate(digests=_digests(traj), batch=digest_of(traj.data(traj.moment(step))))


def _digests(traj: "Trajectory") -> dict[str, str]:
    """What is compared every so many steps: all but the bytes of the tape, which stand still until they are used."""
    traj.name_parameters()  # groups may have been added
    opt, out = traj.optimizer, traj.optimizer.tensor_digests()
    for i, stack in enumerate(traj.tape):
        out[f"the tape's counts {i}"] = _short(len(stack.planes), len(stack.records))
    for i, (block, slots) in enumerate(flat.by_block(opt._slots)):
        units = [(k, x.e.tobytes(), x.logs, x.pushed) for k, x in block.lattices.items()]
        out[f"the units and step counts of block {i}"] = _short(units, [s.count for s in slots])
    carried = {k: v.hex() for k, v in sorted(opt.carried.items())}
    out["the scalars carried"] = _short(carried, opt.seed, traj.tape.element_steps)
    return out | {f"buffer {name}": _of(b) for name, b in traj.buffers.present().items()}


def _more(traj: "Trajectory", outside: Mapping[str, int]) -> dict[str, str]:
    """What is compared at the first step besides. `outside`: checksums of the weights that no param group holds."""
    tape = {f"the tape's bytes {i}": stack.digest()[:12] for i, stack in enumerate(traj.tape)}
    return tape | {f"{_OUTSIDE}{name}": f"{value:x}" for name, value in outside.items()}


def _settings(traj: "Trajectory") -> dict[str, str]:
    opt = traj.optimizer
    names = opt.defaults.keys() - REASONS.keys()
    groups = [{k: v for k, v in plain(group).items() if k in names} for group in opt.param_groups]
    return {f"the settings of param group {i}": _short(sorted(group.items())) for i, group in enumerate(groups)}


def _short(*values: Any) -> str:
    return digest([repr(values)], 6)


def _of(buffer: torch.Tensor | None) -> str:
    return "none" if buffer is None else digest([buffer], 6)


def _is_recorded(traj: "Trajectory", step: int) -> bool:
    """Whether coming to this step from above, or standing there, there is something to compare with."""
    entries, verified_from = traj.journal.entries, traj.journal.verified_from
    ended = step > verified_from and "digests" in entries.get(step - 1, {})
    return ended or (step >= verified_from and "start" in entries.get(step, {}))


def ahead(traj: "Trajectory", target: int) -> bool:
    """Whether going back to `target` passes a digest, or ends at one."""
    return any(_is_recorded(traj, step) for step in range(target, traj.step + 1))


def hold(traj: "Trajectory", what: str = "where this seek began") -> Good:
    """Copy the present state."""
    return Good(what, serial.snapshot(traj.optimizer), traj.buffers.snapshot())


def compare(traj: "Trajectory", good: Good | None) -> Good | None:
    """Compare the present state with its digests, if it has any.

    Args:
        traj: on its way back.
        good: what `hold` gave when the seek began, or this function at the last digest; None: nothing is compared.

    Returns:
        What to pass at the next step.

    Raises:
        ReplayMismatch: naming the first tensor that differs; `good` is put back.
    """
    at, journal = traj.step, traj.journal
    recorded: Mapping[str, str] = journal.start or {}
    if at > journal.verified_from:
        recorded = recorded | journal.entries.get(at - 1, {}).get("digests", {})
    if good is None or not recorded:
        return good
    now = _digests(traj)
    if journal.start:
        now |= _more(traj, surroundings.checksums(traj)) | _settings(traj)
    wrong = next((name for name, value in recorded.items() if now.get(name, _joined(name, value)) != value), None)
    if wrong is None:
        return hold(traj, "the last that was as recorded")
    raise ReplayMismatch(
        f"on the way back, {wrong} at step {at} differs from the digest in the journal (a bit of it, of the tape, "
        f"or of the optimizer's state has changed in memory). {_put_back(traj, good)}",
        "load the run from its last save.",
        at,
        wrong,
    )


def _put_back(traj: "Trajectory", good: Good) -> str:
    serial.restore(traj.optimizer, good.snapshot)
    traj.buffers.restore(good.buffers)
    return f"The trajectory is at step {traj.step} again, {good.what}."


@contextmanager
def fitting(traj: "Trajectory", doing: str, step: int, good: Good | None = None) -> Iterator[None]:
    """Around a step ("taking", or "undoing" it): name an error that no state and no record of a whole run leads to.

    Raises:
        ReplayMismatch: the step failed outside the user's passes. `good` is put back, if there is one.
    """
    traj.passing = False
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        if traj.passing or isinstance(error, (LoschmidtError, torch.OutOfMemoryError)):
            raise
        left = "The state is left in the middle of the step." if good is None else _put_back(traj, good)
        raise ReplayMismatch(
            f"{doing} step {step}: the state, the tape and the journal do not fit together (a bit of one of them has "
            f"changed in memory?): {type(error).__name__}: {error}. {left}",
            "load the run from its last save.",
            step,
            "record",
        ) from error


def _joined(name: str, value: str) -> str | None:
    """Weights that no param group held at the start may be in one by now; what they were is then not compared."""
    return value if name.startswith(_OUTSIDE) else None


def warn_if_unknown(traj: "Trajectory") -> None:
    """Say of a run that was loaded if the first step that it goes back to has no digest."""
    first = lowest(traj)
    if first < traj.step and first >= traj.journal.verified_from and not _is_recorded(traj, first):
        traj.optimizer.warn_once(
            "start",
            f"this run's record has no digest of step {first}, the first it goes back to (it was pruned there, or "
            "begun with an earlier version): on arrival there, nothing but the gradients on the way was compared. "
            "Remedy: compare traj.digest() there with one that you know.",
        )
