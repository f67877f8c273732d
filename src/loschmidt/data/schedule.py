"""Which samples make the batch of a step: a pure function of (dataset, seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import index
from typing import Any

import numpy as np
import torch

from ..errors import InvalidSetting
from ..exact import random
from ..exact.digest import digest
from .source import Rows, describe, digest_of, source_of

_SAMPLED = 16  # items whose contents the fingerprint holds

# key of the fingerprint -> what it is called in a sentence
_RECORDED = {
    "length": "the number of samples",
    "sample": "the structure, dtypes or shapes of a sample",
    "batch_size": "batch_size",
    "seed": "the seed of the schedule",
    "replacement": "replacement",
    "without": "without (the samples taken out)",
    "augmented": "whether samples are augmented",
}


class Schedule:
    """Step -> batch.

    Guarantees: `batch(step)` and `ids(step)` give the same ids, order, shapes and bits at every call, for
    any step (negative ones too: steps before 0 lie in epochs before 0), in any order of calls, whatever
    the state of global random generators. What breaks it: a dataset that changes or answers differently
    from call to call; `fingerprint` notices the first if one of 16 sampled items shows it.

    Without replacement an epoch is `steps_per_epoch` steps and visits every sample once, in an order keyed
    by (seed, epoch); its last batch may be short. With replacement every step draws `batch_size`
    independent samples keyed by (seed, step), and epoch = step; for the full batch epoch = step, too.

    Args:
        dataset: a tensor, or a tuple, list or dict of equally long tensors (the batch has the same
            structure; the full batch *is* these tensors, not a copy), or a map-style dataset with `len()`
            and `[i]` (the batch is `default_collate` of its samples; random numbers it draws from global
            generators are keyed by (seed, epoch, id)).
        batch_size: samples a step; None: all of them, in dataset order. More than there are: all of them,
            shuffled.
        seed: key of orders, draws and augmentation.
        replacement: draw with replacement.
        without: ids to take out of their batches. All else stays in place, so batches get shorter; one
            that gets empty is None, a step without gradient.
        augment: `augment(sample, rng)` -> sample, before samples are stacked; `rng` is a numpy Generator
            keyed by (seed, epoch, id), so a sample drawn twice in one step is augmented the same way.

    Raises:
        InvalidSetting: a dataset that cannot be read by number, is empty or of unequal lengths; a
            batch_size below 1; ids in `without` that do not exist; replacement without a batch_size.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = None,
        *,
        seed: int = 0,
        replacement: bool = False,
        without: Iterable[int] | torch.Tensor = (),
        augment: Callable[[Any, np.random.Generator], Any] | None = None,
    ):
        if augment is not None and not callable(augment):
            seen = f"augment: {augment!r} cannot be called."
            raise InvalidSetting(seen, "give a function augment(sample, rng), or None.")
        self.dataset, self.augment = dataset, augment
        self.source = source_of(dataset)
        self.length = len(self.source)
        self.batch_size = None if batch_size is None else _whole("batch_size", batch_size)
        self.seed, self.replacement = _whole("seed", seed), bool(replacement)
        if self.batch_size is not None and self.batch_size < 1:
            raise InvalidSetting(
                f"batch_size: {batch_size}, but a batch has at least one sample.", "give 1 or more, or None for all."
            )
        if self.replacement and self.batch_size is None:
            raise InvalidSetting(
                "replacement: True with batch_size=None, which does not say how many to draw.", "give a batch_size."
            )
        self.without = _ids_of(without)
        if self.without and not 0 <= self.without[0] <= self.without[-1] < self.length:
            raise InvalidSetting(
                f"without: ids from {self.without[0]} to {self.without[-1]}, but the dataset has ids "
                f"0 to {self.length - 1}.",
                f"give ids from 0 to {self.length - 1}.",
            )
        self._keep = torch.ones(self.length, dtype=torch.bool)
        self._keep[list(self.without)] = False
        self._orders: dict[int, torch.Tensor] = {}
        self._full: tuple[torch.Tensor, Any] | None = None
        describe(self.source.sample(0, "fingerprint"))  # refuses what cannot be collated

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch: `epoch = step // steps_per_epoch`."""
        if self.replacement or self.batch_size is None:
            return 1
        return -(-self.length // self.batch_size)

    def ids(self, step: int) -> torch.Tensor:
        """Ids of the samples in the batch of a step, in order: int64, without those in `without`."""
        return self._ids(_whole("step", step)).clone()

    def batch(self, step: int) -> Any:
        """The batch of a step, or None if `without` left nothing of it."""
        step = _whole("step", step)
        ids, epoch = self._ids(step), step // self.steps_per_epoch
        if ids.numel() == 0:
            return None
        if self.augment is not None:
            return self.source.collate([self._augmented(i, epoch) for i in ids.tolist()])
        if self.batch_size is None and isinstance(self.source, Rows):
            return self._whole_dataset()[1]
        return self.source.gather(ids, self.seed, epoch)

    def __call__(self, step: int) -> Any:
        """The same as `batch`: a Schedule goes wherever a callable step -> batch does."""
        return self.batch(step)

    def without_ids(self, ids: Iterable[int] | torch.Tensor) -> Schedule:
        """The same schedule with these samples, too, taken out."""
        return Schedule(
            self.dataset,
            self.batch_size,
            seed=self.seed,
            replacement=self.replacement,
            without=(*self.without, *_ids_of(ids)),
            augment=self.augment,
        )

    def fingerprint(self) -> dict[str, Any]:
        """What a record keeps of this schedule, as JSON values; the samples are read anew at every call.

        Holds digests of up to 16 samples spread over the dataset, the first and the last among them, before
        augmentation. Of `augment` it holds only whether there is one.
        """
        length = len(self.source)
        spread = sorted({k * (length - 1) // (_SAMPLED - 1) for k in range(_SAMPLED)})
        sampled = {i: self.source.sample(i, "fingerprint") for i in spread}
        return {
            "length": length,
            "sample": describe(sampled[0]),
            "items": {str(i): digest_of(sample) for i, sample in sampled.items()},
            "batch_size": self.batch_size,
            "seed": self.seed,
            "replacement": self.replacement,
            "without": {"count": len(self.without), "digest": digest(self.without)},
            "augmented": self.augment is not None,
        }

    def differs(self, recorded: dict[str, Any]) -> list[str]:
        """What has changed since `recorded` (a fingerprint), a sentence each; empty if nothing has."""
        now = self.fingerprint()
        changed = [
            f"{name} was {_short(recorded.get(key))} and is now {_short(now[key])}."
            for key, name in _RECORDED.items()
            if recorded.get(key) != now[key]
        ]
        before = recorded.get("items", {})
        items = [i for i, value in now["items"].items() if before.get(i, value) != value]
        if items:
            changed.append(f"the contents of sample {', '.join(items)} changed (16 samples are compared).")
        return changed

    def _ids(self, step: int) -> torch.Tensor:
        epoch, part = divmod(step, self.steps_per_epoch)
        if self.batch_size is None:
            return self._whole_dataset()[0] if isinstance(self.source, Rows) else self._keep.nonzero().flatten()
        if self.replacement:
            ids = _raw(self.batch_size, "draw", self.seed, epoch) % np.uint64(self.length)
            ids = torch.from_numpy(ids.astype(np.int64))
        else:
            ids = self._order(epoch)[part * self.batch_size : (part + 1) * self.batch_size]
        return ids[self._keep[ids]] if self.without else ids

    def _order(self, epoch: int) -> torch.Tensor:
        if epoch not in self._orders:
            while len(self._orders) > 1:  # two, so that walking to and fro over an epoch's end stays cheap
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = permutation(self.length, "epoch", self.seed, epoch)
        return self._orders[epoch]

    def _whole_dataset(self) -> tuple[torch.Tensor, Any]:
        if self._full is None:
            ids = self._keep.nonzero().flatten()
            self._full = ids, self.source.gather(ids) if self.without else self.source.data
        return self._full

    def _augmented(self, i: int, epoch: int) -> Any:
        rng = random.generator("augment", self.seed, epoch, i)
        return self.augment(self.source.sample(i, self.seed, epoch), rng)


def permutation(n: int, *key: int | str) -> torch.Tensor:
    """A permutation of range(n), int64, keyed by integers and strings.

    Guarantees: the same for ever. It sorts raw Philox words, whose values numpy promises to keep, where
    `Generator.permutation` may change between versions of numpy.
    """
    return torch.from_numpy(np.argsort(_raw(n, "permutation", *key), kind="stable").astype(np.int64))


def _raw(n: int, *key: int | str) -> np.ndarray:
    return random.generator(*key).bit_generator.random_raw(n)


def _whole(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return index(value)
    except TypeError:
        raise InvalidSetting(f"{name}: {value!r} is not a whole number.", f"give an int for {name}.") from None


def _ids_of(without: Any) -> tuple[int, ...]:
    """Ids to take out: each once, the smallest first."""
    kind = f"{without.dtype} of shape {tuple(without.shape)}" if hasattr(without, "dtype") else type(without).__name__
    if "bool" in kind:
        seen = f"without: {kind} is a mask, which would be read as the ids 0 and 1."
        raise InvalidSetting(seen, "give the ids: mask.nonzero().flatten().")
    try:
        ids = list(without)
    except TypeError:
        raise InvalidSetting(f"without: {without!r} is not a list of ids.", "give a list, for example [17].") from None
    return tuple(sorted({_whole("without", i) for i in ids}))


def _short(value: Any) -> str:
    if isinstance(value, dict) and "count" in value:
        return f"{value['count']} samples (digest {value['digest'][:8]})"
    return repr(value)
