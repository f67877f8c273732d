"""The shape of a task."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
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
        batch_size: samples a step that suit it; None: all.
        augment: `augment(sample, rng)` -> sample, for a `Schedule`; None: samples are trained on as they are.
        probe: (part of train, part of test) that is cheap to look at during a run; None: look at all of both.
        answer: what accuracy is a share of, for the axis of a picture.
    """

    name: str
    model: nn.Module
    train: Any
    test: Any
    loss: Callable[[nn.Module, Any], torch.Tensor]
    accuracy: Callable[[nn.Module, Any], float]
    settings: dict[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    augment: Callable[[Any, np.random.Generator], Any] | None = None
    probe: tuple[Any, Any] | None = None
    answer: str = "right answers"
