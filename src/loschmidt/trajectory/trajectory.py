"""`Trajectory`: a training run as a path in time, along which one can go to any step, forward or back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import index
from os import PathLike
from typing import Any

import torch
from torch import nn

from ..errors import InvalidSetting, OutOfReach, SourceChanged
from ..exact import Journal, Tape, digest, random
from ..optim import ReversibleOptimizer, flat, serial
from . import environment, guard, record, store, surroundings
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
        self.base_lr = [self._base_lr(group) for group in opt.param_groups]
        self.first = opt.steps
        self.fingerprint = data.fingerprint() if hasattr(data, "fingerprint") else None
        self.environment = environment.record(guard.device_of(opt))
        self._adopt_surroundings()
        self._loss: tuple[Any, float | None] | None = None
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
        """Loss at the present state and mode on this step's batch (None if that is empty); evaluated when asked for."""
        now = self._point()
        if self._loss is None or self._loss[0] != now:
            with self._undisturbed(), torch.no_grad():
                value = evaluate(self, self.step, backward=False)
            self._loss = now, None if value is None else float(value)
        return self._loss[1]

    def _point(self) -> Any:
        """What the loss hangs on: step, weights (their version counters), modes."""
        versions = [p._version for p in self.model.parameters()]
        return self.step, versions, [m.training for m in self.model.modules()]

    def digest(self) -> str:
        """Hex digest of lattice state, step counts, tape, buffers and untracked weights: equal <=> same bits."""
        rest = [x for name, (value, _) in sorted(self.buffers.snapshot().items()) for x in (name, value)]
        rest += [x for name, p in sorted(surroundings.untracked(self).items()) for x in (name, p)]
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
            back = target < self.step
            good = record.hold(self) if back and record.ahead(self, target) else None
            with bar(f"{'back' if back else 'forward'} to step {target}", abs(target - self.step), progress) as tick:
                while self.step != target:
                    if back:
                        good = self._back(good)
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
            self.base_lr = self.base_lr + [self._base_lr(group) for group in opt.param_groups[len(self.base_lr) :]]
            for group, base in zip(opt.param_groups, self.base_lr, strict=True):
                group["lr"] = base * factor
        opt.step(lambda: self._passes(step))
        if self.digest_every and self.step % self.digest_every == 0:
            record.write(self, step)

    def _back(self, good: record.Good | None = None) -> record.Good | None:
        """Undo one step. Returns the last state that was found to be as recorded."""
        good = record.compare(self, good)
        entry, step = self.journal.peek()[1], self.step - 1
        if "batch" in entry and digest_of(self.data(step)) != entry["batch"]:
            raise SourceChanged(
                f"the batch of step {step} is not the one that this step was taken with.",
                "bring the dataset and the batch source back to what they were.",
            )
        loss = self.optimizer.unstep(lambda: self._passes(step))
        self._loss = self._point(), None if loss is None else float(loss.detach())
        return good

    def _passes(self, step: int) -> torch.Tensor | None:
        """Forward and backward of a step, with the buffers noted that it changes."""
        passes = self.optimizer.passes
        loss = evaluate(self, step)
        passes.visits += 1  # after `evaluate`, which clears gradients and so begins the count anew
        passes.note(self.buffers.changed())
        return loss

    def _reachable(self, step: int) -> int:
        try:
            if isinstance(step, bool):
                raise TypeError
            step = index(step)
        except TypeError:
            raise InvalidSetting(f"seek({step!r}): a step is a whole number.", "pass an int.") from None
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
        flat.check_unedited(self.optimizer._slots, full=True)  # leaving would silently undo an edit
        attributes, snapshot, put_back = dict(self.__dict__), serial.snapshot(self.optimizer), surroundings.keep(self)
        try:
            with random.isolated():
                yield self
        finally:
            self.__dict__.update(attributes)
            put_back()
            serial.restore(self.optimizer, snapshot)

    @contextmanager
    def edit(self) -> Iterator[nn.Module]:
        """Change weights, buffers or modes by hand; the values are taken over on leaving.

        Below this step the way back follows another path than the one that was recorded, and is not compared
        with the record any more. A change of modes alone is not such a border: steps below it are undone only
        once the modes are again those that they were taken in.

        Raises:
            NonFinite, LatticeOverflow: a weight that has no place on the lattice. As after any exception inside,
                everything is put back.
        """
        guard.refuse_edits(self)
        put_back = surroundings.keep(self)
        try:
            yield self.model
            edited = self.optimizer.adopt()
        except BaseException:
            put_back()
            flat.write(self.optimizer._slots)
            raise
        if edited or self.buffers.changed(full=True) or surroundings.checksums(self) != self.untracked_bits:
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

    def _adopt_surroundings(self) -> None:
        self.buffers.changed(full=True)
        self.modes = {name: m.training for name, m in self.model.named_modules()}
        self.untracked_bits = surroundings.checksums(self)

    def _base_lr(self, group: dict[str, Any]) -> float:
        # Under torch's name for it, so that another trajectory on this optimizer does not apply a factor twice.
        return float(group["lr"] if self.lr is None else group.setdefault("initial_lr", group["lr"]))

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
