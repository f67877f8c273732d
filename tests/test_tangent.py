"""Tangent maps: against finite differences of independent steps, orbits and maps whose exponents are known."""

import json
import math
from functools import partial
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import loschmidt as lo
from loschmidt import physics
from loschmidt.exact import Contract, Rescale, Shear
from loschmidt.models import OneLayerTransformer
from loschmidt.physics.state import Layout
from reference import steps
from reference.optimizers import with_momentum

SMOOTH = {  # optimizer, settings, the same step written down independently
    "SGD": (
        lo.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        partial(steps.sgd, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    "SGD-free": (lo.optim.SGD, {"lr": 0.05, "momentum": 1.0}, partial(steps.sgd, lr=0.05, momentum=1.0)),
    "Adam": (lo.optim.Adam, {"lr": 0.01}, partial(steps.adam, lr=0.01)),
    "AdamW": (lo.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}, partial(steps.adam, lr=0.01, decoupled=0.1)),
    "BBI": (lo.optim.BBI, {"lr": 0.1, "delta_energy": 0.5}, partial(steps.bbi, lr=0.1)),
    "ECDq1": (lo.optim.ECDq1, {"lr": 0.05, "eta": 3.0, "conserve": "none"}, partial(steps.ecd_q1, lr=0.05, eta=3.0)),
    "ECD": (lo.optim.ECD, {"lr": 0.1}, partial(steps.ecd, lr=0.1)),
    "ECD-decay": (lo.optim.ECD, {"lr": 0.1, "weight_decay": 0.01}, partial(steps.ecd, lr=0.1, weight_decay=0.01)),
    "ECD-leapfrog": (lo.optim.ECD, {"lr": 0.1, "integrator": "leapfrog"}, partial(steps.ecd_leapfrog, lr=0.1)),
}


def run(kind=lo.optim.SGD, settings=None, to=20, dtype=torch.float64, batch_size=8, **given):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)
        x = torch.randn(24, 3).to(dtype)
    data = lo.data.Schedule((x, torch.stack([x.sum(1).sin(), x[:, 0]], 1)), batch_size=batch_size)
    opt = kind(model.parameters(), **with_momentum(kind, {"lr": 0.1} if settings is None else settings))
    return lo.Trajectory(model, opt, loss, data, **given).seek(to)


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def flat_loss(traj, step):
    """The loss of a step's batch as a function of all parameters in a row."""
    names = [name for name, _ in traj.model.named_parameters()]
    shapes = [p.shape for p in traj.model.parameters()]

    def value(q):
        pieces = q.split([s.numel() for s in shapes])
        values = {n: x.view(s) for n, x, s in zip(names, pieces, shapes, strict=True)}
        x, y = traj.data(step)
        return (torch.func.functional_call(traj.model, values, (x,)) - y).square().mean()

    return value


def as_dict(traj, x):
    return dict(zip(Layout(traj.optimizer).names, x, strict=True))


def error_of(traj, step, reference, first, last):
    """Relative error of the tangent from `first` to `last`, against differences of the reference."""
    v = Layout(traj.optimizer).random(1, 3)
    with traj.branch():
        traj.seek(first)
        x = as_dict(traj, Layout(traj.optimizer).read())

    def all_steps(x):
        for t in range(first, last):
            x = reference(x, flat_loss(traj, t + step), t)
        return x

    scale = {k: v[0, i] * (1e-4 if k == "v" else 1.0) for i, k in enumerate(x)}  # so that v stays positive
    expected = steps.difference(all_steps, x, scale)
    found = physics.tangent(traj, first, last, torch.stack(list(scale.values())))
    norm = torch.stack(list(scale.values())).norm()
    got = found.directions[0] * found.total.exp() * norm
    expected = torch.stack(list(expected.values()))
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("name", SMOOTH)
def test_products_are_those_of_finite_differences(name, length):
    kind, settings, reference = SMOOTH[name]
    traj = run(kind, settings)
    if name == "BBI":
        reference = partial(reference, E=traj.optimizer.carried["shell"])
    before = traj.digest()
    assert error_of(traj, 0, reference, 8, 8 + length) < 1e-6
    assert error_of(traj, 1, reference, 8, 8 + length) > 1e-5  # another batch: not the derivative of this step
    assert traj.digest() == before


def test_a_rescaling_is_differentiated_as_a_function_of_the_state():
    settings = {"lr": 0.1, "delta_energy": 2.0, "conserve": "rescale"}
    traj = run(lo.optim.ECD, settings)
    shell = traj.optimizer.carried["shell"]
    assert error_of(traj, 0, partial(steps.ecd_on_shell, lr=0.1, shell=shell), 8, 11) < 1e-6
    assert error_of(traj, 0, partial(steps.ecd, lr=0.1), 8, 11) > 1e-3


def test_a_rotation_of_momenta_is_followed():
    free, scattered = (run(lo.optim.ECD, {"lr": 0.1, "delta_energy": 2.0, "nu": nu}) for nu in (0.0, 0.05))
    v = Layout(free.optimizer).random(1, 0)[0]
    out = physics.tangent(scattered, 8, 9, v)
    same = physics.tangent(scattered, 9, 8, out.directions)
    assert float(out.total + same.total) == pytest.approx(0, abs=1e-10)
    # a rotation keeps lengths, and nothing else in this step touches p after its kick
    kicked = physics.tangent(scattered, 8, 9, v).by_lattice["p"][-1]
    with scattered.branch():
        scattered.seek(8)
        for group in scattered.optimizer.param_groups:
            group["nu"] = 0.0
        assert float(physics.tangent(scattered, 8, 9, v).by_lattice["p"][-1]) == pytest.approx(float(kicked), abs=1e-10)


@pytest.mark.parametrize("name", [name for name in SMOOTH if name not in ("BBI", "ECDq1")])
def test_the_tangent_of_the_way_back_is_the_inverse(name):
    kind, settings, _ = SMOOTH[name]
    traj = run(kind, settings)
    v = Layout(traj.optimizer).random(2, 1)
    out = physics.tangent(traj, 5, 15, v)
    back = physics.tangent(traj, 15, 5, out.directions)
    assert torch.allclose(out.total, -back.total, atol=1e-7)
    assert float((back.directions - v).abs().max()) < 1e-6
    elsewhere = physics.tangent(traj, 16, 6, out.directions)  # along other steps it is not
    assert not torch.allclose(out.total, -elsewhere.total, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "contraction"),
    [("SGD", math.log(0.9)), ("SGD-free", 0.0), ("ECD", 0.0), ("Adam", math.log(0.9 * 0.999))],
)
def test_all_exponents_add_up_to_what_friction_contracts(name, contraction):
    traj = run(SMOOTH[name][0], SMOOTH[name][1])
    every = Layout(traj.optimizer)
    whole = every.shape[0] * every.size
    found = physics.lyapunov(traj, 4, 12, whole)
    assert float(found.exponents.sum()) == pytest.approx(contraction * every.size, abs=1e-8)
    assert float(physics.lyapunov(traj, 4, 12, whole - 1).exponents.sum()) != pytest.approx(
        contraction * every.size, abs=1e-3
    )


def test_growth_comes_in_pairs_where_friction_is_uniform():
    # Conformally symplectic: singular values s_i s_(2P+1-i) = gamma^steps.
    def pairs(name):
        traj = run(SMOOTH[name][0], SMOOTH[name][1])
        n = Layout(traj.optimizer).size
        unit = torch.eye(2 * n, dtype=torch.float64).view(2 * n, 2, n)
        found = physics.tangent(traj, 4, 10, unit)
        s = torch.linalg.svdvals((found.directions * found.total.exp()[:, None, None]).flatten(1)).log()
        return s + s.flip(0)

    assert torch.allclose(pairs("SGD"), torch.full((52,), 6 * math.log(0.9), dtype=torch.float64), atol=1e-8)
    assert torch.allclose(pairs("ECD"), torch.zeros(52, dtype=torch.float64), atol=1e-8)


# -- orbits and maps with known exponents --------------------------------------------------------------


class Points(nn.Module):
    """Coordinates of points that do not feel each other: a network of nothing but parameters."""

    def __init__(self, x):
        super().__init__()
        self.x = nn.Parameter(torch.as_tensor(x, dtype=torch.float64))


def orbit(potential, x, p=None, kind=lo.optim.SGD, dt=1.0, **settings):
    """A run whose loss is the potential: with momentum 1, p -= F', q += lr p. Of dt: p/dt in the state, lr dt^2."""
    model = Points(x)
    if kind is lo.optim.SGD:
        settings["lr"] *= dt * dt
    settings = {"momentum": 1.0} | settings if kind is lo.optim.SGD else settings
    opt = kind(model.parameters(), **settings)
    traj = lo.Trajectory(model, opt, lambda model, batch: potential(model.x), lambda step: (), digest_every=None)
    if p is not None:
        layout, change = Layout(opt), torch.zeros(2, model.x.numel(), dtype=torch.float64)
        change[1] = torch.as_tensor(p, dtype=torch.float64).reshape(-1) / dt
        layout.move(opt, change)
    return traj


def standard_map(k):
    return lambda x: k * torch.cos(x).sum()


def test_the_standard_map_has_the_exponent_ln_k_over_2():
    points, length, k = 24, 300, 10.0
    start = torch.linspace(0.3, 5.9, points, dtype=torch.float64)
    traj = orbit(standard_map(k), start, lr=1.0)
    directions = torch.zeros(points, 2, points, dtype=torch.float64)
    directions[torch.arange(points), 0, torch.arange(points)] = 1.0
    found = physics.tangent(traj, 0, length, directions)
    mean = float(found.total.mean()) / length
    assert mean == pytest.approx(math.log(k / 2), rel=0.02)
    calm = orbit(standard_map(0.05), start, lr=1.0)
    assert float(physics.tangent(calm, 0, 100, directions[:4]).total.mean()) / 100 < 0.07


def test_the_cat_map_has_two_exponents_exactly():
    traj = orbit(lambda x: -0.5 * (x - x.detach().floor()).square().sum(), [0.3], lr=1.0)
    golden = math.log((3 + math.sqrt(5)) / 2)
    found = physics.lyapunov(traj, 0, 60, 2, settle=20)
    assert found.exponents.tolist() == pytest.approx([golden, -golden], abs=1e-9)
    back = physics.lyapunov(traj, 60, 0, 2, settle=20)
    assert back.exponents.tolist() == pytest.approx([golden, -golden], abs=1e-9)
    assert json.loads(json.dumps(found.to_dict()))["exponents"] == found.exponents.tolist()


@pytest.mark.parametrize("kind", [lo.optim.SGD, lo.optim.ECD])
def test_the_harmonic_oscillator_has_none(kind):
    settings = {"lr": 1.0, "dt": 0.1} if kind is lo.optim.SGD else {"lr": 0.02}
    well = (lambda x: 0.5 * x.square().sum()) if kind is lo.optim.SGD else (lambda x: 0.5 + 0.5 * x.square().sum())
    traj = orbit(well, [1.0], [0.2], kind, **settings)
    growth = physics.tangent(traj, 0, 600, 2).log_growth
    # bounded, or (where the period depends on the energy) linear: the rate falls as 1/t
    assert float((growth[600] - growth[300]).max()) < math.log(2) + 0.3
    assert float(growth[600].max()) / 600 < 0.01


def test_keplers_orbit_has_none():
    traj = orbit(lambda x: -1 / x.norm(), [1.0, 0.0], [0.0, 1.1], lr=1.0, dt=0.1)
    growth = physics.tangent(traj, 0, 896, 2).log_growth  # ten revolutions
    assert float((growth[896] - growth[448]).max()) < math.log(2) + 0.1  # linear in time: neighbours fall behind
    assert float(growth[896].max()) / 896 < 0.01
    falls = orbit(lambda x: -0.5 * x.square().sum(), [1e-3, 0.0], lr=1.0, dt=0.1)  # from a hill it is exponential
    assert float(physics.tangent(falls, 0, 150, 2).total.max()) / 150 > 0.08


# -- gauge directions ----------------------------------------------------------------------------------


def attention(kind=lo.optim.ECD, to=12, **settings):
    model = OneLayerTransformer(5, width=8, heads=2, hidden=8, dtype=torch.float64)
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))

    def loss(model, batch):
        return F.cross_entropy(model(batch), batch.sum(1) % 5)

    opt = kind(model.parameters(), **({"lr": 0.1} | settings))
    return lo.Trajectory(model, opt, loss, lo.data.Schedule(pairs, batch_size=10)).seek(to), pairs


def change_of_function(traj, pairs, direction, size):
    with torch.no_grad():
        before = traj.model(pairs)
        values = {n: p + size * direction.get(n, torch.zeros_like(p)) for n, p in traj.model.named_parameters()}
        return float((torch.func.functional_call(traj.model, values, (pairs,)) - before).norm())


def test_gauge_directions_change_the_function_only_at_second_order():
    traj, pairs = attention()
    directions = physics.gauge_directions(traj.model)
    assert len(directions) == 2 * 2 * 6
    for direction in directions:
        assert float(sum(x.square().sum() for x in direction.values())) == pytest.approx(1)
        small, smaller = (change_of_function(traj, pairs, direction, size) for size in (1e-3, 1e-4))
        assert 0 < smaller < 1e-6 and 80 < small / smaller < 120
    half = {"query": directions[0]["query"]}  # of a rotation of both: that is another function
    small, smaller = (change_of_function(traj, pairs, half, size) for size in (1e-3, 1e-4))
    assert 8 < small / smaller < 12


def test_a_rotation_of_parameters_and_momenta_goes_along_with_the_run():
    traj, _ = attention()
    with traj.branch():
        traj.seek(4)
        start = physics.gauge_directions(traj.model, heads=[1], limit=3, optimizer=traj.optimizer)
    found = physics.tangent(traj, 4, 12, start)
    layout = Layout(traj.optimizer)
    end = layout.vectors(physics.gauge_directions(traj.model, heads=[1], limit=3, optimizer=traj.optimizer), 0)
    assert float((found.directions - end).abs().max()) < 1e-7
    bare = physics.gauge_directions(traj.model, heads=[1], limit=3)  # without the momenta it is not carried along
    assert float((physics.tangent(traj, 4, 12, bare).directions - end).abs().max()) > 1e-3


def test_gauge_directions_are_refused_where_heads_are_not_known():
    with pytest.raises(lo.InvalidSetting, match="heads"):
        physics.gauge_directions(nn.Linear(2, 2))
    model = OneLayerTransformer(5, width=8, heads=2, hidden=8)
    with pytest.raises(lo.InvalidSetting, match="no head 2"):
        physics.gauge_directions(model, heads=[2])
    with pytest.raises(lo.InvalidSetting, match="no gauge"):
        physics.gauge_directions(model, ["kq"])
    with pytest.raises(lo.InvalidSetting, match="Adam"):
        physics.gauge_directions(model, optimizer=lo.optim.Adam(model.parameters()))


# -- what is refused, and what is not touched ----------------------------------------------------------


def test_models_in_float32_with_dropout_and_batch_norm_have_tangents():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Dropout(0.3), nn.Linear(6, 2))
        x = torch.randn(40, 3)
    data = lo.data.Schedule((x, x[:, :2]), batch_size=10)
    traj = lo.Trajectory(model, lo.optim.AdamW(model.parameters(), lr=0.01), loss, data).seek(12)
    before, state = traj.digest(), torch.get_rng_state()
    found = physics.tangent(traj, 4, 10, 2)
    back = physics.tangent(traj, 10, 4, found.directions)
    assert torch.allclose(found.total, -back.total, atol=1e-6)
    assert traj.digest() == before and torch.equal(state, torch.get_rng_state())


def test_frozen_parameters_and_empty_batches():
    traj = run(to=0)
    traj.model[0].requires_grad_(False)
    data = traj.data
    traj = lo.Trajectory(
        traj.model, lo.optim.SGD(traj.model.parameters(), momentum=0.9), loss, lambda t: None if t == 3 else data(t)
    )
    traj.seek(6)
    found = physics.tangent(traj, 0, 6, 2)
    assert torch.isfinite(found.total).all()
    layout = Layout(traj.optimizer)
    assert not found.directions[:, :, layout.live == 0].any()
    assert torch.allclose(physics.tangent(traj, 6, 0, found.directions).total, -found.total, atol=1e-9)
    assert float(physics.tangent(traj, 3, 4, 1).total) == 0.0  # a step without a gradient


def test_growth_without_end_does_not_overflow():
    traj = orbit(standard_map(1e3), torch.linspace(0.3, 5.9, 4), lr=1.0)
    total = physics.tangent(traj, 0, 130, 1).total
    assert 700 < float(total) < math.inf  # e^700 is more than a float64 holds


class Counts(nn.Module):
    """State besides parameters, which the loss reads."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2, dtype=torch.float64)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.inner(x) * (1 + 0.01 * self.seen)


class Cubed:
    """An op that nobody knows."""

    target, needs = "p", ()

    def do(self, world):
        pass

    def undo(self, world):
        pass

    def trace(self, part, trace, forward):
        pass

    def price(self, part):
        return 0.0


def program(kicks):
    class Own(lo.optim.ReversibleOptimizer):
        lattices: ClassVar = {"p": 2}

        def __init__(self, params, lr=0.1):
            super().__init__(params, {"lr": lr, "weight_decay": 0.0})

        def kicks(self):
            return kicks

        def drifts(self):
            return (Shear("q", lambda part: part.value("p") * part["lr"]),)

    return Own


def test_a_copy_that_is_another_function_is_noticed():
    traj = run()
    own = traj.model

    def particular(model, batch):
        return loss(model, batch) * (1.0 if model is own else 1.1)

    traj = lo.Trajectory(own, lo.optim.SGD(own.parameters(), lr=0.1, momentum=0.9), particular, traj.data).seek(5)
    before = traj.digest()
    with pytest.raises(lo.NotSmooth, match="another function"):
        physics.tangent(traj, 1, 3)
    assert traj.digest() == before


KICK = Shear("p", lambda part: -part.gradient)


def test_what_has_no_tangent_is_refused_and_nothing_has_moved():
    clip = {"after_backward": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1.0)}
    unknown, rough = (
        program((KICK, Cubed())),
        program((KICK, Rescale("p", lambda w: 1 - 1e-3 * math.sqrt(w.square("q"))))),
    )
    counting = run(to=0)
    model = Counts()
    counting = lo.Trajectory(
        model, lo.optim.SGD(model.parameters(), momentum=0.9), lambda m, b: m(b[0]).square().mean(), counting.data
    )
    cases = [
        (run(**clip), "after_backward"),
        (run(unknown), "Cubed"),
        (run(rough), "plain float"),
        (counting.seek(5), "buffer seen"),
    ]
    for traj, message in cases:
        before, at = traj.digest(), traj.step
        with pytest.raises(lo.NotSmooth, match=message):
            physics.tangent(traj, 1, 3)
        assert (traj.digest(), traj.step) == (before, at)
    smooth = program((Contract("p", lambda part: 0.9), KICK))
    assert physics.tangent(run(smooth), 1, 3).total.shape == (1,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"directions": 0}, "nothing to follow"),
        ({"directions": []}, "empty"),
        ({"directions": {"0.weight": torch.zeros(4, 3)}}, "norm 0"),
        ({"directions": {"0.weight": torch.ones(3, 3)}}, "shape"),
        ({"directions": {"1.weight": torch.ones(3, 3)}}, "does not hold"),
        ({"directions": torch.ones(3, 3)}, "shape"),
    ],
)
def test_directions_that_do_not_fit_are_refused(given, message):
    with pytest.raises(lo.InvalidSetting, match=message):
        physics.tangent(run(), 1, 3, **given)


def test_steps_that_are_chosen_have_tangents_both_ways():
    traj = run(lo.optim.ECD, {"lr": "auto"}, to=30, batch_size=None)
    v = Layout(traj.optimizer).random(1, 2, ["q"])[0]
    seen = physics.echo(traj, 20, physics.Nudge(1e-6, v), every=20)
    last = seen.rows[-1]["distance"]
    growth = (last["q"] ** 2 + last["p"] ** 2) ** 0.5 / seen.rows[0]["distance"]["q"]
    assert growth == pytest.approx(float(physics.tangent(traj, 30, 10, v).total.exp()), rel=1e-4)
    back = physics.tangent(traj, 30, 10, v)
    forth = physics.tangent(traj, 10, 30, back.directions[0])
    assert float(forth.total) == pytest.approx(-float(back.total), abs=1e-9)
    torch.testing.assert_close(forth.directions[0], v / v.norm(), rtol=0, atol=1e-9)


def test_momenta_are_named_and_steps_out_of_reach_refused():
    traj = run()
    found = physics.tangent(traj, 3, 4, {"0.weight/p": torch.ones(4, 3)})
    assert found.by_lattice["q"][0].item() == -math.inf and found.by_lattice["p"][0].item() == 0
    assert json.loads(json.dumps(found.to_dict()))["by_lattice"]["q"][0] == [None]
    with pytest.raises(lo.OutOfReach):
        physics.tangent(traj, -1, 3)
    with pytest.raises(lo.InvalidSetting, match="no step to count"):
        physics.lyapunov(traj, 3, 5, settle=2)
    with pytest.raises(lo.InvalidSetting, match="dimensions"):
        physics.lyapunov(traj, 3, 5, 1000)
