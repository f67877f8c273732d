"""What can be different on the way back of an echo, each a small record.

Each `begin`s at the turn, inside a branch, and may do something `before` each step is undone.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ..data import Schedule
from ..errors import InvalidSetting
from ..optim.settings import Settings, unpack
from .state import Direction, Layout

if TYPE_CHECKING:
    from ..trajectory import Trajectory


class Perturbation:
    """Nothing is different: the control, which must return with every bit."""

    kind: ClassVar[str] = "none"

    def begin(self, traj: "Trajectory", layout: Layout) -> Callable[["Trajectory"], None] | None:
        """Change the run, which stands at its turn; returns what is to be called before each step is undone."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        return {"kind": self.kind} | {k: _plain(v) for k, v in values.items()}


def _plain(v: Any) -> Any:
    if isinstance(v, Mapping):
        return sorted(v)
    if isinstance(v, torch.Tensor):
        return f"tensor of shape {tuple(v.shape)}"
    return v if isinstance(v, int | float | str | bool | type(None)) else str(v)


class Exact(Perturbation):
    """The control by its name."""


@dataclass(frozen=True)
class Unit(Perturbation):
    """One element is moved by whole lattice units: the smallest perturbation that there is.

    With a model in float32 a unit of 2**-40 stays below what the model sees for many steps.

    Attributes:
        parameter: its name; None: the first.
        element: of it, in row-major order.
        units: how many.
        lattice: "q", or a momentum's.
    """

    kind: ClassVar[str] = "unit"
    parameter: str | None = None
    element: int = 0
    units: int = 1
    lattice: str = "q"

    def begin(self, traj: "Trajectory", layout: Layout) -> None:
        """Move it."""
        name = next(iter(layout.places)) if self.parameter is None else self.parameter
        row, (start, stop, _) = layout._place(name if self.lattice == "q" else f"{name}/{self.lattice}")
        if isinstance(self.units, bool) or not isinstance(self.units, int) or self.units == 0:
            raise InvalidSetting(f"units={self.units!r} moves nothing, or no whole unit.", "give 1, or -1.")
        if not 0 <= self.element < stop - start:
            raise InvalidSetting(f"{name} has no element {self.element}.", f"give 0 to {stop - start - 1}.")
        block = next(b for b in reversed(layout.blocks) if layout.offsets[id(b)] <= start)
        change = torch.zeros(layout.shape, dtype=torch.float64, device=layout.device)
        place = start + self.element - layout.offsets[id(block)]
        which = int(np.searchsorted(block.rows.starts, place, "right")) - 1
        change[row, start + self.element] = self.units * float(block.lattices[self.lattice].units(which, which + 1)[0])
        layout.move(traj.optimizer, change)


@dataclass(frozen=True)
class Nudge(Perturbation):
    """The state is moved along a direction, by `size` of the norm of the parameters.

    Attributes:
        size: relative to |q|: 1e-12 to 1e-2 are usual. Below the lattice's resolution nothing would move: refused.
        direction: None: random and normal, keyed by `seed`; or one as in `tangent` (see `gauge_directions`).
        lattice: of a random direction: "q", or a momentum's.
        seed: of the random direction.
        relative_to: a lattice, or a number: what `size` is multiplied by, instead of |q|.
    """

    kind: ClassVar[str] = "nudge"
    size: float = 1e-6
    direction: Direction | None = field(default=None, repr=False)
    lattice: str = "q"
    seed: int = 0
    relative_to: str | float = "q"

    def begin(self, traj: "Trajectory", layout: Layout) -> None:
        """Move it."""
        for name in (self.lattice, self.relative_to):
            if isinstance(name, str) and name not in layout.names:
                raise InvalidSetting(f"there is no lattice {name!r}.", f"use one of {', '.join(layout.names)}.")
        if self.direction is None:
            along = layout.random(1, self.seed, [self.lattice])[0]
        else:
            along = layout.vectors(self.direction, 0)[0]
            along = along / along.norm()
        whole = self.relative_to
        if isinstance(whole, str):
            whole = float(layout.read()[layout.names.index(whole)].norm())
        moved = layout.move(traj.optimizer, along * (self.size * whole))
        if not bool(moved.any()):
            raise InvalidSetting(
                f"size={self.size:g} of a norm of {whole:.3g}, spread over {layout.size} elements, is below half the "
                "lattice's resolution everywhere, and moves nothing.",
                "give a larger size, a direction with few elements, or physics.Unit().",
            )


@dataclass(frozen=True)
class Momenta(Perturbation):
    """Momenta are replaced by random ones of equal norm: a typical state at the same place, with no memory.

    Attributes:
        seed: of the draw.
    """

    kind: ClassVar[str] = "momenta"
    seed: int = 0

    def begin(self, traj: "Trajectory", layout: Layout) -> None:
        """Replace the first lattice after "q" (p, or Adam's m)."""
        name = layout.names[1]
        old = torch.zeros(layout.shape, dtype=torch.float64, device=layout.device)
        old[1] = layout.read()[1]
        if not bool(old.any()):
            raise InvalidSetting(f"the momenta at step {traj.step} are zero, and so are all of equal norm.", "seek on.")
        layout.move(traj.optimizer, layout.random(1, self.seed, [name])[0] * old.norm() - old)


@dataclass(frozen=True)
class Sample(Perturbation):
    """One sample of one batch is replaced by another.

    Attributes:
        row: of the batch.
        by: the row that takes its place, of the batch of step `of`.
        at: step whose batch it is; None: the last one, which is undone first.
        of: None: the same step.
    """

    kind: ClassVar[str] = "sample"
    row: int = 0
    by: int = 1
    at: int | None = None
    of: int | None = None

    def begin(self, traj: "Trajectory", layout: Layout) -> None:
        """Let the batch source give that batch otherwise."""
        at = traj.step - 1 if self.at is None else self.at
        source, of = traj.data, at if self.of is None else self.of
        swapped = _swapped(source(at), source(of), self.row, self.by)  # refused here, before anything moves
        _other_data(traj, lambda step: swapped if step == at else source(step))


@dataclass(frozen=True)
class Fresh(Perturbation):
    """All batches are others.

    Attributes:
        data: step -> batch; None: the run's own `Schedule` with another seed.
        seed: of that.
    """

    kind: ClassVar[str] = "fresh"
    data: Callable[[int], Any] | None = field(default=None, repr=False)
    seed: int = 1

    def begin(self, traj: "Trajectory", layout: Layout) -> None:
        """Put the other source in place."""
        data, own = self.data, traj.data
        if data is None:
            if not isinstance(own, Schedule) or own.batch_size is None or own.seed == self.seed:
                what = "with that very seed" if isinstance(own, Schedule) else f"is a {type(own).__name__}"
                what = "gives the full batch" if isinstance(own, Schedule) and own.batch_size is None else what
                raise InvalidSetting(f"the batch source {what}; fresh batches cannot be made of it.", "give data=.")
            data = Schedule(
                own.dataset,
                own.batch_size,
                seed=self.seed,
                replacement=own.replacement,
                without=own.without,
                augment=own.augment,
            )
        _other_data(traj, data)


@dataclass(frozen=True)
class Scaled(Perturbation):
    """Numbers among the settings are others on the way back: each step is undone with its own, times a factor.

    `Scaled({"weight_decay": 1 - share})` leaves a share of the decay un-reversed: 1 leaves it out, and 2 lets decoupled
    decay go on while all else is wound back. For ECD `{"lr": -1, "eta": -1}` turns round kicks and not drifts: that is
    the loss's sign flipped and the kinetic term as it was, with steps in mirrored order; decoupled decay then goes on,
    unless `"weight_decay": -1` turns it round, too.

    Attributes:
        factors: by the setting's name.
    """

    kind: ClassVar[str] = "scaled"
    factors: Mapping[str, float] = field(default_factory=dict)

    def begin(self, traj: "Trajectory", layout: Layout) -> Callable[["Trajectory"], None]:
        """Undo each step with its recorded settings, but for these."""
        return _scale(traj, self.factors)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"kind": self.kind, "factors": dict(self.factors)}


@dataclass(frozen=True)
class Rate(Perturbation):
    """The way back has another learning rate.

    Attributes:
        factor: on the recorded one.
    """

    kind: ClassVar[str] = "rate"
    factor: float = 1.01

    def begin(self, traj: "Trajectory", layout: Layout) -> Callable[["Trajectory"], None]:
        """Undo each step with its recorded settings, but for lr."""
        if not (isinstance(self.factor, int | float) and 0 <= self.factor < math.inf):
            raise InvalidSetting(f"factor={self.factor!r} makes no lr.", "give a finite number of at least 0.")
        return _scale(traj, {"lr": self.factor})


@dataclass(frozen=True)
class Floats(Perturbation):
    """The way back is done in plain floats, algebraically, from the state at the turn: see `NaiveRun`.

    Attributes:
        dtype: torch.float32 or torch.float64.
    """

    kind: ClassVar[str] = "floats"
    dtype: torch.dtype = torch.float32


def settings_by_step(traj: "Trajectory", first: int) -> dict[int, Settings]:
    """The settings that each step from `first` on was taken with."""
    opt, out = traj.optimizer, {}
    settings = opt._settings
    for step in range(opt.steps - 1, first - 1, -1):
        out[step] = settings
        settings = unpack(opt.journal.entries.get(step, {}).get("settings"), settings)
    return out


def _scale(traj: "Trajectory", factors: Mapping[str, float]) -> Callable[["Trajectory"], None]:
    """Inside a branch: undo each step with its recorded settings times these factors."""
    opt = traj.optimizer
    first = max(traj.first, opt.journal.first)
    recorded = settings_by_step(traj, first)
    for s in {id(s): s for settings in recorded.values() for s in settings}.values():
        for name in factors:
            value = s.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                seen = f"{name} is {value!r}, which cannot be multiplied." if name in s else f"there is no {name!r}."
                raise InvalidSetting(seen, f"scale a number among the settings of {type(opt).__name__}.")

    def scale(traj: "Trajectory") -> None:
        if traj.step > first:
            opt._settings = [s | {k: s[k] * factor for k, factor in factors.items()} for s in recorded[traj.step - 1]]

    opt.journal.edited()
    scale(traj)
    return scale


def _other_data(traj: "Trajectory", data: Callable[[int], Any]) -> None:
    """Inside a branch: another batch source, of which nothing is recorded."""
    journal = traj.optimizer.journal
    for step, entry in list(journal.entries.items()):
        journal.entries[step] = {k: v for k, v in entry.items() if k not in ("batch", "digests")}
    journal.edited()
    traj.data, traj.fingerprint, traj._checked = data, None, False


def _swapped(batch: Any, other: Any, row: int, by: int) -> Any:
    if isinstance(batch, torch.Tensor):
        for name, i, x in (("row", row, batch), ("by", by, other)):
            if x.dim() == 0 or not -len(x) <= i < len(x):
                size = len(x) if x.dim() else 0
                raise InvalidSetting(f"{name}={i}, but the batch has {size} rows.", f"give 0 to {size - 1}.")
        out = batch.clone()
        out[row] = other[by]
        return out
    if isinstance(batch, Mapping):
        return {k: _swapped(v, other[k], row, by) for k, v in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(_swapped(a, b, row, by) for a, b in zip(batch, other, strict=True))
    raise InvalidSetting(
        f"a batch is a {type(batch).__name__}, whose samples are not known.",
        "let batches be tensors, or dicts of them.",
    )
