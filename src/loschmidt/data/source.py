"""What a `Schedule` draws from: tensors seen as rows, or any map-style dataset, behind the same three methods.

A source has `len(source)`, `sample(i, *key)` (one sample, its own copy) and `gather(ids, *key)` (a batch).
`key` is what random numbers drawn inside the dataset hang on; tensors draw none.
"""

import random as python_random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, TensorDataset, default_collate

from ..errors import InvalidSetting
from ..exact import random
from ..exact.digest import digest


class Rows:
    """A tensor, or a tuple, list or dict of equally long tensors; row i of each is sample i.

    Args:
        data: the tensors; `gather` gives the same structure.
    """

    def __init__(self, data: Any):
        self.data = data
        named = data.items() if isinstance(data, Mapping) else enumerate([data] if torch.is_tensor(data) else data)
        lengths = {name: x.shape[0] if x.dim() else None for name, x in named}
        if len(set(lengths.values())) > 1 or None in lengths.values():
            raise InvalidSetting(
                f"dataset: its tensors are not equally long: {lengths}.",
                "give tensors whose first dimension counts the samples.",
            )
        self.length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self.length

    def sample(self, i: int, *key: int | str) -> Any:
        """Row i of every tensor, copied, so that whoever edits it does not edit the dataset."""
        return _each(self.data, lambda x: x[i].clone())

    def gather(self, ids: torch.Tensor, *key: int | str) -> Any:
        """The rows `ids`, in that order."""
        return _each(self.data, lambda x: x.index_select(0, ids.to(x.device)))

    def collate(self, samples: list[Any]) -> Any:
        """Samples to a batch, in the structure of the dataset."""
        batch = _collate(samples)
        return tuple(batch) if type(samples[0]) is tuple else batch  # default_collate turns tuples into lists


class Items:
    """A map-style dataset: anything with `len()` and `[i]`.

    Guarantees: random numbers which the dataset draws from torch's (CPU), numpy's or Python's global
    generator depend on (key, i) only; the generators are put back. A dataset that keeps a generator of
    its own, or answers differently from call to call, breaks this.

    Args:
        data: the dataset; its samples are what `torch.utils.data.default_collate` takes.
    """

    def __init__(self, data: Any):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def sample(self, i: int, *key: int | str) -> Any:
        """Sample i."""
        with random.isolated():
            return self._draw(i, key)

    def gather(self, ids: torch.Tensor, *key: int | str) -> Any:
        """The samples `ids`, collated, in that order."""
        with random.isolated():
            return self.collate([self._draw(i, key) for i in ids.tolist()])

    def collate(self, samples: list[Any]) -> Any:
        """Samples to a batch."""
        return _collate(samples)

    def _draw(self, i: int, key: tuple[int | str, ...]) -> Any:
        # Not random.seed_all: torch.manual_seed also walks over the devices, too slow for each sample.
        seed = random.key("sample", *key, i)
        torch.default_generator.manual_seed(seed & ((1 << 63) - 1))
        np.random.seed(seed >> 96)
        python_random.seed(seed)
        return self.data[i]


def _collate(samples: list[Any]) -> Any:
    """`default_collate`, or what differs between the samples."""
    try:
        return default_collate(samples)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        first = describe(samples[0])
        other = next((x for x in map(describe, samples) if x != first), first)
        raise InvalidSetting(
            f"dataset: its samples do not fit into one batch: {first} and {other} ({error}).",
            "let all samples have the same structure and shapes: pad them, or crop them.",
        ) from error


def source_of(dataset: Any) -> Rows | Items:
    """The source for a dataset.

    A tensor, and a tuple, list or dict of tensors, are rows (a list of equally long tensors too: it is
    read as columns, never as one sample each). Other lists, and whatever has `len()` and `[i]`, are items.

    Raises:
        InvalidSetting: empty, without `len()` or `[i]`, or of unequal lengths.
    """
    source = Rows(dataset) if torch.is_tensor(dataset) else _source_of_many(dataset)
    if len(source) == 0:
        raise InvalidSetting("dataset: it has no samples.", "give at least one.")
    return source


def _source_of_many(dataset: Any) -> Rows | Items:
    if type(dataset) is TensorDataset:
        return Rows(list(dataset.tensors))
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise InvalidSetting(
            f"dataset: a {type(dataset).__name__} has no length and no samples by number, so a past batch "
            "could not be drawn again.",
            "give tensors or a map-style dataset (list(dataset) where it fits in memory).",
        )
    if isinstance(dataset, (tuple, list, Mapping)):
        members = list(dataset.values() if isinstance(dataset, Mapping) else dataset)
        if members and all(torch.is_tensor(x) and x.dim() for x in members):
            return Rows(dataset)
        if not isinstance(dataset, list) or any(isinstance(x, np.ndarray) for x in members):
            raise InvalidSetting(
                f"dataset: a {type(dataset).__name__} of {sorted({type(x).__name__ for x in members})}; "
                "it is read as columns, and columns are tensors with at least one dimension.",
                "convert each column with torch.as_tensor, or give a list of samples.",
            )
    return Items(dataset)


def _each(data: Any, f: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`f` of every tensor, in the same structure."""
    if torch.is_tensor(data):
        return f(data)
    if isinstance(data, Mapping):
        return {name: f(x) for name, x in data.items()}
    out = [f(x) for x in data]
    return type(data)(*out) if hasattr(data, "_fields") else tuple(out) if isinstance(data, tuple) else out


def describe(sample: Any) -> Any:
    """Structure, dtypes and shapes of a sample, as JSON values.

    Raises:
        InvalidSetting: something in it cannot be collated.
    """
    if isinstance(sample, Mapping):
        return {str(name): describe(x) for name, x in sample.items()}
    if isinstance(sample, (tuple, list)):
        return [describe(x) for x in sample]
    if isinstance(sample, (torch.Tensor, np.ndarray, np.generic)):
        return f"{str(sample.dtype).removeprefix('torch.')}{list(sample.shape)}"
    if isinstance(sample, (int, float, str, bytes)):
        return type(sample).__name__
    raise InvalidSetting(
        f"dataset: a sample holds a {type(sample).__name__}, which cannot be put into a batch.",
        "let dataset[i] give tensors, numbers, or tuples or dicts of them.",
    )


def digest_of(sample: Any) -> str:
    """Digest of everything in a sample, with its structure."""
    return digest([str(describe(sample)), *_leaves(sample)], size=8)


def _leaves(sample: Any) -> list[torch.Tensor | bytes | str]:
    if isinstance(sample, Mapping):
        return [leaf for x in sample.values() for leaf in _leaves(x)]
    if isinstance(sample, (tuple, list)):
        return [leaf for x in sample for leaf in _leaves(x)]
    if isinstance(sample, (np.ndarray, np.generic)):
        return [np.asarray(sample).tobytes()]
    return [sample if isinstance(sample, (torch.Tensor, bytes)) else repr(sample)]
