"""Giving up what a run no longer needs: stray files, and the way back below a step."""

from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from .. import files
from ..errors import DamagedFile, InUse, InvalidSetting
from .commit import Writing, replace_manifest
from .manifest import Commit, Manifest, Segment, at_most, lock_of, strays
from .salvage import records_of, survey


@dataclass(frozen=True)
class Pruned:
    """What `prune` did.

    Attributes:
        removed: names of the files that went.
        freed: bytes.
        first: the lowest step that can still be reached.
    """

    removed: tuple[str, ...]
    freed: int
    first: int


def prune(folder: Path, before: int | None = None) -> Pruned:
    """Remove files that no commit needs; and, if asked, what only the way back below a step needs.

    Args:
        folder: of a run that nobody has open.
        before: give up the way back below this step.

    Raises:
        InUse: somebody has it open.
        DamagedFile: a file that is needed is damaged: open the run with salvage=True first. Nothing was changed.
        InvalidSetting: `before` is not a step that the run holds.
    """
    lock = lock_of(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InUse(f"{folder} is open in another process.", "close() it there first.") from None
    except OSError as error:
        raise files.not_written(folder, error) from error
    try:
        found = survey(folder)
        if found.damaged:
            raise DamagedFile(f"{folder}: {found}.", "open it with salvage=True first, or use another copy.")
        manifest = found.manifest
        if before is not None:
            if not 0 <= before <= manifest.last.step:
                last = manifest.last
                raise InvalidSetting(
                    f"before={before}: the run is at step {last.step}, and goes back to step {last.first}.",
                    f"give a step from {last.first} to {last.step}.",
                )
            manifest = _without(folder, manifest, before)
        gone = strays(folder, manifest)
        freed = sum((folder / name).lstat().st_size for name in gone)
        for name in gone:
            (folder / name).unlink()
        return Pruned(tuple(gone), freed, manifest.last.first)
    except OSError as error:
        if isinstance(error, DamagedFile):
            raise
        raise files.not_written(folder, error) from error
    finally:
        lock.release()


def _without(folder: Path, manifest: Manifest, first: int) -> Manifest:
    """The same run without the way back below `first`, written to the folder."""
    if first <= manifest.last.first:
        return manifest
    commits = tuple(_from(c, first) for c in manifest.commits if c.step >= first)
    tape, forgotten = list(manifest.tape), manifest.forgotten
    while tape and tape[0].steps[1] <= first and all(at_most(tape[0].stop, c.tape) for c in commits):
        forgotten = tape.pop(0).stop
    journal = records_of(folder, manifest.journal, manifest.last.first)
    journal.forget_below(first)
    chain: tuple[Segment, ...] = ()
    if manifest.journal:
        above = manifest.journal[-1]
        file = Writing(folder, manifest).write("journal", journal.state())
        chain = (Segment(**file.model_dump(), start=(first,), stop=above.stop, steps=(first, above.steps[1])),)
    manifest = manifest.model_copy(
        update={"commits": commits, "tape": tuple(tape), "journal": chain, "forgotten": forgotten}
    )
    replace_manifest(folder, manifest)
    files.sync_folder(folder)
    return manifest


def _from(commit: Commit, first: int) -> Commit:
    update = {"first": max(commit.first, first), "verified_from": max(commit.verified_from, first)}
    return commit.model_copy(update=update)
