"""Runs of modular addition that breathe or freeze, and what is noted along them: the experiments of claim 3.

look       a step at which the whole table is looked at, every `settings["every"]` steps
keys       key frequencies of the look with the highest test accuracy of a run, found on test pairs
taken      nats of H that friction took, up to a look: the sum of log((s + |p|^2)/(s + momentum^2 |p|^2))
leak       H + taken, less H at the start: what the integrator did to the energy
"""

import math
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import torch

from ..errors import LatticeOverflow, LossBelowF0, NonFinite
from ..exact import sum_of_squares
from ..physics.state import Layout
from ..tasks import fourier
from ..tasks.progress_measures import measures
from ..trajectory import Trajectory
from .adding import Adding, adding
from .record import Say
from .returns import short

DTYPES = {"float32": torch.float32, "float64": torch.float64}
Tell = Callable[[float], None]


def begin(
    settings: Mapping[str, Any], seed: int, tape: str | PathLike | None = None, **changes: Any
) -> tuple[Adding, Trajectory]:
    """A run at its start.

    Args:
        settings: "p", "width", "hidden", "fraction", "dtype" ("float32" or "float64"); "lr", "weight_decay",
            "momentum", of ECD.
        seed: of split and weights.
        tape: a folder, if the run is to be kept; see `Trajectory`.
        changes: to the settings.

    Returns:
        Network and sums; the run: ECD, full batch.
    """
    own = {**settings, **changes}
    net = adding(own, seed, DTYPES[own["dtype"]])
    given = {name: own[name] for name in ("lr", "weight_decay", "momentum")}
    return net, net.run("ECD", given, tape=tape)


class Looks:
    """What is seen of a run: a row for each look, and energies of all steps.

    Args:
        net: its network.
        traj: the run.
        every: steps between looks.
        until: the last step is a look, too.
        tell: told which share of the steps is done.

    Attributes:
        rows: by name, a list with an entry for each look.
        tables: logits of each look, (p * p, p), in the network's dtype.
        energy_change: the largest |H - H at the start| of all steps.
        leak: the largest |H + taken - H at the start|.
    """

    def __init__(self, net: Adding, traj: Trajectory, every: int, until: int, tell: Tell):
        self.net, self.traj, self.every, self.until, self.tell = net, traj, every, until, tell
        self.first = traj.step
        self.rows: dict[str, list[float]] = {}
        self.tables: list[torch.Tensor] = []
        self.energy_change = self.leak = self.taken = 0.0
        self._next, self._start = 0.0, None  # what the next step's friction takes; H at the start
        self._blocks = Layout(traj.optimizer).blocks
        self._train = fourier.mask(net.train[0], net.model.p)

    def __call__(self, traj: Trajectory) -> None:
        """After a step."""
        energy, group = traj.optimizer.energy, traj.optimizer.param_groups[0]
        self._start = energy if self._start is None else self._start
        self.energy_change = max(self.energy_change, abs(energy - self._start))
        self.leak = max(self.leak, abs(energy + self.taken - self._start))
        friction, looking = group["momentum"] < 1, traj.step % self.every == 0 or traj.step == self.until
        if friction or looking:
            square = self.square()
        if looking:
            self._look(energy, square)
        self.taken += self._next  # `energy` is that before the step
        self._next = (
            math.log((group["s"] + square) / (group["s"] + group["momentum"] ** 2 * square)) if friction else 0.0
        )

    def square(self) -> float:
        """|p|^2 now."""
        return sum(float(sum_of_squares(block.lattices["p"].value())) for block in self._blocks)

    @torch.no_grad()
    def _look(self, energy: float, square: float) -> None:
        logits, answers = self.net.observe(self.net.model), self.net.table.sum(1) % self.net.model.p
        right, train = logits.argmax(1) == answers, self._train
        losses = torch.nn.functional.cross_entropy(logits.double(), answers, reduction="none")
        row = {
            "step": self.traj.step,
            "train": float(right[train].double().mean()),
            "test": float(right[~train].double().mean()),
            "loss": float(losses[train].mean()),
            "test_loss": float(losses[~train].mean()),
            "norm": math.sqrt(sum(float(p.detach().double().square().sum()) for p in self.net.model.parameters())),
            "square": square,
            "energy": energy,
            "taken": self.taken,
            "bits": self.traj.tape.bits / self.traj.optimizer.numel,
        }
        for name, value in row.items():
            self.rows.setdefault(name, []).append(value)
        self.tables.append(logits.clone())
        self.tell((self.traj.step - self.first) / max(1, self.until - self.first))

    def fourier(self) -> dict[str, Any]:
        """Progress measures at all looks, with the keys of the best one.

        Returns:
            "keys"; "restricted": test accuracy with these alone; "restricted_loss": test loss; "excluded_loss": train
            loss without them; "explained": share of the logits. Lists of None where there is no key.
        """
        best = max(range(len(self.tables)), key=lambda i: self.rows["test"][i], default=None)
        names = ("restricted", "restricted_loss", "excluded_loss", "explained")
        found: dict[str, list[float | None]] = {name: [] for name in names}
        keys = () if best is None else fourier.BySum(self.tables[best], ~self._train).keys()
        for table in self.tables:
            if not keys:
                values = (None,) * len(names)
            else:
                m = measures(table, self._train, keys)
                share = sum(m.explained[k - 1] for k in keys)
                values = (m.restricted.test_accuracy, m.restricted.test_loss, m.excluded.train_loss, share)
            for name, value in zip(names, values, strict=True):
                found[name].append(value)
        return {"keys": list(keys)} | {name: short(values) for name, values in found.items()}


def go(traj: Trajectory, steps: int, looks: Callable[[Trajectory], Any]) -> str | None:
    """Go on to a step; why it broke off, or None."""
    try:
        traj.seek(steps, on_step=looks)
    except (LatticeOverflow, NonFinite, LossBelowF0) as error:
        return error.seen
    return None


def curve(looks: Looks, ended_by: str | None) -> dict[str, Any]:
    """What a run of the sweep returns, beside its own settings."""
    rows = {name: short(values) for name, values in looks.rows.items()}
    found = {"curve": rows, "energy_change": looks.energy_change, "leak": looks.leak, "ended_by": ended_by}
    return found | {"fourier": looks.fourier()}


def sweep(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """Runs that differ in a few settings.

    Settings: those of `begin`; "steps"; "every"; "runs": for each a dict of changes; "below": seeds from this on have
    no such runs (None: all have).

    Returns:
        "runs": for each {"changes"; "lr", "momentum", "weight_decay"; "curve": by name, lists with an entry a look:
        "step", "train", "test" (accuracies), "loss", "test_loss", "norm" of the parameters, "square" (|p|^2), "energy"
        (H, nats), "taken", "bits" (a parameter, on the tape); "fourier": see `Looks.fourier`; "energy_change", "leak":
        the largest of all steps; "ended_by": why it broke off, or None}.
    """
    if settings["below"] is not None and seed >= settings["below"]:
        return {"runs": []}
    found, whole = [], len(settings["runs"])
    for i, changes in enumerate(settings["runs"]):
        own = {**settings, **changes}
        net, traj = begin(own, seed)

        def tell(share: float, i: int = i) -> None:
            say((i + share) / whole, run=f"{i + 1} of {whole}")

        looks = Looks(net, traj, own["every"], own["steps"], tell)
        ended = go(traj, own["steps"], looks)
        named = {name: own[name] for name in ("lr", "momentum", "weight_decay")}
        found.append({"changes": dict(changes)} | named | curve(looks, ended))
    return {"runs": found}
