"""Excursions: looking, branching, editing, and letting time run backwards; all of them leave what they found."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from ..exact import random
from ..optim import ReversibleOptimizer, flat, serial
from . import guard, record, surroundings

if TYPE_CHECKING:
    from .trajectory import Trajectory


def same(step: int) -> int:
    """The same step: how time runs, as a rule."""
    return step


def as_set(step: int) -> None:
    """Which way time runs is as the optimizer's settings say."""


class Excursions:
    """What `Trajectory` has for going off its path, and coming back to it."""

    model: nn.Module
    optimizer: ReversibleOptimizer
    moment: Callable[[int], int]
    mirrored: Callable[[int], bool | None]

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Eval mode for a look at the model; modes, buffers and random states are put back on leaving."""
        with self._undisturbed():
            self.model.eval()
            yield self.model

    @contextmanager
    def branch(self) -> Iterator["Trajectory"]:
        """An excursion: seek, edit, change settings at will; leaving restores the same bits. May be nested.

        It is never committed: a kill inside it leaves the run where the branch began.
        """
        flat.check_unedited(self.optimizer._slots)  # leaving would silently undo an edit
        self.commit()
        attributes, snapshot, put_back = dict(self.__dict__), serial.snapshot(self.optimizer), surroundings.keep(self)
        energy = {"energy": self.optimizer.energy} if hasattr(self.optimizer, "energy") else {}
        try:
            self.folder, self.watchers = None, []
            with random.isolated():
                yield self
        finally:
            self.__dict__.update(attributes)
            put_back()
            serial.restore(self.optimizer, snapshot)
            self.optimizer.__dict__.update(energy)

    @contextmanager
    def time_reversed(self) -> Iterator["Trajectory"]:
        """A branch in which time runs backwards: momenta flipped, steps mirrored, batches in reverse order.

        Inside, `seek(step + k)` takes k steps back in time from here, with the batches (and factors on lr, and random
        numbers) of the steps before this one, last first, and past the start with those of steps -1, -2, and so on,
        if the batch source has them. This is not undoing, though the path is the same, as exactly as rounding allows:
        a step is taken each time, with a gradient of its own, so that it works just as well from a state that no
        path led to (see `edit`). It can itself be wound back, exactly.

        Raises:
            InvalidSetting: the optimizer's momenta cannot be flipped (friction is not reversed by that).
            OutOfReach: on a seek past the start, where the batch source has no such step. The steps before it stand.
        """
        guard.refuse_no_reversal(self.optimizer)
        with self.branch():
            turn, before, which = self.step, self.moment, self.mirrored
            self.optimizer.reverse_time()
            there = self.optimizer.param_groups[0]["mirrored"]
            self.moment = lambda step: before(step) if step < turn else before(2 * turn - 1 - step)
            self.mirrored = lambda step: which(step) if step < turn else there
            self._loss, self._energy, self._checked = None, None, False
            yield self

    def _turn_if_due(self, step: int) -> None:
        """Coming back to the turn from below, time runs backwards again from there."""
        wanted = self.mirrored(step)
        if wanted is not None and wanted != self.optimizer.param_groups[0]["mirrored"]:
            self.optimizer.reverse_time()

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
            self.journal.edited()
        self._adopt_surroundings()
        if self.journal.start is None:
            record.begin(self)
        self._loss = self._energy = None
        if self.folder is not None:
            self.folder.moved = True
            self.commit()

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
