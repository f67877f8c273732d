"""Models under torch.compile: every bit there and back, the same names as without it, and what is said where not."""

import copy
import shutil
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import loschmidt as lo
from loschmidt.optim.buffers import uncompiled
from loschmidt.trajectory import environment
from reference.bits import bits_of, differences
from reference.mixed import STEPS, Case, InLoop, InTrajectory, Net, wrong

SGD = {"kind": lo.optim.SGD, "settings": {"lr": 0.05, "momentum": 0.9}}
ECD = {"kind": lo.optim.ECD, "settings": {"lr": 0.1, "weight_decay": 1e-3}}
DYNAMO, AOT, STATIC = {"backend": "eager", "fullgraph": True}, {"backend": "aot_eager"}, {"dynamic": False}
ALL = {"autocast": True, "micro": 3}

# torch says that hooks on all modules see the compiled one, too, as they should; outside of pytest it is told not to.
pytestmark = pytest.mark.filterwarnings("ignore:Using .torch.compile.module.. when there are global hooks")
compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


def inductor(name, way, *marks, **case):
    return pytest.param(Case(**{"compiled": STATIC} | case), way, marks=[compiler, *marks], id=f"inductor-{name}-{way}")


def eager(name, way, **case):
    return pytest.param(Case(**case), way, id=f"{name}-{way}")


def short(step):
    """Rows of batches whose last one in an epoch is short."""
    return 6 if step % 5 == 4 else 12


CASES = [
    *[
        case
        for way in ("trajectory", "loop")
        for case in (
            eager("dynamo", way, compiled=DYNAMO, **SGD),
            eager("aot_eager", way, compiled=AOT),
            eager("dynamo-in-place", way, compiled=DYNAMO, in_place=True),
            eager("aot_eager-autocast-accumulating", way, compiled=AOT, **ALL, **ECD),
            inductor("dynamic", way, pytest.mark.slow, compiled={"dynamic": True}, rows=short),
            inductor("short-batches", way, pytest.mark.slow, rows=short, **SGD),
            inductor("in-place", way, pytest.mark.slow, in_place=True),
            inductor("ecd", way, pytest.mark.slow, **ECD),
            inductor("bfloat16", way, pytest.mark.slow, dtype=torch.bfloat16, **SGD),
            inductor("autocast", way, pytest.mark.slow, autocast=True, **SGD),
            inductor("autocast-accumulating", way, pytest.mark.slow, **ALL),
        )
    ],
    inductor("default", "trajectory", compiled={}),
    inductor("default", "loop", pytest.mark.slow, compiled={}),
]


@pytest.mark.parametrize(("case", "way"), CASES)
def test_compiled_models_come_back_with_every_bit(case, way):
    assert wrong(case, way) == []


@pytest.mark.parametrize("way", [InTrajectory, InLoop])
def test_a_model_is_compiled_once_for_both_ways(way):
    walk = way(Case(compiled=DYNAMO))
    counters.clear()
    walk.seek(STEPS)
    walk.seek(0)
    walk.seek(STEPS)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_hooks_that_come_and_go_would_have_it_compiled_at_each_step():
    torch._dynamo.reset()
    model = torch.compile(Net(), **DYNAMO)
    counters.clear()
    for _ in range(3):
        hook = nn.modules.module.register_module_forward_pre_hook(lambda module, _: None)
        model(torch.ones(4, 6))
        hook.remove()
    assert counters["stats"]["unique_graphs"] == 3


def test_a_module_compiled_in_place_must_be_named():
    walk = InLoop(Case(compiled=DYNAMO, in_place=True))
    before = walk.opt.digest()
    with pytest.raises(lo.InvalidSetting, match=r"hides it.*replay\(optimizer, model\)"), lo.replay(walk.opt):
        walk.model(torch.ones(4, 6))
    assert walk.opt.digest() == before and walk.opt.steps == 0
    with lo.replay(InLoop(Case()).opt):  # nothing ran that was compiled, nothing to miss
        pass


def test_nor_is_it_undone_without_a_name():
    walk = InLoop(Case(compiled=DYNAMO, in_place=True, **SGD))
    walk.model.drop.p = 0.0

    def passes():
        walk.opt.zero_grad()
        walk.case.part(walk.model, walk.case.batch(0)).backward()

    passes()
    walk.opt.step()
    turn = walk.opt.digest()
    with pytest.raises(lo.InvalidSetting, match="hides it"):
        walk.opt.unstep(passes)
    assert walk.opt.digest() == turn


# -- names, and other compilers ------------------------------------------------------------------------


def nested():
    model = Net()
    model.norm = torch.compile(model.norm, **DYNAMO)
    return model


def in_place():
    model = Net()
    model.compile(**DYNAMO)
    return model


FORMS = {"plain": Net, "wrapped": lambda: torch.compile(Net(), **DYNAMO), "in place": in_place, "nested": nested}


def run_of(model, **how):
    case = Case(**SGD)
    opt = lo.optim.SGD(model.named_parameters(), lr=0.05, momentum=0.9)
    return lo.Trajectory(model, opt, case.loss, case.batch, digest_every=2, **how)


@pytest.mark.filterwarnings("ignore::loschmidt.errors.EnvironmentChanged")
@pytest.mark.parametrize(("there", "kept"), [*((form, "file") for form in FORMS), ("wrapped", "folder")])
def test_a_run_goes_on_whether_compiled_or_not(there, kept, tmp_path):
    torch._dynamo.reset()
    traj = run_of(FORMS[there](), tape=tmp_path / "run" if kept == "folder" else None)
    start = traj.digest()
    turn = traj.seek(4).digest()
    traj.close() if kept == "folder" else traj.save(tmp_path / "run")
    for here in FORMS:
        case = Case(**SGD)
        with lo.Trajectory.load(tmp_path / "run", model=FORMS[here](), loss=case.loss, data=case.batch) as again:
            assert again.digest() == turn, here
            assert {"first.weight/q", "norm.bias/q"} <= {*again.optimizer.tensor_digests()}
            assert "norm.running_mean" in again.buffers.values() and "norm" in again.modes
            assert again.seek(0).digest() == start, here
            again.seek(4)


def rounding_otherwise(graph, _inputs):
    """A compiler whose kernels have other bits."""
    return lambda *given: [x * (1 + 2**-20) for x in graph(*given)]


def test_a_compiler_with_other_bits_is_refused_by_name(tmp_path):
    torch._dynamo.reset()
    traj, case = run_of(Net()).seek(4), Case(**SGD)
    traj.save(tmp_path / "run")
    model = torch.compile(Net(), backend=rounding_otherwise)
    before = bits_of(traj.optimizer, model)
    with pytest.raises(lo.SourceChanged, match=r"compiled was '', is 'the model: rounding_otherwise dynamic=None'"):
        lo.Trajectory.load(tmp_path / "run", model=model, loss=case.loss, data=case.batch)
    assert not differences(before, bits_of(traj.optimizer, model))


def test_a_copy_of_a_compiled_run_is_independent():
    walk = InTrajectory(Case(compiled=DYNAMO))
    start = walk.digest()
    turn = walk.traj.seek(3).digest()
    twin = copy.deepcopy(walk.traj)
    assert twin.seek(0).digest() == start
    assert walk.digest() == turn


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, "inductor dynamic=None"),
        ({"mode": "reduce-overhead", "dynamic": False}, "inductor dynamic=False triton.cudagraphs=True"),
        ({"options": {"fallback_random": True}}, "inductor dynamic=None fallback_random=True"),
        (AOT, "aot_eager dynamic=None"),
        ({"backend": rounding_otherwise}, "rounding_otherwise dynamic=None"),
    ],
)
def test_the_record_says_how_a_model_is_compiled(given, seen):
    inner, outer = Net(), Net()
    inner.norm = torch.compile(inner.norm, **given)
    outer.compile(**given)
    assert environment.compiled(torch.compile(Net(), **given)) == {"the model": seen}
    assert environment.compiled(outer) == {"the model": seen}
    assert environment.compiled(inner) == {"norm": seen}
    assert environment.record("cpu", inner)["compiled"] == f"norm: {seen}"
    assert environment.compiled(Net()) == {}


def test_names_without_the_layer_of_the_compiler():
    assert [uncompiled(name) for name in ("_orig_mod", "a._orig_mod.b", "_orig_mod.a", "a_orig_mod")] == [
        "",
        "a.b",
        "a",
        "a_orig_mod",
    ]


# -- kernels that depend on what ran before ------------------------------------------------------------


def test_batches_of_several_shapes_are_warned_of_where_kernels_depend_on_their_order(monkeypatch):
    monkeypatch.setattr(environment, "depends_on_history", lambda model: ["the model"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InTrajectory(Case()).seek(STEPS)
    with pytest.warns(RuntimeWarning, match=r"several shapes.*dynamic=False") as caught:
        InTrajectory(Case(rows=short)).seek(STEPS)
    assert len(caught) == 1


@compiler
@pytest.mark.slow
def test_inductor_has_other_bits_for_a_shape_once_it_has_seen_another():
    walk = InTrajectory(Case(compiled={}, rows=short, **SGD))
    assert environment.depends_on_history(walk.model) == ["the model"]
    with pytest.warns(RuntimeWarning, match="several shapes"):
        walk.seek(STEPS)
    with pytest.raises(lo.ReplayMismatch):  # noticed, and nothing undone that was not as recorded
        walk.seek(0)


@compiler
@pytest.mark.slow
def test_dropout_of_inductor_is_drawn_from_our_seed_but_is_not_that_of_torch():
    torch._dynamo.reset()
    drop, one = torch.compile(nn.Dropout(0.5), **STATIC), torch.ones(1000)
    lo.exact.random.seed_all("a")
    first = drop(one)
    assert not torch.equal(first, drop(one))
    torch._dynamo.reset()
    lo.exact.random.seed_all("a")
    assert torch.equal(first, drop(one))
    lo.exact.random.seed_all("a")
    assert not torch.equal(first, nn.Dropout(0.5)(one))
