"""Digests in the journal: written every so many steps on the way forward, compared on the way back."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ReplayMismatch
from ..exact import digest
from ..optim import serial
from .evaluate import digest_of

if TYPE_CHECKING:
    from .trajectory import Trajectory


@dataclass(frozen=True)
class Good:
    """A state to put back if the next comparison fails: `what` says how good it is."""

    what: str
    snapshot: dict[str, Any]
    buffers: dict[str, Any]


def write(traj: "Trajectory", step: int) -> None:
    """Note digests of the state after `step`, and of its batch."""
    traj.optimizer.check_shown()
    traj.journal.annotate(digests=_digests(traj), batch=digest_of(traj.data(traj.moment(step))))


def _digests(traj: "Trajectory") -> dict[str, str]:
    traj.name_parameters()  # groups may have been added
    # The heads, too: undoing friction moves a flipped bit of a momentum there. The words below them stand still.
    heads = {f"the tape's heads {i}": digest([lanes.heads], 6) for i, lanes in enumerate(traj.tape)}
    return traj.optimizer.tensor_digests() | heads


def _comparable(traj: "Trajectory", step: int) -> bool:
    return step > traj.journal.verified_from and "digests" in traj.journal.entries.get(step - 1, {})


def ahead(traj: "Trajectory", target: int) -> bool:
    """Whether going back to `target` passes a digest."""
    return any(_comparable(traj, step) for step in range(target + 1, traj.step + 1))


def hold(traj: "Trajectory", what: str = "where this seek began") -> Good:
    """Copy the present state."""
    return Good(what, serial.snapshot(traj.optimizer), traj.buffers.snapshot())


def compare(traj: "Trajectory", good: Good | None) -> Good | None:
    """Compare the present state with its digests, if it has any.

    Args:
        traj: on its way back.
        good: what `hold` gave when the seek began, or this function at the last digest.

    Returns:
        What to pass at the next step.

    Raises:
        ReplayMismatch: naming the first tensor that differs; `good` is put back.
    """
    at = traj.step
    if not _comparable(traj, at):
        return good
    recorded, now = traj.journal.peek()[1]["digests"], _digests(traj)
    wrong = next((name for name, value in recorded.items() if now.get(name) != value), None)
    if wrong is None:
        return hold(traj, "the last that was as recorded")
    serial.restore(traj.optimizer, good.snapshot)
    traj.buffers.restore(good.buffers)
    raise ReplayMismatch(
        f"on the way back, {wrong} at step {at} differs from the digest in the journal (a bit of it, of the tape, "
        "or of the optimizer's state has changed in memory). "
        f"The trajectory is at step {traj.step} again, {good.what}.",
        "load the run from its last save.",
        at,
        wrong,
    )
