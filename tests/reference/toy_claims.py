"""Toy claims and records of them, with all that a report can meet: one for each verdict, all kinds of pictures."""

import math
import random
from dataclasses import asdict

from loschmidt.claims import records
from loschmidt.claims.record import Claim, Finding, Measure, Part, Picture, Series, SubVerdict
from loschmidt.files import write_json

SENTENCES = """# The source

A page of toy sentences.

1. A sentence about evidence.
2. A sentence about friction, which constantly removes energy, that goes on
   over two lines.
"""
TEXT = {
    "prediction": "The error grows faster with friction than without it, by a factor of 1/0.9 a step.",
    "falsifier": "Both errors grow at one rate, their intervals overlapping.",
    "protocol": "Each optimizer runs out and back in float32 from one start. Control: momentum 1, no friction.",
    "rule": "Supported if every part is; refuted if the rates are equal; else partly.",
}


def evidence(seeds=5, steps=400, seed=0):
    """By part, what each seed gave: an error that grows."""
    draws = random.Random(seed)
    found = []
    for k in range(seeds):
        rate, start = 0.105 + 0.004 * draws.gauss(0, 1), -16 + draws.gauss(0, 0.3)
        error = [math.exp(min(1.0, start + rate * t)) for t in range(steps)]
        found.append({"seed": k, "settings": {"steps": steps}, "seconds": 1.5, "error": error, "rate": rate})
    return {"growth": found}


def pictures(given):
    """A logarithmic one with a band, seeds, theory and a mark; one of categories; a plain one."""
    runs = given["growth"]
    steps, late = list(range(len(runs[0]["error"]))), list(range(0, 20_000, 1000))
    columns = list(zip(*(run["error"] for run in runs), strict=True))
    middle = [sorted(c)[len(c) // 2] for c in columns]
    without = [3e-7 * (1 + t) ** 0.8 for t in steps]
    arms = ["momentum 0.9", "momentum 0.98", "momentum 0.99", "momentum 1"]
    rates = [run["rate"] for run in runs]
    mean, wide = sum(rates) / len(rates), 2 * (max(rates) - min(rates)) / len(rates) ** 0.5
    y = [mean, 0.2 * mean, 0.1 * mean, 0.002]
    return [
        Picture(
            "How the error of the way back grows",
            "With friction the error grows by a tenth a step until nothing is left of the start; without it the error "
            "only creeps. Had the claim been wrong, both bundles would lie on each other.",
            "steps back",
            "distance from the path of training",
            [
                *(Series(f"SGD with momentum 0.9, seed {r['seed']}", steps, r["error"], role="seed") for r in runs),
                Series("SGD with momentum 0.9", steps, middle, [min(c) for c in columns], [max(c) for c in columns]),
                Series("without friction", steps, without, without, [2 * v for v in without], "control"),
                Series("1/0.9 a step", steps, [1e-7 * 0.9**-t if t < 160 else None for t in steps], role="theory"),
            ],
            log="y",
            marks={"all is lost: the distance of two random starts": 2.0},
        ),
        Picture(
            "The rate, arm by arm",
            "Bars are 95 % intervals over seeds. The rate falls with friction, as ln(1/momentum) says.",
            "",
            "growth rate, nats a step",
            [
                Series("measured", arms, y, [v - wide for v in y], [v + wide for v in y], mode="markers"),
                Series("random labels", arms, *([f * v for v in y] for f in (1.2, 0.9, 1.5)), "control", "markers"),
                Series("ln(1/momentum)", arms, [0.105, 0.0202, 0.01005, 0], role="theory", mode="markers"),
            ],
        ),
        Picture(
            "Test accuracy on the way",
            "A plain picture of two lines and their points.",
            "step",
            "test accuracy, share of right answers <of 1>",
            [
                Series("ECD", late, [1 - math.exp(-t / 4) for t in range(20)], mode="lines+markers"),
                Series("SGDM", late, [0.8 - math.exp(-t / 5) for t in range(20)], mode="lines+markers"),
                Series("random labels", late, [0.03] * 20, role="control", mode="lines+markers"),
            ],
        ),
    ]


def judge(given, thresholds):
    """Not used: a record has the finding."""
    raise AssertionError("nobody judges these")


def claim(id, title, sentences):
    """A toy claim."""
    return Claim(
        id,
        title,
        "SGD with momentum is not reversible in the way energy-conserving descent is, because it has friction.",
        sentences,
        "Does friction make the way back unstable, and by how much more than the same motion without it?",
        *(TEXT[k] for k in ("prediction", "falsifier", "protocol", "rule")),
        {"largest p": 0.01, "error that counts as lost": 0.1},
        {"smoke": 2, "laptop": 5},
        [Part("growth", lambda settings, seed, say: {}, {}, {})],
        judge,
        pictures,
        "0.15200 bits per parameter per step at momentum 0.9 (arXiv 1502.03492)",
        {"1502.03492": "what friction forgets", "Levesque and Verlet (1993)": "integers for exact reversal"},
    )


CLAIMS = {
    2: claim(2, "Friction makes SGD with momentum irreversible", [2]),
    7: claim(7, "To reverse ECD, reverse weight decay as well", [1, 2]),
    10: claim(10, "ECD is reversible", [2]),
    11: claim(11, "Mini-batch noise adds energy to ECD", [1]),
}
VERDICTS = {2: "supported", 7: "inconclusive", 10: "partly", 11: "refuted"}


def finding(verdict):
    """With numbers of every kind."""
    other = "refuted" if verdict == "partly" else verdict
    return Finding(
        verdict,
        [
            SubVerdict("a step costs bits", "supported", "0.152 bits per parameter per step, and none without."),
            SubVerdict("the error grows faster", other, "0.105 nats a step [0.101, 0.109] against 0.002."),
        ],
        [
            Measure("growth rate with momentum 0.9", 0.1053, (0.1012, 0.1094), 5, "nats a step", "above 0.05", True),
            Measure("smallest p of a permutation test", 1.2e-5, None, 5, "", "below 0.01", other != "refuted"),
            Measure("steps until all is lost", None, None, 5, "steps", "at least 100", None),
            Measure("growth rate without friction", 0.002, (0.001, 0.003), 5, "nats a step", control=True),
            Measure("energy, largest change", -0.00042, None, 5, "", "below 1e-2 in magnitude", True, control=True),
            Measure("bits that differ after the way back", 0, None, 5, "bits", "0", True, "implementation check"),
        ],
        ["seed 3: did not fit the training set within 4,000 steps"] if verdict == "partly" else [],
    )


def write_records(folder):
    """A folder of records, a file for each toy claim."""
    folder.mkdir(exist_ok=True)
    for id, toy in CLAIMS.items():
        given = evidence(seed=id)
        record = {
            **records.words(toy),
            **asdict(finding(VERDICTS[id])),
            "thresholds": dict(toy.thresholds),
            "scale": "laptop",
            "seeds": list(range(5)),
            "evidence": given,
            "settings": {"growth": {"steps": 400}},
            "code": {"growth": "0.1.0+0123456789abcdef"},
            "command": f"loschmidt claims run {id} --scale laptop --out results",
            "environment": {"torch": "2.13.0+cpu", "python": "3.11.7", "threads": 1, "autocast": ""},
            "seconds": 512.25,
        }
        write_json(folder / f"claim-{id:02}-laptop.json", {"claims": [record]})
    return folder
