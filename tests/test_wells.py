"""Wells whose motion is known exactly: orbits, energies, angular momentum, what a direction costs."""

import itertools
import math

import pytest
import torch

import loschmidt as lo
from loschmidt.dynamics import born_infeld, separable, unit_speed
from loschmidt.exact import fractions, random
from loschmidt.exact.ops import rotate_
from loschmidt.physics import wells

FINE = {"resolution": 2.0**-56}


def launch(opt, momentum):
    """Give the momentum; one number for each coordinate."""
    state = opt.state_dict()
    at = 0
    for values in state["state"].values():
        size = values["p"].numel()
        p = torch.tensor(momentum[at : at + size], dtype=torch.float64) / opt.resolution
        values["p"] = p.round().to(values["p"].dtype)
        at += size
    opt.load_state_dict(state)


def real(opt, lattice):
    """A lattice's values as floats."""
    e = opt._slots[0].block.lattices[lattice].exponent
    return [n * 2.0**-e for n in integers(opt, lattice)]


def integers(opt, lattice):
    return [n for s in opt._slots for n in s.integers(lattice).reshape(-1).tolist()]


def momentum(opt):
    """Angular momentum in units of the lattice: of integers, without rounding."""
    (x, y), (u, v) = integers(opt, "q"), integers(opt, "p")
    return x * v - y * u


def walk(well, point, opt, steps, look=lambda: None):
    """What `look` saw before each step, and the losses there."""
    seen, losses = [], []
    for _ in range(steps):
        opt.zero_grad()
        loss = well.loss(point)
        loss.backward()
        seen.append(look())
        losses.append(loss.item())
        opt.step(loss=loss)
    return seen, losses


def back(well, point, opt, steps):
    def closure():
        loss = well.loss(point)
        loss.backward()
        return loss

    for _ in range(steps):
        opt.unstep(closure)


def newton(well, dt, velocity=None, at=None):
    point = well.point(at=at)
    opt = lo.optim.SGD(point.parameters(), lr=dt * dt, momentum=1.0, resolution=2.0**-52)
    if velocity is not None:
        launch(opt, [v / dt for v in velocity])
    return point, opt


def rounds(values, dt):
    """Mean time between upward passages through zero."""
    times = [dt * (i + a / (a - b)) for i, (a, b) in enumerate(itertools.pairwise(values)) if a < 0 <= b]
    return (times[-1] - times[0]) / (len(times) - 1)


# -- the wells themselves --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", wells.WELLS)
def test_a_well_is_lowest_at_its_minimum(name):
    well = wells.WELLS[name]()
    point = well.point()
    value = well.loss(point)
    assert value.dtype is torch.float64 and value > well.lowest
    if well.minimum is None:
        return
    at = well.point(at=well.minimum)
    assert well.loss(at).item() == pytest.approx(well.lowest, abs=1e-14)
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        near = torch.tensor(well.minimum, dtype=torch.float64) + 0.1 * torch.randn(len(well.minimum), generator=draw)
        assert well.F(near) >= well.lowest


@pytest.mark.parametrize(
    ("name", "value"), [("zakharov", 572680.3125), ("rosenbrock", 24.2), ("ackley", 10.138626172095204)]
)
def test_wells_start_where_the_papers_do(name, value):
    well = wells.WELLS[name]()
    assert well.loss(well.point()).item() == pytest.approx(value, rel=1e-14)


def test_a_split_point_is_the_same_place():
    well = wells.sombrero()
    assert [p.numel() for p in well.point(split=True).parameters()] == [1, 1]
    assert torch.equal(well.point(split=True)(), well.point()())


# -- Newton ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stiffness", [1.0, 9.0])
def test_sgd_without_friction_is_a_harmonic_oscillator(stiffness):
    well, dt = wells.harmonic(stiffness), 0.01
    point, opt = newton(well, dt)
    seen, _ = walk(well, point, opt, 1500, lambda: point().item())
    discrete = dt * math.pi / math.asin(0.5 * dt * math.sqrt(stiffness))  # of the leapfrog, exactly
    assert rounds(seen, dt) == pytest.approx(discrete, rel=1e-6)
    assert rounds(seen, dt) == pytest.approx(well.facts["period"](), rel=dt * dt * stiffness / 20)


@pytest.mark.parametrize("amplitude", [1.0, 3.0])
def test_the_period_of_the_quartic_oscillator_depends_on_its_amplitude(amplitude):
    well, dt = wells.quartic(2.0), 0.01 / amplitude
    point, opt = newton(well, dt, at=[amplitude])
    seen, _ = walk(well, point, opt, 1500, lambda: point().item())
    assert rounds(seen, dt) == pytest.approx(well.facts["period"](amplitude), rel=1e-4)


def test_keplers_ellipse():
    well, dt, velocity = wells.kepler(), 4e-3, (0.0, 1.2)
    point, opt = newton(well, dt, velocity)
    energy = 0.5 * velocity[1] ** 2 - 1
    seen, _ = walk(well, point, opt, 7800, lambda: (point().tolist(), momentum(opt)))
    path, L = zip(*seen, strict=True)
    assert max(abs(x - L[0]) for x in L) <= 1e-12 * abs(L[0])
    assert rounds([y for _, y in path], dt) == pytest.approx(well.facts["period"](energy), rel=1e-4)
    far = max(math.hypot(*q) for q in path)
    e = well.facts["eccentricity"](energy, 1.2)
    assert far == pytest.approx(well.facts["axis"](energy) * (1 + e), rel=2e-3)
    v = [dt * p for p in real(opt, "p")]
    assert math.hypot(*wells.runge_lenz(point().tolist(), v)) == pytest.approx(e, abs=5e-3)


# -- the three Hamiltonians ------------------------------------------------------------------------------


def test_ecd_on_a_cone_goes_round_keplers_ellipse():
    """Through the same points as Newton's particle, but uniformly in the eccentric anomaly."""
    well, dt, start, s = wells.cone(), 4e-3, (0.0, 1.1), 1.0
    point = well.point()
    opt = lo.optim.ECD(point.parameters(), lr=dt, s=s, **FINE)
    launch(opt, start)
    E = separable.energy(1.0, start[1] ** 2, 1.0, s)
    seen, losses = walk(well, point, opt, 4000, lambda: (point().tolist(), momentum(opt)))
    path, L = zip(*seen, strict=True)
    assert max(abs(x - L[0]) for x in L) <= 1e-12 * abs(L[0])
    assert opt.energy_at(well.loss(point).item()) == pytest.approx(E, abs=1e-3)
    period, a = well.facts["period"](E, s), well.facts["axis"](E, s)
    assert rounds([y for _, y in path], dt) == pytest.approx(period, rel=1e-4)
    e = abs(1 - 1 / a)  # it starts at the end of the ellipse's long axis
    sign = 1 if a > 1 else -1
    anomaly = [2 * math.pi * i * dt / period for i in range(len(losses))]
    apart = max(abs(r - a * (1 - sign * e * math.cos(u))) for r, u in zip(losses, anomaly, strict=True))
    assert apart < 5e-3 * a


@pytest.mark.parametrize("eta", [1.0, 3.0])
def test_small_oscillations_of_ecd(eta):
    """Near the minimum H is harmonic: omega^2 = 2 eta k / (s f), where f = -F0."""
    well, dt, f, s = wells.harmonic(4.0), 0.01, 2.0, 0.5
    point = well.point(at=[0.01])
    opt = lo.optim.ECD(point.parameters(), lr=dt, eta=eta, F0=-f, s=s, **FINE)
    seen, _ = walk(well, point, opt, 1500, lambda: point().item())
    assert rounds(seen, dt) == pytest.approx(2 * math.pi / math.sqrt(2 * eta * 4.0 / (s * f)), rel=1e-3)


def test_small_oscillations_of_bbi():
    """Slow, H is D + |p|^2/2: Newton's."""
    well, dt = wells.harmonic(4.0), 0.01
    point = well.point(at=[0.01])
    opt = lo.optim.BBI(point.parameters(), lr=dt, F0=-2.0, **FINE)
    seen, _ = walk(well, point, opt, 1500, lambda: point().item())
    assert rounds(seen, dt) == pytest.approx(well.facts["period"](), rel=1e-3)


BUILD = {
    "ecd": lambda point, lr: lo.optim.ECD(point.parameters(), lr=lr, eta=2.0, F0=-0.5, delta_energy=0.3, **FINE),
    "bbi": lambda point, lr: lo.optim.BBI(point.parameters(), lr=lr, F0=-0.5, delta_energy=0.3, **FINE),
    "q1": lambda point, lr: lo.optim.ECDq1(point.parameters(), lr=lr, eta=2.0, F0=-0.5, **FINE),
}


@pytest.mark.parametrize("name", BUILD)
def test_energy_is_kept_better_by_smaller_steps(name):
    """First order in the step, over the same time."""
    well, errors = wells.rosenbrock(), []
    for lr in (8e-4, 2e-4):
        point = well.point(at=[-0.4, 0.5])
        opt = BUILD[name](point, lr)
        seen, _ = walk(well, point, opt, round(0.4 / lr), lambda opt=opt: opt.energy)
        energies = [e for e in seen[1:] if e is not None]
        assert opt.energy_at(well.loss(point).item()) == pytest.approx(energies[-1], rel=1e-2)
        errors.append(max(abs(e - energies[0]) for e in energies))
    assert 2.5 < errors[0] / errors[1] < 6


@pytest.mark.parametrize("name", BUILD)
def test_speed_is_as_the_law_has_it(name):
    well, lr = wells.rosenbrock(), 1e-4
    point = well.point(at=[-0.4, 0.5])
    opt = BUILD[name](point, lr)
    for _ in range(300):
        (q,), (loss,) = walk(well, point, opt, 1, lambda: point().detach().clone())
        moved, p2 = float((point().detach() - q).norm()) / lr, sum(p * p for p in real(opt, "p"))
        if name == "ecd":
            law = separable.speed(p2, 1.0)
        elif name == "bbi":
            law = born_infeld.speed(loss + 0.5, opt.carried["shell"])
            assert law <= math.sqrt(loss + 0.5)
        else:
            law = unit_speed.speed(math.sqrt(p2))
            assert law == pytest.approx(1.0, abs=1e-2)
        assert moved == pytest.approx(law, rel=3e-2 if name == "bbi" else 1e-9)


@pytest.mark.parametrize("name", ["separable", "born_infeld", "unit_speed"])
def test_stationary_measures_are_those_of_the_energy_shell(name):
    """The volume of momenta with H within a thin shell, at two potentials, by brute force."""
    n, eta, s, E = 5, 1.5, 0.7, 2.0
    r = torch.linspace(0, 60, 6_000_001, dtype=torch.float64)
    H = {
        "separable": lambda D: eta * math.log(D) + torch.log(s + r * r),
        "born_infeld": lambda D: torch.sqrt(D * (D + r * r)),
        "unit_speed": lambda D: torch.log(r) + unit_speed.exponent(eta, n) * math.log(D),
    }[name]
    of = {
        "separable": lambda D: separable.log_measure(D, n, E, eta, s),
        "born_infeld": lambda D: born_infeld.log_measure(D, n, E),
        "unit_speed": lambda D: unit_speed.log_measure(D, n, eta),
    }[name]
    volumes = [math.log(float((r ** (n - 1) * ((H(D) - E).abs() < 1e-2)).sum())) for D in (0.4, 0.9)]
    time = 0.0
    if name == "unit_speed":  # its time is that of unit speed, and not the Hamiltonian's: |dq| = H_P dt, H_P = H / |P|
        time = unit_speed.exponent(eta, n) * math.log(0.9 / 0.4)
    assert volumes[1] - volumes[0] == pytest.approx(of(0.9) - of(0.4) - time, abs=2e-3)


def test_shells_are_where_the_energy_is():
    for D in (0.1, 0.7):
        assert separable.energy(D, separable.shell(1.3, D, 2.0, 0.5), 2.0, 0.5) == pytest.approx(1.3)
        assert born_infeld.energy(D, born_infeld.shell(1.3, D)) == pytest.approx(1.3)
    assert separable.shell(1.0, 50.0, 2.0, 0.5) < 0 and born_infeld.shell(1.0, 2.0) < 0
    assert separable.shell(1.0, 1e-200, 5.0, 0.5) == born_infeld.shell(1.0, 1e-320) == math.inf
    assert separable.log_measure(50.0, 3, 1.0, 2.0, 0.5) == born_infeld.log_measure(2.0, 3, 1.0) == -math.inf


# -- angular momentum ------------------------------------------------------------------------------------


def spun(kind, split=False, steps=1000, **settings):
    """Angular momentum before each step of a run round the sombrero, over |q| |p| of its start; and the factors."""
    well = wells.sombrero()
    point = well.point(split, at=[0.9, 0.2])
    opt = kind(point.parameters(), lr=2e-3, F0=-0.1, **settings, **FINE)
    walk(well, point, opt, 1)
    launch(opt, (-0.6, 0.8))
    first = opt.steps
    seen, _ = walk(well, point, opt, steps, lambda: momentum(opt))
    scalars = [opt.journal.entries.get(i, {}).get("scalars", {}) for i in range(first, opt.steps)]
    return seen, [fractions.product(fractions.factors(abs(x.get("rescale", 1.0)), 2.0**-46)) for x in scalars]


def test_ecd_keeps_angular_momentum():
    L, _ = spun(lo.optim.ECD, eta=2.0)
    assert max(abs(x - L[0]) for x in L) <= 1e-12 * abs(L[0])


def test_ecdq1_keeps_angular_momentum():
    """Of P = |P| p, that is: what the rescalings take from p is on the tape, and put back here."""
    L, factors = spun(lo.optim.ECDq1, eta=2.0)
    P = 1.0
    canonical = []
    for x, a in zip(L, factors, strict=True):
        canonical.append(x * P)
        P /= float(a)
    assert max(abs(x - canonical[0]) for x in canonical) <= 1e-12 * abs(canonical[0])
    assert max(L) > 1.01 * min(L)  # that of p itself is not kept


def test_ecdq1_that_starts_downhill_does_not_turn():
    """Along a radius p x q is 0, and stays so; with p.G tensor by tensor it does not."""
    turned = []
    for projection in ("global", "per-tensor"):
        well = wells.sombrero()
        point = well.point(split=True)
        opt = lo.optim.ECDq1(point.parameters(), lr=2e-3, eta=2.0, F0=-0.1, projection=projection, **FINE)
        walk(well, point, opt, 300)
        q, p = real(opt, "q"), real(opt, "p")
        turned.append(abs(wells.angular_momentum(q, p)) / (math.hypot(*q) * math.hypot(*p)))
    assert turned[0] < 1e-12 and turned[1] > 1e-2


# -- the bill of a direction -----------------------------------------------------------------------------


def test_a_direction_costs_what_its_momentum_has_grown_by():
    """(eta/2) log2(D_0 / D_T) bits per parameter (of n parameters: n / (n - 1) times that), as steps get small."""
    well, eta, n, over = wells.harmonic(1.0, n=50), 20.0, 50, []
    for lr in (0.02, 0.005):
        point = well.point(at=torch.linspace(-1, 1, n).tolist())
        opt = lo.optim.ECDq1(point.parameters(), lr=lr, eta=eta, F0=-1.0)
        _, losses = walk(well, point, opt, round(4 / lr))
        end = well.loss(point).item()
        paid, bill = opt.tape.bits / n, unit_speed.bits(losses[0] + 1, end + 1, eta) * n / (n - 1)
        assert bill > 10
        over.append(paid / bill - 1)
        log_a = sum(math.log2(abs(e["scalars"]["rescale"])) for e in opt.journal.entries.values())
        assert paid == pytest.approx(-log_a, rel=1e-5)
        assert opt.carried["log a"] == pytest.approx(log_a * math.log(2), rel=1e-9)
        back(well, point, opt, opt.steps)
        assert (opt.tape.bits, opt.carried) == (0, {})
    assert over[1] < 0.02 and 3 < over[0] / over[1] < 6  # first order in lr


# -- scattering ------------------------------------------------------------------------------------------


def scattered(times, size, resolution):
    """|p| before and after so many scatterings, and whether they can be undone: with a bit flipped, and without."""
    draw = random.generator("test", size)
    start = torch.from_numpy(draw.standard_normal(size))
    start = (start / start.norm() / resolution).round().to(torch.int64)
    n, kept = start.clone(), []
    angles = torch.from_numpy(draw.standard_normal(1000)).clamp(-1.5, 1.5)
    for i in range(times):
        rotate_(n[: size // 2], n[size // 2 :], angles[i % 1000])
    after = n.clone()
    for flip in (0, 1):
        n = after.clone()
        n[3] ^= flip
        for i in reversed(range(times)):
            rotate_(n[: size // 2], n[size // 2 :], angles[i % 1000], -1)
        kept.append(torch.equal(n, start))
    return float(start.double().norm()), float(after.double().norm()), kept


@pytest.mark.parametrize("times", [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_scatterings_keep_the_length_and_return(times):
    before, after, kept = scattered(times, 64, 2.0**-40)
    assert abs(after / before - 1) < 1e-9
    assert kept == [True, False]
