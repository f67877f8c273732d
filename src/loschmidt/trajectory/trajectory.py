"""`Trajectory`: a training run as a path in time, along which one can go to any step, forward or back."""

import copy
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import live
from ..errors import InvalidSetting, ReplayMismatch, SourceChanged
from ..exact import Journal, Tape, digest, random
from ..live.metrics import Writer
from ..optim import ReversibleOptimizer, composed
from ..optim.settings import put
from . import environment, guard, record, store, surroundings
from .evaluate import digest_of, evaluate, preflight
from .excursions import Excursions, as_set, same
from .folder import Folder
from .manifest import is_run
from .seek import seek

Loss = Callable[[nn.Module, Any], torch.Tensor]


class Trajectory(Excursions):
    """A model, an optimizer, a loss and batches by step: a run that `seek` moves to any step, with the same bits.

    Each step is evaluated with torch, numpy and `random` seeded from (seed, step); outside a seek their states
    are yours. Buffers that a forward pass changes (BatchNorm's) go to the journal. At the first step and every
    `digest_every` steps digests of each tensor and buffer go there too, and the way back compares them.

    Guarantees: after going forward and back (or the reverse) every integer of parameters and optimizer state,
    every buffer and every word of the tape is what it was, on the same machine with the same software, threads
    and data. What breaks it is noticed and refused: kernels that are not deterministic, a dataset or batch
    source that changed, weights, buffers or train/eval flags edited from outside.

    Args:
        model: the model; the optimizer's parameters are its own.
        opt: one of `loschmidt.optim`.
        loss: `loss(model, batch)` -> scalar tensor.
        data: a `Schedule`, or any function step -> batch that gives the same batch at every call. A batch that
            is None is a step without gradient.
        seed: key of the random numbers that passes draw (dropout).
        tape: None: in memory. A new or empty folder: the run is committed to it as it goes, and `load(folder)` opens it
            at its last commit after a kill, a full disk or a power cut. Parameters and state, not only the tape.
        lr: step -> factor on each group's learning rate at the start of the run. It sets `group["lr"]` anew at each
            step, so edits of that have no effect beside it.
        after_backward: called with the model after backward: clipping and the like.
        digest_every: steps between digests in the journal; None for none but that of the first step.
        commit_every: steps between commits to the folder, on either leg; None: only by time.
        commit_seconds: seconds between commits; more where a commit would take over a twentieth of the time; None: only
            by steps. A seek also commits when it ends.

    Raises:
        InvalidSetting: an argument that cannot work, named.
        NotWritten: the folder cannot be written to.

    Example:
        >>> import torch, loschmidt as lo
        >>> model, x = torch.nn.Linear(3, 1), torch.randn(32, 3)
        >>> opt = lo.optim.AdamW(model.parameters(), lr=1e-2)
        >>> data = lo.data.Schedule((x, x.sum(1, keepdim=True)), batch_size=8)
        >>> loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> traj = lo.Trajectory(model, opt, loss, data)
        >>> start = traj.digest()
        >>> _ = traj.seek(100).seek(0)
        >>> traj.digest() == start
        True
    """

    def __init__(
        self,
        model: nn.Module,
        opt: ReversibleOptimizer,
        loss: Loss,
        data: Callable[[int], Any],
        seed: int = 0,
        tape: str | PathLike | None = None,
        lr: Callable[[int], float] | None = None,
        after_backward: Callable[[nn.Module], Any] | None = None,
        *,
        digest_every: int | None = 100,
        commit_every: int | None = None,
        commit_seconds: float | None = 10.0,
    ):
        guard.refuse_arguments(model, opt, loss, data, tape, lr, after_backward)
        guard.refuse_intervals(digest_every, commit_every, commit_seconds)
        self.model, self.optimizer, self.loss_fn, self.data = model, opt, loss, data
        self.seed, self.digest_every = guard.whole("seed", seed), digest_every
        self.lr, self.after_backward = lr, after_backward
        self.name_parameters()
        self.buffers = opt.passes.buffers
        self.buffers.name(model)
        self.base_lr = [self._base_lr(group) for group in opt.param_groups]
        self.first = opt.steps
        self.fingerprint = data.fingerprint() if hasattr(data, "fingerprint") else None
        self.environment = environment.record(guard.device_of(opt), model)
        self.proven: dict[str, Any] | None = None  # another environment, in which the newest step has the same bits
        self._adopt_surroundings()
        self._loss: tuple[Any, float | None] | None = None
        self._last_loss: torch.Tensor | None = None
        self._energy: float | None = None  # at the start of the step before, if that was taken just now
        self._checked, self._shapes, self.watchers, self.passing = False, None, [], False
        self.moment: Callable[[int], int] = same  # step -> the step whose batch and lr it has
        self.mirrored: Callable[[int], bool | None] = as_set  # step -> which way time runs
        self.commit_every, self.commit_seconds = commit_every, commit_seconds
        self.folder: Folder | None = None
        record.begin(self)
        if tape is not None:
            self.folder = Folder.create(self, Path(tape), commit_every, commit_seconds)

    # -- where it is ---------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Steps taken; the state is the one before step number `step`."""
        return self.optimizer.steps

    @property
    def tape(self) -> Tape:
        """Remainders: `tape.bits`, `tape.bits_per_parameter_step`, `tape.bytes`."""
        return self.optimizer.tape

    @property
    def journal(self) -> Journal:
        """Everything else that going back needs: `journal.bytes`."""
        return self.optimizer.journal

    @property
    def loss(self) -> float | None:
        """Loss at the present state and mode on this step's batch (None if that is empty); evaluated when asked for."""
        now = self._point()
        if self._loss is None or self._loss[0] != now:
            with self._undisturbed(), torch.no_grad():
                value = evaluate(self, self.step, backward=False)
            self._loss = now, None if value is None else float(value)
        return self._loss[1]

    def _point(self) -> Any:
        """What the loss hangs on: step, weights (their version counters), modes."""
        return self.step, [p._version for p in self.model.parameters()], [m.training for m in self.model.modules()]

    def digest(self) -> str:
        """Hex digest of lattice state, step counts, tape, buffers and untracked weights: equal <=> same bits.

        After `load(..., salvage=True)` with part of the tape lost it is another one than before at the same step,
        though all integers, parameters and buffers are what they were: the tape is not.
        """
        rest = [x for name, (value, _) in sorted(self.buffers.snapshot().items()) for x in (name, value)]
        rest += [x for name, p in sorted(surroundings.untracked(self).items()) for x in (name, p)]
        return digest([self.optimizer.digest(), *rest])

    # -- moving --------------------------------------------------------------------------------------

    def seek(
        self,
        step: int,
        *,
        progress: bool | live.Display = False,
        on_step: Callable[["Trajectory"], bool | None] | None = None,
        metrics: Writer | Sequence[Writer] = (),
    ) -> "Trajectory":
        """Go to a step, forward or back.

        Ctrl-C ends it at the boundary of a step, with what was reached committed; a second one ends it at once.

        Args:
            step: where to go; 0 is the start.
            progress: show how far it is: a bar on a terminal or in a notebook; or a `live.Display` of your own.
            on_step: called with the trajectory after each step, to look at it; True ends the seek there.
            metrics: called with a record (see `live.record`) after each step, for example `live.JSONL(path)`.

        Returns:
            This trajectory, at that step (or where `on_step` ended the seek).

        Raises:
            OutOfReach: below 0, or below the first step that the journal holds.
            NonFinite, LossBelowF0, LatticeOverflow: going forward; the trajectory is at the last good step.
            ReplayMismatch: going back; the trajectory is at the last step that was as recorded, or where it began.
            Nondeterministic, SourceChanged, EditedOutside: before anything moved.
            DamagedFile, NotWritten: the folder does not hold what the way back needs, or has no room: before anything
                moved. NotWritten also from a commit on the way: the run is where it was then.
        """
        return seek(self, guard.reachable(self, step), progress, on_step, live.writers(metrics))

    def commit(self) -> None:
        """Commit to the folder now, if there is one and anything is not as in the last commit."""
        if self.folder is not None:
            if self.folder.is_behind(self):
                self.folder.commit(self)
            self.folder.tidy()

    def close(self) -> None:
        """Commit, and let others open the folder. The run goes on in memory.

        Words of its tape that lie in the folder are read there, as long as nobody else goes on with the run.

        Raises:
            NotWritten: the folder stays open, so that the run can be committed once there is room.
            SourceChanged: the folder holds another run by now; this one has let go of it.
        """
        if self.folder is not None:
            self.folder.leave(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Trajectory":
        """An independent run in memory, at the same step, on the same data."""
        twin = object.__new__(type(self))
        memo |= {id(self): twin, id(self.data): self.data, id(self.folder): None, id(self.watchers): []}
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        twin.buffers = twin.optimizer.passes.buffers
        twin.buffers.name(twin.model)
        return twin

    def __enter__(self) -> "Trajectory":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _forward(self) -> None:
        step, opt = self.step, self.optimizer
        if self.lr is not None:
            factor = guard.factor(self.lr, self.moment(step))
            self.base_lr = self.base_lr + [self._base_lr(group) for group in opt.param_groups[len(self.base_lr) :]]
            for group, base in zip(opt.param_groups, self.base_lr, strict=True):
                put(group, {"lr": base * factor})
        self._turn_if_due(step)
        first = step == record.lowest(self)
        if first and self.journal.start is None:  # it was given up by an edit
            record.begin(self)
        with record.fitting(self, "taking", step):
            loss = opt.step(lambda: self._passes(step))
        if first:
            record.leave(self)
        self._last_loss = None if loss is None else loss.detach()
        guard.warn_of_energy(self)
        if self.digest_every and self.step % self.digest_every == 0:
            record.write(self, step)

    def _back(self, good: record.Good | None = None) -> record.Good | None:
        """Undo one step. Returns the last state that was found to be as recorded; `good`: the one before."""
        entry, step = self.journal.peek()[1], self.step - 1
        if "batch" in entry and digest_of(self.data(self.moment(step))) != entry["batch"]:
            raise SourceChanged(
                f"the batch of step {step} is not the one that this step was taken with.",
                "bring the dataset and the batch source back to what they were.",
            )
        absent = [s.parameter for s in self.optimizer._slots if not s.count]  # joined later: added, or unfrozen
        at_start = composed.begins_with_kick(self.optimizer._settings)
        try:
            with record.fitting(self, "undoing", step, good):
                loss = self.optimizer.unstep(lambda: self._passes(step, absent))
        except ReplayMismatch as error:
            raise guard.explained(self, error) from error.__cause__
        self._last_loss = None if loss is None else loss.detach()
        self._energy = None
        self._loss = (self._point(), None if loss is None else float(self._last_loss)) if at_start else None
        return record.compare(self, good)

    def _passes(self, step: int, absent: Sequence[torch.Tensor] = ()) -> torch.Tensor | None:
        """Forward and backward of a step, with the buffers noted that it changes."""
        passes, self.passing = self.optimizer.passes, True  # what fails from here on is the user's code
        loss = evaluate(self, step, absent=absent)
        passes.visits += 1  # after `evaluate`, which clears gradients and so begins the count anew
        passes.note(self.buffers.changed())
        self.passing = False
        return loss

    # -- checks before moving ------------------------------------------------------------------------

    def preflight(self) -> None:
        """Evaluate this step's batch and gradient twice and compare bits. `seek` does it once by itself.

        Raises:
            Nondeterministic: naming the tensor that differs.
            SourceChanged: if the batch source gives two different batches for one step.
        """
        with self._undisturbed():
            self._checked = preflight(self)

    def check_world(self) -> None:
        """Refuse data or an environment that is not the recorded one (SourceChanged)."""
        guard.refuse_other_data(self)
        with random.isolated():
            guard.refuse_other_environment(self)

    def _check_surroundings(self) -> None:
        guard.refuse_edits(self)
        self.check_world()
        if not self._checked:
            self.preflight()

    def name_parameters(self) -> None:
        """Use the model's names for parameters in messages, digests and files."""
        self.optimizer.name_parameters({id(p): name for name, p in surroundings.parameters(self.model).items()})

    def _adopt_surroundings(self) -> None:
        self.buffers.changed(full=True)
        self.modes = {name: m.training for name, m in surroundings.modules(self.model).items()}
        self.untracked_bits = surroundings.checksums(self)

    def _base_lr(self, group: dict[str, Any]) -> float:
        # Under torch's name for it, so that another trajectory on this optimizer does not apply a factor twice.
        if isinstance(group["lr"], str):
            if self.lr is not None:
                raise InvalidSetting(f"lr: there is no factor on lr={group['lr']!r}.", "leave the schedule out.")
            return 1.0
        return float(group["lr"] if self.lr is None else group.setdefault("initial_lr", float(group["lr"])))

    # -- files ---------------------------------------------------------------------------------------

    def save(self, path: str | PathLike) -> None:
        """Write the whole run (state, tape, journal, buffers, settings) to one safetensors file, atomically.

        Args:
            path: a file; in an existing folder, `run.safetensors` inside it.
        """
        path = guard.path_of(path)
        guard.refuse_edits(self)
        guard.refuse_reversed(self)
        store.save(self, path)

    @classmethod
    def load(
        cls,
        path: str | PathLike,
        *,
        model: nn.Module,
        loss: Loss,
        data: Callable[[int], Any],
        lr: Callable[[int], float] | None = None,
        after_backward: Callable[[nn.Module], Any] | None = None,
        salvage: bool = False,
    ) -> "Trajectory":
        """Open a saved run; the optimizer is rebuilt from the record.

        Args:
            path: what was given to `save`; or the folder that was given as `tape`: its last commit, and the run goes
                on committing there.
            model: of the same architecture; its weights and buffers are overwritten.
            loss, data, lr, after_backward: as at the start of the run: functions are not in the file.
            salvage: open a damaged folder with what is left of it, and give up the rest (steps that can no longer be
                reached). Damaged files stay until `loschmidt runs prune`.

        Raises:
            DamagedFile: not a saved run, or not the bits that were saved; of a folder it says what can be reached.
            InUse: the folder is open elsewhere.
            InvalidSetting: another architecture, or an optimizer that is not known.
            SourceChanged: the data is not the recorded one, or the environment gives other bits.
        """
        functions = {"model": model, "loss": loss, "data": data, "lr": lr, "after_backward": after_backward}
        path = guard.path_of(path)
        guard.refuse_model(model)
        traj = Folder.load(cls, path, salvage, **functions) if is_run(path) else store.load(cls, path, **functions)
        record.warn_if_unknown(traj)
        return traj
