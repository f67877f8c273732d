"""Optimizers in torch's world: state_dict, copies, schedulers, groups, hooks, frozen and tied parameters."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR

import loschmidt as lo
from reference.bits import differences
from reference.optimizers import RECORDS, Loop

NAMES = ["sgd", "sgd-int32", "adamw-decayed", "ecd-rescale"]


def saved(state):
    """Through a file, read without pickle's freedoms."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", [0, 1, 12])
def test_state_dict_goes_on_and_back_alike(name, cut):
    loop = Loop(name, **RECORDS[name].lossy)
    start = loop.bits()
    loop.forward(cut)
    state, weights = saved(loop.optimizer.state_dict()), copy.deepcopy(loop.model.state_dict())
    end = loop.forward(10).bits()
    other = Loop(name, seed=5)
    other.model.load_state_dict(weights)
    other.optimizer.load_state_dict(state_dict=state)
    assert other.optimizer.param_groups[0].keys() == loop.optimizer.param_groups[0].keys()
    assert not differences(end, other.forward(10).bits())
    assert other.optimizer.digest() == loop.optimizer.digest()
    assert other.optimizer.tape.bits == loop.optimizer.tape.bits
    assert other.optimizer.journal.bytes == loop.optimizer.journal.bytes
    assert other.optimizer.tape.bits_per_parameter_step == loop.optimizer.tape.bits_per_parameter_step
    other.optimizer.load_state_dict(saved(other.optimizer.state_dict()))
    assert not differences(start, other.back(10 + cut).bits())


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_loaded_state_near_the_lattice_s_end_goes_on_alike(name):
    """Gradients grow, so that lattices must be made coarser now and then, loaded or not."""

    def fresh():
        return RECORDS[name].build([nn.Parameter(torch.ones(3, dtype=torch.float64))], lr=1e-9)

    straight, loaded = fresh(), fresh()
    for step in range(8):
        for opt in (straight, loaded):
            opt.param_groups[0]["params"][0].grad = torch.full((3,), 1e6 * 3.0**step, dtype=torch.float64)
            opt.step()
        assert loaded.digest() == straight.digest()
        state, loaded = loaded.state_dict(), fresh()
        loaded.load_state_dict(state)
    assert any("coarsened" in entry for entry in straight.journal.entries.values())


@pytest.mark.parametrize("name", NAMES)
def test_integer_state_is_integer_and_a_copy(name):
    loop = Loop(name).forward(3)
    dtype = RECORDS[name].lattice.get("lattice", torch.int64)
    state = loop.optimizer.state_dict()
    integers = [x for values in state["state"].values() for k, x in values.items() if k != "step"]
    assert {x.dtype for x in integers} == {dtype}
    turn = loop.bits()
    for x in integers:
        x.zero_()
    assert not differences(turn, loop.bits())


def test_a_flipped_bit_in_a_state_dict_shows():
    loop = Loop("sgd").forward(3)
    for place in ("q", "p"):
        state = loop.optimizer.state_dict()
        state["state"][0][place].view(-1)[0] ^= 1
        other = Loop("sgd")
        other.optimizer.load_state_dict(state)
        assert other.optimizer.digest() != loop.optimizer.digest()


def test_a_state_dict_in_another_order_is_the_same():
    loop = Loop("sgd").forward(3)
    state = loop.optimizer.state_dict()
    state["state"] = dict(reversed(state["state"].items()))
    other = Loop("sgd")
    other.optimizer.load_state_dict(state)
    assert other.optimizer.digest() == loop.optimizer.digest()


def foreign_states():
    torchs = Loop("sgd")
    plain = torch.optim.SGD(torchs.model.parameters(), lr=0.1, momentum=0.9)
    shapes = [nn.Parameter(torch.ones(9, 5)), *list(Loop("sgd").model.parameters())[1:]]
    cast, short = Loop("sgd").optimizer.state_dict(), Loop("sgd").optimizer.state_dict()
    cast["state"][2]["p"] = cast["state"][2]["p"].float()
    del short["state"][1]
    split = Loop("sgd")
    groups = [{"params": [p]} for p in split.model.parameters()]
    newer = Loop("sgd").optimizer.state_dict()
    newer["param_groups"][0]["loschmidt"]["meta"] = newer["param_groups"][0]["loschmidt"]["meta"].replace(
        '"format": 1', '"format": 99'
    )
    return {
        "of torch.optim": (plain.state_dict(), "floats.*new run"),
        "empty": ({"state": {}, "param_groups": []}, "not one of"),
        "of Adam": (Loop("adam").optimizer.state_dict(), "class Adam"),
        "int32": (Loop("sgd-int32").optimizer.state_dict(), "lattice int32"),
        "of other shapes": (lo.optim.SGD(shapes).state_dict(), r"of shape \(9, 5\) as 'q' of 0.weight"),
        "cast to floats": (cast, "torch.float32.*as 'p' of 1.weight"),
        "without a parameter": (short, "nothing as 'q' of 0.bias"),
        "of other groups": (lo.optim.SGD(groups).state_dict(), "groups of"),
        "of a newer format": (newer, "format 99"),
    }


@pytest.mark.parametrize("what", foreign_states())
def test_a_foreign_state_dict_is_refused_and_changes_nothing(what):
    state, words = foreign_states()[what]
    loop = Loop("sgd").forward(3)
    turn = loop.bits()
    with pytest.raises(lo.InvalidSetting, match=words):
        loop.optimizer.load_state_dict(state)
    assert not differences(turn, loop.bits())
    loop.back(3)


def test_a_deep_copy_is_independent_and_walks_back_alone():
    loop = Loop("adamw")
    start = loop.bits()
    loop.forward(4)
    twin = copy.deepcopy(loop)
    turn = loop.bits()
    assert not differences(turn, twin.bits())
    assert not differences(twin.forward(3).bits(), copy.deepcopy(loop).forward(3).bits())
    assert not differences(turn, loop.bits())
    assert not differences(start, twin.back(7).bits())
    assert not differences(start, loop.back(4).bits())


@pytest.mark.parametrize("frozen", [False, True])
def test_distributed_checkpoint_round_trip(frozen):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    def make():
        loop = Loop("adamw")
        loop.model[0].bias.requires_grad_(not frozen)
        return loop

    loop = make()
    start = loop.bits()
    loop.forward(4)
    state = saved(get_optimizer_state_dict(loop.model, loop.optimizer))
    assert "0.weight" in state["state"]
    other = make()
    other.model.load_state_dict(loop.model.state_dict())
    set_optimizer_state_dict(other.model, other.optimizer, state)
    assert not differences(loop.bits(), other.bits())
    assert not differences(start, other.back(4).bits())


def test_hooks_run():
    loop, calls = Loop("sgd"), []
    opt = loop.optimizer
    opt.register_step_pre_hook(lambda *_: calls.append("before"))
    opt.register_step_post_hook(lambda *_: calls.append("after"))
    opt.register_load_state_dict_pre_hook(lambda *_: calls.append("loading"))
    opt.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    loop.forward(1)
    opt.load_state_dict(opt.state_dict())
    loop.back(1)
    assert calls == ["before", "after", "loading", "loaded"]


# -- hyper-parameters ------------------------------------------------------------------------------------

SCHEDULERS = {
    "StepLR": lambda opt: StepLR(opt, 2, 0.5),
    "OneCycleLR": lambda opt: OneCycleLR(opt, 0.1, total_steps=10),
    "edits": None,
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_each_step_is_undone_with_its_own_settings(name, scheduler):
    loop = Loop(name)
    group = loop.optimizer.param_groups[0]
    schedule = SCHEDULERS[scheduler](loop.optimizer) if SCHEDULERS[scheduler] else None
    start, at_start = loop.bits(), {k: v for k, v in group.items() if k != "params"}
    used = []
    for step in range(8):
        used.append((group["lr"], group.get("momentum"), group.get("betas")))
        loop.forward(1)
        if schedule:
            schedule.step()
        elif step % 3 == 1:
            group["lr"] *= 0.7
            group["weight_decay"] = 0.01 * step
    assert len(set(used)) > 2
    group["lr"] = 123.0  # must not be used on the way back
    for step in reversed(range(8)):
        loop.back(1)
        assert (group["lr"], group.get("momentum"), group.get("betas")) == used[step]
    assert not differences(start, loop.bits())
    assert {k: v for k, v in group.items() if k != "params"} == at_start


def test_a_group_added_on_the_way_is_walked_back_over():
    loop = Loop("sgd")
    extra = nn.Parameter(torch.ones(3))
    forward, start = loop.passes, loop.bits()

    def with_extra(step):
        loss = forward(step)
        if step >= 4:
            extra.grad = torch.full((3,), 0.1 * step)
        return loss

    loop.passes = with_extra
    loop.forward(4).optimizer.add_param_group({"params": [("extra", extra)], "lr": 0.5})
    loop.forward(4)
    assert loop.optimizer.param_groups[1]["lr"] == 0.5
    assert extra[0] < 0
    state = saved(loop.optimizer.state_dict())
    assert loop.optimizer.tape.element_steps == 8 * (loop.optimizer.numel - 3) + 4 * 3
    loop.optimizer.load_state_dict(state)
    loop.back(4)
    assert torch.equal(extra.detach(), torch.ones(3))
    after = loop.back(4).bits()
    assert not set(differences(start, after)) & start.keys()
    assert not differences(after, loop.forward(5).back(5).bits())


# -- which parameters take part --------------------------------------------------------------------------


def test_frozen_and_unused_parameters_stand_still_and_return():
    """A parameter that begins late counts its own steps, as torch's do."""
    ours, torchs = ([nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64)) for _ in range(4)] for _ in range(2))
    ours[3].requires_grad_(False)
    opt = lo.optim.AdamW(ours, lr=0.1)
    reference = torch.optim.AdamW(torchs, lr=0.1)
    start = opt.digest()

    def gradients(step, params):
        taking_part = [[0, 1], [0], [0, 1, 2], [], [1, 2]][step % 5]
        for i, p in enumerate(params):
            p.grad = torch.cos(p.detach() * (i + step)) if i in taking_part else None

    digests = []
    for step in range(12):
        digests.append(opt.digest())
        for params, o in ((ours, opt), (torchs, reference)):
            gradients(step, params)
            o.step()
    for a, b in zip(ours, torchs, strict=True):
        assert (a - b).abs().max() < 1e-9
    assert [opt.state[p]["step"] for p in ours] == [8, 7, 4, 0]
    assert opt.tape.element_steps == 6 * (8 + 7 + 4)
    for step in reversed(range(12)):
        with pytest.raises(lo.ReplayMismatch, match="gradient"):
            opt.unstep(lambda step=step: gradients(step + 1, ours))
        opt.unstep(lambda step=step: gradients(step, ours))
        assert opt.digest() == digests[step]
    assert opt.digest() == start


def test_tied_and_strided_parameters_walk_back():
    torch.manual_seed(0)
    embedding, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    head.weight = embedding.weight
    turned = nn.Parameter(torch.randn(3, 4).T)
    empty, scalar = nn.Parameter(torch.empty(0)), nn.Parameter(torch.tensor(2.0))
    model = nn.ModuleList([embedding, head])
    opt = lo.optim.SGD([*model.parameters(), turned, empty, scalar], lr=0.1)
    assert len(opt.param_groups[0]["params"]) == 4
    x = torch.arange(7)

    def passes():
        opt.zero_grad()
        loss = nn.functional.cross_entropy(head(embedding(x)) + (turned**2).sum() * scalar, x.flip(0))
        (loss + turned.sum() + empty.sum()).backward()
        return loss

    start, before = opt.digest(), turned.detach().clone()
    for _ in range(5):
        passes()
        opt.step()
    assert not torch.equal(turned, before)
    for _ in range(5):
        opt.unstep(passes)
    assert opt.digest() == start
    assert torch.equal(turned, before)


def test_adopted_edits_are_a_new_start():
    loop = Loop("sgd").forward(5)
    opt, weight = loop.optimizer, loop.model[0].weight
    untouched = opt.state[weight]["q"].view(-1)[1:].clone()
    with torch.no_grad():
        weight.view(-1)[0] += 0.5
    assert opt.adopt() == 1
    assert opt.adopt() == 0
    assert torch.equal(opt.state[weight]["q"].view(-1)[1:], untouched)
    turn = loop.bits()
    assert not differences(turn, loop.forward(3).back(3).bits())
    loop.back(5)  # along another path, unchecked
    assert opt.steps == 0
