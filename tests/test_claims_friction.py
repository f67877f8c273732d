"""Claims 2 and 7: their experiments at smoke scale, and verdicts from evidence that is made up."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

import loschmidt as lo
from loschmidt import physics
from loschmidt.claims import c02_friction, c07_weight_decay, decay, friction
from loschmidt.claims.adding import adding
from loschmidt.physics.state import Layout

TWO, SEVEN = c02_friction.CLAIM, c07_weight_decay.CLAIM
SEEDS = range(5)


def silent(share, **facts):
    assert 0 <= share <= 1


def smoke(claim, name):
    part = next(p for p in claim.parts if p.name == name)
    found = part.run(part.settings["smoke"], 0, silent)
    return json.loads(json.dumps(found, allow_nan=False))


@pytest.fixture(scope="module")
def wells():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4)).double()
    x = torch.randn(32, 3).double()
    data = lo.data.Schedule((x, (x[:, 0] > 0).long()), batch_size=8)

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    opt = lo.optim.ECD(model.parameters(), lr=0.1, weight_decay=1e-2, eta=2.0)
    return lo.Trajectory(model, opt, loss, data).seek(20)


def test_settings_scaled_on_the_way_back(wells):
    same, rate, scaled, less = physics.echo(
        wells,
        20,
        [
            physics.Scaled({"weight_decay": 1.0}),
            physics.Rate(1.01),
            physics.Scaled({"lr": 1.01}),
            physics.Scaled({"weight_decay": 0.9}),
        ],
    )
    assert same.exact is True and less.exact is False
    assert rate.rows == scaled.rows and rate.exact is False
    assert scaled.to_dict()["perturbation"] == {"kind": "scaled", "factors": {"lr": 1.01}}


@pytest.mark.parametrize("name", ["weight_decays", "integrator"])
def test_what_cannot_be_scaled_is_refused(wells, name):
    with pytest.raises(lo.InvalidSetting, match=name):
        physics.echo(wells, 5, physics.Scaled({name: 2.0}))
    assert wells.step == 20


def test_a_flipped_loss_pushes_uphill_and_moves_on(wells):
    layout, opt = Layout(wells.optimizer), wells.optimizer
    with wells.branch() as traj:
        q, p = layout.read()
        before = physics.Scaled({"lr": -1.0, "eta": -1.0}).begin(traj, layout)
        traj.seek(19, on_step=before)
        there, gained = layout.read()
        force = torch.cat([x.grad.reshape(-1) for x in opt.param_groups[0]["params"]]) + 1e-2 * there
        potential = float(traj._last_loss) + 0.5e-2 * float(there @ there)
    assert torch.allclose(there, q + 0.2 * p / (1 + p @ p), atol=1e-9)  # on with the momentum it had
    assert torch.allclose(gained, p + 0.1 * 2.0 * force / potential, atol=1e-9)  # and up


def test_the_tape_holds_what_friction_destroys():
    arms = smoke(TWO, "bits")["arms"]
    for momentum in (0.5, 0.9, 0.98, 0.99):
        assert arms[f"momentum {momentum}"]["bits"] == pytest.approx(-math.log2(momentum), rel=5e-3)
    assert arms["momentum 1.0"]["bits"] == arms["ECD"]["bits"] == 0


def test_errors_grow_by_friction_and_little_without():
    arms = smoke(TWO, "float reversal")["arms"]
    rubbed, free = arms["momentum 0.9"], arms["ECD"]
    assert rubbed["float64"]["growth"] == pytest.approx(-math.log(0.9), rel=0.3)
    assert free["float64"]["growth"] < 0.5 * rubbed["float64"]["growth"]
    assert free["energy_change"] < 1e-2 and rubbed["energy_change"] is None
    assert free["energy_change_at_half_step"] < free["energy_change"]
    assert abs(rubbed["lambda"]) < 0.02 < rubbed["tangent_back"]  # friction lets nothing grow on the way out


def test_runs_return_exactly_and_perturbed_ones_do_not():
    found = smoke(TWO, "perturbed return")
    assert found["floor"] < 0.9
    for arm in found["arms"].values():
        assert arm["exact"] is True
        assert [e["size"] for e in arm["echoes"]] == [1e-9, 1e-6]
        assert arm["echoes"][1]["relative"][-1] > arm["echoes"][0]["relative"][-1] > 0


def test_horizons_are_where_the_float_is_lost():
    """Float32 at momentum 0.9: ln(2^24)/ln(1/0.9) = 158 steps by friction alone, fewer by what else grows."""
    settings = {"turn": 200, "every": 5}
    arm = {"kind": "SGD", "settings": {"lr": 0.02, "momentum": 0.9}, "fit": [40, 200]}
    task = adding({"p": 7, "width": 8, "hidden": 16, "fraction": 0.6}, 0, torch.float32)
    found = friction._there_and_back(task, arm, settings, friction._Energies(), 1e-2)
    assert 80 < found["lost"] < 190


@pytest.mark.parametrize("kind", ["inside H", "outside H"])
def test_only_with_all_decay_reversed_every_bit_returns(kind):
    found = smoke(SEVEN, kind)
    early, late = found["turns"]
    assert late["ways"]["share 0"]["exact"] is True
    assert not any(way["exact"] for name, way in late["ways"].items() if name != "share 0")
    lost = [abs(late["ways"][f"share {x}"]["loss"] - found["start"]["loss"]) for x in ("0", "0.001", "1")]
    assert lost[0] < lost[1] < lost[2]
    assert abs(late["ways"]["loss flipped, decay reversed"]["loss"] - found["start"]["loss"]) > lost[2]
    assert found["contraction"]["bits"] == pytest.approx(found["contraction"]["theory"], rel=5e-3)
    if kind == "inside H":
        assert early["momenta_flipped"] == [{"share": 1, "same_bits": True}]
        assert found["energy_change_at_half_step"] < found["energy_change"] < 1e-2
    else:
        further = abs(late["ways"]["share 2"]["loss"] - found["start"]["loss"])
        assert further > 1.5 * lost[2] and found["contraction"]["bits"] > 0


@pytest.mark.parametrize("outside", [False, True])
def test_pushes_have_the_size_of_the_decay_that_they_stand_for(outside):
    task = adding({"p": 7, "width": 8, "hidden": 16, "fraction": 0.6}, 0)
    run = task.run("ECD", {"lr": 0.04, "eta": 2.0, "weight_decay": 1e-3, "decoupled": outside}).seek(20)
    echo = physics.echo(run, 2, [physics.Scaled({"weight_decay": 0.5}), decay.Push(0.5)], every=1)
    row = "q" if outside else "p"
    (_, first, _), (_, still, moved) = (e.column("distance", row) for e in echo)
    assert still == 0 and moved == pytest.approx(first, rel=0.01)


# -- verdicts --------------------------------------------------------------------------------


def friction_evidence():
    """As theory has it."""
    rates = {
        "momentum 0.9": 0.10536,
        "momentum 0.98": 0.0202,
        "momentum 0.99": 0.01005,
        "momentum 1.0": 0.0,
        "ECD": 0.0,
    }
    horizons = {"momentum 0.9": (158, 349), "momentum 0.98": (823, None), "momentum 0.99": (None, None)}
    knows = {"loss": 0.01, "train": 1.0, "test": 0.5}
    bits, floats, echoes = [], [], []
    for seed in SEEDS:
        theory = {name: rate / math.log(2) for name, rate in rates.items()}
        bits.append({"seed": seed, "arms": {n: {"bits": t, "theory": t} for n, t in theory.items()}})
        arms, back = {}, {}
        for name, rate in rates.items():
            own, free = 1e-3 * (1 + 0.1 * seed), name in ("momentum 1.0", "ECD")
            lost = horizons.get(name, (None, None))
            legs = [{"growth": rate + own, "lost": n, "back": [0, 100], "error": [1e-16, 1e-14]} for n in lost]
            arms[name] = {
                "knows": knows,
                "friction": rate,
                "lambda": own,
                "tangent_back": rate + own,
                "energy_change": 1e-3 if free else None,
                "energy_change_at_half_step": 5e-4 if free else None,
            } | dict(zip(("float32", "float64"), legs, strict=True))
            home = {"kept": 1200 if free else 160 + seed, "agreement_with_start": 1.0 if free else None}
            line = {"back": [0, 20], "agreement": [1.0, 1.0]}
            if name != "momentum 0.99":
                wound = [{"size": size} | home | line for size in (1e-9, 1e-6)]
                back[name] = {"knows": knows, "exact": True, "echoes": wound}
        floats.append({"seed": seed, "arms": arms})
        echoes.append({"seed": seed, "arms": back, "floor": 0.04})
    return {"bits": bits, "float reversal": floats, "perturbed return": echoes}


def no_friction(e):
    for row in e["float reversal"]:
        for arm in row["arms"].values():
            arm["float64"]["growth"] = 0.01


def as_slow_as_ecd(e):
    for row in e["float reversal"]:
        row["arms"]["momentum 0.99"]["float64"]["growth"] = row["arms"]["ECD"]["float64"]["growth"]


def all_lose_their_way(e):
    for row in e["perturbed return"]:
        row["arms"]["ECD"]["echoes"][1] |= {"kept": 700, "agreement_with_start": 0.1}


def scattered(e):
    for row in e["float reversal"]:
        row["arms"]["momentum 0.9"]["float64"]["growth"] = 0.1 * (row["seed"] - 1)


def return_alike(e):
    for row in e["perturbed return"]:
        for echo in row["arms"]["momentum 0.9"]["echoes"]:
            echo |= {"kept": 1200, "agreement_with_start": 1.0}


def wrong_bits(e):
    e["bits"][0]["arms"]["momentum 0.9"]["bits"] *= 1.01


def unlearned(e):
    for row in e["float reversal"][1:]:
        row["arms"]["ECD"]["knows"] = {"loss": 3.0, "train": 0.1, "test": 0.0}


@pytest.mark.parametrize(
    "change, verdict, subs",
    [
        (None, "supported", ["supported"] * 4),
        (no_friction, "refuted", ["supported", "refuted", "supported", "supported"]),
        (as_slow_as_ecd, "partly", ["supported", "partly", "supported", "supported"]),
        (all_lose_their_way, "partly", ["supported", "supported", "supported", "partly"]),
        (scattered, "inconclusive", ["supported", "inconclusive", "supported", "supported"]),
        (return_alike, "partly", ["supported", "supported", "supported", "refuted"]),
        (wrong_bits, "inconclusive", ["inconclusive", "supported", "supported", "supported"]),
        (unlearned, "inconclusive", ["supported", "inconclusive", "supported", "supported"]),
    ],
)
def test_the_verdict_on_friction_follows_its_rule(change, verdict, subs):
    evidence = friction_evidence()
    if change is not None:
        change(evidence)
    found = TWO.judge(evidence, TWO.thresholds)
    assert [s.verdict for s in found.sub_verdicts] == subs
    assert found.verdict == verdict
    assert len(found.left_out) == (4 if change is unlearned else 0)
    assert len(TWO.pictures(evidence)) == 3


def test_runs_that_do_not_conserve_energy_are_left_out():
    evidence = friction_evidence()
    evidence["float reversal"][2]["arms"]["ECD"]["energy_change_at_half_step"] = 0.02
    found = TWO.judge(evidence, TWO.thresholds)
    assert len(found.left_out) == 1 and "ECD, seed 2" in found.left_out[0]
    assert next(m for m in found.measures if m.name == "growth, ECD").n == 4


def apart(evidence):
    """A copy in which no dict is shared."""
    return json.loads(json.dumps(evidence))


def decay_evidence():
    """As the claim has it: only with (nearly) all decay reversed the function returns."""
    start, knows = {"loss": 3.2, "train": 0.04, "test": 0.04}, {"loss": 0.05, "train": 1.0, "test": 0.5}
    home = {"agreement": 0.98, "loss": 3.2, "train": 0.04, "test": 0.04, "ended_by": None, "exact": False}
    lost = home | {"agreement": 0.05, "loss": 0.01}
    out = {}
    for kind, more in (("inside H", {}), ("outside H", {"share 2": lost})):
        ways = {"share 0": home | {"exact": True}, "share 1e-06": home, "share 0.0001": lost, "share 1": lost}
        ways |= {"push 0.0001": lost, "loss flipped, decay reversed": lost} | more
        turn = {"at": 1400, "knows": knows, "ways": ways, "momenta_flipped": None}
        row = {"turns": [turn], "start": start, "floor": 0.04, "contraction": {"bits": 0.0, "theory": 0.0}}
        change = 1e-3 if kind == "inside H" else None
        row |= {"energy_change": change, "energy_change_at_half_step": change}
        out[kind] = [apart(row) | {"seed": s} for s in SEEDS]
        decays = [{"decay": 1e-4, "knows": knows, "way": lost, "energy_change": change}]
        weak = {"decays": decays, "turn": 1400, "time": 56.0, "start": start}
        out[f"weak decay {kind}"] = [apart(weak) | {"seed": s} for s in SEEDS]
    return out


def way(name, kinds=("inside H", "outside H"), seeds=SEEDS, **found):
    def change(e):
        for kind in kinds:
            for row in e[kind]:
                if row["seed"] in seeds:
                    row["turns"][0]["ways"][name] |= found

    return change


HOME = {"agreement": 0.95, "loss": 3.1}


@pytest.mark.parametrize(
    "change, verdict, subs",
    [
        (None, "supported", ["supported", "supported", "supported", "refuted", "refuted"]),
        (way("share 1", **HOME), "refuted", ["refuted", "refuted", "supported", "refuted", "refuted"]),
        (
            way("share 1", ["inside H"], [0], **HOME),
            "partly",
            ["partly", "supported", "supported", "refuted", "refuted"],
        ),
        (way("share 0", loss=2.0), "inconclusive", ["inconclusive"] * 2 + ["supported", "refuted", "refuted"]),
        (way("push 0.0001", **HOME), "supported", ["supported", "supported", "supported", "supported", "refuted"]),
        (
            way("loss flipped, decay reversed", **HOME),
            "supported",
            ["supported", "supported", "supported", "refuted", "supported"],
        ),
        (way("share 1", agreement=0.95), "supported", ["supported", "supported", "supported", "refuted", "refuted"]),
        (way("share 1", ended_by="x", **HOME), "supported", ["supported"] * 3 + ["refuted", "refuted"]),
    ],
)
def test_the_verdict_on_decay_follows_its_rule(change, verdict, subs):
    evidence = decay_evidence()
    if change is not None:
        change(evidence)
    found = SEVEN.judge(evidence, SEVEN.thresholds)
    assert [s.verdict for s in found.sub_verdicts] == subs
    assert found.verdict == verdict
    assert len(SEVEN.pictures(evidence)) == 2


def test_the_largest_share_that_returns_is_stated():
    found = SEVEN.judge(decay_evidence(), SEVEN.thresholds)
    largest = {m.name: m.value for m in found.measures if m.name.startswith("largest share")}
    assert list(largest.values()) == [1e-6, 1e-6]


def test_without_evidence_nothing_is_claimed():
    for claim in (TWO, SEVEN):
        found = claim.judge({}, claim.thresholds)
        assert found.verdict == "inconclusive" and claim.pictures({}) in ([], ())
