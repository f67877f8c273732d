"""`Trajectory`: a training run as a path in time, along which one can go to any step, forward or back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
from torch import nn

from ..errors import InvalidSetting, LoschmidtError, OutOfReach, ReplayMismatch, SourceChanged
from ..exact import Journal, Tape, digest, random
from ..optim import ReversibleOptimizer, serial
from . import environment, guard, store
from .evaluate import digest_of, evaluate, preflight
from .progress import bar

Loss = Callable[[nn.Module, Any], torch.Tensor]


class Trajectory:
    """A model, an optimizer, a loss and batches by step: a run that `seek` moves to any step, with the same bits.

    Each step is evaluated with torch, numpy and `random` seeded from (seed, step); outside a seek their states
    are yours. Buffers that a forward pass changes (BatchNorm's) go to the journal. Every `digest_every` steps a
    digest of each tensor and of the batch goes there too, and the way back compares them.

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
        tape: None: in memory.
        lr: step -> factor on each group's learning rate at the start of the run.
        after_backward: called with the model after backward: clipping and the like.
        digest_every: steps between digests in the journal; None for none.

    Raises:
        InvalidSetting: an argument that cannot work, named.

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
    ):
        guard.refuse_arguments(model, opt, loss, data, tape, digest_every)
        self.model, self.optimizer, self.loss_fn, self.data = model, opt, loss, data
        self.seed, self.lr, self.after_backward, self.digest_every = seed, lr, after_backward, digest_every
        opt.name_parameters({id(p): name for name, p in model.named_parameters()})
        self.buffers = opt.passes.buffers
        self.buffers.forget()
        for name, module in model.named_modules():
            self.buffers.see(module, name)
        held = {id(s.parameter) for s in opt._slots}
        self.untracked = {name: p for name, p in model.named_parameters() if id(p) not in held}
        self.base_lr = [float(group["lr"]) for group in opt.param_groups]
        self.first = opt.steps
        self.fingerprint = data.fingerprint() if hasattr(data, "fingerprint") else None
        self.environment = environment.record(guard.device_of(opt))
        self._adopt_surroundings()
        self._loss: tuple[int, float | None] | None = None
        self._checked = False

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
        """Loss at the present state on this step's batch (None if that is empty); evaluated when asked for."""
        if self._loss is None or self._loss[0] != self.step:
            with self._undisturbed(), torch.no_grad():
                value = evaluate(self, self.step, backward=False)
            self._loss = self.step, None if value is None else float(value)
        return self._loss[1]

    def digest(self) -> str:
        """Hex digest of lattice state, step counts, tape, buffers and untracked parameters: equal <=> same bits."""
        self.buffers.changed(full=True)
        rest = [x for name, value in sorted(self.buffers.values().items()) for x in (name, value)]
        rest += [x for name, p in sorted(self.untracked.items()) for x in (name, p)]
        return digest([self.optimizer.digest(), *rest])

    # -- moving --------------------------------------------------------------------------------------

    def seek(
        self, step: int, *, progress: bool = False, on_step: Callable[["Trajectory"], bool | None] | None = None
    ) -> "Trajectory":
        """Go to a step, forward or back.

        Args:
            step: where to go; 0 is the start.
            progress: show a bar, if stderr is a terminal.
            on_step: called with the trajectory after each step, to look at it; True ends the seek there.

        Returns:
            This trajectory, at that step (or where `on_step` ended the seek).

        Raises:
            OutOfReach: below 0, or below the first step that the journal holds.
            NonFinite, LossBelowF0, LatticeOverflow: going forward; the trajectory is at the last good step.
            ReplayMismatch: going back; the trajectory is at the last step that was as recorded.
            Nondeterministic, SourceChanged, EditedOutside: before anything moved.
        """
        target = self._reachable(step)
        with random.isolated():
            self._check_surroundings()
            verified, back = self.step, target < self.step
            with bar(f"{'back' if back else 'forward'} to step {target}", abs(target - self.step), progress) as tick:
                while self.step != target:
                    if back:
                        verified = self._back(verified)
                    else:
                        self._forward()
                    tick()
                    if on_step is not None and on_step(self):
                        break
        return self

    def _forward(self) -> None:
        step, opt = self.step, self.optimizer
        if self.lr is not None:
            factor = float(self.lr(step))
            for group, base in zip(opt.param_groups, self.base_lr, strict=True):
                group["lr"] = base * factor
        opt.step(lambda: self._passes(step))
        self._loss = None
        if self.digest_every and self.step % self.digest_every == 0:
            self.journal.annotate(digests=opt.tensor_digests(), batch=digest_of(self.data(step)))

    def _back(self, verified: int) -> int:
        """Undo one step. Returns the last step that was found to be as recorded."""
        entry, step = self.journal.peek()[1], self.step - 1
        if "digests" in entry and self.step > self.journal.verified_from:
            now = self.optimizer.tensor_digests()
            wrong = next((name for name, value in entry["digests"].items() if now.get(name) != value), None)
            if wrong is not None:
                raise self._retreat(wrong, verified)
            verified = self.step
        if "batch" in entry and digest_of(self.data(step)) != entry["batch"]:
            raise SourceChanged(
                f"the batch of step {step} is not the one that this step was taken with.",
                "bring the dataset and the batch source back to what they were.",
            )
        loss = self.optimizer.unstep(lambda: self._passes(step))
        self._loss = step, None if loss is None else float(loss.detach())
        return verified

    def _retreat(self, wrong: str, verified: int) -> ReplayMismatch:
        """The state differs from its digest: go forward again to the last step that did not."""
        at, verified_from = self.step, self.journal.verified_from
        seen = f"on the way back, {wrong} at step {at} differs from the digest in the journal (a bit of it, of the "
        seen += "tape, or of the optimizer's state has changed in memory)."
        try:
            self.journal.verified_from = at
            while self.step < verified:
                self._forward()
            where = f"The trajectory is at step {verified} again, the last that was as recorded."
        except LoschmidtError as error:
            where = f"Going forward again to step {verified} failed at step {self.step}: {error.seen}"
        self.journal.verified_from = verified_from
        return ReplayMismatch(f"{seen} {where}", "load the run from its last save.", at, wrong)

    def _passes(self, step: int) -> torch.Tensor | None:
        """Forward and backward of a step, with the buffers noted that it changes."""
        passes = self.optimizer.passes
        passes.visits += 1
        loss = evaluate(self, step)
        passes.note(self.buffers.changed())
        return loss

    def _reachable(self, step: int) -> int:
        if isinstance(step, bool) or not isinstance(step, int):
            raise InvalidSetting(f"seek({step!r}): a step is a whole number.", "pass an int.")
        first = max(self.first, self.journal.first)
        if step < first:
            why = "below 0" if step < 0 else f"below step {first}, the first that this trajectory's journal holds"
            raise OutOfReach(f"seek({step}) is {why}.", f"seek to step {first} or later.")
        return step

    # -- excursions ----------------------------------------------------------------------------------

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Eval mode for a look at the model; modes, buffers and random states are put back on leaving."""
        with self._undisturbed():
            self.model.eval()
            yield self.model

    @contextmanager
    def branch(self) -> Iterator["Trajectory"]:
        """An excursion: seek, edit, change settings at will; leaving restores the same bits. May be nested."""
        saved = serial.snapshot(self.optimizer), self._loss, list(self.base_lr), self.first
        untracked = {name: p.detach().clone() for name, p in self.untracked.items()}
        try:
            with self._undisturbed():
                yield self
        finally:
            snapshot, self._loss, self.base_lr, self.first = saved
            serial.restore(self.optimizer, snapshot)
            with torch.no_grad():
                for name, value in untracked.items():
                    self.untracked[name].copy_(value)

    @contextmanager
    def edit(self) -> Iterator[nn.Module]:
        """Change weights, buffers or modes by hand; the values are taken over on leaving.

        Below this step the way back follows another path than the one that was recorded, and is not compared
        with the record any more.
        """
        guard.refuse_edits(self)
        yield self.model
        edited = self.optimizer.adopt()
        if self.buffers.changed(full=True) or edited:
            self.journal.verified_from = self.step
        self._adopt_surroundings()
        self._loss = None

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Put modes, buffers and random states back."""
        modes = {m: m.training for m in self.model.modules()}
        buffers = self.buffers.snapshot()
        try:
            with random.isolated():
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            self.buffers.restore(buffers)

    # -- checks before moving ------------------------------------------------------------------------

    def preflight(self) -> None:
        """Evaluate this step's batch and gradient twice and compare bits. `seek` does it once by itself.

        Raises:
            Nondeterministic: naming the tensor that differs.
            SourceChanged: if the batch source gives two different batches for one step.
        """
        with self._undisturbed():
            preflight(self)
        self._checked = True

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

    def _adopt_surroundings(self) -> None:
        self.buffers.changed(full=True)
        self.modes = {name: m.training for name, m in self.model.named_modules()}

    # -- files ---------------------------------------------------------------------------------------

    def save(self, path: str | PathLike) -> None:
        """Write the whole run (state, tape, journal, buffers, settings) to one safetensors file, atomically.

        Args:
            path: a file; in an existing folder, `run.safetensors` inside it.
        """
        guard.refuse_edits(self)
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
    ) -> "Trajectory":
        """Open a saved run; the optimizer is rebuilt from the record.

        Args:
            path: what was given to `save`.
            model: of the same architecture; its weights and buffers are overwritten.
            loss, data, lr, after_backward: as at the start of the run: functions are not in the file.

        Raises:
            DamagedFile: not a saved run, or not the bits that were saved.
            InvalidSetting: another architecture, or an optimizer that is not known.
            SourceChanged: the data is not the recorded one.
        """
        return store.load(cls, path, model, loss, data, lr, after_backward)
