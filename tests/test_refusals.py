"""What cannot be kept is refused: with the error's class, a word of what was seen, a remedy, and nothing changed."""

import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import loschmidt as lo
from loschmidt.optim import BBI, ECD, SGD, Adam, AdamW, ECDq1
from reference.bits import bits_of, differences
from reference.optimizers import with_momentum

# -- construction ----------------------------------------------------------------------------------------

SETTINGS = [
    (SGD, {"nesterov": True}, "Nesterov.*drift.*leave nesterov out"),
    (SGD, {"momentum": 0.0}, "no inverse.*for example 0.9"),
    (SGD, {"momentum": 1.1}, "grows without bound"),
    (SGD, {"momentum": -0.5}, "above 0"),
    (SGD, {"dampening": 1.0}, "nothing of the gradient"),
    (SGD, {"lr": -1.0}, "lr=-1.0.*at least 0"),
    (SGD, {"lr": math.nan}, "finite"),
    (SGD, {"lr": torch.tensor(-1.0)}, "lr=-1.0.*at least 0"),
    (SGD, {"lr": torch.ones(2)}, "finite number"),
    (SGD, {"weight_decay": -0.1}, "weight_decay"),
    (SGD, {"wobble": 3}, "no setting 'wobble'.*momentum"),
    (SGD, {"resolution": 0.3}, "power of two"),
    (SGD, {"lattice": torch.int16}, "int64 or torch.int32"),
    (SGD, {"lattice": torch.float32}, "int64 or torch.int32"),
    (Adam, {"amsgrad": True}, "forgets which value"),
    (Adam, {"fused": True}, "leave fused out"),
    (Adam, {"capturable": True}, "capturable"),
    (Adam, {"differentiable": True}, "derivative"),
    (Adam, {"betas": (0.0, 0.999)}, "b1 = 0.*no inverse"),
    (Adam, {"betas": (0.9, 1.0)}, r"in \(0, 1\)"),
    (Adam, {"betas": (0.9,)}, "two numbers"),
    (Adam, {"betas": 0.9}, "two numbers"),
    (Adam, {"betas": (0.9, "b")}, "two numbers"),
    (Adam, {"decoupled_weight_decay": True}, "AdamW"),
    (Adam, {"eps": -1e-8}, "eps"),
    (SGD, {"lattice": {"q": torch.int16}}, "int64 or torch.int32"),
    (SGD, {"lattice": {"m": torch.int32}}, "the lattices are 'q', 'p'"),
    (Adam, {"moments": "8-bit"}, 'moments=.8-bit.*"32-bit" or "16-bit"'),
    (SGD, {"moments": "16-bit"}, "no setting 'moments'"),
    (AdamW, {"lr": 2.0, "weight_decay": 0.5}, "lr \\* weight_decay below 1"),
    (ECD, {"eta": 0.0}, "eta.*above 0"),
    (ECD, {"F0": math.inf}, "F0"),
    (ECD, {"conserve": "perhaps"}, '"none" or "rescale"'),
    (ECD, {"s": 0.0}, "infinite speed.*delta_energy"),
    (ECD, {"lr": 2.0, "weight_decay": 0.5, "decoupled": True}, "below 1"),
    (ECD, {"momentum": 0.0}, "momentum.*above 0"),
    (ECD, {"momentum": 1.01}, r"in \(0, 1\]"),
    (BBI, {"delta_energy": -1.0}, "delta_energy.*at least 0"),
    (BBI, {"conserve": "yes"}, '"none" or "rescale"'),
    (BBI, {"bounces": 1.5}, "bounces=1.5.*whole number"),
    (BBI, {"bounce_every": 0}, "bounce_every=0.*at least 1"),
    (BBI, {"patience": -1}, "patience=-1.*at least 0"),
    (BBI, {"eta": 2.0}, "no setting 'eta'.*delta_energy"),
    (BBI, {"lr": 2.0, "weight_decay": 0.5, "decoupled": True}, "below 1"),
    (ECDq1, {"eta": 0.0}, "eta.*above 0"),
    (ECDq1, {"F0": math.nan}, "F0"),
    (ECDq1, {"projection": "local"}, 'projection.*"global"'),
    (ECDq1, {"delta_energy": 1.0}, "no setting 'delta_energy'.*projection"),
]


@pytest.mark.parametrize(("kind", "settings", "words"), SETTINGS, ids=lambda x: str(x) if isinstance(x, dict) else None)
def test_settings_without_an_inverse_are_refused(kind, settings, words):
    w = nn.Parameter(torch.tensor([0.1, 0.2]))
    before = w.detach().clone()
    with pytest.raises(lo.InvalidSetting, match=words) as caught:
        kind([w], **with_momentum(kind, settings))
    assert caught.value.remedy
    assert isinstance(caught.value, (lo.LoschmidtError, ValueError))
    assert torch.equal(w, before)


def test_options_that_change_nothing_are_accepted():
    w = [nn.Parameter(torch.ones(2))]
    plain = Adam(w).price()
    assert Adam(w, amsgrad=False, fused=None, foreach=True).price() == plain
    assert Adam(w, 1e-3, (0.9, 0.999), 1e-8, 0, False, decoupled_weight_decay=False).price() == plain
    assert SGD(w, 1e-3, 0.9, 0, 0, False).price() == SGD(w, 1e-3, 0.9).price()


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_what_torch_takes_by_position_is_taken_by_position(kind):
    settings = (1e-3, 0.9, 0, 0) if kind is SGD else (1e-3, (0.9, 0.999), 1e-8, 0)
    with pytest.raises(lo.InvalidSetting, match="nesterov=True" if kind is SGD else "amsgrad=True"):
        kind([nn.Parameter(torch.ones(2))], *settings, True)


GROUPS = {
    "misspelt": ({"momentun": 0.5}, r"SGD \(param group 1\) has no setting 'momentun'.*momentum"),
    "Nesterov": ({"nesterov": True}, "param group 1.*leave nesterov out"),
    "out of range": ({"momentum": 2.0}, "grows without bound"),
    "of Adam": ({"betas": (0.9, 0.999)}, "no setting 'betas'"),
}


@pytest.mark.parametrize("what", GROUPS)
def test_settings_of_a_group_are_refused_alike(what):
    settings, words = GROUPS[what]
    opt, new = SGD([nn.Parameter(torch.ones(2))], momentum=0.9), nn.Parameter(torch.tensor([1 / 3]))
    before = opt.digest()
    with pytest.raises(lo.InvalidSetting, match=words):
        opt.add_param_group({"params": [new]} | settings)
    assert len(opt.param_groups) == 1
    assert opt.digest() == before
    assert torch.equal(new.detach(), torch.tensor([1 / 3]))


def test_marks_of_schedulers_and_frameworks_are_no_settings():
    marks = {"initial_lr": 0.1, "max_lr": 1.0, "min_lr": 0.0, "base_momentum": 0.8, "max_momentum": 0.9, "swa_lr": 0.1}
    opt = SGD(
        [{"params": [nn.Parameter(torch.ones(2))], "name": "head", "lr_scale": 0.5, "nesterov": False} | marks],
        momentum=0.9,
    )
    opt.param_groups[0]["a mark of one's own"] = 1
    opt.param_groups[0]["params"][0].grad = torch.ones(2)
    opt.step()
    assert opt.steps == 1


shared, whole = torch.ones(4), torch.ones(10)
PARAMETERS = {
    "sparse": ([torch.ones(3, 3).to_sparse()], lo.InvalidSetting, "dense"),
    "complex": ([torch.ones(3, dtype=torch.complex64)], lo.InvalidSetting, "view_as_real"),
    "float16": ([torch.ones(3, dtype=torch.float16)], lo.InvalidSetting, "float32, float64 or bfloat16"),
    "NaN": ([torch.tensor([1.0, math.nan])], lo.NonFinite, "parameter 1 of group . holds NaN"),
    "too large": ([torch.tensor([1e8])], lo.LatticeOverflow, "holds 1e\\+08.*coarser"),
    "whole numbers": ([torch.ones(3, dtype=torch.int32)], lo.InvalidSetting, r"dtype torch.int32\. Remedy"),
    "overlapping": ([whole[:6], whole[4:]], lo.InvalidSetting, r"\(6,\) and \(6,\) share one memory"),
    "overlapping in steps": ([whole[::2], whole[4:6]], lo.InvalidSetting, "share one memory"),
    "overlapping a row": ([whole.view(2, 5).T, whole[5:7]], lo.InvalidSetting, "share one memory"),
    "of one memory": ([shared, shared.view(2, 2)], lo.InvalidSetting, "share one memory"),
}


@pytest.mark.parametrize("what", PARAMETERS)
def test_parameters_that_cannot_be_wound_back_are_refused(what):
    values, error, words = PARAMETERS[what]
    opt = SGD([nn.Parameter(torch.ones(2))], momentum=0.9)
    before = opt.digest()
    good = nn.Parameter(torch.tensor([1 / 3]))
    for make in (partial(SGD, momentum=0.9), lambda params: opt.add_param_group({"params": params})):
        with pytest.raises(error, match=words):
            make([good, *(nn.Parameter(v, requires_grad=False) for v in values)])
    assert torch.equal(good.detach(), torch.tensor([1 / 3]))
    assert len(opt.param_groups) == 1
    assert opt.digest() == before


def test_parameters_side_by_side_in_one_memory_are_accepted():
    base = torch.ones(4, 6)
    opt = SGD(
        [nn.Parameter(x) for x in (base[:, :2], base[:2, 2::2], base[:, 3::2], base[2:, 2], base[3, 4:5])], momentum=0.9
    )
    assert opt.numel == 8 + 4 + 8 + 2 + 1


def test_a_parameter_given_twice_is_refused():
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(lo.InvalidSetting, match="twice"):
        SGD([w, w], momentum=0.9)
    with pytest.raises(lo.InvalidSetting, match="twice"):
        SGD([w], momentum=0.9).add_param_group({"params": [w]})
    with pytest.raises(TypeError, match="set"):
        SGD([{"params": {w}}], momentum=0.9)


# -- steps -----------------------------------------------------------------------------------------------


class Run:
    """An optimizer with two parameters after three good steps."""

    def __init__(self, kind, **settings):
        self.model = nn.ParameterDict({"w": torch.linspace(-1, 1, 5), "u": torch.ones(2, 2)}).double()
        self.opt = kind(self.model.named_parameters(), **with_momentum(kind, settings))
        self.start = self.bits()
        for _ in range(3):
            self.good_step()

    @property
    def params(self):
        return [self.model["w"], self.model["u"]]

    def passes(self, step=None):
        step = self.opt.steps if step is None else step
        for p in self.params:
            p.grad = torch.cos(p.detach() * (2 + step))
        return torch.tensor(1.0 + 0.1 * step)

    def good_step(self):
        loss = self.passes()
        self.opt.step(**({"loss": loss} if self.opt.needs_loss else {}))

    def bits(self):
        return bits_of(self.opt, self.model)


def edit(**values):
    def do(run):
        run.passes()
        run.opt.param_groups[0].update(values)
        run.opt.step()

    return do


def with_gradient(value, loss=None):
    def do(run):
        run.passes()
        run.params[1].grad.view(-1)[2] = value
        run.opt.step(**({} if loss is None else {"loss": loss}))

    return do


def with_loss(value):
    def do(run):
        run.passes()
        run.opt.step(loss=torch.tensor(value))

    return do


def sparse_gradient(run):
    run.passes()
    run.params[1].grad = run.params[1].grad.to_sparse()
    run.opt.step()


def edited(method, change=lambda p: p.data.view(-1)[1].mul_(1.5)):
    """Through `.data`, which moves no version counter."""

    def do(run):
        kept = run.params[0].data
        run.params[0].data = kept.clone()
        change(run.params[0])
        try:
            run.opt.step() if method == "step" else run.opt.unstep(lambda: run.passes(2))
        finally:
            run.params[0].data = kept

    return do


def one_ulp(p):
    p.data[1] = math.nextafter(float(p.data[1]), math.inf)


def cast(p):
    p.data = p.data.float()


def emptied(method):
    def do(run):
        kept = dict(run.opt.state)
        run.opt.state.clear()
        try:
            run.opt.unstep(lambda: run.passes(2)) if method == "unstep" else getattr(run.opt, method)()
        finally:
            run.opt.state.update(kept)

    return do


def scaled(run):
    run.passes()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    scaler.step(run.opt)


def failing(run):
    def closure():
        run.passes()
        raise lo.NonFinite("the closure's own", "none")

    run.opt.step(closure)


def unstep(passes):
    return lambda run: run.opt.unstep(lambda: passes(run))


def dropped_gradient(run):
    loss = run.passes(2)
    run.params[1].grad = None
    return loss


def one_ulp_off(run):
    loss = run.passes(2)
    g = run.params[0].grad
    g[3] = math.nextafter(float(g[3]), math.inf)
    return loss


def nothing_left(run):
    keep = run.opt
    run.opt = SGD([nn.Parameter(torch.ones(1))], momentum=0.9)
    try:
        run.opt.unstep(lambda: None)
    finally:
        run.opt = keep


STEPS = {
    "momentum 0": (SGD, {}, edit(momentum=0.0), lo.InvalidSetting, "for example 0.9"),
    "Nesterov later": (SGD, {}, edit(nesterov=True), lo.InvalidSetting, "leave nesterov out"),
    "negative lr": (SGD, {}, edit(lr=-0.1), lo.InvalidSetting, "at least 0"),
    "lr NaN": (Adam, {}, edit(lr=math.nan), lo.InvalidSetting, "finite"),
    "decay past 0": (AdamW, {}, edit(lr=200.0), lo.InvalidSetting, "below 1"),
    "huge lr": (SGD, {}, edit(lr=1e290), lo.LatticeOverflow, "^u: at step 3.*'q' beyond any unit.*lower lr"),
    "huge lr, Adam": (AdamW, {"weight_decay": 0.0}, edit(lr=1e290), lo.LatticeOverflow, "lower lr"),
    "gradient inf": (SGD, {}, with_gradient(math.inf), lo.NonFinite, "gradient of u holds.*clip"),
    "gradient NaN": (AdamW, {}, with_gradient(math.nan), lo.NonFinite, "gradient of u"),
    "gradient too large": (SGD, {}, with_gradient(1e290), lo.LatticeOverflow, "u: .*'p' beyond any unit"),
    "gradient squared too large": (Adam, {}, with_gradient(1e200), (lo.NonFinite, lo.LatticeOverflow), "u"),
    "sparse gradient": (SGD, {}, sparse_gradient, lo.InvalidSetting, "u has a sparse gradient.*sparse=False"),
    "no loss": (ECD, {}, lambda run: (run.passes(), run.opt.step()), lo.InvalidSetting, r"step\(loss=loss\)"),
    "loss NaN": (ECD, {}, with_loss(math.nan), lo.NonFinite, "loss is nan"),
    "loss NaN, SGD": (SGD, {}, with_loss(math.nan), lo.NonFinite, "loss is nan"),
    "loss at F0": (ECD, {"F0": 0.5}, with_loss(0.5), lo.LossBelowF0, "F0 = 0.5.*set F0 below"),
    "loss below F0": (ECD, {}, with_loss(-2.0), lo.LossBelowF0, "set F0 below"),
    "loss at F0, BBI": (BBI, {"F0": 0.5}, with_loss(0.5), lo.LossBelowF0, "F0 = 0.5.*set F0 below"),
    "loss below F0, ECDq1": (ECDq1, {}, with_loss(-2.0), lo.LossBelowF0, "set F0 below"),
    "no loss, ECDq1": (ECDq1, {}, lambda run: (run.passes(), run.opt.step()), lo.InvalidSetting, r"step\(loss=loss\)"),
    "gradient NaN, ECDq1": (ECDq1, {}, with_gradient(math.nan, 1.0), lo.NonFinite, "gradient of u"),
    "another loss, BBI": (BBI, {}, unstep(lambda run: run.passes(2) + 1e-6), lo.ReplayMismatch, "step 2"),
    "another loss, ECDq1": (ECDq1, {}, unstep(lambda run: run.passes(2) + 1e-6), lo.ReplayMismatch, "step 2"),
    "overflow, ECD": (ECD, {}, with_gradient(1e300, 1.0), lo.LatticeOverflow, "u"),
    "GradScaler": (SGD, {}, scaled, lo.InvalidSetting, "without a GradScaler"),
    "closure fails": (SGD, {}, failing, lo.NonFinite, "own"),
    "edited, step": (SGD, {}, edited("step"), lo.EditedOutside, r"w was edited.*adopt\(\)"),
    "edited, unstep": (SGD, {}, edited("unstep"), lo.EditedOutside, r"w was edited.*adopt\(\)"),
    "edited by one ulp": (AdamW, {}, edited("step", one_ulp), lo.EditedOutside, "w was edited.* 1 of 5 values"),
    "cast, step": (SGD, {}, edited("step", cast), lo.EditedOutside, "w was 5 values of torch.float64.*torch.float32"),
    "cast, unstep": (SGD, {}, edited("unstep", cast), lo.EditedOutside, "w was 5 values of torch.float64"),
    "state emptied": (SGD, {}, emptied("step"), lo.InvalidSetting, r"state\[u\] was replaced or removed"),
    "state emptied, unstep": (SGD, {}, emptied("unstep"), lo.InvalidSetting, r"state\[u\] was replaced or removed"),
    "state emptied, saved": (SGD, {}, emptied("state_dict"), lo.InvalidSetting, "construct a new optimizer"),
    "another batch": (SGD, {}, unstep(lambda run: run.passes(1)), lo.ReplayMismatch, "step 2.*same data"),
    "one ulp off": (AdamW, {}, unstep(one_ulp_off), lo.ReplayMismatch, "step 2"),
    "another loss": (ECD, {}, unstep(lambda run: run.passes(2) + 1e-6), lo.ReplayMismatch, "step 2"),
    "no loss back": (ECD, {}, unstep(lambda run: run.passes(2) and None), lo.InvalidSetting, "returns the loss"),
    "a gradient less": (SGD, {}, unstep(dropped_gradient), lo.ReplayMismatch, "u lacks a gradient"),
    "drew outside": (SGD, {}, unstep(lambda run: torch.rand(1) + run.passes(1)), lo.ReplayMismatch, "replay"),
    "before the beginning": (SGD, {}, nothing_left, lo.OutOfReach, "no step to undo"),
}


@pytest.mark.parametrize("what", STEPS)
def test_a_refused_step_changes_nothing(what):
    kind, settings, provoke, error, words = STEPS[what]
    run = Run(kind, **settings)
    before, digest, groups = run.bits(), run.opt.digest(), [dict(g) for g in run.opt.param_groups]
    with pytest.raises(error, match=words) as caught:
        provoke(run)
    assert caught.value.remedy
    assert not differences(before, run.bits())
    assert run.opt.digest() == digest
    for group, kept in zip(run.opt.param_groups, groups, strict=True):
        group.update(kept)
        for name in group.keys() - kept.keys():
            del group[name]
    run.good_step()
    for step in reversed(range(4)):
        run.opt.unstep(lambda step=step: run.passes(step))
    assert not differences(run.start, run.bits())


def test_a_step_undone_is_not_undone_again():
    run = Run(SGD)
    run.opt.unstep(lambda: run.passes(2))
    with pytest.raises(lo.ReplayMismatch, match="undone before"):
        run.opt.unstep(lambda: run.passes(2))


def test_one_energy_for_all_groups():
    groups = [{"params": [nn.Parameter(torch.ones(2))], "eta": eta} for eta in (1.0, 2.0)]
    opt = ECD(groups)
    for group in groups:
        group["params"][0].grad = torch.ones(2)
    with pytest.raises(lo.InvalidSetting, match="eta differs between param groups"):
        opt.step(loss=1.0)


def test_parameters_that_join_at_rest_where_that_is_an_infinite_speed_are_refused():
    w, later = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    opt = ECD([w, later], s=0.0, delta_energy=1.0)
    w.grad = torch.ones(2)
    opt.step(loss=1.0)
    before = opt.digest()
    w.grad, later.grad = None, torch.zeros(2)
    with pytest.raises(lo.NonFinite, match=r"infinite speed.*s > 0"):
        opt.step(loss=1.0)
    assert opt.digest() == before


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(ECD, {"delta_energy": 1.0}), (ECD, {"delta_energy": 1.0, "s": 0.0}), (BBI, {"delta_energy": 1.0}), (ECDq1, {})],
)
def test_a_shell_that_cannot_be_reached_at_the_start_is_refused(kind, settings):
    w = nn.Parameter(torch.ones(2))
    opt = kind([w], **settings)
    before = opt.digest()
    w.grad = torch.zeros(2)
    with pytest.raises(lo.errors.ShellOutOfReach, match=r"no direction to start in.*start from parameters"):
        opt.step(loss=1.0)
    assert opt.digest() == before and isinstance(opt.carried, dict) and not opt.carried and opt.energy is None


def test_a_direction_of_one_number_is_refused():
    w = nn.Parameter(torch.ones(1))
    opt = ECDq1([w])
    w.grad = torch.ones(1)
    with pytest.raises(lo.InvalidSetting, match=r"one parameter to move.*at least two"):
        opt.step(loss=1.0)
    assert opt.steps == 0


@pytest.mark.parametrize(
    ("kind", "settings", "loss", "words"),
    [(ECD, {"eta": 200.0}, 0.01, "energy shell.*lower eta"), (BBI, {}, 1e-310, "energy shell.*lower F0")],
)
def test_an_energy_shell_out_of_reach_is_refused(kind, settings, loss, words):
    w = nn.Parameter(torch.ones(2))
    opt = kind([w], **settings, conserve="rescale")
    w.grad = torch.ones(2)
    opt.step(loss=1.0)
    before = opt.digest()
    with pytest.raises(lo.errors.ShellOutOfReach, match=words):
        opt.step(loss=loss)
    assert opt.digest() == before


BELOW = {  # settings, gradient, lattice whose updates are lost
    "drift": (SGD, {"lr": 1e-3, "resolution": 2.0**-20}, 1e-5, "q"),
    "kick": (SGD, {"lr": 1.0, "resolution": 2.0**-20, "lattice": torch.int32}, 1e-8, "p"),
    "kick, ECD": (ECD, {"lr": 0.1, "resolution": 2.0**-20}, 1e-8, "p"),
}


@pytest.mark.parametrize("action", ["default", "error"])
@pytest.mark.parametrize("what", BELOW)
def test_updates_below_the_resolution_are_warned_of_once(what, action):
    kind, settings, gradient, lattice = BELOW[what]
    w = nn.Parameter(torch.ones(4, dtype=torch.float64))
    opt = kind([w], **with_momentum(kind, settings))
    start = opt.digest()
    loss, seen = torch.tensor(1.0), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        for _ in range(600):
            w.grad = torch.full_like(w, gradient)
            try:
                opt.step(loss=loss)
            except lo.BelowResolution as warning:
                seen.append(str(warning))
    seen += [str(c.message) for c in caught if issubclass(c.category, lo.BelowResolution)]
    assert len(seen) == 1
    assert f"updates of {lattice!r}" in seen[0]
    assert opt.steps == 600

    def passes():
        w.grad = torch.full_like(w, gradient)
        return loss

    for _ in range(600):
        opt.unstep(passes)
    assert opt.digest() == start


def test_errors_are_also_the_builtins_that_fit():
    builtins = {
        lo.InvalidSetting: ValueError,
        lo.NonFinite: ArithmeticError,
        lo.LossBelowF0: ArithmeticError,
        lo.LatticeOverflow: OverflowError,
        lo.ReplayMismatch: RuntimeError,
        lo.OutOfReach: IndexError,
        lo.EditedOutside: RuntimeError,
        lo.DamagedFile: OSError,
    }
    assert all(issubclass(ours, (lo.LoschmidtError, theirs)) for ours, theirs in builtins.items())
    assert str(lo.InvalidSetting("seen.", "do.")) == "seen. Remedy: do."


@pytest.mark.parametrize("kind", [ECD, BBI, ECDq1])
def test_there_is_no_energy_at_a_loss_below_F0(kind):
    opt = kind([nn.Parameter(torch.ones(2))], F0=0.5)
    assert opt.energy_at(torch.tensor(1.0, requires_grad=True)) == opt.energy_at(1.0)
    for loss in (0.5, -1.0):
        with pytest.raises(lo.errors.LossBelowF0, match=r"F0 = 0\.5"):
            opt.energy_at(loss)
