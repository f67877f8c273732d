"""`assert_reversible` passes what comes back; it fails what does not, does not move, or could not be seen to fail."""

import doctest
import subprocess
import sys

import pytest
import torch

import loschmidt as lo
from loschmidt import testing
from reference.bits import flip_plane
from reference.networks import OPTIMIZERS, run
from reference.optimizers import RECORDS

SGD = {"lr": 0.05, "momentum": 0.9}


def made(kind=lo.optim.SGD, **settings):
    settings = SGD | settings if issubclass(kind, lo.optim.SGD) else settings
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)), torch.randn(40, 4)

    def loss(model, x):
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    return model, kind(model.parameters(), **settings), loss, lo.data.Schedule(x, batch_size=8)


@pytest.mark.filterwarnings("ignore:.*energy shell")
@pytest.mark.parametrize("name", RECORDS)
def test_every_optimizer_is_reversible(name):
    record = RECORDS[name]
    testing.assert_reversible(lambda: made(record.ours, **record.settings | record.lattice), 6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_network_is_reversible(name):
    testing.assert_reversible(lambda: run(name), 20)


def test_a_run_in_a_folder_and_one_that_has_begun(tmp_path):
    *parts, data = made()
    traj = lo.Trajectory(*parts, data, tape=tmp_path / "run")
    testing.assert_reversible(lambda: traj.seek(5), 5)
    assert traj.step == 10
    traj.close()


def test_a_run_that_does_not_move_is_refused():
    with pytest.raises(lo.NotReversible, match=r"no parameter moved in 5 steps.*raise lr"):
        testing.assert_reversible(lambda: made(lr=0.0), 5)


@pytest.mark.parametrize(
    ("what", "named"),
    [
        (lambda opt: opt._slots[1].integers("p").view(-1)[2:3].bitwise_xor_(1), r"at step 5 .*0\.bias/p"),
        (lambda opt: flip_plane(opt.tape.stacks[0], 0), "at step [0-9]+ .*tape 0"),
        (lambda opt: setattr(opt._slots[2], "count", 9), r"at step 5 .*2\.weight/count"),
    ],
    ids=["momentum", "tape", "count"],
)
def test_an_optimizer_that_undoes_all_but_a_bit_is_found(what, named):
    class Crooked(lo.optim.SGD):
        def unstep(self, closure):
            out = super().unstep(closure)
            what(self)
            return out

    lo.optim.ReversibleOptimizer.registry.pop("Crooked")
    with pytest.raises(lo.NotReversible, match=named):
        testing.assert_reversible(lambda: made(Crooked), 6)


def test_parameters_that_are_not_the_view_of_their_integers_are_found():
    def make():
        model, opt, *rest = made()
        opt.register_step_post_hook(lambda *_: model[0].weight.data[0, 0].mul_(-1))
        return model, opt, *rest

    with pytest.raises(lo.Inconsistent, match=r"0\.weight is not the view of its integers.* 1 of its 32 values"):
        testing.assert_reversible(make, 3)


@pytest.mark.parametrize("blind", ["q", "p", "the tape's bits", "a parameter", "a checksum"])
def test_a_flipped_bit_that_nobody_notices_is_a_failure(blind, monkeypatch):
    """A check that can't fail proves nothing, and says so."""
    honest = testing.flip
    monkeypatch.setattr(testing, "flip", lambda traj, what: None if what == blind else honest(traj, what))
    with pytest.raises(lo.NotReversible, match=f"one flipped bit of {blind} was not noticed"):
        testing.assert_reversible(lambda: made(momentum=0.5), 20)


@pytest.mark.parametrize("make", [lambda: None, lambda: made()[:3], lambda: made()[1]])
def test_what_makes_no_run_is_refused(make):
    with pytest.raises(lo.InvalidSetting, match=r"make\(\) gave a .*\(model, opt, loss, data\)"):
        testing.assert_reversible(make, 3)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, None])
def test_steps_must_be_a_number_of_them(steps):
    with pytest.raises(lo.InvalidSetting, match="steps="):
        testing.assert_reversible(made, steps)


def test_its_example_runs():
    result = doctest.testmod(testing)
    assert result.attempted == 3 and result.failed == 0


def test_it_needs_no_test_framework():
    code = "import sys, loschmidt.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
