"""Grokked and wound back: the run turns when it knows, exact ways return, and the words are those of the evidence."""

import json

import pytest

from loschmidt.claims import arrow_grokked, grok_search
from loschmidt.claims.c10_reversibility import CLAIM

pytest.importorskip("scipy")

TINY = next(part for part in CLAIM.parts if part.name == arrow_grokked.GROKKED).settings["smoke"]
T = CLAIM.thresholds


def silent(share, **facts):
    assert 0 <= share <= 1


def test_the_run_turns_at_the_look_that_knows_and_comes_back_to_the_bit(monkeypatch):
    monkeypatch.setattr(arrow_grokked, "GENERALISED", -1.0)  # the first look
    found = arrow_grokked.grokked(TINY, 100, silent)
    assert found["turn_step"] == 10 and found["step"] == [10] and found["energy_change"] < grok_search.ENERGY
    assert [(way["kind"], way["exact"]) for way in found["ways"]] == [
        ("none", True),
        ("momenta", False),
        ("random", False),
    ]
    assert found["ways"][0]["end"]["agreement"] == 1.0 and found["ways"][0]["end"]["test"] == found["start"]["test"]
    json.dumps(found, allow_nan=False)


def test_what_never_came_to_know_has_no_ways_and_is_listed():
    found = arrow_grokked.grokked(TINY, 100, silent)
    assert found["ways"] == [] and found["turn_step"] is None and found["step"][-1] == 120
    evidence = {arrow_grokked.GROKKED: [{"seed": 7} | found]}
    assert arrow_grokked.left_out(evidence) == ["seed 7, arrow: grokked: did not fit"]
    assert arrow_grokked.picture(evidence) is None
    assert [m.value for m in arrow_grokked.measures(evidence, T)] == [0.0]
    assert arrow_grokked.measures({arrow_grokked.GROKKED: [{"seed": 0} | found]}, T)[0].n == 0, "it was found there"


def way(kind, size, lowest, agreement):
    end = {"step": 0, "train": 0.0, "test": lowest, "agreement": agreement, "relative": 0.0}
    curve = {"step": [20, 0], "test": [1.0, lowest]}
    return {"kind": kind, "size": size, "lowest_test": lowest, "ended_by": None, "end": end, "curve": curve}


def test_measures_are_of_those_that_grokked():
    ways = [way("none", None, 0.05, 1.0), way("random", 1e-9, 0.9, 0.1)]
    one = {"start": {"test": 0.05}, "step": [10, 20], "train": [1.0, 1.0], "test": [0.0, 1.0], "ways": ways}
    several = [one | {"seed": s, "outcome": "grokked" if s > 3 else "generalised"} for s in range(3, 8)]
    evidence = {arrow_grokked.GROKKED: several}
    by_name = {m.name: m for m in arrow_grokked.measures(evidence, T)}
    assert next(m for n, m in by_name.items() if "share of seeds" in n).value == pytest.approx(0.8)
    assert by_name["arrow, grokked, wound back exactly: share that returns"].value == 1.0
    nudged = by_name["arrow, grokked, wound back after a nudge of 1e-09: share that returns"]
    assert nudged.value == 0.0 and nudged.n == 4
    assert "seed 4" in arrow_grokked.picture(evidence).caption
    assert arrow_grokked.left_out(evidence) == ["seed 3, arrow: grokked: generalised"]
    assert arrow_grokked.measures({}, T) == []
