"""Echoes: the control returns with every bit, what is perturbed does not, and the run stands where it stood."""

import json

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

import loschmidt as lo
from loschmidt import physics
from loschmidt.models import OneLayerTransformer
from loschmidt.physics.state import Layout

KINDS = {
    "ECD": (lo.optim.ECD, {"lr": 0.1}),
    "ECD-decay": (lo.optim.ECD, {"lr": 0.1, "weight_decay": 1e-3}),
    "ECD-leapfrog": (lo.optim.ECD, {"lr": 0.1, "integrator": "leapfrog"}),
    "ECD-rescaled": (lo.optim.ECD, {"lr": 0.1, "delta_energy": 2.0, "conserve": "rescale"}),
    "ECD-auto": (lo.optim.ECD, {"lr": "auto"}),
    "SGD": (lo.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "Adam": (lo.optim.Adam, {"lr": 0.01}),
}
PERTURBED = {
    "nudge": physics.Nudge(1e-6),
    "unit": physics.Unit(),
    "momentum": physics.Nudge(1e-6, lattice="p"),
    "momenta": physics.Momenta(),
    "sample": physics.Sample(),
    "fresh": physics.Fresh(),
    "rate": physics.Rate(1.01),
}


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def run(name="ECD", to=40, dtype=torch.float64, batch_size=8, data=None, **given):
    kind, settings = KINDS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).to(dtype)
        x = torch.randn(32, 3).to(dtype)
    y = x[:, 0].gt(0).long() + 2 * x[:, 1].gt(0).long()
    data = lo.data.Schedule((x, y), batch_size=batch_size) if data is None else data
    traj = lo.Trajectory(model, kind(model.parameters(), **settings), loss, data, digest_every=10, **given)
    return traj.seek(to), lambda model: model(x)


@pytest.mark.parametrize("name", KINDS)
def test_the_control_returns_with_every_bit_and_nothing_else_does(name):
    traj, observe = run(name, batch_size=None if name == "ECD-auto" else 8)
    before, random, energy = traj.digest(), torch.get_rng_state(), getattr(traj.optimizer, "energy", None)
    left_out = {"Adam": ("momentum",), "ECD-auto": ("rate", "fresh")}.get(name, ())
    usual = [p for k, p in PERTURBED.items() if k not in left_out]
    control, *others = physics.echo(traj, 20, [None, *usual], observe=observe, every=5)
    assert control.exact is True and control.ended_by is None
    assert [row["step"] for row in control.rows] == [40, 35, 30, 25, 20]
    for row in control.rows:
        assert set(row["distance"].values()) == set(row["relative"].values()) == {0.0}
        assert row["agreement"] == 1.0 and row["rms"] == 0.0 and row["loss"] == row["path_loss"]
    for other in others:
        assert other.exact is not True, other.perturbation
        assert other.rows[-1]["distance"]["q"] > 0, other.perturbation
    assert traj.digest() == before and torch.equal(random, torch.get_rng_state()) and traj.step == 40
    assert getattr(traj.optimizer, "energy", None) == energy
    assert traj.data(39) is not None and traj.fingerprint is not None
    traj.seek(0)  # every check of the way back is in force again


def test_what_was_moved_at_the_turn_is_reported():
    traj, _ = run()
    layout = Layout(traj.optimizer)
    q, p = layout.read()
    nudged, unit, momenta, sample, kick = physics.echo(
        traj, 1, [1e-6, physics.Unit("2.bias", 1, -3), physics.Momenta(), physics.Sample(), PERTURBED["momentum"]]
    )
    assert nudged.size["q"]["relative"] == pytest.approx(1e-6, rel=1e-3) and nudged.size["p"]["distance"] == 0
    assert unit.size["q"]["distance"] == 3 * 2.0**-40 and unit.size["p"]["distance"] == 0
    assert momenta.size["q"]["distance"] == 0 and momenta.size["p"]["relative"] > 1
    assert sample.size["q"]["distance"] == sample.size["p"]["distance"] == 0
    assert kick.size["p"]["distance"] == pytest.approx(1e-6 * float(q.norm()), rel=1e-3)
    kept = physics.echo(traj, 1, physics.Momenta(seed=3), keep=True).states[40]
    assert float(kept[1].norm()) == pytest.approx(float(p.norm()), rel=1e-9)
    assert torch.equal(kept[0], q) and not torch.equal(kept[1], p)


def test_a_small_perturbation_grows_as_its_tangent_does():
    traj, _ = run(to=60)
    v = Layout(traj.optimizer).random(1, 5, ["q"])[0]
    seen = physics.echo(traj, None, physics.Nudge(1e-6, v), every=10)
    predicted = physics.tangent(traj, 60, 0, v)
    for row in seen.rows:
        growth = (row["distance"]["q"] ** 2 + row["distance"]["p"] ** 2) ** 0.5 / seen.rows[0]["distance"]["q"]
        assert growth == pytest.approx(float(predicted.log_growth[60 - row["step"], 0].exp()), rel=1e-4)
    other = physics.tangent(traj, 60, 0, Layout(traj.optimizer).random(1, 6, ["q"])[0])
    assert float(other.total.exp()) != pytest.approx(growth, rel=1e-2)


def test_friction_makes_the_way_back_grow_and_floats_fail():
    ends = {}
    for name in ("ECD", "SGD"):
        traj, observe = run(name, 120)
        single, double = physics.echo(traj, None, [physics.Floats(), physics.Floats(torch.float64)], observe=observe)
        assert single.exact is None and single.perturbation == {"kind": "floats", "dtype": "torch.float32"}
        assert 0 < double.rows[-1]["distance"]["q"] < 1e-3 * single.rows[-1]["distance"]["q"]  # the lattice rounds, too
        ends[name] = single.column("relative")[-1], double.column("relative")[-1]
    assert ends["ECD"][0] < 1e-3 and ends["SGD"][0] > 100 * ends["ECD"][0]
    # the floats are those of the recorded run: with a nudge of their size, the lattice does the same
    assert ends["SGD"][1] > 1e-16 / 0.9**100


def test_floats_follow_schedules_and_clipping():
    settings = {
        "lr": lambda step: 1 / (1 + step / 10),
        "after_backward": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.5),
    }
    traj, _ = run("SGD", 30, **settings)
    assert physics.echo(traj, None, physics.Floats(torch.float64)).rows[-1]["relative"]["q"] < 1e-9


def test_another_rate_is_that_rate_at_every_step():
    traj, _ = run("SGD", 30, lr=lambda step: 1 / (1 + step / 10))
    seen = physics.echo(traj, 30, physics.Rate(1.0))
    assert seen.exact is True  # the recorded settings, each at its step
    one, two = (physics.echo(traj, 1, physics.Rate(f), keep=True).states[29][0] for f in (1.0, 2.0))
    with traj.branch():
        p = Layout(traj.optimizer).read()[1]
    lr = traj.optimizer._settings[0]["lr"]
    assert torch.allclose(one - two, lr * p, atol=1e-11)


def test_fresh_batches_and_samples():
    traj, _ = run()
    source = traj.data
    own, other = physics.Fresh(source), physics.Fresh(lambda step: source(step + 1000))
    row = physics.Sample(row=2, by=2, at=35)  # by itself
    later = physics.Sample(row=2, by=3, at=35)
    same, far, replaced, changed = physics.echo(traj, 10, [own, other, row, later], every=1)
    assert same.exact is True and replaced.exact is True
    assert far.exact is False and changed.exact is False
    distance = dict(zip(changed.column("step"), changed.column("distance", "p"), strict=True))
    assert distance[36] == 0 and distance[35] > 0


# -- past the start --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ECD", "ECD-decay"])
def test_from_rest_a_full_batch_run_is_a_palindrome(name):
    traj, observe = run(name, 30, batch_size=None)
    seen = physics.echo(traj, None, None, observe=observe, every=1, beyond=20, keep=True)
    assert seen.exact is True and seen.rows[-1]["step"] == -20
    for step in range(20):
        assert torch.equal(seen.states[-1 - step][0], seen.states[step][0])
    assert all(row["distance"]["q"] is None for row in seen.rows if row["step"] < 0)
    mini, _ = run(name, 30)
    seen = physics.echo(mini, None, None, every=1, beyond=20, keep=True)
    assert torch.equal(seen.states[-1][0], seen.states[0][0])  # at rest
    assert not torch.equal(seen.states[-20][0], seen.states[19][0])  # other batches before the start than after it


def test_past_the_start_a_perturbed_run_goes_on_with_its_own_momenta():
    # Undoing what never happened: q_{-1} = q_0 - 2 dt p/(1 + p^2), then p_{-1} = p_0 + dt g/F there.
    traj, _ = run("ECD", 10, batch_size=None)
    seen = physics.echo(traj, None, physics.Momenta(), every=1, beyond=1, keep=True)
    (q0, p0), (q1, p1) = seen.states[0], seen.states[-1]
    assert float(p0.norm()) > 1e-3
    assert torch.allclose(q1, q0 - 0.2 * p0 / (1 + p0.square().sum()), atol=1e-11)
    values, at = {}, 0
    for n, p in traj.model.named_parameters():
        values[n] = q1[at : at + p.numel()].view(p.shape).clone().requires_grad_(True)
        at += p.numel()
    x, y = traj.data(0)
    value = F.cross_entropy(torch.func.functional_call(traj.model, values, (x,)), y)
    g = torch.cat([x.reshape(-1) for x in torch.autograd.grad(value, list(values.values()))])
    assert torch.allclose(p1, p0 + 0.1 * g / value, atol=1e-10)


def test_a_source_without_steps_before_the_start_is_refused_and_nothing_is_lost():
    traj, _ = run(to=0)
    source = traj.data

    def only_forward(step):
        if step < 0:
            raise IndexError(f"no batch {step}")
        return source(step)

    traj, _ = run(to=20, data=only_forward)
    before = traj.digest()
    with pytest.raises(lo.OutOfReach, match="no step -1"):
        physics.echo(traj, None, beyond=5)
    assert traj.digest() == before and traj.step == 20
    assert physics.echo(traj, None).exact is True
    with pytest.raises(lo.InvalidSetting, match="friction"):
        physics.echo(run("SGD")[0], None, beyond=5)
    with pytest.raises(lo.InvalidSetting, match="ends at step 10"):
        physics.echo(traj, 10, beyond=5)


def test_an_lr_that_is_chosen_by_itself_leaves_three_things_out():
    traj, _ = run("ECD-auto", 20, batch_size=None)
    assert physics.echo(traj, None).exact is True
    for given in ({"perturbation": physics.Rate()}, {"perturbation": physics.Floats()}, {"beyond": 5}):
        with pytest.raises(lo.InvalidSetting, match="auto"):
            physics.echo(traj, None, **given)


# -- what is refused, and what comes out -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"steps": 41}, lo.OutOfReach, "can go back 40"),
        ({"steps": 0}, lo.OutOfReach, "can go back 40"),
        ({"every": 0}, lo.InvalidSetting, "every"),
        ({"perturbation": "much"}, lo.InvalidSetting, "str"),
        ({"perturbation": 1e-15}, lo.InvalidSetting, "moves nothing"),
        ({"perturbation": physics.Nudge(lattice="m")}, lo.InvalidSetting, "lattice 'm'"),
        ({"perturbation": physics.Unit("nobody")}, lo.InvalidSetting, "nobody"),
        ({"perturbation": physics.Unit(element=99)}, lo.InvalidSetting, "no element 99"),
        ({"perturbation": physics.Sample(row=8)}, lo.InvalidSetting, "row=8"),
        ({"perturbation": physics.Fresh(seed=0)}, lo.InvalidSetting, "that very seed"),
    ],
)
def test_what_cannot_be_is_refused_and_the_run_stands(given, error, message):
    traj, _ = run()
    before = traj.digest()
    with pytest.raises(error, match=message):
        physics.echo(traj, **given)
    assert traj.digest() == before and traj.step == 40
    assert traj.seek(0).seek(40).digest() == before


def test_an_echo_that_blows_up_says_where_and_keeps_what_it_saw():
    traj, _ = run("SGD", 250)
    before = traj.digest()
    seen = physics.echo(traj, None, physics.Nudge(5.0, lattice="p"), every=1)
    assert seen.exact is None and "past its end" in seen.ended_by
    assert 1 < len(seen.rows) < 250
    assert traj.digest() == before


def test_results_are_data():
    traj, observe = run()
    v = {"0.weight": torch.ones(5, 3)}
    for p in (None, *PERTURBED.values(), physics.Nudge(1e-6, v), physics.Floats()):
        seen = physics.echo(traj, 10, p, observe=observe)
        written = json.loads(json.dumps(seen.to_dict()))
        assert written["turn"] == 40 and written["steps"] == 10 and len(written["rows"]) == 11
        assert written["perturbation"]["kind"] == seen.perturbation["kind"]
    console = Console(record=True, width=100)
    console.print(seen.table())
    assert "Echo from step 40" in console.export_text()
    assert seen.column("step")[0] == 40 and seen.column("distance", "p")[0] > 0


def test_gauge_directions_echo_as_the_function_did():
    model = OneLayerTransformer(5, width=8, heads=2, hidden=8, dtype=torch.float64)
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    data = lo.data.Schedule((pairs, pairs.sum(1) % 5), batch_size=None)
    traj = lo.Trajectory(model, lo.optim.ECD(model.parameters(), lr=0.1), loss, data).seek(40)
    turned = physics.gauge_directions(model, limit=1, optimizer=traj.optimizer)[0]
    gauge, random = physics.echo(
        traj, None, [physics.Nudge(1e-3, turned), physics.Nudge(1e-3)], observe=lambda model: model(pairs)
    )
    assert gauge.rows[0]["distance"]["q"] > 0.1 * random.rows[0]["distance"]["q"]
    assert gauge.rows[-1]["rms"] < 0.01 * random.rows[-1]["rms"]


def test_a_run_in_a_folder_is_not_committed_to_by_echoes(tmp_path):
    traj, _ = run("SGD", tape=tmp_path / "run")
    before = traj.digest()
    physics.echo(traj, 10, 1e-6)
    traj.close()
    again, _ = run("SGD", to=0)
    loaded = lo.Trajectory.load(tmp_path / "run", model=again.model, loss=loss, data=again.data)
    assert loaded.digest() == before
    loaded.close()


@pytest.mark.parametrize("integrator", ["euler", "leapfrog"])
def test_past_a_start_with_a_momentum_goes_the_path_that_leads_to_it(integrator):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    x = torch.randn(30, 3, dtype=torch.float64)
    opt = lo.optim.ECD(model.parameters(), lr=0.05, F0=-1.0, delta_energy=0.5, integrator=integrator)
    data = lo.data.Schedule((x, x.sum(1, keepdim=True)), 7, seed=3)
    traj = lo.Trajectory(model, opt, lambda m, b: (m(b[0]) - b[1]).square().mean(), data).seek(12)
    turn, reversed_time = traj.digest(), {}
    seen = physics.echo(traj, 12, None, every=1, beyond=9, keep=True)

    def note(traj):
        reversed_time[24 - traj.step] = Layout(opt).read()[0]

    with traj.time_reversed():
        traj.seek(24 + 9, on_step=note)
    assert traj.digest() == turn and seen.column("step")[-10:] == [*range(0, -10, -1)]
    assert all(torch.equal(seen.states[step][0], reversed_time[step]) for step in range(-9, 12))


def test_going_beyond_with_settings_that_have_no_mirror_image_is_refused_before_anything_is_done():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(3, 1).double(), torch.randn(30, 3, dtype=torch.float64)
    opt = lo.optim.ECD(model.parameters(), lr="auto", F0=-1.0)
    traj = lo.Trajectory(model, opt, lambda m, b: m(b[0]).square().mean(), lo.data.Schedule((x,), 7)).seek(5)
    looked = []
    with pytest.raises(lo.InvalidSetting, match="auto"):
        physics.echo(traj, None, None, beyond=2, observe=looked.append)
    opt.param_groups[0]["lr"] = 0.05
    traj.seek(8)
    with pytest.raises(lo.InvalidSetting, match="cannot be multiplied"):  # on the steps further down
        physics.echo(traj, None, physics.Rate(), observe=lambda m: m(x))
    assert not looked and traj.step == 8


def test_the_heating_of_steps_that_were_chosen_is_predicted_with_their_lr():
    def predicted(lr):
        torch.manual_seed(0)
        model, x = torch.nn.Linear(3, 1).double(), torch.randn(30, 3, dtype=torch.float64)
        opt = lo.optim.ECD(model.parameters(), lr="auto", F0=-1.0)
        traj = lo.Trajectory(model, opt, lambda m, b: (m(b[0]) - 1).square().mean(), lo.data.Schedule((x,), 7))
        with pytest.raises(lo.InvalidSetting, match="no lr is known"):
            physics.predicted_heating(traj, batches=4)
        traj.seek(5)
        opt.param_groups[0]["lr"] = lr or opt.carried["lr"]
        return physics.predicted_heating(traj, batches=4).value

    assert predicted("auto") == predicted(None) > 0


@pytest.mark.parametrize(
    ("perturbation", "message"),
    [
        (physics.Unit(units=0), "units=0 moves nothing"),
        (physics.Sample(at=20), "at=20: the way back takes the batches of steps 19 to 10"),
        (physics.Sample(at=3), "at=3: the way back takes"),
        (physics.Rate(float("nan")), "factor=nan makes no lr"),
        (physics.Rate(-1.0), "factor=-1.0 makes no lr"),
    ],
)
def test_a_perturbation_that_changes_nothing_or_makes_no_sense_is_refused(perturbation, message):
    traj, _ = run("ECD", 20)
    before = traj.digest()
    with pytest.raises(lo.InvalidSetting, match=message):
        physics.echo(traj, 10, perturbation)
    assert traj.digest() == before


def test_no_echo_from_the_start_and_none_seen_through_what_is_no_tensor():
    traj, _ = run("ECD", 0)
    with pytest.raises(lo.errors.OutOfReach, match="seek forward"):
        physics.echo(traj)
    with pytest.raises(lo.InvalidSetting, match=r"observe.*NoneType.*tensor"):
        physics.echo(traj.seek(2), observe=lambda model: None)
