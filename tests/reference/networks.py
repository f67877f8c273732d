"""A small network with all that makes going back hard, the run that trains it, and the optimizers that do."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import loschmidt as lo

from .bits import State, bits_of

OPTIMIZERS: dict[str, tuple[type, dict[str, Any]]] = {
    "SGD": (lo.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
    "Adam": (lo.optim.Adam, {"lr": 0.005}),
    "AdamW": (lo.optim.AdamW, {"lr": 0.005, "weight_decay": 0.1}),
    "AdamW-int32": (
        lo.optim.AdamW,
        {"lr": 0.005, "weight_decay": 0.1, "lattice": {"q": torch.int32}, "resolution": 2.0**-24},
    ),
    "ECD": (lo.optim.ECD, {"lr": 0.1, "weight_decay": 1e-3}),
    "ECD-rescaled": (lo.optim.ECD, {"lr": 0.2, "delta_energy": 2.0, "nu": 1e-4, "conserve": "rescale"}),
    "ECD-decoupled": (lo.optim.ECD, {"lr": 0.1, "weight_decay": 0.1, "decoupled": True}),
    "BBI-bouncing": (
        lo.optim.BBI,
        {"lr": 0.1, "delta_energy": 2.0, "conserve": "rescale", "bounces": 3, "bounce_every": 15, "patience": 8},
    ),
    "ECDq1": (lo.optim.ECDq1, {"lr": 0.02, "eta": 30.0, "weight_decay": 1e-3}),
}
"""Class and settings."""

WORDS, LENGTH, WIDTH = 9, 5, 8


class Network(nn.Module):
    """Next word: GRU, BatchNorm, dropout, an output tied to the embedding; and weights of every other kind.

    `frozen` is in a param group and wants no gradient, `outside` is in none; `unused` never takes part, and
    `sometimes` only where the first word of the batch is odd.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding, self.gru = nn.Embedding(WORDS, WIDTH), nn.GRU(WIDTH, WIDTH, batch_first=True)
            self.norm, self.dropout = nn.BatchNorm1d(WIDTH), nn.Dropout(0.2)
            self.frozen, self.outside, self.unused, self.sometimes = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.out = nn.Linear(WIDTH, WORDS)
        self.out.weight = self.embedding.weight
        for module in (self.frozen, self.outside):
            module.requires_grad_(False)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.norm(self.gru(self.embedding(words))[0][:, -1]))
        x = x + self.outside(torch.tanh(self.frozen(x)))
        if int(words[0, 0]) % 2:
            x = x + torch.tanh(self.sometimes(x))
        return self.out(x)


def groups(model: Network, lr: float) -> list[dict[str, Any]]:
    """Matrices, and the rest at half the learning rate; without `outside`."""
    held = [(name, p) for name, p in model.named_parameters() if not name.startswith("outside")]
    return [
        {"params": [(name, p) for name, p in held if p.dim() == 2]},
        {"params": [(name, p) for name, p in held if p.dim() != 2], "lr": lr / 2},
    ]


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    words, following = batch
    return F.cross_entropy(model(words), following)


def clip(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def warm_up(step: int) -> float:
    return min(1.0, (step + 1) / 20)


def dataset() -> tuple[torch.Tensor, torch.Tensor]:
    words = torch.randint(WORDS, (60, LENGTH), generator=torch.Generator().manual_seed(0))
    return words, words.sum(1) % WORDS


def run(optimizer: str = "AdamW", dtype: torch.dtype = torch.float32, data: Any = None, **given: Any) -> lo.Trajectory:
    """A new run: mini-batches of 7 of 60 (the last of an epoch is shorter), two param groups, warm-up, clipping.

    Args:
        optimizer: one of OPTIMIZERS.
        dtype: of the network.
        data: step -> batch, instead of the schedule.
        given: to `Trajectory`; `settings` to the optimizer.
    """
    kind, settings = OPTIMIZERS[optimizer]
    settings = settings | given.pop("settings", {})
    model = Network().to(dtype)
    data = lo.data.Schedule(dataset(), batch_size=7, seed=1) if data is None else data
    given = {"loss": loss, "lr": warm_up, "after_backward": clip, "digest_every": 50} | given
    return lo.Trajectory(model, kind(groups(model, settings["lr"]), **settings), data=data, **given)


def bits(traj: lo.Trajectory) -> State:
    """Every bit of a run."""
    return bits_of(traj.optimizer, traj.model)
