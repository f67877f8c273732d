"""A claim that comes out: two parts, with a control; the first one goes wrong on demand."""

import os
import signal
import time
from pathlib import Path

from loschmidt.claims.record import Claim, Finding, Measure, Part, Picture, Series, SubVerdict
from loschmidt.exact import random


def heads(settings, seed, say):
    """A share of heads; TOYS names a folder with orders, of one seed each."""
    say(0.0)
    orders = Path(os.environ.get("TOYS", "/nonexistent"))
    if (orders / f"raise-{seed}").exists():
        raise ZeroDivisionError("a coin fell on its edge")
    if (orders / f"kill-{seed}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (orders / f"wait-{seed}").exists():
        (orders / f"waiting-{seed}").touch()
        time.sleep(60)
    tosses = random.generator("heads", seed).random(settings["tosses"])
    say(1.0, share=tosses.mean())
    return {"share": float((tosses < 0.5).mean()), "pair": (1, 2), "nothing": float("nan")}


def loaded(settings, seed, say):
    """The control: a loaded coin."""
    return {"share": float((random.generator("loaded", seed).random(settings["tosses"]) < 0.9).mean())}


def judge(evidence, thresholds):
    """Fair, if the mean is near a half."""
    shares = [e["share"] for e in evidence["fair coin"]]
    value = sum(shares) / len(shares)
    met = abs(value - 0.5) < thresholds["within"]
    control = [e["share"] for e in evidence["loaded coin"]]
    measures = [
        Measure("share of heads", value, (min(shares), float("inf")), len(shares), "", "within 0.1 of 0.5", met),
        Measure("of the loaded coin", sum(control) / len(control), None, len(control), control=True),
        Measure("tosses come back", 1.0, kind="implementation check"),
    ]
    verdict = "supported" if met else "refuted"
    return Finding(verdict, [SubVerdict("fair", verdict, f"heads were {value:.2f}.")], measures, ["seed 99: a toy"])


def pictures(evidence):
    """One picture."""
    y = [e["share"] for e in evidence["fair coin"]]
    return [Picture("Heads", "Near a half.", "seed", "share", [Series("fair", list(range(len(y))), y)])]


SETTINGS = {"smoke": {"tosses": 200}, "laptop": {"tosses": 2_000}}
CLAIM = Claim(
    id=1,
    title="coins are fair",
    statement="A coin is fair.",
    sentences=(1,),
    question="Is it?",
    prediction="Half of the tosses are heads.",
    falsifier="A share away from a half.",
    protocol="Toss it.",
    rule="The one sub-verdict.",
    thresholds={"within": 0.1},
    seeds={"smoke": 2, "laptop": 3},
    parts=(
        Part("fair coin", heads, SETTINGS, {"smoke": 0.1, "laptop": 0.1}),
        Part("loaded coin", loaded, SETTINGS, {"smoke": 0.01, "laptop": 0.01}),
    ),
    judge=judge,
    pictures=pictures,
    outside="A binomial distribution.",
    citations={"none": "a toy"},
)
