"""Addition modulo p: a network first learns its examples by heart, and much later how to add (grokking).

Source: Power et al., arXiv 2201.02177; the network of `models.transformer`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..data import permutation
from ..errors import InvalidSetting
from ..models import OneLayerTransformer
from .base import Task

Pairs = tuple[torch.Tensor, torch.Tensor]


def modular_addition(
    p: int = 31, train_fraction: float = 0.6, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Task:
    """All p * p sums, some to train on, the rest to test on.

    Args:
        p: the modulus.
        train_fraction: share of the table to train on, rounded to whole examples.
        seed: of the split and of the initial weights.
        dtype: of the model.

    Returns:
        A task whose `train` and `test` are (pairs (n, 2) int64, sums (n,) int64), in the order of the table.

    Raises:
        InvalidSetting: a train_fraction that leaves nothing to train or to test on.
    """
    table = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    count = round(train_fraction * len(table))
    if not 0 < count < len(table):
        raise InvalidSetting(
            f"train_fraction: {train_fraction} of {len(table)} examples leaves none to train or to test on.",
            "give a fraction between 0 and 1",
        )
    order = permutation(len(table), "split", "modular-addition", p, seed)

    def part(ids: torch.Tensor) -> Pairs:
        pairs = table[ids.sort().values]
        return pairs, pairs.sum(1) % p

    return Task(
        name="modular-addition",
        model=OneLayerTransformer(p, seed=seed, dtype=dtype),
        train=part(order[:count]),
        test=part(order[count:]),
        loss=loss,
        accuracy=accuracy,
        settings={
            "p": p,
            "train_fraction": train_fraction,
            "seed": seed,
            "dtype": str(dtype).removeprefix("torch."),
        },
        answer="sums right",
    )


def loss(model: nn.Module, batch: Pairs) -> torch.Tensor:
    """Mean cross entropy of the answer at `=`, in nats."""
    pairs, sums = batch
    return F.cross_entropy(model(pairs), sums)


@torch.no_grad()
def accuracy(model: nn.Module, data: Pairs) -> float:
    """Share of pairs whose likeliest answer is right."""
    pairs, sums = data
    return (model(pairs).argmax(1) == sums).double().mean().item()
