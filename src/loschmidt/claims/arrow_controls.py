"""What the arrow is held against: runs in both directions of time, memorisers, random labels, lattices, entropy.

memoriser   a network trained by heart: right sums on the training pairs, wrong ones on the test pairs; made by Adam
shell       |p|^2 at which a state has the energy of the run: exp(E) D^-eta - s
both ways   from one state, as many steps forward as back; below step 0 of the run it goes on backward in time
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .. import physics
from ..dynamics import separable
from ..exact import random
from ..physics.outcome import as_json
from ..physics.state import Layout
from . import returns
from .arrow_flow import Flow
from .arrow_lab import network, start, states
from .arrow_runs import accuracies, go_back
from .record import Say
from .returns import Lab, Meter, Way, go_out, short, turns

_LOOKS = 40


def both_ways(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """From a turn before the onset, and from memorisers: do they generalise in both directions of time?

    Settings: those of `arrow_lab.start`; "steps"; "onset"; "before": the turn's share of the onset; "size" of the nudge
    of it; "draws": how many of each; "both": steps in each direction; "by_heart": most steps of Adam.

    Returns:
        "onset"; "turn_step"; "energy" of the run; "memoriser": {"steps", "train", "test", "norm", "potential"};
        "late_norm"; "arms": by name a list of dicts, each with "draw", "train", "test" at its beginning, "square":
        |p|^2 there, and for "forward" and "back" {"step": from the beginning, "test", "train", "energy_change"}. An
        arm that lies outside the energy shell is empty.
    """
    steps, both, draws = settings["steps"], settings["both"], settings["draws"]
    meter = Meter(say, steps + 6 * draws * both + 2 * settings["by_heart"])
    it = start(settings, seed, meter)
    flow = Flow(it.traj, it.train)
    energy = float(flow.energy(flow.layout.read()[None])[0])
    out = go_out(it, steps, settings["onset"])
    found: dict[str, Any] = {"onset": out["onset"], "ended_by": out["ended_by"], "energy": energy, "arms": {}}
    if out["onset"] is None:
        return found
    found["late_norm"] = float(flow.layout.read()[0].norm())
    turn = turns({"before": settings["before"]}, out["onset"], steps)["before"]
    it.traj.seek(turn)
    several = [Way("none", None)]
    several += [Way("random", physics.Nudge(settings["size"], seed=1000 * seed + i), draw=i) for i in range(draws)]
    x = states(it, several)
    heart, said = by_heart(it, settings, seed)
    found |= {"turn_step": turn, "memoriser": said}
    arms = {"turn before the onset, unperturbed": x[:1], "turn before the onset": x[1:]}
    for name, factor in (("memoriser", 1.0), ("memoriser, norm of the late turn", found["late_norm"] / said["norm"])):
        arms[name] = _on_shell(flow, heart * factor, energy, draws, seed)
    for name, begun in arms.items():
        found["arms"][name] = _arm(it, flow, begun, both)
    return as_json(found)


def by_heart(it: Lab, settings: Mapping[str, Any], seed: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Parameters (size,) of a memoriser, as they lie in a state, and what it knows."""
    model, (pairs, sums), (others, answers) = network(settings, seed), it.train, it.test
    draw = random.generator("arrow by heart", seed).integers(1, settings["p"], len(answers))
    wrong = (answers + torch.from_numpy(draw)) % settings["p"]
    table, labels = torch.cat([pairs, others]), torch.cat([sums, wrong])
    adam, done = torch.optim.Adam(model.parameters(), lr=3e-3), 0
    while done < settings["by_heart"]:
        logits = model(table)
        if done % 20 == 0 and float((logits.argmax(1) == labels).double().mean()) >= 0.99:
            break
        adam.zero_grad()
        F.cross_entropy(logits, labels).backward()
        adam.step()
        done += 1
    layout = Layout(it.traj.optimizer)
    weights, q = dict(model.named_parameters()), torch.zeros(layout.size, dtype=torch.float64)
    for name, (first, stop, _) in layout.places.items():
        q[first:stop] = weights[name].detach().flatten()
    right = [float((model(x).argmax(1) == y).double().mean()) for x, y in (it.train, it.test)]
    said = {"steps": done, "train": right[0], "test": right[1], "norm": float(q.norm())}
    return q, said | _potential(it, q)


def _potential(it: Lab, q: torch.Tensor) -> dict[str, float]:
    flow = Flow(it.traj, it.train)
    x = torch.stack([q, torch.zeros_like(q)])[None]
    potential = math.exp((float(flow.energy(x)[0]) - math.log(flow.s)) / flow.eta)
    return {"potential": potential, "loss": potential - flow.decay / 2 * float(q.square().sum()) + flow.F0}


def _on_shell(flow: Flow, q: torch.Tensor, energy: float, draws: int, seed: int) -> torch.Tensor:
    """States (draws, 2, size) at these parameters with random momenta of the energy; none if it is out of reach."""
    rest = torch.stack([q, torch.zeros_like(q)])[None]
    potential = math.exp((float(flow.energy(rest)[0]) - math.log(flow.s)) / flow.eta)
    square = separable.shell(energy, potential, flow.eta, flow.s)
    if not 0 < square < math.inf:
        return torch.zeros(0, 2, len(q), dtype=q.dtype)
    x = flow.layout.random(draws, seed, ["p"]) * square**0.5
    x[:, 0] = q
    return x


def _arm(it: Lab, flow: Flow, x: torch.Tensor, both: int) -> list[dict[str, Any]]:
    if not len(x):
        return []
    begun, at = flow.energy(x), range(0, both + 1, max(1, both // _LOOKS))
    right = flow.right(x, it.train), flow.right(x, it.test)
    rows = [
        {"draw": i, "train": float(right[0][i]), "test": float(right[1][i]), "square": float(x[i, 1].square().sum())}
        for i in range(len(x))
    ]
    for name, sign in (("forward", 1), ("back", -1)):
        seen: dict[str, list] = {"step": [], "train": [], "test": [], "energy": []}

        def look(step: int, x: torch.Tensor, seen: dict = seen) -> None:
            seen["step"].append(abs(step))
            seen["train"].append(flow.right(x, it.train))
            seen["test"].append(flow.right(x, it.test))
            seen["energy"].append((flow.energy(x) - begun).abs())
            it.meter.add(len(x) * at.step, test=float(seen["test"][-1].mean()))

        flow.wind(x, 0, sign * both, {sign * step for step in at}, look)
        for i, row in enumerate(rows):
            curve = {key: short([float(value[i]) for value in seen[key]]) for key in ("train", "test")}
            change = max(float(value[i]) for value in seen["energy"])
            row[name] = {"step": seen["step"]} | curve | {"energy_change": change}
    return rows


def controls(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """Ways back from the end of runs that never generalised: does what they know stay, too, under typical momenta?

    Settings: those of `arrow_lab.start`; "steps"; "sizes" of nudges; "draws"; "arms": name -> other settings.

    Returns:
        "arms": by name {"energy_change", "ended_by", "turn": {"train", "test"}, "start": the same, "ways": as
        `arrow_runs.go_back`}.
    """
    arms = settings["arms"]
    ways = [Way("none", None)]
    ways += [Way("momenta", physics.Momenta(seed=1000 * seed + i), draw=i) for i in range(settings["draws"])]
    for size in settings["sizes"]:
        several = [Way("random", physics.Nudge(size, seed=1000 * seed + i), size, i) for i in range(settings["draws"])]
        ways += several
    meter, found = Meter(say, len(arms) * settings["steps"] * (1 + len(ways))), {}
    for name, other in arms.items():
        it = start({**settings, **other}, seed, meter)
        first = accuracies(it)
        out = go_out(it, settings["steps"], 1.1)
        found[name] = {key: out[key] for key in ("energy_change", "ended_by")} | {"start": first, "ways": []}
        if out["ended_by"] is None:
            found[name] |= {"turn": accuracies(it), "ways": go_back(it, ways, 0)}
    return as_json({"arms": found})


def lattices(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """The same run on coarser and finer lattices: back exactly, with one unit changed, and nudged.

    Settings: those of `arrow_lab.start`; "steps"; "onset"; "resolutions": exponents; "size" of the nudge.

    Returns:
        "lattices": a list of {"resolution", "onset", "energy_change", "ended_by", "test": at the turn, "start":
        {"train", "test"}, "ways": as `returns.go_back`, without curves}.
    """
    meter, rows = Meter(say, settings["steps"] * 5 * len(settings["resolutions"])), []
    ways = [
        Way("none", None),
        Way("unit", physics.Unit()),
        Way("random", physics.Nudge(settings["size"], seed=seed), settings["size"]),
    ]
    for resolution in settings["resolutions"]:
        it = start({**settings, "resolution": resolution}, seed, meter)
        first = accuracies(it)
        out = go_out(it, settings["steps"], settings["onset"])
        row = {key: out[key] for key in ("onset", "energy_change", "ended_by")}
        row |= {"resolution": resolution, "start": first, "test": out["test"][-1] if out["test"] else None}
        found = returns.go_back(it, "late", ways) if out["ended_by"] is None else []
        keep = ("kind", "size", "exact", "ended_by", "end", "lowest_test")
        rows.append(row | {"ways": [{key: way[key] for key in keep} for way in found]})
    return as_json({"lattices": rows})


def entropy(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """The weight of states on the energy shell, (exp(E) V^-eta - s)^(n/2 - 1) exp(E) V^-eta, along runs.

    It is the volume of momenta alone. At one V it is the same for all states, so that what decides between a memoriser
    and a network that adds, at the same V, is the volume of weights, of which this says nothing.

    Settings: those of `arrow_lab.start`; "steps"; "onset"; "widths": each with 4 times as many hidden units;
    "by_heart".

    Returns:
        "rows", one a width: "width", "parameters", "onset", "energy", "energy_change", "ended_by"; "step", "test",
        "potential", "log_weight": ln of the weight over the start's, along the run, in nats; "memoriser": as
        `both_ways`, with "log_weight" at its own V; "matched": {"potential", "log_weight"} of the memoriser's norm at
        the late loss.
    """
    meter, rows = Meter(say, len(settings["widths"]) * (settings["steps"] + settings["by_heart"])), []
    for width in settings["widths"]:
        own = {**settings, "width": width, "hidden": 4 * width}
        it = start(own, seed, meter)
        flow = Flow(it.traj, it.train)
        x = flow.layout.read()[None]
        energy, n = float(flow.energy(x)[0]), int(flow.layout.live.sum())

        def weight(potential: float, flow: Flow = flow, energy: float = energy, n: int = n) -> float:
            return separable.log_measure(potential, n, energy, flow.eta, flow.s)

        looks: dict[str, list[float]] = {"step": [], "test": [], "potential": []}

        def look(traj: Any, it: Lab = it, looks: dict = looks) -> None:
            # The start is at rest, and no momentum has no volume: step 1 is what others are compared with.
            if traj.step % max(1, settings["steps"] // _LOOKS) == 0 or traj.step == 1:
                looks["step"].append(traj.step)
                looks["potential"].append(_potential(it, Layout(traj.optimizer).read()[0])["potential"])
                looks["test"].append(accuracies(it)["test"])

        out = go_out(it, settings["steps"], settings["onset"])
        row = {key: out[key] for key in ("onset", "energy_change", "ended_by")}
        row |= {"width": width, "parameters": n, "energy": energy}
        if out["ended_by"] is None:
            late = _potential(it, flow.layout.read()[0])
            look(it.traj)
            it.traj.seek(1, on_step=look)
            begun = weight(looks["potential"][-1])
            _, said = by_heart(it, own, seed)
            matched = late["loss"] - flow.F0 + flow.decay / 2 * said["norm"] ** 2
            row |= {key: values[::-1] for key, values in looks.items()}
            row["log_weight"] = short([weight(v) - begun for v in row["potential"]])
            row["memoriser"] = said | {"log_weight": weight(said["potential"]) - begun}
            row["matched"] = {"potential": matched, "log_weight": weight(matched) - begun}
        rows.append(row)
    return as_json({"rows": rows})


def generalised_at(curve: Mapping[str, Sequence[float]], least: float) -> int | None:
    """The first look at which test accuracy reached `least`."""
    return next((step for step, test in zip(curve["step"], curve["test"], strict=True) if test >= least), None)
