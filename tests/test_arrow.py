"""The arrow: many ways back at once are what the lattice does, growth is predicted, and scores can tell."""

import json
import math

import pytest
import torch

from loschmidt import physics
from loschmidt.claims import arrow_judge as judge
from loschmidt.claims import arrow_parts, returns
from loschmidt.claims import arrow_rule as rule
from loschmidt.claims import arrow_runs as runs
from loschmidt.claims import arrow_score as score
from loschmidt.claims.arrow_flow import Flow
from loschmidt.claims.arrow_judge import with_arrow
from loschmidt.claims.arrow_lab import network, start, states, ways
from loschmidt.claims.c10_reversibility import CLAIM
from loschmidt.claims.record import Finding
from loschmidt.models import OneLayerTransformer
from loschmidt.models.adders import PairMLP, SmoothTransformer
from loschmidt.physics.state import Layout

pytest.importorskip("scipy")

TINY = arrow_parts.SETTINGS["smoke"] | {
    "p": 5,
    "width": 8,
    "heads": 2,
    "hidden": 16,
    "train_fraction": 0.6,
    "optimizer_settings": {"lr": 0.1, "eta": 1.0, "weight_decay": 3e-3},
    "onset": 0.0,  # so that the first look, at step 20, is the onset
    "steps": 30,
    "turns": {"before": 0.6, "late": None},
    "model": "smooth transformer",
}
T = CLAIM.thresholds


def say(share, **facts):
    assert 0 <= share <= 1


def out(settings=TINY, seed=100):
    it = start(settings, seed, returns.Meter(say, 1e6))
    returns.go_out(it, settings["steps"], 0.0)
    return it


# -- many at once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["transformer", "smooth transformer", "square mlp"])
def test_ways_back_in_floats_are_those_of_the_lattice(model):
    settings = TINY | {"model": model, "sizes": [1e-6, 1e-2], "gauge": int(model.endswith("transformer"))}
    it = out(settings)
    several = ways(it, settings, 100)
    before = it.traj.digest()
    ours = runs.go_back(it, several, 20)
    theirs = returns.go_back(it, "late", several)
    assert it.traj.digest() == before
    assert {way.kind for way in several} >= {"none", "momenta", "random"}
    for a, b, way in zip(ours, theirs, several, strict=True):
        far = dict(zip(b["curve"]["step"], b["curve"]["relative"], strict=True))[20]
        assert a["onset_distance"] == pytest.approx(far, rel=1e-3, abs=1e-12), way
        assert a["end"]["relative"] == pytest.approx(b["end"]["relative"], rel=1e-3, abs=1e-12)
        assert a["end"]["agreement"] == pytest.approx(b["end"]["agreement"], abs=1e-5)
        assert a["moved"] == pytest.approx(b["moved"], rel=1e-5)
    assert ours[0]["end"]["relative"] < 1e-12 and ours[0]["end"]["agreement"] == 1
    assert not rule.returned(ours[1], 0.0, T)


def test_steps_and_undone_steps_are_each_others_inverse_and_those_of_the_optimizer():
    it = start(TINY, 100, returns.Meter(say, 1e6))
    flow, layout = Flow(it.traj, it.train), Layout(it.traj.optimizer)
    it.traj.seek(5)
    x = layout.read()[None].repeat(2, 1, 1)
    x[1] += 1e-3
    there = flow.wind(x, 5, 9, (), lambda *_: None)
    back = flow.wind(there, 9, 5, (), lambda *_: None)
    assert torch.allclose(back, x, atol=1e-13) and not torch.allclose(there, x, atol=1e-4)
    it.traj.seek(9)
    assert torch.allclose(there[0], layout.read(), atol=1e-12)
    assert not torch.allclose(there[1], layout.read(), atol=1e-4)
    it.traj.seek(10)  # the energy is of the start of the last step
    assert float(flow.energy(there)[0]) == pytest.approx(it.traj.optimizer.energy, abs=1e-9)


def test_at_rest_the_way_past_the_start_is_a_palindrome():
    it = start(TINY, 100, returns.Meter(say, 1e6))
    flow, seen = Flow(it.traj, it.train), {}
    flow.wind(Layout(it.traj.optimizer).read()[None], 0, -8, range(-8, 0), lambda step, x: seen.update({step: x}))
    it.traj.seek(7)
    assert torch.allclose(seen[-8][0, 0], Layout(it.traj.optimizer).read()[0], atol=1e-12)  # q(-1 - t) = q(t)


def test_a_copy_that_blows_up_disturbs_no_other():
    it = out()
    flow = Flow(it.traj, it.train)
    x = Layout(it.traj.optimizer).read()[None].repeat(2, 1, 1)
    alone = flow.wind(x[:1], 30, 20, (), lambda *_: None)
    x[1] = math.nan
    both = flow.wind(x, 30, 20, (), lambda *_: None)
    assert torch.allclose(both[0], alone[0], atol=1e-13) and both[1].isnan().any()


def test_blocks_hold_each_direction_once():
    it = out()
    settings = TINY | {"sizes": [1e-6, 1e-3], "random": 3, "gauge": 2}
    whole = [(w.kind, w.size, w.draw) for w in ways(it, settings, 0) if w.size]
    parts = [[w for w in ways(it, settings | {"block": [i, 2]}, 0) if w.size] for i in range(2)]
    assert sorted((w.kind, w.size, w.draw) for part in parts for w in part) == sorted(whole)
    one, two = (states(it, part)[0] for part in parts)
    assert not torch.equal(one, two)


def test_networks_are_what_they_say():
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    plain, smooth = (
        kind(5, 8, 2, 16, seed=3, dtype=torch.float64) for kind in (OneLayerTransformer, SmoothTransformer)
    )
    with torch.no_grad():
        for net in (plain, smooth):
            net.up_bias += 30.0  # where both activations are the identity
        assert torch.allclose(plain(pairs), smooth(pairs), atol=1e-12)
    net = PairMLP(5, 7, "square", seed=1, dtype=torch.float64)
    by_hand = torch.stack([((net.left[a] + net.right[b] + net.bias) ** 2) @ net.unembed.T for a, b in pairs])
    assert torch.allclose(net(pairs), by_hand)
    assert torch.equal(network(TINY | {"scale": 2.0}, 0).up, 2 * network(TINY, 0).up)


# -- predictions -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evidence():
    settings = TINY | {"sizes": [1e-8, 1e-5], "random": 4, "gauge": 1, "growth": 8}
    found = {rule.PREDICTED: [{"seed": 100} | runs.predictions(settings, 100, say)]}
    for turn in settings["turns"]:
        found[f"{rule.GRID}, {turn}"] = [{"seed": 100} | runs.returns(settings | {"turn": turn}, 100, say)]
    return json.loads(json.dumps(found, allow_nan=False))


def test_growth_from_p_to_p_forward_says_how_q_grows_back(evidence):
    seen = evidence[rule.PREDICTED][0]
    for where, key in (("start", "end"), ("onset", "onset_distance")):
        told = next(c for c in seen["cells"] if (c["turn"], c["kind"], c["size"]) == ("late", "random", 1e-8))
        came = [w for w in evidence["arrow: returns, late"][0]["ways"] if (w["kind"], w["size"]) == ("random", 1e-8)]
        far = [w["end"]["relative"] if key == "end" else w[key] for w in came]
        assert 0.7 < sum(far) / len(far) / told["distance"][where] < 1.4


def test_the_inverse_of_a_step_takes_q_to_q_by_the_transpose_of_p_to_p():
    it = out()
    layout = Layout(it.traj.optimizer)
    u, v = layout.random(1, 1, ["q"])[0], layout.random(1, 2, ["p"])[0]
    back = physics.tangent(it.traj, 30, 20, u)
    there = physics.tangent(it.traj, 20, 30, v)
    left = float(back.directions[0, 0] @ v[1]) * float(back.total.exp())
    right = float(u[0] @ there.directions[0, 1]) * float(there.total.exp())
    assert left == pytest.approx(right, rel=1e-6)


@pytest.mark.parametrize("model", ["smooth transformer", "square mlp"])
def test_growth_by_differences_is_that_of_the_tangent_map(model):
    it = start(TINY | {"model": model}, 100, returns.Meter(say, 1e6))
    layout = Layout(it.traj.optimizer)
    along = layout.random(3, 1, ["p"])
    ours = Flow(it.traj, it.train).growth(layout.read(), along, 12)
    it.traj.seek(12)
    theirs = physics.tangent(it.traj, 0, 12, list(along)).by_lattice["p"]
    assert torch.allclose(ours, theirs, atol=1e-6) and float((ours[-1] - ours[0]).abs().min()) > 1e-3


def test_jobs_see_the_run_that_was_predicted(evidence):
    digests = {several[0]["digest"] for several in evidence.values()}
    assert len(digests) == 1


def test_a_gauge_nudge_is_predicted_and_seen_to_return_where_a_random_one_is_far_off(evidence):
    cells = {(c["kind"], c["size"]): c for c in evidence[rule.PREDICTED][0]["cells"] if c["turn"] == "late"}
    assert cells["gauge", 1e-5]["distance"]["start"] < 1e-3 * cells["random", 1e-5]["distance"]["start"]


def test_probabilities_fall_with_size_and_are_a_half_at_the_threshold():
    turn = {"norm": 2.0, "gauge_norms": [4.0]}
    seen = {"turns": {"x": turn}, "norms": {"start": 1.0, "onset": 2.0}, "growth": {"x": {"start": [math.log(5.0)]}}}
    several = rule.cells(seen, [1e-9, 5e-3, 1e-1], rule.RULE)
    chances = [c["returns"] for c in several if c["kind"] == "random"]
    assert chances[0] > 0.999 and chances[1] == pytest.approx(0.5) and chances[2] < 0.1
    assert several[0]["un-generalises"] is None
    gauge = next(c for c in several if c["kind"] == "gauge" and c["size"] == 1e-1)
    assert gauge["distance"]["start"] == pytest.approx(1e-2 * 2 / 8 * 2 * 5)


# -- scores ----------------------------------------------------------------------------------------------


def made_up(p, y, seeds=5):
    """Rows in which `p(size)` is predicted and `y(seed, turn, size)` came."""
    return [
        {"seed": seed, "turn": turn, "kind": "random", "size": size, "p": p(size), "y": float(y(seed, turn, size))}
        for seed in range(seeds)
        for turn in ("early", "late")
        for size in (1e-9, 1e-3)
    ]


def test_a_prediction_that_knows_beats_both_and_one_that_lies_loses():
    rows = made_up(lambda size: float(size < 1e-6), lambda seed, turn, size: size < 1e-6)
    for found in rule.scores(rows).values():
        assert found == {"prediction": 0.0, "constant": 0.25, "turn alone": 0.25}
    rows = made_up(lambda size: float(size > 1e-6), lambda seed, turn, size: size < 1e-6)
    assert all(found["prediction"] == 1.0 for found in rule.scores(rows).values())


def test_the_turn_alone_wins_where_only_the_turn_matters():
    found = rule.scores(made_up(lambda size: 0.5, lambda seed, turn, size: turn == "early"))[0]
    assert found == {"prediction": 0.25, "constant": 0.25, "turn alone": 0.0}
    assert rule.scores(made_up(lambda size: 0.5, lambda *_: True, seeds=1)) == {}


def test_calibration_is_by_bins():
    rows = [{"p": 0.1, "y": y} for y in (0, 0, 0, 1)] + [{"p": 1.0, "y": 1.0}] * 4
    assert rule.calibration(rows) == [
        {"predicted": 0.1, "observed": 0.25, "n": 4},
        {"predicted": 1.0, "observed": 1.0, "n": 4},
    ]
    assert rule.calibration_error(rows) == pytest.approx(0.075) and rule.calibration_error([]) is None


def many(evidence, seeds, right=True):
    """The evidence of one seed as that of many; predictions turned round if they are to be wrong."""
    text = json.dumps(evidence)
    found = {}
    for part, several in json.loads(text).items():
        found[part] = [json.loads(json.dumps(several[0])) | {"seed": seed} for seed in range(seeds)]
    for seen in found[rule.PREDICTED]:
        seen["half"] = {"energy_change": 1e-4}
        seen["out"] |= {"energy_change": 1e-4, "test": [0.9]}
        for turn in seen["turns"].values():
            turn["test"] = 0.9
        for cell in seen["cells"]:
            for which in rule.OUTCOMES:
                came = cell["size"] < 1e-6 and seen["seed"] % 2 == 0
                cell[which] = None if cell[which] is None else float(came == right)
    for part in found:
        for seen in found[part] if part.startswith(rule.GRID) else ():
            for way in seen["ways"]:
                came = way["size"] is None or (way["size"] < 1e-6 and seen["seed"] % 2 == 0)
                way["lowest_test"] = 0.0 if came else 0.9
                way["end"] |= {"agreement": 1.0 if came else 0.0, "test": seen["start"]["test"]}
    return found


@pytest.mark.parametrize(("right", "verdict"), [(True, "supported"), (False, "refuted")])
def test_the_judge_tells_predictions_that_hold_from_those_that_do_not(evidence, right, verdict):
    found = with_arrow(Finding("partly", [], []), many(evidence, 5, right), T)
    beats, knows, *_ = (sub.verdict for sub in found.sub_verdicts)
    assert (found.verdict, beats) == ("partly", verdict) and knows in (verdict, "inconclusive")
    kept = found.sub_verdicts[4]
    assert kept.name == "arrow: perturbed, it keeps what it learned" and kept.verdict == "supported"
    by_name = {m.name: m for m in found.measures}
    assert by_name["arrow: share of jobs whose run was, to the bit, the predicted one"].value == 1
    assert by_name["arrow, random directions, size 1e-08, turns after the onset: share that returns"].value == 0.6
    assert by_name["arrow, returns: Brier score of the prediction"].value == (0 if right else 1)


def test_each_turn_counts_once_and_what_broke_off_or_is_of_another_run_does_not(evidence):
    several = many(evidence, 3)
    (early, late) = sorted(name for name in several if name.startswith(rule.GRID))
    assert score.counted(several)[1] == []
    several[early][0] |= {"turn": "1.5", "turn_step": several[late][0]["turn_step"]}  # clipped at the end of the run
    several[late][1]["ways"][-1]["ended_by"] = "the parameters are not finite."
    several[late][2]["digest"] = "of another run"
    kept, words = score.counted(several)
    assert [seen["seed"] for seen in kept[early]] == [1, 2] and [seen["seed"] for seen in kept[late]] == [0, 1]
    assert len(kept[late][1]["ways"]) == len(several[late][1]["ways"]) - 1
    assert len(words) == 3 and "past the end" in words[0] and "1 ways" in words[1] and "to the bit" in words[2]


def test_rivals_know_the_other_seeds_by_size_and_by_turn_and_size():
    rows = made_up(lambda size: 0.5, lambda seed, turn, size: size < 1e-6 and turn == "late")
    found = score.scores(rows)[0]
    assert found["turn and size"] == 0.0 and found["size alone"] == 0.125 and found["prediction"] == 0.25
    alone = score.scores(made_up(lambda size: 0.5, lambda seed, turn, size: seed == 0))[0]
    assert alone["turn and size"] == alone["size alone"] == 1.0, "they know nothing of the seed itself"


def test_a_refutation_is_one_rival_that_is_surely_better():
    assert [judge._beats(signs, True) for signs in ((1, 1, 1), (1, 0, 1), (0, 0, 0), (1, 1, -1))] == [
        "supported",
        "partly",
        "inconclusive",
        "refuted",
    ]
    assert judge._beats((1, 1, 1), False) == "inconclusive"


def test_without_the_arrow_a_finding_stays_and_few_seeds_decide_nothing(evidence):
    plain = Finding("partly", [], [])
    assert with_arrow(plain, {}, T) is plain
    few = with_arrow(plain, many(evidence, 2), T)
    assert [sub.verdict for sub in few.sub_verdicts] == ["inconclusive"] * 6
    spoilt = many(evidence, 5)
    spoilt[rule.PREDICTED][0]["half"]["energy_change"] = 1.0
    found = with_arrow(plain, spoilt, T)
    assert found.left_out[0].startswith("seed 0, arrow: |change of H| was 0.0001, 1")


def test_pictures_show_the_probability_first(evidence):
    drawn = CLAIM.pictures(many(evidence, 2))
    assert drawn[0].title == "Return probability" and len(drawn) == 3
    assert all(len(s.x) == len(s.y) for p in drawn for s in p.series)
