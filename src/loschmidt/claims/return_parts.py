"""The experiments of claim 10: each takes settings and a seed, and gives numbers. The judge is in the claim's file."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .. import optim, physics
from ..errors import LossBelowF0, NonFinite
from ..physics.outcome import agreement, as_json, rms
from ..tasks.modular_addition import loss, modular_addition
from .record import Say
from .returns import Lab, Meter, Way, go_back, go_out, lab, network, nudges, samples, short, turns

_FLOATS = {"float32": torch.float32, "float64": torch.float64}


def lattice(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """There and back on the lattice; and back with one lattice unit of one parameter changed at the turn.

    Returns:
        "returned": whether all bits came back; "bits": on the tape at the turn; "twin_returned"; "twin_distance":
        relative, of the twin's parameters from the start's; "twin_agreement": of its function with the start's.
    """
    steps = settings["steps"]
    it = lab(settings, seed, Meter(say, 5 * steps))
    start = it.traj.digest()
    out = go_out(it, steps, settings["onset"])
    bits = it.traj.tape.bits
    twin = go_back(it, "end", [Way("unit", physics.Unit())])[0]
    it.traj.seek(0)
    return {
        "returned": it.traj.digest() == start,
        "bits": bits,
        "test_at_turn": out["test"][-1],
        "twin_returned": bool(twin["exact"]),
        "twin_distance": twin["end"]["relative"],
        "twin_agreement": twin["end"]["agreement"],
    }


def floats(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """ECD in plain floats, out to several turns and back by algebra: no lattice anywhere.

    Settings: those of `lab`; "steps"; "shares" of them at which it is turned.

    Returns:
        By dtype: a list, a dict for each turn: "turn_step"; "test_at_turn"; "ended_by"; "end": {"step", "test",
        "agreement" with the start's function, "relative" distance of the parameters}; "curve": {"step", "relative"},
        the distance from the way out at the same step.
    """
    at = sorted({max(1, round(share * settings["steps"])) for share in settings["shares"]})
    meter = Meter(say, len(_FLOATS) * (at[-1] + sum(at)))
    return {name: _in_floats(settings, seed, dtype, at, meter) for name, dtype in _FLOATS.items()}


def _in_floats(
    settings: Mapping[str, Any], seed: int, dtype: torch.dtype, at: list[int], meter: Meter
) -> list[dict[str, Any]]:
    task = modular_addition(settings["p"], settings["train_fraction"], seed)
    there, back = network(settings, seed, dtype), network(settings, seed, dtype)
    opt = optim.ECD(there.parameters(), **settings["optimizer_settings"])  # its program; its lattice is not used
    own = {**opt.defaults, **settings["optimizer_settings"]}
    table = torch.cat([task.test[0], task.train[0]])
    every = max(1, at[-1] // 80)

    def begin(model: nn.Module, state: dict[str, torch.Tensor] | None, step: int) -> physics.NaiveRun:
        parameters = list(model.parameters())

        def gradient(step: int) -> tuple[float, list[torch.Tensor]]:
            model.zero_grad()
            value = loss(model, task.train)
            value.backward()
            return float(value.detach()), [p.grad for p in parameters]

        program = opt.kicks(), opt.drifts(), own, list(opt.lattices), opt.prepare, opt.carries
        return physics.NaiveRun(parameters, gradient, *program, state=state, step=step)

    @torch.no_grad()
    def look(model: nn.Module) -> tuple[torch.Tensor, float]:
        out = model(table)
        return out, float((out[: len(task.test[1])].argmax(1) == task.test[1]).double().mean())

    run = begin(there, None, 0)
    start, path, found = look(there)[0], {0: run.values["q"].clone()}, []
    for turn in at:
        meter.add(turn - run.step, turn=turn)
        while run.step < turn:
            run.forward()
            if run.step % every == 0 or run.step in at:
                path[run.step] = run.values["q"].clone()
        wound = begin(back, run.values, turn)
        wound.scalars, wound.carried, ended = run.scalars, run.carried, None
        curve: dict[str, list] = {"step": [turn], "relative": [0.0]}
        while wound.step > 0 and ended is None:
            try:
                wound.back()
            except (NonFinite, LossBelowF0) as error:
                ended = error.seen
            if not bool(torch.isfinite(wound.values["q"]).all()):
                ended = f"the parameters are not finite at step {wound.step}."
            if wound.step in path:
                curve["step"].append(wound.step)
                curve["relative"].append(rms(wound.values["q"].double(), path[wound.step].double()))
        outputs, test = look(back)
        alike, far = agreement(outputs, start), curve["relative"][-1]
        end = {"step": wound.step, "test": test, "agreement": alike, "relative": far}
        found.append({"turn_step": turn, "test_at_turn": look(there)[1], "ended_by": ended, "end": end, "curve": curve})
        curve["relative"] = short(curve["relative"])
        meter.add(turn, turn=turn, agreement=alike)
    return as_json(found)


def perturbed(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """The grid: turns x perturbations, all of one run; its forward growth; and the way out at half the step size.

    Settings: those of `lab`; "steps"; "onset"; "turns": name -> share of the onset, or None for the end; "sizes";
    "random", "gauge": how many directions of each; "growth": how many directions of the tangent map (0: none);
    "beyond": {turn: steps past step 0} for the first of `sizes` at or above "beyond_size"; "half_step": whether to
    run out at half the step size.

    Returns:
        "out": what `go_out` gives; "half": the same at half the step size; "start": {"train", "test"}; "turns": name
        -> {"step", "train", "test", "norm"}; "norms": of the parameters, {"onset", "start"}; "growth": name of a turn
        -> {"onset", "start"}: ln of the growth of forward perturbations from there to the turn, a list, one a
        direction ("onset" only for turns after it); "returns": as `go_back`, with "onset_distance", the relative
        distance of the parameters at the look nearest to the onset.
    """
    steps, per_turn = settings["steps"], len(settings["sizes"]) * (settings["random"] + settings["gauge"]) + 7
    meter = Meter(say, steps * (1 + 3 * bool(settings["half_step"]) + 5 * settings["growth"] + 2 * per_turn))
    it = lab(settings, seed, meter)
    start = _accuracies(it)
    out = go_out(it, steps, settings["onset"])
    found: dict[str, Any] = {"out": out, "half": None, "start": start, "turns": {}, "growth": {}, "returns": []}
    if settings["half_step"]:
        found["half"] = go_out(lab(settings, seed, meter, 0.5), 2 * steps, settings["onset"], 40)
    if out["onset"] is None:
        return found
    at = turns(settings["turns"], out["onset"], steps)
    growth = _growth(it, settings["growth"], seed)
    with it.traj.branch() as traj:
        found["norms"] = {"onset": _norm(traj.seek(out["onset"])), "start": _norm(traj.seek(0))}
    for name, turn in at.items():
        it.traj.seek(turn)
        found["turns"][name] = _accuracies(it) | {"step": turn, "norm": _norm(it.traj)}
        if growth:
            since = {"start": 0} | ({"onset": out["onset"]} if turn > out["onset"] else {})
            found["growth"][name] = {key: (growth[turn] - growth[step]).tolist() for key, step in since.items()}
        plain = nudges(it, settings["sizes"], settings["random"], settings["gauge"], seed)
        ways = [
            Way("none", None),
            *plain,
            *samples(it),
            Way("momenta", physics.Momenta(seed=seed)),
            *(Way(f"undone in {key}", physics.Floats(dtype)) for key, dtype in _FLOATS.items()),
        ]
        found["returns"] += go_back(it, name, ways)
        past = min(settings["beyond"].get(name, 0), steps)
        if past:
            size = min(s for s in settings["sizes"] if s >= settings["beyond_size"])
            ways = [
                Way("past the start, unperturbed", None),
                Way("past the start", physics.Nudge(size, seed=seed), size),
            ]
            found["returns"] += go_back(it, name, ways, past)
    for way in found["returns"]:
        way["onset_distance"] = _at_step(way["curve"], out["onset"])
    return found


def batches(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """Mini-batches: wound back on the same ones (control, and perturbed), and on fresh ones.

    Settings as `perturbed`, with "batch_size".

    Returns:
        "out", "start", "turns", "returns", as `perturbed`.
    """
    steps = settings["steps"]
    it = lab(settings, seed, Meter(say, steps * (1 + 2 * (3 + len(settings["sizes"])))))
    return _arm(it, settings, seed, lambda: [Way("fresh batches", physics.Fresh(seed=seed + 1))])


def friction(settings: Mapping[str, Any], seed: int, say: Say) -> dict[str, Any]:
    """SGD with momentum and its tape: the same turns and perturbations.

    Settings as `perturbed`, with "optimizer".

    Returns:
        "out", "start", "turns", "returns", as `perturbed`; "bits": per parameter and step, at the last turn.
    """
    steps = settings["steps"]
    it = lab(settings, seed, Meter(say, steps * (1 + 2 * (2 + len(settings["sizes"])))))
    return _arm(it, settings, seed, list)


def _arm(it: Lab, settings: Mapping[str, Any], seed: int, more: Any) -> dict[str, Any]:
    """Out, and back from each turn: unperturbed, perturbed along random directions, and in `more()` ways."""
    start = _accuracies(it)
    out = go_out(it, settings["steps"], settings["onset"])
    bits = it.traj.tape.bits_per_parameter_step
    found: dict[str, Any] = {"out": out, "start": start, "turns": {}, "returns": [], "bits": bits}
    if out["onset"] is None:
        return found
    for name, turn in turns(settings["turns"], out["onset"], settings["steps"]).items():
        it.traj.seek(turn)
        found["turns"][name] = _accuracies(it) | {"step": turn}
        ways = [Way("none", None), *nudges(it, settings["sizes"], settings["random"], 0, seed), *more()]
        found["returns"] += go_back(it, name, ways)
    return found


def _growth(it: Lab, directions: int, seed: int) -> dict[int, torch.Tensor]:
    """ln of the growth of perturbations made at step 0, by step: shape (directions,)."""
    if not directions:
        return {}
    steps = it.traj.step
    tangent = physics.tangent(it.traj, 0, steps, directions, seed=seed)
    it.meter.add(5 * steps * directions)
    return dict(zip(tangent.steps, tangent.log_growth, strict=True))


def _accuracies(it: Lab) -> dict[str, float]:
    every, it.every = it.every, 0.0
    with it.traj.evaluating() as model:
        it.observe(model)
    it.every = every
    train, test = it.looks[-1]
    return {"train": train, "test": test}


def _norm(traj: Any) -> float:
    return float(torch.cat([p.detach().flatten() for p in traj.model.parameters()]).norm())


def _at_step(curve: Mapping[str, list], step: int) -> float | None:
    """The distance at the look nearest to a step; None if the way back did not come so far, or never was so far out."""
    if not curve["step"] or not curve["step"][-1] <= step <= curve["step"][0]:
        return None
    nearest = min(range(len(curve["step"])), key=lambda i: abs(curve["step"][i] - step))
    return curve["relative"][nearest]
