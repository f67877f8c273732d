"""lr="auto": the energy keeps within its tolerance, steps taken anew leave no trace, and every bit returns."""

import warnings

import pytest
import torch
from torch import nn

import loschmidt as lo
from reference.bits import flip

STEPS = 120


def ridges(lr="auto", **settings):
    """A bowl with steep narrow ridges across the way: rare spikes of curvature."""
    q = nn.Parameter(torch.tensor([2.0, -1.2], dtype=torch.float64))
    opt = lo.optim.ECD([q], lr=lr, F0=-1.0, resolution=2.0**-45, **settings)
    model = nn.Module()
    model.q = q

    def loss(model, batch=None):
        x, y = model.q
        return (x * x + y * y) / 2 + 0.3 * torch.exp(-200 * (x - y / 2 - 0.7) ** 2)

    return model, opt, loss


def run(lr="auto", **settings):
    model, opt, loss = ridges(lr, **settings)
    return lo.Trajectory(model, opt, loss, lambda step: 0)


def change_of_energy(traj, time):
    """Largest change of H over a time, and the gradients that it took."""
    opt, errors, steps = traj.optimizer, [], []

    def look(traj):
        steps.append(opt.carried.get("lr", opt.param_groups[0]["lr"]))
        errors.append(abs(opt.energy - opt.carried["shell"]))
        return sum(steps) >= time

    traj.seek(20_000, on_step=look)
    each = 2 if opt.param_groups[0]["lr"] == "auto" else 1
    return max(errors), each * (len(steps) + opt.rejected)


def test_it_keeps_the_energy_with_fewer_gradients_than_a_fixed_step():
    worst, gradients = change_of_energy(run(), 6.0)
    assert worst < 1e-2
    lr = next(lr for lr in (0.04, 0.02, 0.01, 0.005) if change_of_energy(run(lr), 6.0)[0] < 1e-2)
    assert gradients < 6.0 / lr


def test_a_tighter_tolerance_is_kept_with_more_gradients():
    loose, tight = (change_of_energy(run(tolerance=t), 3.0) for t in (1e-2, 3e-3))
    assert tight[0] < 3e-3 and tight[1] > loose[1]


def test_every_bit_returns_and_comes_again():
    traj = run()
    start, half, there = traj.digest(), traj.seek(STEPS // 2).digest(), traj.seek(STEPS).digest()
    assert traj.optimizer.rejected > 0
    assert traj.tape.bits == 0
    assert traj.journal.bytes < 200 * STEPS
    assert traj.seek(STEPS // 2).digest() == half
    assert traj.seek(STEPS).digest() == there
    assert traj.seek(0).digest() == start
    assert traj.seek(STEPS).digest() == there


def test_one_flipped_bit_is_noticed():
    traj = run()
    start = traj.digest()
    traj.seek(STEPS)
    flip(traj.optimizer._slots[0].integers("p"), 0, 2)
    with pytest.raises(lo.errors.ReplayMismatch):
        traj.seek(0)
    assert traj.digest() != start


def test_a_changed_lr_in_the_record_is_noticed():
    traj = run()
    traj.seek(STEPS)
    entry = traj.journal.entries[STEPS // 2]
    entry["carried"] = {"lr": entry["carried"]["lr"] * (1 + 2.0**-30)}
    with pytest.raises(lo.errors.ReplayMismatch):
        traj.seek(0)


def test_a_saved_run_goes_on_to_the_same_bits(tmp_path):
    traj = run()
    traj.seek(STEPS // 2)
    traj.save(tmp_path / "run.safetensors")
    there = traj.seek(STEPS).digest()
    model, _, loss = ridges()
    again = lo.Trajectory.load(tmp_path / "run.safetensors", model=model, loss=loss, data=lambda step: 0)
    assert again.seek(STEPS).digest() == there
    start = again.seek(0).digest()
    assert start == run().digest()


def test_what_it_asks_for():
    model, opt, loss = ridges()
    before = opt.digest()
    loss(model).backward()
    with pytest.raises(lo.errors.InvalidSetting, match="closure"):
        opt.step(loss=loss(model))
    assert opt.digest() == before
    with pytest.raises(lo.errors.InvalidSetting, match=r'lr.*"auto"'):
        ridges("fast")
    for name in ("mirrored", "decoupled"):
        with pytest.raises(lo.errors.InvalidSetting, match=f"{name}.*True or False"):
            ridges(0.1, **{name: "no"})
    with pytest.raises(lo.errors.InvalidSetting, match=r"no loss \(an empty batch"):
        lo.Trajectory(*ridges(), lambda step: 0 if step < 2 else None).seek(3)
    with pytest.raises(lo.errors.InvalidSetting, match="tolerance"):
        ridges(tolerance=0.0)
    for settings in ({"nu": 0.1}, {"conserve": "rescale"}, {"integrator": "leapfrog"}):
        with pytest.raises(lo.errors.InvalidSetting):
            ridges(**settings)
    a, b = (nn.Parameter(torch.ones(2)) for _ in "ab")
    mixed = lo.optim.ECD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": "auto"}])
    with pytest.raises(lo.errors.InvalidSetting, match="all groups"):
        mixed.step(lambda: (a * b).sum())
    with pytest.raises(lo.errors.InvalidSetting, match="schedule"):
        lo.Trajectory(model, opt, loss, lambda step: 0, lr=lambda step: 1.0)


@pytest.mark.parametrize("lr", [0.1, 0.07])
def test_a_step_past_stability_is_told_with_the_step_that_would_do(lr):
    with pytest.warns(RuntimeWarning, match="past stability") as seen:
        run(lr).seek(int(12 / lr))
    would_do = float(str(seen[0].message).split("Remedy: lr=")[1].split(" ")[0])
    assert lr / 4 < would_do < lr
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(would_do).seek(int(12 / would_do))
        traj = noisy(0.05)
        traj.seek(40)  # energies of mini-batches jump, and that is no error
        traj = run(0.02)
        traj.seek(5)
        with traj.edit() as model, torch.no_grad():
            model.q.mul_(3.0)
        traj.seek(9)
        for name, value in (("eta", 3.0), ("F0", -2.0), ("weight_decay", 0.5)):  # another energy, and no error
            traj.optimizer.param_groups[0][name] = value
            traj.seek(traj.step + 3)
    model, opt, loss = ridges(1.0)
    traj = lo.Trajectory(model, opt, loss, lambda step: 0, lr=lambda step: lr - 1e-6 * step)
    with pytest.warns(RuntimeWarning, match="past stability"):  # an lr that is another at each step is no excuse
        traj.seek(int(12 / lr))


def test_bbis_energy_is_watched_too():
    def fall(lr):
        q = nn.Parameter(torch.tensor([2.0, -1.2], dtype=torch.float64))
        model = nn.Module()
        model.q = q
        opt = lo.optim.BBI([q], lr=lr, F0=-1.0)
        lo.Trajectory(model, opt, lambda m, batch: m.q.square().sum() / 2, lambda step: 0).seek(int(6 / lr))

    with pytest.warns(RuntimeWarning, match="energy by .*%.*past stability") as seen:
        fall(0.6)
    assert "auto" not in str(seen[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fall(float(str(seen[0].message).split("Remedy: lr=")[1].split(" ")[0]))


def noisy(lr="auto", **settings):
    """A small network on mini-batches; two gradients of a step see the same batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y = torch.randn(40, 3, dtype=torch.float64), 3 * torch.randn(40, 1, dtype=torch.float64)
    opt = lo.optim.ECD(model.parameters(), lr=lr, **settings)
    return lo.Trajectory(model, opt, lambda m, b: (m(b[0]) - b[1]).square().mean(), lo.data.Schedule((x, y), 4))


def test_with_mini_batches_the_energy_is_kept_within_each_step_and_every_bit_returns():
    traj, opt = noisy(tolerance=1e-4), None
    start, opt = traj.digest(), traj.optimizer
    steps = []

    def look(traj):
        after = opt.energy_at(float(traj.loss_fn(traj.model, traj.data(traj.step - 1)).detach()))
        steps.append(abs(after - opt.energy))

    traj.seek(60, on_step=look)
    assert 0 < max(steps) < 1e-6
    there = traj.digest()
    assert traj.seek(0).digest() == start
    assert traj.seek(60).digest() == there


def _edit_later(traj):
    with traj.branch():
        traj.seek(45)
        with traj.edit() as model, torch.no_grad():
            next(model.parameters()).mul_(1.5)
        traj.seek(50)


def _edit_and_undo_in_a_branch(traj):
    with traj.branch():
        with traj.edit() as model, torch.no_grad():
            next(model.parameters()).mul_(3.0)
        traj.seek(42).seek(41).seek(20)


@pytest.mark.parametrize("between", [_edit_later, _edit_and_undo_in_a_branch, lambda traj: traj.seek(0).seek(40)])
@pytest.mark.parametrize("make", [run, noisy])
def test_a_step_is_a_function_of_the_state_it_begins_at(make, between):
    traj = make()
    there, rejected = traj.seek(80).digest(), traj.optimizer.rejected
    again = make()
    again.seek(40)
    between(again)
    assert again.seek(79).seek(80).digest() == there
    one = make()
    for step in range(1, 81):
        one.seek(step)
    assert one.digest() == there and one.optimizer.rejected == rejected


def test_an_edit_or_a_new_group_does_not_shorten_the_steps_that_follow():
    traj = noisy()
    traj.seek(60)
    usual = traj.optimizer.carried["lr"]
    with traj.edit() as model, torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    traj.seek(120)
    assert traj.optimizer.carried["lr"] > usual / 10
    extra = nn.Linear(1, 1).double()
    traj.model.append(extra)
    traj.optimizer.add_param_group({"params": extra.parameters()})
    traj = lo.Trajectory(traj.model, traj.optimizer, traj.loss_fn, traj.data)
    before = traj.digest()
    traj.seek(180)
    assert traj.optimizer.carried["lr"] > usual / 10
    assert traj.seek(120).digest() == before


def test_a_loss_that_is_another_at_each_look_is_refused_and_nothing_moves():
    model, opt, loss = ridges()
    calls = []

    def closure():
        opt.zero_grad()
        calls.append(0)
        value = loss(model) + 1e-3 * (len(calls) % 2)
        value.backward()
        return value

    before = opt.digest()
    with pytest.raises(lo.errors.InvalidSetting, match="not the same"):
        opt.step(closure)
    assert opt.digest() == before and opt.steps == 0


def test_a_loss_that_is_not_finite_within_a_step_moves_nothing():
    model, opt, loss = ridges()
    calls = []

    def closure():
        opt.zero_grad()
        calls.append(0)
        value = loss(model) * (float("nan") if len(calls) % 2 == 0 else 1.0)
        value.backward()
        return value

    before = opt.digest()
    with pytest.raises(lo.errors.NonFinite):
        opt.step(closure)
    assert opt.digest() == before and opt.steps == 0


def test_a_try_that_leaves_the_domain_of_the_loss_is_given_up_for_a_shorter_one():
    """A wall of infinite slope at |q| = 1, beyond which the loss is not a number."""
    q = nn.Parameter(torch.tensor([0.9999, 0.1], dtype=torch.float64))
    opt = lo.optim.ECD([q], lr="auto", F0=-2.1)
    model = nn.Module()
    model.q = q
    traj = lo.Trajectory(model, opt, lambda m, batch: (1 + m.q - (1 - m.q.square()).sqrt()).sum(), lambda step: 0)
    start = traj.digest()
    traj.seek(160)
    assert abs(opt.energy - opt.carried["shell"]) < 1e-2
    assert traj.seek(0).digest() == start


def test_a_branch_leaves_the_energy_as_it_was():
    traj = run()
    energy = traj.seek(20).optimizer.energy
    with traj.branch():
        traj.seek(30)
    assert traj.optimizer.energy == energy
