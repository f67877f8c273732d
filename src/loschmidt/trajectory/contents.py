"""What the contents of a run's files may be. Anybody can write a file with a right digest: so nothing is taken as read.

Everything is looked at before anything is loaded. What is wrong raises `ValueError` (or what reading it raises), and
`checked` makes that a DamagedFile which names the file.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from ..errors import DamagedFile, InvalidSetting, LoschmidtError, printable
from ..exact import Journal
from ..exact.tape import Move, moves_of
from ..optim import ReversibleOptimizer, composed, settings
from .manifest import MOST, Count, Heights, Segment, Text

FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
_HEADS = 2.0**31, 2.0**52
_BUFFERS_OUTSIDE = r"\w+#[0-9a-f]{8}(\.|$)"

Whole = Annotated[int, Field(strict=True, ge=-MOST, le=MOST)]
Bound = Annotated[int, Field(strict=True, ge=0, le=53 << 40)]
Number = Annotated[float, Field(allow_inf_nan=True)]
Name = Annotated[str, StringConstraints(max_length=1000)]
Settings = dict[Name, JsonValue]
Coarsened = Annotated[list[Whole], Field(min_length=3, max_length=3)]


class _Part(BaseModel):  # what is not named here may be there, too: later versions add to it
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Group(_Part):
    """A param group: its settings, and the names of its parameters."""

    model_config = ConfigDict(extra="allow")
    names: list[Name]


class LanesMeta(_Part):
    """What `Lanes.core` gives."""

    seed: list[int | Name]
    low: Bound
    high: Bound
    index: Count
    borrowed: Count
    forgotten: Count


class Meta(_Part):
    """What `serial.describe` gives."""

    counts: list[Count]
    exponents: list[dict[Name, Annotated[int, Field(strict=True, ge=-1100, le=1100)]]]
    lanes: list[LanesMeta]
    carried: dict[Name, Name]
    settings: list[Settings] | None
    active: list[Count] | None
    element_steps: Count
    seed: int
    resolution: float


class About(_Part):
    """What `store.describe` gives."""

    optimizer: Text
    defaults: Settings
    groups: Annotated[list[Group], Field(min_length=1)]
    meta: str
    layout: dict[Name, Name]
    seed: int
    first: Count
    base_lr: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]
    digest_every: Count | None
    commit_every: Count | None
    commit_seconds: Annotated[float, Field(allow_inf_nan=True)] | None
    modes: dict[Name, bool]
    frozen: list[Name]
    functions: dict[Name, bool]
    environment: dict[Text, str | int | float | bool | None]


class Entry(_Part):
    """What a step may leave in the journal."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    scalars: dict[Name, Number] = {}
    buffers: dict[Name, torch.Tensor | None] = {}
    coarsened: list[Coarsened] = []
    parts: list["DonePart"] | None = None
    settings: dict[Name, int | Settings] | None = None
    active: list[Count] | None = None
    carried: dict[Name, Number | None] = {}
    digests: dict[Name, Name] = {}
    batch: Name = ""


class DonePart(_Part):
    """What a kick or a drift of a composed step leaves."""

    check: Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)] = 0
    scalars: dict[Name, Number] = {}
    coarsened: list[Coarsened] = []


@contextmanager
def checked(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is the file's fault: DamagedFile."""
    try:
        yield
    except FAULTS as error:
        if isinstance(error, LoschmidtError):
            raise
        raise DamagedFile(f"{path} holds what no run has ({_told(error)}).", "use another copy.") from error


def _told(error: Exception) -> str:
    if isinstance(error, ValidationError):
        wrong = error.errors(include_url=False)[0]
        return printable(f"{'.'.join(map(str, wrong['loc']))[:80]} = {repr(wrong['input'])[:80]}: {wrong['msg'][:80]}")
    return printable(f"{type(error).__name__}: {error}"[:200])


def require(ok: bool, what: str) -> None:
    """Raise ValueError unless `ok`."""
    if not ok:
        raise ValueError(what[:200])


# -- the description -------------------------------------------------------------------------------------


def about_of(text: str | bytes) -> dict[str, Any]:
    """Read the description of a run, and check it as far as that goes without a model."""
    about = json.loads(text)
    known = About.model_validate(about)
    meta = Meta.model_validate(json.loads(known.meta))
    names = [name for group in known.groups for name in group.names]
    require(len(set(names)) == len(names) == len(meta.counts), "parameters and their counts differ in number")
    require(all(f"parameter {name}" in known.layout for name in names), "a parameter that the model has not")
    require(len(known.base_lr) <= len(known.groups), "more learning rates than groups")
    require(meta.settings is None or len(meta.settings) <= len(known.groups), "more settings than groups")
    require(_are_slots(meta.active, len(names)), "active parameters that there are not")
    for lanes in meta.lanes:
        require(lanes.low <= lanes.high, "bounds of the tape's heads")
    require(all(math.isfinite(float.fromhex(x)) or x in ("inf", "nan") for x in meta.carried.values()), "carried")
    return about


def _are_slots(active: Sequence[int] | None, count: int) -> bool:
    return active is None or (sorted(set(active)) == list(active) and (not active or active[-1] < count))


# -- tensors ---------------------------------------------------------------------------------------------


def check_tensors(tensors: Mapping[str, torch.Tensor], about: dict[str, Any]) -> None:
    """The state's tensors: none that the run does not have, heads in their range, weights as the layout says."""
    meta, layout = json.loads(about["meta"]), about["layout"]
    modules = {name.removeprefix("module ") for name in layout if name.startswith("module ")} - {"(the model)"} | {""}
    held = {name for group in about["groups"] for name in group["names"]}
    known = {f"state.{i}.{k}" for i in range(len(meta["counts"])) for e in meta["exponents"] for k in e}
    known |= {f"tape.{i}.{k}" for i in range(len(meta["lanes"])) for k in ("heads", "words", "moves", "masks")}
    for name, x in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "buffer":
            path = rest.rpartition(".")[0]
            require(path in modules or bool(re.match(_BUFFERS_OUTSIDE, path)), f"{name}, of no module of the model")
        elif kind == "untracked":
            require(rest not in held and layout.get(f"parameter {rest}") == f"{x.dtype} {tuple(x.shape)}", name)
        else:
            require(kind == "journal" or name == "about" or name in known, f"{name}, which no run has")
    for i in range(len(meta["lanes"])):
        heads = tensors[f"tape.{i}.heads"]
        require(heads.dtype == torch.float64 and heads.dim() == 1, f"tape.{i}.heads")
        ok = (heads >= _HEADS[0]) & (heads <= _HEADS[1]) & (heads == heads.floor())
        require(bool(ok.all()), f"tape.{i}.heads out of range")


def words_in(tensors: Mapping[str, torch.Tensor], name: str, count: int | None = None) -> np.ndarray:
    """Words of the tape, as many as were promised."""
    words = tensors[name]
    require(words.dtype == torch.int16 and words.dim() == 1 and count in (None, len(words)), name)
    return words.numpy().view(np.uint16)


def journal_in(tensors: Mapping[str, torch.Tensor]) -> Journal:
    """A journal, with entries that are such; whether they fit the optimizer, `check_records` says."""
    require(_is(tensors["checks"], torch.int64, 1) and _is(tensors["entries"], torch.uint8, 1), "checks and entries")
    journal = Journal.from_state(dict(tensors))
    for number in (journal.first, journal.verified_from):
        require(type(number) is int and 0 <= number <= MOST, "steps out of range")
    for step, entry in journal.entries.items():
        require(journal.first <= step < journal.steps, f"an entry of step {step}")
        Entry.model_validate(entry)
    return journal


def moves_in(tensors: Mapping[str, torch.Tensor]) -> list[Move]:
    """Moves of words, whose masks are there; whether they fit the lanes, `check_records` says."""
    rows, masks = tensors["moves"], tensors["masks"]
    require(_is(rows, torch.int64, 2) and rows.shape[1] == 7 and _is(masks, torch.uint8, 1), "moves and masks")
    size, flags = rows[:, 5], rows[:, [1, 6]]
    require(bool((size >= -1).all()) and bool((size <= masks.numel()).all()), "sizes of masks")
    require(int(size.clamp(min=0).sum()) == masks.numel() and bool(((flags == 0) | (flags == 1)).all()), "masks")
    return moves_of(dict(tensors))


def _is(x: torch.Tensor, dtype: torch.dtype, dim: int) -> bool:
    return x.dtype == dtype and x.dim() == dim


def records_in(tensors: Mapping[str, torch.Tensor], segment: Segment) -> tuple[Journal, dict[int, list[Move]]]:
    """Journal and moves, by lane buffer, of a segment, as many as it promises."""
    journal, moves = journal_in(tensors), {}
    steps = journal.first, journal.steps
    require(steps == (segment.start[0], segment.stop[0]), f"steps {steps[0]} to {steps[1]}")
    for i, stop in enumerate(segment.stop[1:]):
        moves[i] = moves_in({k: tensors[f"{i}.{k}"] for k in ("moves", "masks")})
        start = segment.start[i + 1] if i + 1 < len(segment.start) else 0
        require(len(moves[i]) == stop - start, f"{len(moves[i])} moves")
    return journal, moves


# -- records and the optimizer ---------------------------------------------------------------------------


def check_records(opt: ReversibleOptimizer, journal: Journal, words: Sequence[int], forgotten: Heights = ()) -> None:
    """Go back through all records, without going back: each must be what a step of this optimizer can have left.

    Args:
        opt: with its lanes, and the moves they are to have.
        journal: that it is to have.
        words: how many words each of its lanes is to have, with those that were forgotten.
        forgotten: of those.
    """
    slots, blocks = opt._slots, len({id(s.block) for s in opt._slots})
    now, fixed = opt._settings, _fixed_buffers(opt)
    for step in range(journal.steps - 1, journal.first - 1, -1):
        entry = journal.entries.get(step)
        if entry is None:
            continue
        require(_are_slots(entry.get("active"), len(slots)), f"active parameters of step {step}")
        _check_parts(opt, now, entry, blocks, step)
        for name, value in entry.get("buffers", {}).items():
            require(name not in fixed or (value is not None and _kind(value) == fixed[name]), f"{name} of step {step}")
        if "settings" in entry:
            groups = entry["settings"].get("groups")
            require(type(groups) is int and 0 < groups <= len(opt.param_groups), f"settings of step {step}")
            now = settings.unpack(entry["settings"], now)
            for each in now:
                _check_settings(opt, each)
    for lanes, count, below in zip(opt.tape.lanes, words, [*forgotten, *[0] * len(words)], strict=False):
        _check_moves(lanes.moves, lanes.heads.numel(), count, below, lanes.borrowed, lanes.index)


def _check_settings(opt: ReversibleOptimizer, given: dict[str, Any]) -> None:
    try:
        opt.check_settings(given)
    except InvalidSetting as error:
        raise ValueError(error.seen) from error


def _check_parts(opt: ReversibleOptimizer, now: Any, entry: Mapping[str, Any], blocks: int, step: int) -> None:
    done = entry.get("parts")
    if done is not None:
        require(len(composed.as_taken(now, done)) == len(done) > 0, f"parts of step {step}")
    for coarsened in [entry.get("coarsened", []), *(part.get("coarsened", []) for part in done or [])]:
        fits = all(op >= 0 and 0 <= block < blocks and abs(bits) <= 62 for op, block, bits in coarsened)
        require(fits, f"lattices of step {step}")


def _kind(x: torch.Tensor) -> tuple[torch.dtype, torch.Size]:
    return x.dtype, x.shape


def _fixed_buffers(opt: ReversibleOptimizer) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """dtype and shape of the buffers of torch's own modules, which never change them."""
    model, out = opt.passes.buffers.model, {}
    values = opt.passes.buffers.values()
    for path, watched in opt.passes.buffers._watched.items():
        module = watched.module()
        if model is not None and type(module).__module__.startswith("torch.nn."):
            names = [f"{path}.{attribute}" if path else attribute for attribute in module._buffers]
            out |= {name: _kind(values[name]) for name in names if name in values}
    return out


def _check_moves(moves: Sequence[Move], heads: int, words: int, below: int, borrowed: int, index: int) -> None:
    """Moves must be those of so many heads, one after the other, and leave no stack with less than nothing."""
    for move in reversed(moves):
        require(0 <= move.index <= index and 0 < move.low <= move.high <= 53 << 40, "bounds of a move")
        index, count = move.index, heads if move.mask is None else _lanes_in(move.mask, heads)
        require(0 <= move.reserve <= (0 if move.emitted else count), "words from the reserve")
        words, borrowed = words + (-count if move.emitted else count - move.reserve), borrowed - move.reserve
        if words < below:  # they were given up, and so is the way back: nobody goes there
            require(below > 0, "more words moved than there are")
            return
        require(borrowed >= 0, "words from the reserve")


def _lanes_in(mask: np.ndarray, heads: int) -> int:
    if mask.dtype == np.uint8:
        require(len(mask) == -(-heads // 8), "a mask")
        return int(np.unpackbits(mask, count=heads).sum())
    require(bool((np.diff(mask.astype(np.int64)) > 0).all()) and (not len(mask) or int(mask[-1]) < heads), "a mask")
    steps = np.zeros(heads, np.int64)
    steps[mask] = 1
    return int((np.cumsum(steps) % 2).sum())
