"""Losses at a point: on a step's batch, on the full data, and on a fixed sample of batches.

The sample stands for the average over batches. It is the same at every call, so that the average is a smooth function
of the parameters, and a change of it is never the luck of a draw. It is whole epochs, also where batches are drawn with
replacement: each sample counts equally often, so that the sample errs only in what batches do beyond their mean (the
spread of the logarithm, smaller by a share batch_size / samples than with replacement).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data import Schedule
from ..errors import InvalidSetting
from ..exact import Part, random
from ..optim.flat import Slot
from ..trajectory import Trajectory
from ..trajectory.environment import depends_on_history
from ..trajectory.evaluate import evaluate

Losses = Callable[[nn.Module, Any], torch.Tensor]

_SAMPLE = 64  # batches
_SAME = 1e-3  # relative: losses of single samples must have the loss as their mean


class Potentials:
    """Evaluates losses of a trajectory at its present parameters, or at others lent to its model.

    Attributes:
        views: "batch", and where they are known "full" and "mean".

    Args:
        traj: the trajectory.
        full: the full data, as the loss takes it; None: all samples of the Schedule; False: leave it out.
        losses: `losses(model, batch)` -> losses of single samples, shape (samples,). With it one pass over the full
            data gives all three; only for losses that are the mean of these, and no dropout or BatchNorm.
        batches: how many batches stand for the average over batches, rounded up to whole epochs; None: 64 with
            `losses`, else none.

    Raises:
        InvalidSetting: there is no full data, or `losses` does not fit the loss.
    """

    def __init__(self, traj: Trajectory, full: Any = None, losses: Losses | None = None, batches: int | None = None):
        if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int) or batches < 0):
            raise InvalidSetting(f"batches={batches!r} is not a number of batches.", "pass an int, or None.")
        self.traj, self.losses = traj, losses
        source = traj.data if isinstance(traj.data, Schedule) else None
        plain = source is not None and source.augment is None
        # Every batch is the full data: one number says it all.
        self.alone = plain and source.batch_size is None and full is None and losses is None
        self.by_row = losses is not None and full is None and plain
        self.full = None if full is False or self.alone else self._full(source) if full is None else full
        if losses is not None and self.full is None:
            raise InvalidSetting("losses without full data has nothing to look at.", "leave full=False out.")
        for name in depends_on_history(traj.model) if self.full is not None else ():
            raise InvalidSetting(
                f"{name} is compiled with dynamic=None, and the full data has another shape than a batch: looking at "
                "it could change which kernels serve the batches.",
                "compile with dynamic=False, or pass full=False.",
            )
        count = batches if batches is not None else _SAMPLE if losses is not None else 0
        self.sample = None if self.alone or not count else self._sample(source, count)
        self.views = ("batch", *(["full"] * (self.full is not None)), *(["mean"] * (self.sample is not None)))
        if self.alone:
            self.views = ("batch", "full", "mean")
        self._checked = losses is None

    def _full(self, source: Schedule | None) -> Any:
        if source is None:
            raise InvalidSetting(
                f"the full data is not known: data is a {type(self.traj.data).__name__}, not a Schedule.",
                "pass full=, the full data as the loss takes it; or full=False, to look at batches alone.",
            )
        return Schedule(source.dataset, None, without=source.without)(0)

    def _sample(self, source: Schedule | None, count: int) -> Any:
        if self.losses is None:
            return batches_of(self.traj, count, "energy", 0)
        with torch.no_grad(), self.traj._undisturbed():
            rows = len(self._of(self.full))
            size = source.batch_size if source is not None else len(self._of(self.traj.data(self.traj.step)))
        draws = Schedule(torch.arange(rows), size, seed=_key(0))
        steps = -(-count // draws.steps_per_epoch) * draws.steps_per_epoch
        ids = [draws.ids(k).numpy() for k in range(steps)]
        sizes = np.array([len(i) for i in ids])
        return np.concatenate(ids), np.cumsum(sizes) - sizes, sizes

    @torch.no_grad()
    def __call__(self, step: int, batch_loss: float | None = None) -> np.ndarray:
        """Losses at the present parameters: of the batch of `step`, of the full data, of each batch of the sample.

        Args:
            step: whose batch and random numbers.
            batch_loss: the batch's loss, where it is known; NaN where it will be.

        Buffers are as before; the generators of torch, numpy and `random` are not.
        """
        traj, out = self.traj, []
        if self.alone and batch_loss is not None:
            return np.array([batch_loss], dtype=np.float64)
        buffers = traj.buffers.snapshot()
        try:
            rows = None
            if self.losses is not None:
                random.seed_all("energy", traj.seed)
                rows = self._of(self.full)
            mine = None
            if self.by_row:
                ids = traj.data._ids(step).numpy()
                mine = batch_loss = rows[self._places()[ids]].mean() if len(ids) else np.nan
            if not self._checked:
                self._check(step, mine)
            if batch_loss is None:
                value = evaluate(traj, step, backward=False)
                batch_loss = np.nan if value is None else float(value)
            out.append(batch_loss)
            if rows is not None:
                out.append(rows.mean())
                if self.sample is not None:
                    ids, starts, sizes = self.sample
                    out += list(np.add.reduceat(rows[ids], starts) / sizes)
            else:
                for batch in [*([self.full] * ("full" in self.views[1:] and not self.alone)), *(self.sample or ())]:
                    random.seed_all("energy", traj.seed)
                    out.append(float(traj.loss_fn(traj.model, batch)))
        finally:
            traj.buffers.restore(buffers)
        return np.array(out, dtype=np.float64)

    def by_view(self, values: np.ndarray) -> dict[str, float]:
        """What `views` show of numbers that belong to the losses: itself, itself, and the mean of the sample's."""
        if self.alone:
            return dict.fromkeys(self.views, float(values[0]))
        at = 1 + ("full" in self.views)
        found = {"batch": float(values[0])} | ({"full": float(values[1])} if at == 2 else {})
        return found | ({"mean": float(values[at:].mean())} if "mean" in self.views else {})

    def _of(self, batch: Any) -> np.ndarray:
        found = self.losses(self.traj.model, batch)
        if not isinstance(found, torch.Tensor) or found.dim() != 1:
            what = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
            raise InvalidSetting(f"losses(model, batch) gave {what}.", "return one loss for each sample, flat.")
        return found.detach().to("cpu", torch.float64).numpy()

    def _places(self) -> np.ndarray:
        """Row of the full data that holds each sample."""
        if not hasattr(self, "_place"):
            source = self.traj.data
            kept = np.setdiff1d(np.arange(source.length), source.without)
            self._place = np.full(source.length, -1)
            self._place[kept] = np.arange(len(kept))
        return self._place

    def _check(self, step: int, mine: float | None) -> None:
        """Compare the losses of single samples, perhaps from a pass over the full data, with the loss, once."""
        given = evaluate(self.traj, step, backward=False)
        if given is None:
            return
        mine, given = float(self._of(self.traj.data(step)).mean() if mine is None else mine), float(given)
        if not abs(mine - given) <= _SAME * max(abs(given), 1e-6):
            raise InvalidSetting(
                f"losses(model, batch) has the mean {mine:.6g} on a batch whose loss is {given:.6g}.",
                "return the losses whose mean is the loss; leave losses out where there is dropout or BatchNorm.",
            )
        self._checked = True


def batches_of(traj: Trajectory, count: int, purpose: str, seed: int) -> list[Any]:
    """Batches of other epochs, whole ones and without replacement; of a function step -> batch, its first batches."""
    source = traj.data
    if not isinstance(source, Schedule):
        return [batch for k in range(count) if (batch := source(k)) is not None]
    twin = twin_of(source, purpose, seed, replacement=False)
    found = (twin(k) for k in range(-(-count // twin.steps_per_epoch) * twin.steps_per_epoch))
    return [batch for batch in found if batch is not None]


def twin_of(source: Schedule, purpose: str, seed: int, replacement: bool | None = None) -> Schedule:
    """The same schedule with other draws; `replacement`: otherwise than its own."""
    return Schedule(
        source.dataset,
        source.batch_size,
        seed=_key(seed, purpose),
        replacement=source.replacement if replacement is None else replacement,
        without=source.without,
        augment=source.augment,
    )


def _key(seed: int, purpose: str = "energy") -> int:
    return random.key("physics", purpose, seed) & (2**62 - 1)


@contextmanager
def lent(slots: Sequence[Slot], parts: Sequence[Part]) -> Iterator[None]:
    """Parameters show the "q" of these parts; on leaving they are the very same memory again, bits and version."""
    kept = [(s.parameter, s.parameter.data) for s in slots]
    try:
        for s in slots:
            part = next((p for p in parts if p.block is s.block and p.start <= s.start and s.stop <= p.stop), None)
            if part is not None:
                q = part.value("q")[s.start - part.start : s.stop - part.start]
                s.parameter.data = q.to(s.parameter.dtype).view(s.parameter.shape)
        yield
    finally:
        for p, data in kept:
            p.data = data
