"""The run that the arrow is measured on: its network, its start, and the states that ways back begin from."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .. import optim
from ..data import Schedule
from ..exact import random
from ..models.adders import PairMLP, SmoothTransformer
from ..models.transformer import OneLayerTransformer
from ..physics import Momenta, gauge_directions
from ..physics.state import Layout
from ..tasks.modular_addition import loss, modular_addition
from ..trajectory import Trajectory
from .returns import Lab, Meter, Way, nudges

MODELS = ("transformer", "smooth transformer", "relu mlp", "gelu mlp", "square mlp")
"""By name, as in settings."""


def network(settings: Mapping[str, Any], seed: int) -> nn.Module:
    """The network of `settings`, fresh, in float64; all its weights times "scale" (default 1)."""
    name, p, hidden = settings.get("model", MODELS[0]), settings["p"], settings["hidden"]
    if name.endswith("transformer"):
        kind = OneLayerTransformer if name == MODELS[0] else SmoothTransformer
        model = kind(p, settings["width"], settings["heads"], hidden, seed=seed, dtype=torch.float64)
    else:
        model = PairMLP(p, hidden, name.split()[0], seed=seed, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(settings.get("scale", 1.0))
    return model


def start(settings: Mapping[str, Any], seed: int, meter: Meter, step_size: float = 1.0) -> Lab:
    """A run at its start; with a transformer and no other settings, the same as `returns.lab`, bit for bit.

    Args:
        settings: as of `returns.lab`; "model"; "scale" of the start; "labels": "random" for sums of the training pairs
            that are shuffled; "resolution": exponent of the lattice (default -48).
        seed: of split, initial weights and labels.
        meter: of the part.
        step_size: factor on lr.
    """
    task = modular_addition(settings["p"], settings["train_fraction"], seed)
    pairs, sums = task.train
    if settings.get("labels") == "random":
        sums = sums[torch.from_numpy(random.generator("arrow labels", seed).permutation(len(sums)))]
    own = dict(settings["optimizer_settings"])
    own["lr"] *= step_size
    kind = getattr(optim, settings.get("optimizer", "ECD"))
    model = network(settings, seed)
    opt = kind(model.parameters(), **own, resolution=2.0 ** settings.get("resolution", -48), seed=seed)
    data = Schedule((pairs, sums), settings.get("batch_size"), seed=seed)
    return Lab(Trajectory(model, opt, loss, data, seed=seed), (pairs, sums), task.test, meter)


def ways(it: Lab, settings: Mapping[str, Any], seed: int) -> list[Way]:
    """What is different on the ways back from the turn where the run stands: a block of directions, each size in each.

    Args:
        it: stands at the turn.
        settings: "sizes", "random", "gauge": how many directions; "block": (i, n), the i-th of n parts of them.
        seed: of the directions.
    """
    block, blocks = settings.get("block", (0, 1))
    everything = nudges(it, settings["sizes"], settings["random"], settings["gauge"], seed)
    number = {"random": 0, "gauge": settings["random"]}
    own = [way for way in everything if (number[way.kind] + way.draw) % blocks == block]
    return [Way("none", None), Way("momenta", Momenta(seed=1000 * seed + block), draw=block), *own]


def states(it: Lab, several: Sequence[Way]) -> torch.Tensor:
    """The states that ways back begin from, (n, 2, size), as they lie on the lattice."""
    found = []
    for way in several:
        with it.traj.branch() as traj:
            layout = Layout(traj.optimizer)
            if way.change is not None:
                way.change.begin(traj, layout)
            found.append(layout.read())
    return torch.stack(found)


def gauge_norms(it: Lab, count: int, seed: int) -> list[float]:
    """|A (w, p)| of the rotations that `nudges` takes: how far one radian of each moves the joint state at first."""
    model, opt, norms = it.traj.model, it.traj.optimizer, []
    weights = {s.name: s for s in opt._slots}
    for i in range(count):
        planes = gauge_directions(model, ["qk"], heads=[i % model.heads], optimizer=opt)
        direction = planes[(seed + i // model.heads) % len(planes)]
        square = 0.0
        for key, along in direction.items():
            name, _, lattice = key.partition("/")
            slot = weights[name]
            value = slot.block.lattices[lattice or "q"].value(*slot.rows_at).view(along.shape)
            square += float(value[along.abs().sum(1) > 0].square().sum())
        norms.append(square**0.5)
    return norms
