"""Claim 3: runs note what they are, controls do what they say, measures find what is there, the rule judges."""

import json
import math

import pytest
import torch

from loschmidt.claims import adding, try_claim
from loschmidt.claims import breathing_measures as pure
from loschmidt.claims import breathing_parts as parts
from loschmidt.claims import breathing_rule as rule
from loschmidt.claims.breathing_runs import Looks, begin, go, sweep
from loschmidt.claims.breathing_sphere import Sphere
from loschmidt.claims.c03_cooling import CLAIM
from loschmidt.physics.state import Layout
from loschmidt.tasks.modular_addition import loss

pytest.importorskip("scipy")

TINY = CLAIM.parts[0].settings["smoke"] | {"lr": 0.02, "steps": 40, "every": 10}
T = CLAIM.thresholds


def say(share, **facts):
    assert -1e-9 <= share <= 1 + 1e-9


# -- runs ------------------------------------------------------------------------------------------------


def test_friction_is_booked_to_the_nat_and_to_the_bit():
    settings = TINY | {"runs": [{}, {"momentum": 0.99}], "steps": 200}
    free, cooled = sweep(settings, 100, say)["runs"]
    assert free["curve"]["taken"][-1] == 0 and free["curve"]["bits"][-1] == 0
    assert free["leak"] == free["energy_change"] > 0
    curve = cooled["curve"]
    assert curve["bits"] == pytest.approx([step * math.log2(1 / 0.99) for step in curve["step"]], rel=0.01)
    assert curve["taken"][-1] > 10 * cooled["leak"], "what H lost is what friction took"
    lost = curve["energy"][0] - curve["energy"][-1]
    assert lost == pytest.approx(curve["taken"][-1] - curve["taken"][0], abs=2 * cooled["leak"])


@pytest.mark.parametrize("last", [0, 25])
def test_a_run_that_breaks_off_keeps_what_it_saw(last, monkeypatch):
    calls = [0]

    def breaks(model, batch):
        calls[0] += 1
        return loss(model, batch) * (math.nan if calls[0] > last + 3 else 1.0)  # two calls of the preflight, one more

    monkeypatch.setattr(adding, "loss", breaks)
    found = sweep(TINY | {"runs": [{}, {"momentum": 0.9998}]}, 100, say)
    assert found["runs"][0]["curve"].get("step", []) == [10, 20][: 2 * bool(last)]
    assert all("nan" in run["ended_by"] for run in found["runs"])
    evidence = made_up() | {rule.FREE: [{"seed": 10} | found], rule.SIZES: [{"seed": 10} | found]}
    finding = CLAIM.judge(json.loads(json.dumps(evidence, allow_nan=False)), T)
    assert len(finding.left_out) == 4 and finding.verdict == "inconclusive"
    CLAIM.pictures(evidence)


def test_seeds_beyond_the_limit_have_no_runs():
    assert sweep(TINY | {"runs": [{}], "below": 10}, 10, say) == {"runs": []}
    assert parts.melting(TINY | {"below": 10}, 11, say) == parts.at_a_trough(TINY | {"below": 10}, 11, say) == {}


def test_a_sphere_keeps_norm_and_energy():
    net, traj = begin(TINY, 100)
    go(traj, 60, lambda t: None)
    state = Layout(traj.optimizer).read()
    sphere = Sphere(net, state, 0.02, 1e-3)
    sphere.run(50, 10, lambda: None)
    assert float(sphere.q.norm()) == pytest.approx(float(state[0].norm()), rel=1e-12)
    assert abs(float(sphere.p @ sphere.q)) < 1e-9 * float(sphere.q.norm() * sphere.p.norm())
    assert not torch.equal(sphere.q, state[0])
    finer = Sphere(net, state, 0.01, 1e-3)
    finer.run(100, 10, lambda: None)
    assert 0.3 < finer.energy_change / sphere.energy_change < 0.7, "an error of first order, and no friction"


def test_controls_at_a_trough_leave_the_run_and_begin_where_they_say():
    settings = TINY | {"window": 20, "learner": 0.99, "cap": 20, "relearn_every": 10, "share": 0.9, "steps": 200}
    for seed in range(100, 110):
        found = parts.at_a_trough(settings, seed, say)
        if "peak" in found:
            break
    assert found["peak"]["returned"] is found["trough"]["returned"] is True
    held = found["motion"]["at the peak's norm"]["norm"]
    assert held == pytest.approx([found["peak"]["norm"]] * len(held), rel=1e-5)
    free, other = found["motion"]["free"], found["motion"]["random momenta"]
    assert free["step"] == other["step"] and free["norm"] != other["norm"]
    at = found["peak"]["step"] + 20
    net, traj = begin(settings, seed)
    looks = Looks(net, traj, 10, at, lambda share: None)
    go(traj, at, looks)
    assert free["test"] == pytest.approx(looks.rows["test"][-2:], abs=1e-5), "free is the run itself"
    assert set(found["relearning"]) == {"trough", "fresh", "fresh at the trough's norm"}
    json.dumps(found, allow_nan=False)


def test_a_kick_raises_h_by_its_energy():
    found = parts.melting(TINY | {"momentum": 0.99, "kicks": [0.0, 0.5], "window": 20}, 100, say)
    none, kick = found["kicks"]
    frozen = found["frozen"]["square"]
    assert none["square"] == pytest.approx(frozen, rel=1e-9)
    assert math.log((1 + kick["square"]) / (1 + frozen)) == pytest.approx(0.5, abs=1e-12)
    assert kick["energy_change"] < 0.02 and found["frozen"]["bits"] > 0


# -- measures --------------------------------------------------------------------------------------------


def wave(n=200, length=50, depth=0.3, shift=0):
    values = [0.8 - depth / 2 * (1 - math.cos(2 * math.pi * (i - shift) / length)) for i in range(n)]
    return {"step": [10 * i for i in range(n)], "test": values}


def test_breaths_are_found_with_period_and_depth():
    curve = wave()
    assert pure.depth(curve["test"]) == pytest.approx(0.3)
    assert pure.period(curve, 0, 0.1, 0.5) == pytest.approx(50 * 10 * 0.5)
    assert [kind for _, kind in pure.turning_points(curve["test"], 0.1)][:3] == [1, -1, 1]
    assert pure.turning_points(curve["test"], 0.31) == [] and pure.period(curve, 0, 0.31, 0.5) is None
    assert pure.largest_fall([0.1, 0.2, 0.3]) is None and pure.depth([0.1, 0.2]) == 0


@pytest.mark.parametrize("shift", [0, 4, -4])
def test_the_lag_is_found(shift):
    norm = [-v for v in wave()["test"]]
    found = pure.lag(wave(shift=shift) | {"norm": norm}, 0, 25)
    assert found == (pytest.approx(-1.0), shift)
    assert pure.lag(wave() | {"norm": [1.0] * 200}, 0, 25) is None


def test_when_it_froze():
    rising = {"test": [0.0, 0.5, 0.9, 0.92, 0.9, 0.91, 0.9, 0.9]}
    assert pure.frozen_at(rising, 0.05) == 2
    assert pure.frozen_at(wave(), 0.05) is None


def test_brackets():
    assert pure.lock_in([0, 1e-4, 1e-3], [False, False, True]) == (1e-4, 1e-3)
    assert pure.lock_in([0, 1e-4], [True, True]) == (None, 0)
    assert pure.lock_in([0, 1e-4], [False, False]) == (1e-4, None)
    assert pure.lock_in([0, 1, 2, 3], [False, True, False, True]) == (2, 3)
    kicks = [{"energy": e, "test": 0.9 - e / 4} for e in (1.0, 0.1)]
    assert pure.melting_energy(kicks, 0.9, 0.2) == (0.1, 1.0)


# -- the rule, on evidence made up -------------------------------------------------------------------------


def run(depth, best=0.9, momentum=1.0, **more):
    curve = wave(depth=depth)
    n = len(curve["step"])
    test = [v + best - 0.8 for v in curve["test"]]
    rows = {"train": [1.0] * n, "test": test, "norm": [-v for v in test], "square": [1.0] * n}
    rows |= {"taken": [0.01 * i for i in range(n)], "bits": [0.1 * i for i in range(n)]}
    names = ("restricted", "restricted_loss", "excluded_loss", "explained")
    fourier = {"keys": [1]} | {name: [1.0] * n for name in names}
    plain = {"changes": {"momentum": momentum}, "lr": 0.02, "momentum": momentum, "weight_decay": 1e-3}
    seen = {"energy_change": 1e-3, "leak": 1e-3, "ended_by": None, "fourier": fourier}
    return plain | seen | {"curve": curve | rows} | more


def trough(seed, held=0.3, restored=0.1, change=1e-3):
    peak, low = {"test": 0.9, "norm": 30.0}, {"test": 0.6, "norm": 45.0}
    rows = {"step": [10, 20], "train": [1.0, 1.0], "norm": [30.0, 31.0], "square": [1.0, 1.0]}
    motion = {name: rows | {"test": [0.9, 0.6]} for name in ("free", "random momenta", "at the trough's norm")}
    motion["at the peak's norm"] = rows | {"test": [0.9, 0.9 - held]}
    names = [
        f"{a} to the {b}'s norm{words}"
        for a, b in (("trough", "peak"), ("peak", "trough"))
        for words in ("", ", tensor by tensor")
    ]
    steps = {"trough": 200, "fresh": 5000, "fresh at the trough's norm": None}
    return {
        "seed": seed,
        "settings": {"cap": 20_000},
        "energy_change": change,
        "ended_by": None,
        "peak": peak | {"returned": True},
        "trough": low | {"returned": True},
        "scaled": {name: {"train": 1.0, "test": 0.6 + 0.3 * restored} for name in names},
        "motion": motion,
        "held": {"at the peak's norm": 1e-3, "at the trough's norm": 1e-3},
        "relearning": {name: {"steps": s, "reached": 0.9} for name, s in steps.items()},
    }


def melted(seed):
    plain = {"square": 2.0, "ended_by": None, "energy_change": 1e-3}
    kicks = [plain | {"energy": e, "test": 0.9 - 0.2 * e} for e in (0.0, 0.3, 1.0)]
    frozen = {"test": 0.9, "taken": 0.5, "square": 0.5}
    return {"seed": seed, "ended_by": None, "frozen": frozen, "kicks": kicks, "test": [0.2] + [0.9] * 9}


def made_up(free=0.3, cooled=0.01, best=0.9, seeds=5, spread=0.01, **of_trough):
    several = range(10, 10 + seeds)
    return {
        rule.FREE: [{"seed": s, "runs": [run(free + spread * (s % 3), best)]} for s in several],
        rule.HALF: [{"seed": 10, "runs": [run(free)]}],
        rule.SWEEP: [{"seed": s, "runs": [run(cooled, momentum=m) for m in (0.9999, 0.9998)]} for s in several],
        rule.DECAY: [{"seed": 10, "runs": [run(free)]}],
        rule.SIZES: [{"seed": 10, "runs": [run(free)]}],
        rule.TROUGH: [trough(s, **of_trough) for s in several],
        rule.MELT: [melted(s) for s in several],
    }


def verdicts(evidence):
    finding = CLAIM.judge(evidence, T)
    return finding.verdict, [s.verdict for s in finding.sub_verdicts]


@pytest.mark.parametrize(
    ("evidence", "verdict", "subs"),
    [
        (made_up(), "partly", ["refuted", "supported", "supported"]),
        (made_up(free=0.0), "refuted", ["refuted", "refuted", "supported"]),
        (made_up(free=0.0, spread=0.0, cooled=0.0), "refuted", ["refuted", "refuted", "supported"]),
        (made_up(cooled=0.2), "partly", ["refuted", "partly", "supported"]),
        (made_up(held=0.01, restored=0.9), "partly", ["refuted", "supported", "refuted"]),
        (made_up(held=0.01), "partly", ["refuted", "supported", "partly"]),
        (made_up(best=0.3), "inconclusive", ["supported", "inconclusive", "supported"]),
        (made_up(seeds=2), "inconclusive", ["inconclusive"] * 3),
    ],
)
def test_the_rule(evidence, verdict, subs):
    assert verdicts(evidence) == (verdict, [*subs, "inconclusive"])


def test_runs_that_lost_energy_or_never_fit_are_listed_and_do_not_count():
    evidence = made_up()
    evidence[rule.FREE][0]["runs"][0]["energy_change"] = 0.02
    evidence[rule.FREE][1]["runs"][0]["curve"]["train"] = [0.5]
    evidence[rule.TROUGH][2]["energy_change"] = 0.02
    finding = CLAIM.judge(evidence, T)
    assert len(finding.left_out) == 3 and "0.02" in finding.left_out[0] and "0.50" in finding.left_out[1]
    by_name = {m.name: m for m in finding.measures}
    assert by_name["without friction: share of seeds that generalised"].n == 3
    assert by_name["from a peak on, at its norm: largest fall of test accuracy"].n == 4


def test_what_did_not_freeze_and_kicks_that_moved_h_are_listed():
    evidence = made_up()
    evidence[rule.MELT][0]["test"] = [0.9, 0.2] * 5
    evidence[rule.MELT][1]["kicks"][2]["energy_change"] = 0.5
    finding = CLAIM.judge(evidence, T)
    assert [text.split(": ")[0] for text in finding.left_out] == ["seed 10, melting", "seed 11, melting, kick of 1"]
    by_name = {m.name: m for m in finding.measures}
    assert by_name["least kick that melts, of those tried"].n == 3
    assert by_name["frozen networks that no kick tried melted (over the largest)"].value == 1


def test_caps_are_counted_and_numbers_are_those_of_the_evidence():
    by_name = {m.name: m for m in CLAIM.judge(made_up(), T).measures}
    assert by_name["period of a breath"].value == pytest.approx(10.0)
    assert by_name["correlation of test accuracy and norm, without friction"].value == pytest.approx(-1.0)
    assert by_name["least kick that melts, of those tried"].value == 1.0
    assert by_name["largest kick below it that does not"].value == 0.3
    bits = [m.value for name, m in by_name.items() if name.startswith("bits a parameter that taking")]
    assert bits == [pytest.approx(1.0)], "from |p|^2 = 2 to 0.5 is a half of |p|"
    assert by_name["seeds that the weakest friction tried, or none, held still"].value == 5
    name = "relearning: steps from a trough over steps from fresh"
    medians = [m.value for n, m in by_name.items() if n.startswith("relearning") and "median" in n]
    assert medians == [pytest.approx(0.04), pytest.approx(0.01)]
    assert by_name[f"{name} at the trough's norm: fresh at the trough's norm over the cap, trough not"].value == 5
    assert all(m.value is None or math.isfinite(m.value) for m in by_name.values())


def test_pictures_begin_with_breathing_and_freezing():
    drawn = CLAIM.pictures(made_up())
    assert [p.title for p in drawn] == [
        "Breathing and freezing",
        "How much friction locks it in",
        "Inside a breath",
        "From a peak on, at one norm",
        "Melting a frozen network",
    ]
    assert all(len(s.x) == len(s.y) > 0 for p in drawn for s in p.series)
    assert CLAIM.pictures({}) == []


def test_the_smoke_scale_runs_and_is_judged():
    record = try_claim(CLAIM, scale="smoke")
    assert record.verdict == "inconclusive" and record.seeds == [10]
    assert set(record.evidence) == {part.name for part in CLAIM.parts}
