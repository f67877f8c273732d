"""Reading a run's folder: whole, or what is left of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import DamagedFile
from ..exact import Journal
from . import contents
from .manifest import (
    COPY,
    MANIFEST,
    Commit,
    File,
    Manifest,
    Segment,
    at_most,
    read_manifest,
    read_tensors,
    trouble,
)


@dataclass
class Found:
    """What a commit holds, read and checked, apart from the tape, which is read when needed.

    Attributes:
        manifest: describes it; after a salvage, only what is left.
        state: tensors of the state file.
        journal: down to the lowest step that can be reached.
        salvaged: whether anything was given up.
    """

    manifest: Manifest
    state: dict[str, torch.Tensor]
    journal: Journal
    salvaged: bool = False


@dataclass
class Survey:
    """What every file of a run was found to be.

    Attributes:
        folder: of the run.
        manifest: the manifest, or its copy.
        damaged: file -> what is wrong with it.
        commit: the newest commit whose state is whole, or None.
        first: the lowest step that can be reached from there.
    """

    folder: Path
    manifest: Manifest
    damaged: dict[str, str] = field(default_factory=dict)
    commit: Commit | None = None
    first: int = 0

    def __str__(self) -> str:
        """What is lost, and what can be reached."""
        if not self.damaged:
            return "all files are whole"
        files = ", ".join(f"{name} is {wrong}" for name, wrong in self.damaged.items())
        if self.commit is None:
            return f"{files}: no state is left"
        last = self.manifest.last
        lost = [] if self.commit is last else [f"the commit of step {last.step}"]
        lost += [f"steps below {self.first}"] if self.first > self.commit.first else []
        text = f"{files}: {' and '.join(lost)} lost" if lost else f"{files}: nothing is lost"
        return f"{text}; the run can go on from step {self.commit.step}, and back to step {self.first}"

    def best(self) -> Found:
        """Read what is left.

        Raises:
            DamagedFile: nothing is.
        """
        if self.commit is None:
            raise DamagedFile(f"{self.folder}: {self}.", "use another copy of the folder.")
        commit, first = self.commit, self.first
        if not self.damaged:
            return _read(self.folder, self.manifest)
        bad = [s for s in self.manifest.tape if s.name in self.damaged]
        kept = [s for s in self.manifest.tape if not bad or at_most(bad[-1].stop, s.start)]
        top = bad[-1].stop if bad else self.manifest.forgotten
        forgotten = tuple(min(a, b) for a, b in zip(top, commit.tape, strict=False))
        left = [s for s in self.manifest.journal if s.name not in self.damaged and s.start[0] < commit.step]
        journal = _cut(records_of(self.folder, left, first), commit)
        journal.forget_below(first)
        manifest = self.manifest.model_copy(
            update={
                "commits": (commit.model_copy(update={"first": first, "journal": (journal.first,)}),),
                "tape": tuple(kept),
                "journal": (),
                "forgotten": forgotten,
            }
        )
        return Found(manifest, read_tensors(self.folder, commit.state), journal, salvaged=True)


def survey(folder: Path) -> Survey:
    """Read every file of a run, and say what is whole.

    Raises:
        DamagedFile: neither the manifest nor its copy is.
    """
    damaged, manifest = {}, None
    for name in (COPY, MANIFEST):
        try:
            manifest = read_manifest(folder, name)
        except DamagedFile as error:
            damaged[name] = error.seen.removeprefix(f"{folder / name} ").removeprefix("is ").rstrip(".")
            why = error
    if manifest is None:
        raise DamagedFile(f"{folder}: neither {MANIFEST} nor {COPY} can be read: {why.seen}", why.remedy)
    for file in manifest.files():
        wrong = trouble(folder, file)
        if wrong:
            damaged[file.name] = wrong
    found = Survey(folder, manifest, damaged)
    found.commit = next((c for c in reversed(manifest.commits) if c.state.name not in damaged), None)
    if found.commit is not None:
        found.first = _lowest(found.commit, manifest, damaged)
    return found


def whole_or_refused(folder: Path) -> Found:
    """Read the last commit.

    Raises:
        DamagedFile: a file that it needs is not whole; says what can still be reached.
    """
    if not (folder / MANIFEST).exists() and not (folder / COPY).exists():
        raise DamagedFile(f"there is no run in {folder}.", "give the folder that was given as tape=.")
    manifest = read_manifest(folder)
    try:
        return _read(folder, manifest)
    except DamagedFile as error:
        left = survey(folder)
        if not left.damaged:  # every byte is what was written: it was not we who wrote it
            raise
        remedy = "use another copy of the folder"
        if left.commit is not None:
            remedy += ", or open it with salvage=True to go on with what is left"
        raise DamagedFile(f"{folder}: {left}.", f"{remedy}.") from error


def _lowest(commit: Commit, manifest: Manifest, damaged: Iterable[str]) -> int:
    """The lowest step that can be reached from a commit without the damaged segments."""
    first = commit.first
    for segments, heights in ((manifest.tape, commit.tape), (manifest.journal, commit.journal)):
        for segment in segments:
            if segment.name in damaged and not at_most(heights, segment.start):
                first = max(first, min(segment.steps[1], commit.step))
    return first


def _read(folder: Path, manifest: Manifest) -> Found:
    commit = manifest.last
    for segment in manifest.tape:  # their contents are checked when the way back needs them
        _require_size(folder, segment)
    state = read_tensors(folder, commit.state)
    journal = records_of(folder, manifest.journal, commit.first)
    if journal.steps < commit.step or journal.first > commit.first:
        held = f"steps {journal.first:,} to {journal.steps:,}"
        seen = f"{folder}: the journal has {held}, the commit needs {commit.first:,} to {commit.step:,}."
        raise DamagedFile(seen, "use another copy of the folder.")
    return Found(manifest, state, _cut(journal, commit))


def _require_size(folder: Path, file: File) -> None:
    path = folder / file.name
    if not path.is_file() or path.stat().st_size != file.bytes:
        raise DamagedFile(f"{path} is missing or cut short.", "use another copy of the folder.")


def records_of(folder: Path, segments: Iterable[Segment], first: int) -> Journal:
    """The journal of segments that follow one another: the highest run of them."""
    journal, empty = Journal(first), True
    for segment in segments:
        tensors = read_tensors(folder, segment)
        with contents.checked(folder / segment.name):
            part = contents.records_in(tensors, segment)
        if journal.steps != part.first or empty:
            journal, empty = Journal(part.first), False
        journal.extend(part)
    return journal


def _cut(journal: Journal, commit: Commit) -> Journal:
    """What a commit has of it."""
    while journal.steps > commit.step and len(journal.checks):
        journal.pop()
    if journal.steps != commit.step:
        journal = Journal(commit.step)
    journal.verified_from = commit.verified_from
    return journal
