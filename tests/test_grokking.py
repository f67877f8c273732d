"""Claim 3's part on grokking: what its runs give, and what its rule makes of them."""

import json
import math

import pytest

from loschmidt.claims import grok_search, grokking
from loschmidt.claims.c03_cooling import CLAIM
from loschmidt.claims.record import Finding

pytest.importorskip("scipy")

T = CLAIM.thresholds
TINY = next(part for part in CLAIM.parts if part.name == grokking.GROKKING).settings["smoke"] | {"steps": 40}
NONE = Finding("partly", [], [])


def silent(share, **facts):
    assert 0 <= share <= 1


def run(momentum=1.0, fit=50, knows=400, energy=1e-3, ended=None):
    steps = list(range(10, 1001, 10))
    looks = {"step": steps, "train": [float(s >= fit) for s in steps], "test": [float(s >= knows) for s in steps]}
    found = grok_search.verdict(looks, energy if momentum == 1 else 0.0, ended)
    return {"momentum": momentum, "bits": 0.0, "energy_change": energy, "ended_by": ended} | looks | found


def evidence(several, cooled=()):
    rows = [[a, *b] for a, b in zip(several, cooled or [()] * len(several), strict=True)]
    return {grokking.GROKKING: [{"seed": 10 + i, "runs": row} for i, row in enumerate(rows)]}


def test_runs_are_of_one_network_with_and_without_friction():
    free, cooled = grokking.runs(TINY, 100, silent)["runs"]
    assert free["step"] == cooled["step"] == [10, 20, 30, 40]
    assert free["bits"] == 0 and cooled["bits"] == pytest.approx(40 * math.log2(1 / 0.9998), rel=0.2)
    assert free["energy_change"] < grok_search.ENERGY and free["outcome"] == "did not fit"
    assert grokking.runs(TINY | {"below": 10}, 10, silent) == {"runs": []}


@pytest.mark.parametrize(
    ("several", "cooled", "verdict"),
    [
        ([run()] * 5, (), "refuted"),
        ([run()] * 4 + [run(knows=100)], (), "refuted"),
        ([run()] * 2 + [run(knows=100)] * 3, (), "partly"),
        ([run(knows=2000)] * 5, [[run(0.9998)]] * 5, "supported"),
        ([run(knows=2000)] * 5, [[run(0.9998, knows=2000)]] * 5, "inconclusive"),
        ([run()] * 2, (), "inconclusive"),
        ([run(energy=0.1)] * 3 + [run()] * 2, (), "inconclusive"),
        ([run()] * 3 + [run(ended="p is full")], (), "refuted"),
    ],
)
def test_the_rule(several, cooled, verdict):
    finding = grokking.with_grokking(NONE, evidence(several, cooled), T)
    (sub,) = finding.sub_verdicts
    assert (sub.verdict, finding.verdict) == (verdict, "partly"), "it decides no verdict"
    assert len(finding.left_out) == sum(not grokking._counts(r) for r in several)
    json.dumps([m.value for m in finding.measures], allow_nan=False)


def test_delays_and_falls_are_measured():
    several = [run(), run(knows=500)]
    several[1]["test"][-1] = 0.7
    by_name = {m.name: m for m in grokking.with_grokking(NONE, evidence(several), T).measures}
    words = "grokking, without friction"
    assert by_name[f"{words}: delay, over the steps that fitting took"].value == pytest.approx((340 + 440) / 2 / 50)
    assert by_name[f"{words}: step at which it knew how to add"].value == 450
    assert by_name[f"{words}: largest fall of test accuracy afterwards"].value == pytest.approx(0.15)
    assert by_name[f"{words}: largest |change of H|"].met


def test_nothing_was_run_and_nothing_is_said():
    assert grokking.with_grokking(NONE, {}, T) is NONE and grokking.picture({}) is None
    drawn = grokking.picture(evidence([run()] * 2, [[run(0.9998)]] * 2))
    assert [s.role for s in drawn.series] == ["evidence", "theory", "seed", "control", "seed"]
