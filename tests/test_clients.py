"""What other people's code does around an optimizer: schedulers, accumulation, several processes, other loaders."""

import copy
import gc
import pickle
import socket
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint import state_dict as dcp
from torch.optim import lr_scheduler as torchs
from torch.optim.swa_utils import SWALR

import loschmidt as lo
from reference.bits import differences
from reference.optimizers import Loop

# -- schedulers ------------------------------------------------------------------------------------------

SCHEDULERS = {
    "LambdaLR": lambda opt: torchs.LambdaLR(opt, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda opt: torchs.MultiplicativeLR(opt, lambda epoch: 0.95),
    "StepLR": lambda opt: torchs.StepLR(opt, 3, 0.5),
    "MultiStepLR": lambda opt: torchs.MultiStepLR(opt, [3, 12]),
    "ConstantLR": lambda opt: torchs.ConstantLR(opt, 0.1, 7),
    "LinearLR": lambda opt: torchs.LinearLR(opt, 0.1, total_iters=15),
    "ExponentialLR": lambda opt: torchs.ExponentialLR(opt, 0.9),
    "PolynomialLR": lambda opt: torchs.PolynomialLR(opt, 25),
    "CosineAnnealingLR": lambda opt: torchs.CosineAnnealingLR(opt, 20),
    "CosineAnnealingWarmRestarts": lambda opt: torchs.CosineAnnealingWarmRestarts(opt, 4, 2),
    "CyclicLR": lambda opt: torchs.CyclicLR(opt, 0.01, 0.1, 3),
    "OneCycleLR": lambda opt: torchs.OneCycleLR(opt, 0.1, total_steps=30),
    "SWALR": lambda opt: SWALR(opt, 0.01, 15),
    "ReduceLROnPlateau": lambda opt: torchs.ReduceLROnPlateau(opt, patience=1, factor=0.5, cooldown=1),
    "SequentialLR": lambda opt: torchs.SequentialLR(
        opt, [torchs.LinearLR(opt, 0.1, total_iters=7), torchs.CosineAnnealingLR(opt, 13)], [7]
    ),
    "ChainedScheduler": lambda opt: torchs.ChainedScheduler(
        [torchs.ConstantLR(opt, 0.1, 4), torchs.ExponentialLR(opt, 0.9)], optimizer=opt
    ),
}


class Scheduled:
    """A loop with a scheduler that steps after every `every` steps."""

    def __init__(self, scheduler, every=1, kept=True, lr=0.05):
        torch.manual_seed(0)
        self.model, self.x = nn.Linear(3, 1), torch.randn(16, 3)
        self.opt = lo.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)
        self.scheduler, self.every = SCHEDULERS[scheduler](self.opt), every
        if kept:
            assert self.opt.undo_also(self.scheduler) is self.scheduler

    def passes(self):
        self.opt.zero_grad()
        loss = self.model(self.x).square().mean()
        loss.backward()
        return loss

    def forward(self, steps):
        """Returns the learning rates, before every step."""
        rates = []
        for _ in range(steps):
            rates.append(float(self.opt.param_groups[0]["lr"]))
            self.passes()
            self.opt.step()
            if self.opt.steps % self.every == 0:
                plateau = isinstance(self.scheduler, torchs.ReduceLROnPlateau)
                self.scheduler.step(*([1.0] if plateau else []))
        return rates

    def back(self, steps):
        for _ in range(steps):
            self.opt.unstep(self.passes)
        return self

    def state(self):
        """Of the scheduler, without functions and tensors."""
        return repr({k: v for k, v in self.scheduler.state_dict().items() if isinstance(v, (int, float, str, list))})


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_ten_steps_undone_and_taken_again_are_those_of_a_plain_run(scheduler, every):
    plain, undone, from_start = (Scheduled(scheduler, every) for _ in range(3))
    rates = plain.forward(20)
    undone.forward(20)
    from_start.forward(20)
    assert len(set(rates)) > 1 or every == 3
    assert undone.back(10).forward(10) == rates[10:]
    assert from_start.back(20).forward(20) == rates
    for other in (undone, from_start):
        assert other.opt.digest() == plain.opt.digest()
        assert other.scheduler.get_last_lr() == plain.scheduler.get_last_lr()
        if scheduler not in ("SequentialLR", "ChainedScheduler"):  # their state names objects
            assert other.state() == plain.state()


def copy_of(loop):
    return copy.deepcopy(loop)


def test_a_scheduler_that_is_not_put_back_gives_other_rates():
    """What the refusal is for: the twin of the test above."""
    plain, undone = Scheduled("CosineAnnealingLR"), Scheduled("CosineAnnealingLR", kept=False)
    undone.opt.schedulers.refuse_unknown = lambda *_: None
    rates = plain.forward(20)
    undone.forward(20)
    undone.back(10)
    assert undone.forward(10) != rates[10:]
    assert undone.opt.digest() != plain.opt.digest()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_undoing_beside_a_scheduler_that_was_left_out_is_refused(scheduler):
    loop = Scheduled(scheduler, kept=False)
    loop.forward(20)
    before = loop.opt.digest()
    with pytest.raises(lo.InvalidSetting, match=rf"undoing step 19: a {scheduler}.*undo_also\(scheduler\)"):
        loop.back(1)
    assert loop.opt.digest() == before and loop.opt.steps == 20


def test_one_of_two_schedulers_left_out_is_refused():
    loop = Scheduled("LinearLR")
    second = torchs.ExponentialLR(loop.opt, 0.9)
    loop.forward(5)
    with pytest.raises(lo.InvalidSetting, match="a ExponentialLR"):
        loop.back(1)
    del second
    loop.back(5)


def test_a_scheduler_that_came_later_is_not_put_back_below_its_beginning():
    loop = Scheduled("CosineAnnealingLR", kept=False)
    loop.forward(5)
    loop.opt.undo_also(loop.scheduler)
    loop.forward(5)
    loop.back(5)
    with pytest.raises(
        lo.InvalidSetting, match=r"undoing step 4: where CosineAnnealingLR stood.*before the first step"
    ):
        loop.back(1)
    assert loop.opt.steps == 5


def test_settings_edited_by_hand_and_schedules_that_are_gone_are_no_schedulers():
    loop = Scheduled("CosineAnnealingLR", kept=False)
    loop.scheduler = type("None", (), {"step": lambda self: None})()
    for _ in range(6):
        loop.forward(1)
        loop.opt.param_groups[0]["lr"] *= 0.5
    start = Scheduled("CosineAnnealingLR").opt.digest()
    assert loop.back(6).opt.digest() == start


def test_schedulers_go_on_after_saving_and_loading():
    plain, first, second = (Scheduled("OneCycleLR") for _ in range(3))
    plain.forward(20)
    first.forward(15)
    second.model.load_state_dict(first.model.state_dict())
    second.opt.load_state_dict(first.opt.state_dict())
    second.scheduler.load_state_dict(first.scheduler.state_dict())
    second.forward(2)
    second.back(10).forward(13)
    assert second.opt.digest() == plain.opt.digest()
    assert second.scheduler.get_last_lr() == plain.scheduler.get_last_lr()
    other = Scheduled("CosineAnnealingLR")
    other.opt.load_state_dict(first.opt.state_dict())
    with pytest.raises(lo.InvalidSetting, match="where CosineAnnealingLR stood"):
        other.back(1)


def test_a_tensor_as_lr_is_put_back_in_place():
    plain, undone = (Scheduled("CosineAnnealingLR", lr=torch.tensor(0.05, dtype=torch.float64)) for _ in range(2))
    rates, lr = plain.forward(20), undone.opt.param_groups[0]["lr"]
    undone.forward(20)
    assert undone.back(10).forward(10) == rates[10:]
    assert undone.opt.param_groups[0]["lr"] is lr


def test_copies_have_no_schedulers_and_the_original_s_stays():
    loop = Scheduled("CosineAnnealingLR")
    loop.forward(6)
    twin = copy.deepcopy(loop.opt)
    assert not twin.schedulers.kept and len(loop.opt.schedulers.kept) == 1
    assert pickle.loads(pickle.dumps(loop.opt)).steps == 6


class Wordy(torchs.LRScheduler):
    """Somebody's own."""

    def __init__(self, opt, state):
        self.kept = state
        super().__init__(opt)

    def get_lr(self):
        return [0.9 * group["lr"] for group in self.optimizer.param_groups]


def test_what_cannot_be_put_back_is_refused_by_name():
    loop, other = Scheduled("StepLR", kept=False), Scheduled("StepLR", kept=False)
    refused = [
        (other.scheduler, "StepLR, which is not one of torch.optim.lr_scheduler on this optimizer"),
        (3, "scheduler is a int"),
        (Wordy(loop.opt, {"a": 1}), "Wordy, whose kept is a dict: only numbers and words"),
    ]
    for scheduler, words in refused:
        with pytest.raises(lo.InvalidSetting, match=words):
            loop.opt.undo_also(scheduler)
    loop.opt.undo_also(Wordy(loop.opt, None))


def test_a_branch_leaves_a_scheduler_where_it_stood():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1), torch.randn(16, 3)
    opt = lo.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = opt.undo_also(torchs.CosineAnnealingLR(opt, 20))
    traj = lo.Trajectory(model, opt, lambda model, batch: model(x).square().mean(), lambda step: ())
    traj.seek(4)
    before = opt.digest()
    with traj.branch():
        traj.seek(7)
        scheduler.last_epoch = 9
    assert scheduler.last_epoch == 0 and opt.digest() == before


# -- accumulated gradients -------------------------------------------------------------------------------

ENERGETIC = {
    "ECD": {"lr": 0.02},
    "BBI": {"lr": 0.01, "delta_energy": 0.5},
    "ECDq1": {"lr": 0.01},
}


class Micro:
    """Three micro-batches of unlike losses."""

    def __init__(self, name="ECD", **settings):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.x = torch.randn(30, 3)
        self.y = self.x.sum(1, keepdim=True) * torch.tensor([4.0, 2.0, 1.0]).repeat_interleave(10)[:, None]
        self.opt = getattr(lo.optim, name)(self.model.named_parameters(), **(ENERGETIC.get(name, {}) | settings))

    def loss(self, rows=slice(None)):
        return (self.model(self.x[rows]) - self.y[rows]).square().mean()

    def accumulated(self):
        self.opt.zero_grad()
        shares = []
        for rows in torch.arange(30).chunk(3):
            share = self.loss(rows) / 3
            share.backward()
            shares.append(share.detach())
        return sum(shares), shares[-1] * 3


@pytest.mark.parametrize("name", ENERGETIC)
def test_one_loss_for_several_passes_is_refused_until_it_is_said_that_it_is_all_of_them(name):
    run, plain = Micro(name), Micro(name)
    total, last = run.accumulated()
    assert float(last) < 0.5 * float(total)
    before = run.opt.digest()
    for loss in (last, total):
        with pytest.raises(lo.InvalidSetting, match=rf"3 backward passes.*step 0.*{name} needs.*accumulates = True"):
            run.opt.step(loss=loss)
    assert run.opt.digest() == before and run.opt.steps == 0
    run.opt.accumulates = True
    run.opt.step(loss=total)
    loss = plain.loss()
    loss.backward()
    plain.opt.step(loss=loss)
    assert run.opt.energy == pytest.approx(plain.opt.energy, rel=1e-6)
    run.opt.unstep(lambda: run.accumulated()[0])
    assert run.opt.digest() == before


@pytest.mark.parametrize("settings", [{}, {"integrator": "leapfrog"}, {"lr": "auto"}], ids=str)
def test_a_closure_with_several_passes_is_refused_alike(settings):
    run = Micro(**settings)
    start = run.opt.digest()
    with pytest.raises(lo.InvalidSetting, match="3 backward passes"):
        run.opt.step(lambda: run.accumulated()[1])
    assert run.opt.digest() == start
    run.opt.accumulates = True
    run.opt.step(lambda: run.accumulated()[0])
    run.opt.unstep(lambda: run.accumulated()[0])
    assert run.opt.digest() == start


def test_gradients_that_were_cleared_do_not_count():
    run = Micro()

    def by_hand():
        for p in run.model.parameters():
            p.grad = None

    for clear in (run.opt.zero_grad, run.model.zero_grad, by_hand):
        for _ in range(3):
            clear()
            loss = run.loss()
            loss.backward()
        assert run.opt.backward.count == 1
        run.opt.step(loss=loss)
    run.loss().backward()
    loss = run.loss()
    loss.backward()
    with pytest.raises(lo.InvalidSetting, match="2 backward passes") as refused:
        run.opt.step(loss=loss)
    assert "zero_grad" in refused.value.remedy


def test_passes_that_reach_different_parameters_count():
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    opt = lo.optim.ECD([a, b])
    loss = a.square().sum() + 1
    loss.backward()
    other = b.square().sum() + 1
    other.backward()
    with pytest.raises(lo.InvalidSetting, match="2 backward passes"):
        opt.step(loss=other)
    opt.zero_grad()
    (a.square().sum() + b.square().sum() + 1).backward()
    assert opt.backward.count == 1


@pytest.mark.filterwarnings("ignore:Using backward")
def test_passes_with_create_graph_count():
    """They replace the gradient's tensor, and do not add in place."""
    run = Micro()
    for _ in range(2):
        run.loss().backward(create_graph=True)
    assert run.opt.backward.count == 2


def test_a_trajectory_whose_loss_goes_backward_itself_is_refused_until_it_is_said():
    run = Micro()

    def loss(model, batch):
        total = 0.0
        for i, rows in enumerate(torch.arange(30).chunk(3)):
            share = run.loss(rows) / 3
            if i < 2 and torch.is_grad_enabled():
                share.backward()
                share = share.detach()
            total = total + share
        return total

    traj = lo.Trajectory(run.model, run.opt, loss, lambda step: ())
    start = traj.digest()
    with pytest.raises(lo.InvalidSetting, match=r"3 backward passes.*accumulates = True"):
        traj.seek(4)
    assert traj.digest() == start
    run.opt.accumulates = True
    assert traj.seek(4).seek(0).digest() == start


def test_what_was_said_is_saved_and_copied():
    run, other = Micro(), Micro()
    run.opt.accumulates = True
    assert not other.opt.accumulates
    other.opt.load_state_dict(run.opt.state_dict())
    assert other.opt.accumulates and copy.deepcopy(run.opt).accumulates
    twin = copy.deepcopy(Micro())
    for _ in range(2):
        twin.loss().backward()
    assert twin.opt.backward.count == 2


def test_hooks_go_with_their_optimizer_and_others_have_none():
    run = Micro()
    weight = run.model[0].weight
    assert len(weight._post_accumulate_grad_hooks) == 1
    del run.opt
    gc.collect()
    assert not weight._post_accumulate_grad_hooks
    opt = lo.optim.SGD(run.model.parameters(), lr=0.1, momentum=0.9)
    assert not weight._post_accumulate_grad_hooks and opt.backward.count == 0


# -- other loaders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("name", ["sgd", "adamw-decayed", "ecd-rescale"])
def test_distributed_checkpoint_reads_and_writes_the_state_and_takes_no_step(name, steps):
    loop, other = Loop(name).forward(steps), Loop(name, seed=5)
    loop.optimizer.zero_grad()
    before, counts, digest = loop.bits(), [s.count for s in loop.optimizer._slots], loop.optimizer.digest()
    rates = [group["lr"] for group in loop.optimizer.param_groups]
    for optimizer in (loop.optimizer, other.optimizer):
        assert len(optimizer.state) == 6  # torch fills an empty one by a step
    state = dcp.get_optimizer_state_dict(loop.model, loop.optimizer)
    full = dcp.get_optimizer_state_dict(loop.model, loop.optimizer, options=dcp.StateDictOptions(full_state_dict=True))
    assert not differences(before, loop.bits())
    assert (loop.optimizer.steps, loop.optimizer.digest()) == (steps, digest)
    assert [s.count for s in loop.optimizer._slots] == counts
    assert [group["lr"] for group in loop.optimizer.param_groups] == rates
    assert all(p.grad is None for p in loop.model.parameters())
    for given in (state, full):
        other = Loop(name, seed=5)
        other.model.load_state_dict(loop.model.state_dict())
        dcp.set_optimizer_state_dict(other.model, other.optimizer, given)
        assert not differences(before, other.bits())
        assert other.optimizer.digest() == digest
    other.forward(3).back(3 + steps)
    assert other.optimizer.digest() == Loop(name).optimizer.digest()
    state["state"]["0.weight"]["q"].view(-1)[0] ^= 1
    dcp.set_optimizer_state_dict(other.model, other.optimizer, state)
    assert other.optimizer.digest() != digest


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_the_state_is_shown_from_the_beginning(copied):
    opt = copied(lo.optim.AdamW(nn.Linear(2, 1).parameters()))
    assert [sorted(values) for values in opt.state.values()] == [["m", "q", "step", "v"]] * 2


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_torch_s_own_optimizer_does_not_load_our_state(name):
    loop = Loop(name).forward(3)
    state = loop.optimizer.state_dict()
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    theirs = kind(loop.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="number of parameter groups"):
        theirs.load_state_dict(state)
    assert "torch.optim cannot go on from it" in state["param_groups"][-1]["loschmidt"]
    assert state["param_groups"][-1]["params"] == []
    assert state["param_groups"][-1]["lr"] == state["param_groups"][0]["lr"]  # for whoever goes over all groups
    del state["param_groups"][-1]  # as older versions wrote it
    other = Loop(name)
    other.optimizer.load_state_dict(state)
    assert other.optimizer.digest() == loop.optimizer.digest()


# -- momentum --------------------------------------------------------------------------------------------


def test_sgd_without_a_momentum_is_refused():
    w = nn.Parameter(torch.tensor([1 / 3]))
    for params in ([w], [{"params": [w]}]):
        with pytest.raises(
            lo.InvalidSetting, match=r"given no momentum.*default of 0.*no inverse.*write momentum=0\.9"
        ):
            lo.optim.SGD(params, lr=0.1)
    assert torch.equal(w.detach(), torch.tensor([1 / 3]))
    assert lo.optim.SGD([w], 0.1, 0.8).param_groups[0]["momentum"] == 0.8
    opt = lo.optim.SGD([{"params": [w], "momentum": 0.7}], lr=0.1)
    with pytest.raises(lo.InvalidSetting, match="given no momentum"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert len(opt.param_groups) == 1


def test_a_momentum_given_by_group_is_saved_and_loaded(tmp_path):
    def parts():
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        return model, {"loss": lambda model, batch: model(torch.ones(4, 3)).square().mean(), "data": lambda step: ()}

    model, rest = parts()
    groups = [{"params": [p], "momentum": 0.9 - 0.1 * i} for i, p in enumerate(model.parameters())]
    traj = lo.Trajectory(model, lo.optim.SGD(groups, lr=0.1), **rest).seek(5)
    traj.save(tmp_path / "run")
    again = lo.Trajectory.load(tmp_path / "run", model=parts()[0], **rest)
    assert again.digest() == traj.digest()
    assert [group["momentum"] for group in again.optimizer.param_groups] == [0.9, 0.8]
    assert again.seek(9).digest() == traj.seek(9).digest()
    assert again.seek(0).digest() == traj.seek(0).digest()


# -- several processes -----------------------------------------------------------------------------------


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.fixture
def group_of_one():
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{free_port()}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["sgd", "adamw", "ecd"])
def test_a_group_of_one_process_changes_nothing(group_of_one, name):
    loop = Loop(name)
    start = loop.bits()
    assert not differences(start, loop.forward(3).back(3).bits())


@pytest.mark.parametrize("settings", [{}, {"integrator": "leapfrog"}, {"lr": "auto"}], ids=str)
@pytest.mark.parametrize("name", ENERGETIC)
def test_what_reads_the_loss_is_refused_in_a_group_of_several(monkeypatch, name, settings):
    if settings and name != "ECD":
        pytest.skip("ECD's own")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    run, called = Micro(name, **settings), []
    start = run.opt.digest()
    with pytest.raises(lo.InvalidSetting, match=rf"{name} reads.*4 processes.*in one process.*DistributedDataParallel"):
        run.opt.step(lambda: called.append(1))
    assert run.opt.digest() == start and run.opt.steps == 0 and not called
    monkeypatch.undo()
    run.loss().backward()
    run.opt.step(run.loss) if not settings else None


@pytest.mark.parametrize("other", [7, "a word", 2**70])
def test_seeds_are_compared_once(monkeypatch, other):
    """The other process is made up here; two real ones are in the test below."""
    calls, theirs = [], {"seed": 0}

    def all_reduce(x, op):
        from loschmidt.optim.processes import _number

        calls.append(op)
        seed = _number(theirs["seed"])
        x.copy_(torch.maximum(x, torch.tensor([seed, -seed])))

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    loop = Loop("sgd")
    start = loop.bits()
    theirs["seed"] = other
    with pytest.raises(lo.InvalidSetting, match=r"seed=0 on rank 0.*same seed on all ranks"):
        loop.forward(1)
    assert not differences(start, loop.bits()) and len(calls) == 1
    theirs["seed"] = 0
    loop.forward(3)
    assert len(calls) == 2
    loop.optimizer.load_state_dict(loop.optimizer.state_dict())
    assert not differences(start, loop.forward(1).back(4).bits())
    assert len(calls) == 3


def in_rank(rank, port, results):
    """Under DDP: AdamW there and back, alike on both ranks; ECD and seeds that differ refused."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(rank))

    def start(kind, **settings):
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(nn.Linear(3, 1))
        opt = kind(model.parameters(), **settings)

        def passes():
            opt.zero_grad()
            loss = (model(x) - 1).square().mean()
            loss.backward()
            return loss

        return opt, passes

    opt, passes = start(lo.optim.AdamW, lr=0.1)
    begin = opt.digest()
    for _ in range(5):
        passes()
        opt.step()
    out = {"turn": opt.digest()}
    for _ in range(5):
        opt.unstep(passes)
    out["back"] = opt.digest() == begin
    for name, kind, settings in (
        ("seed", lo.optim.SGD, {"lr": 0.1, "momentum": 0.9, "seed": rank}),
        ("ECD", lo.optim.ECD, {}),
        ("BBI", lo.optim.BBI, {}),
        ("ECDq1", lo.optim.ECDq1, {}),
    ):
        opt, passes = start(kind, **settings)
        loss = passes()
        try:
            opt.step(loss=loss)
            out[name] = "taken"
        except lo.InvalidSetting as error:
            out[name] = f"{error}"
        assert opt.steps == 0
    results[rank] = out
    dist.destroy_process_group()


@pytest.mark.dist
def test_two_processes():
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(in_rank, (free_port(), results), nprocs=2)
        first, second = results[0], results[1]
    assert first["turn"] == second["turn"] and first["back"] and second["back"]
    for rank, out in enumerate((first, second)):
        assert f"seed={rank} on rank {rank}" in out["seed"] and "from 0 to 1" in out["seed"]
        for name in ENERGETIC:
            assert f"{name} reads the value of the loss" in out[name], sys.platform
