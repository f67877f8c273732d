"""The controls of the arrow: each does what its name says, and can come out the other way."""

import json

import pytest
import torch

from loschmidt.claims import arrow_controls as controls
from loschmidt.claims import arrow_held, arrow_mirror, arrow_parts, returns
from loschmidt.claims.arrow_flow import Flow
from loschmidt.claims.arrow_lab import start
from loschmidt.claims.c10_reversibility import CLAIM

pytest.importorskip("scipy")

TINY = arrow_parts.SETTINGS["smoke"] | {
    "p": 5,
    "width": 8,
    "hidden": 16,
    "train_fraction": 0.6,
    "optimizer_settings": {"lr": 0.1, "eta": 1.0, "weight_decay": 3e-3},
    "onset": 0.0,
    "steps": 30,
    "model": "smooth transformer",
}
T = CLAIM.thresholds


def say(share, **facts):
    assert 0 <= share <= 1


def seen(part, settings):
    return json.loads(json.dumps({"seed": 100} | part(TINY | settings, 100, say), allow_nan=False))


def test_both_ways_from_a_turn_are_a_palindrome_unless_perturbed_and_memorisers_know_by_heart():
    found = seen(controls.both_ways, {"before": 0.5, "size": 1e-2, "draws": 2, "both": 24, "by_heart": 1500})
    heart = found["memoriser"]
    assert heart["train"] >= 0.99 and heart["test"] == 0 and heart["steps"] < 1500
    assert found["turn_step"] == 10
    (still,), moved = found["arms"]["turn before the onset, unperturbed"], found["arms"]["turn before the onset"]
    it = start(TINY, 100, returns.Meter(say, 1e6))
    there = [returns.accuracy(it.traj.seek(step).model, it.test) for step in range(15)]
    back = dict(zip(still["back"]["step"], still["back"]["test"], strict=True))
    # Step 10 - k of the run; below 0 the palindrome q(-1 - t) = q(t).
    assert all(back[k] == pytest.approx(there[10 - k if k <= 10 else k - 11], abs=1e-5) for k in back if k <= 24)
    assert len(moved) == 2 and moved[0]["back"] != still["back"]
    for name in ("memoriser", "memoriser, norm of the late turn"):
        assert all(row["square"] > 0 for row in found["arms"][name])
    assert arrow_held.measures({arrow_held.BOTH: [found]}, (), T)


def test_states_on_the_shell_have_the_energy_of_the_run():
    it = start(TINY, 100, returns.Meter(say, 1e6))
    flow = Flow(it.traj, it.train)
    x = flow.layout.read()
    energy = float(flow.energy(x[None])[0])
    put = controls._on_shell(flow, 0.5 * x[0], energy + 1.0, 3, 0)
    assert torch.allclose(flow.energy(put), torch.full((3,), energy + 1.0, dtype=torch.float64))
    assert not torch.equal(put[0, 1], put[1, 1])
    assert len(controls._on_shell(flow, x[0], energy - 1.0, 3, 0)) == 0


def test_random_labels_are_others_and_are_learned_by_heart():
    plain, shuffled = (start(TINY | more, 100, returns.Meter(say, 1e6)) for more in ({}, {"labels": "random"}))
    assert torch.equal(plain.train[0], shuffled.train[0]) and torch.equal(plain.test[1], shuffled.test[1])
    assert not torch.equal(plain.train[1], shuffled.train[1])
    assert torch.equal(plain.train[1].sort().values, shuffled.train[1].sort().values)
    arms = {"random labels": {"labels": "random"}, "few data": {"train_fraction": 0.2}}
    found = seen(controls.controls, {"sizes": [1e-2], "draws": 1, "arms": arms})
    for arm in found["arms"].values():
        assert [way["kind"] for way in arm["ways"]] == ["none", "momenta", "random"]
        assert arm["ways"][0]["end"]["agreement"] == 1.0
    name = "arrow, few data, wound back with momenta: train accuracy at step 0"
    for energy, there in ((1.0, True), (0.0, False)):  # an arm whose energy moved says nothing
        several = arrow_held.measures({arrow_held.CONTROLS: [found]}, (), T | {"energy": energy})
        assert (name in {m.name for m in several}) is there


def test_all_lattices_return_and_none_with_a_unit_changed():
    found = seen(controls.lattices, {"resolutions": [-32, -48], "size": 1e-3})
    for row in found["lattices"]:
        assert [way["exact"] for way in row["ways"]] == [True, False, False]
    assert found["lattices"][0]["test"] == pytest.approx(found["lattices"][1]["test"], abs=0.11)
    values = {m.name: m.value for m in arrow_held.measures({arrow_held.LATTICES: [found]}, (), T)}
    assert values["arrow, lattice 2^-32, unperturbed: share with all bits back"] == 1


def test_weight_on_the_shell_grows_as_the_potential_falls():
    found = seen(controls.entropy, {"widths": [8, 16], "by_heart": 300})
    for row in found["rows"]:
        assert row["step"] == sorted(row["step"]) and row["step"][0] == 1 and row["step"][-1] == 30
        order = sorted(range(len(row["step"])), key=lambda i: row["potential"][i])
        weights = [row["log_weight"][i] for i in order]
        assert weights == sorted(weights, reverse=True) and row["log_weight"][0] == 0
    n = [row["parameters"] for row in found["rows"]]
    assert n[1] > 2 * n[0]
    assert arrow_held.measures({arrow_held.ENTROPY: [found]}, (), T)


def test_a_turn_that_is_hardly_moved_is_near_its_mirror_image_and_one_that_is_moved_much_is_not():
    settings = {"before": 0.5, "sizes": [1e-9, 0.3], "draws": 1, "both": 40}
    found = seen(arrow_mirror.mirror, settings)
    near, far = found["orbits"]
    assert found["turn_step"] == 10 and len(near["mirror"]) == len(far["mirror"]) == 30  # steps -1 to -30
    assert max(near["mirror"]) < 1e-5 and min(far["mirror"]) > 0.05
    assert near["forward"]["step"] == near["back"]["step"] == list(range(41))
    values = {m.name: m.value for m in arrow_mirror.measures([found], [], T | {"energy": 10.0})}
    assert values["arrow, turn before the onset nudged by 0.3: least distance from the mirror image, relative"] > 0.05
    assert all(m.value is None for m in arrow_mirror.measures([found], [], T | {"energy": 0.0}))


def test_energy_is_kept_on_ways_back_and_one_that_lost_it_is_counted():
    found = seen(arrow_mirror.shell, {"sizes": [1e-8], "draws": 2, "optimizer_settings": {"lr": 0.01, "eta": 1.0}})
    assert [way["kind"] for way in found["ways"]] == ["none", "momenta", "momenta", "random", "random"]
    assert all(0 < way["energy_change"] < 1e-2 for way in found["ways"])
    largest, share = arrow_mirror.measures([], [found], T)
    assert 0 < largest.value < 1e-2 and (share.value, share.n) == (0.0, 5)
    found["ways"][0]["energy_change"] = None
    largest, share = arrow_mirror.measures([], [found], T)
    assert largest.value is None and share.value == 0.2
