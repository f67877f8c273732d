"""The walk of a seek: step by step, with commits, progress and metrics; and how it ends."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from .. import interrupt, live
from ..errors import InvalidSetting, LoschmidtError, NotWritten, ReplayMismatch
from ..exact import random
from ..live.metrics import Writer
from . import record

if TYPE_CHECKING:
    from .trajectory import Trajectory


class Watcher(Protocol):
    """Something in `traj.watchers`: it looks at steps from both sides, in every seek; not inside branches.

    Called with the generators of torch, numpy and `random` free to be used. It must leave weights, buffers and modes
    as they are.
    """

    def due(self, step: int) -> bool:
        """Whether it wants to see this step (from `step` to `step + 1`, or back)."""

    def before(self, traj: "Trajectory", back: bool) -> None:
        """The step is about to be taken, or undone."""

    def after(self, traj: "Trajectory", back: bool) -> None:
        """It was, and progress is not told of it yet. Not called if it failed."""


def seek(
    traj: "Trajectory",
    target: int,
    progress: bool | live.Display,
    on_step: Callable[["Trajectory"], bool | None] | None,
    writers: Sequence[Writer],
) -> "Trajectory":
    """Walk to a step that the journal holds. Arguments and errors: `Trajectory.seek`."""
    if on_step is not None and not callable(on_step):
        raise InvalidSetting(f"on_step={on_step!r} cannot be called.", "pass a function of the trajectory, or None.")
    with random.isolated():
        traj._check_surroundings()
        back = target < traj.step
        if traj.folder is not None:
            traj.folder.check(traj, target)
        good = record.compare(traj, record.hold(traj)) if back and record.ahead(traj, target) else None
        job, total, done = f"{'back' if back else 'forward'} to step {target}", abs(target - traj.step), 0
        with _committed(traj), live.choose(progress) as display, interrupt.patient() as interrupted:
            display.begin(job, total)
            while traj.step != target and not interrupted():
                watching = [w for w in traj.watchers if w.due(traj.step - back)]
                for watcher in watching:
                    watcher.before(traj, back)
                if back:
                    if traj.folder is not None:
                        traj.folder.fetch(traj)
                    good = traj._back(good)
                else:
                    traj._forward()
                done += 1
                if traj.folder is not None:
                    traj.folder.moved = True
                    if traj.folder.due(traj.step):
                        traj.folder.commit(traj, back=back)
                display.update(job, done, loss=traj._last_loss)
                for watcher in watching:
                    watcher.after(traj, back)
                live.send(writers, traj, back=back, loss=traj._last_loss)
                if on_step is not None and on_step(traj):
                    break
            display.end(job, "" if traj.step == target else f"ended at step {traj.step}")
            if interrupted():
                raise KeyboardInterrupt(f"interrupted at step {traj.step}; the run stands there.")
    return traj


@contextmanager
def _committed(traj: "Trajectory") -> Iterator[None]:
    """Commit at the end; after an error, too, if it leaves a good state, without hiding the error."""
    try:
        yield
    except (ReplayMismatch, NotWritten):
        raise
    except BaseException as error:
        try:
            if traj.folder is not None and traj.folder.moved:
                traj.commit()
        except LoschmidtError as second:
            error.add_note(f"and it could not be committed: {second}")
        raise
    traj.commit()
