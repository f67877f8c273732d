"""Optimizers in torch's world: state_dict, copies, schedulers, groups, hooks, frozen and tied parameters."""

import copy
import io
import json
import pickle
from contextlib import nullcontext, suppress
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR

import loschmidt as lo
from reference.bits import differences, flip
from reference.optimizers import RECORDS, Loop, with_momentum

NAMES = ["sgd", "sgd-int32", "adamw-decayed", "adamw-int32-weights", "ecd-rescale"]


def saved(state):
    """Through a file, read without pickle's freedoms."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("cut", "damaged"), [(0, False), (1, False), (12, False), (1, True)])
def test_state_dict_goes_on_and_back_alike(name, cut, damaged):
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
    last = saved(other.optimizer.state_dict())
    if damaged:
        flip(last["state"][0]["q"])
    other.optimizer.load_state_dict(last)
    assert other.returns(start, 10 + cut) is not damaged


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_loaded_state_whose_rows_grow_goes_on_alike(name):
    """Gradients grow, so that rows are halved at each step, loaded or not."""

    def fresh():
        return RECORDS[name].build([nn.Parameter(torch.ones(3, dtype=torch.float64))], lr=1e-9)

    straight, loaded = fresh(), fresh()
    for step in range(8):
        for opt in (straight, loaded):
            opt.param_groups[0]["params"][0].grad = torch.full((3,), 1e6 * 30.0**step, dtype=torch.float64)
            opt.step()
        assert loaded.digest() == straight.digest()
        state, loaded = loaded.state_dict(), fresh()
        loaded.load_state_dict(state)
    assert len(straight.tape.stacks[0].planes)
    assert loaded.tape.growth_bits == straight.tape.growth_bits > 0


@pytest.mark.parametrize("growth", [1e2, 1e5, 1e9, 1e14])
@pytest.mark.parametrize("kernels", ["native", "eager"])
@pytest.mark.parametrize(
    ("kind", "settings"), [(lo.optim.SGD, {"lr": 0.1}), (lo.optim.Adam, {}), (lo.optim.Adam, {"moments": "16-bit"})]
)
def test_gradients_may_grow_by_any_factor(kind, settings, kernels, growth, monkeypatch):
    """Small numbers are halved to 0 or -1, all their bits lie on the tape, and they come back."""
    monkeypatch.setenv("LOSCHMIDT_KERNELS", kernels)
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(50))
    opt, digests = kind([w], **with_momentum(kind, settings)), []
    gradients = [torch.randn(50) * 1e-6, torch.randn(50) * 1e-6 * growth, torch.rand(50) * 1e-3 * growth]

    def passes():
        w.grad = gradients[len(digests)].clone()

    for _ in gradients:
        digests.append((opt.digest(), w.detach().clone()))
        w.grad = gradients[len(digests) - 1].clone()
        opt.step()
    while digests:
        digest, before = digests.pop()
        opt.unstep(passes)
        assert opt.digest() == digest and torch.equal(w, before)


@pytest.mark.parametrize("name", NAMES)
def test_integer_state_is_integer_and_a_copy(name):
    loop = Loop(name).forward(3)
    state = loop.optimizer.state_dict()
    integers = [(k, x) for values in state["state"].values() for k, x in values.items() if k != "step"]
    expected = torch.int64 if name == "ecd-rescale" else torch.int32
    assert all(x.dtype is expected for _, x in integers)
    turn = loop.bits()
    for _, x in integers:
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
        '"format": 2', '"format": 99'
    )
    return {
        "of torch.optim": (plain.state_dict(), "floats.*new run"),
        "empty": ({"state": {}, "param_groups": []}, "not one of"),
        "of Adam": (Loop("adam").optimizer.state_dict(), "class Adam"),
        "int64": (
            lo.optim.SGD(Loop("sgd").model.parameters(), momentum=0.9, lattice=torch.int64).state_dict(),
            r"of lattice=torch\.int64, the optimizer of lattice=torch\.int32",
        ),
        "int64 weights": (
            lo.optim.SGD(Loop("sgd").model.parameters(), momentum=0.9, lattice={"q": torch.int64}).state_dict(),
            r"construct it with lattice=\{'q': torch\.int64, 'p': torch\.int32\}",
        ),
        "one resolution": (
            lo.optim.SGD(Loop("sgd").model.parameters(), momentum=0.9, resolution=2.0**-20).state_dict(),
            r"construct it with resolution=9\.5.*e-07",
        ),
        "of other shapes": (lo.optim.SGD(shapes, momentum=0.9).state_dict(), r"of shape \(9, 5\) as 'q' of 0.weight"),
        "cast to floats": (cast, "torch.float32.*as 'p' of 1.weight"),
        "without a parameter": (short, "nothing as 'q' of 0.bias"),
        "of other groups": (lo.optim.SGD(groups, momentum=0.9).state_dict(), "groups of"),
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


NEEDED = ["e.0.q", "tape.0.planes", "tape.0.records", "journal.checks", "journal.entries"]
USED = {"lr": 0.05, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "maximize": False}


def spoilt_states():
    """What is done to a good state_dict, and a word of why it is refused."""

    def without(key):
        return lambda state: state["param_groups"][0]["loschmidt"].pop(key)

    def meta(**changes):
        def do(state):
            extra = state["param_groups"][0]["loschmidt"]
            extra["meta"] = json.dumps(json.loads(extra["meta"]) | changes)

        return do

    def cut(key):
        def do(state):
            extra = state["param_groups"][0]["loschmidt"]
            extra[key] = extra[key][:-1]

        return do

    return {
        **{f"without {k}": (without(k), f"damaged or incomplete.*{k.rpartition('.')[2]}") for k in NEEDED},
        "lr -5": (lambda state: state["param_groups"][0].update(lr=-5), "lr=-5.*at least 0"),
        "Nesterov": (lambda state: state["param_groups"][0].update(nesterov=True), "leave nesterov out"),
        "other settings": (meta(settings=[{"lr": 0.1}]), "damaged or incomplete"),
        "other settings of the last step": (meta(settings=[USED | {"momentum": 2.0}]), "grows without bound"),
        "counts missing": (meta(counts=[1]), "do not fit together|damaged"),
        "a lattice missing": (meta(lattices=[{"q": {"logs": [0] * 4, "pushed": 0}}]), "do not fit together"),
        "logarithms missing": (meta(lattices=[{k: {"logs": [0], "pushed": 0} for k in "qp"}]), "do not fit together"),
        "a logarithm too large": (
            meta(lattices=[{k: {"logs": [1 << 95] * 4, "pushed": 0} for k in "qp"}]),
            "do not fit together",
        ),
        "tapes missing": (meta(forgotten=[]), "damaged or incomplete"),
        "exponents cut": (cut("e.0.q"), "do not fit together"),
        "entries cut": (cut("journal.entries"), "damaged or incomplete"),
        "no JSON": (lambda state: state["param_groups"][0]["loschmidt"].update(meta="{"), "damaged or incomplete"),
    }


@pytest.mark.parametrize("what", spoilt_states())
def test_a_spoilt_state_dict_is_refused_and_changes_nothing(what):
    spoil, words = spoilt_states()[what]
    loop = Loop("sgd").forward(2)
    state = loop.optimizer.state_dict()
    spoil(state)
    loop.forward(1)
    turn, settings = loop.bits(), dict(loop.optimizer.param_groups[0])
    with pytest.raises(lo.InvalidSetting, match=words) as caught:
        loop.optimizer.load_state_dict(state)
    assert caught.value.remedy
    assert not differences(turn, loop.bits())
    assert loop.optimizer.param_groups[0] == settings
    loop.back(3)


def test_a_pickled_optimizer_goes_on_and_back_alone():
    loop = Loop("adamw")
    start = loop.bits()
    loop.forward(4)
    file = io.BytesIO()
    for written in (pickle.dumps(loop), torch.save(loop, file) or file.getvalue()):
        twin = pickle.loads(written) if written[:2] != b"PK" else torch.load(io.BytesIO(written), weights_only=False)
        assert not differences(loop.bits(), twin.bits())
        end = twin.forward(3).bits()
        assert not differences(start, twin.back(7).bits())
        assert not differences(end, copy.deepcopy(loop).forward(3).bits())
    assert pickle.loads(pickle.dumps(lo.optim.SGD([nn.Parameter(torch.ones(2))], momentum=0.9))).steps == 0


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


def test_a_flattened_distributed_checkpoint_is_refused_by_its_name():
    from torch.distributed.checkpoint import state_dict as dcp

    loop, options = Loop("adamw").forward(2), dcp.StateDictOptions(flatten_optimizer_state_dict=True)
    state, turn = dcp.get_optimizer_state_dict(loop.model, loop.optimizer, options=options), loop.bits()
    with pytest.raises(lo.InvalidSetting, match=r"flatten_optimizer_state_dict=True drops.*=False"):
        dcp.set_optimizer_state_dict(loop.model, loop.optimizer, state, options=options)
    assert not differences(turn, loop.bits())
    loop.back(2)


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


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_each_step_is_undone_with_its_own_settings(name, scheduler, damaged):
    loop = Loop(name)
    group = loop.optimizer.param_groups[0]
    schedule = loop.optimizer.undo_also(SCHEDULERS[scheduler](loop.optimizer)) if SCHEDULERS[scheduler] else None
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
    if damaged:
        entries = loop.optimizer.journal.entries.values()
        recorded = [e["settings"]["0"] for e in entries if "lr" in e.get("settings", {}).get("0", {})]
        recorded[1]["lr"] *= 1 + 1e-6
    seen = []
    for _ in range(8):
        with suppress(lo.ReplayMismatch) if damaged else nullcontext():
            loop.back(1)
            seen.append((group["lr"], group.get("momentum"), group.get("betas")))
    assert (seen[::-1] == used) is not damaged
    assert bool(differences(start, loop.bits())) is damaged
    assert damaged or {k: v for k, v in group.items() if k != "params"} == at_start


@pytest.mark.parametrize("make", [torch.tensor, np.float32, np.float64, Fraction], ids=lambda x: x.__name__)
def test_settings_may_be_numbers_of_any_kind(make):
    w, plain = (nn.Parameter(torch.ones(3)) for _ in range(2))
    opt = lo.optim.AdamW([w], lr=make(0.25), betas=(make(0.5), 0.75))
    reference = lo.optim.AdamW([plain], lr=0.25, betas=(0.5, 0.75))
    lr = opt.param_groups[0]["lr"]
    start = opt.digest()

    def passes(p=w):
        p.grad = torch.cos(p.detach())

    for step in range(4):
        opt.step(passes)
        reference.step(lambda: passes(plain))
        if make is torch.tensor:
            lr.mul_(0.5)  # as a scheduler does
        else:
            opt.param_groups[0]["lr"] = make(0.25 * 0.5 ** (step + 1))
        reference.param_groups[0]["lr"] *= 0.5
    assert opt.digest() == reference.digest()
    opt.load_state_dict(saved(opt.state_dict())) if make in (torch.tensor, np.float64) else None
    for _ in range(4):
        opt.unstep(passes)
    assert opt.digest() == start
    assert opt.param_groups[0]["lr"] == 0.25
    if make is torch.tensor:
        assert opt.param_groups[0]["lr"] is lr


@pytest.mark.parametrize("damaged", [False, True])
def test_a_group_added_on_the_way_is_walked_back_over(damaged):
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
    if damaged:
        flip(loop.optimizer.state[extra]["p"], bit=12)
    loop.back(4)
    assert torch.equal(extra.detach(), torch.ones(3)) is not damaged
    after = loop.back(4).bits()
    assert not set(differences(start, after)) & start.keys()
    if not damaged:
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


@pytest.mark.parametrize("damaged", [False, True])
def test_tied_and_strided_parameters_walk_back(damaged):
    torch.manual_seed(0)
    embedding, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    head.weight = embedding.weight
    turned = nn.Parameter(torch.randn(3, 4).T)
    empty, scalar = nn.Parameter(torch.empty(0)), nn.Parameter(torch.tensor(2.0))
    model = nn.ModuleList([embedding, head])
    opt = lo.optim.SGD([*model.parameters(), turned, empty, scalar], lr=0.1, momentum=0.9)
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
    if damaged:
        flip(opt.state[turned]["q"])
    for _ in range(5):
        opt.unstep(passes)
    assert (opt.digest() == start) is not damaged
    assert damaged or torch.equal(turned, before)


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


def test_a_zero_that_changed_its_sign_is_an_edit_and_can_be_adopted():
    loop = Loop("sgd")
    bias, opt = loop.model[0].bias, loop.optimizer
    with torch.no_grad():
        bias.zero_()
    assert opt.adopt() == len(bias)
    turn = loop.bits()
    bias.data.neg_()
    with pytest.raises(lo.EditedOutside, match=f"{len(bias)} of {len(bias)} values"):
        loop.forward(1)
    assert opt.adopt() == len(bias)
    assert not differences(turn, loop.bits())
    assert not differences(turn, loop.forward(2).back(2).bits())
    traj = lo.Trajectory(loop.model, opt, lambda model, x: model(x).square().mean(), lambda step: loop.x)
    with traj.edit() as model:
        model[0].bias.data.mul_(-1.0)
    traj.seek(2).seek(0)
    assert not differences(turn, loop.bits())
