"""What the folder of a run holds: one manifest, and files that it names, each with its size and digest.

    manifest.json        the last two commits, and the segments they stand on; replaced atomically
    manifest.copy.json   the same again
    state-N.safetensors  integers, units, buffers and settings of a commit
    tape-N.safetensors   a segment: bytes of the tape between two commits
    journal-N.safetensors  a segment: records of the journal between two commits
    lock                 held while a process has the run open

Segments are immutable. A commit is a height on each of the two chains of segments; a chain may reach above it.
"""

import hashlib
import json
import re
import stat
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import torch
from filelock import FileLock
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of_bytes

from ..errors import DamagedFile, printable

FORMAT = 2
MANIFEST, COPY, LOCK = "manifest.json", "manifest.copy.json", "lock"
TEMPORARY = (f".{COPY}.tmp", f".{MANIFEST}.tmp")
_NAME = r"(state|tape|journal)-\d{8,12}\.safetensors"
_OURS = re.compile(_NAME)
_LARGEST_MANIFEST = 1 << 26
_CHUNK = 1 << 22

MOST = 10**15
"""No step, size or height is larger: a run does not get there, and all of them are exact in any format."""
MOST_COMMITS = 10**11
"""So that each number fits the names of files."""
LONGEST = 200
"""Characters of a text that people are to read."""

Count = Annotated[int, Field(ge=0, le=MOST)]
Heights = tuple[Count, ...]
"""How many items each stack of a chain holds: for the tape the bytes of planes and of records, block by block; for the
journal its steps (absolute, so beginning at the first that is held)."""


def _unchanged(text: str) -> str:
    if text != as_text(text):
        raise ValueError("not printable")
    return text


def as_text(text: str) -> str:
    """What a manifest may hold of a text: printable, in one line, and not long."""
    return printable(text[:LONGEST]).replace("\n", " ")[:LONGEST]


Text = Annotated[str, AfterValidator(_unchanged)]
Time = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class File(_Record):
    """A file of the folder: there and whole if it has this size and this BLAKE2b digest."""

    name: Annotated[str, StringConstraints(pattern=f"^{_NAME}$")]
    bytes: Count
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Segment(File):
    """Items `start` to `stop` of each stack, pushed in the steps from `steps[0]` to `steps[1]`."""

    start: Heights
    stop: Heights
    steps: tuple[Count, Count]


class Commit(_Record):
    """A state that can be gone back to.

    Attributes:
        number: of this commit, counted from 1.
        step: steps taken.
        first: the lowest step that its journal and tape lead back to.
        verified_from: as in the journal.
        time: when, ISO 8601, by this machine's clock; for people only.
        state: the file with the integers.
        tape, journal: heights on the two chains.
        bits: of the tape.
    """

    number: Annotated[int, Field(ge=1, lt=MOST_COMMITS)]
    step: Count
    first: Count
    verified_from: Count
    time: Time
    state: File
    tape: Heights
    journal: Heights
    bits: float


class Manifest(_Record):
    """All that a folder promises to hold.

    Attributes:
        run: random name of the run, in hexadecimal.
        created: when, ISO 8601.
        loschmidt: version that wrote it.
        optimizer, parameters: for people.
        commits: the newest last; one or two.
        tape, journal: the chains, the lowest segment first.
        forgotten: bytes of each stack below the first segment of the tape, which are no longer held.
    """

    format: Count = FORMAT
    run: Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
    created: Time
    loschmidt: Text
    optimizer: Text
    parameters: Count
    commits: tuple[Commit, ...] = Field(min_length=1, max_length=2)
    tape: tuple[Segment, ...] = ()
    journal: tuple[Segment, ...] = ()
    forgotten: Heights = ()

    @property
    def last(self) -> Commit:
        """The newest commit."""
        return self.commits[-1]

    def files(self) -> Iterator[File]:
        """All files named, each once."""
        yield from (c.state for c in self.commits)
        yield from self.tape
        yield from self.journal

    def encode(self) -> bytes:
        """JSON with a digest of itself."""
        body = self.model_dump(mode="json")
        return (json.dumps({"digest": _digest_of(body)} | body, indent=1) + "\n").encode()


def _digest_of(body: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=32).hexdigest()


def at_most(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether every height of `a` is at most that of `b`; missing ones (stacks added later) are 0."""
    return all(x <= y for x, y in zip_longest(a, b, fillvalue=0))


def is_run(path: str | Path) -> bool:
    """Whether a folder holds a run, whole or damaged."""
    return any((Path(path) / name).is_file() for name in (MANIFEST, COPY))


def read_manifest(folder: Path, name: str = MANIFEST) -> Manifest:
    """Read and check a manifest.

    Raises:
        DamagedFile: it is not there, is not what was written, or is of a newer format.
    """
    try:
        text = read_whole(folder / name, None)
        body = json.loads(text)
        if not isinstance(body, dict):
            raise ValueError(f"it holds a {type(body).__name__}")
        recorded = body.pop("digest")
        written = body["format"]
    except KeyError as error:
        raise _damaged(folder, name, f"is not a manifest of loschmidt: it has no {error.args[0]!r}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, name, f"is not a manifest of loschmidt, or is damaged ({error})") from error
    except DamagedFile as error:
        raise _damaged(folder, name, error.seen.removeprefix(f"{folder / name} ").removesuffix(".")) from error
    if written != FORMAT:
        raise DamagedFile(
            f"{folder / name} has format {repr(written)[:80]}; this version reads {FORMAT}.",
            "use the version of loschmidt that wrote it.",
        )
    if recorded != _digest_of(body):
        raise _damaged(folder, name, "is not what was written: its digest differs")
    try:
        manifest = Manifest.model_validate(body)
    except ValidationError as error:
        wrong = error.errors()[0]
        where, value = ".".join(map(str, wrong["loc"]))[:80], repr(wrong["input"])[:80]
        raise _damaged(folder, name, f"holds {where} = {value}, which no manifest has ({wrong['msg']})") from error
    if manifest.encode() != text:  # a byte that JSON does not care for
        raise _damaged(folder, name, "is not what was written")
    wrong = _misfit(manifest)
    if wrong:
        raise _damaged(folder, name, wrong)
    return manifest


def _misfit(manifest: Manifest) -> str | None:
    """What does not fit together in a manifest, if anything."""
    top = manifest.tape[-1].stop if manifest.tape else manifest.forgotten
    for c in manifest.commits:
        if c.first > c.step:
            return f"holds commit {c.number} of step {c.step}, which leads back to step {c.first}"
        if not at_most(manifest.forgotten, c.tape) or not at_most(c.tape, top):
            return f"holds commit {c.number}, whose tape is not what its segments have"
    kinds = {"state": [c.state for c in manifest.commits], "tape": manifest.tape, "journal": manifest.journal}
    for kind, files in kinds.items():
        for file in files:
            if not file.name.startswith(kind):
                return f"names {file.name} as a {kind}"
    for chain, below in ((manifest.tape, manifest.forgotten), (manifest.journal, None)):
        for segment in chain:
            if not at_most(segment.start, segment.stop) or segment.steps[0] > segment.steps[1]:
                return f"names {segment.name}, which ends before it begins"
            if not (below is None or (at_most(segment.start, below) and at_most(below, segment.start))):
                return f"names {segment.name}, which does not continue the segment before it"
            below = segment.stop
    return None


def _damaged(folder: Path, name: str, seen: str) -> DamagedFile:
    remedy = "use another copy of the folder."
    if name == MANIFEST:
        try:
            read_manifest(folder, COPY)
            remedy = f"open it with salvage=True: {COPY} has the same again, and is whole."
        except DamagedFile:
            pass
    return DamagedFile(f"{folder / name} {seen}.", remedy)


def read_whole(path: Path, expected: int | None) -> bytes:
    """All bytes of a regular file of the expected size (None: a manifest, of moderate size).

    Raises:
        DamagedFile: missing, not a regular file (links are not followed), or of another size. Nothing was read.
    """
    try:
        about = path.lstat()
    except FileNotFoundError:
        raise DamagedFile(
            f"{path} is missing.", "use another copy of the folder, or open it with salvage=True."
        ) from None
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}.", "look at the disk.") from error
    if not stat.S_ISREG(about.st_mode):
        raise DamagedFile(f"{path} is not a regular file.", "use another copy of the folder.")
    if about.st_size != expected and (expected is not None or about.st_size > _LARGEST_MANIFEST):
        should = f"at most {_LARGEST_MANIFEST:,}" if expected is None else f"{expected:,}"
        raise DamagedFile(
            f"{path} has {about.st_size:,} bytes, and should have {should}.",
            "use another copy of the folder, or open it with salvage=True.",
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}.", "look at the disk.") from error


def read_tensors(folder: Path, file: File) -> dict[str, torch.Tensor]:
    """The tensors of a file, which is checked first.

    Raises:
        DamagedFile: it is not what was written.
    """
    data = read_whole(folder / file.name, file.bytes)
    if hashlib.blake2b(data, digest_size=32).hexdigest() != file.digest:
        raise DamagedFile(
            f"{folder / file.name} is not what was written: its digest differs.",
            "use another copy of the folder, or open it with salvage=True.",
        )
    try:
        return tensors_of_bytes(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{folder / file.name} cannot be read: {error}.", "use another copy.") from error


def trouble(folder: Path, file: File, contents: bool = True) -> str | None:
    """What is wrong with a file, or None; reads all of it, a piece at a time, unless only its size matters."""
    path = folder / file.name
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode):
            return "not a regular file"
        if about.st_size != file.bytes:
            return f"{about.st_size:,} bytes, should be {file.bytes:,}"
        if not contents:
            return None
        h = hashlib.blake2b(digest_size=32)
        with open(path, "rb") as f:
            while piece := f.read(_CHUNK):
                h.update(piece)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if h.hexdigest() == file.digest else "not what was written (its digest differs)"


def strays(folder: Path, manifest: Manifest) -> list[str]:
    """Our files in the folder that the manifest does not name: what a kill or a salvage left."""
    named = {MANIFEST, COPY, LOCK, *(file.name for file in manifest.files())}
    return sorted(p.name for p in folder.iterdir() if is_ours(p.name) and p.name not in named)


def is_ours(name: str) -> bool:
    """Whether a run has files of this name in its folder."""
    return bool(_OURS.fullmatch(name)) or name in (MANIFEST, COPY, LOCK, *TEMPORARY)


def of_first_commit(name: str) -> bool:
    """Whether a first commit that was cut short (a kill) can have left this file in a folder without a manifest."""
    return name == LOCK or name in TEMPORARY or bool(re.fullmatch(r"(state|tape|journal)-0*1\.safetensors", name))


def lock_of(folder: Path) -> FileLock:
    """The lock of a run, not yet acquired.

    Raises:
        DamagedFile: something else is in its place: a link would have another file opened for writing.
    """
    path = folder / LOCK
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise DamagedFile(f"{path} is not a regular file.", "remove it, if nobody has the run open.")
    return FileLock(path)


def next_number(folder: Path, manifest: Manifest | None) -> int:
    """A number that no file of the folder has.

    Raises:
        DamagedFile: there is none: the manifest says that there were more commits than any run makes.
    """
    seen = [int(re.findall(r"\d+", p.name)[0]) for p in folder.iterdir() if _OURS.fullmatch(p.name)]
    held = [c.number for c in manifest.commits] if manifest else []
    number = 1 + max([0, *held, *(n for n in seen if n < MOST_COMMITS - 1)])
    if number >= MOST_COMMITS:
        raise DamagedFile(f"{folder} has had {number - 1:,} commits, as its files say.", "call save(path) instead.")
    return number
