"""What cannot be kept is refused: with the error's class, a word of what was seen, a remedy, and nothing changed."""

import math
import warnings

import pytest
import torch
from torch import nn

import loschmidt as lo
from loschmidt.optim import ECD, SGD, Adam, AdamW
from reference.bits import bits_of, differences

# -- construction ----------------------------------------------------------------------------------------

SETTINGS = [
    (SGD, {"nesterov": True}, "Nesterov.*drift.*leave nesterov out"),
    (SGD, {"momentum": 0.0}, "no inverse.*for example 0.9"),
    (SGD, {"momentum": 1.1}, "grows without bound"),
    (SGD, {"momentum": -0.5}, "above 0"),
    (SGD, {"dampening": 1.0}, "nothing of the gradient"),
    (SGD, {"lr": -1.0}, "lr=-1.0.*at least 0"),
    (SGD, {"lr": math.nan}, "finite"),
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
    (Adam, {"eps": -1e-8}, "eps"),
    (Adam, {"lattice": torch.int32}, "more than 32 bits.*int64"),
    (AdamW, {"lr": 2.0, "weight_decay": 0.5}, "lr \\* weight_decay below 1"),
    (ECD, {"eta": 0.0}, "eta.*above 0"),
    (ECD, {"F0": math.inf}, "F0"),
    (ECD, {"conserve": "perhaps"}, '"none" or "rescale"'),
    (ECD, {"s": 0.0}, "infinite speed.*delta_energy"),
    (ECD, {"lr": 2.0, "weight_decay": 0.5, "decoupled": True}, "below 1"),
]


@pytest.mark.parametrize(("kind", "settings", "words"), SETTINGS, ids=lambda x: str(x) if isinstance(x, dict) else None)
def test_settings_without_an_inverse_are_refused(kind, settings, words):
    w = nn.Parameter(torch.tensor([0.1, 0.2]))
    before = w.detach().clone()
    with pytest.raises(lo.InvalidSetting, match=words) as caught:
        kind([w], **settings)
    assert caught.value.remedy
    assert isinstance(caught.value, (lo.LoschmidtError, ValueError))
    assert torch.equal(w, before)


def test_options_that_change_nothing_are_accepted():
    Adam([nn.Parameter(torch.ones(2))], amsgrad=False, fused=None, foreach=True)
    SGD([nn.Parameter(torch.ones(2))], nesterov=False)


shared = torch.ones(4)
PARAMETERS = {
    "sparse": ([torch.ones(3, 3).to_sparse()], lo.InvalidSetting, "dense"),
    "complex": ([torch.ones(3, dtype=torch.complex64)], lo.InvalidSetting, "view_as_real"),
    "float16": ([torch.ones(3, dtype=torch.float16)], lo.InvalidSetting, "float32, float64 or bfloat16"),
    "NaN": ([torch.tensor([1.0, math.nan])], lo.NonFinite, "parameter 1 of group . holds NaN"),
    "too large": ([torch.tensor([1e8])], lo.LatticeOverflow, "holds 1e\\+08.*coarser"),
    "of one memory": ([shared, shared.view(2, 2)], lo.InvalidSetting, "share one memory"),
}


@pytest.mark.parametrize("what", PARAMETERS)
def test_parameters_that_cannot_be_wound_back_are_refused(what):
    values, error, words = PARAMETERS[what]
    opt = SGD([nn.Parameter(torch.ones(2))])
    before = opt.digest()
    good = nn.Parameter(torch.tensor([1 / 3]))
    for make in (SGD, lambda params: opt.add_param_group({"params": params})):
        with pytest.raises(error, match=words):
            make([good, *(nn.Parameter(v, requires_grad=False) for v in values)])
    assert torch.equal(good.detach(), torch.tensor([1 / 3]))
    assert len(opt.param_groups) == 1
    assert opt.digest() == before


def test_a_parameter_given_twice_is_refused():
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(lo.InvalidSetting, match="twice"):
        SGD([w, w])
    with pytest.raises(lo.InvalidSetting, match="twice"):
        SGD([w]).add_param_group({"params": [w]})
    with pytest.raises(TypeError, match="set"):
        SGD([{"params": {w}}])


# -- steps -----------------------------------------------------------------------------------------------


class Run:
    """An optimizer with two parameters after three good steps."""

    def __init__(self, kind, **settings):
        self.model = nn.ParameterDict({"w": torch.linspace(-1, 1, 5), "u": torch.ones(2, 2)}).double()
        self.opt = kind(self.model.named_parameters(), **settings)
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


def edited(method, **settings):
    def do(run):
        with torch.no_grad():
            run.params[0].mul_(1.5)
        try:
            run.opt.step() if method == "step" else run.opt.unstep(lambda: run.passes(2))
        finally:
            with torch.no_grad():
                run.params[0].div_(1.5)

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
    run.opt = SGD([nn.Parameter(torch.ones(1))])
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
    "huge lr": (SGD, {}, edit(lr=1e9), lo.LatticeOverflow, "^w: at step 3.*lattice 'q'.*lower lr"),
    "huge lr, Adam": (AdamW, {"weight_decay": 0.0}, edit(lr=1e9), lo.LatticeOverflow, "lower lr"),
    "gradient inf": (SGD, {}, with_gradient(math.inf), lo.NonFinite, "gradient of u holds.*clip"),
    "gradient NaN": (AdamW, {}, with_gradient(math.nan), lo.NonFinite, "gradient of u"),
    "gradient too large": (SGD, {}, with_gradient(1e20), lo.LatticeOverflow, "u: .*lattice 'p'"),
    "gradient squared too large": (Adam, {}, with_gradient(1e200), (lo.NonFinite, lo.LatticeOverflow), "u"),
    "sparse gradient": (SGD, {}, sparse_gradient, lo.InvalidSetting, "u has a sparse gradient.*sparse=False"),
    "no loss": (ECD, {}, lambda run: (run.passes(), run.opt.step()), lo.InvalidSetting, r"step\(loss=loss\)"),
    "loss NaN": (ECD, {}, with_loss(math.nan), lo.NonFinite, "loss is nan"),
    "loss NaN, SGD": (SGD, {}, with_loss(math.nan), lo.NonFinite, "loss is nan"),
    "loss at F0": (ECD, {"F0": 0.5}, with_loss(0.5), lo.LossBelowF0, "F0 = 0.5.*set F0 below"),
    "loss below F0": (ECD, {}, with_loss(-2.0), lo.LossBelowF0, "set F0 below"),
    "overflow, ECD": (ECD, {}, with_gradient(1e22, 1.0), lo.LatticeOverflow, "u"),
    "GradScaler": (SGD, {}, scaled, lo.InvalidSetting, "without a GradScaler"),
    "closure fails": (SGD, {}, failing, lo.NonFinite, "own"),
    "edited, step": (SGD, {}, edited("step"), lo.EditedOutside, r"w was edited.*adopt\(\)"),
    "edited, unstep": (SGD, {}, edited("unstep"), lo.EditedOutside, r"w was edited.*adopt\(\)"),
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


def test_a_start_without_a_direction_is_refused():
    w = nn.Parameter(torch.ones(2))
    opt = ECD([w], s=0.0, delta_energy=1.0)
    before = opt.digest()
    w.grad = torch.zeros(2)
    with pytest.raises(lo.NonFinite, match=r"infinite speed.*s > 0"):
        opt.step(loss=1.0)
    assert opt.digest() == before


def test_an_energy_shell_out_of_reach_is_refused():
    w = nn.Parameter(torch.ones(2))
    opt = ECD([w], eta=200.0, conserve="rescale")
    w.grad = torch.ones(2)
    opt.step(loss=1.0)
    before = opt.digest()
    with pytest.raises(lo.NonFinite, match=r"energy shell.*lower eta"):
        opt.step(loss=0.01)
    assert opt.digest() == before


@pytest.mark.parametrize("action", ["default", "error"])
def test_updates_below_the_resolution_are_warned_of_once(action):
    w = nn.Parameter(torch.ones(4, dtype=torch.float64))
    opt = SGD([w], lr=1e-3, resolution=2.0**-20)
    start = opt.digest()
    seen = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        for _ in range(600):
            w.grad = torch.full_like(w, 1e-5)
            try:
                opt.step()
            except lo.BelowResolution:
                seen += 1
    seen += sum(issubclass(c.category, lo.BelowResolution) for c in caught)
    assert seen == 1
    assert opt.steps == 600
    for _ in range(600):
        opt.unstep(lambda: setattr(w, "grad", torch.full_like(w, 1e-5)))
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
