"""A run of modular addition out to a turn, and ways back from it with something different: what claims of return share.

turn      a step at which the run is wound back; named in the settings by its share of the onset
onset     the first look at which test accuracy reaches `settings["onset"]`
end       where a way back stopped: step 0, or where it broke off
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .. import optim, physics
from ..data import Schedule
from ..errors import LatticeOverflow, LossBelowF0, NonFinite
from ..models import OneLayerTransformer
from ..physics.outcome import as_json
from ..tasks.modular_addition import accuracy, loss, modular_addition
from ..trajectory import Trajectory
from .record import Say

Pairs = tuple[torch.Tensor, torch.Tensor]
_LOOKS = 40  # rows of a way back


class Meter:
    """How far a part is, in steps.

    Args:
        say: the part's.
        total: steps, a guess; may be corrected.
    """

    def __init__(self, say: Say, total: float):
        self.say, self.total, self.done = say, total, 0.0

    def add(self, steps: float, **facts: float | str) -> None:
        """So many steps more."""
        self.done += steps
        self.say(min(1.0, self.done / self.total), **facts)


@dataclass
class Lab:
    """A run, what it is looked at with, and what was seen.

    Attributes:
        traj: the run; float64, on a lattice of 2^-48, so that perturbations of 1e-12 are there and are felt.
        train: pairs and sums.
        test: pairs and sums.
        meter: told of progress.
        every: steps that lie between two looks of a way back; for the meter.
        looks: (train accuracy, test accuracy) of each call of `observe`.
    """

    traj: Trajectory
    train: Pairs
    test: Pairs
    meter: Meter
    every: float = 0.0
    looks: list[tuple[float, float]] = field(default_factory=list)

    @torch.no_grad()
    def observe(self, model: nn.Module) -> torch.Tensor:
        """Outputs on the whole table, for `physics.echo`; accuracies are noted in passing."""
        out = [model(self.train[0]), model(self.test[0])]
        right = [(o.argmax(1) == sums) for o, (_, sums) in zip(out, (self.train, self.test), strict=True)]
        train, test = (float(r.double().mean()) for r in right)
        self.looks.append((train, test))
        self.meter.add(self.every, step=self.traj.step, test=test)
        return torch.cat(out)


def lab(settings: Mapping[str, Any], seed: int, meter: Meter, step_size: float = 1.0) -> Lab:
    """A run at its start.

    Args:
        settings: "p", "width", "heads", "hidden", "train_fraction"; "optimizer" (default ECD), "optimizer_settings";
            "batch_size" (default: all).
        seed: of split, initial weights and batches.
        meter: of the part.
        step_size: factor on lr.
    """
    task = modular_addition(settings["p"], settings["train_fraction"], seed)
    model = network(settings, seed)
    own = dict(settings["optimizer_settings"])
    own["lr"] *= step_size
    opt = getattr(optim, settings.get("optimizer", "ECD"))(model.parameters(), **own, resolution=2.0**-48, seed=seed)
    data = Schedule(task.train, settings.get("batch_size"), seed=seed)
    return Lab(Trajectory(model, opt, loss, data, seed=seed), task.train, task.test, meter)


def network(settings: Mapping[str, Any], seed: int, dtype: torch.dtype = torch.float64) -> OneLayerTransformer:
    """The network of `settings`, fresh."""
    sizes = settings["p"], settings["width"], settings["heads"], settings["hidden"]
    return OneLayerTransformer(*sizes, seed=seed, dtype=dtype)


def go_out(lab: Lab, steps: int, onset: float, look_every: int = 20) -> dict[str, Any]:
    """Train, and say what happened on the way.

    Returns:
        {"step", "train", "test", "energy": lists, one entry a look, to six digits ("energy" is empty for an optimizer
        without one); "energy_change": the largest |H - H at the start| of all steps, None without; "ended_by": why
        it broke off, or None; "onset": step, or None, also where it broke off}.
    """
    looks: dict[str, list] = {"step": [], "train": [], "test": [], "energy": []}
    start, change = None, 0.0

    def look(traj: Trajectory) -> None:
        nonlocal start, change
        energy = getattr(traj.optimizer, "energy", None)
        if energy is not None:
            start = energy if start is None else start
            change = max(change, abs(energy - start))
        if traj.step % look_every == 0 or traj.step == steps:
            looks["step"].append(traj.step)
            looks["train"].append(accuracy(traj.model, lab.train))
            looks["test"].append(accuracy(traj.model, lab.test))
            looks["energy"] += [] if energy is None else [energy]
            lab.meter.add(look_every, step=traj.step, test=looks["test"][-1])

    ended = None
    try:
        lab.traj.seek(steps, on_step=look)
    except (LatticeOverflow, NonFinite, LossBelowF0) as error:
        ended = error.seen
    looks = {name: short(values) for name, values in looks.items()}
    risen = [step for step, test in zip(looks["step"], looks["test"], strict=True) if test >= onset]
    onset_step = risen[0] if risen and ended is None else None
    return looks | {"energy_change": None if start is None else change, "onset": onset_step, "ended_by": ended}


def short(values: Sequence[float | None]) -> list[float | None]:
    """To six digits: curves make most of a record."""
    return [float(f"{v:.6g}") if isinstance(v, float) else v for v in values]


def turns(named: Mapping[str, float | None], onset: int, steps: int) -> dict[str, int]:
    """Turns by name, latest first: shares of the onset; None is the end of the run."""
    at = {name: steps if share is None else min(steps, max(1, round(share * onset))) for name, share in named.items()}
    return dict(sorted(at.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class Way:
    """A way back: what is different on it, and how it is called in the evidence.

    Attributes:
        kind: "random", "gauge", "momenta", "one sample once", ...
        change: for `physics.echo`.
        size: of the perturbation, relative to |q|; None where a size says nothing.
        draw: which of several of one kind.
    """

    kind: str
    change: physics.Perturbation | None
    size: float | None = None
    draw: int = 0


def nudges(lab: Lab, sizes: Iterable[float], random: int, gauge: int, seed: int) -> list[Way]:
    """Perturbations of the parameters at the turn where the run stands: each size in each direction.

    Args:
        lab: stands at the turn.
        sizes: relative to |q|.
        random: how many random directions.
        gauge: how many rotations of queries and keys, with momenta turned along; spread over heads.
        seed: of the directions.
    """
    model, opt = lab.traj.model, lab.traj.optimizer
    turned = []
    for i in range(gauge):
        head = i % model.heads
        planes = physics.gauge_directions(model, ["qk"], heads=[head], optimizer=opt)
        turned.append(planes[(seed + i // model.heads) % len(planes)])
    ways = []
    for size in sizes:
        ways += [Way("random", physics.Nudge(size, seed=1000 * seed + i), size, i) for i in range(random)]
        ways += [Way("gauge", physics.Nudge(size, direction), size, i) for i, direction in enumerate(turned)]
    return ways


def samples(lab: Lab) -> list[Way]:
    """One training sample gives its place to one of the test set: in the first step undone, and in all of them."""
    (pairs, sums), (others, answers) = lab.train, lab.test
    pairs, sums = pairs.clone(), sums.clone()
    pairs[0], sums[0] = others[0], answers[0]
    other = Schedule((pairs, sums))
    last, own = lab.traj.step - 1, lab.traj.data
    once = physics.Fresh(lambda step: other(step) if step == last else own(step))
    return [Way("one sample, once", once), Way("one sample, throughout", physics.Fresh(other))]


def go_back(lab: Lab, turn: str, ways: Sequence[Way], beyond: int = 0) -> list[dict[str, Any]]:
    """Wind back to step 0 in several ways, and on past it; the run stays at its turn.

    Returns:
        A dict for each way: "turn" (its name), "turn_step", "kind", "size", "draw"; "moved" (relative, parameters);
        "exact"; "ended_by"; "end": {"step", "train", "test", "agreement" with the start's function, "relative"
        distance of the parameters from the start's}; "lowest_test" on the way back, the turn left out; "curve":
        {"step", "test", "agreement", "relative"} with one entry a look; "beyond": {"step", "test"}, steps below 0.
    """
    traj, at = lab.traj, lab.traj.step
    every = max(1, at // _LOOKS)
    lab.every, lab.looks = every, []
    found = physics.echo(traj, None, [way.change for way in ways], observe=lab.observe, every=every, beyond=beyond)
    looks = iter(lab.looks[-sum(row["agreement_with_start"] is not None for echo in found for row in echo.rows) :])
    out = []
    for way, echo in zip(ways, found, strict=True):
        rows = []
        for row in echo.rows:
            train, test = next(looks) if row["agreement_with_start"] is not None else (None, None)
            rows.append(
                {
                    "step": row["step"],
                    "train": train,
                    "test": test,
                    "agreement": row["agreement_with_start"],
                    "relative": row["relative"]["q"],
                }
            )
        back = [row for row in rows if row["step"] >= 0 and row["test"] is not None]
        past = [row for row in rows if row["step"] < 0 and row["test"] is not None]
        out.append(
            {
                "turn": turn,
                "turn_step": at,
                "kind": way.kind,
                "size": way.size,
                "draw": way.draw,
                "moved": echo.size["q"]["relative"],
                "exact": echo.exact,
                "ended_by": echo.ended_by,
                "end": back[-1],
                "lowest_test": min((row["test"] for row in back[1:]), default=None),
                "curve": {k: short([row[k] for row in back]) for k in ("step", "test", "agreement", "relative")},
                "beyond": {k: short([row[k] for row in past]) for k in ("step", "test")},
            }
        )
    return as_json(out)
