"""What is written down about each step, and to whom it goes."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from ..errors import InvalidSetting

Record = Mapping[str, Any]
Writer = Callable[[Record], Any]
"""Takes a record. It may have `due(step) -> bool`, to be spared records that it does not want."""

FIELDS = {
    "step": "the step taken or undone: forward from this step to the next one, back from the next one to this",
    "direction": "forward or back",
    "loss": "of this step's batch at the state before this step; the same number both ways if nothing was edited",
    "lr": "learning rate of the first param group at this step",
    "tape_bits": "bits on the tape after the move, net of its starting reserve",
    "journal_bytes": "bytes of the journal after the move",
    "energy": "H in nats at the state before this step, noted on the way forward; only of optimizers that have one",
    "seconds": "since the writer was opened",
    "time": "when it was written, UTC",
}
"""Meaning of the fields, by name; null stands for what is not known, NaN and infinities."""


class EachStep:
    """Base of the writers here: called with a record, it writes those of every k-th step. A context manager.

    Args:
        every: only steps that this divides are written.

    Raises:
        InvalidSetting: `every` is not a positive integer.
    """

    def __init__(self, every: int = 1):
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InvalidSetting(f"every={every!r} is not a positive integer.", "pass 1, to write each step.")
        self.every = every

    def due(self, step: Any) -> bool:
        """Whether a record of this step would be written; one without a step always is."""
        return step is None or step % self.every == 0

    def __call__(self, record: Record) -> None:
        """Write a record: any dict of numbers and texts."""
        if self.due(record.get("step")):
            self.write(record)

    def write(self, record: Record) -> None:
        """Write a record, whatever its step."""
        raise TypeError(f"{type(self).__name__} does not define write()")

    def close(self) -> None:
        """Write what is left, and close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def record(traj: Any, *, back: bool, loss: Any = None) -> dict[str, Any]:
    """The record of the step that a trajectory has just taken or undone.

    Pure: nothing is evaluated, and nothing of the size of a parameter is read.

    Args:
        traj: a `Trajectory`, after the move.
        back: whether the step was undone.
        loss: that step's loss: a number, a tensor of one element, or None.

    Returns:
        The fields of `FIELDS` up to "energy"; a writer adds the times.
    """
    opt = traj.optimizer
    fields = {
        "step": traj.step if back else traj.step - 1,
        "direction": "back" if back else "forward",
        "loss": None if loss is None else float(loss),
        "lr": float(opt.param_groups[0]["lr"]),
        "tape_bits": traj.tape.bits,
        "journal_bytes": traj.journal.bytes,
    }
    if hasattr(opt, "energy"):
        fields["energy"] = None if back else opt.energy  # undoing a step does not compute it
    return fields


def writers(metrics: Writer | Iterable[Writer] | None) -> tuple[Writer, ...]:
    """The writers in `metrics`: none, one, or several.

    Raises:
        InvalidSetting: something in it cannot be called with a record.
    """
    several = isinstance(metrics, Iterable) and not callable(metrics) and not isinstance(metrics, str)
    found = () if metrics is None else tuple(metrics) if several else (metrics,)
    for writer in found:
        if not callable(writer) or isinstance(writer, type):
            raise InvalidSetting(
                f"metrics={writer!r} cannot be called with a record.",
                'pass a writer, like loschmidt.live.JSONL("metrics.jsonl"), or a function that takes a dict.',
            )
    return found


def send(to: Iterable[Writer], traj: Any, *, back: bool, loss: Any = None) -> None:
    """Hand the record of the last move to those writers that want it; if none does, none is made.

    Args:
        to: see `writers`.
        traj, back, loss: see `record`.
    """
    step = traj.step if back else traj.step - 1
    due = [writer for writer in to if not hasattr(writer, "due") or writer.due(step)]
    if due:
        fields = record(traj, back=back, loss=loss)
        for writer in due:
            writer(fields)
