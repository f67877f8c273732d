"""The shape of a task."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Task:
    """A model to train and everything needed to train it and to see what it knows.

    Guarantees: made from its settings alone; two tasks with the same settings hold the same bits.

    Attributes:
        name: its key in `TASKS`.
        model: fresh, from the seed.
        train: data for a `Schedule`.
        test: data that is never trained on.
        loss: `loss(model, batch)` -> scalar, the mean over the batch.
        accuracy: `accuracy(model, data)` -> share of right answers; moves no gradient, no mode, no state.
        settings: what the task was made with, as JSON values.
    """

    name: str
    model: nn.Module
    train: Any
    test: Any
    loss: Callable[[nn.Module, Any], torch.Tensor]
    accuracy: Callable[[nn.Module, Any], float]
    settings: dict[str, Any] = field(default_factory=dict)
