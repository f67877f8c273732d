"""One record per optimizer: our class, torch's, the settings of both, and what a step costs; and two runners."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import loschmidt as lo

from .bits import State, bits_of, differences

FRICTION = -math.log2(0.9)
ADAM = FRICTION - math.log2(0.999)


@dataclass(frozen=True)
class Record:
    """Attributes:
    ours: our class.
    settings: of both.
    follows: torch's class, or None.
    bits: per parameter per step, in theory; None where the data decides.
    lattice: settings of ours only.
    lossy: settings with a higher price, so that a short run writes words.
    """

    ours: type
    settings: dict[str, Any]
    follows: type | None = None
    bits: float | None = 0.0
    lattice: dict[str, Any] = field(default_factory=dict)
    lossy: dict[str, Any] = field(default_factory=dict)

    def build(self, params, **changes: Any):
        return self.ours(params, **self.settings | self.lattice | changes)


def with_momentum(kind, settings):
    """Settings for tests of several optimizers: SGD needs a momentum."""
    return {"momentum": 0.9} | settings if kind is lo.optim.SGD else settings


SGD, ADAM_, ADAMW, ECD = lo.optim.SGD, lo.optim.Adam, lo.optim.AdamW, lo.optim.ECD
BBI, ECDQ1 = lo.optim.BBI, lo.optim.ECDq1
INT32 = {"lattice": torch.int32, "resolution": 2.0**-24}
HALF = {"momentum": 0.5}
RECORDS = {
    "sgd": Record(SGD, {"lr": 0.05, "momentum": 0.9}, torch.optim.SGD, FRICTION, lossy=HALF),
    "sgd-dampened-decayed": Record(
        SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}, torch.optim.SGD, FRICTION, lossy=HALF
    ),
    "sgd-maximize": Record(
        SGD,
        {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.01, "maximize": True},
        torch.optim.SGD,
        FRICTION,
        lossy=HALF,
    ),
    "sgd-frictionless": Record(SGD, {"lr": 1e-3, "momentum": 1.0}, torch.optim.SGD),
    "sgd-int32": Record(SGD, {"lr": 0.05, "momentum": 0.9}, None, FRICTION, INT32, HALF),
    "sgd-int32-momentum": Record(
        SGD, {"lr": 0.05, "momentum": 0.9}, None, FRICTION, {"lattice": {"p": torch.int32}}, HALF
    ),
    "adam": Record(ADAM_, {"lr": 1e-3}, torch.optim.Adam, ADAM, lossy={"betas": (0.5, 0.6)}),
    "adam-decayed": Record(ADAM_, {"lr": 1e-3, "weight_decay": 0.1}, torch.optim.Adam, ADAM),
    "adam-maximize": Record(ADAM_, {"lr": 1e-4, "maximize": True}, torch.optim.Adam, ADAM),
    "adamw": Record(ADAMW, {"lr": 1e-3, "weight_decay": 0.0}, torch.optim.AdamW, ADAM, lossy={"betas": (0.5, 0.6)}),
    "adamw-decayed": Record(ADAMW, {"lr": 2e-3, "weight_decay": 0.1}, torch.optim.AdamW, ADAM - math.log2(1 - 2e-4)),
    "adamw-int32-weights": Record(
        ADAMW,
        {"lr": 2e-3, "weight_decay": 0.1},
        None,
        ADAM - math.log2(1 - 2e-4),
        {"lattice": {"q": torch.int32}, "resolution": 2.0**-24},
    ),
    "ecd": Record(ECD, {"lr": 0.05, "delta_energy": 0.5, "weight_decay": 1e-3}),
    "ecd-friction": Record(
        ECD, {"lr": 0.05, "delta_energy": 0.5, "weight_decay": 1e-3, "momentum": 0.9}, bits=FRICTION, lossy=HALF
    ),
    "ecd-rescale": Record(ECD, {"lr": 0.1, "eta": 2.0, "delta_energy": 0.5, "conserve": "rescale"}, bits=None),
    "ecd-decoupled-scattered": Record(
        ECD,
        {"lr": 0.05, "nu": 1e-3, "s": 0.5, "weight_decay": 0.2, "decoupled": True},
        bits=-math.log2(0.99),
    ),
    "ecd-int32": Record(ECD, {"lr": 0.05, "delta_energy": 0.5, "weight_decay": 1e-3}, lattice=INT32),
    "bbi": Record(BBI, {"lr": 0.05, "delta_energy": 0.5, "weight_decay": 1e-3}),
    "bbi-rescale-bouncing": Record(
        BBI,
        {"lr": 0.1, "delta_energy": 0.5, "conserve": "rescale", "bounces": 2, "bounce_every": 3, "patience": 4},
        bits=None,
    ),
    "bbi-decoupled-scattered": Record(
        BBI, {"lr": 0.05, "nu": 1e-3, "weight_decay": 0.2, "decoupled": True}, bits=-math.log2(0.99)
    ),
    "bbi-int32": Record(BBI, {"lr": 0.05, "delta_energy": 0.5}, lattice=INT32),
    "q1": Record(ECDQ1, {"lr": 0.02, "eta": 50.0, "weight_decay": 1e-3}, bits=None),
    "q1-free-scattered": Record(ECDQ1, {"lr": 0.02, "eta": 20.0, "nu": 1e-2, "conserve": "none"}, bits=None),
    "q1-per-tensor": Record(ECDQ1, {"lr": 0.02, "eta": 50.0, "projection": "per-tensor"}, bits=None),
    "q1-turned-round": Record(ECDQ1, {"lr": 0.5, "eta": 200.0}, bits=None),
    "q1-int32": Record(ECDQ1, {"lr": 0.02, "eta": 50.0, "decoupled": True, "weight_decay": 0.1}, None, None, INT32),
}


class Digits:
    """scikit-learn's digits and a small convolutional net, in mini-batches drawn from a seed."""

    def __init__(self, seed: int, dtype: torch.dtype):
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        self.x, self.y = torch.tensor(x / 16, dtype=dtype).view(-1, 1, 8, 8), torch.tensor(y)
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
        ).to(dtype)
        self.order = torch.Generator().manual_seed(seed)

    def train(self, optimizer, steps: int) -> list[torch.Tensor]:
        """The parameters after training, with torch's optimizers and ours."""
        given = {"loss"} if getattr(optimizer, "needs_loss", False) else set()
        for _ in range(steps):
            rows = torch.randint(len(self.y), (32,), generator=self.order)
            loss = F.cross_entropy(self.model(self.x[rows]), self.y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(**{k: loss for k in given})
        return [p.detach() for p in self.model.parameters()]

    @torch.no_grad()
    def loss(self) -> float:
        return float(F.cross_entropy(self.model(self.x), self.y))


class Loop:
    """A plain training loop that walks both ways: mini-batches, dropout, BatchNorm, two accumulated halves, clipping.

    Args:
        name: of a record.
        dtype: of the parameters.
        replay: run the passes inside `lo.replay`; without it a step cannot be repeated.
        changes: to the record's settings.
    """

    def __init__(self, name: str, dtype: torch.dtype = torch.float32, replay: bool = True, **changes: Any):
        torch.manual_seed(3)
        self.x, self.y = torch.randn(40, 5).to(dtype), torch.randint(3, (40,))
        self.model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)).to(
            dtype
        )
        self.replay = replay
        self.optimizer = RECORDS[name].build(self.model.named_parameters(), **changes)
        self.needs_loss = self.optimizer.needs_loss
        self.optimizer.accumulates = True  # two halves, and the loss of both

    def passes(self, step: int) -> torch.Tensor:
        """Gradients and loss of a step."""
        self.optimizer.zero_grad()
        total = torch.zeros(())
        for half in (0, 1):
            rows = torch.arange(8 * step + 4 * half, 8 * step + 4 * half + 4) * 7 % 40
            with lo.replay(self.optimizer) if self.replay else nullcontext():
                loss = F.cross_entropy(self.model(self.x[rows]), self.y[rows]) / 2
                loss.backward()
            total = total + loss.detach()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        return total

    def forward(self, steps: int) -> "Loop":
        for _ in range(steps):
            loss = self.passes(self.optimizer.steps)
            self.optimizer.step(**({"loss": loss} if self.needs_loss else {}))
        return self

    def back(self, steps: int) -> "Loop":
        for _ in range(steps):
            step = self.optimizer.steps - 1
            self.optimizer.unstep(lambda step=step: self.passes(step))
        return self

    def bits(self) -> State:
        return bits_of(self.optimizer, self.model)

    def returns(self, start: State, steps: int) -> bool:
        """Go back: is every bit what it was at the start? A refusal on the way means no."""
        try:
            return not differences(start, self.back(steps).bits())
        except (lo.ReplayMismatch, lo.errors.EditedOutside):  # the latter: the bit is one that the weights show
            return False
