"""Claim 7: whoever would reverse ECD by a loss must reverse its weight decay as well."""

from collections.abc import Sequence
from typing import Any

from . import decay
from .decay_verdict import KINDS, judge
from .record import Claim, Evidence, Part, Picture, Series

_LAPTOP_TASK = {"p": 23, "width": 32, "hidden": 96, "fraction": 0.6}
_SMOKE_TASK = {"p": 7, "width": 8, "hidden": 16, "fraction": 0.6}
_ECD = {"lr": 0.04, "eta": 2.0}
_USUAL = _ECD | {"weight_decay": 1e-3}
_TURN = 1400
_EARLIER = 1200  # with little decay the data are fitted by then
_SHARES = (0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1)


def _turn(
    at: int, shares: Sequence[float], pushes: Sequence[float] = (), flip: bool = False, mirror: Sequence[float] = ()
) -> dict[str, Any]:
    return {"at": at, "shares": list(shares), "pushes": list(pushes), "flip": flip, "mirror": list(mirror)}


def _strong(decoupled: bool) -> dict[str, Any]:
    more = (2,) if decoupled else ()
    laptop = [
        _turn(_TURN // 2, (1e-3, 1, *more), mirror=(1,)),
        _turn(_TURN, (*_SHARES, *more), pushes=(1e-7, 1e-6, 1e-5), flip=True),
    ]
    smoke = [_turn(15, (1,), mirror=(1,)), _turn(30, (0, 1e-3, 1, *more), pushes=(1e-3,), flip=True)]
    return {
        "laptop": {"task": _LAPTOP_TASK, "ecd": _USUAL, "decoupled": decoupled, "turns": laptop},
        "smoke": {"task": _SMOKE_TASK, "ecd": _USUAL, "decoupled": decoupled, "turns": smoke},
    }


def _weak(decoupled: bool) -> dict[str, Any]:
    none = () if decoupled else (0.0,)  # without decay the two are one
    decays = [*none, 1e-10, 1e-8, 1e-6]
    common = {"ecd": _ECD, "decoupled": decoupled}
    return {
        "laptop": {"task": _LAPTOP_TASK, **common, "turn": _EARLIER, "decays": decays},
        "smoke": {"task": _SMOKE_TASK, **common, "turn": 20, "decays": decays[:2]},
    }


THRESHOLDS = {
    "learned, train accuracy": 0.95,
    "energy": 1e-2,
    "answers as at the start": 0.9,
    "loss, relative": 0.1,
    "bits, relative": 0.005,
}


def pictures(evidence: Evidence) -> Sequence[Picture]:
    """Answers and loss at the end of the way back, against the share that was left un-reversed."""
    rows = [(kind, row) for kind in KINDS for row in evidence.get(kind, ())]
    if not rows:
        return ()
    answers, losses = [], []
    for kind, row in rows:
        first = row is evidence[kind][0]
        for what, role in (("share", "evidence"), ("push", "control")):
            ways = row["turns"][-1]["ways"]
            x = sorted(float(n.split()[1]) for n in ways if n.startswith(f"{what} ") and n != f"{what} 0")
            name = f"decay {kind}" if what == "share" else f"random push of equal size, {kind}"
            role = role if first else "seed"
            found = [ways[f"{what} {v:g}"] for v in x]
            answers.append(Series(name, x, [w["agreement"] for w in found], role=role, mode="lines+markers"))
            losses.append(Series(name, x, [w["loss"] for w in found], role=role, mode="lines+markers"))
    share = "share of decay left un-reversed"
    start = sum(row["start"]["loss"] for _, row in rows) / len(rows)
    return (
        Picture(
            "Does the function come back?",
            "Answers at the end of the way back that are those of the untrained start. Each seed is a line. Were decay "
            "no matter, lines would stay at 1 up to the right edge.",
            share,
            "share of answers as at the start",
            answers,
            log="x",
            marks={"counts as returned": THRESHOLDS["answers as at the start"]},
        ),
        Picture(
            "What it knows at the end of the way back",
            "Train loss at step 0 of the way back. Near the line the network is as ignorant as it began; below it, "
            "it has kept, or learned again, what it was to forget.",
            share,
            "train loss, nats",
            losses,
            log="xy",
            marks={"loss of the start": start},
        ),
    )


_PARTS = {kind: kind == "outside H" for kind in KINDS}

CLAIM = Claim(
    id=7,
    title="to reverse ECD, reverse weight decay as well",
    statement="Whoever would reverse ECD by a loss must reverse its weight decay, too.",
    sentences=(6,),
    question="How much of the weight decay may be left un-reversed before the untrained function does not come back?",
    prediction="With all decay reversed the function of the start returns; with none of it reversed it does not, "
    "for decay inside H and outside.",
    falsifier="With decay of usual strength un-reversed (share 1) the function returns in all seeds.",
    protocol="ECD on modular addition (a small transformer, full batch, float64), until it has fitted its data; "
    "then wound back on the lattice, H reversed to -H, with a decay of (1 - share) times the recorded one. Share 1 "
    "leaves decay out; share 2, for decay outside H, is decay going on, which is also what flipping momenta gives "
    "there. For decay inside H flipped momenta take decay along by themselves, and end where undoing ends (checked "
    "by bits). Apart: the loss's sign flipped and the kinetic term as it was, all decay reversed. Controls: no "
    "decay; all decay reversed; at each step a push along one random direction of the size that un-reversed decay "
    "has; agreement of two seeds' untrained functions; weaker decay, left out in whole, since a weak decay over a "
    "short run returns trivially. Seeds that have not learned by the turn, or whose H changes by 1e-2 at the step "
    "or at half of it, are left out (outside H, decay changes H: the step is the one that was sound inside). The "
    "step, the turns and the shares were found on seeds 100 to 103 and with a look at seeds 0 and 1; the record is of "
    "seeds from 10 on.",
    rule="The function has returned if nine of ten answers on the whole table are the start's (two seeds' starts "
    "agree in about one of p) and its loss is within 10 % of the start's. Decay inside H, and outside: supported if "
    "with all decay reversed all seeds return, and with share 1 (outside: nor with 2) none; refuted if with share 1 "
    "all return; partly otherwise. The verdict is refuted if one of the two is, supported if both are, partly "
    "otherwise. Stated beside, and without a say: whether weaker decay matters, whether a random push of equal size "
    "does the same, whether a flipped loss is enough.",
    thresholds=THRESHOLDS,
    seeds={"smoke": 2, "laptop": 5},
    parts=[
        *(Part(kind, decay.strong, _strong(outside), {"smoke": 1, "laptop": 55}) for kind, outside in _PARTS.items()),
        *(
            Part(f"weak decay {kind}", decay.weak, _weak(outside), {"smoke": 1, "laptop": 20})
            for kind, outside in _PARTS.items()
        ),
    ],
    judge=judge,
    pictures=pictures,
    first_seed=10,
    outside="None published. Decay outside H contracts phase space by ln(1/(1 - lr decay)) a step and parameter.",
    citations={
        "2306.00352": "ECD, the separable Hamiltonian, with decay inside H",
        "1711.05101": "decay outside the loss (AdamW)",
        "1206.6348": "the Loschmidt echo: forward with one Hamiltonian, back with another",
    },
)
