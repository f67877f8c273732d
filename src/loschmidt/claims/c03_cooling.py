"""Claim 3: friction makes training look like cooling, and learning like crystallisation.

This file tests the part that friction has in it: does a network learn without, does it keep what it learned without,
and what does keeping cost? Crystallisation, an order of the transition, needs noise, and is not tested here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from . import breathing_parts, breathing_runs, grokking
from . import breathing_rule as rule
from .breathing_judge import judge as breathing
from .breathing_pictures import pictures as of_breathing
from .grok_search import FOUND, SMALL
from .record import Claim, Evidence, Finding, Part, Picture, Scale

FIRST = 10  # seeds 0 and 1 were seen by an early measurement that the rule was made with
_SMOKE: dict[str, Any] = {
    "p": 7,
    "width": 8,
    "hidden": 16,
    "fraction": 0.7,
    "dtype": "float64",
    "lr": 0.05,
    "weight_decay": 1e-3,
    "momentum": 1.0,
    "steps": 120,
    "every": 20,
    "below": None,
}
# Pilots, seeds 100 and 101: see `protocol`.
_LAPTOP = _SMOKE | {
    "p": 31,
    "width": 48,
    "hidden": 192,
    "fraction": 0.4,
    "dtype": "float32",
    "lr": 0.015,
    "steps": 48_000,
    "every": 250,
}
_FULL = _LAPTOP | {"dtype": "float64", "steps": 80_000, "every": 250}
_BASE = {"smoke": _SMOKE, "laptop": _LAPTOP, "full": _FULL}
_FIVE, _THREE = {"below": FIRST + 5}, {"below": FIRST + 3}

_FRICTIONS = (0.9999, 0.9998, 0.999, 0.99, 0.9)
_COOLED = 0.9998


def _settings(**own: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By scale: the base and what a part has of its own; a scale without any takes the laptop's."""
    return {scale: base | own.get(scale, own.get("laptop", {})) for scale, base in _BASE.items()}


def _half(scale: Scale) -> dict[str, Any]:
    base = _BASE[scale]
    changes = {"lr": base["lr"] / 2, "steps": 2 * base["steps"], "every": 2 * base["every"]}
    return (_THREE if scale == "laptop" else {}) | {"runs": [changes]}


def _sizes(sizes: Sequence[tuple[int, int, int]]) -> list[dict[str, Any]]:
    return [{"p": p, "width": w, "hidden": h, "momentum": m} for p, w, h in sizes for m in (1.0, _COOLED)]


def _decays(weight_decay: float) -> dict[str, Any]:
    return {"runs": [{"weight_decay": weight_decay * factor} for factor in (0.0, 3.0)]}


_TROUGH = {"window": 16_000, "learner": 0.999, "cap": 20_000, "relearn_every": 100, "share": 0.9}
_MELT = {"momentum": _COOLED, "kicks": [0.0, 0.1, 0.3, 1.0, 2.0, 3.0], "window": 12_000}

_GROK_LAPTOP = FOUND | {"steps": 200_000, "every": 200, "momenta": [1.0, _COOLED], "below": FIRST + 5}
_GROK_SMOKE = _GROK_LAPTOP | SMALL | {"steps": 120, "every": 10, "below": None}
_GROK_FULL = _GROK_LAPTOP | {"steps": 500_000, "momenta": [1.0, _COOLED, 0.999, 0.99, 0.9], "below": None}
_GROK = {"smoke": _GROK_SMOKE, "laptop": _GROK_LAPTOP, "full": _GROK_FULL}


def judge(evidence: Evidence, t: rule.Thresholds) -> Finding:
    """The verdict of `breathing_judge`, and beside it what a network that groks shows, which does not decide."""
    return grokking.with_grokking(breathing(evidence, t), evidence, t)


def pictures(evidence: Evidence) -> list[Picture]:
    """Breathing and freezing; then grokking."""
    last = grokking.picture(evidence)
    return [*of_breathing(evidence), *([] if last is None else [last])]


CLAIM = Claim(
    id=3,
    title="training is cooling, and crystallises",
    statement="Friction makes training look like cooling, and learning like crystallisation.",
    sentences=(2, 3),
    question="What is friction for: does a network need it to learn, or to keep what it learned?",
    prediction=(
        "Without friction a network does not come to add, or does not stay so: what it learned melts again. With "
        "friction it freezes, and thawing it takes energy."
    ),
    falsifier=(
        "Learning and its retention survive without friction: nearly all seeds generalise at momentum 1, and their "
        "test accuracy does not fall again."
    ),
    protocol=(
        "Modular addition, a one-layer transformer, ECD with decay inside H, full batch; friction is a contraction of "
        "the momentum, with its remainders on the tape. Runs without friction; five frictions up to that of SGD with "
        "momentum 0.9; half the step size; other decays; two other sizes. Along each: accuracies, norm, |p|^2, H, and "
        "loss with the key frequencies alone and without them. A run without friction is wound back over its largest "
        "fall of test accuracy; from there its weights are scaled to another moment's norm, it moves on at one norm "
        "(on a sphere, with the same Hamiltonian), it goes on with random momenta, and a trough is learned again from "
        "rest beside fresh networks. Frozen networks get random momenta that raise H by a known energy. Runs without "
        "friction whose H changes by 1e-2, and runs that never fit, are left out and listed. Sizes and step sizes are "
        "from an early measurement (seeds 0 and 1) and pilots on seeds 100 and 101; the record is of seeds from 10 "
        "on; at laptop scale runs without friction have ten seeds, those with friction five, half the step, decays "
        "and sizes three. A square multilayer perceptron, which groks: does that take friction? (Added after the rule, "
        "and beside it.) Three to four hours on two cores; full takes twenty seeds in float64."
    ),
    rule=(
        "(a) learning needs friction: refuted if nearly all seeds generalise without, supported if nearly none does "
        "and nearly all do with some friction, partly between. (b) keeping needs friction: supported if test accuracy "
        "falls by a breath or more in the second half of runs without friction, is frozen with momentum 0.9998, and "
        "the difference is sure; refuted if it is frozen without; partly if only the difference is sure. (c) breathing "
        "is not the norm's doing: supported if it falls from its peak at one norm, too, and the peak's norm does not "
        "give back half of what a trough lost; refuted if both are the other way round, inconclusive if one can't be "
        "told, partly if they disagree. (d) crystallisation is not tested, so that the claim as a whole can't be "
        "supported here. (e), of grokking by its strict definition, does not decide. Refuted if (a) and (b) are; "
        "inconclusive if one of these two is; partly otherwise."
    ),
    thresholds=rule.THRESHOLDS,
    seeds={"smoke": 1, "laptop": 10, "full": 20},
    first_seed=FIRST,
    parts=(
        Part(
            rule.FREE,
            breathing_runs.sweep,
            _settings(laptop={"runs": [{}]}),
            {"smoke": 1, "laptop": 120, "full": 400},
        ),
        Part(
            rule.HALF,
            breathing_runs.sweep,
            _settings(**{scale: _half(scale) for scale in _BASE}),
            {"smoke": 2, "laptop": 240, "full": 800},
        ),
        Part(
            rule.SWEEP,
            breathing_runs.sweep,
            _settings(
                smoke={"runs": [{"momentum": m} for m in (_COOLED, 0.9)]},
                laptop=_FIVE | {"runs": [{"momentum": m} for m in _FRICTIONS]},
                full={"runs": [{"momentum": m} for m in (0.99999, 0.99997, *_FRICTIONS[:2], 0.9995, *_FRICTIONS[2:])]},
            ),
            {"smoke": 2, "laptop": 600, "full": 3200},
        ),
        Part(  # added when the weakest friction of the sweep froze the first seed: where does it begin?
            rule.WEAK,
            breathing_runs.sweep,
            {
                "smoke": _SMOKE | {"runs": [{"momentum": 0.99999}]},
                "laptop": _LAPTOP | _FIVE | {"runs": [{"momentum": m} for m in (0.99999, 0.99997)]},
            },
            {"smoke": 1, "laptop": 300},
        ),
        Part(
            rule.DECAY,
            breathing_runs.sweep,
            _settings(
                smoke=_decays(1e-3),
                laptop=_THREE | _decays(1e-3),
                full={"runs": [{"weight_decay": d} for d in (0.0, 3e-4, 3e-3, 1e-2)]},
            ),
            {"smoke": 2, "laptop": 240, "full": 1600},
        ),
        Part(
            rule.SIZES,
            breathing_runs.sweep,
            _settings(
                smoke={"runs": _sizes([(5, 8, 16)])},
                laptop=_THREE | {"runs": _sizes([(23, 32, 128), (41, 64, 256)])},
                full={"runs": _sizes([(23, 32, 128), (41, 64, 256), (59, 96, 384)])},
            ),
            {"smoke": 2, "laptop": 650, "full": 9000},
        ),
        Part(
            rule.TROUGH,
            breathing_parts.at_a_trough,
            _settings(
                smoke=_TROUGH | {"window": 40, "cap": 60, "relearn_every": 20},
                laptop=_FIVE | _TROUGH,
                full=_TROUGH,
            ),
            {"smoke": 3, "laptop": 480, "full": 1600},
        ),
        Part(
            rule.MELT,
            breathing_parts.melting,
            _settings(
                smoke=_MELT | {"kicks": [0.0, 1.0], "window": 40},
                laptop=_FIVE | _MELT,
                full=_MELT | {"kicks": [0.0, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0], "window": 40_000},
            ),
            {"smoke": 2, "laptop": 300, "full": 2600},
        ),
        Part(grokking.GROKKING, grokking.runs, _GROK, {"smoke": 1, "laptop": 600, "full": 4000}),
    ),
    judge=judge,
    pictures=pictures,
    outside=(
        "log2(1/momentum) bits a parameter and step (1502.03492); the rule and its frequencies as in 2301.05217. No "
        "published run of modular addition without friction was found."
    ),
    citations={
        "2306.00352": "energy-conserving descent, separable",
        "1502.03492": "momentum wound back with a tape of log2(1/momentum) bits",
        "2301.05217": "restricted and excluded loss, key frequencies",
        "2301.02679": "the square multilayer perceptron, and its exact solution",
        "2210.01117": "Omnigrok: generalisation and the norm of the weights",
        "2310.03789": "grokking as a first-order transition",
    },
)
