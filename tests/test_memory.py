"""Memory that changed is noticed by step 0 at the latest; edits, branches and files do not set off false alarms."""

import json
import warnings
from pathlib import Path

import pytest
import torch

import loschmidt as lo
from loschmidt.trajectory import environment, prune, record
from reference.bits import damage, differences, flip
from reference.memory import SUBJECTS, Memory, make
from reference.networks import Network, bits, clip, dataset, loss, run, warm_up

HOW = {"loss": loss, "lr": warm_up, "after_backward": clip}


def flip_recorded_buffer(traj, step):
    entry = traj.journal.entries[step]
    value = entry["buffers"]["norm.running_var"].clone()
    flip(value.view(torch.int32))
    traj.journal.entries[step] = entry | {"buffers": entry["buffers"] | {"norm.running_var": value}}


# -- random flips ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def memory():
    return Memory(["AdamW", "ECD", "AdamW-deep"])


def outcomes(memory, seeds):
    return {seed: trial for seed in seeds if (trial := memory.trial(seed))[3].startswith(("silent", "raw"))}


def test_random_flips_are_not_silent(memory):
    assert outcomes(memory, range(18)) == {}


def test_without_the_comparison_some_are(memory, monkeypatch):
    monkeypatch.setattr(record, "compare", lambda traj, good: good)
    found = outcomes(memory, range(18))
    assert found and all(outcome.startswith("silent") for *_, outcome in found.values())


# -- where digests are compared --------------------------------------------------------------------------


@pytest.mark.parametrize("every", [100, None])
def test_the_first_step_has_a_digest_of_everything(every):
    traj = run("SGD", digest_every=every)
    start = bits(traj)
    end = traj.seek(30).digest()
    for harm, name in (
        (lambda: damage(traj.optimizer, "p"), "the tape|/p|/q"),
        (lambda: flip(traj.tape.lanes[0].heads), "heads|/p|/q"),
        (lambda: flip_recorded_buffer(traj, 0), "buffer norm.running_var at step 0"),
    ):
        with traj.branch():
            harm()
            harmed = traj.digest()
            with pytest.raises(lo.ReplayMismatch, match=name) as e:
                traj.seek(0)
            assert (e.value.step, traj.step) == (0, 30) and traj.digest() == harmed and e.value.remedy
    assert traj.digest() == end
    assert differences(bits(traj.seek(0)), start) == []


def test_a_seek_that_ends_at_a_digest_is_compared_there():
    traj = run("SGD", digest_every=20).seek(35)
    flip_recorded_buffer(traj, 20)
    with traj.branch(), pytest.raises(lo.ReplayMismatch, match=r"norm.running_var at step 20 .* step 35 again"):
        traj.seek(20)
    traj.seek(21)  # not known there
    assert traj.seek(40).digest() == run("SGD", digest_every=20).seek(40).digest()
    flip(traj.model.norm.running_mean.view(torch.int32))
    traj.buffers.changed()  # the copy has the flipped bit, too
    with pytest.raises(lo.ReplayMismatch, match=r"buffer norm.running_mean at step 40 .* step 40 again"):
        traj.seek(39)


def test_settings_of_the_first_step_are_compared():
    schedule = lo.data.Schedule(dataset(), batch_size=7, seed=1)
    traj = run(lr=None, data=lambda step: schedule.batch(step) if step else None)  # no gradient that lr could change
    group = traj.optimizer.param_groups[0]
    group["lr"] = 1e-2
    traj.seek(1)
    group["lr"] = 3e-2
    traj.seek(20)
    with traj.branch():
        entry = traj.journal.entries[1]
        traj.journal.entries[1] = entry | {"settings": entry["settings"] | {"0": {"lr": 1.1e-2}}}
        with pytest.raises(lo.ReplayMismatch, match="settings of param group 0 at step 0"):
            traj.seek(0)
    traj.seek(0)
    assert group["lr"] == 1e-2
    group["lr"] = 2e-2
    assert traj.seek(20).seek(0).step == 0 and group["lr"] == 2e-2


def test_a_record_that_does_not_fit_is_a_mismatch_and_the_state_is_put_back():
    traj = run("Adam").seek(20)
    before = traj.digest()
    traj.journal.entries[7] = traj.journal.entries.get(7, {}) | {"active": [0, 1 << 20]}
    with pytest.raises(lo.ReplayMismatch, match=r"undoing step 6: .*do not fit together.* IndexError.* step 20 again"):
        traj.seek(0)
    assert traj.step == 20 and traj.digest() == before
    with traj.branch(), torch.no_grad(), pytest.raises(lo.ReplayMismatch, match=r"taking step .*do not fit together"):
        traj.tape.lanes[0].heads.neg_()
        traj.seek(200)
    assert traj.step == 20 and traj.digest() == before

    def failing(model, batch):
        raise IndexError("of the user")

    traj.loss_fn, traj._checked = failing, True
    with pytest.raises(IndexError, match="of the user"):
        traj.seek(0)
    assert traj.step == 20 and traj.digest() == before


# -- no false alarms -------------------------------------------------------------------------------------


def nudge(traj):
    with traj.edit() as model, torch.no_grad():
        model.gru.bias_hh_l0.add_(0.01)
        model.norm.running_mean.add_(0.01)
        model.outside.weight.add_(0.01)


def adopt(traj):
    with torch.no_grad():
        traj.model.gru.bias_hh_l0.add_(0.01)
    assert traj.optimizer.adopt()


@pytest.mark.parametrize("edit", [nudge, adopt])
@pytest.mark.parametrize("at", [0, 10, 50])
def test_edits_are_no_false_alarm_and_what_follows_is_compared_again(edit, at):
    traj = run("ECD").seek(at)
    edit(traj)
    edited = traj.digest()
    assert traj.seek(at + 20).seek(at).digest() == edited
    start = traj.seek(0).digest()
    assert traj.seek(30).seek(0).digest() == start  # all of it on the new path, and so it is compared
    traj.seek(30)
    damage(traj.optimizer, "p")
    with pytest.raises(lo.ReplayMismatch):
        traj.seek(0)


def test_branches_and_reversed_time_are_no_false_alarm():
    traj = make("ECD-composed")
    start = traj.digest()
    for at in (0, 10):
        with traj.seek(at).branch(), traj.edit() as model, torch.no_grad():
            model.first.weight.add_(0.01)
        with traj.branch():
            with traj.edit() as model, torch.no_grad():
                model.first.weight.add_(0.01)
            traj.seek(15).seek(0)
    with traj.branch():
        traj.seek(15).seek(0)
    with traj.time_reversed():
        traj.seek(15).seek(0)
    assert traj.seek(0).digest() == start


def test_another_trajectory_of_the_same_optimizer_has_a_first_step_of_its_own():
    traj = run("SGD").seek(8)
    rest = {"lr": traj.lr, "after_backward": traj.after_backward}
    again = lo.Trajectory(traj.model, traj.optimizer, loss, traj.data, **rest)
    there = again.digest()
    assert again.seek(20).seek(8).digest() == there
    with again.seek(20).branch():
        damage(again.optimizer, "p")
        with pytest.raises(lo.ReplayMismatch, match="at step 8 differs"):
            again.seek(8)
    assert traj.seek(3).seek(20).seek(0).digest() == run("SGD").digest()


def test_a_state_that_was_loaded_is_no_false_alarm():
    traj, other = run("SGD"), run("SGD", data=lo.data.Schedule(dataset(), batch_size=7, seed=3)).seek(5)
    traj.optimizer.load_state_dict(other.optimizer.state_dict())
    traj._adopt_surroundings()
    assert traj.step == 5 and traj.seek(9).seek(5).step == 5


# -- files -----------------------------------------------------------------------------------------------


def reopened(path, traj):
    return lo.Trajectory.load(path, model=Network(seed=5), data=traj.data, **HOW)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_first_digest_survives_files(kind, tmp_path):
    tape = tmp_path / "run" if kind == "folder" else None
    traj = run("SGD", tape=tape, digest_every=None)
    start = traj.digest()
    for target in (0, 30, 20):  # at the first step, and away from it
        traj.seek(target)
        if tape is None:
            traj.save(tmp_path / "run")
        else:
            traj.close()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            traj = reopened(tmp_path / "run", traj)
    with traj.branch():
        damage(traj.optimizer, "p")
        with pytest.raises(lo.ReplayMismatch, match="at step 0 differs"):
            traj.seek(0)
    assert traj.seek(0).digest() == start
    traj.close()


def test_a_run_without_the_first_digest_goes_on_and_says_so(tmp_path):
    traj = run("SGD", digest_every=None)
    start = traj.digest()
    traj.seek(20)
    traj.journal.entries[0] = {
        k: v for k, v in traj.journal.entries[0].items() if k != "start"
    }  # of an earlier version
    traj.save(tmp_path / "run")
    with pytest.warns(RuntimeWarning, match="no digest of step 0"):
        traj = reopened(tmp_path / "run", traj)
    assert traj.seek(0).digest() == start
    traj.seek(10)
    damage(traj.optimizer, "p")
    with pytest.raises(lo.ReplayMismatch, match="at step 0 differs"):  # it was taken when the run left it anew
        traj.seek(0)


def test_a_pruned_run_keeps_the_digest_of_its_new_first_step(tmp_path):
    traj = run("SGD", tape=tmp_path / "run", digest_every=10).seek(35)
    there = traj.seek(20).digest()
    traj.seek(35).close()
    prune.prune(tmp_path / "run", before=20)
    traj = reopened(tmp_path / "run", traj)
    with traj.branch():
        flip_recorded_buffer(traj, 20)
        with pytest.raises(lo.ReplayMismatch, match=r"norm\.running_var at step 20"):
            traj.seek(20)
    assert traj.seek(20).step == 20 and len(there) == 32
    traj.close()


# -- what caused it --------------------------------------------------------------------------------------


def test_the_environment_is_compared_at_a_step_with_a_gradient_and_stays_recorded(monkeypatch):
    schedule = lo.data.Schedule(dataset(), batch_size=7, seed=1)
    traj = run("SGD", data=lambda step: None if step in (0, 8, 9) else schedule.batch(step)).seek(10)
    digest, real, recorded = traj.digest(), environment.record, traj.environment
    monkeypatch.setattr(environment, "record", lambda *where: real(*where) | {"threads": 96})
    with traj.branch():
        traj.loss_fn = lambda model, batch: loss(model, batch) * (1 + 1e-7)
        with pytest.raises(lo.SourceChanged, match="threads was 1, is 96"):
            traj.seek(11)
        assert traj.step == 10 and traj.digest() == digest
    with pytest.warns(lo.EnvironmentChanged, match="step 7, the last with a gradient, was undone and taken again"):
        traj.seek(11)
    assert traj.environment == recorded
    traj.loss_fn = lambda model, batch: loss(model, batch) * (1 + 1e-7 * (traj.step == 4))
    with pytest.raises(lo.ReplayMismatch, match=r"step 3.* environment is not the recorded one: threads was 1, is 96"):
        traj.seek(0)
    traj.loss_fn = loss
    assert traj.seek(0).step == 0

    traj.seek(1)  # an empty step shows nothing, and belongs to any environment
    monkeypatch.setattr(environment, "record", lambda *where: real(*where) | {"threads": 97})
    traj.optimizer._warned.clear()
    with pytest.warns(lo.EnvironmentChanged, match="no step with a gradient is recorded"):
        traj.seek(0)
    assert traj.environment["threads"] == 97


@pytest.mark.parametrize("kind", [lo.optim.AdamW, torch.optim.AdamW])
@pytest.mark.parametrize("gives_loss", [True, False])
def test_two_optimizers_on_one_model_are_named(kind, gives_loss):
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)), torch.ones(8, 4)
    mine, other = lo.optim.AdamW(model[0].parameters(), lr=1e-2), kind(model[1].parameters(), lr=1e-2)

    def passes():
        mine.zero_grad(), other.zero_grad()
        with lo.replay(mine, model):
            loss = model(x).square().mean()
            loss.backward()
        return loss if gives_loss else None

    before = model[0].weight.detach().clone()
    passes(), mine.step(), passes(), other.step()
    with pytest.raises(lo.ReplayMismatch, match=r"weights that another AdamW.* two optimizers on one model"):
        mine.unstep(passes)
    if kind is lo.optim.AdamW:
        other.unstep(passes)
        mine.unstep(passes)
        assert torch.equal(model[0].weight, before)


def test_settings_that_could_not_be_loaded_are_not_saved(tmp_path):
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    opt = lo.optim.ECD([{"params": [a]}, {"params": [b]}], lr=0.1)
    opt.state_dict()
    opt.param_groups[1]["eta"] = 2.0
    with pytest.raises(lo.InvalidSetting, match="eta differs between param groups") as e:
        opt.state_dict()
    assert e.value.remedy
    traj = run("ECD", tape=tmp_path / "run").seek(3)
    before = traj.folder.manifest
    traj.optimizer.param_groups[1]["eta"] = 2.0
    for write in (traj.commit, lambda: traj.save(tmp_path / "file")):
        with pytest.raises(lo.InvalidSetting, match="eta differs"):
            write()
    assert traj.folder.manifest == before and not (tmp_path / "file").exists()
    traj.optimizer.param_groups[1]["eta"] = traj.optimizer.param_groups[0]["eta"]
    traj.close()


def test_the_page_shows_what_was_recorded():
    root = Path(__file__).resolve().parents[1]
    recorded = json.loads((root / "benchmarks/results/bit_flips.json").read_text())
    page = (root / "docs/what-is-reversible.md").read_text()
    shown = page.split("<!-- bit flips -->")[1].split("<!-- /bit flips -->")[0]
    assert recorded["trials"] == sum(recorded["outcomes"].values()) == sum(x["trials"] for x in recorded["counts"])
    assert recorded["silent_or_raw"] == [] and "| silent and wrong | 0 |" in shown
    for kind, n in recorded["outcomes"].items():
        assert f"| {kind if kind == 'harmless' else f'`{kind}`'} | {n:,} |" in shown
    assert f"of {recorded['trials']:,} flips" in shown and len(recorded["subjects"]) == len(SUBJECTS)
