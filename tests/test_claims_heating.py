"""Claim 11: its runs do what they say, at the smallest scale, and its rule finds what is put into evidence."""

import copy
import json
import math

import numpy as np
import pytest

from loschmidt.claims import heating_runs as runs
from loschmidt.claims.c11_heating import CLAIM
from loschmidt.claims.heating_judge import judge
from loschmidt.claims.heating_pictures import pictures

GRID = {"time": 2.0, "dt": 0.05, "dts": [0.025, 0.1], "batch": 8, "batch_sizes": [8], "repeats": 3, "batches": 16}


def silent(share, **facts):
    assert 0 <= share <= 1


@pytest.fixture(scope="module")
def origin():
    traj, _ = runs.start(0, 4, 0.05)
    return traj.seek(40)


# -- the runs ------------------------------------------------------------------------------------------


def test_heat_of_the_full_batch_is_its_change_of_energy(origin):
    """The sum of a batch's potential along drifts telescopes where all batches are one; with batches it does not."""
    full = runs.kicked(origin, None, 0.05, 1.0, 0, "test")
    assert full["heat"] == pytest.approx(full["change"], abs=1e-9)
    assert abs(full["heat"]) < 1e-2
    small = runs.kicked(origin, 4, 0.05, 1.0, 4, "test")
    assert abs(small["heat"] - small["change"]) > 1e-4


def test_heat_and_change_have_the_same_mean(origin):
    found = [runs.kicked(origin, 4, 0.1, 2.0, 4, r) for r in range(24)]
    gap = np.array([run["heat"] - run["change"] for run in found])
    assert abs(gap.mean()) < 3 * gap.std(ddof=1) / math.sqrt(len(gap))
    heat, change = (np.std([run[name] for run in found]) for name in ("heat", "change"))
    assert heat < change, "what is taken out is noise"


def test_a_copy_leaves_the_state_alone(origin):
    before = origin.digest()
    first, second = (runs.kicked(origin, 8, 0.05, 1.0, 4, "same") for _ in range(2))
    assert first == second
    assert origin.digest() == before


def test_noise_heats_as_predicted_from_rest():
    found = runs.grid(GRID | {"burn": 0, "burn_batch": 4}, 0, silent)
    assert len(found["rows"]) == 3 and {c["dt"] for c in found["controls"]} == {0.025, 0.05, 0.1}
    for row in found["rows"]:
        assert 0.5 < row["heat"] / row["predicted"] < 2, row
        assert row["square"] < 0.5
    json.dumps(found, allow_nan=False)


def test_cooled_runs_pay_and_go_back():
    traj, test = runs.start(0, 16, 0.05, keep=0.99, delta_energy=1.0)
    start = traj.digest()
    found = runs.follow(traj, test, 20, 4, 4, silent)
    assert found["bits"][-1] / 20 == pytest.approx(math.log2(1 / 0.99), rel=1e-3)
    assert len(found["steps"]) == len(found["full"]) == len(found["predicted"]) == len(found["bits"]) == 5
    assert found["mean"][0] == pytest.approx(found["mean"][1], abs=0.3), (
        "the start's momentum is there at the first look"
    )
    assert traj.seek(0).digest() == start


def test_evidence_of_runs_can_be_judged_and_drawn():
    """Each part at a size of no meaning: what it returns is what the rule and the pictures read, through JSON."""
    long = {"dt": 0.05, "batch": 16, "smaller": 4, "keep": 0.999, "batches": 4, "steps": 12, "looks": 3}
    sizes = {"growth": long, "cooling": long}
    sizes |= {
        name: GRID | {"time": 1.0, "repeats": 1, "batch_sizes": [2, 8], "batches": 4, "burn": 0}
        for name in ("from rest", "heated")
    }
    evidence = {}
    for part in CLAIM.parts:
        settings = sizes[part.name] | {"burn_batch": 4}
        found = part.run(settings, 0, silent) | {"seed": 0, "settings": settings, "seconds": 1.0}
        evidence[part.name] = [json.loads(json.dumps(found, allow_nan=False))]
    verdict, _, found = verdicts(evidence)
    assert verdict == "inconclusive", "one seed has no interval"
    assert {m.n for m in found.measures} <= {0, 1} and not found.left_out
    assert len(pictures(evidence)) == 4


# -- the rule ------------------------------------------------------------------------------------------


def arm(mean, square=10.0, predicted=None, bits=None, bill=None, half=1):
    steps = np.arange(len(mean)) * 10.0 * half
    flat = np.zeros(len(mean))
    return {
        "steps": steps.tolist(),
        "full": list(mean),
        "mean": list(mean),
        "square": [square] * len(mean),
        "predicted": list(flat if predicted is None else predicted),
        "bits": list(flat if bits is None else bits),
        "bill": list(flat if bill is None else bill),
        "share": 0.8,
        "accuracy": 0.9,
        "skipped": 0,
    }


def made(shape=lambda x: np.log1p(50 * x), power=-1.0, factor=1.0, swing=1e-3, seeds=5):
    """Evidence of runs whose H follows a shape, with noise that differs from seed to seed."""
    x, out = np.linspace(0, 1, 101), {"growth": [], "from rest": [], "heated": [], "cooling": []}
    for seed in range(seeds):
        luck = 1 + 0.02 * (seed - 2)
        h, flat = shape(x) * luck, swing * np.sin(9 * x)
        long = {
            "with replacement": arm(h, predicted=h / factor),
            "without replacement": arm(h / 3, predicted=h),
            "full batch": arm(flat),
            "full batch, half the step": arm(flat / 2, half=2),
        }
        about = {"seed": seed, "settings": {"dt": 0.05, "batch": 8, "smaller": 4}}
        out["growth"].append(about | {"dt": 0.05, "arms": long})
        for part, square in (("from rest", 0.2), ("heated", 15.0)):
            rows = []
            for batch, dt in [(8, 0.01), (8, 0.05), (8, 0.1), (4, 0.05), (64, 0.05)]:
                heat = dt**2 * batch**power * luck
                row = {"batch": batch, "dt": dt, "steps": round(4 / dt), "square": square}
                row |= {"heat": heat * row["steps"], "plain": heat * row["steps"]}
                rows.append(row | {"predicted": heat * row["steps"] / factor})
            out[part].append(about | {"rows": rows, "controls": [{"dt": 0.05, "change": 1e-3}]})
        heat = 1e-3 * np.arange(101) * 10 * luck
        price = heat / (2 * math.log(2) * 0.8)
        cooled = {
            "free": arm(h),
            "free, without replacement": arm(h / 3, predicted=h),
            "rescale": arm(flat, bits=price, bill=price / factor),
            "friction": arm(flat, bits=price, predicted=heat / factor),
            "rescale, smaller batches": arm(flat, bits=2 * price, bill=price),
            "rescale, full batch": arm(flat),
        }
        out["cooling"].append(about | {"dt": 0.05, "keep": 0.999, "arms": cooled})
    return out


def verdicts(evidence):
    found = judge(evidence, CLAIM.thresholds)
    return found.verdict, {s.name: s.verdict for s in found.sub_verdicts}, found


def test_evidence_as_the_claim_has_it_supports_it():
    verdict, parts, found = verdicts(made())
    assert verdict == "supported"
    assert set(parts.values()) == {"supported"}
    assert not found.left_out
    assert all(m.met for m in found.measures if m.threshold)


def test_no_growth_refutes():
    verdict, parts, _ = verdicts(made(shape=lambda x: 0.01 * x))
    assert verdict == parts["adds energy"] == "refuted"


def test_heat_that_does_not_depend_on_batch_size_refutes():
    verdict, parts, _ = verdicts(made(power=0.0))
    assert verdict == "refuted"
    assert parts["exponents"] == "partly", "those in dt are as predicted"


def test_exponents_too_uncertain_to_tell_refute_nothing():
    evidence, flat = made(power=-1.6), made(power=0.0)
    for part in ("from rest", "heated"):
        evidence[part] = [(flat if row["seed"] % 2 else evidence)[part][row["seed"]] for row in evidence[part]]
    verdict, _, found = verdicts(evidence)
    (wide,) = [m for m in found.measures if m.name == "exponent of heat a step in batch size, |p|^2 small"]
    assert wide.interval[0] < -0.5 and wide.interval[1] > 0
    assert verdict == "supported"


@pytest.mark.parametrize(
    ("shape", "continuously", "overall"),
    [
        (lambda x: 3 * x, "partly", "partly"),  # goes on, not like log t
        (lambda x: np.minimum(20 * x, 2.0), "refuted", "partly"),  # stops
    ],
)
def test_growth_of_other_kinds(shape, continuously, overall):
    verdict, parts, _ = verdicts(made(shape=shape))
    assert parts["continuously"] == continuously
    assert verdict == overall


def test_a_formula_that_is_off_is_refuted_and_does_not_decide():
    verdict, parts, _ = verdicts(made(factor=3.0))
    assert parts["formula"] == "refuted"
    assert parts["what cooling costs"] == "partly", "H is held, at another price"
    assert verdict == "supported"


def test_a_seed_whose_control_swings_is_left_out():
    evidence = made()
    evidence["growth"][3]["arms"]["full batch"]["full"][7] += 0.02
    verdict, _, found = verdicts(evidence)
    assert verdict == "supported"
    assert len(found.left_out) == 1 and "seed 3" in found.left_out[0]
    assert next(m for m in found.measures if m.name == "rise of H on the full data").n == 4


def test_too_little_evidence_is_inconclusive():
    assert verdicts({})[0] == "inconclusive"
    assert verdicts(made(seeds=1))[0] == "inconclusive"
    broken = made()
    broken["heated"][0]["rows"][0]["heat"] = -1e-9
    assert verdicts(broken)[1]["exponents"] == "partly"


def test_judging_and_drawing_change_no_evidence():
    evidence = made()
    kept = copy.deepcopy(evidence)
    judge(evidence, CLAIM.thresholds)
    drawn = pictures(evidence)
    assert evidence == kept
    assert len(drawn) == 4 and pictures({}) == []
    for picture in drawn:
        for series in picture.series:
            assert len(series.x) == len(series.y)
            assert "x" not in picture.log or all(x > 0 for x in series.x)
