"""What an echo does, as data: one record a leg, defaults by task."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..errors import InvalidSetting
from ..tasks import TASKS


class LegPlan(BaseModel):
    """One optimizer there and back.

    Attributes:
        steps: how far to go; with `until_accuracy`, at most.
        until_accuracy: turn at the first look at which test accuracy is at least this.
        look_every: steps between looks at loss and accuracy, and between recorded points of the path.
        batch_size: samples a step; None: all.
        perturb: added to one parameter (the first of the model) at the turn, for the perturbed return.
        float_steps: steps of the naive float reversal, there and back, from the start.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    optimizer: str
    settings: dict[str, Any]
    steps: int = Field(ge=1)
    until_accuracy: float | None = None
    look_every: int = Field(default=50, ge=1)
    seed: int = 0
    batch_size: int | None = Field(default=None, ge=1)
    perturb: float = 1e-6
    float_steps: int = 400


_TEXT = {"steps": 800, "look_every": 40, "float_steps": 200}
_DIGITS = {"steps": 1_000, "look_every": 25, "float_steps": 400}
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "modular-addition": {
        # Pilot, seeds 0 to 9: H moves by 1e-3 to 2e-3 (seed 9: 2e-2); 0.9 of the test set after 3,300 to 8,400 steps.
        "ECD": {
            "settings": {"lr": 0.03, "eta": 1.0, "weight_decay": 2e-3},
            "steps": 10_000,
            "until_accuracy": 0.9,
            "look_every": 50,
        },
        "SGD": {"settings": {"lr": 0.03, "momentum": 0.9}, "steps": 1_000, "look_every": 20},
        "AdamW": {"settings": {"lr": 1e-3, "weight_decay": 0.01}, "steps": 1_000, "look_every": 20},
        "Adam": {"settings": {"lr": 1e-3}, "steps": 1_000, "look_every": 20},
        "BBI": {"settings": {"lr": 0.1}, "steps": 1_000, "look_every": 20},
        "ECDq1": {"settings": {"lr": 0.03, "eta": 500.0, "F0": -0.5}, "steps": 1_000, "look_every": 20},
    },
    "text": {
        # F0 = 1 lies below what so small a model reaches, and eta = 5 makes up for it: at F0 = 0, eta = 1 ECD stayed at
        # 2.8 nats a character. Batches heat it: H rises.
        "ECD": {"settings": {"lr": 0.3, "eta": 5.0, "F0": 1.0}, **_TEXT},
        "SGD": {"settings": {"lr": 0.06, "momentum": 0.9}, **_TEXT},
        "AdamW": {"settings": {"lr": 3e-3, "weight_decay": 0.01}, **_TEXT},
        "Adam": {"settings": {"lr": 3e-3}, **_TEXT},
        "BBI": {"settings": {"lr": 0.2, "conserve": "rescale"}, **_TEXT},
        "ECDq1": {"settings": {"lr": 0.05, "eta": 200.0}, **_TEXT},
    },
    "digits": {
        "ECD": {"settings": {"lr": 0.05, "eta": 1.0, "weight_decay": 1e-4}, **_DIGITS},
        "SGD": {"settings": {"lr": 0.03, "momentum": 0.9}, **_DIGITS},
        "AdamW": {"settings": {"lr": 3e-3, "weight_decay": 0.01}, **_DIGITS},
        "Adam": {"settings": {"lr": 3e-3}, **_DIGITS},
        "BBI": {"settings": {"lr": 0.1}, **_DIGITS},
        "ECDq1": {"settings": {"lr": 0.03, "eta": 100.0}, **_DIGITS},
    },
}
_BY_DEFAULT = ("ECD", "SGD", "AdamW")


def default_plan(
    task: str = "modular-addition",
    optimizers: tuple[str, ...] = (),
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    perturb: float = 1e-6,
) -> list[LegPlan]:
    """The legs of an echo.

    Args:
        task: a key of `tasks.TASKS`.
        optimizers: which, spelled as the classes are (case does not matter); none: ECD, SGD and AdamW.
        steps: for all legs, in place of their own (and of turning at an accuracy).
        seed: of the task's split, initial weights, and batches.
        batch_size: None: the task's own.
        perturb: what is added to one parameter at the turn.

    Raises:
        InvalidSetting: an unknown task or optimizer, a task whose data is not there, steps below 1, a perturbation
            of 0.
    """
    if task not in TASKS:
        raise InvalidSetting(f"there is no task {task!r}.", f"choose from: {', '.join(TASKS)}.")
    if steps is not None and steps < 1:
        raise InvalidSetting(f"steps={steps}: an echo goes at least one step.", "pass a positive number.")
    if batch_size is not None and batch_size < 1:
        raise InvalidSetting(f"batch_size={batch_size}: a batch has at least one sample.", "pass a positive number.")
    if not perturb - perturb == 0 or perturb == 0:
        raise InvalidSetting(f"perturb={perturb}: the perturbed return needs a perturbation.", "pass for example 1e-6.")
    own = TASKS[task](seed=seed).batch_size  # made here, too, so that missing data is refused before any work
    batch_size = own if batch_size is None else batch_size
    known = {name.lower(): name for name in _DEFAULTS[task]}
    legs = []
    for name in optimizers or _BY_DEFAULT:
        if name.lower() not in known:
            raise InvalidSetting(f"there is no optimizer {name!r} here.", f"choose from: {', '.join(known.values())}.")
        name = known[name.lower()]
        leg = {"task": task, "optimizer": name, "seed": seed, "batch_size": batch_size, "perturb": perturb}
        leg |= _DEFAULTS[task][name]
        if steps is not None:
            leg |= {"steps": steps, "until_accuracy": None, "look_every": max(1, min(leg["look_every"], steps // 20))}
        legs.append(LegPlan(**leg))
    return legs
