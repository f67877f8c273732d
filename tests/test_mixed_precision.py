"""bfloat16, as autocast and as parameters, and accumulated gradients: every bit there and back."""

import contextlib

import pytest
import torch
from torch import nn

import loschmidt as lo
from reference.bits import bits_of, differences
from reference.mixed import STEPS, WAYS, Case, InLoop, InTrajectory, wrong

SGD = {"kind": lo.optim.SGD, "settings": {"lr": 0.05, "momentum": 0.9}}
ECD = {"kind": lo.optim.ECD, "settings": {"lr": 0.1, "weight_decay": 1e-3}}
BFLOAT16 = {"dtype": torch.bfloat16}

CASES = {
    "autocast": Case(autocast=True),
    "autocast-sgd": Case(autocast=True, **SGD),
    "bfloat16": Case(**BFLOAT16),
    "bfloat16-sgd": Case(**BFLOAT16, **SGD),
    "bfloat16-ecd": Case(**BFLOAT16, **ECD),
    "accumulating-2": Case(micro=2, **SGD),
    "accumulating-4": Case(micro=4),
    "accumulating-ecd": Case(micro=3, **ECD),
    "autocast-accumulating": Case(autocast=True, micro=3),
    "bfloat16-accumulating": Case(micro=3, **BFLOAT16, **SGD),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_mixed_precision_comes_back_with_every_bit(name, way):
    assert wrong(CASES[name], way) == []


# -- autocast ------------------------------------------------------------------------------------------


class Around(InLoop):
    """Autocast around everything: passes, steps and undoing."""

    def seek(self, step):
        with torch.autocast("cpu", torch.bfloat16):
            super().seek(step)


class AroundTrajectory(InTrajectory):
    """... and around the trajectory."""

    def __init__(self, case):
        with torch.autocast("cpu", torch.bfloat16):
            super().__init__(case)

    def seek(self, step):
        with torch.autocast("cpu", torch.bfloat16):
            super().seek(step)


def path(walk):
    """Integers and tape, there and back and there and back."""
    out = []
    for step in (STEPS, 4, STEPS, 0):
        walk.seek(step)
        out.append(bits_of(walk.opt))
    return out


@pytest.mark.parametrize("kind", [Around, AroundTrajectory])
def test_casts_that_autocast_keeps_do_not_outlive_a_step_or_its_undoing(kind, monkeypatch):
    """Inside one autocast all has the bits that it has where each forward pass opens its own."""
    each, around, spoilt = InLoop(Case(autocast=True, **SGD)), kind(Case(**SGD)), kind(Case(**SGD))
    for walk in (each, around, spoilt):
        walk.model.drop.p = 0.0  # a trajectory seeds it by another key
    expected = path(each)
    assert not any(map(differences, expected, path(around)))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "clear_autocast_cache", lambda: None)
        wrong = [bool(differences(*pair)) for pair in zip(expected, path(spoilt), strict=True)]
    torch.clear_autocast_cache()
    assert wrong[:3] == [True] * 3


def test_unstep_inside_one_autocast_evaluates_at_the_restored_parameters():
    walk, losses = InLoop(Case(**SGD)), []
    with torch.autocast("cpu", torch.bfloat16):
        for step in range(STEPS):
            losses.append(float(walk.passes(step)))
            walk.opt.step()
        assert losses[0] != losses[1]
        while walk.opt.steps:
            assert float(walk.opt.unstep(lambda: walk.passes(walk.opt.steps - 1))) == losses.pop()


def test_a_look_at_the_loss_does_not_take_gradients_away():
    """A cast made without gradients would be taken for the step, too."""
    plain, looked = AroundTrajectory(Case(**SGD)), AroundTrajectory(Case(**SGD))
    with torch.autocast("cpu", torch.bfloat16):
        for step in range(1, 4):
            assert looked.traj.loss > 0
            looked.traj.seek(step)
            plain.traj.seek(step)
    assert plain.digest() == looked.digest()


@pytest.mark.filterwarnings("ignore::loschmidt.errors.EnvironmentChanged")
def test_an_autocast_around_the_trajectory_is_part_of_the_record():
    walk = AroundTrajectory(Case(**SGD))
    start = walk.digest()
    walk.seek(STEPS)
    turn = walk.digest()
    with pytest.raises(lo.SourceChanged, match=r"autocast was 'torch.bfloat16', is ''"):
        walk.traj.seek(0)
    assert walk.digest() == turn
    walk.seek(0)
    assert walk.digest() == start


def test_autocast_leaves_parameters_and_gradients_in_float32_and_is_used():
    walk = InLoop(Case(autocast=True, **SGD))
    walk.passes(0)
    assert {p.dtype for p in walk.model.parameters()} == {p.grad.dtype for p in walk.model.parameters()}
    other = InLoop(Case(**SGD))
    other.passes(0)
    assert not torch.equal(walk.model.first.weight.grad, other.model.first.weight.grad)


# -- bfloat16 parameters ---------------------------------------------------------------------------------


def line(dtype, kind, steps, lr=1e-4):
    """A linear fit whose updates are far below bfloat16's resolution. Returns weight, start and optimizer."""
    make = torch.Generator().manual_seed(0)
    x, w = torch.randn(256, 32, generator=make), 1 + torch.rand(32, generator=make)
    target = x @ (w + 0.3 * torch.randn(32, generator=make))
    weight = nn.Parameter(w.bfloat16().to(dtype))  # the same start for all
    opt = kind([weight], lr=lr, momentum=0.9)
    start = weight.detach().clone()

    def passes():
        opt.zero_grad()
        loss = ((x.to(dtype) @ weight).float() - target).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        passes()
        opt.step()
    return weight, start, opt, passes


def test_the_lattice_is_the_master_copy_of_bfloat16_parameters():
    steps = 300
    stalled, start, *_ = line(torch.bfloat16, torch.optim.SGD, steps)
    assert torch.equal(stalled, start)  # every update of torch's is rounded away
    weight, start, opt, passes = line(torch.bfloat16, lo.optim.SGD, steps)
    reference, begin, other, _ = line(torch.float32, lo.optim.SGD, steps)
    way = other._slots[0].block.lattices["q"].value() - begin.double()
    ours = opt._slots[0].block.lattices["q"].value() - start.double()
    assert way.abs().mean() > 5 * 2.0**-8  # ... of which the largest is 2^-8: half a unit in the last place
    assert (ours - way).abs().mean() < 0.02 * way.abs().mean()
    assert abs((ours - way).mean()) < 0.01 * way.abs().mean()  # rounding of the view leans to no side
    assert torch.equal(weight, opt._slots[0].block.lattices["q"].value(dtype=torch.float32).bfloat16())
    for _ in range(steps):
        opt.unstep(passes)
    unit, q = opt.lattice_state["parameter 0 of group 0"]["q"][1], opt.state[weight]["q"]
    whole = lambda w: (w.detach().double() / unit[0]).round().to(q.dtype)  # noqa: E731
    assert torch.equal(weight, start) and torch.equal(q, whole(start))
    assert not opt.state[weight]["p"].any()


def test_without_the_bits_below_bfloat16_the_way_back_is_lost():
    weight, start, opt, passes = line(torch.bfloat16, lo.optim.SGD, 50)
    q.copy_(whole(weight))  # what the parameter alone tells
    with contextlib.suppress(lo.LoschmidtError):
        for _ in range(50):
            opt.unstep(passes)
    assert not torch.equal(q, whole(start))


# -- accumulation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_accumulated_gradients_are_those_of_the_whole_batch(way):
    """Up to rounding, where rows do not interact; and ECD's loss is that of the whole batch, too."""
    one, three = (WAYS[way](Case(micro=micro, **ECD)) for micro in (1, 3))
    for walk in (one, three):
        walk.model.norm, walk.model.drop = nn.Identity(), nn.Identity()
        walk.model.eval()
    if way == "trajectory":
        one, three = (
            lo.Trajectory(walk.model, walk.case.kind(walk.model.parameters(), lr=0.1), walk.case.loss, walk.case.batch)
            for walk in (one, three)
        )
        three.optimizer.accumulates = True
        assert three.loss == pytest.approx(one.loss, rel=1e-6)
    one.seek(STEPS)
    three.seek(STEPS)
    for a, b in zip(one.model.parameters(), three.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [0, 1]])
def test_micro_batches_are_repeated_in_their_order(order):
    walk = InLoop(Case(micro=3, **SGD))
    walk.seek(1)
    turn, parts = walk.bits(), walk.case.batch(0).chunk(3)

    def passes():
        for i in order:
            with lo.replay(walk.opt, walk.model):
                (walk.case.part(walk.model, parts[i]) / 3).backward()

    if order == [0, 1, 2]:
        walk.opt.unstep(passes)
        assert walk.opt.steps == 0
    else:
        with pytest.raises(lo.ReplayMismatch):
            walk.opt.unstep(passes)
        assert not differences(turn, walk.bits())
