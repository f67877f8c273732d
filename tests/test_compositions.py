"""Palindromic compositions: their orders, their exact way back, and time reversal beside undoing."""

import math
from functools import partial

import pytest
import torch
from torch import nn

import loschmidt as lo
from loschmidt.dynamics import COMPOSITIONS
from reference.bits import flip

HIGHER = [name for name, composition in COMPOSITIONS.items() if composition.weights]
SMALL = {"resolution": 2.0**-50}


def oscillator(integrator, lr, **settings):
    """An anharmonic oscillator in two dimensions, started on a slope."""
    q = nn.Parameter(torch.tensor([1.0, 0.3], dtype=torch.float64))
    opt = lo.optim.ECD([q], lr=lr, F0=-1.0, integrator=integrator, **(SMALL | settings))

    def closure():
        opt.zero_grad()
        loss = q.square().sum() / 2 + q.pow(4).sum() / 4
        loss.backward()
        return loss

    return q, opt, closure


def network(integrator, lr):
    """A small smooth network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    opt = lo.optim.ECD(model.parameters(), lr=lr, F0=-1.0, weight_decay=1e-2, integrator=integrator, **SMALL)

    def closure():
        opt.zero_grad()
        loss = (model(x) - x.prod(1, keepdim=True)).square().mean()
        loss.backward()
        return loss

    return None, opt, closure, model


def end(make, integrator, time, steps):
    _, opt, closure, *_ = make(integrator, time / steps)
    for _ in range(steps):
        opt.step(closure)
    return torch.cat([p.detach().flatten() for group in opt.param_groups for p in group["params"]])


@pytest.mark.parametrize("make, time, steps", [(oscillator, 4.0, (40, 40, 40)), (network, 8.0, (48, 40, 16))])
@pytest.mark.parametrize("integrator", HIGHER)
def test_orders(integrator, make, time, steps):
    expected = COMPOSITIONS[integrator].order
    n = steps[expected // 2 - 1]  # higher orders reach the lattice's resolution sooner
    a, b, c = (end(make, integrator, time, k * n) for k in (1, 2, 4))
    order = math.log2(float((a - b).norm() / (b - c).norm()))
    assert abs(order - expected) < 0.1


@pytest.mark.parametrize("integrator", ["leapfrog", "forest-ruth"])
def test_orders_hold_from_a_start_with_a_momentum(integrator):
    moving = partial(oscillator, delta_energy=0.5)
    a, b, c = (end(moving, integrator, 4.0, steps) for steps in (40, 80, 160))
    order = math.log2(float((a - b).norm() / (b - c).norm()))
    assert abs(order - COMPOSITIONS[integrator].order) < 0.1
    _, opt, closure = moving(integrator, 0.1)
    start = opt.digest()
    for _ in range(9):
        opt.step(closure)
    for _ in range(9):
        opt.unstep(closure)
    assert opt.digest() == start


@pytest.mark.parametrize("integrator", ["euler", "leapfrog"])
def test_time_reversed_at_a_start_with_a_momentum_goes_to_where_the_path_comes_from(integrator):
    """Both ways of going past the start: from it, and over it from a later step."""

    def before_the_start(steps):
        q, opt, closure = oscillator(integrator, 0.05, delta_energy=0.5)
        for _ in range(steps):
            opt.step(closure)
        opt.reverse_time()
        for _ in range(steps + 7):
            opt.step(closure)
        return q.detach()

    assert torch.equal(before_the_start(0), before_the_start(3))


@pytest.mark.parametrize("integrator", COMPOSITIONS)
def test_weights_make_a_palindrome_of_one_step(integrator):
    step = COMPOSITIONS[integrator].step()
    for kind in ("kick", "drift"):
        assert math.isclose(sum(share for k, share in step if k == kind), 1.0, rel_tol=1e-14)
    assert (step == step[::-1]) == bool(COMPOSITIONS[integrator].weights)
    assert COMPOSITIONS[integrator].step(mirrored=True) == step[::-1]


@pytest.mark.parametrize("integrator", HIGHER)
def test_every_bit_returns_and_not_after_a_flip(integrator):
    _, opt, closure = oscillator(integrator, 0.1)
    states = []
    for _ in range(20):
        states.append({k: x.n.clone() for k, x in opt._slots[0].block.lattices.items()})
        opt.step(closure)
    turn = opt.digest()
    for state in reversed(states):
        opt.unstep(closure)
        assert all(torch.equal(x.n, state[k]) for k, x in opt._slots[0].block.lattices.items())
    start = opt.digest()
    for _ in range(20):
        opt.step(closure)
    assert opt.digest() == turn
    flip(opt._slots[0].integers("p"), 0, 3)
    with pytest.raises(lo.errors.ReplayMismatch):
        for _ in range(20):
            opt.unstep(closure)
    assert opt.digest() not in (start, turn)


def test_energy_does_not_drift():
    """Over 15 periods it comes back to where it was; the oscillation is of the step's order."""
    for integrator, most in (("leapfrog", 5e-3), ("forest-ruth", 5e-4)):
        _, opt, closure = oscillator(integrator, 0.1)
        start, worst = opt.energy_at(float(closure().detach())), []
        for k in range(1000):
            opt.step(closure)
            if k >= 900 or k < 100:
                worst.append(abs(opt.energy_at(float(closure().detach())) - start))
        assert 0 < max(worst[100:]) < most
        assert max(worst[100:]) < 1.5 * max(worst[:100])


def test_what_a_composition_asks_for():
    _, opt, closure = oscillator("leapfrog", 0.1)
    before = opt.digest()
    with pytest.raises(lo.errors.InvalidSetting, match="closure"):
        opt.step(loss=closure())
    with pytest.raises(lo.errors.InvalidSetting, match="integrator"):
        oscillator("rk4", 0.1)
    for setting in ({"nu": 0.1}, {"conserve": "rescale"}, {"decoupled": True, "weight_decay": 0.1}, {"momentum": 0.9}):
        with pytest.raises(lo.errors.InvalidSetting, match=next(iter(setting))):
            oscillator("leapfrog", 0.1, **setting)
    assert opt.digest() == before


def test_a_closure_that_fails_half_way_changes_nothing():
    q, opt, closure = oscillator("yoshida", 0.1)
    opt.step(closure)
    before, weights, calls = opt.digest(), q.detach().clone(), []

    def failing():
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("no data")
        return closure()

    for move in (opt.step, opt.unstep):
        calls.clear()
        with pytest.raises(ValueError, match="no data"):
            move(failing)
        assert opt.digest() == before and torch.equal(q, weights)
        assert opt.energy is None  # a palindrome's steps have none, and half of one leaves none
    opt.unstep(closure)


def test_batch_norm_and_missing_gradients_are_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    unused = nn.Parameter(torch.ones(2))
    x = torch.randn(8, 2)

    def closure():
        opt.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    opt = lo.optim.ECD([*model.parameters(), unused], lr=0.1, F0=-1.0, integrator="leapfrog")
    before, mean = opt.digest(), model[1].running_mean.clone()
    with pytest.raises(lo.errors.InvalidSetting, match="no gradient"):
        model.eval()
        opt.step(closure)
    model.train()
    traj_opt = lo.optim.ECD(model.parameters(), lr=0.1, F0=-1.0, integrator="leapfrog")
    traj = lo.Trajectory(model, traj_opt, lambda m, b: m(b).square().mean(), lambda step: x)
    with pytest.raises(lo.errors.InvalidSetting, match="BatchNorm"):
        traj.seek(1)
    assert torch.equal(model[1].running_mean, mean) and opt.digest() == before


def test_a_step_that_coarsened_momenta_and_then_failed_leaves_resolution_and_tape_as_they_were():
    q = nn.Parameter(torch.tensor([1.0, 0.5], dtype=torch.float64))
    opt = lo.optim.ECD([q], lr=0.1, F0=-1e-4, integrator="yoshida", resolution=2.0**-55)
    calls = []

    def closure():
        opt.zero_grad()
        calls.append(0)
        if len(calls) == fails_at:
            raise RuntimeError("no more")
        loss = (q - q.detach()).sum() + (q.detach() - 1).square().sum() * 0  # steep, and as good as zero
        loss.backward()
        return loss

    before, bits, fails_at = opt.digest(), opt.tape.bits, 4
    lattice = opt._slots[0].block.lattices["p"]
    exponents = lattice.e.tolist()
    with pytest.raises(RuntimeError, match="no more"):
        opt.step(closure)
    assert lattice.e.tolist() == exponents
    assert opt.digest() == before and opt.tape.bits == bits
    calls.clear()
    fails_at = -1
    opt.step(closure)
    assert lattice.e.tolist() != exponents
    opt.unstep(closure)
    assert opt.digest() == before and lattice.e.tolist() == exponents


def test_the_loss_is_that_of_the_state_after_going_back_over_a_step_that_begins_with_a_drift():
    model = nn.Linear(2, 1).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    opt = lo.optim.ECD(model.parameters(), lr=0.1, F0=-1.0, integrator="leapfrog")
    traj = lo.Trajectory(model, opt, lambda m, b: m(b).square().mean(), lambda step: x)
    traj.seek(9).seek(5)
    assert traj.loss == float(traj.loss_fn(model, x).detach())


# -- time reversal -----------------------------------------------------------------------------------


@pytest.mark.parametrize("integrator", ["euler", "leapfrog", "yoshida"])
def test_flipped_and_mirrored_steps_retrace_the_path_and_flipped_ones_alone_do_not(integrator):
    def distance(mirrored):
        _, opt, closure = oscillator(integrator, 0.05)
        start = opt._slots[0].integers("q").clone()
        for _ in range(40):
            opt.step(closure)
        if mirrored:
            opt.reverse_time()
        else:
            opt._slots[0].integers("p").neg_()
        turn = opt.digest()
        for _ in range(40):
            opt.step(closure)
        end = opt._slots[0].integers("q").clone()
        for _ in range(40 if mirrored else 0):
            opt.unstep(closure)
        assert not mirrored or opt.digest() == turn
        return int((end - start).abs().max())

    assert distance(True) == 0
    assert (distance(False) == 0) == bool(COMPOSITIONS[integrator].weights)


def test_time_reversed_trajectory_with_batches_and_past_the_start():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(30, 3, dtype=torch.float64)
    opt = lo.optim.ECD(model.parameters(), lr=0.05, F0=-1.0)
    data = lo.data.Schedule((x, x.sum(1, keepdim=True)), 7, seed=3)
    traj = lo.Trajectory(model, opt, lambda m, b: (m(b[0]) - b[1]).square().mean(), data)
    start = [s.integers("q").clone() for s in opt._slots]
    begin, there = traj.digest(), traj.seek(12).digest()
    with traj.time_reversed():
        traj.seek(24)
        assert all(torch.equal(s.integers("q"), n) for s, n in zip(opt._slots, start, strict=True))
        past = traj.seek(40).digest()
        assert traj.seek(12).seek(40).digest() == past  # reversed steps can be undone, too
        assert traj.seek(7).seek(40).digest() == past  # the turn among them: below it time runs forward
        with traj.time_reversed():  # forward again, from step 40
            assert traj.seek(50).seek(30).seek(50).step == 50
            with pytest.raises(lo.errors.InvalidSetting, match="time runs backwards"):
                traj.save("nowhere")
            traj.seek(68)
            ends = [s.integers("q").clone() for s in opt._slots]
        assert traj.seek(12).seek(40).digest() == past
    assert traj.digest() == there
    assert all(torch.equal(s.integers("q"), n) for s, n in zip(opt._slots, ends, strict=True))
    with traj.edit() as m, torch.no_grad():
        m[0].weight += 1e-6
    with traj.time_reversed():
        traj.seek(24)
        assert not all(torch.equal(s.integers("q"), n) for s, n in zip(opt._slots, start, strict=True))
    assert begin != there


def test_a_source_without_negative_steps_and_an_optimizer_with_friction_are_refused():
    model = nn.Linear(2, 1).double()
    batches = {step: torch.randn(4, 2, dtype=torch.float64) for step in range(6)}
    opt = lo.optim.ECD(model.parameters(), lr=0.05, F0=-1.0)
    traj = lo.Trajectory(model, opt, lambda m, b: m(b).square().mean(), batches.__getitem__)
    there = traj.seek(4).digest()
    with traj.time_reversed():
        with pytest.raises(lo.errors.OutOfReach, match="no step -1"):
            traj.seek(10)
        assert traj.step == 8
    assert traj.digest() == there
    bbi = lo.optim.BBI(model.parameters(), lr=0.1)
    other = lo.Trajectory(model, bbi, lambda m, b: m(b).square().mean(), batches.__getitem__)
    with pytest.raises(lo.errors.InvalidSetting, match="mirror image"), other.time_reversed():
        pass
    decoupled = lo.optim.ECD(model.parameters(), lr=0.1, weight_decay=0.1, decoupled=True)
    with pytest.raises(lo.errors.InvalidSetting, match="decoupled"):
        decoupled.reverse_time()
    assert not decoupled.param_groups[0]["mirrored"]
    sgd = lo.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    other = lo.Trajectory(model, sgd, lambda m, b: m(b).square().mean(), batches.__getitem__)
    with pytest.raises(lo.errors.InvalidSetting, match="friction"), other.time_reversed():
        pass


def test_a_group_added_after_the_turn_does_not_stand_in_the_way_back():
    """Of what all groups share it has, at steps before it came, what those steps used."""
    q, added = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    opt = lo.optim.ECD([q], lr=0.05, delta_energy=0.5)

    def gradients(step):
        q.grad, added.grad = q.detach().clone(), added.detach().clone() if step > 2 else None
        return q.detach().square().sum()

    for step in range(4):
        if step == 3:
            opt.reverse_time()
            opt.add_param_group({"params": [added], "mirrored": True})
        opt.step(lambda step=step: gradients(step))
    for step in (3, 2, 1, 0):
        opt.unstep(lambda step=step: gradients(step))
        assert [group["mirrored"] for group in opt.param_groups] == 2 * [step == 3]
    opt.step(lambda: gradients(0))
    assert torch.equal(added, torch.ones(2))


def test_time_is_reversed_with_an_lr_that_is_a_tensor_too():
    q, opt, closure = oscillator("euler", torch.tensor(0.05))
    start = q.detach().clone()
    for _ in range(5):
        opt.step(closure)
    opt.reverse_time()
    for _ in range(5):
        opt.step(closure)
    assert torch.equal(q.detach(), start)
