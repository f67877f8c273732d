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
from ..optim import ReversibleOptimizer, composed, settings
from ..optim.serial import MOST_LOG
from .manifest import MOST, Count, Segment, Text

FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
_BUFFERS_OUTSIDE = r"\w+#[0-9a-f]{8}(\.|$)"

Log = Annotated[int, Field(strict=True, ge=-MOST_LOG, le=MOST_LOG)]
Number = Annotated[float, Field(allow_inf_nan=True)]
Name = Annotated[str, StringConstraints(max_length=1000)]
Settings = dict[Name, JsonValue]


class _Part(BaseModel):  # what is not named here may be there, too: later versions add to it
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Group(_Part):
    """A param group: its settings, and the names of its parameters."""

    model_config = ConfigDict(extra="allow")
    names: list[Name]


class LatticeMeta(_Part):
    """What `serial.describe` gives of a lattice."""

    logs: list[Log]
    pushed: Log


class Meta(_Part):
    """What `serial.describe` gives."""

    counts: list[Count]
    lattices: list[dict[Name, LatticeMeta]]
    forgotten: list[Annotated[list[Count], Field(min_length=2, max_length=2)]]
    carried: dict[Name, Name]
    settings: list[Settings] | None
    active: list[Count] | None
    element_steps: Count
    seed: int
    resolution: float | None


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
    require(all(math.isfinite(float.fromhex(x)) or x in ("inf", "nan") for x in meta.carried.values()), "carried")
    return about


def _are_slots(active: Sequence[int] | None, count: int) -> bool:
    return active is None or (sorted(set(active)) == list(active) and (not active or active[-1] < count))


# -- tensors ---------------------------------------------------------------------------------------------


def check_tensors(tensors: Mapping[str, torch.Tensor], about: dict[str, Any]) -> None:
    """The state's tensors: none that the run does not have, weights as the layout says."""
    meta, layout = json.loads(about["meta"]), about["layout"]
    modules = {name.removeprefix("module ") for name in layout if name.startswith("module ")} - {"(the model)"} | {""}
    held = {name for group in about["groups"] for name in group["names"]}
    known = {f"state.{i}.{k}" for i in range(len(meta["counts"])) for names in meta["lattices"] for k in names}
    known |= {f"e.{i}.{k}" for i, names in enumerate(meta["lattices"]) for k in names}
    known |= {f"tape.{i}.{k}" for i in range(len(meta["forgotten"])) for k in ("planes", "records")}
    for name, x in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "buffer":
            path = rest.rpartition(".")[0]
            require(path in modules or bool(re.match(_BUFFERS_OUTSIDE, path)), f"{name}, of no module of the model")
        elif kind == "untracked":
            require(rest not in held and layout.get(f"parameter {rest}") == f"{x.dtype} {tuple(x.shape)}", name)
        else:
            require(kind == "journal" or name == "about" or name in known, f"{name}, which no run has")


def bytes_in(tensors: Mapping[str, torch.Tensor], name: str, count: int | None = None) -> np.ndarray:
    """Bytes of the tape, as many as were promised."""
    held = tensors[name]
    require(_is(held, torch.uint8, 1) and count in (None, len(held)), name)
    return held.numpy()


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


def _is(x: torch.Tensor, dtype: torch.dtype, dim: int) -> bool:
    return x.dtype == dtype and x.dim() == dim


def records_in(tensors: Mapping[str, torch.Tensor], segment: Segment) -> Journal:
    """The journal of a segment, as many steps as it promises."""
    journal = journal_in(tensors)
    steps = journal.first, journal.steps
    require(steps == (segment.start[0], segment.stop[0]), f"steps {steps[0]} to {steps[1]}")
    return journal


# -- records and the optimizer ---------------------------------------------------------------------------


def check_records(opt: ReversibleOptimizer, journal: Journal) -> None:
    """Go back through all records, without going back: each must be what a step of this optimizer can have left."""
    now, fixed, slots = opt._settings, _fixed_buffers(opt), opt._slots
    for step in range(journal.steps - 1, journal.first - 1, -1):
        entry = journal.entries.get(step)
        if entry is None:
            continue
        require(_are_slots(entry.get("active"), len(slots)), f"active parameters of step {step}")
        done = entry.get("parts")
        require(done is None or len(composed.as_taken(now, done)) == len(done) > 0, f"parts of step {step}")
        for name, value in entry.get("buffers", {}).items():
            require(name not in fixed or (value is not None and _kind(value) == fixed[name]), f"{name} of step {step}")
        if "settings" in entry:
            groups = entry["settings"].get("groups")
            require(type(groups) is int and 0 < groups <= len(opt.param_groups), f"settings of step {step}")
            now = settings.unpack(entry["settings"], now)
            for each in now:
                _check_settings(opt, each)


def _check_settings(opt: ReversibleOptimizer, given: dict[str, Any]) -> None:
    try:
        opt.check_settings(given)
    except InvalidSetting as error:
        raise ValueError(error.seen) from error


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
