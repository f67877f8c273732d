"""Parameters of mixed dtypes, sizes, layouts and groups, under every optimizer: each is the view of its integers after
every step, and every bit comes back. Each of these checks fails where something was damaged."""

from collections import Counter

import pytest
import torch
from torch import nn

import loschmidt as lo
from loschmidt.optim import base, composed, flat
from reference import mixtures
from reference.mixtures import KINDS, Mixture, check, fingerprint, refuse_other_views

MIXTURES, CHUNKS = 2000, 8
RARE = {"at the true limit", "ended early"}


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_mixtures_return(chunk):
    each = MIXTURES // CHUNKS
    failed, events = check(range(chunk * each, (chunk + 1) * each))
    assert failed == []
    rare = {name: count for name, count in events.items() if count < each // 80 and name not in RARE}
    assert not rare, "these mixtures no longer do what they are random for"
    assert {*KINDS, "deep blocks with another dtype between", "group added midway", "frozen", "tied"} <= events.keys()


def test_some_are_at_the_true_limit():
    assert sum(Mixture(seed).lanes == mixtures.TRUE_LIMIT for seed in range(MIXTURES)) >= 10


def test_one_flipped_bit_is_noticed():
    outcomes, events = [], Counter()
    for seed in range(240):
        mixture = Mixture(seed, damage=seed)
        outcomes.append(mixture.wrong())
        events += Counter({k: v for k, v in mixture.events.items() if k.startswith("flipped")})
    assert [seed for seed, what in enumerate(outcomes) if what == ""] == []
    assert outcomes.count(None) < 48  # undecided: a fifth at most
    assert {f"flipped: {place}" for place in ("q", "p", "m", "v", "head", "parameter", "check")} <= events.keys()


def found_by_mixtures():
    """What is wrong with mixtures now, one after the other."""
    return filter(None, (Mixture(seed).wrong() for seed in range(100)))


def test_parameters_that_are_not_written_are_noticed(monkeypatch):
    """As it was where a block's slots lie apart: its pass had not run, and all others thought that it had."""

    def show(slots, world):
        for block, mine in flat.by_block(slots):
            if len(mine) < 2:
                flat._write(block, mine)

    monkeypatch.setattr(flat, "show", show)
    assert any("is not the view of its integers" in what for what in found_by_mixtures())


def test_elements_that_move_and_are_not_counted_are_noticed(monkeypatch):
    monkeypatch.setattr(flat, "_write", lambda block, slots: 0)
    assert any(what.startswith("Inconsistent") for what in found_by_mixtures())


def test_a_refused_step_that_changes_something_is_noticed(monkeypatch):
    honest = flat.check_unedited

    def careless(slots, later=None):
        try:
            honest(slots, later)
        except lo.EditedOutside:
            slots[0].count += 1
            raise

    monkeypatch.setattr(flat, "check_unedited", careless)
    assert any("refused step" in what for what in found_by_mixtures())


# -- the model that did not train --------------------------------------------------------------------


class Sandwich(nn.Module):
    """Two layers in bfloat16 with a normalisation in float32 between them: more than 65,536 elements, interleaved."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.n, self.b = nn.Linear(200, 300).bfloat16(), nn.LayerNorm(300), nn.Linear(300, 200).bfloat16()

    def forward(self, x):
        return self.b(self.n(self.a(x).float()).bfloat16())


def mse(model, x):
    return (model(x).float() - 1).square().mean()


def sandwich(kind):
    model, (optimizer, settings) = Sandwich(), KINDS[kind]
    x = torch.randn(64, 200, generator=torch.Generator().manual_seed(1)).bfloat16()
    return model, optimizer(model.parameters(), **settings), mse, lo.data.Schedule(x, batch_size=16)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "ecd", "bbi", "q1", "leapfrog"])
def test_a_model_of_two_dtypes_in_turn_trains_and_comes_back(kind):
    model, opt, *_ = made = sandwich(kind)
    assert [s.block.deep for s in opt._slots] == [True, True, False, False, True, True]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    lo.testing.assert_reversible(lambda: made, 3)
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert moved == [*before]


@pytest.mark.parametrize("kind", ["sgd", "leapfrog"])
def test_what_was_shown_is_what_was_done_and_not_what_should_have_been(kind, monkeypatch):
    """A pass that says nothing of weights leaves them to be written; one that lies is found at the next look."""
    model, opt, loss, data = sandwich(kind)

    def step():
        opt.zero_grad()
        value = loss(model, data(0))
        value.backward()
        return value

    opt.step(step)
    opt.check_shown()
    with monkeypatch.context() as patch:
        patch.setattr(lo.exact.Operands, "written", lambda self: None)
        opt.step(step)
    opt.check_shown()
    with monkeypatch.context() as patch:
        patch.setattr(flat, "_write", lambda block, slots: sum(s.stop - s.start for s in slots))
        opt.step(step)
    with pytest.raises(lo.errors.Inconsistent, match=r"is not the view of its integers.*report it"):
        opt.check_shown()


def test_a_trajectory_compares_all_parameters_at_its_digests(monkeypatch):
    model, opt, loss, data = sandwich("adamw")
    traj = lo.Trajectory(model, opt, loss, data, digest_every=4).seek(2)
    monkeypatch.setattr(flat, "_write", lambda block, slots: sum(s.stop - s.start for s in slots))
    with pytest.raises(lo.Inconsistent, match=r"n\.weight is not the view of its integers"):
        traj.seek(6)
    assert traj.step == 4


def test_a_step_whose_count_is_wrong_is_taken_back(monkeypatch):
    for module, kind in ((base, "adamw"), (composed, "leapfrog")):
        model, opt, loss, data = sandwich(kind)

        def step(model=model, opt=opt, loss=loss, data=data):
            opt.zero_grad()
            value = loss(model, data(0))
            value.backward()
            return value

        opt.step(step)
        before, weights = fingerprint(opt), [p.detach().clone() for p in model.parameters()]
        honest = flat.world_of

        def forgetful(*args, honest=honest, **kwargs):
            world = honest(*args, **kwargs)
            world.parts.pop(0)
            return world

        with monkeypatch.context() as patch:
            patch.setattr(module.flat, "world_of", forgetful)
            with pytest.raises(lo.errors.Inconsistent, match="elements were moved, but"):
                opt.step(step)
        assert fingerprint(opt) == before and all(map(torch.equal, weights, model.parameters()))
        refuse_other_views(opt)


class Still(lo.optim.SGD):
    """Its drift says at every second step that there is nothing to do."""

    def drifts(self):
        return (lo.exact.Shear("q", lambda part: part.value("p") * part["lr"] if part.count % 2 else None),)


def test_an_edit_is_noticed_at_a_step_that_moves_nothing(monkeypatch):
    monkeypatch.setattr(mixtures.tape, "MAX_LANES", 16)
    p = nn.Parameter(torch.randn(100, generator=torch.Generator().manual_seed(0)))
    opt = Still([p], lr=0.1, momentum=0.9)
    lo.optim.ReversibleOptimizer.registry.pop("Still")
    p.grad = torch.ones_like(p)
    opt.step()
    before = fingerprint(opt)
    with torch.no_grad():
        p[40] += 1
    edited = p.detach().clone()
    with pytest.raises(lo.EditedOutside):
        opt.step()
    assert torch.equal(p, edited)
    with torch.no_grad():
        p[40] -= 1
    opt.adopt()
    opt.step()
    assert opt.steps == 2 and fingerprint(opt) != before


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_a_parameter_may_begin_anywhere_in_its_memory(offset):
    p = nn.Parameter(torch.arange(12.0)[offset : offset + 8])
    opt = lo.optim.SGD([p], lr=0.1, momentum=0.9)
    p.grad = torch.ones(8)
    opt.step()
    with torch.no_grad():
        p[3] += 1
    with pytest.raises(lo.EditedOutside, match="1 of 8"):
        opt.step()


# -- parameters that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "weight",
    [torch.randn(3, 1).expand(3, 4), torch.randn(1).expand(5), torch.randn(8).as_strided((4, 3), (1, 2))],
    ids=["rows", "one number", "windows"],
)
def test_expanded_parameters_are_refused_by_name(weight):
    model = nn.Module()
    model.weight = nn.Parameter(weight)
    with pytest.raises(lo.InvalidSetting, match=r"^weight, of shape .* is expanded.*contiguous\(\)"):
        lo.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    lo.optim.SGD([nn.Parameter(weight.detach().contiguous())], lr=0.1, momentum=0.9)


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(8, 3).t(),
        torch.randn(6, 4)[::2, ::3],
        torch.randn(1).expand(1),
        torch.randn(20).as_strided((2, 3), (5, 7)),
    ],
    ids=["transposed", "strided", "expanded to its own size", "odd strides"],
)
def test_other_layouts_are_accepted(weight):
    lo.optim.SGD([nn.Parameter(weight)], lr=0.1, momentum=0.9)
