"""Writing the files of one commit: the state, and a segment of tape and of journal if there is something new."""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save as bytes_of_tensors

from .. import files
from ..errors import DamagedFile
from ..exact import Tape
from ..exact.stack import Bytes
from . import chain, store
from .environment import package_version
from .manifest import (
    COPY,
    MANIFEST,
    TEMPORARY,
    Commit,
    File,
    Heights,
    Manifest,
    Segment,
    as_text,
    at_most,
    next_number,
)

if TYPE_CHECKING:
    from .trajectory import Trajectory


class Writing:
    """One commit being written. Nothing refers to its files until the manifest is replaced.

    Args:
        folder: of the run.
        before: the manifest of the last commit, or None.

    Attributes:
        number: of the commit; no file of the folder has it.
        new: names of the files written so far.
    """

    def __init__(self, folder: Path, before: Manifest | None):
        self.folder, self.before = folder, before
        self.number, self.new = next_number(folder, before), list[str]()

    def commit(self, traj: "Trajectory") -> tuple[Manifest, bool]:
        """Write the files of a commit of the present state, and describe them; and whether the tape's chain grew."""
        opt, journal, before = traj.optimizer, traj.journal, self.before
        stacks = stacks_of(traj.tape)
        heights, floor = tuple(map(len, stacks)), tuple(x.floor for x in stacks)
        tape, tape_anew = self._grow("tape", traj, heights, floor)
        kept, journal_anew = self._grow("journal", traj, (journal.steps,), (journal.floor,))
        state = self.write("state", store.core(traj))
        now = Commit(
            number=self.number,
            step=traj.step,
            first=max(traj.first, journal.first),
            verified_from=journal.verified_from,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            state=state,
            tape=heights,
            journal=(journal.steps,),
            bits=traj.tape.bits,
        )
        older = before.commits[-1:] if before else ()
        for kind, below, anew in (("tape", floor, tape_anew), ("journal", (journal.floor,), journal_anew)):
            older = tuple(c for c in older if not anew or at_most(getattr(c, kind), below))
        commits = (*older, now)
        manifest = Manifest(
            run=before.run if before else uuid.uuid4().hex,
            created=before.created if before else now.time,
            loschmidt=as_text(package_version()),
            optimizer=as_text(type(opt).__name__),
            parameters=opt.numel,
            commits=commits,
            tape=chain.needed(tape, [c.tape for c in commits]),
            journal=chain.needed(kept, [c.journal for c in commits]),
            forgotten=self._forgotten(traj),
        )
        return manifest, tape_anew

    def _grow(self, kind: str, traj: "Trajectory", heights: Heights, floor: Heights) -> tuple[Sequence[Segment], bool]:
        """The chain with a segment for what is above the floor, if there is anything; and whether there is."""
        segments: Sequence[Segment] = getattr(self.before, kind) if self.before else ()
        if not chain.is_above(heights, floor):
            return segments, False
        bottom = self._forgotten(traj) if kind == "tape" else (traj.journal.first,)
        kept = chain.kept_below(segments, floor)
        tensors_from = _bytes_from if kind == "tape" else _records_from
        base = chain.base_of(segments, kept, bottom)
        tensors = tensors_from(traj, base)
        fewer = chain.absorbing(segments, kept, sum(x.nbytes for x in tensors.values()))
        try:
            wider = chain.base_of(segments, fewer, bottom)
            tensors, base, kept = tensors_from(traj, wider), wider, fewer
        except DamagedFile:
            pass  # a segment below is damaged: it is not taken in, and the run goes on above it
        file = self.write(kind, tensors)
        begun = segments[kept].steps[0] if kept < len(segments) else (segments[kept - 1].steps[1] if kept else 0)
        start = tuple(at(base, i) for i in range(len(heights)))
        steps = (min(begun, traj.step), traj.step)
        return (*segments[:kept], Segment(**file.model_dump(), start=start, stop=heights, steps=steps)), True

    def _forgotten(self, traj: "Trajectory") -> Heights:
        return self.before.forgotten if self.before else tuple(x.forgotten for x in stacks_of(traj.tape))

    def write(self, kind: str, tensors: dict[str, torch.Tensor]) -> File:
        """Write a file of this commit: kind is "state", "tape" or "journal"."""
        data = encoded(tensors)
        name = f"{kind}-{self.number:08d}.safetensors"
        self.new.append(name)
        files.write_new(self.folder / name, data)
        return File(name=name, bytes=len(data), digest=digest_of(data))

    def unnamed(self) -> list[str]:
        """Files of this commit that no manifest in the folder names, after it failed."""
        there = [self.folder / name for name in (MANIFEST, COPY)]
        text = "".join(path.read_text(errors="replace") for path in there if path.is_file())
        return [name for name in self.new if name not in text]


def encoded(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Tensors as the bytes of a safetensors file: the same bytes for the same tensors."""
    return bytes_of_tensors({k: v.contiguous() for k, v in tensors.items()})


def digest_of(data: bytes) -> str:
    """What a manifest records of a file's bytes."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def replace_manifest(folder: Path, manifest: Manifest) -> None:
    """Make a manifest the one that counts, at once. Its files are on the disk already, as far as their contents go."""
    data = manifest.encode()
    for temporary in TEMPORARY:
        files.write_new(folder / temporary, data)
    files.sync_folder(folder)
    for temporary, name in zip(TEMPORARY, (COPY, MANIFEST), strict=True):  # the second rename is the commit
        (folder / temporary).replace(folder / name)


def at(heights: Heights, i: int) -> int:
    """Height of stack i; a stack that was added later begins at 0."""
    return heights[i] if i < len(heights) else 0


def stacks_of(tape: Tape) -> list[Bytes]:
    """The stacks of a tape, in the order of `Heights`."""
    return [stack for block in tape for stack in (block.planes, block.records)]


def name_of(i: int) -> str:
    """Name of stack i's bytes in a segment."""
    return f"{i // 2}.{('planes', 'records')[i % 2]}"


def _bytes_from(traj: "Trajectory", base: Heights) -> dict[str, torch.Tensor]:
    held = enumerate(stacks_of(traj.tape))
    return {name_of(i): torch.from_numpy(x.since(at(base, i))) for i, x in held}


def _records_from(traj: "Trajectory", base: Heights) -> dict[str, torch.Tensor]:
    return traj.journal.state(max(base[0], traj.journal.first))
