"""`EnergyMonitor`: a ledger line for every k-th step of a trajectory, to a file of JSON lines."""

import math
import os
from pathlib import Path
from typing import Any, Self

from ..errors import InvalidSetting
from ..live import JSONL
from ..live import read as read_metrics
from ..optim.composed import is_composed, kind_of
from ..optim.energy import HasEnergy
from ..optim.settings import present
from ..trajectory import Trajectory
from .ledger import Side, Taken, account
from .potentials import Losses, Potentials
from .shadow import values_of

Line = dict[str, Any]

FIELDS = {
    "step": "the step, from this number to the next one",
    "direction": "forward, or back: the step was undone; all other fields speak of the step as taken forward",
    "unit": "of all energies: nats, or loss (units of the loss)",
    "batch": "on this step's batch: potential, kinetic, total before the step; change over it; by: the change by cause",
    "full": "the same on the full data",
    "mean": "the same for the potential averaged over batches (of its logarithm, for ECD)",
    "heat": "what noise put in over the step: kick + drift + scatter + rounding, on mean",
    "work": "change on full minus change on mean",
    "push": "momentum after the step times the change of the parameters",
    "pull": "parameters before the step times the change of the momentum",
    "norm2": "sum of squares of the parameters after the step",
    "virial": "p . dH/dp after the step",
    "parameters": "elements that took part",
    "bits": "bits that the step put on the tape, by cause, in theory",
    "tape": "bits that it put there, measured",
    "cumulated": "sums over the lines of this path, this one included: lines, heat, work, by (on mean, else full, else "
    "batch), bits, tape",
}
"""Meaning of the fields; null stands for what is not known, NaN and infinities."""


class EnergyMonitor:
    """Writes down the energy of a run, and where it comes from and goes to, at every k-th step.

    It looks from outside: the run's integers, tape, gradients and random numbers are the same with and without it. It
    sees steps of `seek`, on both ways, and none inside branches. A line costs an evaluation of what it looks at on each
    side of the step (and one between, where decay is decoupled), without gradients, and a few passes over memory; for
    that time it holds six to nine float64 numbers a parameter.

    Losses are evaluated in the mode the model is trained in; those on full and mean with one and the same random seed.

    Lines on the way back are written too (`direction`), with the numbers of the step taken forward: the same bits if
    nothing was edited. So the file is never rewritten, and `read` gives the lines of the path that leads to where the
    run stands: a step that is undone, or taken anew (after an edit, a kill, in a run opened again), replaces what was
    there.

    Args:
        traj: the trajectory.
        every: steps between lines: those that this divides.
        path: a file of JSON lines, made with its folders, or gone on with; None: only `lines`.
        full, losses, batches: see `Potentials`.

    Attributes:
        lines: of the path that leads to the present step, oldest first.
        law: the optimizer's `EnergyLaw`.

    Raises:
        InvalidSetting: an optimizer without a stated energy, no full data, `losses` that does not fit.
        NotWritten: the file cannot be written; also later, from the seek in progress.

    Example:
        with EnergyMonitor(traj, every=50, path="energy.jsonl") as monitor:
            traj.seek(1000)
    """

    def __init__(
        self,
        traj: Trajectory,
        every: int = 50,
        path: str | os.PathLike | None = None,
        *,
        full: Any = None,
        losses: Losses | None = None,
        batches: int | None = None,
    ):
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InvalidSetting(f"every={every!r} is not a positive whole number.", "pass 50.")
        if not isinstance(traj, Trajectory):
            raise InvalidSetting(f"traj is a {type(traj).__name__}.", "pass a loschmidt.Trajectory.")
        if not isinstance(traj.optimizer, HasEnergy):
            raise InvalidSetting(
                f"{type(traj.optimizer).__name__} does not state its energy.",
                "give its class an energy_law (optim.energy.EnergyLaw).",
            )
        _refuse_composed(traj.optimizer)
        self.every, self.law = every, traj.optimizer.energy_law
        self.potentials = Potentials(traj, full, losses, batches)
        self._trajectory, self._side, self._note = traj, None, None
        known = Path(path) if path is not None else None
        self.lines: list[Line] = []
        self._log = None if path is None else JSONL(path, fields=FIELDS)
        if known is not None:
            self.lines = [line for line in read(known) if line["step"] < traj.step]
        traj.watchers.append(self)

    def close(self) -> None:
        """Stop watching."""
        watchers = self._trajectory.watchers
        watchers[:] = [w for w in watchers if w is not self]
        if self._log is not None:
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    # -- what the trajectory calls -------------------------------------------------------------------

    def due(self, step: int) -> bool:
        """Whether this step gets a line."""
        return step % self.every == 0

    def before(self, traj: Trajectory, back: bool) -> None:
        """Look at the near side of a step."""
        step = traj.step - back
        _refuse_composed(traj.optimizer, "parts" in traj.journal.peek()[1] if back else None)
        self._note = self._taken(traj, step, 0) if back else None
        self._side = self._look(traj, step, None if back else math.nan)  # on the way out the step itself tells the loss

    def after(self, traj: Trajectory, back: bool) -> None:
        """Look at the far side, and write the line."""
        step, near = traj.step - (not back), self._side
        taken = self._note or self._taken(traj, step, 0)
        loss = None if traj._last_loss is None else float(traj._last_loss)
        if back:
            taken.counting = 1
        far = self._look(traj, step, loss if back else None)
        low, high = (far, near) if back else (near, far)
        if loss is not None and not self.potentials.by_row:
            low.losses[0] = loss
        self._side = self._note = None
        line = account(traj.optimizer, self.potentials, taken, low, high) if taken.slots else None
        if line is not None:
            self._write({"step": step, "direction": "back" if back else "forward"} | line, back)

    def _look(self, traj: Trajectory, step: int, loss: float | None) -> Side:
        opt = traj.optimizer
        return Side(values_of(opt), self.potentials(step, loss), opt._settings, opt.tape.bits)

    def _taken(self, traj: Trajectory, step: int, counting: int) -> Taken:
        """The last step, as its record has it."""
        opt, entry = traj.optimizer, traj.journal.peek()[1]
        slots = [opt._slots[i] for i in opt._active or ()]
        blocks = list({id(s.block): s.block for s in slots if s.stop > s.start}.values())
        coarsened = sum(blocks[b].size * bits for _, b, bits in entry.get("coarsened", []) if bits > 0)
        return Taken(step, slots, opt._settings, counting, entry.get("scalars", {}), float(coarsened))

    def _write(self, line: Line, back: bool) -> None:
        while self.lines and self.lines[-1]["step"] >= line["step"]:
            self.lines.pop()
        line["cumulated"] = _cumulated(self.lines[-1]["cumulated"] if self.lines else None, line)
        if not back:
            self.lines.append(line)
        if self._log is not None:
            self._log.write(line)


def _refuse_composed(opt: Any, composed_step: bool | None = None) -> None:
    """Raise InvalidSetting for steps of several kicks or drifts: the ledger knows kick, then drift."""
    settings = present(opt)
    if is_composed(opt, settings) if composed_step is None else composed_step:
        kind, plain = kind_of(settings if composed_step is None else opt._settings)
        raise InvalidSetting(
            f"an energy monitor accounts for steps of one kick and one drift; {kind} has more, or another order.",
            f"{plain}; or look at opt.energy_at in `on_step`.",
        )


def _cumulated(before: Line | None, line: Line) -> Line:
    before = before or {"lines": 0, "heat": 0.0, "work": 0.0, "by": {}, "bits": {}, "tape": 0.0}
    view = next(line[name] for name in ("mean", "full", "batch") if name in line)
    out: Line = {"lines": before["lines"] + 1}
    for name in ("heat", "work", "tape"):
        known = line[name] is not None and before[name] is not None
        out[name] = before[name] + line[name] if known else None
    for name, now in (("by", view["by"]), ("bits", line["bits"])):
        old = before[name]
        out[name] = {k: (old.get(k) or 0.0) + (now.get(k) or 0.0) for k in dict.fromkeys([*old, *now])}
    return out


def read(path: str | os.PathLike, *, everything: bool = False) -> list[Line]:
    """The lines of a monitor's file, also while it is written and after it was torn.

    Args:
        path: the file.
        everything: all lines in the order written, also those of steps that were undone or taken anew since.

    Returns:
        Lines of the path that leads to where the run stood last, each step once, oldest first.

    Raises:
        DamagedFile: not such a file.
    """
    found = [line for line in read_metrics(path) if "cumulated" in line and "step" in line]
    if everything:
        return found
    path_lines: list[Line] = []
    for line in found:
        while path_lines and path_lines[-1]["step"] >= line["step"]:
            path_lines.pop()
        if line["direction"] == "forward":
            path_lines.append(line)
    return path_lines
