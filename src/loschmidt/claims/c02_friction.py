"""Claim 2: SGD with momentum is not reversible in the way ECD is, because of friction."""

import math
from collections.abc import Sequence
from typing import Any

from . import friction
from .friction_verdict import FREE, HORIZONS, SMALLEST, judge
from .record import Claim, Evidence, Part, Picture, Series

_LAPTOP_TASK = {"p": 23, "width": 32, "hidden": 96, "fraction": 0.6}
_SMOKE_TASK = {"p": 7, "width": 8, "hidden": 16, "fraction": 0.6}


def _arm(name: str, kind: str, fit: Sequence[int], **settings: float) -> dict[str, Any]:
    return {"name": name, "kind": kind, "fit": list(fit), "settings": settings}


def _arms(early: Sequence[int], late: Sequence[int]) -> list[dict[str, Any]]:
    return [
        _arm("momentum 0.9", "SGD", early, lr=0.02, momentum=0.9),
        _arm("momentum 0.98", "SGD", late, lr=0.005, momentum=0.98),
        _arm("momentum 0.99", "SGD", late, lr=0.005, momentum=0.99),
        _arm("momentum 1.0", "SGD", late, lr=0.001, momentum=1.0),
        _arm("ECD", "ECD", late, lr=0.04, eta=2.0),
    ]


_ARMS = _arms((40, 240), (200, 600))
_HALF = _arm("momentum 0.5", "SGD", (), lr=0.02, momentum=0.5)
_ECHOED = ("momentum 0.9", "momentum 0.98", "momentum 1.0", "ECD")

_FLOATS = {"turn": 1200, "every": 5, "directions": 1, "align": 100, "ceilings": {"float64": 1e-7, "float32": 1e-2}}
_ECHOES = {"turn": 1200, "every": 20, "sizes": [1e-9, 1e-6], "same": 0.9}

_SETTINGS = {
    "bits": {
        "laptop": {"task": _LAPTOP_TASK, "arms": [_HALF, *_ARMS], "steps": 300},
        "smoke": {"task": _SMOKE_TASK, "arms": [_HALF, *_ARMS], "steps": 30},
    },
    "float reversal": {
        "laptop": {"task": _LAPTOP_TASK, "arms": _ARMS, **_FLOATS},
        "smoke": {"task": _SMOKE_TASK, "arms": _arms((5, 40), (5, 40)), **_FLOATS, "turn": 50, "every": 5, "align": 5},
    },
    "perturbed return": {
        "laptop": {"task": _LAPTOP_TASK, "arms": [a for a in _ARMS if a["name"] in _ECHOED], **_ECHOES},
        "smoke": {"task": _SMOKE_TASK, "arms": [_ARMS[0], _ARMS[-1]], **_ECHOES, "turn": 60, "every": 10},
    },
}

THRESHOLDS = {
    "bits, relative": 0.005,
    "learned, train accuracy": 0.95,
    "energy": 1e-2,
    "growth, relative": 0.2,
    "growth without friction, nats": 0.005,
    "equal growth, share of friction": 0.5,
    "horizon, relative": 0.2,
    "horizon, within a factor": 2.0,
    "function, share of equal answers": 0.9,
}


def pictures(evidence: Evidence) -> Sequence[Picture]:
    """Error against steps back, the function's fidelity, and the bits."""
    return [p for p in (_errors(evidence), _fidelity(evidence), _bits(evidence)) if p is not None]


def _errors(evidence: Evidence) -> Picture | None:
    series, first = [], True
    for row in evidence.get("float reversal", ()):
        for name, arm in row["arms"].items():
            found = arm["float64"]
            role = ("control" if name in FREE else "evidence") if first else "seed"
            series.append(Series(name, found["back"], [e or None for e in found["error"]], role=role, mode="lines"))
        first = False
    if not series:
        return None
    dtype = "float64"
    for name, arm in evidence["float reversal"][0]["arms"].items():
        if arm["friction"]:
            last = max(s.x[-1] for s in series if s.name == name and s.x)
            grown = [SMALLEST[dtype] * math.exp(arm["friction"] * steps) for steps in (0, last)]
            series.append(Series(f"friction alone, {name}", [0, last], grown, role="theory", mode="lines"))
    return Picture(
        "Wound back in float64, without a tape",
        "Relative distance from the way out. With friction it grows by 1/momentum a step, as the dashed lines; "
        "without, it stays small to the start. Had friction no part in it, all lines would rise alike.",
        "steps back",
        "relative error of the parameters",
        series,
        log="y",
        marks={"everything lost": 1.0},
    )


def _fidelity(evidence: Evidence) -> Picture | None:
    series, rows = [], evidence.get("perturbed return", ())
    for i, row in enumerate(rows):
        for name, arm in row["arms"].items():
            echo = arm["echoes"][-1]
            role = "seed" if i else "control" if name == "momentum 1.0" else "evidence"
            series.append(Series(name, echo["back"], echo["agreement"], role=role, mode="lines"))
    if not series:
        return None
    size = next(iter(rows[0]["arms"].values()))["echoes"][-1]["size"]
    return Picture(
        f"Wound back with its tape, perturbed by {size:g} at the turn",
        "Share of equal answers between the way back and the way out, on the whole table. A line that ends early is a "
        "run that blew up. Were friction no matter, lines would fall alike.",
        "steps back",
        "share of equal answers",
        series,
        marks={"counts as the same function": THRESHOLDS["function, share of equal answers"]},
    )


def _bits(evidence: Evidence) -> Picture | None:
    rows = evidence.get("bits", ())
    if not rows:
        return None
    names = list(rows[0]["arms"])
    means = [sum(row["arms"][n]["bits"] for row in rows) / len(rows) for n in names]
    theory = [rows[0]["arms"][n]["theory"] for n in names]
    return Picture(
        "What friction destroys",
        "An implementation check: the tape grows by log2(1/momentum), and without friction not at all.",
        "optimizer",
        "bits per parameter per step",
        [Series("tape", names, means, mode="markers"), Series("log2(1/momentum)", names, theory, role="theory")],
    )


CLAIM = Claim(
    id=2,
    title="friction makes SGD with momentum irreversible",
    statement="SGD with momentum is not reversible in the way ECD is: it is Hamiltonian motion with friction.",
    sentences=(2,),
    question="Is it friction that keeps training from being wound back, and how far does one come with it?",
    prediction="Going back, errors grow by lambda + ln(1/momentum) nats a step, and without friction by lambda "
    "alone; floats lose all within ln(1/eps)/ln(1/momentum) steps; and a perturbed turn brings back the function of "
    "ECD and not that of SGD with momentum.",
    falsifier="Growth rates are equal: the interval of (momentum 0.9 less ECD) holds 0 or less, and ends below half "
    "of ln(1/0.9).",
    protocol="One task (modular addition, a small transformer, full batch, float64, no decay), paired seeds, equal "
    "steps; learning rates are such that each arm has fitted its data by the turn and none blows up, found on seeds "
    "100 to 103, as were the steps that growth is fitted on; the rule was mended after a look at seeds 0 and 1; the "
    "record is of seeds from 10 on. Runs in floats are stepped back by algebra; lambda is measured on "
    "the way out by tangent maps, over the steps that growth is fitted on. Lattice runs with their tape are wound "
    "back with the state moved by 1e-9 and 1e-6 of the parameters' norm at the turn. Controls: momentum 1.0, the "
    "unperturbed return, the agreement of two seeds' untrained functions. Runs without friction whose H changes by "
    "1e-2, at the step or at half of it, are left out. Growth is judged in float64, where no ReLU changes sides "
    "before an error of about 1e-7; in float32 each error changes some, and it is shown beside.",
    rule="Refuted if growth is. Supported if growth, horizon and perturbed return all are; partly otherwise. Growth: "
    "supported if all momenta below 1 grow faster than ECD (interval of paired differences above 0) and every arm as "
    "predicted. Horizon: supported if those of "
    + ", ".join(f"{name} in {dtype}" for name, dtype in HORIZONS)
    + " are within 20 % of friction alone, and float64 loses no run without friction; partly within a factor 2. "
    "Perturbed return: supported if at all sizes ECD's function returns in all seeds and that of momentum 0.9 in "
    "none (nine of ten answers as at the start; two seeds agree in one of p); partly if that is so at some size, "
    "or ECD follows the way out longer there; refuted if at none it does. An interval too wide to tell is "
    "inconclusive. Bits are true by construction: wrong ones make the verdict inconclusive.",
    thresholds=THRESHOLDS,
    seeds={"smoke": 2, "laptop": 5},
    parts=[
        Part("bits", friction.bits, _SETTINGS["bits"], {"smoke": 1, "laptop": 5}),
        Part("float reversal", friction.floats, _SETTINGS["float reversal"], {"smoke": 3, "laptop": 110}),
        Part("perturbed return", friction.echoes, _SETTINGS["perturbed return"], {"smoke": 1, "laptop": 55}),
    ],
    judge=judge,
    pictures=pictures,
    first_seed=10,
    outside="log2(1/momentum) bits a step and parameter, 0.152 at 0.9; 158 steps in float32, 349 in float64.",
    citations={
        "1502.03492": "SGD with momentum wound back with a tape of log2(1/momentum) bits",
        "2306.00352": "ECD, the separable Hamiltonian",
        "2506.13234": "small perturbations early in training make runs diverge",
        "Wojtkowski and Liverani 1998": "pairing of exponents of conformally symplectic maps",
    },
)
