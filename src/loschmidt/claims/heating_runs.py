"""Runs that show what the noise of mini-batches does to the energy of ECD: the experiments of claim 11.

H = log D + log(1 + |p|^2), in nats (eta = s = 1, F0 = 0); D = loss + (DECAY/2) |q|^2. A small smooth network learns
digits in float64, so that the full batch keeps H without small steps; all samples count alike, and none is augmented.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..data import Schedule
from ..exact import random
from ..optim import ECD
from ..physics import EnergyMonitor, predicted_heating
from ..physics.state import Layout
from ..tasks import digits
from ..trajectory import Trajectory
from .record import Say

DECAY = 1e-3  # of the weights, inside H
HIDDEN = 16
LOOKS = 4  # along a short run, at which its heating is predicted

Images = tuple[torch.Tensor, torch.Tensor]


def network(seed: int) -> nn.Module:
    """64 pixels, 16 tanh units, 10 digits: 1,210 parameters in float64; no global generator is moved."""
    generator = torch.Generator().manual_seed(random.key("claim 11", seed) & (2**62 - 1))
    layers = [nn.utils.skip_init(nn.Linear, a, b, dtype=torch.float64) for a, b in ((64, HIDDEN), (HIDDEN, 10))]
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(0, layer.in_features**-0.5, generator=generator)
            layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layers[0], nn.Tanh(), layers[1])


def losses(model: nn.Module, batch: Images) -> torch.Tensor:
    """Cross entropy of each image, in nats."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def loss(model: nn.Module, batch: Images) -> torch.Tensor:
    """Their mean."""
    return F.cross_entropy(model(batch[0]), batch[1])


def draws(train: Images, batch: int | None, replacement: bool, *key: Any) -> Schedule:
    """Batches keyed by `key`; batch=None is all samples."""
    seed = random.key("claim 11", *key) & (2**62 - 1)
    return Schedule(train, batch, seed=seed, replacement=replacement and batch is not None)


def start(
    seed: int, batch: int | None, dt: float, replacement: bool = True, keep: float = 1.0, **settings: Any
) -> tuple[Trajectory, Images]:
    """A run at its start, and the test data; `keep`: of the momentum a step."""
    task, model = digits(seed=seed, dtype=torch.float64), network(seed)
    opt = ECD(model.parameters(), **settings | {"lr": dt, "weight_decay": DECAY, "momentum": keep})
    data = draws(task.train, batch, replacement, "run", seed)
    return Trajectory(model, opt, loss, data), task.test


def watch(traj: Trajectory, every: int) -> EnergyMonitor:
    """A ledger with all three views; of a full batch they are one."""
    return EnergyMonitor(traj, every, losses=None if traj.data.batch_size is None else losses)


def square(traj: Trajectory) -> float:
    """|p|^2."""
    return float(Layout(traj.optimizer).read()[1].square().sum())


def accuracy(model: nn.Module, data: Images) -> float:
    """Share of digits right."""
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).double().mean())


def totals(lines: Sequence[Mapping[str, Any]], view: str) -> list[float]:
    """H at each line; at the first, with the momentum that the run starts with."""
    h = [line[view]["total"] for line in lines]
    return [h[0] + lines[0][view]["by"].get("start", 0.0), *h[1:]]


def follow(
    traj: Trajectory, test: Images, steps: int, looks: int, batches: int, tell: Callable[[float], None]
) -> dict[str, Any]:
    """A run, looked at `looks` times at equal distances, and what the formula says of the stretches between.

    Returns:
        Lists of looks + 1 numbers: "steps"; H on "full" and on "mean"; "square": |p|^2; and, cumulated from the
        start, "predicted": heating; "bits" on the tape for each parameter; "bill": what cooling would cost if each
        step's heat were taken back at once, in bits for each parameter. "share": the mean of |p|^2/(1 + |p|^2), and
        "accuracy" on test data, at the end.
    """
    every, count = steps // looks, sum(p.numel() for p in traj.model.parameters())
    predicted, bill, bits, shares = [0.0], [0.0], [0.0], []
    with watch(traj, every) as monitor:
        for k in range(looks):
            traj.seek(k * every + every // 2)
            p2, rate = square(traj), 0.0
            if batches:
                rate = predicted_heating(traj, batches, seed=k).value
            shares.append(p2 / (1 + p2))
            predicted.append(predicted[-1] + rate * every)
            bill.append(bill[-1] + rate * every / (2 * math.log(2) * max(shares[-1], 1e-6)))
            traj.seek((k + 1) * every)
            bits.append(traj.tape.bits / count)
            tell((k + 1) / looks)
        traj.seek(looks * every + 1)  # a line has the energies before its step
    lines = monitor.lines
    return {
        "steps": [line["step"] for line in lines],
        "full": totals(lines, "full"),
        "mean": totals(lines, "mean"),
        "square": [math.expm1(line["mean"]["kinetic"]) for line in lines],
        "predicted": predicted,
        "bill": bill,
        "bits": bits,
        "share": sum(shares[looks // 2 :]) / len(shares[looks // 2 :]),
        "accuracy": accuracy(traj.model, test),
        "skipped": traj.optimizer.skipped_rescales,
    }


def growth(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """Long runs over the same time: small batches, with and without replacement, and the full batch at two steps."""
    dt, steps, looks = settings["dt"], settings["steps"], settings["looks"]
    arms = {
        "with replacement": (settings["batch"], 1, True),
        "without replacement": (settings["batch"], 1, False),
        "full batch": (None, 1, True),
        "full batch, half the step": (None, 2, True),
    }
    whole, done, out = sum(finer for _, finer, _ in arms.values()), 0, {}
    for name, (batch, finer, replacement) in arms.items():
        traj, test = start(seed, batch, dt / finer, replacement)

        def tell(share: float, name: str = name, done: int = done, finer: int = finer) -> None:
            say((done + share * finer) / whole, arm=name)

        out[name] = follow(traj, test, steps * finer, looks, settings["batches"] if batch else 0, tell)
        done += finer
    return {"dt": dt, "arms": out}


def cooling(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """Runs that something cools, beside free ones; both with |p|^2 = 1 at the start, so that the shell is in reach."""
    dt, batch = settings["dt"], settings["batch"]
    arms: dict[str, tuple[int | None, dict[str, Any]]] = {
        "free": (batch, {}),
        "free, without replacement": (batch, {"replacement": False}),
        "rescale": (batch, {"conserve": "rescale"}),
        "friction": (batch, {"keep": settings["keep"]}),
        "rescale, smaller batches": (settings["smaller"], {"conserve": "rescale"}),
        "rescale, full batch": (None, {"conserve": "rescale"}),
    }
    out = {}
    for k, (name, (size, given)) in enumerate(arms.items()):
        traj, test = start(seed, size, dt, delta_energy=1.0, **given)

        def tell(share: float, name: str = name, k: int = k) -> None:
            say((k + share) / len(arms), arm=name)

        out[name] = follow(traj, test, settings["steps"], settings["looks"], settings["batches"] if size else 0, tell)
    return {"dt": dt, "keep": settings["keep"], "arms": out}


def potential(traj: Trajectory, step: int) -> float:
    """log D at the present parameters, of the batch of a step."""
    with torch.no_grad():
        norm = sum(float(p.square().sum()) for p in traj.model.parameters())
        return math.log(float(loss(traj.model, traj.data(step))) + DECAY / 2 * norm)


def kicked(origin: Trajectory, batch: int | None, dt: float, time: float, batches: int, *key: Any) -> dict[str, float]:
    """A short run from a copy of a state, with batches of its own.

    The change of H on mean swings with the luck of the draw, at first order in dt. With q(t) and B(t) of step t,

        heat = change of K + sum over t of U_B(t)(q(t)) - U_B(t)(q(t - 1))

    has the same mean, since an independent B(t) is not known when q(t) and q(t - 1) come about, so that U_B(t) may be
    replaced by its average over batches, and the sum telescopes; it swings far less, since what a kick takes from K at
    first order is what the drift before it has put into the potential of that very batch.

    Returns:
        "change" of H on mean; "heat"; "predicted": heating; "square": mean |p|^2 on the way.
    """
    twin = copy.deepcopy(origin)
    for group in twin.optimizer.param_groups:
        group["lr"] = dt
    traj = Trajectory(twin.model, twin.optimizer, loss, draws(origin.data.dataset, batch, True, batch, dt, *key))
    first, steps, rates, squares = traj.step, round(time / dt), [], []
    heat, ahead = -math.log1p(square(traj)), potential(traj, first + 1)

    def look(traj: Trajectory) -> None:
        nonlocal heat, ahead
        if traj.step <= first + steps:
            heat += potential(traj, traj.step) - ahead
            ahead = potential(traj, traj.step + 1)

    with watch(traj, steps) as monitor:  # lines at steps that this number divides: `first` must be one
        for k in range(LOOKS):
            traj.seek(first + steps * (2 * k + 1) // (2 * LOOKS), on_step=look)
            squares.append(square(traj))
            if batch is not None:
                rates.append(predicted_heating(traj, batches, seed=random.key(*key, k) & 0xFFFF).value)
        traj.seek(first + steps, on_step=look)
        heat += math.log1p(square(traj))
        traj.seek(first + steps + 1)
    before, after = (line["mean"]["total"] for line in monitor.lines)
    predicted = steps * sum(rates) / LOOKS
    return {"change": after - before, "heat": heat, "predicted": predicted, "square": sum(squares) / LOOKS}


def grid(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """Heating from one state over a fixed time: for several steps dt, and for several batch sizes.

    Each of `repeats` runs has other batches. What the full batch does over the same time with the same dt is no heat,
    and is taken off.

    Returns:
        "rows", each with "batch", "dt", "steps", and means over the repeats: "heat", "plain" (change of H on mean, the
        same number with more noise), "predicted", "square". "controls": by dt, the full batch's change of H.
    """
    time, dt, repeats = settings["time"], settings["dt"], settings["repeats"]
    origin, _ = start(seed, settings["burn_batch"], dt)
    origin.seek(settings["burn"])
    cases = [(settings["batch"], x) for x in settings["dts"]]
    cases += [(b, dt) for b in settings["batch_sizes"] if (b, dt) not in cases]
    controls = {x: kicked(origin, None, x, time, 0, "control")["change"] for x in sorted({x for _, x in cases})}
    rows = []
    for i, (batch, x) in enumerate(cases):
        found = []
        for r in range(repeats):
            found.append(kicked(origin, batch, x, time, settings["batches"], seed, r))
            say((i + (r + 1) / repeats) / len(cases), batch=batch, dt=x)
        mean = {name: sum(run[name] for run in found) / repeats for name in found[0]}
        row = {"batch": batch, "dt": x, "steps": round(time / x), "heat": mean["heat"] - controls[x]}
        row |= {"plain": mean["change"] - controls[x], "predicted": mean["predicted"], "square": mean["square"]}
        rows.append(row)
    return {"rows": rows, "controls": [{"dt": x, "change": c} for x, c in controls.items()]}
