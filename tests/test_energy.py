"""The energy ledger: the first law closes, known orbits have their energy, and looking changes no bit."""

import copy
import itertools
import json
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import loschmidt as lo
from loschmidt.exact import Shear
from loschmidt.physics import (
    EnergyMonitor,
    kinetic_temperature,
    measured_heating,
    predicted_heating,
    read,
    stationarity,
)
from reference.bits import differences, flip
from reference.networks import OPTIMIZERS, bits, run

VIEWS = ("batch", "full", "mean")
STAMPS = {"direction", "seconds", "time"}


class Point(nn.Module):
    """Parameters that are the whole model."""

    def __init__(self, q):
        super().__init__()
        self.q = nn.Parameter(torch.as_tensor(q, dtype=torch.float64))


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def losses(model, batch):
    """Half the mean square distance to each sample."""
    return (model.q - batch).square().mean(1) / 2


def cloud(optimizer="ECD", batch_size=8, n=40, rows=64, start=0.1, replacement=False, factor=None, **settings):
    """A run on a cloud of samples: quadratic, and with known gradient noise."""
    model = Point(start * normal(n, seed=1))
    opt = getattr(lo.optim, optimizer)(model.parameters(), **settings)
    data = lo.data.Schedule(2.0 * normal(rows, n, seed=2), batch_size, seed=3, replacement=replacement)
    return lo.Trajectory(model, opt, lambda model, batch: losses(model, batch).mean(), data, lr=factor)


def ledger(traj, steps, **given):
    with EnergyMonitor(traj, **({"every": 1} | given)) as monitor:
        traj.seek(traj.step + steps)
    return monitor.lines


def without_stamps(line):
    return {k: v for k, v in line.items() if k not in STAMPS}


SETTINGS = {
    "ECD": ("ECD", {"lr": 0.3, "weight_decay": 0.1}),
    "ECD, all its ops": (
        "ECD",
        {"lr": 0.3, "eta": 1.5, "delta_energy": 0.5, "conserve": "rescale", "nu": 0.01, "weight_decay": 0.1}
        | {"decoupled": True},
    ),
    "ECD, s = 0": ("ECD", {"lr": 0.1, "s": 0.0, "delta_energy": 1.0}),
    "BBI, all its ops": (
        "BBI",
        {"lr": 0.3, "delta_energy": 0.5, "nu": 0.01, "weight_decay": 0.1, "bounces": 2, "bounce_every": 5}
        | {"conserve": "rescale", "decoupled": True},
    ),
    "ECDq1": ("ECDq1", {"lr": 0.1, "eta": 20.0, "weight_decay": 0.1}),
    "ECDq1, each tensor": ("ECDq1", {"lr": 0.1, "eta": 20.0, "projection": "per-tensor"}),
    "ECDq1, turned round": ("ECDq1", {"lr": 2.0, "eta": 200.0}),
    "ECD, friction": ("ECD", {"lr": 0.3, "delta_energy": 0.5, "weight_decay": 0.1, "momentum": 0.9}),
    "SGD": ("SGD", {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.1}),
    "SGD, dampened": ("SGD", {"lr": 0.5, "momentum": 0.8, "dampening": 0.3}),
    "SGD up": ("SGD", {"lr": 0.01, "momentum": 0.9, "maximize": True}),
    "Adam": ("Adam", {"lr": 0.01, "weight_decay": 0.1}),
    "AdamW": ("AdamW", {"lr": 0.01, "weight_decay": 0.5}),
}
CAUSES = {
    "ECD, all its ops": {"start", "rescale", "kick", "decay", "drift"},
    "BBI, all its ops": {"start", "rescale", "kick", "decay", "drift"},
    "ECDq1": {"rescale", "kick", "drift"},
    "ECDq1, each tensor": {"rescale", "kick", "drift"},
    "ECD, friction": {"start", "friction", "kick", "drift"},
    "SGD": {"friction", "kick", "drift"},
    "AdamW": {"friction", "kick", "metric", "decay", "drift"},
}


# -- the first law -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_the_first_law_closes(name):
    kind, settings = SETTINGS[name]
    traj = cloud(kind, factor=lambda step: 1 / (1 + 0.05 * step), **settings)
    lines = ledger(traj, 24, losses=losses)
    for line in lines:
        for view in VIEWS:
            seen = line[view]
            assert seen["total"] == pytest.approx(seen["potential"] + seen["kinetic"], abs=1e-12)
            assert seen["change"] == pytest.approx(sum(seen["by"].values()), abs=1e-11)
            assert abs(seen["by"]["rounding"]) < 1e-8, "the floats end where the integers do"
        rest = sum(x for cause, x in line["mean"]["by"].items() if cause not in lo.physics.ledger.HEAT)
        assert line["full"]["change"] == pytest.approx(line["heat"] + line["work"] + rest, abs=1e-11)
        assert line["tape"] == pytest.approx(sum(line["bits"].values()), abs=0.2)
    # Between steps nothing is lost either: a step begins with the energy that the one before left.
    for before, after in itertools.pairwise(lines):
        for view in ("full", "mean"):
            assert after[view]["total"] == pytest.approx(before[view]["total"] + before[view]["change"], abs=1e-10)
    last = lines[-1]
    change = last["mean"]["total"] + last["mean"]["change"] - lines[0]["mean"]["total"]
    assert change == pytest.approx(sum(last["cumulated"]["by"].values()), abs=1e-9)
    assert last["cumulated"]["tape"] == pytest.approx(traj.tape.bits, abs=1e-6)
    found = {cause for line in lines for cause, x in line["mean"]["by"].items() if abs(x) > 1e-9}
    assert found >= CAUSES.get(name, {"kick", "drift"}) | ({"schedule"} if kind in ("SGD", "Adam", "AdamW") else set())


def test_a_monitor_sees_a_momentum_turned_round_and_adds_up_from_the_start():
    kind, settings = SETTINGS["ECDq1, turned round"]
    traj = cloud(kind, **settings)
    lines = ledger(traj, 24, losses=losses)
    assert any(entry.get("scalars", {}).get("rescale", 1.0) < 0 for entry in traj.journal.entries.values())
    by = lines[-1]["cumulated"]["by"]
    assert all(math.isfinite(x) for x in by.values()) and by["start"] == 0.0  # a length of 1 was to come
    bbi = ledger(cloud("BBI", batch_size=None, delta_energy=0.5), 2)
    assert bbi[0]["batch"]["by"]["start"] == pytest.approx(0.5, abs=1e-9)  # and is no heat


def test_a_wrong_ledger_would_be_noticed():
    """The twin: a step that did something else than its program says does not close."""
    traj = cloud("SGD", momentum=0.9)
    traj.seek(3)
    with EnergyMonitor(traj, every=1, full=False) as monitor:
        after = monitor.after

        def damaged(traj, back):
            flip(traj.optimizer._slots[0].block.lattices["p"].n, bit=24)
            after(traj, back)
            flip(traj.optimizer._slots[0].block.lattices["p"].n, bit=24)

        monitor.after = damaged
        traj.seek(4)
    assert abs(monitor.lines[-1]["batch"]["by"]["rounding"]) > 1e-8


def test_each_op_took_what_it_must():
    traj = cloud("SGD", momentum=0.9)
    lines = ledger(traj, 6, losses=losses)
    for line in lines:
        seen = line["full"]
        assert seen["by"]["friction"] == pytest.approx((0.81 - 1) * seen["kinetic"], abs=1e-12)
        assert line["bits"] == {"friction": pytest.approx(40 * math.log2(10 / 9))}
    for line in ledger(cloud("ECD", delta_energy=0.5, momentum=0.9), 6, losses=losses)[1:]:
        square = math.expm1(line["mean"]["kinetic"])  # |p|^2, with s = 1
        taken = math.log((1 + 0.81 * square) / (1 + square))
        assert line["mean"]["by"]["friction"] == pytest.approx(taken, abs=1e-9)
        assert line["bits"]["friction"] == pytest.approx(40 * math.log2(10 / 9))
    # By hand: kinetic energy after the step, and the potential of a cloud.
    lr, p = traj.optimizer.param_groups[0]["lr"], traj.optimizer._slots[0].block.lattices["p"].value()
    q, x = traj.model.q.detach(), traj.data.dataset
    by, start = lines[-1]["full"]["by"], lines[-1]["full"]
    assert start["kinetic"] + by["friction"] + by["kick"] == pytest.approx(lr / 2 * float(p @ p), rel=1e-9)
    assert start["potential"] + by["drift"] == pytest.approx(losses(Point(q), x).mean().item(), rel=1e-12)


def test_rescaling_and_decay_are_booked():
    kind, settings = SETTINGS["ECD, all its ops"]
    traj = cloud(kind, **settings)
    (line,) = [line for line in ledger(traj, 9, losses=losses) if line["step"] == 8]
    c = traj.journal.entries[8]["scalars"]["rescale"]
    square = math.exp(line["full"]["kinetic"]) - 1
    assert line["full"]["by"]["rescale"] == pytest.approx(math.log((1 + c * c * square) / (1 + square)), abs=1e-9)
    assert line["bits"]["rescale"] == pytest.approx(-40 * math.log2(c), rel=1e-6)
    assert line["bits"]["decay"] == pytest.approx(-40 * math.log2(1 - 0.3 * 0.1), rel=1e-6)
    assert line["mean"]["by"]["scatter"] == pytest.approx(0, abs=1e-12) and c != 1
    # Decay by hand: the potential before it and after it, at 0.97 q.
    traj.seek(8)
    q = traj.model.q.detach().clone()
    inside = [math.log(losses(Point(f * q), traj.data.dataset).mean().item()) for f in (1, 0.97)]
    assert line["full"]["by"]["decay"] == pytest.approx(1.5 * (inside[1] - inside[0]), rel=1e-6)


@pytest.mark.parametrize("decay", [0.005, 0.05])
def test_a_decay_is_worth_what_the_loss_says(decay):
    """Small ones are priced with the gradient, large ones by evaluation."""
    line = ledger(cloud("AdamW", batch_size=None, start=1.0, lr=0.01, weight_decay=decay), 3)[2]
    traj = cloud("AdamW", batch_size=None, start=1.0, lr=0.01, weight_decay=decay).seek(2)
    q, x = traj.model.q.detach(), traj.data.dataset
    by_hand = (losses(Point(q * (1 - 0.01 * decay)), x).mean() - losses(Point(q), x).mean()).item()
    assert line["full"]["by"]["decay"] == pytest.approx(by_hand, rel=1e-3)


# -- known orbits --------------------------------------------------------------------------------------


def oscillator(optimizer, **settings):
    """Unit mass on a spring of stiffness 1: loss q^2/2."""
    model = Point([1.0])
    opt = getattr(lo.optim, optimizer)(model.parameters(), **settings)
    return lo.Trajectory(model, opt, lambda model, batch: model.q.square().sum() / 2, lambda step: torch.zeros(1))


def test_an_oscillator_without_friction():
    lr = 0.04
    lines = ledger(oscillator("SGD", lr=lr, momentum=1.0), 200, full=False)
    for line in lines:
        seen, q, p = line["batch"], _place(lr, line["step"]), _momentum(lr, line["step"])
        assert seen["potential"] == pytest.approx(q**2 / 2, abs=1e-9)
        assert seen["kinetic"] == pytest.approx(lr / 2 * p**2, abs=1e-9)
        # The integrator conserves H - (lr/2) q p exactly, so H swings by at most about sqrt(lr) of itself.
        assert seen["total"] - lr / 2 * q * p == pytest.approx(0.5, abs=1e-9)
        assert line["bits"] == {} and seen["by"]["friction"] == 0


def _place(lr, n):
    """q after n steps of kick and drift from q = 1 at rest: an exact solution of the difference equation."""
    w = math.acos(1 - lr / 2)
    return math.cos(w * (n + 0.5)) / math.cos(w / 2)


def _momentum(lr, n):
    return (_place(lr, n) - _place(lr, n - 1)) / lr


def test_an_oscillator_with_friction_cools_by_what_friction_took():
    lines = ledger(oscillator("SGD", lr=0.04, momentum=0.99), 400, full=False)
    taken = sum(line["batch"]["by"]["friction"] for line in lines)
    assert lines[0]["batch"]["total"] == 0.5 and lines[-1]["batch"]["total"] < 0.05
    assert taken == pytest.approx(lines[-1]["batch"]["total"] - 0.5, abs=0.02), "kick and drift give back"
    assert lines[-1]["cumulated"]["bits"]["friction"] == pytest.approx(400 * math.log2(100 / 99))


def test_energy_conserving_descent_conserves_its_energy():
    swing = []
    for lr in (0.04, 0.02):
        traj = oscillator("ECD", lr=lr, F0=-1.0, delta_energy=0.5)
        lines = ledger(traj, round(6 / lr), full=False)[1:]
        totals = np.array([line["batch"]["total"] for line in lines])
        swing.append(float(np.ptp(totals)))
        assert totals[-1] == pytest.approx(traj.optimizer.energy, abs=1e-12)
    assert swing[0] < 0.04 and swing[1] / swing[0] == pytest.approx(0.5, abs=0.1), "of first order in the step"


# -- looking changes nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_network_has_the_same_bits_with_a_monitor(name, tmp_path):
    alone, watched = run(name), run(name)
    with EnergyMonitor(watched, every=12, path=tmp_path / "energy.jsonl", batches=3):
        for traj in (alone, watched):
            traj.seek(80)
        assert watched.digest() == alone.digest() and differences(bits(watched), bits(alone)) == []
        assert watched.loss == alone.loss
        for traj in (alone, watched):
            traj.seek(40).seek(60)
        assert watched.digest() == alone.digest() and watched.journal.bytes == alone.journal.bytes
    start = run(name)
    assert watched.seek(0).digest() == start.digest()
    flip(watched.optimizer._slots[0].block.lattices["q"].n)
    assert watched.digest() != start.digest(), "the twin: one bit"


def test_deep_blocks_have_the_same_bits_with_a_monitor():
    def deep(kind, **settings):
        model = Point(0.1 * normal(70_000))
        opt = getattr(lo.optim, kind)(model.parameters(), **settings)
        data = lo.data.Schedule(normal(4, 70_000, seed=5), 2, seed=3)
        return lo.Trajectory(model, opt, lambda model, batch: losses(model, batch).mean(), data)

    for kind, settings in (("AdamW", {"lr": 0.01, "weight_decay": 0.1}), ("ECD", {"lr": 0.5, "conserve": "rescale"})):
        alone, watched = deep(kind, **settings).seek(6), deep(kind, **settings)
        lines = ledger(watched, 6, losses=losses)
        assert watched.digest() == alone.digest()
        assert all(abs(line["mean"]["by"]["rounding"]) < 1e-7 for line in lines)
        assert all(line["tape"] == pytest.approx(sum(line["bits"].values()), rel=1e-4, abs=1) for line in lines)


def test_predicting_changes_nothing():
    traj, other = run("ECD").seek(20), run("ECD").seek(20)
    predicted_heating(traj, 8)
    assert traj.digest() == other.digest() and traj.seek(30).digest() == other.seek(30).digest()
    assert traj.seek(0).digest() == run("ECD").digest()


def test_watchers_stay_out_of_branches_and_copies():
    traj = cloud()
    with EnergyMonitor(traj, every=1) as monitor:
        traj.seek(3)
        with traj.branch():
            traj.seek(9)
        twin = copy.deepcopy(traj).seek(6)
        assert twin.step == 6 and [line["step"] for line in monitor.lines] == [0, 1, 2]
        traj.seek(4)
    traj.seek(8)
    assert [line["step"] for line in monitor.lines] == [0, 1, 2, 3] and traj.watchers == []


def test_a_watcher_sees_both_sides_of_the_steps_it_asked_for():
    class Watcher:
        def __init__(self):
            self.seen = []

        def due(self, step):
            return step % 2 == 0

        def before(self, traj, back):
            self.seen.append(("before", traj.step, back))

        def after(self, traj, back):
            self.seen.append(("after", traj.step, back))

    traj, watcher = cloud(), Watcher()
    traj.watchers.append(watcher)
    traj.seek(3).seek(1)
    assert watcher.seen == [
        *(("before", 0, False), ("after", 1, False), ("before", 2, False), ("after", 3, False)),
        *(("before", 3, True), ("after", 2, True)),
    ]


# -- the file ---------------------------------------------------------------------------------------------


def test_the_record_follows_the_path(tmp_path):
    path = tmp_path / "a folder" / "energy.jsonl"
    traj = cloud("SGD", momentum=0.9)
    with EnergyMonitor(traj, every=5, path=path, losses=losses) as monitor:
        traj.seek(23)
        assert [line["step"] for line in read(path)] == [0, 5, 10, 15, 20]
        plain = [without_stamps(line) for line in read(path)]
        assert plain == json.loads(json.dumps([without_stamps(line) for line in monitor.lines]))
        traj.seek(8)
        assert [line["step"] for line in read(path)] == [0, 5]
        everything = read(path, everything=True)
        there = {line["step"]: without_stamps(line) for line in everything if line["direction"] == "forward"}
        back = [line for line in everything if line["direction"] == "back"]
        assert [line["step"] for line in back] == [20, 15, 10]
        assert all(without_stamps(line) == there[line["step"]] for line in back), "the same numbers, bit for bit"
        with traj.edit() as model:
            model.q.data[0] += 1e-3
        traj.seek(18)
        new = {line["step"]: line for line in read(path)}
        assert list(new) == [0, 5, 10, 15] and new[10]["full"]["total"] != there[10]["full"]["total"]
        assert new[15]["cumulated"]["lines"] == 4
    with EnergyMonitor(traj, every=5, path=path, losses=losses) as again:
        traj.seek(26)
        assert [line["step"] for line in again.lines] == [0, 5, 10, 15, 20, 25] == [line["step"] for line in read(path)]
        assert again.lines[-1]["cumulated"]["lines"] == 6


def test_a_torn_file_stays_readable_and_goes_on(tmp_path):
    path = tmp_path / "energy.jsonl"
    traj = cloud()
    with EnergyMonitor(traj, every=1, path=path):
        traj.seek(6)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="torn"):
        assert [line["step"] for line in read(path)] == [0, 1, 2, 3, 4]
    traj.seek(3)  # as from an earlier commit
    with EnergyMonitor(traj, every=1, path=path) as monitor:
        traj.seek(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [line["step"] for line in read(path)] == list(range(8)) == [line["step"] for line in monitor.lines]


def test_a_killed_seek_leaves_whole_lines(tmp_path):
    traj, path = cloud(), tmp_path / "energy.jsonl"
    monitor = EnergyMonitor(traj, every=1, path=path)

    def stop(traj):
        if traj.step == 4:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        traj.seek(9, on_step=stop)
    assert [line["step"] for line in read(path)] == [0, 1, 2, 3]
    monitor.close()


def test_a_step_without_gradient_has_no_line():
    model = Point([1.0, 2.0])
    opt = lo.optim.SGD(model.parameters(), momentum=0.9)
    data = [torch.ones(3, 2), None]
    traj = lo.Trajectory(model, opt, lambda m, b: losses(m, b).mean(), lambda step: data[step % 2])
    assert [line["step"] for line in ledger(traj, 5, full=False)] == [0, 2, 4]


# -- what is refused --------------------------------------------------------------------------------------


def refused(what, tmp_path):
    (tmp_path / "file").write_text("something else\n")
    traj = cloud()
    if what == "optimizer":
        model = Point([1.0])

        class Mute(lo.optim.ReversibleOptimizer):
            def drifts(self):
                return ()

        lo.optim.ReversibleOptimizer.registry.pop("Mute")
        opt = Mute(model.parameters(), {"lr": 1.0, "weight_decay": 0.0})
        return EnergyMonitor(lo.Trajectory(model, opt, lambda m, b: m.q.sum(), lambda step: torch.ones(1)))
    if what == "no full data":
        data = traj.data
        return EnergyMonitor(lo.Trajectory(traj.model, traj.optimizer, traj.loss_fn, lambda step: data(step)))
    given = {
        "every": {"every": 0},
        "batches": {"batches": -1},
        "path": {"path": tmp_path / "file" / "energy.jsonl"},
        "other file": {"path": tmp_path / "file"},
        "not losses": {"losses": traj.loss_fn},
        "losses without data": {"losses": losses, "full": False},
        "other losses": {"losses": lambda model, batch: 2 * losses(model, batch)},
    }[what]
    with EnergyMonitor(traj, **given):
        traj.seek(1)


def test_losses_of_single_samples_are_refused_where_samples_act_on_each_other():
    model = Point(normal(4))
    model.norm = nn.BatchNorm1d(4).double()
    rows = normal(32, 4)

    def each(model, batch):
        return (model.q - model.norm(batch * torch.arange(1, 5) + batch[:1])).square().mean(1)

    opt = lo.optim.SGD([model.q], momentum=0.9)
    traj = lo.Trajectory(model, opt, lambda m, b: each(m, b).mean(), lo.data.Schedule(rows, 4))
    with EnergyMonitor(traj, losses=each), pytest.raises(lo.InvalidSetting, match="BatchNorm"):
        traj.seek(1)
    assert traj.step == 0 and ledger(traj, 2, batches=2)[1]["heat"] is not None


REFUSED = {
    "optimizer": (lo.InvalidSetting, "energy_law"),
    "no full data": (lo.InvalidSetting, "full=False"),
    "every": (lo.InvalidSetting, "every=0"),
    "batches": (lo.InvalidSetting, "batches=-1"),
    "path": (lo.NotWritten, "a file is where a folder should be"),
    "other file": (lo.InvalidSetting, "holds something else"),
    "not losses": (lo.InvalidSetting, "one loss for each sample"),
    "losses without data": (lo.InvalidSetting, "full data"),
    "other losses": (lo.InvalidSetting, "whose mean is the loss"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_is_refused(what, tmp_path):
    kind, words = REFUSED[what]
    with pytest.raises(kind, match=words) as caught:
        refused(what, tmp_path)
    assert caught.value.remedy or "Remedy" in str(caught.value)


@pytest.mark.parametrize("settings", [{"integrator": "leapfrog"}, {"lr": "auto"}])
def test_steps_of_several_kicks_are_refused(settings):
    traj = cloud(batch_size=None, **settings)
    with pytest.raises(lo.errors.InvalidSetting, match=next(iter(settings))):
        EnergyMonitor(traj)
    plain = cloud(batch_size=None)
    with EnergyMonitor(plain, every=1) as monitor, pytest.raises(lo.errors.InvalidSetting, match="reversed"):
        plain.optimizer.reverse_time()
        plain.seek(5)
    assert monitor.lines == [] and plain.step == 0


def test_the_energy_at_a_start_that_was_come_back_to_with_a_momentum_counts_it():
    traj = cloud(batch_size=None, lr=0.01)
    opt = traj.optimizer
    at_rest = opt.energy_at(traj.loss)
    traj.seek(300)
    assert opt.energy_at(traj.loss) == pytest.approx(at_rest, abs=5e-3)
    with traj.edit() as model, torch.no_grad():
        model.q.add_(2.0)
    turned = opt.energy_at(traj.loss)
    traj.seek(0)
    assert opt.energy_at(traj.loss) == pytest.approx(turned, abs=5e-3) and abs(turned - at_rest) > 0.2


def test_other_refusals():
    with pytest.raises(lo.InvalidSetting, match="Trajectory"):
        EnergyMonitor(3)
    with pytest.raises(lo.InvalidSetting, match="at least 4"):
        predicted_heating(cloud(), 2)
    lines = ledger(cloud(), 5)
    with pytest.raises(lo.InvalidSetting, match="average over batches"):
        measured_heating(lines)
    with pytest.raises(lo.InvalidSetting, match="3 lines"):
        measured_heating([])


# -- views ------------------------------------------------------------------------------------------------


def test_all_ways_to_look_agree():
    by_row = ledger(cloud(), 6, losses=losses, batches=16)
    by_batch = ledger(cloud(), 6, batches=16)
    rows = cloud().data.dataset
    given = ledger(cloud(), 6, full=rows)
    for a, b, c in zip(by_row, by_batch, given, strict=True):
        for view in ("batch", "full"):
            assert a[view]["total"] == pytest.approx(b[view]["total"]) == pytest.approx(c[view]["total"])
        assert a["mean"]["total"] == pytest.approx(b["mean"]["total"], abs=2e-3), "other batches"
        assert "mean" not in c and c["heat"] is None
    # The mean of the logarithm is below the logarithm of the mean.
    assert all(line["mean"]["potential"] < line["full"]["potential"] for line in by_row)


def test_the_full_batch_is_all_views():
    lines = ledger(cloud(batch_size=None), 4)
    assert all(line["batch"] == line["full"] == line["mean"] and line["work"] == 0 for line in lines)


def test_samples_taken_out_are_out_of_all_views():
    traj = cloud()
    traj.data = traj.data.without_ids(range(10))
    traj = lo.Trajectory(traj.model, traj.optimizer, traj.loss_fn, traj.data)
    (line,) = ledger(traj, 1, losses=losses)
    kept = losses(Point(0.1 * normal(40, seed=1)), traj.data.dataset[10:])
    assert line["full"]["potential"] == pytest.approx(math.log(kept.mean().item()), abs=1e-9)


def test_a_cause_may_be_given_by_the_op():
    law = lo.optim.SGD.energy_law
    assert law.cause_of(Shear("p", lambda part: None)) == "kick"
    assert law.cause_of(Shear("p", lambda part: None, cause="start")) == "start"
    assert law.cause_of(Shear("v", lambda part: None)) == "metric"


# -- heating ----------------------------------------------------------------------------------------------


def heating(steps=600, **settings):
    """Mean predicted and measured heating of a cloud of 400 dimensions, from rest near its middle."""
    traj = cloud(n=400, rows=512, **settings)
    with EnergyMonitor(traj, every=20, losses=losses, batches=256) as monitor:
        predicted = []
        for k in range(4):
            predicted.append(predicted_heating(traj, 16, seed=k))
            traj.seek(traj.step + steps // 4)
    value = float(np.mean([found.value for found in predicted]))
    assert all(found.replacement == traj.data.replacement for found in predicted)
    return value, predicted[0], measured_heating(monitor.lines)


def test_noise_heats_as_predicted():
    predicted, one, measured = heating(replacement=True, lr=0.4)
    low, high = one.interval
    assert low < one.value < high and one.unit == measured.unit == "nats" and one.count == 8
    assert 1 / 1.5 < measured.value / predicted < 1.5
    # By hand, at rest: dt^2 eta^2 tr C / s, and C of a mean of 8 independent samples over D.
    traj = cloud(n=400, rows=512, replacement=True)
    x, q, dt = traj.data.dataset, traj.model.q.detach(), traj.optimizer.param_groups[0]["lr"]
    d = losses(traj.model, x).mean().item()
    trace = float(x.var(0, correction=0).sum()) / 8 / 400**2 / d**2
    assert predicted_heating(traj, 64).value == pytest.approx(dt**2 * trace, rel=0.1) and q.norm() > 0


def test_the_full_batch_does_not_heat():
    predicted, _, measured = heating(steps=200, batch_size=None)
    noisy, *_ = heating(steps=120, replacement=True)
    assert predicted == 0 and abs(measured.value) < 0.1 * noisy


def test_without_replacement_it_heats_less():
    predicted, _, measured = heating(replacement=False, steps=400)
    assert measured.value < predicted / 3


def test_heating_of_sgd():
    predicted, _, measured = heating(optimizer="SGD", momentum=1.0, replacement=True)
    assert 1 / 1.5 < measured.value / predicted < 1.5 and measured.unit == "loss"


def test_heating_beside_friction_is_that_of_single_steps():
    lines = ledger(cloud("SGD", momentum=0.9, replacement=True), 60, losses=losses)
    found = measured_heating(lines)
    assert "friction" in found.how and found.value == pytest.approx(np.mean([line["heat"] for line in lines]))


# -- stationarity and temperature ------------------------------------------------------------------------------


def test_temperature_of_a_stationary_run():
    """SGD on a quadratic: <|p|^2> has a closed form (an autoregression of second order)."""
    n, lr, momentum = 40, 4.0, 0.9
    traj = cloud("SGD", lr=lr, momentum=momentum, replacement=True)
    traj.seek(200)
    lines = ledger(traj, 1000, every=5, full=False)
    found = kinetic_temperature(lines, tolerance=0.1)
    assert found.value is not None, found.reason
    assert stationarity(lines, tolerance=0.1).virial_gap < 0.1
    # q'' = (1 + m - lr k) q' - m q - lr k noise; noise: of the middle of 8 samples, k = 1/n
    noise = float(traj.data.dataset.var(0, correction=0).mean()) / 8
    h, m = lr / n, momentum
    a1, a2 = 1 + m - h, -m
    variance = h**2 * noise * (1 - a2) / ((1 + a2) * ((1 - a2) ** 2 - a1**2))
    step = 2 * variance * (1 - a1 / (1 - a2))  # <(q' - q)^2> = lr^2 <p^2>
    assert found.value == pytest.approx(step / lr, rel=0.1) and found.unit == "loss"


def test_no_temperature_where_the_run_is_not_stationary():
    lines = ledger(cloud("SGD", momentum=0.9, start=3.0, lr=0.1), 60, full=False)
    found = kinetic_temperature(lines)
    assert found.value is None and "moved by" in found.reason
    assert "fewer than" in kinetic_temperature(lines[:5]).reason
    free = [line | {"pull": 0.0} for line in ledger(cloud("SGD", momentum=1.0), 40, full=False)]
    assert "cancel" in stationarity(free, tolerance=10.0).reason


def test_messages_name_what_was_seen():
    traj = cloud("ECD", batch_size=None, lr=0.1, F0=-1.0)
    opt = traj.optimizer
    for measure in (lo.physics.echo, lo.physics.predicted_heating, lambda x: lo.physics.tangent(x, 0, 1)):
        with pytest.raises(lo.InvalidSetting, match=r"traj is a ECD.*loschmidt\.Trajectory"):
            measure(opt)
    with pytest.raises(lo.InvalidSetting, match="a step is a whole number"):
        lo.physics.lyapunov(traj, "0", 5)
    lines = ledger(traj, 40, full=False)
    with pytest.raises(lo.InvalidSetting, match="view='fall' is not on all lines"):
        lo.physics.stationarity(lines, view="fall")
    opt.param_groups[0]["integrator"] = "leapfrog"
    traj.seek(45)
    opt.param_groups[0]["integrator"] = "euler"
    traj.seek(47)
    with EnergyMonitor(traj, every=1), pytest.raises(lo.InvalidSetting, match='integrator="leapfrog" has more'):
        traj.seek(40)
    assert traj.step == 45
    free = cloud("SGD", momentum=1.0)
    with pytest.raises(lo.InvalidSetting, match="no mirror image"), free.time_reversed():
        pass


@pytest.mark.parametrize(
    ("kind", "settings"), [("BBI", {}), ("ECDq1", {}), ("ECD", {"delta_energy": 0.5}), ("ECD", {"lr": "auto"})]
)
def test_no_heating_is_predicted_before_there_is_a_momentum(kind, settings):
    traj = cloud(kind, **settings)
    with pytest.raises(lo.InvalidSetting, match=r"seek\(1\)"):
        lo.physics.predicted_heating(traj, batches=4)
    assert lo.physics.predicted_heating(traj.seek(1), batches=4).value > 0
