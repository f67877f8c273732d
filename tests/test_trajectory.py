"""Trajectories: every bit there and back, excursions and edits; and what is refused, with nothing changed."""

import io
import random
import sys

import numpy as np
import pytest
import torch

import loschmidt as lo
from loschmidt import tasks
from loschmidt.trajectory import environment
from reference.bits import damage, differences, flip
from reference.networks import OPTIMIZERS, Network, bits, clip, dataset, groups, loss, run, warm_up

STEPS = 300


def comes_back(traj, to, recorded):
    """Whether going back to a step gives every bit that was recorded there on the way out."""
    try:
        traj.seek(to)
    except lo.LoschmidtError:
        return False
    return differences(bits(traj), recorded) == []


# -- there and back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_task_comes_back_with_every_bit(name):
    task, (kind, settings) = tasks.modular_addition(), OPTIMIZERS[name]
    opt = kind(task.model.parameters(), **settings)
    traj = lo.Trajectory(task.model, opt, task.loss, lo.data.Schedule(task.train))
    start, digest, loss = bits(traj), traj.digest(), traj.loss
    traj.seek(STEPS)
    assert traj.step == STEPS and traj.loss < loss and traj.journal.bytes > 8 * STEPS
    traj.seek(0)
    assert differences(bits(traj), start) == [] and traj.digest() == digest and traj.loss == loss
    assert traj.tape.bits == traj.journal.bytes == 0


@pytest.fixture(scope="module", params=OPTIMIZERS)
def walked(request):
    """A run of the network at step 300, and its bits on the way. Tests use it inside a branch."""
    traj = run(request.param)
    path = {0: bits(traj)}
    traj.seek(STEPS, on_step=lambda traj: path.update({traj.step: bits(traj)} if traj.step % 30 == 0 else {}))
    before = traj.journal.bytes
    yield traj, path
    assert differences(bits(traj), path[STEPS]) == [] and traj.journal.bytes == before, "a branch left something"


def test_the_network_comes_back_with_every_bit(walked):
    traj, path = walked
    assert {"q of parameter 0", "norm.running_var"} <= {*differences(path[0], path[STEPS])}
    with traj.branch():
        assert all(comes_back(traj, step, path[step]) for step in range(STEPS, -1, -30))
        assert traj.tape.bits == traj.journal.bytes == 0
        traj.seek(60)
        assert differences(bits(traj), path[60]) == []


def flip_buffer(traj):
    flip(traj.model.norm.running_var.view(torch.int32))


def flip_recorded_buffer(traj):
    step = STEPS - 60  # where the test below goes back to: later ones are overwritten on the way
    entry = traj.journal.entries[step]
    value = entry["buffers"]["norm.running_mean"].clone()
    flip(value.view(torch.int32))
    traj.journal.entries[step] = entry | {"buffers": entry["buffers"] | {"norm.running_mean": value}}


def change_dropout(traj):
    traj.seed ^= 1


def drop_a_sample(traj):
    traj.data = traj.data.without_ids(traj.data.ids(STEPS - 5)[:1])
    traj.fingerprint = None  # else it is refused even earlier


def forget_clipping(traj):
    traj.after_backward = None


DAMAGE = {
    f.__name__: f for f in (flip_buffer, flip_recorded_buffer, change_dropout, drop_a_sample, forget_clipping)
} | {place: lambda traj, place=place: damage(traj.optimizer, place) for place in ("plane", "scalar", "check")}


def test_one_flipped_bit_is_noticed(walked):
    traj, path = walked
    opt, harm = traj.optimizer, dict(DAMAGE)
    for lattice in ("q", *opt.lattices):
        harm[lattice] = lambda traj, lattice=lattice: damage(traj.optimizer, lattice)
    if opt.needs_loss:  # too few bits for a word
        del harm["word"]
    if opt.defaults.get("conserve") != "rescale":
        del harm["scalar"]
    unnoticed = []
    for name, f in harm.items():
        with traj.branch():
            f(traj)
            unnoticed += [name] * comes_back(traj, STEPS - 60, path[STEPS - 60])
    assert unnoticed == []


def test_going_back_uses_the_settings_of_each_step():
    traj = run(lr=None)
    groups, path = traj.optimizer.param_groups, {}
    for step, lr, betas in ((0, 1e-2, (0.9, 0.999)), (20, 3e-3, (0.8, 0.99)), (40, 1e-3, (0.9, 0.99))):
        traj.seek(step)
        path[step] = bits(traj)
        groups[0].update(lr=lr, betas=betas)
    traj.seek(60)
    groups[0]["lr"] = 1.0
    assert all(comes_back(traj, step, path[step]) for step in (40, 20, 0))
    assert (groups[0]["lr"], groups[0]["betas"]) == (1e-2, (0.9, 0.999))  # of the step undone last

    traj = run().seek(40)
    start, traj.lr = run().digest(), None  # not asked for on the way back
    assert traj.seek(0).digest() == start


def test_random_states_outside_are_left_alone():
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    def noisy(model, batch):
        return loss(model, batch) * (1 + 0.1 * (torch.rand(()) + np.random.rand() + random.random()))

    before = states()
    traj = run(loss=noisy)
    start = traj.digest()
    traj.seek(10)
    torch.rand(3), np.random.rand(3), random.random()
    assert before != states()
    torch.set_rng_state(torch.tensor(before[0], dtype=torch.uint8)), np.random.seed(1), random.seed(1)
    before = states()
    assert traj.loss is not None and traj.seek(0).digest() == start
    with traj.evaluating(), traj.branch():
        torch.rand(3), np.random.rand(3), random.random()
    assert before == states()


def test_a_branch_gives_up_param_groups_that_were_added_in_it():
    traj = run("AdamW").seek(10)
    before, extra = traj.digest(), traj.model.outside.weight
    with traj.branch():
        extra.requires_grad_(True)
        traj.optimizer.add_param_group({"params": [("outside.weight", extra)]})
        traj.seek(20)
        assert len(traj.optimizer.param_groups) == 3 and traj.digest() != before
    assert traj.step == 10 and traj.digest() == before and len(traj.optimizer.param_groups) == 2
    assert traj.seek(0).digest() == run("AdamW").digest()


@pytest.mark.parametrize("reopened", [False, True])
def test_a_group_added_on_the_way_is_passed_going_back(reopened, tmp_path):
    """Without a name, past a digest, saved in between, and down to where its parameters were frozen."""
    traj = run("AdamW", digest_every=5)
    start, path = bits(traj), bits(traj.seek(22))
    if reopened:
        traj.save(tmp_path / "run")
        how = {"model": Network(seed=5), "loss": loss, "data": traj.data, "lr": warm_up, "after_backward": clip}
        traj = lo.Trajectory.load(tmp_path / "run", **how)
    extra = traj.model.outside.weight.requires_grad_(True)
    traj.optimizer.add_param_group({"params": [extra]})
    traj.seek(33).save(tmp_path / "later")
    with traj.branch():
        flip(traj.optimizer.state[extra]["m"])
        with pytest.raises(lo.ReplayMismatch, match=r"outside\.weight"):
            traj.seek(22)
    for step, recorded in ((22, path), (0, start)):
        assert [k for k in differences(bits(traj.seek(step)), recorded) if k in recorded] == []


def test_old_gradients_of_other_parameters_do_not_count():
    """Clipping over all parameters must not see what the evaluation before left on those outside the optimizer."""
    model, batch = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)]), torch.ones(4, 3)
    opt = lo.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    traj = lo.Trajectory(
        model, opt, lambda m, x: 9 * m[1](m[0](x)).square().mean(), lambda step: batch, after_backward=clip
    )
    start = traj.digest()
    assert traj.seek(20).seek(0).digest() == start


def test_a_forward_that_changes_a_parameter_outside_the_optimizer_is_refused():
    def teaching(model, batch):
        with torch.no_grad():
            model.outside.weight.lerp_(model.frozen.weight, 0.1)
        return loss(model, batch)

    with pytest.raises(lo.Nondeterministic, match=r"changed outside.weight.* register_buffer"):
        run("SGD", loss=teaching).seek(5)


def test_a_learning_rate_that_is_a_tensor_stays_one():
    traj = run("SGD", settings={"lr": 0.05})
    held = traj.optimizer.param_groups[0]["lr"] = torch.tensor(0.05)
    start = traj.digest()
    traj.seek(30)
    assert traj.optimizer.param_groups[0]["lr"] is held and float(held) == pytest.approx(0.05)
    assert traj.seek(5).optimizer.param_groups[0]["lr"] is held and float(held) == pytest.approx(0.05 * 6 / 20)
    assert traj.seek(0).digest() == start


class Counting(torch.nn.Linear):
    """A buffer that is not there at first, and one that grows."""

    def __init__(self):
        super().__init__(3, 1)
        self.register_buffer("calls", None)
        self.register_buffer("history", torch.zeros(1))

    def forward(self, x):
        self.calls = torch.zeros(1) if self.calls is None else self.calls + 1
        self.history = torch.cat([self.history, x.sum().view(1)])
        return super().forward(x)


def test_buffers_that_appear_and_grow_come_back(tmp_path):
    model = Counting()
    opt = lo.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = lo.data.Schedule(torch.arange(30.0).view(10, 3) / 30, batch_size=2)
    traj = lo.Trajectory(model, opt, lambda m, x: m(x).square().mean(), data)
    start = traj.digest()
    good = traj.seek(3).digest()
    assert int(model.calls) == 2 and len(model.history) == 4
    traj.save(tmp_path / "run")
    late = Counting()
    late.calls = torch.ones(7)  # what the model has of its own does not matter
    how = {"model": late, "loss": traj.loss_fn, "data": data}
    again = lo.Trajectory.load(tmp_path / "run", **how)
    assert again.digest() == good and again.seek(0).digest() == start and late.calls is None
    traj.seek(9)
    assert traj.digest() != good and traj.seek(3).digest() == good
    assert traj.seek(0).digest() == start and model.calls is None and len(model.history) == 1


# -- digests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ECD", "ECD-rescaled"])
def test_a_flipped_bit_is_named_and_the_last_good_state_put_back(name):
    traj = run(name)
    good, p = {}, next(iter(traj.optimizer.state.values()))["p"]
    traj.seek(120, on_step=lambda traj: good.update({traj.step: traj.digest()}))

    def harm(traj):
        if traj.step == 52:
            flip(p)

    with traj.branch(), pytest.raises(lo.ReplayMismatch, match=r"/[qp] at step 50 .* at step 100 again, the last"):
        traj.seek(0, on_step=harm)
    with pytest.raises(lo.ReplayMismatch) as e:
        traj.seek(0, on_step=harm)
    # The kernels' last bits, and so the CPU, decide whether two steps carry the flip from p into q.
    assert e.value.step == 50 and e.value.tensor in ("embedding.weight/p", "embedding.weight/q") and e.value.remedy
    assert traj.step == 100 and traj.digest() == good[100]
    assert traj.seek(120).digest() == good[120]

    traj.seek(52)
    flip(p)
    damaged = traj.digest()
    with pytest.raises(lo.ReplayMismatch, match="at step 52 again, where this seek began"):
        traj.seek(0)
    assert traj.step == 52 and traj.digest() == damaged != good[52]


def test_the_tape_is_among_the_digests():
    """Undoing friction can hide a flipped bit of a momentum in a head, and bring it out again later."""
    traj = run("SGD").seek(50)
    flip(traj.tape.lanes[0].heads)
    with pytest.raises(lo.ReplayMismatch, match="tape's heads 0 at step 50"):
        traj.seek(0)


# -- excursions and edits ------------------------------------------------------------------------------


def test_branches_leave_the_same_bits():
    traj = run().seek(20)
    digest, journal, value, lr = traj.digest(), traj.journal.bytes, traj.loss, traj.optimizer.param_groups[0]["lr"]
    with pytest.raises(KeyError), traj.branch() as same:
        assert same is traj
        with traj.branch():
            traj.seek(0).seek(35)
            assert traj.digest() != digest
        assert traj.step == 20 and traj.digest() == digest
        traj.seek(12)
        with traj.edit() as model, torch.no_grad():
            model.gru.bias_hh_l0.add_(0.1)
            model.outside.weight.add_(0.1)
            model.norm.running_mean.add_(0.1)
            model.eval()
        traj.seek(3).seek(12)
        model.frozen.requires_grad_(True)
        traj.seed, traj.after_backward, traj.lr = 5, None, None
        traj.optimizer.param_groups[0]["lr"] = 1e-3
        traj.seek(30)
        assert (traj.step, traj.model.training) == (30, False)
        raise KeyError
    assert (traj.step, traj.digest(), traj.journal.bytes, traj.loss) == (20, digest, journal, value)
    assert traj.optimizer.param_groups[0]["lr"] == lr and not traj.model.frozen.weight.requires_grad
    assert traj.seek(30).digest() == run().seek(30).digest() and traj.seek(0).digest() == run().digest()


def test_evaluating_changes_nothing():
    traj = run().seek(10)
    digest, value = traj.digest(), traj.loss
    with pytest.raises(KeyError), traj.evaluating() as model:
        assert not model.training and traj.loss != value  # without dropout
        torch.manual_seed(0)
        model.train()(dataset()[0])  # moves BatchNorm's buffers
        assert traj.digest() != digest
        raise KeyError
    assert traj.model.training and (traj.digest(), traj.loss) == (digest, value)
    assert traj.seek(0).digest() == run().digest()
    with traj.evaluating(), pytest.raises(lo.EditedOutside, match="eval mode"):
        traj.seek(1)


def test_edits_are_taken_over():
    traj = run().seek(10)
    before, value = bits(traj), traj.loss
    with traj.edit() as model, torch.no_grad():
        model.gru.bias_hh_l0[0] += 1e-3
    changed = differences(before, bits(traj))
    assert len(changed) == 2 and all("of parameter" in x or "gru.bias_hh_l0" in x for x in changed)
    assert traj.loss != value
    edited = traj.digest()
    assert traj.seek(70).seek(10).digest() == edited
    traj.seek(0)  # on a path that was never recorded
    assert differences(bits(traj), bits(run())) != []

    for place in ("outside.weight", "norm.running_mean"):
        traj = run().seek(10)
        with traj.edit() as model, torch.no_grad():
            model.state_dict()[place].add_(0.1)
        edited = traj.digest()
        assert traj.seek(20).seek(10).digest() == edited
        traj.seek(0)


def test_an_edit_that_fails_changes_nothing():
    traj = run().seek(10)
    digest = traj.digest()

    def bad(value):
        with traj.edit() as model, torch.no_grad():
            for x in [*model.parameters(), model.norm.running_mean]:
                x.fill_(value)
            model.eval()
            if value == 1:
                raise KeyError

    for value, error in ((1, KeyError), (float("nan"), lo.NonFinite), (1e30, lo.LatticeOverflow)):
        with pytest.raises(error):
            bad(value)
        assert traj.digest() == digest and traj.model.training
    assert traj.seek(0).digest() == run().digest()


def test_modes_may_change_inside_edit_and_the_way_back_waits_for_them():
    traj = run().seek(10)
    with traj.edit() as model:
        model.dropout.eval()
    digest = traj.digest()
    traj.seek(20)
    with pytest.raises(lo.ReplayMismatch, match="undoing step 9"):
        traj.seek(0)
    assert traj.step == 10 and traj.digest() == digest
    with traj.edit() as model:
        model.dropout.train()
    assert traj.seek(0).digest() == run().digest()


def test_a_weight_frozen_on_the_way_must_be_thawed_to_come_back():
    traj = run().seek(10)
    weight = traj.model.gru.weight_hh_l0.requires_grad_(False)
    before = weight.clone()
    digest = traj.digest()
    assert torch.equal(traj.seek(20).model.gru.weight_hh_l0, before)
    with pytest.raises(lo.ReplayMismatch, match=r"undoing step 9: gru\.weight_hh_l0 lacks a gradient"):
        traj.seek(0)
    assert traj.step == 10 and traj.digest() == digest
    weight.requires_grad_(True)
    assert traj.seek(0).digest() == run().digest()


# -- batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SGD", "AdamW", "ECD", "ECD-decoupled"])
def test_an_empty_batch_moves_nothing_and_can_be_undone(name):
    schedule = lo.data.Schedule(dataset(), batch_size=7, seed=1)
    gone = torch.cat([schedule.ids(0), schedule.ids(5)])
    traj = run(name, data=schedule.without_ids(gone))
    start = bits(traj)
    for step in (0, 5):
        before = bits(traj.seek(step))
        assert traj.loss is None
        assert differences(before, bits(traj.seek(step + 1))) == ["steps"]
    traj.seek(40)
    assert comes_back(traj, 5, before) and comes_back(traj, 0, start)


def test_training_again_without_a_sample():
    """As if it had never been there, from the step that uses it first."""
    schedule = lo.data.Schedule(dataset(), batch_size=7, seed=1)
    gone = schedule.ids(8)[:2]
    first = next(step for step in range(100) if torch.isin(schedule.ids(step), gone).any())
    traj = run(data=schedule).seek(60)
    with_them = traj.digest()
    traj.seek(first)
    rest = {"lr": traj.lr, "after_backward": traj.after_backward, "digest_every": traj.digest_every}
    again = lo.Trajectory(traj.model, traj.optimizer, loss, schedule.without_ids(gone), **rest)
    never = run(data=schedule.without_ids(gone))
    assert differences(bits(again.seek(60)), bits(never.seek(60))) == []
    assert again.digest() == never.digest() != with_them
    with pytest.raises(lo.OutOfReach, match=f"below step {first}"):
        again.seek(first - 1)
    again.seek(first)
    assert traj.seek(60).digest() == with_them and traj.seek(0).digest() == run().digest()


# -- steps that must not be taken ----------------------------------------------------------------------


def numbered(step):
    return *lo.data.Schedule(dataset(), batch_size=7, seed=1).batch(step), step


def plain(model, batch):
    return loss(model, batch[:2])


def at_7(change):
    return lambda model, batch: change(model, plain(model, batch)) if batch[2] == 7 else plain(model, batch)


def steep(model, value):  # adds 0, with infinite slope
    weight = model.gru.weight_hh_l0
    return value + (weight - weight.detach()).sum().sqrt()


BAD_STEPS = {
    "NaN": ("SGD", {"loss": at_7(lambda model, value: value * float("nan"))}, "NonFinite", "loss is nan at step 7"),
    "infinite slope": ("AdamW", {"loss": at_7(steep)}, "NonFinite", "gradient of gru.weight_hh_l0 .* step 7"),
    "overflow": ("SGD", {"lr": lambda step: 1e9 if step == 7 else 1.0}, "LatticeOverflow", r"weight.*: at step 7"),
    "below F0": ("ECD", {"loss": at_7(lambda model, value: value - 9)}, "LossBelowF0", "at step 7 .* F0 = 0"),
    "not a number": ("SGD", {"loss": at_7(lambda model, value: value + torch.ones(2))}, "InvalidSetting", r"\(2,\)"),
    "detached": ("SGD", {"loss": at_7(lambda model, value: value.detach())}, "InvalidSetting", "step 7 does not"),
}


@pytest.mark.parametrize("case", BAD_STEPS)
def test_a_bad_step_is_not_taken(case):
    name, given, error, words = BAD_STEPS[case]
    usual = {"loss": plain, "lr": None, "after_backward": None, "data": numbered}
    traj, clean = run(name, **usual | given), run(name, **usual)
    with pytest.raises(getattr(lo, error), match=words) as e:
        traj.seek(20)
    assert e.value.remedy and traj.step == 7 and traj.digest() == clean.seek(7).digest()
    traj.loss_fn = plain
    traj.lr = lambda step: 1.0
    assert traj.seek(20).digest() == clean.seek(20).digest()


@pytest.mark.parametrize("target", [-1, 2.0, "3", True, None])
def test_seek_refuses_what_is_no_step(target):
    traj = run().seek(3)
    digest = traj.digest()
    with pytest.raises((lo.OutOfReach, lo.InvalidSetting), match="seek"):
        traj.seek(target)
    assert traj.digest() == digest and traj.seek(np.int64(4)).step == 4


# -- edits from outside --------------------------------------------------------------------------------


@torch.no_grad()
def add(x):
    x.add_(0.125)


EDITS = {
    "in place": (lambda model: add(model.gru.weight_hh_l0), "gru.weight_hh_l0"),
    "through .data": (lambda model: add(model.out.bias.data), "out.bias"),
    "frozen": (lambda model: add(model.frozen.weight.data), "frozen.weight"),
    "outside all groups": (lambda model: add(model.outside.weight.data), "outside.weight"),
    "buffer": (lambda model: add(model.norm.running_mean), "norm.running_mean"),
    "mode": (lambda model: model.eval(), "the model was put in eval mode"),
    "mode of one module": (lambda model: model.dropout.eval(), "dropout was put in eval mode"),
}


@pytest.mark.parametrize("case", EDITS)
def test_edits_from_outside_are_refused(case, tmp_path):
    edit, words = EDITS[case]
    traj = run().seek(10)
    edit(traj.model)
    digest = traj.digest()
    for move in (lambda: traj.seek(11), lambda: traj.seek(9), lambda: traj.save(tmp_path / "run")):
        with pytest.raises(lo.EditedOutside, match=words) as e:
            move()
        assert e.value.remedy and traj.step == 10 and traj.digest() == digest
    assert list(tmp_path.iterdir()) == []


def test_a_branch_does_not_swallow_an_edit():
    traj = run().seek(10)
    add(traj.model.out.bias.data)
    with pytest.raises(lo.EditedOutside, match=r"out\.bias"), traj.branch():
        pass
    assert traj.optimizer.adopt() == traj.model.out.bias.numel()
    assert traj.seek(12).step == 12


# -- another world -------------------------------------------------------------------------------------


def with_own_generator(inside):
    generator = torch.Generator().manual_seed(0)

    def noisy(model, batch):
        noise = torch.randn((), generator=generator) * inside(model)
        return loss(model, batch) + noise - noise.detach() * (inside is slope)

    return noisy


def slope(model):
    return model.gru.bias_ih_l0.sum()


def test_what_differs_between_two_evaluations_is_named():
    for inside, name in ((slope, "the gradient of gru.bias_ih_l0 differs in 24 of 24"), (lambda model: 1, "the loss")):
        traj = run(loss=with_own_generator(inside), after_backward=None)
        start = traj.digest()
        with pytest.raises(lo.Nondeterministic, match=name) as e:
            traj.seek(5)
        assert e.value.remedy and traj.step == 0 and traj.digest() == start

    x, y = dataset()
    traj = run(data=lambda step: (x[torch.randperm(60)[:7]], y[:7]))
    with pytest.raises(lo.SourceChanged, match="two different batches for step 0"):
        traj.seek(5)
    assert traj.digest() == start


def test_an_empty_batch_is_no_preflight():
    schedule = lo.data.Schedule(dataset(), batch_size=7, seed=1)
    traj = run(data=schedule.without_ids(schedule.ids(0)), loss=with_own_generator(slope)).seek(1)
    with pytest.raises(lo.Nondeterministic):
        traj.seek(2)


def test_a_changed_dataset_is_noticed():
    words, following = dataset()
    schedule = lo.data.Schedule((words, following), batch_size=7, seed=1)
    traj = run(data=schedule).seek(60)
    digest = traj.digest()
    following[0] += 1  # one of the sampled items
    for target in (70, 0):
        with pytest.raises(lo.SourceChanged, match="sample 0 changed"):
            traj.seek(target)
    following[0] -= 1
    for data, words in ((schedule.without_ids([3]), "without"), (schedule.batch, "cannot be compared")):
        with traj.branch(), pytest.raises(lo.SourceChanged, match=words):
            traj.data = data
            traj.seek(0)
    assert traj.step == 60 and traj.digest() == digest and traj.seek(0).digest() == run().digest()


def test_a_changed_batch_source_is_noticed_at_its_step():
    schedule = lo.data.Schedule(dataset(), batch_size=7, seed=1)

    def other(step):
        words, following = schedule.batch(step)
        return words, following.roll(1)

    good, traj = {}, run(data=schedule.batch)
    traj.seek(70, on_step=lambda traj: good.update({traj.step: traj.digest()}))
    for step, error, words in (
        (66, lo.ReplayMismatch, "undoing step 66: the gradient .* another batch"),
        (49, lo.SourceChanged, "batch of step 49"),  # a digest of it was kept
    ):
        with traj.branch():
            traj.data = lambda at, step=step: other(at) if at == step else schedule.batch(at)
            with pytest.raises(error, match=words) as e:
                traj.seek(0)
            assert e.value.remedy and traj.step == step + 1 and traj.digest() == good[step + 1]
    assert traj.seek(0).digest() == run().digest()


def test_another_environment_is_refused_only_if_it_gives_other_bits(monkeypatch):
    traj = run().seek(10)
    digest, record = traj.digest(), environment.record
    monkeypatch.setattr(environment, "record", lambda *where: record(*where) | {"threads": 96})
    with traj.branch():
        traj.loss_fn = lambda model, batch: loss(model, batch) * (1 + 1e-7)
        with pytest.raises(lo.SourceChanged, match="threads was 1, is 96"):
            traj.seek(20)
        assert traj.step == 10 and traj.digest() == digest
    with pytest.warns(lo.EnvironmentChanged, match=r"threads was 1, is 96\); the last step was undone .* preflight"):
        assert traj.seek(0).digest() == run().digest()


# -- arguments, progress -------------------------------------------------------------------------------


def test_arguments_that_cannot_work_are_named():
    model, other = Network(), Network()
    opt = lo.optim.SGD(groups(model, 0.1), lr=0.1, momentum=0.9)
    usual = {"model": model, "opt": opt, "loss": loss, "data": lo.data.Schedule(dataset())}
    for change, words in (
        ({"model": model.state_dict()}, "torch.nn.Module"),
        ({"model": other}, r"embedding.weight, of shape \(9, 8\), which is no parameter of model"),
        ({"opt": torch.optim.SGD(model.parameters(), lr=0.1)}, r"torch.optim.* use one of lo.optim.SGD"),
        ({"loss": 3.0}, "loss is a float"),
        ({"data": torch.utils.data.TensorDataset(*dataset())}, "TensorDataset.* lo.data.Schedule"),
        ({"tape": 3}, "tape is a int"),
        ({"digest_every": 0}, "digest_every=0"),
    ):
        with pytest.raises(lo.InvalidSetting, match=words):
            lo.Trajectory(**usual | change)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_on_a_terminal_and_none_in_a_log(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    for stream, shows in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        traj = run().seek(30, progress=True)
        traj.seek(0, progress=True)
        said = stream.getvalue()
        assert "forward to step 30" in said and "back to step 0" in said
        assert any(c in said for c in "\x1b\r━") == shows
        traj.seek(5)
        assert stream.getvalue() == said


def test_on_step_can_end_a_seek():
    traj = run()
    assert traj.seek(50, on_step=lambda traj: traj.step == 12).step == 12
    assert traj.seek(0, on_step=lambda traj: traj.step == 4).step == 4
    assert traj.seek(0).digest() == run().digest()
