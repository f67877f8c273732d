"""Buffers in a loop of one's own: under which names they go to the journal, and that they come back under any."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import loschmidt as lo
from reference.bits import bits_of, differences

X = torch.linspace(-1, 1, 48).view(8, 6).sin()


class Crossed(nn.Module):
    """Two BatchNorms, of which the first step calls `a` only, and the others `b` before `a`."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 1)
        self.a, self.b = (nn.BatchNorm1d(4, affine=False) for _ in range(2))

    def forward(self, x, step):
        h = self.first(x)
        return self.last(self.a(self.b(h) * 2 + 1 if step else h))


class ByHand(Crossed):
    """The model itself is never called, and neither is `a`, whose buffers are used by hand; and it counts."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def __call__(self, x, step):
        self.count += 1
        return self.last(F.batch_norm(self.first(x), self.a.running_mean, self.a.running_var, training=True))


class Growing(nn.Module):
    """Buffers that are None at first, are added late, get longer, change their dtype, or are large and replaced."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 1)
        self.register_buffer("none", None)
        self.register_buffer("longer", torch.zeros(1))
        self.register_buffer("wider", torch.ones(2, dtype=torch.float32))
        self.register_buffer("large", torch.zeros(70_000))

    def forward(self, x, step):
        if self.training:
            self.none = (torch.zeros(()) if self.none is None else self.none) + 1
            self.longer = torch.cat([self.longer, x.mean().view(1)])
            self.wider = self.wider.to(torch.float64) + 1
            self.large = self.large + 1
            if step == 1:
                self.register_buffer("late", x[0].clone())
        return self.layer(x)


class Spectral(nn.Module):
    """A buffer that the gradient depends on."""

    def __init__(self):
        super().__init__()
        self.first, self.last = spectral_norm(nn.Linear(6, 4)), nn.Linear(4, 1)

    def forward(self, x, step):
        return self.last(torch.tanh(self.first(x)))


class Two(nn.Module):
    """Two networks that are called one after the other, in an order that depends on the step."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(2))

    def __call__(self, x, step):
        for net in (self.one, self.two) if step % 2 else (self.two, self.one):
            x = net(x)
        return x


class Loop:
    """Steps and unsteps of a model; `named`: replay is given the model."""

    def __init__(self, kind, named):
        torch.manual_seed(0)
        self.named, self.model = named, kind()
        self.optimizer = lo.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)

    def passes(self, step):
        self.optimizer.zero_grad()
        with lo.replay(self.optimizer, *([self.model] if self.named else [])):
            loss = (self.model(X * (1 + step), step) - 1).square().mean()
            loss.backward()
        return loss

    def forward(self, steps):
        for step in range(self.optimizer.steps, self.optimizer.steps + steps):
            self.passes(step)
            self.optimizer.step()
        return self

    def back(self, steps):
        for step in reversed(range(self.optimizer.steps - steps, self.optimizer.steps)):
            self.optimizer.unstep(lambda step=step: self.passes(step))
        return self

    def bits(self):
        return bits_of(self.optimizer, self.model)

    def wrong(self, there=3):
        """Names of what is not the same after going forward and back."""
        start = self.bits()
        return differences(start, self.forward(there).back(there).bits())


def reloaded(loop):
    file, other = io.BytesIO(), Loop(type(loop.model), loop.named)
    torch.save([loop.model.state_dict(), loop.optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other.model.load_state_dict(weights)
    other.optimizer.load_state_dict(state)
    return other


def pickled(loop):
    file = io.BytesIO()
    torch.save(loop, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"reloaded": reloaded, "deep copy": copy.deepcopy, "pickled": pickled}


CASES = [(kind, way) for kind in (Crossed, Spectral) for way in COPIES]
CASES.remove((Spectral, "pickled"))  # torch does not pickle parametrizations


@pytest.mark.parametrize(("kind", "way"), CASES)
@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_buffers_keep_their_names_in_a_copy(kind, way, named):
    loop = Loop(kind, named)
    start, middle = loop.bits(), loop.forward(1).bits()
    twin = COPIES[way](loop.forward(1))
    assert not differences(loop.bits(), twin.bits())
    assert not differences(middle, twin.back(1).bits())
    assert not differences(start, twin.back(1).bits())
    assert not differences(start, loop.back(2).bits())


def test_exchanged_names_would_show():
    loop = Loop(Crossed, named=True).forward(1)
    middle = loop.bits()
    entry = loop.forward(1).optimizer.journal.entries[1]
    entry["buffers"] = {{"a": "b", "b": "a"}[name[0]] + name[1:]: value for name, value in entry["buffers"].items()}
    assert {name[0] for name in differences(middle, loop.back(1).bits())} == {"a", "b"}


def test_two_networks_without_a_model_are_not_guessed_at():
    loop = Loop(Two, named=False)
    assert not loop.wrong()
    twin = reloaded(loop.forward(2))
    turn, digest = twin.bits(), twin.optimizer.digest()
    with pytest.raises(lo.ReplayMismatch, match=r"no module seen.*replay\(optimizer, model\)") as caught:
        twin.back(1)
    assert caught.value.step == 1
    assert not differences(turn, twin.bits())
    assert twin.optimizer.digest() == digest
    assert not differences(turn, twin.forward(2).back(2).bits())  # steps from here on are its own
    named = Loop(Two, named=True)
    start = named.bits()
    assert not differences(start, reloaded(named.forward(3)).back(3).bits())


@pytest.mark.parametrize("kind", [Crossed, ByHand, Growing, Spectral, Two])
def test_all_buffers_of_a_model_come_back(kind):
    assert not Loop(kind, named=True).wrong()


def test_modules_that_are_not_called_are_seen_only_by_name():
    assert set(Loop(ByHand, named=False).wrong()) == {"count", "a.running_mean", "a.running_var"}


def test_what_is_below_a_called_module_is_seen():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = ByHand()

        def forward(self, x, step):
            return self.inner(x, step)

    assert not Loop(Outer, named=False).wrong()


def test_a_module_added_on_the_way_is_seen():
    loop = Loop(Crossed, named=False).forward(1)
    loop.model.last = nn.Sequential(loop.model.last, nn.BatchNorm1d(1, affine=False))
    middle = loop.bits()
    assert not differences(middle, loop.forward(2).back(2).bits())
    assert set(loop.optimizer.passes.buffers.copies()) >= {"last.1.running_mean", "a.running_mean"}


def test_trajectories_know_buffers_that_come_and_grow():
    model = Growing()
    opt = lo.optim.AdamW(model.parameters())
    traj = lo.Trajectory(model, opt, lambda model, batch: model(*batch).square().mean(), lambda step: (X, step))
    start, before = traj.digest(), bits_of(opt, model)
    traj.seek(3)
    assert model.none == 3 and len(model.longer) == 4 and model.wider.dtype == torch.float64
    turn = traj.digest()
    with traj.edit():
        model.none += 1
    assert traj.digest() != turn  # every buffer is in it, also those that came later
    with traj.edit():
        model.none -= 1
    assert traj.digest() == turn
    traj.seek(0)
    assert traj.digest() == start
    assert not differences(before, bits_of(opt, model))
    assert model.none is None


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_passes_that_fail_or_that_no_step_follows_are_taken_back(named):
    loop = Loop(Spectral, named)
    loop.forward(2)
    turn = loop.bits()
    hook = loop.model.last.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.passes(2)
    hook.remove()
    assert not differences(turn, loop.bits())
    loop.forward(1)
    after = loop.bits()
    loop.passes(3)
    assert differences(after, loop.bits())
    assert not differences(turn, loop.back(1).bits())


def test_a_refused_undoing_leaves_the_buffers():
    loop = Loop(Growing, named=True).forward(2)
    turn = loop.bits()
    with pytest.raises(lo.ReplayMismatch):
        loop.optimizer.unstep(lambda: loop.passes(7))
    assert not differences(turn, loop.bits())


def test_what_is_given_to_replay_is_a_module_and_the_same_one():
    loop = Loop(Crossed, named=False).forward(2)
    with pytest.raises(lo.InvalidSetting, match=r"list.*ModuleList"), lo.replay(loop.optimizer, [loop.model]):
        pass
    turn, other = loop.bits(), loop.model
    with pytest.raises(lo.InvalidSetting, match="same model at every step"):
        loop.named, loop.model = True, nn.ModuleList([other])
        loop.back(1)
    loop.model = other
    assert not differences(turn, loop.bits())
