"""A run in a folder: commits that a kill, a full disk or a damaged file cannot take away. Layout: `manifest`."""

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import Timeout

from .. import files, interrupt
from ..errors import DamagedFile, InUse, InvalidSetting, LoschmidtError, NotWritten, SourceChanged
from ..exact import Journal, Stack
from ..exact.stack import Chunk, Forgotten
from . import contents, record, store
from .commit import Writing, at, digest_of, encoded, name_of, replace_manifest, stacks_of
from .manifest import (
    LOCK,
    TEMPORARY,
    Manifest,
    Segment,
    is_run,
    lock_of,
    of_first_commit,
    read_manifest,
    read_tensors,
    strays,
    trouble,
)
from .salvage import Found, survey
from .salvage import whole_or_refused as _whole_or_refused

if TYPE_CHECKING:
    from .trajectory import Trajectory

_SHARE = 0.05  # of the time that commits may take
_ELSEWHERE = "call save(path) to keep the run elsewhere."


@dataclass(frozen=True)
class InSegment:
    """Bytes of one stack (its number) that lie in a segment."""

    folder: Path
    segment: Segment
    stack: int

    def __len__(self) -> int:
        return at(self.segment.stop, self.stack) - at(self.segment.start, self.stack)

    def read(self) -> np.ndarray:
        """The bytes, after the whole segment was checked."""
        tensors = read_tensors(self.folder, self.segment)
        with contents.checked(self.folder / self.segment.name):
            return contents.bytes_in(tensors, name_of(self.stack), len(self))


class Folder:
    """The folder of a run that this process has open.

    Args:
        path: the folder.
        every: steps between commits, or None.
        seconds: between commits, or None. Longer where a commit takes more than a twentieth of that.

    Attributes:
        manifest: of the last commit.
        moved: whether the run has moved since.
        spent: seconds that commits took in this process.
    """

    def __init__(self, path: Path, every: int | None, seconds: float | None):
        self.path, self.every, self.seconds = path, every, seconds
        self.manifest: Manifest | None = None
        self.moved = True
        self._lock = lock_of(path)
        self._dead: set[str] = set()
        self._whole: set[str] = set()  # segments that were read and found whole
        self._ended, self._took, self.spent = time.monotonic(), 0.0, 0.0
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InUse(
                f"{path} is open in another process, or in another Trajectory of this one.",
                "close() that one first; `loschmidt runs show` only looks, and is always possible.",
            ) from None
        except OSError as error:
            raise NotWritten(
                f"{path} cannot be opened: its file {LOCK!r} may not be written to ({error.strerror or error}).",
                "copy the folder to where you may write, or change its permissions.",
            ) from error

    @classmethod
    def create(cls, traj: "Trajectory", path: Path, every: int | None, seconds: float | None) -> "Folder":
        """Begin a run in a new or empty folder, with its first commit.

        Raises:
            InvalidSetting: there is something in it.
            NotWritten: it cannot be written to.
        """
        if is_run(path):
            raise InvalidSetting(
                f"tape={str(path)!r}: that folder holds a run already.",
                "open it with lo.Trajectory.load(folder, model=..., loss=..., data=...), or choose another folder.",
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(not of_first_commit(p.name) for p in path.iterdir()):
                raise InvalidSetting(f"tape={str(path)!r}: that folder is not empty.", "choose a new or empty folder.")
        except NotADirectoryError as error:
            raise InvalidSetting(f"tape={str(path)!r} is not a folder.", "choose a new or empty folder.") from error
        except FileExistsError as error:
            raise InvalidSetting(f"tape={str(path)!r} is a file.", "choose a new or empty folder.") from error
        except OSError as error:
            raise files.not_written(path, error) from error
        folder = cls(path, every, seconds)
        for stack in stacks_of(traj.tape):  # nothing is written here yet, whatever another folder has
            stack.floor = stack.forgotten
        traj.journal.floor = traj.journal.first
        try:
            folder.commit(traj)
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def load(cls, kind: type["Trajectory"], path: Path, salvage: bool, **functions: Any) -> "Trajectory":
        """Open a run, rebuild it, and go on committing to it. Arguments and errors: `Trajectory.load`."""
        folder, found = cls.open(path, salvage)
        try:
            with contents.checked(path / found.manifest.last.state.name):
                about = store.about_of(found.state)
            with store.rebuilding(kind, path, found.state | _nothing(about), about, **functions) as traj:
                folder.attach(traj, found, about["commit_every"], about["commit_seconds"])
                traj.check_world()
        except BaseException:
            folder.close()
            raise
        return traj

    @classmethod
    def open(cls, path: Path, salvage: bool) -> "tuple[Folder, Found]":
        """Open a run at its last commit, and read what is in it.

        Args:
            path: the folder.
            salvage: go on with what is left of a damaged run.

        Raises:
            DamagedFile: what is lost, and what can still be reached.
            InUse: somebody has it open.
        """
        folder = cls(path, None, None)
        try:
            found = survey(path).best() if salvage else _whole_or_refused(path)
            folder.manifest = found.manifest
            folder._dead = set() if salvage else set(strays(path, found.manifest))
        except BaseException:
            folder.close()
            raise
        return folder, found

    def attach(self, traj: "Trajectory", found: "Found", every: int | None, seconds: float | None) -> None:
        """Take over a run that was rebuilt from what `open` found."""
        self.every, self.seconds = every, seconds
        traj.folder, traj.optimizer.journal = self, found.journal
        for i, stack in enumerate(stacks_of(traj.tape)):
            stack.settle(_up_to(self.chunks(i), at(found.manifest.last.tape, i)))
        found.journal.settle()
        with contents.checked(self.path):
            contents.check_records(traj.optimizer, found.journal)
        record.begin(traj)
        if found.salvaged:
            found.journal.floor = found.journal.first
            self.commit(traj, salvaged=True)
        self.moved = False

    def close(self) -> None:
        """Let others open it."""
        self._lock.release()

    def leave(self, traj: "Trajectory") -> None:
        """Commit, and close: the run goes on in memory. Arguments and errors: `Trajectory.close`."""
        try:
            traj.commit()
        except SourceChanged:
            traj.folder = None
            self.close()
            raise
        traj.folder = None
        self.close()

    # -- committing ----------------------------------------------------------------------------------

    def due(self, step: int) -> bool:
        """Whether it is time for a commit. Uses a clock that cannot go backwards."""
        if self.every is not None and abs(step - self.manifest.last.step) >= self.every:
            return True
        pause = None if self.seconds is None else max(self.seconds, self._took / _SHARE)
        return pause is not None and time.monotonic() - self._ended >= pause

    def is_behind(self, traj: "Trajectory") -> bool:
        """Whether the run is not what the last commit has: after steps, or after a change without one.

        Settings, groups, flags and a loaded state leave no trace but themselves: so the state is encoded, and compared.
        """
        journal = traj.journal
        unsettled = journal.floor != journal.steps or any(x.floor != len(x) for x in stacks_of(traj.tape))
        if self.moved or unsettled or self.manifest.last.step != traj.step:
            return True
        return digest_of(encoded(store.core(traj))) != self.manifest.last.state.digest

    def commit(self, traj: "Trajectory", *, back: bool = False, salvaged: bool = False) -> None:
        """Make the present state the one that is recovered.

        Args:
            traj: the run, at the boundary of two steps.
            back: whether a seek is on its way back. Segments that are no longer needed then stay until `tidy`, since
                the seek may return to where it compared digests last.
            salvaged: whether this is the first commit after a salvage: what is there need not be what we left.

        Raises:
            NotWritten: the last commit stands, and so does the run in memory.
            SourceChanged: the folder holds another run by now.
        """
        began = time.monotonic()
        if not salvaged:
            self._refuse_other_run()
        writing = Writing(self.path, self.manifest)
        try:
            with interrupt.critical():
                manifest, grown = writing.commit(traj)
                replace_manifest(self.path, manifest)
                self._took_over(traj, manifest, grown, salvaged)
            files.sync_folder(self.path)
            self._remove([name for name in self._dead if not (back and name.startswith("tape"))])
        except (OSError, LoschmidtError) as error:
            self._remove([*writing.unnamed(), *TEMPORARY])
            if isinstance(error, LoschmidtError):  # a segment that is to be taken in is damaged
                raise
            raise files.not_written(self.path, error) from error
        self._whole |= set(writing.new)
        self._ended = time.monotonic()
        self._took = self._ended - began
        self.spent += self._took

    def _took_over(self, traj: "Trajectory", manifest: Manifest, grown: bool, salvaged: bool) -> None:
        """The manifest counts now: hold what it says."""
        before, self.manifest = self.manifest, manifest
        for i, stack in enumerate(stacks_of(traj.tape)):
            stack.settle(self.chunks(i) if grown else stack.chunks)
        traj.journal.settle()
        self.moved = False
        if before is not None and not salvaged:
            self._dead |= {f.name for f in before.files()}
            self._dead -= {f.name for f in manifest.files()}

    def tidy(self) -> None:
        """Remove files that no commit needs."""
        self._remove(list(self._dead))

    def chunks(self, stack: int) -> list[Chunk]:
        """Handles to all bytes of a stack that are written."""
        below = at(self.manifest.forgotten, stack)
        held = [InSegment(self.path, s, stack) for s in self.manifest.tape]
        return [x for x in (Forgotten(below), *held) if len(x)]

    def _remove(self, names: Sequence[str]) -> None:
        for name in names:
            with suppress(OSError):  # a file too many harms nobody: it is tried again, and `prune` finds it
                (self.path / name).unlink(missing_ok=True)
                self._dead.discard(name)

    def _refuse_other_run(self) -> None:
        if self.manifest is None:
            return
        try:
            there = read_manifest(self.path)
        except DamagedFile as error:
            raise SourceChanged(
                f"{self.path} no longer holds this run: {error.seen}", f"put it back, or {_ELSEWHERE}"
            ) from error
        if there.run != self.manifest.run:
            raise SourceChanged(f"{self.path} holds another run by now.", _ELSEWHERE)
        if there.last.number != self.manifest.last.number:
            raise SourceChanged(f"{self.path} holds another commit than this process left there.", _ELSEWHERE)

    # -- before a seek -------------------------------------------------------------------------------

    def check(self, traj: "Trajectory", target: int) -> None:
        """Refuse a seek that the folder cannot serve, before anything moves.

        Raises:
            SourceChanged: the folder does not hold this run any more.
            NotWritten: what the seek will write does not fit on the disk.
            DamagedFile: a segment that the way back needs is damaged.
        """
        self._refuse_other_run()
        if target < traj.step:
            self._check_reach(target)
        else:
            self._check_space(traj, target)

    def fetch(self, traj: "Trajectory") -> None:
        """Read the bytes that the next step back may take: a file that cannot be read must not stop it halfway."""
        for stack in stacks_of(traj.tape):
            chunks = stack.chunks
            for i, chunk in reversed([*enumerate(chunks)]):
                if isinstance(chunk, Forgotten) or (
                    isinstance(chunk, InSegment) and chunk.segment.steps[1] < traj.step
                ):
                    break
                if isinstance(chunk, InSegment):
                    chunks[i] = chunk.read()

    def _check_space(self, traj: "Trajectory", target: int) -> None:
        steps, opt = max(0, target - traj.step), traj.optimizer
        taken = max(1, traj.step - traj.journal.first)
        journal = steps * max(16.0, traj.journal.bytes / taken)
        state = 2 * self.manifest.last.state.bytes
        records = steps * sum(len(x.records) for x in traj.tape) / taken
        needed = steps * opt.numel * max(0.0, opt.price()) / 8 + records + journal + state
        try:
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise files.not_written(self.path, error) from error
        if needed > free:
            raise NotWritten(
                f"seek({target}) will write about {files.size(needed)} to {self.path}, where {files.size(free)} are "
                "free.",
                "make room, or seek to a nearer step.",
            )

    def _check_reach(self, target: int) -> None:
        for segment in reversed(self.manifest.tape):
            if segment.steps[1] <= target:
                break
            wrong = trouble(self.path, segment, contents=segment.name not in self._whole)
            if wrong:
                raise DamagedFile(
                    f"{self.path / segment.name} is {wrong}: steps below {segment.steps[1]} are lost.",
                    f"seek({segment.steps[1]}) or later, or use another copy of the folder.",
                )
            if segment.name not in self._whole:
                for stack in range(len(segment.stop)):
                    InSegment(self.path, segment, stack).read()
            self._whole.add(segment.name)


def _nothing(about: dict[str, Any]) -> dict[str, torch.Tensor]:
    """An empty tape and journal, in whose place `Folder.attach` puts what there is."""
    blocks = len(json.loads(about["meta"])["forgotten"])
    tape = {f"tape.{i}.{k}": v for i in range(blocks) for k, v in Stack().state()[0].items()}
    return tape | {f"journal.{k}": v for k, v in Journal().state().items()}


def _up_to(chunks: Sequence[Chunk], count: int) -> list[Chunk | np.ndarray]:
    """The lowest `count` bytes; of a chunk that reaches above, what is below."""
    out: list[Chunk | np.ndarray] = []
    for chunk in chunks:
        if count >= len(chunk):
            out.append(chunk)
        elif count:
            out.append(chunk.read()[:count])
        count = max(0, count - len(chunk))
    return out
