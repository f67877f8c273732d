"""The small task of claims about going back: modular addition, and the whole table to look at.

A one-layer transformer of a width of one's choice, in float64 unless asked otherwise, full batch: nothing differs
between the way out and the way back but what an experiment makes different.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch

from ..data import Schedule
from ..models import OneLayerTransformer
from ..optim import ECD, SGD
from ..physics import NaiveRun
from ..tasks.modular_addition import accuracy, loss, modular_addition
from ..trajectory import Trajectory

_KINDS = {"SGD": SGD, "ECD": ECD}


@dataclass(frozen=True)
class Adding:
    """A fresh network, and its sums.

    Attributes:
        model: from the seed.
        train: (pairs, sums) to train on.
        test: the others.
        table: all pairs, shape (p * p, 2), to look at.
    """

    model: OneLayerTransformer
    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]
    table: torch.Tensor

    def optimizer(self, kind: str, settings: Mapping[str, Any]) -> SGD | ECD:
        """ "SGD" or "ECD" on the model's parameters."""
        return _KINDS[kind](self.model.parameters(), **settings)

    def run(self, kind: str, settings: Mapping[str, Any], tape: str | PathLike | None = None) -> Trajectory:
        """A run on the lattice, at step 0; `tape`: as of `Trajectory`."""
        data = Schedule(self.train, batch_size=None)
        return Trajectory(self.model, self.optimizer(kind, settings), loss, data, tape=tape, digest_every=None)

    def float_run(
        self, kind: str, settings: Mapping[str, Any], look: Callable[[float, NaiveRun], None] | None = None
    ) -> NaiveRun:
        """The same run in plain floats of the model's dtype; `look(loss, run)` at each gradient."""
        opt, parameters = self.optimizer(kind, settings), list(self.model.parameters())

        def gradient(step: int) -> tuple[float, list[torch.Tensor]]:
            for p in parameters:
                p.grad = None
            value = loss(self.model, self.train)
            value.backward()
            if look is not None:
                look(value.item(), run)
            return value.item(), [p.grad for p in parameters]

        hyper = {k: v for k, v in opt.param_groups[0].items() if k != "params"}
        program = (opt.kicks(), opt.drifts(), hyper, list(opt.lattices))
        run = NaiveRun(parameters, gradient, *program, prepare=opt.prepare, carries=opt.carries)
        return run

    def observe(self, model: torch.nn.Module) -> torch.Tensor:
        """Logits on the whole table, shape (p * p, p)."""
        return model(self.table)

    @torch.no_grad()
    def knows(self) -> dict[str, float]:
        """Train loss in nats, and accuracies, as it stands."""
        return {
            "loss": float(loss(self.model, self.train)),
            "train": accuracy(self.model, self.train),
            "test": accuracy(self.model, self.test),
        }


def adding(settings: Mapping[str, Any], seed: int, dtype: torch.dtype = torch.float64) -> Adding:
    """The task.

    Args:
        settings: "p", the modulus; "width" and "hidden" of the network; "fraction" of the table to train on.
        seed: of split and weights.
        dtype: of the network.
    """
    p = settings["p"]
    task = modular_addition(p, settings["fraction"], seed, dtype)
    model = OneLayerTransformer(p, settings["width"], hidden=settings["hidden"], seed=seed, dtype=dtype)
    table = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    return Adding(model, task.train, task.test, table)
