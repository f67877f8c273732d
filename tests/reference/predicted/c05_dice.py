"""A claim with a part that predicts another: dice."""

from loschmidt.claims.record import Claim, Finding, Measure, Part, SubVerdict
from loschmidt.exact import random

SETTINGS = {"smoke": {"throws": 60}}


def foretell(settings, seed, say):
    """What a fair die gives."""
    return {"mean": 3.5}


def throw(settings, seed, say):
    """A die's mean."""
    return {"mean": float(random.generator("die", seed).integers(1, 7, settings["throws"]).mean())}


def judge(evidence, thresholds):
    """Within."""
    off = [abs(a["mean"] - b["mean"]) for a, b in zip(evidence["foretold"], evidence["thrown"], strict=True)]
    met = max(off) < thresholds["within"]
    verdict = "supported" if met else "refuted"
    return Finding(verdict, [SubVerdict("fair", verdict, "so it is.")], [Measure("off", max(off), None, len(off))])


CLAIM = Claim(
    id=5,
    title="dice are fair",
    statement="A die is fair.",
    sentences=(1,),
    question="Is it?",
    prediction="The mean is 3.5.",
    falsifier="Another mean.",
    protocol="Throw it.",
    rule="The one sub-verdict.",
    thresholds={"within": 1.0},
    seeds={"smoke": 2},
    parts=(
        Part("foretold", foretell, {"smoke": {}}, {"smoke": 0.1}),
        Part("thrown", throw, SETTINGS, {"smoke": 0.1}, predicted_by="foretold"),
    ),
    judge=judge,
    pictures=lambda evidence: [],
    outside="Dice.",
    citations={"none": "a toy"},
)
