"""Deep blocks are done in passes, compiled or on tensors: the same bits, there and back, and nothing half done."""

import math
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import nn

import loschmidt as lo
from loschmidt import exact
from loschmidt.exact import native, rowwise, tape
from loschmidt.exact.digest import chunk_sums, folded
from loschmidt.exact.trace import Trace, Value
from reference.bits import bits_of, damage, differences
from reference.optimizers import RECORDS, Loop

COMPILED = pytest.mark.skipif(native.compiler() is None, reason="no C compiler")
STEPS = 5


@pytest.fixture(autouse=True)
def few_lanes(monkeypatch):
    """16 lanes, so that the smallest models are deep blocks, with a last row that is not full."""
    monkeypatch.setattr(tape, "MAX_LANES", 16)


@pytest.fixture
def kernels(monkeypatch):
    """Switches between compiled passes and their twin."""
    return lambda mode: monkeypatch.setenv("LOSCHMIDT_KERNELS", mode)


def deep(optimizer) -> bool:
    return all(s.block.deep for s in optimizer._slots)


def gradients(parameters, scale=1.0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = (scale * torch.randn(p.shape, generator=draw)).to(p.dtype)


def state(optimizer):
    exponents = [x.exponent for s in optimizer._slots for x in s.block.lattices.values()]
    return bits_of(optimizer) | {"exponents": torch.tensor(exponents)}


def walk(optimizer, parameters, steps, scale=lambda step: 1.0):
    """Steps with given gradients; the state at each step."""
    states = [state(optimizer)]
    for step in range(steps):
        gradients(parameters, scale(step), step)
        optimizer.step(loss=0.7)
        states.append(state(optimizer))
    return states


def walk_back(optimizer, parameters, states, scale=lambda step: 1.0):
    """Undo all steps; the steps at which another state was found."""
    wrong = []
    for step in reversed(range(len(states) - 1)):

        def closure(step=step):
            gradients(parameters, scale(step), step)
            return 0.7

        optimizer.unstep(closure)
        wrong += [step] if differences(states[step], state(optimizer)) else []
    return wrong


@pytest.mark.parametrize("mode", [pytest.param("native", marks=COMPILED), "eager"])
@pytest.mark.parametrize("name", RECORDS)
def test_every_optimizer_comes_back(name, mode, kernels):
    kernels(mode)
    loop = Loop(name)
    assert deep(loop.optimizer)
    start = loop.bits()
    turn = loop.forward(STEPS).bits()
    assert differences(start, turn)
    assert loop.returns(start, STEPS)
    assert not differences(turn, loop.forward(STEPS).bits())


@pytest.mark.parametrize("place", ["q", "p", "head", "check"])
def test_one_flipped_bit_is_noticed(place):
    loop = Loop("sgd")
    start = loop.bits()
    damage(loop.forward(STEPS).optimizer, place)
    try:
        assert not loop.returns(start, STEPS)
    except lo.errors.EditedOutside:
        assert place == "q"


@COMPILED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "name",
    [
        "sgd-dampened-decayed",
        "sgd-int32",
        "sgd-int32-momentum",
        "adamw-int32-weights",
        "adam-decayed",
        "adamw-decayed",
        "ecd-rescale",
        "ecd-friction",
        "bbi",
        "q1",
        "q1-per-tensor",
    ],
)
def test_compiled_passes_have_the_bits_of_their_twin(name, dtype, kernels):
    kernels("native")
    one = Loop(name, dtype)
    start, turn = one.bits(), one.forward(STEPS).bits()
    kernels("eager")
    other = Loop(name, dtype)
    assert not differences(turn, other.forward(STEPS).bits())
    assert one.returns(start, STEPS)  # the way back of compiled steps, on tensors
    kernels("native")
    assert other.returns(start, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "adamw-decayed"])
def test_torchs_compiler_gives_the_same_bits(name, kernels):
    """What a GPU can be told to run, here on the CPU."""
    kernels("eager")
    turn = Loop(name).forward(2).bits()
    kernels("compile")
    loop = Loop(name)
    start = loop.bits()
    assert not differences(turn, loop.forward(2).bits())
    assert loop.returns(start, 2)


@COMPILED
@pytest.mark.parametrize("scale", [1.0, 2.0**12, 2.0**20])
@pytest.mark.parametrize("settings", [{"momentum": 0.9}, {"momentum": 0.85}, {"momentum": 0.123456789}])
def test_near_and_far_from_zero(scale, settings, kernels):
    """Integers below 2**48, and up to 2**61; fractions next to 1, and others."""
    turns = []
    for mode in ("native", "eager"):
        kernels(mode)
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(100, dtype=torch.float64) * scale)
        optimizer = lo.optim.SGD([p], lr=0.1, **settings)
        states = walk(optimizer, [p], STEPS, lambda step: scale)
        turns.append(states[-1])
        assert walk_back(optimizer, [p], states, lambda step: scale) == []
    assert not differences(*turns)


@pytest.mark.parametrize("mode", [pytest.param("native", marks=COMPILED), "eager"])
def test_a_lattice_is_made_coarser_in_the_middle(mode, kernels):
    kernels(mode)
    p = nn.Parameter(torch.randn(100))
    optimizer = lo.optim.Adam([p], lr=1e-3)
    grow = lambda step: 1e-3 if step < 2 else 3e3  # noqa: E731
    states = walk(optimizer, [p], 6, grow)
    entries = [optimizer.journal.entries[k] for k in sorted(optimizer.journal.entries)]
    assert "coarsened" in entries[0] and "op by op" not in str(entries[0])  # still zero: chosen, not contracted
    assert sum("coarsened" in e for e in entries) >= 2 and any("op by op" in str(e) for e in entries[1:])
    assert walk_back(optimizer, [p], states, grow) == []


def test_lattices_of_several_blocks_are_made_coarser():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(n)) for n in (100, 7, 64)]  # deep, small, deep
    optimizer = lo.optim.AdamW([{"params": [p]} for p in parameters], lr=1e-2)
    grow = [1e-3, 1e-3, 1e3, 1e3, 1e5, 1.0].__getitem__
    states = walk(optimizer, parameters, 6, grow)
    assert walk_back(optimizer, parameters, states, grow) == []


def test_a_step_that_is_refused_changes_nothing():
    p = nn.Parameter(torch.randn(100))
    optimizer = lo.optim.AdamW([p], lr=1e-3)
    before = walk(optimizer, [p], 3)[-1]
    values = p.detach().clone()
    for bad in (math.nan, math.inf):
        p.grad[57] = bad
        with pytest.raises(lo.errors.NonFinite, match="parameter 0 of group 0"):
            optimizer.step()
        assert not differences(before, state(optimizer)) and torch.equal(values, p)

    def other():
        gradients([p], seed=2)
        p.grad[31] += 1e-6

    with pytest.raises(lo.ReplayMismatch):
        optimizer.unstep(other)
    assert not differences(before, state(optimizer)) and torch.equal(values, p)


@pytest.mark.parametrize("mode", [pytest.param("native", marks=COMPILED), "eager"])
@pytest.mark.parametrize("way", ["step", "unstep"])
def test_edited_weights_are_noticed_and_kept(way, mode, kernels):
    kernels(mode)
    p = nn.Parameter(torch.randn(100))
    optimizer = lo.optim.SGD([p], lr=0.1, momentum=0.9)
    before = walk(optimizer, [p], 3)[-1]
    p.data[40] += 1e-3
    values = p.detach().clone()
    with pytest.raises(lo.errors.EditedOutside, match="1 of 100 values"):
        optimizer.step() if way == "step" else optimizer.unstep(lambda: gradients([p], seed=2))
    assert not differences(before, state(optimizer)) and torch.equal(values, p)
    assert optimizer.adopt() == 1
    optimizer.step()


def test_a_closure_that_edits_and_fails_changes_nothing():
    p = nn.Parameter(torch.randn(100))
    optimizer = lo.optim.AdamW([p], lr=0.1)
    before, values = walk(optimizer, [p], 3)[-1], p.detach().clone()

    def closure():
        p.data.add_(1.0)
        raise RuntimeError("of the user's")

    with pytest.raises(RuntimeError, match="of the user's"):
        optimizer.unstep(closure)
    assert not differences(before, state(optimizer)) and torch.equal(values, p)


def test_parts_of_a_block_and_small_blocks_beside_it():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(n)) for n in (30, 1, 50, 7)] + [nn.Parameter(torch.empty(0))]
    groups = [{"params": [parameters[i] for i in (0, 1, 2, 4)]}, {"params": parameters[3:4], "weight_decay": 0.0}]
    optimizer = lo.optim.ECD(groups, lr=0.02, delta_energy=1.0, weight_decay=0.1, conserve="rescale")
    assert [s.block.deep for s in optimizer._slots] == [True, True, True, True, False]  # group by group
    start, steps = bits_of(optimizer), []
    for step in range(6):
        gradients(parameters, seed=step)
        if step == 3:
            parameters[2].grad = None
        optimizer.step(loss=0.7)
        steps.append(bits_of(optimizer))
    for step in reversed(range(6)):

        def closure(step=step):
            gradients(parameters, seed=step)
            if step == 3:
                parameters[2].grad = None
            return 0.7

        optimizer.unstep(closure)
        assert not differences(steps[step - 1] if step else start, bits_of(optimizer))


def test_weights_that_do_not_lie_flat():
    torch.manual_seed(0)
    flat, p = nn.Parameter(torch.randn(12, 9)), nn.Parameter(torch.randn(9, 12).t())
    p.data.copy_(flat.data)
    one, other = lo.optim.AdamW([flat], lr=0.01), lo.optim.AdamW([p], lr=0.01)
    states = walk(one, [flat], STEPS)
    again = walk(other, [p], STEPS)
    assert torch.equal(flat, p) and not p.is_contiguous()
    assert walk_back(other, [p], again) == [] and walk_back(one, [flat], states) == []


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_passes_follow_torch(name):
    torch.manual_seed(0)
    p, q = (nn.Parameter(x) for x in torch.randn(500, dtype=torch.float64).repeat(2, 1))
    settings = {"momentum": 0.9} if name == "SGD" else {}
    ours = getattr(lo.optim, name)([p], lr=0.01, **settings)
    theirs = getattr(torch.optim, name)([q], lr=0.01, **settings)
    walk(ours, [p], 30)
    for step in range(30):
        gradients([q], seed=step)
        theirs.step()
    assert (p - q).abs().max() < 1e-9
    lanes, size = ours.tape.lanes[0], 500
    bound = ours.price() * lanes.heads.numel() * lanes.depth / size  # idle lanes of the last row are used too
    assert ours.tape.bits_per_parameter_step == pytest.approx(bound, rel=2e-3)


def test_steps_tell_autograd_that_weights_have_changed():
    p = nn.Parameter(torch.randn(100))
    optimizer = lo.optim.SGD([p], lr=0.1, momentum=0.9)
    loss = (p * p).sum()
    gradients([p])
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_of_the_size_of_a_deep_block_is_kept_but_its_lattices():
    p = nn.Parameter(torch.randn(100))
    optimizer = lo.optim.SGD([p], lr=0.1, momentum=0.9)
    walk(optimizer, [p], 3)
    block = optimizer._slots[0].block
    assert block.shown is None and block._gradient is None and block.operands is None


def test_a_pass_that_does_not_compile_runs_on_tensors(monkeypatch):
    p = nn.Parameter(torch.randn(100))
    optimizer = lo.optim.SGD([p], lr=0.1, momentum=0.9)
    monkeypatch.setattr(native, "function", lambda *_: (None, False))
    states = walk(optimizer, [p], STEPS)
    assert walk_back(optimizer, [p], states) == []


@pytest.mark.parametrize("mode", [pytest.param("native", marks=COMPILED), "eager"])
def test_bfloat16_weights_are_rounded_as_torch_does(mode, kernels):
    """Half to even: 1 + 1/256 is 1, and 1 + 3/256 is 1 + 1/64."""
    kernels(mode)
    p = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    optimizer, seen = lo.optim.SGD([p], lr=1.0, momentum=1.0), []
    for gradient in (-1 / 256, -1 / 256):  # the momentum grows: 1/256, then 2/256 more
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
        seen.append(float(p.detach()[5]))
    assert seen == [1.0, 1 + 1 / 64]


def test_sums_that_are_remembered_are_those_of_the_present_state():
    def made():
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(100))
        return p, lo.optim.ECD([p], lr=0.02, delta_energy=1.0, weight_decay=0.1)

    p, optimizer = made()
    walk(optimizer, [p], 3)
    saved = optimizer.state_dict()
    expected = walk(optimizer, [p], 2)[-1]
    optimizer.load_state_dict(saved)
    assert not differences(expected, walk(optimizer, [p], 2)[-1])
    for again in (optimizer, made()[1]):  # one that remembers other sums, one that remembers none
        again.load_state_dict(saved)
        again.param_groups[0]["params"][0].data.mul_(1.5)
        assert again.adopt() == 100
    states = [walk(o, o.param_groups[0]["params"], 2)[-1] for o in (optimizer, again)]
    assert not differences(*states)


@COMPILED
@pytest.mark.parametrize("lanes", [4, 1500, 3000])  # more than 1,024 chunks, and few
def test_compiled_sums_of_squares_fold_in_the_same_order(lanes, kernels, monkeypatch):
    kernels("native")
    monkeypatch.setattr(tape, "MAX_LANES", lanes)
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(10_001))
    optimizer = lo.optim.ECD([p], lr=0.02, delta_energy=1.0, weight_decay=0.1)
    walk(optimizer, [p], 3)
    block = optimizer._slots[0].block
    part = lo.exact.Part(block, 0, block.size, {}, 1, lo.exact.World([]))
    for name in ("p", "q"):
        lattice = block.lattices[name]
        found, lattice.square = lattice.square, None
        assert found is not None and torch.equal(found, part.square(name))


@COMPILED
@pytest.mark.parametrize("name", [lo.optim.ECD, lo.optim.AdamW])
def test_the_number_of_threads_changes_no_bit(name, kernels, monkeypatch):
    monkeypatch.setattr(tape, "MAX_LANES", 8192)  # 8 chunks, shared by so many threads

    def states(mode, threads):
        kernels(mode)
        torch.set_num_threads(threads)
        parameters = [nn.Parameter(torch.randn(n, generator=torch.Generator().manual_seed(n))) for n in (9000, 11_077)]
        optimizer = name(parameters, lr=1e-2)
        found = walk(optimizer, parameters, STEPS)
        assert deep(optimizer) and not walk_back(optimizer, parameters, found)
        return found

    try:
        expected = states("eager", 1)
        for threads in (1, 2, 3, 8):
            assert not any(map(differences, expected, states("native", threads)))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("betas", [(0.13, 0.14), (0.5, 0.07)])
def test_contractions_by_more_than_a_head_can_take(betas):
    p = nn.Parameter(torch.randn(100))
    optimizer = lo.optim.Adam([p], lr=0.01, betas=betas)
    assert walk_back(optimizer, [p], walk(optimizer, [p], STEPS)) == []


class Odd(lo.optim.SGD):
    """Formulas that are not arithmetic on one element, or read a sum that they do not declare."""

    drift = staticmethod(lambda part: part.value("p").sign() * part["lr"])
    needs = ()

    def drifts(self):
        return (lo.exact.Shear("q", self.drift, needs=self.needs),)


@pytest.mark.parametrize(
    "drift",
    [
        lambda part: part.value("p").sign() * part["lr"],
        lambda part: torch.tanh(part.value("p")) * part["lr"],
        lambda part: part.value("p") * (part.value("p") > 0) * part["lr"],
        lambda part: part.value("p") if part.value("p").sum() > 0 else None,
    ],
)
def test_other_formulas_are_done_op_by_op(drift, monkeypatch):
    monkeypatch.setattr(Odd, "drift", staticmethod(drift))
    p = nn.Parameter(torch.randn(100))
    optimizer = Odd([p], lr=0.1, momentum=0.9)
    states = walk(optimizer, [p], STEPS)
    assert differences(states[0], states[-1]) and walk_back(optimizer, [p], states) == []


def test_a_momentum_that_grows(monkeypatch):
    """A zero in a lane that the last row does not reach would not stay one."""
    grows = (lo.exact.Contract("p", lambda part: 1.25), lo.exact.Shear("p", lambda part: part.gradient))
    monkeypatch.setattr(Odd, "drift", staticmethod(lambda part: part.value("p") * part["lr"]))
    monkeypatch.setattr(Odd, "kicks", lambda self: grows, raising=False)
    p = nn.Parameter(torch.randn(100))
    optimizer = Odd([p], lr=0.01, momentum=0.9)
    states = walk(optimizer, [p], 40)
    assert walk_back(optimizer, [p], states) == []


@COMPILED
def test_a_sum_is_found_in_a_walk_that_stops_to_move_words(kernels, monkeypatch):
    monkeypatch.setattr(Odd, "drift", staticmethod(lambda part: part.value("p") / (1 + part.world.square("p"))))
    monkeypatch.setattr(Odd, "needs", ("p",))

    def states(mode):
        kernels(mode)
        p = nn.Parameter(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
        optimizer = Odd([p], lr=0.1, momentum=0.5)
        found = walk(optimizer, [p], STEPS)
        assert walk_back(optimizer, [p], found) == []
        return found

    assert not any(map(differences, states("eager"), states("native")))


@COMPILED
@pytest.mark.parametrize("settings", [{"conserve": "rescale"}, {"momentum": 0.9}])
def test_a_momentum_in_32_bits_is_made_coarser(settings, kernels):
    def scale(step):
        return (1.0, 1.0, 30.0, 30.0, 0.01)[step % 5]

    def states(mode):
        kernels(mode)
        p = nn.Parameter(torch.randn(200, generator=torch.Generator().manual_seed(0)))
        optimizer = lo.optim.ECD([p], lr=0.02, delta_energy=0.5, lattice={"p": torch.int32}, **settings)
        found = walk(optimizer, [p], 10, scale)
        assert any("coarsened" in entry for entry in optimizer.journal.entries.values())
        assert walk_back(optimizer, [p], found, scale) == []
        return found

    assert not any(map(differences, states("eager"), states("native")))


def test_a_sum_over_all_parameters_must_be_declared(monkeypatch):
    monkeypatch.setattr(Odd, "drift", staticmethod(lambda part: part.value("p") / (1 + part.world.square("p"))))
    p = nn.Parameter(torch.randn(100))
    gradients([p])
    with pytest.raises(lo.errors.InvalidSetting, match="needs"):
        Odd([p], lr=0.1, momentum=0.9).step()
    monkeypatch.setattr(Odd, "needs", ("p",))
    optimizer = Odd([p], lr=0.1, momentum=0.9)
    assert walk_back(optimizer, [p], walk(optimizer, [p], STEPS)) == []


def test_factors_wait_only_where_that_is_exact():
    """Powers of two move through a product; other factors stay where the formula has them."""
    trace = Trace()
    x = Value(trace, trace.value("p"), 2.0**-40)
    assert x.mul(0.1).mul(2.0**40).scale == 0.1 and not trace.parameters
    y = x.mul(0.1).mul(0.3)  # two roundings
    assert [i[0] for i in trace.instructions] == ["value", "mul"] and y.scale == 0.3
    assert trace.parameters == [0.1 * 2.0**-40]


def test_sums_of_chunks_do_not_depend_on_how_they_are_reached():
    x = torch.randn(5000, dtype=torch.float64)
    sums = chunk_sums(x, 1024)
    assert torch.equal(sums[1], chunk_sums(x[1024:2048], 1024)[0])
    large = torch.cat([x, torch.zeros(1 << 16, dtype=torch.float64)])  # not through numpy
    assert torch.equal(chunk_sums(large, 1024)[: len(sums)], sums)
    assert float(folded(sums, 1024)) == pytest.approx(math.fsum(x.tolist()), rel=1e-12, abs=1e-12)


# -- what a sceptic found ----------------------------------------------------------------------------


@pytest.mark.parametrize("first", [2e5, 1e9])
@pytest.mark.parametrize("groups", [1, 2])
def test_adam_returns_from_a_huge_first_gradient(first, groups):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(50)) for _ in range(groups)]
    optimizer = lo.optim.AdamW([{"params": [p]} for p in parameters], lr=1e-3)
    scale = lambda step: first if step == 0 else 1.0  # noqa: E731
    states = walk(optimizer, parameters, STEPS, scale)
    assert walk_back(optimizer, parameters, states, scale) == []


@pytest.mark.parametrize("name", ["sgd", "adamw-decayed", "ecd"])
@pytest.mark.parametrize("row", range(1, 5))
def test_an_error_in_the_middle_of_a_walk_changes_nothing(name, row, kernels, monkeypatch):
    kernels("eager")
    loop = Loop(name)
    start = loop.bits()
    there = loop.forward(12).bits()
    evaluate, calls = rowwise.evaluate, []

    def failing(*args):
        calls.append(1)
        if len(calls) == row:
            args[1]["q" if "q" in args[1] else next(iter(args[1]))].add_(1)  # half a row was done
            raise MemoryError("no memory")
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(rowwise, "evaluate", failing)
        with pytest.raises(MemoryError):
            loop.forward(1)
        assert not differences(there, loop.bits())
        calls.clear()
        with pytest.raises(MemoryError):
            loop.returns(start, 1)
    assert not differences(there, loop.bits())
    assert loop.returns(start, 12)


@COMPILED
def test_a_kernel_cache_that_goes_away_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_cache", lambda: tmp_path / "gone")
    monkeypatch.setattr(native, "_functions", {})
    parameters = [nn.Parameter(torch.randn(50))]
    optimizer = lo.optim.SGD(parameters, lr=0.1, momentum=0.9)
    states = walk(optimizer, parameters, STEPS)  # on tensors
    assert walk_back(optimizer, parameters, states) == []


@COMPILED
def test_a_damaged_kernel_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_cache", lambda: tmp_path)
    for damaged in (False, True):
        monkeypatch.setattr(native, "_functions", {})
        for file in tmp_path.glob("*.so") if damaged else ():
            half = file.read_bytes()[:1000]
            file.unlink()  # it is mapped
            file.write_bytes(half)
        parameters = [nn.Parameter(torch.randn(50))]
        walk(lo.optim.SGD(parameters, lr=0.1, momentum=0.9), parameters, 2)
        assert None not in native._functions.values()


def test_a_wrong_closure_that_edits_weights_that_do_not_lie_flat():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(12, 9).t())
    optimizer = lo.optim.SGD([p], lr=0.1, momentum=0.9)
    states = walk(optimizer, [p], 3)

    def wrong():
        gradients([p], 1.0, 99)
        with torch.no_grad():
            p.add_(1.0)
        return 0.7

    with pytest.raises(lo.errors.ReplayMismatch):
        optimizer.unstep(wrong)
    assert not differences(states[-1], state(optimizer))
    assert walk_back(optimizer, [p], states) == []


@COMPILED
def test_many_shears_of_one_lattice_and_many_lattices(kernels):
    def many(part, k):
        return part.gradient * (1 + k / 4096)

    class Many(lo.optim.SGD):
        lattices: ClassVar = dict.fromkeys("pabcdefgh")

        def kicks(self):
            shears = [exact.Shear("p", partial(many, k=k)) for k in range(12)]
            return [*shears, *(exact.Shear(name, lambda part: part.gradient) for name in "abcdefgh")]

    turns = []
    for mode in ("native", "eager"):
        kernels(mode)
        p = nn.Parameter(torch.ones(50))
        optimizer = Many([p], lr=1e-9, momentum=0.9)
        states = walk(optimizer, [p], 2, lambda step: 50.0)
        turns.append(states[-1])
        assert walk_back(optimizer, [p], states, lambda step: 50.0) == []
    assert not differences(*turns)
    lo.optim.ReversibleOptimizer.registry.pop("Many")
