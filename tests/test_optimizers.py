"""Each optimizer trains as torch's (or the published one) does, costs the bits it should, and walks back exactly."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import loschmidt as lo
from reference.bits import damage, differences
from reference.optimizers import RECORDS, Digits, Loop

LIKE_TORCH = [name for name, record in RECORDS.items() if record.follows]


# -- the same training -----------------------------------------------------------------------------------


def trained(name, ours, seed=0, dtype=torch.float64, steps=100):
    record, task = RECORDS[name], Digits(seed, dtype)
    build = record.build if ours else lambda params: record.follows(params, **record.settings)
    return task.train(build(task.model.parameters()), steps), task.loss()


@pytest.mark.parametrize("name", LIKE_TORCH)
def test_trains_as_torch_does_in_float64(name):
    (ours, _), (torchs, _) = trained(name, True), trained(name, False)
    apart = max(float((a - b).abs().max()) for a, b in zip(ours, torchs, strict=True))
    assert apart <= 1e-6 * max(float(b.abs().max()) for b in torchs)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw-decayed"])
def test_trains_as_torch_does_in_float32_up_to_seed_noise(name):
    losses = [trained(name, False, seed, torch.float32)[1] for seed in range(3)]
    noise = torch.tensor(losses).std()
    assert abs(trained(name, True, 0, torch.float32)[1] - losses[0]) < 0.1 * noise


PUBLISHED = json.loads(Path(__file__).with_name("reference").joinpath("published_ecd.json").read_text())
FEATURES, LABELS = (torch.tensor(x, dtype=torch.float64) for x in PUBLISHED["logistic_data"].values())


def zakharov(x):
    s = (0.5 * torch.arange(1, len(x) + 1) * x).sum()
    return x.square().sum() + s**2 + s**4


PROBLEMS = {
    "rosenbrock": lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2,
    "zakharov": zakharov,
    "ackley": lambda x: (
        -20 * torch.exp(-0.2 * x.square().mean().sqrt()) - torch.exp(torch.cos(2 * math.pi * x).mean()) + 20 + math.e
    ),
    "logistic": lambda w: F.binary_cross_entropy_with_logits(FEATURES @ w, LABELS),
}


OURS = {"ECDSep": lo.optim.ECD, "BBI": lo.optim.BBI, "ECD_q1_scaled": lo.optim.ECDq1}
NAMES = {"deltaEn": "delta_energy", "v0": "F0"}


def as_published(case, **changes):
    """Our optimizer with a published case's settings, and its parameter."""
    s = case["settings"]
    ours = {NAMES.get(k, k): v for k, v in s.items() if k not in ("consEn", "threshold", "threshold0")}
    if case["optimizer"] == "ECD_q1_scaled":
        ours["lr"] /= math.sqrt(s["eta"])
    x = torch.nn.Parameter(torch.tensor(case["start"], dtype=torch.float64))
    conserve = "rescale" if s["consEn"] else "none"
    return OURS[case["optimizer"]]([x], **ours, conserve=conserve, **{"resolution": 2.0**-48} | changes), x


def train(opt, x, loss_of, steps):
    """Losses before each step."""
    losses = []
    for _ in range(steps):
        opt.zero_grad()
        loss = loss_of(x)
        loss.backward()
        losses.append(loss.item())
        opt.step(loss=loss)
    return losses


@pytest.mark.parametrize("case", PUBLISHED["cases"], ids=lambda case: case["name"])
def test_ecd_follows_the_published_one(case):
    loss_of = PROBLEMS[case["problem"]]
    opt, x = as_published(case)
    points = {point["step"]: point for point in case["trajectory"]}
    for step in range(51):
        opt.zero_grad()
        loss = loss_of(x)
        loss.backward()
        if step in points:
            position = torch.tensor(points[step]["position"], dtype=torch.float64)
            assert (x.detach() - position).abs().max() <= 1e-6 * position.abs().max()
            assert loss.item() == pytest.approx(points[step]["loss"], rel=1e-6)
        opt.step(loss=loss)


# -- the bill --------------------------------------------------------------------------------------------

BILLS = {
    "sgd": (0.1520, 0.1524),
    "adamw": (0.1534, 0.1540),
    "ecd": (0.0, 0.0),
    "ecd-friction": (0.1519, 0.1521),
    "ecd-decoupled-scattered": (0.01449, 0.0145),
    "bbi": (0.0, 0.0),
    "bbi-decoupled-scattered": (0.01449, 0.0145),
}


def quadratic(name, steps, size=50, dtype=torch.float32, **changes):
    """An optimizer after steps on a noisy quadratic, and its parameter."""
    draw = torch.Generator().manual_seed(0)
    w = torch.nn.Parameter(torch.randn(size, generator=draw).to(dtype))
    opt = RECORDS[name].build([w], **changes)
    given = {"loss": 1.0} if opt.needs_loss else {}
    for _ in range(steps):
        w.grad = 0.1 * (w.detach() + torch.randn(size, generator=draw).to(dtype))
        opt.step(**given)
    return opt, w


@pytest.mark.parametrize("name", BILLS)
def test_bits_per_parameter_and_step(name):
    low, high = BILLS[name]
    record, (opt, _) = (
        RECORDS[name],
        quadratic(name, 2000, delta_energy=1.0) if "ecd" in name else quadratic(name, 2000),
    )
    assert low <= opt.tape.bits_per_parameter_step <= high
    assert opt.tape.bits_per_parameter_step == pytest.approx(record.bits, rel=1e-6)
    assert opt.price() == pytest.approx(record.bits, rel=1e-9)
    assert opt.tape.element_steps == 2000 * 50
    noted = 16 if "bbi" in name else 0  # the potential, and what it is called
    assert opt.journal.bytes < (8 + noted) * 2000 + 100
    halvings = opt.tape.stored_bits / 8 - 2000 * 4  # at most four records of a byte a step
    assert halvings <= (opt.tape.bits + opt.tape.growth_bits) / 50 * 7 + 200  # planes of 50 bits are 7 bytes; bits in units


def test_every_price_is_the_one_in_theory():
    for name, record in RECORDS.items():
        opt, _ = quadratic(name, 3)
        assert record.bits is None or opt.price() == pytest.approx(record.bits, rel=1e-9), name


# -- there and back --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*energy shell")
@pytest.mark.parametrize("name", RECORDS)
def test_a_plain_loop_walks_back_and_forth(name):
    loop = Loop(name)
    start = loop.bits()
    turn = loop.forward(50).bits()
    assert len(differences(start, turn)) > 10
    digest = loop.optimizer.digest()
    assert not differences(start, loop.back(50).bits())
    assert (loop.optimizer.journal.bytes, loop.optimizer.tape.bits) == (0, 0)
    assert not differences(turn, loop.forward(50).bits())
    assert loop.optimizer.digest() == digest


DAMAGES = {
    "sgd": ["q", "p", "plane", "check"],
    "sgd-int32": ["q", "p", "plane"],
    "adamw": ["q", "m", "v", "plane", "check"],
    "ecd": ["q", "p", "check"],
    "ecd-rescale": ["q", "p", "scalar", "check"],
    "ecd-int32": ["q", "p"],
    "bbi": ["q", "p", "check", "D"],
    "bbi-rescale-bouncing": ["q", "p", "scalar", "check", "D"],
    "q1": ["q", "p", "scalar", "check"],
    "q1-per-tensor": ["q", "p", "rescale 1", "check"],
}


@pytest.mark.parametrize(("name", "place"), [(n, p) for n, places in DAMAGES.items() for p in [*places, "nowhere"]])
def test_a_plain_loop_does_not_walk_back_from_damage(name, place):
    loop = Loop(name, **RECORDS[name].lossy)
    start = loop.bits()
    loop.forward(20)
    if place != "nowhere":
        damage(loop.optimizer, place)
    assert loop.returns(start, 20) is (place == "nowhere")


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw", "ecd-rescale"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_walk_back(name, dtype, damaged):
    loop = Loop(name, dtype)
    start = loop.bits()
    loop.forward(15)
    if damaged:
        damage(loop.optimizer, "q")
    assert loop.returns(start, 15) is not damaged


@pytest.mark.parametrize("name", ["sgd", "adamw", "ecd"])
def test_without_replay_going_back_is_refused(name):
    loop = Loop(name, replay=False).forward(5)
    turn, digest = loop.bits(), loop.optimizer.digest()
    with pytest.raises(lo.ReplayMismatch, match=r"replay") as caught:
        loop.back(1)
    assert caught.value.step == 4
    assert loop.optimizer.digest() == digest
    assert not differences(turn, loop.bits())


def test_batchnorm_alone_needs_replay_too():
    """Its gradient is the same again; only the running statistics would be wrong."""
    loop = Loop("sgd", replay=False)
    loop.model[3].p = 0.0
    turn = loop.forward(5).bits()
    with pytest.raises(lo.ReplayMismatch, match=r"buffer.*BatchNorm.*replay"):
        loop.back(1)
    assert not differences(turn, loop.bits())


def test_rescaling_pays_and_is_paid_and_counts_what_it_skips():
    loop = Loop("ecd-rescale")
    with pytest.warns(RuntimeWarning, match="above the energy shell"):
        loop.forward(60)
    opt = loop.optimizer
    scalars = [entry.get("scalars", {}) for entry in opt.journal.entries.values()]
    factors = [s["rescale"] for s in scalars if "rescale" in s]
    size = sum(p.numel() for p in loop.model.parameters())
    assert opt.tape.bits == pytest.approx(-size * sum(map(math.log2, factors)), rel=1e-5)
    assert min(factors) < 1 < max(factors)
    assert opt.skipped_rescales == sum("skipped" in s for s in scalars) > 0
    assert len(factors) + opt.skipped_rescales == 59  # the first step sets the shell
    loop.back(60)
    assert opt.skipped_rescales == 0


@pytest.mark.parametrize("name", ["sgd-int32", "ecd-int32"])
def test_int32_is_close_to_int64(name):
    record = RECORDS[name]
    ends = []
    for lattice in (record.lattice, {}):
        task = Digits(0, torch.float64)
        task.train(replace(record, lattice=lattice).build(task.model.parameters()), 40)
        ends.append(task.loss())
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)
    assert ends[0] != ends[1]


@pytest.mark.parametrize("place", ["nowhere", "q", "m", "v", "plane"])
def test_large_gradients_and_growing_ones_walk_back(place):
    """Gradients far apart make Adam's lattices coarser on the way; the bits of that are on the tape."""
    w = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    opt = lo.optim.Adam([w])
    start = opt.digest()

    def passes(step):
        w.grad = torch.full_like(w, 60.0 * 7.0**step)

    for step in range(6):
        passes(step)
        opt.step()
    assert opt.tape.bits == pytest.approx(4 * 6 * RECORDS["adam"].bits)
    assert opt.tape.growth_bits > 4 * 6
    if place != "nowhere":
        damage(opt, place)
    for step in reversed(range(6)):
        opt.unstep(lambda step=step: passes(step))
    assert (opt.digest() == start) is (place == "nowhere")


def test_scattering_draws_anew_in_each_group():
    """Groups alike in all else: with the same pairs and angles their momenta would stay the same."""
    params = [torch.nn.Parameter(torch.ones(100)) for _ in range(2)]
    opt = lo.optim.ECD([{"params": [p]} for p in params], lr=1e-3, nu=1e-2, delta_energy=1.0)
    start = opt.digest()

    def passes():
        for p in params:
            p.grad = torch.linspace(-1, 1, 100)
        return 1.0

    for _ in range(2):
        opt.step(passes)
    p, other = (opt.state[p]["p"] for p in params)
    assert (p != other).sum() > 50
    for _ in range(2):
        opt.unstep(passes)
    assert opt.digest() == start


@pytest.mark.parametrize("decay", [1e-7, 1e-10, 1e-13])
def test_a_tiny_decay_is_accurate(decay):
    w = torch.nn.Parameter(torch.full((1000,), 2.0**21, dtype=torch.float64))
    opt = lo.optim.AdamW([w], lr=decay, weight_decay=1.0)
    (slot,) = opt._slots
    at = slot.block.lattices["q"].value().mean()
    for _ in range(50):
        w.grad = torch.zeros_like(w)
        opt.step()
    lost = (at - slot.block.lattices["q"].value().mean()) / at
    assert lost == pytest.approx(1 - (1 - decay) ** 50, rel=1e-3 if decay < 1e-12 else 1e-5)


# -- what only these optimizers do -----------------------------------------------------------------------


def test_zakharov_ends_where_the_published_one_does():
    (case,) = [c for c in PUBLISHED["cases"] if c["name"] == "sep_zakharov"]
    opt, x = as_published(case)
    train(opt, x, zakharov, 200)
    assert case["trajectory"][-1]["step"] == 200 and case["trajectory"][-1]["loss"] < 1e-20
    assert zakharov(x.detach()) < 1e-20


def integers(opt):
    """A copy of all integers, by lattice."""
    return {k: torch.cat([s[k].reshape(-1) for s in opt.state.values()]) for k in ("q", "p")}


@pytest.mark.parametrize("patience", [0, 7])
def test_bounces_come_when_they_should_and_are_undone(patience):
    """Fixed ones after every T0 steps that move, N_b times; others after T1 steps without a new lowest potential."""
    loop = Loop("bbi-rescale-bouncing", bounce_every=6, bounces=2, patience=patience)
    opt, start = loop.optimizer, loop.bits()
    bounced, expected, lowest, since = [], [], math.inf, 0
    for step in range(40):
        before = integers(opt)
        history = dict(opt.carried)
        loop.forward(1)
        after, entry = integers(opt), opt.journal.entries[step]
        moved = not torch.equal(before["q"], after["q"])
        assert moved == ("bounce" not in entry["scalars"])
        if not moved:
            bounced.append(step)
            p, turned = before["p"].double(), after["p"].double()
            assert abs(turned.norm() / p.norm() - 1) < 1e-6
            assert abs(float((p * turned).sum())) < 0.8 * p.norm() * turned.norm()
        if step in (6, 13) or 0 < patience <= since:
            expected.append(step)
            since = 0
        else:
            lower = entry["scalars"]["D"] < lowest
            lowest, since = min(lowest, entry["scalars"]["D"]), 0 if lower else since + 1
        if patience:
            assert opt.carried["lowest"] == lowest
        loop.back(1)
        assert opt.carried == history
        loop.forward(1)
    assert bounced == expected and (len(bounced) > 2) == bool(patience)
    assert not differences(start, loop.back(40).bits())
    assert opt.carried == {}


def test_a_bounce_forgets_the_direction():
    """On average over bounces the new direction has nothing of the old one, also for few parameters."""
    for size in (2, 3, 10):
        cosines = []
        for seed in range(200):
            w = torch.nn.Parameter(torch.linspace(-1, 1, size, dtype=torch.float64))
            opt = lo.optim.BBI([w], delta_energy=1.0, bounces=1, bounce_every=1, seed=seed)
            for _ in range(2):
                old = opt.state[w]["p"].double().clone()
                w.grad = w.detach() + 0.1
                opt.step(loss=1.0)
            new = opt.state[w]["p"].double()
            cosines.append(float((old * new).sum() / (old.norm() * new.norm())))
        assert abs(sum(cosines) / 200) < 0.2
        assert max(cosines) > 0.3 and min(cosines) < -0.3


def test_unit_speed_pays_by_the_logarithm_of_its_factors():
    loop = Loop("q1-turned-round").forward(30)
    opt = loop.optimizer
    factors = [e["scalars"]["rescale"] for e in opt.journal.entries.values()]
    size = sum(p.numel() for p in loop.model.parameters())
    assert opt.tape.bits == pytest.approx(-size * sum(math.log2(abs(a)) for a in factors), rel=1e-5)
    assert min(factors) < 0 < max(factors)  # some kicks turn the momentum round
    assert opt.carried["log a"] == pytest.approx(sum(math.log(abs(a)) for a in factors))
    loop.back(30)
    assert (opt.tape.bits, opt.carried) == (0, {})


def test_each_tensor_has_a_factor_where_that_is_asked_for():
    loop = Loop("q1-per-tensor").forward(3)
    scalars = loop.optimizer.journal.entries[2]["scalars"]
    assert len(scalars) == len(list(loop.model.parameters())) == len(set(scalars.values()))
    assert math.isnan(loop.optimizer.energy)


@pytest.mark.parametrize("name", ["q1", "q1-per-tensor"])
def test_groups_with_their_own_lr_keep_the_length_of_a_direction(name):
    w = [torch.nn.Parameter(torch.linspace(-1, 1, n, dtype=torch.float64)) for n in (5, 8)]
    opt = RECORDS[name].build([{"params": w[:1], "lr": 1e-4}, {"params": w[1:], "lr": 3e-4}], weight_decay=0.0)
    for _ in range(20):
        loss = sum((x - 0.3).square().sum() for x in w)
        opt.zero_grad()
        loss.backward()
        opt.step(loss=loss)
    momenta = [opt.lattice_state[name]["p"] for name in opt.lattice_state]
    square = sum(float((n * units.repeat(n.numel())).square().sum()) for n, units in momenta)
    assert (abs(square - 1) < 1e-3) == (name == "q1")


def test_a_closure_may_set_the_learning_rate():
    def trained(inside):
        w = torch.nn.Parameter(torch.ones(3))
        opt = lo.optim.SGD([w], lr=0.1, momentum=0.9)
        for step in range(3):

            def closure(step=step):
                opt.zero_grad()
                if inside:
                    opt.param_groups[0]["lr"] = 0.1 / (1 + step)
                loss = w.square().sum()
                loss.backward()
                return loss

            if not inside:
                opt.param_groups[0]["lr"] = 0.1 / (1 + step)
            opt.step(closure)
        return opt.digest()

    assert trained(True) == trained(False)
