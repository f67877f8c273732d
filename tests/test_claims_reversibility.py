"""Claim 10: ways back carry their own numbers, controls return and twins don't, and the rule makes each verdict."""

import json
import math

import pytest
import torch

from loschmidt import physics
from loschmidt.claims import return_parts as parts
from loschmidt.claims import return_rule as rule
from loschmidt.claims.c10_reversibility import CLAIM
from loschmidt.claims.returns import Meter, Way, go_back, go_out, lab, nudges, samples, turns

pytest.importorskip("scipy")

TINY = {
    "p": 5,
    "width": 8,
    "heads": 2,
    "hidden": 16,
    "train_fraction": 0.6,
    "optimizer_settings": {"lr": 0.1, "eta": 1.0, "weight_decay": 3e-3},
    "onset": 0.0,  # so that the first look is the onset
    "steps": 30,
}
GRID = {
    "turns": {"before": 0.6, "late": None},
    "sizes": [1e-9, 1e-2],
    "random": 1,
    "gauge": 1,
    "growth": 1,
    "beyond": {"before": 8},
    "beyond_size": 1e-3,
    "half_step": True,
}
ARM = {"turns": {"late": None}, "sizes": [1e-3], "random": 1}
T = CLAIM.thresholds


def say(share, **facts):
    assert 0 <= share <= 1


def tiny(seed=100, **settings):
    return lab(TINY | settings, seed, Meter(say, 1e6))


def run(part, settings, seed=100):
    return {"seed": seed, "settings": settings, "seconds": 0.0} | part(settings, seed, say)


@pytest.fixture(scope="module")
def evidence():
    found = {
        rule.LATTICE: [run(parts.lattice, TINY)],
        rule.FLOATS: [run(parts.floats, TINY | {"shares": [0.5, 1.0]})],
        rule.GRID: [run(parts.perturbed, TINY | GRID)],
        rule.BATCHES: [run(parts.batches, TINY | ARM | {"batch_size": 5})],
        rule.FRICTION: [
            run(
                parts.friction,
                TINY | ARM | {"optimizer": "SGD", "optimizer_settings": {"lr": 0.05, "momentum": 0.9}},
            )
        ],
    }
    return json.loads(json.dumps(found, allow_nan=False))


def test_the_lattice_returns_and_its_twin_does_not(evidence):
    seen = evidence[rule.LATTICE][0]
    assert seen["returned"] is True and seen["bits"] == 0
    assert seen["twin_returned"] is False and 0 < seen["twin_distance"] < 1e-9


def test_controls_return_with_every_bit_and_what_is_different_does_not(evidence):
    for part in (rule.GRID, rule.BATCHES, rule.FRICTION):
        exact = {way["kind"]: way["exact"] for way in evidence[part][0]["returns"] if way["turn"] == "late"}
        assert exact.pop("none") is True
        assert exact and not any(exact.values()), exact


def test_a_way_back_has_its_own_accuracies():
    it = tiny()
    out = go_out(it, 30, 0.0, look_every=1)
    at = dict(zip(out["step"], out["test"], strict=True))
    before = it.traj.digest()
    control, far, floats = go_back(
        it,
        "late",
        [Way("none", None), Way("random", physics.Nudge(0.5), 0.5), Way("floats", physics.Floats(torch.float64))],
    )
    assert it.traj.digest() == before
    own = dict(zip(control["curve"]["step"], control["curve"]["test"], strict=True))
    assert all(own[step] == at[step] for step in at) and len(set(at.values())) > 2
    assert control["curve"]["test"] == floats["curve"]["test"] != far["curve"]["test"]
    assert control["end"]["agreement"] == 1.0 and control["end"]["relative"] == 0
    assert control["lowest_test"] == pytest.approx(min(control["curve"]["test"][1:]), abs=1e-6)


def test_energy_change_is_of_all_steps():
    out = go_out(tiny(), 30, 0.0, look_every=30)
    every = go_out(tiny(), 30, 0.0, look_every=1)
    assert out["energy_change"] == pytest.approx(max(abs(e - every["energy"][0]) for e in every["energy"]), abs=1e-5)
    finer = go_out(lab(TINY, 100, Meter(say, 1e6), 0.5), 60, 0.0)
    assert 0 < finer["energy_change"] < out["energy_change"]


def test_turns_are_shares_of_the_onset_and_come_latest_first():
    assert turns({"a": 0.5, "b": 1.5, "end": None}, 100, 120) == {"b": 120, "end": 120, "a": 50}


def test_gauge_directions_hide_what_random_ones_show():
    it = tiny()
    go_out(it, 10, 0.0)
    size = 1e-3
    random, gauge = nudges(it, [size], 1, 1, 0)
    outputs = []
    for way in (None, random, gauge):
        with it.traj.branch() as traj:
            if way is not None:
                way.change.begin(traj, physics.state.Layout(traj.optimizer))
            outputs.append(it.observe(traj.model))
    moved = [float((x - outputs[0]).norm()) for x in outputs[1:]]
    assert moved[1] < 0.05 * moved[0]


def test_one_sample_once_is_another_loss_in_one_step_only():
    it = tiny()
    go_out(it, 6, 0.0)
    once, throughout = samples(it)
    with it.traj.branch() as traj:
        once.change.begin(traj, None)
        assert [torch.equal(traj.data(step)[0], it.train[0]) for step in range(6)] == [True] * 5 + [False]
    with it.traj.branch() as traj:
        throughout.change.begin(traj, None)
        assert not any(torch.equal(traj.data(step)[0], it.train[0]) for step in range(6))


def test_floats_err_by_their_rounding(evidence):
    seen = evidence[rule.FLOATS][0]
    single, double = (seen[name][-1]["end"]["relative"] for name in ("float32", "float64"))
    assert 1e-9 < single < 1e-4 and double < 1e-6 * single
    assert seen["float64"][0]["turn_step"] == 15 and seen["float64"][-1]["curve"]["step"][-1] == 0


def test_forward_growth_says_how_far_a_small_perturbation_comes(evidence):
    seen = evidence[rule.GRID][0]
    way = next(w for w in seen["returns"] if (w["turn"], w["kind"], w["size"]) == ("late", "random", 1e-9))
    assert 0.1 < way["onset_distance"] / rule.predicted_distance(seen, way) < 10
    assert 0.1 < way["end"]["relative"] / rule.predicted_distance(seen, way, "start") < 10


def test_a_prediction_that_is_wrong_counts_as_wrong():
    for wrong, hits in ((1.0, 1.0), (1e8, 0.0)):
        evidence = made_up(lambda what, turn: True)
        for seen in evidence[rule.GRID]:
            seen["norms"] = dict.fromkeys(seen["norms"], 1 / wrong)
        found = {m.name: m.value for m in CLAIM.judge(evidence, T).measures if m.name.startswith("forward growth")}
        assert list(found.values()) == [hits, hits]


def test_the_way_past_the_start_goes_below_step_0(evidence):
    ways = {w["kind"]: w for w in evidence[rule.GRID][0]["returns"]}
    assert min(ways["past the start"]["beyond"]["step"]) == -8
    assert ways["none"]["beyond"]["step"] == []


def test_evidence_of_a_run_can_be_judged_and_drawn(evidence):
    finding = CLAIM.judge(evidence, T)
    assert finding.verdict == "inconclusive"  # one seed
    assert all(m.value is None or math.isfinite(m.value) for m in finding.measures)
    CLAIM.pictures(evidence)


def test_pictures_show_the_return_first_and_the_prediction():
    drawn = CLAIM.pictures(made_up(lambda what, turn: turn == "early"))
    assert [p.title for p in drawn] == [
        "What comes back",
        "The way back",
        "How far off at the onset",
        "The error of floats",
    ]
    assert all(len(s.x) == len(s.y) > 0 for p in drawn for s in p.series)
    shares = {s.name: s.y for s in drawn[0].series}
    assert shares["late"] == [0.0]
    assert CLAIM.pictures({}) == []


# -- the rule, on evidence made up ---------------------------------------------------------------------


def way(turn, kind, back, size=None):
    end = {"step": 0, "train": 0.0, "test": 0.04, "agreement": 1.0 if back else 0.1, "relative": 0.0}
    return {
        "turn": turn,
        "turn_step": {"early": 50, "late": 200}[turn],
        "kind": kind,
        "size": size,
        "draw": 0,
        "exact": back,
        "ended_by": None,
        "end": end,
        "lowest_test": 0.0 if back else 0.6,
        "curve": {"step": [200, 0], "test": [0.9, 0.04], "agreement": [0.0, 1.0], "relative": [0.0, 0.0]},
        "beyond": {"step": [], "test": []},
        "onset_distance": 1e-3 if back else 0.5,
    }


def made_up(back, seeds=5, energy=1e-3, late=0.9, lattice=True):
    """Evidence in which `back(what, turn)` says what returns."""
    out = {"step": [0, 200], "train": [0, 1], "test": [0.04, late], "energy": [], "energy_change": energy, "onset": 100}
    out["ended_by"] = None
    kinds = ("random", "gauge", "one sample, once", "one sample, throughout")
    common = {"settings": {"optimizer_settings": {"lr": 0.1}}, "start": {"train": 0.0, "test": 0.04}, "out": out}
    grid = [way(t, k, back(k, t), 1e-7 if k in ("random", "gauge") else None) for t in ("early", "late") for k in kinds]
    grid.append(way("late", "none", True))
    turns = {"late": {"step": 200, "norm": 1.0}}
    grown = [math.log(1e4 if back("random", "late") else 1e8)]
    growth = {"late": {"onset": grown, "start": grown}}
    curve = {"step": [200, 180, 150, 100, 50, 0], "relative": [0.0, 10**-5.6, 1e-5, 1e-4, 2e-3, 1e-2]}
    floats = {
        dtype: [
            {"turn_step": s, "ended_by": None, "end": way(t, "", back(dtype, t))["end"], "curve": curve}
            for t, s in (("early", 50), ("late", 200))
        ]
        for dtype in ("float32", "float64")
    }
    parts = {
        rule.LATTICE: {"returned": lattice, "twin_returned": False},
        rule.FLOATS: common | floats,
        rule.GRID: common
        | {
            "half": {"energy_change": energy / 2},
            "turns": turns,
            "growth": growth,
            "norms": {"onset": 1.0, "start": 1.0},
            "returns": grid,
        },
        rule.BATCHES: common | {"returns": [way("late", "fresh batches", back("fresh", "late"))]},
        rule.FRICTION: common | {"returns": [way("late", "random", False, 1e-7)]},
    }
    return {name: [{"seed": seed} | seen for seed in range(seeds)] for name, seen in parts.items()}


def verdicts(finding):
    return finding.verdict, [sub.verdict for sub in finding.sub_verdicts]


def test_all_that_returns_is_supported():
    assert verdicts(CLAIM.judge(made_up(lambda what, turn: True), T)) == ("supported", ["supported"] * 6)


def test_what_returns_from_before_the_onset_only_is_partly():
    found = CLAIM.judge(made_up(lambda what, turn: turn == "early" or what == "float64"), T)
    assert verdicts(found) == ("partly", ["supported", "partly", *["refuted"] * 4])
    by_name = {m.name: m for m in found.measures}
    assert by_name["float32: growth rate of the error from the last turn back to the onset"].value == pytest.approx(
        math.log(10) / 5
    )
    assert by_name["random direction, size 1e-07: share of turns before the onset with return"].value == 1
    assert by_name["random direction, size 1e-07: share of turns after the onset with return"].value == 0


def test_what_returns_from_nowhere_is_refuted():
    assert CLAIM.judge(made_up(lambda what, turn: False), T).verdict == "refuted"


@pytest.mark.parametrize("what", ["fresh", "one sample, throughout"])
def test_one_kind_that_returns_is_more_than_the_lattice(what):
    assert CLAIM.judge(made_up(lambda kind, turn: kind == what), T).verdict == "partly"


@pytest.mark.parametrize(
    "less", [{"seeds": 2}, {"energy": 2e-2}, {"late": 0.3}, {"lattice": False}], ids=lambda less: next(iter(less))
)
def test_what_lacks_a_ground_is_inconclusive(less):
    finding = CLAIM.judge(made_up(lambda what, turn: True, **less), T)
    assert finding.verdict == "inconclusive"
    assert len(finding.left_out) == (5 if {"energy", "late"} & set(less) else 0)


def test_an_arm_that_blew_up_is_listed_and_not_judged():
    out = go_out(tiny(optimizer="SGD", optimizer_settings={"lr": 1e4, "momentum": 0.9}), 30, 0.0)
    assert out["ended_by"] and out["onset"] is None
    evidence = made_up(lambda what, turn: True)
    evidence[rule.FRICTION][0]["out"] = out
    finding = CLAIM.judge(evidence, T)
    assert finding.verdict == "supported" and finding.left_out == [f"seed 0, friction: {out['ended_by']}"]


def test_a_seed_that_missed_its_precondition_is_left_out_of_the_statistics():
    evidence = made_up(lambda what, turn: True)
    bad = made_up(lambda what, turn: False, energy=1.0)
    for part, several in evidence.items():
        several[0] = bad[part][0]
    finding = CLAIM.judge(evidence, T)
    assert finding.verdict == "supported" and finding.left_out[0].startswith("seed 0: |change of H| was 1")


@pytest.mark.parametrize(
    "change",
    [{"ended_by": "p is full"}, {"end": {"agreement": 0.89}}, {"end": {"test": 0.10}}, {"end": {"step": 1}}],
    ids=str,
)
def test_each_part_of_the_rule_of_return_can_fail(change):
    good = way("late", "random", True)
    assert rule.returned(good, 0.04, T)
    bad = good | {"end": good["end"] | change.get("end", {})} | {k: v for k, v in change.items() if k != "end"}
    assert not rule.returned(bad, 0.04, T)
