"""lr="auto": the energy keeps within its tolerance, steps taken anew leave no trace, and every bit returns."""

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
    return max(errors), len(steps) + 2 * opt.rejected


def test_it_keeps_the_energy_with_fewer_gradients_than_a_fixed_step():
    worst, gradients = change_of_energy(run(), 6.0)
    assert worst < 1e-2
    lr = next(lr for lr in (0.04, 0.02, 0.01, 0.005) if change_of_energy(run(lr), 6.0)[0] < 1e-2)
    assert gradients < 6.0 / lr


def test_a_tighter_tolerance_is_kept_with_more_gradients():
    loose, tight = (change_of_energy(run(tolerance=t), 3.0) for t in (1e-2, 3e-3))
    assert tight[0] < 3e-3 and tight[1] > loose[1]


@pytest.mark.parametrize("lanes", [1 << 16, 1])
def test_every_bit_returns_and_comes_again(lanes, monkeypatch):
    monkeypatch.setattr("loschmidt.exact.tape.MAX_LANES", lanes)
    traj = run()
    start, half, there = traj.digest(), traj.seek(STEPS // 2).digest(), traj.seek(STEPS).digest()
    assert traj.optimizer.rejected > 0
    assert traj.tape.bits == 0
    assert traj.journal.bytes < 60 * STEPS
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
    with pytest.raises(lo.errors.InvalidSetting, match="lr"):
        ridges("fast")
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


def test_batches_that_differ_are_refused_and_nothing_is_lost():
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    x, y = torch.randn(40, 3, dtype=torch.float64), 3 * torch.randn(40, 1, dtype=torch.float64)
    opt = lo.optim.ECD(model.parameters(), lr="auto")
    traj = lo.Trajectory(model, opt, lambda m, b: (m(b[0]) - b[1]).square().mean(), lo.data.Schedule((x, y), 4))
    start = traj.digest()
    with pytest.raises(lo.errors.InvalidSetting, match="mini-batch"):
        traj.seek(50)
    assert traj.seek(0).digest() == start
